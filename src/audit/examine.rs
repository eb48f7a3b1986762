//! Whether a log is what was written, from its files and a public key alone: offline, and beside a broker that writes on.

use chrono::TimeDelta;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use super::{
    chain::{Digest, Head, Record},
    checkpoint::{self, Checkpoint, CheckpointKeys},
    segment::Segment,
};
use crate::clock::Time;

/// The longest line that is looked at; a broker writes none that is half as long.
pub(super) const MAX_LINE: u64 = 4 << 20;

/// How far apart the records may be that no checkpoint covers yet: the longest that `checkpoint_every` can be, and what a request takes.
const UNSIGNED: TimeDelta = TimeDelta::minutes(75);

/// A log that is what was written, as far as it can be told.
#[derive(Debug, Default, Serialize)]
pub struct Examined {
    /// Its name.
    pub log: String,
    /// The first record that is there.
    pub first: u64,
    /// How many before that were removed because they had been kept for long enough, by records that were signed.
    pub removed: u64,
    /// The last record.
    pub last: u64,
    /// The digest of the last record.
    pub head: Option<Digest>,
    /// How many segments there are.
    pub segments: usize,
    /// How many signed checkpoints it was held against, those of anchors included.
    pub checkpoints: usize,
    /// The last record that a checkpoint beside the log vouches for; what comes after it could have been written by anybody, or cut off.
    pub signed_to: u64,
    /// The last record that a checkpoint from elsewhere vouches for; `None` where none was given.
    pub anchored_to: Option<u64>,
    /// Lines among the checkpoints that are none, and what is wrong with them: a broker leaves none.
    pub unread: Vec<String>,
    /// What a broker found of its log, or did not find, when it was started.
    pub doubts: Vec<Doubt>,
    /// What was about to be done, and of which nothing says how it went.
    pub unsettled: Vec<Unsettled>,
}

/// A record that says how a log was found.
#[derive(Debug, Clone, Serialize)]
pub struct Doubt {
    /// Its record.
    pub sequence: u64,
    /// `tail_unwitnessed` or `earlier_log_gone`.
    pub event: String,
    /// The first record that it is about, where it is about some of this log.
    pub first: Option<u64>,
    /// The last record that it is about.
    pub last: u64,
    /// What it says, in a sentence.
    pub what: String,
}

/// Something that was about to be done.
#[derive(Debug, Clone, Serialize)]
pub struct Unsettled {
    /// Its record.
    pub sequence: u64,
    /// When.
    pub time: String,
    /// What.
    pub event: String,
    /// On which task.
    pub task: Option<String>,
    /// The credential, if it is one.
    pub lease: Option<String>,
}

/// A log that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The first bad record.
    pub sequence: u64,
    /// Where it is, or should be.
    pub file: PathBuf,
    /// What is wrong, in a sentence.
    pub what: String,
}

/// Why a log could not be found to be good.
#[derive(Debug)]
pub enum Verdict {
    /// It is not what was written.
    Bad(Box<Fault>),
    /// It could not be read, or what it is to be held against could not: a sentence.
    Unread(String),
}

impl From<Fault> for Verdict {
    fn from(fault: Fault) -> Self {
        Self::Bad(Box::new(fault))
    }
}

