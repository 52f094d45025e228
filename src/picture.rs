//! Still and moving pictures on disk: opened with limits, turned upright, written with their mark.
//!
//! Invariants: the kind of a file is told by its content, never by its name; a picture's size is checked before its
//! pixels are decoded, so that neither a file of 100 megapixels nor a GIF bomb takes more memory than
//! [`PictureLimits`] allow; what is given out is upright 8-bit RGB in the file's own colour values (profiles are not
//! applied), transparency laid over white, as a page would show it.

pub mod avi;
mod gif;
mod write;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::frame::{ConvertError, Converter, RgbImage};
use avi::AviReader;

pub use gif::GifFrames;
pub use write::{Synthetic, WriteError, encode_synthetic, write_synthetic};

/// How much a picture may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureLimits {
    /// Pictures with more pixels are refused.
    pub max_pixels: u64,
    /// Still pictures whose file is longer are refused.
    pub max_file_bytes: u64,
}

impl Default for PictureLimits {
    /// 64 megapixels and 256 MiB: above any phone's photograph, below what a board with 2 GB would feel (at most
    /// 8 bytes a pixel while decoding).
    fn default() -> Self {
        Self { max_pixels: 64_000_000, max_file_bytes: 256 << 20 }
    }
}

/// Why a picture could not be read. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// It cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder, a socket, a device.
    #[error("{}: this is not a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Zero bytes.
    #[error("{}: the file is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Its content is of no kind that is read here.
    #[error("{}: this is not a picture but {found}; JPEG, PNG, WebP, GIF and MJPEG AVI are read", path.display())]
    NotAPicture {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: &'static str,
    },
    /// More pixels than [`PictureLimits::max_pixels`].
    #[error("{}: {width_px}x{height_px} pixels are more than the {max_pixels} allowed; scale it down first", path.display())]
    TooManyPixels {
        /// The file.
        path: PathBuf,
        /// Width in pixels.
        width_px: u32,
        /// Height in pixels.
        height_px: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// More bytes than [`PictureLimits::max_file_bytes`].
    #[error("{}: {bytes} bytes are more than the {max_bytes} allowed", path.display())]
    TooManyBytes {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// Cut short or damaged.
    #[error("{}: cut short or damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// One frame of an AVI could not be decoded; the next may be fine.
    #[error("{}: frame {frame}: {source}", path.display())]
    Frame {
        /// The file.
        path: PathBuf,
        /// Counted from 0.
        frame: u64,
        /// Why.
        source: ConvertError,
    },
}

impl PictureError {
    fn damaged(path: &Path, reason: impl ToString) -> Self {
        Self::Damaged { path: path.into(), reason: reason.to_string() }
    }
}

/// What a file holds, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A still picture.
    Still(ImageFormat),
    /// A GIF, of one frame or many.
    Gif,
    /// An AVI; whether there is MJPEG inside is told by [`AviReader::open`].
    Avi,
}

impl FileKind {
    /// Tells the kind by the first bytes (12 are enough), or says what they look like instead.
    ///
    /// # Errors
    /// `Err(found)` completes the sentence "this is not a picture but ...".
    pub fn of(head: &[u8]) -> Result<Self, &'static str> {
        match head {
            [0xff, 0xd8, 0xff, ..] => Ok(Self::Still(ImageFormat::Jpeg)),
            [0x89, b'P', b'N', b'G', ..] => Ok(Self::Still(ImageFormat::Png)),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Self::Still(ImageFormat::WebP)),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => Ok(Self::Avi),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Self::Gif),
            _ => Err(looks_like(head)),
        }
    }
}

fn looks_like(head: &[u8]) -> &'static str {
    let text = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..);
    match head {
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [b'B', b'M', ..] => "a BMP picture",
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => "a TIFF picture",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an MP4, HEIC or AVIF file",
        [0x1a, 0x45, 0xdf, 0xa3, ..] => "a Matroska or WebM video",
        _ if head.iter().all(text) => "text",
        _ => "data of an unknown kind",
    }
}

/// Reads a still picture, or the first frame of a GIF or AVI.
///
/// # Errors
/// [`PictureError`].
pub fn open(path: &Path, limits: PictureLimits) -> Result<RgbImage, PictureError> {
    match frames(path, limits)?.next() {
        Some(first) => first.map(|(_, picture)| picture),
        None => Err(PictureError::damaged(path, "there is no frame in it")),
    }
}

/// Reads a picture frame by frame: one of a still picture, all of a GIF or an MJPEG AVI, decoded as they are asked for.
///
/// # Errors
/// [`PictureError`] where not even a start can be made.
pub fn frames(path: &Path, limits: PictureLimits) -> Result<Frames, PictureError> {
    let (kind, file) = recognise(path)?;
    let kind = match kind {
        FileKind::Still(format) => {
            Kind::Still(Some(Box::new(decode_still(path, format, &read_all(path, file, limits)?, limits)?)))
        }
        FileKind::Gif => Kind::Gif(Box::new(GifFrames::new(Box::new(BufReader::new(file)), path, limits)?)),
        FileKind::Avi => {
            let reader = AviReader::open(Box::new(BufReader::new(file)) as Box<dyn ReadSeek>);
            let avi = reader.map_err(|e| PictureError::damaged(path, e))?;
            check_pixels(path, avi.width_px(), avi.height_px(), limits)?;
            Kind::Avi(Box::new(AviFrames { avi, converter: Converter::new() }))
        }
    };
    Ok(Frames { path: path.into(), next: 0, kind })
}

