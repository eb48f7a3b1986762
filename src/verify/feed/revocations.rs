//! What a verifier knows of revocations, and whether it knows enough to accept anything. No clock, no connection: whoever has those tells it
//! what arrived, and when.

use std::{collections::HashMap, time::Duration};

use super::{
    Asked, Denial,
    held::{Facts, Held, milliseconds},
    state::{State, Unread},
};
use crate::{
    claims::{LockSubject, RevocationClaims},
    clock::{Moment, Time},
    id::BrokerName,
    verify::Refused,
};

/// Milliseconds by which the broker's clock may be off, either way.
const OFFSET: i64 = 1_000;

/// What is held, whose it is, and how long it is good for.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    held: Held,
    generation: u64,
    /// The broker that is followed, and how far.
    position: Option<(BrokerName, u64)>,
    /// How far each broker of this generation has counted.
    counted: HashMap<BrokerName, Counted>,
    anchor: Option<Anchor>,
    /// Until when what is held is good, by the monotonic clock.
    fresh_until: Duration,
    /// Something was missed, or not understood.
    gap: bool,
    /// A broker has forgotten what it had said.
    forgotten: bool,
    /// The stream goes on from what is held: nothing else was between.
    connected: bool,
    witness: Option<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counted {
    sequence: u64,
    /// It has counted on from lower since: it is believed again in the next generation.
    forgot: bool,
}

/// What the brokers' clock said when ours stood where it did.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    monotonic: Duration,
    iat: i64,
}

impl Anchor {
    /// The brokers' clock now, or a moment later than that, in milliseconds since 1970: the time that the question travelled is in it.
    fn reckoned(self, now: &Moment) -> i64 {
        let passed = now.monotonic.saturating_sub(self.monotonic).as_millis();
        self.iat.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

impl Revocations {
    /// Takes the answer to a question.
    pub(super) fn answered(
        &mut self,
        heard: Result<State, Unread>,
        asked: &Asked,
        now: &Moment,
    ) -> Result<(), Refused> {
        self.connected = false;
        let State { claims, kid, witness } = self.read(heard, now)?;
        if claims.previous.is_some() {
            return Err(Refused("a change of the set does not answer the question for all of it"));
        }
        if claims.nonce.as_deref() != Some(asked.nonce()) {
            return Err(Refused("it answers another question"));
        }
        let earliest = asked.sent().wall.timestamp_millis() - OFFSET;
        if !(earliest..=now.wall.timestamp_millis() + OFFSET).contains(&claims.iat.millis()) {
            return Err(Refused("our clock and the broker's are more than a second apart"));
        }
        self.reach(claims.generation)?;
        let counted = self.counted.entry(claims.broker.clone()).or_default();
        if counted.forgot || claims.sequence < counted.sequence {
            counted.forgot = true;
            self.forgotten = true;
            return Err(Refused("the broker has forgotten what it had said"));
        }
        self.anchor = Some(Anchor { monotonic: asked.sent().monotonic, iat: claims.iat.millis() });
        (self.gap, self.forgotten, self.connected) = (false, false, true);
        self.take(claims, &kid, witness, now);
        Ok(())
    }

    /// Takes what came in the stream. What is older than what is held is passed over.
    pub(super) fn pushed(&mut self, heard: Result<State, Unread>, now: &Moment) -> Result<(), Refused> {
        let connected = std::mem::take(&mut self.connected);
        let State { claims, kid, witness } = self.read(heard, now)?;
        let (Some(anchor), true) = (self.anchor, connected) else {
            return Err(Refused("a snapshot is due"));
        };
        if claims.iat.millis() > anchor.reckoned(now) + OFFSET {
            return Err(Refused("it is from the future"));
        }
        let is_new = self.reach(claims.generation)?;
        let (broker, sequence) = self.position.clone().ok_or(Refused("a snapshot is due"))?;
        if broker != claims.broker {
            self.gap = true;
            return Err(Refused("it is of another broker"));
        }
        if is_new || claims.sequence >= sequence {
            // What it tells again is held already; of a new generation, in which brokers count anew, nothing is.
            let goes_on = |previous| previous == sequence || (previous < sequence && !is_new);
            if !claims.previous.is_none_or(goes_on) {
                self.gap = true;
                return Err(Refused("something was missed before it"));
            }
            self.take(claims, &kid, witness, now);
        }
        self.connected = true;
        Ok(())
    }

    /// The stream has ended.
    pub(super) fn disconnected(&mut self) {
        self.connected = false;
    }

    fn read(&mut self, heard: Result<State, Unread>, now: &Moment) -> Result<State, Refused> {
        match heard {
            Ok(state) if self.held.key_is_dead(&state.kid, now) => Err(Refused("the key of the state was revoked")),
            Ok(state) => Ok(state),
            Err(Unread::Foreign(why)) => Err(why),
            Err(Unread::Malformed(why)) => {
                self.gap = true;
                Err(why)
            }
        }
    }

    /// Goes with a state into its generation. Answers whether that is a new one, in which brokers count anew.
    fn reach(&mut self, generation: u64) -> Result<bool, Refused> {
        if generation < self.generation {
            self.forgotten = true;
            return Err(Refused("the broker is in an older generation"));
        }
        let is_new = generation > self.generation;
        if is_new {
            self.generation = generation;
            self.counted.clear();
        }
        Ok(is_new)
    }

    fn take(&mut self, claims: RevocationClaims, kid: &str, witness: Option<String>, now: &Moment) {
        if let Some(anchor) = self.anchor {
            let good_until = anchor.monotonic.saturating_add(milliseconds(claims.exp.millis() - anchor.iat));
            self.fresh_until = self.fresh_until.max(good_until);
        }
        self.held.unite(claims.entries, now);
        // What it says last is that nothing else is to be believed that is signed like it.
        if self.held.key_is_dead(kid, now) {
            self.gap = true;
        }
        self.counted.insert(claims.broker.clone(), Counted { sequence: claims.sequence, forgot: false });
        self.position = Some((claims.broker, claims.sequence));
        self.witness = witness.or(self.witness.take());
    }

    /// What stands against a credential that is good in itself.
    pub(super) fn deny<'a>(
        &self,
        facts: Facts<'_>,
        subject: impl FnOnce() -> LockSubject<'a>,
        now: &Moment,
    ) -> Option<Denial> {
        if self.gap {
            return Some(Denial::Gap);
        }
        let Some(anchor) = self.anchor.filter(|_| !self.forgotten && now.monotonic < self.fresh_until) else {
            return Some(Denial::Stale);
        };
        if facts.generation != self.generation {
            return Some(Denial::Generation);
        }
        self.held.deny(facts, subject, now, anchor.reckoned(now))
    }

    /// The later of the wall clock and the brokers' clock: by which a token ends.
    pub(super) fn clock(&self, now: &Moment) -> Time {
        let reckoned = self.anchor.and_then(|anchor| Time::from_timestamp_millis(anchor.reckoned(now)));
        reckoned.map_or(now.wall, |reckoned| reckoned.max(now.wall))
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// For how long what is held is good.
    pub(super) fn fresh_for(&self, now: &Moment) -> Duration {
        if self.gap || self.forgotten { Duration::ZERO } else { self.fresh_until.saturating_sub(now.monotonic) }
    }

    pub(super) fn position(&self) -> Option<(&BrokerName, u64)> {
        self.position.as_ref().map(|(broker, sequence)| (broker, *sequence))
    }

    pub(super) fn witness(&self) -> Option<&str> {
        self.witness.as_deref()
    }
}
