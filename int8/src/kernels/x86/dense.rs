//! Dense convolution with output channels in the lanes: tiles of pixels by blocks of channels that stay in registers.

use std::fmt::Debug;
use std::marker::PhantomData;

use super::super::{Area, BLOCK, DenseSpec, Grid, Layer, Memory, QUAD, Scratch, Tap};
use super::finish::{self, Finish, GENERAL, PLAIN, SLOPE, Way};
use super::memory::{Packed, apart};
use super::strips::Strips;
use super::{Diet, Lanes, Simd, Work, pairs};

/// Most pixels of a tile.
const PIXELS: usize = 12;

/// Channels that are computed together where they pair alike.
const DOUBLE: usize = 2 * BLOCK;

/// Steps that are few for the sums of 64 channels.
pub(super) const FEW_STEPS: usize = 16;

/// Most channels of a block.
const MOST_LANES: usize = 4 * BLOCK;

/// How a layer's input bytes meet in safe pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairing {
    /// Each block of 16 channels has pairs of its own.
    Blocks,
    /// Two blocks have pairs together, where there are two.
    Doubles,
}

impl Pairing {
    /// Which way is fastest; `None` where widening is. Pairs that have to be taken apart cost steps of their own, and what is safe for more
    /// channels is rarer.
    pub(super) fn of(spec: &DenseSpec) -> Option<Self> {
        let doubles = spec.channels / DOUBLE * DOUBLE;
        let of_blocks =
            |from: usize, to| (from..to).step_by(BLOCK).map(|first| pairs::count(spec, first, BLOCK)).sum::<usize>();
        let (front, back) = (of_blocks(0, doubles), of_blocks(doubles, spec.channels));
        let together = (0..doubles).step_by(DOUBLE).map(|first| 2 * pairs::count(spec, first, DOUBLE)).sum::<usize>();
        let quads = spec.channels.div_ceil(BLOCK) * spec.runs.len() * spec.quads;
        if doubles > 0 && together * 100 <= front * 108 && (together + back) * 100 <= quads * 118 {
            return Some(Self::Doubles);
        }
        ((front + back) * 100 <= quads * 112).then_some(Self::Blocks)
    }
}

/// A packed layer.
#[derive(Debug)]
pub(super) struct Dense<S, W, H, D = W, Q = W> {
    grid: Grid,
    strips: Strips,
    /// Bytes of input that one run takes, beside what [`Inputs::strays`] takes.
    length: usize,
    /// Blocks of 64 channels, where `Q` is of so many.
    quadruple: Packing,
    /// Blocks of 32 channels, behind them, likewise.
    double: Packing,
    /// Blocks of 16 channels, behind them.
    whole: Packing,
    /// At most one block of up to 8, behind them.
    half: Packing,
    finish: Finish,
    of: PhantomData<(S, W, H, D, Q)>,
}

/// Blocks of one kind of [`Lanes`].
#[derive(Debug)]
struct Packing {
    /// The first channel.
    start: usize,
    channels: usize,
    /// What the steps of each block take.
    inputs: Box<[Inputs]>,
    /// Where each block's weights begin.
    blocks: Box<[usize]>,
    /// `[block][step][lane][4 bytes]`.
    weights: Packed<u8>,
    /// In lane order, as are the others.
    bias: Packed<i32>,
    scale: Packed<f32>,
    slope: Packed<f32>,
}

/// What the steps of a block take, in bytes from a pixel's first.
#[derive(Debug, Default)]
struct Inputs {
    /// Where runs begin, or by [`Diet::Pairs`] bytes that lie side by side.
    starts: Vec<usize>,
    /// By [`Diet::Pairs`] windows, and which of their bytes meet.
    windows: Vec<(usize, u32)>,
    /// Likewise places far from one another, and which bytes of a step each has.
    joints: Vec<[(isize, u32); pairs::TERMS]>,
    /// By [`Diet::Quads`] single bytes from anywhere, behind the runs; the fourth has a weight or none.
    strays: Vec<([usize; QUAD], bool)>,
}

