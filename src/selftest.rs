//! A bundle is tried on pictures inside the binary before anything depends on it.
//!
//! Knows models, faces, expressions and synthesis, no store and no daemon. The pictures show synthetic people (SFHQ, MIT): two smile, one is
//! startled. What is asked of a bundle is what any bundle of its task can do, not that it answers as the present one does.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use image::ImageFormat;

use crate::expression::derl::{Derl, DerlModel, ReadError};
use crate::expression::{Emotion, Reading};
use crate::face::align::{AlignError, align};
use crate::face::detect::{DetectError, DetectOptions, Detector, DetectorError, DetectorModel};
use crate::face::{AlignedFace, Face, Landmarks, Point, Rect};
use crate::frame::RgbImage;
use crate::models::store::SelfTest;
use crate::models::{Bundle, BundleError, Task};
use crate::nn::Settings;
use crate::picture::{PictureError, PictureLimits, decode_still};
use crate::synthesis::SynthesisError;
use crate::synthesis::delta::Delta;
use crate::synthesis::generator::{Generator, GeneratorModel};
use crate::synthesis::identity::{Embedding, Identity, IdentityModel};
use crate::synthesis::makeup::{Artist, Makeup, MakeupModel};

/// Where two boxes count as one face (intersection over union).
const SAME_FACE: f32 = 0.5;
/// More faces than this in a portrait are not faces.
const MOST_IN_A_PORTRAIT: usize = 2;
/// Each of two networks is timed so often, by turns; the fastest run of each counts, as a busy machine only makes slower.
const TIMED_RUNS: usize = 5;
/// Slower than the present bundle by more than this factor, and the frame's way does not keep up.
const SLOWER: f64 = 2.5;
/// A clock's noise is no slowness.
const NOISE: Duration = Duration::from_millis(3);
/// Startled faces are not happy.
const UNHAPPY: f32 = 0.5;
/// What changes a face by more grey levels on average leaves none.
const MOST_CHANGED: f32 = 60.0;
/// Two references, or two people, whose answers differ by less than this on average were not looked at.
const LEAST_APART: f32 = 1e-3;

struct Portrait {
    name: &'static str,
    jpeg: &'static [u8],
    rect: Rect,
    landmarks: Landmarks,
    smiles: bool,
}

const fn at(x: f32, y: f32) -> Point {
    Point { x, y }
}

/// Boxes and landmarks by the float YuNet, see `tests/data/faces/reference.json`.
static PORTRAITS: [Portrait; 3] = [
    Portrait {
        name: "sfhq_0000",
        jpeg: include_bytes!("../tests/data/faces/sfhq_0000.jpg"),
        rect: Rect { x: 54.56, y: 25.88, width: 150.76, height: 200.87 },
        landmarks: [at(96.61, 111.03), at(169.01, 114.81), at(132.04, 150.34), at(96.4, 176.63), at(159.11, 180.34)],
        smiles: true,
    },
    Portrait {
        name: "sfhq_0001",
        jpeg: include_bytes!("../tests/data/faces/sfhq_0001.jpg"),
        rect: Rect { x: 55.15, y: 34.27, width: 144.34, height: 199.16 },
        landmarks: [at(93.0, 110.06), at(162.51, 111.27), at(128.6, 149.47), at(95.61, 178.14), at(159.78, 179.2)],
        smiles: true,
    },
    Portrait {
        name: "sfhq_0370",
        jpeg: include_bytes!("../tests/data/faces/sfhq_0370.jpg"),
        rect: Rect { x: 52.36, y: 23.86, width: 144.87, height: 210.44 },
        landmarks: [at(95.43, 103.97), at(162.37, 102.29), at(134.63, 146.24), at(101.94, 178.35), at(160.95, 177.56)],
        smiles: false,
    },
];

