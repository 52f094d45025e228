//! The store against power cuts at every step, full disks, and whatever order things may happen in.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::*;

use super::super::archive::tests::{archive_of, tar_of};
use super::super::seal::tests::Signer;
use super::*;

const TASK: Task = Task::Derl;

fn version(patch: u64) -> Version {
    Version { major: 0, minor: 1, patch }
}

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

// --- a disk ---------------------------------------------------------------------------------------------------------

type Inode = u64;

/// A file system in memory. What was not synced is there in part after a power cut: of names any of the changes since the
/// folder's last sync, of a file's content the old one, nothing, or a piece.
#[derive(Clone, Debug, Default)]
struct Ram {
    world: Arc<Mutex<World>>,
}

#[derive(Debug, Default)]
struct World {
    next: Inode,
    seen: BTreeMap<Inode, BTreeMap<String, Inode>>,
    safe: BTreeMap<Inode, BTreeMap<String, Inode>>,
    files: BTreeMap<Inode, Content>,
    log: Vec<Change>,
    held: BTreeSet<PathBuf>,
    /// Changes until the power is cut.
    fuse: Option<u64>,
    room: Option<u64>,
    run: u64,
}

#[derive(Debug, Default)]
struct Content {
    seen: Vec<u8>,
    safe: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Change {
    Enter(Inode, String, Inode),
    Leave(Inode, String),
    Move((Inode, String), (Inode, String), Inode),
}

impl Change {
    fn touches(&self, folder: Inode) -> bool {
        match self {
            Self::Enter(at, _, _) | Self::Leave(at, _) => *at == folder,
            Self::Move((from, _), (to, _), _) => *from == folder || *to == folder,
        }
    }

