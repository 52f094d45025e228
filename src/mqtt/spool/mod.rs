//! Where events wait until the broker has them: in memory, and on disk what has waited for longer than a moment.
//!
//! ```text
//! push ─► Queue (memory) ─► next, acknowledge
//!           │   ▲
//!    batches▼   │chunks
//!        thread `spool` ◄─► redb
//! ```
//!
//! Invariants: [`Spool::push`], [`Spool::next`] and [`Spool::acknowledge`] never wait for the disk; a record goes away
//! by its acknowledgement only, or is given up and declared by a [`Gap`] in its place; order is kept, over crashes too.
//!
//! Publishing does not wait for the disk: at-least-once delivery to the broker needs no copy here, and a record that is
//! acknowledged before its batch is written never is, which spares the flash while the broker is there. A power cut costs
//! what was neither acknowledged nor written: at most the events of the last [`DiskSettings::sync_every`], or
//! [`DiskSettings::sync_events`] if these come first, and those that came during the write itself.
//!
//! Age is measured in the spool's own clock, which runs while a process has the spool open and never jumps: no clock that
//! is set can make an event old, and time without power does not count.

mod queue;
mod record;
mod stock;
mod store;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::queue::{Bounds, CHUNK, Draft, Losses, Queue, Room};
pub use self::record::{Gap, Item, LossReason, Record, RecordId};
use self::record::{Now, SpoolTime, decode};
use self::stock::Stock;
use self::store::{Folder, Found, Place, Store, StoreError};
use crate::report::{Boot, Event};

/// Records written at once, at most; bounds what a batch takes in memory.
const LARGEST_BATCH: usize = 1024;
/// Acknowledged records may stay on disk for this long; a crash meanwhile sends them twice.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// The age of events is looked at least this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The spool's clock is written down at least this often while something waits.
const CLOCK_EVERY: Duration = Duration::from_secs(600);
/// First and longest wait between attempts to open a file that could not be used: the status says within ten seconds that it can be again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// A disk that has not taken an event for this much longer than it should is said to be too slow.
const LATE: Duration = Duration::from_secs(5);
/// That a corrupt file was put aside is said for this long.
const ASIDE_SHOWN: Duration = Duration::from_secs(600);
/// Records may take this part of the file's bound; the rest is for pages that are half full, or free.
const RECORD_PART: u64 = 2;

/// How a spool on disk behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskSettings {
    /// The folder; made where it is not there.
    pub folder: PathBuf,
    /// What the file may take. Beyond it the oldest event is given up.
    pub max_bytes: u64,
    /// An event that was neither acknowledged nor written for this long is written.
    pub sync_every: Duration,
    /// As soon as so many wait to be written, they are.
    pub sync_events: usize,
}

/// What both kinds of spool have.
#[derive(Clone, Debug, PartialEq)]
pub struct MemorySettings {
    /// Events in memory: all there are, or those that are not on disk yet. Beyond it the oldest is given up.
    pub events: usize,
    /// An event that has waited for longer is given up.
    pub max_age: Option<Duration>,
}

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process works with it.
    #[error(
        "spool {0}: another process has it open: is a second visaged running? Give each its own folder in mqtt.spool.path"
    )]
    Locked(String),
    /// The system gives no thread.
    #[error("the spool's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// How the spool does; counters run from the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Events that wait.
    pub depth: u64,
    /// Events on disk.
    pub stored: u64,
    /// What is on disk takes so much there.
    pub stored_bytes: u64,
    /// Events given up because the spool was full.
    pub lost_space: u64,
    /// Events given up because they had waited too long.
    pub lost_age: u64,
    /// Events given up because the disk failed or was too slow.
    pub lost_storage: u64,
}

/// Where events wait.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    writer: Mutex<Option<Writer>>,
}

#[derive(Debug)]
struct Writer {
    thread: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something for the thread to do.
    work: Condvar,
    /// There is something for the client to send.
    news: Notify,
    opened: Instant,
    boot: Boot,
    sync: Option<Sync>,
}

