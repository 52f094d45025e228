//! Reads a [`Config`] from TOML and the environment, and finds every error at once.
//!
//! Invariant: reading goes on after an error with the default in its place, so that one run of `visaged check` shows all
//! that is wrong; a `Config` is given out only when nothing is.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::{
    Backoff, CameraConfig, ClientCertificate, CommandsConfig, Config, ConsentGpio, DeviceConfig, ExpressionConfig,
    FacesConfig, GpioBias, HomeAssistantConfig, Images, LogConfig, LogFormat, Login, ModelsConfig, MqttConfig, Pace,
    PrivacyConfig, ReportConfig, SourceConfig, SpoolConfig, SpoolStorage, TlsConfig, WebConfig,
};
use crate::frame::PixelFormat;
use crate::models::{IdentityManifest, ModelKey, StoreSettings};
use crate::mqtt::command::Name;
use crate::nn::{KERNELS_VARIABLE, Settings};

/// The environment's overrides begin with this; `VISAGED_MQTT__HOST` is `mqtt.host`.
const ENV_PREFIX: &str = "VISAGED_";
const ENV_SEPARATOR: &str = "__";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("configuration {path}: {source}: name an existing file with --config")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("configuration {path}: {message}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Line, column and what was expected.
        message: String,
    },
    /// Keys or values are wrong; all of them.
    #[error("{}", Lines(.0))]
    Invalid(Vec<Fault>),
}

/// One wrong key or value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Dotted, `mqtt.port`.
    pub key: String,
    /// As it was written; empty where the key itself is wrong or missing. Secrets are not repeated.
    pub value: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}: {}", self.key, self.reason),
            value => write!(f, "{} = {}: {}", self.key, value, self.reason),
        }
    }
}

struct Lines<'a>(&'a [Fault]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads `file` (none: defaults alone), then lays the overrides found in `environment` over it.
    ///
    /// # Errors
    /// [`ConfigError`]; `Invalid` holds every fault of the file and of the environment.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        match file {
            None => Self::from_table(Table::new(), environment),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
                Self::from_text(path, &text, environment)
            }
        }
    }

    /// As [`Self::load`], from a text that stands, or will stand, in `file`.
    ///
    /// # Errors
    /// The same.
    pub fn from_text(
        file: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let table = text
            .parse::<Table>()
            .map_err(|e| ConfigError::Syntax { path: file.into(), message: e.to_string().trim_end().into() })?;
        Self::from_table(table, environment)
    }

    fn from_table(
        mut table: Table,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let faults = RefCell::new(Vec::new());
        let mut kernels = None;
        for (name, value) in environment {
            if name == KERNELS_VARIABLE {
                kernels = Some(value);
            } else if let Some(path) = override_path(&name) {
                lay_over(&mut table, &path, &value, &faults);
            }
        }
        let mut config = read_config(table, &faults);
        match config.nn.with_kernels(kernels.as_deref()) {
            Ok(settings) => config.nn = settings,
            Err(error) => faults.borrow_mut().push(Fault {
                key: KERNELS_VARIABLE.into(),
                value: kernels.unwrap_or_default(),
                reason: error.0.to_string(),
            }),
        }
        let faults = faults.into_inner();
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(faults)) }
    }
}

/// The dotted keys, of those given, that `environment` sets: a file that says otherwise has no effect there.
pub fn overridden<'k>(keys: &'k [String], environment: &[(String, String)]) -> Vec<&'k str> {
    let set: Vec<String> =
        environment.iter().filter_map(|(name, _)| override_path(name)).map(|path| path.join(".")).collect();
    keys.iter().map(String::as_str).filter(|key| set.iter().any(|set| set == key)).collect()
}

fn override_path(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix(ENV_PREFIX)?;
    let path: Vec<String> = rest.split(ENV_SEPARATOR).map(str::to_lowercase).collect();
    (path.len() >= 2).then_some(path)
}

fn lay_over(table: &mut Table, path: &[String], text: &str, faults: &RefCell<Vec<Fault>>) {
    let (Some(key), Some(sections)) = (path.last(), path.get(..path.len() - 1)) else { return };
    let mut at = table;
    for section in sections {
        let next = at.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(next) = next else {
            faults.borrow_mut().push(Fault {
                key: path.join("."),
                value: String::new(),
                reason: format!("set by the environment, but {section} is no table in the file"),
            });
            return;
        };
        at = next;
    }
    at.insert(key.clone(), environment_value(text));
}

/// A number or a truth value where the text is one, else the text itself.
fn environment_value(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return Value::Integer(number);
    }
    if let Ok(number) = text.parse::<f64>() {
        return Value::Float(number);
    }
    match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        _ => Value::String(text.into()),
    }
}

