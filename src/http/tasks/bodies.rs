//! The bodies of `/v1/tasks`, asked and answered.

use axum::http::StatusCode;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::super::reach::Reach;
use crate::{
    broker::{self, Renewed, Revoked},
    claims::token_type,
    clock::Time,
    credential::Credential,
    error::{Denied, Error},
    id::{LeaseId, Location, SpiffeId, TaskId},
    lease::Held,
    task::{self, AccessDetail, Context, CredentialRequest, Kind, Mark, Privilege},
};

/// Which tasks a list holds; what is absent admits all.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ListQuery {
    /// `next_cursor` of the page before.
    pub(super) cursor: Option<TaskId>,
    /// How many tasks a page holds.
    #[param(minimum = 1, maximum = 200, default = 50)]
    pub(super) limit: Option<usize>,
    /// In this state.
    #[param(inline)]
    pub(super) state: Option<task::State>,
    /// Of this owner.
    pub(super) owner: Option<String>,
    /// Of this workload, by its SPIFFE ID.
    pub(super) workload: Option<String>,
    /// In this sandbox.
    pub(super) sandbox: Option<String>,
}

/// Credentials to mint: all of them or none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MintRequest)]
pub(in crate::http) struct MintBody {
    /// One object for each.
    #[schema(min_items = 1, max_items = 32)]
    pub(super) credentials: Vec<CredentialRequest>,
}

/// A later deadline.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RenewRequest)]
pub(in crate::http) struct RenewBody {
    /// Seconds from now to the deadline that is asked for; left out: as many as the task was declared for.
    #[schema(minimum = 1)]
    pub(super) ttl: Option<u32>,
}

/// The end of a task whose work is done.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CompleteRequest)]
pub(in crate::http) struct CompleteBody {
    /// How it ended, for whoever reads the record later.
    #[schema(min_length = 1, max_length = 1024)]
    pub(super) reason: Option<String>,
}

/// The end of a task, by whoever has the right to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RevokeRequest)]
pub(in crate::http) struct RevokeBody {
    /// Why, for whoever reads the record later.
    #[schema(value_type = String, min_length = 1, max_length = 1024)]
    pub(super) reason: Option<String>,
}

/// How long to wait for the answer.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct RevokeQuery {
    /// `effective`: until every verifier that holds a state of the feed has said that it denies the task, or `effective_by`.
    #[param(inline)]
    pub(super) wait: Option<Wait>,
}

/// What can be waited for.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum Wait {
    /// That the revoke, or the lock, is effective.
    Effective,
}

/// A task as it stands, without its tokens.
#[derive(Serialize, ToSchema)]
#[schema(as = Task)]
pub(in crate::http) struct Shown<'a> {
    /// Its id, which names its ancestors.
    task: &'a TaskId,
    /// Its state at the moment of the answer.
    state: task::State,
    /// Who declared it.
    workload: &'a SpiffeId,
    /// Which instance of the workload; no other may use the task.
    instance: &'a str,
    /// The kind of the workload, by the attestor's configuration.
    kind: Kind,
    /// The name of the attestor that vouched.
    attestor: &'a str,
    /// What attestation could not make certain.
    marks: &'a [Mark],
    /// Who is accountable.
    owner: &'a str,
    /// Whom to talk to about it, where an operator is shown the task and the configuration says so.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    owner_contacts: &'a [String],
    /// What it is for, in the words of the workload.
    purpose: &'a str,
    /// The declared environment.
    #[schema(required)]
    environment: Option<&'a str>,
    /// The sandbox: the one that evidence bound it to, else the declared one.
    #[schema(required)]
    sandbox: Option<&'a str>,
    /// The declared classification of the data.
    #[schema(required)]
    data_classification: Option<&'a str>,
    /// Where the work comes from, in the words of the workload.
    context: &'a Context,
    /// What was granted.
    authorization_details: &'a [AccessDetail],
    /// What was asked and refused (`partial`).
    denied: &'a [Denied],
    /// The policies that permitted it.
    policies: &'a [String],
    /// `sha-256:` and the base64url digest of the canonical JSON of what was granted.
    authority_hash: String,
    /// When it goes up, everything older is dead.
    generation: u64,
    /// When it was declared.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// Its deadline as it stands.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Time,
    #[serde(flatten)]
    #[schema(value_type = Ended)]
    end: Option<Ended<'a>>,
}

