//! The revocation feed: signed states of what has ended, pushed to whoever verifies, so that one that is not reached notices.
//!
//! A state is *fresh* for the feed's window from when the store was last found to be itself: written to, the same run of the same server
//! as before, and its log of ends read to the end. Where that cannot be said, what is known is pushed all the same, and nothing becomes
//! fresher by it: verifiers go stale, and deny. All brokers on a store tell the same, each in numbers of its own.

use chrono::TimeDelta;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, broadcast},
    time::{Instant, sleep_until},
};

use super::{Broker, Call, Caller, Request, wrong_role};
use crate::{
    claims::{NumericDate, REVOCATIONS_TYP, RevocationClaims, RevocationEntry, Revoked},
    clock::{Time, whole_second},
    error::{Error, Input},
    id::TaskId,
    jose::Invalid,
    lease::{InDoubt, Position, Use},
    task::Ending,
};

/// How many may follow at a time: each holds a connection, and others need some too.
const MOST: usize = 192;
/// How many states a reader may be behind. One that is slower is dropped, goes stale, and asks again.
const BEHIND: usize = 256;
/// How many whole sets may be put together at a time.
const SNAPSHOTS: usize = 8;

/// What is pushed, and to whom.
pub(super) struct Feed {
    pushes: broadcast::Sender<Arc<Push>>,
    pushed: Mutex<Pushed>,
    /// Where the log of ends was read to.
    read: Mutex<Position>,
    followers: Arc<Semaphore>,
    snapshots: Semaphore,
    services: Arc<Services>,
    /// When the store was last found to be itself: by how many it was asked at a time, it is asked once.
    vouching: Mutex<Option<(Instant, Option<Time>)>>,
    /// The longest window that any state had, in seconds: none that was signed before a configuration changed lives longer.
    longest: AtomicU32,
}

/// How far the services are that say who they are, by name.
#[derive(Default)]
struct Services(StdMutex<HashMap<String, Progress>>);

/// How far a service is.
#[derive(Default)]
struct Progress {
    /// When the last state expires that it was sent.
    holds_until: Option<Time>,
    /// The last sequence that it said to go by.
    acknowledged: u64,
}

impl Services {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Progress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, service: &str, exp: Time) {
        self.lock().entry(service.to_owned()).or_default().holds_until = Some(exp);
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            pushes: broadcast::Sender::new(BEHIND),
            pushed: Mutex::default(),
            read: Mutex::default(),
            followers: Arc::new(Semaphore::new(MOST)),
            snapshots: Semaphore::new(SNAPSHOTS),
            services: Arc::default(),
            vouching: Mutex::default(),
            longest: AtomicU32::new(0),
        }
    }
}

/// How far everybody who follows has been told.
#[derive(Default)]
struct Pushed {
    /// `None`: nobody has been told anything since the broker was started.
    sequence: Option<u64>,
    /// When the store was last found to be itself.
    vouched: Option<Time>,
}

/// One state, as everybody who follows gets it.
#[derive(Debug)]
pub struct Push {
    /// What `Last-Event-ID` says of it.
    pub id: String,
    /// The state, signed.
    pub state: String,
    /// When it expires.
    exp: Time,
}

/// Somebody who follows the feed.
pub struct Follower {
    first: Option<Arc<Push>>,
    pushes: broadcast::Receiver<Arc<Push>>,
    /// Who it is, where that is said.
    service: Option<(String, Arc<Services>)>,
    _room: OwnedSemaphorePermit,
}

impl Follower {
    /// The next state; `None`: they were too slow, and have to begin again.
    pub async fn next(&mut self) -> Option<Arc<Push>> {
        let push = match self.first.take() {
            Some(first) => first,
            None => self.pushes.recv().await.ok()?,
        };
        if let Some((service, services)) = &self.service {
            services.sent(service, push.exp);
        }
        Some(push)
    }
}

/// Where a follower left off: `Last-Event-ID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The broker that told it.
    pub broker: String,
    /// The sequence of the last state.
    pub sequence: u64,
}

