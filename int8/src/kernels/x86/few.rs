//! Dense convolution to a few output channels: the input's bytes in the lanes, one sum a channel and pixel, added up at the end.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::{Area, BLOCK, DenseSpec, Grid, Layer, Memory, QUAD, Scratch};
use super::finish::{self, Finish};
use super::memory::Packed;
use super::{Simd, Work};

/// Most channels that are few.
pub(super) const MOST: usize = 4;
/// Bytes of weights of one step and channel.
const STEP: usize = 32;

/// Whether this way is faster than one with channels in the lanes, by the instructions for a pixel.
pub(super) fn pays<S: Simd>(spec: &DenseSpec) -> bool {
    let (runs, channels) = (spec.runs.len(), spec.channels);
    let steps = (spec.quads * QUAD).div_ceil(S::ALONG);
    let (here, there) = match S::WIDEN {
        true => (runs * steps * (1 + 2 * channels), runs * spec.quads * 4),
        false => (runs * steps * (1 + channels), runs * spec.quads),
    };
    here + 5 * channels < there + 4
}

/// A packed layer.
#[derive(Debug)]
pub(super) struct Few<S> {
    grid: Grid,
    /// Where each run begins, in bytes from the pixel's first.
    runs: Box<[usize]>,
    /// Steps of each run.
    steps: usize,
    channels: usize,
    /// `[run][step][channel][STEP bytes]`.
    weights: Packed<u8>,
    /// Repeated, channel by channel, as the sums of several pixels lie.
    bias: [i32; BLOCK],
    scale: [f32; BLOCK],
    slope: [f32; BLOCK],
    finish: Finish,
    of: PhantomData<S>,
}

impl<S: Simd> Few<S> {
    pub(super) fn new(spec: DenseSpec) -> Self {
        let steps = (spec.quads * QUAD).div_ceil(S::ALONG);
        let weight = |channel, run, byte| {
            if byte < spec.quads * QUAD { spec.weight(channel, run, byte / QUAD, byte % QUAD) } else { 0 }
        };
        let mut weights = Vec::new();
        for (run, step) in (0..spec.runs.len()).flat_map(|run| (0..steps).map(move |step| (run, step))) {
            for (channel, i) in (0..spec.channels).flat_map(|channel| (0..S::ALONG).map(move |i| (channel, i))) {
                let weight = weight(channel, run, step * S::ALONG + i);
                if S::WIDEN { weights.extend(i16::from(weight).to_le_bytes()) } else { weights.push(weight as u8) }
            }
        }
        let finish = Finish::new(spec.post.clone());
        Self {
            grid: spec.grid,
            runs: spec.runs.iter().map(|run| run.row * spec.tap_row + run.offset).collect(),
            steps,
            channels: spec.channels,
            weights: Packed::new(&weights),
            bias: std::array::from_fn(|i| spec.post.bias[i % spec.channels]),
            scale: std::array::from_fn(|i| spec.post.scale[i % spec.channels]),
            slope: std::array::from_fn(|i| finish.slopes[i % spec.channels]),
            finish,
            of: PhantomData,
        }
    }
}

impl<S: Simd> Layer for Few<S> {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        let width = self.finish.width();
        for y in area.rows {
            let at = self.grid.output.at(y, area.columns.start);
            let row = Row {
                layer: self,
                input: memory.bytes.wrapping_add(self.grid.input.at(y, area.columns.start)),
                output: match width {
                    1 => memory.bytes.wrapping_add(at),
                    _ => memory.floats.wrapping_add(at).cast(),
                },
                output_step: self.grid.output.pixel * width,
                pixels: area.columns.len(),
            };
            // SAFETY: the row is the area's.
            unsafe {
                match self.channels {
                    1 => S::enter(RowOf::<S, 8, 1>(row)),
                    2 => S::enter(RowOf::<S, 4, 2>(row)),
                    3 => S::enter(RowOf::<S, 2, 3>(row)),
                    _ => S::enter(RowOf::<S, 2, 4>(row)),
                }
            }
        }
    }
}

struct Row<'a, S> {
    layer: &'a Few<S>,
    input: *const u8,
    output: *mut u8,
    output_step: usize,
    pixels: usize,
}

/// Tiles that are finished together: their sums fill a block of sixteen, or most of it.
const TILES: usize = 2;

