//! Telling receivers of ends (`crate::signal`): the broker whose journal has an end tells every receiver that is to be told, until it is
//! told or given up.
//!
//! An end in the journal → for a webhook, the sandbox that evidence bound the task to → signed → sent → on record → on the receiver's file.
//! Each receiver has its own pace, and a revoke waits for none. A broker that dies in between tells it again, under the same id.
//!
//! A receiver that asks (RFC 8936) may ask any broker: each holds all ends that it knows of ready, until that broker is told that it has
//! them.

use secrecy::ExposeSecret as _;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::timeout;

use super::{Broker, Call, Caller, Request, reach::Reach, wrong_role};
use crate::{
    audit::{Actor, Entry, Event},
    clock::Time,
    error::{Error, Input, Sought},
    id::{TaskId, sha256_hex},
    jose::{Invalid, SigningAlgorithm},
    lease::{InDoubt, Use},
    metrics::Told,
    notice::{Notice, SubjectId},
    party::Act,
    revocation::Revocations,
    signal::{Answer, Fate, Item, Next, Receiver, SET_TYP, SecurityEvent, Signal, Sort, Stream, What, code, open},
    task::{End, State, Task},
};

/// For how long after it was signed what a receiver is told can be verified: the key stays published.
const VERIFIABLE: i64 = 86_400;
/// How often it is looked whether something is to be given up, at least.
const LOOK: Duration = Duration::from_secs(1);
/// How often what receivers were told of ends that are long over is forgotten.
const TEND: Duration = Duration::from_secs(60);
/// How much a receiver that asks gets at a time, and how long it may wait for something.
const MOST: usize = 32;
const LONG_POLL: Duration = Duration::from_secs(25);

/// Of receivers, in `reach`.
const SANDBOX: &str = "sandbox";
const CLASSES: [(&str, Sort); 2] = [("shared_signals", Sort::Caep), (SANDBOX, Sort::Webhook)];

/// Everybody who is told of ends, and what they were told.
#[derive(Debug, Default)]
pub struct Signals {
    streams: Vec<Arc<Stream>>,
    _lock: Option<std::fs::File>,
}

/// What one receiver was told of the end of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The receiver.
    pub receiver: String,
    /// What it is.
    pub sort: Sort,
    /// `pending`, `heard`, `delivered`, `confirmed`, `refused` or `expired`.
    pub state: &'static str,
    /// Since when, where it is settled.
    pub at: Option<Time>,
}

/// What a receiver that asks says: RFC 8936 section 2.2.
#[derive(Debug, Default)]
pub struct Poll {
    /// How many it wants at most.
    pub most: Option<usize>,
    /// Whether it waits where there is nothing.
    pub waits: bool,
    /// What it has.
    pub has: Vec<String>,
    /// What it will never take, and the code of why.
    pub refuses: BTreeMap<String, String>,
}

/// What it gets.
#[derive(Debug)]
pub struct Polled {
    /// What it is told, signed, by id.
    pub tokens: BTreeMap<String, String>,
    /// Whether there is more.
    pub more: bool,
}

impl Signals {
    /// Opens what receivers were told, in `dir`. A receiver that was not there before is told of nothing that had ended by then.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub fn open(
        receivers: Vec<Receiver>,
        dir: &std::path::Path,
        revocations: &Revocations,
        now: Time,
    ) -> Result<Self, String> {
        let all = revocations.all();
        let overruling = all.iter().filter_map(Notice::overruling).map(|(end, _)| end);
        let ends = all.iter().filter_map(Notice::end).chain(overruling);
        let known: Vec<(TaskId, State)> = ends.map(|end| (end.task, end.state)).collect();
        let (lock, streams) = open(receivers, dir, &known, now)?;
        Ok(Self { streams: streams.into_iter().map(Arc::new).collect(), _lock: lock })
    }

    fn by_token(&self, token: &str) -> Option<&Arc<Stream>> {
        let digest = sha256_hex(token.as_bytes());
        self.streams.iter().find(|stream| stream.receiver().has_token(&digest))
    }

    fn named(&self, name: &str) -> Option<&Arc<Stream>> {
        self.streams.iter().find(|stream| stream.receiver().name() == name)
    }
}

