//! Locks, as all brokers on the store see them: a record for each, a list of those that there are, and a mark that is another one after
//! every change. Whoever mints looks at the mark in the very step that writes, and reads the locks again where it is not the one that it
//! knows: so either the lock is seen, or the task was there before the lock was, and is found by whoever expands it.
//!
//! None of that is taken for complete. A broker keeps every lock that it ever learnt of, unites what it reads with that, and puts back what
//! is missing. So whoever can write to the store can bring back a lock that was released, and take away none.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    super::{Amending, InDoubt, Key},
    Ledger, kept,
};
use crate::{
    clock::Time,
    id::LockId,
    notice::{Notice, Subject},
};

/// How many records are read at a time.
const PAGE: usize = 256;
/// How often a record that another broker changed meanwhile is tried again.
const TRIES: usize = 16;
/// How long a lock is listed after it has ended.
const LISTED: TimeDelta = TimeDelta::days(30);

/// What was seen of the mark, and up to where it was followed.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// The mark as it stood when the locks were last read.
    settled: Mutex<Option<String>>,
    /// How often another one was seen.
    seen: AtomicU64,
    /// How often that was, when the locks were last read.
    followed: AtomicU64,
}

impl Watched {
    /// Notes the mark as it was found.
    pub(super) fn note(&self, mark: Option<&str>) {
        if self.settled.lock().unwrap_or_else(PoisonError::into_inner).as_deref() != mark {
            self.seen.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// The locks as they stand in the store.
#[derive(Debug)]
pub struct StandingLocks {
    /// Those that stand, and those that ended a short while ago. What is not to be believed is left out.
    pub locks: Vec<Notice>,
    /// How many changes were counted.
    pub changes: u64,
    mark: Option<String>,
    seen: u64,
}

/// The record of the mark.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    changes: u64,
}

/// The record of the list: until when each is listed.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    locks: BTreeMap<LockId, Time>,
}

/// How far a lock has been expanded into the ends of the tasks that it keeps out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expansion {
    /// Tasks that were found so far.
    pub matched: u64,
    /// Of these, those that have been ended.
    pub revoked: u64,
    /// When it was found to be complete, if it was.
    pub done_at: Option<Time>,
    /// As of when.
    pub at: Time,
    /// The broker that does it.
    pub broker: String,
}

impl Ledger {
    /// Whether nothing has been seen of the mark since the locks were last read, in any step of the store.
    #[must_use]
    pub fn knows_locks(&self) -> bool {
        self.0.locks.seen.load(Ordering::Acquire) == self.0.locks.followed.load(Ordering::Acquire)
    }

