//! Kernels for 64-bit ARM: with the dot products of ARMv8.2 and, for older cores, without.
//!
//! Inputs are turned into signed bytes (`x - 128`, one exclusive or) on their way into a register, and the bias
//! has `128 * sum(weights)` in it. Dense layers go through tiles of pixels by channels, see [`dense`]; depthwise
//! ones through tiles that share taps, see [`depthwise`]; what follows a sum is in [`finish`].
//!
//! Without dot products, two products of bytes are summed in 16 bits before they are widened. That is exact unless both
//! weights are -128 (`2 * -128 * -128 = 2^15`); layers with such a pair are recognised when they are packed and take a
//! slower way.

// Pixels, channels and rows of a tile are numbered: several arrays are taken at the same places.
#![allow(clippy::needless_range_loop)]

mod dense;
mod depthwise;
mod finish;

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use self::finish::Finish;
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

    /// Where the sums of four channels begin.
    ///
    /// # Safety
    /// As for [`Finish::bias`].
    unsafe fn start(finish: &Finish, channel: usize) -> Self::Sum;

    /// Adds, for `P` pixels and `4 * N` channels, the first `Q` quads of each pixel's 16 bytes times the `Q * N`
    /// vectors of weights (four channels' quads each) at `weights`.
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
    // SAFETY: registers only; the processor has the instruction by this function's contract. The directive holds for
    // this statement.
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

/// Adds one quad of each pixel.
///
/// # Safety
/// As for [`Dots::quads`].
#[inline(always)]
unsafe fn sdot_quad<const LANE: usize, const P: usize, const N: usize>(
    sums: &mut [[int32x4_t; N]; P],
    inputs: [int8x16_t; P],
    weights: *const i8,
) {
    for n in 0..N {
        // SAFETY: as promised to this function.
        unsafe {
            let weights = vld1q_s8(weights.add((LANE * N + n) * 16));
            for p in 0..P {
                sums[p][n] = sdot_lane::<LANE>(sums[p][n], weights, inputs[p]);
            }
        }
    }
}

// SAFETY: plain `sdot`; the kernels are built only where the processor has it.
unsafe impl Dots for Sdot {
    const NARROW_SUM: bool = true;
    type Sum = int32x4_t;

    #[inline(always)]
    unsafe fn start(finish: &Finish, channel: usize) -> int32x4_t {
        // SAFETY: as promised to this function.
        unsafe { finish.bias(channel) }
    }