/// The stream of a receiver, as the configuration says it.
#[derive(Debug)]
pub struct ReceiverStream {
    /// Its name.
    pub name: String,
    /// `aud` of what is told.
    pub audience: String,
    /// Where it is told; `None`: the receiver asks.
    pub url: Option<String>,
    /// What it is told: the types of the events, URIs.
    pub delivered: Vec<&'static str>,
    /// All that it could be.
    pub supported: Vec<&'static str>,
}

/// What is to be done with something that a receiver is to be told.
enum Prepared {
    /// Send this.
    Token(String),
    /// There is nothing to tell.
    Nothing,
    /// It cannot be told now.
    NotNow,
}

impl Broker {
    /// Tells all receivers of what has ended, until it is dropped.
    pub async fn signal(&self) {
        futures_util::future::join_all(self.signals.streams.iter().map(|stream| self.signal_one(stream))).await;
    }

    async fn signal_one(&self, stream: &Stream) {
        let (mut ends, mut news) = (self.revocations.numbers(), stream.news());
        let mut tended = Instant::now();
        loop {
            ends.mark_unchanged();
            news.mark_unchanged();
            self.take_ends(stream);
            match stream.next(self.now(), Instant::now()) {
                Next::Tell(item) => self.tell_one(stream, &item).await,
                Next::GiveUp(item) => self.settle_signal(stream, &item, Fate::Expired, None).await,
                Next::Wait(pause) => {
                    let changed = async {
                        tokio::select! { _ = ends.changed() => {}, _ = news.changed() => {} }
                    };
                    let _ = timeout(pause.map_or(LOOK, |pause| pause.min(LOOK)), changed).await;
                }
            }
            if tended.elapsed() >= TEND {
                stream.forget(|task| self.revocations.get(&SubjectId::Task(task.clone())).is_some());
                tended = Instant::now();
            }
        }
    }

    /// Takes what has ended since it was last looked.
    fn take_ends(&self, stream: &Stream) {
        let (read, last) = (stream.read(), self.revocations.last());
        if last > read {
            stream.take(&self.revocations.told(read, last), (read, last), self.revocations.broker().as_str());
        }
    }

    async fn tell_one(&self, stream: &Stream, item: &Item) {
        let receiver = stream.receiver();
        let token = match self.prepare(receiver, item).await {
            Prepared::Token(token) => token,
            Prepared::Nothing => return stream.settle(item, Fate::NotConcerned, self.now()).await,
            Prepared::NotNow => return stream.postpone(&item.jti, Instant::now()),
        };
        let metrics = &self.parts.metrics;
        match receiver.send(&token).await {
            Answer::Taken => {
                let fate = if receiver.sort() == Sort::Webhook { Fate::Confirmed } else { Fate::Delivered };
                self.settle_signal(stream, item, fate, None).await;
            }
            Answer::Refused(why) => self.settle_signal(stream, item, Fate::Refused, Some(why)).await,
            Answer::Heard => {
                metrics.signalled(receiver.name(), Told::Heard);
                stream.heard(&item.jti, Instant::now());
            }
            Answer::Failed(why) => {
                metrics.signalled(receiver.name(), Told::Failed);
                let attempts = stream.failed(&item.jti, Instant::now());
                // Of the first failure, and of one now and then.
                if attempts.is_power_of_two() {
                    tracing::warn!(
                        receiver = receiver.name(),
                        attempts,
                        why,
                        "a receiver was not told, and is told again"
                    );
                }
            }
        }
    }

    /// What to send, signed at this moment: with a key that is not tainted, and that everybody can know.
    async fn prepare(&self, receiver: &Receiver, item: &Item) -> Prepared {
        let (now, to) = (self.now(), (receiver.audience(), item.jti.as_str()));
        let iat = now.timestamp();
        let event = match &item.what {
            What::Verify(state) => {
                SecurityEvent::of_verification(&self.issuer, to, iat, receiver.name(), state.as_deref())
            }
            What::End(end) => {
                let Some(signal) = receiver.signal_of(end.state) else { return Prepared::Nothing };
                let task = match self.parts.ledger.declared(&end.task).await {
                    Ok(task) => task,
                    // A session can be named without its record; a sandbox cannot be found without it.
                    Err(_) if receiver.sort() == Sort::Caep => None,
                    Err(InDoubt(why)) => {
                        tracing::warn!(receiver = receiver.name(), why, "whose sandbox it is cannot be told yet");
                        return Prepared::NotNow;
                    }
                };
                let sandbox = task.as_deref().and_then(|task| bound_to(receiver, task));
                if receiver.sort() == Sort::Webhook && sandbox.is_none() {
                    return Prepared::Nothing;
                }
                let about = (task.as_deref(), sandbox);
                SecurityEvent::of_end(&self.issuer, to, iat, (signal, receiver.subject()), end, about)
            }
        };
        match self.sign_signal(receiver.algorithm(), event, now).await {
            Ok(token) => Prepared::Token(token),
            Err(Invalid(why)) => {
                tracing::warn!(receiver = receiver.name(), why, "what a receiver is to be told is not signed yet");
                Prepared::NotNow
            }
        }
    }

