//! One simulated device.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::{DRAIN_LIMIT, LedgerLine, Report, Settings};
use crate::contract::{ANSWER_SCHEMA, CHUNK_COMMAND, Command, DeviceName};
use crate::link::{Connection, Message, SessionOptions, Told};
use crate::time::Micros;

/// Records in the spool; beyond it the oldest are given up.
const SPOOL: usize = 500;

/// QoS 1 messages in flight.
const WINDOW: usize = 16;

/// Ids of commands that are remembered.
const REMEMBERED: usize = 256;

const EMOTIONS: [&str; 8] = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"];

const INSTALL: &str = "models.install";

/// Stands for a message that is not in the spool.
const NO_RECORD: u64 = u64::MAX;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What waits in the spool.
#[derive(Clone, Debug)]
enum Record {
    Event { boot: Uuid, seq: u64, time: Micros, made: Instant },
    Gap { boot: Uuid, from: u64, to: u64, count: u64, time: Micros },
    Answer { name: String, payload: String },
}

#[derive(Clone, Debug)]
struct Spooled {
    id: u64,
    record: Record,
    due: Instant,
    sent: bool,
    /// Was sent over some connection: it may have arrived, so it is not given up, and the ledger stays exact.
    tried: bool,
    waited: bool,
}

/// A command that takes its time.
#[derive(Debug)]
struct Pending {
    due: Instant,
    id: String,
    name: String,
    args: Value,
}

/// A bundle whose parts are coming; their bytes are looked at no further.
#[derive(Debug)]
struct Collecting {
    id: String,
    args: Value,
    missing: BTreeSet<u64>,
    part_bytes: u64,
    size: u64,
}

struct Device<'a> {
    settings: &'a Settings,
    name: DeviceName,
    rng: StdRng,
    boot: Uuid,
    started: Instant,
    next_seq: u64,
    clock_offset: i64,
    spool: VecDeque<Spooled>,
    next_id: u64,
    model: (String, String),
    previous_model: Option<(String, String)>,
    config: BTreeMap<String, Value>,
    answered: VecDeque<(String, String, String)>,
    pending: Vec<Pending>,
    collecting: Option<Collecting>,
    made: u64,
    /// Handed over, packet id not known yet; [`NO_RECORD`] for what is not in the spool.
    written: VecDeque<u64>,
    report: Report,
    ledger: BTreeMap<Uuid, LedgerLine>,
    next: Timers,
}

/// When what happens next.
#[derive(Clone, Copy, Debug)]
struct Timers {
    event: Instant,
    telemetry: Instant,
    drop: Option<Instant>,
    restart: Option<Instant>,
    clock: Option<Instant>,
    overflow: Option<Instant>,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Cut,
    Restart,
    Lost,
    Done,
}

/// Lives until its end; gives what it did.
pub(super) async fn run(
    settings: &Settings,
    number: u32,
    mut stopped: watch::Receiver<bool>,
) -> (Report, BTreeMap<Uuid, LedgerLine>) {
    let mut device = Device::new(settings, number);
    let mut give_up = None;
    loop {
        let end = device.session(&mut stopped, &mut give_up).await;
        match end {
            End::Done => break,
            End::Cut => device.report.drops += 1,
            End::Restart => {
                device.report.restarts += 1;
                device.restart();
            }
            End::Lost => {}
        }
        let away = Duration::from_millis(device.rng.random_range(50..1500));
        tokio::time::sleep(away).await;
    }
    device.report.unsent = device.spool.iter().filter(|s| matches!(s.record, Record::Event { .. })).count() as u64;
    (device.report, device.ledger)
}

