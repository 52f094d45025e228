//! `visaged-fleet serve`: joins broker, store, leader's work and HTTP.
//!
//! Several processes may serve one broker and one database. Events come to them by shared subscription, each to one of them; the session of a
//! process that dies is taken over by another one, which empties it, so that what was on its way to the dead one is stored too. One
//! process at a time leads: it sends commands, drives roll-outs, and removes what is too old.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::bundle::{newest, part_id, part_request};
use crate::contract::{CHUNK_COMMAND, ROOT};
use crate::ingest::{self, Counters, Incoming, Pulse};
use crate::link::{BrokerAddress, Connection, Message, SessionOptions, Told};
use crate::rollout::Execution;
use crate::store::{Abandoned, BundleRow, NewCommand, PartsToSend, Registration, Store, StoreError};
use crate::time::Micros;
use crate::web;

/// An instance not heard for this long is dead.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(15);

const BEATS_A_LEASE: u32 = 4;

/// How long the broker keeps the session of a process that is away.
const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

const LEADER_TICK: Duration = Duration::from_millis(500);
const RESEND_AFTER: Duration = Duration::from_secs(20);
const COMMANDS_A_TICK: i64 = 500;

/// A device that has not answered for its parts for so long is sent them again.
const RESEND_PARTS_AFTER: Duration = Duration::from_secs(10);

/// Parts of bundles that are handed to the broker at a time; each has 43 KiB.
const PARTS_AT_A_TIME: usize = 128;

/// Between two looks at what has arrived, while parts are on their way.
const PARTS_TICK: Duration = Duration::from_millis(100);

/// What is hosted is looked at this often, for the topic that says so.
const HOSTED_EVERY: Duration = Duration::from_secs(5);

/// A part of the server that has been at one thing for so long hangs: the database's own time-outs are shorter.
const HANGS: Duration = Duration::from_secs(180);

/// Retained: the newest version of each task that this server hosts.
pub const HOSTED_TOPIC: &str = "visaged/fleet/models";
const RETENTION_EVERY: Duration = Duration::from_secs(3600);
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
/// Short, as there are few servers to a broker, and what they show is old until they are back.
const RECONNECT_LONGEST: Duration = Duration::from_secs(5);

/// How this process serves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the broker is.
    pub broker: BrokerAddress,
    /// The embedded one: nobody else is on it, and it keeps no sessions.
    pub embedded: bool,
    /// No other process serves. Its subscriptions are then plain ones, which outlast the restart of brokers that forget shared ones.
    pub alone: bool,
    /// This process' name among those that serve.
    pub instance: String,
    /// The shared subscriptions' group.
    pub group: String,
    /// See [`DEFAULT_LEASE`].
    pub lease: Duration,
    /// Where HTTP listens.
    pub listen: SocketAddr,
    /// A device that says to be there and was not heard for this long is silent.
    pub silent_after: Duration,
    /// Events and telemetry older than this are removed.
    pub keep: Option<Duration>,
    /// Where devices reach this server over HTTPS, without a slash at its end: hosted bundles are then given out there.
    pub public_url: Option<String>,
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The HTTP port.
    #[error("HTTP: cannot listen on {0}: {1}; choose another address with --listen")]
    Listen(SocketAddr, std::io::Error),
    /// The name is taken.
    #[error("another process serves as instance {0:?} now; give each its own --instance")]
    Replaced(String),
    /// A part ended.
    #[error("a part of the server ended unexpectedly: {0}; please report this")]
    Part(String),
}

/// What the parts share.
#[derive(Debug)]
pub struct Shared {
    /// The store.
    pub store: Store,
    /// How this process serves.
    pub settings: Settings,
    /// What was counted.
    pub counters: Arc<Counters>,
    /// Whether the broker is connected and gave every subscription.
    pub linked: AtomicBool,
    /// Whether this process leads.
    pub leads: AtomicBool,
    /// Changes when something that pages show has changed.
    pub version: watch::Sender<i64>,
    /// Shows that the leader's work goes on.
    pub leading: Pulse,
    /// Connections to the broker so far.
    links: AtomicU64,
    client: Mutex<Option<rumqttc::v5::AsyncClient>>,
    registration: Mutex<Registration>,
}