/// What a bundle cannot do.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// Its bundle does not fit, or its graph is not what its manifest says.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The detector's network.
    #[error(transparent)]
    Detector(#[from] DetectorError),
    /// It fails on a picture.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The expression network, or it fails on a picture.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The identity or make-up network, or it fails on a picture.
    #[error(transparent)]
    Synthesis(#[from] SynthesisError),
    /// A picture of ours; cannot happen.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// A face of ours; cannot happen.
    #[error(transparent)]
    Align(#[from] AlignError),
    /// It overlooks a face.
    #[error("it does not find the face in {0}")]
    FaceMissed(&'static str),
    /// It sees faces that are not there.
    #[error("it finds {found} faces in {picture}, which has {there}")]
    FacesInvented {
        /// Where.
        picture: &'static str,
        /// It says.
        found: usize,
        /// There are.
        there: usize,
    },
    /// It reads the wrong emotion from a plain face.
    #[error("it reads {read} ({percent:.0} % happiness) from {picture}, {shows}")]
    Misread {
        /// Which.
        picture: &'static str,
        /// What the face shows.
        shows: &'static str,
        /// Its answer.
        read: &'static str,
        /// Its probability of happiness.
        percent: f32,
    },
    /// The neutral face is none.
    #[error("the neutral face that it makes of {0} is one flat tone")]
    FlatNeutral(&'static str),
    /// Numbers out of their range.
    #[error("its probabilities for {0} do not add up to 1, or its neutrality lies outside 0 to 1")]
    OutOfRange(&'static str),
    /// It does not tell people apart.
    #[error("it takes {one} and {other}, two people, for more alike ({apart:.2}) than two looks at {one} ({same:.2})")]
    Mistaken {
        /// Somebody.
        one: &'static str,
        /// Somebody else.
        other: &'static str,
        /// Their similarity.
        apart: f32,
        /// Of two crops of the first.
        same: f32,
    },
    /// The change is none that leaves a face.
    #[error("it changes {picture} by {levels:.0} grey levels on average: that is no face any more")]
    Overdone {
        /// Which.
        picture: &'static str,
        /// Over the whole crop.
        levels: f32,
    },
    /// The reference is not looked at.
    #[error("it puts the same on {0} whatever the reference wears")]
    ReferenceIgnored(&'static str),
    /// The person is not looked at.
    #[error("it makes the same face of {0} whoever it is to be")]
    PersonIgnored(&'static str),
    /// Too slow for this machine.
    #[error("it takes {took_ms:.1} ms a picture, the present one {present_ms:.1}: more than {SLOWER} times as long")]
    Slow {
        /// Its fastest run.
        took_ms: f64,
        /// The present bundle's.
        present_ms: f64,
    },
}

/// Tries `candidate`; `present` is the bundle whose time it is measured by.
///
/// # Errors
/// [`SelfTestError`]: the first thing that it cannot do.
pub fn run(candidate: &Bundle, present: &Bundle, nn: Settings) -> Result<(), SelfTestError> {
    match candidate.manifest().task {
        Task::Detector => {
            let mut detectors = [detector(candidate, nn)?, detector(present, nn)?];
            find_faces(&mut detectors[0])?;
            let picture = PORTRAITS[0].picture()?;
            let mut found = Vec::new();
            compare(|which| Ok(detectors[which].detect(&picture, &mut found)?))
        }
        Task::Derl => {
            let mut readers = [derl(candidate, nn)?, derl(present, nn)?];
            read_faces(&mut readers[0])?;
            let (face, mut reading) = (PORTRAITS[0].aligned()?, Reading::default());
            compare(|which| Ok(readers[which].read(&face, &mut reading)?))
        }
        Task::Identity => {
            let mut readers = [identity(candidate, nn)?, identity(present, nn)?];
            tell_apart(&mut readers[0])?;
            if candidate.identity()?.has_generator {
                exchange(&GeneratorModel::new(candidate.clone(), nn)?)?;
            }
            let face = PORTRAITS[0].aligned()?;
            compare(|which| Ok(readers[which].embed(&face).map(drop)?))
        }
        Task::Makeup => {
            let (mut on, mut off) = (artist(candidate, Makeup::Applied, nn)?, artist(candidate, Makeup::Bare, nn)?);
            let (mut present_on, mut present_off) =
                (artist(present, Makeup::Applied, nn)?, artist(present, Makeup::Bare, nn)?);
            make_up(&mut on, &mut off)?;
            let (face, mut delta) = (PORTRAITS[0].aligned()?, Delta::default());
            compare(|which| {
                let (on, off) = if which == 0 { (&mut on, &mut off) } else { (&mut present_on, &mut present_off) };
                on.paint(&face, &mut delta)?;
                Ok(off.paint(&face, &mut delta)?)
            })
        }
    }
}

impl Portrait {
    fn picture(&self) -> Result<RgbImage, PictureError> {
        decode_still(Path::new(self.name), ImageFormat::Jpeg, self.jpeg, PictureLimits::default())
    }

    fn aligned(&self) -> Result<AlignedFace, SelfTestError> {
        self.aligned_off_by(0.0)
    }

    /// As a detector gives it that is a little off.
    fn aligned_off_by(&self, px: f32) -> Result<AlignedFace, SelfTestError> {
        let mut face = AlignedFace::default();
        let landmarks = self.landmarks.map(|p| at(p.x + px, p.y - 0.5 * px));
        align(&self.picture()?, &landmarks, &mut face)?;
        Ok(face)
    }
}

fn detector(bundle: &Bundle, nn: Settings) -> Result<Detector, SelfTestError> {
    let model = DetectorModel::new(bundle.clone(), nn)?;
    Ok(Detector::new(&model, DetectOptions::still(&model)))
}

fn derl(bundle: &Bundle, nn: Settings) -> Result<Derl, SelfTestError> {
    Ok(Derl::new(&DerlModel::new(bundle.clone(), nn)?)?)
}

fn identity(bundle: &Bundle, nn: Settings) -> Result<Identity, SelfTestError> {
    Ok(Identity::new(&IdentityModel::new(bundle.clone(), nn)?)?)
}

fn artist(bundle: &Bundle, makeup: Makeup, nn: Settings) -> Result<Artist, SelfTestError> {
    Ok(Artist::new(&MakeupModel::new(bundle.clone(), makeup, nn)?)?)
}

/// Two looks at one person are more alike than one at each of two.
fn tell_apart(identity: &mut Identity) -> Result<(), SelfTestError> {
    let mut looks = Vec::new();
    for portrait in &PORTRAITS {
        looks.push((identity.embed(&portrait.aligned()?)?, identity.embed(&portrait.aligned_off_by(1.0)?)?));
    }
    check_likeness(&looks)
}

fn check_likeness(looks: &[(Embedding, Embedding)]) -> Result<(), SelfTestError> {
    for (i, (look, second)) in looks.iter().enumerate() {
        let same = look.similarity(second);
        for (k, (stranger, _)) in looks.iter().enumerate().filter(|(k, _)| *k != i) {
            let apart = look.similarity(stranger);
            if apart >= same {
                let (one, other) = (PORTRAITS[i].name, PORTRAITS[k].name);
                return Err(SelfTestError::Mistaken { one, other, apart, same });
            }
        }
    }
    Ok(())
}

/// The faces of two people in a third one's place differ, and so do those of the avatars.
fn exchange(model: &GeneratorModel) -> Result<(), SelfTestError> {
    let mut generator = Generator::new(model)?;
    let mut people = PORTRAITS.iter().map(Portrait::aligned).collect::<Result<Vec<_>, _>>()?;
    people.extend(model.avatars().iter().map(|avatar| avatar.face().clone()));
    let (picture, looks) = (PORTRAITS[0].name, PORTRAITS[0].aligned()?);
    let mut deltas: Vec<Delta> = Vec::with_capacity(people.len());
    for person in &people {
        let mut delta = Delta::default();
        generator.set_person(person)?;
        generator.exchange(&looks, &mut delta)?;
        check_levels(picture, &delta)?;
        if deltas.iter().any(|other| apart(&delta, other) < LEAST_APART) {
            return Err(SelfTestError::PersonIgnored(picture));
        }
        deltas.push(delta);
    }
    Ok(())
}

/// Grey levels on average.
fn apart(a: &Delta, b: &Delta) -> f32 {
    mean(a.planes().iter().zip(b.planes()).map(|(a, b)| a - b))
}

fn make_up(on: &mut Artist, off: &mut Artist) -> Result<(), SelfTestError> {
    let (mut delta, mut other) = (Delta::default(), Delta::default());
    for (i, portrait) in PORTRAITS.iter().enumerate() {
        let (picture, face) = (portrait.name, portrait.aligned()?);
        off.paint(&face, &mut delta)?;
        check_levels(picture, &delta)?;
        let references = [1, 2].map(|step| &PORTRAITS[(i + step) % PORTRAITS.len()]);
        on.set_reference(&references[0].aligned()?)?;
        on.paint(&face, &mut delta)?;
        check_levels(picture, &delta)?;
        on.set_reference(&references[1].aligned()?)?;
        on.paint(&face, &mut other)?;
        check_levels(picture, &other)?;
        if apart(&delta, &other) < LEAST_APART {
            return Err(SelfTestError::ReferenceIgnored(picture));
        }
    }
    Ok(())
}

fn check_levels(picture: &'static str, delta: &Delta) -> Result<(), SelfTestError> {
    let levels = mean(delta.planes().iter().copied());
    if levels <= MOST_CHANGED { Ok(()) } else { Err(SelfTestError::Overdone { picture, levels }) }
}

/// Of absolute values.
fn mean(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len() as f32;
    values.map(f32::abs).sum::<f32>() / count
}

fn find_faces(detector: &mut Detector) -> Result<(), SelfTestError> {
    let mut found = Vec::new();
    for portrait in &PORTRAITS {
        detector.detect(&portrait.picture()?, &mut found)?;
        if !found.iter().any(|face: &Face| overlap(face.rect, portrait.rect) >= SAME_FACE) {
            return Err(SelfTestError::FaceMissed(portrait.name));
        }
        check_count(portrait.name, found.len(), 1, MOST_IN_A_PORTRAIT)?;
    }
    let grey = RgbImage { width_px: 256, height_px: 256, data: vec![128; 3 * 256 * 256] };
    detector.detect(&grey, &mut found)?;
    check_count("a grey picture", found.len(), 0, 0)
}

fn check_count(picture: &'static str, found: usize, there: usize, most: usize) -> Result<(), SelfTestError> {
    if found <= most { Ok(()) } else { Err(SelfTestError::FacesInvented { picture, found, there }) }
}

/// Intersection over union.
fn overlap(a: Rect, b: Rect) -> f32 {
    let along = |a: f32, a_size: f32, b: f32, b_size: f32| ((a + a_size).min(b + b_size) - a.max(b)).max(0.0);
    let common = along(a.x, a.width, b.x, b.width) * along(a.y, a.height, b.y, b.height);
    common / (a.width * a.height + b.width * b.height - common)
}

fn read_faces(derl: &mut Derl) -> Result<(), SelfTestError> {
    let mut reading = Reading::default();
    for portrait in &PORTRAITS {
        derl.read(&portrait.aligned()?, &mut reading)?;
        check_reading(portrait, &reading)?;
    }
    Ok(())
}

fn check_reading(portrait: &Portrait, reading: &Reading) -> Result<(), SelfTestError> {
    let picture = portrait.name;
    let sum: f32 = reading.probabilities.0.iter().sum();
    if (sum - 1.0).abs() > 1e-3 || !(0.0..=1.0).contains(&reading.neutrality) {
        return Err(SelfTestError::OutOfRange(picture));
    }
    if reading.neutral.iter().all(|tone| *tone == reading.neutral[0]) {
        return Err(SelfTestError::FlatNeutral(picture));
    }
    let (top, happiness) = (reading.probabilities.top(), reading.probabilities.0[Emotion::Happiness as usize]);
    let right = if portrait.smiles { top == Emotion::Happiness } else { happiness < UNHAPPY };
    if right {
        return Ok(());
    }
    let shows = if portrait.smiles { "which smiles" } else { "which is startled" };
    Err(SelfTestError::Misread { picture, shows, read: top.name(), percent: 100.0 * happiness })
}

/// Runs the candidate (0) and the present one (1) by turns.
fn compare(mut run: impl FnMut(usize) -> Result<(), SelfTestError>) -> Result<(), SelfTestError> {
    let mut fastest = [Duration::MAX; 2];
    for _ in 0..TIMED_RUNS {
        for (which, fastest) in fastest.iter_mut().enumerate() {
            let begun = Instant::now();
            run(which)?;
            *fastest = (*fastest).min(begun.elapsed());
        }
    }
    check_time(fastest[0], fastest[1])
}

fn check_time(took: Duration, present: Duration) -> Result<(), SelfTestError> {
    if took <= present.mul_f64(SLOWER) + NOISE {
        return Ok(());
    }
    let ms = |time: Duration| 1e3 * time.as_secs_f64();
    Err(SelfTestError::Slow { took_ms: ms(took), present_ms: ms(present) })
}

/// The self-test in a process of its own (`visaged models verify`): a bundle that hangs, crashes or takes all memory ends
/// that one and nothing else.
#[derive(Debug)]
pub struct InAnotherProcess<'a> {
    /// How long it may take.
    pub limit: Duration,
    /// Set by another thread: ends early.
    pub cancel: &'a AtomicBool,
}

/// A slow board prepares both networks within a quarter of this.
pub const LIMIT: Duration = Duration::from_secs(120);
/// What the process may take beside its program; a bundle that needs more does not fit next to the daemon.
pub const MEMORY_BYTES: u64 = 384 << 20;

impl SelfTest for InAnotherProcess<'_> {
    fn run(&self, candidate: &Path, present: Option<&Path>) -> Result<(), String> {
        let program = std::env::current_exe().map_err(|error| format!("this program cannot be started: {error}"))?;
        let mut command = Command::new(program);
        command.args(["models", "verify", "--confined"]).arg(candidate);
        if let Some(present) = present {
            command.arg("--against").arg(present);
        }
        // It prints a few lines, which fit into the pipe unread.
        self.wait(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }
}

impl InAnotherProcess<'_> {
    fn wait(&self, command: &mut Command) -> Result<(), String> {
        let mut child = command.spawn().map_err(|error| format!("it could not be started: {error}"))?;
        let deadline = Instant::now() + self.limit;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if self.cancel.load(Ordering::Relaxed) => {
                    end(&mut child);
                    return Err("it was stopped".into());
                }
                Ok(None) if Instant::now() >= deadline => {
                    end(&mut child);
                    return Err(format!("it did not end within {} s", self.limit.as_secs()));
                }
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                Err(error) => {
                    end(&mut child);
                    return Err(format!("it cannot be watched: {error}"));
                }
            }
        };
        if status.success() {
            return Ok(());
        }
        let said = child.stderr.take().map(std::io::read_to_string).and_then(Result::ok).unwrap_or_default();
        let said = said.lines().find_map(|line| line.strip_prefix("visaged: "));
        Err(said.map_or_else(|| format!("it ended with {status}"), ToString::to_string))
    }
}

fn end(child: &mut std::process::Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthesis::makeup::tests::test_bundle;

    fn shell(script: &str, limit: Duration, cancel: &AtomicBool) -> Result<(), String> {
        InAnotherProcess { limit, cancel }.wait(Command::new("/bin/sh").args(["-c", script]).stderr(Stdio::piped()))
    }

    #[test]
    fn the_bundles_inside_the_binary_pass_the_self_test() {
        for task in Task::ALL.into_iter().filter(|task| Bundle::is_built_in(*task)) {
            let bundle = Bundle::built_in(task).unwrap();
            run(&bundle, &bundle, Settings::default()).unwrap();
        }
    }

    #[test]
    fn stand_ins_for_the_optional_bundles_pass_the_self_test() {
        for task in Task::ALL.into_iter().filter(|task| task.is_optional()) {
            let bundle = test_bundle(task);
            run(&bundle, &bundle, Settings::default()).unwrap();
        }
    }

    #[test]
    fn a_network_that_takes_everybody_for_one_person_is_refused() {
        let one = Embedding::from_answer(&[1.0; 128]).unwrap();
        let error = check_likeness(&[(one, one), (one, one)]).unwrap_err();
        assert!(matches!(error, SelfTestError::Mistaken { .. }), "{error}");
    }

    #[test]
    fn make_up_that_blanks_the_face_or_ignores_the_reference_is_refused() {
        let mut delta = Delta::default();
        delta.fill("makeup", &vec![-90.0; 3 * 128 * 128]).unwrap();
        assert!(matches!(check_levels("x", &delta), Err(SelfTestError::Overdone { .. })));
        let nn = Settings::default();
        let bundle = test_bundle(Task::Makeup);
        let [mut on, mut off] = [(), ()].map(|()| artist(&bundle, Makeup::Bare, nn).unwrap());
        assert!(matches!(make_up(&mut on, &mut off), Err(SelfTestError::ReferenceIgnored(_))));
    }

    #[test]
    fn a_generator_that_makes_the_same_of_everybody_is_refused() {
        let nn = Settings::default();
        exchange(&GeneratorModel::new(test_bundle(Task::Identity), nn).unwrap()).unwrap();
        let twice = test_bundle(Task::Identity).with_avatars(png(&[7, 7]));
        let error = exchange(&GeneratorModel::new(twice, nn).unwrap()).unwrap_err();
        assert!(matches!(error, SelfTestError::PersonIgnored(_)), "{error}");
    }

    /// Striped avatars, a seed each.
    fn png(seeds: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let stripe = |x: u32, y: u32| ((x % 128 / 4 + y / 8) * seeds[(x / 128) as usize] % 256) as u8;
        image::RgbImage::from_fn(128 * seeds.len() as u32, 128, |x, y| image::Rgb([stripe(x, y); 3]))
            .write_to(&mut std::io::Cursor::new(&mut bytes), ImageFormat::Png)
            .unwrap();
        bytes
    }

    #[test]
    fn a_detector_that_overlooks_or_invents_faces_is_refused() {
        let model = DetectorModel::new(Bundle::built_in(Task::Detector).unwrap(), Settings::default()).unwrap();
        let blind = DetectOptions { min_score: 0.999, ..DetectOptions::still(&model) };
        let error = find_faces(&mut Detector::new(&model, blind)).unwrap_err();
        assert!(matches!(error, SelfTestError::FaceMissed(_)), "{error}");
        let credulous = DetectOptions { min_score: 1e-9, ..DetectOptions::still(&model) };
        let error = find_faces(&mut Detector::new(&model, credulous)).unwrap_err();
        assert!(matches!(error, SelfTestError::FacesInvented { .. }), "{error}");
    }

    #[test]
    fn a_network_that_answers_the_same_to_every_face_is_refused() {
        let readings = Emotion::ALL.map(|emotion| {
            let mut reading = Reading::default();
            reading.probabilities.0 = [0.0; 8];
            reading.probabilities.0[emotion as usize] = 1.0;
            reading.neutral[0] = 1;
            reading
        });
        for reading in readings {
            let result = PORTRAITS.iter().try_for_each(|portrait| check_reading(portrait, &reading));
            assert!(matches!(result, Err(SelfTestError::Misread { .. })), "{reading:?}");
        }
        let flat = check_reading(&PORTRAITS[2], &Reading::default());
        assert!(matches!(flat, Err(SelfTestError::FlatNeutral(_))));
    }

    #[test]
    fn a_bundle_much_slower_than_the_present_one_is_refused() {
        let ms = Duration::from_millis;
        assert!(check_time(ms(20), ms(10)).is_ok() && check_time(ms(3), ms(0)).is_ok());
        assert!(matches!(check_time(ms(29), ms(10)), Err(SelfTestError::Slow { .. })));
    }

    #[test]
    fn a_self_test_that_fails_hangs_or_dies_is_told_and_ended() {
        let never = AtomicBool::new(false);
        assert_eq!(shell("exit 0", LIMIT, &never), Ok(()));
        let refused = shell("echo 'visaged: it does not find the face' >&2; exit 1", LIMIT, &never);
        assert_eq!(refused, Err("it does not find the face".into()));
        assert!(shell("kill -9 $$", LIMIT, &never).unwrap_err().contains("signal: 9"));
        assert_eq!(shell("exec sleep 100", Duration::ZERO, &never), Err("it did not end within 0 s".into()));
        assert_eq!(shell("exec sleep 100", LIMIT, &AtomicBool::new(true)), Err("it was stopped".into()));
    }
}