/// How a task ended: absent while it has not.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Ended<'a> {
    /// When it was completed or revoked, or its deadline where that was earlier.
    #[schema(value_type = String, format = DateTime, required = false)]
    ended_at: Time,
    /// The words of whoever ended it.
    reason: Option<&'a str>,
}

impl<'a> Shown<'a> {
    pub(in crate::http) fn of(held: &'a Held, now: Time) -> Result<Self, Error> {
        let task = &*held.task;
        let no_hash = |_| Error::invalid("the authority has no canonical form");
        let end = held.end.as_ref();
        Ok(Self {
            task: &task.id,
            state: held.state(now),
            workload: &task.workload,
            instance: &task.instance,
            kind: task.kind,
            attestor: &task.attestor,
            marks: &task.marks,
            owner: &task.owner,
            owner_contacts: &[],
            purpose: &task.purpose,
            environment: task.environment.as_deref(),
            sandbox: task.runs_in(),
            data_classification: task.data_classification.as_deref(),
            context: &task.context,
            authorization_details: task.authority.details(),
            denied: &task.denied,
            policies: &task.policies,
            authority_hash: task.authority.hash().map_err(no_hash)?,
            generation: task.generation,
            created_at: task.created_at,
            expires_at: held.expires_at,
            end: end.map(|end| Ended { ended_at: end.at.min(held.expires_at), reason: end.reason.as_deref() }),
        })
    }

    /// With whom to talk to about it.
    pub(in crate::http) fn with_contacts(self, owner_contacts: &'a [String]) -> Self {
        Self { owner_contacts, ..self }
    }
}

/// A credential, as its workload gets it.
#[derive(Serialize, ToSchema)]
#[schema(as = Credential)]
pub(in crate::http) struct Minted<'a> {
    /// The service that it is for: its `aud`.
    resource: &'a Location,
    /// What it is good for there.
    privilege: Privilege,
    /// The token.
    access_token: &'a str,
    /// How it is presented: `Bearer`; `DPoP` where it is bound to the key of the proof that came with the request; `N_A` for a
    /// JWT-SVID.
    token_type: &'static str,
    /// Its lease: the `jti` of the token.
    lease: &'a LeaseId,
    /// Its end.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Time,
    /// When to ask for the next one: after two thirds of its life.
    #[schema(value_type = String, format = DateTime)]
    renew_at: Time,
}

impl<'a> Minted<'a> {
    pub(super) fn of(credentials: &'a [Credential]) -> Vec<Self> {
        let of = |credential: &'a Credential| {
            let Credential { lease, token, .. } = credential;
            Self {
                resource: &lease.resource,
                privilege: lease.privilege,
                access_token: token.expose_secret(),
                token_type: token_type(lease.kind, lease.bound_to.as_ref()),
                lease: &lease.id,
                expires_at: lease.expires_at,
                renew_at: credential.renew_at(),
            }
        };
        credentials.iter().map(of).collect()
    }
}

/// The task token, for a workload that showed a key (`DPoP`).
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct TaskToken<'a> {
    /// Stands for the evidence on this task, as `Authorization: DPoP` with proofs of the same key, or as the subject of a token
    /// exchange.
    #[schema(required = false)]
    task_token: &'a str,
    /// Its end: renew the task before, and where the task goes on after it, with fresh evidence.
    #[schema(value_type = String, format = DateTime, required = false)]
    task_token_expires_at: Time,
}

impl<'a> TaskToken<'a> {
    pub(in crate::http) fn of(token: &'a broker::TaskToken) -> Self {
        Self { task_token: token.token.expose_secret(), task_token_expires_at: token.expires_at }
    }
}

/// A task that was declared, and its first credentials.
#[derive(Serialize, ToSchema)]
#[schema(as = DeclaredTask)]
pub(in crate::http) struct Declared<'a> {
    #[serde(flatten)]
    pub(super) task: Shown<'a>,
    #[serde(flatten)]
    #[schema(value_type = TaskToken)]
    pub(super) task_token: Option<TaskToken<'a>>,
    /// In the order they were asked for.
    pub(super) credentials: Vec<Minted<'a>>,
}

