//! What waits in the spool, and the bytes it is on disk.
//!
//! A value is a fixed head (format, boot, `seq`, spool time) and a JSON body. The head alone is enough to declare a record
//! lost by its place in the sequence when its body cannot be read, as after a change of version.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::report::{Boot, Event, EventBody, Moment};

/// Format, boot, `seq`, spool time.
const HEAD_BYTES: usize = 1 + 16 + 8 + 8;
const FORMAT_EVENT: u8 = 1;
const FORMAT_GAP: u8 = 2;

/// Names a record that was handed out; never used again within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub(super) u64);

/// Something that waits for the broker, as it is handed out to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its name, for the acknowledgement.
    pub id: RecordId,
    /// What is to be sent.
    pub item: Item,
    /// It was there before the present connection.
    pub waited: bool,
    /// It was handed out before, over another connection.
    pub again: bool,
}

/// What can wait.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An event; topic `face` or `summary`.
    Event(Event),
    /// The declaration that events are lost; topic `gap`.
    Gap(Gap),
}

/// Events that are given up, in place of the events.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The run of the process that made the events.
    pub boot: Boot,
    /// The `seq` of the first event given up.
    pub from: u64,
    /// The `seq` of the last event given up.
    pub to: u64,
    /// Events given up from `from` to `to`; fewer than the span where some of it was delivered.
    pub count: u64,
    /// Why.
    pub reason: LossReason,
    /// When the last of them was given up.
    pub time: Moment,
}

/// Why an event is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LossReason {
    /// The spool was full, and this was the oldest.
    Space,
    /// It had waited for longer than is configured.
    Age,
    /// The disk did not take it, or did not give it back.
    Storage,
    /// The broker will never take it: it is too large, or forbidden.
    Refused,
}

impl Gap {
    pub(super) fn of(event: &Event, reason: LossReason, time: Moment) -> Self {
        Self { boot: event.boot, from: event.seq, to: event.seq, count: 1, reason, time }
    }

    /// Whether `event`, which follows at once, can be part of this gap.
    pub(super) fn takes(&self, event: &Event, reason: LossReason) -> bool {
        self.boot == event.boot && self.reason == reason && self.to < event.seq
    }
}

/// The spool's own clock: microseconds that a process has had this spool open, added up over processes.
///
/// It never jumps, whatever is done to the clock on the wall, and it stands still while no process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SpoolTime(pub(super) u64);

impl SpoolTime {
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// One moment in the clocks that matter here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) spool: SpoolTime,
    pub(super) monotonic: Instant,
    pub(super) wall: jiff::Timestamp,
}

impl Now {
    /// `captured` in spool time; `None` where it lies before the spool's beginning.
    fn spool_time_of(&self, captured: Instant) -> Option<u64> {
        let ago = self.monotonic.saturating_duration_since(captured);
        self.spool.0.checked_sub(u64::try_from(ago.as_micros()).ok()?)
    }
}

#[derive(Serialize, Deserialize)]
struct EventOnDisk {
    time: Moment,
    /// Spool time of capture.
    captured_us: Option<u64>,
    body: EventBody,
}

/// The value of an item that was put in at `at`.
pub(super) fn encode(item: &Item, at: SpoolTime, now: &Now) -> Vec<u8> {
    let (format, boot, seq) = match item {
        Item::Event(event) => (FORMAT_EVENT, event.boot, event.seq),
        Item::Gap(gap) => (FORMAT_GAP, gap.boot, gap.from),
    };
    let mut value = Vec::with_capacity(512);
    value.push(format);
    value.extend_from_slice(boot.0.as_bytes());
    value.extend_from_slice(&seq.to_le_bytes());
    value.extend_from_slice(&at.0.to_le_bytes());
    let written = match item {
        Item::Event(event) => serde_json::to_writer(
            &mut value,
            &EventOnDisk {
                time: event.time,
                captured_us: event.captured.and_then(|captured| now.spool_time_of(captured)),
                body: finite(&event.body),
            },
        ),
        Item::Gap(gap) => serde_json::to_writer(&mut value, gap),
    };
    if let Err(error) = written {
        // Plain structures with string keys: it does not happen, and if it did, the record would be declared lost.
        tracing::error!(%error, "a record could not be written");
    }
    value
}

/// JSON knows no infinity; what is sent of such a number is 0 anyway.
fn finite(body: &EventBody) -> EventBody {
    let zero = |value: f32| if value.is_finite() { value } else { 0.0 };
    match body {
        EventBody::Summary(_) => body.clone(),
        EventBody::Face(face) => {
            let mut face = *face;
            face.probabilities = face.probabilities.map(zero);
            face.rect = face.rect.map(zero);
            (face.neutrality, face.quality) = (zero(face.neutrality), zero(face.quality));
            EventBody::Face(face)
        }
    }
}

/// Whose event a value is; `None` for a gap, and for what is no value of ours.
pub(super) fn event_of(value: &[u8]) -> Option<(Boot, u64)> {
    let (head, _) = value.split_at_checked(HEAD_BYTES)?;
    let seq = u64::from_le_bytes(head[17..25].try_into().ok()?);
    (head[0] == FORMAT_EVENT).then_some((Boot(Uuid::from_slice(&head[1..17]).ok()?), seq))
}

