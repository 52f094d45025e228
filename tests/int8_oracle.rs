//! The int8 engine is held to ONNX Runtime: a small graph for every layer with its stored answer, random inputs where the library is
//! installed, and the shipped networks on photographs.
//!
//! A step is one of an output's grid, 1/255 of its range. An engine may be a step off where a sum lies on the edge of a rounding;
//! a float output may be off by 1e-4 of its span.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Deserialize;
use visaged::expression::Reading;
use visaged::expression::derl::{Derl, DerlModel};
use visaged::face::detect::{DetectOptions, Detector, DetectorModel};
use visaged::face::{AlignedFace, Landmarks, Rect, align};
use visaged::frame::{RgbImage, Scaler};
use visaged::models::{Bundle, NeutralityEntry, Task};
use visaged::nn::{Engine, Network, NnError, Plan};
use visaged::picture::{self, PictureLimits};
use visaged_peers::onnxruntime::{OnnxRuntime, Options};
use visaged_peers::{Peer, installed};

// --- the engine --------------------------------------------------------------------------------------------------

fn engine_under_test(model: &[u8], input_shapes: &[&[usize]]) -> Result<Box<dyn Network>, NnError> {
    Ok(Box::new(Plan::prepare(model, input_shapes, Engine::Int8)?.network()?))
}

// --- graphs with a stored answer ---------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Layer {
    name: String,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<usize>,
    /// Of an output: the step of its grid, none where it is float.
    #[serde(default)]
    step: Option<f32>,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nn/layers")
}

impl Layer {
    fn all() -> Vec<Self> {
        let layers: Vec<Self> = serde_json::from_slice(&fs::read(folder().join("index.json")).unwrap()).unwrap();
        assert!(layers.len() > 90, "{}", layers.len());
        layers
    }

    fn model(&self) -> Vec<u8> {
        fs::read(folder().join(format!("{}.onnx", self.name))).unwrap()
    }

    fn shapes(&self) -> Vec<&[usize]> {
        self.inputs.iter().map(|tensor| tensor.shape.as_slice()).collect()
    }

    /// Inputs and outputs.
    fn stored(&self) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let bytes = fs::read(folder().join(format!("{}.f32", self.name))).unwrap();
        let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut take = |tensors: &[Tensor]| -> Vec<Vec<f32>> {
            tensors.iter().map(|tensor| values.by_ref().take(tensor.len()).collect()).collect()
        };
        let stored = (take(&self.inputs), take(&self.outputs));
        assert_eq!(values.next(), None, "{}", self.name);
        stored
    }

    fn network(&self) -> Box<dyn Network> {
        engine_under_test(&self.model(), &self.shapes()).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The worst output in steps, or in the tolerance of a float one.
    fn worst(&self, outputs: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
        assert_eq!(outputs.len(), self.outputs.len(), "{}", self.name);
        let mut worst = 0.0_f32;
        for ((tensor, output), expected) in self.outputs.iter().zip(outputs).zip(expected) {
            assert_eq!(output.len(), tensor.len(), "{}", self.name);
            let span = expected.iter().fold(0.0_f32, |span, v| span.max(v.abs()));
            let unit = tensor.step.unwrap_or(1e-4 * span);
            for (a, b) in output.iter().zip(expected) {
                assert!(a.is_finite(), "{}", self.name);
                worst = worst.max((a - b).abs() / unit);
            }
        }
        worst
    }
}

fn run(network: &mut dyn Network, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let mut outputs = Vec::new();
    network.run(&inputs, &mut outputs).unwrap();
    outputs
}

#[test]
fn every_layer_gives_the_stored_answer_to_a_step() {
    let mut wrong = Vec::new();
    for layer in Layer::all() {
        let (inputs, expected) = layer.stored();
        let mut network = layer.network();
        let worst = layer.worst(&run(&mut *network, &inputs), &expected);
        if worst > 1.01 {
            wrong.push(format!("{}: {worst:.2}", layer.name));
        }
    }
    assert!(wrong.is_empty(), "steps off: {wrong:#?}");
}

#[test]
fn a_network_gives_the_same_answer_again_after_another_input() {
    for layer in Layer::all() {
        let (inputs, _) = layer.stored();
        let mut network = layer.network();
        let first = run(&mut *network, &inputs);
        let other: Vec<Vec<f32>> = inputs.iter().map(|values| values.iter().map(|v| -0.7 * v).collect()).collect();
        run(&mut *network, &other);
        assert_eq!(first, run(&mut *network, &inputs), "{}", layer.name);
    }
}

// --- ONNX Runtime beside it --------------------------------------------------------------------------------------

