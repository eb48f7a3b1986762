//! What has ended, in memory: ends that this broker made, replayed from its journal, or learnt from the store.
//!
//! Entries are only ever added, and go when nothing of the task can be alive by any clock: the wall clock has passed the last
//! expiry by [`GRACE`], *and* the monotonic clock has counted the whole life of the entry since it was loaded. So a wall clock that
//! jumps ahead un-revokes nothing.

use chrono::TimeDelta;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{clock::Time, id::TaskId, task::Ending};

/// How long after the last expiry an entry is kept.
const GRACE: TimeDelta = TimeDelta::seconds(60);

/// Ends that this broker knows of, numbered in the order in which verifiers are told of them.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<Set>);

#[derive(Debug, Default)]
struct Set {
    held: HashMap<TaskId, Held>,
    /// What has a number, by that.
    numbered: BTreeMap<u64, TaskId>,
    /// The last number that was given out.
    last: u64,
}

#[derive(Debug)]
struct Held {
    ending: Ending,
    loaded: Instant,
    /// `None`: verifiers are not told of it yet.
    number: Option<u64>,
    /// Whether it is in the journal of this broker.
    is_journaled: bool,
    /// Whether the other brokers were told, by this run of the store.
    is_logged: bool,
}

impl Held {
    fn is_over(&self, now: Time, at: Instant) -> bool {
        let life = (self.ending.until - self.ending.end.at).max(TimeDelta::zero());
        now > self.ending.until + GRACE
            && TimeDelta::from_std(at.duration_since(self.loaded)).is_ok_and(|since| since > life)
    }
}

impl Ends {
    /// With none, numbered from after `last`.
    pub(super) fn after(last: u64) -> Self {
        Self(Mutex::new(Set { last, ..Set::default() }))
    }

    /// Adds an end. Of two for one task the first one stands, and is kept until the later of the two.
    pub(super) fn insert(&self, ending: Ending, at: Instant) {
        let mut set = self.lock();
        if let Some(held) = set.held.get_mut(&ending.end.task) {
            held.ending.until = held.ending.until.max(ending.until);
        } else {
            let held = Held { ending, loaded: at, number: None, is_journaled: false, is_logged: false };
            set.held.insert(held.ending.end.task.clone(), held);
        }
    }

    /// Whether the task or an ancestor is known to have ended.
    pub(super) fn covers(&self, task: &TaskId) -> bool {
        let set = self.lock();
        !set.held.is_empty() && task.lineage().any(|id| set.held.contains_key(&id))
    }

    /// The end of this very task, if it is known.
    pub(super) fn get(&self, task: &TaskId) -> Option<Ending> {
        self.lock().held.get(task).map(|held| held.ending.clone())
    }

    /// Gives the end of this task a number, if it has none: whether it got one.
    pub(super) fn number(&self, task: &TaskId) -> bool {
        let mut set = self.lock();
        let next = set.last + 1;
        match set.held.get_mut(task) {
            Some(held) if held.number.is_none() => held.number = Some(next),
            _ => return false,
        }
        set.numbered.insert(next, task.clone());
        set.last = next;
        true
    }

    /// The number of the end of this task, or of the one above it that ended first.
    pub(super) fn number_of(&self, task: &TaskId) -> Option<u64> {
        let set = self.lock();
        task.lineage().filter_map(|id| set.held.get(&id)?.number).min()
    }

    /// What was numbered after `number`, up to `last`, in order.
    pub(super) fn numbered(&self, number: u64, last: u64) -> Vec<Ending> {
        let set = self.lock();
        let last = Bound::Included(last.max(number));
        let tasks = set.numbered.range((Bound::Excluded(number), last)).map(|(_, task)| task);
        tasks.filter_map(|task| set.held.get(task)).map(|held| held.ending.clone()).collect()
    }

    /// The last number that was given out.
    pub(super) fn last(&self) -> u64 {
        self.lock().last
    }

    /// The end of this task is in the journal.
    pub(super) fn journaled(&self, task: &TaskId) {
        if let Some(held) = self.lock().held.get_mut(task) {
            held.is_journaled = true;
        }
    }

    /// Whether the end of this task is in the journal.
    pub(super) fn is_journaled(&self, task: &TaskId) -> bool {
        self.lock().held.get(task).is_some_and(|held| held.is_journaled)
    }

    /// The other brokers know of the end of this task.
    pub(super) fn logged(&self, task: &TaskId) {
        if let Some(held) = self.lock().held.get_mut(task) {
            held.is_logged = true;
        }
    }

    /// Whether the other brokers know of the end of this task.
    pub(super) fn is_logged(&self, task: &TaskId) -> bool {
        self.lock().held.get(task).is_some_and(|held| held.is_logged)
    }

    /// Nothing is taken for known to the other brokers any more.
    pub(super) fn none_logged(&self) {
        self.lock().held.values_mut().for_each(|held| held.is_logged = false);
    }

    /// What the other brokers may not know.
    pub(super) fn unlogged(&self) -> Vec<Ending> {
        self.lock().held.values().filter(|held| !held.is_logged).map(|held| held.ending.clone()).collect()
    }

    /// Forgets what can no longer matter: how many that were.
    pub(super) fn forget(&self, now: Time, at: Instant) -> usize {
        let mut set = self.lock();
        let before = set.held.len();
        set.held.retain(|_, held| !held.is_over(now, at));
        let Set { held, numbered, .. } = &mut *set;
        if held.len() < before {
            numbered.retain(|_, task| held.contains_key(task));
        }
        before - held.len()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Ending> {
        self.lock().held.values().map(|held| held.ending.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Set> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::task::{End, State};
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
    fn the_first_end_stands_for_as_long_as_either_says() {
        let task = TaskId::root(now()).unwrap();
        let (ends, at) = (Ends::default(), Instant::now());
        ends.insert(ending(&task, now(), 86_400), at);
        ends.insert(ending(&task, now() + TimeDelta::seconds(5), 15), at);
        let held = ends.get(&task).unwrap();
        assert_eq!((held.end.at, held.until), (now(), now() + TimeDelta::seconds(86_400)));
    }

    #[test]
    fn numbers_rise_and_are_given_once() {
        let tasks: Vec<_> = (0..3).map(|_| TaskId::root(now()).unwrap()).collect();
        let (ends, at) = (Ends::after(7), Instant::now());
        for task in &tasks {
            ends.insert(ending(task, now(), 10), at);
        }
        assert!(ends.number(&tasks[1]) && !ends.number(&tasks[1]) && ends.number(&tasks[0]));
        let told =
            |number, last| ends.numbered(number, last).into_iter().map(|ending| ending.end.task).collect::<Vec<_>>();
        assert_eq!((told(0, 9), ends.last()), (vec![tasks[1].clone(), tasks[0].clone()], 9));
        assert_eq!((told(8, 9), told(0, 8), told(9, 9)), (vec![tasks[0].clone()], vec![tasks[1].clone()], vec![]));
        ends.forget(now() + TimeDelta::hours(1), at + Duration::from_secs(60));
        assert!(!ends.number(&tasks[2]));
        assert_eq!((told(0, 9), ends.last()), (vec![], 9));
    }
}
