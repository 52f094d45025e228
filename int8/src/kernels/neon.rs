//! Kernels for 64-bit ARM: with the dot products of ARMv8.2 and, for older cores, without.
//!
//! Inputs are turned into signed bytes (`x - 128`, one exclusive or) on their way into a register, and `128 * sum(weights)` is in
//! the packed bias. Dense layers go through tiles of pixels by channels, see [`dense`]; depthwise ones through
//! tiles that share taps, see [`depthwise`]; what follows a sum is in [`finish`].
//!
//! Without dot products, two products of bytes are summed in 16 bits before they are widened. That is exact unless both
//! weights are -128 (`2 * -128 * -128 = 2^15`); layers with such a pair are recognised when they are packed and take a slower way.

mod dense;
mod depthwise;
mod finish;

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::{DenseSpec, DepthwiseSpec, Kernels, Layer};

/// Kernels for every 64-bit ARM processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon;

/// Kernels for processors with `sdot`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonDot;

impl Kernels for Neon {
    fn dense(&self, spec: DenseSpec) -> Box<dyn Layer> {
        if dense::pairs_fit(&spec) {
            Box::new(dense::Dense::<Pairs>::new(spec))
        } else {
            Box::new(dense::Dense::<Singles>::new(spec))
        }
    }

    fn depthwise(&self, spec: DepthwiseSpec) -> Box<dyn Layer> {
        Box::new(depthwise::Depthwise::new(spec, false))
    }
}

impl Kernels for NeonDot {
    fn dense(&self, spec: DenseSpec) -> Box<dyn Layer> {
        Box::new(dense::Dense::<Sdot>::new(spec))
    }

    fn depthwise(&self, spec: DepthwiseSpec) -> Box<dyn Layer> {
        Box::new(depthwise::Depthwise::new(spec, true))
    }
}

/// A way to multiply signed bytes and sum the products: what the kernels of one processor differ in.
///
/// # Safety
/// The methods may be called only where the processor has the instructions.
unsafe trait Dots: Send + Sync + std::fmt::Debug + 'static {
    /// Whether the tiles may be twice as many pixels: a running sum takes one register, not two.
    const NARROW_SUM: bool;
    /// The running sums of four channels.
    type Sum: Copy;

    /// Four sums that begin at `bias`.
    unsafe fn start(bias: int32x4_t) -> Self::Sum;

    /// Adds, for `P` pixels and `4 * N` channels, the first `Q` quads of each pixel's 16 bytes times the `Q * N` vectors of weights
    /// (four channels' quads each) at `weights`.
    unsafe fn quads<const Q: usize, const P: usize, const N: usize>(
        sums: &mut [[Self::Sum; N]; P],
        inputs: [int8x16_t; P],
        weights: *const i8,
    );

    /// The four sums.
    unsafe fn end(sum: Self::Sum) -> int32x4_t;

    /// Adds the products of 16 bytes to four partial sums of one channel, in any grouping.
    unsafe fn bytes(sum: int32x4_t, inputs: int8x16_t, weights: int8x16_t) -> int32x4_t;
}

/// `sdot`: four products a lane and instruction.
#[derive(Debug)]
struct Sdot(PhantomData<()>);

/// `smull`, `smlal`, `sadalp`: pairs of products in 16 bits.
#[derive(Debug)]
struct Pairs(PhantomData<()>);

/// `smull`, `sadalp`: for weights whose pairs do not fit 16 bits.
#[derive(Debug)]
struct Singles(PhantomData<()>);