/// Reads a log from its beginning, and hands every record that is what was written to `each`.
///
/// # Errors
/// The first bad record; or why the log cannot be read.
pub fn examine(
    dir: &Path,
    keys: &CheckpointKeys,
    anchors: &[(PathBuf, Checkpoints)],
    mut each: impl FnMut(&Record),
) -> Result<Examined, Verdict> {
    let unread = |error: io::Error| Verdict::Unread(format!("{} cannot be read: {error}", dir.display()));
    // Before the records, so that whatever was signed by then is in them; and between two looks at the files that saw the same ones,
    // so that the end of each that has one was signed by then too.
    let mut before = Segment::list(dir).map_err(unread)?;
    let (own, segments) = loop {
        let own = read_checkpoints(&dir.join(checkpoint::FILE), keys)?;
        let segments = Segment::list(dir).map_err(unread)?;
        if segments == before {
            break (own, segments);
        }
        before = segments;
    };
    let Some(oldest) = segments.first() else {
        return Err(Verdict::Unread(format!("there is no audit log in {}", dir.display())));
    };
    let mut against = Against::new(&own.all, anchors);
    // What a broker adds from now on is nobody's business here: it may be signed later than it is read.
    let length = segments.last().map_or(Ok(0), |last| std::fs::metadata(&last.path).map(|about| about.len()));
    let length = length.map_err(unread)?;
    let mut walk = Walk { first: oldest.first, ..Walk::default() };
    for (at, segment) in segments.iter().enumerate() {
        let length = (at + 1 == segments.len()).then_some(length);
        walk.segment(segment, length, &mut against, &mut each)?;
    }
    let mut examined = walk.finish(segments.len(), &own.all, &against)?;
    let unread = [&own].into_iter().chain(anchors.iter().map(|(_, anchored)| anchored));
    examined.unread = unread.flat_map(|checkpoints| checkpoints.unread.iter().cloned()).collect();
    Ok(examined)
}

/// Checkpoints as they were read.
#[derive(Debug, Default)]
pub struct Checkpoints {
    all: Vec<Checkpoint>,
    /// What is wrong with the lines that are none.
    unread: Vec<String>,
}

/// Reads checkpoints, one a line. A line that is none is passed over, and told.
///
/// # Errors
/// When they cannot be read, or not one of them was signed with these keys.
pub fn read_checkpoints(path: &Path, keys: &CheckpointKeys) -> Result<Checkpoints, Verdict> {
    let mut all = Vec::new();
    let unread = checkpoint::read(path, keys, |checkpoint, _| all.push(checkpoint)).map_err(|error| {
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        let why =
            if is_missing { "there are no checkpoints".to_owned() } else { format!("it cannot be read: {error}") };
        Verdict::Unread(format!("{}: {why}", path.display()))
    })?;
    match unread.first() {
        Some(why) if all.is_empty() => Err(Verdict::Unread(why.clone())),
        _ => Ok(Checkpoints { all, unread }),
    }
}

/// The checkpoints that a log is held against, by the record that they name.
struct Against<'a> {
    by_sequence: BTreeMap<u64, Vec<(&'a Checkpoint, Option<&'a Path>)>>,
    count: usize,
    anchored_to: Option<u64>,
}

impl<'a> Against<'a> {
    fn new(own: &'a [Checkpoint], anchors: &'a [(PathBuf, Checkpoints)]) -> Self {
        let own = own.iter().map(|checkpoint| (checkpoint, None));
        let others =
            anchors.iter().flat_map(|(path, read)| read.all.iter().map(move |one| (one, Some(path.as_path()))));
        let mut against = Self { by_sequence: BTreeMap::new(), count: 0, anchored_to: None };
        for (checkpoint, from) in own.chain(others) {
            against.by_sequence.entry(checkpoint.head.sequence).or_default().push((checkpoint, from));
            against.count += 1;
            if from.is_some() {
                against.anchored_to = against.anchored_to.max(Some(checkpoint.head.sequence));
            }
        }
        against
    }

    /// Holds the log against what was signed of it at this record.
    fn check(&mut self, log: &str, head: Head, good_to: u64, file: &Path) -> Result<bool, Fault> {
        let Some(all) = self.by_sequence.remove(&head.sequence) else { return Ok(false) };
        for (checkpoint, from) in all {
            let from = from.map_or_else(String::new, |from| format!(" in {}", from.display()));
            let bad = |what: String| Fault { sequence: good_to + 1, file: file.to_owned(), what };
            if checkpoint.log != log {
                return Err(bad(format!("the checkpoint{from} of record {} is of another log", head.sequence)));
            }
            if checkpoint.head != head {
                return Err(bad(format!(
                    "the records from {} to {} are not those that were signed{from}: one of them was altered",
                    good_to + 1,
                    head.sequence
                )));
            }
        }
        Ok(true)
    }
}

