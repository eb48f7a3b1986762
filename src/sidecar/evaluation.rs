//! `AuthZEN` 1.0: may whoever holds this token do that, now?

use axum::{Json, body::Bytes, extract::State, http::HeaderMap};
use serde::de::DeserializeOwned;
use std::sync::Arc;

use super::{
    Sidecar,
    body::{Unread, is_of},
};
use crate::{
    claims::Claims,
    clock::Moment,
    evaluation::{Answered, Asked, Credential, EvaluationRequest, EvaluationsRequest, Reason, Shown},
    id::Malformed,
    jose::strict_json,
    verify::{Challenge, Denial, Presented, Refusal, Rejected, Verified},
};

type Answer = Result<Json<Answered>, Unread>;

pub(super) async fn one(State(sidecar): State<Arc<Sidecar>>, headers: HeaderMap, body: Bytes) -> Answer {
    Ok(sidecar.answer(&read(&headers, &body, EvaluationRequest::asked)?))
}

pub(super) async fn several(State(sidecar): State<Arc<Sidecar>>, headers: HeaderMap, body: Bytes) -> Answer {
    Ok(sidecar.answer(&read(&headers, &body, EvaluationsRequest::asked)?))
}

/// What is asked.
fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: &[u8],
    asked: impl Fn(T) -> Result<Asked, Malformed>,
) -> Result<Asked, Unread> {
    is_of(headers, "application/json")?;
    let request =
        strict_json(body).map_err(|_| Unread::Malformed("the body is no evaluation request of AuthZEN 1.0"))?;
    asked(request).map_err(|why| Unread::Malformed(why.0))
}

impl Sidecar {
    fn answer(&self, asked: &Asked) -> Json<Answered> {
        let found: Vec<_> = asked.credentials().into_iter().map(|one| (one, self.accept(one))).collect();
        Json(asked.answered(&found))
    }

    /// The claims of a token that is good, and whose holder presents it.
    fn accept(&self, credential: Credential<'_>) -> Result<Claims, Reason> {
        let checked = self.check(credential, &Moment::now());
        let why = checked.as_ref().err().copied();
        let noted = self.note(checked.map_err(|why| Refusal::of(why, Challenge::Bearer)));
        noted.map(|verified| verified.claims().clone()).map_err(|_| why.map_or(Reason::TokenInvalid, reason))
    }

    fn check(&self, Credential { token, shown }: Credential<'_>, now: &Moment) -> Result<Verified, Rejected> {
        match shown {
            Shown::Nothing => self.verifier.verify(token, now),
            Shown::Proof { text: proof, method, uri } => {
                self.verifier.verify_presented(Presented::Dpop { token, proof, method, uri }, now)
            }
            Shown::Certificate(thumbprint) => {
                let by_certificate = self.verifier.verify_presented(Presented::Thumbprint { token, thumbprint }, now);
                // What is bound is refused there.
                by_certificate.or_else(|_| self.verifier.verify(token, now))
            }
        }
    }
}

fn reason(why: Rejected) -> Reason {
    match why {
        Rejected::Invalid(_) => Reason::TokenInvalid,
        Rejected::Denied(Denial::Stale) => Reason::Stale,
        Rejected::Denied(Denial::Gap) => Reason::Gap,
        Rejected::Denied(Denial::Generation) => Reason::Generation,
        Rejected::Denied(Denial::Revoked) => Reason::Revoked,
        Rejected::Denied(Denial::Locked) => Reason::Locked,
    }
}
