//! What is dead or locked out, as far as this broker knows: the last look before a credential leaves, and what survives a store that
//! forgot.
//!
//! A notice is in the broker's own journal (`journal.rs`) before the store is told, and in memory (`set.rs`) before that. So it holds on
//! this broker whatever becomes of the store, and the store is told again of what it has lost. The status lists, as this broker has
//! seen them, stand beside it (`status_list.rs`), and so do the revoked certificates (`crl.rs`).

mod crl;
mod journal;
mod placed;
mod set;
mod status_list;

pub use crl::{CRL_BACKDATED, CRL_INTERVAL, CRL_LIFE, Certificates, Crls, SignedCrl};
pub use journal::{Place, Unjournaled};
pub use placed::Placed;
pub use status_list::{STATUS_LIST_LIFE, STATUS_LIST_TTL, Signed, StatusLists, View};

use serde::Deserialize;
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::sync::{Notify, watch};

use crate::{
    clock::Time,
    id::{BrokerName, LeaseId, TaskId},
    notice::{Notice, SubjectId},
    task::End,
};
use journal::Journal;
use set::Set;

/// The `[feed]` section: the revocation feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeedTerms {
    /// Whether whoever does not say who they are may read it.
    pub anonymous: bool,
    /// How many may follow it at a time; `None`: [`FeedTerms::FOLLOWERS`], or as many as there may be files open for.
    pub followers: Option<u32>,
}

impl Default for FeedTerms {
    fn default() -> Self {
        Self { anonymous: true, followers: None }
    }
}

impl FeedTerms {
    /// How many may follow it at a time where nothing is said.
    pub const FOLLOWERS: u32 = 4000;

    /// What is wrong with it.
    #[must_use]
    pub fn mistake(&self) -> Option<String> {
        let fits = self.followers.is_none_or(|followers| (1..=20_000).contains(&followers));
        (!fits).then(|| "`feed.followers` is 1 to 20000; more brokers on the store take more".to_owned())
    }
}

/// The notices that this broker knows of, and its journal of them.
#[derive(Debug)]
pub struct Revocations {
    set: Arc<Set>,
    journal: Journal,
    broker: BrokerName,
    /// From which number on it counts since it was started.
    since: u64,
    /// Where this broker was last.
    place: Mutex<Option<Place>>,
    /// Told when there is something new for verifiers.
    news: Notify,
    /// The last number, for whoever else tells of ends.
    numbers: watch::Sender<u64>,
}

impl Revocations {
    /// Opens the journal in `dir`, and takes up what is in it.
    ///
    /// # Errors
    /// When it cannot be written, another broker has it open, or it is damaged elsewhere than at its end.
    pub fn open(dir: &Path) -> Result<Self, Unjournaled> {
        let (journal, recalled) = Journal::open(dir)?;
        let broker =
            recalled.broker.parse().map_err(|why| Unjournaled(format!("the journal of revocations: {why}")))?;
        let (set, loaded) = (Arc::new(Set::after(recalled.sequence)), Instant::now());
        for notice in recalled.notices {
            set.insert(notice.clone(), loaded);
            set.journaled(&notice);
            set.number(&notice);
        }
        let since = set.last();
        let place = Mutex::new(recalled.place);
        Ok(Self { set, journal, broker, since, place, news: Notify::new(), numbers: watch::Sender::new(since) })
    }

    /// The name of this broker in the feed: as long as its journal is.
    #[must_use]
    pub fn broker(&self) -> &BrokerName {
        &self.broker
    }

    /// Records a notice, which holds here at once, and whatever happens once this returns. Of two about the same, which one stands
    /// [`Notice::united`] says: that is the answer. What is on disk already is not written again, however often it is asked for.
    ///
    /// # Errors
    /// When the journal did not take it.
    pub async fn record(&self, notice: Notice) -> Result<Notice, Unjournaled> {
        let standing = self.set.get(&notice.subject.id());
        let stands = match standing {
            Some(standing) => standing.united(notice),
            None => notice,
        };
        let notice = Notice { broker: self.broker.to_string(), ..stands };
        self.keep(&notice).await?;
        Ok(notice)
    }

    /// In memory, and on disk unless it is there.
    async fn keep(&self, notice: &Notice) -> Result<(), Unjournaled> {
        if self.set.is_settled(notice) {
            self.set.insert(notice.clone(), Instant::now());
            return Ok(());
        }
        self.hold(notice).await
    }

    /// In memory first, so that a journal that is written anew meanwhile has it; and on disk.
    async fn hold(&self, notice: &Notice) -> Result<(), Unjournaled> {
        self.set.insert(notice.clone(), Instant::now());
        self.journal.record(notice).await?;
        self.set.journaled(notice);
        Ok(())
    }

    /// Takes in what another broker says is dead, which is on disk here before verifiers are told.
    ///
    /// # Errors
    /// When the journal did not take it. It holds here all the same.
    pub async fn learn(&self, notice: Notice) -> Result<(), Unjournaled> {
        self.keep(&notice).await?;
        self.set.logged(&notice);
        self.tell(&notice);
        Ok(())
    }