impl<'a> Device<'a> {
    fn new(settings: &'a Settings, number: u32) -> Self {
        let mut rng = StdRng::seed_from_u64(settings.seed ^ (u64::from(number) << 32));
        let site = format!("site-{:02}", number % settings.sites.max(1));
        let name =
            DeviceName::new(&site, &format!("device-{number:05}")).unwrap_or_else(|_| unreachable!("plain ASCII"));
        let now = Instant::now();
        let boot = Uuid::from_u128(rng.random());
        let event = now + settings.event_every.mul_f64(rng.random());
        let telemetry = now + settings.telemetry_every.mul_f64(rng.random());
        let next = Timers { event, telemetry, drop: None, restart: None, clock: None, overflow: None };
        let mut device = Self {
            settings,
            name,
            rng,
            boot,
            started: now,
            next_seq: 0,
            clock_offset: 0,
            spool: VecDeque::new(),
            next_id: 0,
            model: ("1".into(), model_hash("1")),
            previous_model: None,
            config: BTreeMap::new(),
            answered: VecDeque::new(),
            pending: Vec::new(),
            collecting: None,
            made: 0,
            written: VecDeque::new(),
            report: Report::default(),
            ledger: BTreeMap::new(),
            next,
        };
        device.draw_faults();
        device.open_ledger();
        device
    }

    fn draw_faults(&mut self) {
        let faults = self.settings.faults;
        self.next.drop = self.draw(faults.drop_every);
        self.next.restart = self.draw(faults.restart_every);
        self.next.clock = self.draw(faults.clock_every);
        self.next.overflow = self.draw(faults.overflow_every);
    }

    /// Exponentially distributed, as what happens by chance is.
    fn draw(&mut self, every: Option<Duration>) -> Option<Instant> {
        let share: f64 = self.rng.random_range(0.0001..1.0);
        every.map(|every| Instant::now() + every.mul_f64(-share.ln()))
    }

    fn open_ledger(&mut self) {
        self.report.boots += 1;
        let line = LedgerLine {
            device: self.name.to_string(),
            boot: self.boot,
            events: 0,
            declared_lost: Vec::new(),
            vanished: Vec::new(),
        };
        self.ledger.insert(self.boot, line);
    }

    /// A new run of the process; what waits in the spool stays.
    fn restart(&mut self) {
        self.boot = Uuid::from_u128(self.rng.random());
        self.next_seq = 0;
        self.started = Instant::now();
        self.open_ledger();
        self.spool.iter_mut().for_each(|spooled| spooled.waited = true);
        // What came of a bundle in parts is in memory alone.
        if let Some(Collecting { id, .. }) = self.collecting.take() {
            let why = error("internal", "the daemon ended before the bundle was in place; what ran before goes on");
            self.answer(&id, INSTALL, "failed", Value::Null, why);
        }
        // A restart that a command caused has its end in the next boot.
        for pending in self.pending.iter_mut().filter(|pending| pending.name == "restart") {
            pending.due = self.started;
        }
    }

    fn clock(&self) -> Micros {
        Micros(Micros::now().0.saturating_add(self.clock_offset))
    }

    async fn session(&mut self, stopped: &mut watch::Receiver<bool>, give_up: &mut Option<Instant>) -> End {
        let will = json!({"schema": "visaged.status.v1", "status": "offline", "reason": "connection lost", "since": null, "boot": self.boot});
        let options = SessionOptions {
            client_id: format!("visaged-{}-{}", self.name.site(), self.name.device()),
            clean_start: true,
            expiry: Duration::ZERO,
            last_will: Some((self.name.topic("status"), will.to_string())),
            manual_acknowledgement: false,
            requests: 4 * WINDOW,
            window: 4 * WINDOW as u16,
        };
        let mut connection = Connection::new(&self.settings.broker, &options);
        if !self.connect(&mut connection, give_up).await {
            return if give_up.is_some_and(|at| Instant::now() > at) { End::Done } else { End::Lost };
        }
        let mut in_flight = HashMap::<u16, u64>::new();
        loop {
            let ending = *stopped.borrow() || self.settings.events.is_some_and(|events| self.made >= events);
            // Commands are answered to the end of the given time, not only until the last event is through.
            if ending && (*stopped.borrow() || self.settings.length.is_none()) {
                let at = *give_up.get_or_insert(Instant::now() + DRAIN_LIMIT);
                if (self.spool.is_empty() && self.pending.is_empty() && self.collecting.is_none())
                    || Instant::now() > at
                {
                    self.goodbye(connection).await;
                    return End::Done;
                }
            }
            if let Some(end) = self.act(&connection, ending) {
                return end;
            }
            self.fill(&connection, &in_flight);
            let wake = self.wake(ending);
            tokio::select! {
                told = connection.next() => match told {
                    Ok(Told::Written(id)) => {
                        in_flight.extend(self.written.pop_front().map(|record| (id, record)));
                    }
                    Ok(Told::Acknowledged(id)) => {
                        if let Some(record) = in_flight.remove(&id) {
                            self.acknowledged(&connection, record);
                        }
                    }
                    Ok(Told::Message(message)) => self.command(&message),
                    Ok(_) => {}
                    Err(_) => return End::Lost,
                },
                () = tokio::time::sleep_until(wake) => {}
                _ = stopped.changed(), if !ending => {}
            }
        }
    }

