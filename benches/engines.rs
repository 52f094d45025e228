//! Every engine on every graph: `cargo bench --bench engines -- [--json] [--only NAME] [--rounds N] [--graphs DIR]`.
//!
//! The graphs are those that `python -m visaged_training engine-graphs` writes; where the folder is missing and the training package's
//! environment is there, it is called, else only the bundles are timed. All engines take the same float inputs, take turns, and are timed
//! by the CPU time of the whole process, so that neither noise nor a helper thread favours one. What a turn begins with is not timed.
//! A peer that is not installed is left out, with a word.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use visaged::nn::{Engine, Network, NnError, Plan, Settings};
use visaged_int8::isa::Isa;
use visaged_peers::litert::LiteRt;
use visaged_peers::onnxruntime::{self, OnnxRuntime, Options};
use visaged_peers::{Peer, PeerError};

type Failure = Box<dyn std::error::Error>;

/// Runs in a turn that are timed, after one that is not.
const RUNS: usize = 5;

// --- our own engine ----------------------------------------------------------------------------------------------

/// The int8 engine on `threads` threads.
fn ours(model: &[u8], shape: &[usize], threads: NonZeroUsize) -> Result<Box<dyn Network>, NnError> {
    let settings = Settings { threads, ..Settings::default() };
    Ok(Box::new(Plan::prepare(model, &[shape], settings)?.network()?))
}

/// Int8 multiply-accumulates that one core can do in a nanosecond; None where nothing measures it.
fn peak_gmacs() -> Option<f64> {
    visaged_int8::peak::int8(Isa::best(), &|| cpu_time_ms() * 1e-3)
}

// --- graphs ------------------------------------------------------------------------------------------------------

/// A line of the index that the training package writes.
#[derive(Deserialize)]
struct Graph {
    name: String,
    input: Vec<usize>,
    /// Lowest and highest value that the quantiser of the input can hold.
    range: [f32; 2],
    macs: f64,
    #[serde(skip)]
    files: Files,
}

/// The graph as each kind of engine reads it.
#[derive(Default)]
struct Files {
    quantised: Vec<u8>,
    float: Option<Vec<u8>>,
    tflite: Option<Vec<u8>>,
    /// With s8 in place of float at the edges.
    tflite_int8_edges: Option<Vec<u8>>,
}

impl Graph {
    fn read(mut self, folder: &Path) -> std::io::Result<Self> {
        let file = |suffix: &str| folder.join(format!("{}.{suffix}", self.name));
        self.files = Files {
            quantised: std::fs::read(file("onnx"))?,
            float: std::fs::read(file("float.onnx")).ok(),
            tflite: std::fs::read(file("tflite")).ok(),
            tflite_int8_edges: std::fs::read(file("int8_edges.tflite")).ok(),
        };
        Ok(self)
    }

    /// The same for every engine: uniform over the range, from a fixed seed.
    fn data(&self) -> Vec<f32> {
        let [low, high] = self.range;
        let mut rng = StdRng::seed_from_u64(7);
        (0..self.input.iter().product()).map(|_| rng.random_range(low..high)).collect()
    }
}

fn graphs(folder: &Path) -> Result<Vec<Graph>, Failure> {
    let index = folder.join("speed/index.json");
    if !index.exists() {
        generate(folder)?;
    }
    if !index.exists() {
        eprintln!("only the bundles: {} is missing and so is training/.venv (make training-venv)", index.display());
        return bundles();
    }
    let listed: Vec<Graph> = serde_json::from_slice(&std::fs::read(&index)?)?;
    let speed = folder.join("speed");
    listed.into_iter().map(|graph| graph.read(&speed).map_err(Failure::from)).collect()
}

fn generate(folder: &Path) -> Result<(), Failure> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("training");
    let python = package.join(".venv/bin/python");
    if !python.exists() {
        return Ok(());
    }
    let folder = std::path::absolute(folder)?;
    let mut command = Command::new(python);
    command.args(["-m", "visaged_training", "engine-graphs", "--only", "speed", "--out"]).arg(folder);
    if !command.current_dir(package).stdout(std::io::stderr()).status()?.success() {
        return Err(
            "the training package could not write the graphs: see above (`make training-venv` renews it)".into()
        );
    }
    Ok(())
}

