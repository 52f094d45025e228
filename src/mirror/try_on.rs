//! The try-on: what is drawn on the faces that the page shows: a reference picture's make-up or identity, no make-up, no expression, or
//! an avatar.
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

use crate::expression::composite::Change;
use crate::expression::derl::{Derl, DerlModel, ReadError};
use crate::expression::{ObservedFace, Reading};
use crate::face::AlignedFace;
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::frame::{RgbImage, Scaler};
use crate::models::Task;
use crate::picture::{FileKind, PictureError, PictureLimits, decode_still};
use crate::synthesis::SynthesisError;
use crate::synthesis::composite::Composite;
use crate::synthesis::delta::Delta;
use crate::synthesis::generator::{Generator, GeneratorModel};
use crate::synthesis::makeup::{Artist, Look, MakeupModel, MakeupModels};

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
    /// Faces without expression.
    Neutral,
    /// The reference's identity.
    Identity,
    /// A synthetic person's identity.
    Avatar,
}

impl Show {
    /// All of them.
    const ALL: [Self; 6] = [Self::Nothing, Self::Makeup, Self::Bare, Self::Neutral, Self::Identity, Self::Avatar];

    /// By the name that the page uses.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|show| show.name() == name)
    }

    /// Whether it draws what a reference picture has.
    fn needs_reference(self) -> bool {
        matches!(self, Self::Makeup | Self::Identity)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Makeup => "makeup",
            Self::Bare => "bare",
            Self::Neutral => "neutral",
            Self::Identity => "identity",
            Self::Avatar => "avatar",
        }
    }
}

/// What the page says of the try-on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct TryOnState {
    pub(super) show: Show,
    pub(super) strength: f32,
    /// What there are networks for.
    pub(super) offered: Vec<Show>,
    /// Which avatar, and of how many.
    pub(super) avatar: usize,
    pub(super) avatars: usize,
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

/// The networks of a try-on. What one is missing for is not offered.
#[derive(Clone, Debug)]
pub struct Networks {
    /// Finds the face of a reference picture.
    pub detector: DetectorModel,
    /// Takes expressions off.
    pub derl: DerlModel,
    /// Puts make-up on, and takes it off.
    pub makeup: Option<MakeupModels>,
    /// Gives other identities.
    pub generator: Option<GeneratorModel>,
}

impl Networks {
    fn offers(&self, show: Show) -> bool {
        match show {
            Show::Nothing | Show::Neutral => true,
            Show::Makeup | Show::Bare => self.makeup.is_some(),
            Show::Identity => self.generator.is_some(),
            Show::Avatar => self.avatars() > 0,
        }
    }

    fn avatars(&self) -> usize {
        self.generator.as_ref().map_or(0, |generator| generator.avatars().len())
    }

    /// The task whose network draws it.
    fn task(show: Show) -> Task {
        match show {
            Show::Nothing | Show::Neutral => Task::Derl,
            Show::Makeup | Show::Bare => Task::Makeup,
            Show::Identity | Show::Avatar => Task::Identity,
        }
    }
}

/// Why something could not be drawn.
#[derive(Debug, thiserror::Error)]
enum DrawError {
    #[error(transparent)]
    Synthesis(#[from] SynthesisError),
    #[error(transparent)]
    Derl(#[from] ReadError),
    #[error("a network panicked")]
    Panic,
}

/// Why a wish was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// It takes a reference picture.
    #[error("no reference picture yet: choose one first")]
    NoReference,
    /// There is no network for it.
    #[error("no installed bundle can draw this: `visaged check` says which ones are there")]
    NotOffered,
}

/// What is to be drawn, and with which networks; clones share one wish.
#[derive(Clone)]
pub struct TryOn {
    shared: Arc<Shared>,
}

struct Shared {
    networks: Networks,
    wish: Mutex<Wish>,
    /// Held while a reference is looked at.
    turn: Semaphore,
    failed: Box<dyn Fn(Task) + Send + Sync>,
}

#[derive(Clone, Debug)]
struct Wish {
    show: Show,
    strength: f32,
    avatar: usize,
    reference: Option<Arc<AlignedFace>>,
    problem: Option<String>,
}

impl std::fmt::Debug for TryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TryOn").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl TryOn {
    /// Nothing is drawn yet. `failed` is called with the task of a network that fails on a face.
    pub fn new(networks: Networks, failed: impl Fn(Task) + Send + Sync + 'static) -> Self {
        let wish = Wish { show: Show::Nothing, strength: 1.0, avatar: 0, reference: None, problem: None };
        let (wish, turn, failed) = (Mutex::new(wish), Semaphore::new(1), Box::new(failed));
        Self { shared: Arc::new(Shared { networks, wish, turn, failed }) }
    }

