//! Compact JWS, strictly: one crypto provider (ring) under `jsonwebtoken`, keys parsed once, and a reader that accepts
//! only what a correct writer would have written (RFC 7515, RFC 8725).
//!
//! `jsonwebtoken` brings no ring backend of its own, and its stock backends parse the private key again for every
//! signature. Its extension point is a plain `fn`, so the parsed keys live in a process-wide registry and an
//! `EncodingKey` carries only the handle of one, its `kid`.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result as JwtResult},
    jwk::{Jwk, ThumbprintHash},
};
use ring::{
    error::KeyRejected,
    rand::SystemRandom,
    signature::{
        self as rs, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
        RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

/// The longest token that is looked at: well above what the broker writes, well below what hurts.
pub const MAX_TOKEN: usize = 16 * 1024;

/// The longest header of a token, as it is written. What is in it is read before anything is verified.
pub const MAX_TOKEN_HEADER: usize = 8 * 1024;

/// Why a token or key was not accepted. For logs; callers learn only that it was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub &'static str);

/// What the broker signs with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
pub enum SigningAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    ES256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
}

impl fmt::Display for SigningAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ES256 => "ES256",
            Self::RS256 => "RS256",
        })
    }
}

impl From<SigningAlgorithm> for Algorithm {
    fn from(algorithm: SigningAlgorithm) -> Self {
        match algorithm {
            SigningAlgorithm::ES256 => Self::ES256,
            SigningAlgorithm::RS256 => Self::RS256,
        }
    }
}

/// A private key that signs: on P-256, or RSA. Parsed once; lives as long as the process.
#[derive(Clone)]
pub struct SigningKey {
    jwk: PublicJwk,
}

/// The public half of a key of the broker's as a JWK (RFC 7517), without `use`, which depends on the document it stands in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
pub struct PublicJwk {
    /// The key itself.
    #[serde(flatten)]
    pub numbers: KeyNumbers,
    /// The key id: the RFC 7638 thumbprint.
    pub kid: String,
    /// What it signs with: `ES256` on P-256, `RS256` with RSA.
    pub alg: SigningAlgorithm,
}

/// The numbers of a public key (RFC 7518 section 6), in base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(tag = "kty")]
pub enum KeyNumbers {
    /// A point of an elliptic curve.
    #[serde(rename = "EC")]
    Ec {
        /// `P-256`.
        crv: String,
        /// A coordinate.
        x: String,
        /// The other one.
        y: String,
    },
    /// An RSA key.
    #[serde(rename = "RSA")]
    Rsa {
        /// The modulus.
        n: String,
        /// The exponent.
        e: String,
    },
}

impl PublicJwk {
    /// The key at an uncompressed point of P-256 (SEC 1 section 2.3.3).
    #[must_use]
    pub fn of_point(point: &[u8]) -> Option<Self> {
        let (x, y) = point.strip_prefix(&[4]).filter(|rest| rest.len() == 64)?.split_at(32);
        let (x, y) = (BASE64_URL_SAFE_NO_PAD.encode(x), BASE64_URL_SAFE_NO_PAD.encode(y));
        // RFC 7638 section 3.2: the required members, in lexicographic order, nothing else.
        let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let numbers = KeyNumbers::Ec { crv: "P-256".into(), x, y };
        Some(Self { numbers, kid: Thumbprint::of_octets(members.as_bytes()).0, alg: SigningAlgorithm::ES256 })
    }

    fn of_rsa(modulus: &[u8], exponent: &[u8]) -> Self {
        let (n, e) = (BASE64_URL_SAFE_NO_PAD.encode(modulus), BASE64_URL_SAFE_NO_PAD.encode(exponent));
        let members = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
        let kid = Thumbprint::of_octets(members.as_bytes()).0;
        Self { numbers: KeyNumbers::Rsa { n, e }, kid, alg: SigningAlgorithm::RS256 }
    }
}

