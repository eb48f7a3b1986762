//! `POST /v1/leases/{id}/revoke`: one credential ends, and its task goes on.

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    error::Problem,
    extract::{Called, Json, Lease},
    openapi::{Refusals, callers, refused},
    reach::Reach,
};
use crate::{
    broker::{Broker, RevokedLease},
    clock::Time,
    error::Error,
    id::{LeaseId, TaskId},
    party::Act,
    task::check_text,
};

/// The end of one credential.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LeaseRevokeRequest)]
pub(super) struct RevokeBody {
    /// Why, for whoever reads the record later.
    #[schema(value_type = String, min_length = 1, max_length = 1024)]
    reason: Option<String>,
    /// The task that it is of, where that is known: else the newest 5000 tasks are looked through. Whoever acts with a task token names it.
    task: Option<TaskId>,
}

/// What revoking a credential came to. A second call answers the same.
#[derive(Serialize, ToSchema)]
#[schema(as = LeaseRevocation)]
pub(super) struct RevokeAnswer {
    /// Its `jti`, or its serial.
    lease: LeaseId,
    /// The task that it is of, which goes on.
    task: TaskId,
    /// `revoking`: this broker denies it, and tells the store as soon as that answers.
    state: LeaseState,
    /// Since when it is revoked.
    #[schema(value_type = String, format = DateTime)]
    revoked_at: Time,
    /// When it ends by itself, at the latest.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Time,
    /// When every verifier that hears of it denies it: the latest of `reach` but `jwks_only`.
    #[schema(value_type = String, format = DateTime)]
    effective_by: Time,
    /// By when each class of verifier denies it. A status list does not show it, because a task has one place there for all its tokens; nor
    /// do the keys: there it lives until it expires.
    reach: Vec<Reach>,
}

/// How a credential stands that was revoked.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LeaseState {
    /// On record in the store.
    Revoked,
    /// In the journal of this broker, and not in the store yet.
    Revoking,
}

impl From<RevokedLease> for RevokeAnswer {
    fn from(revoked: RevokedLease) -> Self {
        let RevokedLease { lease, task, is_recorded, at, expires_at, effective_by, reach } = revoked;
        let state = if is_recorded { LeaseState::Revoked } else { LeaseState::Revoking };
        let reach = reach.into_iter().map(Reach::from).collect();
        Self { lease, task, state, revoked_at: at, expires_at, effective_by, reach }
    }
}

/// Revoke one credential, and nothing else of its task.
///
/// For an operator with the role `responder`, for whoever acts for the task's owner, and for the instance that holds the task or one
/// above it. Idempotent: a second call returns the first one's instants.
#[utoipa::path(
    post, path = "/v1/leases/{id}/revoke", operation_id = "revokeLease", tag = "tasks",
    params(("id" = LeaseId, Path, description = "The `jti` of a token, or the serial of a certificate"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    request_body = RevokeBody,
    responses(
        (status = 200, description = "Revoked", body = RevokeAnswer),
        (status = 202, description = "The store is out of reach: recorded by this broker, which denies it at once and tells the store as soon as that answers",
            body = RevokeAnswer),
        Refusals<{ refused::KNOWN | refused::NO_CREDENTIAL | refused::QUOTA | refused::BODY }>,
    ),
    security(("evidence" = []), ("operator" = []), ()),
    extensions(("x-remit-callers" = json!(callers(["workload"], Act::Revoke)))),
)]
pub(super) async fn revoke(
    State(broker): State<Arc<Broker>>,
    Lease(lease): Lease,
    called: Called,
    Json { value: RevokeBody { reason, task }, .. }: Json<RevokeBody>,
) -> Result<Response, Problem> {
    let reason = reason.ok_or_else(|| Error::invalid("`reason` says why, for whoever reads the record later"))?;
    check_text("reason", Some(&reason), 1024)?;
    let revoked = broker.revoke_lease(called.request, &lease, task.as_ref(), reason).await?;
    // 202 where more than the broker has to be told (RFC 9110 section 15.3.3).
    let status = if revoked.is_recorded { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Answer(RevokeAnswer::from(revoked))).into_response())
}
