//! Writing of pictures that a network made, with the machine-readable mark that says so.
//!
//! The mark is the IPTC property `Iptc4xmpExt:DigitalSourceType` in an XMP packet (EU AI Act, Article 50(2)), with a
//! term of IPTC's NewsCodes vocabulary `digitalsourcetype`. Its `algorithmicMedia` is for pictures made by an algorithm
//! that learnt from no data, so it does not fit; see [`Synthetic`].
//!
//! Invariant: a file under the name asked for is whole: it is written under another name in the same folder, and renamed.

use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageEncoder};
use img_parts::png::{Png, PngChunk};

use crate::frame::RgbImage;

const JPEG_QUALITY: u8 = 92;

/// How much of a picture a network made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synthetic {
    /// All of it: `trainedAlgorithmicMedia`. A face crop that was synthesised.
    Whole,
    /// A part, put into a photograph: `compositeWithTrainedAlgorithmicMedia`.
    Part,
}

impl Synthetic {
    /// The term's address, as IPTC gives it.
    pub fn digital_source_type(self) -> &'static str {
        match self {
            Self::Whole => "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
            Self::Part => "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
        }
    }

    fn xmp(self) -> String {
        format!(
            "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\
             <x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\
             <rdf:Description rdf:about=\"\" xmlns:Iptc4xmpExt=\"http://iptc.org/std/Iptc4xmpExt/2008-02-29/\" \
             xmlns:xmp=\"http://ns.adobe.com/xap/1.0/\" xmp:CreatorTool=\"visaged {}\" \
             Iptc4xmpExt:DigitalSourceType=\"{}\"/></rdf:RDF></x:xmpmeta><?xpacket end=\"r\"?>",
            env!("CARGO_PKG_VERSION"),
            self.digital_source_type(),
        )
    }
}

/// Why a picture could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Another extension than `.png`, `.jpg`, `.jpeg`: bad usage (exit status 2).
    #[error("{}: pictures are written as .png or .jpg; choose one of these extensions", path.display())]
    Extension {
        /// The path asked for.
        path: PathBuf,
    },
    /// No pixels, or more than 65,535 on a side of a JPEG.
    #[error("{}: a picture of {width_px}x{height_px} pixels cannot be written: {reason}", path.display())]
    Encode {
        /// The path asked for.
        path: PathBuf,
        /// Width in pixels.
        width_px: u32,
        /// Height in pixels.
        height_px: u32,
        /// What the encoder said.
        reason: String,
    },
    /// Folder missing, not writable, disk full.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes `picture` to `path` as PNG or JPEG by its extension, marked as synthetic. A file that is there is replaced
