//! How much is alive, for the metrics: a count in memory, of what went through this broker since it started. A number for
//! people; nothing is ever decided by it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use crate::{clock::Time, id::TaskId};

/// Below so many tasks nothing is cleared away.
const FEW: usize = 1024;

/// Tasks and credentials by the time they expire.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Tasks>);

#[derive(Debug, Default)]
struct Tasks {
    tasks: HashMap<TaskId, Counted>,
    /// At how many tasks the expired ones are cleared away again.
    clear_at: usize,
}

#[derive(Debug, Default)]
struct Counted {
    /// Where the task was declared here.
    deadline: Option<Time>,
    /// How many credentials expire when.
    credentials: BTreeMap<Time, u64>,
}

impl Counted {
    fn is_over(&self, now: Time) -> bool {
        self.deadline.is_none_or(|deadline| deadline <= now)
            && self.credentials.last_key_value().is_none_or(|(expiry, _)| *expiry <= now)
    }
}

impl Live {
    /// A task was declared here.
    pub(super) fn declared(&self, id: &TaskId, deadline: Time, now: Time) {
        self.change(id, now, |counted| counted.deadline = Some(deadline));
    }

    /// A task has another deadline. One that was declared at another broker is counted there.
    pub(super) fn renewed(&self, id: &TaskId, deadline: Time) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counted) = tasks.tasks.get_mut(id).filter(|counted| counted.deadline.is_some()) {
            counted.deadline = Some(deadline);
        }
    }

    /// Credentials of a task, by their expiries.
    pub(super) fn minted(&self, id: &TaskId, expiries: &[Time], now: Time) {
        if expiries.is_empty() {
            return;
        }
        self.change(id, now, |counted| {
            counted.credentials = counted.credentials.split_off(&now);
            for expiry in expiries {
                *counted.credentials.entry(*expiry).or_default() += 1;
            }
        });
    }

    /// Live tasks and live credentials at `now`, without what has `ended`.
    pub(super) fn count(&self, now: Time, ended: impl Fn(&TaskId) -> bool) -> (u64, u64) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.tasks.retain(|id, counted| !counted.is_over(now) && !ended(id));
        tasks.tasks.values().fold((0, 0), |(live, credentials), counted| {
            let alive = counted.deadline.is_some_and(|deadline| deadline > now);
            let unexpired = counted.credentials.iter().filter(|(expiry, _)| **expiry > now).map(|(_, number)| number);
            (live + u64::from(alive), credentials + unexpired.sum::<u64>())
        })
    }

    fn change(&self, id: &TaskId, now: Time, change: impl FnOnce(&mut Counted)) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody has to scrape for what is over to be forgotten; a clearing pays for as many tasks as it leaves.
        if tasks.tasks.len() >= tasks.clear_at.max(FEW) {
            tasks.tasks.retain(|_, counted| !counted.is_over(now));
            tasks.clear_at = tasks.tasks.len() * 2;
        }
        change(tasks.tasks.entry(id.clone()).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    #[test]
    fn what_expired_or_ended_is_not_counted() {
        let now: Time = "2026-11-20T10:00:00Z".parse().unwrap();
        let later = |seconds| now + TimeDelta::seconds(seconds);
        let (live, none) = (Live::default(), |_: &TaskId| false);
        let (one, other) = (TaskId::root(now).unwrap(), TaskId::root(now).unwrap());
        live.declared(&one, later(60), now);
        live.minted(&one, &[later(10), later(20), later(20)], now);
        // Declared elsewhere: its credentials count here, the task does not.
        live.minted(&other, &[later(30)], now);
        live.renewed(&other, later(100));
        assert_eq!(live.count(now, none), (1, 4));
        assert_eq!(live.count(later(10), none), (1, 3));
        live.renewed(&one, later(90));
        assert_eq!(live.count(later(70), none), (1, 0));
        assert_eq!(live.count(later(70), |id| *id == one), (0, 0));
    }

    #[test]
    fn what_is_over_is_forgotten_though_nobody_scrapes() {
        let now: Time = "2026-11-20T10:00:00Z".parse().unwrap();
        let live = Live::default();
        for second in 0..10_000 {
            let at = now + TimeDelta::seconds(second);
            live.declared(&TaskId::root(at).unwrap(), at + TimeDelta::seconds(5), at);
        }
        assert!(live.0.lock().unwrap().tasks.len() <= 2 * FEW);
    }
}
