//! A bundle endpoint that shows an X.509-SVID of the trust domain itself (SPIFFE Federation section 5.2.2, `https_spiffe`): what it
//! says next is believed by what was believed before.

use arc_swap::ArcSwapOption;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{fmt, sync::Arc};
use webpki::KeyUsage;

use super::{ClientCertificate, bundle::Bundle, fetched::Held, svid::Svid};
use crate::{
    clock::Time,
    id::{SpiffeId, TrustDomain},
};

/// The server that has the bundle of its own trust domain.
pub(super) struct Endpoint {
    id: SpiffeId,
    domain: TrustDomain,
    /// The bundle as it is held.
    held: Arc<ArcSwapOption<Held<Bundle>>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Endpoint {
    pub(super) fn new(id: SpiffeId, domain: TrustDomain, held: Arc<ArcSwapOption<Held<Bundle>>>) -> Self {
        Self { id, domain, held, algorithms: ring::default_provider().signature_verification_algorithms }
    }

    /// Whether this is the server.
    fn is(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), String> {
        let shown = ClientCertificate::presented(chain).map_err(|why| why.to_string())?;
        let svid = Svid::read(&shown).map_err(|why| why.to_string())?;
        if svid.id != self.id {
            return Err("the server has another SPIFFE ID".into());
        }
        let held = self.held.load();
        let bundle = held.as_ref().ok_or("there is no bundle to begin with")?;
        let now = i64::try_from(now.as_secs()).ok().and_then(|seconds| Time::from_timestamp(seconds, 0));
        let now = now.ok_or("the clock is out of range")?;
        svid.vouched(&shown, &bundle.document, KeyUsage::server_auth(), &self.domain, now).map(|_| ())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Endpoint {
    // Its SPIFFE ID names it, whatever host it is on.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(others).cloned().collect();
        self.is(&chain, now).map(|()| ServerCertVerified::assertion()).map_err(|why| {
            tracing::warn!(why, "a bundle endpoint is not who it has to be");
            CertificateError::ApplicationVerificationFailure.into()
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
