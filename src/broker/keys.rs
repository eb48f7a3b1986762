//! Public keys: ours and those of the other brokers on the store.

use chrono::TimeDelta;
use jsonwebtoken::Algorithm;
use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, atomic::Ordering},
};

use super::Broker;
use crate::{
    clock::Time,
    error::{Error, Input},
    jose::VerifyingKey,
    lease::{InDoubt, PublishedKey, Use},
    task::CredentialType,
    verify::Token,
};

/// From when on every verifier knows `own`: with it the first set of its purpose begins (`None`), else whoever fetched that set just
/// before it was published may keep it for `max_age` seconds. Of two that came at once, the one with the lower id is the first.
fn known_from(own: &PublishedKey, all: &[PublishedKey], max_age: u32) -> Option<Time> {
    let place = |key: &PublishedKey| (key.published_at, key.jwk.kid.clone());
    let earlier = |other: &&PublishedKey| other.purpose == own.purpose && place(other) < place(own);
    all.iter().find(earlier).map(|_| own.published_at + TimeDelta::seconds(i64::from(max_age)))
}

/// Every key that is ours or was ever found in the store. A key stays what it is and stays published, so this only grows: a
/// store in doubt takes no key from anybody.
#[derive(Default)]
pub(super) struct KnownKeys(RwLock<HashMap<(Use, String), (PublishedKey, VerifyingKey)>>);

impl KnownKeys {
    fn get(&self, purpose: Use, kid: &str) -> Option<VerifyingKey> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(purpose, kid.to_owned())).map(|(_, key)| key.clone())
    }

    fn all(&self, purpose: Use) -> Vec<PublishedKey> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys: Vec<_> =
            known.values().map(|(key, _)| key).filter(|key| key.purpose == purpose).cloned().collect();
        keys.sort_by(|a, b| a.jwk.kid.cmp(&b.jwk.kid));
        keys
    }

    fn learn(&self, keys: impl IntoIterator<Item = PublishedKey>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for published in keys {
            let jwk = serde_json::to_value(&published.jwk).ok();
            if let Some(key) = jwk.and_then(|jwk| VerifyingKey::from_jwk(&jwk, Algorithm::ES256).ok()) {
                known.insert((published.purpose, published.jwk.kid.clone()), (published, key));
            }
        }
    }
}

impl Broker {
    /// The public keys of one kind, of all brokers on the store; where the store does not answer, those that were known before.
    pub async fn public_keys(&self, purpose: Use) -> Vec<PublishedKey> {
        self.known_keys.learn(self.parts.keys.public(self.now()));
        match self.parts.ledger.keys().await {
            Ok(published) => self.known_keys.learn(published),
            Err(why) => tracing::error!(%why, "the store is in doubt: publishing the keys that were known before"),
        }
        self.known_keys.all(purpose)
    }

    /// Publishes our public keys, and finds out from when on they may sign: to be done before anything is signed.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn publish_keys(&self) -> Result<(), InDoubt> {
        let mut ours = Vec::new();
        for key in self.parts.keys.public(self.now()) {
            ours.push(self.parts.ledger.publish(&key).await?);
        }
        let all = self.parts.ledger.keys().await?;
        let known = ours.iter().filter_map(|own| known_from(own, &all, self.parts.jwks_max_age)).max();
        self.signs_from.store(known.unwrap_or_default().timestamp_millis(), Ordering::Release);
        Ok(())
    }

    /// How long a verifier may keep the keys, in seconds.
    #[must_use]
    pub fn jwks_max_age(&self) -> u32 {
        self.parts.jwks_max_age
    }

    /// Whether every verifier can know our keys by now.
    pub(super) fn is_known(&self, now: Time) -> bool {
        now.timestamp_millis() >= self.signs_from.load(Ordering::Acquire)
    }

    /// Before anything is minted: what nobody can verify is not signed.
    pub(super) fn may_sign(&self, now: Time) -> Result<(), Error> {
        if self.is_known(now) { Ok(()) } else { Err(Error::Unavailable(Input::Keys)) }
    }

    /// The key that a token claims to be signed with, looked for among the keys of its form alone.
    pub(super) async fn verifying_key(&self, token: &Token<'_>) -> Option<VerifyingKey> {
        let purpose = match token.form() {
            CredentialType::AccessToken => Use::AccessToken,
            CredentialType::Jwt => Use::JwtSvid,
        };
        if let Some(key) = self.known_keys.get(purpose, token.kid()) {
            return Some(key);
        }
        self.public_keys(purpose).await;
        self.known_keys.get(purpose, token.kid())
    }
}
