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
use super::Failure;
use crate::config::ModelsConfig;
use crate::daemon::{Models, StartError};
use crate::expression::Reading;
use crate::expression::derl::{Derl, DerlModel, ReadError};
use crate::expression::smooth::{SmoothOptions, Smoother};
use crate::face::detect::{DetectError, DetectOptions, Detector, DetectorError, DetectorModel, Profile};
use crate::face::track::Tracker;
use crate::face::{AlignedFace, align};
use crate::frame::{ConvertError, Converter, RgbImage};
use crate::models::{Bundle, BundleError, Task};
use crate::nn::tract::Engine;
use crate::nn::{Network, NnError};
use crate::telemetry::{Percentiles, Stage, Telemetry};

mod clip;
#[cfg(feature = "demo")]
mod way;

/// Time every network and every stage on this machine.
#[derive(Debug, Args)]
#[command(after_help = "Frames: the bundled clip's first person, scaled to 640x480 YUYV.

Example:
  visaged bench --json > bench.json")]
pub struct BenchArgs {
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// Seconds for each of the three parts
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
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
    stages: Vec<StageTime>,
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
    measure(args).and_then(|report| print(&report, args.json)).map_err(Failure::failed)
}

fn measure(args: &BenchArgs) -> Result<Report, BenchError> {
    let budget = Duration::from_secs(args.seconds);
    let models = Models::load(&ModelsConfig::default())?;
    let clip = OnePerson::load(args.clip.as_deref(), &models.detector)?;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        board: crate::daemon::system::board(),
        networks: networks(budget)?,
        stages: stages(&models, &clip, budget)?,
        #[cfg(feature = "demo")]
        way: Some(way::measure(clip, budget)?),
        #[cfg(not(feature = "demo"))]
        way: None,
    })
}

/// The sizes at which the detector runs: the live canvas of a 4:3 picture, and the close look at one known face.
const DETECTOR_INPUTS: [(usize, usize); 2] = [(320, 256), (640, 480)];

fn networks(budget: Duration) -> Result<Vec<NetworkTime>, BenchError> {
    let share = budget / (DETECTOR_INPUTS.len() as u32 + 1);
    let mut times = Vec::new();
    for (width, height) in DETECTOR_INPUTS {
        let contestants = Engine::ALL.map(|engine| -> Result<Box<dyn Network>, BenchError> {
            let model = DetectorModel::new(Bundle::built_in(Task::Detector)?, engine)?;
            Ok(Box::new(model.network(width, height)?))
        });
        let contestants = contestants.into_iter().collect::<Result<Vec<_>, _>>()?;
        times.extend(race("detector", &format!("{width}x{height}"), contestants, share)?);
    }
    let contestants = Engine::ALL.map(|engine| -> Result<Box<dyn Network>, BenchError> {
        Ok(Box::new(DerlModel::new(Bundle::built_in(Task::Derl)?, engine)?.network()?))
    });
    let contestants = contestants.into_iter().collect::<Result<Vec<_>, _>>()?;
    times.extend(race("derl", "64x64", contestants, share)?);
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
            let data: Vec<f32> = noise(network.inputs()[0].shape.iter().product());
            let start = Instant::now();
            network.run(&[&data], &mut outputs)?;
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
    print_stages(&mut out, "stage, alone", &report.stages)?;
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

fn print_stages(out: &mut dyn std::io::Write, title: &str, stages: &[StageTime]) -> std::io::Result<()> {
    writeln!(out, "\n{title:<16} {:>8} {:>8} {:>8}   ms", "p50", "p95", "p99")?;
    for s in stages {
        writeln!(out, "{:<16} {:>8.2} {:>8.2} {:>8.2}", s.stage, s.p50_ms, s.p95_ms, s.p99_ms)?;
    }
    Ok(())
}
