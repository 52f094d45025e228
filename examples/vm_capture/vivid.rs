//! Against vivid: every layout, and every fault that it can play.

use std::path::Path;
use std::time::Duration;

use visaged::capture::CaptureError;
use visaged::capture::v4l2::{self, Camera};
use visaged::frame::{CaptureTime, Converter, PixelFormat, RgbImage};

use crate::checks::{Checks, Verdict, Watched, ensure, take, wish};
use crate::controls;

/// vivid's first test pattern: bars at 75 % from white to black.
const BARS: [[u8; 3]; 8] =
    [[191, 191, 191], [191, 191, 0], [0, 191, 191], [0, 191, 0], [191, 0, 191], [191, 0, 0], [0, 0, 191], [0, 0, 0]];

const RAW: [PixelFormat; 6] =
    [PixelFormat::Yuyv, PixelFormat::Uyvy, PixelFormat::Nv12, PixelFormat::Grey, PixelFormat::Rgb3, PixelFormat::Bgr3];

/// All checks; `output` is vivid's other node, which does not capture.
pub(crate) fn check(checks: &mut Checks, device: &Path, output: &Path) {
    for format in RAW {
        checks.check(&format!("vivid_gives_right_colours_in_{}", v4l2::name_of(format)), || colours(device, format));
    }
    checks.check("frames_are_counted_and_timed", || counted(device));
    checks.check("a_layout_that_is_not_offered_is_refused", || refused(device));
    checks.check("the_cheapest_layout_is_chosen", || chosen(device));
    checks.check("an_output_is_no_camera", || no_camera(output));
    checks.check("a_camera_in_use_is_said_to_be_in_use", || in_use(device));
    checks.check("a_damaged_frame_is_left_out_and_counted", || damaged_frame(device));
    checks.check("a_failing_qbuf_is_survived", || survived(device, "Inject VIDIOC_QBUF Error", ""));
    checks
        .check("a_failing_reqbufs_is_survived", || survived_at_start(device, "Inject VIDIOC_REQBUFS Error", "REQBUFS"));
    checks.check("a_failing_streamon_is_survived", || {
        survived_at_start(device, "Inject VIDIOC_STREAMON Error", "STREAMON")
    });
    checks.check("a_fatal_streaming_error_is_survived", || survived(device, "Inject Fatal Streaming Error", "cable"));
    checks.check("a_disconnect_is_survived", || survived(device, "Disconnect", "unplugged"));
    checks.check("sixty_percent_of_dropped_buffers_are_survived", || dropped(device));
    checks.check("a_camera_that_falls_silent_is_reopened", || silent(device));
    checks.check("stop_ends_the_pump_at_once", || stopped(device));
    checks.check("ten_reopenings_leave_no_file_open", || no_leak(device));
}

fn colours(device: &Path, format: PixelFormat) -> Verdict {
    let mut camera = Camera::open(device, &wish(Some(format)))?;
    let agreed = camera.agreed();
    ensure(agreed.format == format, || format!("got {agreed}"))?;
    let (mut converter, mut rgb) = (Converter::new(), RgbImage::default());
    let mut worst = 0;
    for frame in take(&mut camera, 4)? {
        converter.to_rgb(&frame, &mut rgb)?;
        ensure((rgb.width_px, rgb.height_px) == (640, 480), || format!("{}x{}", rgb.width_px, rgb.height_px))?;
        for (n, bar) in BARS.iter().enumerate() {
            // The lower half: vivid writes text into the upper one.
            let at = 3 * (400 * 640 + 40 + 80 * n);
            let got = &rgb.data[at..at + 3];
            // vivid makes GREY as Rec. 709 luminance in full range.
            let grey = 0.2126 * f32::from(bar[0]) + 0.7152 * f32::from(bar[1]) + 0.0722 * f32::from(bar[2]);
            let wanted = if format == PixelFormat::Grey { [grey.round() as u8; 3] } else { *bar };
            for (got, wanted) in got.iter().zip(wanted) {
                let off = got.abs_diff(wanted);
                worst = worst.max(off);
            }
        }
    }
    ensure(worst <= 6, || format!("a colour is off by {worst}"))?;
    Ok(format!("{}, colours within {worst} of 255", camera.agreed()))
}

fn counted(device: &Path) -> Verdict {
    let mut camera = Camera::open(device, &wish(None))?;
    let frames = take(&mut camera, 25)?;
    let now = CaptureTime::now();
    for (n, pair) in frames.windows(2).enumerate() {
        ensure(pair[1].seq == pair[0].seq + 1, || format!("{} follows {}", pair[1].seq, pair[0].seq))?;
        let apart = pair[1].time.monotonic.checked_duration_since(pair[0].time.monotonic);
        ensure(apart.is_some_and(|apart| apart > Duration::ZERO), || format!("frame {n} and its next: {apart:?}"))?;
    }
    let first = &frames[0];
    let age = now.monotonic.duration_since(first.time.monotonic);
    ensure(first.seq == 0 && age < Duration::from_secs(5), || format!("first is {} of {age:?} ago", first.seq))?;
    let drift = now.wall.duration_since(first.time.wall).unsigned_abs().abs_diff(age);
    ensure(drift < Duration::from_millis(50), || format!("the clocks are {drift:?} apart"))?;
    Ok(format!("{} frames in {age:.2?}", frames.len()))
}

