//! 256-bit vectors: everything but the product itself, which a set of instructions gives.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::BLOCK;
use super::finish::Bounds;
use super::{Bytes, Diet, Lanes};

/// Products that a set of instructions has.
///
/// # Safety
/// As for [`Simd`](super::Simd).
pub(super) trait Product: std::fmt::Debug + Send + Sync + 'static {
    /// As [`Lanes::DIET`].
    const DIET: Diet;
    /// As [`Lanes::TILE`], for 16 channels.
    const WHOLE_TILE: usize;
    /// As [`Lanes::TILE`], for 8 channels.
    const HALF_TILE: usize;
    /// As [`Bytes::TAPS`].
    const TAPS: usize;
    /// As [`Bytes::SATURATES`].
    const SATURATES: bool;

    /// Adds the products of a dense layer: pairs of 16-bit integers, or quads of bytes.
    unsafe fn dense(sums: __m256i, input: __m256i, weights: __m256i) -> __m256i;
    /// The same, with weights that lie `AT` bytes behind `weights`.
    #[inline(always)]
    unsafe fn dense_at<const AT: usize>(sums: __m256i, input: __m256i, weights: *const u8) -> __m256i {
        // SAFETY: 32 bytes of weights, by the callers' contracts.
        unsafe { Self::dense(sums, input, _mm256_load_si256(weights.add(AT).cast())) }
    }
    /// Adds the products of [`Bytes::TAPS`] taps in each lane.
    unsafe fn bytes(sums: __m256i, taps: __m256i, weights: __m256i) -> __m256i;
}

/// Bytes of a window in each lane.
#[inline(always)]
unsafe fn window(from: *const u8, shuffle: u32) -> __m256i {
    // SAFETY: 16 bytes, by the callers' contracts.
    unsafe {
        let window = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
        _mm256_shuffle_epi8(window, _mm256_set1_epi32(shuffle as i32))
    }
}

/// Eight sums, scaled and rounded.
#[inline(always)]
pub(super) unsafe fn round<const SLOPE: bool>(sums: __m256i, scale: *const f32, slope: *const f32) -> __m256i {
    // SAFETY: 8 scales and slopes can be read, by the callers' contracts.
    unsafe {
        let slope = if SLOPE { _mm256_loadu_ps(slope) } else { _mm256_setzero_ps() };
        rounded::<SLOPE>(sums, _mm256_loadu_ps(scale), slope)
    }
}

/// The same with scales and slopes at hand.
#[inline(always)]
pub(super) unsafe fn rounded<const SLOPE: bool>(sums: __m256i, scale: __m256, slope: __m256) -> __m256i {
    // SAFETY: arithmetic only, compiled for AVX2.
    unsafe {
        let value = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scale);
        let value = match SLOPE {
            true => _mm256_blendv_ps(value, _mm256_mul_ps(value, slope), value),
            false => value,
        };
        _mm256_cvtps_epi32(value)
    }
}

/// Writes the first `count` of 16 bytes.
///
/// # Safety
/// `count` bytes can be written at `to`.
#[inline(always)]
unsafe fn store_some(bytes: __m128i, to: *mut u8, count: usize) {
    // SAFETY: each piece lies within `count` bytes.
    unsafe {
        if count >= BLOCK {
            _mm_storeu_si128(to.cast(), bytes);
            return;
        }
        store_fewer(&bytes, to, count);
    }
}

/// Writes the first `count` of 16 bytes, not all. By itself, so that the loops that end in it are short enough to be unrolled.
///
/// # Safety
/// `count` bytes can be written at `to`.
#[inline(never)]
#[target_feature(enable = "avx2")]
unsafe fn store_fewer(bytes: &__m128i, to: *mut u8, count: usize) {
    // SAFETY: each piece lies within `count` bytes.
    unsafe {
        let bytes = *bytes;
        let (mut rest, mut to) = (bytes, to);
        if count & 8 != 0 {
            _mm_storel_epi64(to.cast(), rest);
            (rest, to) = (_mm_srli_si128::<8>(rest), to.add(8));
        }
        if count & 4 != 0 {
            to.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(rest));
            (rest, to) = (_mm_srli_si128::<4>(rest), to.add(4));
        }
        if count & 2 != 0 {
            to.cast::<i16>().write_unaligned(_mm_cvtsi128_si32(rest) as i16);
            (rest, to) = (_mm_srli_si128::<2>(rest), to.add(2));
        }
        if count & 1 != 0 {
            to.write(_mm_cvtsi128_si32(rest) as u8);
        }
    }
}

