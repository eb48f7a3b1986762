//! Leases, looked for by their id alone: a lease stands under its task, and whoever has nothing but a `jti` or a serial does not
//! know which that is.

use super::{
    super::{CertificateLease, InDoubt, Key, Lease},
    Ledger,
};
use crate::id::{LeaseId, TaskId};

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
}