/// The RFC 7638 thumbprint of a public key, SHA-256 in base64url: the name of whoever holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Thumbprint(String);

impl Thumbprint {
    /// The thumbprint of a public JWK.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(jwk: &serde_json::Value) -> Result<Self, Invalid> {
        install();
        let jwk: Jwk = serde_json::from_value(jwk.clone()).map_err(|_| Invalid("a key is malformed"))?;
        jwk.thumbprint(ThumbprintHash::SHA256).map(Self).map_err(|_| Invalid("a key is malformed"))
    }

    /// The thumbprint of an X.509 certificate in DER (RFC 8705 section 3.1).
    #[must_use]
    pub fn of_certificate(certificate: &[u8]) -> Self {
        Self::of_octets(certificate)
    }

    /// SHA-256 of a thing that has one writing in octets.
    pub(crate) fn of_octets(octets: &[u8]) -> Self {
        Self(BASE64_URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, octets)))
    }

    /// The text, as it stands in `cnf`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Thumbprint {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        let fits = BASE64_URL_SAFE_NO_PAD.decode(&text).is_ok_and(|bytes| bytes.len() == 32);
        fits.then_some(Self(text)).ok_or(Invalid("not a thumbprint"))
    }
}

impl From<Thumbprint> for String {
    fn from(thumbprint: Thumbprint) -> Self {
        thumbprint.0
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SigningKey {
    /// A new key, as the PKCS#8 document to keep.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> Result<zeroize::Zeroizing<Vec<u8>>, Invalid> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|document| zeroize::Zeroizing::new(document.as_ref().to_vec()))
            .map_err(|_| Invalid("the operating system gave no random bytes"))
    }

    /// Parses a PKCS#8 document and registers the key with the provider.
    ///
    /// # Errors
    /// When it is no P-256 private key.
    pub fn from_pkcs8(document: &[u8]) -> Result<Self, Invalid> {
        install();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document, &SystemRandom::new())
            .map_err(|_| Invalid("not a P-256 private key in PKCS#8"))?;
        let jwk = PublicJwk::of_point(pair.public_key().as_ref()).ok_or(Invalid("not a P-256 public key"))?;
        Ok(Self::registered(jwk, Pair::P256(pair)))
    }

    /// Parses an RSA private key in a PKCS#8 document and registers it with the provider.
    ///
    /// # Errors
    /// When it is none of 2048 to 4096 bits that ring signs with.
    pub fn from_rsa_pkcs8(document: &[u8]) -> Result<Self, Invalid> {
        Self::from_rsa(RsaKeyPair::from_pkcs8(document))
    }

    /// The same of a PKCS#1 document (RFC 8017 appendix A.1.2).
    ///
    /// # Errors
    /// As [`SigningKey::from_rsa_pkcs8`].
    pub fn from_rsa_pkcs1(document: &[u8]) -> Result<Self, Invalid> {
        Self::from_rsa(RsaKeyPair::from_der(document))
    }

