//! The connection to the broker: MQTT 5 through `rumqttc`, on a thread of its own.
//!
//! Each connection is a fresh protocol state with a clean session; whatever went wrong in the one before (a packet id
//! that stayed taken, an acknowledgement that never came) is gone with it. What must arrive lies in the [`Spool`] until
//! its PUBACK and is sent again from the start, in order, over each new connection: at least once, recognisable by
//! `boot` and `seq`. On each connection status, info and discovery are published anew.
//!
//! Invariants: [`Handle`] never waits for the broker; memory stays bounded whether the broker is there or not (the
//! spool is bounded, and of everything else only the newest value is kept); [`Client::stop`] ends in its time even if
//! the broker hangs; a panic in here costs the connection, not the process.

mod answers;
mod backoff;
mod error;
mod options;
mod probe;
mod session;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rumqttc::v5::MqttOptions;
use tokio::sync::watch;
use tokio::time::Instant;

use self::answers::Answers;
use self::backoff::Waits;
pub use self::error::{LinkError, LinkErrorKind, StartError};
pub use self::probe::{ProbeError, probe};
use self::session::End;
use super::command::{Answer, Notice, ReplyTo, Token};
use super::payload::{Info, OutboxTelemetry, Status, Telemetry};
use super::spool::Spool;
use super::topics::Topics;
use crate::config::{Backoff, HomeAssistantConfig, MqttConfig};
use crate::report::{Boot, Event};

/// After the drain: time for the last status to be acknowledged and DISCONNECT to be sent.
const GOODBYE: Duration = Duration::from_millis(400);

/// What the client asks for when it publishes; called on its thread, so they must not wait.
pub struct Sources {
    /// On each connection, and after [`Handle::refresh_info`].
    pub info: Box<dyn Fn() -> Info + Send>,
    /// At each telemetry interval; the client fills in [`Telemetry::outbox`].
    pub telemetry: Box<dyn Fn() -> Telemetry + Send>,
}

/// A message as it is handed to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published<'a> {
    /// Where to.
    pub topic: &'a str,
    /// What; JSON, or empty where a retained message is taken back.
    pub payload: &'a [u8],
    /// The broker keeps it.
    pub retained: bool,
    /// 0 or 1.
    pub qos: u8,
}

/// Takes what concerns commands, or gives it back where it has no room; called on the client's thread, so it must not wait.
pub type CommandSink = Box<dyn Fn(Notice) -> Result<(), Notice> + Send>;

/// Sees every message published, once: an event that is sent again after a reconnect is not shown again.
pub type Tap = Arc<dyn Fn(&Published<'_>) + Send + Sync>;

/// Limits that hardly anybody needs to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first packet to CONNACK, name resolution and TLS included.
    pub connect: Duration,
    /// From sending a QoS 1 message to its PUBACK; beyond it the connection is made anew.
    pub acknowledge: Duration,
    /// QoS 1 messages sent and not yet acknowledged; the broker may allow fewer.
    pub window: u16,
    /// An event published later than this after its capture, because there was no connection, is `historical`.
    pub historical_after: Duration,
    /// Discovery is published again within this time after Home Assistant has started.
    pub discovery_jitter: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            acknowledge: Duration::from_secs(20),
            window: 32,
            historical_after: Duration::from_secs(2),
            discovery_jitter: Duration::from_secs(3),
        }
    }
}

/// All that [`Client::start`] needs.
pub struct Setup {
    /// `[mqtt]`.
    pub config: MqttConfig,
    /// Where to publish.
    pub topics: Topics,
    /// Published until the first [`Handle::set_status`]; its `boot` is the last will's too.
    pub status: Status,
    /// Where events wait.
    pub spool: Arc<Spool>,
    /// Info and telemetry.
    pub sources: Sources,
    /// Sees every message.
    pub tap: Option<Tap>,
    /// Takes requests; `None`: the client listens to none. Each request that it takes has to be answered through
    /// [`Handle::answer`] or let go through [`Handle::release`]: until then a broker that keeps to MQTT 5 sends only a few.
    pub commands: Option<CommandSink>,
    /// Defaults do.
    pub limits: Limits,
}

/// How the connection is.
#[derive(Clone, Debug)]
pub enum Link {
    /// There is none; the client keeps trying.
    Down {
        /// Why the last attempt or connection ended; `None` before the first has.
        error: Option<Arc<LinkError>>,
    },
    /// Connected.
    Up {
        /// Which connection since the start, counted from 1.
        connection: u64,
    },
}

