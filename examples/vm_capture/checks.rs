//! Named checks, and a pump that can be watched.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use visaged::capture::v4l2::{Camera, Wish};
use visaged::capture::{CaptureHealth, PumpEnd, PumpSettings, Source, SystemEnvironment, pump};
use visaged::config::Backoff;
use visaged::frame::{Frame, PixelFormat};
use visaged::mailbox::{Mailbox, Taken};
use visaged::pool::Pool;

/// What a check says: a remark, or why it failed.
pub(crate) type Verdict = Result<String, Box<dyn Error>>;

/// Counts what failed.
#[derive(Default)]
pub(crate) struct Checks {
    failed: u32,
    passed: u32,
}

impl Checks {
    /// Runs one check and prints what came of it.
    pub(crate) fn check(&mut self, name: &str, check: impl FnOnce() -> Verdict) {
        let start = Instant::now();
        match check() {
            Ok(remark) => {
                self.passed += 1;
                println!("ok {name} ({remark}; {:.1} s)", start.elapsed().as_secs_f32());
            }
            Err(why) => {
                self.failed += 1;
                println!("FAIL {name}: {why}");
            }
        }
    }
}

/// Runs checks; the exit status says whether all passed.
pub(crate) fn run(check: impl FnOnce(&mut Checks)) -> ExitCode {
    let mut checks = Checks::default();
    check(&mut checks);
    println!("{} passed, {} failed", checks.passed, checks.failed);
    if checks.failed == 0 && checks.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Fails a check unless `holds`.
pub(crate) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(why().into()) }
}

/// What is asked for: 640x480 at 30.
pub(crate) fn wish(format: Option<PixelFormat>) -> Wish {
    Wish { format, width_px: 640, height_px: 480, fps: 30 }
}

/// The next `count` frames of a camera.
pub(crate) fn take(camera: &mut Camera, count: usize) -> Result<Vec<Frame>, Box<dyn Error>> {
    let pool = Pool::new(0);
    (0..count).map(|_| Ok(camera.next_frame(&pool, Duration::from_secs(5))?)).collect()
}

/// What a pump has said.
#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<String>>,
    bad: AtomicU64,
}

impl Heard {
    fn say(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

impl CaptureHealth for Heard {
    fn up(&self, description: &str) {
        self.say(format!("up: {description}"));
    }
    fn down(&self, reason: &str) {
        self.say(format!("down: {reason}"));
    }
    fn progress(&self) {}
    fn bad_frame(&self, _reason: &str) {
        self.bad.fetch_add(1, Ordering::Relaxed);
    }
}

/// A pump in a thread of its own, as the daemon runs it.
pub(crate) struct Watched {
    heard: Arc<Heard>,
    frames: Arc<Mailbox<Frame>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<PumpEnd>>,
}

impl Watched {
    /// Starts it on `device`; two seconds without a frame are a stall.
    pub(crate) fn start(device: &Path, wish: Wish) -> Self {
        let (heard, frames, stop) =
            (Arc::new(Heard::default()), Arc::new(Mailbox::default()), Arc::new(AtomicBool::new(false)));
        let backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(1) };
        let settings = PumpSettings { stall_timeout: Duration::from_secs(2), backoff };
        let thread = std::thread::spawn({
            let (heard, frames, stop) = (Arc::clone(&heard), Arc::clone(&frames), Arc::clone(&stop));
            let device: PathBuf = device.into();
            move || {
                let mut open = || Camera::open(&device, &wish).map(|camera| Box::new(camera) as Box<dyn Source>);
                pump(&mut open, &frames, &Pool::new(4), settings, &*heard, &stop, &mut SystemEnvironment)
            }
        });
        Self { heard, frames, stop, thread: Some(thread) }
    }

    /// Waits until `count` more frames have come.
    pub(crate) fn frames(&self, count: usize) -> Result<(), Box<dyn Error>> {
        for n in 0..count {
            if !matches!(self.frames.take(Duration::from_secs(15)), Taken::Value(_)) {
                return Err(format!("after {n} of {count} frames none came any more; heard {:?}", self.lines()).into());
            }
        }
        Ok(())
    }

    /// Throws away a frame from before.
    pub(crate) fn forget(&self) {
        self.frames.take(Duration::ZERO);
    }

    /// What it has said of ups and downs.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.heard.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bad frames that it left out.
    pub(crate) fn bad(&self) -> u64 {
        self.heard.bad.load(Ordering::Relaxed)
    }

    /// Waits until a line beyond the first `known` begins with `start`; gives it.
    pub(crate) fn wait_for(&self, start: &str, known: usize) -> Result<String, Box<dyn Error>> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let lines = self.lines();
            if let Some(line) = lines.iter().skip(known).find(|line| line.starts_with(start)) {
                return Ok(line.clone());
            }
            if Instant::now() > deadline {
                return Err(format!("{start:?} was never heard, only {lines:?}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it; gives the time that took.
    pub(crate) fn stop(mut self) -> Result<Duration, Box<dyn Error>> {
        let asked = Instant::now();
        self.stop.store(true, Ordering::Relaxed);
        let end = self.thread.take().map(JoinHandle::join);
        match end {
            Some(Ok(PumpEnd::Stopped)) => Ok(asked.elapsed()),
            other => Err(format!("it ended with {other:?}").into()),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
