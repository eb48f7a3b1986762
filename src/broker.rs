//! The use cases. The only place that knows the order of steps.
//!
//! **Declare** (`broker/declare.rs`): attest → policy decides on every (location, privilege) → on record → task and first leases
//! written in one step → as a mint.
//!
//! **Mint** (here): one `now` → attest → is the task this instance's, and active? → policy decides → the proof, if there is one, used
//! up → leases written, atomically with the check that the task and all its ancestors are active → the mint durable in the audit
//! log ‖ signatures → look once more whether anything that this broker knows of ended it → send. A crash leaves a lease without a
//! credential, never the reverse.
//!
//! **Introspect** (here): signature and times → is the caller one who may see it? → lease, task and lineage as they stand now.
//!
//! **Renew** (`broker/renew.rs`): attest → is the task this instance's, and active? → policy decides on it again, as when it was declared →
//! on record → the deadline is moved.
//!
//! **Report** (`broker/report.rs`): attest, or a service that was shown a credential → which reports are new? → on record → counted.
//!
//! **Complete, revoke** (`broker/revoke.rs`): durable intent in the audit log → the broker's own journal → one atomic step on the tree,
//! whatever the number of credentials → outcome in the audit log → answer. **Replay** (`broker/replay.rs`): whenever the store may have lost
//! something, it is told again of what is in the journal, before anything is vouched for; so have all other brokers that were there
//! (`broker/members.rs`).
//!
//! **Lock** (`broker/locks.rs`): durable intent in the audit log → the broker's own journal → on record in the store → told to the other brokers
//! → answer; what it matches ends behind that (`broker/expand.rs`). Whatever is declared, minted or renewed is held against the locks before
//! it is written, and after (`broker/lockout.rs`).
//!
//! **Revoke one credential** (`broker/revoke_lease.rs`): the same steps for a lease, whose task goes on.
//!
//! **Status lists** (`broker/status.rs`): what other brokers ended is read, for tasks below and tokens with places of their own
//! (`broker/placed.rs`) → the bits of the store and of the ends known here → a last look whether the store is still itself → signed.
//!
//! **Task token** (`broker/task_token.rs`): whoever showed a key gets one when declaring and renewing; on its task it stands for the evidence.
//!
//! **Certify** (`broker/certify.rs`): as a mint, for a key that the workload holds. **Revocation lists** (`broker/crl.rs`): the ends of the
//! tasks that have certificates, after that is the store a last look that it is still itself → signed → posted for every broker to give out.
//!
//! **Serve** (`broker/server.rs`): a certificate of the broker itself, for its own TLS listener: on record → signed.
//!
//! **Feed** (`broker/feed.rs`): the store is found to be itself → what other brokers ended is read → all that has ended, or what is new,
//! signed and pushed to whoever verifies.
//!
//! **Signals** (`broker/signals.rs`): what is in the journal is told to receivers, each at its own pace, until it is told or given up.
//!
//! **Look** (`broker/look.rs`): show and list; **follow** (`broker/follow.rs`): show again whenever it changes.
//! **Search** (`broker/search.rs`): what an id or a name belongs to, by the store and by this broker's log. **Trail**
//! (`broker/trail.rs`): that log, line by line. **Inventory** (`broker/inventory.rs`): which workloads there are. **Unused**
//! (`broker/unused.rs`): what was granted, and nobody needed.
//! **Timeline** (`broker/timeline.rs`): what is on record about a task, told again in the store for all brokers.
//! **Keys** (`broker/keys.rs`): the public keys of all brokers. **Imported keys** (`broker/imported.rs`): found → published →
//! known to every verifier → sign. **Rotate** (`broker/rotate.rs`): prepared and published → known to every
//! verifier → signs; the old one stays published until the last that it signed has expired. **Taint** (`broker/taint.rs`): a key is believed
//! by nobody any more, and signs nothing. **Presence** (`broker/presence.rs`): the keys of a broker that is gone are retired. **Adopt** (`broker/reload.rs`): other rules, from a configuration
//! that changed. What is alive is counted (`broker/live.rs`) for the metrics alone.
//!
//! Whatever cannot be told (store, audit log, policy engine) ends in [`Error::Unavailable`]: nothing is minted, nothing verifies.
//!
//! Rules that hold everywhere: who is calling, `broker/identify.rs` and `broker/people.rs`, and that they asked for what is not theirs, `broker/refused.rs`, and whose key it is, `broker/prove.rs`; whose a task is, `owns`; which audiences there are, [`crate::party::Parties::serves`]; how long a task may live,
//! `declare.rs`; how long a credential, [`crate::credential`]; what ends with a task, [`crate::id::TaskId::lineage`].

