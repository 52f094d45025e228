//! Threads, queues, supervision: the one place that knows every stage.
//!
//! ```text
//! capture ─► mailbox of one, the newest wins ─► faces ─► queue of one, waits ─► expression ─► spool ─► mqtt
//!                                                                                  └─► hub ─► web
//! ```
//!
//! What is asked over MQTT is carried out on the thread [`commands`], beside all this.
//!
//! Invariants: frames are dropped in the mailbox and nowhere else, and counted there; a stage that panics begins anew
//! and the status says `degraded`; [`Daemon::stop`] returns within two seconds with `offline` published and the camera
//! released.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender};

pub mod commands;
pub mod consent;
pub mod consent_line;
pub mod health;
pub mod installer;
pub mod stage;
pub mod system;
pub mod trial;

mod bundles;
mod faces;
mod figures;
mod reading;
mod shutter;

pub use bundles::{Models, Wanted};
pub use commands::CommandParts;
pub use consent::Consent;
pub use health::Condition;

use crate::capture::{self, CaptureError, PumpEnd, PumpSettings, Source, SystemEnvironment};
use crate::config::{CommandsConfig, Config, ExpressionConfig, FacesConfig, MqttConfig, ReportConfig, SpoolStorage};
use crate::expression::derl::ReadError;
use crate::face::detect::DetectorError;
use crate::frame::{CaptureTime, Frame};
use crate::mailbox::Mailbox;
use crate::mirror::web::{self, Page, Server, WebError};
use crate::mirror::{Hub, Networks, Status as HubStatus, TryOn};
use crate::models::{BundleError, Task};
use crate::mqtt::{
    self, Client, CommandSink, DiskSettings, MemorySettings, Spool, SpoolError, Status, Tap, Topics, payload,
};
use crate::pool::Pool;
use crate::report::{Boot, Event, Moment, Reporter};
use crate::synthesis::SynthesisError;
use crate::telemetry::Telemetry;

use self::bundles::Trials;
use self::commands::{Commands, Inbox, Order};
use self::faces::Faces;
use self::figures::Figures;
use self::health::{CameraHealth, CaptureReport, LinkTrouble};
use self::reading::{Expression, Offer};
use self::shutter::Shutter;
use self::stage::{End, Supervision};

/// Frames under way at once: one at the driver's side, one in the mailbox, one being converted.
const FRAMES: usize = 4;
/// A stage gets this long to end the frame it is at. With [`DRAIN`] and the client's farewell: less than two seconds.
const LAST_FRAME: Duration = Duration::from_millis(1000);
/// The spool's file gets at least this long to be closed.
const LAST_WRITE: Duration = Duration::from_millis(50);
/// Events still unsent when the daemon is told to stop get this long.
const DRAIN: Duration = Duration::from_millis(450);

