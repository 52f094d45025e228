//! The frames of a GIF, one after the other: decoded when asked for, disposal applied, delays read as browsers do.
//!
//! Built on the crate `gif`, which gives the pieces; they are put together here on one canvas that is used again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gif::{ColorOutput, DecodeOptions, Decoder, DisposalMethod};

use super::{PictureError, PictureLimits, ReadSeek, check_pixels};
use crate::frame::RgbImage;

/// Browsers show frames that ask for less than 20 ms for 100 ms; clips are made with that in mind.
const SHORTEST_DELAY: Duration = Duration::from_millis(20);
const DELAY_WHEN_TOO_SHORT: Duration = Duration::from_millis(100);

/// Gives each frame with the time it is shown. Ends after its first error: a GIF cannot be taken up again behind damage.
pub struct GifFrames {
    path: PathBuf,
    limits: PictureLimits,
    decoder: Decoder<Box<dyn ReadSeek>>,
    canvas: RgbImage,
    /// What the last frame asks for before the next is drawn.
    pending: Pending,
    /// Palette indices of one frame.
    indices: Vec<u8>,
    ended: bool,
}

enum Pending {
    Nothing,
    /// White again where the frame was.
    Clear(Area),
    /// As it was before the frame.
    Restore(Vec<u8>),
}

/// A part of the canvas, in pixels, inside it.
#[derive(Clone, Copy)]
struct Area {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl std::fmt::Debug for GifFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GifFrames").field("path", &self.path).finish_non_exhaustive()
    }
}

impl GifFrames {
    /// Reads the header; `path` is for messages.
    ///
    /// # Errors
    /// [`PictureError`] where the header is damaged or its size is beyond `limits`.
    pub fn new(reader: Box<dyn ReadSeek>, path: &Path, limits: PictureLimits) -> Result<Self, PictureError> {
        let mut options = DecodeOptions::new();
        options.set_color_output(ColorOutput::Indexed);
        let decoder = options.read_info(reader).map_err(|e| PictureError::damaged(path, e))?;
        let (width_px, height_px) = (decoder.width().into(), decoder.height().into());
        check_pixels(path, width_px, height_px, limits)?;
        let canvas = RgbImage { width_px, height_px, data: Vec::new() };
        let (pending, indices) = (Pending::Nothing, Vec::new());
        Ok(Self { path: path.into(), limits, decoder, canvas, pending, indices, ended: false })
    }

    /// Width of every frame in pixels.
    pub fn width_px(&self) -> u32 {
        self.canvas.width_px
    }

    /// Height of every frame in pixels.
    pub fn height_px(&self) -> u32 {
        self.canvas.height_px
    }

    /// Draws the next frame onto the canvas; `None` at the end.
    fn draw(&mut self) -> Result<Option<Duration>, PictureError> {
        self.settle_last();
        let damaged = |e: gif::DecodingError| PictureError::damaged(&self.path, e);
        let Some(frame) = self.decoder.next_frame_info().map_err(damaged)? else { return Ok(None) };
        let (dispose, transparent) = (frame.dispose, frame.transparent);
        let (left, top) = (usize::from(frame.left), usize::from(frame.top));
        let (width, height) = (usize::from(frame.width), usize::from(frame.height));
        let asked = Duration::from_millis(10 * u64::from(frame.delay));
        check_pixels(&self.path, width as u32, height as u32, self.limits)?;
        self.indices.resize(self.decoder.buffer_size(), 0);
        self.decoder.read_into_buffer(&mut self.indices).map_err(damaged)?;

        let canvas_width = self.canvas.width_px as usize;
        let area = Area {
            left: left.min(canvas_width),
            top: top.min(self.canvas.height_px as usize),
            width: width.min(canvas_width.saturating_sub(left)),
            height: height.min((self.canvas.height_px as usize).saturating_sub(top)),
        };
        self.pending = match dispose {
            DisposalMethod::Any | DisposalMethod::Keep => Pending::Nothing,
            DisposalMethod::Background => Pending::Clear(area),
            DisposalMethod::Previous => Pending::Restore(self.canvas.data.clone()),
        };
        let palette = self.decoder.palette().map_err(damaged)?.as_chunks::<3>().0;
        for (row, indices) in self.indices.chunks_exact(width).take(area.height).enumerate() {
            let start = 3 * ((area.top + row) * canvas_width + area.left);
            let pixels = self.canvas.data[start..start + 3 * area.width].as_chunks_mut::<3>().0;
            for (pixel, index) in pixels.iter_mut().zip(indices) {
                if Some(*index) != transparent {
                    *pixel = palette.get(usize::from(*index)).copied().unwrap_or_default();
                }
            }
        }
        Ok(Some(if asked < SHORTEST_DELAY { DELAY_WHEN_TOO_SHORT } else { asked }))
    }

