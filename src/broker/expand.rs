//! Expanding locks: a lock ends every task that it matches, tree by tree, behind the answer. Verifiers that follow the feed match the lock
//! itself against what they are shown; for status lists and revocation lists, and for certificates, which do not say whose they are,
//! each tree needs an end of its own. That is one for all of the tree: of tasks above each other that are matched, the topmost is ended.
//!
//! It is done in the background by the broker that took the lock. What it has come to is shown in the store; where nothing has been shown for
//! a while, because that broker died, any other goes on. Doing it twice does nothing more.
//!
//! The list of tasks in the store is nobody's word: who can write to it can take a task out, or spoil its record. So a record that is not
//! to be believed keeps the lock from being done, unless its task has ended, and when that is done every broker ends what is left of the tasks
//! that it remembers itself.

use chrono::TimeDelta;
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Broker,
    lockout::{is_in_force, state_of},
    revoke::Stop,
};
use crate::{
    audit::{Actor, Entry, Event},
    claims::{Lock, LockSubject},
    clock::Time,
    id::{LockId, TaskId},
    lease::{Expansion, Held, InDoubt},
    notice::Notice,
    task::{End, State, Task},
};

/// How often it is looked for locks to expand.
const EVERY: Duration = Duration::from_secs(1);
/// How long nothing is heard of whoever expands a lock, before another broker does.
const ABANDONED: TimeDelta = TimeDelta::seconds(10);
/// How many tasks are looked at in one step, and how many are ended at a time.
const LOOK: usize = 200;
const AT_ONCE: usize = 16;

/// How far locks have been expanded, as far as this broker knows.
#[derive(Default)]
pub(super) struct Expansions(Mutex<HashMap<LockId, Expansion>>);

impl Expansions {
    fn held(&self) -> MutexGuard<'_, HashMap<LockId, Expansion>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &LockId) -> Option<Expansion> {
        self.held().get(id).cloned()
    }

    fn note(&self, id: &LockId, expansion: Expansion) {
        self.held().insert(id.clone(), expansion);
    }

    fn is_done(&self, id: &LockId) -> bool {
        self.held().get(id).is_some_and(|expansion| expansion.done_at.is_some())
    }
}

/// A lock that is being expanded.
struct Expanding<'a> {
    notice: &'a Notice,
    lock: &'a Lock,
    /// Tasks that were declared later it did not keep out.
    before: Time,
    /// Found in this pass, and ended, in this or in those before.
    matched: AtomicU64,
    revoked: AtomicU64,
    before_this_pass: u64,
}

impl<'a> Expanding<'a> {
    fn of(notice: &'a Notice, so_far: Option<Expansion>) -> Option<Self> {
        let state = state_of(notice)?;
        let released = state.release.as_ref().map_or(notice.until, |release| release.at);
        let before_this_pass = so_far.map_or(0, |so_far| so_far.revoked);
        Some(Self {
            notice,
            lock: &state.lock,
            before: notice.until.min(released),
            matched: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            before_this_pass,
        })
    }

    /// Whether it kept this task out while it stood: released, it matches nothing any more.
    fn fits(&self, task: &Task) -> bool {
        let standing = Lock { released: false, ..self.lock.clone() };
        task.created_at < self.before && standing.fits(&LockSubject::of_task(task))
    }

    /// Why it ends what it matches.
    fn reason(&self) -> String {
        format!("{}: {}", self.lock.id, self.notice.reason.as_deref().unwrap_or_default())
    }

    /// Whether this was ended for it, by itself or with a task above it.
    fn has_ended(&self, held: &Held) -> bool {
        held.end.as_ref().is_some_and(|end| end.state == State::Revoked && end.reason == Some(self.reason()))
    }

    fn so_far(&self, now: Time, done: bool, broker: &str) -> Expansion {
        // What an earlier pass ended is counted again while the store has it.
        let so_far = |count: &AtomicU64| count.load(Ordering::Acquire).max(self.before_this_pass);
        Expansion {
            matched: so_far(&self.matched),
            revoked: so_far(&self.revoked),
            done_at: done.then_some(now),
            at: now,
            broker: broker.to_owned(),
        }
    }
}

