//! Appends to the log and syncs it in groups: whoever arrives while a sync is under way shares the next one.
//!
//! What a reader may rely on: an acknowledged entry is on disk, whole, on a line of its own, numbered without gaps, and
//! the entries of one call stand together and in order. The log may hold more than was done (the broker died, or gave
//! up waiting, between the write and the act), never less.
//!
//! Two failures differ. A *write* that fails (disk full) changed nothing that cannot be cut off again, so the next group
//! may try again. A *sync* that fails is final: the kernel may already have dropped the pages and would call the next
//! sync a success, so nothing written since the last good one is known to exist. Then the log takes no more entries
//! until the broker is started again and has read what is really there.

use serde::{Deserialize, Serialize};
use serde_json::ser::{CompactFormatter, Formatter};
use std::{
    fmt::Display,
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

use super::{Entry, Unrecorded};

/// The log's name in its directory.
const FILE: &str = "audit.jsonl";

/// How long a caller waits for its entries to be durable, and how long the disk may take before it counts as stuck.
const DEADLINE: Duration = Duration::from_secs(5);

/// Calls that may wait for the writer; more wait for a place, within the same deadline.
const QUEUE: usize = 4096;

/// The most that is written between two syncs, and so the most that a crash can leave in doubt at the end of the file.
const GROUP: usize = 1 << 20;

/// The open log. Cheap to clone; the file is closed, and free for another broker, when the last clone is dropped.
#[derive(Clone)]
pub struct Audit {
    writer: Arc<Handle>,
}

impl Audit {
    /// Opens (or makes) the log in `dir`, which becomes readable by its owner alone. A tail that a crash left incomplete
    /// is cut off: none of it was acknowledged.
    ///
    /// # Errors
    /// When the directory cannot be written, another broker has the log open, or the file is not a log of ours.
    pub fn open(dir: &Path) -> Result<Self, Unrecorded> {
        let (file, end) = open(dir)?;
        Self::start(file, end, DEADLINE)
    }

    /// Appends the entries, in order and together, and returns once they are on disk.
    ///
    /// # Errors
    /// When they could not be made durable; then nothing that depends on them may be done. They may turn up in the log
    /// all the same.
    pub async fn record(&self, entries: &[Entry]) -> Result<(), Unrecorded> {
        if entries.is_empty() {
            return Ok(());
        }
        let lines = entries.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        if lines.iter().map(String::len).sum::<usize>() > GROUP / 2 {
            return Err(Unrecorded(format!("more than {} bytes of audit entries at once", GROUP / 2)));
        }
        let writer = &*self.writer;
        if writer.is_stuck() {
            return Err(stuck(writer.deadline));
        }
        let (done, answer) = oneshot::channel();
        let commit = async {
            let queue = writer.queue.as_ref().ok_or_else(gone)?;
            queue.send(Call { lines, done }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        tokio::time::timeout(writer.deadline, commit).await.unwrap_or_else(|_| Err(stuck(writer.deadline)))
    }

    /// Whether the log still takes entries. After a failed write it says no for as long as a caller would wait, then
    /// yes, so that the next caller tries again; after a failed sync it says no until the broker is started again.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let writer = &*self.writer;
        let alive = writer.queue.as_ref().is_some_and(|queue| !queue.is_closed());
        alive
            && match *writer.condition.lock().unwrap_or_else(PoisonError::into_inner) {
                Condition::Good => true,
                Condition::Committing(since) => since.elapsed() < writer.deadline,
                Condition::Refused(at) => at.elapsed() >= writer.deadline,
                Condition::Lost => false,
            }
    }

    fn start<M: Medium>(medium: M, end: End, deadline: Duration) -> Result<Self, Unrecorded> {
        let (queue, calls) = mpsc::channel(QUEUE);
        let condition = Arc::new(Mutex::new(Condition::Good));
        let writer = Writer { medium, end, condition: Arc::clone(&condition), lost: None };
        let thread = Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(calls))
            .map_err(|error| Unrecorded(format!("the audit writer could not be started: {error}")))?;
        let writer = Handle { queue: Some(queue), thread: Some(thread), condition, deadline };
        Ok(Self { writer: Arc::new(writer) })
    }
}

/// The callers' end of the writer.
struct Handle {
    /// `None` only while it is being dropped.
    queue: Option<mpsc::Sender<Call>>,
    thread: Option<JoinHandle<()>>,
    condition: Arc<Mutex<Condition>>,
    deadline: Duration,
}

impl Handle {
    fn is_stuck(&self) -> bool {
        let condition = self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*condition, Condition::Committing(since) if since.elapsed() >= self.deadline)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue = None;
        // Waiting means that the lock is free again once this returns; a disk that hangs must not hang the exit too.
        if let Some(thread) = self.thread.take()
            && !self.is_stuck()
            && thread.join().is_err()
        {
            tracing::error!("the audit writer panicked");
        }
    }
}

