//! The last requests on disk: one small file, replaced as a whole, so that none is done twice over a restart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::daemon::trial::{TrialError, replace};
use crate::mqtt::command::Past;

const FILE: &str = "requests.json";
const ASIDE: &str = "requests.corrupt";

/// Where the last requests are kept.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// What an earlier run left. A file that cannot be read is put aside: without it a request may be done again, which is
    /// less bad than a device that takes none.
    pub(super) fn load(&self) -> Past {
        let path = self.folder.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %path.display(), "the last requests are not known");
                }
                return Past::default();
            }
        };
        Past::from_bytes(&bytes).unwrap_or_else(|error| {
            tracing::error!(%error, path = %path.display(), "the last requests are not known; the file is put aside");
            let _ = fs::rename(&path, self.folder.join(ASIDE));
            Past::default()
        })
    }

    /// Keeps `past`.
    ///
    /// # Errors
    /// [`TrialError::Io`] where the disk does not take it; what was kept before stays.
    pub(super) fn save(&self, past: &Past) -> Result<(), TrialError> {
        let path = self.folder.join(FILE);
        let io = |source| TrialError::Io { path: path.clone(), source };
        make_folder(&self.folder).map_err(io)?;
        let bytes = past.to_bytes().map_err(io::Error::other).map_err(io)?;
        replace(&path, &bytes)
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
