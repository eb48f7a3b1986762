//! `/v1/locks`: locking out, for operators.

use axum::{
    Json as Answer,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

use super::{
    error::Problem,
    extract::{Called, Json, LockPath},
    openapi::{Refusals, callers, refused},
    tasks::bodies::Wait,
};
use crate::{
    broker::{Broker, LockStanding, Locked, Lockout, Weighing},
    claims::{Lock, LockMatch},
    clock::Time,
    error::{Error, Sought},
    id::LockId,
    lease::Expansion,
    notice::Release,
    party::Act,
};

type Shared = State<Arc<Broker>>;

/// Whom a lock keeps out: all that is named has to fit.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LockMatch)]
pub(super) struct Match {
    /// A workload by its SPIFFE ID, or with `/*` at its end all below a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048)]
    workload: Option<String>,
    /// The owner of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    owner: Option<String>,
    /// The sandbox: the one that evidence bound the task to, else the declared one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    sandbox: Option<String>,
    /// The attestor that vouched, by its name in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    attestor: Option<String>,
    /// The issuer of the evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 2048)]
    issuer: Option<String>,
    /// Everybody: it stands alone, and for 15 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    all: Option<bool>,
}

impl Match {
    fn read(self) -> Result<LockMatch, Error> {
        let Self { workload, owner, sandbox, attestor, issuer, all } = self;
        if all == Some(false) {
            return Err(Error::invalid("`match.all` is true or not there"));
        }
        let workload = workload.map(TryInto::try_into).transpose().map_err(|_| {
            Error::invalid(
                "`match.workload` is a SPIFFE ID, or one whose path ends in `/*`; there is no other wildcard",
            )
        })?;
        Ok(LockMatch { workload, owner, sandbox, attestor, issuer, all: all.is_some() })
    }
}

impl From<&LockMatch> for Match {
    fn from(matches: &LockMatch) -> Self {
        let LockMatch { workload, owner, sandbox, attestor, issuer, all } = matches.clone();
        Self { workload: workload.map(Into::into), owner, sandbox, attestor, issuer, all: all.then_some(true) }
    }
}

/// What is to be locked out.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LockRequest)]
pub(super) struct LockBody {
    /// Whom.
    r#match: Match,
    /// Only tasks that were declared then or later; a whole second.
    #[schema(value_type = Option<String>, format = DateTime)]
    declared_after: Option<Time>,
    /// Only tasks that were declared before; a whole second.
    #[schema(value_type = Option<String>, format = DateTime)]
    declared_before: Option<Time>,
    /// Until when, within a year. Left out, it stands until it is released; `all`, for 15 minutes.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Time>,
    /// Why.
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// How it is locked.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LockQuery {
    /// `true`: nothing is locked, and the answer counts what would be.
    dry_run: Option<bool>,
    /// `effective`: until `progress.effective_by` has come, for 25 s at most.
    #[param(inline)]
    wait: Option<Wait>,
}

/// A lock.
#[derive(Serialize, ToSchema)]
#[schema(as = Lock)]
pub(super) struct Shown {
    /// Its id.
    lock: LockId,
    state: LockState,
    /// Whom it keeps out.
    r#match: Match,
    /// Only tasks that were declared then or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime, required = false)]
    declared_after: Option<Time>,
    /// Only tasks that were declared before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime, required = false)]
    declared_before: Option<Time>,
    /// Until when it stands; null: until it is released, or for as long as it stood.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    until: Option<Time>,
    /// Why.
    reason: String,
    /// Who locked.
    by: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    locked_at: Time,
    /// How it was released, once it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    released: Option<Released>,
    progress: Progress,
}

/// How a lock stands.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum LockState {
    /// In the journal of this broker, which keeps out what it matches, and not in the store yet.
    Locking,
    /// It keeps out what it matches.
    InForce,
    /// Its end has come.
    Expired,
    /// Somebody released it.
    Released,
}

/// How a lock was released.
#[derive(Serialize, ToSchema)]
#[schema(as = LockRelease)]
struct Released {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Time,
    /// Who released it.
    by: String,
    /// Why.
    reason: String,
}

