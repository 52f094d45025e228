//! AVX2: products of 16-bit integers, which are exact for any weights, where those of bytes would saturate.

use std::arch::x86_64::*;

use super::super::{DepthwiseSpec, Layer};
use super::lanes256::{Four, One, Product, Taps, Two};
use super::{Diet, Simd, Work, march};

/// AVX2 without FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2;

impl Simd for Avx2 {
    type Whole = Two<Self>;
    type Half = One<Self>;
    type Double = Self::Whole;
    type Quadruple = Self::Whole;
    type PairedWhole = Two<Pairs>;
    type PairedHalf = One<Pairs>;
    type PairedDouble = Four<Pairs>;
    type Wide = Taps<Self>;
    type Pair = Taps<Self>;
    type WideByTwo = Taps<ByTwo>;
    type PairByTwo = Taps<ByTwo>;
    type Along = __m256i;

    const WIDEN: bool = true;
    const ALONG: usize = 16;

    fn depthwise_3x3(spec: &DepthwiseSpec) -> Option<Box<dyn Layer>> {
        march::layer::<Self>(spec)
    }

    #[inline(always)]
    unsafe fn enter<W: Work>(work: W) {
        #[target_feature(enable = "avx2")]
        unsafe fn inner<W: Work>(work: W) {
            // SAFETY: by `enter`'s contract.
            unsafe { work.run() }
        }
        // SAFETY: by `enter`'s contract the processor has AVX2.
        unsafe { inner(work) }
    }

    #[inline(always)]
    unsafe fn along(input: *const u8) -> __m256i {
        // SAFETY: 16 bytes, by the contract.
        unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(input.cast())) }
    }

    #[inline(always)]
    unsafe fn dot_along(sums: __m256i, input: __m256i, weights: *const u8) -> __m256i {
        // SAFETY: 16 weights of 16 bits, by the contract.
        unsafe { Self::dense(sums, input, _mm256_load_si256(weights.cast())) }
    }
}

impl Product for Avx2 {
    const DIET: Diet = Diet::Wide;
    const WHOLE_TILE: usize = 6;
    const HALF_TILE: usize = 8;
    const TAPS: usize = 4;
    const SATURATES: bool = true;

    #[inline(always)]
    unsafe fn dense(sums: __m256i, input: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(input, weights)) }
    }

    #[inline(always)]
    unsafe fn bytes(sums: __m256i, quads: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only; the weights are packed so that no pair saturates.
        unsafe { Self::dense(sums, _mm256_maddubs_epi16(quads, weights), _mm256_set1_epi16(1)) }
    }
}

/// Dense layers of bytes in safe pairs.
#[derive(Debug)]
pub(super) struct Pairs;

impl Product for Pairs {
    const DIET: Diet = Diet::Pairs;
    const WHOLE_TILE: usize = 6;
    const HALF_TILE: usize = 8;
    const TAPS: usize = 4;
    const SATURATES: bool = true;

    #[inline(always)]
    unsafe fn dense(sums: __m256i, input: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only; no pair saturates.
        unsafe { Avx2::bytes(sums, input, weights) }
    }

    #[inline(always)]
    unsafe fn dense_at<const AT: usize>(sums: __m256i, input: __m256i, weights: *const u8) -> __m256i {
        // SAFETY: 32 bytes of weights, by the contract; no pair saturates.
        unsafe { add_products_at::<AT>(sums, input, weights) }
    }

    #[inline(always)]
    unsafe fn bytes(sums: __m256i, quads: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only; no pair saturates.
        unsafe { Avx2::bytes(sums, quads, weights) }
    }
}

/// Products of bytes in pairs, with weights from memory. The compiler would keep in registers what several pixels multiply by, or form all
/// products before it adds the first, and then has too few for the sums.
///
/// # Safety
/// The processor has AVX2; 32 aligned bytes can be read `AT` bytes behind `weights`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_products_at<const AT: usize>(mut sums: __m256i, input: __m256i, weights: *const u8) -> __m256i {
    // SAFETY: reads what this function's contract names, and touches nothing else.
    unsafe {
        std::arch::asm!(
            "vpmaddubsw {products}, {input}, ymmword ptr [{weights} + {at}]",
            "vpmaddwd {products}, {products}, {ones}",
            "vpaddd {sums}, {sums}, {products}",
            sums = inout(ymm_reg) sums,
            products = out(ymm_reg) _,
            input = in(ymm_reg) input,
            ones = in(ymm_reg) _mm256_set1_epi16(1),
            weights = in(reg) weights,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    sums
}

/// Depthwise layers of any weights: two taps as 16-bit integers.
#[derive(Debug)]
pub(super) struct ByTwo;

impl Product for ByTwo {
    const DIET: Diet = Diet::Wide;
    const WHOLE_TILE: usize = Avx2::WHOLE_TILE;
    const HALF_TILE: usize = Avx2::HALF_TILE;
    const TAPS: usize = 2;
    const SATURATES: bool = false;

    #[inline(always)]
    unsafe fn dense(sums: __m256i, input: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { Avx2::dense(sums, input, weights) }
    }

    #[inline(always)]
    unsafe fn bytes(sums: __m256i, taps: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { Avx2::dense(sums, taps, weights) }
    }
}

/// Widens `n` bytes to 16-bit integers, in whole 32.
///
/// # Safety
/// `from` can be read and `to` written that far.
#[inline(always)]
pub(super) unsafe fn widen(from: *const u8, to: *mut u8, n: usize) {
    let mut i = 0;
    while i < n {
        // SAFETY: by this function's contract.
        unsafe {
            let first = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.add(i).cast()));
            let second = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.add(i + 16).cast()));
            _mm256_storeu_si256(to.add(i * 2).cast(), first);
            _mm256_storeu_si256(to.add(i * 2 + 32).cast(), second);
        }
        i += 32;
    }
}
