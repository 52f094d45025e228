//! The VNNI sets without VNNI, for tests on processors that lack it: the same packing, tiles and loops, with the dot product of bytes
//! spelled out in AVX2 and a 512-bit vector made of two. What this cannot prove is the choice of the instructions themselves.

use std::arch::x86_64::*;

use super::super::{BLOCK, DepthwiseSpec, Layer};
use super::finish::Bounds;
use super::lanes256::{self, One, Product, Taps, Two};
use super::{Avx2, Bytes, Diet, Lanes, Simd, Work, avx512, columns};

/// What `vpdpbusd` does: bytes 0 and 2, then 1 and 3, as 16-bit integers.
#[inline(always)]
unsafe fn dpbusd(sums: __m256i, input: __m256i, weights: __m256i) -> __m256i {
    // SAFETY: arithmetic only.
    unsafe {
        let even = (_mm256_and_si256(input, _mm256_set1_epi16(255)), _mm256_slli_epi16::<8>(weights));
        let odd = (_mm256_srli_epi16::<8>(input), _mm256_srai_epi16::<8>(weights));
        let sums = _mm256_add_epi32(sums, _mm256_madd_epi16(even.0, _mm256_srai_epi16::<8>(even.1)));
        _mm256_add_epi32(sums, _mm256_madd_epi16(odd.0, odd.1))
    }
}

