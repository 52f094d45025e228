//! Commands: requests on `cmd/{name}`, answers on `rsp/{name}`. The contract stands in `docs/commands.md`.
//!
//! ```text
//! Incoming ─► Gate (parse, allow-list, rate, expiry, the last 256 ids) ─► Verdict: an Answer, or a Command to carry out
//! ```
//!
//! Invariants: no bytes whatever make this module panic; a request that is not retained gets exactly one final answer;
//! nothing is read further into than its limit of size; a [`Command`] that exists has passed every check that needs no
//! knowledge of the device. Knows no pictures, no disk and no clock: time comes in as an argument.

mod gate;
mod parse;
mod past;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::gate::{Accepted, Clock, ClockTrust, Gate, Limits, Verdict};
pub use self::parse::{ARGS_BYTES, CHUNK_BYTES, ParseError, parse_args};
pub use self::past::{Entry, IDS_KEPT, Past, PastError};
use crate::report::{Boot, Moment, schema_name};

schema_name!(
    /// Names the contract of [`Request`].
    CommandSchema = "visaged.cmd.v1"
);
schema_name!(
    /// Names the contract of [`Answer`].
    AnswerSchema = "visaged.rsp.v1"
);

/// What can be asked of a device: the level after `cmd/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Name {
    /// Whether it is there.
    #[serde(rename = "ping")]
    Ping,
    /// What it is.
    #[serde(rename = "info")]
    Info,
    /// The configuration in force, without secrets.
    #[serde(rename = "config.get")]
    ConfigGet,
    /// Another configuration, on trial.
    #[serde(rename = "config.set")]
    ConfigSet,
    /// Another model bundle.
    #[serde(rename = "models.install")]
    ModelsInstall,
    /// A part of a bundle that is sent in parts.
    #[serde(rename = "models.chunk")]
    ModelsChunk,
    /// The bundle before the one in use.
    #[serde(rename = "models.rollback")]
    ModelsRollback,
    /// A picture.
    #[serde(rename = "snapshot")]
    Snapshot,
    /// Consent is given.
    #[serde(rename = "consent.grant")]
    ConsentGrant,
    /// Consent is taken back.
    #[serde(rename = "consent.revoke")]
    ConsentRevoke,
    /// Either, for senders that know one topic only.
    #[serde(rename = "consent.set")]
    ConsentSet,
    /// Another log filter.
    #[serde(rename = "log.level")]
    LogLevel,
    /// A clean stop and a new start.
    #[serde(rename = "restart")]
    Restart,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Ping,
        Self::Info,
        Self::ConfigGet,
        Self::ConfigSet,
        Self::ModelsInstall,
        Self::ModelsChunk,
        Self::ModelsRollback,
        Self::Snapshot,
        Self::ConsentGrant,
        Self::ConsentRevoke,
        Self::ConsentSet,
        Self::LogLevel,
        Self::Restart,
    ];

    /// As in the topic.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Info => "info",
            Self::ConfigGet => "config.get",
            Self::ConfigSet => "config.set",
            Self::ModelsInstall => "models.install",
            Self::ModelsChunk => "models.chunk",
            Self::ModelsRollback => "models.rollback",
            Self::Snapshot => "snapshot",
            Self::ConsentGrant => "consent.grant",
            Self::ConsentRevoke => "consent.revoke",
            Self::ConsentSet => "consent.set",
            Self::LogLevel => "log.level",
            Self::Restart => "restart",
        }
    }

    /// The command of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.as_str() == text)
    }

    /// On unless commands are off altogether: it changes nothing and tells nothing that is not published anyway.
    pub fn is_always_allowed(self) -> bool {
        matches!(self, Self::Ping | Self::Info)
    }

    /// Whether it only reads: what is not, is remembered on disk before it is done.
    pub fn only_reads(self) -> bool {
        matches!(self, Self::Ping | Self::Info | Self::ConfigGet | Self::Snapshot)
    }

    /// The names that an allow-list must hold for this one; those that belong to another have none of their own.
    pub fn needs(self) -> &'static [Self] {
        match self {
            Self::Ping | Self::Info => &[],
            Self::ModelsChunk => &[Self::ModelsInstall],
            Self::ConsentSet => &[Self::ConsentGrant, Self::ConsentRevoke],
            Self::ConfigGet => &[Self::ConfigGet],
            Self::ConfigSet => &[Self::ConfigSet],
            Self::ModelsInstall => &[Self::ModelsInstall],
            Self::ModelsRollback => &[Self::ModelsRollback],
            Self::Snapshot => &[Self::Snapshot],
            Self::ConsentGrant => &[Self::ConsentGrant],
            Self::ConsentRevoke => &[Self::ConsentRevoke],
            Self::LogLevel => &[Self::LogLevel],
            Self::Restart => &[Self::Restart],
        }
    }

    /// Whether `allowed`, as configured, allows it.
    pub fn is_allowed(self, allowed: &BTreeSet<Self>) -> bool {
        self.needs().iter().all(|name| allowed.contains(name))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names a request: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl JsonSchema for Id {
    fn schema_name() -> Cow<'static, str> {
        "Id".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[A-Za-z0-9._-]{1,64}$",
            "description": "Names a request."
        })
    }
}

