//! Depthwise layers: tiles of neighbouring pixels by eight or sixteen channels.
//!
//! Three ways, chosen when a layer is packed:
//! - [`Way::Window`]: kernels of three columns with stride 1, with `sdot`. Four neighbouring input pixels are interleaved, so that a lane holds
//!   four taps of one channel; the window serves two output pixels (weights `a b c 0` and `0 a b c`) and two output rows.
//! - [`Way::Columns`]: kernels of three or five columns, undilated or with the stride a multiple of the dilation: neighbouring pixels share
//!   their taps; the products of two kernel rows are summed in 16 bits.
//! - [`Way::Taps`]: any other, tap by tap.

use std::arch::aarch64::*;
use std::ops::Range;

use super::finish::{Finish, Reach};
use super::{Packed, sdot, signed};
use crate::kernels::{Area, BLOCK, DepthwiseSpec, Grid, Layer, Memory, SLACK, Scratch};

/// How a layer is computed.
#[derive(Clone, Copy, Debug)]
enum Way {
    Window { joined_rows: bool },
    Columns { columns: usize, step: usize },
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
    /// For [`Way::Window`]: `[block][kernel row][pixel][16 channels][four taps]`.
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

    /// Output pixels `x..x + P` of the row `y`, all channels, by tiles of `H` halves of sixteen channels.
    ///
    /// # Safety
    /// As for [`Layer::run`].
    #[inline(always)]
    unsafe fn channels<const P: usize, const R: usize>(
        &self,
        memory: Memory,
        y: usize,
        x: usize,
        tile: impl Fn(Tile<P, R>, bool),
    ) {
        for channel in (0..self.channels).step_by(BLOCK) {
            let live = (self.channels - channel).min(BLOCK);
            let inputs = std::array::from_fn(|r| {
                std::array::from_fn(|p| {
                    memory.bytes.wrapping_add(self.grid.input.at(y + r, x + p) + channel).cast_const()
                })
            });
            let outputs = std::array::from_fn(|r| std::array::from_fn(|p| self.grid.output.at(y + r, x + p) + channel));
            tile(Tile { memory, inputs, outputs, channel, live }, live > 8);
        }
    }

    /// Rows in turn, tiles of `P` pixels; the last is moved back into the row, where that is long enough.
    #[inline(always)]
    fn walk<const P: usize>(columns: Range<usize>, mut wide: impl FnMut(usize), mut single: impl FnMut(usize)) {
        if columns.len() < P {
            columns.for_each(&mut single);
            return;
        }
        for x in columns.clone().step_by(P) {
            wide(x.min(columns.end - P));
        }
    }

    /// # Safety
    /// As for [`Layer::run`].
    #[inline(always)]
    unsafe fn run_columns<const C: usize, const S: usize>(&self, memory: Memory, y: usize, columns: Range<usize>) {
        // SAFETY: as promised to this function.
        unsafe {
            Self::walk::<2>(
                columns,
                |x| {
                    self.channels::<2, 1>(memory, y, x, |tile, both| match both {
                        true => self.columns::<C, S, 2, 2>(tile),
                        false => self.columns::<C, S, 2, 1>(tile),
                    });
                },
                |x| {
                    self.channels::<1, 1>(memory, y, x, |tile, both| match both {
                        true => self.columns::<C, S, 1, 2>(tile),
                        false => self.columns::<C, S, 1, 1>(tile),
                    });
                },
            );
        }
    }

    /// # Safety
    /// As for [`Layer::run`].
    #[inline(always)]
    unsafe fn run_taps<const PAIRS: bool>(&self, memory: Memory, y: usize, columns: Range<usize>) {
        // SAFETY: as promised to this function.
        unsafe {
            Self::walk::<2>(
                columns,
                |x| {
                    self.channels::<2, 1>(memory, y, x, |tile, both| match both {
                        true => self.taps::<PAIRS, 2, 2>(tile),
                        false => self.taps::<PAIRS, 2, 1>(tile),
                    });
                },
                |x| {
                    self.channels::<1, 1>(memory, y, x, |tile, both| match both {
                        true => self.taps::<PAIRS, 1, 2>(tile),
                        false => self.taps::<PAIRS, 1, 1>(tile),
                    });
                },
            );
        }
    }

    /// # Safety
    /// As for [`Layer::run`]; the processor has `sdot`, and there are at least two columns.
    #[inline(always)]
    unsafe fn run_windows<const R: usize>(&self, memory: Memory, y: usize, columns: Range<usize>) {
        // SAFETY: as promised to this function.
        unsafe {
            Self::walk::<2>(
                columns,
                |x| {
                    self.channels::<2, R>(memory, y, x, |tile, both| match both {
                        true => self.window::<R, 2>(tile),
                        false => self.window::<R, 1>(tile),
                    });
                },
                |_| {},
            );
        }
    }

