//! Directories that one broker has to itself: made for their owner alone, locked as long as the broker runs, and synced, so that a
//! name that was just made is there after a crash.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Makes `dir` where there is none, closes it to others, and locks it for as long as the answer is kept.
///
/// # Errors
/// A sentence that says what to change; `what` is kept there.
pub fn take(dir: &Path, what: &str) -> Result<File, String> {
    let shown = dir.display();
    let failed = |error: io::Error| format!("{what} in {shown} cannot be opened: {error}");
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(format!("another broker has {what} in {shown} open; give each broker a data directory of its own"))
        }
        Err(TryLockError::Error(error)) => Err(format!("{what} in {shown} cannot be locked: {error}")),
    }
}

/// Returns once the names in `dir`, and its own, are on disk.
///
/// # Errors
/// When that cannot be told.
pub fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}
