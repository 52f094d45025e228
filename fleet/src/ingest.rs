//! From messages to rows: reads what devices send, gathers what came together, stores it, and only then acknowledges it.
//!
//! Invariants: a message is acknowledged after the transaction that holds it has been committed, or when it can never be stored (then it is
//! among the unreadable ones in the same transaction); batches grow with the load by themselves, because while one is being written the
//! next one gathers. Knows [`contract`](crate::contract), [`store`](crate::store) and [`link`](crate::link).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::contract::{Gap, Leaf, Numbered, parse_topic};
use crate::link::Message;
use crate::store::{Batch, EventIn, GapIn, InfoIn, Names, StatusIn, Store, TelemetryIn};
use crate::time::Micros;

/// Messages in one transaction at most.
pub const LARGEST_BATCH: usize = 2000;

/// Messages that can wait for the writer; more than the broker may send unacknowledged on two sessions.
pub const QUEUE: usize = 8192;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// What goes to the writer.
#[derive(Debug)]
pub enum Incoming {
    /// A message of this process' own session.
    Own(Message),
    /// One of a session that is being taken over: what it says of status and info is old.
    Adopted(Message),
    /// Everything before it has been stored when this is answered.
    Mark(oneshot::Sender<()>),
}

/// Whether a part of the server is at something, and for how long.
#[derive(Debug)]
pub struct Pulse {
    epoch: Instant,
    /// Milliseconds after `epoch`; 0 is idle.
    since: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { epoch: Instant::now(), since: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// Busy until what is given is dropped, or this is called again.
    pub fn begin(&self) -> Busy<'_> {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now.max(1), Ordering::Relaxed);
        Busy(self)
    }

    /// Zero when idle.
    pub fn busy_for(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.epoch.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }
}

/// While this lives its [`Pulse`] is busy.
#[derive(Debug)]
pub struct Busy<'a>(&'a Pulse);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.since.store(0, Ordering::Relaxed);
    }
}

/// From an event's publishing, by the device's clock, to its being in the store, by this one's, in seconds: buckets from 1 ms, each a fifth wider
/// than the one before, so that a percentile is right to a tenth.
#[derive(Debug)]
pub struct Lag(pub Histogram);

impl Default for Lag {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.001, 1.2, 64)))
    }
}

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events that were new.
    pub events: AtomicU64,
    /// Events that were there already.
    pub duplicates: AtomicU64,
    /// Messages of any kind that were stored.
    pub messages: AtomicU64,
    /// Transactions.
    pub batches: AtomicU64,
    /// Messages that could not be read.
    pub unreadable: AtomicU64,
    /// QoS 0 messages that found no room.
    pub dropped: AtomicU64,
    /// Transactions that failed and were tried again.
    pub retries: AtomicU64,
    /// Sessions of other instances that were taken over.
    pub adopted: AtomicU64,
    /// Of events that were not late already when the device sent them.
    pub lag: Lag,
    /// Shows that the writer's work goes on.
    pub writing: Pulse,
}

/// Stores what comes until `incoming` ends.
pub async fn write(store: Store, mut incoming: mpsc::Receiver<Incoming>, counters: Arc<Counters>) {
    let mut names = Names::default();
    let mut waiting = Vec::with_capacity(LARGEST_BATCH);
    while incoming.recv_many(&mut waiting, LARGEST_BATCH).await > 0 {
        let mut batch = Batch { received: Micros::now(), ..Batch::default() };
        for item in &waiting {
            match item {
                Incoming::Own(message) => add(&mut batch, message.topic(), message.payload(), false),
                Incoming::Adopted(message) => add(&mut batch, message.topic(), message.payload(), true),
                Incoming::Mark(_) => {}
            }
        }
        store_until_done(&store, &mut names, &batch, &counters).await;
        observe_lag(&batch, Micros::now(), &counters.lag.0);
        counters.messages.fetch_add(waiting.len() as u64, Ordering::Relaxed);
        counters.unreadable.fetch_add(batch.unreadable.len() as u64, Ordering::Relaxed);
        for item in waiting.drain(..) {
            match item {
                Incoming::Own(message) | Incoming::Adopted(message) => message.acknowledge(),
                Incoming::Mark(done) => drop(done.send(())),
            }
        }
    }
}

fn observe_lag(batch: &Batch, now: Micros, lag: &Histogram) {
    for EventIn { event, .. } in batch.events.iter().filter(|event| !event.event.historical) {
        let published = event.time.0.saturating_add((event.latency_ms.unwrap_or(0.0) * 1000.0) as i64);
        lag.observe(now.0.saturating_sub(published).max(0) as f64 / 1e6);
    }
}

/// The database may be away for hours: meanwhile the broker keeps what is not acknowledged.
async fn store_until_done(store: &Store, names: &mut Names, batch: &Batch, counters: &Counters) {
    if batch.is_empty() {
        return;
    }
    let mut wait = RETRY_FIRST;
    loop {
        let _busy = counters.writing.begin();
        match store.write(names, batch).await {
            Ok(stored) => {
                counters.events.fetch_add(stored.events, Ordering::Relaxed);
                counters.duplicates.fetch_add(stored.duplicates, Ordering::Relaxed);
                counters.batches.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, ?wait, "a batch could not be stored");
                counters.retries.fetch_add(1, Ordering::Relaxed);
                names.clear();
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_LONGEST);
            }
        }
    }
}

