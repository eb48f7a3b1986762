//! The public signing keys of all brokers, published through the store.

use serde::{Deserialize, Serialize};

use super::{
    super::{Claim, InDoubt, Index, Key},
    Ledger,
};
use crate::{clock::Time, jose::PublicJwk};

/// How many keys are read at a time.
const PAGE: usize = 256;

/// What a public key is for; one kind is never accepted as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Access tokens: stands in `/jwks`.
    AccessToken,
    /// JWT-SVIDs: stands in `/spiffe/bundle`.
    JwtSvid,
    /// Status lists: stands in `/jwks`.
    StatusList,
}

/// A broker's public signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedKey {
    /// What it is for.
    pub purpose: Use,
    /// The key.
    pub jwk: PublicJwk,
    /// When it was first published; nobody can know of it before.
    pub published_at: Time,
}

impl Ledger {
    /// Publishes a public key, for good, and yields it as it was first published.
    ///
    /// # Errors
    /// When the store is in doubt, or holds another key under the same id.
    pub async fn publish(&self, published: &PublishedKey) -> Result<PublishedKey, InDoubt> {
        let kid = published.jwk.kid.clone();
        let key = Key::SigningKey(kid.clone());
        let record = self.0.sealer.seal(&key, published)?;
        let claim = Claim { key, record, keep_until: None, index: Some((Index::Keys, kid)) };
        let standing = self.0.store.claim(&claim).await?;
        let standing = self.0.sealer.open::<PublishedKey>(&claim.key, &standing)?;
        if standing.jwk == published.jwk && standing.purpose == published.purpose {
            Ok(standing)
        } else {
            Err(InDoubt("the store holds another key under this key's id".into()))
        }
    }

    /// The keys of all brokers.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn keys(&self) -> Result<Vec<PublishedKey>, InDoubt> {
        let (mut published, mut before) = (Vec::new(), None::<String>);
        loop {
            let names = self.0.store.list(Index::Keys, before.as_deref(), PAGE).await?;
            before = names.last().cloned();
            let last_page = names.len() < PAGE;
            let keys: Vec<Key> = names.into_iter().map(Key::SigningKey).collect();
            for (key, record) in keys.iter().zip(self.0.store.read(&keys).await?) {
                // A name without a record is a key whose broker has not come to write it.
                if let Some(record) = record {
                    published.push(self.0.sealer.open(key, &record)?);
                }
            }
            if last_page {
                return Ok(published);
            }
        }
    }
}
