//! The payloads of `status`, `info`, `telemetry` and `gap`, and the JSON Schemas of all payloads.
//!
//! The payloads of `face` and `summary` belong to [`report`](crate::report).

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use super::command::{Answer, Request};
use super::spool::{Gap, LossReason};
use crate::report::{Boot, FacePayload, Milliseconds, Moment, Seconds, SummaryPayload, schema_name};

schema_name!(
    /// Names the contract of [`Status`].
    StatusSchema = "visaged.status.v1"
);
schema_name!(
    /// Names the contract of [`Info`].
    InfoSchema = "visaged.info.v1"
);
schema_name!(
    /// Names the contract of [`GapPayload`].
    GapSchema = "visaged.gap.v1"
);
schema_name!(
    /// Names the contract of [`Telemetry`].
    TelemetrySchema = "visaged.telemetry.v1"
);

/// Topic `status`, retained: how the device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Names this contract.
    pub schema: StatusSchema,
    /// How it is.
    pub status: Health,
    /// Why, for people; `null` when it is online.
    pub reason: Option<String>,
    /// Since when; `null` in the last will, whose moment nobody knew.
    pub since: Option<Moment>,
    /// The run of the process.
    pub boot: Boot,
    /// Whether faces may be analysed, where that depends on consent; `null` where it does not, and in the last will.
    #[serde(default)]
    pub consent: Option<Consent>,
}

/// Consent to the analysis of faces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// Given; else no face is analysed.
    pub granted: bool,
    /// When it ends by itself; `null` where it is not given, or does not.
    pub until: Option<Moment>,
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All that is configured works.
    Online,
    /// Something that is configured does not work now.
    Degraded,
    /// Not connected: stopped, or the connection was lost (the last will).
    Offline,
}

impl Status {
    /// All is well since then.
    pub fn online(boot: Boot, since: Moment) -> Self {
        Self { schema: StatusSchema::V1, status: Health::Online, reason: None, since: Some(since), boot, consent: None }
    }

    /// Something does not work since then.
    pub fn degraded(boot: Boot, since: Moment, reason: impl Into<String>) -> Self {
        let reason = Some(reason.into());
        Self { schema: StatusSchema::V1, status: Health::Degraded, reason, since: Some(since), boot, consent: None }
    }

    /// Stopped then.
    pub fn stopped(boot: Boot, since: Moment) -> Self {
        let reason = Some("stopped".into());
        Self { schema: StatusSchema::V1, status: Health::Offline, reason, since: Some(since), boot, consent: None }
    }

    /// What the broker says when it loses the connection.
    pub fn last_will(boot: Boot) -> Self {
        let reason = Some("connection lost".into());
        Self { schema: StatusSchema::V1, status: Health::Offline, reason, since: None, boot, consent: None }
    }

    /// The same, with what is known of consent.
    pub fn with_consent(self, consent: Option<Consent>) -> Self {
        Self { consent, ..self }
    }
}

/// Topic `info`, retained: what the device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// Names this contract.
    pub schema: InfoSchema,
    /// The device's name, as in the topic.
    pub device: String,
    /// The run of the process.
    pub boot: Boot,
    /// Version of visaged.
    pub version: String,
    /// The board as the device tree or DMI names it; `null` where neither does.
    pub board: Option<String>,
    /// The camera as it was really opened: device, format, size, rate; `null` while there is none.
    pub camera: Option<String>,
    /// Model bundles in use.
    pub models: Vec<ModelInfo>,
    /// What this device can be asked or used for.
    pub capabilities: Vec<String>,
}

/// A model bundle in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Bundle name: `detector`, `derl`, `makeup`.
    pub name: String,
    /// Bundle version.
    pub version: String,
    /// SHA-256 of the model file, in hexadecimal.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// The engine that runs it.
    pub engine: String,
}

