//! What is dead or locked out, in memory: notices that this broker made, replayed from its journal, or learnt from the store.
//!
//! Entries are only ever added, and go when nothing that they are about can be alive by any clock: the wall clock has passed the last
//! expiry by [`GRACE`], *and* the monotonic clock has counted the whole life of the entry since it was loaded. So a wall clock that
//! jumps ahead un-revokes nothing.
//!
//! **When the last credential of an ended task expires.** From when the store has the end nothing is minted for the task: a mint is one
//! step with the look whether there is one. An end is in the log of notices after that, so when this broker has read it there (`shut`)
//! all credentials of the task were minted that ever will be; but for those of a broker that has not noticed yet that the store lost
//! the end again, and [`LATE`] is for them: after that such a broker has read the log, and refuses from memory, or it is not vouched for,
//! and mints nothing until it has been told. Each credential lives no longer than the declaration of the task says, sealed in its record:
//! every broker holds every mint to that, whatever policy says by then. So none expires later than that long after `shut`, by the clock of
//! whichever broker was ahead by the most (`latest`). Nor does any expire later than the task could have lived, which is sealed as well:
//! the last expiry is what comes first of both. Of an end that only a journal has, the store out of reach, the second alone is known.

use chrono::TimeDelta;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{
    clock::Time,
    id::{LeaseId, LockId, TaskId},
    notice::{Notice, SubjectId},
};

/// How long after the last expiry an entry is kept.
const GRACE: TimeDelta = TimeDelta::seconds(60);
/// By when every broker has noticed that the store lost something, or is not the one that was opened: more than half of the longest
/// freshness window.
const LATE: TimeDelta = TimeDelta::seconds(60);

/// Notices that this broker knows of, one for each subject, numbered in the order in which verifiers are told of them.
#[derive(Debug, Default)]
pub(super) struct Set(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    held: HashMap<SubjectId, Held>,
    /// What has a number, by that.
    numbered: BTreeMap<u64, SubjectId>,
    /// The locks among them.
    locks: BTreeSet<LockId>,
    /// The last number that was given out.
    last: u64,
    /// What the clock of a broker said, and when: of all that was heard, the one that is furthest ahead.
    latest: Option<(Time, Instant)>,
}

#[derive(Debug)]
struct Held {
    notice: Notice,
    loaded: Instant,
    /// `None`: verifiers are not told of it yet.
    number: Option<u64>,
    /// Whether it is in the journal of this broker.
    is_journaled: bool,
    /// Whether the other brokers were told, by this run of the store.
    is_logged: bool,
    /// When it was last found in the store's log: since then nothing is minted that it concerns.
    shut: Option<(Time, Instant)>,
}

impl Held {
    /// Whether it can be forgotten.
    fn is_over(&self, now: Time, at: Instant) -> bool {
        self.is_past(self.notice.until, now, at)
    }

    /// By when the last credential expires that it concerns, where the store was found to have it; and the moment by the monotonic clock
    /// from which that has to have been counted, with how long it is.
    fn last_expiry(&self, latest: Option<(Time, Instant)>) -> Option<(Time, Instant, TimeDelta)> {
        let ((now, shut), life) = (self.shut?, self.notice.credentials_live()? + LATE);
        let until = reckoned(latest?, shut).max(now).checked_add_signed(life)?.max(self.notice.at);
        Some((until, shut, until - now))
    }

    /// Whether verifiers can do without it.
    fn is_moot(&self, latest: Option<(Time, Instant)>, now: Time, at: Instant) -> bool {
        let is_over = |(until, shut, life)| now > until + GRACE && has_counted(life, shut, at);
        self.last_expiry(latest).is_some_and(is_over) || self.is_past(self.notice.matters_until(), now, at)
    }

    /// As verifiers are told of it.
    fn told(&self, latest: Option<(Time, Instant)>) -> Notice {
        match self.last_expiry(latest) {
            Some((until, ..)) => self.notice.clone().mattering_until(until),
            None => self.notice.clone(),
        }
    }