/// A moment in a request: any that RFC 3339 allows.
struct AnyMoment;

impl JsonSchema for AnyMoment {
    fn schema_name() -> Cow<'static, str> {
        "AnyMoment".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "description": "RFC 3339." })
    }
}

impl Id {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Id {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        match (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            true => Ok(Self(text)),
            false => Err("id takes 1 to 64 of A-Z a-z 0-9 . _ -"),
        }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request on topic `cmd/{name}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Names this contract.
    pub schema: CommandSchema,
    /// Names the request; the same again is answered with the same answer and not done twice.
    pub id: Id,
    /// What the command takes; which members these are depends on the topic.
    #[schemars(with = "Args")]
    pub args: Map<String, Value>,
    /// Refused when it arrives later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AnyMoment>")]
    pub not_after: Option<Moment>,
}

/// The arguments of every command, for the schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what `parse_args` takes")]
enum Args {
    /// `ping`, `info`, `config.get`, `snapshot`, `restart`.
    None(NoArgs),
    /// `config.set`.
    ConfigSet(ConfigSetArgs),
    /// `models.install`.
    ModelsInstall(InstallArgs),
    /// `models.chunk`.
    ModelsChunk(ChunkArgs),
    /// `models.rollback`.
    ModelsRollback(RollbackArgs),
    /// `consent.grant`, `consent.revoke`.
    Consent(ConsentArgs),
    /// `consent.set`.
    ConsentSet(ConsentSetArgs),
    /// `log.level`.
    LogLevel(LogLevelArgs),
}

/// None.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoArgs {}

/// Arguments of `config.set`: `set` or `toml`, not both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigSetArgs {
    /// Dotted keys with their new values; `null` goes back to the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Map<String, Value>>,
    /// A whole file. Where it holds what `config.get` shows in a secret's place, the secret stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toml: Option<String>,
    /// Done only where the text in force has this SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub if_sha256: Option<String>,
    /// Kept only if the daemon is healthy after so many seconds; 60 where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 600))]
    pub confirm_after_s: Option<u32>,
}

/// Arguments of `models.install`: `url` or `chunks`, not both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstallArgs {
    /// What the bundle is for: `detector`, `derl`, `identity`, `makeup`.
    pub task: String,
    /// Its version.
    pub version: String,
    /// Where the archive is: `https://` or `file://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The archive follows in parts on `cmd/models.chunk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<Chunks>,
    /// Of the archive.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// Of the archive, in bytes.
    #[schemars(range(min = 1))]
    pub size: u64,
    /// The whole text of the minisign signature file.
    pub signature: String,
    /// Not installed later than this.
    #[schemars(with = "AnyMoment")]
    pub expires: Moment,
}

/// How an archive is cut into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Chunks {
    /// How many.
    #[schemars(range(min = 1, max = 65_536))]
    pub count: u32,
    /// Bytes of each but the last.
    #[schemars(range(min = 1, max = 32_768))]
    pub size: u32,
}

/// Arguments of `models.chunk`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChunkArgs {
    /// The id of the `models.install` that it belongs to.
    pub install: Id,
    /// Counted from 0.
    pub index: u32,
    /// The bytes, in Base64 (RFC 4648, 4, with padding).
    pub data: String,
}

/// Arguments of `models.rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackArgs {
    /// What the bundle is for: `detector`, `derl`, `identity`, `makeup`.
    pub task: String,
}

/// Arguments of `consent.grant` and, without any, `consent.revoke`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsentArgs {
    /// For so many seconds; until it is changed, or the daemon ends, where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub for_s: Option<u32>,
}

/// Arguments of `consent.set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsentSetArgs {
    /// Given, or taken back.
    pub granted: bool,
    /// Given for so many seconds; until it is changed, or the daemon ends, where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub for_s: Option<u32>,
}

