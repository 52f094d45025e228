//! Clips as sources: a GIF, a folder of JPEG, PNG or WebP pictures, an MJPEG AVI; from disk, or a GIF or AVI from memory.
//!
//! Invariants: the first frame comes before the rest is decoded; what is kept decoded stays within [`KEPT_BYTES`], a
//! longer clip is decoded anew in each round; a clip in which nothing can be read is an error and not an endless search.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{CaptureError, Source, Timing};
use crate::config::Pace;
use crate::frame::{CaptureTime, Frame, PixelFormat, RgbImage};
use crate::picture::avi::AviReader;
use crate::picture::{self, FileKind, GifFrames, PictureError, PictureLimits, ReadSeek};
use crate::pool::Pool;

/// Decoded pictures kept for the next round.
pub const KEPT_BYTES: usize = 32 << 20;
/// Smaller pictures hold no face.
const SMALLEST_SIDE_PX: u32 = 16;
/// Pictures in a folder have no times of their own: 25 a second.
const STILL_TIME: Duration = Duration::from_millis(40);

/// A clip that is being shown.
#[derive(Debug)]
pub struct Clip {
    name: PathBuf,
    reel: Reel,
    repeat: bool,
    pace: Pace,
    pacer: Pacer,
    seq: u64,
    /// Good frames in this round.
    good: u64,
    ended: bool,
}

enum Reel {
    Avi(Box<AviReader<Box<dyn ReadSeek>>>),
    Gif { origin: Origin, frames: Option<Box<GifFrames>>, kept: Kept, size_px: (u32, u32) },
    Stills { files: Vec<PathBuf>, next: usize, kept: Kept },
}

impl std::fmt::Debug for Reel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Avi(_) => "Avi",
            Self::Gif { .. } => "Gif",
            Self::Stills { .. } => "Stills",
        })
    }
}

/// Where a GIF is read from, again in each round.
#[derive(Clone, Copy)]
enum Origin {
    Disk,
    Memory(&'static [u8]),
}

/// One step through a clip.
enum Step {
    /// A picture is in the buffer.
    Picture { format: PixelFormat, size_px: (u32, u32), time: Duration },
    /// This one could not be read.
    Bad(String),
    /// The round is over.
    Over,
}

impl Clip {
    /// Opens a GIF, an AVI, a picture, or a folder of pictures.
    ///
    /// # Errors
    /// [`CaptureError::Picture`] and [`CaptureError::Clip`].
    pub fn open(path: &Path, repeat: bool, pace: Pace) -> Result<Self, CaptureError> {
        let unusable = |reason: &str| CaptureError::Clip { path: path.into(), reason: reason.into() };
        let io = |source| CaptureError::Picture(PictureError::Io { path: path.into(), source });
        let reel = if fs::metadata(path).map_err(io)?.is_dir() {
            let files = pictures_in(path).map_err(io)?;
            if files.is_empty() {
                return Err(unusable("there is no .jpg, .jpeg, .png or .webp file in this folder"));
            }
            Reel::Stills { files, next: 0, kept: Kept::default() }
        } else {
            let (kind, file) = picture::recognise(path)?;
            match kind {
                FileKind::Still(_) => Reel::Stills { files: vec![path.into()], next: 0, kept: Kept::default() },
                FileKind::Gif => gif(path, Origin::Disk)?,
                FileKind::Avi => avi(path, Box::new(std::io::BufReader::new(file)))?,
            }
        };
        Self::with(path, reel, repeat, pace)
    }

    /// A GIF or AVI that is part of the program; `name` is for messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: &'static [u8], repeat: bool, pace: Pace) -> Result<Self, CaptureError> {
        let path = Path::new(name);
        let reel = match FileKind::of(bytes.get(..64.min(bytes.len())).unwrap_or_default()) {
            Ok(FileKind::Gif) => gif(path, Origin::Memory(bytes))?,
            Ok(FileKind::Avi) => avi(path, Box::new(Cursor::new(bytes)))?,
            Ok(FileKind::Still(_)) => {
                return Err(CaptureError::Clip { path: path.into(), reason: "a still picture is not a clip".into() });
            }
            Err(found) => return Err(PictureError::NotAPicture { path: path.into(), found }.into()),
        };
        Self::with(path, reel, repeat, pace)
    }

    fn with(path: &Path, reel: Reel, repeat: bool, pace: Pace) -> Result<Self, CaptureError> {
        let size_px = match &reel {
            Reel::Avi(avi) => Some((avi.width_px(), avi.height_px())),
            Reel::Gif { size_px, .. } => Some(*size_px),
            Reel::Stills { .. } => None,
        };
        if let Some(Err(reason)) = size_px.map(large_enough) {
            return Err(CaptureError::Clip { path: path.into(), reason });
        }
        let pacer = Pacer::default();
        Ok(Self { name: path.into(), reel, repeat, pace, pacer, seq: 0, good: 0, ended: false })
    }

    fn end_of_round(&mut self) -> Result<(), CaptureError> {
        if std::mem::take(&mut self.good) == 0 {
            self.ended = true;
            let reason = "no frame in it can be read".to_owned();
            return Err(CaptureError::Clip { path: self.name.clone(), reason });
        }
        if !self.repeat {
            self.ended = true;
            return Err(CaptureError::Ended);
        }
        self.reel.rewind();
        Ok(())
    }
}

