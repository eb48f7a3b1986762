//! Who else is on the store. Where it may have lost something, nothing of it is vouched for until every broker that was there has told it
//! of all that it knows to be dead. What a broker knew that gives no sign of life for too long may be lost with it: the generation goes
//! up, so that everything older is dead.
//!
//! Brokers find each other on a roll in the store, where each says something new every second or two. Who was there, this broker knows
//! from before the store became another run of itself; one that was started since goes by its journal, or by a broker that waited itself.
//!
//! A broker whose journal is empty takes over what is dead from one of them, on a store that is not new: by a nonce, so that the answer is
//! none of before. Where none is left to answer, nobody knows whether the store has lost something, and the generation goes up.
//!
//! Each broker says on the roll which numbers it has given to what it logged. Where another does not find all of them in the log, somebody
//! has taken something away: it vouches for nothing before it was told what that was, in the same way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use futures_util::future::try_join_all;
use tokio::time::sleep;

use super::Broker;
use crate::{
    clock::Time,
    id::{BrokerName, hex, random},
    lease::{Account, InDoubt, Member, Roll},
    revocation::Place,
};

/// How long ago a broker may have said something last that is there.
const THERE: Duration = Duration::from_secs(30);
/// How often a broker says something at least.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How long a broker that joins looks for others at least: two signs of life, and some.
const LOOKED: Duration = Duration::from_secs(5);
/// How long it waits for an answer at a time, and how often it looks for one meanwhile.
const ANSWER: (u32, Duration) = (12, Duration::from_millis(40));
/// How long a broker stays on the roll that says nothing any more.
const ON_THE_ROLL: TimeDelta = TimeDelta::days(1);

/// The other brokers.
#[derive(Debug, Default)]
pub(super) struct Members {
    state: Mutex<State>,
    /// What this broker said last, and to which run of the store, where it is known to be there: it says one thing at a time.
    stands: tokio::sync::Mutex<Option<(String, Time)>>,
}

#[derive(Debug, Default)]
struct State {
    others: BTreeMap<BrokerName, Seen>,
    /// Of which run of the store the roll was that was read last, and when.
    read: Option<(String, Instant)>,
    /// The run that everybody has told who was there.
    settled: Option<String>,
    waiting: Option<Waiting>,
    /// What this broker said last.
    said: Option<Time>,
    /// What it asks the others, if it does.
    asks: Option<String>,
    /// Of whom the log lacks something, and since when.
    lacking: Option<(BTreeSet<BrokerName>, Instant)>,
    /// The nonces of others that it answered.
    answered: BTreeSet<String>,
    /// Whether others can be there.
    is_shared: bool,
}

/// Another broker.
#[derive(Debug)]
struct Seen {
    member: Member,
    /// When it was found to have said something new; `None`: what it says is of long ago.
    heard: Option<Instant>,
    /// Whether that stands on the roll as it was read last.
    on_roll: bool,
    /// Whether all that it had told before is known here.
    is_known: bool,
    /// Whether it was there in the time of this process.
    was_there: bool,
}

/// Waiting for others to tell a run of the store.
#[derive(Debug)]
struct Waiting {
    run: String,
    since: Instant,
    /// The generation when that was first looked at: in a later one nothing matters any more that is not known.
    generation: Option<u64>,
    whom: BTreeSet<BrokerName>,
    /// Whether this broker was not there when the store became that run: others who were know better.
    came_later: bool,
}

/// How it stands with those who are waited for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All that can be told is told.
    Settled,
    /// These have not told it yet.
    Waiting(Vec<BrokerName>),
    /// These give no sign of life, and this is the generation that ends with them.
    Gone(Vec<BrokerName>, u64),
}

impl State {
    /// Who was there when the roll was read last.
    fn there(&self) -> Vec<BrokerName> {
        let Some((_, read)) = &self.read else { return Vec::new() };
        let is_there = |seen: &Seen| {
            let lately = seen.heard.is_some_and(|heard| read.saturating_duration_since(heard) <= THERE);
            lately && !(seen.member.left && seen.is_known)
        };
        self.others.iter().filter(|(_, seen)| is_there(seen)).map(|(name, _)| name.clone()).collect()
    }

