//! What the MQTT tests share: a real Mosquitto, a gate that can cut or deafen a connection, a subscriber that
//! records, and a client with events to publish.

#![allow(dead_code, reason = "each test file uses a part")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event as Polled, MqttOptions};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use visaged::config::{Backoff, DeviceConfig, MqttConfig};
use visaged::expression::Emotion;
use visaged::mqtt::payload::{InfoSchema, OutboxTelemetry, TelemetrySchema};
use visaged::mqtt::{
    Client, Handle, Info, Limits, Link, LinkError, MemorySettings, Setup, Sources, Spool, Status, Telemetry, Topics,
};
use visaged::report::{Boot, Event, EventBody, FaceEvent, FaceEventKind, Moment};

/// Nothing here takes longer unless it hangs.
pub(crate) const HANGS: Duration = Duration::from_secs(30);

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A Mosquitto without persistence, with a configuration of its own; killed at drop.
pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    pub(crate) folder: TempDir,
    child: Option<Child>,
}

impl Mosquitto {
    pub(crate) fn start() -> Self {
        Self::with(|_| "allow_anonymous true\n".into())
    }

    /// `more` gets the folder, for files that the configuration names, and gives further lines.
    pub(crate) fn with(more: impl Fn(&Path) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let lines = more(folder.path());
        let config = format!("user root\npersistence false\nlog_dest none\nlistener {port} 127.0.0.1\n{lines}");
        std::fs::write(folder.path().join("mosquitto.conf"), config).unwrap();
        let mut mosquitto = Self { port, folder, child: None };
        mosquitto.restart();
        mosquitto
    }

    /// As after a power cut: nothing is said to clients, nothing is kept.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        let start = Instant::now();
        let mut child = self.spawn();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(start.elapsed() < HANGS, "mosquitto does not listen on port {}", self.port);
            // A program that another test is just starting can hold a copy of the port for a moment.
            if child.try_wait().unwrap().is_some() {
                child = self.spawn();
            }
            std::thread::yield_now();
        }
        self.child = Some(child);
    }
}

impl Mosquitto {
    fn spawn(&self) -> Child {
        let program = ["/usr/sbin/mosquitto", "mosquitto"].into_iter().find(|path| Path::new(path).exists());
        Command::new(program.unwrap_or("mosquitto"))
            .arg("-c")
            .arg(self.folder.path().join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto must be installed; `make test` does it")
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a [`Gate`] lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything.
    Open,
    /// Connections are cut, new ones closed at once.
    Shut,
    /// From the client to the broker only.
    Deaf,
    /// Nothing, but connections stay.
    Frozen,
}

/// A port that leads to a broker.
pub(crate) struct Gate {
    pub(crate) port: u16,
    mode: watch::Sender<Mode>,
    _runtime: Runtime,
}

impl Gate {
    pub(crate) fn to(target: u16, mode: Mode) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, watched) = watch::channel(mode);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target, watched.clone()));
            }
        });
        Self { port, mode, _runtime: runtime }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn pass(client: tokio::net::TcpStream, target: u16, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow() == Mode::Shut {
        return;
    }
    let Ok(broker) = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let (client_read, client_write) = client.into_split();
    let (broker_read, broker_write) = broker.into_split();
    let to_broker = pump(client_read, broker_write, mode.clone(), &[Mode::Open, Mode::Deaf]);
    let to_client = pump(broker_read, client_write, mode.clone(), &[Mode::Open]);
    tokio::select! {
        () = to_broker => {}
        () = to_client => {}
        _ = mode.wait_for(|mode| *mode == Mode::Shut) => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    passes: &[Mode],
) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if mode.wait_for(|mode| passes.contains(mode)).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// A message as a subscriber got it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) retained: bool,
    pub(crate) correlation: Option<Vec<u8>>,
}

impl Message {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or(Value::Null)
    }
}

/// A subscriber to everything, which comes back by itself after a restart of the broker.
pub(crate) struct Recorder {
    heard: Arc<Heard>,
    client: AsyncClient,
    runtime: Runtime,
}

#[derive(Default)]
struct Heard {
    state: Mutex<(Vec<Message>, usize)>,
    news: Condvar,
}

