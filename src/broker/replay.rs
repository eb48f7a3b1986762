//! Telling the store again: what this broker knows to have ended, and the store has lost or never heard of.
//!
//! A store that answers as another run of itself, or that did not answer for a while, may have lost the end of what was
//! acknowledged. Until it has been told again, nothing of it is vouched for: nothing is minted, and nothing verifies.

use chrono::TimeDelta;
use futures_util::future::try_join;
use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering};

use super::{
    Broker, entry,
    revoke::{keep_until, whose},
};
use crate::{
    audit::{Actor, Event},
    clock::Time,
    lease::InDoubt,
    notice::{Notice, Subject},
    task::End,
};

/// How many tasks the store is asked about at a time.
const BATCH: usize = 256;

/// The run of the store that is told of everything, and whether that is done; `None` while there may be something that it has to be told.
#[derive(Debug, Default)]
pub(super) struct Replay(Mutex<Option<(String, bool)>>);

impl Replay {
    /// There may be something to tell: what was told so far counts no more.
    pub(super) fn due(&self) {
        *self.lock() = None;
    }

    pub(super) fn is_done(&self, incarnation: &str) -> bool {
        self.lock().as_ref().is_some_and(|(run, _)| run == incarnation)
    }

    /// The run that has nothing left to be told.
    pub(super) fn told(&self) -> Option<String> {
        self.lock().clone().filter(|(_, done)| *done).map(|(run, _)| run)
    }

    fn begun(&self, incarnation: &str) {
        *self.lock() = Some((incarnation.to_owned(), false));
    }

    /// Unless it is due again meanwhile.
    fn done(&self) {
        if let Some((_, done)) = &mut *self.lock() {
            *done = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(String, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broker {
    /// Forgets what has ended for so long that nothing of it can be alive.
    pub fn forget_ended(&self) {
        self.revocations.tend(self.now());
    }

    /// Looks whether the store is the one that was opened, and tells it what it lacks if it may lack something; then so have all others
    /// that were there (`members.rs`).
    ///
    /// # Errors
    /// When it is not, or cannot be told, or others have not told it yet.
    pub(super) async fn take_up(&self) -> Result<(), InDoubt> {
        if self.members.is_gainsaid() {
            return Err(InDoubt("the store did not have what this broker had said of itself".into()));
        }
        let checked = try_join(self.parts.ledger.check(), self.parts.ledger.incarnation()).await;
        let ((), incarnation) = checked.inspect_err(|_| self.replay.due())?;
        Box::pin(self.join(&incarnation)).await?;
        self.enter_generation().await?;
        if !self.replay.is_done(&incarnation) {
            // Whatever is recorded from here on tells the store itself, or makes this due once more.
            self.replay.begun(&incarnation);
            self.vouched.store(false, Ordering::Release);
            self.replay_all(self.now()).await.inspect_err(|_| self.replay.due())?;
            self.replay.done();
        }
        if !self.members.has_settled(&incarnation) {
            self.vouched.store(false, Ordering::Release);
            Box::pin(self.gather(&incarnation)).await?;
        }
        Box::pin(self.mend(&incarnation)).await?;
        self.settle_locks().await
    }

    async fn replay_all(&self, now: Time) -> Result<(), InDoubt> {
        self.learn_notices_anew().await?;
        self.owe_all().await;
        self.replay_locks().await?;
        let notices = self.revocations.all();
        let ends: Vec<_> = notices.iter().filter_map(|notice| Some((notice.end()?, notice))).collect();
        let mut told = 0_u64;
        for batch in ends.chunks(BATCH) {
            let tasks: Vec<_> = batch.iter().map(|(end, _)| end.task.clone()).collect();
            let missing = self.parts.ledger.not_ended(&tasks).await?;
            for (end, notice) in batch.iter().filter(|(end, _)| missing.contains(&end.task)) {
                told += u64::from(self.replay_end(end, notice, now).await?);
            }
        }
        told += self.replay_leases(&notices, now).await?;
        Box::pin(self.keep_taints()).await.map_err(|why| InDoubt(why.to_string()))?;
        for notice in self.revocations.unlogged() {
            self.parts.ledger.log_notice(&notice).await?;
            self.revocations.logged(&notice);
        }
        if told > 0 {
            tracing::warn!(told, "the store had lost, or never heard of, what is dead, and was told again");
        }
        Ok(())
    }

    /// Whether there was anything to tell.
    async fn replay_end(&self, end: &End, notice: &Notice, now: Time) -> Result<bool, InDoubt> {
        let keep = keep_until(end.at).max(notice.until + TimeDelta::hours(1));
        let unseen = matches!(notice.subject, Subject::Task { unseen: true, .. });
        // What has no task any more has nothing that could live.
        let Some(stopped) = self.parts.ledger.end(end, keep, unseen).await? else { return Ok(false) };
        if let Some(status) = stopped.status {
            self.status_lists.mark(status);
        }
        let (owner, workload) = whose(&stopped);
        let (state, credentials) = (stopped.end.state, stopped.tally.credentials);
        let event = Event::EndReplayed { state, credentials, owner, workload };
        self.parts.audit.note(entry(now, "", &Actor::Broker, &end.task, event));
        Ok(true)
    }
}
