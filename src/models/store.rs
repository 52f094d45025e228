//! Bundles installed on this device: signed, tried before they are used, and given up by themselves where they fail.
//!
//! One folder a task: `state.json` says which slot runs, which one was the last good one, and what is on trial; `slots/` holds
//! a folder for each; `candidate/` is what is just being unpacked and tried.
//!
//! Invariants:
//! - `state.json` is replaced by one rename, and names only slots whose files were synced before: a power cut at any moment
//!   leaves a state from before or after a step, and a bundle that runs in either.
//! - A slot is removed only once a state that does not name it is safe on disk.
//! - `floor`, the highest version that was ever put in place, only grows: not by a rollback, nor by a failed trial, does an
//!   older archive become installable again.
//! - Whatever is wrong with the store, a bundle is found: the slot in place, else the last good one, else the one in the binary.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::archive::{ArchiveError, Unpacked};
use super::chunks::Chunks;
use super::disk::{Disk, Lock, SystemDisk, absolute};
use super::fetch::{self, FetchError};
use super::seal::{ModelKey, Seal, SealError};
use super::{Bundle, BundleError, BundleFault, MANIFEST, MAX_FILE_BYTES, Origin, Task, Version, sha256_hex};

const STATE: &str = "state.json";
const STATE_NEW: &str = "state.json.new";
const STATE_ASIDE: &str = "state.corrupt";
const SLOTS: &str = "slots";
const CANDIDATE: &str = "candidate";
const INCOMING: &str = "incoming";
const STATE_SCHEMA: u32 = 1;
const MAX_STATE_BYTES: u64 = 64 << 10;
/// A change of the state takes milliseconds; whoever holds it for longer hangs.
const STATE_PATIENCE: Duration = Duration::from_secs(10);
/// A machine that goes down so often during one trial is not blamed on the weather any more.
const MAX_TRIAL_STARTS: u32 = 3;
/// For folders and the state, beside the files of a bundle.
const SLACK_BYTES: u64 = 128 << 10;
/// A clock before this was never set: nothing can be said about an archive's expiry.
const CLOCK_IS_SET: Timestamp = Timestamp::constant(1_735_689_600, 0);

/// `[models]`: where installed bundles live, and whose are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// Folder of the store; made by the first installation.
    pub path: PathBuf,
    /// Whose signatures are taken; with none, nothing can be installed.
    pub keys: Vec<ModelKey>,
    /// No archive may be larger.
    pub max_archive_bytes: u64,
    /// PEM file of the authorities whose servers are trusted; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// A new bundle is kept once it has read frames for this long without a fault.
    pub trial: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            path: "/var/lib/visaged/bundles".into(),
            keys: Vec::new(),
            max_archive_bytes: 32 << 20,
            ca_file: None,
            trial: Duration::from_secs(60),
        }
    }
}

/// Where an archive comes from.
#[derive(Debug)]
pub enum Source {
    /// `https://...`
    Https(String),
    /// A file on this device.
    File(PathBuf),
    /// The archive itself.
    Bytes(Vec<u8>),
    /// Pieces that came one by one, see [`Store::chunks`].
    Chunks(Chunks),
}

impl Source {
    /// An `https://` or `file://` address, or the path of a file.
    ///
    /// # Errors
    /// [`FetchError::Scheme`] for any other scheme.
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        match text.split_once("://") {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => Ok(Self::Https(text.into())),
            Some((scheme, path)) if scheme.eq_ignore_ascii_case("file") && path.starts_with('/') => {
                Ok(Self::File(path.into()))
            }
            Some(_) => Err(FetchError::Scheme(text.into())),
            None => Ok(Self::File(text.into())),
        }
    }

    /// A file is read now, by whoever calls this, and not by the store.
    ///
    /// # Errors
    /// [`FetchError`] where it cannot be read or is larger than `max_bytes`.
    pub fn read_file(self, max_bytes: u64) -> Result<Self, FetchError> {
        match self {
            Self::File(path) => fetch::file(&path, max_bytes).map(Self::Bytes),
            other => Ok(other),
        }
    }
}

/// What is to be installed.
#[derive(Debug)]
pub struct Request {
    /// The archive.
    pub source: Source,
    /// Text of its minisign signature.
    pub signature: String,
    /// What whoever asks says of it.
    pub expected: Expected,
}

/// What an archive is said to be; what is `None` is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// What for.
    pub task: Option<Task>,
    /// Its version.
    pub version: Option<Version>,
    /// SHA-256 of the archive in hexadecimal.
    pub sha256: Option<String>,
    /// Bytes of the archive.
    pub size: Option<u64>,
    /// Not to be installed later than this; the signature may say so too.
    pub expires: Option<Timestamp>,
}

