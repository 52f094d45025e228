//! Depthwise convolution of 3 by 3 taps for AVX2: sixteen channels at a time, from pixel to pixel along a row.
//!
//! `vpmaddwd` multiplies two taps of eight channels at once, and is exact for any weights. The bytes of the upper two kernel rows meet
//! as pairs, column by column: each is made once and serves the three pixels that it lies under. Those of the third row meet as pairs of neighbours,
//! of which the ones that begin at even columns are enough: a pixel at an odd column takes the halves that it needs by weights of zero.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::super::{Area, BLOCK, DepthwiseSpec, Grid, Layer, Memory, Post, Scratch};
use super::finish::{Bounds, Finish, PLAIN, SLOPE, Way};
use super::memory::Packed;
use super::{Simd, Work, lanes256};

/// Channels of a group.
const GROUP: usize = BLOCK;
/// Pairs of weights of a group: three columns of the upper rows; of the third row two for pixels at even places, two for the others.
const PAIRS: usize = 7;
/// Bytes of the weights of a group for a pair of taps: two vectors of eight channels.
const VECTORS: usize = 64;
/// The channels in a vector's lanes, as unpacking brings them there: packing brings them back.
const ORDER: [usize; GROUP] = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];
/// Pixels whose sums are formed before they are finished.
const CHUNK: usize = 80;
/// Input bytes of a row that are gone through before the next: with those of two more rows and the output they stay in the first-level cache.
const STRIP: usize = 6 * 1024;

/// The layer, where it is one of these.
pub(super) fn layer<S: Simd>(spec: &DepthwiseSpec) -> Option<Box<dyn Layer>> {
    fits(spec).then(|| Box::new(March::<S>::new(spec)) as Box<dyn Layer>)
}

/// Whether the layer is one of these.
pub(super) fn fits(spec: &DepthwiseSpec) -> bool {
    let step = spec.grid.input.pixel;
    let stride = step == spec.tap_column || step == 2 * spec.tap_column;
    let plain = Finish::new(spec.post.clone()).way != Way::General;
    // A last group that overlaps the one before by too much is slower than going without groups.
    let full = spec.channels >= GROUP && spec.channels * 10 >= spec.channels.next_multiple_of(GROUP) * 7;
    (spec.kernel_rows, spec.kernel_columns) == (3, 3) && stride && plain && full
}

/// Each group's first channel: the last begins early enough to be a whole one.
pub(super) fn groups(channels: usize) -> Box<[usize]> {
    (0..channels).step_by(GROUP).map(|first| first.min(channels - GROUP)).collect()
}

/// A packed layer.
#[derive(Debug)]
struct March<S> {
    grid: Grid,
    tap_row: usize,
    tap_column: usize,
    /// Each group's first channel: the last begins early enough to be a whole one.
    groups: Box<[usize]>,
    /// `[group][pair][lane][2]` 16-bit integers.
    weights: Packed<u8>,
    /// `[group][lane]`, as the others.
    bias: Packed<i32>,
    scale: Packed<f32>,
    slope: Packed<f32>,
    finish: Finish,
    of: PhantomData<S>,
}

impl<S: Simd> March<S> {
    /// For a layer that [`fits`].
    fn new(spec: &DepthwiseSpec) -> Self {
        let groups = groups(spec.channels);
        let lanes = || groups.iter().flat_map(|&first| ORDER.map(|lane| first + lane));
        let finish = Finish::new(spec.post.clone());
        let mut weights = Vec::new();
        for &first in &groups {
            let weight = |tap: Option<(usize, usize)>, channel: usize| {
                tap.map_or(0, |(row, column)| i16::from(spec.weights[(row * 3 + column) * spec.padded() + channel]))
            };
            let upper = |column| (Some((0, column)), Some((1, column)));
            let third = |column| Some((2, column));
            let pairs = [
                upper(0),
                upper(1),
                upper(2),
                (third(0), third(1)),
                (third(2), None),
                (None, third(0)),
                (third(1), third(2)),
            ];
            for (a, b) in pairs {
                let lane = |channel| [weight(a, channel), weight(b, channel)];
                weights.extend(ORDER.into_iter().flat_map(|i| lane(first + i)).flat_map(i16::to_le_bytes));
            }
        }
        let Post { bias, scale, .. } = &spec.post;
        Self {
            grid: spec.grid,
            tap_row: spec.tap_row,
            tap_column: spec.tap_column,
            weights: Packed::new(&weights),
            bias: Packed::new(&lanes().map(|channel| bias[channel]).collect::<Vec<_>>()),
            scale: Packed::new(&lanes().map(|channel| scale[channel]).collect::<Vec<_>>()),
            slope: Packed::new(&lanes().map(|channel| finish.slopes[channel]).collect::<Vec<_>>()),
            groups,
            finish,
            of: PhantomData,
        }
    }

