//! TLS, in one place: how a handshake goes, which certificate of ours is shown in it, and what of the caller's is taken down.
//!
//! A caller may show any certificate, or none. The handshake proves that they hold its key; whether anybody vouches for it is
//! decided above, for each request. No session is ever resumed, so every connection proves it anew.

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use serde::Deserialize;
use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use zeroize::Zeroizing;

use crate::{
    attest::{ClientCertificate, not_after},
    clock::Time,
    id::sha256_hex,
};

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2, with forward secrecy and authenticated encryption.
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[default]
    #[serde(rename = "1.3")]
    V1_3,
}

/// The files of a server certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and after it those that vouch for it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What a TLS listener goes by. Clones show the same certificate.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    shown: Arc<Shown>,
}

/// The certificate that is shown. It follows its files where it has some.
struct Shown {
    pair: ArcSwap<CertifiedKey>,
    followed: Option<Followed>,
}

#[derive(Debug)]
struct Followed {
    files: TlsFiles,
    /// SHA-256 of what the files said when they were last looked at.
    seen: Mutex<String>,
}

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// A sentence that names the file and says what to change.
    pub fn load(files: TlsFiles, oldest: TlsVersion) -> Result<Self, String> {
        let read = Read::of(&files)?;
        let (pair, seen) = (read.pair(&files)?, Mutex::new(read.digest()));
        Self::showing(pair, Some(Followed { files, seen }), oldest)
    }

    /// Shows a certificate (DER) that is in no file, with those that vouch for it behind it and its key (PKCS#8).
    ///
    /// # Errors
    /// When the two cannot be used, or not together.
    pub fn issued(chain: &[Vec<u8>], key: &[u8], oldest: TlsVersion) -> Result<Self, String> {
        Self::showing(issued(chain, key)?, None, oldest)
    }

    /// From now on shows this one, as of [`Tls::issued`].
    ///
    /// # Errors
    /// As [`Tls::issued`]; then what was shown before still is.
    pub fn show(&self, chain: &[Vec<u8>], key: &[u8]) -> Result<(), String> {
        self.shown.pair.store(Arc::new(issued(chain, key)?));
        Ok(())
    }

    fn showing(pair: CertifiedKey, followed: Option<Followed>, oldest: TlsVersion) -> Result<Self, String> {
        let shown = Arc::new(Shown { pair: ArcSwap::from_pointee(pair), followed });
        let provider = Arc::new(ring::default_provider());
        let versions: &[&SupportedProtocolVersion] = match oldest {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let algorithms = provider.signature_verification_algorithms;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_client_cert_verifier(Arc::new(AnyCertificate(algorithms)))
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), shown })
    }

    /// Reads the files again, if there are some, and shows what they hold now, if they say something else than when they were last read. `None` if not.
    ///
    /// # Errors
    /// As [`Tls::load`]; then what was shown before still is.
    pub fn follow(&self) -> Option<Result<(), String>> {
        let Followed { files, seen } = self.shown.followed.as_ref()?;
        let read = Read::of(files);
        let digest = read.as_ref().map_or_else(Clone::clone, Read::digest);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == digest {
            return None;
        }
        *seen = digest;
        Some(read.and_then(|read| read.pair(files)).map(|pair| self.shown.pair.store(Arc::new(pair))))
    }

    /// When the certificate that is shown ends.
    #[must_use]
    pub fn not_after(&self) -> Option<Time> {
        let pair = self.shown.pair.load();
        pair.end_entity_cert().ok().and_then(|certificate| not_after(certificate).ok())
    }

    /// What is allowed and weak about it, each a sentence. `host` is the name by which clients know the broker.
    #[must_use]
    pub fn weaknesses(&self, host: Option<&str>) -> Vec<String> {
        let Some(Followed { files: TlsFiles { certificate, key }, .. }) = &self.shown.followed else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let pair = self.shown.pair.load();
        let named = |host: &str| {
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok();
            let parsed = pair.end_entity_cert().and_then(ParsedCertificate::try_from).ok();
            name.zip(parsed).is_some_and(|(name, parsed)| rustls::client::verify_server_name(&parsed, &name).is_ok())
        };
        if let Some(host) = host.filter(|host| !named(host)) {
            found.push(format!(
                "`listen.tls_cert_file` ({}) does not name `{host}`, by which clients know the broker: they will refuse it",
                certificate.display()
            ));
        }
        if fs::metadata(key).is_ok_and(|about| about.permissions().mode() & 0o004 != 0) {
            found.push(format!(
                "`listen.tls_key_file` ({0}) can be read by every user of the machine: run chmod 600 {0}, or mount it so",
                key.display()
            ));
        }
        found
    }

    /// Carries out a handshake. Yields the certificate that the caller showed, if they showed one.
    ///
    /// # Errors
    /// When there is none to carry out; an alert has been sent where the caller speaks TLS.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<ClientCertificate>)> {
        let stream = self.acceptor.accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().map(ClientCertificate::presented).transpose();
        Ok((stream, certificate.map_err(io::Error::other)?))
    }
}

fn issued(chain: &[Vec<u8>], key: &[u8]) -> Result<CertifiedKey, String> {
    let (chain, key) = (chain.iter().cloned().map(Into::into).collect(), PrivatePkcs8KeyDer::from(key.to_vec()));
    CertifiedKey::from_der(chain, key.into(), &ring::default_provider()).map_err(|error| error.to_string())
}

/// What the files say, not judged yet.
struct Read {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Read {
    fn of(files: &TlsFiles) -> Result<Self, String> {
        let read = |setting: &str, path: &Path| {
            fs::read(path).map_err(|error| format!("`listen.{setting}`: {} cannot be read: {error}", path.display()))
        };
        let certificate = read("tls_cert_file", &files.certificate)?;
        Ok(Self { certificate, key: Zeroizing::new(read("tls_key_file", &files.key)?) })
    }

    fn digest(&self) -> String {
        sha256_hex(format!("{} {}", sha256_hex(&self.certificate), sha256_hex(&self.key)).as_bytes())
    }

    fn pair(&self, files: &TlsFiles) -> Result<CertifiedKey, String> {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let chain =
            CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<Vec<_>, _>>().unwrap_or_default();
        if chain.is_empty() {
            return Err(format!("`listen.tls_cert_file`: {certificate} holds no certificate in PEM"));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| format!("`listen.tls_key_file`: {key} holds no private key in PEM"))?;
        CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| {
            if let Error::InconsistentKeys(_) = error {
                format!("`listen.tls_key_file`: {key} is not the key of the first certificate in {certificate}")
            } else if let Error::InvalidCertificate(_) = error {
                format!("`listen.tls_cert_file`: {certificate} holds a certificate that cannot be used: {error}")
            } else {
                format!("`listen.tls_key_file`: {key} holds no key that TLS can use (RSA, P-256, P-384 or Ed25519)")
            }
        })
    }
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown").field("followed", &self.followed).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.pair.load_full())
    }
}

/// Takes any certificate that is not too expensive to look at, and has its holder prove that they hold the key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(others).cloned().collect();
        ClientCertificate::presented(&chain)
            .map(|_| ClientCertVerified::assertion())
            .map_err(|_| CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
