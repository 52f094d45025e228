//! De-Expression Residue Learning (Yang, Ciftci, Yin, CVPR 2018): a generator makes the neutral face, and the emotion is
//! read from what the generator had to remove, layer by layer.
//!
//! The way of a crop: luminance (ITU-R BT.601), 64x64, standardised by its own mean and deviation, network, softmax.
//! Invariant: a [`Reading`] that was filled holds finite numbers in their ranges, for any picture.

use std::sync::Arc;

use super::{Emotion, NEUTRAL_SIDE_PX, Probabilities, Reading};
use crate::face::tone::{luminance, standardise};
use crate::face::{ALIGNED_SIDE_PX, AlignedFace};
use crate::frame::{RgbImage, Scaler};
use crate::models::{Bundle, BundleError, BundleFault, DerlManifest};
use crate::nn::{Network, NnError, Plan, Session, Settings};

const PIXELS: usize = NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX;

/// Why a face could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bundle was refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The network could not be prepared or failed.
    #[error("de-expression: {0}")]
    Network(#[from] NnError),
    /// The network gave NaN or infinity.
    #[error(
        "de-expression: the network's {0} are not finite numbers; verify the derl bundle with `visaged models verify`"
    )]
    NotFinite(&'static str),
    /// No pixels, or not as many bytes as the size needs.
    #[error("a crop of {width_px}x{height_px} RGB pixels came with {bytes} bytes")]
    Crop {
        /// Its width.
        width_px: u32,
        /// Its height.
        height_px: u32,
        /// Its data.
        bytes: usize,
    },
}

/// The network of a `derl` bundle; shared by several threads.
#[derive(Clone, Debug)]
pub struct DerlModel {
    plan: Plan,
    manifest: Arc<DerlManifest>,
    emotions: [Emotion; 8],
    bundle: Arc<Bundle>,
}

impl DerlModel {
    /// Reads the network of a verified bundle.
    ///
    /// # Errors
    /// [`ReadError`] where the bundle is for another task, its labels are not FER+'s, or its graph has other tensors than
    /// its manifest says.
    pub fn new(bundle: Bundle, settings: impl Into<Settings>) -> Result<Self, ReadError> {
        let manifest = bundle.derl()?;
        let emotions = emotions(&manifest.labels).map_err(|fault| bundle.refuse(fault))?;
        let shape: &[usize] = &[1, 1, NEUTRAL_SIDE_PX, NEUTRAL_SIDE_PX];
        let plan = Plan::prepare(bundle.model(), &[shape], settings)?;
        check_outputs(&bundle, &plan.network()?)?;
        Ok(Self { plan, manifest: Arc::new(manifest), emotions, bundle: Arc::new(bundle) })
    }

    /// The verified bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// How the network is run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The network with memory of its own; for `bench`.
    ///
    /// # Errors
    /// [`NnError`] where it cannot set up its state.
    pub fn network(&self) -> Result<Session, NnError> {
        self.plan.network()
    }
}

fn emotions(labels: &[String; 8]) -> Result<[Emotion; 8], BundleFault> {
    let mut order = [Emotion::Neutral; 8];
    for (place, label) in order.iter_mut().zip(labels) {
        *place = Emotion::ALL.into_iter().find(|e| e.name() == label).ok_or_else(|| BundleFault::Value {
            key: "labels".into(),
            reason: format!("names `{label}`, which is no FER+ emotion"),
        })?;
    }
    Ok(order)
}

fn check_outputs(bundle: &Bundle, network: &Session) -> Result<(), BundleError> {
    for (i, listed) in bundle.manifest().outputs.iter().enumerate() {
        let found = network.outputs().get(i);
        if found.is_none_or(|o| o.name != listed.name || o.shape != listed.shape) {
            return Err(bundle.refuse(BundleFault::Shape {
                tensor: listed.name.clone(),
                expected: listed.shape.clone(),
                found: found.map(|o| o.shape.clone()).unwrap_or_default(),
            }));
        }
    }
    Ok(())
}

/// Reads faces; one a thread.
pub struct Derl {
    network: Session,
    manifest: Arc<DerlManifest>,
    emotions: [Emotion; 8],
    grey: Vec<f32>,
    input: Vec<f32>,
    outputs: Vec<Vec<f32>>,
    scaler: Scaler,
    crop: Vec<u8>,
}

