//! `visaged models list|verify`: the bundles inside the binary and in folders.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Failure, settings};
use crate::expression::Reading;
use crate::expression::derl::{Derl, DerlModel};
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::frame::RgbImage;
use crate::models::{Bundle, Task};
use crate::nn::{Plan, Settings};

/// Bundles in place of the built-in ones.
#[derive(Clone, Debug, Default, Args)]
pub struct BundleArgs {
    /// Folder of a detector bundle to use in place of the built-in one
    #[arg(long, value_name = "DIR")]
    pub detector: Option<PathBuf>,
    /// Folder of a derl bundle to use in place of the built-in one
    #[arg(long, value_name = "DIR")]
    pub derl: Option<PathBuf>,
}

impl BundleArgs {
    /// The detector's network.
    ///
    /// # Errors
    /// [`Failure`] with exit 1 where the bundle is refused.
    pub fn detector_model(&self) -> Result<DetectorModel, Failure> {
        let bundle = Bundle::load(Task::Detector, self.detector.as_deref()).map_err(Failure::failed)?;
        DetectorModel::new(bundle, settings()?).map_err(Failure::failed)
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

/// Show or verify model bundles.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  visaged models list                     the bundles inside this binary
  visaged models verify                   verify them: hashes, shapes, a run of each network
  visaged models verify /srv/derl-0.1.3   verify a bundle before it is configured")]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// List bundles with version, licence and measured accuracy
    List(BundlePaths),
    /// Verify hashes, versions and shapes, and run each network once
    Verify(BundlePaths),
}

#[derive(Debug, Args)]
struct BundlePaths {
    /// Folders of bundles; without any, the bundles inside this binary
    #[arg(value_name = "DIR")]
    paths: Vec<PathBuf>,
    /// One JSON line a bundle
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    origin: String,
    name: Option<&'a str>,
    task: Option<Task>,
    version: Option<&'a str>,
    licence: Option<&'a str>,
    sha256: Option<&'a str>,
    bytes: Option<usize>,
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

/// Lists or verifies.
///
/// # Errors
/// [`Failure`], exit 1, where a bundle is refused; every bundle is looked at all the same. Exit 2 where the environment names no kernels.
pub fn run(args: &ModelsArgs) -> Result<(), Failure> {
    let nn = settings()?;
    let (paths, verify) = match &args.command {
        ModelsCommand::List(paths) => (paths, false),
        ModelsCommand::Verify(paths) => (paths, true),
    };
    let bundles = if paths.paths.is_empty() {
        Task::ALL.map(|task| (format!("built-in {task}"), Bundle::built_in(task))).into()
    } else {
        paths.paths.iter().map(|path| (path.display().to_string(), Bundle::open(path))).collect::<Vec<_>>()
    };
    let mut refused = false;
    for (origin, bundle) in bundles {
        let bundle = bundle.map_err(Failure::failed);
        let tried = match &bundle {
            Ok(bundle) => try_out(bundle, nn, verify),
            Err(_) => Ok(None),
        };
        let error = bundle.as_ref().err().or(tried.as_ref().err());
        refused |= error.is_some();
        let int8 = tried.as_ref().ok().cloned().flatten();
        let line = line(origin, bundle.as_ref().ok(), int8, verify, error);
        match print(&line, paths.json) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(Failure::failed)?,
        }
    }
    if refused { Err(Failure::reported()) } else { Ok(()) }
}

fn line<'a>(
    origin: String,
    bundle: Option<&'a Bundle>,
    int8: Option<Int8>,
    verify: bool,
    error: Option<&Failure>,
) -> Line<'a> {
    let manifest = bundle.map(Bundle::manifest);
    Line {
        origin,
        name: manifest.map(|m| m.name.as_str()),
        task: manifest.map(|m| m.task),
        version: manifest.map(|m| m.version.as_str()),
        licence: manifest.map(|m| m.licence.as_str()),
        sha256: bundle.map(Bundle::model_sha256),
        bytes: bundle.map(|b| b.model().len()),
        accuracy: manifest.map_or(&[], |m| &m.accuracy),
        int8,
        verified: verify.then_some(error.is_none()),
        error: error.map(ToString::to_string),
    }
}

fn print(line: &Line<'_>, json: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut stdout, line)?;
        return writeln!(stdout);
    }
    if let Some(error) = &line.error {
        eprintln!("visaged: {error}");
        return Ok(());
    }
    let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
    let state = if line.verified == Some(true) { "  verified" } else { "" };
    writeln!(
        stdout,
        "{}: {} {}, {}, {} KiB, sha256 {}{state}",
        line.origin,
        text(line.name),
        text(line.version),
        text(line.licence),
        line.bytes.unwrap_or(0) / 1024,
        text(line.sha256),
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

/// The sides of the canvas for which `models` prepares a detector.
const CANVAS_PX: (usize, usize) = (320, 256);

/// Prepares the network, runs it once where it is to be verified, and says what of it runs in int8.
fn try_out(bundle: &Bundle, nn: Settings, verify: bool) -> Result<Option<Int8>, Failure> {
    let grey = RgbImage { width_px: 128, height_px: 128, data: vec![128; 3 * 128 * 128] };
    match bundle.manifest().task {
        Task::Detector => {
            let model = DetectorModel::new(bundle.clone(), nn).map_err(Failure::failed)?;
            if verify {
                let mut detector = Detector::new(&model, DetectOptions::still(&model));
                detector.detect(&grey, &mut Vec::new()).map_err(Failure::failed)?;
            }
            Ok(Int8::of(&model.plan(CANVAS_PX.0, CANVAS_PX.1).map_err(Failure::failed)?))
        }
        Task::Derl => {
            let model = DerlModel::new(bundle.clone(), nn).map_err(Failure::failed)?;
            if verify {
                let mut derl = Derl::new(&model).map_err(Failure::failed)?;
                derl.read_crop(&grey, &mut Reading::default()).map_err(Failure::failed)?;
            }
            Ok(Int8::of(model.plan()))
        }
    }
}