    fn is_past(&self, until: Time, now: Time, at: Instant) -> bool {
        let life = (until - self.notice.at).max(TimeDelta::zero());
        now > until + GRACE && has_counted(life, self.loaded, at)
    }
}

fn has_counted(life: TimeDelta, from: Instant, at: Instant) -> bool {
    TimeDelta::from_std(at.duration_since(from)).is_ok_and(|since| since > life)
}

/// What a clock says at a moment that said `time` at another.
fn reckoned((time, read): (Time, Instant), at: Instant) -> Time {
    let since = TimeDelta::from_std(at.duration_since(read)).unwrap_or(TimeDelta::MAX);
    let before = TimeDelta::from_std(read.duration_since(at)).unwrap_or(TimeDelta::MAX);
    time.checked_add_signed(since).and_then(|time| time.checked_sub_signed(before)).unwrap_or(Time::MAX_UTC)
}

impl Entries {
    /// What is held, if it is what `notice` says: of a lock that has changed since, nothing.
    fn of(&mut self, notice: &Notice) -> Option<&mut Held> {
        self.held.get_mut(&notice.subject.id()).filter(|held| !held.notice.follows(notice))
    }
}

impl Set {
    /// With none, numbered from after `last`.
    pub(super) fn after(last: u64) -> Self {
        Self(Mutex::new(Entries { last, ..Entries::default() }))
    }

    /// Adds a notice. What stands of two about the same, [`Notice::united`] says; where it is not what stood before, nobody was told yet.
    pub(super) fn insert(&self, notice: Notice, at: Instant) {
        let mut set = self.lock();
        let id = notice.subject.id();
        if let SubjectId::Lock(lock) = &id {
            set.locks.insert(lock.clone());
        }
        let fresh =
            |notice, loaded| Held { notice, loaded, number: None, is_journaled: false, is_logged: false, shut: None };
        let Some(held) = set.held.get_mut(&id) else {
            set.held.insert(id, fresh(notice, at));
            return;
        };
        let stands = held.notice.clone().united(notice);
        if stands.follows(&held.notice) {
            let number = held.number;
            *held = fresh(stands, held.loaded);
            if let Some(number) = number {
                set.numbered.remove(&number);
            }
        } else {
            held.notice = stands;
        }
    }

    /// Whether the task or an ancestor is known to have ended.
    pub(super) fn covers(&self, task: &TaskId) -> bool {
        let set = self.lock();
        !set.held.is_empty() && task.lineage().any(|id| set.held.contains_key(&SubjectId::Task(id)))
    }

    /// Whether this credential is known to be dead by itself.
    pub(super) fn has_lease(&self, lease: &LeaseId) -> bool {
        let set = self.lock();
        !set.held.is_empty() && set.held.contains_key(&SubjectId::Lease(lease.clone()))
    }

    /// The notice about this very thing, if there is one.
    pub(super) fn get(&self, id: &SubjectId) -> Option<Notice> {
        self.lock().held.get(id).map(|held| held.notice.clone())
    }

    /// All locks, released or not.
    pub(super) fn locks(&self) -> Vec<Notice> {
        let set = self.lock();
        let ids = set.locks.iter().map(|id| SubjectId::Lock(id.clone()));
        ids.filter_map(|id| set.held.get(&id)).map(|held| held.notice.clone()).collect()
    }

    /// Gives what this notice is about a number, if it has none: whether it got one.
    pub(super) fn number(&self, notice: &Notice) -> bool {
        let mut set = self.lock();
        let next = set.last + 1;
        match set.of(notice) {
            Some(held) if held.number.is_none() => held.number = Some(next),
            _ => return false,
        }
        set.numbered.insert(next, notice.subject.id());
        set.last = next;
        true
    }

    /// The number of the notice about this; of a task, that of the first notice that it or one above it has ended.
    pub(super) fn number_of(&self, id: &SubjectId) -> Option<u64> {
        let set = self.lock();
        let number = |id: &SubjectId| set.held.get(id)?.number;
        match id {
            SubjectId::Task(task) => task.lineage().filter_map(|id| number(&SubjectId::Task(id))).min(),
            SubjectId::Lease(_) | SubjectId::Key(_) | SubjectId::Lock(_) => number(id),
        }
    }

