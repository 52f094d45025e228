//! A configuration on trial: tried, and kept only if the daemon is healthy with it; else the former file stands again.
//!
//! The journal `FILE.trial` beside the configuration's file says how far it is, so that a crash or a power cut at any moment
//! ends in one of two states: the former file, or the new one confirmed. It goes
//!
//! ```text
//! begun ─► the new file is written ─► applied ─► confirmed, or rolled back ─► the journal goes
//! ```
//!
//! Invariants: the file is replaced at once and never half written; it is replaced only while it holds what the journal
//! knows, so that an edit by hand meanwhile stays; the journal goes only after the answer has been remembered.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A configuration on trial, as its journal holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Of the request.
    pub id: String,
    /// The file's text before it.
    pub former: String,
    /// Of the text on trial.
    pub new_sha256: String,
    /// Keys that differ.
    pub changed: Vec<String>,
    /// Kept only if the daemon is healthy then.
    pub confirm_after_s: u64,
    /// A new start of the process was needed to apply it.
    pub restart: bool,
    /// How far it is.
    pub phase: Phase,
}

/// How far a [`Trial`] is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// In force, not confirmed.
    Running {
        /// Starts of the process that belong to the trial; any other one means that something went wrong.
        starts_left: u32,
    },
    /// The former file stands again.
    RolledBack {
        /// Why.
        reason: String,
    },
    /// The new file stays.
    Confirmed,
}

/// Why a trial could not be begun or ended.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The disk, or a permission.
    #[error("{}: {source}: may the daemon's user write this file and its folder, and is there room?", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not what this version writes.
    #[error("{}: not readable: {source}", path.display())]
    Unreadable {
        /// The journal.
        path: PathBuf,
        /// What was expected.
        source: serde_json::Error,
    },
}

impl Trial {
    /// Kept only if the daemon is healthy after so long.
    pub fn confirm_after(&self) -> Duration {
        Duration::from_secs(self.confirm_after_s)
    }
}

/// Hexadecimal SHA-256.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    crate::models::sha256_hex(bytes.as_ref())
}

/// Writes the journal, then `text` in place of the file's.
///
/// # Errors
/// [`TrialError`]; the former file stands then.
pub fn begin(file: &Path, trial: &Trial, text: &str) -> Result<(), TrialError> {
    write_journal(file, trial)?;
    if let Err(error) = replace(&real(file), text.as_bytes()) {
        finish(file);
        return Err(error);
    }
    Ok(())
}

/// The trial of `file`, where there is one.
///
/// # Errors
/// [`TrialError`] where the journal cannot be read.
pub fn read(file: &Path) -> Result<Option<Trial>, TrialError> {
    let path = journal(file);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| TrialError::Unreadable { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TrialError::Io { path, source }),
    }
}

/// What a start of the process has to do with a trial, before it reads the file. Rolls back one that did not outlast the
/// process.
///
/// # Errors
/// [`TrialError`] where that could not be done.
pub fn at_start(file: &Path) -> Result<Option<Trial>, TrialError> {
    let Some(mut trial) = read(file)? else { return Ok(None) };
    match trial.phase {
        Phase::Running { starts_left: 0 } => {
            roll_back(file, &mut trial, "the daemon ended before the new configuration was confirmed")?;
        }
        Phase::Running { starts_left } => {
            trial.phase = Phase::Running { starts_left: starts_left - 1 };
            write_journal(file, &trial)?;
        }
        Phase::RolledBack { .. } | Phase::Confirmed => {}
    }
    Ok(Some(trial))
}

/// Puts the former text back, unless somebody has changed the file meanwhile.
///
/// # Errors
/// [`TrialError`]; the next start tries again.
pub fn roll_back(file: &Path, trial: &mut Trial, reason: &str) -> Result<(), TrialError> {
    let path = real(file);
    let now = fs::read(&path).map(sha256).unwrap_or_default();
    let reason = if now == trial.new_sha256 {
        replace(&path, trial.former.as_bytes())?;
        reason.to_owned()
    } else if now == sha256(&trial.former) {
        reason.to_owned()
    } else {
        format!("{reason}; {} was changed by hand meanwhile and stays as it is", file.display())
    };
    trial.phase = Phase::RolledBack { reason };
    write_journal(file, trial)
}

/// The new file stays.
///
/// # Errors
/// [`TrialError`]; the trial goes on then.
pub fn confirm(file: &Path, trial: &mut Trial) -> Result<(), TrialError> {
    trial.phase = Phase::Confirmed;
    write_journal(file, trial)
}

/// The journal goes: its answer is remembered elsewhere.
pub fn finish(file: &Path) {
    let path = journal(file);
    if let Err(error) = fs::remove_file(&path).and_then(|()| sync_folder(&path)) {
        tracing::warn!(%error, path = %path.display(), "could not be removed; the next start does it");
    }
}