impl Shared {
    fn registration(&self) -> Registration {
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn client(&self) -> Option<rumqttc::v5::AsyncClient> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_client(&self, client: Option<rumqttc::v5::AsyncClient>) {
        self.links.fetch_add(u64::from(client.is_some()), Ordering::Relaxed);
        self.linked.store(client.is_some(), Ordering::Relaxed);
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

/// A server that has started.
#[derive(Debug)]
pub struct Server {
    /// Where HTTP listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    tasks: JoinSet<Result<(), ServeError>>,
    writer: tokio::task::JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Starts all parts.
    ///
    /// # Errors
    /// [`ServeError`]: the store, or the HTTP port.
    pub async fn start(store: Store, settings: Settings) -> Result<Self, ServeError> {
        let refused = |error| ServeError::Listen(settings.listen, error);
        let listener = tokio::net::TcpListener::bind(settings.listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let now = store.now().await?;
        let registration = store.register(&settings.instance, now).await?;
        let shared = Arc::new(Shared {
            store: store.clone(),
            settings,
            counters: Arc::default(),
            linked: AtomicBool::new(false),
            leads: AtomicBool::new(false),
            version: watch::Sender::new(0),
            leading: Pulse::default(),
            links: AtomicU64::new(0),
            client: Mutex::new(None),
            registration: Mutex::new(registration),
        });
        let (stop, stopped) = watch::channel(false);
        let (incoming, queue) = mpsc::channel(ingest::QUEUE);
        let writer = tokio::spawn(ingest::write(store, queue, Arc::clone(&shared.counters)));
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_linked(Arc::clone(&shared), incoming.clone(), stopped.clone()));
        tasks.spawn(keep_registered(Arc::clone(&shared), incoming, stopped.clone()));
        tasks.spawn(lead(Arc::clone(&shared), stopped.clone()));
        tasks.spawn(watch_changes(Arc::clone(&shared), stopped.clone()));
        tasks.spawn(tell_systemd(Arc::clone(&shared), stopped.clone()));
        let routes = web::router(Arc::clone(&shared));
        tasks.spawn(async move {
            let end = wait_for_stop(stopped);
            let served = axum::serve(listener, routes).with_graceful_shutdown(end).await;
            served.map_err(|error| ServeError::Part(format!("HTTP: {error}")))
        });
        Ok(Self { address, shared, tasks, writer, stop })
    }

    /// What the parts share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs until `stop` resolves, or a part ends.
    ///
    /// # Errors
    /// [`ServeError`] of the part that ended.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let ended = tokio::select! {
            () = stop => Ok(()),
            Some(ended) = self.tasks.join_next() => match ended {
                Ok(Ok(())) => Err(ServeError::Part("it returned".into())),
                Ok(Err(error)) => Err(error),
                Err(error) => Err(ServeError::Part(error.to_string())),
            },
        };
        tell(&[NotifyState::Stopping]);
        self.stop.send_replace(true);
        // Viewers of pages hold connections open; they are not waited for.
        let rest = async {
            while self.tasks.join_next().await.is_some() {}
            let _ = (&mut self.writer).await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), rest).await;
        self.shared.store.close().await;
        ended
    }
}

