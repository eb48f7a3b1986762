//! Locking out: nothing that a lock matches is declared, minted or renewed until the lock is released, and what was is ended.
//!
//! **Lock**: durable intent in the audit log → the broker's own journal, from which on it holds here and is told to verifiers → on record in
//! the store → told to the other brokers → outcome in the audit log → answer. The tasks that it matches end behind that
//! (`expand.rs`). **Extend** and **release** take the same way: each is a later state of the same lock. Released is for good, and what the lock
//! has ended stays ended.

use chrono::TimeDelta;
use std::{cmp::Reverse, collections::HashMap};
use tokio::time::{Duration, Instant, sleep};

use super::{
    Broker, Call, Caller, Presented, Request, in_doubt,
    lockout::{is_in_force, state_of},
    looked,
    reach::FOLLOWERS_SKEW,
    wrong_role,
};
use crate::{
    audit::{Actor, Entry, Event},
    claims::{Lock as Claimed, LockMatch, LockSubject, NumericDate, WorkloadPattern},
    clock::{Time, whole_second},
    error::{Error, Input, Sought},
    id::{LockId, TaskId},
    lease::{Expansion, InDoubt},
    notice::{LockState, Notice, Release, Subject, SubjectId},
    party::Act,
    revocation::{CRL_LIFE, STATUS_LIST_LIFE},
    task::{State, Task, check_text},
};

/// How many locks may be in force at a time: each is held against whatever is verified.
const MOST: usize = 1000;
/// How long one responder keeps everybody out.
const ALL: TimeDelta = TimeDelta::minutes(15);
/// The latest end that anybody may name.
const LONGEST: TimeDelta = TimeDelta::days(366);
/// How long a lock without an end stands, if nobody releases it.
const LASTING: TimeDelta = TimeDelta::days(36_525);
/// How long verifiers are told that a lock was released: any that still holds it has been away for longer than anybody is.
const RELEASE_TOLD: TimeDelta = TimeDelta::days(30);
/// How often a change is made again that another broker overtook.
const TRIES: usize = 4;
/// How long a dry run looks at tasks, how many in one step, and how many owners it names.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long somebody waits for a lock to be effective, and how often it is looked whether it is.
const PATIENCE_OF_CALLER: Duration = Duration::from_secs(25);
const AGAIN: Duration = Duration::from_millis(250);
const LOOK: usize = 200;
const OWNERS: usize = 20;

/// What somebody wants to lock out.
#[derive(Debug)]
pub struct Lockout {
    /// Whom.
    pub matches: LockMatch,
    /// Only tasks that were declared then or later, a whole second.
    pub declared_after: Option<Time>,
    /// Only tasks that were declared before, a whole second.
    pub declared_before: Option<Time>,
    /// Until when; `None`: until it is released, or as long as may be.
    pub until: Option<Time>,
    /// Why.
    pub reason: String,
}

impl Lockout {
    /// The lock, as verifiers read it.
    fn as_told(&self, id: LockId) -> Claimed {
        Claimed {
            id,
            matches: self.matches.clone(),
            declared_after: self.declared_after.and_then(NumericDate::of),
            declared_before: self.declared_before.and_then(NumericDate::of),
            released: false,
        }
    }
}

/// A lock as it stands.
#[derive(Debug)]
pub struct Locked {
    /// The lock.
    pub notice: Notice,
    /// Whether the store has it; where not, this broker keeps on telling it.
    pub stored: bool,
    /// How far it has been expanded; `None`: it was not begun, as far as is known.
    pub expansion: Option<Expansion>,
    /// When every verifier that hears of revokes denies what it has ended; `None` where it is still being expanded.
    pub effective_by: Option<Time>,
    /// The time of the answer.
    pub now: Time,
}

/// How a lock stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockStanding {
    /// It keeps out what it matches.
    InForce,
    /// Its end has come.
    Expired,
    /// Somebody released it.
    Released,
}

