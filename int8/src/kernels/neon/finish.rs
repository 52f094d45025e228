//! What becomes of the sums: scale, activation, bounds, rounding, the bytes written.
//!
//! The common case, bytes without an activation, is written into the loops that need it and avoids the conversions
//! between integers and floats, which take the multiplier's pipe for two cycles each on most cores: a sum that is known
//! to lie in `low..low + 2^23` becomes a float when the bits of `2^23 - low` are added (they are in the packed bias)
//! and `2^23 - low` is subtracted as a float, both exact; and a value between -2^15 and 2^15 is rounded, half to even,
//! when `1.5 * 2^23` is added, which leaves the integer in the low 16 bits. Whether that holds for every possible input
//! is computed from the weights when a layer is packed. All else takes conversions, in a function of its own.

use std::arch::aarch64::*;

use crate::kernels::{Activation, BLOCK, Memory, Post, Store};

/// The bits of 2^23: floats from there to 2^24 are the integers.
const INTEGERS: i32 = 0x4B00_0000;
/// 1.5 * 2^23: added to a small float, it leaves the rounded value in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Values up to here, zero-point included, fit 16 bits.
const SMALL: f64 = 32_000.0;

/// The least and the greatest sum of products of a channel, whatever the input.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reach {
    least: i64,
    greatest: i64,
    total: i64,
}

impl Reach {
    /// Of these weights.
    pub(super) fn of(weights: impl Iterator<Item = i8>) -> Self {
        weights.fold(Self::default(), |reach, weight| {
            let weight = i64::from(weight);
            Self {
                least: reach.least + weight.min(0) * 255,
                greatest: reach.greatest + weight.max(0) * 255,
                total: reach.total + weight,
            }
        })
    }
}

/// [`Post`] made ready.
#[derive(Debug)]
pub(super) struct Finish {
    /// Where the sums of `(x - 128) * weight` begin.
    bias: Box<[i32]>,
    /// The same with a 0 behind each, for sums in two halves.
    bias_halves: Box<[i32]>,
    /// Subtracted from a quick sum that was read as a float.
    offset: Box<[f32]>,
    /// For each block of channels.
    quick: Box<[bool]>,
    zero_point: i16,
    bounds: [u8; 2],
    post: Post,
}

impl Finish {
    /// For channels with these weights.
    pub(super) fn new(post: Post, reach: &[Reach]) -> Self {
        let quick: Box<[bool]> =
            (0..post.bias.len()).step_by(BLOCK).map(|block| fits_quick(&post, reach, block)).collect();
        let reach_of = |channel: usize| reach.get(channel).copied().unwrap_or_default();
        let low = |channel: usize| i64::from(post.bias[channel]) + reach_of(channel).least;
        let shift = |channel: usize| if quick[channel / BLOCK] { i64::from(INTEGERS) - low(channel) } else { 0 };
        // Sums wrap: only the last value has to be right, and it fits.
        let bias = |channel: usize| i64::from(post.bias[channel]) + 128 * reach_of(channel).total + shift(channel);
        let channels = 0..post.bias.len();
        let (zero_point, bounds) = match post.store {
            Store::U8 { low, high, zero_point } => {
                (zero_point as i16, [(low as i32 + zero_point) as u8, (high as i32 + zero_point) as u8])
            }
            Store::F32 { .. } => (0, [0, 255]),
        };
        Self {
            bias: channels.clone().map(|channel| bias(channel) as i32).collect(),
            bias_halves: channels.clone().flat_map(|channel| [bias(channel) as i32, 0]).collect(),
            offset: channels.map(|channel| (8_388_608 - low(channel)) as f32).collect(),
            quick,
            zero_point,
            bounds,
            post,
        }
    }

    /// # Safety
    /// The layer has `channel`.
    #[inline(always)]
    unsafe fn is_quick(&self, channel: usize) -> bool {
        // SAFETY: as promised to this function.
        unsafe { *self.quick.get_unchecked(channel / BLOCK) }
    }

    /// Where the sums of four channels begin.
    ///
    /// # Safety
    /// The layer has `channel`, a multiple of four.
    #[inline(always)]
    pub(super) unsafe fn bias(&self, channel: usize) -> int32x4_t {
        // SAFETY: the channels are filled up to a multiple of 16.
        unsafe { vld1q_s32(self.bias.as_ptr().add(channel)) }
    }

