//! One person's frames, as a 640x480 camera would give them: YUYV in memory.

use std::path::Path;
use std::time::Duration;

use super::BenchError;
use crate::capture::clip::Clip;
use crate::capture::{CaptureError, Source};
use crate::config::Pace;
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::frame::{CaptureTime, Converter, Frame, PixelFormat, RgbImage, Scaler};
use crate::pool::Pool;

const WIDTH_PX: u32 = 640;
const HEIGHT_PX: u32 = 480;

/// The frames of a clip, cut to its largest face at 4:3 and scaled to 640x480.
#[derive(Debug)]
pub(super) struct OnePerson {
    frames: Vec<Vec<u8>>,
    pool: Pool<Vec<u8>>,
}

impl OnePerson {
    pub(super) fn load(path: Option<&Path>, detector: &DetectorModel) -> Result<Self, BenchError> {
        let pictures = pictures(path)?;
        let mut detector = Detector::new(detector, DetectOptions::still(detector));
        let mut found = Vec::new();
        let mut centre_px = None;
        for picture in &pictures {
            detector.detect(picture, &mut found)?;
            if let Some(face) = found.first() {
                centre_px = Some(face.rect.x + face.rect.width / 2.0);
                break;
            }
        }
        let name = path.map_or("the bundled clip".into(), |path| path.display().to_string());
        let centre_px = centre_px.ok_or(BenchError::NoFace(name))?;
        let mut scaler = Scaler::new();
        let frames = pictures.iter().map(|picture| yuyv(&scaled(&cut(picture, centre_px), &mut scaler))).collect();
        Ok(Self { frames, pool: Pool::new(4) })
    }

    /// Frame `i`, counted over the clip again and again, captured now.
    pub(super) fn frame(&self, i: u64) -> Frame {
        let source = &self.frames[(i % self.frames.len() as u64) as usize];
        let mut data = self.pool.take();
        data.clone_from(source);
        Frame {
            data,
            format: PixelFormat::Yuyv,
            width_px: WIDTH_PX,
            height_px: HEIGHT_PX,
            stride_bytes: 2 * WIDTH_PX,
            seq: i,
            time: CaptureTime::now(),
        }
    }
}

fn pictures(path: Option<&Path>) -> Result<Vec<RgbImage>, BenchError> {
    let mut clip = match path {
        Some(path) => Clip::open(path, false, Pace::Fast)?,
        None => bundled()?,
    };
    let (pool, mut converter, mut pictures) = (Pool::new(2), Converter::new(), Vec::new());
    loop {
        match clip.next_frame(&pool, Duration::from_secs(5)) {
            Ok(frame) => {
                let mut picture = RgbImage::default();
                converter.to_rgb(&frame, &mut picture)?;
                pictures.push(picture);
            }
            Err(CaptureError::Ended) => return Ok(pictures),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(feature = "demo")]
fn bundled() -> Result<Clip, BenchError> {
    Ok(Clip::from_bytes("the bundled clip", crate::cli::demo::CLIP, false, Pace::Fast)?)
}

#[cfg(not(feature = "demo"))]
fn bundled() -> Result<Clip, BenchError> {
    Err(BenchError::NoClip)
}

/// The part of the full height and 4:3 that has the face in its middle.
fn cut(picture: &RgbImage, centre_px: f32) -> RgbImage {
    let width = (picture.height_px * 4 / 3).min(picture.width_px);
    let left = (centre_px - width as f32 / 2.0).clamp(0.0, (picture.width_px - width) as f32) as usize;
    let mut part = RgbImage::default();
    part.resize(width, picture.height_px);
    let (row, from_row) = (3 * width as usize, 3 * picture.width_px as usize);
    for (to, from) in part.data.chunks_exact_mut(row).zip(picture.data.chunks_exact(from_row)) {
        to.copy_from_slice(&from[3 * left..3 * left + row]);
    }
    part
}

fn scaled(picture: &RgbImage, scaler: &mut Scaler) -> RgbImage {
    let mut out = RgbImage::default();
    out.resize(WIDTH_PX, HEIGHT_PX);
    scaler.scale(picture, &mut out);
    out
}

/// BT.601, limited range, chroma of the left pixel of each pair: good enough to be looked at by a detector.
fn yuyv(picture: &RgbImage) -> Vec<u8> {
    let yuv = |p: &[u8]| {
        let (r, g, b) = (f32::from(p[0]), f32::from(p[1]), f32::from(p[2]));
        let y = 16.0 + 0.257 * r + 0.504 * g + 0.098 * b;
        let cb = 128.0 - 0.148 * r - 0.291 * g + 0.439 * b;
        let cr = 128.0 + 0.439 * r - 0.368 * g - 0.071 * b;
        (y as u8, cb as u8, cr as u8)
    };
    picture
        .data
        .chunks_exact(6)
        .flat_map(|pair| {
            let (left, right) = (yuv(&pair[..3]), yuv(&pair[3..]));
            [left.0, left.1, right.0, left.2]
        })
        .collect()
}
