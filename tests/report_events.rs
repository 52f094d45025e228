//! From observations to events: what is told, when, and what never happens whatever is observed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::Value;
use visaged::config::ReportConfig;
use visaged::expression::{Emotion, Observation, ObservedFace, Probabilities};
use visaged::face::{Face, Point, Rect, TrackId};
use visaged::frame::CaptureTime;
use visaged::mqtt::payload::schemas;
use visaged::report::{Boot, Event, EventBody, FaceEvent, FaceEventKind, Reporter, Sending, SummaryEvent};

use FaceEventKind::{Change, Enter, Leave, Sample};

/// A clock that both tests and observations read.
struct Clock {
    start: CaptureTime,
}

impl Clock {
    fn new() -> Self {
        let wall = "2026-03-01T09:30:00Z".parse().unwrap();
        Self { start: CaptureTime { monotonic: Instant::now(), wall } }
    }

    fn at(&self, ms: u64) -> CaptureTime {
        let passed = Duration::from_millis(ms);
        CaptureTime { monotonic: self.start.monotonic + passed, wall: self.start.wall + passed }
    }
}

fn config() -> ReportConfig {
    ReportConfig {
        face_events: true,
        sample_every: Some(Duration::from_millis(1000)),
        summary_every: None,
        enter_after: Duration::from_millis(200),
    }
}

fn face(track: u64, emotion: Emotion) -> ObservedFace {
    let mut probabilities = [0.02; 8];
    probabilities[emotion as usize] = 0.86;
    ObservedFace {
        track: TrackId(track),
        face: Face {
            rect: Rect { x: 10.0, y: 20.0, width: 100.0, height: 120.0 },
            landmarks: [Point::default(); 5],
            score: 0.9,
        },
        quality: 0.8,
        emotion,
        probabilities: Probabilities(probabilities),
        neutrality: 0.4,
        neutral: Vec::new(),
    }
}

fn observation(time: CaptureTime, faces: Vec<ObservedFace>, ended: &[u64]) -> Observation {
    let ended = ended.iter().copied().map(TrackId).collect();
    Observation { frame_seq: 0, time, width_px: 640, height_px: 480, faces, ended }
}

fn faces(events: &[Event]) -> Vec<(FaceEventKind, u64, Emotion)> {
    events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Face(FaceEvent { kind, track, emotion, .. }) => Some((*kind, *track, *emotion)),
            EventBody::Summary(_) => None,
        })
        .collect()
}

fn summaries(events: &[Event]) -> Vec<&SummaryEvent> {
    events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Summary(summary) => Some(summary),
            EventBody::Face(_) => None,
        })
        .collect()
}

/// Shows one face of `emotion(ms)` at 20 frames a second from `from` to `to`, both included.
fn show(
    reporter: &mut Reporter,
    clock: &Clock,
    (from, to): (u64, u64),
    emotion: impl Fn(u64) -> Emotion,
    events: &mut Vec<Event>,
) {
    for ms in (from..=to).step_by(50) {
        reporter.observe(&observation(clock.at(ms), vec![face(1, emotion(ms))], &[]), events);
    }
}

#[test]
fn a_stay_is_told_as_enter_change_samples_and_leave() {
    let (clock, mut events) = (Clock::new(), Vec::new());
    let mut reporter = Reporter::new(config(), Boot::random(), clock.at(0));
    let smile_at = |ms| if ms < 700 { Emotion::Neutral } else { Emotion::Happiness };
    show(&mut reporter, &clock, (0, 2200), smile_at, &mut events);
    reporter.observe(&observation(clock.at(3200), vec![], &[1]), &mut events);
    let (neutral, happy) = (Emotion::Neutral, Emotion::Happiness);
    let expected = [(Enter, 1, neutral), (Change, 1, happy), (Sample, 1, happy), (Sample, 1, happy), (Leave, 1, happy)];
    assert_eq!(faces(&events), expected);
    let at: Vec<_> = events.iter().map(|event| event.time.0).collect();
    assert_eq!(at, [200, 700, 1200, 2200, 3200].map(|ms| clock.at(ms).wall));
    assert!(events.iter().map(|event| event.seq).eq(0..5));
}

#[test]
fn a_face_gone_before_enter_after_is_never_mentioned() {
    let (clock, mut events) = (Clock::new(), Vec::new());
    let mut reporter = Reporter::new(config(), Boot::random(), clock.at(0));
    show(&mut reporter, &clock, (0, 150), |_| Emotion::Anger, &mut events);
    reporter.observe(&observation(clock.at(1200), vec![], &[1]), &mut events);
    reporter.finish(clock.at(1300), &mut events);
    assert_eq!(events, []);
}

