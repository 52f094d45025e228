//! `visaged bench`: the time of every network by engine, of every stage, and from captured frame to published event, on this machine.
//!
//! Speeds are comparable only within one run: each network is given as a ratio to tract's float run of the same graph
//! beside it, in turns, so that a busy machine slows all of them alike.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use self::clip::OnePerson;
use super::models::Int8;
use super::{Failure, settings};
use crate::config::ModelsConfig;
use crate::daemon::{Models, StartError, Wanted};
use crate::expression::Reading;
use crate::expression::derl::{Derl, DerlModel, ReadError};
use crate::expression::smooth::{SmoothOptions, Smoother};
use crate::face::detect::{DetectError, DetectOptions, Detector, DetectorError, DetectorModel, Profile};
use crate::face::track::Tracker;
use crate::face::{AlignedFace, align};
use crate::frame::{ConvertError, Converter, RgbImage};
use crate::models::{Bundle, BundleError, Task};
use crate::nn::{Engine, Network, NnError, Plan, Settings};
use crate::synthesis::SynthesisError;
use crate::synthesis::generator::GeneratorModel;
use crate::synthesis::identity::IdentityModel;
use crate::synthesis::makeup::{Makeup, MakeupModel};
use crate::telemetry::{Percentiles, Stage, Telemetry};

mod clip;
mod try_on;
#[cfg(feature = "demo")]
mod way;

/// Time every network and every stage on this machine.
#[derive(Debug, Args)]
#[command(after_help = "Frames: the bundled clip's first person, scaled to 640x480 YUYV.

Example:
  visaged bench --json > bench.json
  visaged bench --layers      the int8 engine's layers too, one by one