impl Broker {
    /// Follows the feed: from where somebody left off, where that can be told, else from a whole state on.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`] for a caller who is none; [`Error::PolicyDenied`] for one who may not; [`Error::QuotaExceeded`] where too
    /// many follow already; [`Error::Unavailable`] while no state can be signed.
    pub async fn follow_revocations(&self, request: Option<Request>, left: Option<Left>) -> Result<Follower, Error> {
        let service = self.reads_feed(request).await?;
        let room = self.feed.followers.clone().try_acquire_owned();
        let room = room.map_err(|_| Error::QuotaExceeded("too many follow the revocations: ask another broker"))?;
        let taken = self.feed.snapshots.acquire().await.map_err(|_| Error::Unavailable(Input::Keys))?;
        // Nothing is pushed while this is held, so what is pushed next goes on where this ends.
        let (sequence, vouched, pushes) = {
            let mut pushed = self.feed.pushed.lock().await;
            let sequence = match pushed.sequence {
                Some(sequence) => sequence,
                None => self.push(&mut pushed)?,
            };
            (sequence, pushed.vouched, self.feed.pushes.subscribe())
        };
        let ours = |left: &Left| {
            left.broker == self.revocations.broker().as_str()
                && left.sequence <= sequence
                && self.revocations.can_resume(left.sequence)
        };
        let previous = left.filter(ours).map(|left| left.sequence);
        let first = self.state(previous, sequence, None, vouched)?;
        drop(taken);
        let service = service.map(|service| (service, self.feed.services.clone()));
        Ok(Follower { first: Some(Arc::new(first)), pushes, service, _room: room })
    }

    /// All that has ended, in one signed state. With a nonce it is as of after it was asked for.
    ///
    /// # Errors
    /// As [`Broker::follow_revocations`].
    pub async fn revocations(&self, request: Option<Request>, nonce: Option<String>) -> Result<Push, Error> {
        let service = self.reads_feed(request).await?;
        let taken = self.feed.snapshots.acquire().await.map_err(|_| Error::Unavailable(Input::Keys))?;
        let vouched = match &nonce {
            Some(_) => self.vouch().await,
            None => self.last_vouched().await,
        };
        let vouched = vouched.ok_or(Error::Unavailable(Input::Store))?;
        let sequence = self.revocations.last();
        let state = self.state(None, sequence, nonce, Some(vouched));
        drop(taken);
        let state = state?;
        if let Some(service) = service {
            self.feed.services.sent(&service, state.exp);
        }
        Ok(state)
    }

    /// A service says how far it is: from now on it accepts nothing that this state says is dead. The sequence that it is at now.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`] for a caller who is none; [`Error::PolicyDenied`] for one who is no service; [`Error::InvalidRequest`] for
    /// what this broker has never said.
    pub async fn acknowledge(&self, request: Request, at: &Left) -> Result<u64, Error> {
        let call = Call { request: &request.id, task: None, now: self.now() };
        let refused = "services acknowledge what they have heard";
        let service = match self.identify(request.presented, &call).await? {
            Caller::Service(service) => service,
            Caller::Operator(operator) => return Err(self.refuse_operator(&operator, &call, refused).await?),
            Caller::Owner(_) | Caller::Workload(_) => return Err(wrong_role(refused)),
        };
        // Of another broker, it is no word about what this one says; and nobody has heard what was never said.
        let last = self.revocations.last();
        if at.broker != self.revocations.broker().as_str() || at.sequence > last {
            return Err(Error::invalid("this broker has not said that: acknowledge its own states to itself"));
        }
        let mut services = self.feed.services.lock();
        let progress = services.entry(service.name().to_owned()).or_default();
        progress.acknowledged = progress.acknowledged.max(at.sequence);
        Ok(progress.acknowledged)
    }