/// 16 words to bytes within the bounds, zero-point added.
#[inline(always)]
unsafe fn bytes_of(low: __m128i, high: __m128i, bounds: &Bounds) -> __m128i {
    // SAFETY: loads from `bounds`, the rest is arithmetic, compiled for AVX2.
    unsafe {
        let bytes = _mm_packus_epi16(low, high);
        let bytes = _mm_max_epu8(bytes, _mm_load_si128(bounds.low.as_ptr().cast()));
        _mm_min_epu8(bytes, _mm_load_si128(bounds.high.as_ptr().cast()))
    }
}

/// How the sums of 16 channels lie in two vectors, so that packing brings them into order.
const TWO_ORDER: [usize; BLOCK] = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];
/// How the sums of 32 channels lie in four vectors, likewise.
#[rustfmt::skip]
const FOUR_ORDER: [usize; 2 * BLOCK] = [
    0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23,
    8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31,
];

/// Finishing of 16 channels in two vectors, whatever the products.
#[inline(always)]
pub(super) unsafe fn store_two_vectors<const NATURAL: bool>(
    rounded: [__m256i; 2],
    bounds: &Bounds,
    to: *mut u8,
    count: usize,
) {
    // SAFETY: `count` bytes can be written, by the callers' contracts.
    unsafe {
        let words = _mm256_packs_epi32(rounded[0], rounded[1]);
        if NATURAL {
            store_some(
                _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)),
                to,
                count,
            );
            return;
        }
        let words = _mm256_adds_epi16(words, _mm256_load_si256(bounds.zero.as_ptr().cast()));
        let bytes = bytes_of(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words), bounds);
        store_some(bytes, to, count);
    }
}

/// Writes 16 words each of two pixels as bytes within the bounds.
///
/// # Safety
/// 16 bytes can be written at both places; `NATURAL` only where [`Bounds::natural`] is.
#[inline(always)]
pub(super) unsafe fn put_two<const NATURAL: bool>(first: __m256i, second: __m256i, bounds: &Bounds, to: [*mut u8; 2]) {
    // SAFETY: by this function's contract.
    unsafe {
        let mut bytes = _mm256_packus_epi16(first, second);
        if !NATURAL {
            bytes = _mm256_max_epu8(bytes, _mm256_load_si256(bounds.low.as_ptr().cast()));
            bytes = _mm256_min_epu8(bytes, _mm256_load_si256(bounds.high.as_ptr().cast()));
        }
        let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
        _mm_storeu_si128(to[0].cast(), _mm256_castsi256_si128(bytes));
        _mm_storeu_si128(to[1].cast(), _mm256_extracti128_si256::<1>(bytes));
    }
}

/// Finishing of 8 channels in one vector.
#[inline(always)]
unsafe fn store_one_vector(rounded: __m256i, bounds: &Bounds, to: *mut u8, count: usize) {
    // SAFETY: `count` bytes can be written, by the callers' contracts.
    unsafe {
        let words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded));
        let words = _mm_adds_epi16(words, _mm_load_si128(bounds.zero.as_ptr().cast()));
        store_some(bytes_of(words, words, bounds), to, count);
    }
}

/// Writes the sums of 16 channels in channel order.
#[inline(always)]
unsafe fn spill_two_vectors(sums: [__m256i; 2], to: *mut i32) {
    // SAFETY: 16 values, by the callers' contracts.
    unsafe {
        for (i, sums) in sums.into_iter().enumerate() {
            _mm_storeu_si128(to.add(i * 4).cast(), _mm256_castsi256_si128(sums));
            _mm_storeu_si128(to.add(8 + i * 4).cast(), _mm256_extracti128_si256::<1>(sums));
        }
    }
}

/// 16 channels.
#[derive(Debug)]
pub(super) struct Two<P>(PhantomData<P>);

impl<P: Product> Lanes for Two<P> {
    type Sums = [__m256i; 2];
    type Input = __m256i;