impl Source for Clip {
    fn describe(&self) -> String {
        let name = self.name.display();
        match &self.reel {
            Reel::Avi(avi) => {
                let fps = 1.0 / avi.frame_time().as_secs_f64();
                format!("{name}: MJPEG AVI, {}x{} at {fps:.0} fps", avi.width_px(), avi.height_px())
            }
            Reel::Gif { size_px: (width, height), .. } => format!("{name}: GIF, {width}x{height}"),
            Reel::Stills { files, .. } => format!("{name}: {} picture(s)", files.len()),
        }
    }

    fn timing(&self) -> Timing {
        match self.pace {
            Pace::RealTime => Timing::Paced,
            Pace::Fast => Timing::OnDemand,
        }
    }

    fn next_frame(&mut self, pool: &Pool<Vec<u8>>, timeout: Duration) -> Result<Frame, CaptureError> {
        if self.ended {
            return Err(CaptureError::Ended);
        }
        if self.pace == Pace::RealTime && !self.pacer.wait(Instant::now(), timeout) {
            return Err(CaptureError::TimedOut(timeout));
        }
        let mut data = pool.take();
        loop {
            match self.reel.step(&self.name, &mut data)? {
                Step::Over => self.end_of_round()?,
                Step::Bad(reason) => return Err(CaptureError::BadFrame(reason)),
                Step::Picture { format, size_px: (width_px, height_px), time } => {
                    self.pacer.shown(Instant::now(), time);
                    let seq = self.seq;
                    self.seq += 1;
                    self.good += 1;
                    let stride_bytes = if format == PixelFormat::Rgb3 { 3 * width_px } else { 0 };
                    let time = CaptureTime::now();
                    return Ok(Frame { data, format, width_px, height_px, stride_bytes, seq, time });
                }
            }
        }
    }
}

fn gif(path: &Path, origin: Origin) -> Result<Reel, PictureError> {
    let frames = origin.frames(path)?;
    let size_px = (frames.width_px(), frames.height_px());
    Ok(Reel::Gif { origin, frames: Some(Box::new(frames)), kept: Kept::default(), size_px })
}

fn avi(path: &Path, reader: Box<dyn ReadSeek>) -> Result<Reel, PictureError> {
    let damaged = |e| PictureError::Damaged { path: path.into(), reason: ToString::to_string(&e) };
    let avi = AviReader::open(reader).map_err(damaged)?;
    picture::check_pixels(path, avi.width_px(), avi.height_px(), PictureLimits::default())?;
    Ok(Reel::Avi(Box::new(avi)))
}

fn large_enough((width_px, height_px): (u32, u32)) -> Result<(), String> {
    if width_px.min(height_px) >= SMALLEST_SIDE_PX {
        return Ok(());
    }
    let least = SMALLEST_SIDE_PX;
    Err(format!("its frames of {width_px}x{height_px} pixels are too small to hold a face (at least {least}x{least})"))
}

impl Origin {
    fn frames(self, path: &Path) -> Result<GifFrames, PictureError> {
        let reader: Box<dyn ReadSeek> = match self {
            Self::Memory(bytes) => Box::new(Cursor::new(bytes)),
            Self::Disk => {
                let io = |source| PictureError::Io { path: path.into(), source };
                Box::new(std::io::BufReader::new(fs::File::open(path).map_err(io)?))
            }
        };
        GifFrames::new(reader, path, PictureLimits::default())
    }
}

impl Reel {
    fn step(&mut self, name: &Path, data: &mut Vec<u8>) -> Result<Step, CaptureError> {
        match self {
            Self::Avi(avi) => match avi.next_frame(data) {
                Ok(true) => {
                    let size_px = (avi.width_px(), avi.height_px());
                    Ok(Step::Picture { format: PixelFormat::Mjpg, size_px, time: avi.frame_time() })
                }
                Ok(false) => Ok(Step::Over),
                Err(e) => {
                    avi.finish();
                    Ok(Step::Bad(format!("{}: {e}", name.display())))
                }
            },
            Self::Gif { origin, frames, kept, .. } => {
                if let Some(step) = kept.step(data) {
                    return Ok(step);
                }
                // In a round after the first, of a clip that is too long to be kept.
                let decoding = match frames {
                    Some(decoding) => decoding,
                    None => frames.insert(Box::new(origin.frames(name)?)),
                };
                match decoding.next() {
                    Some(Ok((picture, time))) => Ok(kept.add(picture, time, data)),
                    Some(Err(e)) => Ok(Step::Bad(e.to_string())),
                    None => {
                        kept.complete();
                        Ok(Step::Over)
                    }
                }
            }
            Self::Stills { files, next, kept } => {
                if let Some(step) = kept.step(data) {
                    return Ok(step);
                }
                let Some(file) = files.get(*next) else {
                    kept.complete();
                    return Ok(Step::Over);
                };
                *next += 1;
                match picture::open(file, PictureLimits::default()) {
                    Ok(picture) => match large_enough((picture.width_px, picture.height_px)) {
                        Ok(()) => Ok(kept.add(picture, STILL_TIME, data)),
                        Err(reason) => Ok(Step::Bad(format!("{}: {reason}", file.display()))),
                    },
                    Err(e) => Ok(Step::Bad(e.to_string())),
                }
            }
        }
    }