/// The running client. Dropped without [`Client::stop`], it cuts the connection, and the broker publishes the last will.
#[derive(Debug)]
pub struct Client {
    handle: Handle,
    stop: watch::Sender<Option<StopOrder>>,
    ended: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Speaks to the client from any thread; never waits.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// What the thread and its handles share.
struct Shared {
    spool: Arc<Spool>,
    answers: Answers,
    status: watch::Sender<Status>,
    info: watch::Sender<()>,
    home_assistant: watch::Sender<Option<HomeAssistantConfig>>,
    link: watch::Sender<Link>,
    refused: AtomicU64,
    connections: AtomicU64,
}

/// What stays over connections, on the thread.
struct Core {
    config: MqttConfig,
    topics: Topics,
    boot: Boot,
    options: MqttOptions,
    sources: Sources,
    tap: Option<Tap>,
    commands: Option<CommandSink>,
    /// Of the next request.
    next_token: u64,
    limits: Limits,
    shared: Arc<Shared>,
    stop: watch::Receiver<Option<StopOrder>>,
    rng: StdRng,
    /// As last logged; the same again is not news.
    last_error: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum StopOrder {
    /// Send what waits until then, then say goodbye.
    Drain(Instant),
    /// Cut the connection.
    Cut,
}

impl Client {
    /// What [`Self::stop`] may take beyond its `drain`.
    pub const FAREWELL: Duration = Duration::from_millis(500);

    /// Starts the thread `mqtt`, which connects and keeps connected. Returns at once, whether the broker is there or not.
    ///
    /// # Errors
    /// [`StartError`] for what no waiting cures: certificate files that cannot be read or do not fit.
    pub fn start(setup: Setup) -> Result<Self, StartError> {
        let Setup { config, topics, status, spool, sources, tap, commands, limits } = setup;
        let options = options::options(&config, &topics.client_id(), limits.window, limits.connect)?;
        let (stop, stop_order) = watch::channel(None);
        let shared = Arc::new(Shared {
            spool,
            answers: Answers::default(),
            home_assistant: watch::Sender::new(config.home_assistant.clone()),
            info: watch::Sender::new(()),
            link: watch::Sender::new(Link::Down { error: None }),
            refused: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            status: watch::Sender::new(status.clone()),
        });
        let core = Core {
            config,
            topics,
            boot: status.boot,
            options,
            sources,
            tap,
            commands,
            next_token: 0,
            limits,
            shared: Arc::clone(&shared),
            stop: stop_order,
            rng: StdRng::from_os_rng(),
            last_error: None,
        };
        let (end, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name("mqtt".into()).spawn(move || {
            run_thread(core);
            drop(end);
        })?;
        Ok(Self { handle: Handle { shared }, stop, ended, thread: Some(thread) })
    }

    /// A way to speak to the client from any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Sends what waits for at most `drain`, publishes `offline`, and disconnects. Returns within `drain` and half a
    /// second, even if the broker hangs; without a connection at once. What was not acknowledged stays in the spool.
    pub fn stop(mut self, drain: Duration) {
        self.stop.send_replace(Some(StopOrder::Drain(Instant::now() + drain)));
        self.wait(drain + Self::FAREWELL);
        let left = self.handle.shared.spool.depth();
        if left > 0 {
            tracing::warn!(
                events = left,
                "stopped before the broker had acknowledged all events; those on disk are sent later"
            );
        }
    }

    fn wait(&mut self, limit: Duration) {
        let ended = matches!(self.ended.recv_timeout(limit), Err(mpsc::RecvTimeoutError::Disconnected));
        match self.thread.take() {
            Some(thread) if ended => drop(thread.join()),
            _ => tracing::warn!("the MQTT thread did not end in time; leaving it behind"),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop.send_replace(Some(StopOrder::Cut));
            self.wait(Duration::from_millis(500));
        }
    }
}

impl Handle {
    /// Puts an event in the spool, to be published as soon as may be. Never waits.
    pub fn offer(&self, event: Event) {
        self.shared.spool.push(event);
    }

    /// Publishes an answer as soon as may be, and again over each new connection until the broker has it; `token` is the
    /// request's, at its first answer. Never waits.
    pub fn answer(&self, answer: Answer, reply: ReplyTo, token: Option<Token>) {
        self.shared.answers.push(answer, reply, token);
    }

    /// A request is done with, without an answer. Never waits.
    pub fn release(&self, token: Token) {
        self.shared.answers.release(token);
    }

    /// Publishes another status, now and on each later connection. The same again is not published again.
    pub fn set_status(&self, status: Status) {
        self.shared.status.send_if_modified(|current| {
            let differs = *current != status;
            *current = status;
            differs
        });
    }

    /// Publishes info again: something in it has changed.
    pub fn refresh_info(&self) {
        self.shared.info.send_replace(());
    }

    /// Turns discovery on, off (the entities are removed), or over to another prefix.
    pub fn set_home_assistant(&self, config: Option<HomeAssistantConfig>) {
        self.shared.home_assistant.send_if_modified(|current| {
            let differs = *current != config;
            *current = config;
            differs
        });
    }

    /// How the connection is now.
    pub fn link(&self) -> Link {
        self.shared.link.borrow().clone()
    }

    /// How the connection is, to wait on.
    pub fn watch_link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    /// Where events wait.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.shared.spool
    }

