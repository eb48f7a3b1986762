//! The revocation feed: signed states of what is dead, pushed to whoever verifies, so that one that is not reached notices.
//!
//! A state is *fresh* for the feed's window from when the store was last found to be itself: written to, the same run of the same server
//! as before, and its log of notices read to the end. Where that cannot be said, what is known is pushed all the same, and nothing becomes
//! fresher by it: verifiers go stale, and deny. All brokers on a store tell the same, each in numbers of its own.

use chrono::TimeDelta;
use futures_util::future::try_join_all;
use std::{
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, broadcast},
    task::block_in_place,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Broker, Call, Caller, Request,
    heard::{Reader, Readers},
    in_doubt,
    members::SIGN_OF_LIFE,
    one_look::OneLook,
    wrong_role,
};
use crate::{
    claims::{NumericDate, REVOCATIONS_TYP, RevocationClaims},
    clock::{Time, whole_second},
    error::{Error, Input},
    jose::Invalid,
    lease::{Hint, InDoubt, Position, Use},
    notice::{Notice, Subject},
    revocation::FeedTerms,
    verify::MAX_STATE,
};

/// How many states a reader may be behind. One that is slower is dropped, goes stale, and asks again.
const BEHIND: usize = 256;
/// How many whole sets may be put together, or be on their way to whoever asked for them, at a time. Strangers have half of that.
const SNAPSHOTS: usize = 8;
/// How long a stranger waits for room for one, and how long whoever is known does: they all come again after a start.
const STRANGERS_WAIT: Duration = Duration::from_secs(2);
const WAIT: Duration = Duration::from_secs(20);
/// What is no longer than this, in octets, is on its way at once: a connection takes it whole.
const SHORT: usize = 16 * 1024;
/// From how many entries on a state is put together apart from what serves requests.
const MANY: usize = 4_096;

/// What is pushed, and to whom.
pub(super) struct Feed {
    pushes: broadcast::Sender<Arc<Push>>,
    pushed: Mutex<Pushed>,
    /// Where the log of notices was read to.
    pub(super) read: Mutex<Position>,
    followers: Arc<Semaphore>,
    /// Those of them who are no services.
    strangers: Arc<Semaphore>,
    snapshots: Arc<Semaphore>,
    /// Those of them that are for strangers.
    strange_snapshots: Arc<Semaphore>,
    /// The last whole state that was told to those who begin to follow, and as of what.
    whole: std::sync::Mutex<Option<Whole>>,
    /// Who holds what was told.
    pub(super) readers: Arc<Readers>,
    /// When the store was last found to be itself.
    vouching: OneLook<Option<Time>>,
    /// The longest window that any state had, in seconds: none that was signed before a configuration changed lives longer.
    longest: AtomicU32,
    /// Whether it was said that a whole state is more than half as long as verifiers take.
    is_long: AtomicBool,
}

