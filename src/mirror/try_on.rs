//! The try-on: make-up drawn on the faces that the page shows, as a reference picture wears it, or taken off.
//!
//! The page sets a wish ([`TryOn`]); whoever draws for the page looks at it ([`Painter`]). Nothing goes the other way: readings, events and
//! MQTT know nothing of it, and are made of the picture as it was.
//! Invariants: a reference is kept in memory only, as one aligned face, and never handed out; pictures from outside are decoded within
//! [`MOST_BYTES`] and [`MOST_PIXELS`], one at a time; a network that fails turns the try-on off and nothing else; nothing is drawn while nobody
//! watches.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::Semaphore;

use crate::expression::ObservedFace;
use crate::face::AlignedFace;
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::frame::{RgbImage, Scaler};
use crate::picture::{FileKind, PictureError, PictureLimits, decode_still};
use crate::synthesis::SynthesisError;
use crate::synthesis::composite::Composite;
use crate::synthesis::makeup::{Artist, Delta, Look, MakeupModel};

/// A reference picture's file is no larger.
pub const MOST_BYTES: usize = 4 << 20;
/// A reference picture has no more pixels.
pub const MOST_PIXELS: u64 = 16_000_000;
/// Its face is looked for at this size at most.
const LONGEST_SIDE_PX: u32 = 1280;
/// Of more faces in view, the first ones are drawn on.
const MOST_FACES: usize = 4;

/// What is drawn on faces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Show {
    /// Nothing: faces as they are.
    #[default]
    Nothing,
    /// The reference's make-up.
    Makeup,
    /// Faces without make-up.
    Bare,
}

impl Show {
    /// By the name that the page uses.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Nothing, Self::Makeup, Self::Bare].into_iter().find(|show| show.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Makeup => "makeup",
            Self::Bare => "bare",
        }
    }
}

/// What the page says of the try-on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct TryOnState {
    pub(super) show: Show,
    pub(super) strength: f32,
    /// Whether a reference is there.
    pub(super) reference: bool,
    /// Why it was turned off, where it failed.
    pub(super) problem: Option<String>,
}

