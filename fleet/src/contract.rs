//! Topics and payloads as devices send them, and commands as they want them.
//!
//! Reading is tolerant: members that a later version adds are passed over, and what the store does not ask for is not looked at. What is
//! needed (`boot`, `seq`, `time`) must be there and right. May know nothing but [`time`](crate::time).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::time::Micros;

/// Above all topics.
pub const ROOT: &str = "visaged/v1";

/// Longest level in bytes, as on the devices.
const LONGEST_LEVEL_BYTES: usize = 128;

/// Names a device: its site and its name, both a level of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct DeviceName {
    site: String,
    device: String,
}

/// Why a name is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no device: want SITE/NAME, each of 1 to 128 bytes without / + # and control characters")]
pub struct NotADevice(String);

impl DeviceName {
    /// # Errors
    /// [`NotADevice`] where one of them cannot be a level of a topic.
    pub fn new(site: &str, device: &str) -> Result<Self, NotADevice> {
        let good = |level: &str| {
            !level.is_empty()
                && level.len() <= LONGEST_LEVEL_BYTES
                && !level.contains(['/', '+', '#'])
                && !level.chars().any(char::is_control)
        };
        match good(site) && good(device) {
            true => Ok(Self { site: site.to_owned(), device: device.to_owned() }),
            false => Err(NotADevice(format!("{site}/{device}"))),
        }
    }

    /// The site.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// The name within the site.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The topic `leaf` of this device.
    pub fn topic(&self, leaf: &str) -> String {
        format!("{ROOT}/{}/{}/{leaf}", self.site, self.device)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.device)
    }
}

impl FromStr for DeviceName {
    type Err = NotADevice;
    fn from_str(text: &str) -> Result<Self, NotADevice> {
        let (site, device) = text.split_once('/').ok_or_else(|| NotADevice(text.to_owned()))?;
        Self::new(site, device)
    }
}

/// What a topic carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// [`Status`].
    Status,
    /// [`Info`].
    Info,
    /// [`Telemetry`].
    Telemetry,
    /// [`Numbered`], one person's stay.
    Face,
    /// [`Numbered`], counts over a window.
    Summary,
    /// [`Gap`].
    Gap,
    /// [`Answer`].
    Answer,
}

/// Takes a topic apart; `None` for what is no device's topic to us.
pub fn parse_topic(topic: &str) -> Option<(DeviceName, Leaf)> {
    let mut levels = topic.strip_prefix(ROOT)?.strip_prefix('/')?.splitn(3, '/');
    let device = DeviceName::new(levels.next()?, levels.next()?).ok()?;
    let leaf = match levels.next()? {
        "status" => Leaf::Status,
        "info" => Leaf::Info,
        "telemetry" => Leaf::Telemetry,
        "face" => Leaf::Face,
        "summary" => Leaf::Summary,
        "gap" => Leaf::Gap,
        other if other.strip_prefix("rsp/").is_some_and(|name| !name.is_empty() && !name.contains('/')) => Leaf::Answer,
        _ => return None,
    };
    Some((device, leaf))
}

/// How a device says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All that is configured works.
    Online,
    /// Something does not.
    Degraded,
    /// Stopped, or the connection was lost (last will).
    Offline,
}

impl Health {
    /// As in payloads and the store.
    pub fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Degraded => "degraded",
            Self::Offline => "offline",
        }
    }
}

/// Topic `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// How it is.
    pub status: Health,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// Since when, by the device's clock.
    #[serde(default)]
    pub since: Option<Micros>,
    /// The run of the process.
    pub boot: Uuid,
}

/// Topic `info`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The run of the process.
    pub boot: Uuid,
    /// Version of visaged.
    pub version: String,
    /// The board.
    #[serde(default)]
    pub board: Option<String>,
    /// The camera.
    #[serde(default)]
    pub camera: Option<String>,
    /// Model bundles in use.
    #[serde(default)]
    pub models: Vec<Model>,
    /// What it can be asked for.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// A model bundle in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Bundle name.
    pub name: String,
    /// Bundle version.
    pub version: String,
    /// SHA-256 of the model file.
    pub sha256: String,
    /// The engine that runs it.
    #[serde(default)]
    pub engine: String,
}

/// Topic `telemetry`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// The run of the process.
    pub boot: Uuid,
    /// When it was measured, by the device's clock.
    pub time: Micros,
    /// Frames analysed per second.
    #[serde(default)]
    pub analysis_fps: Option<f64>,
    /// 100 is one core.
    #[serde(default)]
    pub cpu_percent: Option<f64>,
    /// Resident memory.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// The hottest thermal zone.
    #[serde(default)]
    pub temperature_celsius: Option<f64>,
    /// People in view.
    #[serde(default)]
    pub people_in_view: Option<u64>,
    /// Events on their way.
    #[serde(default)]
    pub outbox: Outbox,
}

