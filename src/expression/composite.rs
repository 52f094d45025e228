//! Puts a de-expressed face back: from the network's small neutral luminance to a crop in colour, and from the crop into
//! the whole picture.
//!
//! The network works on 64x64 luminance, so only the change of luminance is taken from it and laid over the picture in
//! colour; fine detail of the picture stays where nothing was changed and gives way where something was.

use super::{NEUTRAL_SIDE_PX, Reading};
use crate::face::align::Similarity;
use crate::face::{ALIGNED_SIDE_PX, AlignedFace, Point};
use crate::frame::RgbImage;

const SIDE: usize = ALIGNED_SIDE_PX;
/// A change of luminance from which on the picture's own detail counts less than half.
const DETAIL_LEVELS: f32 = 10.0;

/// The change of luminance at each pixel of an aligned face.
#[derive(Clone, Debug)]
pub struct Change {
    luminance: Vec<f32>,
}

impl Change {
    /// What takes `face` to its neutral self. `seen` is the 64x64 luminance that the network saw, `reading` what it gave.
    pub fn new(face: &AlignedFace, seen: &[f32], reading: &Reading) -> Self {
        let small = |values: &dyn Fn(usize) -> f32| {
            let mut out = vec![0.0; NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX];
            for (i, out) in out.iter_mut().enumerate() {
                *out = values(i);
            }
            enlarge(&out)
        };
        let coarse = small(&|i| seen.get(i).copied().unwrap_or(0.0));
        let delta =
            small(&|i| f32::from(reading.neutral.get(i).copied().unwrap_or(0)) - seen.get(i).copied().unwrap_or(0.0));
        let pixels = face.rgb.chunks_exact(3).zip(coarse).zip(delta);
        let luminance = pixels.map(|((pixel, coarse), delta)| {
            let own = 0.299 * f32::from(pixel[0]) + 0.587 * f32::from(pixel[1]) + 0.114 * f32::from(pixel[2]);
            let changed = delta * delta;
            let fade = changed / (changed + DETAIL_LEVELS * DETAIL_LEVELS);
            delta - fade * (own - coarse)
        });
        Self { luminance: luminance.collect() }
    }

    /// The neutral face: `face` with the change laid over it.
    pub fn over_crop(&self, face: &AlignedFace) -> RgbImage {
        let mut data = face.rgb.clone();
        for (pixel, change) in data.chunks_exact_mut(3).zip(&self.luminance) {
            shift(pixel, *change);
        }
        RgbImage { width_px: SIDE as u32, height_px: SIDE as u32, data }
    }

    /// Lays the change over the face in `picture`, where `similarity` takes the picture to the aligned face; it fades out
    /// towards the edge of the face.
    pub fn over_picture(&self, picture: &mut RgbImage, similarity: &Similarity) {
        let back = similarity.inverse();
        let side = SIDE as f32;
        let corners = [(0.0, 0.0), (side, 0.0), (0.0, side), (side, side)].map(|(x, y)| back.apply(Point { x, y }));
        let range = |values: [f32; 4], limit: u32| {
            let low = values.iter().copied().fold(f32::MAX, f32::min).floor().clamp(0.0, limit as f32);
            let high = values.iter().copied().fold(f32::MIN, f32::max).ceil().clamp(0.0, limit as f32);
            low as usize..high as usize
        };
        let columns = range(corners.map(|p| p.x), picture.width_px);
        let width = picture.width_px as usize;
        for y in range(corners.map(|p| p.y), picture.height_px) {
            for x in columns.clone() {
                let p = similarity.apply(Point { x: x as f32 + 0.5, y: y as f32 + 0.5 });
                let share = face_mask(p);
                if share > 0.0 {
                    let at = 3 * (y * width + x);
                    shift(&mut picture.data[at..at + 3], share * sample(&self.luminance, SIDE, p));
                }
            }
        }
    }
}

/// Adds to all three channels: luminance changes, the colour differences stay. The cast saturates.
fn shift(pixel: &mut [u8], change: f32) {
    for value in pixel {
        *value = (f32::from(*value) + change).round() as u8;
    }
}