    /// Draws something else from now on; of an avatar's number the remainder counts.
    ///
    /// # Errors
    /// [`WishError`]; all then stays as it was.
    pub(super) fn set(
        &self,
        show: Option<Show>,
        strength: Option<f32>,
        avatar: Option<usize>,
    ) -> Result<(), WishError> {
        let mut wish = self.wish();
        if let Some(show) = show {
            if !self.shared.networks.offers(show) {
                return Err(WishError::NotOffered);
            }
            if show.needs_reference() && wish.reference.is_none() {
                return Err(WishError::NoReference);
            }
            (wish.show, wish.problem) = (show, None);
        }
        if let Some(strength) = strength.filter(|strength| strength.is_finite()) {
            wish.strength = strength.clamp(0.0, 1.0);
        }
        if let Some(avatar) = avatar {
            wish.avatar = avatar.checked_rem(self.shared.networks.avatars()).unwrap_or(0);
        }
        Ok(())
    }

    /// Takes the largest face of a picture's file for the reference, and draws what it has from now on: what was
    /// drawn, where that takes a reference, else make-up, else its identity. Takes its time: not for a thread
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
        let model = &self.shared.networks.detector;
        let (mut found, mut aligned) = (Vec::new(), AlignedFace::default());
        Detector::new(model, DetectOptions::still(model)).detect(&picture, &mut found)?;
        let face = found.first().ok_or(ReferenceError::NoFace)?;
        align(&picture, &face.landmarks, &mut aligned).map_err(|_| ReferenceError::NoFace)?;
        let mut wish = self.wish();
        let shows = [wish.show, Show::Makeup, Show::Identity];
        let show = shows.into_iter().find(|show| show.needs_reference() && self.shared.networks.offers(*show));
        (wish.reference, wish.show, wish.problem) = (Some(Arc::new(aligned)), show.unwrap_or(wish.show), None);
        Ok(())
    }

    /// Forgets the reference; what it gave is not drawn any more.
    pub(super) fn forget_reference(&self) {
        let mut wish = self.wish();
        wish.reference = None;
        if wish.show.needs_reference() {
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
            offered: Show::ALL.into_iter().filter(|show| self.shared.networks.offers(*show)).collect(),
            avatar: wish.avatar,
            avatars: self.shared.networks.avatars(),
            reference: wish.reference.is_some(),
            problem: wish.problem.clone(),
        }
    }

    fn give_up(&self, show: Show, problem: String) {
        (self.shared.failed)(Networks::task(show));
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

/// Whose identity a generator gives.
#[derive(Clone, Debug)]
enum Person {
    Reference(Arc<AlignedFace>),
    Avatar(usize),
}

impl Person {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Reference(a), Self::Reference(b)) => Arc::ptr_eq(a, b),
            (Self::Avatar(a), Self::Avatar(b)) => a == b,
            _ => false,
        }
    }
}

/// The networks that were needed so far.
#[derive(Default)]
struct Ready {
    applied: Option<(Artist, Option<Arc<AlignedFace>>)>,
    bare: Option<Artist>,
    generator: Option<(Generator, Option<Person>)>,
    derl: Option<Derl>,
}

/// Draws what is wished for; its networks are set up when they are first needed.
pub(super) struct Painter {
    try_on: TryOn,
    ready: Ready,
    look: Look,
    delta: Delta,
    reading: Reading,
    aligned: AlignedFace,
    composite: Composite,
}

