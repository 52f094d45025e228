//! The line of a GPIO chip that grants consent while it is active: a key switch, a mat, a button that is held.
//!
//! Invariants: consent by the line lasts no longer than the line is active; a line that cannot be read, a panic in here and the end
//! of the thread take it back; nobody waits for the line.
//!
//! The level is asked for at short intervals and debounced here: lines behind an I2C expander often have no interrupt that the
//! kernel could report edges of, and an edge that is missed would be a consent that never ends.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gpiocdev::Request;
use gpiocdev::line::Value;

use super::{Consent, Context};
use crate::config::{ConsentGpio, GpioBias};

/// Time between two looks at the line.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// First and longest wait between attempts to get a line that cannot be had.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Why there is no line, or none any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "privacy.consent_gpio: line {line} of {chip}: {reason}; is it the right chip and line, free, and may this user read it? Until then the line grants nothing"
)]
pub struct LineError {
    chip: String,
    line: u32,
    reason: String,
}

/// A line that can be read.
pub trait Line: Send {
    /// Its level now.
    ///
    /// # Errors
    /// [`LineError`]: it has to be opened anew.
    fn is_active(&self) -> Result<bool, LineError>;
}

/// A line of a chip of this machine, requested for as long as this exists.
struct GpioLine {
    request: Request,
    chip: String,
    line: u32,
}

/// Requests the line from the kernel.
///
/// # Errors
/// [`LineError`] where there is no such chip or line, it is in use, or this user may not have it.
pub fn open(settings: &ConsentGpio) -> Result<Box<dyn Line>, LineError> {
    let ConsentGpio { chip, line, active_low, bias, debounce: _ } = settings;
    let failed = |reason: String| LineError { chip: chip.display().to_string(), line: *line, reason };
    require_device(chip).map_err(|error| failed(error.to_string()))?;
    let mut builder = Request::builder();
    builder.on_chip(chip).with_consumer("visaged consent").with_line(*line).as_input();
    if *active_low {
        builder.as_active_low();
    }
    builder.with_bias(match bias {
        GpioBias::AsIs => None,
        GpioBias::None => Some(gpiocdev::line::Bias::Disabled),
        GpioBias::PullUp => Some(gpiocdev::line::Bias::PullUp),
        GpioBias::PullDown => Some(gpiocdev::line::Bias::PullDown),
    });
    let request = builder.request().map_err(|error| failed(error.to_string()))?;
    Ok(Box::new(GpioLine { request, chip: chip.display().to_string(), line: *line }))
}

/// What the system says of a path that is not there or not to be had is plainer than what the library makes of it.
fn require_device(chip: &Path) -> std::io::Result<()> {
    std::fs::File::open(chip).map(drop)
}

impl Line for GpioLine {
    fn is_active(&self) -> Result<bool, LineError> {
        let failed =
            |error: gpiocdev::Error| LineError { chip: self.chip.clone(), line: self.line, reason: error.to_string() };
        Ok(self.request.lone_value().map_err(failed)? == Value::Active)
    }
}

/// A level counts when it has held for a while.
#[derive(Debug)]
struct Debounced {
    period: Duration,
    level: bool,
    /// The other level is seen since then.
    other_since: Option<Instant>,
}

impl Debounced {
    fn new(period: Duration) -> Self {
        Self { period, level: false, other_since: None }
    }

    fn see(&mut self, level: bool, now: Instant) -> bool {
        if level == self.level {
            self.other_since = None;
        } else if now.saturating_duration_since(*self.other_since.get_or_insert(now)) >= self.period {
            (self.level, self.other_since) = (level, None);
        }
        self.level
    }
}

/// Time, for [`watch`].
trait Clock {
    fn now(&self) -> Instant;
    /// Waits; false where it is time to end.
    fn wait(&mut self, limit: Duration) -> bool;
}

/// Takes consent by the line back, however this ends.
struct TakeBack<'a>(&'a Consent);

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        self.0.line(false);
    }
}