/// The bytes of each run's last quad that have weights, where all runs' last quads in fewer steps are the faster way: a run and a byte of
/// it each, four to a step. A step of single bytes takes about twice as long as one of a quad.
fn strays(spec: &DenseSpec) -> Vec<[Option<(usize, usize)>; QUAD]> {
    let (runs, last) = (spec.runs.len(), spec.quads - 1);
    let is_used =
        |byte: usize| (0..runs).any(|run| (0..spec.channels).any(|channel| spec.weight(channel, run, last, byte) != 0));
    let used = (0..QUAD).rev().find(|&byte| is_used(byte)).map_or(1, |byte| byte + 1);
    let steps = (runs * used).div_ceil(QUAD);
    if runs <= 2 * steps {
        return Vec::new();
    }
    let stray = |i: usize| (i < runs * used).then(|| (i / used, last * QUAD + i % used));
    (0..steps).map(|step| std::array::from_fn(|i| stray(step * QUAD + i))).collect()
}

impl Inputs {
    fn of_pairs(spec: &DenseSpec, steps: &[pairs::Step]) -> Self {
        let mut inputs = Self::default();
        let run = |run: usize| spec.runs[run].row * spec.tap_row + spec.runs[run].offset;
        for step in steps {
            let Some(&first) = step.bytes.iter().flatten().next() else { continue };
            let terms = pairs::terms(step.bytes);
            let term = |i: usize| terms.get(i).map(|&(of, at, bytes)| (run(of) as isize + at, bytes));
            let mask = |bytes: [bool; QUAD]| u32::from_le_bytes(bytes.map(|is_here| if is_here { 0xff } else { 0 }));
            match step.way {
                pairs::Way::Quad => inputs.starts.push(run(first.0) + first.1 / QUAD * QUAD),
                pairs::Way::Window => {
                    let window = pairs::window(first);
                    let bytes = step.bytes.map(|byte| byte.map_or(0x80, |(_, byte)| (byte - window) as u8));
                    inputs.windows.push((run(first.0) + window, u32::from_le_bytes(bytes)));
                }
                // A term that there is not takes nothing from where there is something.
                pairs::Way::Joint => inputs.joints.push(std::array::from_fn(|i| {
                    term(i).map_or((run(first.0) as isize, 0), |(at, bytes)| (at, mask(bytes)))
                })),
            }
        }
        inputs
    }
}

impl Packing {
    fn new<L: Lanes>(spec: &DenseSpec, strips: &Strips, finish: &Finish, start: usize, channels: usize) -> Self {
        let count = channels.div_ceil(L::CHANNELS);
        let order =
            || (0..count * L::CHANNELS).map(|i| start + i / L::CHANNELS * L::CHANNELS + L::ORDER[i % L::CHANNELS]);
        let (mut weights, mut blocks) = (Vec::new(), Vec::new());
        let mut inputs = Vec::new();
        for block in 0..count {
            blocks.push(weights.len());
            let first = start + block * L::CHANNELS;
            let end = (first + L::CHANNELS).min(start + channels);
            let lanes = || (0..L::CHANNELS).map(|lane| first + L::ORDER[lane]);
            if L::DIET == Diet::Pairs {
                let steps = pairs::steps(spec, first, end);
                for (step, channel) in steps.iter().flat_map(|step| lanes().map(move |channel| (step, channel))) {
                    let weight =
                        |(run, byte): (usize, usize)| spec.weight(channel, run, byte / QUAD, byte % QUAD) as u8;
                    weights.extend(step.bytes.map(|byte| byte.map_or(0, weight)));
                }
                inputs.push(Inputs::of_pairs(spec, &steps));
                continue;
            }
            let strays = if L::DIET == Diet::Quads { strays(spec) } else { Vec::new() };
            let quads = spec.quads - usize::from(!strays.is_empty());
            for (run, quad) in (0..spec.runs.len()).flat_map(|run| (0..quads).map(move |quad| (run, quad))) {
                let quad =
                    |channel| -> [i8; QUAD] { std::array::from_fn(|byte| spec.weight(channel, run, quad, byte)) };
                if L::DIET == Diet::Quads {
                    weights.extend(lanes().flat_map(|channel| quad(channel).map(|weight| weight as u8)));
                } else {
                    let halves =
                        |half: usize| lanes().flat_map(move |channel| [quad(channel)[half], quad(channel)[half + 1]]);
                    weights
                        .extend([0, 2].into_iter().flat_map(halves).flat_map(|weight| i16::from(weight).to_le_bytes()));
                }
            }
            for (stray, channel) in strays.iter().flat_map(|stray| lanes().map(move |channel| (stray, channel))) {
                let weight = |(run, byte): (usize, usize)| spec.weight(channel, run, byte / QUAD, byte % QUAD) as u8;
                weights.extend(stray.map(|byte| byte.map_or(0, weight)));
            }
            let start = |run: &Tap| match L::DIET {
                Diet::Wide => strips.widened_run(run.row, run.offset),
                _ => run.row * spec.tap_row + run.offset,
            };
            // What there is not has no weight, wherever it is read.
            let place = |stray: Option<(usize, usize)>| stray.map_or(0, |(run, byte)| start(&spec.runs[run]) + byte);
            inputs.push(Inputs {
                starts: spec.runs.iter().map(start).collect(),
                strays: strays.iter().map(|stray| (stray.map(place), stray[3].is_some())).collect(),
                ..Inputs::default()
            });
        }
        let bias: Vec<_> = order().map(|channel| spec.post.bias[channel]).collect();
        let scale: Vec<_> = order().map(|channel| spec.post.scale[channel]).collect();
        let slope: Vec<_> = order().map(|channel| finish.slopes[channel]).collect();
        Self {
            start,
            channels,
            inputs: inputs.into(),
            blocks: blocks.into(),
            weights: Packed::new(&weights),
            bias: Packed::new(&bias),
            scale: Packed::new(&scale),
            slope: Packed::new(&slope),
        }
    }
}

