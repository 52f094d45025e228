//! A face with another identity: whose it is from one face, everything else from another (after "Towards Open-Set Identity Preserving Face
//! Synthesis": Bao, Chen, Wen, Li, Hua, CVPR 2018).
//!
//! The person is set once and costs an embedding; each face after that costs one run of the network, which answers with a [`Delta`] to
//! the face that gives pose, expression and light. An [`Avatar`] is a person who does not exist, for where nobody is to be seen.
//! Invariants: what is asked for before a person was set is refused, never made of nobody; a person's embedding stays inside.

use std::path::Path;
use std::sync::Arc;

use super::SynthesisError;
use super::delta::{Delta, PIXELS, to_planes};
use super::identity::{Identity, IdentityModel};
use crate::face::{ALIGNED_SIDE_PX, AlignedFace};
use crate::models::{Bundle, BundleFault, EMBEDDING_LEN, IdentityManifest};
use crate::nn::{Network, NnError, Plan, Session, Settings};
use crate::picture::{PictureLimits, decode_still};

const SIDE: usize = ALIGNED_SIDE_PX;
/// Grey levels in what the network reads and gives.
const UNIT: f32 = 64.0;

/// A synthetic face that stands in for anybody's.
#[derive(Clone, Debug, PartialEq)]
pub struct Avatar {
    face: AlignedFace,
}

impl Avatar {
    /// Its face.
    pub fn face(&self) -> &AlignedFace {
        &self.face
    }
}

/// The generator of an `identity` bundle with the encoder that tells it who; shared by several threads.
#[derive(Clone, Debug)]
pub struct GeneratorModel {
    encoder: IdentityModel,
    plan: Plan,
    avatars: Arc<[Avatar]>,
}

impl GeneratorModel {
    /// Reads both networks and the avatars of a verified bundle.
    ///
    /// # Errors
    /// [`SynthesisError`] where the bundle is for another task, has no generator, or its graph or avatars are not what its manifest says.
    pub fn new(bundle: Bundle, settings: impl Into<Settings> + Copy) -> Result<Self, SynthesisError> {
        if !bundle.identity()?.has_generator {
            let (version, origin) = (bundle.version().to_string(), bundle.origin().to_string());
            return Err(SynthesisError::NoGenerator { version, origin });
        }
        let shape: &[usize] = &IdentityManifest::SHAPE;
        let inputs = [
            (IdentityManifest::PERSON, shape),
            (IdentityManifest::ATTRIBUTES, shape),
            (IdentityManifest::WHO, &IdentityManifest::WHO_SHAPE),
        ];
        let plan =
            Plan::prepare_part(bundle.model(), &inputs, &[IdentityManifest::CHANGE], settings).map_err(failed)?;
        let found = plan.outputs().first().map(|output| output.shape.clone()).unwrap_or_default();
        if found != shape {
            let (tensor, expected) = (IdentityManifest::CHANGE.into(), shape.to_vec());
            return Err(bundle.refuse(BundleFault::Shape { tensor, expected, found }).into());
        }
        let avatars = read_avatars(&bundle).map_err(|fault| bundle.refuse(fault))?.into();
        Ok(Self { encoder: IdentityModel::new(bundle, settings)?, plan, avatars })
    }

    /// The verified bundle.
    pub fn bundle(&self) -> &Bundle {
        self.encoder.bundle()
    }

    /// Those of the bundle; none where it has none.
    pub fn avatars(&self) -> &[Avatar] {
        &self.avatars
    }

