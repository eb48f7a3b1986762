//! Files that hold secrets: made for their owner alone, and refused when others can read them.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

use crate::failpoint::{Step, reached};

/// The most that is read: keys and tokens are small, and so are the certificates beside some.
const MAX_SIZE: u64 = 64 * 1024;

/// Reads a secret, or makes it (0600, in a directory made 0700) where there is none yet.
///
/// # Errors
/// A sentence that names the file and says what to change.
pub fn load_or_create(
    path: &Path,
    make: impl FnOnce() -> Result<Zeroizing<String>, String>,
) -> Result<Zeroizing<String>, String> {
    match load(path)? {
        Some(secret) => Ok(secret),
        None => create(path, &make()?),
    }
}

/// Reads a secret; `None` where there is none.
///
/// # Errors
/// A sentence that names the file and says what to change.
pub fn load(path: &Path) -> Result<Option<Zeroizing<String>>, String> {
    let name = path.display();
    let failed = |error: io::Error| format!("{name} cannot be read: {error}");
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // Asked of the open file: what was checked is what is read.
    let about = file.metadata().map_err(failed)?;
    if about.permissions().mode() & 0o077 != 0 {
        return Err(format!(
            "{name} can be read by others than its owner: run chmod 600 {name}, and replace it if they may have"
        ));
    }
    let mut secret = Zeroizing::new(String::new());
    file.take(MAX_SIZE).read_to_string(&mut secret).map_err(failed)?;
    Ok(Some(secret))
}

/// Writes a secret that did not exist. Whoever comes second reads what the first one wrote.
fn create(path: &Path, secret: &Zeroizing<String>) -> Result<Zeroizing<String>, String> {
    match aside(path, secret)?.persist_noclobber(path) {
        Ok(_) => settle(path).map(|()| secret.clone()),
        Err(_) => load(path)?.ok_or_else(|| format!("{} cannot be made", path.display())),
    }
}

/// Writes a secret, in the place of another if there is one.
///
/// # Errors
/// A sentence that names the file.
pub fn overwrite(path: &Path, secret: &Zeroizing<String>) -> Result<(), String> {
    let written = aside(path, secret)?.persist(path);
    written.map_err(|error| format!("{} cannot be written: {}", path.display(), error.error))?;
    settle(path)
}

/// A secret beside its place, to be linked there, so that no reader ever sees half of one.
fn aside(path: &Path, secret: &Zeroizing<String>) -> Result<tempfile::NamedTempFile, String> {
    let failed = |error: io::Error| format!("{} cannot be made: {error}", path.display());
    let dir = dir_of(path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let aside = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(failed)?;
    (&mut aside.as_file()).write_all(secret.as_bytes()).and_then(|()| aside.as_file().sync_all()).map_err(failed)?;
    reached(Step::FileWritten);
    Ok(aside)
}

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes sure that what the directory says of a file outlives a crash.
fn settle(path: &Path) -> Result<(), String> {
    reached(Step::FilePlaced);
    let synced = fs::File::open(dir_of(path)).and_then(|dir| dir.sync_all());
    synced.map_err(|error| format!("{} cannot be made: {error}", path.display()))
}

/// Puts one secret in the place of another, whole and at once; the other is gone.
///
/// # Errors
/// A sentence that names the file.
pub fn replace(path: &Path, by: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{} cannot be replaced: {error}", path.display());
    fs::rename(by, path).map_err(failed)?;
    settle(path)
}

/// Gives a secret a second name, whole and at once; what had that name is gone.
///
/// # Errors
/// A sentence that names the file.
pub fn duplicate(path: &Path, to: &Path) -> Result<(), String> {
    remove(to)?;
    fs::hard_link(path, to).map_err(|error| format!("{} cannot be made: {error}", to.display()))?;
    settle(to)
}

/// The files in a directory whose names are like that, in order; none where there is no directory.
///
/// # Errors
/// A sentence that names the directory.
pub fn named(dir: &Path, is: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, String> {
    let failed = |error: io::Error| format!("{} cannot be read: {error}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_str().is_some_and(&is) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a secret, if it is there.
///
/// # Errors
/// A sentence that names the file.
pub fn remove(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{} cannot be removed: {error}", path.display())),
        Ok(()) => settle(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/key");
        let first = load_or_create(&path, || Ok(Zeroizing::new("one".into()))).unwrap();
        let second = load_or_create(&path, || Ok(Zeroizing::new("two".into()))).unwrap();
        assert_eq!((first.as_str(), second.as_str()), ("one", "one"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let why = load(&path).unwrap_err();
        assert!(why.contains("chmod 600") && !why.contains("secret"));
    }
}
