//! `GET /v1/tasks/{id}/reach`: where the end of a task has arrived.

use axum::{Json as Answer, extract::State};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    error::Problem,
    extract::{Called, Id},
    openapi::{Refusals, callers, refused},
};
use crate::{
    broker::{self, Arrival, Broker, Revoked},
    clock::Time,
    id::TaskId,
    party::Act,
    task::State as TaskState,
};

/// Where the end of a task has arrived.
#[derive(Serialize, ToSchema)]
#[schema(as = TaskReach)]
pub(super) struct ReachAnswer {
    /// The task.
    task: TaskId,
    /// `active`, or how it ended; `revoking`: this broker holds it to be revoked, and tells the store as soon as that answers.
    state: ReachState,
    /// When every verifier that hears of revokes denies it, at the latest; null while it has not ended.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    effective_by: Option<Time>,
    /// Whether nothing of it is accepted anywhere any more: every line of `reach` is done.
    done: bool,
    /// By when each class of verifier denies it; empty while it has not ended.
    reach: Vec<Reach>,
}

/// How a task stands that may have ended.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReachState {
    /// It waits for somebody to approve it.
    PendingApproval,
    /// It has not ended.
    Active,
    /// Ended by its own instance.
    Completed,
    /// Ended by someone with the right to.
    Revoked,
    /// Its deadline has passed.
    Expired,
    /// In the journal of this broker, and not in the store yet.
    Revoking,
}

impl From<TaskState> for ReachState {
    fn from(state: TaskState) -> Self {
        match state {
            TaskState::PendingApproval => Self::PendingApproval,
            TaskState::Active => Self::Active,
            TaskState::Completed => Self::Completed,
            TaskState::Revoked => Self::Revoked,
            TaskState::Expired => Self::Expired,
        }
    }
}

/// By when a class of verifier denies what was revoked.
#[derive(Serialize, ToSchema)]
pub(super) struct Reach {
    /// `introspection`, `feed`, `status_list`, `crl`, or `jwks_only`: who knows nothing but the keys. Where receivers are told of it:
    /// `shared_signals`, and `sandbox` for those who take down the one that evidence bound the task to.
    class: &'static str,
    /// `feed`: how many of the verifiers that follow this broker, and say who they are, have said that they deny it. `shared_signals`,
    /// `sandbox`: how many receivers have it, or say that the sandbox is gone, as far as this broker told them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    acknowledged: Option<u64>,
    /// How many of them there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    of: Option<u64>,
    /// By then, at the latest; of receivers: when all that could be accepted has ended by itself.
    #[schema(value_type = String, format = DateTime)]
    by: Time,
    /// Whether all of them deny it by now: the time has come, or every one has said so. A sandbox is gone when that is said.
    done: bool,
}

impl From<broker::Reach> for Reach {
    fn from(broker::Reach { class, heard, by, done }: broker::Reach) -> Self {
        let (acknowledged, of) = heard.unzip();
        Self { class, acknowledged, of, by, done }
    }
}

/// Show where the end of a task has arrived.
///
/// Class by class: what is dead, and by when the rest is. For an operator, also of an id that was revoked before the broker saw it; for
/// whoever acts for the task's owner; and for its own instance.
#[utoipa::path(
    get, path = "/v1/tasks/{id}/reach", operation_id = "showReach", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    responses(
        (status = 200, description = "Where it has arrived", body = ReachAnswer),
        Refusals<{ refused::ACTING }>,
    ),
    security(("evidence" = []), ("operator" = []), ()),
    extensions(("x-remit-callers" = json!(callers(["workload"], Act::ShowReach)))),
)]
pub(super) async fn show(
    State(broker): State<Arc<Broker>>,
    Id(id): Id,
    called: Called,
) -> Result<Answer<ReachAnswer>, Problem> {
    let arrival = broker.reach(called.request, &id).await?;
    Ok(Answer(ReachAnswer::of(id, arrival)))
}

impl ReachAnswer {
    fn of(task: TaskId, arrival: Arrival) -> Self {
        match arrival {
            Arrival::Alive(state) => {
                Self { task, state: state.into(), effective_by: None, done: false, reach: Vec::new() }
            }
            Arrival::Expired(at) => {
                Self { task, state: ReachState::Expired, effective_by: Some(at), done: true, reach: Vec::new() }
            }
            Arrival::Ended(Revoked { state, effective_by, reach, .. }) => {
                let state = state.map_or(ReachState::Revoking, ReachState::from);
                let done = reach.iter().all(|reach| reach.done);
                let reach = reach.into_iter().map(Reach::from).collect();
                Self { task, state, effective_by: Some(effective_by), done, reach }
            }
        }
    }
}