    /// The store is another run of itself, or this broker has just been started.
    fn begin(&mut self, run: &str, recalled: Option<&Place>, now: Instant) {
        self.settled = None;
        let before = self.waiting.take();
        let came_later = self.read.is_none() || before.as_ref().is_some_and(|before| before.came_later);
        let mut whom = before.map(|before| before.whom).unwrap_or_default();
        whom.extend(self.there());
        if self.read.is_none()
            && let Some(place) = recalled
        {
            if place.settled.as_deref() == Some(run) {
                self.settled = Some(run.to_owned());
                return;
            }
            whom.extend(place.members.iter().cloned());
        }
        self.waiting = Some(Waiting { run: run.to_owned(), since: now, generation: None, whom, came_later });
    }

    /// Takes in a roll that was read at `now`, when the clock said `time`.
    fn hear(
        &mut self,
        Roll { incarnation: run, members, is_shared }: Roll,
        recalled: Option<&Place>,
        (time, now): (Time, Instant),
    ) {
        self.is_shared = is_shared;
        let is_new = self.read.as_ref().is_none_or(|(read, _)| *read != run);
        if is_new {
            self.begin(&run, recalled, now);
        }
        self.others.values_mut().for_each(|seen| seen.on_roll = false);
        for (name, member) in members {
            match self.others.get_mut(&name) {
                Some(seen) if member.at > seen.member.at => {
                    *seen = Seen { member, heard: Some(now), on_roll: true, is_known: false, was_there: true };
                }
                // An older one says nothing: the store has lost the rest, or somebody put it there.
                Some(seen) => seen.on_roll = member == seen.member,
                None => {
                    let lately = (time - member.at).abs().to_std().is_ok_and(|age| age <= THERE);
                    let joins = joins(&member);
                    if let Some(waiting) = self.waiting.as_mut().filter(|_| is_new && lately && !joins) {
                        waiting.whom.insert(name.clone());
                    }
                    let heard = lately.then_some(now);
                    self.others.insert(name, Seen { member, heard, on_roll: true, is_known: false, was_there: false });
                }
            }
        }
        self.read = Some((run, now));
    }

    /// How it stands with a run of the store in this generation, where a broker is gone that gave no sign of life for so long.
    fn verdict(&mut self, run: &str, generation: u64, gone_after: Duration, now: Instant) -> Verdict {
        let Some(waiting) = self.waiting.as_mut().filter(|waiting| waiting.run == run) else {
            return Verdict::Settled;
        };
        let began = *waiting.generation.get_or_insert(generation);
        let heard_later = |seen: &&Seen| seen.on_roll && seen.heard.is_some_and(|heard| heard > waiting.since);
        let vouches = |seen: &Seen| seen.member.settled.as_deref() == Some(run);
        if generation > began || waiting.came_later && self.others.values().filter(heard_later).any(vouches) {
            return Verdict::Settled;
        }
        let has_told = |seen: &Seen| seen.on_roll && (seen.member.left || seen.member.told.as_deref() == Some(run));
        waiting.whom.retain(|name| !self.others.get(name).is_some_and(has_told));
        let whom: Vec<_> = waiting.whom.iter().cloned().collect();
        if whom.is_empty() {
            return Verdict::Settled;
        }
        let since = waiting.since;
        let last =
            |name: &BrokerName| self.others.get(name).and_then(|seen| seen.heard).map_or(since, |at| at.max(since));
        let gone: Vec<_> =
            whom.iter().filter(|name| now.saturating_duration_since(last(name)) >= gone_after).cloned().collect();
        if gone.is_empty() { Verdict::Waiting(whom) } else { Verdict::Gone(gone, began) }
    }

    /// Who may be able to tell what is dead.
    fn knowing(&self) -> impl Iterator<Item = (&BrokerName, &Seen)> {
        self.others.iter().filter(|(_, seen)| seen.on_roll && !seen.member.left && !joins(&seen.member))
    }

    /// How it stands with those who could answer a broker that joins: settled where it needs no answer any more.
    fn joining(&mut self, generation: u64, gone_after: Duration, now: Instant) -> Verdict {
        let Some(waiting) = self.waiting.as_mut() else { return Verdict::Settled };
        let (began, since) = (*waiting.generation.get_or_insert(generation), waiting.since);
        if generation > began {
            return Verdict::Settled;
        }
        let is_alive = |seen: &Seen| seen.heard.is_some_and(|heard| now.saturating_duration_since(heard) < gone_after);
        let whom: Vec<_> = self.knowing().filter(|(_, seen)| is_alive(seen)).map(|(name, _)| name.clone()).collect();
        let has_looked = !self.is_shared || now.saturating_duration_since(since) >= LOOKED;
        if whom.is_empty() && has_looked { Verdict::Gone(whom, began) } else { Verdict::Waiting(whom) }
    }