    fn apply(self, tree: &mut BTreeMap<Inode, BTreeMap<String, Inode>>) {
        match self {
            Self::Enter(at, name, inode) => drop(tree.entry(at).or_default().insert(name, inode)),
            Self::Leave(at, name) => drop(tree.entry(at).or_default().remove(&name)),
            Self::Move((from, old), (to, new), inode) => {
                tree.entry(from).or_default().remove(&old);
                tree.entry(to).or_default().insert(new, inode);
            }
        }
    }
}

#[derive(Debug)]
struct Held(Ram, PathBuf, u64);

impl Drop for Held {
    fn drop(&mut self) {
        let mut world = self.0.world();
        if world.run == self.2 {
            world.held.remove(&self.1);
        }
    }
}

impl World {
    fn find(&self, path: &Path) -> io::Result<Inode> {
        let names = path.components().filter_map(|c| match c {
            std::path::Component::Normal(name) => name.to_str(),
            _ => None,
        });
        names.into_iter().try_fold(0, |at, name| {
            let folder = self.seen.get(&at).ok_or(io::ErrorKind::NotADirectory)?;
            folder.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn place(&self, path: &Path) -> io::Result<(Inode, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.find(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?, name.into()))
    }

    fn powered(&self) -> io::Result<()> {
        if self.fuse == Some(0) { Err(io::Error::other("no power")) } else { Ok(()) }
    }

    fn burn(&mut self) -> io::Result<()> {
        self.powered()?;
        if let Some(fuse) = &mut self.fuse {
            *fuse -= 1;
        }
        Ok(())
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.burn()?;
        change.clone().apply(&mut self.seen);
        self.log.push(change);
        Ok(())
    }

    fn make(&mut self) -> Inode {
        self.next += 1;
        self.next
    }

    fn used(&self) -> u64 {
        self.seen
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|i| self.files.get(i))
            .map(|f| f.seen.len() as u64)
            .sum()
    }

    fn remove(&mut self, at: Inode, name: &str, inode: Inode) -> io::Result<()> {
        for (name, child) in self.seen.get(&inode).cloned().unwrap_or_default() {
            self.remove(inode, &name, child)?;
        }
        self.change(Change::Leave(at, name.into()))
    }
}

impl Ram {
    fn new() -> Self {
        let ram = Self::default();
        ram.world().seen.insert(0, BTreeMap::new());
        ram
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut_power(&self, seed: u64) {
        let mut state = seed | 1;
        let mut pick = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut world = self.world();
        let world = &mut *world;
        for change in std::mem::take(&mut world.log) {
            if pick(2) == 0 {
                change.apply(&mut world.safe);
            }
        }
        for content in world.files.values_mut() {
            if content.safe.as_ref() != Some(&content.seen) {
                let piece = pick(content.seen.len() as u64 + 1) as usize;
                content.seen.truncate(piece);
                if let (Some(safe), 0) = (&content.safe, pick(2)) {
                    content.seen.clone_from(safe);
                }
            }
            content.safe = Some(content.seen.clone());
        }
        world.safe.entry(0).or_default();
        // A folder that was never synced is empty, not away.
        for inode in world.seen.keys() {
            if !world.files.contains_key(inode) {
                world.safe.entry(*inode).or_default();
            }
        }
        world.seen.clone_from(&world.safe);
        world.held.clear();
        world.run += 1;
        world.fuse = None;
    }
}

impl Disk for Ram {
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let world = self.world();
        world.powered()?;
        let content = &world.files.get(&world.find(path)?).ok_or(io::ErrorKind::IsADirectory)?.seen;
        Ok(content[..content.len().min(limit as usize + 1)].to_vec())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.world();
        world.powered()?;
        let inode = match world.find(path) {
            Ok(inode) => inode,
            Err(_) => {
                let (at, name) = world.place(path)?;
                let inode = world.make();
                world.change(Change::Enter(at, name, inode))?;
                world.files.insert(inode, Content::default());
                inode
            }
        };
        let free = world.room.map_or(u64::MAX, |room| room.saturating_sub(world.used()));
        world.burn()?;
        let fits = bytes.len().min(usize::try_from(free).unwrap_or(usize::MAX));
        world.files.get_mut(&inode).unwrap().seen = bytes[..fits].to_vec();
        if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.burn()?;
        let inode = world.find(path)?;
        let content = world.files.get_mut(&inode).unwrap();
        content.safe = Some(content.seen.clone());
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.burn()?;
        let folder = world.find(path)?;
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut world.log).into_iter().partition(|c| c.touches(folder));
        world.log = later;
        now.into_iter().for_each(|change| change.apply(&mut world.safe));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        let (inode, from, to) = (world.find(from)?, world.place(from)?, world.place(to)?);
        world.change(Change::Move(from, to, inode))
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = path.ancestors().take_while(|path| self.world().find(path).is_err()).collect();
        for path in missing.into_iter().rev() {
            let mut world = self.world();
            let (at, name) = world.place(path)?;
            let inode = world.make();
            world.change(Change::Enter(at, name, inode))?;
            world.seen.insert(inode, BTreeMap::new());
        }
        self.world().powered()
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.powered()?;
        let Ok(inode) = world.find(path) else { return Ok(()) };
        let (at, name) = world.place(path)?;
        world.remove(at, &name, inode)
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        world.powered()?;
        let Ok(inode) = world.find(path) else { return Ok(Vec::new()) };
        Ok(world.seen[&inode].keys().cloned().collect())
    }

    fn lock(&self, path: &Path, _patience: Duration) -> io::Result<Lock> {
        let mut world = self.world();
        world.powered()?;
        world.place(path)?;
        if !world.held.insert(path.into()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Held(self.clone(), path.into(), world.run)))
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let world = self.world();
        Ok(world.room.map_or(u64::MAX, |room| room.saturating_sub(world.used())))
    }
}

// --- a device -------------------------------------------------------------------------------------------------------

struct Verdict<'a>(Result<(), String>, &'a Cell<Option<PathBuf>>);

impl SelfTest for Verdict<'_> {
    fn run(&self, _candidate: &Path, present: Option<&Path>) -> Result<(), String> {
        self.1.set(present.map(Into::into));
        self.0.clone()
    }
}

struct Device {
    ram: Ram,
    store: Store,
    signer: Signer,
    files: tempfile::TempDir,
    self_test: Result<(), String>,
    /// What the last self-test was measured by.
    present: Cell<Option<PathBuf>>,
}

