//! Writing what devices send, a batch in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::Row;
use uuid::Uuid;

use super::bundles::record_arrival;
use super::{Store, StoreError, Value, insert_many, select_many};
use crate::bundle::install_of;
use crate::contract::{Answer, AnswerState, CHUNK_COMMAND, DeviceName, Gap, Info, Numbered, Status, Telemetry};
use crate::time::Micros;

/// An event to store.
#[derive(Clone, Debug)]
pub struct EventIn {
    /// From the topic.
    pub device: DeviceName,
    /// `face` or `summary`.
    pub kind: &'static str,
    /// What the store asks for.
    pub event: Numbered,
    /// The payload as it came.
    pub body: String,
}

/// A declared gap to store.
#[derive(Clone, Debug)]
pub struct GapIn {
    /// From the topic.
    pub device: DeviceName,
    /// The payload.
    pub gap: Gap,
}

/// Telemetry to store.
#[derive(Clone, Debug)]
pub struct TelemetryIn {
    /// From the topic.
    pub device: DeviceName,
    /// The payload.
    pub telemetry: Telemetry,
}

/// A status to store.
#[derive(Clone, Debug)]
pub struct StatusIn {
    /// The payload.
    pub status: Status,
}

/// An info to store.
#[derive(Clone, Debug)]
pub struct InfoIn {
    /// The payload.
    pub info: Info,
    /// The payload as it came.
    pub body: String,
}

/// What came in together and is stored together.
#[derive(Debug, Default)]
pub struct Batch {
    /// When it came, by this machine's clock.
    pub received: Micros,
    /// From `face` and `summary`.
    pub events: Vec<EventIn>,
    /// From `gap`.
    pub gaps: Vec<GapIn>,
    /// From `telemetry`.
    pub telemetry: Vec<TelemetryIn>,
    /// The last of each device.
    pub statuses: BTreeMap<DeviceName, StatusIn>,
    /// The last of each device.
    pub infos: BTreeMap<DeviceName, InfoIn>,
    /// From `rsp`, in order.
    pub answers: Vec<(DeviceName, Answer)>,
    /// Topic, reason, payload.
    pub unreadable: Vec<(String, String, String)>,
}

impl Batch {
    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.gaps.is_empty()
            && self.telemetry.is_empty()
            && self.statuses.is_empty()
            && self.infos.is_empty()
            && self.answers.is_empty()
            && self.unreadable.is_empty()
    }
}

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Events that were new.
    pub events: u64,
    /// Events that were there already.
    pub duplicates: u64,
}

/// The numbers that names have in the store, as far as this process has met them; and when it last wrote that a device was heard.
#[derive(Debug)]
pub struct Names {
    writer: i64,
    devices: HashMap<DeviceName, i64>,
    boots: HashMap<(i64, Uuid), i64>,
    seen: HashMap<i64, Micros>,
}

impl Default for Names {
    fn default() -> Self {
        let (devices, boots, seen) = Default::default();
        Self { writer: rand::random_range(0..i64::MAX), devices, boots, seen }
    }
}

impl Names {
    /// Forgets everything, for when the store was changed behind its back.
    pub fn clear(&mut self) {
        self.devices.clear();
        self.boots.clear();
        self.seen.clear();
    }
}

/// "Last heard" is written at most this often for each device.
const SEEN_EVERY_US: i64 = 5_000_000;

/// Width of the counts that pages show.
pub(super) const MINUTE_US: i64 = 60_000_000;

const UNREADABLE_PAYLOAD_CHARS: usize = 4096;

impl Store {
    /// Stores the batch: all of it, or nothing and an error. Storing it again adds nothing.
    ///
    /// # Errors
    /// [`StoreError::Query`]; the batch may be given again.
    pub async fn write(&self, names: &mut Names, batch: &Batch) -> Result<Stored, StoreError> {
        let stored = self.write_all(names, batch).await;
        if stored.is_err() {
            // What was learnt may have gone with the transaction.
            names.clear();
        }
        stored
    }

    async fn write_all(&self, names: &mut Names, batch: &Batch) -> Result<Stored, StoreError> {
        let mut tx = self.begin().await?;
        learn_devices(&mut tx, names, batch).await?;
        learn_boots(&mut tx, names, batch).await?;
        let mut rows = Rows::default();
        rows.fill(names, batch);
        let seen = std::mem::take(&mut rows.seen_devices);
        let stored = write_rows(&mut tx, rows, batch, names.writer).await?;
        tx.commit().await?;
        names.seen.extend(seen.into_iter().map(|device| (device, batch.received)));
        Ok(stored)
    }
}

