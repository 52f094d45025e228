//! What the spool and the client above it cost: bytes given to the disk, barriers, processor time, memory, and the time to deliver
//! a day's backlog to a Mosquitto, where one is installed. `cargo bench --bench spool`.
//!
//! A benchmark of totals, not of moments: each load runs once, as long as it takes in life, so that batching shows.
//! `VISAGED_SPOOL_BENCH=FOLDER` names a folder on the disk that is meant; without it a temporary one is taken, and on a
//! `tmpfs` nothing is ever written. Barriers are counted by the kernel: `strace -f -c -e fdatasync` around it tells them.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use procfs::process::Process;
use visaged::config::{DeviceConfig, MqttConfig};
use visaged::expression::Emotion;
use visaged::mqtt::payload::{InfoSchema, OutboxTelemetry, TelemetrySchema};
use visaged::mqtt::spool::{DiskSettings, Item, MemorySettings, Spool};
use visaged::mqtt::{Client, Info, Limits, Setup, Sources, Status, Telemetry, Topics};
use visaged::report::{Boot, Event, EventBody, FaceEvent, FaceEventKind, Moment};

fn event(boot: Boot, seq: u64) -> Event {
    let share = |n: u64| (seq.wrapping_mul(2_654_435_761) >> n & 0xFFFF) as f32 / 65_536.0;
    let body = EventBody::Face(FaceEvent {
        kind: FaceEventKind::Sample,
        track: seq / 100,
        emotion: Emotion::Happiness,
        probabilities: [share(1), share(2), share(3), share(4), share(5), share(6), share(7), share(8)],
        neutrality: share(9),
        quality: share(10),
        rect: [640.0 * share(11), 480.0 * share(12), 200.0 * share(13), 200.0 * share(14)],
    });
    Event { boot, seq, time: Moment(jiff::Timestamp::now()), captured: Some(Instant::now()), body }
}

/// What a process has used of processor and disk so far.
struct Used {
    processor: Duration,
    written_bytes: u64,
    resident_bytes: u64,
}

fn used() -> Used {
    let process = Process::myself().expect("/proc is there");
    let (stat, io) = (process.stat().expect("stat"), process.io().expect("io"));
    // Nanoseconds, where `stat` counts hundredths of a second.
    let ran = std::fs::read_dir("/proc/self/task").expect("tasks").flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Used {
        processor: Duration::from_nanos(ran.sum()),
        written_bytes: io.write_bytes,
        resident_bytes: stat.rss * procfs::page_size(),
    }
}

struct Load {
    name: &'static str,
    events: u64,
    every: Duration,
    /// The broker is there and acknowledges at once.
    connected: bool,
}

fn run(load: &Load, folder: &Path) {
    let settings = DiskSettings {
        folder: folder.to_owned(),
        max_bytes: 64 << 20,
        sync_every: Duration::from_secs(1),
        sync_events: 64,
    };
    let boot = Boot::random();
    let spool = Spool::on_disk(&settings, &MemorySettings { events: 10_000, max_age: None }, boot).expect("a spool");
    let (before, start) = (used(), Instant::now());
    for seq in 0..load.events {
        let due = start + load.every * u32::try_from(seq).expect("a small number");
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        spool.push(event(boot, seq));
        if load.connected {
            while let Some(record) = spool.next() {
                spool.acknowledge(record.id);
            }
        }
    }
    std::thread::sleep(Duration::from_millis(1200));
    let (after, figures) = (used(), spool.figures());
    let processor = after.processor.saturating_sub(before.processor);
    println!(
        "{:<30} {:>6} events  {:>9} bytes written  {:>7.0} an event  {:>6.1} us of processor an event  {:>5} waiting  {:>8} bytes of records",
        load.name,
        load.events,
        after.written_bytes - before.written_bytes,
        (after.written_bytes - before.written_bytes) as f64 / load.events as f64,
        processor.as_secs_f64() * 1e6 / load.events as f64,
        figures.depth,
        figures.stored_bytes,
    );
    assert_eq!(figures.lost_storage + figures.lost_space, 0, "a load that the spool must bear");
}

/// A backlog of an hour and a half at ten events a second, taken over by the next run and delivered.
fn drain(folder: &Path) {
    let settings = DiskSettings {
        folder: folder.to_owned(),
        max_bytes: 64 << 20,
        sync_every: Duration::from_secs(1),
        sync_events: 1024,
    };
    let memory = MemorySettings { events: 100_000, max_age: None };
    let boot = Boot::random();
    let spool = Spool::on_disk(&settings, &memory, boot).expect("a spool");
    (0..54_000).for_each(|seq| spool.push(event(boot, seq)));
    spool.close(Duration::from_secs(600));
    drop(spool);
    let size = folder.join("events.redb").metadata().expect("the file").len();
    let start = Instant::now();
    let spool = Spool::on_disk(&settings, &memory, Boot::random()).expect("a spool");
    let (opened, before, start) = (start.elapsed(), used(), Instant::now());
    let (mut delivered, mut largest) = (0_u64, 0);
    while !spool.is_empty() {
        match spool.next() {
            Some(record) => {
                delivered += u64::from(matches!(record.item, Item::Event(_)));
                spool.acknowledge(record.id);
                largest = largest.max(if delivered.is_multiple_of(5000) { used().resident_bytes } else { 0 });
            }
            None => std::thread::yield_now(),
        }
    }
    let took = start.elapsed();
    spool.close(Duration::from_secs(60));
    println!(
        "backlog of {delivered} events: file of {:.1} MB opened in {:.0} ms, delivered in {:.0} ms, {} bytes written, {:+.1} MB of memory",
        size as f64 / 1e6,
        opened.as_secs_f64() * 1e3,
        took.as_secs_f64() * 1e3,
        used().written_bytes - before.written_bytes,
        (largest as f64 - before.resident_bytes as f64) / 1e6
    );
}

