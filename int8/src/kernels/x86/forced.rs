//! Sets of kernels for tests alone: ways that a layer would take or not by its weights and shape, taken always, and the 256-bit
//! kernels in AVX-512's encoding, as processors and emulators with AVX-512 VNNI are not always ones with AVX-VNNI, and the two
//! differ in nothing but the encoding of one instruction.

use std::arch::x86_64::*;

use super::lanes256::{One, Product, Taps, Two};
use super::model::{Model256, Model512};
use super::{Avx2, Avx512Vnni, AvxVnni, DenseSpec, DepthwiseSpec, Diet, Simd, Work, X86, dense, depthwise, few};
use crate::isa::Isa;
use crate::kernels::{Kernels, Layer};

/// Which way a set takes always.
enum Way {
    Wide,
    Pairs,
    Doubles,
    Few,
}

struct Forced<S>(S, Way);

impl<S: Simd> Kernels for Forced<S> {
    fn dense(&self, spec: DenseSpec) -> Box<dyn Layer> {
        match self.1 {
            Way::Few if spec.channels <= few::MOST => Box::new(few::Few::<S>::new(spec)),
            Way::Pairs => Box::new(dense::Dense::<S, S::PairedWhole, S::PairedHalf>::new(spec)),
            Way::Doubles => Box::new(dense::Dense::<S, S::PairedWhole, S::PairedHalf, S::PairedDouble>::new(spec)),
            Way::Wide | Way::Few => Box::new(dense::Dense::<S, S::Whole, S::Half>::new(spec)),
        }
    }

    fn depthwise(&self, spec: DepthwiseSpec) -> Box<dyn Layer> {
        match self.1 {
            // As where 3 by 3 taps have no way of their own: a processor without VBMI, say.
            Way::Few => depthwise::packed::<S>(depthwise::Taps::of(&spec), &spec.grid, spec.channels, spec.post),
            _ => X86(self.0).depthwise(spec),
        }
    }
}

/// The sets that this processor can run.
pub(in super::super) fn available() -> Vec<(&'static str, &'static dyn Kernels)> {
    let sets: [(Isa, &str, &dyn Kernels); 11] = [
        (Isa::Avx2, "avx2, always wide", &Forced(Avx2, Way::Wide)),
        (Isa::Avx2, "avx2, always in pairs", &Forced(Avx2, Way::Pairs)),
        (Isa::Avx2, "avx2, always in pairs, of 32 channels where there are as many", &Forced(Avx2, Way::Doubles)),
        (Isa::Avx2, "avx2, always few", &Forced(Avx2, Way::Few)),
        (Isa::Avx2, "model of avx-vnni", &X86(Model256)),
        (Isa::Avx2, "model of avx-vnni, always few", &Forced(Model256, Way::Few)),
        (Isa::Avx2, "model of avx512-vnni", &X86(Model512)),
        (Isa::Avx2, "model of avx512-vnni, always few", &Forced(Model512, Way::Few)),
        (Isa::AvxVnni, "avx-vnni, always few", &Forced(AvxVnni, Way::Few)),
        (Isa::Avx512Vnni, "avx512-vnni, always few", &Forced(Avx512Vnni, Way::Few)),
        (Isa::Avx512Vnni, "avx512-vnni in 256 bits", &X86(Vl256)),
    ];
    sets.into_iter().filter(|set| set.0.is_available()).map(|(_, name, kernels)| (name, kernels)).collect()
}

/// AVX-512 VNNI in 256-bit registers.
#[derive(Clone, Copy, Debug)]
struct Vl256;

impl Simd for Vl256 {
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

impl Product for Vl256 {
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