fn read_config(table: Table, faults: &RefCell<Vec<Fault>>) -> Config {
    let mut root = Section { path: String::new(), table, faults, asked: Vec::new() };
    let config = Config {
        device: read_device(root.section("device")),
        camera: read_camera(root.section("camera")),
        faces: read_faces(root.section("faces")),
        expression: read_expression(root.section("expression")),
        report: read_report(root.section("report")),
        mqtt: read_mqtt(root.section("mqtt")),
        web: read_web(root.section("web")),
        metrics: read_listener(root.section("metrics"), "127.0.0.1:9464"),
        privacy: read_privacy(root.section("privacy")),
        models: read_models(root.section("models")),
        nn: read_nn(root.section("nn")),
        log: read_log(root.section("log")),
    };
    read_deployment(root.section("deployment"));
    root.finish();
    config
}

fn read_device(mut s: Section<'_>) -> DeviceConfig {
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let host = if topic_level(&host).is_ok() { host } else { "visaged".into() };
    let device = DeviceConfig {
        site: s.get("site", DeviceConfig::default().site, |t: &String| topic_level(t)),
        name: s.get("name", host, |t: &String| topic_level(t)),
    };
    s.finish();
    device
}

/// One level of an MQTT topic name (MQTT 5.0, 4.7), short enough for a client identifier.
fn topic_level(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > 64 {
        return Err("takes 1 to 64 bytes".into());
    }
    if text.chars().any(|c| matches!(c, '/' | '+' | '#') || c.is_control()) {
        return Err("is one level of an MQTT topic: no '/', '+', '#' and no control characters".into());
    }
    Ok(())
}

/// A whole topic, or nothing.
fn topic(text: &str) -> Result<(), String> {
    match text.len() <= 256 && !text.chars().any(|c| matches!(c, '+' | '#') || c.is_control()) {
        true => Ok(()),
        false => Err("is an MQTT topic of up to 256 bytes: no '+', '#' and no control characters".into()),
    }
}

fn read_camera(mut s: Section<'_>) -> CameraConfig {
    let defaults = CameraConfig::default();
    let kind = s.get("source", "v4l2".to_string(), one_of(&["v4l2", "clip", "pattern"]));
    let source = match kind.as_str() {
        "clip" => SourceConfig::Clip {
            path: s.required_path("path", "a GIF, an MJPEG AVI, or a folder of pictures"),
            repeat: s.get("repeat", true, any),
            pace: match s.get("pace", "real-time".to_string(), one_of(&["real-time", "fast"])).as_str() {
                "fast" => Pace::Fast,
                _ => Pace::RealTime,
            },
        },
        "pattern" => SourceConfig::Pattern {
            width_px: s.get("width_px", 640, within(16, 4096)),
            height_px: s.get("height_px", 480, within(16, 4096)),
            fps: s.get("fps", 30, within(1, 240)),
        },
        _ => SourceConfig::V4l2 {
            device: s.get("device", PathBuf::from("/dev/video0"), any),
            format: pixel_format(&mut s),
            width_px: s.get("width_px", 640, within(16, 8192)),
            height_px: s.get("height_px", 480, within(16, 8192)),
            fps: s.get("fps", 30, within(1, 240)),
        },
    };
    for key in ["device", "format", "path", "repeat", "pace", "width_px", "height_px", "fps"] {
        s.refuse(key, &format!("has no meaning where camera.source is \"{kind}\""));
    }
    let camera = CameraConfig {
        source,
        mirror: s.get("mirror", defaults.mirror, any),
        stall_timeout: s.seconds("stall_timeout_s", defaults.stall_timeout, 0.5, 600.0),
        reopen_backoff: s.backoff("reopen_first_s", "reopen_longest_s", defaults.reopen_backoff),
    };
    s.finish();
    camera
}

fn pixel_format(s: &mut Section<'_>) -> Option<PixelFormat> {
    const NAMES: [&str; 8] = ["auto", "YUYV", "UYVY", "NV12", "GREY", "RGB3", "BGR3", "MJPG"];
    match s.get("format", "auto".to_string(), one_of(&NAMES)).as_str() {
        "YUYV" => Some(PixelFormat::Yuyv),
        "UYVY" => Some(PixelFormat::Uyvy),
        "NV12" => Some(PixelFormat::Nv12),
        "GREY" => Some(PixelFormat::Grey),
        "RGB3" => Some(PixelFormat::Rgb3),
        "BGR3" => Some(PixelFormat::Bgr3),
        "MJPG" => Some(PixelFormat::Mjpg),
        _ => None,
    }
}

fn read_faces(mut s: Section<'_>) -> FacesConfig {
    let defaults = FacesConfig::default();
    let faces = FacesConfig {
        min_face_px: s.get("min_face_px", defaults.min_face_px, within(12, 2000)),
        min_score: s.get("min_score", defaults.min_score, within_f32(0.05, 0.99)),
        max_faces: s.get("max_faces", defaults.max_faces, |n| within(1, 256)(&(*n as u32))),
        leave_after: s.seconds("leave_after_s", defaults.leave_after, 0.1, 60.0),
    };
    s.finish();
    faces
}

