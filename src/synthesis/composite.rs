//! Lays a [`Delta`] over a face, as a [`Look`] weighs it: over a crop, or over the whole picture that the face was taken from.
//!
//! The picture is never replaced by what a network saw, which is small: only the difference moves. It is weighed on the aligned face, made as
//! fine as the picture by cubic interpolation (Catmull and Rom, 1974), and added where the alignment came from, so the picture's own detail
//! stays, whatever its size; where a face is smaller than 128 pixels, the difference is averaged instead.
//! Invariants: a pixel outside the ellipse of the face keeps its value, and so does one where the weighed difference rounds to nothing; nothing
//! is allocated once warm.

use super::delta::Delta;
use super::makeup::{FACE, Look};
use crate::face::align::Similarity;
use crate::face::{ALIGNED_SIDE_PX, AlignedFace, Point};
use crate::frame::RgbImage;

const SIDE: usize = ALIGNED_SIDE_PX;
const PIXELS: usize = SIDE * SIDE;
/// The difference is made so much finer at most; larger faces take it bilinearly from there, which nobody sees any more.
const FINEST: usize = 4;
/// Samples along each side of a pixel at most, where a face is small.
const MOST_SAMPLES: usize = 8;

/// The working memory; keep one for each place that composes.
#[derive(Clone, Debug, Default)]
pub struct Composite {
    /// The weighed difference, R G B for each pixel of the aligned face.
    weighed: Vec<f32>,
    /// As many columns as the fine one has, rows as before.
    wide: Vec<f32>,
    fine: Vec<f32>,
}

impl Composite {
    /// One without memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The aligned face with the difference laid over it; `face` and what is returned have 128x128 pixels.
    pub fn over_crop(&mut self, delta: &Delta, look: &Look, face: &AlignedFace) -> RgbImage {
        let mut data = face.rgb.clone();
        if self.weigh(delta, look) {
            data.iter_mut().zip(&self.weighed).for_each(|(value, change)| *value = shifted(*value, *change));
        }
        RgbImage { width_px: SIDE as u32, height_px: SIDE as u32, data }
    }

    /// The aligned face with the difference laid over it, and nothing of what lies around the face: that becomes the mean colour of what
    /// was made, and the face fades into it as the look's weights fade.
    pub fn alone(&mut self, delta: &Delta, look: &Look, face: &AlignedFace) -> RgbImage {
        let mut picture = self.over_crop(delta, look, face);
        let (mut sum, mut total) = ([0.0_f64; 3], 1e-6_f64);
        for (pixel, weight) in picture.data.chunks_exact(3).zip(look.weights()) {
            let weight = f64::from(*weight);
            total += weight;
            sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += weight * f64::from(*value));
        }
        let mean = sum.map(|sum| (sum / total) as f32);
        for (pixel, weight) in picture.data.chunks_exact_mut(3).zip(look.weights()) {
            for (value, mean) in pixel.iter_mut().zip(mean) {
                *value = (mean + weight * (f32::from(*value) - mean)).round() as u8;
            }
        }
        picture
    }

    /// Lays the difference over the face in `picture`, where `similarity` takes the picture to the aligned face.
    pub fn over_picture(&mut self, delta: &Delta, look: &Look, picture: &mut RgbImage, similarity: &Similarity) {
        if !self.weigh(delta, look) {
            return;
        }
        let scale = similarity.scale();
        let finer = ((1.0 / scale - 1e-3).ceil().max(1.0) as usize).min(FINEST);
        self.refine(finer);
        let field = Field { values: if finer == 1 { &self.weighed } else { &self.fine }, side: SIDE * finer, finer };
        let samples = ((scale - 1e-3).ceil().max(1.0) as usize).min(MOST_SAMPLES);
        let (width, height) = (picture.width_px as usize, picture.height_px as usize);
        for y in rows(similarity, height) {
            let columns = columns(similarity, y, width);
            let row = &mut picture.data[3 * (y * width + columns.start)..3 * (y * width + columns.end)];
            for (pixel, x) in row.chunks_exact_mut(3).zip(columns) {
                let change = field.mean(similarity, (x as f32, y as f32), samples);
                for (value, change) in pixel.iter_mut().zip(change) {
                    *value = shifted(*value, change);
                }
            }
        }
    }

    /// Whether there is anything to lay over.
    fn weigh(&mut self, delta: &Delta, look: &Look) -> bool {
        let strength = look.strength();
        if strength == 0.0 {
            return false;
        }
        let (red, rest) = delta.planes().split_at(PIXELS);
        let (green, blue) = rest.split_at(PIXELS);
        self.weighed.clear();
        for (((weight, r), g), b) in look.weights().iter().zip(red).zip(green).zip(blue) {
            let weight = weight * strength;
            self.weighed.extend([weight * r, weight * g, weight * b]);
        }
        true
    }

    /// Makes `fine`, `finer` times as wide and high as the aligned face, of the weighed difference: along rows, then along columns.
    fn refine(&mut self, finer: usize) {
        if finer == 1 {
            return;
        }
        let side = SIDE * finer;
        self.wide.resize(3 * side * SIDE, 0.0);
        self.fine.resize(3 * side * side, 0.0);
        for (from, to) in self.weighed.chunks_exact(3 * SIDE).zip(self.wide.chunks_exact_mut(3 * side)) {
            for (i, pixel) in to.chunks_exact_mut(3).enumerate() {
                let (places, weights) = taps(i, finer);
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = (0..4).map(|k| weights[k] * from[3 * places[k] + c]).sum();
                }
            }
        }
        for (i, to) in self.fine.chunks_exact_mut(3 * side).enumerate() {
            let (places, weights) = taps(i, finer);
            let [a, b, c, d] = places.map(|row| &self.wide[3 * side * row..3 * side * (row + 1)]);
            for ((((value, a), b), c), d) in to.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *value = weights[0] * a + weights[1] * b + weights[2] * c + weights[3] * d;
            }
        }
    }
}

