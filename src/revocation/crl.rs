//! Revoked certificates: which ones the broker's own authorities have issued and are not expired, which of them died with their task,
//! and the lists as they were signed last.
//!
//! What is on a list comes of the ends of tasks, so a revoke writes nothing here. Whoever holds a list that was signed before a revoke
//! has to fetch another within [`CRL_LIFE`].

use chrono::TimeDelta;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    clock::Time,
    error::Error,
    id::{CrlId, LeaseId, TaskId},
    task::State,
};

/// How often a list is signed anew, in seconds.
pub const CRL_INTERVAL: u32 = 4;
/// How long a list is worth something from when the broker began to look, in seconds. `nextUpdate`.
pub const CRL_LIFE: u32 = 10;
/// How long before that it begins, in seconds: so much a verifier's clock may be behind. With [`CRL_LIFE`] it is three intervals.
pub const CRL_BACKDATED: u32 = 2;
/// How long a cache may keep a list, in seconds.
const CRL_MAX_AGE: u32 = 1;

/// How many certificates of a task may be valid at a time, or have been until a moment ago. What is on a list for one task is no more than that.
const MOST_OF_A_TASK: usize = 64;
/// How many certificates of an authority may be valid at a time, so that its lists stay of a size that can be fetched.
const MOST_OF_AN_AUTHORITY: usize = 100_000;
/// How long a certificate stays on its list after its end: for clocks that are behind.
const KEPT: TimeDelta = TimeDelta::seconds(60);

/// The certificates of this broker's authorities.
#[derive(Debug, Default)]
pub struct Certificates(Mutex<HashMap<String, Issued>>);

/// Those of one authority.
#[derive(Debug, Default)]
struct Issued {
    certificates: BTreeMap<LeaseId, Certificate>,
    /// How many there are of each task.
    of_task: BTreeMap<TaskId, usize>,
}

#[derive(Debug)]
struct Certificate {
    task: TaskId,
    expires_at: Time,
    /// How its task ended, and when.
    ended: Option<(State, Time)>,
}

impl Issued {
    fn insert(&mut self, serial: LeaseId, task: TaskId, expires_at: Time) {
        *self.of_task.entry(task.clone()).or_default() += 1;
        self.certificates.insert(serial, Certificate { task, expires_at, ended: None });
    }

    fn remove(&mut self, serial: &LeaseId) {
        if let Some(Certificate { task, .. }) = self.certificates.remove(serial) {
            self.uncount(&task);
        }
    }

    fn uncount(&mut self, task: &TaskId) {
        if let Some(count) = self.of_task.get_mut(task) {
            *count -= 1;
            if *count == 0 {
                self.of_task.remove(task);
            }
        }
    }

    fn forget_expired(&mut self, now: Time) {
        let mut over = Vec::new();
        self.certificates.retain(|_, certificate| {
            let stays = certificate.expires_at + KEPT > now;
            if !stays {
                over.push(certificate.task.clone());
            }
            stays
        });
        for task in &over {
            self.uncount(task);
        }
    }
}

impl Certificates {
    /// Takes a certificate in before it is leased, so that no list that is signed from then on can miss it.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`].
    pub fn admit(&self, authority: &str, serial: &LeaseId, task: &TaskId, expires_at: Time) -> Result<(), Error> {
        self.of(authority, |issued| {
            if issued.of_task.get(task).is_some_and(|count| *count >= MOST_OF_A_TASK) {
                return Err(Error::QuotaExceeded(
                    "64 certificates of this task are valid: wait until some have expired, or ask for a shorter `ttl`",
                ));
            }
            if issued.certificates.len() >= MOST_OF_AN_AUTHORITY {
                return Err(Error::QuotaExceeded("too many certificates are valid: ask another broker, or later"));
            }
            issued.insert(serial.clone(), task.clone(), expires_at);
            Ok(())
        })
    }

    /// Takes out a certificate that was never signed.
    pub fn withdraw(&self, authority: &str, serial: &LeaseId) {
        self.of(authority, |issued| issued.remove(serial));
    }