impl<S: Simd, W: Lanes, H: Lanes, D: Lanes, Q: Lanes> Dense<S, W, H, D, Q> {
    const WIDEN: bool = matches!(W::DIET, Diet::Wide);

    pub(super) fn new(spec: DenseSpec) -> Self {
        let strips = Strips::new(&spec, if Self::WIDEN { 2 } else { 1 });
        let whole_blocks = |of: usize, channels: usize| if of > BLOCK { channels / of * of } else { 0 };
        let quadruples = whole_blocks(Q::CHANNELS, spec.channels);
        let doubles = whole_blocks(D::CHANNELS, spec.channels - quadruples);
        // The last block is a half one where that holds the rest.
        let rest = spec.channels % BLOCK;
        let half = if rest <= 8 { rest } else { 0 };
        let whole = spec.channels - quadruples - doubles - half;
        let finish = Finish::new(spec.post.clone());
        let joined = W::DIET == Diet::Quads && !self::strays(&spec).is_empty();
        Self {
            grid: spec.grid,
            length: (spec.quads - usize::from(joined)) * QUAD * if Self::WIDEN { 2 } else { 1 },
            quadruple: Packing::new::<Q>(&spec, &strips, &finish, 0, quadruples),
            double: Packing::new::<D>(&spec, &strips, &finish, quadruples, doubles),
            whole: Packing::new::<W>(&spec, &strips, &finish, quadruples + doubles, whole),
            half: Packing::new::<H>(&spec, &strips, &finish, spec.channels - half, half),
            strips,
            finish,
            of: PhantomData,
        }
    }

    /// Lines of output pixels, the block of one packing that begins with `channel`.
    ///
    /// # Safety
    /// As for [`Layer::run`]; `lines` begin with a pixel's first channel.
    unsafe fn block<L: Lanes>(&self, packing: &Packing, channel: usize, lines: Lines) {
        let tiles = lines.pixels.div_ceil(L::TILE);
        // Tiles of two sizes that differ by one: a remainder of one pixel would run at half the speed.
        let (size, larger) = (lines.pixels / tiles, lines.pixels % tiles);
        // SAFETY: the channel is one of the packing's; addresses stay within the lines.
        unsafe {
            let block = Block {
                length: self.length,
                inputs: &packing.inputs[channel / L::CHANNELS],
                weights: packing.weights.at(packing.blocks[channel / L::CHANNELS]),
                bias: packing.bias.at(channel),
                scale: packing.scale.at(channel),
                slope: packing.slope.at(channel),
                channel: packing.start + channel,
                channels: (packing.channels - channel).min(L::CHANNELS),
                finish: &self.finish,
                lines: lines.behind(0, (packing.start + channel) * self.finish.width()),
            };
            if larger > 0 {
                block.run::<S, L>(size + 1, larger);
            }
            let rest = Block { lines: block.lines.behind(larger * (size + 1), 0), ..block };
            rest.run::<S, L>(size, tiles - larger);
        }
    }

