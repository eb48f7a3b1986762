//! A task: the unit of work that credentials are minted for, and that a revoke ends.

mod authority;
mod declaration;
#[cfg(feature = "broker")]
mod report;
mod status;
mod workload;

pub use authority::{AccessDetail, Authority, Privilege};
pub use declaration::{Context, CredentialRequest, CredentialType, Declaration};
#[cfg(feature = "broker")]
pub(crate) use declaration::{check_requests, check_text, check_ttl};
#[cfg(feature = "broker")]
pub use report::{Account, Gap, Origin, Report, ReportKind, ReportTerms, Reporter, Reporting, digest};
pub use status::{STATUS_LIST_ENTRIES, StatusIndex};
pub use workload::{Kind, Mark};

use serde::{Deserialize, Serialize};

use crate::{
    clock::Time,
    error::Denied,
    id::{LeaseId, SpiffeId, TaskId},
};

/// What a task was declared to be and what it was granted. Immutable: an end and a renewal are records of their own ([`End`],
/// [`Renewal`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Who declared it: the workload and which one of it.
    pub workload: SpiffeId,
    /// Which instance of the workload; no other may use the task.
    pub instance: String,
    /// The kind of the workload.
    pub kind: Kind,
    /// The name of the attestor that vouched.
    pub attestor: String,
    /// The issuer of the evidence, where it has one.
    pub evidence_issuer: Option<String>,
    /// What attestation could not pin down.
    pub marks: Vec<Mark>,
    /// The words of the declaration.
    pub purpose: String,
    /// The accountable owner.
    pub owner: String,
    /// Declared environment.
    pub environment: Option<String>,
    /// Declared sandbox.
    pub sandbox: Option<String>,
    /// The sandbox that evidence bound it to: this one may be taken down when the task ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_sandbox: Option<String>,
    /// Declared data classification.
    pub data_classification: Option<String>,
    /// Declared context.
    pub context: Context,
    /// What was granted.
    pub authority: Authority,
    /// What was asked and refused (`partial`).
    pub denied: Vec<Denied>,
    /// The policies that permitted it.
    pub policies: Vec<String>,
    /// The leases minted by the declaration itself, for a retry under the same `Idempotency-Key`.
    pub leases: Vec<LeaseId>,
    /// Where its status stands in public, for all its tokens.
    pub status: StatusIndex,
    /// The generation it belongs to.
    pub generation: u64,
    /// When it was declared.
    pub created_at: Time,
    /// Its deadline where nobody renews it, a whole second.
    pub expires_at: Time,
    /// The deadline that no renewal passes, whatever policy says by then, and so the end of all its credentials; `None`: nobody said so when
    /// it was declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lives_until: Option<Time>,
    /// How long a credential of it may live at most, in seconds, whatever policy says by then; `None`: nobody said so when it was declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_live: Option<u32>,
}

impl Task {
    /// The sandbox that it runs in, for whoever is told and for every lock: the one that evidence bound it to, and only where none did, the
    /// declared one.
    #[must_use]
    pub fn runs_in(&self) -> Option<&str> {
        self.bound_sandbox.as_deref().or(self.sandbox.as_deref())
    }
}

/// The state of a task. The last three are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(as = TaskState))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for an approver.
    PendingApproval,
    /// Credentials can be minted.
    Active,
    /// Ended by its own instance.
    Completed,
    /// Ended by someone with the right to.
    Revoked,
    /// Its deadline passed.
    Expired,
}

/// The latest extension of a task's deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// The task.
    pub task: TaskId,
    /// When.
    pub at: Time,
    /// Its deadline now, a whole second.
    pub expires_at: Time,
}

/// The end of a task and of everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The task that ended.
    pub task: TaskId,
    /// How: [`State::Completed`] or [`State::Revoked`].
    pub state: State,
    /// When.
    pub at: Time,
    /// The words of whoever ended it.
    pub reason: Option<String>,
    /// Who ended it.
    pub by: String,
}

impl State {
    /// The state at `now` of a task with this deadline, given the end that applies to it (its own or an ancestor's), if any.
    #[must_use]
    pub fn of(end: Option<&End>, expires_at: Time, now: Time) -> Self {
        match end {
            Some(end) if end.at < expires_at => end.state,
            None if now < expires_at => State::Active,
            _ => State::Expired,
        }
    }
}
