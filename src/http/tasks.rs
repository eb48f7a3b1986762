//! `/v1/tasks`: our own API.

use axum::{
    Extension, Json as Answer,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use super::{
    error::Problem,
    extract::{Called, Id, Json},
    watch,
};
use crate::{
    broker::{Broker, Filter, IdempotencyKey, Reach, Revoked},
    clock::Time,
    credential::Credential,
    error::Error,
    id::TaskId,
    lease::Held,
    task::{self, CredentialRequest, Declaration, check_text, check_ttl},
};

type Shared = State<Arc<Broker>>;

/// Tasks on a page where nobody asks for another number, and at most.
const PAGE: (usize, usize) = (50, 200);

/// A task, without its tokens.
pub(super) fn body(held: &Held, now: Time) -> Result<Value, Error> {
    let task = &*held.task;
    let mut body = json!({
        "task": task.id,
        "state": held.state(now),
        "workload": task.workload,
        "instance": task.instance,
        "kind": task.kind,
        "attestor": task.attestor,
        "marks": task.marks,
        "owner": task.owner,
        "purpose": task.purpose,
        "environment": task.environment,
        "sandbox": task.sandbox,
        "data_classification": task.data_classification,
        "context": task.context,
        "authorization_details": task.authority,
        "denied": task.denied,
        "policies": task.policies,
        "authority_hash": task.authority.hash().map_err(|_| Error::invalid("the authority has no canonical form"))?,
        "generation": task.generation,
        "created_at": task.created_at,
        "expires_at": held.expires_at,
    });
    if let (Some(end), Some(members)) = (&held.end, body.as_object_mut()) {
        members.insert("ended_at".into(), json!(end.at.min(held.expires_at)));
        members.insert("reason".into(), json!(end.reason));
    }
    Ok(body)
}

/// A credential, as its workload gets it.
#[derive(Serialize)]
struct Minted<'a> {
    resource: &'a str,
    privilege: &'a str,
    access_token: &'a str,
    lease: &'a str,
    expires_at: Time,
    renew_at: Time,
}

fn minted(credentials: &[Credential]) -> Value {
    let minted = |credential: &Credential| {
        let Credential { lease, token, .. } = credential;
        json!(Minted {
            resource: lease.resource.as_str(),
            privilege: lease.privilege.as_str(),
            access_token: token.expose_secret(),
            lease: lease.id.as_str(),
            expires_at: lease.expires_at,
            renew_at: credential.renew_at(),
        })
    };
    credentials.iter().map(minted).collect()
}

pub(super) async fn declare(
    State(broker): Shared,
    headers: HeaderMap,
    called: Called,
    Json { value, digest }: Json<Declaration>,
) -> Result<(StatusCode, Answer<Value>), Problem> {
    let key = idempotency_key(&headers, digest)?;
    let declared = broker.declare(called.request, &value, key).await?;
    let mut body = body(&declared.held, declared.now)?;
    if let Some(members) = body.as_object_mut() {
        members.insert("credentials".into(), minted(&declared.credentials));
    }
    Ok((StatusCode::CREATED, Answer(body)))
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MintBody {
    credentials: Vec<CredentialRequest>,
}

pub(super) async fn mint(
    State(broker): Shared,
    Id(id): Id,
    called: Called,
    Json { value, .. }: Json<MintBody>,
) -> Result<Answer<Value>, Problem> {
    if value.credentials.is_empty() {
        return Err(Error::invalid("`credentials` lists at least one object").into());
    }
    let credentials = broker.mint(called.request, &id, &value.credentials).await?;
    Ok(Answer(json!({"task": id, "credentials": minted(&credentials)})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndBody {
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewBody {
    ttl: Option<u32>,
}

pub(super) async fn renew(
    State(broker): Shared,
    Id(id): Id,
    called: Called,
    body: Option<Json<RenewBody>>,
) -> Result<Answer<Value>, Problem> {
    let ttl = body.and_then(|body| body.value.ttl);
    check_ttl(ttl)?;
    let renewed = broker.renew(called.request, &id, ttl).await?;
    let mut body = self::body(&renewed.held, renewed.now)?;
    if let Some(members) = body.as_object_mut() {
        members.insert("renew_at".into(), json!(renewed.renew_at));
        members.insert("renewable_until".into(), json!(renewed.renewable_until));
    }
    Ok(Answer(body))
}

pub(super) async fn complete(
    State(broker): Shared,
    Id(id): Id,
    called: Called,
    body: Option<Json<EndBody>>,
) -> Result<Answer<Value>, Problem> {
    let reason = body.and_then(|body| body.value.reason);
    check_text("reason", reason.as_ref(), 1024)?;
    let (held, now) = broker.complete(called.request, &id, reason).await?;
    Ok(Answer(self::body(&held, now)?))
}

pub(super) async fn revoke(
    State(broker): Shared,
    Id(id): Id,
    called: Called,
    Json { value, .. }: Json<EndBody>,
) -> Result<Answer<Value>, Problem> {
    let reason = value.reason.ok_or_else(|| Error::invalid("`reason` says why, for whoever reads the record later"))?;
    check_text("reason", Some(&reason), 1024)?;
    let revoked = broker.revoke(called.request, &id, reason).await?;
    let Revoked { task, state, known, tally, generation, effective_by, reach } = revoked;
    let reach: Vec<_> = reach.iter().map(|Reach { class, by }| json!({"class": class, "by": by})).collect();
    Ok(Answer(json!({
        "task": task, "state": state, "known": known, "ended_tasks": tally.ended_tasks, "credentials": tally.credentials,
        "generation": generation, "effective_by": effective_by, "reach": reach,
    })))
}

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
    let (held, now) = broker.show(called.request, &id).await?;
    Ok(Answer(body(&held, now)?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    cursor: Option<TaskId>,
    limit: Option<usize>,
    state: Option<task::State>,
    owner: Option<String>,
    workload: Option<String>,
    sandbox: Option<String>,
}

pub(super) async fn list(
    State(broker): Shared,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
    called: Called,
) -> Result<Answer<Value>, Problem> {
    let Query(page) = page
        .map_err(|_| Error::invalid("the query knows `state` (active, completed, revoked, expired), `owner`, `workload`, `sandbox`, `cursor` (as it was answered) and `limit` (a number)"))?;
    let limit = page.limit.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(Error::invalid("`limit` is 1 to 200").into());
    }
    let Page { cursor, state, owner, workload, sandbox, .. } = page;
    let filter = Filter { state, owner, workload, sandbox };
    let page = broker.list(called.request, &filter, cursor, limit).await?;
    let tasks = page.tasks.iter().map(|held| body(held, page.now)).collect::<Result<Vec<_>, _>>()?;
    Ok(Answer(json!({"tasks": tasks, "next_cursor": page.next})))
}