/// How far an installation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The archive is being fetched.
    Fetching {
        /// So far.
        bytes: u64,
        /// Of so many, where that is known.
        of: Option<u64>,
    },
    /// Signature, hash and content are being looked at.
    Verifying,
    /// Files are being written.
    Unpacking,
    /// It is being tried on pictures.
    Testing,
    /// It is being put in place.
    Switching,
}

/// How an installation is told to stop, and tells how far it is.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Set by another thread: the installation ends as soon as it can and changes nothing.
    pub cancel: &'a AtomicBool,
    /// Called from the thread that installs.
    pub progress: &'a dyn Fn(Progress),
    /// Waits between attempts to fetch; `std::thread::sleep` but in tests.
    pub pause: &'a dyn Fn(Duration),
}

impl fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl Control<'_> {
    /// Whether it was told to stop.
    pub fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// Tries a bundle before it is put in place.
pub trait SelfTest {
    /// Runs `candidate`, which lies in `folder`, and compares it with `present`, which runs now and lies in `present_folder`
    /// (`None`: in this binary).
    ///
    /// # Errors
    /// What it cannot do, in one line.
    fn run(&self, candidate: &Path, present: Option<&Path>) -> Result<(), String>;
}

/// An installation that is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// What for.
    pub task: TaskName,
    /// In place now, and on trial from the next start of the daemon.
    pub version: Version,
    /// What it took the place of.
    pub previous: Version,
}

/// A [`Task`], written as the command line and MQTT write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskName(pub Task);

impl Serialize for TaskName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process or thread installs.
    #[error("{}: another installation is under way: wait for its end", path.display())]
    Busy {
        /// The store.
        path: PathBuf,
    },
    /// The disk.
    #[error("{}: cannot {what}: {source}: see to space and permissions; what ran before goes on", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not enough room.
    #[error("{}: {needed} bytes are needed and {free} are free: free some; what ran before goes on", path.display())]
    Full {
        /// The store.
        path: PathBuf,
        /// For the new bundle.
        needed: u64,
        /// On that file system.
        free: u64,
    },
    /// The state makes no sense.
    #[error("{}: {reason}: the bundle in the program is used, and the next installation begins a new state", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The bundle in the binary is in place already.
    #[error("{0}: nothing to roll back to: the bundle inside the program runs already")]
    NothingBefore(Task),
    /// The bundle inside the binary is refused.
    #[error(transparent)]
    BuiltIn(#[from] BundleError),
}

/// Why a bundle was not installed; what ran before goes on.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive did not come.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is not what was announced.
    #[error("the archive has {what} {found}, announced was {expected}: nothing was installed")]
    NotAsAnnounced {
        /// Size, SHA-256, task or version.
        what: &'static str,
        /// Announced.
        expected: String,
        /// Of the archive.
        found: String,
    },
    /// The signature.
    #[error("signature: {0}")]
    Seal(#[from] SealError),
    /// Not newer than all before it.
    #[error(
        "{task} {found} is not newer than {floor}, the newest that was ever in place: make a bundle with a higher version"
    )]
    Version {
        /// What for.
        task: Task,
        /// Of the archive.
        found: Version,
        /// The highest before it.
        floor: Version,
    },
    /// Too old.
    #[error("the archive expired at {at}: sign it again with a later time")]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// Whether it is too old cannot be known.
    #[error("the archive expires at {at}, and this device's clock says {now}: set the clock first")]
    ClockNotSet {
        /// When it expires.
        at: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// What is in it.
    #[error("archive: {0}")]
    Archive(#[from] ArchiveError),
    /// Its bundle does not fit this program.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It does not work.
    #[error("self-test of {task} {version} failed: {reason}: it was not put in place")]
    SelfTest {
        /// What for.
        task: Task,
        /// Its version.
        version: Version,
        /// What it could not do.
        reason: String,
    },
    /// It was told to stop.
    #[error("the installation was stopped: nothing was changed")]
    Cancelled,
    /// A fault of this program.
    #[error("the installation ended by a fault of this program: see its log; what ran before goes on")]
    Panicked,
}

impl InstallError {
    /// The error code of the command contract.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(StoreError::Busy { .. }) => "busy",
            Self::Store(_) => "storage",
            Self::Fetch(error) => error.code(),
            Self::NotAsAnnounced { what: "SHA-256" | "size", .. } => "hash",
            Self::NotAsAnnounced { .. } => "invalid_args",
            Self::Seal(_) => "signature",
            Self::Version { .. } => "version",
            Self::Expired { .. } | Self::ClockNotSet { .. } => "expired",
            Self::Archive(ArchiveError::Bundle(fault)) | Self::Bundle(BundleError { fault, .. }) => match fault {
                BundleFault::Hash { .. } | BundleFault::Size { .. } => "hash",
                BundleFault::Version { .. } | BundleFault::Schema { .. } => "version",
                _ => "malformed",
            },
            Self::Archive(_) => "malformed",
            Self::SelfTest { .. } => "self_test",
            Self::Cancelled | Self::Panicked => "internal",
        }
    }
}