fn read_expression(mut s: Section<'_>) -> ExpressionConfig {
    let defaults = ExpressionConfig::default();
    let expression = ExpressionConfig {
        half_life: s.seconds("half_life_s", defaults.half_life, 0.0, 60.0),
        hysteresis: s.get("hysteresis", defaults.hysteresis, within_f32(0.0, 0.9)),
        hold: s.seconds("hold_s", defaults.hold, 0.0, 60.0),
        min_quality: s.get("min_quality", defaults.min_quality, within_f32(0.0, 1.0)),
    };
    s.finish();
    expression
}

fn read_report(mut s: Section<'_>) -> ReportConfig {
    let defaults = ReportConfig::default();
    let report = ReportConfig {
        face_events: s.get("face_events", defaults.face_events, any),
        sample_every: s.optional_seconds("sample_every_s", defaults.sample_every, 3600.0),
        summary_every: s.optional_seconds("summary_every_s", defaults.summary_every, 86_400.0),
        enter_after: s.seconds("enter_after_s", defaults.enter_after, 0.0, 60.0),
    };
    s.finish();
    report
}

fn read_mqtt(mut s: Section<'_>) -> Option<MqttConfig> {
    let defaults = MqttConfig::default();
    let enabled = s.get("enabled", true, any);
    let tls = s.optional_section("tls").map(read_tls);
    let home_assistant = s.optional_section("home_assistant").and_then(read_home_assistant);
    let spool = read_spool(s.section("spool"));
    let commands = read_commands(s.section("commands"));
    let port = s.get("port", if tls.is_some() { 8883 } else { defaults.port }, |p| {
        if *p == 0 { Err("takes 1 to 65535".into()) } else { Ok(()) }
    });
    let mqtt = MqttConfig {
        host: s.get("host", defaults.host, |h: &String| {
            if h.is_empty() || h.contains("://") || h.contains(char::is_whitespace) {
                Err("is a host name or an address without scheme; the port has a key of its own".into())
            } else {
                Ok(())
            }
        }),
        port,
        tls,
        login: read_login(&mut s),
        keep_alive: s.seconds("keep_alive_s", defaults.keep_alive, 1.0, 3600.0),
        reconnect_backoff: s.backoff("reconnect_first_s", "reconnect_longest_s", defaults.reconnect_backoff),
        queue_events: s.get("queue_events", defaults.queue_events, |n| within(1, 10_000_000)(&(*n as u32))),
        spool,
        telemetry_every: s.seconds("telemetry_every_s", defaults.telemetry_every, 1.0, 86_400.0),
        home_assistant,
        commands,
    };
    s.finish();
    enabled.then_some(mqtt)
}

fn read_commands(mut s: Section<'_>) -> Option<CommandsConfig> {
    let defaults = CommandsConfig::default();
    let enabled = s.get("enabled", true, any);
    let names =
        s.get("allow", Vec::new(), |names: &Vec<String>| match names.iter().find(|name| Name::parse(name).is_none()) {
            None => Ok(()),
            Some(unknown) => Err(format!("there is no command {unknown:?}: known are {}", known_commands())),
        });
    let commands = CommandsConfig {
        allow: names.iter().filter_map(|name| Name::parse(name)).collect(),
        burst: s.get("burst", defaults.burst, within(1, 1000)),
        per_second: s.get("per_second", defaults.per_second, |n| match (0.01..=100.0).contains(n) {
            true => Ok(()),
            false => Err("takes 0.01 to 100".into()),
        }),
        path: s.get("path", defaults.path, |p: &PathBuf| absolute_folder(p)),
    };
    s.finish();
    enabled.then_some(commands)
}

fn known_commands() -> String {
    let names: Vec<_> = Name::ALL.iter().map(|name| name.as_str()).collect();
    names.join(", ")
}

fn absolute_folder(path: &Path) -> Result<(), String> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err("is the absolute path of a folder".into()),
    }
}

fn read_spool(mut s: Section<'_>) -> SpoolConfig {
    let defaults = SpoolConfig::default();
    let kind = s.get("storage", "disk".to_string(), one_of(&["disk", "memory"]));
    let storage = match (kind.as_str(), defaults.storage) {
        ("disk", SpoolStorage::Disk { path, max_bytes, sync_every, sync_events }) => SpoolStorage::Disk {
            path: s.get("path", path, |p: &PathBuf| absolute_folder(p)),
            max_bytes: s.get("max_bytes", max_bytes, |n: &u64| match (1 << 20..=1 << 36).contains(n) {
                true => Ok(()),
                false => Err("takes bytes from 1048576 (1 MiB) to 68719476736 (64 GiB)".into()),
            }),
            sync_every: s.seconds("sync_every_s", sync_every, 0.05, 3600.0),
            sync_events: s.get("sync_events", sync_events, |n| within(1, 1024)(&(*n as u32))),
        },
        _ => SpoolStorage::Memory,
    };
    for key in ["path", "max_bytes", "sync_every_s", "sync_events"] {
        s.refuse(key, &format!("has no meaning where mqtt.spool.storage is \"{kind}\""));
    }
    let max_age = s.optional_seconds("max_age_s", defaults.max_age, 31_536_000.0);
    s.finish();
    SpoolConfig { storage, max_age }
}

