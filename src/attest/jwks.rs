//! A set of public keys (RFC 7517), taken whole or not at all: one key in it that should not be there says that whoever
//! publishes it is not to be relied on.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use ring::{
    agreement::{self, ECDH_P256, ECDH_P384, EphemeralPrivateKey, UnparsedPublicKey},
    rand::SystemRandom,
};
use serde_json::Value;
use std::collections::HashSet;

use crate::{
    id::sha256_hex,
    jose::{Invalid, VerifyingKey, check_rsa, strict_json},
    rsa,
};

/// The largest document that is read.
pub(super) const MAX_BYTES: usize = 256 * 1024;
/// The most keys one set may hold.
const MAX_KEYS: usize = 64;

/// The keys of one issuer, each parsed once for every algorithm it may serve.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    fingerprint: String,
}

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    verifying: Vec<(Algorithm, VerifyingKey)>,
}

/// What a set has for a token.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// The key to check it with.
    Key(&'a VerifyingKey),
    /// Nothing that a newer set could change.
    Unfit(&'static str),
    /// Not this key; a newer set may have it.
    Unknown,
}

impl KeySet {
    /// Reads a JWK set for tokens signed with one of `algorithms`. Keys that serve none of them are left out, as
    /// RFC 7517 section 5 asks.
    ///
    /// # Errors
    /// When it is no JWK set, or holds a private or symmetric key, a key for anything but signatures, a weak RSA key, a point
    /// that is not on its curve, one `kid` twice, more than 64 keys, or none that is of use.
    pub(super) fn parse(document: &[u8], algorithms: &[Algorithm]) -> Result<Self, Invalid> {
        if document.len() > MAX_BYTES {
            return Err(Invalid("the key set is larger than 256 KiB"));
        }
        let set: Value = strict_json(document)?;
        let jwks = set.get("keys").and_then(Value::as_array).ok_or(Invalid("not a JWK set"))?;
        if jwks.len() > MAX_KEYS {
            return Err(Invalid("the key set holds more than 64 keys"));
        }
        let mut kids = HashSet::new();
        let mut keys = Vec::new();
        for jwk in jwks {
            refuse_unfit(jwk)?;
            let kid = match jwk.get("kid") {
                None => None,
                Some(Value::String(kid)) if kids.insert(kid.as_str()) => Some(kid.clone()),
                Some(_) => return Err(Invalid("a `kid` is repeated or is no text")),
            };
            let named = jwk.get("alg").and_then(Value::as_str).map(str::parse::<Algorithm>);
            let verifying: Vec<_> = algorithms
                .iter()
                .filter(|algorithm| {
                    named.as_ref().is_none_or(|named| named.as_ref().is_ok_and(|named| named == *algorithm))
                })
                .filter_map(|algorithm| Some((*algorithm, VerifyingKey::from_jwk(jwk, *algorithm).ok()?)))
                .collect();
            keys.push(Key { kid, verifying });
        }
        if keys.iter().all(|key| key.verifying.is_empty()) {
            return Err(Invalid("the key set holds no key that fits the configured algorithms"));
        }
        Ok(Self { keys, fingerprint: sha256_hex(document) })
    }

    /// SHA-256 of the document: two sets with the same one are the same set.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The key for a token that names `kid` and `algorithm`. Without a `kid` only a set of one key has an answer.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Found<'_> {
        let key = match (kid, self.keys.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => return Found::Unfit("the token names no key, and its issuer has several"),
            (Some(_), keys) => keys.iter().find(|key| key.kid.as_deref() == kid),
        };
        let Some(key) = key else { return Found::Unknown };
        key.verifying
            .iter()
            .find(|(fits, _)| *fits == algorithm)
            .map_or(Found::Unfit("the key does not fit the token's algorithm"), |(_, key)| Found::Key(key))
    }
}

fn refuse_unfit(jwk: &Value) -> Result<(), Invalid> {
    const PRIVATE: [&str; 8] = ["d", "k", "p", "q", "dp", "dq", "qi", "oth"];
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if !jwk.is_object() {
        return Err(Invalid("a key is malformed"));
    }
    if text("kty") == Some("oct") || PRIVATE.iter().any(|name| jwk.get(name).is_some()) {
        return Err(Invalid("the key set holds a private or symmetric key"));
    }
    if jwk.get("use").is_some_and(|meant| meant != "sig") {
        return Err(Invalid("the key set holds a key whose `use` is not `sig`"));
    }
    if text("kty") == Some("EC") && !is_on_curve(text) {
        return Err(Invalid("the key set holds a key that is no point of its curve"));
    }
    if text("kty") == Some("RSA") {
        check_rsa(jwk)?;
        if text("n").and_then(rsa::flaw_of).is_some() {
            return Err(Invalid("the key set holds an RSA key that can be factored by how it was made"));
        }
    }
    Ok(())
}