/// 1 over the face, 0 outside, smooth between; an ellipse in the template's framing.
fn face_mask(p: Point) -> f32 {
    let side = SIDE as f32;
    let (x, y) = ((p.x / side - 0.5) / 0.48, (p.y / side - 0.52) / 0.48);
    let t = ((1.0 - x.hypot(y)) / 0.25).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Bilinear, pixel centres at +0.5, the edge repeated.
fn sample(values: &[f32], side: usize, p: Point) -> f32 {
    let last = (side - 1) as f32;
    let (x, y) = ((p.x - 0.5).clamp(0.0, last), (p.y - 0.5).clamp(0.0, last));
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(side - 1), (y0 + 1).min(side - 1));
    let (fx, fy) = (x - x0 as f32, y - y0 as f32);
    let row = |y: usize| values[y * side + x0] * (1.0 - fx) + values[y * side + x1] * fx;
    row(y0) * (1.0 - fy) + row(y1) * fy
}

fn enlarge(small: &[f32]) -> Vec<f32> {
    let scale = NEUTRAL_SIDE_PX as f32 / SIDE as f32;
    let place = |i: usize| (i as f32 + 0.5) * scale;
    (0..SIDE * SIDE).map(|i| sample(small, NEUTRAL_SIDE_PX, Point { x: place(i % SIDE), y: place(i / SIDE) })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::face::Landmarks;
    use crate::face::align::{TEMPLATE, align};

    fn grey(value: u8) -> Vec<f32> {
        vec![f32::from(value); NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX]
    }

    fn reading(value: u8) -> Reading {
        Reading { neutral: vec![value; NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX], ..Reading::default() }
    }

    fn textured(width: u32, height: u32) -> RgbImage {
        let mut picture = RgbImage::default();
        picture.resize(width, height);
        for (i, value) in picture.data.iter_mut().enumerate() {
            *value = 100 + (i * 37 % 41) as u8;
        }
        picture
    }

    #[test]
    fn where_nothing_was_removed_the_picture_stays_as_it_is() {
        let face = AlignedFace { rgb: textured(128, 128).data, quality: 1.0 };
        let change = Change::new(&face, &grey(120), &reading(120));
        assert_eq!(change.over_crop(&face).data, face.rgb);
        let mut picture = textured(300, 200);
        let landmarks: Landmarks = TEMPLATE.map(|p| Point { x: p.x + 60.0, y: p.y + 30.0 });
        change.over_picture(&mut picture, &Similarity::to_aligned(&landmarks).unwrap());
        assert_eq!(picture, textured(300, 200));
    }

    #[test]
    fn a_change_lands_on_the_face_fades_out_and_leaves_the_rest_alone() {
        let before = textured(400, 300);
        let mut after = before.clone();
        let landmarks: Landmarks = TEMPLATE.map(|p| Point { x: 1.5 * p.x + 100.0, y: 1.5 * p.y + 40.0 });
        let mut face = AlignedFace::default();
        let similarity = align(&before, &landmarks, &mut face).unwrap();
        Change::new(&face, &grey(120), &reading(150)).over_picture(&mut after, &similarity);
        let mean_change = |x0: usize, y0: usize| {
            let mut sum = 0.0;
            for y in y0..y0 + 10 {
                for x in x0..x0 + 10 {
                    let at = 3 * (y * 400 + x) + 1;
                    sum += f32::from(after.data[at]) - f32::from(before.data[at]);
                }
            }
            sum / 100.0
        };
        assert!((mean_change(190, 130) - 30.0).abs() < 4.0, "{}", mean_change(190, 130));
        assert_eq!(mean_change(2, 2), 0.0);
        assert_eq!(mean_change(102, 42), 0.0);
        assert_eq!(mean_change(380, 280), 0.0);
    }

    #[test]
    fn colours_keep_their_hue() {
        let mut face = AlignedFace::default();
        for pixel in face.rgb.chunks_exact_mut(3) {
            pixel.copy_from_slice(&[150, 110, 90]);
        }
        let out = Change::new(&face, &grey(120), &reading(140)).over_crop(&face);
        let pixel = &out.data[3 * (64 * 128 + 64)..][..3];
        assert_eq!((pixel[0] - pixel[1], pixel[1] - pixel[2]), (40, 20));
        assert!(pixel[0] > 160);
    }
}