    /// Lines of output pixels, all channels of one packing.
    ///
    /// # Safety
    /// As for [`Dense::block`].
    unsafe fn blocks<L: Lanes>(&self, packing: &Packing, lines: Lines) {
        for channel in (0..packing.channels).step_by(L::CHANNELS) {
            // SAFETY: by this function's contract.
            unsafe { self.block::<L>(packing, channel, lines) };
        }
    }

    /// Lines of output pixels, all channels.
    ///
    /// # Safety
    /// As for [`Dense::block`].
    unsafe fn all(&self, lines: Lines) {
        // SAFETY: by this function's contract.
        unsafe {
            self.blocks::<Q>(&self.quadruple, lines);
            self.blocks::<D>(&self.double, lines);
            self.blocks::<W>(&self.whole, lines);
            self.blocks::<H>(&self.half, lines);
        }
    }
}

impl<S: Simd, W: Lanes, H: Lanes, D: Lanes, Q: Lanes> Layer for Dense<S, W, H, D, Q> {
    unsafe fn run(&self, memory: Memory, area: Area, scratch: &mut Scratch) {
        debug_assert!(!Self::WIDEN || scratch.len() >= self.scratch());
        let scratch = scratch.as_mut_ptr();
        let (width, grid) = (self.finish.width(), &self.grid);
        for (rows, columns) in self.strips.of(&area) {
            let first = memory.bytes.wrapping_add(grid.input.at(rows.start, columns.start));
            let (source, row_step, pixel_step) = if Self::WIDEN {
                let (row_step, pixel_step) = self.strips.widened_steps();
                // SAFETY: the strip is the area's, and scratch is as large as `scratch` says.
                unsafe {
                    S::enter(Widen { strips: &self.strips, first, to: scratch, size: (rows.len(), columns.len()) })
                };
                (scratch.cast_const(), row_step, pixel_step)
            } else {
                (first.cast_const(), grid.input.row, grid.input.pixel)
            };
            let at = grid.output.at(rows.start, columns.start);
            let lines = Lines {
                count: rows.len(),
                pixels: columns.len(),
                input: source,
                input_row: row_step,
                input_step: pixel_step,
                output: match width {
                    1 => memory.bytes.wrapping_add(at),
                    _ => memory.floats.wrapping_add(at).cast(),
                },
                output_row: grid.output.row * width,
                output_step: grid.output.pixel * width,
            };
            // SAFETY: the lines are the area's, by the caller's contract.
            unsafe { self.all(lines) };
        }
    }

    fn scratch(&self) -> usize {
        if Self::WIDEN { self.strips.scratch() } else { 0 }
    }
}

/// Lines of output pixels side by side.
#[derive(Clone, Copy)]
struct Lines {
    count: usize,
    /// In each line.
    pixels: usize,
    input: *const u8,
    /// Bytes from one line to the next.
    input_row: usize,
    /// Bytes from one pixel to the next.
    input_step: usize,
    output: *mut u8,
    output_row: usize,
    output_step: usize,
}

impl Lines {
    /// Those that begin some pixels and some bytes of output further.
    #[inline(always)]
    fn behind(self, pixels: usize, output: usize) -> Self {
        Self {
            input: self.input.wrapping_add(pixels * self.input_step),
            output: self.output.wrapping_add(pixels * self.output_step + output),
            ..self
        }
    }

    #[inline(always)]
    fn line(self, line: usize) -> Self {
        Self {
            input: self.input.wrapping_add(line * self.input_row),
            output: self.output.wrapping_add(line * self.output_row),
            ..self
        }
    }
}

/// Widens the input of a strip.
struct Widen<'a> {
    strips: &'a Strips,
    first: *const u8,
    to: *mut u8,
    size: (usize, usize),
}

impl Work for Widen<'_> {
    #[inline(always)]
    unsafe fn run(self) {
        // SAFETY: by the contract of `Strips::widen`, which the maker of this work vouches for.
        unsafe {
            self.strips.widen(self.first, self.to, self.size, |from, to, n| super::avx2::widen(from, to, n));
        }
    }
}

/// A block of channels of lines of pixels.
#[derive(Clone, Copy)]
struct Block<'a> {
    length: usize,
    inputs: &'a Inputs,
    weights: *const u8,
    bias: *const i32,
    scale: *const f32,
    slope: *const f32,
    channel: usize,
    channels: usize,
    finish: &'a Finish,
    lines: Lines,
}

