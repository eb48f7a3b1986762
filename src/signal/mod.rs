//! Who is told of ends beside those who follow the feed: receivers of Shared Signals (CAEP), by push (RFC 8935) or poll (RFC 8936), and
//! webhooks of those who run sandboxes.
//!
//! What a receiver is to be told is in the journal of revocations already, which is durable before an end counts. So nothing is queued
//! on disk a second time: each receiver has a file of what it was told (`outbox.rs`), and the rest is what is still to tell, in order
//! (`stream.rs`). Where a receiver may be is decided before anything is sent (`address.rs`, `push.rs`), and what it is sent is a
//! Security Event Token (`token.rs`).

mod address;
mod config;
mod outbox;
mod push;
mod stream;
mod token;

pub use config::{Delivery, ReceiverConfig, Sort};
pub use outbox::{Done, Fate};
pub use push::{Answer, code};
pub use stream::{Item, Next, Stream, What, open};
pub use token::{SET_TYP, SecurityEvent, Signal, Subject};

use crate::{
    jose::SigningAlgorithm,
    task::{End, State},
};
use push::Push;

/// A receiver, ready to be told.
#[derive(Debug)]
pub struct Receiver {
    config: ReceiverConfig,
    signals: Vec<Signal>,
    push: Option<Push>,
}

impl Receiver {
    /// Its name, which is that of its stream too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What it is.
    #[must_use]
    pub fn sort(&self) -> Sort {
        self.config.sort
    }

    /// `aud` of what it is told.
    #[must_use]
    pub fn audience(&self) -> &str {
        &self.config.audience
    }

    /// What that is signed with.
    #[must_use]
    pub fn algorithm(&self) -> SigningAlgorithm {
        self.config.algorithm
    }

    /// How a task is named to it.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.config.subject
    }

    /// How long it is tried, in seconds.
    #[must_use]
    pub fn give_up_after(&self) -> u32 {
        self.config.give_up_after
    }

    /// Where it is told; `None`: it asks.
    #[must_use]
    pub fn url(&self) -> Option<&str> {
        self.config.url.as_deref()
    }

    /// What it is told, and all that those of its sort can be.
    #[must_use]
    pub fn signals(&self) -> (Vec<Signal>, Vec<Signal>) {
        let all = Signal::ALL.into_iter().filter(|signal| signal.is_for(self.config.sort));
        (self.signals.clone(), all.collect())
    }

    /// Whether it asks, instead of being told.
    #[must_use]
    pub fn polls(&self) -> bool {
        self.push.is_none()
    }

    /// Whether it authenticates with a token of this SHA-256.
    #[must_use]
    pub fn has_token(&self, sha256: &str) -> bool {
        self.config.token_sha256.iter().any(|one| one == sha256)
    }

    /// What it is told of an end; `None`: nothing.
    #[must_use]
    pub fn signal_of(&self, end: State) -> Option<Signal> {
        self.signals.iter().copied().find(|signal| signal.state() == end)
    }

    /// Whether it is told of a task that evidence bound to this sandbox.
    #[must_use]
    pub fn runs(&self, sandbox: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => sandbox.starts_with(start),
            None => pattern == sandbox,
        };
        self.config.sandboxes.as_ref().is_none_or(|all| all.iter().any(fits))
    }

    /// Whether this broker tells it of that end: one that is told hears of each from the broker that recorded it, and one that asks
    /// may ask any.
    fn hears_of(&self, end: &End, is_own: bool) -> bool {
        (self.polls() || is_own) && self.signal_of(end.state).is_some()
    }

    /// Sends it a token. One that asks is sent nothing.
    pub async fn send(&self, token: &str) -> Answer {
        match &self.push {
            Some(push) => push.send(self.config.sort, token).await,
            None => Answer::Failed("it asks by itself".to_owned()),
        }
    }
}
