//! Depthwise convolution: a channel in each byte, four taps interleaved into a quad, or two as 16-bit integers.
//!
//! Where input and output are whole tensors and the columns follow one another, a row is one long line of values with
//! weights that repeat; any number of channels fills the vectors then. Otherwise a vector holds 32 channels of a pixel, or 16 of two.

use std::marker::PhantomData;

use super::super::{Area, BLOCK, DenseSpec, DepthwiseSpec, Grid, Layer, Memory, Post, QUAD, Scratch};
use super::finish::{self, Finish, GENERAL, PLAIN, SLOPE, Way};
use super::memory::Packed;
use super::pairs::is_safe;
use super::{Bytes, Simd, Work};

/// Bytes of constants that a line's vectors may go through before they crowd out the input.
const PERIOD_BYTES: usize = 24 * 1024;
/// Channels of a block of one pixel.
const PAIR: usize = 2 * BLOCK;
/// Taps of 3 by 3.
const NINE: usize = 9;
/// Bytes of the widest vector.
const MOST_WIDTH: usize = 2 * PAIR;
/// Weights of a pair of bytes that have the same sign add up to no more: 255 * 128 is below 2^15.
const SAFE: i32 = 128;

/// Where a layer reads and by what it multiplies.
#[derive(Debug)]
pub(super) struct Taps {
    /// Bytes from the pixel's first tap.
    offsets: Vec<usize>,
    /// A weight a channel, for each tap.
    weights: Vec<Vec<i8>>,
}

/// Taps that are multiplied together: four, or only the first two.
struct Quad {
    taps: [usize; QUAD],
    /// For each channel.
    weights: Vec<[i8; QUAD]>,
}

/// The packed layer. Where products of quads of bytes saturate, two taps at a time may be the faster way: with them it is 14 instructions for
/// 32 bytes, with quads 18, but for so many taps as the weights allow.
pub(super) fn packed<S: Simd>(taps: Taps, grid: &Grid, channels: usize, post: Post) -> Box<dyn Layer> {
    if S::Wide::SATURATES && taps.steps::<S::Wide>().len() * 18 > taps.steps::<S::WideByTwo>().len() * 14 {
        return Box::new(Depthwise::<S, S::WideByTwo, S::PairByTwo>::new(taps, grid, channels, post));
    }
    Box::new(Depthwise::<S, S::Wide, S::Pair>::new(taps, grid, channels, post))
}

impl Taps {
    pub(super) fn of(spec: &DepthwiseSpec) -> Self {
        let taps = 0..spec.kernel_rows * spec.kernel_columns;
        let offset = |t| (t / spec.kernel_columns) * spec.tap_row + (t % spec.kernel_columns) * spec.tap_column;
        let weights = |t| spec.weights[t * spec.padded()..][..spec.channels].to_vec();
        Self { offsets: taps.clone().map(offset).collect(), weights: taps.map(weights).collect() }
    }

    /// A dense layer from one channel to one is a depthwise one. Only where its rows are lines is that the faster way.
    pub(super) fn of_single_channel(spec: &DenseSpec) -> Option<Self> {
        let (input, output) = (spec.grid.input.pixel, spec.grid.output.pixel);
        if spec.channels != 1 || input != 1 || output != 1 {
            return None;
        }
        let all = (0..spec.runs.len()).flat_map(|run| (0..spec.quads * QUAD).map(move |byte| (run, byte)));
        let mut taps: Vec<_> = all
            .map(|(run, byte)| {
                let tap = spec.runs[run];
                (tap.row * spec.tap_row + tap.offset + byte, spec.weight(0, run, byte / QUAD, byte % QUAD))
            })
            .collect();
        // The quads are filled up with bytes that have no weight; the first byte is always the layer's.
        let first = taps[0];
        taps.retain(|&(_, weight)| weight != 0);
        if taps.is_empty() {
            taps.push(first);
        }
        Some(Self {
            offsets: taps.iter().map(|tap| tap.0).collect(),
            weights: taps.iter().map(|tap| vec![tap.1]).collect(),
        })
    }

    fn quad(&self, taps: [usize; QUAD], weights: impl Fn(usize) -> Option<[i8; QUAD]>) -> Option<Quad> {
        let weights = (0..self.weights[0].len()).map(weights).collect::<Option<_>>()?;
        Some(Quad { taps, weights })
    }