    fn rewind(&mut self) {
        match self {
            Self::Avi(avi) => avi.rewind(),
            Self::Gif { frames, kept, .. } => {
                *frames = None;
                kept.next = 0;
            }
            Self::Stills { next, kept, .. } => {
                *next = 0;
                kept.next = 0;
            }
        }
    }
}

/// Decoded pictures, if all of a clip fit.
#[derive(Default)]
struct Kept {
    pictures: Vec<(RgbImage, Duration)>,
    bytes: usize,
    state: Keeping,
    next: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Keeping {
    /// In the first round.
    #[default]
    Filling,
    /// The clip is here whole.
    Complete,
    /// It did not fit.
    TooLong,
}

impl Kept {
    /// The next picture, once all are here.
    fn step(&mut self, data: &mut Vec<u8>) -> Option<Step> {
        if self.state != Keeping::Complete {
            return None;
        }
        let Some((picture, time)) = self.pictures.get(self.next) else { return Some(Step::Over) };
        self.next += 1;
        data.clear();
        data.extend_from_slice(&picture.data);
        Some(picture_step(picture, *time))
    }

    fn add(&mut self, picture: RgbImage, time: Duration, data: &mut Vec<u8>) -> Step {
        data.clear();
        data.extend_from_slice(&picture.data);
        let step = picture_step(&picture, time);
        if self.state == Keeping::Filling {
            self.bytes += picture.data.len();
            self.pictures.push((picture, time));
            if self.bytes > KEPT_BYTES {
                self.state = Keeping::TooLong;
                self.pictures = Vec::new();
            }
        }
        step
    }

    fn complete(&mut self) {
        if self.state == Keeping::Filling {
            self.state = Keeping::Complete;
            self.next = self.pictures.len();
        }
    }
}

fn picture_step(picture: &RgbImage, time: Duration) -> Step {
    Step::Picture { format: PixelFormat::Rgb3, size_px: (picture.width_px, picture.height_px), time }
}

/// The pictures in a folder by their extension, in natural order: `2.png` before `10.png`.
fn pictures_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        if matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png" | "webp")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(files)
}

/// Compares with runs of digits taken as numbers.
pub(crate) fn natural_order(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (l, r) = (number(left), number(right));
        let order = match (l, r) {
            (Some((l_digits, l_rest)), Some((r_digits, r_rest))) => {
                (left, right) = (l_rest, r_rest);
                l_digits.len().cmp(&r_digits.len()).then(l_digits.cmp(r_digits))
            }
            _ => {
                let (mut l, mut r) = (left.chars(), right.chars());
                let (l_char, r_char) = (l.next(), r.next());
                (left, right) = (l.as_str(), r.as_str());
                if l_char.is_none() && r_char.is_none() {
                    // Names that differ in leading zeros only.
                    return a.cmp(b);
                }
                l_char.cmp(&r_char)
            }
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Splits off a leading run of digits, without its leading zeros.
fn number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| (text[..end].trim_start_matches('0'), &text[end..]))
}

/// Shows frames at their times. A reader who is late sees the next at once; one who is very late (the machine slept)
/// goes on from now instead of rushing through what was missed.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    due: Option<Instant>,
}

impl Pacer {
    const VERY_LATE: Duration = Duration::from_secs(1);

    /// How long to wait until the next frame is due.
    fn left(&self, now: Instant) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    /// Waits until the next frame is due, at most `timeout`; says whether it is.
    pub(crate) fn wait(&self, now: Instant, timeout: Duration) -> bool {
        let left = self.left(now);
        std::thread::sleep(left.min(timeout));
        left <= timeout
    }

    /// A frame is shown that stays for `time`.
    pub(crate) fn shown(&mut self, now: Instant, time: Duration) {
        let due = self.due.unwrap_or(now);
        let from = if now.saturating_duration_since(due) > Self::VERY_LATE { now } else { due };
        self.due = Some(from + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_ordered_as_numbers() {
        let mut names = ["b2.png", "b10.png", "a.png", "b02.png", "b.png", "b2a.png", ""];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["", "a.png", "b.png", "b02.png", "b2.png", "b2a.png", "b10.png"]);
    }

    #[test]
    fn a_late_reader_catches_up_and_a_very_late_one_does_not_rush() {
        let start = Instant::now();
        let (ms, mut pacer) = (Duration::from_millis, Pacer::default());
        assert_eq!(pacer.left(start), ms(0));
        pacer.shown(start, ms(40));
        assert_eq!(pacer.left(start + ms(10)), ms(30));
        pacer.shown(start + ms(70), ms(40));
        assert_eq!(pacer.left(start + ms(70)), ms(10));
        pacer.shown(start + ms(5000), ms(40));
        assert_eq!(pacer.left(start + ms(5000)), ms(40));
    }
}
