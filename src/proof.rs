//! DPoP (RFC 9449): a short-lived JWT by which whoever sends a request shows that they hold a key. A token that is bound to that key
//! is worth nothing to anybody else.

use jsonwebtoken::Algorithm;
use serde::Deserialize;
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};
use url::Url;

use crate::{
    clock::Time,
    id::{sha256_base64url, sha256_hex},
    jose::{Invalid, Thumbprint, Unverified, VerifyingKey},
};

/// The algorithms that a proof may be signed with, as they stand in the metadata.
pub const ALGORITHMS: [&str; 6] = ["ES256", "ES384", "Ed25519", "EdDSA", "PS256", "RS256"];
const ACCEPTED: [Algorithm; 5] =
    [Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA, Algorithm::PS256, Algorithm::RS256];
/// For how many seconds after its `iat` a proof is accepted.
pub const WINDOW: i64 = 60;
/// By how many seconds the sender's clock may be ahead of ours.
pub const AHEAD: i64 = 5;
/// The longest `jti` and the longest `nonce`.
const MAX_ID: usize = 512;
/// For how many seconds after its `iat` a proof is remembered at least, however far clocks are apart that are nearly right.
const KEPT: i64 = 2 * (WINDOW + AHEAD);
/// How many proofs are remembered in that time at most: about 8,000 a second, and 100 MB.
const MOST_SEEN: usize = 1 << 20;

/// The request that a proof must be for.
#[derive(Debug, Clone, Copy)]
pub struct Occasion<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its URI; query and fragment do not count.
    pub uri: &'a str,
    /// The token that it presents, if it presents one.
    pub token: Option<&'a str>,
}

#[derive(Deserialize)]
struct ProofClaims {
    jti: String,
    htm: String,
    htu: String,
    iat: i64,
    #[serde(default)]
    ath: Option<String>,
    #[serde(default)]
    nonce: Option<String>,
}

/// A proof that fits its request. Whether it was used before is another question: [`Proof::replay_id`].
#[derive(Debug, Clone)]
pub struct Proof {
    key: Thumbprint,
    jti: String,
    iat: i64,
    nonce: Option<String>,
}

impl Proof {
    /// Checks the text of a `DPoP` header (RFC 9449 section 4.3), except for its nonce and for whether it was used before.
    ///
    /// # Errors
    /// When it is no proof, for another request or another time, or not signed with the key that it names.
    pub fn check(text: &str, occasion: Occasion<'_>, now: Time) -> Result<Self, Invalid> {
        let proof = Unverified::parse_proof(text)?;
        if proof.typ() != Some("dpop+jwt") {
            return Err(Invalid("its `typ` is not dpop+jwt"));
        }
        let algorithm = proof.algorithm().filter(|algorithm| ACCEPTED.contains(algorithm));
        let algorithm = algorithm.ok_or(Invalid("its algorithm is not accepted"))?;
        let jwk = proof.jwk().ok_or(Invalid("it names no public key"))?;
        let key = VerifyingKey::from_jwk(jwk, algorithm)?;
        let claims: ProofClaims = proof.verify(&key)?;
        let now = now.timestamp();
        if claims.htm != occasion.method {
            return Err(Invalid("its `htm` is not the method of this request"));
        }
        if !same_target(&claims.htu, occasion.uri) {
            return Err(Invalid(
                "its `htu` is not the URI of this request, as the server knows itself (a broker: its issuer and the path)",
            ));
        }
        if claims.iat > now.saturating_add(AHEAD) || now.saturating_sub(claims.iat) > WINDOW {
            return Err(Invalid("it is too old, or from the future"));
        }
        if claims.jti.is_empty() || claims.jti.len() > MAX_ID || claims.nonce.as_ref().is_some_and(|n| n.len() > MAX_ID)
        {
            return Err(Invalid("its `jti` or `nonce` is empty or too long"));
        }
        if claims.ath != occasion.token.map(|token| sha256_base64url(token.as_bytes())) {
            return Err(Invalid("its `ath` is not the hash of the token that it came with"));
        }
        Ok(Self { key: key.thumbprint().clone(), jti: claims.jti, iat: claims.iat, nonce: claims.nonce })
    }

    /// The key that was shown to be held.
    #[must_use]
    pub fn key(&self) -> &Thumbprint {
        &self.key
    }

    /// The nonce that it carries.
    #[must_use]
    pub fn nonce(&self) -> Option<&str> {
        self.nonce.as_deref()
    }

    /// What is the same for this proof alone. The key is part of it, so nobody can use up the `jti` of somebody else.
    #[must_use]
    pub fn replay_id(&self) -> String {
        sha256_hex(format!("{}.{}", self.key, self.jti).as_bytes())
    }

    /// When nobody accepts it any more.
    #[must_use]
    pub fn worthless_from(&self) -> Time {
        Time::from_timestamp(self.iat.saturating_add(KEPT), 0).unwrap_or(Time::MAX_UTC)
    }
}

/// Whether `htu` names the target, without query and fragment: scheme and host in any case, the port said or not (RFC 3986 sections
/// 6.2.2.1 and 6.2.3), the path as it is written.
fn same_target(htu: &str, target: &str) -> bool {
    let parse = |text: &str| Url::parse(text).ok().filter(|url| url.username().is_empty() && url.password().is_none());
    let (Some(htu), Some(target)) = (parse(htu), parse(target)) else { return false };
    let parts = |url: &Url| {
        (url.scheme().to_owned(), url.host().map(|h| h.to_owned()), url.port_or_known_default(), url.path().to_owned())
    };
    parts(&htu) == parts(&target)
}

