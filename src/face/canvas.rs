//! Draws a region of a picture into a network's input: scaled with a triangle filter that widens when it shrinks
//! (bilinear when it enlarges), BGR, one plane a channel, 0..=255 in float, black around.
//!
//! Knows nothing of faces. Allocates nothing once it has drawn the largest region.

use super::Rect;
use crate::frame::RgbImage;

/// A region of a picture and where it lands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct View {
    /// Left edge in the picture, inside it.
    pub(crate) x: f32,
    /// Top edge in the picture, inside it.
    pub(crate) y: f32,
    /// Canvas pixels for one picture pixel, above zero.
    pub(crate) scale: f32,
    /// Canvas width in pixels.
    pub(crate) width_px: usize,
    /// Canvas height in pixels.
    pub(crate) height_px: usize,
}

impl View {
    /// The part of the picture that the canvas shows (it may reach over the picture's right and bottom edge).
    pub(crate) fn region(&self) -> Rect {
        Rect {
            x: self.x,
            y: self.y,
            width: self.width_px as f32 / self.scale,
            height: self.height_px as f32 / self.scale,
        }
    }
}

/// Scratch memory for drawing.
#[derive(Debug, Default)]
pub(crate) struct Painter {
    columns: Taps,
    rows: Taps,
    line: Vec<f32>,
}

/// For each output place the first input place and the weights of it and those after it; `width` weights each.
#[derive(Debug, Default)]
struct Taps {
    first: Vec<usize>,
    weights: Vec<f32>,
    width: usize,
}

impl Taps {
    /// `out` places, of which place `i` looks at `origin + (i + 0.5) / scale` in an input of `size` places.
    fn set(&mut self, origin: f32, scale: f32, out: usize, size: usize) {
        let support = (1.0 / scale).max(1.0);
        self.width = ((2.0 * support).ceil() as usize + 1).min(size);
        self.first.clear();
        self.weights.clear();
        for i in 0..out {
            let centre = origin + (i as f32 + 0.5) / scale;
            let lowest = (centre - support).max(0.0) as usize;
            let first = lowest.min(size - self.width);
            self.first.push(first);
            let at = self.weights.len();
            self.weights.extend((first..first + self.width).map(|k| {
                let distance = (k as f32 + 0.5 - centre).abs() / support;
                (1.0 - distance).max(0.0)
            }));
            normalise(&mut self.weights[at..]);
        }
    }
}

/// Makes the weights sum to 1; where all are 0 (never for a place inside the input) the last counts.
fn normalise(weights: &mut [f32]) {
    let sum: f32 = weights.iter().sum();
    if sum > 1e-6 {
        weights.iter_mut().for_each(|w| *w /= sum);
    } else if let Some(last) = weights.last_mut() {
        *last = 1.0;
    }
}

impl Painter {
    /// Draws `view` of `picture` (at least 1x1) into `canvas`, resized to `3 * width * height`: planes B, G, R.
    pub(crate) fn draw(&mut self, picture: &RgbImage, view: &View, canvas: &mut Vec<f32>) {
        let (width, height) = (picture.width_px as usize, picture.height_px as usize);
        let plane = view.width_px * view.height_px;
        canvas.clear();
        canvas.resize(3 * plane, 0.0);
        let drawn = |origin: f32, size: usize, limit: usize| {
            (((size as f32 - origin) * view.scale).round().max(1.0) as usize).min(limit)
        };
        let (out_width, out_height) = (drawn(view.x, width, view.width_px), drawn(view.y, height, view.height_px));
        self.columns.set(view.x, view.scale, out_width, width);
        self.rows.set(view.y, view.scale, out_height, height);
        let begin = self.columns.first.first().copied().unwrap_or(0);
        let end = self.columns.first.last().map_or(0, |first| first + self.columns.width);
        self.line.clear();
        self.line.resize(3 * (end - begin), 0.0);
        let (blue, rest) = canvas.split_at_mut(plane);
        let (green, red) = rest.split_at_mut(plane);
        for y in 0..out_height {
            self.sum_rows(picture, y, 3 * (width * self.rows.first[y] + begin), 3 * width);
            let at = y * view.width_px..y * view.width_px + out_width;
            self.sum_columns(begin, &mut red[at.clone()], &mut green[at.clone()], &mut blue[at]);
        }
    }

