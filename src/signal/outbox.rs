//! What one receiver was told, in a file of its own: one JSON line for each end, synced before the next one is told. What is not in it is
//! still to tell, because the end itself is in the journal. So a line that is lost, or that a crash left half written, makes a receiver
//! hear of something twice, under the same id, and never not at all.

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{clock::Time, id::TaskId, own_dir, task::State};

/// A file is written anew when it has this many lines more than twice what still counts.
const SLACK: usize = 1024;

/// What became of telling a receiver of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It ended before there was this receiver.
    Before,
    /// It is none of its sandboxes.
    NotConcerned,
    /// It has it.
    Delivered,
    /// The sandbox is gone.
    Confirmed,
    /// It will not take it.
    Refused,
    /// It was tried for as long as it may.
    Expired,
}

impl Fate {
    /// The word in the audit log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::NotConcerned => "not_concerned",
            Self::Delivered => "delivered",
            Self::Confirmed => "confirmed",
            Self::Refused => "refused",
            Self::Expired => "expired",
        }
    }
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// The task that ended.
    pub task: TaskId,
    /// How: one that was completed can be revoked besides. `None`: nobody said so, and it was told of everything there was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// What became of it.
    pub fate: Fate,
    /// When.
    pub at: Time,
}

impl Done {
    fn about(&self) -> About {
        (self.task.clone(), self.state)
    }
}

/// The file, and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Outbox(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    lines: usize,
    done: HashMap<About, Done>,
}

/// Which task it is that ended, and how.
type About = (TaskId, Option<State>);

impl Outbox {
    /// Opens the file `name` in `dir`. Where there is none, it says of all these tasks that they ended before.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(super) fn open(dir: &Path, name: &str, ended: &[(TaskId, State)], now: Time) -> io::Result<Self> {
        let path = dir.join(format!("{name}.told"));
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (fate, at) = (Fate::Before, now);
                let before = ended.iter().cloned().map(|(task, how)| Done { task, state: Some(how), fate, at });
                let (file, done) = write_anew(dir, &path, before.collect())?;
                return Ok(Self::of(Inner { path, file, lines: done.len(), done }));
            }
            Err(error) => return Err(error),
        };
        let mut options = OpenOptions::new();
        let mut file = options.append(true).mode(0o600).open(&path)?;
        if text.last().is_some_and(|last| *last != b'\n') {
            // What comes next is a line of its own.
            file.write_all(b"\n")?;
        }
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let read: Vec<Option<Done>> = lines.map(|line| serde_json::from_slice(line).ok()).collect();
        let lost = read.iter().filter(|line| line.is_none()).count();
        if lost > 0 {
            tracing::warn!(
                receiver = name,
                lost,
                "of some ends it is not known that this receiver was told: it is told again"
            );
        }
        let lines = read.len();
        let done = read.into_iter().flatten().map(|done| (done.about(), done)).collect();
        Ok(Self::of(Inner { path, file, lines, done }))
    }

    fn of(inner: Inner) -> Self {
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of telling this receiver that a task ended like this.
    pub(super) fn get(&self, task: &TaskId, how: State) -> Option<Done> {
        let inner = self.lock();
        [Some(how), None].into_iter().find_map(|how| inner.done.get(&(task.clone(), how)).cloned())
    }

    /// Notes what became of it, and returns once that is on disk.
    ///
    /// # Errors
    /// When it is not. It holds as long as the process.
    pub(super) async fn note(&self, done: Done) -> io::Result<()> {
        let this = self.clone();
        let noted = tokio::task::spawn_blocking(move || {
            let mut line = serde_json::to_vec(&done)?;
            line.push(b'\n');
            let mut inner = this.lock();
            // What concerns nobody is found out again as easily.
            let synced = done.fate != Fate::NotConcerned;
            inner.done.insert(done.about(), done);
            inner.lines += 1;
            inner.file.write_all(&line)?;
            let file = if synced { Some(inner.file.try_clone()?) } else { None };
            drop(inner);
            // Whoever asks what became of it does not wait for the disk.
            file.map_or(Ok(()), |file| file.sync_data())
        });
        noted.await.map_err(io::Error::other)?
    }

    /// Forgets those for which `still` says no, and makes the file shorter where most of it is about them.
    pub(super) fn forget(&self, still: impl Fn(&TaskId) -> bool) {
        let mut inner = self.lock();
        if inner.lines <= 2 * inner.done.len() + SLACK && inner.done.len() <= 2 * SLACK {
            return;
        }
        let kept: Vec<Done> = inner.done.values().filter(|done| still(&done.task)).cloned().collect();
        if inner.lines <= 2 * kept.len() + SLACK {
            return;
        }
        let Some(dir) = inner.path.parent().map(Path::to_owned) else { return };
        match write_anew(&dir, &inner.path, kept) {
            Ok((file, done)) => (inner.lines, inner.file, inner.done) = (done.len(), file, done),
            Err(error) => tracing::warn!(%error, "what a receiver was told goes on in the file that it has"),
        }
    }
}

