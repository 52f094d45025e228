//! `visaged models`: the bundles inside the binary, in folders, and installed on this device.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use super::owner::become_owner_of;
use super::{Failure, settings};
use crate::config::{Config, ModelsConfig};
use crate::daemon::installer::pause;
use crate::expression::derl::DerlModel;
use crate::face::detect::DetectorModel;
use crate::models::archive;
use crate::models::store::{
    Control, Expected, InstallError, Installed, Listed, Place, Progress, Request, SlotState, Source, StoreError,
};
use crate::models::{Bundle, Store, StoreSettings, Task, Version};
use crate::nn::{Plan, Settings};
use crate::selftest::{self, InAnotherProcess};
use crate::synthesis::identity::IdentityModel;
use crate::synthesis::makeup::{Makeup, MakeupModel};

/// Bundles in place of the built-in ones.
#[derive(Clone, Debug, Default, Args)]
pub struct BundleArgs {
    #[command(flatten)]
    detector: DetectorArgs,
    /// Folder of a derl bundle to use in place of the built-in one
    #[arg(long, value_name = "DIR")]
    pub derl: Option<PathBuf>,
}

/// A detector in place of the built-in one.
#[derive(Clone, Debug, Default, Args)]
pub struct DetectorArgs {
    /// Folder of a detector bundle to use in place of the built-in one
    #[arg(long, value_name = "DIR")]
    pub detector: Option<PathBuf>,
}

impl DetectorArgs {
    /// The detector's network.
    ///
    /// # Errors
    /// [`Failure`] with exit 1 where the bundle is refused.
    pub fn model(&self) -> Result<DetectorModel, Failure> {
        let bundle = Bundle::load(Task::Detector, self.detector.as_deref()).map_err(Failure::failed)?;
        DetectorModel::new(bundle, settings()?).map_err(Failure::failed)
    }
}

/// The bundle of a task that the program can do without.
#[derive(Clone, Debug, Default, Args)]
pub struct OptionalBundle {
    /// Folder of a bundle to use in place of the one that is installed or built in
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
}

impl OptionalBundle {
    /// The bundle: of the folder that was named, else the one that is installed, where this user may read it, else the one inside
    /// the program.
    ///
    /// # Errors
    /// [`Failure`] with exit 1 where there is none, or it is refused.
    pub fn load(&self, task: Task) -> Result<Bundle, Failure> {
        if let Some(folder) = &self.bundle {
            return Bundle::load(task, Some(folder)).map_err(Failure::failed);
        }
        let config = std::env::var_os("VISAGED_CONFIG").map(PathBuf::from);
        let models = Config::load(config.as_deref(), std::env::vars()).map_err(Failure::usage)?.models;
        match &models.store {
            Some(store) => Store::new(store).look(task).map(|found| found.bundle).map_err(Failure::failed),
            None => Bundle::load(task, None).map_err(Failure::failed),
        }
    }
}

impl BundleArgs {
    /// The detector's network.
    ///
    /// # Errors
    /// [`Failure`] with exit 1 where the bundle is refused.
    pub fn detector_model(&self) -> Result<DetectorModel, Failure> {
        self.detector.model()
    }

    /// The network for de-expression.
    ///
    /// # Errors
    /// [`Failure`] with exit 1 where the bundle is refused.
    pub fn derl_model(&self) -> Result<DerlModel, Failure> {
        let bundle = Bundle::load(Task::Derl, self.derl.as_deref()).map_err(Failure::failed)?;
        DerlModel::new(bundle, settings()?).map_err(Failure::failed)
    }
}

/// Show, verify, pack, install and roll back model bundles.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  visaged models list                     what is installed on this device, and the bundles inside this binary
  visaged models verify                   verify all of these: hashes, shapes, a self-test of each network
  visaged models verify /srv/derl-0.1.3   verify a folder before it is configured or packed
  visaged models pack /srv/derl-0.1.3 -o derl-0.1.3.tar
  minisign -S -H -m derl-0.1.3.tar -t visaged:derl:0.1.3
  visaged models install derl-0.1.3.tar   with derl-0.1.3.tar.minisig beside it
  visaged models install https://models.example.com/derl-0.1.3.tar --signature derl-0.1.3.tar.minisig
  visaged models rollback derl            return to the last good one")]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// List bundles with version, place, state and measured accuracy
    List(ListArgs),
    /// Verify hashes, versions and shapes, and try each network on pictures
    Verify(VerifyArgs),
    /// Make one file of a bundle's folder, to be signed and installed
    Pack(PackArgs),
    /// Install a signed bundle: it is tried at once, and on trial from the daemon's next start
    Install(InstallArgs),
    /// Return to the last good bundle from the daemon's next start
    Rollback(RollbackArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// TOML file with [models]; without one the defaults hold
    #[arg(long, short, value_name = "FILE", env = "VISAGED_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn models(&self) -> Result<ModelsConfig, Failure> {
        Ok(Config::load(self.config.as_deref(), std::env::vars()).map_err(Failure::usage)?.models)
    }

    /// The settings of the store that there has to be.
    fn store(&self) -> Result<(StoreSettings, ModelsConfig), Failure> {
        let models = self.models()?;
        let settings = models.store.clone().ok_or(NoStore).map_err(Failure::usage)?;
        Ok((settings, models))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("models.store = \"\": there is no store: name a folder, such as /var/lib/visaged/bundles")]