async fn wait_for_stop(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Waits so long, or until the stop; whether it was the stop.
async fn pause(stopped: &mut watch::Receiver<bool>, wait: Duration) -> bool {
    tokio::time::timeout(wait, stopped.wait_for(|stop| *stop)).await.is_ok()
}

// ---- the session ----

/// What a session subscribes to.
struct Filters {
    /// Each message to one process, where several may serve.
    once: Vec<String>,
    /// Every process sees them, as the broker gives retained messages to plain subscriptions alone.
    all: Vec<String>,
    /// What `once` is for a process that serves the other way, and may be left in the session.
    other: Vec<String>,
}

impl Filters {
    fn new(settings: &Settings) -> Self {
        let leaves = ["face", "summary", "gap", "telemetry", "rsp/+"];
        let plain = leaves.map(|leaf| format!("{ROOT}/+/+/{leaf}"));
        let shared = leaves.map(|leaf| format!("$share/{}/{ROOT}/+/+/{leaf}", settings.group));
        let (once, other) = if settings.embedded || settings.alone { (plain, shared) } else { (shared, plain) };
        let all = ["status", "info"].map(|leaf| format!("{ROOT}/+/+/{leaf}"));
        Self { once: once.into(), all: all.into(), other: other.into() }
    }
}

async fn keep_linked(
    shared: Arc<Shared>,
    incoming: mpsc::Sender<Incoming>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let mut wait = RECONNECT_FIRST;
    while !*stopped.borrow() {
        let begun = tokio::time::Instant::now();
        let client_id = shared.registration().client_id;
        let session = SessionOptions::storing(&client_id, shared.settings.embedded, SESSION_EXPIRY);
        let mut connection = Connection::new(&shared.settings.broker, &session);
        let ended = tokio::select! {
            ended = listen(&shared, &mut connection, &incoming) => ended,
            () = wait_for_stop(stopped.clone()) => {
                shared.set_client(None);
                connection.disconnect().await;
                return Ok(());
            }
        };
        shared.set_client(None);
        if begun.elapsed() > RECONNECT_LONGEST {
            wait = RECONNECT_FIRST;
        }
        tracing::warn!(reason = ended, ?wait, "no connection to the broker");
        if pause(&mut stopped, wait).await {
            return Ok(());
        }
        wait = (wait * 2).min(RECONNECT_LONGEST);
    }
    Ok(())
}

/// One connection's life; gives why it ended.
async fn listen(shared: &Shared, connection: &mut Connection, incoming: &mpsc::Sender<Incoming>) -> String {
    let filters = Filters::new(&shared.settings);
    loop {
        match connection.next().await {
            Ok(Told::Connected(session)) => {
                tracing::info!(session, "connected to the broker");
                connection.subscribe(&filters.once);
                connection.subscribe(&filters.all);
                if session {
                    filters.other.iter().for_each(|filter| connection.unsubscribe(filter));
                }
            }
            Ok(Told::Subscribed(refused)) if refused.is_empty() => shared.set_client(Some(connection.client().clone())),
            Ok(Told::Subscribed(refused)) => {
                let reasons = refused.join(", ");
                return format!(
                    "the broker refuses subscriptions: {reasons}; may this user read {ROOT}/#, and does the broker share subscriptions?"
                );
            }
            Ok(Told::Message(message)) => hand_on(shared, incoming, message).await,
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

async fn hand_on(shared: &Shared, incoming: &mpsc::Sender<Incoming>, message: Message) {
    if message.is_qos_0() {
        if incoming.try_send(Incoming::Own(message)).is_err() {
            shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    } else {
        let _ = incoming.send(Incoming::Own(message)).await;
    }
}

// ---- instances ----

async fn keep_registered(
    shared: Arc<Shared>,
    incoming: mpsc::Sender<Incoming>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let lease = shared.settings.lease;
    let mut adoptions = JoinSet::new();
    let mut heard = 0;
    while !pause(&mut stopped, lease / BEATS_A_LEASE).await {
        match beat(&shared).await {
            Ok(()) => heard += 1,
            Err(error @ ServeError::Replaced(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the heartbeat could not be written");
                heard = 0;
            }
        }
        while adoptions.try_join_next().is_some() {}
        // After the database was away everybody's heartbeat is old: the others get as long as they may take anyway.
        if shared.settings.embedded || !adoptions.is_empty() || heard <= BEATS_A_LEASE {
            continue;
        }
        match find_abandoned(&shared).await {
            Ok(Some(session)) => {
                adoptions.spawn(adopt(Arc::clone(&shared), incoming.clone(), session));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "abandoned sessions could not be looked for"),
        }
    }
    Ok(())
}

/// Says that this process is there. Where its session was taken over (it was not heard for too long), it goes on with a new one.
async fn beat(shared: &Shared) -> Result<(), ServeError> {
    let store = &shared.store;
    let registration = shared.registration();
    let now = store.now().await?;
    if store.heartbeat(&registration, now).await? {
        return Ok(());
    }
    if store.is_replaced(&registration).await? {
        return Err(ServeError::Replaced(registration.name));
    }
    let renewed = store.register(&registration.name, now).await?;
    tracing::warn!(
        session = renewed.client_id,
        "another instance took over the session of this one; a new one is begun"
    );
    *shared.registration.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
    // The connection is cut by the broker when its session is taken, so the new id is used by itself.
    Ok(())
}

async fn find_abandoned(shared: &Shared) -> Result<Option<Abandoned>, StoreError> {
    let now = shared.store.now().await?;
    shared.store.adopt(&shared.registration(), now.minus(shared.settings.lease), now).await
}

/// Empties the session that a dead instance has left at the broker, and ends it.
async fn adopt(shared: Arc<Shared>, incoming: mpsc::Sender<Incoming>, session: Abandoned) {
    tracing::info!(instance = session.name, "an instance is gone; its session is taken over");
    let emptied = tokio::time::timeout(DRAIN_LIMIT, empty(&shared, &incoming, &session)).await;
    let outcome = match emptied {
        Ok(Ok(())) => shared.store.adopted(&shared.registration(), &session).await.map_err(|error| error.to_string()),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!("not done within {DRAIN_LIMIT:?}")),
    };
    match outcome {
        Ok(()) => {
            shared.counters.adopted.fetch_add(1, Ordering::Relaxed);
            tracing::info!(instance = session.name, "its session is empty and ended");
        }
        Err(reason) => {
            tracing::warn!(instance = session.name, reason, "its session could not be emptied; tried again later")
        }
    }
}

async fn empty(shared: &Shared, incoming: &mpsc::Sender<Incoming>, session: &Abandoned) -> Result<(), String> {
    let mark = format!("visaged/fleet/mark/{}", Uuid::new_v4());
    let options = SessionOptions::storing(&session.client_id, false, SESSION_EXPIRY);
    let mut connection = Connection::new(&shared.settings.broker, &options);
    let filters = Filters::new(&shared.settings);
    let filters: Vec<_> = [filters.once, filters.all, filters.other].concat();
    let mut left = filters.len();
    loop {
        match connection.next().await.map_err(|error| error.to_string())? {
            Told::Connected(false) => break,
            Told::Connected(true) => {
                for filter in &filters {
                    connection.unsubscribe(filter);
                }
                connection.subscribe(std::slice::from_ref(&mark));
            }
            Told::Unsubscribed => {
                left -= left.min(1);
                if left == 0 && !connection.publish(&mark, String::new()) {
                    return Err("no room for the mark".into());
                }
            }
            // Brokers keep the order within a session: before the mark lies all that was waiting.
            Told::Message(message) if message.topic() == Some(&mark) => {
                let (done, stored) = oneshot::channel();
                let _ = incoming.send(Incoming::Mark(done)).await;
                stored.await.map_err(|_| "the writer has ended".to_owned())?;
                break;
            }
            Told::Message(message) => drop(incoming.send(Incoming::Adopted(message)).await),
            _ => {}
        }
    }
    connection.disconnect().await;
    // A clean start without expiry is how MQTT 5 ends a session.
    let options = SessionOptions::storing(&session.client_id, true, Duration::ZERO);
    let mut connection = Connection::new(&shared.settings.broker, &options);
    while !matches!(connection.next().await.map_err(|error| error.to_string())?, Told::Connected(_)) {}
    connection.disconnect().await;
    Ok(())
}

// ---- the leader ----

async fn lead(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) -> Result<(), ServeError> {
    let mut cleaned = None::<tokio::time::Instant>;
    let mut parts = Parts::default();
    let mut hosted = Hosted::default();
    while !pause(&mut stopped, LEADER_TICK).await {
        let _busy = shared.leading.begin();
        let leads = match hold_lease(&shared).await {
            Ok(leads) => leads,
            Err(error) => {
                tracing::warn!(%error, "the leader's lease could not be asked for");
                false
            }
        };
        shared.leads.store(leads, Ordering::Relaxed);
        // A leader that cannot reach devices leaves the work for one that can.
        if !leads || !shared.linked.load(Ordering::Relaxed) {
            continue;
        }
        if let Err(error) = work(&shared, &mut parts).await {
            tracing::warn!(%error, "commands and roll-outs wait");
        }
        if let Err(error) = hosted.say(&shared).await {
            tracing::warn!(%error, "what is hosted could not be said");
        }
        if let Some(keep) = shared.settings.keep.filter(|_| cleaned.is_none_or(|at| at.elapsed() > RETENTION_EVERY)) {
            cleaned = Some(tokio::time::Instant::now());
            match shared.store.remove_older(Micros::now().minus(keep)).await {
                Ok(0) => {}
                Ok(events) => tracing::info!(events, "events older than the retention were removed"),
                Err(error) => tracing::warn!(%error, "what is too old could not be removed"),
            }
        }
    }
    Ok(())
}

async fn hold_lease(shared: &Shared) -> Result<bool, StoreError> {
    let now = shared.store.now().await?;
    let until = if shared.linked.load(Ordering::Relaxed) { now.plus(shared.settings.lease) } else { now };
    shared.store.lease("leader", &shared.registration().run, now, until).await
}

async fn work(shared: &Shared, parts: &mut Parts) -> Result<(), StoreError> {
    for id in shared.store.open_rollouts().await? {
        drive(&shared.store, &id, Micros::now()).await?;
    }
    send_commands(shared).await?;
    // As long as they go out at once, answers come at once: no need to wait for the next round.
    for _ in 0..LEADER_TICK.as_millis() / PARTS_TICK.as_millis() {
        if parts.send(shared).await? == 0 {
            break;
        }
        tokio::time::sleep(PARTS_TICK).await;
    }
    Ok(())
}

/// One step of one roll-out.
///
/// # Errors
/// [`StoreError`].
pub async fn drive(store: &Store, id: &str, now: Micros) -> Result<(), StoreError> {
    let Some(mut taken) = store.take_rollout(id, now).await? else { return Ok(()) };
    let due = std::mem::take(&mut taken.due);
    let changes = taken.rollout.step(due, now);
    if !taken.differs() {
        return Ok(());
    }
    let begin = store.rollout_queue(&taken, &changes).await?;
    let not_after = now.plus(Duration::from_secs(taken.rollout.plan.timeout_s.into()));
    let told = (!taken.rollout.plan.without_expiry).then_some(not_after);
    let parts = match begin.is_empty() {
        true => None,
        false => parts_of(store, &taken.args).await?,
    };
    let commands: Vec<_> = (begin.into_iter())
        .map(|device| {
            let command = format!("{id}.{device}");
            NewCommand {
                payload: crate::rollout::payload(&command, &taken.args, told),
                id: command,
                device,
                name: taken.command.clone(),
                parts: parts.clone(),
                not_after,
                rollout: Some(id.to_owned()),
                created_by: format!("roll-out {id}"),
            }
        })
        .collect();
    // Not put back: an operator was faster. The next step sees what came of it.
    if store.put_rollout(&taken, Some((&changes, &commands)), None, now).await? && taken.has_moved() {
        let rollout = &taken.rollout;
        tracing::info!(
            rollout = id,
            state = rollout.state.word(),
            wave = rollout.wave + 1,
            done = rollout.total(|execution| execution == Execution::Succeeded),
            failed = rollout.total(Execution::is_failure),
            "roll-out"
        );
    }
    Ok(())
}

async fn send_commands(shared: &Shared) -> Result<(), StoreError> {
    let Some(client) = shared.client() else { return Ok(()) };
    let now = Micros::now();
    let waiting = shared.store.commands_to_send(now, now.minus(RESEND_AFTER), COMMANDS_A_TICK).await?;
    let mut sent = Vec::with_capacity(waiting.len());
    for command in waiting {
        let topic = command.device.topic(&format!("cmd/{}", command.name));
        if client.try_publish(topic, rumqttc::v5::mqttbytes::QoS::AtLeastOnce, false, command.payload).is_err() {
            break;
        }
        sent.push(command.id);
    }
    if sent.is_empty() { Ok(()) } else { shared.store.commands_sent(&sent, now).await }
}

/// The hosted bundle that the arguments of a `models.install` announce in parts.
///
/// # Errors
/// [`StoreError`].
pub async fn parts_of(store: &Store, args: &serde_json::Value) -> Result<Option<(String, i64)>, StoreError> {
    let hash = args.get("sha256").and_then(|hash| hash.as_str()).filter(|_| args.get("chunks").is_some());
    let Some(hash) = hash else { return Ok(None) };
    Ok(store.bundle_of(hash).await?.map(|bundle| (bundle.name, bundle.parts)))
}

/// Bundles on their way over MQTT. How far each is stands in the store, so that another leader can go on.
#[derive(Debug, Default)]
struct Parts {
    /// The one that was sent last: a roll-out sends the same to many.
    bundle: Option<(String, Vec<String>)>,
}

impl Parts {
    /// Hands over what can go; gives how many parts that were.
    async fn send(&mut self, shared: &Shared) -> Result<usize, StoreError> {
        let Some(client) = shared.client() else { return Ok(0) };
        let now = Micros::now();
        let waiting = shared.store.parts_to_send(now.minus(RESEND_PARTS_AFTER), PARTS_AT_A_TIME as i64).await?;
        let (mut sent, mut room) = (Vec::new(), PARTS_AT_A_TIME);
        'all: for parts in waiting {
            let bundle = self.bundle(&shared.store, &parts.bundle).await?;
            let topic = parts.device.topic(&format!("cmd/{CHUNK_COMMAND}"));
            let PartsToSend { from, to, attempt, .. } = parts;
            let mut reached = from;
            for index in from..to {
                let Some(data) = usize::try_from(index).ok().and_then(|index| bundle.get(index)) else { break };
                let request = part_request(&part_id(&parts.command, index, attempt), &parts.command, index, data);
                let qos = rumqttc::v5::mqttbytes::QoS::AtLeastOnce;
                if room == 0 || client.try_publish(topic.as_str(), qos, false, request).is_err() {
                    sent.extend((reached > from).then_some((parts, reached)));
                    break 'all;
                }
                (reached, room) = (index + 1, room - 1);
            }
            sent.push((parts, reached));
        }
        if !sent.is_empty() {
            shared.store.parts_sent(&sent, now).await?;
        }
        Ok(PARTS_AT_A_TIME - room)
    }

    async fn bundle(&mut self, store: &Store, name: &str) -> Result<&[String], StoreError> {
        if self.bundle.as_ref().is_none_or(|(known, _)| known != name) {
            self.bundle = Some((name.to_owned(), store.bundle_parts(name).await?));
        }
        Ok(self.bundle.as_ref().map_or(&[], |(_, parts)| parts))
    }
}

/// Says on [`HOSTED_TOPIC`] what the newest versions are: for whoever wants to know that a device could have a newer one.
#[derive(Debug, Default)]
struct Hosted {
    looked: Option<tokio::time::Instant>,
    said: Option<(u64, String)>,
}

impl Hosted {
    async fn say(&mut self, shared: &Shared) -> Result<(), StoreError> {
        if self.looked.is_some_and(|at| at.elapsed() < HOSTED_EVERY) {
            return Ok(());
        }
        self.looked = Some(tokio::time::Instant::now());
        let now = (shared.links.load(Ordering::Relaxed), hosted_payload(&shared.store.bundles().await?));
        let Some(client) = shared.client().filter(|_| self.said.as_ref() != Some(&now)) else { return Ok(()) };
        let qos = rumqttc::v5::mqttbytes::QoS::AtLeastOnce;
        if client.try_publish(HOSTED_TOPIC, qos, true, now.1.clone()).is_ok() {
            self.said = Some(now);
        }
        Ok(())
    }
}

fn hosted_payload(bundles: &[BundleRow]) -> String {
    let models: Vec<_> = (newest(bundles).into_iter())
        .map(|bundle| json!({"task": bundle.task, "version": bundle.version, "sha256": bundle.sha256}))
        .collect();
    json!({"schema": "visaged.fleet.models.v1", "models": models}).to_string()
}

// ---- systemd ----

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// Ready when HTTP listens and the store is open: a broker that is away is said in the status, and no reason to start anew. The watchdog
/// is told as long as neither the writer nor the leader hangs.
async fn tell_systemd(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) -> Result<(), ServeError> {
    tell(&[NotifyState::Ready]);
    let ping_every = sd_notify::watchdog_enabled().map_or(Duration::from_secs(5), |watchdog| watchdog / 3);
    loop {
        let stuck = [("the writer", &shared.counters.writing), ("the leader", &shared.leading)]
            .into_iter()
            .find(|(_, pulse)| pulse.busy_for() > HANGS);
        let words = match (stuck, shared.linked.load(Ordering::Relaxed)) {
            (Some((who, _)), _) => format!("{who} hangs"),
            (None, true) => "connected to the broker".to_owned(),
            (None, false) => "no connection to the broker; trying again".to_owned(),
        };
        tell(&[NotifyState::Status(&words)]);
        if stuck.is_none() {
            tell(&[NotifyState::Watchdog]);
        }
        if pause(&mut stopped, ping_every).await {
            return Ok(());
        }
    }
}

// ---- pages ----

/// One look a second for all viewers, whichever process stored the news.
async fn watch_changes(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) -> Result<(), ServeError> {
    while !pause(&mut stopped, Duration::from_secs(1)).await {
        if shared.version.receiver_count() == 0 {
            continue;
        }
        if let Ok(version) = shared.store.fingerprint(Micros::now()).await {
            shared.version.send_if_modified(|known| std::mem::replace(known, version) != version);
        }
    }
    Ok(())
}
