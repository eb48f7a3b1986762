//! The places in the status lists that are not those of the task that ended: of the tasks below it, and of tokens that have one of their own.
//!
//! What names them is an index, which carries no MAC; where one stands says its sealed lease alone. So nothing that is written into the
//! index can set a bit that is another's.

use std::ops::Range;

use super::{
    super::{InDoubt, Index, Key, Lease, ledger::certificate_ends},
    LEASE_KEPT, Ledger, kept, short,
};
use crate::{
    clock::Time,
    id::{LeaseId, TaskId},
    task::StatusIndex,
};

/// How many leases, or names, are asked for at a time, and how many names first: most tasks have few.
const PAGE: usize = 512;
const FIRST_PAGE: usize = 32;

/// Where a lease is listed, by what name and until when, if its token has a place of its own.
pub(super) fn listing(lease: &Lease) -> Option<(Index, String, Time)> {
    lease.status?;
    let Lease { id, task, expires_at, .. } = lease;
    Some((Index::Placed, format!("{task}:{}:{id}", certificate_ends(*expires_at)), kept(*expires_at, LEASE_KEPT)))
}

/// The names of the tokens of a task that end before `time`, from the first on and before the last.
pub(in crate::lease) fn placed_of(name: &str, time: Time) -> Option<Range<String>> {
    let (task, _) = parse(name)?;
    Some(format!("{task}:")..format!("{task}:{}", certificate_ends(time)))
}

fn parse(name: &str) -> Option<(TaskId, LeaseId)> {
    let mut parts = name.split(':');
    let (task, _, lease) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((task, lease))
}

impl Ledger {
    /// Whether any token has a place of its own, of whatever task.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn any_placed(&self) -> Result<bool, InDoubt> {
        Ok(!self.0.store.list(Index::Placed, None, 1).await?.is_empty())
    }

    /// The tokens of a task, and of those below it, that have a place of their own.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn placed(&self, task: &TaskId) -> Result<Vec<(TaskId, LeaseId)>, InDoubt> {
        // The id of a task is as long as that of any other of its depth, and what goes on after it sorts before `;`.
        let (mut placed, mut before, mut page) = (Vec::new(), format!("{task};"), FIRST_PAGE);
        loop {
            let names = self.0.store.list(Index::Placed, Some(&before), page).await?;
            let is_last = names.len() < page;
            for name in &names {
                if !name.starts_with(task.as_str()) {
                    return Ok(placed);
                }
                match parse(name) {
                    Some(token) if task.covers(&token.0) => placed.push(token),
                    _ => tracing::error!("the index of places in status lists holds a name that no broker wrote"),
                }
            }
            match names.into_iter().next_back() {
                Some(last) if !is_last => (before, page) = (last, PAGE),
                _ => return Ok(placed),
            }
        }
    }

    /// Where the tasks below this one stand. A record that is not to be believed names no place, and is logged.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn places_below(&self, task: &TaskId) -> Result<Vec<StatusIndex>, InDoubt> {
        let (mut places, mut before, mut page) = (Vec::new(), format!("{task};"), FIRST_PAGE);
        loop {
            let names = self.0.store.list(Index::Tasks, Some(&before), page).await?;
            let is_last = names.len() < page || names.last().is_none_or(|last| last.as_str() <= task.as_str());
            let below = |id: &TaskId| task.covers(id) && id != task;
            let ids: Vec<TaskId> = names.iter().filter_map(|name| name.parse().ok()).filter(below).collect();
            let keys: Vec<Key> = ids.iter().cloned().map(Key::Task).collect();
            let records = self.0.store.read(&keys).await?;
            if records.len() != keys.len() {
                return Err(short());
            }
            for (id, record) in ids.iter().zip(records) {
                let Some(record) = record else { continue };
                match self.believe(id, &record) {
                    Ok(below) => places.extend(below.map(|below| below.status)),
                    Err(why) => {
                        tracing::error!(%why, task = %id, "whoever goes by status lists does not hear of its end");
                    }
                }
            }
            match names.into_iter().next_back() {
                Some(last) if !is_last => (before, page) = (last, PAGE),
                _ => return Ok(places),
            }
        }
    }

    /// Where these tokens stand, those of them that have a place of their own. A record that is not to be believed names none, and is logged.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn places(&self, tokens: &[(TaskId, LeaseId)]) -> Result<Vec<StatusIndex>, InDoubt> {
        let mut places = Vec::new();
        for tokens in tokens.chunks(PAGE) {
            let keys: Vec<_> = tokens.iter().map(|(task, lease)| Key::Lease(task.clone(), lease.clone())).collect();
            let records = self.0.store.read(&keys).await?;
            if records.len() != keys.len() {
                return Err(short());
            }
            for (key, record) in keys.iter().zip(records) {
                let Some(record) = record else { continue };
                match self.0.sealer.open_if_current::<Lease>(key, &record) {
                    Ok(lease) => places.extend(lease.and_then(|lease| lease.status)),
                    Err(why) => tracing::error!(%why, "whoever goes by status lists does not hear of it"),
                }
            }
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_tree_follow_each_other_and_are_swept_by_their_end() {
        let now: Time = "2026-11-20T10:00:00Z".parse().unwrap();
        let root = TaskId::root(now).unwrap();
        let (child, lease) = (root.child().unwrap(), LeaseId::random().unwrap());
        let name = |task: &TaskId| format!("{task}:{}:{lease}", certificate_ends(now));
        for task in [&root, &child] {
            assert!(name(task).starts_with(root.as_str()) && name(task) < format!("{root};"));
            assert_eq!(parse(&name(task)), Some((task.clone(), lease.clone())));
            let later = now + chrono::TimeDelta::seconds(1);
            let [swept, kept] = [later, now].map(|time| placed_of(&name(task), time).unwrap());
            assert!(swept.contains(&name(task)) && !kept.contains(&name(task)));
        }
        assert!(!placed_of(&name(&root), Time::MAX_UTC).unwrap().contains(&name(&child)));
        for junk in ["", ":", "x:1:y", &format!("{}:1", name(&root))] {
            assert!(parse(junk).is_none() && placed_of(junk, now).is_none(), "{junk}");
        }
    }
}
