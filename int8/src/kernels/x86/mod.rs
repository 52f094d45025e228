//! Kernels for x86-64: AVX2, AVX-VNNI (256 bits) and AVX-512 VNNI.
//!
//! The loops exist once, generic over [`Simd`]; a set of instructions gives a few primitives. Every loop is an inlined
//! [`Work`] that [`Simd::enter`] compiles with that set's instructions switched on. Knows the tasks of the parent module
//! and nothing else.
//!
//! Invariant of all of it: a kernel writes the outputs of its task and nothing else, and reads at most [`SLACK`](super::SLACK)
//! bytes beside what the task names.

mod avx2;
mod avx512;
mod avx_vnni;
mod columns;
mod dense;
mod depthwise;
mod few;
mod finish;
#[cfg(test)]
pub(super) mod forced;
mod lanes256;
mod march;
mod memory;
#[cfg(test)]
mod model;
mod pairs;
mod quarters;
mod strips;

use std::fmt::Debug;

pub(crate) use avx_vnni::AvxVnni;
pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512Vnni;

use super::{DenseSpec, DepthwiseSpec, Kernels, Layer};
use finish::Bounds;

/// The kernels of a set of instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct X86<S>(pub(crate) S);

impl<S: Simd> Kernels for X86<S> {
    fn dense(&self, spec: DenseSpec) -> Box<dyn Layer> {
        if let Some(taps) = depthwise::Taps::of_single_channel(&spec) {
            return depthwise::packed::<S>(taps, &spec.grid, spec.channels, spec.post);
        }
        if let Some(layer) = S::few(&spec) {
            return layer;
        }
        if spec.channels <= few::MOST && few::pays::<S>(&spec) {
            return Box::new(few::Few::<S>::new(spec));
        }
        if S::WIDEN {
            type Doubles<S> =
                dense::Dense<S, <S as Simd>::PairedWhole, <S as Simd>::PairedHalf, <S as Simd>::PairedDouble>;
            match dense::Pairing::of(&spec) {
                Some(dense::Pairing::Doubles) => return Box::new(Doubles::<S>::new(spec)),
                Some(dense::Pairing::Blocks) => {
                    return Box::new(dense::Dense::<S, S::PairedWhole, S::PairedHalf>::new(spec));
                }
                None => {}
            }
        }
        // What becomes of 64 channels' sums stands in the way of the next products, where there are few.
        if spec.runs.len() * spec.quads <= dense::FEW_STEPS {
            return Box::new(dense::Dense::<S, S::Whole, S::Half, S::Double>::new(spec));
        }
        Box::new(dense::Dense::<S, S::Whole, S::Half, S::Double, S::Quadruple>::new(spec))
    }

    fn depthwise(&self, spec: DepthwiseSpec) -> Box<dyn Layer> {
        if let Some(layer) = S::depthwise_3x3(&spec) {
            return layer;
        }
        let taps = depthwise::Taps::of(&spec);
        depthwise::packed::<S>(taps, &spec.grid, spec.channels, spec.post)
    }
}

/// A set of instructions.
///
/// # Safety
/// Only [`X86`]'s layers call these, which [`Isa::kernels`](crate::isa::Isa) gives out where the processor has the instructions; every
/// primitive is `unsafe` for that reason, and for the pointers it follows.
trait Simd: Copy + Send + Sync + Debug + 'static {
    /// Sums of 16 output channels of one pixel.
    type Whole: Lanes;
    /// Sums of 8 output channels of one pixel.
    type Half: Lanes;
    /// Sums of 32 output channels of one pixel, where there is a gain in that; else [`Simd::Whole`].
    type Double: Lanes;
    /// Sums of 64 output channels of one pixel, likewise.
    type Quadruple: Lanes;
    /// [`Simd::Whole`] for input bytes in safe pairs, where there is a gain in that.
    type PairedWhole: Lanes;
    /// [`Simd::Half`] likewise.
    type PairedHalf: Lanes;
    /// Sums of 32 output channels of one pixel, likewise.
    type PairedDouble: Lanes;
    /// Bytes of a depthwise layer, where channels follow one another without end.
    type Wide: Bytes;
    /// The same, 32 bytes: two pixels of 16 channels.
    type Pair: Bytes;
    /// [`Simd::Wide`] for weights of which few may be multiplied by four, where that makes a difference.
    type WideByTwo: Bytes;
    /// [`Simd::Pair`] likewise.
    type PairByTwo: Bytes;

    /// Whether dense kernels take their input as 16-bit integers.
    const WIDEN: bool;
    /// Input bytes of one step of [`Simd::dot_along`].
    const ALONG: usize;

    /// A way of its own for depthwise layers of 3 by 3 taps, where there is a gain in that.
    fn depthwise_3x3(_: &DepthwiseSpec) -> Option<Box<dyn Layer>> {
        None
    }

    /// A way of its own for dense layers of few output channels, likewise.
    fn few(_: &DenseSpec) -> Option<Box<dyn Layer>> {
        None
    }

    /// Runs `work`, compiled for these instructions.
    ///
    /// # Safety
    /// The processor has them; `work`'s own contract holds.
    unsafe fn enter<W: Work>(work: W);

    /// Adds to 8 partial sums the products of [`Simd::ALONG`] input bytes at `input` and as many weights at `weights`.
    ///
    /// # Safety
    /// Both can be read; weights are as [`Simd::WIDEN`] says.
    unsafe fn dot_along(
        sums: std::arch::x86_64::__m256i,
        input: Self::Along,
        weights: *const u8,
    ) -> std::arch::x86_64::__m256i;

    /// Input bytes as `dot_along` takes them.
    type Along: Copy;

    /// Reads [`Simd::ALONG`] bytes.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn along(input: *const u8) -> Self::Along;
}