/// Topic `telemetry`, QoS 0: how the device does. Counters run from the start of the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Names this contract.
    pub schema: TelemetrySchema,
    /// The device's name, as in the topic.
    pub device: String,
    /// The run of the process.
    pub boot: Boot,
    /// When it was measured.
    pub time: Moment,
    /// Since the start of the process.
    pub uptime_s: Seconds,
    /// Frames captured per second, over the last interval.
    pub capture_fps: f64,
    /// Frames analysed per second, over the last interval.
    pub analysis_fps: f64,
    /// Frames captured.
    pub frames: u64,
    /// Frames dropped because a newer one came first, by the stage that was late.
    pub dropped: BTreeMap<String, u64>,
    /// People in view now.
    pub people_in_view: u64,
    /// Whether faces may be analysed, where that depends on consent; `null` where it does not.
    #[serde(default)]
    pub consent: Option<Consent>,
    /// Time by stage, over the last interval.
    pub latency: BTreeMap<String, LatencyTelemetry>,
    /// Processor time over the last interval; 100 is one core.
    pub cpu_percent: f64,
    /// Resident memory.
    pub memory_bytes: u64,
    /// The hottest thermal zone; `null` where the board has none.
    pub temperature_celsius: Option<f64>,
    /// Stages restarted after a panic.
    pub restarts: u64,
    /// Events on their way to the broker.
    pub outbox: OutboxTelemetry,
}

/// Percentiles of one stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LatencyTelemetry {
    /// Median.
    pub p50_ms: Milliseconds,
    /// 95th percentile.
    pub p95_ms: Milliseconds,
    /// 99th percentile.
    pub p99_ms: Milliseconds,
}

/// The state of the [`Spool`](super::Spool) and its connection; the client fills it in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutboxTelemetry {
    /// Events not yet acknowledged by the broker.
    pub depth: u64,
    /// Events of these that are on disk.
    pub stored: u64,
    /// What the records on disk hold.
    pub stored_bytes: u64,
    /// Events given up, oldest first, for the three reasons that follow. Never too low: one whose acknowledgement was on
    /// its way counts although it arrived.
    pub lost: u64,
    /// Because the spool was full.
    pub lost_space: u64,
    /// Because they had waited longer than is configured.
    pub lost_age: u64,
    /// Because the disk did not take them, or did not give them back.
    pub lost_storage: u64,
    /// Events that the broker refused or that are larger than it takes.
    pub refused: u64,
    /// Connections after the first.
    pub reconnects: u64,
}

/// Topic `gap`, QoS 1: events that are given up, told in their place among the events.
///
/// It has no `seq` of its own. An event of this boot with a `seq` from `from` to `to` that has not arrived is lost, and
/// declared so. Gaps may overlap, as one that grows is told again; and after a crash an event that was declared lost
/// may still arrive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GapPayload {
    /// Names this contract.
    pub schema: GapSchema,
    /// The device's name, as in the topic.
    pub device: String,
    /// The run of the process that made the events.
    pub boot: Boot,
    /// The `seq` of the first event given up.
    pub from: u64,
    /// The `seq` of the last event given up.
    pub to: u64,
    /// Events given up from `from` to `to`; fewer than the span where some of it was delivered.
    #[schemars(range(min = 1))]
    pub count: u64,
    /// Why.
    pub reason: LossReason,
    /// When the last of them was given up.
    pub time: Moment,
}

impl GapPayload {
    /// What `device` tells of `gap`.
    pub fn new(device: &str, gap: &Gap) -> Self {
        let Gap { boot, from, to, count, reason, time } = *gap;
        Self { schema: GapSchema::V1, device: device.to_owned(), boot, from, to, count, reason, time }
    }
}

/// The JSON Schema (draft 2020-12) of every payload, by file name as in `docs/schema/`.
pub fn schemas() -> Vec<(&'static str, Schema)> {
    fn of<T: JsonSchema>() -> Schema {
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>()
    }
    vec![
        ("cmd.schema.json", of::<Request>()),
        ("face.schema.json", of::<FacePayload>()),
        ("gap.schema.json", of::<GapPayload>()),
        ("info.schema.json", of::<Info>()),
        ("rsp.schema.json", of::<Answer>()),
        ("status.schema.json", of::<Status>()),
        ("summary.schema.json", of::<SummaryPayload>()),
        ("telemetry.schema.json", of::<Telemetry>()),
    ]
}
