//! Where events wait until the broker has them.
//!
//! [`Spool`] is the seam: [`MemorySpool`] holds events in memory; storage that survives a power cut can take its place.
//! Invariants: records keep their order; a record goes away only by [`Spool::acknowledge`], or as the oldest of a
//! full spool, and is then counted; `push` never waits for disk or network.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::report::Event;

/// Names a record; ascending in the order of pushing, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub u64);

/// An event that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its name in the spool.
    pub id: RecordId,
    /// The event.
    pub event: Event,
}

/// Where events wait. Which of them were already handed to the present connection is the client's affair: after
/// each reconnect it asks from the start again.
pub trait Spool: Send + Sync {
    /// Puts an event at the end; where the spool is full, the oldest makes place and is counted as lost.
    fn push(&self, event: Event) -> RecordId;

    /// The oldest record after `after`; with `None` the oldest of all.
    fn next(&self, after: Option<RecordId>) -> Option<Record>;

    /// The newest record's name, of those still here.
    fn newest(&self) -> Option<RecordId>;

    /// The broker has it: the record goes away. Nothing happens where it has gone already.
    fn acknowledge(&self, id: RecordId);

    /// Records that wait.
    fn depth(&self) -> usize;

    /// Records that had to make place. One whose acknowledgement was on its way counts although it arrived: the
    /// count is never too low.
    fn lost(&self) -> u64;
}

/// A bounded spool in memory.
#[derive(Debug)]
pub struct MemorySpool {
    inner: Mutex<Inner>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Inner {
    records: VecDeque<Record>,
    next_id: u64,
    lost: u64,
}

impl MemorySpool {
    /// A spool for `capacity` events, at least one; memory is taken as it fills.
    pub fn new(capacity: usize) -> Self {
        Self { inner: Mutex::default(), capacity: capacity.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spool for MemorySpool {
    fn push(&self, event: Event) -> RecordId {
        let mut inner = self.lock();
        if inner.records.len() >= self.capacity {
            inner.records.pop_front();
            inner.lost += 1;
        }
        let id = RecordId(inner.next_id);
        inner.next_id += 1;
        inner.records.push_back(Record { id, event });
        id
    }

    fn next(&self, after: Option<RecordId>) -> Option<Record> {
        let inner = self.lock();
        let index = after.map_or(0, |after| inner.records.partition_point(|record| record.id <= after));
        inner.records.get(index).cloned()
    }

    fn newest(&self) -> Option<RecordId> {
        self.lock().records.back().map(|record| record.id)
    }

    fn acknowledge(&self, id: RecordId) {
        let mut inner = self.lock();
        if let Ok(index) = inner.records.binary_search_by_key(&id, |record| record.id) {
            inner.records.remove(index);
        }
    }

    fn depth(&self) -> usize {
        self.lock().records.len()
    }

    fn lost(&self) -> u64 {
        self.lock().lost
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{Boot, EventBody, Moment, SummaryEvent};

    fn event(seq: u64) -> Event {
        let boot = Boot(uuid::Uuid::nil());
        let body = EventBody::Summary(SummaryEvent::default());
        Event { boot, seq, time: Moment(jiff::Timestamp::UNIX_EPOCH), captured: None, body }
    }

    fn seqs(spool: &MemorySpool) -> Vec<u64> {
        let mut found = Vec::new();
        let mut after = None;
        while let Some(record) = spool.next(after) {
            after = Some(record.id);
            found.push(record.event.seq);
        }
        found
    }

    #[test]
    fn a_full_spool_drops_its_oldest_and_counts_it() {
        let spool = MemorySpool::new(3);
        for seq in 0..5 {
            spool.push(event(seq));
        }
        assert_eq!(seqs(&spool), [2, 3, 4]);
        assert_eq!((spool.depth(), spool.lost()), (3, 2));
    }

    #[test]
    fn only_an_acknowledgement_takes_a_record_away() {
        let spool = MemorySpool::new(10);
        let ids: Vec<_> = (0..3).map(|seq| spool.push(event(seq))).collect();
        assert_eq!(spool.next(None), spool.next(None));
        spool.acknowledge(ids[1]);
        spool.acknowledge(ids[1]);
        assert_eq!(seqs(&spool), [0, 2]);
        assert_eq!(spool.next(Some(ids[0])).unwrap().event.seq, 2);
        assert_eq!(spool.newest(), Some(ids[2]));
    }

    proptest! {
        #[test]
        fn whatever_happens_order_is_kept_and_every_event_is_here_acknowledged_or_lost(
            capacity in 1usize..8,
            steps in prop::collection::vec((any::<bool>(), 0u64..40), 0..80),
        ) {
            let spool = MemorySpool::new(capacity);
            let mut pushed = 0;
            let mut acknowledged = 0;
            for (push, id) in steps {
                if push {
                    spool.push(event(pushed));
                    pushed += 1;
                } else {
                    let before = spool.depth();
                    spool.acknowledge(RecordId(id));
                    acknowledged += (before - spool.depth()) as u64;
                }
                let here = seqs(&spool);
                prop_assert!(here.is_sorted());
                prop_assert!(here.len() <= capacity);
                prop_assert_eq!(here.len() as u64 + acknowledged + spool.lost(), pushed);
            }
        }
    }
}
