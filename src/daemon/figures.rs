//! What the daemon says of itself over MQTT: the `info` and `telemetry` payloads.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Context;
use super::health::CameraHealth;
use super::system::{self, ProcessorShare};
use crate::models::Bundle;
use crate::mqtt::Sources;
use crate::mqtt::command::Name;
use crate::mqtt::payload::{
    Info, InfoSchema, LatencyTelemetry, ModelInfo, OutboxTelemetry, Telemetry, TelemetrySchema,
};
use crate::nn::Engine;
use crate::report::{Boot, Milliseconds, Moment, Seconds};

/// Everything both payloads are made from.
#[derive(Clone)]
pub(super) struct Figures {
    device: String,
    boot: Boot,
    started: Instant,
    context: Arc<Context>,
    camera: Arc<CameraHealth>,
}

impl Figures {
    pub(super) fn new(device: &str, boot: Boot, context: &Arc<Context>, camera: &Arc<CameraHealth>) -> Self {
        Self {
            device: device.into(),
            boot,
            started: Instant::now(),
            context: Arc::clone(context),
            camera: Arc::clone(camera),
        }
    }

    pub(super) fn sources(self) -> Sources {
        let share = Mutex::new(ProcessorShare::new(self.started));
        let info = self.clone();
        Sources {
            info: Box::new(move || info.info()),
            telemetry: Box::new(move || {
                let now = Instant::now();
                let percent = share.lock().unwrap_or_else(PoisonError::into_inner).percent(now);
                self.telemetry(now, percent.unwrap_or(0.0))
            }),
        }
    }

    pub(super) fn info(&self) -> Info {
        let models = &self.context.models;
        Info {
            schema: InfoSchema::V1,
            device: self.device.clone(),
            boot: self.boot,
            version: env!("CARGO_PKG_VERSION").into(),
            board: Some(system::board()),
            camera: self.camera.description(),
            models: models.bundles().map(model_info).collect(),
            capabilities: self.capabilities(),
        }
    }

    /// What it reads, and which commands it carries out.
    fn capabilities(&self) -> Vec<String> {
        let running = self.context.running.load();
        let commands = running.mqtt.as_ref().and_then(|mqtt| mqtt.commands.as_ref());
        let allowed = commands.into_iter().flat_map(|commands| {
            Name::ALL.into_iter().filter(|name| name.is_allowed(&commands.allow)).map(|name| format!("cmd/{name}"))
        });
        ["emotion", "neutral", "summary"].into_iter().map(Into::into).chain(allowed).collect()
    }

    fn telemetry(&self, now: Instant, cpu_percent: f64) -> Telemetry {
        let counters = &self.context.telemetry;
        let interval = counters.interval(now);
        let latency = interval.stages.iter().map(|(stage, p)| {
            let latency = LatencyTelemetry {
                p50_ms: milliseconds(p.p50_ms),
                p95_ms: milliseconds(p.p95_ms),
                p99_ms: milliseconds(p.p99_ms),
            };
            (stage.name().to_string(), latency)
        });
        Telemetry {
            schema: TelemetrySchema::V1,
            device: self.device.clone(),
            boot: self.boot,
            time: Moment(jiff::Timestamp::now()),
            uptime_s: Seconds::from(now.duration_since(self.started)),
            capture_fps: rounded(interval.capture_fps),
            analysis_fps: rounded(interval.fps),
            frames: counters.frames_captured.load(Ordering::Relaxed),
            dropped: BTreeMap::from([("capture".into(), counters.frames_dropped.load(Ordering::Relaxed))]),
            consent: self.context.consent.describe(now),
            people_in_view: counters.faces_in_view.load(Ordering::Relaxed),
            latency: latency.collect(),
            cpu_percent: rounded(cpu_percent),
            memory_bytes: system::resident_bytes().unwrap_or(0),
            temperature_celsius: system::temperature_celsius(),
            restarts: counters.stage_restarts.load(Ordering::Relaxed),
            outbox: OutboxTelemetry::default(),
        }
    }
}

fn model_info(bundle: &Bundle) -> ModelInfo {
    let manifest = bundle.manifest();
    ModelInfo {
        name: manifest.name.clone(),
        version: manifest.version.to_string(),
        sha256: bundle.model_sha256().into(),
        engine: Engine::default().name().into(),
    }
}

fn milliseconds(ms: f64) -> Milliseconds {
    Duration::from_secs_f64(ms / 1e3).into()
}

/// To a tenth: what is smaller is noise.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