impl Device {
    fn new() -> Self {
        let (ram, signer) = (Ram::new(), Signer::new());
        let settings = StoreSettings {
            path: "/store".into(),
            keys: vec![signer.key()],
            max_archive_bytes: 100_000,
            ..StoreSettings::default()
        };
        let store = Store::on(Arc::new(ram.clone()), &settings);
        let files = tempfile::tempdir().unwrap();
        Self { ram, store, signer, files, self_test: Ok(()), present: Cell::default() }
    }

    fn archive(&self, patch: u64) -> Vec<u8> {
        archive_of(TASK, &version(patch).to_string(), Some(format!("model {patch}").repeat(200).as_bytes()))
    }

    fn request(&self, archive: &[u8], comment: &str) -> Request {
        let path = self.files.path().join("archive.tar");
        std::fs::write(&path, archive).unwrap();
        let signature = self.signer.sign(archive, comment);
        Request { source: Source::File(path), signature, expected: Expected::default() }
    }

    fn ask(&self, request: Request) -> Result<Installed, InstallError> {
        let cancel = AtomicBool::new(false);
        let control = Control { cancel: &cancel, progress: &|_| (), pause: &|_| () };
        self.store.install(request, &Verdict(self.self_test.clone(), &self.present), now(), control)
    }

    fn install(&self, patch: u64) -> Result<Installed, InstallError> {
        self.ask(self.request(&self.archive(patch), &format!("visaged:derl:{}", version(patch))))
    }

    fn start(&self, machine_boot: &str) -> Started {
        self.store.start(TASK, machine_boot, now()).unwrap()
    }

    /// Installed and proven.
    fn with(patch: u64) -> Self {
        let device = Self::new();
        device.install(patch).unwrap();
        assert!(device.start("boot").on_trial);
        device.store.keep(TASK, version(patch)).unwrap();
        device
    }

    fn runs(&self) -> (Version, bool) {
        let started = self.store.look(TASK).unwrap();
        (started.bundle.version(), started.on_trial)
    }

    fn slots(&self) -> Vec<String> {
        self.ram.names(Path::new("/store/derl/slots")).unwrap()
    }
}

fn built_in() -> Version {
    Bundle::built_in_version(TASK).unwrap()
}

// --- what is taken ----------------------------------------------------------------------------------------------------

#[test]
fn a_signed_newer_bundle_is_tried_against_the_present_one_put_in_place_and_on_trial() {
    let device = Device::new();
    assert_eq!(device.runs(), (built_in(), false));
    let installed = device.install(5).unwrap();
    assert_eq!((installed.version, installed.previous), (version(5), built_in()));
    assert_eq!(device.present.take(), None);
    assert_eq!(device.runs(), (version(5), true));
    assert_eq!(device.start("boot").bundle.model(), "model 5".repeat(200).as_bytes());
    device.store.keep(TASK, version(5)).unwrap();
    assert_eq!(device.install(6).unwrap().previous, version(5));
    assert_eq!(device.present.take(), Some("/store/derl/slots/0.1.5".into()));
}

#[test]
fn a_bundle_that_is_not_newer_than_every_one_before_it_is_refused_even_after_a_rollback() {
    let device = Device::with(5);
    let floor_of = |result: Result<Installed, InstallError>| match result {
        Err(InstallError::Version { floor, .. }) => floor,
        other => panic!("{other:?}"),
    };
    assert_eq!(floor_of(device.install(5)), version(5));
    device.install(7).unwrap();
    device.store.rollback(TASK, now()).unwrap();
    assert_eq!(device.runs(), (version(5), false));
    assert_eq!(floor_of(device.install(7)), version(7));
    assert_eq!(floor_of(device.install(6)), version(7));
    device.install(8).unwrap();
    let older_than_the_program = Device::new().install(built_in().patch);
    assert_eq!(floor_of(older_than_the_program), built_in());
}

#[test]
fn a_bundle_that_fails_its_self_test_changes_nothing_and_its_version_may_come_again() {
    let mut device = Device::with(5);
    device.self_test = Err("it does not find the face".into());
    let error = device.install(6).unwrap_err();
    assert!(matches!(&error, InstallError::SelfTest { .. }) && error.code() == "self_test", "{error}");
    assert_eq!((device.runs(), device.slots()), ((version(5), false), vec!["0.1.5".to_string()]));
    device.self_test = Ok(());
    device.install(6).unwrap();
}

