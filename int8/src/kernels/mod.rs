//! What a processor has to be able to do: the two heavy layers, dense and depthwise convolution, over planned memory.
//!
//! Everything that is decided ahead (geometry, padding, packing, bounds) is in [`DenseSpec`] and [`DepthwiseSpec`]; a
//! kernel only computes. [`scalar`] is the definition: every other implementation gives the same bytes for the same task.
//! Knows no graphs.
//!
//! # Memory
//! Activations are bytes in one arena, row by row, in each row pixel by pixel, in each pixel channel by channel (NHWC, batch 1), with no
//! gap between pixels: `pixel` bytes from one to the next is the channel count, of the tensor or of the one that a tensor is a slice of.
//! Around a picture there may be a halo, filled with the zero-point, so that a kernel never asks whether it is at a border.
//!
//! Invariant, proven by the planner and relied on by every `unsafe` block below: for each output pixel of the task's
//! [`Grid`], each byte that [`DenseSpec::runs`] or the taps of a [`DepthwiseSpec`] name lies within the arena, and [`SLACK`]
//! more bytes may be read (never written) behind the last of them and before the first; the output's bytes lie within the arena (or, for
//! [`Store::F32`], within the float buffer) and are not read by the task. Outputs of different pixels and channels do not overlap; bytes
//! that belong to no output of the task are not written.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod neon;
pub mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

use std::ops::Range;

/// Output channels in a block of packed weights.
pub const BLOCK: usize = 16;
/// Input bytes that are taken together: the lanes of one dot product.
pub const QUAD: usize = 4;
/// Bytes of the arena before the first and behind the last tensor; a kernel may read that much too far either way.
pub const SLACK: usize = 256;

/// Where the pixels of a picture lie: byte (or, in the float buffer, element) offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Of the pixel at row 0, column 0.
    pub base: usize,
    /// From one row to the next.
    pub row: usize,
    /// From one pixel to the next in a row.
    pub pixel: usize,
}

impl View {
    /// The offset of a pixel.
    #[inline(always)]
    pub fn at(&self, y: usize, x: usize) -> usize {
        self.base + y * self.row + x * self.pixel
    }
}

/// A rectangle of output pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Rows.
    pub rows: Range<usize>,
    /// Columns.
    pub columns: Range<usize>,
}

/// The pixels of a layer: where output pixel (y, x) is written and where its first tap is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Output rows.
    pub rows: usize,
    /// Output columns.
    pub columns: usize,
    /// `input.at(y, x)` is the first channel under the first tap of output pixel (y, x): strides are in it, and it may lie in the halo.
    pub input: View,
    /// `output.at(y, x)` is the first output channel of the pixel.
    pub output: View,
}

/// Contiguous input bytes that meet contiguous weights. Kernel rows, and where the columns are dilated the columns too, are runs of
/// their own; the columns of an undilated kernel and their channels are one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The kernel's row, from 0.
    pub row: usize,
    /// Bytes from the pixel's first tap in that row.
    pub offset: usize,
}

/// What becomes of a sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Post {
    /// Added to the sum, a value a channel, filled up with 0 to a multiple of [`BLOCK`]. The zero-points are in it: `bias - zero_point * sum(weights)`.
    pub bias: Box<[i32]>,
    /// From the sum's unit to the output's, a value a channel, filled up with 0 likewise; finite, not negative.
    pub scale: Box<[f32]>,
    /// Applied to the scaled value.
    pub activation: Activation,
    /// What is written.
    pub store: Store,
}

/// A function of one value that is computed in float between the sum and the rounding.
#[derive(Clone, Debug, PartialEq)]
pub enum Activation {
    /// As it is. ReLU, ReLU6 and clipping are in the bounds of [`Store::U8`].
    None,
    /// Below 0 times a factor a channel, filled up with 0 to a multiple of [`BLOCK`]: leaky ReLU, PReLU.
    Slope(Box<[f32]>),
    /// `x * clamp(x * (1 / 6) + 0.5, 0, 1) * inverse`, where [`Post::scale`] gives the real value x and `inverse` is one over the output's scale.
    HardSwish {
        /// One over the output's scale (1 for float output).
        inverse: f32,
    },
}

/// What is written for each channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Store {
    /// `round(clamp(value, low, high)) + zero_point` as a byte; half rounds to even.
    U8 {
        /// Lowest value before the zero-point is added: an integer, at least `-zero_point`.
        low: f32,
        /// Highest value before the zero-point is added: an integer, at most `255 - zero_point`.
        high: f32,
        /// 0 to 255.
        zero_point: i32,
    },
    /// The value itself, clamped, into the float buffer.
    F32 {
        /// Lowest value, may be minus infinity.
        low: f32,
        /// Highest value, may be infinity.
        high: f32,
    },
}