mod answered;
mod certify;
mod crl;
mod declare;
mod elsewhere;
mod evaluate;
mod expand;
mod feed;
mod follow;
mod generation;
mod heard;
mod identify;
mod imported;
mod intent;
mod inventory;
mod keys;
mod live;
mod lockout;
mod locks;
mod log_end;
mod look;
mod members;
mod minute;
mod one_look;
mod people;
mod placed;
mod presence;
mod prove;
mod reach;
mod refused;
mod reload;
mod renew;
mod replay;
mod report;
mod revoke;
mod revoke_lease;
mod rotate;
mod search;
mod server;
mod sight;
mod signals;
mod status;
mod strangers;
mod taint;
mod task_token;
mod timeline;
mod trail;
mod unused;
mod whose;

use arc_swap::ArcSwap;
use identify::Caller;
use intent::Intent;
use prove::{Holder, Spent};
use serde_json::Value;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

use crate::{
    attest::{Attested, Attestors},
    audit::{Actor, Audit, Entry, Event, Span},
    claims::Claims,
    clock::{Clock, Time, after},
    credential::{Bounds, Credential, DEFAULT_TTL, Draft, Keyring, LeakedKeys},
    error::{Denied, Error, Input, Limit, Sought},
    id::TaskId,
    lease::{Held, InDoubt, Ledger, Written},
    metrics::{Action, Metrics, Now, Outcome},
    party::{Act, Parties},
    policy::{Ask, Policies, Verdict, Words, considered},
    revocation::{Certificates, Crls, FeedTerms, Revocations, StatusLists},
    task::{AccessDetail, CredentialRequest, CredentialType, ReportTerms, Task, check_requests},
    telemetry::Telemetry,
    verify::{Signed, Token},
};

pub use certify::Certified;
pub use crl::Crl;
pub use declare::{Declared, IdempotencyKey};
pub use feed::{Follower, FollowerRoom, Left, Push, Sent};
pub use follow::{Following, Turn};
pub use identify::Presented;
pub use inventory::{Inventory, Workload};
pub use keys::PublicKeys;
pub use locks::{LockStanding, Locked, Lockout, Weighing};
pub use look::{Filter, Page, Seen};
pub use prove::{Manner, PresentedTaskToken, ProofOf};
pub use reach::{Arrival, Reach, Revoked};
pub use renew::Renewed;
pub use report::Reported;
pub use revoke_lease::RevokedLease;
pub use rotate::{KeyLife, KeyState, ListedKey};
pub use search::{Found, FoundLease, Kind as MatchKind, Match, Mention, Mentions, Query};
pub use sight::{Gone, Place};
pub use signals::{Delivered, Poll, Polled, ReceiverStream, Signals};
pub use status::StatusList;
pub use task_token::Issued as TaskToken;
pub use trail::{Trail, Which};
pub use unused::{Grant, Period, UnseenLease, Unused, UnusedPage};

