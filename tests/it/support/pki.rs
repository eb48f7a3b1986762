//! Certificate authorities, as a test needs them: roots, certificates, and mistakes in either.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use std::{path::Path, time::Duration};

use super::now;

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, and what is sent with it.
pub(crate) struct Identity {
    pub(crate) certificate: Certificate,
    pub(crate) key: KeyPair,
    pub(crate) others: Vec<Certificate>,
}

/// The parameters of a certificate that began an hour ago and ends in one.
pub(crate) fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    lasts(&mut params, -3600, 3600);
    params
}

/// Begins and ends so many seconds from now.
pub(crate) fn lasts(params: &mut CertificateParams, from: i64, until: i64) {
    let at = |seconds: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(now() + seconds).expect("after 1970"))
    };
    (params.not_before, params.not_after) = (at(from), at(until));
}

/// The parameters of an authority.
pub(crate) fn authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The parameters of the certificate of a workload: an X.509-SVID.
pub(crate) fn svid(id: &str) -> CertificateParams {
    let mut params = params("workload");
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

pub(crate) fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("an URI"))
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().expect("a key"));
        let certificate = params.self_signed(&key).expect("signed");
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Another certificate for its key.
    pub(crate) fn renewed(&self, params: &CertificateParams) -> Certificate {
        params.self_signed(self.issuer.key()).expect("signed")
    }

    /// An authority below this one.
    pub(crate) fn below(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = self.signs(&params, &key);
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn signs(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Certificate {
        params.signed_by(key, &self.issuer).expect("signed")
    }

    /// A certificate for a new key.
    pub(crate) fn identity(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        Identity { certificate: self.signs(params, &key), key, others: Vec::new() }
    }

    /// The certificate of a server that is reached as 127.0.0.1 and `localhost`, and its key, in these files.
    pub(crate) fn serves(&self, certificate: &Path, key: &Path) -> Identity {
        let mut params = params("server");
        params.subject_alt_names =
            vec![SanType::IpAddress([127, 0, 0, 1].into()), SanType::DnsName("localhost".try_into().expect("a name"))];
        let identity = self.identity(&params);
        std::fs::write(certificate, identity.certificate.pem()).expect("written");
        std::fs::write(key, identity.key.serialize_pem()).expect("written");
        identity
    }
}

impl Identity {
    /// A certificate that nobody vouches for but itself.
    pub(crate) fn alone(params: &CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        Self { certificate: params.self_signed(&key).expect("signed"), key, others: Vec::new() }
    }

    /// The same with these certificates behind it.
    pub(crate) fn with(self, others: &[&Authority]) -> Self {
        Self { others: others.iter().map(|authority| authority.certificate.clone()).collect(), ..self }
    }

    /// The certificates and the key, in PEM.
    pub(crate) fn pem(&self) -> String {
        let others: String = self.others.iter().map(Certificate::pem).collect();
        format!("{}{others}{}", self.certificate.pem(), self.key.serialize_pem())
    }

    /// A client that shows it, to a server that `authority` vouches for.
    pub(crate) fn client(&self, authority: &Authority) -> reqwest::Client {
        let identity = reqwest::Identity::from_pem(self.pem().as_bytes()).expect("an identity");
        builder(authority).identity(identity).build().expect("a client")
    }
}

/// A client of servers that `authority` vouches for.
pub(crate) fn builder(authority: &Authority) -> reqwest::ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = reqwest::Certificate::from_der(authority.certificate.der()).expect("a certificate");
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).tls_certs_only([root])
}
