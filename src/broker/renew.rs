//! Renewing a task: a later deadline, if policy still allows all that the task was granted. A task that nobody renews ends
//! by itself, so an agent that crashed leaves nothing alive.
//!
//! attest → is the task this instance's, and active? → policy decides on it again, and on what was reported of it → on record → the deadline is moved.

use std::iter;

use super::{
    Broker, Call, Request, TaskToken, actor_of,
    declare::{deadline, longest_life},
    entry, in_doubt, owns, refusal, together,
};
use crate::{
    audit::Event,
    clock::{Time, whole_second},
    error::{Error, Sought},
    id::TaskId,
    lease::{Held, Written},
    metrics::{Action, Step},
    policy::{Words, considered},
    task::State,
};

/// A task with a later deadline.
#[derive(Debug)]
pub struct Renewed {
    /// The task as it stands.
    pub held: Held,
    /// Stands for the evidence, where a key was shown.
    pub task_token: Option<TaskToken>,
    /// The deadline that no renewal passes, as policy is now, and was when the task was declared.
    pub renewable_until: Time,
    /// When its holder should renew it next: after two thirds of what is left.
    pub renew_at: Time,
    /// The time of the answer.
    pub now: Time,
}

impl Broker {
    /// Moves the deadline of a task to `ttl` seconds from now (left out: as long as it was declared for), within policy's
    /// `@max_ttl`, `@idle_ttl` and `@max_lifetime`. A deadline is never brought forward.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a `ttl` above policy; [`Error::EvidenceInvalid`]; [`Error::NotFound`] for anybody but its own
    /// instance; [`Error::TaskNotActive`]; [`Error::PolicyDenied`] when policy no longer allows everything that was granted;
    /// [`Error::Unavailable`].
    pub async fn renew(&self, request: Request, id: &TaskId, ttl: Option<u32>) -> Result<Renewed, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: Some(id), now };
        let holder = self.attest(request.presented, "renew", &call).await?;
        let held = self.parts.ledger.task(id).await.map_err(|why| in_doubt(&why))?;
        let attested = &holder.attested;
        let own = held.filter(|held| owns(attested, &held.task));
        let held = own.ok_or_else(|| self.turn_down(&holder, "renew", &call, Error::NotFound(Sought::Task)))?;
        let actor = actor_of(attested);
        let line = |event| entry(now, &request.id, &actor, id, event);
        self.keep_out(&held.task, Action::Renew, &call, &actor).await?;
        let over = || line(Event::RenewalRefused { code: "task_not_active" });
        if held.state(now) != State::Active || self.revocations.covers(id) {
            self.record(vec![over()]).await?;
            return Err(Error::TaskNotActive);
        }
        let task = held.task;
        let considered = considered(attested, Words::from(&*task));
        let weighed = self.weigh(attested, Words::from(&*task), &task.authority, now);
        let weighed = match weighed {
            Ok(weighed) if weighed.refused.is_empty() => {
                self.has_reported(&task, weighed.limits.require_reports, now).await.map(|()| weighed)
            }
            weighed => weighed,
        };
        let weighed = match self.decided(Action::Renew, weighed) {
            Ok(weighed) if weighed.refused.is_empty() => weighed,
            Ok(weighed) => {
                let denied = together(weighed.refused.clone());
                self.record(vec![line(Event::RenewalDenied { why: "policy".to_owned(), denied, considered })]).await?;
                return Err(refusal(weighed.refused));
            }
            Err(error) => {
                if let Error::PolicyDenied { detail, .. } = &error {
                    self.record(vec![line(Event::RenewalDenied {
                        why: detail.clone(),
                        denied: Vec::new(),
                        considered,
                    })])
                    .await?;
                }
                return Err(error);
            }
        };
        let declared = u32::try_from((task.expires_at - whole_second(task.created_at)).num_seconds());
        // Whoever heard of its end goes by what was the longest when it was declared.
        let longest = task.lives_until.unwrap_or(Time::MAX_UTC);
        let asked = deadline(ttl, declared.unwrap_or(u32::MAX), &weighed.limits, task.created_at, now)?.min(longest);
        let renewable_until = longest_life(&weighed.limits, task.created_at)?.min(longest).max(held.expires_at);
        self.spend(&holder).await?;
        // On record before it is so, so that nothing lives longer than the log says.
        let expires_at = asked.max(held.expires_at);
        let token = self.task_token(&holder, &actor, &call, (&task, expires_at), weighed.limits.attest_every)?;
        let (token, issued) = token.unzip();
        let (owner, policies) = (task.owner.clone(), weighed.policies);
        let renewed = line(Event::TaskRenewed { expires_at, owner, policies, considered });
        let intent = self.intend(iter::once(renewed).chain(issued).collect()).await?;
        let (written, expires_at) =
            self.parts.ledger.renew(&task, now, expires_at).await.map_err(|why| in_doubt(&why))?;
        match written {
            Written::Done if !self.revocations.covers(id) => {}
            Written::Done | Written::Ended(_) => {
                intent.not_done();
                self.record(vec![over()]).await?;
                return Err(Error::TaskNotActive);
            }
            Written::Missing | Written::Exists => return Err(Error::NotFound(Sought::Task)),
        }
        // The later deadline does not help it: whoever expands the lock finds the task.
        self.keep_out(&task, Action::Renew, &call, &actor).await?;
        self.parts.metrics.task(Step::Renewed);
        self.live.renewed(id, expires_at);
        let renew_at = whole_second(now + (expires_at - now) * 2 / 3);
        let task_token = token.map(|token| self.sign_task_token(token)).transpose()?;
        intent.done();
        let held = Held { task, expires_at, end: None };
        Ok(Renewed { held, task_token, renewable_until, renew_at, now })
    }
}