    const CHANNELS: usize = BLOCK;
    const ORDER: &'static [usize] = &TWO_ORDER;
    const TILE: usize = P::WHOLE_TILE;
    const DIET: Diet = P::DIET;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::Sums {
        // SAFETY: 16 values, by the contract.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())] }
    }

    #[inline(always)]
    unsafe fn quad(bytes: i32) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_set1_epi32(bytes) }
    }

    #[inline(always)]
    unsafe fn window(from: *const u8, shuffle: u32) -> __m256i {
        // SAFETY: by the contract.
        unsafe { window(from, shuffle) }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, input: __m256i, weights: *const u8) -> Self::Sums {
        // SAFETY: 64 bytes of weights, by the contract.
        unsafe { [P::dense_at::<0>(sums[0], input, weights), P::dense_at::<32>(sums[1], input, weights)] }
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(sums: Self::Sums, scale: *const f32, slope: *const f32) -> Self::Sums {
        // SAFETY: 16 of each, by the contract.
        unsafe { [round::<SLOPE>(sums[0], scale, slope), round::<SLOPE>(sums[1], scale.add(8), slope.add(8))] }
    }

    #[inline(always)]
    unsafe fn store<const NATURAL: bool>(rounded: Self::Sums, bounds: &Bounds, to: *mut u8, count: usize) {
        // SAFETY: by the contract.
        unsafe { store_two_vectors::<NATURAL>(rounded, bounds, to, count) };
    }

    #[inline(always)]
    unsafe fn spill(sums: Self::Sums, to: *mut i32) {
        // SAFETY: by the contract.
        unsafe { spill_two_vectors(sums, to) };
    }
}

/// 32 channels.
#[derive(Debug)]
pub(super) struct Four<P>(PhantomData<P>);

impl<P: Product> Lanes for Four<P> {
    type Sums = [__m256i; 4];
    type Input = __m256i;

    const CHANNELS: usize = 2 * BLOCK;
    const ORDER: &'static [usize] = &FOUR_ORDER;
    const TILE: usize = P::WHOLE_TILE / 2;
    const DIET: Diet = P::DIET;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::Sums {
        // SAFETY: 32 values, by the contract.
        unsafe {
            let at = |i: usize| _mm256_loadu_si256(from.add(i * 8).cast());
            [at(0), at(1), at(2), at(3)]
        }
    }

    #[inline(always)]
    unsafe fn quad(bytes: i32) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_set1_epi32(bytes) }
    }

    #[inline(always)]
    unsafe fn window(from: *const u8, shuffle: u32) -> __m256i {
        // SAFETY: by the contract.
        unsafe { window(from, shuffle) }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, input: __m256i, weights: *const u8) -> Self::Sums {
        // SAFETY: 128 bytes of weights, by the contract.
        unsafe {
            [
                P::dense_at::<0>(sums[0], input, weights),
                P::dense_at::<32>(sums[1], input, weights),
                P::dense_at::<64>(sums[2], input, weights),
                P::dense_at::<96>(sums[3], input, weights),
            ]
        }
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(sums: Self::Sums, scale: *const f32, slope: *const f32) -> Self::Sums {
        // SAFETY: 32 of each, by the contract.
        unsafe {
            let at = |i: usize| round::<SLOPE>(sums[i], scale.add(i * 8), slope.add(i * 8));
            [at(0), at(1), at(2), at(3)]
        }
    }

    #[inline(always)]
    unsafe fn store<const NATURAL: bool>(rounded: Self::Sums, bounds: &Bounds, to: *mut u8, count: usize) {
        // SAFETY: `count` bytes can be written, by the contract.
        unsafe {
            let bytes = if NATURAL { pack_naturally(rounded) } else { pack(rounded, bounds) };
            match count {
                32.. => _mm256_storeu_si256(to.cast(), bytes),
                _ => store_some_of_32(bytes, to, count),
            }
        }
    }

    #[inline(always)]
    unsafe fn spill(sums: Self::Sums, to: *mut i32) {
        // SAFETY: 32 values, by the contract.
        unsafe { spill_32(sums, to) };
    }
}

/// 8 channels.
#[derive(Debug)]
pub(super) struct One<P>(PhantomData<P>);

impl<P: Product> Lanes for One<P> {
    type Sums = __m256i;
    type Input = __m256i;