    /// The nonces of others that are to be answered.
    fn unanswered(&mut self, own: &BrokerName, by_name: bool) -> Vec<String> {
        let lately = |heard: Instant| heard.elapsed() <= THERE;
        let asking = self.others.values().filter(|seen| seen.on_roll && seen.heard.is_some_and(lately));
        let asked: BTreeSet<_> = asking.filter_map(|seen| seen.member.asks.clone()).collect();
        self.answered.retain(|nonce| asked.contains(nonce));
        let to_us = |member: &Member| if by_name { member.asks_of.contains(own) } else { joins(member) };
        let ours = self.others.values().filter(|seen| to_us(&seen.member)).filter_map(|seen| seen.member.asks.clone());
        ours.filter(|nonce| asked.contains(nonce) && !self.answered.contains(nonce)).collect()
    }

    /// Who can be struck off the roll: nobody has heard of them for long.
    fn gone(&mut self, time: Time) -> Vec<BrokerName> {
        let there: BTreeSet<_> = self.there().into_iter().collect();
        let is_gone = |name: &BrokerName, seen: &Seen| time - seen.member.at > ON_THE_ROLL && !there.contains(name);
        let gone: Vec<_> =
            self.others.iter().filter(|(name, seen)| is_gone(name, seen)).map(|(name, _)| name.clone()).collect();
        self.others.retain(|name, _| !gone.contains(name));
        gone
    }
}

