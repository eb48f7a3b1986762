//! A document that says whom to believe (an issuer's keys, the bundle of a trust domain): where it comes from and how long it is
//! believed. The place is configured; nothing that a caller presents ever adds to it.

use arc_swap::ArcSwapOption;
use rustls::client::{Resumption, danger::ServerCertVerifier};
use std::{error::Error, sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::task::TaskTracker;
use url::Url;

use super::{Rejected, jwks::MAX_BYTES};
use crate::jose::Invalid;

/// A document that cannot be fetched again is believed no longer than this.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long a whole fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The certificate authorities that may vouch for where documents are fetched.
pub(super) struct Roots {
    pub(super) certificates: Vec<reqwest::Certificate>,
    /// What they were read from.
    pub(super) pem: Vec<u8>,
}

/// What can be fetched.
pub(super) trait Document: Sized + Send + Sync + 'static {
    /// What it takes to read one.
    type How: Clone + PartialEq + Send + Sync + 'static;
    /// What is asked for.
    const ACCEPT: &'static str;

    /// Reads one, whole or not at all.
    fn read(octets: &[u8], how: &Self::How) -> Result<Self, Invalid>;
    /// SHA-256 of it: two with the same one are the same.
    fn fingerprint(&self) -> &str;
    /// When one that was fetched is to be fetched again.
    fn fresh(&self) -> Duration;
}

/// A document, and where it comes from.
pub(super) struct Fetched<D: Document> {
    attestor: String,
    how: D::How,
    source: Source,
    held: Arc<ArcSwapOption<Held<D>>>,
    /// The last fetch. Held while one is under way, so that there is one at a time.
    attempt: Mutex<Option<Attempt>>,
    /// Fetches outlive the request that asked for one: a caller that hangs up must not be able to cut them off.
    fetches: TaskTracker,
}

pub(super) enum Source {
    File,
    Url {
        client: reqwest::Client,
        url: Url,
        interval: Duration,
        /// What was read to know who may vouch for it; `None`: the machine does.
        roots: Option<Vec<u8>>,
    },
    #[cfg(test)]
    Script(std::sync::Mutex<std::collections::VecDeque<Result<Vec<u8>, String>>>),
}

/// A document that was read.
pub(super) struct Held<D> {
    pub(super) document: D,
    at: Instant,
    /// Whether it is what the place said, and not what there was to begin with.
    fetched: bool,
}

/// What there is to go by.
pub(super) struct Current<D> {
    pub(super) held: Arc<Held<D>>,
    /// Whether a newer one may say something else, and is out of reach.
    pub(super) in_doubt: bool,
}

#[derive(Clone, Copy)]
struct Attempt {
    at: Instant,
    failed: bool,
}

impl<D: Document> Fetched<D> {
    /// One that does not change.
    pub(super) fn fixed(attestor: &str, how: D::How, document: D) -> Self {
        let fixed = Self::from(attestor, how, Source::File);
        fixed.held.store(Some(Arc::new(Held { document, at: Instant::now(), fetched: false })));
        fixed
    }

