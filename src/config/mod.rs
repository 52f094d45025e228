//! The one typed configuration, its defaults and its checks.
//!
//! Invariant: a [`Config`] that exists is valid; nothing after this module checks a setting again.

pub mod edit;
mod read;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::frame::PixelFormat;
use crate::models::{StoreSettings, Task};
use crate::mqtt::command::Name;
use crate::nn::Settings;

pub use read::{ConfigError, Fault, overridden};

/// Everything `visaged run` can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Who this device is.
    pub device: DeviceConfig,
    /// Where frames come from.
    pub camera: CameraConfig,
    /// Finding and following faces.
    pub faces: FacesConfig,
    /// Smoothing of what is read.
    pub expression: ExpressionConfig,
    /// Which events are made.
    pub report: ReportConfig,
    /// The broker; `None` where MQTT is off.
    pub mqtt: Option<MqttConfig>,
    /// The live page; `None` where it is off.
    pub web: Option<WebConfig>,
    /// Prometheus' text format at `/metrics`; `None` where it is off.
    pub metrics: Option<SocketAddr>,
    /// What is done about the people in view.
    pub privacy: PrivacyConfig,
    /// Model bundles in place of the built-in ones.
    pub models: ModelsConfig,
    /// `[nn]`: how networks use the processor. The kernels are the environment's affair.
    pub nn: Settings,
    /// Logging.
    pub log: LogConfig,
}

/// `[device]`
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceConfig {
    /// One level of the MQTT topic: no `/`, `+`, `#`, NUL; not empty.
    pub site: String,
    /// One level of the MQTT topic; the host's name by default.
    pub name: String,
}

/// `[camera]`
#[derive(Clone, Debug, PartialEq)]
pub struct CameraConfig {
    /// Which source.
    pub source: SourceConfig,
    /// Frames are mirrored left to right on the live page (analysis is not touched).
    pub mirror: bool,
    /// No frame for this long: the camera counts as lost and is opened anew.
    pub stall_timeout: Duration,
    /// First and largest wait between attempts to open it.
    pub reopen_backoff: Backoff,
}

/// A source of frames.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceConfig {
    /// A V4L2 camera.
    V4l2 {
        /// `/dev/video0`, or a link below `/dev/v4l/by-id`.
        device: PathBuf,
        /// Asked for; `None`: the cheapest to convert that reaches size and rate.
        format: Option<PixelFormat>,
        /// Asked for; the nearest that the driver offers is taken.
        width_px: u32,
        /// Asked for.
        height_px: u32,
        /// Asked for, frames per second.
        fps: u32,
    },
    /// A GIF, a folder of pictures, or an MJPEG AVI.
    Clip {
        /// File or folder.
        path: PathBuf,
        /// Starts again at its end.
        repeat: bool,
        /// In the clip's own time, or as fast as frames are taken.
        pace: Pace,
    },
    /// Moving colour bars.
    Pattern {
        /// Width.
        width_px: u32,
        /// Height.
        height_px: u32,
        /// Frames per second.
        fps: u32,
    },
}

/// How fast a clip is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// By its own timestamps.
    RealTime,
    /// As fast as the reader takes frames.
    Fast,
}

/// A doubling wait with full jitter between `first` and `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first wait.
    pub first: Duration,
    /// Upper bound of every wait.
    pub longest: Duration,
}

/// `[faces]`
#[derive(Clone, Debug, PartialEq)]
pub struct FacesConfig {
    /// Smaller faces need not be found; decides at which scale the detector looks.
    pub min_face_px: u32,
    /// Detections below this are not faces.
    pub min_score: f32,
    /// The largest ones are kept.
    pub max_faces: usize,
    /// A face unseen for longer has left.
    pub leave_after: Duration,
}

/// `[expression]`
#[derive(Clone, Debug, PartialEq)]
pub struct ExpressionConfig {
    /// Half-life of the exponential average over a track's probabilities.
    pub half_life: Duration,
    /// Another emotion is shown once it leads the one shown by this much.
    pub hysteresis: f32,
    /// ... for at least this long.
    pub hold: Duration,
    /// Faces of lower quality are not read; the last reading stands.
    pub min_quality: f32,
}

