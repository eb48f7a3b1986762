//! The steps of the store as functions over one transaction: what the scripts are to Redis.

use ::redb::{ReadableTable, StorageError, Table, TableDefinition, TableError, WriteTransaction};

use chrono::DateTime;
use std::ops::RangeInclusive;

use super::super::{
    Amending, Claim, Ended, Ending, Index, Key, Mint, Minted, Renewed, Renewing, Sealed, Standing,
    TIMELINE as MOST_TOLD, TIMELINE_FIRST as FIRST_TOLD, Tally, Telling,
};
use crate::{
    clock::Time,
    id::TaskId,
    task::{STATUS_LIST_ENTRIES, StatusIndex},
};

/// Name → record.
pub(super) const RECORDS: TableDefinition<&str, &str> = TableDefinition::new("records");
/// Index and name; in order, so that a subtree is a range.
pub(super) const NAMES: TableDefinition<(u8, &str), ()> = TableDefinition::new("names");
/// What was counted of a task → tasks, credentials, latest expiry.
pub(super) const COUNTERS: TableDefinition<(u8, &str), (u64, u64, i64)> = TableDefinition::new("counters");
/// Number of a status list → its bits. Kept for good: a list is one bit for a task.
pub(super) const STATUS_LISTS: TableDefinition<u64, &[u8]> = TableDefinition::new("status-lists");
/// Root of a tree and a number that rises → what happened.
pub(super) const TIMELINES: TableDefinition<(&str, u64), &str> = TableDefinition::new("timelines");
/// A number that rises → the record of an end.
pub(super) const LOG: TableDefinition<u64, &str> = TableDefinition::new("log");
/// When something may be collected (Unix seconds), what sort of thing it is, its name.
const EXPIRY: TableDefinition<(i64, u8, &str), ()> = TableDefinition::new("expiry");

/// What was minted for a task, kept and collected with its record.
const MINTED: u8 = 0;
/// What an end took with it, kept and collected with its record.
const ENDED: u8 = 1;
/// When an end was seen to be recorded (Unix milliseconds, in the last place), kept and collected with its record.
const SEEN: u8 = 2;

/// How many tasks were counted for the status lists, in the first place, under an empty name; kept for good.
const COUNTED: u8 = 3;

/// The number that the next record of a timeline gets, in the first place, and until when it is kept, in the last.
const TOLD: u8 = 4;

/// What [`EXPIRY`] names: a record alone, a task (record, renewal, name, counter), an end (record, counters), a name of a certificate,
/// a timeline (records, counter), a record of the log of ends, a name of a token that has a place in the status lists.
const RECORD: u8 = 0;
const TASK: u8 = 1;
const END: u8 = 2;
const CERTIFICATE: u8 = 3;
const TIMELINE: u8 = 4;
const LOGGED: u8 = 5;
const PLACED: u8 = 6;

/// Where the timeline of a tree stands.
pub(super) fn timeline(root: &str) -> RangeInclusive<(&str, u64)> {
    (root, 0)..=(root, u64::MAX)
}

/// The number of an index in [`NAMES`]; the one after it is free, as the end of its range.
pub(super) fn tag(index: Index) -> u8 {
    match index {
        Index::Tasks => 0,
        Index::Keys => 2,
        Index::Certificates => 4,
        Index::Taints => 6,
        Index::Placed => 8,
    }
}

/// The tables, open for writing.
pub(super) struct Tables<'t> {
    records: Table<'t, &'static str, &'static str>,
    names: Table<'t, (u8, &'static str), ()>,
    counters: Table<'t, (u8, &'static str), (u64, u64, i64)>,
    expiry: Table<'t, (i64, u8, &'static str), ()>,
    status_lists: Table<'t, u64, &'static [u8]>,
    timelines: Table<'t, (&'static str, u64), &'static str>,
    log: Table<'t, u64, &'static str>,
}