#[test]
fn what_is_not_as_announced_or_expired_is_refused_with_the_code_of_the_contract() {
    let device = Device::new();
    let archive = device.archive(5);
    let code = |change: &dyn Fn(&mut Request)| {
        let mut request = device.request(&archive, "visaged:derl:0.1.5");
        change(&mut request);
        device.ask(request).unwrap_err().code()
    };
    assert_eq!(code(&|r| r.expected.size = Some(1)), "hash");
    assert_eq!(code(&|r| r.expected.sha256 = Some("00".repeat(32))), "hash");
    assert_eq!(code(&|r| r.expected.size = Some(100_001)), "too_large");
    assert_eq!(code(&|r| r.expected.task = Some(Task::Detector)), "invalid_args");
    assert_eq!(code(&|r| r.expected.version = Some(version(6))), "invalid_args");
    assert_eq!(code(&|r| r.expected.expires = Some(now())), "expired");
    assert_eq!(code(&|r| r.signature = Signer::new().sign(&archive, "visaged:derl:0.1.5")), "signature");
    assert_eq!(code(&|r| r.signature = device.signer.sign(&archive, "visaged:derl:0.1.6")), "invalid_args");
    assert_eq!(
        code(&|r| r.signature = device.signer.sign(&archive, "visaged:derl:0.1.5 expires:2026-01-01T00:00:00Z")),
        "expired"
    );
    assert_eq!(code(&|r| r.source = Source::File("/nowhere.tar".into())), "download");
    let damaged = tar_of(&[("manifest.toml", b"schema = 1")]);
    assert_eq!(device.ask(device.request(&damaged, "visaged:derl:0.1.5")).unwrap_err().code(), "malformed");
    let other_interface = archive_of(TASK, "0.9.0", Some(b"model"));
    assert_eq!(device.ask(device.request(&other_interface, "visaged:derl:0.9.0")).unwrap_err().code(), "version");
    let mut request = device.request(&archive, "visaged:derl:0.1.5");
    request.expected = Expected {
        task: Some(TASK),
        version: Some(version(5)),
        sha256: Some(sha256_hex(&archive).to_uppercase()),
        size: Some(archive.len() as u64),
        expires: Some("2027-01-01T00:00:00Z".parse().unwrap()),
    };
    device.ask(request).unwrap();
}

#[test]
fn a_clock_that_was_never_set_takes_no_archive_that_expires() {
    let device = Device::new();
    let archive = device.archive(5);
    let request = device.request(&archive, "visaged:derl:0.1.5 expires:2030-01-01T00:00:00Z");
    let cancel = AtomicBool::new(false);
    let control = Control { cancel: &cancel, progress: &|_| (), pause: &|_| () };
    let result = device.store.install(request, &Verdict(Ok(()), &device.present), Timestamp::UNIX_EPOCH, control);
    assert!(matches!(result, Err(InstallError::ClockNotSet { .. })), "{result:?}");
}

#[test]
fn without_a_key_and_beside_another_installation_nothing_is_installed() {
    let device = Device::with(5);
    let _other = device.store.install_lock().unwrap();
    assert_eq!(device.install(6).unwrap_err().code(), "busy");
    let settings = StoreSettings { keys: Vec::new(), ..device.store.settings.clone() };
    let keyless = Device { store: Store::on(Arc::new(device.ram.clone()), &settings), ..Device::new() };
    assert!(matches!(keyless.install(6), Err(InstallError::Seal(SealError::NoKeys))));
}

#[test]
fn an_installation_that_is_stopped_at_any_point_changes_nothing() {
    for stop_at in [Progress::Verifying, Progress::Unpacking, Progress::Testing] {
        let device = Device::with(5);
        let request = device.request(&device.archive(6), "visaged:derl:0.1.6");
        let cancel = AtomicBool::new(false);
        let stop = |progress| cancel.store(progress == stop_at || cancel.load(Ordering::Relaxed), Ordering::Relaxed);
        let control = Control { cancel: &cancel, progress: &stop, pause: &|_| () };
        let result = device.store.install(request, &Verdict(Ok(()), &device.present), now(), control);
        assert!(matches!(result, Err(InstallError::Cancelled)), "{result:?}");
        assert_eq!((device.runs(), device.slots()), ((version(5), false), vec!["0.1.5".to_string()]));
    }
}

