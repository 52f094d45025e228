//! `models.install`, `models.chunk`, `models.rollback`: bundles put in place, proven by the next boot, and answered then.
//!
//! The result in the newest `in_progress` answer, which is on disk, says to the next boot which version to look for.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Order, Step, Worker, busy, object};
use crate::config::ModelsConfig;
use crate::daemon::installer::{Installer, Look};
use crate::models::chunks::{ChunkError, Chunks};
use crate::models::store::{Expected, InstallError, Installed, Request, Source, Standing, StoreError};
use crate::models::{Store, Task, Version};
use crate::mqtt::command::{Answer, ArchiveSource, Chunk, ErrorCode, InstallRequest, Name, Outcome, Refusal};
use crate::report::Moment;

/// A bundle whose parts stop coming for so long is given up, so that another one can be installed.
const PARTS_WAIT: Duration = Duration::from_secs(600);

/// What is known of bundles that are on their way.
pub(super) struct Models {
    installer: Option<Installer>,
    /// Being fetched, tried and put in place.
    installing: Option<String>,
    /// Whose parts are still coming.
    collecting: Option<Collecting>,
    /// In place, and not proven yet.
    on_trial: Vec<OnTrial>,
}

struct Collecting {
    id: String,
    chunks: Chunks,
    part_bytes: u64,
    signature: String,
    expected: Expected,
    last_part: Instant,
}

struct OnTrial {
    id: String,
    task: Task,
    version: Version,
    result: Map<String, Value>,
}

impl Models {
    pub(super) fn new(config: &ModelsConfig) -> Self {
        let installer = config.store.as_ref().map(|settings| Installer::new(Store::new(settings)));
        Self { installer, installing: None, collecting: None, on_trial: Vec::new() }
    }

    /// Whether a new start would stop something.
    pub(super) fn installing(&self) -> bool {
        self.installing.is_some() || self.collecting.is_some()
    }

    /// Whether somebody has to look again soon.
    pub(super) fn waits(&self) -> bool {
        self.installing() || !self.on_trial.is_empty()
    }
}

impl Worker {
    pub(super) fn models_install(&mut self, id: &str, request: InstallRequest) -> Step {
        self.begin_install(id, request).unwrap_or_else(|refusal| Step::Done(Err(refusal)))
    }

    fn begin_install(&mut self, id: &str, request: InstallRequest) -> Result<Step, Refusal> {
        let task = self.task(&request.task)?;
        let version: Version = request.version.parse().map_err(|error| invalid(&format!("args.version: {error}")))?;
        if self.models.installing() || self.trial.is_some() {
            return Ok(
                busy("another bundle is being installed, or a configuration is on trial: wait for its answer").into()
            );
        }
        let expected = Expected {
            task: Some(task),
            version: Some(version),
            sha256: Some(request.sha256),
            size: Some(request.size_bytes),
            expires: Some(request.expires.0),
        };
        let result = Some(object(json!({ "task": task.name(), "version": version })));
        let signature = request.signature;
        match request.source {
            ArchiveSource::Url(url) => {
                let source = Source::parse(&url).map_err(|error| invalid(&format!("args.url: {error}")))?;
                let installer = self.installer()?;
                installer
                    .begin(Request { source, signature, expected })
                    .map_err(|e| rejected(&InstallError::Store(e)))?;
                self.models.installing = Some(id.into());
            }
            ArchiveSource::Chunks(parts) => {
                let part_bytes = u64::from(parts.size);
                if request.size_bytes.div_ceil(part_bytes) != u64::from(parts.count) {
                    let message = "args.chunks: count parts of size bytes do not make up args.size";
                    return Err(invalid(message));
                }
                let chunks = self.installer()?.store().chunks(request.size_bytes).map_err(|error| rejected(&error))?;
                let (id, last_part) = (id.into(), Instant::now());
                self.models.collecting = Some(Collecting { id, chunks, part_bytes, signature, expected, last_part });
                self.gate.awaits_chunks = true;
            }
        }
        Ok(Step::Begun { result, then: None })
    }

