//! The task token: given to a workload that showed a key when it declared or renewed a task, it stands for the evidence on that
//! task, with proofs of the same key, until policy wants fresh evidence (`@attest_every`) or the task ends.

use secrecy::{ExposeSecret as _, SecretString};

use std::sync::Arc;

use super::{
    Broker, Call, Entry, Holder, entry, in_doubt,
    prove::{Came, Manner, PresentedTaskToken, Shown},
};
use crate::{
    attest::{ClientCertificate, Content, TaskToken},
    audit::{Actor, Event},
    claims::Status,
    clock::{Time, after},
    credential::task_claim,
    error::{Error, Input},
    id::LeaseId,
    lease::Use,
    proof::Proof,
    task::{CredentialType, Task},
    verify::Token,
};

/// How long a task token stands for the evidence where no policy says less, in seconds.
const ATTEST_EVERY: u32 = 3600;
/// What judges it, in the record of those who were turned away.
pub(super) const ATTESTOR: &str = "task_token";

/// A task token, to be handed to its workload and forgotten.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub token: SecretString,
    /// Its end.
    pub expires_at: Time,
}

/// A task token that is decided and not signed.
pub(super) struct Unsigned {
    token: TaskToken,
    expires_at: Time,
}

impl Broker {
    /// What the task token of a holder is to say, and what the audit log says of it; `None` without a key, because it is never a
    /// bearer token.
    pub(super) fn task_token(
        &self,
        holder: &Holder,
        actor: &Actor,
        call: &Call<'_>,
        (task, deadline): (&Task, Time),
        attest_every: Option<u32>,
    ) -> Result<Option<(Unsigned, Entry)>, Error> {
        let Some(key) = holder.binding() else { return Ok(None) };
        let attest_by = after(holder.attested_at, attest_every.unwrap_or(ATTEST_EVERY)).unwrap_or(deadline);
        let expires_at = deadline.min(attest_by);
        let expires_at = holder.holds_until(Some(&key)).map_or(expires_at, |until| expires_at.min(until));
        let id = LeaseId::random().map_err(|_| Error::Unavailable(Input::Store))?;
        let bound_to = key.clone();
        let event = Event::TaskTokenIssued { lease: id.clone(), expires_at, bound_to };
        let token = TaskToken::new(Content {
            issuer: &self.issuer,
            id,
            task: task_claim(task, deadline)?,
            status: Status::of(task.status, &self.issuer),
            attested: &holder.attested,
            attested_at: holder.attested_at,
            key,
            now: call.now,
            expires_at,
        });
        Ok(Some((Unsigned { token, expires_at }, entry(call.now, call.request, actor, &task.id, event))))
    }

    /// Signs it; to be called when its entry is on record.
    pub(super) fn sign_task_token(&self, Unsigned { token, expires_at }: Unsigned) -> Result<Issued, Error> {
        let typ = CredentialType::AccessToken.typ();
        let signed = self.parts.keys.sign(Use::AccessToken, typ, token.exp(), &token);
        let token = signed.map_err(|_| Error::Unavailable(Input::Keys))?.into();
        Ok(Issued { token, expires_at })
    }

    /// Whoever holds the key of a task token, as what was attested when it was issued.
    pub(super) async fn stand_in(
        &self,
        presented: &PresentedTaskToken,
        proof: Option<Proof>,
        certificate: Option<Arc<ClientCertificate>>,
        call: &Call<'_>,
    ) -> Result<Holder, Error> {
        let refused = |why: &str| {
            self.turn_away(ATTESTOR, "invalid", why, call);
            Error::EvidenceInvalid
        };
        let unproven = |why: &'static str| self.unproven(ATTESTOR, why, call);
        let token = Token::parse(presented.token.expose_secret()).map_err(|why| refused(&why.to_string()))?;
        if token.form() != CredentialType::AccessToken {
            return Err(refused("it is no access token"));
        }
        let key = self.verifying_key(&token).await.ok_or_else(|| refused("its key is unknown"))?;
        let standing = TaskToken::read(token.unverified(), &key, &self.issuer, call.now);
        let standing = standing.map_err(|why| refused(why.0))?;
        if standing.task.generation != self.parts.ledger.generation() {
            return Err(refused("it is of another generation"));
        }
        if call.task != Some(&standing.task.id) {
            return Err(refused("it is for one task, and not for this"));
        }
        // The store is asked: another broker may have been told just now, and what is minted on a forged one outlives it.
        let barred = self.parts.ledger.is_barred(&standing.task.id, &standing.lease, token.kid()).await;
        if barred.map_err(|why| in_doubt(&why))? || self.revocations.has_lease(&standing.lease) {
            return Err(refused("its key is tainted, or it was revoked"));
        }
        let standing = self.rules().attestors.still_vouches(standing);
        let standing = standing.ok_or_else(|| refused("its attestor is not configured any more"))?;
        let shown = match presented.manner {
            Manner::Dpop => proof.map(Shown::Proof),
            Manner::Bearer if proof.is_some() => {
                return Err(unproven("a task token that comes with a proof comes as `Authorization: DPoP`"));
            }
            Manner::Bearer => certificate.map(Shown::Certificate),
            Manner::Subject => proof.map(Shown::Proof).or_else(|| certificate.map(Shown::Certificate)),
        };
        Holder::of_task_token(standing, shown, Came::of(ATTESTOR, call)).map_err(unproven)
    }
}