/// Makes the source of frames, at the start and after each loss.
pub type OpenSource = Box<dyn FnMut() -> Result<Box<dyn Source>, CaptureError> + Send>;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A model bundle was refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The detector could not be prepared.
    #[error(transparent)]
    Detector(#[from] DetectorError),
    /// The expression network could not be prepared.
    #[error(transparent)]
    Derl(#[from] ReadError),
    /// The make-up networks or the identity generator could not be prepared.
    #[error(transparent)]
    Synthesis(#[from] SynthesisError),
    /// The MQTT client could not start.
    #[error(transparent)]
    Mqtt(#[from] mqtt::StartError),
    /// The spool is another's.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Site or device make no topic.
    #[error(transparent)]
    Topic(#[from] mqtt::TopicError),
    /// A page cannot be served.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The system gives no thread.
    #[error("thread {0} could not be started: {1}: is the limit of tasks reached?")]
    Thread(&'static str, #[source] std::io::Error),
}

/// Why a running daemon cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(String);

/// The settings that a running daemon takes over on SIGHUP.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    faces: FacesConfig,
    expression: ExpressionConfig,
    report: ReportConfig,
}

impl Settings {
    fn of(config: &Config) -> Self {
        Self { faces: config.faces.clone(), expression: config.expression.clone(), report: config.report.clone() }
    }
}

/// What the stages share.
#[derive(Debug)]
struct Context {
    supervision: Arc<Supervision>,
    telemetry: Arc<Telemetry>,
    settings: ArcSwap<Settings>,
    models: Models,
    hub: Option<Hub>,
    shutter: Shutter,
    consent: Consent,
    /// What is in force: of a configuration that was read again, only what needs no restart.
    running: ArcSwap<Config>,
    condition: ArcSwap<Condition>,
}

/// What a caller may change of a daemon besides its configuration.
#[derive(Default)]
pub struct Parts {
    /// In place of `camera.source`.
    pub open_source: Option<OpenSource>,
    /// Sees every MQTT message.
    pub tap: Option<Tap>,
    /// What commands need of the process.
    pub commands: CommandParts,
}

/// A running daemon.
pub struct Daemon {
    context: Arc<Context>,
    camera: Arc<CameraHealth>,
    boot: Boot,
    config: Config,
    threads: Vec<JoinHandle<()>>,
    spool: Option<Arc<Spool>>,
    client: Option<Client>,
    page: Option<Server>,
    metrics: Option<Server>,
    condition: Condition,
    consent: Option<payload::Consent>,
    consent_line: Option<consent_line::Watcher>,
    link: LinkTrouble,
    /// The page shows how the daemon is; before, it shows that it starts.
    announced: bool,
    described: Option<String>,
    commands: Option<Commands>,
    orders: Receiver<Order>,
    trials: Trials,
    hung: bool,
}

impl Daemon {
    /// Verifies the models, starts every thread, and returns; the camera and the broker may come later.
    ///
    /// # Errors
    /// [`StartError`] for what no waiting cures.
    pub fn start(config: Config, parts: Parts) -> Result<Self, StartError> {
        let (models, trials) = Models::start(
            &config.models,
            Wanted::of(&config),
            config.nn,
            &system::machine_boot(),
            jiff::Timestamp::now(),
        )?;
        let topics = Topics::new(&config.device)?;
        let boot = Boot::random();
        let hub = config.web.as_ref().map(|_| Hub::new());
        let context = Arc::new(Context {
            supervision: Arc::new(Supervision::default()),
            telemetry: Arc::new(Telemetry::new(Instant::now())),
            settings: ArcSwap::from_pointee(Settings::of(&config)),
            models,
            hub,
            shutter: Shutter::default(),
            consent: Consent::new(config.privacy.require_consent),
            running: ArcSwap::from_pointee(config.clone()),
            condition: ArcSwap::from_pointee(Condition::Degraded("starting".into())),
        });
        let camera = Arc::new(CameraHealth::default());
        let spool = config.mqtt.as_ref().map(|mqtt| open_spool(mqtt, boot)).transpose()?.map(Arc::new);
        let complaint = complaint(spool.as_ref(), &context.models, None);
        let condition = health::condition(&camera, complaint, &context.supervision, Instant::now());
        let consent_line = config.privacy.consent_gpio.clone();
        let consent_line = consent_line.map(|line| consent_line::Watcher::start(line, Arc::clone(&context)));
        let consent_line = consent_line.transpose().map_err(|error| StartError::Thread("consent", error))?;
        let page = start_page(&config, &context)?;
        let metrics = start_metrics(&config, &context)?;
        let consent = context.consent.describe(Instant::now());
        context.hub.iter().for_each(|hub| hub.notice(consent.map(consent_notice)));
        let status = status(boot, &condition).with_consent(consent);
        let figures = Figures::new(&config.device.name, boot, &context, &camera);
        let inbox = config.mqtt.as_ref().and_then(|mqtt| mqtt.commands.clone()).map(|config| (config, Inbox::new()));
        let client = match (&config.mqtt, &spool) {
            (Some(mqtt), Some(spool)) => {
                let tap = tap(&context, parts.tap);
                let commands = inbox.as_ref().map(|(_, inbox)| inbox.sink());
                Some(start_client(mqtt, topics, status, Arc::clone(spool), figures.clone(), tap, commands)?)
            }
            _ => None,
        };
        let (order, orders) = crossbeam_channel::bounded(4);
        let mut daemon = Self {
            context,
            camera,
            boot,
            threads: Vec::new(),
            spool,
            client,
            page,
            metrics,
            condition,
            consent,
            consent_line,
            link: LinkTrouble::default(),
            announced: false,
            described: None,
            commands: None,
            orders,
            trials,
            hung: false,
            config,
        };
        daemon.start_stages(parts.open_source)?;
        if let Some((config, inbox)) = inbox {
            daemon.start_commands(config, inbox, figures, order, parts.commands)?;
        }
        Ok(daemon)
    }

    fn start_commands(
        &mut self,
        config: CommandsConfig,
        inbox: Inbox,
        figures: Figures,
        orders: Sender<Order>,
        parts: CommandParts,
    ) -> Result<(), StartError> {
        let Some(client) = &self.client else { return Ok(()) };
        let context = Arc::clone(&self.context);
        let setup =
            commands::Setup { config, context, figures, handle: client.handle(), boot: self.boot, orders, parts };
        let started = Commands::start(inbox, setup).map_err(|error| StartError::Thread("commands", error))?;
        self.commands = Some(started);
        Ok(())
    }

    fn start_stages(&mut self, open_source: Option<OpenSource>) -> Result<(), StartError> {
        let frames = Arc::new(Mailbox::default());
        let (to_expression, batches) = crossbeam_channel::bounded(1);
        let reporter = Reporter::new(self.config.report.clone(), self.boot, CaptureTime::now());
        let mut expression = Expression::new(Arc::clone(&self.context), batches, reporter, self.offer());
        self.spawn("expression", move |beat| expression.run(beat))?;
        let mut faces = Faces::new(Arc::clone(&self.context), Arc::clone(&frames), to_expression);
        self.spawn("faces", move |beat| faces.run(beat))?;
        let mut capture = Capture {
            context: Arc::clone(&self.context),
            camera: Arc::clone(&self.camera),
            open: open_source.unwrap_or_else(|| {
                let source = self.config.camera.source.clone();
                Box::new(move || capture::open(&source))
            }),
            settings: PumpSettings {
                stall_timeout: self.config.camera.stall_timeout,
                backoff: self.config.camera.reopen_backoff,
            },
            frames,
            pool: Pool::new(FRAMES),
        };
        self.spawn("capture", move |beat| capture.run(beat))
    }

    fn spawn(
        &mut self,
        name: &'static str,
        work: impl FnMut(&stage::Heartbeat) -> End + Send + 'static,
    ) -> Result<(), StartError> {
        let thread =
            stage::spawn(name, &self.context.supervision, work).map_err(|error| StartError::Thread(name, error))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where events go: the client's spool, or nowhere where MQTT is off.
    fn offer(&self) -> Offer {
        match &self.client {
            Some(client) => {
                let handle = client.handle();
                Box::new(move |event: Event| handle.offer(event))
            }
            None => Box::new(|event: Event| tracing::trace!(seq = event.seq, "event not published: MQTT is off")),
        }
    }

    /// Where the live page is served.
    pub fn page_address(&self) -> Option<std::net::SocketAddr> {
        self.page.as_ref().map(Server::address)
    }

    /// Looks after the daemon; call it a few times a second. Publishes a changed condition.
    ///
    /// # Errors
    /// [`Fatal`] where the daemon must be stopped and the process should fail.
    pub fn look_after(&mut self) -> Result<Progress, Fatal> {
        let now = Instant::now();
        let supervision = &self.context.supervision;
        self.context.telemetry.stage_restarts.store(supervision.restarts(), Ordering::Relaxed);
        let hung = supervision.hung(now, health::HANG).is_some();
        self.hung = hung;
        if let Err(given_up) = self.trials.look(now, hung, supervision, &self.context.telemetry) {
            tracing::error!("{given_up}");
            return Ok(Progress::Restart);
        }
        if let Some(reason) = supervision.fatal() {
            self.trials.fatal(&reason);
            return Err(Fatal(reason));
        }
        let line = self.consent_line.as_ref().and_then(consent_line::Watcher::complaint);
        let complaint = complaint(self.spool.as_ref(), &self.context.models, line);
        let condition = health::condition(&self.camera, complaint, supervision, now);
        self.count_events();
        let description = self.camera.description();
        if description.is_some() && description != self.described {
            self.described = description;
            self.client.iter().for_each(|client| client.handle().refresh_info());
        }
        let consent = self.context.consent.describe(now);
        self.announced |= condition != self.condition;
        self.show(&condition, now);
        if condition != self.condition || consent != self.consent {
            self.announce(condition, consent);
        }
        if self.follow_orders() {
            return Ok(Progress::Restart);
        }
        if self.threads.iter().all(JoinHandle::is_finished) {
            return Ok(Progress::Finished);
        }
        Ok(if hung { Progress::Hung } else { Progress::Alive })
    }

    fn count_events(&self) {
        let Some(spool) = &self.spool else { return };
        let (figures, telemetry) = (spool.figures(), &self.context.telemetry);
        telemetry.events_waiting.store(figures.depth, Ordering::Relaxed);
        let lost = figures.lost_space + figures.lost_age + figures.lost_storage;
        telemetry.events_lost.store(lost, Ordering::Relaxed);
    }

    /// For whoever stands before the device, who can see what no message can tell: why there is no connection.
    fn show(&mut self, condition: &Condition, now: Instant) {
        let Some(hub) = &self.context.hub else { return };
        let link = self.client.as_ref().and_then(|client| self.link.look(&client.handle().link(), now));
        let own = match condition {
            Condition::Online => None,
            Condition::Degraded(reason) => Some(reason.clone()),
        };
        if !self.announced && link.is_none() {
            return;
        }
        let reasons: Vec<String> = own.into_iter().chain(link).collect();
        hub.status(match reasons.is_empty() {
            true => HubStatus::Online,
            false => HubStatus::Degraded { reason: reasons.join("; ") },
        });
    }

    fn announce(&mut self, condition: Condition, consent: Option<payload::Consent>) {
        if condition != self.condition {
            tracing::info!(?condition, "condition changed");
        }
        if consent != self.consent {
            tracing::info!(?consent, "consent changed");
        }
        if let Some(client) = &self.client {
            client.handle().set_status(status(self.boot, &condition).with_consent(consent));
        }
        if let Some(hub) = &self.context.hub {
            hub.notice(consent.map(consent_notice));
        }
        self.context.condition.store(Arc::new(condition.clone()));
        (self.condition, self.consent) = (condition, consent);
    }

    /// Does what commands ask of the owner of the daemon; whether it is to start anew.
    fn follow_orders(&mut self) -> bool {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Restart => return true,
                Order::Reload(config) => {
                    let waiting = self.reload(*config);
                    tracing::info!(?waiting, "another configuration is in force");
                }
            }
        }
        false
    }

    /// How the daemon is.
    pub fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Whether faces may be analysed.
    pub fn consent(&self) -> &Consent {
        &self.context.consent
    }

    /// Counters and latencies.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.context.telemetry
    }

    /// Takes over what can be changed while running; gives the keys that wait for a restart.
    pub fn reload(&mut self, config: Config) -> Vec<&'static str> {
        self.context.settings.store(Arc::new(Settings::of(&config)));
        self.context.consent.set_required(config.privacy.require_consent);
        let waiting = waits_for_restart(&self.config, &config);
        if let (Some(client), Some(mqtt)) = (&self.client, &config.mqtt) {
            client.handle().set_home_assistant(mqtt.home_assistant.clone());
        }
        self.config.faces = config.faces;
        self.config.expression = config.expression;
        self.config.report = config.report;
        self.config.privacy.require_consent = config.privacy.require_consent;
        self.config.log.filter = config.log.filter;
        if let (Some(running), Some(new)) = (&mut self.config.mqtt, config.mqtt) {
            running.home_assistant = new.home_assistant;
        }
        self.context.running.store(Arc::new(self.config.clone()));
        waiting
    }

    /// Ends every thread: the camera is released, the last events are sent or on disk, `offline` is published.
    pub fn stop(mut self) {
        // A hang is not made good by being ended: the next start finds it.
        if !self.hung {
            self.trials.stand_down();
        }
        self.context.supervision.stop();
        self.join_stages();
        let written_by = Instant::now() + DRAIN + Client::FAREWELL;
        // Beside the broker, which may be slow too.
        self.spool.iter().for_each(|spool| spool.flush());
        if let Some(client) = self.client.take() {
            client.stop(DRAIN);
        }
        if let Some(commands) = self.commands.take() {
            commands.stop();
        }
        if let Some(spool) = self.spool.take() {
            spool.close(written_by.saturating_duration_since(Instant::now()).max(LAST_WRITE));
        }
        self.consent_line.take().into_iter().for_each(consent_line::Watcher::stop);
        self.page.take().into_iter().chain(self.metrics.take()).for_each(Server::stop);
    }

    /// A stage that hangs is left behind: the process ends anyway.
    fn join_stages(&mut self) {
        let deadline = Instant::now() + LAST_FRAME;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            match thread.is_finished() {
                true => drop(thread.join()),
                false => tracing::warn!(stage = ?thread.thread().name(), "did not end in time; leaving it behind"),
            }
        }
    }
}

