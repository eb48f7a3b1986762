//! Revoking one credential, whose task and siblings go on: a token or a certificate that is in other hands, or that its holder needs no more.
//!
//! The same steps as the end of a task (`revoke.rs`): intent in the audit log → the broker's own journal → the tree of the task in the store
//! → the log of notices, and so every broker's feed → outcome in the audit log → answer. In the status lists it stands where its service has
//! each token have a place of its own (`placed.rs`); else a task has one bit for all its tokens: who goes by that alone accepts it until it
//! expires, and the answer says so.

use chrono::TimeDelta;
use std::sync::atomic::Ordering;

use super::{
    Broker, Call, Caller, Request, actor_of, entry, in_doubt, owns,
    reach::{FOLLOWERS_SKEW, Reach},
    revoke::lives_until,
    wrong_role,
};
use crate::{
    attest::TaskToken,
    audit::{Actor, Event},
    clock::Time,
    error::{Error, Input, Sought},
    id::{LeaseId, TaskId},
    lease::{InDoubt, LeaseEnd},
    metrics::Step,
    notice::{Notice, Subject, SubjectId},
    party::Act,
    revocation::{CRL_LIFE, STATUS_LIST_LIFE},
    task::StatusIndex,
    verify::Token,
};

/// How many tasks of the store are looked at for a credential of which nobody says which task it is of, and in how large steps.
const MOST_TASKS: usize = 5_000;
const STEP: usize = 200;

/// What revoking a credential came to.
#[derive(Debug)]
pub struct RevokedLease {
    /// Its `jti` or serial.
    pub lease: LeaseId,
    /// The task that it belongs to.
    pub task: TaskId,
    /// Whether the store has it; else the broker keeps on telling it.
    pub is_recorded: bool,
    /// Since when it is dead: the first that it was revoked.
    pub at: Time,
    /// When it ends by itself, at the latest.
    pub expires_at: Time,
    /// When every verifier that hears of it denies it: the latest of `reach` but `jwks_only`.
    pub effective_by: Time,
    /// By when each class of verifier denies it.
    pub reach: Vec<Reach>,
}

/// A credential that somebody wants dead.
struct Wanted {
    task: TaskId,
    lease: LeaseId,
    expires_at: Time,
    place: Option<StatusIndex>,
}

/// A credential that is dead.
struct Discarded {
    end: LeaseEnd,
    until: Time,
    /// Where the status lists show it.
    place: Option<StatusIndex>,
    /// Since when the store has it; `None`: the journal has it, and the store could not be told.
    effective_at: Option<Time>,
}

