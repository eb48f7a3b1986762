//! The files of the log. Each segment is named by its first record, the last one grows, and one broker at a time has them open.

use chrono::DateTime;
use nix::fcntl::{FallocateFlags, fallocate};
use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    Unrecorded,
    chain::{Head, Record},
};
use crate::{
    clock::Time,
    failpoint::{Step, reached},
    own_dir,
};

/// The most that is written between two syncs, and so the most that a crash can leave in doubt at the end of the log.
pub(super) const GROUP: usize = 1 << 20;

/// The next segment, until it is whole.
const NEXT: &str = "next";

/// What an earlier build called its log, which had no chain.
const UNCHAINED: &str = "audit.jsonl";

/// A segment, as its name says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// The number of its first record.
    pub first: u64,
    /// Where it is.
    pub path: PathBuf,
}

impl Segment {
    /// The segment of `dir` that begins with this record.
    pub(super) fn of(dir: &Path, first: u64) -> Self {
        Self { first, path: dir.join(format!("audit-{first:020}.jsonl")) }
    }

    /// Those in a directory, in order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(dir: &Path) -> io::Result<Vec<Self>> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
                name.strip_prefix("audit-")?.strip_suffix(".jsonl").filter(|digits| digits.len() == 20)
            });
            if let Some(first) = number.and_then(|digits| digits.parse().ok()) {
                segments.push(Self { first, path });
            }
        }
        segments.sort();
        Ok(segments)
    }
}

/// What the log is written on: files, or in the tests files with faults.
pub(super) trait Medium: Send + 'static {
    /// Writes all of `bytes` at the end, or fails having written any part of it.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Returns once all that was appended is durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Takes off everything after `length`, room that was reserved included.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Makes sure that the segment can grow to `length`, whatever else fills the disk.
    fn reserve(&mut self, length: u64) -> io::Result<()>;
    /// Makes the next segment beside its place, durable and with its first line in it: whether room is held in which it can grow to
    /// `room`. A disk without that room is an error, and then nothing has changed.
    fn prepare(&mut self, opening: &[u8], room: u64) -> io::Result<bool>;
    /// Puts what was prepared in its place, where its first record is `first`: it grows from now on.
    fn turn(&mut self, first: u64) -> Result<(), Unturned>;
}

/// Why the segment that was prepared does not grow.
#[derive(Debug)]
pub(super) enum Unturned {
    /// Nothing has changed: the one before grows on.
    Undone(io::Error),
    /// It cannot be told which of the two a crash would leave as the last one.
    InDoubt(io::Error),
}

/// Whether it is room that is missing.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// The segment that grows.
#[derive(Debug)]
pub(super) struct Growing {
    dir: PathBuf,
    file: File,
    /// What was prepared to take its place.
    next: Option<File>,
    /// Held as long as the log is open.
    _lock: File,
}

impl Medium for Growing {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn reserve(&mut self, length: u64) -> io::Result<()> {
        hold(&self.file, length)
    }

    fn prepare(&mut self, opening: &[u8], room: u64) -> io::Result<bool> {
        let path = self.dir.join(NEXT);
        remove(&path)?;
        let mut next = create(&path)?;
        let made = match hold(&next, room) {
            Err(error) if is_full(&error) => Err(error),
            held => next.write_all(opening).and_then(|()| next.sync_all()).map(|()| held.is_ok()),
        };
        match made {
            Ok(held) => {
                self.next = Some(next);
                reached(Step::SegmentMade);
                Ok(held)
            }
            Err(error) => {
                let _ = remove(&path);
                Err(error)
            }
        }
    }

    fn turn(&mut self, first: u64) -> Result<(), Unturned> {
        let (aside, place) = (self.dir.join(NEXT), Segment::of(&self.dir, first).path);
        let next = self.next.take().ok_or_else(|| Unturned::Undone(io::ErrorKind::NotFound.into()))?;
        let is_free =
            place.try_exists().and_then(|taken| if taken { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) });
        if let Err(error) = is_free.and_then(|()| std::fs::rename(&aside, &place)) {
            let _ = remove(&aside);
            return Err(Unturned::Undone(error));
        }
        own_dir::sync(&self.dir).map_err(Unturned::InDoubt)?;
        let ended = std::mem::replace(&mut self.file, next);
        reached(Step::SegmentTurned);
        // What was reserved and not needed; and from now on nobody writes here, not even by mistake.
        let length = ended.metadata().map(|about| about.len());
        let closed = length.and_then(|length| ended.set_len(length));
        if let Err(error) = closed.and_then(|()| ended.set_permissions(Permissions::from_mode(0o400))) {
            tracing::warn!(%error, "a segment of the audit log that ended is not closed");
        }
        Ok(())
    }
}

/// Takes the room that a file needs to grow to `length`.
pub(super) fn hold(file: &File, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).map_err(io::Error::other)?;
    fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length).map_err(io::Error::from)
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The log as it was found.
pub(super) struct Opened {
    pub(super) growing: Growing,
    /// The last record.
    pub(super) head: Head,
    /// How long the growing segment is, in bytes.
    pub(super) length: u64,
    /// The first record of the growing segment.
    pub(super) first: u64,
    /// When that was written; `None` where there is none.
    pub(super) since: Option<Time>,
    /// The log's name; `None` where it is new.
    pub(super) log: Option<String>,
}