fn watch(
    mut open: impl FnMut() -> Result<Box<dyn Line>, LineError>,
    debounce: Duration,
    consent: &Consent,
    complain: impl Fn(Option<String>),
    clock: &mut dyn Clock,
) {
    let _taken_back = TakeBack(consent);
    let mut retry = FIRST_RETRY;
    loop {
        let error = match open() {
            Ok(line) => {
                complain(None);
                let mut debounced = Debounced::new(debounce);
                loop {
                    match line.is_active() {
                        Ok(level) => consent.line(debounced.see(level, clock.now())),
                        Err(error) => break error,
                    }
                    retry = FIRST_RETRY;
                    if !clock.wait(LOOK_EVERY) {
                        return;
                    }
                }
            }
            Err(error) => error,
        };
        consent.line(false);
        complain(Some(error.to_string()));
        if !clock.wait(retry) {
            return;
        }
        retry = (retry * 2).min(LONGEST_RETRY);
    }
}

/// The thread that looks at the line.
#[derive(Debug)]
pub(super) struct Watcher {
    complaint: Arc<Mutex<Option<String>>>,
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

struct Running(Receiver<()>);

impl Clock for Running {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&mut self, limit: Duration) -> bool {
        self.0.recv_timeout(limit) == Err(RecvTimeoutError::Timeout)
    }
}

