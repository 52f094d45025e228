//! `visaged check`: what the daemon would do with a configuration, what of it works, what does not, and why.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::Failure;
use crate::capture::{self, v4l2};
use crate::config::{Config, Images, LogFormat, MqttConfig, Pace, SourceConfig, SpoolStorage};
use crate::daemon::{Models, Wanted, consent_line};
use crate::frame::Converter;
use crate::models::{Bundle, BundleError, BundleFault, Store, Task};
use crate::mqtt::command::Name;
use crate::mqtt::{self, Topics};
use crate::pool::Pool;

/// The camera and the broker get this long to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Say what works, what does not, and why; change nothing.
#[derive(Debug, Args)]
#[command(after_help = "Exit: 0 if all works, 1 if something does not, 2 if the configuration is wrong.

Example:
  visaged check --config /etc/visaged/visaged.toml")]
pub struct CheckArgs {
    /// TOML file; without one the defaults are checked
    #[arg(long, short, value_name = "FILE", env = "VISAGED_CONFIG")]
    config: Option<PathBuf>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// What was found about one part.
#[derive(Debug, Serialize)]
struct Finding {
    part: &'static str,
    /// `null` where the part is switched off.
    works: Option<bool>,
    /// What it would do, or why it does not work and what to do.
    detail: String,
}

impl Finding {
    fn of(part: &'static str, result: Result<String, String>) -> Self {
        let works = Some(result.is_ok());
        Self { part, works, detail: result.unwrap_or_else(|reason| reason) }
    }

    fn off(part: &'static str, detail: &str) -> Self {
        Self { part, works: None, detail: detail.into() }
    }
}

/// Checks every part and prints what was found.
///
/// # Errors
/// Exit 2 for a wrong configuration, 1 where a part does not work.
pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), std::env::vars()).map_err(Failure::usage)?;
    let mut findings = vec![configuration(args, &config)];
    findings.push(Finding::of("models", models(&config)));
    findings.extend(Task::ALL.into_iter().filter(|task| task.is_optional()).map(|task| optional(&config, task)));
    findings.push(Finding::of("camera", camera(&config)));
    findings.push(match &config.mqtt {
        Some(mqtt) => Finding::of("broker", broker(&config, mqtt)),
        None => Finding::off("broker", "mqtt.enabled is false: nothing is published"),
    });
    findings.push(match &config.mqtt {
        Some(mqtt) => Finding::of("spool", spool(mqtt)),
        None => Finding::off("spool", "mqtt.enabled is false: nothing waits"),
    });
    findings.push(pictures(&config));
    findings.push(consent(&config));
    findings.push(listener("web", "the live page", config.web.as_ref().map(|web| web.listen)));
    findings.push(listener("metrics", "Prometheus metrics", config.metrics));
    print(&findings, args.json).map_err(Failure::failed)?;
    match findings.iter().any(|finding| finding.works == Some(false)) {
        true => Err(Failure::reported()),
        false => Ok(()),
    }
}

fn print(findings: &[Finding], json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::json!({ "findings": findings }));
    }
    for finding in findings {
        let mark = match finding.works {
            Some(true) => "works",
            Some(false) => "FAILS",
            None => "off",
        };
        writeln!(out, "{mark:<6} {:<14} {}", finding.part, finding.detail)?;
    }
    Ok(())
}

fn configuration(args: &CheckArgs, config: &Config) -> Finding {
    let file = args.config.as_ref().map_or("the defaults".to_string(), |path| path.display().to_string());
    let log = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "JSON",
        LogFormat::Journald => "the journal",
    };
    let events = match (config.report.face_events, config.report.summary_every) {
        (true, Some(every)) => format!("face events, and a summary every {} s", every.as_secs_f64()),
        (true, None) => "face events".into(),
        (false, Some(every)) => format!("only a summary every {} s", every.as_secs_f64()),
        (false, None) => "no events".into(),
    };
    Finding::of("configuration", Ok(format!("{file}; {events}; logs to {log}")))
}

fn models(config: &Config) -> Result<String, String> {
    let models = Models::load(&config.models, Wanted::of(config), config.nn).map_err(|error| error.to_string())?;
    let one = |bundle: &Bundle| {
        let manifest = bundle.manifest();
        format!("{} {} ({})", manifest.name, manifest.version, bundle.origin())
    };
    let used = models.bundles().map(one).collect::<Vec<_>>().join(", ");
    if models.notes.is_empty() { Ok(used) } else { Err(format!("{used} would run; {}", models.notes.join("; "))) }
}

/// A bundle that only commands and the try-on need.
fn optional(config: &Config, task: Task) -> Finding {
    let found = match (config.models.folder(task), &config.models.store) {
        (None, Some(store)) => Store::new(store).look(task).map(|started| started.bundle),
        (folder, _) => Bundle::load(task, folder),
    };
    let serves = match task {
        Task::Makeup => "for `visaged synth makeup|bare` and web.try_on",
        _ => "for `visaged embed`, `visaged synth identity`, web.try_on and privacy.images = \"avatar\"",
    };
    match found {
        Ok(bundle) => {
            let detail = format!("{} {} ({}): {serves}", task, bundle.version(), bundle.origin());
            Finding::of(task.name(), Ok(detail))
        }
        Err(BundleError { fault: BundleFault::Absent, .. }) => {
            Finding::off(task.name(), &format!("no bundle is installed or inside this program: {serves}"))
        }
        Err(error) => Finding::of(task.name(), Err(error.to_string())),
    }
}

