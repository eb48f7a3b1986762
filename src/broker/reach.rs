//! Where the end of a task has arrived: by when each class of verifier denies it, and who has said that they do.

use chrono::{DateTime, TimeDelta};
use std::{pin::pin, time::Duration};

use super::{
    Broker, Call, Caller, Request,
    declare::MAX_TTL,
    heard::Heard,
    in_doubt,
    revoke::{keep_until, lives_until},
};
use crate::{
    clock::Time,
    error::{Error, Sought},
    id::TaskId,
    lease::{Held, Stopped, Tally},
    notice::SubjectId,
    party::Act,
    revocation::{CRL_LIFE, STATUS_LIST_LIFE},
    task::{End, State},
};

/// By how much a verifier that follows the feed may be off.
pub(super) const FOLLOWERS_SKEW: TimeDelta = TimeDelta::seconds(1);

/// Those who follow the feed.
const FEED: &str = "feed";

/// How often it is looked whether the time has come for whoever waits.
const LOOK: Duration = Duration::from_millis(250);

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
    /// When every verifier that hears of revokes denies it: the latest of `reach` but `jwks_only`, and but for receivers, of whom nobody
    /// knows when they hear.
    pub effective_by: Time,
    /// By when each class of verifier denies it.
    pub reach: Vec<Reach>,
}

/// By when a class of verifier denies what was revoked.
#[derive(Debug)]
pub struct Reach {
    /// `introspection`, `feed`, `status_list`, `crl` or `jwks_only`; `shared_signals` and `sandbox` where receivers are told.
    pub class: &'static str,
    /// `feed`: how many of the verifiers that follow this broker, and say who they are, have said that they deny it, and of how many.
    /// `shared_signals`, `sandbox`: how many receivers have it, and of how many.
    pub heard: Option<(u64, u64)>,
    /// By then, at the latest.
    pub by: Time,
    /// Whether they all do: the time has come, or all have said so.
    pub done: bool,
}

impl Reach {
    pub(super) fn of(class: &'static str, by: Time, now: Time) -> Self {
        Self { class, heard: None, by, done: by <= now }
    }

    fn of_feed(heard: Heard, by: Time, done: bool) -> Self {
        Self { class: FEED, heard: Some((heard.acknowledged, heard.of)), by, done }
    }
}

/// Where the end of a task has arrived.
#[derive(Debug)]
pub enum Arrival {
    /// Nowhere: it has not ended.
    Alive(State),
    /// It has ended by itself, and all that it had with it.
    Expired(Time),
    /// It was ended.
    Ended(Revoked),
}