macro_rules! model {
    ($(#[$doc:meta])* $name:ident, $whole:ty, $double:ty, $quadruple:ty, $wide:ty, $depthwise:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $name;

        impl Simd for $name {
            type Whole = $whole;
            type Half = One<Self>;
            type Double = $double;
            type Quadruple = $quadruple;
            type PairedWhole = $whole;
            type PairedHalf = One<Self>;
            type PairedDouble = $whole;
            type Wide = $wide;
            type Pair = Taps<Self>;
            type WideByTwo = Self::Wide;
            type PairByTwo = Self::Pair;
            type Along = __m256i;

            const WIDEN: bool = false;
            const ALONG: usize = 32;

            fn depthwise_3x3(spec: &DepthwiseSpec) -> Option<Box<dyn Layer>> {
                let way: fn(&DepthwiseSpec) -> Option<Box<dyn Layer>> = $depthwise;
                way(spec)
            }

            #[inline(always)]
            unsafe fn enter<W: Work>(work: W) {
                // SAFETY: by this function's contract.
                unsafe { Avx2::enter(work) };
            }

            #[inline(always)]
            unsafe fn along(input: *const u8) -> __m256i {
                // SAFETY: 32 bytes, by the contract.
                unsafe { _mm256_loadu_si256(input.cast()) }
            }

            #[inline(always)]
            unsafe fn dot_along(sums: __m256i, input: __m256i, weights: *const u8) -> __m256i {
                // SAFETY: 32 weights, by the contract.
                unsafe { dpbusd(sums, input, _mm256_load_si256(weights.cast())) }
            }
        }

        impl Product for $name {
            const DIET: Diet = Diet::Quads;
            const WHOLE_TILE: usize = 6;
            const HALF_TILE: usize = 12;
            const TAPS: usize = 4;
            const SATURATES: bool = false;

            #[inline(always)]
            unsafe fn dense(sums: __m256i, input: __m256i, weights: __m256i) -> __m256i {
                // SAFETY: arithmetic only.
                unsafe { dpbusd(sums, input, weights) }
            }

            #[inline(always)]
            unsafe fn bytes(sums: __m256i, quads: __m256i, weights: __m256i) -> __m256i {
                // SAFETY: arithmetic only.
                unsafe { dpbusd(sums, quads, weights) }
            }
        }
    };
}

model!(
    /// AVX-VNNI.
    Model256, Two<Self>, Two<Self>, Two<Self>, Taps<Self>, |_| None
);
model!(
    /// AVX-512 VNNI.
    Model512, Vectors<1>, Vectors<2>, Vectors<4>, Taps512, columns::layer::<Model512>
);

/// A 512-bit vector.
type Vector = [__m256i; 2];

/// 16 channels in each of `N` vectors.
#[derive(Debug)]
pub(super) struct Vectors<const N: usize>;

impl<const N: usize> Lanes for Vectors<N> {
    type Sums = [Vector; N];
    type Input = __m256i;

    const CHANNELS: usize = N * BLOCK;
    const ORDER: &'static [usize] = avx512::order(N);
    const TILE: usize = avx512::tile(N);
    const DIET: Diet = Diet::Quads;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::Sums {
        // SAFETY: 16 values for each vector, by the contract.
        std::array::from_fn(|i| unsafe { load(from.add(i * BLOCK).cast()) })
    }

    #[inline(always)]
    unsafe fn quad(bytes: i32) -> __m256i {
        // SAFETY: arithmetic only.
        unsafe { _mm256_set1_epi32(bytes) }
    }

    #[inline(always)]
    unsafe fn dot(mut sums: Self::Sums, input: __m256i, weights: *const u8) -> Self::Sums {
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: 64 weights for each vector, by the contract.
            unsafe {
                let weights = load(weights.add(i * 64));
                *sums = [dpbusd(sums[0], input, weights[0]), dpbusd(sums[1], input, weights[1])];
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(mut sums: Self::Sums, scale: *const f32, slope: *const f32) -> Self::Sums {
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: 16 of each for each vector, by the contract.
            *sums = unsafe { round::<SLOPE>(*sums, scale.add(i * BLOCK), slope.add(i * BLOCK)) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn store<const NATURAL: bool>(rounded: Self::Sums, bounds: &Bounds, to: *mut u8, count: usize) {
        // SAFETY: `count` bytes can be written, by the contract.
        unsafe {
            match rounded.as_slice() {
                [one] => lanes256::store_two_vectors::<NATURAL>(*one, bounds, to, count),
                [first, second] => {
                    let words = |half: usize| _mm256_packs_epi32(first[half], second[half]);
                    let zero = _mm256_load_si256(bounds.zero.as_ptr().cast());
                    let (low, high) = (_mm256_adds_epi16(words(0), zero), _mm256_adds_epi16(words(1), zero));
                    let bytes = _mm256_packus_epi16(low, high);
                    let bytes = _mm256_max_epu8(bytes, _mm256_load_si256(bounds.low.as_ptr().cast()));
                    let bytes = _mm256_min_epu8(bytes, _mm256_load_si256(bounds.high.as_ptr().cast()));
                    _mm256_storeu_si256(to.cast(), bytes);
                }
                [a, b, c, d] => {
                    let half = |h: usize| lanes256::pack([a[h], b[h], c[h], d[h]], bounds);
                    store([half(0), half(1)], to);
                }
                _ => unreachable!("one, two or four vectors"),
            }
        }
    }

    #[inline(always)]
    unsafe fn spill(sums: Self::Sums, to: *mut i32) {
        for (i, vector) in sums.into_iter().enumerate() {
            let mut lanes = [0i32; BLOCK];
            // SAFETY: 16 lanes here, and a place there for each, by the contract.
            unsafe {
                store(vector, lanes.as_mut_ptr().cast());
                for (lane, sum) in lanes.into_iter().enumerate() {
                    to.add(Self::ORDER[i * BLOCK + lane]).write(sum);
                }
            }
        }
    }
}

/// Reads 64 bytes.
#[inline(always)]
unsafe fn load(from: *const u8) -> Vector {
    // SAFETY: by the callers' contracts.
    unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
}

/// Writes 64 bytes.
#[inline(always)]
unsafe fn store(vector: Vector, to: *mut u8) {
    // SAFETY: by the callers' contracts.
    unsafe {
        _mm256_storeu_si256(to.cast(), vector[0]);
        _mm256_storeu_si256(to.add(32).cast(), vector[1]);
    }
}

/// 16 sums, scaled and rounded.
#[inline(always)]
unsafe fn round<const SLOPE: bool>(sums: Vector, scale: *const f32, slope: *const f32) -> Vector {
    // SAFETY: 16 of each, by the callers' contracts.
    unsafe {
        [lanes256::round::<SLOPE>(sums[0], scale, slope), lanes256::round::<SLOPE>(sums[1], scale.add(8), slope.add(8))]
    }
}

impl columns::Sixteen for Model512 {
    type Vector = Vector;

    #[inline(always)]
    unsafe fn enter<W: Work>(work: W) {
        // SAFETY: by this function's contract.
        unsafe { Avx2::enter(work) };
    }

    #[inline(always)]
    unsafe fn column(rows: [*const u8; 3]) -> Vector {
        // SAFETY: 16 bytes of each row, by the contract; the fourth meets a weight of zero.
        unsafe { Self::tall_column([rows[0], rows[1], rows[2], rows[0]]) }
    }

    #[inline(always)]
    unsafe fn tall_column(rows: [*const u8; 4]) -> Vector {
        let mut bytes = [0u8; 64];
        for (i, row) in rows.into_iter().enumerate() {
            for lane in 0..BLOCK {
                // SAFETY: 16 bytes of each row, by the contract.
                bytes[lane * 4 + i] = unsafe { row.add(lane).read() };
            }
        }
        // SAFETY: 64 bytes.
        unsafe { load(bytes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn lanes(from: *const u8) -> Vector {
        // SAFETY: 64 bytes, by the contract.
        unsafe { load(from) }
    }

    #[inline(always)]
    unsafe fn dot(sums: Vector, column: Vector, weights: Vector) -> Vector {
        // SAFETY: arithmetic only.
        unsafe { [dpbusd(sums[0], column[0], weights[0]), dpbusd(sums[1], column[1], weights[1])] }
    }

    #[inline(always)]
    unsafe fn round<const SLOPE: bool>(
        mut sums: [Vector; columns::PIXELS],
        constants: [Vector; 2],
    ) -> [Vector; columns::PIXELS] {
        for (i, half) in sums.iter_mut().flat_map(|pixel| pixel.iter_mut().enumerate()) {
            let [scale, slope] = [constants[0][i], constants[1][i]];
            // SAFETY: arithmetic only.
            unsafe {
                *half = lanes256::rounded::<SLOPE>(*half, _mm256_castsi256_ps(scale), _mm256_castsi256_ps(slope));
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn put<const NATURAL: bool, const COUNT: usize>(
        rounded: [Vector; columns::PIXELS],
        bounds: &Bounds,
        to: *mut u8,
        step: usize,
    ) {
        for (pixel, [low, high]) in rounded.into_iter().enumerate().take(COUNT) {
            // SAFETY: arithmetic; sixteen bytes of the pixel can be written, by the contract.
            unsafe {
                let words = _mm256_packs_epi32(low, high);
                let words = _mm256_adds_epi16(words, _mm256_load_si256(bounds.zero.as_ptr().cast()));
                // Four channels of the one half beside four of the other.
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                lanes256::put_two::<NATURAL>(words, words, bounds, [to.add(pixel * step); 2]);
            }
        }
    }
}

/// 64 bytes of a depthwise layer.
#[derive(Debug)]
pub(super) struct Taps512;

impl Bytes for Taps512 {
    type Vector = Vector;
    type Sums = Vector;

    const WIDTH: usize = 64;
    const TAPS: usize = 4;
    const SATURATES: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Vector {
        // SAFETY: 64 bytes, by the contract.
        unsafe { load(from) }
    }

    unsafe fn load_two(_: *const u8, _: *const u8) -> Vector {
        unreachable!("pixels are computed two at a time in 32 bytes only")
    }

    #[inline(always)]
    unsafe fn interleave(tap: impl Fn(usize) -> Vector) -> [Vector; 4] {
        // SAFETY: arithmetic only; these instructions work within 128 bits, so that the halves are independent.
        unsafe {
            let taps = [tap(0), tap(1), tap(2), tap(3)];
            let low = lanes256::interleave([taps[0][0], taps[1][0], taps[2][0], taps[3][0]]);
            let high = lanes256::interleave([taps[0][1], taps[1][1], taps[2][1], taps[3][1]]);
            [[low[0], high[0]], [low[1], high[1]], [low[2], high[2]], [low[3], high[3]]]
        }
    }

    #[inline(always)]
    unsafe fn sums(from: *const i32) -> Vector {
        // SAFETY: 16 values, by the contract.
        unsafe { load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: Vector, quads: Vector, weights: *const u8) -> Vector {
        // SAFETY: 64 weights, by the contract.
        unsafe { Self::dot_held(sums, quads, load(weights)) }
    }

    #[inline(always)]
    unsafe fn dot_held(sums: Vector, quads: Vector, weights: Vector) -> Vector {
        // SAFETY: arithmetic only.
        unsafe { [dpbusd(sums[0], quads[0], weights[0]), dpbusd(sums[1], quads[1], weights[1])] }
    }

    #[inline(always)]
    unsafe fn finish<const SLOPE: bool>(
        sums: [Vector; 4],
        scale: *const f32,
        slope: *const f32,
        bounds: &Bounds,
    ) -> Vector {
        // SAFETY: 64 scales and slopes, by the contract.
        unsafe {
            let mut rounded = sums;
            for (i, sums) in sums.into_iter().enumerate() {
                rounded[i] = round::<SLOPE>(sums, scale.add(i * 16), slope.add(i * 16));
            }
            let half = |h: usize| [rounded[0][h], rounded[1][h], rounded[2][h], rounded[3][h]];
            [lanes256::pack(half(0), bounds), lanes256::pack(half(1), bounds)]
        }
    }

    #[inline(always)]
    unsafe fn store(bytes: Vector, to: *mut u8) {
        // SAFETY: 64 bytes, by the contract.
        unsafe { store(bytes, to) };
    }

    #[inline(always)]
    unsafe fn store_some(bytes: Vector, to: *mut u8, count: usize) {
        let mut all = [0u8; 64];
        // SAFETY: 64 bytes here, `count` there, by the contract.
        unsafe {
            store(bytes, all.as_mut_ptr());
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, count);
        }
    }

    unsafe fn store_two(_: Vector, _: *mut u8, _: *mut u8, _: usize) {
        unreachable!("pixels are computed two at a time in 32 bytes only")
    }

    #[inline(always)]
    unsafe fn spill(sums: [Vector; 4], to: *mut i32) {
        for (i, vector) in sums.into_iter().enumerate() {
            let mut lanes = [0i32; BLOCK];
            // SAFETY: 16 lanes here, and 64 values there, by the contract.
            unsafe {
                store(vector, lanes.as_mut_ptr().cast());
                for (lane, sum) in lanes.into_iter().enumerate() {
                    to.add(lane / 4 * BLOCK + i * 4 + lane % 4).write(sum);
                }
            }
        }
    }
}