impl Broker {
    /// Expands locks as they come. Ends with the broker.
    pub async fn expand_locks(&self) {
        loop {
            // Whether it was told or not: there may be one that nobody else goes on with.
            let _ = tokio::time::timeout(EVERY, self.lockouts.due.notified()).await;
            if let Err(why) = self.expand_due().await {
                tracing::warn!(%why, "a lock is not expanded yet, and is tried again");
                tokio::time::sleep(EVERY).await;
            }
        }
    }

    async fn expand_due(&self) -> Result<(), InDoubt> {
        let (now, locks) = (self.now(), self.locks());
        let expansions = &self.lockouts.expansions;
        let unfinished: Vec<_> = locks
            .1
            .iter()
            .filter_map(|notice| Some((state_of(notice)?.lock.id.clone(), notice)))
            .filter(|(id, _)| !expansions.is_done(id))
            .collect();
        expansions.held().retain(|id, _| locks.1.iter().filter_map(state_of).any(|state| state.lock.id == *id));
        if unfinished.is_empty() || !self.is_vouched() {
            return Ok(());
        }
        let ids: Vec<_> = unfinished.iter().map(|(id, _)| id.clone()).collect();
        let (shown, own) = (self.parts.ledger.expansions(&ids).await?, self.revocations.broker().as_str());
        let (mut ours, mut done) = (Vec::new(), Vec::new());
        for ((id, notice), shown) in unfinished.into_iter().zip(shown) {
            let (broker, heard) = shown.as_ref().map_or((&notice.broker, notice.at), |shown| (&shown.broker, shown.at));
            let is_done = shown.as_ref().is_some_and(|shown| shown.done_at.is_some());
            let is_ours = broker == own || now - heard > ABANDONED;
            if is_ours && !is_done {
                ours.extend(Expanding::of(notice, shown));
            } else if let Some(shown) = shown {
                if is_done {
                    done.extend(Expanding::of(notice, Some(shown.clone())).map(|expanding| (expanding, shown)));
                } else {
                    expansions.note(&id, shown);
                }
            }
        }
        if !done.is_empty() {
            let (of_others, shown): (Vec<_>, Vec<_>) = done.into_iter().unzip();
            self.end_remembered(&of_others).await?;
            for (expanding, shown) in of_others.iter().zip(shown) {
                expansions.note(&expanding.lock.id, shown);
            }
        }
        // Whatever was declared before this without having seen the lock is in the store, and is found.
        for expanding in &ours {
            self.parts.ledger.keep_lock(expanding.notice, now).await?;
        }
        if ours.is_empty() { Ok(()) } else { self.expand(&ours).await }
    }

