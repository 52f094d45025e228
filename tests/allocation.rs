//! Nothing is allocated per frame, once warm, in the stages that are ours.
//!
//! The engine is not ours and allocates in each run, always the same: its allocations are counted alone and taken off.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use visaged::config::ReportConfig;
use visaged::expression::derl::{Derl, DerlModel};
use visaged::expression::smooth::{SmoothOptions, Smoother};
use visaged::expression::{Observation, ObservedFace, Reading};
use visaged::face::detect::{DetectOptions, Detector, DetectorModel, FOCUS_PX, Profile};
use visaged::face::track::Tracker;
use visaged::face::{AlignedFace, Face, align};
use visaged::frame::{CaptureTime, Converter, Frame, PixelFormat, RgbImage};
use visaged::mailbox::{Mailbox, Taken};
use visaged::mirror::Hub;
use visaged::models::{Bundle, Task};
use visaged::nn::{Engine, Network, Session};
use visaged::picture::{self, PictureLimits};
use visaged::pool::Pool;
use visaged::report::{Boot, Reporter};
use visaged::synthesis::composite::Composite;
use visaged::synthesis::delta::Delta;
use visaged::synthesis::makeup::{Artist, Look, Makeup, MakeupModel};
use visaged::telemetry::{Stage, Telemetry};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // During a thread's last breath there is nothing left to count in.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the pointer came from `System` with this layout; the caller vouches for `size`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

/// Of one run of a warm network; asserts that each run allocates the same.
fn of_one_run(mut network: Session) -> usize {
    let data = vec![0.5; network.inputs()[0].shape.iter().product()];
    let mut outputs = Vec::new();
    for _ in 0..3 {
        network.run(&[&data], &mut outputs).unwrap();
    }
    let mut run = || allocations(|| network.run(&[&data], &mut outputs).unwrap());
    let first = run();
    assert_eq!(run(), first, "the engine's allocations are always the same");
    first
}

fn picture() -> RgbImage {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    files.sort();
    picture::open(&files[0], PictureLimits::default()).unwrap()
}

fn still_face(model: &DetectorModel, picture: &RgbImage) -> Face {
    let mut found = Vec::new();
    Detector::new(model, DetectOptions::still(model)).detect(picture, &mut found).unwrap();
    found[0]
}

fn detector_model() -> DetectorModel {
    DetectorModel::new(Bundle::built_in(Task::Detector).unwrap(), Engine::Int8).unwrap()
}

#[test]
fn detection_allocates_nothing_but_what_the_engine_does() {
    let (model, picture) = (detector_model(), picture());
    let options = DetectOptions { profile: Profile::Live, min_face_px: 64, min_score: 0.6, max_faces: 16 };
    let mut detector = Detector::new(&model, options);
    let mut found = Vec::new();
    for _ in 0..12 {
        detector.detect(&picture, &mut found).unwrap();
    }
    assert!(!found.is_empty(), "the picture shows a face");
    let (width, height) = detector.live_canvas_px(picture.width_px, picture.height_px);
    let whole = of_one_run(model.network(width, height).unwrap());
    let close = of_one_run(model.network(FOCUS_PX, FOCUS_PX).unwrap());
    for _ in 0..6 {
        let all = allocations(|| detector.detect(&picture, &mut found).unwrap());
        let looks = [whole, close, whole + close];
        assert!(looks.contains(&all), "{all} allocations, where the engine's own are one or two of {looks:?}");
    }
}

#[test]
fn reading_a_face_allocates_nothing_but_what_the_engine_does() {
    let model = DerlModel::new(Bundle::built_in(Task::Derl).unwrap(), Engine::Int8).unwrap();
    let run = of_one_run(model.network().unwrap());
    let mut derl = Derl::new(&model).unwrap();
    let (face, mut reading) = (AlignedFace::default(), Reading::default());
    for _ in 0..3 {
        derl.read(&face, &mut reading).unwrap();
    }
    assert_eq!(allocations(|| derl.read(&face, &mut reading).unwrap()), run);
}

#[test]
fn making_a_face_up_and_putting_it_back_allocates_nothing_but_what_the_engine_does() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundles/makeup");
    let bundle = Bundle::load(Task::Makeup, Some(&folder)).unwrap();
    let model = MakeupModel::new(bundle, Makeup::Bare, Engine::Int8).unwrap();
    let run = of_one_run(model.plan().network().unwrap());
    let mut picture = picture();
    let face = still_face(&detector_model(), &picture);
    let (mut artist, mut composite) = (Artist::new(&model).unwrap(), Composite::new());
    let (mut aligned, mut delta, look) = (AlignedFace::default(), Delta::default(), Look::default());
    let mut one_frame = || {
        let similarity = align::align(&picture, &face.landmarks, &mut aligned).unwrap();
        artist.paint(&aligned, &mut delta).unwrap();
        composite.over_picture(&delta, &look, &mut picture, &similarity);
    };
    for _ in 0..3 {
        one_frame();
    }
    assert_eq!(allocations(&mut one_frame), run);
}

