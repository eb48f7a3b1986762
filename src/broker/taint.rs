//! Taint: from now on nothing is believed because a signing key says so, on any broker, and nothing is signed with it.
//!
//! Durable intent in the audit log → kept on this broker's own disk, and barred here → on record in the store, where every broker looks
//! every second and verification at once → in the log of notices, and so in the feed of every broker: whoever follows it believes
//! the key no more, whichever set of keys they still hold → if it is ours, another one takes its place (of an imported one, the next
//! that was imported, if there is one) → outcome in the audit log → answer.
//!
//! The next key does not wait until every verifier can know it, as in a rotation: whoever keeps an older set of keys refuses what is
//! new until they fetch another, and without it there would be nothing at all. Each step can be done again, so whatever fails or crashes is
//! taken up at the next look, or at the next start; until then the broker signs nothing.
//!
//! A taint is never taken back. Every broker keeps those that it knows of on its disk, and puts them on record again in a store
//! that has lost them.

use chrono::TimeDelta;

use super::{Broker, Call, ListedKey, Request, in_doubt, rotate::unmade};
use crate::{
    audit::{Actor, Entry, Event},
    clock::Time,
    error::{Error, Input, Sought},
    lease::{StandingKey, Taint, Use},
    notice::{Notice, Subject, SubjectId},
    party::Act,
};

/// For how long verifiers are told of a tainted key. Whoever stole it can write any end into what they sign, so this is not about the ends
/// of tokens: after it, no verifier holds a set of keys that has this one, not even where it could fetch no other for a day.
const TOLD: TimeDelta = TimeDelta::hours(48);

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
        let StandingKey { key, tainted_at, .. } = self.known_keys.named(kid).ok_or(Error::NotFound(Sought::Key))?;
        let (kid, purpose) = (kid.to_owned(), key.purpose);
        let by =
            if let Actor::Operator { name } = &actor { name.clone() } else { self.revocations.broker().to_string() };
        let line = |event| Entry { time: now, request: id.clone(), actor: actor.clone(), task: None, event };
        let requested =
            Event::KeyTaintRequested { kid: kid.clone(), purpose: purpose.to_string(), reason: reason.clone() };
        let intent = self.intend(vec![line(requested)]).await?;
        let taint = Taint { key, tainted_at: tainted_at.unwrap_or(now) };
        let kept = self.parts.keys.keep_taint(&taint).map_err(|why| unmade(&why));
        self.take_in([taint.clone().into()]);
        let told = self.tell_taint(&taint, reason, by).await;
        // A disk that takes nothing is no reason to believe the key.
        let recorded = self.put_on_record(&taint, told.as_ref().ok()).await.inspect_err(|_| self.replay.due());
        let (taint, ..) = (recorded?, kept?, told?);
        self.take_in([taint.clone().into()]);
        {
            let _turn = self.turning_keys.lock().await;
            self.reissue(purpose, self.now()).await?;
            if self.imported_kids().contains(&kid) {
                self.turn_imported(self.now()).await?;
            }
        }
        match purpose {
            Use::X509Svid => self.publish_crls().await,
            // What followers are told is signed with the next one.
            Use::Revocations => self.push_now(None).await,
            Use::AccessToken | Use::JwtSvid | Use::Signals | Use::StatusList => {}
        }
        let (Taint { tainted_at, .. }, settles) = (taint, intent.span());
        let tainted = Event::KeyTainted { kid: kid.clone(), purpose: purpose.to_string(), tainted_at, settles };
        self.record(vec![line(tainted)]).await?;
        intent.settled();
        self.listed(now).into_iter().find(|listed| listed.key.jwk.kid == kid).ok_or(Error::NotFound(Sought::Key))
    }

    /// In the journal, and told to whoever follows this broker.
    async fn tell_taint(&self, taint: &Taint, reason: Option<String>, by: String) -> Result<Notice, Error> {
        let Taint { key, tainted_at: at } = taint;
        let (subject, broker) = (Subject::Key(key.jwk.kid.clone()), self.revocations.broker().to_string());
        let notice = Notice { subject, at: *at, until: *at + TOLD, reason, by, broker };
        let notice = self.revocations.record(notice).await.map_err(|why| {
            tracing::error!(%why, "a tainted key is not in the journal");
            Error::Unavailable(Input::Journal)
        })?;
        self.revocations.tell(&notice);
        Ok(notice)
    }

    /// In the store, and told to the other brokers.
    async fn put_on_record(&self, taint: &Taint, notice: Option<&Notice>) -> Result<Taint, Error> {
        let taint = self.parts.ledger.taint(taint).await.map_err(|why| in_doubt(&why))?;
        if let Some(notice) = notice.filter(|notice| !self.revocations.is_logged(notice)) {
            self.parts.ledger.log_notice(notice).await.map_err(|why| in_doubt(&why))?;
            self.revocations.logged(notice);
        }
        // A store that is not the one that was opened forgets what it was just told: recorded there is not recorded.
        if self.watch().await { Ok(taint) } else { Err(Error::Unavailable(Input::Store)) }
    }

    /// Notes keys as they stand in the store. Nothing is signed any more with those that are tainted when this returns.
    pub(super) fn take_in(&self, standing: impl IntoIterator<Item = StandingKey>) {
        let standing: Vec<_> = standing.into_iter().collect();
        for StandingKey { key, .. } in standing.iter().filter(|standing| standing.tainted_at.is_some()) {
            self.parts.keys.bar(key.purpose, &key.jwk.kid);
        }
        self.known_keys.learn(standing);
    }

    /// Whether this key is known to be tainted, whatever it is for.
    pub(super) fn knows_taint(&self, kid: &str) -> bool {
        self.known_keys.named(kid).is_some_and(|standing| standing.tainted_at.is_some())
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
        recorded.iter().try_for_each(|taint| self.parts.keys.keep_taint(taint)).map_err(|why| unmade(&why))?;
        // Whoever recorded them may not have come to tell anybody.
        let untold = |taint: &&Taint| {
            let subject = SubjectId::Key(taint.key.jwk.kid.clone());
            taint.tainted_at + TOLD > self.now() && self.revocations.get(&subject).is_none()
        };
        for taint in recorded.iter().filter(untold) {
            self.tell_taint(taint, None, self.revocations.broker().to_string()).await?;
        }
        Ok(())
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