/// `sum[i] += dot(weights[4 i..], inputs[4 LANE..])` for each lane i.
///
/// # Safety
/// The processor has `sdot`.
#[inline(always)]
unsafe fn sdot_lane<const LANE: usize>(mut sum: int32x4_t, weights: int8x16_t, inputs: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the processor has the instruction by this function's contract. The directive holds for this statement.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {weights:v}.16b, {inputs:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            inputs = in(vreg) inputs,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// `sum[i] += dot(weights[4 i..], inputs[4 i..])` for each lane i.
///
/// # Safety
/// The processor has `sdot`.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, weights: int8x16_t, inputs: int8x16_t) -> int32x4_t {
    // SAFETY: as in `sdot_lane`.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {weights:v}.16b, {inputs:v}.16b",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            inputs = in(vreg) inputs,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

// SAFETY: plain `sdot`; the kernels are built only where the processor has it.
unsafe impl Dots for Sdot {
    const NARROW_SUM: bool = true;
    type Sum = int32x4_t;

    #[inline(always)]
    unsafe fn start(bias: int32x4_t) -> int32x4_t {
        bias
    }

    #[inline(always)]
    unsafe fn quads<const Q: usize, const P: usize, const N: usize>(
        sums: &mut [[int32x4_t; N]; P],
        inputs: [int8x16_t; P],
        weights: *const i8,
    ) {
        for quad in 0..Q {
            for n in 0..N {
                // SAFETY: `Q * N` vectors lie at `weights`, and the processor has `sdot`.
                unsafe {
                    let weights = vld1q_s8(weights.add((quad * N + n) * 16));
                    for p in 0..P {
                        sums[p][n] = match quad {
                            0 => sdot_lane::<0>(sums[p][n], weights, inputs[p]),
                            1 => sdot_lane::<1>(sums[p][n], weights, inputs[p]),
                            2 => sdot_lane::<2>(sums[p][n], weights, inputs[p]),
                            _ => sdot_lane::<3>(sums[p][n], weights, inputs[p]),
                        };
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end(sum: int32x4_t) -> int32x4_t {
        sum
    }

    #[inline(always)]
    unsafe fn bytes(sum: int32x4_t, inputs: int8x16_t, weights: int8x16_t) -> int32x4_t {
        // SAFETY: the processor has `sdot`.
        unsafe { sdot(sum, weights, inputs) }
    }
}

/// A quad in every lane.
#[inline(always)]
fn spread(inputs: int8x16_t, quad: usize) -> int8x16_t {
    // SAFETY: NEON is part of every 64-bit ARM target.
    unsafe {
        let inputs = vreinterpretq_s32_s8(inputs);
        vreinterpretq_s8_s32(match quad {
            0 => vdupq_laneq_s32::<0>(inputs),
            1 => vdupq_laneq_s32::<1>(inputs),
            2 => vdupq_laneq_s32::<2>(inputs),
            _ => vdupq_laneq_s32::<3>(inputs),
        })
    }
}

/// Two partial sums for each of four channels: what the products of pairs of bytes need.
#[derive(Clone, Copy)]
struct Halves(int32x4_t, int32x4_t);

impl Halves {
    #[inline(always)]
    fn start(bias: int32x4_t) -> Self {
        // SAFETY: NEON is part of every 64-bit ARM target.
        unsafe {
            let zero = vdupq_n_s32(0);
            Self(vzip1q_s32(bias, zero), vzip2q_s32(bias, zero))
        }
    }

    #[inline(always)]
    fn end(self) -> int32x4_t {
        // SAFETY: NEON is part of every 64-bit ARM target.
        unsafe { vpaddq_s32(self.0, self.1) }
    }

    /// Adds one quad.
    #[inline(always)]
    fn one(self, x: int8x16_t, w: int8x16_t) -> Self {
        // SAFETY: NEON is part of every 64-bit ARM target.
        unsafe {
            let low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
            let high = vmull_high_s8(x, w);
            Self(vpadalq_s16(self.0, low), vpadalq_s16(self.1, high))
        }
    }

    /// Adds two quads whose products fit 16 bits together.
    #[inline(always)]
    fn two(self, x: [int8x16_t; 2], w: [int8x16_t; 2]) -> Self {
        // SAFETY: NEON is part of every 64-bit ARM target.
        unsafe {
            let low = vmull_s8(vget_low_s8(x[0]), vget_low_s8(w[0]));
            let high = vmull_high_s8(x[0], w[0]);
            let low = vmlal_s8(low, vget_low_s8(x[1]), vget_low_s8(w[1]));
            let high = vmlal_high_s8(high, x[1], w[1]);
            Self(vpadalq_s16(self.0, low), vpadalq_s16(self.1, high))
        }
    }
}

// SAFETY: NEON is part of every 64-bit ARM target.
unsafe impl Dots for Pairs {
    const NARROW_SUM: bool = false;
    type Sum = Halves;

    #[inline(always)]
    unsafe fn start(bias: int32x4_t) -> Halves {
        Halves::start(bias)
    }

    #[inline(always)]
    unsafe fn quads<const Q: usize, const P: usize, const N: usize>(
        sums: &mut [[Halves; N]; P],
        inputs: [int8x16_t; P],
        weights: *const i8,
    ) {
        // SAFETY: `Q * N` vectors lie at `weights`.
        let weight = |quad: usize, n: usize| unsafe { vld1q_s8(weights.add((quad * N + n) * 16)) };
        for quad in (0..Q - Q % 2).step_by(2) {
            let spreads = inputs.map(|x| [spread(x, quad), spread(x, quad + 1)]);
            for n in 0..N {
                let weights = [weight(quad, n), weight(quad + 1, n)];
                for p in 0..P {
                    sums[p][n] = sums[p][n].two(spreads[p], weights);
                }
            }
        }
        if Q % 2 == 1 {
            let spreads = inputs.map(|x| spread(x, Q - 1));
            for n in 0..N {
                let weights = weight(Q - 1, n);
                for p in 0..P {
                    sums[p][n] = sums[p][n].one(spreads[p], weights);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end(sum: Halves) -> int32x4_t {
        sum.end()
    }

    #[inline(always)]
    unsafe fn bytes(sum: int32x4_t, inputs: int8x16_t, weights: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is part of every 64-bit ARM target.
        unsafe {
            let products = vmull_s8(vget_low_s8(inputs), vget_low_s8(weights));
            vpadalq_s16(sum, vmlal_high_s8(products, inputs, weights))
        }
    }
}

// SAFETY: NEON is part of every 64-bit ARM target.
unsafe impl Dots for Singles {
    const NARROW_SUM: bool = false;
    type Sum = Halves;

    #[inline(always)]
    unsafe fn start(bias: int32x4_t) -> Halves {
        Halves::start(bias)
    }

    #[inline(always)]
    unsafe fn quads<const Q: usize, const P: usize, const N: usize>(
        sums: &mut [[Halves; N]; P],
        inputs: [int8x16_t; P],
        weights: *const i8,
    ) {
        for quad in 0..Q {
            for n in 0..N {
                // SAFETY: `Q * N` vectors lie at `weights`.
                let weights = unsafe { vld1q_s8(weights.add((quad * N + n) * 16)) };
                for p in 0..P {
                    sums[p][n] = sums[p][n].one(spread(inputs[p], quad), weights);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end(sum: Halves) -> int32x4_t {
        sum.end()
    }

    #[inline(always)]
    unsafe fn bytes(sum: int32x4_t, inputs: int8x16_t, weights: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is part of every 64-bit ARM target.
        unsafe {
            let sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(inputs), vget_low_s8(weights)));
            vpadalq_s16(sum, vmull_high_s8(inputs, weights))
        }
    }
}

/// Sixteen input bytes less 128.
///
/// # Safety
/// 16 bytes may be read at `at`.
#[inline(always)]
unsafe fn signed(at: *const u8) -> int8x16_t {
    // SAFETY: by this function's contract.
    unsafe { vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at), vdupq_n_u8(0x80))) }
}

/// Packed weights, aligned to the lines of the cache.
#[derive(Debug)]
struct Packed(Box<[Line]>);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([i8; 64]);

impl Packed {
    fn new(weights: &[i8]) -> Self {
        let line = |chunk: &[i8]| {
            let mut line = Line([0; 64]);
            line.0[..chunk.len()].copy_from_slice(chunk);
            line
        };
        Self(weights.chunks(64).map(line).collect())
    }

    fn as_ptr(&self) -> *const i8 {
        self.0.as_ptr().cast()
    }
}
