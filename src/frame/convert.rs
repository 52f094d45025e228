//! Conversion of a [`Frame`] in any layout to RGB.
//!
//! Invariants: every length is checked before a byte is read, so a camera that cuts frames short gives an error and
//! never a panic; no memory is asked for before the size is known to be sane.
//!
//! Cameras give YUYV, UYVY and NV12 in ITU-R BT.601, limited range (16..235), the default that V4L2 names for
//! standard-definition and webcam sources; JPEG is BT.601 in full range, as JFIF says. GREY is taken as full range.

use yuv::{YuvBiPlanarImage, YuvConversionMode, YuvError, YuvGrayImage, YuvPackedImage, YuvRange, YuvStandardMatrix};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{Frame, PixelFormat, RgbImage};

/// Frames with more pixels are refused: 8192x8192, above any camera that V4L2 serves.
pub const MAX_FRAME_PIXELS: u64 = 1 << 26;

/// Turns frames into RGB; keep one for each thread, so that its scratch memory is used again.
///
/// Allocates nothing once it has seen a frame of each size, except for MJPG: there `zune-jpeg` makes its decoder state
/// anew for each picture (tables and a few rows of coefficients, about 100 KB at 640x480 in some twenty allocations).
#[derive(Debug, Default)]
pub struct Converter {
    jpeg: Vec<u8>,
}

/// Why a frame could not be converted; the next one may be fine.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Fewer bytes than the size and layout need.
    #[error("the camera cut a {format:?} frame of {width_px}x{height_px} short: {wanted} bytes wanted, {got} given")]
    TooShort {
        /// Layout.
        format: PixelFormat,
        /// Width in pixels.
        width_px: u32,
        /// Height in pixels.
        height_px: u32,
        /// Bytes that the size and layout need.
        wanted: u64,
        /// Bytes that there are.
        got: u64,
    },
    /// A row of pixels does not fit into the distance between rows.
    #[error("a {format:?} row of {width_px} pixels takes {wanted} bytes, but rows are said to lie {got} bytes apart")]
    Stride {
        /// Layout.
        format: PixelFormat,
        /// Width in pixels.
        width_px: u32,
        /// Bytes of a row.
        wanted: u64,
        /// Bytes from row to row.
        got: u64,
    },
    /// No pixels, or more than [`MAX_FRAME_PIXELS`].
    #[error("a frame of {width_px}x{height_px} pixels is not taken (1 to {MAX_FRAME_PIXELS} pixels)")]
    Size {
        /// Width in pixels.
        width_px: u32,
        /// Height in pixels.
        height_px: u32,
    },
    /// The JPEG picture has another size than the camera said.
    #[error("the JPEG picture is {got_width_px}x{got_height_px}, the camera had said {width_px}x{height_px}")]
    JpegSize {
        /// Width that was agreed.
        width_px: u32,
        /// Height that was agreed.
        height_px: u32,
        /// Width in the picture.
        got_width_px: u32,
        /// Height in the picture.
        got_height_px: u32,
    },
    /// The JPEG picture is cut short or damaged.
    #[error("the JPEG picture cannot be decoded: {0}")]
    Jpeg(String),
    /// The conversion library refused what passed our checks.
    #[error("conversion failed: {0}")]
    Library(String),
}