    async fn sign_signal(&self, with: SigningAlgorithm, event: SecurityEvent, now: Time) -> Result<String, Invalid> {
        let until = now.timestamp() + VERIFIABLE;
        let keys = Arc::clone(&self.parts.keys);
        match with {
            _ if !self.is_known(now) => Err(Invalid("not every verifier can know the key yet")),
            SigningAlgorithm::ES256 => keys.sign(Use::Signals, SET_TYP, until, &event),
            SigningAlgorithm::RS256 if self.signs_rs256(Use::Signals, now) => {
                // Not on the threads that serve requests.
                let signing =
                    tokio::task::spawn_blocking(move || keys.sign_rs256(Use::Signals, SET_TYP, until, &event));
                signing.await.unwrap_or(Err(Invalid("it was not signed: a defect of the broker")))
            }
            SigningAlgorithm::RS256 => Err(Invalid("there is no RSA key that every verifier can know")),
        }
    }

    /// On record → on the receiver's file.
    async fn settle_signal(&self, stream: &Stream, item: &Item, fate: Fate, why: Option<String>) {
        let (now, receiver) = (self.now(), stream.receiver());
        self.parts.metrics.signalled(
            receiver.name(),
            match fate {
                Fate::Delivered | Fate::Confirmed => Told::Delivered,
                Fate::Refused | Fate::Expired | Fate::Before | Fate::NotConcerned => Told::GivenUp,
            },
        );
        let (task, signal, sandbox) = match &item.what {
            What::Verify(_) => (None, "verification", None),
            What::End(end) => {
                let signal = receiver.signal_of(end.state).map_or("", Signal::as_str);
                let sandbox = match receiver.sort() {
                    Sort::Caep => None,
                    Sort::Webhook => self.parts.ledger.declared(&end.task).await.ok().flatten(),
                };
                (Some(end.task.clone()), signal, sandbox.and_then(|task| task.bound_sandbox.clone()))
            }
        };
        if let Some(why) = &why {
            tracing::warn!(receiver = receiver.name(), signal, why, "a receiver will not be told");
        }
        let event = Event::Signalled {
            receiver: receiver.name().to_owned(),
            signal,
            jti: item.jti.clone(),
            outcome: fate.as_str(),
            attempts: item.attempts + u32::from(fate != Fate::Expired),
            sandbox,
            why,
        };
        let entry = Entry { time: now, request: String::new(), actor: Actor::Broker, task, event };
        // What is not on record was told all the same.
        let _ = self.record(vec![entry]).await;
        stream.settle(item, fate, now).await;
    }

    /// Has a receiver told that what it is told arrives (SSF 1.0 section 8.1.4): the receiver itself, or an operator.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`]; [`Error::PolicyDenied`] for everybody else; [`Error::NotFound`] for another's stream, or none;
    /// [`Error::QuotaExceeded`] while others are under way.
    pub async fn verify_stream(&self, request: Request, name: &str, state: Option<String>) -> Result<(), Error> {
        let now = self.now();
        let called_by =
            request.presented.bearer.as_ref().and_then(|token| self.signals.by_token(token.expose_secret()));
        let stream = if let Some(stream) = called_by {
            if stream.receiver().name() == name { stream } else { return Err(Error::NotFound(Sought::Receiver)) }
        } else {
            let call = Call { request: &request.id, task: None, now };
            let refused = "a receiver has itself told, and an operator any";
            let operator = match self.identify(request.presented, &call).await? {
                Caller::Operator(operator) => operator,
                other @ (Caller::Workload(_) | Caller::Owner(_) | Caller::Service(_)) => {
                    return Err(self.turn_down(&other, "verification", &call, wrong_role(refused)));
                }
            };
            self.allow(&operator, Act::VerifyReceiver, &call).await?;
            let stream = self.signals.named(name).ok_or(Error::NotFound(Sought::Receiver))?;
            self.note(&operator, &call, Event::VerificationRequested { receiver: name.to_owned() }).await?;
            stream
        };
        let busy = Error::QuotaExceeded("this receiver is to be told of several verifications already");
        if stream.verify(state, now) { Ok(()) } else { Err(busy) }
    }