/// Which bundle is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Choice {
    /// The one inside the binary.
    #[default]
    BuiltIn,
    /// One of the store.
    Slot(Slot),
}

/// A folder below `slots/`, named after its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    version: Version,
    /// The manifest holds the hashes of the other files.
    manifest_sha256: String,
    installed: Timestamp,
}

/// `state.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    schema: u32,
    /// The highest version ever in place.
    floor: Option<Version>,
    current: Choice,
    /// The last good one.
    previous: Choice,
    trial: Option<Trial>,
    bad: Option<Bad>,
}

impl Default for State {
    fn default() -> Self {
        let (current, previous) = (Choice::BuiltIn, Choice::BuiltIn);
        Self { schema: STATE_SCHEMA, floor: None, current, previous, trial: None, bad: None }
    }
}

/// `current` has yet to prove itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Trial {
    /// Starts of the daemon that did not end by being told to.
    starts: u32,
    /// The run of the machine in which it was started last, until the daemon ends by being told to.
    under_way: Option<String>,
}

/// The newest bundle that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    /// Its version.
    pub version: Version,
    /// Why.
    pub reason: String,
    /// When.
    pub time: Timestamp,
    /// Somebody knows: whoever rolled back, or who read the status of the start after it.
    #[serde(default)]
    told: bool,
}

impl State {
    /// Gives up what is in place, for the last good one.
    fn give_up(&mut self, reason: &str, now: Timestamp) {
        if let Choice::Slot(slot) = &self.current {
            self.bad = Some(Bad { version: slot.version, reason: reason.into(), time: now, told: false });
        }
        self.current = std::mem::take(&mut self.previous);
        self.trial = None;
    }

    fn names(&self, version: &str) -> bool {
        [&self.current, &self.previous].iter().any(|choice| match choice {
            Choice::Slot(slot) => slot.version.to_string() == version,
            Choice::BuiltIn => false,
        })
    }
}

/// A bundle to start with.
#[derive(Clone, Debug)]
pub struct Started {
    /// Verified.
    pub bundle: Bundle,
    /// The store has to be told how it does.
    pub on_trial: bool,
    /// What went wrong before it was found, for people: one line each.
    pub notes: Vec<String>,
}

/// How a bundle of the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// In use, or was so without a fault.
    Good,
    /// In place, and has to prove itself.
    Trial,
    /// Given up.
    Bad,
}

/// Which place a bundle of the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Runs from the next start.
    Current,
    /// Takes over where `current` fails.
    Previous,
    /// Gone.
    Removed,
}

/// One line of [`Store::list`].
#[derive(Debug)]
pub struct Listed {
    /// Its place.
    pub place: Place,
    /// How it is.
    pub state: SlotState,
    /// Its version.
    pub version: Version,
    /// The bundle, or what is wrong with it; `None` where it is removed.
    pub bundle: Option<Result<Bundle, BundleError>>,
    /// Why it was given up.
    pub reason: Option<String>,
}

/// Where an installed version stands; for whoever asked for it and waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Proven good, and in place.
    Kept,
    /// In place, and not yet proven.
    OnTrial,
    /// Given up, and why.
    GivenUp(String),
    /// Neither: never installed, or replaced since.
    Unknown,
}

