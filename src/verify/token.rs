//! A token, from what anybody could have written to what its holder may use: every step has a type of its own.

use std::sync::Arc;

use super::{Refused, feed::Facts};
use crate::{
    claims::{Claims, Confirmation, LockSubject},
    clock::Time,
    id::Location,
    jose::{Thumbprint, Unverified, VerifyingKey},
    proof::Proof,
    task::CredentialType,
};

/// Seconds by which the broker's clock may be ahead of ours. Nothing is ever accepted past its `exp`.
pub const SKEW: i64 = 5;

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
        Signed { claims: Arc::new(claims), form: self.form, kid: self.kid().into() }.check(issuer, now)
    }
}

/// A token whose signature, issuer and times were checked, and not whether whoever presents it is its holder.
#[derive(Debug, Clone)]
pub struct Signed {
    claims: Arc<Claims>,
    form: CredentialType,
    kid: Arc<str>,
}

impl Signed {
    /// Checks what the signature says nothing about: whether it is of this issuer, and of now.
    pub(super) fn check(self, issuer: &str, now: Time) -> Result<Self, Refused> {
        let (claims, now) = (&self.claims, now.timestamp());
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
        // A JWT-SVID says twice which task it is for.
        if self.form == CredentialType::Jwt && claims.sub != claims.client_id.of_task(&claims.task.id) {
            return Err(Refused("its subject is not its task"));
        }
        Ok(self)
    }

    /// It was presented as a bearer token (RFC 6750): whoever has one of those holds it.
    ///
    /// # Errors
    /// When it is bound to a key or a certificate.
    pub fn by_bearer(self) -> Result<Held, Refused> {
        match self.claims.cnf {
            None => Ok(Held(self)),
            Some(Confirmation::Key(_)) => Err(Refused("it is bound to a key, and no bearer token")),
            Some(Confirmation::Certificate(_)) => Err(Refused("it is bound to a certificate, and no bearer token")),
        }
    }

    /// It came with a proof (RFC 9449), which is for the same request and was not used before.
    ///
    /// # Errors
    /// When it is bound to another key, or to none.
    pub fn by_holder(self, proof: &Proof) -> Result<Held, Refused> {
        match &self.claims.cnf {
            Some(Confirmation::Key(key)) if key == proof.key() => Ok(Held(self)),
            Some(Confirmation::Key(_)) => Err(Refused("it is bound to another key than the proof's")),
            Some(Confirmation::Certificate(_)) => Err(Refused("it is bound to a certificate, and not to a key")),
            None => Err(Refused("it is bound to no key")),
        }
    }

    /// It came over a TLS connection whose client showed this certificate (RFC 8705).
    ///
    /// # Errors
    /// When it is bound to another certificate, or to none.
    pub fn by_certificate(self, thumbprint: &Thumbprint) -> Result<Held, Refused> {
        match &self.claims.cnf {
            Some(Confirmation::Certificate(bound)) if bound == thumbprint => Ok(Held(self)),
            Some(Confirmation::Certificate(_)) => Err(Refused("it is bound to another certificate")),
            Some(Confirmation::Key(_)) => Err(Refused("it is bound to a key, and not to a certificate")),
            None => Err(Refused("it is bound to no certificate")),
        }
    }

    /// What to look for among what was revoked.
    pub(super) fn facts(&self) -> Facts<'_> {
        let Claims { task, jti, .. } = &*self.claims;
        Facts { generation: task.generation, task: &task.id, lease: jti, key: &self.kid }
    }

    /// What a lock is held against.
    pub(super) fn subject(&self) -> LockSubject<'_> {
        LockSubject::of(&self.claims)
    }

    /// It was looked for, and who holds it is for others to see.
    pub(super) fn introspected(self) -> Introspected {
        Introspected { claims: self.claims, form: self.form }
    }

    /// Whether it is for this service.
    pub(super) fn is_for(&self, audience: &Location) -> bool {
        self.claims.aud == *audience
    }

    /// What it says, to those who answer somebody else's question about it.
    #[cfg(feature = "broker")]
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Its form.
    pub(crate) fn form(&self) -> CredentialType {
        self.form
    }

    /// The key that it was signed with, by its name.
    pub(super) fn kid(&self) -> &str {
        &self.kid
    }
}

/// A token whose signature, issuer, times and holder were checked. Whether it was revoked is another question, and nobody is told what
/// it says before it was asked.
#[derive(Debug)]
pub struct Held(Signed);

impl Held {
    /// What was not looked at is who holds it.
    pub(super) fn signed(&self) -> &Signed {
        &self.0
    }

    /// It was looked for, or its verifier has said by name that nobody looks.
    pub(super) fn accepted(self) -> Verified {
        Verified { claims: self.0.claims, form: self.0.form }
    }
}

/// A token that was accepted: it was checked whole, in all the ways that its verifier has.
#[derive(Debug, Clone)]
pub struct Verified {
    claims: Arc<Claims>,
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

/// A token that is good and not revoked; who presents it was not looked at. What answers a question about it (RFC 7662): whoever asked sees
/// to it that what it is bound to (`cnf`) comes with it.
#[derive(Debug, Clone)]
pub struct Introspected {
    claims: Arc<Claims>,
    form: CredentialType,
}

impl Introspected {
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