impl Recorder {
    /// Subscribed when this returns.
    pub(crate) fn on(port: u16) -> Self {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = format!("recorder-{}-{number}", std::process::id());
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_max_packet_size(Some(1024 * 1024));
        let (client, mut eventloop) = AsyncClient::new(options, 16);
        let heard = Arc::<Heard>::default();
        let runtime = runtime();
        runtime.spawn({
            let (client, heard) = (client.clone(), Arc::clone(&heard));
            async move {
                loop {
                    match eventloop.poll().await {
                        Ok(Polled::Incoming(Packet::ConnAck(_))) => {
                            client.subscribe("#", QoS::AtLeastOnce).await.unwrap();
                        }
                        Ok(Polled::Incoming(Packet::SubAck(_))) => heard.add(None),
                        Ok(Polled::Incoming(Packet::Publish(publish))) => heard.add(Some(publish)),
                        Ok(_) => {}
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            }
        });
        let recorder = Self { heard, client, runtime };
        recorder.wait_subscribed(1);
        recorder
    }

    /// Waits for the n-th subscription since the start: the first, and one for each reconnect.
    pub(crate) fn wait_subscribed(&self, n: usize) {
        self.heard.wait("a subscription", |_, subscriptions| subscriptions >= n);
    }

    /// Waits until `enough` holds of the messages so far; gives them.
    pub(crate) fn wait(&self, what: &str, enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        self.heard.wait(what, |messages, _| enough(messages))
    }

    pub(crate) fn messages(&self) -> Vec<Message> {
        self.heard.wait("anything", |_, _| true)
    }

    /// Publishes a request that names where its answer is to go.
    pub(crate) fn ask(&self, topic: &str, payload: &str, response_topic: &str, correlation: &[u8]) {
        let properties = PublishProperties {
            response_topic: Some(response_topic.to_owned()),
            correlation_data: Some(correlation.to_vec().into()),
            ..PublishProperties::default()
        };
        let publish =
            self.client.publish_with_properties(topic, QoS::AtLeastOnce, false, payload.to_owned(), properties);
        self.runtime.block_on(publish).unwrap();
    }

    pub(crate) fn publish(&self, topic: &str, retained: bool, payload: &str) {
        self.runtime.block_on(self.client.publish(topic, QoS::AtLeastOnce, retained, payload.to_owned())).unwrap();
    }
}

impl Heard {
    fn add(&self, publish: Option<Publish>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match publish {
            Some(publish) => state.0.push(Message {
                topic: String::from_utf8(publish.topic.to_vec()).unwrap(),
                payload: publish.payload.to_vec(),
                retained: publish.retain,
                correlation: publish.properties.and_then(|p| p.correlation_data).map(|data| data.to_vec()),
            }),
            None => state.1 += 1,
        }
        self.news.notify_all();
    }

    fn wait(&self, what: &str, enough: impl Fn(&[Message], usize) -> bool) -> Vec<Message> {
        let start = Instant::now();
        let mut state = self.state.lock().unwrap();
        while !enough(&state.0, state.1) {
            let Some(left) = HANGS.checked_sub(start.elapsed()) else {
                let heard: Vec<_> = state.0.iter().map(|m| (&m.topic, String::from_utf8_lossy(&m.payload))).collect();
                panic!("waited in vain for {what}; heard: {heard:#?}");
            };
            state = self.news.wait_timeout(state, left).unwrap().0;
        }
        state.0.clone()
    }
}

pub(crate) fn topics() -> Topics {
    Topics::new(&DeviceConfig { site: "lobby".into(), name: "mirror-1".into() }).unwrap()
}

pub(crate) fn boot() -> Boot {
    Boot(uuid::Uuid::from_u128(0x7d8f_0a44_53b6_4f3c_9d0a_1c2b_3d4e_5f60))
}

pub(crate) fn moment() -> Moment {
    Moment(jiff::Timestamp::now())
}

pub(crate) fn config(port: u16) -> MqttConfig {
    let quick = Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(50) };
    MqttConfig { host: "127.0.0.1".into(), port, reconnect_backoff: quick, ..MqttConfig::default() }
}

pub(crate) fn setup(config: MqttConfig) -> Setup {
    Setup {
        spool: Arc::new(Spool::in_memory(&MemorySettings { events: config.queue_events, max_age: None })),
        config,
        topics: topics(),
        status: Status::online(boot(), moment()),
        sources: Sources { info: Box::new(info), telemetry: Box::new(telemetry) },
        tap: None,
        commands: None,
        limits: Limits { discovery_jitter: Duration::ZERO, ..Limits::default() },
    }
}

pub(crate) fn client(port: u16) -> Client {
    Client::start(setup(config(port))).unwrap()
}

pub(crate) fn info() -> Info {
    Info {
        schema: InfoSchema::V1,
        device: "mirror-1".into(),
        boot: boot(),
        version: "0.1.0".into(),
        board: None,
        camera: None,
        models: Vec::new(),
        capabilities: Vec::new(),
    }
}

pub(crate) fn telemetry() -> Telemetry {
    Telemetry {
        schema: TelemetrySchema::V1,
        device: "mirror-1".into(),
        boot: boot(),
        time: moment(),
        uptime_s: Duration::from_secs(1).into(),
        capture_fps: 30.0,
        analysis_fps: 30.0,
        frames: 30,
        dropped: [].into(),
        consent: None,
        people_in_view: 0,
        latency: [].into(),
        cpu_percent: 1.0,
        memory_bytes: 1,
        temperature_celsius: None,
        restarts: 0,
        outbox: OutboxTelemetry::default(),
    }
}

pub(crate) fn event(seq: u64) -> Event {
    let body = EventBody::Face(FaceEvent {
        kind: FaceEventKind::Sample,
        track: 1,
        emotion: Emotion::Happiness,
        probabilities: [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        neutrality: 0.5,
        quality: 1.0,
        rect: [0.0, 0.0, 100.0, 100.0],
    });
    Event { boot: boot(), seq, time: moment(), captured: Some(Instant::now()), body }
}

pub(crate) fn offer(handle: &Handle, seqs: std::ops::Range<u64>) {
    for seq in seqs {
        handle.offer(event(seq));
    }
}

/// The sequence numbers of the events among `messages`, as they came.
pub(crate) fn seqs(messages: &[Message]) -> Vec<u64> {
    let face = topics().face();
    messages.iter().filter(|m| m.topic == face).map(|m| m.json()["seq"].as_u64().unwrap()).collect()
}

/// The same, each at its first coming.
pub(crate) fn first_seqs(messages: &[Message]) -> Vec<u64> {
    let mut known = std::collections::HashSet::new();
    seqs(messages).into_iter().filter(|seq| known.insert(*seq)).collect()
}

/// The last status among `messages`.
pub(crate) fn last_status(messages: &[Message]) -> Value {
    let status = topics().status();
    messages.iter().rev().find(|m| m.topic == status).map_or(Value::Null, Message::json)
}

pub(crate) fn wait_link(handle: &Handle, what: &str, holds: impl Fn(&Link) -> bool) -> Link {
    let mut link = handle.watch_link();
    let waited = runtime()
        .block_on(async { tokio::time::timeout(HANGS, link.wait_for(|l| holds(l))).await.map(|l| l.unwrap().clone()) });
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}; link: {:?}", handle.link()))
}

pub(crate) fn wait_up(handle: &Handle) {
    wait_link(handle, "a connection", |link| matches!(link, Link::Up { .. }));
}

pub(crate) fn wait_error(handle: &Handle) -> Arc<LinkError> {
    match wait_link(handle, "an error", |link| matches!(link, Link::Down { error: Some(_) })) {
        Link::Down { error: Some(error) } => error,
        link => unreachable!("{link:?}"),
    }
}

/// Waits until the broker has acknowledged everything.
pub(crate) fn wait_empty(spool: &Spool) {
    let start = Instant::now();
    while spool.depth() > 0 {
        assert!(start.elapsed() < HANGS, "{} events were never acknowledged", spool.depth());
        std::thread::yield_now();
    }
}

/// Runs `mosquitto_sub` until it has `count` messages of `filter`; gives `topic payload` lines.
pub(crate) fn mosquitto_sub(port: u16, version: &str, filter: &str, count: usize) -> Vec<String> {
    let output = Command::new("mosquitto_sub")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-V", version, "-t", filter, "-v", "-q", "1"])
        .args(["-C", &count.to_string(), "-W", "20"])
        .output()
        .expect("mosquitto_sub must be installed; `make test` does it");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Makes authorities and certificates for TLS tests.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Writes the authority's certificate.
    pub(crate) fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.certificate.pem()).unwrap();
        path.to_owned()
    }

    /// Writes `{name}.pem` and `{name}.key` for a server or client of that name.
    pub(crate) fn issue(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        self.issue_for(folder, name, 2000..2900)
    }

    /// ... valid from the first of those years to the last.
    pub(crate) fn issue_for(&self, folder: &Path, name: &str, years: std::ops::Range<i32>) -> (PathBuf, PathBuf) {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (pem, key_path) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&pem, certificate.pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        (pem, key_path)
    }
}

