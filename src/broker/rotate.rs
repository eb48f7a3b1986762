//! Rotation of this broker's signing keys: no verifier meets a token whose key it cannot know, at either end of a key's life.
//!
//! Prepared: made, and published. → Once every verifier can know it (`jwks_max_age`): on record, and it signs. → Of the old one:
//! its end in the store, then its file destroyed (an authority's is kept for its revocation lists); its public half stays published until the last that it signed has expired.
//! Each step can be done again, so whatever fails or crashes is taken up at the next look.

use chrono::TimeDelta;
use std::sync::{Arc, atomic::Ordering};

use super::{Broker, Call, Caller, Presented, Request, in_doubt, keys::known_by_all, looked, wrong_role};
use crate::{
    audit::{Actor, Entry, Event},
    clock::Time,
    credential::{Imported, ImportedKey, Replaced},
    error::{Error, Input},
    lease::{PublishedKey, Retirement, StandingKey, Use},
    party::{Act, Operator},
};

/// How much longer than the last credential its key stays published: verifiers allow clocks to differ by as much.
const GRACE: TimeDelta = TimeDelta::seconds(60);

/// How long after a rotation that could not begin the next one does, unless an operator asks.
const AGAIN: TimeDelta = TimeDelta::seconds(60);

/// How long before its own end an authority is replaced, whatever the configuration says: longer than anything that it signs lives, and
/// than any verifier keeps the bundle.
const ENDS_SOON: TimeDelta = TimeDelta::hours(48);

/// How long keys are kept, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct KeyLife {
    /// By a verifier that has fetched the public ones.
    pub jwks_max_age: u32,
    /// By the broker, before it prepares the next one by itself.
    pub rotate_every: u32,
}

/// What a key is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Ours: published, and to sign from then on.
    Prepared {
        /// From when on.
        signs_from: Time,
    },
    /// Ours: what we sign with.
    Signing,
    /// Another broker's: it signs, or will.
    Published,
    /// It signs no more.
    Retired(Retirement),
    /// Nothing that it signed is to be believed.
    Tainted {
        /// Since when.
        tainted_at: Time,
    },
}

/// A public key, as an operator sees it.
#[derive(Debug)]
pub struct ListedKey {
    /// The key.
    pub key: PublishedKey,
    /// What it is doing.
    pub state: KeyState,
    /// Whether the answering broker holds its private half.
    pub own: bool,
}

impl Broker {
    /// The keys of all brokers that verifiers are told of, and those that are tainted, by use and oldest first, for an operator.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`] for anybody else, [`Error::Unavailable`].
    pub async fn list_keys(&self, request: Request) -> Result<Vec<ListedKey>, Error> {
        let now = self.now();
        let Request { presented, id } = request;
        let call = Call { request: &id, task: None, now };
        let operator = self.operator(presented, &call).await?;
        self.allow(&operator, Act::ListKeys, &call).await?;
        self.note(&operator, &call, looked("keys")).await?;
        self.take_in(self.parts.ledger.keys().await.map_err(|why| in_doubt(&why))?);
        Ok(self.listed(now))
    }

    /// Prepares the next key of this broker for every use, where none is prepared, and yields this broker's keys. Idempotent until
    /// those keys sign.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`] for whoever is no admin, [`Error::Unavailable`]: call again.
    pub async fn rotate_keys(&self, request: Request, reason: Option<String>) -> Result<Vec<ListedKey>, Error> {
        let now = self.now();
        let Request { presented, id } = request;
        let call = Call { request: &id, task: None, now };
        let actor = self.admin(presented, Act::RotateKeys, &call).await?;
        let _turn = self.turning_keys.lock().await;
        self.prepare_keys(&Use::ALL, &actor, &id, reason).await?;
        Ok(self.listed(now).into_iter().filter(|key| key.own).collect())
    }

    async fn operator(&self, presented: Presented, call: &Call<'_>) -> Result<Arc<Operator>, Error> {
        match self.identify(presented, call).await? {
            Caller::Operator(operator) => Ok(operator),
            other @ (Caller::Workload(_) | Caller::Owner(_) | Caller::Service(_)) => {
                let error = wrong_role("only an operator sees, rotates and taints keys");
                Err(self.turn_down(&other, "keys", call, error))
            }
        }
    }