    /// What was numbered after `number`, up to `last`, in order.
    pub(super) fn numbered(&self, number: u64, last: u64) -> Vec<Notice> {
        self.numbered_as(number, last, |_, held| Some(held.notice.clone()))
    }

    /// The same, but for what verifiers can do without, and as they are told of it.
    pub(super) fn mattering(&self, number: u64, last: u64, (now, at): (Time, Instant)) -> Vec<Notice> {
        self.read_clock(now, at);
        self.numbered_as(number, last, |latest, held| (!held.is_moot(latest, now, at)).then(|| held.told(latest)))
    }

    fn numbered_as(
        &self,
        number: u64,
        last: u64,
        told: impl Fn(Option<(Time, Instant)>, &Held) -> Option<Notice>,
    ) -> Vec<Notice> {
        let set = self.lock();
        let last = Bound::Included(last.max(number));
        let ids = set.numbered.range((Bound::Excluded(number), last)).map(|(_, id)| id);
        ids.filter_map(|id| told(set.latest, set.held.get(id)?)).collect()
    }

    /// The clock of a broker, of this one or another, said `time` at this moment.
    pub(super) fn read_clock(&self, time: Time, at: Instant) {
        let mut set = self.lock();
        if set.latest.is_none_or(|latest| time > reckoned(latest, at)) {
            set.latest = Some((time, at));
        }
    }

    /// The store was found to have this notice.
    pub(super) fn shut(&self, notice: &Notice, now: Time, at: Instant) {
        self.read_clock(now, at);
        if let Some(held) = self.lock().of(notice) {
            held.shut = Some((now, at));
        }
    }

    /// The last number that was given out.
    pub(super) fn last(&self) -> u64 {
        self.lock().last
    }

    /// This notice is in the journal.
    pub(super) fn journaled(&self, notice: &Notice) {
        if let Some(held) = self.lock().of(notice) {
            held.is_journaled = true;
        }
    }

    /// Whether this notice is in the journal, or a later one took its place.
    pub(super) fn is_settled(&self, notice: &Notice) -> bool {
        let set = self.lock();
        let held = set.held.get(&notice.subject.id());
        held.is_some_and(|held| held.notice.follows(notice) || held.is_journaled && !notice.follows(&held.notice))
    }

    /// The other brokers know of this notice.
    pub(super) fn logged(&self, notice: &Notice) {
        if let Some(held) = self.lock().of(notice) {
            held.is_logged = true;
        }
    }

    /// Whether the other brokers know of this notice.
    pub(super) fn is_logged(&self, notice: &Notice) -> bool {
        self.lock().of(notice).is_some_and(|held| held.is_logged)
    }

    /// Nothing is taken for known to the other brokers any more.
    pub(super) fn none_logged(&self) {
        self.lock().held.values_mut().for_each(|held| held.is_logged = false);
    }

    /// What the other brokers may not know.
    pub(super) fn unlogged(&self) -> Vec<Notice> {
        self.lock().held.values().filter(|held| !held.is_logged).map(|held| held.notice.clone()).collect()
    }