    /// The same as two vectors, with a 0 behind each.
    ///
    /// # Safety
    /// As for [`Finish::bias`].
    #[inline(always)]
    pub(super) unsafe fn bias_halves(&self, channel: usize) -> [int32x4_t; 2] {
        // SAFETY: the channels are filled up to a multiple of 16.
        unsafe {
            let at = self.bias_halves.as_ptr().add(2 * channel);
            [vld1q_s32(at), vld1q_s32(at.add(4))]
        }
    }

    /// Writes the outcome of the sums of `P` pixels, `4 * N` channels from `channel` of which `live` exist.
    ///
    /// # Safety
    /// `outputs` are the running task's outputs of `channel`.
    #[inline(always)]
    pub(super) unsafe fn write<const P: usize, const N: usize>(
        &self,
        memory: Memory,
        outputs: [usize; P],
        channel: usize,
        live: usize,
        sums: [[int32x4_t; N]; P],
    ) {
        // SAFETY: as promised to this function.
        unsafe {
            if self.is_quick(channel) {
                self.quick(memory, outputs, channel, live, sums);
            } else {
                // Copied here, lest the sums go to memory on the way above too.
                let mut copy = [[vdupq_n_s32(0); N]; P];
                for p in 0..P {
                    for n in 0..N {
                        std::ptr::write_volatile(&mut copy[p][n], sums[p][n]);
                    }
                }
                self.general(memory, &outputs, channel, live, &copy);
            }
        }
    }

    /// Writes the outcome of the sums of four pixels and `C` channels; a vector holds the pixels of a channel, without
    /// bias.
    ///
    /// # Safety
    /// As for [`Finish::write`].
    #[inline(always)]
    pub(super) unsafe fn write_columns<const C: usize>(
        &self,
        memory: Memory,
        outputs: [usize; 4],
        channel: usize,
        sums: [int32x4_t; C],
    ) {
        let with_bias = |c: usize| {
            // SAFETY: the channels are filled up to a multiple of 16.
            unsafe { vaddq_s32(sums[c], vdupq_n_s32(*self.bias.get_unchecked(channel + c))) }
        };
        // SAFETY: as promised to this function.
        unsafe {
            if self.is_quick(channel) {
                let of = |values: &[f32], i: usize| vdupq_n_f32(*values.get_unchecked(channel + i.min(C - 1)));
                let sums = from_fn4(|i| with_bias(i.min(C - 1)));
                let (offset, scale) = (from_fn4(|i| of(&self.offset, i)), from_fn4(|i| of(&self.post.scale, i)));
                let mut bytes = [[0u8; 4]; 4];
                vst1q_u8(bytes.as_mut_ptr().cast(), self.bytes(sums, offset, scale));
                for p in 0..4 {
                    for c in 0..C {
                        memory.bytes.add(outputs[p] + c).write(bytes[c][p]);
                    }
                }
            } else {
                let mut columns = [[0i32; 4]; C];
                for c in 0..C {
                    vst1q_s32(columns[c].as_mut_ptr(), with_bias(c));
                }
                let row = |p: usize| -> [i32; 4] { std::array::from_fn(|c| if c < C { columns[c][p] } else { 0 }) };
                let rows = std::array::from_fn::<_, 4, _>(|p| [vld1q_s32(row(p).as_ptr())]);
                self.general(memory, &outputs, channel, C, &rows);
            }
        }
    }

    #[inline(always)]
    unsafe fn quick<const P: usize, const N: usize>(
        &self,
        memory: Memory,
        outputs: [usize; P],
        channel: usize,
        live: usize,
        sums: [[int32x4_t; N]; P],
    ) {
        // Vectors of four channels, four of them at a time: one pixel's, or of several pixels with fewer channels.
        let span = if N == 3 { 4 } else { N };
        let vector = |i: usize| (i % span).min(N - 1);
        // SAFETY: the channels are filled up to a multiple of 16; outputs as promised.
        unsafe {
            let of = |values: &[f32], i: usize| vld1q_f32(values.as_ptr().add(channel + 4 * vector(i)));
            let (offset, scale) = (from_fn4(|i| of(&self.offset, i)), from_fn4(|i| of(&self.post.scale, i)));
            for first in (0..P).step_by(4 / span) {
                let pixel = |i: usize| (first + i / span).min(P - 1);
                let bytes = self.bytes(from_fn4(|i| sums[pixel(i)][vector(i)]), offset, scale);
                let at = |p: usize| memory.bytes.add(outputs[first + p]);
                for p in 0..(4 / span).min(P - first) {
                    if live >= 4 * N {
                        put_all::<N>(at(p), bytes, p);
                    } else {
                        put(at(p), bytes, p * span, live);
                    }
                }
            }
        }
    }

