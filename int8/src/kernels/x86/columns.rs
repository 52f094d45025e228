//! Depthwise convolution of 3 by 3 taps for dot products of bytes in 512 bits, where any bytes can be brought together there (AVX-512 VBMI): sixteen channels at a time, from pixel to pixel along a row.
//!
//! The three bytes of a channel in a kernel column meet in a lane, beside a zero. Each column is brought together once and serves
//! the three pixels that it lies under. With steps of one, the fourth byte is that of the row below, and a column serves the pixels of
//! two output rows, by weights of its upper and its lower three bytes.

use std::fmt::Debug;
use std::marker::PhantomData;

use super::super::{Area, BLOCK, DepthwiseSpec, Grid, Layer, Memory, Post, QUAD, Scratch};
use super::Work;
use super::finish::{Bounds, Finish, PLAIN, SLOPE, Way};
use super::march;
use super::memory::{Packed, apart};

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
    /// The same of one row more.
    unsafe fn tall_column(rows: [*const u8; TAPS + 1]) -> Self::Vector;
    /// Sixteen lanes from aligned memory.
    unsafe fn lanes(from: *const u8) -> Self::Vector;
    /// Adds each lane's products.
    unsafe fn dot(sums: Self::Vector, column: Self::Vector, weights: Self::Vector) -> Self::Vector;
    /// Scales and rounds; constants are scales and slopes.
    unsafe fn round<const SLOPE: bool>(
        sums: [Self::Vector; PIXELS],
        constants: [Self::Vector; 2],
    ) -> [Self::Vector; PIXELS];
    /// Writes sixteen bytes of each of the first `COUNT` pixels, `step` bytes apart; `NATURAL` only where [`Bounds::natural`] is.
    unsafe fn put<const NATURAL: bool, const COUNT: usize>(
        rounded: [Self::Vector; PIXELS],
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
    /// `[group][of the upper three bytes, of the lower three][column][lane][4 bytes]`.
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
        for (&first, i) in groups.iter().flat_map(|first| (0..2 * TAPS).map(move |i| (first, i))) {
            let (above, column) = (i / TAPS, i % TAPS);
            for channel in first..first + GROUP {
                weights.extend((0..QUAD).map(|row| weight(row.wrapping_sub(above), column, channel)));
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
            let mut y = area.rows.start;
            while y < area.rows.end {
                let two = STRIDE == 1 && grid.input.row == layer.tap_row && y + 1 < area.rows.end;
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
                            output_row: grid.output.row,
                            output_step: grid.output.pixel,
                            weights: layer.weights.at(group * 2 * TAPS * VECTOR),
                            bias: layer.bias.at(group * GROUP).cast(),
                            finish: [layer.scale.at(group * GROUP), layer.slope.at(group * GROUP)],
                            bounds: &layer.finish.bounds,
                            of: PhantomData,
                        };
                        match two {
                            true => row.run_two::<WAY, NATURAL>(columns.len()),
                            false => row.run::<STRIDE, WAY, NATURAL>(columns.len()),
                        }
                    }
                }
                y += if two { 2 } else { 1 };
            }
        }
    }
}

/// Sixteen channels of pixels side by side, in one row or two.
struct Row<'a, S> {
    /// Bytes from one kernel row to the next.
    row: usize,
    /// Bytes from one kernel column to the next.
    step: usize,
    input: *const u8,
    output: *mut u8,
    output_row: usize,
    output_step: usize,
    /// As packed.
    weights: *const u8,
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

/// A pixel's input, and what the one before has brought together: its second and third column, or with steps of two the third alone.
struct Place<S: Sixteen> {
    input: *const u8,
    before: [S::Vector; 2],
}

