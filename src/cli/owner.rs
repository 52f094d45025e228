//! What root asks for is done as the owner of what it changes.
//!
//! The daemon's user owns the daemon's folders, and has to be able to use what is put there. It could also put links there: what
//! root wrote through one of them would be written anywhere. So root is given up before such a folder is touched, for good.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Where this process is root's and the folder at `path`, or the one that it would be made in, is not: from here on the
/// process is its owner's.
///
/// # Errors
/// Where the system does not let it.
pub(super) fn become_owner_of(path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let Some(there) = path.ancestors().find_map(|folder| fs::metadata(folder).ok()) else { return Ok(()) };
    if there.uid() == 0 {
        return Ok(());
    }
    let (user, group) = (there.uid(), there.gid());
    // SAFETY: the array outlives the call, and one is its length. These three change this process only.
    let given_up = unsafe { libc::setgroups(1, &group) == 0 && libc::setgid(group) == 0 && libc::setuid(user) == 0 };
    if given_up { Ok(()) } else { Err(io::Error::last_os_error()) }
}