    /// Forgets what can no longer matter: how many that were.
    pub(super) fn forget(&self, now: Time, at: Instant) -> usize {
        let mut set = self.lock();
        let before = set.held.len();
        set.held.retain(|_, held| !held.is_over(now, at));
        let Entries { held, numbered, locks, .. } = &mut *set;
        if held.len() < before {
            numbered.retain(|_, id| held.contains_key(id));
            locks.retain(|id| held.contains_key(&SubjectId::Lock(id.clone())));
        }
        before - held.len()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Notice> {
        self.lock().held.values().map(|held| held.notice.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        notice::{Subject, tests::lock},
        task::{End, State},
    };
    use std::time::Duration;

    pub(in crate::revocation) fn ending(task: &TaskId, at: Time, seconds: i64) -> Notice {
        let end =
            End { task: task.clone(), state: State::Revoked, at, reason: Some("gone".into()), by: "alice".into() };
        Notice::of_end(end, (at + TimeDelta::seconds(seconds), None), false, "broker_a".into())
    }

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_end_covers_the_subtree_and_nothing_beside_it() {
        let root = TaskId::root(now()).unwrap();
        let (child, sibling) = (root.child().unwrap(), root.child().unwrap());
        let (set, at) = (Set::default(), Instant::now());
        set.insert(ending(&child, now(), 3600), at);
        assert!(set.covers(&child) && set.covers(&child.child().unwrap()));
        assert!(!set.covers(&root) && !set.covers(&sibling));
        set.insert(ending(&root, now(), 3600), at);
        assert!(set.covers(&sibling));
    }

    #[test]
    fn one_credential_takes_neither_its_task_nor_its_siblings() {
        let (task, lease) = (TaskId::root(now()).unwrap(), LeaseId::random().unwrap());
        let (set, at) = (Set::default(), Instant::now());
        let subject = Subject::Lease { lease: lease.clone(), task: task.clone() };
        set.insert(Notice { subject, ..ending(&task, now(), 60) }, at);
        assert!(set.has_lease(&lease) && !set.has_lease(&LeaseId::random().unwrap()));
        assert!(!set.covers(&task) && set.number_of(&SubjectId::Task(task)).is_none());
    }

    #[test]
    fn only_what_both_clocks_call_over_is_forgotten() {
        let task = TaskId::root(now()).unwrap();
        let (set, at) = (Set::default(), Instant::now());
        set.insert(ending(&task, now(), 10), at);
        let later = |seconds| at + Duration::from_secs(seconds);
        let wall = |seconds| now() + TimeDelta::seconds(seconds);
        // The wall clock jumped ahead; then it stood still.
        assert_eq!(set.forget(wall(86_400), later(5)), 0);
        assert_eq!(set.forget(wall(70), later(86_400)), 0);
        assert!(set.covers(&task));
        assert_eq!(set.forget(wall(71), later(11)), 1);
        assert!(!set.covers(&task));
    }

    #[test]
    fn what_both_clocks_call_moot_is_told_no_more_and_held_all_the_same() {
        let task = TaskId::root(now()).unwrap();
        let (set, at) = (Set::default(), Instant::now());
        let mut notice = ending(&task, now(), 86_400);
        let Subject::Task { over_by, .. } = &mut notice.subject else { panic!("of a task") };
        *over_by = Some(now() + TimeDelta::seconds(10));
        set.insert(notice.clone(), at);
        set.number(&notice);
        let told = |wall, monotonic| {
            let clocks = (now() + TimeDelta::seconds(wall), at + Duration::from_secs(monotonic));
            set.mattering(0, 9, clocks).len()
        };
        assert_eq!([told(0, 0), told(70, 70), told(3600, 5), told(5, 3600)], [1; 4]);
        assert_eq!(told(71, 11), 0);
        assert_eq!(set.forget(now() + TimeDelta::seconds(71), at + Duration::from_secs(11)), 0);
        assert!(set.covers(&task) && set.numbered(0, 9).len() == 1);
    }

    #[test]
    fn what_the_store_has_is_told_until_the_last_credential_is_over_by_every_clock() {
        const LAST: i64 = 3600 + 60;
        let task = TaskId::root(now()).unwrap();
        let (set, at) = (Set::default(), Instant::now());
        let notice = ending(&task, now(), 86_400).of_short_lived(Some(3600));
        set.insert(notice.clone(), at);
        set.number(&notice);
        let moment = |wall, monotonic| (now() + TimeDelta::seconds(wall), at + Duration::from_secs(monotonic));
        let told = |wall, monotonic| {
            let told = set.mattering(0, 9, moment(wall, monotonic));
            told.first().map(|told| (told.matters_until() - now()).num_seconds())
        };
        // Of what the journal alone has, there is no saying what is still minted.
        assert_eq!([told(0, 0), told(9, 9)], [Some(86_400); 2]);
        set.shut(&notice, moment(10, 10).0, moment(10, 10).1);
        assert_eq!(told(10, 10), Some(10 + LAST));
        // A minute more, and by both clocks.
        assert_eq!([told(3730, 3730), told(20, 80_000)], [Some(10 + LAST); 2]);
        assert_eq!(told(3731, 3731), None);
        let (wall, monotonic) = moment(80_000, 80_000);
        assert_eq!(set.forget(wall, monotonic), 0, "a store that forgot is told again");
        // Another broker is two hours ahead: so are the credentials that it minted.
        set.read_clock(moment(7210, 10).0, moment(7210, 10).1);
        assert_eq!(told(3731, 3731), Some(7210 + LAST));
        assert_eq!(told(7210 + LAST + 61, 10_931), None);
        // The wall clock jumps ahead, before the monotonic one has counted that.
        assert!(told(80_000, 10_000).is_some());
    }

    #[test]
    fn the_first_end_stands_for_as_long_as_either_says() {
        let task = TaskId::root(now()).unwrap();
        let (set, at) = (Set::default(), Instant::now());
        set.insert(ending(&task, now(), 86_400), at);
        set.insert(ending(&task, now() + TimeDelta::seconds(5), 15), at);
        let held = set.get(&SubjectId::Task(task)).unwrap();
        assert_eq!((held.at, held.until), (now(), now() + TimeDelta::seconds(86_400)));
    }

    #[test]
    fn numbers_rise_and_are_given_once() {
        let notices: Vec<_> = (0..3).map(|_| ending(&TaskId::root(now()).unwrap(), now(), 10)).collect();
        let (set, at) = (Set::after(7), Instant::now());
        for notice in &notices {
            set.insert(notice.clone(), at);
        }
        assert!(set.number(&notices[1]) && !set.number(&notices[1]) && set.number(&notices[0]));
        assert_eq!((set.numbered(0, 9), set.last()), (vec![notices[1].clone(), notices[0].clone()], 9));
        assert_eq!(set.numbered(8, 9), vec![notices[0].clone()]);
        assert_eq!((set.numbered(0, 8), set.numbered(9, 9)), (vec![notices[1].clone()], vec![]));
        set.forget(now() + TimeDelta::hours(1), at + Duration::from_secs(60));
        assert!(!set.number(&notices[2]));
        assert_eq!((set.numbered(0, 9), set.last()), (vec![], 9));
    }

    #[test]
    fn a_lock_that_changed_is_told_anew_and_stands_in_one_place() {
        let id = LockId::new(now()).unwrap();
        let state =
            |revision, released, seconds| lock(&id, revision, released, now(), now() + TimeDelta::seconds(seconds));
        let (set, at) = (Set::default(), Instant::now());
        let (first, longer, released) = (state(1, false, 900), state(2, false, 9000), state(3, true, 9000));
        set.insert(first.clone(), at);
        set.journaled(&first);
        set.logged(&first);
        assert!(set.number(&first) && set.is_settled(&first) && !set.is_settled(&longer) && set.is_logged(&first));

        set.insert(longer.clone(), at);
        assert!(!set.is_settled(&longer) && !set.is_logged(&longer), "nobody knows of the change yet");
        assert!(set.is_settled(&first), "what it was is of no use to anyone");
        assert!(!set.number(&first), "what is told is what stands");
        set.journaled(&first);
        assert!(!set.is_settled(&longer), "the older state on disk is not this one");
        assert!(set.number(&longer) && !set.number(&longer));
        assert_eq!((set.numbered(0, 9), set.locks()), (vec![longer.clone()], vec![longer.clone()]));
        assert_eq!(set.number_of(&SubjectId::Lock(id.clone())), Some(2));

        set.insert(released.clone(), at);
        set.insert(longer, at);
        set.insert(state(9, false, 99_000), at);
        assert!(set.number(&released));
        assert_eq!((set.numbered(2, 9), set.locks()), (vec![released.clone()], vec![released]));
        set.forget(now() + TimeDelta::hours(3), at + Duration::from_secs(9001));
        assert!(set.locks().is_empty());
    }
}