fn read_login(s: &mut Section<'_>) -> Option<Login> {
    let user: String = s.get("user", String::new(), any);
    let mut password: String = s.get("password", String::new(), any);
    let file: PathBuf = s.get("password_file", PathBuf::new(), any);
    if !file.as_os_str().is_empty() {
        match std::fs::read_to_string(&file) {
            Ok(text) if password.is_empty() => password = text.trim_end_matches(['\r', '\n']).to_string(),
            Ok(_) => s.fault("password_file", "", "give password or password_file, not both"),
            Err(e) => s.fault("password_file", &file.display().to_string(), &format!("cannot be read: {e}")),
        }
    }
    if user.is_empty() && !password.is_empty() {
        s.fault("user", "", "is missing, but a password is given");
    }
    (!user.is_empty()).then_some(Login { user, password })
}

fn read_tls(mut s: Section<'_>) -> TlsConfig {
    let ca_file = s.required_path("ca_file", "the PEM file of the authorities that sign the broker's certificate");
    let certificate_file: PathBuf = s.get("certificate_file", PathBuf::new(), any);
    let key_file: PathBuf = s.get("key_file", PathBuf::new(), any);
    let given = |p: &PathBuf| !p.as_os_str().is_empty();
    if given(&certificate_file) != given(&key_file) {
        s.fault("certificate_file", "", "certificate_file and key_file go together: give both or none");
    }
    let client = given(&certificate_file).then_some(ClientCertificate { certificate_file, key_file });
    s.finish();
    TlsConfig { ca_file, client }
}

fn read_home_assistant(mut s: Section<'_>) -> Option<HomeAssistantConfig> {
    let enabled = s.get("enabled", true, any);
    let prefix = s.get("prefix", "homeassistant".to_string(), |t: &String| topic_level(t));
    let versions_topic = s.get("versions_topic", String::new(), |t: &String| topic(t));
    s.finish();
    let versions_topic = Some(versions_topic).filter(|topic| !topic.is_empty());
    enabled.then_some(HomeAssistantConfig { prefix, versions_topic })
}

fn read_web(mut s: Section<'_>) -> Option<WebConfig> {
    let try_on = s.get("try_on", false, any);
    read_listener(s, "127.0.0.1:8080").map(|listen| WebConfig { listen, try_on })
}

fn read_listener(mut s: Section<'_>, default: &str) -> Option<SocketAddr> {
    let enabled = s.get("enabled", false, any);
    let listen: String = s.get("listen", default.to_string(), |t: &String| {
        t.parse::<SocketAddr>().map(drop).map_err(|_| format!("is an address with a port, such as \"{default}\""))
    });
    s.finish();
    listen.parse().ok().filter(|_| enabled)
}

fn read_nn(mut s: Section<'_>) -> Settings {
    let defaults = Settings::default();
    let threads = s.get("threads", defaults.threads.get() as u32, within(1, 64));
    s.finish();
    Settings { threads: NonZeroUsize::new(threads as usize).unwrap_or(defaults.threads), ..defaults }
}

fn read_models(mut s: Section<'_>) -> ModelsConfig {
    let mut folder = |key| {
        let path: PathBuf = s.get(key, PathBuf::new(), any);
        (!path.as_os_str().is_empty()).then_some(path)
    };
    let (detector, derl) = (folder("detector"), folder("derl"));
    let (identity, makeup) = (folder("identity"), folder("makeup"));
    let models = ModelsConfig { detector, derl, identity, makeup, store: read_store(&mut s) };
    s.finish();
    models
}

fn read_store(s: &mut Section<'_>) -> Option<StoreSettings> {
    let defaults = StoreSettings::default();
    let path =
        s.get("store", defaults.path, |path: &PathBuf| match path.is_absolute() || path.as_os_str().is_empty() {
            true => Ok(()),
            false => Err("is the absolute path of a folder, or empty for no store".into()),
        });
    let keys = s.get("keys", Vec::new(), |keys: &Vec<String>| {
        keys.iter().try_for_each(|key| key.parse::<ModelKey>().map(drop).map_err(|error| format!("{key} {error}")))
    });
    let ca_file: PathBuf = s.get("ca_file", PathBuf::new(), any);
    let settings = StoreSettings {
        keys: keys.iter().filter_map(|key| key.parse().ok()).collect(),
        max_archive_bytes: s.get("max_archive_bytes", defaults.max_archive_bytes, |n: &u64| {
            let allowed = (64 << 10..=256 << 20).contains(n);
            if allowed { Ok(()) } else { Err("takes bytes from 65536 (64 KiB) to 268435456 (256 MiB)".into()) }
        }),
        ca_file: (!ca_file.as_os_str().is_empty()).then_some(ca_file),
        trial: s.seconds("trial_s", defaults.trial, 1.0, 86_400.0),
        path,
    };
    (!settings.path.as_os_str().is_empty()).then_some(settings)
}