fn write_journal(file: &Path, trial: &Trial) -> Result<(), TrialError> {
    let path = journal(file);
    let bytes = serde_json::to_vec(trial).map_err(|source| TrialError::Unreadable { path: path.clone(), source })?;
    replace(&path, &bytes)
}

/// A link leads to the file that is meant: that one is replaced, and the link stays.
fn real(file: &Path) -> PathBuf {
    fs::canonicalize(file).unwrap_or_else(|_| file.to_owned())
}

fn journal(file: &Path) -> PathBuf {
    let mut name = real(file).into_os_string();
    name.push(".trial");
    name.into()
}

/// Replaces a file at once, with the rights and the owner that it had; a new one is readable for this user alone.
///
/// # Errors
/// [`TrialError::Io`]; the file is as it was.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrialError> {
    replace_file(path, bytes).map_err(|source| TrialError::Io { path: path.to_owned(), source })
}

fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    if let Ok(former) = fs::metadata(path) {
        file.as_file().set_permissions(fs::Permissions::from_mode(former.mode() & 0o7777))?;
        // Only root may give a file away; where the owner is ours already there is nothing to do.
        let _ = std::os::unix::fs::fchown(file.as_file(), Some(former.uid()), Some(former.gid()));
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(starts_left: u32) -> Trial {
        Trial {
            id: "1".into(),
            former: "former".into(),
            new_sha256: sha256("new"),
            changed: vec!["a.b".into()],
            confirm_after_s: 10,
            restart: starts_left > 0,
            phase: Phase::Running { starts_left },
        }
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("v.toml");
        fs::write(&file, "former").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        (folder, file)
    }

    fn text(file: &Path) -> String {
        fs::read_to_string(file).unwrap()
    }

    #[test]
    fn a_trial_that_did_not_outlast_the_process_is_rolled_back_at_the_next_start() {
        let (_folder, file) = folder();
        begin(&file, &trial(0), "new").unwrap();
        assert_eq!((text(&file).as_str(), fs::metadata(&file).unwrap().mode() & 0o777), ("new", 0o640));
        let after = at_start(&file).unwrap().unwrap();
        assert!(matches!(after.phase, Phase::RolledBack { .. }), "{after:?}");
        assert_eq!((text(&file).as_str(), fs::metadata(&file).unwrap().mode() & 0o777), ("former", 0o640));
        assert_eq!(at_start(&file).unwrap().unwrap(), after, "until its answer is remembered it says so again");
        finish(&file);
        assert_eq!(at_start(&file).unwrap(), None);
    }

    #[test]
    fn the_start_that_a_trial_needs_belongs_to_it_and_a_second_one_does_not() {
        let (_folder, file) = folder();
        begin(&file, &trial(1), "new").unwrap();
        assert_eq!(at_start(&file).unwrap().unwrap().phase, Phase::Running { starts_left: 0 });
        assert_eq!(text(&file), "new");
        assert!(matches!(at_start(&file).unwrap().unwrap().phase, Phase::RolledBack { .. }));
        assert_eq!(text(&file), "former");
    }

    #[test]
    fn a_crash_between_journal_and_file_leaves_the_former_file() {
        let (_folder, file) = folder();
        write_journal(&file, &trial(0)).unwrap();
        assert!(matches!(at_start(&file).unwrap().unwrap().phase, Phase::RolledBack { .. }));
        assert_eq!(text(&file), "former");
    }

    #[test]
    fn a_confirmed_trial_stays_whatever_happens_to_its_answer() {
        let (_folder, file) = folder();
        let mut trial = trial(0);
        begin(&file, &trial, "new").unwrap();
        confirm(&file, &mut trial).unwrap();
        assert_eq!(at_start(&file).unwrap().unwrap().phase, Phase::Confirmed);
        assert_eq!(text(&file), "new");
    }

    #[test]
    fn a_file_that_somebody_changed_by_hand_meanwhile_stays() {
        let (_folder, file) = folder();
        begin(&file, &trial(0), "new").unwrap();
        fs::write(&file, "mine").unwrap();
        let Phase::RolledBack { reason } = at_start(&file).unwrap().unwrap().phase else { panic!("not rolled back") };
        assert!(reason.contains("by hand"), "{reason}");
        assert_eq!(text(&file), "mine");
    }

    #[test]
    fn a_link_stays_a_link() {
        let (folder, file) = folder();
        let link = folder.path().join("link.toml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        begin(&link, &trial(0), "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(text(&file), "new");
    }

    #[test]
    fn a_folder_that_cannot_be_written_leaves_all_as_it_was() {
        let nowhere = Path::new("/proc/visaged.toml");
        assert!(matches!(begin(nowhere, &trial(0), "new"), Err(TrialError::Io { .. })));
    }
}
