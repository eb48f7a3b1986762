//! Places in the status lists that an end takes with it: those of the tasks below the one that ended, and of tokens that have a place of
//! their own, because their service wants it (`status = "token"`), so that the lists show when one of them is revoked by itself.
//!
//! A revoke writes nothing for them, however many there are. Whoever signs a list first reads what has ended, and sets the bits of all that
//! ended with it: from the store, which lists the tasks of a tree and the tokens of a task, and from what this broker minted itself. Where
//! that cannot be told, no list is signed, and readers deny when the last one is over. So the lists of every broker show an end as soon as
//! those of tasks do.

use futures_util::future::try_join_all;

use super::{Broker, Draft, Time, in_doubt};
use crate::{
    error::Error,
    id::{LeaseId, TaskId},
    lease::InDoubt,
    notice::{Notice, Subject},
    party::StatusMode,
    revocation::Placed,
};

/// How many ended tasks are looked at together.
const AT_ONCE: usize = 32;

/// The tokens of this broker, and the ends whose tokens are not known to stand in the lists.
#[derive(Debug, Default)]
pub(super) struct OwnPlaces {
    minted: Placed,
    owed: tokio::sync::Mutex<Owed>,
}

#[derive(Debug, Default)]
struct Owed {
    /// Up to which number notices were looked at.
    upto: u64,
    /// Those of them that are not done.
    notices: Vec<Notice>,
}

impl Broker {
    /// Gives those of a task's tokens a place in the status lists that are to have one of their own.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`] where too many of the task are valid; [`Error::Unavailable`].
    pub(super) async fn give_places(&self, task: &TaskId, drafts: Vec<Draft>, now: Time) -> Result<Vec<Draft>, Error> {
        let rules = self.rules();
        let has_own = |draft: &Draft| rules.parties.status(&draft.lease().resource) == StatusMode::Token;
        let count = drafts.iter().filter(|draft| has_own(draft)).count();
        if count == 0 {
            return Ok(drafts);
        }
        // Before any is taken, for none is given twice.
        self.own_places.minted.room(task, count, now)?;
        let (mut given, mut places) = (Vec::with_capacity(drafts.len()), Vec::with_capacity(count));
        for mut draft in drafts {
            if has_own(&draft) {
                let place = self.parts.ledger.status_index().await.map_err(|why| in_doubt(&why))?;
                places.push((place, draft.lease().expires_at));
                draft = draft.at(place);
            }
            given.push(draft);
        }
        self.own_places.minted.admit(task, &places, now)?;
        Ok(given)
    }

    /// Sets the bits of all tasks below those that have ended, and of all tokens with places of their own that have, by themselves or with
    /// their tasks, as far as any broker has told before this.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub(super) async fn mark_placed(&self) -> Result<(), InDoubt> {
        Box::pin(self.learn_notices()).await?;
        let mut owed = self.own_places.owed.lock().await;
        let last = self.revocations.last();
        let news = self.revocations.told(owed.upto, last).into_iter().filter(|notice| notice.subject.task().is_some());
        owed.notices.extend(news);
        owed.upto = last;
        let mut from = 0;
        while from < owed.notices.len() {
            let to = owed.notices.len().min(from + AT_ONCE);
            let some = &owed.notices[from..to];
            // Looked at first: what is told to all is in the store by then, and nothing is declared or minted below the task any more.
            let mut settled = some.iter().map(|notice| self.is_settled(notice)).collect::<Vec<_>>().into_iter();
            self.mark_ended(some).await?;
            // Whoever asked for the list may be gone while this waits: what is done is taken out when it is, and nothing else.
            let rest = owed.notices.split_off(to);
            let looked_at = owed.notices.split_off(from);
            owed.notices.extend(looked_at.into_iter().filter(|_| !settled.next().unwrap_or_default()));
            from = owed.notices.len();
            owed.notices.extend(rest);
        }
        Ok(())
    }

    /// Looks at everything anew: a store that forgot may have been told of more since.
    pub(super) async fn owe_all(&self) {
        *self.own_places.owed.lock().await = Owed::default();
    }

    /// Whether no more can end with it than what the store shows now.
    fn is_settled(&self, notice: &Notice) -> bool {
        self.revocations.is_logged(notice) || self.revocations.get(&notice.subject.id()).is_none()
    }

    async fn mark_ended(&self, notices: &[Notice]) -> Result<(), InDoubt> {
        let ledger = &self.parts.ledger;
        let mut tokens: Vec<(TaskId, LeaseId)> = Vec::new();
        let mut ended = Vec::new();
        for notice in notices {
            match &notice.subject {
                Subject::Lease { lease, task } if !lease.is_serial() => tokens.push((task.clone(), lease.clone())),
                Subject::Task { task, .. } => ended.push(task),
                Subject::Lease { .. } | Subject::Key(_) | Subject::Lock(_) => {}
            }
        }
        let own = ended.iter().flat_map(|task| self.own_places.minted.of(task));
        own.for_each(|place| self.status_lists.mark(place));
        let below = try_join_all(ended.iter().map(|task| ledger.places_below(task))).await?;
        below.into_iter().flatten().for_each(|place| self.status_lists.mark(place));
        // Where no service wants it, that is all.
        if ledger.any_placed().await? {
            let of_tasks = try_join_all(ended.iter().map(|task| ledger.placed(task))).await?;
            tokens.extend(of_tasks.into_iter().flatten());
            for place in ledger.places(&tokens).await? {
                self.status_lists.mark(place);
            }
        }
        Ok(())
    }
}
