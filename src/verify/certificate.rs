//! The certificate of a task (X509-SVID): whose it is, that an authority of the brokers signed it, and what to look for among what was
//! revoked. It says nothing but workload and task.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::{Refused, feed::Facts};
use crate::{
    claims::LockSubject,
    clock::Time,
    id::{LeaseId, SpiffeId, TaskId, hex},
    jose::strict_json,
};

/// The largest certificate that is looked at.
const MAX_CERTIFICATE: usize = 16 * 1024;

/// The authorities that may sign certificates of tasks.
#[derive(Debug, Clone, Default)]
pub struct Authorities(Vec<TrustAnchor<'static>>);

impl Authorities {
    /// Reads `/spiffe/bundle`.
    ///
    /// # Errors
    /// When it is no SPIFFE bundle, or an authority in it is no certificate.
    pub fn from_bundle(document: &[u8]) -> Result<Self, Refused> {
        const MALFORMED: Refused = Refused("an authority of the bundle is malformed");
        let document: serde_json::Value = strict_json(document)?;
        let keys = document.get("keys").and_then(serde_json::Value::as_array).ok_or(Refused("not a key set"))?;
        // One without a certificate vouches for nobody.
        let is_authority = |jwk: &&serde_json::Value| jwk["use"] == "x509-svid" && jwk.get("x5c").is_some();
        let anchor = |jwk: &serde_json::Value| {
            let certificate = jwk["x5c"].get(0).and_then(serde_json::Value::as_str).ok_or(MALFORMED)?;
            let certificate = CertificateDer::from(BASE64_STANDARD.decode(certificate).map_err(|_| MALFORMED)?);
            Ok(webpki::anchor_from_trusted_cert(&certificate).map_err(|_| MALFORMED)?.to_owned())
        };
        keys.iter().filter(is_authority).map(anchor).collect::<Result<_, _>>().map(Self)
    }

    /// Checks whose certificate it is, and that one of these signed it and it has not ended.
    pub(super) fn check(&self, certificate: &[u8], now: Time) -> Result<CertifiedTask, Refused> {
        if certificate.len() > MAX_CERTIFICATE {
            return Err(Refused("the certificate is too long"));
        }
        let Ok(([], read)) = X509Certificate::from_der(certificate) else {
            return Err(Refused("not a certificate"));
        };
        let task = CertifiedTask::read(&read)?;
        let der = CertificateDer::from(certificate);
        let leaf = EndEntityCert::try_from(&der).map_err(|_| Refused("not a certificate"))?;
        let seconds = u64::try_from(now.timestamp()).map_err(|_| Refused("the clock stands before 1970"))?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        // The authorities of brokers sign themselves, and certify no other.
        let algorithms = &[webpki::ring::ECDSA_P256_SHA256];
        leaf.verify_for_usage(algorithms, &self.0, &[], now, KeyUsage::client_auth(), None, None)
            .map_err(|_| Refused("no authority of the brokers vouches for the certificate now"))?;
        Ok(task)
    }
}

/// The task of a certificate that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedTask {
    id: SpiffeId,
    task: TaskId,
    serial: LeaseId,
    generation: u64,
    authority: String,
}

impl CertifiedTask {
    fn read(certificate: &X509Certificate<'_>) -> Result<Self, Refused> {
        const NO_NAME: Refused = Refused("the certificate is none of a task");
        const NO_SERIAL: Refused = Refused("the serial of the certificate is none that the broker writes");
        let names = certificate.subject_alternative_name().map_err(|_| NO_NAME)?.ok_or(NO_NAME)?;
        let [GeneralName::URI(name)] = names.value.general_names.as_slice() else { return Err(NO_NAME) };
        let id: SpiffeId = name.parse().map_err(|_| NO_NAME)?;
        let task = id.task().ok_or(NO_NAME)?;
        let constraints = certificate.basic_constraints().map_err(|_| NO_NAME)?;
        let usage = certificate.key_usage().map_err(|_| NO_NAME)?.ok_or(NO_NAME)?.value;
        let signs = constraints.is_some_and(|constraints| constraints.value.ca) || usage.key_cert_sign();
        if signs || usage.crl_sign() || !usage.digital_signature() {
            return Err(Refused("the key of the certificate is not for digital signatures alone"));
        }
        let octets = certificate.raw_serial();
        let serial: LeaseId = hex(octets).parse().map_err(|_| NO_SERIAL)?;
        let generation = octets.get(1..9).filter(|_| octets.len() == 20).and_then(|octets| octets.try_into().ok());
        let generation = generation.map(u64::from_be_bytes).ok_or(NO_SERIAL)?;
        // An authority has the id of its key for a name.
        let authority = certificate.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
        let authority = authority.ok_or(Refused("the authority of the certificate has no name"))?.to_owned();
        Ok(Self { id, task, serial, generation, authority })
    }

    /// Its SPIFFE ID: workload and task.
    #[must_use]
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.id
    }

    /// The workload that holds it, without the task.
    #[must_use]
    pub fn workload(&self) -> &str {
        self.id.workload()
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> &TaskId {
        &self.task
    }

    /// The serial, which is the id of its lease.
    #[must_use]
    pub fn serial(&self) -> &LeaseId {
        &self.serial
    }

    /// What to look for among what was revoked.
    pub(super) fn facts(&self) -> Facts<'_> {
        Facts { generation: self.generation, task: &self.task, lease: &self.serial, key: &self.authority }
    }

    /// What a lock is held against.
    pub(super) fn subject(&self) -> LockSubject<'_> {
        LockSubject::of_task_id(&self.id)
    }
}