struct NoStore;

#[derive(Debug, Args)]
struct ListArgs {
    /// Folders of bundles; without any, what is installed and the bundles inside this binary
    #[arg(value_name = "DIR")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON line a bundle
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Folders of bundles; without any, what is installed and the bundles inside this binary
    #[arg(value_name = "DIR")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON line a bundle
    #[arg(long)]
    json: bool,
    /// Take no more memory than a bundle may
    #[arg(long, hide = true)]
    confined: bool,
    /// Measure the time by the bundle in this folder, not by the one inside the binary
    #[arg(long, value_name = "DIR", hide = true)]
    against: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PackArgs {
    /// Folder of the bundle
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The archive
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct InstallArgs {
    /// An archive: a file, or an https:// or file:// address
    #[arg(value_name = "FILE|URL")]
    source: String,
    /// Its minisign signature [default: FILE.minisig]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON line with the result
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RollbackArgs {
    /// detector, derl, identity or makeup
    #[arg(value_name = "TASK", value_parser = task)]
    task: Task,
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON line with the result
    #[arg(long)]
    json: bool,
}

fn task(name: &str) -> Result<Task, String> {
    Task::from_name(name).ok_or_else(|| format!("there are {}", Task::names()))
}

/// One bundle, as it is listed.
#[derive(Debug, Serialize)]
struct Line<'a> {
    origin: String,
    name: Option<&'a str>,
    task: Option<Task>,
    version: Option<String>,
    licence: Option<&'a str>,
    sha256: Option<&'a str>,
    bytes: Option<usize>,
    /// `good`, `trial` or `bad`.
    state: SlotState,
    /// In the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
    /// The next start of the daemon takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_use: Option<bool>,
    accuracy: &'a [toml::Table],
    int8: Option<Int8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
    error: Option<String>,
}

/// What the int8 engine runs of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Int8 {
    /// Nodes that were lowered, and all that compute something.
    nodes_lowered: usize,
    nodes: usize,
    /// What they became.
    layers: usize,
    segments: usize,
    kernels: &'static str,
    /// Operations left to tract, and how often.
    left: BTreeMap<String, usize>,
}

impl Int8 {
    /// Of a plan of the int8 engine.
    pub(super) fn of(plan: &Plan) -> Option<Self> {
        let (lowering, isa) = (plan.lowering()?, plan.isa()?);
        let (nodes_lowered, nodes) = lowering.counts();
        let left = lowering.left().into_iter().map(|(op, count)| (op.to_owned(), count)).collect();
        let (layers, segments) = (plan.layers().count(), lowering.segments);
        Some(Self { nodes_lowered, nodes, layers, segments, kernels: isa.name(), left })
    }
}

impl std::fmt::Display for Int8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { nodes_lowered, nodes, layers, kernels, .. } = self;
        write!(f, "int8: {nodes_lowered} of {nodes} nodes as {layers} layers, kernels {kernels}")?;
        for (i, (op, count)) in self.left.iter().enumerate() {
            write!(f, "{}{op} x{count}", if i == 0 { "; left to tract: " } else { ", " })?;
        }
        Ok(())
    }
}

/// A bundle that is to be shown.
struct Shown {
    origin: String,
    /// `None` where it is gone.
    bundle: Option<Result<Bundle, Failure>>,
    state: SlotState,
    place: Option<Place>,
    in_use: Option<bool>,
    version: Option<String>,
    reason: Option<String>,
}

impl Shown {
    fn of(origin: String, bundle: Result<Bundle, Failure>) -> Self {
        let state = if bundle.is_ok() { SlotState::Good } else { SlotState::Bad };
        Self { origin, bundle: Some(bundle), state, place: None, in_use: None, version: None, reason: None }
    }

    fn folder(path: &Path) -> Self {
        Self::of(path.display().to_string(), Bundle::open(path).map_err(Failure::failed))
    }