#[test]
fn samples_keep_their_cadence_and_missed_ones_are_not_made_up_for() {
    let (clock, mut events) = (Clock::new(), Vec::new());
    let mut reporter = Reporter::new(config(), Boot::random(), clock.at(0));
    for ms in [0, 200, 1230, 2210, 5700, 6690, 6700] {
        reporter.observe(&observation(clock.at(ms), vec![face(1, Emotion::Fear)], &[]), &mut events);
    }
    let samples: Vec<_> = events.iter().skip(1).map(|event| event.time.0).collect();
    assert_eq!(samples, [1230, 2210, 5700, 6700].map(|ms| clock.at(ms).wall));
}

#[test]
fn finish_says_leave_for_everybody_in_view_and_the_last_summary() {
    let (clock, mut events) = (Clock::new(), Vec::new());
    let config = ReportConfig { summary_every: Some(Duration::from_secs(60)), ..config() };
    let mut reporter = Reporter::new(config, Boot::random(), clock.at(0));
    for ms in [0, 500] {
        let faces = vec![face(1, Emotion::Neutral), face(2, Emotion::Sadness)];
        reporter.observe(&observation(clock.at(ms), faces, &[]), &mut events);
    }
    assert_eq!(reporter.people_in_view(), 2);
    events.clear();
    reporter.finish(clock.at(900), &mut events);
    assert_eq!(faces(&events), [(Leave, 1, Emotion::Neutral), (Leave, 2, Emotion::Sadness)]);
    let summary = summaries(&events)[0];
    assert_eq!((summary.entered, summary.left, summary.peak, summary.window_us), (2, 2, 2, 900_000));
    assert_eq!(reporter.people_in_view(), 0);
}

#[test]
fn a_lost_camera_makes_everybody_leave_and_nobody_is_taken_for_them_later() {
    let (clock, mut events) = (Clock::new(), Vec::new());
    let mut reporter = Reporter::new(config(), Boot::random(), clock.at(0));
    show(&mut reporter, &clock, (0, 300), |_| Emotion::Neutral, &mut events);
    reporter.leave_all(clock.at(5000), &mut events);
    reporter.observe(&observation(clock.at(9000), vec![], &[1]), &mut events);
    assert_eq!(faces(&events), [(Enter, 1, Emotion::Neutral), (Leave, 1, Emotion::Neutral)]);
}

