//! `snapshot`: one picture of what the camera sees, where `privacy.images` lets it leave the device.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jpeg_encoder::{ColorType, Encoder, EncodingError};
use serde_json::json;

use super::{Worker, object};
use crate::config::Images;
use crate::frame::{RgbImage, Scaler};
use crate::mqtt::command::{ErrorCode, Outcome, Refusal};

/// Larger pictures are scaled down to it: an answer is one MQTT message, and brokers take no large ones.
const LONGEST_SIDE_PX: u32 = 640;
const QUALITY: u8 = 80;
/// The slowest rate of a camera, and its reopening, with room.
const PATIENCE: Duration = Duration::from_secs(3);

impl Worker {
    /// A JPEG of the next frame, as it was captured, nothing drawn into it.
    pub(super) fn snapshot(&self) -> Outcome {
        let context = &self.setup.context;
        if context.running.load().privacy.images == Images::Never {
            let message = "privacy.images = \"never\" in this device's configuration: no picture leaves it";
            return Err(Refusal::rejected(ErrorCode::Forbidden, message));
        }
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
        let picture = Scaler::new().within(&picture, LONGEST_SIDE_PX, &mut small);
        let jpeg = jpeg(picture).map_err(|error| Refusal::failed(ErrorCode::Internal, error.to_string()))?;
        tracing::info!(bytes = jpeg.len(), "a picture leaves this device: somebody asked for a snapshot");
        Ok(object(json!({
            "media_type": "image/jpeg",
            "width_px": picture.width_px,
            "height_px": picture.height_px,
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

fn jpeg(picture: &RgbImage) -> Result<Vec<u8>, EncodingError> {
    let mut jpeg = Vec::new();
    // No side is longer than `LONGEST_SIDE_PX`.
    let (width, height) = (picture.width_px as u16, picture.height_px as u16);
    Encoder::new(&mut jpeg, QUALITY).encode(&picture.data, width, height, ColorType::Rgb)?;
    Ok(jpeg)
}
