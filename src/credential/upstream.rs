//! The CA of an organisation, in files: it certifies the broker's authorities, so that whoever trusts its root trusts them.
//!
//! The key is read when something is to be signed with it, and not kept.

use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope,
    DnType, Issuer, KeyIdMethod, KeyPair, PublicKeyData, RevocationReason, RevokedCertParams, SerialNumber, SigningKey,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::Deserialize;
use std::{
    cell::RefCell,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};
use x509_parser::{
    certificate::TbsCertificate, extensions::ParsedExtension, prelude::FromDer as _, revocation_list::TbsCertList,
};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    authority::moment,
    issuers::{self, Issuers, Subjects},
    keyring::LONGEST_LIFE,
    published,
};
use crate::{
    clock::{Time, after},
    id::sha256_hex,
    jose::Invalid,
    pem, secret_file,
};

/// The most octets of a file of certificates.
const MAX_SIZE: u64 = 64 * 1024;
/// How long before its end an upstream CA is warned of, in seconds.
const WARNED: u32 = 30 * 86_400;

/// Where the upstream CA is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamFiles {
    /// Its certificate in PEM, and after it those that lead to a root.
    pub certificate_file: PathBuf,
    /// Its private key in PEM (PKCS#8).
    pub key_file: PathBuf,
    /// The roots in PEM that verifiers are to trust, where the certificate is signed by another.
    pub bundle_file: Option<PathBuf>,
}

/// A CA that is ready to certify an authority.
pub(super) struct Upstream {
    issuers: Issuers,
    key: KeyPair,
    not_before: Time,
    not_after: Time,
}

/// What is to be known of a CA when it is not at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSeen {
    /// Its name.
    pub subject: String,
    /// Until when what it certifies is valid at most.
    pub not_after: Time,
    /// The id of its key.
    pub key: String,
    pub(super) certificate: Vec<u8>,
}

/// A list of authorities that are not to be believed, to be signed by the CA that certified them.
#[derive(Debug)]
pub struct AuthorityList<'a> {
    /// Where it stands.
    pub uri: String,
    /// Higher than that of the list before.
    pub number: u64,
    /// From when on it holds.
    pub this_update: Time,
    /// When there is another at the latest.
    pub next_update: Time,
    /// The certificates (DER), and since when.
    pub tainted: &'a [(Vec<u8>, Time)],
}

impl UpstreamFiles {
    /// Makes relative paths those below a directory.
    pub fn resolve(&mut self, base: &Path) {
        for path in [&mut self.certificate_file, &mut self.key_file].into_iter().chain(&mut self.bundle_file) {
            *path = base.join(&path);
        }
    }
}

impl Upstream {
    /// Reads the files, and judges them as at `now`.
    ///
    /// # Errors
    /// A sentence that names the setting and says what is wrong.
    pub(super) fn load(files: &UpstreamFiles, subjects: Subjects<'_>, now: Time) -> Result<Self, String> {
        let of = |setting: &str, path: &Path| {
            let (setting, path) = (setting.to_owned(), path.display().to_string());
            move |why: String| format!("`authority.upstream.{setting}`: {path}: {why}")
        };
        let told = of("certificate_file", &files.certificate_file);
        let mut certificates = read(&files.certificate_file).map_err(&told)?;
        let nearest = certificates.remove(0);
        if let Some(path) = &files.bundle_file {
            certificates.extend(read(path).map_err(of("bundle_file", path))?);
        }
        let issuers = Issuers::above(nearest, certificates).map_err(&told)?;
        let (not_before, not_after) = issuers.judge(subjects, now).map_err(&told)?;
        let told = of("key_file", &files.key_file);
        let key = key(&files.key_file).map_err(&told)?;
        if key.subject_public_key_info() != issuers::parse(issuers.nearest())?.public_key().raw {
            return Err(told("it is not the key of the first certificate in `certificate_file`".into()));
        }
        if let Some(place) = published::stands_in(&sha256_hex(&key.subject_public_key_info())) {
            return Err(told(format!("everybody can read this key in {place}")));
        }
        Ok(Self { issuers, key, not_before, not_after })
    }