/// What [`Daemon::look_after`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Every stage makes progress: the watchdog may be fed.
    Alive,
    /// A stage hangs: the watchdog must not be fed.
    Hung,
    /// The source has ended and everything is read.
    Finished,
    /// The daemon is to be stopped and started anew: a command wants it, or a bundle was given up.
    Restart,
}

/// The sections in which two configurations differ so that only a start takes over the new one.
pub fn waits_for_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let sections = [
        ("device", old.device != new.device),
        ("camera", old.camera != new.camera),
        ("mqtt", without_home_assistant(old) != without_home_assistant(new)),
        ("web", old.web != new.web),
        ("metrics", old.metrics != new.metrics),
        ("privacy.images", old.privacy.images != new.privacy.images),
        ("privacy.consent_gpio", old.privacy.consent_gpio != new.privacy.consent_gpio),
        ("models", old.models != new.models),
        ("nn", old.nn != new.nn),
        ("log.format", old.log.format != new.log.format),
    ];
    sections.into_iter().filter(|(_, differs)| *differs).map(|(section, _)| section).collect()
}

/// One plain line for the live page.
fn consent_notice(consent: payload::Consent) -> String {
    match consent {
        payload::Consent { granted: false, .. } => "Nobody's face is analysed until consent is given.".into(),
        payload::Consent { until: None, .. } => "Consent is given: faces are analysed.".into(),
        payload::Consent { until: Some(until), .. } => {
            format!("Consent is given until {:.0}: faces are analysed.", until.0)
        }
    }
}