    /// # Safety
    /// The tap exists.
    #[inline(always)]
    unsafe fn weight(&self, row: usize, column: usize, channel: usize) -> int8x16_t {
        // SAFETY: the channels are filled up to a multiple of 16.
        unsafe { vld1q_s8(self.weights.as_ptr().add((row * self.columns + column) * self.padded + channel)) }
    }

    #[inline(always)]
    unsafe fn start<const P: usize, const H: usize>(&self, channel: usize) -> [[Sums; H]; P] {
        // SAFETY: the channels are filled up to a multiple of 16.
        let of = |h: usize| unsafe { Sums(self.finish.bias(channel + 8 * h), self.finish.bias(channel + 8 * h + 4)) };
        [std::array::from_fn(of); P]
    }

    #[inline(always)]
    unsafe fn write<const P: usize, const H: usize>(&self, tile: &Tile<P, 1>, sums: [[Sums; H]; P]) {
        // SAFETY: the outputs are the running task's.
        unsafe {
            if H == 2 {
                let sums = sums.map(|s| [s[0].0, s[0].1, s[H - 1].0, s[H - 1].1]);
                self.finish.write(tile.memory, tile.outputs[0], tile.channel, tile.live, sums);
            } else {
                let sums = sums.map(|s| [s[0].0, s[0].1]);
                self.finish.write(tile.memory, tile.outputs[0], tile.channel, tile.live, sums);
            }
        }
    }

    /// Kernels of `C` columns, `S` columns from one output pixel to the next; pairs of products fit 16 bits.
    #[inline(never)]
    unsafe fn columns<const C: usize, const S: usize, const P: usize, const H: usize>(&self, tile: Tile<P, 1>) {
        // SAFETY: taps lie in the arena, whole vectors in its slack; weights are filled up.
        unsafe {
            let mut sums = self.start::<P, H>(tile.channel);
            let load = |row: usize| -> [int8x16_t; 8] {
                let start = tile.inputs[0][0].wrapping_add(row * self.tap_row);
                std::array::from_fn(|i| {
                    let i = i.min((P - 1) * S + C - 1);
                    signed(start.wrapping_add(i * self.tap_column))
                })
            };
            for row in (0..self.rows & !1).step_by(2) {
                let x = [load(row), load(row + 1)];
                for c in 0..C {
                    let w = [self.weight(row, c, tile.channel), self.weight(row + 1, c, tile.channel)];
                    for p in 0..P {
                        let x = [x[0][p * S + c], x[1][p * S + c]];
                        for h in 0..H {
                            sums[p][h] = sums[p][h].two(h, x, w);
                        }
                    }
                }
            }
            if self.rows % 2 == 1 {
                let row = self.rows - 1;
                let x = load(row);
                for c in (0..C - 1).step_by(2) {
                    let w = [self.weight(row, c, tile.channel), self.weight(row, c + 1, tile.channel)];
                    for p in 0..P {
                        let x = [x[p * S + c], x[p * S + c + 1]];
                        for h in 0..H {
                            sums[p][h] = sums[p][h].two(h, x, w);
                        }
                    }
                }
                let w = self.weight(row, C - 1, tile.channel);
                for p in 0..P {
                    for h in 0..H {
                        sums[p][h] = sums[p][h].one(h, x[p * S + C - 1], w);
                    }
                }
            }
            self.write(&tile, sums);
        }
    }

    /// Any kernel.
    #[inline(never)]
    unsafe fn taps<const PAIRS: bool, const P: usize, const H: usize>(&self, tile: Tile<P, 1>) {
        // SAFETY: as in `columns`.
        unsafe {
            let mut sums = self.start::<P, H>(tile.channel);
            for row in 0..self.rows {
                let load = |p: usize, column: usize| {
                    signed(tile.inputs[0][p].wrapping_add(row * self.tap_row + column * self.tap_column))
                };
                let mut column = 0;
                while PAIRS && column + 1 < self.columns {
                    let w = [self.weight(row, column, tile.channel), self.weight(row, column + 1, tile.channel)];
                    for p in 0..P {
                        let x = [load(p, column), load(p, column + 1)];
                        for h in 0..H {
                            sums[p][h] = sums[p][h].two(h, x, w);
                        }
                    }
                    column += 2;
                }
                while column < self.columns {
                    let w = self.weight(row, column, tile.channel);
                    for p in 0..P {
                        let x = load(p, column);
                        for h in 0..H {
                            sums[p][h] = sums[p][h].one(h, x, w);
                        }
                    }
                    column += 1;
                }
            }
            self.write(&tile, sums);
        }
    }

