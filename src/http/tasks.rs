//! `/v1/tasks`: our own API.

pub(super) mod bodies;

use axum::{
    Extension, Json as Answer,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use super::{
    error::Problem,
    extract::{Called, Id, Json},
    openapi::{Refusals, callers, refused},
    watch,
};
use crate::{
    broker::{Broker, Filter, IdempotencyKey},
    error::Error,
    id::TaskId,
    party::Act,
    task::{Declaration, check_text, check_ttl},
};
use bodies::{
    CompleteBody, Declared, ListQuery, MintAnswer, MintBody, Minted, RenewAnswer, RenewBody, RevokeAnswer, RevokeBody,
    RevokeQuery, Shown, TaskList, TaskToken, Wait,
};

type Shared = State<Arc<Broker>>;

/// Tasks on a page where nobody asks for another number, and at most.
const PAGE: (usize, usize) = (50, 200);

/// Declare a task, and mint its first credentials in the same transaction.
///
/// Without `partial` it is all or nothing: a refusal lists everything that was refused, and by which policies. With an
/// `Idempotency-Key` a retry gets the same task and the same leases; another body under the same key is refused.
#[utoipa::path(
    post, path = "/v1/tasks", operation_id = "declareTask", tag = "tasks",
    params(("DPoP" = Option<String>, Header, description = "A proof (RFC 9449). Credentials are bound to its key, and evidence that can be copied (a JWT) serves that key alone from then on"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
        description = "What a retry repeats: 1 to 255 visible characters")),
    request_body = Declaration,
    responses(
        (status = 201, description = "Declared", body = Declared),
        Refusals<{ refused::DECLARING | refused::BODY }>,
    ),
    security(("evidence" = []), ()),
    extensions(("x-remit-callers" = json!(["workload"]))),
)]
pub(super) async fn declare(
    State(broker): Shared,
    headers: HeaderMap,
    called: Called,
    Json { value, digest }: Json<Declaration>,
) -> Result<Response, Problem> {
    let key = idempotency_key(&headers, digest)?;
    let declared = broker.declare(called.request, &value, key).await?;
    let task = Shown::of(&declared.held, declared.now)?;
    let task_token = declared.task_token.as_ref().map(TaskToken::of);
    let body = Declared { task, task_token, credentials: Minted::of(&declared.credentials) };
    Ok((StatusCode::CREATED, Answer(body)).into_response())
}

/// The one `Idempotency-Key` of a request whose body has this digest.
pub(super) fn idempotency_key(headers: &HeaderMap, body: String) -> Result<Option<IdempotencyKey>, Error> {
    let mut values = headers.get_all("idempotency-key").iter();
    let key = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().ok().filter(|key| !key.is_empty() && key.len() <= 255),
        (Some(_), Some(_)) => None,
    };
    let key = key.ok_or_else(|| Error::invalid("`Idempotency-Key` is one header of 1 to 255 visible characters"))?;
    Ok(Some(IdempotencyKey { key: key.to_owned(), body }))
}

/// Mint credentials for a task: all of them or none.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/credentials", operation_id = "mintCredentials", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449). Credentials are bound to its key, and evidence that can be copied (a JWT) serves that key alone from then on")),
    request_body = MintBody,
    responses(
        (status = 200, description = "Minted", body = MintAnswer),
        Refusals<{ refused::ACTING | refused::POLICY | refused::LOCKED | refused::ENDED | refused::QUOTA | refused::BODY }>,
    ),
    security(("evidence" = []), ()),
    extensions(("x-remit-callers" = json!(["workload"]))),
)]
pub(super) async fn mint(
    State(broker): Shared,
    Id(id): Id,
    called: Called,
    Json { value, .. }: Json<MintBody>,
) -> Result<Response, Problem> {
    if value.credentials.is_empty() {
        return Err(Error::invalid("`credentials` lists at least one object").into());
    }
    let credentials = broker.mint(called.request, &id, &value.credentials).await?;
    Ok(Answer(MintAnswer { task: &id, credentials: Minted::of(&credentials) }).into_response())
}

/// Move the deadline of a task, if policy still allows all that it was granted.
///
/// A deadline is never brought forward. The body may be left out.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/renew", operation_id = "renewTask", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    request_body = Option<RenewBody>,
    responses(
        (status = 200, description = "Its deadline as it is now", body = RenewAnswer),
        Refusals<{ refused::ACTING | refused::POLICY | refused::LOCKED | refused::ENDED | refused::BODY }>,
    ),
    security(("evidence" = []), ()),
    extensions(("x-remit-callers" = json!(["workload"]))),
)]
pub(super) async fn renew(
    State(broker): Shared,
    Id(id): Id,
    called: Called,
    body: Option<Json<RenewBody>>,
) -> Result<Response, Problem> {
    let ttl = body.and_then(|body| body.value.ttl);
    check_ttl(ttl)?;
    let renewed = broker.renew(called.request, &id, ttl).await?;
    Ok(Answer(RenewAnswer::of(&renewed)?).into_response())
}

