//! AVX-VNNI: the dot product of bytes in 256-bit registers.

use std::arch::x86_64::*;

use super::lanes256::{One, Product, Taps, Two};
use super::{Diet, Simd, Work};

/// AVX2 and AVX-VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AvxVnni;

impl Simd for AvxVnni {
    type Whole = Two<Self>;
    type Half = One<Self>;
    type Double = Self::Whole;
    type Quadruple = Self::Whole;
    type PairedWhole = Self::Whole;
    type PairedHalf = Self::Half;
    type PairedDouble = Self::Whole;
    type Wide = Taps<Self>;
    type Pair = Taps<Self>;
    type WideByTwo = Self::Wide;
    type PairByTwo = Self::Pair;
    type Along = __m256i;

    const WIDEN: bool = false;
    const ALONG: usize = 32;

    #[inline(always)]
    unsafe fn enter<W: Work>(work: W) {
        #[target_feature(enable = "avx2,avxvnni")]
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

impl Product for AvxVnni {
    const DIET: Diet = Diet::Quads;
    const WHOLE_TILE: usize = 6;
    const HALF_TILE: usize = 12;
    const TAPS: usize = 4;
    const SATURATES: bool = false;

    #[inline(always)]
    unsafe fn dense(sums: __m256i, input: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_dpbusd_avx_epi32(sums, input, weights) }
    }

    #[inline(always)]
    unsafe fn bytes(sums: __m256i, quads: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_dpbusd_avx_epi32(sums, quads, weights) }
    }
}
