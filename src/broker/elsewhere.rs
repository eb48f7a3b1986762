//! What those have heard who read the feed of other brokers: each broker tells the others, through the store, up to where in the log of notices
//! all of its readers have said to go. Where one of them says nothing, or not enough, nobody knows, and only the time tells.

use std::time::{Duration, Instant};
use tokio::time::timeout;

use super::Broker;
use crate::lease::{InDoubt, Position, StandingKey, Use};

/// How often it is looked how much was heard, at least.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether there are other brokers, while there is something that they could be told.
const LOOK_FOR_OTHERS: Duration = Duration::from_secs(5);
/// So many who say so at a time are looked at together.
const TOGETHER: Duration = Duration::from_millis(10);

/// What the other brokers were told.
#[derive(Default)]
struct Told {
    upto: Option<Position>,
    /// When it was last looked whether there are any.
    looked: Option<Instant>,
}

impl Broker {
    /// Tells the other brokers what all readers of this one have heard, as they hear it. Ends with the broker.
    pub(super) async fn tell_heard(&self) {
        let mut told = Told::default();
        loop {
            let _ = timeout(LOOK, self.feed.readers.news()).await;
            tokio::time::sleep(TOGETHER).await;
            if let Err(why) = self.tell_what_is_heard(&mut told).await {
                tracing::debug!(%why, "the other brokers are not told what was heard here");
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn tell_what_is_heard(&self, told: &mut Told) -> Result<(), InDoubt> {
        let news = self.read_to().await;
        if told.upto.as_ref() == Some(&news) || !self.is_vouched() || !self.has_been_heard() {
            return Ok(());
        }
        let now = self.now();
        if self.known_others().is_empty() {
            if told.looked.is_some_and(|at| at.elapsed() < LOOK_FOR_OTHERS) {
                return Ok(());
            }
            told.looked = Some(Instant::now());
            if !self.learn_keys().await || self.known_others().is_empty() {
                return Ok(());
            }
        }
        // Of this run, and nothing that a later one has: what was read from it cannot be of an earlier one.
        let run = self.parts.ledger.incarnation().await?;
        let upto = self.read_to().await;
        if self.has_been_heard() {
            let keys = &self.parts.keys;
            let (next, replaced) = (keys.next(Use::Revocations, now), keys.replaced(Use::Revocations));
            let mut own = vec![keys.current(Use::Revocations, now).jwk.kid];
            own.extend(next.map(|next| next.jwk.kid).into_iter().chain(replaced.map(|replaced| replaced.kid)));
            self.parts.ledger.post_heard(&own, &run, &upto, now).await?;
            told.upto = Some(upto);
        }
        Ok(())
    }

    /// Whether all readers of this broker have heard of all that it has read by now.
    fn has_been_heard(&self) -> bool {
        let longest = self.longest_freshness().to_std().unwrap_or(Duration::MAX);
        self.feed.readers.heard(self.revocations.last(), longest).by_all
    }

    async fn read_to(&self) -> Position {
        self.feed.read.lock().await.clone()
    }

    /// The keys that other brokers sign states of the feed with.
    fn others(&self, all: &[StandingKey]) -> Vec<String> {
        let own = self.own_keys(self.now());
        let theirs = all.iter().filter(|standing| {
            let StandingKey { key, retirement, .. } = standing;
            key.purpose == Use::Revocations && retirement.is_none() && !own.contains(&key.jwk.kid)
        });
        theirs.map(|standing| standing.key.jwk.kid.clone()).collect()
    }

    fn known_others(&self) -> Vec<String> {
        self.others(&self.known_keys.all(Use::Revocations))
    }

    /// Whether no other broker can have readers of its own. Only where none is known the store is asked, for one that joined a moment ago. One
    /// that joins later learns all that has ended before it says anything.
    pub(super) async fn is_alone(&self) -> bool {
        self.known_others().is_empty() && self.parts.ledger.keys().await.is_ok_and(|all| self.others(&all).is_empty())
    }

    /// Whether all readers of all other brokers have heard of everything that was told before this.
    pub(super) async fn is_heard_elsewhere(&self) -> bool {
        let heard = async {
            let run = self.parts.ledger.incarnation().await?;
            self.learn_notices().await?;
            let (upto, ledger) = (self.read_to().await, &self.parts.ledger);
            let known = self.known_others();
            // Of what is known one may say enough to rule it out; only then is it of use to ask who else there is.
            if !ledger.have_heard(&known, &run, &upto).await? {
                return Ok(false);
            }
            let mut others = self.others(&ledger.keys().await?);
            others.retain(|kid| !known.contains(kid));
            ledger.have_heard(&others, &run, &upto).await
        };
        let failed = |why: &InDoubt| tracing::warn!(%why, "what was heard elsewhere cannot be told");
        heard.await.inspect_err(failed).unwrap_or(false)
    }
}