    /// Three columns, stride 1; two pixels in each of `R` rows that are one kernel row apart.
    #[inline(never)]
    unsafe fn window<const R: usize, const H: usize>(&self, tile: Tile<2, R>) {
        // SAFETY: as in `columns`; the fourth pixel of a window is the last tap of the second output pixel.
        unsafe {
            let bias: [[int32x4_t; 2]; H] = std::array::from_fn(|h| {
                [self.finish.bias(tile.channel + 8 * h), self.finish.bias(tile.channel + 8 * h + 4)]
            });
            let mut sums = [[bias; 2]; R];
            let weights = self.windows.as_ptr().wrapping_add(tile.channel * self.rows * 8);
            for row in 0..self.rows + R - 1 {
                let start = tile.inputs[0][0].wrapping_add(row * self.tap_row);
                let x: [int8x16_t; 4] = std::array::from_fn(|i| signed(start.wrapping_add(i * self.tap_column)));
                for h in 0..H {
                    let taps = interleave(x, h);
                    for r in 0..R {
                        let kernel_row = row.wrapping_sub(r);
                        if kernel_row < self.rows {
                            for p in 0..2 {
                                let at = weights.wrapping_add(((kernel_row * 2 + p) * 4 + 2 * h) * 16);
                                sums[r][p][h][0] = sdot(sums[r][p][h][0], vld1q_s8(at), taps[0]);
                                sums[r][p][h][1] = sdot(sums[r][p][h][1], vld1q_s8(at.wrapping_add(16)), taps[1]);
                            }
                        }
                    }
                }
            }
            for r in 0..R {
                let (outputs, live) = (tile.outputs[r], tile.live);
                if H == 2 {
                    let sums = sums[r].map(|s| [s[0][0], s[0][1], s[H - 1][0], s[H - 1][1]]);
                    self.finish.write(tile.memory, outputs, tile.channel, live, sums);
                } else {
                    self.finish.write(tile.memory, outputs, tile.channel, live, sums[r].map(|s| s[0]));
                }
            }
        }
    }
}

/// Where a tile of `P` pixels in `R` rows lies.
struct Tile<const P: usize, const R: usize> {
    memory: Memory,
    inputs: [[*const u8; P]; R],
    outputs: [[usize; P]; R],
    channel: usize,
    live: usize,
}

impl Layer for Depthwise {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        let Area { rows, columns } = area;
        let mut y = rows.start;
        while y < rows.end {
            let columns = columns.clone();
            let mut done = 1;
            // SAFETY: as promised to this function; the ways were chosen to fit.
            unsafe {
                match self.way {
                    Way::Window { .. } if columns.len() < 2 => self.run_columns::<3, 1>(memory, y, columns),
                    Way::Window { joined_rows: true } if rows.end - y >= 2 => {
                        self.run_windows::<2>(memory, y, columns);
                        done = 2;
                    }
                    Way::Window { .. } => self.run_windows::<1>(memory, y, columns),
                    Way::Columns { columns: 3, step: 1 } => self.run_columns::<3, 1>(memory, y, columns),
                    Way::Columns { columns: 3, .. } => self.run_columns::<3, 2>(memory, y, columns),
                    Way::Columns { step: 1, .. } => self.run_columns::<5, 1>(memory, y, columns),
                    Way::Columns { .. } => self.run_columns::<5, 2>(memory, y, columns),
                    Way::Taps { pairs: true } => self.run_taps::<true>(memory, y, columns),
                    Way::Taps { pairs: false } => self.run_taps::<false>(memory, y, columns),
                }
            }
            y += done;
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
        Some(1) if dot && columns == 3 => Way::Window { joined_rows: spec.grid.input.row == spec.tap_row },
        Some(step) if columns == 3 || columns == 5 => Way::Columns { columns, step },
        _ => Way::Taps { pairs },
    }
}

/// `[block][kernel row][pixel][16 channels][four taps]`: the taps of the second pixel are one further.
fn pack_windows(spec: &DepthwiseSpec) -> Vec<i8> {
    let padded = spec.padded();
    let mut weights = vec![];
    for block in (0..padded).step_by(BLOCK) {
        for row in 0..spec.kernel_rows {
            for pixel in 0..2 {
                for channel in block..block + BLOCK {
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

/// Lanes of four taps for eight channels, the first or the second eight: four channels in each vector.
#[inline(always)]
fn interleave(x: [int8x16_t; 4], half: usize) -> [int8x16_t; 2] {
    // SAFETY: registers only, NEON is part of every 64-bit ARM target.
    unsafe {
        let zip = |a, b| if half == 0 { vzip1q_s8(a, b) } else { vzip2q_s8(a, b) };
        let first = vreinterpretq_s16_s8(zip(x[0], x[1]));
        let second = vreinterpretq_s16_s8(zip(x[2], x[3]));
        [vreinterpretq_s8_s16(vzip1q_s16(first, second)), vreinterpretq_s8_s16(vzip2q_s16(first, second))]
    }
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
