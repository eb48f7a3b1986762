//! What this broker knows to have ended, in memory: the last look before a credential leaves.
//!
//! The store decides; this set closes the window between the store's answer and ours, on the broker that made the revoke.
//! The status lists, as this broker has seen them, stand beside it (`status_list.rs`), and so do the revoked certificates (`crl.rs`);
//! the journal and the feed will.

mod crl;
mod status_list;

pub use crl::{CRL_BACKDATED, CRL_INTERVAL, CRL_LIFE, Certificates, Crls, SignedCrl};
pub use status_list::{STATUS_LIST_LIFE, STATUS_LIST_TTL, Signed, StatusLists, View};

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::{clock::Time, id::TaskId};

/// Ends that this broker has seen. Entries go when no credential of the task can be alive any more.
#[derive(Debug, Default)]
pub struct EndSet(Mutex<HashMap<TaskId, Time>>);

impl EndSet {
    /// Remembers an end until `forget_at`, when nothing of the task can be alive.
    pub fn insert(&self, task: &TaskId, forget_at: Time, now: Time) {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.len().is_power_of_two() {
            ends.retain(|_, forget_at| *forget_at > now);
        }
        ends.insert(task.clone(), forget_at);
    }

    /// Whether the task or an ancestor is known to have ended.
    #[must_use]
    pub fn covers(&self, task: &TaskId) -> bool {
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !ends.is_empty() && task.lineage().any(|id| ends.contains_key(&id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_covers_the_subtree_and_nothing_beside_it() {
        let now = "2026-11-20T10:00:00Z".parse().unwrap();
        let root = TaskId::root(now).unwrap();
        let (child, sibling) = (root.child().unwrap(), root.child().unwrap());
        let ends = EndSet::default();
        ends.insert(&child, now + chrono::TimeDelta::hours(1), now);
        assert!(ends.covers(&child) && ends.covers(&child.child().unwrap()));
        assert!(!ends.covers(&root) && !ends.covers(&sibling));
        ends.insert(&root, now + chrono::TimeDelta::hours(1), now);
        assert!(ends.covers(&sibling));
    }

    #[test]
    fn what_can_no_longer_matter_is_forgotten() {
        let now: Time = "2026-11-20T10:00:00Z".parse().unwrap();
        let ends = EndSet::default();
        for second in 0..100 {
            let at = now + chrono::TimeDelta::seconds(second);
            ends.insert(&TaskId::root(at).unwrap(), at, at);
        }
        assert!(ends.0.lock().unwrap().len() < 70);
    }
}
