//! The real daemon, killed again and again while events come, with a real Mosquitto that is now there and now not, and is killed
//! now and then too, before the daemon or with it.
//!
//! `VISAGED_KILLS=200 cargo test --test kill` kills it more often. `scripts/check-kills` does the same with the fleet's server, and
//! lets the audit judge.

mod mqtt_support;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mqtt_support::{Gate, Message, Mode, Mosquitto, Recorder, topics};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(120);
/// Configured; what a kill may cost.
const SYNC_EVERY: Duration = Duration::from_millis(200);
/// For a write, and for a machine that is busy with other things.
const SLACK: Duration = Duration::from_millis(1500);

/// What a run said of itself before it was killed.
#[derive(Debug, Default)]
struct Run {
    boot: String,
    /// When each event was made.
    made: BTreeMap<u64, jiff::Timestamp>,
    /// Events up to this one were on disk, or had arrived.
    written: Option<u64>,
    /// Events, of this or an earlier run, that the broker acknowledged to it.
    acknowledged: HashSet<(String, u64)>,
    killed: jiff::Timestamp,
    /// There was a broker.
    connected: bool,
}

fn config(folder: &Path, port: u16, camera: &str) -> PathBuf {
    let text = format!(
        "[device]\nsite = \"lobby\"\nname = \"mirror-1\"\n\
         [camera]\n{camera}\n\
         [report]\nsample_every_s = 0.1\nsummary_every_s = 0.1\nenter_after_s = 0\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {port}\nreconnect_first_s = 0.05\nreconnect_longest_s = 0.2\n\
         telemetry_every_s = 1\n\
         [mqtt.spool]\npath = \"{}\"\nsync_every_s = {}\n\
         [log]\nfilter = \"warn,visaged::mqtt::spool=trace\"\nformat = \"json\"\n",
        folder.join("spool").display(),
        SYNC_EVERY.as_secs_f64()
    );
    let path = folder.join("visaged.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn start(config: &Path, log: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_visaged"))
        .env_clear()
        .args(["run", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(log).unwrap())
        .spawn()
        .unwrap()
}

fn read(log: &Path) -> Run {
    let mut run = Run::default();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        // The last line may be cut off.
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let fields = &line["fields"];
        match fields["message"].as_str() {
            Some("event in the spool") => {
                run.boot = fields["boot"].as_str().unwrap().to_owned();
                let time = line["timestamp"].as_str().unwrap().parse().unwrap();
                run.made.insert(fields["seq"].as_u64().unwrap(), time);
            }
            Some("event acknowledged") => {
                let boot = fields["boot"].as_str().unwrap().to_owned();
                run.acknowledged.insert((boot, fields["seq"].as_u64().unwrap()));
            }
            Some("spool written") => run.written = fields["newest"].as_u64().or(run.written),
            _ => {}
        }
    }
    run
}

