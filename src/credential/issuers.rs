//! Who vouches for an authority that is none by itself: the certificates from the one that signed it up to a root, judged before
//! anything is signed as every verifier of what it signs will judge them (RFC 5280 section 6, X509-SVID section 4).

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use std::collections::VecDeque;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA},
    prelude::FromDer as _,
    public_key::PublicKey,
    time::ASN1Time,
    x509::{SubjectPublicKeyInfo, X509Version},
};

use super::{constraints, csr};
use crate::{
    clock::Time,
    id::{Host, TrustDomain},
    jose::{KeyNumbers, Thumbprint},
    lease::{TrustAnchor, Vouched},
    pem,
};

/// The most certificates above an authority, other roots included.
const MOST: usize = 8;
/// The most octets that they have together: they are kept beside the key of the authority.
const MOST_OCTETS: usize = 16 * 1024;

/// The certificates above an authority (DER). Each is signed by the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issuers {
    /// Those that are no root, nearest first: verifiers are sent them.
    chain: Vec<Vec<u8>>,
    /// The root where the chain ends, and others that verifiers are to trust.
    roots: Vec<Vec<u8>>,
}

/// For whom an authority is to be certified.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subjects<'a> {
    /// The trust domain of all that it certifies.
    pub(super) domain: &'a TrustDomain,
    /// The names of the broker's own server.
    pub(super) hosts: &'a [Host],
}

impl Issuers {
    /// Those from `nearest` on, found among `others`, of which all are needed but those that are roots.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn above(nearest: Vec<u8>, others: Vec<Vec<u8>>) -> Result<Self, String> {
        let octets = nearest.len() + others.iter().map(Vec::len).sum::<usize>();
        if others.len() >= MOST || octets > MOST_OCTETS {
            return Err("more than 8 certificates, or more than 16 KiB of them".into());
        }
        let (mut chain, mut others, mut at) = (Vec::new(), VecDeque::from(others), nearest);
        loop {
            if numbers(parse(&at)?.public_key()).is_none() {
                return Err(format!("the certificate of `{}` has a key that is none of {KEYS}", name(&at)?));
            }
            if is_root(&at)? {
                break;
            }
            let mut signer = None;
            for (place, other) in others.iter().enumerate() {
                if signs(other, &at)? {
                    signer = Some(place);
                    break;
                }
            }
            let Some(next) = signer.and_then(|place| others.remove(place)) else {
                return Err(format!(
                    "the certificate of `{}` leads to no root: name a file with the root in `authority.upstream.bundle_file`",
                    name(&at)?
                ));
            };
            chain.push(std::mem::replace(&mut at, next));
        }
        others.retain(|other| *other != at);
        for other in &others {
            if !is_root(other)? {
                return Err(format!("the certificate of `{}` vouches for none of the others", name(other)?));
            }
        }
        let roots: Vec<_> = std::iter::once(at).chain(others).collect();
        for root in &roots {
            let parsed = parse(root)?;
            if !parsed.is_ca() || numbers(parsed.public_key()).is_none() {
                return Err(format!("the certificate of `{}` is none of a CA with a key of {KEYS}", name(root)?));
            }
        }
        Ok(Self { chain, roots })
    }

    /// As [`Issuers::above`], of an authority that is to be signed by the first of `all`.
    ///
    /// # Errors
    /// What is wrong with them, or that the authority is not.
    pub(super) fn of(authority: &[u8], all: Vec<Vec<u8>>) -> Result<Self, String> {
        let mut all = all.into_iter();
        let nearest = all.next().ok_or("nobody vouches for it")?;
        if !signs(&nearest, authority)? {
            return Err("it is not signed by the certificate behind it".into());
        }
        Self::above(nearest, all.collect())
    }

    /// Judges each as an authority above one that certifies these subjects, at `now`: from when and until when all are valid.
    ///
    /// # Errors
    /// A sentence on the first that will not do.
    pub(super) fn judge(&self, subjects: Subjects<'_>, now: Time) -> Result<(Time, Time), String> {
        let (mut from, mut until) = (Time::MIN_UTC, Time::MAX_UTC);
        for (below, certificate) in self.path().enumerate() {
            let parsed = parse(certificate)?;
            let of_it = |why: String| format!("the certificate of `{}` {why}", parsed.subject());
            may_certify(&parsed, below, subjects).map_err(of_it)?;
            let (begins, ends) = (time(parsed.validity().not_before)?, time(parsed.validity().not_after)?);
            if now < begins || now >= ends {
                return Err(of_it(format!("is valid from {begins} until {ends} alone: renew it")));
            }
            (from, until) = (from.max(begins), until.min(ends));
        }
        Ok((from, until))
    }

    /// The certificate that is nearest.
    pub(super) fn nearest(&self) -> &[u8] {
        self.path().next().map_or(&[], Vec::as_slice)
    }

    /// The id of the key of the nearest: a digest of it.
    ///
    /// # Errors
    /// When the certificate is malformed.
    pub(super) fn key(&self) -> Result<String, String> {
        Ok(Thumbprint::of_octets(parse(self.nearest())?.public_key().raw).into())
    }

    /// Those that verifiers are sent behind that of the authority.
    pub(super) fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// From the nearest to the root.
    fn path(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.chain.iter().chain(self.roots.first())
    }

    /// All of them in PEM, as [`Issuers::of`] takes them.
    pub(super) fn pem(&self) -> String {
        self.chain.iter().chain(&self.roots).map(|one| pem::write("CERTIFICATE", one)).collect()
    }

    /// What verifiers and operators are told of them.
    pub(super) fn vouched(&self) -> Vouched {
        let anchor = |root: &Vec<u8>| {
            let numbers = parse(root).ok().and_then(|parsed| numbers(parsed.public_key()))?;
            Some(TrustAnchor { numbers, certificate: BASE64_STANDARD.encode(root) })
        };
        let (by, key) = (name(self.nearest()).unwrap_or_default(), self.key().unwrap_or_default());
        Vouched { by, key, roots: self.roots.iter().filter_map(anchor).collect() }
    }
}

