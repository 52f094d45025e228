//! `config.get` and `config.set`: what stands in the file, and another text on trial.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::json;

use super::{Order, Step, Worker, busy, object};
use crate::config::{Config, edit, overridden};
use crate::daemon::trial::{self, Phase, Trial, TrialError, sha256};
use crate::daemon::{Condition, waits_for_restart};
use crate::mqtt::Link;
use crate::mqtt::command::{ConfigChange, ConfigSet, ErrorCode, Name, Outcome, Refusal};

/// The largest configuration that is read or set over MQTT: with its envelope it stays below a request's limit.
const LARGEST_BYTES: usize = 32 * 1024;

/// A trial in this process.
pub(super) struct Running {
    pub(super) trial: Trial,
    file: PathBuf,
    judged_at: Instant,
    /// Frames that had been read when it began.
    frames_before: u64,
}

/// A new text, checked.
struct Wanted {
    text: String,
    config: Config,
    changed: Vec<String>,
}

impl Worker {
    fn file(&self) -> Result<&Path, Refusal> {
        self.setup.parts.config_file.as_deref().ok_or_else(|| {
            let message = "the daemon was started without a configuration file: start it with --config FILE";
            Refusal::rejected(ErrorCode::Forbidden, message)
        })
    }

    fn text(&self) -> Result<String, Refusal> {
        let file = self.file()?;
        let text = fs::read_to_string(file)
            .map_err(|error| Refusal::rejected(ErrorCode::Storage, format!("{}: {error}", file.display())))?;
        match text.len() {
            0..=LARGEST_BYTES => Ok(text),
            bytes => Err(Refusal::rejected(
                ErrorCode::TooLarge,
                format!("{} has {bytes} bytes, and no more than {LARGEST_BYTES} go over MQTT", file.display()),
            )),
        }
    }

    pub(super) fn config_get(&self) -> Outcome {
        let text = self.text()?;
        let shown = edit::without_secrets(&text)
            .map_err(|error| Refusal::rejected(ErrorCode::InvalidConfig, error.to_string()))?;
        Ok(object(json!({ "toml": shown, "sha256": sha256(&text) })))
    }

    pub(super) fn config_set(&mut self, id: &str, wanted: ConfigSet) -> Step {
        if self.trial.is_some() {
            return busy("another configuration is on trial: wait for its answer").into();
        }
        if self.models.installing() {
            return busy("a bundle is being installed, and a restart would stop that: wait for its answer").into();
        }
        match self.begin_trial(id, wanted) {
            Ok(step) => step,
            Err(refusal) => Err(refusal).into(),
        }
    }

    fn begin_trial(&mut self, id: &str, wanted: ConfigSet) -> Result<Step, Refusal> {
        let file = self.file()?.to_owned();
        let former = self.text()?;
        if let Some(expected) = wanted.if_sha256.as_ref().filter(|expected| **expected != sha256(&former)) {
            let message = format!("the configuration in force has the SHA-256 {}, not {expected}", sha256(&former));
            return Err(Refusal::rejected(ErrorCode::InvalidArgs, message));
        }
        let Wanted { text, config, changed } = self.wanted(&file, &former, &wanted.change)?;
        let result = object(json!({ "sha256": sha256(&text), "changed": changed }));
        if changed.is_empty() {
            return Ok(Ok(result).into());
        }
        let waiting = waits_for_restart(&self.setup.context.running.load(), &config);
        let restart = !waiting.is_empty();
        let trial = Trial {
            id: id.to_owned(),
            former,
            new_sha256: sha256(&text),
            changed,
            confirm_after_s: wanted.confirm_after.as_secs(),
            restart,
            phase: Phase::Running { starts_left: restart.into() },
        };
        trial::begin(&file, &trial, &text).map_err(|error| Refusal::rejected(ErrorCode::Storage, error.to_string()))?;
        tracing::info!(changed = ?trial.changed, restart, "a new configuration is on trial");
        self.leaving = restart;
        self.run_trial(file, trial);
        if !restart {
            self.follow_log(&config);
        }
        let order = if restart { Order::Restart } else { Order::Reload(Box::new(config)) };
        Ok(Step::Begun { result: Some(result), then: Some(order) })
    }

