//! `GET /v1/audit`: the lines of this broker's log.

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

use super::{
    HungUp,
    error::Problem,
    extract::Called,
    openapi::{Refusals, callers, refused},
};
use crate::{
    broker::{Broker, Which},
    clock::Time,
    error::Error,
    party::Act,
};

/// Lines in an answer where nobody asks for another number, and at most.
const LINES: (usize, usize) = (1_000, 10_000);

/// Which records are wanted: those that fit all that is given.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TrailQuery {
    /// Of this workload, by its SPIFFE ID, and of its tasks.
    workload: Option<String>,
    /// Of the tasks of this owner.
    owner: Option<String>,
    /// Of the tasks that run in this sandbox: bound to it by evidence, or declared to where none did.
    sandbox: Option<String>,
    /// By this attestor, and of the tasks of those that it vouched for.
    attestor: Option<String>,
    /// Not before then.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Time>,
    /// Before then.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Time>,
    /// `cursor` of the answer before: only what comes after it.
    cursor: Option<String>,
    /// How many records an answer holds.
    #[param(minimum = 1, maximum = 10_000, default = 1000)]
    limit: Option<usize>,
}

/// Go through the audit log of this broker.
///
/// Every line is a record as it stands in the log, to the octet, in order. The last line is no record: its `cursor` is where to go
/// on, now if there is `more`, and later where there is not; an answer without it, or that is shorter than its `Content-Length`, was cut
/// off. A page holds at most `limit` records, 1 MiB of them (or one), and what can be looked at in 5 s, so that it may hold fewer than there are, or
/// none, and `more` all the same. A person has two looks at a time. `unattributed` counts records of tasks of
/// which this broker can't tell whose they are, and so whether they were asked for; `unreadable` lines that no broker wrote. Whoever acts
/// for an owner gets the records of that owner's tasks alone. Other brokers have logs of their own.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "showAudit", tag = "investigate",
    params(TrailQuery),
    responses(
        (status = 200, description = "A record a line, and a last line that says where it ended", content_type = "application/x-ndjson",
            body = String),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::QUOTA }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::ShowAudit)))),
)]
pub(super) async fn show(
    State(broker): State<Arc<Broker>>,
    asked: Result<Query<TrailQuery>, QueryRejection>,
    Extension(HungUp(gone)): Extension<HungUp>,
    called: Called,
) -> Result<Response, Problem> {
    let Query(TrailQuery { workload, owner, sandbox, attestor, since, until, cursor, limit }) = asked.map_err(|_| {
        Error::invalid(
            "the query knows `workload`, `owner`, `sandbox`, `attestor`, `since` and `until` (RFC 3339), `cursor` (as it was answered) and \
             `limit` (a number)",
        )
    })?;
    let limit = limit.unwrap_or(LINES.0);
    if !(1..=LINES.1).contains(&limit) {
        return Err(Error::invalid("`limit` is 1 to 10000").into());
    }
    let after = cursor.map(|cursor| cursor.parse()).transpose()?;
    let which = Which { workload, owner, sandbox, attestor, since, until };
    let trail = broker.trail((called.request, gone), which, after.as_ref(), limit).await?;
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))];
    Ok((kind, Body::from(Bytes::from_owner(trail))).into_response())
}