/// Arguments of `log.level`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevelArgs {
    /// As `log.filter`: `info`, `visaged=debug`.
    pub level: String,
    /// For so many seconds; until it is changed, or the daemon ends, where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub for_s: Option<u32>,
}

/// What a device is to do: parsed, and right as far as that can be told without the device.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// See [`Name::Ping`].
    Ping,
    /// See [`Name::Info`].
    Info,
    /// See [`Name::ConfigGet`].
    ConfigGet,
    /// See [`Name::ConfigSet`].
    ConfigSet(ConfigSet),
    /// See [`Name::ModelsInstall`].
    ModelsInstall(InstallRequest),
    /// See [`Name::ModelsChunk`].
    ModelsChunk(Chunk),
    /// See [`Name::ModelsRollback`].
    ModelsRollback {
        /// What the bundle is for.
        task: String,
    },
    /// See [`Name::Snapshot`].
    Snapshot,
    /// Consent is given or taken back.
    Consent {
        /// Given, or taken back.
        granted: bool,
        /// `None`: until it is changed.
        lasting: Option<Duration>,
    },
    /// See [`Name::LogLevel`].
    LogLevel {
        /// As `log.filter`.
        level: String,
        /// `None`: until it is changed.
        lasting: Option<Duration>,
    },
    /// See [`Name::Restart`].
    Restart,
}

/// A configuration to be tried.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigSet {
    /// What is to be changed.
    pub change: ConfigChange,
    /// Hexadecimal SHA-256 of the text that it is meant for.
    pub if_sha256: Option<String>,
    /// Kept only if the daemon is healthy after it.
    pub confirm_after: Duration,
}

/// What `config.set` changes.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigChange {
    /// Single keys; `Value::Null` goes back to the default.
    Keys(Map<String, Value>),
    /// All of it.
    Text(String),
}

/// A bundle to be installed: what [`InstallArgs`] holds, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct InstallRequest {
    /// What the bundle is for.
    pub task: String,
    /// Its version.
    pub version: String,
    /// Where the archive comes from.
    pub source: ArchiveSource,
    /// Of the archive, 64 hexadecimal digits in lower case.
    pub sha256: String,
    /// Of the archive.
    pub size_bytes: u64,
    /// The minisign signature file's text.
    pub signature: String,
    /// Not installed later.
    pub expires: Moment,
}

/// Where an archive comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchiveSource {
    /// `https://` or `file://`.
    Url(String),
    /// Parts that follow as [`Chunk`]s.
    Chunks(Chunks),
}

/// A part of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The request that it belongs to.
    pub install: Id,
    /// Counted from 0.
    pub index: u32,
    /// At most [`CHUNK_BYTES`].
    pub bytes: Vec<u8>,
}

/// An answer on topic `rsp/{name}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Names this contract.
    pub schema: AnswerSchema,
    /// The request's; empty where it could not be read.
    pub id: String,
    /// The command, as in the topic.
    pub name: String,
    /// How it stands.
    pub state: AnswerState,
    /// What the command gives, where it succeeded; or how far it is.
    pub result: Option<Map<String, Value>>,
    /// Why not, where it failed or was rejected.
    pub error: Option<AnswerError>,
    /// The run of the process that answers.
    pub boot: Boot,
    /// When it was answered.
    pub time: Moment,
}

impl Answer {
    /// `outcome` of the request `id` of the command `name`, as `boot` tells it at `time`.
    pub fn new(id: &str, name: &str, outcome: Outcome, boot: Boot, time: Moment) -> Self {
        let (state, result, error) = match outcome {
            Ok(result) => (AnswerState::Succeeded, Some(result), None),
            Err(Refusal { state, code, message }) => (state, None, Some(AnswerError { code, message })),
        };
        Self { schema: AnswerSchema::V1, id: id.into(), name: name.into(), state, result, error, boot, time }
    }

    /// Begun; `result` says how far it is.
    pub fn in_progress(id: &str, name: &str, result: Option<Map<String, Value>>, boot: Boot, time: Moment) -> Self {
        let state = AnswerState::InProgress;
        Self { schema: AnswerSchema::V1, id: id.into(), name: name.into(), state, result, error: None, boot, time }
    }

    /// What is said in its place where the broker takes nothing as large as it is.
    pub(crate) fn too_large(&self) -> Self {
        let refusal = Refusal::failed(
            ErrorCode::TooLarge,
            "the answer is larger than this broker takes (its maximum packet size)",
        );
        Self::new(&self.id, &self.name, Err(refusal), self.boot, self.time)
    }

