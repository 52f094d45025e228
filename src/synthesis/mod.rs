//! Faces re-synthesised, and whose they are: [`identity`] tells people apart, [`generator`] gives a face another identity, [`makeup`] puts
//! make-up on and takes it off, [`composite`] lays what a network changed ([`delta`]) over the picture.
//!
//! All of it is about [`AlignedFace`]s. Knows models, networks and faces; no MQTT, and no page.
//! Invariants: a picture changes only where a network changed the face, whatever its size; an embedding is shown to nobody by accident:
//! neither `Debug` nor a log line holds its numbers.

pub mod composite;
pub mod delta;
pub mod generator;
pub mod identity;
pub mod makeup;

use crate::face::{ALIGNED_SIDE_PX, AlignedFace};
use crate::frame::{RgbImage, Scaler};
use crate::models::BundleError;
use crate::nn::NnError;

/// Why a face could not be made, or not be told.
#[derive(Debug, thiserror::Error)]
pub enum SynthesisError {
    /// The bundle was refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The network could not be prepared or failed.
    #[error("{task}: {source}")]
    Network {
        /// `identity` or `makeup`.
        task: &'static str,
        /// What the engine said.
        source: NnError,
    },
    /// The network gave NaN or infinity.
    #[error("{0}: the network's answer is not made of finite numbers; verify the bundle with `visaged models verify`")]
    NotFinite(&'static str),
    /// The network gave nothing but zeros for an embedding, which has no direction.
    #[error("identity: the network's answer is zero, which is nobody; verify the bundle with `visaged models verify`")]
    Zero,
    /// The bundle makes no faces.
    #[error(
        "identity {version} ({origin}) tells whose face it is (`visaged embed`) but makes no faces: it holds no generator; \
         take a bundle that does"
    )]
    NoGenerator {
        /// Of the bundle.
        version: String,
        /// Where the bundle comes from.
        origin: String,
    },
    /// An identity was to be given before any was set.
    #[error("identity: no person was set whose identity could be given")]
    Nobody,
    /// No pixels, or not as many bytes as the size needs.
    #[error("a crop of {width_px}x{height_px} RGB pixels came with {bytes} bytes")]
    Crop {
        /// Its width.
        width_px: u32,
        /// Its height.
        height_px: u32,
        /// Its data.
        bytes: usize,
    },
}

/// A picture that is one face already cropped, brought to the size of an aligned face; one that is not square is stretched.
///
/// # Errors
/// [`SynthesisError::Crop`] for a picture without pixels.
pub fn crop_to_aligned(picture: &RgbImage, scaler: &mut Scaler, out: &mut AlignedFace) -> Result<(), SynthesisError> {
    let (width_px, height_px) = (picture.width_px, picture.height_px);
    let bytes = picture.data.len();
    if bytes == 0 || bytes != 3 * width_px as usize * height_px as usize {
        return Err(SynthesisError::Crop { width_px, height_px, bytes });
    }
    let side = ALIGNED_SIDE_PX as u32;
    let mut crop = RgbImage { width_px: side, height_px: side, data: std::mem::take(&mut out.rgb) };
    crop.resize(side, side);
    if (width_px, height_px) == (side, side) {
        crop.data.copy_from_slice(&picture.data);
    } else {
        scaler.scale(picture, &mut crop);
    }
    (out.rgb, out.quality) = (crop.data, 1.0);
    Ok(())
}

/// Sees to it that an aligned face has all its bytes.
fn check_face(face: &AlignedFace) -> Result<(), SynthesisError> {
    let (side, bytes) = (ALIGNED_SIDE_PX as u32, face.rgb.len());
    if bytes == 3 * ALIGNED_SIDE_PX * ALIGNED_SIDE_PX {
        return Ok(());
    }
    Err(SynthesisError::Crop { width_px: side, height_px: side, bytes })
}
