//! Faces in a picture: found ([`detect`]), followed ([`track`]), brought upright to one size ([`align`]). Knows no expression.

pub mod align;
mod canvas;
pub mod detect;
pub(crate) mod tone;
pub mod track;

/// A point in pixels of the picture; x to the right, y down.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Pixels from the left edge.
    pub x: f32,
    /// Pixels from the top edge.
    pub y: f32,
}

/// A box in pixels of the picture; may reach over its edges.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rect {
    /// Left edge.
    pub x: f32,
    /// Top edge.
    pub y: f32,
    /// Width, above zero.
    pub width: f32,
    /// Height, above zero.
    pub height: f32,
}

/// Eye on the image's left, other eye, nose tip, mouth corner on the image's left, other corner.
pub type Landmarks = [Point; 5];

/// A face as the detector found it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Face {
    /// Where it is.
    pub rect: Rect,
    /// Its five landmarks.
    pub landmarks: Landmarks,
    /// The detector's confidence in [0, 1].
    pub score: f32,
}

/// Names one person's stay in view; counted from 1 within a boot, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackId(pub u64);

/// A face that is being followed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrackedFace {
    /// Whose stay this is.
    pub id: TrackId,
    /// The face in this frame, smoothed a little against jitter.
    pub face: Face,
}

/// Side of an aligned face in pixels.
pub const ALIGNED_SIDE_PX: usize = 128;

/// A face brought upright: 128x128 RGB, similarity-aligned on five landmarks.
#[derive(Clone, Debug, PartialEq)]
pub struct AlignedFace {
    /// R G B, row by row; `3 * 128 * 128` bytes.
    pub rgb: Vec<u8>,
    /// How fit the crop is for reading, in [0, 1]: size, sharpness, pose, and how much of it lies outside the picture.
    pub quality: f32,
}

impl Default for AlignedFace {
    fn default() -> Self {
        Self { rgb: vec![0; 3 * ALIGNED_SIDE_PX * ALIGNED_SIDE_PX], quality: 0.0 }
    }
}