/// The bundles installed on this device. Takes no place and touches no file until it is asked for something.
#[derive(Clone, Debug)]
pub struct Store {
    settings: StoreSettings,
    root: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Store {
    /// The store that `settings` describe.
    pub fn new(settings: &StoreSettings) -> Self {
        let root = absolute(&settings.path);
        Self { settings: settings.clone(), root, disk: Arc::new(SystemDisk) }
    }

    #[cfg(test)]
    fn on(disk: Arc<dyn Disk>, settings: &StoreSettings) -> Self {
        Self { settings: settings.clone(), root: absolute(&settings.path), disk }
    }

    /// How long a new bundle has to prove itself.
    pub fn trial(&self) -> Duration {
        self.settings.trial
    }

    /// A place for an archive of `size` bytes that comes in pieces.
    ///
    /// # Errors
    /// [`InstallError`] where it is too large or there is no room.
    pub fn chunks(&self, size: u64) -> Result<Chunks, InstallError> {
        self.check_size(size)?;
        let folder = self.incoming()?;
        self.check_room(size)?;
        // What a crash left behind; and pieces that somebody still collects go nowhere.
        for name in self.disk.names(&folder).unwrap_or_default().iter().filter(|name| name.ends_with(".chunks")) {
            let _ = std::fs::remove_file(folder.join(name));
        }
        Chunks::new(&folder.join(format!("{}.chunks", uuid::Uuid::new_v4())), size)
            .map_err(|source| self.io("make a file in", &folder, source).into())
    }

    /// Fetches, verifies, tries and puts in place; on an error nothing has changed. Takes seconds to minutes: not for a thread
    /// that anybody waits for.
    ///
    /// # Errors
    /// [`InstallError`].
    pub fn install(
        &self,
        request: Request,
        self_test: &dyn SelfTest,
        now: Timestamp,
        control: Control<'_>,
    ) -> Result<Installed, InstallError> {
        if self.settings.keys.is_empty() {
            return Err(SealError::NoKeys.into());
        }
        self.make_folder(&self.root)?;
        let _one_at_a_time = self.install_lock()?;
        if let (Some(task), Some(version)) = (request.expected.task, request.expected.version) {
            self.check_version(task, version)?;
        }
        let archive = self.fetch(request.source, &request.expected, control)?;
        (control.progress)(Progress::Verifying);
        let seal = self.verify(&archive, &request.signature, &request.expected, now)?;
        self.check_version(seal.task, seal.version)?;
        let unpacked = Unpacked::read(&archive)?;
        check_content(&unpacked, seal)?;
        let candidate = self.folder(seal.task).join(CANDIDATE);
        let result = self.try_and_switch(seal, &unpacked, self_test, now, control);
        // Whatever is left of it takes room only; the next installation removes it if this could not.
        if let Err(error) = self.disk.remove_folder(&candidate) {
            tracing::debug!(%error, "candidate not removed");
        }
        result
    }

    fn fetch(&self, source: Source, expected: &Expected, control: Control<'_>) -> Result<Vec<u8>, InstallError> {
        let max_bytes = self.settings.max_archive_bytes;
        if let Some(size) = expected.size {
            self.check_size(size)?;
        }
        let archive = match source {
            Source::File(path) => fetch::file(&path, max_bytes)?,
            Source::Bytes(archive) => archive,
            Source::Chunks(chunks) => chunks.into_archive()?,
            Source::Https(url) => {
                let order = fetch::Order {
                    url: &url,
                    folder: &self.incoming()?,
                    max_bytes,
                    size: expected.size,
                    ca_file: self.settings.ca_file.as_deref(),
                };
                fetch::https(&order, control)?
            }
        };
        if control.cancelled() {
            return Err(InstallError::Cancelled);
        }
        Ok(archive)
    }

    fn verify(
        &self,
        archive: &[u8],
        signature: &str,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Seal, InstallError> {
        self.check_size(archive.len() as u64)?;
        as_announced("size", expected.size, archive.len() as u64)?;
        let sha256 = expected.sha256.as_ref().map(|text| text.to_ascii_lowercase());
        as_announced("SHA-256", sha256, sha256_hex(archive))?;
        let seal = Seal::verify(archive, signature, &self.settings.keys)?;
        as_announced("task", expected.task, seal.task)?;
        as_announced("version", expected.version, seal.version)?;
        for at in [seal.expires, expected.expires].into_iter().flatten() {
            if now < CLOCK_IS_SET {
                return Err(InstallError::ClockNotSet { at, now });
            }
            if now >= at {
                return Err(InstallError::Expired { at });
            }
        }
        Ok(seal)
    }

    fn try_and_switch(
        &self,
        seal: Seal,
        unpacked: &Unpacked<'_>,
        self_test: &dyn SelfTest,
        now: Timestamp,
        control: Control<'_>,
    ) -> Result<Installed, InstallError> {
        (control.progress)(Progress::Unpacking);
        let candidate = self.unpack(seal.task, unpacked)?;
        let manifest_sha256 = sha256_hex(unpacked.manifest_text);
        let written = self.read_bundle(Origin::Folder(candidate.clone()), &candidate, &manifest_sha256)?;
        written.check_task_view(seal.task)?;
        (control.progress)(Progress::Testing);
        let state = self.state_for_install(seal.task)?;
        let present = self.in_force(seal.task, &state.current)?.map(|slot| self.slot_folder(seal.task, slot));
        self_test.run(&candidate, present.as_deref()).map_err(|reason| InstallError::SelfTest {
            task: seal.task,
            version: seal.version,
            reason,
        })?;
        if control.cancelled() {
            return Err(InstallError::Cancelled);
        }
        (control.progress)(Progress::Switching);
        let slot = Slot { version: seal.version, manifest_sha256, installed: now };
        self.switch(seal.task, slot, &candidate)
    }

    /// Files first, then their names, all safe before anything points to them.
    fn unpack(&self, task: Task, unpacked: &Unpacked<'_>) -> Result<PathBuf, InstallError> {
        let folder = self.folder(task);
        self.make_folder(&folder.join(SLOTS))?;
        let candidate = folder.join(CANDIDATE);
        self.disk.remove_folder(&candidate).map_err(|source| self.io("remove", &candidate, source))?;
        self.tidy(task, &self.state_for_install(task)?);
        let files = unpacked.files.iter().map(|(name, bytes)| (name.as_str(), *bytes));
        let files: Vec<(&str, &[u8])> = files.chain([(MANIFEST, unpacked.manifest_text)]).collect();
        self.check_room(files.iter().map(|(_, bytes)| bytes.len() as u64).sum())?;
        self.make_folder(&candidate)?;
        for (name, bytes) in files {
            let path = candidate.join(name);
            self.disk.write(&path, bytes).map_err(|source| self.io("write", &path, source))?;
            self.disk.sync_file(&path).map_err(|source| self.io("sync", &path, source))?;
        }
        self.sync(&candidate)?;
        Ok(candidate)
    }

    /// The candidate becomes a slot, then the state names it.
    fn switch(&self, task: Task, slot: Slot, candidate: &Path) -> Result<Installed, InstallError> {
        let _lock = self.state_lock(task)?;
        let mut state = self.state_for_install(task)?;
        let version = slot.version;
        let running = self.in_force(task, &state.current)?.cloned();
        let target = self.slot_folder(task, &slot);
        self.disk.remove_folder(&target).map_err(|source| self.io("remove", &target, source))?;
        self.disk.rename(candidate, &target).map_err(|source| self.io("rename", candidate, source))?;
        self.sync(&self.folder(task).join(SLOTS))?;
        self.sync(&self.folder(task))?;
        let previous = running.as_ref().map_or_else(|| built_in_version(task), |slot| Ok(slot.version))?;
        // What is itself on trial is no good one to return to.
        if state.trial.is_none() {
            state.previous = running.map_or(Choice::BuiltIn, Choice::Slot);
        }
        state.current = Choice::Slot(slot);
        state.trial = Some(Trial::default());
        state.floor = state.floor.max(Some(version));
        self.write_state(task, &state)?;
        self.tidy(task, &state);
        tracing::info!(%task, %version, %previous, "bundle installed: on trial from the next start");
        Ok(Installed { task: TaskName(task), version, previous })
    }

    /// Returns to the last good bundle, or to the one inside the binary; from the next start of the daemon.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing has changed.
    pub fn rollback(&self, task: Task, now: Timestamp) -> Result<Installed, StoreError> {
        let _lock = self.existing_lock(task)?;
        let mut state = self.read_state(task)?;
        let Some(left) = self.in_force(task, &state.current)?.map(|slot| slot.version) else {
            return Err(StoreError::NothingBefore(task));
        };
        state.give_up("rolled back by an operator", now);
        state.bad.iter_mut().for_each(|bad| bad.told = true);
        let version = match self.in_force(task, &state.current)? {
            Some(slot) => slot.version,
            None => built_in_version(task)?,
        };
        self.write_state(task, &state)?;
        self.tidy(task, &state);
        tracing::info!(%task, %version, %left, "bundle rolled back: from the next start");
        Ok(Installed { task: TaskName(task), version, previous: left })
    }

    /// The bundle to start a daemon with; counts the start where it is on trial. `machine_boot` names the run of the machine.
    ///
    /// # Errors
    /// [`BundleError`] only where the bundle inside the binary is refused, too.
    pub fn start(&self, task: Task, machine_boot: &str, now: Timestamp) -> Result<Started, BundleError> {
        let mut notes = Vec::new();
        let mut state = self.read_state(task).unwrap_or_else(|error| {
            notes.push(format!("models: {error}"));
            State::default()
        });
        if state.trial.is_some() {
            state = self.begin(task, machine_boot, now).unwrap_or_else(|error| {
                // A start that is not counted could be repeated for ever.
                notes.push(format!("models: {task} waits for its trial: {error}"));
                State { current: std::mem::take(&mut state.previous), trial: None, ..state }
            });
        }
        let mut started = self.find(task, &state, notes)?;
        if let Some(bad) = self.tell(task, state) {
            let (version, runs) = (bad.version, started.bundle.version());
            started.notes.push(format!("models: {task} {version} was given up, {runs} runs: {}", bad.reason));
        }
        Ok(started)
    }

    /// What was given up and nobody knows of yet.
    fn tell(&self, task: Task, mut state: State) -> Option<Bad> {
        let bad = state.bad.as_mut().filter(|bad| !bad.told)?;
        bad.told = true;
        let bad = bad.clone();
        let written = self.state_lock(task).and_then(|_lock| self.write_state(task, &state));
        if let Err(error) = written {
            tracing::warn!(%task, %error, "what was given up will be told again");
        }
        Some(bad)
    }

    /// The bundle that [`Store::start`] would give, without a change of anything.
    ///
    /// # Errors
    /// [`BundleError`] only where the bundle inside the binary is refused, too.
    pub fn look(&self, task: Task) -> Result<Started, BundleError> {
        let (state, notes) = match self.read_state(task) {
            Ok(state) => (state, Vec::new()),
            Err(error) => (State::default(), vec![format!("models: {error}")]),
        };
        self.find(task, &state, notes)
    }

    /// Counts a start of what is on trial, or ends its trial where it has had its chances.
    fn begin(&self, task: Task, machine_boot: &str, now: Timestamp) -> Result<State, StoreError> {
        let _lock = self.state_lock(task)?;
        let mut state = self.read_state(task)?;
        let (Some(trial), Choice::Slot(slot)) = (&mut state.trial, &state.current) else { return Ok(state) };
        let failed = match &trial.under_way {
            Some(boot) if boot == machine_boot => {
                Some("the daemon crashed, hung or was killed during its trial".into())
            }
            Some(_) if trial.starts >= MAX_TRIAL_STARTS => {
                Some(format!("the machine went down {MAX_TRIAL_STARTS} times during its trial"))
            }
            _ => self.read_slot(task, slot).err().map(|error| error.to_string()),
        };
        trial.starts += 1;
        trial.under_way = Some(machine_boot.into());
        match failed {
            None => self.write_state(task, &state)?,
            Some(reason) => {
                tracing::error!(%task, version = %slot.version, reason, "bundle given up");
                state.give_up(&reason, now);
                // Where this cannot be written, the next start finds the same.
                match self.write_state(task, &state) {
                    Ok(()) => self.tidy(task, &state),
                    Err(error) => tracing::warn!(%task, %error, "not written that the bundle was given up"),
                }
            }
        }
        Ok(state)
    }

    /// The bundle that `state` means, or the next best.
    fn find(&self, task: Task, state: &State, mut notes: Vec<String>) -> Result<Started, BundleError> {
        let mut on_trial = state.trial.is_some();
        for choice in [&state.current, &state.previous] {
            let slot = match self.in_force(task, choice) {
                Ok(Some(slot)) => slot,
                Ok(None) => break,
                Err(StoreError::BuiltIn(error)) => return Err(error),
                Err(error) => {
                    notes.push(format!("models: {error}"));
                    break;
                }
            };
            match self.read_slot(task, slot).and_then(|bundle| bundle.check_task_view(task).map(|()| bundle)) {
                Ok(bundle) => return Ok(Started { bundle, on_trial, notes }),
                Err(error) => notes.push(format!("models: {error}")),
            }
            on_trial = false;
        }
        Ok(Started { bundle: Bundle::load(task, None)?, on_trial: false, notes })
    }

    /// What is on trial has proven itself.
    ///
    /// # Errors
    /// [`StoreError`] where that could not be written; ask again later.
    pub fn keep(&self, task: Task, version: Version) -> Result<(), StoreError> {
        self.change(task, version, |state| (state.trial, state.bad) = (None, None))
    }

    /// What is in place failed: the last good one runs from the next start.
    ///
    /// # Errors
    /// [`StoreError`] where that could not be written; where it was on trial, the next start finds it out by itself.
    pub fn give_up(&self, task: Task, version: Version, reason: &str, now: Timestamp) -> Result<(), StoreError> {
        self.change(task, version, |state| state.give_up(reason, now))
    }

    /// The daemon ends because it was told to: not the fault of what is on trial.
    ///
    /// # Errors
    /// [`StoreError`] where that could not be written: the next start then takes it for a crash.
    pub fn stand_down(&self, task: Task, version: Version) -> Result<(), StoreError> {
        self.change(task, version, |state| {
            if let Some(trial) = &mut state.trial {
                trial.starts = trial.starts.saturating_sub(1);
                trial.under_way = None;
            }
        })
    }

    /// Where `version` stands.
    ///
    /// # Errors
    /// [`StoreError`] where the state cannot be read.
    pub fn standing(&self, task: Task, version: Version) -> Result<Standing, StoreError> {
        let state = self.read_state(task)?;
        let current = matches!(&state.current, Choice::Slot(slot) if slot.version == version);
        Ok(match (current, &state.trial, state.bad) {
            (true, Some(_), _) => Standing::OnTrial,
            (true, None, _) => Standing::Kept,
            (false, _, Some(bad)) if bad.version == version => Standing::GivenUp(bad.reason),
            _ => Standing::Unknown,
        })
    }

    /// The bundles of a task that the store knows of, the one in place first; none where the one inside the binary is in place
    /// and nothing was given up.
    ///
    /// # Errors
    /// [`StoreError`] where the state cannot be read.
    pub fn list(&self, task: Task) -> Result<Vec<Listed>, StoreError> {
        let state = self.read_state(task)?;
        let mut listed = Vec::new();
        let places = [(Place::Current, &state.current), (Place::Previous, &state.previous)];
        for (place, choice) in places {
            let Some(slot) = self.in_force(task, choice)? else { continue };
            let trial = place == Place::Current && state.trial.is_some();
            let bundle = self.read_slot(task, slot);
            let health = match (&bundle, trial) {
                (Err(_), _) => SlotState::Bad,
                (Ok(_), true) => SlotState::Trial,
                (Ok(_), false) => SlotState::Good,
            };
            listed.push(Listed { place, state: health, version: slot.version, bundle: Some(bundle), reason: None });
        }
        listed.extend(state.bad.map(|bad| Listed {
            place: Place::Removed,
            state: SlotState::Bad,
            version: bad.version,
            bundle: None,
            reason: Some(bad.reason),
        }));
        Ok(listed)
    }

    fn change(&self, task: Task, version: Version, change: impl FnOnce(&mut State)) -> Result<(), StoreError> {
        let _lock = self.existing_lock(task)?;
        let mut state = self.read_state(task)?;
        // Another one was put in place meanwhile: nothing is known of that.
        if !matches!(&state.current, Choice::Slot(slot) if slot.version == version) {
            return Ok(());
        }
        let before = state.clone();
        change(&mut state);
        if state != before {
            self.write_state(task, &state)?;
            self.tidy(task, &state);
        }
        Ok(())
    }

    /// The slot that `choice` means, where it is newer than what the binary brings.
    fn in_force<'a>(&self, task: Task, choice: &'a Choice) -> Result<Option<&'a Slot>, StoreError> {
        let Choice::Slot(slot) = choice else { return Ok(None) };
        Ok((slot.version > built_in_version(task)?).then_some(slot))
    }