/// Whether an elliptic-curve key is a point of its curve (RFC 7518 section 6.2.1, coordinates of full length). A curve that nothing
/// here verifies with is not looked at.
fn is_on_curve<'a>(text: impl Fn(&str) -> Option<&'a str>) -> bool {
    let (curve, size) = match text("crv") {
        Some("P-256") => (&ECDH_P256, 32),
        Some("P-384") => (&ECDH_P384, 48),
        _ => return true,
    };
    let coordinate = |name: &str| {
        let octets = BASE64_URL_SAFE_NO_PAD.decode(text(name)?).ok()?;
        (octets.len() == size).then_some(octets)
    };
    let (Some(x), Some(y)) = (coordinate("x"), coordinate("y")) else { return false };
    // Verifying a signature does not tell a bad key from a bad signature; agreeing on a secret does.
    let point = UnparsedPublicKey::new(curve, [&[4], &x[..], &y].concat());
    EphemeralPrivateKey::generate(curve, &SystemRandom::new())
        .is_ok_and(|own| agreement::agree_ephemeral(own, &point, |_| ()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::SigningKey;
    use serde_json::json;

    fn jwk() -> Value {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        serde_json::to_value(key.public()).unwrap()
    }

    fn parse(keys: &[Value]) -> Result<KeySet, Invalid> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), &[Algorithm::RS256, Algorithm::ES256])
    }

    fn with(name: &str, value: Value) -> Value {
        let mut key = jwk();
        key[name] = value;
        key
    }

    fn p384() -> Value {
        use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING as ES384, EcdsaKeyPair, KeyPair as _};
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ES384, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ES384, document.as_ref(), &random).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
        let [x, y] = [x, y].map(|octets| BASE64_URL_SAFE_NO_PAD.encode(octets));
        json!({"kty": "EC", "crv": "P-384", "kid": "p384", "x": x, "y": y})
    }

    /// A modulus of two primes as an Infineon library made them (CVE-2017-15361).
    const ROCA: &str = "tdrjgxr_V6gGoo8Apwf4uruETJKvSm_Fz8yx_1R-_uGJ927CJP7nqR02GK3iNVITv8MBacarHHu7MmLC4LotoHhzfogTL5gdXic24riiMftD0uuD2qW92CGvcOAPj7tipaVif6RdJwoK6OPmuVAAKknJOKsACuuN9BEigHAoCdYdNBL55hC1SRfhPtmJnG_iMj0j1MZU8zYFf_xEuaNStxx6mmO0TZUzRu4k4nSNz9LsRd78K534p-fNiCDE1IDRnwZ_iswnu6XfvDwkmnDhR7hXJJUvulh_p3XcnA-TMZvvNBJziT7JYbU5vPLfpjEsYHqxPfWeO7VwzyzZ4McwFw";

    #[test]
    fn a_key_is_found_by_its_kid_or_by_being_the_only_one() {
        let (one, two) = (with("kid", json!("1")), with("kid", json!("2")));
        let set = parse(&[one.clone(), two]).unwrap();
        assert!(matches!(set.find(Some("1"), Algorithm::ES256), Found::Key(_)));
        assert!(matches!(set.find(Some("1"), Algorithm::RS256), Found::Unfit(_)));
        assert!(matches!(set.find(Some("3"), Algorithm::ES256), Found::Unknown));
        assert!(matches!(set.find(None, Algorithm::ES256), Found::Unfit(_)));
        assert!(matches!(parse(&[one]).unwrap().find(None, Algorithm::ES256), Found::Key(_)));
    }

    #[test]
    fn one_bad_key_refuses_the_set() {
        let rsa = |n: usize, e: &[u8]| {
            let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
            // Of 256 octets it has no factor below 168.
            let modulus = [vec![0xff; n - 1], vec![0xfb]].concat();
            json!({"kty": "RSA", "kid": "r", "n": encode(&modulus), "e": encode(e)})
        };
        assert!(parse(&[jwk(), rsa(256, &[1, 0, 1]), p384()]).is_ok());
        let twice = with("kid", json!("same"));
        for (why, bad) in [
            ("private", vec![jwk(), with("d", json!("AA"))]),
            ("symmetric", vec![jwk(), json!({"kty": "oct", "kid": "s"})]),
            ("private RSA", vec![jwk(), json!({"kty": "RSA", "n": "AA", "e": "AQAB", "dp": "AA"})]),
            ("for encryption", vec![jwk(), with("use", json!("enc"))]),
            ("for a bundle", vec![jwk(), with("use", json!("jwt-svid"))]),
            ("a kid twice", vec![twice.clone(), twice]),
            ("a kid that is no text", vec![jwk(), with("kid", json!(1))]),
            ("RSA 1024", vec![jwk(), rsa(128, &[1, 0, 1])]),
            ("made by a library with ROCA", vec![jwk(), json!({"kty": "RSA", "n": ROCA, "e": "AQAB", "kid": "r"})]),
            ("e = 1", vec![jwk(), rsa(256, &[1])]),
            ("e = 3", vec![jwk(), rsa(256, &[0, 0, 3])]),
            ("not on the curve", vec![jwk(), with("y", jwk()["y"].clone())]),
            (
                "at infinity",
                vec![jwk(), {
                    let mut zero = with("x", json!("A".repeat(43)));
                    zero["y"] = zero["x"].clone();
                    zero
                }],
            ),
            ("half a coordinate", vec![jwk(), with("x", json!("A".repeat(22)))]),
            ("no coordinate", vec![jwk(), json!({"kty": "EC", "crv": "P-256", "kid": "n"})]),
            ("of another curve", vec![jwk(), with("crv", json!("P-384"))]),
            ("no object", vec![jwk(), json!("key")]),
            ("nothing of use", vec![with("alg", json!("ES384"))]),
            ("empty", vec![]),
            ("many", (0..65).map(|n| with("kid", json!(n.to_string()))).collect()),
        ] {
            assert!(parse(&bad).is_err(), "{why}");
        }
        assert!(KeySet::parse(br#"{"keys":[],"keys":[]}"#, &[Algorithm::ES256]).is_err());
        assert!(KeySet::parse(b"[]", &[Algorithm::ES256]).is_err());
        assert!(KeySet::parse(&vec![b' '; MAX_BYTES + 1], &[Algorithm::ES256]).is_err());
    }

    #[test]
    fn a_key_that_serves_nothing_here_is_left_out() {
        let other = json!({"kty": "OKP", "crv": "X25519", "x": "AA", "kid": "x"});
        let set = parse(&[with("kid", json!("1")), other]).unwrap();
        assert!(matches!(set.find(Some("x"), Algorithm::ES256), Found::Unfit(_)));
    }
}
