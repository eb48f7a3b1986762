//! Reads a log back while it is being written: the lines as they stand, in order, and none that is not durable. Nothing is checked
//! here; that is [`super::examine`]'s.

use chrono::TimeDelta;
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{chain::Record, examine::MAX_LINE, segment::Segment};
use crate::clock::Time;

/// How far the time of a record may lie outside of its segment's: a record has the time at which its request came, and a clock may be
/// set back.
const SLACK: TimeDelta = TimeDelta::hours(1);

/// Reads the log of a broker. Cheap to clone; it never waits for the writer, nor the writer for it. Its calls block.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) dir: PathBuf,
    pub(super) log: String,
    /// The last record that is durable.
    pub(super) durable: Arc<AtomicU64>,
}

/// A segment, and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chapter {
    segment: Segment,
    /// The number after its last record; `None` where it still grows.
    next: Option<u64>,
    /// When it began; `None` where it does not say.
    began: Option<Time>,
    /// When the one after it began.
    ended: Option<Time>,
}

impl Chapter {
    /// The number of its first record.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.segment.first
    }

    /// Whether it may hold records after the one with this number.
    #[must_use]
    pub fn goes_past(&self, sequence: u64) -> bool {
        self.next.is_none_or(|next| next.saturating_sub(1) > sequence)
    }

    /// Whether it may hold records of this time.
    #[must_use]
    pub fn may_hold(&self, since: Option<Time>, until: Option<Time>) -> bool {
        let too_early = since.zip(self.ended).is_some_and(|(since, ended)| ended < since - SLACK);
        let too_late = until.zip(self.began).is_some_and(|(until, began)| began > until + SLACK);
        !too_early && !too_late
    }
}

impl Reader {
    /// The log's name.
    #[must_use]
    pub fn log(&self) -> &str {
        &self.log
    }

    /// The number of the last record that is durable.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The segments that are there, in order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn chapters(&self) -> io::Result<Vec<Chapter>> {
        let segments = Segment::list(&self.dir)?;
        let began = segments.iter().map(began).collect::<io::Result<Vec<_>>>()?;
        let after = segments.iter().skip(1).map(|segment| Some(segment.first)).chain([None]);
        let ended = began.iter().skip(1).copied().chain([None]);
        let each = segments.iter().zip(after).zip(began.iter().zip(ended));
        Ok(each
            .map(|((segment, next), (began, ended))| Chapter { segment: segment.clone(), next, began: *began, ended })
            .collect())
    }

    /// Hands every durable line of a segment to `each`, by number, without its line feed, until that breaks off. A segment that was
    /// removed meanwhile has none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read<B>(
        &self,
        chapter: &Chapter,
        mut each: impl FnMut(u64, &str) -> ControlFlow<B>,
    ) -> io::Result<ControlFlow<B>> {
        let last = self.last();
        let Some(file) = open(&chapter.segment)? else { return Ok(ControlFlow::Continue(())) };
        let mut file = BufReader::with_capacity(1 << 18, file);
        let mut line = Vec::new();
        for sequence in chapter.first()..=last {
            line.clear();
            io::Read::take(&mut file, MAX_LINE).read_until(b'\n', &mut line)?;
            let Some(text) = line.strip_suffix(b"\n") else { break };
            // What is no text was written by nobody of ours, and stands for itself as a line that cannot be read.
            if let ControlFlow::Break(with) = each(sequence, std::str::from_utf8(text).unwrap_or_default()) {
                return Ok(ControlFlow::Break(with));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn open(segment: &Segment) -> io::Result<Option<File>> {
    match File::open(&segment.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

/// The time of its first record.
pub(super) fn began(segment: &Segment) -> io::Result<Option<Time>> {
    let Some(file) = open(segment)? else { return Ok(None) };
    let mut line = Vec::new();
    BufReader::new(io::Read::take(file, MAX_LINE)).read_until(b'\n', &mut line)?;
    let record = line.strip_suffix(b"\n").and_then(|line| Record::read(line).ok());
    Ok(record.and_then(|record| record.text("time")?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chapter(began: &str, ended: Option<&str>) -> Chapter {
        let time = |text: &str| text.parse().unwrap();
        let segment = Segment { first: 10, path: PathBuf::new() };
        let next = ended.map(|_| 20);
        Chapter { segment, next, began: Some(time(began)), ended: ended.map(time) }
    }

    #[test]
    fn a_segment_is_passed_over_by_its_times() {
        let old = chapter("2026-11-20T10:00:00Z", Some("2026-11-21T10:00:00Z"));
        let may = |since: &str, until: &str| old.may_hold(since.parse().ok(), until.parse().ok());
        assert!(may("", "") && may("2026-11-20T12:00:00Z", "") && may("2026-11-21T10:59:00Z", ""));
        assert!(!may("2026-11-21T11:01:00Z", "") && !may("", "2026-11-20T08:59:00Z"));
        assert!(may("", "2026-11-20T09:01:00Z") && may("2026-11-20T11:00:00Z", "2026-11-20T12:00:00Z"));
        let growing = chapter("2026-11-20T10:00:00Z", None);
        assert!(growing.may_hold("2036-11-20T10:00:00Z".parse().ok(), None), "it may hold what comes");
        assert!(growing.goes_past(u64::MAX) && old.goes_past(18) && !old.goes_past(19));
    }
}