The environment's VISAGED_INT8_ISA names other kernels than the fastest: VISAGED_INT8_ISA=scalar")]
pub struct BenchArgs {
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// Seconds for each of the three parts
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The time of each layer that the int8 engine runs
    #[arg(long)]
    layers: bool,
    /// A GIF, an MJPEG AVI or a folder with a face in it, in place of the bundled clip
    #[arg(long, value_name = "PATH")]
    clip: Option<PathBuf>,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The clip cannot be read.
    #[error(transparent)]
    Clip(#[from] crate::capture::CaptureError),
    /// The clip shows no face.
    #[error("{0}: no face in it: name a clip that shows one with --clip")]
    NoFace(String),
    /// This build has no clip inside.
    #[error("this build has no clip inside: name one with --clip")]
    NoClip,
    /// A bundle was refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The detector could not be prepared.
    #[error(transparent)]
    Detector(#[from] DetectorError),
    /// The detector failed.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The expression network failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A network failed.
    #[error(transparent)]
    Network(#[from] NnError),
    /// The identity or make-up network failed.
    #[error(transparent)]
    Synthesis(#[from] SynthesisError),
    /// A face could not be aligned.
    #[error(transparent)]
    Align(#[from] align::AlignError),
    /// A frame could not be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The daemon did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The broker inside did not start.
    #[cfg(feature = "demo")]
    #[error(transparent)]
    Broker(#[from] crate::mqtt::broker::BrokerError),
    /// A daemon that was measured failed.
    #[error(transparent)]
    Fatal(#[from] crate::daemon::Fatal),
    /// stdout was closed.
    #[error("stdout: {0}")]
    Output(#[from] std::io::Error),
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    board: String,
    networks: Vec<NetworkTime>,
    lowered: Vec<Lowered>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<LayerTime>,
    stages: Vec<StageTime>,
    /// One face made up and put back into a 640x480 frame; without a make-up bundle inside, none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    try_on: Vec<StageTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    way: Option<WayTime>,
}

/// One network at one size in one engine.
#[derive(Debug, Serialize)]
struct NetworkTime {
    bundle: String,
    input: String,
    engine: &'static str,
    median_ms: f64,
    runs: usize,
    /// Times the speed of `tract-float` on the same graph in the same run.
    speed_to_float: f64,
}

/// What the int8 engine runs of one network.
#[derive(Debug, Serialize)]
struct Lowered {
    bundle: &'static str,
    input: String,
    #[serde(flatten)]
    int8: Int8,
}

/// One layer of the int8 engine.
#[derive(Debug, Serialize)]
struct LayerTime {
    bundle: &'static str,
    input: String,
    name: String,
    kind: &'static str,
    kernel: (usize, usize),
    stride: (usize, usize),
    /// Rows, columns, channels.
    from: [usize; 3],
    to: [usize; 3],
    multiply_accumulates: u64,
    /// The mean over the runs.
    microseconds: f64,
}

#[derive(Debug, Serialize)]
struct StageTime {
    stage: &'static str,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

impl StageTime {
    fn new(stage: &'static str, p: Percentiles) -> Self {
        Self { stage, p50_ms: p.p50_ms, p95_ms: p.p95_ms, p99_ms: p.p99_ms }
    }
}

/// The whole daemon at 640x480, 30 frames a second, one face, with a broker on loopback.
#[derive(Debug, Serialize)]
struct WayTime {
    frames: u64,
    dropped: u64,
    events: usize,
    /// Of one core, over the whole process.
    cpu_percent: f64,
    resident_mb: f64,
    stages: Vec<StageTime>,
    /// From capture to publishing, by the events' own `latency_ms`.
    published_p50_ms: f64,
    published_p95_ms: f64,
    published_p99_ms: f64,
}

/// Measures and prints.
///
/// # Errors
/// Exit 1 where a network or the clip fails.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    let nn = settings()?;
    measure(args, nn).and_then(|report| print(&report, args.json)).map_err(Failure::failed)
}

fn measure(args: &BenchArgs, nn: Settings) -> Result<Report, BenchError> {
    let budget = Duration::from_secs(args.seconds);
    let models = Models::load(&ModelsConfig::BUILT_IN, Wanted::default(), nn)?;
    let plans = plans(&models, nn)?;
    let lowered = |(bundle, input, plan): &(&'static str, String, Plan)| {
        Some(Lowered { bundle, input: input.clone(), int8: Int8::of(plan)? })
    };
    let clip = OnePerson::load(args.clip.as_deref(), &models.detector)?;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        board: crate::daemon::system::board(),
        networks: networks(budget, nn)?,
        lowered: plans.iter().filter_map(lowered).collect(),
        layers: if args.layers { layers(&plans, budget)? } else { Vec::new() },
        stages: stages(&models, &clip, budget)?,
        try_on: try_on::measure(&models, &clip, budget, nn)?,
        #[cfg(feature = "demo")]
        way: Some(way::measure(clip, budget, nn)?),
        #[cfg(not(feature = "demo"))]
        way: None,
    })
}

/// The sizes at which the detector runs: the live canvas of a 4:3 picture, and the close look at one known face.
const DETECTOR_INPUTS: [(usize, usize); 2] = [(320, 256), (640, 480)];

/// How the int8 engine runs each network at each size.
fn plans(models: &Models, nn: Settings) -> Result<Vec<(&'static str, String, Plan)>, BenchError> {
    let mut plans = Vec::new();
    for (width, height) in DETECTOR_INPUTS {
        plans.push(("detector", format!("{width}x{height}"), models.detector.plan(width, height)?));
    }
    plans.push(("derl", "64x64".into(), models.derl.plan().clone()));
    for optional in Optional::inside() {
        plans.push((optional.name(), optional.input().into(), optional.plan(nn)?));
    }
    Ok(plans)
}

/// A network of a bundle that need not be inside the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Optional {
    Identity,
    Generator,
    Makeup(Makeup),
}

impl Optional {
    /// Those whose bundles are inside.
    fn inside() -> impl Iterator<Item = Self> {
        let all = [Self::Identity, Self::Generator, Self::Makeup(Makeup::Applied), Self::Makeup(Makeup::Bare)];
        all.into_iter().filter(|one| Bundle::is_built_in(one.task()) && (*one != Self::Generator || makes_faces()))
    }

    fn task(self) -> Task {
        match self {
            Self::Identity | Self::Generator => Task::Identity,
            Self::Makeup(_) => Task::Makeup,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Generator => "generator",
            Self::Makeup(Makeup::Applied) => "applied",
            Self::Makeup(Makeup::Bare) => "bare",
        }
    }

    fn input(self) -> &'static str {
        match self {
            Self::Identity => "112x112",
            Self::Generator | Self::Makeup(_) => "128x128",
        }
    }

    fn plan(self, nn: Settings) -> Result<Plan, BenchError> {
        let bundle = Bundle::built_in(self.task())?;
        Ok(match self {
            Self::Identity => IdentityModel::new(bundle, nn)?.plan().clone(),
            Self::Generator => GeneratorModel::new(bundle, nn)?.plan().clone(),
            Self::Makeup(makeup) => MakeupModel::new(bundle, makeup, nn)?.plan().clone(),
        })
    }
}

/// Whether the identity bundle inside holds a generator.
fn makes_faces() -> bool {
    Bundle::built_in(Task::Identity).and_then(|bundle| bundle.identity()).is_ok_and(|view| view.has_generator)
}

/// The time of each layer, the networks in turns for `budget`.
fn layers(plans: &[(&'static str, String, Plan)], budget: Duration) -> Result<Vec<LayerTime>, BenchError> {
    const RUNS: usize = 5;
    let mut sums: Vec<Vec<u64>> = plans.iter().map(|(_, _, plan)| vec![0; plan.layers().count()]).collect();
    let deadline = Instant::now() + budget;
    let mut runs = 0;
    while runs == 0 || Instant::now() < deadline {
        for ((_, _, plan), sums) in plans.iter().zip(&mut sums) {
            for (sum, time) in sums.iter_mut().zip(plan.time_layers(RUNS)?) {
                *sum += time;
            }
        }
        runs += RUNS;
    }
    let mut times = Vec::new();
    for ((bundle, input, plan), sums) in plans.iter().zip(&sums) {
        let time = |(layer, sum): (&visaged_int8::LayerInfo, &u64)| LayerTime {
            bundle,
            input: input.clone(),
            name: layer.name.clone(),
            kind: layer.kind,
            kernel: layer.kernel,
            stride: layer.stride,
            from: [layer.input.height, layer.input.width, layer.input.channels],
            to: [layer.output.height, layer.output.width, layer.output.channels],
            multiply_accumulates: layer.multiply_accumulates,
            microseconds: *sum as f64 / runs as f64 / 1e3,
        };
        times.extend(plan.layers().zip(sums).map(time));
    }
    Ok(times)
}

fn networks(budget: Duration, nn: Settings) -> Result<Vec<NetworkTime>, BenchError> {
    let share = budget / (DETECTOR_INPUTS.len() + 1 + Optional::inside().count()) as u32;
    let mut times = Vec::new();
    for (width, height) in DETECTOR_INPUTS {
        let contestants = Engine::ALL.map(|engine| -> Result<Box<dyn Network>, BenchError> {
            let model = DetectorModel::new(Bundle::built_in(Task::Detector)?, Settings { engine, ..nn })?;
            Ok(Box::new(model.network(width, height)?))
        });
        let contestants = contestants.into_iter().collect::<Result<Vec<_>, _>>()?;
        times.extend(race("detector", &format!("{width}x{height}"), contestants, share)?);
    }
    let contestants = Engine::ALL.map(|engine| -> Result<Box<dyn Network>, BenchError> {
        let settings = Settings { engine, ..nn };
        Ok(Box::new(DerlModel::new(Bundle::built_in(Task::Derl)?, settings)?.network()?))
    });
    let contestants = contestants.into_iter().collect::<Result<Vec<_>, _>>()?;
    times.extend(race("derl", "64x64", contestants, share)?);
    for optional in Optional::inside() {
        let contestants = Engine::ALL.map(|engine| -> Result<Box<dyn Network>, BenchError> {
            Ok(Box::new(optional.plan(Settings { engine, ..nn })?.network()?))
        });
        let contestants = contestants.into_iter().collect::<Result<Vec<_>, _>>()?;
        times.extend(race(optional.name(), optional.input(), contestants, share)?);
    }
    Ok(times)
}

/// Runs the contestants in turns for `budget`; each on the same noise.
fn race(
    bundle: &str,
    input: &str,
    mut contestants: Vec<Box<dyn Network>>,
    budget: Duration,
) -> Result<Vec<NetworkTime>, BenchError> {
    let mut samples = vec![Vec::new(); contestants.len()];
    let mut outputs = Vec::new();
    let deadline = Instant::now() + budget;
    while Instant::now() < deadline || samples.iter().any(|s| s.len() < 3) {
        for (network, samples) in contestants.iter_mut().zip(&mut samples) {
            let data: Vec<Vec<f32>> = network.inputs().iter().map(|i| noise(i.shape.iter().product())).collect();
            let data: Vec<&[f32]> = data.iter().map(Vec::as_slice).collect();
            let start = Instant::now();
            network.run(&data, &mut outputs)?;
            samples.push(start.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let medians: Vec<f64> = samples.iter_mut().map(|s| median(s)).collect();
    let float = contestants.iter().position(|n| n.engine() == Engine::Float.name()).map_or(f64::NAN, |i| medians[i]);
    Ok(contestants
        .iter()
        .zip(&medians)
        .zip(&samples)
        .map(|((network, median), samples)| NetworkTime {
            bundle: bundle.into(),
            input: input.into(),
            engine: network.engine(),
            median_ms: *median,
            runs: samples.len(),
            speed_to_float: float / median,
        })
        .collect())
}

/// Pseudo-random pixels (a linear congruential generator), the same in every run.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as f32
    };
    (0..len).map(|_| next()).collect()
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Every stage by itself, in one thread, over the clip again and again.
fn stages(models: &Models, clip: &OnePerson, budget: Duration) -> Result<Vec<StageTime>, BenchError> {
    let options = DetectOptions { profile: Profile::Live, min_face_px: 24, min_score: 0.6, max_faces: 16 };
    let mut detector = Detector::new(&models.detector, options);
    let mut tracker = Tracker::new(Duration::from_secs(1));
    let mut derl = Derl::new(&models.derl)?;
    let smooth = crate::config::ExpressionConfig::default();
    let mut smoother = Smoother::new(SmoothOptions {
        half_life: smooth.half_life,
        hysteresis: smooth.hysteresis,
        hold: smooth.hold,
        min_quality: smooth.min_quality,
    });
    let telemetry = Telemetry::new(Instant::now());
    let (mut converter, mut picture) = (Converter::new(), RgbImage::default());
    let (mut found, mut tracked, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    let (mut aligned, mut reading) = (AlignedFace::default(), Reading::default());
    let deadline = Instant::now() + budget;
    for i in 0.. {
        let frame = clip.frame(i);
        telemetry.time(Stage::Convert, || converter.to_rgb(&frame, &mut picture))?;
        telemetry.time(Stage::Detect, || detector.detect(&picture, &mut found))?;
        telemetry.time(Stage::Track, || tracker.update(frame.time, &found, &mut tracked, &mut ended));
        for face in &tracked {
            let fits = telemetry.time(Stage::Align, || align::align(&picture, &face.face.landmarks, &mut aligned));
            if fits.is_ok() {
                telemetry.time(Stage::Expression, || derl.read(&aligned, &mut reading))?;
                telemetry.time(Stage::Report, || smoother.add(face.id, frame.time, aligned.quality, &reading));
            }
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(stage_times(&telemetry))
}

fn stage_times(telemetry: &Telemetry) -> Vec<StageTime> {
    Stage::ALL
        .into_iter()
        .filter_map(|stage| telemetry.percentiles(stage).map(|p| StageTime::new(stage.name(), p)))
        .collect()
}

fn print(report: &Report, json: bool) -> Result<(), BenchError> {
    let mut out = std::io::stdout().lock();
    if json {
        let text = serde_json::to_string(report).map_err(std::io::Error::from)?;
        writeln!(out, "{text}")?;
        return Ok(());
    }
    writeln!(out, "visaged {} on {}\n", report.version, report.board)?;
    writeln!(
        out,
        "{:<10} {:<9} {:<12} {:>10} {:>15} {:>7}",
        "network", "input", "engine", "median ms", "speed to float", "runs"
    )?;
    for n in &report.networks {
        writeln!(
            out,
            "{:<10} {:<9} {:<12} {:>10.2} {:>15.2} {:>7}",
            n.bundle, n.input, n.engine, n.median_ms, n.speed_to_float, n.runs
        )?;
    }
    writeln!(out)?;
    for lowered in &report.lowered {
        writeln!(out, "{:<10} {:<9} {}", lowered.bundle, lowered.input, lowered.int8)?;
    }
    print_layers(&mut out, &report.layers)?;
    print_stages(&mut out, "stage, alone", &report.stages)?;
    if !report.try_on.is_empty() {
        print_stages(&mut out, "try-on, 640x480", &report.try_on)?;
    }
    let Some(way) = &report.way else { return Ok(()) };
    print_stages(&mut out, "stage, daemon", &way.stages)?;
    writeln!(
        out,
        "{:<16} {:>8.2} {:>8.2} {:>8.2}   by {} events",
        "to publishing", way.published_p50_ms, way.published_p95_ms, way.published_p99_ms, way.events
    )?;
    writeln!(
        out,
        "\n640x480 at 30 fps, one face: {} frames, {} dropped, {:.0} % of one core, {:.0} MB resident",
        way.frames, way.dropped, way.cpu_percent, way.resident_mb
    )?;
    Ok(())
}

fn print_layers(out: &mut dyn std::io::Write, layers: &[LayerTime]) -> std::io::Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    let header = ["network", "input", "layer", "kernel", "stride", "from", "to"];
    let [network, input, layer, kernel, stride, from, to] = header;
    writeln!(
        out,
        "\n{network:<10} {input:<9} {layer:<20} {kernel:>6} {stride:>6} {from:>12} {to:>12} {:>8} {:>9}  name",
        "MMAC", "us"
    )?;
    let pair = |(a, b): (usize, usize)| format!("{a}x{b}");
    let size = |[height, width, channels]: [usize; 3]| format!("{height}x{width}x{channels}");
    for l in layers {
        writeln!(
            out,
            "{:<10} {:<9} {:<20} {:>6} {:>6} {:>12} {:>12} {:>8.3} {:>9.1}  {}",
            l.bundle,
            l.input,
            l.kind,
            pair(l.kernel),
            pair(l.stride),
            size(l.from),
            size(l.to),
            l.multiply_accumulates as f64 / 1e6,
            l.microseconds,
            l.name
        )?;
    }
    Ok(())
}

fn print_stages(out: &mut dyn std::io::Write, title: &str, stages: &[StageTime]) -> std::io::Result<()> {
    writeln!(out, "\n{title:<16} {:>8} {:>8} {:>8}   ms", "p50", "p95", "p99")?;
    for s in stages {
        writeln!(out, "{:<16} {:>8.2} {:>8.2} {:>8.2}", s.stage, s.p50_ms, s.p95_ms, s.p99_ms)?;
    }
    Ok(())
}
