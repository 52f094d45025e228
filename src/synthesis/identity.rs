//! Whose face it is: an embedding, in which faces of one person point the same way.
//!
//! The way of a face: the luminance (ITU-R BT.601, rounded) of the middle 112x112 of an aligned face, standardised by its own mean and
//! deviation, network, length 1. Two faces are compared by [`Embedding::similarity`]; the bundle's manifest says from where on they count
//! as one person's.
//! Invariant: an [`Embedding`] has length 1 and finite numbers, and does not show them in `Debug`: it identifies a person.

use std::sync::Arc;

use super::{SynthesisError, check_face};
use crate::face::tone::{luminance, standardise};
use crate::face::{ALIGNED_SIDE_PX, AlignedFace};
use crate::models::{Bundle, BundleFault, EMBEDDING_LEN, IDENTITY_SIDE_PX, IdentityManifest};
use crate::nn::{Network, NnError, Plan, Session, Settings};

const SIDE: usize = IDENTITY_SIDE_PX;
/// Left out of an aligned face on each side.
const MARGIN_PX: usize = (ALIGNED_SIDE_PX - SIDE) / 2;
const SHAPE: [usize; 4] = [1, 1, SIDE, SIDE];
/// An answer shorter than this has no direction to speak of.
const SHORTEST: f32 = 1e-6;

/// A direction for each person.
#[derive(Clone, Copy, PartialEq)]
pub struct Embedding([f32; EMBEDDING_LEN]);

impl Embedding {
    /// The direction of a network's answer.
    ///
    /// # Errors
    /// [`SynthesisError`] where it is not finite, has another length, or is zero.
    pub fn from_answer(answer: &[f32]) -> Result<Self, SynthesisError> {
        let values: [f32; EMBEDDING_LEN] = answer.try_into().map_err(|_| SynthesisError::NotFinite("identity"))?;
        if !values.iter().all(|v| v.is_finite()) {
            return Err(SynthesisError::NotFinite("identity"));
        }
        // In double: squares of large numbers stay finite.
        let length = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if length < f64::from(SHORTEST) {
            return Err(SynthesisError::Zero);
        }
        Ok(Self(values.map(|v| (f64::from(v) / length) as f32)))
    }

    /// The numbers.
    pub fn values(&self) -> &[f32; EMBEDDING_LEN] {
        &self.0
    }

    /// The cosine of the angle between two: 1 for the same face, about 0 for strangers.
    pub fn similarity(&self, other: &Self) -> f32 {
        self.0.iter().zip(&other.0).map(|(a, b)| a * b).sum::<f32>().clamp(-1.0, 1.0)
    }
}

impl std::fmt::Debug for Embedding {
    /// Without the numbers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Embedding(..)")
    }
}

/// The network of an `identity` bundle; shared by several threads.
#[derive(Clone, Debug)]
pub struct IdentityModel {
    plan: Plan,
    manifest: Arc<IdentityManifest>,
    bundle: Arc<Bundle>,
}

impl IdentityModel {
    /// Reads the embedding's part of the network of a verified bundle.
    ///
    /// # Errors
    /// [`SynthesisError`] where the bundle is for another task, or its graph has other tensors than its manifest says.
    pub fn new(bundle: Bundle, settings: impl Into<Settings>) -> Result<Self, SynthesisError> {
        let manifest = bundle.identity()?;
        let inputs: [(&str, &[usize]); 1] = [(IdentityManifest::FACE, &SHAPE)];
        let plan = Plan::prepare_part(bundle.model(), &inputs, &[IdentityManifest::EMBEDDING], settings);
        let plan = plan.map_err(failed)?;
        let expected = vec![1, EMBEDDING_LEN];
        let found = plan.outputs().first().map(|output| output.shape.clone()).unwrap_or_default();
        if found != expected {
            let tensor = IdentityManifest::EMBEDDING.into();
            return Err(bundle.refuse(BundleFault::Shape { tensor, expected, found }).into());
        }
        Ok(Self { plan, manifest: Arc::new(manifest), bundle: Arc::new(bundle) })
    }

    /// The verified bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Its thresholds, and what its network can do.
    pub fn manifest(&self) -> &IdentityManifest {
        &self.manifest
    }

