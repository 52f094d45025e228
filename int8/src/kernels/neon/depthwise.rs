//! Depthwise layers: tiles of neighbouring pixels by eight or sixteen channels.
//!
//! Three ways, chosen when a layer is packed:
//! - [`Window`]: kernels of 3 by 3 with stride 1, with `sdot`. Four neighbouring input pixels are interleaved, so that a lane
//!   holds four taps of one channel; the window serves two output pixels (weights `a b c 0` and `0 a b c`) in two rows.
//! - [`Square`]: kernels of 3 by 3 or 5 by 5 whose output pixels are one or two taps apart: neighbouring pixels share
//!   their taps; the products of two taps are summed in 16 bits.
//! - [`Taps`]: any other, tap by tap.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::finish::{Finish, Reach};
use super::{Packed, signed};
use crate::kernels::{Area, DepthwiseSpec, Grid, Layer, Memory, SLACK, Scratch};

/// How a layer is computed.
#[derive(Clone, Copy, Debug)]
enum Way {
    Window { joined_rows: bool },
    Square { size: usize, step: usize },
    Taps { pairs: bool },
}

/// A depthwise layer.
#[derive(Debug)]
pub(super) struct Depthwise {
    grid: Grid,
    way: Way,
    rows: usize,
    columns: usize,
    tap_row: usize,
    tap_column: usize,
    channels: usize,
    /// `[tap][padded]`.
    weights: Packed,
    padded: usize,
    /// For [`Way::Window`]: `[eight channels][kernel row][pixel][channel][four taps]`.
    windows: Packed,
    finish: Finish,
}

impl Depthwise {
    pub(super) fn new(spec: DepthwiseSpec, dot: bool) -> Self {
        let padded = spec.padded();
        let taps = spec.kernel_rows * spec.kernel_columns;
        let reach: Vec<Reach> =
            (0..spec.channels).map(|c| Reach::of((0..taps).map(|tap| spec.weights[tap * padded + c]))).collect();
        let way = choose(&spec, dot);
        Self {
            grid: spec.grid,
            way,
            rows: spec.kernel_rows,
            columns: spec.kernel_columns,
            tap_row: spec.tap_row,
            tap_column: spec.tap_column,
            channels: spec.channels,
            windows: Packed::new(&if matches!(way, Way::Window { .. }) { pack_windows(&spec) } else { vec![] }),
            weights: Packed::new(&spec.weights),
            padded,
            finish: Finish::new(spec.post, &reach),
        }
    }

    /// `R` rows from `y`, by tiles of two pixels; the last is moved back into the row, where that is long enough.
    ///
    /// # Safety
    /// As for [`Layer::run`]; the way fits the layer.
    #[inline(always)]
    unsafe fn rows<W: Walk<R>, const R: usize>(&self, memory: Memory, y: usize, columns: &Range<usize>) {
        let width = if W::NARROW { 8 } else { 16 };
        for channel in (0..self.channels).step_by(width) {
            let live = (self.channels - channel).min(width);
            let strip = Strip {
                memory,
                inputs: memory.bytes.wrapping_add(self.grid.input.at(y, 0) + channel),
                outputs: std::array::from_fn(|r| self.grid.output.at(y + r, 0) + channel),
                channel,
                live,
            };
            // SAFETY: as promised to this function.
            unsafe {
                if !W::NARROW && live > 8 {
                    self.strip::<W, R, 2>(&strip, columns.start, columns.end);
                } else {
                    self.strip::<W, R, 1>(&strip, columns.start, columns.end);
                }
            }
        }
    }

    /// # Safety
    /// As for [`Layer::run`].
    #[inline(never)]
    unsafe fn strip<W: Walk<R>, const R: usize, const H: usize>(&self, strip: &Strip<R>, start: usize, end: usize) {
        // SAFETY: as promised to this function.
        unsafe {
            if end - start < 2 {
                for x in start..if W::NARROW { start } else { end } {
                    W::tile::<1, H>(self, strip.tile(&self.grid, x));
                }
                return;
            }
            for x in (start..end).step_by(2) {
                W::tile::<2, H>(self, strip.tile(&self.grid, x.min(end - 2)));
            }
        }
    }

