//! Whose key it is: proofs of possession (RFC 9449) that come with a request, or the certificate that came with its connection
//! (RFC 8705), and what they bind. Where both come, the proof counts: it is for this one request, and made for it.
//!
//! Checked when the caller is identified → the evidence serves the first key that came with it → used up, by one step of the store
//! just before something is written or told, so that a proof that was overheard does nothing a second time.

use secrecy::{ExposeSecret as _, SecretString};
use std::sync::Arc;

use super::{Broker, Call, Presented, in_doubt};
use crate::{
    attest::{Attested, ClientCertificate, Once, Standing},
    claims::Confirmation,
    clock::Time,
    error::Error,
    id::TaskId,
    jose::Thumbprint,
    proof::{Occasion, Proof},
};

/// A `DPoP` header, and the request that it came with; none of it believed yet.
#[derive(Debug)]
pub struct ProofOf {
    /// The one header.
    pub text: String,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
}

/// A task token that was presented; none of it believed yet.
#[derive(Debug)]
pub struct PresentedTaskToken {
    /// The token.
    pub token: SecretString,
    /// How it was presented.
    pub manner: Manner,
}

/// How a task token is presented, and what has to show that its holder presents it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// `Authorization: DPoP`, with a proof that names it (RFC 9449 section 7).
    Dpop,
    /// `Authorization: Bearer`, on a connection with the certificate that it is bound to (RFC 8705 section 3).
    Bearer,
    /// The subject of a token exchange, with a proof or on such a connection.
    Subject,
}

/// A workload, and the key that it was seen to hold, if it brought one.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) attested: Attested,
    /// When evidence was last presented for it.
    pub(super) attested_at: Time,
    shown: Option<Shown>,
    came: Came,
}

/// With what it came, for the record of what is refused later.
#[derive(Debug)]
pub(super) struct Came {
    /// Who judged its evidence.
    attestor: &'static str,
    request: String,
    task: Option<TaskId>,
}

/// What showed that a workload holds a key.
#[derive(Debug)]
pub(super) enum Shown {
    /// A proof.
    Proof(Proof),
    /// The handshake of its connection.
    Certificate(Arc<ClientCertificate>),
}

impl Came {
    pub(super) fn of(attestor: &'static str, call: &Call<'_>) -> Self {
        Self { attestor, request: call.request.to_owned(), task: call.task.cloned() }
    }
}

impl Shown {
    /// The key, by a digest that no other has.
    fn key(&self) -> &Thumbprint {
        match self {
            Self::Proof(proof) => proof.key(),
            // That of the key: the evidence outlives a certificate that is renewed for it.
            Self::Certificate(certificate) => certificate.key(),
        }
    }

    /// What is bound to it is bound to this.
    fn binds_to(&self) -> Confirmation {
        match self {
            Self::Proof(proof) => Confirmation::Key(proof.key().clone()),
            Self::Certificate(certificate) => Confirmation::Certificate(certificate.thumbprint().clone()),
        }
    }
}

/// That the proof of a request, if there was one, was used up by it. Only [`Broker::spend`] makes one, and nothing is released to
/// a workload without.
#[derive(Debug)]
pub(super) struct Spent(());

impl Holder {
    /// Whoever holds the key of a task token.
    pub(super) fn of_task_token(standing: Standing, shown: Option<Shown>, came: Came) -> Result<Self, &'static str> {
        let Standing { attested, attested_at, key, .. } = standing;
        match shown {
            None => Err("a task token comes with a proof of the key that it is bound to"),
            Some(shown) if shown.binds_to() != key => Err("the token is bound to another key"),
            Some(shown) => Ok(Self { attested, attested_at, shown: Some(shown), came }),
        }
    }

    /// What its credentials are to be bound to.
    pub(super) fn binding(&self) -> Option<Confirmation> {
        self.shown.as_ref().map(Shown::binds_to)
    }

    /// When what is bound to it ends at the latest: nobody can present it after that.
    pub(super) fn holds_until(&self, bound_to: Option<&Confirmation>) -> Option<Time> {
        match (bound_to, &self.shown) {
            (Some(Confirmation::Certificate(_)), Some(Shown::Certificate(certificate))) => {
                Some(certificate.not_after())
            }
            _ => None,
        }
    }
}