impl Feed {
    /// One that so many may follow at a time, half of whom are no services.
    pub(super) fn new(followers: Option<u32>) -> Self {
        let followers = followers.unwrap_or(FeedTerms::FOLLOWERS) as usize;
        Self {
            pushes: broadcast::Sender::new(BEHIND),
            pushed: Mutex::default(),
            read: Mutex::default(),
            followers: Arc::new(Semaphore::new(followers)),
            strangers: Arc::new(Semaphore::new(followers.div_ceil(2))),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS)),
            strange_snapshots: Arc::new(Semaphore::new(SNAPSHOTS / 2)),
            whole: std::sync::Mutex::default(),
            readers: Arc::default(),
            vouching: OneLook::default(),
            longest: AtomicU32::new(0),
            is_long: AtomicBool::new(false),
        }
    }

    /// Room for one more, where there is some. Strangers never have it all: services find room however many of them there are.
    fn room(&self, stranger: bool) -> Result<Arc<FollowerRoom>, Error> {
        let full = |_| Error::QuotaExceeded("too many follow the revocations: ask another broker");
        let of_strangers = stranger.then(|| self.strangers.clone().try_acquire_owned()).transpose().map_err(full)?;
        let one = self.followers.clone().try_acquire_owned().map_err(full)?;
        Ok(Arc::new(FollowerRoom { _one: one, _of_strangers: of_strangers }))
    }

    /// Room for one more whole state, once there is some. Those that strangers do not take up no room of those who are known.
    async fn snapshot_room(&self, stranger: bool) -> Result<SnapshotRoom, Error> {
        let room = async {
            let of_strangers =
                if stranger { Some(self.strange_snapshots.clone().acquire_owned().await.ok()?) } else { None };
            Some(SnapshotRoom { _one: self.snapshots.clone().acquire_owned().await.ok()?, _of_strangers: of_strangers })
        };
        let room = timeout(if stranger { STRANGERS_WAIT } else { WAIT }, room).await;
        let busy = "too many read all of the revocations: ask again in a moment, or another broker";
        room.map_err(|_| Error::QuotaExceeded(busy))?.ok_or(Error::Unavailable(Input::Keys))
    }
}

/// All there is, as of a generation, a sequence and of when the store was last found to be itself.
struct Whole {
    of: (u64, u64, Option<Time>),
    push: Arc<Push>,
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
    /// The same as it goes over the wire, once somebody wrote it.
    written: OnceLock<String>,
    /// For how long it is fresh at most.
    fresh: Duration,
}

/// Room for a whole state, as long as this is held.
#[derive(Debug)]
struct SnapshotRoom {
    _one: OwnedSemaphorePermit,
    _of_strangers: Option<OwnedSemaphorePermit>,
}

/// A state on its way to somebody. To be held until they have it: until then it takes up the room that a long one has.
#[derive(Debug)]
pub struct Sent {
    push: Arc<Push>,
    _room: Option<SnapshotRoom>,
}

impl Sent {
    fn new(push: Arc<Push>, room: Option<SnapshotRoom>) -> Self {
        let is_long = push.state.len() > SHORT;
        Self { push, _room: room.filter(|_| is_long) }
    }

    /// The state.
    #[must_use]
    pub fn push(&self) -> &Push {
        &self.push
    }
}

/// Somebody who follows the feed.
pub struct Follower {
    first: Option<Sent>,
    pushes: broadcast::Receiver<Arc<Push>>,
    /// Who it is, where that is said.
    reader: Option<Reader>,
    readers: Arc<Readers>,
    room: Arc<FollowerRoom>,
}

/// Room for one that follows, as long as this is held.
#[derive(Debug)]
pub struct FollowerRoom {
    _one: OwnedSemaphorePermit,
    _of_strangers: Option<OwnedSemaphorePermit>,
}

impl Push {
    /// What it is on the wire: the first who wants to know writes it, for all.
    pub fn written(&self, write: impl FnOnce(&Self) -> String) -> &str {
        self.written.get_or_init(|| write(self))
    }
}

impl Follower {
    /// What keeps its room for as long as it is held.
    #[must_use]
    pub fn room(&self) -> Arc<FollowerRoom> {
        self.room.clone()
    }