/// Part of [`Telemetry`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    /// Not yet acknowledged by the broker.
    #[serde(default)]
    pub depth: u64,
    /// Given up.
    #[serde(default)]
    pub lost: u64,
}

/// Topics `face` and `summary`: what has a `seq`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// The run of the process.
    pub boot: Uuid,
    /// Counts from 0 without gaps within a boot.
    pub seq: u64,
    /// Capture time, by the device's clock.
    pub time: Micros,
    /// `enter`, `change`, `sample`, `leave`; absent in a summary.
    #[serde(default)]
    pub event: Option<String>,
    /// The emotion shown; absent in a summary.
    #[serde(default)]
    pub emotion: Option<String>,
    /// From capture to publishing.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    /// Sent late, from the spool.
    #[serde(default)]
    pub historical: bool,
}

/// Topic `gap`: events that are given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The run of the process that made the events.
    pub boot: Uuid,
    /// The first `seq`.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// How many of these.
    pub count: u64,
    /// Why.
    pub reason: String,
    /// When the last was given up.
    pub time: Micros,
}

/// The name of [`Command`]'s contract.
pub const COMMAND_SCHEMA: &str = "visaged.cmd.v1";

/// The name of [`Answer`]'s contract.
pub const ANSWER_SCHEMA: &str = "visaged.rsp.v1";

/// Topic `cmd/{name}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// [`COMMAND_SCHEMA`].
    pub schema: String,
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub id: String,
    /// What the command takes.
    pub args: Value,
    /// Refused by the device when later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Micros>,
}

/// How far a command is, in a device's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerState {
    /// Begun; the end follows.
    InProgress,
    /// Done.
    Succeeded,
    /// Tried; the former state stands again.
    Failed,
    /// Nothing was done.
    Rejected,
}

/// Topic `rsp/{name}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The command's; empty where the device could not read it.
    pub id: String,
    /// The command's name.
    #[serde(default)]
    pub name: String,
    /// How far it is.
    pub state: AnswerState,
    /// What came out.
    #[serde(default)]
    pub result: Value,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<AnswerError>,
}

/// Part of [`Answer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerError {
    /// One of the contract's codes.
    pub code: String,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// A command that devices know, with the roles of [`web`](crate::web) in mind: what reads and what changes.
pub const COMMANDS: [&str; 11] = [
    "ping",
    "info",
    "config.get",
    "config.set",
    "models.install",
    "models.rollback",
    "snapshot",
    "consent.grant",
    "consent.revoke",
    "log.level",
    "restart",
];

/// The command that carries a part of a bundle; sent by the server on its own, so none of [`COMMANDS`].
pub const CHUNK_COMMAND: &str = "models.chunk";

/// `A-Z a-z 0-9 . _ -`, 1 to 64 of them.
pub fn is_command_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_names_its_device_and_what_it_carries() {
        let (device, leaf) = parse_topic("visaged/v1/lobby/mirror-1/face").unwrap();
        assert_eq!((device.site(), device.device(), leaf), ("lobby", "mirror-1", Leaf::Face));
        assert_eq!(device.topic("cmd/ping"), "visaged/v1/lobby/mirror-1/cmd/ping");
        assert_eq!(parse_topic("visaged/v1/Büro/鏡/rsp/config.set").unwrap().1, Leaf::Answer);
        for other in [
            "visaged/v1/a/b",
            "visaged/v2/a/b/face",
            "visaged/v1/a/b/cmd/ping",
            "visaged/v1//b/face",
            "visaged/v1/a/b/rsp/",
            "visaged/v1/a/b/rsp/x/y",
            "homeassistant/status",
            "",
        ] {
            assert_eq!(parse_topic(other), None, "{other}");
        }
    }

    #[test]
    fn members_of_a_later_version_are_passed_over() {
        let status: Status = serde_json::from_str(
            r#"{"schema":"visaged.status.v1","status":"online","boot":"7d8f0a44-53b6-4f3c-9d0a-1c2b3d4e5f60","mood":3}"#,
        )
        .unwrap();
        assert_eq!(status.status, Health::Online);
        assert!(status.reason.is_none());
    }

    #[test]
    fn a_command_is_as_the_contract_has_it() {
        let command =
            Command { schema: COMMAND_SCHEMA.into(), id: "r1.2".into(), args: serde_json::json!({}), not_after: None };
        assert_eq!(serde_json::to_string(&command).unwrap(), r#"{"schema":"visaged.cmd.v1","id":"r1.2","args":{}}"#);
        assert!(
            is_command_id("r1.2_A-z") && !is_command_id("") && !is_command_id("a b") && !is_command_id(&"x".repeat(65))
        );
    }
}