/// Opens `path` and tells what it holds; the file stands at its beginning.
pub(crate) fn recognise(path: &Path) -> Result<(FileKind, File), PictureError> {
    let io = |source| PictureError::Io { path: path.into(), source };
    // Asked before opening: opening a FIFO would wait for a writer.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(PictureError::NotAFile { path: path.into() });
    }
    let mut file = File::open(path).map_err(io)?;
    let mut head = Vec::with_capacity(64);
    file.by_ref().take(64).read_to_end(&mut head).map_err(io)?;
    file.rewind().map_err(io)?;
    if head.is_empty() {
        return Err(PictureError::Empty { path: path.into() });
    }
    let kind = FileKind::of(&head).map_err(|found| PictureError::NotAPicture { path: path.into(), found })?;
    Ok((kind, file))
}

fn read_all(path: &Path, file: File, limits: PictureLimits) -> Result<Vec<u8>, PictureError> {
    let io = |source| PictureError::Io { path: path.into(), source };
    let (bytes, max_bytes) = (file.metadata().map_err(io)?.len(), limits.max_file_bytes);
    if bytes > max_bytes {
        return Err(PictureError::TooManyBytes { path: path.into(), bytes, max_bytes });
    }
    let mut all = Vec::with_capacity(bytes as usize);
    file.take(max_bytes).read_to_end(&mut all).map_err(io)?;
    Ok(all)
}

pub(crate) fn check_pixels(
    path: &Path,
    width_px: u32,
    height_px: u32,
    limits: PictureLimits,
) -> Result<(), PictureError> {
    let pixels = u64::from(width_px) * u64::from(height_px);
    if pixels == 0 {
        return Err(PictureError::damaged(path, format!("it has {width_px}x{height_px} pixels")));
    }
    if pixels > limits.max_pixels {
        let max_pixels = limits.max_pixels;
        return Err(PictureError::TooManyPixels { path: path.into(), width_px, height_px, max_pixels });
    }
    Ok(())
}

/// Decodes a still picture that is in memory; `path` is for messages.
///
/// # Errors
/// [`PictureError`].
pub fn decode_still(
    path: &Path,
    format: ImageFormat,
    bytes: &[u8],
    limits: PictureLimits,
) -> Result<RgbImage, PictureError> {
    let damaged = |e: image::ImageError| PictureError::damaged(path, e);
    // The decoder fills up what is missing from a JPEG with grey and says nothing; only the end marker tells.
    if format == ImageFormat::Jpeg && !bytes.windows(2).rev().any(|marker| marker == [0xff, 0xd9]) {
        return Err(PictureError::damaged(path, "the end-of-image marker is missing"));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.no_limits();
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width_px, height_px) = decoder.dimensions();
    check_pixels(path, width_px, height_px, limits)?;
    let mut allowance = Limits::default();
    allowance.max_alloc = Some(8 * limits.max_pixels + (64 << 20));
    decoder.set_limits(allowance).map_err(damaged)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    Ok(to_rgb(picture))
}

fn to_rgb(picture: DynamicImage) -> RgbImage {
    let (width_px, height_px) = (picture.width(), picture.height());
    let data = if picture.color().has_alpha() {
        let rgba = picture.into_rgba8();
        let mut data = Vec::with_capacity(3 * rgba.len() / 4);
        data.extend(rgba.as_chunks::<4>().0.iter().flat_map(over_white));
        data
    } else {
        picture.into_rgb8().into_raw()
    };
    RgbImage { width_px, height_px, data }
}

/// One pixel with alpha, laid over white.
fn over_white(&[r, g, b, a]: &[u8; 4]) -> [u8; 3] {
    let alpha = u32::from(a);
    [r, g, b].map(|c| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8)
}

/// What a container is read from.
pub trait ReadSeek: BufRead + Seek + Send {}
impl<T: BufRead + Seek + Send> ReadSeek for T {}

/// The frames of a picture file, made by [`frames`]: `(index from 0, picture)`. After an error that is not
/// [`PictureError::Frame`] it has ended.
pub struct Frames {
    path: PathBuf,
    next: u64,
    kind: Kind,
}

enum Kind {
    Still(Option<Box<RgbImage>>),
    Gif(Box<GifFrames>),
    Avi(Box<AviFrames>),
}

struct AviFrames {
    avi: AviReader<Box<dyn ReadSeek>>,
    converter: Converter,
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames").field("path", &self.path).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Iterator for Frames {
    type Item = Result<(u64, RgbImage), PictureError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        let item = match &mut self.kind {
            Kind::Still(picture) => picture.take().map(|picture| Ok(*picture)),
            Kind::Gif(gif) => gif.next().map(|frame| frame.map(|(picture, _)| picture)),
            Kind::Avi(avi) => avi.next(&self.path, index),
        };
        self.next += 1;
        item.map(|picture| picture.map(|picture| (index, picture)))
    }
}

impl AviFrames {
    fn next(&mut self, path: &Path, frame: u64) -> Option<Result<RgbImage, PictureError>> {
        let pool = crate::pool::Pool::new(0);
        let mut data: crate::pool::Pooled<Vec<u8>> = pool.take();
        match self.avi.next_frame(&mut data) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(e) => {
                self.avi.finish();
                return Some(Err(PictureError::damaged(path, e)));
            }
        }
        let frame_ = crate::frame::Frame {
            data,
            format: crate::frame::PixelFormat::Mjpg,
            width_px: self.avi.width_px(),
            height_px: self.avi.height_px(),
            stride_bytes: 0,
            seq: frame,
            time: crate::frame::CaptureTime::now(),
        };
        let mut picture = RgbImage::default();
        let converted = self.converter.to_rgb(&frame_, &mut picture);
        Some(converted.map(|()| picture).map_err(|source| PictureError::Frame { path: path.into(), frame, source }))
    }
}