    #[inline(always)]
    unsafe fn quads<const Q: usize, const P: usize, const N: usize>(
        sums: &mut [[int32x4_t; N]; P],
        inputs: [int8x16_t; P],
        weights: *const i8,
    ) {
        // SAFETY: `Q * N` vectors lie at `weights`, and the processor has `sdot`.
        unsafe {
            // Written out: the compiler leaves a loop of branches.
            sdot_quad::<0, P, N>(sums, inputs, weights);
            if Q > 1 {
                sdot_quad::<1, P, N>(sums, inputs, weights);
            }
            if Q > 2 {
                sdot_quad::<2, P, N>(sums, inputs, weights);
            }
            if Q > 3 {
                sdot_quad::<3, P, N>(sums, inputs, weights);
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

impl Halves {
    /// [`Halves::one`] for two pixels, in this order: left to itself, the compiler begins many products early and then
    /// has to spill the sums.
    ///
    /// # Safety
    /// A vector lies at `w`.
    #[inline(always)]
    unsafe fn one_of_two(mut sums: [Self; 2], x: [int8x16_t; 2], w: *const i8) -> [Self; 2] {
        // SAFETY: as promised to this function; NEON is part of every 64-bit ARM target.
        unsafe {
            asm!(
                "ldr {w:q}, [{at}]",
                "smull {a:v}.8h, {x0:v}.8b, {w:v}.8b",
                "smull2 {b:v}.8h, {x0:v}.16b, {w:v}.16b",
                "smull {c:v}.8h, {x1:v}.8b, {w:v}.8b",
                "smull2 {d:v}.8h, {x1:v}.16b, {w:v}.16b",
                "sadalp {s0:v}.4s, {a:v}.8h",
                "sadalp {s1:v}.4s, {b:v}.8h",
                "sadalp {s2:v}.4s, {c:v}.8h",
                "sadalp {s3:v}.4s, {d:v}.8h",
                x0 = in(vreg) x[0],
                x1 = in(vreg) x[1],
                at = in(reg) w,
                w = out(vreg) _,
                s0 = inout(vreg) sums[0].0,
                s1 = inout(vreg) sums[0].1,
                s2 = inout(vreg) sums[1].0,
                s3 = inout(vreg) sums[1].1,
                a = out(vreg) _,
                b = out(vreg) _,
                c = out(vreg) _,
                d = out(vreg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        sums
    }

    /// [`Halves::two`] for two pixels, as in [`Halves::one_of_two`]; the second vector of weights is `STEP` further.
    ///
    /// # Safety
    /// Both vectors lie there.
    #[inline(always)]
    unsafe fn two_pixels<const STEP: usize>(mut sums: [Self; 2], x: [[int8x16_t; 2]; 2], w: *const i8) -> [Self; 2] {
        // SAFETY: as promised to this function; NEON is part of every 64-bit ARM target.
        unsafe {
            asm!(
                "ldr {w0:q}, [{at}]",
                "ldr {w1:q}, [{at}, #{step}]",
                "smull {a:v}.8h, {x0:v}.8b, {w0:v}.8b",
                "smull2 {b:v}.8h, {x0:v}.16b, {w0:v}.16b",
                "smull {c:v}.8h, {x2:v}.8b, {w0:v}.8b",
                "smull2 {d:v}.8h, {x2:v}.16b, {w0:v}.16b",
                "smlal {a:v}.8h, {x1:v}.8b, {w1:v}.8b",
                "smlal2 {b:v}.8h, {x1:v}.16b, {w1:v}.16b",
                "smlal {c:v}.8h, {x3:v}.8b, {w1:v}.8b",
                "smlal2 {d:v}.8h, {x3:v}.16b, {w1:v}.16b",
                "sadalp {s0:v}.4s, {a:v}.8h",
                "sadalp {s1:v}.4s, {b:v}.8h",
                "sadalp {s2:v}.4s, {c:v}.8h",
                "sadalp {s3:v}.4s, {d:v}.8h",
                x0 = in(vreg) x[0][0],
                x1 = in(vreg) x[0][1],
                x2 = in(vreg) x[1][0],
                x3 = in(vreg) x[1][1],
                at = in(reg) w,
                step = const STEP * 16,
                w0 = out(vreg) _,
                w1 = out(vreg) _,
                s0 = inout(vreg) sums[0].0,
                s1 = inout(vreg) sums[0].1,
                s2 = inout(vreg) sums[1].0,
                s3 = inout(vreg) sums[1].1,
                a = out(vreg) _,
                b = out(vreg) _,
                c = out(vreg) _,
                d = out(vreg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        sums
    }
}

/// Adds one quad of each pixel.
///
/// # Safety
/// `N` vectors lie at `weights`.
#[inline(always)]
unsafe fn one_quad<const P: usize, const N: usize>(
    sums: &mut [[Halves; N]; P],
    inputs: [int8x16_t; P],
    quad: usize,
    weights: *const i8,
) {
    // SAFETY: as promised to this function.
    unsafe {
        for p in (0..P - P % 2).step_by(2) {
            let x = [spread(inputs[p], quad), spread(inputs[p + 1], quad)];
            for n in 0..N {
                let at = weights.add(n * 16);
                [sums[p][n], sums[p + 1][n]] = Halves::one_of_two([sums[p][n], sums[p + 1][n]], x, at);
            }
        }
        if P % 2 == 1 {
            let x = spread(inputs[P - 1], quad);
            for n in 0..N {
                sums[P - 1][n] = sums[P - 1][n].one(x, vld1q_s8(weights.add(n * 16)));
            }
        }
    }
}

// SAFETY: NEON is part of every 64-bit ARM target.
unsafe impl Dots for Pairs {
    const NARROW_SUM: bool = false;
    type Sum = Halves;

    #[inline(always)]
    unsafe fn start(finish: &Finish, channel: usize) -> Halves {
        // SAFETY: as promised to this function.
        let [low, high] = unsafe { finish.bias_halves(channel) };
        Halves(low, high)
    }

    #[inline(always)]
    unsafe fn quads<const Q: usize, const P: usize, const N: usize>(
        sums: &mut [[Halves; N]; P],
        inputs: [int8x16_t; P],
        weights: *const i8,
    ) {
        // SAFETY: `Q * N` vectors lie at `weights`.
        unsafe {
            for quad in (0..Q - Q % 2).step_by(2) {
                let x = |p: usize| [spread(inputs[p], quad), spread(inputs[p], quad + 1)];
                for p in (0..P - P % 2).step_by(2) {
                    let x = [x(p), x(p + 1)];
                    for n in 0..N {
                        let at = weights.add((quad * N + n) * 16);
                        [sums[p][n], sums[p + 1][n]] = Halves::two_pixels::<N>([sums[p][n], sums[p + 1][n]], x, at);
                    }
                }
                if P % 2 == 1 {
                    let x = x(P - 1);
                    for n in 0..N {
                        let at = weights.add((quad * N + n) * 16);
                        sums[P - 1][n] = sums[P - 1][n].two(x, [vld1q_s8(at), vld1q_s8(at.add(16 * N))]);
                    }
                }
            }
            if Q % 2 == 1 {
                one_quad(sums, inputs, Q - 1, weights.add((Q - 1) * N * 16));
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
    unsafe fn start(finish: &Finish, channel: usize) -> Halves {
        // SAFETY: as promised to this function.
        let [low, high] = unsafe { finish.bias_halves(channel) };
        Halves(low, high)
    }

    #[inline(always)]
    unsafe fn quads<const Q: usize, const P: usize, const N: usize>(
        sums: &mut [[Halves; N]; P],
        inputs: [int8x16_t; P],
        weights: *const i8,
    ) {
        for quad in 0..Q {
            // SAFETY: `Q * N` vectors lie at `weights`.
            unsafe { one_quad(sums, inputs, quad, weights.add(quad * N * 16)) };
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
