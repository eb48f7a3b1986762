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
pub use ends::Ending;
pub use journal::Unjournaled;
pub use status_list::{STATUS_LIST_LIFE, STATUS_LIST_TTL, Signed, StatusLists, View};

use std::{path::Path, time::Instant};

use crate::{clock::Time, id::TaskId, task::End};
use ends::Ends;
use journal::Journal;

/// The ends that this broker knows of, and its journal of them.
#[derive(Debug)]
pub struct Revocations {
    ends: Ends,
    journal: Journal,
    broker: String,
}

impl Revocations {
    /// Opens the journal in `dir`, and takes up what is in it.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open(dir: &Path) -> Result<Self, Unjournaled> {
        let (journal, recalled) = Journal::open(dir)?;
        let (ends, loaded) = (Ends::default(), Instant::now());
        for ending in recalled.endings {
            ends.insert(ending, loaded);
        }
        Ok(Self { ends, journal, broker: recalled.broker })
    }

    /// Records an end, which holds here at once, and whatever happens once this returns. The one that was recorded first stands, and is
    /// the answer.
    ///
    /// # Errors
    /// When the journal did not take it.
    pub async fn record(&self, end: End, until: Time, unseen: bool) -> Result<End, Unjournaled> {
        let task = end.task.clone();
        let standing = self.ends.get(&task).map(|standing| standing.end);
        let end = standing.unwrap_or(end);
        let ending = Ending { end: end.clone(), until, broker: self.broker.clone(), unseen };
        self.ends.insert(ending.clone(), Instant::now());
        self.journal.record(&ending).await?;
        Ok(end)
    }

    /// When the last credential of a task that has ended is known to expire.
    pub fn matters_until(&self, end: &End, until: Time) {
        let broker = self.broker.clone();
        let known = self.ends.get(&end.task).map(|known| Ending { until, ..known });
        let ending = known.unwrap_or_else(|| Ending { end: end.clone(), until, broker, unseen: false });
        self.ends.insert(ending.clone(), Instant::now());
        self.journal.note(&ending);
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
            self.journal.compact(&self.ends.all());
        }
    }
}