/// When to write.
#[derive(Clone, Copy, Debug)]
struct Sync {
    every: Duration,
    events: usize,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// The spool's clock at `Shared::opened`.
    clock: SpoolTime,
    /// Written as soon as may be, whatever the interval.
    flush: bool,
    closing: bool,
    /// The thread will look by itself when the next record is due.
    armed: bool,
    /// Why the file cannot be used now.
    broken: Option<String>,
    /// What happened, and until when it is said.
    notice: Option<(String, Instant)>,
    name: String,
}

impl Spool {
    /// A spool in memory: a restart loses what it holds.
    pub fn in_memory(settings: &MemorySettings) -> Self {
        let bounds = Bounds {
            tail_events: settings.events.max(1),
            record_bytes: u64::MAX,
            max_age: settings.max_age,
            tail_full: LossReason::Space,
        };
        let shared = Shared::new(Queue::new(bounds), "memory".into(), Boot(uuid::Uuid::nil()), None);
        Self { shared: Arc::new(shared), writer: Mutex::new(None) }
    }

    /// A spool on disk. What an earlier run left there comes first. A folder that cannot be used is no error: events
    /// wait in memory, [`Self::complaint`] says why, and the folder is tried again.
    ///
    /// # Errors
    /// [`SpoolError`] where another process has it, or there is no thread.
    pub fn on_disk(disk: &DiskSettings, memory: &MemorySettings, boot: Boot) -> Result<Self, SpoolError> {
        Self::at(Box::new(Folder::new(&disk.folder)), disk, memory, boot)
    }

    fn at(place: Box<dyn Place>, disk: &DiskSettings, memory: &MemorySettings, boot: Boot) -> Result<Self, SpoolError> {
        let (spool, mut disk) = Self::parts(place, disk, memory, boot)?;
        let (end, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name("spool".into()).spawn(move || {
            disk.run();
            drop(end);
        })?;
        *spool.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Writer { thread, ended });
        Ok(spool)
    }

    /// The spool, and what its thread is to run.
    fn parts(
        mut place: Box<dyn Place>,
        disk: &DiskSettings,
        memory: &MemorySettings,
        boot: Boot,
    ) -> Result<(Self, Disk), SpoolError> {
        let bounds = Bounds {
            tail_events: memory.events.max(1),
            record_bytes: disk.max_bytes / RECORD_PART,
            max_age: memory.max_age,
            tail_full: LossReason::Storage,
        };
        let sync = Sync { every: disk.sync_every, events: disk.sync_events.max(1) };
        let shared = Arc::new(Shared::new(Queue::new(bounds), place.name(), boot, Some(sync)));
        let opened = place.open();
        if opened.as_ref().is_err_and(|error| *error == StoreError::Locked) {
            return Err(SpoolError::Locked(place.name()));
        }
        let mut disk = Disk::new(Arc::clone(&shared), place);
        disk.take(opened);
        Ok((Self { shared, writer: Mutex::new(None) }, disk))
    }

    /// Puts an event at the end. Never waits for the disk.
    pub fn push(&self, event: Event) {
        let mut state = self.shared.lock();
        let now = self.shared.now(&state);
        tracing::trace!(boot = %event.boot, seq = event.seq, "event in the spool");
        state.queue.push(event, &now);
        let fresh = state.queue.fresh();
        let wake = self.shared.sync.is_some_and(|sync| !state.armed || fresh.is_multiple_of(sync.events));
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
        self.shared.news.notify_one();
    }

    /// The next record that was not handed out since the last [`Self::rewind`]. `None` also while more is being fetched
    /// from disk; [`Self::news`] tells when to ask again.
    pub fn next(&self) -> Option<Record> {
        let mut state = self.shared.lock();
        let now = self.shared.now(&state);
        let record = state.queue.next(&now);
        if state.queue.wanted().is_some() {
            self.shared.work.notify_one();
        }
        record
    }

    /// A new connection: everything that waits is handed out again, in order.
    pub fn rewind(&self) {
        let mut state = self.shared.lock();
        let now = self.shared.now(&state);
        state.queue.rewind(now.spool);
    }

