//! The stages of a frame's way, one benchmark each: `cargo bench --bench stages`. Compare within one run only.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use visaged::expression::Reading;
use visaged::expression::derl::{Derl, DerlModel};
use visaged::face::detect::{DetectOptions, Detector, DetectorModel, Profile};
use visaged::face::track::Tracker;
use visaged::face::{AlignedFace, align};
use visaged::frame::{CaptureTime, RgbImage, Scaler};
use visaged::models::{Bundle, Task};
use visaged::nn::{Engine, Network};
use visaged::picture::{self, PictureLimits};

const WIDTH_PX: u32 = 640;
const HEIGHT_PX: u32 = 480;

/// A photograph at 640x480.
fn photograph() -> RgbImage {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    files.sort();
    let picture = picture::open(&files[0], PictureLimits::default()).unwrap();
    let mut scaled = RgbImage::default();
    scaled.resize(WIDTH_PX, HEIGHT_PX);
    Scaler::new().scale(&picture, &mut scaled);
    scaled
}

fn faces(c: &mut Criterion) {
    let picture = photograph();
    let model = DetectorModel::new(Bundle::built_in(Task::Detector).unwrap(), Engine::Int8).unwrap();
    let options = DetectOptions { profile: Profile::Live, min_face_px: 24, min_score: 0.6, max_faces: 16 };
    let mut detector = Detector::new(&model, options);
    let mut found = Vec::new();
    c.bench_function("detect live 640x480", |b| b.iter(|| detector.detect(black_box(&picture), &mut found).unwrap()));
    Detector::new(&model, DetectOptions::still(&model)).detect(&picture, &mut found).unwrap();
    let face = found[0];
    let mut tracker = Tracker::new(Duration::from_secs(1));
    let (mut tracked, mut ended) = (Vec::new(), Vec::new());
    c.bench_function("track one face", |b| {
        b.iter(|| tracker.update(CaptureTime::now(), black_box(&[face]), &mut tracked, &mut ended));
    });
    let mut aligned = AlignedFace::default();
    c.bench_function("align to 128x128", |b| {
        b.iter(|| align::align(black_box(&picture), &face.landmarks, &mut aligned).unwrap());
    });
    let model = DerlModel::new(Bundle::built_in(Task::Derl).unwrap(), Engine::Int8).unwrap();
    let (mut derl, mut reading) = (Derl::new(&model).unwrap(), Reading::default());
    c.bench_function("read one face", |b| b.iter(|| derl.read(black_box(&aligned), &mut reading).unwrap()));
}

fn engines(c: &mut Criterion) {
    let mut group = c.benchmark_group("derl by engine");
    for engine in Engine::ALL {
        let model = DerlModel::new(Bundle::built_in(Task::Derl).unwrap(), engine).unwrap();
        let mut network = model.network().unwrap();
        let data = vec![0.25; network.inputs()[0].shape.iter().product()];
        let mut outputs = Vec::new();
        group.bench_function(engine.name(), |b| b.iter(|| network.run(&[black_box(&data)], &mut outputs).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, faces, engines);
criterion_main!(benches);
