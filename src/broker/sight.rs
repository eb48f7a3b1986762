//! Looks at many things at once: who may, that it is on record, and how many do so at a time.

use std::{fmt, io, str::FromStr, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Broker, Call, Caller, Request, looked, wrong_role};
use crate::{
    error::{Error, Input},
    id::TaskId,
    party::{Act, Member},
};

/// How many go through the log at a time: each keeps a thread and the disk busy. Others wait for their turn.
const READERS: usize = 4;

/// A place in the log of a broker, to go on from: `LOG:NUMBER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which log.
    pub log: String,
    /// The number of a record.
    pub sequence: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.log, self.sequence)
    }
}

impl FromStr for Place {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.split_once(':').and_then(|(log, sequence)| Some((log, sequence.parse().ok()?)));
        let (log, sequence) = parts.ok_or_else(|| Error::invalid("`cursor` is what an answer before gave"))?;
        let place = Self { log: log.to_owned(), sequence };
        // Nothing else that reads as the same number.
        if place.to_string() == text {
            Ok(place)
        } else {
            Err(Error::invalid("`cursor` is what an answer before gave"))
        }
    }
}

/// What somebody may look at.
pub(super) enum Sight {
    All,
    /// What is these owners'; what cannot be told to be is not.
    Owners(Arc<Member>),
}

impl Sight {
    /// Whether they see what is this owner's.
    pub(super) fn shows(&self, owner: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Owners(member) => owner.is_some_and(|owner| member.acts_for(owner)),
        }
    }
}

/// Room for those who go through the log.
pub(super) struct Readers(Arc<Semaphore>);

impl Default for Readers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(READERS)))
    }
}

impl Readers {
    /// A place, once there is one.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.0.clone().acquire_owned().await.map_err(|_| Error::Unavailable(Input::Audit))
    }

    /// Goes through the log, once it is its turn.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.turn().await?;
        let worked = tokio::task::spawn_blocking(move || {
            let worked = work();
            drop(turn);
            worked
        });
        let unread = |why: &dyn std::fmt::Display| {
            tracing::error!(%why, "the audit log cannot be read");
            Error::Unavailable(Input::Audit)
        };
        worked.await.map_err(|why| unread(&why))?.map_err(|why| unread(&why))
    }
}

impl Broker {
    /// The number that a place stands for, if it is one in this broker's log.
    pub(super) fn in_own_log(&self, place: Option<&Place>) -> Result<Option<u64>, Error> {
        match place {
            Some(place) if place.log != self.parts.audit.log() => {
                Err(Error::invalid("`cursor` is a place in another broker's log: ask the broker that gave it"))
            }
            place => Ok(place.map(|place| place.sequence)),
        }
    }

    /// Makes sure that nothing was missing in the store because it forgot it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn still_vouched(&self) -> Result<(), Error> {
        if self.watch().await { Ok(()) } else { Err(Error::Unavailable(Input::Store)) }
    }

    /// What whoever calls may look at; that they do is on record.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`]; [`Error::PolicyDenied`] for workloads and services, and for owners where it is not theirs to do;
    /// [`Error::Unavailable`].
    pub(super) async fn sight(
        &self,
        request: Request,
        task: Option<&TaskId>,
        (act, at): (Act, &str),
    ) -> Result<Sight, Error> {
        let call = Call { request: &request.id, task, now: self.now() };
        match self.identify(request.presented, &call).await? {
            Caller::Operator(operator) => {
                self.allow(&operator, act, &call).await?;
                self.note(&operator, &call, looked(at)).await?;
                Ok(Sight::All)
            }
            Caller::Owner(member) if act.is_for_owners() => {
                // It is on record of the task only where that is theirs: else it would be in the story of another's.
                let of = match task {
                    Some(id) => self.parts.ledger.task(id).await.ok().flatten().map(|held| held.task.owner.clone()),
                    None => None,
                };
                for owner in member.owners() {
                    let task = task.filter(|_| of.as_ref() == Some(owner));
                    self.note_owner(&member, (owner, task), &call, at).await?;
                }
                Ok(Sight::Owners(member))
            }
            Caller::Owner(_) => Err(wrong_role("this takes an operator")),
            Caller::Service(_) | Caller::Workload(_) => Err(wrong_role("this is for people: operators and owners")),
        }
    }
}
