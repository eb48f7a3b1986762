//! What anybody can cause as often as they like: the first of each minute are told one by one, the rest as counts, so that nobody acts
//! unseen nor fills the log. Counts that cannot be told are kept, and told with those of a later minute.

use chrono::{DurationRound as _, TimeDelta};
use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
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
    past: Mutex<Past<K>>,
}

#[derive(Debug)]
struct Minute<K> {
    begun: Option<Time>,
    told: BTreeMap<K, u32>,
    all_told: u32,
    others: Others<K>,
}

/// Minutes that are over.
#[derive(Debug)]
struct Past<K> {
    /// When the first of them began of which not all is told, and how many there were in them.
    untold: Option<(Time, Others<K>)>,
    /// The minute in which that could not be told.
    tried: Option<Time>,
}

impl<K> Default for Past<K> {
    fn default() -> Self {
        Self { untold: None, tried: None }
    }
}

impl<K: Ord> Past<K> {
    fn add(&mut self, since: Time, others: Others<K>) {
        if others.counts.is_empty() {
            return;
        }
        let (first, untold) = self.untold.get_or_insert_with(|| (since, Others::default()));
        *first = since.min(*first);
        others.counts.into_iter().for_each(|(kind, times)| untold.count(kind, times));
        untold.beyond += others.beyond;
    }
}

/// Those that were not told one by one.
#[derive(Debug)]
pub(super) struct Others<K> {
    pub(super) counts: BTreeMap<K, u64>,
    /// How many of kinds that there was no room for.
    pub(super) beyond: u64,
}

impl<K> Default for Others<K> {
    fn default() -> Self {
        Self { counts: BTreeMap::new(), beyond: 0 }
    }
}

impl<K: Ord> Others<K> {
    fn count(&mut self, kind: K, times: u64) {
        if self.counts.len() < KINDS || self.counts.contains_key(&kind) {
            *self.counts.entry(kind).or_default() += times;
        } else {
            self.beyond += times;
        }
    }
}

impl<K> Default for Minute<K> {
    fn default() -> Self {
        Self { begun: None, told: BTreeMap::new(), all_told: 0, others: Others::default() }
    }
}

impl<K: Ord + Clone> Minutes<K> {
    /// That tell so many of a kind, and so many of all together, one by one.
    pub(super) fn telling(each: u32, all: u32) -> Self {
        Self { one_by_one: (each, all), now: Mutex::default(), past: Mutex::default() }
    }

    /// Takes one more; whether it is to be told by itself.
    pub(super) fn take(&self, kind: &K, now: Time) -> bool {
        self.turn(Some(now));
        let (each, all) = self.one_by_one;
        let mut minute = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        minute.begun.get_or_insert_with(|| minute_of(now));
        if minute.all_told < all && minute.told.get(kind).is_none_or(|told| *told < each) {
            minute.all_told += 1;
            *minute.told.entry(kind.clone()).or_default() += 1;
            return true;
        }
        minute.others.count(kind.clone(), 1);
        false
    }

    /// How many more there were in minutes that are over, and when the first of them began. What was [put back](Self::put_back) in this
    /// minute waits for the next one.
    pub(super) fn over(&self, now: Time) -> Option<(Time, Others<K>)> {
        self.turn(Some(now));
        let mut past = self.past();
        if past.tried == Some(minute_of(now)) { None } else { past.untold.take() }
    }

    /// The same, whether they are over or not: for whoever does not come again.
    pub(super) fn all(&self) -> Option<(Time, Others<K>)> {
        self.turn(None);
        self.past().untold.take()
    }

    /// Takes back what could not be told.
    pub(super) fn put_back(&self, (since, others): (Time, Others<K>), now: Time) {
        let mut past = self.past();
        past.add(since, others);
        past.tried = Some(minute_of(now));
    }

    /// Begins anew, if the minute is over at `now`, or at any rate.
    fn turn(&self, now: Option<Time>) {
        let mut minute = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = minute.begun.filter(|begun| now.map(minute_of) != Some(*begun)) {
            self.past().add(begun, mem::take(&mut *minute).others);
        }
    }

    fn past(&self) -> MutexGuard<'_, Past<K>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn what_could_not_be_told_is_told_with_a_later_minute() {
        let at: Time = "2026-11-21T10:00:30Z".parse().unwrap();
        let minutes = Minutes::telling(1, 1);
        let later = |minutes: i64| at + TimeDelta::minutes(minutes);
        assert!(minutes.take(&"a", at) && !minutes.take(&"a", at));
        // Whoever comes in the next minute takes nothing away from the one before.
        assert!(minutes.take(&"b", later(1)) && !minutes.take(&"b", later(1)));
        let over = minutes.over(later(1)).unwrap();
        assert_eq!(over.1.counts, [("a", 1)].into());
        minutes.put_back(over, later(1));
        assert!(minutes.over(later(1)).is_none(), "once a minute");
        let (since, others) = minutes.over(later(2)).unwrap();
        assert_eq!(since, "2026-11-21T10:00:00Z".parse::<Time>().unwrap());
        assert_eq!(others.counts, [("a", 1), ("b", 1)].into());
        minutes.put_back((since, others), later(2));
        assert!(minutes.take(&"c", later(2)) && !minutes.take(&"c", later(2)));
        assert_eq!(minutes.all().unwrap().1.counts, [("a", 1), ("b", 1), ("c", 1)].into());
        assert!(minutes.all().is_none());
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