/// The proofs that one verifier has accepted and that are still in their window.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Turns>);

/// Remembers in turns as long as a window: after two of them a proof is worth nothing, and forgotten without being looked for.
#[derive(Debug, Default)]
struct Turns {
    since: i64,
    now: HashSet<String>,
    before: HashSet<String>,
}

impl Seen {
    /// Uses a proof up.
    ///
    /// # Errors
    /// When it was used before, or when there are too many to remember: what cannot be told is refused.
    pub fn take(&self, proof: &Proof, now: Time) -> Result<(), Invalid> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.timestamp().saturating_sub(turns.since);
        if passed >= KEPT {
            let last = std::mem::take(&mut turns.now);
            turns.before = if passed < 2 * KEPT { last } else { HashSet::new() };
            turns.since = now.timestamp();
        }
        if turns.now.len() >= MOST_SEEN {
            return Err(Invalid("too many proofs at a time"));
        }
        let id = proof.replay_id();
        let again = turns.before.contains(&id) || !turns.now.insert(id);
        if again { Err(Invalid("it was used before")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::SigningKey;
    use serde_json::{Value, json};

    const URI: &str = "https://broker.example.com/oauth2/token";

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    fn claims() -> Value {
        json!({"jti": "j-1", "htm": "POST", "htu": URI, "iat": now().timestamp()})
    }

    fn check(text: &str) -> Result<Proof, Invalid> {
        Proof::check(text, Occasion { method: "POST", uri: URI, token: None }, now())
    }

    #[test]
    fn a_proof_is_for_one_request_and_one_minute() {
        let key = key();
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            check(&key.prove(&claims).unwrap())
        };
        let good = check(&key.prove(&claims()).unwrap()).unwrap();
        assert_eq!(good.key().as_str(), key.kid());
        for (name, value) in [
            ("htu", json!("https://broker.example.com/oauth2/token?x=1#y")),
            ("htu", json!("HTTPS://Broker.example.com:443/oauth2/token")),
            ("iat", json!(now().timestamp() - WINDOW)),
            ("iat", json!(now().timestamp() + AHEAD)),
            ("nonce", json!("n")),
            ("something", json!("else")),
        ] {
            assert!(with(name, value.clone()).is_ok(), "{name} {value}");
        }
        for (name, value) in [
            ("htm", json!("post")),
            ("htm", json!("GET")),
            ("htu", json!("https://broker.example.com/oauth2/token/")),
            ("htu", json!("http://broker.example.com/oauth2/token")),
            ("htu", json!("https://broker.example.com:8443/oauth2/token")),
            ("htu", json!("https://other.example.com/oauth2/token")),
            ("htu", json!("https://u:p@broker.example.com/oauth2/token")),
            ("htu", json!("/oauth2/token")),
            ("iat", json!(now().timestamp() - WINDOW - 1)),
            ("iat", json!(now().timestamp() + AHEAD + 1)),
            ("iat", json!(i64::MIN)),
            ("iat", json!(i64::MAX)),
            ("iat", json!("now")),
            ("jti", json!("")),
            ("jti", json!("j".repeat(MAX_ID + 1))),
            ("jti", Value::Null),
            ("ath", json!(sha256_base64url(b"a token"))),
        ] {
            assert!(with(name, value.clone()).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn a_proof_is_for_the_token_that_it_comes_with() {
        let key = key();
        let at = |token, ath: Option<&str>| {
            let mut claims = claims();
            if let Some(ath) = ath {
                claims["ath"] = json!(sha256_base64url(ath.as_bytes()));
            }
            Proof::check(&key.prove(&claims).unwrap(), Occasion { method: "POST", uri: URI, token }, now()).is_ok()
        };
        assert!(at(Some("t"), Some("t")) && at(None, None));
        assert!(!at(Some("t"), None) && !at(Some("t"), Some("u")) && !at(None, Some("t")));
    }

    #[test]
    fn a_proof_is_signed_with_the_key_that_it_names() {
        let (ours, other) = (key(), key());
        let (a, b) = (ours.prove(&claims()).unwrap(), other.prove(&claims()).unwrap());
        let part = |token: &str, at: usize| token.split('.').nth(at).unwrap().to_owned();
        assert!(check(&format!("{}.{}.{}", part(&b, 0), part(&a, 1), part(&a, 2))).is_err());
        assert!(check(&format!("{}.{}.{}", part(&a, 0), part(&a, 1), part(&b, 2))).is_err());
        // A token of the same key is no proof.
        assert!(check(&ours.sign("dpop+jwt", &claims()).unwrap()).is_err(), "no key in the header");
        assert!(check(&ours.sign("at+jwt", &claims()).unwrap()).is_err());
    }

    #[test]
    fn a_proof_serves_once_and_only_its_own_key() {
        let (ours, other, seen) = (key(), key(), Seen::default());
        let proof = |key: &SigningKey| check(&key.prove(&claims()).unwrap()).unwrap();
        seen.take(&proof(&other), now()).unwrap();
        seen.take(&proof(&ours), now()).unwrap();
        // For as long as it is accepted, and longer.
        for seconds in [0, WINDOW + AHEAD, KEPT - 1, KEPT] {
            assert!(seen.take(&proof(&ours), now() + chrono::TimeDelta::seconds(seconds)).is_err(), "{seconds}");
        }
        assert!(
            seen.take(&proof(&ours), now() + chrono::TimeDelta::seconds(3 * KEPT)).is_ok(),
            "nothing is kept for good"
        );
        assert!(proof(&ours).worthless_from().timestamp() > now().timestamp() + WINDOW + AHEAD);
    }
}