/// Everything a broker is made of.
pub struct Parts {
    /// Its name, to the octet.
    pub issuer: String,
    /// What holds until the configuration changes.
    pub rules: Rules,
    /// What was minted.
    pub ledger: Ledger,
    /// What it knows to have ended.
    pub revocations: Revocations,
    /// Who is told of it beside those who follow.
    pub signals: Signals,
    /// What it signs with.
    pub keys: Keyring,
    /// Whether a proof has to carry a nonce of ours.
    pub require_nonce: bool,
    /// Whether a certificate that ends before a revoke would have to show names no revocation list (RFC 9608).
    pub no_rev_avail: bool,
    /// Where it is reached by TLS of its own, which client certificates need: under its name, or another; `None` where it is not.
    pub tls_origin: Option<String>,
    /// Whether there is one operator alone, who holds all roles: without a configuration. What takes two people takes one then.
    pub one_operator: bool,
    /// Whether contents are kept with reports.
    pub reports: ReportTerms,
    /// Who may read the revocation feed.
    pub feed: FeedTerms,
    /// For how long another broker that gives no sign of life is waited for, after the store may have lost something.
    pub broker_gone_after: Duration,
    /// How long keys are kept by verifiers, and by the broker itself.
    pub key_life: KeyLife,
    /// What happened.
    pub audit: Audit,
    /// What is counted.
    pub metrics: Metrics,
    /// What is sent on.
    pub telemetry: Telemetry,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

/// Who is who and what is allowed: what becomes another set when the configuration does.
pub struct Rules {
    /// Who can prove what they are.
    pub attestors: Attestors,
    /// Who is known by configuration.
    pub parties: Parties,
    /// What is allowed.
    pub policies: Policies,
    /// Keys that are never certified.
    pub leaked: LeakedKeys,
}

/// The broker.
pub struct Broker {
    issuer: String,
    rules: ArcSwap<Rules>,
    /// Whether the configuration as it stands now was refused, and an older one is in force.
    outdated: AtomicBool,
    parts: Kept,
    revocations: Revocations,
    signals: Signals,
    replay: replay::Replay,
    members: members::Members,
    feed: feed::Feed,
    status_lists: StatusLists,
    own_places: placed::OwnPlaces,
    certificates: Certificates,
    /// The revocation lists as this broker gives them out, and those that it has posted.
    crls: Crls,
    posted: Crls,
    publishing: crl::Publishing,
    /// Whether the store was itself when it was last looked at ([`Broker::watch`]).
    vouched: AtomicBool,
    watching: one_look::OneLook<bool>,
    unseen: revoke::Quota,
    strangers: strangers::Strangers,
    callers: refused::Callers,
    reporting: report::Turns,
    followers: Arc<Semaphore>,
    live: live::Live,
    lockouts: lockout::Lockouts,
    known_keys: keys::KnownKeys,
    signing: imported::Signing,
    untold: timeline::Untold,
    answered: answered::Answered,
    readers: sight::Readers,
    inventory: inventory::FromLog,
    /// One turn of the keys at a time, and when a rotation could not begin.
    turning_keys: tokio::sync::Mutex<Option<Time>>,
    presence: tokio::sync::Mutex<presence::Presence>,
    /// From when on every verifier knows our keys (Unix milliseconds).
    signs_from: AtomicI64,
}

/// The parts that stay as they are.
struct Kept {
    ledger: Ledger,
    broker_gone_after: Duration,
    keys: Arc<Keyring>,
    key_life: KeyLife,
    require_nonce: bool,
    one_operator: bool,
    no_rev_avail: bool,
    tls_origin: Option<String>,
    reports: ReportTerms,
    feed: FeedTerms,
    audit: Audit,
    metrics: Metrics,
    telemetry: Telemetry,
    clock: Arc<dyn Clock>,
}

/// A request, as far as every use case needs it.
pub struct Request {
    /// Who is calling.
    pub presented: Presented,
    /// `x-request-id`.
    pub id: String,
}

/// Which call it is, and when: what every record of it says.
struct Call<'a> {
    request: &'a str,
    task: Option<&'a TaskId>,
    now: Time,
}

/// The answer to an introspection (RFC 7662). There is one inactive answer, whatever the reason.
#[derive(Debug)]
pub enum Introspection {
    /// Alive at this moment.
    Active(Box<Claims>, CredentialType),
    /// Unknown, expired, ended, foreign, or in doubt.
    Inactive,
}