fn read_log(mut s: Section<'_>) -> LogConfig {
    let filter = s.get("filter", "info".to_string(), |t: &String| {
        tracing_subscriber::EnvFilter::try_new(t)
            .map(drop)
            .map_err(|e| format!("is no log filter ({e}): try \"info\" or \"visaged=debug\""))
    });
    let format = match s.get("format", "text".to_string(), one_of(&["text", "json", "journald"])).as_str() {
        "json" => LogFormat::Json,
        "journald" => LogFormat::Journald,
        _ => LogFormat::Text,
    };
    s.finish();
    LogConfig { filter, format }
}

/// Only what this version can keep is accepted; a promise of privacy that is not kept would be worse than none.
fn read_privacy(mut s: Section<'_>) -> PrivacyConfig {
    let images = s.get("images", "never".to_string(), one_of(&["never", "avatar", "raw"]));
    let images = match images.as_str() {
        "raw" => Images::Raw,
        "avatar" => Images::Avatar,
        _ => Images::Never,
    };
    let avatar = s.get("avatar", 0, within(0, IdentityManifest::MOST_AVATARS as u32 - 1)) as usize;
    let require_consent = s.get("require_consent", false, any);
    let consent_gpio = s.optional_section("consent_gpio").map(read_consent_gpio);
    if consent_gpio.is_some() && !require_consent {
        s.fault("consent_gpio", "", "has no meaning where privacy.require_consent is false: nothing waits for consent");
    }
    s.finish();
    PrivacyConfig { images, avatar, require_consent, consent_gpio }
}

fn read_consent_gpio(mut s: Section<'_>) -> ConsentGpio {
    let chip = s.get("chip", PathBuf::from("/dev/gpiochip0"), |p: &PathBuf| match p.is_absolute() {
        true => Ok(()),
        false => Err("is the absolute path of a GPIO chip, such as \"/dev/gpiochip0\"".into()),
    });
    if !s.table.contains_key("line") {
        s.fault("line", "", "is missing: name the line by its number on the chip, as `gpioinfo` lists it");
    }
    let gpio = ConsentGpio {
        chip,
        line: s.get("line", 0, |n| within(0, 4095)(n)),
        active_low: s.get("active", "high".to_string(), one_of(&["high", "low"])) == "low",
        bias: match s.get("bias", "as-is".to_string(), one_of(&["as-is", "none", "pull-up", "pull-down"])).as_str() {
            "none" => GpioBias::None,
            "pull-up" => GpioBias::PullUp,
            "pull-down" => GpioBias::PullDown,
            _ => GpioBias::AsIs,
        },
        debounce: s.seconds("debounce_s", Duration::from_millis(50), 0.0, 10.0),
    };
    s.finish();
    gpio
}

/// Regulation (EU) 2024/1689 (AI Act), Article 5(1)(f).
fn read_deployment(mut s: Section<'_>) {
    let context = s.get(
        "context",
        "public".to_string(),
        one_of(&["public", "private", "retail", "health", "research", "work", "education"]),
    );
    let medical_or_safety = s.get("medical_or_safety", false, any);
    if matches!(context.as_str(), "work" | "education") && !medical_or_safety {
        s.fault(
            "context",
            &format!("\"{context}\""),
            "reading emotions at work and in education is banned in the EU but for medical or safety reasons \
             (AI Act, Article 5(1)(f)): set deployment.medical_or_safety = true only where that is so",
        );
    }
    s.finish();
}