impl<S: Sixteen> Row<'_, S> {
    /// With the weights of the upper three bytes of columns (0) or of the lower ones (1).
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    unsafe fn constants(&self, above: usize) -> Constants<S> {
        let at = |column: usize| self.weights.wrapping_add((above * TAPS + column) * VECTOR);
        // SAFETY: there are such constants of the group.
        unsafe {
            Constants {
                weights: [S::lanes(at(0)), S::lanes(at(1)), S::lanes(at(2))],
                bias: S::lanes(self.bias),
                finish: [S::lanes(self.finish[0].cast()), S::lanes(self.finish[1].cast())],
            }
        }
    }

    /// Two rows, with steps of one.
    ///
    /// # Safety
    /// As for [`Row::run`], of both rows.
    #[inline(always)]
    unsafe fn run_two<const WAY: u8, const NATURAL: bool>(&self, pixels: usize) {
        // SAFETY: as there.
        unsafe {
            let (upper, lower) = (self.constants(0), self.constants(1));
            let (step, bounds) = (self.output_step, self.bounds);
            let (mut input, mut output) = (self.input, [self.output, self.output.wrapping_add(self.output_row)]);
            let mut before = [self.tall_column(0), self.tall_column(1)];
            macro_rules! some {
                ($count:expr) => {{
                    let columns = self.tall::<$count>(input, before);
                    let sums = [self.dots::<$count>(&columns, &upper), self.dots::<$count>(&columns, &lower)];
                    let rounded = [self.round::<WAY>(sums[0], &upper), self.round::<WAY>(sums[1], &lower)];
                    S::put::<NATURAL, $count>(rounded[0], bounds, output[0], step);
                    S::put::<NATURAL, $count>(rounded[1], bounds, output[1], step);
                }};
            }
            if pixels >= PIXELS {
                let mut columns = self.tall::<PIXELS>(input, before);
                let mut above = self.dots::<PIXELS>(&columns, &upper);
                // What one row's pixels become stands beside the sums of the other's.
                for _ in 1..pixels / PIXELS {
                    let below = self.dots::<PIXELS>(&columns, &lower);
                    S::put::<NATURAL, PIXELS>(self.round::<WAY>(above, &upper), bounds, output[0], step);
                    input = input.wrapping_add(PIXELS * self.step);
                    columns = self.tall::<PIXELS>(input, [columns[PIXELS - 1][1], columns[PIXELS - 1][2]]);
                    above = self.dots::<PIXELS>(&columns, &upper);
                    S::put::<NATURAL, PIXELS>(self.round::<WAY>(below, &lower), bounds, output[1], step);
                    output = output.map(|row| row.wrapping_add(PIXELS * step));
                }
                let below = self.dots::<PIXELS>(&columns, &lower);
                S::put::<NATURAL, PIXELS>(self.round::<WAY>(above, &upper), bounds, output[0], step);
                S::put::<NATURAL, PIXELS>(self.round::<WAY>(below, &lower), bounds, output[1], step);
                output = output.map(|row| row.wrapping_add(PIXELS * step));
                input = input.wrapping_add(PIXELS * self.step);
                before = [columns[PIXELS - 1][1], columns[PIXELS - 1][2]];
            }
            match pixels % PIXELS {
                1 => some!(1),
                2 => some!(2),
                3 => some!(3),
                _ => {}
            }
        }
    }

    /// The columns of some pixels in two rows; `before` are the first two.
    ///
    /// # Safety
    /// They belong to the task.
    #[inline(always)]
    unsafe fn tall<const COUNT: usize>(&self, input: *const u8, before: [S::Vector; 2]) -> [[S::Vector; TAPS]; PIXELS] {
        let mut columns = [[before[0], before[1], before[1]]; PIXELS];
        let new = input.wrapping_add(2 * self.step);
        let lower = new.wrapping_add(2 * self.row);
        let rows = [apart(new), apart(new.wrapping_add(self.row)), apart(lower), apart(lower.wrapping_add(self.row))];
        for pixel in 0..COUNT {
            if pixel > 0 {
                columns[pixel][0] = columns[pixel - 1][1];
                columns[pixel][1] = columns[pixel - 1][2];
            }
            let at = |row: usize| rows[row].wrapping_add(pixel * self.step);
            // SAFETY: sixteen bytes of each row belong to the task.
            columns[pixel][2] = unsafe { S::tall_column([at(0), at(1), at(2), at(3)]) };
        }
        columns
    }

    /// A column of two rows under the first pixel.
    ///
    /// # Safety
    /// It belongs to the task.
    #[inline(always)]
    unsafe fn tall_column(&self, column: usize) -> S::Vector {
        let at = |row: usize| self.input.wrapping_add(row * self.row + column * self.step);
        // SAFETY: sixteen bytes of each row belong to the task.
        unsafe { S::tall_column([at(0), at(1), at(2), at(3)]) }
    }

    /// The sums of some pixels.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    unsafe fn dots<const COUNT: usize>(
        &self,
        columns: &[[S::Vector; TAPS]; PIXELS],
        constants: &Constants<S>,
    ) -> [S::Vector; PIXELS] {
        let mut sums = [constants.bias; PIXELS];
        // Pixel after pixel for each column: of what waits for something else the processor keeps only so much in view.
        for (column, &weights) in constants.weights.iter().enumerate() {
            for (sums, columns) in sums.iter_mut().zip(columns).take(COUNT) {
                // SAFETY: by this function's contract.
                *sums = unsafe { S::dot(*sums, columns[column], weights) };
            }
        }
        sums
    }

    /// # Safety
    /// The processor has the instructions of `S`; the pixels are the task's, and there is one at least.
    #[inline(always)]
    unsafe fn run<const STRIDE: usize, const WAY: u8, const NATURAL: bool>(&self, pixels: usize) {
        // SAFETY: constants of the group; a pixel's columns belong to the task, as do its outputs.
        unsafe {
            let constants = self.constants(0);
            let first = self.column(0);
            let second = if STRIDE == 1 { self.column(1) } else { first };
            let mut place = Place { input: self.input, before: [first, second] };
            let (mut output, advance) = (self.output, PIXELS * self.output_step);
            if pixels >= PIXELS {
                let mut sums;
                (sums, place) = self.sums::<STRIDE, PIXELS>(place, &constants);
                // What a few pixels become stands beside the sums of the next few: of what waits for something else the processor
                // keeps only so much in view.
                for _ in 1..pixels / PIXELS {
                    let rounded = self.round::<WAY>(sums, &constants);
                    (sums, place) = self.sums::<STRIDE, PIXELS>(place, &constants);
                    S::put::<NATURAL, PIXELS>(rounded, self.bounds, output, self.output_step);
                    output = output.wrapping_add(advance);
                }
                let rounded = self.round::<WAY>(sums, &constants);
                S::put::<NATURAL, PIXELS>(rounded, self.bounds, output, self.output_step);
                output = output.wrapping_add(advance);
            }
            match pixels % PIXELS {
                1 => self.some::<STRIDE, WAY, NATURAL, 1>(place, output, &constants),
                2 => self.some::<STRIDE, WAY, NATURAL, 2>(place, output, &constants),
                3 => self.some::<STRIDE, WAY, NATURAL, 3>(place, output, &constants),
                _ => {}
            }
        }
    }

    /// The last pixels.
    ///
    /// # Safety
    /// They are the task's.
    #[inline(always)]
    unsafe fn some<const STRIDE: usize, const WAY: u8, const NATURAL: bool, const COUNT: usize>(
        &self,
        place: Place<S>,
        output: *mut u8,
        constants: &Constants<S>,
    ) {
        // SAFETY: by this function's contract.
        unsafe {
            let (sums, _) = self.sums::<STRIDE, COUNT>(place, constants);
            S::put::<NATURAL, COUNT>(self.round::<WAY>(sums, constants), self.bounds, output, self.output_step);
        }
    }

    /// The sums of some pixels, and where the next ones are.
    ///
    /// # Safety
    /// They are the task's.
    #[inline(always)]
    unsafe fn sums<const STRIDE: usize, const COUNT: usize>(
        &self,
        place: Place<S>,
        constants: &Constants<S>,
    ) -> ([S::Vector; PIXELS], Place<S>) {
        let Place { input, before: [first, second] } = place;
        let mut columns = [[first, second, second]; PIXELS];
        let new = input.wrapping_add((3 - STRIDE) * self.step);
        let rows = [apart(new), apart(new.wrapping_add(self.row)), apart(new.wrapping_add(2 * self.row))];
        // Not a function: a call of a closure knows nothing of the instructions that are switched on here.
        macro_rules! column {
            ($column:expr) => {{
                let along = $column * self.step;
                S::column([rows[0].wrapping_add(along), rows[1].wrapping_add(along), rows[2].wrapping_add(along)])
            }};
        }
        // SAFETY: a pixel's columns belong to the task.
        unsafe {
            for pixel in 0..COUNT {
                if pixel > 0 {
                    columns[pixel][0] = columns[pixel - 1][STRIDE];
                    columns[pixel][1] = columns[pixel - 1][2];
                }
                if STRIDE == 2 {
                    columns[pixel][1] = column!(2 * pixel);
                }
                columns[pixel][2] = column!(STRIDE * pixel + STRIDE - 1);
            }
        }
        let before = [columns[COUNT - 1][STRIDE], columns[COUNT - 1][2]];
        // SAFETY: by this function's contract.
        let sums = unsafe { self.dots::<COUNT>(&columns, constants) };
        (sums, Place { input: input.wrapping_add(COUNT * STRIDE * self.step), before })
    }

    /// A column under the first pixel.
    ///
    /// # Safety
    /// It belongs to the task.
    #[inline(always)]
    unsafe fn column(&self, column: usize) -> S::Vector {
        let at = |row: usize| self.input.wrapping_add(row * self.row + column * self.step);
        // SAFETY: sixteen bytes of each row belong to the task.
        unsafe { S::column([at(0), at(1), at(2)]) }
    }

    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    unsafe fn round<const WAY: u8>(&self, sums: [S::Vector; PIXELS], constants: &Constants<S>) -> [S::Vector; PIXELS] {
        // SAFETY: by this function's contract.
        unsafe {
            match WAY {
                SLOPE => S::round::<true>(sums, constants.finish),
                _ => S::round::<false>(sums, constants.finish),
            }
        }
    }
}