impl Broker {
    /// Assembles a broker.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            issuer,
            rules,
            ledger,
            revocations,
            signals,
            keys,
            require_nonce,
            one_operator,
            no_rev_avail,
            tls_origin,
            reports,
            feed,
            broker_gone_after,
            key_life,
            audit,
            metrics,
            telemetry,
            clock,
        } = parts;
        let (publishing, keys) = (crl::Publishing::new(ledger.changes()), Arc::new(keys));
        let untold = timeline::Untold::of(&audit);
        Self {
            issuer,
            rules: ArcSwap::from_pointee(rules),
            outdated: AtomicBool::new(false),
            parts: Kept {
                ledger,
                broker_gone_after,
                keys,
                key_life,
                require_nonce,
                one_operator,
                no_rev_avail,
                tls_origin,
                reports,
                feed,
                audit,
                metrics,
                telemetry,
                clock,
            },
            revocations,
            signals,
            replay: replay::Replay::default(),
            members: members::Members::default(),
            feed: feed::Feed::new(feed.followers),
            status_lists: StatusLists::default(),
            own_places: placed::OwnPlaces::default(),
            certificates: Certificates::default(),
            crls: Crls::default(),
            posted: Crls::default(),
            publishing,
            vouched: AtomicBool::new(true),
            watching: one_look::OneLook::default(),
            unseen: revoke::Quota::default(),
            strangers: strangers::Strangers::default(),
            callers: refused::Callers::default(),
            reporting: report::Turns::default(),
            followers: Arc::new(Semaphore::new(follow::MOST)),
            live: live::Live::default(),
            lockouts: lockout::Lockouts::default(),
            known_keys: keys::KnownKeys::default(),
            signing: imported::Signing::default(),
            untold,
            answered: answered::Answered::default(),
            readers: sight::Readers::default(),
            inventory: inventory::FromLog::default(),
            turning_keys: tokio::sync::Mutex::default(),
            presence: tokio::sync::Mutex::default(),
            signs_from: AtomicI64::new(i64::MAX),
        }
    }

    /// The issuer.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Whether tokens are bound to client certificates (RFC 8705).
    #[must_use]
    pub fn binds_certificates(&self) -> bool {
        self.parts.tls_origin.is_some()
    }

    /// Whether a client certificate can be evidence.
    #[must_use]
    pub fn takes_certificates(&self) -> bool {
        self.binds_certificates() && self.rules().attestors.take_certificates()
    }

    /// Whether a JWT-SVID can be a client's assertion.
    #[must_use]
    pub fn takes_jwt_svids(&self) -> bool {
        self.rules().attestors.take_jwt_svids(&self.issuer)
    }

    /// Where client certificates can be shown, if that is not under the name of the issuer (RFC 8705 section 5).
    #[must_use]
    pub fn tls_alias(&self) -> Option<&str> {
        self.parts.tls_origin.as_deref().filter(|origin| *origin != self.issuer)
    }

    /// Whether a page of this origin (RFC 6454) would be the broker's own.
    #[must_use]
    pub fn is_own_origin(&self, origin: &str) -> bool {
        origin == self.issuer || self.tls_alias() == Some(origin)
    }

    /// Mints credentials for a task: all of them or none.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`], [`Error::EvidenceInvalid`], [`Error::PolicyDenied`] with all that was refused,
    /// [`Error::NotFound`] for what is unknown or another's, [`Error::TaskNotActive`], [`Error::Unavailable`].
    pub async fn mint(
        &self,
        request: Request,
        id: &TaskId,
        asked: &[CredentialRequest],
    ) -> Result<Vec<Credential>, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: Some(id), now };
        let holder = self.attest(request.presented, "mint", &call).await?;
        let attested = &holder.attested;
        self.may_sign(now)?;
        check_requests(asked)?;
        let task = self.own_task(&holder, id, "mint", &call).await?;
        let actor = actor_of(attested);
        self.keep_out(&task, Action::Mint, &call, &actor).await?;
        let over = || entry(now, &request.id, &actor, id, Event::MintRefused { code: "task_not_active" });
        let deadline = self.deadline(&task, asked, now).await?;
        if now >= deadline || self.revocations.covers(id) {
            self.record(vec![over()]).await?;
            return Err(Error::TaskNotActive);
        }
        let (drafts, denied) = self.decide(&holder, &task, deadline, asked, now)?;
        let considered = considered(attested, Words::from(&*task));
        if !denied.is_empty() {
            let denials = denied.iter().map(|d| mint_denied(&d.denied, &considered));
            let entries = denials.map(|event| entry(now, &request.id, &actor, id, event)).collect();
            self.record(entries).await?;
            return Err(refusal(denied));
        }
        let drafts = self.give_places(id, drafts, now).await?;
        let spent = self.spend(&holder).await?;
        let leases: Vec<_> = drafts.iter().map(|draft| draft.lease().clone()).collect();
        match self.parts.ledger.mint(&task, &leases).await.map_err(|why| in_doubt(&why))? {
            Written::Done => {}
            Written::Ended(_) => {
                self.record(vec![over()]).await?;
                return Err(Error::TaskNotActive);
            }
            // `Exists` is an answer to declarations alone.
            Written::Missing | Written::Exists => return Err(Error::NotFound(Sought::Task)),
        }
        self.keep_out(&task, Action::Mint, &call, &actor).await?;
        let entries =
            drafts.iter().map(|draft| entry(now, &request.id, &actor, id, minted(&task, draft, &considered))).collect();
        let (credentials, intent) = self.release(&task, drafts, entries, &spent).await?;
        intent.done();
        self.live.minted(id, &expiries(&credentials), now);
        Ok(credentials)
    }

    /// Whether a token is alive at this moment. A service sees its own audiences, an operator all of them.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`] when the caller is neither; [`Error::Unavailable`] when an operator's look cannot be recorded.
    pub async fn introspect(&self, request: Request, token: &str) -> Result<Introspection, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: None, now };
        // A person who is nothing here is no client.
        let no_client =
            |error| if matches!(error, Error::PolicyDenied { .. }) { Error::EvidenceInvalid } else { error };
        let caller = self.identify(request.presented, &call).await.map_err(no_client)?;
        let sees = |claims: &Claims| match &caller {
            Caller::Service(service) => service.answers_for(&claims.aud),
            Caller::Operator(operator) => operator.may(Act::Introspect),
            Caller::Owner(_) | Caller::Workload(_) => false,
        };
        match &caller {
            Caller::Owner(_) | Caller::Workload(_) => {
                return Err(self.turn_down(&caller, "introspect", &call, Error::EvidenceInvalid));
            }
            Caller::Operator(_) | Caller::Service(_) => {}
        }
        let genuine = self.genuine(token, sees, now).await;
        let answer = match &genuine {
            Some((kid, token)) => self.alive(kid, token, now).await.unwrap_or(Introspection::Inactive),
            None => Introspection::Inactive,
        };
        if let (Caller::Service(service), Some((_, token))) = (&caller, &genuine) {
            self.note_answer(service, token.claims(), &answer, &call).await;
        }
        if let Caller::Operator(operator) = &caller {
            let task = match &answer {
                Introspection::Active(claims, _) => Some(&claims.task.id),
                Introspection::Inactive => None,
            };
            self.note(operator, &Call { request: &request.id, task, now }, looked("introspection")).await?;
        }
        Ok(answer)
    }

    /// A token of ours that the caller may see, and the key that signed it; `None` where it is none, or where that cannot be told.
    async fn genuine(&self, token: &str, sees: impl Fn(&Claims) -> bool, now: Time) -> Option<(String, Signed)> {
        if !self.vouched.load(Ordering::Acquire) {
            return None;
        }
        let token = Token::parse(token).ok()?;
        let key = self.verifying_key(&token).await?;
        let verified = token.verify(&key, &self.issuer, now).ok()?;
        let claims = verified.claims();
        let own = sees(claims) && claims.task.generation == self.parts.ledger.generation();
        own.then(|| (token.kid().to_owned(), verified))
    }

    /// `None` where the token is not alive, or where that cannot be told.
    async fn alive(&self, kid: &str, verified: &Signed, now: Time) -> Option<Introspection> {
        let claims = verified.claims();
        if self.revocations.covers(&claims.task.id) || self.revocations.has_lease(&claims.jti) {
            return None;
        }
        let live = self.parts.ledger.live(&claims.task.id, &claims.jti, kid).await;
        let (lease, Held { task, expires_at, .. }) = live
            .inspect_err(|why| tracing::error!(%why, "the store is in doubt: introspection answers inactive"))
            .ok()??;
        let is_locked = self.is_locked(claims, now).await;
        let is_locked = is_locked
            .inspect_err(|why| tracing::error!(%why, "the locks are in doubt: introspection answers inactive"))
            .unwrap_or(true);
        let same = !is_locked
            && lease.resource == claims.aud
            && lease.privilege == claims.scope
            && lease.kind == verified.form()
            && lease.bound_to == claims.cnf
            && lease.expires_at.timestamp() == claims.exp
            && task.id == claims.task.id
            && task.workload == claims.client_id;
        let alive = same && lease.expires_at > now && expires_at > now;
        alive.then(|| Introspection::Active(Box::new(claims.clone()), verified.form()))
    }

    /// What is missing for this broker to mint; empty when it is ready.
    pub async fn missing(&self) -> Vec<Input> {
        let mut missing = Vec::new();
        if !self.parts.audit.is_healthy() {
            missing.push(Input::Audit);
        }
        if !self.can_sign(self.now()) {
            missing.push(Input::Keys);
        }
        if !self.watch().await {
            missing.push(Input::Store);
        }
        missing
    }

    /// Looks whether the store is still the one that was opened. In between, what it was the last time holds: a store in doubt
    /// is refused at once, instead of after its deadline, and a store that forgot everything gets nothing new.
    pub async fn watch(&self) -> bool {
        let look = async {
            let taken_up = self.take_up().await.inspect_err(|why| tracing::warn!(%why, "the store is in doubt"));
            self.vouched.store(taken_up.is_ok(), Ordering::SeqCst);
            // Whoever found that out meanwhile said so before this, or takes it back after.
            if self.members.is_gainsaid() {
                self.vouched.store(false, Ordering::SeqCst);
            }
            taken_up.is_ok() && !self.members.is_gainsaid()
        };
        self.watching.look(look).await
    }

    /// What happened.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.parts.audit
    }

    /// What is sent on.
    #[must_use]
    pub fn telemetry(&self) -> &Telemetry {
        &self.parts.telemetry
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// What is so at this moment, from memory alone: it is answered whatever the store does.
    #[must_use]
    pub fn counted(&self) -> Now {
        self.count_signals();
        let (live_tasks, live_credentials) = self.live.count(self.now(), |id| self.revocations.covers(id));
        let store_up = self.vouched.load(Ordering::Acquire);
        let ready = store_up && self.can_sign(self.now()) && self.parts.audit.is_healthy();
        let locks = self.locks_in_force(self.now()) as u64;
        let brokers_awaited = self.awaited().len() as u64;
        Now { live_credentials, live_tasks, locks, brokers_awaited, store_up, ready, current: !self.is_outdated() }
    }

    // --- the steps that the use cases share ---

    /// Whether the store was itself when it was last looked at.
    fn is_vouched(&self) -> bool {
        self.vouched.load(Ordering::Acquire)
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    fn now(&self) -> Time {
        self.parts.clock.now()
    }

    /// A task of this very instance; anybody else's does not exist.
    async fn own_task(
        &self,
        holder: &Holder,
        id: &TaskId,
        asked: &'static str,
        call: &Call<'_>,
    ) -> Result<Arc<Task>, Error> {
        let task = self.parts.ledger.declared(id).await.map_err(|why| in_doubt(&why))?;
        let own = task.filter(|task| owns(&holder.attested, task));
        own.ok_or_else(|| self.turn_down(holder, asked, call, Error::NotFound(Sought::Task)))
    }

    /// The deadline of a task, with one look at the store only where it may bound what is asked for.
    async fn deadline(&self, task: &Task, asked: &[CredentialRequest], now: Time) -> Result<Time, Error> {
        let longest = asked.iter().map(|request| request.ttl.unwrap_or(DEFAULT_TTL)).max().unwrap_or_default();
        let wanted = after(now, longest).unwrap_or(Time::MAX_UTC);
        self.parts.ledger.deadline(task, wanted).await.map_err(|why| in_doubt(&why))
    }

    /// Decides on each credential on its own.
    fn decide(
        &self,
        holder: &Holder,
        task: &Task,
        deadline: Time,
        asked: &[CredentialRequest],
        now: Time,
    ) -> Result<(Vec<Draft>, Vec<Refused>), Error> {
        let (mut drafts, mut denied) = (Vec::new(), Vec::new());
        let (rules, attested) = (self.rules(), &holder.attested);
        for request in asked {
            let details = task.authority.slice(&request.resource, request.privilege);
            let refuse = |limit, policies| {
                let detail = AccessDetail::of(request.resource.clone(), request.privilege);
                Refused { limit, denied: Denied { detail, policies } }
            };
            let crossed = if !rules.parties.serves(&request.resource) {
                Some(Limit::Audience)
            } else if !task.authority.reaches(&request.resource) {
                Some(Limit::Location)
            } else if details.is_empty() {
                Some(Limit::Privilege)
            } else {
                None
            };
            if let Some(limit) = crossed {
                self.parts.metrics.decided(Action::Mint, Outcome::Deny);
                denied.push(refuse(limit, Vec::new()));
                continue;
            }
            let ask =
                Ask { words: Words::from(task), location: &request.resource, privilege: request.privilege, details };
            match self.decide_one(&rules, attested, ask, now)? {
                Verdict::Permit(permit) => {
                    let bound_to = rules.parties.binding(&request.resource).of(request.kind, holder.binding())?;
                    let algorithm = self.algorithm(&rules, &request.resource, request.kind, now)?;
                    let ends = [attested.expires_at(), holder.holds_until(bound_to.as_ref())];
                    let evidence = ends.into_iter().flatten().min();
                    let (ttl, form) = (request.ttl, request.kind);
                    let bounds = Bounds { task, deadline, evidence, ttl, form, bound_to, algorithm };
                    drafts.push(Draft::prepare(permit, &bounds, now)?);
                }
                Verdict::Denied(policies) => denied.push(refuse(Limit::Policy, policies)),
            }
        }
        Ok((drafts, denied))
    }

    /// What policy says of one credential: that of the set whose services it is for.
    fn decide_one(&self, rules: &Rules, attested: &Attested, ask: Ask<'_>, now: Time) -> Result<Verdict, Error> {
        let verdict = rules.policies.mint(attested, ask, now).map_err(|why| undecided(&why));
        let outcome = match &verdict {
            Ok(Verdict::Permit(_)) => Outcome::Permit,
            Ok(Verdict::Denied(_)) => Outcome::Deny,
            Err(_) => Outcome::Error,
        };
        self.parts.metrics.decided(Action::Mint, outcome);
        verdict
    }

    /// The last steps of every mint: leases are written; now the audit record becomes durable while the drafts are signed,
    /// and the credentials leave only if nothing ended the task meanwhile.
    async fn release(
        &self,
        task: &Task,
        drafts: Vec<Draft>,
        entries: Vec<Entry>,
        _: &Spent,
    ) -> Result<(Vec<Credential>, Intent<'_>), Error> {
        let (intent, credentials) = tokio::join!(self.intend(entries), self.sign(task, drafts));
        let intent = intent?;
        let credentials = if self.revocations.covers(&task.id) { Err(Error::TaskNotActive) } else { credentials };
        let credentials = match self.locked_by(task, self.now()).await {
            Ok(None) => credentials,
            Ok(Some(_)) => Err(Error::Locked),
            Err(error) => Err(error),
        };
        // What is minted once is signed again for a retry.
        let credentials = credentials.map(|mut credentials| {
            credentials.retain(|credential| !self.revocations.has_lease(&credential.lease.id));
            credentials
        });
        let credentials = match credentials {
            Ok(credentials) => credentials,
            Err(error) => {
                intent.not_done();
                return Err(error);
            }
        };
        for credential in &credentials {
            self.parts.metrics.minted(credential.lease.kind.typ());
        }
        Ok((credentials, intent))
    }

    async fn record(&self, entries: Vec<Entry>) -> Result<(), Error> {
        self.append(entries).await.map(drop)
    }

    /// Puts entries on record: where they stand.
    async fn append(&self, entries: Vec<Entry>) -> Result<Span, Error> {
        let begun = Instant::now();
        let recorded = self.parts.audit.record(&entries).await;
        self.parts.metrics.recorded(begun.elapsed(), recorded.is_ok());
        recorded.map_err(|why| {
            tracing::error!(%why, "the audit log took nothing");
            Error::Unavailable(Input::Audit)
        })
    }
}

/// One credential that was refused, and which line it would have crossed.
#[derive(Clone)]
struct Refused {
    limit: Limit,
    denied: Denied,
}

/// Whether the task is this very instance's. Two attestors may give the same names, and are not each other's witnesses.
fn owns(attested: &Attested, task: &Task) -> bool {
    attested.workload() == &task.workload
        && attested.instance() == task.instance
        && attested.attestor() == task.attestor
        && attested.issuer() == task.evidence_issuer.as_deref()
}

fn actor_of(attested: &Attested) -> Actor {
    Actor::Workload {
        workload: attested.workload().to_string(),
        instance: attested.instance().to_owned(),
        attestor: attested.attestor().to_owned(),
        evidence: attested.digest().to_owned(),
    }
}

fn entry(now: Time, request: &str, actor: &Actor, task: &TaskId, event: Event) -> Entry {
    Entry { time: now, request: request.to_owned(), actor: actor.clone(), task: Some(task.clone()), event }
}

fn looked(at: &str) -> Event {
    Event::Looked { at: at.to_owned() }
}

fn minted(task: &Task, draft: &Draft, considered: &Value) -> Event {
    let lease = draft.lease();
    Event::CredentialMinted {
        lease: lease.id.clone(),
        resource: lease.resource.to_string(),
        privilege: lease.privilege.to_string(),
        form: lease.kind.typ().to_owned(),
        expires_at: lease.expires_at,
        bound_to: lease.bound_to.clone(),
        owner: task.owner.clone(),
        policies: draft.policies().to_vec(),
        considered: considered.clone(),
    }
}

fn expiries(credentials: &[Credential]) -> Vec<Time> {
    credentials.iter().map(|credential| credential.lease.expires_at).collect()
}

fn mint_denied(denied: &Denied, considered: &Value) -> Event {
    Event::MintDenied { denied: denied.clone(), considered: considered.clone() }
}

/// The answer where credentials were refused: the first line that was crossed, and all that was refused.
fn refusal(refused: Vec<Refused>) -> Error {
    let limit = refused.first().map_or(Limit::Policy, |first| first.limit);
    let detail = match limit {
        Limit::Audience => "no [[service]] has the location as its audience, octet for octet",
        Limit::Location => "the location is not in the task's authority",
        Limit::Privilege => "the privilege is not in the task's authority for that location",
        Limit::Policy | Limit::Role => "policy does not allow it",
    };
    Error::PolicyDenied { limit, denied: together(refused), detail: detail.to_owned() }
}

/// What was refused, each detail once: locations that were refused alike stand together, so that an answer and a record are
/// never many times as long as what was asked.
fn together(refused: Vec<Refused>) -> Vec<Denied> {
    let mut all: Vec<Denied> = Vec::new();
    for Refused { denied, .. } in refused {
        let alike = |other: &&mut Denied| {
            other.policies == denied.policies && other.detail.differs_in_locations(&denied.detail)
        };
        match all.iter_mut().find(alike) {
            Some(other) => {
                let new = denied.detail.locations.into_iter().filter(|new| !other.detail.locations.contains(new));
                let new: Vec<_> = new.collect();
                other.detail.locations.extend(new);
            }
            None => all.push(denied),
        }
    }
    all
}

fn wrong_role(detail: &str) -> Error {
    Error::PolicyDenied { limit: Limit::Role, denied: Vec::new(), detail: detail.to_owned() }
}

fn in_doubt(why: &InDoubt) -> Error {
    tracing::error!(%why, "the store is in doubt");
    Error::Unavailable(Input::Store)
}

fn undecided(why: &crate::policy::Undecided) -> Error {
    tracing::error!(%why, "the policy engine gave no decision");
    Error::Unavailable(Input::Policy)
}