/// One table of the file while it is being read: what has been taken is gone, what is left at the end is unknown.
struct Section<'a> {
    path: String,
    table: Table,
    faults: &'a RefCell<Vec<Fault>>,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    fn fault(&self, key: &str, value: &str, reason: &str) {
        self.faults.borrow_mut().push(Fault { key: self.key(key), value: value.into(), reason: reason.into() });
    }

    fn optional_section(&mut self, key: &'static str) -> Option<Section<'a>> {
        self.asked.push(key);
        let table = match self.table.remove(key)? {
            Value::Table(table) => table,
            other => {
                self.fault(key, &other.to_string(), &format!("is a table: write [{}]", self.key(key)));
                Table::new()
            }
        };
        Some(Section { path: self.key(key), table, faults: self.faults, asked: Vec::new() })
    }

    fn section(&mut self, key: &'static str) -> Section<'a> {
        self.optional_section(key).unwrap_or_else(|| Section {
            path: self.key(key),
            table: Table::new(),
            faults: self.faults,
            asked: Vec::new(),
        })
    }

    /// The value of `key`, or `default` where it is absent or wrong.
    fn get<T: FromToml>(&mut self, key: &'static str, default: T, check: impl Fn(&T) -> Result<(), String>) -> T {
        self.asked.push(key);
        let Some(value) = self.table.remove(key) else { return default };
        let shown = if key.contains("password") { String::new() } else { value.to_string() };
        match T::from_toml(value).and_then(|v| check(&v).map(|()| v)) {
            Ok(value) => value,
            Err(reason) => {
                self.fault(key, &shown, &reason);
                default
            }
        }
    }

    fn required_path(&mut self, key: &'static str, what: &str) -> PathBuf {
        let path: PathBuf = self.get(key, PathBuf::new(), any);
        if path.as_os_str().is_empty() {
            self.fault(key, "", &format!("is missing: name {what}"));
        }
        path
    }

    fn seconds(&mut self, key: &'static str, default: Duration, least: f64, most: f64) -> Duration {
        let seconds = self.get(key, default.as_secs_f64(), |s: &f64| {
            if (least..=most).contains(s) { Ok(()) } else { Err(format!("takes seconds from {least} to {most}")) }
        });
        Duration::from_secs_f64(seconds)
    }

    /// Seconds, 0 for 'never'.
    fn optional_seconds(&mut self, key: &'static str, default: Option<Duration>, most: f64) -> Option<Duration> {
        let seconds = self.get(key, default.map_or(0.0, |d| d.as_secs_f64()), |s: &f64| {
            if *s == 0.0 || (0.1..=most).contains(s) {
                Ok(())
            } else {
                Err(format!("takes seconds from 0.1 to {most}, or 0 for never"))
            }
        });
        (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
    }

    fn backoff(&mut self, first: &'static str, longest: &'static str, default: Backoff) -> Backoff {
        let backoff = Backoff {
            first: self.seconds(first, default.first, 0.01, 3600.0),
            longest: self.seconds(longest, default.longest, 0.01, 3600.0),
        };
        if backoff.longest < backoff.first {
            self.fault(longest, &backoff.longest.as_secs_f64().to_string(), &format!("is below {first}"));
        }
        backoff
    }

    /// Complains about a key that another choice has made meaningless.
    fn refuse(&mut self, key: &'static str, reason: &str) {
        if let Some(value) = self.table.remove(key) {
            self.fault(key, &value.to_string(), reason);
        }
    }

    fn finish(self) {
        for key in self.table.keys() {
            let near =
                self.asked.iter().max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
            let reason = match near {
                Some(near) if strsim::jaro_winkler(near, key) > 0.8 => format!("is unknown: did you mean {near}?"),
                _ => format!("is unknown: known here are {}", self.asked.join(", ")),
            };
            self.fault(key, "", &reason);
        }
    }
}

trait FromToml: Sized {
    fn from_toml(value: Value) -> Result<Self, String>;
}

impl FromToml for String {
    fn from_toml(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(text),
            // The environment knows no types: a site called 7 arrives as a number.
            Value::Integer(number) => Ok(number.to_string()),
            other => Err(format!("takes a string, not a {}", other.type_str())),
        }
    }
}

impl FromToml for PathBuf {
    fn from_toml(value: Value) -> Result<Self, String> {
        String::from_toml(value).map(Self::from)
    }
}

impl FromToml for bool {
    fn from_toml(value: Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| "takes true or false".into())
    }
}

impl FromToml for f64 {
    fn from_toml(value: Value) -> Result<Self, String> {
        match value {
            Value::Float(number) if number.is_finite() => Ok(number),
            Value::Integer(number) => Ok(number as Self),
            _ => Err("takes a number".into()),
        }
    }
}

impl FromToml for f32 {
    fn from_toml(value: Value) -> Result<Self, String> {
        f64::from_toml(value).map(|number| number as Self)
    }
}

impl FromToml for Vec<String> {
    fn from_toml(value: Value) -> Result<Self, String> {
        const WRONG: &str = "takes a list of strings";
        match value {
            Value::Array(values) => {
                let text = |value: Value| value.as_str().map(str::to_owned).ok_or_else(|| WRONG.to_owned());
                values.into_iter().map(text).collect()
            }
            // The environment knows no lists.
            Value::String(text) => {
                Ok(text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
            }
            _ => Err(WRONG.into()),
        }
    }
}

fn whole<T: TryFrom<i64>>(value: &Value) -> Result<T, String> {
    value.as_integer().and_then(|n| T::try_from(n).ok()).ok_or_else(|| "takes a whole number in range".into())
}

impl FromToml for u32 {
    fn from_toml(value: Value) -> Result<Self, String> {
        whole(&value)
    }
}

impl FromToml for u64 {
    fn from_toml(value: Value) -> Result<Self, String> {
        whole(&value)
    }
}

impl FromToml for u16 {
    fn from_toml(value: Value) -> Result<Self, String> {
        whole(&value)
    }
}

impl FromToml for usize {
    fn from_toml(value: Value) -> Result<Self, String> {
        whole::<u32>(&value).map(|n| n as Self)
    }
}

fn any<T>(_: &T) -> Result<(), String> {
    Ok(())
}

fn one_of(names: &'static [&'static str]) -> impl Fn(&String) -> Result<(), String> {
    move |text| {
        if names.contains(&text.as_str()) { Ok(()) } else { Err(format!("takes one of: {}", names.join(", "))) }
    }
}