    fn from_rsa(pair: Result<RsaKeyPair, KeyRejected>) -> Result<Self, Invalid> {
        install();
        // What ring says of it is a word or two, and never of the key itself.
        let pair = pair.map_err(|why| match why.to_string().as_str() {
            "TooSmall" => WEAK_RSA,
            "TooLarge" | "PrivateModulusLenNotMultipleOf512Bits" => {
                Invalid("an RSA key of 2048 to 4096 bits in steps of 512 is needed; this one has another length")
            }
            "InvalidEncoding" | "WrongAlgorithm" | "VersionNotSupported" => Invalid("not an RSA private key"),
            _ => Invalid("not an RSA private key whose numbers belong together"),
        })?;
        let RsaPublicKeyComponents::<Vec<u8>> { n, e } = pair.public().into();
        if is_weak_rsa(&n, &e) {
            return Err(WEAK_RSA);
        }
        // That some of its numbers belong together shows when it signs, and not before.
        let mut signature = vec![0; n.len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), b"", &mut signature)
            .map_err(|_| Invalid("not an RSA private key whose numbers belong together"))?;
        Ok(Self::registered(PublicJwk::of_rsa(&n, &e), Pair::Rsa(pair)))
    }

    fn registered(jwk: PublicJwk, pair: Pair) -> Self {
        let name = jwk.kid.as_bytes().to_vec();
        registry().write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(pair));
        Self { jwk }
    }

    /// The key id.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.jwk.kid
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicJwk {
        &self.jwk
    }

    /// Signs claims into a compact JWS whose header is exactly `alg`, `kid` and `typ`.
    ///
    /// # Errors
    /// When the claims cannot be written as JSON.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, Invalid> {
        let kid = Some(self.jwk.kid.clone());
        self.encode(&Header { typ: Some(typ.to_owned()), kid, ..Header::new(self.jwk.alg.into()) }, claims)
    }

    /// Signs the claims of a DPoP proof (RFC 9449 section 4.2): the header names the public key itself.
    ///
    /// # Errors
    /// When the claims cannot be written as JSON.
    pub fn prove(&self, claims: &impl Serialize) -> Result<String, Invalid> {
        let jwk = serde_json::to_value(&self.jwk.numbers).and_then(serde_json::from_value);
        let (jwk, typ) = (jwk.map_err(|_| Invalid("not signed"))?, Some("dpop+jwt".to_owned()));
        self.encode(&Header { typ, jwk: Some(jwk), ..Header::new(self.jwk.alg.into()) }, claims)
    }

    fn encode(&self, header: &Header, claims: &impl Serialize) -> Result<String, Invalid> {
        let handle = match self.jwk.alg {
            SigningAlgorithm::ES256 => EncodingKey::from_ec_der(self.kid().as_bytes()),
            SigningAlgorithm::RS256 => EncodingKey::from_rsa_der(self.kid().as_bytes()),
        };
        jsonwebtoken::encode(header, claims, &handle).map_err(|_| Invalid("not signed"))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.jwk.kid).finish_non_exhaustive()
    }
}

/// Every RSA key is as long as this at least, whoever's it is.
const WEAK_RSA: Invalid =
    Invalid("an RSA key has 2048 bits at least and the exponent 65537 at least; this one is weaker");
/// Octets of the longest modulus that ring verifies with.
const LONGEST_RSA: usize = 1024;

fn is_weak_rsa(modulus: &[u8], exponent: &[u8]) -> bool {
    // A modulus of 2048 bits has its first bit set; an exponent below 65537 is short in every implementation we know.
    let strong = modulus.len() > 256 || (modulus.len() == 256 && modulus[0] >= 0x80);
    !strong || modulus[0] == 0 || exponent.len() < 3 || exponent[0] == 0
}

/// Whether the numbers of an RSA key in a JWK are such that it may be verified with.
///
/// # Errors
/// When they are too small, too large, missing, or written with zeros before them (RFC 7518 section 6.3.1).
pub(crate) fn check_rsa(jwk: &serde_json::Value) -> Result<(), Invalid> {
    let number = |name: &str| {
        let text = jwk.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default()
    };
    let (modulus, exponent) = (number("n"), number("e"));
    if is_weak_rsa(&modulus, &exponent) {
        return Err(WEAK_RSA);
    }
    if modulus.len() > LONGEST_RSA { Err(Invalid("an RSA key has 8192 bits at most")) } else { Ok(()) }
}

/// A public key and the one algorithm it may be used with (RFC 8725 section 3.1).
#[derive(Clone)]
pub struct VerifyingKey {
    algorithm: Algorithm,
    key: DecodingKey,
    thumbprint: Thumbprint,
}

