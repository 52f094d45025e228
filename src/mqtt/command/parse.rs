//! From bytes to a [`Request`], and from its arguments to a [`Command`].

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    ArchiveSource, Chunk, ChunkArgs, Command, ConfigChange, ConfigSet, ConfigSetArgs, ConsentArgs, ConsentSetArgs, Id,
    InstallArgs, InstallRequest, LogLevelArgs, Name, NoArgs, Request, RollbackArgs,
};

/// The largest payload of a request, in bytes. Beyond it nothing is parsed.
pub const ARGS_BYTES: usize = 48 * 1024;
/// The largest part of an archive: in Base64 and with its envelope it stays below [`ARGS_BYTES`].
pub const CHUNK_BYTES: usize = 32 * 1024;

const CONFIRM_AFTER: Duration = Duration::from_secs(60);
const LONGEST_SECONDS: u32 = 31_536_000;
const LARGEST_ARCHIVE_BYTES: u64 = 1 << 30;
const MOST_CHUNKS: u32 = 65_536;

/// Why a payload is no request; says what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// The request's id, where it could be read.
    pub id: String,
    /// What is wrong.
    pub message: String,
}

/// Reads the envelope; `args` stays as it is.
pub(super) fn parse_request(payload: &[u8]) -> Result<Request, ParseError> {
    serde_json::from_slice(payload).map_err(|error| ParseError { id: id_of(payload), message: error.to_string() })
}

/// The id of what is no request, where it has one.
fn id_of(payload: &[u8]) -> String {
    let value: Value = serde_json::from_slice(payload).unwrap_or_default();
    let id = value.get("id").and_then(Value::as_str).unwrap_or_default();
    Id::try_from(id.to_owned()).map(String::from).unwrap_or_default()
}

/// Checks `args` as those of `name`.
///
/// # Errors
/// What is wrong with which of them.
pub fn parse_args(name: Name, args: &Map<String, Value>) -> Result<Command, String> {
    match name {
        Name::Ping => read(args).map(|NoArgs {}| Command::Ping),
        Name::Info => read(args).map(|NoArgs {}| Command::Info),
        Name::ConfigGet => read(args).map(|NoArgs {}| Command::ConfigGet),
        Name::Snapshot => read(args).map(|NoArgs {}| Command::Snapshot),
        Name::Restart => read(args).map(|NoArgs {}| Command::Restart),
        Name::ConfigSet => config_set(read(args)?),
        Name::ModelsInstall => install(read(args)?),
        Name::ModelsChunk => chunk(read(args)?),
        Name::ModelsRollback => read(args).map(|RollbackArgs { task }| Command::ModelsRollback { task }),
        Name::ConsentGrant => consent(true, read::<ConsentArgs>(args)?.for_s),
        Name::ConsentRevoke => consent(false, read::<ConsentArgs>(args)?.for_s),
        Name::ConsentSet => {
            let ConsentSetArgs { granted, for_s } = read(args)?;
            consent(granted, for_s)
        }
        Name::LogLevel => log_level(read(args)?),
    }
}

fn read<T: DeserializeOwned>(args: &Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(args.clone())).map_err(|error| format!("args: {error}"))
}

fn config_set(args: ConfigSetArgs) -> Result<Command, String> {
    let change = match (args.set, args.toml) {
        (Some(keys), None) => ConfigChange::Keys(keys),
        (None, Some(text)) => ConfigChange::Text(text),
        _ => return Err("args: give set or toml, one of them".into()),
    };
    if let Some(sha256) = &args.if_sha256 {
        hexadecimal("if_sha256", sha256)?;
    }
    let confirm_after = args.confirm_after_s.map_or(Ok(CONFIRM_AFTER), |s| match s {
        10..=600 => Ok(Duration::from_secs(s.into())),
        _ => Err("args.confirm_after_s: takes 10 to 600"),
    })?;
    Ok(Command::ConfigSet(ConfigSet { change, if_sha256: args.if_sha256, confirm_after }))
}

fn install(args: InstallArgs) -> Result<Command, String> {
    hexadecimal("sha256", &args.sha256)?;
    if !(1..=LARGEST_ARCHIVE_BYTES).contains(&args.size) {
        return Err(format!("args.size: takes 1 to {LARGEST_ARCHIVE_BYTES} bytes"));
    }
    let source = match (args.url, args.chunks) {
        (Some(url), None) if url.starts_with("https://") || url.starts_with("file://") => ArchiveSource::Url(url),
        (Some(_), None) => return Err("args.url: takes an https:// or a file:// address".into()),
        (None, Some(chunks)) => {
            let fits = (1..=MOST_CHUNKS).contains(&chunks.count)
                && (1..=CHUNK_BYTES as u32).contains(&chunks.size)
                && args.size.div_ceil(chunks.size.into()) == u64::from(chunks.count);
            if !fits {
                return Err(format!(
                    "args.chunks: takes 1 to {MOST_CHUNKS} parts of 1 to {CHUNK_BYTES} bytes that together make args.size"
                ));
            }
            ArchiveSource::Chunks(chunks)
        }
        _ => return Err("args: give url or chunks, one of them".into()),
    };
    Ok(Command::ModelsInstall(InstallRequest {
        task: args.task,
        version: args.version,
        source,
        sha256: args.sha256,
        size_bytes: args.size,
        signature: args.signature,
        expires: args.expires,
    }))
}

fn chunk(args: ChunkArgs) -> Result<Command, String> {
    let bytes = STANDARD.decode(&args.data).map_err(|error| format!("args.data: no Base64: {error}"))?;
    match bytes.len() {
        1..=CHUNK_BYTES => Ok(Command::ModelsChunk(Chunk { install: args.install, index: args.index, bytes })),
        _ => Err(format!("args.data: takes 1 to {CHUNK_BYTES} bytes")),
    }
}

fn consent(granted: bool, for_s: Option<u32>) -> Result<Command, String> {
    if !granted && for_s.is_some() {
        return Err("args.for_s: consent that is taken back does not come back by itself: leave it out".into());
    }
    Ok(Command::Consent { granted, lasting: lasting(for_s)? })
}

fn log_level(args: LogLevelArgs) -> Result<Command, String> {
    Ok(Command::LogLevel { level: args.level, lasting: lasting(args.for_s)? })
}

fn lasting(for_s: Option<u32>) -> Result<Option<Duration>, String> {
    match for_s {
        None => Ok(None),
        Some(s @ 1..=LONGEST_SECONDS) => Ok(Some(Duration::from_secs(s.into()))),
        Some(_) => Err(format!("args.for_s: takes 1 to {LONGEST_SECONDS} seconds")),
    }
}

fn hexadecimal(key: &str, text: &str) -> Result<(), String> {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match text.len() == 64 && text.bytes().all(digit) {
        true => Ok(()),
        false => Err(format!("args.{key}: takes 64 hexadecimal digits in lower case")),
    }
}
