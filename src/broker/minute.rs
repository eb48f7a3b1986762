//! What anybody can cause as often as they like: the first of each minute are told one by one, the rest as counts, so that nobody acts
//! unseen nor fills the log.

use chrono::{DurationRound as _, TimeDelta};
use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, PoisonError},
};

use crate::clock::Time;

/// How many kinds are counted each for itself in a minute.
const KINDS: usize = 256;

/// Those of this minute, by kind.
#[derive(Debug)]
pub(super) struct Minutes<K> {
    /// How many of a kind are told one by one in a minute, and of all together.
    one_by_one: (u32, u32),
    now: Mutex<Minute<K>>,
}

#[derive(Debug)]
struct Minute<K> {
    begun: Option<Time>,
    told: BTreeMap<K, u32>,
    all_told: u32,
    others: Others<K>,
}

/// Those that were not told one by one.
#[derive(Debug)]
pub(super) struct Others<K> {
    pub(super) counts: BTreeMap<K, u64>,
    /// How many of kinds that there was no room for.
    pub(super) beyond: u64,
}

impl<K> Default for Minute<K> {
    fn default() -> Self {
        let others = Others { counts: BTreeMap::new(), beyond: 0 };
        Self { begun: None, told: BTreeMap::new(), all_told: 0, others }
    }
}

impl<K: Ord + Clone> Minutes<K> {
    /// That tell so many of a kind, and so many of all together, one by one.
    pub(super) fn telling(each: u32, all: u32) -> Self {
        Self { one_by_one: (each, all), now: Mutex::default() }
    }

    /// Takes one more; whether it is to be told by itself. What is [over](Self::over) comes first.
    pub(super) fn take(&self, kind: &K, now: Time) -> bool {
        let (each, all) = self.one_by_one;
        let mut minute = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        minute.begun.get_or_insert_with(|| minute_of(now));
        if minute.all_told < all && minute.told.get(kind).is_none_or(|told| *told < each) {
            minute.all_told += 1;
            *minute.told.entry(kind.clone()).or_default() += 1;
            return true;
        }
        let Others { counts, beyond } = &mut minute.others;
        if counts.len() < KINDS || counts.contains_key(kind) {
            *counts.entry(kind.clone()).or_default() += 1;
        } else {
            *beyond += 1;
        }
        false
    }

    /// When the last minute began, if it is over, and how many more there were in it.
    pub(super) fn over(&self, now: Time) -> Option<(Time, Others<K>)> {
        let mut minute = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = minute.begun.filter(|begun| *begun != minute_of(now))?;
        let others = mem::take(&mut *minute).others;
        (!others.counts.is_empty()).then_some((begun, others))
    }
}

fn minute_of(time: Time) -> Time {
    time.duration_trunc(TimeDelta::minutes(1)).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_told_and_the_rest_is_counted() {
        let at: Time = "2026-11-21T10:00:30Z".parse().unwrap();
        let minutes = Minutes::telling(2, 3);
        let told: Vec<_> = ["a", "a", "a", "b", "b", "c"].iter().map(|kind| minutes.take(kind, at)).collect();
        assert_eq!(told, [true, true, false, true, false, false]);
        assert!(minutes.over(at + TimeDelta::seconds(29)).is_none());
        let (since, others) = minutes.over(at + TimeDelta::seconds(30)).unwrap();
        assert_eq!(since, "2026-11-21T10:00:00Z".parse::<Time>().unwrap());
        assert_eq!(others.counts, [("a", 1), ("b", 1), ("c", 1)].into());
        assert!(minutes.over(at + TimeDelta::seconds(90)).is_none() && minutes.take(&"a", at), "from the beginning");
    }

    #[test]
    fn however_many_kinds_there_are_only_so_many_are_kept() {
        let at: Time = "2026-11-21T10:00:30Z".parse().unwrap();
        let minutes = Minutes::telling(10, 100);
        let told = (0..1000).filter(|kind| minutes.take(kind, at)).count();
        let (_, others) = minutes.over(at + TimeDelta::minutes(1)).unwrap();
        assert_eq!((told, others.counts.len(), others.beyond), (100, KINDS, 1000 - 100 - KINDS as u64));
    }
}