/// A row in tiles of so many pixels.
struct RowOf<'a, S, const PIXELS: usize, const CHANNELS: usize>(Row<'a, S>);

impl<S: Simd, const PIXELS: usize, const CHANNELS: usize> Work for RowOf<'_, S, PIXELS, CHANNELS> {
    #[inline(always)]
    unsafe fn run(self) {
        let row = self.0;
        let mut x = 0;
        // SAFETY: the pixels are the row's.
        unsafe {
            while x + TILES * PIXELS <= row.pixels {
                row.tiles::<PIXELS, TILES, CHANNELS>(x);
                x += TILES * PIXELS;
            }
            while x < row.pixels {
                row.tiles::<1, 1, CHANNELS>(x);
                x += 1;
            }
        }
    }
}

impl<S: Simd> Row<'_, S> {
    /// Tiles of pixels from column `x` on.
    ///
    /// # Safety
    /// They are the row's.
    #[inline(always)]
    unsafe fn tiles<const PIXELS: usize, const COUNT: usize, const CHANNELS: usize>(&self, x: usize) {
        let mut totals = [0i32; BLOCK];
        // SAFETY: the pixels are the row's, and there is room for the sums of all.
        unsafe {
            for tile in 0..COUNT {
                self.sum::<PIXELS, CHANNELS>(x + tile * PIXELS, &mut totals, tile * PIXELS * CHANNELS);
            }
            self.put::<CHANNELS>(&totals, x, COUNT * PIXELS);
        }
    }

    /// The sums of some pixels from column `x` on, to `totals` from `at` on; behind them some of it may be written too.
    ///
    /// # Safety
    /// The pixels are the row's; there is room for the sums, filled up to fours.
    #[inline(always)]
    unsafe fn sum<const PIXELS: usize, const CHANNELS: usize>(&self, x: usize, totals: &mut [i32; BLOCK], at: usize) {
        let layer = self.layer;
        let step = layer.grid.input.pixel;
        let count = PIXELS * CHANNELS;
        // SAFETY: the bytes of every run can be read, and as many behind it as a step takes; groups of four lie within the totals.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); CHANNELS]; PIXELS];
            let mut weights = layer.weights.at(0);
            for &run in &layer.runs {
                let mut input = self.input.add(x * step + run);
                for _ in 0..layer.steps {
                    for (pixel, sums) in sums.iter_mut().enumerate() {
                        let input = S::along(input.add(pixel * step));
                        for (channel, sums) in sums.iter_mut().enumerate() {
                            *sums = S::dot_along(*sums, input, weights.add(channel * STEP));
                        }
                    }
                    weights = weights.add(CHANNELS * STEP);
                    input = input.add(S::ALONG);
                }
            }
            for group in (0..count).step_by(4) {
                let part = |i: usize| match group + i < count {
                    true => sums[(group + i) / CHANNELS][(group + i) % CHANNELS],
                    false => _mm256_setzero_si256(),
                };
                let pairs = (_mm256_hadd_epi32(part(0), part(1)), _mm256_hadd_epi32(part(2), part(3)));
                let halves = _mm256_hadd_epi32(pairs.0, pairs.1);
                let total = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
                let total = _mm_add_epi32(total, _mm_loadu_si128(layer.bias.as_ptr().add(at + group).cast()));
                _mm_storeu_si128(totals.as_mut_ptr().add(at + group).cast(), total);
            }
        }
    }

    /// Finishes and writes the sums of so many pixels.
    ///
    /// # Safety
    /// They are the row's.
    #[inline(always)]
    unsafe fn put<const CHANNELS: usize>(&self, totals: &[i32; BLOCK], x: usize, pixels: usize) {
        let layer = self.layer;
        // SAFETY: outputs are the row's.
        unsafe {
            let post = &layer.finish.post;
            let values = finish::general(post, totals.as_ptr(), layer.scale.as_ptr(), layer.slope.as_ptr());
            let output = self.output.add(x * self.output_step);
            if self.output_step == CHANNELS * layer.finish.width() {
                finish::put(post, &values, output, pixels * CHANNELS);
                return;
            }
            for pixel in 0..pixels {
                finish::put_from(post, &values, pixel * CHANNELS, output.add(pixel * self.output_step), CHANNELS);
            }
        }
    }
}