    /// Takes in a certificate that was issued before this process began.
    pub fn recall(&self, authority: &str, serial: LeaseId, task: TaskId, expires_at: Time) {
        self.of(authority, |issued| {
            if !issued.certificates.contains_key(&serial) {
                issued.insert(serial, task, expires_at);
            }
        });
    }

    /// Forgets what has expired, and yields the tasks whose end has to be looked for.
    #[must_use]
    pub fn tasks(&self, authority: &str, now: Time) -> Vec<TaskId> {
        self.of(authority, |issued| {
            issued.forget_expired(now);
            let alive = issued.certificates.values().filter(|certificate| certificate.ended.is_none());
            alive.map(|certificate| &certificate.task).collect::<BTreeSet<_>>().into_iter().cloned().collect()
        })
    }

    /// Notes the ends of tasks. What was revoked once stays it.
    pub fn note(&self, authority: &str, ends: &HashMap<TaskId, (State, Time)>) {
        if ends.is_empty() {
            return;
        }
        self.of(authority, |issued| {
            for certificate in issued.certificates.values_mut() {
                certificate.ended = certificate.ended.or_else(|| ends.get(&certificate.task).copied());
            }
        });
    }

    /// Notes that what is older than this generation is dead.
    pub fn outlive(&self, authority: &str, generation: u64, at: Time) {
        self.of(authority, |issued| {
            for (serial, certificate) in &mut issued.certificates {
                if certificate.ended.is_none() && serial.generation().is_some_and(|of| of < generation) {
                    certificate.ended = Some((State::Revoked, at));
                }
            }
        });
    }

    /// Notes the certificates that are dead by themselves, and since when.
    pub fn note_each(&self, authority: &str, ended_at: impl Fn(&LeaseId) -> Option<Time>) {
        self.of(authority, |issued| {
            for (serial, certificate) in &mut issued.certificates {
                let ended = || ended_at(serial).map(|at| (State::Revoked, at));
                certificate.ended = certificate.ended.or_else(ended);
            }
        });
    }

    /// What is on each list of an authority.
    #[must_use]
    pub fn revoked(&self, authority: &str) -> BTreeMap<CrlId, Vec<(LeaseId, Time, State)>> {
        let mut lists: BTreeMap<_, _> = CrlId::all(authority).map(|id| (id, Vec::new())).collect();
        self.of(authority, |issued| {
            for (serial, certificate) in &issued.certificates {
                let Some((how, at)) = certificate.ended else { continue };
                for id in [CrlId::of(authority, serial), CrlId::whole(authority)] {
                    lists.entry(id).or_default().push((serial.clone(), at, how));
                }
            }
        });
        lists
    }

    /// Whether any certificate of an authority is still to be told of.
    #[must_use]
    pub fn any(&self, authority: &str) -> bool {
        self.of(authority, |issued| !issued.certificates.is_empty())
    }

    /// Whether the task, or one below it, has certificates.
    #[must_use]
    pub fn concerns(&self, ended: &TaskId) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().any(|issued| {
            let mut from = issued.of_task.range(ended..);
            from.next().is_some_and(|(task, _)| ended.covers(task))
        })
    }

    /// Forgets an authority.
    pub fn forget(&self, authority: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(authority);
    }

    fn of<T>(&self, authority: &str, change: impl FnOnce(&mut Issued) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(authority.to_owned()).or_default())
    }
}

/// A list, as it was signed.
#[derive(Debug, Clone)]
pub struct SignedCrl {
    /// The list (DER).
    pub der: Arc<[u8]>,
    /// Until when it is worth something.
    pub next_update: Time,
    /// When it was signed here, or read from the store.
    pub seen: Instant,
}

impl SignedCrl {
    /// For how many seconds it may be kept; `None` where it is worth nothing any more.
    #[must_use]
    pub fn max_age(&self, now: Time) -> Option<u32> {
        let left = (self.next_update - now).num_seconds();
        u32::try_from(left).ok().filter(|left| *left > 0).map(|left| left.min(CRL_MAX_AGE))
    }
}