impl VerifyingKey {
    /// Takes a public JWK for use with `algorithm`.
    ///
    /// # Errors
    /// When it is symmetric, private, meant for something else, or does not fit the algorithm.
    pub fn from_jwk(jwk: &serde_json::Value, algorithm: Algorithm) -> Result<Self, Invalid> {
        install();
        if jwk.get("d").is_some() || jwk.get("k").is_some() {
            return Err(Invalid("the key set holds a private or symmetric key"));
        }
        let curve = jwk.get("crv").and_then(serde_json::Value::as_str).map(str::to_owned);
        let thumbprint = Thumbprint::of(jwk)?;
        if family(algorithm)? == AlgorithmFamily::Rsa {
            check_rsa(jwk)?;
        }
        let jwk: Jwk = serde_json::from_value(jwk.clone()).map_err(|_| Invalid("a key is malformed"))?;
        let key = DecodingKey::from_jwk(&jwk).map_err(|_| Invalid("a key is malformed"))?;
        // The library goes by the length of the coordinates alone: by another name of its curve a key would have another thumbprint.
        if key.family() != family(algorithm)? || curve.as_deref() != curve_of(algorithm) {
            return Err(Invalid("the key does not fit the algorithm"));
        }
        Ok(Self { algorithm, key, thumbprint })
    }

    /// What it is known by, whatever it is called.
    #[must_use]
    pub fn thumbprint(&self) -> &Thumbprint {
        &self.thumbprint
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({:?})", self.algorithm)
    }
}

/// A token that has the form of a compact JWS and whose signature nobody has checked. It shows only what is needed to
/// find the key; the claims come out of [`Unverified::verify`].
#[derive(Debug)]
pub struct Unverified<'a> {
    token: &'a str,
    header: TokenHeader,
    issuer: Option<String>,
    subject: Option<String>,
}

/// The header members that are understood. Others are tolerated only where they cannot redirect trust.
#[derive(Debug, Deserialize)]
struct TokenHeader {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(flatten)]
    other: HashMap<String, serde_json::Value>,
}

