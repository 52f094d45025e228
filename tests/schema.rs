//! The JSON Schemas in `docs/schema/` are those of the types, and payloads keep to them.
//!
//! `VISAGED_BLESS=1 cargo test --test schema` writes the files anew.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use jsonschema::Validator;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;
use visaged::expression::Emotion;
use visaged::frame::CaptureTime;
use visaged::mqtt::payload::{
    GapPayload, InfoSchema, LatencyTelemetry, ModelInfo, OutboxTelemetry, TelemetrySchema, schemas,
};
use visaged::mqtt::spool::{Gap, LossReason};
use visaged::mqtt::{Info, Status, Telemetry};
use visaged::report::{Boot, Event, EventBody, FaceEvent, FaceEventKind, Moment, Sending, SummaryEvent};

fn moment() -> Moment {
    Moment("2026-03-01T09:30:00.25Z".parse().unwrap())
}

fn boot() -> Boot {
    Boot(Uuid::from_u128(0x7d8f_0a44_53b6_4f3c_9d0a_1c2b_3d4e_5f60))
}

fn validator(name: &str) -> Validator {
    let schema = schemas().into_iter().find(|(file, _)| *file == format!("{name}.schema.json")).unwrap().1;
    jsonschema::options().should_validate_formats(true).build(schema.as_value()).unwrap()
}

fn assert_valid(name: &str, payload: &impl Serialize) -> Value {
    let payload = serde_json::to_value(payload).unwrap();
    let errors: Vec<_> = validator(name).iter_errors(&payload).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}\n{payload:#}");
    payload
}

fn event(body: EventBody) -> Event {
    Event { boot: boot(), seq: 7, time: moment(), captured: None, body }
}

fn sending() -> Sending {
    let wall = "2026-03-01T09:30:00.3125Z".parse().unwrap();
    Sending { now: CaptureTime { monotonic: Instant::now(), wall }, historical: false }
}

fn face(kind: FaceEventKind) -> Event {
    event(EventBody::Face(FaceEvent {
        kind,
        track: 3,
        emotion: Emotion::Happiness,
        probabilities: [0.1, 0.75, 0.05, 0.02, 0.02, 0.02, 0.02, 0.02],
        neutrality: 0.31,
        quality: 1.0,
        rect: [-3.04, 10.5, 120.26, 150.0],
    }))
}

fn info() -> Info {
    Info {
        schema: InfoSchema::V1,
        device: "mirror-1".into(),
        boot: boot(),
        version: "0.1.0".into(),
        board: None,
        camera: Some("/dev/video0: MJPG 640x480 at 30 fps".into()),
        models: vec![ModelInfo {
            name: "derl".into(),
            version: "1.0.0".into(),
            sha256: "0f".repeat(32),
            engine: "int8".into(),
        }],
        capabilities: vec!["emotion".into()],
    }
}

fn telemetry() -> Telemetry {
    let latency = LatencyTelemetry {
        p50_ms: Duration::from_micros(1500).into(),
        p95_ms: Duration::from_micros(2500).into(),
        p99_ms: Duration::from_micros(4000).into(),
    };
    Telemetry {
        schema: TelemetrySchema::V1,
        device: "mirror-1".into(),
        boot: boot(),
        time: moment(),
        uptime_s: Duration::from_millis(61_500).into(),
        capture_fps: 29.97,
        analysis_fps: 29.9,
        frames: 1800,
        dropped: [("analysis".to_owned(), 2)].into(),
        consent: None,
        people_in_view: 1,
        latency: [("detect".to_owned(), latency)].into(),
        cpu_percent: 41.5,
        memory_bytes: 90_000_000,
        temperature_celsius: Some(51.5),
        restarts: 0,
        outbox: OutboxTelemetry::default(),
    }
}

#[test]
fn the_schemas_in_docs_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema");
    let bless = std::env::var_os("VISAGED_BLESS").is_some();
    for (file, schema) in schemas() {
        let expected = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let path = folder.join(file);
        if bless {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &expected).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == expected, "docs/schema/{file} is out of date; run VISAGED_BLESS=1 cargo test --test schema");
    }
    let files = fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, schemas().len(), "docs/schema holds a file that no type stands behind");
}

