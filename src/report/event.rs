//! Events, and the JSON they become: the fixed contract of the topics `face` and `summary`.
//!
//! An [`Event`] is what happened; [`Event::payload`] gives what is sent of it, at the moment of sending, because only
//! then `latency_ms` and `historical` are known.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::expression::{Emotion, Probabilities};
use crate::face::{Rect, TrackId};
use crate::frame::CaptureTime;

/// Names one run of the process; part of every payload, so that a consumer knows when `seq` starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Boot(pub Uuid);

impl Boot {
    /// A new random one (UUID version 4).
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl std::fmt::Display for Boot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Boot {
    fn schema_name() -> Cow<'static, str> {
        "Boot".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "uuid",
            "description": "UUID made at the start of the process."
        })
    }
}

/// A moment, written as RFC 3339 in UTC with exactly microseconds: `2026-03-01T09:30:00.250000Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub jiff::Timestamp);

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.6}", self.0)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "date-time",
            "pattern": r"^-?\d{4,6}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
            "description": "RFC 3339, UTC, with microseconds."
        })
    }
}

/// Something that happened, at a place in the gap-free sequence of its boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The run of the process that it happened in.
    pub boot: Boot,
    /// Counts from 0 without gaps within a boot, over `face` and `summary` alike.
    pub seq: u64,
    /// Capture time of the frame that showed it, by the wall clock.
    pub time: Moment,
    /// The same in the clock for latencies; `None` where the event was read back from storage.
    #[serde(skip)]
    pub captured: Option<Instant>,
    /// What happened.
    pub body: EventBody,
}

/// What an [`Event`] says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum EventBody {
    /// One person, one moment; topic `face`.
    Face(FaceEvent),
    /// A window of time; topic `summary`.
    Summary(SummaryEvent),
}

/// One person at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaceEvent {
    /// Why it is told.
    pub kind: FaceEventKind,
    /// Whose stay.
    pub track: u64,
    /// The emotion shown.
    pub emotion: Emotion,
    /// A probability for each emotion, in the order of [`Emotion::ALL`].
    pub probabilities: [f32; 8],
    /// How little was removed by de-expression, in [0, 1].
    pub neutrality: f32,
    /// How fit the face was for reading, in [0, 1].
    pub quality: f32,
    /// `[x, y, width, height]` in pixels of the frame.
    pub rect: [f32; 4],
}

/// Why a [`FaceEvent`] is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FaceEventKind {
    /// The person has been in view for the configured time.
    Enter,
    /// Another emotion is shown.
    Change,
    /// The regular sample.
    Sample,
    /// The person has left.
    Leave,
}

/// What a window of time held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SummaryEvent {
    /// Its length in microseconds; it ends at the event's time.
    pub window_us: u64,
    /// People who entered.
    pub entered: u64,
    /// People who left.
    pub left: u64,
    /// Most people in view at once.
    pub peak: u64,
    /// Each person in view once, under the emotion shown longest; in the order of [`Emotion::ALL`].
    pub people: [u64; 8],
    /// Microseconds that faces were in view, by emotion shown; in the order of [`Emotion::ALL`].
    pub attention_us: [u64; 8],
}

/// What is only known when an event is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Now.
    pub now: CaptureTime,
    /// The event comes from the spool, late.
    pub historical: bool,
}

/// A `schema` member that can hold one name only.
macro_rules! schema_name {
    ($(#[$doc:meta])* $type:ident = $name:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[schemars(inline)]
        pub enum $type {
            /// The only name.
            #[default]
            #[serde(rename = $name)]
            V1,
        }
    };
}
pub(crate) use schema_name;

schema_name!(
    /// Names the contract of [`FacePayload`].
    FaceSchema = "visaged.face.v1"
);
schema_name!(
    /// Names the contract of [`SummaryPayload`].
    SummarySchema = "visaged.summary.v1"
);

/// Topic `face`: one event of one person's stay in view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FacePayload {
    /// Names this contract.
    pub schema: FaceSchema,
    /// The device's name, as in the topic.
    pub device: String,
    /// The run of the process.
    pub boot: Boot,
    /// Counts from 0 without gaps within a boot, over `face` and `summary` together.
    pub seq: u64,
    /// Capture time.
    pub time: Moment,
    /// Why it is told.
    pub event: FaceEventKind,
    /// Names the person's stay in view within a boot; a person who comes back gets another.
    pub track: u64,
    /// The emotion shown.
    pub emotion: Emotion,
    /// Smoothed over the track; together 1, apart from rounding to four decimals.
    pub probabilities: ByEmotion<Share>,
    /// How little was removed by de-expression; 1 is a neutral face.
    pub neutrality: Share,
    /// How fit the face was for reading.
    pub quality: Share,
    /// `[x, y, width, height]` in pixels of the camera's picture; may reach over its edges.
    #[serde(rename = "box")]
    pub rect: [f64; 4],
    /// From capture to publishing, in milliseconds.
    pub latency_ms: Milliseconds,
    /// The event comes from the spool, late.
    pub historical: bool,
}

