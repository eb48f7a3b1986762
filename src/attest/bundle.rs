//! The bundle of a SPIFFE trust domain (SPIFFE Trust Domain and Bundle, section 4): who may vouch for its workloads. In SPIFFE's own
//! form, or as certificates in PEM.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jsonwebtoken::Algorithm;
use rustls::pki_types::{CertificateDer, TrustAnchor, pem::PemObject as _};
use serde_json::{Value, json};
use std::time::Duration;

use super::{
    certificate::{parse, time},
    fetched::Document,
    jwks::{KeySet, MAX_BYTES},
};
use crate::{
    clock::Time,
    id::sha256_hex,
    jose::{Invalid, strict_json},
    rsa,
};

/// The algorithms that a JWT-SVID may be signed with (JWT-SVID section 2), as far as anybody here verifies them.
pub(super) const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// When a bundle is to be fetched again that does not say so, and the bounds of what it may say, in seconds.
const REFRESH: u64 = 300;
const SOONEST: u64 = 30;
const LATEST: u64 = 3600;
/// The most authorities that a bundle may hold.
const MAX_ANCHORS: usize = 64;

/// Who may vouch for the workloads of a trust domain.
pub(super) struct Bundle {
    anchors: Vec<Anchor>,
    /// The keys of JWT-SVIDs, where there are any.
    pub(super) keys: Option<KeySet>,
    fresh: Duration,
    fingerprint: String,
}

/// An authority, and while it is one.
pub(super) struct Anchor {
    pub(super) trusted: TrustAnchor<'static>,
    from: Time,
    pub(super) until: Time,
}

impl Bundle {
    /// Reads a bundle. One that holds nothing says that nobody is to be believed any more.
    ///
    /// # Errors
    /// When it is none, or something in it is not what it says it is.
    pub(super) fn parse(octets: &[u8]) -> Result<Self, Invalid> {
        if octets.len() > MAX_BYTES {
            return Err(Invalid("the bundle is larger than 256 KiB"));
        }
        let (anchors, keys, fresh) = if octets.trim_ascii_start().starts_with(b"{") {
            of_json(octets)?
        } else {
            (of_pem(octets)?, None, REFRESH)
        };
        if anchors.len() > MAX_ANCHORS {
            return Err(Invalid("the bundle holds more than 64 authorities"));
        }
        let fresh = Duration::from_secs(fresh.clamp(SOONEST, LATEST));
        Ok(Self { anchors, keys, fresh, fingerprint: sha256_hex(octets) })
    }

    /// Those that are authorities now.
    pub(super) fn anchors(&self, now: Time) -> impl Iterator<Item = &Anchor> {
        self.anchors.iter().filter(move |anchor| anchor.from <= now && now < anchor.until)
    }
}

impl Document for Bundle {
    type How = ();
    const ACCEPT: &'static str = "application/json";

    fn read(octets: &[u8], (): &()) -> Result<Self, Invalid> {
        Self::parse(octets)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn fresh(&self) -> Duration {
        self.fresh
    }
}

fn of_pem(octets: &[u8]) -> Result<Vec<Anchor>, Invalid> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(octets).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => certificates.iter().map(|one| anchor(one)).collect(),
        Ok(_) | Err(_) => Err(Invalid("neither a SPIFFE bundle nor certificates in PEM")),
    }
}

fn of_json(octets: &[u8]) -> Result<(Vec<Anchor>, Option<KeySet>, u64), Invalid> {
    let bundle: Value = strict_json(octets)?;
    let jwks = bundle.get("keys").and_then(Value::as_array).ok_or(Invalid("the bundle has no `keys`"))?;
    let (mut anchors, mut keys) = (Vec::new(), Vec::new());
    for jwk in jwks {
        let member = |name: &str| jwk.get(name).and_then(Value::as_str);
        // What has another use or another type of key is left out, as section 4.2 asks.
        let known = matches!(member("kty"), Some("EC" | "RSA"));
        match member("use") {
            Some("x509-svid") if known => anchors.push(anchor_of(jwk)?),
            Some("jwt-svid") if known => {
                let mut plain = jwk.clone();
                if let Some(members) = plain.as_object_mut() {
                    members.remove("use");
                }
                member("kid").ok_or(Invalid("a key of JWT-SVIDs has no `kid`"))?;
                keys.push(plain);
            }
            Some(_) => {}
            None => return Err(Invalid("a key of the bundle has no `use`")),
        }
    }
    let keys = match keys.as_slice() {
        [] => None,
        keys => Some(KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), &ALGORITHMS)?),
    };
    let fresh = match bundle.get("spiffe_refresh_hint") {
        None => REFRESH,
        Some(hint) => hint.as_u64().ok_or(Invalid("`spiffe_refresh_hint` is no number of seconds"))?,
    };
    Ok((anchors, keys, fresh))
}

/// The authority that stands in a bundle: one certificate in `x5c`.
fn anchor_of(jwk: &Value) -> Result<Anchor, Invalid> {
    const ONE: Invalid = Invalid("an authority of the bundle is not one certificate in `x5c`");
    let Some([Value::String(certificate)]) = jwk.get("x5c").and_then(Value::as_array).map(Vec::as_slice) else {
        return Err(ONE);
    };
    anchor(&BASE64_STANDARD.decode(certificate).map_err(|_| ONE)?)
}

fn anchor(certificate: &[u8]) -> Result<Anchor, Invalid> {
    let parsed = parse(certificate)?;
    if !parsed.is_ca() {
        return Err(Invalid("a certificate in the bundle is none of an authority"));
    }
    if rsa::flaw_in(parsed.public_key()).is_some() {
        return Err(Invalid("an authority of the bundle has an RSA key that can be factored by how it was made"));
    }
    let trusted = webpki::anchor_from_trusted_cert(&CertificateDer::from(certificate))
        .map_err(|_| Invalid("a certificate in the bundle cannot be used"))?
        .to_owned();
    let validity = parsed.validity();
    Ok(Anchor { trusted, from: time(validity.not_before)?, until: time(validity.not_after)? })
}