    /// Looks at the mark.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn look_at_locks(&self) -> Result<(), InDoubt> {
        let [mark] = self.read([Key::LocksChanged]).await?;
        self.0.locks.note(mark.as_deref());
        Ok(())
    }

    /// The locks as they stand.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn locks(&self) -> Result<StandingLocks, InDoubt> {
        let seen = self.0.locks.seen.load(Ordering::Acquire);
        // The mark first: what changes after it shows in another.
        let [mark] = self.read([Key::LocksChanged]).await?;
        let Mark { changes } = self.lenient(&Key::LocksChanged, mark.as_deref());
        let [list] = self.read([Key::Locks]).await?;
        let List { locks: listed } = self.lenient(&Key::Locks, list.as_deref());
        let mut locks = Vec::new();
        for page in listed.into_keys().collect::<Vec<_>>().chunks(PAGE) {
            let keys: Vec<Key> = page.iter().cloned().map(Key::Lock).collect();
            for (key, record) in keys.iter().zip(self.0.store.read(&keys).await?) {
                locks.extend(record.and_then(|record| self.lock_in(key, &record)));
            }
        }
        Ok(StandingLocks { locks, changes, mark, seen })
    }

    /// These locks are known from now on, with what was known before.
    pub fn know_locks(&self, read: &StandingLocks) {
        self.0.locks.settled.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&read.mark);
        self.0.locks.followed.fetch_max(read.seen, Ordering::AcqRel);
    }

    /// Puts a lock on record as it stands now, for every broker, and yields the one that stands.
    ///
    /// # Errors
    /// When the store is in doubt, or this is no lock; it may or may not be on record.
    pub async fn keep_lock(&self, notice: &Notice, now: Time) -> Result<Notice, InDoubt> {
        let Subject::Lock(state) = &notice.subject else { return Err(InDoubt("this is no lock".into())) };
        let id = &state.lock.id;
        let key = Key::Lock(id.clone());
        let mut standing = notice.clone();
        self.change(&key, |before| {
            let before = before.and_then(|record| self.lock_in(&key, record));
            standing = before.clone().map_or_else(|| notice.clone(), |before| before.united(notice.clone()));
            (before.as_ref() != Some(&standing)).then(|| self.0.sealer.seal(&key, &standing))
        })
        .await?;
        let listed_until = kept(standing.until, LISTED);
        self.change(&Key::Locks, |before| {
            let mut list: List = self.lenient(&Key::Locks, before);
            if list.locks.get(id) == Some(&listed_until) {
                return None;
            }
            list.locks.retain(|_, until| *until >= now);
            list.locks.insert(id.clone(), listed_until);
            Some(self.0.sealer.seal(&Key::Locks, &list))
        })
        .await?;
        self.mark_locks(0).await?;
        Ok(standing)
    }

    /// Lets every broker read the locks again. `known`: how many changes were counted before, whatever the store says now.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn mark_locks(&self, known: u64) -> Result<(), InDoubt> {
        self.change(&Key::LocksChanged, |before| {
            let Mark { changes } = self.lenient(&Key::LocksChanged, before);
            Some(self.0.sealer.seal(&Key::LocksChanged, &Mark { changes: changes.max(known).saturating_add(1) }))
        })
        .await
    }

    /// Shows all brokers how far a lock has been expanded.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn show_expansion(&self, id: &LockId, expansion: &Expansion) -> Result<(), InDoubt> {
        let key = Key::LockProgress(id.clone());
        self.change(&key, |_| Some(self.0.sealer.seal(&key, expansion))).await
    }

    /// How far each of these locks has been expanded, as far as somebody showed it.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn expansions(&self, ids: &[LockId]) -> Result<Vec<Option<Expansion>>, InDoubt> {
        let mut found = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            let keys: Vec<Key> = page.iter().cloned().map(Key::LockProgress).collect();
            let records = self.0.store.read(&keys).await?;
            // What is not to be believed was not shown: then it is done once more.
            let open = |(key, record): (&Key, Option<String>)| self.0.sealer.open_if_current(key, &record?).ok()?;
            found.extend(keys.iter().zip(records).map(open));
        }
        Ok(found)
    }

    /// A lock in a record; `None`, and logged, where it is not to be believed.
    fn lock_in(&self, key: &Key, record: &str) -> Option<Notice> {
        let opened = self.0.sealer.open_of_any_generation::<Notice>(key, record);
        let notice = opened.inspect_err(|why| tracing::error!(%why, "left out of the locks")).ok()?;
        matches!(notice.subject, Subject::Lock(_)).then_some(notice)
    }

    /// What a record says that is made up for where it is missing or not to be believed.
    fn lenient<T: Default + serde::de::DeserializeOwned>(&self, key: &Key, record: Option<&str>) -> T {
        let opened = record.map(|record| self.0.sealer.open_of_any_generation(key, record)).transpose();
        opened
            .unwrap_or_else(|why| {
                tracing::error!(%why, "it is written anew");
                None
            })
            .unwrap_or_default()
    }

    /// Replaces a record by what `next` makes of it, however often another broker does; `None`: it stays.
    async fn change(
        &self,
        key: &Key,
        mut next: impl FnMut(Option<&str>) -> Option<Result<super::Sealed, InDoubt>>,
    ) -> Result<(), InDoubt> {
        for _ in 0..TRIES {
            let [before] = self.read([key.clone()]).await?;
            let Some(record) = next(before.as_deref()) else { return Ok(()) };
            // For good: locks are few and small, and who locked whom out is worth knowing.
            let amending = Amending { key: key.clone(), before, record: record?, keep_until: None, urgent: true };
            if self.0.store.amend(&amending).await? {
                return Ok(());
            }
        }
        Err(InDoubt("the locks are being changed too often at once".into()))
    }
}
