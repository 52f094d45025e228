//! `visaged-fleet bench`: events a second into the store, and through broker and store; what serving costs by number of devices.
//!
//! Server and devices are processes of their own, started from this very program, so that the processor time and memory given are the server's
//! alone. The broker is the one that is named, or a Mosquitto started for the purpose.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::{BrokerArgs, Failure, open};
use crate::contract::{DeviceName, Numbered};
use crate::ingest::LARGEST_BATCH;
use crate::simulate::STARTS_A_SECOND;
use crate::store::{Batch, EventIn, Names, Store};
use crate::time::Micros;

/// A server and its broker start within that, and store what is left over within that.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// mqtt://HOST[:PORT]; a Mosquitto of its own where none is named
    #[command(flatten)]
    broker: BrokerArgs,
    /// An empty database: SQLite file or postgres://; files in a temporary folder where none is named
    #[arg(long, env = "VISAGED_FLEET_BENCH_DATABASE", hide_env_values = true)]
    database: Option<String>,
    /// Events for the store alone; 0 leaves it out
    #[arg(long, default_value_t = 100_000)]
    store_events: u64,
    /// Events a device, of 50, that wait at the broker for a server that then takes them as fast as it can; 0 leaves it out
    #[arg(long, default_value_t = 2000)]
    drain_events: u64,
    /// Events a device for the way through broker and store, sent as fast as it goes by 50 devices; 0 leaves it out
    #[arg(long, default_value_t = 400)]
    flood_events: u64,
    /// Numbers of devices that send events and telemetry steadily
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    devices: Vec<u32>,
    /// Events a second and device, of these
    #[arg(long, default_value_t = 0.01, value_parser = crate::cli::positive)]
    rate: f64,
    /// Seconds between two telemetry messages of a device, of these
    #[arg(long, default_value_t = 10.0, value_parser = crate::cli::positive)]
    telemetry_s: f64,
    /// In place of these measurements: how long a roll-out of a setting to all of them takes, in three waves. On a PostgreSQL one number of
    /// devices at a time, as they are known from then on
    #[arg(long)]
    rollout: bool,
    /// Leave out what the broker alone does with the same load
    #[arg(long)]
    no_peer: bool,
    /// How long each number of devices runs
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..))]
    seconds: u64,
}

/// A temporary folder, removed at drop.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("visaged-fleet-bench-{}", Uuid::new_v4()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processor seconds since its start, and resident bytes.
#[derive(Clone, Copy, Debug)]
struct Cost {
    processor_s: f64,
    resident_bytes: u64,
}

impl Running {
    fn cost(&self) -> Result<Cost, Failure> {
        let pid = i32::try_from(self.0.id()).unwrap_or(i32::MAX);
        let stat = procfs::process::Process::new(pid)?.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        Ok(Cost {
            processor_s: (stat.utime + stat.stime) as f64 / ticks,
            resident_bytes: stat.rss * procfs::page_size(),
        })
    }
}

