//! Taint: from now on nothing is believed because a signing key says so, on any broker, and nothing is signed with it.
//!
//! Durable intent in the audit log → on record in the store, where every broker looks every second and verification at once → barred
//! here, and kept on this broker's own disk → if it is ours, another one takes its place (of an imported one, the next that was
//! imported, if there is one) → outcome in the audit log → answer.
//!
//! The next key does not wait until every verifier can know it, as in a rotation: whoever keeps an older set of keys refuses what is
//! new until they fetch another, and without it there would be nothing at all. Each step can be done again, so whatever fails or crashes is
//! taken up at the next look, or at the next start; until then the broker signs nothing.
//!
//! A taint is never taken back. Every broker keeps those that it knows of on its disk, and puts them on record again in a store
//! that has lost them.

use super::{Broker, Call, ListedKey, Request, in_doubt, rotate::unmade};
use crate::{
    audit::{Entry, Event},
    clock::Time,
    error::{Error, Input},
    lease::{StandingKey, Taint, Use},
    party::Act,
};

impl Broker {
    /// Taints a signing key of any broker, and yields it. Idempotent: a second call finds what the first one did.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`] for whoever is no admin, [`Error::NotFound`] where no broker ever published
    /// such a key, [`Error::Unavailable`]: call again.
    pub async fn taint_key(&self, request: Request, kid: &str, reason: Option<String>) -> Result<ListedKey, Error> {
        let now = self.now();
        let Request { presented, id } = request;
        let actor = self.admin(presented, Act::TaintKey, &Call { request: &id, task: None, now }).await?;
        self.take_in(self.parts.ledger.keys().await.map_err(|why| in_doubt(&why))?);
        let StandingKey { key, .. } = self.known_keys.named(kid).ok_or(Error::NotFound)?;
        let (kid, purpose) = (kid.to_owned(), key.purpose);
        let line = |event| vec![Entry { time: now, request: id.clone(), actor: actor.clone(), task: None, event }];
        let requested = Event::KeyTaintRequested { kid: kid.clone(), purpose: purpose.to_string(), reason };
        self.record(line(requested)).await?;
        let taint = self.parts.ledger.taint(&Taint { key, tainted_at: now }).await.map_err(|why| in_doubt(&why))?;
        // A store that is not the one that was opened forgets what it was just told: recorded there is not recorded.
        if !self.watch().await {
            return Err(Error::Unavailable(Input::Store));
        }
        self.take_in([taint.clone().into()]);
        self.parts.keys.keep_taint(&taint).map_err(|why| unmade(&why))?;
        {
            let _turn = self.turning_keys.lock().await;
            self.reissue(purpose, self.now()).await?;
            if self.imported_kids().contains(&kid) {
                self.turn_imported(self.now()).await?;
            }
        }
        if purpose == Use::X509Svid {
            self.publish_crls().await;
        }
        let Taint { tainted_at, .. } = taint;
        self.record(line(Event::KeyTainted { kid: kid.clone(), purpose: purpose.to_string(), tainted_at })).await?;
        self.listed(now).into_iter().find(|listed| listed.key.jwk.kid == kid).ok_or(Error::NotFound)
    }

    /// Notes keys as they stand in the store. Nothing is signed any more with those that are tainted when this returns.
    pub(super) fn take_in(&self, standing: impl IntoIterator<Item = StandingKey>) {
        let standing: Vec<_> = standing.into_iter().collect();
        for StandingKey { key, .. } in standing.iter().filter(|standing| standing.tainted_at.is_some()) {
            self.parts.keys.bar(key.purpose, &key.jwk.kid);
        }
        self.known_keys.learn(standing);
    }

    /// What was tainted before this process began, in the store and on this broker's disk: before anything is signed.
    pub(super) async fn recall_taints(&self) -> Result<(), String> {
        for taint in self.parts.keys.taints()? {
            self.take_in([taint.into()]);
        }
        self.keep_taints().await.map_err(|why| why.to_string())
    }

    /// Unites the taints in the store with those that are known here. Nothing is signed any more with what is tainted when this returns.
    pub(super) async fn keep_taints(&self) -> Result<(), Error> {
        let recorded = self.parts.ledger.taints().await.map_err(|why| in_doubt(&why))?;
        self.take_in(recorded.iter().cloned().map(StandingKey::from));
        let is_recorded = |taint: &Taint| recorded.iter().any(|other| other.key.jwk.kid == taint.key.jwk.kid);
        let known = Use::ALL.into_iter().flat_map(|purpose| self.known_keys.all(purpose));
        for taint in known.filter_map(|key| key.taint()).filter(|taint| !is_recorded(taint)) {
            tracing::warn!(
                kid = taint.key.jwk.kid,
                "the store does not say that this key is tainted: it is told again"
            );
            self.parts.ledger.taint(&taint).await.map_err(|why| in_doubt(&why))?;
        }
        recorded.iter().try_for_each(|taint| self.parts.keys.keep_taint(taint)).map_err(|why| unmade(&why))
    }

    /// Where a key of ours is tainted, another one takes its place. To be called by whoever turns the keys.
    pub(super) async fn reissue(&self, purpose: Use, now: Time) -> Result<(), Error> {
        let keys = &self.parts.keys;
        // Whatever a rotation has left undone comes first: the files of the keys are in each other's places until then.
        self.retire_replaced(purpose, now).await?;
        let was_prepared = self.discard_tainted(purpose)?;
        let is_barred = keys.is_barred(purpose);
        if was_prepared || is_barred {
            keys.prepare(purpose, now).map_err(|why| unmade(&why))?;
            if let Some(next) = keys.next(purpose, now) {
                let next = self.announce(next).await.map_err(|why| in_doubt(&why))?;
                if is_barred {
                    self.activate(purpose, &next, now).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether one of the tainted keys was prepared.
    pub(super) fn discard_tainted(&self, purpose: Use) -> Result<bool, Error> {
        let (was_prepared, old) = self.parts.keys.discard_tainted(purpose).map_err(|why| unmade(&why))?;
        for kid in &old {
            self.certificates.forget(kid);
        }
        Ok(was_prepared)
    }
}