    /// Goes through all tasks once, and ends those that these locks match.
    async fn expand(&self, locks: &[Expanding<'_>]) -> Result<(), InDoubt> {
        let (mut before, mut doubted) = (None, Vec::new());
        loop {
            let (page, next, doubts) = self.parts.ledger.tasks_and_doubts(before.as_ref(), LOOK).await?;
            let now = self.now();
            doubted.extend(doubts.into_iter().filter(|task| !self.revocations.covers(task)));
            // What is to be ended, for which lock, and how many tasks of this page end with it.
            let mut hit: BTreeMap<TaskId, (&Expanding<'_>, u64)> = BTreeMap::new();
            for held in &page {
                if let Some(lock) = locks.iter().find(|lock| lock.has_ended(held)) {
                    lock.matched.fetch_add(1, Ordering::AcqRel);
                    lock.revoked.fetch_add(1, Ordering::AcqRel);
                } else if held.state(now) == State::Active {
                    let fits = |task: &Task| locks.iter().find(|lock| lock.fits(task));
                    if let Some((lock, top)) = self.topmost(&held.task, fits).await {
                        lock.matched.fetch_add(1, Ordering::AcqRel);
                        hit.entry(top).or_insert((lock, 0)).1 += 1;
                    }
                }
            }
            let (mut all, hit) = (true, Vec::from_iter(hit));
            for some in hit.chunks(AT_ONCE) {
                let ends = some.iter().map(|(task, (lock, tasks))| self.end_for(lock, task, *tasks));
                all &= join_all(ends).await.into_iter().all(|ended| ended);
            }
            if !hit.is_empty() {
                self.show_expansions(locks, false).await?;
            }
            if !all {
                return Err(InDoubt("not every task that a lock matches could be ended".into()));
            }
            before = next;
            if before.is_none() {
                break;
            }
        }
        self.end_remembered(locks).await?;
        if let Some(task) = doubted.first() {
            let others = doubted.len() - 1;
            return Err(InDoubt(format!(
                "the record of {task}, and of {others} others, is not to be believed, and the lock may match it: revoke it by its id"
            )));
        }
        self.show_expansions(locks, true).await
    }

    /// Ends what these locks match of the tasks that this broker remembers, of those of which nobody has told that they have ended.
    async fn end_remembered(&self, locks: &[Expanding<'_>]) -> Result<(), InDoubt> {
        self.learn_notices().await?;
        let (mut hit, now): (BTreeMap<TaskId, (&Expanding<'_>, u64)>, _) = (BTreeMap::new(), self.now());
        for (task, deadline) in self.parts.ledger.remembered() {
            if deadline <= now || self.revocations.covers(&task.id) {
                continue;
            }
            let fits = |task: &Task| locks.iter().find(|lock| lock.fits(task));
            if let Some((lock, top)) = self.topmost(&task, fits).await {
                tracing::warn!(task = %task.id, lock = %lock.lock.id, "left out of what the store lists, and ended from memory");
                lock.matched.fetch_add(1, Ordering::AcqRel);
                hit.entry(top).or_insert((lock, 0)).1 += 1;
            }
        }
        let hit = Vec::from_iter(hit);
        for some in hit.chunks(AT_ONCE) {
            let ends = some.iter().map(|(task, (lock, tasks))| self.end_for(lock, task, *tasks));
            if !join_all(ends).await.into_iter().all(|ended| ended) {
                return Err(InDoubt("not every task that a lock matches could be ended".into()));
            }
        }
        Ok(())
    }

    /// Of a task and those above it, the topmost that something is found for: that, and its id. What cannot be told of one above does not
    /// keep the task from being looked at.
    pub(super) async fn topmost<T>(&self, task: &Task, find: impl Fn(&Task) -> Option<T>) -> Option<(T, TaskId)> {
        for above in task.id.lineage().filter(|id| *id != task.id) {
            let declared = self.parts.ledger.declared(&above).await;
            let declared = declared.inspect_err(|why| tracing::error!(task = %above, %why, "cannot be looked at"));
            if let Some(found) = declared.ok().flatten().and_then(|declared| find(&declared)) {
                return Some((found, above));
            }
        }
        find(task).map(|found| (found, task.id.clone()))
    }

    /// Whether the task has ended, in the store, and with it so many that were found.
    async fn end_for(&self, expanding: &Expanding<'_>, task: &TaskId, tasks: u64) -> bool {
        let (at, by) = (self.now(), expanding.notice.by.clone());
        let actor = Actor::Operator { name: by.clone() };
        let end = End { task: task.clone(), state: State::Revoked, at, reason: Some(expanding.reason()), by };
        let ended = matches!(self.stop(end, false, &actor, "").await, Ok(Stop::Done(_)));
        if ended {
            expanding.revoked.fetch_add(tasks, Ordering::AcqRel);
        }
        ended
    }

    async fn show_expansions(&self, locks: &[Expanding<'_>], done: bool) -> Result<(), InDoubt> {
        let (now, broker) = (self.now(), self.revocations.broker().as_str());
        for expanding in locks {
            let (id, so_far) = (&expanding.lock.id, expanding.so_far(now, done, broker));
            self.parts.ledger.show_expansion(id, &so_far).await?;
            if done {
                let Expansion { matched, revoked, .. } = so_far;
                let event = Event::LockExpanded { lock: id.clone(), matched, revoked };
                let (request, actor) = (String::new(), Actor::Broker);
                self.parts.audit.note(Entry { time: now, request, actor, task: None, event });
                let in_force = is_in_force(expanding.notice, now);
                tracing::info!(lock = %id, matched, revoked, in_force, "a lock was expanded");
            }
            self.lockouts.expansions.note(id, so_far);
        }
        Ok(())
    }
}