/// How far it has come to end the tasks that the lock matches. Verifiers that follow the feed match the lock itself, and wait for none of it.
#[derive(Serialize, ToSchema)]
#[schema(as = LockProgress)]
struct Progress {
    /// Tasks that were found so far.
    matched: u64,
    /// Of these, those that have been ended.
    revoked: u64,
    /// Whether all of them have.
    done: bool,
    /// By when every verifier that hears of revokes denies them; null before all have been ended.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    effective_by: Option<Time>,
}

impl Shown {
    fn of(locked: Locked) -> Result<Self, Error> {
        let (standing, until) = (locked.standing(), locked.until());
        let state = locked.state().cloned().ok_or(Error::NotFound(Sought::Lock))?;
        let Locked { notice, stored, expansion, effective_by, .. } = locked;
        let Lock { id, matches, declared_after, declared_before, .. } = state.lock;
        let Expansion { matched, revoked, done_at, .. } = expansion.unwrap_or(Expansion {
            matched: 0,
            revoked: 0,
            done_at: None,
            at: notice.at,
            broker: String::new(),
        });
        let time = |date: crate::claims::NumericDate| Time::from_timestamp_millis(date.millis());
        Ok(Self {
            lock: id,
            state: match standing {
                _ if !stored => LockState::Locking,
                LockStanding::InForce => LockState::InForce,
                LockStanding::Expired => LockState::Expired,
                LockStanding::Released => LockState::Released,
            },
            r#match: Match::from(&matches),
            declared_after: declared_after.and_then(time),
            declared_before: declared_before.and_then(time),
            until,
            reason: notice.reason.unwrap_or_default(),
            by: notice.by,
            locked_at: state.set_at,
            released: state.release.map(|Release { at, reason, by }| Released {
                at,
                by,
                reason: reason.unwrap_or_default(),
            }),
            progress: Progress { matched, revoked, done: done_at.is_some(), effective_by },
        })
    }

    /// 202 where more than the broker has to be told (RFC 9110 section 15.3.3).
    fn answer(locked: Locked, done: StatusCode) -> Result<Response, Problem> {
        let status = if locked.stored { done } else { StatusCode::ACCEPTED };
        Ok((status, Answer(Self::of(locked)?)).into_response())
    }
}

/// What a lock would match.
#[derive(Serialize, ToSchema)]
#[schema(as = LockDryRun)]
pub(super) struct DryRun {
    /// Tasks that it would end.
    active: u64,
    /// Tasks that it would match and that have ended, or expired.
    over: u64,
    /// Whose the active ones are: those with the most first, 20 at most.
    owners: Vec<OwnerCount>,
    /// Whether all tasks were looked at.
    complete: bool,
}

/// How many tasks an owner has.
#[derive(Serialize, ToSchema)]
#[schema(as = LockOwnerCount)]
struct OwnerCount {
    /// The owner.
    owner: String,
    /// How many.
    tasks: u64,
}

impl From<Weighing> for DryRun {
    fn from(Weighing { active, over, owners, complete }: Weighing) -> Self {
        let owners = owners.into_iter().map(|(owner, tasks)| OwnerCount { owner, tasks }).collect();
        Self { active, over, owners, complete }
    }
}

/// Locks.
#[derive(Serialize, ToSchema)]
#[schema(as = LockList)]
pub(super) struct Locks {
    /// Newest first: those that stand, and those that ended within 30 days.
    locks: Vec<Shown>,
}