    /// # Safety
    /// The tap exists.
    #[inline(always)]
    unsafe fn weight(&self, tap: usize, channel: usize) -> int8x16_t {
        // SAFETY: the channels are filled up to a multiple of 16.
        unsafe { vld1q_s8(self.weights.as_ptr().add(tap * self.padded + channel)) }
    }

    #[inline(always)]
    unsafe fn start<const P: usize, const H: usize>(&self, channel: usize) -> [[Sums; H]; P] {
        // SAFETY: the channels are filled up to a multiple of 16.
        let of = |h: usize| unsafe { Sums(self.finish.bias(channel + 8 * h), self.finish.bias(channel + 8 * h + 4)) };
        [std::array::from_fn(of); P]
    }

    /// # Safety
    /// The outputs are the running task's.
    #[inline(always)]
    unsafe fn write<const P: usize, const H: usize, const R: usize>(
        &self,
        tile: &Tile<P, R>,
        sums: [[[Sums; H]; P]; R],
    ) {
        for r in 0..R {
            let (memory, outputs) = (tile.memory, tile.outputs[r]);
            // SAFETY: as promised to this function.
            unsafe {
                if H == 2 {
                    let sums = sums[r].map(|s| [s[0].0, s[0].1, s[H - 1].0, s[H - 1].1]);
                    self.finish.write(memory, outputs, tile.channel, tile.live, sums);
                } else {
                    let sums = sums[r].map(|s| [s[0].0, s[0].1]);
                    self.finish.write(memory, outputs, tile.channel, tile.live, sums);
                }
            }
        }
    }
}

/// How a tile of `R` rows is computed, with `H` times eight channels.
trait Walk<const R: usize> {
    /// Whether tiles are eight channels and never a single pixel.
    const NARROW: bool = false;

    /// # Safety
    /// As for [`Layer::run`]; the way fits the layer.
    unsafe fn tile<const P: usize, const H: usize>(layer: &Depthwise, tile: Tile<P, R>);
}

/// Kernels of `K` by `K`, `S` taps from one output pixel to the next; pairs of products fit 16 bits.
struct Square<const K: usize, const S: usize>;

impl<const K: usize, const S: usize> Walk<1> for Square<K, S> {
    #[inline(always)]
    unsafe fn tile<const P: usize, const H: usize>(layer: &Depthwise, tile: Tile<P, 1>) {
        // SAFETY: taps lie in the arena, whole vectors in its slack; weights are filled up.
        unsafe {
            let mut sums = layer.start::<P, H>(tile.channel);
            Self::two_rows::<P, H>(layer, &tile, 0, &mut sums);
            if K == 5 {
                Self::two_rows::<P, H>(layer, &tile, 2, &mut sums);
            }
            let weight = |row: usize, column: usize| layer.weight(row * K + column, tile.channel);
            let x = Self::load::<P>(layer, &tile, K - 1);
            for c in (0..K - 1).step_by(2) {
                let w = [weight(K - 1, c), weight(K - 1, c + 1)];
                for p in 0..P {
                    let x = [x[p * S + c], x[p * S + c + 1]];
                    for h in 0..H {
                        sums[p][h] = sums[p][h].two(h, x, w);
                    }
                }
            }
            let w = weight(K - 1, K - 1);
            for p in 0..P {
                for h in 0..H {
                    sums[p][h] = sums[p][h].one(h, x[p * S + K - 1], w);
                }
            }
            layer.write(&tile, [sums]);
        }
    }
}

impl<const K: usize, const S: usize> Square<K, S> {
    /// The inputs that a kernel row meets.
    ///
    /// # Safety
    /// As for [`Walk::tile`].
    #[inline(always)]
    unsafe fn load<const P: usize>(layer: &Depthwise, tile: &Tile<P, 1>, row: usize) -> [int8x16_t; 8] {
        let start = tile.input.wrapping_add(row * layer.tap_row);
        // SAFETY: taps lie in the arena, whole vectors in its slack.
        std::array::from_fn(|i| unsafe { signed(start.wrapping_add(i.min((P - 1) * S + K - 1) * layer.tap_column)) })
    }

