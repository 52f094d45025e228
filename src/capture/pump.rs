//! The loop of the capture thread: keeps a source open and puts its frames into a mailbox.
//!
//! Invariants: a source is dropped before the next is opened, so that a device is closed once before it is opened
//! again (drivers ask for that after an unplug); `stop` is looked at every [`SLICE`]; health is told of transitions
//! only; the clock, sleep and randomness come from outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{CaptureError, Source, Timing};
use crate::config::Backoff;
use crate::frame::Frame;
use crate::mailbox::Mailbox;
use crate::pool::Pool;

/// The longest wait between two looks at `stop`.
const SLICE: Duration = Duration::from_millis(50);

/// What the loop goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PumpSettings {
    /// A live source that gives no good frame for this long counts as lost.
    pub stall_timeout: Duration,
    /// Waits between attempts to open it.
    pub backoff: Backoff,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PumpEnd {
    /// `stop` was set.
    Stopped,
    /// The clip has been shown to its end.
    ClipEnded,
}

/// Who wants to know how the source is.
pub trait CaptureHealth {
    /// Frames have begun to come, or come again; called with the first of them.
    fn up(&self, description: &str);
    /// No frames any more, or none yet; called again only if the reason changes.
    fn down(&self, reason: &str);
    /// The loop is alive: called at least every 100 ms while it waits (a driver that hangs in a call ends that).
    fn progress(&self);
    /// A frame came that was no good, and was left out.
    fn bad_frame(&self, reason: &str);
}

/// Time and chance, as the loop needs them.
pub trait PumpEnvironment {
    /// Now.
    fn now(&self) -> Instant;
    /// Waits.
    fn sleep(&mut self, duration: Duration);
    /// Even in [0, 1).
    fn random(&mut self) -> f64;
}

/// The real clock and the thread's random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnvironment;

impl PumpEnvironment for SystemEnvironment {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&mut self, duration: Duration) {
        std::thread::sleep(duration);
    }

    fn random(&mut self) -> f64 {
        rand::random()
    }
}

/// Runs until `stop` is set or a clip has ended; opens the source with `open`, again with back-off after each failure.
/// `frames` stays open: closing it is for whoever ends the pipeline.
pub fn pump(
    open: &mut dyn FnMut() -> Result<Box<dyn Source>, CaptureError>,
    frames: &Mailbox<Frame>,
    pool: &Pool<Vec<u8>>,
    settings: PumpSettings,
    health: &dyn CaptureHealth,
    stop: &AtomicBool,
    environment: &mut dyn PumpEnvironment,
) -> PumpEnd {
    let mut pump = Pump { frames, pool, settings, health, stop, environment, attempts: 0, state: State::Unknown };
    while !pump.stopped() {
        let opened = pump.environment.now();
        let failure = match open() {
            Ok(source) => match pump.stream(source) {
                Streamed::Ended => return PumpEnd::ClipEnded,
                Streamed::Stopped => break,
                Streamed::Failed(failure) => failure,
            },
            Err(CaptureError::Ended) => return PumpEnd::ClipEnded,
            Err(failure) => failure.to_string(),
        };
        // A source that worked for a while has earned a quick return; one that fails at once has not.
        let now = pump.environment.now();
        if matches!(pump.state, State::Up) && now.duration_since(opened) >= pump.settings.backoff.first {
            pump.attempts = 0;
        }
        pump.went_down(failure);
        pump.back_off();
    }
    PumpEnd::Stopped
}

struct Pump<'a> {
    frames: &'a Mailbox<Frame>,
    pool: &'a Pool<Vec<u8>>,
    settings: PumpSettings,
    health: &'a dyn CaptureHealth,
    stop: &'a AtomicBool,
    environment: &'a mut dyn PumpEnvironment,
    /// Failures in a row.
    attempts: u32,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Up,
    Down(String),
}

enum Streamed {
    Ended,
    Stopped,
    Failed(String),
}

