//! AVX-512 VNNI: the dot product of bytes in 512-bit registers, and stores that are masked.

use std::arch::x86_64::*;

use super::super::{BLOCK, DenseSpec, DepthwiseSpec, Layer};
use super::finish::Bounds;
use super::lanes256::{One, Product, Taps};
use super::{Bytes, Diet, Lanes, Simd, Work, columns, quarters};

/// AVX-512 F, BW, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni;

impl Simd for Avx512Vnni {
    type Whole = Vectors<1>;
    type Half = Eight;
    type Double = Vectors<2>;
    type Quadruple = Vectors<4>;
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

    fn depthwise_3x3(spec: &DepthwiseSpec) -> Option<Box<dyn Layer>> {
        is_x86_feature_detected!("avx512vbmi").then(|| columns::layer::<Vbmi>(spec)).flatten()
    }

    fn few(spec: &DenseSpec) -> Option<Box<dyn Layer>> {
        quarters::layer::<Self>(spec)
    }

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

/// 16 channels in each of `N` vectors, whose lanes are ordered so that packing puts the bytes side by side in their order.
#[derive(Debug)]
pub(super) struct Vectors<const N: usize>;

/// The channel of each lane of `n` vectors.
pub(super) const fn order(n: usize) -> &'static [usize] {
    match n {
        1 => const { &ordered::<1, BLOCK>([0, 2, 1, 3]) },
        2 => const { &ordered::<2, { 2 * BLOCK }>([0, 2, 1, 3]) },
        _ => const { &ordered::<4, { 4 * BLOCK }>([0, 1, 2, 3]) },
    }
}

/// Pixels of a tile: fewer than the registers hold, so that a tile's products and what becomes of the one before are in the processor's
/// view together.
pub(super) const fn tile(n: usize) -> usize {
    if n == 1 { 8 } else { 4 }
}

/// Packing brings the same quarter of every vector together; `places` says where each quarter goes then.
const fn ordered<const N: usize, const LANES: usize>(places: [usize; 4]) -> [usize; LANES] {
    let mut order = [0; LANES];
    let mut lane = 0;
    while lane < LANES {
        let (vector, quarter) = (lane / BLOCK, lane % BLOCK / 4);
        order[lane] = (places[quarter] * N + vector) * 4 + lane % 4;
        lane += 1;
    }
    order
}

impl<const N: usize> Lanes for Vectors<N> {
    type Sums = [__m512i; N];
    type Input = __m512i;

