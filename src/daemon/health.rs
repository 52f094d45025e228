//! How the daemon is: the state of camera, spool and stages, put into one status with a reason.
//!
//! Invariant: `Online` is said only while frames come, the spool does what is configured, and no stage has failed lately.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::stage::{Heartbeat, Supervision};
use crate::capture::CaptureHealth;
use crate::mqtt::Link;
use crate::telemetry::Telemetry;

/// A restarted stage is mentioned for this long.
const RESTART_SHOWN: Duration = Duration::from_secs(30);
/// A stage that has shown no life for this long hangs: the watchdog is fed no more.
pub(super) const HANG: Duration = Duration::from_secs(8);

/// What is said of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// All that is configured works.
    Online,
    /// Something does not; why, for people.
    Degraded(String),
}

/// The camera's state, told by the capture thread.
#[derive(Debug, Default)]
pub struct CameraHealth {
    state: Mutex<CameraState>,
}

#[derive(Clone, Debug, Default)]
enum CameraState {
    #[default]
    Opening,
    Up(String),
    Down(String),
}

impl CameraHealth {
    /// What was really opened; `None` while there is no camera.
    pub fn description(&self) -> Option<String> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            CameraState::Up(description) => Some(description.clone()),
            _ => None,
        }
    }

    fn complaint(&self) -> Option<String> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            CameraState::Up(_) => None,
            CameraState::Opening => Some("camera: being opened".into()),
            CameraState::Down(reason) => Some(format!("camera: {reason}")),
        }
    }

    fn set(&self, state: CameraState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// The camera's state and the capture thread's heartbeat in one.
pub(super) struct CaptureReport<'a> {
    pub(super) camera: &'a CameraHealth,
    pub(super) telemetry: &'a Telemetry,
    pub(super) heartbeat: &'a Heartbeat,
}

impl CaptureHealth for CaptureReport<'_> {
    fn up(&self, description: &str) {
        tracing::info!(camera = description, "frames come");
        self.camera.set(CameraState::Up(description.into()));
    }

    fn down(&self, reason: &str) {
        tracing::warn!(reason, "no frames");
        Telemetry::count(&self.telemetry.camera_losses);
        self.camera.set(CameraState::Down(reason.into()));
    }

    fn progress(&self) {
        self.heartbeat.beat();
    }

    fn bad_frame(&self, reason: &str) {
        tracing::debug!(reason, "frame passed over");
        Telemetry::count(&self.telemetry.frames_broken);
    }
}

/// The condition at `now`; `spool` is what is wrong with the spool.
pub(super) fn condition(
    camera: &Arc<CameraHealth>,
    spool: Option<String>,
    supervision: &Supervision,
    now: Instant,
) -> Condition {
    if let Some(stage) = supervision.hung(now, HANG) {
        return Condition::Degraded(format!("stage {stage} hangs"));
    }
    let complaints: Vec<String> = camera.complaint().into_iter().chain(spool).collect();
    if !complaints.is_empty() {
        return Condition::Degraded(complaints.join("; "));
    }
    match supervision.last_restart() {
        Some(restart) if now.saturating_duration_since(restart.at) < RESTART_SHOWN => {
            Condition::Degraded(format!("stage {} was restarted: {}", restart.stage, restart.message))
        }
        _ => Condition::Online,
    }
}

/// A connection that is away for a moment is nobody's concern.
const LINK_SHOWN_AFTER: Duration = Duration::from_secs(5);

/// What is wrong with the connection to the broker: no status can tell that, so it is shown at the device.
#[derive(Debug, Default)]
pub(super) struct LinkTrouble {
    since: Option<Instant>,
}

impl LinkTrouble {
    /// Why there is none, where that has lasted at `now`.
    pub(super) fn look(&mut self, link: &Link, now: Instant) -> Option<String> {
        match link {
            Link::Up { .. } => {
                self.since = None;
                None
            }
            Link::Down { error } => {
                let since = *self.since.get_or_insert(now);
                let lasted = now.saturating_duration_since(since) >= LINK_SHOWN_AFTER;
                error.as_ref().filter(|_| lasted).map(ToString::to_string)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::{End, spawn};
    use super::*;

    #[test]
    fn without_frames_the_daemon_is_degraded_and_says_why() {
        let (camera, supervision) = (Arc::new(CameraHealth::default()), Supervision::default());
        let now = Instant::now();
        let condition = |spool: Option<&str>| condition(&camera, spool.map(Into::into), &supervision, now);
        assert!(matches!(condition(None), Condition::Degraded(_)));
        camera.set(CameraState::Up("a camera".into()));
        assert_eq!(condition(None), Condition::Online);
        assert_eq!(condition(Some("spool: full")), Condition::Degraded("spool: full".into()));
        camera.set(CameraState::Down("unplugged".into()));
        assert_eq!(condition(None), Condition::Degraded("camera: unplugged".into()));
        assert_eq!(condition(Some("spool: full")), Condition::Degraded("camera: unplugged; spool: full".into()));
    }

    #[test]
    fn why_there_is_no_connection_is_shown_at_the_device_when_it_has_lasted() {
        use crate::mqtt::{LinkError, LinkErrorKind};
        let (mut trouble, now) = (LinkTrouble::default(), Instant::now());
        let kind = LinkErrorKind::CertificateTime("is valid from tomorrow on".into());
        let down = Link::Down { error: Some(Arc::new(LinkError { broker: "b:1".into(), kind })) };
        let after = |s| now + Duration::from_secs(s);
        assert_eq!(trouble.look(&down, now), None);
        assert_eq!(trouble.look(&down, after(4)), None);
        let shown = trouble.look(&down, after(5)).unwrap();
        assert!(shown.starts_with("broker b:1: TLS: ") && shown.contains("clock right"), "{shown}");
        assert_eq!(trouble.look(&Link::Up { connection: 1 }, after(6)), None);
        assert_eq!(trouble.look(&down, after(7)), None, "it counts anew");
    }

    #[test]
    fn a_restarted_stage_is_mentioned_for_a_while() {
        let camera = Arc::new(CameraHealth::default());
        camera.set(CameraState::Up("a camera".into()));
        let supervision = Arc::new(Supervision::default());
        let mut first = true;
        let stage = spawn("shaky", &supervision, move |_| {
            assert!(!std::mem::take(&mut first), "once");
            End::Finished
        });
        stage.unwrap().join().unwrap();
        let now = Instant::now();
        assert_eq!(
            condition(&camera, None, &supervision, now),
            Condition::Degraded("stage shaky was restarted: once".into())
        );
        assert_eq!(condition(&camera, None, &supervision, now + RESTART_SHOWN), Condition::Online);
    }
}
