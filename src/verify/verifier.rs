//! Checks tokens for one service. How it learns of revocations is said when it is made, and part of its type.

use std::sync::Arc;

use super::{
    CertifiedTask, Denial, Feed, Introspected, KeySet, Keys, Refused, Rejected, Signed, Token, Verified,
    remembered::Remembered,
};
use crate::{
    clock::{Moment, Time},
    id::Location,
    jose::Thumbprint,
    proof::{Occasion, Proof, Seen},
};

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
    /// The same, told by whoever ended TLS for us: the SHA-256 of the certificate (RFC 8705 section 3.1).
    Thumbprint {
        /// The token.
        token: &'a str,
        /// The digest.
        thumbprint: &'a Thumbprint,
    },
}

/// It follows the revocation feed: a revoke is seen as soon as it arrives, and when nothing arrives, nothing is accepted.
#[derive(Debug, Clone)]
pub struct Following(Arc<Feed>);

/// It knows nothing but keys: what was revoked is accepted until it expires.
#[derive(Debug, Clone)]
pub struct UntilExpiry(Keys);

/// Checks tokens for one service. Clones remember the same proofs, and the same tokens: one that comes again costs no signature, and is
/// checked anew in everything else.
#[derive(Debug, Clone)]
pub struct Verifier<Revocations> {
    seen: Arc<Seen>,
    remembered: Arc<Remembered>,
    issuer: String,
    audience: Location,
    revocations: Revocations,
}

impl Verifier<Following> {
    /// A verifier for the service that is `audience`, which follows a feed: its issuer's tokens are accepted, with the keys that it
    /// believes.
    #[must_use]
    pub fn following(feed: Arc<Feed>, audience: Location) -> Self {
        let issuer = feed.issuer().to_owned();
        Self { seen: Arc::default(), remembered: Arc::default(), issuer, audience, revocations: Following(feed) }
    }

    /// Checks a bearer token: form, signature, issuer, times, audience, and that nothing was revoked that it is of.
    ///
    /// # Errors
    /// [`Rejected::Invalid`] when it is no token for this service, or is bound to a key; [`Rejected::Denied`] when it was revoked, or when
    /// that cannot be told.
    pub fn verify(&self, token: &str, now: &Moment) -> Result<Verified, Rejected> {
        self.verify_presented(Presented::Bearer(token), now)
    }

    /// Checks a token and, where it is bound, that whoever presents it holds the key. A proof serves once. Whoever takes bound and
    /// unbound tokens on one connection asks again with [`Presented::Bearer`]: what is bound is refused there.
    ///
    /// # Errors
    /// As [`Verifier::verify`], or when the proof does not fit or was used before.
    pub fn verify_presented(&self, presented: Presented<'_>, now: &Moment) -> Result<Verified, Rejected> {
        let Following(feed) = &self.revocations;
        let wall = feed.clock(now);
        let Shown { held, proof } =
            self.shown(presented, &feed.keys(), wall).inspect_err(|why| self.want_keys(*why))?;
        self.deny(held.signed(), now).map_or(Ok(()), |denial| Err(Rejected::Denied(denial)))?;
        self.use_up(proof, wall)?;
        Ok(held.accepted())
    }

    /// Checks a token as [`Verifier::verify`] does, whoever holds it: what it is bound to is still to be seen. For those who answer
    /// questions about it (RFC 7662).
    ///
    /// # Errors
    /// As [`Verifier::verify`], except that it may be bound.
    pub fn introspect(&self, token: &str, now: &Moment) -> Result<Introspected, Rejected> {
        let Following(feed) = &self.revocations;
        let signed = self.signed(token, &feed.keys(), feed.clock(now)).inspect_err(|why| self.want_keys(*why))?;
        self.deny(&signed, now).map_or_else(|| Ok(signed.introspected()), |denial| Err(Rejected::Denied(denial)))
    }

    /// What it goes by.
    #[cfg(feature = "broker")]
    pub(crate) fn feed(&self) -> &Feed {
        &self.revocations.0
    }

    /// What stands against a token.
    fn deny(&self, signed: &Signed, now: &Moment) -> Option<Denial> {
        self.revocations.0.deny(signed.facts(), || signed.subject(), now)
    }

    fn want_keys(&self, why: Refused) {
        if why == UNKNOWN_KEY {
            self.revocations.0.want_keys();
        }
    }