    /// The bytes of sixteen quick sums.
    #[inline(always)]
    unsafe fn bytes(&self, sums: [int32x4_t; 4], offset: [float32x4_t; 4], scale: [float32x4_t; 4]) -> uint8x16_t {
        // SAFETY: registers only, NEON is part of every 64-bit ARM target.
        unsafe {
            let round = vdupq_n_f32(ROUND);
            let rounded: [int16x8_t; 4] = from_fn4(|i| {
                let value = vmulq_f32(vsubq_f32(vreinterpretq_f32_s32(sums[i]), offset[i]), scale[i]);
                vreinterpretq_s16_f32(vaddq_f32(value, round))
            });
            let zero_point = vdupq_n_s16(self.zero_point);
            let low = vaddq_s16(vuzp1q_s16(rounded[0], rounded[1]), zero_point);
            let high = vaddq_s16(vuzp1q_s16(rounded[2], rounded[3]), zero_point);
            let bytes = vqmovun_high_s16(vqmovun_s16(low), high);
            vminq_u8(vmaxq_u8(bytes, vdupq_n_u8(self.bounds[0])), vdupq_n_u8(self.bounds[1]))
        }
    }

    /// Any activation, any sum, any output. Called cold, so that it is this call that pays for saving registers.
    #[cold]
    #[inline(never)]
    unsafe fn general<const N: usize>(
        &self,
        memory: Memory,
        outputs: &[usize],
        channel: usize,
        live: usize,
        sums: &[[int32x4_t; N]],
    ) {
        for (output, sums) in outputs.iter().zip(sums) {
            for n in 0..N.min(live.div_ceil(4)) {
                let (at, live) = (output + 4 * n, live - 4 * n);
                // SAFETY: as promised to this function; the channels are filled up to a multiple of 16.
                unsafe {
                    let value = self.value(sums[n], channel + 4 * n);
                    match self.post.store {
                        Store::U8 { low, high, .. } => {
                            let value = clamp(value, vdupq_n_f32(low), vdupq_n_f32(high));
                            let rounded = vaddw_s16(vcvtnq_s32_f32(value), vdup_n_s16(self.zero_point));
                            let narrow =
                                vmovn_u16(vcombine_u16(vmovn_u32(vreinterpretq_u32_s32(rounded)), vdup_n_u16(0)));
                            put(memory.bytes.add(at), vcombine_u8(narrow, narrow), 0, live.min(4));
                        }
                        Store::F32 { low, high } => {
                            let value = clamp(value, vdupq_n_f32(low), vdupq_n_f32(high));
                            let mut lanes = [0f32; 4];
                            vst1q_f32(lanes.as_mut_ptr(), value);
                            memory.floats.add(at).copy_from_nonoverlapping(lanes.as_ptr(), live.min(4));
                        }
                    }
                }
            }
        }
    }

    /// Four values behind the activation.
    #[inline(always)]
    unsafe fn value(&self, sum: int32x4_t, channel: usize) -> float32x4_t {
        // SAFETY: the channels are filled up to a multiple of 16.
        unsafe {
            let value = vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(self.post.scale.as_ptr().add(channel)));
            match &self.post.activation {
                Activation::None => value,
                Activation::Slope(slope) => {
                    let sloped = vmulq_f32(value, vld1q_f32(slope.as_ptr().add(channel)));
                    vbslq_f32(vcltzq_f32(value), sloped, value)
                }
                Activation::HardSwish { inverse } => {
                    let gate = vaddq_f32(vmulq_f32(value, vdupq_n_f32(1.0 / 6.0)), vdupq_n_f32(0.5));
                    let gate = clamp(gate, vdupq_n_f32(0.0), vdupq_n_f32(1.0));
                    vmulq_f32(vmulq_f32(value, gate), vdupq_n_f32(*inverse))
                }
            }
        }
    }
}

/// Whether the way without conversions is exact for every input and each channel of a block.
fn fits_quick(post: &Post, reach: &[Reach], block: usize) -> bool {
    const LIMIT: i64 = 1 << 23;
    let fits = |channel: usize| {
        let (bias, reach) = (i64::from(post.bias[channel]), reach[channel]);
        let (low, high) = (bias + reach.least, bias + reach.greatest);
        let largest = low.abs().max(high.abs());
        high - low < LIMIT && largest <= LIMIT && largest as f64 * f64::from(post.scale[channel]) < SMALL
    };
    matches!((&post.activation, post.store), (Activation::None, Store::U8 { .. }))
        && (block..reach.len().min(block + BLOCK)).all(fits)
}