impl Watcher {
    pub(super) fn start(settings: ConsentGpio, context: Arc<Context>) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let complaint = Arc::<Mutex<Option<String>>>::default();
        let complain = {
            let complaint = Arc::clone(&complaint);
            move |new: Option<String>| {
                let mut old = complaint.lock().unwrap_or_else(PoisonError::into_inner);
                if *old != new {
                    new.iter().for_each(|reason| tracing::warn!("{reason}"));
                }
                *old = new;
            }
        };
        let thread = std::thread::Builder::new().name("consent".into()).spawn(move || {
            watch(|| self::open(&settings), settings.debounce, &context.consent, complain, &mut Running(stopped));
        })?;
        Ok(Self { complaint, stop, thread })
    }

    /// What is wrong with the line.
    pub(super) fn complaint(&self) -> Option<String> {
        if self.thread.is_finished() {
            return Some("privacy.consent_gpio: nobody looks at the line any more; restart the daemon".into());
        }
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that looks at the consent line panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Wire(Arc<(AtomicBool, AtomicBool)>);

    impl Line for Wire {
        fn is_active(&self) -> Result<bool, LineError> {
            match self.0.1.load(Ordering::SeqCst) {
                true => Err(broken()),
                false => Ok(self.0.0.load(Ordering::SeqCst)),
            }
        }
    }

    fn broken() -> LineError {
        LineError { chip: "/dev/gpiochip9".into(), line: 3, reason: "No such device".into() }
    }

    /// What happens at which time, and what is then asked.
    struct Script<'a> {
        now: Instant,
        steps: VecDeque<(Duration, Box<dyn FnMut() + 'a>)>,
        start: Instant,
    }

    impl Clock for Script<'_> {
        fn now(&self) -> Instant {
            self.now
        }

        fn wait(&mut self, limit: Duration) -> bool {
            self.now += limit;
            while self.steps.front().is_some_and(|(at, _)| self.start + *at <= self.now) {
                let (_, mut step) = self.steps.pop_front().unwrap();
                step();
            }
            !self.steps.is_empty()
        }
    }

    /// Runs `steps`, each some milliseconds after the start.
    fn run<'a>(
        consent: &Consent,
        open: impl FnMut() -> Result<Box<dyn Line>, LineError>,
        complaints: &RefCell<Vec<Option<String>>>,
        steps: Vec<(u64, Box<dyn FnMut() + 'a>)>,
    ) {
        let start = Instant::now();
        let steps = steps.into_iter().map(|(ms, step)| (Duration::from_millis(ms), step)).collect();
        let complain = |complaint| complaints.borrow_mut().push(complaint);
        watch(open, Duration::from_millis(50), consent, complain, &mut Script { now: start, steps, start });
    }

    #[test]
    fn a_line_that_has_been_active_for_long_enough_grants_and_one_that_bounces_does_not() {
        let consent = Consent::new(true);
        let wire = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
        let set = |active: bool| -> Box<dyn FnMut()> {
            let wire = &wire;
            Box::new(move || wire.0.store(active, Ordering::SeqCst))
        };
        let expect = |allowed: bool| -> Box<dyn FnMut()> {
            let consent = &consent;
            Box::new(move || assert_eq!(consent.allows_analysis(Instant::now()), allowed))
        };
        let steps: Vec<(u64, Box<dyn FnMut()>)> = vec![
            (20, expect(false)),
            (40, set(true)),
            (80, set(false)),
            (200, expect(false)),
            (220, set(true)),
            (320, expect(true)),
            (340, set(false)),
            (360, set(true)),
            (480, expect(true)),
            (500, set(false)),
            (600, expect(false)),
        ];
        run(&consent, || Ok(Box::new(Wire(Arc::clone(&wire)))), &RefCell::default(), steps);
        assert!(!consent.allows_analysis(Instant::now()));
    }

    #[test]
    fn a_line_that_is_lost_takes_consent_back_says_so_and_is_tried_again() {
        let consent = Consent::new(true);
        let wire = Arc::new((AtomicBool::new(true), AtomicBool::new(false)));
        let attempts = Rc::new(RefCell::new(0));
        let open = || {
            *attempts.borrow_mut() += 1;
            match *attempts.borrow() {
                2 => Err(broken()),
                _ => Ok(Box::new(Wire(Arc::clone(&wire))) as Box<dyn Line>),
            }
        };
        let complaints = RefCell::default();
        let expect = |allowed: bool| -> Box<dyn FnMut()> {
            let consent = &consent;
            Box::new(move || assert_eq!(consent.allows_analysis(Instant::now()), allowed))
        };
        let steps: Vec<(u64, Box<dyn FnMut()>)> = vec![
            (100, expect(true)),
            (120, Box::new(|| wire.1.store(true, Ordering::SeqCst))),
            (1_000, expect(false)),
            (1_020, Box::new(|| wire.1.store(false, Ordering::SeqCst))),
            (10_000, expect(true)),
        ];
        run(&consent, open, &complaints, steps);
        let complaints = complaints.into_inner();
        assert_eq!(complaints.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, true, false]);
        assert!(complaints[1].as_ref().unwrap().contains("line 3 of /dev/gpiochip9: No such device"), "{complaints:?}");
    }

    #[test]
    fn a_panic_takes_consent_back() {
        struct Panics(RefCell<u32>);
        impl Line for Panics {
            fn is_active(&self) -> Result<bool, LineError> {
                *self.0.borrow_mut() += 1;
                assert!(*self.0.borrow() < 10, "for the test");
                Ok(true)
            }
        }
        let consent = Consent::new(true);
        let seen = RefCell::default();
        let steps: Vec<(u64, Box<dyn FnMut()>)> = vec![
            (150, Box::new(|| assert!(consent.allows_analysis(Instant::now())))),
            (10_000, Box::new(|| unreachable!("it has panicked"))),
        ];
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run(&consent, || Ok(Box::new(Panics(RefCell::new(0)))), &seen, steps);
        }));
        assert!(ran.is_err() && !consent.allows_analysis(Instant::now()));
    }

    #[test]
    fn what_is_no_line_is_named_with_chip_line_and_what_to_do() {
        for (chip, reason) in [("/dev/there-is-no-chip", "No such file"), ("/dev/null", "")] {
            let settings = ConsentGpio {
                chip: chip.into(),
                line: 17,
                active_low: false,
                bias: GpioBias::AsIs,
                debounce: Duration::ZERO,
            };
            let error = open(&settings).map(drop).unwrap_err().to_string();
            assert!(error.starts_with(&format!("privacy.consent_gpio: line 17 of {chip}: ")), "{error}");
            assert!(error.contains(reason) && error.contains("may this user read it?"), "{error}");
        }
    }
}
