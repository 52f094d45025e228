//! Moving colour bars: frames without a camera, the same in every run.

use std::time::{Duration, Instant};

use super::clip::Pacer;
use super::{CaptureError, Source, Timing};
use crate::frame::{CaptureTime, Frame, PixelFormat};
use crate::pool::Pool;

/// The eight bars of the classic 100 % colour-bar chart, R G B, from white to black.
const BARS: [[u8; 3]; 8] =
    [[255, 255, 255], [255, 255, 0], [0, 255, 255], [0, 255, 0], [255, 0, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]];

/// Eight vertical bars that move left by one 64th of the width with each frame.
#[derive(Debug)]
pub struct Pattern {
    width_px: u32,
    height_px: u32,
    fps: u32,
    seq: u64,
    pacer: Pacer,
}

impl Pattern {
    /// Bars of the given size; a size or rate of 0 is taken as 1.
    pub fn new(width_px: u32, height_px: u32, fps: u32) -> Self {
        Self {
            width_px: width_px.max(1),
            height_px: height_px.max(1),
            fps: fps.max(1),
            seq: 0,
            pacer: Pacer::default(),
        }
    }

    /// Fills `rgb` with picture number `seq`.
    fn draw(&self, seq: u64, rgb: &mut Vec<u8>) {
        let width = u64::from(self.width_px);
        let shift = seq * width.div_ceil(64) % width;
        rgb.clear();
        for x in 0..width {
            rgb.extend_from_slice(&BARS[(8 * ((x + shift) % width) / width) as usize]);
        }
        let row = rgb.len();
        for _ in 1..self.height_px {
            rgb.extend_from_within(..row);
        }
    }
}

impl Source for Pattern {
    fn describe(&self) -> String {
        format!("test pattern, {}x{} at {} fps", self.width_px, self.height_px, self.fps)
    }

    fn timing(&self) -> Timing {
        Timing::Paced
    }

    fn next_frame(&mut self, pool: &Pool<Vec<u8>>, timeout: Duration) -> Result<Frame, CaptureError> {
        if !self.pacer.wait(Instant::now(), timeout) {
            return Err(CaptureError::TimedOut(timeout));
        }
        self.pacer.shown(Instant::now(), Duration::from_secs(1) / self.fps);
        let mut data = pool.take();
        self.draw(self.seq, &mut data);
        let seq = self.seq;
        self.seq += 1;
        Ok(Frame {
            data,
            format: PixelFormat::Rgb3,
            width_px: self.width_px,
            height_px: self.height_px,
            stride_bytes: 3 * self.width_px,
            seq,
            time: CaptureTime::now(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Converter, RgbImage};

    #[test]
    fn two_runs_give_the_same_frames_and_the_bars_move() {
        let pool = Pool::new(4);
        let run = || -> Vec<Vec<u8>> {
            let mut pattern = Pattern::new(64, 3, 1000);
            (0..3).map(|_| pattern.next_frame(&pool, Duration::from_secs(5)).unwrap().data.clone()).collect()
        };
        let (a, b) = (run(), run());
        assert_eq!(a, b);
        assert_ne!(a[0], a[1]);
        assert_eq!(a[0][3..], [&a[1][..3 * 64 * 3 - 3]].concat()[..3 * 64 * 3 - 3].to_vec()[..], "moved by a pixel")
    }

    #[test]
    fn frames_are_numbered_and_convert() {
        let (pool, mut pattern, mut rgb) = (Pool::new(1), Pattern::new(17, 5, 1000), RgbImage::default());
        for seq in 0..3 {
            let frame = pattern.next_frame(&pool, Duration::from_secs(5)).unwrap();
            assert_eq!(frame.seq, seq);
            Converter::new().to_rgb(&frame, &mut rgb).unwrap();
        }
        assert_eq!(rgb.data[..3], BARS[0]);
    }

    #[test]
    fn a_frame_that_is_not_due_yet_is_not_waited_for_beyond_the_time_out() {
        let (pool, mut pattern) = (Pool::new(1), Pattern::new(8, 8, 1));
        pattern.next_frame(&pool, Duration::from_millis(1)).unwrap();
        assert!(matches!(pattern.next_frame(&pool, Duration::from_millis(1)), Err(CaptureError::TimedOut(_))));
    }
}