    /// An operator who may do this to keys, and finds the store as it was opened.
    pub(super) async fn admin(&self, presented: Presented, act: Act, call: &Call<'_>) -> Result<Actor, Error> {
        let operator = self.operator(presented, call).await?;
        self.allow(&operator, act, call).await?;
        if !self.vouched.load(Ordering::Acquire) {
            return Err(Error::Unavailable(Input::Store));
        }
        Ok(Actor::Operator { name: operator.name().to_owned() })
    }

    /// Takes every rotation as far as it can go by now, begins one where a key is old, and replaces what was tainted on another broker. To
    /// be called every second or so.
    pub async fn turn_keys(&self) {
        if !self.vouched.load(Ordering::Acquire) {
            return;
        }
        if let Err(why) = self.keep_taints().await {
            tracing::warn!(%why, "what was tainted on other brokers is not known for sure");
        }
        if let Err(why) = self.look_around(self.now()).await {
            tracing::warn!(%why, "which brokers are there is not known for sure");
        }
        let mut failed_at = self.turning_keys.lock().await;
        let now = self.now();
        let begins = failed_at.is_none_or(|at| !(TimeDelta::zero()..AGAIN).contains(&(now - at)));
        for purpose in Use::ALL {
            let mut turned = self.turn(purpose).await;
            if turned.is_ok() && begins && self.is_due(purpose, now) {
                turned = self.prepare_keys(&[purpose], &Actor::Broker, "", None).await;
                // On record each time, so not every second.
                *failed_at = turned.is_err().then_some(now).or(*failed_at);
            }
            if let Err(why) = turned {
                tracing::warn!(%why, ?purpose, "a rotation of keys waits");
            }
        }
        if let Err(why) = self.turn_imported(now).await {
            tracing::warn!(%why, "an imported key waits");
        }
    }

    async fn turn(&self, purpose: Use) -> Result<(), Error> {
        let now = self.now();
        self.reissue(purpose, now).await?;
        self.join_again(purpose, now).await?;
        self.forget_old(purpose, now)?;
        if let Some(next) = self.parts.keys.next(purpose, now) {
            let next = self.announce(next).await.map_err(|why| in_doubt(&why))?;
            if now >= self.known_by_all(&next) {
                self.activate(purpose, &next, now).await?;
            }
        }
        Ok(())
    }

    /// On record → made → published.
    async fn prepare_keys(
        &self,
        purposes: &[Use],
        actor: &Actor,
        request: &str,
        reason: Option<String>,
    ) -> Result<(), Error> {
        let now = self.now();
        let event = Event::KeyRotationRequested { purposes: purposes.iter().map(Use::to_string).collect(), reason };
        self.record(vec![Entry { time: now, request: request.to_owned(), actor: actor.clone(), task: None, event }])
            .await?;
        for purpose in purposes {
            self.retire_replaced(*purpose, now).await?;
            self.parts.keys.prepare(*purpose, now).map_err(|why| unmade(&why))?;
            if let Some(next) = self.parts.keys.next(*purpose, now) {
                self.announce(next).await.map_err(|why| in_doubt(&why))?;
            }
        }
        Ok(())
    }

    /// On record → the next key signs → the end of the old one.
    pub(super) async fn activate(&self, purpose: Use, next: &PublishedKey, now: Time) -> Result<(), Error> {
        let replaces = self.parts.keys.current(purpose, now).jwk.kid;
        let (purpose_name, kid) = (purpose.to_string(), next.jwk.kid.clone());
        tracing::info!(kid, replaces, purpose = purpose_name, "the next key signs");
        let event = Event::KeyActivated { purpose: purpose_name, kid, replaces };
        let request = String::new();
        self.record(vec![Entry { time: now, request, actor: Actor::Broker, task: None, event }]).await?;
        self.parts.keys.activate(purpose);
        self.retire_replaced(purpose, now).await
    }

    /// Destroys keys that were kept for their revocation lists, once nothing that they signed is valid.
    fn forget_old(&self, purpose: Use, now: Time) -> Result<(), Error> {
        for kid in self.parts.keys.old(purpose) {
            if self.known_keys.published_until(purpose, &kid).is_some_and(|until| until <= now) {
                self.parts.keys.forget_old(purpose, &kid).map_err(|why| unmade(&why))?;
                self.certificates.forget(&kid);
            }
        }
        Ok(())
    }