    /// One that is fetched from `url` when it is first needed, and at most once per `interval`.
    ///
    /// # Errors
    /// When the HTTPS client cannot be made; says why.
    pub(super) fn remote(
        attestor: &str,
        how: D::How,
        url: Url,
        roots: Option<Roots>,
        interval: Duration,
    ) -> Result<Self, String> {
        // An error says that a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (builder, roots) = match roots {
            Some(Roots { certificates, pem }) => (client().tls_certs_only(certificates), Some(pem)),
            None => (client(), None),
        };
        let client = builder.build().map_err(|error| chain(&error))?;
        Ok(Self::from(attestor, how, Source::Url { client, url, interval, roots }))
    }

    /// One that is fetched from a server that it vouches for itself: `document` is what there is to begin with, `vouching` what it and
    /// the name of the server were read from, and `verifier` judges the server by what is held at the time.
    ///
    /// # Errors
    /// As [`Fetched::remote`].
    pub(super) fn by_its_own_word(
        attestor: &str,
        how: D::How,
        url: Url,
        interval: Duration,
        (document, vouching): (D, Vec<u8>),
        verifier: impl FnOnce(Arc<ArcSwapOption<Held<D>>>) -> Arc<dyn ServerCertVerifier>,
    ) -> Result<Self, String> {
        let held = Arc::new(ArcSwapOption::from_pointee(Held { document, at: Instant::now(), fetched: false }));
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier(held.clone()))
            .with_no_client_auth();
        // Who vouched for the server when a session began need not vouch for it any more.
        tls.resumption = Resumption::disabled();
        let client = client().tls_backend_preconfigured(tls).build().map_err(|error| chain(&error))?;
        let source = Source::Url { client, url, interval, roots: Some(vouching) };
        Ok(Self { held, ..Self::from(attestor, how, source) })
    }

    pub(super) fn from(attestor: &str, how: D::How, source: Source) -> Self {
        Self {
            attestor: attestor.to_owned(),
            how,
            source,
            held: Arc::default(),
            attempt: Mutex::new(None),
            fetches: TaskTracker::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn hold(&self, document: D, at: Instant) {
        self.held.store(Some(Arc::new(Held { document, at, fetched: true })));
    }

    /// Takes over what `before` has fetched, where it would have been fetched from the same place in the same way.
    pub(super) fn inherit(&self, before: &Self) {
        let place = |one: &Self| match &one.source {
            Source::Url { url, roots, .. } => Some((url.clone(), roots.clone(), one.how.clone())),
            Source::File => None,
            #[cfg(test)]
            Source::Script(_) => None,
        };
        if place(self).is_some_and(|here| place(before) == Some(here)) {
            self.held.store(before.held.load_full());
        }
    }

    /// Whether what was verified with a document of this fingerprint would be verified with the same one now.
    pub(super) fn still(&self, fingerprint: &str, at: Instant) -> bool {
        self.held
            .load()
            .as_ref()
            .is_some_and(|held| self.is_fresh(held, at) && held.document.fingerprint() == fingerprint)
    }

    /// What there is to go by at `at`. A newer one is asked for only where this one is old or does not suffice.
    ///
    /// # Errors
    /// Unavailable when there is none, or none that is young enough to be believed.
    pub(super) async fn current(
        self: &Arc<Self>,
        suffices: impl Fn(&D) -> bool,
        at: Instant,
    ) -> Result<Current<D>, Rejected> {
        if let Some(held) = self.held.load_full() {
            let fixed = matches!(self.source, Source::File);
            // Whoever needs no newer one does not wait for one that is on its way.
            let busy = || held.age(at) <= KEPT && self.attempt.try_lock().is_err();
            if fixed || (suffices(&held.document) && (self.is_fresh(&held, at) || busy())) {
                return Ok(Current { held, in_doubt: false });
            }
        }
        let this = Arc::clone(self);
        let in_doubt = self.fetches.spawn(async move { this.refetch(at).await }).await.unwrap_or(true);
        match self.held.load_full() {
            Some(held) if held.age(at) <= KEPT => Ok(Current { held, in_doubt }),
            Some(_) | None => Err(out_of_reach()),
        }
    }

    fn is_fresh(&self, held: &Held<D>, at: Instant) -> bool {
        matches!(self.source, Source::File) || (held.fetched && held.age(at) <= held.document.fresh())
    }

    /// Fetches it unless that was tried a moment ago. Yields whether the last fetch failed.
    async fn refetch(&self, at: Instant) -> bool {
        let mut attempt = self.attempt.lock().await;
        if let Some(last) = *attempt
            && at.duration_since(last.at) < self.source.interval()
        {
            return last.failed;
        }
        let fetched = self
            .source
            .fetch(D::ACCEPT)
            .await
            .and_then(|octets| D::read(&octets, &self.how).map_err(|invalid| invalid.to_string()));
        let failed = match fetched {
            Ok(document) => {
                self.held.store(Some(Arc::new(Held { document, at, fetched: true })));
                false
            }
            Err(reason) => {
                tracing::warn!(attestor = self.attestor, reason, "what an attestor goes by could not be fetched");
                true
            }
        };
        *attempt = Some(Attempt { at, failed });
        failed
    }
}

impl<D> Held<D> {
    fn age(&self, at: Instant) -> Duration {
        at.duration_since(self.at)
    }
}

/// That nobody can tell now.
pub(super) fn out_of_reach() -> Rejected {
    Rejected::Unavailable("the keys of the issuer are out of reach".into())
}

impl Source {
    fn interval(&self) -> Duration {
        match self {
            Source::File => Duration::MAX,
            Source::Url { interval, .. } => *interval,
            #[cfg(test)]
            Source::Script(_) => Duration::from_secs(30),
        }
    }

    async fn fetch(&self, accept: &str) -> Result<Vec<u8>, String> {
        match self {
            Source::File => Err("it stands in a file".into()),
            Source::Url { client, url, .. } => fetch(client, url, accept).await,
            #[cfg(test)]
            Source::Script(answers) => answers.lock().unwrap().pop_front().expect("no fetch was due"),
        }
    }
}

fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE)
}

async fn fetch(client: &reqwest::Client, url: &Url, accept: &str) -> Result<Vec<u8>, String> {
    let request = client.get(url.clone()).header("accept", accept);
    let mut response = request.send().await.map_err(|error| chain(&error))?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(format!("the answer was {}", response.status()));
    }
    let mut document = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if document.len() + chunk.len() > MAX_BYTES {
            return Err("the answer is larger than 256 KiB".into());
        }
        document.extend_from_slice(&chunk);
    }
    Ok(document)
}

/// An error with its causes: `reqwest` alone says only that it failed.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
