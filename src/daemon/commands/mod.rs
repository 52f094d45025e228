//! The thread `commands`: carries out what is asked over MQTT, one request after the other.
//!
//! ```text
//! mqtt ─► Input ─► Gate ─► carry out ─► answer ─► mqtt
//!                              └─► Order ─► main (reload, restart)
//! ```
//!
//! Invariants: neither a frame nor the MQTT client ever waits for this thread, which may wait for the disk; whatever is not
//! only read is on disk before it is begun; each request gets one final answer, if need be from the next boot; a panic costs one
//! request.

mod config;
mod models;
mod snapshot;
mod store;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use serde_json::{Map, Value, json};

use self::config::Running;
use self::models::Models;
use self::store::Store;
use super::Context;
use super::figures::Figures;
use super::system;
use crate::config::{CommandsConfig, Config};
use crate::mqtt::command::{
    Accepted, Answer, Clock, Command, ErrorCode, Gate, Incoming, Limits, Name, Notice, Outcome, Refusal, Token, Verdict,
};
use crate::mqtt::{CommandSink, Handle};
use crate::report::{Boot, Moment, Seconds};

/// Notices that wait for the thread: more than a broker that keeps to MQTT 5 sends unacknowledged.
const WAITING: usize = 64;
/// That an answer has arrived is written down with the next change, or after so long.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at a trial.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The thread gets so long to write what it knows at the end.
const LAST_WRITE: Duration = Duration::from_millis(200);

/// Changes the log's filter; says why it cannot.
pub type LogControl = Box<dyn Fn(&str) -> Result<(), String> + Send>;

/// What commands need of the process.
#[derive(Default)]
pub struct CommandParts {
    /// The configuration's file; without one there is none to be read or set.
    pub config_file: Option<PathBuf>,
    /// What goes over the file.
    pub environment: Vec<(String, String)>,
    /// Changes the log's filter.
    pub log: Option<LogControl>,
}

/// What the thread asks of the one that owns the daemon.
#[derive(Debug)]
pub(super) enum Order {
    /// Take over what can be changed while running.
    Reload(Box<Config>),
    /// Stop, and start anew.
    Restart,
}

#[derive(Debug)]
enum Input {
    Notice(Notice),
    Stop,
}

/// The client's end, made before the client is.
pub(super) struct Inbox {
    sender: Sender<Input>,
    receiver: Receiver<Input>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(WAITING);
        Self { sender, receiver }
    }

    pub(super) fn sink(&self) -> CommandSink {
        let sender = self.sender.clone();
        Box::new(move |notice| match sender.try_send(Input::Notice(notice)).map_err(TrySendError::into_inner) {
            Err(Input::Notice(notice)) => Err(notice),
            _ => Ok(()),
        })
    }
}

/// All that the thread works with.
pub(super) struct Setup {
    pub(super) config: CommandsConfig,
    pub(super) context: Arc<Context>,
    pub(super) figures: Figures,
    pub(super) handle: Handle,
    pub(super) boot: Boot,
    pub(super) orders: Sender<Order>,
    pub(super) parts: CommandParts,
}

/// The running thread.
pub(super) struct Commands {
    sender: Sender<Input>,
    thread: JoinHandle<()>,
}

impl Commands {
    pub(super) fn start(inbox: Inbox, setup: Setup) -> std::io::Result<Self> {
        let Inbox { sender, receiver } = inbox;
        let thread = std::thread::Builder::new().name("commands".into()).spawn(move || {
            let mut worker = Worker::new(setup);
            worker.pick_up();
            worker.run(&receiver);
        })?;
        Ok(Self { sender, thread })
    }

    /// Writes what is not on disk yet; waits for that for a moment only.
    pub(super) fn stop(self) {
        let deadline = Instant::now() + LAST_WRITE;
        let _ = self.sender.send_timeout(Input::Stop, LAST_WRITE);
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        match self.thread.is_finished() {
            true => drop(self.thread.join()),
            false => tracing::warn!("the commands' thread did not end in time; leaving it behind"),
        }
    }
}

