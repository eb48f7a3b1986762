//! An issuer of evidence: signs CI tokens the way a CI system does.

use remit::jose::SigningKey;
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://ci.example.com";

pub(crate) struct Issuer {
    pub(crate) key: SigningKey,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let document = SigningKey::generate().expect("random bytes");
        Self { key: SigningKey::from_pkcs8(&document).expect("a key") }
    }

    pub(crate) fn jwks(&self) -> Value {
        let mut jwk = serde_json::to_value(self.key.public()).expect("JSON");
        jwk["use"] = "sig".into();
        json!({"keys": [jwk]})
    }

    /// A token for `audience`, with these claims laid over the usual ones; `null` removes one.
    #[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
    pub(crate) fn evidence(&self, audience: &str, over: Value) -> String {
        let now = now();
        let claims = json!({
            "iss": ISSUER, "aud": audience, "sub": "repo:acme/payments:ref:refs/heads/main", "iat": now, "exp": now + 300,
            "repository": "acme/payments", "ref": "refs/heads/main", "run_id": "1", "run_attempt": "1",
        });
        let token = self.key.sign("JWT", &overlaid(claims, &over)).expect("signed");
        super::secrets::note_token("evidence", &token);
        token
    }
}

/// Claims with these over them; `null` removes one.
pub(crate) fn overlaid(mut claims: Value, over: &Value) -> Value {
    for (name, value) in over.as_object().expect("an object") {
        if value.is_null() {
            claims.as_object_mut().expect("an object").remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

#[expect(clippy::disallowed_methods, reason = "a test's issuer has a clock of its own")]
pub(crate) fn now() -> i64 {
    chrono::Utc::now().timestamp()
}