/// Reads one message into the batch.
pub fn add(batch: &mut Batch, topic: Option<&str>, payload: &[u8], adopted: bool) {
    let Some((device, leaf)) = topic.and_then(parse_topic) else { return };
    let topic = topic.unwrap_or_default();
    if let Err(reason) = add_known(batch, device, leaf, payload, adopted) {
        let shown = String::from_utf8_lossy(payload).into_owned();
        batch.unreadable.push((topic.to_owned(), reason, shown));
    }
}

fn add_known(
    batch: &mut Batch,
    device: crate::contract::DeviceName,
    leaf: Leaf,
    payload: &[u8],
    adopted: bool,
) -> Result<(), String> {
    match leaf {
        Leaf::Face | Leaf::Summary => {
            let event: Numbered = read(payload)?;
            if i64::try_from(event.seq).is_err() {
                return Err(format!("seq {} is beyond 2^63", event.seq));
            }
            let kind = if leaf == Leaf::Face { "face" } else { "summary" };
            batch.events.push(EventIn { device, kind, event, body: text(payload)? });
        }
        Leaf::Gap => {
            let gap: Gap = read(payload)?;
            text(payload)?;
            if gap.from > gap.to
                || gap.count == 0
                || i64::try_from(gap.to).is_err()
                || gap.count > gap.to - gap.from + 1
            {
                return Err(format!("no gap: {} of {} to {}", gap.count, gap.from, gap.to));
            }
            batch.gaps.push(GapIn { device, gap });
        }
        Leaf::Telemetry => batch.telemetry.push(TelemetryIn { device, telemetry: read(payload)? }),
        // An empty retained payload removes a topic: the device was taken down on purpose.
        Leaf::Status | Leaf::Info if payload.is_empty() || adopted => {}
        Leaf::Status => {
            let status = read(payload)?;
            text(payload)?;
            batch.statuses.insert(device, StatusIn { status });
        }
        Leaf::Info => {
            let body = text(payload)?;
            batch.infos.insert(device, InfoIn { info: read(payload)?, body });
        }
        Leaf::Answer => {
            let answer = read(payload)?;
            text(payload)?;
            batch.answers.push((device, answer));
        }
    }
    Ok(())
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

/// Text that both databases take: PostgreSQL has no NUL, not even an escaped one once it is unescaped.
fn text(payload: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
    if text.contains("\\u0000") || text.contains('\0') {
        return Err("holds a NUL character".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "7d8f0a44-53b6-4f3c-9d0a-1c2b3d4e5f60";

    fn batch_of(messages: &[(&str, String)]) -> Batch {
        let mut batch = Batch::default();
        for (leaf, payload) in messages {
            add(&mut batch, Some(&format!("visaged/v1/s/d/{leaf}")), payload.as_bytes(), false);
        }
        batch
    }

    #[test]
    fn what_cannot_be_read_is_kept_with_the_reason_and_the_rest_goes_on() {
        let event = |seq: &str| format!(r#"{{"boot":"{BOOT}","seq":{seq},"time":"2026-01-01T00:00:00.000000Z"}}"#);
        let gap = |from: u64, to: u64, count: u64| {
            format!(
                r#"{{"boot":"{BOOT}","from":{from},"to":{to},"count":{count},"reason":"space","time":"2026-01-01T00:00:00Z"}}"#
            )
        };
        let batch = batch_of(&[
            ("face", event("3")),
            ("face", event("-1")),
            ("face", event("9223372036854775808")),
            ("face", "{".into()),
            ("face", String::new()),
            ("gap", gap(1, 2, 2)),
            ("gap", gap(2, 1, 1)),
            ("gap", gap(1, 2, 3)),
            ("status", format!(r#"{{"status":"asleep","boot":"{BOOT}"}}"#)),
            ("status", String::new()),
            ("info", format!(r#"{{"version":"\u0000","boot":"{BOOT}"}}"#)),
        ]);
        assert_eq!((batch.events.len(), batch.gaps.len(), batch.statuses.len(), batch.infos.len()), (1, 1, 0, 0));
        assert_eq!(batch.unreadable.len(), 8, "{:#?}", batch.unreadable);
    }

    #[test]
    fn a_pulse_is_busy_from_its_beginning_to_its_end() {
        let pulse = Pulse { epoch: Instant::now() - Duration::from_secs(100), since: AtomicU64::new(0) };
        assert_eq!(pulse.busy_for(), Duration::ZERO);
        let busy = pulse.begin();
        pulse.since.store(10_000, Ordering::Relaxed);
        assert!(pulse.busy_for() >= Duration::from_secs(90), "since 90 seconds ago");
        drop(busy);
        assert_eq!(pulse.busy_for(), Duration::ZERO);
    }

    #[test]
    fn other_topics_are_passed_over() {
        let mut batch = Batch::default();
        add(&mut batch, Some("visaged/v1/s/d/cmd/ping"), b"{}", false);
        add(&mut batch, None, b"{}", false);
        assert!(batch.is_empty());
    }

    #[test]
    fn an_adopted_session_says_nothing_of_how_devices_are_now() {
        let status = format!(r#"{{"status":"online","boot":"{BOOT}"}}"#);
        let mut batch = Batch::default();
        add(&mut batch, Some("visaged/v1/s/d/status"), status.as_bytes(), true);
        assert!(batch.is_empty());
        add(&mut batch, Some("visaged/v1/s/d/status"), status.as_bytes(), false);
        assert_eq!(batch.statuses.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_on_any_topic_give_a_batch(topic in "visaged/v1/s/d/(face|gap|info|status|telemetry|rsp/x)", payload in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            let mut batch = Batch::default();
            add(&mut batch, Some(&topic), &payload, false);
        }
    }
}
