//! The try-on by itself: one face of a 640x480 frame aligned, changed and put back, again and again, by each network that is inside.

use std::time::{Duration, Instant};

use super::clip::OnePerson;
use super::{BenchError, StageTime};
use crate::daemon::Models;
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector};
use crate::face::{AlignedFace, Landmarks};
use crate::frame::{Converter, RgbImage};
use crate::models::{Bundle, Task};
use crate::nn::Settings;
use crate::synthesis::SynthesisError;
use crate::synthesis::composite::Composite;
use crate::synthesis::delta::Delta;
use crate::synthesis::generator::{Generator, GeneratorModel};
use crate::synthesis::makeup::{Artist, Look, Makeup, MakeupModel};
use crate::telemetry::Percentiles;

/// Frames of the clip that are taken by turns.
const FRAMES: u64 = 8;

pub(super) fn measure(
    models: &Models,
    clip: &OnePerson,
    budget: Duration,
    nn: Settings,
) -> Result<Vec<StageTime>, BenchError> {
    let mut times = Vec::new();
    let [makeup, identity] = [Task::Makeup, Task::Identity].map(Bundle::is_built_in);
    if !makeup && !identity {
        return Ok(times);
    }
    let (faces, mut aligned) = (faces(models, clip)?, AlignedFace::default());
    let (last, landmarks) = &faces[faces.len() - 1];
    align(last, landmarks, &mut aligned)?;
    if makeup {
        let model = MakeupModel::new(Bundle::built_in(Task::Makeup)?, Makeup::Applied, nn)?;
        let mut artist = Artist::new(&model)?;
        artist.set_reference(&aligned)?;
        let names = ["align", "makeup", "composite", "all, makeup"];
        times.extend(changed(&faces, budget / 2, names, |face, delta| artist.paint(face, delta))?);
    }
    if identity && super::makes_faces() {
        let mut generator = Generator::new(&GeneratorModel::new(Bundle::built_in(Task::Identity)?, nn)?)?;
        generator.set_person(&aligned)?;
        let names = ["align", "identity", "composite", "all, identity"];
        times.extend(changed(&faces, budget / 2, names, |face, delta| generator.exchange(face, delta))?);
    }
    Ok(times)
}

/// Each stage of changing a face, and all of them.
fn changed(
    faces: &[(RgbImage, Landmarks)],
    budget: Duration,
    names: [&'static str; 4],
    mut change: impl FnMut(&AlignedFace, &mut Delta) -> Result<(), SynthesisError>,
) -> Result<Vec<StageTime>, BenchError> {
    let (mut composite, look) = (Composite::new(), Look::default());
    let (mut delta, mut aligned) = (Delta::default(), AlignedFace::default());
    let (mut picture, mut samples) = (RgbImage::default(), [const { Vec::new() }; 4]);
    let deadline = Instant::now() + budget;
    for (source, landmarks) in faces.iter().cycle() {
        picture.resize(source.width_px, source.height_px);
        picture.data.copy_from_slice(&source.data);
        let mut marks = [Instant::now(); 4];
        let similarity = align(&picture, landmarks, &mut aligned)?;
        marks[1] = Instant::now();
        change(&aligned, &mut delta)?;
        marks[2] = Instant::now();
        composite.over_picture(&delta, &look, &mut picture, &similarity);
        marks[3] = Instant::now();
        for (samples, (from, to)) in samples.iter_mut().zip([(0, 1), (1, 2), (2, 3), (0, 3)]) {
            samples.push(1e3 * (marks[to] - marks[from]).as_secs_f64());
        }
        if marks[3] >= deadline && samples[0].len() > 2 {
            break;
        }
    }
    Ok(names.into_iter().zip(&mut samples).map(|(name, samples)| StageTime::new(name, percentiles(samples))).collect())
}

/// Frames with where their largest face is; at least one.
fn faces(models: &Models, clip: &OnePerson) -> Result<Vec<(RgbImage, Landmarks)>, BenchError> {
    let mut detector = Detector::new(&models.detector, DetectOptions::still(&models.detector));
    let (mut converter, mut found, mut faces) = (Converter::new(), Vec::new(), Vec::new());
    for i in 0..FRAMES {
        let mut picture = RgbImage::default();
        converter.to_rgb(&clip.frame(i), &mut picture)?;
        detector.detect(&picture, &mut found)?;
        faces.extend(found.first().map(|face| (picture, face.landmarks)));
    }
    if faces.is_empty() { Err(BenchError::NoFace("the clip's first frames".into())) } else { Ok(faces) }
}

fn percentiles(samples: &mut [f64]) -> Percentiles {
    samples.sort_by(f64::total_cmp);
    let at = |quantile: f64| samples[((samples.len() - 1) as f64 * quantile).round() as usize];
    Percentiles { p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99) }
}
