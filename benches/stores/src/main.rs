//! redb and SQLite under the load of a spool: `stores FOLDER [STORE LOAD]`; without them each store under each load.
//!
//! `FOLDER` lies on the disk that is meant. Bytes are those that the kernel was given to write (`write_bytes` of
//! /proc/self/io); around one store and load, `strace -f -c -e fsync,fdatasync` counts barriers. With one of the
//! features `redb` and `sqlite` alone, or none, the size of the program tells what each store adds.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const STORES: [&str; 3] = ["redb", "sqlite-4096", "sqlite-1024"];
const LOADS: [&str; 4] = ["slow", "burst", "drain", "ring"];
/// About an event as JSON.
const EVENT_BYTES: usize = 340;

trait Store {
    /// All of it or nothing, on disk when it returns.
    fn commit(&mut self, puts: &[(u64, Vec<u8>)], deletes: &[u64]);
    fn len(&mut self) -> u64;
}

#[cfg(feature = "redb")]
mod with_redb {
    use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition};

    const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");

    pub struct Redb(Database);

    impl Redb {
        pub fn open(folder: &std::path::Path) -> Self {
            let mut builder = Database::builder();
            builder.set_cache_size(512 * 1024);
            let database = builder.create(folder.join("spool.redb")).unwrap();
            let transaction = database.begin_write().unwrap();
            transaction.open_table(RECORDS).unwrap();
            transaction.commit().unwrap();
            Self(database)
        }
    }

    impl super::Store for Redb {
        fn commit(&mut self, puts: &[(u64, Vec<u8>)], deletes: &[u64]) {
            let transaction = self.0.begin_write().unwrap();
            {
                let mut table = transaction.open_table(RECORDS).unwrap();
                for (key, value) in puts {
                    table.insert(key, value.as_slice()).unwrap();
                }
                for key in deletes {
                    table.remove(key).unwrap();
                }
            }
            transaction.commit().unwrap();
        }

        fn len(&mut self) -> u64 {
            self.0.begin_read().unwrap().open_table(RECORDS).unwrap().len().unwrap()
        }
    }
}

#[cfg(feature = "sqlite")]
mod with_sqlite {
    use rusqlite::Connection;

    pub struct Sqlite(Connection);

    impl Sqlite {
        /// Write-ahead log, a barrier with each commit, back into the file every 4 MB.
        pub fn open(folder: &std::path::Path, page_bytes: u32) -> Self {
            let connection = Connection::open(folder.join("spool.sqlite")).unwrap();
            let settings = format!(
                "PRAGMA page_size={page_bytes}; PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL;
                 PRAGMA synchronous=FULL; PRAGMA cache_size=-512; PRAGMA wal_autocheckpoint={};
                 CREATE TABLE records(id INTEGER PRIMARY KEY, body BLOB NOT NULL);",
                4_000_000 / page_bytes
            );
            connection.execute_batch(&settings).unwrap();
            Self(connection)
        }
    }

    impl super::Store for Sqlite {
        fn commit(&mut self, puts: &[(u64, Vec<u8>)], deletes: &[u64]) {
            let transaction = self.0.transaction().unwrap();
            {
                let mut insert = transaction.prepare_cached("INSERT INTO records VALUES(?1, ?2)").unwrap();
                for (key, value) in puts {
                    insert.execute((*key as i64, value)).unwrap();
                }
                let mut delete = transaction.prepare_cached("DELETE FROM records WHERE id = ?1").unwrap();
                for key in deletes {
                    delete.execute((*key as i64,)).unwrap();
                }
            }
            transaction.commit().unwrap();
        }

        fn len(&mut self) -> u64 {
            let count: i64 = self.0.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
            count as u64
        }
    }
}

fn open(store: &str, folder: &Path) -> Option<Box<dyn Store>> {
    let _ = folder;
    match store {
        #[cfg(feature = "redb")]
        "redb" => Some(Box::new(with_redb::Redb::open(folder))),
        #[cfg(feature = "sqlite")]
        "sqlite-4096" => Some(Box::new(with_sqlite::Sqlite::open(folder, 4096))),
        #[cfg(feature = "sqlite")]
        "sqlite-1024" => Some(Box::new(with_sqlite::Sqlite::open(folder, 1024))),
        _ => None,
    }
}

/// The number after `key` in a file of /proc/self.
fn proc_number(file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn processor_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

/// Digits, from a fixed seed.
fn body(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut digit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b'0' + (state >> 61) as u8
    };
    (0..EVENT_BYTES).map(|_| digit()).collect()
}

/// A store with keys that only grow, as the spool uses it.
struct Bench {
    store: Box<dyn Store>,
    next: u64,
    oldest: u64,
    commits: u64,
    events: u64,
}

impl Bench {
    fn batch(&mut self, puts: u64, deletes: u64) {
        let put: Vec<_> = (self.next..self.next + puts).map(|key| (key, body(key))).collect();
        let delete: Vec<_> = (self.oldest..self.oldest + deletes).collect();
        self.store.commit(&put, &delete);
        (self.next, self.oldest) = (self.next + puts, self.oldest + deletes);
        (self.commits, self.events) = (self.commits + 1, self.events + puts);
    }

    fn batches(&mut self, count: u64, puts: u64, deletes: u64) {
        (0..count).for_each(|_| self.batch(puts, deletes));
    }
}

fn run(store: &str, load: &str, folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).unwrap();
    let resident = proc_number("status", "VmRSS");
    let Some(store_under_test) = open(store, folder) else { return };
    let mut bench = Bench { store: store_under_test, next: 1, oldest: 1, commits: 0, events: 0 };
    // What an hour without a broker has left.
    bench.batches(60, 60, 0);
    (bench.commits, bench.events) = (0, 0);
    let (written, processor, start) = (proc_number("io", "write_bytes"), processor_ms(), Instant::now());
    match load {
        "slow" => bench.batches(600, 1, 0),
        "burst" => bench.batches(156, 64, 0),
        "drain" => bench.batches(3, 0, 1000),
        _ => {
            bench.batches(1000, 64, 0);
            bench.batches(3000, 64, 64);
        }
    }
    let (written, processor) = (proc_number("io", "write_bytes") - written, processor_ms() - processor);
    let (commits, wall_ms) = (bench.commits as f64, start.elapsed().as_secs_f64() * 1e3);
    let held: u64 =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum();
    let payload = bench.store.len() * EVENT_BYTES as u64;
    println!(
        "{store:<11} {load:<6} {commits:>5} commits {:>6} events  {:>7.0} bytes a commit  {:.2} ms of processor, {:.1} ms in all a commit  disk {:>5.2} times the records  +{:.1} MB",
        bench.events,
        written as f64 / commits,
        processor / commits,
        wall_ms / commits,
        held as f64 / payload as f64,
        proc_number("status", "VmRSS").saturating_sub(resident) as f64 / 1e3
    );
    drop(bench);
    std::fs::remove_dir_all(folder).unwrap();
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.as_slice() {
        [_, folder, store, load] => run(store, load, &Path::new(folder).join("stores-bench")),
        // A process each, so that memory and counters are its own.
        [program, folder] => {
            for (store, load) in STORES.into_iter().flat_map(|store| LOADS.map(|load| (store, load))) {
                Command::new(program).args([folder, store, load]).status().unwrap();
            }
        }
        _ => {
            eprintln!("usage: stores FOLDER [STORE LOAD]");
            std::process::exit(2);
        }
    }
}