/// A loop to be compiled for a set of instructions.
trait Work {
    /// Runs it; implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// As the implementation says.
    unsafe fn run(self);
}

/// How a dense kernel takes its input: a step takes 4 bytes of it, and `CHANNELS * 4` bytes of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Diet {
    /// Quads of bytes.
    Quads,
    /// Input and weights widened to 16 bits; a quad is two steps.
    Wide,
    /// Quads of bytes from anywhere in a window, see [`pairs`].
    Pairs,
}

/// The sums of some output channels of one pixel, in vectors of its own.
///
/// # Safety
/// As for [`Simd`].
trait Lanes: Debug + Send + Sync + 'static {
    /// The sums.
    type Sums: Copy;
    /// Input bytes that meet the weights of every channel.
    type Input: Copy;

    /// How many channels.
    const CHANNELS: usize;
    /// The channel of each lane.
    const ORDER: &'static [usize];
    /// Pixels whose sums the registers hold, at most twelve.
    const TILE: usize;
    /// How input and weights are taken.
    const DIET: Diet;

    /// Sums to start from, in lane order.
    unsafe fn load(from: *const i32) -> Self::Sums;
    /// Four bytes for all channels.
    unsafe fn quad(bytes: i32) -> Self::Input;
    /// Those of the 16 bytes at `from` that `shuffle` says, for all channels; only by [`Diet::Pairs`].
    #[inline(always)]
    unsafe fn window(_from: *const u8, _shuffle: u32) -> Self::Input {
        unreachable!("bytes of a window meet in pairs only")
    }
    /// One step.
    unsafe fn dot(sums: Self::Sums, input: Self::Input, weights: *const u8) -> Self::Sums;
    /// Scales and rounds to integers; `scale` and `slope` in lane order.
    unsafe fn round<const SLOPE: bool>(sums: Self::Sums, scale: *const f32, slope: *const f32) -> Self::Sums;
    /// Writes rounded values as bytes, `count` of them; `NATURAL` only where [`Bounds::natural`] is.
    unsafe fn store<const NATURAL: bool>(rounded: Self::Sums, bounds: &Bounds, to: *mut u8, count: usize);
    /// Writes rounded values of four pixels, `step` bytes apart, `count` bytes of each; likewise.
    #[inline(always)]
    unsafe fn store_four<const NATURAL: bool>(
        rounded: [Self::Sums; 4],
        bounds: &Bounds,
        to: *mut u8,
        step: usize,
        count: usize,
    ) {
        // SAFETY: by this function's contract.
        unsafe {
            Self::store::<NATURAL>(rounded[0], bounds, to, count);
            Self::store::<NATURAL>(rounded[1], bounds, to.add(step), count);
            Self::store::<NATURAL>(rounded[2], bounds, to.add(2 * step), count);
            Self::store::<NATURAL>(rounded[3], bounds, to.add(3 * step), count);
        }
    }
    /// Writes the sums in channel order.
    unsafe fn spill(sums: Self::Sums, to: *mut i32);
}

/// Bytes side by side, each of a channel of its own, and their sums in four vectors.
///
/// Sum `l` of vector `i` belongs to byte `l / 4 * 16 + i * 4 + l % 4`.
///
/// # Safety
/// As for [`Simd`].
trait Bytes: Debug + Send + Sync + 'static {
    /// The bytes.
    type Vector: Copy;
    /// A quarter of the sums.
    type Sums: Copy;

    /// How many bytes.
    const WIDTH: usize;
    /// Taps that are multiplied together: four bytes, or two 16-bit integers.
    const TAPS: usize;
    /// Whether [`Bytes::dot`] is exact only where the weights of bytes 0 and 1, and those of 2 and 3, that have the same sign add up to at most 128.
    const SATURATES: bool;

    /// Bytes side by side.
    unsafe fn load(from: *const u8) -> Self::Vector;
    /// 16 bytes from each of two places; only where `WIDTH` is 32.
    unsafe fn load_two(first: *const u8, second: *const u8) -> Self::Vector;
    /// Vectors of [`Bytes::TAPS`] taps, which `tap` reads, into four vectors whose lanes have all taps of a byte.
    unsafe fn interleave(tap: impl Fn(usize) -> Self::Vector) -> [Self::Vector; 4];
    /// Sums to start from.
    unsafe fn sums(from: *const i32) -> Self::Sums;
    /// Adds the products of each byte's taps with their weights.
    unsafe fn dot(sums: Self::Sums, taps: Self::Vector, weights: *const u8) -> Self::Sums;
    /// The same with weights at hand.
    unsafe fn dot_held(sums: Self::Sums, taps: Self::Vector, weights: Self::Vector) -> Self::Sums;
    /// Scales, rounds, and brings the bytes back to their order.
    unsafe fn finish<const SLOPE: bool>(
        sums: [Self::Sums; 4],
        scale: *const f32,
        slope: *const f32,
        bounds: &Bounds,
    ) -> Self::Vector;
    /// Writes all bytes.
    unsafe fn store(bytes: Self::Vector, to: *mut u8);
    /// Writes the first `count` bytes.
    unsafe fn store_some(bytes: Self::Vector, to: *mut u8, count: usize);
    /// Writes the first `count` bytes of each half to its place; only where `WIDTH` is 32.
    unsafe fn store_two(bytes: Self::Vector, first: *mut u8, second: *mut u8, count: usize);
    /// Writes the sums in byte order: `WIDTH` values.
    unsafe fn spill(sums: [Self::Sums; 4], to: *mut i32);
}
