//! Ending a task: by its own instance (complete), or by whoever has the right to (revoke).
//!
//! Intent in the audit log → the broker's own journal → one atomic step on the tree → outcome in the audit log → answer. The step costs
//! the same for one credential and for a hundred thousand, because what ends is the task, and every credential names its task. What is
//! in the journal has ended, whatever becomes of the store: it is told as soon as it answers (`replay.rs`).

use chrono::{DateTime, TimeDelta};
use std::sync::{Mutex, PoisonError};

use super::{
    Broker, Call, Caller, Request, actor_of, declare::MAX_TTL, entry, in_doubt, owns, people::owner_of, wrong_role,
};
use crate::{
    audit::{Actor, Event},
    clock::Time,
    error::{Error, Input},
    id::TaskId,
    lease::{Held, Stopped, Tally},
    metrics::Step,
    party::{Act, Member},
    revocation::{CRL_LIFE, STATUS_LIST_LIFE},
    task::{End, Ending, State},
};

/// How long an end is kept after the task's own deadline, so that a person can still read it.
pub(super) const RETENTION: TimeDelta = TimeDelta::hours(24);

/// By how much a verifier that follows the feed may be off.
const FOLLOWERS_SKEW: TimeDelta = TimeDelta::seconds(1);

/// What a revoke came to.
#[derive(Debug)]
pub struct Revoked {
    /// The task.
    pub task: TaskId,
    /// Its state now: `revoked`, or how it had ended before; `None`: the store is out of reach, and the broker keeps on telling it.
    pub state: Option<State>,
    /// Whether the broker had seen it.
    pub known: bool,
    /// What it took with it; the same however often it is asked.
    pub tally: Tally,
    /// The generation.
    pub generation: u64,
    /// When every verifier that hears of revokes denies it: the latest of `reach` but `jwks_only`.
    pub effective_by: Time,
    /// By when each class of verifier denies it.
    pub reach: Vec<Reach>,
}

/// By when a class of verifier denies what was revoked.
#[derive(Debug)]
pub struct Reach {
    /// `introspection`, `feed`, `status_list`, `crl` or `jwks_only`.
    pub class: &'static str,
    /// `feed`: how many of the services that follow this broker, and say who they are, have said that they deny it, and of how many.
    pub heard: Option<(u64, u64)>,
    /// By then, at the latest.
    pub by: Time,
}

impl Reach {
    fn of(class: &'static str, by: Time) -> Self {
        Self { class, heard: None, by }
    }
}

/// What came of the steps of an end.
enum Stop {
    /// The store has it; `None` where it has no such task.
    Done(Option<Stopped>),
    /// The journal has it, and the store could not be told.
    Journaled(End),
}

impl Stop {
    /// The same, for those to whom it is only done when the store has it: they call again.
    fn done(self) -> Result<Option<Stopped>, Error> {
        match self {
            Stop::Done(stopped) => Ok(stopped),
            Stop::Journaled(_) => Err(Error::Unavailable(Input::Store)),
        }
    }
}

/// By when everything has expired that a task which ends now can have: one maximum life of a task covers every task, seen or not.
fn lives_until(end: Time) -> Time {
    end + TimeDelta::seconds(i64::from(MAX_TTL))
}

/// How long the store keeps an end.
pub(super) fn keep_until(end: Time) -> Time {
    lives_until(end) + RETENTION
}

impl Broker {
    /// Ends a task because its work is done. Idempotent.
    ///
    /// # Errors
    /// [`Error::NotFound`] for anybody but its own instance; [`Error::Unavailable`] when it may not have been recorded.
    pub async fn complete(&self, request: Request, id: &TaskId, reason: Option<String>) -> Result<(Held, Time), Error> {
        let now = self.now();
        let holder = self.attest(request.presented, &Call { request: &request.id, task: Some(id), now }).await?;
        let attested = &holder.attested;
        self.own_task(attested, id).await?;
        self.spend(&holder).await?;
        let end =
            End { task: id.clone(), state: State::Completed, at: now, reason, by: attested.workload().to_string() };
        let stopped = self.stop(end, false, &actor_of(attested), &request.id).await?.done()?.ok_or(Error::NotFound)?;
        let task = stopped.task.ok_or(Error::NotFound)?;
        let expires_at = stopped.expires_at.unwrap_or(task.expires_at);
        Ok((Held { task, expires_at, end: Some(stopped.end) }, now))
    }