/// The lists that were signed or read last.
#[derive(Debug, Default)]
pub struct Crls(Mutex<HashMap<CrlId, SignedCrl>>);

impl Crls {
    /// A list that was seen no longer ago than that.
    #[must_use]
    pub fn get(&self, id: &CrlId, no_older: Duration) -> Option<SignedCrl> {
        let lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.get(id).filter(|list| list.seen.elapsed() <= no_older).cloned()
    }

    /// Keeps a list, in place of any before it; drops those that are worth nothing any more.
    pub fn keep(&self, id: CrlId, list: SignedCrl, now: Time) {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.len().is_power_of_two() {
            lists.retain(|_, list| list.next_update > now);
        }
        lists.insert(id, list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHORITY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    fn serial() -> LeaseId {
        LeaseId::serial(1).unwrap()
    }

    fn on_list(all: &Certificates, serial: &LeaseId) -> bool {
        all.revoked(AUTHORITY)[&CrlId::of(AUTHORITY, serial)].iter().any(|(other, ..)| other == serial)
    }

    #[test]
    fn a_serial_is_on_its_list_from_the_end_of_its_task_until_its_own() {
        let (all, task, other) = (Certificates::default(), TaskId::root(now()).unwrap(), TaskId::root(now()).unwrap());
        let (one, two) = (serial(), serial());
        let until = now() + TimeDelta::seconds(300);
        all.admit(AUTHORITY, &one, &task, until).unwrap();
        all.admit(AUTHORITY, &two, &other, until).unwrap();
        assert_eq!(
            all.tasks(AUTHORITY, now()),
            BTreeSet::from([task.clone(), other.clone()]).into_iter().collect::<Vec<_>>()
        );
        assert!(!on_list(&all, &one) && all.concerns(&task) && all.any(AUTHORITY));
        all.note(AUTHORITY, &HashMap::from([(task.clone(), (State::Revoked, now()))]));
        assert!(on_list(&all, &one) && !on_list(&all, &two));
        // A store that forgot the end takes it from no list.
        assert_eq!(all.tasks(AUTHORITY, now()), [other]);
        all.note(AUTHORITY, &HashMap::new());
        assert!(on_list(&all, &one));
        let _ = all.tasks(AUTHORITY, until);
        assert!(on_list(&all, &one));
        let _ = all.tasks(AUTHORITY, until + KEPT);
        assert!(!on_list(&all, &one) && !all.any(AUTHORITY) && !all.concerns(&task));
    }

    #[test]
    fn certificates_of_a_task_are_capped() {
        let (all, task) = (Certificates::default(), TaskId::root(now()).unwrap());
        let until = now() + TimeDelta::seconds(300);
        let serials: Vec<_> = (0..MOST_OF_A_TASK).map(|_| serial()).collect();
        for serial in &serials {
            all.admit(AUTHORITY, serial, &task, until).unwrap();
        }
        let more = || all.admit(AUTHORITY, &serial(), &task, until + TimeDelta::hours(1));
        assert!(matches!(more(), Err(Error::QuotaExceeded(_))));
        all.admit(AUTHORITY, &serial(), &TaskId::root(now()).unwrap(), until).unwrap();
        all.withdraw(AUTHORITY, &serials[0]);
        more().unwrap();
        assert!(matches!(more(), Err(Error::QuotaExceeded(_))));
        let _ = all.tasks(AUTHORITY, until + KEPT);
        more().unwrap();
    }

    #[test]
    fn what_is_recalled_counts_once() {
        let (all, task, one) = (Certificates::default(), TaskId::root(now()).unwrap(), serial());
        let until = now() + TimeDelta::seconds(300);
        all.admit(AUTHORITY, &one, &task, until).unwrap();
        all.recall(AUTHORITY, one.clone(), task.clone(), until);
        all.withdraw(AUTHORITY, &one);
        assert!(!all.any(AUTHORITY));
        all.recall(AUTHORITY, one, task.clone(), until);
        assert_eq!(all.tasks(AUTHORITY, now()), [task]);
    }
}