    /// The next state; `None`: they were too slow, and have to begin again.
    pub async fn next(&mut self) -> Option<Sent> {
        let sent = match self.first.take() {
            Some(first) => first,
            None => Sent::new(self.pushes.recv().await.ok()?, None),
        };
        self.readers.sent(self.reader.as_ref(), sent.push.fresh);
        Some(sent)
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
    pub async fn follow_revocations(
        &self,
        request: Request,
        replica: Option<String>,
        (witness, left): (Option<&str>, Option<Left>),
    ) -> Result<Follower, Error> {
        let service = self.reads_feed(request).await?;
        self.hear(witness).await?;
        let room = self.feed.room(service.is_none())?;
        let taken = self.feed.snapshot_room(service.is_none()).await?;
        let reader = service.map(|service| Reader { service, replica });
        self.note_reader(reader.as_ref());
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
        let first = match previous {
            Some(_) => Arc::new(self.state(previous, sequence, None, vouched)?),
            None => self.whole(sequence, vouched)?,
        };
        let first = Some(Sent::new(first, Some(taken)));
        Ok(Follower { first, pushes, reader, readers: self.feed.readers.clone(), room })
    }

    /// All that has ended, in one signed state. With a nonce it is as of after it was asked for.
    ///
    /// # Errors
    /// As [`Broker::follow_revocations`].
    pub async fn revocations(
        &self,
        request: Request,
        replica: Option<String>,
        (witness, nonce): (Option<&str>, Option<String>),
    ) -> Result<Sent, Error> {
        let service = self.reads_feed(request).await?;
        self.hear(witness).await?;
        let taken = self.feed.snapshot_room(service.is_none()).await?;
        let reader = service.map(|service| Reader { service, replica });
        self.note_reader(reader.as_ref());
        let vouched = match &nonce {
            Some(_) => self.vouch().await,
            None => self.last_vouched().await,
        };
        let vouched = vouched.ok_or(Error::Unavailable(Input::Store))?;
        let sequence = self.revocations.last();
        let state = match nonce {
            Some(nonce) => Arc::new(self.state(None, sequence, Some(nonce), Some(vouched))?),
            None => self.whole(sequence, Some(vouched))?,
        };
        self.feed.readers.sent(reader.as_ref(), state.fresh);
        Ok(Sent::new(state, Some(taken)))
    }

    /// Before a state is put together for somebody: what ends from here on may not be in it, and is not with all before they have heard.
    fn note_reader(&self, reader: Option<&Reader>) {
        self.feed.readers.sent(reader, Duration::from_secs(self.rules().parties.freshness().into()));
    }

    async fn hear(&self, witness: Option<&str>) -> Result<(), Error> {
        let Some(witness) = witness else { return Ok(()) };
        self.hear_witness(witness).await.map_err(|why| in_doubt(&why))
    }

    /// A service says how far it is: from now on it accepts nothing that this state says is dead. The sequence that it is at now.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`] for a caller who is none; [`Error::PolicyDenied`] for one who is no service; [`Error::InvalidRequest`] for
    /// what this broker has never said.
    pub async fn acknowledge(&self, request: Request, replica: Option<String>, at: &Left) -> Result<u64, Error> {
        let call = Call { request: &request.id, task: None, now: self.now() };
        let refused = "services acknowledge what they have heard";
        let service = match self.identify(request.presented, &call).await? {
            Caller::Service(service) => service,
            Caller::Operator(operator) => return Err(self.refuse_operator(&operator, &call, refused).await?),
            other @ (Caller::Owner(_) | Caller::Workload(_)) => {
                return Err(self.turn_down(&other, "acknowledge", &call, wrong_role(refused)));
            }
        };
        // Of another broker, it is no word about what this one says; and nobody has heard what was never said.
        let last = self.revocations.last();
        if at.broker != self.revocations.broker().as_str() || at.sequence > last {
            return Err(Error::invalid("this broker has not said that: acknowledge its own states to itself"));
        }
        let reader = Reader { service: service.name().to_owned(), replica };
        Ok(self.feed.readers.acknowledged(&reader, at.sequence))
    }

    /// Anybody, unless the configuration says otherwise; but nobody who says who they are, and is not. The name, of a service.
    async fn reads_feed(&self, request: Request) -> Result<Option<String>, Error> {
        if self.is_nobody(&request.presented) {
            return if self.parts.feed.anonymous { Ok(None) } else { Err(Error::EvidenceInvalid) };
        }
        let call = Call { request: &request.id, task: None, now: self.now() };
        match self.identify(request.presented, &call).await? {
            Caller::Service(service) => Ok(Some(service.name().to_owned())),
            Caller::Operator(_) => Ok(None),
            Caller::Owner(_) | Caller::Workload(_) if self.parts.feed.anonymous => Ok(None),
            other @ (Caller::Owner(_) | Caller::Workload(_)) => {
                let error = wrong_role("the revocations are for services and operators");
                Err(self.turn_down(&other, "revocations", &call, error))
            }
        }
    }

    /// All there is, for those who begin to follow, or ask without a nonce: the same for all who come before there is news.
    fn whole(&self, sequence: u64, vouched: Option<Time>) -> Result<Arc<Push>, Error> {
        let of = (self.parts.ledger.generation(), sequence, vouched);
        if let Some(whole) = &*self.feed.whole.lock().unwrap_or_else(PoisonError::into_inner)
            && whole.of == of
        {
            return Ok(whole.push.clone());
        }
        let push = Arc::new(self.state(None, sequence, None, vouched)?);
        *self.feed.whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(Whole { of, push: push.clone() });
        Ok(push)
    }

    /// When the store was last found to be itself; where it never was, it is looked at.
    async fn last_vouched(&self) -> Option<Time> {
        let vouched = self.feed.pushed.lock().await.vouched;
        if vouched.is_some() { vouched } else { self.vouch().await }
    }

    /// Pushes what is new as soon as it is, and that there is nothing new before anybody would go stale. Ends with the broker.
    pub async fn feed(&self) {
        tokio::join!(self.push_news(), self.push_heartbeats(), self.follow_hints(), self.tell_heard());
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

    /// Looks into the log of notices whenever something was hinted at, or hints were lost.
    async fn follow_hints(&self) {
        let mut hints = self.parts.ledger.changes();
        loop {
            let mut is_wide = match hints.recv().await {
                Ok(hint) => hint == Hint::Wide,
                Err(broadcast::error::RecvError::Lagged(_)) => true,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            // However many came meanwhile, they are about what is read now.
            while let Ok(hint) = hints.try_recv() {
                is_wide |= hint == Hint::Wide;
            }
            if let Err(why) = self.learn_notices().await {
                tracing::warn!(%why, "what other brokers say is dead cannot be read");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if is_wide {
                // Another broker may be waiting for an answer.
                self.vouch().await;
            }
        }
    }

    pub(super) async fn push_now(&self, vouched: Option<Time>) {
        let mut pushed = self.feed.pushed.lock().await;
        pushed.vouched = pushed.vouched.max(vouched);
        if let Err(error) = self.push(&mut pushed) {
            tracing::warn!(%error, "no state of the revocation feed was pushed");
        }
    }

    /// Two of them, and what they take, are less than the window; and none is so long that other brokers wonder.
    fn heartbeat(&self) -> Duration {
        Duration::from_millis(u64::from(self.rules().parties.freshness()) * 400).min(SIGN_OF_LIFE)
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

    /// When the store was found to be itself, all that has ended being known: the moment before it was asked. `None`: it was not.
    async fn vouch(&self) -> Option<Time> {
        let look = async {
            let at = self.now();
            let found = Box::pin(self.find_all()).await;
            found.inspect_err(|why| tracing::warn!(%why, "the revocation feed goes stale")).ok().map(|()| at)
        };
        self.feed.vouching.look(look).await
    }

    async fn find_all(&self) -> Result<(), InDoubt> {
        self.parts.ledger.void_lost().await?;
        let run = self.call_roll(Some(self.heartbeat())).await?;
        self.answer(&run, true).await?;
        if !self.watch().await {
            return Err(InDoubt("the store is not vouched for".into()));
        }
        self.learn_notices().await?;
        // Another run of it than was told of everything may have had another log.
        if !self.replay.is_done(&run) || self.parts.ledger.incarnation().await? != run {
            return Err(InDoubt("the store was started anew meanwhile".into()));
        }
        self.check_log()?;
        self.keep_members(&run).await?;
        self.answer(&run, false).await
    }

    /// Takes in what other brokers say is dead.
    pub(super) async fn learn_notices(&self) -> Result<(), InDoubt> {
        let mut read = self.feed.read.lock().await;
        loop {
            let (notices, position) = self.parts.ledger.logged_notices(&read).await?;
            let is_taint = |notice: &Notice| matches!(&notice.subject, Subject::Key(kid) if !self.knows_taint(kid));
            let brings_taint = notices.iter().any(is_taint);
            // All at once, so that they share the disk's sync.
            let learnt = try_join_all(notices.iter().map(|notice| self.revocations.learn(notice.clone()))).await;
            learnt.map_err(|why| InDoubt(why.to_string()))?;
            // An end is logged after the store took it.
            let now = self.now();
            for notice in &notices {
                self.revocations.shut(notice, now);
            }
            if brings_taint {
                Box::pin(self.keep_taints()).await.map_err(|why| InDoubt(why.to_string()))?;
            }
            if position == *read {
                return Ok(());
            }
            *read = position;
        }
    }

    /// Reads the log of notices from its beginning: another run of the store may have another one.
    pub(super) async fn learn_notices_anew(&self) -> Result<(), InDoubt> {
        self.revocations.none_logged();
        *self.feed.read.lock().await = Position::default();
        self.learn_notices().await
    }

    /// Warns, once as it grows, of a whole state that verifiers will soon take no more.
    fn measure(&self, state: &str) {
        let is_long = state.len() > MAX_STATE / 2;
        if is_long && !self.feed.is_long.swap(true, Ordering::AcqRel) {
            let (octets, most) = (state.len(), MAX_STATE);
            tracing::warn!(
                octets,
                most,
                "a whole state of the revocation feed is more than half as long as verifiers take"
            );
        } else if state.len() < MAX_STATE / 4 {
            self.feed.is_long.store(false, Ordering::Release);
        }
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
        let notices = self.revocations.mattering(previous.unwrap_or(0), sequence, now);
        let broker = self.revocations.broker().clone();
        let date = |time| NumericDate::of(time).ok_or(Error::Unavailable(Input::Keys));
        let (iat, ends) = (date(iat)?, date(exp)?);
        let signed = apart(notices.len() >= MANY, || {
            let entries =
                notices.iter().map(Notice::entry).collect::<Option<_>>().ok_or(Error::Unavailable(Input::Keys))?;
            let claims = RevocationClaims {
                iss: self.issuer.clone(),
                broker: broker.clone(),
                iat,
                exp: ends,
                generation: self.parts.ledger.generation(),
                sequence,
                previous,
                nonce,
                entries,
            };
            // Needed for as long as the state is worth anything, in whole seconds.
            let until = whole_second(exp).timestamp() + 1;
            Ok(self.parts.keys.sign(Use::Revocations, REVOCATIONS_TYP, until, &claims))
        })?;
        let state = signed.map_err(|Invalid(why)| {
            tracing::error!(why, "a state of the revocation feed was not signed");
            Error::Unavailable(Input::Keys)
        })?;
        if previous.is_none() {
            self.measure(&state);
        }
        let fresh = Duration::from_secs(freshness.into());
        Ok(Push { id: format!("{broker}:{sequence}"), state, written: OnceLock::new(), fresh })
    }
}

/// Does what takes long on a thread that serves nothing else meanwhile, where the runtime has more than one.
fn apart<T>(takes_long: bool, work: impl FnOnce() -> T) -> T {
    let has_others = Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if takes_long && has_others { block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn strangers_leave_room_for_whoever_is_known() {
        let feed = Feed::new(None);
        let mut strangers = Vec::new();
        for _ in 0..SNAPSHOTS / 2 {
            strangers.push(feed.snapshot_room(true).await.unwrap());
        }
        assert!(matches!(feed.snapshot_room(true).await, Err(Error::QuotaExceeded(_))));
        drop(feed.snapshot_room(false).await.unwrap());
        strangers.pop();
        drop(feed.snapshot_room(true).await.unwrap());
    }
}
