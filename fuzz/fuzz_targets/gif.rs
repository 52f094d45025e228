//! Any bytes as a GIF: frames of the size that the header gives, or an error, within a bound of pixels.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use visaged::picture::{GifFrames, PictureLimits};

fuzz_target!(|bytes: &[u8]| {
    let limits = PictureLimits { max_pixels: 1 << 16, max_file_bytes: 1 << 20 };
    let reader = Box::new(Cursor::new(bytes.to_vec()));
    let Ok(frames) = GifFrames::new(reader, Path::new("fuzz"), limits) else { return };
    let pixels = frames.width_px() as usize * frames.height_px() as usize;
    assert!(pixels as u64 <= limits.max_pixels);
    for frame in frames.take(64) {
        let Ok((picture, time)) = frame else { return };
        assert_eq!(picture.data.len(), 3 * pixels);
        assert!(!time.is_zero());
    }
});