impl Locked {
    /// The lock, as verifiers read it, and how it was released.
    #[must_use]
    pub fn state(&self) -> Option<&LockState> {
        state_of(&self.notice)
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> LockStanding {
        match self.state() {
            Some(state) if state.release.is_some() => LockStanding::Released,
            _ if is_in_force(&self.notice, self.now) => LockStanding::InForce,
            _ => LockStanding::Expired,
        }
    }

    /// Its end, where it has one by itself.
    #[must_use]
    pub fn until(&self) -> Option<Time> {
        Some(self.notice.until).filter(|_| self.standing() != LockStanding::Released && !is_lasting(&self.notice))
    }
}

/// What a lock would match.
#[derive(Debug, Default)]
pub struct Weighing {
    /// How many tasks that would end.
    pub active: u64,
    /// How many that have ended, or expired, by themselves or before.
    pub over: u64,
    /// The owners of those that are active, those with the most first.
    pub owners: Vec<(String, u64)>,
    /// Whether all tasks were looked at.
    pub complete: bool,
}

/// Whether it stands until it is released.
fn is_lasting(notice: &Notice) -> bool {
    state_of(notice).is_some_and(|state| notice.until - state.set_at >= LASTING)
}

impl Broker {
    /// Locks out what somebody names.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`], [`Error::EvidenceInvalid`], [`Error::PolicyDenied`] for whoever is no responder,
    /// [`Error::QuotaExceeded`] for too many locks, [`Error::Unavailable`] when it may not have been recorded: call again.
    pub async fn lock(&self, request: Request, wanted: Lockout) -> Result<Locked, Error> {
        let now = self.now();
        let Request { presented, id: request } = request;
        let call = Call { request: &request, task: None, now };
        let name = self.locker(presented, Act::Lock, &call).await?;
        let lasts_until = check(&wanted, now)?;
        if self.locks_in_force(now) >= MOST {
            return Err(Error::QuotaExceeded("1000 locks are in force: release some that are not needed any more"));
        }
        let id = LockId::new(now).map_err(|_| Error::Unavailable(Input::Store))?;
        let lock = wanted.as_told(id.clone());
        let Lockout { matches, declared_after, declared_before, until, reason } = wanted;
        let requested = Event::LockRequested {
            lock: id,
            matches,
            declared_after,
            declared_before,
            until: until.or_else(|| Some(lasts_until).filter(|until| *until - now < LASTING)),
            reason: reason.clone(),
        };
        let notice = Notice {
            subject: Subject::Lock(LockState { lock, set_at: now, revision: 1, release: None }.into()),
            at: now,
            until: lasts_until,
            reason: Some(reason),
            by: name.clone(),
            broker: self.revocations.broker().to_string(),
        };
        // Nobody else knows its id yet.
        self.change_lock(&call, &name, requested, notice, Ok).await
    }

    /// Waits until every verifier that hears of revokes denies what the lock has ended, for a while at most: the lock as it stands then.
    pub async fn wait_for_lock(&self, locked: Locked) -> Locked {
        let (until, mut locked) = (Instant::now() + PATIENCE_OF_CALLER, locked);
        while locked.stored && locked.effective_by.is_none_or(|by| by > self.now()) && Instant::now() < until {
            sleep(AGAIN).await;
            let now = self.now();
            match self.with_expansions(vec![(locked.notice.clone(), true)], now).await.pop() {
                Some(later) => locked = later,
                None => return locked,
            }
        }
        locked
    }

    /// Lets a lock stand for longer.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for one that is over, that has no end, or whose end that would not be later; [`Error::EvidenceInvalid`],
    /// [`Error::PolicyDenied`] for whoever is no approver, and of a lock on everybody for whoever set it; [`Error::NotFound`],
    /// [`Error::Unavailable`].
    pub async fn extend_lock(
        &self,
        request: Request,
        id: &LockId,
        until: Time,
        reason: String,
    ) -> Result<Locked, Error> {
        let now = self.now();
        let Request { presented, id: request } = request;
        let call = Call { request: &request, task: None, now };
        let name = self.locker(presented, Act::ExtendLock, &call).await?;
        check_text("reason", Some(&reason), 1024)?;
        check_end(until, now)?;
        let extended = |standing: Notice| {
            if !is_in_force(&standing, now) {
                return Err(Error::invalid("this lock is over: make another one"));
            }
            if is_lasting(&standing) {
                return Err(Error::invalid("this lock has no end: it stands until it is released"));
            }
            if until <= standing.until {
                return Err(Error::invalid("`until` is later than the end that the lock has"));
            }
            Ok(next(Notice { until, ..standing }, None, now))
        };
        let standing = self.standing_lock(id).await?.ok_or(Error::NotFound(Sought::Lock))?;
        if standing.by == name && !self.parts.one_operator && state_of(&standing).is_some_and(|of| of.lock.matches.all)
        {
            let error = wrong_role("everybody is kept out for longer by somebody else than whoever locked them out");
            return Err(self.turn_down_as(Actor::Operator { name }, "extend_lock", &call, error));
        }
        let first = extended(standing)?;
        let requested = Event::LockExtensionRequested { lock: id.clone(), until, reason };
        self.change_lock(&call, &name, requested, first, extended).await
    }