    /// How the network is run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

fn failed(source: NnError) -> SynthesisError {
    SynthesisError::Network { task: "identity", source }
}

/// Tells people apart; one a thread.
pub struct Identity {
    network: Session,
    manifest: Arc<IdentityManifest>,
    grey: Vec<f32>,
    input: Vec<f32>,
    outputs: Vec<Vec<f32>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Identity {
    /// One with memory of its own over a shared model.
    ///
    /// # Errors
    /// [`SynthesisError::Network`] where the engine cannot set up its state.
    pub fn new(model: &IdentityModel) -> Result<Self, SynthesisError> {
        Ok(Self {
            network: model.plan.network().map_err(failed)?,
            manifest: Arc::clone(&model.manifest),
            grey: Vec::with_capacity(SIDE * SIDE),
            input: vec![0.0; SIDE * SIDE],
            outputs: Vec::new(),
        })
    }

    /// Whose face it is.
    ///
    /// # Errors
    /// [`SynthesisError`] where the face lacks bytes, or the network fails or gives what is no direction.
    pub fn embed(&mut self, face: &AlignedFace) -> Result<Embedding, SynthesisError> {
        check_face(face)?;
        self.grey.clear();
        for row in face.rgb.chunks_exact(3 * ALIGNED_SIDE_PX).skip(MARGIN_PX).take(SIDE) {
            let middle = &row[3 * MARGIN_PX..3 * (MARGIN_PX + SIDE)];
            self.grey.extend(middle.chunks_exact(3).map(|pixel| f32::from(luminance(pixel))));
        }
        standardise(&self.grey, self.manifest.eps, &mut self.input);
        self.network.run(&[&self.input], &mut self.outputs).map_err(failed)?;
        Embedding::from_answer(self.outputs.first().map_or(&[], Vec::as_slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Task;
    use crate::synthesis::makeup::tests::test_bundle;

    fn identity() -> Identity {
        Identity::new(&IdentityModel::new(test_bundle(Task::Identity), Settings::default()).unwrap()).unwrap()
    }

    fn wave(step: f32) -> AlignedFace {
        let rgb = (0..3 * ALIGNED_SIDE_PX * ALIGNED_SIDE_PX).map(|i| (128.0 + 100.0 * (i as f32 * step).sin()) as u8);
        AlignedFace { rgb: rgb.collect(), quality: 1.0 }
    }

    #[test]
    fn an_embedding_has_length_one_and_is_the_same_for_the_same_face() {
        let mut identity = identity();
        let (a, b) = (identity.embed(&wave(0.011)).unwrap(), identity.embed(&wave(0.19)).unwrap());
        let length: f32 = a.values().iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
        assert_eq!(identity.embed(&wave(0.011)).unwrap(), a);
        assert!(a.similarity(&a) > 0.9999 && a.similarity(&b) < 0.9999, "{}", a.similarity(&b));
    }

    #[test]
    fn the_rim_of_an_aligned_face_and_the_light_on_it_do_not_matter() {
        let mut identity = identity();
        let face = wave(0.011);
        let expected = identity.embed(&face).unwrap();
        let mut other = face.clone();
        for (i, value) in other.rgb.iter_mut().enumerate() {
            let (x, y) = (i / 3 % ALIGNED_SIDE_PX, i / 3 / ALIGNED_SIDE_PX);
            let rim = |at: usize| !(MARGIN_PX..ALIGNED_SIDE_PX - MARGIN_PX).contains(&at);
            if rim(x) || rim(y) {
                *value = 255 - *value;
            }
        }
        assert_eq!(identity.embed(&other).unwrap(), expected);
        other.rgb.iter_mut().zip(&face.rgb).for_each(|(out, value)| *out = value / 2 + 20);
        assert!(identity.embed(&other).unwrap().similarity(&expected) > 0.98);
    }

    #[test]
    fn an_answer_without_direction_is_an_error_and_a_huge_one_is_none() {
        assert!(matches!(Embedding::from_answer(&[0.0; 128]), Err(SynthesisError::Zero)));
        for bad in [f32::NAN, f32::INFINITY] {
            let mut answer = [0.5; 128];
            answer[77] = bad;
            assert!(matches!(Embedding::from_answer(&answer), Err(SynthesisError::NotFinite(_))));
        }
        assert!(Embedding::from_answer(&[1.0; 127]).is_err());
        let huge = Embedding::from_answer(&[3e38; 128]).unwrap();
        assert!((huge.similarity(&huge) - 1.0).abs() < 1e-5);
    }

    #[test]
    fn debug_shows_no_number_of_an_embedding() {
        let mut answer = [0.0; 128];
        answer[3] = 2.0;
        let embedding = Embedding::from_answer(&answer).unwrap();
        assert_eq!(format!("{embedding:?}"), "Embedding(..)");
    }

    #[test]
    fn a_face_that_lacks_bytes_is_an_error() {
        let short = AlignedFace { rgb: vec![0; 100], quality: 1.0 };
        assert!(matches!(identity().embed(&short), Err(SynthesisError::Crop { bytes: 100, .. })));
    }
}
