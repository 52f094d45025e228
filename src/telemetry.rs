//! Counters and latency histograms of every stage: Prometheus' text format and the telemetry payload read from here.
//!
//! Invariants: recording allocates nothing and waits for no reader but the short copy of a histogram; counters only grow.
//! Knows the stages' names and nothing of what they do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// A station on a frame's way whose time is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// From capture to the moment the frame is taken up: the wait in the mailbox.
    Wait,
    /// Conversion to RGB.
    Convert,
    /// Detection.
    Detect,
    /// Tracking.
    Track,
    /// Alignment of all faces of the frame.
    Align,
    /// De-expression and emotion, of all faces of the frame.
    Expression,
    /// Smoothing, events, and handing them over.
    Report,
    /// From capture to the observation: the whole way but for the broker.
    Total,
}

impl Stage {
    /// All of them, on the frame's way.
    pub const ALL: [Self; 8] = [
        Self::Wait,
        Self::Convert,
        Self::Detect,
        Self::Track,
        Self::Align,
        Self::Expression,
        Self::Report,
        Self::Total,
    ];

    /// Its name in metrics and payloads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Convert => "convert",
            Self::Detect => "detect",
            Self::Track => "track",
            Self::Align => "align",
            Self::Expression => "expression",
            Self::Report => "report",
            Self::Total => "total",
        }
    }
}

/// Three percentiles of one stage over one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// Median in milliseconds.
    pub p50_ms: f64,
    /// 95th percentile in milliseconds.
    pub p95_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
}

/// What happened since the last [`Telemetry::interval`].
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// Frames captured, per second.
    pub capture_fps: f64,
    /// Frames read to the end, per second.
    pub fps: f64,
    /// Percentiles of every stage that ran.
    pub stages: Vec<(Stage, Percentiles)>,
}

/// All counters and histograms; shared by every stage.
#[derive(Debug)]
pub struct Telemetry {
    /// Frames captured.
    pub frames_captured: AtomicU64,
    /// Frames read to the end.
    pub frames_read: AtomicU64,
    /// Frames replaced by a newer one before they were taken up.
    pub frames_dropped: AtomicU64,
    /// Frames that could not be converted.
    pub frames_broken: AtomicU64,
    /// Frames on which the detector's network failed.
    pub detector_failures: AtomicU64,
    /// Faces on which the expression network failed.
    pub derl_failures: AtomicU64,
    /// Faces on which the make-up network failed.
    pub makeup_failures: AtomicU64,
    /// Faces on which the identity generator failed.
    pub identity_failures: AtomicU64,
    /// Faces read.
    pub faces_read: AtomicU64,
    /// Faces now in view.
    pub faces_in_view: AtomicU64,
    /// Stages restarted after a panic.
    pub stage_restarts: AtomicU64,
    /// Times the camera was lost.
    pub camera_losses: AtomicU64,
    /// Events that wait for the broker.
    pub events_waiting: AtomicU64,
    /// Events given up.
    pub events_lost: AtomicU64,
    stages: [StageTimes; Stage::ALL.len()],
    last_interval: Mutex<Mark>,
}

/// Where an interval began.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    captured: u64,
    read: u64,
}

#[derive(Debug)]
struct StageTimes {
    interval: Mutex<Histogram<u64>>,
    total: Mutex<Histogram<u64>>,
    sum_us: AtomicU64,
}

/// Microseconds from 1 to one minute in three digits: the size is fixed, so recording never allocates.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("constant bounds are valid")
}

impl Default for StageTimes {
    fn default() -> Self {
        Self { interval: Mutex::new(histogram()), total: Mutex::new(histogram()), sum_us: AtomicU64::new(0) }
    }
}

impl Telemetry {
    /// Everything at zero; `now` begins the first interval.
    pub fn new(now: Instant) -> Self {
        Self {
            frames_captured: AtomicU64::new(0),
            frames_read: AtomicU64::new(0),
            frames_dropped: AtomicU64::new(0),
            frames_broken: AtomicU64::new(0),
            detector_failures: AtomicU64::new(0),
            derl_failures: AtomicU64::new(0),
            makeup_failures: AtomicU64::new(0),
            identity_failures: AtomicU64::new(0),
            faces_read: AtomicU64::new(0),
            faces_in_view: AtomicU64::new(0),
            stage_restarts: AtomicU64::new(0),
            camera_losses: AtomicU64::new(0),
            events_waiting: AtomicU64::new(0),
            events_lost: AtomicU64::new(0),
            stages: Default::default(),
            last_interval: Mutex::new(Mark { at: now, captured: 0, read: 0 }),
        }
    }

    /// Adds one run of `stage`.
    pub fn record(&self, stage: Stage, took: Duration) {
        let times = &self.stages[stage as usize];
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        times.sum_us.fetch_add(us, Ordering::Relaxed);
        times.interval.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(us);
        times.total.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(us);
    }