    async fn connect(&mut self, connection: &mut Connection, give_up: &mut Option<Instant>) -> bool {
        let connected = async {
            loop {
                match connection.next().await {
                    Ok(Told::Connected(_)) => return true,
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
        };
        let limit = give_up.map_or(Duration::from_secs(30), |at| at.saturating_duration_since(Instant::now()));
        if !tokio::time::timeout(limit, connected).await.unwrap_or(false) {
            return false;
        }
        connection.subscribe(&[self.name.topic("cmd/+")]);
        self.spool.iter_mut().for_each(|spooled| spooled.sent = false);
        self.written.clear();
        let (status, info) = (self.status("online", None), self.info());
        self.retained(connection, "status", &status);
        self.retained(connection, "info", &info);
        true
    }

    fn retained(&mut self, connection: &Connection, leaf: &str, payload: &Value) {
        let (topic, qos) = (self.name.topic(leaf), rumqttc::v5::mqttbytes::QoS::AtLeastOnce);
        if connection.client().try_publish(topic, qos, true, payload.to_string()).is_ok() {
            self.written.push_back(NO_RECORD);
        }
    }

    async fn goodbye(&mut self, connection: Connection) {
        let status = self.status("offline", Some("stopped"));
        self.retained(&connection, "status", &status);
        connection.disconnect().await;
    }

    /// What is due: events, telemetry, ends of commands, faults.
    fn act(&mut self, connection: &Connection, ending: bool) -> Option<End> {
        let now = Instant::now();
        self.end_commands(connection, now);
        if self
            .pending
            .iter()
            .any(|pending| pending.name == "restart" && now >= pending.due && self.started < pending.due)
        {
            return Some(End::Restart);
        }
        if ending {
            return None;
        }
        if now >= self.next.event {
            self.make_event(now);
            self.next.event = now + self.settings.event_every.mul_f64(self.rng.random_range(0.5..1.5));
        }
        if now >= self.next.telemetry {
            let (topic, qos) = (self.name.topic("telemetry"), rumqttc::v5::mqttbytes::QoS::AtMostOnce);
            let _ = connection.client().try_publish(topic, qos, false, self.telemetry().to_string());
            self.next.telemetry = now + self.settings.telemetry_every;
        }
        self.fault(now)
    }

    fn fault(&mut self, now: Instant) -> Option<End> {
        let faults = self.settings.faults;
        if self.next.clock.is_some_and(|at| now >= at) {
            let day = 24 * 3600 * 1_000_000_i64;
            self.clock_offset = self.rng.random_range(-day..day);
            self.report.clock_jumps += 1;
            self.next.clock = self.draw(faults.clock_every);
        }
        if self.next.overflow.is_some_and(|at| now >= at) {
            let most = self.rng.random_range(1..8);
            self.give_up(most);
            self.next.overflow = self.draw(faults.overflow_every);
        }
        if self.next.restart.is_some_and(|at| now >= at) {
            self.next.restart = self.draw(faults.restart_every);
            return Some(End::Restart);
        }
        if self.next.drop.is_some_and(|at| now >= at) {
            self.next.drop = self.draw(faults.drop_every);
            return Some(End::Cut);
        }
        None
    }

    fn wake(&self, ending: bool) -> Instant {
        // Whatever else is to be done, something wakes it: this only bounds a mistake.
        let mut wake = Instant::now() + Duration::from_secs(60);
        let mut at = |moment: Instant| wake = wake.min(moment);
        self.pending.iter().for_each(|pending| at(pending.due));
        self.spool.iter().filter(|s| !s.sent && s.due > Instant::now()).for_each(|s| at(s.due));
        if !ending {
            at(self.next.event);
            at(self.next.telemetry);
            [self.next.drop, self.next.restart, self.next.clock, self.next.overflow].into_iter().flatten().for_each(at);
        }
        wake
    }

    // ---- events ----

    fn make_event(&mut self, now: Instant) {
        let (boot, seq, time) = (self.boot, self.next_seq, self.clock());
        self.next_seq += 1;
        self.made += 1;
        self.report.events += 1;
        if let Some(line) = self.ledger.get_mut(&boot) {
            line.events = self.next_seq;
        }
        let faults = self.settings.faults;
        if self.rng.random_range(0..1000) < faults.undeclared_loss_permille {
            self.report.vanished += 1;
            if let Some(line) = self.ledger.get_mut(&boot) {
                line.vanished.push(seq);
            }
            return;
        }
        let late = self.rng.random_range(0..100) < faults.late_percent;
        self.report.late += u64::from(late);
        let due = if late { now + Duration::from_millis(self.rng.random_range(200..3000)) } else { now };
        self.push(Record::Event { boot, seq, time, made: now }, due, late);
        if self.spool.len() > SPOOL {
            self.give_up(1);
        }
    }

    fn push(&mut self, record: Record, due: Instant, waited: bool) {
        self.spool.push_back(Spooled { id: self.next_id, record, due, sent: false, tried: false, waited });
        self.next_id += 1;
    }

    /// Gives up some of the oldest events that are not on their way, of one boot, and declares it in their place.
    fn give_up(&mut self, most: usize) {
        let oldest = self.spool.iter().find_map(|s| match s.record {
            Record::Event { boot, .. } if !s.tried => Some(boot),
            _ => None,
        });
        let Some(of) = oldest else { return };
        let (mut lost, mut place) = (Vec::new(), None);
        let mut at = 0;
        while at < self.spool.len() && lost.len() < most {
            match self.spool[at].record {
                Record::Event { boot, seq, .. } if boot == of && !self.spool[at].tried => {
                    lost.push(seq);
                    place.get_or_insert(at);
                    self.spool.remove(at);
                }
                _ => at += 1,
            }
        }
        let (Some(place), Some(from), Some(to)) = (place, lost.iter().min().copied(), lost.iter().max().copied())
        else {
            return;
        };
        let (count, time) = (lost.len() as u64, self.clock());
        let record = Record::Gap { boot: of, from, to, count, time };
        let spooled =
            Spooled { id: self.next_id, record, due: Instant::now(), sent: false, tried: false, waited: true };
        self.next_id += 1;
        self.spool.insert(place, spooled);
        self.report.declared_lost += count;
        if let Some(line) = self.ledger.get_mut(&of) {
            line.declared_lost.extend(lost);
        }
    }

    /// Hands over what is due, as far as the window goes.
    fn fill(&mut self, connection: &Connection, in_flight: &HashMap<u16, u64>) {
        let now = Instant::now();
        let mut room = WINDOW.saturating_sub(self.written.len() + in_flight.len());
        for at in 0..self.spool.len() {
            if room == 0 {
                return;
            }
            let spooled = &self.spool[at];
            if spooled.sent || spooled.due > now {
                continue;
            }
            let (leaf, payload) = self.message(spooled);
            if !connection.publish(&self.name.topic(&leaf), payload) {
                return;
            }
            self.written.push_back(spooled.id);
            self.spool[at].sent = true;
            self.spool[at].tried = true;
            room -= 1;
        }
    }

    fn message(&self, spooled: &Spooled) -> (String, String) {
        match &spooled.record {
            Record::Event { boot, seq, time, made } => {
                let latency_ms = made.elapsed().as_micros() as f64 / 1000.0;
                let (leaf, payload) = event(self.name.device(), *boot, *seq, *time, latency_ms, spooled.waited);
                (leaf.into(), payload.to_string())
            }
            Record::Gap { boot, from, to, count, time } => {
                ("gap".into(), gap(self.name.device(), *boot, [*from, *to, *count], *time).to_string())
            }
            Record::Answer { name, payload } => (format!("rsp/{name}"), payload.clone()),
        }
    }

    fn acknowledged(&mut self, connection: &Connection, id: u64) {
        let Some(at) = self.spool.iter().position(|spooled| spooled.id == id) else { return };
        let Some(spooled) = self.spool.remove(at) else { return };
        let is_event = matches!(spooled.record, Record::Event { .. });
        if is_event && self.rng.random_range(0..100) < self.settings.faults.duplicate_percent {
            let (leaf, payload) = self.message(&spooled);
            if connection.publish(&self.name.topic(&leaf), payload) {
                self.written.push_back(NO_RECORD);
                self.report.duplicated += 1;
            }
        }
    }

    // ---- states ----

    fn status(&self, status: &str, reason: Option<&str>) -> Value {
        json!({"schema": "visaged.status.v1", "status": status, "reason": reason, "since": self.clock(), "boot": self.boot})
    }

    fn info(&self) -> Value {
        json!({
            "schema": "visaged.info.v1", "device": self.name.device(), "boot": self.boot, "version": VERSION,
            "board": "simulated", "camera": "pattern 640x480 at 30 fps",
            "models": [{"name": "derl", "version": self.model.0, "sha256": self.model.1, "engine": "int8"}],
            "capabilities": ["face", "summary", "commands"],
        })
    }

    fn telemetry(&mut self) -> Value {
        let uptime = self.started.elapsed().as_secs_f64();
        let wobble = (uptime / 30.0).sin();
        let frames = (uptime * 30.0) as u64;
        let lost = self.report.declared_lost;
        json!({
            "schema": "visaged.telemetry.v1", "device": self.name.device(), "boot": self.boot, "time": self.clock(), "uptime_s": uptime,
            "capture_fps": 30.0, "analysis_fps": 27.0 + 2.0 * wobble + self.rng.random_range(-0.5..0.5), "frames": frames,
            "dropped": {"faces": frames / 20}, "people_in_view": self.rng.random_range(0..3),
            "latency": {"total": {"p50_ms": 6.4, "p95_ms": 8.9, "p99_ms": 10.1}},
            "cpu_percent": 22.0 + 5.0 * wobble + self.rng.random_range(-1.0..1.0), "memory_bytes": 62_000_000 + frames % 1_000_000,
            "temperature_celsius": 51.0 + 4.0 * wobble, "restarts": 0,
            "outbox": {"depth": self.spool.len(), "stored": 0, "stored_bytes": 0, "lost": lost, "lost_space": lost, "lost_age": 0,
                "lost_storage": 0, "refused": 0, "reconnects": self.report.drops},
        })
    }

    // ---- commands ----

    fn command(&mut self, message: &Message) {
        let Some(name) = message.topic().and_then(|topic| topic.rsplit_once("/cmd/")).map(|(_, name)| name.to_owned())
        else {
            return;
        };
        let hash = hex(&Sha256::digest(message.payload()));
        let Ok(command) = serde_json::from_slice::<Command>(message.payload()) else {
            return self.answer("", &name, "rejected", Value::Null, error("malformed", "not the contract's JSON"));
        };
        if let Some((_, known, answer)) = self.answered.iter().find(|(id, ..)| *id == command.id).cloned() {
            if known != hash {
                return self.answer(
                    &command.id,
                    &name,
                    "rejected",
                    Value::Null,
                    error("malformed", "this id was another command"),
                );
            }
            // Not answered to its end yet: the end will come by itself.
            if !answer.is_empty() {
                self.push(Record::Answer { name, payload: answer }, Instant::now(), false);
            }
            return;
        }
        if name == CHUNK_COMMAND {
            return self.take_part(&command);
        }
        self.report.commands += 1;
        self.answered.push_back((command.id.clone(), hash, String::new()));
        if self.answered.len() > REMEMBERED {
            self.answered.pop_front();
        }
        if command.not_after.is_some_and(|limit| limit < Micros::now()) {
            return self.answer(&command.id, &name, "rejected", Value::Null, error("expired", "it came too late"));
        }
        let toml = self.config.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
        match name.as_str() {
            "ping" => self.succeed(&command.id, &name, json!({"uptime_s": self.started.elapsed().as_secs_f64()})),
            "info" => self.succeed(&command.id, &name, self.info()),
            "config.get" => {
                self.succeed(&command.id, &name, json!({"sha256": hex(&Sha256::digest(&toml)), "toml": toml}))
            }
            "config.set" | "models.install" | "models.rollback" | "restart" => {
                self.answer(&command.id, &name, "in_progress", Value::Null, Value::Null);
                if let Some(collecting) = Collecting::new(&command).filter(|_| name == INSTALL) {
                    self.collecting = Some(collecting);
                    return;
                }
                let takes = self.settings.command_takes.mul_f64(self.rng.random_range(0.5..1.5));
                self.pending.push(Pending { due: Instant::now() + takes, id: command.id, name, args: command.args });
            }
            _ => self.answer(
                &command.id,
                &name,
                "rejected",
                Value::Null,
                error("not_enabled", "not in mqtt.commands.allow"),
            ),
        }
    }

    /// As devices do: answered each, and the last one begins the installation.
    fn take_part(&mut self, part: &Command) {
        let index = part.args.get("index").and_then(Value::as_u64);
        let install = part.args.get("install").and_then(Value::as_str);
        let (Some(index), Some(collecting)) =
            (index, self.collecting.as_mut().filter(|c| Some(c.id.as_str()) == install))
        else {
            let why = error("invalid_args", "no models.install of this id waits for parts");
            return self.answer(&part.id, CHUNK_COMMAND, "rejected", Value::Null, why);
        };
        collecting.missing.remove(&index);
        let missing = (collecting.missing.len() as u64 * collecting.part_bytes).min(collecting.size);
        let result = json!({"received": collecting.size - missing, "missing": missing, "first_missing": collecting.missing.first()});
        let complete = collecting.missing.is_empty();
        self.succeed(&part.id, CHUNK_COMMAND, result);
        if let Some(Collecting { id, args, .. }) = self.collecting.take_if(|_| complete) {
            let due = Instant::now() + self.settings.command_takes;
            self.pending.push(Pending { due, id, name: INSTALL.into(), args });
        }
    }

    fn succeed(&mut self, id: &str, name: &str, result: Value) {
        self.answer(id, name, "succeeded", result, Value::Null);
    }

    fn answer(&mut self, id: &str, name: &str, state: &str, result: Value, error: Value) {
        let payload =
            json!({"schema": ANSWER_SCHEMA, "id": id, "name": name, "state": state, "result": result, "error": error,
            "boot": self.boot, "time": self.clock()})
            .to_string();
        if state != "in_progress"
            && let Some(known) = self.answered.iter_mut().find(|(known, ..)| known == id)
            && known.2.is_empty()
        {
            known.2.clone_from(&payload);
        }
        self.push(Record::Answer { name: name.to_owned(), payload }, Instant::now(), false);
    }

    fn end_commands(&mut self, connection: &Connection, now: Instant) {
        // A restart ends in the boot after it.
        let (due, waiting) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| now >= pending.due && (pending.name != "restart" || self.started >= pending.due));
        self.pending = waiting;
        for Pending { id, name, args, .. } in due {
            if self.rng.random_range(0..100) < self.settings.faults.command_failure_percent {
                let (code, what) =
                    if name == "config.set" { ("rolled_back", "no frames") } else { ("self_test", "answers differ") };
                self.answer(&id, &name, "failed", Value::Null, error(code, what));
                continue;
            }
            let result = self.carry_out(&name, &args);
            self.succeed(&id, &name, result);
            let info = self.info();
            self.retained(connection, "info", &info);
        }
    }

    fn carry_out(&mut self, name: &str, args: &Value) -> Value {
        match name {
            "config.set" => {
                let set = args.get("set").and_then(Value::as_object).cloned().unwrap_or_default();
                let changed: Vec<_> = set.keys().cloned().collect();
                self.config.extend(set);
                json!({"sha256": hex(&Sha256::digest(format!("{:?}", self.config))), "changed": changed})
            }
            "models.install" => {
                let version = args.get("version").and_then(Value::as_str).unwrap_or("0").to_owned();
                let hash =
                    args.get("sha256").and_then(Value::as_str).map_or_else(|| model_hash(&version), str::to_owned);
                let previous = std::mem::replace(&mut self.model, (version, hash));
                let result = json!({"task": args.get("task"), "version": self.model.0, "previous": previous.0});
                self.previous_model = Some(previous);
                result
            }
            "models.rollback" => {
                let back = self.previous_model.take().unwrap_or_else(|| self.model.clone());
                let previous = std::mem::replace(&mut self.model, back);
                json!({"task": args.get("task"), "version": self.model.0, "previous": previous.0})
            }
            _ => json!({}),
        }
    }
}

impl Collecting {
    /// `None` for a request that announces no parts.
    fn new(install: &Command) -> Option<Self> {
        let chunks = install.args.get("chunks")?;
        let (count, part_bytes) = (chunks.get("count")?.as_u64()?, chunks.get("size")?.as_u64()?);
        let size = install.args.get("size")?.as_u64()?;
        Some(Self {
            id: install.id.clone(),
            args: install.args.clone(),
            missing: (0..count).collect(),
            part_bytes,
            size,
        })
    }
}

fn error(code: &str, message: &str) -> Value {
    json!({"code": code, "message": message})
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn model_hash(version: &str) -> String {
    hex(&Sha256::digest(version))
}

fn gap(device: &str, boot: Uuid, [from, to, count]: [u64; 3], time: Micros) -> Value {
    json!({"schema": "visaged.gap.v1", "device": device, "boot": boot, "from": from, "to": to, "count": count, "reason": "space", "time": time})
}

/// Mostly `face`, now and then `summary`; what it shows follows from its number.
fn event(device: &str, boot: Uuid, seq: u64, time: Micros, latency_ms: f64, historical: bool) -> (&'static str, Value) {
    if seq % 20 == 19 {
        let counts: serde_json::Map<_, _> =
            EMOTIONS.iter().map(|e| ((*e).to_owned(), json!(u8::from(*e == "neutral")))).collect();
        let payload = json!({
            "schema": "visaged.summary.v1", "device": device, "boot": boot, "seq": seq, "time": time, "start": time, "end": time,
            "people_entered": 1, "people_left": 1, "people_peak": 1, "people_by_emotion": counts, "attention_s": counts,
            "latency_ms": latency_ms, "historical": historical,
        });
        return ("summary", payload);
    }
    let shown = (seq / 4 % 8) as usize;
    let kind = ["enter", "change", "sample", "leave"][(seq % 4) as usize];
    let probabilities: serde_json::Map<_, _> = EMOTIONS
        .iter()
        .enumerate()
        .map(|(i, e)| ((*e).to_owned(), json!(if i == shown { 0.72 } else { 0.04 })))
        .collect();
    let payload = json!({
        "schema": "visaged.face.v1", "device": device, "boot": boot, "seq": seq, "time": time,
        "event": kind, "track": seq / 4, "emotion": EMOTIONS[shown],
        "probabilities": probabilities, "neutrality": 0.4, "quality": 0.9, "box": [212.0, 96.0, 118.0, 140.0],
        "latency_ms": latency_ms, "historical": historical,
    });
    ("face", payload)
}

/// One payload of each kind as simulated devices send it, by topic: for holding them to the schemas.
pub fn sample_payloads(settings: &Settings) -> Vec<(&'static str, Value)> {
    let mut device = Device::new(settings, 7);
    let (boot, time) = (device.boot, device.clock());
    let mut samples: Vec<_> = [3, 19].map(|seq| event(device.name.device(), boot, seq, time, 31.25, false)).into();
    samples.extend([
        ("gap", gap(device.name.device(), boot, [1, 4, 3], time)),
        ("status", device.status("online", None)),
        ("status", device.status("offline", Some("stopped"))),
        ("info", device.info()),
        ("telemetry", device.telemetry()),
    ]);
    device.answer("one", "ping", "rejected", Value::Null, error("expired", "it came too late"));
    device.succeed("two", "ping", json!({"uptime_s": 1.5}));
    samples.extend(device.spool.iter().filter_map(|spooled| match &spooled.record {
        Record::Answer { payload, .. } => Some(("rsp", serde_json::from_str(payload).ok()?)),
        _ => None,
    }));
    samples
}
