//! `visaged probe`: the cameras of this machine, what they offer, and what would be taken of it.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::capture::CaptureError;
use crate::capture::v4l2::{self, CameraInfo, FormatInfo, Rate, Size, SizeInfo, Wish};

/// Arguments of `visaged probe`.
#[derive(Clone, Debug, clap::Args)]
pub struct ProbeArgs {
    /// A camera's device node; without it, all cameras
    #[arg(value_name = "DEVICE")]
    pub device: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// Width in pixels that the choice is made for
    #[arg(long, value_name = "PIXELS", default_value_t = 640, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub width: u32,
    /// Height in pixels that the choice is made for
    #[arg(long, value_name = "PIXELS", default_value_t = 480, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub height: u32,
    /// Frames per second that the choice is made for
    #[arg(long, value_name = "RATE", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub fps: u32,
}

/// Why probing failed (exit status 1).
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The device named is not a camera, or cannot be opened.
    #[error(transparent)]
    Camera(#[from] CaptureError),
    /// Writing the answer failed.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

/// Writes what cameras there are to `out`. No camera at all is an answer, not an error; a camera that may not be opened
/// is listed with the reason.
///
/// # Errors
/// [`ProbeError`] where the device named is not a usable camera.
pub fn run(args: &ProbeArgs, out: &mut dyn Write) -> Result<(), ProbeError> {
    let wish = Wish { format: None, width_px: args.width, height_px: args.height, fps: args.fps };
    let cameras = match &args.device {
        Some(device) => vec![Ok(v4l2::inspect(device)?)],
        None => v4l2::list(),
    };
    report(&cameras, &wish, args.json, out)?;
    Ok(())
}

fn report(
    cameras: &[Result<CameraInfo, CaptureError>],
    wish: &Wish,
    as_json: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    if as_json {
        let cameras: Vec<Value> = cameras.iter().map(|camera| to_json(camera, wish)).collect();
        return writeln!(out, "{:#}", json!({ "cameras": cameras }));
    }
    if cameras.is_empty() {
        return writeln!(out, "No camera. Is one plugged in? A new one appears as /dev/video*.");
    }
    for (n, camera) in cameras.iter().enumerate() {
        if n > 0 {
            writeln!(out)?;
        }
        match camera {
            Ok(camera) => to_text(camera, wish, out)?,
            Err(error) => writeln!(out, "{error}")?,
        }
    }
    Ok(())
}

fn to_text(camera: &CameraInfo, wish: &Wish, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}: {} ({}, {})", camera.device.display(), camera.card, camera.driver, camera.bus)?;
    for offer in &camera.formats {
        match offer.format {
            Some(_) => writeln!(out, "  {}  {}", offer.fourcc, offer.description)?,
            None => writeln!(out, "  {}  {} (not read by visaged)", offer.fourcc, offer.description)?,
        }
        for size in &offer.sizes {
            writeln!(out, "    {}", line(size))?;
        }
    }
    match camera.choose(wish) {
        Some(choice) => {
            writeln!(out, "  chosen for {}x{} at {} fps: {choice}", wish.width_px, wish.height_px, wish.fps)
        }
        None => writeln!(out, "  none of this can be read by visaged"),
    }
}

fn line(size: &SizeInfo) -> String {
    let mut line = match size.size {
        Size::Exactly(width, height) => format!("{width}x{height}"),
        Size::Between { min, max, step } => {
            format!("{}x{} to {}x{} in steps of {}x{}", min.0, min.1, max.0, max.1, step.0, step.1)
        }
    };
    let rates: Vec<String> = size
        .rates
        .iter()
        .map(|rate| match rate {
            Rate::Exactly(interval) => format!("{}", rounded(interval.fps())),
            Rate::Between { fastest, slowest } => format!("{} to {}", rounded(slowest.fps()), rounded(fastest.fps())),
        })
        .collect();
    if !rates.is_empty() {
        line.push_str(&format!("  {} fps", rates.join(", ")));
    }
    line
}

fn rounded(fps: f64) -> f64 {
    (fps * 100.0).round() / 100.0
}

