//! Make-up, put on as a reference wears it or taken off (after PairedCycleGAN: Chang, Lu, Yu, Finkelstein, CVPR 2018).
//!
//! Both networks answer with a [`Delta`]: what has to be added to an aligned face. How much of it is added, and where, is a [`Look`], so a
//! slider costs no network. The two networks of a bundle share nothing; a [`MakeupModel`] is one of them, and nobody pays for the other.
//! Invariant: the weight of a [`Look`] is 0 at the edge of an aligned face and beyond, and fades
//! towards it, whatever regions it has.

use std::str::FromStr;
use std::sync::Arc;

use super::SynthesisError;
use super::delta::{Delta, to_planes};
use crate::face::{ALIGNED_SIDE_PX, AlignedFace, Point};
use crate::models::{Bundle, BundleFault, MakeupManifest};
use crate::nn::{Network, NnError, Plan, Session, Settings};

const SIDE: usize = ALIGNED_SIDE_PX;
const PIXELS: usize = SIDE * SIDE;

/// One of the two networks of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Makeup {
    /// Puts on what a reference wears.
    Applied,
    /// Takes it off.
    Bare,
}

impl Makeup {
    /// The output of the graph.
    pub fn output(self) -> &'static str {
        match self {
            Self::Applied => MakeupManifest::APPLIED,
            Self::Bare => MakeupManifest::BARE,
        }
    }
}

/// One network of a `makeup` bundle; shared by several threads.
#[derive(Clone, Debug)]
pub struct MakeupModel {
    plan: Plan,
    makeup: Makeup,
    bundle: Arc<Bundle>,
}

impl MakeupModel {
    /// Reads one network of a verified bundle.
    ///
    /// # Errors
    /// [`SynthesisError`] where the bundle is for another task, or its graph has other tensors than its manifest says.
    pub fn new(bundle: Bundle, makeup: Makeup, settings: impl Into<Settings>) -> Result<Self, SynthesisError> {
        bundle.makeup()?;
        let shape: &[usize] = &MakeupManifest::SHAPE;
        let inputs = [(MakeupManifest::FACE, shape), (MakeupManifest::REFERENCE, shape)];
        let plan = Plan::prepare_part(bundle.model(), &inputs, &[makeup.output()], settings).map_err(failed)?;
        let found = plan.outputs().first().map(|output| output.shape.clone()).unwrap_or_default();
        if found != shape {
            let (tensor, expected) = (makeup.output().into(), shape.to_vec());
            return Err(bundle.refuse(BundleFault::Shape { tensor, expected, found }).into());
        }
        Ok(Self { plan, makeup, bundle: Arc::new(bundle) })
    }

    /// The verified bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Which of its networks.
    pub fn makeup(&self) -> Makeup {
        self.makeup
    }

    /// How the network is run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

fn failed(source: NnError) -> SynthesisError {
    SynthesisError::Network { task: "makeup", source }
}

/// Both halves of a make-up bundle.
#[derive(Clone, Debug)]
pub struct MakeupModels {
    /// Puts a reference's make-up on.
    pub applied: MakeupModel,
    /// Takes make-up off.
    pub bare: MakeupModel,
}

impl MakeupModels {
    /// Reads both of a verified bundle.
    ///
    /// # Errors
    /// [`SynthesisError`] as [`MakeupModel::new`].
    pub fn new(bundle: &Bundle, settings: Settings) -> Result<Self, SynthesisError> {
        Ok(Self {
            applied: MakeupModel::new(bundle.clone(), Makeup::Applied, settings)?,
            bare: MakeupModel::new(bundle.clone(), Makeup::Bare, settings)?,
        })
    }
}

/// Runs one network; one a thread. Allocates nothing once warm but what the engine does.
pub struct Artist {
    network: Session,
    /// For each of the network's inputs, whether it is the reference.
    references: Vec<bool>,
    face: Vec<f32>,
    reference: Vec<f32>,
    outputs: Vec<Vec<f32>>,
}

impl std::fmt::Debug for Artist {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artist").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Artist {
    /// One with memory of its own over a shared model. Without a reference (see [`Artist::set_reference`]) it looks at black.
    ///
    /// # Errors
    /// [`SynthesisError::Network`] where the engine cannot set up its state.
    pub fn new(model: &MakeupModel) -> Result<Self, SynthesisError> {
        let network = model.plan.network().map_err(failed)?;
        let references = network.inputs().iter().map(|input| input.name == MakeupManifest::REFERENCE).collect();
        let black = || vec![0.0; 3 * PIXELS];
        Ok(Self { network, references, face: black(), reference: black(), outputs: Vec::new() })
    }

    /// Whose make-up is put on from now on; taking off knows no reference.
    ///
    /// # Errors
    /// [`SynthesisError::Crop`] where it lacks bytes.
    pub fn set_reference(&mut self, face: &AlignedFace) -> Result<(), SynthesisError> {
        to_planes(face, &mut self.reference)
    }