impl Converter {
    /// A converter without scratch memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Converts `frame` into `out`, which gets the frame's size.
    ///
    /// # Errors
    /// [`ConvertError`]; the contents of `out` are then unspecified, its invariant holds.
    pub fn to_rgb(&mut self, frame: &Frame, out: &mut RgbImage) -> Result<(), ConvertError> {
        let (width_px, height_px) = (frame.width_px, frame.height_px);
        let pixels = u64::from(width_px) * u64::from(height_px);
        if pixels == 0 || pixels > MAX_FRAME_PIXELS {
            return Err(ConvertError::Size { width_px, height_px });
        }
        match frame.format {
            PixelFormat::Mjpg => self.jpeg_to_rgb(frame, out),
            PixelFormat::Yuyv | PixelFormat::Uyvy => packed_to_rgb(&Raw::checked(frame)?, out),
            PixelFormat::Nv12 => nv12_to_rgb(&Raw::checked(frame)?, out),
            PixelFormat::Grey => rows_to_rgb(&Raw::checked(frame)?, out, |row, rgb| {
                let image = YuvGrayImage { y_plane: row, y_stride: width_px, width: width_px, height: 1 };
                yuv::yuv400_to_rgb(&image, rgb, 3 * width_px, YuvRange::Full, MATRIX)
            }),
            PixelFormat::Rgb3 => rows_to_rgb(&Raw::checked(frame)?, out, |row, rgb| {
                rgb.copy_from_slice(row);
                Ok(())
            }),
            PixelFormat::Bgr3 => rows_to_rgb(&Raw::checked(frame)?, out, |row, rgb| {
                yuv::bgr_to_rgb(row, 3 * width_px, rgb, 3 * width_px, width_px, 1)
            }),
        }
    }

    fn jpeg_to_rgb(&mut self, frame: &Frame, out: &mut RgbImage) -> Result<(), ConvertError> {
        let data = jpeg_with_tables(&frame.data, &mut self.jpeg)?;
        let options = DecoderOptions::default()
            .set_max_width(u16::MAX.into())
            .set_max_height(u16::MAX.into())
            .jpeg_set_out_colorspace(ColorSpace::RGB);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
        decoder.decode_headers().map_err(|e| ConvertError::Jpeg(e.to_string()))?;
        let (got_width, got_height) = decoder.dimensions().unwrap_or_default();
        if (got_width, got_height) != (frame.width_px as usize, frame.height_px as usize) {
            return Err(ConvertError::JpegSize {
                width_px: frame.width_px,
                height_px: frame.height_px,
                got_width_px: got_width as u32,
                got_height_px: got_height as u32,
            });
        }
        out.resize(frame.width_px, frame.height_px);
        decoder.decode_into(&mut out.data).map_err(|e| ConvertError::Jpeg(e.to_string()))
    }
}

/// A frame of an uncompressed layout whose lengths have been checked.
struct Raw<'a> {
    format: PixelFormat,
    width_px: u32,
    height_px: u32,
    stride: usize,
    /// Bytes of a row that hold pixels.
    row: usize,
    data: &'a [u8],
}

impl<'a> Raw<'a> {
    fn checked(frame: &'a Frame) -> Result<Self, ConvertError> {
        let Frame { format, width_px, height_px, .. } = *frame;
        // Sums in u64: sizes come from outside and usize has 32 bits on some boards.
        let (width, height, stride) = (u64::from(width_px), u64::from(height_px), u64::from(frame.stride_bytes));
        let row = row_bytes(format, width);
        if stride < row {
            return Err(ConvertError::Stride { format, width_px, wanted: row, got: stride });
        }
        let wanted = match format {
            // The chroma plane starts after whole rows of luminance and has the same stride.
            PixelFormat::Nv12 => stride * height + stride * (height.div_ceil(2) - 1) + row,
            _ => stride * (height - 1) + row,
        };
        let got = frame.data.len() as u64;
        if got < wanted {
            return Err(ConvertError::TooShort { format, width_px, height_px, wanted, got });
        }
        Ok(Self { format, width_px, height_px, stride: stride as usize, row: row as usize, data: &frame.data })
    }
}

/// Bytes that `width` pixels of an uncompressed layout take; chroma pairs are whole also where the width is odd.
pub(crate) fn row_bytes(format: PixelFormat, width: u64) -> u64 {
    match format {
        PixelFormat::Yuyv | PixelFormat::Uyvy => 4 * width.div_ceil(2),
        PixelFormat::Nv12 => 2 * width.div_ceil(2),
        PixelFormat::Grey => width,
        PixelFormat::Rgb3 | PixelFormat::Bgr3 => 3 * width,
        PixelFormat::Mjpg => 0,
    }
}

