//! `snapshot`: one picture of what the camera sees, where `privacy.images` lets it leave the device.
//!
//! With `"avatar"` the picture is the largest face alone, re-synthesised as a synthetic person's, with its expression and pose; hair and
//! all else around it become one blurred tone. Invariant: what leaves then holds no pixel of the frame outside the face, and where no
//! avatar can be made nothing leaves.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jpeg_encoder::{ColorType, Encoder, EncodingError};
use serde_json::json;

use super::{Worker, object};
use crate::config::Images;
use crate::daemon::Models;
use crate::face::AlignedFace;
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector};
use crate::frame::{RgbImage, Scaler};
use crate::mqtt::command::{ErrorCode, Outcome, Refusal};
use crate::picture::{Synthetic, encode_synthetic};
use crate::synthesis::composite::Composite;
use crate::synthesis::delta::Delta;
use crate::synthesis::generator::Generator;
use crate::synthesis::makeup::Look;
use crate::telemetry::Telemetry;

/// Larger pictures are scaled down to it: an answer is one MQTT message, and brokers take no large ones.
const LONGEST_SIDE_PX: u32 = 640;
const QUALITY: u8 = 80;
/// The slowest rate of a camera, and its reopening, with room.
const PATIENCE: Duration = Duration::from_secs(3);

impl Worker {
    /// A JPEG of the next frame, as it was captured, nothing drawn into it.
    pub(super) fn snapshot(&self) -> Outcome {
        let context = &self.setup.context;
        let privacy = context.running.load().privacy.clone();
        let mut painter = match privacy.images {
            Images::Never => {
                let message = "privacy.images = \"never\" in this device's configuration: no picture leaves it";
                return Err(Refusal::rejected(ErrorCode::Forbidden, message));
            }
            Images::Avatar => Some(AvatarPainter::new(&context.models, privacy.avatar)?),
            Images::Raw => None,
        };
        self.consented()?;
        let picture = context.shutter.take(PATIENCE).ok_or_else(|| {
            Refusal::failed(
                ErrorCode::Internal,
                "no frame came within three seconds: the status says how the camera is",
            )
        })?;
        // It may have ended while the frame was waited for.
        self.consented()?;
        let mut small = RgbImage::default();
        let avatar = painter.as_mut().map(|painter| painter.paint(&picture, &context.telemetry)).transpose()?;
        let picture = match &avatar {
            Some(avatar) => avatar,
            None => Scaler::new().within(&picture, LONGEST_SIDE_PX, &mut small),
        };
        let jpeg = match avatar.is_some() {
            true => encode_synthetic(Path::new("avatar.jpg"), picture, Synthetic::Whole).map_err(|e| e.to_string()),
            false => jpeg(picture).map_err(|error| error.to_string()),
        };
        let jpeg = jpeg.map_err(|error| Refusal::failed(ErrorCode::Internal, error))?;
        tracing::info!(bytes = jpeg.len(), "a picture leaves this device: somebody asked for a snapshot");
        Ok(object(json!({
            "media_type": "image/jpeg",
            "width_px": picture.width_px,
            "height_px": picture.height_px,
            "synthetic": avatar.is_some(),
            "data": STANDARD.encode(jpeg),
        })))
    }

    fn consented(&self) -> Result<(), Refusal> {
        if self.setup.context.consent.allows_analysis(Instant::now()) {
            return Ok(());
        }
        let message = "nobody has given consent, and privacy.require_consent is true: no picture is taken";
        Err(Refusal::rejected(ErrorCode::Forbidden, message))
    }
}

/// Makes avatars, for one picture.
struct AvatarPainter {
    detector: Detector,
    generator: Generator,
}

impl AvatarPainter {
    fn new(models: &Models, avatar: usize) -> Result<Self, Refusal> {
        let missing = |message: &str| Refusal::failed(ErrorCode::Internal, message);
        let Some(model) = &models.generator else {
            return Err(missing("no identity bundle that makes avatars is installed: no picture leaves this device"));
        };
        let avatars = model.avatars().len();
        let Some(person) = model.avatars().get(avatar) else {
            return Err(missing(&format!("privacy.avatar is {avatar}, the identity bundle holds {avatars}, from 0")));
        };
        let mut generator = Generator::new(model).map_err(failed)?;
        generator.set_person(person.face()).map_err(failed)?;
        let options = DetectOptions::still(&models.detector);
        Ok(Self { detector: Detector::new(&models.detector, options), generator })
    }

    /// The largest face of a picture as the avatar's, 128x128.
    fn paint(&mut self, picture: &RgbImage, telemetry: &Telemetry) -> Result<RgbImage, Refusal> {
        let (mut found, mut aligned, mut delta) = (Vec::new(), AlignedFace::default(), Delta::default());
        self.detector.detect(picture, &mut found).map_err(failed)?;
        let nobody =
            || Refusal::failed(ErrorCode::Internal, "nobody is in view: there is no face to make an avatar of");
        let face = found.first().ok_or_else(nobody)?;
        align(picture, &face.landmarks, &mut aligned).map_err(failed)?;
        let (mut composite, look) = (Composite::new(), Look::default());
        let mut exchange = |face: &AlignedFace, delta: &mut Delta| {
            self.generator.exchange(face, delta).map_err(|error| {
                Telemetry::count(&telemetry.identity_failures);
                failed(error)
            })
        };
        exchange(&aligned, &mut delta)?;
        // What is left of the person after one exchange is less after two.
        aligned.rgb = composite.over_crop(&delta, &look, &aligned).data;
        exchange(&aligned, &mut delta)?;
        Ok(composite.alone(&delta, &look, &aligned))
    }
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::failed(ErrorCode::Internal, error.to_string())
}

fn jpeg(picture: &RgbImage) -> Result<Vec<u8>, EncodingError> {
    let mut jpeg = Vec::new();
    // No side is longer than `LONGEST_SIDE_PX`.
    let (width, height) = (picture.width_px as u16, picture.height_px as u16);
    Encoder::new(&mut jpeg, QUALITY).encode(&picture.data, width, height, ColorType::Rgb)?;
    Ok(jpeg)
}
