//! What has ended, in memory: ends that this broker made, replayed from its journal, or learnt from the store.
//!
//! Entries are only ever added, and go when nothing of the task can be alive by any clock: the wall clock has passed the last
//! expiry by [`GRACE`], *and* the monotonic clock has counted the whole life of the entry since it was loaded. So a wall clock that
//! jumps ahead un-revokes nothing.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{clock::Time, id::TaskId, task::End};

/// How long after the last expiry an entry is kept.
const GRACE: TimeDelta = TimeDelta::seconds(60);

/// The end of a task, as it is kept: the store can be told of it again from this alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ending {
    /// The end.
    pub end: End,
    /// When the last credential of the task has expired.
    pub until: Time,
    /// The broker that recorded it.
    pub broker: String,
    /// Whether the store may record it though it has never seen the task.
    pub unseen: bool,
}

/// Ends that this broker knows of.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<HashMap<TaskId, Held>>);

#[derive(Debug)]
struct Held {
    ending: Ending,
    loaded: Instant,
}

impl Held {
    fn is_over(&self, now: Time, at: Instant) -> bool {
        let life = (self.ending.until - self.ending.end.at).max(TimeDelta::zero());
        now > self.ending.until + GRACE
            && TimeDelta::from_std(at.duration_since(self.loaded)).is_ok_and(|since| since > life)
    }
}

impl Ends {
    /// Adds an end. Of two for one task the first one stands, and is kept until what the newer one says: whoever knew more said less.
    pub(super) fn insert(&self, ending: Ending, at: Instant) {
        let mut ends = self.lock();
        match ends.get_mut(&ending.end.task) {
            Some(held) => held.ending.until = ending.until,
            None => drop(ends.insert(ending.end.task.clone(), Held { ending, loaded: at })),
        }
    }

    /// Whether the task or an ancestor is known to have ended.
    pub(super) fn covers(&self, task: &TaskId) -> bool {
        let ends = self.lock();
        !ends.is_empty() && task.lineage().any(|id| ends.contains_key(&id))
    }

    /// The end of this very task, if it is known.
    pub(super) fn get(&self, task: &TaskId) -> Option<Ending> {
        self.lock().get(task).map(|held| held.ending.clone())
    }

    /// Forgets what can no longer matter: how many that were.
    pub(super) fn forget(&self, now: Time, at: Instant) -> usize {
        let mut ends = self.lock();
        let before = ends.len();
        ends.retain(|_, held| !held.is_over(now, at));
        before - ends.len()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Ending> {
        self.lock().values().map(|held| held.ending.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::task::State;
    use std::time::Duration;

    pub(in crate::revocation) fn ending(task: &TaskId, at: Time, seconds: i64) -> Ending {
        let end =
            End { task: task.clone(), state: State::Revoked, at, reason: Some("gone".into()), by: "alice".into() };
        Ending { end, until: at + TimeDelta::seconds(seconds), broker: "broker_a".into(), unseen: false }
    }

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_end_covers_the_subtree_and_nothing_beside_it() {
        let root = TaskId::root(now()).unwrap();
        let (child, sibling) = (root.child().unwrap(), root.child().unwrap());
        let (ends, at) = (Ends::default(), Instant::now());
        ends.insert(ending(&child, now(), 3600), at);
        assert!(ends.covers(&child) && ends.covers(&child.child().unwrap()));
        assert!(!ends.covers(&root) && !ends.covers(&sibling));
        ends.insert(ending(&root, now(), 3600), at);
        assert!(ends.covers(&sibling));
    }

    #[test]
    fn only_what_both_clocks_call_over_is_forgotten() {
        let task = TaskId::root(now()).unwrap();
        let (ends, at) = (Ends::default(), Instant::now());
        ends.insert(ending(&task, now(), 10), at);
        let later = |seconds| at + Duration::from_secs(seconds);
        let wall = |seconds| now() + TimeDelta::seconds(seconds);
        // The wall clock jumped ahead; then it stood still.
        assert_eq!(ends.forget(wall(86_400), later(5)), 0);
        assert_eq!(ends.forget(wall(70), later(86_400)), 0);
        assert!(ends.covers(&task));
        assert_eq!(ends.forget(wall(71), later(11)), 1);
        assert!(!ends.covers(&task));
    }

    #[test]
    fn the_first_end_stands_for_as_long_as_is_known_now() {
        let task = TaskId::root(now()).unwrap();
        let (ends, at) = (Ends::default(), Instant::now());
        ends.insert(ending(&task, now(), 86_400), at);
        ends.insert(ending(&task, now() + TimeDelta::seconds(5), 15), at);
        let held = ends.get(&task).unwrap();
        assert_eq!((held.end.at, held.until), (now(), now() + TimeDelta::seconds(20)));
    }
}
