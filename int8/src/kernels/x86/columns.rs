//! Depthwise convolution of 3 by 3 taps for dot products of bytes in 512 bits, where any bytes can be brought together there (AVX-512 VBMI): sixteen channels at a time, from pixel to pixel along a row.
//!
//! The three bytes of a channel in a kernel column meet in a lane, beside a zero. Each column is brought together once and serves
//! the three pixels that it lies under.

use std::fmt::Debug;
use std::marker::PhantomData;

use super::super::{Area, BLOCK, DepthwiseSpec, Grid, Layer, Memory, Post, QUAD, Scratch};
use super::Work;
use super::finish::{Bounds, Finish, PLAIN, SLOPE, Way};
use super::march;
use super::memory::Packed;

/// Channels of a group: a lane each.
const GROUP: usize = BLOCK;
/// Kernel rows and columns.
const TAPS: usize = 3;
/// Bytes of a vector.
const VECTOR: usize = GROUP * QUAD;
/// Pixels that are finished together.
pub(super) const PIXELS: usize = 4;

/// Instructions for sixteen lanes.
///
/// # Safety
/// As for [`Simd`](super::Simd).
pub(super) trait Sixteen: Send + Sync + Debug + 'static {
    /// Sixteen lanes.
    type Vector: Copy;

    /// As [`Simd::enter`](super::Simd::enter).
    unsafe fn enter<W: Work>(work: W);

    /// Sixteen bytes of each row, a byte of each in a lane.
    unsafe fn column(rows: [*const u8; TAPS]) -> Self::Vector;
    /// Sixteen lanes from aligned memory.
    unsafe fn lanes(from: *const u8) -> Self::Vector;
    /// Adds each lane's products.
    unsafe fn dot(sums: Self::Vector, column: Self::Vector, weights: Self::Vector) -> Self::Vector;
    /// Scales, rounds and writes sixteen bytes of each of the first `COUNT` pixels, `step` bytes apart; `NATURAL` only where
    /// [`Bounds::natural`] is.
    unsafe fn put<const SLOPE: bool, const NATURAL: bool, const COUNT: usize>(
        sums: [Self::Vector; PIXELS],
        constants: [Self::Vector; 2],
        bounds: &Bounds,
        to: *mut u8,
        step: usize,
    );
}

/// The layer, where it is one of these.
pub(super) fn layer<S: Sixteen>(spec: &DepthwiseSpec) -> Option<Box<dyn Layer>> {
    march::fits(spec).then(|| Box::new(Columns::<S>::new(spec)) as Box<dyn Layer>)
}

/// A packed layer.
#[derive(Debug)]
struct Columns<S> {
    grid: Grid,
    tap_row: usize,
    tap_column: usize,
    /// Each group's first channel: the last begins early enough to be a whole one.
    groups: Box<[usize]>,
    /// `[group][column][lane][4 bytes]`.
    weights: Packed<u8>,
    /// `[group][lane]`, as the others.
    bias: Packed<i32>,
    scale: Packed<f32>,
    slope: Packed<f32>,
    finish: Finish,
    of: PhantomData<S>,
}

impl<S: Sixteen> Columns<S> {
    fn new(spec: &DepthwiseSpec) -> Self {
        let groups = march::groups(spec.channels);
        let lanes = || groups.iter().flat_map(|&first| first..first + GROUP);
        let finish = Finish::new(spec.post.clone());
        let weight = |row: usize, column: usize, channel: usize| match row {
            0..TAPS => spec.weights[(row * TAPS + column) * spec.padded() + channel] as u8,
            _ => 0,
        };
        let mut weights = Vec::new();
        for (&first, column) in groups.iter().flat_map(|first| (0..TAPS).map(move |column| (first, column))) {
            for channel in first..first + GROUP {
                weights.extend((0..QUAD).map(|row| weight(row, column, channel)));
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
            match (self.finish.way, self.finish.bounds.natural) {
                (Way::Slope, true) => S::enter(Strips::<S, STRIDE, SLOPE, true> { layer: self, memory, area }),
                (Way::Slope, false) => S::enter(Strips::<S, STRIDE, SLOPE, false> { layer: self, memory, area }),
                (_, true) => S::enter(Strips::<S, STRIDE, PLAIN, true> { layer: self, memory, area }),
                (_, false) => S::enter(Strips::<S, STRIDE, PLAIN, false> { layer: self, memory, area }),
            }
        }
    }
}

impl<S: Sixteen> Layer for Columns<S> {
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

struct Strips<'a, S, const STRIDE: usize, const WAY: u8, const NATURAL: bool> {
    layer: &'a Columns<S>,
    memory: Memory,
    area: Area,
}

impl<S: Sixteen, const STRIDE: usize, const WAY: u8, const NATURAL: bool> Work for Strips<'_, S, STRIDE, WAY, NATURAL> {
    #[inline(always)]
    unsafe fn run(self) {
        let Self { layer, memory, area } = self;
        let grid = &layer.grid;
        for columns in march::strips(area.columns, grid.input.pixel) {
            for y in area.rows.clone() {
                let input = memory.bytes.wrapping_add(grid.input.at(y, columns.start)).cast_const();
                let output = memory.bytes.wrapping_add(grid.output.at(y, columns.start));
                for (group, &first) in layer.groups.iter().enumerate() {
                    // SAFETY: there are constants of the group; the columns are the area's, and there is one at least.
                    unsafe {
                        let row = Row::<S> {
                            row: layer.tap_row,
                            step: layer.tap_column,
                            input: input.wrapping_add(first),
                            output: output.wrapping_add(first),
                            output_step: grid.output.pixel,
                            weights: [0, 1, 2].map(|column| layer.weights.at((group * TAPS + column) * VECTOR)),
                            bias: layer.bias.at(group * GROUP).cast(),
                            finish: [layer.scale.at(group * GROUP), layer.slope.at(group * GROUP)],
                            bounds: &layer.finish.bounds,
                            of: PhantomData,
                        };
                        row.run::<STRIDE, WAY, NATURAL>(columns.len());
                    }
                }
            }
        }
    }
}

