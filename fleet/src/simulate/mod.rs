//! `visaged-fleet simulate`: devices over real MQTT connections, with faults from a seed.
//!
//! A simulated device keeps the contract of a real one: events wait in its spool until the broker acknowledges them, what is given up is declared,
//! commands are answered once for each id. The faults are those of the field: cut connections, restarts (with what waited sent late, from the old
//! boot), clocks that jump, deliveries that come twice or late and out of order, spools that overflow. The schedule of each device's
//! faults is drawn from the seed and its number; when the network lets them happen is not, so two runs differ in the order of messages.

mod device;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::link::BrokerAddress;

pub use device::sample_payloads;

/// Connections that are opened in one second, so that a fleet does not start as a storm.
pub const STARTS_A_SECOND: u64 = 400;

/// How often something goes wrong, on average, with each device. `None`: never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Between two cuts of the connection.
    pub drop_every: Option<Duration>,
    /// Between two restarts.
    pub restart_every: Option<Duration>,
    /// Between two jumps of the clock.
    pub clock_every: Option<Duration>,
    /// Between two times that the spool gives up some of its oldest events, and says so.
    pub overflow_every: Option<Duration>,
    /// Of a hundred events so many are sent twice.
    pub duplicate_percent: u8,
    /// Of a hundred events so many are sent late.
    pub late_percent: u8,
    /// Of a hundred commands that change something so many fail.
    pub command_failure_percent: u8,
    /// Of a thousand events so many vanish without a word, which no device may do: to see that the audit finds it.
    pub undeclared_loss_permille: u16,
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where.
    pub broker: BrokerAddress,
    /// How many.
    pub devices: u32,
    /// Spread over so many sites.
    pub sites: u32,
    /// Everything that is drawn by lot.
    pub seed: u64,
    /// Between two events of a device, on average.
    pub event_every: Duration,
    /// Between two telemetry messages of a device.
    pub telemetry_every: Duration,
    /// A device ends after so many events.
    pub events: Option<u64>,
    /// All end after that time.
    pub length: Option<Duration>,
    /// How long a command that changes something takes.
    pub command_takes: Duration,
    /// What goes wrong.
    pub faults: Faults,
    /// Where to write what was made, one JSON line a boot.
    pub ledger: Option<PathBuf>,
}

/// What all devices did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Devices.
    pub devices: u32,
    /// Boots of all devices.
    pub boots: u64,
    /// Events made.
    pub events: u64,
    /// Of these given up, and declared so.
    pub declared_lost: u64,
    /// Of these vanished without a word.
    pub vanished: u64,
    /// Sent a second time on purpose.
    pub duplicated: u64,
    /// Held back on purpose.
    pub late: u64,
    /// Connections that were cut on purpose.
    pub drops: u64,
    /// Restarts on purpose.
    pub restarts: u64,
    /// Jumps of the clock.
    pub clock_jumps: u64,
    /// Commands carried out, failed, or rejected.
    pub commands: u64,
    /// Events not acknowledged at the end: 0 unless the broker was away.
    pub unsent: u64,
}

/// What one boot made: the truth that a store can be held to.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct LedgerLine {
    /// `site/device`.
    pub device: String,
    /// The run.
    pub boot: Uuid,
    /// Events made: `seq` runs from 0 to one less.
    pub events: u64,
    /// Those given up and declared.
    pub declared_lost: Vec<u64>,
    /// Those that vanished.
    pub vanished: Vec<u64>,
}

/// Why the simulation did not end well.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The ledger.
    #[error("ledger {0}: {1}; may this user write there?")]
    Ledger(PathBuf, std::io::Error),
    /// Devices that never got through.
    #[error(
        "{0} events could not be delivered within {1:?} after the end; is the broker {2} there, and does it let devices in?"
    )]
    Undelivered(u64, Duration, String),
}

/// After the end, devices have so long to deliver what waits.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Book {
    report: Report,
    ledger: Vec<LedgerLine>,
}

/// Runs until every device has made its events, the time is over, or `stop` resolves; then until everything is delivered.
///
/// # Errors
/// [`SimulateError`].
pub async fn run(settings: Settings, stop: impl Future<Output = ()> + Send + 'static) -> Result<Report, SimulateError> {
    let settings = Arc::new(settings);
    let book = Arc::<Mutex<Book>>::default();
    let (stopper, stopped) = watch::channel(false);
    let length = settings.length;
    let ender = tokio::spawn(async move {
        let timer = async {
            match length {
                Some(length) => tokio::time::sleep(length).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { () = timer => {}, () = stop => {} }
        stopper.send_replace(true);
        // Kept until the devices have seen it.
        stopper.closed().await;
    });
    let mut devices = JoinSet::new();
    for number in 0..settings.devices {
        let wait = Duration::from_millis(u64::from(number) * 1000 / STARTS_A_SECOND);
        let (settings, book, stopped) = (Arc::clone(&settings), Arc::clone(&book), stopped.clone());
        devices.spawn(async move {
            tokio::time::sleep(wait).await;
            let (report, ledger) = device::run(&settings, number, stopped).await;
            book.lock().unwrap_or_else(PoisonError::into_inner).add(&report, ledger);
        });
    }
    drop(stopped);
    while devices.join_next().await.is_some() {}
    ender.abort();
    let mut book = std::mem::take(&mut *book.lock().unwrap_or_else(PoisonError::into_inner));
    book.report.devices = settings.devices;
    if let Some(path) = &settings.ledger {
        book.write(path).map_err(|error| SimulateError::Ledger(path.clone(), error))?;
    }
    match book.report.unsent {
        0 => Ok(book.report),
        unsent => {
            let broker = format!("{}:{}", settings.broker.host, settings.broker.port);
            Err(SimulateError::Undelivered(unsent, DRAIN_LIMIT, broker))
        }
    }
}

impl Book {
    fn add(&mut self, report: &Report, ledger: BTreeMap<Uuid, LedgerLine>) {
        let all = &mut self.report;
        all.boots += report.boots;
        all.events += report.events;
        all.declared_lost += report.declared_lost;
        all.vanished += report.vanished;
        all.duplicated += report.duplicated;
        all.late += report.late;
        all.drops += report.drops;
        all.restarts += report.restarts;
        all.clock_jumps += report.clock_jumps;
        all.commands += report.commands;
        all.unsent += report.unsent;
        self.ledger.extend(ledger.into_values());
    }

    fn write(&self, path: &PathBuf) -> std::io::Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for line in &self.ledger {
            serde_json::to_writer(&mut file, line)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}
