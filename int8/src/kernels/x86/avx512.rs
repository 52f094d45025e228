//! AVX-512 VNNI: the dot product of bytes in 512-bit registers, and stores that are masked.

use std::arch::x86_64::*;

use super::super::BLOCK;
use super::finish::Bounds;
use super::lanes256::{One, Product, Taps};
use super::{Bytes, Diet, Lanes, Simd, Work};

/// AVX-512 F, BW, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni;

impl Simd for Avx512Vnni {
    type Whole = Sixteen;
    type Half = One<Self>;
    type PairedWhole = Self::Whole;
    type PairedHalf = Self::Half;
    type PairedDouble = Self::Whole;
    type Wide = Taps512;
    type Pair = Taps<Self>;
    type WideByTwo = Self::Wide;
    type PairByTwo = Self::Pair;
    type Along = __m256i;

    const WIDEN: bool = false;
    const ALONG: usize = 32;

    #[inline(always)]
    unsafe fn enter<W: Work>(work: W) {
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn inner<W: Work>(work: W) {
            // SAFETY: by `enter`'s contract.
            unsafe { work.run() }
        }
        // SAFETY: by `enter`'s contract the processor has these instructions.
        unsafe { inner(work) }
    }

    #[inline(always)]
    unsafe fn along(input: *const u8) -> __m256i {
        // SAFETY: 32 bytes, by the contract.
        unsafe { _mm256_loadu_si256(input.cast()) }
    }

    #[inline(always)]
    unsafe fn dot_along(sums: __m256i, input: __m256i, weights: *const u8) -> __m256i {
        // SAFETY: 32 weights, by the contract.
        unsafe { Self::dense(sums, input, _mm256_load_si256(weights.cast())) }
    }
}

impl Product for Avx512Vnni {
    const DIET: Diet = Diet::Quads;
    const WHOLE_TILE: usize = 6;
    const HALF_TILE: usize = 12;
    const TAPS: usize = 4;
    const SATURATES: bool = false;

    #[inline(always)]
    unsafe fn dense(sums: __m256i, input: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_dpbusd_epi32(sums, input, weights) }
    }

    #[inline(always)]
    unsafe fn bytes(sums: __m256i, quads: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_dpbusd_epi32(sums, quads, weights) }
    }
}

/// 16 channels in one vector.
#[derive(Debug)]
pub(super) struct Sixteen;

/// The lowest `count` of 16 lanes.
fn mask(count: usize) -> __mmask16 {
    if count >= BLOCK { !0 } else { (1 << count) - 1 }
}

impl Lanes for Sixteen {
    type Sums = __m512i;
    type Input = __m512i;

    const CHANNELS: usize = BLOCK;
    const ORDER: &'static [usize] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const TILE: usize = 24;
    const BLOCKS: usize = 4;
    const DIET: Diet = Diet::Quads;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> __m512i {
        // SAFETY: 16 values, by the contract.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn quad(bytes: i32) -> __m512i {
        // SAFETY: arithmetic only.
        unsafe { _mm512_set1_epi32(bytes) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, input: __m512i, weights: *const u8) -> __m512i {
        // SAFETY: 64 weights, by the contract.
        unsafe { _mm512_dpbusd_epi32(sums, input, _mm512_load_si512(weights.cast())) }
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(sums: __m512i, scale: *const f32, slope: *const f32) -> __m512i {
        // SAFETY: 16 of each, by the contract.
        unsafe { round::<SLOPE>(sums, scale, slope) }
    }

    #[inline(always)]
    unsafe fn store<const NATURAL: bool>(rounded: __m512i, bounds: &Bounds, to: *mut u8, count: usize) {
        // SAFETY: `count` bytes can be written, by the contract; masked lanes are not.
        unsafe {
            let value = _mm512_add_epi32(rounded, _mm512_load_si512(bounds.wide_zero.as_ptr().cast()));
            let value = _mm512_max_epi32(value, _mm512_load_si512(bounds.wide_low.as_ptr().cast()));
            let value = _mm512_min_epi32(value, _mm512_load_si512(bounds.wide_high.as_ptr().cast()));
            _mm_mask_storeu_epi8(to.cast(), mask(count), _mm512_cvtepi32_epi8(value));
        }
    }

    #[inline(always)]
    unsafe fn spill(sums: __m512i, to: *mut i32) {
        // SAFETY: 16 values, by the contract.
        unsafe { _mm512_storeu_si512(to.cast(), sums) };
    }
}

/// 16 sums, scaled and rounded.
#[inline(always)]
unsafe fn round<const SLOPE: bool>(sums: __m512i, scale: *const f32, slope: *const f32) -> __m512i {
    // SAFETY: 16 of each, by the callers' contracts.
    unsafe {
        let value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(scale));
        let value = match SLOPE {
            true => {
                let below = below_zero(value);
                _mm512_mask_mul_ps(value, below, value, _mm512_loadu_ps(slope))
            }
            false => value,
        };
        _mm512_cvtps_epi32(value)
    }
}

/// Which lanes are below zero.
#[inline(always)]
unsafe fn below_zero(value: __m512) -> __mmask16 {
    // SAFETY: arithmetic only.
    unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(value, _mm512_setzero_ps()) }
}