    const CHANNELS: usize = 8;
    const ORDER: &'static [usize] = &[0, 1, 2, 3, 4, 5, 6, 7];
    const TILE: usize = P::HALF_TILE;
    const DIET: Diet = P::DIET;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> __m256i {
        // SAFETY: 8 values, by the contract.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn quad(bytes: i32) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_set1_epi32(bytes) }
    }

    #[inline(always)]
    unsafe fn window(from: *const u8, shuffle: u32) -> __m256i {
        // SAFETY: by the contract.
        unsafe { window(from, shuffle) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, input: __m256i, weights: *const u8) -> __m256i {
        // SAFETY: 32 bytes of weights, by the contract.
        unsafe { P::dense(sums, input, _mm256_load_si256(weights.cast())) }
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(sums: __m256i, scale: *const f32, slope: *const f32) -> __m256i {
        // SAFETY: 8 of each, by the contract.
        unsafe { round::<SLOPE>(sums, scale, slope) }
    }

    #[inline(always)]
    unsafe fn store<const NATURAL: bool>(rounded: __m256i, bounds: &Bounds, to: *mut u8, count: usize) {
        // SAFETY: by the contract.
        unsafe { store_one_vector(rounded, bounds, to, count) };
    }

    #[inline(always)]
    unsafe fn spill(sums: __m256i, to: *mut i32) {
        // SAFETY: 8 values, by the contract.
        unsafe { _mm256_storeu_si256(to.cast(), sums) };
    }
}

/// 32 bytes of a depthwise layer.
#[derive(Debug)]
pub(super) struct Taps<P>(PhantomData<P>);

impl<P: Product> Bytes for Taps<P> {
    type Vector = __m256i;
    type Sums = __m256i;

    const WIDTH: usize = 32;
    const TAPS: usize = P::TAPS;
    const SATURATES: bool = P::SATURATES;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256i {
        // SAFETY: 32 bytes, by the contract.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_two(first: *const u8, second: *const u8) -> __m256i {
        // SAFETY: 16 bytes each, by the contract.
        unsafe { _mm256_loadu2_m128i(second.cast(), first.cast()) }
    }

    #[inline(always)]
    unsafe fn interleave(tap: impl Fn(usize) -> __m256i) -> [__m256i; 4] {
        // SAFETY: arithmetic only, compiled for AVX2.
        unsafe {
            if P::TAPS == 2 {
                let zero = _mm256_setzero_si256();
                let (low, high) = (_mm256_unpacklo_epi8(tap(0), tap(1)), _mm256_unpackhi_epi8(tap(0), tap(1)));
                return [
                    _mm256_unpacklo_epi8(low, zero),
                    _mm256_unpackhi_epi8(low, zero),
                    _mm256_unpacklo_epi8(high, zero),
                    _mm256_unpackhi_epi8(high, zero),
                ];
            }
            interleave([tap(0), tap(1), tap(2), tap(3)])
        }
    }

    #[inline(always)]
    unsafe fn sums(from: *const i32) -> __m256i {
        // SAFETY: 8 values, by the contract.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, quads: __m256i, weights: *const u8) -> __m256i {
        // SAFETY: 32 weights, by the contract.
        unsafe { P::bytes(sums, quads, _mm256_load_si256(weights.cast())) }
    }

    #[inline(always)]
    unsafe fn dot_held(sums: __m256i, quads: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { P::bytes(sums, quads, weights) }
    }

    #[inline(always)]
    unsafe fn finish<const SLOPE: bool>(
        sums: [__m256i; 4],
        scale: *const f32,
        slope: *const f32,
        bounds: &Bounds,
    ) -> __m256i {
        // SAFETY: 32 of each, by the contract.
        unsafe { finish::<SLOPE>(sums, scale, slope, bounds) }
    }

    #[inline(always)]
    unsafe fn store(bytes: __m256i, to: *mut u8) {
        // SAFETY: 32 bytes, by the contract.
        unsafe { _mm256_storeu_si256(to.cast(), bytes) };
    }

    #[inline(always)]
    unsafe fn store_some(bytes: __m256i, to: *mut u8, count: usize) {
        // SAFETY: `count` bytes, by the contract.
        unsafe { store_some_of_32(bytes, to, count) };
    }

    #[inline(always)]
    unsafe fn store_two(bytes: __m256i, first: *mut u8, second: *mut u8, count: usize) {
        // SAFETY: `count` bytes each, by the contract.
        unsafe {
            store_some(_mm256_castsi256_si128(bytes), first, count);
            store_some(_mm256_extracti128_si256::<1>(bytes), second, count);
        }
    }

    #[inline(always)]
    unsafe fn spill(sums: [__m256i; 4], to: *mut i32) {
        // SAFETY: 32 values, by the contract.
        unsafe { spill_32(sums, to) };
    }
}

/// Four vectors by byte position into four vectors of quads.
#[inline(always)]
pub(super) unsafe fn interleave(taps: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: arithmetic only, compiled for AVX2.
    unsafe {
        let (low, high) = (_mm256_unpacklo_epi8(taps[0], taps[1]), _mm256_unpackhi_epi8(taps[0], taps[1]));
        let (low_, high_) = (_mm256_unpacklo_epi8(taps[2], taps[3]), _mm256_unpackhi_epi8(taps[2], taps[3]));
        [
            _mm256_unpacklo_epi16(low, low_),
            _mm256_unpackhi_epi16(low, low_),
            _mm256_unpacklo_epi16(high, high_),
            _mm256_unpackhi_epi16(high, high_),
        ]
    }
}

/// Scales and rounds the sums of 32 bytes.
#[inline(always)]
unsafe fn finish<const SLOPE: bool>(
    sums: [__m256i; 4],
    scale: *const f32,
    slope: *const f32,
    bounds: &Bounds,
) -> __m256i {
    // SAFETY: 32 scales and slopes, by the callers' contracts.
    unsafe {
        let at = |i: usize| round::<SLOPE>(sums[i], scale.add(i * 8), slope.add(i * 8));
        pack([at(0), at(1), at(2), at(3)], bounds)
    }
}

/// Rounded values to bytes in their order where [`Bounds::natural`] is.
#[inline(always)]
unsafe fn pack_naturally(rounded: [__m256i; 4]) -> __m256i {
    // SAFETY: arithmetic only, compiled for AVX2.
    unsafe {
        let (low, high) = (_mm256_packs_epi32(rounded[0], rounded[1]), _mm256_packs_epi32(rounded[2], rounded[3]));
        _mm256_packus_epi16(low, high)
    }
}

/// Rounded values to bytes in their order, within the bounds.
#[inline(always)]
pub(super) unsafe fn pack(rounded: [__m256i; 4], bounds: &Bounds) -> __m256i {
    // SAFETY: loads from `bounds`, the rest is arithmetic, compiled for AVX2.
    unsafe {
        let zero = _mm256_load_si256(bounds.zero.as_ptr().cast());
        let low = _mm256_adds_epi16(_mm256_packs_epi32(rounded[0], rounded[1]), zero);
        let high = _mm256_adds_epi16(_mm256_packs_epi32(rounded[2], rounded[3]), zero);
        let bytes = _mm256_packus_epi16(low, high);
        let bytes = _mm256_max_epu8(bytes, _mm256_load_si256(bounds.low.as_ptr().cast()));
        _mm256_min_epu8(bytes, _mm256_load_si256(bounds.high.as_ptr().cast()))
    }
}

/// Writes the first `count` of 32 bytes.
#[inline(always)]
unsafe fn store_some_of_32(bytes: __m256i, to: *mut u8, count: usize) {
    // SAFETY: `count` bytes, by the callers' contracts.
    unsafe {
        store_some(_mm256_castsi256_si128(bytes), to, count);
        if count > BLOCK {
            store_some(_mm256_extracti128_si256::<1>(bytes), to.add(BLOCK), count - BLOCK);
        }
    }
}

/// Writes the sums of 32 bytes in byte order.
#[inline(always)]
unsafe fn spill_32(sums: [__m256i; 4], to: *mut i32) {
    // SAFETY: 32 values, by the callers' contracts.
    unsafe {
        for (i, sums) in sums.into_iter().enumerate() {
            _mm_storeu_si128(to.add(i * 4).cast(), _mm256_castsi256_si128(sums));
            _mm_storeu_si128(to.add(BLOCK + i * 4).cast(), _mm256_extracti128_si256::<1>(sums));
        }
    }
}