/// Header members that would name another key, another encoding or a rule that is not implemented.
const FORBIDDEN_HEADERS: [&str; 8] = ["crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "enc"];

impl<'a> Unverified<'a> {
    /// Reads the outside of a token.
    ///
    /// # Errors
    /// When it is not a compact JWS in its one canonical writing, is too long, repeats a member or has a header that
    /// would redirect trust.
    pub fn parse(token: &'a str) -> Result<Self, Invalid> {
        Self::read(token, &[])
    }

    /// The same for a DPoP proof, which names its key (RFC 9449 section 4.2).
    ///
    /// # Errors
    /// As [`Unverified::parse`].
    pub fn parse_proof(token: &'a str) -> Result<Self, Invalid> {
        Self::read(token, &["jwk"])
    }

    /// The same for a thing that may be as long as this, and whose payload nobody looks at before its signature was checked:
    /// [`Unverified::verify_octets`].
    ///
    /// # Errors
    /// As [`Unverified::parse`], but for what is in the payload.
    pub fn parse_long(token: &'a str, longest: usize) -> Result<Self, Invalid> {
        let (header, _) = Self::outside(token, &[], longest)?;
        Ok(Self { token, header, issuer: None, subject: None })
    }

    fn read(token: &'a str, allowed: &[&str]) -> Result<Self, Invalid> {
        let (header, payload) = Self::outside(token, allowed, MAX_TOKEN)?;
        let payload: serde_json::Value = strict_json(&decode(payload)?)?;
        let claim = |name: &str| payload.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
        Ok(Self { token, header, issuer: claim("iss"), subject: claim("sub") })
    }

    fn outside(token: &'a str, allowed: &[&str], longest: usize) -> Result<(TokenHeader, &'a str), Invalid> {
        if token.len() > longest {
            return Err(Invalid("the token is too long"));
        }
        let mut parts = token.splitn(4, '.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Invalid("not a compact JWS"));
        };
        if header.len() > MAX_TOKEN_HEADER {
            return Err(Invalid("the header of the token is too long"));
        }
        decode(signature)?;
        let header: TokenHeader = strict_json(&decode(header)?)?;
        let forbidden = |name: &&str| !allowed.contains(name) && header.other.contains_key(*name);
        if FORBIDDEN_HEADERS.iter().any(forbidden) {
            return Err(Invalid("the header names a key, an encoding or an extension"));
        }
        Ok((header, payload))
    }

    /// What the signature is over.
    #[must_use]
    pub fn signed_part(&self) -> &str {
        self.token.rsplit_once('.').map_or(self.token, |(signed, _)| signed)
    }

    /// The key id it claims to be signed with.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// The key that a proof names.
    #[must_use]
    pub fn jwk(&self) -> Option<&serde_json::Value> {
        self.header.other.get("jwk")
    }

    /// The type it claims to have.
    #[must_use]
    pub fn typ(&self) -> Option<&str> {
        self.header.typ.as_deref()
    }

    /// The algorithm it claims, if it is one that anyone here verifies.
    #[must_use]
    pub fn algorithm(&self) -> Option<Algorithm> {
        let algorithm = match self.header.alg.as_str() {
            // The same by its newer name (RFC 9864 section 2.2).
            "Ed25519" => Algorithm::EdDSA,
            name => name.parse().ok()?,
        };
        family(algorithm).is_ok().then_some(algorithm)
    }

    /// The issuer it claims.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// The subject it claims.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// Whether the header has no member but `alg`, `kid` and `typ`, as in everything the broker writes.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.header.other.is_empty()
    }

    /// Checks the signature and yields the claims. Times, issuer and audience are the caller's to check: they are typed
    /// members of `C`.
    ///
    /// # Errors
    /// When the algorithm is not the key's, the signature is wrong, or the claims are not a `C`.
    pub fn verify<C: DeserializeOwned>(&self, key: &VerifyingKey) -> Result<C, Invalid> {
        let payload = self.verify_octets(key)?;
        serde_json::from_slice(&payload).map_err(|_| Invalid("a claim is missing or has the wrong type"))
    }

    /// Checks the signature and yields what it is over. Nobody has looked whether it is JSON, or repeats a member.
    ///
    /// # Errors
    /// When the algorithm is not the key's, or the signature is wrong.
    pub fn verify_octets(&self, key: &VerifyingKey) -> Result<Vec<u8>, Invalid> {
        if self.algorithm() != Some(key.algorithm) {
            return Err(Invalid("the algorithm is not the key's"));
        }
        let wrong = Invalid("the signature is wrong");
        let (signed, signature) = self.token.rsplit_once('.').ok_or(wrong)?;
        match jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &key.key, key.algorithm) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(wrong),
        }
        let (_, payload) = signed.split_once('.').ok_or(wrong)?;
        decode(payload)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, Invalid> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Invalid("not base64url without padding"))
}

/// Reads JSON and refuses an object that repeats a member, at any depth (RFC 8725bis; RFC 7515 section 4).
///
/// # Errors
/// When it is not JSON, repeats a member or is no `T`.
pub fn strict_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Invalid> {
    let value: NoRepeats = serde_json::from_slice(bytes).map_err(|_| Invalid("not JSON, or a member is repeated"))?;
    serde_json::from_value(value.0).map_err(|_| Invalid("a member is missing or has the wrong type"))
}

/// A JSON value in which no object repeats a member.
pub struct NoRepeats(pub serde_json::Value);

impl<'de> Deserialize<'de> for NoRepeats {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = serde_json::Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON without repeated members")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(serde_json::Value::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
                Ok(value.into())
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(NoRepeats(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(values.into())
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = serde_json::Map::new();
                while let Some((name, NoRepeats(value))) = map.next_entry::<String, NoRepeats>()? {
                    if members.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a member is repeated"));
                    }
                }
                Ok(members.into())
            }
        }
        deserializer.deserialize_any(Visitor).map(NoRepeats)
    }
}