/// Bounds as the processors' own instructions have them: NaN becomes `low`, and of two zeros the bound wins.
#[inline(always)]
fn clamp(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

impl Post {
    /// The definition of what happens behind a sum, up to the rounding: one step after another in `f32`, none fused.
    #[inline(always)]
    pub fn value(&self, sum: i32, channel: usize) -> f32 {
        let mut value = sum as f32 * self.scale[channel];
        match &self.activation {
            Activation::None => {}
            Activation::Slope(slope) => {
                if value < 0.0 {
                    value *= slope[channel];
                }
            }
            Activation::HardSwish { inverse } => {
                let gate = clamp(value * (1.0 / 6.0) + 0.5, 0.0, 1.0);
                value = value * gate * inverse;
            }
        }
        let (Store::U8 { low, high, .. } | Store::F32 { low, high }) = self.store;
        clamp(value, low, high)
    }

    /// The byte written for a value that [`Post::value`] gave.
    #[inline(always)]
    pub fn byte(value: f32, zero_point: i32) -> u8 {
        (value.round_ties_even() as i32 + zero_point) as u8
    }
}

/// A convolution over all input channels of its group, as planned: any kernel, stride, padding and dilation, a phase of a
/// transposed convolution, a linear layer (one pixel).
///
/// `sum[o] = bias[o] + sum over runs r, quads q, bytes b of input[tap(r) + 4 q + b] * weight[o][r][q][b]`, inputs u8, weights s8 in -127..=127
/// (-128 is allowed), sums i32 that cannot overflow (the planner refuses layers where they could).
#[derive(Clone, Debug)]
pub struct DenseSpec {
    /// Which pixels.
    pub grid: Grid,
    /// Bytes from one kernel row to the next (dilation is in it).
    pub tap_row: usize,
    /// The runs, by row and then offset; at least one, all with the same number of quads.
    pub runs: Box<[Tap]>,
    /// Quads in each run, at least 1.
    pub quads: usize,
    /// Output channels, at least 1.
    pub channels: usize,
    /// `[block][run][quad][BLOCK][QUAD]`, zero where there is no channel or no input.
    pub weights: Box<[i8]>,
    /// What becomes of the sums.
    pub post: Post,
}

impl DenseSpec {
    /// Blocks of output channels.
    pub fn blocks(&self) -> usize {
        self.channels.div_ceil(BLOCK)
    }

    /// One weight.
    #[inline(always)]
    pub fn weight(&self, channel: usize, run: usize, quad: usize, byte: usize) -> i8 {
        let quads = ((channel / BLOCK) * self.runs.len() + run) * self.quads + quad;
        self.weights[(quads * BLOCK + channel % BLOCK) * QUAD + byte]
    }
}

/// A convolution of each channel by itself, as planned: any kernel, stride, padding and dilation, one output a channel.
///
/// `sum[c] = bias[c] + sum over taps t of input[first tap + (t / columns) * tap_row + (t % columns) * tap_column + c] * weight[t][c]`.
#[derive(Clone, Debug)]
pub struct DepthwiseSpec {
    /// Which pixels.
    pub grid: Grid,
    /// Kernel rows, at least 1.
    pub kernel_rows: usize,
    /// Kernel columns, at least 1.
    pub kernel_columns: usize,
    /// Bytes from one kernel row to the next.
    pub tap_row: usize,
    /// Bytes from one kernel column to the next.
    pub tap_column: usize,
    /// Channels, at least 1.
    pub channels: usize,
    /// `[tap][channels filled up with 0 to a multiple of BLOCK]`.
    pub weights: Box<[i8]>,
    /// What becomes of the sums.
    pub post: Post,
}

impl DepthwiseSpec {
    /// Channels filled up to whole blocks.
    pub fn padded(&self) -> usize {
        self.channels.next_multiple_of(BLOCK)
    }
}

/// A layer made ready for one processor: the task and whatever else its kernels want, packed their way.
pub trait Layer: Send + Sync + std::fmt::Debug {
    /// Computes the output pixels of `area`.
    ///
    /// # Safety
    /// `memory` points at the arena and the float buffer that the task was planned for, `area` lies within the task's grid,
    /// and while the call lasts nobody writes what the task reads or touches what it writes in `area`. `scratch` belongs to the caller alone.
    unsafe fn run(&self, memory: Memory, area: Area, scratch: &mut Scratch);

    /// Bytes of [`Scratch`] that `run` wants.
    fn scratch(&self) -> usize {
        0
    }
}

/// The memory of a network while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The arena; offset 0 of every [`View`] in bytes. At least [`SLACK`] readable bytes lie before the lowest offset that is used.
    pub bytes: *mut u8,
    /// The float buffer; offset 0 of every float [`View`].
    pub floats: *mut f32,
}

// SAFETY: plain addresses; who runs a layer vouches for what they point at, see `Layer::run`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Working memory of one thread, 64-byte aligned.
#[derive(Debug, Default)]
pub struct Scratch {
    chunks: Vec<Chunk>,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Chunk([u8; 64]);

impl Scratch {
    /// One of at least `bytes` bytes, zeroed.
    pub fn new(bytes: usize) -> Self {
        Self { chunks: vec![Chunk([0; 64]); bytes.div_ceil(64)] }
    }

    /// Its first byte.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.chunks.as_mut_ptr().cast()
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.chunks.len() * 64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// The kernels of one kind of processor.
pub trait Kernels: Send + Sync {
    /// Packs a dense layer.
    fn dense(&self, spec: DenseSpec) -> Box<dyn Layer>;
    /// Packs a depthwise layer.
    fn depthwise(&self, spec: DepthwiseSpec) -> Box<dyn Layer>;
}
