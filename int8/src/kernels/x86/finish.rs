//! From sums to outputs: the bounds that the fast ways use, and the general way, which does any [`Post`] step by step as its definition says.

use std::arch::x86_64::*;

use super::super::{Activation, BLOCK, Post, Store};

/// Bounds of byte outputs, as vectors want them. Each lies where a vector as wide as itself may be loaded aligned: the widest first.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Bounds {
    /// Zero-point, lowest and highest byte for 32-bit lanes.
    pub(super) wide_zero: [i32; 16],
    pub(super) wide_low: [i32; 16],
    pub(super) wide_high: [i32; 16],
    /// Zero-point.
    pub(super) zero: [i16; 16],
    /// Lowest byte.
    pub(super) low: [u8; 32],
    /// Highest byte.
    pub(super) high: [u8; 32],
    /// Whether packing with saturation does all of it: the zero-point is 0, and every byte is within the bounds.
    pub(super) natural: bool,
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Bounds, wide_low).is_multiple_of(64) && offset_of!(Bounds, wide_high).is_multiple_of(64));
    assert!(offset_of!(Bounds, low).is_multiple_of(32) && offset_of!(Bounds, high).is_multiple_of(32));
};

impl Bounds {
    fn new(zero_point: i32, low: f32, high: f32) -> Self {
        let (low, high) = (low as i32 + zero_point, high as i32 + zero_point);
        Self {
            zero: [zero_point as i16; 16],
            low: [low as u8; 32],
            high: [high as u8; 32],
            wide_zero: [zero_point; 16],
            wide_low: [low; 16],
            wide_high: [high; 16],
            natural: (zero_point, low, high) == (0, 0, 255),
        }
    }
}

/// How a layer finishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Scale, round, clamp as integers.
    Plain,
    /// The same with a slope below zero.
    Slope,
    /// [`general`].
    General,
}

/// [`Way::Plain`] as a parameter.
pub(super) const PLAIN: u8 = 0;
/// [`Way::Slope`] as a parameter.
pub(super) const SLOPE: u8 = 1;
/// [`Way::General`] as a parameter.
pub(super) const GENERAL: u8 = 2;

/// What a layer needs behind its sums.
#[derive(Debug)]
pub(super) struct Finish {
    pub(super) way: Way,
    pub(super) bounds: Bounds,
    pub(super) post: Post,
    /// A slope a channel, ones where there are none.
    pub(super) slopes: Box<[f32]>,
}

impl Finish {
    pub(super) fn new(post: Post) -> Self {
        // Clamping after the rounding gives the same as before it, as the bounds are integers, so long as the rounding
        // itself cannot overflow: sums are below 2^31, so these factors keep the value below 2^30.
        let small = |factor: f32| post.scale.iter().all(|&scale| scale * factor <= 0.5);
        let (way, bounds) = match (&post.store, &post.activation) {
            (Store::U8 { low, high, zero_point }, activation) => {
                let way = match activation {
                    Activation::None if small(1.0) => Way::Plain,
                    Activation::Slope(slope) if small(1.0) && slope.iter().all(|&s| small(s.abs())) => Way::Slope,
                    _ => Way::General,
                };
                (way, Bounds::new(*zero_point, *low, *high))
            }
            (Store::F32 { .. }, _) => (Way::General, Bounds::new(0, 0.0, 0.0)),
        };
        let slopes = match &post.activation {
            Activation::Slope(slopes) => slopes.clone(),
            _ => vec![1.0; post.scale.len()].into(),
        };
        Self { way, bounds, post, slopes }
    }

    /// Bytes of an output value.
    pub(super) fn width(&self) -> usize {
        if matches!(self.post.store, Store::U8 { .. }) { 1 } else { 4 }
    }
}

/// Values of 16 channels on their way out.
pub(super) union Values {
    pub(super) bytes: [u8; BLOCK],
    pub(super) floats: [f32; BLOCK],
}

/// Finishes 16 sums as [`Post::value`] does, whatever the activation.
///
/// # Safety
/// The processor has AVX2; 16 values can be read at `sums`, `scale` and `slope`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn general(post: &Post, sums: *const i32, scale: *const f32, slope: *const f32) -> Values {
    let mut floats = [0.0f32; BLOCK];
    let mut rounded = [_mm256_setzero_si256(); 2];
    for (half, rounded) in rounded.iter_mut().enumerate() {
        // SAFETY: 16 values each, by this function's contract.
        let (sum, scale, slope) = unsafe {
            let sum = _mm256_loadu_si256(sums.add(half * 8).cast());
            (sum, _mm256_loadu_ps(scale.add(half * 8)), _mm256_loadu_ps(slope.add(half * 8)))
        };
        let value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
        let value = clamp(activate(post, value, slope), post.store);
        *rounded = _mm256_cvtps_epi32(value);
        // SAFETY: 8 floats at `half * 8` of 16.
        unsafe { _mm256_storeu_ps(floats.as_mut_ptr().add(half * 8), value) };
    }
    let Store::U8 { zero_point, .. } = post.store else { return Values { floats } };
    let zero = _mm256_set1_epi32(zero_point);
    // Both are within 0..=255 now, so that packing keeps them.
    let words = _mm256_packs_epi32(_mm256_add_epi32(rounded[0], zero), _mm256_add_epi32(rounded[1], zero));
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
    let packed = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    let mut bytes = [0; BLOCK];
    // SAFETY: 16 bytes.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), packed) };
    Values { bytes }
}

#[inline]
#[target_feature(enable = "avx2")]
fn activate(post: &Post, value: __m256, slope: __m256) -> __m256 {
    match post.activation {
        Activation::None => value,
        Activation::Slope(_) => {
            let below = _mm256_cmp_ps::<_CMP_LT_OQ>(value, _mm256_setzero_ps());
            _mm256_blendv_ps(value, _mm256_mul_ps(value, slope), below)
        }
        Activation::HardSwish { inverse } => {
            let gate = _mm256_add_ps(_mm256_mul_ps(value, _mm256_set1_ps(1.0 / 6.0)), _mm256_set1_ps(0.5));
            let gate = _mm256_min_ps(_mm256_max_ps(gate, _mm256_setzero_ps()), _mm256_set1_ps(1.0));
            _mm256_mul_ps(_mm256_mul_ps(value, gate), _mm256_set1_ps(inverse))
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn clamp(value: __m256, store: Store) -> __m256 {
    let (Store::U8 { low, high, .. } | Store::F32 { low, high }) = store;
    _mm256_min_ps(_mm256_max_ps(value, _mm256_set1_ps(low)), _mm256_set1_ps(high))
}

/// Writes the first `count` values, of the kind that `post` stores, to `to`.
///
/// # Safety
/// `count` is at most 16, and that many values may be written at `to`.
#[inline(always)]
pub(super) unsafe fn put(post: &Post, values: &Values, to: *mut u8, count: usize) {
    // SAFETY: by this function's contract.
    unsafe { put_from(post, values, 0, to, count) };
}

/// Writes `count` values from `from` on.
///
/// # Safety
/// There are so many of the 16, and that many values may be written at `to`.
#[inline(always)]
pub(super) unsafe fn put_from(post: &Post, values: &Values, from: usize, to: *mut u8, count: usize) {
    // SAFETY: by this function's contract; `general` made bytes or floats for this post, and the float buffer is aligned.
    unsafe {
        match post.store {
            Store::U8 { .. } => std::ptr::copy_nonoverlapping(values.bytes.as_ptr().add(from), to, count),
            Store::F32 { .. } => std::ptr::copy_nonoverlapping(values.floats.as_ptr().add(from), to.cast(), count),
        }
    }
}