/// Opens the source, and takes one frame through the conversion.
fn camera(config: &Config) -> Result<String, String> {
    let source = match &config.camera.source {
        SourceConfig::Clip { path, repeat, .. } => {
            SourceConfig::Clip { path: path.clone(), repeat: *repeat, pace: Pace::Fast }
        }
        other => other.clone(),
    };
    let mut opened = capture::open(&source).map_err(|error| explain(&source, &error))?;
    let pool = Pool::new(2);
    let deadline = Instant::now() + PATIENCE;
    let mut last = String::from("no frame came");
    while Instant::now() < deadline {
        match opened.next_frame(&pool, Duration::from_millis(500)) {
            Ok(frame) => {
                let mut picture = crate::frame::RgbImage::default();
                Converter::new().to_rgb(&frame, &mut picture).map_err(|error| error.to_string())?;
                return Ok(opened.describe());
            }
            Err(error) if error.is_recoverable() => last = error.to_string(),
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(last)
}

/// Where a camera is missing, names those that are there.
fn explain(source: &SourceConfig, error: &capture::CaptureError) -> String {
    let SourceConfig::V4l2 { .. } = source else { return error.to_string() };
    let found: Vec<String> =
        v4l2::list().into_iter().flatten().map(|camera| camera.device.display().to_string()).collect();
    match found.as_slice() {
        [] => format!("{error} (no camera was found on this machine)"),
        found => format!("{error} (cameras found: {})", found.join(", ")),
    }
}

/// Requests the line, unless a running daemon has it, and reads it once.
/// Whether pictures may leave this device.
fn pictures(config: &Config) -> Finding {
    let allows =
        |mqtt: &MqttConfig| mqtt.commands.as_ref().is_some_and(|commands| Name::Snapshot.is_allowed(&commands.allow));
    match config.privacy.images {
        Images::Never => Finding::off("pictures", "privacy.images is \"never\": none leaves this device"),
        Images::Avatar if config.mqtt.as_ref().is_some_and(allows) => {
            Finding::of("pictures", Ok("privacy.images is \"avatar\": the command snapshot gets an avatar".into()))
        }
        Images::Raw if config.mqtt.as_ref().is_some_and(allows) => {
            Finding::of("pictures", Ok("privacy.images is \"raw\": the command snapshot gets a frame".into()))
        }
        Images::Avatar | Images::Raw => Finding::off(
            "pictures",
            "privacy.images lets pictures leave, but mqtt.commands.allow does not hold \"snapshot\": none does",
        ),
    }
}

fn consent(config: &Config) -> Finding {
    let Some(gpio) = &config.privacy.consent_gpio else {
        let detail = match config.privacy.require_consent {
            true => "privacy.require_consent is true: the commands consent.grant or consent.set give it",
            false => "privacy.require_consent is false: nothing waits for consent",
        };
        return Finding::off("consent", detail);
    };
    let level = consent_line::open(gpio).and_then(|line| line.is_active());
    let told = |active| {
        let level = if active { "active: it grants consent" } else { "not active: it grants none" };
        format!("line {} of {} is {level}", gpio.line, gpio.chip.display())
    };
    Finding::of("consent", level.map(told).map_err(|error| error.to_string()))
}

fn broker(config: &Config, mqtt: &MqttConfig) -> Result<String, String> {
    let topics = Topics::new(&config.device).map_err(|error| error.to_string())?;
    mqtt::probe(mqtt, &topics, PATIENCE).map_err(|error| error.to_string())?;
    let tls = if mqtt.tls.is_some() { " over TLS" } else { "" };
    Ok(format!("{}:{}{tls} takes us in; events go to {}", mqtt.host, mqtt.port, topics.face()))
}

/// Whether this user could write the spool, and whether there is room for it; nothing is made or opened.
fn spool(mqtt: &MqttConfig) -> Result<String, String> {
    let SpoolStorage::Disk { path, max_bytes, sync_every, sync_events } = &mqtt.spool.storage else {
        return Ok(format!("in memory: {} events at most, and a restart loses them", mqtt.queue_events));
    };
    let key = format!("mqtt.spool.path = \"{}\"", path.display());
    let there = nearest(path).map_err(|error| format!("{key}: {error}: name a folder that this user may write"))?;
    rustix::fs::access(there, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).map_err(|error| {
        format!("{key}: {}: {error}: let this user write there, or name another folder", there.display())
    })?;
    let system = rustix::fs::statvfs(there).map_err(|error| format!("{key}: {error}"))?;
    let room = system.f_bavail.saturating_mul(system.f_frsize).saturating_add(held(path));
    if room < *max_bytes {
        return Err(format!(
            "{key}: room for {:.1} MB where mqtt.spool.max_bytes asks for {:.1} MB: free some, or ask for less",
            megabytes(room),
            megabytes(*max_bytes)
        ));
    }
    Ok(format!(
        "{}: {:.1} MB at most, room for {:.1} MB; a power cut loses {} s or {sync_events} events that the broker does not have",
        path.display(),
        megabytes(*max_bytes),
        megabytes(room),
        sync_every.as_secs_f64()
    ))
}

/// The folder itself, or the one that it would be made in.
fn nearest(path: &Path) -> std::io::Result<&Path> {
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(path);
    match there.metadata()?.is_dir() {
        true => Ok(there),
        false => Err(std::io::Error::new(std::io::ErrorKind::NotADirectory, "there is a file in the way")),
    }
}

/// Bytes of the disk that the spool has already.
fn held(path: &Path) -> u64 {
    let files = std::fs::read_dir(path).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn listener(part: &'static str, what: &str, listen: Option<SocketAddr>) -> Finding {
    let Some(listen) = listen else { return Finding::off(part, &format!("{part}.enabled is false")) };
    let result = TcpListener::bind(listen).map(|_| format!("{what} at http://{listen}/"));
    Finding::of(
        part,
        result.map_err(|error| format!("{part}.listen = \"{listen}\": {error}: choose another address or port")),
    )
}