/// The cast saturates.
fn shifted(value: u8, change: f32) -> u8 {
    (f32::from(value) + change).round() as u8
}

/// Where fine place `i` lies among the coarse ones, the edge repeated, and how much each counts.
fn taps(i: usize, finer: usize) -> ([usize; 4], [f32; 4]) {
    let place = (i as f32 + 0.5) / finer as f32 - 0.5;
    let before = place.floor();
    let t = place - before;
    let at = |offset: isize| (before as isize + offset).clamp(0, SIDE as isize - 1) as usize;
    let (t2, t3) = (t * t, t * t * t);
    let weights = [
        0.5 * (-t + 2.0 * t2 - t3),
        0.5 * (2.0 - 5.0 * t2 + 3.0 * t3),
        0.5 * (t + 4.0 * t2 - 3.0 * t3),
        0.5 * (t3 - t2),
    ];
    ([at(-1), at(0), at(1), at(2)], weights)
}

/// The difference, to be looked up.
struct Field<'a> {
    /// R G B for each place.
    values: &'a [f32],
    side: usize,
    /// Places for each pixel of the aligned face.
    finer: usize,
}

impl Field<'_> {
    /// Over the pixel of the picture whose corner is (x, y).
    #[inline(always)]
    fn mean(&self, similarity: &Similarity, (x, y): (f32, f32), samples: usize) -> [f32; 3] {
        if samples == 1 {
            return self.at(similarity.apply(Point { x: x + 0.5, y: y + 0.5 }));
        }
        let (step, mut sum) = (1.0 / samples as f32, [0.0; 3]);
        for i in 0..samples * samples {
            let (sx, sy) = ((i % samples) as f32 + 0.5, (i / samples) as f32 + 0.5);
            let one = self.at(similarity.apply(Point { x: x + sx * step, y: y + sy * step }));
            sum = [sum[0] + one[0], sum[1] + one[1], sum[2] + one[2]];
        }
        sum.map(|sum| sum * step * step)
    }

    /// Bilinear, the edge repeated; a place of the aligned face in its pixels.
    #[inline(always)]
    fn at(&self, p: Point) -> [f32; 3] {
        let last = (self.side - 1) as f32;
        let place = |v: f32| (v * self.finer as f32 - 0.5).clamp(0.0, last);
        let (x, y) = (place(p.x), place(p.y));
        let (x0, y0) = (x as usize, y as usize);
        let (fx, fy) = (x - x0 as f32, y - y0 as f32);
        let right = if x0 + 1 < self.side { 3 } else { 0 };
        let below = if y0 + 1 < self.side { 3 * self.side } else { 0 };
        let corner = &self.values[3 * (y0 * self.side + x0)..];
        [0, 1, 2].map(|c| {
            let top = corner[c] * (1.0 - fx) + corner[right + c] * fx;
            let bottom = corner[below + c] * (1.0 - fx) + corner[below + right + c] * fx;
            top * (1.0 - fy) + bottom * fy
        })
    }
}