    /// Lets in again what a lock kept out. Idempotent: a second call finds what the first one did. What it has ended stays ended.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`] for whoever is no approver, [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn release_lock(&self, request: Request, id: &LockId, reason: String) -> Result<Locked, Error> {
        let now = self.now();
        let Request { presented, id: request } = request;
        let call = Call { request: &request, task: None, now };
        let name = self.locker(presented, Act::ReleaseLock, &call).await?;
        check_text("reason", Some(&reason), 1024)?;
        let (standing, stored) = self.lock_and_whether_stored(id).await?.ok_or(Error::NotFound(Sought::Lock))?;
        if !is_in_force(&standing, now) {
            return Ok(self.locked(standing, stored, now));
        }
        let release = Release { at: now, reason: Some(reason.clone()), by: name.clone() };
        let released = |standing: Notice| {
            let until = standing.until.min(now + RELEASE_TOLD);
            Ok(next(Notice { until, ..standing }, Some(release.clone()), now))
        };
        let requested = Event::LockReleaseRequested { lock: id.clone(), reason };
        self.change_lock(&call, &name, requested, released(standing)?, released).await
    }

    /// A lock, for an operator.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`], [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn show_lock(&self, request: Request, id: &LockId) -> Result<Locked, Error> {
        let now = self.now();
        self.look_at_locks(request, "lock", now).await?;
        let lock = self.lock_and_whether_stored(id).await?.ok_or(Error::NotFound(Sought::Lock))?;
        self.with_expansions(vec![lock], now).await.pop().ok_or(Error::NotFound(Sought::Lock))
    }

    /// The locks that stand, and those that ended a short while ago, newest first; for an operator. While the store is in doubt, those that
    /// this broker knows of.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`], [`Error::Unavailable`].
    pub async fn list_locks(&self, request: Request) -> Result<Vec<Locked>, Error> {
        let now = self.now();
        self.look_at_locks(request, "locks", now).await?;
        let mut all = self.all_locks().await?;
        all.sort_by_key(|(notice, _)| Reverse(notice.subject.id()));
        Ok(self.with_expansions(all, now).await)
    }

    /// What a lock would match, and nothing else.
    ///
    /// # Errors
    /// As [`Broker::lock`].
    pub async fn weigh_lock(&self, request: Request, wanted: Lockout) -> Result<Weighing, Error> {
        let now = self.now();
        let Request { presented, id: request } = request;
        let call = Call { request: &request, task: None, now };
        let name = self.locker(presented, Act::Lock, &call).await?;
        check(&wanted, now)?;
        let lock = wanted.as_told(LockId::new(now).map_err(|_| Error::Unavailable(Input::Store))?);
        let Lockout { matches, declared_after, declared_before, .. } = wanted;
        let event = Event::LockWeighed { matches, declared_after, declared_before };
        self.record(vec![of_operator(&name, &call, event)]).await?;
        let (mut weighing, mut owners) = (Weighing::default(), HashMap::<String, u64>::new());
        let (mut before, until): (Option<TaskId>, _) = (None, Instant::now() + PATIENCE);
        while Instant::now() < until {
            let (page, next) = self.parts.ledger.tasks(before.as_ref(), LOOK).await.map_err(|why| in_doubt(&why))?;
            for held in &page {
                // What is below a task ends with it.
                let fits = |task: &Task| lock.fits(&LockSubject::of_task(task)).then_some(());
                if self.topmost(&held.task, fits).await.is_none() {
                    continue;
                }
                if held.state(now) == State::Active {
                    weighing.active += 1;
                    *owners.entry(held.task.owner.clone()).or_default() += 1;
                } else {
                    weighing.over += 1;
                }
            }
            before = next;
            if before.is_none() {
                weighing.complete = true;
                break;
            }
        }
        let mut owners: Vec<_> = owners.into_iter().collect();
        owners.sort_by(|(one, ones), (other, others)| others.cmp(ones).then_with(|| one.cmp(other)));
        owners.truncate(OWNERS);
        weighing.owners = owners;
        Ok(weighing)
    }

    /// The steps of every change of a lock: to `first`, or, where another broker changed it at the same moment, to what `again` makes of that.
    async fn change_lock(
        &self,
        call: &Call<'_>,
        by: &str,
        requested: Event,
        first: Notice,
        again: impl Fn(Notice) -> Result<Notice, Error>,
    ) -> Result<Locked, Error> {
        let intent = self.intend(vec![of_operator(by, call, requested)]).await?;
        let mut wanted = first;
        for _ in 0..TRIES {
            let journaled = self.revocations.record(wanted.clone()).await;
            if let Ok(notice) = &journaled {
                // Those that follow this broker need no store to hear of it.
                self.revocations.tell(notice);
            }
            // A journal that takes nothing is no reason to let anybody in.
            let notice = journaled.as_ref().ok().cloned().unwrap_or(wanted);
            let stored = self.store_lock(&notice, call.now).await;
            // A store that is not the one that was opened forgets what it was just told: recorded there is not recorded.
            let stored = if self.watch().await { stored } else { None };
            match (journaled, stored) {
                (Ok(notice), None) => {
                    self.replay.due();
                    intent.done();
                    return Ok(self.locked(notice, false, call.now));
                }
                (Err(_), None) => return Err(Error::Unavailable(Input::Store)),
                (Err(why), Some(_)) => {
                    tracing::error!(%why, "a lock is in the store alone");
                    return Err(Error::Unavailable(Input::Journal));
                }
                (Ok(_), Some(stands)) if !overtook(&stands, &notice) => {
                    self.lockouts.due.notify_one();
                    intent.done();
                    return Ok(self.locked(stands, true, call.now));
                }
                (Ok(_), Some(stands)) => wanted = again(stands)?,
            }
        }
        Err(Error::Unavailable(Input::Store))
    }

    /// Puts a lock on record for all brokers, and tells them: what stands. `None`: the store is in doubt.
    async fn store_lock(&self, notice: &Notice, now: Time) -> Option<Notice> {
        let told = async {
            let stands = self.parts.ledger.keep_lock(notice, now).await?;
            if !self.revocations.is_logged(notice) {
                self.parts.ledger.log_notice(notice).await?;
                self.revocations.logged(notice);
            }
            Ok(stands)
        };
        let told: Result<Notice, InDoubt> = told.await;
        told.inspect_err(|why| tracing::error!(%why, "the store is in doubt, and is told of this lock when it is not"))
            .ok()
    }

    /// Every lock that the store lists or that is known here, as it stands, and whether the store has it so, as far as is known.
    async fn all_locks(&self) -> Result<Vec<(Notice, bool)>, Error> {
        let mut all: HashMap<SubjectId, (Notice, bool)> = HashMap::new();
        let known = self.locks();
        let read = if self.is_vouched() {
            self.parts.ledger.locks().await.map_err(|why| in_doubt(&why))?.locks
        } else {
            Vec::new()
        };
        let known = known.1.iter().map(|notice| (notice.clone(), self.revocations.is_logged(notice)));
        for (notice, stored) in known.chain(read.into_iter().map(|notice| (notice, true))) {
            let id = notice.subject.id();
            let stands = match all.remove(&id) {
                Some((other, was_stored)) => {
                    let stands = other.clone().united(notice.clone());
                    let stored = (stored && stands == notice) || (was_stored && stands == other);
                    (stands, stored)
                }
                None => (notice, stored),
            };
            all.insert(id, stands);
        }
        Ok(all.into_values().collect())
    }

    async fn standing_lock(&self, id: &LockId) -> Result<Option<Notice>, Error> {
        Ok(self.lock_and_whether_stored(id).await?.map(|(notice, _)| notice))
    }

    async fn lock_and_whether_stored(&self, id: &LockId) -> Result<Option<(Notice, bool)>, Error> {
        let subject = SubjectId::Lock(id.clone());
        Ok(self.all_locks().await?.into_iter().find(|(notice, _)| notice.subject.id() == subject))
    }

    /// How far they have been expanded: here, or as another broker has shown.
    async fn with_expansions(&self, notices: Vec<(Notice, bool)>, now: Time) -> Vec<Locked> {
        let ids: Vec<_> = notices.iter().filter_map(|(notice, _)| Some(state_of(notice)?.lock.id.clone())).collect();
        let shown =
            if self.is_vouched() { self.parts.ledger.expansions(&ids).await.unwrap_or_default() } else { Vec::new() };
        let mut shown = shown.into_iter();
        let locked = notices.into_iter().map(|(notice, stored)| {
            let locked = self.locked(notice, stored, now);
            let latest =
                [shown.next().flatten(), locked.expansion.clone()].into_iter().flatten().max_by_key(|one| one.at);
            self.promised(Locked { expansion: latest, ..locked })
        });
        locked.collect()
    }

    fn locked(&self, notice: Notice, stored: bool, now: Time) -> Locked {
        let expansion = state_of(&notice).and_then(|state| self.lockouts.expansions.get(&state.lock.id));
        self.promised(Locked { notice, stored, expansion, effective_by: None, now })
    }

    /// With the moment when every verifier denies, once every tree that the lock matches has ended.
    fn promised(&self, locked: Locked) -> Locked {
        let lists = TimeDelta::seconds(i64::from(STATUS_LIST_LIFE.max(CRL_LIFE)));
        let longest = lists.max(self.longest_freshness() + FOLLOWERS_SKEW);
        let done = locked.expansion.as_ref().and_then(|expansion| expansion.done_at);
        Locked { effective_by: done.map(|done| done + longest), ..locked }
    }

    /// The name of an operator who may do this to locks.
    async fn locker(&self, presented: Presented, act: Act, call: &Call<'_>) -> Result<String, Error> {
        match self.identify(presented, call).await? {
            Caller::Operator(operator) => {
                self.allow(&operator, act, call).await?;
                Ok(operator.name().to_owned())
            }
            other @ (Caller::Owner(_) | Caller::Service(_) | Caller::Workload(_)) => {
                let error = wrong_role("locks are for operators: whoever acts for an owner revokes that owner's tasks");
                Err(self.turn_down(&other, "locks", call, error))
            }
        }
    }

    async fn look_at_locks(&self, request: Request, at: &str, now: Time) -> Result<(), Error> {
        let Request { presented, id: request } = request;
        let call = Call { request: &request, task: None, now };
        let name = self.locker(presented, Act::ListLocks, &call).await?;
        self.record(vec![of_operator(&name, &call, looked(at))]).await
    }
}

