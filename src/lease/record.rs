//! Sealed records: version, generation, sequence, MAC, body.

use crate::id::{LeaseId, TaskId};

/// The broker's MAC key for the store.
pub struct StoreKey {}

/// A record as it stands in the store: text under a MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(pub(super) String);

/// Every key of the store, typed: no kind of record can be read as another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The end of a task.
    End(TaskId),
    /// What a retry under an `Idempotency-Key` finds: a digest of (workload, instance, key).
    Idempotency(String),
    /// A lease of a task.
    Lease(TaskId, LeaseId),
    /// The store's marker.
    Marker,
    /// A public signing key of a broker, by key id.
    SigningKey(String),
    /// A task.
    Task(TaskId),
}
