//! The public signing keys of all brokers, published through the store.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use std::fmt;

use super::{
    super::{Claim, InDoubt, Index, Key},
    Ledger, kept,
};
use crate::{
    clock::Time,
    jose::{KeyNumbers, PublicJwk},
    task::CredentialType,
};

/// How many keys are read at a time.
const PAGE: usize = 256;
/// How long it is kept that a key was shown to be in use: as long as the longest that it may have signed lives.
const SHOWN: TimeDelta = TimeDelta::hours(24);

/// What a public key is for; one kind is never accepted as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = KeyUse)]
pub enum Use {
    /// Access tokens: stands in `/jwks`.
    AccessToken,
    /// JWT-SVIDs: stands in `/spiffe/bundle`.
    JwtSvid,
    /// States of the revocation feed: stands in `/v1/revocations/jwks`.
    Revocations,
    /// What receivers of Shared Signals and of webhooks are told: stands in `/ssf/v1/jwks`.
    Signals,
    /// Status lists: stands in `/jwks`.
    StatusList,
    /// X.509-SVIDs: an authority, which stands in `/spiffe/bundle` and `/pki/ca.pem`.
    X509Svid,
}

impl Use {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::AccessToken, Self::JwtSvid, Self::Revocations, Self::Signals, Self::StatusList, Self::X509Svid];
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AccessToken => "access_token",
            Self::JwtSvid => "jwt_svid",
            Self::Revocations => "revocations",
            Self::Signals => "signals",
            Self::StatusList => "status_list",
            Self::X509Svid => "x509_svid",
        })
    }
}

impl From<CredentialType> for Use {
    fn from(form: CredentialType) -> Self {
        match form {
            CredentialType::AccessToken => Self::AccessToken,
            CredentialType::Jwt => Self::JwtSvid,
        }
    }
}

/// A broker's public signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedKey {
    /// What it is for.
    pub purpose: Use,
    /// The key.
    pub jwk: PublicJwk,
    /// Of an authority: its certificate, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Of an authority that is none by itself: who vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouched: Option<Vouched>,
    /// When it was first published; nobody can know of it before.
    pub published_at: Time,
}

/// Who vouches for an authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vouched {
    /// The name of whoever signed its certificate.
    pub by: String,
    /// The id of their key.
    pub key: String,
    /// What verifiers have to trust: the root, and others that came with it.
    pub roots: Vec<TrustAnchor>,
}

/// A certificate that verifiers trust by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustAnchor {
    /// Its key.
    pub numbers: KeyNumbers,
    /// The certificate, in base64.
    pub certificate: String,
}

impl PublishedKey {
    /// What verifiers have to trust for what an authority signs; nothing, of a key that is none.
    #[must_use]
    pub fn anchors(&self) -> Vec<TrustAnchor> {
        match (&self.vouched, &self.certificate) {
            (Some(vouched), _) => vouched.roots.clone(),
            (None, Some(certificate)) => {
                vec![TrustAnchor { numbers: self.jwk.numbers.clone(), certificate: certificate.clone() }]
            }
            (None, None) => Vec::new(),
        }
    }
}

/// The record that a signing key signs no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retirement {
    /// When it signed for the last time, or somewhat later.
    pub retired_at: Time,
    /// Until when it stays published: nothing that it signed is valid after that.
    pub published_until: Time,
}

/// The record that nothing is to be believed because a signing key says so: for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taint {
    /// The key, whole: who finds this record needs no other to know which it is.
    pub key: PublishedKey,
    /// When that was first recorded, or somewhat earlier.
    pub tainted_at: Time,
}

/// The record that a signing key is in use.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InUse {
    at: Time,
}

/// A public key as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingKey {
    /// The key.
    pub key: PublishedKey,
    /// Its end, once it has one.
    pub retirement: Option<Retirement>,
    /// Since when it is tainted, if it is.
    pub tainted_at: Option<Time>,
}

impl StandingKey {
    /// A key that has just been published.
    #[must_use]
    pub fn new(key: PublishedKey) -> Self {
        Self { key, retirement: None, tainted_at: None }
    }

    /// Whether verifiers are to be told of it still.
    #[must_use]
    pub fn is_published(&self, now: Time) -> bool {
        self.tainted_at.is_none() && self.retirement.is_none_or(|retirement| now < retirement.published_until)
    }

    /// The record of its taint, if it is tainted.
    #[must_use]
    pub fn taint(&self) -> Option<Taint> {
        self.tainted_at.map(|tainted_at| Taint { key: self.key.clone(), tainted_at })
    }
}

