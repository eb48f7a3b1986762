//! Ending a task: by its own instance (complete), or by whoever has the right to (revoke).
//!
//! Intent in the audit log → the broker's own journal → one atomic step on the tree → outcome in the audit log → answer. The step costs
//! the same for one credential and for a hundred thousand, because what ends is the task, and every credential names its task. What is
//! in the journal has ended, whatever becomes of the store: it is told as soon as it answers (`replay.rs`).

use chrono::TimeDelta;
use std::sync::{Mutex, PoisonError};

use super::{
    Broker, Call, Caller, Request, actor_of, declare::MAX_TTL, entry, in_doubt, owns, people::owner_of, reach::Revoked,
    wrong_role,
};
use crate::{
    audit::{Actor, Event},
    clock::Time,
    error::{Error, Input, Sought},
    id::TaskId,
    lease::{Held, Stopped, Tally},
    metrics::Step,
    notice::Notice,
    party::{Act, Member},
    task::{End, State},
};

/// How long an end is kept after the task's own deadline, so that a person can still read it.
pub(super) const RETENTION: TimeDelta = TimeDelta::hours(24);

/// What came of the steps of an end.
pub(super) enum Stop {
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
pub(super) fn lives_until(end: Time) -> Time {
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
        let call = Call { request: &request.id, task: Some(id), now };
        let holder = self.attest(request.presented, "complete", &call).await?;
        let attested = &holder.attested;
        self.own_task(&holder, id, "complete", &call).await?;
        self.spend(&holder).await?;
        let end =
            End { task: id.clone(), state: State::Completed, at: now, reason, by: attested.workload().to_string() };
        let stopped = self
            .stop(end, false, &actor_of(attested), &request.id)
            .await?
            .done()?
            .ok_or(Error::NotFound(Sought::Task))?;
        let task = stopped.task.ok_or(Error::NotFound(Sought::Task))?;
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
        let caller = self.identify(request.presented, &call).await?;
        let (actor, by, operator) = self.revoker(caller, id, &call).await?;
        // A record that is not to be believed is no reason to let the task live; nor is it an unseen task.
        if operator && matches!(self.parts.ledger.declared(id).await, Ok(None)) {
            self.unseen.take(now)?;
        }
        let end = End { task: id.clone(), state: State::Revoked, at: now, reason: Some(reason), by };
        match self.stop(end, operator, &actor, &request.id).await? {
            Stop::Done(Some(stopped)) => Ok(self.account(id, &stopped, self.now()).await),
            Stop::Done(None) => Err(Error::NotFound(Sought::Task)),
            Stop::Journaled(end) => Ok(self.promise(id, &end, self.now())),
        }
    }

    /// As whom somebody ends this task or something of it: with their name, and whether they may end everything.
    ///
    /// # Errors
    /// As [`Broker::revoke`].
    pub(super) async fn revoker(
        &self,
        caller: Caller,
        id: &TaskId,
        call: &Call<'_>,
    ) -> Result<(Actor, String, bool), Error> {
        Ok(match caller {
            // Whoever may revoke everything needs no record of the task to be believed.
            Caller::Operator(operator) if operator.may(Act::Revoke) => {
                (Actor::Operator { name: operator.name().to_owned() }, operator.name().to_owned(), true)
            }
            Caller::Operator(operator) => match self.acting_for(operator.member(), id).await? {
                Some(actor) => (actor, operator.name().to_owned(), false),
                None => return Err(self.refuse_act(&operator, Act::Revoke, call).await?),
            },
            Caller::Owner(member) => {
                let actor = self.acting_for(Some(&member), id).await?;
                let actor =
                    actor.ok_or_else(|| self.turn_down(&*member, "revoke", call, Error::NotFound(Sought::Task)))?;
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
                    return Err(self.turn_down(&*holder, "revoke", call, Error::NotFound(Sought::Task)));
                }
                self.spend(&holder).await?;
                (actor_of(attested), attested.workload().to_string(), false)
            }
            Caller::Service(service) => {
                return Err(self.turn_down(&*service, "revoke", call, wrong_role("a service revokes nothing")));
            }
        })
    }

    /// As whom somebody ends a task that acts for its owner; `None` where they do not, or where nobody has seen the task.
    async fn acting_for(&self, member: Option<&Member>, id: &TaskId) -> Result<Option<Actor>, Error> {
        let Some(member) = member else { return Ok(None) };
        let task = self.parts.ledger.declared(id).await.map_err(|why| in_doubt(&why))?;
        Ok(task.and_then(|task| owner_of(member, &task)))
    }

    /// The steps of every end.
    pub(super) async fn stop(&self, end: End, allow_unseen: bool, actor: &Actor, request: &str) -> Result<Stop, Error> {
        let (task, asked) = (end.task.clone(), end.at);
        let line = |event| entry(asked, request, actor, &task, event);
        let requested = Event::EndRequested { state: end.state, reason: end.reason.clone() };
        let intent = self.intend(vec![line(requested)]).await?;
        let ended_before = self.revocations.covers(&task);
        // From memory: those that follow this broker hear of it whatever the store does.
        let seen = self.parts.ledger.seen(&task);
        let over_by = seen.as_ref().and_then(|task| task.lives_until);
        let (until, broker) = (lives_until(asked), self.revocations.broker().to_string());
        let notice = Notice::of_end(end.clone(), (until, over_by), allow_unseen, broker)
            .of_short_lived(seen.and_then(|task| task.credentials_live));
        let journaled = self.revocations.record(notice).await;
        if let Ok(notice) = &journaled {
            // Those that follow this broker need no store to hear of it.
            self.revocations.tell(notice);
        }
        // A journal that takes nothing is no reason to let the task live.
        let end = journaled.as_ref().ok().and_then(Notice::end).unwrap_or(end);
        let log = journaled.as_ref().ok().filter(|notice| !self.revocations.is_logged(notice));
        let stopped = self.parts.ledger.end_and_log(&end, keep_until(end.at), allow_unseen, log).await;
        match &stopped {
            Ok(Some(_)) => drop(journaled.as_ref().map(|notice| self.revocations.logged(notice))),
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
                Ok(_) => Ok(Stop::Journaled(end)),
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
            let ((owner, workload), settles) = (whose(stopped), intent.span());
            let ended = Event::TaskEnded { state, known, ended_tasks, credentials, owner, workload, settles };
            self.record(vec![line(ended)]).await?;
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
}

/// The owner and the workload of what ended, where the store had it.
pub(super) fn whose(stopped: &Stopped) -> (Option<String>, Option<String>) {
    stopped.task.as_ref().map(|task| (task.owner.clone(), task.workload.to_string())).unzip()
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
