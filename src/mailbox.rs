//! The one-place queue between two stages, in which the newest value wins.
//!
//! Invariants: [`Mailbox::put`] never waits for the reader; a value that was replaced before anybody took it is counted
//! as one drop; after [`Mailbox::close`] a value that is still inside can be taken, then every taker sees [`Taken::Closed`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One place for a `T`, shared by one writer and one reader.
#[derive(Debug)]
pub struct Mailbox<T> {
    slot: Mutex<Slot<T>>,
    filled: Condvar,
    emptied: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    closed: bool,
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<T> {
    /// The newest value.
    Value(T),
    /// Nothing came within the time-out.
    TimedOut,
    /// The writer has gone and nothing is left.
    Closed,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self {
            slot: Mutex::new(Slot { value: None, closed: false }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            dropped: AtomicU64::new(0),
        }
    }
}

impl<T> Mailbox<T> {
    /// Puts `value` in place of whatever is there; says whether an untaken value was dropped for it.
    pub fn put(&self, value: T) -> bool {
        let old = {
            let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.value.replace(value)
        };
        self.filled.notify_one();
        let replaced = old.is_some();
        if replaced {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        replaced
    }

    /// Takes the newest value, waiting at most `timeout` for one.
    pub fn take(&self, timeout: Duration) -> Taken<T> {
        let deadline = Instant::now() + timeout;
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = slot.value.take() {
                self.emptied.notify_one();
                return Taken::Value(value);
            }
            if slot.closed {
                return Taken::Closed;
            }
            let now = Instant::now();
            if now >= deadline {
                return Taken::TimedOut;
            }
            slot = self.filled.wait_timeout(slot, deadline - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// For a writer that wants nothing dropped: waits at most `timeout` until nothing is inside; says whether it is so.
    pub fn wait_until_empty(&self, timeout: Duration) -> bool {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.emptied.wait_timeout_while(slot, timeout, |slot| slot.value.is_some());
        waited.unwrap_or_else(PoisonError::into_inner).0.value.is_none()
    }

    /// No more values will come; wakes the reader.
    pub fn close(&self) {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.filled.notify_all();
    }

    /// Values dropped since the start because a newer one came first.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_value_wins_and_each_drop_is_counted() {
        let mailbox = Mailbox::default();
        for n in 0..5 {
            mailbox.put(n);
        }
        assert_eq!(mailbox.take(Duration::ZERO), Taken::Value(4));
        assert_eq!(mailbox.dropped(), 4);
        assert_eq!(mailbox.take(Duration::ZERO), Taken::TimedOut);
    }

    #[test]
    fn what_was_put_before_closing_is_still_delivered() {
        let mailbox = Mailbox::default();
        mailbox.put(1);
        mailbox.close();
        assert_eq!(mailbox.take(Duration::ZERO), Taken::Value(1));
        assert_eq!(mailbox.take(Duration::from_secs(60)), Taken::Closed);
    }

    #[test]
    fn a_patient_writer_waits_until_the_value_was_taken() {
        let mailbox = std::sync::Arc::new(Mailbox::default());
        assert!(mailbox.wait_until_empty(Duration::ZERO));
        mailbox.put(1);
        assert!(!mailbox.wait_until_empty(Duration::ZERO));
        let reader = std::thread::spawn({
            let mailbox = std::sync::Arc::clone(&mailbox);
            move || mailbox.take(Duration::from_secs(60))
        });
        assert!(mailbox.wait_until_empty(Duration::from_secs(60)));
        assert_eq!(reader.join().unwrap(), Taken::Value(1));
    }

    #[test]
    fn a_waiting_reader_wakes_when_a_value_comes() {
        let mailbox = std::sync::Arc::new(Mailbox::default());
        let reader = std::thread::spawn({
            let mailbox = std::sync::Arc::clone(&mailbox);
            move || mailbox.take(Duration::from_secs(60))
        });
        mailbox.put(7);
        assert_eq!(reader.join().unwrap(), Taken::Value(7));
    }
}