impl Broker {
    /// A nonce for proofs, to be given to whoever sends them.
    #[must_use]
    pub fn nonce(&self) -> String {
        self.parts.ledger.nonce(self.now())
    }

    /// Checks the proof of a request.
    pub(super) fn prove(&self, presented: &Presented, now: Time) -> Result<Option<Proof>, Error> {
        let Some(ProofOf { text, method, path }) = &presented.proof else { return Ok(None) };
        let named = presented.task_token.as_ref().filter(|task_token| task_token.manner == Manner::Dpop);
        let token = named.map(|task_token| task_token.token.expose_secret());
        let at = |origin: &str| {
            let uri = format!("{origin}{path}");
            Proof::check(text, Occasion { method, uri: &uri, token }, now)
        };
        let proof = at(&self.issuer).or_else(|why| self.tls_alias().map_or(Err(why), at));
        let proof = proof.map_err(|why| Error::ProofInvalid(why.0))?;
        match proof.nonce() {
            Some(nonce) if !self.parts.ledger.is_fresh(nonce, now) => Err(Error::ProofNonce),
            None if self.parts.require_nonce => Err(Error::ProofNonce),
            _ => Ok(Some(proof)),
        }
    }

    /// The workload as the holder of the key that it brought. Evidence that came with a key once is worth nothing without it.
    pub(super) async fn hold(
        &self,
        attested: Attested,
        shown: Option<Shown>,
        (attestor, call): (&'static str, &Call<'_>),
    ) -> Result<Holder, Error> {
        if let (Some(digest), Some(expires_at)) = (attested.reusable(), attested.expires_at()) {
            let ledger = &self.parts.ledger;
            let key = shown.as_ref().map(Shown::key);
            let serves = match key {
                Some(key) => ledger.bind_evidence(digest, key, expires_at).await.map(Some),
                None => ledger.key_of_evidence(digest).await,
            };
            if serves.map_err(|why| in_doubt(&why))?.as_ref() != key {
                let why = "the evidence serves another key than the one that it came with";
                self.turn_away(attestor, "possession", why, call);
                return Err(Error::EvidenceInvalid);
            }
        }
        Ok(Holder { attested, attested_at: call.now, shown, came: Came::of(attestor, call) })
    }

    /// Records that somebody did not show the key, and yields the error to answer with.
    pub(super) fn unproven(&self, attestor: &'static str, why: &'static str, call: &Call<'_>) -> Error {
        self.turn_away(attestor, "possession", why, call);
        Error::ProofInvalid(why)
    }

    /// Records that a workload was turned away when it was known already.
    pub(super) fn turn_back(&self, holder: &Holder, reason: &'static str, why: &str) {
        let Came { attestor, request, task } = &holder.came;
        self.turn_away(attestor, reason, why, &Call { request, task: task.as_ref(), now: self.now() });
    }

    /// Uses up the proof, and evidence that serves once.
    pub(super) async fn spend(&self, holder: &Holder) -> Result<Spent, Error> {
        if let Some(Once { digest, until }) = holder.attested.once() {
            let first = self.parts.ledger.spend(digest, *until).await.map_err(|why| in_doubt(&why))?;
            if !first {
                self.turn_back(holder, "replay", "the evidence serves once, and was used before");
                return Err(Error::EvidenceInvalid);
            }
        }
        let Some(Shown::Proof(proof)) = &holder.shown else { return Ok(Spent(())) };
        let first = self.parts.ledger.spend(&proof.replay_id(), proof.worthless_from()).await;
        let first = first.map_err(|why| in_doubt(&why))?;
        if first {
            return Ok(Spent(()));
        }
        self.turn_back(holder, "replay", "the proof was used before");
        Err(Error::ProofInvalid("it was used before"))
    }
}
