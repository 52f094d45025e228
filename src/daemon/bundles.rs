//! Which bundles the daemon runs, and how a new one proves itself.
//!
//! A folder that is configured goes over the store, the store over the bundle inside the binary. What the store has on trial is
//! kept once frames were read for the trial's time without a fault of its stage. A fault gives it up and makes the daemon start
//! anew, with the former one; a crash or a hang is found by the next start itself.
//!
//! Invariant: nothing that is wrong with the store keeps the daemon from starting.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::StartError;
use super::stage::Supervision;
use crate::config::{Config, Images, ModelsConfig};
use crate::expression::derl::DerlModel;
use crate::face::detect::DetectorModel;
use crate::models::store::{SlotState, Started};
use crate::models::{Bundle, BundleFault, Origin, Store, Task, Version};
use crate::nn;
use crate::synthesis::SynthesisError;
use crate::synthesis::generator::GeneratorModel;
use crate::synthesis::makeup::MakeupModels;
use crate::telemetry::Telemetry;

/// A store that could not be written to is asked again after this.
const AGAIN: Duration = Duration::from_secs(30);
/// Two looks that lie further apart say nothing about the time between them.
const LONGEST_STEP: Duration = Duration::from_secs(2);

/// The networks of one daemon, verified and read once.
#[derive(Clone, Debug)]
pub struct Models {
    /// Finds faces.
    pub detector: DetectorModel,
    /// Reads them.
    pub derl: DerlModel,
    /// Puts make-up on for the live page; `None` where that is off, or there is no bundle for it.
    pub makeup: Option<MakeupModels>,
    /// Gives faces another identity, for the live page and for avatars; `None` where neither is wanted, or no bundle has one.
    pub generator: Option<GeneratorModel>,
    /// What went wrong before these were found, for people; while it is not empty the daemon says `degraded`.
    pub notes: Vec<String>,
}

impl Models {
    /// Reads the bundles that a daemon would take, to be run as `nn` says, beyond the needed ones only those that are `wanted`; changes
    /// nothing.
    ///
    /// # Errors
    /// [`StartError`] naming the bundle and what is wrong with it.
    pub fn load(config: &ModelsConfig, wanted: Wanted, nn: nn::Settings) -> Result<Self, StartError> {
        Chooser { config, wanted, start: None }.choose(nn).map(|(models, _)| models)
    }

    /// The bundles in use.
    pub fn bundles(&self) -> impl Iterator<Item = &Bundle> {
        let makeup = self.makeup.as_ref().map(|makeup| makeup.applied.bundle());
        let identity = self.generator.as_ref().map(GeneratorModel::bundle);
        [self.detector.bundle(), self.derl.bundle()].into_iter().chain(makeup).chain(identity)
    }

    /// Reads the bundles for a daemon that starts now, and counts the start of what is on trial.
    pub(super) fn start(
        config: &ModelsConfig,
        wanted: Wanted,
        nn: nn::Settings,
        machine_boot: &str,
        now: Timestamp,
    ) -> Result<(Self, Trials), StartError> {
        let (models, on_trial) = Chooser { config, wanted, start: Some((machine_boot, now)) }.choose(nn)?;
        models.notes.iter().for_each(|note| tracing::error!("{note}"));
        let store = config.store.as_ref().map(Store::new);
        Ok((models, Trials { store, on_trial, ..Trials::default() }))
    }
}

/// Which of the optional bundles a daemon has a use for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The live page offers a try-on.
    pub try_on: bool,
    /// Pictures that leave the device show avatars.
    pub avatars: bool,
}

impl Wanted {
    /// What a configuration asks for.
    pub fn of(config: &Config) -> Self {
        Self {
            try_on: config.web.as_ref().is_some_and(|web| web.try_on),
            avatars: config.privacy.images == Images::Avatar,
        }
    }

    /// Whether it is asked for at all.
    fn wants(self, task: Task) -> bool {
        match task {
            Task::Detector | Task::Derl => true,
            Task::Makeup => self.try_on,
            Task::Identity => self.try_on || self.avatars,
        }
    }
}

struct Chooser<'a> {
    config: &'a ModelsConfig,
    wanted: Wanted,
    /// Run of the machine and time, where the daemon really starts.
    start: Option<(&'a str, Timestamp)>,
}