/// at once or, on an error, left as it was.
///
/// # Errors
/// [`WriteError`].
pub fn write_synthetic(path: &Path, picture: &RgbImage, synthetic: Synthetic) -> Result<(), WriteError> {
    let bytes = encode_synthetic(path, picture, synthetic)?;
    let io = |source| WriteError::Io { path: path.into(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = write_new(&temporary, &bytes).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| {
        // Where it never came to be there is nothing to remove.
        let _ = fs::remove_file(&temporary);
        io(e)
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_data()
}

/// The bytes that [`write_synthetic`] would write to `path`, which is not touched.
///
/// # Errors
/// [`WriteError`], never `Io`.
pub fn encode_synthetic(path: &Path, picture: &RgbImage, synthetic: Synthetic) -> Result<Vec<u8>, WriteError> {
    let (width_px, height_px) = (picture.width_px, picture.height_px);
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    let encoded = match extension.as_deref() {
        Some("png") => png(picture, &synthetic.xmp()),
        Some("jpg" | "jpeg") => jpeg(picture, &synthetic.xmp()),
        _ => return Err(WriteError::Extension { path: path.into() }),
    };
    encoded.map_err(|reason| WriteError::Encode { path: path.into(), width_px, height_px, reason })
}

fn jpeg(picture: &RgbImage, xmp: &str) -> Result<Vec<u8>, String> {
    let side = |px: u32| u16::try_from(px).map_err(|_| "a JPEG has at most 65535 pixels on a side".to_owned());
    let (width, height) = (side(picture.width_px)?, side(picture.height_px)?);
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, JPEG_QUALITY);
    // Colour at full resolution: lips and lids are small.
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
    let mut segment = b"http://ns.adobe.com/xap/1.0/\0".to_vec();
    segment.extend_from_slice(xmp.as_bytes());
    encoder.add_app_segment(1, segment).map_err(|e| e.to_string())?;
    encoder.encode(&picture.data, width, height, jpeg_encoder::ColorType::Rgb).map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn png(picture: &RgbImage, xmp: &str) -> Result<Vec<u8>, String> {
    if picture.data.is_empty() {
        return Err("it has no pixels".into());
    }
    let mut bytes = Cursor::new(Vec::new());
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(&picture.data, picture.width_px, picture.height_px, ExtendedColorType::Rgb8)
        .map_err(|e| e.to_string())?;
    let mut png = Png::from_bytes(bytes.into_inner().into()).map_err(|e| e.to_string())?;
    // Keyword, no compression, no language, no translated keyword, text (PNG specification, 11.3.3.4).
    let mut text = b"XML:com.adobe.xmp\0\0\0\0\0".to_vec();
    text.extend_from_slice(xmp.as_bytes());
    let behind_header = 1.min(png.chunks().len());
    png.chunks_mut().insert(behind_header, PngChunk::new(*b"iTXt", text.into()));
    let mut marked = Vec::new();
    png.encoder().write_to(&mut marked).map_err(|e| e.to_string())?;
    Ok(marked)
}

#[cfg(test)]
mod tests {
    use image::ImageDecoder;

    use super::*;

    fn picture() -> RgbImage {
        RgbImage { width_px: 8, height_px: 4, data: (0..96).map(|n| n * 2).collect() }
    }

    fn xmp_of(decoder: &mut impl ImageDecoder) -> String {
        String::from_utf8(decoder.xmp_metadata().unwrap().expect("an XMP packet")).unwrap()
    }

    #[test]
    fn both_formats_carry_the_iptc_mark_and_the_pixels() {
        let png = encode_synthetic(Path::new("a.PNG"), &picture(), Synthetic::Whole).unwrap();
        let mut decoder = image::codecs::png::PngDecoder::new(Cursor::new(&png)).unwrap();
        assert!(xmp_of(&mut decoder).contains("/digitalsourcetype/trainedAlgorithmicMedia\""));
        let mut pixels = vec![0; 96];
        decoder.read_image(&mut pixels).unwrap();
        assert_eq!(pixels, picture().data);

        let jpeg = encode_synthetic(Path::new("a.jpg"), &picture(), Synthetic::Part).unwrap();
        let mut decoder = image::codecs::jpeg::JpegDecoder::new(Cursor::new(&jpeg)).unwrap();
        assert!(xmp_of(&mut decoder).contains("/digitalsourcetype/compositeWithTrainedAlgorithmicMedia\""));
        assert_eq!(decoder.dimensions(), (8, 4));
    }

    #[test]
    fn other_extensions_are_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.webp", "a", "a.txt"] {
            let path = folder.path().join(name);
            let error = write_synthetic(&path, &picture(), Synthetic::Whole).unwrap_err();
            assert!(matches!(error, WriteError::Extension { .. }), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("face.png");
        fs::write(&path, "old").unwrap();
        let broken = RgbImage { width_px: 70_000, height_px: 1, data: vec![0; 210_000] };
        write_synthetic(&folder.path().join("face.jpg"), &broken, Synthetic::Whole).unwrap_err();
        write_synthetic(&path, &RgbImage::default(), Synthetic::Whole).unwrap_err();
        fs::create_dir(folder.path().join("folder.png")).unwrap();
        write_synthetic(&folder.path().join("folder.png"), &picture(), Synthetic::Whole).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        write_synthetic(&path, &picture(), Synthetic::Whole).unwrap();
        assert_eq!(super::super::open(&path, Default::default()).unwrap(), picture());
    }
}
