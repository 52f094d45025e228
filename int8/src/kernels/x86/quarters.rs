//! Dense convolution to two, three or four output channels for dot products of bytes in 512 bits: sixteen bytes of input meet the weights of
//! each channel in a quarter of the lanes, and four pixels' sums are added up together at the end.

use std::marker::PhantomData;

use super::super::{Area, BLOCK, DenseSpec, Grid, Layer, Memory, QUAD, Scratch};
use super::Work;
use super::finish::{self, Bounds, Finish, Values, Way};
use super::memory::Packed;

/// Channels at most: a quarter of the lanes each.
const CHANNELS: usize = 4;
/// Pixels whose sums are added up together.
const PIXELS: usize = 4;
/// Input bytes of a step.
const STEP: usize = 16;
/// Bytes of a step's weights.
const VECTOR: usize = CHANNELS * STEP;

/// Instructions for sixteen lanes.
///
/// # Safety
/// As for [`Simd`](super::Simd).
pub(super) trait Quads: Send + Sync + std::fmt::Debug + 'static {
    /// Sixteen lanes: channel by channel, four quads of each.
    type Vector: Copy;

    /// As [`Simd::enter`](super::Simd::enter).
    unsafe fn enter<W: Work>(work: W);
    /// Sixteen lanes from aligned memory.
    unsafe fn lanes(from: *const u8) -> Self::Vector;
    /// Adds the products of sixteen bytes with the weights of each channel.
    unsafe fn dot(sums: Self::Vector, input: *const u8, weights: Self::Vector) -> Self::Vector;
    /// The four sums of each channel added up: pixel by pixel, four channels of each.
    unsafe fn totals(pixels: [Self::Vector; PIXELS]) -> Self::Vector;
    /// Scales, rounds and makes bytes within the bounds; constants are scales and slopes in the order of the totals.
    unsafe fn bytes<const SLOPE: bool>(
        totals: Self::Vector,
        constants: [*const f32; 2],
        bounds: &Bounds,
    ) -> [u8; BLOCK];
    /// Writes the totals.
    unsafe fn spill(totals: Self::Vector, to: *mut i32);
}

/// The layer, where this way is faster than sums of one channel in a vector, or of sixteen, most of which there are not.
pub(super) fn layer<S: Quads>(spec: &DenseSpec) -> Option<Box<dyn Layer>> {
    let steps = (spec.quads * QUAD).div_ceil(STEP);
    // Adding up takes as long as three steps.
    let pays = spec.runs.len() * steps + 3 <= spec.runs.len() * spec.quads;
    ((2..=CHANNELS).contains(&spec.channels) && pays).then(|| Box::new(Quarters::<S>::new(spec)) as Box<dyn Layer>)
}

/// A packed layer.
#[derive(Debug)]
struct Quarters<S> {
    grid: Grid,
    /// Where each run begins, in bytes from the pixel's first.
    runs: Box<[usize]>,
    /// Steps of each run.
    steps: usize,
    channels: usize,
    /// `[run][step][channel][16 bytes]`.
    weights: Packed<u8>,
    /// `[channel][quad]`: in the first quad's lane.
    bias: Packed<i32>,
    /// `[pixel][channel]`, as slopes.
    scale: Packed<f32>,
    slope: Packed<f32>,
    finish: Finish,
    of: PhantomData<S>,
}

impl<S: Quads> Quarters<S> {
    fn new(spec: &DenseSpec) -> Self {
        let steps = (spec.quads * QUAD).div_ceil(STEP);
        let weight = |channel: usize, run: usize, byte: usize| {
            let there_is = channel < spec.channels && byte < spec.quads * QUAD;
            if there_is { spec.weight(channel, run, byte / QUAD, byte % QUAD) as u8 } else { 0 }
        };
        let mut weights = Vec::new();
        for (run, step) in (0..spec.runs.len()).flat_map(|run| (0..steps).map(move |step| (run, step))) {
            weights.extend((0..VECTOR).map(|i| weight(i / STEP, run, step * STEP + i % STEP)));
        }
        let finish = Finish::new(spec.post.clone());
        // Constants are filled up to sixteen channels, zeros where there is none.
        let bias: Vec<i32> = (0..BLOCK).map(|i| if i % 4 == 0 { spec.post.bias[i / 4] } else { 0 }).collect();
        let of = |values: &[f32]| Packed::new(&(0..BLOCK).map(|i| values[i % CHANNELS]).collect::<Vec<_>>());
        Self {
            grid: spec.grid,
            runs: spec.runs.iter().map(|run| run.row * spec.tap_row + run.offset).collect(),
            steps,
            channels: spec.channels,
            weights: Packed::new(&weights),
            bias: Packed::new(&bias),
            scale: of(&spec.post.scale),
            slope: of(&finish.slopes),
            finish,
            of: PhantomData,
        }
    }
}

