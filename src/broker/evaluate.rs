//! Whether whoever holds a credential may do something with it, now: a service asks, the store is looked at as for introspection, and the
//! credential's authority decides. Who presents it has to hold it: a proof serves once, on all brokers.

use super::{Broker, Call, Caller, Introspection, Request, wrong_role};
use crate::{
    claims::Claims,
    clock::Time,
    error::Error,
    evaluation::{Answered, Asked, Credential, Reason, Shown},
    party::Service,
    proof::{Occasion, Proof},
    verify::{Refused, Signed},
};

impl Broker {
    /// Answers the questions of a service about credentials that are for itself. What cannot be told is denied.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`] for a caller who is none; [`Error::PolicyDenied`] for one who is no service.
    pub async fn evaluate(&self, request: Request, asked: &Asked) -> Result<Answered, Error> {
        let call = Call { request: &request.id, task: None, now: self.now() };
        let refused = "services ask what the credentials that are for them may do";
        let service = match self.identify(request.presented, &call).await? {
            Caller::Service(service) => service,
            Caller::Operator(operator) => return Err(self.refuse_operator(&operator, &call, refused).await?),
            other @ (Caller::Owner(_) | Caller::Workload(_)) => {
                return Err(self.turn_down(&other, "evaluate", &call, wrong_role(refused)));
            }
        };
        let mut found = Vec::new();
        for credential in asked.credentials() {
            found.push((credential, self.accept(&service, credential, &call).await));
        }
        Ok(asked.answered(&found))
    }

    /// The claims of a token that is alive, and whose holder presents it.
    async fn accept(&self, service: &Service, credential: Credential<'_>, call: &Call<'_>) -> Result<Claims, Reason> {
        let genuine = self.genuine(credential.token, |claims| service.answers_for(&claims.aud), call.now).await;
        let (kid, token) = genuine.ok_or(Reason::TokenInvalid)?;
        let answer = self.alive(&kid, &token, call.now).await.unwrap_or(Introspection::Inactive);
        self.note_answer(service, token.claims(), &answer, call).await;
        let Introspection::Active(claims, _) = answer else { return Err(Reason::Inactive) };
        let proof = held(token, credential, call.now).map_err(|_| Reason::TokenInvalid)?;
        let Some(proof) = proof else { return Ok(*claims) };
        match self.parts.ledger.spend(&proof.replay_id(), proof.worthless_from()).await {
            Ok(true) => Ok(*claims),
            Ok(false) => Err(Reason::TokenInvalid),
            Err(why) => {
                tracing::error!(%why, "the store is in doubt: an evaluation answers no");
                Err(Reason::Inactive)
            }
        }
    }
}

/// That what came with a token shows its holder: the proof, where it was one, which is still to be used up.
fn held(token: Signed, credential: Credential<'_>, now: Time) -> Result<Option<Proof>, Refused> {
    match credential.shown {
        Shown::Proof { text, method, uri } => {
            let proof = Proof::check(text, Occasion { method, uri, token: Some(credential.token) }, now)?;
            token.by_holder(&proof).map(|_| Some(proof))
        }
        Shown::Certificate(thumbprint) if token.claims().cnf.is_some() => {
            token.by_certificate(thumbprint).map(|_| None)
        }
        Shown::Certificate(_) | Shown::Nothing => token.by_bearer().map(|_| None),
    }
}
