//! Brings a face upright: the similarity that takes its five landmarks to the template, and the picture drawn through it.
//!
//! The similarity is the least-squares one in closed form (Umeyama, "Least-squares estimation of transformation
//! parameters between two point patterns", 1991; in two dimensions without reflection). Pixel centres lie at +0.5.
//! Invariant: what is drawn is finite and within 0..=255 for any landmarks, or a typed error.

use super::{ALIGNED_SIDE_PX, AlignedFace, Landmarks, Point};
use crate::frame::RgbImage;

/// Where the landmarks lie in an aligned face, in pixels of 128x128: the mean over FER+ crops, so that an aligned face has
/// their framing. The same as `training/template.json`.
pub const TEMPLATE: Landmarks = [
    Point { x: 40.49, y: 49.834 },
    Point { x: 87.51, y: 49.834 },
    Point { x: 64.0, y: 75.507 },
    Point { x: 44.816, y: 96.572 },
    Point { x: 83.184, y: 96.572 },
];

/// Samples along each side of an output pixel at most, however much the face shrinks.
const MOST_SAMPLES: usize = 8;

/// Why a face could not be aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlignError {
    /// All five in one point, or not numbers.
    #[error("the five landmarks do not span a face")]
    Landmarks,
    /// A picture without pixels, or with fewer bytes than its size needs.
    #[error("the picture has no pixels to take a face from")]
    Picture,
}

/// A rotation, a uniform scale and a shift: `(x, y) -> (a x - b y + tx, b x + a y + ty)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Similarity {
    a: f32,
    b: f32,
    tx: f32,
    ty: f32,
}

impl Similarity {
    /// The least-squares similarity that takes `from` to `to`.
    ///
    /// # Errors
    /// [`AlignError::Landmarks`] where the points of `from` are one point or not finite.
    pub fn fit(from: &Landmarks, to: &Landmarks) -> Result<Self, AlignError> {
        let (from_mean, to_mean) = (mean(from), mean(to));
        let (mut dot, mut cross, mut norm) = (0.0_f64, 0.0_f64, 0.0_f64);
        for (p, q) in from.iter().zip(to) {
            let (px, py) = (f64::from(p.x) - from_mean.0, f64::from(p.y) - from_mean.1);
            let (qx, qy) = (f64::from(q.x) - to_mean.0, f64::from(q.y) - to_mean.1);
            dot += px * qx + py * qy;
            cross += px * qy - py * qx;
            norm += px * px + py * py;
        }
        let (a, b) = (dot / norm, cross / norm);
        let scale = a.hypot(b);
        // A face of less than a fifth of a pixel, or of a million: NaN fails the comparison as well.
        if !(norm > 0.01 && scale > 1e-4 && scale < 1e3) {
            return Err(AlignError::Landmarks);
        }
        let (tx, ty) = (to_mean.0 - a * from_mean.0 + b * from_mean.1, to_mean.1 - b * from_mean.0 - a * from_mean.1);
        Ok(Self { a: a as f32, b: b as f32, tx: tx as f32, ty: ty as f32 })
    }

    /// From the picture to the aligned face.
    ///
    /// # Errors
    /// [`AlignError::Landmarks`] as for [`Similarity::fit`].
    pub fn to_aligned(landmarks: &Landmarks) -> Result<Self, AlignError> {
        Self::fit(landmarks, &TEMPLATE)
    }

    /// The way back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let norm = self.a * self.a + self.b * self.b;
        let (a, b) = (self.a / norm, -self.b / norm);
        Self { a, b, tx: -(a * self.tx - b * self.ty), ty: -(b * self.tx + a * self.ty) }
    }

    /// Where `p` goes.
    pub fn apply(&self, p: Point) -> Point {
        Point { x: self.a * p.x - self.b * p.y + self.tx, y: self.b * p.x + self.a * p.y + self.ty }
    }

    /// How much larger things become.
    pub fn scale(&self) -> f32 {
        self.a.hypot(self.b)
    }
}

fn mean(points: &Landmarks) -> (f64, f64) {
    let sum = points.iter().fold((0.0, 0.0), |s, p| (s.0 + f64::from(p.x), s.1 + f64::from(p.y)));
    (sum.0 / 5.0, sum.1 / 5.0)
}

/// Draws the face with these landmarks into `out`: upright, 128x128, area-averaged where it shrinks, the picture's edge
/// repeated outside it. Returns the similarity from the picture to the aligned face.
///
/// # Errors
/// [`AlignError`]; `out` is then untouched.
pub fn align(picture: &RgbImage, landmarks: &Landmarks, out: &mut AlignedFace) -> Result<Similarity, AlignError> {
    let (width, height) = (picture.width_px as usize, picture.height_px as usize);
    if width == 0 || height == 0 || picture.data.len() < 3 * width * height {
        return Err(AlignError::Picture);
    }
    let similarity = Similarity::to_aligned(landmarks)?;
    let inverse = similarity.inverse();
    out.rgb.resize(3 * ALIGNED_SIDE_PX * ALIGNED_SIDE_PX, 0);
    draw(picture, &inverse, &mut out.rgb);
    out.quality = quality(picture, landmarks, &similarity, &inverse, &out.rgb);
    Ok(similarity)
}