    /// The broker has it: the record goes away. Nothing happens where it has gone already.
    pub fn acknowledge(&self, id: RecordId) {
        self.shared.lock().queue.acknowledge(id);
    }

    /// The broker will never take it: a gap says so in its place.
    pub fn give_up(&self, id: RecordId) {
        let mut state = self.shared.lock();
        let now = self.shared.now(&state);
        state.queue.give_up(id, &now);
        drop(state);
        self.shared.news.notify_one();
    }

    /// Told when [`Self::next`] may have something.
    pub fn news(&self) -> &Notify {
        &self.shared.news
    }

    /// More waits on disk than can be handed out at once.
    pub fn is_fetching(&self) -> bool {
        self.shared.lock().queue.fetching()
    }

    /// Nothing waits, neither event nor gap.
    pub fn is_empty(&self) -> bool {
        self.shared.lock().queue.is_empty()
    }

    /// Events that wait.
    pub fn depth(&self) -> u64 {
        self.shared.lock().queue.events()
    }

    /// How it does.
    pub fn figures(&self) -> Figures {
        let state = self.shared.lock();
        let Losses { space, age, storage } = state.queue.losses();
        let (stored, stored_bytes) = state.queue.stored();
        Figures {
            depth: state.queue.events(),
            stored,
            stored_bytes,
            lost_space: space,
            lost_age: age,
            lost_storage: storage,
        }
    }

    /// What is wrong with it at `now`, for people; `None` where it does what it should.
    pub fn complaint(&self, now: Instant) -> Option<String> {
        let sync = self.shared.sync?;
        let state = self.shared.lock();
        let spool = self.shared.now(&state).spool;
        let late = |at: SpoolTime| spool.since(at) > sync.every + LATE;
        let complaint = match (&state.broken, &state.notice) {
            (Some(reason), _) => {
                format!("{reason}; events wait in memory, and beyond mqtt.queue_events the oldest is lost")
            }
            (None, _) if state.queue.unwritten().1.is_some_and(late) => {
                "the disk takes too long to write; events wait in memory".into()
            }
            (None, Some((notice, until))) if now < *until => notice.clone(),
            _ => return None,
        };
        Some(format!("spool {}: {complaint}", state.name))
    }

    /// Writes what waits as soon as may be, without waiting for it.
    pub fn flush(&self) {
        self.shared.lock().flush = true;
        self.shared.work.notify_one();
    }

    /// Writes what waits and closes the file; waits for that at most `limit`. What is pushed later stays in memory.
    pub fn close(&self, limit: Duration) {
        let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        match writer.ended.recv_timeout(limit) {
            Err(mpsc::RecvTimeoutError::Disconnected) => drop(writer.thread.join()),
            _ => tracing::warn!(
                "the spool could not be written in time; what is not on disk is sent if the broker has it"
            ),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close(Duration::from_millis(500));
    }
}

impl Shared {
    fn new(queue: Queue, name: String, boot: Boot, sync: Option<Sync>) -> Self {
        let state = State {
            queue,
            clock: SpoolTime(0),
            flush: false,
            closing: false,
            armed: false,
            broken: None,
            notice: None,
            name,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), news: Notify::new(), opened: Instant::now(), boot, sync }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self, state: &State) -> Now {
        let monotonic = Instant::now();
        let run = u64::try_from(monotonic.saturating_duration_since(self.opened).as_micros()).unwrap_or(u64::MAX);
        Now { spool: SpoolTime(state.clock.0.saturating_add(run)), monotonic, wall: jiff::Timestamp::now() }
    }
}

/// The thread `spool`: the only one that touches the disk.
struct Disk {
    shared: Arc<Shared>,
    place: Box<dyn Place>,
    store: Option<Store>,
    /// A file was open before, in this process.
    attached: bool,
    /// The file was opened again after an error and has not taken anything yet.
    unproven: bool,
    retry: Duration,
    retry_at: Instant,
    written_at: Instant,
}

/// What the thread does next.
enum Task {
    Write,
    Fetch { after: Option<u64> },
    Open,
    End,
}