    /// # Safety
    /// As for [`Layer::run`].
    unsafe fn enter<const STRIDE: usize>(&self, memory: Memory, area: Area) {
        // SAFETY: by this function's contract.
        unsafe {
            match self.finish.way {
                Way::Slope => S::enter(Strips::<S, STRIDE, SLOPE> { layer: self, memory, area }),
                _ => S::enter(Strips::<S, STRIDE, PLAIN> { layer: self, memory, area }),
            }
        }
    }
}

impl<S: Simd> Layer for March<S> {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        // SAFETY: by this function's contract.
        unsafe {
            match self.grid.input.pixel == self.tap_column {
                true => self.enter::<1>(memory, area),
                false => self.enter::<2>(memory, area),
            }
        }
    }
}

struct Strips<'a, S, const STRIDE: usize, const WAY: u8> {
    layer: &'a March<S>,
    memory: Memory,
    area: Area,
}

impl<S: Simd, const STRIDE: usize, const WAY: u8> Work for Strips<'_, S, STRIDE, WAY> {
    #[inline(always)]
    unsafe fn run(self) {
        let Self { layer, memory, area } = self;
        let grid = &layer.grid;
        let mut sums = Sums([[0; GROUP]; CHUNK]);
        for columns in strips(area.columns, grid.input.pixel) {
            for y in area.rows.clone() {
                let input = memory.bytes.wrapping_add(grid.input.at(y, columns.start)).cast_const();
                let output = memory.bytes.wrapping_add(grid.output.at(y, columns.start));
                for (group, &first) in layer.groups.iter().enumerate() {
                    // SAFETY: there are constants of the group; the columns are the area's, and there is one at least.
                    unsafe {
                        let row = Row::<STRIDE, WAY> {
                            row: layer.tap_row,
                            step: layer.tap_column,
                            input: input.wrapping_add(first),
                            output: output.wrapping_add(first),
                            output_step: grid.output.pixel,
                            weights: layer.weights.at(group * PAIRS * VECTORS),
                            bias: layer.bias.at(group * GROUP),
                            scale: layer.scale.at(group * GROUP),
                            slope: layer.slope.at(group * GROUP),
                            bounds: &layer.finish.bounds,
                        };
                        row.run(columns.len(), &mut sums);
                    }
                }
            }
        }
    }
}

/// Columns in pieces of which a row's input of `pixel` bytes each stays near, or a little more where a small rest would be left.
pub(super) fn strips(columns: Range<usize>, pixel: usize) -> impl Iterator<Item = Range<usize>> {
    let width = (STRIP / pixel).next_multiple_of(2).max(8);
    let mut start = columns.start;
    std::iter::from_fn(move || {
        let left = columns.end - start;
        let length = if left < width + width / 2 { left } else { width };
        let strip = start..start + length;
        start += length;
        (length > 0).then_some(strip)
    })
}

/// Sixteen channels of pixels side by side.
#[derive(Clone, Copy)]
struct Row<'a, const STRIDE: usize, const WAY: u8> {
    /// Bytes from one kernel row to the next.
    row: usize,
    /// Bytes from one kernel column to the next.
    step: usize,
    input: *const u8,
    output: *mut u8,
    output_step: usize,
    weights: *const u8,
    bias: *const i32,
    scale: *const f32,
    slope: *const f32,
    bounds: &'a Bounds,
}

/// Of eight channels.
#[derive(Clone, Copy)]
struct Constants {
    bias: __m256i,
    scale: __m256,
    slope: __m256,
}

/// Pairs of bytes of sixteen channels, as 16-bit integers.
type Pairs = [__m256i; 2];

/// Sums of pixels, sixteen each, before they are finished: what multiplies and what rounds do not wait for one another then.
/// Aligned so that the stack of who holds them is: what the compiler keeps there it reads twice as fast then.
#[repr(C, align(64))]
struct Sums([[i32; GROUP]; CHUNK]);