    /// Taps as `B` multiplies them.
    fn steps<B: Bytes>(&self) -> Vec<Quad> {
        if B::SATURATES { self.safe_quads() } else { self.groups(B::TAPS) }
    }

    /// Taps by `size`, each with its weight.
    fn groups(&self, size: usize) -> Vec<Quad> {
        let count = self.offsets.len();
        let taps = |t: usize| std::array::from_fn(|i| (t + i % size).min(count - 1));
        let weight = |t: usize, channel: usize| self.weights.get(t).map_or(0, |weights| weights[channel]);
        let of = |t: usize, i: usize, channel| if i < size { weight(t + i, channel) } else { 0 };
        let quad = |t| self.quad(taps(t), |channel| Some(std::array::from_fn(|i| of(t, i, channel))));
        (0..count).step_by(size).filter_map(quad).collect()
    }

    /// Quads whose pairs do not saturate: as many taps in each as its weights allow. A tap that stands in both pairs has its weight split.
    fn safe_quads(&self) -> Vec<Quad> {
        let mut quads = Vec::new();
        let mut t = 0;
        while t < self.offsets.len() {
            let (quad, taken) = self.safe_quad(t);
            quads.push(quad);
            t += taken;
        }
        quads
    }

    fn safe_quad(&self, t: usize) -> (Quad, usize) {
        let left = self.offsets.len() - t;
        let w = |t: usize, channel: usize| i32::from(self.weights[t][channel]);
        let exact = |weights: [i32; QUAD]| {
            let fits = weights.iter().all(|&weight| i8::try_from(weight).is_ok());
            (fits && is_safe(weights[0], weights[1]) && is_safe(weights[2], weights[3]))
                .then(|| weights.map(|weight| weight as i8))
        };
        let four = || {
            let taps = std::array::from_fn(|i| t + i);
            self.quad(taps, |channel| exact(taps.map(|t| w(t, channel))))
        };
        let three = || {
            self.quad([t, t + 1, t + 2, t], |channel| {
                let (a, b, c) = (w(t, channel), w(t + 1, channel), w(t + 2, channel));
                let part = if (a < 0) == (b < 0) { a.signum() * a.abs().min(SAFE - b.abs()) } else { a };
                exact([part, b, c, a - part])
            })
        };
        let two = |second: usize| {
            self.quad([t, second, t, second], |channel| {
                let (a, b) = (w(t, channel), if second == t { 0 } else { w(second, channel) });
                exact([a / 2, b / 2, a - a / 2, b - b / 2])
            })
        };
        let most = if left >= 4 { four().map(|quad| (quad, 4)) } else { None };
        let most = most.or_else(|| if left >= 3 { three().map(|quad| (quad, 3)) } else { None });
        let halves = || two(t + 1 - usize::from(left == 1)).map(|quad| (quad, left.min(2)));
        most.or_else(halves).expect("halves of two weights are at most 64 each")
    }
}

/// A packed layer.
#[derive(Debug)]
pub(super) struct Depthwise<S, W, P> {
    grid: Grid,
    channels: usize,
    finish: Finish,
    shape: Layout,
    of: PhantomData<(S, W, P)>,
}

#[derive(Debug)]
enum Layout {
    /// Rows are lines of bytes; constants repeat after so many vectors.
    Line(Packing, usize),
    /// Blocks of 32 channels, the last of them of up to 16 in two pixels.
    Pixels { whole: Packing, split: Packing },
}

/// Constants of vectors of `width` bytes.
#[derive(Debug)]
struct Packing {
    width: usize,
    /// Where the four taps of each quad are, in bytes from the pixel's first.
    offsets: Box<[[usize; QUAD]]>,
    /// Whether they are those of nine taps, four by four.
    is_nine: bool,
    /// `[vector][quad][4][width]`.
    weights: Packed<u8>,
    /// `[vector][4][width / 4]`, as the others.
    bias: Packed<i32>,
    scale: Packed<f32>,
    slope: Packed<f32>,
    /// Scales and slopes in the order of the bytes: `[vector][width]`.
    natural: [Packed<f32>; 2],
}

