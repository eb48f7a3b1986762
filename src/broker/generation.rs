//! The generation: when it goes up, everything older is dead, and workloads attest again. It goes up where it is proven that something was
//! forgotten: a store or a broker that was put back to an earlier state may have lost ends that nobody can tell it again.

use super::Broker;
use crate::{
    audit::{Actor, Entry, Event},
    claims::{REVOCATIONS_TYP, RevocationClaims},
    jose::Unverified,
    lease::{Entered, InDoubt, Use},
};

/// The longest state that is read as a witness.
const MAX_WITNESS: usize = 8 * 1024;

impl Broker {
    /// Brings the broker into the generation of the store; or the store beyond that of the broker, where the broker has seen a later one.
    ///
    /// # Errors
    /// When the store is in doubt, or the broker's journal takes nothing.
    pub(super) async fn enter_generation(&self) -> Result<(), InDoubt> {
        let stands = self.parts.ledger.entered();
        match self.revocations.place().map(|place| (place.store, place.generation)) {
            Some(seen) if seen == (stands.store.clone(), stands.generation) => return Ok(()),
            // What was lost with it, nobody knows. Another broker may have come first, and left it all behind.
            Some((store, generation)) if store != stands.store && generation >= stands.generation => {
                return self.raise(generation + 1, "the store is another one than this broker was in before").await;
            }
            Some((_, generation)) if generation > stands.generation => {
                return self.raise(generation + 1, "the store was put back to an earlier generation").await;
            }
            Some((_, from)) => self.tell_generation(from, &stands),
            None => {}
        }
        self.revocations.enter(stands.store, stands.generation).await.map_err(|why| InDoubt(why.to_string()))
    }

    fn tell_generation(&self, from: u64, to: &Entered) {
        let Entered { generation, reason, .. } = to;
        tracing::warn!(from, to = generation, ?reason, "the generation has gone up: everything older is dead");
        let event = Event::GenerationEntered { from, to: *generation, reason: reason.clone() };
        let (time, request) = (self.now(), String::new());
        self.parts.audit.note(Entry { time, request, actor: Actor::Broker, task: None, event });
    }

    pub(super) async fn raise(&self, generation: u64, why: &str) -> Result<(), InDoubt> {
        let before = self.parts.ledger.generation();
        self.parts.ledger.raise(generation, why).await?;
        let stands = self.parts.ledger.entered();
        self.tell_generation(self.revocations.place().map_or(before, |place| place.generation), &stands);
        self.revocations.enter(stands.store, stands.generation).await.map_err(|why| InDoubt(why.to_string()))
    }

    /// Takes in what a verifier shows that it held last. A state that is ours, and ahead of what we hold, proves that we were put back to
    /// an earlier state; anything else says nothing.
    ///
    /// # Errors
    /// When the generation has to be raised, and cannot.
    pub(super) async fn hear_witness(&self, witness: &str) -> Result<(), InDoubt> {
        let Some(claims) = self.witnessed(witness).await else { return Ok(()) };
        let generation = self.parts.ledger.generation();
        if claims.generation > generation {
            return self.raise(claims.generation + 1, "a verifier has seen a later generation").await;
        }
        let ours = claims.broker == *self.revocations.broker() && claims.generation == generation;
        if ours && claims.sequence > self.revocations.last() {
            return self.raise(generation + 1, "a verifier has seen a later state of this broker's journal").await;
        }
        Ok(())
    }

    async fn witnessed(&self, witness: &str) -> Option<RevocationClaims> {
        let unverified = Unverified::parse_long(witness, MAX_WITNESS).ok()?;
        if unverified.typ() != Some(REVOCATIONS_TYP) || !unverified.is_plain() {
            return None;
        }
        let key = self.find_key(Use::Revocations, unverified.kid()?, self.now()).await?;
        let claims: RevocationClaims = unverified.verify(&key).ok()?;
        (claims.iss == self.issuer).then_some(claims)
    }
}