/// Topic `summary`: what a window of time held, for sites that publish no single faces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SummaryPayload {
    /// Names this contract.
    pub schema: SummarySchema,
    /// The device's name, as in the topic.
    pub device: String,
    /// The run of the process.
    pub boot: Boot,
    /// Counts from 0 without gaps within a boot, over `face` and `summary` together.
    pub seq: u64,
    /// Capture time of the frame, or the moment, that ended the window; the same as `end`.
    pub time: Moment,
    /// Where the window starts: the end of the one before, or the start of reporting.
    pub start: Moment,
    /// Where the window ends.
    pub end: Moment,
    /// People who entered in the window.
    pub people_entered: u64,
    /// People who left in the window.
    pub people_left: u64,
    /// Most people in view at once.
    pub people_peak: u64,
    /// People in view at some time in the window, each counted once, under the emotion that this person showed longest.
    pub people_by_emotion: ByEmotion<u64>,
    /// Seconds that faces were in view, added up over people, by emotion shown.
    pub attention_s: ByEmotion<Seconds>,
    /// From the end of the window to publishing, in milliseconds.
    pub latency_ms: Milliseconds,
    /// The summary comes from the spool, late.
    pub historical: bool,
}

/// A value for each of the eight FER+ emotions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
#[expect(missing_docs, reason = "the members are the emotions")]
pub struct ByEmotion<T> {
    pub neutral: T,
    pub happiness: T,
    pub surprise: T,
    pub sadness: T,
    pub anger: T,
    pub disgust: T,
    pub fear: T,
    pub contempt: T,
}

impl<T> From<[T; 8]> for ByEmotion<T> {
    /// From the order of [`Emotion::ALL`].
    fn from([neutral, happiness, surprise, sadness, anger, disgust, fear, contempt]: [T; 8]) -> Self {
        Self { neutral, happiness, surprise, sadness, anger, disgust, fear, contempt }
    }
}

/// A number in [0, 1], to four decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Share(#[schemars(range(min = 0.0, max = 1.0))] f64);

impl Share {
    /// The nearest share; 0 for what is not a number.
    pub fn new(value: f32) -> Self {
        Self(if value.is_nan() { 0.0 } else { round(f64::from(value.clamp(0.0, 1.0)), 1e4) })
    }

    /// As a number.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// A duration in milliseconds, to microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Milliseconds(#[schemars(range(min = 0.0))] f64);

impl From<Duration> for Milliseconds {
    fn from(duration: Duration) -> Self {
        Self(duration.as_micros() as f64 / 1e3)
    }
}

impl Milliseconds {
    /// As a number.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// A duration in seconds, to milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Seconds(#[schemars(range(min = 0.0))] f64);

impl From<Duration> for Seconds {
    fn from(duration: Duration) -> Self {
        Self(round(duration.as_secs_f64(), 1e3))
    }
}

impl Seconds {
    /// As a number.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// What is published of an event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EventPayload {
    /// On topic `face`.
    Face(FacePayload),
    /// On topic `summary`.
    Summary(SummaryPayload),
}

impl Event {
    /// What is sent of this event as `device` now.
    pub fn payload(&self, device: &str, sending: Sending) -> EventPayload {
        let latency_ms = self.age(sending.now).into();
        match &self.body {
            EventBody::Face(face) => EventPayload::Face(FacePayload {
                schema: FaceSchema::V1,
                device: device.to_owned(),
                boot: self.boot,
                seq: self.seq,
                time: self.time,
                event: face.kind,
                track: face.track,
                emotion: face.emotion,
                probabilities: face.probabilities.map(Share::new).into(),
                neutrality: Share::new(face.neutrality),
                quality: Share::new(face.quality),
                rect: face.rect.map(tenth_of_a_pixel),
                latency_ms,
                historical: sending.historical,
            }),
            EventBody::Summary(summary) => EventPayload::Summary(SummaryPayload {
                schema: SummarySchema::V1,
                device: device.to_owned(),
                boot: self.boot,
                seq: self.seq,
                time: self.time,
                start: before(self.time, summary.window_us),
                end: self.time,
                people_entered: summary.entered,
                people_left: summary.left,
                people_peak: summary.peak,
                people_by_emotion: summary.people.into(),
                attention_s: summary.attention_us.map(|us| Duration::from_micros(us).into()).into(),
                latency_ms,
                historical: sending.historical,
            }),
        }
    }

    /// Time since capture; by the wall clock, and not below zero, where the event was read back from storage.
    pub fn age(&self, now: CaptureTime) -> Duration {
        match self.captured {
            Some(captured) => now.monotonic.saturating_duration_since(captured),
            None => now.wall.duration_since(self.time.0).try_into().unwrap_or_default(),
        }
    }
}

impl FaceEvent {
    /// From what was last known of a face.
    pub(super) fn new(kind: FaceEventKind, track: TrackId, emotion: Emotion, view: &View) -> Self {
        Self {
            kind,
            track: track.0,
            emotion,
            probabilities: view.probabilities.0,
            neutrality: view.neutrality,
            quality: view.quality,
            rect: [view.rect.x, view.rect.y, view.rect.width, view.rect.height],
        }
    }
}

/// What an event tells of a face besides its emotion.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) probabilities: Probabilities,
    pub(super) neutrality: f32,
    pub(super) quality: f32,
    pub(super) rect: Rect,
}

fn before(moment: Moment, us: u64) -> Moment {
    Moment(moment.0.checked_sub(Duration::from_micros(us)).unwrap_or(moment.0))
}

fn round(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

fn tenth_of_a_pixel(px: f32) -> f64 {
    if px.is_finite() { round(f64::from(px), 10.0) } else { 0.0 }
}
