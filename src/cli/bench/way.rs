//! The whole daemon, measured from outside: frames in at 30 a second, events out through a real broker.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clip::OnePerson;
use super::{BenchError, WayTime, stage_times};
use crate::capture::{CaptureError, Source, Timing};
use crate::config::{Config, MqttConfig, ReportConfig};
use crate::daemon::{Daemon, Parts, system};
use crate::frame::Frame;
use crate::mqtt::broker::Broker;
use crate::mqtt::{Published, Tap};
use crate::nn::Settings;
use crate::pool::Pool;

const FPS: u32 = 30;
/// Networks warm up and the first face enters before anything is counted.
const WARM_UP: Duration = Duration::from_secs(2);

/// A camera made of memory that gives 30 frames a second.
struct Camera {
    clip: Arc<OnePerson>,
    next: Instant,
    seq: u64,
}

impl Source for Camera {
    fn describe(&self) -> String {
        format!("frames in memory, YUYV 640x480 at {FPS} fps")
    }

    fn timing(&self) -> Timing {
        Timing::Live
    }

    fn next_frame(&mut self, _pool: &Pool<Vec<u8>>, timeout: Duration) -> Result<Frame, CaptureError> {
        let wait = self.next.saturating_duration_since(Instant::now());
        if wait > timeout {
            std::thread::sleep(timeout);
            return Err(CaptureError::TimedOut(timeout));
        }
        std::thread::sleep(wait);
        self.next += Duration::from_secs(1) / FPS;
        self.seq += 1;
        Ok(self.clip.frame(self.seq - 1))
    }
}

pub(super) fn measure(clip: OnePerson, budget: Duration, nn: Settings) -> Result<WayTime, BenchError> {
    let broker = Broker::start(0)?;
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let mut daemon = Daemon::start(config(&broker, nn), parts(clip, &latencies))?;
    watch(&mut daemon, WARM_UP)?;
    latencies.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let telemetry = Arc::clone(daemon.telemetry());
    let before = (Instant::now(), system::processor_time(), telemetry.frames_read.load(Ordering::Relaxed));
    watch(&mut daemon, budget)?;
    let wall = before.0.elapsed().as_secs_f64();
    let used = system::processor_time().zip(before.1).map_or(f64::NAN, |(now, then)| (now - then).as_secs_f64());
    let frames = telemetry.frames_read.load(Ordering::Relaxed) - before.2;
    let resident = system::resident_bytes().map_or(f64::NAN, |bytes| bytes as f64 / 1e6);
    daemon.stop();
    let mut latencies = std::mem::take(&mut *latencies.lock().unwrap_or_else(PoisonError::into_inner));
    latencies.sort_by(f64::total_cmp);
    let quantile = |q: f64| latencies.get((q * latencies.len() as f64) as usize).copied().unwrap_or(f64::NAN);
    Ok(WayTime {
        frames,
        dropped: telemetry.frames_dropped.load(Ordering::Relaxed),
        events: latencies.len(),
        cpu_percent: 100.0 * used / wall,
        resident_mb: resident,
        stages: stage_times(&telemetry),
        published_p50_ms: quantile(0.5),
        published_p95_ms: quantile(0.95),
        published_p99_ms: quantile(0.99),
    })
}

/// Ten samples a second, so that latencies are many.
fn config(broker: &Broker, nn: Settings) -> Config {
    Config {
        mqtt: Some(MqttConfig {
            host: broker.address().ip().to_string(),
            port: broker.address().port(),
            spool: crate::config::SpoolConfig::MEMORY,
            ..MqttConfig::default()
        }),
        report: ReportConfig { sample_every: Some(Duration::from_millis(100)), ..ReportConfig::default() },
        nn,
        ..Config::default()
    }
}

fn parts(clip: OnePerson, latencies: &Arc<Mutex<Vec<f64>>>) -> Parts {
    let clip = Arc::new(clip);
    let latencies = Arc::clone(latencies);
    let tap: Tap = Arc::new(move |message: &Published<'_>| {
        let payload: Option<serde_json::Value> = serde_json::from_slice(message.payload).ok();
        let latency = payload.as_ref().and_then(|p| p.get("latency_ms")).and_then(serde_json::Value::as_f64);
        if let (true, Some(ms)) = (message.topic.ends_with("/face"), latency) {
            latencies.lock().unwrap_or_else(PoisonError::into_inner).push(ms);
        }
    });
    Parts {
        open_source: Some(Box::new(move || {
            Ok(Box::new(Camera { clip: Arc::clone(&clip), next: Instant::now(), seq: 0 }))
        })),
        tap: Some(tap),
        ..Parts::default()
    }
}

fn watch(daemon: &mut Daemon, time: Duration) -> Result<(), BenchError> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        daemon.look_after()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
