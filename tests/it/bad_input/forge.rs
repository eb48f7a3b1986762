//! Tokens that are well signed, and wrong in one thing.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use remit::jose::SigningKey;
use serde_json::{Value, json};

use super::bench::{Bench, Case, EVIDENCE, Expected, OAUTH, api, ask, form, offline};
use crate::support::declaration;

/// A key, and the header and claims of a good token of its kind.
pub(super) struct Forge<'a> {
    pub(super) key: &'a SigningKey,
    pub(super) header: Value,
    pub(super) claims: Value,
}

impl<'a> Forge<'a> {
    pub(super) fn new(key: &'a SigningKey, typ: &str, claims: Value) -> Self {
        Self { key, header: json!({"alg": "ES256", "kid": key.kid(), "typ": typ}), claims }
    }

    /// Signs what is already encoded, whatever it is.
    pub(super) fn seal(&self, input: &str) -> String {
        format!("{input}.{}", encode(self.signature(input)))
    }

    pub(super) fn signature(&self, input: &str) -> Vec<u8> {
        let key = jsonwebtoken::EncodingKey::from_ec_der(self.key.kid().as_bytes());
        let signature = jsonwebtoken::crypto::sign(input.as_bytes(), &key, jsonwebtoken::Algorithm::ES256);
        BASE64_URL_SAFE_NO_PAD.decode(signature.expect("signed")).expect("base64url")
    }

    /// Signs any two texts.
    pub(super) fn sign(&self, header: &str, claims: &str) -> String {
        self.seal(&format!("{}.{}", encode(header), encode(claims)))
    }

    pub(super) fn good(&self) -> String {
        self.sign(&self.header.to_string(), &self.claims.to_string())
    }

    /// With these members of the header over the usual ones.
    pub(super) fn headed(&self, over: &Value) -> String {
        self.sign(&laid(&self.header, over).to_string(), &self.claims.to_string())
    }

    /// With these claims over the usual ones; here `null` is a value.
    pub(super) fn claiming(&self, over: &Value) -> String {
        self.sign(&self.header.to_string(), &laid(&self.claims, over).to_string())
    }

    pub(super) fn without(&self, claim: &str) -> String {
        let mut claims = self.claims.clone();
        claims.as_object_mut().expect("an object").remove(claim);
        self.sign(&self.header.to_string(), &claims.to_string())
    }
}

fn laid(under: &Value, over: &Value) -> Value {
    let mut laid = under.clone();
    for (name, value) in over.as_object().expect("an object") {
        laid[name] = value.clone();
    }
    laid
}

pub(super) fn encode(octets: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(octets)
}

/// Tokens under judgement, by the name of what is odd about each.
pub(super) type Odd = Vec<(String, String)>;

pub(super) fn odd(name: impl Into<String>, token: impl Into<String>) -> (String, String) {
    (name.into(), token.into())
}

/// The same oddities as evidence, at both places where that is presented, and as access tokens, asked of the broker and of the
/// library. Before them tokens of each kind in which nothing is odd.
pub(super) fn everywhere(bench: &Bench, odd: impl Fn(&Forge<'_>) -> Odd) -> Vec<Case> {
    let (evidence, access) = (bench.evidence(), bench.access());
    let mut cases = vec![
        super::bench::get("good evidence", "/v1/tasks", &evidence.good(), Expected::Fine(200, json!({}))),
        ask("a good token", &access.good(), Expected::Fine(200, json!({"active": true}))),
        offline("a good token, offline", &access.good(), Expected::Fine(200, json!({}))),
    ];
    cases.extend(as_evidence(bench, odd(&evidence)));
    cases.extend(as_access(odd(&access)));
    cases
}

/// Presented as evidence, as a bearer and as a subject token.
pub(super) fn as_evidence(bench: &Bench, odd: Odd) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, token) in odd {
        let subject = bench.exchange(&[("subject_token", &token)]);
        // What is larger than a body may be is not read.
        let expected = if subject.len() > 64 * 1024 { Expected::OAuth(413, "invalid_request") } else { OAUTH };
        cases.push(form(format!("{name}, as subject token"), "/oauth2/token", "", subject, expected));
        // What no header can hold is only ever presented in a form; and spaces around a header's value are not of it.
        if reqwest::header::HeaderValue::from_str(&token).is_ok() && !token.ends_with(' ') {
            cases.push(api(format!("{name}, as bearer"), "/v1/tasks", &token, declaration().to_string(), EVIDENCE));
        }
    }
    cases
}

/// Presented as an access token, to the broker and to the library.
pub(super) fn as_access(odd: Odd) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, token) in odd {
        let large = super::bench::encode(&[("token", &token)]).len() > 64 * 1024;
        let expected = match large {
            true => Expected::OAuth(413, "invalid_request"),
            // No form has one in it.
            false if token.contains('\0') => OAUTH,
            false => Expected::Inactive,
        };
        cases.push(ask(format!("{name}, introspected"), &token, expected));
        cases.push(offline(format!("{name}, offline"), &token, Expected::Refused));
    }
    cases
}