/// Puts a file with these lines in the place of another, whole.
fn write_anew(dir: &Path, path: &Path, done: Vec<Done>) -> io::Result<(File, HashMap<About, Done>)> {
    // In an order that says nothing of how they are kept.
    let sorted: BTreeMap<_, _> = done
        .into_iter()
        .map(|done| ((done.at, done.task.clone(), done.state != Some(State::Completed)), done))
        .collect();
    let mut text = Vec::new();
    for done in sorted.values() {
        serde_json::to_writer(&mut text, done)?;
        text.push(b'\n');
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o600).open(&aside)?;
    file.set_len(0)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    own_dir::sync(dir)?;
    Ok((file, sorted.into_values().map(|done| (done.about(), done)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    fn task() -> TaskId {
        TaskId::root(now()).unwrap()
    }

    fn done(task: &TaskId, fate: Fate) -> Done {
        Done { task: task.clone(), state: Some(State::Revoked), fate, at: now() }
    }

    #[tokio::test]
    async fn what_was_told_is_known_again_and_what_ended_before_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let (before, told, later) = (task(), task(), task());
        let outbox = Outbox::open(dir.path(), "siem", &[(before.clone(), State::Revoked)], now()).unwrap();
        outbox.note(done(&told, Fate::Delivered)).await.unwrap();
        drop(outbox);
        let outbox = Outbox::open(dir.path(), "siem", &[(later.clone(), State::Revoked)], now()).unwrap();
        let fate = |task| outbox.get(task, State::Revoked).map(|done| done.fate);
        assert_eq!((fate(&before), fate(&told), fate(&later)), (Some(Fate::Before), Some(Fate::Delivered), None));
        // That it was completed is another matter; and what was written before that was told apart is about all there was.
        assert!(outbox.get(&told, State::Completed).is_none());
        drop(outbox);
        let path = dir.path().join("siem.told");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(r#""state":"revoked","#, "")).unwrap();
        let outbox = Outbox::open(dir.path(), "siem", &[], now()).unwrap();
        let told = [State::Completed, State::Revoked].map(|how| outbox.get(&told, how).unwrap().fate);
        assert_eq!(told, [Fate::Delivered; 2]);
    }

    #[tokio::test]
    async fn a_torn_line_is_told_again_and_spoils_none_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second, third) = (task(), task(), task());
        let outbox = Outbox::open(dir.path(), "siem", &[], now()).unwrap();
        outbox.note(done(&first, Fate::Delivered)).await.unwrap();
        outbox.note(done(&second, Fate::Delivered)).await.unwrap();
        drop(outbox);
        let path = dir.path().join("siem.told");
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..40 {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let outbox = Outbox::open(dir.path(), "siem", &[], now()).unwrap();
            outbox.note(done(&third, Fate::Refused)).await.unwrap();
            drop(outbox);
            let outbox = Outbox::open(dir.path(), "siem", &[], now()).unwrap();
            let fate = |task| outbox.get(task, State::Revoked).map(|done| done.fate);
            assert_eq!((fate(&first), fate(&third)), (Some(Fate::Delivered), Some(Fate::Refused)), "{cut}");
            // Without its line feed alone it is a whole one.
            assert_eq!(fate(&second).is_some(), cut == 1);
        }
    }

    #[tokio::test]
    async fn it_becomes_small_again() {
        let dir = tempfile::tempdir().unwrap();
        let kept = task();
        let outbox = Outbox::open(dir.path(), "siem", &[], now()).unwrap();
        outbox.note(done(&kept, Fate::Delivered)).await.unwrap();
        for _ in 0..2 * SLACK {
            outbox.note(done(&task(), Fate::NotConcerned)).await.unwrap();
        }
        outbox.forget(|task| *task == kept);
        assert_eq!(outbox.get(&kept, State::Revoked).map(|done| done.fate), Some(Fate::Delivered));
        outbox.note(done(&task(), Fate::Delivered)).await.unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("siem.told")).unwrap().lines().count(), 2);
    }
}