/// The stage `capture`.
struct Capture {
    context: Arc<Context>,
    camera: Arc<CameraHealth>,
    open: OpenSource,
    settings: PumpSettings,
    frames: Arc<Mailbox<Frame>>,
    pool: Pool<Vec<u8>>,
}

impl Capture {
    fn run(&mut self, heartbeat: &stage::Heartbeat) -> End {
        let report = CaptureReport { camera: &self.camera, telemetry: &self.context.telemetry, heartbeat };
        let stop = self.context.supervision.stop_flag();
        let end = capture::pump(
            &mut *self.open,
            &self.frames,
            &self.pool,
            self.settings,
            &report,
            stop,
            &mut SystemEnvironment,
        );
        if end == PumpEnd::ClipEnded {
            tracing::info!("the clip has ended");
        }
        self.frames.close();
        End::Finished
    }
}

fn status(boot: Boot, condition: &Condition) -> Status {
    let since = Moment(jiff::Timestamp::now());
    match condition {
        Condition::Online => Status::online(boot, since),
        Condition::Degraded(reason) => Status::degraded(boot, since, reason.clone()),
    }
}

fn without_home_assistant(config: &Config) -> Option<MqttConfig> {
    config.mqtt.clone().map(|mqtt| MqttConfig { home_assistant: None, ..mqtt })
}

