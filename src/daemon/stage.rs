//! A stage: a named thread whose work is begun anew after a panic, and whose progress the watchdog sees.
//!
//! Invariants: a panic never leaves its thread; a stage that panics [`MAX_PANICS`] times within [`PANIC_WINDOW`] ends the
//! daemon; a stage that is alive beats at least once every [`MAX_IDLE`].

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// More panics than this within [`PANIC_WINDOW`] are no accident.
pub const MAX_PANICS: usize = 5;
/// See [`MAX_PANICS`].
pub const PANIC_WINDOW: Duration = Duration::from_secs(60);
/// The longest a stage may wait for work before it beats and looks whether it should stop.
pub const MAX_IDLE: Duration = Duration::from_millis(100);

/// How a stage's work ended.
#[derive(Debug)]
pub enum End {
    /// As it should: it was told to stop, or its source has ended.
    Finished,
    /// It cannot go on, and beginning anew would not help.
    Fatal(String),
}

/// What all stages share with the supervisor.
#[derive(Debug)]
pub struct Supervision {
    stop: AtomicBool,
    fatal: Mutex<Option<String>>,
    restarts: AtomicU64,
    last_restart: Mutex<Option<Restart>>,
    stages: Mutex<Vec<Arc<Heartbeat>>>,
}

/// The newest restart of any stage.
#[derive(Clone, Debug)]
pub struct Restart {
    /// Which stage.
    pub stage: &'static str,
    /// What its panic said.
    pub message: String,
    /// When.
    pub at: Instant,
}

impl Default for Supervision {
    fn default() -> Self {
        Self {
            stop: AtomicBool::new(false),
            fatal: Mutex::new(None),
            restarts: AtomicU64::new(0),
            last_restart: Mutex::new(None),
            stages: Mutex::new(Vec::new()),
        }
    }
}

/// When a stage last showed that it is alive.
#[derive(Debug)]
pub struct Heartbeat {
    name: &'static str,
    born: Instant,
    last_ms: AtomicU64,
    ended: AtomicBool,
}

impl Heartbeat {
    fn new(name: &'static str) -> Self {
        Self { name, born: Instant::now(), last_ms: AtomicU64::new(0), ended: AtomicBool::new(false) }
    }

    /// The stage is alive.
    pub fn beat(&self) {
        let ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    fn age(&self, now: Instant) -> Duration {
        let last = self.born + Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(last)
    }
}

impl Supervision {
    /// Tells every stage to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether stages are to end.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The same as a flag, for code that knows no supervision.
    pub fn stop_flag(&self) -> &AtomicBool {
        &self.stop
    }

    /// Why the daemon must end, where it must.
    pub fn fatal(&self) -> Option<String> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stages restarted since the start.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// The newest restart.
    pub fn last_restart(&self) -> Option<Restart> {
        self.last_restart.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A stage that has shown no life for `limit`; systemd's watchdog is fed only while there is none.
    pub fn hung(&self, now: Instant, limit: Duration) -> Option<&'static str> {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.iter().find(|s| !s.ended.load(Ordering::Relaxed) && s.age(now) > limit).map(|s| s.name)
    }

    fn give_up(&self, reason: String) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }
}

/// Starts a thread called `name` that runs `work`, and runs it anew after a panic.
///
/// # Errors
/// Where the system gives no thread.
pub fn spawn(
    name: &'static str,
    supervision: &Arc<Supervision>,
    mut work: impl FnMut(&Heartbeat) -> End + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let heartbeat = Arc::new(Heartbeat::new(name));
    supervision.stages.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&heartbeat));
    let supervision = Arc::clone(supervision);
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let mut panics = VecDeque::with_capacity(MAX_PANICS);
        loop {
            heartbeat.beat();
            match catch_unwind(AssertUnwindSafe(|| work(&heartbeat))) {
                Ok(End::Finished) => break,
                Ok(End::Fatal(reason)) => {
                    tracing::error!(stage = name, %reason, "stage cannot go on");
                    supervision.give_up(reason);
                    break;
                }
                Err(panic) => {
                    if !survived(name, &supervision, &mut panics, &*panic) || supervision.stopping() {
                        break;
                    }
                }
            }
        }
        heartbeat.ended.store(true, Ordering::Relaxed);
    })
}

/// Notes a panic; whether the stage may begin anew.
fn survived(
    stage: &'static str,
    supervision: &Supervision,
    panics: &mut VecDeque<Instant>,
    panic: &(dyn Any + Send),
) -> bool {
    let message = panic_message(panic);
    let at = Instant::now();
    tracing::error!(stage, %message, "stage panicked and begins anew");
    panics.push_back(at);
    while panics.front().is_some_and(|first| at.duration_since(*first) > PANIC_WINDOW) {
        panics.pop_front();
    }
    if panics.len() >= MAX_PANICS {
        supervision.give_up(format!("stage {stage} panicked {MAX_PANICS} times within a minute: {message}"));
        return false;
    }
    supervision.restarts.fetch_add(1, Ordering::Relaxed);
    *supervision.last_restart.lock().unwrap_or_else(PoisonError::into_inner) = Some(Restart { stage, message, at });
    true
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_stage_begins_anew_and_is_counted() {
        let supervision = Arc::new(Supervision::default());
        let mut runs = 0;
        let thread = spawn("restless", &supervision, move |_| {
            runs += 1;
            assert!(runs >= 3, "run {runs}");
            End::Finished
        });
        thread.unwrap().join().unwrap();
        assert_eq!(supervision.restarts(), 2);
        assert_eq!(supervision.last_restart().unwrap().message, "run 2");
        assert_eq!(supervision.fatal(), None);
    }

    #[test]
    fn a_stage_that_panics_again_and_again_ends_the_daemon() {
        let supervision = Arc::new(Supervision::default());
        let thread = spawn("broken", &supervision, |_| panic!("always"));
        thread.unwrap().join().unwrap();
        let reason = supervision.fatal().unwrap();
        assert!(reason.contains("broken") && reason.contains("always"), "{reason}");
    }

    #[test]
    fn a_hung_stage_is_named_and_an_ended_one_is_not() {
        let supervision = Arc::new(Supervision::default());
        let thread = spawn("short", &supervision, |_| End::Finished).unwrap();
        thread.join().unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(supervision.hung(later, Duration::from_secs(10)), None);
        let heartbeat = Arc::new(Heartbeat::new("stuck"));
        supervision.stages.lock().unwrap().push(heartbeat);
        assert_eq!(supervision.hung(later, Duration::from_secs(10)), Some("stuck"));
    }
}