impl Pump<'_> {
    fn stopped(&self) -> bool {
        self.health.progress();
        self.stop.load(Ordering::Relaxed)
    }

    /// Takes frames until the source fails; drops it before returning.
    fn stream(&mut self, mut source: Box<dyn Source>) -> Streamed {
        let timing = source.timing();
        let mut last_good = self.environment.now();
        let mut up = false;
        loop {
            if self.stopped() {
                return Streamed::Stopped;
            }
            if timing == Timing::OnDemand && !self.frames.wait_until_empty(SLICE) {
                continue;
            }
            match source.next_frame(self.pool, SLICE) {
                Ok(frame) => {
                    if !std::mem::replace(&mut up, true) {
                        self.came_up(&source.describe());
                    }
                    self.frames.put(frame);
                    last_good = self.environment.now();
                    continue;
                }
                Err(CaptureError::Ended) => return Streamed::Ended,
                Err(CaptureError::TimedOut(_)) => {}
                Err(error) if error.is_recoverable() => self.health.bad_frame(&error.to_string()),
                Err(error) => return Streamed::Failed(error.to_string()),
            }
            let silent = self.environment.now().duration_since(last_good);
            if timing == Timing::Live && silent >= self.settings.stall_timeout {
                return Streamed::Failed(CaptureError::TimedOut(self.settings.stall_timeout).to_string());
            }
        }
    }

    fn came_up(&mut self, description: &str) {
        if self.state != State::Up {
            self.state = State::Up;
            self.health.up(description);
        }
    }

    fn went_down(&mut self, reason: String) {
        let state = State::Down(reason);
        if self.state != state
            && let State::Down(reason) = &state
        {
            self.health.down(reason);
        }
        self.state = state;
    }

    /// Full jitter over a doubling bound, so that many devices on one supply do not come back in step.
    fn back_off(&mut self) {
        let Backoff { first, longest } = self.settings.backoff;
        let bound = first.saturating_mul(2u32.saturating_pow(self.attempts)).min(longest);
        self.attempts = self.attempts.saturating_add(1);
        let mut left = bound.mul_f64(self.environment.random().clamp(0.0, 1.0));
        while !left.is_zero() && !self.stopped() {
            let slice = left.min(SLICE);
            self.environment.sleep(slice);
            left -= slice;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::frame::{CaptureTime, PixelFormat};
    use crate::mailbox::Taken;

    /// A clock that only sleeping and sources move.
    #[derive(Clone)]
    struct Script {
        start: Instant,
        passed: Rc<Cell<Duration>>,
        randoms: Rc<Cell<f64>>,
        slept: Rc<RefCell<Vec<Duration>>>,
    }

    impl Script {
        fn new() -> Self {
            Self {
                start: Instant::now(),
                passed: Rc::default(),
                randoms: Rc::new(Cell::new(1.0)),
                slept: Rc::default(),
            }
        }
    }

    impl PumpEnvironment for Script {
        fn now(&self) -> Instant {
            self.start + self.passed.get()
        }
        fn sleep(&mut self, duration: Duration) {
            self.slept.borrow_mut().push(duration);
            self.passed.set(self.passed.get() + duration);
        }
        fn random(&mut self) -> f64 {
            self.randoms.get()
        }
    }

    #[derive(Default)]
    struct Log(RefCell<Vec<String>>, Cell<u32>);

    impl CaptureHealth for Log {
        fn up(&self, description: &str) {
            self.0.borrow_mut().push(format!("up {description}"));
        }
        fn down(&self, reason: &str) {
            self.0.borrow_mut().push(format!("down {reason}"));
        }
        fn progress(&self) {
            self.1.set(self.1.get() + 1);
        }
        fn bad_frame(&self, _reason: &str) {
            self.0.borrow_mut().push("bad".into());
        }
    }

    /// A source that plays a list: `f` frame, `b` bad frame, `t` time-out, `x` failure, `e` end, `s` sets stop.
    struct Scripted {
        steps: VecDeque<char>,
        timing: Timing,
        stop: Arc<AtomicBool>,
        open: Arc<AtomicU32>,
        millis: Arc<AtomicU32>,
    }

    impl Source for Scripted {
        fn describe(&self) -> String {
            "scripted".into()
        }
        fn timing(&self) -> Timing {
            self.timing
        }
        fn next_frame(&mut self, pool: &Pool<Vec<u8>>, timeout: Duration) -> Result<Frame, CaptureError> {
            match self.steps.pop_front() {
                Some('f') => Ok(Frame {
                    data: pool.take(),
                    format: PixelFormat::Grey,
                    width_px: 1,
                    height_px: 1,
                    stride_bytes: 1,
                    seq: 0,
                    time: CaptureTime::now(),
                }),
                Some('b') => Err(CaptureError::BadFrame("torn".into())),
                Some('x') => Err(CaptureError::NoDevice { device: "/dev/x".into() }),
                Some('e') => Err(CaptureError::Ended),
                Some('s') => {
                    self.stop.store(true, Ordering::Relaxed);
                    Err(CaptureError::TimedOut(timeout))
                }
                _ => {
                    self.millis.fetch_add(timeout.as_millis() as u32, Ordering::Relaxed);
                    Err(CaptureError::TimedOut(timeout))
                }
            }
        }
    }

    impl Drop for Scripted {
        fn drop(&mut self) {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    struct Outcome {
        end: PumpEnd,
        log: Vec<String>,
        waits: Vec<Duration>,
        progress: u32,
    }

    /// Plays `lives` one after the other, each a source (or, where empty, a failure to open); then stops.
    fn play(lives: &[&str], timing: Timing, random: f64) -> Outcome {
        let (script, log, mailbox, pool) = (Script::new(), Log::default(), Mailbox::default(), Pool::new(2));
        script.randoms.set(random);
        let (stop, open, millis) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let settings = PumpSettings {
            stall_timeout: Duration::from_secs(5),
            backoff: Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(4) },
        };
        let mut lives: VecDeque<&str> = lives.iter().copied().collect();
        let mut waits = Vec::new();
        let (stop_, open_, millis_, script_) = (stop.clone(), open.clone(), millis.clone(), script.clone());
        let mut factory = || -> Result<Box<dyn Source>, CaptureError> {
            assert_eq!(open_.load(Ordering::Relaxed), 0, "the last source is still open");
            waits.push(script_.slept.borrow_mut().drain(..).sum::<Duration>());
            match lives.pop_front() {
                Some("") => Err(CaptureError::NoDevice { device: "/dev/x".into() }),
                Some(steps) => {
                    open_.fetch_add(1, Ordering::Relaxed);
                    let steps = steps.chars().collect();
                    let (stop, open, millis) = (stop_.clone(), open_.clone(), millis_.clone());
                    Ok(Box::new(Scripted { steps, timing, stop, open, millis }))
                }
                None => {
                    stop_.store(true, Ordering::Relaxed);
                    Err(CaptureError::NoDevice { device: "/dev/x".into() })
                }
            }
        };
        /// Lets time pass that a source has waited.
        struct Ticking(Script, Arc<AtomicU32>);
        impl PumpEnvironment for Ticking {
            fn now(&self) -> Instant {
                self.0.now() + Duration::from_millis(u64::from(self.1.load(Ordering::Relaxed)))
            }
            fn sleep(&mut self, duration: Duration) {
                self.0.sleep(duration);
            }
            fn random(&mut self) -> f64 {
                self.0.random()
            }
        }
        let mut environment = Ticking(script, millis);
        let end = pump(&mut factory, &mailbox, &pool, settings, &log, &stop, &mut environment);
        assert_eq!(open.load(Ordering::Relaxed), 0, "closed at the end");
        Outcome { end, log: log.0.into_inner(), waits, progress: log.1.get() }
    }

    const NO_CAMERA: &str = "down /dev/x: no such camera; `visaged probe` lists those that there are";

    #[test]
    fn an_unplugged_camera_comes_back_by_itself_and_only_transitions_are_told() {
        let played = play(&["fffx", "", "", "", "ffs"], Timing::Live, 1.0);
        assert_eq!(played.end, PumpEnd::Stopped);
        assert_eq!(played.log, ["up scripted", NO_CAMERA, "up scripted"]);
    }

    #[test]
    fn waits_double_up_to_the_longest_and_are_jittered_down_to_nothing() {
        let millis = |random| -> Vec<u128> {
            let lives = ["", "", "", "", "", ""];
            play(&lives, Timing::Live, random).waits.iter().map(Duration::as_millis).collect()
        };
        assert_eq!(millis(1.0), [0, 500, 1000, 2000, 4000, 4000, 4000]);
        assert_eq!(millis(0.5), [0, 250, 500, 1000, 2000, 2000, 2000]);
        assert_eq!(millis(0.0), [0; 7]);
    }

    #[test]
    fn a_camera_that_fails_at_once_each_time_is_asked_less_and_less_often() {
        let millis: Vec<_> =
            play(&["fx", "fx", "fx"], Timing::Live, 1.0).waits.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [0, 500, 1000, 2000]);
    }

    #[test]
    fn a_camera_that_worked_for_a_while_is_asked_again_quickly() {
        // Twelve time-outs of 50 ms: longer than the first back-off.
        let millis: Vec<_> =
            play(&["", "", "ftttttttttttfx", "fs"], Timing::Live, 1.0).waits.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [0, 500, 1000, 500]);
    }

    #[test]
    fn a_silent_camera_counts_as_lost_after_the_stall_time_out() {
        let silent = "t".repeat(100);
        let played = play(&[&format!("f{silent}"), "fs"], Timing::Live, 0.0);
        assert_eq!(
            played.log,
            ["up scripted", "down no frame within 5s: is another program using the camera?", "up scripted"]
        );
        assert!(played.progress > 100, "alive all the time");
    }

    #[test]
    fn a_camera_that_gives_only_bad_frames_counts_as_lost_too() {
        let torn = "bt".repeat(100);
        let played = play(&[&format!("f{torn}"), "fs"], Timing::Live, 0.0);
        assert_eq!(played.log.iter().filter(|line| *line == "bad").count(), 100);
        assert!(played.log.iter().any(|line| line.starts_with("down no frame within 5s")), "{:?}", played.log);
    }

    #[test]
    fn a_clip_may_be_silent_for_longer_and_ends() {
        let silent = "t".repeat(200);
        let played = play(&[&format!("f{silent}fe")], Timing::Paced, 0.0);
        assert_eq!((played.end, played.log), (PumpEnd::ClipEnded, vec!["up scripted".to_owned()]));
    }

    #[test]
    fn stop_ends_a_long_back_off_after_one_slice() {
        struct Stopping(Instant, Arc<AtomicBool>, u32);
        impl PumpEnvironment for Stopping {
            fn now(&self) -> Instant {
                self.0
            }
            fn sleep(&mut self, duration: Duration) {
                assert!(duration <= SLICE);
                self.2 += 1;
                self.1.store(true, Ordering::Relaxed);
            }
            fn random(&mut self) -> f64 {
                1.0
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut environment = Stopping(Instant::now(), stop.clone(), 0);
        let backoff = Backoff { first: Duration::from_secs(3600), longest: Duration::from_secs(3600) };
        let settings = PumpSettings { stall_timeout: Duration::from_secs(1), backoff };
        let mut open =
            || -> Result<Box<dyn Source>, CaptureError> { Err(CaptureError::NoDevice { device: "/dev/x".into() }) };
        let end =
            pump(&mut open, &Mailbox::default(), &Pool::new(1), settings, &Log::default(), &stop, &mut environment);
        assert_eq!((end, environment.2), (PumpEnd::Stopped, 1));
    }

    #[test]
    fn on_demand_no_frame_is_missed_and_in_time_the_newest_wins() {
        let frames = Arc::new(Mailbox::default());
        let reader = std::thread::spawn({
            let frames = Arc::clone(&frames);
            move || {
                let mut taken = 0;
                loop {
                    match frames.take(Duration::from_secs(60)) {
                        Taken::Value::<Frame>(_) => taken += 1,
                        _ => return taken,
                    }
                }
            }
        });
        let (stop, open, millis) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(1)), Arc::new(AtomicU32::new(0)));
        let steps = "ffffffffffe".chars().collect();
        let mut source = Some(Scripted { steps, timing: Timing::OnDemand, stop: stop.clone(), open, millis });
        let settings = PumpSettings {
            stall_timeout: Duration::from_secs(1),
            backoff: Backoff { first: Duration::ZERO, longest: Duration::ZERO },
        };
        let mut open =
            || -> Result<Box<dyn Source>, CaptureError> { Ok(Box::new(source.take().expect("opened once"))) };
        let end = pump(&mut open, &frames, &Pool::new(2), settings, &Log::default(), &stop, &mut SystemEnvironment);
        frames.close();
        assert_eq!((end, reader.join().unwrap(), frames.dropped()), (PumpEnd::ClipEnded, 10, 0));
    }
}