/// Makes ring the provider of `jsonwebtoken` in this process. Every way into this module does so first.
fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider { signer_factory, verifier_factory, key_utils: KEY_UTILS };
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // Another provider could only have been installed by code outside this crate; ours would then never be asked,
        // and every signature and verification of this module would fail rather than pass.
        let _ = PROVIDER.install_default();
    });
}

const KEY_UTILS: KeyUtils = KeyUtils { compute_digest, ..KeyUtils::new_unimplemented() };

#[expect(clippy::needless_pass_by_value, reason = "the signature is the provider's")]
fn compute_digest(bytes: &[u8], hash: ThumbprintHash) -> JwtResult<Vec<u8>> {
    let algorithm = match hash {
        ThumbprintHash::SHA256 => &ring::digest::SHA256,
        ThumbprintHash::SHA384 => &ring::digest::SHA384,
        ThumbprintHash::SHA512 => &ring::digest::SHA512,
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    Ok(ring::digest::digest(algorithm, bytes).as_ref().to_vec())
}

fn family(algorithm: Algorithm) -> Result<AlgorithmFamily, Invalid> {
    match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => Ok(AlgorithmFamily::Ec),
        Algorithm::EdDSA => Ok(AlgorithmFamily::Ed),
        Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512 => Ok(AlgorithmFamily::Rsa),
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 | _ => {
            Err(Invalid("not an algorithm that is verified here"))
        }
    }
}

/// The curve of an algorithm (RFC 7518 section 3.4; RFC 8037 section 3.1).
fn curve_of(algorithm: Algorithm) -> Option<&'static str> {
    match algorithm {
        Algorithm::ES256 => Some("P-256"),
        Algorithm::ES384 => Some("P-384"),
        Algorithm::EdDSA => Some("Ed25519"),
        Algorithm::HS256
        | Algorithm::HS384
        | Algorithm::HS512
        | Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512
        | _ => None,
    }
}