    /// How many of the services that follow this broker have heard of the end of this task, and how many there are.
    pub(super) fn heard_of(&self, task: &TaskId, now: Time) -> (u64, u64) {
        let sequence = self.revocations.number_of(task).unwrap_or(u64::MAX);
        let services = self.feed.services.lock();
        let holding = services.values().filter(|progress| progress.holds_until.is_some_and(|until| until > now));
        holding.fold((0, 0), |(heard, of), progress| (heard + u64::from(progress.acknowledged >= sequence), of + 1))
    }

    /// Anybody, unless the configuration says otherwise; but nobody who says who they are, and is not. The name, of a service.
    async fn reads_feed(&self, request: Option<Request>) -> Result<Option<String>, Error> {
        let Some(request) = request else {
            return if self.parts.feed.anonymous { Ok(None) } else { Err(Error::EvidenceInvalid) };
        };
        let call = Call { request: &request.id, task: None, now: self.now() };
        match self.identify(request.presented, &call).await? {
            Caller::Service(service) => Ok(Some(service.name().to_owned())),
            Caller::Operator(_) => Ok(None),
            Caller::Owner(_) | Caller::Workload(_) if self.parts.feed.anonymous => Ok(None),
            Caller::Owner(_) | Caller::Workload(_) => Err(wrong_role("the revocations are for services and operators")),
        }
    }

    /// When the store was last found to be itself; where it never was, it is looked at.
    async fn last_vouched(&self) -> Option<Time> {
        let vouched = self.feed.pushed.lock().await.vouched;
        if vouched.is_some() { vouched } else { self.vouch().await }
    }

    /// Pushes what is new as soon as it is, and that there is nothing new before anybody would go stale. Ends with the broker.
    pub async fn feed(&self) {
        tokio::join!(self.push_news(), self.push_heartbeats(), self.follow_hints());
    }

    async fn push_news(&self) {
        loop {
            self.revocations.news().await;
            self.push_now(None).await;
        }
    }

    /// However much there is that is new, a state becomes fresher by this alone.
    async fn push_heartbeats(&self) {
        loop {
            let next = Instant::now() + self.heartbeat();
            let vouched = self.vouch().await;
            self.push_now(vouched).await;
            sleep_until(next).await;
        }
    }