impl Chooser<'_> {
    fn choose(&self, nn: nn::Settings) -> Result<(Models, Vec<OnTrial>), StartError> {
        let (mut notes, mut on_trial) = (Vec::new(), Vec::new());
        let folder = self.config.detector.as_deref();
        let detector = self
            .prepare(Task::Detector, folder, &mut notes, &mut on_trial, |bundle| Ok(DetectorModel::new(bundle, nn)?))?;
        let folder = self.config.derl.as_deref();
        let derl =
            self.prepare(Task::Derl, folder, &mut notes, &mut on_trial, |bundle| Ok(DerlModel::new(bundle, nn)?))?;
        let generator = self.generator(&mut notes, &mut on_trial, nn);
        let makeup = self.wanted.try_on.then(|| self.makeup(&mut on_trial, &mut notes, nn));
        // A try-on that has something to offer misses nothing.
        let makeup = makeup.and_then(|found| match found {
            Err(error) if generator.is_none() || !is_absent(&error) => {
                notes.push(format!("web.try_on: {error}"));
                None
            }
            found => found.ok(),
        });
        self.keep_unused();
        Ok((Models { detector, derl, makeup, generator, notes }, on_trial))
    }

    fn makeup(
        &self,
        on_trial: &mut Vec<OnTrial>,
        notes: &mut Vec<String>,
        nn: nn::Settings,
    ) -> Result<MakeupModels, StartError> {
        let folder = self.config.makeup.as_deref();
        self.prepare(Task::Makeup, folder, notes, on_trial, |bundle| Ok(MakeupModels::new(&bundle, nn)?))
    }

    /// The daemon does its work without it: no avatar means that no picture leaves. A try-on offers it where it is there, and is none
    /// the worse without; one that is there and broken is told.
    fn generator(
        &self,
        notes: &mut Vec<String>,
        on_trial: &mut Vec<OnTrial>,
        nn: nn::Settings,
    ) -> Option<GeneratorModel> {
        if !self.wanted.wants(Task::Identity) {
            return None;
        }
        let folder = self.config.identity.as_deref();
        // A bundle that only tells people apart is a good one.
        let prepare = |bundle: Bundle| match GeneratorModel::new(bundle, nn) {
            Err(error @ SynthesisError::NoGenerator { .. }) => Ok(Err(error.to_string())),
            Ok(model) if self.wanted.avatars && model.avatars().is_empty() => {
                Ok(Err(format!("{} holds no avatars", model.bundle().origin())))
            }
            other => Ok(Ok(other?)),
        };
        let found = self.prepare(Task::Identity, folder, notes, on_trial, prepare);
        let (key, told) = match (&found, self.wanted.avatars) {
            (_, true) => ("privacy.images = \"avatar\": no picture leaves this device", true),
            (Err(error), false) => ("web.try_on", !is_absent(error)),
            (Ok(_), false) => ("web.try_on", folder.is_some()),
        };
        let found = found.map_err(|error| error.to_string()).and_then(|model| model);
        found.map_err(|error| notes.extend(told.then(|| format!("{key}: {error}")))).ok()
    }

    /// What the daemon does not run has passed all that it can pass: its self-test, when it was installed.
    fn keep_unused(&self) {
        let (Some(settings), Some(_)) = (&self.config.store, self.start) else { return };
        let store = Store::new(settings);
        let unused = |task: &Task| !self.wanted.wants(*task);
        for task in Task::ALL.into_iter().filter(unused) {
            let listed = store.list(task).unwrap_or_default();
            let Some(trial) = listed.iter().find(|listed| listed.state == SlotState::Trial) else { continue };
            if let Err(error) = store.keep(task, trial.version) {
                tracing::warn!(%task, version = %trial.version, %error, "its trial goes on");
            }
        }
    }

    fn prepare<M>(
        &self,
        task: Task,
        folder: Option<&Path>,
        notes: &mut Vec<String>,
        on_trial: &mut Vec<OnTrial>,
        prepare: impl Fn(Bundle) -> Result<M, StartError>,
    ) -> Result<M, StartError> {
        let store = match (folder, &self.config.store) {
            (Some(_), _) | (None, None) => return prepare(Bundle::load(task, folder)?),
            (None, Some(settings)) => Store::new(settings),
        };
        // Once more for the former one, where the one on trial cannot even be prepared.
        for _ in 0..2 {
            let started = match self.start {
                Some((machine_boot, now)) => store.start(task, machine_boot, now)?,
                None => store.look(task)?,
            };
            let Started { bundle, on_trial: trial, notes: found } = started;
            notes.extend(found);
            let (origin, version) = (bundle.origin().clone(), bundle.version());
            let error = match prepare(bundle) {
                Ok(model) => {
                    on_trial.extend(trial.then_some(OnTrial { task, version, failures: 0 }));
                    return Ok(model);
                }
                Err(error) => error,
            };
            match (origin, self.start) {
                (Origin::BuiltIn(_), _) => return Err(error),
                (_, Some((_, now))) if trial => {
                    if let Err(unwritten) = store.give_up(task, version, &error.to_string(), now) {
                        notes.push(format!("models: {task} {version}: {error}; {unwritten}"));
                        break;
                    }
                }
                _ => {
                    notes.push(format!("models: {task} {version} cannot be used: {error}"));
                    break;
                }
            }
        }
        prepare(Bundle::built_in(task)?)
    }
}