impl Broker {
    /// Where the end of a task has arrived by now, for whoever may see the task.
    ///
    /// # Errors
    /// As [`Broker::show`].
    pub async fn reach(&self, request: Request, id: &TaskId) -> Result<Arrival, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: Some(id), now };
        let caller = self.identify(request.presented, &call).await?;
        let known_here = self.revocations.ending(id).filter(|_| matches!(caller, Caller::Operator(_)));
        let held = self.parts.ledger.task(id).await;
        let of = held.as_ref().ok().and_then(Option::as_ref);
        self.admit(caller, (id, of), &call, (Act::ShowReach, "reach")).await?;
        let end = match (held, known_here) {
            (Ok(Some(held)), known) if held.end.is_none() => match (held.state(now), known) {
                // The store lacks what is so here: it is told again, or else it is only on its way.
                (State::Active, Some(end)) if self.watch().await => Some(end),
                (State::Active, Some(end)) => return Ok(Arrival::Ended(self.promise(id, &end, now))),
                (_, _) => return Ok(standing(&held, now)),
            },
            (Ok(Some(held)), _) => held.end,
            (Ok(None), known) => known,
            (Err(_), Some(end)) => return Ok(Arrival::Ended(self.promise(id, &end, now))),
            (Err(why), None) => return Err(in_doubt(&why)),
        };
        let end = end.ok_or(Error::NotFound(Sought::Task))?;
        // What stands is told again, and yields what it came to: the first one's instants.
        let stopped = self.parts.ledger.end(&end, keep_until(end.at), true).await;
        let stopped = stopped.map_err(|why| in_doubt(&why))?.ok_or(Error::NotFound(Sought::Task))?;
        let mut ended = self.account(id, &stopped, self.now()).await;
        self.look_again(&mut ended, self.now()).await;
        Ok(Arrival::Ended(ended))
    }

    /// Waits until all who hold a state of the feed, of this broker or of another, have said that they deny what was revoked, or need not
    /// any more; no longer than until it is effective by itself.
    pub async fn wait_until_effective(&self, mut revoked: Revoked) -> Revoked {
        loop {
            let mut news = pin!(self.feed.readers.news());
            // From here on nothing is missed.
            news.as_mut().enable();
            let now = self.now();
            let is_over = revoked.state.is_none() || revoked.effective_by <= now;
            self.look_again(&mut revoked, now).await;
            if is_over || revoked.reach.iter().any(|reach| reach.class == FEED && reach.done) {
                return revoked;
            }
            let _ = tokio::time::timeout(LOOK, news).await;
        }
    }

    async fn look_again(&self, revoked: &mut Revoked, now: Time) {
        for reach in &mut revoked.reach {
            *reach = match reach.heard {
                Some(_) if reach.class == FEED => {
                    let subject = SubjectId::Task(revoked.task.clone());
                    let (by, heard) = (reach.by, self.heard_of(&subject));
                    let done = by <= now || (heard.by_all && self.is_heard_elsewhere().await);
                    Reach::of_feed(heard, by, done)
                }
                Some((_, of)) => self.reach_of_receivers(&revoked.task, (reach.class, of), reach.by, now),
                None => Reach::of(reach.class, reach.by, now),
            };
        }
    }

    /// What can be said of an end that only the journal has: it holds here, and everywhere as soon as the store answers. How soon
    /// that is, nobody knows; so each class is only told when the last credential has ended by itself.
    pub(super) fn promise(&self, id: &TaskId, end: &End, now: Time) -> Revoked {
        let by = lives_until(now.max(end.at));
        Revoked {
            state: None,
            known: self.parts.ledger.has_seen(id),
            task: id.clone(),
            tally: Tally::default(),
            generation: self.parts.ledger.generation(),
            effective_by: by,
            reach: ["introspection", FEED, "status_list", "crl", "jwks_only"]
                .map(|class| Reach::of(class, by, now))
                .into(),
        }
    }

    pub(super) async fn account(&self, id: &TaskId, stopped: &Stopped, now: Time) -> Revoked {
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
        let receivers = self.receivers_of(end, task.as_deref());
        let receivers = receivers.map(|class| self.reach_of_receivers(id, class, last, now));
        Revoked {
            task: id.clone(),
            state: Some(state),
            known: task.is_some(),
            tally: *tally,
            generation: self.parts.ledger.generation(),
            effective_by: listed.max(crl).max(followed),
            reach: vec![
                Reach::of("introspection", effective_at, now),
                self.reach_of_feed(&SubjectId::Task(id.clone()), followed, now).await,
                Reach::of("status_list", listed, now),
                Reach::of("crl", crl, now),
                Reach::of("jwks_only", last, now),
            ]
            .into_iter()
            .chain(receivers)
            .collect(),
        }
    }

    /// At the moment that it is answered: what other brokers' readers have heard, nobody can know yet.
    pub(super) async fn reach_of_feed(&self, id: &SubjectId, by: Time, now: Time) -> Reach {
        let heard = self.heard_of(id);
        let done = by <= now || (heard.by_all && self.is_alone().await);
        Reach::of_feed(heard, by, done)
    }

    fn heard_of(&self, id: &SubjectId) -> Heard {
        let sequence = self.revocations.number_of(id).unwrap_or(u64::MAX);
        self.feed.readers.heard(sequence, self.longest_freshness().to_std().unwrap_or(Duration::MAX))
    }
}

/// How a task stands that nobody has ended.
fn standing(held: &Held, now: Time) -> Arrival {
    match held.state(now) {
        State::Expired => Arrival::Expired(held.expires_at),
        state @ (State::PendingApproval | State::Active | State::Completed | State::Revoked) => Arrival::Alive(state),
    }
}
