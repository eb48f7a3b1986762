//! The set of what is dead. It only grows: an entry goes when everything that it can concern has ended by every clock.

use std::{collections::HashMap, hash::Hash, time::Duration};

use super::Denial;
use crate::{
    claims::{Lock, LockSubject, NumericDate, RevocationEntry, Revoked},
    clock::Moment,
    id::{LeaseId, LockId, TaskId},
};

/// For how many milliseconds an entry is kept after its end by the wall clock.
const KEPT: i64 = 60_000;
/// How long it is between two searches for what can go.
const SWEEP: Duration = Duration::from_secs(60);

/// What is looked up of a credential.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The generation that it carries.
    pub(crate) generation: u64,
    /// Its task, which names its ancestors.
    pub(crate) task: &'a TaskId,
    /// Its id.
    pub(crate) lease: &'a LeaseId,
    /// The key that it was signed with.
    pub(crate) key: &'a str,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    tasks: HashMap<String, Kept>,
    leases: HashMap<LeaseId, Kept>,
    keys: HashMap<String, Kept>,
    locks: HashMap<LockId, HeldLock>,
    swept: Duration,
}

/// Until when an entry is kept.
#[derive(Debug, Clone, Copy)]
struct Kept {
    until: i64,
    lifetime: Duration,
    since: Duration,
}

#[derive(Debug)]
struct HeldLock {
    lock: Lock,
    at: NumericDate,
    stands_until: NumericDate,
    kept: Kept,
}

impl Kept {
    fn of(entry: &RevocationEntry, now: &Moment) -> Self {
        let (at, until) = (entry.at.millis(), entry.until.millis());
        Self { until, lifetime: milliseconds(until - at), since: now.monotonic }
    }

    /// The later end of both. Where one is later than what was known, its time is counted from now on.
    fn unite(&mut self, other: Self) {
        if other.until > self.until || other.lifetime > self.lifetime {
            let (until, lifetime) = (self.until.max(other.until), self.lifetime.max(other.lifetime));
            *self = Self { until, lifetime, since: other.since };
        }
    }

    fn is_over(&self, now: &Moment) -> bool {
        now.wall.timestamp_millis() > self.until.saturating_add(KEPT)
            && now.monotonic.saturating_sub(self.since) >= self.lifetime
    }
}

/// What is negative is nothing.
pub(super) fn milliseconds(count: i64) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or_default())
}

impl Held {
    pub(super) fn unite(&mut self, entries: Vec<RevocationEntry>, now: &Moment) {
        for entry in entries {
            let kept = Kept::of(&entry, now);
            match entry.what {
                Revoked::Task(task) => keep(&mut self.tasks, task.into(), kept),
                Revoked::Lease(lease) => keep(&mut self.leases, lease, kept),
                Revoked::Key(key) => keep(&mut self.keys, key, kept),
                Revoked::Lock(lock) => self.lock(lock, entry.at, entry.until, kept),
            }
        }
        if now.monotonic.saturating_sub(self.swept) >= SWEEP {
            self.swept = now.monotonic;
            self.tasks.retain(|_, kept| !kept.is_over(now));
            self.leases.retain(|_, kept| !kept.is_over(now));
            self.keys.retain(|_, kept| !kept.is_over(now));
            self.locks.retain(|_, held| !held.kept.is_over(now));
        }
    }

    /// A later lock takes the place of an earlier one, whichever came first; where that cannot be told, the one that stands longer does.
    fn lock(&mut self, lock: Lock, at: NumericDate, until: NumericDate, kept: Kept) {
        let Some(held) = self.locks.get_mut(&lock.id) else {
            self.locks.insert(lock.id.clone(), HeldLock { lock, at, stands_until: until, kept });
            return;
        };
        held.kept.unite(kept);
        if !held.lock.released && (lock.released || (at, until) >= (held.at, held.stands_until)) {
            (held.lock, held.at, held.stands_until) = (lock, at, until);
        }
    }

    /// Whether what was signed with this key is dead.
    pub(super) fn key_is_dead(&self, kid: &str, now: &Moment) -> bool {
        is_kept(self.keys.get(kid), now)
    }

    /// What stands against a credential. `reckoned` is what the brokers' clock says, in milliseconds since 1970.
    pub(super) fn deny<'a>(
        &self,
        facts: Facts<'_>,
        subject: impl FnOnce() -> LockSubject<'a>,
        now: &Moment,
        reckoned: i64,
    ) -> Option<Denial> {
        let Facts { task, lease, key, generation: _ } = facts;
        let dead = task.lineage_strs().any(|id| is_kept(self.tasks.get(id), now))
            || is_kept(self.leases.get(lease), now)
            || self.key_is_dead(key, now);
        if dead {
            return Some(Denial::Revoked);
        }
        if self.locks.is_empty() {
            return None;
        }
        // A clock that jumps ahead unlocks nothing.
        let earlier = now.wall.timestamp_millis().min(reckoned);
        let subject = subject();
        let locked = self.locks.values().any(|held| earlier < held.stands_until.millis() && held.lock.fits(&subject));
        locked.then_some(Denial::Locked)
    }
}

fn keep<K: Eq + Hash>(map: &mut HashMap<K, Kept>, key: K, kept: Kept) {
    map.entry(key).and_modify(|held| held.unite(kept)).or_insert(kept);
}

fn is_kept(kept: Option<&Kept>, now: &Moment) -> bool {
    kept.is_some_and(|kept| !kept.is_over(now))
}
