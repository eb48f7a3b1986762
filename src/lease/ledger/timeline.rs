//! What happened in a tree of tasks, on all brokers: copies of their audit records, for people who want to know soon.
//!
//! A timeline is no evidence. It is capped, to its beginning and what is newest, and whoever can write to the store can take from it; but nobody can add to it, and each
//! event names the audit record that it is a copy of and the one before it of the same tree and log, so that most gaps show.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    super::{InDoubt, Key, Telling},
    Ledger, kept,
};
use crate::{clock::Time, id::TaskId};

/// How long a timeline is kept after its last event: as long as a task that was declared or renewed then, and its record.
const TIMELINE_KEPT: TimeDelta = TimeDelta::hours(48);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineEvent {
    /// When.
    pub time: Time,
    /// In which task.
    pub task: TaskId,
    /// The audit log of the broker that tells it.
    pub log: String,
    /// The number of the audit record; `None`: there is none.
    pub sequence: Option<u64>,
    /// The number of the record before it that is told of the same tree from the same log; `None`: that broker does not know.
    pub after: Option<u64>,
    /// What it says: `event`, `actor`, and more.
    pub said: Map<String, Value>,
}

/// What happened, as far as it can be told.
#[derive(Debug, Default, PartialEq)]
pub struct Timeline {
    /// In order of time.
    pub events: Vec<TimelineEvent>,
    /// How many records there are that no broker wrote there.
    pub unverified: u64,
    /// Whether nothing is known to be missing.
    pub complete: bool,
}

impl Ledger {
    /// Adds to the timeline of a tree.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn tell(&self, tree: &TaskId, events: &[TimelineEvent]) -> Result<(), InDoubt> {
        let key = Key::Timeline(tree.clone());
        let records = events.iter().map(|event| self.0.sealer.seal(&key, event)).collect::<Result<Vec<_>, _>>()?;
        if records.is_empty() {
            return Ok(());
        }
        let keep_until = kept(self.0.clock.now(), TIMELINE_KEPT);
        self.0.store.tell(&Telling { tree: tree.clone(), records, keep_until }).await
    }

    /// What happened to a task and everything below it.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn timeline(&self, id: &TaskId) -> Result<Timeline, InDoubt> {
        let key = Key::Timeline(id.clone());
        let records = self.0.store.told(id).await?;
        let opened = records.iter().filter_map(|record| self.0.sealer.open::<TimelineEvent>(&key, record).ok());
        let mut events: Vec<_> = opened.collect();
        let unverified = (records.len() - events.len()) as u64;
        if unverified > 0 {
            tracing::error!(task = %id, unverified, "records that are not to be believed are left out of a timeline");
        }
        events.sort_by(|one, other| (&one.log, one.sequence).cmp(&(&other.log, other.sequence)));
        // A record that stands there twice is one: a broker that got no answer or was started again tells again, and others may have
        // put it back.
        events.dedup_by(|again, event| {
            let is_same = again.sequence.is_some() && (&again.log, again.sequence) == (&event.log, event.sequence);
            if is_same {
                event.after = event.after.max(again.after);
            }
            is_same || again == event
        });
        let declared = events.iter().any(|event| event.task == *id && event.is("task_declared"));
        let complete = unverified == 0 && declared && events.chunk_by(|one, other| one.log == other.log).all(is_whole);
        events.retain(|event| id.covers(&event.task));
        events.sort_by_key(|event| (event.time, event.sequence));
        Ok(Timeline { events, unverified, complete })
    }
}

impl TimelineEvent {
    fn is(&self, event: &str) -> bool {
        self.said.get("event").is_some_and(|said| said == event)
    }
}

/// Whether each of the events of one log, in order, comes right after the one before.
fn is_whole(events: &[TimelineEvent]) -> bool {
    let before = std::iter::once(None).chain(events.iter().map(|event| event.sequence));
    events.iter().zip(before).all(|(event, before)| event.sequence.is_some() && event.after == before)
}