    fn settle_last(&mut self) {
        if self.canvas.data.is_empty() {
            self.canvas.resize(self.canvas.width_px, self.canvas.height_px);
            self.canvas.data.fill(255);
        }
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => {}
            Pending::Restore(before) => self.canvas.data = before,
            Pending::Clear(Area { left, top, width, height }) => {
                for row in self.canvas.data.chunks_exact_mut(3 * self.canvas.width_px as usize).skip(top).take(height) {
                    row[3 * left..3 * (left + width)].fill(255);
                }
            }
        }
    }
}

impl Iterator for GifFrames {
    type Item = Result<(RgbImage, Duration), PictureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.draw() {
            Ok(Some(delay)) => Some(Ok((self.canvas.clone(), delay))),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(e) => {
                self.ended = true;
                Some(Err(e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A frame of one colour: 0 red, 1 green, 2 transparent.
    fn frame(
        colour: u8,
        (left, top, width, height): (u16, u16, u16, u16),
        dispose: DisposalMethod,
    ) -> gif::Frame<'static> {
        gif::Frame {
            left,
            top,
            width,
            height,
            dispose,
            transparent: Some(2),
            buffer: vec![colour; usize::from(width) * usize::from(height)].into(),
            ..gif::Frame::default()
        }
    }

    fn rows(frames: &[gif::Frame<'static>]) -> Vec<String> {
        let mut bytes = Vec::new();
        let mut encoder = gif::Encoder::new(&mut bytes, 4, 1, &[255, 0, 0, 0, 255, 0, 9, 9, 9, 0, 0, 0]).unwrap();
        for frame in frames {
            encoder.write_frame(frame).unwrap();
        }
        drop(encoder);
        let name = |pixel: &[u8; 3]| match pixel {
            [255, 0, 0] => 'r',
            [0, 255, 0] => 'g',
            [255, 255, 255] => '.',
            _ => '?',
        };
        let decoded =
            GifFrames::new(Box::new(Cursor::new(bytes)), Path::new("a.gif"), PictureLimits::default()).unwrap();
        decoded.map(|item| item.unwrap().0.data.as_chunks::<3>().0.iter().map(name).collect()).collect()
    }

    #[test]
    fn frames_are_kept_cleared_or_taken_back_as_they_ask() {
        use DisposalMethod::{Background, Keep, Previous};
        let all = (0, 0, 4, 1);
        assert_eq!(
            rows(&[
                frame(0, (0, 0, 2, 1), Keep),
                frame(1, (1, 0, 2, 1), Previous),
                frame(2, all, Keep),
                frame(1, (1, 0, 1, 1), Background),
                frame(1, (3, 0, 1, 1), Keep),
            ]),
            ["rr..", "rgg.", "rr..", "rg..", "r..g"]
        );
    }

    #[test]
    fn a_frame_that_reaches_over_the_canvas_is_cut_at_its_edge() {
        assert_eq!(
            rows(&[frame(0, (2, 0, 9, 5), DisposalMethod::Background), frame(1, (7, 3, 2, 2), DisposalMethod::Keep)]),
            ["..rr", "...."]
        );
    }

    #[test]
    fn delays_that_browsers_do_not_believe_are_not_believed_here() {
        let timed = |hundredths| {
            let mut bytes = Vec::new();
            let mut encoder = gif::Encoder::new(&mut bytes, 1, 1, &[0; 6]).unwrap();
            let delay = gif::Frame { delay: hundredths, ..frame(0, (0, 0, 1, 1), DisposalMethod::Keep) };
            encoder.write_frame(&delay).unwrap();
            drop(encoder);
            let reader = Box::new(Cursor::new(bytes));
            let mut frames = GifFrames::new(reader, Path::new("a.gif"), PictureLimits::default()).unwrap();
            frames.next().unwrap().unwrap().1.as_millis()
        };
        assert_eq!([timed(0), timed(1), timed(2), timed(65_535)], [100, 100, 20, 655_350]);
    }
}
