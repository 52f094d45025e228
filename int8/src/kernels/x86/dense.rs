//! Dense convolution with output channels in the lanes: tiles of pixels by blocks of channels that stay in registers.

use std::fmt::Debug;
use std::marker::PhantomData;

use super::super::{Area, BLOCK, DenseSpec, Grid, Layer, Memory, QUAD, Scratch};
use super::finish::{self, Finish, GENERAL, PLAIN, SLOPE, Way};
use super::memory::Packed;
use super::strips::Strips;
use super::{Lanes, Simd, Work};

/// Most pixels of a tile.
const PIXELS: usize = 12;

/// A packed layer.
#[derive(Debug)]
pub(super) struct Dense<S> {
    grid: Grid,
    strips: Strips,
    /// Where each run begins, in bytes from the pixel's first.
    runs: Box<[usize]>,
    quads: usize,
    /// Blocks of 16 channels.
    whole: Packing,
    /// At most one block of up to 8, behind them.
    half: Packing,
    finish: Finish,
    of: PhantomData<S>,
}

/// Blocks of one kind of [`Lanes`].
#[derive(Debug)]
struct Packing {
    /// The first channel.
    start: usize,
    channels: usize,
    /// Bytes of weights of a block.
    block: usize,
    /// `[block][run][quad][step][lane][4 bytes]`.
    weights: Packed<u8>,
    /// In lane order, as are the others.
    bias: Packed<i32>,
    scale: Packed<f32>,
    slope: Packed<f32>,
}

impl Packing {
    fn new<L: Lanes>(spec: &DenseSpec, finish: &Finish, start: usize, channels: usize) -> Self {
        let blocks = channels.div_ceil(L::CHANNELS);
        let lanes = || (0..blocks * L::CHANNELS).map(|i| i / L::CHANNELS * L::CHANNELS + L::ORDER[i % L::CHANNELS]);
        let order = || lanes().map(|lane| start + lane);
        let mut weights = Vec::new();
        for block in 0..blocks {
            let first = start + block * L::CHANNELS;
            for (run, quad) in (0..spec.runs.len()).flat_map(|run| (0..spec.quads).map(move |quad| (run, quad))) {
                for (step, lane) in (0..L::STEPS).flat_map(|step| (0..L::CHANNELS).map(move |lane| (step, lane))) {
                    let weight = |byte| spec.weight(first + L::ORDER[lane], run, quad, byte);
                    match L::STEPS {
                        1 => weights.extend((0..QUAD).map(|byte| weight(byte) as u8)),
                        _ => weights.extend((0..2).flat_map(|i| i16::from(weight(step * 2 + i)).to_le_bytes())),
                    }
                }
            }
        }
        let bias: Vec<_> = order().map(|channel| spec.post.bias[channel]).collect();
        let scale: Vec<_> = order().map(|channel| spec.post.scale[channel]).collect();
        let slope: Vec<_> = order().map(|channel| finish.slopes[channel]).collect();
        Self {
            start,
            channels,
            block: spec.runs.len() * spec.quads * L::STEPS * L::CHANNELS * 4,
            weights: Packed::new(&weights),
            bias: Packed::new(&bias),
            scale: Packed::new(&scale),
            slope: Packed::new(&slope),
        }
    }
}

impl<S: Simd> Dense<S> {
    pub(super) fn new(spec: DenseSpec) -> Self {
        let strips = Strips::new(&spec, if S::WIDEN { 2 } else { 1 });
        let runs = spec.runs.iter().map(|run| {
            if S::WIDEN { strips.widened_run(run.row, run.offset) } else { run.row * spec.tap_row + run.offset }
        });
        // The last block is a half one where that holds the rest.
        let rest = spec.channels % BLOCK;
        let half = if rest <= 8 { rest } else { 0 };
        let finish = Finish::new(spec.post.clone());
        Self {
            grid: spec.grid,
            runs: runs.collect(),
            quads: spec.quads,
            whole: Packing::new::<S::Whole>(&spec, &finish, 0, spec.channels - half),
            half: Packing::new::<S::Half>(&spec, &finish, spec.channels - half, half),
            strips,
            finish,
            of: PhantomData,
        }
    }