#[test]
fn summaries_count_people_by_the_emotion_shown_longest_and_attention_by_what_was_shown() {
    let (clock, mut events) = (Clock::new(), Vec::new());
    let every = Duration::from_secs(10);
    let config = ReportConfig { face_events: false, summary_every: Some(every), ..config() };
    let mut reporter = Reporter::new(config, Boot::random(), clock.at(0));
    let smile_at = |ms| if ms < 3000 { Emotion::Neutral } else { Emotion::Happiness };
    show(&mut reporter, &clock, (0, 8000), smile_at, &mut events);
    reporter.observe(&observation(clock.at(8500), vec![], &[1]), &mut events);
    assert_eq!(events, []);
    reporter.tick(clock.at(10_000), &mut events);
    reporter.tick(clock.at(19_999), &mut events);
    reporter.tick(clock.at(20_500), &mut events);
    assert!(events.iter().map(|event| event.seq).eq(0..2));
    let [full, empty] = summaries(&events)[..] else { panic!("{events:?}") };
    assert_eq!((full.entered, full.left, full.peak), (1, 1, 1));
    assert_eq!(full.people, [0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(full.attention_us[..2], [2_800_000, 5_000_000]);
    assert_eq!(*empty, SummaryEvent { window_us: 10_500_000, ..SummaryEvent::default() });
}

#[test]
fn a_person_who_stays_is_counted_in_each_window_but_enters_once() {
    let (clock, mut events) = (Clock::new(), Vec::new());
    let config = ReportConfig { face_events: false, summary_every: Some(Duration::from_secs(1)), ..config() };
    let mut reporter = Reporter::new(config, Boot::random(), clock.at(0));
    show(&mut reporter, &clock, (0, 3000), |_| Emotion::Surprise, &mut events);
    let summaries = summaries(&events);
    let column = |of: fn(&SummaryEvent) -> u64| summaries.iter().map(|summary| of(summary)).collect::<Vec<_>>();
    assert_eq!(column(|summary| summary.entered), [1, 0, 0]);
    assert_eq!(column(|summary| summary.peak), [1, 1, 1]);
    assert_eq!(column(|summary| summary.people[Emotion::Surprise as usize]), [1, 1, 1]);
    assert_eq!(column(|summary| summary.attention_us[Emotion::Surprise as usize]), [800_000, 1_000_000, 1_000_000]);
}

#[test]
fn a_stalled_camera_is_nobodys_attention() {
    let (clock, mut events) = (Clock::new(), Vec::new());
    let config = ReportConfig { summary_every: Some(Duration::from_secs(60)), ..config() };
    let mut reporter = Reporter::new(config, Boot::random(), clock.at(0));
    show(&mut reporter, &clock, (0, 1000), |_| Emotion::Neutral, &mut events);
    show(&mut reporter, &clock, (30_000, 31_000), |_| Emotion::Neutral, &mut events);
    reporter.finish(clock.at(31_000), &mut events);
    assert_eq!(summaries(&events)[0].attention_us[0], 800_000 + 1_000_000);
}

#[derive(Clone, Debug)]
enum Step {
    Observe { after_ms: u64, faces: Vec<(u64, usize)>, ended: Vec<u64> },
    Tick { after_ms: u64 },
    LeaveAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let observe = (0u64..900, prop::collection::vec((1u64..6, 0usize..8), 0..5), prop::collection::vec(1u64..6, 0..3))
        .prop_map(|(after_ms, faces, ended)| Step::Observe { after_ms, faces, ended });
    let tick = (0u64..3000).prop_map(|after_ms| Step::Tick { after_ms });
    prop::collection::vec(prop_oneof![8 => observe, 1 => tick, 1 => Just(Step::LeaveAll)], 0..60)
}

fn configs() -> impl Strategy<Value = ReportConfig> {
    let duration = |most| (0u64..most).prop_map(Duration::from_millis);
    (any::<bool>(), prop::option::of(duration(1500)), prop::option::of(duration(4000)), duration(600)).prop_map(
        |(face_events, sample_every, summary_every, enter_after)| ReportConfig {
            face_events,
            sample_every,
            summary_every,
            enter_after,
        },
    )
}

fn run(config: ReportConfig, steps: &[Step]) -> Vec<Event> {
    let (clock, mut events, mut ms) = (Clock::new(), Vec::new(), 0);
    let mut reporter = Reporter::new(config, Boot::random(), clock.at(0));
    for step in steps {
        match step {
            Step::Observe { after_ms, faces, ended } => {
                ms += after_ms;
                let faces = faces.iter().map(|(track, emotion)| face(*track, Emotion::ALL[*emotion])).collect();
                reporter.observe(&observation(clock.at(ms), faces, ended), &mut events);
            }
            Step::Tick { after_ms } => {
                ms += after_ms;
                reporter.tick(clock.at(ms), &mut events);
            }
            Step::LeaveAll => reporter.leave_all(clock.at(ms), &mut events),
        }
    }
    reporter.finish(clock.at(ms), &mut events);
    events
}

proptest! {
    #[test]
    fn whatever_is_observed_seq_has_no_gap_and_each_enter_has_its_leave(config in configs(), steps in steps()) {
        let events = run(config.clone(), &steps);
        let mut inside: HashMap<u64, Emotion> = HashMap::new();
        for (seq, event) in events.iter().enumerate() {
            prop_assert_eq!(event.seq, seq as u64);
            let EventBody::Face(face) = &event.body else { continue };
            prop_assert!(config.face_events);
            match face.kind {
                Enter => prop_assert!(inside.insert(face.track, face.emotion).is_none()),
                Change => prop_assert_ne!(inside.insert(face.track, face.emotion), Some(face.emotion)),
                Sample => prop_assert_eq!(inside.get(&face.track), Some(&face.emotion)),
                Leave => prop_assert_eq!(inside.remove(&face.track), Some(face.emotion)),
            }
        }
        prop_assert!(inside.is_empty(), "still inside: {:?}", inside);
        prop_assert!(events.is_sorted_by_key(|event| event.time));
        let summaries = summaries(&events);
        prop_assert_eq!(summaries.is_empty(), config.summary_every.is_none());
        let sum = |of: fn(&SummaryEvent) -> u64| summaries.iter().map(|summary| of(summary)).sum::<u64>();
        prop_assert_eq!(sum(|summary| summary.entered), sum(|summary| summary.left));
        if config.face_events && config.summary_every.is_some() {
            let entered = faces(&events).iter().filter(|(kind, ..)| *kind == Enter).count();
            prop_assert_eq!(sum(|summary| summary.entered), entered as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_observed_every_payload_keeps_to_its_schema(config in configs(), steps in steps()) {
        let validators: HashMap<_, _> = schemas()
            .into_iter()
            .map(|(file, schema)| (file, jsonschema::validator_for(schema.as_value()).unwrap()))
            .collect();
        let sending = Sending { now: CaptureTime::now(), historical: true };
        for event in run(config, &steps) {
            let file = match event.body {
                EventBody::Face(_) => "face.schema.json",
                EventBody::Summary(_) => "summary.schema.json",
            };
            let payload: Value = serde_json::to_value(event.payload("d", sending)).unwrap();
            if let Err(error) = validators[file].validate(&payload) {
                return Err(TestCaseError::fail(format!("{error}\n{payload:#}")));
            }
        }
    }
}
