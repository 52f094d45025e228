//! Any bytes as a frame of any layout, size and stride: a picture of the right size, or an error.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use visaged::frame::{CaptureTime, Converter, Frame, PixelFormat, RgbImage};
use visaged::pool::Pool;

fuzz_target!(|bytes: &[u8]| {
    let [layout, width, width_high, height, padding, data @ ..] = bytes else { return };
    let format = match layout % 7 {
        0 => PixelFormat::Yuyv,
        1 => PixelFormat::Uyvy,
        2 => PixelFormat::Nv12,
        3 => PixelFormat::Grey,
        4 => PixelFormat::Rgb3,
        5 => PixelFormat::Bgr3,
        _ => PixelFormat::Mjpg,
    };
    let width_px = u32::from(u16::from_le_bytes([*width, *width_high])) % 600;
    let height_px = u32::from(*height);
    let mut pooled = Pool::<Vec<u8>>::new(0).take();
    pooled.extend_from_slice(data);
    let frame = Frame {
        data: pooled,
        format,
        width_px,
        height_px,
        stride_bytes: width_px * u32::from(layout / 64) + u32::from(*padding),
        seq: 0,
        time: CaptureTime { monotonic: Instant::now(), wall: jiff::Timestamp::UNIX_EPOCH },
    };
    let mut out = RgbImage::default();
    if Converter::new().to_rgb(&frame, &mut out).is_ok() {
        assert_eq!((out.width_px, out.height_px), (width_px, height_px));
    }
    assert_eq!(out.data.len() as u64, 3 * u64::from(out.width_px) * u64::from(out.height_px));
});