/// What any broker must do for us; `port` leads to a fresh one.
pub(crate) fn assert_the_contract_holds(port: u16) {
    let recorder = Recorder::on(port);
    let seen = Arc::<Mutex<Vec<(String, bool, u8)>>>::default();
    let tap = {
        let seen = Arc::clone(&seen);
        Arc::new(move |message: &visaged::mqtt::Published<'_>| {
            seen.lock().unwrap().push((message.topic.to_owned(), message.retained, message.qos));
        })
    };
    let client = Client::start(Setup { tap: Some(tap), ..setup(config(port)) }).unwrap();
    let handle = client.handle();
    offer(&handle, 0..200);
    let telemetry = topics().telemetry();
    let messages = recorder.wait("200 events and telemetry", |messages| {
        seqs(messages).len() >= 200 && messages.iter().any(|m| m.topic == telemetry)
    });
    wait_empty(handle.spool());
    assert!(seqs(&messages).into_iter().eq(0..200), "in order, each once");
    assert_eq!(last_status(&messages)["status"], "online");
    for message in &messages {
        assert_keeps_to_its_schema(message);
    }

    let late = Recorder::on(port);
    let kept = late.wait("status and info for one who comes late", |messages| messages.len() >= 2);
    assert!(kept.iter().all(|m| [topics().status(), topics().info()].contains(&m.topic)), "{kept:?}");

    handle.set_status(Status::degraded(boot(), moment(), "camera unplugged"));
    recorder.wait("degraded", |messages| last_status(messages)["reason"] == "camera unplugged");

    // Dropped, the client cuts the connection as a crash would.
    drop(client);
    let messages = recorder.wait("the last will", |messages| last_status(messages)["status"] == "offline");
    assert_eq!(last_status(&messages)["reason"], "connection lost");
    assert_eq!(last_status(&messages)["boot"], boot().to_string());
    let late = Recorder::on(port);
    late.wait("the last will, kept", |messages| last_status(messages)["reason"] == "connection lost");

    let client = self::client(port);
    wait_up(&client.handle());
    recorder.wait("online again", |messages| last_status(messages)["status"] == "online");
    offer(&client.handle(), 200..260);
    client.stop(Duration::from_secs(1));
    let messages = recorder.wait("a clean end", |messages| last_status(messages)["reason"] == "stopped");
    assert!(first_seqs(&messages).into_iter().eq(0..260), "all sent before the end");
    assert_eq!(last_status(&messages)["status"], "offline");

    let seen = seen.lock().unwrap();
    let of = |topic: String| seen.iter().filter(|(t, ..)| *t == topic).cloned().collect::<Vec<_>>();
    assert_eq!(of(topics().face()).len(), 200);
    assert_eq!(of(topics().info()), [(topics().info(), true, 1)]);
    assert!(of(topics().status()).iter().all(|(_, retained, qos)| *retained && *qos == 1));
    assert!(of(topics().telemetry()).iter().all(|(_, retained, qos)| !*retained && *qos == 0));
}

/// By the last level of its topic.
pub(crate) fn assert_keeps_to_its_schema(message: &Message) {
    let name = message.topic.rsplit('/').next().unwrap();
    let file = format!("{name}.schema.json");
    let schema = visaged::mqtt::payload::schemas().into_iter().find(|(found, _)| *found == file).unwrap().1;
    if let Err(error) = jsonschema::validate(schema.as_value(), &message.json()) {
        panic!("{}: {error}\n{:#}", message.topic, message.json());
    }
}