impl<const STRIDE: usize, const WAY: u8> Row<'_, STRIDE, WAY> {
    /// # Safety
    /// The processor has AVX2; the pixels are the task's, and there is one at least.
    #[inline(always)]
    unsafe fn run(&self, pixels: usize, sums: &mut Sums) {
        for x in (0..pixels).step_by(CHUNK) {
            let (row, count) = (self.at(x), CHUNK.min(pixels - x));
            // SAFETY: all of it lies within the pixels.
            unsafe {
                if STRIDE == 1 {
                    row.adjacent(count, sums)
                } else {
                    row.spread(count, sums)
                }
                match self.bounds.natural {
                    true => row.finish::<true>(count, sums),
                    false => row.finish::<false>(count, sums),
                }
            }
        }
    }

    #[inline(always)]
    fn at(&self, x: usize) -> Self {
        Self {
            input: self.input.wrapping_add(x * STRIDE * self.step),
            output: self.output.wrapping_add(x * self.output_step),
            ..*self
        }
    }

    /// The bytes at two places.
    #[inline(always)]
    unsafe fn pairs(&self, a: usize, b: usize) -> Pairs {
        // SAFETY: sixteen bytes at each place belong to the task.
        unsafe {
            let a = _mm256_cvtepu8_epi16(_mm_loadu_si128(self.input.wrapping_add(a).cast()));
            let b = _mm256_cvtepu8_epi16(_mm_loadu_si128(self.input.wrapping_add(b).cast()));
            [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)]
        }
    }

    /// Pairs of the upper rows.
    #[inline(always)]
    unsafe fn upper(&self, column: usize) -> Pairs {
        // SAFETY: by the callers' contracts the column belongs to the task.
        unsafe { self.pairs(column * self.step, self.row + column * self.step) }
    }

    /// Pairs of the third row.
    #[inline(always)]
    unsafe fn third(&self, column: usize, next: usize) -> Pairs {
        // SAFETY: as for `upper`.
        unsafe { self.pairs(2 * self.row + column * self.step, 2 * self.row + next * self.step) }
    }

    /// A pixel's sums; `ODD` where the third row's pairs begin one column before it.
    #[inline(always)]
    unsafe fn add<const ODD: bool>(&self, upper: [Pairs; 3], third: [Pairs; 2], to: &mut [i32; GROUP]) {
        for half in 0..2 {
            // SAFETY: constants of the group, sixteen sums.
            unsafe {
                let weights = self.weights.add(half * 32);
                let sums = _mm256_add_epi32(
                    products_at::<0>(upper[0][half], weights),
                    products_at::<VECTORS>(upper[1][half], weights),
                );
                let sums = _mm256_add_epi32(sums, products_at::<{ 2 * VECTORS }>(upper[2][half], weights));
                let (first, second) = match ODD {
                    false => (
                        products_at::<{ 3 * VECTORS }>(third[0][half], weights),
                        products_at::<{ 4 * VECTORS }>(third[1][half], weights),
                    ),
                    true => (
                        products_at::<{ 5 * VECTORS }>(third[0][half], weights),
                        products_at::<{ 6 * VECTORS }>(third[1][half], weights),
                    ),
                };
                let sums = _mm256_add_epi32(_mm256_add_epi32(sums, first), second);
                _mm256_storeu_si256(to.as_mut_ptr().add(half * 8).cast(), sums);
            }
        }
    }

    /// Sums of pixels in steps of one.
    ///
    /// # Safety
    /// As for [`Row::run`].
    #[inline(always)]
    unsafe fn adjacent(&self, count: usize, sums: &mut Sums) {
        let (twos, rest) = sums.0[..count].as_chunks_mut::<2>();
        // SAFETY: columns 0 to 3 belong to two pixels, 0 to 2 to one.
        unsafe {
            let mut row = *self;
            if !twos.is_empty() {
                let (mut v0, mut v1, mut h0) = (row.upper(0), row.upper(1), row.third(0, 1));
                for [even, odd] in twos {
                    let (v2, v3, h2) = (row.upper(2), row.upper(3), row.third(2, 3));
                    row.add::<false>([v0, v1, v2], [h0, h2], even);
                    row.add::<true>([v1, v2, v3], [h0, h2], odd);
                    (v0, v1, h0) = (v2, v3, h2);
                    row = row.at(2);
                }
            }
            if let [last] = rest {
                let upper = [row.upper(0), row.upper(1), row.upper(2)];
                row.add::<false>(upper, [row.third(0, 1), row.third(2, 2)], last);
            }
        }
    }

    /// Sums of pixels in steps of two.
    ///
    /// # Safety
    /// As for [`Row::run`].
    #[inline(always)]
    unsafe fn spread(&self, count: usize, sums: &mut Sums) {
        // SAFETY: columns 0 to 2 belong to a pixel, and column 3 where another follows; behind the last one column 2 stands in, which
        // meets a weight of zero.
        unsafe {
            let (mut v0, mut h0) = (self.upper(0), self.third(0, 1));
            let mut row = *self;
            for (x, sums) in sums.0[..count].iter_mut().enumerate() {
                let next = if x + 1 == count { 2 } else { 3 };
                let (v1, v2, h2) = (row.upper(1), row.upper(2), row.third(2, next));
                row.add::<false>([v0, v1, v2], [h0, h2], sums);
                (v0, h0) = (v2, h2);
                row = row.at(1);
            }
        }
    }

    /// Scales, rounds, and writes.
    ///
    /// # Safety
    /// As for [`Row::run`].
    #[inline(always)]
    unsafe fn finish<const NATURAL: bool>(&self, count: usize, sums: &Sums) {
        let mut row = *self;
        // SAFETY: constants of the group.
        let constants = unsafe { self.constants() };
        let (twos, rest) = sums.0[..count].as_chunks::<2>();
        // SAFETY: sixteen bytes belong to each of the pixels.
        unsafe {
            for [first, second] in twos {
                let to = [row.output, row.output.wrapping_add(row.output_step)];
                let words = [self.words::<NATURAL>(first, &constants), self.words::<NATURAL>(second, &constants)];
                lanes256::put_two::<NATURAL>(words[0], words[1], self.bounds, to);
                row = row.at(2);
            }
            if let [last] = rest {
                let words = self.words::<NATURAL>(last, &constants);
                lanes256::put_two::<NATURAL>(words, words, self.bounds, [row.output; 2]);
            }
        }
    }

    /// What each half of the channels is finished with.
    #[inline(always)]
    unsafe fn constants(&self) -> [Constants; 2] {
        // SAFETY: constants of the group.
        let half = |half: usize| unsafe {
            Constants {
                bias: _mm256_load_si256(self.bias.add(half * 8).cast()),
                scale: _mm256_load_ps(self.scale.add(half * 8)),
                slope: _mm256_load_ps(self.slope.add(half * 8)),
            }
        };
        [half(0), half(1)]
    }

    /// A pixel's outcomes as words, zero-point added.
    #[inline(always)]
    unsafe fn words<const NATURAL: bool>(&self, sums: &[i32; GROUP], constants: &[Constants; 2]) -> __m256i {
        // SAFETY: constants of the group.
        unsafe {
            let part = |half: usize| {
                let sums = _mm256_loadu_si256(sums.as_ptr().add(half * 8).cast());
                let Constants { bias, scale, slope } = constants[half];
                let sums = _mm256_add_epi32(sums, bias);
                match WAY {
                    SLOPE => lanes256::rounded::<true>(sums, scale, slope),
                    _ => lanes256::rounded::<false>(sums, scale, slope),
                }
            };
            let words = _mm256_packs_epi32(part(0), part(1));
            if NATURAL {
                return words;
            }
            _mm256_adds_epi16(words, _mm256_load_si256(self.bounds.zero.as_ptr().cast()))
        }
    }
}

/// `vpmaddwd` with weights from memory. The compiler would keep in registers what several pixels multiply by, and then has too few for the pairs.
///
/// # Safety
/// The processor has AVX2; 32 aligned bytes can be read `AT` bytes behind `weights`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn products_at<const AT: usize>(pairs: __m256i, weights: *const u8) -> __m256i {
    let products;
    // SAFETY: reads what this function's contract names, and touches nothing else.
    unsafe {
        std::arch::asm!(
            "vpmaddwd {products}, {pairs}, ymmword ptr [{weights} + {at}]",
            products = lateout(ymm_reg) products,
            pairs = in(ymm_reg) pairs,
            weights = in(reg) weights,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    products
}
