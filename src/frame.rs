//! A captured picture with its time, and its conversion to RGB.
//!
//! Invariant: a [`Frame`] is what the driver gave, untouched (a camera that cuts frames short is found by the
//! converter, which checks every length before it reads); conversion happens once, on the thread that needs the picture, so
//! that a dropped frame costs one copy.

mod convert;
mod scale;

use std::time::Instant;

use crate::pool::Pooled;

pub(crate) use convert::row_bytes;
pub use convert::{ConvertError, Converter, MAX_FRAME_PIXELS};
pub use scale::Scaler;

/// How the bytes of a [`Frame`] are laid out; names are V4L2's four-character codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// 4:2:2, Y0 Cb Y1 Cr.
    Yuyv,
    /// 4:2:2, Cb Y0 Cr Y1.
    Uyvy,
    /// 4:2:0, a plane of Y, then a plane of CbCr pairs.
    Nv12,
    /// 8-bit luminance.
    Grey,
    /// R G B, 8 bits each.
    Rgb3,
    /// B G R, 8 bits each.
    Bgr3,
    /// One JPEG picture a frame.
    Mjpg,
}

/// When a frame was captured: one instant, in the clock for intervals and in the clock for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureTime {
    /// For intervals and latencies; never jumps.
    pub monotonic: Instant,
    /// For payloads; may jump when the system clock is set.
    pub wall: jiff::Timestamp,
}

impl CaptureTime {
    /// Now, in both clocks.
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall: jiff::Timestamp::now() }
    }
}

/// One picture as the source gave it.
#[derive(Debug)]
pub struct Frame {
    /// The bytes that are in use (`bytesused`, not the driver's buffer length).
    pub data: Pooled<Vec<u8>>,
    /// Their layout.
    pub format: PixelFormat,
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// Bytes from one row to the next; 0 for [`PixelFormat::Mjpg`].
    pub stride_bytes: u32,
    /// Counted by us from 0 for each opened source, without gaps.
    pub seq: u64,
    /// When it was captured.
    pub time: CaptureTime,
}

/// A tightly packed 8-bit RGB picture; `data.len() == 3 * width_px * height_px`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RgbImage {
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// R G B, row by row.
    pub data: Vec<u8>,
}

impl RgbImage {
    /// Gives the picture a new size, keeping its allocation; the contents are unspecified afterwards.
    pub fn resize(&mut self, width_px: u32, height_px: u32) {
        self.width_px = width_px;
        self.height_px = height_px;
        self.data.resize(3 * width_px as usize * height_px as usize, 0);
    }
}