    /// The end of a key that was replaced, if there is one: in the store first, for a file that is gone tells nobody what it signed.
    pub(super) async fn retire_replaced(&self, purpose: Use, now: Time) -> Result<(), Error> {
        let Some(replaced) = self.parts.keys.replaced(purpose) else { return Ok(()) };
        self.retire(purpose, replaced, now).await?;
        self.parts.keys.settle(purpose).map_err(|why| unmade(&why))
    }

    pub(super) async fn retire(&self, purpose: Use, replaced: Replaced, now: Time) -> Result<(), Error> {
        let Replaced { kid, last_expiry } = replaced;
        let retirement = Retirement { retired_at: now, published_until: last_expiry.max(now) + GRACE };
        let retirement = self.parts.ledger.retire(&kid, retirement).await.map_err(|why| in_doubt(&why))?;
        self.known_keys.retire(purpose, &kid, retirement);
        Ok(())
    }

    fn known_by_all(&self, key: &PublishedKey) -> Time {
        known_by_all(key, self.parts.key_life.jwks_max_age)
    }

    /// Whether the key that signs is old, was retired by others or is certified by somebody else than is configured, and none is prepared.
    fn is_due(&self, purpose: Use, now: Time) -> bool {
        let current = self.parts.keys.current(purpose, now);
        let life = TimeDelta::seconds(i64::from(self.parts.key_life.rotate_every));
        let published_at = self.known_keys.published_at(purpose, &current.jwk.kid);
        let is_old = published_at.is_some_and(|published_at| now - published_at >= life);
        let ends = self.parts.keys.ends_at(purpose).is_some_and(|end| end - now <= ENDS_SOON)
            && self.parts.keys.could_outlast(purpose);
        let is_other = self.parts.keys.is_of_another_upstream(purpose);
        let is_retired = self.known_keys.published_until(purpose, &current.jwk.kid).is_some();
        (is_old || ends || is_other || is_retired) && self.parts.keys.next(purpose, now).is_none()
    }

    pub(super) fn listed(&self, now: Time) -> Vec<ListedKey> {
        let mut keys = Vec::new();
        for purpose in Use::ALL {
            let signing = self.parts.keys.current(purpose, now).jwk.kid;
            let next = self.parts.keys.next(purpose, now).map(|key| key.jwk.kid);
            let old = self.parts.keys.old(purpose);
            let imported: Vec<_> = self.parts.keys.imported().iter().flat_map(Imported::all).collect();
            let shown = |key: &StandingKey| key.is_published(now) || key.tainted_at.is_some();
            for standing in self.known_keys.all(purpose).into_iter().filter(shown) {
                let StandingKey { key, retirement, tainted_at } = standing;
                let (signs, is_next) = (key.jwk.kid == signing, next.as_ref() == Some(&key.jwk.kid));
                let imported = imported.iter().find(|imported| imported.kid == key.jwk.kid);
                let state = match (tainted_at, retirement, imported) {
                    (Some(tainted_at), ..) => KeyState::Tainted { tainted_at },
                    (None, Some(retirement), _) => KeyState::Retired(retirement),
                    (None, None, Some(imported)) => imported_state(imported, self.known_by_all(&key), now),
                    (None, None, None) if signs => KeyState::Signing,
                    (None, None, None) if is_next => KeyState::Prepared { signs_from: self.known_by_all(&key) },
                    (None, None, None) => KeyState::Published,
                };
                let is_old = old.contains(&key.jwk.kid);
                keys.push(ListedKey { key, state, own: signs || is_next || is_old || imported.is_some() });
            }
        }
        keys
    }
}

fn imported_state(key: &ImportedKey, known_by_all: Time, now: Time) -> KeyState {
    let signs_from = key.signs_from.unwrap_or(known_by_all);
    if key.is_next || now < signs_from { KeyState::Prepared { signs_from } } else { KeyState::Signing }
}

/// The key could not be made or put in its place: a matter of the broker's own disk.
pub(super) fn unmade(why: &str) -> Error {
    tracing::error!(why, "a signing key cannot be kept");
    Error::Unavailable(Input::Keys)
}