fn open_spool(mqtt: &MqttConfig, boot: Boot) -> Result<Spool, SpoolError> {
    let memory = MemorySettings { events: mqtt.queue_events, max_age: mqtt.spool.max_age };
    match &mqtt.spool.storage {
        SpoolStorage::Memory => Ok(Spool::in_memory(&memory)),
        SpoolStorage::Disk { path, max_bytes, sync_every, sync_events } => {
            let disk = DiskSettings {
                folder: path.clone(),
                max_bytes: *max_bytes,
                sync_every: *sync_every,
                sync_events: *sync_events,
            };
            Spool::on_disk(&disk, &memory, boot)
        }
    }
}

/// What is wrong with the spool and the consent line, and what went wrong with the models before the daemon started.
fn complaint(spool: Option<&Arc<Spool>>, models: &Models, line: Option<String>) -> Option<String> {
    let spool = spool.and_then(|spool| spool.complaint(Instant::now()));
    let complaints: Vec<String> = spool.into_iter().chain(line).chain(models.notes.iter().cloned()).collect();
    (!complaints.is_empty()).then(|| complaints.join("; "))
}

/// What is published is shown on the page too.
fn tap(context: &Arc<Context>, other: Option<Tap>) -> Tap {
    let hub = context.hub.clone();
    Arc::new(move |message| {
        if let Some(hub) = &hub {
            hub.message(message.topic, message.payload);
        }
        if let Some(other) = &other {
            other(message);
        }
    })
}