/// 64 bytes of a depthwise layer.
#[derive(Debug)]
pub(super) struct Taps512;

impl Bytes for Taps512 {
    type Vector = __m512i;
    type Sums = __m512i;

    const WIDTH: usize = 64;
    const TAPS: usize = 4;
    const SATURATES: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: 64 bytes, by the contract.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_two(_: *const u8, _: *const u8) -> __m512i {
        unreachable!("pixels are computed two at a time in 32 bytes only")
    }

    #[inline(always)]
    unsafe fn interleave(tap: impl Fn(usize) -> __m512i) -> [__m512i; 4] {
        // SAFETY: arithmetic only.
        unsafe {
            let taps = [tap(0), tap(1), tap(2), tap(3)];
            let low = (_mm512_unpacklo_epi8(taps[0], taps[1]), _mm512_unpacklo_epi8(taps[2], taps[3]));
            let high = (_mm512_unpackhi_epi8(taps[0], taps[1]), _mm512_unpackhi_epi8(taps[2], taps[3]));
            [
                _mm512_unpacklo_epi16(low.0, low.1),
                _mm512_unpackhi_epi16(low.0, low.1),
                _mm512_unpacklo_epi16(high.0, high.1),
                _mm512_unpackhi_epi16(high.0, high.1),
            ]
        }
    }

    #[inline(always)]
    unsafe fn sums(from: *const i32) -> __m512i {
        // SAFETY: 16 values, by the contract.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, quads: __m512i, weights: *const u8) -> __m512i {
        // SAFETY: 64 weights, by the contract.
        unsafe { _mm512_dpbusd_epi32(sums, quads, _mm512_load_si512(weights.cast())) }
    }

    #[inline(always)]
    unsafe fn finish<const SLOPE: bool>(
        sums: [__m512i; 4],
        scale: *const f32,
        slope: *const f32,
        bounds: &Bounds,
    ) -> __m512i {
        // SAFETY: 64 scales and slopes, by the contract.
        unsafe {
            let at = |i: usize| (scale.add(i * 16), slope.add(i * 16));
            let rounded: [__m512i; 4] = [
                round::<SLOPE>(sums[0], at(0).0, at(0).1),
                round::<SLOPE>(sums[1], at(1).0, at(1).1),
                round::<SLOPE>(sums[2], at(2).0, at(2).1),
                round::<SLOPE>(sums[3], at(3).0, at(3).1),
            ];
            let zero = _mm512_set1_epi16(bounds.zero[0]);
            let low = _mm512_adds_epi16(_mm512_packs_epi32(rounded[0], rounded[1]), zero);
            let high = _mm512_adds_epi16(_mm512_packs_epi32(rounded[2], rounded[3]), zero);
            let bytes = _mm512_packus_epi16(low, high);
            let bytes = _mm512_max_epu8(bytes, _mm512_set1_epi8(bounds.low[0] as i8));
            _mm512_min_epu8(bytes, _mm512_set1_epi8(bounds.high[0] as i8))
        }
    }

    #[inline(always)]
    unsafe fn store(bytes: __m512i, to: *mut u8) {
        // SAFETY: 64 bytes, by the contract.
        unsafe { _mm512_storeu_si512(to.cast(), bytes) };
    }

    #[inline(always)]
    unsafe fn store_some(bytes: __m512i, to: *mut u8, count: usize) {
        // SAFETY: `count` bytes, by the contract; masked bytes are not written.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), !0 >> (64 - count), bytes) };
    }

    #[inline(always)]
    unsafe fn store_two(_: __m512i, _: *mut u8, _: *mut u8, _: usize) {
        unreachable!("pixels are computed two at a time in 32 bytes only")
    }

    #[inline(always)]
    unsafe fn spill(_: [__m512i; 4], _: *mut i32) {
        unreachable!("a line of bytes has no general finish")
    }
}