/// Converts row by row, so that neither stride nor an early end of the last row is of interest to `convert`.
fn rows_to_rgb(
    raw: &Raw<'_>,
    out: &mut RgbImage,
    convert: impl Fn(&[u8], &mut [u8]) -> Result<(), YuvError>,
) -> Result<(), ConvertError> {
    out.resize(raw.width_px, raw.height_px);
    let rgb_rows = out.data.chunks_exact_mut(3 * raw.width_px as usize);
    for (rgb, row) in rgb_rows.zip(raw.data.chunks(raw.stride)) {
        convert(&row[..raw.row], rgb).map_err(|e| ConvertError::Library(e.to_string()))?;
    }
    Ok(())
}

const RANGE: YuvRange = YuvRange::Limited;
const MATRIX: YuvStandardMatrix = YuvStandardMatrix::Bt601;

fn packed_to_rgb(raw: &Raw<'_>, out: &mut RgbImage) -> Result<(), ConvertError> {
    out.resize(raw.width_px, raw.height_px);
    let rgb_stride = 3 * raw.width_px;
    // The library wants every row to be `stride` long, but drivers may end the last one early: it goes by itself.
    let head_rows = raw.height_px as usize - 1;
    let (head, last) = raw.data.split_at(head_rows * raw.stride);
    let (rgb_head, rgb_last) = out.data.split_at_mut(head_rows * rgb_stride as usize);
    let convert = |yuy: &[u8], stride: usize, height: usize, rgb: &mut [u8]| {
        if height == 0 {
            return Ok(());
        }
        let image = YuvPackedImage { yuy, yuy_stride: stride as u32, width: raw.width_px, height: height as u32 };
        match raw.format {
            PixelFormat::Uyvy => yuv::uyvy422_to_rgb(&image, rgb, rgb_stride, RANGE, MATRIX),
            _ => yuv::yuyv422_to_rgb(&image, rgb, rgb_stride, RANGE, MATRIX),
        }
        .map_err(|e| ConvertError::Library(e.to_string()))
    };
    convert(head, raw.stride, head_rows, rgb_head)?;
    convert(&last[..raw.row], raw.row, 1, rgb_last)
}

fn nv12_to_rgb(raw: &Raw<'_>, out: &mut RgbImage) -> Result<(), ConvertError> {
    out.resize(raw.width_px, raw.height_px);
    let rgb_stride = 3 * raw.width_px;
    let (luma, chroma) = raw.data.split_at(raw.stride * raw.height_px as usize);
    // As above: the last row of chroma may end early, so its one or two rows of pixels go by themselves.
    let head_pairs = (raw.height_px as usize - 1) / 2;
    let head_rows = 2 * head_pairs;
    let convert = |rows: std::ops::Range<usize>, uv_plane: &[u8], uv_stride: usize, rgb: &mut [u8]| {
        if rows.is_empty() {
            return Ok(());
        }
        let image = YuvBiPlanarImage {
            y_plane: &luma[rows.start * raw.stride..rows.end * raw.stride],
            y_stride: raw.stride as u32,
            uv_plane,
            uv_stride: uv_stride as u32,
            width: raw.width_px,
            height: rows.len() as u32,
        };
        yuv::yuv_nv12_to_rgb(&image, rgb, rgb_stride, RANGE, MATRIX, YuvConversionMode::Balanced)
            .map_err(|e| ConvertError::Library(e.to_string()))
    };
    let (chroma_head, chroma_last) = chroma.split_at(head_pairs * raw.stride);
    let (rgb_head, rgb_last) = out.data.split_at_mut(head_rows * rgb_stride as usize);
    convert(0..head_rows, chroma_head, raw.stride, rgb_head)?;
    convert(head_rows..raw.height_px as usize, &chroma_last[..raw.row], raw.row, rgb_last)
}

