//! The few things that the store asks of a file system, so that tests can cut the power between any two of them.
//!
//! What a power cut leaves, by POSIX and as ext4, f2fs and UBIFS do it: what was synced; a rename either done or not; of
//! anything else whatever it likes.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Held until dropped.
pub(super) type Lock = Box<dyn Debug + Send>;

/// Paths are absolute.
pub(super) trait Disk: Debug + Send + Sync {
    /// At most `limit + 1` bytes, so that a file that is too long is seen as such without being read whole.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// A new file, or the old one with this content; safe only after [`Disk::sync_file`] and [`Disk::sync_folder`].
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Content and length are safe.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// The names in the folder are safe.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Whole or not at all; over a file that is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// With its parents; no error where it is there.
    fn make_folder(&self, path: &Path) -> io::Result<()>;
    /// With what is in it; no error where it is not there.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Names of what is in a folder; none where it is not there.
    fn names(&self, path: &Path) -> io::Result<Vec<String>>;
    /// One holder at a time, over all processes; `WouldBlock` after `patience`.
    fn lock(&self, path: &Path, patience: Duration) -> io::Result<Lock>;
    /// Room for an unprivileged user.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// The system's own files, as the user of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct SystemDisk;

impl Disk for SystemDisk {
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        }
    }

    fn lock(&self, path: &Path, patience: Duration) -> io::Result<Lock> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Box::new(file)),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let system = rustix::fs::statvfs(path)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }
}

/// `path` as it will be, made absolute where it is not.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
