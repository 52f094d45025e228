//! What a network answers with that changes a face: the difference to it, not a face anew.
//!
//! Invariant: a [`Delta`] that was filled is finite.

use super::{SynthesisError, check_face};
use crate::face::{ALIGNED_SIDE_PX, AlignedFace};

/// Pixels of an aligned face.
pub(super) const PIXELS: usize = ALIGNED_SIDE_PX * ALIGNED_SIDE_PX;

/// What has to be added to an aligned face, in grey levels: a plane a colour, 128x128 each.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    planes: Vec<f32>,
}

impl Default for Delta {
    /// Nothing changes.
    fn default() -> Self {
        Self { planes: vec![0.0; 3 * PIXELS] }
    }
}

impl Delta {
    /// The planes R, G, B, row by row.
    pub fn planes(&self) -> &[f32] {
        &self.planes
    }

    /// As the network for `task` gave it.
    ///
    /// # Errors
    /// [`SynthesisError::NotFinite`] where it is not made of finite numbers, or not as long as it has to be; the delta is then unspecified.
    pub fn fill(&mut self, task: &'static str, answer: &[f32]) -> Result<(), SynthesisError> {
        let finite = answer.iter().fold(true, |finite, v| finite & v.is_finite());
        if !finite || answer.len() != 3 * PIXELS {
            return Err(SynthesisError::NotFinite(task));
        }
        self.planes.clear();
        self.planes.extend_from_slice(answer);
        Ok(())
    }
}

/// The colours of a face, a plane each, in grey levels; `planes` has 128x128 numbers a colour.
///
/// # Errors
/// [`SynthesisError::Crop`] where the face lacks bytes.
pub(super) fn to_planes(face: &AlignedFace, planes: &mut [f32]) -> Result<(), SynthesisError> {
    check_face(face)?;
    let (red, rest) = planes.split_at_mut(PIXELS);
    let (green, blue) = rest.split_at_mut(PIXELS);
    for (((pixel, r), g), b) in face.rgb.chunks_exact(3).zip(red).zip(green).zip(blue) {
        (*r, *g, *b) = (f32::from(pixel[0]), f32::from(pixel[1]), f32::from(pixel[2]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_an_error() {
        let mut delta = Delta::default();
        let mut answer = vec![1.0; 3 * PIXELS];
        delta.fill("makeup", &answer).unwrap();
        answer[5] = f32::NAN;
        assert!(matches!(delta.fill("makeup", &answer), Err(SynthesisError::NotFinite("makeup"))));
        assert!(delta.fill("makeup", &[0.0; 7]).is_err());
    }
}
