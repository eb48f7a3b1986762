//! What a service embeds to check a credential. No server behind it: cargo feature `verify` alone builds it.
//!
//! A verifier that only knows the keys of the broker (`/jwks`, `/spiffe/bundle`) learns of no revoke: what it accepts
//! lives until its `exp`. Ask the broker (introspection) at the moment of the call to see a revoke at once, or read the
//! [`StatusList`] that the token names, to see it within ten seconds without asking at every call.
//!
//! ```
//! use remit::verify::{KeySet, Verifier};
//! # fn check(jwks: &[u8], token: &str, now: remit::clock::Time) -> Result<(), remit::verify::Refused> {
//! let verifier = Verifier::new("https://broker.example.com", "https://git.example.com".parse().expect("a location"))
//!     .with_access_keys(KeySet::from_jwks(jwks)?);
//! let verified = verifier.verify(token, now)?;
//! println!("{} may {}", verified.claims().client_id, verified.claims().scope);
//! # Ok(()) }
//! ```

mod status_list;

pub use status_list::StatusList;

use jsonwebtoken::Algorithm;
use std::{collections::HashMap, sync::Arc};

use crate::{
    claims::{Claims, Confirmation, Purpose},
    clock::Time,
    id::Location,
    jose::{Invalid, Thumbprint, Unverified, VerifyingKey, strict_json},
    proof::{Occasion, Proof, Seen},
    task::CredentialType,
};

/// Seconds by which the broker's clock may be ahead of ours. Nothing is ever accepted past its `exp`.
pub const SKEW: i64 = 5;

/// Why a token was not accepted. For logs: to a caller, answer 401 `invalid_token` and nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(&'static str);

impl From<Invalid> for Refused {
    fn from(invalid: Invalid) -> Self {
        Self(invalid.0)
    }
}

/// A token of the broker whose outside is well-formed; its signature is not checked.
#[derive(Debug)]
pub struct Token<'a> {
    unverified: Unverified<'a>,
    form: CredentialType,
}

impl<'a> Token<'a> {
    /// Reads the outside.
    ///
    /// # Errors
    /// When it is nothing that the broker could have written.
    pub fn parse(text: &'a str) -> Result<Self, Refused> {
        let unverified = Unverified::parse(text)?;
        let form =
            CredentialType::from_typ(unverified.typ()).ok_or(Refused("not a type of token that the broker writes"))?;
        if !unverified.is_plain() || unverified.kid().is_none() {
            return Err(Refused("the header is not one that the broker writes"));
        }
        Ok(Self { unverified, form })
    }

    /// Which form it claims to have: look for its key among the keys of that form and nowhere else.
    #[must_use]
    pub fn form(&self) -> CredentialType {
        self.form
    }

    /// What it is inside, for a reader of another kind of token.
    #[cfg(feature = "broker")]
    pub(crate) fn unverified(&self) -> &Unverified<'a> {
        &self.unverified
    }

    /// Which key it claims to be signed with.
    #[must_use]
    pub fn kid(&self) -> &str {
        self.unverified.kid().unwrap_or_default()
    }

    /// Checks signature, issuer and times. The audience is still to be checked, and who holds it.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn verify(&self, key: &VerifyingKey, issuer: &str, now: Time) -> Result<Signed, Refused> {
        let claims: Claims = self.unverified.verify(key)?;
        let now = now.timestamp();
        if claims.iss != issuer {
            return Err(Refused("it is of another issuer"));
        }
        if Time::from_timestamp(claims.exp, 0).is_none() {
            return Err(Refused("its end is no point in time"));
        }
        if now >= claims.exp {
            return Err(Refused("it has expired"));
        }
        if now + SKEW < claims.nbf || now + SKEW < claims.iat {
            return Err(Refused("it is from the future"));
        }
        Ok(Signed { claims, form: self.form })
    }
}

/// A token whose signature, issuer and times were checked, and not whether whoever presents it is its holder.
#[derive(Debug)]
pub struct Signed {
    claims: Claims,
    form: CredentialType,
}

impl Signed {
    /// It was presented as a bearer token (RFC 6750): whoever has one of those holds it.
    ///
    /// # Errors
    /// When it is bound to a key or a certificate.
    pub fn by_bearer(self) -> Result<Verified, Refused> {
        match self.claims.cnf {
            None => Ok(Verified { claims: self.claims, form: self.form }),
            Some(Confirmation::Key(_)) => Err(Refused("it is bound to a key, and no bearer token")),
            Some(Confirmation::Certificate(_)) => Err(Refused("it is bound to a certificate, and no bearer token")),
        }
    }

    /// It came with a proof (RFC 9449), which is for the same request and was not used before.
    ///
    /// # Errors
    /// When it is bound to another key, or to none.
    pub fn by_holder(self, proof: &Proof) -> Result<Verified, Refused> {
        match &self.claims.cnf {
            Some(Confirmation::Key(key)) if key == proof.key() => Ok(Verified { claims: self.claims, form: self.form }),
            Some(Confirmation::Key(_)) => Err(Refused("it is bound to another key than the proof's")),
            Some(Confirmation::Certificate(_)) => Err(Refused("it is bound to a certificate, and not to a key")),
            None => Err(Refused("it is bound to no key")),
        }
    }

