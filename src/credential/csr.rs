//! A certification request (PKCS#10, RFC 2986), of which one thing is used: the public key, with the proof that the requester holds
//! it. What else stands in it is the requester's wish, and nobody reads it.

use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm,
};
use ring::signature::{EcdsaKeyPair, KeyPair as _};
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
        OID_SIG_ED25519, Oid,
    },
    prelude::FromDer as _,
    public_key::PublicKey,
    x509::{SubjectPublicKeyInfo, X509Version},
};

use super::published;
use crate::{error::Error, id::sha256_hex, jose::PublicJwk, pem, rsa};

/// The longest request that is looked at, in octets of PEM.
const MAX_CSR: usize = 16 * 1024;
/// RFC 7468 section 7, and what it was called before: `keytool` still says so.
const LABELS: [&str; 2] = ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"];
/// F4, the exponent of every RSA key that is made today.
const RSA_EXPONENT: u64 = 65_537;

/// A public key whose private half the requester was seen to hold: [`RequestedKey::prove`] makes one, or the key itself is at hand.
#[derive(Debug, Clone)]
pub struct RequestedKey {
    algorithm: &'static SignatureAlgorithm,
    octets: Vec<u8>,
}

const EC: &[Oid<'static>] = &[OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384];
const ED25519: &[Oid<'static>] = &[OID_SIG_ED25519];
const RSA: &[Oid<'static>] = &[OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA];

/// The kinds of key that are certified, and what each may sign its request with.
pub(super) struct Kind {
    algorithm: &'static SignatureAlgorithm,
    signatures: &'static [Oid<'static>],
}

impl RequestedKey {
    /// The key of a request in PEM: P-256, P-384, Ed25519, or RSA of 2048 to 4096 bits with the exponent 65537.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`], which says what to change.
    pub fn prove(csr: &str) -> Result<Self, Error> {
        if csr.len() > MAX_CSR {
            return Err(Error::invalid("`csr` is at most 16384 octets long"));
        }
        let document = pem::read_one(csr, &LABELS)
            .ok_or_else(|| Error::invalid("`csr` is one certificate request in PEM, and nothing beside it"))?;
        let malformed = || Error::invalid("`csr` is not a certificate request (PKCS#10)");
        let (rest, request) = X509CertificationRequest::from_der(&document).map_err(|_| malformed())?;
        let info = &request.certification_request_info;
        if !rest.is_empty() || info.version != X509Version::V1 {
            return Err(malformed());
        }
        let kind = kind_of(&info.subject_pki).ok_or_else(|| {
            Error::invalid(
                "the key in `csr` is none of P-256, P-384, Ed25519 and RSA of 2048 to 4096 bits with e = 65537",
            )
        })?;
        if let Some(why) = rsa::flaw_in(&info.subject_pki) {
            return Err(Error::invalid(format!("the RSA key in `csr` is weak: {why}")));
        }
        if !kind.signatures.contains(&request.signature_algorithm.algorithm) {
            return Err(Error::invalid("`csr` is signed in another way than with its key and SHA-2"));
        }
        if request.signature_value.unused_bits != 0 || request.verify_signature().is_err() {
            return Err(Error::invalid("the signature of `csr` is not made with the key in it"));
        }
        let key = Self { algorithm: kind.algorithm, octets: info.subject_pki.subject_public_key.data.to_vec() };
        if published::stands_in(&key.digest()).is_some() {
            return Err(Error::invalid(
                "the key in `csr` is an example whose private half is published: make one of your own",
            ));
        }
        Ok(key)
    }

    /// SHA-256 of the key (`SubjectPublicKeyInfo`), in lower-case hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        sha256_hex(&self.subject_public_key_info())
    }

    /// The key of a pair that is at hand.
    pub(super) fn of(pair: &EcdsaKeyPair) -> Self {
        Self { algorithm: &PKCS_ECDSA_P256_SHA256, octets: pair.public_key().as_ref().to_vec() }
    }

    /// The key as a JWK, where it is of P-256, as all keys of brokers are.
    #[must_use]
    pub fn as_p256(&self) -> Option<PublicJwk> {
        if self.algorithm == &PKCS_ECDSA_P256_SHA256 { PublicJwk::of_point(&self.octets) } else { None }
    }
}

/// What kind of key it is, if it is certified.
pub(super) fn kind_of(key: &SubjectPublicKeyInfo<'_>) -> Option<Kind> {
    let (name, octets) = (&key.algorithm.algorithm, &*key.subject_public_key.data);
    let parameters = key.algorithm.parameters.as_ref();
    if key.subject_public_key.unused_bits != 0 {
        return None;
    }
    if *name == OID_SIG_ED25519 {
        let fits = octets.len() == 32 && parameters.is_none();
        return fits.then_some(Kind { algorithm: &PKCS_ED25519, signatures: ED25519 });
    }
    if *name == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = parameters?.as_oid().ok()?;
        let (algorithm, length) = if curve == OID_EC_P256 {
            (&PKCS_ECDSA_P256_SHA256, 65)
        } else if curve == OID_NIST_EC_P384 {
            (&PKCS_ECDSA_P384_SHA384, 97)
        } else {
            return None;
        };
        let fits = octets.len() == length && octets[0] == 4;
        return fits.then_some(Kind { algorithm, signatures: EC });
    }
    if *name == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else { return None };
        let modulus = &rsa.modulus[rsa.modulus.iter().take_while(|octet| **octet == 0).count()..];
        let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
        // Before anything is computed with it: how long that takes is the size of the key.
        let fits = (2048..=4096).contains(&bits) && rsa.try_exponent().is_ok_and(|e| e == RSA_EXPONENT);
        return fits.then_some(Kind { algorithm: &PKCS_RSA_SHA256, signatures: RSA });
    }
    None
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.octets
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}
