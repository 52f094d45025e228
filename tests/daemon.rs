//! The whole way inside one process: sources that misbehave go in, what is published comes out of a real broker's client.
#![cfg(feature = "demo")]

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use visaged::capture::clip::Clip;
use visaged::capture::{CaptureError, Source, Timing};
use visaged::config::{Backoff, Config, MqttConfig, Pace, ReportConfig, SpoolConfig, WebConfig};
use visaged::daemon::{Condition, Daemon, OpenSource, Parts, Progress};
use visaged::frame::Frame;
use visaged::mqtt::broker::Broker;
use visaged::mqtt::payload::schemas;
use visaged::mqtt::{Published, Tap};
use visaged::pool::Pool;

static CLIP: &[u8] = include_bytes!("../assets/demo.gif");
/// Far beyond what anything here needs, on the slowest machine.
const LONG: Duration = Duration::from_secs(120);

/// Topics and payloads, in the order of publishing.
type Messages = Vec<(String, Value)>;

/// A daemon with a broker of its own, and everything it published.
struct Rig {
    daemon: Daemon,
    messages: Arc<Mutex<Messages>>,
    _broker: Broker,
}

impl Rig {
    fn start(open: OpenSource) -> Self {
        let broker = Broker::start(0).unwrap();
        let config = config(broker.address().port());
        let (messages, tap) = recorder();
        let daemon =
            Daemon::start(config, Parts { open_source: Some(open), tap: Some(tap), ..Parts::default() }).unwrap();
        Self { daemon, messages, _broker: broker }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Daemon, &[(String, Value)]) -> bool) {
        let deadline = Instant::now() + LONG;
        loop {
            self.daemon.look_after().unwrap();
            if done(&self.daemon, &self.messages.lock().unwrap()) {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain for: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(self) -> Messages {
        self.daemon.stop();
        std::mem::take(&mut self.messages.lock().unwrap())
    }
}

fn config(port: u16) -> Config {
    Config {
        mqtt: Some(MqttConfig {
            host: "127.0.0.1".into(),
            port,
            telemetry_every: Duration::from_secs(1),
            spool: SpoolConfig::MEMORY,
            ..MqttConfig::default()
        }),
        report: ReportConfig {
            summary_every: Some(Duration::from_secs(1)),
            enter_after: Duration::ZERO,
            ..ReportConfig::default()
        },
        camera: visaged::config::CameraConfig {
            reopen_backoff: Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(50) },
            ..Default::default()
        },
        ..Config::default()
    }
}

fn recorder() -> (Arc<Mutex<Messages>>, Tap) {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let tap: Tap = Arc::new({
        let messages = Arc::clone(&messages);
        move |message: &Published<'_>| {
            let payload = serde_json::from_slice(message.payload).unwrap();
            messages.lock().unwrap().push((message.topic.to_string(), payload));
        }
    });
    (messages, tap)
}

fn clip(repeat: bool) -> Box<dyn Source> {
    Box::new(Clip::from_bytes("clip", CLIP, repeat, Pace::RealTime).unwrap())
}

/// The clip, with something done before each frame.
struct Troubled {
    inner: Box<dyn Source>,
    trouble: Box<dyn FnMut() -> Result<(), CaptureError> + Send>,
}

impl Source for Troubled {
    fn describe(&self) -> String {
        "a troubled camera".into()
    }

    fn timing(&self) -> Timing {
        self.inner.timing()
    }

    fn next_frame(&mut self, pool: &Pool<Vec<u8>>, timeout: Duration) -> Result<Frame, CaptureError> {
        (self.trouble)()?;
        self.inner.next_frame(pool, timeout)
    }
}

fn unplugged() -> CaptureError {
    CaptureError::NoDevice { device: "/dev/video9".into() }
}

fn of<'a>(messages: &'a [(String, Value)], topic: &'a str) -> impl Iterator<Item = &'a Value> {
    messages.iter().filter(move |(t, _)| t.rsplit('/').next() == Some(topic)).map(|(_, payload)| payload)
}

fn statuses(messages: &[(String, Value)]) -> Vec<&str> {
    of(messages, "status").map(|status| status["status"].as_str().unwrap()).collect()
}