/// `APP0` as MJPEG AVI files carry it; the decoder then takes the Huffman tables of the JPEG standard (Annex K.3)
/// where a picture brings none.
const AVI1_SEGMENT: [u8; 18] = *b"\xff\xe0\x00\x10AVI1\0\0\0\0\0\0\0\0\0\0";

/// Gives `jpeg` itself, or, where it defines no Huffman tables (as many cameras leave them out), a copy in `scratch`
/// with the mark that makes the decoder use the standard ones.
fn jpeg_with_tables<'a>(jpeg: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<&'a [u8], ConvertError> {
    if !jpeg.starts_with(&[0xff, 0xd8]) {
        return Err(ConvertError::Jpeg("it does not start with a start-of-image marker".into()));
    }
    // The decoder fills up what a transfer error cut off; only the missing end marker tells.
    if !jpeg.windows(2).rev().any(|marker| marker == [0xff, 0xd9]) {
        return Err(ConvertError::Jpeg(format!("it ends after {} bytes without an end-of-image marker", jpeg.len())));
    }
    if has_huffman_tables(jpeg) {
        return Ok(jpeg);
    }
    scratch.clear();
    scratch.extend_from_slice(&jpeg[..2]);
    scratch.extend_from_slice(&AVI1_SEGMENT);
    scratch.extend_from_slice(&jpeg[2..]);
    Ok(scratch)
}