async fn write_rows(
    tx: &mut sqlx::AnyConnection,
    rows: Rows,
    batch: &Batch,
    writer: i64,
) -> Result<Stored, StoreError> {
    let offered = batch.events.len() as u64;
    let columns = "INSERT INTO events (boot_id, seq, device_id, kind, time, received, emotion, latency_us, historical, body) VALUES";
    let events = insert_many(tx, columns, 10, "ON CONFLICT DO NOTHING", rows.events).await?;
    if events > 0 {
        let sql = "INSERT INTO event_minutes (minute, writer, count) VALUES ($1, $2, $3) \
                       ON CONFLICT (minute, writer) DO UPDATE SET count = event_minutes.count + excluded.count";
        let minute = batch.received.0.div_euclid(MINUTE_US);
        sqlx::query(sql).bind(minute).bind(writer).bind(events as i64).execute(&mut *tx).await?;
    }
    let columns = "INSERT INTO gaps (boot_id, first_seq, last_seq, reason, count, time, received) VALUES";
    let rest =
        "ON CONFLICT (boot_id, first_seq, last_seq, reason) DO UPDATE SET count = excluded.count, time = excluded.time";
    insert_many(tx, columns, 7, rest, rows.gaps).await?;
    let columns = "INSERT INTO telemetry (device_id, time, received, analysis_mfps, cpu_mpercent, memory_bytes, \
                       temperature_mcelsius, people, outbox_depth, outbox_lost) VALUES";
    insert_many(tx, columns, 10, "", rows.telemetry).await?;
    let columns = "INSERT INTO device_seen (device_id, last_seen) VALUES";
    let rest = "ON CONFLICT (device_id) DO UPDATE SET last_seen = excluded.last_seen";
    insert_many(tx, columns, 2, rest, rows.seen).await?;
    let columns = "INSERT INTO device_status (device_id, status, reason, since, boot, received) VALUES";
    let rest = "ON CONFLICT (device_id) DO UPDATE SET status = excluded.status, reason = excluded.reason, \
                    since = excluded.since, boot = excluded.boot, received = excluded.received";
    insert_many(tx, columns, 6, rest, rows.statuses).await?;
    let columns = "INSERT INTO device_info (device_id, version, board, camera, body, received) VALUES";
    let rest = "ON CONFLICT (device_id) DO UPDATE SET version = excluded.version, board = excluded.board, \
                    camera = excluded.camera, body = excluded.body, received = excluded.received";
    insert_many(tx, columns, 6, rest, rows.infos).await?;
    let columns = "INSERT INTO unreadable (topic, reason, payload, received) VALUES";
    insert_many(tx, columns, 4, "", rows.unreadable).await?;
    for (device, answer) in rows.answers {
        record_answer(tx, device, answer, batch.received).await?;
    }
    Ok(Stored { events, duplicates: offered - events })
}