/// A value as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoded {
    pub(super) at: SpoolTime,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Whole(Item),
    /// The body makes no sense; what it was can still be said.
    HeadOnly {
        boot: Boot,
        seq: u64,
    },
    Nothing,
}

/// Reads a value; `own` is the present run, whose moments are also known in the clock for latencies.
pub(super) fn decode(value: &[u8], own: Boot, now: &Now) -> Decoded {
    let nothing = Decoded { at: now.spool, content: Content::Nothing };
    let Some((head, body)) = value.split_at_checked(HEAD_BYTES) else { return nothing };
    let number = |at: usize| head[at..at + 8].iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    let Ok(boot) = Uuid::from_slice(&head[1..17]) else { return nothing };
    let (boot, seq, at) = (Boot(boot), number(17), SpoolTime(number(25)));
    let item = match head[0] {
        FORMAT_EVENT => serde_json::from_slice::<EventOnDisk>(body).ok().map(|found| {
            let captured = found.captured_us.filter(|_| boot == own).map(|us| now.spool.since(SpoolTime(us)));
            let captured = captured.and_then(|ago| now.monotonic.checked_sub(ago));
            Item::Event(Event { boot, seq, time: found.time, captured, body: found.body })
        }),
        FORMAT_GAP => serde_json::from_slice(body).ok().map(Item::Gap),
        _ => return nothing,
    };
    let content = item.map_or(Content::HeadOnly { boot, seq }, Content::Whole);
    Decoded { at, content }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::Emotion;
    use crate::report::{FaceEvent, FaceEventKind, SummaryEvent};

    fn now() -> Now {
        let monotonic = Instant::now() + Duration::from_secs(1000);
        Now { spool: SpoolTime(7_000_000), monotonic, wall: jiff::Timestamp::UNIX_EPOCH }
    }

    fn face(rect: [f32; 4]) -> EventBody {
        EventBody::Face(FaceEvent {
            kind: FaceEventKind::Change,
            track: 3,
            emotion: Emotion::Fear,
            probabilities: [0.1, 0.2, 1.0 / 3.0, 1e-30, 0.0, f32::MIN_POSITIVE, 1.0, 0.7],
            neutrality: 0.123_456_79,
            quality: 1.0,
            rect,
        })
    }

    fn event(boot: u128, captured: Option<Instant>, body: EventBody) -> Event {
        let time = Moment("2026-03-01T09:30:00.25Z".parse().unwrap());
        Event { boot: Boot(Uuid::from_u128(boot)), seq: 9, time, captured, body }
    }

    fn back(event: Event, own: u128) -> Event {
        let value = encode(&Item::Event(event), SpoolTime(5), &now());
        let found = decode(&value, Boot(Uuid::from_u128(own)), &now());
        assert_eq!(found.at, SpoolTime(5));
        match found.content {
            Content::Whole(Item::Event(event)) => event,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_event_comes_back_from_disk_as_it_was() {
        let summary = SummaryEvent { window_us: u64::MAX, people: [u64::MAX; 8], ..SummaryEvent::default() };
        for body in [face([1.5, -2.25, 3.1, 4.0]), EventBody::Summary(summary)] {
            let event = event(1, None, body);
            assert_eq!(back(event.clone(), 2), event);
        }
    }

    #[test]
    fn numbers_that_json_cannot_write_do_not_cost_the_event() {
        let event = event(1, None, face([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0]));
        let EventBody::Face(face) = back(event, 1).body else { panic!("no face") };
        assert_eq!(face.rect, [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn the_capture_instant_is_known_again_within_a_run_and_not_after_it() {
        let (now, own) = (now(), 1);
        let captured = now.monotonic - Duration::from_millis(300);
        let found = |boot| {
            let value = encode(&Item::Event(event(boot, Some(captured), face([0.0; 4]))), now.spool, &now);
            let later = Now {
                spool: SpoolTime(now.spool.0 + 4_000_000),
                monotonic: now.monotonic + Duration::from_secs(4),
                wall: now.wall,
            };
            match decode(&value, Boot(Uuid::from_u128(own)), &later).content {
                Content::Whole(Item::Event(event)) => event.captured,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(found(own), Some(captured));
        assert_eq!(found(own + 1), None);
    }

    #[test]
    fn a_body_of_another_version_is_still_known_by_its_place_in_the_sequence() {
        let event = event(1, None, face([0.0; 4]));
        let mut value = encode(&Item::Event(event.clone()), SpoolTime(5), &now());
        value.truncate(HEAD_BYTES + 20);
        let expected = Content::HeadOnly { boot: event.boot, seq: event.seq };
        assert_eq!(decode(&value, event.boot, &now()).content, expected);
        value.truncate(HEAD_BYTES - 1);
        assert_eq!(decode(&value, event.boot, &now()).content, Content::Nothing);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_whatever_make_the_reader_panic(value in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            decode(&value, Boot(Uuid::nil()), &now());
        }
    }
}