/// As the definition has it: NaN becomes `low`, and of two zeros the bound wins.
#[inline(always)]
fn clamp(value: float32x4_t, low: float32x4_t, high: float32x4_t) -> float32x4_t {
    // SAFETY: registers only, NEON is part of every 64-bit ARM target.
    unsafe {
        let value = vbslq_f32(vcgtq_f32(value, low), value, low);
        vbslq_f32(vcgtq_f32(high, value), value, high)
    }
}

#[inline(always)]
fn from_fn4<T>(f: impl Fn(usize) -> T) -> [T; 4] {
    [f(0), f(1), f(2), f(3)]
}

/// Writes the `4 * N` bytes of the `p`th pixel in a vector of [`Finish::quick`].
///
/// # Safety
/// They may be written.
#[inline(always)]
unsafe fn put_all<const N: usize>(at: *mut u8, bytes: uint8x16_t, p: usize) {
    // SAFETY: as promised to this function.
    unsafe {
        match (N, p) {
            (4, _) => vst1q_u8(at, bytes),
            (3, _) => {
                vst1_u8(at, vget_low_u8(bytes));
                at.add(8).cast::<u32>().write_unaligned(lane_u32(bytes, 2));
            }
            (2, 0) => vst1_u8(at, vget_low_u8(bytes)),
            (2, _) => vst1_u8(at, vget_high_u8(bytes)),
            _ => at.cast::<u32>().write_unaligned(lane_u32(bytes, p)),
        }
    }
}

/// Writes `live` bytes, fewer than 16, of a vector from its 32-bit lane `lane` on.
///
/// # Safety
/// They may be written, and lie within the vector.
#[cold]
#[inline(never)]
unsafe fn put(at: *mut u8, bytes: uint8x16_t, lane: usize, live: usize) {
    // SAFETY: as promised to this function.
    unsafe {
        let mut copy = [0u8; 32];
        vst1q_u8(copy.as_mut_ptr(), bytes);
        put_tail(at, copy.as_ptr().add(4 * lane), live);
    }
}

/// Copies `live` bytes, fewer than 16.
///
/// # Safety
/// They may be read and written.
#[inline(always)]
unsafe fn put_tail(mut at: *mut u8, mut from: *const u8, live: usize) {
    // SAFETY: as promised to this function.
    unsafe {
        if live & 8 != 0 {
            at.cast::<u64>().write_unaligned(from.cast::<u64>().read_unaligned());
            (at, from) = (at.add(8), from.add(8));
        }
        if live & 4 != 0 {
            at.cast::<u32>().write_unaligned(from.cast::<u32>().read_unaligned());
            (at, from) = (at.add(4), from.add(4));
        }
        if live & 2 != 0 {
            at.cast::<u16>().write_unaligned(from.cast::<u16>().read_unaligned());
            (at, from) = (at.add(2), from.add(2));
        }
        if live & 1 != 0 {
            at.write(from.read());
        }
    }
}

#[inline(always)]
fn lane_u32(bytes: uint8x16_t, lane: usize) -> u32 {
    // SAFETY: registers only, NEON is part of every 64-bit ARM target.
    unsafe {
        let lanes = vreinterpretq_u32_u8(bytes);
        match lane {
            0 => vgetq_lane_u32::<0>(lanes),
            1 => vgetq_lane_u32::<1>(lanes),
            2 => vgetq_lane_u32::<2>(lanes),
            _ => vgetq_lane_u32::<3>(lanes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(scale: f32, weight: i8, terms: usize) -> Finish {
        let store = Store::U8 { low: -3.0, high: 252.0, zero_point: 3 };
        let (bias, scale) = (vec![5; BLOCK].into(), vec![scale; BLOCK].into());
        let reach: Vec<Reach> = (0..4).map(|_| Reach::of((0..terms).map(|_| weight))).collect();
        Finish::new(Post { bias, scale, activation: Activation::None, store }, &reach)
    }

    #[test]
    fn usual_layers_are_written_without_conversions() {
        assert!(*finish(1e-3, 40, 576).quick == [true]);
    }

    #[test]
    fn sums_and_values_out_of_reach_take_the_general_way() {
        assert!(*finish(1e-3, 127, 576).quick == [false], "sums span 2^23");
        assert!(*finish(1.0, 40, 576).quick == [false], "values exceed 16 bits");
    }
}
