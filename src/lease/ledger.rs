//! The typed face of the store: seals what goes in, believes nothing that comes out before its seal was checked.

use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};

use super::{InDoubt, Lease, StoreKey, Tally};
use crate::{
    clock::Time,
    id::{LeaseId, TaskId},
    jose::PublicJwk,
    task::{End, Task},
};

/// The `[store]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `redis://`, `rediss://`, or `redb:PATH`.
    pub url: String,
    /// The file with the MAC key, the same on every broker.
    pub mac_key_file: PathBuf,
}

/// Leases, tasks and ends, over whichever store is configured. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {}

/// A task as it stands: what was declared, and the end that applies to it (its own or an ancestor's), if any.
#[derive(Debug, Clone)]
pub struct Held {
    /// What was declared.
    pub task: Arc<Task>,
    /// The end that applies.
    pub end: Option<End>,
}

/// What came of writing a task or leases.
#[derive(Debug)]
pub enum Written {
    /// It is written.
    Done,
    /// The task to be declared exists; nothing was written.
    Exists,
    /// The task or an ancestor has ended; nothing was written.
    Ended(End),
    /// The task or an ancestor is not in the store; nothing was written.
    Missing,
}

/// What an end came to.
#[derive(Debug)]
pub struct Stopped {
    /// The end that stands: the first one.
    pub end: End,
    /// The task, if the store has it.
    pub task: Option<Arc<Task>>,
    /// What it took with it.
    pub tally: Tally,
}

/// What a retry under the same `Idempotency-Key` finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// The id that the task has, or will have.
    pub task: TaskId,
    /// SHA-256 of the request's body.
    pub body: String,
}

/// What a public key is for; one kind is never accepted as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Access tokens: stands in `/jwks`.
    AccessToken,
    /// JWT-SVIDs: stands in `/spiffe/bundle`.
    JwtSvid,
}

/// A broker's public signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedKey {
    /// What it is for.
    pub purpose: Use,
    /// The key.
    pub jwk: PublicJwk,
}

impl Ledger {
    /// Connects, refuses a store that could forget or that belongs to brokers with another key, and writes or reads its marker.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub async fn open(_config: &Config, _key: StoreKey, _strict: bool) -> Result<Self, InDoubt> {
        Ok(Self {})
    }

    /// The generation of the store: every credential carries it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        0
    }

    /// Whether the store answers and is still the one that was opened.
    ///
    /// # Errors
    /// When it is not, or cannot be told.
    pub async fn check(&self) -> Result<(), InDoubt> {
        Ok(())
    }

    /// What was declared, from memory where it has been seen before: says nothing about an end.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn declared(&self, _id: &TaskId) -> Result<Option<Arc<Task>>, InDoubt> {
        Ok(None)
    }

    /// A task as it stands now.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn task(&self, _id: &TaskId) -> Result<Option<Held>, InDoubt> {
        Ok(None)
    }

    /// A page of all tasks, newest first, strictly older than `before`, and the cursor of the next page (`None` at the end).
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn tasks(&self, _before: Option<&TaskId>, _limit: usize) -> Result<(Vec<Held>, Option<TaskId>), InDoubt> {
        Ok((Vec::new(), None))
    }

    /// Writes a task and its first leases, all or nothing.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn declare(&self, _task: &Arc<Task>, _leases: &[Lease]) -> Result<Written, InDoubt> {
        Ok(Written::Missing)
    }

    /// Writes leases of a task, all or nothing, unless it or an ancestor has ended.
    ///
    /// # Errors
    /// When the store is in doubt, or the task's record is not the one that was decided on.
    pub async fn mint(&self, _task: &Arc<Task>, _leases: &[Lease]) -> Result<Written, InDoubt> {
        Ok(Written::Missing)
    }

    /// A lease that is alive as far as the store knows: it is there, so is its task, and nothing in the lineage has ended.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn live(&self, _task: &TaskId, _lease: &LeaseId) -> Result<Option<(Lease, Arc<Task>)>, InDoubt> {
        Ok(None)
    }

    /// A lease, whatever became of it or its task.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn leases(&self, _task: &TaskId, _leases: &[LeaseId]) -> Result<Vec<Option<Lease>>, InDoubt> {
        Ok(Vec::new())
    }

    /// Records an end. `None`: the store has no such task, and `unseen` did not allow for that.
    ///
    /// # Errors
    /// When the store is in doubt; it may or may not have been recorded.
    pub async fn end(&self, _end: &End, _keep_until: Time, _unseen: bool) -> Result<Option<Stopped>, InDoubt> {
        Ok(None)
    }

    /// Remembers what an `Idempotency-Key` (by its digest) stood for, and yields what it stands for: the first one.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn remember(
        &self,
        _digest: &str,
        remembered: Remembered,
        _keep_until: Time,
    ) -> Result<Remembered, InDoubt> {
        Ok(remembered)
    }

    /// Publishes a public key, for good.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn publish(&self, _key: &PublishedKey) -> Result<(), InDoubt> {
        Ok(())
    }

    /// The keys of all brokers.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn keys(&self) -> Result<Vec<PublishedKey>, InDoubt> {
        Ok(Vec::new())
    }
}
