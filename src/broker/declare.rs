//! Declaring a task, with or without its first credentials.
//!
//! attest → the words are checked → policy decides on every (location, privilege) → the id is claimed under the `Idempotency-Key` →
//! policy decides on every credential → what serves once is used up → the declaration is on record → task and leases are written in one
//! step → audit ‖
//! signatures → send.

use std::sync::Arc;

use super::{
    Broker, Call, Draft, Holder, Refused, Request, Spent, TaskToken, actor_of, entry, expiries, in_doubt, minted, owns,
    refusal, together, undecided,
};
use crate::{
    attest::Attested,
    audit::{Actor, Entry, Event},
    clock::{Time, after},
    credential::{self, Credential},
    error::{Denied, Error, Input, Limit, Sought},
    id::{TaskId, sha256_hex},
    lease::{Held, Lease, Remembered, Written},
    metrics::{Action, Outcome, Step},
    policy::{Ask, Limits, Verdict, Words, considered},
    task::{AccessDetail, Authority, Declaration, End, State, StatusIndex, Task},
};

/// A task's lifetime where the declaration asks for none, in seconds; policy's bound may be lower.
const DEFAULT_TTL: u32 = 900;
/// The longest lifetime of a task where no policy says less, in seconds.
pub(super) const MAX_TTL: u32 = 86_400;

/// What a retry must repeat to get the same task.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// The header.
    pub key: String,
    /// SHA-256 of the body, so that another body under the same key is told apart.
    pub body: String,
}

/// A task that was declared, and its first credentials.
#[derive(Debug)]
pub struct Declared {
    /// The task.
    pub held: Held,
    /// Stands for the evidence, where a key was shown.
    pub task_token: Option<TaskToken>,
    /// The credentials, in the order they were asked for.
    pub credentials: Vec<Credential>,
    /// The time of the answer.
    pub now: Time,
}

/// Who is declaring, in which request, and when.
struct Declarer {
    holder: Holder,
    actor: Actor,
    request: String,
    now: Time,
}

/// What policy makes of the authority that is asked for.
pub(super) struct Weighed {
    pub(super) authority: Option<Authority>,
    pub(super) refused: Vec<Refused>,
    pub(super) policies: Vec<String>,
    pub(super) limits: Limits,
    /// How long a credential of it may live at most, in seconds.
    pub(super) credentials_live: u32,
}

impl Broker {
    /// Declares a task and mints its first credentials: all of it or nothing, or with `partial` what is granted.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`], [`Error::EvidenceInvalid`], [`Error::PolicyDenied`] with all that was refused,
    /// [`Error::IdempotencyKeyReused`], [`Error::TaskNotActive`] for a retry of what has ended, [`Error::Unavailable`].
    pub async fn declare(
        &self,
        request: Request,
        declaration: &Declaration,
        key: Option<IdempotencyKey>,
    ) -> Result<Declared, Error> {
        self.declare_as(request, declaration, key, declaration.partial).await
    }

    /// As [`Broker::declare`], but `partial` is about the authority alone: without its credentials there is no task.
    ///
    /// # Errors
    /// As [`Broker::declare`].
    pub async fn declare_and_mint(
        &self,
        request: Request,
        declaration: &Declaration,
        key: Option<IdempotencyKey>,
    ) -> Result<Declared, Error> {
        self.declare_as(request, declaration, key, false).await
    }