/// What the keys on a path may be of: whoever verifies certificates at all knows these.
const KEYS: &str = "P-256, P-384, or RSA of 2048 to 4096 bits";

/// Reads one certificate and nothing after it.
pub(super) fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err("a certificate is malformed".into()),
    }
}

/// The serial of a certificate (DER), and when that ends.
///
/// # Errors
/// When it is malformed.
pub(super) fn serial(certificate: &[u8]) -> Result<(Vec<u8>, Time), String> {
    let parsed = parse(certificate)?;
    Ok((parsed.raw_serial().to_vec(), time(parsed.validity().not_after)?))
}

/// The name of whose certificate it is, for people.
pub(super) fn name(certificate: &[u8]) -> Result<String, String> {
    Ok(parse(certificate)?.subject().to_string())
}

fn time(time: ASN1Time) -> Result<Time, String> {
    Time::from_timestamp_secs(time.timestamp()).ok_or_else(|| "a certificate has a time out of range".into())
}

/// Whether it is signed by itself.
fn is_root(certificate: &[u8]) -> Result<bool, String> {
    signs(certificate, certificate)
}

/// Whether the holder of the first certificate signed the second one.
fn signs(issuer: &[u8], certificate: &[u8]) -> Result<bool, String> {
    let (issuer, certificate) = (parse(issuer)?, parse(certificate)?);
    Ok(issuer.subject().as_raw() == certificate.issuer().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok())
}

/// Whether it can stand above an authority with `below` others between the two: what is wrong, as the end of a sentence.
fn may_certify(certificate: &X509Certificate<'_>, below: usize, subjects: Subjects<'_>) -> Result<(), String> {
    let hold = |holds: bool, why: &str| if holds { Ok(()) } else { Err(why.to_owned()) };
    let malformed = "has an extension that is malformed, or there twice";
    certificate.extensions_map().map_err(|_| malformed)?;
    hold(certificate.version() == X509Version::V3 && certificate.is_ca(), "is none of a CA")?;
    hold(certificate.subject().iter().next().is_some(), "has no subject")?;
    let basic = certificate.basic_constraints().map_err(|_| malformed)?;
    let room = basic.and_then(|basic| basic.value.path_len_constraint);
    if let Some(room) = room.filter(|room| usize::try_from(*room).is_ok_and(|room| room <= below)) {
        return Err(format!(
            "has a path length of {room}, and that of the broker's authority needs {}: no CA may stand below it there",
            below + 1
        ));
    }
    let usage = certificate.key_usage().map_err(|_| malformed)?.ok_or("has no key usage")?;
    hold(usage.value.key_cert_sign(), "may not sign certificates: its key usage is without keyCertSign")?;
    // Only the nearest one signs for the broker.
    hold(below > 0 || usage.value.crl_sign(), "may not sign revocation lists: its key usage is without cRLSign")?;
    let extended = certificate.extended_key_usage().map_err(|_| malformed)?;
    hold(
        extended.is_none_or(|usage| usage.value.any || usage.value.server_auth && usage.value.client_auth),
        "has an extended key usage without serverAuth and clientAuth",
    )?;
    let sha1 = [OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA];
    hold(!sha1.contains(&certificate.signature_algorithm.algorithm), "is signed by way of SHA-1")?;
    for extension in certificate.extensions() {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "what is not known here matters where it is critical, in the next version of the parser too"
        )]
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => one_domain(&names.general_names, subjects.domain)?,
            ParsedExtension::NameConstraints(constraints) => constraints::check(constraints, subjects)?,
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_) => {}
            _ if extension.critical => {
                return Err(format!(
                    "has a critical extension that the broker does not know: {}",
                    extension.oid.to_id_string()
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// X509-SVID section 4.1: an authority with a SPIFFE ID is of the trust domain of what it certifies.
fn one_domain(names: &[GeneralName<'_>], domain: &TrustDomain) -> Result<(), String> {
    let own = format!("spiffe://{domain}");
    for name in names {
        if let GeneralName::URI(uri) = name
            && uri.to_ascii_lowercase().starts_with("spiffe:")
            && *uri != own
        {
            return Err(format!("is of another trust domain: it says `{uri}`, and `trust_domain` is `{domain}`"));
        }
    }
    Ok(())
}

/// A public key as a JWK has it, where it is one of [`KEYS`].
fn numbers(key: &SubjectPublicKeyInfo<'_>) -> Option<KeyNumbers> {
    csr::kind_of(key)?;
    let text = |octets: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(octets);
    match key.parsed().ok()? {
        PublicKey::EC(_) => {
            let point = key.subject_public_key.data.strip_prefix(&[4])?;
            let (x, y) = point.split_at(point.len() / 2);
            let crv = if x.len() == 32 { "P-256" } else { "P-384" };
            Some(KeyNumbers::Ec { crv: crv.into(), x: text(x), y: text(y) })
        }
        PublicKey::RSA(rsa) => {
            let plain = |octets: &[u8]| text(&octets[octets.iter().take_while(|octet| **octet == 0).count()..]);
            Some(KeyNumbers::Rsa { n: plain(rsa.modulus), e: plain(rsa.exponent) })
        }
        PublicKey::DSA(_) | PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) | PublicKey::Unknown(_) => None,
    }
}