/// Sixteen channels of pixels side by side.
struct Row<'a, S> {
    /// Bytes from one kernel row to the next.
    row: usize,
    /// Bytes from one kernel column to the next.
    step: usize,
    input: *const u8,
    output: *mut u8,
    output_step: usize,
    weights: [*const u8; TAPS],
    bias: *const u8,
    /// Scales and slopes.
    finish: [*const f32; 2],
    bounds: &'a Bounds,
    of: PhantomData<S>,
}

/// What all pixels of a group are multiplied by and finished with.
struct Constants<S: Sixteen> {
    weights: [S::Vector; TAPS],
    bias: S::Vector,
    /// Scales and slopes.
    finish: [S::Vector; 2],
}

/// A pixel's input and output, and what the one before has brought together: its second and third column, or with steps of two the third alone.
struct Place<S: Sixteen> {
    input: *const u8,
    output: *mut u8,
    before: [S::Vector; 2],
}

impl<S: Sixteen> Row<'_, S> {
    /// # Safety
    /// The processor has the instructions of `S`; the pixels are the task's, and there is one at least.
    #[inline(always)]
    unsafe fn run<const STRIDE: usize, const WAY: u8, const NATURAL: bool>(&self, pixels: usize) {
        // SAFETY: constants of the group; a pixel's columns belong to the task, as do its outputs.
        unsafe {
            let constants = Constants {
                weights: self.weights.map(|weights| S::lanes(weights)),
                bias: S::lanes(self.bias),
                finish: self.finish.map(|values| S::lanes(values.cast())),
            };
            let first = self.column(self.input, 0);
            let mut place = Place {
                input: self.input,
                output: self.output,
                before: [first, if STRIDE == 1 { self.column(self.input, 1) } else { first }],
            };
            for _ in 0..pixels / PIXELS {
                place = self.some::<STRIDE, WAY, NATURAL, PIXELS>(place, &constants);
            }
            match pixels % PIXELS {
                1 => _ = self.some::<STRIDE, WAY, NATURAL, 1>(place, &constants),
                2 => _ = self.some::<STRIDE, WAY, NATURAL, 2>(place, &constants),
                3 => _ = self.some::<STRIDE, WAY, NATURAL, 3>(place, &constants),
                _ => {}
            }
        }
    }

    /// Some pixels, and where the next ones are.
    ///
    /// # Safety
    /// They are the task's.
    #[inline(always)]
    unsafe fn some<const STRIDE: usize, const WAY: u8, const NATURAL: bool, const COUNT: usize>(
        &self,
        place: Place<S>,
        constants: &Constants<S>,
    ) -> Place<S> {
        let Place { input, output, before: [first, second] } = place;
        let mut sums = [constants.bias; PIXELS];
        let mut columns = [[first, second, second]; PIXELS];
        // SAFETY: a pixel's columns belong to the task, as do its outputs.
        unsafe {
            for pixel in 0..COUNT {
                let from = input.wrapping_add(pixel * STRIDE * self.step);
                if pixel > 0 {
                    columns[pixel][0] = columns[pixel - 1][STRIDE];
                    columns[pixel][1] = columns[pixel - 1][2];
                }
                if STRIDE == 2 {
                    columns[pixel][1] = self.column(from, 1);
                }
                columns[pixel][2] = self.column(from, 2);
            }
            // Pixel after pixel for each column: of what waits for something else the processor keeps only so much in view.
            for (column, &weights) in constants.weights.iter().enumerate() {
                for (sums, columns) in sums.iter_mut().zip(&columns).take(COUNT) {
                    *sums = S::dot(*sums, columns[column], weights);
                }
            }
            match WAY {
                SLOPE => S::put::<true, NATURAL, COUNT>(sums, constants.finish, self.bounds, output, self.output_step),
                _ => S::put::<false, NATURAL, COUNT>(sums, constants.finish, self.bounds, output, self.output_step),
            }
        }
        Place {
            input: input.wrapping_add(COUNT * STRIDE * self.step),
            output: output.wrapping_add(COUNT * self.output_step),
            before: [columns[COUNT - 1][STRIDE], columns[COUNT - 1][2]],
        }
    }

    /// # Safety
    /// The column belongs to the task.
    #[inline(always)]
    unsafe fn column(&self, pixel: *const u8, column: usize) -> S::Vector {
        let at = |row: usize| pixel.wrapping_add(row * self.row + column * self.step);
        // SAFETY: sixteen bytes of each row belong to the task.
        unsafe { S::column([at(0), at(1), at(2)]) }
    }
}