/// New credentials of a task.
#[derive(Serialize, ToSchema)]
#[schema(as = MintedCredentials)]
pub(in crate::http) struct MintAnswer<'a> {
    /// The task.
    pub(super) task: &'a TaskId,
    /// In the order they were asked for.
    pub(super) credentials: Vec<Minted<'a>>,
}

/// A task with a later deadline.
#[derive(Serialize, ToSchema)]
#[schema(as = RenewedTask)]
pub(in crate::http) struct RenewAnswer<'a> {
    #[serde(flatten)]
    task: Shown<'a>,
    #[serde(flatten)]
    #[schema(value_type = TaskToken)]
    task_token: Option<TaskToken<'a>>,
    /// When to renew it next: after two thirds of what is left.
    #[schema(value_type = String, format = DateTime)]
    renew_at: Time,
    /// The deadline that no renewal passes, as policy is now.
    #[schema(value_type = String, format = DateTime)]
    renewable_until: Time,
}

impl<'a> RenewAnswer<'a> {
    pub(super) fn of(renewed: &'a Renewed) -> Result<Self, Error> {
        let Renewed { held, task_token, renewable_until, renew_at, now } = renewed;
        let task_token = task_token.as_ref().map(TaskToken::of);
        Ok(Self { task: Shown::of(held, *now)?, task_token, renew_at: *renew_at, renewable_until: *renewable_until })
    }
}

/// A page of tasks, newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = TaskList)]
pub(in crate::http) struct TaskList<'a> {
    /// The tasks.
    pub(super) tasks: Vec<Shown<'a>>,
    /// `cursor` of the next page; null at the end.
    #[schema(required)]
    pub(super) next_cursor: Option<TaskId>,
}

/// What a revoke came to. A second one answers the same.
#[derive(Serialize, ToSchema)]
#[schema(as = Revocation)]
pub(in crate::http) struct RevokeAnswer {
    /// The task.
    task: TaskId,
    /// `revoked`, or how it had ended before; `revoking`: this broker holds it to be revoked, and tells the store as soon as that answers.
    state: RevokeState,
    /// Whether the broker had seen it.
    known: bool,
    /// How many tasks ended with it: itself and everything below that had not ended before.
    ended_tasks: u64,
    /// How many credentials were ever minted for them.
    credentials: u64,
    /// The generation.
    generation: u64,
    /// When every verifier that hears of revokes denies it: the latest of `reach` but `jwks_only`.
    #[schema(value_type = String, format = DateTime)]
    effective_by: Time,
    /// By when each class of verifier denies it.
    reach: Vec<Reach>,
}

impl RevokeAnswer {
    /// 202 where more than the broker has to be told (RFC 9110 section 15.3.3).
    pub(super) fn status(&self) -> StatusCode {
        match self.state {
            RevokeState::Revoking => StatusCode::ACCEPTED,
            RevokeState::Completed | RevokeState::Revoked | RevokeState::Expired => StatusCode::OK,
        }
    }
}

/// How a task stands after it was revoked.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum RevokeState {
    /// Ended by its own instance, before.
    Completed,
    /// Ended by someone with the right to.
    Revoked,
    /// Its deadline had passed.
    Expired,
    /// In the journal of this broker, and not in the store yet.
    Revoking,
}

impl From<Revoked> for RevokeAnswer {
    fn from(revoked: Revoked) -> Self {
        let Revoked { task, state, known, tally, generation, effective_by, reach } = revoked;
        let reach = reach.into_iter().map(Reach::from).collect();
        let (ended_tasks, credentials) = (tally.ended_tasks, tally.credentials);
        let state = match state {
            Some(task::State::Completed) => RevokeState::Completed,
            Some(task::State::Expired) => RevokeState::Expired,
            // What has just ended waits for nobody and is not active.
            Some(task::State::Revoked | task::State::Active | task::State::PendingApproval) => RevokeState::Revoked,
            None => RevokeState::Revoking,
        };
        Self { task, state, known, ended_tasks, credentials, generation, effective_by, reach }
    }
}