    /// Looks into the log of ends whenever something was hinted at, or hints were lost.
    async fn follow_hints(&self) {
        let mut hints = self.parts.ledger.changes();
        loop {
            if let Err(broadcast::error::RecvError::Closed) = hints.recv().await {
                return;
            }
            // However many came meanwhile, they are about what is read now.
            while hints.try_recv().is_ok() {}
            if let Err(why) = self.learn_ends().await {
                tracing::warn!(%why, "what other brokers ended cannot be read");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn push_now(&self, vouched: Option<Time>) {
        let mut pushed = self.feed.pushed.lock().await;
        pushed.vouched = pushed.vouched.max(vouched);
        if let Err(error) = self.push(&mut pushed) {
            tracing::warn!(%error, "no state of the revocation feed was pushed");
        }
    }

    /// Two of them, and what they take, are less than the window.
    fn heartbeat(&self) -> Duration {
        Duration::from_millis(u64::from(self.rules().parties.freshness()) * 400)
    }

    /// Signs what is new since the last push, once for all, and pushes it: the sequence.
    fn push(&self, pushed: &mut Pushed) -> Result<u64, Error> {
        let sequence = self.revocations.last();
        let previous = pushed.sequence.unwrap_or(sequence);
        let push = self.state(Some(previous), sequence, None, pushed.vouched)?;
        pushed.sequence = Some(sequence);
        // Nobody may be following.
        let _ = self.feed.pushes.send(Arc::new(push));
        Ok(sequence)
    }

    /// For how long a state that somebody holds may be fresh at most.
    pub(super) fn longest_freshness(&self) -> TimeDelta {
        let now = self.rules().parties.freshness();
        TimeDelta::seconds(i64::from(self.feed.longest.load(Ordering::Acquire).max(now)))
    }

    /// When the store was found to be itself, all that has ended being known: the moment before it was asked. `None`: it was not. One look
    /// at a time, and one for all who came before it began.
    async fn vouch(&self) -> Option<Time> {
        let came = Instant::now();
        let mut last = self.feed.vouching.lock().await;
        if let Some((_, vouched)) = last.filter(|(begun, _)| *begun >= came) {
            return vouched;
        }
        let (begun, at) = (Instant::now(), self.now());
        let vouched = async {
            self.parts.ledger.touch(self.revocations.broker(), at).await?;
            if !self.watch().await {
                return Err(InDoubt("the store is not vouched for".into()));
            }
            let before = self.parts.ledger.incarnation().await?;
            self.learn_ends().await?;
            // Another run of it may have another log.
            if self.parts.ledger.incarnation().await? == before && self.replay.is_done(&before) {
                Ok(())
            } else {
                Err(InDoubt("the store was started anew meanwhile".into()))
            }
        };
        let vouched = vouched.await.inspect_err(|why| tracing::warn!(%why, "the revocation feed goes stale")).ok();
        let vouched = vouched.map(|()| at);
        *last = Some((begun, vouched));
        vouched
    }

    /// Takes in what other brokers have ended.
    pub(super) async fn learn_ends(&self) -> Result<(), InDoubt> {
        let mut read = self.feed.read.lock().await;
        loop {
            let (endings, position) = self.parts.ledger.logged_ends(&read).await?;
            for ending in endings {
                self.revocations.learn(ending).await.map_err(|why| InDoubt(why.to_string()))?;
            }
            if position == *read {
                return Ok(());
            }
            *read = position;
        }
    }

    /// Reads the log of ends from its beginning: another run of the store may have another one.
    pub(super) async fn learn_ends_anew(&self) -> Result<(), InDoubt> {
        self.revocations.none_logged();
        *self.feed.read.lock().await = Position::default();
        self.learn_ends().await
    }

    /// A state, signed: what is newer than `previous`, or all there is, up to `sequence`; fresh from `vouched` on.
    fn state(
        &self,
        previous: Option<u64>,
        sequence: u64,
        nonce: Option<String>,
        vouched: Option<Time>,
    ) -> Result<Push, Error> {
        let now = self.now();
        // Of a store that was never vouched for, what is known is told as of long ago.
        let iat = vouched.unwrap_or(now - TimeDelta::days(1));
        let freshness = self.rules().parties.freshness();
        self.feed.longest.fetch_max(freshness, Ordering::AcqRel);
        let exp = iat + TimeDelta::seconds(i64::from(freshness));
        if !self.is_known(now) {
            return Err(Error::Unavailable(Input::Keys));
        }
        let endings = self.revocations.told(previous.unwrap_or(0), sequence);
        let entries = endings.iter().map(entry_of).collect::<Option<_>>().ok_or(Error::Unavailable(Input::Keys))?;
        let broker = self.revocations.broker().clone();
        let date = |time| NumericDate::of(time).ok_or(Error::Unavailable(Input::Keys));
        let claims = RevocationClaims {
            iss: self.issuer.clone(),
            broker: broker.clone(),
            iat: date(iat)?,
            exp: date(exp)?,
            generation: self.parts.ledger.generation(),
            sequence,
            previous,
            nonce,
            entries,
        };
        // Needed for as long as the state is worth anything, in whole seconds.
        let until = whole_second(exp).timestamp() + 1;
        let signed = self.parts.keys.sign(Use::Revocations, REVOCATIONS_TYP, until, &claims);
        let state = signed.map_err(|Invalid(why)| {
            tracing::error!(why, "a state of the revocation feed was not signed");
            Error::Unavailable(Input::Keys)
        })?;
        Ok(Push { id: format!("{broker}:{sequence}"), state, exp })
    }
}

fn entry_of(Ending { end, until, .. }: &Ending) -> Option<RevocationEntry> {
    let (at, until) = (NumericDate::of(end.at)?, NumericDate::of((*until).max(end.at))?);
    Some(RevocationEntry { what: Revoked::Task(end.task.clone()), at, until })
}
