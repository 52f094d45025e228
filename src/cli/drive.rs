//! Drives a running daemon: signals, systemd's notifications and watchdog, and the end.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Failure;
use crate::daemon::{Condition, Daemon, Progress};

/// Between two looks at the daemon.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What an operator asks of a running daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Stop,
    Reload,
}

/// Why [`drive`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driven {
    /// SIGTERM, SIGINT, or `until` was reached.
    Stopped,
    /// The source has ended and everything is read.
    Finished,
    /// A command wants the process to start anew.
    Restart,
}

/// Runs `daemon` until a signal ends it, its source ends, `until` is reached, or `over` says so; then stops it.
///
/// # Errors
/// Exit 1 where a stage cannot go on.
pub(super) fn drive(
    mut daemon: Daemon,
    until: Option<Instant>,
    mut reload: impl FnMut(&mut Daemon),
    mut over: impl FnMut() -> bool,
) -> Result<Driven, Failure> {
    let orders = orders().map_err(Failure::failed)?;
    let mut systemd = Systemd::new();
    systemd.ready();
    let result = loop {
        let progress = match daemon.look_after() {
            Ok(progress) => progress,
            Err(fatal) => break Err(Failure::failed(fatal)),
        };
        systemd.tell(progress, daemon.condition());
        let now = Instant::now();
        match progress {
            Progress::Finished => break Ok(Driven::Finished),
            Progress::Restart => break Ok(Driven::Restart),
            Progress::Alive | Progress::Hung => {}
        }
        if over() || until.is_some_and(|until| now >= until) {
            break Ok(Driven::Stopped);
        }
        let wait = until.map_or(LOOK_EVERY, |until| LOOK_EVERY.min(until - now));
        match orders.recv_timeout(wait) {
            Ok(Order::Stop) => break Ok(Driven::Stopped),
            Ok(Order::Reload) => reload(&mut daemon),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    };
    systemd.stopping();
    daemon.stop();
    result
}

fn orders() -> std::io::Result<Receiver<Order>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (sender, orders) = crossbeam_channel::unbounded();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let order = if signal == SIGHUP { Order::Reload } else { Order::Stop };
            if sender.send(order).is_err() {
                return;
            }
        }
    })?;
    Ok(orders)
}

/// systemd's side of `Type=notify`; silent where the process was not started by it.
struct Systemd {
    ping_every: Option<Duration>,
    last_ping: Instant,
    told: Option<Condition>,
}

impl Systemd {
    fn new() -> Self {
        let ping_every = sd_notify::watchdog_enabled().map(|watchdog| watchdog / 2);
        Self { ping_every, last_ping: Instant::now(), told: None }
    }

    fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// Pings only while every stage makes progress, and passes the condition on to `systemctl status`.
    fn tell(&mut self, progress: Progress, condition: &Condition) {
        if self.told.as_ref() != Some(condition) {
            let text = match condition {
                Condition::Online => "online".to_string(),
                Condition::Degraded(reason) => format!("degraded: {reason}"),
            };
            send(&[NotifyState::Status(&text)]);
            self.told = Some(condition.clone());
        }
        let due = self.ping_every.is_some_and(|every| self.last_ping.elapsed() >= every.saturating_sub(LOOK_EVERY));
        if due && progress != Progress::Hung {
            send(&[NotifyState::Watchdog]);
            self.last_ping = Instant::now();
        }
    }

    fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