// --- trials -----------------------------------------------------------------------------------------------------------

#[test]
fn a_daemon_that_ends_without_a_word_during_a_trial_starts_with_the_former_bundle_and_says_so_once() {
    let device = Device::with(5);
    device.install(6).unwrap();
    assert!(device.start("boot").on_trial);
    let again = device.start("boot");
    assert_eq!((again.bundle.version(), again.on_trial), (version(5), false));
    assert!(again.notes.iter().any(|note| note.contains("0.1.6 was given up, 0.1.5 runs")), "{:?}", again.notes);
    assert_eq!(device.store.standing(TASK, version(5)).unwrap(), Standing::Kept);
    assert!(matches!(device.store.standing(TASK, version(6)).unwrap(), Standing::GivenUp(_)));
    assert_eq!((device.start("boot").notes, device.slots()), (Vec::new(), vec!["0.1.5".to_string()]));
}

#[test]
fn a_machine_that_goes_down_during_a_trial_is_forgiven_twice() {
    let device = Device::with(5);
    device.install(6).unwrap();
    for boot in ["a", "b", "c"] {
        assert!(device.start(boot).on_trial);
    }
    assert_eq!(device.start("d").bundle.version(), version(5));
}

#[test]
fn a_daemon_that_is_told_to_stop_during_a_trial_goes_on_with_it_however_often() {
    let device = Device::with(5);
    device.install(6).unwrap();
    for _ in 0..10 {
        assert!(device.start("boot").on_trial);
        device.store.stand_down(TASK, version(6)).unwrap();
    }
    assert_eq!(device.store.standing(TASK, version(6)).unwrap(), Standing::OnTrial);
}

#[test]
fn a_bundle_installed_over_one_on_trial_keeps_the_last_good_one() {
    let device = Device::with(5);
    device.install(6).unwrap();
    assert!(device.start("boot").on_trial);
    assert_eq!(device.install(7).unwrap().previous, version(6));
    assert!(device.start("boot").on_trial);
    assert_eq!(device.start("boot").bundle.version(), version(5));
}

#[test]
fn what_is_kept_given_up_or_stood_down_is_the_version_that_was_meant() {
    let device = Device::with(5);
    device.install(6).unwrap();
    device.store.keep(TASK, version(5)).unwrap();
    device.store.give_up(TASK, version(5), "no", now()).unwrap();
    assert_eq!(device.runs(), (version(6), true));
    device.store.give_up(TASK, version(6), "stage expression panicked", now()).unwrap();
    assert_eq!(device.store.standing(TASK, version(6)).unwrap(), Standing::GivenUp("stage expression panicked".into()));
    assert!(device.start("boot").notes[0].contains("stage expression panicked"));
}

#[test]
fn rolling_back_ends_at_the_bundle_inside_the_program() {
    let device = Device::with(5);
    device.install(6).unwrap();
    device.store.keep(TASK, version(6)).unwrap();
    let back = |from: Version, to: Version| {
        let rolled = device.store.rollback(TASK, now()).unwrap();
        assert_eq!((rolled.previous, rolled.version), (from, to));
        assert_eq!(device.start("boot").notes, [""; 0], "whoever rolled back knows");
        assert_eq!(device.runs(), (to, false));
    };
    back(version(6), version(5));
    back(version(5), built_in());
    assert!(matches!(device.store.rollback(TASK, now()), Err(StoreError::NothingBefore(_))));
    assert!(device.slots().is_empty());
    assert!(matches!(Device::new().store.rollback(TASK, now()), Err(StoreError::NothingBefore(_))));
}

#[test]
fn the_list_shows_what_is_in_place_what_was_before_and_what_was_given_up() {
    let device = Device::with(5);
    device.install(6).unwrap();
    let shown = || {
        let listed = device.store.list(TASK).unwrap();
        listed.iter().map(|l| (l.place, l.state, l.version.patch)).collect::<Vec<_>>()
    };
    assert_eq!(shown(), [(Place::Current, SlotState::Trial, 6), (Place::Previous, SlotState::Good, 5)]);
    device.store.give_up(TASK, version(6), "no", now()).unwrap();
    assert_eq!(shown(), [(Place::Current, SlotState::Good, 5), (Place::Removed, SlotState::Bad, 6)]);
    assert!(Device::new().store.list(TASK).unwrap().is_empty());
}

