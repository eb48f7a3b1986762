//! A SPIFFE authority: a key of the broker's own and the certificate that X.509-SVIDs and their CRLs are verified against, which is
//! self-signed, or has that of an upstream CA and those above it behind it. All stand in one file, and the key never leaves it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, RevocationReason, RevokedCertParams,
    SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use std::{
    fmt,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};
use zeroize::Zeroizing;

use super::{RequestedKey, issuers::Issuers, lint, upstream::Upstream};
use crate::{
    clock::{Time, after, whole_second},
    id::{CrlId, Host, LeaseId, SpiffeId, TrustDomain, random},
    jose::{self, Invalid, PublicJwk},
    lease::Vouched,
    pem,
    task::State,
};

/// How far before the moment it is made a certificate begins, in seconds: so much a verifier's clock may be behind.
pub(super) const BACKDATED: i64 = 60;

/// A broker's own authority.
pub struct Authority {
    pair: EcdsaKeyPair,
    jwk: PublicJwk,
    certificate: Vec<u8>,
    /// Who vouches for it; `None`: nobody but itself.
    issuers: Option<Issuers>,
    not_before: Time,
    not_after: Time,
    /// Whether it is tainted. Held while it signs, so that whoever has set it knows that nothing is being signed.
    is_barred: RwLock<bool>,
}

/// What is to be certified.
pub(super) struct Leaf<'a> {
    /// 20 octets, the first of which says whose it is.
    pub(super) serial: &'a [u8],
    pub(super) subject: &'a SpiffeId,
    pub(super) key: &'a RequestedKey,
    pub(super) not_before: Time,
    pub(super) not_after: Time,
    /// Where the list stands that it would be on; `None`: there is none for it.
    pub(super) crl: Option<&'a str>,
    pub(super) holder: Whose<'a>,
}

/// Who shows a certificate.
#[derive(Clone, Copy)]
pub(super) enum Whose<'a> {
    /// A task, at either end of TLS.
    Task,
    /// The broker, to whoever calls it under one of these names.
    Broker(&'a [Host]),
}

impl Whose<'_> {
    /// What their serials begin with. Those of authorities begin with 02.
    pub(super) fn first_octet(self) -> u8 {
        match self {
            Self::Task => 1,
            Self::Broker(_) => 3,
        }
    }
}

/// A list of revoked certificates, to be signed.
#[derive(Debug)]
pub struct RevocationList<'a> {
    /// Which one.
    pub id: &'a CrlId,
    /// Where it stands.
    pub uri: String,
    /// Higher than that of the list before.
    pub number: u64,
    /// From when on it holds.
    pub this_update: Time,
    /// When there is another at the latest.
    pub next_update: Time,
    /// The serials on it; since when, and how their task ended.
    pub revoked: Vec<(LeaseId, Time, State)>,
}

impl Authority {
    /// A new key and certificate for a trust domain, as the PEM to keep. The certificate lasts for `life` seconds, and no longer than an
    /// upstream CA that signs it, whose list of authorities stands at the address beside it.
    ///
    /// # Errors
    /// When the operating system gives no random bytes, or the upstream CA cannot sign.
    pub(super) fn generate(
        domain: &TrustDomain,
        upstream: Option<(&Upstream, String)>,
        now: Time,
        life: u32,
    ) -> Result<Zeroizing<String>, Invalid> {
        const UNMADE: Invalid = Invalid("no certificate could be made for it");
        let document = jose::SigningKey::generate()?;
        let pair = pair(&document)?;
        let jwk = PublicJwk::of_point(pair.public_key().as_ref()).ok_or(UNMADE)?;
        let mut serial = random::<20>().map_err(|why| Invalid(why.0))?;
        serial[0] = 2;
        let mut params = params_of(&jwk);
        let (from, until) =
            upstream.as_ref().map_or((Time::MIN_UTC, Time::MAX_UTC), |(upstream, _)| upstream.validity());
        params.not_before = moment((now - chrono::TimeDelta::seconds(BACKDATED)).max(from))?;
        params.not_after = moment(after(now, life).ok_or(UNMADE)?.min(until))?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let name = format!("spiffe://{domain}");
        params.subject_alt_names = vec![SanType::URI(name.try_into().map_err(|_| UNMADE)?)];
        let (certificate, others) = match upstream {
            None => (params.self_signed(&Signer(&pair)).map_err(|_| UNMADE)?.der().to_vec(), String::new()),
            Some((upstream, crl)) => (upstream.certify(params, crl, &Signer(&pair))?, upstream.issuers().pem()),
        };
        let text = pem::write("PRIVATE KEY", &document);
        Ok(Zeroizing::new(text + &pem::write("CERTIFICATE", &certificate) + &others))
    }

