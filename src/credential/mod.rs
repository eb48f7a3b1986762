//! `Permit` → [`Draft`] → [`Credential`]. A draft knows its id and its expiry and has a lease; only a draft can be signed,
//! and only a permit makes one.

mod authority;
mod constraints;
mod csr;
mod imported;
mod issuers;
mod keyring;
mod leaked;
mod lint;
mod published;
mod server;
mod tainted;
mod upstream;
mod x509;

pub use authority::{Authority, RevocationList};
pub use csr::RequestedKey;
pub use imported::{Imported, ImportedKey};
pub use keyring::{AuthorityTerms, Keyring, Replaced};
pub use leaked::LeakedKeys;
pub use server::{ServerCertificate, ServerDraft};
pub use upstream::{AuthorityList, UpstreamFiles, UpstreamSeen};
pub use x509::{Certificate, CertificateBounds, CertificateDraft};

use secrecy::SecretString;

use crate::{
    claims::{Claims, Confirmation, Status, TaskClaim},
    clock::{Time, after},
    error::{Error, Input},
    id::LeaseId,
    jose::{Invalid, SigningAlgorithm},
    lease::{Lease, Use},
    policy::Permit,
    task::{CredentialType, Privilege, StatusIndex, Task},
};

/// A credential's lifetime where nobody asks for another, in seconds.
pub const DEFAULT_TTL: u32 = 300;
/// The longest lifetime of a credential where no policy says less, in seconds.
pub const MAX_TTL: u32 = 3600;

/// A credential that is decided, bounded and leased, but not signed.
#[derive(Debug)]
pub struct Draft {
    permit: Permit,
    lease: Lease,
    deadline: Time,
    algorithm: SigningAlgorithm,
}

/// What bounds a credential besides the permit.
#[derive(Debug)]
pub struct Bounds<'a> {
    /// The task it is for.
    pub task: &'a Task,
    /// The deadline of the task as it stands.
    pub deadline: Time,
    /// When the evidence behind it ends.
    pub evidence: Option<Time>,
    /// The lifetime that was asked for, in seconds.
    pub ttl: Option<u32>,
    /// The form.
    pub form: CredentialType,
    /// The key that it is to be bound to.
    pub bound_to: Option<Confirmation>,
    /// What it is to be signed with.
    pub algorithm: SigningAlgorithm,
}

impl Draft {
    /// Chooses id and expiry: `exp` is at most the task's deadline, the policy's bound and the evidence's end.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a `ttl` above policy; [`Error::TaskNotActive`] or [`Error::EvidenceInvalid`] where
    /// nothing is left of the task or the evidence.
    pub fn prepare(permit: Permit, bounds: &Bounds<'_>, now: Time) -> Result<Self, Error> {
        let task = bounds.task;
        let most = longest(permit.max_ttl(), task);
        let expires_at = expiry(most, bounds.ttl, bounds.deadline, bounds.evidence, now)?;
        let lease = Lease {
            id: LeaseId::random().map_err(|_| Error::Unavailable(Input::Store))?,
            task: task.id.clone(),
            resource: permit.location().clone(),
            privilege: permit.privilege(),
            kind: bounds.form,
            issued_at: crate::clock::whole_second(now),
            expires_at,
            bound_to: bounds.bound_to.clone(),
            status: None,
        };
        Ok(Self { permit, lease, deadline: bounds.deadline, algorithm: bounds.algorithm })
    }

    /// A draft for a lease that exists: a retry gets the same credential, if policy still permits it.
    ///
    /// # Errors
    /// [`Error::TaskNotActive`] when the lease has ended, outlives what policy allows by now, or the permit is for something else.
    pub fn again(
        permit: Permit,
        lease: Lease,
        deadline: Time,
        algorithm: SigningAlgorithm,
        now: Time,
    ) -> Result<Self, Error> {
        let same = permit.location() == &lease.resource && permit.privilege() == lease.privilege;
        let bound = after(now, permit.max_ttl().unwrap_or(MAX_TTL)).is_some_and(|bound| lease.expires_at <= bound);
        if same && bound && lease.expires_at > now {
            Ok(Self { permit, lease, deadline, algorithm })
        } else {
            Err(Error::TaskNotActive)
        }
    }

    /// Its lease, to be written before it is signed.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Gives it a place in the status lists of its own, instead of its task's.
    #[must_use]
    pub fn at(mut self, place: StatusIndex) -> Self {
        self.lease.status = Some(place);
        self
    }

    /// The policies that permitted it.
    #[must_use]
    pub fn policies(&self) -> &[String] {
        self.permit.policies()
    }