enum Pair {
    P256(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

type Registry = RwLock<HashMap<Vec<u8>, Arc<Pair>>>;

fn registry() -> &'static Registry {
    static KEYS: OnceLock<Registry> = OnceLock::new();
    KEYS.get_or_init(Registry::default)
}

struct Signer {
    algorithm: Algorithm,
    pair: Arc<Pair>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is the provider's")]
fn signer_factory(algorithm: &Algorithm, key: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    let keys = registry().read().unwrap_or_else(PoisonError::into_inner);
    let pair = keys.get(key.as_bytes()).ok_or(ErrorKind::InvalidKeyFormat)?.clone();
    match (algorithm, &*pair) {
        (Algorithm::ES256, Pair::P256(_)) | (Algorithm::RS256, Pair::Rsa(_)) => {
            Ok(Box::new(Signer { algorithm: *algorithm, pair }))
        }
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

impl signature::Signer<Vec<u8>> for Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        let random = SystemRandom::new();
        let signed = match &*self.pair {
            Pair::P256(pair) => pair.sign(&random, message).map(|signature| signature.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map(|()| signature)
            }
        };
        signed.map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Signer {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

struct Verifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is the provider's")]
fn verifier_factory(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    if family(*algorithm).is_ok_and(|family| family == key.family()) {
        Ok(Box::new(Verifier { algorithm: *algorithm, key: key.clone() }))
    } else {
        Err(ErrorKind::InvalidAlgorithm.into())
    }
}

impl signature::Verifier<Vec<u8>> for Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let rsa = |parameters: &'static rs::RsaParameters| match self.key.kind() {
            jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, e } => RsaPublicKeyComponents { n, e }
                .verify(parameters, message, signature)
                .map_err(|_| signature::Error::new()),
            jsonwebtoken::DecodingKeyKind::SecretOrDer(_) => Err(signature::Error::new()),
        };
        let plain = |algorithm: &'static dyn VerificationAlgorithm| {
            let key = self.key.try_get_as_bytes().map_err(|_| signature::Error::new())?;
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).map_err(|_| signature::Error::new())
        };
        match self.algorithm {
            Algorithm::ES256 => plain(&rs::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => plain(&rs::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => plain(&rs::ED25519),
            Algorithm::RS256 => rsa(&rs::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => rsa(&rs::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => rsa(&rs::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => rsa(&rs::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => rsa(&rs::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => rsa(&rs::RSA_PSS_2048_8192_SHA512),
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 | _ => Err(signature::Error::new()),
        }
    }
}

impl JwtVerifier for Verifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    fn verifying(key: &SigningKey) -> VerifyingKey {
        VerifyingKey::from_jwk(&serde_json::to_value(key.public()).unwrap(), Algorithm::ES256).unwrap()
    }

    #[test]
    fn what_is_signed_verifies_and_nothing_else_does() {
        let (ours, other) = (key(), key());
        let token = ours.sign("at+jwt", &json!({"iss": "i", "n": 1})).unwrap();
        let unverified = Unverified::parse(&token).unwrap();
        assert_eq!(
            (unverified.kid(), unverified.typ(), unverified.issuer()),
            (Some(ours.kid()), Some("at+jwt"), Some("i"))
        );
        assert!(unverified.is_plain());
        assert_eq!(unverified.verify::<Value>(&verifying(&ours)).unwrap()["n"], 1);
        assert!(unverified.verify::<Value>(&verifying(&other)).is_err());
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let accepted = Unverified::parse(&changed).is_ok_and(|t| t.verify::<Value>(&verifying(&ours)).is_ok());
            assert!(!accepted, "a change at {at} was accepted");
        }
    }

    #[test]
    fn only_the_canonical_writing_is_read() {
        let token = key().sign("JWT", &json!({"iss": "i"})).unwrap();
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let with_header = |header: &str| format!("{}.{}.AA", encode(header), encode("{}"));
        let mut bad = vec![
            String::new(),
            "a.b".into(),
            format!("{token}."),
            format!("{token}="),
            format!(" {token}"),
            "....".into(),
        ];
        bad.push(with_header(r#"{"alg":"ES256","alg":"none"}"#));
        bad.push(format!("{}.{}.AA", encode(r#"{"alg":"ES256"}"#), encode(r#"{"iss":"a","iss":"b"}"#)));
        bad.push(format!("{}.{}.AA", encode(r#"{"alg":"ES256"}"#), encode(r#"{"a":[{"b":1,"b":1}]}"#)));
        bad.extend(FORBIDDEN_HEADERS.iter().map(|name| with_header(&format!(r#"{{"alg":"ES256","{name}":[]}}"#))));
        bad.push("A".repeat(MAX_TOKEN + 1));
        for token in bad {
            assert!(Unverified::parse(&token).is_err(), "{token}");
        }
        for alg in ["none", "NONE", "HS256", "es256", "ES512"] {
            assert_eq!(
                Unverified::parse(&with_header(&format!(r#"{{"alg":"{alg}"}}"#))).unwrap().algorithm(),
                None,
                "{alg}"
            );
        }
    }

    #[test]
    fn a_key_serves_one_algorithm() {
        let jwk = serde_json::to_value(key().public()).unwrap();
        assert!(VerifyingKey::from_jwk(&jwk, Algorithm::RS256).is_err());
        assert!(VerifyingKey::from_jwk(&jwk, Algorithm::HS256).is_err());
        assert!(VerifyingKey::from_jwk(&json!({"kty": "oct", "k": "AA"}), Algorithm::HS256).is_err());
        let mut private = jwk;
        private["d"] = "AA".into();
        assert!(VerifyingKey::from_jwk(&private, Algorithm::ES256).is_err());
    }
}