    const CHANNELS: usize = N * BLOCK;
    const ORDER: &'static [usize] = order(N);
    const TILE: usize = tile(N);
    const DIET: Diet = Diet::Quads;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::Sums {
        // SAFETY: 16 values for each vector, by the contract.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); N];
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = _mm512_loadu_si512(from.add(i * BLOCK).cast());
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn quad(bytes: i32) -> __m512i {
        // SAFETY: arithmetic only.
        unsafe { _mm512_set1_epi32(bytes) }
    }

    #[inline(always)]
    unsafe fn dot(mut sums: Self::Sums, input: __m512i, weights: *const u8) -> Self::Sums {
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: 64 bytes of weights for each vector, by the contract.
            unsafe {
                let weights = _mm512_load_si512(weights.add(i * 64).cast());
                *sums = _mm512_dpbusd_epi32(*sums, input, held(weights));
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(mut sums: Self::Sums, scale: *const f32, slope: *const f32) -> Self::Sums {
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: 16 of each for each vector, by the contract.
            unsafe { *sums = round::<SLOPE>(*sums, scale.add(i * BLOCK), slope.add(i * BLOCK)) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn store<const NATURAL: bool>(rounded: Self::Sums, bounds: &Bounds, to: *mut u8, count: usize) {
        // SAFETY: `count` bytes can be written, by the contract, which is all of them where there are several vectors.
        unsafe {
            match rounded.as_slice() {
                [one] => _mm_mask_storeu_epi8(to.cast(), mask(count), pack_one::<NATURAL>(*one, bounds)),
                [first, second] => _mm256_storeu_si256(to.cast(), pack_two::<NATURAL>(*first, *second, bounds)),
                [a, b, c, d] => _mm512_storeu_si512(to.cast(), pack_four::<NATURAL>([*a, *b, *c, *d], bounds)),
                _ => unreachable!("one, two or four vectors"),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_four<const NATURAL: bool>(
        rounded: [Self::Sums; 4],
        bounds: &Bounds,
        to: *mut u8,
        step: usize,
        count: usize,
    ) {
        // SAFETY: `count` bytes of each pixel can be written, by the contract.
        unsafe {
            match rounded.each_ref().map(|pixel| pixel.as_slice()) {
                [&[a], &[b], &[c], &[d]] => {
                    let order = _mm512_load_si512((&raw const SIDE_BY_SIDE[0]).cast());
                    let bytes = _mm512_permutexvar_epi32(order, pack_four::<NATURAL>([a, b, c, d], bounds));
                    store_four(bytes, to, step, count);
                }
                [&[a, b], &[c, d], &[e, f], &[g, h]] => {
                    let order = _mm512_load_si512((&raw const SIDE_BY_SIDE[1]).cast());
                    let first = _mm512_permutexvar_epi32(order, pack_four::<NATURAL>([a, b, c, d], bounds));
                    let second = _mm512_permutexvar_epi32(order, pack_four::<NATURAL>([e, f, g, h], bounds));
                    store_two(first, to, step);
                    store_two(second, to.add(2 * step), step);
                }
                _ => {
                    Self::store::<NATURAL>(rounded[0], bounds, to, count);
                    Self::store::<NATURAL>(rounded[1], bounds, to.add(step), count);
                    Self::store::<NATURAL>(rounded[2], bounds, to.add(2 * step), count);
                    Self::store::<NATURAL>(rounded[3], bounds, to.add(3 * step), count);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn spill(sums: Self::Sums, to: *mut i32) {
        // SAFETY: 16 values for each vector, by the contract.
        unsafe {
            let mut lanes = [0i32; BLOCK];
            for (i, sums) in sums.into_iter().enumerate() {
                _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sums);
                for (quarter, lanes) in lanes.as_chunks::<4>().0.iter().enumerate() {
                    to.add(Self::ORDER[i * BLOCK + quarter * 4]).cast::<[i32; 4]>().write(*lanes);
                }
            }
        }
    }
}

/// Eight channels in a vector of 256 bits, whose stores are masked.
#[derive(Debug)]
pub(super) struct Eight;

/// What [`Eight`] does like [`One`].
type Half = One<Avx512Vnni>;

impl Lanes for Eight {
    type Sums = __m256i;
    type Input = __m256i;

    const CHANNELS: usize = Half::CHANNELS;
    const ORDER: &'static [usize] = Half::ORDER;
    const TILE: usize = 8;
    const DIET: Diet = Diet::Quads;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> __m256i {
        // SAFETY: by the contract, as are the others.
        unsafe { Half::load(from) }
    }

    #[inline(always)]
    unsafe fn quad(bytes: i32) -> __m256i {
        // SAFETY: likewise.
        unsafe { Half::quad(bytes) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, input: __m256i, weights: *const u8) -> __m256i {
        // SAFETY: likewise.
        unsafe { Half::dot(sums, input, weights) }
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(sums: __m256i, scale: *const f32, slope: *const f32) -> __m256i {
        // SAFETY: likewise.
        unsafe { Half::round::<SLOPE>(sums, scale, slope) }
    }

    #[inline(always)]
    unsafe fn store<const NATURAL: bool>(rounded: __m256i, bounds: &Bounds, to: *mut u8, count: usize) {
        // SAFETY: `count` bytes, by the contract; masked bytes are not written.
        unsafe {
            let words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded));
            let words = _mm_adds_epi16(words, _mm_load_si128(bounds.zero.as_ptr().cast()));
            let bytes = _mm_max_epu8(_mm_packus_epi16(words, words), _mm_load_si128(bounds.low.as_ptr().cast()));
            let bytes = _mm_min_epu8(bytes, _mm_load_si128(bounds.high.as_ptr().cast()));
            _mm_mask_storeu_epi8(to.cast(), mask(count), bytes);
        }
    }

    #[inline(always)]
    unsafe fn store_four<const NATURAL: bool>(
        rounded: [__m256i; 4],
        bounds: &Bounds,
        to: *mut u8,
        step: usize,
        count: usize,
    ) {
        // SAFETY: `count` bytes of each pixel can be written, by the contract; masked bytes are not written.
        unsafe {
            let two = |i: usize| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(rounded[i]), rounded[i + 1]);
            let words = _mm512_packs_epi32(two(0), two(2));
            let words = _mm512_adds_epi16(words, _mm512_set1_epi16(bounds.zero[0]));
            // Packing brings four channels of the first pixel and of the third together, and so on.
            let order = _mm512_load_si512((&raw const PAIRS_OF_FOURS).cast());
            let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words, words));
            let bytes = _mm256_max_epu8(_mm512_castsi512_si256(bytes), _mm256_load_si256(bounds.low.as_ptr().cast()));
            let bytes = _mm256_min_epu8(bytes, _mm256_load_si256(bounds.high.as_ptr().cast()));
            if count == Self::CHANNELS && step == Self::CHANNELS {
                _mm256_storeu_si256(to.cast(), bytes);
                return;
            }
            let (front, back) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            _mm_mask_storeu_epi8(to.cast(), mask(count), front);
            _mm_mask_storeu_epi8(to.add(step).cast(), mask(count), _mm_unpackhi_epi64(front, front));
            _mm_mask_storeu_epi8(to.add(2 * step).cast(), mask(count), back);
            _mm_mask_storeu_epi8(to.add(3 * step).cast(), mask(count), _mm_unpackhi_epi64(back, back));
        }
    }

    #[inline(always)]
    unsafe fn spill(sums: __m256i, to: *mut i32) {
        // SAFETY: by the contract.
        unsafe { Half::spill(sums, to) };
    }
}

impl quarters::Quads for Avx512Vnni {
    type Vector = __m512i;

    #[inline(always)]
    unsafe fn enter<W: Work>(work: W) {
        // SAFETY: by the contract.
        unsafe { <Self as Simd>::enter(work) };
    }

    #[inline(always)]
    unsafe fn lanes(from: *const u8) -> __m512i {
        // SAFETY: 64 aligned bytes, by the contract.
        unsafe { _mm512_load_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, input: *const u8, weights: __m512i) -> __m512i {
        // SAFETY: 16 bytes, by the contract.
        unsafe { _mm512_dpbusd_epi32(sums, _mm512_broadcast_i32x4(_mm_loadu_si128(input.cast())), weights) }
    }

    #[inline(always)]
    unsafe fn totals(pixels: [__m512i; 4]) -> __m512i {
        // SAFETY: arithmetic only.
        unsafe {
            let [a, b, c, d] = pixels;
            let front = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let back = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            let totals = _mm512_add_epi32(_mm512_unpacklo_epi64(front, back), _mm512_unpackhi_epi64(front, back));
            _mm512_permutexvar_epi32(_mm512_load_si512((&raw const PIXEL_BY_PIXEL).cast()), totals)
        }
    }

    #[inline(always)]
    unsafe fn bytes<const SLOPE: bool>(totals: __m512i, constants: [*const f32; 2], bounds: &Bounds) -> [u8; BLOCK] {
        // SAFETY: 16 of each constant, by the contract; loads from `bounds`; the rest is arithmetic.
        unsafe {
            let rounded = round::<SLOPE>(totals, constants[0], constants[1]);
            let wide = |values: &[i32; BLOCK]| _mm512_loadu_si512(values.as_ptr().cast());
            let rounded = _mm512_add_epi32(rounded, wide(&bounds.wide_zero));
            let rounded = _mm512_min_epi32(_mm512_max_epi32(rounded, wide(&bounds.wide_low)), wide(&bounds.wide_high));
            std::mem::transmute::<__m128i, [u8; BLOCK]>(_mm512_cvtepi32_epi8(rounded))
        }
    }

    #[inline(always)]
    unsafe fn spill(totals: __m512i, to: *mut i32) {
        // SAFETY: 16 values, by the contract.
        unsafe { _mm512_storeu_si512(to.cast(), totals) };
    }
}

/// Writes 16 bytes of each of four pixels, `count` of them.
///
/// # Safety
/// They can be written.
#[inline(always)]
unsafe fn store_four(bytes: __m512i, to: *mut u8, step: usize, count: usize) {
    // SAFETY: by this function's contract; masked bytes are not written.
    unsafe {
        if count == BLOCK && step == BLOCK {
            _mm512_storeu_si512(to.cast(), bytes);
            return;
        }
        let pixels = [
            _mm512_castsi512_si128(bytes),
            _mm512_extracti32x4_epi32::<1>(bytes),
            _mm512_extracti32x4_epi32::<2>(bytes),
            _mm512_extracti32x4_epi32::<3>(bytes),
        ];
        for (i, pixel) in pixels.into_iter().enumerate() {
            let to = to.add(i * step);
            // A store with a mask takes several times as long.
            if count == BLOCK {
                _mm_storeu_si128(to.cast(), pixel);
            } else {
                _mm_mask_storeu_epi8(to.cast(), mask(count), pixel);
            }
        }
    }
}

/// Writes 32 bytes of each of two pixels.
///
/// # Safety
/// They can be written.
#[inline(always)]
unsafe fn store_two(bytes: __m512i, to: *mut u8, step: usize) {
    // SAFETY: by this function's contract.
    unsafe {
        if step == 2 * BLOCK {
            _mm512_storeu_si512(to.cast(), bytes);
        } else {
            _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(bytes));
            _mm256_storeu_si256(to.add(step).cast(), _mm512_extracti64x4_epi64::<1>(bytes));
        }
    }
}

/// The same weights, of which the compiler does not know that they lie in memory too: it would read them again for each pixel, and 512
/// bits take as long to read as to multiply.
///
/// # Safety
/// The processor has AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn held(mut weights: __m512i) -> __m512i {
    // SAFETY: does nothing.
    unsafe {
        std::arch::asm!("/* {} */", inout(zmm_reg) weights, options(pure, nomem, nostack, preserves_flags));
    }
    weights
}

/// The lowest `count` of 16 lanes.
#[inline(always)]
fn mask(count: usize) -> __mmask16 {
    (0xffff_u32 >> (BLOCK - count.min(BLOCK))) as __mmask16
}

/// Rounded values of 16 channels to bytes within the bounds.
#[inline(always)]
unsafe fn pack_one<const NATURAL: bool>(rounded: __m512i, bounds: &Bounds) -> __m128i {
    // SAFETY: loads from `bounds`, the rest is arithmetic.
    unsafe {
        let (low, high) = (_mm512_castsi512_si256(rounded), _mm512_extracti64x4_epi64::<1>(rounded));
        let mut words = _mm256_packs_epi32(low, high);
        if !NATURAL {
            words = _mm256_adds_epi16(words, _mm256_load_si256(bounds.zero.as_ptr().cast()));
        }
        let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        if NATURAL {
            return bytes;
        }
        let bytes = _mm_max_epu8(bytes, _mm_load_si128(bounds.low.as_ptr().cast()));
        _mm_min_epu8(bytes, _mm_load_si128(bounds.high.as_ptr().cast()))
    }
}

/// Rounded values of 32 channels, likewise.
#[inline(always)]
unsafe fn pack_two<const NATURAL: bool>(first: __m512i, second: __m512i, bounds: &Bounds) -> __m256i {
    // SAFETY: loads from `bounds`, the rest is arithmetic.
    unsafe {
        let mut words = _mm512_packs_epi32(first, second);
        if !NATURAL {
            words = _mm512_adds_epi16(words, _mm512_set1_epi16(bounds.zero[0]));
        }
        let bytes = _mm256_packus_epi16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64::<1>(words));
        if NATURAL {
            return bytes;
        }
        let bytes = _mm256_max_epu8(bytes, _mm256_load_si256(bounds.low.as_ptr().cast()));
        _mm256_min_epu8(bytes, _mm256_load_si256(bounds.high.as_ptr().cast()))
    }
}

/// Rounded values of 64 channels, or of 64 bytes, likewise.
#[inline(always)]
unsafe fn pack_four<const NATURAL: bool>(rounded: [__m512i; 4], bounds: &Bounds) -> __m512i {
    // SAFETY: loads from `bounds`, the rest is arithmetic.
    unsafe {
        let (low, high) = (_mm512_packs_epi32(rounded[0], rounded[1]), _mm512_packs_epi32(rounded[2], rounded[3]));
        if NATURAL {
            return _mm512_packus_epi16(low, high);
        }
        let zero = _mm512_set1_epi16(bounds.zero[0]);
        let bytes = _mm512_packus_epi16(_mm512_adds_epi16(low, zero), _mm512_adds_epi16(high, zero));
        let bytes = _mm512_max_epu8(bytes, _mm512_set1_epi8(bounds.low[0] as i8));
        _mm512_min_epu8(bytes, _mm512_set1_epi8(bounds.high[0] as i8))
    }
}

/// 16 sums, scaled and rounded.
#[inline(always)]
unsafe fn round<const SLOPE: bool>(sums: __m512i, scale: *const f32, slope: *const f32) -> __m512i {
    // SAFETY: 16 of each, by the callers' contracts.
    unsafe {
        let slope = if SLOPE { _mm512_loadu_ps(slope) } else { _mm512_setzero_ps() };
        _mm512_cvtps_epi32(scaled::<SLOPE>(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(scale), slope))
    }
}

/// Values times their scale, and below zero times their slope.
#[inline(always)]
unsafe fn scaled<const SLOPE: bool>(value: __m512, scale: __m512, slope: __m512) -> __m512 {
    // SAFETY: arithmetic only.
    unsafe {
        let value = _mm512_mul_ps(value, scale);
        match SLOPE {
            true => _mm512_mask_mul_ps(value, below_zero(value), value, slope),
            false => value,
        }
    }
}

/// Which lanes are below zero.
#[inline(always)]
unsafe fn below_zero(value: __m512) -> __mmask16 {
    // SAFETY: arithmetic only.
    unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(value, _mm512_setzero_ps()) }
}

/// AVX-512 VNNI and VBMI.
#[derive(Debug)]
struct Vbmi;

impl columns::Sixteen for Vbmi {
    type Vector = __m512i;

    #[inline(always)]
    unsafe fn enter<W: Work>(work: W) {
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
        unsafe fn inner<W: Work>(work: W) {
            // SAFETY: by `enter`'s contract.
            unsafe { work.run() }
        }
        // SAFETY: by `enter`'s contract the processor has these instructions.
        unsafe { inner(work) }
    }

    #[inline(always)]
    unsafe fn column(rows: [*const u8; 3]) -> __m512i {
        // SAFETY: 16 bytes of each row, by the contract.
        unsafe {
            let row = |i: usize| _mm_loadu_si128(rows[i].cast());
            let (upper, third) = (_mm256_set_m128i(row(1), row(0)), row(2));
            let order = _mm512_load_si512((&raw const COLUMN).cast());
            _mm512_permutex2var_epi8(_mm512_castsi256_si512(upper), order, _mm512_castsi128_si512(third))
        }
    }

    #[inline(always)]
    unsafe fn tall_column(rows: [*const u8; 4]) -> __m512i {
        // SAFETY: 16 bytes of each row, by the contract.
        unsafe {
            let row = |i: usize| _mm_loadu_si128(rows[i].cast());
            let (upper, lower) = (_mm256_set_m128i(row(1), row(0)), _mm256_set_m128i(row(3), row(2)));
            let order = _mm512_load_si512((&raw const TALL_COLUMN).cast());
            _mm512_permutex2var_epi8(_mm512_castsi256_si512(upper), order, _mm512_castsi256_si512(lower))
        }
    }

    #[inline(always)]
    unsafe fn lanes(from: *const u8) -> __m512i {
        // SAFETY: 64 aligned bytes, by the contract.
        unsafe { _mm512_load_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, column: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: arithmetic only.
        unsafe { _mm512_dpbusd_epi32(sums, column, weights) }
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(
        sums: [__m512i; columns::PIXELS],
        constants: [__m512i; 2],
    ) -> [__m512i; columns::PIXELS] {
        // SAFETY: arithmetic only.
        unsafe {
            let [scale, slope] = [_mm512_castsi512_ps(constants[0]), _mm512_castsi512_ps(constants[1])];
            // Step by step for all pixels: of what waits for something else the processor keeps only so much in view.
            let mut values = [scale; columns::PIXELS];
            for (value, sums) in values.iter_mut().zip(sums) {
                *value = _mm512_cvtepi32_ps(sums);
            }
            for value in &mut values {
                *value = scaled::<SLOPE>(*value, scale, slope);
            }
            let mut rounded = sums;
            for (rounded, value) in rounded.iter_mut().zip(values) {
                *rounded = _mm512_cvtps_epi32(value);
            }
            rounded
        }
    }

    #[inline(always)]
    unsafe fn put<const NATURAL: bool, const COUNT: usize>(
        rounded: [__m512i; columns::PIXELS],
        bounds: &Bounds,
        to: *mut u8,
        step: usize,
    ) {
        // SAFETY: sixteen bytes of each of `COUNT` pixels can be written, by the contract; the rest is arithmetic.
        unsafe {
            // Packing brings the same four channels of all pixels together.
            let order = _mm512_load_si512((&raw const PIXEL_BY_PIXEL).cast());
            let bytes = _mm512_permutexvar_epi32(order, pack_four::<NATURAL>(rounded, bounds));
            if COUNT == columns::PIXELS {
                store_four(bytes, to, step, BLOCK);
                return;
            }
            _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(bytes));
            if COUNT > 1 {
                _mm_storeu_si128(to.add(step).cast(), _mm512_extracti32x4_epi32::<1>(bytes));
            }
            if COUNT > 2 {
                _mm_storeu_si128(to.add(2 * step).cast(), _mm512_extracti32x4_epi32::<2>(bytes));
            }
        }
    }
}

/// A vector's worth of constants.
#[repr(C, align(64))]
struct Aligned<T>(T);

/// Where each byte of a lane is: in the first 16 of one vector, the next 16, the first 16 of another; the fourth meets a weight of zero.
static COLUMN: Aligned<[u8; 64]> = quads([0, 16, 64, 0]);

/// The same for four rows.
static TALL_COLUMN: Aligned<[u8; 64]> = quads([0, 16, 64, 80]);

/// Lanes of a byte of each of four places.
const fn quads(places: [u8; 4]) -> Aligned<[u8; 64]> {
    let mut bytes = [0; 64];
    let mut i = 0;
    while i < 64 {
        bytes[i] = i as u8 / 4 + places[i % 4];
        i += 1;
    }
    Aligned(bytes)
}

/// Four channels of four pixels each, pixel by pixel.
static PIXEL_BY_PIXEL: Aligned<[u32; 16]> = Aligned([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]);

/// Where, after packing, four channels at a time of four pixels of 16 channels lie, or of two of 32, in [`order`].
static SIDE_BY_SIDE: [Aligned<[u32; 16]>; 2] = [
    Aligned([0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15]),
    Aligned([0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15]),
];

/// Where, after packing, the two fours of channels of each of four pixels lie.
static PAIRS_OF_FOURS: Aligned<[u32; 16]> = Aligned([0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13]);

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
    unsafe fn dot_held(sums: __m512i, quads: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: arithmetic only.
        unsafe { _mm512_dpbusd_epi32(sums, quads, held(weights)) }
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
            pack_four::<false>(rounded, bounds)
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
    unsafe fn spill(sums: [__m512i; 4], to: *mut i32) {
        for (i, sums) in sums.into_iter().enumerate() {
            let mut lanes = [0i32; BLOCK];
            // SAFETY: 16 lanes, and 64 values behind `to`, by the contract.
            unsafe {
                _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sums);
                for (quarter, lanes) in lanes.as_chunks::<4>().0.iter().enumerate() {
                    to.add(quarter * BLOCK + i * 4).cast::<[i32; 4]>().write(*lanes);
                }
            }
        }
    }
}
