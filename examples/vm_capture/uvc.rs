//! Against the kernel's uvcvideo, which talks to a camera that another process of this program plays.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use visaged::capture::v4l2::{self, Camera, CameraInfo};
use visaged::frame::{Converter, PixelFormat, RgbImage};

use crate::checks::{Checks, Verdict, Watched, ensure, take, wish};
use crate::gadget;

/// The other process; killing it is pulling the plug.
struct Plugged(Child);

impl Plugged {
    fn in_() -> Result<Self, Box<dyn std::error::Error>> {
        let own = std::env::current_exe()?;
        Ok(Self(Command::new(own).arg("camera").stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All checks; the camera is not plugged in yet.
pub(crate) fn check(checks: &mut Checks, device: &Path) {
    let mut plugged = None;
    checks.check("before_it_is_plugged_in_there_is_no_camera", || {
        let error = v4l2::inspect(device).map(|_| ()).unwrap_err().to_string();
        ensure(error.contains("no such camera") && v4l2::list().is_empty(), || error.clone())?;
        Ok(error)
    });
    checks.check("a_usb_camera_is_found_when_plugged_in", || {
        plugged = Some(Plugged::in_()?);
        let info = appears(device)?;
        ensure(info.driver == "uvcvideo" && v4l2::list().len() == 1, || format!("{info:?}"))?;
        Ok(format!("{} on {}", info.card, info.bus))
    });
    checks.check("mjpg_is_chosen_where_raw_layouts_lack_the_size", || {
        let choice = v4l2::inspect(device)?.choose(&wish(None)).map(|choice| choice.to_string());
        ensure(choice.as_deref() == Some("MJPG 640x480 at 30 fps"), || format!("{choice:?}"))?;
        Ok(choice.unwrap_or_default())
    });
    checks.check("mjpg_frames_are_what_the_camera_sent", || mjpg(device));
    checks.check("yuyv_frames_of_the_same_camera_are_read_too", || yuyv(device));
    checks.check("a_camera_comes_back_after_its_plug_was_pulled", || {
        let watched = Watched::start(device, wish(None));
        watched.frames(5)?;
        plugged = None;
        let down = watched.wait_for("down", 1)?;
        gone(device)?;
        plugged = Some(Plugged::in_()?);
        let asked = Instant::now();
        watched.wait_for("up", 2)?;
        watched.forget();
        watched.frames(5)?;
        let back = asked.elapsed();
        let stopped = watched.stop()?;
        ensure(stopped < Duration::from_millis(500), || format!("stopped after {stopped:?}"))?;
        Ok(format!("{down}; back {back:.1?} after it was plugged in"))
    });
    drop(plugged);
}

fn appears(device: &Path) -> Result<CameraInfo, Box<dyn std::error::Error>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match v4l2::inspect(device) {
            Ok(info) => return Ok(info),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn gone(device: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while device.exists() {
        ensure(Instant::now() < deadline, || "the device node stays".into())?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn mjpg(device: &Path) -> Verdict {
    let sent = gadget::pictures();
    let mut camera = Camera::open(device, &wish(Some(PixelFormat::Mjpg)))?;
    let (mut converter, mut rgb, mut exact) = (Converter::new(), RgbImage::default(), [0; gadget::PICTURES]);
    for frame in take(&mut camera, 40)? {
        converter.to_rgb(&frame, &mut rgb)?;
        let which = sent.iter().position(|picture| **picture == **frame.data);
        exact[which.ok_or_else(|| format!("a frame of {} bytes that was never sent", frame.data.len()))?] += 1;
    }
    ensure(exact.iter().all(|seen| *seen > 0), || format!("seen {exact:?}"))?;
    Ok(format!("40 of 40 byte for byte, {} times {exact:?}", camera.agreed()))
}

fn yuyv(device: &Path) -> Verdict {
    let mut camera = Camera::open(device, &wish(Some(PixelFormat::Yuyv)))?;
    let agreed = camera.agreed();
    ensure((agreed.width_px, agreed.height_px) == (160, 120), || agreed.to_string())?;
    let mut rgb = RgbImage::default();
    for frame in take(&mut camera, 20)? {
        ensure(frame.data.len() == 160 * 120 * 2, || format!("{} bytes", frame.data.len()))?;
        Converter::new().to_rgb(&frame, &mut rgb)?;
    }
    Ok(agreed.to_string())
}