    /// The same figures that telemetry reports.
    pub fn outbox(&self) -> OutboxTelemetry {
        self.shared.outbox()
    }
}

impl Shared {
    fn outbox(&self) -> OutboxTelemetry {
        let figures = self.spool.figures();
        OutboxTelemetry {
            depth: figures.depth,
            stored: figures.stored,
            stored_bytes: figures.stored_bytes,
            lost: figures.lost_space + figures.lost_age + figures.lost_storage,
            lost_space: figures.lost_space,
            lost_age: figures.lost_age,
            lost_storage: figures.lost_storage,
            refused: self.refused.load(Ordering::Relaxed),
            reconnects: self.connections.load(Ordering::Relaxed).saturating_sub(1),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("link", &*self.link.borrow()).finish_non_exhaustive()
    }
}

/// Runs the client until it is stopped. A panic (the protocol library reads what a broker sends) ends one runtime; the
/// next starts after the longest wait.
fn run_thread(mut core: Core) {
    loop {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no runtime for MQTT; trying again");
                std::thread::sleep(Duration::from_secs(1));
                if core.stop.borrow().is_some() {
                    return;
                }
                continue;
            }
        };
        let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(core.keep_connected())));
        if ran.is_ok() {
            // A name that is being resolved can take long and must not hold up the end.
            runtime.shutdown_background();
            return;
        }
        core.shared.link.send_replace(Link::Down { error: None });
        tracing::error!("the MQTT client panicked; it starts anew");
        let longest = core.config.reconnect_backoff.longest;
        let stopped =
            runtime.block_on(async { tokio::time::timeout(longest, stop_ordered(&mut core.stop)).await.is_ok() });
        runtime.shutdown_background();
        if stopped {
            return;
        }
    }
}

impl Core {
    async fn keep_connected(&mut self) {
        let mut stop = self.stop.clone();
        let mut rng = StdRng::from_rng(&mut self.rng);
        let backoff = self.config.reconnect_backoff;
        let pause = async |wait| tokio::time::timeout(wait, stop_ordered(&mut stop)).await.is_ok();
        reconnect(backoff, &mut rng, async || session::connect(self).await, pause).await;
    }
}

/// Connects again and again; between, `pause` waits as long as it is told, unless it says that a stop was ordered.
async fn reconnect(
    backoff: Backoff,
    rng: &mut dyn RngCore,
    mut connect: impl AsyncFnMut() -> End,
    mut pause: impl AsyncFnMut(Duration) -> bool,
) {
    let mut waits = Waits::new(backoff);
    loop {
        match connect().await {
            End::Stopped => return,
            End::Lost { up } => waits.connection_lasted(up),
        }
        let wait = waits.next(rng);
        tracing::debug!(?wait, "waiting before the next attempt to connect");
        if pause(wait).await {
            return;
        }
    }
}

/// Waits until a stop is ordered, or nobody is left who could.
async fn stop_ordered(stop: &mut watch::Receiver<Option<StopOrder>>) {
    let _ = stop.wait_for(Option::is_some).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `reconnect` against connections that end as `ends` says; gives the waits between.
    fn waits(ends: &[End], stop_at: usize) -> Vec<Duration> {
        let backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) };
        let mut rng = StdRng::seed_from_u64(11);
        let (mut attempts, mut waited) = (0, Vec::new());
        let connect = async || {
            attempts += 1;
            ends.get(attempts - 1).copied().unwrap_or(End::Stopped)
        };
        let pause = async |wait| {
            waited.push(wait);
            waited.len() == stop_at
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(reconnect(backoff, &mut rng, connect, pause));
        waited
    }

    #[test]
    fn each_lost_connection_is_followed_by_a_wait_within_its_bound() {
        let waited = waits(&[End::Lost { up: Duration::ZERO }; 12], usize::MAX);
        assert_eq!(waited.len(), 12);
        for (failures, wait) in waited.iter().enumerate() {
            let bound = Duration::from_millis(500 << failures).min(Duration::from_secs(30));
            assert!(*wait <= bound, "{wait:?} after {failures} failures");
        }
        assert!(waited.iter().any(|wait| *wait > Duration::from_secs(5)));
    }

    #[test]
    fn a_broker_that_accepts_and_closes_is_not_asked_ever_faster_than_one_that_is_away() {
        let away = waits(&[End::Lost { up: Duration::ZERO }; 12], usize::MAX);
        let closing = waits(&[End::Lost { up: Duration::from_millis(3) }; 12], usize::MAX);
        assert_eq!(away, closing);
    }

    #[test]
    fn a_stop_ends_the_waiting_and_no_attempt_follows() {
        assert_eq!(waits(&[End::Lost { up: Duration::ZERO }; 12], 3).len(), 3);
        assert_eq!(waits(&[End::Stopped], usize::MAX), [Duration::ZERO; 0]);
    }
}
