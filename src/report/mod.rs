//! Observations to events: the fixed JSON contract.
//!
//! Invariants, for any sequence of observations: `seq` has no gaps; a `leave` has its `enter` before it, and each
//! `enter` gets one `leave` at the latest with [`Reporter::finish`]; a track that was never announced is never mentioned.
//! Time comes only from the observations and from `now` arguments. An observation without an event allocates nothing once
//! the number of tracks has been seen before.
//!
//! Knows observations; knows no broker.

mod event;

use std::time::{Duration, Instant};

use event::View;
pub(crate) use event::schema_name;
pub use event::{
    Boot, ByEmotion, Event, EventBody, EventPayload, FaceEvent, FaceEventKind, FacePayload, FaceSchema, Milliseconds,
    Moment, Seconds, Sending, Share, SummaryEvent, SummaryPayload, SummarySchema,
};

use crate::config::ReportConfig;
use crate::expression::{Emotion, Observation, ObservedFace};
use crate::face::TrackId;
use crate::frame::CaptureTime;

/// A track unseen for longer than this was hidden or the camera stood still: the gap is nobody's attention.
const LONGEST_CREDIT: Duration = Duration::from_secs(1);

/// Turns observations into events.
#[derive(Debug)]
pub struct Reporter {
    config: ReportConfig,
    boot: Boot,
    next_seq: u64,
    tracks: Vec<Track>,
    window: Window,
}

#[derive(Debug)]
struct Track {
    id: TrackId,
    first_seen: Instant,
    last_seen: Instant,
    /// `None` until announced.
    stay: Option<Stay>,
    view: View,
    emotion: Emotion,
}

/// What is kept of an announced track.
#[derive(Debug)]
struct Stay {
    next_sample: Option<Instant>,
    /// Shown so far in this window, by emotion.
    attention: [Duration; 8],
}

#[derive(Debug)]
struct Window {
    start: Instant,
    sums: SummaryEvent,
}

impl Reporter {
    /// A reporter that starts counting at 0, with its first window at `now`.
    pub fn new(config: ReportConfig, boot: Boot, now: CaptureTime) -> Self {
        let window = Window { start: now.monotonic, sums: SummaryEvent::default() };
        Self { config, boot, next_seq: 0, tracks: Vec::new(), window }
    }

    /// The run of the process that this reporter speaks for.
    pub fn boot(&self) -> Boot {
        self.boot
    }

    /// People announced and not yet gone.
    pub fn people_in_view(&self) -> usize {
        self.tracks.iter().filter(|track| track.stay.is_some()).count()
    }

    /// Takes other settings from now on (`SIGHUP`); tracks, `seq` and the current window stay.
    pub fn reconfigure(&mut self, config: ReportConfig) {
        self.config = config;
    }

    /// Appends the events of one observation to `events`.
    pub fn observe(&mut self, observation: &Observation, events: &mut Vec<Event>) {
        let now = observation.time;
        for face in &observation.faces {
            self.see(face, now, events);
        }
        for id in &observation.ended {
            self.end(*id, now, events);
        }
        self.tick(now, events);
    }

    /// Ends a window that is due; call it when no observation comes, about once a second.
    pub fn tick(&mut self, now: CaptureTime, events: &mut Vec<Event>) {
        let elapsed = now.monotonic.saturating_duration_since(self.window.start);
        if self.config.summary_every.is_some_and(|every| elapsed >= every) {
            self.summarise(now, events);
        }
    }

    /// Everybody has left: the camera is lost, or sees with other eyes from now on.
    pub fn leave_all(&mut self, now: CaptureTime, events: &mut Vec<Event>) {
        while let Some(track) = self.tracks.first() {
            self.end(track.id, now, events);
        }
    }

    /// The end of reporting: `leave` for everybody in view, and the last summary, however short its window.
    pub fn finish(&mut self, now: CaptureTime, events: &mut Vec<Event>) {
        self.leave_all(now, events);
        if self.config.summary_every.is_some() {
            self.summarise(now, events);
        }
    }