fn to_json(camera: &Result<CameraInfo, CaptureError>, wish: &Wish) -> Value {
    let camera = match camera {
        Ok(camera) => camera,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    let chosen = camera.choose(wish).map(|choice| {
        json!({
            "format": v4l2::name_of(choice.format),
            "width": choice.width_px,
            "height": choice.height_px,
            "fps": choice.interval.map(|interval| rounded(interval.fps())),
        })
    });
    json!({
        "device": camera.device.to_string_lossy(),
        "name": camera.card,
        "driver": camera.driver,
        "bus": camera.bus,
        "formats": camera.formats.iter().map(format_json).collect::<Vec<_>>(),
        "chosen": chosen,
    })
}

fn format_json(offer: &FormatInfo) -> Value {
    json!({
        "format": offer.fourcc,
        "description": offer.description,
        "readable": offer.format.is_some(),
        "sizes": offer.sizes.iter().map(size_json).collect::<Vec<_>>(),
    })
}

fn size_json(size: &SizeInfo) -> Value {
    let mut object = match size.size {
        Size::Exactly(width, height) => json!({ "width": width, "height": height }),
        Size::Between { min, max, step } => json!({
            "min": { "width": min.0, "height": min.1 },
            "max": { "width": max.0, "height": max.1 },
            "step": { "width": step.0, "height": step.1 },
        }),
    };
    object["fps"] = size
        .rates
        .iter()
        .map(|rate| match rate {
            Rate::Exactly(interval) => json!(rounded(interval.fps())),
            Rate::Between { fastest, slowest } => {
                json!({ "min": rounded(slowest.fps()), "max": rounded(fastest.fps()) })
            }
        })
        .collect();
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::v4l2::Interval;
    use crate::frame::PixelFormat;

    const WISH: Wish = Wish { format: None, width_px: 640, height_px: 480, fps: 30 };

    fn webcam() -> CameraInfo {
        let at = |fps| Rate::Exactly(Interval::new(1, fps).unwrap());
        let yuyv = FormatInfo {
            fourcc: "YUYV".into(),
            description: "YUYV 4:2:2".into(),
            format: Some(PixelFormat::Yuyv),
            sizes: vec![SizeInfo { size: Size::Exactly(640, 480), rates: vec![at(30), at(15)] }],
        };
        let h264 = FormatInfo { fourcc: "H264".into(), description: "H.264".into(), format: None, sizes: vec![] };
        CameraInfo {
            device: "/dev/video0".into(),
            card: "Webcam".into(),
            driver: "uvcvideo".into(),
            bus: "usb-1".into(),
            formats: vec![yuyv, h264],
        }
    }

    fn told(cameras: &[Result<CameraInfo, CaptureError>], as_json: bool) -> String {
        let mut out = Vec::new();
        report(cameras, &WISH, as_json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_names_everything_and_the_choice() {
        assert_eq!(
            told(&[Ok(webcam())], false),
            "/dev/video0: Webcam (uvcvideo, usb-1)\n  YUYV  YUYV 4:2:2\n    640x480  30, 15 fps\n  H264  H.264 (not read by visaged)\n  \
             chosen for 640x480 at 30 fps: YUYV 640x480 at 30 fps\n"
        );
    }

    #[test]
    fn json_is_one_document_with_the_choice() {
        let refused = CaptureError::Permission { device: "/dev/video1".into() };
        let document: Value = serde_json::from_str(&told(&[Ok(webcam()), Err(refused)], true)).unwrap();
        assert_eq!(
            document["cameras"][0]["chosen"],
            json!({"format": "YUYV", "width": 640, "height": 480, "fps": 30.0})
        );
        assert_eq!(document["cameras"][0]["formats"][0]["sizes"][0]["fps"], json!([30.0, 15.0]));
        assert_eq!(document["cameras"][0]["formats"][1]["readable"], json!(false));
        assert!(document["cameras"][1]["error"].as_str().unwrap().contains("group `video`"));
    }

    #[test]
    fn no_camera_is_an_answer() {
        assert!(told(&[], false).starts_with("No camera."));
        assert_eq!(serde_json::from_str::<Value>(&told(&[], true)).unwrap(), json!({"cameras": []}));
    }

    #[test]
    fn naming_a_device_that_is_no_camera_is_an_error() {
        let device = Some("/dev/null".into());
        let args = ProbeArgs { device, json: true, width: 640, height: 480, fps: 30 };
        let error = run(&args, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("not a camera"), "{error}");
    }
}