/// Whether a DHT segment comes before the first scan. Pictures that cannot be walked count as having one: the decoder
/// says what is wrong with them.
fn has_huffman_tables(jpeg: &[u8]) -> bool {
    let mut at = 2;
    loop {
        match jpeg.get(at..) {
            // Fill bytes may stand before any marker.
            Some([0xff, 0xff, ..]) => at += 1,
            Some([0xff, 0xda, ..]) => return false,
            Some([0xff, 0xc4, ..]) => return true,
            Some([0xff, 0x01 | 0xd0..=0xd7, ..]) => at += 2,
            Some([0xff, _, high, low, ..]) => at += 2 + usize::from(u16::from_be_bytes([*high, *low])).max(2),
            _ => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::frame::CaptureTime;
    use crate::pool::Pool;

    fn frame(format: PixelFormat, width_px: u32, height_px: u32, stride_bytes: u32, bytes: &[u8]) -> Frame {
        let mut data = Pool::<Vec<u8>>::new(1).take();
        data.extend_from_slice(bytes);
        let time = CaptureTime { monotonic: Instant::now(), wall: jiff::Timestamp::UNIX_EPOCH };
        Frame { data, format, width_px, height_px, stride_bytes, seq: 0, time }
    }

    /// ITU-R BT.601, limited range, in double precision.
    fn bt601(y: u8, cb: u8, cr: u8) -> [f64; 3] {
        let (y, cb, cr) = ((f64::from(y) - 16.0) * 255.0 / 219.0, f64::from(cb) - 128.0, f64::from(cr) - 128.0);
        let (cb, cr) = (cb * 255.0 / 224.0, cr * 255.0 / 224.0);
        [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|v: f64| v.clamp(0.0, 255.0))
    }

    /// The pixel at (x, y), from the definition of each layout.
    fn reference(frame: &Frame, x: usize, y: usize) -> [f64; 3] {
        let (stride, data) = (frame.stride_bytes as usize, &frame.data[..]);
        let row = y * stride;
        match frame.format {
            PixelFormat::Yuyv => {
                let pair = row + 4 * (x / 2);
                bt601(data[pair + 2 * (x % 2)], data[pair + 1], data[pair + 3])
            }
            PixelFormat::Uyvy => {
                let pair = row + 4 * (x / 2);
                bt601(data[pair + 1 + 2 * (x % 2)], data[pair], data[pair + 2])
            }
            PixelFormat::Nv12 => {
                let pair = stride * frame.height_px as usize + y / 2 * stride + 2 * (x / 2);
                bt601(data[row + x], data[pair], data[pair + 1])
            }
            PixelFormat::Grey => [f64::from(data[row + x]); 3],
            PixelFormat::Rgb3 => [0, 1, 2].map(|c| f64::from(data[row + 3 * x + c])),
            PixelFormat::Bgr3 => [2, 1, 0].map(|c| f64::from(data[row + 3 * x + c])),
            PixelFormat::Mjpg => unreachable!("has no pixels of its own"),
        }
    }

    fn wanted_bytes(format: PixelFormat, width: usize, height: usize, stride: usize) -> usize {
        let row = row_bytes(format, width as u64) as usize;
        let rows = if format == PixelFormat::Nv12 { height + height.div_ceil(2) } else { height };
        stride * (rows - 1) + row
    }

    const RAW_FORMATS: [PixelFormat; 6] = [
        PixelFormat::Yuyv,
        PixelFormat::Uyvy,
        PixelFormat::Nv12,
        PixelFormat::Grey,
        PixelFormat::Rgb3,
        PixelFormat::Bgr3,
    ];

    fn raw_frames() -> impl Strategy<Value = Frame> {
        let shape = (prop::sample::select(&RAW_FORMATS[..]), 1..90usize, 1..12usize, 0..40usize, 0..70usize);
        let seeded = (shape, any::<u64>());
        seeded.prop_map(|((format, width, height, padding, surplus), seed)| {
            let stride = row_bytes(format, width as u64) as usize + padding;
            let mut state = seed | 1;
            let mut noise = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            let yuv = matches!(format, PixelFormat::Yuyv | PixelFormat::Uyvy | PixelFormat::Nv12);
            let bytes: Vec<u8> = (0..wanted_bytes(format, width, height, stride) + surplus)
                // Below black the library takes luminance as black, on some processors.
                .map(|_| if yuv { noise().max(16) } else { noise() })
                .collect();
            frame(format, width as u32, height as u32, stride as u32, &bytes)
        })
    }

    proptest! {
        /// The library works with six fractional bits at least: each channel is within 3 of the exact value.
        #[test]
        fn every_layout_of_any_size_and_stride_agrees_with_its_definition(frame in raw_frames()) {
            let mut out = RgbImage::default();
            Converter::new().to_rgb(&frame, &mut out).unwrap();
            prop_assert_eq!((out.width_px, out.height_px), (frame.width_px, frame.height_px));
            let tolerance = match frame.format { PixelFormat::Yuyv | PixelFormat::Uyvy | PixelFormat::Nv12 => 3.0, _ => 0.0 };
            for (n, pixel) in out.data.as_chunks::<3>().0.iter().enumerate() {
                let wanted = reference(&frame, n % out.width_px as usize, n / out.width_px as usize);
                for (got, wanted) in pixel.iter().zip(wanted) {
                    prop_assert!((f64::from(*got) - wanted).abs() <= tolerance, "pixel {}: {:?} for {:?}", n, pixel, wanted);
                }
            }
        }

        #[test]
        fn a_frame_one_byte_short_is_an_error_that_counts(frame_ in raw_frames(), cut in 1..60usize) {
            let Frame { format, width_px, height_px, stride_bytes, .. } = frame_;
            let wanted = wanted_bytes(format, width_px as usize, height_px as usize, stride_bytes as usize);
            let left = wanted.saturating_sub(cut);
            let short = frame(format, width_px, height_px, stride_bytes, &frame_.data[..left]);
            let error = Converter::new().to_rgb(&short, &mut RgbImage::default()).unwrap_err();
            let counted = matches!(error, ConvertError::TooShort { wanted: w, got, .. } if w == wanted as u64 && got == left as u64);
            prop_assert!(counted, "{error}");
        }

        #[test]
        fn any_bytes_as_any_frame_give_an_answer(
            bytes in prop::collection::vec(any::<u8>(), 0..400), which in 0..7usize, width in any::<u32>(), height in any::<u32>(),
            stride in any::<u32>(), small in any::<bool>(),
        ) {
            let format = RAW_FORMATS.get(which).copied().unwrap_or(PixelFormat::Mjpg);
            let (width, height, stride) = if small { (width % 20, height % 20, stride % 80) } else { (width, height, stride) };
            let _ = Converter::new().to_rgb(&frame(format, width, height, stride, &bytes), &mut RgbImage::default());
        }
    }

    fn jpeg(width: u16, height: u16) -> Vec<u8> {
        let rgb: Vec<u8> = (0..usize::from(width) * usize::from(height) * 3).map(|n| (n * 7 % 251) as u8).collect();
        let mut bytes = Vec::new();
        let encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
        encoder.encode(&rgb, width, height, jpeg_encoder::ColorType::Rgb).unwrap();
        bytes
    }

    /// Takes every DHT segment out, as cameras do.
    fn without_tables(jpeg: &[u8]) -> Vec<u8> {
        let (mut out, mut at) = (jpeg[..2].to_vec(), 2);
        while jpeg[at + 1] != 0xda {
            let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
            if jpeg[at + 1] != 0xc4 {
                out.extend_from_slice(&jpeg[at..end]);
            }
            at = end;
        }
        out.extend_from_slice(&jpeg[at..]);
        out
    }

    #[test]
    fn a_jpeg_without_huffman_tables_is_read_with_the_standard_ones() {
        let whole = jpeg(33, 17);
        let bare = without_tables(&whole);
        assert!(bare.len() + 400 < whole.len(), "the tables were there to be taken out");
        let (mut converter, mut a, mut b) = (Converter::new(), RgbImage::default(), RgbImage::default());
        converter.to_rgb(&frame(PixelFormat::Mjpg, 33, 17, 0, &whole), &mut a).unwrap();
        converter.to_rgb(&frame(PixelFormat::Mjpg, 33, 17, 0, &bare), &mut b).unwrap();
        assert_eq!(a, b);
        assert_eq!(a.data.len(), 3 * 33 * 17);
    }

    #[test]
    fn a_jpeg_cut_short_is_an_error_wherever_it_was_cut() {
        let whole = jpeg(40, 24);
        for length in 0..whole.len() - 1 {
            let cut = frame(PixelFormat::Mjpg, 40, 24, 0, &whole[..length]);
            assert!(Converter::new().to_rgb(&cut, &mut RgbImage::default()).is_err(), "{length} of {}", whole.len());
        }
    }

    #[test]
    fn padding_behind_a_jpeg_does_no_harm() {
        let mut padded = jpeg(16, 16);
        padded.extend([0; 1000]);
        Converter::new().to_rgb(&frame(PixelFormat::Mjpg, 16, 16, 0, &padded), &mut RgbImage::default()).unwrap();
    }

    #[test]
    fn a_jpeg_of_another_size_than_agreed_is_refused() {
        let error = Converter::new()
            .to_rgb(&frame(PixelFormat::Mjpg, 64, 48, 0, &jpeg(32, 48)), &mut RgbImage::default())
            .unwrap_err();
        assert_eq!(error.to_string(), "the JPEG picture is 32x48, the camera had said 64x48");
    }

    #[test]
    fn absurd_sizes_are_refused_before_memory_is_asked_for() {
        for (width, height) in [(0, 5), (5, 0), (u32::MAX, u32::MAX), (65_535, 65_535)] {
            for format in RAW_FORMATS.into_iter().chain([PixelFormat::Mjpg]) {
                let frame = frame(format, width, height, u32::MAX, &[]);
                let error = Converter::new().to_rgb(&frame, &mut RgbImage::default()).unwrap_err();
                assert!(matches!(error, ConvertError::Size { .. }), "{error}");
            }
        }
    }
}