#[test]
fn every_kind_of_payload_keeps_to_its_schema() {
    for kind in [FaceEventKind::Enter, FaceEventKind::Change, FaceEventKind::Sample, FaceEventKind::Leave] {
        assert_valid("face", &face(kind).payload("mirror-1", sending()));
    }
    let summary = event(EventBody::Summary(SummaryEvent { window_us: 60_000_000, ..SummaryEvent::default() }));
    assert_valid("summary", &summary.payload("mirror-1", sending()));
    for status in [
        Status::online(boot(), moment()),
        Status::degraded(boot(), moment(), "camera /dev/video0: unplugged"),
        Status::stopped(boot(), moment()),
        Status::last_will(boot()),
    ] {
        assert_valid("status", &status);
    }
    assert_valid("info", &info());
    assert_valid("telemetry", &telemetry());
    for reason in [LossReason::Space, LossReason::Age, LossReason::Storage, LossReason::Refused] {
        let gap = Gap { boot: boot(), from: 3, to: 9, count: 5, reason, time: moment() };
        assert_valid("gap", &GapPayload::new("mirror-1", &gap));
    }
}

#[test]
fn a_face_payload_has_the_members_and_meanings_of_the_contract() {
    let payload = assert_valid("face", &face(FaceEventKind::Change).payload("mirror-1", sending()));
    let expected = json!({
        "schema": "visaged.face.v1",
        "device": "mirror-1",
        "boot": "7d8f0a44-53b6-4f3c-9d0a-1c2b3d4e5f60",
        "seq": 7,
        "time": "2026-03-01T09:30:00.250000Z",
        "event": "change",
        "track": 3,
        "emotion": "happiness",
        "probabilities": {
            "neutral": 0.1, "happiness": 0.75, "surprise": 0.05, "sadness": 0.02,
            "anger": 0.02, "disgust": 0.02, "fear": 0.02, "contempt": 0.02,
        },
        "neutrality": 0.31,
        "quality": 1.0,
        "box": [-3.0, 10.5, 120.3, 150.0],
        "latency_ms": 62.5,
        "historical": false,
    });
    assert_eq!(payload, expected);
}

#[test]
fn numbers_that_are_none_never_reach_a_payload() {
    let mut event = face(FaceEventKind::Sample);
    if let EventBody::Face(face) = &mut event.body {
        face.probabilities = [f32::NAN, f32::INFINITY, -1.0, 2.0, f32::NEG_INFINITY, 0.0, 0.0, 0.0];
        face.neutrality = f32::NAN;
        face.rect = [f32::NAN, f32::INFINITY, 1.0, 1.0];
    }
    assert_valid("face", &event.payload("mirror-1", sending()));
}

#[test]
fn the_schemas_refuse_what_the_contract_does_not_know() {
    let good = serde_json::to_value(face(FaceEventKind::Enter).payload("mirror-1", sending())).unwrap();
    let validator = validator("face");
    assert!(validator.is_valid(&good));
    for (member, value) in [
        ("schema", json!("visaged.face.v2")),
        ("time", json!("2026-03-01T09:30:00Z")),
        ("event", json!("blink")),
        ("emotion", json!("boredom")),
        ("neutrality", json!(1.5)),
        ("box", json!([1, 2, 3])),
        ("latency_ms", json!(-1)),
        ("seq", json!(-1)),
        ("name", json!("somebody")),
    ] {
        let mut bad = good.clone();
        bad[member] = value;
        assert!(!validator.is_valid(&bad), "{member} = {}", bad[member]);
    }
    for member in good.as_object().unwrap().keys() {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(member);
        assert!(!validator.is_valid(&bad), "without {member}");
    }
}

#[test]
fn an_event_comes_back_from_storage_as_it_was_but_for_its_monotonic_time() {
    let event = Event { captured: Some(Instant::now()), ..face(FaceEventKind::Leave) };
    let text = serde_json::to_string(&event).unwrap();
    let back: Event = serde_json::from_str(&text).unwrap();
    assert_eq!(back, Event { captured: None, ..event });
}