    /// What a receiver is to be told that asks (RFC 8936), and what it says of what it was told before.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`]; [`Error::PolicyDenied`] for whoever is no receiver, or is told without asking;
    /// [`Error::Unavailable`] while nothing can be signed.
    pub async fn poll_signals(&self, request: Request, poll: Poll) -> Result<Polled, Error> {
        let refused = "only a receiver with `delivery = \"poll\"` asks";
        let stream = self.stream_of(request, refused).await?;
        if !stream.receiver().polls() {
            return Err(wrong_role(refused));
        }
        self.take_ends(stream);
        for jti in &poll.has {
            if let Some(item) = stream.find(jti) {
                self.settle_signal(stream, &item, Fate::Delivered, None).await;
            }
        }
        for (jti, why) in poll.refuses {
            if let Some(item) = stream.find(&jti) {
                self.settle_signal(stream, &item, Fate::Refused, Some(code(&why))).await;
            }
        }
        let most = poll.most.unwrap_or(MOST).min(MOST);
        let until = tokio::time::Instant::now() + LONG_POLL;
        let (mut ends, mut news) = (self.revocations.numbers(), stream.news());
        loop {
            ends.mark_unchanged();
            news.mark_unchanged();
            self.take_ends(stream);
            let (items, more) = stream.first(most);
            if !items.is_empty() || most == 0 || !poll.waits {
                return self.polled(stream.receiver(), items, more).await;
            }
            let changed = async {
                tokio::select! { _ = ends.changed() => {}, _ = news.changed() => {} }
            };
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return Ok(Polled { tokens: BTreeMap::new(), more: false });
            }
        }
    }

    /// The stream of the receiver that calls, if it has that name, where one is said.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`]; [`Error::PolicyDenied`] for whoever is no receiver; [`Error::NotFound`] for another's stream, or none.
    pub async fn show_stream(&self, request: Request, name: Option<&str>) -> Result<ReceiverStream, Error> {
        let receiver = self.stream_of(request, "a receiver sees its own stream").await?.receiver();
        if name.is_some_and(|name| name != receiver.name()) {
            return Err(Error::NotFound(Sought::Receiver));
        }
        let (delivered, supported) = receiver.signals();
        let uris = |signals: Vec<Signal>| signals.into_iter().map(Signal::uri).collect();
        Ok(ReceiverStream {
            name: receiver.name().to_owned(),
            audience: receiver.audience().to_owned(),
            url: receiver.url().map(str::to_owned),
            delivered: uris(delivered),
            supported: uris(supported),
        })
    }

    /// The stream of the receiver that calls; `refused`: what anybody else hears.
    async fn stream_of(&self, request: Request, refused: &'static str) -> Result<&Arc<Stream>, Error> {
        let called_by =
            request.presented.bearer.as_ref().and_then(|token| self.signals.by_token(token.expose_secret()));
        if let Some(stream) = called_by {
            return Ok(stream);
        }
        let call = Call { request: &request.id, task: None, now: self.now() };
        Err(match self.identify(request.presented, &call).await? {
            Caller::Operator(operator) => self.refuse_operator(&operator, &call, refused).await?,
            other @ (Caller::Workload(_) | Caller::Owner(_) | Caller::Service(_)) => {
                self.turn_down(&other, "signals", &call, wrong_role(refused))
            }
        })
    }

    async fn polled(&self, receiver: &Receiver, items: Vec<Item>, more: bool) -> Result<Polled, Error> {
        let mut tokens = BTreeMap::new();
        for item in items {
            match self.prepare(receiver, &item).await {
                Prepared::Token(token) => drop(tokens.insert(item.jti, token)),
                Prepared::Nothing => {}
                Prepared::NotNow => return Err(Error::Unavailable(Input::Keys)),
            }
        }
        Ok(Polled { tokens, more })
    }

    /// What became of telling receivers of the end of a task that ended by itself, and not with one above it: as this broker knows.
    #[must_use]
    pub fn delivered(&self, task: &TaskId) -> Vec<Delivered> {
        let of = |stream: &Arc<Stream>| {
            let (receiver, sort) = (stream.receiver().name().to_owned(), stream.receiver().sort());
            let how = self.told_as(task, stream);
            let (state, at) = match (stream.done(task, how), stream.pending(task, how)) {
                (Some(done), _) if matches!(done.fate, Fate::Before | Fate::NotConcerned) => return None,
                (Some(done), _) => (done.fate.as_str(), Some(done.at)),
                (None, Some(true)) => ("heard", None),
                (None, Some(false)) => ("pending", None),
                (None, None) => return None,
            };
            Some(Delivered { receiver, sort, state, at })
        };
        self.signals.streams.iter().filter_map(of).collect()
    }

    /// As what a receiver hears of the end of a task: of one that was completed and then revoked, of both, and that is the last of it.
    fn told_as(&self, task: &TaskId, stream: &Stream) -> State {
        let notice = self.revocations.get(&SubjectId::Task(task.clone()));
        let is_revoked = match notice {
            Some(notice) => {
                notice.overruling().is_some() || notice.end().is_some_and(|end| end.state == State::Revoked)
            }
            // It is over, and forgotten.
            None => stream.done(task, State::Revoked).is_some(),
        };
        let hears = stream.receiver().signal_of(State::Revoked).is_some();
        if is_revoked && hears { State::Revoked } else { State::Completed }
    }

    /// The classes of receivers that are told of an end, each with how many there are.
    pub(super) fn receivers_of<'a>(
        &'a self,
        end: &'a End,
        task: Option<&'a Task>,
    ) -> impl Iterator<Item = (&'static str, u64)> + use<'a> {
        CLASSES.into_iter().filter_map(move |(class, sort)| {
            let told = |stream: &&Arc<Stream>| {
                let receiver = stream.receiver();
                let is_bound = || task.is_some_and(|task| bound_to(receiver, task).is_some());
                let how = if end.state == State::Completed { self.told_as(&end.task, stream) } else { end.state };
                let before = stream.done(&end.task, how).is_some_and(|done| done.fate == Fate::Before);
                let is_its = receiver.sort() == sort && (sort == Sort::Caep || is_bound());
                is_its && receiver.signal_of(how).is_some() && !before
            };
            let of = self.signals.streams.iter().filter(told).count() as u64;
            (of > 0).then_some((class, of))
        })
    }

    /// How far the news of an end has come among a class of receivers. One that is not told yet knows no more than the keys say: so `by` is
    /// when the last credential ends by itself. A sandbox is gone when whoever runs it says so, and not before.
    pub(super) fn reach_of_receivers(&self, id: &TaskId, class: (&'static str, u64), by: Time, now: Time) -> Reach {
        let (class, of) = class;
        let ended = self.revocations.ending(id).map_or_else(|| id.clone(), |end| end.task);
        let told = self.delivered(&ended).into_iter().filter(|told| CLASSES.contains(&(class, told.sort)));
        let acknowledged = told.filter(|told| matches!(told.state, "delivered" | "confirmed")).count() as u64;
        let done = acknowledged >= of || (class != SANDBOX && by <= now);
        Reach { class, heard: Some((acknowledged, of)), by, done }
    }

    /// Counts what receivers are still to be told.
    pub(super) fn count_signals(&self) {
        let now = self.now();
        for stream in &self.signals.streams {
            let (pending, oldest) = stream.backlog();
            let age = oldest.map_or(0, |oldest| (now - oldest).num_seconds().max(0));
            self.parts.metrics.signals_pending(stream.receiver().name(), pending, age);
        }
    }
}

/// The sandbox that evidence bound a task to, where this receiver runs it. What a workload only says of itself takes nobody's sandbox down.
fn bound_to<'t>(receiver: &Receiver, task: &'t Task) -> Option<&'t str> {
    task.bound_sandbox.as_deref().filter(|sandbox| receiver.runs(sandbox))
}