impl Broker {
    /// Revokes one credential. `of`: the task that it is said to be of, which whoever acts with a task token has to name. Idempotent: a second
    /// call gets the first one's instants.
    ///
    /// # Errors
    /// [`Error::NotFound`] for what is unknown, and for what is another's; [`Error::QuotaExceeded`] for a workload that has two looked for
    /// already and names no task; [`Error::Unavailable`] when it may not have been recorded: call again.
    pub async fn revoke_lease(
        &self,
        request: Request,
        lease: &LeaseId,
        of: Option<&TaskId>,
        reason: String,
    ) -> Result<RevokedLease, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: of, now };
        let caller = self.identify(request.presented, &call).await?;
        // Before anything is looked for: a look through all tasks costs the store more than it costs whoever asks for it.
        let _seat = match &caller {
            Caller::Service(service) => {
                let error = wrong_role("a service revokes nothing");
                return Err(self.turn_down(&**service, "revoke_lease", &call, error));
            }
            Caller::Workload(holder) if of.is_none() => Some(self.readers.seat(holder.attested.workload().as_str())?),
            Caller::Workload(_) | Caller::Operator(_) | Caller::Owner(_) => None,
        };
        let (found, lost) = match self.lease(lease, of).await {
            Ok(found) => (found, None),
            Err(why) => (None, Some(why)),
        };
        let task = found.as_ref().map(|wanted| &wanted.task).or(of.filter(|_| lost.is_some())).cloned();
        let call = Call { request: &request.id, task: task.as_ref(), now };
        let Some(task) = &task else {
            self.refuse_stranger(&caller, &call).await?;
            return Err(match lost {
                Some(why) => in_doubt(&why),
                None => self.turn_down(&caller, "revoke_lease", &call, Error::NotFound(Sought::Credential)),
            });
        };
        // Of another's credential it is told what is told of one that there is not.
        let none = Error::NotFound(Sought::Credential);
        let alike = |error| if matches!(error, Error::NotFound(_)) { none } else { error };
        let (actor, by, operator) = self.revoker(caller, task, &call).await.map_err(alike)?;
        let wanted = match (found, lost) {
            (Some(wanted), _) => wanted,
            // Whoever may revoke everything needs no store to be believed.
            (None, Some(_)) if operator => {
                Wanted { task: task.clone(), lease: lease.clone(), expires_at: lives_until(now), place: None }
            }
            (None, lost) => return Err(lost.map_or(Error::NotFound(Sought::Credential), |why| in_doubt(&why))),
        };
        let discarded = self.discard(wanted, (Some(reason), by), &actor, &call).await?;
        Ok(self.account_for(discarded, self.now()).await)
    }

    /// Revokes a token of the caller's own (RFC 7009). What is none, is over, or is another's stays as it is, and nobody is told which.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`] for whoever is no workload; [`Error::Unavailable`] where it may live: call again.
    pub async fn revoke_token(&self, request: Request, token: &str) -> Result<(), Error> {
        let now = self.now();
        let wanted = self.named_by(token, now).await;
        let task = wanted.as_ref().map(|wanted| wanted.task.clone());
        let call = Call { request: &request.id, task: task.as_ref(), now };
        let no_client =
            |error| if matches!(error, Error::PolicyDenied { .. }) { Error::EvidenceInvalid } else { error };
        let holder = match self.identify(request.presented, &call).await.map_err(no_client)? {
            Caller::Workload(holder) => holder,
            other @ (Caller::Operator(_) | Caller::Owner(_) | Caller::Service(_)) => {
                return Err(self.turn_down(&other, "revoke_token", &call, Error::EvidenceInvalid));
            }
        };
        self.spend(&holder).await?;
        if !self.vouched.load(Ordering::Acquire) {
            return Err(Error::Unavailable(Input::Store));
        }
        let Some(wanted) = wanted else { return Ok(()) };
        let task = self.parts.ledger.declared(&wanted.task).await.map_err(|why| in_doubt(&why))?;
        if !task.is_some_and(|task| owns(&holder.attested, &task)) {
            self.turn_down(&*holder, "revoke_token", &call, Error::NotFound(Sought::Credential));
            return Ok(());
        }
        let by = holder.attested.workload().to_string();
        let discarded = self.discard(wanted, (None, by), &actor_of(&holder.attested), &call).await?;
        discarded.effective_at.map(drop).ok_or(Error::Unavailable(Input::Store))
    }

    /// Who may not see leases at all hears that, and not that there is none.
    async fn refuse_stranger(&self, caller: &Caller, call: &Call<'_>) -> Result<(), Error> {
        match caller {
            Caller::Operator(operator) if operator.member().is_none() => self.allow(operator, Act::Revoke, call).await,
            Caller::Operator(_) | Caller::Owner(_) | Caller::Workload(_) | Caller::Service(_) => Ok(()),
        }
    }

    /// The credential with this id: of the task that is named, or of one of the newest.
    async fn lease(&self, lease: &LeaseId, of: Option<&TaskId>) -> Result<Option<Wanted>, InDoubt> {
        let ledger = &self.parts.ledger;
        let find = async |tasks: &[TaskId]| {
            let found = ledger.lease_of(lease, tasks).await?;
            Ok(found.map(|found| Wanted {
                task: found.task().clone(),
                lease: lease.clone(),
                expires_at: found.expires_at(),
                place: found.place(),
            }))
        };
        if let Some(of) = of {
            return find(std::slice::from_ref(of)).await;
        }
        let (mut before, mut looked_at) = (None, 0);
        while looked_at < MOST_TASKS {
            let (page, next) = ledger.tasks(before.as_ref(), STEP).await?;
            let ids: Vec<_> = page.into_iter().map(|held| held.task.id.clone()).collect();
            if let Some(found) = find(&ids).await? {
                return Ok(Some(found));
            }
            looked_at += STEP;
            before = next;
            if before.is_none() {
                break;
            }
        }
        Ok(None)
    }

    /// The credential that a token of ours is: an access token, a JWT-SVID or a task token.
    async fn named_by(&self, token: &str, now: Time) -> Option<Wanted> {
        let token = Token::parse(token).ok()?;
        let key = self.verifying_key(&token).await?;
        let (task, lease, expires_at) = if let Ok(signed) = token.verify(&key, &self.issuer, now) {
            let claims = signed.claims();
            (claims.task.id.clone(), claims.jti.clone(), Time::from_timestamp(claims.exp, 0)?)
        } else {
            let standing = TaskToken::read(token.unverified(), &key, &self.issuer, now).ok()?;
            (standing.task.id, standing.lease, standing.attested.expires_at()?)
        };
        // Nobody is told where it stands.
        Some(Wanted { task, lease, expires_at, place: None })
    }

    /// The steps, once it is known who may.
    async fn discard(
        &self,
        Wanted { task, lease, expires_at: until, place }: Wanted,
        (reason, by): (Option<String>, String),
        actor: &Actor,
        call: &Call<'_>,
    ) -> Result<Discarded, Error> {
        let line = |event| entry(call.now, call.request, actor, &task, event);
        let requested = Event::CredentialRevocationRequested { lease: lease.clone(), reason: reason.clone() };
        let intent = self.intend(vec![line(requested)]).await?;
        let dead_before = self.revocations.has_lease(&lease);
        let subject = Subject::Lease { lease: lease.clone(), task: task.clone() };
        let broker = self.revocations.broker().to_string();
        let notice = Notice { subject, at: call.now, until, reason, by, broker };
        let journaled = self.revocations.record(notice.clone()).await;
        if let Ok(standing) = &journaled {
            // Those that follow this broker need no store to hear of it.
            self.revocations.tell(standing);
        }
        // A journal that takes nothing is no reason to let it live.
        let notice = journaled.as_ref().unwrap_or(&notice);
        let (at, until) = (notice.at, notice.until);
        let (by, reason) = (notice.by.clone(), notice.reason.clone());
        let end = LeaseEnd { task: task.clone(), lease: lease.clone(), at, reason, by };
        let recorded = self.put_lease_end(&end, notice).await;
        if let Err(why) = &recorded {
            tracing::error!(%why, %lease, "the store is in doubt, and is told of this dead credential when it is not");
            self.replay.due();
        }
        if let Some(place) = place {
            self.status_lists.mark(place);
        }
        // A store that is not the one that was opened forgets what it was just told: recorded there is not recorded.
        let recorded = if self.watch().await { recorded.ok() } else { None };
        let Some((end, effective_at)) = recorded else {
            return match journaled {
                Ok(_) => Ok(Discarded { end, until, place, effective_at: None }),
                Err(_) => Err(Error::Unavailable(Input::Store)),
            };
        };
        let settles = intent.span();
        self.record(vec![line(Event::CredentialRevoked { lease, settles })]).await?;
        intent.settled();
        if !dead_before {
            self.parts.metrics.task(Step::CredentialRevoked);
        }
        journaled.map_err(|why| {
            tracing::error!(%why, "a dead credential is in the store alone");
            Error::Unavailable(Input::Journal)
        })?;
        Ok(Discarded { end, until, place, effective_at: Some(effective_at) })
    }

    /// In the store, and told to the other brokers: the end that stands, and since when.
    async fn put_lease_end(&self, end: &LeaseEnd, notice: &Notice) -> Result<(LeaseEnd, Time), InDoubt> {
        let log = Some(notice).filter(|notice| !self.revocations.is_logged(notice));
        let stands = self.parts.ledger.end_lease(end, notice.until, log).await?;
        self.revocations.logged(notice);
        Ok(stands)
    }

    /// Tells a store of dead credentials that it has lost, or never heard of: how many those were.
    pub(super) async fn replay_leases(&self, notices: &[Notice], now: Time) -> Result<u64, InDoubt> {
        // What has expired is dead without it.
        let ends: Vec<_> = notices.iter().filter(|notice| notice.until > now).filter_map(lease_end).collect();
        let asked: Vec<_> = ends.iter().map(|(end, _)| (end.task.clone(), end.lease.clone())).collect();
        let missing = self.parts.ledger.leases_not_ended(&asked).await?;
        let mut told = 0;
        for (end, until) in ends.iter().filter(|(end, _)| missing.contains(&end.lease)) {
            self.parts.ledger.end_lease(end, *until, None).await?;
            let event = Event::CredentialRevocationReplayed { lease: end.lease.clone() };
            self.parts.audit.note(entry(now, "", &Actor::Broker, &end.task, event));
            told += 1;
        }
        Ok(told)
    }

    async fn account_for(&self, discarded: Discarded, now: Time) -> RevokedLease {
        let Discarded { end, until, place, effective_at } = discarded;
        let LeaseEnd { task, lease, at, .. } = end;
        let expires_at = until.max(at);
        // Of what only the journal has nobody knows how soon it is everywhere.
        let within = |seconds: TimeDelta| effective_at.map_or(expires_at, |at| at + seconds).min(expires_at);
        let followed = within(self.longest_freshness() + FOLLOWERS_SKEW);
        let feed = self.reach_of_feed(&SubjectId::Lease(lease.clone()), followed, now).await;
        let by_keys = Reach::of("jwks_only", expires_at, now);
        let reach = if lease.is_serial() {
            vec![feed, Reach::of("crl", within(TimeDelta::seconds(i64::from(CRL_LIFE))), now), by_keys]
        } else {
            let asked = Reach::of("introspection", within(TimeDelta::zero()), now);
            let listed = TimeDelta::seconds(i64::from(STATUS_LIST_LIFE));
            let listed = place.map_or(expires_at, |_| within(listed));
            vec![asked, feed, Reach::of("status_list", listed, now), by_keys]
        };
        let hears = reach.iter().filter(|reach| reach.class != "jwks_only");
        let effective_by = hears.map(|reach| reach.by).max().unwrap_or(expires_at);
        RevokedLease { lease, task, is_recorded: effective_at.is_some(), at, expires_at, effective_by, reach }
    }
}

/// What the store is told of a dead credential, and until when it expires; `None` for a notice of something else.
fn lease_end(notice: &Notice) -> Option<(LeaseEnd, Time)> {
    let Subject::Lease { lease, task } = &notice.subject else { return None };
    let (task, lease, reason, by) = (task.clone(), lease.clone(), notice.reason.clone(), notice.by.clone());
    Some((LeaseEnd { task, lease, at: notice.at, reason, by }, notice.until))
}
