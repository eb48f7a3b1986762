//! Tokens of this broker that have a place of their own in the status lists: so many of a task that its end is told in one go, and
//! remembered here, so that no store that forgets them keeps them alive in the lists of this broker.

use chrono::TimeDelta;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{clock::Time, error::Error, id::TaskId, task::StatusIndex};

/// How many tokens of a task may be valid at a time that have a place of their own, or have been until a moment ago.
const MOST_OF_A_TASK: usize = 256;
/// How long a token counts after its end: for clocks that are behind.
const KEPT: TimeDelta = TimeDelta::seconds(60);

/// The places of tokens, by task, and until when each matters.
#[derive(Debug, Default)]
pub struct Placed(Mutex<BTreeMap<TaskId, Vec<(StatusIndex, Time)>>>);

impl Placed {
    /// Whether so many more of a task find room at `now`.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`].
    pub fn room(&self, task: &TaskId, more: usize, now: Time) -> Result<(), Error> {
        room(self.lock().get(task), more, now)
    }

    /// Takes in the places of tokens, before they are minted.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`]: none of them was taken in.
    pub fn admit(&self, task: &TaskId, places: &[(StatusIndex, Time)], now: Time) -> Result<(), Error> {
        let mut all = self.lock();
        room(all.get(task), places.len(), now)?;
        if !all.contains_key(task) && all.len().is_power_of_two() {
            all.retain(|_, of_task| of_task.iter().any(|(_, until)| matters(*until, now)));
        }
        let of_task = all.entry(task.clone()).or_default();
        of_task.retain(|(_, until)| matters(*until, now));
        of_task.extend_from_slice(places);
        Ok(())
    }

    /// The places of the tokens of a task, and of those below it.
    #[must_use]
    pub fn of(&self, ended: &TaskId) -> Vec<StatusIndex> {
        let all = self.lock();
        let subtree = all.range(ended..).take_while(|(task, _)| ended.covers(task));
        subtree.flat_map(|(_, places)| places.iter().map(|(place, _)| *place)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Vec<(StatusIndex, Time)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn matters(until: Time, now: Time) -> bool {
    until + KEPT > now
}

fn room(of_task: Option<&Vec<(StatusIndex, Time)>>, more: usize, now: Time) -> Result<(), Error> {
    let held = of_task.map_or(0, |places| places.iter().filter(|(_, until)| matters(*until, now)).count());
    if held + more <= MOST_OF_A_TASK {
        return Ok(());
    }
    Err(Error::QuotaExceeded(
        "256 tokens of this task are valid that have a place of their own in the status lists: wait until some have expired",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_task_are_capped_and_those_of_its_tree_found() {
        let now: Time = "2026-11-20T10:00:00Z".parse().unwrap();
        let (all, root) = (Placed::default(), TaskId::root(now).unwrap());
        let (child, other) = (root.child().unwrap(), TaskId::root(now).unwrap());
        let place = |index| (StatusIndex { list: 0, index }, now + TimeDelta::seconds(300));
        let most = u32::try_from(MOST_OF_A_TASK).unwrap();
        let many: Vec<_> = (0..most).map(place).collect();
        all.admit(&root, &many[1..], now).unwrap();
        assert!(matches!(all.admit(&root, &many[..2], now), Err(Error::QuotaExceeded(_))));
        all.admit(&root, &many[..1], now).unwrap();
        assert!(all.room(&root, 1, now).is_err() && all.room(&child, MOST_OF_A_TASK, now).is_ok());
        all.admit(&child, &[place(7000)], now).unwrap();
        all.admit(&other, &[place(8000)], now).unwrap();
        assert_eq!(all.of(&root).len(), MOST_OF_A_TASK + 1);
        assert_eq!(all.of(&child), [place(7000).0]);
        assert!(all.of(&TaskId::root(now).unwrap()).is_empty());
        // What is over makes room, a minute later.
        let over = now + TimeDelta::seconds(300);
        assert!(all.room(&root, 1, over).is_err() && all.room(&root, MOST_OF_A_TASK, over + KEPT).is_ok());
    }
}
