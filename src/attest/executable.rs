//! SHA-256 of what a process runs, computed once per file.

use quick_cache::sync::Cache;
use ring::digest::{Context, SHA256};
use std::{
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    sync::Arc,
};
use tokio::sync::Semaphore;

use super::process::{Executable, exe};
use crate::id::hex;

/// Larger executables are not hashed.
const MAX_SIZE: u64 = 512 * 1024 * 1024;
/// How many files are remembered.
const REMEMBERED: usize = 1024;
/// How many are hashed at a time: callers choose what they run, and must not keep every core busy with it.
const AT_ONCE: usize = 2;

/// The hashes of executables that were seen.
pub(super) struct Hashes {
    known: Cache<State, String>,
    turns: Arc<Semaphore>,
}

/// A file in one state. `mtime` can be set by its owner; `ctime` cannot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Hashes {
    pub(super) fn new() -> Self {
        Self { known: Cache::new(REMEMBERED), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The hash of what process `pid` runs, which is `expected`; `None` where it is too large or cannot be read.
    pub(super) async fn of(&self, pid: i32, expected: &Executable) -> Option<String> {
        let state = State::of(&fs::metadata(exe(pid)).ok()?);
        if state.size > MAX_SIZE || (state.device, state.inode) != (expected.device, expected.inode) {
            return None;
        }
        let hashed = self.known.get_or_insert_async(&state, async {
            let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(io::Error::other)?;
            let state = state.clone();
            tokio::task::spawn_blocking(move || {
                let hash = hash(pid, &state);
                drop(turn);
                hash
            })
            .await
            .map_err(io::Error::other)?
        });
        hashed.await.ok()
    }
}

/// Hashes the file through the process, not through its path, and only if it stays in `state` throughout.
fn hash(pid: i32, state: &State) -> io::Result<String> {
    let mut file = File::open(exe(pid))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 128 * 1024];
    // One byte more than it should have, so that a file that grew shows.
    let mut bytes = (&mut file).take(state.size + 1);
    loop {
        match bytes.read(&mut buffer)? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    if bytes.limit() != 1 || State::of(&file.metadata()?) != *state {
        return Err(io::Error::other("the executable changed while it was read"));
    }
    Ok(hex(context.finish().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{attest::process::Identity, id::sha256_hex};

    #[tokio::test]
    async fn the_hash_is_of_what_runs() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let executable = Identity::read(pid).unwrap().executable.unwrap();
        let hashes = Hashes::new();
        let expected = sha256_hex(&fs::read(&executable.path).unwrap());
        assert_eq!(hashes.of(pid, &executable).await, Some(expected.clone()));
        assert_eq!(hashes.of(pid, &executable).await, Some(expected));
        let other = Executable { inode: executable.inode + 1, ..executable };
        assert_eq!(hashes.of(pid, &other).await, None);
    }
}
