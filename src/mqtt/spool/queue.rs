//! Which records wait, in which order, and which of them are on disk: bookkeeping without any I/O.
//!
//! ```text
//!            head             stock             tail
//!   [oldest, in memory] [on disk only] [newest, not on disk]
//! ```
//!
//! `head` is what is handed out next; `tail` is what was pushed and not yet written. Where nothing lies on disk only, the
//! one goes on where the other ends. Invariants: records keep their order; a record goes away by its acknowledgement, or
//! leaves a gap in its place that says so; what has a key has it before whatever comes later in the order; a boot's
//! events that are neither acknowledged, nor here, nor in a gap are none.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::record::{self, Content, Decoded, Gap, Item, LossReason, Now, Record, RecordId, SpoolTime};
use super::stock::Stock;
use super::store::{Found, Store};
use crate::report::{Boot, Event, Moment};

/// Records kept in memory although they are on disk.
const HEAD: usize = 256;
/// With fewer left to hand out, the next are fetched.
const LOW: usize = 64;
/// Records fetched at once.
pub(super) const CHUNK: usize = 128;
/// What the gap takes that says who had to make room.
const GAP_BYTES: u64 = 512;
/// Gaps that wait. They merge, so there are more only where runs and reasons change again and again.
const MAX_GAPS: usize = 1024;

/// Bounds that the configuration sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Events in memory that are not on disk.
    pub(super) tail_events: usize,
    /// Records on disk, by [`Store::cost`].
    pub(super) record_bytes: u64,
    /// An event that has waited for longer is given up.
    pub(super) max_age: Option<Duration>,
    /// Why an event is given up where `tail` is full: there is a disk that does not take it, or none.
    pub(super) tail_full: LossReason,
}

/// Events given up since the start of the process, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    pub(super) space: u64,
    pub(super) age: u64,
    pub(super) storage: u64,
}

impl Losses {
    fn add(&mut self, reason: LossReason, events: u64) {
        match reason {
            LossReason::Space => self.space += events,
            LossReason::Age => self.age += events,
            LossReason::Storage => self.storage += events,
            LossReason::Refused => {}
        }
    }
}

#[derive(Debug)]
struct Slot {
    /// Names this content in memory; another content gets another.
    serial: u64,
    /// Its place on disk, given when it is first to be written.
    key: Option<u64>,
    stored: bool,
    /// What it takes on disk; 0 until that is known.
    bytes: u64,
    /// When it was pushed.
    at: SpoolTime,
    /// On this connection.
    handed: Option<RecordId>,
    /// On any connection.
    told: bool,
    item: Item,
}

impl Slot {
    fn is_event(&self) -> bool {
        matches!(self.item, Item::Event(_))
    }

    fn event(&self) -> Option<(Boot, u64)> {
        match &self.item {
            Item::Event(event) => Some((event.boot, event.seq)),
            Item::Gap(_) => None,
        }
    }
}

/// Slots in order, and how many of them are events.
#[derive(Debug, Default)]
struct Lane {
    slots: VecDeque<Slot>,
    events: usize,
}

impl Lane {
    fn push(&mut self, slot: Slot) {
        self.events += usize::from(slot.is_event());
        self.slots.push_back(slot);
    }

    fn remove(&mut self, index: usize) -> Option<Slot> {
        let slot = self.slots.remove(index)?;
        self.events -= usize::from(slot.is_event());
        Some(slot)
    }

    fn insert_gap(&mut self, index: usize, slot: Slot) {
        self.slots.insert(index.min(self.slots.len()), slot);
    }

    fn gaps(&self) -> usize {
        self.slots.len() - self.events
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    Head,
    Tail,
}

/// What is to be written at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Applied first.
    pub(super) deletes: Vec<u64>,
    pub(super) puts: Vec<(u64, Vec<u8>)>,
    serials: HashMap<u64, u64>,
}

/// A record on its way into a batch.
#[derive(Debug)]
pub(super) struct Draft {
    serial: u64,
    at: SpoolTime,
    item: Item,
}