/// The state of a lock after this one.
fn next(mut notice: Notice, release: Option<Release>, now: Time) -> Notice {
    // Later than the one before by every clock, for that is what verifiers go by.
    notice.at = now.max(notice.at + TimeDelta::milliseconds(1));
    if let Subject::Lock(state) = &mut notice.subject {
        state.revision += 1;
        state.lock.released = release.is_some();
        state.release = release;
    }
    notice
}

fn of_operator(name: &str, call: &Call<'_>, event: Event) -> Entry {
    let (request, actor) = (call.request.to_owned(), Actor::Operator { name: name.to_owned() });
    Entry { time: call.now, request, actor, task: None, event }
}

/// Whether the change that makes `wanted` has no part in what stands. Nothing changes what was released.
fn overtook(stands: &Notice, wanted: &Notice) -> bool {
    stands.until < wanted.until && state_of(stands).is_some_and(|state| state.release.is_none())
}

/// What can be told of a lock before anything is looked at; and until when it will stand.
fn check(wanted: &Lockout, now: Time) -> Result<Time, Error> {
    let Lockout { matches, declared_after, declared_before, until, reason } = wanted;
    check_text("reason", Some(reason), 1024)?;
    for (name, value) in
        [("match.owner", &matches.owner), ("match.sandbox", &matches.sandbox), ("match.attestor", &matches.attestor)]
    {
        check_text(name, value.as_ref(), 256)?;
    }
    check_text("match.issuer", matches.issuer.as_ref(), 2048)?;
    if *matches == LockMatch::default() {
        return Err(Error::invalid(
            "`match` names one at least of `workload`, `owner`, `sandbox`, `attestor` and `issuer`, or says `all`",
        ));
    }
    if matches.all && *matches != (LockMatch { all: true, ..LockMatch::default() }) {
        return Err(Error::invalid("`all` stands alone in `match`: beside it the others would say nothing"));
    }
    if matches.workload.as_ref().is_some_and(WorkloadPattern::is_whole_domain) {
        return Err(Error::invalid(
            "`match.workload` is everybody in the trust domain: say `all`, or beside others leave it out",
        ));
    }
    for (name, bound) in [("declared_after", declared_after), ("declared_before", declared_before)] {
        if bound.is_some_and(|bound| bound != whole_second(bound) || NumericDate::of(bound).is_none()) {
            return Err(Error::invalid(format!(
                "`{name}` is a whole second after 1970, as `declared_at` is in tokens"
            )));
        }
    }
    if let (Some(after), Some(before)) = (declared_after, declared_before)
        && after >= before
    {
        return Err(Error::invalid("`declared_after` is before `declared_before`"));
    }
    let Some(until) = *until else { return Ok(now + if matches.all { ALL } else { LASTING }) };
    check_end(until, now)?;
    if matches.all && until > now + ALL {
        return Err(Error::invalid("`all` lasts 15 minutes at most: an approver extends it"));
    }
    Ok(until)
}

fn check_end(until: Time, now: Time) -> Result<(), Error> {
    if until <= now {
        return Err(Error::invalid("`until` is in the future"));
    }
    if until > now + LONGEST {
        return Err(Error::invalid("`until` is within a year: a lock without it stands until it is released"));
    }
    Ok(())
}