    pub(super) fn models_chunk(&mut self, chunk: &Chunk) -> Outcome {
        let Some(collecting) = self.models.collecting.as_mut().filter(|c| c.id == chunk.install.as_str()) else {
            return Err(invalid("args.install: no models.install of this id waits for parts"));
        };
        let offset = u64::from(chunk.index) * collecting.part_bytes;
        collecting.chunks.put(offset, &chunk.bytes).map_err(|error| match error {
            ChunkError::Io(_) => Refusal::failed(ErrorCode::Storage, error.to_string()),
            ChunkError::Outside { .. } | ChunkError::Scattered => invalid(&format!("args: {error}")),
        })?;
        collecting.last_part = Instant::now();
        let part = collecting.part_bytes;
        let missing = collecting.chunks.missing();
        // The first of them is enough to go on; a list of all would outgrow the answer.
        let first = missing.first().map(|range| range.start / part);
        let result = json!({
            "received": collecting.chunks.received_bytes(),
            "missing": collecting.chunks.size() - collecting.chunks.received_bytes(),
            "first_missing": first,
        });
        if missing.is_empty() {
            self.chunks_complete();
        }
        Ok(object(result))
    }

    /// Parts that stopped coming must not keep other bundles out.
    fn look_after_parts(&mut self, now: Instant) {
        let given_up = self.models.collecting.take_if(|c| now.saturating_duration_since(c.last_part) >= PARTS_WAIT);
        let Some(collecting) = given_up else { return };
        self.gate.awaits_chunks = false;
        let message = format!("no part came for {} s; send models.install again", PARTS_WAIT.as_secs());
        self.finish(&collecting.id, Name::ModelsInstall, Err(Refusal::failed(ErrorCode::Download, message)));
    }

    fn chunks_complete(&mut self) {
        self.gate.awaits_chunks = false;
        let (Some(collecting), Some(installer)) = (self.models.collecting.take(), &mut self.models.installer) else {
            return;
        };
        let Collecting { id, chunks, signature, expected, .. } = collecting;
        match installer.begin(Request { source: Source::Chunks(chunks), signature, expected }) {
            Ok(()) => self.models.installing = Some(id),
            Err(error) => drop(self.finish(&id, Name::ModelsInstall, Err(failed(&InstallError::Store(error))))),
        }
    }

    pub(super) fn models_rollback(&mut self, task: &str) -> Step {
        if self.models.installing() || self.trial.is_some() {
            return busy("a bundle is being installed, or a configuration is on trial: wait for its answer").into();
        }
        let rolled = self.task(task).and_then(|task| {
            let rolled = self.installer()?.store().rollback(task, jiff::Timestamp::now());
            rolled.map_err(|error| match error {
                StoreError::NothingBefore(_) => Refusal::rejected(ErrorCode::Version, error.to_string()),
                error => rejected(&InstallError::Store(error)),
            })
        });
        match rolled {
            Ok(rolled) => {
                self.leaving = true;
                Step::Begun { result: Some(result(&rolled)), then: Some(Order::Restart) }
            }
            Err(refusal) => Err(refusal).into(),
        }
    }

    /// The end of what an earlier run began; `None` where it is not over yet.
    pub(super) fn pick_up_bundle(&mut self, id: &str, name: Name, answer: Option<&Answer>) -> Option<Outcome> {
        let result = answer.and_then(|answer| answer.result.clone()).unwrap_or_default();
        let known = result.get("previous").is_some();
        if name == Name::ModelsRollback && known {
            return Some(Ok(result));
        }
        let text = |key: &str| result.get(key).and_then(Value::as_str);
        let (task, version) = (text("task").and_then(Task::from_name), text("version").and_then(|v| v.parse().ok()));
        match (task, version, known) {
            (Some(task), Some(version), true) => self.judge(OnTrial { id: id.into(), task, version, result }),
            _ => Some(Err(Refusal::failed(
                ErrorCode::Internal,
                "the daemon ended before the bundle was in place; what ran before goes on",
            ))),
        }
    }