/// Every payload fits its schema, `seq` has no gap, and whoever entered has left.
fn check_contract(messages: &[(String, Value)]) {
    let schemas: HashMap<String, jsonschema::Validator> = schemas()
        .into_iter()
        .map(|(name, schema)| (name.to_string(), jsonschema::validator_for(schema.as_value()).unwrap()))
        .collect();
    for (topic, payload) in messages {
        let name = format!("{}.schema.json", topic.rsplit('/').next().unwrap_or_default());
        let validator = schemas.get(&name).unwrap_or_else(|| panic!("{topic}: there is no {name}"));
        let errors: Vec<String> = validator.iter_errors(payload).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{topic}: {errors:?} in {payload}");
    }
    let mut numbers: Vec<u64> =
        of(messages, "face").chain(of(messages, "summary")).map(|event| event["seq"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    let tracks = |kind: &str| -> Vec<u64> {
        let mut tracks: Vec<u64> = of(messages, "face")
            .filter(|event| event["event"] == kind)
            .map(|event| event["track"].as_u64().unwrap())
            .collect();
        tracks.sort_unstable();
        tracks
    };
    assert_eq!(tracks("enter"), tracks("leave"), "each who entered has left, once");
}

#[test]
fn a_clip_is_read_to_its_end_and_everybody_has_left_by_then() {
    let mut shown = false;
    let mut rig = Rig::start(Box::new(move || {
        if std::mem::replace(&mut shown, true) { Err(CaptureError::Ended) } else { Ok(clip(false)) }
    }));
    let deadline = Instant::now() + LONG;
    while rig.daemon.look_after().unwrap() != Progress::Finished {
        assert!(Instant::now() < deadline, "the clip never ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    let messages = rig.stop();
    check_contract(&messages);
    let entered = of(&messages, "face").filter(|event| event["event"] == "enter").count();
    assert!(entered >= 2, "two people are in the clip, {entered} entered");
    assert_eq!(statuses(&messages).last(), Some(&"offline"));
}

#[test]
fn a_camera_that_panics_is_begun_anew_and_the_status_says_degraded() {
    let frames = Arc::new(AtomicU64::new(0));
    let mut rig = Rig::start(Box::new(move || {
        let frames = Arc::clone(&frames);
        let trouble = Box::new(move || {
            assert!(frames.fetch_add(1, Ordering::Relaxed) != 5, "the driver went mad");
            Ok(())
        });
        Ok(Box::new(Troubled { inner: clip(true), trouble }))
    }));
    rig.until(
        "degraded for the restart",
        |daemon, _| matches!(daemon.condition(), Condition::Degraded(reason) if reason.contains("the driver went mad")),
    );
    rig.until("faces after the restart", |_, messages| of(messages, "face").next().is_some());
    let messages = rig.stop();
    check_contract(&messages);
    assert!(statuses(&messages).contains(&"degraded"));
    assert_eq!(statuses(&messages).last(), Some(&"offline"));
}

#[test]
fn an_unplugged_camera_lets_everybody_leave_and_comes_back_by_itself() {
    let opened = Arc::new(AtomicU32::new(0));
    let mut rig = Rig::start(Box::new({
        let opened = Arc::clone(&opened);
        move || {
            let life = opened.fetch_add(1, Ordering::Relaxed);
            match life {
                // Long enough for whoever was in view to be given up.
                1..=30 => {
                    std::thread::sleep(Duration::from_millis(50));
                    Err(unplugged())
                }
                _ => {
                    let mut left = if life == 0 { 40 } else { u32::MAX };
                    let trouble = Box::new(move || {
                        left = left.saturating_sub(1);
                        if left == 0 { Err(unplugged()) } else { Ok(()) }
                    });
                    Ok(Box::new(Troubled { inner: clip(true), trouble }))
                }
            }
        }
    }));
    rig.until("somebody", |_, messages| of(messages, "face").any(|event| event["event"] == "enter"));
    rig.until("everybody gone", |_, messages| of(messages, "face").any(|event| event["event"] == "leave"));
    rig.until("online again", |daemon, _| {
        opened.load(Ordering::Relaxed) > 30 && *daemon.condition() == Condition::Online
    });
    let messages = rig.stop();
    check_contract(&messages);
    let statuses = statuses(&messages);
    let degraded = statuses.iter().rposition(|s| *s == "degraded").unwrap();
    assert!(statuses[degraded..].contains(&"online"), "{statuses:?}");
}

#[test]
fn a_driver_that_hangs_is_named_and_systemds_watchdog_is_fed_no_more() {
    let (hang, hold) = (Arc::new(Mutex::new(())), Arc::new(AtomicU32::new(0)));
    let held = Arc::clone(&hang);
    let guard = held.lock().unwrap();
    let mut rig = Rig::start(Box::new(move || {
        let (hang, hold) = (Arc::clone(&hang), Arc::clone(&hold));
        let trouble = Box::new(move || {
            if hold.fetch_add(1, Ordering::Relaxed) == 3 {
                drop(hang.lock());
            }
            Ok(())
        });
        Ok(Box::new(Troubled { inner: clip(true), trouble }))
    }));
    let deadline = Instant::now() + LONG;
    while rig.daemon.look_after().unwrap() != Progress::Hung {
        assert!(Instant::now() < deadline, "nobody noticed");
        std::thread::sleep(Duration::from_millis(20));
    }
    let reason = Condition::Degraded("stage capture hangs".into());
    assert_eq!(*rig.daemon.condition(), reason);
    drop(guard);
    rig.until("alive again", |daemon, _| *daemon.condition() == Condition::Online);
    rig.stop();
}

#[test]
fn stopping_takes_less_than_two_seconds_even_if_the_broker_hangs() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = Daemon::start(
        config(silent.local_addr().unwrap().port()),
        Parts { open_source: Some(Box::new(|| Ok(clip(true)))), ..Parts::default() },
    )
    .unwrap();
    let telemetry = Arc::clone(daemon.telemetry());
    let deadline = Instant::now() + LONG;
    while telemetry.faces_read.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "no face was read");
        std::thread::sleep(Duration::from_millis(10));
    }
    let start = Instant::now();
    daemon.stop();
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
}

#[test]
fn the_page_and_the_metrics_are_served_and_a_port_in_use_is_an_error() {
    let mut config = config(1);
    config.mqtt = None;
    let any = "127.0.0.1:0".parse().unwrap();
    config.web = Some(WebConfig { listen: any, try_on: false });
    let daemon =
        Daemon::start(config.clone(), Parts { open_source: Some(Box::new(|| Ok(clip(true)))), ..Parts::default() });
    let daemon = daemon.unwrap();
    let page = daemon.page_address().unwrap();
    config.metrics = Some(page);
    config.web = None;
    let refused = Daemon::start(config, Parts { open_source: Some(Box::new(|| Ok(clip(true)))), ..Parts::default() });
    let error = refused.err().expect("the page already listens there").to_string();
    assert!(error.contains("in use") && error.contains(&page.port().to_string()), "{error}");
    daemon.stop();
}

#[test]
fn a_reload_takes_over_what_it_can_and_names_what_waits() {
    let mut rig = Rig::start(Box::new(|| Ok(clip(true))));
    rig.until("a face", |_, messages| of(messages, "face").next().is_some());
    let mut changed = config(1);
    changed.report.face_events = false;
    let mut waiting = rig.daemon.reload(changed);
    waiting.sort_unstable();
    assert_eq!(waiting, ["mqtt"]);
    let summaries = |messages: &[(String, Value)]| of(messages, "summary").count();
    rig.until("the change to be taken over", {
        let mut quiet_since: Option<(usize, usize)> = None;
        move |_, messages| {
            let faces = of(messages, "face").count();
            match quiet_since {
                Some((before, at)) if before == faces => summaries(messages) >= at + 2,
                _ => {
                    quiet_since = Some((faces, summaries(messages)));
                    false
                }
            }
        }
    });
    rig.stop();
}

#[test]
fn without_consent_nobody_is_analysed_and_who_was_in_view_leaves() {
    let broker = Broker::start(0).unwrap();
    let mut config = config(broker.address().port());
    config.privacy.require_consent = true;
    let (messages, tap) = recorder();
    let parts = Parts { open_source: Some(Box::new(|| Ok(clip(true)))), tap: Some(tap), ..Parts::default() };
    let daemon = Daemon::start(config, parts).unwrap();
    let mut rig = Rig { daemon, messages, _broker: broker };
    let read = |daemon: &Daemon| daemon.telemetry().frames_read.load(Ordering::Relaxed);
    let faces = |daemon: &Daemon| daemon.telemetry().faces_read.load(Ordering::Relaxed);
    rig.until("frames without analysis", |daemon, _| read(daemon) > 30);
    assert_eq!(faces(&rig.daemon), 0);
    assert!(of(&rig.messages.lock().unwrap(), "face").next().is_none());

    rig.daemon.consent().grant(None, Instant::now(), jiff::Timestamp::now());
    let entered =
        |messages: &[(String, Value)], event: &str| of(messages, "face").filter(|f| f["event"] == event).count();
    rig.until("somebody", |_, messages| entered(messages, "enter") > 0);
    rig.daemon.consent().revoke();
    rig.until("everybody to leave", |_, messages| entered(messages, "enter") == entered(messages, "leave"));
    let before = (read(&rig.daemon), faces(&rig.daemon));
    rig.until("frames without analysis", |daemon, _| read(daemon) > before.0 + 30);
    assert_eq!(faces(&rig.daemon), before.1);
    check_contract(&rig.stop());
}