/// End a task because its work is done.
///
/// Everything below it and all their credentials end with it. A task that has ended already stays as it is. The body may be left out.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/complete", operation_id = "completeTask", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    request_body = Option<CompleteBody>,
    responses(
        (status = 200, description = "The task, ended", body = Shown),
        Refusals<{ refused::ACTING | refused::BODY }>,
    ),
    security(("evidence" = []), ()),
    extensions(("x-remit-callers" = json!(["workload"]))),
)]
pub(super) async fn complete(
    State(broker): Shared,
    Id(id): Id,
    called: Called,
    body: Option<Json<CompleteBody>>,
) -> Result<Response, Problem> {
    let reason = body.and_then(|body| body.value.reason);
    check_text("reason", reason.as_ref(), 1024)?;
    let (held, now) = broker.complete(called.request, &id, reason).await?;
    Ok(Answer(Shown::of(&held, now)?).into_response())
}

/// End a task, everything below it and all their credentials, at once.
///
/// For an operator with the role `responder`, for whoever acts for the task's owner, and for the instance that holds the task or one
/// above it. An operator may revoke an id
/// that the broker has not seen (`known` is false). Idempotent: a second call returns the first one's instants.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/revoke", operation_id = "revokeTask", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"), RevokeQuery,
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    request_body = RevokeBody,
    responses(
        (status = 200, description = "Revoked", body = RevokeAnswer),
        (status = 202, description = "The store is out of reach: recorded by this broker, which denies it at once and tells the store as soon as that answers",
            body = RevokeAnswer),
        Refusals<{ refused::ACTING | refused::QUOTA | refused::BODY }>,
    ),
    security(("evidence" = []), ("operator" = []), ()),
    extensions(("x-remit-callers" = json!(callers(["workload"], Act::Revoke)))),
)]
pub(super) async fn revoke(
    State(broker): Shared,
    Id(id): Id,
    query: Result<Query<RevokeQuery>, QueryRejection>,
    called: Called,
    Json { value, .. }: Json<RevokeBody>,
) -> Result<Response, Problem> {
    let Query(RevokeQuery { wait }) = query.map_err(|_| Error::invalid("the query knows `wait=effective` alone"))?;
    let reason = value.reason.ok_or_else(|| Error::invalid("`reason` says why, for whoever reads the record later"))?;
    check_text("reason", Some(&reason), 1024)?;
    let revoked = broker.revoke(called.request, &id, reason).await?;
    let revoked = match wait {
        None => revoked,
        Some(Wait::Effective) => broker.wait_until_effective(revoked).await,
    };
    let answer = RevokeAnswer::from(revoked);
    Ok((answer.status(), Answer(answer)).into_response())
}

/// Show a task, or watch it.
///
/// An operator sees every task, a workload its own, whoever acts for an owner that owner's. With `Accept: text/event-stream` the answer is a stream of server-sent events:
/// one event `task` with the task as data at once and at every change, until the task has ended or the caller has to prove
/// again who they are.
#[utoipa::path(
    get, path = "/v1/tasks/{id}", operation_id = "showTask", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    responses(
        (status = 200, description = "How it stands", content(
            (Shown = "application/json"),
            (String = "text/event-stream"),
        )),
        Refusals<{ refused::ACTING | refused::QUOTA }>,
    ),
    security(("evidence" = []), ("operator" = []), ()),
    extensions(("x-remit-callers" = json!(callers(["workload"], Act::ShowTask)))),
)]
pub(super) async fn show(
    State(broker): Shared,
    Extension(stop): Extension<CancellationToken>,
    Id(id): Id,
    headers: HeaderMap,
    called: Called,
) -> Result<Response, Problem> {
    if watch::wanted(&headers) {
        return watch::watch(broker, &id, called, stop).await;
    }
    let seen = broker.show(called.request, &id).await?;
    Ok(Answer(Shown::of(&seen.held, seen.now)?.with_contacts(&seen.contacts)).into_response())
}

/// List tasks, newest first.
///
/// An operator sees every task, a workload its own, whoever acts for an owner that owner's. A page may be short, or empty, and not the last: go on until `next_cursor` is null.
#[utoipa::path(
    get, path = "/v1/tasks", operation_id = "listTasks", tag = "tasks",
    params(ListQuery,
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    responses(
        (status = 200, description = "A page", body = TaskList),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE }>,
    ),
    security(("evidence" = []), ("operator" = []), ()),
    extensions(("x-remit-callers" = json!(callers(["workload"], Act::ListTasks)))),
)]
pub(super) async fn list(
    State(broker): Shared,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
    called: Called,
) -> Result<Response, Problem> {
    let Query(query) = query
        .map_err(|_| Error::invalid("the query knows `state` (active, completed, revoked, expired), `owner`, `workload`, `sandbox`, `cursor` (as it was answered) and `limit` (a number)"))?;
    let limit = query.limit.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(Error::invalid("`limit` is 1 to 200").into());
    }
    let ListQuery { cursor, state, owner, workload, sandbox, .. } = query;
    let filter = Filter { state, owner, workload, sandbox };
    let page = broker.list(called.request, &filter, cursor, limit).await?;
    let tasks = page.tasks.iter().map(|held| Shown::of(held, page.now)).collect::<Result<Vec<_>, _>>()?;
    Ok(Answer(TaskList { tasks, next_cursor: page.next }).into_response())
}