impl Packing {
    /// For so many vectors; `channel` says which channel each of their bytes belongs to.
    fn new<B: Bytes>(taps: &Taps, finish: &Finish, vectors: usize, channel: impl Fn(usize) -> Option<usize>) -> Self {
        let quads = taps.steps::<B>();
        let lanes = B::WIDTH / 4;
        // Sum `lane` of vector `i` belongs to this byte; see `Bytes`.
        let byte = |i: usize, lane: usize| lane / 4 * 16 + i * 4 + lane % 4;
        let order = || {
            let places = (0..4).flat_map(move |i| (0..lanes).map(move |lane| (i, lane)));
            (0..vectors).flat_map(move |v| places.clone().map(move |(i, lane)| v * B::WIDTH + byte(i, lane)))
        };
        let mut weights = Vec::new();
        for vector in 0..vectors {
            for quad in &quads {
                for (i, lane) in (0..4).flat_map(|i| (0..lanes).map(move |lane| (i, lane))) {
                    let channel = channel(vector * B::WIDTH + byte(i, lane));
                    weights.extend(channel.map_or([0; QUAD], |channel| packed_lane::<B>(quad.weights[channel])));
                }
            }
        }
        let bias: Vec<_> = order().map(|byte| channel(byte).map_or(0, |channel| finish.post.bias[channel])).collect();
        let scale: Vec<_> =
            order().map(|byte| channel(byte).map_or(0.0, |channel| finish.post.scale[channel])).collect();
        let slope: Vec<_> = order().map(|byte| channel(byte).map_or(1.0, |channel| finish.slopes[channel])).collect();
        let natural = |values: &[f32]| {
            let bytes = (0..vectors * B::WIDTH).map(|byte| channel(byte).map_or(0.0, |channel| values[channel]));
            Packed::new(&bytes.collect::<Vec<_>>())
        };
        Self {
            width: B::WIDTH,
            natural: [natural(&finish.post.scale), natural(&finish.slopes)],
            offsets: quads.iter().map(|quad| quad.taps.map(|tap| taps.offsets[tap])).collect(),
            is_nine: taps.offsets.len() == NINE && B::TAPS == QUAD && !B::SATURATES,
            weights: Packed::new(&weights),
            bias: Packed::new(&bias),
            scale: Packed::new(&scale),
            slope: Packed::new(&slope),
        }
    }