    /// What two kernel rows add.
    ///
    /// # Safety
    /// As for [`Walk::tile`].
    #[inline(always)]
    unsafe fn two_rows<const P: usize, const H: usize>(
        layer: &Depthwise,
        tile: &Tile<P, 1>,
        row: usize,
        sums: &mut [[Sums; H]; P],
    ) {
        // SAFETY: as promised to this function; weights are filled up.
        unsafe {
            let x = [Self::load::<P>(layer, tile, row), Self::load::<P>(layer, tile, row + 1)];
            for c in 0..K {
                let w = [row, row + 1].map(|row| layer.weight(row * K + c, tile.channel));
                for p in 0..P {
                    let x = [x[0][p * S + c], x[1][p * S + c]];
                    for h in 0..H {
                        sums[p][h] = sums[p][h].two(h, x, w);
                    }
                }
            }
        }
    }
}

/// Any kernel, tap by tap; `PAIRS` where the products of two neighbours fit 16 bits.
struct Taps<const PAIRS: bool>;

impl<const PAIRS: bool> Walk<1> for Taps<PAIRS> {
    #[inline(always)]
    unsafe fn tile<const P: usize, const H: usize>(layer: &Depthwise, tile: Tile<P, 1>) {
        // SAFETY: as in `Square`.
        unsafe {
            let mut sums = layer.start::<P, H>(tile.channel);
            for row in 0..layer.rows {
                let load = |p: usize, column: usize| {
                    let tap = row * layer.tap_row + column * layer.tap_column;
                    signed(tile.input.wrapping_add(p * tile.pixel + tap))
                };
                let weight = |column: usize| layer.weight(row * layer.columns + column, tile.channel);
                let mut column = 0;
                while PAIRS && column + 1 < layer.columns {
                    let w = [weight(column), weight(column + 1)];
                    for p in 0..P {
                        let x = [load(p, column), load(p, column + 1)];
                        for h in 0..H {
                            sums[p][h] = sums[p][h].two(h, x, w);
                        }
                    }
                    column += 2;
                }
                while column < layer.columns {
                    let w = weight(column);
                    for p in 0..P {
                        let x = load(p, column);
                        for h in 0..H {
                            sums[p][h] = sums[p][h].one(h, x, w);
                        }
                    }
                    column += 1;
                }
            }
            layer.write(&tile, [sums]);
        }
    }
}

/// Kernels of 3 by 3 with stride 1, with `sdot`; rows are one kernel row apart. Never of a single pixel.
struct Window {
    input: *const u8,
    weights: *const i8,
    tap_row: usize,
    tap_column: usize,
}

impl<const R: usize> Walk<R> for Window {
    const NARROW: bool = true;

    #[inline(always)]
    unsafe fn tile<const P: usize, const H: usize>(layer: &Depthwise, tile: Tile<P, R>) {
        // SAFETY: as in `Square`; the fourth pixel of a window is the last tap of the second output pixel.
        unsafe {
            let mut sums = [layer.start::<P, H>(tile.channel); R];
            let window = Self {
                input: tile.input,
                weights: layer.windows.as_ptr().wrapping_add(tile.channel * 3 * 8),
                tap_row: layer.tap_row,
                tap_column: layer.tap_column,
            };
            // Written out: the compiler leaves a loop, and the sums in memory.
            window.row::<0, P, H, R>(&mut sums);
            window.row::<1, P, H, R>(&mut sums);
            window.row::<2, P, H, R>(&mut sums);
            if R == 2 {
                window.row::<3, P, H, R>(&mut sums);
            }
            layer.write(&tile, sums);
        }
    }
}

impl Window {
    /// What the input row `Y` adds.
    ///
    /// # Safety
    /// As for [`Walk::tile`].
    #[inline(always)]
    unsafe fn row<const Y: usize, const P: usize, const H: usize, const R: usize>(
        &self,
        sums: &mut [[[Sums; H]; P]; R],
    ) {
        // SAFETY: as in `Square`; the fourth pixel of a window is the last tap of the second output pixel.
        unsafe {
            let taps = self.taps(Y);
            for r in 0..R {
                let kernel_row = Y.wrapping_sub(r);
                if kernel_row > 2 {
                    continue;
                }
                let both = [sums[r][0][0], sums[r][P - 1][0]];
                [sums[r][0][0], sums[r][P - 1][0]] =
                    two_windows(both, taps, self.weights.wrapping_add(kernel_row * 64));
            }
        }
    }