/// `[report]`
#[derive(Clone, Debug, PartialEq)]
pub struct ReportConfig {
    /// `enter`, `change`, `sample`, `leave`; off for sites that publish only summaries.
    pub face_events: bool,
    /// Time between `sample` events of one track; `None`: no samples.
    pub sample_every: Option<Duration>,
    /// Window of `summary`; `None`: no summaries.
    pub summary_every: Option<Duration>,
    /// A track is announced once it has been seen for this long.
    pub enter_after: Duration,
}

/// `[mqtt]`
#[derive(Clone, Debug, PartialEq)]
pub struct MqttConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `None`: plain TCP.
    pub tls: Option<TlsConfig>,
    /// Sent in CONNECT where set.
    pub login: Option<Login>,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
    /// First and largest wait between attempts to connect.
    pub reconnect_backoff: Backoff,
    /// Events held in memory: all that wait, or those that are not on disk yet; beyond it the oldest is lost, and declared.
    pub queue_events: usize,
    /// Where events wait for the broker.
    pub spool: SpoolConfig,
    /// Time between `telemetry` messages.
    pub telemetry_every: Duration,
    /// Home Assistant discovery; `None` where it is off.
    pub home_assistant: Option<HomeAssistantConfig>,
    /// What may be asked of the device; `None`: nothing, it does not even listen.
    pub commands: Option<CommandsConfig>,
}

/// `[mqtt.commands]`
#[derive(Clone, Debug, PartialEq)]
pub struct CommandsConfig {
    /// Commands that are carried out beside `ping` and `info`.
    pub allow: BTreeSet<Name>,
    /// Requests carried out at once, after a rest.
    pub burst: u32,
    /// Requests carried out in the long run.
    pub per_second: f64,
    /// Folder of what has to be remembered over a restart; made where it is not there.
    pub path: PathBuf,
}

/// `[mqtt.spool]`
#[derive(Clone, Debug, PartialEq)]
pub struct SpoolConfig {
    /// Where events wait.
    pub storage: SpoolStorage,
    /// An event that has waited for longer is given up, and declared lost; `None`: never.
    pub max_age: Option<Duration>,
}

/// Where events wait for the broker.
#[derive(Clone, Debug, PartialEq)]
pub enum SpoolStorage {
    /// Until the process ends.
    Memory,
    /// Over restarts and power cuts.
    Disk {
        /// Folder; made where it is not there.
        path: PathBuf,
        /// What the file in it may take; beyond it the oldest event is given up, and declared lost.
        max_bytes: u64,
        /// An event that the broker does not have by then is written; a power cut loses what is younger.
        sync_every: Duration,
        /// ... or as soon as so many wait to be written.
        sync_events: usize,
    },
}

/// `[mqtt.tls]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file of the authorities that may have signed the broker's certificate.
    pub ca_file: PathBuf,
    /// PEM files of our certificate and its key, where the broker asks for them.
    pub client: Option<ClientCertificate>,
}

/// Both or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM chain.
    pub certificate_file: PathBuf,
    /// PEM key.
    pub key_file: PathBuf,
}

/// User and password; the password is never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// `[mqtt.home_assistant]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeAssistantConfig {
    /// Discovery prefix, `homeassistant` by default.
    pub prefix: String,
    /// Where the newest versions of bundles are said, as `visaged-fleet` does; `None` where nobody does.
    pub versions_topic: Option<String>,
}

/// `[privacy]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivacyConfig {
    /// Which pictures may leave the device.
    pub images: Images,
    /// Whose face is shown where `images` is [`Images::Avatar`]: a number within the bundle's avatars, from 0.
    pub avatar: usize,
    /// No face is analysed until consent is given.
    pub require_consent: bool,
    /// A line that gives it while it is active.
    pub consent_gpio: Option<ConsentGpio>,
}

/// `privacy.images`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Images {
    /// None.
    #[default]
    Never,
    /// A face that the camera sees, re-synthesised as a synthetic person's, when the command `snapshot` asks for it.
    Avatar,
    /// What the camera sees, when the command `snapshot` asks for it.
    Raw,
}

/// `[privacy.consent_gpio]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsentGpio {
    /// `/dev/gpiochip0`, or a link to it.
    pub chip: PathBuf,
    /// Number of the line on that chip.
    pub line: u32,
    /// A low level is the active one.
    pub active_low: bool,
    /// What pulls the line where nothing drives it.
    pub bias: GpioBias,
    /// A level counts when it has held for so long.
    pub debounce: Duration,
}

/// What pulls a line where nothing drives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpioBias {
    /// As the board has set it up.
    AsIs,
    /// Nothing.
    None,
    /// Up.
    PullUp,
    /// Down.
    PullDown,
}