    fn see(&mut self, face: &ObservedFace, now: CaptureTime, events: &mut Vec<Event>) {
        let t = now.monotonic;
        let index = match self.tracks.iter().position(|track| track.id == face.track) {
            Some(index) => index,
            None => {
                self.tracks.push(Track::new(face, t));
                self.tracks.len() - 1
            }
        };
        let sample_every = self.config.sample_every;
        let track = &mut self.tracks[index];
        track.credit(t);
        let changed = track.emotion != face.emotion;
        track.emotion = face.emotion;
        track.view = View::of(face);
        let kind = match &mut track.stay {
            None if t.saturating_duration_since(track.first_seen) < self.config.enter_after => None,
            None => {
                let next_sample = sample_every.map(|every| t + every);
                track.stay = Some(Stay { next_sample, attention: [Duration::ZERO; 8] });
                self.window.sums.entered += 1;
                self.window.sums.peak = self.window.sums.peak.max(self.people_in_view() as u64);
                Some(FaceEventKind::Enter)
            }
            Some(stay) => {
                let due = stay.take_sample(t, sample_every);
                if changed { Some(FaceEventKind::Change) } else { due.then_some(FaceEventKind::Sample) }
            }
        };
        if let Some(kind) = kind {
            self.tell_face(kind, index, now, events);
        }
    }

    fn end(&mut self, id: TrackId, now: CaptureTime, events: &mut Vec<Event>) {
        let Some(index) = self.tracks.iter().position(|track| track.id == id) else { return };
        if self.tracks[index].stay.is_some() {
            self.tell_face(FaceEventKind::Leave, index, now, events);
            self.window.sums.left += 1;
        }
        let track = self.tracks.remove(index);
        self.window.count(&track);
    }

    fn tell_face(&mut self, kind: FaceEventKind, index: usize, now: CaptureTime, events: &mut Vec<Event>) {
        if self.config.face_events {
            let track = &self.tracks[index];
            let face = FaceEvent::new(kind, track.id, track.emotion, &track.view);
            events.push(self.number(EventBody::Face(face), now));
        }
    }

    fn summarise(&mut self, now: CaptureTime, events: &mut Vec<Event>) {
        for track in &mut self.tracks {
            self.window.count(track);
            if let Some(stay) = &mut track.stay {
                stay.attention = [Duration::ZERO; 8];
            }
        }
        let mut sums = std::mem::take(&mut self.window.sums);
        sums.window_us = micros(now.monotonic.saturating_duration_since(self.window.start));
        self.window.start = now.monotonic;
        self.window.sums.peak = self.people_in_view() as u64;
        let event = self.number(EventBody::Summary(sums), now);
        events.push(event);
    }

    fn number(&mut self, body: EventBody, now: CaptureTime) -> Event {
        let seq = self.next_seq;
        self.next_seq += 1;
        Event { boot: self.boot, seq, time: Moment(now.wall), captured: Some(now.monotonic), body }
    }
}

impl Track {
    fn new(face: &ObservedFace, t: Instant) -> Self {
        Self { id: face.track, first_seen: t, last_seen: t, stay: None, view: View::of(face), emotion: face.emotion }
    }

    /// The time since the last look goes to the emotion that was shown then.
    fn credit(&mut self, t: Instant) {
        let passed = t.saturating_duration_since(self.last_seen);
        self.last_seen = self.last_seen.max(t);
        if let Some(stay) = &mut self.stay
            && passed <= LONGEST_CREDIT
        {
            stay.attention[self.emotion as usize] += passed;
        }
    }
}

impl Stay {
    /// Whether a sample is due; if so, the next is one period later, or from now where several were missed.
    fn take_sample(&mut self, t: Instant, every: Option<Duration>) -> bool {
        let Some(every) = every else {
            self.next_sample = None;
            return false;
        };
        let due_at = *self.next_sample.get_or_insert(t + every);
        if t < due_at {
            return false;
        }
        let next = due_at + every;
        self.next_sample = Some(if next > t { next } else { t + every });
        true
    }
}

impl View {
    fn of(face: &ObservedFace) -> Self {
        Self {
            probabilities: face.probabilities,
            neutrality: face.neutrality,
            quality: face.quality,
            rect: face.face.rect,
        }
    }
}

impl Window {
    /// Adds an announced track's share of this window.
    fn count(&mut self, track: &Track) {
        let Some(stay) = &track.stay else { return };
        let mut longest = track.emotion as usize;
        for (i, time) in stay.attention.iter().enumerate() {
            self.sums.attention_us[i] += micros(*time);
            if *time > stay.attention[longest] {
                longest = i;
            }
        }
        self.sums.people[longest] += 1;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
