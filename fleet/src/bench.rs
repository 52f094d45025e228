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
    /// Events for the store alone
    #[arg(long, default_value_t = 100_000)]
    store_events: u64,
    /// Events a device for the way through broker and store, sent as fast as it goes by 50 devices; 0 leaves it out
    #[arg(long, default_value_t = 400)]
    flood_events: u64,
    /// Numbers of devices that send one event a second and telemetry every ten
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    devices: Vec<u32>,
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
    for size in [100, LARGEST_BATCH] {
        let rate = fill(&open(&database()).await?, args.store_events, size).await?;
        println!("store        batches of {size:>4}   {rate:>8.0} events/s");
    }
    let (_mosquitto, broker) = match &args.broker.broker {
        Some(url) => (None, format!("mqtt://{}:{}", url.host, url.port)),
        None => mosquitto(&folder.0).map(|(child, url)| (Some(child), url))?,
    };
    if args.flood_events > 0 {
        flood(&database(), &broker, args.flood_events).await?;
    }
    for devices in &args.devices {
        steady(&database(), &broker, *devices, args.seconds).await?;
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

async fn steady(database: &str, broker: &str, devices: u32, seconds: u64) -> Result<(), Failure> {
    let store = open(database).await?;
    let serve = serve(database, broker)?;
    let count = devices.to_string();
    // Connecting is not part of the measurement: devices begin one after another.
    let ramp = u64::from(devices).div_ceil(400) + 3;
    let length = (seconds + ramp).to_string();
    let args = ["--devices", &count, "--rate", "1", "--telemetry-s", "10", "--seconds", &length];
    let measure = async {
        tokio::time::sleep(Duration::from_secs(ramp)).await;
        let (from, begun, stored) = (serve.cost()?, Instant::now(), store.totals().await?.1);
        tokio::time::sleep(Duration::from_secs(seconds - 1)).await;
        let (to, stored) = (serve.cost()?, store.totals().await?.1 - stored);
        let took = begun.elapsed().as_secs_f64();
        Ok::<_, Failure>((stored as f64 / took, (to.processor_s - from.processor_s) * 100.0 / took, to.resident_bytes))
    };
    let (report, measured) = tokio::join!(simulate(broker, &args), measure);
    let (report, (rate, percent, resident)) = (report?, measured?);
    wait_stored(&store, delivered(&report)).await?;
    println!(
        "steady    {devices:>5} devices          {rate:>8.0} events/s stored, {percent:.1} % of one core, {} MB; all {} delivered events stored",
        resident / 1_000_000,
        delivered(&report),
    );
    store.close().await;
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

fn serve(database: &str, broker: &str) -> Result<Running, Failure> {
    // A group of its own: the session that the server before has left would else get its share of the events.
    let name = format!("bench-{}", Uuid::new_v4().simple());
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve", "--listen", "127.0.0.1:0", "--instance", &name, "--group", &name])
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
            return Ok(running);
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

async fn simulate(broker: &str, args: &[&str]) -> Result<Value, Failure> {
    let program = std::env::current_exe()?;
    let (broker, args): (String, Vec<String>) = (broker.to_owned(), args.iter().map(|arg| (*arg).to_owned()).collect());
    let run = move || Command::new(program).args(["simulate", "--calm", "--broker", &broker]).args(args).output();
    let output = tokio::task::spawn_blocking(run).await??;
    if !output.status.success() {
        return Err(Failure::Failed(format!("bench: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// With queues as `docs/fleet.md` asks for.
fn mosquitto(folder: &Path) -> Result<(Running, String), Failure> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let file = folder.join("mosquitto.conf");
    let config = format!(
        "persistence false\nlog_dest none\nmax_queued_messages 0\nmax_inflight_messages 1000\nlistener {port} 127.0.0.1\nallow_anonymous true\n"
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
    Ok((child, format!("mqtt://127.0.0.1:{port}")))
}