    /// Runs `work` and adds its time to `stage`.
    pub fn time<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.record(stage, start.elapsed());
        result
    }

    /// Adds one to a counter.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What happened since the last call; begins the next interval.
    pub fn interval(&self, now: Instant) -> Interval {
        let mark = Mark {
            at: now,
            captured: self.frames_captured.load(Ordering::Relaxed),
            read: self.frames_read.load(Ordering::Relaxed),
        };
        let last = {
            let mut last = self.last_interval.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *last, mark)
        };
        let seconds = now.saturating_duration_since(last.at).as_secs_f64();
        let rate = |frames: u64| if seconds > 0.0 { frames as f64 / seconds } else { 0.0 };
        let stages = Stage::ALL
            .into_iter()
            .filter_map(|stage| {
                let mut times = self.stages[stage as usize].interval.lock().unwrap_or_else(PoisonError::into_inner);
                let percentiles = percentiles(&times)?;
                times.reset();
                Some((stage, percentiles))
            })
            .collect();
        let (captured, read) = (mark.captured.saturating_sub(last.captured), mark.read.saturating_sub(last.read));
        Interval { capture_fps: rate(captured), fps: rate(read), stages }
    }

    /// Percentiles of `stage` since the start; `None` where it never ran.
    pub fn percentiles(&self, stage: Stage) -> Option<Percentiles> {
        percentiles(&self.stages[stage as usize].total.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything in Prometheus' text format (OpenMetrics 1.0).
    pub fn prometheus(self: &Arc<Self>) -> String {
        let mut registry = Registry::with_prefix("visaged");
        registry.register_collector(Box::new(Exposition(Arc::clone(self))));
        let mut text = String::new();
        // Writing to a String cannot fail; what was written before an encoder's error is still well formed lines.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

fn percentiles(times: &Histogram<u64>) -> Option<Percentiles> {
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    (!times.is_empty()).then(|| Percentiles { p50_ms: ms(0.5), p95_ms: ms(0.95), p99_ms: ms(0.99) })
}

#[derive(Debug)]
struct Exposition(Arc<Telemetry>);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let t = &self.0;
        let counters = [
            ("frames_captured", "Frames captured", &t.frames_captured),
            ("frames_read", "Frames read to the end", &t.frames_read),
            ("frames_dropped", "Frames replaced by a newer one before they were read", &t.frames_dropped),
            ("frames_broken", "Frames that could not be converted", &t.frames_broken),
            ("detector_failures", "Frames on which the detector's network failed", &t.detector_failures),
            ("derl_failures", "Faces on which the expression network failed", &t.derl_failures),
            ("makeup_failures", "Faces on which the make-up network failed", &t.makeup_failures),
            ("identity_failures", "Faces on which the identity generator failed", &t.identity_failures),
            ("faces_read", "Faces read", &t.faces_read),
            ("stage_restarts", "Stages restarted after a panic", &t.stage_restarts),
            ("camera_losses", "Times the camera was lost", &t.camera_losses),
            ("events_lost", "Events given up before the broker had them", &t.events_lost),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let gauges = [
            ("faces_in_view", "Faces now in view", &t.faces_in_view),
            ("events_waiting", "Events that wait for the broker", &t.events_waiting),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value.load(Ordering::Relaxed) as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        self.encode_quantiles(&mut encoder)
    }
}

impl Exposition {
    fn encode_quantiles(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(0.0);
        let mut family = encoder.encode_descriptor(
            "stage_latency",
            "Latency of each stage since the start, by quantile",
            Some(&Unit::Seconds),
            gauge.metric_type(),
        )?;
        for stage in Stage::ALL {
            let Some(p) = self.0.percentiles(stage) else { continue };
            for (quantile, ms) in [("0.5", p.p50_ms), ("0.95", p.p95_ms), ("0.99", p.p99_ms)] {
                let labels = [("stage", stage.name()), ("quantile", quantile)];
                ConstGauge::new(ms / 1000.0).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_covers_only_what_came_since_the_last_one() {
        let start = Instant::now();
        let telemetry = Telemetry::new(start);
        telemetry.record(Stage::Detect, Duration::from_millis(4));
        Telemetry::count(&telemetry.frames_read);
        let first = telemetry.interval(start + Duration::from_secs(2));
        assert!((first.fps - 0.5).abs() < 1e-9);
        assert_eq!(first.stages.len(), 1);
        assert!((first.stages[0].1.p50_ms - 4.0).abs() < 0.01);
        let second = telemetry.interval(start + Duration::from_secs(4));
        assert_eq!(second, Interval { capture_fps: 0.0, fps: 0.0, stages: vec![] });
        assert!(telemetry.percentiles(Stage::Detect).is_some(), "the total goes on");
    }

    #[test]
    fn prometheus_text_names_each_stage_that_ran() {
        let telemetry = Arc::new(Telemetry::new(Instant::now()));
        telemetry.record(Stage::Total, Duration::from_millis(10));
        Telemetry::count(&telemetry.frames_captured);
        let text = telemetry.prometheus();
        assert!(text.contains("visaged_frames_captured_total 1"), "{text}");
        assert!(text.contains("visaged_stage_latency_seconds{stage=\"total\",quantile=\"0.99\"}"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