/// Rows of the picture that the face's ellipse reaches.
fn rows(similarity: &Similarity, height: usize) -> std::ops::Range<usize> {
    let back = similarity.inverse();
    let (middle, wide, high) = FACE;
    let reach = wide.max(high) * back.scale();
    let y = back.apply(middle).y;
    let limit = |v: f32| v.clamp(0.0, height as f32) as usize;
    limit((y - reach).floor())..limit((y + reach).ceil())
}

/// Columns of row `y` whose pixels lie in the ellipse at least in part: where a quadratic along the row is below 1.
fn columns(similarity: &Similarity, y: usize, width: usize) -> std::ops::Range<usize> {
    let (middle, wide, high) = FACE;
    let place = |x: f32| similarity.apply(Point { x, y: y as f32 + 0.5 });
    // Over a long way, so that the difference of two is right.
    let (first, far) = (place(0.5), place(4096.5));
    let (ux, uy) = ((first.x - middle.x) / wide, (first.y - middle.y) / high);
    let (dx, dy) = ((far.x - first.x) / (4096.0 * wide), (far.y - first.y) / (4096.0 * high));
    // |u + x d| <= 1, and a pixel is as wide as it is.
    let (a, b) = (dx * dx + dy * dy, ux * dx + uy * dy);
    let edge = 1.0 + similarity.scale() / wide.min(high);
    let c = ux * ux + uy * uy - edge * edge;
    let root = b * b - a * c;
    if root <= 0.0 || a <= 0.0 {
        return 0..0;
    }
    let limit = |v: f32| v.clamp(0.0, width as f32) as usize;
    limit(((-b - root.sqrt()) / a).floor())..limit(((-b + root.sqrt()) / a).ceil() + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::makeup::{Region, radius};
    use super::*;
    use crate::face::Landmarks;
    use crate::face::align::TEMPLATE;

    fn textured(width: u32, height: u32) -> RgbImage {
        let mut picture = RgbImage::default();
        picture.resize(width, height);
        for (i, value) in picture.data.iter_mut().enumerate() {
            *value = (i * 37 % 251) as u8;
        }
        picture
    }

    fn grey(width: u32, height: u32) -> RgbImage {
        let mut picture = RgbImage::default();
        picture.resize(width, height);
        picture.data.fill(100);
        picture
    }

    fn constant(values: [f32; 3]) -> Delta {
        let mut delta = Delta::default();
        let planes: Vec<f32> = values.iter().flat_map(|v| std::iter::repeat_n(*v, PIXELS)).collect();
        delta.fill("test", &planes).unwrap();
        delta
    }

    /// A face `size` times as large as an aligned one, turned by `angle`, its square's corner at (x, y).
    fn placed(size: f32, angle: f32, x: f32, y: f32) -> Similarity {
        let (sin, cos) = angle.sin_cos();
        let landmarks: Landmarks = TEMPLATE.map(|p| {
            let (px, py) = (size * (p.x - 64.0), size * (p.y - 64.0));
            Point { x: x + 64.0 * size + cos * px - sin * py, y: y + 64.0 * size + sin * px + cos * py }
        });
        Similarity::to_aligned(&landmarks).unwrap()
    }

    fn over(delta: &Delta, look: &Look, mut picture: RgbImage, similarity: &Similarity) -> RgbImage {
        Composite::new().over_picture(delta, look, &mut picture, similarity);
        picture
    }

    fn at(picture: &RgbImage, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * picture.width_px as usize + x);
        [picture.data[at], picture.data[at + 1], picture.data[at + 2]]
    }

    #[test]
    fn a_constant_delta_shows_no_box_at_any_size() {
        for (size, side) in [(0.25, 60), (0.6, 120), (1.0, 160), (2.3, 340), (6.0, 840)] {
            let similarity = placed(size, 0.2, 12.0, 8.0);
            let after = over(&constant([40.0; 3]), &Look::default(), grey(side, side), &similarity);
            let side = side as usize;
            let value = |x: usize, y: usize| i32::from(at(&after, x, y)[1]);
            // The fade is 40 levels over 18 % of the radius, at most half as steep again, and 1 for rounding.
            let steepest = 1.5 * 40.0 / (0.18 * 60.2 * size) + 1.0;
            for y in 1..side {
                for x in 1..side {
                    let step = (value(x, y) - value(x - 1, y)).abs().max((value(x, y) - value(x, y - 1)).abs());
                    assert!(step as f32 <= steepest.ceil(), "{step} levels at {x},{y}, size {size}");
                }
            }
            let middle = similarity.inverse().apply(Point { x: 64.0, y: 66.0 });
            assert_eq!(at(&after, middle.x as usize, middle.y as usize), [140; 3], "size {size}");
        }
    }

    #[test]
    fn a_face_of_a_full_hd_picture_keeps_its_detail_and_the_rest_every_bit() {
        let (before, similarity) = (textured(1920, 1080), placed(6.5, -0.1, 500.0, 100.0));
        let after = over(&constant([-12.0, 0.0, 7.0]), &Look::default(), before.clone(), &similarity);
        for y in (0..1080).step_by(7) {
            for x in (0..1920).step_by(5) {
                let r = radius(similarity.apply(Point { x: x as f32 + 0.5, y: y as f32 + 0.5 }));
                let (a, b) = (at(&before, x, y), at(&after, x, y));
                if r > 1.03 {
                    assert_eq!(a, b, "outside at {x},{y}");
                } else if r < 0.78 {
                    assert_eq!(b, [a[0].saturating_sub(12), a[1], a[2].saturating_add(7)], "inside at {x},{y}");
                }
            }
        }
    }

    #[test]
    fn a_smooth_delta_has_no_creases_where_it_is_enlarged() {
        let planes: Vec<f32> = (0..3 * PIXELS)
            .map(|i| {
                let (x, y) = ((i % SIDE) as f32 - 64.0, (i % PIXELS / SIDE) as f32 - 66.0);
                90.0 * (-(x * x + y * y) / 300.0).exp()
            })
            .collect();
        let mut delta = Delta::default();
        delta.fill("test", &planes).unwrap();
        let similarity = placed(4.0, 0.0, 0.0, 0.0);
        let after = over(&delta, &Look::default(), grey(512, 512), &similarity);
        let row: Vec<f32> = (100..412).map(|x| f32::from(at(&after, x, 264)[0])).collect();
        for (i, value) in row.iter().enumerate() {
            let x = ((i + 100) as f32 + 0.5) / 4.0 - 0.5 - 64.0;
            let y = 264.5 / 4.0 - 0.5 - 66.0;
            let expected = 100.0 + 90.0 * (-(x * x + y * y) / 300.0_f32).exp();
            assert!((value - expected).abs() <= 1.0, "{value} for {expected} at {i}");
        }
    }

    #[test]
    fn a_small_face_takes_the_mean_of_what_lies_under_a_pixel() {
        let board: Vec<f32> =
            (0..3 * PIXELS).map(|i| if (i + i / SIDE).is_multiple_of(2) { 80.0 } else { -80.0 }).collect();
        let mut delta = Delta::default();
        delta.fill("test", &board).unwrap();
        let after = over(&delta, &Look::default(), grey(60, 60), &placed(0.25, 0.0, 10.0, 10.0));
        let worst = after.data.iter().map(|v| v.abs_diff(100)).max().unwrap();
        assert!(worst <= 6, "{worst} levels of a pattern that nobody should see");
    }

    #[test]
    fn a_face_over_the_pictures_edge_is_drawn_as_far_as_it_goes() {
        let (delta, look) = (constant([20.0, -20.0, 5.0]), Look::default());
        let whole = over(&delta, &look, grey(400, 300), &placed(1.5, 0.3, 100.0, 60.0));
        let part = over(&delta, &look, grey(140, 120), &placed(1.5, 0.3, 100.0 - 180.0, 60.0 - 130.0));
        for y in 0..120 {
            for x in 0..140 {
                let (a, b) = (at(&whole, x + 180, y + 130), at(&part, x, y));
                assert!(a.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= 1), "{a:?} {b:?} at {x},{y}");
            }
        }
        let away = over(&delta, &look, textured(50, 50), &placed(1.0, 0.0, 500.0, -900.0));
        assert_eq!(away, textured(50, 50));
    }

    #[test]
    fn the_lips_alone_leave_the_eyes_alone() {
        let similarity = placed(2.0, 0.0, 0.0, 0.0);
        let look = Look::new(&[Region::Lips], 1.0);
        let after = over(&constant([30.0; 3]), &look, grey(256, 256), &similarity);
        assert_eq!(at(&after, 128, 194), [130; 3]);
        assert_eq!((at(&after, 81, 100), at(&after, 175, 100)), ([100; 3], [100; 3]));
    }

    #[test]
    fn a_crop_is_changed_by_the_weighed_delta() {
        let face = AlignedFace { rgb: grey(128, 128).data, quality: 1.0 };
        let half = Look::new(&Region::ALL, 0.5);
        let out = Composite::new().over_crop(&constant([30.0, 0.0, -300.0]), &half, &face);
        assert_eq!(at(&out, 64, 66), [115, 100, 0]);
        assert_eq!(at(&out, 0, 0), [100; 3]);
    }

    #[test]
    fn a_face_alone_tells_nothing_of_what_lay_around_it() {
        let mut face = AlignedFace { rgb: [90, 120, 150].repeat(PIXELS), quality: 1.0 };
        let (delta, look) = (Delta::default(), Look::default());
        let before = Composite::new().alone(&delta, &look, &face);
        for (pixel, weight) in face.rgb.chunks_exact_mut(3).zip(look.weights()) {
            if *weight == 0.0 {
                pixel.copy_from_slice(&[255, 0, 7]);
            }
        }
        assert_eq!(Composite::new().alone(&delta, &look, &face), before);
        assert_eq!(before.data[..3], [90, 120, 150]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn strength_zero_and_a_zero_delta_change_no_pixel_of_any_picture(
            size in 0.1_f32..3.0, angle in -3.2_f32..3.2, x in -200.0_f32..200.0, y in -200.0_f32..200.0, delta in -255.0_f32..255.0,
        ) {
            let (before, similarity) = (textured(160, 120), placed(size, angle, x, y));
            let nothing = Look::new(&Region::ALL, 0.0);
            prop_assert_eq!(&over(&constant([delta; 3]), &nothing, before.clone(), &similarity), &before);
            prop_assert_eq!(&over(&Delta::default(), &Look::default(), before.clone(), &similarity), &before);
        }

        #[test]
        fn no_pixel_outside_the_face_changes(
            size in 0.1_f32..3.0, angle in -3.2_f32..3.2, x in -200.0_f32..200.0, y in -200.0_f32..200.0, delta in -255.0_f32..255.0,
        ) {
            let (before, similarity) = (textured(160, 120), placed(size, angle, x, y));
            let after = over(&constant([delta; 3]), &Look::default(), before.clone(), &similarity);
            for py in 0..120 {
                for px in 0..160 {
                    let r = radius(similarity.apply(Point { x: px as f32 + 0.5, y: py as f32 + 0.5 }));
                    // A pixel's half diagonal, and the cubic's reach, beyond the edge.
                    let margin = (0.75 * similarity.scale() + 1.5) / 60.2;
                    prop_assert!(r <= 1.0 + margin || at(&before, px, py) == at(&after, px, py), "{} at {},{}", r, px, py);
                }
            }
        }
    }
}