    /// `None` where the program was built without it.
    fn built_in(task: Task) -> Option<Self> {
        let bundle = || Bundle::built_in(task).map_err(Failure::failed);
        Bundle::is_built_in(task).then(|| Self::of(format!("built-in {task}"), bundle()))
    }

    fn installed(task: Task, listed: Listed) -> Self {
        Self {
            origin: format!("installed {task}"),
            bundle: listed.bundle.map(|bundle| bundle.map_err(Failure::failed)),
            state: listed.state,
            place: Some(listed.place),
            in_use: Some(false),
            version: Some(listed.version.to_string()),
            reason: listed.reason,
        }
    }

    /// Of the bundles that can be used, the first one is.
    fn use_first(mut shown: Vec<Self>) -> Vec<Self> {
        shown.iter_mut().for_each(|one| one.in_use = Some(false));
        if let Some(first) = shown.iter_mut().find(|one| matches!(one.bundle, Some(Ok(_)))) {
            first.in_use = Some(true);
        }
        shown
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure`], exit 1, where a bundle is refused (every bundle that is to be shown is looked at all the same) or could not be
/// installed; exit 2 where the configuration is wrong or the environment names no kernels.
pub fn run(args: &ModelsArgs) -> Result<(), Failure> {
    match &args.command {
        ModelsCommand::List(args) => list(args),
        ModelsCommand::Verify(args) => verify(args),
        ModelsCommand::Pack(args) => pack(args),
        ModelsCommand::Install(args) => install(args),
        ModelsCommand::Rollback(args) => rollback(args),
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let nn = settings()?;
    let shown = match args.paths.is_empty() {
        false => args.paths.iter().map(|path| Shown::folder(path)).collect(),
        true => of_this_device(&args.config.models()?)?,
    };
    show(shown, args.json, None, |bundle| prepared(bundle, nn))
}

/// For each task what is configured, installed and built in: the best first.
fn of_this_device(config: &ModelsConfig) -> Result<Vec<Shown>, Failure> {
    let store = config.store.as_ref().map(Store::new);
    let mut all = Vec::new();
    for task in Task::ALL {
        let mut shown: Vec<Shown> = config.folder(task).into_iter().map(Shown::folder).collect();
        match store.as_ref().map(|store| store.list(task)) {
            None => {}
            Some(Ok(listed)) => shown.extend(listed.into_iter().map(|listed| Shown::installed(task, listed))),
            // This user may not read it, the daemon may: what is in use is not known then.
            Some(Err(error)) => {
                all.push(Shown::of(format!("installed {task}"), Err(Failure::failed(error))));
                all.extend(Shown::built_in(task));
                continue;
            }
        }
        shown.extend(Shown::built_in(task));
        all.extend(Shown::use_first(shown));
    }
    Ok(all)
}

fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    if args.confined {
        confine();
    }
    let nn = settings()?;
    let shown = match args.paths.is_empty() {
        true => of_this_device(&args.config.models()?)?,
        false => args.paths.iter().map(|path| Shown::folder(path)).collect(),
    };
    show(shown, args.json, Some(()), |bundle| {
        let int8 = prepared(bundle, nn)?;
        let task = bundle.manifest().task;
        let present = match &args.against {
            // With no other to be measured by, it is its own measure.
            None if !Bundle::is_built_in(task) => Ok(bundle.clone()),
            against => Bundle::load(task, against.as_deref()),
        };
        let present = present.map_err(Failure::failed)?;
        selftest::run(bundle, &present, nn).map_err(Failure::failed)?;
        Ok(int8)
    })
}

/// A bundle that takes more ends this process, and no other one.
fn confine() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Some(selftest::MEMORY_BYTES);
    if let Err(error) = setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit }) {
        tracing::debug!(%error, "no limit on memory");
    }
}

fn show(
    shown: Vec<Shown>,
    json: bool,
    verify: Option<()>,
    look: impl Fn(&Bundle) -> Result<Option<Int8>, Failure>,
) -> Result<(), Failure> {
    let mut refused = false;
    for one in shown {
        let looked = match &one.bundle {
            Some(Ok(bundle)) => look(bundle),
            _ => Ok(None),
        };
        let refusal = one.bundle.as_ref().and_then(|bundle| bundle.as_ref().err()).or(looked.as_ref().err());
        refused |= refusal.is_some();
        let error = refusal.map(ToString::to_string).or_else(|| one.reason.clone());
        let int8 = looked.as_ref().ok().cloned().flatten();
        let verified = verify.filter(|()| one.bundle.is_some()).map(|()| refusal.is_none());
        let line = line(&one, int8, verified, error);
        match print(&line, json) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(Failure::failed)?,
        }
    }
    if refused { Err(Failure::reported()) } else { Ok(()) }
}

fn line(one: &Shown, int8: Option<Int8>, verified: Option<bool>, error: Option<String>) -> Line<'_> {
    let bundle = one.bundle.as_ref().and_then(|bundle| bundle.as_ref().ok());
    let manifest = bundle.map(Bundle::manifest);
    Line {
        origin: one.origin.clone(),
        name: manifest.map(|m| m.name.as_str()),
        task: manifest.map(|m| m.task),
        version: manifest.map(|m| m.version.clone()).or_else(|| one.version.clone()),
        licence: manifest.map(|m| m.licence.as_str()),
        sha256: bundle.map(Bundle::model_sha256),
        bytes: bundle.map(|b| b.model().len()),
        state: one.state,
        place: one.place,
        in_use: one.in_use,
        accuracy: manifest.map_or(&[], |m| &m.accuracy),
        int8,
        verified,
        error,
    }
}

fn print(line: &Line<'_>, json: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut stdout, line)?;
        return writeln!(stdout);
    }
    let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
    let version = text(line.version.as_deref());
    match (&line.error, line.place) {
        (Some(reason), Some(Place::Removed)) => {
            return writeln!(stdout, "{} {version}: given up: {reason}", line.origin);
        }
        (Some(error), _) => {
            eprintln!("visaged: {error}");
            return Ok(());
        }
        (None, _) => {}
    }
    writeln!(
        stdout,
        "{}: {} {version}, {}, {} KiB, sha256 {}{}",
        line.origin,
        text(line.name),
        text(line.licence),
        line.bytes.unwrap_or(0) / 1024,
        text(line.sha256),
        remarks(line),
    )?;
    if let Some(int8) = &line.int8 {
        writeln!(stdout, "    {int8}")?;
    }
    for entry in line.accuracy {
        let given = |key: &str| entry.get(key).map(|v| v.to_string().trim_matches('"').to_owned());
        let value = |key: &str| given(key).unwrap_or_default();
        let float = given("float").map(|float| format!(", float {float}")).unwrap_or_default();
        writeln!(stdout, "    {} {}: int8 {}{float}", value("dataset"), value("metric"), value("int8"))?;
    }
    stdout.flush()
}

fn remarks(line: &Line<'_>) -> String {
    let remarks = [
        (line.verified == Some(true), "  verified"),
        (line.in_use == Some(true), "  in use"),
        (line.state == SlotState::Trial, "  on trial"),
        (line.place == Some(Place::Previous), "  previous"),
    ];
    remarks.into_iter().filter_map(|(holds, remark)| holds.then_some(remark)).collect()
}

/// The sides of the canvas for which `models` prepares a detector.
const CANVAS_PX: (usize, usize) = (320, 256);

/// Prepares the network, and says what of it runs in int8.
fn prepared(bundle: &Bundle, nn: Settings) -> Result<Option<Int8>, Failure> {
    match bundle.manifest().task {
        Task::Detector => {
            let model = DetectorModel::new(bundle.clone(), nn).map_err(Failure::failed)?;
            Ok(Int8::of(&model.plan(CANVAS_PX.0, CANVAS_PX.1).map_err(Failure::failed)?))
        }
        Task::Derl => Ok(Int8::of(DerlModel::new(bundle.clone(), nn).map_err(Failure::failed)?.plan())),
        Task::Identity => Ok(Int8::of(IdentityModel::new(bundle.clone(), nn).map_err(Failure::failed)?.plan())),
        Task::Makeup => {
            // Both halves; what is shown is the larger one, which needs a reference.
            MakeupModel::new(bundle.clone(), Makeup::Bare, nn).map_err(Failure::failed)?;
            Ok(Int8::of(MakeupModel::new(bundle.clone(), Makeup::Applied, nn).map_err(Failure::failed)?.plan()))
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{}: {source}: {hint}", path.display())]
struct FileError {
    path: PathBuf,
    source: io::Error,
    hint: &'static str,
}

fn pack(args: &PackArgs) -> Result<(), Failure> {
    let (bundle, archive) = archive::pack(&args.folder).map_err(Failure::failed)?;
    fs::write(&args.output, &archive).map_err(|source| {
        Failure::failed(FileError { path: args.output.clone(), source, hint: "name a file that can be written" })
    })?;
    let (task, version) = (bundle.manifest().task, bundle.version());
    say(&format!(
        "{}: {task} {version}, {} bytes; sign it: minisign -S -H -m {0} -t visaged:{task}:{version}",
        args.output.display(),
        archive.len(),
    ))
}

/// The store, to be changed: as its owner.
fn to_change(settings: &StoreSettings) -> Result<Store, Failure> {
    let hint = "run this as root or as the daemon's user";
    become_owner_of(&settings.path)
        .map_err(|source| Failure::failed(FileError { path: settings.path.clone(), source, hint }))?;
    Ok(Store::new(settings))
}

fn install(args: &InstallArgs) -> Result<(), Failure> {
    let (settings, config) = args.config.store()?;
    let source = Source::parse(&args.source).map_err(Failure::usage)?;
    let signature = signature(args, &source)?;
    // Both as whoever calls: the daemon's user need not be able to read them.
    let source = source.read_file(settings.max_archive_bytes).map_err(Failure::failed)?;
    let store = to_change(&settings)?;
    let cancel = interrupt().map_err(Failure::failed)?;
    let control = Control { cancel: &cancel, progress: &tell, pause: &|time| pause(&cancel, time) };
    let test = InAnotherProcess { limit: selftest::LIMIT, cancel: &cancel };
    let request = Request { source, signature, expected: Expected::default() };
    let installed = store.install(request, &test, Timestamp::now(), control).map_err(refused)?;
    let Installed { version, previous, .. } = &installed;
    let task = installed.task.0;
    let before = before(*previous);
    let text = format!("{task} {version} is installed (before: {before}); on trial from the next start of the daemon");
    result(&installed, text, &config, args.json)
}

fn before(version: Version) -> String {
    if version == Version::NONE { "none".into() } else { version.to_string() }
}

/// Without a key nothing can be installed: that is a matter of configuration.
fn refused(error: InstallError) -> Failure {
    match error {
        InstallError::Seal(crate::models::seal::SealError::NoKeys) => Failure::usage(error),
        error => Failure::failed(error),
    }
}

fn signature(args: &InstallArgs, source: &Source) -> Result<String, Failure> {
    let path = match (&args.signature, source) {
        (Some(path), _) => path.clone(),
        (None, Source::File(path)) => {
            let mut path = path.clone().into_os_string();
            path.push(".minisig");
            path.into()
        }
        (None, _) => return Err(Failure::usage(NoSignature)),
    };
    let hint = match source {
        Source::File(file) if file.is_dir() => {
            "a folder is not installed: `visaged models pack` it, and sign the archive"
        }
        _ => "name the archive's minisign signature with --signature",
    };
    fs::read_to_string(&path).map_err(|source| Failure::failed(FileError { path, source, hint }))
}

#[derive(Debug, thiserror::Error)]
#[error("an archive from an address needs its signature: name the file with --signature")]
struct NoSignature;

/// SIGINT and SIGTERM end an installation, and nothing has changed.
fn interrupt() -> io::Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A second one ends the process at once.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&cancel))?;
        signal_hook::flag::register(signal, Arc::clone(&cancel))?;
    }
    Ok(cancel)
}

/// For whoever waits at a terminal; a download is told once.
fn tell(progress: Progress) {
    static DOWNLOAD_TOLD: AtomicBool = AtomicBool::new(false);
    match progress {
        Progress::Fetching { of, .. } if !DOWNLOAD_TOLD.swap(true, Ordering::Relaxed) => {
            let size = of.map(|bytes| format!(" {bytes} bytes")).unwrap_or_default();
            eprintln!("fetching{size}");
        }
        Progress::Testing => eprintln!("trying it on pictures"),
        Progress::Fetching { .. } | Progress::Verifying | Progress::Unpacking | Progress::Switching => {}
    }
}

fn rollback(args: &RollbackArgs) -> Result<(), Failure> {
    let (settings, config) = args.config.store()?;
    let store = to_change(&settings)?;
    let rolled = store.rollback(args.task, Timestamp::now()).map_err(|error: StoreError| Failure::failed(error))?;
    let (task, left) = (args.task, rolled.previous);
    let text = match rolled.version == Version::NONE {
        false => format!("{task} {} runs from the next start of the daemon (before: {left})", rolled.version),
        true => format!("no {task} bundle runs from the next start of the daemon (before: {left})"),
    };
    result(&rolled, text, &config, args.json)
}

/// What was done; and that it has no effect, where a folder is configured.
fn result(done: &Installed, text: String, config: &ModelsConfig, json: bool) -> Result<(), Failure> {
    if let Some(folder) = config.folder(done.task.0) {
        eprintln!("visaged: models.{} = {}: that bundle goes over the store", done.task.0, folder.display());
    }
    match json {
        true => say(&serde_json::to_string(done).map_err(Failure::failed)?),
        false => say(&text),
    }
}

fn say(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}