// --- faults of the disk -------------------------------------------------------------------------------------------------

#[test]
fn a_slot_that_went_bad_is_passed_over_for_the_last_good_one_and_then_for_the_built_in_one() {
    let device = Device::with(5);
    device.install(6).unwrap();
    device.store.keep(TASK, version(6)).unwrap();
    device.ram.write(Path::new("/store/derl/slots/0.1.6/model.onnx"), b"rot").unwrap();
    let started = device.start("boot");
    assert_eq!((started.bundle.version(), started.notes.len()), (version(5), 1), "{:?}", started.notes);
    device.ram.write(Path::new("/store/derl/slots/0.1.5/manifest.toml"), b"rot").unwrap();
    let started = device.start("boot");
    assert_eq!((started.bundle.version(), started.notes.len()), (built_in(), 2), "{:?}", started.notes);
}

#[test]
fn a_manifest_that_is_another_than_the_signed_one_is_refused() {
    let device = Device::with(5);
    let path = Path::new("/store/derl/slots/0.1.5/manifest.toml");
    let mut text = device.ram.read(path, 100_000).unwrap();
    text.push(b'\n');
    device.ram.write(path, &text).unwrap();
    assert_eq!(device.runs().0, built_in());
}

#[test]
fn a_trial_that_cannot_be_counted_is_not_begun() {
    let device = Device::with(5);
    device.install(6).unwrap();
    device.ram.world().room = Some(0);
    let started = device.start("boot");
    assert_eq!((started.bundle.version(), started.on_trial, started.notes.len()), (version(5), false, 1));
    device.ram.world().room = None;
    assert!(device.start("boot").on_trial);
}

#[test]
fn a_state_that_makes_no_sense_is_put_aside_and_the_newest_version_still_known() {
    let device = Device::with(5);
    for text in ["", "{}", "{\"schema\": 2}", "nonsense"] {
        device.ram.write(Path::new("/store/derl/state.json"), text.as_bytes()).unwrap();
        let started = device.start("boot");
        assert_eq!((started.bundle.version(), started.notes.len()), (built_in(), 1), "{text}");
        assert!(matches!(device.install(5), Err(InstallError::Version { .. })), "{text}");
    }
    device.install(6).unwrap();
    assert!(device.ram.read(Path::new("/store/derl/state.corrupt"), 100).is_ok());
}

#[test]
fn a_full_disk_at_any_point_of_an_installation_changes_nothing() {
    let device = Device::with(5);
    let used = device.ram.world().used();
    for room in (0..200_000).step_by(397) {
        device.ram.world().room = Some(used + room);
        let result = device.install(6);
        let Err(error) = result else { return assert!(room > SLACK_BYTES) };
        assert!(matches!(error.code(), "storage"), "{error}");
        assert_eq!((device.runs(), device.ram.world().used()), ((version(5), false), used), "{room}");
    }
    panic!("never installed");
}

#[test]
fn the_store_never_holds_more_than_two_slots_and_a_candidate() {
    let device = Device::with(5);
    for patch in 6..10 {
        device.install(patch).unwrap();
        assert!(device.slots().len() <= 2, "{:?}", device.slots());
        device.store.keep(TASK, version(patch)).unwrap();
    }
    assert_eq!(device.slots(), ["0.1.8", "0.1.9"]);
    assert!(device.ram.find_candidate().is_none());
}

impl Ram {
    fn find_candidate(&self) -> Option<Inode> {
        self.world().find(Path::new("/store/derl/candidate")).ok()
    }
}