/// A status list as it stands, in a transaction that may be a reader's.
pub(super) fn standing(
    counters: &impl ReadableTable<(u8, &'static str), (u64, u64, i64)>,
    status_lists: &impl ReadableTable<u64, &'static [u8]>,
    list: u64,
) -> Result<Standing, StorageError> {
    let tasks = counters.get((COUNTED, ""))?.map_or(0, |counter| counter.value().0);
    let octets = status_lists.get(list)?.map(|octets| octets.value().to_vec()).unwrap_or_default();
    Ok(Standing { tasks, octets })
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            names: transaction.open_table(NAMES)?,
            counters: transaction.open_table(COUNTERS)?,
            expiry: transaction.open_table(EXPIRY)?,
            status_lists: transaction.open_table(STATUS_LISTS)?,
            timelines: transaction.open_table(TIMELINES)?,
            log: transaction.open_table(LOG)?,
        })
    }

    /// Adds a record to the log of ends.
    pub(super) fn log(&mut self, record: &Sealed, keep_until: Time) -> Result<(), StorageError> {
        let place = self.log.last()?.map_or(0, |(last, _)| last.value()) + 1;
        self.log.insert(place, record.0.as_str())?;
        self.expiry.insert((keep_until.timestamp(), LOGGED, place.to_string().as_str()), ())?;
        Ok(())
    }

    /// Writes a record unless there is one, and yields the one that stands.
    pub(super) fn claim(&mut self, claim: &Claim) -> Result<String, StorageError> {
        let name = claim.key.name();
        if let Some(standing) = self.record(&name)? {
            return Ok(standing);
        }
        if let Some((index, listed)) = &claim.index {
            self.names.insert((tag(*index), listed.as_str()), ())?;
        }
        self.records.insert(name.as_str(), claim.record.0.as_str())?;
        if let Some(until) = claim.keep_until {
            self.expiry.insert((until.timestamp(), RECORD, name.as_str()), ())?;
        }
        Ok(claim.record.0.clone())
    }

    /// Writes leases, and the task itself where it is being declared, unless the lineage has ended or is not whole.
    pub(super) fn mint(&mut self, mint: &Mint) -> Result<Minted, StorageError> {
        if let Some((_, end)) = self.nearest_end(&mint.id)? {
            return Ok(Minted::Ended(end));
        }
        let mut lineage = Vec::new();
        for id in mint.id.lineage() {
            let record = self.record(&Key::Task(id.clone()).name())?;
            match (record, &mint.task) {
                (Some(_), Some(_)) if id == mint.id => return Ok(Minted::Exists),
                (None, Some(declared)) if id == mint.id => lineage.push(declared.0.clone()),
                (Some(record), _) => lineage.push(record),
                (None, _) => return Ok(Minted::Missing),
            }
        }
        if let Some(declared) = &mint.task {
            self.records.insert(Key::Task(mint.id.clone()).name().as_str(), declared.0.as_str())?;
            self.names.insert((tag(Index::Tasks), mint.id.as_str()), ())?;
            self.expiry.insert((mint.keep_task_until.timestamp(), TASK, mint.id.as_str()), ())?;
        }
        for (lease, record, keep_until) in &mint.leases {
            let name = Key::Lease(mint.id.clone(), lease.clone()).name();
            self.records.insert(name.as_str(), record.0.as_str())?;
            self.expiry.insert((keep_until.timestamp(), RECORD, name.as_str()), ())?;
        }
        for (index, name, keep_until) in &mint.listed {
            let kind = if *index == Index::Placed { PLACED } else { CERTIFICATE };
            self.names.insert((tag(*index), name.as_str()), ())?;
            self.expiry.insert((keep_until.timestamp(), kind, name.as_str()), ())?;
        }
        if !mint.leases.is_empty() {
            let tally = self.counter(MINTED, mint.id.as_str())?;
            let credentials = tally.credentials.saturating_add(mint.leases.len() as u64);
            let latest = tally.latest_expiry.max(mint.latest_expiry);
            self.counters.insert((MINTED, mint.id.as_str()), (0, credentials, latest))?;
        }
        Ok(Minted::Written { lineage, locks: self.record(&Key::LocksChanged.name())? })
    }

    /// Replaces the renewal of a task, unless the lineage has ended or is not whole, or another renewal came first.
    pub(super) fn renew(&mut self, renewing: &Renewing) -> Result<Renewed, StorageError> {
        let Renewing { id, before, record, kept_until, keep_until } = renewing;
        if let Some((_, end)) = self.nearest_end(id)? {
            return Ok(Renewed::Ended(end));
        }
        for id in id.lineage() {
            if self.record(&Key::Task(id).name())?.is_none() {
                return Ok(Renewed::Missing);
            }
        }
        let name = Key::Renewal(id.clone()).name();
        if self.record(&name)? != *before {
            return Ok(Renewed::Changed);
        }
        self.records.insert(name.as_str(), record.0.as_str())?;
        self.expiry.remove((kept_until.timestamp(), TASK, id.as_str()))?;
        self.expiry.insert((keep_until.timestamp(), TASK, id.as_str()), ())?;
        Ok(Renewed::Written(self.record(&Key::LocksChanged.name())?))
    }

    /// Replaces a record, unless another stands there than was read.
    pub(super) fn amend(&mut self, amending: &Amending) -> Result<bool, StorageError> {
        let Amending { key, before, record, keep_until, urgent: _ } = amending;
        let name = key.name();
        if self.record(&name)? != *before {
            return Ok(false);
        }
        self.records.insert(name.as_str(), record.0.as_str())?;
        if let Some(keep_until) = keep_until {
            self.expiry.insert((keep_until.timestamp(), RECORD, name.as_str()), ())?;
        }
        Ok(true)
    }

    /// Records an end, unless the task or an ancestor has one, and counts what that took with it.
    pub(super) fn end(&mut self, end: &Ending) -> Result<Option<Ended>, StorageError> {
        if let Some(status) = end.status {
            self.mark(status)?;
        }
        let task = self.record(&Key::Task(end.id.clone()).name())?;
        let renewal = self.record(&Key::Renewal(end.id.clone()).name())?;
        if let Some((id, standing)) = self.nearest_end(&end.id)? {
            return Ok(Some(Ended { end: standing, task, renewal, tally: self.counter(ENDED, id.as_str())? }));
        }
        if task.is_none() && !end.unseen {
            return Ok(None);
        }
        let tally = self.subtree(&end.id)?;
        self.records.insert(Key::End(end.id.clone()).name().as_str(), end.end.0.as_str())?;
        let counted = (tally.ended_tasks, tally.credentials, tally.latest_expiry);
        self.counters.insert((ENDED, end.id.as_str()), counted)?;
        self.expiry.insert((end.keep_until.timestamp(), END, end.id.as_str()), ())?;
        Ok(Some(Ended { end: end.end.0.clone(), task, renewal, tally }))
    }

    /// Notes when the end of a task was seen to be recorded, unless that was noted before, and yields the instant that stands.
    pub(super) fn confirm(&mut self, id: &TaskId, at: Time) -> Result<Time, StorageError> {
        let noted = self.counters.get((SEEN, id.as_str()))?.map(|counter| counter.value().2);
        if let Some(noted) = noted.and_then(DateTime::from_timestamp_millis) {
            return Ok(noted);
        }
        // Beside an end that is gone there would be nothing to collect it with.
        if self.record(&Key::End(id.clone()).name())?.is_some() {
            self.counters.insert((SEEN, id.as_str()), (0, 0, at.timestamp_millis()))?;
        }
        Ok(at)
    }

    /// Counts tasks that are to be declared, and yields how many were counted before.
    pub(super) fn count_tasks(&mut self, more: u64) -> Result<u64, StorageError> {
        let before = self.counters.get((COUNTED, ""))?.map_or(0, |counter| counter.value().0);
        self.counters.insert((COUNTED, ""), (before.saturating_add(more), 0, 0))?;
        Ok(before)
    }

    /// Adds records to the timeline of a tree, and drops what is above what one holds between the first ones and the newest.
    pub(super) fn tell(&mut self, Telling { tree, records, keep_until }: &Telling) -> Result<(), StorageError> {
        let (root, keep) = (tree.root_str(), keep_until.timestamp());
        let (mut next, _, kept) = self.counters.get((TOLD, root))?.map(|told| told.value()).unwrap_or_default();
        for record in records {
            self.timelines.insert((root, next), record.0.as_str())?;
            next = next.saturating_add(1);
        }
        let (first, newest) = (FIRST_TOLD as u64, next.saturating_sub((MOST_TOLD - FIRST_TOLD) as u64));
        if newest > first {
            self.timelines.retain_in((root, first)..(root, newest), |_, _| false)?;
        }
        self.expiry.remove((kept, TIMELINE, root))?;
        self.expiry.insert((keep, TIMELINE, root), ())?;
        self.counters.insert((TOLD, root), (next, 0, keep))?;
        Ok(())
    }

    /// Sets the bit of a task.
    fn mark(&mut self, StatusIndex { list, index }: StatusIndex) -> Result<(), StorageError> {
        let mut octets = self.status_lists.get(list)?.map(|octets| octets.value().to_vec()).unwrap_or_default();
        octets.resize(octets.len().max(STATUS_LIST_ENTRIES as usize / 8), 0);
        if let Some(octet) = octets.get_mut(index as usize / 8) {
            *octet |= 1 << (index % 8);
        }
        self.status_lists.insert(list, octets.as_slice())?;
        Ok(())
    }

    /// Removes up to `most` things whose time to be kept has passed.
    pub(super) fn collect(&mut self, now: Time, most: usize) -> Result<(), StorageError> {
        let mut due = Vec::new();
        for entry in self.expiry.range(..(now.timestamp(), RECORD, ""))?.take(most) {
            let entry = entry?.0;
            let (at, kind, name) = entry.value();
            due.push((at, kind, name.to_owned()));
        }
        for (at, kind, name) in due {
            self.expiry.remove((at, kind, name.as_str()))?;
            match (kind, name.parse::<TaskId>()) {
                (TASK, Ok(id)) => {
                    self.records.remove(Key::Task(id.clone()).name().as_str())?;
                    self.records.remove(Key::Renewal(id).name().as_str())?;
                    self.names.remove((tag(Index::Tasks), name.as_str()))?;
                    self.counters.remove((MINTED, name.as_str()))?;
                }
                (END, Ok(id)) => {
                    self.records.remove(Key::End(id).name().as_str())?;
                    self.counters.remove((ENDED, name.as_str()))?;
                    self.counters.remove((SEEN, name.as_str()))?;
                }
                (TIMELINE, _) => {
                    self.timelines.retain_in(timeline(&name), |_, _| false)?;
                    self.counters.remove((TOLD, name.as_str()))?;
                }
                (LOGGED, _) => {
                    if let Ok(place) = name.parse::<u64>() {
                        self.log.remove(place)?;
                    }
                }
                (CERTIFICATE, _) => drop(self.names.remove((tag(Index::Certificates), name.as_str()))?),
                (PLACED, _) => drop(self.names.remove((tag(Index::Placed), name.as_str()))?),
                _ => {
                    self.records.remove(name.as_str())?;
                }
            }
        }
        Ok(())
    }

    fn record(&self, name: &str) -> Result<Option<String>, StorageError> {
        Ok(self.records.get(name)?.map(|record| record.value().to_owned()))
    }

    fn counter(&self, kind: u8, id: &str) -> Result<Tally, StorageError> {
        let counted = self.counters.get((kind, id))?.map(|counter| counter.value());
        let (ended_tasks, credentials, latest_expiry) = counted.unwrap_or_default();
        Ok(Tally { ended_tasks, credentials, latest_expiry })
    }

    /// The nearest end is the first that was recorded: nothing below an end can end again.
    fn nearest_end(&self, id: &TaskId) -> Result<Option<(TaskId, String)>, StorageError> {
        let mut nearest = None;
        for id in id.lineage() {
            if let Some(end) = self.record(&Key::End(id.clone()).name())? {
                nearest = Some((id, end));
            }
        }
        Ok(nearest)
    }

    /// What an end of `id` takes with it now.
    fn subtree(&self, id: &TaskId) -> Result<Tally, StorageError> {
        let mut tally = Tally::default();
        for entry in self.names.range((tag(Index::Tasks), id.as_str())..)? {
            let entry = entry?.0;
            let Ok(member) = entry.value().1.parse::<TaskId>() else { break };
            if !id.covers(&member) {
                break;
            }
            let minted = self.counter(MINTED, member.as_str())?;
            tally.credentials = tally.credentials.saturating_add(minted.credentials);
            tally.latest_expiry = tally.latest_expiry.max(minted.latest_expiry);
            tally.ended_tasks += u64::from(self.nearest_end(&member)?.is_none());
        }
        Ok(tally)
    }
}

#[cfg(test)]
impl Tables<'_> {
    pub(super) fn tamper(&mut self, name: &str, record: Option<&str>) -> Result<(), StorageError> {
        match record {
            Some(record) => drop(self.records.insert(name, record)?),
            None => drop(self.records.remove(name)?),
        }
        Ok(())
    }

    /// Makes every counter of a task the largest there is.
    pub(super) fn inflate(&mut self, id: &str) -> Result<(), StorageError> {
        for kind in [MINTED, ENDED, SEEN] {
            self.counters.insert((kind, id), (u64::MAX, u64::MAX, i64::MAX))?;
        }
        Ok(())
    }
}