/// The bundles alone, where nothing can write the rest: no float graphs and no .tflite.
fn bundles() -> Result<Vec<Graph>, Failure> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models-quantized");
    let known = [
        ("derl", "derl", [1, 1, 64, 64], [-2.5, 2.5]),
        ("detector", "detector_320x256", [1, 3, 256, 320], [0.0, 255.0]),
        ("detector", "detector_640x480", [1, 3, 480, 640], [0.0, 255.0]),
    ];
    let mut graphs = Vec::new();
    for (bundle, name, input, range) in known {
        let folder = folder.join(bundle);
        let manifest: Manifest = toml::from_str(&std::fs::read_to_string(folder.join("manifest.toml"))?)?;
        let files = Files { quantised: std::fs::read(folder.join("model.onnx"))?, ..Files::default() };
        let macs =
            manifest.quantisation.macs_of(input[2] * input[3]).ok_or("a manifest without a size for its mmac")?;
        graphs.push(Graph { name: name.into(), input: input.into(), range, macs, files });
    }
    Ok(graphs)
}

#[derive(Deserialize)]
struct Manifest {
    quantisation: Quantisation,
}

#[derive(Deserialize)]
struct Quantisation {
    mmac: f64,
    /// WIDTHxHEIGHT.
    mmac_at: String,
}

impl Quantisation {
    /// Convolutions alone: as many as there are pixels.
    fn macs_of(&self, pixels: usize) -> Option<f64> {
        let (width, height) = self.mmac_at.split_once('x')?;
        let measured = width.parse::<f64>().ok()? * height.parse::<f64>().ok()?;
        Some(self.mmac * 1e6 * pixels as f64 / measured)
    }
}

// --- engines -----------------------------------------------------------------------------------------------------

/// An engine with its input set.
trait Runner {
    fn run(&mut self) -> Result<(), Failure>;
    /// Of the last run.
    fn outputs(&mut self) -> Result<Vec<Vec<f32>>, Failure>;
}

struct Own {
    network: Box<dyn Network>,
    input: Vec<f32>,
    outputs: Vec<Vec<f32>>,
}

impl Runner for Own {
    fn run(&mut self) -> Result<(), Failure> {
        Ok(self.network.run(&[&self.input], &mut self.outputs)?)
    }

    fn outputs(&mut self) -> Result<Vec<Vec<f32>>, Failure> {
        Ok(self.outputs.clone())
    }
}

struct Other(Box<dyn Peer>);

impl Runner for Other {
    fn run(&mut self) -> Result<(), Failure> {
        Ok(self.0.run()?)
    }

    fn outputs(&mut self) -> Result<Vec<Vec<f32>>, Failure> {
        let count = self.0.outputs().len();
        (0..count).map(|index| self.0.output(index).map_err(Failure::from)).collect()
    }
}

/// What a run costs.
#[derive(Clone, Copy)]
enum Clock {
    /// CPU time of the whole process.
    Cpu,
    /// For more than one thread.
    Wall,
}

struct Contender {
    engine: String,
    runner: Box<dyn Runner>,
    clock: Clock,
    times_ms: Vec<f64>,
}

/// Prepares every engine that is here; what is not, or refuses the graph, is said on stderr.
fn contenders(graph: &Graph, input: &[f32]) -> Vec<Contender> {
    let (shape, files) = (graph.input.as_slice(), &graph.files);
    let mut list = Vec::new();
    let mut add = |engine: &str, clock: Clock, runner: Result<Option<Box<dyn Runner>>, Failure>| match runner {
        Ok(Some(runner)) => list.push(Contender { engine: engine.into(), runner, clock, times_ms: vec![] }),
        Ok(None) => {}
        Err(error) => eprintln!("{}: {engine} is left out: {error}", graph.name),
    };
    let own = |network: Box<dyn Network>| -> Box<dyn Runner> {
        Box::new(Own { network, input: input.to_vec(), outputs: vec![] })
    };
    let two = NonZeroUsize::MIN.saturating_add(1);
    for (engine, threads, clock) in
        [(OURS, NonZeroUsize::MIN, Clock::Cpu), ("int8, 2 threads (wall)", two, Clock::Wall)]
    {
        let network = ours(&files.quantised, shape, threads);
        add(engine, clock, network.map(|network| Some(own(network))).map_err(Failure::from));
    }
    let tract = |file: &[u8], engine: Engine| -> Result<Option<Box<dyn Runner>>, Failure> {
        Ok(Some(own(Box::new(Plan::prepare(file, &[shape], engine)?.network()?))))
    };
    add("tract, float", Clock::Cpu, tract(files.float.as_ref().unwrap_or(&files.quantised), Engine::Float));
    add("tract, QDQ", Clock::Cpu, tract(&files.quantised, Engine::Qdq));
    add("tract, QDQ fused", Clock::Cpu, tract(&files.quantised, Engine::Fused));
    let onnx_runtime = |file: Option<&Vec<u8>>, exact| -> Result<Option<Box<dyn Runner>>, Failure> {
        let Some(file) = file else { return Ok(None) };
        let options = Options { exact, ..Options::default() };
        Ok(Some(other(OnnxRuntime::prepare(file, &[shape], options)?, input)?))
    };
    add("ONNX Runtime, float", Clock::Cpu, onnx_runtime(files.float.as_ref(), true));
    add("ONNX Runtime, int8", Clock::Cpu, onnx_runtime(Some(&files.quantised), false));
    add("ONNX Runtime, int8 exact", Clock::Cpu, onnx_runtime(Some(&files.quantised), true));
    let litert = |file: Option<&Vec<u8>>| -> Result<Option<Box<dyn Runner>>, Failure> {
        let Some(file) = file else { return Ok(None) };
        Ok(Some(other(LiteRt::prepare(file, 1)?, input)?))
    };
    add("LiteRT, int8", Clock::Cpu, litert(files.tflite.as_ref()));
    add("LiteRT, int8, s8 edges", Clock::Cpu, litert(files.tflite_int8_edges.as_ref()));
    list
}