    /// How the generator is run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

fn failed(source: NnError) -> SynthesisError {
    SynthesisError::Network { task: "identity", source }
}

/// The colours of a face as the network reads them: (x - 128) / 64, a plane each.
fn to_units(face: &AlignedFace, planes: &mut [f32]) -> Result<(), SynthesisError> {
    to_planes(face, planes)?;
    planes.iter_mut().for_each(|value| *value = (*value - 128.0) / UNIT);
    Ok(())
}

/// They lie side by side in one picture.
fn read_avatars(bundle: &Bundle) -> Result<Vec<Avatar>, BundleFault> {
    let (Some(entry), Some(bytes)) = (&bundle.manifest().avatars, bundle.avatars()) else { return Ok(Vec::new()) };
    let limits =
        PictureLimits { max_pixels: (PIXELS * IdentityManifest::MOST_AVATARS) as u64, ..PictureLimits::default() };
    let picture = decode_still(Path::new(&entry.file), image::ImageFormat::Png, bytes, limits);
    let picture = picture.map_err(|error| BundleFault::Avatars(error.to_string()))?;
    let (width, height) = (picture.width_px as usize, picture.height_px as usize);
    if (width, height) != (SIDE * entry.count, SIDE) {
        let found = format!("{} has {width}x{height} pixels, not {} faces of {SIDE}x{SIDE}", entry.file, entry.count);
        return Err(BundleFault::Avatars(found));
    }
    let face = |k: usize| {
        let rows = picture.data.chunks_exact(3 * width);
        let rgb = rows.flat_map(|row| &row[3 * SIDE * k..3 * SIDE * (k + 1)]).copied().collect();
        Avatar { face: AlignedFace { rgb, quality: 1.0 } }
    };
    Ok((0..entry.count).map(face).collect())
}

/// What each input of the network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Person,
    Attributes,
    Who,
}

/// Gives faces the identity of one person; one a thread. Allocates nothing once warm but what the engine does.
pub struct Generator {
    identity: Identity,
    network: Session,
    places: Vec<Place>,
    person: Vec<f32>,
    attributes: Vec<f32>,
    /// Of the person; empty until one is set.
    who: Vec<f32>,
    outputs: Vec<Vec<f32>>,
}

impl std::fmt::Debug for Generator {
    /// Without the person.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Generator {
    /// One with memory of its own over a shared model; it knows no person yet.
    ///
    /// # Errors
    /// [`SynthesisError::Network`] where the engine cannot set up its state.
    pub fn new(model: &GeneratorModel) -> Result<Self, SynthesisError> {
        let network = model.plan.network().map_err(failed)?;
        let place = |name: &str| match name {
            IdentityManifest::PERSON => Place::Person,
            IdentityManifest::WHO => Place::Who,
            _ => Place::Attributes,
        };
        let places = network.inputs().iter().map(|input| place(&input.name)).collect();
        let black = || vec![0.0; 3 * PIXELS];
        Ok(Self {
            identity: Identity::new(&model.encoder)?,
            network,
            places,
            person: black(),
            attributes: black(),
            who: Vec::with_capacity(EMBEDDING_LEN),
            outputs: Vec::new(),
        })
    }

    /// Whose identity is given from now on. Without success nobody's is.
    ///
    /// # Errors
    /// [`SynthesisError`] where the face lacks bytes or its embedding cannot be made.
    pub fn set_person(&mut self, face: &AlignedFace) -> Result<(), SynthesisError> {
        self.who.clear();
        to_units(face, &mut self.person)?;
        let embedding = self.identity.embed(face)?;
        self.who.extend_from_slice(embedding.values());
        Ok(())
    }

