//! Looks at many things at once: who may, that it is on record, how many do so at a time, and for how long.

use std::{
    collections::HashMap,
    fmt, io,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Broker, Call, Caller, Request, looked, wrong_role};
use crate::{
    error::{Error, Input},
    id::TaskId,
    party::{Act, Member},
};

/// How many go through the log at a time: each keeps a thread and the disk busy. Others wait for their turn, for a while.
const READERS: usize = 4;
const QUEUE: Duration = Duration::from_secs(10);
/// How many looks one person has at a time.
const LOOKS: usize = 2;
/// How long a look goes on. What it did not come to is asked for next.
const LONGEST: Duration = Duration::from_secs(5);

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

/// Cancelled when whoever asked has gone.
pub type Gone = CancellationToken;

/// For how long something is looked at: until its time is up, or nobody waits for it any more.
#[derive(Clone)]
pub(super) struct Patience {
    until: Instant,
    gone: Gone,
}

impl Patience {
    fn begin(gone: Gone) -> Self {
        Self { until: Instant::now() + LONGEST, gone }
    }

    /// Whether it is to end here, with what there is.
    pub(super) fn is_over(&self) -> bool {
        self.is_gone() || Instant::now() >= self.until
    }

    /// Whether nobody waits for it.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Goes on only where somebody waits for it.
    ///
    /// # Errors
    /// [`Error::Unavailable`], which nobody gets to see.
    pub(super) fn still_waits(&self) -> Result<(), Error> {
        if self.is_gone() { Err(Error::Unavailable(Input::Audit)) } else { Ok(()) }
    }
}

/// What somebody may look at, and for how long; on record.
pub(super) struct Look {
    pub(super) sight: Sight,
    pub(super) patience: Patience,
    pub(super) seat: Seat,
}

/// One of the looks that a person can have at a time; theirs until it is dropped.
pub(super) struct Seat {
    name: String,
    taken: Arc<Mutex<HashMap<String, usize>>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.name);
            }
        }
    }
}

/// Room for those who look at many things.
pub(super) struct Readers {
    turns: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<String, usize>>>,
}

impl Default for Readers {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(READERS)), taken: Arc::default() }
    }
}

impl Readers {
    /// A seat for one more look of this person, or workload.
    pub(super) fn seat(&self, name: &str) -> Result<Seat, Error> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(name.to_owned()).or_default();
        if *count >= LOOKS {
            return Err(Error::QuotaExceeded("you are looking at two things already: wait for an answer"));
        }
        *count += 1;
        Ok(Seat { name: name.to_owned(), taken: self.taken.clone() })
    }

    /// Goes through the log, once it is its turn, for as long as a look goes on.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        patience: &Patience,
        work: impl FnOnce(&Patience) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let gone = patience.gone.clone();
        let turn = tokio::select! {
            turn = timeout(QUEUE, self.turns.clone().acquire_owned()) => turn,
            () = gone.cancelled() => return Err(Error::Unavailable(Input::Audit)),
        };
        let busy = Error::QuotaExceeded("as many go through the log as can at a time: try again");
        let turn = turn.map_err(|_| busy)?.map_err(|_| Error::Unavailable(Input::Audit))?;
        let worked = tokio::task::spawn_blocking(move || {
            let worked = work(&Patience::begin(gone));
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

    /// What whoever calls may look at, for as long as they wait for it; that they do is on record.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`]; [`Error::PolicyDenied`] for workloads and services, and for owners where it is not theirs to do;
    /// [`Error::QuotaExceeded`] where they look at as much as they can already; [`Error::Unavailable`].
    pub(super) async fn look(
        &self,
        (request, gone): (Request, Gone),
        task: Option<&TaskId>,
        (act, at): (Act, &'static str),
    ) -> Result<Look, Error> {
        let call = Call { request: &request.id, task, now: self.now() };
        let (sight, seat) = match self.identify(request.presented, &call).await? {
            Caller::Operator(operator) => {
                self.allow(&operator, act, &call).await?;
                let seat = self.readers.seat(operator.name())?;
                self.note(&operator, &call, looked(at)).await?;
                (Sight::All, seat)
            }
            Caller::Owner(member) if act.is_for_owners() => {
                let seat = self.readers.seat(member.name())?;
                // It is on record of the task only where that is theirs: else it would be in the story of another's.
                let of = match task {
                    Some(id) => self.parts.ledger.task(id).await.ok().flatten().map(|held| held.task.owner.clone()),
                    None => None,
                };
                for owner in member.owners() {
                    let task = task.filter(|_| of.as_ref() == Some(owner));
                    self.note_owner(&member, (owner, task), &call, at).await?;
                }
                (Sight::Owners(member), seat)
            }
            Caller::Owner(member) => {
                return Err(self.turn_down(&*member, at, &call, wrong_role("this takes an operator")));
            }
            other @ (Caller::Service(_) | Caller::Workload(_)) => {
                let error = wrong_role("this is for people: operators and owners");
                return Err(self.turn_down(&other, at, &call, error));
            }
        };
        Ok(Look { sight, patience: Patience::begin(gone), seat })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_has_so_many_looks_at_a_time() {
        let readers = Readers::default();
        let seats: Vec<_> = (0..LOOKS).map(|_| readers.seat("ann").unwrap()).collect();
        assert!(matches!(readers.seat("ann"), Err(Error::QuotaExceeded(_))));
        let other = readers.seat("ben").unwrap();
        drop(seats);
        assert!(readers.seat("ann").is_ok());
        drop(other);
        assert!(readers.taken.lock().unwrap().is_empty(), "nobody is kept in mind who has gone");
    }
}