fn other(mut peer: impl Peer + 'static, input: &[f32]) -> Result<Box<dyn Runner>, PeerError> {
    peer.set_input(0, input)?;
    Ok(Box::new(Other(Box::new(peer))))
}

// --- measuring ---------------------------------------------------------------------------------------------------

const OURS: &str = "int8";

fn cpu_time_ms() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 * 1e-6
}

fn time_ms(clock: Clock, runner: &mut dyn Runner) -> Result<f64, Failure> {
    let (wall, cpu) = (Instant::now(), cpu_time_ms());
    runner.run()?;
    Ok(match clock {
        Clock::Cpu => cpu_time_ms() - cpu,
        Clock::Wall => wall.elapsed().as_secs_f64() * 1e3,
    })
}

fn measure(contenders: &mut [Contender], rounds: usize) -> Result<(), Failure> {
    for _ in 0..rounds {
        for contender in contenders.iter_mut() {
            // Its caches and its clock speed, not those that the one before left.
            contender.runner.run()?;
            for _ in 0..RUNS {
                contender.times_ms.push(time_ms(contender.clock, &mut *contender.runner)?);
            }
        }
    }
    Ok(())
}

/// What the graph says: ONNX Runtime computing as it is written. None where it is not installed.
fn definition(graph: &Graph, input: &[f32]) -> Option<Vec<Vec<f32>>> {
    let options = Options { optimised: false, ..Options::default() };
    let peer = OnnxRuntime::prepare(&graph.files.quantised, &[&graph.input], options).ok()?;
    let mut runner = other(peer, input).ok()?;
    runner.run().ok()?;
    runner.outputs().ok()
}

/// Largest difference of any output, in per cent of that output's span (of 1 where the span is less).
fn off_percent(outputs: &[Vec<f32>], definition: &[Vec<f32>]) -> f64 {
    let mut worst = 0.0_f64;
    for (output, expected) in outputs.iter().zip(definition) {
        let (low, high) = expected.iter().fold((0.0_f32, 0.0_f32), |(low, high), v| (low.min(*v), high.max(*v)));
        let largest = output.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
        worst = worst.max(100.0 * f64::from(largest) / f64::from((high - low).max(1.0)));
    }
    worst
}

// --- reporting ---------------------------------------------------------------------------------------------------

#[derive(Serialize)]
struct Report {
    machine: Machine,
    /// Timed runs of each engine on each graph.
    runs: usize,
    peak_gmacs: Option<f64>,
    graphs: Vec<GraphReport>,
}

#[derive(Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    /// Of those instructions that int8 kernels use, what it has.
    instructions: Vec<&'static str>,
    onnx_runtime: Option<&'static str>,
    litert: bool,
}

#[derive(Serialize)]
struct GraphReport {
    name: String,
    input: Vec<usize>,
    macs: f64,
    engines: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    engine: String,
    min_ms: f64,
    median_ms: f64,
    gmacs: f64,
    percent_of_peak: Option<f64>,
    /// Its fastest run by ours.
    times_ours: Option<f64>,
    off_percent: Option<f64>,
}