    /// Reads a key and its certificate, which has to be of this trust domain, and those above it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn from_pem(text: &str, domain: &TrustDomain) -> Result<Self, Invalid> {
        let document = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| Invalid("not a private key in PEM (PKCS#8)"))?;
        let pair = pair(document.secret_pkcs8_der())?;
        let jwk = PublicJwk::of_point(pair.public_key().as_ref()).ok_or(Invalid("not a P-256 private key"))?;
        let mut others = CertificateDer::pem_slice_iter(text.as_bytes());
        let certificate = others.next().and_then(Result::ok);
        let certificate = certificate.ok_or(Invalid("the certificate of the authority is missing beside its key"))?;
        let others = others.map(|one| one.map(|one| one.to_vec())).collect::<Result<Vec<_>, _>>();
        let unlike = Invalid("the certificate is none of an authority with this key");
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| unlike)?;
        let is_ours = parsed.tbs_certificate.subject_pki.raw == Signer(&pair).subject_public_key_info()
            && parsed.is_ca()
            && parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()) == Some(&*jwk.kid);
        if !is_ours {
            return Err(unlike);
        }
        let others = others.map_err(|_| unlike)?;
        let issuers = if others.is_empty() {
            parsed.verify_signature(None).map_err(|_| unlike)?;
            None
        } else {
            let vouching = Issuers::of(&certificate, others);
            Some(vouching.map_err(|_| Invalid("the certificates behind that of the authority do not vouch for it"))?)
        };
        let names = parsed.subject_alternative_name().ok().flatten().map(|names| &names.value.general_names);
        let own = format!("spiffe://{domain}");
        if names.is_none_or(|names| !matches!(&names[..], [GeneralName::URI(name)] if *name == own)) {
            return Err(Invalid(
                "the authority is one of another `trust_domain`: move the file away, and a new one is made",
            ));
        }
        let at = |time: x509_parser::time::ASN1Time| Time::from_timestamp_secs(time.timestamp()).ok_or(unlike);
        let (not_before, not_after) = (at(parsed.validity().not_before)?, at(parsed.validity().not_after)?);
        let is_barred = RwLock::new(false);
        Ok(Self { pair, jwk, certificate: certificate.to_vec(), issuers, not_before, not_after, is_barred })
    }

    /// From now on it signs nothing. When this returns, nothing is being signed with it.
    pub(super) fn bar(&self) {
        *self.is_barred.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// To be held while something is signed.
    fn signing(&self) -> Result<RwLockReadGuard<'_, bool>, Invalid> {
        let is_barred = self.is_barred.read().unwrap_or_else(PoisonError::into_inner);
        if *is_barred { Err(Invalid("the authority is tainted")) } else { Ok(is_barred) }
    }

    /// The id of its key.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.jwk.kid
    }

    /// Its key.
    #[must_use]
    pub fn public(&self) -> &PublicJwk {
        &self.jwk
    }

    /// Its certificate in base64, as it stands in `x5c`.
    #[must_use]
    pub fn certificate(&self) -> String {
        BASE64_STANDARD.encode(&self.certificate)
    }

    /// What verifiers are told of who vouches for it, where it does not do so itself.
    pub(super) fn vouched(&self) -> Option<Vouched> {
        self.issuers.as_ref().map(Issuers::vouched)
    }

    /// The certificate that signed its own (DER), if another did.
    pub(super) fn upstream(&self) -> Option<&[u8]> {
        self.issuers.as_ref().map(Issuers::nearest)
    }

    /// What stands behind a certificate that it signs, up to one that verifiers trust by themselves (DER).
    pub(super) fn chain(&self) -> impl Iterator<Item = &[u8]> {
        let issuers = self.issuers.iter();
        issuers.flat_map(|issuers| [&self.certificate].into_iter().chain(issuers.chain())).map(Vec::as_slice)
    }

    /// Whether somebody shows the authority's own key as theirs.
    pub(super) fn is_key(&self, key: &RequestedKey) -> bool {
        key.der_bytes() == self.pair.public_key().as_ref()
    }

    /// From when on it is valid.
    pub(super) fn not_before(&self) -> Time {
        self.not_before
    }

    /// Until when it is valid.
    #[must_use]
    pub fn not_after(&self) -> Time {
        self.not_after
    }

    /// Signs an X.509-SVID, in DER, once the lint has found nothing wrong with what is to be signed.
    ///
    /// # Errors
    /// When it has, when it cannot be encoded, or when the authority is tainted.
    pub(super) fn issue(&self, leaf: &Leaf<'_>) -> Result<Vec<u8>, Invalid> {
        const UNMADE: Invalid = Invalid("a certificate could not be made");
        let _signing = self.signing()?;
        let mut params = CertificateParams::default();
        params.not_before = moment(leaf.not_before)?;
        params.not_after = moment(leaf.not_after)?;
        params.serial_number = Some(SerialNumber::from_slice(leaf.serial));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        let subject = leaf.subject.as_str().try_into().map_err(|_| UNMADE)?;
        params.subject_alt_names = vec![SanType::URI(subject)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        match leaf.holder {
            Whose::Task => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
            Whose::Broker(hosts) => {
                for host in hosts {
                    params.subject_alt_names.push(match host {
                        Host::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(|_| UNMADE)?),
                        Host::Ip(address) => SanType::IpAddress(*address),
                    });
                }
            }
        }
        match leaf.crl {
            Some(uri) => params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![uri.to_owned()] }],
            None => params.custom_extensions = vec![CustomExtension::from_oid_content(&NO_REV_AVAIL, NULL.to_vec())],
        }
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(params_of(&self.jwk), Linting { authority: self, leaf });
        Ok(params.signed_by(leaf.key, &issuer).map_err(|_| UNMADE)?.der().to_vec())
    }

    /// Signs a list (RFC 5280 section 5), in DER.
    ///
    /// # Errors
    /// When it cannot be encoded, or when the authority is tainted.
    pub fn sign_list(&self, list: RevocationList<'_>) -> Result<Vec<u8>, Invalid> {
        const UNMADE: Invalid = Invalid("a revocation list could not be made");
        let _signing = self.signing()?;
        let revoked = list.revoked.into_iter().map(|(serial, at, ended)| {
            let reason_code = Some(match ended {
                State::Completed | State::Expired => RevocationReason::CessationOfOperation,
                State::Active | State::PendingApproval | State::Revoked => RevocationReason::PrivilegeWithdrawn,
            });
            let (serial_number, revocation_time) = (SerialNumber::from(serial.octets()), moment(at)?);
            Ok(RevokedCertParams { serial_number, revocation_time, reason_code, invalidity_date: None })
        });
        let distribution_point = CrlDistributionPoint { uris: vec![list.uri] };
        let params = CertificateRevocationListParams {
            this_update: moment(list.this_update)?,
            next_update: moment(list.next_update)?,
            crl_number: SerialNumber::from(list.number),
            // The whole list has none, so it is complete for the authority's own certificate too: `ssl_crl` of nginx asks for that.
            issuing_distribution_point: (!list.id.is_whole())
                .then_some(CrlIssuingDistributionPoint { distribution_point, scope: Some(CrlScope::UserCertsOnly) }),
            revoked_certs: revoked.collect::<Result<_, _>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = Issuer::new(params_of(&self.jwk), Signer(&self.pair));
        Ok(params.signed_by(&issuer).map_err(|_| UNMADE)?.der().to_vec())
    }
}

