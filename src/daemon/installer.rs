//! Installs bundles beside a running daemon: one at a time, on a thread of its own, for whoever asks and looks again.
//!
//! Knows the store and no MQTT. Invariants: nothing here waits for a download, a disk or a network; stopping leaves what was in
//! place; a panic in an installation is the end of that one and is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use jiff::Timestamp;

use crate::models::Store;
use crate::models::store::{Control, InstallError, Installed, Progress, Request, StoreError};
use crate::selftest::{self, InAnotherProcess};

/// A pause between attempts to fetch ends this soon after it was told to.
const STEP: Duration = Duration::from_millis(50);

/// What [`Installer::look`] found.
#[derive(Debug)]
pub enum Look {
    /// Nothing is being installed.
    Idle,
    /// An installation is under way.
    Working(Progress),
    /// It has ended; told once.
    Done(Result<Installed, InstallError>),
}

/// One installation at a time.
#[derive(Debug)]
pub struct Installer {
    store: Store,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    cancel: Arc<AtomicBool>,
    progress: Arc<Mutex<Progress>>,
    done: Receiver<Result<Installed, InstallError>>,
}

impl Installer {
    /// Nothing is done yet.
    pub fn new(store: Store) -> Self {
        Self { store, running: None }
    }

    /// The store itself: for `chunks`, `rollback`, `standing`, which take no time to speak of.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Begins; [`Installer::look`] says how it goes. What is in place after a success runs from the daemon's next start.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another one is under way, [`StoreError::Io`] where the system gives no thread.
    pub fn begin(&mut self, request: Request) -> Result<(), StoreError> {
        if self.running.is_some() {
            return Err(self.store.busy_now());
        }
        let (sender, done) = bounded(1);
        let cancel = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Mutex::new(Progress::Fetching { bytes: 0, of: request.expected.size }));
        let (store, stop, shown) = (self.store.clone(), Arc::clone(&cancel), Arc::clone(&progress));
        let work = move || {
            let installed = catch_unwind(AssertUnwindSafe(|| install(&store, request, &stop, &shown)));
            let _ = sender.send(installed.unwrap_or(Err(InstallError::Panicked)));
        };
        let spawned = thread::Builder::new().name("install".into()).spawn(work);
        spawned.map_err(|source| self.store.no_thread(source))?;
        self.running = Some(Running { cancel, progress, done });
        Ok(())
    }

    /// How it goes.
    pub fn look(&mut self) -> Look {
        let Some(running) = &self.running else { return Look::Idle };
        let result = match running.done.try_recv() {
            Err(TryRecvError::Empty) => {
                return Look::Working(*running.progress.lock().unwrap_or_else(PoisonError::into_inner));
            }
            Err(TryRecvError::Disconnected) => Err(InstallError::Panicked),
            Ok(result) => result,
        };
        self.running = None;
        Look::Done(result)
    }

    /// Tells an installation to end; it does so within the time of one read from the network. Waiting for it is not needed:
    /// where the process ends first, the store is as it was.
    pub fn stop(&self) {
        if let Some(running) = &self.running {
            running.cancel.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn install(
    store: &Store,
    request: Request,
    cancel: &AtomicBool,
    shown: &Mutex<Progress>,
) -> Result<Installed, InstallError> {
    let test = InAnotherProcess { limit: selftest::LIMIT, cancel };
    let progress = |progress| *shown.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    let control = Control { cancel, progress: &progress, pause: &|time| pause(cancel, time) };
    store.install(request, &test, Timestamp::now(), control)
}

/// Waits, but not once it was told to stop.
pub fn pause(cancel: &AtomicBool, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until && !cancel.load(Ordering::Relaxed) {
        thread::sleep(STEP.min(time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::StoreSettings;
    use crate::models::seal::tests::Signer;
    use crate::models::store::{Expected, Source};

    #[test]
    fn installations_run_one_at_a_time_beside_whoever_asks_and_their_end_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let settings = StoreSettings {
            path: folder.path().join("store"),
            keys: vec![Signer::new().key()],
            ..StoreSettings::default()
        };
        let mut installer = Installer::new(Store::new(&settings));
        let request = || Request {
            source: Source::File(folder.path().join("none.tar")),
            signature: String::new(),
            expected: Expected::default(),
        };
        assert!(matches!(installer.look(), Look::Idle));
        installer.begin(request()).unwrap();
        assert!(matches!(installer.begin(request()), Err(StoreError::Busy { .. })));
        let ended = loop {
            match installer.look() {
                Look::Done(result) => break result,
                Look::Working(_) => thread::sleep(Duration::from_millis(1)),
                Look::Idle => panic!("its end was not told"),
            }
        };
        assert_eq!(ended.unwrap_err().code(), "download");
        assert!(matches!(installer.look(), Look::Idle));
        installer.begin(request()).unwrap();
    }
}