    /// Constants of one vector.
    ///
    /// # Safety
    /// There is such a vector.
    #[inline(always)]
    unsafe fn constants(&self, vector: usize) -> Constants {
        // SAFETY: by this function's contract.
        unsafe {
            Constants {
                weights: self.weights.at(vector * self.offsets.len() * 4 * self.width),
                bias: self.bias.at(vector * self.width),
                scale: self.scale.at(vector * self.width),
                slope: self.slope.at(vector * self.width),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Constants {
    weights: *const u8,
    bias: *const i32,
    scale: *const f32,
    slope: *const f32,
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The weights of a byte's taps in a lane.
fn packed_lane<B: Bytes>(weights: [i8; QUAD]) -> [u8; QUAD] {
    if B::TAPS == QUAD {
        return weights.map(|weight| weight as u8);
    }
    let [low, high] = [weights[0], weights[1]].map(|weight| i16::from(weight).to_le_bytes());
    [low[0], low[1], high[0], high[1]]
}

impl<S: Simd, W: Bytes, P: Bytes> Depthwise<S, W, P> {
    fn new(taps: Taps, grid: &Grid, channels: usize, post: Post) -> Self {
        let finish = Finish::new(post);
        let period = channels / greatest_common_divisor(channels, W::WIDTH);
        let bytes = period * W::WIDTH * (12 + taps.steps::<W>().len() * 4);
        let in_line = grid.input.pixel == channels && grid.output.pixel == channels;
        let shape = if in_line && bytes <= PERIOD_BYTES {
            Layout::Line(Packing::new::<W>(&taps, &finish, period, |byte| Some(byte % channels)), period)
        } else {
            let rest = channels % PAIR;
            let split = if rest <= BLOCK { rest } else { 0 };
            let whole = channels - split;
            let within = |byte| (byte < whole).then_some(byte);
            let twice = |byte: usize| (byte % BLOCK < split).then_some(whole + byte % BLOCK);
            Layout::Pixels {
                whole: Packing::new::<P>(&taps, &finish, whole.div_ceil(PAIR), within),
                split: Packing::new::<P>(&taps, &finish, usize::from(split > 0), twice),
            }
        };
        Self { grid: *grid, channels, finish, shape, of: PhantomData }
    }

    /// Rows of output pixels.
    ///
    /// # Safety
    /// As for [`Layer::run`]; `input` and `output` are of the first of `pixels` pixels of the first of `rows` rows.
    unsafe fn rows(&self, input: *const u8, output: *mut u8, pixels: usize, rows: usize) {
        let width = self.finish.width();
        match &self.shape {
            Layout::Line(packing, period) => {
                let line = Line {
                    packing,
                    period: *period,
                    rows,
                    input,
                    input_row: self.grid.input.row,
                    output,
                    output_row: self.grid.output.row * width,
                    bytes: pixels * self.channels,
                    finish: &self.finish,
                };
                // SAFETY: by this function's contract.
                unsafe {
                    match self.finish.way {
                        Way::Slope => S::enter(LineOf::<W, SLOPE>(line, PhantomData)),
                        Way::Plain => S::enter(LineOf::<W, PLAIN>(line, PhantomData)),
                        Way::General => S::enter(LineOf::<W, GENERAL>(line, PhantomData)),
                    }
                }
            }
            Layout::Pixels { whole, split } => {
                let all = (0..rows).flat_map(|y| (0..self.channels).step_by(PAIR).map(move |start| (y, start)));
                for (y, start) in all {
                    let input = input.wrapping_add(y * self.grid.input.row);
                    let output = output.wrapping_add(y * self.grid.output.row * width);
                    let rest = self.channels - start;
                    let is_split = rest <= BLOCK;
                    let row = Pixels {
                        packing: if is_split { split } else { whole },
                        vector: if is_split { 0 } else { start / PAIR },
                        start,
                        channels: rest.min(PAIR),
                        input: input.wrapping_add(start),
                        output: output.wrapping_add(start * width),
                        input_step: self.grid.input.pixel,
                        output_step: self.grid.output.pixel * width,
                        pixels,
                        finish: &self.finish,
                    };
                    // SAFETY: by this function's contract.
                    unsafe {
                        match (self.finish.way, is_split) {
                            (Way::Plain, false) => S::enter(PixelsOf::<P, PLAIN, false>(row, PhantomData)),
                            (Way::Slope, false) => S::enter(PixelsOf::<P, SLOPE, false>(row, PhantomData)),
                            (Way::General, false) => S::enter(PixelsOf::<P, GENERAL, false>(row, PhantomData)),
                            (Way::Plain, true) => S::enter(PixelsOf::<P, PLAIN, true>(row, PhantomData)),
                            (Way::Slope, true) => S::enter(PixelsOf::<P, SLOPE, true>(row, PhantomData)),
                            (Way::General, true) => S::enter(PixelsOf::<P, GENERAL, true>(row, PhantomData)),
                        }
                    }
                }
            }
        }
    }
}

impl<S: Simd, W: Bytes, P: Bytes> Layer for Depthwise<S, W, P> {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        if area.columns.is_empty() || area.rows.is_empty() {
            return;
        }
        let (y, x) = (area.rows.start, area.columns.start);
        let input = memory.bytes.wrapping_add(self.grid.input.at(y, x));
        let at = self.grid.output.at(y, x);
        let output = match self.finish.width() {
            1 => memory.bytes.wrapping_add(at),
            _ => memory.floats.wrapping_add(at).cast(),
        };
        // SAFETY: the rows are the area's.
        unsafe { self.rows(input, output, area.columns.len(), area.rows.len()) };
    }
}

/// Sums of one vector, whose taps `load` reads.
///
/// # Safety
/// The constants are those of `offsets`, and `load` can read at each of them.
#[inline(always)]
unsafe fn sums<B: Bytes>(
    offsets: &[[usize; QUAD]],
    constants: Constants,
    load: impl Fn(usize) -> B::Vector,
) -> [B::Sums; 4] {
    // SAFETY: by this function's contract.
    unsafe {
        // Spelled out, as is all that must not become a call: a call knows nothing of the instructions that are switched on here.
        let bias = |i: usize| B::sums(constants.bias.add(i * B::WIDTH / 4));
        let mut sums = [bias(0), bias(1), bias(2), bias(3)];
        let mut weights = constants.weights;
        for offsets in offsets {
            let quads = B::interleave(|tap| load(offsets[tap]));
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = B::dot(*sums, quads[i], weights.add(i * B::WIDTH));
            }
            weights = weights.add(4 * B::WIDTH);
        }
        sums
    }
}

/// Scales and rounds.
///
/// # Safety
/// The constants are those of the sums.
#[inline(always)]
unsafe fn finished<B: Bytes, const WAY: u8>(sums: [B::Sums; 4], constants: Constants, finish: &Finish) -> B::Vector {
    // SAFETY: by this function's contract.
    unsafe {
        match WAY {
            SLOPE => B::finish::<true>(sums, constants.scale, constants.slope, &finish.bounds),
            _ => B::finish::<false>(sums, constants.scale, constants.slope, &finish.bounds),
        }
    }
}

/// Values side by side, in rows.
#[derive(Clone, Copy)]
struct Line<'a> {
    packing: &'a Packing,
    period: usize,
    rows: usize,
    input: *const u8,
    input_row: usize,
    output: *mut u8,
    output_row: usize,
    /// Values of a row.
    bytes: usize,
    finish: &'a Finish,
}

struct LineOf<'a, B, const WAY: u8>(Line<'a>, PhantomData<B>);

impl<B: Bytes, const WAY: u8> Work for LineOf<'_, B, WAY> {
    #[inline(always)]
    unsafe fn run(self) {
        let line = self.0;
        let (mut at, mut vector) = (0, 0);
        while at < line.bytes {
            // SAFETY: `vector` is below the period; bytes behind the line's end are slack, and are not written.
            unsafe {
                if line.packing.is_nine {
                    line.nine::<B, WAY>(at, vector);
                } else {
                    line.any::<B, WAY>(at, vector);
                }
            }
            at += B::WIDTH;
            vector = if vector + 1 == line.period { 0 } else { vector + 1 };
        }
    }
}