    /// As [`Upstream::load`], for one that is to certify an authority: as long as a credential may live has to be left.
    ///
    /// # Errors
    /// As there.
    pub(super) fn with_room(files: &UpstreamFiles, subjects: Subjects<'_>, now: Time) -> Result<Self, String> {
        let upstream = Self::load(files, subjects, now)?;
        if after(now, LONGEST_LIFE).is_none_or(|needed| upstream.not_after < needed) {
            return Err(format!(
                "`authority.upstream.certificate_file`: {}: it, or one above it, ends at {}, within a day, which is how long a \
                 credential may live: renew it",
                files.certificate_file.display(),
                upstream.not_after
            ));
        }
        Ok(upstream)
    }

    pub(super) fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// From when and until when it can vouch for anything.
    pub(super) fn validity(&self) -> (Time, Time) {
        (self.not_before, self.not_after)
    }

    /// What is to be known of it later.
    pub(super) fn seen(&self) -> Result<UpstreamSeen, String> {
        let certificate = self.issuers.nearest().to_vec();
        let key = self.issuers.key()?;
        Ok(UpstreamSeen { subject: issuers::name(&certificate)?, not_after: self.not_after, key, certificate })
    }

    /// Certifies the key of an authority whose list stands at `crl`, in DER.
    ///
    /// # Errors
    /// When that cannot be encoded or signed.
    pub(super) fn certify(
        &self,
        mut params: CertificateParams,
        crl: String,
        key: &impl PublicKeyData,
    ) -> Result<Vec<u8>, Invalid> {
        params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![crl] }];
        self.named(|issuer, identifier| {
            params.use_authority_key_identifier_extension = identifier.is_some();
            Ok(params.signed_by(key, issuer)?.der().to_vec())
        })
    }

    /// Signs a list (RFC 5280 section 5), in DER. It covers the authorities that name it and nothing else that the CA certified: of
    /// that, the CA has lists of its own.
    ///
    /// # Errors
    /// When it cannot be encoded or signed.
    pub(super) fn sign_list(&self, list: AuthorityList<'_>, now: Time) -> Result<Vec<u8>, Invalid> {
        let revoked = list.tainted.iter().map(|(certificate, at)| {
            let (serial, ends) = issuers::serial(certificate).map_err(|_| UNSIGNED)?;
            let revocation_time = moment(*at)?;
            let reason_code = Some(RevocationReason::KeyCompromise);
            let serial_number = SerialNumber::from(serial);
            let entry = RevokedCertParams { serial_number, revocation_time, reason_code, invalidity_date: None };
            Ok((ends > now).then_some(entry))
        });
        let revoked_certs = revoked.filter_map(Result::transpose).collect::<Result<_, Invalid>>()?;
        let distribution_point = CrlDistributionPoint { uris: vec![list.uri] };
        let mut params = CertificateRevocationListParams {
            this_update: moment(list.this_update)?,
            next_update: moment(list.next_update)?,
            crl_number: SerialNumber::from(list.number),
            issuing_distribution_point: Some(CrlIssuingDistributionPoint {
                distribution_point,
                scope: Some(CrlScope::CaCertsOnly),
            }),
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.named(|issuer, identifier| {
            if let Some(identifier) = identifier {
                params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
            }
            Ok(params.signed_by(issuer)?.der().to_vec())
        })
    }

    /// What is made by an issuer without a name, under the name of the CA; and with the identifier of its key, if it has one.
    fn named(
        &self,
        make: impl FnOnce(&Issuer<'_, &Named<'_>>, Option<Vec<u8>>) -> Result<Vec<u8>, rcgen::Error>,
    ) -> Result<Vec<u8>, Invalid> {
        let own = issuers::parse(self.issuers.nearest()).map_err(|_| UNSIGNED)?;
        let identifier = own.extensions().iter().find_map(|extension| {
            let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() else { return None };
            Some(id.0.to_vec())
        });
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name.push(DnType::CommonName, "in the place of the issuer's name");
        issuer.key_identifier_method = KeyIdMethod::PreSpecified(identifier.clone().unwrap_or_default());
        let signer = Named { key: &self.key, name: own.subject().as_raw(), signed: RefCell::default() };
        let nameless = make(&Issuer::new(issuer, &signer), identifier).map_err(|_| UNSIGNED)?;
        let Signed { asked, instead } = signer.signed.take();
        let content = content(&nameless).and_then(|content| content.strip_prefix(&asked[..])).ok_or(UNSIGNED)?;
        Ok(sequence(&[&instead, content].concat()))
    }
}

