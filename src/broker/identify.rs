//! Who is calling. An explicit `Authorization` beats a client certificate, which beats the kernel; nothing that was presented and is no
//! good is passed over in favour of the next.
//!
//! presented → a service's or an operator's token or certificate, a task token, a token of the operators' issuer, or evidence → attested → the key that
//! was shown with it.

use secrecy::{ExposeSecret as _, SecretString};
use std::sync::{Arc, atomic::Ordering};

use super::{
    Broker, Call,
    prove::{Holder, Manner, PresentedTaskToken, ProofOf, Shown},
    task_token, wrong_role,
};
use crate::{
    attest::{Asserted, ClientCertificate, Evidence, Peer, Rejected},
    audit::{Actor, Entry, Event},
    error::{Error, Input},
    jose::Unverified,
    party::{HalfShown, Member, Operator, Party, Service},
};

/// What came with a request that says who is calling; none of it believed yet.
pub struct Presented {
    /// `Authorization: Bearer`. Beats all else.
    pub bearer: Option<SecretString>,
    /// What a client authenticates with at the token endpoint.
    pub assertion: Option<(SecretString, Asserted)>,
    /// Who a client says to be that authenticates with an assertion or a certificate.
    pub client_id: Option<String>,
    /// `Authorization: DPoP`, or the subject of a token exchange. Stands for evidence, and never beside a bearer token.
    pub task_token: Option<PresentedTaskToken>,
    /// The certificate that came with the connection. Beats the kernel.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The peer of a Unix socket.
    pub peer: Option<Peer>,
    /// `DPoP`.
    pub proof: Option<ProofOf>,
}

/// Who is calling.
pub(super) enum Caller {
    Workload(Box<Holder>),
    Service(Arc<Service>),
    Operator(Arc<Operator>),
    /// Somebody who acts for an owner, and is no operator: what is not that owner's does not exist.
    Owner(Arc<Member>),
}

impl Broker {
    /// Who is calling: an explicit `Authorization` beats a client certificate, which beats the kernel.
    pub(super) async fn identify(&self, presented: Presented, call: &Call<'_>) -> Result<Caller, Error> {
        let &Call { request, now, .. } = call;
        let proof = self.prove(&presented, now);
        // On record where it counts: not where whoever calls is known without.
        let proof = |attestor| {
            proof.inspect_err(|why| {
                if let Error::ProofInvalid(why) = why {
                    self.turn_away(attestor, "possession", why, call);
                }
            })
        };
        // A certificate proves that its key is held; of services and operators the configuration knows the key.
        let key = presented.certificate.as_ref().filter(|certificate| certificate.is_current(now));
        let key = key.map(|certificate| certificate.key_sha256().to_owned());
        let (certificate, client_id) = (presented.certificate.clone(), presented.client_id.clone());
        let evidence = match presented {
            Presented { task_token: Some(task_token), .. } => {
                let holder = self.stand_in(&task_token, proof(task_token::ATTESTOR)?, certificate, call).await?;
                return Ok(Caller::Workload(Box::new(holder)));
            }
            Presented { assertion: Some((token, of)), .. } => Evidence::Assertion { token, of },
            Presented { bearer: Some(token), .. } => {
                if let Some(party) = self.party(Some(token.expose_secret()), key.as_deref(), call)? {
                    return Ok(party);
                }
                let unverified = Unverified::parse(token.expose_secret()).ok();
                // What we signed ourselves stands for evidence where it is a task token, and is none otherwise.
                if unverified.as_ref().is_some_and(|token| token.issuer() == Some(&self.issuer)) {
                    let task_token = PresentedTaskToken { token, manner: Manner::Bearer };
                    let holder = self.stand_in(&task_token, proof(task_token::ATTESTOR)?, certificate, call).await?;
                    return Ok(Caller::Workload(Box::new(holder)));
                }
                if let Some(unverified) = &unverified
                    && let Some(caller) = self.recognise(unverified, call).await?
                {
                    return Ok(caller);
                }
                Evidence::Jwt(token)
            }
            Presented { certificate: Some(certificate), .. } => match self.party(None, key.as_deref(), call)? {
                Some(party) => return Ok(party),
                None => Evidence::Certificate(certificate),
            },
            Presented { peer: Some(peer), .. } => Evidence::Peer(peer),
            Presented { task_token: None, assertion: None, bearer: None, certificate: None, peer: None, .. } => {
                self.turn_away("none", "invalid", "no evidence", call);
                return Err(Error::EvidenceInvalid);
            }
        };
        let attestor = match &evidence {
            Evidence::Jwt(_) => "oidc",
            Evidence::Assertion { .. } => "client",
            Evidence::Certificate(_) => "x509",
            Evidence::Peer(_) => "unix",
        };
        match self.rules().attestors.attest(&evidence, &self.issuer, now).await {
            Ok(attested) if client_id.as_deref().is_some_and(|id| !attested.is_client(id)) => {
                self.turn_away(attestor, "invalid", "`client_id` names another client", call);
                Err(Error::EvidenceInvalid)
            }
            Ok(attested) => {
                let shown = proof(attestor)?.map(Shown::Proof).or_else(|| certificate.map(Shown::Certificate));
                Ok(Caller::Workload(Box::new(self.hold(attested, shown, (attestor, call)).await?)))
            }
            Err(Rejected::Refused(why)) => {
                self.turn_away(attestor, "invalid", &why, call);
                Err(Error::EvidenceInvalid)
            }
            Err(Rejected::Unavailable(why)) => {
                tracing::error!(request, %why, "evidence cannot be checked");
                self.turn_away(attestor, "unavailable", &why, call);
                Err(Error::Unavailable(Input::Issuer))
            }
        }
    }