/// Whether there just is no such bundle.
fn is_absent(error: &StartError) -> bool {
    matches!(error, StartError::Bundle(error) if matches!(error.fault, BundleFault::Absent))
}

#[derive(Clone, Copy, Debug)]
struct OnTrial {
    task: Task,
    version: Version,
    /// Of its network, counted when it was looked at last.
    failures: u64,
}

/// What is on trial in this run of the daemon.
#[derive(Debug, Default)]
pub(super) struct Trials {
    store: Option<Store>,
    on_trial: Vec<OnTrial>,
    healthy: Duration,
    last: Option<(Instant, u64)>,
    not_before: Option<Instant>,
}

impl Trials {
    /// Looks how the stages do.
    ///
    /// # Errors
    /// One of the bundles was given up, and the daemon has to start anew without it; which one and why.
    pub(super) fn look(
        &mut self,
        now: Instant,
        hung: bool,
        supervision: &Supervision,
        telemetry: &Telemetry,
    ) -> Result<(), String> {
        if self.on_trial.is_empty() {
            return Ok(());
        }
        if let Some(fault) = self.fault(supervision, telemetry) {
            return Err(self.fail(fault));
        }
        let frames = telemetry.frames_read.load(Ordering::Relaxed);
        if let Some((then, before)) = self.last.replace((now, frames)) {
            let step = now.saturating_duration_since(then);
            if frames > before && !hung && step <= LONGEST_STEP {
                self.healthy += step;
            } else if frames == before {
                // Frames may come more slowly than looks are taken.
                self.last = Some((then, before)).filter(|_| step <= LONGEST_STEP).or(self.last);
            }
        }
        let due = self.not_before.is_none_or(|time| now >= time);
        if due && self.store.as_ref().is_some_and(|store| self.healthy >= store.trial()) {
            self.keep(now);
        }
        Ok(())
    }

    fn fault(&self, supervision: &Supervision, telemetry: &Telemetry) -> Option<(OnTrial, String)> {
        let restart = supervision.last_restart();
        self.on_trial.iter().find_map(|trial| {
            let (stage, failures) = match trial.task {
                Task::Detector => ("faces", &telemetry.detector_failures),
                Task::Derl => ("expression", &telemetry.derl_failures),
                Task::Makeup => ("web", &telemetry.makeup_failures),
                Task::Identity => ("web", &telemetry.identity_failures),
            };
            if let Some(restart) = restart.as_ref().filter(|restart| restart.stage == stage) {
                return Some((*trial, format!("stage {stage} panicked: {}", restart.message)));
            }
            let failed = failures.load(Ordering::Relaxed) > trial.failures;
            failed.then(|| (*trial, "its network failed on a frame".into()))
        })
    }

