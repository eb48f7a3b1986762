//! The certificate that a caller showed in a TLS handshake, with proof of holding its key. Nothing that it says is believed
//! yet; only what is expensive to look at is turned away here, before anything is computed with it.

use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    prelude::{ASN1Time, FromDer as _},
    public_key::PublicKey,
};

use crate::{
    clock::Time,
    id::sha256_hex,
    jose::{Invalid, Thumbprint},
};

/// The most certificates that a caller may send, its own included.
const MAX_CHAIN: usize = 6;
/// The most octets that they may have together.
const MAX_OCTETS: usize = 32 * 1024;
/// The largest RSA key in any of them, in bits.
const MAX_RSA: usize = 4096;

/// A client certificate and what was sent with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    thumbprint: Thumbprint,
    key: Thumbprint,
    key_sha256: String,
    not_before: Time,
    not_after: Time,
    digest: String,
}

impl ClientCertificate {
    /// Takes what was presented: the certificate itself first.
    ///
    /// # Errors
    /// When one of them is none, or they are more, larger or with larger keys than anybody needs.
    pub fn presented(chain: &[CertificateDer<'_>]) -> Result<Self, Invalid> {
        let octets: usize = chain.iter().map(|certificate| certificate.len()).sum();
        let (Some(leaf), true) = (chain.first(), chain.len() <= MAX_CHAIN && octets <= MAX_OCTETS) else {
            return Err(Invalid("a chain is 1 to 6 certificates of 32 KiB together"));
        };
        for certificate in chain {
            let parsed = parse(certificate)?;
            match parsed.public_key().parsed() {
                Ok(PublicKey::RSA(key)) if key.key_size() > MAX_RSA || key.try_exponent().is_err() => {
                    return Err(Invalid("a certificate has an RSA key of more than 4096 bits"));
                }
                Ok(_) => {}
                Err(_) => return Err(Invalid("a certificate has a malformed key")),
            }
        }
        let parsed = parse(leaf)?;
        Ok(Self {
            thumbprint: Thumbprint::of_certificate(leaf),
            key: Thumbprint::of_octets(parsed.public_key().raw),
            key_sha256: sha256_hex(parsed.public_key().raw),
            not_before: time(parsed.validity().not_before)?,
            not_after: time(parsed.validity().not_after)?,
            // Where one ends, each of them says itself.
            digest: sha256_hex(&chain.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>().concat()),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
        })
    }

    /// What tokens that are bound to it name (RFC 8705 section 3.1).
    #[must_use]
    pub fn thumbprint(&self) -> &Thumbprint {
        &self.thumbprint
    }

    /// SHA-256 of its public key (`SubjectPublicKeyInfo`), which stays when the certificate is renewed for the same key.
    #[must_use]
    pub fn key(&self) -> &Thumbprint {
        &self.key
    }

    /// The same in lower-case hexadecimal.
    #[must_use]
    pub fn key_sha256(&self) -> &str {
        &self.key_sha256
    }

    /// Whether it says that it is valid now; who vouches for it is another question.
    #[must_use]
    pub fn is_current(&self, now: Time) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// Its end.
    #[must_use]
    pub fn not_after(&self) -> Time {
        self.not_after
    }

    /// SHA-256 of all that was sent.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// The certificate, and those that were sent with it.
    pub(super) fn split(&self) -> (&[u8], &[CertificateDer<'static>]) {
        self.chain.split_first().map_or((&[], &[]), |(leaf, rest)| (leaf, rest))
    }
}

/// When a certificate ends.
///
/// # Errors
/// When it is none.
pub fn not_after(certificate: &[u8]) -> Result<Time, Invalid> {
    time(parse(certificate)?.validity().not_after)
}

/// Reads one certificate and nothing after it.
pub(super) fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, Invalid> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(Invalid("a certificate is malformed")),
    }
}

/// A time in a certificate.
pub(super) fn time(time: ASN1Time) -> Result<Time, Invalid> {
    Time::from_timestamp(time.timestamp(), 0).ok_or(Invalid("a certificate has a time out of range"))
}