    /// A row of output pixels, all channels of one packing from `channel` on, `BLOCKS` blocks.
    ///
    /// # Safety
    /// As for [`Layer::run`]; `input` and `output` are of the first pixel.
    unsafe fn row<L: Lanes, const BLOCKS: usize>(&self, packing: &Packing, channel: usize, line: Line) {
        let pixels = (L::TILE / BLOCKS).min(PIXELS);
        let tiles = line.pixels.div_ceil(pixels);
        // Tiles of two sizes that differ by one: a remainder of one pixel would run at half the speed.
        let (size, larger) = (line.pixels / tiles, line.pixels % tiles);
        let width = self.finish.width();
        // SAFETY: the channel is one of the packing's; addresses stay within the line.
        unsafe {
            let row = Row {
                quads: self.quads,
                runs: &self.runs,
                weights: packing.weights.at(channel / L::CHANNELS * packing.block),
                block: packing.block,
                bias: packing.bias.at(channel),
                scale: packing.scale.at(channel),
                slope: packing.slope.at(channel),
                channel: packing.start + channel,
                channels: (packing.channels - channel).min(BLOCKS * L::CHANNELS),
                finish: &self.finish,
                input: line.input,
                output: line.output.add((packing.start + channel) * width),
                input_step: line.input_step,
                output_step: line.output_step,
            };
            let done = larger * (size + 1);
            if larger > 0 {
                row.run::<S, L, BLOCKS>(size + 1, larger);
            }
            let rest = Row {
                input: row.input.wrapping_add(done * row.input_step),
                output: row.output.wrapping_add(done * row.output_step),
                ..row
            };
            rest.run::<S, L, BLOCKS>(size, tiles - larger);
        }
    }

    /// A row of output pixels, all channels.
    ///
    /// # Safety
    /// As for [`Dense::row`].
    unsafe fn rows(&self, lines: &[Line]) {
        let mut channel = 0;
        while channel < self.whole.channels {
            let blocks = (self.whole.channels - channel).div_ceil(BLOCK).min(<S::Whole as Lanes>::BLOCKS);
            for &line in lines {
                // SAFETY: by this function's contract.
                unsafe {
                    match blocks {
                        1 => self.row::<S::Whole, 1>(&self.whole, channel, line),
                        2 => self.row::<S::Whole, 2>(&self.whole, channel, line),
                        3 => self.row::<S::Whole, 3>(&self.whole, channel, line),
                        _ => self.row::<S::Whole, 4>(&self.whole, channel, line),
                    }
                }
            }
            channel += blocks * BLOCK;
        }
        if self.half.channels > 0 {
            for &line in lines {
                // SAFETY: by this function's contract.
                unsafe { self.row::<S::Half, 1>(&self.half, 0, line) };
            }
        }
    }
}

impl<S: Simd> Layer for Dense<S> {
    unsafe fn run(&self, memory: Memory, area: Area, scratch: &mut Scratch) {
        debug_assert!(!S::WIDEN || scratch.len() >= self.scratch());
        let scratch = scratch.as_mut_ptr();
        let (width, grid) = (self.finish.width(), &self.grid);
        for (rows, columns) in self.strips.of(&area) {
            let first = memory.bytes.wrapping_add(grid.input.at(rows.start, columns.start));
            let (source, row_step, pixel_step) = if S::WIDEN {
                let (row_step, pixel_step) = self.strips.widened_steps();
                // SAFETY: the strip is the area's, and scratch is as large as `scratch` says.
                unsafe {
                    S::enter(Widen { strips: &self.strips, first, to: scratch, size: (rows.len(), columns.len()) })
                };
                (scratch.cast_const(), row_step, pixel_step)
            } else {
                (first.cast_const(), grid.input.row, grid.input.pixel)
            };
            let line = |y: usize| {
                let at = grid.output.at(y, columns.start);
                Line {
                    pixels: columns.len(),
                    input: source.wrapping_add((y - rows.start) * row_step),
                    input_step: pixel_step,
                    output: match width {
                        1 => memory.bytes.wrapping_add(at),
                        _ => memory.floats.wrapping_add(at).cast(),
                    },
                    output_step: grid.output.pixel * width,
                }
            };
            let mut y = rows.start;
            while y < rows.end {
                // Eight lines at a time, as the list of them has to lie somewhere.
                let count = (rows.end - y).min(8);
                let mut lines = [line(y); 8];
                for (i, slot) in lines.iter_mut().enumerate().take(count) {
                    *slot = line(y + i);
                }
                // SAFETY: the lines are the area's, by the caller's contract.
                unsafe { self.rows(&lines[..count]) };
                y += count;
            }
        }
    }

    fn scratch(&self) -> usize {
        if S::WIDEN { self.strips.scratch() } else { 0 }
    }
}

/// Output pixels side by side.
#[derive(Clone, Copy)]
struct Line {
    pixels: usize,
    input: *const u8,
    input_step: usize,
    output: *mut u8,
    output_step: usize,
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

/// Some blocks of channels of pixels side by side.
#[derive(Clone, Copy)]
struct Row<'a> {
    quads: usize,
    runs: &'a [usize],
    weights: *const u8,
    /// Bytes of weights of a block.
    block: usize,
    bias: *const i32,
    scale: *const f32,
    slope: *const f32,
    channel: usize,
    channels: usize,
    finish: &'a Finish,
    input: *const u8,
    output: *mut u8,
    input_step: usize,
    output_step: usize,
}