    /// It came over a TLS connection whose client showed this certificate (RFC 8705).
    ///
    /// # Errors
    /// When it is bound to another certificate, or to none.
    pub fn by_certificate(self, thumbprint: &Thumbprint) -> Result<Verified, Refused> {
        match &self.claims.cnf {
            Some(Confirmation::Certificate(bound)) if bound == thumbprint => {
                Ok(Verified { claims: self.claims, form: self.form })
            }
            Some(Confirmation::Certificate(_)) => Err(Refused("it is bound to another certificate")),
            Some(Confirmation::Key(_)) => Err(Refused("it is bound to a key, and not to a certificate")),
            None => Err(Refused("it is bound to no certificate")),
        }
    }

    /// What it says, to those who answer somebody else's question about it.
    #[cfg(feature = "broker")]
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Its form.
    #[cfg(feature = "broker")]
    pub(crate) fn form(&self) -> CredentialType {
        self.form
    }
}

/// A token whose signature, issuer, times and holder were checked. Whether it was revoked is another question.
#[derive(Debug, Clone)]
pub struct Verified {
    claims: Claims,
    form: CredentialType,
}

impl Verified {
    /// What it says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Its form.
    #[must_use]
    pub fn form(&self) -> CredentialType {
        self.form
    }
}

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

/// What came with a request.
#[derive(Debug, Clone, Copy)]
pub enum Presented<'a> {
    /// `Authorization: Bearer TOKEN`
    Bearer(&'a str),
    /// `Authorization: DPoP TOKEN`, and a `DPoP` header.
    Dpop {
        /// The token.
        token: &'a str,
        /// The one `DPoP` header.
        proof: &'a str,
        /// The method of the request.
        method: &'a str,
        /// Its URI, as its sender knows it.
        uri: &'a str,
    },
    /// `Authorization: Bearer TOKEN`, over a TLS connection of one's own whose client showed a certificate and proved to hold its
    /// key. Never what a header says of a certificate, unless the proxy that writes it is the only one who can.
    Certificate {
        /// The token.
        token: &'a str,
        /// The client's certificate, in DER.
        certificate: &'a [u8],
    },
}

/// Checks tokens for one service. Clones remember the same proofs.
#[derive(Debug, Clone)]
pub struct Verifier {
    seen: Arc<Seen>,
    issuer: String,
    audience: Location,
    access: KeySet,
    svid: KeySet,
}

impl Verifier {
    /// A verifier for the service that is `audience`, of tokens of the broker `issuer`. It accepts nothing before it has keys.
    #[must_use]
    pub fn new(issuer: &str, audience: Location) -> Self {
        let (access, svid) = (KeySet::default(), KeySet::default());
        Self { seen: Arc::default(), issuer: issuer.to_owned(), audience, access, svid }
    }

    /// Accepts access tokens signed with these.
    #[must_use]
    pub fn with_access_keys(self, keys: KeySet) -> Self {
        Self { access: keys, ..self }
    }

    /// Accepts JWT-SVIDs signed with these.
    #[must_use]
    pub fn with_svid_keys(self, keys: KeySet) -> Self {
        Self { svid: keys, ..self }
    }

    /// Checks a bearer token: form, signature, issuer, times, audience.
    ///
    /// # Errors
    /// When any of them is wrong, or it is bound to a key; also when its key is unknown, in which case fetching the keys again may help.
    pub fn verify(&self, token: &str, now: Time) -> Result<Verified, Refused> {
        self.signed(token, now)?.by_bearer()
    }

    /// Checks a token and, where it is bound, that whoever presents it holds the key. A proof serves once. Whoever takes bound and
    /// unbound tokens on one connection asks again with [`Presented::Bearer`]: what is bound is refused there.
    ///
    /// # Errors
    /// As [`Verifier::verify`], or when the proof does not fit or was used before.
    pub fn verify_presented(&self, presented: Presented<'_>, now: Time) -> Result<Verified, Refused> {
        let (token, proof, method, uri) = match presented {
            Presented::Bearer(token) => return self.verify(token, now),
            Presented::Dpop { token, proof, method, uri } => (token, proof, method, uri),
            Presented::Certificate { token, certificate } => {
                return self.signed(token, now)?.by_certificate(&Thumbprint::of_certificate(certificate));
            }
        };
        let signed = self.signed(token, now)?;
        let proof = Proof::check(proof, Occasion { method, uri, token: Some(token) }, now)?;
        let verified = signed.by_holder(&proof)?;
        self.seen.take(&proof, now)?;
        Ok(verified)
    }

    fn signed(&self, token: &str, now: Time) -> Result<Signed, Refused> {
        let token = Token::parse(token)?;
        let keys = match token.form() {
            CredentialType::AccessToken => &self.access,
            CredentialType::Jwt => &self.svid,
        };
        let key = keys.get(token.kid()).ok_or(Refused("its key is unknown"))?;
        let signed = token.verify(key, &self.issuer, now)?;
        if signed.claims.aud != self.audience {
            return Err(Refused("it is for another audience"));
        }
        Ok(signed)
    }
}
