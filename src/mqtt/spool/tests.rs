//! The spool against disks that fail: each fault, and all of them in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use redb::StorageBackend;

use super::*;
use crate::report::{EventBody, Moment, SummaryEvent};

/// A disk whose cache a power cut empties: what was written since the last barrier is there in part, in any order.
#[derive(Clone, Debug, Default)]
struct Ram {
    inner: Arc<Mutex<Platters>>,
    /// Held by a test: the disk hangs.
    hang: Arc<Mutex<()>>,
    barriers: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Platters {
    /// What the process sees.
    seen: Vec<u8>,
    /// What a power cut leaves for sure.
    safe: Vec<u8>,
    /// Since the last barrier.
    unsafe_writes: Vec<Change>,
    /// The process is gone: whatever it still does has no effect.
    generation: u64,
    open: bool,
    room: Option<usize>,
    read_only: bool,
    aside: u64,
    /// Writes and barriers until the power is cut.
    fuse: Option<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>, keep: &mut impl FnMut() -> bool) {
        const SECTOR: usize = 512;
        match self {
            Self::Length(length) => {
                if keep() {
                    bytes.resize(*length, 0);
                }
            }
            Self::Write(offset, data) => {
                for (index, sector) in data.chunks(SECTOR).enumerate() {
                    let from = offset + index * SECTOR;
                    if keep() {
                        bytes.resize(bytes.len().max(from + sector.len()), 0);
                        bytes[from..from + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
    }
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(28)
}

impl Ram {
    fn platters(&self) -> MutexGuard<'_, Platters> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was not safe is there in part, as `seed` decides.
    fn cut_power(&self, seed: u64) {
        let mut platters = self.platters();
        let mut state = seed | 1;
        let mut keep = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 63 == 1
        };
        let mut left = platters.safe.clone();
        for change in std::mem::take(&mut platters.unsafe_writes) {
            change.apply(&mut left, &mut keep);
        }
        platters.seen.clone_from(&left);
        platters.safe = left;
        platters.generation += 1;
        (platters.open, platters.fuse) = (false, None);
    }

    fn change(&self, generation: u64, change: Change) -> io::Result<()> {
        let mut platters = self.platters();
        platters.burn(generation)?;
        let length = match &change {
            Change::Write(offset, data) => offset + data.len(),
            Change::Length(length) => *length,
        };
        if platters.room.is_some_and(|room| length > room.max(platters.safe.len())) {
            return Err(no_space());
        }
        let platters = &mut *platters;
        change.apply(&mut platters.seen, &mut || true);
        platters.unsafe_writes.push(change);
        Ok(())
    }
}

impl Platters {
    fn burn(&mut self, generation: u64) -> io::Result<()> {
        if generation != self.generation || self.fuse == Some(0) {
            return Err(io::Error::other("no power"));
        }
        if let Some(fuse) = &mut self.fuse {
            *fuse -= 1;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Backend {
    ram: Ram,
    generation: u64,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.ram.platters().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platters = self.ram.platters();
        let from = offset as usize;
        let bytes = platters.seen.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.ram.change(self.generation, Change::Length(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        drop(self.ram.hang.lock());
        self.ram.barriers.fetch_add(1, Ordering::Relaxed);
        let mut platters = self.ram.platters();
        platters.burn(self.generation)?;
        platters.unsafe_writes.clear();
        platters.safe = platters.seen.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.ram.change(self.generation, Change::Write(offset as usize, data.to_vec()))
    }

    fn close(&self) -> io::Result<()> {
        let mut platters = self.ram.platters();
        if platters.generation == self.generation {
            platters.open = false;
        }
        Ok(())
    }
}

impl Place for Ram {
    fn name(&self) -> String {
        "ram".into()
    }

    fn open(&mut self) -> Result<(Store, Found), StoreError> {
        let generation = {
            let mut platters = self.platters();
            if platters.open {
                return Err(StoreError::Locked);
            }
            if platters.read_only {
                return Err(StoreError::Io("Read-only file system".into()));
            }
            platters.open = true;
            platters.generation
        };
        let backend = Backend { ram: self.clone(), generation };
        Store::open(|builder| builder.create_with_backend(backend))
    }

    fn put_aside(&mut self) -> io::Result<String> {
        let mut platters = self.platters();
        (platters.seen, platters.safe, platters.open) = (Vec::new(), Vec::new(), false);
        platters.unsafe_writes.clear();
        platters.aside += 1;
        Ok("ram.corrupt".into())
    }
}

fn boot(number: u64) -> Boot {
    Boot(uuid::Uuid::from_u128(u128::from(number)))
}

fn event(number: u64, seq: u64) -> Event {
    let time = Moment(jiff::Timestamp::UNIX_EPOCH);
    Event { boot: boot(number), seq, time, captured: None, body: EventBody::Summary(SummaryEvent::default()) }
}

fn disk() -> DiskSettings {
    DiskSettings { folder: PathBuf::new(), max_bytes: 16 << 20, sync_every: Duration::from_millis(20), sync_events: 64 }
}

fn memory() -> MemorySettings {
    MemorySettings { events: 100_000, max_age: None }
}

/// The device and its operator's side: what was made, what arrived, what was declared lost.
struct Rig {
    ram: Ram,
    settings: (DiskSettings, MemorySettings),
    spool: Spool,
    disk: Disk,
    boot: u64,
    /// Made so far, by boot.
    made: BTreeMap<u64, u64>,
    /// Of each boot, made and then certainly written or arrived.
    certain: BTreeMap<u64, u64>,
    in_flight: Vec<RecordId>,
    arrived: Vec<(u64, u64)>,
    declared: BTreeSet<(u64, u64)>,
    /// Arrived although it was declared lost: a crash came before the disk was told.
    after_all: BTreeSet<(u64, u64)>,
    reasons: Vec<LossReason>,
}

impl Rig {
    fn new(settings: (DiskSettings, MemorySettings)) -> Self {
        let ram = Ram::default();
        let (spool, disk) = Spool::parts(Box::new(ram.clone()), &settings.0, &settings.1, boot(1)).unwrap();
        Self {
            ram,
            settings,
            spool,
            disk,
            boot: 1,
            made: BTreeMap::from([(1, 0)]),
            certain: BTreeMap::from([(1, 0)]),
            in_flight: Vec::new(),
            arrived: Vec::new(),
            declared: BTreeSet::new(),
            after_all: BTreeSet::new(),
            reasons: Vec::new(),
        }
    }

    fn push(&mut self, count: u64) {
        let made = self.made.get_mut(&self.boot).unwrap();
        for _ in 0..count {
            self.spool.push(event(self.boot, *made));
            *made += 1;
        }
    }

    /// As the thread does: whatever is due, once.
    fn write(&mut self) {
        let wanted = self.spool.shared.lock().queue.wanted();
        if self.disk.store.is_none() {
            let opened = self.disk.place.open();
            self.disk.take(opened);
        }
        if let Some(after) = wanted {
            self.disk.fetch(after);
        }
        self.disk.write();
        if self.disk.store.is_some() && self.spool.shared.lock().queue.unwritten().0 == 0 {
            self.certain.insert(self.boot, self.made[&self.boot]);
        }
    }

    fn fetch(&mut self) {
        let wanted = self.spool.shared.lock().queue.wanted();
        if let Some(after) = wanted {
            self.disk.fetch(after);
        }
    }

    /// Hands out `count` records; the broker has them at once, the acknowledgement is another matter.
    fn send(&mut self, count: usize) -> usize {
        for sent in 0..count {
            let record = self.spool.next().or_else(|| {
                self.fetch();
                self.spool.next()
            });
            let Some(record) = record else { return sent };
            self.in_flight.push(record.id);
            match record.item {
                Item::Event(event) => {
                    let name = (event.boot.0.as_u128() as u64, event.seq);
                    self.arrived.push(name);
                    if self.declared.contains(&name) {
                        self.after_all.insert(name);
                    }
                }
                Item::Gap(gap) => {
                    let boot = gap.boot.0.as_u128() as u64;
                    assert!(gap.count > 0 && gap.count <= gap.to - gap.from + 1, "{gap:?}");
                    self.declared.extend((gap.from..=gap.to).map(|seq| (boot, seq)));
                    self.reasons.push(gap.reason);
                }
            }
        }
        count
    }

    fn acknowledge(&mut self, index: usize) {
        if !self.in_flight.is_empty() {
            let id = self.in_flight.remove(index % self.in_flight.len());
            self.spool.acknowledge(id);
        }
    }

    fn reconnect(&mut self) {
        self.in_flight.clear();
        self.spool.rewind();
    }

    fn start_again(&mut self) {
        self.boot += 1;
        self.made.insert(self.boot, 0);
        self.certain.insert(self.boot, 0);
        let (disk, memory) = &self.settings;
        let (spool, disk) = Spool::parts(Box::new(self.ram.clone()), disk, memory, boot(self.boot)).unwrap();
        (self.spool, self.disk) = (spool, disk);
        self.reconnect();
    }

    fn cut_power(&mut self, seed: u64) {
        self.ram.cut_power(seed);
        self.start_again();
    }

    /// Ends this run as it should, and begins the next.
    fn restart(&mut self) {
        self.write();
        self.disk.store = None;
        self.start_again();
    }

    /// Everything that waits arrives.
    fn drain(&mut self) {
        self.reconnect();
        for _ in 0..100_000 {
            if self.send(16) == 0 && self.spool.is_empty() {
                return;
            }
            while !self.in_flight.is_empty() {
                self.acknowledge(0);
            }
        }
        panic!("it never became empty: {:?}", self.spool);
    }

    /// In order at its first arrival, and nothing missing that was not declared lost or could be lost with the power.
    fn audit(&self) {
        let mut first = BTreeSet::new();
        let order: Vec<_> = self.arrived.iter().copied().filter(|record| first.insert(*record)).collect();
        let promised: Vec<_> = order.iter().filter(|name| !self.after_all.contains(name)).collect();
        let wrong = promised.windows(2).find(|pair| pair[0] > pair[1]);
        assert_eq!(wrong, None, "out of order");
        for (boot, certain) in &self.certain {
            let last = order.iter().filter(|(b, _)| b == boot).map(|(_, seq)| seq + 1).max().unwrap_or(0);
            for seq in 0..last.max(*certain) {
                let known = first.contains(&(*boot, seq)) || self.declared.contains(&(*boot, seq));
                assert!(known, "boot {boot}: {seq} is absent; made {:?}, certain {:?}", self.made, self.certain);
            }
        }
    }
}

#[test]
fn what_an_earlier_run_left_comes_first_under_its_own_boot_and_numbers() {
    let mut rig = Rig::new((disk(), memory()));
    rig.push(700);
    rig.restart();
    rig.push(5);
    assert_eq!(rig.spool.depth(), 705);
    rig.drain();
    let expected: Vec<_> = (0..700).map(|seq| (1, seq)).chain((0..5).map(|seq| (2, seq))).collect();
    assert_eq!(rig.arrived, expected);
    assert!(rig.declared.is_empty());
}

#[test]
fn a_power_cut_at_any_write_loses_at_most_the_unsynced_batch() {
    for fuse in 0..120 {
        let mut rig = Rig::new((disk(), memory()));
        rig.push(40);
        rig.write();
        rig.ram.platters().fuse = Some(fuse);
        for round in 0..4 {
            rig.push(30 + round);
            rig.send(20);
            (0..10).for_each(|_| rig.acknowledge(0));
            // The certainty is what the disk itself has said.
            let unproven = rig.certain[&1];
            rig.write();
            if rig.ram.platters().fuse == Some(0) {
                rig.certain.insert(1, unproven);
                break;
            }
        }
        rig.cut_power(fuse.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        assert_eq!(rig.ram.platters().aside, 0, "a power cut corrupts nothing");
        rig.push(3);
        rig.drain();
        rig.audit();
        assert!(rig.declared.is_empty());
    }
}

#[test]
fn a_full_disk_costs_only_what_is_declared_and_is_used_again_when_there_is_room() {
    let mut rig = Rig::new((disk(), MemorySettings { events: 50, max_age: None }));
    rig.push(40);
    rig.write();
    let used = rig.ram.platters().safe.len();
    rig.ram.platters().room = Some(used);
    for _ in 0..20 {
        rig.push(45);
        rig.write();
    }
    let said = rig.spool.complaint(Instant::now()).expect("a full disk is said");
    assert!(said.contains("No space left") && said.contains("ram"), "{said}");
    let lost = rig.spool.figures().lost_storage;
    assert!(lost > 0);
    rig.ram.platters().room = None;
    for _ in 0..3 {
        rig.write();
    }
    assert_eq!(rig.spool.complaint(Instant::now()), None);
    assert!(rig.spool.figures().stored > 0);
    rig.push(7);
    rig.drain();
    rig.audit();
    assert_eq!(rig.spool.figures().lost_storage, lost, "nothing more is lost once there is room");
    assert_eq!(rig.declared.len() as u64, lost, "each lost event is declared, and no other");
    assert!(rig.after_all.is_empty());
    assert!(rig.reasons.iter().all(|reason| *reason == LossReason::Storage));
}

#[test]
fn a_place_that_becomes_writable_later_gives_what_it_held_first() {
    let mut rig = Rig::new((disk(), memory()));
    rig.push(300);
    rig.write();
    rig.disk.store = None;
    rig.ram.platters().read_only = true;
    rig.start_again();
    let said = rig.spool.complaint(Instant::now()).expect("a read-only place is said");
    assert!(said.contains("Read-only"), "{said}");
    rig.push(20);
    rig.write();
    rig.ram.platters().read_only = false;
    rig.write();
    assert_eq!(rig.spool.complaint(Instant::now()), None);
    rig.restart();
    rig.drain();
    let expected: Vec<_> = (0..300).map(|seq| (1, seq)).chain((0..20).map(|seq| (2, seq))).collect();
    assert_eq!(rig.arrived, expected);
}

#[test]
fn a_file_that_goes_bad_while_it_is_open_is_replaced_and_its_events_are_declared_lost() {
    let mut rig = Rig::new((disk(), memory()));
    rig.push(2000);
    rig.write();
    rig.write();
    rig.send(10);
    rig.ram.platters().seen.iter_mut().skip(4096).for_each(|byte| *byte = 0xA5);
    rig.push(1);
    (0..200).for_each(|_| {
        rig.send(1);
        rig.acknowledge(0);
    });
    rig.write();
    rig.push(5);
    rig.write();
    rig.drain();
    rig.audit();
    assert!(rig.arrived.contains(&(1, 2005)));
    if rig.ram.platters().aside > 0 {
        let said = rig.spool.complaint(Instant::now()).expect("it is said");
        assert!(said.contains("ram.corrupt"), "{said}");
        assert!(rig.declared.len() as u64 >= rig.spool.figures().lost_storage);
    }
}

#[test]
fn the_oldest_go_first_when_the_spool_is_full_and_a_gap_says_which() {
    let mut rig = Rig::new((DiskSettings { max_bytes: 1 << 20, ..disk() }, memory()));
    for _ in 0..100 {
        rig.push(100);
        rig.write();
    }
    let figures = rig.spool.figures();
    assert!(figures.lost_space > 0 && figures.stored_bytes <= 1 << 20, "{figures:?}");
    assert_eq!(figures.lost_space + figures.depth, 10_000);
    rig.restart();
    rig.drain();
    rig.audit();
    let lost: Vec<_> = rig.declared.iter().copied().collect();
    assert!(
        lost.iter().copied().eq((0..figures.lost_space).map(|seq| (1, seq))),
        "one range, the oldest: {:?} to {:?}, {figures:?}, {:?}",
        lost.first(),
        lost.last(),
        rig.spool.figures()
    );
    assert!(rig.arrived.iter().copied().eq((figures.lost_space..10_000).map(|seq| (1, seq))));
    assert!(rig.reasons.iter().all(|reason| *reason == LossReason::Space));
}

#[test]
fn what_the_broker_will_never_take_is_declared_in_its_place() {
    let mut rig = Rig::new((disk(), memory()));
    rig.push(3);
    let record = rig.spool.next().unwrap();
    rig.spool.give_up(record.id);
    let Some(Record { item: Item::Gap(gap), id, .. }) = rig.spool.next() else { panic!("the gap comes next") };
    assert_eq!((gap.from, gap.to, gap.count, gap.reason), (0, 0, 1, LossReason::Refused));
    rig.spool.give_up(id);
    rig.drain();
    assert_eq!(rig.arrived, [(1, 1), (1, 2)]);
}

fn in_memory(events: usize) -> Spool {
    let spool = Spool::in_memory(&MemorySettings { events, max_age: None });
    (0..5).for_each(|seq| spool.push(event(1, seq)));
    spool
}

/// The events that are handed out over a new connection.
fn handed_out(spool: &Spool) -> Vec<(RecordId, u64)> {
    spool.rewind();
    let records = std::iter::from_fn(|| spool.next());
    records
        .filter_map(|record| match record.item {
            Item::Event(event) => Some((record.id, event.seq)),
            Item::Gap(_) => None,
        })
        .collect()
}

#[test]
fn only_an_acknowledgement_takes_a_record_away() {
    let spool = in_memory(10);
    let handed = handed_out(&spool);
    assert!(handed.iter().map(|(_, seq)| *seq).eq(0..5));
    spool.acknowledge(handed[1].0);
    spool.acknowledge(handed[1].0);
    let again = handed_out(&spool);
    assert!(again.iter().map(|(_, seq)| *seq).eq([0, 2, 3, 4]));
    spool.acknowledge(handed[0].0);
    assert_eq!(spool.depth(), 4, "an acknowledgement of an earlier connection says nothing of this one");
    again.iter().for_each(|(id, _)| spool.acknowledge(*id));
    assert!(spool.is_empty());
}

#[test]
fn a_full_spool_drops_its_oldest_and_counts_it() {
    let spool = in_memory(3);
    assert!(handed_out(&spool).iter().map(|(_, seq)| *seq).eq(2..5));
    assert_eq!((spool.depth(), spool.figures().lost_space), (3, 2));
    assert!(!spool.is_empty());
}

/// A moment of a spool whose clock stands at `spool_s`, on a device whose wall clock says `wall_s`.
fn moment(spool_s: u64, wall_s: i64) -> Now {
    Now {
        spool: SpoolTime(spool_s * 1_000_000),
        monotonic: Instant::now(),
        wall: jiff::Timestamp::from_second(wall_s).unwrap(),
    }
}

fn queue(max_age_s: u64) -> Queue {
    Queue::new(Bounds {
        tail_events: 100,
        record_bytes: 1 << 20,
        max_age: Some(Duration::from_secs(max_age_s)),
        tail_full: LossReason::Storage,
    })
}

#[test]
fn a_clock_that_jumps_makes_no_event_old_and_none_young() {
    let mut queue = queue(60);
    let (year_1970, year_2026, year_2080) = (1000, 1_772_000_000, 3_500_000_000);
    queue.push(event(1, 0), &moment(0, year_1970));
    queue.push(event(1, 1), &moment(30, year_2080));
    queue.expire(&moment(59, year_2080));
    queue.expire(&moment(60, year_1970));
    assert_eq!(queue.events(), 2);
    queue.expire(&moment(61, year_2026));
    assert_eq!((queue.events(), queue.losses().age), (1, 1));
    queue.expire(&moment(91, year_1970));
    assert_eq!((queue.events(), queue.losses().age), (0, 2));
    let Some(Record { item: Item::Gap(gap), .. }) = queue.next(&moment(91, year_2026)) else { panic!("a gap") };
    assert_eq!((gap.from, gap.to, gap.count, gap.reason), (0, 1, 2, LossReason::Age));
}

#[test]
fn age_goes_on_after_a_restart_where_it_stood() {
    let mut rig = Rig::new((disk(), MemorySettings { events: 1000, max_age: Some(Duration::from_secs(3600)) }));
    rig.push(3);
    rig.spool.shared.lock().clock.0 += 3_000_000_000;
    rig.push(2);
    rig.restart();
    rig.spool.shared.lock().clock.0 += 1_000_000_000;
    rig.drain();
    assert_eq!(rig.arrived, [(1, 3), (1, 4)]);
    assert_eq!(rig.reasons, [LossReason::Age]);
    rig.audit();
}

#[derive(Clone, Debug)]
enum Step {
    Push(u64),
    Write,
    Send(usize),
    Acknowledge(usize),
    Reconnect,
    Restart,
    CutPower(u64),
    FillDisk,
    EmptyDisk,
    Hours(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u64..120).prop_map(Step::Push),
        6 => Just(Step::Write),
        6 => (1usize..60).prop_map(Step::Send),
        8 => (0usize..40).prop_map(Step::Acknowledge),
        2 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
        1 => any::<u64>().prop_map(Step::CutPower),
        1 => Just(Step::FillDisk),
        2 => Just(Step::EmptyDisk),
        1 => (1u64..20).prop_map(Step::Hours),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_fails_in_whatever_order_nothing_is_absent_that_was_not_declared(
        steps in steps(),
        small in any::<bool>(),
        aging in any::<bool>(),
    ) {
        let max_bytes = if small { 32 << 10 } else { 16 << 20 };
        let max_age = aging.then_some(Duration::from_secs(24 * 3600));
        let mut rig = Rig::new((DiskSettings { max_bytes, ..disk() }, MemorySettings { events: 200, max_age }));
        for step in steps {
            match step {
                Step::Push(count) => rig.push(count),
                Step::Write => rig.write(),
                Step::Send(count) => drop(rig.send(count)),
                Step::Acknowledge(index) => rig.acknowledge(index),
                Step::Reconnect => rig.reconnect(),
                Step::Restart if rig.ram.platters().room.is_none() => rig.restart(),
                Step::Restart => {}
                Step::CutPower(seed) => rig.cut_power(seed),
                Step::FillDisk => {
                    let used = rig.ram.platters().safe.len();
                    rig.ram.platters().room = Some(used);
                }
                Step::EmptyDisk => rig.ram.platters().room = None,
                Step::Hours(hours) => rig.spool.shared.lock().clock.0 += hours * 3_600_000_000,
            }
        }
        rig.ram.platters().room = None;
        rig.write();
        rig.write();
        rig.drain();
        rig.audit();
        prop_assert_eq!(rig.ram.platters().aside, 0, "no fault of these corrupts the file");
        let figures = rig.spool.figures();
        prop_assert_eq!((figures.depth, figures.stored), (0, 0));
    }
}

// --- with the thread ---------------------------------------------------------------------------------------------

const HANGS: Duration = Duration::from_secs(30);

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANGS, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn running(ram: &Ram, settings: &DiskSettings) -> Spool {
    Spool::at(Box::new(ram.clone()), settings, &memory(), boot(1)).unwrap()
}

#[test]
fn what_waits_is_written_in_time_or_as_soon_as_enough_waits() {
    let ram = Ram::default();
    let spool = running(&ram, &DiskSettings { sync_every: Duration::from_millis(30), ..disk() });
    let start = Instant::now();
    spool.push(event(1, 0));
    wait("the interval", || spool.figures().stored == 1);
    assert!(start.elapsed() >= Duration::from_millis(30), "a batch is waited for");
    drop(spool);
    let spool = running(&ram, &DiskSettings { sync_every: Duration::from_secs(3600), ..disk() });
    (1..64).for_each(|seq| spool.push(event(1, seq)));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(spool.figures().stored, 1, "63 are not enough");
    spool.push(event(1, 64));
    wait("64 events", || spool.figures().stored == 65);
}

#[test]
fn an_event_that_is_acknowledged_in_time_is_never_written() {
    let ram = Ram::default();
    let spool = running(&ram, &DiskSettings { sync_every: Duration::from_millis(200), ..disk() });
    let before = ram.barriers.load(Ordering::Relaxed);
    for seq in 0..600 {
        spool.push(event(1, seq));
        let record = spool.next().unwrap();
        spool.acknowledge(record.id);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ram.barriers.load(Ordering::Relaxed), before, "the disk was left alone");
}

#[test]
fn pushing_and_sending_never_wait_for_a_disk_that_hangs() {
    let ram = Ram::default();
    let spool = running(&ram, &disk());
    let hang = ram.hang.lock().unwrap();
    spool.push(event(1, 0));
    wait("the thread to be caught in the disk", || ram.platters().unsafe_writes.len() > 1);
    let start = Instant::now();
    (1..2000).for_each(|seq| spool.push(event(1, seq)));
    for seq in 0..2000 {
        let record = spool.next().unwrap();
        let Item::Event(event) = record.item else { panic!("{record:?}") };
        assert_eq!(event.seq, seq);
        spool.acknowledge(record.id);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let start = Instant::now();
    spool.push(event(1, 2000));
    let late = Instant::now() + Duration::from_secs(3600);
    spool.shared.lock().clock.0 += 3_600_000_000;
    assert!(spool.complaint(late).is_some_and(|said| said.contains("too long")), "{:?}", spool.complaint(late));
    spool.close(Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(hang);
}

#[test]
fn closing_writes_what_waits_whatever_the_interval() {
    let ram = Ram::default();
    let spool = running(&ram, &DiskSettings { sync_every: Duration::from_secs(3600), ..disk() });
    (0..10).for_each(|seq| spool.push(event(1, seq)));
    spool.close(HANGS);
    drop(spool);
    let spool = running(&ram, &disk());
    assert_eq!(spool.depth(), 10);
}

#[test]
fn a_backlog_larger_than_memory_is_fetched_piece_by_piece_and_the_client_is_told() {
    let ram = Ram::default();
    let spool = running(&ram, &disk());
    (0..5000).for_each(|seq| spool.push(event(1, seq)));
    wait("all on disk", || spool.figures().stored == 5000);
    drop(spool);
    let spool = running(&ram, &disk());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut seq = 0;
    while seq < 5000 {
        match spool.next() {
            Some(Record { id, item: Item::Event(event), .. }) => {
                assert_eq!(event.seq, seq);
                spool.acknowledge(id);
                seq += 1;
            }
            Some(record) => panic!("{record:?}"),
            None => {
                assert!(spool.is_fetching());
                let told = async { tokio::time::timeout(HANGS, spool.news().notified()).await };
                runtime.block_on(told).expect("the client is told when more is there");
            }
        }
    }
    assert!(spool.is_empty());
    spool.close(HANGS);
    assert_eq!(running(&ram, &disk()).depth(), 0);
}

// --- on a real file system ---------------------------------------------------------------------------------------

fn in_folder(folder: &std::path::Path, number: u64) -> Result<Spool, SpoolError> {
    Spool::on_disk(&DiskSettings { folder: folder.to_owned(), ..disk() }, &memory(), boot(number))
}

fn everything(spool: &Spool) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    wait("everything", || {
        while let Some(record) = spool.next() {
            if let Item::Event(event) = &record.item {
                found.push((event.boot.0.as_u128() as u64, event.seq));
            }
            spool.acknowledge(record.id);
        }
        spool.is_empty()
    });
    found
}

#[test]
fn two_processes_on_one_spool_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let first = in_folder(folder.path(), 1).unwrap();
    let refused = in_folder(folder.path(), 2).unwrap_err().to_string();
    assert!(refused.contains("mqtt.spool.path") && refused.contains("another process"), "{refused}");
    drop(first);
    in_folder(folder.path(), 3).unwrap();
}

#[test]
fn a_corrupt_file_is_put_aside_said_and_a_new_one_begun() {
    let whole = tempfile::tempdir().unwrap();
    let spool = in_folder(whole.path(), 1).unwrap();
    (0..500).for_each(|seq| spool.push(event(1, seq)));
    spool.close(HANGS);
    let bytes = std::fs::read(whole.path().join("events.redb")).unwrap();
    let mut damaged = vec![
        ("another file", b"SQLite format 3\0 and more of it".repeat(500)),
        ("cut short", bytes[..bytes.len() / 2].to_vec()),
        ("a short one", bytes[..100].to_vec()),
        ("zeros", vec![0; bytes.len()]),
    ];
    for place in [9, 64, 200, 5000, 40_000, 100_000] {
        let mut flipped = bytes.clone();
        flipped[place..place + 64].iter_mut().for_each(|byte| *byte ^= 0x5A);
        damaged.push(("some bits", flipped));
    }
    let mut put_aside = 0;
    for (what, bytes) in damaged {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("events.redb"), &bytes).unwrap();
        let spool = in_folder(folder.path(), 2).unwrap();
        let aside = folder.path().join("events.corrupt");
        if aside.exists() {
            put_aside += 1;
            assert_eq!(std::fs::read(&aside).unwrap().len(), bytes.len(), "{what}: kept for people to look at");
            let said = spool.complaint(Instant::now()).unwrap();
            assert!(said.contains("events.corrupt"), "{said}");
            assert_eq!(spool.complaint(Instant::now() + ASIDE_SHOWN), None);
        }
        spool.push(event(2, 0));
        wait("the new file", || spool.figures().stored > 0);
        let found = everything(&spool);
        let before = found.iter().filter(|(boot, _)| *boot == 1).count();
        assert!(before == 0 || before == 500, "{what}: all or nothing is believed, not {before}");
        assert!(aside.exists() == (before == 0), "{what}");
        assert_eq!(found.last(), Some(&(2, 0)));
    }
    assert!(put_aside >= 8, "{put_aside}");
}

#[test]
fn a_folder_that_cannot_be_made_is_said_and_events_wait_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = folder.path().join("file");
    std::fs::write(&in_the_way, "").unwrap();
    let spool = in_folder(&in_the_way.join("spool"), 1).unwrap();
    let said = spool.complaint(Instant::now()).unwrap();
    assert!(said.contains("Not a directory") && said.contains("file/spool"), "{said}");
    (0..10).for_each(|seq| spool.push(event(1, seq)));
    assert_eq!(everything(&spool).len(), 10);
    std::fs::remove_file(&in_the_way).unwrap();
    wait("the folder to be tried again", || spool.complaint(Instant::now()).is_none());
    assert!(in_the_way.join("spool/events.redb").exists());
}

#[test]
fn the_file_keeps_to_its_bound_whatever_comes_and_goes() {
    use std::os::unix::fs::MetadataExt as _;
    const MAX_BYTES: u64 = 2 << 20;
    let folder = tempfile::tempdir().unwrap();
    let settings = DiskSettings { folder: folder.path().into(), max_bytes: MAX_BYTES, sync_every: HANGS, ..disk() };
    let (spool, mut disk) =
        Spool::parts(Box::new(Folder::new(&settings.folder)), &settings, &memory(), boot(1)).unwrap();
    let mut largest = 0;
    let mut seq = 0;
    for round in 0..1500u64 {
        // By turns one by one and many at once, with some of the oldest delivered in between.
        for _ in 0..if round % 3 == 0 { 64 } else { 1 } {
            spool.push(event(1, seq));
            seq += 1;
        }
        if round % 7 == 0 {
            let records: Vec<_> = (0..30).filter_map(|_| spool.next()).collect();
            records.iter().for_each(|record| spool.acknowledge(record.id));
        }
        let wanted = spool.shared.lock().queue.wanted();
        wanted.into_iter().for_each(|after| disk.fetch(after));
        disk.write();
        largest = largest.max(folder.path().join("events.redb").metadata().unwrap().blocks() * 512);
    }
    assert!(spool.figures().lost_space > 0, "the bound was reached: {:?}", spool.figures());
    assert!(largest <= MAX_BYTES, "{largest} bytes on disk, {:?}", spool.figures());
}