    fn fail(&mut self, (trial, reason): (OnTrial, String)) -> String {
        let OnTrial { task, version, .. } = trial;
        self.on_trial.retain(|other| other.task != task);
        if let Some(Err(error)) = self.store.as_ref().map(|s| s.give_up(task, version, &reason, Timestamp::now())) {
            // Not told to stop: the next start takes it for a crash, which comes to the same.
            tracing::error!(%task, %version, %error, "not written that the bundle was given up");
        }
        format!("models: {task} {version} was given up ({reason}); the next start has the former one")
    }

    fn keep(&mut self, now: Instant) {
        let Some(store) = &self.store else { return };
        self.on_trial.retain(|trial| match store.keep(trial.task, trial.version) {
            Ok(()) => {
                tracing::info!(task = %trial.task, version = %trial.version, "the new bundle has proven itself");
                false
            }
            Err(error) => {
                tracing::warn!(task = %trial.task, %error, "trial goes on");
                true
            }
        });
        self.not_before = (!self.on_trial.is_empty()).then(|| now + AGAIN);
    }

    /// The daemon cannot go on, for `reason`.
    pub(super) fn fatal(&mut self, reason: &str) {
        while let Some(trial) = self.on_trial.first().copied() {
            let _ = self.fail((trial, reason.into()));
        }
    }

    /// The daemon was told to stop.
    pub(super) fn stand_down(&mut self) {
        let Some(store) = &self.store else { return };
        for trial in self.on_trial.drain(..) {
            if let Err(error) = store.stand_down(trial.task, trial.version) {
                tracing::warn!(task = %trial.task, %error, "the next start takes this end for a crash");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::stage::{End, spawn};
    use super::*;
    use crate::models::StoreSettings;

    fn on_trial(task: Task) -> Trials {
        let settings = StoreSettings { path: "/nowhere".into(), ..StoreSettings::default() };
        let version = "0.1.9".parse().unwrap();
        Trials {
            store: Some(Store::new(&settings)),
            on_trial: vec![OnTrial { task, version, failures: 0 }],
            ..Trials::default()
        }
    }

    struct Rig {
        trials: Trials,
        supervision: Arc<Supervision>,
        telemetry: Telemetry,
        now: Instant,
    }

    impl Rig {
        fn new(task: Task) -> Self {
            let now = Instant::now();
            let supervision = Arc::new(Supervision::default());
            Self { trials: on_trial(task), supervision, telemetry: Telemetry::new(now), now }
        }

        fn looks(&mut self, seconds: u64, frames: bool) -> Result<(), String> {
            for _ in 0..10 * seconds {
                self.now += Duration::from_millis(100);
                self.telemetry.frames_read.fetch_add(u64::from(frames), Ordering::Relaxed);
                self.trials.look(self.now, false, &self.supervision, &self.telemetry)?;
            }
            Ok(())
        }
    }

    #[test]
    fn a_trial_lasts_as_long_as_frames_were_read_and_not_as_long_as_the_daemon_ran() {
        let mut rig = Rig::new(Task::Derl);
        rig.looks(300, false).unwrap();
        assert_eq!(rig.trials.on_trial.len(), 1, "nothing was read");
        rig.looks(57, true).unwrap();
        assert_eq!(rig.trials.on_trial.len(), 1);
        rig.looks(4, true).unwrap();
        assert!(rig.trials.on_trial.is_empty());
    }

    #[test]
    fn a_failing_network_or_a_panicking_stage_ends_the_trial_of_its_own_bundle_only() {
        let mut rig = Rig::new(Task::Derl);
        rig.looks(1, true).unwrap();
        Telemetry::count(&rig.telemetry.detector_failures);
        rig.looks(1, true).unwrap();
        Telemetry::count(&rig.telemetry.derl_failures);
        let error = rig.looks(1, true).unwrap_err();
        assert!(error.contains("derl 0.1.9 was given up") && rig.trials.on_trial.is_empty(), "{error}");

        let mut rig = Rig::new(Task::Detector);
        let mut first = true;
        let stage = spawn("faces", &rig.supervision, move |_| {
            assert!(!std::mem::take(&mut first), "no such tensor");
            End::Finished
        });
        stage.unwrap().join().unwrap();
        let error = rig.looks(1, true).unwrap_err();
        assert!(error.contains("detector 0.1.9") && error.contains("no such tensor"), "{error}");
    }
}