    /// What it is to be signed with.
    #[must_use]
    pub fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// Signs it with the key of its kind, and is gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it could not be signed.
    pub fn sign(self, task: &Task, issuer: &str, keys: &Keyring) -> Result<Credential, Error> {
        let form = self.lease.kind;
        let claims = Claims {
            iss: issuer.to_owned(),
            sub: match form {
                CredentialType::AccessToken => task.workload.clone(),
                CredentialType::Jwt => task.workload.of_task(&task.id),
            },
            client_id: task.workload.clone(),
            act: None,
            aud: self.lease.resource.clone(),
            exp: self.lease.expires_at.timestamp(),
            iat: self.lease.issued_at.timestamp(),
            nbf: self.lease.issued_at.timestamp(),
            jti: self.lease.id.clone(),
            scope: self.lease.privilege,
            authorization_details: self.permit.details().to_vec(),
            task: task_claim(task, self.deadline)?,
            status: Status::of(self.lease.status.unwrap_or(task.status), issuer),
            cnf: self.lease.bound_to.clone(),
        };
        let token = match (self.algorithm, form) {
            (SigningAlgorithm::ES256, _) => keys.sign(Use::from(form), form.typ(), claims.exp, &claims),
            (SigningAlgorithm::RS256, CredentialType::AccessToken) => {
                keys.sign_rs256(Use::from(form), form.typ(), claims.exp, &claims)
            }
            (SigningAlgorithm::RS256, CredentialType::Jwt) => Err(Invalid("no RSA key signs JWT-SVIDs")),
        };
        let token = token.map_err(|_| Error::Unavailable(Input::Keys))?;
        Ok(Credential { lease: self.lease, details: claims.authorization_details, token: token.into() })
    }
}

/// What every token says of its task, whose deadline is `deadline` by now.
///
/// # Errors
/// [`Error::Unavailable`] when its authority has no digest.
pub fn task_claim(task: &Task, deadline: Time) -> Result<TaskClaim, Error> {
    Ok(TaskClaim {
        id: task.id.clone(),
        owner: task.owner.clone(),
        sandbox: task.runs_in().map(str::to_owned),
        kind: task.kind,
        attestor: task.attestor.clone(),
        evidence_issuer: task.evidence_issuer.clone(),
        declared_at: task.created_at.timestamp(),
        generation: task.generation,
        authority_hash: task.authority.hash().map_err(|_| Error::Unavailable(Input::Store))?,
        expires_at: deadline.timestamp(),
    })
}

/// How long a credential of this task may live at most, in seconds, where policy says `most` now. Who is told of the task's end is told for
/// as long as was the longest when it was declared.
fn longest(most: Option<u32>, task: &Task) -> u32 {
    most.unwrap_or(MAX_TTL).min(task.credentials_live.unwrap_or(u32::MAX))
}

/// When a credential expires that may live for `most` seconds, and for which the workload asked for `ttl`.
fn expiry(most: u32, ttl: Option<u32>, deadline: Time, evidence: Option<Time>, now: Time) -> Result<Time, Error> {
    if ttl.is_some_and(|ttl| ttl > most) {
        return Err(Error::invalid(format!(
            "a credential may live at most {most} seconds here: ask for a `ttl` up to that"
        )));
    }
    let ttl = ttl.unwrap_or(DEFAULT_TTL).min(most);
    let mut expires_at = after(now, ttl).ok_or_else(|| Error::invalid("`ttl` is past the end of time"))?;
    expires_at = expires_at.min(deadline);
    if expires_at <= now {
        return Err(Error::TaskNotActive);
    }
    expires_at = expires_at.min(evidence.unwrap_or(expires_at));
    if expires_at <= now {
        return Err(Error::EvidenceInvalid);
    }
    Ok(expires_at)
}

/// After two thirds of a life.
fn renew_at(issued_at: Time, expires_at: Time) -> Time {
    crate::clock::whole_second(issued_at + (expires_at - issued_at) * 2 / 3)
}

/// A credential, to be handed to its workload and forgotten.
#[derive(Debug)]
pub struct Credential {
    /// The broker's record of it.
    pub lease: Lease,
    /// What it says it may do.
    pub details: Vec<crate::task::AccessDetail>,
    /// The signed token.
    pub token: SecretString,
}

impl Credential {
    /// When a holder should ask for the next one: after two thirds of the lifetime.
    #[must_use]
    pub fn renew_at(&self) -> Time {
        renew_at(self.lease.issued_at, self.lease.expires_at)
    }

    /// The privilege.
    #[must_use]
    pub fn privilege(&self) -> Privilege {
        self.lease.privilege
    }
}
