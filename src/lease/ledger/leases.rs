//! Leases by their ids: looked for where nobody knows the task (a lease stands under it, and whoever has nothing but a `jti` or a serial
//! does not know which that is), and recorded as dead, one by one.

use serde::{Deserialize, Serialize};

use super::{
    super::{CertificateLease, InDoubt, Key, Lease},
    LEASE_KEPT, Ledger, kept, short,
};
use crate::{
    clock::Time,
    id::{LeaseId, TaskId},
    notice::Notice,
    task::StatusIndex,
};

/// How many leases are asked about at a time.
const PAGE: usize = 512;

/// The end of one credential, by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseEnd {
    /// The task that it belongs to, which goes on.
    pub task: TaskId,
    /// Its `jti` or serial.
    pub lease: LeaseId,
    /// When.
    pub at: Time,
    /// The words of whoever ended it.
    pub reason: Option<String>,
    /// Who ended it.
    pub by: String,
}

/// When something was seen to be recorded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    at: Time,
}

/// The lease of a token or of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyLease {
    /// Of a token.
    Token(Lease),
    /// Of a certificate.
    Certificate(CertificateLease),
}

impl AnyLease {
    /// The task it belongs to.
    #[must_use]
    pub fn task(&self) -> &TaskId {
        match self {
            Self::Token(lease) => &lease.task,
            Self::Certificate(lease) => &lease.task,
        }
    }

    /// When it ends, a whole second.
    #[must_use]
    pub fn expires_at(&self) -> Time {
        match self {
            Self::Token(lease) => lease.expires_at,
            Self::Certificate(lease) => lease.expires_at,
        }
    }

    /// Its own place in the status lists, if it has one.
    #[must_use]
    pub fn place(&self) -> Option<StatusIndex> {
        match self {
            Self::Token(lease) => lease.status,
            Self::Certificate(_) => None,
        }
    }
}

impl Ledger {
    /// The lease with this id, if one of these tasks has it. A record that is not to be believed is none, and logged.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn lease_of(&self, id: &LeaseId, tasks: &[TaskId]) -> Result<Option<AnyLease>, InDoubt> {
        let keys: Vec<_> = tasks.iter().map(|task| Key::Lease(task.clone(), id.clone())).collect();
        if keys.is_empty() {
            return Ok(None);
        }
        let records = self.0.store.read(&keys).await?;
        for (key, record) in keys.iter().zip(records) {
            let Some(record) = record else { continue };
            let opened = if id.is_serial() {
                self.0.sealer.open_if_current(key, &record).map(|lease| lease.map(AnyLease::Certificate))
            } else {
                self.0.sealer.open_if_current(key, &record).map(|lease| lease.map(AnyLease::Token))
            };
            match opened {
                Ok(Some(lease)) => return Ok(Some(lease)),
                Ok(None) => {}
                Err(why) => tracing::error!(lease = %id, %why, "left out of a search"),
            }
        }
        Ok(None)
    }

    /// Records that a credential is dead, which expires at `until`, tells all brokers, and yields the end that stands, which is the first, and
    /// when that was first seen to be recorded: no look that starts after it finds the credential alive.
    ///
    /// # Errors
    /// When the store is in doubt; it may or may not have been recorded.
    pub async fn end_lease(
        &self,
        end: &LeaseEnd,
        until: Time,
        log: Option<&Notice>,
    ) -> Result<(LeaseEnd, Time), InDoubt> {
        let (task, lease, keep_until) = (end.task.clone(), end.lease.clone(), kept(until, LEASE_KEPT));
        let key = Key::LeaseEnd(task.clone(), lease.clone());
        let standing = self.0.store.bury(&key, &self.0.sealer.seal(&key, end)?, keep_until).await?;
        // It is dead, whatever stands there.
        let end = self.0.sealer.open_of_any_generation(&key, &standing).unwrap_or_else(|why| {
            tracing::error!(%lease, %why, "another record says that it is dead");
            end.clone()
        });
        if let Some(notice) = log {
            self.log_notice(notice).await?;
        }
        let key = Key::LeaseEndSeen(task, lease);
        let seen = self.0.sealer.seal(&key, &Seen { at: self.0.clock.now() })?;
        let standing = self.0.store.bury(&key, &seen, keep_until).await?;
        let Seen { at } = self.0.sealer.open_of_any_generation(&key, &standing)?;
        let effective_at = at.max(end.at);
        Ok((end, effective_at))
    }

    /// Which of these credentials the store holds no end of. What stands there and is not to be believed is none.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn leases_not_ended(&self, leases: &[(TaskId, LeaseId)]) -> Result<Vec<LeaseId>, InDoubt> {
        let mut missing = Vec::new();
        for leases in leases.chunks(PAGE) {
            let keys: Vec<_> = leases.iter().map(|(task, id)| Key::LeaseEnd(task.clone(), id.clone())).collect();
            let records = self.0.store.read(&keys).await?;
            if records.len() != keys.len() {
                return Err(short());
            }
            for ((key, record), (_, lease)) in keys.iter().zip(records).zip(leases) {
                let end = record.map(|record| self.0.sealer.open_of_any_generation::<LeaseEnd>(key, &record));
                if end.is_none_or(|end| end.is_err()) {
                    missing.push(lease.clone());
                }
            }
        }
        Ok(missing)
    }

    /// Whether nothing is to be believed because this credential of a task says so: it is dead by itself, or the key `kid` is tainted that
    /// it is signed with.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn is_barred(&self, task: &TaskId, lease: &LeaseId, kid: &str) -> Result<bool, InDoubt> {
        let keys = [Key::Taint(kid.to_owned()), Key::LeaseEnd(task.clone(), lease.clone())];
        // Whatever it says, there is one.
        Ok(self.read(keys).await?.iter().any(Option::is_some))
    }
}