/// None, with a word, where the library is not installed.
fn oracle(model: &[u8], input_shapes: &[&[usize]], optimised: bool) -> Option<OnnxRuntime> {
    installed(OnnxRuntime::prepare(model, input_shapes, Options { optimised, ..Options::default() }))
}

fn ask(peer: &mut OnnxRuntime, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
    for (index, values) in inputs.iter().enumerate() {
        peer.set_input(index, values).unwrap();
    }
    peer.run().unwrap();
    (0..peer.outputs().len()).map(|index| peer.output(index).unwrap()).collect()
}

#[test]
fn random_inputs_give_onnx_runtimes_answer_to_a_step() {
    let mut rng = StdRng::seed_from_u64(11);
    let mut wrong = Vec::new();
    for layer in Layer::all() {
        let model = layer.model();
        let mut network = layer.network();
        let (stored, _) = layer.stored();
        // As written and in its integer kernels: two ways to one answer.
        for optimised in [false, true] {
            let Some(mut peer) = oracle(&model, &layer.shapes(), optimised) else { return };
            for reach in [0.1, 0.6, 1.0, 4.0] {
                // Up to the stored input's largest values, below it, and far beyond.
                let inputs: Vec<Vec<f32>> = stored
                    .iter()
                    .map(|values| {
                        let (low, high) = values.iter().fold((0.0_f32, 0.0_f32), |(l, h), v| (l.min(*v), h.max(*v)));
                        values.iter().map(|_| reach * rng.random_range(low..=high)).collect()
                    })
                    .collect();
                let worst = layer.worst(&run(&mut *network, &inputs), &ask(&mut peer, &inputs));
                if worst > 1.01 {
                    wrong.push(format!("{} (optimised {optimised}, reach {reach}): {worst:.2}", layer.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "steps off: {wrong:#?}");
}

// --- the shipped networks ----------------------------------------------------------------------------------------

fn photographs() -> Vec<RgbImage> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    files.sort();
    assert_eq!(files.len(), 5);
    files.iter().map(|path| picture::open(path, PictureLimits::default()).unwrap()).collect()
}

/// What the expression network is given: every photograph's face, from the landmarks and from landmarks a few pixels off.
fn luminances() -> Vec<Vec<f32>> {
    let detector = DetectorModel::new(Bundle::built_in(Task::Detector).unwrap(), Engine::Fused).unwrap();
    let mut detector = Detector::new(&detector, DetectOptions::still(&detector));
    let bundle = Bundle::built_in(Task::Derl).unwrap();
    let eps = bundle.derl().unwrap().eps;
    let mut derl = Derl::new(&DerlModel::new(bundle, Engine::Fused).unwrap()).unwrap();
    let (mut found, mut aligned, mut reading) = (Vec::new(), AlignedFace::default(), Reading::default());
    let mut rng = StdRng::seed_from_u64(5);
    let mut inputs = Vec::new();
    for picture in photographs() {
        detector.detect(&picture, &mut found).unwrap();
        let face = found[0];
        for off_px in [0.0, 0.02, 0.05, 0.1].map(|part| part * face.rect.width) {
            let landmarks: Landmarks = face.landmarks.map(|mut point| {
                point.x += rng.random_range(-off_px..=off_px);
                point.y += rng.random_range(-off_px..=off_px);
                point
            });
            align::align(&picture, &landmarks, &mut aligned).unwrap();
            derl.read(&aligned, &mut reading).unwrap();
            inputs.push(standardised(derl.luminance(), eps));
        }
    }
    inputs
}

fn standardised(grey: &[f32], eps: f32) -> Vec<f32> {
    let mean = grey.iter().sum::<f32>() / grey.len() as f32;
    let variance = grey.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / grey.len() as f32;
    grey.iter().map(|v| (v - mean) / (variance.sqrt() + eps)).collect()
}

fn highest(values: &[f32]) -> usize {
    (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The one that neutrality is read from must not move it by more than two hundredths; the others are held to 2 % of themselves.
fn energies_agree(face: usize, ours: &[f32], theirs: &[f32], neutrality: &NeutralityEntry) {
    for (k, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let off = (a - b).abs();
        let most = match k == neutrality.energy_index {
            true => 0.02 * (neutrality.ceiling - neutrality.floor),
            false => 0.02 * b.abs(),
        };
        assert!(off < most, "face {face}: energy {k} is {a} instead of {b}, {off} of {most} off");
    }
}

#[test]
fn the_expression_network_names_the_emotion_that_onnx_runtime_names() {
    let bundle = Bundle::built_in(Task::Derl).unwrap();
    let manifest = bundle.derl().unwrap();
    let shape: &[usize] = &[1, 1, 64, 64];
    let Some(mut peer) = oracle(bundle.model(), &[shape], false) else { return };
    let mut network = engine_under_test(bundle.model(), &[shape]).unwrap();
    for (i, input) in luminances().into_iter().enumerate() {
        let inputs = [input];
        let (ours, theirs) = (run(&mut *network, &inputs), ask(&mut peer, &inputs));
        let (a, b) = (&ours[manifest.logits], &theirs[manifest.logits]);
        let margin = {
            let mut sorted = b.clone();
            sorted.sort_by(f32::total_cmp);
            sorted[7] - sorted[6]
        };
        let off = largest_difference(a, b);
        assert!(off < 0.25, "face {i}: {a:?} against {b:?}");
        // Two that are closer than the roundings may change places.
        assert!(highest(a) == highest(b) || margin < 2.0 * off, "face {i}: {a:?} against {b:?}");
        energies_agree(i, &ours[manifest.energy], &theirs[manifest.energy], &manifest.neutrality);
        let span = theirs[manifest.neutral].iter().fold(0.0_f32, |span, v| span.max(v.abs()));
        let off = largest_difference(&ours[manifest.neutral], &theirs[manifest.neutral]);
        assert!(off < 0.1 * span, "face {i}: neutral {off} of {span} off");
    }
}

struct Found {
    rect: Rect,
    score: f32,
}

/// Faces over a threshold, best first, none over another.
fn decoded(outputs: &[Vec<f32>], places: &[[usize; 4]; 3], width_px: usize, min_score: f32) -> Vec<Found> {
    let mut all = Vec::new();
    for (places, stride) in places.iter().zip([8_usize, 16, 32]) {
        let [cls, obj, boxes, _] = places.map(|place| outputs[place].as_slice());
        for (i, (cls, obj)) in cls.iter().zip(obj).enumerate() {
            let score = (cls * obj).max(0.0).sqrt();
            if score < min_score {
                continue;
            }
            let (column, row, step) = (i % (width_px / stride), i / (width_px / stride), stride as f32);
            let b = &boxes[4 * i..4 * i + 4];
            let (width, height) = (b[2].exp() * step, b[3].exp() * step);
            let (x, y) = ((column as f32 + b[0]) * step, (row as f32 + b[1]) * step);
            all.push(Found { rect: Rect { x: x - width / 2.0, y: y - height / 2.0, width, height }, score });
        }
    }
    all.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Found> = Vec::new();
    for found in all {
        if kept.iter().all(|k| overlap(&k.rect, &found.rect) < 0.3) {
            kept.push(found);
        }
    }
    kept
}

/// Intersection over union.
fn overlap(a: &Rect, b: &Rect) -> f32 {
    let side = |a: f32, a_size: f32, b: f32, b_size: f32| ((a + a_size).min(b + b_size) - a.max(b)).max(0.0);
    let both = side(a.x, a.width, b.x, b.width) * side(a.y, a.height, b.y, b.height);
    both / (a.width * a.height + b.width * b.height - both)
}

/// A photograph on a canvas of that size: planes of blue, green and red, 0 to 255.
fn canvas(picture: &RgbImage, width_px: u32, height_px: u32) -> Vec<f32> {
    let mut scaled = RgbImage::default();
    scaled.resize(width_px, height_px);
    Scaler::new().scale(picture, &mut scaled);
    [2, 1, 0].iter().flat_map(|channel| scaled.data.iter().skip(*channel).step_by(3)).map(|v| f32::from(*v)).collect()
}

#[test]
fn the_detector_finds_the_faces_that_onnx_runtime_finds() {
    let bundle = Bundle::built_in(Task::Detector).unwrap();
    let places = bundle.detector().unwrap().outputs;
    for (width_px, height_px) in [(320, 256), (640, 480)] {
        let shape: &[usize] = &[1, 3, height_px, width_px];
        let Some(mut peer) = oracle(bundle.model(), &[shape], false) else { return };
        let mut network = engine_under_test(bundle.model(), &[shape]).unwrap();
        for (i, picture) in photographs().iter().enumerate() {
            let inputs = [canvas(picture, width_px as u32, height_px as u32)];
            let (ours, theirs) = (run(&mut *network, &inputs), ask(&mut peer, &inputs));
            let [ours, theirs] = [&ours, &theirs].map(|outputs| decoded(outputs, &places, width_px, 0.6));
            assert!(!theirs.is_empty(), "photograph {i} at {width_px}x{height_px}");
            assert_eq!(ours.len(), theirs.len(), "photograph {i} at {width_px}x{height_px}");
            for (a, b) in ours.iter().zip(&theirs) {
                assert!(overlap(&a.rect, &b.rect) > 0.9, "photograph {i}: {:?} against {:?}", a.rect, b.rect);
                assert!((a.score - b.score).abs() < 0.05, "photograph {i}: {} against {}", a.score, b.score);
            }
        }
    }
}