/// What the writer is doing, for those who ask about its health.
enum Condition {
    /// The last group went well.
    Good,
    /// It has been writing and syncing a group since then.
    Committing(Instant),
    /// The last write failed then, and was undone.
    Refused(Instant),
    /// For good.
    Lost,
}

/// One call of [`Audit::record`].
struct Call {
    /// The entries, as JSON objects without their numbers.
    lines: Vec<String>,
    done: oneshot::Sender<Result<(), Unrecorded>>,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// In bytes; always just after a line feed.
    length: u64,
    /// The number of the last entry.
    sequence: u64,
}

/// What the log is written on: a file, or in the tests a file with faults.
trait Medium: Send + 'static {
    /// Writes all of `bytes` at the end, or fails having written any part of it.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Returns once all that was appended is durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Takes off everything after `length`.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Medium for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// The thread that owns the file.
struct Writer<M> {
    medium: M,
    end: End,
    condition: Arc<Mutex<Condition>>,
    /// Why no entry is taken any more.
    lost: Option<Unrecorded>,
}

impl<M: Medium> Writer<M> {
    fn run(mut self, mut calls: mpsc::Receiver<Call>) {
        while let Some(first) = calls.blocking_recv() {
            let mut group = Group::new(self.end);
            group.add(first);
            while group.has_room() {
                match calls.try_recv() {
                    Ok(call) => group.add(call),
                    Err(_) => break,
                }
            }
            let outcome = self.commit(&group);
            for done in group.waiting {
                // A caller that gave up is not there to be told.
                let _ = done.send(outcome.clone());
            }
        }
    }

    fn commit(&mut self, group: &Group) -> Result<(), Unrecorded> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        self.becomes(Condition::Committing(Instant::now()));
        if let Err(error) = self.medium.append(&group.bytes) {
            return Err(self.undo(&error));
        }
        if let Err(error) = self.medium.sync() {
            return Err(self.lose(format!("the audit log could not be synced, start the broker again: {error}")));
        }
        self.end = group.end;
        self.becomes(Condition::Good);
        Ok(())
    }

    fn undo(&mut self, error: &io::Error) -> Unrecorded {
        if let Err(second) = self.medium.cut(self.end.length) {
            return self.lose(format!("the audit log ends in a part of a line: {error}, and then {second}"));
        }
        tracing::error!(%error, "the audit log could not be written");
        self.becomes(Condition::Refused(Instant::now()));
        Unrecorded(format!("the audit log could not be written: {error}"))
    }

    fn lose(&mut self, why: String) -> Unrecorded {
        tracing::error!("{why}");
        self.becomes(Condition::Lost);
        self.lost.insert(Unrecorded(why)).clone()
    }

    fn becomes(&self, condition: Condition) {
        *self.condition.lock().unwrap_or_else(PoisonError::into_inner) = condition;
    }
}

/// What is written and synced in one go.
struct Group {
    bytes: Vec<u8>,
    /// Where the log ends when it is written.
    end: End,
    waiting: Vec<oneshot::Sender<Result<(), Unrecorded>>>,
}

impl Group {
    fn new(end: End) -> Self {
        Self { bytes: Vec::new(), end, waiting: Vec::new() }
    }

    /// Whether any call still fits: none is longer than half a group.
    fn has_room(&self) -> bool {
        self.bytes.len() <= GROUP / 4
    }