    /// The store was found to have this notice at `now`, so nothing is minted any more that it concerns.
    pub fn shut(&self, notice: &Notice, now: Time) {
        self.set.shut(notice, now, Instant::now());
    }

    /// The clock of another broker said `time` a moment ago, or later than that.
    pub fn read_clock(&self, time: Time) {
        self.set.read_clock(time, Instant::now());
    }

    /// In which store this broker was last; `None`: it never was in one.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes in which store this broker is, and in which generation of it. Verifiers are told at once.
    ///
    /// # Errors
    /// When the journal did not take it.
    pub async fn enter(&self, store: String, generation: u64) -> Result<(), Unjournaled> {
        let (settled, members) = match self.place() {
            Some(place) if place.store == store => (place.settled, place.members),
            _ => (None, Vec::new()),
        };
        self.stand(Place { store, generation, settled, members }).await?;
        self.news.notify_one();
        Ok(())
    }

    /// Notes that every broker that was there has told this run of the store, and who is there.
    ///
    /// # Errors
    /// When the journal did not take it.
    pub async fn settle(&self, run: &str, members: Vec<BrokerName>) -> Result<(), Unjournaled> {
        match self.place() {
            Some(place) if place.settled.as_deref() != Some(run) || place.members != members => {
                self.stand(Place { settled: Some(run.to_owned()), members, ..place }).await
            }
            _ => Ok(()),
        }
    }

    async fn stand(&self, place: Place) -> Result<(), Unjournaled> {
        self.journal.enter(place.clone()).await?;
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        Ok(())
    }

    /// Lets verifiers know of a notice.
    pub fn tell(&self, notice: &Notice) {
        if self.set.number(notice) {
            self.news.notify_one();
            self.numbers.send_replace(self.set.last());
        }
    }

    /// Waits until there is something new for verifiers.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The number of the last that is told, as it changes: for whoever tells others than verifiers.
    #[must_use]
    pub fn numbers(&self) -> watch::Receiver<u64> {
        self.numbers.subscribe()
    }

    /// What verifiers have to know at `now` that is newer than `number`, up to `last`: the rest of what they were told, nothing can be of.
    #[must_use]
    pub fn mattering(&self, number: u64, last: u64, now: Time) -> Vec<Notice> {
        self.set.mattering(number, last, (now, Instant::now()))
    }

    /// What verifiers were told of that is newer than `number`, up to `last`.
    #[must_use]
    pub fn told(&self, number: u64, last: u64) -> Vec<Notice> {
        self.set.numbered(number, last)
    }

    /// The number of the last that verifiers are told of.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.set.last()
    }

    /// From which number on verifiers know that this is dead, of a task as much as that one above it is; `None` where they were not told.
    #[must_use]
    pub fn number_of(&self, id: &SubjectId) -> Option<u64> {
        self.set.number_of(id)
    }

    /// Whether this broker can tell what is newer than `number`.
    #[must_use]
    pub fn can_resume(&self, number: u64) -> bool {
        (self.since..=self.set.last()).contains(&number)
    }

    /// The end that is known of this task, or of the one furthest above it.
    #[must_use]
    pub fn ending(&self, task: &TaskId) -> Option<End> {
        task.lineage().find_map(|id| self.set.get(&SubjectId::Task(id))?.end())
    }

    /// The other brokers were told.
    pub fn logged(&self, notice: &Notice) {
        self.set.logged(notice);
    }

    /// Whether the other brokers were told.
    #[must_use]
    pub fn is_logged(&self, notice: &Notice) -> bool {
        self.set.is_logged(notice)
    }

    /// The other brokers may have lost all that they were told.
    pub fn none_logged(&self) {
        self.set.none_logged();
    }

    /// What the other brokers may not know.
    #[must_use]
    pub fn unlogged(&self) -> Vec<Notice> {
        self.set.unlogged()
    }

    /// Whether the task or an ancestor is known to have ended.
    #[must_use]
    pub fn covers(&self, task: &TaskId) -> bool {
        self.set.covers(task)
    }

    /// Whether this credential is known to be dead by itself.
    #[must_use]
    pub fn has_lease(&self, lease: &LeaseId) -> bool {
        self.set.has_lease(lease)
    }

    /// Since when this credential is dead by itself, if it is.
    #[must_use]
    pub fn lease_ended_at(&self, lease: &LeaseId) -> Option<Time> {
        self.set.get(&SubjectId::Lease(lease.clone())).map(|notice| notice.at)
    }

    /// What is known about this.
    #[must_use]
    pub fn get(&self, id: &SubjectId) -> Option<Notice> {
        self.set.get(id)
    }

    /// All locks that are not long over, as they stand: released ones as well.
    #[must_use]
    pub fn locks(&self) -> Vec<Notice> {
        self.set.locks()
    }

    /// All that is known.
    #[must_use]
    pub fn all(&self) -> Vec<Notice> {
        self.set.all()
    }

    /// Forgets what can no longer matter, and lets the journal become shorter.
    pub fn tend(&self, now: Time) {
        if self.set.forget(now, Instant::now()) > 0 {
            self.journal.compact(&self.set);
        }
    }
}