fn wait_for(what: &str, child: &mut Child, log: &Path, holds: impl Fn(&Run) -> bool) {
    let start = Instant::now();
    while !holds(&read(log)) {
        let text = || std::fs::read_to_string(log).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself: {}", text());
        assert!(start.elapsed() < LONG, "waited in vain for {what}: {}", text());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn place(message: &Message) -> Option<(String, u64)> {
    let payload = message.json();
    let is_event = message.topic == topics().face() || message.topic == topics().summary();
    is_event.then(|| (payload["boot"].as_str().unwrap().to_owned(), payload["seq"].as_u64().unwrap()))
}

#[test]
fn a_daemon_killed_at_any_moment_loses_no_event_but_of_its_last_unsynced_batch() {
    let kills: u64 = std::env::var("VISAGED_KILLS").map_or(20, |text| text.parse().unwrap());
    let mut rng = StdRng::seed_from_u64(5);
    let mut mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let mut broker_kills = 0;
    let gate = Gate::to(mosquitto.port, Mode::Shut);
    let folder = tempfile::tempdir().unwrap();
    let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo.gif");
    let faces = config(folder.path(), gate.port, &format!("source = \"clip\"\npath = \"{clip}\""));
    let log = folder.path().join("log");
    let mut runs = Vec::new();
    for kill in 0..kills {
        let connected = kill % 3 == 2;
        gate.set(if connected { Mode::Open } else { Mode::Shut });
        let mut child = start(&faces, &log);
        // One in four dies while it starts.
        if kill % 4 == 3 {
            std::thread::sleep(Duration::from_millis(rng.random_range(0..1500)));
        } else {
            wait_for("an event", &mut child, &log, |run| !run.made.is_empty());
            std::thread::sleep(Duration::from_millis(rng.random_range(0..2500)));
        }
        let broker_dies = connected && kill % 2 == 0;
        if broker_dies {
            mosquitto.kill();
            gate.set(Mode::Shut);
            // Half of the times the daemon goes with it.
            std::thread::sleep(Duration::from_millis(if kill % 4 == 0 { rng.random_range(0..500) } else { 0 }));
        }
        let killed = jiff::Timestamp::now();
        child.kill().unwrap();
        child.wait().unwrap();
        runs.push(Run { killed, connected, ..read(&log) });
        if broker_dies {
            broker_kills += 1;
            mosquitto.restart();
            // It has forgotten the recorder, and would have nobody to give events to.
            recorder.wait_subscribed(1 + broker_kills);
        }
    }

    let nobody = config(folder.path(), gate.port, "source = \"pattern\"");
    gate.set(Mode::Open);
    let mut child = start(&nobody, &log);
    wait_for("a last run", &mut child, &log, |run| !run.boot.is_empty());
    let last = read(&log).boot;
    let messages = recorder.wait("an empty spool", |messages| {
        let telemetry = messages.iter().rev().find(|m| m.topic == topics().telemetry()).map(Message::json);
        telemetry.is_some_and(|t| t["boot"] == *last && t["outbox"]["depth"].as_u64().unwrap() <= 2)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    audit(&runs, &messages, &last, broker_kills);
}

fn audit(runs: &[Run], messages: &[Message], last: &str, broker_kills: usize) {
    // A broker that is killed takes with it what it had acknowledged and not yet passed on.
    let acknowledged: HashSet<_> = match broker_kills {
        0 => HashSet::new(),
        _ => runs.iter().flat_map(|run| run.acknowledged.iter().cloned()).collect(),
    };
    let mut known = HashSet::new();
    let first: Vec<_> = messages.iter().filter_map(place).filter(|event| known.insert(event.clone())).collect();
    assert!(messages.iter().all(|m| m.topic != topics().gap()), "nothing was given up");
    let order: Vec<_> = runs.iter().map(|run| run.boot.as_str()).filter(|boot| !boot.is_empty()).collect();
    let rank = |boot: &str| order.iter().position(|known| *known == boot).unwrap_or(usize::MAX);
    assert!(first.is_sorted_by_key(|(boot, seq)| (rank(boot), *seq)), "order is kept over all runs");
    assert!(first.iter().all(|(boot, _)| boot == last || order.contains(&boot.as_str())));

    let (mut made, mut over_disk, mut forgotten) = (0, 0, 0);
    for run in runs.iter().filter(|run| !run.boot.is_empty()) {
        made += run.made.len();
        let arrived: BTreeSet<u64> = first.iter().filter(|(boot, _)| *boot == run.boot).map(|(_, seq)| *seq).collect();
        over_disk += if run.connected { 0 } else { arrived.len() };
        let certain = arrived.last().copied().max(run.written);
        let (gone, missing): (Vec<u64>, Vec<u64>) = run
            .made
            .keys()
            .copied()
            .filter(|seq| !arrived.contains(seq))
            .partition(|seq| acknowledged.contains(&(run.boot.clone(), *seq)));
        forgotten += gone.len();
        assert!(missing.iter().all(|seq| Some(*seq) > certain), "{missing:?} are absent, {certain:?} is not: {run:?}");
        for seq in missing {
            let age = Duration::try_from(run.killed.duration_since(run.made[&seq])).unwrap_or_default();
            assert!(age <= SYNC_EVERY + SLACK, "{seq} was {age:?} old when the daemon was killed: {run:?}");
        }
    }
    assert!(over_disk > runs.len(), "{over_disk} of {made} events came from runs that never had a broker");
    assert!(forgotten <= 32 * broker_kills, "{forgotten} events went with {broker_kills} brokers");
    eprintln!(
        "{} kills of the daemon, {broker_kills} of the broker: {made} events made, {over_disk} of them delivered by a later run, {forgotten} acknowledged and forgotten by a broker that was killed",
        runs.len()
    );
}