fn start_client(
    config: &MqttConfig,
    topics: Topics,
    status: Status,
    spool: Arc<Spool>,
    figures: Figures,
    tap: Tap,
    commands: Option<CommandSink>,
) -> Result<Client, mqtt::StartError> {
    Client::start(mqtt::Setup {
        config: config.clone(),
        topics,
        status,
        spool,
        sources: figures.sources(),
        tap: Some(tap),
        commands,
        limits: mqtt::Limits::default(),
    })
}

fn start_page(config: &Config, context: &Context) -> Result<Option<Server>, StartError> {
    let (Some(web), Some(hub)) = (&config.web, &context.hub) else { return Ok(None) };
    let page =
        Page { device: format!("{}/{}", config.device.site, config.device.name), mirrored: config.camera.mirror };
    let server = Server::start("web", web.listen, web::router(hub.clone(), &page, try_on(config, context)))?;
    tracing::info!(address = %server.address(), "the live page is served");
    Ok(Some(server))
}

/// `None` where it is off, or there is no bundle for it.
fn try_on(config: &Config, context: &Context) -> Option<TryOn> {
    if !Wanted::of(config).try_on {
        return None;
    }
    let Models { detector, derl, makeup, generator, .. } = &context.models;
    let (makeup, generator) = (makeup.clone(), generator.clone());
    if makeup.is_none() && generator.is_none() {
        return None;
    }
    let telemetry = Arc::clone(&context.telemetry);
    let failed = move |task| match task {
        Task::Identity => Telemetry::count(&telemetry.identity_failures),
        Task::Makeup => Telemetry::count(&telemetry.makeup_failures),
        Task::Detector | Task::Derl => Telemetry::count(&telemetry.derl_failures),
    };
    let networks = Networks { detector: detector.clone(), derl: derl.clone(), makeup, generator };
    Some(TryOn::new(networks, failed))
}

fn start_metrics(config: &Config, context: &Context) -> Result<Option<Server>, StartError> {
    let Some(listen) = config.metrics else { return Ok(None) };
    let telemetry = Arc::clone(&context.telemetry);
    let text = move || {
        let telemetry = Arc::clone(&telemetry);
        async move {
            let kind =
                [(axum::http::header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
            (kind, telemetry.prometheus())
        }
    };
    let routes = axum::Router::new().route("/metrics", axum::routing::get(text));
    let server = Server::start("metrics", listen, routes)?;
    tracing::info!(address = %server.address(), "metrics are served");
    Ok(Some(server))
}