/// Until when a lock is to stand.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LockExtension)]
pub(super) struct ExtendBody {
    /// Later than so far, within a year.
    #[schema(value_type = String, format = DateTime)]
    until: Time,
    /// Why.
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// Why a lock is released.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LockReleaseRequest)]
pub(super) struct ReleaseBody {
    /// For the record.
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// Lock out.
///
/// Nothing that the lock matches is declared, minted, certified or renewed, at any broker, once this has answered; and every task that it
/// matches ends with all of its credentials. Verifiers that follow the feed are told of the lock itself, and deny at once; the others as
/// the tasks end, which `progress` shows. `all` stands for 15 minutes, and an approver extends it. With `dry_run` nothing is
/// locked, and the answer counts what would be.
#[utoipa::path(
    post, path = "/v1/locks", operation_id = "lock", tag = "locks",
    params(LockQuery),
    request_body = LockBody,
    responses(
        (status = 200, description = "With `dry_run`: what it would match", body = DryRun),
        (status = 201, description = "Locked", body = Shown),
        (status = 202, description = "The store is out of reach: recorded by this broker, which keeps out and denies at once, and tells the store as soon as \
            that answers", body = Shown),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::QUOTA | refused::BODY }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::Lock)))),
)]
pub(super) async fn lock(
    State(broker): Shared,
    query: Result<Query<LockQuery>, QueryRejection>,
    called: Called,
    Json { value, .. }: Json<LockBody>,
) -> Result<Response, Problem> {
    let Query(LockQuery { dry_run, wait }) =
        query.map_err(|_| Error::invalid("the query knows `dry_run`, true or false, and `wait=effective`"))?;
    let LockBody { r#match, declared_after, declared_before, until, reason } = value;
    let wanted = Lockout { matches: r#match.read()?, declared_after, declared_before, until, reason };
    if dry_run == Some(true) {
        return Ok(Answer(DryRun::from(broker.weigh_lock(called.request, wanted).await?)).into_response());
    }
    let locked = broker.lock(called.request, wanted).await?;
    let locked = match wait {
        None => locked,
        Some(Wait::Effective) => broker.wait_for_lock(locked).await,
    };
    Shown::answer(locked, StatusCode::CREATED)
}

/// The locks that stand, and those that ended within 30 days.
#[utoipa::path(
    get, path = "/v1/locks", operation_id = "listLocks", tag = "locks",
    responses(
        (status = 200, description = "The locks", body = Locks),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::ListLocks)))),
)]
pub(super) async fn list(State(broker): Shared, called: Called) -> Result<Answer<Locks>, Problem> {
    let locks = broker.list_locks(called.request).await?;
    Ok(Answer(Locks { locks: locks.into_iter().map(Shown::of).collect::<Result<_, _>>()? }))
}

/// A lock, and how far it has come.
#[utoipa::path(
    get, path = "/v1/locks/{id}", operation_id = "showLock", tag = "locks",
    params(("id" = LockId, Path, description = "The lock")),
    responses(
        (status = 200, description = "The lock", body = Shown),
        Refusals<{ refused::KNOWN | refused::NO_LOCK }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::ListLocks)))),
)]
pub(super) async fn show(
    State(broker): Shared,
    LockPath(id): LockPath,
    called: Called,
) -> Result<Answer<Shown>, Problem> {
    Ok(Answer(Shown::of(broker.show_lock(called.request, &id).await?)?))
}

/// Let a lock that has an end stand for longer.
#[utoipa::path(
    post, path = "/v1/locks/{id}/extend", operation_id = "extendLock", tag = "locks",
    params(("id" = LockId, Path, description = "The lock")),
    request_body = ExtendBody,
    responses(
        (status = 200, description = "The lock", body = Shown),
        (status = 202, description = "The store is out of reach: recorded by this broker, which tells the store as soon as that answers", body = Shown),
        Refusals<{ refused::KNOWN | refused::NO_LOCK | refused::BODY }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::ExtendLock)))),
)]
pub(super) async fn extend(
    State(broker): Shared,
    LockPath(id): LockPath,
    called: Called,
    Json { value: ExtendBody { until, reason }, .. }: Json<ExtendBody>,
) -> Result<Response, Problem> {
    Shown::answer(broker.extend_lock(called.request, &id, until, reason).await?, StatusCode::OK)
}

/// Release a lock.
///
/// From then on new tasks can be declared. What the lock has ended stays ended. Idempotent.
#[utoipa::path(
    post, path = "/v1/locks/{id}/release", operation_id = "releaseLock", tag = "locks",
    params(("id" = LockId, Path, description = "The lock")),
    request_body = ReleaseBody,
    responses(
        (status = 200, description = "The lock", body = Shown),
        (status = 202, description = "The store is out of reach: recorded by this broker, which tells the store as soon as that answers", body = Shown),
        Refusals<{ refused::KNOWN | refused::NO_LOCK | refused::BODY }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::ReleaseLock)))),
)]
pub(super) async fn release(
    State(broker): Shared,
    LockPath(id): LockPath,
    called: Called,
    Json { value: ReleaseBody { reason }, .. }: Json<ReleaseBody>,
) -> Result<Response, Problem> {
    Shown::answer(broker.release_lock(called.request, &id, reason).await?, StatusCode::OK)
}