impl Row<'_> {
    /// `tiles` tiles of `pixels` pixels.
    ///
    /// # Safety
    /// As for [`Dense::row`].
    unsafe fn run<S: Simd, L: Lanes, const BLOCKS: usize>(&self, pixels: usize, tiles: usize) {
        macro_rules! tiles {
            ($($pixels:literal)*) => {
                match pixels {
                    $($pixels => {
                        // SAFETY: by this function's contract.
                        unsafe {
                            match self.finish.way {
                                Way::Plain => S::enter(Tiles::<L, $pixels, BLOCKS, PLAIN>(*self, tiles, PhantomData)),
                                Way::Slope => S::enter(Tiles::<L, $pixels, BLOCKS, SLOPE>(*self, tiles, PhantomData)),
                                Way::General => S::enter(Tiles::<L, $pixels, BLOCKS, GENERAL>(*self, tiles, PhantomData)),
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

/// Tiles side by side.
struct Tiles<'a, L, const PIXELS: usize, const BLOCKS: usize, const WAY: u8>(Row<'a>, usize, PhantomData<L>);

impl<L: Lanes, const PIXELS: usize, const BLOCKS: usize, const WAY: u8> Work for Tiles<'_, L, PIXELS, BLOCKS, WAY> {
    #[inline(always)]
    unsafe fn run(self) {
        // Other sizes are never asked for; this keeps them from being compiled.
        if PIXELS * BLOCKS > L::TILE || BLOCKS > L::BLOCKS {
            return;
        }
        let Self(mut row, tiles, _) = self;
        for _ in 0..tiles {
            // SAFETY: by the contract of `Row::run`.
            unsafe { row.tile::<L, PIXELS, BLOCKS, WAY>() };
            row.input = row.input.wrapping_add(PIXELS * row.input_step);
            row.output = row.output.wrapping_add(PIXELS * row.output_step);
        }
    }
}

impl Row<'_> {
    /// One tile.
    ///
    /// # Safety
    /// As for [`Dense::row`].
    #[inline(always)]
    unsafe fn tile<L: Lanes, const PIXELS: usize, const BLOCKS: usize, const WAY: u8>(&self) {
        let mut sums: [[L::Sums; BLOCKS]; PIXELS] = [std::array::from_fn(|block| {
            // SAFETY: there is a bias for each lane of each block.
            unsafe { L::load(self.bias.add(block * L::CHANNELS)) }
        }); PIXELS];
        let mut weights = self.weights;
        for &run in self.runs {
            // SAFETY: runs begin within the input.
            let mut input = unsafe { self.input.add(run) };
            for _ in 0..self.quads {
                // SAFETY: each quad of each run is within the input, by the task's invariant, and has its weights.
                unsafe {
                    for step in 0..L::STEPS {
                        for (pixel, sums) in sums.iter_mut().enumerate() {
                            let input = L::input(input.add(pixel * self.input_step + step * 4));
                            for (block, sums) in sums.iter_mut().enumerate() {
                                *sums = L::dot(*sums, input, weights.add(block * self.block));
                            }
                        }
                        weights = weights.add(L::CHANNELS * 4);
                    }
                    input = input.add(L::STEPS * 4);
                }
            }
        }
        for (pixel, sums) in sums.iter().enumerate() {
            for (block, &sums) in sums.iter().enumerate() {
                // SAFETY: the pixel's outputs exist and are this task's.
                unsafe { self.put::<L, WAY>(sums, block, self.output.add(pixel * self.output_step)) };
            }
        }
    }

    /// Finishes and writes a block of one pixel.
    ///
    /// # Safety
    /// `output` is where the first block's outputs of the pixel go.
    #[inline(always)]
    unsafe fn put<L: Lanes, const WAY: u8>(&self, sums: L::Sums, block: usize, output: *mut u8) {
        let first = block * L::CHANNELS;
        let count = self.channels - first;
        // SAFETY: constants exist for each lane of the block, outputs for `count` of its channels.
        unsafe {
            if WAY == GENERAL {
                self.put_general::<L>(sums, first, count.min(L::CHANNELS), output);
                return;
            }
            let (scale, slope) = (self.scale.add(first), self.slope.add(first));
            let rounded = match WAY {
                SLOPE => L::round::<true>(sums, scale, slope),
                _ => L::round::<false>(sums, scale, slope),
            };
            L::store(rounded, &self.finish.bounds, output.add(first), count.min(L::CHANNELS));
        }
    }

    /// The same for any finish.
    ///
    /// # Safety
    /// As for [`Row::put`].
    #[inline(always)]
    unsafe fn put_general<L: Lanes>(&self, sums: L::Sums, first: usize, count: usize, output: *mut u8) {
        let post = &self.finish.post;
        let mut spilled = [0; BLOCK];
        let channel = self.channel + first;
        let (scale, slope) = (post.scale[channel..].as_ptr(), self.finish.slopes[channel..].as_ptr());
        // SAFETY: constants are filled up to whole blocks of 16; the outputs are the pixel's.
        unsafe {
            L::spill(sums, spilled.as_mut_ptr());
            let values = finish::general(post, spilled.as_ptr(), scale, slope);
            finish::put(post, &values, output.add(first * self.finish.width()), count);
        }
    }
}