/// Why a reference was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// Not a still picture of a known kind.
    #[error("this is not a picture but {0}; JPEG, PNG and WebP are read")]
    NotAPicture(&'static str),
    /// It cannot be decoded, or is too large.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The detector failed.
    #[error("{0}")]
    Detect(#[from] crate::face::detect::DetectError),
    /// Nobody is in it.
    #[error("no face was found in the picture: take one that shows a face from the front")]
    NoFace,
}

/// What is to be drawn, and with which networks; clones share one wish.
#[derive(Clone)]
pub struct TryOn {
    shared: Arc<Shared>,
}

struct Shared {
    detector: DetectorModel,
    applied: MakeupModel,
    bare: MakeupModel,
    wish: Mutex<Wish>,
    /// Held while a reference is looked at.
    turn: Semaphore,
    failed: Box<dyn Fn() + Send + Sync>,
}

#[derive(Clone, Debug)]
struct Wish {
    show: Show,
    strength: f32,
    reference: Option<Arc<AlignedFace>>,
    problem: Option<String>,
}

impl std::fmt::Debug for TryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TryOn").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl TryOn {
    /// Nothing is drawn yet. `failed` is called when a network fails on a face.
    pub fn new(
        detector: DetectorModel,
        applied: MakeupModel,
        bare: MakeupModel,
        failed: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let wish = Wish { show: Show::Nothing, strength: 1.0, reference: None, problem: None };
        let (wish, turn, failed) = (Mutex::new(wish), Semaphore::new(1), Box::new(failed));
        Self { shared: Arc::new(Shared { detector, applied, bare, wish, turn, failed }) }
    }

    /// Draws something else from now on. Without a reference no make-up can be put on: it then stays as it was.
    pub(super) fn set(&self, show: Option<Show>, strength: Option<f32>) -> bool {
        let mut wish = self.wish();
        if show == Some(Show::Makeup) && wish.reference.is_none() {
            return false;
        }
        if let Some(show) = show {
            (wish.show, wish.problem) = (show, None);
        }
        if let Some(strength) = strength.filter(|strength| strength.is_finite()) {
            wish.strength = strength.clamp(0.0, 1.0);
        }
        true
    }

    /// Takes the largest face of a picture's file for the reference, and draws its make-up from now on. Takes its time: not for a thread
    /// that others wait for.
    ///
    /// # Errors
    /// [`ReferenceError`]; the one before then stays.
    pub(super) fn take_reference(&self, bytes: &[u8]) -> Result<(), ReferenceError> {
        let format = match FileKind::of(bytes) {
            Ok(FileKind::Still(format)) => format,
            Ok(FileKind::Gif | FileKind::Avi) => return Err(ReferenceError::NotAPicture("a clip")),
            Err(found) => return Err(ReferenceError::NotAPicture(found)),
        };
        let limits = PictureLimits { max_pixels: MOST_PIXELS, max_file_bytes: MOST_BYTES as u64 };
        let picture = smaller(decode_still(Path::new("the reference picture"), format, bytes, limits)?);
        let model = &self.shared.detector;
        let (mut found, mut aligned) = (Vec::new(), AlignedFace::default());
        Detector::new(model, DetectOptions::still(model)).detect(&picture, &mut found)?;
        let face = found.first().ok_or(ReferenceError::NoFace)?;
        align(&picture, &face.landmarks, &mut aligned).map_err(|_| ReferenceError::NoFace)?;
        let mut wish = self.wish();
        (wish.reference, wish.show, wish.problem) = (Some(Arc::new(aligned)), Show::Makeup, None);
        Ok(())
    }

    /// Forgets the reference; what it gave is not drawn any more.
    pub(super) fn forget_reference(&self) {
        let mut wish = self.wish();
        wish.reference = None;
        if wish.show == Show::Makeup {
            wish.show = Show::Nothing;
        }
    }

    /// References are looked at one at a time.
    pub(super) fn turn(&self) -> &Semaphore {
        &self.shared.turn
    }

    pub(super) fn state(&self) -> TryOnState {
        let wish = self.wish();
        TryOnState {
            show: wish.show,
            strength: wish.strength,
            reference: wish.reference.is_some(),
            problem: wish.problem.clone(),
        }
    }

    fn give_up(&self, problem: String) {
        (self.shared.failed)();
        tracing::warn!(problem, "the try-on was turned off");
        let mut wish = self.wish();
        (wish.show, wish.problem) = (Show::Nothing, Some(problem));
    }

    fn wish(&self) -> MutexGuard<'_, Wish> {
        self.shared.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A face is found in a smaller picture as well, and sooner.
fn smaller(picture: RgbImage) -> RgbImage {
    let longest = picture.width_px.max(picture.height_px);
    if longest <= LONGEST_SIDE_PX {
        return picture;
    }
    let side = |px: u32| (u64::from(px) * u64::from(LONGEST_SIDE_PX) / u64::from(longest)).max(1) as u32;
    let mut small = RgbImage::default();
    small.resize(side(picture.width_px), side(picture.height_px));
    Scaler::new().scale(&picture, &mut small);
    small
}

/// Draws what is wished for; its networks are set up when they are first needed.
pub(super) struct Painter {
    try_on: TryOn,
    applied: Option<Artist>,
    bare: Option<Artist>,
    reference: Option<Arc<AlignedFace>>,
    look: Look,
    delta: Delta,
    aligned: AlignedFace,
    composite: Composite,
}

impl Painter {
    pub(super) fn new(try_on: TryOn) -> Self {
        Self {
            try_on,
            applied: None,
            bare: None,
            reference: None,
            look: Look::default(),
            delta: Delta::default(),
            aligned: AlignedFace::default(),
            composite: Composite::new(),
        }
    }

    /// Draws on the faces of `picture`; whether anything in it may be synthetic now.
    pub(super) fn draw(&mut self, picture: &mut RgbImage, faces: &[ObservedFace]) -> bool {
        let wish = self.try_on.wish().clone();
        if wish.show == Show::Nothing || wish.strength == 0.0 || faces.is_empty() {
            return false;
        }
        self.look.set_strength(wish.strength);
        // A panic among the networks is theirs alone: the page goes on.
        let drawn = catch_unwind(AssertUnwindSafe(|| self.draw_all(&wish, picture, faces)));
        let problem = match drawn {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the make-up network panicked".into(),
        };
        (self.applied, self.bare, self.reference) = (None, None, None);
        self.try_on.give_up(problem);
        true
    }

    fn draw_all(&mut self, wish: &Wish, picture: &mut RgbImage, faces: &[ObservedFace]) -> Result<(), SynthesisError> {
        let artist = match wish.show {
            Show::Bare => ready(&mut self.bare, &self.try_on.shared.bare)?,
            _ => ready(&mut self.applied, &self.try_on.shared.applied)?,
        };
        if let (Show::Makeup, Some(reference)) = (wish.show, &wish.reference)
            && self.reference.as_ref().is_none_or(|known| !Arc::ptr_eq(known, reference))
        {
            artist.set_reference(reference)?;
            self.reference = Some(Arc::clone(reference));
        }
        for face in faces.iter().take(MOST_FACES) {
            // A face without landmarks worth the name stays as it is.
            let Ok(similarity) = align(picture, &face.face.landmarks, &mut self.aligned) else { continue };
            artist.paint(&self.aligned, &mut self.delta)?;
            self.composite.over_picture(&self.delta, &self.look, picture, &similarity);
        }
        Ok(())
    }
}

fn ready<'a>(place: &'a mut Option<Artist>, model: &MakeupModel) -> Result<&'a mut Artist, SynthesisError> {
    match place {
        Some(artist) => Ok(artist),
        None => Ok(place.insert(Artist::new(model)?)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::expression::{Emotion, Probabilities};
    use crate::face::{Face, TrackId};
    use crate::models::{Bundle, Task};
    use crate::nn::Settings;
    use crate::synthesis::makeup::Makeup;
    use crate::synthesis::makeup::tests::test_bundle;

    pub(in crate::mirror) fn try_on() -> (TryOn, Arc<AtomicUsize>) {
        let failures = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&failures);
        let nn = Settings::default();
        let detector = DetectorModel::new(Bundle::built_in(Task::Detector).unwrap(), nn).unwrap();
        let [on, off] = [Makeup::Applied, Makeup::Bare]
            .map(|makeup| MakeupModel::new(test_bundle(Task::Makeup), makeup, nn).unwrap());
        let count = move || {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        (TryOn::new(detector, on, off, count), failures)
    }

    pub(in crate::mirror) fn portrait() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces/sfhq_0000.jpg");
        std::fs::read(path).unwrap()
    }

    /// A picture with one face, as the pipeline shows it.
    fn scene() -> (RgbImage, Vec<ObservedFace>) {
        let limits = PictureLimits::default();
        let picture = decode_still(Path::new("x"), image::ImageFormat::Jpeg, &portrait(), limits).unwrap();
        let model = DetectorModel::new(Bundle::built_in(Task::Detector).unwrap(), Settings::default()).unwrap();
        let mut found: Vec<Face> = Vec::new();
        Detector::new(&model, DetectOptions::still(&model)).detect(&picture, &mut found).unwrap();
        let face = ObservedFace {
            track: TrackId(1),
            face: found[0],
            quality: 1.0,
            emotion: Emotion::Neutral,
            probabilities: Probabilities([0.125; 8]),
            neutrality: 1.0,
            neutral: Vec::new(),
        };
        (picture, vec![face])
    }

    fn other_reference() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces/london_004_smile.jpg");
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_wish_is_drawn_on_the_face_and_nowhere_else_and_nothing_leaves_the_picture_alone() {
        let (try_on, failures) = try_on();
        let mut painter = Painter::new(try_on.clone());
        let (before, faces) = scene();
        let draw = |painter: &mut Painter| {
            let mut picture = before.clone();
            (painter.draw(&mut picture, &faces), picture)
        };
        assert_eq!(draw(&mut painter), (false, before.clone()));
        assert!(!try_on.set(Some(Show::Makeup), None), "there is no reference yet");
        try_on.take_reference(&other_reference()).unwrap();
        assert_eq!(try_on.state().show, Show::Makeup);
        let (synthetic, on) = draw(&mut painter);
        assert!(synthetic && on != before);
        let width = 3 * before.width_px as usize;
        assert_eq!(on.data[..4 * width], before.data[..4 * width], "the top rows are no face");
        assert!(try_on.set(Some(Show::Bare), Some(0.5)));
        assert!(draw(&mut painter).0);
        assert!(try_on.set(None, Some(0.0)));
        assert_eq!(draw(&mut painter), (false, before.clone()));
        try_on.set(Some(Show::Makeup), Some(1.0));
        try_on.forget_reference();
        let state = try_on.state();
        assert_eq!((state.show, state.reference), (Show::Nothing, false));
        assert_eq!((draw(&mut painter), failures.load(Ordering::Relaxed)), ((false, before.clone()), 0));
    }

    #[test]
    fn a_picture_without_a_face_a_clip_and_text_are_refused_and_the_reference_before_stays() {
        let (try_on, _) = try_on();
        try_on.take_reference(&portrait()).unwrap();
        let mut png = Vec::new();
        image::RgbImage::from_pixel(200, 150, image::Rgb([90, 120, 90]))
            .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
            .unwrap();
        assert!(matches!(try_on.take_reference(&png), Err(ReferenceError::NoFace)));
        assert!(matches!(try_on.take_reference(b"GIF89a......"), Err(ReferenceError::NotAPicture("a clip"))));
        assert!(matches!(try_on.take_reference(b"this is text"), Err(ReferenceError::NotAPicture("text"))));
        assert!(matches!(try_on.take_reference(&portrait()[..2000]), Err(ReferenceError::Picture(_))));
        assert!(try_on.state().reference);
    }

    #[test]
    fn a_picture_that_would_take_gigabytes_is_refused_before_it_is_decoded() {
        let (try_on, _) = try_on();
        // The head of a PNG of 30000x30000 pixels.
        let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        bomb.extend_from_slice(&30_000_u32.to_be_bytes());
        bomb.extend_from_slice(&30_000_u32.to_be_bytes());
        bomb.extend_from_slice(&[8, 2, 0, 0, 0]);
        let crc = crc32(&bomb[12..]);
        bomb.extend_from_slice(&crc.to_be_bytes());
        bomb.extend_from_slice(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        let error = try_on.take_reference(&bomb).unwrap_err();
        let refused = matches!(&error, ReferenceError::Picture(PictureError::TooManyPixels { .. }));
        assert!(refused, "{error}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        })
    }

    #[test]
    fn a_failure_turns_the_try_on_off_and_is_counted_and_told() {
        let (try_on, failures) = try_on();
        try_on.set(Some(Show::Bare), None);
        try_on.give_up("no such tensor".into());
        let state = try_on.state();
        assert_eq!((state.show, state.problem.as_deref()), (Show::Nothing, Some("no such tensor")));
        assert_eq!(failures.load(Ordering::Relaxed), 1);
        assert!(try_on.set(Some(Show::Bare), None) && try_on.state().problem.is_none());
    }
}