/// Opens (or makes) the log in `dir`, which becomes readable by its owner alone. A tail that a crash left incomplete is cut off: none of
/// it was acknowledged.
pub(super) fn open(dir: &Path) -> Result<Opened, Unrecorded> {
    let failed = |error: io::Error| Unrecorded(format!("the audit log in {} cannot be opened: {error}", dir.display()));
    let lock = own_dir::take(dir, "the audit log").map_err(Unrecorded)?;
    if dir.join(UNCHAINED).exists() {
        let path = dir.join(UNCHAINED);
        return Err(Unrecorded(format!(
            "{} is the log of an earlier build, which has no chain; move it away, and keep it",
            path.display()
        )));
    }
    // A crash came before it was in its place: nobody relies on it.
    remove(&dir.join(NEXT)).map_err(failed)?;
    let mut segments = Segment::list(dir).map_err(failed)?;
    let Some(last) = segments.pop() else { return begin(dir, lock).map_err(failed) };
    let mut file = OpenOptions::new().read(true).append(true).open(&last.path).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    let foreign = |path: &Path| {
        Unrecorded(format!(
            "the last lines of {} were not written by a broker; move the log away, and keep it",
            path.display()
        ))
    };
    let mut tail = find_end(&mut file, last.first).map_err(failed)?.ok_or_else(|| foreign(&last.path))?;
    let log = match &tail.opening {
        Some(opening) => opening.text("log").map(str::to_owned),
        // An earlier build's crash came between a new segment and its first record: the one before says how to go on.
        None => match segments.pop() {
            Some(before) => {
                let mut file = File::open(&before.path).map_err(failed)?;
                let whole = find_end(&mut file, before.first).map_err(failed)?;
                let whole = whole.filter(|end| end.in_doubt == 0 && end.head.sequence + 1 == last.first);
                let Tail { head, opening, .. } = whole.ok_or_else(|| foreign(&before.path))?;
                tail.head = head;
                opening.and_then(|opening| opening.text("log").map(str::to_owned))
            }
            None => None,
        },
    };
    if tail.in_doubt > 0 {
        tracing::warn!(path = %last.path.display(), bytes = tail.in_doubt, "cut off what a crash left incomplete");
        file.set_len(tail.length).map_err(failed)?;
    }
    // What the last broker wrote but did not live to sync counts from here on, so it has to be on disk.
    file.sync_data().map_err(failed)?;
    own_dir::sync(dir).map_err(failed)?;
    let since = tail.opening.as_ref().and_then(|opening| DateTime::parse_from_rfc3339(opening.text("time")?).ok());
    Ok(Opened {
        growing: Growing { dir: dir.to_owned(), file, next: None, _lock: lock },
        head: tail.head,
        length: tail.length,
        first: last.first,
        since: since.map(|time| time.to_utc()),
        log,
    })
}

fn begin(dir: &Path, lock: File) -> io::Result<Opened> {
    let file = create(&Segment::of(dir, 1).path)?;
    // A name that is not on disk yet would take a synced file with it.
    own_dir::sync(dir)?;
    let growing = Growing { dir: dir.to_owned(), file, next: None, _lock: lock };
    Ok(Opened { growing, head: Head::NONE, length: 0, first: 1, since: None, log: None })
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(path)
}

/// How a segment ends.
struct Tail {
    /// Its last record; of an empty segment what comes before its first, without its digest.
    head: Head,
    /// Where the good part of it ends; always just after a line feed.
    length: u64,
    /// What comes after that, and was never acknowledged.
    in_doubt: u64,
    /// Its first record.
    opening: Option<Record>,
}

/// Finds the end, or `None` when it is no log of ours.
///
/// Only the last group can be damaged by a crash, and the damage is a line without its end, or a page that never
/// reached the disk and reads as zeros, which no line contains. Anything else was done by somebody, and is not for us
/// to repair.
fn find_end(file: &mut File, first: u64) -> io::Result<Option<Tail>> {
    let size = file.metadata()?.len();
    let opening = first_line(file)?;
    // As much again in front of the last group, so that a whole line of it says which number comes next.
    let start = size.saturating_sub(2 * GROUP as u64);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.read_to_end(&mut tail)?;

    let mut lines = tail.split_inclusive(|&byte| byte == b'\n');
    let mut length = start;
    let mut head = None;
    if start > 0 {
        length += lines.next().map_or(0, <[u8]>::len) as u64;
    }
    for line in lines {
        let record = line.strip_suffix(b"\n").and_then(|line| Record::read(line).ok());
        let Some(record) = record else {
            if is_damage(line) {
                break;
            }
            return Ok(None);
        };
        let before = head.unwrap_or_else(|| record.before());
        let Ok(next) = before.followed_by(&record) else { return Ok(None) };
        if head.is_none() && start == 0 && record.sequence != first {
            return Ok(None);
        }
        head = Some(next);
        length += line.len() as u64;
    }
    let in_doubt = size - length;
    if in_doubt > GROUP as u64 {
        return Ok(None);
    }
    Ok(match (head, opening) {
        (Some(head), Some(opening)) => Some(Tail { head, length, in_doubt, opening: Some(opening) }),
        (None, _) if length == 0 => {
            Some(Tail { head: Head { sequence: first - 1, ..Head::NONE }, length, in_doubt, opening: None })
        }
        _ => None,
    })
}

fn first_line(file: &mut File) -> io::Result<Option<Record>> {
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    io::Read::take(&mut *file, GROUP as u64).read_to_end(&mut start)?;
    let end = start.iter().position(|&byte| byte == b'\n');
    Ok(end.and_then(|end| Record::read(&start[..end]).ok()))
}

fn is_damage(line: &[u8]) -> bool {
    line.last() != Some(&b'\n') || line.contains(&0)
}
