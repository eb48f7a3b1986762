//! The numbers of what brokers log. Each gives every record of its own the next number, and says on the roll up to which they are all
//! there: so whoever reads the log finds out when somebody has taken a record away.

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::TimeDelta;

use crate::clock::Time;

/// For how long a record has to be there at least: less than the log is kept.
const THERE_FOR: TimeDelta = TimeDelta::hours(48);
/// How often it is noted which number was the last.
const NOTED_EVERY: TimeDelta = TimeDelta::hours(1);

/// The numbers of one process that have to be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Whose they are: each process of a broker counts for itself.
    pub log: String,
    /// The first one.
    pub from: u64,
    /// The last one; below the first where there is none.
    pub to: u64,
}

/// The numbers that this process gives.
#[derive(Debug)]
pub(super) struct Numbers {
    log: String,
    given: Mutex<Given>,
}

#[derive(Debug, Default)]
struct Given {
    last: u64,
    /// Of which nobody knows yet, or ever, whether they are in the log.
    open: BTreeSet<u64>,
    /// Those of them that are to be made void.
    lost: BTreeSet<u64>,
    /// Which was the last one, every hour.
    noted: VecDeque<(Time, u64)>,
}

/// A number that was given, until it is known to be in the log.
#[derive(Debug)]
pub(super) struct Number<'n> {
    pub(super) value: u64,
    of: &'n Numbers,
    is_logged: bool,
}

impl Numbers {
    pub(super) fn new(log: String) -> Self {
        Self { log, given: Mutex::default() }
    }

    pub(super) fn log(&self) -> &str {
        &self.log
    }

    /// The next number.
    pub(super) fn give(&self) -> Number<'_> {
        let mut given = self.lock();
        given.last += 1;
        let number = given.last;
        given.open.insert(number);
        Number { value: number, of: self, is_logged: false }
    }

    /// A number that may be in the log or not: to be logged as void.
    pub(super) fn lost(&self) -> Option<Number<'_>> {
        self.lock().lost.pop_first().map(|number| Number { value: number, of: self, is_logged: false })
    }

    /// What has to be in the log.
    pub(super) fn span(&self, now: Time) -> Span {
        let mut given = self.lock();
        let last = given.last;
        if given.noted.back().is_none_or(|(at, _)| now - *at >= NOTED_EVERY) {
            given.noted.push_back((now, last));
        }
        // The one that is of long ago, and before that none.
        while given.noted.get(1).is_some_and(|(at, _)| now - *at >= THERE_FOR) {
            given.noted.pop_front();
        }
        let old = given.noted.front().filter(|(at, _)| now - *at >= THERE_FOR).map_or(0, |(_, number)| *number);
        let to = given.open.first().map_or(last, |open| open - 1);
        Span { log: self.log.clone(), from: old + 1, to }
    }

    fn lock(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Number<'_> {
    /// It is in the log.
    pub(super) fn logged(mut self) {
        self.is_logged = true;
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        let mut given = self.of.lock();
        if self.is_logged {
            given.open.remove(&self.value);
        } else {
            given.lost.insert(self.value);
        }
    }
}

/// The numbers that were read, or need not be.
#[derive(Debug, Default)]
pub(super) struct Read(Mutex<HashMap<String, Ranges>>);

/// The first and the last number of ranges that do not touch.
type Ranges = BTreeMap<u64, u64>;

impl Read {
    /// These need not be looked for any more.
    pub(super) fn cover(&self, Span { log, from, to }: &Span) {
        if to < from {
            return;
        }
        let mut read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = read.entry(log.clone()).or_default();
        let (mut first, mut last) = (*from, *to);
        while let Some((&start, &end)) = ranges.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            (first, last) = (first.min(start), last.max(end));
            ranges.remove(&start);
        }
        ranges.insert(first, last);
    }

    /// Whether none of these is missing.
    pub(super) fn covers(&self, Span { log, from, to }: &Span) -> bool {
        let read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let range = read.get(log).and_then(|ranges| ranges.range(..=from).next_back());
        to < from || range.is_some_and(|(_, end)| end >= to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: u64, to: u64) -> Span {
        Span { log: "a".into(), from, to }
    }

    #[test]
    fn what_is_missing_shows() {
        let read = Read::default();
        assert!(read.covers(&span(1, 0)) && !read.covers(&span(1, 1)));
        for number in [1, 2, 5, 4, 7] {
            read.cover(&span(number, number));
        }
        assert!(read.covers(&span(1, 2)) && read.covers(&span(4, 5)) && !read.covers(&span(1, 5)));
        assert!(!read.covers(&Span { log: "b".into(), from: 1, to: 1 }));
        read.cover(&span(3, 3));
        assert!(read.covers(&span(1, 5)) && !read.covers(&span(1, 7)));
        read.cover(&span(2, 9));
        assert!(read.covers(&span(1, 9)) && !read.covers(&span(1, 10)));
    }

    #[test]
    fn only_what_is_there_has_to_be() {
        let numbers = Numbers::new("a".into());
        let now: Time = "2026-11-21T10:00:00Z".parse().unwrap();
        let (first, second) = (numbers.give(), numbers.give());
        second.logged();
        assert_eq!(numbers.span(now), span(1, 0), "the first is under way");
        drop(first);
        assert_eq!(numbers.span(now), span(1, 0), "nobody knows whether it is there");
        numbers.lost().unwrap().logged();
        assert!(numbers.lost().is_none());
        assert_eq!(numbers.span(now), span(1, 2));
        numbers.give().logged();
        assert_eq!(numbers.span(now + TimeDelta::hours(1)), span(1, 3));
        numbers.give().logged();
        // What is older than the log may be gone by itself.
        assert_eq!(numbers.span(now + TimeDelta::hours(47)), span(1, 4));
        assert_eq!(numbers.span(now + TimeDelta::hours(49)), span(4, 4));
    }
}