    /// Lanes of four taps less 128: four channels in each vector. Written in assembly, as [`two_windows`] is, because
    /// the compiler loads all rows first and then has no registers left for the sums.
    ///
    /// # Safety
    /// As for [`Walk::tile`].
    #[inline(always)]
    unsafe fn taps(&self, row: usize) -> [int8x16_t; 2] {
        let start = self.input.wrapping_add(row * self.tap_row);
        let (low, high);
        // SAFETY: as promised to this function.
        unsafe {
            asm!(
                "ldr {a:d}, [{x0}]",
                "ldr {b:d}, [{x0}, {x1}]",
                "ldr {c:d}, [{x0}, {x2}]",
                "ldr {d:d}, [{x0}, {x3}]",
                "zip1 {a:v}.16b, {a:v}.16b, {b:v}.16b",
                "zip1 {c:v}.16b, {c:v}.16b, {d:v}.16b",
                "zip2 {b:v}.8h, {a:v}.8h, {c:v}.8h",
                "zip1 {a:v}.8h, {a:v}.8h, {c:v}.8h",
                "eor {b:v}.16b, {b:v}.16b, {minus:v}.16b",
                "eor {a:v}.16b, {a:v}.16b, {minus:v}.16b",
                x0 = in(reg) start,
                x1 = in(reg) self.tap_column,
                x2 = in(reg) 2 * self.tap_column,
                x3 = in(reg) 3 * self.tap_column,
                minus = in(vreg) vdupq_n_u8(0x80),
                a = out(vreg) low,
                b = out(vreg) high,
                c = out(vreg) _,
                d = out(vreg) _,
                options(readonly, nostack, preserves_flags),
            );
        }
        [low, high]
    }
}

/// Adds the windows of two pixels, eight channels.
///
/// # Safety
/// The processor has `sdot`; the weights of a kernel row lie at `weights`.
#[inline(always)]
unsafe fn two_windows(mut sums: [Sums; 2], taps: [int8x16_t; 2], weights: *const i8) -> [Sums; 2] {
    // SAFETY: as promised to this function. The directive holds for this statement.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "ldp {a:q}, {b:q}, [{weights}]",
            "ldp {c:q}, {d:q}, [{weights}, #32]",
            "sdot {s0:v}.4s, {a:v}.16b, {low:v}.16b",
            "sdot {s1:v}.4s, {b:v}.16b, {high:v}.16b",
            "sdot {s2:v}.4s, {c:v}.16b, {low:v}.16b",
            "sdot {s3:v}.4s, {d:v}.16b, {high:v}.16b",
            weights = in(reg) weights,
            low = in(vreg) taps[0],
            high = in(vreg) taps[1],
            s0 = inout(vreg) sums[0].0,
            s1 = inout(vreg) sums[0].1,
            s2 = inout(vreg) sums[1].0,
            s3 = inout(vreg) sums[1].1,
            a = out(vreg) _,
            b = out(vreg) _,
            c = out(vreg) _,
            d = out(vreg) _,
            options(readonly, nostack, preserves_flags),
        );
    }
    sums
}

/// Rows of output pixels, up to sixteen channels.
struct Strip<const R: usize> {
    memory: Memory,
    inputs: *const u8,
    outputs: [usize; R],
    channel: usize,
    live: usize,
}

impl<const R: usize> Strip<R> {
    #[inline(always)]
    fn tile<const P: usize>(&self, grid: &Grid, x: usize) -> Tile<P, R> {
        Tile {
            memory: self.memory,
            input: self.inputs.wrapping_add(x * grid.input.pixel),
            pixel: grid.input.pixel,
            outputs: self.outputs.map(|output| std::array::from_fn(|p| output + (x + p) * grid.output.pixel)),
            channel: self.channel,
            live: self.live,
        }
    }
}

/// Where a tile of `P` pixels in `R` rows lies.
struct Tile<const P: usize, const R: usize> {
    memory: Memory,
    input: *const u8,
    /// From one pixel's input to the next's.
    pixel: usize,
    outputs: [[usize; P]; R],
    channel: usize,
    live: usize,
}