#[test]
fn conversion_tracking_alignment_smoothing_reporting_and_showing_allocate_nothing() {
    let picture = picture();
    let face = still_face(&detector_model(), &picture);
    let mut way = Way::new(&picture, face);
    for _ in 0..50 {
        way.one_frame();
    }
    let per_frame: Vec<usize> = (0..50).map(|_| allocations(|| way.one_frame())).collect();
    assert_eq!(per_frame, vec![0; 50]);
}

/// Everything from the mailbox to the hub but the networks, for one face.
struct Way {
    frames: Pool<Vec<u8>>,
    pictures: Pool<RgbImage>,
    mailbox: Mailbox<Frame>,
    telemetry: Telemetry,
    converter: Converter,
    tracker: Tracker,
    smoother: Smoother,
    reporter: Reporter,
    hub: Hub,
    faces: [Face; 1],
    bytes: Vec<u8>,
    size_px: (u32, u32),
    tracked: Vec<visaged::face::TrackedFace>,
    aligned: AlignedFace,
    reading: Reading,
    observation: Observation,
    events: Vec<visaged::report::Event>,
    seq: u64,
}

impl Way {
    fn new(picture: &RgbImage, face: Face) -> Self {
        let now = CaptureTime::now();
        let report = ReportConfig { sample_every: None, summary_every: None, ..ReportConfig::default() };
        let smooth = visaged::config::ExpressionConfig::default();
        Self {
            frames: Pool::new(4),
            pictures: Pool::new(4),
            mailbox: Mailbox::default(),
            telemetry: Telemetry::new(now.monotonic),
            converter: Converter::new(),
            tracker: Tracker::new(Duration::from_secs(60)),
            smoother: Smoother::new(SmoothOptions {
                half_life: smooth.half_life,
                hysteresis: smooth.hysteresis,
                hold: smooth.hold,
                min_quality: 0.0,
            }),
            reporter: Reporter::new(report, Boot::random(), now),
            hub: Hub::new(),
            faces: [face],
            bytes: picture.data.clone(),
            size_px: (picture.width_px, picture.height_px),
            tracked: Vec::new(),
            aligned: AlignedFace::default(),
            reading: Reading { neutral: vec![0; 64 * 64], ..Reading::default() },
            observation: Observation {
                frame_seq: 0,
                time: now,
                width_px: picture.width_px,
                height_px: picture.height_px,
                faces: Vec::new(),
                ended: Vec::new(),
            },
            events: Vec::new(),
            seq: 0,
        }
    }

    fn one_frame(&mut self) {
        self.seq += 1;
        let mut data = self.frames.take();
        data.clone_from(&self.bytes);
        let (width_px, height_px) = self.size_px;
        self.mailbox.put(Frame {
            data,
            format: PixelFormat::Rgb3,
            width_px,
            height_px,
            stride_bytes: 3 * width_px,
            seq: self.seq,
            time: CaptureTime::now(),
        });
        let Taken::Value(frame) = self.mailbox.take(Duration::ZERO) else { panic!("it was put there") };
        let mut picture = self.pictures.take();
        self.converter.to_rgb(&frame, &mut picture).unwrap();
        self.tracker.update(frame.time, &self.faces, &mut self.tracked, &mut self.observation.ended);
        let mut neutral = self.observation.faces.pop().map(|face| face.neutral).unwrap_or_default();
        for tracked in &self.tracked {
            align::align(&picture, &tracked.face.landmarks, &mut self.aligned).unwrap();
            let smoothed = self.smoother.add(tracked.id, frame.time, self.aligned.quality, &self.reading);
            neutral.clone_from(&self.reading.neutral);
            self.observation.faces.push(ObservedFace {
                track: tracked.id,
                face: tracked.face,
                quality: self.aligned.quality,
                emotion: smoothed.emotion,
                probabilities: smoothed.probabilities,
                neutrality: smoothed.neutrality,
                neutral: std::mem::take(&mut neutral),
            });
        }
        self.observation.time = frame.time;
        self.reporter.observe(&self.observation, &mut self.events);
        self.events.clear();
        self.telemetry.record(Stage::Total, frame.time.monotonic.elapsed());
        self.hub.show(picture, &self.observation);
    }
}
