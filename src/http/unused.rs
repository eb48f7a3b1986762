//! `GET /v1/reports/unused`: authority that was not used.

use axum::{
    Extension, Json as Answer,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

use super::{
    HungUp,
    error::Problem,
    extract::Called,
    openapi::{Refusals, callers, refused},
};
use crate::{
    broker::{self, Broker, Period},
    clock::Time,
    error::Error,
    id::{LeaseId, Location, SpiffeId, TaskId},
    party::Act,
    task::{Privilege, State as TaskState},
};

/// Tasks on a page where nobody asks for another number, and at most.
const PAGE: (usize, usize) = (50, 200);

/// Which tasks are looked at: those that fit all that is given.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UnusedQuery {
    /// Of this owner.
    owner: Option<String>,
    /// Of this workload, by its SPIFFE ID.
    workload: Option<String>,
    /// Declared not before then.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Time>,
    /// Declared before then.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Time>,
    /// `next_cursor` of the page before.
    cursor: Option<TaskId>,
    /// How many tasks a page holds.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<usize>,
}

/// A page of the report.
#[derive(Serialize, ToSchema)]
#[schema(as = UnusedReport)]
pub(super) struct Report {
    /// Tasks that did not use all that they had, newest first.
    tasks: Vec<Unused>,
    /// How many tasks of those that were asked for were looked at: the others used all they had.
    looked_at: usize,
    /// Every task that was declared since then was there to be looked at; of earlier ones, those that the store still holds. Null where it is
    /// not known when the store was put back to an earlier state.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    since: Option<Time>,
    /// What the next page is older than; null at the end.
    #[schema(required)]
    next_cursor: Option<TaskId>,
}

/// A task that did not use all that it had.
#[derive(Serialize, ToSchema)]
#[schema(as = UnusedTask)]
struct Unused {
    /// The task.
    task: TaskId,
    /// How it stands: an active one may still use what it has.
    state: TaskState,
    /// Who declared it.
    workload: SpiffeId,
    /// Who is accountable.
    owner: String,
    /// What it is for, in the words of the workload.
    purpose: String,
    /// When it was declared.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// Granted, and no token was ever minted for it.
    never_minted: Vec<Grant>,
    /// Minted, and never seen to be used.
    never_seen: Vec<Unseen>,
    /// How many credentials were seen to be used.
    seen: usize,
    /// Whether nothing of what was done is known to be missing: where it is false, what is listed may have been minted, or seen.
    complete: bool,
}

/// A privilege at a location.
#[derive(Serialize, ToSchema)]
#[schema(as = UnusedGrant)]
struct Grant {
    /// Where.
    location: Location,
    /// What.
    privilege: Privilege,
}

/// A credential that was never seen to be used.
#[derive(Serialize, ToSchema)]
#[schema(as = UnseenCredential)]
struct Unseen {
    /// Its `jti`, or its serial.
    lease: LeaseId,
    /// Its audience; null for a certificate.
    #[schema(required)]
    resource: Option<String>,
    /// Its privilege; null for a certificate.
    #[schema(required)]
    privilege: Option<String>,
    /// Whether no use of it would be seen: its service neither asks nor reports, as the configuration says now.
    cannot_be_seen: bool,
}

/// Report what was granted and not used.
///
/// Of each task: privileges that no token was ever minted for, and credentials that were never *seen* to be used, which is that a service
/// asked about them or reported on them. A service that checks signatures or lists by itself is not seen: `cannot_be_seen`. The tasks are
/// those of all brokers that the store still holds, which is until a day after their deadline: `since` says from when on that is all of
/// them. Whoever acts for an owner gets that owner's
/// alone. A page may be short, or empty, and not the last: go on until `next_cursor` is null.
#[utoipa::path(
    get, path = "/v1/reports/unused", operation_id = "reportUnused", tag = "investigate",
    params(UnusedQuery),
    responses(
        (status = 200, description = "A page", body = Report),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::QUOTA }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::ReportUnused)))),
)]
pub(super) async fn report(
    State(broker): State<Arc<Broker>>,
    asked: Result<Query<UnusedQuery>, QueryRejection>,
    Extension(HungUp(gone)): Extension<HungUp>,
    called: Called,
) -> Result<Answer<Report>, Problem> {
    let Query(UnusedQuery { owner, workload, since, until, cursor, limit }) = asked.map_err(|_| {
        Error::invalid(
            "the query knows `owner`, `workload`, `since` and `until` (RFC 3339), `cursor` (as it was answered) and `limit` (a number)",
        )
    })?;
    let limit = limit.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(Error::invalid("`limit` is 1 to 200").into());
    }
    let period = Period { owner, workload, since, until };
    let page = broker.unused((called.request, gone), &period, cursor, limit).await?;
    let tasks = page.tasks.into_iter().map(Unused::from).collect();
    Ok(Answer(Report { tasks, looked_at: page.looked_at, since: page.since, next_cursor: page.next }))
}

impl From<broker::Unused> for Unused {
    fn from(broker::Unused { held, state, never_minted, never_seen, seen, complete }: broker::Unused) -> Self {
        let task = &held.task;
        Self {
            task: task.id.clone(),
            state,
            workload: task.workload.clone(),
            owner: task.owner.clone(),
            purpose: task.purpose.clone(),
            created_at: task.created_at,
            never_minted: never_minted
                .into_iter()
                .map(|broker::Grant { location, privilege }| Grant { location, privilege })
                .collect(),
            never_seen: never_seen
                .into_iter()
                .map(|broker::UnseenLease { lease, resource, privilege, cannot_be_seen }| Unseen {
                    lease,
                    resource,
                    privilege,
                    cannot_be_seen,
                })
                .collect(),
            seen,
            complete,
        }
    }
}
