//! `GET /v1/search`: what an id or a name belongs to.

use axum::{
    Extension, Json as Answer,
    extract::{Query as Asked, State, rejection::QueryRejection},
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
    broker::{self, Broker, MatchKind, Query},
    clock::Time,
    error::Error,
    id::{LeaseId, TaskId},
    party::Act,
    task::State as TaskState,
};

/// Matches in an answer where nobody asks for another number, and at most.
const MATCHES: (usize, usize) = (50, 200);

/// What is looked for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SearchQuery {
    /// A task, a SPIFFE ID (of a task or of a workload), a `jti`, a serial, an instance (the uid of a pod, the run of a CI job) or the
    /// id of a request; never a token.
    #[param(min_length = 1, max_length = 2048)]
    q: String,
    /// The task that a credential is said to be of: a token says it, and it spares the search for it.
    task: Option<TaskId>,
    /// `next_cursor` of the answer before, to go on with older records.
    cursor: Option<String>,
    /// How many matches an answer holds.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<usize>,
}

/// What was found, and where it was looked for.
#[derive(Serialize, ToSchema)]
#[schema(as = SearchAnswer)]
pub(super) struct SearchAnswer {
    /// What was found: in the store of all brokers first, then in this broker's log, newest first.
    matches: Vec<Match>,
    /// Where it was looked for. What is not in there may be elsewhere.
    looked_at: LookedAt,
    /// Where to go on with older records of the log; null where it was looked at to its beginning.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// Something that was found.
#[derive(Serialize, ToSchema)]
#[schema(as = SearchMatch)]
struct Match {
    /// By what: `task`, `workload`, `lease`, `request` or `instance`.
    kind: &'static str,
    /// The task; null where it is about none.
    #[schema(required)]
    task: Option<TaskId>,
    /// Who declared the task, or, where that is not known, who did what the first record says.
    #[schema(required)]
    workload: Option<String>,
    /// Which instance of the workload.
    #[schema(required)]
    instance: Option<String>,
    /// Who is accountable; null where this broker can't tell.
    #[schema(required)]
    owner: Option<String>,
    /// How the task stands; null where the store holds it no more.
    #[schema(required)]
    state: Option<TaskState>,
    /// The credential, where one was looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    lease: Option<Lease>,
    /// What this broker's log says of it; null where it was found in the store alone.
    #[schema(required)]
    records: Option<Records>,
}

/// A credential.
#[derive(Serialize, ToSchema)]
#[schema(as = SearchLease)]
struct Lease {
    /// Its `jti`, or its serial.
    id: LeaseId,
    /// Its audience; null for a certificate, and where it is not known.
    #[schema(required)]
    resource: Option<String>,
    /// Its privilege; null for a certificate, and where it is not known.
    #[schema(required)]
    privilege: Option<String>,
    /// Its expiry; null where it is not known.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    expires_at: Option<Time>,
    /// Since when it is revoked by itself, while its task goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = String, format = DateTime)]
    revoked_at: Option<Time>,
}

/// Audit records of this broker.
#[derive(Serialize, ToSchema)]
#[schema(as = SearchRecords)]
struct Records {
    /// How many, among those that were looked at.
    count: u64,
    /// The first of them.
    first: Record,
    /// The last of them.
    last: Record,
}

/// An audit record.
#[derive(Serialize, ToSchema)]
#[schema(as = SearchRecord)]
struct Record {
    /// Its number.
    sequence: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    time: Time,
    /// What happened.
    event: String,
}

/// Where it was looked for.
#[derive(Serialize, ToSchema)]
#[schema(as = SearchLookedAt)]
struct LookedAt {
    /// How many tasks of the store, the newest ones, of those that the caller sees; null where the id itself says where it stands, or only older records were asked for.
    #[schema(required)]
    tasks: Option<usize>,
    /// Whether the store holds no others. Tasks are kept for a day after their deadline.
    all_tasks: bool,
    /// The log of the broker that answers. Those of other brokers were not looked at.
    log: String,
    /// The first of its records that was looked at, and the last; null where there was none.
    #[schema(required)]
    records: Option<(u64, u64)>,
}

/// Find what an id or a name belongs to.
///
/// A `jti` or a serial leads to its credential and task, a SPIFFE ID or an instance to its tasks, the id of a request to what was done in
/// it. Tasks and credentials of all brokers are found as long as the store holds them; what is over, and requests, in the log of the
/// broker that answers, `looked_at` says how far. Whoever acts for an owner finds that owner's tasks alone.
#[utoipa::path(
    get, path = "/v1/search", operation_id = "search", tag = "investigate",
    params(SearchQuery),
    responses(
        (status = 200, description = "What was found, if anything", body = SearchAnswer),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::QUOTA }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::Search)))),
)]
pub(super) async fn search(
    State(broker): State<Arc<Broker>>,
    asked: Result<Asked<SearchQuery>, QueryRejection>,
    Extension(HungUp(gone)): Extension<HungUp>,
    called: Called,
) -> Result<Answer<SearchAnswer>, Problem> {
    let Asked(SearchQuery { q, task, cursor, limit }) = asked.map_err(|_| {
        Error::invalid(
            "the query knows `q` (what is looked for), `task`, `cursor` (as it was answered) and `limit` (a number)",
        )
    })?;
    let limit = limit.unwrap_or(MATCHES.0);
    if !(1..=MATCHES.1).contains(&limit) {
        return Err(Error::invalid("`limit` is 1 to 200").into());
    }
    let before = cursor.map(|cursor| cursor.parse()).transpose()?;
    let query = Query::parse(&q)?;
    let found = broker.search((called.request, gone), &query, task.as_ref(), before.as_ref(), limit).await?;
    Ok(Answer(found.into()))
}

impl From<broker::Found> for SearchAnswer {
    fn from(broker::Found { matches, tasks, all_tasks, log, records, next }: broker::Found) -> Self {
        let looked_at = LookedAt { tasks, all_tasks, log, records };
        let matches = matches.into_iter().map(Match::from).collect();
        Self { matches, looked_at, next_cursor: next.map(|next| next.to_string()) }
    }
}

impl From<broker::Match> for Match {
    fn from(found: broker::Match) -> Self {
        let broker::Match { kind, task, workload, instance, owner, state, lease, records } = found;
        let kind = match kind {
            MatchKind::Task => "task",
            MatchKind::Workload => "workload",
            MatchKind::Lease => "lease",
            MatchKind::Request => "request",
            MatchKind::Instance => "instance",
        };
        let lease = lease.map(|broker::FoundLease { id, resource, privilege, expires_at, revoked_at }| Lease {
            id,
            resource,
            privilege,
            expires_at,
            revoked_at,
        });
        let record = |broker::Mention { sequence, time, event }| Record { sequence, time, event };
        let records = records.map(|broker::Mentions { count, first, last }| Records {
            count,
            first: record(first),
            last: record(last),
        });
        Self { kind, task, workload, instance, owner, state, lease, records }
    }
}