impl Members {
    /// Whether everybody who was there has told this run of the store.
    pub(super) fn has_settled(&self, run: &str) -> bool {
        self.lock().settled.as_deref() == Some(run)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broker {
    /// The other brokers that have yet to tell the store, before anything of it is vouched for.
    #[must_use]
    pub fn awaited(&self) -> Vec<BrokerName> {
        let state = self.members.lock();
        match (&state.lacking, &state.asks) {
            (Some((whom, _)), _) => whom.iter().cloned().collect(),
            (None, Some(_)) => state.knowing().map(|(name, _)| name.clone()).collect(),
            (None, None) => state.waiting.iter().flat_map(|waiting| waiting.whom.iter().cloned()).collect(),
        }
    }

    /// Says that this broker is there, and hears who else is: the run of the store that this was.
    ///
    /// # Errors
    /// When the store is in doubt, or with `patience`, when what was written is on no other machine, and should be.
    pub(super) async fn call_roll(&self, patience: Option<Duration>) -> Result<String, InDoubt> {
        self.say(false, patience).await
    }

    async fn say(&self, left: bool, patience: Option<Duration>) -> Result<String, InDoubt> {
        let mut stands = self.members.stands.lock().await;
        let expected = stands.take();
        let (member, gone) = {
            let (mut state, now) = (self.members.lock(), self.now());
            let at = state.said.map_or(now, |said| now.max(said + TimeDelta::milliseconds(1)));
            state.said = Some(at);
            let (told, settled, asks) = (self.replay.told(), state.settled.clone(), state.asks.clone());
            let asks_of = state.lacking.iter().flat_map(|(whom, _)| whom.iter().cloned()).collect();
            let logged = Some(self.parts.ledger.logged(now));
            (Member { at, told, settled, left, asks, asks_of, logged }, state.gone(now))
        };
        let own = self.revocations.broker();
        let Roll { incarnation: run, members, is_shared } =
            self.parts.ledger.call(own, &member, gone, patience).await?;
        let (own, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|(name, _)| name == own);
        *stands = Some((run.clone(), member.at));
        let found = own.first().map(|(_, member)| member.at);
        if is_shared && expected.is_some_and(|(before, at)| before == run && found != Some(at)) {
            tracing::error!("somebody has changed what this broker says of itself in the store");
            return Err(InDoubt("the store does not have what this broker said of itself".into()));
        }
        let recalled = self.revocations.place();
        let mut state = self.members.lock();
        // Where the clock was set back since an earlier process said it.
        state.said = state.said.max(own.first().map(|(_, member)| member.at));
        let roll = Roll { incarnation: run.clone(), members: others, is_shared };
        state.hear(roll, recalled.as_ref(), (self.now(), Instant::now()));
        Ok(run)
    }

    /// Takes over what is dead where this broker knows nothing, and others have been on the store before.
    ///
    /// # Errors
    /// When nobody has answered yet who could, or the store is in doubt.
    pub(super) async fn join(&self, run: &str) -> Result<(), InDoubt> {
        if self.revocations.place().is_some() || self.parts.ledger.is_new() {
            return Ok(());
        }
        let nonce = self.own_nonce()?;
        if self.call_roll(None).await? != run {
            return Err(InDoubt("the store was started anew meanwhile".into()));
        }
        let whom: Vec<_> = self.members.lock().knowing().map(|(name, _)| name.clone()).collect();
        for _ in 0..if whom.is_empty() { 0 } else { ANSWER.0 } {
            if let Some(account) = self.parts.ledger.answer_to(&nonce, &whom, run).await? {
                self.take_over(account).await?;
                self.members.lock().asks = None;
                return Ok(());
            }
            sleep(ANSWER.1).await;
        }
        let generation = self.parts.ledger.generation();
        let verdict = self.members.lock().joining(generation, self.parts.broker_gone_after, Instant::now());
        match verdict {
            Verdict::Settled => {}
            Verdict::Waiting(whom) if whom.is_empty() => {
                return Err(InDoubt(
                    "this broker's journal is empty, and others are looked for who know what is dead".into(),
                ));
            }
            Verdict::Waiting(whom) => {
                return Err(InDoubt(format!(
                    "this broker's journal is empty, and {} has yet to say what is dead",
                    names(&whom)
                )));
            }
            Verdict::Gone(_, began) => {
                self.raise(
                    began + 1,
                    "a broker came with an empty journal, and no other is there that knows what is dead",
                )
                .await?;
            }
        }
        self.members.lock().asks = None;
        Ok(())
    }

    fn own_nonce(&self) -> Result<String, InDoubt> {
        let mut state = self.members.lock();
        if let Some(nonce) = &state.asks {
            return Ok(nonce.clone());
        }
        let nonce = random::<16>().map_err(|why| InDoubt(why.to_string()))?;
        Ok(state.asks.insert(hex(&nonce)).clone())
    }

    /// Takes in all that another broker knows to be dead.
    async fn take_over(&self, Account { notices, covers }: Account) -> Result<(), InDoubt> {
        let known = notices.len();
        let learnt = try_join_all(notices.into_iter().map(|notice| self.revocations.learn(notice))).await;
        learnt.map_err(|why| InDoubt(why.to_string()))?;
        for span in &covers {
            self.parts.ledger.cover(span);
        }
        tracing::info!(known, "another broker has said what is dead");
        Ok(())
    }

    /// Answers those who ask for what this broker has logged itself (`by_name`), at any time; or the brokers that join: to be done once the
    /// store was found to be itself, and its log was read.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub(super) async fn answer(&self, run: &str, by_name: bool) -> Result<(), InDoubt> {
        let own = self.revocations.broker();
        let unanswered = self.members.lock().unanswered(own, by_name);
        for nonce in unanswered {
            // Before the notices: what is logged from then on is not in the answer.
            let mut covers = vec![self.parts.ledger.logged(self.now())];
            if !by_name {
                let state = self.members.lock();
                let of_others = state.others.values().filter_map(|seen| seen.member.logged.clone());
                covers.extend(of_others.filter(|span| !self.parts.ledger.lacks(span)));
            }
            let account = Account { notices: self.revocations.all(), covers };
            self.parts.ledger.answer((&nonce, own), run, account, self.now()).await?;
            self.members.lock().answered.insert(nonce);
        }
        Ok(())
    }

    /// Whether the log had all that the others had logged when they said so last; to be looked at after it was read.
    ///
    /// # Errors
    /// When something is missing: then nothing is vouched for before they have told it (`mend`).
    pub(super) fn check_log(&self) -> Result<(), InDoubt> {
        let mut state = self.members.lock();
        let lacks = |seen: &Seen| {
            seen.was_there && seen.member.logged.as_ref().is_some_and(|span| self.parts.ledger.lacks(span))
        };
        let whom: BTreeSet<_> =
            state.others.iter().filter(|(_, seen)| lacks(seen)).map(|(name, _)| name.clone()).collect();
        if whom.is_empty() {
            return Ok(());
        }
        let lacking: Vec<_> = whom.iter().cloned().collect();
        let since = state.lacking.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        state.lacking = Some((whom, since));
        self.vouched.store(false, Ordering::Release);
        tracing::error!(brokers = %names(&lacking), "something was taken out of the store's log: they are asked what they had logged");
        Err(InDoubt(format!("its log lacks something that {} had logged", names(&lacking))))
    }

    /// Where the log lacks something that others had logged, asks them for it.
    ///
    /// # Errors
    /// While they have not answered, or the store is in doubt.
    pub(super) async fn mend(&self, run: &str) -> Result<(), InDoubt> {
        let Some((whom, since)) = self.members.lock().lacking.clone() else { return Ok(()) };
        self.vouched.store(false, Ordering::Release);
        let nonce = self.own_nonce()?;
        self.call_roll(None).await?;
        for _ in 0..ANSWER.0 {
            for broker in &whom {
                if let Some(account) = self.parts.ledger.answer_to(&nonce, std::slice::from_ref(broker), run).await? {
                    self.take_over(account).await?;
                    // What is missing after that it is asked for once more.
                    self.members.lock().asks = None;
                }
            }
            self.learn_notices().await?;
            if self.check_log().is_ok() {
                break;
            }
            sleep(ANSWER.1).await;
        }
        // Those who ended meanwhile answer no more.
        let gone: Vec<_> = {
            let (state, gone_after) = (self.members.lock(), self.parts.broker_gone_after);
            let is_silent = |name: &&BrokerName| {
                let heard = state.others.get(*name).and_then(|seen| seen.heard).map_or(since, |heard| heard.max(since));
                heard.elapsed() >= gone_after
            };
            whom.iter().filter(is_silent).cloned().collect()
        };
        if !gone.is_empty() {
            let why = format!("the store's log lacks something that {} had logged, which is gone", names(&gone));
            self.raise(self.parts.ledger.generation() + 1, &why).await?;
            let state = self.members.lock();
            for span in gone.iter().filter_map(|name| state.others.get(name)?.member.logged.as_ref()) {
                self.parts.ledger.cover(span);
            }
        }
        self.check_log()?;
        let mut state = self.members.lock();
        (state.lacking, state.asks) = (None, None);
        Ok(())
    }

    /// Waits for nobody: whether all who were there have told this run of the store. What a broker knew that is gone is left behind.
    ///
    /// # Errors
    /// When they have not, or the store is in doubt.
    pub(super) async fn gather(&self, run: &str) -> Result<(), InDoubt> {
        if self.call_roll(None).await? != run {
            return Err(InDoubt("the store was started anew meanwhile".into()));
        }
        let generation = self.parts.ledger.generation();
        let verdict = self.members.lock().verdict(run, generation, self.parts.broker_gone_after, Instant::now());
        match verdict {
            Verdict::Settled => {}
            Verdict::Waiting(whom) => {
                return Err(InDoubt(format!("it may have lost what {} has yet to tell it again", names(&whom))));
            }
            Verdict::Gone(gone, began) => {
                let why = format!("{} is gone, and may have known of ends that the store has lost", names(&gone));
                self.raise(began + 1, &why).await?;
            }
        }
        // What they have told is in its log.
        self.learn_notices().await?;
        {
            let mut state = self.members.lock();
            (state.settled, state.waiting) = (Some(run.to_owned()), None);
        }
        self.keep_members(run).await
    }

    /// Remembers who is there, for when this broker is started again. To be done once all is known that they had told.
    ///
    /// # Errors
    /// When the journal takes nothing.
    pub(super) async fn keep_members(&self, run: &str) -> Result<(), InDoubt> {
        let there = {
            let mut state = self.members.lock();
            state.others.values_mut().for_each(|seen| seen.is_known = true);
            state.there()
        };
        self.revocations.settle(run, there).await.map_err(|why| InDoubt(why.to_string()))
    }

    /// Says that this broker ends in order, so that nobody waits for it: unless there is something that it alone knows.
    pub async fn leave(&self) {
        if self.replay.told().is_none() || !self.revocations.unlogged().is_empty() {
            tracing::warn!(
                "the store could not be told of all that is dead: other brokers wait for this one after a failover"
            );
            return;
        }
        if let Err(why) = self.say(true, None).await {
            tracing::warn!(%why, "the other brokers could not be told that this one ends in order");
        }
    }
}

/// Whether a broker knows nothing of what is dead yet.
fn joins(member: &Member) -> bool {
    member.asks.is_some() && member.asks_of.is_empty()
}

fn names(brokers: &[BrokerName]) -> String {
    brokers.iter().map(BrokerName::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Duration = Duration::from_secs(60);

    /// Another broker's view, in which time passes by hand.
    struct World {
        state: State,
        begun: Instant,
        seconds: u64,
    }

    impl World {
        fn new() -> Self {
            Self { state: State::default(), begun: Instant::now(), seconds: 0 }
        }

        fn now(&self) -> Instant {
            self.begun + Duration::from_secs(self.seconds)
        }

        fn time(&self) -> Time {
            let begun: Time = "2026-11-21T10:00:00Z".parse().unwrap();
            begun + TimeDelta::seconds(i64::try_from(self.seconds).unwrap())
        }

        /// What a broker says at this moment that has told that run.
        fn says(&self, told: &str) -> Member {
            Member {
                at: self.time(),
                told: Some(told.to_owned()),
                settled: None,
                left: false,
                asks: None,
                asks_of: vec![],
                logged: None,
            }
        }

        fn hear(&mut self, run: &str, members: &[(&str, Member)], recalled: Option<&Place>) {
            let members = members.iter().map(|(name, member)| (name.parse().unwrap(), member.clone())).collect();
            let at = (self.time(), self.now());
            self.state.hear(Roll { incarnation: run.to_owned(), members, is_shared: true }, recalled, at);
        }

        fn verdict(&mut self, run: &str) -> Verdict {
            let now = self.now();
            let verdict = self.state.verdict(run, 7, GONE, now);
            if verdict == Verdict::Settled {
                (self.state.settled, self.state.waiting) = (Some(run.to_owned()), None);
                self.state.others.values_mut().for_each(|seen| seen.is_known = true);
            }
            verdict
        }

        /// A broker that was there with `b` and `c` on the run `x`.
        fn among_three() -> Self {
            let mut world = Self::new();
            let says = world.says("x");
            world.hear("x", &[("b", says.clone()), ("c", says)], None);
            assert_eq!(world.verdict("x"), Verdict::Settled);
            world
        }
    }

    fn brokers(names: &[&str]) -> Vec<BrokerName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn place(settled: &str, members: &[&str]) -> Place {
        Place { store: "s".into(), generation: 7, settled: Some(settled.to_owned()), members: brokers(members) }
    }

    #[test]
    fn all_who_were_there_are_waited_for() {
        let mut world = World::among_three();
        let before = world.says("x");
        world.seconds = 10;
        // What they said before is no word about this run, and a store may have forgotten them.
        world.hear("y", &[("b", before)], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
        world.seconds = 12;
        let says = world.says("y");
        world.hear("y", &[("b", says.clone())], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["c"])));
        // Nor is this the end of it: the store changes once more.
        world.hear("z", &[("b", says)], None);
        assert_eq!(world.verdict("z"), Verdict::Waiting(brokers(&["b", "c"])));
        world.seconds = 14;
        let says = world.says("z");
        world.hear("z", &[("b", says.clone()), ("c", says)], None);
        assert_eq!(world.verdict("z"), Verdict::Settled);
    }

    #[test]
    fn who_was_long_gone_or_has_left_is_not() {
        let mut world = World::among_three();
        world.seconds = 29;
        let left = Member { left: true, ..world.says("x") };
        world.hear("x", &[("b", left)], None);
        world.state.others.values_mut().for_each(|seen| seen.is_known = true);
        world.seconds = 31;
        world.hear("x", &[], None);
        assert_eq!(world.state.there(), []);
        // However long the store is out of reach after that.
        world.seconds = 400;
        world.hear("y", &[], None);
        assert_eq!(world.verdict("y"), Verdict::Settled);
    }

    #[test]
    fn who_was_there_when_the_store_went_is_waited_for_however_long_it_is_away() {
        let mut world = World::among_three();
        world.seconds = 400;
        world.hear("y", &[], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
    }

    #[test]
    fn what_one_had_said_that_left_has_to_be_known_or_in_the_store() {
        let mut world = World::among_three();
        world.seconds = 2;
        let says = world.says("x");
        let left = Member { left: true, ..says.clone() };
        world.hear("x", &[("b", left.clone()), ("c", says)], None);
        // The log was not read after that. Another store may not have what was in it.
        world.seconds = 3;
        world.hear("y", &[], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
        world.hear("y", &[("b", left)], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["c"])));
    }

    #[test]
    fn who_gives_no_sign_of_life_is_given_up() {
        let mut world = World::among_three();
        world.seconds = 10;
        world.hear("y", &[], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
        world.seconds = 60;
        let alive = Member { told: None, ..world.says("y") };
        world.hear("y", &[("b", alive.clone())], None);
        world.seconds = 69;
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
        world.seconds = 70;
        assert_eq!(world.verdict("y"), Verdict::Gone(brokers(&["c"]), 7));
        // One that lives and cannot tell is waited for, but not for what somebody puts there.
        world.hear("y", &[("b", alive)], None);
        world.seconds = 120;
        assert_eq!(world.verdict("y"), Verdict::Gone(brokers(&["b", "c"]), 7));
        // Somebody else was faster.
        let now = world.now();
        assert_eq!(world.state.verdict("y", 8, GONE, now), Verdict::Settled);
    }

    #[test]
    fn a_restart_waits_for_nobody_where_the_store_is_as_it_was() {
        let mut world = World::new();
        world.hear("x", &[], Some(&place("x", &["b", "c"])));
        assert_eq!(world.verdict("x"), Verdict::Settled);
    }

    #[test]
    fn a_restart_on_another_run_goes_by_the_journal_or_by_one_who_waited() {
        let mut world = World::new();
        let settled = |world: &World| Member { settled: Some("y".into()), ..world.says("y") };
        // What it says may be of before: it is not known whether it is there.
        let first = settled(&world);
        world.hear("y", &[("d", first)], Some(&place("x", &["b"])));
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b"])));
        world.seconds = 2;
        let next = settled(&world);
        world.hear("y", &[("d", next)], Some(&place("x", &["b"])));
        assert_eq!(world.verdict("y"), Verdict::Settled);
    }

    #[test]
    fn whoever_was_there_itself_goes_by_nobody_else() {
        let mut world = World::among_three();
        world.seconds = 2;
        let settled = |world: &World| Member { settled: Some("y".into()), ..world.says("y") };
        let first = settled(&world);
        world.hear("y", &[("d", first)], None);
        world.seconds = 4;
        let next = settled(&world);
        world.hear("y", &[("d", next)], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
    }

    #[test]
    fn one_that_joins_waits_for_whoever_is_alive_and_knows() {
        let joining = |world: &mut World| {
            let now = world.now();
            world.state.joining(7, GONE, now)
        };
        let mut world = World::new();
        let (old, left) = (world.says("x"), Member { left: true, ..world.says("x") });
        let joins = |world: &World| Member { asks: Some("n".into()), ..world.says("x") };
        world.seconds = 3600;
        let asking = joins(&world);
        world.hear("x", &[("b", old.clone()), ("c", left), ("d", asking)], None);
        assert_eq!(joining(&mut world), Verdict::Waiting(vec![]), "somebody may be there whose clock is behind");
        world.seconds += 4;
        let (behind, asking) = (Member { at: old.at + TimeDelta::seconds(1), ..old }, joins(&world));
        world.hear("x", &[("b", behind.clone()), ("d", asking)], None);
        assert_eq!(joining(&mut world), Verdict::Waiting(brokers(&["b"])));
        world.seconds += 60;
        let asking = joins(&world);
        world.hear("x", &[("b", behind), ("d", asking)], None);
        assert_eq!(joining(&mut world), Verdict::Gone(vec![], 7), "nobody waits for those who know as little");
        let now = world.now();
        assert_eq!(world.state.joining(8, GONE, now), Verdict::Settled);
        // Alone on the store there is nobody to look for.
        let mut alone = World::new();
        let at = (alone.time(), alone.now());
        alone.state.hear(Roll { incarnation: String::new(), members: vec![], is_shared: false }, None, at);
        assert_eq!(joining(&mut alone), Verdict::Gone(vec![], 7));
    }

    #[test]
    fn one_who_says_nothing_for_a_day_is_struck_off() {
        let mut world = World::among_three();
        world.seconds = 86_401;
        let says = world.says("x");
        world.hear("x", &[("b", says)], None);
        let time = world.time();
        assert_eq!(world.state.gone(time), brokers(&["c"]));
        assert_eq!(world.state.gone(time), []);
    }
}