    /// Ends a task and everything below it, at once. Idempotent: a second call gets the first one's instants.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a workload that neither holds the task nor an ancestor, and for whoever acts for another owner;
    /// [`Error::QuotaExceeded`] for too many unseen ids; [`Error::Unavailable`] when it may not have been recorded: call again.
    pub async fn revoke(&self, request: Request, id: &TaskId, reason: String) -> Result<Revoked, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: Some(id), now };
        let (actor, by, operator) = match self.identify(request.presented, &call).await? {
            // Whoever may revoke everything needs no record of the task to be believed.
            Caller::Operator(operator) if operator.may(Act::Revoke) => {
                (Actor::Operator { name: operator.name().to_owned() }, operator.name().to_owned(), true)
            }
            Caller::Operator(operator) => match self.acting_for(operator.member(), id).await? {
                Some(actor) => (actor, operator.name().to_owned(), false),
                None => return Err(self.refuse_act(&operator, Act::Revoke, &call).await?),
            },
            Caller::Owner(member) => {
                let actor = self.acting_for(Some(&member), id).await?.ok_or(Error::NotFound)?;
                (actor, member.name().to_owned(), false)
            }
            Caller::Workload(holder) => {
                let attested = &holder.attested;
                let mut holds = false;
                for ancestor in id.lineage() {
                    let task = self.parts.ledger.declared(&ancestor).await.map_err(|why| in_doubt(&why))?;
                    holds |= task.is_some_and(|task| owns(attested, &task));
                }
                if !holds {
                    return Err(Error::NotFound);
                }
                self.spend(&holder).await?;
                (actor_of(attested), attested.workload().to_string(), false)
            }
            Caller::Service(_) => return Err(wrong_role("a service revokes nothing")),
        };
        // A record that is not to be believed is no reason to let the task live; nor is it an unseen task.
        if operator && matches!(self.parts.ledger.declared(id).await, Ok(None)) {
            self.unseen.take(now)?;
        }
        let end = End { task: id.clone(), state: State::Revoked, at: now, reason: Some(reason), by };
        match self.stop(end, operator, &actor, &request.id).await? {
            Stop::Done(Some(stopped)) => Ok(self.account(id, &stopped, now)),
            Stop::Done(None) => Err(Error::NotFound),
            Stop::Journaled(end) => Ok(self.promise(end, now)),
        }
    }

    /// As whom somebody ends a task that acts for its owner; `None` where they do not, or where nobody has seen the task.
    async fn acting_for(&self, member: Option<&Member>, id: &TaskId) -> Result<Option<Actor>, Error> {
        let Some(member) = member else { return Ok(None) };
        let task = self.parts.ledger.declared(id).await.map_err(|why| in_doubt(&why))?;
        Ok(task.and_then(|task| owner_of(member, &task)))
    }

    /// The steps of every end.
    async fn stop(&self, end: End, allow_unseen: bool, actor: &Actor, request: &str) -> Result<Stop, Error> {
        let (task, asked) = (end.task.clone(), end.at);
        let line = |event| entry(asked, request, actor, &task, event);
        let requested = Event::EndRequested { state: end.state, reason: end.reason.clone() };
        let intent = self.intend(vec![line(requested)]).await?;
        let ended_before = self.revocations.covers(&task);
        let journaled = self.revocations.record(end.clone(), lives_until(asked), allow_unseen).await;
        if journaled.is_ok() {
            // Those that follow this broker need no store to hear of it.
            self.revocations.tell(&task);
        }
        // A journal that takes nothing is no reason to let the task live.
        let end = journaled.as_ref().map_or(end, |ending| ending.end.clone());
        let log = journaled.as_ref().ok().filter(|_| !self.revocations.is_logged(&task));
        let stopped = self.parts.ledger.end_and_log(&end, keep_until(end.at), allow_unseen, log).await;
        match &stopped {
            Ok(Some(_)) => self.revocations.logged(&task),
            // The other brokers are told, whatever the store knows of the task.
            Ok(None) => self.replay.due(),
            Err(why) => {
                tracing::error!(%why, %task, "the store is in doubt, and is told of this end when it is not");
                self.replay.due();
            }
        }
        // A store that is not the one that was opened forgets what it was just told: recorded there is not recorded.
        let stopped = if self.watch().await { stopped.ok() } else { None };
        let Some(stopped) = stopped else {
            return match journaled {
                Ok(Ending { end, .. }) => Ok(Stop::Journaled(end)),
                Err(_) => Err(Error::Unavailable(Input::Store)),
            };
        };
        if let Some(stopped) = &stopped {
            // A repeat is answered with the end that stood already, and is no other end.
            if stopped.end.at == asked && !ended_before {
                let completed = stopped.end.state == State::Completed;
                self.parts.metrics.task(if completed { Step::Completed } else { Step::Revoked });
            }
            if let Some(status) = stopped.status {
                self.status_lists.mark(status);
            }
            let Tally { ended_tasks, credentials, .. } = stopped.tally;
            let (state, known) = (stopped.end.state, stopped.task.is_some());
            let settles = intent.span();
            self.record(vec![line(Event::TaskEnded { state, known, ended_tasks, credentials, settles })]).await?;
            intent.settled();
        } else {
            intent.not_done();
        }
        journaled.map_err(|why| {
            tracing::error!(%why, "the end of a task is in the store alone");
            Error::Unavailable(Input::Journal)
        })?;
        Ok(Stop::Done(stopped))
    }

    /// What can be said of an end that only the journal has: it holds here, and everywhere as soon as the store answers. How soon
    /// that is, nobody knows; so each class is only told when the last credential has ended by itself.
    fn promise(&self, end: End, now: Time) -> Revoked {
        let by = lives_until(now.max(end.at));
        Revoked {
            state: None,
            known: self.parts.ledger.has_seen(&end.task),
            task: end.task,
            tally: Tally::default(),
            generation: self.parts.ledger.generation(),
            effective_by: by,
            reach: ["introspection", "feed", "status_list", "crl", "jwks_only"]
                .map(|class| Reach::of(class, by))
                .into(),
        }
    }

    fn account(&self, id: &TaskId, stopped: &Stopped, now: Time) -> Revoked {
        let Stopped { end, task, expires_at, tally, effective_at, status } = stopped;
        let state = expires_at.map_or(end.state, |deadline| State::of(Some(end), deadline, end.at));
        // A verifier that asks learns of it with its next question; one that reads status lists, when the list it holds expires; one
        // that only knows the keys, when the last token does.
        let effective_at = *effective_at;
        // Nor is a revocation list that was begun before that worth anything once its life has passed.
        // A list that was asked for before that is worth nothing by then. Where no bit could be set, its tokens have to end by themselves, within the life of a task.
        let listed_for = if status.is_some() { STATUS_LIST_LIFE } else { MAX_TTL };
        let listed = effective_at + TimeDelta::seconds(i64::from(listed_for));
        let last = DateTime::from_timestamp(tally.latest_expiry, 0).unwrap_or(effective_at).max(effective_at);
        // Of what nobody here knows, nobody knows when it expires: only that nothing lives longer than a task may.
        let last = if task.is_some() { last } else { last.max(effective_at + TimeDelta::seconds(i64::from(MAX_TTL))) };
        // Nobody who follows goes by a state that was fresh before it was effective for longer than that, heard or not.
        let followed = effective_at + self.longest_freshness() + FOLLOWERS_SKEW;
        let crl = effective_at + TimeDelta::seconds(i64::from(CRL_LIFE));
        let feed = Reach { class: "feed", heard: Some(self.heard_of(id, now)), by: followed };
        Revoked {
            task: id.clone(),
            state: Some(state),
            known: task.is_some(),
            tally: *tally,
            generation: self.parts.ledger.generation(),
            effective_by: listed.max(crl).max(followed),
            reach: vec![
                Reach::of("introspection", effective_at),
                feed,
                Reach::of("status_list", listed),
                Reach::of("crl", crl),
                Reach::of("jwks_only", last),
            ],
        }
    }
}

/// How many unseen ids may be recorded in a minute, by all operators together: a revoke may overtake the first issue of its
/// task, but nobody fills the store with made-up ids.
const UNSEEN_PER_MINUTE: u32 = 100;

/// Counts in windows of a minute.
#[derive(Debug, Default)]
pub(super) struct Quota(Mutex<(i64, u32)>);

impl Quota {
    fn take(&self, now: Time) -> Result<(), Error> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = now.timestamp() / 60;
        if window.0 != minute {
            *window = (minute, 0);
        }
        if window.1 >= UNSEEN_PER_MINUTE {
            return Err(Error::QuotaExceeded("too many unknown task ids were revoked in this minute"));
        }
        window.1 += 1;
        Ok(())
    }
}