/// A draft as bytes.
#[derive(Debug)]
pub(super) struct Encoded {
    serial: u64,
    value: Vec<u8>,
}

impl Draft {
    /// Of an event.
    pub(super) fn seq(&self) -> Option<u64> {
        match &self.item {
            Item::Event(event) => Some(event.seq),
            Item::Gap(_) => None,
        }
    }

    pub(super) fn encode(&self, now: &Now) -> Encoded {
        Encoded { serial: self.serial, value: record::encode(&self.item, self.at, now) }
    }
}

/// Whether the disk's bound holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Kept,
    /// The oldest must be fetched before it can be given up.
    Fetch,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    head: Lane,
    stock: Stock,
    tail: Lane,
    /// The key of the newest record that ever was in `head`.
    head_end: Option<u64>,
    next_key: u64,
    next_serial: u64,
    next_id: u64,
    /// Keys on disk that nobody wants any more; the next commit takes them out.
    deletes: Vec<u64>,
    /// On disk and wanted.
    stored_bytes: u64,
    stored_events: u64,
    /// More of `stock` should be fetched.
    wants_more: bool,
    connected_at: SpoolTime,
    lost: Losses,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            head: Lane::default(),
            stock: Stock::default(),
            tail: Lane::default(),
            head_end: None,
            next_key: 0,
            next_serial: 0,
            next_id: 0,
            deletes: Vec::new(),
            stored_bytes: 0,
            stored_events: 0,
            wants_more: false,
            connected_at: SpoolTime(0),
            lost: Losses::default(),
        }
    }

    // --- what the daemon and the client do -----------------------------------------------------------------------

    /// Puts an event at the end.
    pub(super) fn push(&mut self, event: Event, now: &Now) {
        self.expire(now);
        while self.tail.events >= self.bounds.tail_events {
            let Some(index) = self.tail.slots.iter().position(Slot::is_event) else { break };
            self.lose(In::Tail, index, self.bounds.tail_full, now);
        }
        let slot = self.slot(Item::Event(event), now.spool);
        self.tail.push(slot);
    }

    /// The next record that was not handed out on this connection.
    pub(super) fn next(&mut self, now: &Now) -> Option<Record> {
        self.expire(now);
        let waiting = |slot: &Slot| slot.handed.is_none();
        if let Some(index) = self.head.slots.iter().position(waiting) {
            self.wants_more |= !self.stock.is_empty() && self.head.slots.len() - index < LOW;
            return self.hand_out(In::Head, index);
        }
        if !self.stock.is_empty() {
            self.wants_more = true;
            return None;
        }
        let index = self.tail.slots.iter().position(waiting)?;
        self.hand_out(In::Tail, index)
    }

    fn hand_out(&mut self, lane: In, index: usize) -> Option<Record> {
        let id = RecordId(self.next_id);
        self.next_id += 1;
        let connected_at = self.connected_at;
        let slot = self.lane_mut(lane).slots.get_mut(index)?;
        slot.handed = Some(id);
        let again = std::mem::replace(&mut slot.told, true);
        Some(Record { id, item: slot.item.clone(), waited: slot.at < connected_at, again })
    }

    /// A new connection: everything is handed out again, from the oldest on.
    pub(super) fn rewind(&mut self, now: SpoolTime) {
        self.connected_at = now;
        for slot in self.head.slots.iter_mut().chain(&mut self.tail.slots) {
            slot.handed = None;
        }
    }

    /// The broker has it. Nothing happens where the record has gone already.
    pub(super) fn acknowledge(&mut self, id: RecordId) {
        let Some((lane, index)) = self.find(id) else { return };
        if let Some(slot) = self.lane_mut(lane).remove(index) {
            if let Some((boot, seq)) = slot.event() {
                tracing::trace!(%boot, seq, "event acknowledged");
            }
            self.forget(&slot);
        }
    }

    /// The broker will never take it.
    pub(super) fn give_up(&mut self, id: RecordId, now: &Now) {
        let Some((lane, index)) = self.find(id) else { return };
        match self.lane(lane).slots.get(index).map(Slot::is_event) {
            Some(true) => self.lose(lane, index, LossReason::Refused, now),
            // A gap that cannot be told is not told.
            _ => self.acknowledge(id),
        }
    }

    /// Gives up what has waited too long.
    pub(super) fn expire(&mut self, now: &Now) {
        let Some(max_age) = self.bounds.max_age else { return };
        while let Some((lane, index, at)) = self.oldest_event() {
            if now.spool.since(at) <= max_age {
                return;
            }
            self.lose(lane, index, LossReason::Age, now);
        }
        self.wants_more |= !self.stock.is_empty() && self.head.events == 0;
    }

    pub(super) fn events(&self) -> u64 {
        (self.head.events + self.tail.events) as u64 + self.stock.events()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.slots.is_empty() && self.tail.slots.is_empty() && self.stock.is_empty()
    }

    pub(super) fn losses(&self) -> Losses {
        self.lost
    }

    /// Events on disk, and what all records take there.
    pub(super) fn stored(&self) -> (u64, u64) {
        (self.stored_events, self.stored_bytes)
    }

    // --- what the writer does ------------------------------------------------------------------------------------

    /// Records that are to be written, and when the oldest of them came.
    pub(super) fn unwritten(&self) -> (usize, Option<SpoolTime>) {
        let slots = self.head.slots.iter().filter(|slot| !slot.stored).chain(&self.tail.slots);
        let oldest = slots.map(|slot| slot.at).next();
        let in_head = self.head.slots.iter().filter(|slot| !slot.stored).count();
        (in_head + self.tail.slots.len(), oldest)
    }

    /// Records that were pushed and not written.
    pub(super) fn fresh(&self) -> usize {
        self.tail.slots.len()
    }

    /// Whether there may be more to hand out although [`Self::next`] gives nothing.
    pub(super) fn fetching(&self) -> bool {
        !self.stock.is_empty()
    }

    /// Records on disk that are to be taken out.
    pub(super) fn unwanted(&self) -> usize {
        self.deletes.len()
    }

    /// After which key to fetch, where more is wanted.
    pub(super) fn wanted(&self) -> Option<Option<u64>> {
        (self.wants_more && !self.stock.is_empty()).then_some(self.head_end)
    }

    /// At most `most` records to be written, in order; each has its key from now on.
    pub(super) fn drafts(&mut self, most: usize) -> Vec<Draft> {
        let next_key = &mut self.next_key;
        let unwritten = self.head.slots.iter_mut().filter(|slot| !slot.stored).chain(&mut self.tail.slots);
        let draft = |slot: &mut Slot| {
            slot.key.get_or_insert_with(|| {
                *next_key += 1;
                *next_key - 1
            });
            Draft { serial: slot.serial, at: slot.at, item: slot.item.clone() }
        };
        unwritten.take(most).map(draft).collect()
    }

    /// Gives up the oldest until what is on disk and what is to come keep to their bound.
    pub(super) fn make_room(&mut self, encoded: &[Encoded], now: &Now) -> Room {
        if encoded.is_empty() {
            return Room::Kept;
        }
        let records: u64 = encoded.iter().map(|encoded| Store::cost(encoded.value.len())).sum();
        let coming = records + GAP_BYTES;
        while self.stored_bytes + coming > self.bounds.record_bytes {
            match self.oldest_event() {
                Some((lane, index, _)) if self.stored_events > 0 => self.lose(lane, index, LossReason::Space, now),
                None if !self.stock.is_empty() => {
                    self.wants_more = true;
                    return Room::Fetch;
                }
                _ => break,
            }
        }
        Room::Kept
    }

    /// What of `encoded` is still wanted, with gaps that have come up since, and what is to be taken out.
    pub(super) fn batch(&mut self, encoded: Vec<Encoded>, now: &Now) -> Batch {
        let mut batch = Batch { deletes: std::mem::take(&mut self.deletes), ..Batch::default() };
        let mut ready: HashMap<u64, Encoded> = encoded.into_iter().map(|encoded| (encoded.serial, encoded)).collect();
        let in_tail = ready.len() + self.tail.gaps();
        let slots = self.head.slots.iter().chain(self.tail.slots.iter().take(in_tail)).filter(|slot| !slot.stored);
        for slot in slots {
            // Without a key it has come after everything that is in this batch.
            let Some(key) = slot.key else { continue };
            let value = match ready.remove(&slot.serial) {
                Some(encoded) => encoded.value,
                None if !slot.is_event() => record::encode(&slot.item, slot.at, now),
                None => continue,
            };
            batch.serials.insert(slot.serial, Store::cost(value.len()));
            batch.puts.push((key, value));
        }
        batch
    }

    /// The batch is on disk.
    pub(super) fn written(&mut self, batch: Batch) {
        let mut homeless: HashSet<u64> = batch.puts.iter().map(|(key, _)| *key).collect();
        let slots = self.head.slots.iter_mut().chain(self.tail.slots.iter_mut().take(batch.puts.len()));
        for slot in slots {
            let Some(bytes) = batch.serials.get(&slot.serial) else { continue };
            slot.stored = true;
            slot.bytes = *bytes;
            self.stored_bytes += *bytes;
            self.stored_events += u64::from(slot.is_event());
            if let Some(key) = slot.key {
                homeless.remove(&key);
            }
        }
        // Acknowledged or given up while they were being written.
        self.deletes.extend(homeless);
        self.settle();
    }

    /// Nobody knows whether the batch is on disk.
    pub(super) fn not_written(&mut self, batch: Batch) {
        self.deletes.extend(batch.deletes);
        let here: HashSet<u64> = self.head.slots.iter().chain(&self.tail.slots).filter_map(|slot| slot.key).collect();
        self.deletes.extend(batch.puts.iter().map(|(key, _)| *key).filter(|key| !here.contains(key)));
    }

    /// What is on disk leaves `tail`, and memory too where `head` is full.
    fn settle(&mut self) {
        while self.tail.slots.front().is_some_and(|slot| slot.stored) {
            let Some(slot) = self.tail.remove(0) else { return };
            if self.stock.is_empty() && (self.head.slots.len() < HEAD || slot.handed.is_some()) {
                self.head_end = slot.key;
                self.head.push(slot);
            } else {
                self.stock.add(slot.event());
            }
        }
    }

    /// Records fetched from disk, in order; `all` where there are no more.
    pub(super) fn fetched(&mut self, records: Vec<(u64, Decoded, u64)>, all: bool, now: &Now) {
        self.wants_more = false;
        let unwanted: HashSet<u64> = self.deletes.iter().copied().collect();
        let in_tail: HashSet<u64> = self.tail.slots.iter().filter_map(|slot| slot.key).collect();
        let mut all = all;
        for (key, decoded, bytes) in records {
            // Of a batch that failed, but is on disk: memory has it, and whatever comes after it.
            if in_tail.contains(&key) {
                all = true;
                break;
            }
            self.head_end = Some(key);
            if !unwanted.contains(&key) {
                self.take_in(key, decoded, bytes, now);
            }
        }
        if all {
            self.stock = Stock::default();
        }
    }

    fn take_in(&mut self, key: u64, decoded: Decoded, bytes: u64, now: &Now) {
        let place = match &decoded.content {
            Content::Whole(Item::Event(event)) => Some((event.boot, event.seq)),
            Content::HeadOnly { boot, seq } => Some((*boot, *seq)),
            Content::Whole(Item::Gap(_)) | Content::Nothing => None,
        };
        self.stock.take(place);
        match decoded.content {
            Content::Whole(item) => {
                let slot = Slot { key: Some(key), stored: true, bytes, ..self.slot(item, decoded.at) };
                self.head.push(slot);
            }
            Content::HeadOnly { boot, seq } => {
                tracing::error!(%boot, seq, "a record of the spool cannot be read; it is declared lost");
                let gap =
                    Gap { boot, from: seq, to: seq, count: 1, reason: LossReason::Storage, time: Moment(now.wall) };
                let slot = Slot { key: Some(key), ..self.slot(Item::Gap(gap), now.spool) };
                self.head.push(slot);
                self.gone(bytes, true);
                self.lost.add(LossReason::Storage, 1);
            }
            Content::Nothing => {
                tracing::error!("a record of the spool is none; it is taken out");
                self.deletes.push(key);
                self.gone(bytes, false);
            }
        }
    }

    // --- the file comes and goes ---------------------------------------------------------------------------------

    /// A file was opened at the start, or after it could not be for a while: what it holds is older than what is here.
    ///
    /// The spool's clock goes on from the file's; what is here came after that.
    pub(super) fn attach(&mut self, found: &Found) {
        for slot in self.head.slots.iter_mut().chain(&mut self.tail.slots) {
            slot.at.0 += found.clock.0;
            slot.key = None;
        }
        self.connected_at.0 += found.clock.0;
        self.next_key = found.last_key.map_or(0, |key| key.saturating_add(1));
        self.stored_bytes = found.bytes;
        self.stored_events = found.stock.events();
        self.stock = found.stock.clone();
        self.wants_more = true;
    }

    /// The keys of records in memory that are believed to be on disk.
    pub(super) fn believed(&self) -> Vec<u64> {
        self.head.slots.iter().filter(|slot| slot.stored).filter_map(|slot| slot.key).collect()
    }

    /// The key below which only the disk knows the records, and above which it has none that memory lacks.
    pub(super) fn disk_only(&self) -> (Option<u64>, u64) {
        let first_in_tail = self.tail.slots.iter().find_map(|slot| slot.key);
        (self.head_end, first_in_tail.unwrap_or(self.next_key))
    }

    /// The same file was opened again after an error: `missing` are not there although they were believed to be.
    pub(super) fn reattach(&mut self, found: &Found, stock: Stock, missing: &HashSet<u64>, now: &Now) {
        self.next_key = self.next_key.max(found.last_key.map_or(0, |key| key.saturating_add(1)));
        let before = std::mem::replace(&mut self.stock, stock);
        match self.stock.is_empty() {
            true => self.declare_lost(&before, now),
            false => self.lost.add(LossReason::Storage, before.events().saturating_sub(self.stock.events())),
        }
        for slot in &mut self.head.slots {
            slot.stored &= !slot.key.is_some_and(|key| missing.contains(&key));
        }
        self.recount();
    }

    /// The file was put aside: what is in memory is written anew, the rest is declared lost.
    pub(super) fn begin_anew(&mut self, now: &Now) {
        let lost = std::mem::take(&mut self.stock);
        self.declare_lost(&lost, now);
        for slot in self.head.slots.iter_mut().chain(&mut self.tail.slots) {
            (slot.key, slot.stored) = (None, false);
        }
        self.deletes.clear();
        (self.head_end, self.next_key, self.wants_more) = (None, 0, false);
        self.recount();
    }

    fn declare_lost(&mut self, lost: &Stock, now: &Now) {
        for span in lost.spans() {
            let gap = Gap {
                boot: span.boot,
                from: span.from,
                to: span.to,
                count: span.events,
                reason: LossReason::Storage,
                time: Moment(now.wall),
            };
            let slot = self.slot(Item::Gap(gap), now.spool);
            self.head.push(slot);
        }
        self.lost.add(LossReason::Storage, lost.events());
    }

    fn recount(&mut self) {
        let stored = self.head.slots.iter().filter(|slot| slot.stored);
        self.stored_events = stored.clone().filter(|slot| slot.is_event()).count() as u64 + self.stock.events();
        if self.stock.is_empty() {
            self.stored_bytes = stored.map(|slot| slot.bytes).sum();
        }
    }

    // --- inside --------------------------------------------------------------------------------------------------

    fn slot(&mut self, item: Item, at: SpoolTime) -> Slot {
        let serial = self.next_serial;
        self.next_serial += 1;
        Slot { serial, key: None, stored: false, bytes: 0, at, handed: None, told: false, item }
    }

    fn lane(&self, lane: In) -> &Lane {
        match lane {
            In::Head => &self.head,
            In::Tail => &self.tail,
        }
    }

    fn lane_mut(&mut self, lane: In) -> &mut Lane {
        match lane {
            In::Head => &mut self.head,
            In::Tail => &mut self.tail,
        }
    }

    fn find(&self, id: RecordId) -> Option<(In, usize)> {
        let in_lane = |lane: In| {
            let found = self.lane(lane).slots.iter().position(|slot| slot.handed == Some(id));
            found.map(|index| (lane, index))
        };
        in_lane(In::Head).or_else(|| in_lane(In::Tail))
    }

    /// `None` where there is no event, or it lies on disk only.
    fn oldest_event(&self) -> Option<(In, usize, SpoolTime)> {
        let first = |lane: In| {
            let slots = &self.lane(lane).slots;
            let index = slots.iter().position(Slot::is_event)?;
            Some((lane, index, slots[index].at))
        };
        match first(In::Head) {
            None if self.stock.is_empty() => first(In::Tail),
            found => found,
        }
    }

    /// Gives an event up: a gap takes its place, or the one before it grows.
    fn lose(&mut self, lane: In, index: usize, reason: LossReason, now: &Now) {
        let Some(slot) = self.lane_mut(lane).remove(index) else { return };
        let Item::Event(event) = &slot.item else { return };
        self.forget(&slot);
        self.lost.add(reason, 1);
        let time = Moment(now.wall);
        let before = match (lane, index.checked_sub(1)) {
            (lane, Some(before)) => Some((lane, before)),
            (In::Tail, None) if self.stock.is_empty() => self.head.slots.len().checked_sub(1).map(|i| (In::Head, i)),
            _ => None,
        };
        if let Some((lane, before)) = before
            && self.grow(lane, before, event, slot.key, reason, time)
        {
            return;
        }
        let gap = self.slot(Item::Gap(Gap::of(event, reason, time)), now.spool);
        self.lane_mut(lane).insert_gap(index, Slot { key: slot.key, ..gap });
        self.bound_gaps();
    }

    /// Makes the gap at `index` cover `event` too; `false` where there is no gap that can.
    fn grow(
        &mut self,
        lane: In,
        index: usize,
        event: &Event,
        key: Option<u64>,
        reason: LossReason,
        time: Moment,
    ) -> bool {
        let serial = self.next_serial;
        let Some(slot) = self.lane_mut(lane).slots.get_mut(index) else { return false };
        let Item::Gap(gap) = &mut slot.item else { return false };
        if !gap.takes(event, reason) {
            return false;
        }
        (gap.to, gap.count, gap.time) = (event.seq, gap.count + 1, time);
        let (old_key, old_bytes) = (std::mem::replace(&mut slot.key, key), std::mem::take(&mut slot.bytes));
        slot.serial = serial;
        (slot.stored, slot.handed, slot.told) = (false, None, false);
        self.next_serial += 1;
        self.deletes.extend(old_key);
        self.gone(old_bytes, false);
        true
    }

    /// Takes a slot that is no more off the disk too. What was once to be written may be there, whatever became of it.
    fn forget(&mut self, slot: &Slot) {
        self.deletes.extend(slot.key);
        if slot.stored {
            self.gone(slot.bytes, slot.is_event());
        }
    }

    fn gone(&mut self, bytes: u64, event: bool) {
        self.stored_bytes = self.stored_bytes.saturating_sub(bytes);
        self.stored_events = self.stored_events.saturating_sub(u64::from(event));
    }

    fn bound_gaps(&mut self) {
        if self.head.gaps() + self.tail.gaps() <= MAX_GAPS {
            return;
        }
        let lane = if self.head.gaps() > 0 { In::Head } else { In::Tail };
        let oldest = self.lane(lane).slots.iter().position(|slot| !slot.is_event());
        if let Some(slot) = oldest.and_then(|index| self.lane_mut(lane).remove(index)) {
            tracing::error!(gap = ?slot.item, "too many gaps wait; the oldest is dropped");
            self.forget(&slot);
        }
    }
}