    /// Checks the certificate, in DER, by which the client of a TLS connection of one's own has proved to hold its key: whose it is, that an
    /// authority of the brokers signed it, its times, and that nothing was revoked that it is of. It is for no service in particular.
    ///
    /// # Errors
    /// [`Rejected::Invalid`] when it is none of a task; [`Rejected::Denied`] when it was revoked, or when that cannot be told.
    pub fn verify_certificate(&self, certificate: &[u8], now: &Moment) -> Result<CertifiedTask, Rejected> {
        let Following(feed) = &self.revocations;
        let task = feed.keys().authorities.check(certificate, feed.clock(now))?;
        feed.deny(task.facts(), || task.subject(), now).map_or(Ok(task.clone()), |denial| Err(Rejected::Denied(denial)))
    }
}

impl Verifier<UntilExpiry> {
    /// A verifier for the service that is `audience`, of tokens of `issuer`, that learns of no revoke: what it accepts lives until its
    /// `exp`. Read a [`super::StatusList`] beside it, or follow a feed: [`Verifier::following`]. It accepts nothing before it has keys.
    #[must_use]
    pub fn offline_until_expiry(issuer: &str, audience: Location) -> Self {
        let revocations = UntilExpiry(Keys::default());
        Self { seen: Arc::default(), remembered: Arc::default(), issuer: issuer.to_owned(), audience, revocations }
    }

    /// Accepts access tokens signed with these.
    #[must_use]
    pub fn with_access_keys(mut self, keys: KeySet) -> Self {
        self.revocations.0.access = keys;
        self
    }

    /// Accepts JWT-SVIDs signed with these.
    #[must_use]
    pub fn with_svid_keys(mut self, keys: KeySet) -> Self {
        self.revocations.0.svid = keys;
        self
    }

    /// Checks a bearer token: form, signature, issuer, times, audience.
    ///
    /// # Errors
    /// When any of them is wrong, or it is bound to a key; also when its key is unknown, in which case fetching the keys again may help.
    pub fn verify(&self, token: &str, now: Time) -> Result<Verified, Refused> {
        self.verify_presented(Presented::Bearer(token), now)
    }

    /// Checks a token and, where it is bound, that whoever presents it holds the key. A proof serves once. Whoever takes bound and
    /// unbound tokens on one connection asks again with [`Presented::Bearer`]: what is bound is refused there.
    ///
    /// # Errors
    /// As [`Verifier::verify`], or when the proof does not fit or was used before.
    pub fn verify_presented(&self, presented: Presented<'_>, now: Time) -> Result<Verified, Refused> {
        let Shown { held, proof } = self.shown(presented, &self.revocations.0, now)?;
        self.use_up(proof, now)?;
        Ok(held.accepted())
    }
}

/// A token and what it came with, which fit each other.
struct Shown {
    held: super::Held,
    proof: Option<Proof>,
}

impl<Revocations> Verifier<Revocations> {
    /// The service that it is for.
    #[must_use]
    pub fn audience(&self) -> &Location {
        &self.audience
    }

    fn shown(&self, presented: Presented<'_>, keys: &Keys, now: Time) -> Result<Shown, Refused> {
        let (held, proof) = match presented {
            Presented::Bearer(token) => (self.signed(token, keys, now)?.by_bearer()?, None),
            Presented::Dpop { token, proof, method, uri } => {
                let signed = self.signed(token, keys, now)?;
                let proof = Proof::check(proof, Occasion { method, uri, token: Some(token) }, now)?;
                (signed.by_holder(&proof)?, Some(proof))
            }
            Presented::Certificate { token, certificate } => {
                let thumbprint = Thumbprint::of_certificate(certificate);
                (self.signed(token, keys, now)?.by_certificate(&thumbprint)?, None)
            }
            Presented::Thumbprint { token, thumbprint } => {
                (self.signed(token, keys, now)?.by_certificate(thumbprint)?, None)
            }
        };
        Ok(Shown { held, proof })
    }

    fn signed(&self, token: &str, keys: &Keys, now: Time) -> Result<Signed, Refused> {
        let signed = match self.remembered.find(token, keys) {
            (_, Some(signed)) => signed.check(&self.issuer, now)?,
            (looked, None) => {
                let token = Token::parse(token)?;
                let key = keys.of(token.form()).get(token.kid()).ok_or(UNKNOWN_KEY)?;
                let signed = token.verify(key, &self.issuer, now)?;
                // Nobody else's take up room.
                if signed.is_for(&self.audience) {
                    self.remembered.remember(looked, &signed, key.thumbprint());
                }
                signed
            }
        };
        if signed.is_for(&self.audience) { Ok(signed) } else { Err(Refused("it is for another audience")) }
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    fn use_up(&self, proof: Option<Proof>, now: Time) -> Result<(), Refused> {
        Ok(proof.map_or(Ok(()), |proof| self.seen.take(&proof, now))?)
    }
}

/// Fetching the keys again may help.
const UNKNOWN_KEY: Refused = Refused("its key is unknown");
