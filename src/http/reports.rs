//! `POST /v1/tasks/{id}/reports`: what was done for a task.

use axum::{Json as Answer, extract::State};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    error::Problem,
    extract::{Called, Id, Json},
    openapi::{Refusals, refused},
};
use crate::{
    broker::{Broker, Reported},
    id::TaskId,
    task::{Gap, Origin, Reporting},
};

/// What is on record of what was done for a task.
#[derive(Serialize, ToSchema)]
#[schema(as = ReportAnswer)]
pub(super) struct ReportAnswer {
    /// The task.
    task: TaskId,
    /// Whose word it is: the workload's own (`self_reported`), or that of a service (`observed`).
    origin: Origin,
    /// How many of these reports are on record: all of them, those included that were before.
    accepted: usize,
    /// The highest `sequence` of this reporter on this task.
    last_sequence: u32,
    /// What is missing below it.
    gaps: Vec<Gap>,
}

/// Report what was done for a task: tool calls and prompts, as digests.
///
/// From the instance that holds the task, and from a service with `reports = true` that was shown a credential of it. The answer is sent
/// when all of it is in the audit log. The same report again is taken without another record; another one under its `sequence` is
/// refused. Up to a minute after the end of a task reports are taken still, and marked as late.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/reports", operation_id = "reportTask", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    request_body = Reporting,
    responses(
        (status = 200, description = "On record", body = ReportAnswer),
        Refusals<{ refused::ACTING | refused::ENDED | refused::SEQUENCE | refused::QUOTA | refused::BODY }>,
    ),
    security(("evidence" = []), ("service" = []), ()),
    extensions(("x-remit-callers" = json!(["workload", "service"]))),
)]
pub(super) async fn report(
    State(broker): State<Arc<Broker>>,
    Id(task): Id,
    called: Called,
    Json { value, .. }: Json<Reporting>,
) -> Result<Answer<ReportAnswer>, Problem> {
    let Reported { origin, accepted, last_sequence, gaps } = broker.report(called.request, &task, &value).await?;
    Ok(Answer(ReportAnswer { task, origin, accepted, last_sequence, gaps }))
}