impl Layer for Depthwise {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        let Area { rows, columns } = area;
        let mut y = rows.start;
        while y < rows.end {
            let two = rows.end - y >= 2;
            // SAFETY: as promised to this function; the ways were chosen to fit.
            unsafe {
                match self.way {
                    Way::Window { .. } if columns.len() < 2 => self.rows::<Square<3, 1>, 1>(memory, y, &columns),
                    Way::Window { joined_rows: true } if two => {
                        self.rows::<Window, 2>(memory, y, &columns);
                        y += 1;
                    }
                    Way::Window { .. } => self.rows::<Window, 1>(memory, y, &columns),
                    Way::Square { size: 3, step: 1 } => self.rows::<Square<3, 1>, 1>(memory, y, &columns),
                    Way::Square { size: 3, .. } => self.rows::<Square<3, 2>, 1>(memory, y, &columns),
                    Way::Square { step: 1, .. } => self.rows::<Square<5, 1>, 1>(memory, y, &columns),
                    Way::Square { .. } => self.rows::<Square<5, 2>, 1>(memory, y, &columns),
                    Way::Taps { pairs: true } => self.rows::<Taps<true>, 1>(memory, y, &columns),
                    Way::Taps { pairs: false } => self.rows::<Taps<false>, 1>(memory, y, &columns),
                }
            }
            y += 1;
        }
    }
}

fn choose(spec: &DepthwiseSpec, dot: bool) -> Way {
    let (padded, columns) = (spec.padded(), spec.kernel_columns);
    let taps = spec.kernel_rows * columns;
    let low = |tap: usize, c: usize| tap < taps && spec.weights[tap * padded + c] == i8::MIN;
    let pairs = !(0..taps).any(|tap| (0..padded).any(|c| low(tap, c) && (low(tap + 1, c) || low(tap + columns, c))));
    let step = (1..=2).find(|step| spec.grid.input.pixel == step * spec.tap_column);
    match step {
        _ if !pairs => Way::Taps { pairs },
        _ if spec.kernel_rows != columns => Way::Taps { pairs },
        Some(1) if dot && columns == 3 => Way::Window { joined_rows: spec.grid.input.row == spec.tap_row },
        Some(step) if columns == 3 || columns == 5 => Way::Square { size: columns, step },
        _ => Way::Taps { pairs },
    }
}

/// `[eight channels][kernel row][pixel][channel][four taps]`: the taps of the second pixel are one further.
fn pack_windows(spec: &DepthwiseSpec) -> Vec<i8> {
    let padded = spec.padded();
    let mut weights = vec![];
    for block in (0..padded).step_by(8) {
        for row in 0..3 {
            for pixel in 0..2 {
                for channel in block..block + 8 {
                    weights.extend((0..4usize).map(|tap| match tap.wrapping_sub(pixel) {
                        column @ 0..3 => spec.weights[(row * 3 + column) * padded + channel],
                        _ => 0,
                    }));
                }
            }
        }
    }
    weights
}

/// The sums of eight channels.
#[derive(Clone, Copy)]
struct Sums(int32x4_t, int32x4_t);

impl Sums {
    #[inline(always)]
    fn add(self, products: int16x8_t) -> Self {
        // SAFETY: registers only, NEON is part of every 64-bit ARM target.
        unsafe { Self(vaddw_s16(self.0, vget_low_s16(products)), vaddw_high_s16(self.1, products)) }
    }

    /// Adds a tap; `half` tells which eight channels of the vectors.
    #[inline(always)]
    fn one(self, half: usize, x: int8x16_t, w: int8x16_t) -> Self {
        // SAFETY: registers only, NEON is part of every 64-bit ARM target.
        unsafe { self.add(if half == 0 { vmull_s8(vget_low_s8(x), vget_low_s8(w)) } else { vmull_high_s8(x, w) }) }
    }

    /// Adds two taps whose products fit 16 bits together.
    #[inline(always)]
    fn two(self, half: usize, x: [int8x16_t; 2], w: [int8x16_t; 2]) -> Self {
        // SAFETY: registers only, NEON is part of every 64-bit ARM target.
        unsafe {
            self.add(if half == 0 {
                let first = vmull_s8(vget_low_s8(x[0]), vget_low_s8(w[0]));
                vmlal_s8(first, vget_low_s8(x[1]), vget_low_s8(w[1]))
            } else {
                vmlal_high_s8(vmull_high_s8(x[0], w[0]), x[1], w[1])
            })
        }
    }
}

const _: () = assert!(SLACK >= 16 * 2, "whole vectors are read at the last channels");
