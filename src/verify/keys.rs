//! The broker's public keys. Each kind has a set of its own, and one kind is never accepted as another.

use jsonwebtoken::Algorithm;
use std::collections::HashMap;

use super::{Authorities, Refused};
use crate::{
    claims::Purpose,
    jose::{VerifyingKey, strict_json},
    task::CredentialType,
};

/// Public keys of one kind, by key id.
#[derive(Debug, Clone, Default)]
pub struct KeySet(HashMap<String, VerifyingKey>);

impl KeySet {
    /// Reads `/jwks`: the keys of access tokens, and not those of status lists that stand there too.
    ///
    /// # Errors
    /// When it is no JWK set, or holds a key that cannot be one of the broker's.
    pub fn from_jwks(document: &[u8]) -> Result<Self, Refused> {
        Self::read(document, "sig", Some(Purpose::AccessToken))
    }

    /// Reads `/jwks`: the keys of status lists alone.
    ///
    /// # Errors
    /// When it is no JWK set, or holds a key that cannot be one of the broker's.
    pub fn of_status_lists(document: &[u8]) -> Result<Self, Refused> {
        Self::read(document, "sig", Some(Purpose::StatusList))
    }

    /// Reads `/v1/revocations/jwks`: the keys of the revocation feed.
    ///
    /// # Errors
    /// When it is no JWK set, or holds a key that cannot be one of the broker's.
    pub fn of_revocations(document: &[u8]) -> Result<Self, Refused> {
        Self::read(document, "sig", Some(Purpose::Revocations))
    }

    /// Reads `/spiffe/bundle`: the keys of JWT-SVIDs.
    ///
    /// # Errors
    /// When it is no SPIFFE bundle, or holds a key that cannot be one of the broker's.
    pub fn from_bundle(document: &[u8]) -> Result<Self, Refused> {
        Self::read(document, "jwt-svid", None)
    }

    fn read(document: &[u8], usage: &str, purpose: Option<Purpose>) -> Result<Self, Refused> {
        let document: serde_json::Value = strict_json(document)?;
        let keys = document.get("keys").and_then(serde_json::Value::as_array).ok_or(Refused("not a key set"))?;
        let member =
            |jwk: &serde_json::Value, name: &str| jwk.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
        let mut set = HashMap::new();
        let wanted = |jwk: &&serde_json::Value| {
            let signs = jwk.get(Purpose::MEMBER).map(|signs| serde_json::from_value(signs.clone()).ok());
            member(jwk, "use").as_deref() == Some(usage) && signs == purpose.map(Some)
        };
        for jwk in keys.iter().filter(wanted) {
            let kid = member(jwk, "kid").ok_or(Refused("a key has no key id"))?;
            // The `use` of a bundle is SPIFFE's own and unknown to JWK libraries.
            let mut plain = jwk.clone();
            if let Some(members) = plain.as_object_mut() {
                members.remove("use");
                members.remove(Purpose::MEMBER);
            }
            // Only access tokens are ever signed with RSA, and with nothing but RS256.
            let is_rsa = purpose == Some(Purpose::AccessToken) && member(jwk, "kty").as_deref() == Some("RSA");
            let algorithm = if is_rsa { Algorithm::RS256 } else { Algorithm::ES256 };
            if is_rsa && member(jwk, "alg").as_deref() != Some("RS256") {
                return Err(Refused("an RSA key is for another algorithm than RS256"));
            }
            if set.insert(kid, VerifyingKey::from_jwk(&plain, algorithm)?).is_some() {
                return Err(Refused("two keys have the same key id"));
            }
        }
        Ok(Self(set))
    }

    /// The key with this id.
    #[must_use]
    pub fn get(&self, kid: &str) -> Option<&VerifyingKey> {
        self.0.get(kid)
    }
}

/// The keys of the brokers of one issuer.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Of access tokens.
    pub access: KeySet,
    /// Of JWT-SVIDs.
    pub svid: KeySet,
    /// Of the states of the revocation feed.
    pub states: KeySet,
    /// Of certificates.
    pub authorities: Authorities,
}

impl Keys {
    /// Reads `/jwks`, `/spiffe/bundle` and `/v1/revocations/jwks`.
    ///
    /// # Errors
    /// When one of them is no key set, or holds a key that cannot be one of the broker's.
    pub fn read(jwks: &[u8], bundle: &[u8], revocation_jwks: &[u8]) -> Result<Self, Refused> {
        Ok(Self {
            access: KeySet::from_jwks(jwks)?,
            svid: KeySet::from_bundle(bundle)?,
            states: KeySet::of_revocations(revocation_jwks)?,
            authorities: Authorities::from_bundle(bundle)?,
        })
    }

    /// Those of a form of token.
    pub(super) fn of(&self, form: CredentialType) -> &KeySet {
        match form {
            CredentialType::AccessToken => &self.access,
            CredentialType::Jwt => &self.svid,
        }
    }
}
