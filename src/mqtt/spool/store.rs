//! The spool's file: redb, one table from key to value.
//!
//! Invariants: a commit is whole or not there after a crash; a file is verified page by page before anything of it is
//! believed; an error or a panic of the library leaves the store unusable, and the caller opens it anew.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{Builder, Database, ReadableDatabase as _, TableDefinition};

use super::record::{SpoolTime, event_of};
use super::stock::Stock;

/// Keys ascend in the order of the records.
const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records.v1");
/// Spool time of the commit; beside the newest record, so that writing it costs no page of its own.
const CLOCK_KEY: u64 = u64::MAX;
/// For pages; the spool is read once, from front to back.
const CACHE_BYTES: usize = 512 * 1024;
const FILE: &str = "events.redb";
const ASIDE: &str = "events.corrupt";

/// What redb counts for a record besides its value, roughly.
const RECORD_OVERHEAD_BYTES: u64 = 16;

/// Why the file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StoreError {
    /// Another process has it.
    #[error("another process has it open")]
    Locked,
    /// What it holds makes no sense.
    #[error("its file is corrupt: {0}")]
    Corrupt(String),
    /// The system says no.
    #[error("{0}")]
    Io(String),
}

impl StoreError {
    fn from(error: impl Into<redb::Error>) -> Self {
        use redb::Error;
        match error.into() {
            Error::DatabaseAlreadyOpen | Error::LockProtocolMismatch => Self::Locked,
            Error::Io(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                Self::Corrupt(error.to_string())
            }
            Error::Io(error) => Self::Io(error.to_string()),
            Error::PreviousIo => Self::Io("an earlier error of the disk".into()),
            other => Self::Corrupt(other.to_string()),
        }
    }
}

/// What was found at opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Spool time of the last commit.
    pub(super) clock: SpoolTime,
    /// The newest record's key.
    pub(super) last_key: Option<u64>,
    /// What the records are.
    pub(super) stock: Stock,
    /// Bytes of records, by [`Store::cost`].
    pub(super) bytes: u64,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Store {
    database: Option<Database>,
}

impl Store {
    /// Opens what `open` makes, verified, with its table.
    pub(super) fn open(
        open: impl FnOnce(&Builder) -> Result<Database, redb::DatabaseError>,
    ) -> Result<(Self, Found), StoreError> {
        guarded(|| {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
            let database = open(&builder).map_err(StoreError::from)?;
            create_table(&database)?;
            let found = find(&database)?;
            Ok((Self { database: Some(database) }, found))
        })
    }

    /// What a value of `bytes` counts for against the bound.
    pub(super) fn cost(bytes: usize) -> u64 {
        bytes as u64 + RECORD_OVERHEAD_BYTES
    }

    /// Takes `deletes` out, then puts `puts` in: all of it or nothing. On disk when this returns.
    pub(super) fn commit(
        &mut self,
        deletes: &[u64],
        puts: &[(u64, Vec<u8>)],
        clock: SpoolTime,
    ) -> Result<(), StoreError> {
        self.using(|database| {
            let transaction = database.begin_write().map_err(StoreError::from)?;
            {
                let mut table = transaction.open_table(RECORDS).map_err(StoreError::from)?;
                for key in deletes {
                    table.remove(key).map_err(StoreError::from)?;
                }
                for (key, value) in puts {
                    table.insert(key, value.as_slice()).map_err(StoreError::from)?;
                }
                table.insert(CLOCK_KEY, clock.0.to_le_bytes().as_slice()).map_err(StoreError::from)?;
            }
            transaction.commit().map_err(StoreError::from)
        })
    }

