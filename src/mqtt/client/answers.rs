//! Answers on their way to the broker: kept until their PUBACK, sent again over each new connection.
//!
//! Invariant: bounded. A request is acknowledged only when its answer is handed to the network, so a broker that keeps to MQTT 5
//! sends few ahead; of one that does not, a flood is answered as far as [`KEPT`] goes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::mqtt::command::{Answer, ReplyTo, Token};

/// Answers kept; beyond it the oldest is given up. Whoever asks again under the same id gets it all the same.
const KEPT: usize = 2048;

/// An answer and where it goes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    pub(super) key: u64,
    pub(super) answer: Answer,
    pub(super) reply: ReplyTo,
    /// The request that can be acknowledged now.
    pub(super) token: Option<Token>,
}

#[derive(Debug, Default)]
struct Queue {
    next_key: u64,
    waiting: VecDeque<Arc<Waiting>>,
    /// So many of them, from the front, are handed out.
    handed: usize,
    given_up: u64,
    /// Requests that are done with without an answer.
    released: Vec<Token>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answers {
    queue: Mutex<Queue>,
    news: Notify,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, answer: Answer, reply: ReplyTo, token: Option<Token>) {
        let mut queue = self.lock();
        let key = queue.next_key;
        queue.next_key += 1;
        if queue.waiting.len() >= KEPT {
            queue.waiting.pop_front();
            queue.handed = queue.handed.saturating_sub(1);
            queue.given_up += 1;
            if queue.given_up.is_power_of_two() {
                tracing::warn!(given_up = queue.given_up, "the broker takes no answers; the oldest is given up");
            }
        }
        queue.waiting.push_back(Arc::new(Waiting { key, answer, reply, token }));
        drop(queue);
        self.news.notify_one();
    }

    pub(super) fn release(&self, token: Token) {
        self.lock().released.push(token);
        self.news.notify_one();
    }

    pub(super) fn take_released(&self) -> Vec<Token> {
        std::mem::take(&mut self.lock().released)
    }

    pub(super) fn news(&self) -> &Notify {
        &self.news
    }

    pub(super) fn next(&self) -> Option<Arc<Waiting>> {
        let mut queue = self.lock();
        let waiting = Arc::clone(queue.waiting.get(queue.handed)?);
        queue.handed += 1;
        Some(waiting)
    }

    /// A new connection: all that wait are handed out again.
    pub(super) fn rewind(&self) {
        let mut queue = self.lock();
        queue.handed = 0;
        queue.released.clear();
    }

    /// The broker has it, or will never take it.
    pub(super) fn remove(&self, key: u64) -> Option<Arc<Waiting>> {
        let mut queue = self.lock();
        let index = queue.waiting.iter().position(|waiting| waiting.key == key)?;
        if index < queue.handed {
            queue.handed -= 1;
        }
        queue.waiting.remove(index)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }
}