    /// `without`: whether the task may be declared without some of the credentials that were asked for.
    async fn declare_as(
        &self,
        request: Request,
        declaration: &Declaration,
        key: Option<IdempotencyKey>,
        without: bool,
    ) -> Result<Declared, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: None, now };
        let holder = self.attest(request.presented, "declare", &call).await?;
        self.may_sign(now)?;
        let by = Declarer { actor: actor_of(&holder.attested), holder, request: request.id, now };
        let asked = declaration.validate()?;
        match self.carry_out(&by, declaration, &asked, key, without).await {
            Err(error @ Error::PolicyDenied { .. }) => {
                self.record(vec![denial(&by, declaration, &error)]).await?;
                Err(error)
            }
            answer => answer,
        }
    }

    async fn carry_out(
        &self,
        by: &Declarer,
        declaration: &Declaration,
        asked: &Authority,
        key: Option<IdempotencyKey>,
        without: bool,
    ) -> Result<Declared, Error> {
        let weighed = self.weigh(&by.holder.attested, Words::from(declaration), asked, by.now);
        let weighed = self.decided(Action::Declare, weighed)?;
        let Some(authority) = weighed.authority.filter(|_| declaration.partial || weighed.refused.is_empty()) else {
            return Err(refusal(weighed.refused));
        };
        let expires_at = deadline(declaration.ttl, DEFAULT_TTL, &weighed.limits, by.now, by.now)?;
        let status = self.parts.ledger.status_index().await.map_err(|why| in_doubt(&why))?;
        let lives_until = longest_life(&weighed.limits, by.now)?;
        let mut task = self.new_task(by, declaration, authority, (status, expires_at, lives_until))?;
        task.credentials_live = Some(weighed.credentials_live);
        task.policies = weighed.policies;
        let call = Call { request: &by.request, task: None, now: by.now };
        self.keep_out(&task, Action::Declare, &call, &by.actor).await?;
        if let Some(key) = key {
            task.id = self.claim(by, &key, &task.id).await?;
            if let Some(held) = self.parts.ledger.task(&task.id).await.map_err(|why| in_doubt(&why))? {
                let spent = self.spend(&by.holder).await?;
                return self.repeat(by, held, weighed.limits, spent).await;
            }
        }
        let (drafts, refused) = self.decide(&by.holder, &task, expires_at, &declaration.credentials, by.now)?;
        if !without && !refused.is_empty() {
            return Err(refusal(refused));
        }
        let drafts = self.give_places(&task.id, drafts, by.now).await?;
        task.denied = together(weighed.refused.into_iter().chain(refused).collect());
        task.leases = drafts.iter().map(|draft| draft.lease().id.clone()).collect();
        self.write(by, Arc::new(task), drafts, weighed.limits).await
    }

    /// Decides on every (location, privilege). What no service answers for is refused whatever policy says.
    pub(super) fn weigh(
        &self,
        attested: &Attested,
        words: Words<'_>,
        asked: &Authority,
        now: Time,
    ) -> Result<Weighed, Error> {
        if attested.owners().is_some_and(|owners| !owners.iter().any(|owner| owner == words.owner)) {
            let detail = "`owner` is not among those that the attestor's configuration allows for this workload";
            return Err(Error::PolicyDenied { limit: Limit::Policy, denied: Vec::new(), detail: detail.into() });
        }
        // Where it is known, nobody takes another's name, or gets out of the way of a lock by it.
        let bound = attested.facts().sandbox.as_deref();
        if bound.is_some_and(|bound| words.sandbox.is_some_and(|said| said != bound)) {
            let detail = "`sandbox` is not the one that the evidence names: leave it out, or say that one";
            return Err(Error::PolicyDenied { limit: Limit::Policy, denied: Vec::new(), detail: detail.into() });
        }
        let (mut refused, rules) = (Vec::new(), self.rules());
        if let Some(detail) = rules.parties.refuses_owner(words.owner, attested.workload()) {
            return Err(Error::PolicyDenied { limit: Limit::Policy, denied: Vec::new(), detail: detail.into() });
        }
        let served = asked.filter(|detail, location, privilege| {
            let served = rules.parties.serves(location);
            if !served && let Some(detail) = detail.slice(location, privilege) {
                refused.push(Refused { limit: Limit::Audience, denied: Denied { detail, policies: Vec::new() } });
            }
            served
        });
        let Some(served) = served else {
            let (policies, limits) = (Vec::new(), Limits::default());
            return Ok(Weighed { authority: None, refused, policies, limits, credentials_live: 0 });
        };
        let grant = rules.policies.declare(attested, words, &served, now).map_err(|why| undecided(&why))?;
        refused.extend(grant.denied.into_iter().map(|denied| Refused { limit: Limit::Policy, denied }));
        let credentials_live = rules.policies.longest_ttl().unwrap_or_default().max(credential::MAX_TTL);
        let (authority, policies, limits) = (grant.authority, grant.policies, grant.limits);
        Ok(Weighed { authority, refused, policies, limits, credentials_live })
    }

    /// Counts a decision on a task.
    pub(super) fn decided(&self, action: Action, weighed: Result<Weighed, Error>) -> Result<Weighed, Error> {
        let outcome = match &weighed {
            Ok(weighed) if weighed.refused.is_empty() => Outcome::Permit,
            Ok(_) | Err(Error::PolicyDenied { .. }) => Outcome::Deny,
            Err(_) => Outcome::Error,
        };
        self.parts.metrics.decided(action, outcome);
        weighed
    }

    fn new_task(
        &self,
        by: &Declarer,
        said: &Declaration,
        authority: Authority,
        (status, expires_at, lives_until): (StatusIndex, Time, Time),
    ) -> Result<Task, Error> {
        let attested = &by.holder.attested;
        Ok(Task {
            id: TaskId::root(by.now).map_err(|_| Error::Unavailable(Input::Store))?,
            workload: attested.workload().clone(),
            instance: attested.instance().to_owned(),
            kind: attested.kind(),
            attestor: attested.attestor().to_owned(),
            evidence_issuer: attested.issuer().map(str::to_owned),
            marks: attested.marks().to_vec(),
            purpose: said.purpose.clone(),
            owner: said.owner.clone(),
            environment: said.environment.clone(),
            sandbox: said.sandbox.clone(),
            bound_sandbox: attested.facts().sandbox.clone(),
            data_classification: said.data_classification.clone(),
            context: said.context.clone(),
            authority,
            denied: Vec::new(),
            policies: Vec::new(),
            leases: Vec::new(),
            status,
            generation: self.parts.ledger.generation(),
            created_at: by.now,
            expires_at,
            lives_until: Some(lives_until),
            credentials_live: None,
        })
    }

    /// The id that this `Idempotency-Key` of this very instance stands for.
    async fn claim(&self, by: &Declarer, key: &IdempotencyKey, id: &TaskId) -> Result<TaskId, Error> {
        // Length-prefixed, so that no two (workload, instance, key) can be written alike.
        let (workload, instance, attestor) =
            (by.holder.attested.workload(), by.holder.attested.instance(), by.holder.attested.attestor());
        let lengths = (workload.as_str().len(), instance.len(), attestor.len());
        let scope = format!("{lengths:?}{workload}{instance}{attestor}{}", key.key);
        let new = Remembered { task: id.clone(), body: key.body.clone() };
        let keep_until = after(by.now, MAX_TTL).unwrap_or(by.now);
        let digest = sha256_hex(scope.as_bytes());
        let stands = self.parts.ledger.remember(&digest, new, keep_until).await.map_err(|why| in_doubt(&why))?;
        if stands.body == key.body { Ok(stands.task) } else { Err(Error::IdempotencyKeyReused) }
    }

    async fn write(
        &self,
        by: &Declarer,
        task: Arc<Task>,
        drafts: Vec<Draft>,
        limits: Limits,
    ) -> Result<Declared, Error> {
        tracing::Span::current().record("task", task.id.as_str());
        let spent = self.spend(&by.holder).await?;
        // On record before it exists, so that no task is ever live that nobody declared.
        let intent = self
            .intend(vec![entry(by.now, &by.request, &by.actor, &task.id, declared(&task, &by.holder.attested))])
            .await?;
        let leases: Vec<_> = drafts.iter().map(|draft| draft.lease().clone()).collect();
        match self.parts.ledger.declare(&task, &leases).await.map_err(|why| in_doubt(&why))? {
            Written::Done => {
                let call = Call { request: &by.request, task: Some(&task.id), now: by.now };
                if let Err(error) = self.keep_out(&task, Action::Declare, &call, &by.actor).await {
                    if matches!(error, Error::Locked) {
                        self.take_back(&task, by).await;
                        intent.not_done();
                    }
                    return Err(error);
                }
                intent.done();
            }
            // The same key, at the same moment, in another request: that one declared it.
            Written::Exists => {
                intent.not_done();
                let held = self.parts.ledger.task(&task.id).await.map_err(|why| in_doubt(&why))?;
                return self.repeat(by, held.ok_or(Error::TaskNotActive)?, limits, spent).await;
            }
            Written::Ended(_) | Written::Missing => {
                intent.not_done();
                return Err(Error::TaskNotActive);
            }
        }
        self.parts.metrics.task(Step::Declared);
        self.live.declared(&task.id, task.expires_at, by.now);
        let (credentials, task_token) = self.hand_over(by, (&task, task.expires_at), drafts, limits, &spent).await?;
        self.live.minted(&task.id, &expiries(&credentials), by.now);
        let held = Held { expires_at: task.expires_at, task, end: None };
        Ok(Declared { held, task_token, credentials, now: by.now })
    }

    /// Ends a task whose declaration a lock overtook: it is in the store, and whoever expands the lock may have looked before.
    async fn take_back(&self, task: &Task, by: &Declarer) {
        let reason = "a lock came before it was declared";
        let (state, at, workload) = (State::Revoked, self.now(), by.holder.attested.workload().to_string());
        let end = End { task: task.id.clone(), state, at, reason: Some(reason.to_owned()), by: workload };
        if let Err(error) = self.stop(end, false, &by.actor, &by.request).await {
            tracing::error!(%error, task = %task.id, "a task that a lock keeps out was declared, and could not be ended");
        }
    }

    /// A retry: the same task, and those of its leases that still live, signed again, if policy still permits them.
    async fn repeat(&self, by: &Declarer, held: Held, limits: Limits, spent: Spent) -> Result<Declared, Error> {
        let task = held.task.clone();
        if !owns(&by.holder.attested, &task) {
            return Err(Error::NotFound(Sought::Task));
        }
        if held.state(by.now) != State::Active || self.revocations.covers(&task.id) {
            return Err(Error::TaskNotActive);
        }
        let leases = self.parts.ledger.leases(&task.id, &task.leases).await.map_err(|why| in_doubt(&why))?;
        let (mut drafts, rules) = (Vec::new(), self.rules());
        for lease in leases {
            let lives = |lease: &Lease| lease.expires_at > by.now && !self.revocations.has_lease(&lease.id);
            let Some(lease) = lease.filter(lives) else { continue };
            if lease.bound_to.is_some() && lease.bound_to != by.holder.binding() {
                let why = "a retry comes with a proof of the same key, or over TLS with the same certificate";
                self.turn_back(&by.holder, "possession", why);
                return Err(Error::ProofInvalid(why));
            }
            let details = task.authority.slice(&lease.resource, lease.privilege);
            let (location, privilege) = (lease.resource.clone(), lease.privilege);
            let refuse = |limit, policies| {
                let detail = AccessDetail::of(location.clone(), privilege);
                refusal(vec![Refused { limit, denied: Denied { detail, policies } }])
            };
            if !rules.parties.serves(&location) {
                return Err(refuse(Limit::Audience, Vec::new()));
            }
            // What is not bound may have to be by now.
            rules.parties.binding(&location).of(lease.kind, lease.bound_to.clone())?;
            let algorithm = self.algorithm(&rules, &location, lease.kind, by.now)?;
            let ask = Ask { words: Words::from(&*task), location: &location, privilege, details };
            match self.decide_one(&rules, &by.holder.attested, ask, by.now)? {
                Verdict::Permit(permit) => {
                    drafts.push(Draft::again(permit, lease, held.expires_at, algorithm, by.now)?);
                }
                Verdict::Denied(policies) => return Err(refuse(Limit::Policy, policies)),
            }
        }
        let (credentials, task_token) = self.hand_over(by, (&task, held.expires_at), drafts, limits, &spent).await?;
        Ok(Declared { held, task_token, credentials, now: by.now })
    }

    /// The credentials, and the task token for whoever showed a key.
    async fn hand_over(
        &self,
        by: &Declarer,
        (task, deadline): (&Task, Time),
        drafts: Vec<Draft>,
        limits: Limits,
        spent: &Spent,
    ) -> Result<(Vec<Credential>, Option<TaskToken>), Error> {
        let call = Call { request: &by.request, task: Some(&task.id), now: by.now };
        let token = self.task_token(&by.holder, &by.actor, &call, (task, deadline), limits.attest_every)?;
        let (token, issued) = token.unzip();
        let considered = considered(&by.holder.attested, Words::from(task));
        let minted = drafts
            .iter()
            .map(|draft| entry(by.now, &by.request, &by.actor, &task.id, minted(task, draft, &considered)));
        let entries = minted.chain(issued).collect();
        let (credentials, intent) = self.release(task, drafts, entries, spent).await?;
        let task_token = token.map(|token| self.sign_task_token(token)).transpose()?;
        intent.done();
        Ok((credentials, task_token))
    }
}