    /// Who is known by configuration, and shows all of what they have to.
    fn party(&self, token: Option<&str>, key: Option<&str>, call: &Call<'_>) -> Result<Option<Caller>, Error> {
        match self.rules().parties.find(token, key) {
            Some(Ok(Party::Service(service))) => Ok(Some(Caller::Service(service))),
            Some(Ok(Party::Operator(operator))) => Ok(Some(Caller::Operator(operator))),
            Some(Err(HalfShown)) => {
                self.turn_away("x509", "invalid", "a token and a client certificate are good together alone", call);
                Err(Error::EvidenceInvalid)
            }
            None => Ok(None),
        }
    }

    /// Whether nothing says who it is: what the kernel says of a process, and a certificate that is nobody's, are not said by the caller.
    pub(super) fn is_nobody(&self, presented: &Presented) -> bool {
        let known = |certificate: &Arc<ClientCertificate>| {
            self.rules().parties.find(None, Some(certificate.key_sha256())).is_some()
        };
        presented.bearer.is_none()
            && presented.task_token.is_none()
            && !presented.certificate.as_ref().is_some_and(known)
    }

    /// The caller, who must be a workload: only workloads hold tasks. With a store in doubt nobody gets any further.
    pub(super) async fn attest(
        &self,
        presented: Presented,
        asked: &'static str,
        call: &Call<'_>,
    ) -> Result<Holder, Error> {
        let refused = "only an attested workload holds tasks and credentials";
        match self.identify(presented, call).await? {
            Caller::Workload(holder) if self.vouched.load(Ordering::Acquire) => Ok(*holder),
            Caller::Workload(_) => Err(Error::Unavailable(Input::Store)),
            Caller::Operator(operator) => Err(self.refuse_operator(&operator, call, refused).await?),
            other @ (Caller::Owner(_) | Caller::Service(_)) => {
                Err(self.turn_down(&other, asked, call, wrong_role(refused)))
            }
        }
    }

    /// Records that an operator tried what their roles do not allow, and yields the error to answer with.
    pub(super) async fn refuse_operator(
        &self,
        operator: &Operator,
        call: &Call<'_>,
        why: &str,
    ) -> Result<Error, Error> {
        self.note(operator, call, Event::OperatorRefused { why: why.to_owned() }).await?;
        Ok(wrong_role(why))
    }

    /// Records what an operator did.
    pub(super) async fn note(&self, operator: &Operator, call: &Call<'_>, event: Event) -> Result<(), Error> {
        let actor = Actor::Operator { name: operator.name().to_owned() };
        let (request, task) = (call.request.to_owned(), call.task.cloned());
        self.record(vec![Entry { time: call.now, request, actor, task, event }]).await
    }
}
