//! What has ended, as far as this broker knows: the last look before a credential leaves, and what survives a store that forgot.
//!
//! An end is in the broker's own journal (`journal.rs`) before the store is told, and in memory (`ends.rs`) before that. So it holds on
//! this broker whatever becomes of the store, and the store is told again of what it has lost. The status lists, as this broker has
//! seen them, stand beside it (`status_list.rs`), and so do the revoked certificates (`crl.rs`); the feed will.

mod crl;
mod ends;
mod journal;
mod status_list;

pub use crl::{CRL_BACKDATED, CRL_INTERVAL, CRL_LIFE, Certificates, Crls, SignedCrl};
pub use journal::Unjournaled;
pub use status_list::{STATUS_LIST_LIFE, STATUS_LIST_TTL, Signed, StatusLists, View};

use serde::Deserialize;
use std::{path::Path, sync::Arc, time::Instant};
use tokio::sync::Notify;

use crate::{
    clock::Time,
    id::{BrokerName, TaskId},
    task::{End, Ending},
};
use ends::Ends;
use journal::Journal;

/// The `[feed]` section: the revocation feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeedTerms {
    /// Whether whoever does not say who they are may read it.
    pub anonymous: bool,
}

impl Default for FeedTerms {
    fn default() -> Self {
        Self { anonymous: true }
    }
}

/// The ends that this broker knows of, and its journal of them.
#[derive(Debug)]
pub struct Revocations {
    ends: Arc<Ends>,
    journal: Journal,
    broker: BrokerName,
    /// From which number on it counts since it was started.
    since: u64,
    /// Told when there is something new for verifiers.
    news: Notify,
}

impl Revocations {
    /// Opens the journal in `dir`, and takes up what is in it.
    ///
    /// # Errors
    /// When it cannot be written, another broker has it open, or it is damaged elsewhere than at its end.
    pub fn open(dir: &Path) -> Result<Self, Unjournaled> {
        let (journal, recalled) = Journal::open(dir)?;
        let broker =
            recalled.broker.parse().map_err(|why| Unjournaled(format!("the journal of revocations: {why}")))?;
        let (ends, loaded) = (Arc::new(Ends::after(recalled.sequence)), Instant::now());
        for ending in recalled.endings {
            let task = ending.end.task.clone();
            ends.insert(ending, loaded);
            ends.journaled(&task);
            ends.number(&task);
        }
        let since = ends.last();
        Ok(Self { ends, journal, broker, since, news: Notify::new() })
    }

    /// The name of this broker in the feed: as long as its journal is.
    #[must_use]
    pub fn broker(&self) -> &BrokerName {
        &self.broker
    }

    /// Records an end, which holds here at once, and whatever happens once this returns. The one that was recorded first stands, and is
    /// the answer.
    ///
    /// # Errors
    /// When the journal did not take it.
    pub async fn record(&self, end: End, until: Time, unseen: bool) -> Result<Ending, Unjournaled> {
        let standing = self.ends.get(&end.task).map(|standing| standing.end);
        let end = standing.unwrap_or(end);
        let ending = Ending { end, until, broker: self.broker.to_string(), unseen };
        self.ends.insert(ending.clone(), Instant::now());
        self.journal.record(&ending).await?;
        self.ends.journaled(&ending.end.task);
        Ok(ending)
    }

    /// Takes in what another broker has ended, which is on disk here before verifiers are told.
    ///
    /// # Errors
    /// When the journal did not take it. It holds here all the same.
    pub async fn learn(&self, ending: Ending) -> Result<(), Unjournaled> {
        let task = ending.end.task.clone();
        self.ends.insert(ending.clone(), Instant::now());
        if !self.ends.is_journaled(&task) {
            self.journal.record(&ending).await?;
            self.ends.journaled(&task);
        }
        self.ends.logged(&task);
        self.tell(&task);
        Ok(())
    }

    /// Lets verifiers know of the end of a task.
    pub fn tell(&self, task: &TaskId) {
        if self.ends.number(task) {
            self.news.notify_one();
        }
    }

    /// Waits until there is something new for verifiers.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What verifiers are told of that is newer than `number`, up to `last`.
    #[must_use]
    pub fn told(&self, number: u64, last: u64) -> Vec<Ending> {
        self.ends.numbered(number, last)
    }

    /// The number of the last that verifiers are told of.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.ends.last()
    }

    /// From which number on verifiers know that this task has ended; `None` where they were not told.
    #[must_use]
    pub fn number_of(&self, task: &TaskId) -> Option<u64> {
        self.ends.number_of(task)
    }

    /// Whether this broker can tell what is newer than `number`.
    #[must_use]
    pub fn can_resume(&self, number: u64) -> bool {
        (self.since..=self.ends.last()).contains(&number)
    }

    /// The other brokers were told of the end of a task.
    pub fn logged(&self, task: &TaskId) {
        self.ends.logged(task);
    }

    /// Whether the other brokers were told of the end of a task.
    #[must_use]
    pub fn is_logged(&self, task: &TaskId) -> bool {
        self.ends.is_logged(task)
    }

    /// The other brokers may have lost all that they were told.
    pub fn none_logged(&self) {
        self.ends.none_logged();
    }

    /// What the other brokers may not know.
    #[must_use]
    pub fn unlogged(&self) -> Vec<Ending> {
        self.ends.unlogged()
    }

    /// Whether the task or an ancestor is known to have ended.
    #[must_use]
    pub fn covers(&self, task: &TaskId) -> bool {
        self.ends.covers(task)
    }

    /// All that is known to have ended.
    #[must_use]
    pub fn all(&self) -> Vec<Ending> {
        self.ends.all()
    }

    /// Forgets what can no longer matter, and lets the journal become shorter.
    pub fn tend(&self, now: Time) {
        if self.ends.forget(now, Instant::now()) > 0 {
            self.journal.compact(&self.ends);
        }
    }
}