impl Painter {
    pub(super) fn new(try_on: TryOn) -> Self {
        Self {
            try_on,
            ready: Ready::default(),
            look: Look::default(),
            delta: Delta::default(),
            reading: Reading::default(),
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
        if let Err(error) = drawn.unwrap_or(Err(DrawError::Panic)) {
            self.ready = Ready::default();
            self.try_on.give_up(wish.show, error.to_string());
        }
        true
    }

    fn draw_all(&mut self, wish: &Wish, picture: &mut RgbImage, faces: &[ObservedFace]) -> Result<(), DrawError> {
        for face in faces.iter().take(MOST_FACES) {
            // A face without landmarks worth the name stays as it is.
            let Ok(similarity) = align(picture, &face.face.landmarks, &mut self.aligned) else { continue };
            if wish.show == Show::Neutral {
                // What was observed may be an earlier frame's neutral face.
                let derl = self.ready.derl(&self.try_on.shared.networks)?;
                derl.read(&self.aligned, &mut self.reading)?;
                let change = Change::new(&self.aligned, derl.luminance(), &self.reading);
                change.over_picture(picture, &similarity);
            } else if self.change(wish)? {
                self.composite.over_picture(&self.delta, &self.look, picture, &similarity);
            }
        }
        Ok(())
    }

    /// What takes the aligned face to what is wished for; `false` where nothing can.
    fn change(&mut self, wish: &Wish) -> Result<bool, DrawError> {
        let networks = &self.try_on.shared.networks;
        let (aligned, delta) = (&self.aligned, &mut self.delta);
        match (wish.show, &wish.reference, &networks.makeup, &networks.generator) {
            (Show::Makeup, Some(reference), Some(models), _) => {
                self.ready.applied(&models.applied, reference)?.paint(aligned, delta)?;
            }
            (Show::Bare, _, Some(models), _) => {
                let artist = match &mut self.ready.bare {
                    Some(artist) => artist,
                    place => place.insert(Artist::new(&models.bare)?),
                };
                artist.paint(aligned, delta)?;
            }
            (Show::Identity, Some(reference), _, Some(model)) => {
                self.ready.generator(model, Person::Reference(Arc::clone(reference)))?.exchange(aligned, delta)?;
            }
            (Show::Avatar, _, _, Some(model)) => {
                self.ready.generator(model, Person::Avatar(wish.avatar))?.exchange(aligned, delta)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Ready {
    fn derl(&mut self, networks: &Networks) -> Result<&mut Derl, DrawError> {
        Ok(match &mut self.derl {
            Some(derl) => derl,
            place => place.insert(Derl::new(&networks.derl)?),
        })
    }

    fn applied(&mut self, model: &MakeupModel, wanted: &Arc<AlignedFace>) -> Result<&mut Artist, SynthesisError> {
        let (artist, reference) = match &mut self.applied {
            Some(there) => there,
            place => place.insert((Artist::new(model)?, None)),
        };
        if reference.as_ref().is_none_or(|known| !Arc::ptr_eq(known, wanted)) {
            artist.set_reference(wanted)?;
            *reference = Some(Arc::clone(wanted));
        }
        Ok(artist)
    }

    fn generator(&mut self, model: &GeneratorModel, wanted: Person) -> Result<&mut Generator, SynthesisError> {
        let (generator, person) = match &mut self.generator {
            Some(there) => there,
            place => place.insert((Generator::new(model)?, None)),
        };
        if person.as_ref().is_none_or(|known| !known.is(&wanted)) {
            // Of the one before nothing is left where this one cannot be taken.
            *person = None;
            match &wanted {
                Person::Reference(face) => generator.set_person(face)?,
                Person::Avatar(k) => match model.avatars().get(*k) {
                    Some(avatar) => generator.set_person(avatar.face())?,
                    None => return Err(SynthesisError::Nobody),
                },
            }
            *person = Some(wanted);
        }
        Ok(generator)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::expression::{Emotion, Probabilities};
    use crate::face::{Face, TrackId};
    use crate::models::Bundle;
    use crate::nn::Settings;
    use crate::synthesis::makeup::tests::test_bundle;

    pub(in crate::mirror) fn try_on() -> (TryOn, Arc<AtomicUsize>) {
        let failures = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&failures);
        let nn = Settings::default();
        let detector = DetectorModel::new(Bundle::built_in(Task::Detector).unwrap(), nn).unwrap();
        let networks = Networks {
            detector,
            derl: DerlModel::new(Bundle::built_in(Task::Derl).unwrap(), nn).unwrap(),
            makeup: Some(MakeupModels::new(&test_bundle(Task::Makeup), nn).unwrap()),
            generator: Some(GeneratorModel::new(test_bundle(Task::Identity), nn).unwrap()),
        };
        let count = move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        (TryOn::new(networks, count), failures)
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
        assert_eq!(try_on.set(Some(Show::Makeup), None, None), Err(WishError::NoReference));
        try_on.take_reference(&other_reference()).unwrap();
        assert_eq!(try_on.state().show, Show::Makeup);
        let (synthetic, on) = draw(&mut painter);
        assert!(synthetic && on != before);
        let width = 3 * before.width_px as usize;
        assert_eq!(on.data[..4 * width], before.data[..4 * width], "the top rows are no face");
        try_on.set(Some(Show::Bare), Some(0.5), None).unwrap();
        assert!(draw(&mut painter).0);
        try_on.set(None, Some(0.0), None).unwrap();
        assert_eq!(draw(&mut painter), (false, before.clone()));
        try_on.set(Some(Show::Makeup), Some(1.0), None).unwrap();
        try_on.forget_reference();
        let state = try_on.state();
        assert_eq!((state.show, state.reference), (Show::Nothing, false));
        assert_eq!((draw(&mut painter), failures.load(Ordering::Relaxed)), ((false, before.clone()), 0));
    }

    #[test]
    fn each_thing_that_is_offered_draws_something_of_its_own_on_the_face() {
        let (try_on, failures) = try_on();
        let mut painter = Painter::new(try_on.clone());
        let (before, faces) = scene();
        try_on.take_reference(&other_reference()).unwrap();
        let mut drawn = Vec::new();
        for (show, avatar) in [
            (Show::Makeup, 0),
            (Show::Bare, 0),
            (Show::Neutral, 0),
            (Show::Identity, 0),
            (Show::Avatar, 0),
            (Show::Avatar, 1),
            (Show::Identity, 0),
        ] {
            try_on.set(Some(show), None, Some(avatar)).unwrap();
            let mut picture = before.clone();
            assert!(painter.draw(&mut picture, &faces));
            assert!(picture != before, "{show:?}");
            drawn.push(picture);
        }
        let again = drawn.pop();
        assert_eq!(again.as_ref(), drawn.get(3), "the reference is taken anew after an avatar");
        for (i, picture) in drawn.iter().enumerate() {
            assert!(drawn[..i].iter().all(|other| other != picture), "{i}");
        }
        assert_eq!(failures.load(Ordering::Relaxed), 0, "{:?}", try_on.state().problem);
    }

    #[test]
    fn what_no_bundle_can_draw_is_not_offered_and_avatars_are_counted_round() {
        let (full, _) = try_on();
        let networks = Networks { makeup: None, generator: None, ..full.shared.networks.clone() };
        let bare = TryOn::new(networks, |_| ());
        assert_eq!(bare.state().offered, [Show::Nothing, Show::Neutral]);
        for show in [Show::Makeup, Show::Bare, Show::Identity, Show::Avatar] {
            assert_eq!(bare.set(Some(show), None, Some(3)), Err(WishError::NotOffered));
        }
        assert_eq!(full.state().offered, Show::ALL);
        full.set(Some(Show::Avatar), None, Some(5)).unwrap();
        assert_eq!((full.state().avatar, full.state().avatars), (1, 2));
    }

    #[test]
    fn a_new_reference_goes_on_with_what_was_drawn_from_the_one_before() {
        let (try_on, _) = try_on();
        try_on.take_reference(&portrait()).unwrap();
        assert_eq!(try_on.state().show, Show::Makeup);
        try_on.set(Some(Show::Identity), None, None).unwrap();
        try_on.take_reference(&other_reference()).unwrap();
        assert_eq!(try_on.state().show, Show::Identity);
        try_on.forget_reference();
        assert_eq!(try_on.state().show, Show::Nothing);
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
        try_on.set(Some(Show::Bare), None, None).unwrap();
        try_on.give_up(Show::Bare, "no such tensor".into());
        let state = try_on.state();
        assert_eq!((state.show, state.problem.as_deref()), (Show::Nothing, Some("no such tensor")));
        assert_eq!(failures.load(Ordering::Relaxed), 1);
        assert!(try_on.set(Some(Show::Bare), None, None).is_ok() && try_on.state().problem.is_none());
    }
}