/// RFC 9608 section 2: there is no word on whether the certificate is revoked.
pub(super) const NO_REV_AVAIL: [u64; 4] = [2, 5, 29, 56];
/// What the extension holds.
pub(super) const NULL: [u8; 2] = [5, 0];

/// The one attribute of the subject of what it certifies, and the first of its own.
pub(super) const ORGANIZATION: &str = "Remit";

/// What every certificate of the authority with this key says of it. Its name is its own among all brokers: whoever looks for a list
/// or an issuer by name alone finds the right one.
fn params_of(jwk: &PublicJwk) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
    params.distinguished_name.push(DnType::CommonName, jwk.kid.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(super) fn pair(document: &[u8]) -> Result<EcdsaKeyPair, Invalid> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document, &SystemRandom::new())
        .map_err(|_| Invalid("not a P-256 private key in PKCS#8"))
}

/// The whole second, as certificates have it.
pub(super) fn moment(time: Time) -> Result<OffsetDateTime, Invalid> {
    OffsetDateTime::from_unix_timestamp(whole_second(time).timestamp()).map_err(|_| Invalid("a time is out of range"))
}

/// The key, in the words of the library.
struct Signer<'a>(&'a EcdsaKeyPair);

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// The key that signs one certificate, after a look at the very octets.
struct Linting<'a> {
    authority: &'a Authority,
    leaf: &'a Leaf<'a>,
}

impl PublicKeyData for Linting<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.authority.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Linting<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        lint::check(message, self.leaf, self.authority).map_err(|why| {
            tracing::error!(why, "a certificate is not signed: a defect of the broker");
            rcgen::Error::RemoteKeyError
        })?;
        Signer(&self.authority.pair).sign(message)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("kid", &self.jwk.kid).finish_non_exhaustive()
    }
}