impl Line<'_> {
    /// A vector of each row, with any taps.
    ///
    /// # Safety
    /// There is such a vector, and constants of it.
    #[inline(always)]
    unsafe fn any<B: Bytes, const WAY: u8>(&self, at: usize, vector: usize) {
        // SAFETY: by this function's contract.
        unsafe {
            let constants = self.packing.constants(vector);
            for y in 0..self.rows {
                let input = self.input.add(y * self.input_row + at);
                let sums = sums::<B>(&self.packing.offsets, constants, |offset| B::load(input.add(offset)));
                self.put::<B, WAY>(sums, constants, (y, at), vector);
            }
        }
    }

    /// The same with nine taps, whose weights stay where they are for all rows.
    ///
    /// # Safety
    /// Likewise.
    #[inline(always)]
    unsafe fn nine<B: Bytes, const WAY: u8>(&self, at: usize, vector: usize) {
        let Some(offsets) = self.packing.offsets.first_chunk::<{ NINE.div_ceil(QUAD) }>() else { return };
        // SAFETY: by this function's contract: there are three quads, of which the last has one tap.
        unsafe {
            let constants = self.packing.constants(vector);
            let weight = |i: usize| B::load(constants.weights.add(i * B::WIDTH));
            let quad = |q: usize| [weight(4 * q), weight(4 * q + 1), weight(4 * q + 2), weight(4 * q + 3)];
            let weights = [quad(0), quad(1), quad(2)];
            for y in 0..self.rows {
                let input = self.input.add(y * self.input_row + at);
                let bias = |i: usize| B::sums(constants.bias.add(i * B::WIDTH / 4));
                let mut sums = [bias(0), bias(1), bias(2), bias(3)];
                for (q, (offsets, weights)) in offsets.iter().zip(&weights).enumerate() {
                    let tap = |tap: usize| if q * QUAD + tap < NINE { offsets[tap] } else { offsets[0] };
                    let quads = B::interleave(|i| B::load(input.add(tap(i))));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        *sums = B::dot_held(*sums, quads[i], weights[i]);
                    }
                }
                self.put::<B, WAY>(sums, constants, (y, at), vector);
            }
        }
    }

    /// Finishes and writes the sums of a vector of row `y`.
    ///
    /// # Safety
    /// Likewise; the constants are those of the vector.
    #[inline(always)]
    unsafe fn put<B: Bytes, const WAY: u8>(
        &self,
        sums: [B::Sums; 4],
        constants: Constants,
        (y, at): (usize, usize),
        vector: usize,
    ) {
        let left = self.bytes - at;
        // SAFETY: by this function's contract.
        unsafe {
            let output = self.output.add(y * self.output_row + at * self.finish.width());
            if WAY == GENERAL {
                self.put_general::<B>(sums, vector, output, left);
                return;
            }
            let bytes = finished::<B, WAY>(sums, constants, self.finish);
            if left >= B::WIDTH { B::store(bytes, output) } else { B::store_some(bytes, output, left) }
        }
    }

    /// Finishes and writes the first `left` sums of a vector for any finish.
    ///
    /// # Safety
    /// There is such a vector of constants; the outputs are the line's.
    #[inline(always)]
    unsafe fn put_general<B: Bytes>(&self, sums: [B::Sums; 4], vector: usize, output: *mut u8, left: usize) {
        let mut spilled = [0i32; MOST_WIDTH];
        // SAFETY: as many sums and constants as a vector has bytes, a whole number of blocks; outputs as by this function's contract.
        unsafe {
            B::spill(sums, spilled.as_mut_ptr());
            for part in (0..B::WIDTH.min(left)).step_by(BLOCK) {
                let at = vector * B::WIDTH + part;
                let (scale, slope) = (self.packing.natural[0].at(at), self.packing.natural[1].at(at));
                let values = finish::general(&self.finish.post, spilled.as_ptr().add(part), scale, slope);
                let output = output.add(part * self.finish.width());
                finish::put(&self.finish.post, &values, output, (left - part).min(BLOCK));
            }
        }
    }
}