impl Block<'_> {
    /// `tiles` tiles of `pixels` pixels in each line.
    ///
    /// # Safety
    /// As for [`Dense::block`].
    unsafe fn run<S: Simd, L: Lanes>(&self, pixels: usize, tiles: usize) {
        macro_rules! tiles {
            ($($pixels:literal)*) => {
                match pixels {
                    $($pixels => {
                        // SAFETY: by this function's contract.
                        unsafe {
                            match self.finish.way {
                                Way::Plain => S::enter(Tiles::<L, $pixels, PLAIN>(*self, tiles, PhantomData)),
                                Way::Slope => S::enter(Tiles::<L, $pixels, SLOPE>(*self, tiles, PhantomData)),
                                Way::General => S::enter(Tiles::<L, $pixels, GENERAL>(*self, tiles, PhantomData)),
                            }
                        }
                    })*
                    _ => unreachable!("tiles have at most {PIXELS} pixels"),
                }
            };
        }
        tiles!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// Tiles side by side, in each line.
struct Tiles<'a, L, const PIXELS: usize, const WAY: u8>(Block<'a>, usize, PhantomData<L>);

impl<L: Lanes, const PIXELS: usize, const WAY: u8> Work for Tiles<'_, L, PIXELS, WAY> {
    #[inline(always)]
    unsafe fn run(self) {
        // Other sizes are never asked for; this keeps them from being compiled.
        if PIXELS > L::TILE {
            return;
        }
        let Self(block, tiles, _) = self;
        for line in 0..block.lines.count {
            let mut tile = block;
            tile.lines = block.lines.line(line);
            for _ in 0..tiles {
                // SAFETY: by the contract of `Block::run`.
                unsafe { tile.tile::<L, PIXELS, WAY>() };
                tile.lines = tile.lines.behind(PIXELS, 0);
            }
        }
    }
}