    /// What takes `face` to its other self.
    ///
    /// # Errors
    /// [`SynthesisError`]; `delta` is then unspecified.
    pub fn paint(&mut self, face: &AlignedFace, delta: &mut Delta) -> Result<(), SynthesisError> {
        to_planes(face, &mut self.face)?;
        let pick = |i: usize| match self.references.get(i) {
            Some(true) => self.reference.as_slice(),
            _ => self.face.as_slice(),
        };
        let inputs = [pick(0), pick(1)];
        let taken = self.references.len().min(inputs.len());
        self.network.run(&inputs[..taken], &mut self.outputs).map_err(failed)?;
        delta.fill("makeup", self.outputs.first().map_or(&[], Vec::as_slice))
    }
}

/// A part of a face that make-up goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// Around the mouth.
    Lips,
    /// Around both eyes, brows included.
    Eyes,
    /// The rest of the face.
    Skin,
}

impl Region {
    /// All of them: together the whole face.
    pub const ALL: [Self; 3] = [Self::Lips, Self::Eyes, Self::Skin];

    /// The name on the command line and in the page.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lips => "lips",
            Self::Eyes => "eyes",
            Self::Skin => "skin",
        }
    }

    /// How much a place of an aligned face belongs to it, in [0, 1]; of all regions together 1.
    pub fn share(self, p: Point) -> f32 {
        let within = |x: f32, y: f32, (wide, high): (f32, f32)| fade(((p.x - x) / wide).hypot((p.y - y) / high), 0.6);
        // Where the template has mouth and eyes; brows lie above the eyes.
        let lips = within(64.0, 97.0, (34.0, 24.0));
        let eyes = 1.0 - [40.5, 87.5].map(|x| 1.0 - within(x, 45.0, (27.0, 24.0))).iter().product::<f32>();
        match self {
            Self::Lips => lips,
            Self::Eyes => eyes,
            Self::Skin => 1.0 - lips - eyes,
        }
    }
}

/// A word that is no region.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no region `{0}`: take some of lips, eyes, skin")]
pub struct NoRegion(String);

impl FromStr for Region {
    type Err = NoRegion;

    fn from_str(text: &str) -> Result<Self, NoRegion> {
        Self::ALL
            .into_iter()
            .find(|region| region.name() == text)
            .ok_or_else(|| NoRegion(text.chars().take(64).collect()))
    }
}

/// The ellipse of a face in an aligned face: middle and half axes, in pixels. It lies within the square.
pub(super) const FACE: (Point, f32, f32) = (Point { x: 64.0, y: 66.6 }, 60.2, 60.4);
/// The part of the ellipse's radius within which all of a delta counts.
const WHOLE: f32 = 0.82;

/// How far a place lies from the middle of the face: 1 on the ellipse's edge.
pub(super) fn radius(p: Point) -> f32 {
    let (middle, wide, high) = FACE;
    ((p.x - middle.x) / wide).hypot((p.y - middle.y) / high)
}

