//! Brokers that are gone for good leave no keys behind: each shows every minute that its keys are in use, and those of a broker that
//! has not done so for a day, and is not seen for a while longer, are retired by whichever other broker notices.
//!
//! A broker that was only away, or is taken for gone by mistake, loses nothing that is valid: its keys stay published for two days,
//! and it changes them like keys that are old. One that was away for longer joins again, with new ones.

use chrono::TimeDelta;
use std::collections::HashMap;

use super::{Broker, in_doubt, rotate::unmade};
use crate::{
    audit::{Actor, Entry, Event},
    clock::Time,
    error::Error,
    lease::{PublishedKey, Retirement, StandingKey, Use},
};

/// How often a broker shows that it is there, and looks who is.
const EVERY: TimeDelta = TimeDelta::seconds(60);

/// How long nothing has to be seen of a key, beside the time that the store keeps what was shown: a store that has lost it is shown
/// it again meanwhile.
const UNSEEN: TimeDelta = TimeDelta::minutes(10);

/// How long a key of a broker that is gone stays published: twice as long as anything lives that it may have signed, so that a broker that
/// is not gone has the time to change it.
const PUBLISHED: TimeDelta = TimeDelta::hours(48);

/// Who was seen.
#[derive(Default)]
pub(super) struct Presence {
    looked: Option<Time>,
    /// The keys of others that were not shown, and since when.
    unseen: HashMap<String, Time>,
}

impl Broker {
    /// Shows that our keys are in use, and retires those of brokers that are gone. To be called every second or so.
    pub(super) async fn look_around(&self, now: Time) -> Result<(), Error> {
        let mut presence = self.presence.lock().await;
        // Where the clock was set back, too.
        if presence.looked.is_some_and(|at| (TimeDelta::zero()..EVERY).contains(&(now - at))) {
            return Ok(());
        }
        let own = self.own_keys(now);
        self.parts.ledger.show(&own, now).await.map_err(|why| in_doubt(&why))?;
        self.take_in(self.parts.ledger.keys().await.map_err(|why| in_doubt(&why))?);
        let all = Use::ALL.into_iter().flat_map(|purpose| self.known_keys.all(purpose));
        let others = all.filter(|standing| {
            let kid = &standing.key.jwk.kid;
            standing.retirement.is_none() && standing.tainted_at.is_none() && !own.contains(kid)
        });
        let others: Vec<PublishedKey> = others.map(|StandingKey { key, .. }| key).collect();
        let kids: Vec<String> = others.iter().map(|key| key.jwk.kid.clone()).collect();
        let shown = self.parts.ledger.shown(&kids).await.map_err(|why| in_doubt(&why))?;
        let unseen = others.into_iter().zip(shown).filter_map(|(key, shown)| (!shown).then_some(key));
        let before = std::mem::take(&mut presence.unseen);
        for key in unseen {
            let since = before.get(&key.jwk.kid).copied().unwrap_or(now).min(now);
            if now - since >= UNSEEN {
                self.retire_abandoned(&key, now).await?;
            } else {
                presence.unseen.insert(key.jwk.kid, since);
            }
        }
        presence.looked = Some(now);
        Ok(())
    }

    /// The ids of the keys that this broker has, but for those that it only keeps.
    pub(super) fn own_keys(&self, now: Time) -> Vec<String> {
        let keys = &self.parts.keys;
        let of = |purpose| {
            let replaced = keys.replaced(purpose).map(|replaced| replaced.kid);
            let next = keys.next(purpose, now).map(|next| next.jwk.kid);
            [Some(keys.current(purpose, now).jwk.kid), next, replaced].into_iter().flatten()
        };
        Use::ALL.into_iter().flat_map(of).chain(self.imported_kids()).collect()
    }

    /// On record → its end in the store, which stands for whoever comes second.
    async fn retire_abandoned(&self, key: &PublishedKey, now: Time) -> Result<(), Error> {
        let (kid, purpose) = (key.jwk.kid.clone(), key.purpose);
        tracing::warn!(kid, %purpose, "the broker of this key is gone: it is retired");
        let event = Event::KeyAbandoned { purpose: purpose.to_string(), kid: kid.clone() };
        let request = String::new();
        self.record(vec![Entry { time: now, request, actor: Actor::Broker, task: None, event }]).await?;
        let retirement = Retirement { retired_at: now, published_until: now + PUBLISHED };
        let retirement = self.parts.ledger.retire(&kid, retirement).await.map_err(|why| in_doubt(&why))?;
        self.known_keys.retire(purpose, &kid, retirement);
        Ok(())
    }

    /// Where the key that should sign is published no more, because this broker was away for so long: another one, which signs once
    /// every verifier can know it. To be called by whoever turns the keys.
    pub(super) async fn join_again(&self, purpose: Use, now: Time) -> Result<(), Error> {
        let kid = self.parts.keys.current(purpose, now).jwk.kid;
        if self.known_keys.published_until(purpose, &kid).is_none_or(|until| until > now) {
            return Ok(());
        }
        self.wait_until_known(now);
        self.parts.keys.prepare(purpose, now).map_err(|why| unmade(&why))?;
        if let Some(next) = self.parts.keys.next(purpose, now) {
            let next = self.announce(next).await.map_err(|why| in_doubt(&why))?;
            self.wait_until_known(next.published_at);
            self.activate(purpose, &next, now).await?;
        }
        Ok(())
    }
}
