//! A workload that has a key of its own, and shows it (RFC 9449).

use remit::jose::SigningKey;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, Server, Stand, documented, now, overlaid, secrets};

pub(crate) struct Prover {
    pub(crate) key: SigningKey,
}

impl Prover {
    pub(crate) fn new() -> Self {
        let document = SigningKey::generate().expect("random bytes");
        Self { key: SigningKey::from_pkcs8(&document).expect("a key") }
    }

    /// Its key's thumbprint (RFC 7638).
    pub(crate) fn jkt(&self) -> &str {
        self.key.kid()
    }

    /// A signature, whatever it is of.
    pub(crate) fn sign(&self, input: &str) -> String {
        let key = jsonwebtoken::EncodingKey::from_ec_der(self.jkt().as_bytes());
        jsonwebtoken::crypto::sign(input.as_bytes(), &key, jsonwebtoken::Algorithm::ES256).expect("signed")
    }

    /// A proof for a request, with these claims laid over the usual ones; `null` removes one.
    #[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
    pub(crate) fn proof(&self, method: &str, url: &str, over: Value) -> String {
        let jti = remit::id::LeaseId::random().expect("random bytes").to_string();
        let claims = json!({"jti": jti, "htm": method, "htu": url, "iat": now()});
        let proof = self.key.prove(&overlaid(claims, &over)).expect("signed");
        secrets::note_token("a DPoP proof", &proof);
        proof
    }
}

/// What is sent: JSON, or a form.
pub(crate) enum Body<'a> {
    None,
    Json(Value),
    Form(&'a [(&'a str, &'a str)]),
}

impl Stand {
    /// A request with these `DPoP` headers.
    pub(crate) async fn proven_at(
        &self,
        at: &Server,
        (method, path): (Method, &str),
        bearer: Option<&str>,
        proofs: &[&str],
        body: Body<'_>,
    ) -> Answer {
        let mut request = self.client.request(method.clone(), format!("{}{path}", at.url));
        if let Some(bearer) = bearer {
            secrets::note_token("a bearer token", bearer);
            request = request.bearer_auth(bearer);
        }
        for proof in proofs {
            request = request.header("dpop", *proof);
        }
        request = match body {
            Body::None => request,
            Body::Json(body) => request.json(&body),
            Body::Form(form) => request.form(form),
        };
        let answer = Answer::of(request.send().await.expect("an answer")).await;
        documented::check(&method, path, &answer);
        answer
    }
}