/// 1 up to `whole`, 0 from 1 on, smooth between.
fn fade(radius: f32, whole: f32) -> f32 {
    let t = ((1.0 - radius) / (1.0 - whole)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// How much of a [`Delta`] counts at each place of an aligned face.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    weights: Vec<f32>,
    strength: f32,
}

impl Default for Look {
    /// All of it, on the whole face.
    fn default() -> Self {
        Self::new(&Region::ALL, 1.0)
    }
}

impl Look {
    /// On these regions only; `strength` is brought into [0, 1].
    pub fn new(regions: &[Region], strength: f32) -> Self {
        let weight = |i: usize| {
            let p = Point { x: (i % SIDE) as f32 + 0.5, y: (i / SIDE) as f32 + 0.5 };
            let all = Region::ALL.iter().all(|region| regions.contains(region));
            let has = |region: &Region| regions.contains(region);
            let share: f32 = if all { 1.0 } else { Region::ALL.iter().filter(|r| has(r)).map(|r| r.share(p)).sum() };
            share * fade(radius(p), WHOLE)
        };
        let mut look = Self { weights: (0..PIXELS).map(weight).collect(), strength: 0.0 };
        look.set_strength(strength);
        look
    }

    /// How much of it, from 0 (nothing) to 1; brought into that range, NaN is nothing.
    pub fn set_strength(&mut self, strength: f32) {
        self.strength = if strength.is_nan() { 0.0 } else { strength.clamp(0.0, 1.0) };
    }

    /// In [0, 1].
    pub fn strength(&self) -> f32 {
        self.strength
    }

    /// For each pixel, row by row, in [0, 1], without the strength.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::models::Task;

    /// A tiny bundle of the repository's tests: `tests/data/bundles/make.py` says what it computes.
    pub(crate) fn test_bundle(task: Task) -> Bundle {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundles").join(task.name());
        Bundle::load(task, Some(&folder)).unwrap()
    }

    fn artist(makeup: Makeup) -> Artist {
        Artist::new(&MakeupModel::new(test_bundle(Task::Makeup), makeup, Settings::default()).unwrap()).unwrap()
    }

    fn flat(rgb: [u8; 3]) -> AlignedFace {
        AlignedFace { rgb: rgb.repeat(PIXELS), quality: 1.0 }
    }

    fn middle(delta: &Delta) -> [f32; 3] {
        [0, 1, 2].map(|c| delta.planes()[c * PIXELS + 64 * SIDE + 64])
    }

    #[test]
    fn each_half_is_paid_for_alone_and_taking_off_knows_no_reference() {
        let [applied, bare] = [Makeup::Applied, Makeup::Bare]
            .map(|makeup| MakeupModel::new(test_bundle(Task::Makeup), makeup, Settings::default()).unwrap());
        let names = |model: &MakeupModel| model.plan().inputs().iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&applied), names(&bare)), (vec!["face".into(), "reference".into()], vec!["face".into()]));
        let shape: &[usize] = &MakeupManifest::SHAPE;
        let both = Plan::prepare(test_bundle(Task::Makeup).model(), &[shape, shape], Settings::default()).unwrap();
        let layers = |plan: &Plan| plan.layers().count();
        assert!(layers(applied.plan()) + layers(bare.plan()) <= layers(&both));
    }

    #[test]
    fn what_is_put_on_follows_the_reference_and_what_is_taken_off_does_not() {
        let (mut applied, mut bare, mut delta) = (artist(Makeup::Applied), artist(Makeup::Bare), Delta::default());
        let face = flat([120, 120, 120]);
        let mut on = |reference: [u8; 3]| {
            applied.set_reference(&flat(reference)).unwrap();
            applied.paint(&face, &mut delta).unwrap();
            middle(&delta)
        };
        let (red, blue) = (on([220, 120, 120]), on([120, 120, 220]));
        assert!(red[0] > 10.0 && red[2].abs() < 5.0, "{red:?}");
        assert!(blue[2] > 10.0 && blue[0].abs() < 5.0, "{blue:?}");
        let mut off = |reference: [u8; 3]| {
            bare.set_reference(&flat(reference)).unwrap();
            bare.paint(&face, &mut delta).unwrap();
            delta.clone()
        };
        assert_eq!(off([220, 0, 0]), off([0, 0, 220]));
    }

    #[test]
    fn regions_have_names_and_other_words_are_refused() {
        for region in Region::ALL {
            assert_eq!(region.name().parse(), Ok(region));
        }
        assert!("hair".parse::<Region>().unwrap_err().to_string().contains("lips, eyes, skin"));
    }

    #[test]
    fn a_strength_out_of_range_is_brought_into_it() {
        let strengths = [-1.0, 0.3, 7.0, f32::NAN].map(|strength| Look::new(&Region::ALL, strength).strength());
        assert_eq!(strengths, [0.0, 0.3, 1.0, 0.0]);
    }

    #[test]
    fn each_region_lies_where_its_name_says() {
        let at = |region: Region, x, y| region.share(Point { x, y });
        for (x, y) in [(44.8, 96.6), (83.2, 96.6), (64.0, 97.0)] {
            assert!(at(Region::Lips, x, y) > 0.99, "{x},{y}");
        }
        for (x, y) in [(40.5, 49.8), (87.5, 49.8), (40.5, 36.0)] {
            assert!(at(Region::Eyes, x, y) > 0.99, "{x},{y}");
        }
        for (x, y) in [(64.0, 75.5), (25.0, 80.0), (64.0, 12.0)] {
            assert!(at(Region::Skin, x, y) > 0.8, "{x},{y}");
        }
    }

    proptest! {
        #[test]
        fn regions_sum_to_one_and_none_is_negative(x in 0.0_f32..128.0, y in 0.0_f32..128.0) {
            let shares = Region::ALL.map(|region| region.share(Point { x, y }));
            prop_assert!(shares.iter().all(|share| (-1e-6..=1.0).contains(share)), "{:?}", shares);
            prop_assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }

        #[test]
        fn any_look_is_nothing_at_the_rim_and_its_regions_add_up(which in 0_u8..8) {
            let has = |bit: usize| which & (1 << bit) != 0;
            let regions: Vec<Region> = (0..3).filter(|bit| has(*bit)).map(|bit| Region::ALL[bit]).collect();
            let look = Look::new(&regions, 1.0);
            for i in 0..SIDE {
                for at in [i, (SIDE - 1) * SIDE + i, i * SIDE, i * SIDE + SIDE - 1] {
                    prop_assert_eq!(look.weights()[at], 0.0);
                }
            }
            let singles: Vec<Look> = regions.iter().map(|region| Look::new(&[*region], 1.0)).collect();
            for (at, weight) in look.weights().iter().enumerate() {
                let sum: f32 = singles.iter().map(|single| single.weights()[at]).sum();
                prop_assert!((weight - sum).abs() < 1e-5);
            }
        }
    }
}