/// Looks up, or makes, the numbers of all devices in `batch`. Sorted, as everywhere where several processes may write the same rows: no deadlock.
async fn learn_devices(tx: &mut sqlx::AnyConnection, names: &mut Names, batch: &Batch) -> Result<(), StoreError> {
    let mentioned = (batch.events.iter().map(|e| &e.device))
        .chain(batch.gaps.iter().map(|g| &g.device))
        .chain(batch.telemetry.iter().map(|t| &t.device))
        .chain(batch.statuses.keys())
        .chain(batch.infos.keys());
    let new: BTreeSet<_> = mentioned.filter(|name| !names.devices.contains_key(*name)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let rows = new.iter().map(|n| vec![n.site().into(), n.device().into(), batch.received.into()]).collect();
    let columns = "INSERT INTO devices (site, device, first_seen) VALUES";
    insert_many(tx, columns, 3, "ON CONFLICT DO NOTHING", rows).await?;
    let keys = new.iter().map(|n| [n.site().into(), n.device().into()]).collect();
    for row in select_many(tx, "SELECT id, site, device FROM devices WHERE (site, device) IN", keys).await? {
        let (site, device): (String, String) = (row.try_get("site")?, row.try_get("device")?);
        let name = DeviceName::new(&site, &device).map_err(|error| StoreError::Content(error.to_string()))?;
        names.devices.insert(name, row.try_get("id")?);
    }
    Ok(())
}

/// The same of boots, once their devices are known.
async fn learn_boots(tx: &mut sqlx::AnyConnection, names: &mut Names, batch: &Batch) -> Result<(), StoreError> {
    let mentioned = (batch.events.iter().map(|e| (&e.device, e.event.boot)))
        .chain(batch.gaps.iter().map(|g| (&g.device, g.gap.boot)));
    let boots = mentioned.filter_map(|(name, boot)| Some((*names.devices.get(name)?, boot)));
    let new: BTreeSet<_> = boots.filter(|boot| !names.boots.contains_key(boot)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let rows = new.iter().map(|(id, boot)| vec![(*id).into(), boot.to_string().into(), batch.received.into()]);
    let columns = "INSERT INTO boots (device_id, boot, first_received) VALUES";
    insert_many(tx, columns, 3, "ON CONFLICT DO NOTHING", rows.collect()).await?;
    let keys = new.iter().map(|(id, boot)| [(*id).into(), boot.to_string().into()]).collect();
    for row in select_many(tx, "SELECT id, device_id, boot FROM boots WHERE (device_id, boot) IN", keys).await? {
        let boot: String = row.try_get("boot")?;
        let boot = boot.parse().map_err(|_| StoreError::Content(format!("boot {boot:?} is no UUID")))?;
        names.boots.insert((row.try_get("device_id")?, boot), row.try_get("id")?);
    }
    Ok(())
}

/// A batch as rows, sorted by key.
#[derive(Default)]
struct Rows {
    events: Vec<Vec<Value>>,
    gaps: Vec<Vec<Value>>,
    telemetry: Vec<Vec<Value>>,
    seen: Vec<Vec<Value>>,
    seen_devices: Vec<i64>,
    statuses: Vec<Vec<Value>>,
    infos: Vec<Vec<Value>>,
    unreadable: Vec<Vec<Value>>,
    answers: Vec<(DeviceName, Answer)>,
}

impl Rows {
    fn fill(&mut self, names: &Names, batch: &Batch) {
        self.fill_events(names, batch);
        self.fill_gaps(names, batch);
        self.fill_telemetry(names, batch);
        self.fill_states(names, batch);
        self.unreadable = (batch.unreadable.iter())
            .map(|(topic, reason, payload)| {
                // Text of PostgreSQL holds no NUL.
                let payload: String =
                    payload.replace('\0', "\u{fffd}").chars().take(UNREADABLE_PAYLOAD_CHARS).collect();
                vec![topic.as_str().into(), reason.as_str().into(), payload.into(), batch.received.into()]
            })
            .collect();
        self.answers = batch.answers.clone();
    }

    fn fill_events(&mut self, names: &Names, batch: &Batch) {
        let mut events = BTreeMap::new();
        for event in &batch.events {
            let Some((device, boot)) = numbers(names, &event.device, event.event.boot) else { continue };
            events.entry((boot, signed(event.event.seq))).or_insert((device, event));
        }
        self.events = events
            .into_iter()
            .map(|((boot, seq), (device, EventIn { kind, event, body, .. }))| {
                let kind = event.event.as_deref().unwrap_or(kind);
                vec![
                    boot.into(),
                    seq.into(),
                    device.into(),
                    kind.into(),
                    event.time.into(),
                    batch.received.into(),
                    event.emotion.clone().into(),
                    event.latency_ms.map(thousandths).into(),
                    i64::from(event.historical).into(),
                    body.as_str().into(),
                ]
            })
            .collect();
    }

    fn fill_gaps(&mut self, names: &Names, batch: &Batch) {
        let mut gaps = BTreeMap::new();
        for GapIn { device, gap } in &batch.gaps {
            let Some((_, boot)) = numbers(names, device, gap.boot) else { continue };
            gaps.insert((boot, signed(gap.from), signed(gap.to), gap.reason.as_str()), gap);
        }
        self.gaps = gaps
            .into_iter()
            .map(|((boot, from, to, reason), gap)| {
                let (count, time) = (signed(gap.count), gap.time);
                vec![
                    boot.into(),
                    from.into(),
                    to.into(),
                    reason.into(),
                    count.into(),
                    time.into(),
                    batch.received.into(),
                ]
            })
            .collect();
    }

    fn fill_telemetry(&mut self, names: &Names, batch: &Batch) {
        for TelemetryIn { device, telemetry } in &batch.telemetry {
            let Some(device) = names.devices.get(device) else { continue };
            self.telemetry.push(vec![
                (*device).into(),
                telemetry.time.into(),
                batch.received.into(),
                telemetry.analysis_fps.map(thousandths).into(),
                telemetry.cpu_percent.map(thousandths).into(),
                telemetry.memory_bytes.map(signed).into(),
                telemetry.temperature_celsius.map(thousandths).into(),
                telemetry.people_in_view.map(signed).into(),
                signed(telemetry.outbox.depth).into(),
                signed(telemetry.outbox.lost).into(),
            ]);
        }
    }

    fn fill_states(&mut self, names: &Names, batch: &Batch) {
        let alive = (batch.events.iter().map(|e| &e.device))
            .chain(batch.telemetry.iter().map(|t| &t.device))
            .chain(batch.gaps.iter().map(|g| &g.device))
            .chain(
                batch
                    .statuses
                    .iter()
                    .filter(|(_, s)| s.status.status != crate::contract::Health::Offline)
                    .map(|(d, _)| d),
            );
        let alive: BTreeSet<i64> = alive.filter_map(|name| names.devices.get(name).copied()).collect();
        for device in alive {
            if names.seen.get(&device).is_none_or(|seen| batch.received.0 - seen.0 >= SEEN_EVERY_US) {
                self.seen.push(vec![device.into(), batch.received.into()]);
                self.seen_devices.push(device);
            }
        }
        let mut statuses: Vec<_> =
            batch.statuses.iter().filter_map(|(name, s)| Some((*names.devices.get(name)?, &s.status))).collect();
        statuses.sort_by_key(|(device, _)| *device);
        for (device, status) in statuses {
            let (word, since) = (status.status.word(), status.since.map(|since| since.0));
            let boot = status.boot.to_string();
            let reason = status.reason.clone();
            self.statuses.push(vec![
                device.into(),
                word.into(),
                reason.into(),
                since.into(),
                boot.into(),
                batch.received.into(),
            ]);
        }
        let mut infos: Vec<_> =
            batch.infos.iter().filter_map(|(name, i)| Some((*names.devices.get(name)?, i))).collect();
        infos.sort_by_key(|(device, _)| *device);
        for (device, InfoIn { info, body }) in infos {
            let (version, board, camera) = (info.version.as_str(), info.board.clone(), info.camera.clone());
            let row = vec![
                device.into(),
                version.into(),
                board.into(),
                camera.into(),
                body.as_str().into(),
                batch.received.into(),
            ];
            self.infos.push(row);
        }
    }
}

fn numbers(names: &Names, device: &DeviceName, boot: Uuid) -> Option<(i64, i64)> {
    let device = *names.devices.get(device)?;
    Some((device, *names.boots.get(&(device, boot))?))
}

/// The contract's numbers are unsigned; ingest has refused those that are too large.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn thousandths(value: f64) -> i64 {
    (value * 1000.0).round() as i64
}

/// Takes over how far a command is. A final answer stands: devices repeat it when asked again.
async fn record_answer(
    tx: &mut sqlx::AnyConnection,
    device: DeviceName,
    answer: Answer,
    received: Micros,
) -> Result<(), sqlx::Error> {
    if answer.name == CHUNK_COMMAND {
        // What was not taken is sent again when nothing is heard of it: only what has arrived counts.
        return match (answer.state, install_of(&answer.id)) {
            (AnswerState::Succeeded, Some(install)) => match answer.result.get("first_missing") {
                Some(serde_json::Value::Null) => record_arrival(tx, &device, install, None).await,
                Some(first) if first.is_i64() => record_arrival(tx, &device, install, first.as_i64()).await,
                _ => Ok(()),
            },
            _ => Ok(()),
        };
    }
    let state = match answer.state {
        AnswerState::InProgress => "in_progress",
        AnswerState::Succeeded => "succeeded",
        AnswerState::Failed => "failed",
        AnswerState::Rejected => "rejected",
    };
    let (code, message) = answer.error.map_or((None, None), |error| (Some(error.code), Some(error.message)));
    let result = (!answer.result.is_null()).then(|| answer.result.to_string());
    let is_final = i64::from(answer.state != AnswerState::InProgress);
    let sql = "UPDATE commands SET state = $1, result = $2, error_code = $3, error_message = $4, answered = $5, \
               news = CASE WHEN rollout_id IS NULL THEN 0 ELSE CAST($9 AS BIGINT) END WHERE id = $6 \
               AND device_id = (SELECT id FROM devices WHERE site = $7 AND device = $8) \
               AND state IN ('queued', 'sent', 'in_progress', 'timed_out')";
    sqlx::query(sql)
        .bind(state)
        .bind(result)
        .bind(code)
        .bind(message)
        .bind(received.0)
        .bind(answer.id)
        .bind(device.site().to_owned())
        .bind(device.device().to_owned())
        .bind(is_final)
        .execute(tx)
        .await?;
    Ok(())
}
