//! `visaged demo`: the whole way on the bundled clip, with an MQTT broker inside the process and a live page.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use super::drive::drive;
use super::logging;
use super::{Failure, settings};
use crate::capture::clip::Clip;
use crate::config::{
    Config, DeviceConfig, LogConfig, LogFormat, ModelsConfig, MqttConfig, Pace, ReportConfig, SpoolConfig, WebConfig,
};
use crate::daemon::{Daemon, OpenSource, Parts, StartError};
use crate::mirror::web::WebError;
use crate::models::{Bundle, Task};
use crate::mqtt::broker::Broker;
use crate::mqtt::{Published, Tap};
use crate::nn::Settings;

/// Two people who turn their heads and smile.
pub(super) static CLIP: &[u8] = include_bytes!("../../assets/demo.gif");
const CLIP_CREDIT: &str = "clip: intel-iot-devkit/sample-videos (CC BY 4.0; unmodified preview)";
const PAGE_PORT: u16 = 8080;

/// Show the whole way on a bundled clip: no camera, no set-up.
#[derive(Debug, Args)]
#[command(after_help = "Watch the messages from another terminal (the port is printed at the start):
  mosquitto_sub -V 5 -h 127.0.0.1 -p PORT -v -t 'visaged/#'

Examples:
  visaged demo                             until Ctrl-C, with the live page
  visaged demo --seconds 20 --json --no-web  every MQTT message as a JSON line")]
pub struct DemoArgs {
    /// Stop after this many seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Print every MQTT message published, one JSON line {"topic","payload"} each
    #[arg(long)]
    json: bool,
    /// Serve no live page
    #[arg(long)]
    no_web: bool,
    /// Port of the live page on 127.0.0.1 [default: 8080, or any free one]
    #[arg(long, value_name = "PORT", conflicts_with = "no_web")]
    web_port: Option<u16>,
    /// Port of the MQTT broker on 127.0.0.1 [default: any free one]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    mqtt_port: u16,
}

/// Runs the demonstration.
///
/// # Errors
/// Exit 1 where a port asked for is in use or a stage cannot go on.
pub fn run(args: &DemoArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    logging::start(&LogConfig { filter: log_filter(), format: LogFormat::Text }).map_err(Failure::failed)?;
    let nn = settings()?;
    let broker = Broker::start(args.mqtt_port).map_err(Failure::failed)?;
    let closed = Arc::new(AtomicBool::new(false));
    let tap = printer(args.json, Arc::clone(&closed));
    let daemon = start(args, &broker, &tap, nn).map_err(Failure::failed)?;
    greet(&broker, &daemon);
    let until = args.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    drive(daemon, until, |_| {}, || closed.load(Ordering::Relaxed))?;
    drop(broker);
    Ok(())
}

/// The broker inside takes every connection that is closed without a word for an error; here it is none.
fn log_filter() -> String {
    std::env::var("VISAGED_LOG").unwrap_or_else(|_| "warn,rumqttd=off".into())
}

/// With the page on its usual port, or on any free one where that is taken and none was asked for.
fn start(args: &DemoArgs, broker: &Broker, tap: &Tap, nn: Settings) -> Result<Daemon, StartError> {
    let page = |port| (!args.no_web).then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let begin = |listen| {
        Daemon::start(
            config(broker, listen, nn),
            Parts { open_source: Some(clip()), tap: Some(Arc::clone(tap)), ..Parts::default() },
        )
    };
    match begin(page(args.web_port.unwrap_or(PAGE_PORT))) {
        Err(StartError::Web(WebError::PortInUse { .. })) if args.web_port.is_none() => begin(page(0)),
        result => result,
    }
}

fn config(broker: &Broker, page: Option<SocketAddr>, nn: Settings) -> Config {
    Config {
        device: DeviceConfig { site: "demo".into(), name: "clip".into() },
        mqtt: Some(MqttConfig {
            host: broker.address().ip().to_string(),
            port: broker.address().port(),
            telemetry_every: Duration::from_secs(5),
            spool: SpoolConfig::MEMORY,
            // What was asked would have to be remembered on disk.
            commands: None,
            ..MqttConfig::default()
        }),
        report: ReportConfig { summary_every: Some(Duration::from_secs(10)), ..ReportConfig::default() },
        web: page.map(|listen| WebConfig {
            listen,
            try_on: Task::ALL.into_iter().any(|task| task.is_optional() && Bundle::is_built_in(task)),
        }),
        models: ModelsConfig::BUILT_IN,
        nn,
        ..Config::default()
    }
}

fn clip() -> OpenSource {
    Box::new(|| Ok(Box::new(Clip::from_bytes("the bundled clip", CLIP, true, Pace::RealTime)?)))
}

fn greet(broker: &Broker, daemon: &Daemon) {
    if let Some(page) = daemon.page_address() {
        eprintln!("live page:  http://{page}/");
    }
    let address = broker.address();
    eprintln!("messages:   mosquitto_sub -V 5 -h {} -p {} -v -t 'visaged/#'", address.ip(), address.port());
    eprintln!("{CLIP_CREDIT}");
}

/// Prints each message; a reader who goes away ends the demonstration.
fn printer(json: bool, closed: Arc<AtomicBool>) -> Tap {
    Arc::new(move |message: &Published<'_>| {
        let line = if json { json_line(message) } else { for_people(message) };
        let mut stdout = std::io::stdout().lock();
        if line.is_some_and(|line| writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err()) {
            closed.store(true, Ordering::Relaxed);
        }
    })
}

/// The payload stands in the line byte for byte as it was published; one that is no JSON (a retained message taken back)
/// is `null`.
fn json_line(message: &Published<'_>) -> Option<String> {
    let topic = serde_json::to_string(message.topic).ok()?;
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(message.payload).is_ok();
    let payload = std::str::from_utf8(message.payload).ok().filter(|_| is_json).unwrap_or("null");
    Some(format!("{{\"topic\":{topic},\"payload\":{payload}}}"))
}

/// What a person wants to see of a message; `None` for telemetry and the like.
fn for_people(message: &Published<'_>) -> Option<String> {
    let payload: serde_json::Value = serde_json::from_slice(message.payload).ok()?;
    let name = message.topic.rsplit('/').next()?;
    let text = |key: &str| payload.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
    let time = text("time").get(11..19).unwrap_or_default().to_string();
    match name {
        "face" => {
            let emotion = text("emotion");
            let percent = 100.0 * payload.get("probabilities")?.get(emotion)?.as_f64()?;
            let track = payload.get("track")?;
            Some(format!("{time}  face {track}  {:<7} {emotion:<10} {percent:3.0} %", text("event")))
        }
        "status" => Some(format!("          status  {} {}", text("status"), text("reason"))),
        "summary" => Some(format!("{time}  summary {}", payload.get("people_by_emotion")?)),
        _ => None,
    }
}