impl Disk {
    fn new(shared: Arc<Shared>, place: Box<dyn Place>) -> Self {
        let now = Instant::now();
        Self {
            shared,
            place,
            store: None,
            attached: false,
            unproven: false,
            retry: FIRST_RETRY,
            retry_at: now,
            written_at: now,
        }
    }

    fn run(&mut self) {
        loop {
            match self.await_task() {
                Task::Write => self.write(),
                Task::Fetch { after } => self.fetch(after),
                Task::Open => {
                    let opened = self.place.open();
                    self.take(opened);
                }
                Task::End => break,
            }
        }
        self.store = None;
    }

    fn await_task(&self) -> Task {
        let mut state = self.shared.lock();
        loop {
            let now = self.shared.now(&state);
            state.queue.expire(&now);
            match self.due(&mut state, &now) {
                Ok(task) => {
                    state.armed = false;
                    return task;
                }
                Err(wait) => {
                    let waited = self.shared.work.wait_timeout(state, wait.min(LOOK_EVERY));
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// What is due, or how long nothing is.
    fn due(&self, state: &mut State, now: &Now) -> Result<Task, Duration> {
        let Some(sync) = self.shared.sync else { return Ok(Task::End) };
        if self.store.is_none() {
            let wait = self.retry_at.saturating_duration_since(now.monotonic);
            return match state.closing {
                true => Ok(Task::End),
                false if wait.is_zero() => Ok(Task::Open),
                false => Err(wait),
            };
        }
        if let Some(after) = state.queue.wanted().filter(|_| !state.closing) {
            return Ok(Task::Fetch { after });
        }
        let (unwritten, oldest) = state.queue.unwritten();
        let unwanted = state.queue.unwanted() > 0;
        let something = unwritten > 0 || unwanted;
        let at_once = something && (state.closing || std::mem::take(&mut state.flush));
        if state.closing && !something {
            return Ok(Task::End);
        }
        let waited = oldest.map_or(Duration::ZERO, |oldest| now.spool.since(oldest));
        let in_time = unwritten < sync.events && (unwritten == 0 || waited < sync.every);
        let untidy = unwanted && now.monotonic >= self.written_at + TIDY_EVERY;
        // Else a run in which nothing is pushed would leave no trace in the age of what waits.
        let clock = !state.queue.is_empty() && now.monotonic >= self.written_at + CLOCK_EVERY;
        if at_once || !in_time || untidy || clock || self.unproven {
            return Ok(Task::Write);
        }
        state.armed = unwritten > 0;
        let to_sync = if unwritten > 0 { sync.every.saturating_sub(waited) } else { LOOK_EVERY };
        let to_tidy = (self.written_at + TIDY_EVERY).saturating_duration_since(now.monotonic);
        Err(to_sync.min(if unwanted { to_tidy } else { LOOK_EVERY }).max(Duration::from_millis(1)))
    }

    /// Drafts under the lock, bytes without it: who pushes waits for neither JSON nor disk.
    fn write(&mut self) {
        if self.store.is_none() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let (drafts, now) = {
            let mut state = shared.lock();
            let now = shared.now(&state);
            (state.queue.drafts(LARGEST_BATCH), now)
        };
        let encoded: Vec<_> = drafts.iter().map(|draft| draft.encode(&now)).collect();
        while shared.lock().queue.make_room(&encoded, &now) == Room::Fetch {
            let after = shared.lock().queue.wanted();
            let Some(after) = after else { break };
            self.fetch(after);
            if self.store.is_none() {
                return;
            }
        }
        let newest = drafts.iter().rev().find_map(Draft::seq);
        let batch = shared.lock().queue.batch(encoded, &now);
        let Some(store) = &mut self.store else { return };
        let result = store.commit(&batch.deletes, &batch.puts, now.spool);
        let mut state = shared.lock();
        self.written_at = Instant::now();
        match result {
            Ok(()) => {
                tracing::debug!(records = batch.puts.len(), gone = batch.deletes.len(), newest, "spool written");
                state.queue.written(batch);
                (self.unproven, self.retry) = (false, FIRST_RETRY);
                if let Some(reason) = state.broken.take() {
                    tracing::info!(spool = state.name, reason, "the spool's file can be used again");
                }
            }
            Err(error) => {
                state.queue.not_written(batch);
                drop(state);
                self.fail(&error);
            }
        }
    }

    fn fetch(&mut self, after: Option<u64>) {
        let Some(store) = &mut self.store else { return };
        match store.load(after, CHUNK) {
            Ok(records) => {
                let shared = Arc::clone(&self.shared);
                let mut state = shared.lock();
                let now = shared.now(&state);
                let all = records.len() < CHUNK;
                let decoded = records
                    .into_iter()
                    .map(|(key, value)| (key, decode(&value, shared.boot, &now), Store::cost(value.len())))
                    .collect();
                state.queue.fetched(decoded, all, &now);
                drop(state);
                shared.news.notify_one();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// After an error nothing of an open file is believed.
    fn fail(&mut self, error: &StoreError) {
        self.store = None;
        self.take(Err(error.clone()));
    }

    /// Goes on with a file that was opened, or says why there is none.
    fn take(&mut self, opened: Result<(Store, Found), StoreError>) {
        match opened.and_then(|(store, found)| self.go_on_with(store, &found)) {
            Ok(()) => self.shared.news.notify_one(),
            Err(StoreError::Corrupt(reason)) => self.begin_anew(&reason),
            Err(error) => self.say_broken(&error),
        }
    }

    fn go_on_with(&mut self, mut store: Store, found: &Found) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let again = self.attached.then(|| compare(&shared, &mut store)).transpose()?;
        let mut state = shared.lock();
        match again {
            Some((missing, stock)) => {
                let now = shared.now(&state);
                state.queue.reattach(found, stock, &missing, &now);
            }
            None => {
                state.queue.attach(found);
                state.clock = found.clock;
            }
        }
        if found.stock.events() > 0 {
            tracing::info!(spool = state.name, events = found.stock.events(), "events wait in the spool");
        }
        (self.attached, self.unproven, self.store) = (true, state.broken.is_some(), Some(store));
        Ok(())
    }

    fn begin_anew(&mut self, reason: &str) {
        self.store = None;
        let aside = match self.place.put_aside() {
            Ok(aside) => aside,
            Err(error) => {
                let error = StoreError::Io(format!("its file is corrupt ({reason}) and cannot be put aside: {error}"));
                return self.take(Err(error));
            }
        };
        let notice = format!("its file was corrupt and is now {aside}; what it held is lost, and a new one was begun");
        {
            let mut state = self.shared.lock();
            let now = self.shared.now(&state);
            tracing::error!(spool = state.name, reason, "{notice}");
            state.queue.begin_anew(&now);
            state.notice = Some((notice, Instant::now() + ASIDE_SHOWN));
        }
        let opened = self.place.open();
        match opened {
            // A new file that is corrupt at once: the disk is of no use for now.
            Err(StoreError::Corrupt(reason)) => self.take(Err(StoreError::Io(reason))),
            opened => self.take(opened),
        }
    }

    fn say_broken(&mut self, error: &StoreError) {
        (self.retry_at, self.retry) = (Instant::now() + self.retry, (self.retry * 2).min(LONGEST_RETRY));
        let mut state = self.shared.lock();
        let reason = error.to_string();
        if state.broken.as_ref() != Some(&reason) {
            tracing::warn!(spool = state.name, "{reason}; trying again until it can be used");
            state.broken = Some(reason);
        }
    }
}

/// What memory believes to be in a file that is not there, and what is there that only the file knows.
fn compare(shared: &Shared, store: &mut Store) -> Result<(HashSet<u64>, Stock), StoreError> {
    let (believed, (after, before)) = {
        let state = shared.lock();
        (state.queue.believed(), state.queue.disk_only())
    };
    let mut missing = HashSet::new();
    for key in believed {
        if !store.has(key)? {
            missing.insert(key);
        }
    }
    Ok((missing, store.stock(after, before)?))
}