/// When a task ends that is declared or renewed `now` for `ttl` seconds. A `ttl` above policy is refused; the default is brought
/// down to it. Both are brought down to what the task may live without a renewal, and to the end of its longest life.
pub(super) fn deadline(
    ttl: Option<u32>,
    default: u32,
    limits: &Limits,
    created_at: Time,
    now: Time,
) -> Result<Time, Error> {
    let most = limits.max_ttl.unwrap_or(MAX_TTL);
    if ttl.is_some_and(|ttl| ttl > most) {
        return Err(Error::invalid(format!(
            "this task may live at most {most} seconds at a time: ask for a `ttl` up to that"
        )));
    }
    let ttl = ttl.unwrap_or(default).min(most).min(limits.idle_ttl.unwrap_or(most));
    let end = after(now, ttl).ok_or_else(|| Error::invalid("`ttl` is past the end of time"))?;
    Ok(end.min(longest_life(limits, created_at)?))
}

/// When a task ends at the latest, however often it is renewed: without a `@max_lifetime`, after one longest `ttl`.
pub(super) fn longest_life(limits: &Limits, created_at: Time) -> Result<Time, Error> {
    let life = limits.max_lifetime.or(limits.max_ttl).unwrap_or(MAX_TTL);
    after(created_at, life).ok_or_else(|| Error::invalid("the task would live past the end of time"))
}

fn declared(task: &Task, attested: &Attested) -> Event {
    Event::TaskDeclared {
        purpose: task.purpose.clone(),
        owner: task.owner.clone(),
        authority: task.authority.clone(),
        denied: task.denied.clone(),
        policies: task.policies.clone(),
        expires_at: task.expires_at,
        considered: considered(attested, Words::from(task)),
    }
}

fn denial(by: &Declarer, declaration: &Declaration, error: &Error) -> Entry {
    let denied = if let Error::PolicyDenied { denied, .. } = error { denied.clone() } else { Vec::new() };
    let (purpose, owner) = (declaration.purpose.clone(), declaration.owner.clone());
    let considered = considered(&by.holder.attested, Words::from(declaration));
    let event = Event::DeclarationDenied { purpose, owner, why: error.to_string(), denied, considered };
    Entry { time: by.now, request: by.request.clone(), actor: by.actor.clone(), task: None, event }
}
