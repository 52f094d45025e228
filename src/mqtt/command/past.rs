//! What was asked and answered: the last 256 requests that were carried out, so that none is done twice.
//!
//! Only what was begun is kept: a request that was rejected may come again. Knows no disk: it becomes bytes and comes from
//! bytes, and whoever owns it keeps these.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Answer, Id, Name, ReplyTo};

/// Requests that are remembered.
pub const IDS_KEPT: usize = 256;

/// One request and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its id.
    pub id: Id,
    /// Of its name and arguments, hexadecimal: another request of the same id is a mistake.
    pub digest: String,
    /// Its command.
    pub name: Name,
    /// Where its answers go.
    pub reply: ReplyTo,
    /// The newest answer; `None` while it has none.
    pub answer: Option<Answer>,
    /// The broker has that answer.
    pub delivered: bool,
}

impl Entry {
    fn is_done(&self) -> bool {
        self.answer.as_ref().is_some_and(Answer::is_final)
    }
}

/// Why bytes are no [`Past`].
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// Not what this version writes.
    #[error("not readable: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Of another version.
    #[error("of version {0}, where this program writes {VERSION}")]
    Version(u32),
    /// More than this version keeps.
    #[error("{0} requests, where {IDS_KEPT} are kept")]
    TooMany(usize),
}

/// The last requests, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    entries: VecDeque<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<T> {
    version: u32,
    requests: T,
}

const VERSION: u32 = 1;

impl Past {
    /// From what [`Self::to_bytes`] gave.
    ///
    /// # Errors
    /// [`PastError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PastError> {
        let Stored { version, requests } = serde_json::from_slice::<Stored<VecDeque<Entry>>>(bytes)?;
        if version != VERSION {
            return Err(PastError::Version(version));
        }
        match requests.len() {
            0..=IDS_KEPT => Ok(Self { entries: requests }),
            more => Err(PastError::TooMany(more)),
        }
    }

    /// For [`Self::from_bytes`].
    ///
    /// # Errors
    /// None that is known: the types are plain.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Stored { version: VERSION, requests: &self.entries })
    }

    /// The request of this id.
    pub fn find(&self, id: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id.as_str() == id)
    }

    /// Remembers a request; the oldest that is done makes room.
    pub fn remember(&mut self, entry: Entry) {
        if self.entries.len() >= IDS_KEPT {
            let oldest = self.entries.iter().position(Entry::is_done).unwrap_or(0);
            self.entries.remove(oldest);
        }
        self.entries.push_back(entry);
    }

    /// Forgets a request of which nothing was done.
    pub fn forget(&mut self, id: &str) {
        self.entries.retain(|entry| entry.id.as_str() != id);
    }

    /// Notes the newest answer; gives where it goes, where the request is known.
    pub fn settle(&mut self, answer: &Answer) -> Option<ReplyTo> {
        let entry = self.entries.iter_mut().find(|entry| entry.id.as_str() == answer.id)?;
        entry.answer = Some(answer.clone());
        entry.delivered = false;
        Some(entry.reply.clone())
    }

    /// The broker has this answer; whether that is the end of its request, and news.
    pub fn delivered(&mut self, answer: &Answer) -> bool {
        let entry = self.entries.iter_mut().find(|entry| entry.is_done() && entry.answer.as_ref() == Some(answer));
        entry.is_some_and(|entry| !std::mem::replace(&mut entry.delivered, true))
    }

    /// Requests that have no final answer yet.
    pub fn unfinished(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| !entry.is_done())
    }

    /// Final answers that the broker may not have.
    pub fn undelivered(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_done() && !entry.delivered)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