/// A Mosquitto on a port of its own, ended when this goes; `None` where there is none to be had.
struct Mosquitto {
    port: u16,
    child: Child,
}

impl Mosquitto {
    fn start(folder: &Path) -> Option<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?.local_addr().ok()?.port();
        let config = folder.join("mosquitto.conf");
        let text = format!("user root\nallow_anonymous true\nlog_dest none\nlistener {port} 127.0.0.1\n");
        std::fs::write(&config, text).ok()?;
        let program =
            ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"].into_iter().find(|path| Path::new(path).exists())?;
        let quiet = || Stdio::null();
        let child =
            Command::new(program).arg("-c").arg(&config).stdout(quiet()).stderr(quiet()).stdin(quiet()).spawn().ok()?;
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if start.elapsed() > Duration::from_secs(10) {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { port, child })
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sources(boot: Boot) -> Sources {
    let info = move || Info {
        schema: InfoSchema::V1,
        device: "bench".into(),
        boot,
        version: "0".into(),
        board: None,
        camera: None,
        models: Vec::new(),
        capabilities: Vec::new(),
    };
    let telemetry = move || Telemetry {
        schema: TelemetrySchema::V1,
        device: "bench".into(),
        boot,
        time: Moment(jiff::Timestamp::now()),
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
    };
    Sources { info: Box::new(info), telemetry: Box::new(telemetry) }
}

/// A day's events, one a second, that waited on disk for the broker: what client and spool take of memory, and how long it takes.
fn day(folder: &Path) {
    const EVENTS: u64 = 86_400;
    std::fs::create_dir_all(folder).expect("a folder");
    let Some(mosquitto) = Mosquitto::start(folder) else {
        println!("client: left out, as there is no Mosquitto here");
        return;
    };
    let settings = DiskSettings {
        folder: folder.to_owned(),
        max_bytes: 96 << 20,
        sync_every: Duration::from_secs(1),
        sync_events: 64,
    };
    let first = Boot::random();
    let memory = MemorySettings { events: 100_000, max_age: None };
    let spool = Spool::on_disk(&settings, &memory, first).expect("a spool");
    (0..EVENTS).for_each(|seq| spool.push(event(first, seq)));
    spool.close(Duration::from_secs(600));
    drop(spool);
    // What was freed goes back to the system, so that it does not hide what comes.
    // SAFETY: glibc's own function, which takes no pointer.
    unsafe { libc::malloc_trim(0) };

    let (before, boot) = (used(), Boot::random());
    let memory = MemorySettings { events: 10_000, max_age: None };
    let spool = Arc::new(Spool::on_disk(&settings, &memory, boot).expect("a spool"));
    let topics = Topics::new(&DeviceConfig { site: "bench".into(), name: "bench".into() }).expect("topics");
    let start = Instant::now();
    let client = Client::start(Setup {
        config: MqttConfig { host: "127.0.0.1".into(), port: mosquitto.port, ..MqttConfig::default() },
        topics,
        status: Status::online(boot, Moment(jiff::Timestamp::now())),
        spool: Arc::clone(&spool),
        sources: sources(boot),
        tap: None,
        commands: None,
        limits: Limits::default(),
    })
    .expect("a client");
    let mut largest = 0;
    while !spool.is_empty() {
        largest = largest.max(used().resident_bytes);
        std::thread::sleep(Duration::from_millis(20));
    }
    let (took, after) = (start.elapsed(), used());
    client.stop(Duration::from_secs(1));
    spool.close(Duration::from_secs(60));
    println!(
        "client: a day's backlog of {EVENTS} events delivered to Mosquitto in {:.1} s, {:.0} events a second, {:.1} us of processor an event, {:.1} MB of memory for client and spool at most",
        took.as_secs_f64(),
        EVENTS as f64 / took.as_secs_f64(),
        after.processor.saturating_sub(before.processor).as_secs_f64() * 1e6 / EVENTS as f64,
        (largest as f64 - before.resident_bytes as f64) / 1e6
    );
}

fn main() {
    let chosen = std::env::var_os("VISAGED_SPOOL_BENCH");
    let temporary = tempfile::tempdir().expect("a folder");
    let root = chosen.as_ref().map_or(temporary.path(), |folder| Path::new(folder));
    let (second, millisecond) = (Duration::from_secs(1), Duration::from_millis(1));
    let loads = [
        Load { name: "1 a second, broker away", events: 60, every: second, connected: false },
        Load { name: "1 a second, broker there", events: 20, every: second, connected: true },
        Load { name: "1000 a second, broker away", events: 10_000, every: millisecond, connected: false },
        Load { name: "1000 a second, broker there", events: 10_000, every: millisecond, connected: true },
    ];
    for (index, load) in loads.iter().enumerate() {
        run(load, &root.join(format!("spool-bench-{index}")));
    }
    drain(&root.join("spool-bench-drain"));
    day(&root.join("spool-bench-day"));
    if chosen.is_some() {
        for name in ["0", "1", "2", "3", "drain", "day"] {
            // Only what this program has made.
            drop(std::fs::remove_dir_all(root.join(format!("spool-bench-{name}"))));
        }
    }
}