impl std::fmt::Debug for Derl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Derl").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Derl {
    /// A reader with memory of its own over a shared model.
    ///
    /// # Errors
    /// [`ReadError::Network`] where the engine cannot set up its state.
    pub fn new(model: &DerlModel) -> Result<Self, ReadError> {
        Ok(Self {
            network: model.network()?,
            manifest: Arc::clone(&model.manifest),
            emotions: model.emotions,
            grey: vec![0.0; PIXELS],
            input: vec![0.0; PIXELS],
            outputs: Vec::new(),
            scaler: Scaler::new(),
            crop: Vec::new(),
        })
    }

    /// Reads an aligned face into `reading`.
    ///
    /// # Errors
    /// [`ReadError`]; `reading` is then unspecified.
    pub fn read(&mut self, face: &AlignedFace, reading: &mut Reading) -> Result<(), ReadError> {
        halve(&face.rgb, &mut self.grey)?;
        self.read_grey(reading)
    }

    /// Reads a picture that is one face already cropped, framed as a FER+ picture is. Any size; it is taken to 64x64
    /// luminance by a triangle filter (bilinear when it enlarges), which stretches a picture that is not square. A picture
    /// of 128x128 is read exactly as the aligned face would be.
    ///
    /// # Errors
    /// [`ReadError`]; `reading` is then unspecified.
    pub fn read_crop(&mut self, picture: &RgbImage, reading: &mut Reading) -> Result<(), ReadError> {
        let (width_px, height_px) = (picture.width_px, picture.height_px);
        let bytes = picture.data.len();
        if bytes == 0 || bytes != 3 * width_px as usize * height_px as usize {
            return Err(ReadError::Crop { width_px, height_px, bytes });
        }
        if (width_px as usize, height_px as usize) == (ALIGNED_SIDE_PX, ALIGNED_SIDE_PX) {
            halve(&picture.data, &mut self.grey)?;
        } else {
            self.resize_crop(picture);
        }
        self.read_grey(reading)
    }

    fn resize_crop(&mut self, picture: &RgbImage) {
        self.crop.clear();
        self.crop.extend(picture.data.chunks_exact(3).map(luminance));
        let side = NEUTRAL_SIDE_PX as u32;
        let (width, height) = (picture.width_px, picture.height_px);
        let mut small = [0; PIXELS];
        self.scaler.scale_grey(&self.crop, (width, height), &mut small, (side, side));
        for (grey, value) in self.grey.iter_mut().zip(small) {
            *grey = f32::from(value);
        }
    }

    fn read_grey(&mut self, reading: &mut Reading) -> Result<(), ReadError> {
        let (mean, spread) = standardise(&self.grey, self.manifest.eps, &mut self.input);
        self.network.run(&[&self.input], &mut self.outputs)?;
        let logits = &self.outputs[self.manifest.logits];
        reading.probabilities = probabilities(logits, self.manifest.temperature, &self.emotions)?;
        let entry = self.manifest.neutrality;
        let energy = self.outputs[self.manifest.energy][entry.energy_index];
        if !energy.is_finite() {
            return Err(ReadError::NotFinite("residue energies"));
        }
        reading.neutrality = 1.0 - ((energy - entry.floor) / (entry.ceiling - entry.floor)).clamp(0.0, 1.0);
        reading.neutral.clear();
        // The cast saturates and takes NaN to 0.
        reading.neutral.extend(self.outputs[self.manifest.neutral].iter().map(|v| (v * spread + mean).round() as u8));
        Ok(())
    }

    /// The luminance of the face last read, 64x64 in 0..=255: what [`Reading::neutral`] is to be compared with.
    pub fn luminance(&self) -> &[f32] {
        &self.grey
    }
}

/// 128x128 RGB to the means of 2x2 luminances.
fn halve(rgb: &[u8], grey: &mut [f32]) -> Result<(), ReadError> {
    const ROW: usize = 3 * ALIGNED_SIDE_PX;
    if rgb.len() != ROW * ALIGNED_SIDE_PX {
        let side = ALIGNED_SIDE_PX as u32;
        return Err(ReadError::Crop { width_px: side, height_px: side, bytes: rgb.len() });
    }
    for (rows, out) in rgb.chunks_exact(2 * ROW).zip(grey.chunks_exact_mut(NEUTRAL_SIDE_PX)) {
        let (top, bottom) = rows.split_at(ROW);
        for ((a, b), value) in top.chunks_exact(6).zip(bottom.chunks_exact(6)).zip(out) {
            let sum = [&a[..3], &a[3..], &b[..3], &b[3..]].iter().map(|p| u32::from(luminance(p))).sum::<u32>();
            *value = sum as f32 / 4.0;
        }
    }
    Ok(())
}

fn probabilities(logits: &[f32], temperature: f32, emotions: &[Emotion; 8]) -> Result<Probabilities, ReadError> {
    if logits.len() != 8 || logits.iter().any(|l| !l.is_finite()) {
        return Err(ReadError::NotFinite("logits"));
    }
    let highest = logits.iter().copied().fold(f32::MIN, f32::max);
    let mut values = [0.0; 8];
    for (logit, emotion) in logits.iter().zip(emotions) {
        values[*emotion as usize] = ((logit - highest) / temperature).exp();
    }
    // At least 1: the highest logit's own.
    let sum: f32 = values.iter().sum();
    Ok(Probabilities(values.map(|v| v / sum)))
}

#[cfg(test)]
mod tests;