impl Block<'_> {
    /// The first tile of the first line.
    ///
    /// # Safety
    /// As for [`Dense::block`].
    #[inline(always)]
    unsafe fn tile<L: Lanes, const PIXELS: usize, const WAY: u8>(&self) {
        // SAFETY: there is a bias for each lane.
        let mut sums = [unsafe { L::load(self.bias) }; PIXELS];
        let mut weights = self.weights;
        // Not a function: a call of a closure knows nothing of the instructions that are switched on here.
        macro_rules! step {
            ($at:expr, $first:ident => $input:expr) => {
                // SAFETY: each quad of each run is within the input, by the task's invariant, windows and the surroundings of joined
                // bytes are within its slack, and each step has its weights.
                unsafe {
                    let origin = apart(self.lines.input.wrapping_add($at));
                    for (pixel, sums) in sums.iter_mut().enumerate() {
                        let $first = origin.wrapping_add(pixel * self.lines.input_step);
                        *sums = L::dot(*sums, $input, weights);
                    }
                    weights = weights.add(L::CHANNELS * 4);
                }
            };
        }
        for &begin in &self.inputs.starts {
            if L::DIET != Diet::Pairs {
                for at in (begin..begin + self.length).step_by(QUAD) {
                    step!(at, first => L::quad(first.cast::<i32>().read_unaligned()));
                }
                continue;
            }
            step!(begin, first => L::quad(first.cast::<i32>().read_unaligned()));
        }
        if L::DIET == Diet::Pairs {
            for &(begin, shuffle) in &self.inputs.windows {
                step!(begin, first => L::window(first, shuffle));
            }
            for joint in &self.inputs.joints {
                step!(0, first => {
                    let term = |i: usize| first.wrapping_offset(joint[i].0).cast::<u32>().read_unaligned() & joint[i].1;
                    L::quad((term(0) | term(1) | (term(2) | term(3))) as i32)
                });
            }
        }
        if L::DIET == Diet::Quads {
            for &(stray, has_fourth) in &self.inputs.strays {
                macro_rules! byte {
                    ($first:ident, $i:literal) => {
                        i32::from($first.wrapping_add(stray[$i]).read()) << (8 * $i)
                    };
                }
                if has_fourth {
                    step!(0, first => L::quad(byte!(first, 0) | byte!(first, 1) | (byte!(first, 2) | byte!(first, 3))));
                } else {
                    step!(0, first => L::quad(byte!(first, 0) | byte!(first, 1) | byte!(first, 2)));
                }
            }
        }
        // SAFETY: the pixels' outputs exist and are this task's.
        unsafe {
            match self.finish.bounds.natural {
                true => self.put_all::<L, PIXELS, WAY, true>(&sums),
                false => self.put_all::<L, PIXELS, WAY, false>(&sums),
            }
        }
    }

    /// Finishes and writes a tile.
    ///
    /// # Safety
    /// As for [`Dense::block`]; `NATURAL` only where [`Bounds::natural`](finish::Bounds::natural) is.
    #[inline(always)]
    unsafe fn put_all<L: Lanes, const PIXELS: usize, const WAY: u8, const NATURAL: bool>(
        &self,
        sums: &[L::Sums; PIXELS],
    ) {
        // Written out: in a loop that is not unrolled the sums would have to lie in memory, from the first product on.
        macro_rules! put {
            ($($first:literal $second:literal $third:literal $fourth:literal)*) => {
                $(
                    // SAFETY: the pixels' outputs exist and are this task's.
                    unsafe {
                        let output = self.lines.output.wrapping_add($first * self.lines.output_step);
                        if $fourth < PIXELS && WAY != GENERAL {
                            let four = [sums[$first], sums[$second], sums[$third], sums[$fourth]];
                            self.put_four::<L, WAY, NATURAL>(four, output);
                        } else {
                            put!(one output $first 0 $first);
                            put!(one output $first 1 $second);
                            put!(one output $first 2 $third);
                            put!(one output $first 3 $fourth);
                        }
                    }
                )*
            };
            (one $output:ident $first:literal $behind:literal $pixel:literal) => {
                if $pixel < PIXELS {
                    self.put::<L, WAY, NATURAL>(sums[$pixel], $output.add($behind * self.lines.output_step));
                }
            };
        }
        put!(0 1 2 3  4 5 6 7  8 9 10 11);
    }

    /// Finishes and writes four pixels.
    ///
    /// # Safety
    /// `output` is where the block's outputs of the first go; `WAY` is not [`GENERAL`].
    #[inline(always)]
    unsafe fn put_four<L: Lanes, const WAY: u8, const NATURAL: bool>(&self, sums: [L::Sums; 4], output: *mut u8) {
        let mut rounded = sums;
        // SAFETY: as for [`Block::put`].
        unsafe {
            for (rounded, sums) in rounded.iter_mut().zip(sums) {
                *rounded = match WAY {
                    SLOPE => L::round::<true>(sums, self.scale, self.slope),
                    _ => L::round::<false>(sums, self.scale, self.slope),
                };
            }
            let step = self.lines.output_step;
            L::store_four::<NATURAL>(rounded, &self.finish.bounds, output, step, self.channels);
        }
    }

    /// Finishes and writes one pixel.
    ///
    /// # Safety
    /// `output` is where the block's outputs of the pixel go.
    #[inline(always)]
    unsafe fn put<L: Lanes, const WAY: u8, const NATURAL: bool>(&self, sums: L::Sums, output: *mut u8) {
        // SAFETY: constants exist for each lane of the block, outputs for `channels` of its channels.
        unsafe {
            if WAY == GENERAL {
                self.put_general::<L>(sums, output);
                return;
            }
            let rounded = match WAY {
                SLOPE => L::round::<true>(sums, self.scale, self.slope),
                _ => L::round::<false>(sums, self.scale, self.slope),
            };
            L::store::<NATURAL>(rounded, &self.finish.bounds, output, self.channels);
        }
    }

    /// The same for any finish.
    ///
    /// # Safety
    /// As for [`Block::put`].
    #[inline(always)]
    unsafe fn put_general<L: Lanes>(&self, sums: L::Sums, output: *mut u8) {
        let post = &self.finish.post;
        let mut spilled = [0; MOST_LANES];
        // SAFETY: constants are filled up to whole blocks of 16; the outputs are the pixel's.
        unsafe {
            L::spill(sums, spilled.as_mut_ptr());
            for part in (0..self.channels).step_by(BLOCK) {
                let channel = self.channel + part;
                let (scale, slope) = (post.scale[channel..].as_ptr(), self.finish.slopes[channel..].as_ptr());
                let values = finish::general(post, spilled.as_ptr().add(part), scale, slope);
                let output = output.add(part * self.finish.width());
                finish::put(post, &values, output, (self.channels - part).min(BLOCK));
            }
        }
    }
}