/// The way through a log.
#[derive(Default)]
struct Walk {
    log: String,
    first: u64,
    head: Option<Head>,
    file: PathBuf,
    /// Up to here the records are those that were signed.
    good_to: u64,
    /// The oldest and the newest time of the records after that.
    unsigned: Option<(Time, Time)>,
    /// The records that say what was removed because it had been kept for long enough, and up to where.
    dropped: Vec<(u64, u64)>,
    doubts: Vec<Doubt>,
    unsettled: BTreeMap<u64, Unsettled>,
}

impl Walk {
    fn segment(
        &mut self,
        segment: &Segment,
        length: Option<u64>,
        against: &mut Against<'_>,
        each: &mut impl FnMut(&Record),
    ) -> Result<(), Verdict> {
        let unread = |error: io::Error| Verdict::Unread(format!("{} cannot be read: {error}", segment.path.display()));
        let fault = |sequence: u64, what: String| Fault { sequence, file: segment.path.clone(), what };
        let next = self.head.map_or(segment.first, |head| head.sequence + 1);
        if segment.first != next {
            let what = format!("record {next} is missing: the segment begins with record {}", segment.first);
            return Err(fault(next.min(segment.first), what).into());
        }
        self.ends_signed()?;
        self.file.clone_from(&segment.path);
        let file = File::open(&segment.path).map_err(unread)?;
        let mut file = BufReader::with_capacity(1 << 20, io::Read::take(file, length.unwrap_or(u64::MAX)));
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = io::Read::take(&mut file, MAX_LINE).read_until(b'\n', &mut line).map_err(unread)?;
            let next = self.head.map_or(segment.first, |head| head.sequence + 1);
            if read == 0 {
                return Ok(());
            }
            let Some(text) = line.strip_suffix(b"\n") else {
                // Its end is on its way to the disk, or was when the broker died.
                if length.is_some() && read < usize::try_from(MAX_LINE).unwrap_or(usize::MAX) {
                    return Ok(());
                }
                return Err(fault(next, format!("record {next} is cut off")).into());
            };
            let record = Record::read(text).map_err(|why| fault(next, format!("record {next}: {why}")))?;
            if self.head.is_none() && record.sequence != segment.first {
                let what = format!("record {} stands where record {} belongs", record.sequence, segment.first);
                return Err(fault(segment.first, what).into());
            }
            let before = self.head.unwrap_or(if record.sequence == 1 { Head::NONE } else { record.before() });
            let head = before.followed_by(&record).map_err(|broken| fault(broken.sequence(), broken.to_string()))?;
            self.head = Some(head);
            self.take(&record).map_err(|what| fault(record.sequence, what))?;
            if against.check(&self.log, head, self.good_to, &segment.path)? {
                self.good_to = head.sequence;
                self.unsigned = None;
            } else if let Some(time) = record.text("time").and_then(|time| time.parse::<Time>().ok()) {
                let (oldest, newest) = self.unsigned.unwrap_or((time, time));
                self.unsigned = Some((oldest.min(time), newest.max(time)));
            }
            each(&record);
        }
    }

    /// Before another segment: a broker signs the end of one before it begins the next.
    fn ends_signed(&self) -> Result<(), Fault> {
        let last = self.head.map_or(0, |head| head.sequence);
        if last == self.good_to {
            return Ok(());
        }
        let what = format!(
            "the segment ends with record {last}, and no checkpoint says so: it was altered, or checkpoints are missing"
        );
        Err(Fault { sequence: self.good_to + 1, file: self.file.clone(), what })
    }

    fn take(&mut self, record: &Record) -> Result<(), String> {
        match record.text("event") {
            Some("segment_opened") => {
                let log = record.text("log").unwrap_or_default();
                if self.log.is_empty() {
                    log.clone_into(&mut self.log);
                } else if self.log != log {
                    return Err(format!("a segment of another log begins at record {}", record.sequence));
                }
            }
            Some("segment_dropped") => {
                let last = record.members.get("last").and_then(serde_json::Value::as_u64).unwrap_or_default();
                self.dropped.push((record.sequence, last));
            }
            Some(event @ ("tail_unwitnessed" | "earlier_log_gone")) => self.doubts.push(doubt(record, event)),
            _ => {}
        }
        if self.log.is_empty() {
            return Err(format!("record {} does not open a segment", record.sequence));
        }
        if record.members.contains_key("intent") {
            let text = |member| record.text(member).map(str::to_owned);
            let unsettled = Unsettled {
                sequence: record.sequence,
                time: text("time").unwrap_or_default(),
                event: text("event").unwrap_or_default(),
                task: text("task"),
                lease: text("lease"),
            };
            self.unsettled.insert(record.sequence, unsettled);
        }
        let settles = record.members.get("settles").and_then(|span| Some((span[0].as_u64()?, span[1].as_u64()?)));
        if let Some((first, last)) = settles
            && record.text("outcome") != Some("unknown")
            && first <= last
        {
            let settled: Vec<_> = self.unsettled.range(first..=last).map(|(sequence, _)| *sequence).collect();
            for sequence in settled {
                self.unsettled.remove(&sequence);
            }
        }
        Ok(())
    }

    fn finish(self, segments: usize, own: &[Checkpoint], against: &Against<'_>) -> Result<Examined, Verdict> {
        let Self { log, first, head, file, good_to, unsigned, dropped, doubts, unsettled } = self;
        let head = head.unwrap_or(Head::NONE);
        let fault = |sequence, what| Fault { sequence, file: file.clone(), what };
        // Anybody could have written the others; and those that a broker found when it was started, and signed with a word about them. Its
        // own it knows, because it removes nothing before it is noted elsewhere that it will.
        let is_found =
            |at: u64| doubts.iter().any(|found| found.first.is_some_and(|first| first <= at && at <= found.last));
        let known = dropped.iter().filter(|(sequence, _)| *sequence <= good_to && !is_found(*sequence));
        let dropped_to = known.map(|(_, last)| *last).max().unwrap_or_default();
        if first > 1 && dropped_to + 1 < first {
            let what = format!(
                "the records before {first} are missing, and nothing that the broker signed as its own says that they were removed"
            );
            return Err(fault(dropped_to + 1, what).into());
        }
        // Checkpoints of records that were dropped are nobody's business any more; those of later ones are.
        if let Some((signed, _)) = against.by_sequence.range(head.sequence + 1..).next_back() {
            let what = format!("the log ends at record {}, and record {signed} was signed", head.sequence);
            return Err(fault(head.sequence + 1, what).into());
        }
        let signed_to = own.iter().map(|checkpoint| checkpoint.head.sequence).max().unwrap_or_default().min(good_to);
        // The broker signs the record that opens a log before it takes another.
        if signed_to == 0 && head.sequence > 1 {
            let what = format!(
                "none of the {} records was signed: they were altered, or checkpoints are missing",
                head.sequence
            );
            return Err(fault(first, what).into());
        }
        if let Some((oldest, newest)) = unsigned.filter(|(oldest, newest)| *newest - *oldest > UNSIGNED) {
            let what = format!(
                "the records from {} to {} were written between {oldest} and {newest}, and none of them was signed: they were altered, \
                 or checkpoints are missing",
                good_to + 1,
                head.sequence
            );
            return Err(fault(good_to + 1, what).into());
        }
        Ok(Examined {
            log,
            first,
            removed: first.saturating_sub(1),
            last: head.sequence,
            head: Some(head.digest),
            segments,
            checkpoints: against.count,
            signed_to,
            anchored_to: against.anchored_to,
            unread: Vec::new(),
            doubts,
            unsettled: unsettled.into_values().collect(),
        })
    }
}

fn doubt(record: &Record, event: &str) -> Doubt {
    let number = |member| record.members.get(member).and_then(serde_json::Value::as_u64);
    let last = number("last").unwrap_or_default();
    let (first, what) = if event == "tail_unwitnessed" {
        let first = number("first").unwrap_or_default();
        let what =
            format!("the broker was started, and nothing showed the records from {first} to {last} to be its own");
        (Some(first), what)
    } else {
        let log = record.text("log").unwrap_or_default();
        let what = format!(
            "the log that this broker wrote before, {log}, with {last} records or more, was not there any more"
        );
        (None, what)
    };
    Doubt { sequence: record.sequence, event: event.to_owned(), first, last, what }
}