    /// Whether another one follows.
    pub fn is_final(&self) -> bool {
        self.state != AnswerState::InProgress
    }
}

/// How a command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerState {
    /// Begun; the final answer follows, if need be from the next boot.
    InProgress,
    /// Done.
    Succeeded,
    /// Tried, and the former state stands again.
    Failed,
    /// Nothing was done.
    Rejected,
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what, where, what to do.
    pub message: String,
}

/// What kind of error it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// It is not what the schema says.
    Malformed,
    /// No command of this name.
    UnknownCommand,
    /// The configuration does not allow it.
    NotEnabled,
    /// It came too late, or the clock cannot tell.
    Expired,
    /// It is larger than a request may be, or its answer than the broker takes.
    TooLarge,
    /// Too many came in too short a time.
    RateLimited,
    /// Something is under way that must end first.
    Busy,
    /// The configuration rules it out.
    Forbidden,
    /// The arguments do not fit the command.
    InvalidArgs,
    /// The configuration would not be valid.
    InvalidConfig,
    /// It was tried and taken back.
    RolledBack,
    /// The signature does not hold.
    Signature,
    /// The content is not what was announced.
    Hash,
    /// The version does not fit.
    Version,
    /// It could not be fetched.
    Download,
    /// It does not work on this device.
    SelfTest,
    /// The disk did not take or give it.
    Storage,
    /// None of these.
    Internal,
}

/// Why a command ends without success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// [`AnswerState::Rejected`] or [`AnswerState::Failed`].
    pub state: AnswerState,
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// Nothing was done.
    pub fn rejected(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { state: AnswerState::Rejected, code, message: message.into() }
    }

    /// Tried, and the former state stands again.
    pub fn failed(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { state: AnswerState::Failed, code, message: message.into() }
    }
}

/// What a command gives.
pub type Outcome = Result<Map<String, Value>, Refusal>;

/// Where an answer goes beside `rsp/{name}`, and what comes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    /// The request's response topic, where it may be written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The request's correlation data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Vec<u8>>,
}

/// The longest response topic and correlation data that are used.
const LONGEST_PROPERTY_BYTES: usize = 1024;

impl ReplyTo {
    /// From a request's properties; what is not usable is left out.
    pub fn new(topic: Option<&str>, correlation: Option<&[u8]>) -> Self {
        Self {
            topic: topic.filter(|topic| is_response_topic(topic)).map(Into::into),
            correlation: correlation.filter(|data| data.len() <= LONGEST_PROPERTY_BYTES).map(Into::into),
        }
    }
}

/// Below `visaged/v1/`, and none of the topics that a device listens to or is known by: else whoever may send a command
/// to one device could speak in its name, or to others.
fn is_response_topic(topic: &str) -> bool {
    const TAKEN: [&str; 8] = ["cmd", "status", "info", "telemetry", "face", "summary", "gap", "rsp"];
    let Some(rest) = topic.strip_prefix("visaged/v1/") else { return false };
    let mut levels = rest.split('/');
    topic.len() <= LONGEST_PROPERTY_BYTES
        && !topic.contains(['+', '#'])
        && !topic.chars().any(char::is_control)
        && levels.all(|level| !level.is_empty() && !TAKEN.contains(&level))
}

/// A message on `cmd/{name}` as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The level after `cmd/`.
    pub name: String,
    /// Anything.
    pub payload: Vec<u8>,
    /// Kept by the broker, so nobody asks it now.
    pub retained: bool,
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// Names the message to the client, which takes the next ones only as these are answered.
    pub token: Token,
}

/// The answer to a request that nobody has room to look at.
pub fn no_room(incoming: &Incoming, boot: Boot, time: Moment) -> Answer {
    let id = match incoming.payload.len() {
        0..=ARGS_BYTES => {
            parse::parse_request(&incoming.payload).map_or_else(|error| error.id, |request| request.id.into())
        }
        _ => String::new(),
    };
    let refusal = Refusal::rejected(ErrorCode::Busy, "more requests wait than can be looked at: ask more slowly");
    Answer::new(&id, &incoming.name, Err(refusal), boot, time)
}

/// Names a message that is to be answered; see [`Incoming::token`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What the client tells whoever carries out commands.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A request came.
    Request(Incoming),
    /// The broker has this answer.
    Delivered(Box<Answer>),
}
