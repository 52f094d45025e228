//! Sources of frames: V4L2 cameras, clips, a test pattern. Knows no faces.

use std::time::Duration;

use crate::frame::Frame;
use crate::pool::Pool;

/// Something that gives frames, one after the other.
pub trait Source: Send {
    /// What it is, for logs and the `info` payload: device or file, format, size, rate as really given.
    fn describe(&self) -> String;

    /// The next frame, in a buffer from `pool`. Waits at most `timeout`: never for ever.
    ///
    /// # Errors
    /// [`CaptureError`]; after any but `TimedOut` and `BadFrame` the source must be dropped and opened anew.
    fn next_frame(&mut self, pool: &Pool<Vec<u8>>, timeout: Duration) -> Result<Frame, CaptureError>;
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A clip that does not loop has been shown to its end.
    #[error("the clip has ended")]
    Ended,
    /// No frame within the time-out.
    #[error("no frame within {0:?}: is another program using the camera?")]
    TimedOut(Duration),
}
