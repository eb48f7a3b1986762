//! `GET /v1/tasks/{id}/timeline`: what happened to a task.

use axum::{Json as Answer, extract::State};
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    error::Problem,
    extract::{Called, Id},
    openapi::{Refusals, callers, refused},
};
use crate::{
    broker::Broker,
    clock::Time,
    id::TaskId,
    lease::{Timeline, TimelineEvent},
    party::Act,
};

/// What happened to a task and everything below it, on all brokers.
#[derive(Serialize, ToSchema)]
#[schema(as = Timeline)]
pub(super) struct TimelineAnswer {
    /// The task.
    task: TaskId,
    /// In order of time; the newest thousand of a tree of tasks.
    events: Vec<Event>,
    /// Whether nothing is known to be missing. The audit logs of the brokers hold all of it.
    complete: bool,
    /// How many entries were in the store that no broker wrote; they are left out.
    unverified: u64,
}

/// Something that happened. What it says beside `event` and `actor` is what the audit record says.
#[derive(Serialize, ToSchema)]
#[schema(as = TimelineEvent)]
struct Event {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    time: Time,
    /// To which task.
    task: TaskId,
    /// The audit record that says so.
    source: Source,
    /// `event`, `actor` and what else there is to say.
    #[serde(flatten)]
    #[schema(value_type = Said)]
    said: Map<String, Value>,
}

/// What is in every event.
#[derive(Serialize, ToSchema)]
#[schema(as = TimelineEventKind)]
struct Said {
    /// `task_declared`, `credential_minted`, `mint_denied`, `task_ended`, …; `left_out`: so many (`count`) found no room.
    event: String,
    /// Who caused it.
    #[schema(value_type = Object)]
    actor: Value,
}

/// An audit record.
#[derive(Serialize, ToSchema)]
#[schema(as = TimelineSource)]
struct Source {
    /// The log of the broker where it happened.
    log: String,
    /// Its number; null where the log has none of it.
    #[schema(required)]
    sequence: Option<u64>,
}

/// Show what happened to a task and everything below it.
///
/// Declaration, decisions, credentials, questions of services, the end and what was refused after it, from all brokers: copies of
/// their audit records. The audit logs are the evidence; this is soon there, and holds the newest thousand events of a tree.
#[utoipa::path(
    get, path = "/v1/tasks/{id}/timeline", operation_id = "showTimeline", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    responses(
        (status = 200, description = "What happened", body = TimelineAnswer),
        Refusals<{ refused::ACTING }>,
    ),
    security(("evidence" = []), ("operator" = []), ()),
    extensions(("x-remit-callers" = json!(callers(["workload"], Act::ShowTimeline)))),
)]
pub(super) async fn show(
    State(broker): State<Arc<Broker>>,
    Id(id): Id,
    called: Called,
) -> Result<Answer<TimelineAnswer>, Problem> {
    let Timeline { events, unverified, complete } = broker.timeline(called.request, &id).await?;
    let events = events.into_iter().map(Event::from).collect();
    Ok(Answer(TimelineAnswer { task: id, events, complete, unverified }))
}

impl From<TimelineEvent> for Event {
    fn from(TimelineEvent { time, task, log, sequence, said, .. }: TimelineEvent) -> Self {
        Self { time, task, source: Source { log, sequence }, said }
    }
}
