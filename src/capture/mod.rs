//! Sources of frames: V4L2 cameras ([`v4l2`]), clips ([`clip`]), a test pattern ([`pattern`]); and the loop that keeps
//! one of them open ([`pump`]). Knows no faces.
//!
//! Invariants: nothing here waits for ever; a frame's number is ours and has no gaps within one opened source, whatever
//! a driver counts; what a driver really gave is checked, never assumed.

pub mod clip;
pub mod pattern;
mod pump;
pub mod v4l2;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::SourceConfig;
use crate::frame::Frame;
use crate::picture::PictureError;
use crate::pool::Pool;

pub use pump::{CaptureHealth, PumpEnd, PumpEnvironment, PumpSettings, SystemEnvironment, pump};

/// Something that gives frames, one after the other.
pub trait Source: Send {
    /// What it is, for logs and the `info` payload: device or file, format, size, rate as really given.
    fn describe(&self) -> String;

    /// How its frames come.
    fn timing(&self) -> Timing;

    /// The next frame, in a buffer from `pool`. Waits at most `timeout`: never for ever.
    ///
    /// # Errors
    /// [`CaptureError`]; after any that is not [recoverable](CaptureError::is_recoverable) the source must be dropped
    /// and opened anew.
    fn next_frame(&mut self, pool: &Pool<Vec<u8>>, timeout: Duration) -> Result<Frame, CaptureError>;
}

/// How the frames of a source come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// When the world gives them: a long silence means that something is broken, and a reader who is late misses some.
    Live,
    /// By their own timestamps, which may lie far apart; a reader who is late misses some.
    Paced,
    /// As fast as the reader takes them: none is missed.
    OnDemand,
}

/// Opens the source that `config` names.
///
/// # Errors
/// [`CaptureError`], with what to do about it.
pub fn open(config: &SourceConfig) -> Result<Box<dyn Source>, CaptureError> {
    Ok(match config {
        SourceConfig::V4l2 { device, format, width_px, height_px, fps } => {
            let wish = v4l2::Wish { format: *format, width_px: *width_px, height_px: *height_px, fps: *fps };
            Box::new(v4l2::Camera::open(device, &wish)?)
        }
        SourceConfig::Clip { path, repeat, pace } => Box::new(clip::Clip::open(path, *repeat, *pace)?),
        SourceConfig::Pattern { width_px, height_px, fps } => {
            Box::new(pattern::Pattern::new(*width_px, *height_px, *fps))
        }
    })
}

/// Why no frame came, or no source.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A clip that does not loop has been shown to its end.
    #[error("the clip has ended")]
    Ended,
    /// No frame within the time-out.
    #[error("no frame within {0:?}: is another program using the camera?")]
    TimedOut(Duration),
    /// This frame is no good; the next may be.
    #[error("a frame was lost: {0}")]
    BadFrame(String),
    /// There is no such device.
    #[error("{}: no such camera; `visaged probe` lists those that there are", device.display())]
    NoDevice {
        /// The device asked for.
        device: PathBuf,
    },
    /// Not allowed to open it.
    #[error("{}: not allowed to open the camera; add the user to the group `video`", device.display())]
    Permission {
        /// The device asked for.
        device: PathBuf,
    },
    /// Another program streams from it.
    #[error("{}: another program is using the camera; `fuser {0}` names it", device.display())]
    Busy {
        /// The device asked for.
        device: PathBuf,
    },
    /// It is something else than a camera.
    #[error("{}: this is not a camera but {found}; `visaged probe` lists the cameras", device.display())]
    NotACamera {
        /// The device asked for.
        device: PathBuf,
        /// What it is.
        found: String,
    },
    /// The camera has none of the layouts that can be read, or gave another than was agreed.
    #[error("{}: {problem}; the camera offers {offered}, visaged reads YUYV UYVY NV12 GREY RGB3 BGR3 MJPG", device.display())]
    Format {
        /// The device.
        device: PathBuf,
        /// What went wrong.
        problem: String,
        /// Its layouts, by their four-character codes.
        offered: String,
    },
    /// A call to the driver failed.
    #[error("{}: {call} failed: {source}{}", device.display(), hint(source))]
    Driver {
        /// The device.
        device: PathBuf,
        /// Which call, by V4L2's name.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A clip that cannot be read.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// A clip that cannot be used.
    #[error("{}: {reason}", path.display())]
    Clip {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
}

impl CaptureError {
    /// Whether the same source may give a frame when asked again.
    pub fn is_recoverable(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::BadFrame(_))
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENODEV) => " (the camera was unplugged)",
        Some(libc::EIO) => " (the camera or its cable has a fault)",
        Some(libc::ENOSPC) => " (no USB bandwidth left: use another port, or a smaller size or rate)",
        _ => "",
    }
}
