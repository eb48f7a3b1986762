//! The places of tasks in the status lists, and what stands there.
//!
//! The store counts the tasks; which place in its list a task gets is a permutation under the store's key, the same on every
//! broker. So no place is given twice, and a place tells nobody who was declared before or after whom.

use std::{ops::Range, time::Duration};

use super::{
    super::{InDoubt, Standing, record::Sealer},
    Ledger,
};
use crate::task::{STATUS_LIST_ENTRIES, StatusIndex};

/// How many numbers a broker takes at a time, so that a declaration seldom has to. Those that are left at its end are lost.
const BLOCK: u64 = 64;
/// How many lists a generation has: those of a later one are others.
const LISTS: u64 = 1 << 32;
/// How long a declaration waits for others that are taking some.
const PATIENCE: Duration = Duration::from_secs(5);

/// The numbers that were taken from the store and are not given to a task yet.
#[derive(Debug, Default)]
pub(super) struct Taken(tokio::sync::Mutex<Range<u64>>);

impl Ledger {
    /// A place in a status list that no other task has.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn status_index(&self) -> Result<StatusIndex, InDoubt> {
        let slow = |_| InDoubt("the store took too long to give out places in a status list".into());
        let mut taken = tokio::time::timeout(PATIENCE, self.0.taken.0.lock()).await.map_err(slow)?;
        if taken.is_empty() {
            *taken = self.take(taken.end).await?;
        }
        let number = taken.next().ok_or_else(|| InDoubt("the store gave out no place in a status list".into()))?;
        let number = first_of(self.generation()).and_then(|first| first.checked_add(number)).ok_or_else(spent)?;
        Ok(place(&self.0.sealer, number))
    }

    /// The next numbers. A counter that went back, by an edit or a failover, is pushed past what this broker has had.
    async fn take(&self, had: u64) -> Result<Range<u64>, InDoubt> {
        let mut count = BLOCK;
        for _ in 0..3 {
            let first = self.0.store.count_tasks(count).await?;
            let end = first.checked_add(count).ok_or_else(spent)?;
            if end > had {
                return Ok(first.max(had)..end);
            }
            count = (had - end).checked_add(BLOCK).ok_or_else(spent)?;
        }
        Err(InDoubt("someone else sets the counter of the status lists back".into()))
    }

    /// A status list as it stands.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn status_list(&self, list: u64) -> Result<StatusBits, InDoubt> {
        let Standing { tasks, mut octets } = self.0.store.status_list(list).await?;
        let whole = STATUS_LIST_ENTRIES as usize / 8;
        let generation = list / LISTS + 1;
        let begun = list % LISTS < tasks.div_ceil(u64::from(STATUS_LIST_ENTRIES)) && generation <= self.generation();
        if begun && generation < self.generation() {
            // All that has a place in it is dead.
            return Ok(StatusBits { begun, octets: vec![0xff; whole] });
        }
        if octets.len() > whole {
            return Err(InDoubt("a status list is longer than any broker writes one".into()));
        }
        octets.resize(whole, 0);
        Ok(StatusBits { begun, octets })
    }
}

/// What stands in a status list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusBits {
    /// Whether any task has a place in it.
    pub begun: bool,
    /// All its bits, the lowest bit of an octet first.
    pub octets: Vec<u8>,
}

/// The number of the first place of a generation.
fn first_of(generation: u64) -> Option<u64> {
    generation.saturating_sub(1).checked_mul(LISTS)?.checked_mul(u64::from(STATUS_LIST_ENTRIES))
}

fn spent() -> InDoubt {
    InDoubt("the counter of the status lists is at its end".into())
}

/// The place of the task with this number: a Feistel network over the two octets of its place in the list, with as many rounds as
/// NIST SP 800-38G has for domains as small.
fn place(sealer: &Sealer, number: u64) -> StatusIndex {
    let entries = u64::from(STATUS_LIST_ENTRIES);
    let list = number / entries;
    let [.., mut left, mut right] = (number % entries).to_be_bytes();
    for round in 0..10 {
        let mut input = [0; 10];
        input[..8].copy_from_slice(&list.to_be_bytes());
        input[8..].copy_from_slice(&[round, right]);
        (left, right) = (right, left ^ sealer.derive("remit status index", &input)[0]);
    }
    StatusIndex { list, index: u32::from(u16::from_be_bytes([left, right])) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::StoreKey;

    fn sealer(key: u8) -> Sealer {
        Sealer::new(&StoreKey::for_test(key), 1, "2026-11-20T10:00:00Z".parse().unwrap())
    }

    #[test]
    fn every_place_of_a_list_is_given_once() {
        let (sealer, entries) = (sealer(7), u64::from(STATUS_LIST_ENTRIES));
        for list in [0, 3] {
            let mut given = vec![false; STATUS_LIST_ENTRIES as usize];
            for number in list * entries..(list + 1) * entries {
                let place = place(&sealer, number);
                assert_eq!(place.list, list);
                assert!(!std::mem::replace(&mut given[place.index as usize], true), "{place:?} twice");
            }
        }
    }

    #[test]
    fn a_place_says_nothing_about_its_neighbours() {
        let places: Vec<u32> = (0..64).map(|number| place(&sealer(7), number).index).collect();
        let near = places.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 64).count();
        assert!(near < 4, "{places:?}");
        let again: Vec<u32> = (0..64).map(|number| place(&sealer(7), number).index).collect();
        assert_eq!(again, places, "the same on every broker");
        let same = (0..64).zip(&places).filter(|(number, at)| place(&sealer(8), *number).index == **at).count();
        assert!(same < 3, "under another key it is another one");
        let next = u64::from(STATUS_LIST_ENTRIES);
        let same = (0..64).zip(&places).filter(|(number, at)| place(&sealer(7), next + number).index == **at).count();
        assert!(same < 3, "in another list it is another one");
    }
}