fn within(least: u32, most: u32) -> impl Fn(&u32) -> Result<(), String> {
    move |n| if (least..=most).contains(n) { Ok(()) } else { Err(format!("takes {least} to {most}")) }
}

fn within_f32(least: f32, most: f32) -> impl Fn(&f32) -> Result<(), String> {
    move |n| if (least..=most).contains(n) { Ok(()) } else { Err(format!("takes {least} to {most}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::from_table(text.parse().expect("the test's TOML"), [])
    }

    fn faults(text: &str) -> Vec<String> {
        match parse(text) {
            Err(ConfigError::Invalid(faults)) => faults.iter().map(ToString::to_string).collect(),
            other => panic!("expected faults, got {other:?}"),
        }
    }

    #[test]
    fn an_empty_file_is_the_default_under_the_hosts_name() {
        let config = parse("").unwrap();
        assert_eq!(config, Config { device: config.device.clone(), ..Config::default() });
    }

    #[test]
    fn the_documented_file_holds_every_default() {
        let config = parse(include_str!("../../docs/visaged.toml")).unwrap();
        assert_eq!(config, Config { device: config.device.clone(), ..Config::default() });
    }

    #[test]
    fn every_error_is_found_at_once_with_key_value_and_reason() {
        let found = faults("[mqtt]\nport = 70000\nhost = \"tcp://x\"\n[camera]\nfps = 0\n[faces]\nmin_score = 2.0\n");
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().any(|f| f.starts_with("mqtt.port = 70000: takes")), "{found:?}");
        assert!(found.iter().any(|f| f.starts_with("camera.fps = 0: takes 1 to 240")), "{found:?}");
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_right_one() {
        assert_eq!(faults("[mqtt]\nhots = \"a\"\n"), ["mqtt.hots: is unknown: did you mean host?"]);
        assert_eq!(faults("[camrea]\n"), ["camrea: is unknown: did you mean camera?"]);
    }

    #[test]
    fn the_spool_is_on_disk_unless_memory_is_asked_for() {
        let spool = |text: &str| parse(text).unwrap().mqtt.unwrap().spool;
        assert_eq!(spool(""), SpoolConfig::default());
        assert_eq!(spool("[mqtt.spool]\nstorage = \"memory\"\nmax_age_s = 0\n"), SpoolConfig::MEMORY);
        let found = faults("[mqtt.spool]\npath = \"here\"\nmax_bytes = 1000\nsync_events = 0\nstroage = \"disk\"\n");
        assert_eq!(found.len(), 4, "{found:?}");
        let found = faults("[mqtt.spool]\nstorage = \"memory\"\nmax_bytes = 2000000\n");
        assert_eq!(found, ["mqtt.spool.max_bytes = 2000000: has no meaning where mqtt.spool.storage is \"memory\""]);
    }

    #[test]
    fn keys_of_signers_are_read_from_a_list_or_from_the_environment_and_a_wrong_one_is_named() {
        const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let keys =
            |config: Config| config.models.store.unwrap().keys.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(keys(parse(&format!("[models]\nkeys = [\"{KEY}\", \"{KEY}\"]\n")).unwrap()), [KEY, KEY]);
        let environment = [("VISAGED_MODELS__KEYS".to_string(), format!("{KEY},{KEY}"))];
        assert_eq!(keys(Config::from_table(Table::new(), environment).unwrap()), [KEY, KEY]);
        let found = faults("[models]\nkeys = [\"RWQ\"]\nstore = \"here\"\ntrial_s = 0\n");
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().any(|f| f.contains("RWQ is no minisign public key")), "{found:?}");
    }

    #[test]
    fn an_empty_path_means_no_store() {
        assert_eq!(parse("[models]\nstore = \"\"\n").unwrap().models, ModelsConfig::BUILT_IN);
    }

    #[test]
    fn keys_of_another_source_are_refused() {
        let found = faults("[camera]\nsource = \"pattern\"\npath = \"a.gif\"\n");
        assert_eq!(found, ["camera.path = \"a.gif\": has no meaning where camera.source is \"pattern\""]);
    }

    #[test]
    fn work_and_education_are_refused_without_a_medical_or_safety_reason() {
        assert!(faults("[deployment]\ncontext = \"work\"\n")[0].contains("Article 5"));
        assert!(parse("[deployment]\ncontext = \"education\"\nmedical_or_safety = true\n").is_ok());
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let file: Table = "[mqtt]\nhost = \"a\"\n".parse().unwrap();
        let environment =
            [("VISAGED_MQTT__HOST", "b"), ("VISAGED_MQTT__PORT", "1884"), ("VISAGED_DATA", "x"), ("HOME", "/")];
        let config = Config::from_table(file, environment.map(|(k, v)| (k.to_string(), v.to_string()))).unwrap();
        let mqtt = config.mqtt.unwrap();
        assert_eq!((mqtt.host.as_str(), mqtt.port), ("b", 1884));
    }

    #[test]
    fn threads_and_kernels_of_the_networks_are_read() {
        let environment = [(KERNELS_VARIABLE.to_string(), "scalar".to_string())];
        let table = "[nn]\nthreads = 3".parse().unwrap();
        let config = Config::from_table(table, environment).unwrap();
        assert_eq!((config.nn.threads.get(), config.nn.isa.name()), (3, "scalar"));
        assert_eq!(faults("[nn]\nthreads = 0"), ["nn.threads = 0: takes 1 to 64"]);
    }

    #[test]
    fn kernels_that_there_are_not_are_told_with_those_that_there_are() {
        let environment = [(KERNELS_VARIABLE.to_string(), "fastest".to_string())];
        let error = Config::from_table(Table::new(), environment).unwrap_err().to_string();
        assert!(error.starts_with("VISAGED_INT8_ISA = fastest: there are no kernels called"), "{error}");
        assert!(error.contains("scalar"), "{error}");
    }

    #[test]
    fn a_misspelt_override_is_an_error_too() {
        let environment = [("VISAGED_MQTT__PROT".to_string(), "1".to_string())];
        let result = Config::from_table(Table::new(), environment);
        assert!(result.unwrap_err().to_string().contains("mqtt.prot"));
    }

    #[test]
    fn a_password_is_never_repeated() {
        let found = faults("[mqtt]\npassword = [\"hunter2\"]\n");
        assert!(!found.join("\n").contains("hunter2"), "{found:?}");
        let login = Login { user: "u".into(), password: "hunter2".into() };
        assert!(!format!("{login:?}").contains("hunter2"));
    }

    #[test]
    fn no_picture_leaves_by_default_and_other_words_are_told() {
        assert_eq!(parse("").unwrap().privacy.images, Images::Never);
        assert_eq!(parse("[privacy]\nimages = \"raw\"\n").unwrap().privacy.images, Images::Raw);
        let avatar = parse("[privacy]\nimages = \"avatar\"\navatar = 3\n").unwrap().privacy;
        assert_eq!((avatar.images, avatar.avatar), (Images::Avatar, 3));
        assert!(faults("[privacy]\nimages = \"some\"\n")[0].contains("avatar"));
        assert!(faults("[privacy]\navatar = 64\n")[0].contains("63"));
        assert!(parse("[privacy]\nrequire_consent = true\n").unwrap().privacy.require_consent);
    }

    #[test]
    fn the_line_that_gives_consent_is_read_and_wrong_ones_are_told() {
        let text = "[privacy]\nrequire_consent = true\n[privacy.consent_gpio]\nline = 17\nactive = \"low\"\nbias = \"pull-up\"\n";
        let expected = ConsentGpio {
            chip: "/dev/gpiochip0".into(),
            line: 17,
            active_low: true,
            bias: GpioBias::PullUp,
            debounce: Duration::from_millis(50),
        };
        assert_eq!(parse(text).unwrap().privacy.consent_gpio, Some(expected));
        let found = faults("[privacy.consent_gpio]\nchip = \"gpiochip0\"\nactive = \"on\"\ndebounce_s = 11\n");
        for key in
            ["chip = \"gpiochip0\"", "line: is missing", "active = \"on\"", "debounce_s = 11", ": has no meaning where"]
        {
            assert!(
                found.iter().any(|fault| fault.starts_with("privacy.consent_gpio") && fault.contains(key)),
                "{key}: {found:?}"
            );
        }
        assert_eq!(found.len(), 5, "{found:?}");
    }

    #[test]
    fn commands_are_off_one_by_one_unless_they_are_allowed() {
        let commands = |text: &str| parse(text).unwrap().mqtt.unwrap().commands;
        assert_eq!(commands("").unwrap(), CommandsConfig::default());
        assert!(CommandsConfig::default().allow.is_empty());
        let allowed = commands("[mqtt.commands]\nallow = [\"config.get\", \"restart\"]\n").unwrap().allow;
        assert_eq!(allowed, [Name::ConfigGet, Name::Restart].into());
        assert_eq!(commands("[mqtt.commands]\nenabled = false\n"), None);
        let found = faults("[mqtt.commands]\nallow = [\"config.got\"]\nburst = 0\nper_second = 0\npath = \"x\"\n");
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].contains("there is no command \"config.got\": known are ping, info"), "{found:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_file_whatever_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
            if let Ok(table) = text.parse::<Table>() {
                let _ = Config::from_table(table, []);
            }
        }
    }
}