/// Runs all measurements, a line each.
///
/// # Errors
/// [`Failure`] names what could not be started or did not come to an end.
pub async fn run(args: BenchArgs) -> Result<ExitCode, Failure> {
    crate::cli::raise_file_limit();
    let folder = Folder::new()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let build = if cfg!(debug_assertions) { "development build" } else { "release build" };
    println!("visaged-fleet {} on {} cores, {build}", env!("CARGO_PKG_VERSION"), cores);
    let mut number = 0;
    let mut database = || {
        number += 1;
        let fresh = || folder.0.join(format!("{number}.db")).display().to_string();
        args.database.clone().unwrap_or_else(fresh)
    };
    for size in [100, LARGEST_BATCH].into_iter().filter(|_| args.store_events > 0) {
        let rate = fill(&open(&database()).await?, args.store_events, size).await?;
        println!("store        batches of {size:>4}   {rate:>8.0} events/s");
    }
    let (mosquitto_child, broker) = match &args.broker.broker {
        Some(url) => (None, format!("mqtt://{}:{}", url.host, url.port)),
        None => mosquitto(&folder.0).map(|(child, url, _)| (Some(child), url))?,
    };
    if args.flood_events > 0 {
        flood(&database(), &broker, args.flood_events).await?;
    }
    if args.drain_events > 0 {
        drain(&database(), &broker, args.drain_events).await?;
    }
    if !args.no_peer && args.flood_events > 0 {
        peer_flood(&args, args.flood_events)?;
    }
    let mosquitto = mosquitto_child.as_ref();
    for devices in &args.devices {
        let load = Load { devices: *devices, rate: args.rate, telemetry_s: args.telemetry_s, seconds: args.seconds };
        if args.rollout {
            rollout(&database(), &broker, &load).await?;
            continue;
        }
        steady(&database(), &broker, mosquitto, &load).await?;
        if !args.no_peer {
            peer_steady(&args, &broker, mosquitto, &load).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Events a second into the store, from one writer.
async fn fill(store: &Store, events: u64, size: usize) -> Result<f64, Failure> {
    let mut names = Names::default();
    let boots: Vec<_> = (0..100).map(|_| Uuid::new_v4()).collect();
    let begun = Instant::now();
    let mut made = 0;
    while made < events {
        let mut batch = Batch { received: Micros::now(), ..Batch::default() };
        for _ in 0..size {
            let device = made % 100;
            batch.events.push(sample(device, boots[device as usize], made / 100)?);
            made += 1;
        }
        store.write(&mut names, &batch).await?;
    }
    let rate = made as f64 / begun.elapsed().as_secs_f64();
    store.close().await;
    Ok(rate)
}

fn sample(device: u64, boot: Uuid, seq: u64) -> Result<EventIn, Failure> {
    let name = DeviceName::new("bench", &format!("device-{device}"))?;
    let body = json!({
        "schema": "visaged.face.v1", "device": name.device(), "boot": boot, "seq": seq, "time": Micros::now(), "event": "sample", "track": 1,
        "emotion": "happiness", "probabilities": {"neutral": 0.06, "happiness": 0.91, "surprise": 0.01, "sadness": 0.0, "anger": 0.0,
        "disgust": 0.01, "fear": 0.0, "contempt": 0.01}, "neutrality": 0.21, "quality": 0.83, "box": [212.0, 96.0, 118.0, 140.0],
        "latency_ms": 31.0, "historical": false,
    });
    let event: Numbered = serde_json::from_value(body.clone())?;
    Ok(EventIn { device: name, kind: "face", event, body: body.to_string() })
}

async fn flood(database: &str, broker: &str, events: u64) -> Result<(), Failure> {
    let store = open(database).await?;
    let before = store.totals().await?.1;
    let serve = serve(database, broker)?;
    let begun = Instant::now();
    let report = simulate(broker, &["--devices", "50", "--rate", "100000", "--events", &events.to_string()]).await?;
    let made = delivered(&report);
    wait_stored(&store, before + made).await?;
    let (seconds, cost) = (begun.elapsed().as_secs_f64(), serve.cost()?);
    let each = cost.processor_s * 1e6 / made.max(1) as f64;
    println!(
        "flood        50 devices          {:>8.0} events/s through broker and store, {each:.0} us of the server's processor an event, {} MB",
        made as f64 / seconds,
        cost.resident_bytes / 1_000_000,
    );
    store.close().await;
    Ok(())
}

/// What a server takes at most: it is away while devices send, and then finds it all at the broker, with no device running beside it.
async fn drain(database: &str, broker: &str, events: u64) -> Result<(), Failure> {
    let store = open(database).await?;
    let before = store.totals().await?.1;
    let name = fresh_name();
    // Once there, so that the broker keeps its session.
    drop(serve_as(&name, database, broker)?);
    let report = simulate(broker, &["--devices", "50", "--rate", "100000", "--events", &events.to_string()]).await?;
    let made = delivered(&report);
    let (serve, _) = serve_as(&name, database, broker)?;
    let (from, begun, there) = (serve.cost()?, Instant::now(), store.totals().await?.1);
    wait_stored(&store, before + made).await?;
    let (seconds, cost) = (begun.elapsed().as_secs_f64(), serve.cost()?);
    let taken = (before + made - there).max(1) as f64;
    println!(
        "drain        {made} events at the broker: {:.0} events/s through broker and store, {:.0} us of the server's processor an event, {} MB",
        taken / seconds,
        (cost.processor_s - from.processor_s) * 1e6 / taken,
        cost.resident_bytes / 1_000_000,
    );
    store.close().await;
    Ok(())
}

/// A roll-out to all devices while they send what they always do, with somebody at its page.
async fn rollout(database: &str, broker: &str, load: &Load) -> Result<(), Failure> {
    let store = open(database).await?;
    let (serve, address) = serve_at(database, broker)?;
    let token = crate::cli::new_secret();
    let name = format!("bench-{}", Uuid::new_v4());
    store.add_token(&name, crate::store::Role::Operate, &token, "bench", Micros::now()).await?;
    let args = [load.devices.to_string(), load.rate.to_string(), load.telemetry_s.to_string()];
    let _devices = Running(
        Command::new(std::env::current_exe()?)
            .args(["simulate", "--calm", "--broker", broker, "--devices", &args[0], "--rate", &args[1]])
            .args(["--telemetry-s", &args[2]])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let json = |path: &str| -> Result<Value, Failure> { Ok(serde_json::from_str(&get(&address, path, &token)?.0)?) };
    // What the store has of an earlier run may say that they are online before they are, and that another server leads.
    tokio::time::sleep(Duration::from_secs(load.ramp())).await;
    wait_until("all devices to be online, and the server to lead", PATIENCE, || {
        let leads = get(&address, "/metrics", &token)?.0.contains("visaged_fleet_leader 1");
        Ok(leads && json("/api/v1/overview")?["online"].as_u64() >= Some(load.devices.into()))
    })
    .await?;
    let plan = json!({"name": "bench", "command": "config.set", "args": {"set": {"camera.fps": 15}}, "target": {},
        "plan": {"waves": ["1", "10%"], "timeout_s": 600}});
    let (from, begun) = (serve.cost()?, Instant::now());
    let made: Value = serde_json::from_str(&ask("POST", &address, "/api/v1/rollouts", &token, &plan.to_string())?.0)?;
    let id = made["id"].as_str().unwrap_or_default().to_owned();
    let mut looks = Vec::new();
    wait_until("the roll-out to end", Duration::from_secs(600), || {
        looks.push(get(&address, &format!("/rollouts/{id}"), &token)?.1);
        Ok(json(&format!("/api/v1/rollouts/{id}"))?["settled"] == true)
    })
    .await?;
    let took = begun.elapsed().as_secs_f64();
    let ended = json(&format!("/api/v1/rollouts/{id}"))?;
    looks.sort();
    println!(
        "roll-out  {:>5} devices: {} after {took:.1} s, {}; serve {}; its page, {} looks: median {} ms, slowest {} ms",
        load.devices,
        ended["state"].as_str().unwrap_or_default(),
        ended["devices"],
        used(from, serve.cost()?, took),
        looks.len(),
        looks.get(looks.len() / 2).map_or(0, Duration::as_millis),
        looks.last().map_or(0, Duration::as_millis),
    );
    store.close().await;
    Ok(())
}

/// What devices send steadily.
#[derive(Clone, Copy, Debug)]
struct Load {
    devices: u32,
    rate: f64,
    telemetry_s: f64,
    seconds: u64,
}

impl Load {
    /// Connecting is not part of the measurement: devices begin one after another.
    fn ramp(&self) -> u64 {
        u64::from(self.devices).div_ceil(STARTS_A_SECOND) + 5
    }

    async fn simulate(&self, broker: &str) -> Result<Value, Failure> {
        let (count, rate, telemetry) = (self.devices.to_string(), self.rate.to_string(), self.telemetry_s.to_string());
        let length = (self.seconds + self.ramp()).to_string();
        let args = ["--devices", &count, "--rate", &rate, "--telemetry-s", &telemetry, "--seconds", &length];
        simulate(broker, &args).await
    }
}

/// What happened between two looks at a process, in percent of a core and bytes.
fn used(from: Cost, to: Cost, took: f64) -> String {
    format!(
        "{:.1} % of a core, {} MB",
        (to.processor_s - from.processor_s) * 100.0 / took,
        to.resident_bytes / 1_000_000
    )
}

async fn steady(database: &str, broker: &str, mosquitto: Option<&Running>, load: &Load) -> Result<(), Failure> {
    let store = open(database).await?;
    let (serve, address) = serve_at(database, broker)?;
    let token = crate::cli::new_secret();
    store
        .add_token(&format!("bench-{}", Uuid::new_v4()), crate::store::Role::Read, &token, "bench", Micros::now())
        .await?;
    let on_postgres = store.dialect() == crate::store::Dialect::Postgres;
    let look = || -> Result<_, Failure> {
        let broker = mosquitto.map(Running::cost).transpose()?;
        let database = on_postgres.then(database_cost).transpose()?;
        Ok((serve.cost()?, broker, database, Buckets::read(&get(&address, "/metrics", &token)?.0)))
    };
    let before = store.totals().await?.1;
    let measure = async {
        tokio::time::sleep(Duration::from_secs(load.ramp())).await;
        let (from, begun, stored) = (look()?, Instant::now(), store.totals().await?.1);
        tokio::time::sleep(Duration::from_secs(load.seconds - 1)).await;
        let (to, took) = (look()?, begun.elapsed().as_secs_f64());
        let stored = store.totals().await?.1 - stored;
        // Pages are asked for under the same load, but their cost is not part of the above.
        let pages = pages(&address, &token)?;
        Ok::<_, Failure>((from, to, took, stored, pages))
    };
    let (report, measured) = tokio::join!(load.simulate(broker), measure);
    let (report, (from, to, took, stored, pages)) = (report?, measured?);
    wait_stored(&store, before + delivered(&report)).await?;
    let devices = load.devices;
    println!(
        "steady    {devices:>5} devices: {:.0} events/s stored, all {} of them once",
        stored as f64 / took,
        delivered(&report)
    );
    println!("          {devices:>5}   serve     {}", used(from.0, to.0, took));
    if let (Some(from), Some(to)) = (from.1, to.1) {
        println!("          {devices:>5}   broker    {}", used(from, to, took));
    }
    if let (Some(from), Some(to)) = (from.2, to.2) {
        println!("          {devices:>5}   database  {}", used(from, to, took));
    }
    println!("          {devices:>5}   lag       {}", to.3.since(&from.3).percentiles());
    println!("          {devices:>5}   pages     {pages}");
    store.close().await;
    Ok(())
}

/// The slowest of five looks at each page, and at the events of a device over the API.
fn pages(address: &str, token: &str) -> Result<String, Failure> {
    let device = get(address, "/api/v1/devices?limit=1", token)?.0;
    let device: Value = serde_json::from_str(&device)?;
    let name = |key: &str| device[0][key].as_str().unwrap_or_default().to_owned();
    let device = format!("/devices/{}/{}", name("site"), name("device"));
    let events = format!("/api/v1{device}/events");
    let mut said = Vec::new();
    for (what, path) in [
        ("fleet", "/"),
        ("search", "/?q=09"),
        ("offline", "/?status=offline"),
        ("device", &device),
        ("events", &events),
        ("roll-outs", "/rollouts"),
    ] {
        let mut slowest = Duration::ZERO;
        for _ in 0..5 {
            slowest = slowest.max(get(address, path, token)?.1);
        }
        said.push(format!("{what} {} ms", slowest.as_millis()));
    }
    Ok(said.join(", "))
}

/// All processes of a PostgreSQL on this machine.
fn database_cost() -> Result<Cost, Failure> {
    let mut all = Cost { processor_s: 0.0, resident_bytes: 0 };
    for process in procfs::process::all_processes()?.flatten() {
        let Ok(stat) = process.stat() else { continue };
        if stat.comm == "postgres" {
            let ticks = procfs::ticks_per_second() as f64;
            all.processor_s += (stat.utime + stat.stime) as f64 / ticks;
            // Shared memory is counted once: the largest stands for it.
            all.resident_bytes = all.resident_bytes.max(stat.rss * procfs::page_size());
        }
    }
    Ok(all)
}

/// A histogram's counts by upper bound, in seconds.
#[derive(Clone, Debug, Default)]
struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    fn read(metrics: &str) -> Self {
        let bucket = |line: &str| {
            let (bound, count) =
                line.strip_prefix("visaged_fleet_event_lag_seconds_bucket{le=\"")?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.parse().ok()?))
        };
        Self(metrics.lines().filter_map(bucket).collect())
    }

    fn of(lags: &[f64]) -> Self {
        let mut bounds: Vec<f64> = prometheus_client::metrics::histogram::exponential_buckets(0.001, 1.2, 64).collect();
        bounds.push(f64::INFINITY);
        Self(bounds.into_iter().map(|bound| (bound, lags.iter().filter(|lag| **lag <= bound).count() as u64)).collect())
    }

    fn since(&self, before: &Self) -> Self {
        let earlier = |at: usize| before.0.get(at).map_or(0, |bucket| bucket.1);
        Self(self.0.iter().enumerate().map(|(at, (bound, count))| (*bound, count - earlier(at))).collect())
    }

    fn percentile(&self, share: f64) -> Option<f64> {
        let all = self.0.last()?.1;
        let wanted = share * all as f64;
        let at = self.0.iter().position(|(_, count)| *count as f64 >= wanted && *count > 0)?;
        let (bound, count) = self.0[at];
        let (below, fewer) = at.checked_sub(1).map_or((0.0, 0), |at| self.0[at]);
        let within = (wanted - fewer as f64) / (count - fewer).max(1) as f64;
        Some(if bound.is_finite() { below + (bound - below) * within } else { below })
    }

    fn percentiles(&self) -> String {
        let ms = |share| self.percentile(share).map_or("-".into(), |lag| format!("{:.0} ms", lag * 1000.0));
        format!("p50 {}, p95 {}, p99 {}", ms(0.5), ms(0.95), ms(0.99))
    }
}

/// As fast as it goes from 50 publishers to one subscriber, all Mosquitto's own tools, with nothing behind them.
fn peer_flood(args: &BenchArgs, events: u64) -> Result<(), Failure> {
    let folder = Folder::new()?;
    let (_mosquitto, port) = match &args.broker.broker {
        Some(url) => (None, url.port),
        None => mosquitto(&folder.0).map(|(child, _, port)| (Some(child), port))?,
    };
    let host = args.broker.broker.as_ref().map_or("127.0.0.1", |url| &url.host).to_owned();
    let port = port.to_string();
    let tool = |name: &str| {
        let mut command = Command::new(name);
        command.args(["-V", "5", "-h", &host, "-p", &port, "-q", "1"]);
        command
    };
    let missing = |error| Failure::Failed(format!("bench: {error}; install mosquitto-clients, or give --no-peer"));
    let lines = folder.0.join("lines");
    let line = sample(0, Uuid::new_v4(), 0)?.body;
    std::fs::write(&lines, format!("{line}\n").repeat(usize::try_from(events).unwrap_or(0)))?;
    let all = (50 * events).to_string();
    let mut subscriber = tool("mosquitto_sub");
    let subscriber = subscriber.args(["-t", "bench/+", "-C", &all]).stdout(Stdio::null()).spawn().map_err(missing)?;
    let mut subscriber = Running(subscriber);
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let publisher = |number: u32| {
        let mut command = tool("mosquitto_pub");
        let lines = std::fs::File::open(&lines)?;
        Ok::<_, Failure>(Running(command.args(["-l", "-t", &format!("bench/{number}")]).stdin(lines).spawn()?))
    };
    let publishers = (0..50).map(publisher).collect::<Result<Vec<_>, _>>()?;
    subscriber.0.wait()?;
    let rate = (50 * events) as f64 / begun.elapsed().as_secs_f64();
    drop(publishers);
    println!("peer flood   50 mosquitto_pub -l, one mosquitto_sub, QoS 1: {rate:.0} messages/s, nothing stored");
    Ok(())
}

/// The same devices with a plain subscriber in the server's place: what broker and connections cost and take by themselves.
async fn peer_steady(args: &BenchArgs, broker: &str, mosquitto: Option<&Running>, load: &Load) -> Result<(), Failure> {
    let url: crate::link::BrokerUrl = broker.parse()?;
    let address = args.broker.address(&url)?;
    let options = crate::link::SessionOptions {
        manual_acknowledgement: false,
        ..crate::link::SessionOptions::storing(&format!("bench-{}", Uuid::new_v4()), true, Duration::ZERO)
    };
    let mut connection = crate::link::Connection::new(&address, &options);
    let listen = async {
        let mut lags = Vec::new();
        let end = Instant::now() + Duration::from_secs(load.ramp() + load.seconds);
        let begin = Instant::now() + Duration::from_secs(load.ramp());
        while let Ok(told) =
            tokio::time::timeout(end.saturating_duration_since(Instant::now()), connection.next()).await
        {
            match told? {
                crate::link::Told::Connected(_) => connection.subscribe(&[format!("{}/#", crate::contract::ROOT)]),
                crate::link::Told::Message(message) if Instant::now() > begin => {
                    if let Ok(event) = serde_json::from_slice::<Numbered>(message.payload()) {
                        let published = event.time.0 + (event.latency_ms.unwrap_or(0.0) * 1000.0) as i64;
                        lags.push((Micros::now().0 - published) as f64 / 1e6);
                    }
                }
                _ => {}
            }
        }
        Ok::<_, Failure>(lags)
    };
    let measure = async {
        tokio::time::sleep(Duration::from_secs(load.ramp())).await;
        let (from, begun) = (mosquitto.map(Running::cost).transpose()?, Instant::now());
        tokio::time::sleep(Duration::from_secs(load.seconds - 1)).await;
        Ok::<_, Failure>((from, mosquitto.map(Running::cost).transpose()?, begun.elapsed().as_secs_f64()))
    };
    let (report, lags, measured) = tokio::join!(load.simulate(broker), listen, measure);
    let (lags, (from, to, took)) = (lags?, measured?);
    report?;
    let devices = load.devices;
    println!(
        "peer      {devices:>5} devices, a plain subscriber in place of the server, nothing stored: {} events",
        lags.len()
    );
    if let (Some(from), Some(to)) = (from, to) {
        println!("          {devices:>5}   broker    {}", used(from, to, took));
    }
    println!("          {devices:>5}   lag       {}", Buckets::of(&lags).percentiles());
    Ok(())
}

/// What devices made less what their spools gave up, and declared.
fn delivered(report: &Value) -> i64 {
    let number = |key: &str| report[key].as_i64().unwrap_or(0);
    number("events") - number("declared_lost")
}

async fn wait_stored(store: &Store, events: i64) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let stored = store.totals().await?.1;
        if stored >= events {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Failure::Failed(format!(
                "bench: only {stored} of {events} events were stored within {PATIENCE:?}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn wait_until(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let begun = Instant::now();
    while !look()? {
        if begun.elapsed() > patience {
            return Err(Failure::Failed(format!("bench: waited {patience:?} in vain for {what}")));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

fn serve(database: &str, broker: &str) -> Result<Running, Failure> {
    serve_at(database, broker).map(|(serve, _)| serve)
}

/// A group of its own: the session that the server before has left would else get its share of the events.
fn fresh_name() -> String {
    format!("bench-{}", Uuid::new_v4().simple())
}

/// The server, and where its HTTP listens.
fn serve_at(database: &str, broker: &str) -> Result<(Running, String), Failure> {
    serve_as(&fresh_name(), database, broker)
}

fn serve_as(name: &str, database: &str, broker: &str) -> Result<(Running, String), Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve", "--listen", "127.0.0.1:0", "--instance", name, "--group", name])
        .args(["--database", database, "--broker", broker])
        .env("VISAGED_FLEET_LOG", "warn")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let running = Running(child);
    let address = line.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if is_ready(&address) {
            return Ok((running, address));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Failure::Failed(format!("bench: the server did not reach the broker {broker} within {PATIENCE:?}")))
}

fn is_ready(address: &str) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let asked = stream.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes());
    let mut answer = String::new();
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.0 200")
}

/// The body, and how long it took.
fn get(address: &str, path: &str, token: &str) -> Result<(String, Duration), Failure> {
    ask("GET", address, path, token, "")
}

fn ask(method: &str, address: &str, path: &str, token: &str, body: &str) -> Result<(String, Duration), Failure> {
    use std::io::{Read, Write};
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n");
    let about = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{about}{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let took = begun.elapsed();
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.0 20") => Ok((body.to_owned(), took)),
        _ => Err(Failure::Failed(format!("bench: {path}: {}", answer.lines().next().unwrap_or("no answer")))),
    }
}

async fn simulate(broker: &str, args: &[&str]) -> Result<Value, Failure> {
    let program = std::env::current_exe()?;
    let (broker, args): (String, Vec<String>) = (broker.to_owned(), args.iter().map(|arg| (*arg).to_owned()).collect());
    // A seed of its own: the same one would make the same boots again, and their events are in the store already.
    let seed = rand::random::<u64>().to_string();
    let run = move || {
        Command::new(program).args(["simulate", "--calm", "--seed", &seed, "--broker", &broker]).args(args).output()
    };
    let output = tokio::task::spawn_blocking(run).await??;
    if !output.status.success() {
        return Err(Failure::Failed(format!("bench: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// With queues as `docs/fleet.md` asks for.
fn mosquitto(folder: &Path) -> Result<(Running, String, u16), Failure> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let file = folder.join("mosquitto.conf");
    let config = format!(
        "user root\npersistence false\nlog_dest none\nmax_queued_messages 0\nmax_inflight_messages 1000\nlistener {port} 127.0.0.1\nallow_anonymous true\n"
    );
    std::fs::write(&file, config)?;
    let program =
        ["/usr/sbin/mosquitto", "mosquitto"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("mosquitto");
    let spawned = Command::new(program).arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let missing =
        |error| Failure::Failed(format!("bench: mosquitto: {error}; install it, or name a broker with --broker"));
    let child = Running(spawned.map_err(missing)?);
    let begun = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if begun.elapsed() > PATIENCE {
            return Err(Failure::Failed("bench: mosquitto does not listen".into()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((child, format!("mqtt://127.0.0.1:{port}"), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_came_between_two_looks() {
        let text = |counts: [u64; 3]| {
            let line = |(bound, count)| format!("visaged_fleet_event_lag_seconds_bucket{{le=\"{bound}\"}} {count}\n");
            ["0.01", "0.1", "+Inf"].into_iter().zip(counts).map(line).collect::<String>()
        };
        let (before, after) = (Buckets::read(&text([10, 10, 10])), Buckets::read(&text([60, 110, 110])));
        let between = after.since(&before);
        assert_eq!(between.percentiles(), "p50 10 ms, p95 91 ms, p99 98 ms");
        assert_eq!(Buckets::default().percentiles(), "p50 -, p95 -, p99 -");
    }
}