    fn add(&mut self, call: Call) {
        let before = self.bytes.len();
        for line in call.lines {
            self.end.sequence += 1;
            // The number goes in front of the members that the caller's own thread has already put into JSON.
            let members = line.strip_prefix('{').unwrap_or(&line);
            self.bytes.extend_from_slice(format!("{{\"sequence\":{},", self.end.sequence).as_bytes());
            self.bytes.extend_from_slice(members.as_bytes());
            self.bytes.push(b'\n');
        }
        self.end.length += (self.bytes.len() - before) as u64;
        self.waiting.push(call.done);
    }
}

/// JSON in which nothing can end a line, move a cursor or turn text around: what JSON itself lets through of that is
/// escaped too, for readers that split at any Unicode line end and for terminals.
struct OneLine(CompactFormatter);

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, active) in fragment.match_indices(is_active) {
            self.0.write_string_fragment(writer, &fragment[plain..at])?;
            for unit in active.encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + active.len();
        }
        self.0.write_string_fragment(writer, &fragment[plain..])
    }
}

fn is_active(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn encode(entry: &Entry) -> Result<String, Unrecorded> {
    let unfit = |error: &dyn Display| Unrecorded(format!("an audit entry could not be put into JSON: {error}"));
    let mut json = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, OneLine(CompactFormatter));
    entry.serialize(&mut serializer).map_err(|error| unfit(&error))?;
    String::from_utf8(json).map_err(|error| unfit(&error))
}

fn gone() -> Unrecorded {
    Unrecorded("the audit writer has stopped".to_owned())
}

fn stuck(deadline: Duration) -> Unrecorded {
    Unrecorded(format!("the audit log did not take the entries within {} s", deadline.as_secs()))
}

fn open(dir: &Path) -> Result<(File, End), Unrecorded> {
    let path = dir.join(FILE);
    let failed =
        |error: io::Error| Unrecorded(format!("the audit log {} could not be opened: {error}", path.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Unrecorded(format!(
                "another broker has the audit log {} open; give each broker a data directory of its own",
                path.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    // A name that is not on disk yet would take a synced file with it.
    sync_directory(dir).map_err(failed)?;

    let length = file.metadata().map_err(failed)?.len();
    let end = find_end(&mut file, length).map_err(failed)?.ok_or_else(|| {
        Unrecorded(format!(
            "the last lines of {} were not written by a broker; move the file away, and keep it",
            path.display()
        ))
    })?;
    if end.length < length {
        tracing::warn!(path = %path.display(), bytes = length - end.length, "cut off what a crash left incomplete");
        file.set_len(end.length).map_err(failed)?;
    }
    // What the last broker wrote but did not live to sync counts from here on, so it has to be on disk.
    file.sync_data().map_err(failed)?;
    Ok((file, end))
}

fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Where the good part of the log ends, or `None` when it is not a log of ours.
///
/// Only the last group can be damaged by a crash, and the damage is a line without its end, or a page that never
/// reached the disk and reads as zeros, which no line contains. Anything else was done by somebody, and is not for us
/// to repair.
fn find_end(file: &mut File, length: u64) -> io::Result<Option<End>> {
    // As much again in front of the last group, so that a whole line of it says which number comes next.
    let start = length.saturating_sub(2 * GROUP as u64);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.read_to_end(&mut tail)?;

    let mut lines = tail.split_inclusive(|&byte| byte == b'\n');
    let mut end = End { length: start, sequence: 0 };
    let mut known = start == 0;
    if !known {
        end.length += lines.next().map_or(0, <[u8]>::len) as u64;
    }
    for line in lines {
        let number = number(line);
        match number {
            Some(number) if !known || end.sequence.checked_add(1) == Some(number) => {
                known = true;
                end = End { length: end.length + line.len() as u64, sequence: number };
            }
            None if is_damage(line) => break,
            _ => return Ok(None),
        }
    }
    let in_doubt = length - end.length;
    Ok((known && in_doubt <= GROUP as u64).then_some(end))
}

fn is_damage(line: &[u8]) -> bool {
    line.last() != Some(&b'\n') || line.contains(&0)
}

fn number(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        sequence: u64,
    }
    let line = line.strip_suffix(b"\n")?;
    serde_json::from_slice::<Numbered>(line).ok().map(|numbered| numbered.sequence)
}

#[cfg(test)]
mod tests;