fn machine() -> Machine {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        let line = text.lines().find(|line| names.iter().any(|name| line.starts_with(name)));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let flags = field(&["flags", "Features"]).unwrap_or_default();
    let known =
        ["ssse3", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "asimd", "asimddp", "i8mm", "sve"];
    let model = field(&["model name", "Model", "CPU part"]).unwrap_or_else(|| std::env::consts::ARCH.into());
    Machine {
        processor: model,
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        instructions: known.into_iter().filter(|name| flags.split_whitespace().any(|flag| flag == *name)).collect(),
        onnx_runtime: onnxruntime::version().ok(),
        litert: visaged_peers::litert::find().is_ok(),
    }
}

fn rows(
    graph: &Graph,
    contenders: &mut [Contender],
    definition: Option<&[Vec<f32>]>,
    peak: Option<f64>,
) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for contender in contenders {
        contender.times_ms.sort_by(f64::total_cmp);
        let (min_ms, median_ms) = (contender.times_ms[0], contender.times_ms[contender.times_ms.len() / 2]);
        let gmacs = graph.macs / min_ms * 1e-6;
        let outputs = contender.runner.outputs()?;
        rows.push(Row {
            engine: contender.engine.clone(),
            min_ms,
            median_ms,
            gmacs,
            percent_of_peak: peak.map(|peak| 100.0 * gmacs / peak),
            times_ours: None,
            off_percent: definition.map(|definition| off_percent(&outputs, definition)),
        });
    }
    let own = rows.iter().find(|row| row.engine == OURS).map(|row| row.min_ms);
    for row in &mut rows {
        row.times_ours = own.map(|own| row.min_ms / own);
    }
    Ok(rows)
}

fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}, {} cores; {}; ONNX Runtime {}; LiteRT {}. One thread, float in and out, {} runs each in turns, CPU time.\n",
        machine.processor,
        machine.cores,
        machine.instructions.join(" "),
        machine.onnx_runtime.unwrap_or("not installed"),
        if machine.litert { "with XNNPACK" } else { "not installed" },
        report.runs,
    );
    if let Some(peak) = report.peak_gmacs {
        text += &format!("Peak of one core in int8: {peak:.1} GMAC/s.\n");
    }
    for graph in &report.graphs {
        let size = graph.input.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        text += &format!("\n**{}**, {size}, {:.1} MMAC\n\n", graph.name, graph.macs * 1e-6);
        text +=
            "| engine | min, ms | median, ms | GMAC/s | of peak | times ours | off |\n|---|---|---|---|---|---|---|\n";
        for row in &graph.engines {
            let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".into());
            text += &format!(
                "| {} | {:.3} | {:.3} | {:.1} | {} | {} | {} |\n",
                row.engine,
                row.min_ms,
                row.median_ms,
                row.gmacs,
                or_dash(row.percent_of_peak.map(|v| format!("{v:.0} %"))),
                or_dash(row.times_ours.map(|v| format!("{v:.2}"))),
                or_dash(row.off_percent.map(|v| format!("{v:.2} %"))),
            );
        }
    }
    text + "\nOff: largest difference from what the quantised graph says, in per cent of the output's span.\n"
}

/// Time every engine on every graph.
#[derive(clap::Parser)]
struct Arguments {
    /// One JSON document in place of Markdown.
    #[arg(long)]
    json: bool,
    /// Only graphs whose name contains this.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Turns of each engine, five timed runs each.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The folder that the training package's `engine-graphs` wrote to, or is to write to.
    #[arg(long, value_name = "DIR")]
    graphs: Option<PathBuf>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let arguments = <Arguments as clap::Parser>::parse();
    let _ = arguments.bench;
    let folder = arguments.graphs.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine-graphs"));
    let mut report = Report {
        machine: machine(),
        runs: usize::from(arguments.rounds) * RUNS,
        peak_gmacs: peak_gmacs(),
        graphs: vec![],
    };
    for graph in graphs(&folder)?.into_iter().filter(|graph| graph.name.contains(&arguments.only)) {
        eprintln!("{}", graph.name);
        let input = graph.data();
        let mut list = contenders(&graph, &input);
        measure(&mut list, arguments.rounds.into())?;
        let engines = rows(&graph, &mut list, definition(&graph, &input).as_deref(), report.peak_gmacs)?;
        report.graphs.push(GraphReport { name: graph.name, input: graph.input, macs: graph.macs, engines });
    }
    let text = if arguments.json { serde_json::to_string_pretty(&report)? + "\n" } else { markdown(&report) };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