#[test]
fn a_power_cut_at_any_step_leaves_the_old_bundle_or_the_new_one_on_trial() {
    // From nothing, and over a bundle that is there.
    for first in [None, Some(5)] {
        let old = first.map_or_else(built_in, version);
        for fuse in 0.. {
            let mut survived = false;
            for seed in [1, 77, 4242, 990_001] {
                let device = first.map_or_else(Device::new, Device::with);
                device.ram.world().fuse = Some(fuse);
                survived = device.install(6).is_ok();
                device.ram.cut_power(seed);
                let (runs, on_trial) = device.runs();
                assert!((runs, on_trial) == (old, false) || (runs, on_trial) == (version(6), true), "{fuse}: {runs}");
                assert!(!survived || runs == version(6), "{fuse}: an installation that was done is undone");
                let started = device.start("boot");
                assert_eq!((started.bundle.version(), started.notes), (runs, Vec::new()), "{fuse}");
                device.install(7).unwrap();
                assert!(device.start("boot").on_trial && device.slots().len() <= 2);
                assert_eq!(device.start("boot").bundle.version(), if on_trial { old } else { runs });
            }
            if survived {
                assert!(fuse > 15, "{fuse}");
                break;
            }
        }
    }
}

#[test]
fn a_power_cut_while_a_bundle_is_given_up_or_rolled_back_leaves_one_of_both() {
    for fuse in 0..40 {
        for seed in [3, 99, 123_456] {
            let device = Device::with(5);
            device.install(6).unwrap();
            assert!(device.start("a").on_trial);
            device.ram.world().fuse = Some(fuse);
            let _ = if seed == 3 {
                device.store.rollback(TASK, now()).map(drop)
            } else {
                device.store.give_up(TASK, version(6), "no", now())
            };
            device.ram.cut_power(seed);
            let (runs, on_trial) = device.runs();
            assert!(
                (runs, on_trial) == (version(5), false) || (runs, on_trial) == (version(6), true),
                "{fuse}: {runs}"
            );
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Install { passes: bool },
    Start { same_boot: bool },
    Keep,
    StandDown,
    GiveUp,
    Rollback,
    CutPower { seed: u64, after: u64 },
    Full(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(|passes| Step::Install { passes }),
        4 => any::<bool>().prop_map(|same_boot| Step::Start { same_boot }),
        3 => Just(Step::Keep),
        2 => Just(Step::StandDown),
        1 => Just(Step::GiveUp),
        1 => Just(Step::Rollback),
        3 => (any::<u64>(), 0_u64..40).prop_map(|(seed, after)| Step::CutPower { seed, after }),
        1 => any::<bool>().prop_map(Step::Full),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever happens in whatever order: a bundle runs, it was proven or is on trial, and no version comes twice.
    #[test]
    fn in_any_order_of_events_a_good_bundle_runs_and_the_floor_never_sinks(steps in proptest::collection::vec(step(), 1..40)) {
        let mut device = Device::new();
        let mut proven = BTreeSet::from([built_in()]);
        let (mut done, mut next, mut boot) = (built_in(), 2, 0);
        for step in steps {
            let (current, on_trial) = device.runs();
            match step {
                Step::Install { passes } => {
                    device.self_test = if passes { Ok(()) } else { Err("no".into()) };
                    if device.install(next).is_ok() {
                        prop_assert!(passes);
                        done = version(next);
                    }
                    next += 1;
                    prop_assert!(device.install(done.patch).is_err(), "{done} twice");
                }
                Step::Start { same_boot } => {
                    boot += u64::from(!same_boot);
                    device.start(&boot.to_string());
                }
                Step::Keep if on_trial => {
                    if device.store.keep(TASK, current).is_ok() {
                        proven.insert(current);
                    }
                }
                Step::Keep => {}
                Step::StandDown => drop(device.store.stand_down(TASK, current)),
                Step::GiveUp => drop(device.store.give_up(TASK, current, "no", now())),
                Step::Rollback => drop(device.store.rollback(TASK, now())),
                Step::CutPower { seed, after } => {
                    device.ram.world().fuse = Some(after);
                    device.self_test = Ok(());
                    if device.install(next).is_ok() {
                        done = version(next);
                        // On disk it may be kept although the power went before that was said.
                        let _ = device.store.keep(TASK, done);
                        proven.insert(done);
                    }
                    next += 1;
                    device.ram.cut_power(seed);
                    boot += 1;
                }
                Step::Full(full) => device.ram.world().room = full.then_some(0),
            }
            let (runs, on_trial) = device.runs();
            prop_assert!(on_trial || proven.contains(&runs), "{runs} runs and was never proven");
            prop_assert!(device.slots().len() <= 4);
        }
    }
}