    fn check_version(&self, task: Task, found: Version) -> Result<(), InstallError> {
        let state = self.state_for_install(task)?;
        let built_in = built_in_version(task)?;
        let floor = state.floor.map_or(built_in, |floor| floor.max(built_in));
        if found > floor { Ok(()) } else { Err(InstallError::Version { task, found, floor }) }
    }

    fn check_size(&self, bytes: u64) -> Result<(), InstallError> {
        let most = self.settings.max_archive_bytes.min(MAX_FILE_BYTES);
        if bytes <= most { Ok(()) } else { Err(FetchError::TooLarge { bytes: Some(bytes), most }.into()) }
    }

    fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let free = self.disk.free_bytes(&self.root).map_err(|source| self.io("look at", &self.root, source))?;
        let needed = bytes.saturating_add(SLACK_BYTES);
        if needed <= free { Ok(()) } else { Err(StoreError::Full { path: self.root.clone(), needed, free }) }
    }

    /// The state; one that makes no sense is put aside, and what can be known without it is kept.
    fn state_for_install(&self, task: Task) -> Result<State, StoreError> {
        match self.read_state(task) {
            Err(StoreError::Corrupt { path, reason }) => {
                tracing::error!(path = %path.display(), %reason, "the store's state is begun anew");
                let slots = self.folder(task).join(SLOTS);
                let names = self.disk.names(&slots).map_err(|source| self.io("read", &slots, source))?;
                let floor = names.iter().filter_map(|name| name.parse().ok()).max();
                let aside = self.folder(task).join(STATE_ASIDE);
                self.disk.rename(&path, &aside).map_err(|source| self.io("rename", &path, source))?;
                let state = State { floor, ..State::default() };
                self.write_state(task, &state)?;
                Ok(state)
            }
            state => state,
        }
    }

    fn read_state(&self, task: Task) -> Result<State, StoreError> {
        let path = self.folder(task).join(STATE);
        let bytes = match self.disk.read(&path, MAX_STATE_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            bytes => bytes.map_err(|source| self.io("read", &path, source))?,
        };
        let corrupt = |reason: String| StoreError::Corrupt { path: path.clone(), reason };
        let state: State = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        match state.schema {
            STATE_SCHEMA => Ok(state),
            other => Err(corrupt(format!("has schema {other}, this program reads {STATE_SCHEMA}"))),
        }
    }

    fn write_state(&self, task: Task, state: &State) -> Result<(), StoreError> {
        let folder = self.folder(task);
        let (new, path) = (folder.join(STATE_NEW), folder.join(STATE));
        let text = serde_json::to_vec_pretty(state).map_err(|error| self.io("write", &path, error.into()))?;
        self.disk.write(&new, &text).map_err(|source| self.io("write", &new, source))?;
        self.disk.sync_file(&new).map_err(|source| self.io("sync", &new, source))?;
        self.disk.rename(&new, &path).map_err(|source| self.io("rename", &new, source))?;
        self.sync(&folder)
    }

    /// Removes slots that no state names; call it only when `state` is safe.
    fn tidy(&self, task: Task, state: &State) {
        let slots = self.folder(task).join(SLOTS);
        for name in self.disk.names(&slots).unwrap_or_default() {
            if state.names(&name) {
                continue;
            }
            if let Err(error) = self.disk.remove_folder(&slots.join(&name)) {
                tracing::warn!(%task, slot = name, %error, "old bundle not removed");
            }
        }
    }

    fn read_slot(&self, task: Task, slot: &Slot) -> Result<Bundle, BundleError> {
        let origin = Origin::Store { task, version: slot.version };
        self.read_bundle(origin, &self.slot_folder(task, slot), &slot.manifest_sha256)
    }

    fn read_bundle(&self, origin: Origin, folder: &Path, manifest_sha256: &str) -> Result<Bundle, BundleError> {
        let bundle = Bundle::from_files(origin, |name, limit| self.disk.read(&folder.join(name), limit))?;
        if bundle.manifest_sha256 == manifest_sha256 {
            return Ok(bundle);
        }
        Err(bundle.refuse(BundleFault::Hash {
            file: MANIFEST.into(),
            expected: manifest_sha256.into(),
            found: bundle.manifest_sha256.clone(),
        }))
    }

    fn folder(&self, task: Task) -> PathBuf {
        self.root.join(task.name())
    }

    fn slot_folder(&self, task: Task, slot: &Slot) -> PathBuf {
        self.folder(task).join(SLOTS).join(slot.version.to_string())
    }

    fn incoming(&self) -> Result<PathBuf, StoreError> {
        let folder = self.root.join(INCOMING);
        self.make_folder(&folder)?;
        Ok(folder)
    }

    /// With its name safe in its parent, and so on upwards.
    fn make_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.disk.make_folder(path).map_err(|source| self.io("make", path, source))?;
        for folder in path.ancestors().skip(1) {
            match self.sync(folder) {
                // Folders above the store may be such that this user may not open them; they are seldom new.
                Err(error) if !folder.starts_with(&self.root) => tracing::debug!(%error, "not synced"),
                synced => synced?,
            }
        }
        Ok(())
    }

    fn sync(&self, folder: &Path) -> Result<(), StoreError> {
        self.disk.sync_folder(folder).map_err(|source| self.io("sync", folder, source))
    }

    fn install_lock(&self) -> Result<Lock, StoreError> {
        let path = self.root.join("install.lock");
        self.disk.lock(&path, Duration::ZERO).map_err(|source| self.busy(&path, source))
    }

    fn state_lock(&self, task: Task) -> Result<Lock, StoreError> {
        let path = self.folder(task).join("state.lock");
        self.disk.lock(&path, STATE_PATIENCE).map_err(|source| self.busy(&path, source))
    }

    /// Where nothing was ever installed there is nothing to lock, and nothing is made.
    fn existing_lock(&self, task: Task) -> Result<Option<Lock>, StoreError> {
        match self.state_lock(task) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            lock => lock.map(Some),
        }
    }

    /// What is said while another installation is under way.
    pub(crate) fn busy_now(&self) -> StoreError {
        StoreError::Busy { path: self.root.clone() }
    }

    pub(crate) fn no_thread(&self, source: io::Error) -> StoreError {
        self.io("start a thread for", &self.root, source)
    }

    fn busy(&self, path: &Path, source: io::Error) -> StoreError {
        match source.kind() {
            io::ErrorKind::WouldBlock => self.busy_now(),
            _ => self.io("lock", path, source),
        }
    }

    fn io(&self, what: &'static str, path: &Path, source: io::Error) -> StoreError {
        StoreError::Io { what, path: path.into(), source }
    }
}

fn built_in_version(task: Task) -> Result<Version, BundleError> {
    Bundle::built_in_version(task)
}

fn as_announced<T: PartialEq + ToString>(
    what: &'static str,
    expected: Option<T>,
    found: T,
) -> Result<(), InstallError> {
    match expected {
        Some(expected) if expected != found => {
            Err(InstallError::NotAsAnnounced { what, expected: expected.to_string(), found: found.to_string() })
        }
        _ => Ok(()),
    }
}

fn check_content(unpacked: &Unpacked<'_>, seal: Seal) -> Result<(), InstallError> {
    as_announced("task", Some(seal.task), unpacked.manifest.task)?;
    as_announced("version", Some(seal.version.to_string()), unpacked.manifest.version.clone())
}

#[cfg(test)]
mod tests;