    /// What takes `face` to the person with the pose, expression and light of `face`.
    ///
    /// # Errors
    /// [`SynthesisError`], also where no person was set; `delta` is then unspecified.
    pub fn exchange(&mut self, face: &AlignedFace, delta: &mut Delta) -> Result<(), SynthesisError> {
        if self.who.is_empty() {
            return Err(SynthesisError::Nobody);
        }
        to_units(face, &mut self.attributes)?;
        let pick = |i: usize| match self.places.get(i) {
            Some(Place::Person) => self.person.as_slice(),
            Some(Place::Who) => self.who.as_slice(),
            _ => self.attributes.as_slice(),
        };
        let inputs = [pick(0), pick(1), pick(2)];
        let taken = self.places.len().min(inputs.len());
        self.network.run(&inputs[..taken], &mut self.outputs).map_err(failed)?;
        let change = self.outputs.first_mut().map_or(&mut [][..], Vec::as_mut_slice);
        change.iter_mut().for_each(|value| *value *= UNIT);
        delta.fill("identity", change)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::models::Task;
    use crate::synthesis::makeup::tests::test_bundle;

    pub(crate) fn model() -> GeneratorModel {
        GeneratorModel::new(test_bundle(Task::Identity), Settings::default()).unwrap()
    }

    fn flat(rgb: [u8; 3]) -> AlignedFace {
        AlignedFace { rgb: rgb.repeat(PIXELS), quality: 1.0 }
    }

    /// A face whose embedding has a direction.
    fn wave(rgb: [f32; 3], step: f32) -> AlignedFace {
        let value = |i: usize| (rgb[i % 3] + 30.0 * (i as f32 * step).sin()) as u8;
        AlignedFace { rgb: (0..3 * PIXELS).map(value).collect(), quality: 1.0 }
    }

    fn middle(delta: &Delta) -> [f32; 3] {
        [0, 1, 2].map(|c| delta.planes()[c * PIXELS + 64 * SIDE + 64])
    }

    #[test]
    fn what_is_made_follows_the_person_and_starts_from_the_other_face() {
        let (mut generator, mut delta) = (Generator::new(&model()).unwrap(), Delta::default());
        let mut made = |person: [f32; 3]| {
            generator.set_person(&wave(person, 0.011)).unwrap();
            generator.exchange(&flat([120; 3]), &mut delta).unwrap();
            middle(&delta)
        };
        let (red, blue) = (made([200.0, 120.0, 120.0]), made([120.0, 120.0, 200.0]));
        assert!(red[0] > red[2] + 10.0 && blue[2] > blue[0] + 10.0, "{red:?} {blue:?}");
    }

    #[test]
    fn the_embedding_takes_part() {
        let (mut generator, mut delta) = (Generator::new(&model()).unwrap(), Delta::default());
        generator.set_person(&wave([120.0; 3], 0.011)).unwrap();
        generator.exchange(&flat([120; 3]), &mut delta).unwrap();
        let before = delta.clone();
        generator.who.iter_mut().for_each(|value| *value = -*value);
        generator.exchange(&flat([120; 3]), &mut delta).unwrap();
        assert_ne!(before, delta);
    }

    #[test]
    fn nobody_is_made_before_a_person_is_set_and_none_after_one_that_fails() {
        let (mut generator, mut delta) = (Generator::new(&model()).unwrap(), Delta::default());
        assert!(matches!(generator.exchange(&flat([1; 3]), &mut delta), Err(SynthesisError::Nobody)));
        generator.set_person(&wave([120.0; 3], 0.011)).unwrap();
        assert!(generator.set_person(&AlignedFace { rgb: vec![0; 7], quality: 1.0 }).is_err());
        assert!(matches!(generator.exchange(&flat([1; 3]), &mut delta), Err(SynthesisError::Nobody)));
    }

    #[test]
    fn avatars_are_faces_of_their_own() {
        let model = model();
        let [first, second] = model.avatars() else { panic!("{} avatars", model.avatars().len()) };
        assert!(first.face() != second.face());
        assert!(model.avatars().iter().all(|avatar| avatar.face().rgb.len() == 3 * PIXELS));
    }

    #[test]
    fn a_bundle_without_a_generator_is_refused_with_what_it_can_do() {
        let bundle = test_bundle(Task::Identity).changed(|manifest| {
            manifest.outputs.retain(|output| output.name != IdentityManifest::CHANGE);
            manifest.avatars = None;
        });
        let error = GeneratorModel::new(bundle, Settings::default()).unwrap_err();
        assert!(matches!(error, SynthesisError::NoGenerator { .. }));
        assert!(error.to_string().contains("visaged embed"), "{error}");
    }

    #[test]
    fn debug_shows_no_person() {
        let mut generator = Generator::new(&model()).unwrap();
        let before = format!("{generator:?}");
        generator.set_person(&wave([120.0; 3], 0.011)).unwrap();
        assert_eq!(format!("{generator:?}"), before);
    }
}