    fn wanted(&self, file: &Path, former: &str, change: &ConfigChange) -> Result<Wanted, Refusal> {
        let invalid = |message: String| Refusal::rejected(ErrorCode::InvalidConfig, message);
        let edited = match change {
            ConfigChange::Keys(keys) => edit::with_keys(former, keys),
            ConfigChange::Text(text) => edit::with_secrets_of(text, former),
        };
        let text = edited.map_err(|error| invalid(error.to_string()))?;
        if text.len() > LARGEST_BYTES {
            let message = format!("it would have {} bytes, where {LARGEST_BYTES} are allowed", text.len());
            return Err(Refusal::rejected(ErrorCode::TooLarge, message));
        }
        let environment = &self.setup.parts.environment;
        let config = Config::from_text(file, &text, environment.iter().cloned())
            .map_err(|error| invalid(error.to_string().replace('\n', "; ")))?;
        let changed = edit::changed_keys(former, &text).map_err(|error| invalid(error.to_string()))?;
        let forbidden = |message: String| Err(Refusal::rejected(ErrorCode::Forbidden, message));
        if let Some(key) = edit::protected(&changed) {
            return forbidden(format!("{key} is changed at the device only, never over MQTT"));
        }
        if let Some(key) = overridden(&changed, environment).first() {
            return forbidden(format!("{key} is set by the environment of the daemon, which goes over the file"));
        }
        if config.mqtt.is_none() {
            return forbidden("mqtt.enabled = false would take away the way back: change it at the device".into());
        }
        Ok(Wanted { text, config, changed })
    }

    fn follow_log(&mut self, config: &Config) {
        self.log_until = None;
        self.set_log(&config.log.filter);
    }

    fn frames(&self) -> u64 {
        self.setup.context.telemetry.frames_read.load(Ordering::Relaxed)
    }

    fn run_trial(&mut self, file: PathBuf, trial: Trial) {
        let now = Instant::now();
        let judged_at = now.checked_add(trial.confirm_after()).unwrap_or(now);
        self.trial = Some(Running { trial, file, judged_at, frames_before: self.frames() });
    }

    /// A trial that an earlier run began or ended.
    pub(super) fn pick_up_trial(&mut self) {
        let Some(file) = self.setup.parts.config_file.clone() else { return };
        let trial = match trial::read(&file) {
            Ok(Some(trial)) => trial,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "what became of a configuration on trial is not known");
                return;
            }
        };
        match trial.phase {
            Phase::Running { .. } => self.run_trial(file, trial),
            Phase::RolledBack { .. } | Phase::Confirmed => self.end_trial(&file, &trial),
        }
    }

    pub(super) fn look_after_trial(&mut self, now: Instant) {
        let Some(running) = &self.trial else { return };
        if self.leaving || now < running.judged_at {
            return;
        }
        match self.complaint(running) {
            None => self.confirm(),
            Some(complaint) => self.roll_back(&complaint),
        }
    }

    /// What is wrong with the daemon under the new configuration.
    fn complaint(&self, running: &Running) -> Option<String> {
        if let Condition::Degraded(reason) = &**self.setup.context.condition.load() {
            return Some(format!("the daemon is degraded: {reason}"));
        }
        if self.frames() == running.frames_before {
            return Some("no frame was read".into());
        }
        match self.setup.handle.link() {
            Link::Up { .. } => None,
            Link::Down { error: Some(error) } => Some(format!("no connection: {error}")),
            Link::Down { error: None } => Some("no connection to the broker".into()),
        }
    }

    fn confirm(&mut self) {
        let Some(Running { mut trial, file, .. }) = self.trial.take() else { return };
        match trial::confirm(&file, &mut trial) {
            Ok(()) => self.end_trial(&file, &trial),
            Err(error) => self.stranded(trial, &file, &error),
        }
    }

    pub(super) fn roll_back(&mut self, reason: &str) {
        let Some(Running { mut trial, file, .. }) = self.trial.take() else { return };
        tracing::warn!(reason, "the new configuration is taken back");
        match trial::roll_back(&file, &mut trial, reason) {
            Ok(()) => {
                self.end_trial(&file, &trial);
                self.return_to(&file, &trial);
            }
            Err(error) => self.stranded(trial, &file, &error),
        }
    }

    /// The disk does not take the end of a trial: it goes on, and is judged again.
    fn stranded(&mut self, trial: Trial, file: &Path, error: &TrialError) {
        tracing::error!(%error, "the trial of a configuration could not be ended; it goes on");
        let phase = Phase::Running { starts_left: 0 };
        self.run_trial(file.to_owned(), Trial { phase, ..trial });
    }

    /// Applies the former file.
    fn return_to(&mut self, file: &Path, trial: &Trial) {
        let order = match Config::load(Some(file), self.setup.parts.environment.iter().cloned()) {
            Ok(config) if !trial.restart => {
                self.follow_log(&config);
                Order::Reload(Box::new(config))
            }
            _ => Order::Restart,
        };
        self.leaving = matches!(order, Order::Restart);
        if let Err(refusal) = self.order(order) {
            tracing::error!(reason = refusal.message, "the former configuration waits for a restart");
        }
    }

    /// Remembers and publishes the answer, then lets the journal go.
    fn end_trial(&mut self, file: &Path, trial: &Trial) {
        let outcome = match &trial.phase {
            Phase::RolledBack { reason } => Err(Refusal::failed(ErrorCode::RolledBack, reason.clone())),
            _ => Ok(object(json!({ "sha256": trial.new_sha256, "changed": trial.changed }))),
        };
        if self.finish(&trial.id, Name::ConfigSet, outcome) {
            trial::finish(file);
        }
    }
}
