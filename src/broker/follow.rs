//! Following a task: how it stands, and again whenever that changes, until it has ended. So an agent learns of its own revoke
//! at once, on whichever broker it was made: the store gives hints, and is asked now and then without one.

use chrono::TimeDelta;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast},
    time::timeout,
};

use super::{Broker, Request, Rules, Seen};
use crate::{
    clock::Time,
    error::Error,
    id::TaskId,
    lease::{Held, Hint},
    task::State,
};

/// How many may follow at a time: each holds a connection.
pub(super) const MOST: usize = 128;
/// How long one may follow without proving again who they are; less where their evidence ends sooner.
const LONGEST: TimeDelta = TimeDelta::hours(1);
/// How long a change may go unnoticed where no hint comes.
const LOOK: Duration = Duration::from_secs(2);

/// Somebody who follows a task.
pub struct Following {
    broker: Arc<Broker>,
    id: TaskId,
    changes: broadcast::Receiver<Hint>,
    until: Time,
    /// What the caller was known by: other rules may know them no more.
    rules: Arc<Rules>,
    /// What was told last.
    told: Option<(State, Time)>,
    /// What is to be told first.
    first: Option<Held>,
    room: Arc<OwnedSemaphorePermit>,
}

/// How a task stands at some moment.
#[derive(Debug)]
pub struct Turn {
    /// The task.
    pub held: Held,
    /// The moment.
    pub now: Time,
}

impl Broker {
    /// Follows a task that the caller may see.
    ///
    /// # Errors
    /// As [`Broker::show`]; [`Error::QuotaExceeded`] where too many follow already.
    pub async fn follow(self: Arc<Self>, request: Request, id: &TaskId) -> Result<Following, Error> {
        let rules = self.rules();
        // Heard from now on, so that nothing happens between the first look and the first hint.
        let changes = self.parts.ledger.changes();
        let Seen { held, now, until, .. } = self.show(request, id).await?;
        let room = self.followers.clone().try_acquire_owned();
        let room =
            room.map_err(|_| Error::QuotaExceeded("too many are watching tasks: ask again from time to time"))?;
        let longest = now + LONGEST;
        let until = until.map_or(longest, |until| until.min(longest));
        Ok(Following {
            broker: self,
            id: id.clone(),
            changes,
            until,
            rules,
            told: None,
            first: Some(held),
            room: Arc::new(room),
        })
    }
}

impl Following {
    /// What keeps its room for as long as it is held.
    #[must_use]
    pub fn room(&self) -> Arc<OwnedSemaphorePermit> {
        self.room.clone()
    }

    /// How the task stands, as soon as that is something new; `None` when there is nothing more to tell: it has ended, or
    /// the caller has to prove again who they are, because of the time or because the configuration changed.
    pub async fn next(&mut self) -> Option<Turn> {
        if self.told.is_some_and(|(state, _)| state != State::Active) {
            return None;
        }
        loop {
            let held = match self.first.take() {
                Some(held) => Ok(Some(held)),
                None => self.broker.parts.ledger.task(&self.id).await,
            };
            let now = self.broker.now();
            match held {
                Ok(Some(held)) => {
                    let stands = (held.state(now), held.expires_at);
                    if self.told != Some(stands) {
                        self.told = Some(stands);
                        return Some(Turn { held, now });
                    }
                    self.wait(held.expires_at.min(self.until) - now).await;
                }
                Ok(None) => return None,
                // It may be back soon, and then it is asked again.
                Err(why) => {
                    tracing::warn!(%why, task = %self.id, "the store is in doubt for one who watches");
                    tokio::time::sleep(LOOK).await;
                }
            }
            if self.broker.now() >= self.until || !Arc::ptr_eq(&self.rules, &self.broker.rules()) {
                return None;
            }
        }
    }

    /// Waits for a hint, for a little while, or until something is due.
    async fn wait(&mut self, due: TimeDelta) {
        // A millisecond more, so that what is due then has come to pass.
        let due = due.to_std().unwrap_or_default() + Duration::from_millis(1);
        let concerns = async {
            loop {
                match self.changes.recv().await {
                    Ok(Hint::Task(changed)) if !changed.covers(&self.id) => {}
                    Ok(Hint::Wide) => {}
                    // It was this one, or there were too many to tell.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        // Whether a hint came or not: the store is looked at.
        let _ = timeout(LOOK.min(due), concerns).await;
    }
}