    /// The first `limit` records with a key above `after`.
    pub(super) fn load(&mut self, after: Option<u64>, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let from = after.map_or(0, |after| after.saturating_add(1));
        self.using(|database| {
            let transaction = database.begin_read().map_err(StoreError::from)?;
            let table = transaction.open_table(RECORDS).map_err(StoreError::from)?;
            let range = table.range(from..CLOCK_KEY).map_err(StoreError::from)?;
            let mut records = Vec::new();
            for entry in range.take(limit) {
                let (key, value) = entry.map_err(StoreError::from)?;
                records.push((key.value(), value.value().to_vec()));
            }
            Ok(records)
        })
    }

    /// What the records with a key above `after` and below `before` are.
    pub(super) fn stock(&mut self, after: Option<u64>, before: u64) -> Result<Stock, StoreError> {
        let from = after.map_or(0, |after| after.saturating_add(1));
        self.using(|database| {
            let transaction = database.begin_read().map_err(StoreError::from)?;
            let table = transaction.open_table(RECORDS).map_err(StoreError::from)?;
            let mut stock = Stock::default();
            for entry in table.range(from.min(before)..before).map_err(StoreError::from)? {
                stock.add(event_of(entry.map_err(StoreError::from)?.1.value()));
            }
            Ok(stock)
        })
    }

    /// Whether there is a record of this key.
    pub(super) fn has(&mut self, key: u64) -> Result<bool, StoreError> {
        self.using(|database| {
            let transaction = database.begin_read().map_err(StoreError::from)?;
            let table = transaction.open_table(RECORDS).map_err(StoreError::from)?;
            Ok(table.get(key).map_err(StoreError::from)?.is_some())
        })
    }

    fn using<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let Some(database) = &self.database else { return Err(StoreError::Io("the file is closed".into())) };
        guarded(|| work(database))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let database = self.database.take();
        // Closing reads and writes too; a file that makes the library panic there must not end the thread.
        if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
            tracing::warn!("the spool's file could not be closed properly");
        }
    }
}

fn create_table(database: &Database) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(StoreError::from)?;
    transaction.open_table(RECORDS).map_err(StoreError::from)?;
    transaction.commit().map_err(StoreError::from)
}

fn find(database: &Database) -> Result<Found, StoreError> {
    let transaction = database.begin_read().map_err(StoreError::from)?;
    let table = transaction.open_table(RECORDS).map_err(StoreError::from)?;
    let mut found = Found::default();
    if let Some(clock) = table.get(CLOCK_KEY).map_err(StoreError::from)? {
        found.clock = SpoolTime(clock.value().try_into().map_or(0, u64::from_le_bytes));
    }
    for entry in table.range(..CLOCK_KEY).map_err(StoreError::from)? {
        let (key, value) = entry.map_err(StoreError::from)?;
        found.last_key = Some(key.value());
        found.bytes += Store::cost(value.value().len());
        found.stock.add(event_of(value.value()));
    }
    Ok(found)
}

/// The library believes a page that was verified once; one that changed since can make it panic.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(StoreError::Corrupt(words(&*panic))))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".into())
}

/// Where a store is, and what can be done with it besides writing.
pub(super) trait Place: Send {
    /// For people.
    fn name(&self) -> String;

    /// Opens what is there, or begins anew where nothing is.
    fn open(&mut self) -> Result<(Store, Found), StoreError>;

    /// Puts a corrupt file out of the way, for people to look at; gives where it is now.
    fn put_aside(&mut self) -> io::Result<String>;
}

/// A folder on disk.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl Place for Folder {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&mut self) -> Result<(Store, Found), StoreError> {
        create_folder(&self.path).map_err(|error| StoreError::Io(error.to_string()))?;
        let file = self.path.join(FILE);
        Store::open(|builder| builder.create(&file))
    }

    /// One file is kept: a disk that goes on corrupting must not be filled with what it corrupted.
    fn put_aside(&mut self) -> io::Result<String> {
        let aside = self.path.join(ASIDE);
        std::fs::rename(self.path.join(FILE), &aside)?;
        Ok(aside.display().to_string())
    }
}

/// What people did is nobody else's business: the folder is the daemon's alone.
fn create_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