/// How a command goes on.
enum Step {
    /// It is over.
    Done(Outcome),
    /// Its end comes later.
    Begun {
        /// How far it is.
        result: Option<Map<String, Value>>,
        /// Given once that has been answered.
        then: Option<Order>,
    },
}

impl From<Outcome> for Step {
    fn from(outcome: Outcome) -> Self {
        Self::Done(outcome)
    }
}

struct Worker {
    setup: Setup,
    gate: Gate,
    store: Store,
    started: Instant,
    /// Something is known that is not on disk, and has to be there then.
    save_by: Option<Instant>,
    /// Something is known that need not be on disk before the end.
    dirty: bool,
    trial: Option<Running>,
    models: Models,
    /// The filter of the configuration comes back then.
    log_until: Option<Instant>,
    /// The process is about to start anew.
    leaving: bool,
}

impl Worker {
    fn new(setup: Setup) -> Self {
        let now = Instant::now();
        let store = Store::new(&setup.config.path);
        let limits = Limits { burst: setup.config.burst, per_second: setup.config.per_second };
        let gate = Gate::new(setup.config.allow.clone(), limits, store.load(), setup.boot, now);
        let models = Models::new(&setup.context.running.load().models);
        let (save_by, trial, log_until) = (None, None, None);
        Self { setup, gate, store, started: now, save_by, dirty: false, trial, models, log_until, leaving: false }
    }

    /// Ends what earlier runs left unfinished, and sends what the broker may not have.
    fn pick_up(&mut self) {
        self.pick_up_trial();
        let unfinished = self.gate.past.unfinished();
        let unfinished: Vec<_> = unfinished.map(|e| (e.id.to_string(), e.name, e.answer.clone())).collect();
        for (id, name, answer) in unfinished {
            if self.trial.as_ref().is_some_and(|running| running.trial.id == id) {
                continue;
            }
            let outcome = match name {
                Name::Restart => Ok(Map::new()),
                Name::ConfigSet => Err(Refusal::failed(
                    ErrorCode::RolledBack,
                    "the daemon ended before the new configuration was in place; the former one stands",
                )),
                Name::ModelsInstall | Name::ModelsRollback => match self.pick_up_bundle(&id, name, answer.as_ref()) {
                    Some(outcome) => outcome,
                    None => continue,
                },
                _ => Err(Refusal::failed(ErrorCode::Internal, "the daemon ended before it was done")),
            };
            self.settle(&id, name, outcome);
        }
        if self.save_by.is_some() {
            self.save();
        }
        for entry in self.gate.past.undelivered() {
            if let Some(answer) = &entry.answer {
                self.setup.handle.answer(answer.clone(), entry.reply.clone(), None);
            }
        }
    }

