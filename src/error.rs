//! The one error of the broker, free of any transport. `http/error.rs` maps it, exhaustively, to what a caller sees;
//! `tests/golden/errors.txt` is that table.
//!
//! What a variant carries is fit to be shown: causes that would help an attacker are logged where they happen.

use serde::Serialize;

use crate::task::AccessDetail;

/// Why a request was not carried out. Grouped by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller sent something that can never work. Says what.
    #[error("{detail}")]
    InvalidRequest {
        /// Which part of the request.
        part: Part,
        /// What to change, in a sentence.
        detail: String,
    },
    /// The evidence is missing, malformed, expired, not for this broker or from nobody it trusts; or the caller's
    /// credential is none that the broker knows.
    #[error("the evidence was not accepted")]
    EvidenceInvalid,
    /// The caller is known, and may not.
    #[error("{detail}")]
    PolicyDenied {
        /// Which line was crossed.
        limit: Limit,
        /// What was refused, and by which policies (none: nothing permits it).
        denied: Vec<Denied>,
        /// What it was, in a sentence.
        detail: String,
    },
    /// A lock keeps it out.
    #[error("locked out")]
    Locked,
    /// Unknown, or not the caller's.
    #[error("no such {0}")]
    NotFound(Sought),
    /// The task has ended or is not approved.
    #[error("the task is not active")]
    TaskNotActive,
    /// The same `Idempotency-Key` with another body.
    #[error("this Idempotency-Key was used with another request")]
    IdempotencyKeyReused,
    /// Another report has this number already, or one of long ago.
    #[error(
        "report {0} is on record, and was another one or is too long ago to be compared: a report keeps its `sequence`, and a new \
         one has the next"
    )]
    SequenceReused(u32),
    /// Too much of it.
    #[error("{0}")]
    QuotaExceeded(&'static str),
    /// Something that the answer depends on is out of reach or in doubt. No credential left; a revoke may or may not have been
    /// recorded.
    #[error("{0} is out of reach or in doubt; try again")]
    Unavailable(Input),
    /// A proof of possession is missing, does not fit or was used before; says which.
    #[error("the DPoP proof is not accepted: {0}")]
    ProofInvalid(&'static str),
    /// A proof has to carry a nonce that the broker gave out a moment ago.
    #[error("the DPoP proof needs the nonce that stands in the header DPoP-Nonce")]
    ProofNonce,
}

/// What was asked for that there is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sought {
    /// A credential.
    Credential,
    /// A signing key.
    Key,
    /// A lock.
    Lock,
    /// A receiver of signals.
    Receiver,
    /// A task.
    Task,
}

impl std::fmt::Display for Sought {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Sought::Credential => "credential",
            Sought::Key => "key",
            Sought::Lock => "lock",
            Sought::Receiver => "receiver",
            Sought::Task => "task",
        })
    }
}

/// Which part of a request is malformed; only OAuth tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `authorization_details`.
    AuthorizationDetails,
    /// `grant_type`.
    GrantType,
    /// Anything else.
    Request,
    /// `scope`.
    Scope,
    /// `resource`.
    Target,
}

/// Which line a refused request would have crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// No service has the location as its audience.
    Audience,
    /// The location is not in the task.
    Location,
    /// A policy forbids it or none permits it.
    Policy,
    /// The privilege is not in the task.
    Privilege,
    /// The caller's role.
    Role,
}

/// What an answer depends on; `/readyz` names the one that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(as = BrokerInput))]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// The audit log.
    Audit,
    /// The keys of an issuer of evidence.
    Issuer,
    /// The broker's own journal of revocations.
    Journal,
    /// The signing keys.
    Keys,
    /// The policy engine.
    Policy,
    /// The lease store.
    Store,
}

impl std::fmt::Display for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Input::Audit => "the audit log",
            Input::Journal => "the journal of revocations",
            Input::Issuer => "the keys of the evidence's issuer",
            Input::Keys => "the signing key",
            Input::Policy => "the policy engine",
            Input::Store => "the lease store",
        })
    }
}

/// One piece of a request that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
pub struct Denied {
    /// What was asked: one location, one privilege.
    #[serde(flatten)]
    pub detail: AccessDetail,
    /// The `@id` of the policies that forbade it; empty where none permitted it.
    pub policies: Vec<String>,
}

impl Error {
    /// A malformed request; `detail` says what to change and never repeats the input.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::InvalidRequest { part: Part::Request, detail: detail.into() }
    }
}