/// `[web]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebConfig {
    /// Loopback unless configured.
    pub listen: SocketAddr,
    /// Whoever sees the page may have make-up drawn on the faces that it shows.
    pub try_on: bool,
}

/// `[models]`: a folder that is named goes over the store, and the store over the bundle inside the binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelsConfig {
    /// Folder of a `detector` bundle.
    pub detector: Option<PathBuf>,
    /// Folder of a `derl` bundle.
    pub derl: Option<PathBuf>,
    /// Folder of an `identity` bundle, for avatars and the try-on of the live page.
    pub identity: Option<PathBuf>,
    /// Folder of a `makeup` bundle, for the try-on of the live page.
    pub makeup: Option<PathBuf>,
    /// Bundles installed on this device; `None`: there is no store.
    pub store: Option<StoreSettings>,
}

impl ModelsConfig {
    /// The bundles inside the binary, whatever is installed.
    pub const BUILT_IN: Self = Self { detector: None, derl: None, identity: None, makeup: None, store: None };

    /// The folder that is named for a task's bundle.
    pub fn folder(&self, task: Task) -> Option<&Path> {
        match task {
            Task::Detector => self.detector.as_deref(),
            Task::Derl => self.derl.as_deref(),
            Task::Makeup => self.makeup.as_deref(),
            Task::Identity => self.identity.as_deref(),
        }
    }
}

impl Default for ModelsConfig {
    fn default() -> Self {
        Self { store: Some(StoreSettings::default()), ..Self::BUILT_IN }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A `tracing` filter, `info` by default.
    pub filter: String,
    /// Text, JSON, or the journal.
    pub format: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people, on stderr.
    Text,
    /// One object a line, on stderr.
    Json,
    /// To journald with fields.
    Journald,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            device: DeviceConfig::default(),
            camera: CameraConfig::default(),
            faces: FacesConfig::default(),
            expression: ExpressionConfig::default(),
            report: ReportConfig::default(),
            mqtt: Some(MqttConfig::default()),
            web: None,
            metrics: None,
            privacy: PrivacyConfig::default(),
            models: ModelsConfig::default(),
            nn: Settings::default(),
            log: LogConfig { filter: "info".into(), format: LogFormat::Text },
        }
    }
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self { site: "default".into(), name: "visaged".into() }
    }
}

impl Default for CameraConfig {
    fn default() -> Self {
        Self {
            source: SourceConfig::V4l2 {
                device: "/dev/video0".into(),
                format: None,
                width_px: 640,
                height_px: 480,
                fps: 30,
            },
            mirror: true,
            stall_timeout: Duration::from_secs(5),
            reopen_backoff: Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(10) },
        }
    }
}

impl Default for FacesConfig {
    fn default() -> Self {
        Self { min_face_px: 24, min_score: 0.6, max_faces: 16, leave_after: Duration::from_millis(1000) }
    }
}

impl Default for ExpressionConfig {
    fn default() -> Self {
        Self {
            half_life: Duration::from_millis(300),
            hysteresis: 0.1,
            hold: Duration::from_millis(200),
            min_quality: 0.15,
        }
    }
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self {
            face_events: true,
            sample_every: Some(Duration::from_secs(1)),
            summary_every: Some(Duration::from_secs(60)),
            enter_after: Duration::from_millis(200),
        }
    }
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            storage: SpoolStorage::Disk {
                path: "/var/lib/visaged/spool".into(),
                max_bytes: 64 << 20,
                sync_every: Duration::from_secs(1),
                sync_events: 64,
            },
            max_age: Some(Duration::from_secs(7 * 24 * 3600)),
        }
    }
}

impl SpoolConfig {
    /// Nothing on disk, and nothing given up for its age.
    pub const MEMORY: Self = Self { storage: SpoolStorage::Memory, max_age: None };
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            host: "localhost".into(),
            port: 1883,
            tls: None,
            login: None,
            keep_alive: Duration::from_secs(30),
            reconnect_backoff: Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) },
            queue_events: 10_000,
            spool: SpoolConfig::default(),
            telemetry_every: Duration::from_secs(10),
            home_assistant: None,
            commands: Some(CommandsConfig::default()),
        }
    }
}

impl Default for CommandsConfig {
    fn default() -> Self {
        Self { allow: BTreeSet::new(), burst: 20, per_second: 1.0, path: "/var/lib/visaged/commands".into() }
    }
}