fn refused(device: &Path) -> Verdict {
    let error = match Camera::open(device, &wish(Some(PixelFormat::Mjpg))) {
        Ok(camera) => return Err(format!("got {}", camera.agreed()).into()),
        Err(error) => error.to_string(),
    };
    ensure(error.contains("does not offer MJPG") && error.contains("YUYV"), || error.clone())?;
    Ok("vivid has no MJPG".into())
}

fn chosen(device: &Path) -> Verdict {
    let info = v4l2::inspect(device)?;
    ensure(info.driver == "vivid" && info.formats.len() > 20, || format!("{info:?}"))?;
    let camera = Camera::open(device, &wish(None))?;
    let agreed = camera.agreed();
    ensure(agreed.format == PixelFormat::Rgb3, || agreed.to_string())?;
    Ok(format!("{} of {} layouts", agreed, info.formats.len()))
}

fn no_camera(output: &Path) -> Verdict {
    match v4l2::inspect(output) {
        Err(error @ CaptureError::NotACamera { .. }) => Ok(error.to_string()),
        other => Err(format!("{other:?}").into()),
    }
}

fn in_use(device: &Path) -> Verdict {
    let mut first = Camera::open(device, &wish(None))?;
    take(&mut first, 1)?;
    let second = Camera::open(device, &wish(None));
    ensure(matches!(second, Err(CaptureError::Busy { .. })), || format!("{second:?}"))?;
    take(&mut first, 2)?;
    Ok("the first goes on".into())
}

fn damaged_frame(device: &Path) -> Verdict {
    let watched = Watched::start(device, wish(None));
    watched.frames(5)?;
    controls::set(device, "Inject V4L2_BUF_FLAG_ERROR", 1)?;
    watched.frames(10)?;
    let (bad, lines) = (watched.bad(), watched.lines());
    ensure(bad == 1 && lines.len() == 1, || format!("{bad} bad frames, heard {lines:?}"))?;
    Ok("1 bad frame, no down".into())
}

/// A fault in mid-stream: the pump may reopen, and frames come again.
fn survived(device: &Path, control: &str, because: &str) -> Verdict {
    let watched = Watched::start(device, wish(None));
    watched.frames(5)?;
    controls::set(device, control, 1)?;
    let down = watched.wait_for("down", 1)?;
    ensure(down.contains(because), || down.clone())?;
    watched.wait_for("up", 2)?;
    watched.forget();
    watched.frames(5)?;
    Ok(down)
}

/// A fault that hits the next opening.
fn survived_at_start(device: &Path, control: &str, because: &str) -> Verdict {
    controls::set(device, control, 1)?;
    let watched = Watched::start(device, wish(None));
    let down = watched.wait_for("down", 0)?;
    ensure(down.contains(because), || down.clone())?;
    watched.wait_for("up", 1)?;
    watched.frames(5)?;
    Ok(down)
}

fn dropped(device: &Path) -> Verdict {
    let watched = Watched::start(device, wish(None));
    watched.frames(5)?;
    controls::set(device, "Percentage of Dropped Buffers", 60)?;
    let result = watched.frames(15);
    controls::set(device, "Percentage of Dropped Buffers", 0)?;
    result?;
    ensure(watched.lines().len() == 1, || format!("heard {:?}", watched.lines()))?;
    Ok("no down".into())
}

fn silent(device: &Path) -> Verdict {
    let watched = Watched::start(device, wish(None));
    watched.frames(5)?;
    controls::set(device, "Percentage of Dropped Buffers", 100)?;
    let down = watched.wait_for("down", 1);
    controls::set(device, "Percentage of Dropped Buffers", 0)?;
    let down = down?;
    ensure(down.contains("no frame within 2s"), || down.clone())?;
    watched.wait_for("up", 2)?;
    watched.forget();
    watched.frames(5)?;
    Ok(down)
}

fn stopped(device: &Path) -> Verdict {
    let watched = Watched::start(device, wish(None));
    watched.frames(3)?;
    let streaming = watched.stop()?;
    let waiting = Watched::start(Path::new("/dev/video63"), wish(None));
    waiting.wait_for("down", 0)?;
    let missing = waiting.stop()?;
    let limit = Duration::from_millis(500);
    ensure(streaming < limit && missing < limit, || format!("{streaming:?}, {missing:?}"))?;
    Ok(format!("streaming {streaming:.0?}, in back-off {missing:.0?}"))
}

fn no_leak(device: &Path) -> Verdict {
    let count = || std::fs::read_dir("/proc/self/fd").map(Iterator::count);
    take(&mut Camera::open(device, &wish(None))?, 1)?;
    let before = count()?;
    for _ in 0..10 {
        take(&mut Camera::open(device, &wish(None))?, 1)?;
    }
    let after = count()?;
    ensure(before == after, || format!("{before} files open before, {after} after"))?;
    Ok(format!("{after} open"))
}
