//! Luminance as the training pictures have it, and its standardisation: what more than one network reads of a face.

/// ITU-R BT.601 in 16-bit fixed point, rounded.
pub(crate) fn luminance(pixel: &[u8]) -> u8 {
    let sum = 19_595 * u32::from(pixel[0]) + 38_470 * u32::from(pixel[1]) + 7_471 * u32::from(pixel[2]);
    ((sum + 0x8000) >> 16) as u8
}

/// `(x - mean) / (deviation + eps)`; returns the mean and the divisor.
pub(crate) fn standardise(grey: &[f32], eps: f32, out: &mut [f32]) -> (f32, f32) {
    let count = grey.len() as f32;
    let mean = grey.iter().sum::<f32>() / count;
    let variance = grey.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / count;
    let spread = variance.sqrt() + eps;
    for (out, value) in out.iter_mut().zip(grey) {
        *out = (value - mean) / spread;
    }
    (mean, spread)
}