    /// What became of a bundle; kept in mind where that is not known yet.
    fn judge(&mut self, bundle: OnTrial) -> Option<Outcome> {
        let standing = self.models.installer.as_ref().map(|i| i.store().standing(bundle.task, bundle.version));
        match standing {
            Some(Ok(Standing::Kept)) => Some(Ok(bundle.result)),
            Some(Ok(Standing::GivenUp(reason))) => Some(Err(Refusal::failed(ErrorCode::RolledBack, reason))),
            Some(Ok(Standing::OnTrial)) => {
                self.models.on_trial.push(bundle);
                None
            }
            Some(Ok(Standing::Unknown)) | None => {
                Some(Err(Refusal::failed(ErrorCode::Internal, "another bundle has taken its place meanwhile")))
            }
            Some(Err(error)) => Some(Err(failed(&InstallError::Store(error)))),
        }
    }

    pub(super) fn look_after_bundles(&mut self, now: Instant) {
        self.look_after_parts(now);
        for bundle in std::mem::take(&mut self.models.on_trial) {
            let id = bundle.id.clone();
            if let Some(outcome) = self.judge(bundle) {
                self.finish(&id, Name::ModelsInstall, outcome);
            }
        }
        let Some(installer) = &mut self.models.installer else { return };
        let Look::Done(ended) = installer.look() else { return };
        let Some(id) = self.models.installing.take() else { return };
        match ended {
            Ok(installed) => self.try_bundle(&id, &installed),
            Err(error) => drop(self.finish(&id, Name::ModelsInstall, Err(failed(&error)))),
        }
    }

    /// What it is goes to disk, so that the next boot knows what to look for.
    fn try_bundle(&mut self, id: &str, installed: &Installed) {
        let time = Moment(jiff::Timestamp::now());
        let name = Name::ModelsInstall;
        let answer = Answer::in_progress(id, name.as_str(), Some(result(installed)), self.setup.boot, time);
        let reply = self.gate.past.settle(&answer).unwrap_or_default();
        self.save();
        self.setup.handle.answer(answer, reply, None);
        self.leaving = true;
        if let Err(refusal) = self.order(Order::Restart) {
            self.leaving = false;
            self.finish(id, name, Err(refusal));
        }
    }

    fn task(&self, name: &str) -> Result<Task, Refusal> {
        let task = Task::from_name(name).ok_or_else(|| invalid(&format!("args.task: there are {}", Task::names())))?;
        let running = self.setup.context.running.load();
        match running.models.folder(task) {
            None => Ok(task),
            Some(folder) => Err(Refusal::rejected(
                ErrorCode::Forbidden,
                format!("models.{task} = {:?} in this device's configuration goes over what is installed", folder),
            )),
        }
    }

    fn installer(&mut self) -> Result<&mut Installer, Refusal> {
        self.models.installer.as_mut().ok_or_else(|| {
            Refusal::rejected(
                ErrorCode::Forbidden,
                "models.store = \"\" in this device's configuration: there is no store",
            )
        })
    }
}

fn result(installed: &Installed) -> Map<String, Value> {
    let Installed { task, version, previous } = installed;
    object(json!({ "task": task.0.name(), "version": version, "previous": previous }))
}

fn invalid(message: &str) -> Refusal {
    Refusal::rejected(ErrorCode::InvalidArgs, message)
}

fn rejected(error: &InstallError) -> Refusal {
    Refusal::rejected(code(error), error.to_string())
}

fn failed(error: &InstallError) -> Refusal {
    Refusal::failed(code(error), error.to_string())
}

fn code(error: &InstallError) -> ErrorCode {
    let known = serde_json::from_value(Value::from(error.code()));
    known.unwrap_or(ErrorCode::Internal)
}