/// Bilinear samples on a regular grid within each output pixel, in fixed point.
fn draw(picture: &RgbImage, inverse: &Similarity, rgb: &mut [u8]) {
    let samples = ((inverse.scale() - 1e-4).ceil().max(1.0) as usize).min(MOST_SAMPLES);
    let step = 1.0 / samples as f32;
    let total = (samples * samples) as u32;
    for (row, line) in rgb.chunks_exact_mut(3 * ALIGNED_SIDE_PX).enumerate() {
        for (column, pixel) in line.chunks_exact_mut(3).enumerate() {
            let mut sum = [0_u32; 3];
            for sy in 0..samples {
                let y = row as f32 + (sy as f32 + 0.5) * step;
                for sx in 0..samples {
                    let x = column as f32 + (sx as f32 + 0.5) * step;
                    add_sample(picture, inverse.apply(Point { x, y }), &mut sum);
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sum) {
                // Each sample carries 16 fractional bits less 8: round to the nearest.
                *value = ((sum / total + 128) >> 8).min(255) as u8;
            }
        }
    }
}

/// Adds the bilinear sample at `p`, with 8 fractional bits, to `sum`.
#[inline(always)]
fn add_sample(picture: &RgbImage, p: Point, sum: &mut [u32; 3]) {
    let (width, height) = (picture.width_px as usize, picture.height_px as usize);
    let x = (p.x - 0.5).clamp(0.0, (width - 1) as f32);
    let y = (p.y - 0.5).clamp(0.0, (height - 1) as f32);
    let (x0, y0) = (x as usize, y as usize);
    let (fx, fy) = (((x - x0 as f32) * 256.0) as u32, ((y - y0 as f32) * 256.0) as u32);
    let right = if x0 + 1 < width { 3 } else { 0 };
    let below = if y0 + 1 < height { 3 * width } else { 0 };
    let at = 3 * (y0 * width + x0);
    let data = &picture.data;
    for (c, sum) in sum.iter_mut().enumerate() {
        let value = |offset: usize| u32::from(data[at + offset + c]);
        let top = value(0) * (256 - fx) + value(right) * fx;
        let bottom = value(below) * (256 - fx) + value(below + right) * fx;
        *sum += (top * (256 - fy) + bottom * fy) >> 8;
    }
}

/// How fit the crop is for reading, in [0, 1]: the product of what size, sharpness, pose and the picture's edge leave.
fn quality(
    picture: &RgbImage,
    landmarks: &Landmarks,
    similarity: &Similarity,
    inverse: &Similarity,
    rgb: &[u8],
) -> f32 {
    // A face fills about 100 of the 128 pixels: 16 px are hopeless, 64 px as good as any.
    let face_px = 100.0 / similarity.scale();
    let size = ramp(face_px, 12.0, 64.0).sqrt();
    size * ramp(sharpness(rgb), 0.0, 0.12).sqrt() * frontality(landmarks) * inside(picture, inverse)
}

/// 0 at or below `low`, 1 at or above `high`.
fn ramp(value: f32, low: f32, high: f32) -> f32 {
    ((value - low) / (high - low)).clamp(0.0, 1.0)
}

/// Mean difference between neighbouring pixels (green, every second one) over the contrast of the crop.
fn sharpness(rgb: &[u8]) -> f32 {
    let row = 3 * ALIGNED_SIDE_PX;
    let (mut steps, mut sum, mut squares, mut count) = (0_u32, 0_u32, 0_u32, 0_u32);
    for y in (0..ALIGNED_SIDE_PX - 2).step_by(2) {
        for x in (0..ALIGNED_SIDE_PX - 2).step_by(2) {
            let at = y * row + 3 * x + 1;
            let value = u32::from(rgb[at]);
            steps += value.abs_diff(u32::from(rgb[at + 6])) + value.abs_diff(u32::from(rgb[at + 2 * row]));
            sum += value;
            squares += value * value;
            count += 1;
        }
    }
    let mean = sum as f32 / count as f32;
    let deviation = (squares as f32 / count as f32 - mean * mean).max(0.0).sqrt();
    steps as f32 / (2 * count) as f32 / (deviation + 4.0)
}

/// 1 from the front, 0 in profile: how far the nose tip lies from the middle between the eyes, along their line.
fn frontality(landmarks: &Landmarks) -> f32 {
    let [left, right, nose, ..] = landmarks;
    let (ex, ey) = (right.x - left.x, right.y - left.y);
    let eyes = ex.hypot(ey).max(1e-3);
    let (nx, ny) = (nose.x - 0.5 * (left.x + right.x), nose.y - 0.5 * (left.y + right.y));
    let aside = ((nx * ex + ny * ey) / (eyes * eyes)).abs();
    1.0 - ramp(aside, 0.15, 0.65)
}

/// The part of the crop that lies in the picture.
fn inside(picture: &RgbImage, inverse: &Similarity) -> f32 {
    const GRID: usize = 8;
    let cell = ALIGNED_SIDE_PX as f32 / GRID as f32;
    let mut hits = 0;
    for i in 0..GRID * GRID {
        let (column, row) = ((i % GRID) as f32, (i / GRID) as f32);
        let p = inverse.apply(Point { x: (column + 0.5) * cell, y: (row + 0.5) * cell });
        let within = p.x >= 0.0 && p.y >= 0.0 && p.x <= picture.width_px as f32 && p.y <= picture.height_px as f32;
        hits += usize::from(within);
    }
    hits as f32 / (GRID * GRID) as f32
}

#[cfg(test)]
mod tests;