impl From<Taint> for StandingKey {
    fn from(Taint { key, tainted_at }: Taint) -> Self {
        Self { key, retirement: None, tainted_at: Some(tainted_at) }
    }
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
        // Keys outlive generations: what they sign says its own.
        let standing = self.0.sealer.open_of_any_generation::<PublishedKey>(&claim.key, &standing)?;
        let same = standing.jwk == published.jwk
            && standing.certificate == published.certificate
            && standing.vouched == published.vouched;
        if same && standing.purpose == published.purpose {
            Ok(standing)
        } else {
            Err(InDoubt("the store holds another key under this key's id".into()))
        }
    }

    /// Records that a key signs no more, for good, and yields the record that stands.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn retire(&self, kid: &str, retirement: Retirement) -> Result<Retirement, InDoubt> {
        let key = Key::Retirement(kid.to_owned());
        let record = self.0.sealer.seal(&key, &retirement)?;
        let claim = Claim { key, record, keep_until: None, index: None };
        let standing = self.0.store.claim(&claim).await?;
        self.0.sealer.open_of_any_generation(&claim.key, &standing)
    }

    /// Records that a key is tainted, for good, and yields the record that stands.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn taint(&self, taint: &Taint) -> Result<Taint, InDoubt> {
        let kid = taint.key.jwk.kid.clone();
        let key = Key::Taint(kid.clone());
        let record = self.0.sealer.seal(&key, taint)?;
        let claim = Claim { key, record, keep_until: None, index: Some((Index::Taints, kid)) };
        let standing = self.0.store.claim(&claim).await?;
        self.0.sealer.open_of_any_generation(&claim.key, &standing)
    }

    /// Every taint.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn taints(&self) -> Result<Vec<Taint>, InDoubt> {
        let mut taints = Vec::new();
        for page in self.names(Index::Taints).await?.chunks(PAGE) {
            let keys: Vec<Key> = page.iter().cloned().map(Key::Taint).collect();
            let records = self.0.store.read(&keys).await?;
            let open = |(key, record)| self.0.sealer.open_of_any_generation(key, record);
            let found = keys.iter().zip(&records).filter_map(|(key, record)| Some((key, record.as_deref()?)));
            taints.extend(found.map(open).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(taints)
    }

    /// Every key that a broker ever published, those included that are not published any more, and every key that is tainted.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn keys(&self) -> Result<Vec<StandingKey>, InDoubt> {
        let mut published = Vec::new();
        for page in self.names(Index::Keys).await?.chunks(PAGE) {
            let both = |kid: &String| [Key::SigningKey(kid.clone()), Key::Retirement(kid.clone())];
            let keys: Vec<Key> = page.iter().flat_map(both).collect();
            let records = self.0.store.read(&keys).await?;
            for (keys, records) in keys.chunks_exact(2).zip(records.chunks_exact(2)) {
                // A name without a record is a key whose broker has not come to write it.
                if let ([key, end], [Some(record), retirement]) = (keys, records) {
                    let retirement = retirement
                        .as_ref()
                        .map(|record| self.0.sealer.open_of_any_generation(end, record))
                        .transpose()?;
                    let key = self.0.sealer.open_of_any_generation(key, record)?;
                    published.push(StandingKey { key, retirement, tainted_at: None });
                }
            }
        }
        // Looked at last: what was tainted by now is told as that.
        for taint in self.taints().await? {
            match published.iter_mut().find(|standing| standing.key.jwk.kid == taint.key.jwk.kid) {
                Some(standing) => standing.tainted_at = Some(taint.tainted_at),
                None => published.push(taint.into()),
            }
        }
        Ok(published)
    }

    /// Shows that these keys are in use, for a day.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn show(&self, kids: &[String], now: Time) -> Result<(), InDoubt> {
        let until = kept(now, SHOWN);
        let record = |kid: &String| {
            let key = Key::Presence(kid.clone());
            let record = self.0.sealer.seal(&key, &InUse { at: now })?;
            Ok((key, record, until))
        };
        let records = kids.iter().map(record).collect::<Result<Vec<_>, InDoubt>>()?;
        self.0.store.post(&records).await
    }

    /// Which of these keys were shown to be in use.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn shown(&self, kids: &[String]) -> Result<Vec<bool>, InDoubt> {
        let mut shown = Vec::new();
        for page in kids.chunks(PAGE) {
            let keys: Vec<Key> = page.iter().cloned().map(Key::Presence).collect();
            for (key, record) in keys.iter().zip(self.0.store.read(&keys).await?) {
                let record =
                    record.map(|record| self.0.sealer.open_of_any_generation::<InUse>(key, &record)).transpose()?;
                shown.push(record.is_some());
            }
        }
        Ok(shown)
    }

    async fn names(&self, index: Index) -> Result<Vec<String>, InDoubt> {
        let mut names = Vec::<String>::new();
        loop {
            let page = self.0.store.list(index, names.last().map(String::as_str), PAGE).await?;
            let last_page = page.len() < PAGE;
            names.extend(page);
            if last_page {
                return Ok(names);
            }
        }
    }
}
