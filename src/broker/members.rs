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

mod judgement;

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
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
};
use judgement::{Seen, State, Verdict};

/// How often a broker says something at least.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How long it waits for an answer at a time, and how often it looks for one meanwhile.
const ANSWER: (u32, Duration) = (12, Duration::from_millis(40));

/// The other brokers.
#[derive(Debug, Default)]
pub(super) struct Members {
    state: Mutex<State>,
    /// What this broker said last, and to which run of the store, where it is known to be there: it says one thing at a time.
    stands: tokio::sync::Mutex<Option<(String, Time)>>,
    /// Whether the store did not have that when it was looked for last.
    is_gainsaid: AtomicBool,
}

impl Members {
    /// Whether everybody who was there has told this run of the store.
    pub(super) fn has_settled(&self, run: &str) -> bool {
        self.lock().settled.as_deref() == Some(run)
    }

    /// Whether somebody changed what this broker says of itself, and it has not been found to stand since.
    pub(super) fn is_gainsaid(&self) -> bool {
        self.is_gainsaid.load(Ordering::SeqCst)
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
            // What it has told the others since may be kept from them: nothing of it counts as told before its word is found to stand.
            self.members.is_gainsaid.store(true, Ordering::SeqCst);
            self.vouched.store(false, Ordering::SeqCst);
            return Err(InDoubt("the store does not have what this broker said of itself".into()));
        }
        self.members.is_gainsaid.store(false, Ordering::SeqCst);
        if let Some(furthest) = others.iter().map(|(_, member)| member.at).max() {
            self.revocations.read_clock(furthest);
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

fn names(brokers: &[BrokerName]) -> String {
    brokers.iter().map(BrokerName::as_str).collect::<Vec<_>>().join(", ")
}