    /// The weighted sum of the rows that output row `y` looks at, into `line`.
    fn sum_rows(&mut self, picture: &RgbImage, y: usize, start: usize, stride: usize) {
        let weights = &self.rows.weights[y * self.rows.width..(y + 1) * self.rows.width];
        self.line.fill(0.0);
        for (k, weight) in weights.iter().enumerate() {
            if *weight == 0.0 {
                continue;
            }
            let row = &picture.data[start + k * stride..][..self.line.len()];
            for (sum, value) in self.line.iter_mut().zip(row) {
                *sum += weight * f32::from(*value);
            }
        }
    }

    fn sum_columns(&self, begin: usize, red: &mut [f32], green: &mut [f32], blue: &mut [f32]) {
        let taps = self.columns.weights.chunks_exact(self.columns.width);
        for (i, (first, weights)) in self.columns.first.iter().zip(taps).enumerate() {
            let pixels = self.line[3 * (first - begin)..].chunks_exact(3);
            let (mut r, mut g, mut b) = (0.0, 0.0, 0.0);
            for (weight, pixel) in weights.iter().zip(pixels) {
                r += weight * pixel[0];
                g += weight * pixel[1];
                b += weight * pixel[2];
            }
            (red[i], green[i], blue[i]) = (r, g, b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: u32, height: u32) -> RgbImage {
        let mut picture = RgbImage::default();
        picture.resize(width, height);
        for (i, pixel) in picture.data.chunks_exact_mut(3).enumerate() {
            let (x, y) = (i as u32 % width, i as u32 / width);
            pixel.copy_from_slice(&[(4 * x) as u8, (3 * y) as u8, 200]);
        }
        picture
    }

    fn draw(picture: &RgbImage, view: View) -> Vec<f32> {
        let mut canvas = Vec::new();
        Painter::default().draw(picture, &view, &mut canvas);
        canvas
    }

    #[test]
    fn at_scale_one_the_pixels_are_copied_as_bgr_planes_and_the_rest_is_black() {
        let picture = ramp(20, 10);
        let canvas = draw(&picture, View { x: 0.0, y: 0.0, scale: 1.0, width_px: 32, height_px: 32 });
        for y in 0..32 {
            for x in 0..32 {
                let inside = x < 20 && y < 10;
                let expected = if inside { [200.0, 3.0 * y as f32, 4.0 * x as f32] } else { [0.0; 3] };
                for (c, value) in expected.iter().enumerate() {
                    assert_eq!(canvas[c * 1024 + y * 32 + x], *value, "channel {c} at {x},{y}");
                }
            }
        }
    }

    #[test]
    fn a_linear_ramp_stays_the_same_ramp_at_any_scale() {
        let picture = ramp(60, 60);
        for scale in [0.37, 0.5, 0.8, 1.7] {
            let view = View { x: 7.5, y: 11.0, scale, width_px: 32, height_px: 32 };
            let canvas = draw(&picture, view);
            let (x, y) = (12, 9);
            let source = |origin: f32, place: f32| origin + (place + 0.5) / scale - 0.5;
            let (expected_red, expected_green) = (4.0 * source(7.5, 12.0), 3.0 * source(11.0, 9.0));
            assert!((canvas[2048 + y * 32 + x] - expected_red).abs() < 0.3, "scale {scale}");
            assert!((canvas[1024 + y * 32 + x] - expected_green).abs() < 0.3, "scale {scale}");
        }
    }

    #[test]
    fn a_picture_of_one_pixel_and_a_sliver_can_be_drawn() {
        for (width, height) in [(1, 1), (1, 500), (500, 1)] {
            let picture = ramp(width, height);
            let scale = 32.0 / width.max(height) as f32;
            let canvas = draw(&picture, View { x: 0.0, y: 0.0, scale, width_px: 32, height_px: 32 });
            assert!(canvas.iter().all(|v| v.is_finite()));
            assert!((canvas[0] - 200.0).abs() < 0.01);
        }
    }
}
