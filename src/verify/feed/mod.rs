//! The revocation feed, as a verifier sees it: states that a broker signs, united into a set, and the rules by which the set is good for
//! accepting anything. What cannot be known denies.

mod held;
mod revocations;
mod signals;
mod state;
#[cfg(test)]
pub(super) mod tests;

pub(crate) use held::Facts;
pub use state::MAX_STATE;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use super::{Keys, Refused};
use crate::{
    claims::LockSubject,
    clock::{Moment, Time},
    id::{Malformed, random},
};
use revocations::Revocations;
use signals::Signals;
use state::State;

/// Why a credential that is good in itself is not accepted. For logs: to a caller, it is not valid, or cannot be checked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// Nothing was heard of the feed for too long, or nothing ever, or a broker has forgotten what it had said.
    Stale,
    /// Something of the feed was missed, or not understood.
    Gap,
    /// It is of another generation.
    Generation,
    /// It was revoked, with its task, its key or alone.
    Revoked,
    /// A lock keeps it out.
    Locked,
}

impl Denial {
    /// Whether it is the verifier that cannot tell, and may be able to in a moment.
    #[must_use]
    pub fn is_doubt(self) -> bool {
        matches!(self, Self::Stale | Self::Gap)
    }

    /// Its name, as it stands in logs and in the vectors of `deploy/vectors`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Gap => "gap",
            Self::Generation => "generation",
            Self::Revoked => "revoked",
            Self::Locked => "locked",
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stale => "what is known of revocations is too old",
            Self::Gap => "something of the revocation feed was missed",
            Self::Generation => "it is of another generation",
            Self::Revoked => "it was revoked",
            Self::Locked => "a lock keeps it out",
        })
    }
}

/// A question for all that is revoked: `GET /v1/revocations?nonce=`. The answer is as fresh as the question.
#[derive(Debug, Clone)]
pub struct Asked {
    nonce: String,
    sent: Moment,
}

impl Asked {
    /// A new question, which is sent right after.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn new(sent: Moment) -> Result<Self, Malformed> {
        Ok(Self { nonce: BASE64_URL_SAFE_NO_PAD.encode(random::<16>()?), sent })
    }

    /// What the answer has to repeat.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    pub(super) fn sent(&self) -> &Moment {
        &self.sent
    }
}

/// What is known of revocations, shared by those who tell it what arrived and those who check credentials by it. It knows nothing of
/// connections and reads no clock.
#[derive(Debug)]
pub struct Feed {
    issuer: String,
    keys: RwLock<Arc<Keys>>,
    revocations: RwLock<Revocations>,
    signals: Signals,
}

impl Feed {
    /// The feed of the brokers of an issuer. It denies everything before it has keys and an answer.
    #[must_use]
    pub fn new(issuer: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            keys: RwLock::default(),
            revocations: RwLock::default(),
            signals: Signals::default(),
        }
    }

    /// The issuer.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Believes what is signed with these from now on, and nothing else.
    pub fn believe(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// Whose signatures are believed.
    pub(super) fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the answer to a question, which came in now.
    ///
    /// # Errors
    /// When it is none that can be believed. Ask again, after a while.
    pub fn answered(&self, text: &str, asked: &Asked, now: &Moment) -> Result<(), Refused> {
        let heard = self.read(text);
        self.told(self.change(|revocations| revocations.answered(heard, asked, now)))
    }

    /// Takes a state that came in the stream.
    ///
    /// # Errors
    /// When it cannot be taken: nothing more of this stream can be, and a question is due.
    pub fn pushed(&self, text: &str, now: &Moment) -> Result<(), Refused> {
        let heard = self.read(text);
        self.told(self.change(|revocations| revocations.pushed(heard, now)))
    }

    /// The stream has ended. What is held is good for as long as it was; a question is due before the next stream.
    pub fn disconnected(&self) {
        self.change(Revocations::disconnected);
    }

    /// The last state that was taken, for the header `Remit-Last-State`: it proves to a broker that it was rolled back.
    #[must_use]
    pub fn witness(&self) -> Option<String> {
        self.look(|revocations| revocations.witness().map(str::to_owned)).flatten()
    }

    /// Where a stream has to go on, for the header `Last-Event-ID`.
    #[must_use]
    pub fn last_event_id(&self) -> Option<String> {
        let id =
            |revocations: &Revocations| revocations.position().map(|(broker, sequence)| format!("{broker}:{sequence}"));
        self.look(id).flatten()
    }

    /// The broker that is followed, and how far: what `POST /v1/revocations/ack` says.
    #[must_use]
    pub fn position(&self) -> Option<(String, u64)> {
        let position =
            |revocations: &Revocations| revocations.position().map(|(broker, sequence)| (broker.to_string(), sequence));
        self.look(position).flatten()
    }

    /// What stands against a credential that is good in itself.
    pub(super) fn deny<'a>(
        &self,
        facts: Facts<'_>,
        subject: impl FnOnce() -> LockSubject<'a>,
        now: &Moment,
    ) -> Option<Denial> {
        let look = |revocations: &Revocations| {
            (revocations.deny(facts, subject, now), facts.generation > revocations.generation())
        };
        let (denial, is_behind) = self.look(look).unwrap_or((Some(Denial::Gap), false));
        if denial == Some(Denial::Generation) && is_behind {
            self.signals.want_snapshot();
        }
        denial
    }

    /// A token came with a key that is not known: the broker may have a new one.
    pub(super) fn want_keys(&self) {
        self.signals.want_keys();
    }

    /// For how long what is held is good, if nothing more is heard; nothing when it is not.
    #[must_use]
    pub fn fresh_for(&self, now: &Moment) -> Duration {
        self.look(|revocations| revocations.fresh_for(now)).unwrap_or_default()
    }

    fn told(&self, taken: Result<(), Refused>) -> Result<(), Refused> {
        if taken.is_ok() {
            self.signals.took();
        }
        taken
    }

    /// When what is held is good. Ends at once when it is already.
    #[cfg(feature = "follow")]
    pub async fn ready(&self) {
        let mut taken = self.signals.taken();
        while self.fresh_for(&Moment::now()).is_zero() && taken.changed().await.is_ok() {}
    }

    #[cfg(feature = "follow")]
    pub(super) async fn keys_wanted(&self) {
        self.signals.keys_wanted().await;
    }

    #[cfg(feature = "follow")]
    pub(super) async fn snapshot_wanted(&self) {
        self.signals.snapshot_wanted().await;
    }

    #[cfg(feature = "follow")]
    pub(super) fn taken(&self) -> tokio::sync::watch::Receiver<()> {
        self.signals.taken()
    }

    /// The clock by which a token ends.
    pub(super) fn clock(&self, now: &Moment) -> Time {
        self.look(|revocations| revocations.clock(now)).unwrap_or(now.wall)
    }

    fn read(&self, text: &str) -> Result<State, state::Unread> {
        State::read(text, &self.keys().states, &self.issuer)
    }

    /// A set that somebody left halfway changed is none to accept anything by: it stays poisoned, and everything is denied.
    fn look<T>(&self, look: impl FnOnce(&Revocations) -> T) -> Option<T> {
        self.revocations.read().ok().map(|revocations| look(&revocations))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Revocations) -> T) -> T {
        change(&mut self.revocations.write().unwrap_or_else(PoisonError::into_inner))
    }
}