    fn run(&mut self, inputs: &Receiver<Input>) {
        loop {
            let now = Instant::now();
            self.look_after(now);
            let waits = self.trial.is_some() || self.models.waits();
            let due = [self.save_by, self.log_until, waits.then(|| now + LOOK_EVERY)];
            let wait = due
                .into_iter()
                .flatten()
                .min()
                .map_or(Duration::from_secs(60), |due| due.saturating_duration_since(Instant::now()));
            match inputs.recv_timeout(wait) {
                Ok(Input::Notice(Notice::Request(incoming))) => self.one_request(incoming),
                Ok(Input::Notice(Notice::Delivered(answer))) => self.delivered(&answer),
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        if self.dirty || self.save_by.is_some() {
            self.save();
        }
    }

    fn look_after(&mut self, now: Instant) {
        if self.save_by.is_some_and(|by| now >= by) {
            self.save();
        }
        if self.log_until.is_some_and(|until| now >= until) {
            self.log_until = None;
            self.set_log(&self.setup.context.running.load().log.filter.clone());
        }
        self.look_after_trial(now);
        self.look_after_bundles(now);
    }

    fn delivered(&mut self, answer: &Answer) {
        if self.gate.past.delivered(answer) {
            let only_reads = self.gate.past.find(&answer.id).is_none_or(|entry| entry.name.only_reads());
            self.dirty = true;
            if !only_reads {
                self.save_by.get_or_insert(Instant::now() + TIDY_EVERY);
            }
        }
    }

    /// Whether all that is known is on disk now.
    fn save(&mut self) -> bool {
        (self.save_by, self.dirty) = (None, false);
        let saved = self.store.save(&self.gate.past);
        if let Err(error) = &saved {
            tracing::error!(%error, "the last requests could not be written down");
        }
        saved.is_ok()
    }

    /// A panic while a request is carried out must not cost its answer, nor the thread.
    fn one_request(&mut self, incoming: Incoming) {
        let token = incoming.token;
        let clock = clock();
        let caught = catch_unwind(AssertUnwindSafe(|| self.gate.receive(&incoming, &clock)));
        let verdict = caught.unwrap_or_else(|_| {
            let refusal = Refusal::failed(ErrorCode::Internal, "the request could not be looked at; see the log");
            let answer = Answer::new("", &incoming.name, Err(refusal), self.setup.boot, Moment(clock.wall));
            Verdict::Answer(answer, incoming.reply.clone())
        });
        match verdict {
            Verdict::Ignore(reason) => {
                tracing::warn!(command = incoming.name, "a command is ignored: {reason}");
                self.setup.handle.release(token);
            }
            Verdict::Answer(answer, reply) => {
                if let Some(error) = &answer.error {
                    tracing::info!(
                        command = incoming.name,
                        id = answer.id,
                        error = error.message,
                        "a command is rejected"
                    );
                }
                self.setup.handle.answer(answer, reply, Some(token));
            }
            Verdict::Do(accepted) => self.accepted(accepted, token),
        }
    }

    fn accepted(&mut self, accepted: Accepted, token: Token) {
        let Accepted { id, name, command, reply } = accepted;
        if !name.only_reads() {
            tracing::info!(command = %name, %id, "a command is carried out");
        }
        let step = match self.remember(name) {
            Ok(()) => {
                let carried = catch_unwind(AssertUnwindSafe(|| self.carry_out(id.as_str(), command)));
                carried.unwrap_or_else(|_| {
                    Step::Done(Err(Refusal::failed(ErrorCode::Internal, "it could not be carried out; see the log")))
                })
            }
            Err(refusal) => Step::Done(Err(refusal)),
        };
        let (time, boot) = (Moment(jiff::Timestamp::now()), self.setup.boot);
        let (answer, then) = match step {
            Step::Done(outcome) => (Answer::new(id.as_str(), name.as_str(), outcome, boot, time), None),
            Step::Begun { result, then } => (Answer::in_progress(id.as_str(), name.as_str(), result, boot, time), then),
        };
        self.note(name, &answer);
        self.setup.handle.answer(answer, reply, Some(token));
        if let Some(Err(refusal)) = then.map(|order| self.order(order)) {
            self.leaving = false;
            match name {
                Name::ConfigSet => self.roll_back(&refusal.message),
                _ => drop(self.finish(id.as_str(), name, Err(refusal))),
            }
        }
    }

    /// What is not only read is on disk before it is begun.
    fn remember(&mut self, name: Name) -> Result<(), Refusal> {
        if name.only_reads() || name == Name::ModelsChunk {
            return Ok(());
        }
        self.store.save(&self.gate.past).map_err(|error| {
            Refusal::rejected(ErrorCode::Storage, format!("the request could not be written down: {error}"))
        })
    }

    /// Keeps an answer; one that says that nothing was done is forgotten with its request, which may come again. So is a picture:
    /// none is kept on the disk, and one who asks again gets the next.
    fn note(&mut self, name: Name, answer: &Answer) {
        use crate::mqtt::command::AnswerState::Rejected;
        if answer.state == Rejected || name == Name::Snapshot {
            self.gate.past.forget(&answer.id);
        } else {
            self.gate.past.settle(answer);
        }
        match name.only_reads() {
            true => self.dirty = true,
            false if name == Name::ModelsChunk => {}
            false => drop(self.save()),
        }
    }

    /// The end of a command that was begun earlier.
    fn settle(&mut self, id: &str, name: Name, outcome: Outcome) -> Answer {
        let time = Moment(jiff::Timestamp::now());
        let answer = Answer::new(id, name.as_str(), outcome, self.setup.boot, time);
        self.gate.past.settle(&answer);
        self.save_by.get_or_insert(Instant::now());
        answer
    }

    /// The same, on disk and published; whether it is on disk.
    fn finish(&mut self, id: &str, name: Name, outcome: Outcome) -> bool {
        let answer = self.settle(id, name, outcome);
        let saved = self.save();
        let reply = self.gate.past.find(id).map(|entry| entry.reply.clone()).unwrap_or_default();
        self.setup.handle.answer(answer, reply, None);
        saved
    }

    fn carry_out(&mut self, id: &str, command: Command) -> Step {
        if self.leaving {
            return busy("the daemon is about to start anew").into();
        }
        match command {
            Command::Ping => {
                let uptime = Seconds::from(self.started.elapsed());
                Ok(object(json!({ "uptime_s": uptime }))).into()
            }
            Command::Info => self.info().into(),
            Command::ConfigGet => self.config_get().into(),
            Command::ConfigSet(wanted) => self.config_set(id, wanted),
            Command::Snapshot => self.snapshot().into(),
            Command::Consent { granted, lasting } => self.consent(granted, lasting).into(),
            Command::LogLevel { level, lasting } => self.log_level(&level, lasting).into(),
            Command::Restart => self.restart(),
            Command::ModelsInstall(request) => self.models_install(id, request),
            Command::ModelsChunk(chunk) => self.models_chunk(&chunk).into(),
            Command::ModelsRollback { task } => self.models_rollback(&task),
        }
    }

    fn info(&self) -> Outcome {
        serde_json::to_value(self.setup.figures.info())
            .map(object)
            .map_err(|error| Refusal::failed(ErrorCode::Internal, error.to_string()))
    }

    fn consent(&self, granted: bool, lasting: Option<Duration>) -> Outcome {
        let consent = &self.setup.context.consent;
        let now = Instant::now();
        if !consent.is_required() {
            let message = "privacy.require_consent is false in this device's configuration: nothing waits for consent";
            return Err(Refusal::rejected(ErrorCode::Forbidden, message));
        }
        match granted {
            true => consent.grant(lasting, now, jiff::Timestamp::now()),
            false => consent.revoke(),
        }
        serde_json::to_value(consent.describe(now))
            .map(object)
            .map_err(|error| Refusal::failed(ErrorCode::Internal, error.to_string()))
    }

    fn log_level(&mut self, level: &str, lasting: Option<Duration>) -> Outcome {
        let Some(log) = &self.setup.parts.log else {
            return Err(Refusal::rejected(ErrorCode::Forbidden, "the log of this process cannot be changed"));
        };
        log(level).map_err(|reason| Refusal::rejected(ErrorCode::InvalidArgs, format!("args.level: {reason}")))?;
        self.log_until = lasting.and_then(|lasting| Instant::now().checked_add(lasting));
        Ok(object(json!({ "level": level })))
    }

    fn set_log(&self, filter: &str) {
        if let Some(Err(reason)) = self.setup.parts.log.as_ref().map(|log| log(filter)) {
            tracing::warn!(reason, "the log's filter could not be changed");
        }
    }

    fn restart(&mut self) -> Step {
        if self.trial.is_some() {
            return busy("a configuration is on trial, and a restart would roll it back").into();
        }
        if self.models.installing() {
            return busy("a bundle is being installed, and a restart would stop that").into();
        }
        self.leaving = true;
        Step::Begun { result: None, then: Some(Order::Restart) }
    }

    fn order(&self, order: Order) -> Result<(), Refusal> {
        self.setup
            .orders
            .try_send(order)
            .map_err(|_| Refusal::failed(ErrorCode::Internal, "the daemon takes no orders now"))
    }
}

fn busy(message: &str) -> Outcome {
    Err(Refusal::rejected(ErrorCode::Busy, message))
}

fn clock() -> Clock {
    Clock { monotonic: Instant::now(), wall: jiff::Timestamp::now(), trust: system::clock_trust() }
}

/// The object that `value` is.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
