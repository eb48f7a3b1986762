//! Telling the store again: what this broker knows to have ended, and the store has lost or never heard of.
//!
//! A store that answers as another run of itself, or that did not answer for a while, may have lost the end of what was
//! acknowledged. Until it has been told again, nothing of it is vouched for: nothing is minted, and nothing verifies.

use chrono::TimeDelta;
use std::sync::{Mutex, PoisonError, atomic::Ordering};

use super::{Broker, entry, revoke::keep_until};
use crate::{
    audit::{Actor, Event},
    clock::Time,
    lease::InDoubt,
    task::Ending,
};

/// How many tasks the store is asked about at a time.
const BATCH: usize = 256;

/// The run of the store that was told of everything; `None` while there may be something that it has to be told.
#[derive(Debug, Default)]
pub(super) struct Replay(Mutex<Option<String>>);

impl Replay {
    /// There may be something to tell: what was told so far counts no more.
    pub(super) fn due(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn is_done(&self, incarnation: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(incarnation)
    }

    fn done(&self, incarnation: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(incarnation);
    }
}

impl Broker {
    /// Looks whether the store is the one that was opened, and tells it what it lacks if it may lack something.
    ///
    /// # Errors
    /// When it is not, or cannot be told.
    pub(super) async fn take_up(&self) -> Result<(), InDoubt> {
        let checked = async {
            self.parts.ledger.check().await?;
            self.parts.ledger.incarnation().await
        };
        let incarnation = checked.await.inspect_err(|_| self.replay.due())?;
        let now = self.now();
        self.revocations.tend(now);
        if self.replay.is_done(&incarnation) {
            return Ok(());
        }
        // Whatever is recorded from here on tells the store itself, or makes this due once more.
        self.replay.done(incarnation);
        self.vouched.store(false, Ordering::Release);
        self.replay_all(now).await.inspect_err(|_| self.replay.due())
    }

    async fn replay_all(&self, now: Time) -> Result<(), InDoubt> {
        self.learn_ends_anew().await?;
        let endings = self.revocations.all();
        let mut told = 0_u64;
        for batch in endings.chunks(BATCH) {
            let tasks: Vec<_> = batch.iter().map(|ending| ending.end.task.clone()).collect();
            let missing = self.parts.ledger.not_ended(&tasks).await?;
            for ending in batch.iter().filter(|ending| missing.contains(&ending.end.task)) {
                told += u64::from(self.replay_one(ending, now).await?);
            }
        }
        for ending in self.revocations.unlogged() {
            self.parts.ledger.log_end(&ending).await?;
            self.revocations.logged(&ending.end.task);
        }
        if told > 0 {
            tracing::warn!(told, "the store had lost, or never heard of, the end of these tasks, and was told again");
        }
        Ok(())
    }

    /// Whether there was anything to tell.
    async fn replay_one(&self, ending: &Ending, now: Time) -> Result<bool, InDoubt> {
        let Ending { end, until, unseen, .. } = ending;
        let keep = keep_until(end.at).max(*until + TimeDelta::hours(1));
        // What has no task any more has nothing that could live.
        let Some(stopped) = self.parts.ledger.end(end, keep, *unseen).await? else { return Ok(false) };
        if let Some(status) = stopped.status {
            self.status_lists.mark(status);
        }
        let event = Event::EndReplayed { state: stopped.end.state, credentials: stopped.tally.credentials };
        self.parts.audit.note(entry(now, "", &Actor::Broker, &end.task, event));
        Ok(true)
    }
}
