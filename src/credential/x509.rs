//! X.509-SVIDs: a certificate of a task, for a key that the workload holds. It says which workload and which task, and nothing of what
//! either may do; so it takes a permit for everything that the task was granted.

use chrono::TimeDelta;
use std::sync::Arc;

use super::{
    Authority, Keyring, RequestedKey,
    authority::{BACKDATED, Leaf, Whose},
    expiry, longest, renew_at,
};
use crate::{
    clock::{Time, whole_second},
    error::{Error, Input},
    id::{CrlId, LeaseId, SpiffeId},
    jose::Invalid,
    lease::CertificateLease,
    pem,
    policy::Permit,
    task::Task,
};

/// A certificate that is decided, bounded and leased, but not signed.
#[derive(Debug)]
pub struct CertificateDraft {
    lease: CertificateLease,
    key: RequestedKey,
    authority: Arc<Authority>,
    policies: Vec<String>,
    /// Whether it names a revocation list.
    listed: bool,
}

/// What bounds a certificate besides its permits.
#[derive(Debug)]
pub struct CertificateBounds<'a> {
    /// The task it is for.
    pub task: &'a Task,
    /// The deadline of the task as it stands.
    pub deadline: Time,
    /// When the evidence behind it ends.
    pub evidence: Option<Time>,
    /// The lifetime that was asked for, in seconds.
    pub ttl: Option<u32>,
    /// A certificate that lives no longer than that, in seconds, names no revocation list.
    pub unlisted: Option<u32>,
}

impl CertificateDraft {
    /// Chooses serial, authority and expiry: as a token's, by the strictest permit, and no later than the authority's own end.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a `ttl` above policy; [`Error::TaskNotActive`] or [`Error::EvidenceInvalid`] where
    /// nothing is left of the task or the evidence; [`Error::Unavailable`] where nothing is left of the authority, or no permit
    /// is there.
    pub fn prepare(
        permits: &[Permit],
        bounds: &CertificateBounds<'_>,
        key: RequestedKey,
        keys: &Keyring,
        now: Time,
    ) -> Result<Self, Error> {
        let most = permits.iter().filter_map(Permit::max_ttl).min();
        if permits.is_empty() {
            return Err(Error::Unavailable(Input::Policy));
        }
        let until = expiry(longest(most, bounds.task), bounds.ttl, bounds.deadline, bounds.evidence, now)?;
        let (authority, expires_at) = keys.authority(until).map_err(|_| Error::Unavailable(Input::Keys))?;
        if expires_at <= now {
            return Err(Error::Unavailable(Input::Keys));
        }
        let lease = CertificateLease {
            id: LeaseId::serial(bounds.task.generation).map_err(|_| Error::Unavailable(Input::Store))?,
            task: bounds.task.id.clone(),
            authority: authority.kid().to_owned(),
            key: key.digest(),
            issued_at: whole_second(now),
            expires_at,
        };
        let mut policies: Vec<_> = permits.iter().flat_map(Permit::policies).cloned().collect();
        policies.sort_unstable();
        policies.dedup();
        let lives = (lease.expires_at - lease.issued_at).num_seconds();
        let listed = bounds.unlisted.is_none_or(|bound| lives > i64::from(bound));
        Ok(Self { lease, key, authority, policies, listed })
    }

    /// Its lease, to be written before it is signed.
    #[must_use]
    pub fn lease(&self) -> &CertificateLease {
        &self.lease
    }

    /// The list that it is on once its task has ended, where it names one.
    #[must_use]
    pub fn crl(&self) -> Option<CrlId> {
        self.listed.then(|| CrlId::of(&self.lease.authority, &self.lease.id))
    }

    /// The policies that permitted it.
    #[must_use]
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// Signs it, and is gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it could not be signed.
    pub fn sign(self, task: &Task, issuer: &str) -> Result<Certificate, Error> {
        let crl = self.crl().map(|id| id.uri(issuer));
        let Self { lease, key, authority, .. } = self;
        let spiffe_id = task.workload.of_task(&task.id);
        let not_before = (lease.issued_at - TimeDelta::seconds(BACKDATED)).max(authority.not_before());
        let leaf = Leaf {
            serial: &lease.id.octets(),
            subject: &spiffe_id,
            key: &key,
            not_before,
            not_after: lease.expires_at,
            crl: crl.as_deref(),
            holder: Whose::Task,
        };
        let der = authority.issue(&leaf).map_err(|Invalid(why)| {
            tracing::error!(why, "a certificate was not signed");
            Error::Unavailable(Input::Keys)
        })?;
        let chain = std::iter::once(&der[..]).chain(authority.chain());
        let pem = chain.map(|one| pem::write("CERTIFICATE", one)).collect();
        Ok(Certificate { lease, spiffe_id, pem })
    }
}

/// A certificate, to be handed to its workload and forgotten.
#[derive(Debug)]
pub struct Certificate {
    /// The broker's record of it.
    pub lease: CertificateLease,
    /// Its one name.
    pub spiffe_id: SpiffeId,
    /// The certificate in PEM, and after it those up to one that is signed by an authority of the bundle, where it is not itself.
    pub pem: String,
}

impl Certificate {
    /// When a holder should ask for the next one: after two thirds of the lifetime.
    #[must_use]
    pub fn renew_at(&self) -> Time {
        renew_at(self.lease.issued_at, self.lease.expires_at)
    }
}