impl<S: Quads> Layer for Quarters<S> {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        // SAFETY: by this function's contract.
        unsafe { S::enter(Rows { layer: self, memory, area }) };
    }
}

struct Rows<'a, S> {
    layer: &'a Quarters<S>,
    memory: Memory,
    area: Area,
}

impl<S: Quads> Work for Rows<'_, S> {
    #[inline(always)]
    unsafe fn run(self) {
        let Self { layer, memory, area } = self;
        let (grid, width) = (&layer.grid, layer.finish.width());
        for y in area.rows.clone() {
            let at = grid.output.at(y, area.columns.start);
            let mut tile = Tile {
                layer,
                input: memory.bytes.wrapping_add(grid.input.at(y, area.columns.start)),
                output: match width {
                    1 => memory.bytes.wrapping_add(at),
                    _ => memory.floats.wrapping_add(at).cast(),
                },
                step: grid.output.pixel * width,
                pixels: PIXELS,
            };
            let mut left = area.columns.len();
            while left > 0 {
                tile.pixels = left.min(PIXELS);
                // SAFETY: the pixels are the area's.
                unsafe { tile.run() };
                tile.input = tile.input.wrapping_add(PIXELS * grid.input.pixel);
                tile.output = tile.output.wrapping_add(PIXELS * tile.step);
                left -= tile.pixels;
            }
        }
    }
}

/// Up to four pixels side by side.
struct Tile<'a, S> {
    layer: &'a Quarters<S>,
    input: *const u8,
    output: *mut u8,
    /// Bytes of output from one pixel to the next.
    step: usize,
    pixels: usize,
}

impl<S: Quads> Tile<'_, S> {
    /// # Safety
    /// The processor has the instructions of `S`; the pixels are the task's.
    #[inline(always)]
    unsafe fn run(&self) {
        let layer = self.layer;
        let (first, step) = (self.input, layer.grid.input.pixel);
        // Where there is no further pixel the last one is computed again.
        let place = |pixel: usize| first.wrapping_add(pixel.min(self.pixels - 1) * step);
        let places = match self.pixels {
            PIXELS => [first, first.wrapping_add(step), first.wrapping_add(2 * step), first.wrapping_add(3 * step)],
            _ => [first, place(1), place(2), place(3)],
        };
        // SAFETY: the bytes of every run can be read, and as many behind it as a step takes; outputs are the task's.
        unsafe {
            let mut sums = [S::lanes(layer.bias.at(0).cast()); PIXELS];
            let mut weights = layer.weights.at(0);
            for &run in &layer.runs {
                for step in 0..layer.steps {
                    let (at, vector) = (run + step * STEP, S::lanes(weights));
                    for (sums, place) in sums.iter_mut().zip(places) {
                        *sums = S::dot(*sums, place.wrapping_add(at), vector);
                    }
                    weights = weights.add(VECTOR);
                }
            }
            self.put(S::totals(sums));
        }
    }

    /// Finishes and writes.
    ///
    /// # Safety
    /// As for [`Tile::run`].
    #[inline(always)]
    unsafe fn put(&self, totals: S::Vector) {
        let (layer, finish) = (self.layer, &self.layer.finish);
        // SAFETY: sixteen constants; outputs are the task's.
        unsafe {
            let constants = [layer.scale.at(0), layer.slope.at(0)];
            let values = match finish.way {
                Way::Plain => Values { bytes: S::bytes::<false>(totals, constants, &finish.bounds) },
                Way::Slope => Values { bytes: S::bytes::<true>(totals, constants, &finish.bounds) },
                Way::General => {
                    let mut spilled = [0; BLOCK];
                    S::spill(totals, spilled.as_mut_ptr());
                    finish::general(&finish.post, spilled.as_ptr(), constants[0], constants[1])
                }
            };
            let bytes = finish.width() == 1 && layer.channels == CHANNELS && self.pixels == PIXELS;
            // A number of bytes that the compiler knows is written at once.
            if bytes && self.step == CHANNELS {
                self.output.cast::<[u8; BLOCK]>().write_unaligned(values.bytes);
                return;
            }
            for pixel in 0..self.pixels {
                let output = self.output.add(pixel * self.step);
                finish::put_from(&finish.post, &values, pixel * CHANNELS, output, layer.channels);
            }
        }
    }
}
