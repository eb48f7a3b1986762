//! Public keys: ours and those of the other brokers on the store.

use jsonwebtoken::Algorithm;
use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use super::Broker;
use crate::{
    jose::VerifyingKey,
    lease::{InDoubt, PublishedKey, Use},
    task::CredentialType,
    verify::Token,
};

/// Keys that were found in the store before. A key stays what it is, so a known one is not asked for again.
#[derive(Default)]
pub(super) struct KnownKeys(RwLock<HashMap<(Use, String), VerifyingKey>>);

impl KnownKeys {
    fn get(&self, purpose: Use, kid: &str) -> Option<VerifyingKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&(purpose, kid.to_owned())).cloned()
    }

    fn learn(&self, keys: Vec<PublishedKey>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for PublishedKey { purpose, jwk } in keys {
            let key =
                serde_json::to_value(&jwk).ok().and_then(|jwk| VerifyingKey::from_jwk(&jwk, Algorithm::ES256).ok());
            if let Some(key) = key {
                known.insert((purpose, jwk.kid), key);
            }
        }
    }
}

impl Broker {
    /// The public keys of one kind, of all brokers on the store. Where the store does not answer, at least our own: keys are
    /// public and do not expire by the hour, so an old set denies nothing that it should not.
    pub async fn public_keys(&self, purpose: Use) -> Vec<PublishedKey> {
        let mut keys: Vec<_> = self.parts.keys.public().into();
        match self.parts.ledger.keys().await {
            Ok(published) => keys.extend(published),
            Err(why) => tracing::error!(%why, "the store is in doubt: publishing only our own keys"),
        }
        keys.retain(|key| key.purpose == purpose);
        keys.sort_by(|a, b| a.jwk.kid.cmp(&b.jwk.kid));
        keys.dedup();
        keys
    }

    /// Publishes our public keys; to be done before anything is signed.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn publish_keys(&self) -> Result<(), InDoubt> {
        for key in self.parts.keys.public() {
            self.parts.ledger.publish(&key).await?;
        }
        Ok(())
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
        self.known_keys.learn(self.public_keys(purpose).await);
        self.known_keys.get(purpose, token.kid())
    }
}
