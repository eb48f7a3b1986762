//! Whom a lock keeps out: looked at before something is written for a task, and once more after.
//!
//! A lock is on record in the store before the tasks that it matches are listed, and a task is on record before the locks are looked at
//! here. So either a declaration sees the lock, or whoever expands the lock finds the task.

use arc_swap::ArcSwap;
use std::sync::Arc;
use tokio::sync::{Mutex, Notify};

use super::{Broker, Call, in_doubt};
use crate::{
    audit::{Actor, Entry, Event},
    claims::{Claims, LockSubject},
    clock::Time,
    error::Error,
    id::LockId,
    lease::InDoubt,
    metrics::Action,
    notice::{LockState, Notice, Subject},
    task::Task,
};

/// The locks, as this broker goes by them.
#[derive(Default)]
pub(super) struct Lockouts {
    /// The locks that it knows of, and which number the revocations had reached by then.
    known: ArcSwap<(u64, Vec<Notice>)>,
    /// The most changes that were ever counted in the store. One reader at a time.
    changes: Mutex<u64>,
    /// Told when there is a lock to expand.
    pub(super) due: Notify,
    pub(super) expansions: super::expand::Expansions,
}

/// What a lock says, of a notice that is one.
pub(super) fn state_of(notice: &Notice) -> Option<&LockState> {
    if let Subject::Lock(state) = &notice.subject { Some(state) } else { None }
}

/// Whether it is a lock that keeps anybody out at this moment.
pub(super) fn is_in_force(notice: &Notice, now: Time) -> bool {
    now < notice.until && state_of(notice).is_some_and(|state| !state.lock.released)
}

impl Broker {
    /// The locks that this broker knows of, whether they stand or not.
    pub(super) fn locks(&self) -> Arc<(u64, Vec<Notice>)> {
        let known = self.lockouts.known.load_full();
        let last = self.revocations.last();
        if known.0 == last {
            return known;
        }
        let known = Arc::new((last, self.revocations.locks()));
        self.lockouts.known.store(known.clone());
        known
    }

    /// Reads the locks again if something was seen of a change: unites them with those that are known here, and puts back what the store
    /// lacks.
    pub(super) async fn settle_locks(&self) -> Result<(), InDoubt> {
        if self.parts.ledger.knows_locks() {
            return Ok(());
        }
        let mut changes = self.lockouts.changes.lock().await;
        // Whoever waited for another reader knows what that one knows.
        if self.parts.ledger.knows_locks() { Ok(()) } else { self.read_locks(&mut changes).await }
    }

    /// The same, whatever was seen, of a store that may have lost some: every broker on it reads them again.
    pub(super) async fn replay_locks(&self) -> Result<(), InDoubt> {
        let mut changes = self.lockouts.changes.lock().await;
        self.read_locks(&mut changes).await?;
        let any = !self.locks().1.is_empty();
        if any { self.parts.ledger.mark_locks(*changes).await } else { Ok(()) }
    }

    async fn read_locks(&self, changes: &mut u64) -> Result<(), InDoubt> {
        let (now, ledger) = (self.now(), &self.parts.ledger);
        let read = ledger.locks().await?;
        for notice in read.locks.iter().filter(|notice| notice.until > now) {
            self.revocations.learn(notice.clone()).await.map_err(|why| InDoubt(why.to_string()))?;
        }
        let is_there = |known: &Notice| {
            let same = |read: &&Notice| read.subject.id() == known.subject.id();
            read.locks.iter().find(same).is_some_and(|read| !known.follows(read))
        };
        for notice in self.locks().1.iter().filter(|notice| notice.until > now && !is_there(notice)) {
            tracing::warn!(lock = ?notice.subject.id(), "the store does not hold this lock as it stands, and is told again");
            ledger.keep_lock(notice, now).await?;
        }
        if read.changes < *changes {
            tracing::error!("the store counts fewer changes of the locks than there were: all brokers read them again");
            ledger.mark_locks(*changes).await?;
        }
        *changes = read.changes.max(*changes);
        ledger.know_locks(&read);
        Ok(())
    }

    /// Refuses what a lock keeps out.
    ///
    /// # Errors
    /// [`Error::Locked`], which is then on record; [`Error::Unavailable`] where the locks cannot be read.
    pub(super) async fn keep_out(
        &self,
        task: &Task,
        action: Action,
        call: &Call<'_>,
        actor: &Actor,
    ) -> Result<(), Error> {
        if self.locked_by(task, call.now).await?.is_none() {
            return Ok(());
        }
        // It may have been released on another broker a moment ago.
        if let Err(why) = self.parts.ledger.look_at_locks().await {
            tracing::warn!(%why, "whether a lock still stands cannot be told: it does");
        }
        let Some(lock) = self.locked_by(task, call.now).await? else { return Ok(()) };
        self.parts.metrics.locked_out(action);
        let event = Event::LockedOut { lock, action: action.as_str() };
        let (request, of) = (call.request.to_owned(), call.task.cloned());
        self.record(vec![Entry { time: call.now, request, actor: actor.clone(), task: of, event }]).await?;
        Err(Error::Locked)
    }

    /// The lock that keeps out a task, or one above it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the locks cannot be read.
    pub(super) async fn locked_by(&self, task: &Task, now: Time) -> Result<Option<LockId>, Error> {
        self.settle_locks().await.map_err(|why| in_doubt(&why))?;
        let locks = self.locks();
        if locks.1.is_empty() {
            return Ok(None);
        }
        let own = fits(&locks.1, &LockSubject::of_task(task), now);
        if own.is_some() {
            return Ok(own);
        }
        for above in task.id.lineage().filter(|id| *id != task.id) {
            let above = self.parts.ledger.declared(&above).await.map_err(|why| in_doubt(&why))?;
            let lock = above.and_then(|above| fits(&locks.1, &LockSubject::of_task(&above), now));
            if lock.is_some() {
                return Ok(lock);
            }
        }
        Ok(None)
    }

    /// Whether a lock keeps out a token that says this.
    ///
    /// # Errors
    /// Where the locks cannot be read.
    pub(super) async fn is_locked(&self, claims: &Claims, now: Time) -> Result<bool, InDoubt> {
        self.settle_locks().await?;
        Ok(fits(&self.locks().1, &LockSubject::of(claims), now).is_some())
    }

    /// How many locks keep anybody out at this moment.
    pub(super) fn locks_in_force(&self, now: Time) -> usize {
        self.locks().1.iter().filter(|notice| is_in_force(notice, now)).count()
    }
}

/// The first lock in force that this falls under.
fn fits(locks: &[Notice], subject: &LockSubject<'_>, now: Time) -> Option<LockId> {
    let locks = locks.iter().filter(|notice| is_in_force(notice, now)).filter_map(state_of);
    locks.map(|state| &state.lock).find(|lock| lock.fits(subject)).map(|lock| lock.id.clone())
}