const UNSIGNED: Invalid = Invalid("the upstream CA could not sign it");

impl Drop for Upstream {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl UpstreamSeen {
    /// What is weak about it, as sentences that say what to change.
    #[must_use]
    pub fn weaknesses(&self, now: Time) -> Vec<String> {
        let ends_soon = after(now, WARNED).is_none_or(|soon| self.not_after < soon);
        let told = format!(
            "`authority.upstream`: `{}`, or one above it, ends at {}, and all that the broker certifies with it: renew it, \
             replace its files and run `remit keys rotate`",
            self.subject, self.not_after
        );
        ends_soon.then_some(told).into_iter().collect()
    }
}

/// The certificates in a file: at least one.
fn read(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let mut text = Vec::new();
    let file = File::open(path).and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut text));
    let length = file.map_err(|error| format!("it cannot be read: {error}"))?;
    if length as u64 > MAX_SIZE {
        return Err("it is longer than 64 KiB".into());
    }
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .map(|one| one.map(|one| one.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| "it is no PEM")?;
    if certificates.is_empty() { Err("it holds no certificate in PEM".into()) } else { Ok(certificates) }
}

fn key(path: &Path) -> Result<KeyPair, String> {
    let text = secret_file::load(path)?.ok_or("it is not there")?;
    let document = pem::read_one(&text, &["PRIVATE KEY"]).map(Zeroizing::new).ok_or(
        "it is not one private key in PEM (PKCS#8), without a passphrase: `openssl pkcs8 -topk8 -nocrypt` makes it that",
    )?;
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(document.as_slice()))
        .map_err(|_| "it is no key of P-256, P-384, or RSA of 2048 to 4096 bits".into())
}

/// A key that signs under the name of its certificate, octet for octet. The library knows no name with two organisational units or
/// domain components, and writes others in its own way; who verifies compares them as they are written.
struct Named<'a> {
    key: &'a KeyPair,
    name: &'a [u8],
    signed: RefCell<Signed>,
}

#[derive(Default)]
struct Signed {
    /// What was to be signed.
    asked: Vec<u8>,
    /// What was.
    instead: Vec<u8>,
}

impl PublicKeyData for Named<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.key.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.key.algorithm()
    }
}

impl SigningKey for Named<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let instead = renamed(message, self.name).ok_or(rcgen::Error::RemoteKeyError)?;
        let signature = self.key.sign(&instead)?;
        self.signed.replace(Signed { asked: message.to_vec(), instead });
        Ok(signature)
    }
}

/// A certificate or a list that is to be signed, with this issuer (DER).
fn renamed(tbs: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let issuer = match TbsCertificate::from_der(tbs) {
        Ok((_, certificate)) => certificate.issuer.as_raw().to_vec(),
        Err(_) => TbsCertList::from_der(tbs).ok()?.1.issuer.as_raw().to_vec(),
    };
    let content = content(tbs)?;
    // It stands before everything else that could look like it.
    let at = content.windows(issuer.len()).position(|window| window == &issuer[..])?;
    Some(sequence(&[&content[..at], name, &content[at + issuer.len()..]].concat()))
}

/// What is in a sequence (DER).
fn content(der: &[u8]) -> Option<&[u8]> {
    let [0x30, length, rest @ ..] = der else { return None };
    if *length < 0x80 { Some(rest) } else { rest.get(usize::from(*length & 0x7f)..) }
}

fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|octet| **octet == 0).count()..];
    let head = match length {
        [short] if *short < 0x80 => vec![0x30, *short],
        // As many octets as a length has at most.
        long => [&[0x30, 0x80 | u8::try_from(long.len()).unwrap_or_default()], long].concat(),
    };
    [&head, content].concat()
}