/// Up to 32 channels of pixels.
#[derive(Clone, Copy)]
struct Pixels<'a> {
    packing: &'a Packing,
    vector: usize,
    start: usize,
    channels: usize,
    input: *const u8,
    output: *mut u8,
    input_step: usize,
    output_step: usize,
    pixels: usize,
    finish: &'a Finish,
}

struct PixelsOf<'a, B, const WAY: u8, const SPLIT: bool>(Pixels<'a>, PhantomData<B>);

impl<B: Bytes, const WAY: u8, const SPLIT: bool> Work for PixelsOf<'_, B, WAY, SPLIT> {
    #[inline(always)]
    unsafe fn run(self) {
        let row = self.0;
        let mut x = 0;
        while x < row.pixels {
            // SAFETY: there are constants for the block; the pixels are the row's.
            unsafe {
                let constants = row.packing.constants(row.vector);
                // The last of an odd number of pixels is computed twice.
                let other = if SPLIT { (x + 1).min(row.pixels - 1) } else { x };
                let (input, second) = (row.input.add(x * row.input_step), row.input.add(other * row.input_step));
                let sums = sums::<B>(&row.packing.offsets, constants, |offset| match SPLIT {
                    true => B::load_two(input.add(offset), second.add(offset)),
                    false => B::load(input.add(offset)),
                });
                let (output, second) = (row.output.add(x * row.output_step), row.output.add(other * row.output_step));
                if WAY == GENERAL {
                    row.put_general::<B, SPLIT>(sums, output, second);
                } else {
                    let bytes = finished::<B, WAY>(sums, constants, row.finish);
                    match SPLIT {
                        true => B::store_two(bytes, output, second, row.channels),
                        false if row.channels >= B::WIDTH => B::store(bytes, output),
                        false => B::store_some(bytes, output, row.channels),
                    }
                }
            }
            x += if SPLIT { 2 } else { 1 };
        }
    }
}

impl Pixels<'_> {
    /// Finishes and writes the sums of a vector for any finish.
    ///
    /// # Safety
    /// The outputs are the row's.
    #[inline(always)]
    unsafe fn put_general<B: Bytes, const SPLIT: bool>(&self, sums: [B::Sums; 4], output: *mut u8, second: *mut u8) {
        let mut spilled = [0i32; PAIR];
        // SAFETY: 32 sums; the constants are filled up to whole blocks; outputs as by this function's contract.
        unsafe {
            B::spill(sums, spilled.as_mut_ptr());
            for half in 0..2 {
                let within = if SPLIT { 0 } else { half * BLOCK };
                if within >= self.channels {
                    break;
                }
                let (post, channel) = (&self.finish.post, self.start + within);
                let (scale, slope) = (post.scale[channel..].as_ptr(), self.finish.slopes[channel..].as_ptr());
                let values = finish::general(post, spilled.as_ptr().add(half * BLOCK), scale, slope);
                let to = if SPLIT && half == 1 { second } else { output.add(within * self.finish.width()) };
                finish::put(post, &values, to, (self.channels - within).min(BLOCK));
            }
        }
    }
}
