//! Where an issuer's keys come from and how long they are believed. The place is configured; nothing in a token ever
//! adds to it.

use arc_swap::ArcSwapOption;
use jsonwebtoken::Algorithm;
use std::{error::Error, sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::task::TaskTracker;
use url::Url;

use super::{
    Rejected,
    jwks::{Found, KeySet, MAX_BYTES},
};
use crate::jose::VerifyingKey;

/// A fetched set is fetched again when it is older than this.
const FRESH: Duration = Duration::from_secs(3600);
/// A set that cannot be fetched again is believed no longer than this.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long a whole fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The certificate authorities that may vouch for where keys are fetched.
pub(super) struct Roots {
    pub(super) certificates: Vec<reqwest::Certificate>,
    /// What they were read from.
    pub(super) pem: Vec<u8>,
}

/// The keys of one issuer.
pub(super) struct Keys {
    attestor: String,
    algorithms: Vec<Algorithm>,
    source: Source,
    held: ArcSwapOption<Held>,
    /// The last fetch. Held while one is under way, so that there is one at a time.
    attempt: Mutex<Option<Attempt>>,
    /// Fetches outlive the request that asked for one: a caller that hangs up must not be able to cut them off.
    fetches: TaskTracker,
}

enum Source {
    File,
    Url {
        client: reqwest::Client,
        url: Url,
        interval: Duration,
        /// The certificate authorities that may vouch for it, as they were read; `None`: the machine's.
        roots: Option<Vec<u8>>,
    },
    #[cfg(test)]
    Script(std::sync::Mutex<std::collections::VecDeque<Result<Vec<u8>, String>>>),
}

struct Held {
    set: KeySet,
    at: Instant,
}

#[derive(Clone, Copy)]
struct Attempt {
    at: Instant,
    failed: bool,
}

/// A key, and the set it stood in.
#[derive(Debug)]
pub(super) struct Selected {
    /// The key.
    pub(super) key: VerifyingKey,
    /// The set's fingerprint; see [`Keys::still`].
    pub(super) set: String,
}

impl Keys {
    /// Keys that do not change.
    pub(super) fn fixed(attestor: &str, algorithms: &[Algorithm], set: KeySet) -> Self {
        let keys = Self::from(attestor, algorithms, Source::File);
        keys.held.store(Some(Arc::new(Held { set, at: Instant::now() })));
        keys
    }

    /// Keys that are fetched from `url` when they are first needed, and at most once per `interval`.
    ///
    /// # Errors
    /// When the HTTPS client cannot be made; says why.
    pub(super) fn remote(
        attestor: &str,
        algorithms: &[Algorithm],
        url: Url,
        roots: Option<Roots>,
        interval: Duration,
    ) -> Result<Self, String> {
        // An error says that a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE);
        let (builder, roots) = match roots {
            Some(Roots { certificates, pem }) => (builder.tls_certs_only(certificates), Some(pem)),
            None => (builder, None),
        };
        let client = builder.build().map_err(|error| chain(&error))?;
        Ok(Self::from(attestor, algorithms, Source::Url { client, url, interval, roots }))
    }

    fn from(attestor: &str, algorithms: &[Algorithm], source: Source) -> Self {
        Self {
            attestor: attestor.to_owned(),
            algorithms: algorithms.to_vec(),
            source,
            held: ArcSwapOption::empty(),
            attempt: Mutex::new(None),
            fetches: TaskTracker::new(),
        }
    }

    /// Takes over what `before` has fetched, where it would have been fetched from the same place in the same way.
    pub(super) fn inherit(&self, before: &Self) {
        let place = |keys: &Self| match &keys.source {
            Source::Url { url, roots, .. } => Some((url.clone(), roots.clone(), keys.algorithms.clone())),
            Source::File => None,
            #[cfg(test)]
            Source::Script(_) => None,
        };
        if place(self).is_some_and(|here| place(before) == Some(here)) {
            self.held.store(before.held.load_full());
        }
    }

    /// Whether what was verified with a set of this fingerprint would be verified with the same set now.
    pub(super) fn still(&self, fingerprint: &str, at: Instant) -> bool {
        self.held.load().as_ref().is_some_and(|held| self.is_fresh(held, at) && held.set.fingerprint() == fingerprint)
    }

    /// The key for a token that names `kid` and `algorithm`.
    ///
    /// # Errors
    /// Refused when the issuer has no such key; unavailable when that cannot be told because its keys are out of reach.
    pub(super) async fn select(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: Algorithm,
        at: Instant,
    ) -> Result<Selected, Rejected> {
        if let Some(held) = self.held.load_full() {
            // Only a key that a newer set may have is worth asking for one.
            let answered = match held.set.find(kid, algorithm) {
                Found::Key(_) | Found::Unfit(_) => true,
                Found::Unknown => false,
            };
            // Whoever needs no newer set does not wait for one that is on its way.
            let busy = || held.age(at) <= KEPT && self.attempt.try_lock().is_err();
            if matches!(self.source, Source::File) || (answered && (self.is_fresh(&held, at) || busy())) {
                return held.select(kid, algorithm, false);
            }
        }
        let this = Arc::clone(self);
        let failed = self.fetches.spawn(async move { this.refetch(at).await }).await.unwrap_or(true);
        match self.held.load_full() {
            Some(held) if held.age(at) <= KEPT => held.select(kid, algorithm, failed),
            Some(_) | None => Err(unreachable()),
        }
    }

    fn is_fresh(&self, held: &Held, at: Instant) -> bool {
        matches!(self.source, Source::File) || held.age(at) <= FRESH
    }

    /// Fetches the set unless that was tried a moment ago. Yields whether the last fetch failed.
    async fn refetch(&self, at: Instant) -> bool {
        let mut attempt = self.attempt.lock().await;
        if let Some(last) = *attempt
            && at.duration_since(last.at) < self.source.interval()
        {
            return last.failed;
        }
        let fetched = self
            .source
            .fetch()
            .await
            .and_then(|document| KeySet::parse(&document, &self.algorithms).map_err(|invalid| invalid.to_string()));
        let failed = match fetched {
            Ok(set) => {
                self.held.store(Some(Arc::new(Held { set, at })));
                false
            }
            Err(reason) => {
                tracing::warn!(attestor = self.attestor, reason, "the keys of an issuer could not be fetched");
                true
            }
        };
        *attempt = Some(Attempt { at, failed });
        failed
    }
}

impl Held {
    fn age(&self, at: Instant) -> Duration {
        at.duration_since(self.at)
    }

    fn select(&self, kid: Option<&str>, algorithm: Algorithm, in_doubt: bool) -> Result<Selected, Rejected> {
        match self.set.find(kid, algorithm) {
            Found::Key(key) => Ok(Selected { key: key.clone(), set: self.set.fingerprint().to_owned() }),
            Found::Unfit(why) => Err(Rejected::Refused(why.into())),
            Found::Unknown if in_doubt => Err(unreachable()),
            Found::Unknown => Err(Rejected::Refused("the issuer has no such key".into())),
        }
    }
}

fn unreachable() -> Rejected {
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

    async fn fetch(&self) -> Result<Vec<u8>, String> {
        match self {
            Source::File => Err("the keys stand in a file".into()),
            Source::Url { client, url, .. } => fetch(client, url).await,
            #[cfg(test)]
            Source::Script(answers) => answers.lock().unwrap().pop_front().expect("no fetch was due"),
        }
    }
}

async fn fetch(client: &reqwest::Client, url: &Url) -> Result<Vec<u8>, String> {
    let request = client.get(url.clone()).header("accept", "application/jwk-set+json, application/json");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::SigningKey;
    use serde_json::json;

    fn document(kid: &str) -> Vec<u8> {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let mut jwk = serde_json::to_value(key.public()).unwrap();
        jwk["kid"] = kid.into();
        json!({ "keys": [jwk] }).to_string().into_bytes()
    }

    fn scripted(answers: Vec<Result<Vec<u8>, String>>) -> Arc<Keys> {
        let source = Source::Script(std::sync::Mutex::new(answers.into()));
        Arc::new(Keys::from("test", &[Algorithm::ES256], source))
    }

    /// `ok`, `refused` or `unavailable`, for a token with `kid`, so many seconds after the start.
    async fn ask(keys: &Arc<Keys>, start: Instant, seconds: u64, kid: &str) -> &'static str {
        match keys.select(Some(kid), Algorithm::ES256, start + Duration::from_secs(seconds)).await {
            Ok(_) => "ok",
            Err(Rejected::Refused(_)) => "refused",
            Err(Rejected::Unavailable(_)) => "unavailable",
        }
    }

    #[tokio::test]
    async fn an_unknown_key_costs_one_fetch_per_interval() {
        let (keys, start) = (scripted(vec![Ok(document("a")), Ok(document("b"))]), Instant::now());
        assert_eq!(ask(&keys, start, 0, "a").await, "ok");
        for _ in 0..100 {
            assert_eq!(ask(&keys, start, 29, "b").await, "refused");
        }
        assert_eq!(ask(&keys, start, 30, "b").await, "ok");
        assert_eq!(ask(&keys, start, 59, "a").await, "refused", "a key that was withdrawn");
        let unfit = keys.select(Some("b"), Algorithm::RS256, start + Duration::from_secs(120)).await;
        assert!(matches!(unfit, Err(Rejected::Refused(_))), "a newer set would not help");
    }

    #[tokio::test]
    async fn an_issuer_out_of_reach_is_doubt_and_not_refusal() {
        let down = || Err("down".to_owned());
        let (keys, start) = (scripted(vec![down(), Ok(document("a")), down(), Ok(b"{}".to_vec())]), Instant::now());
        assert_eq!(ask(&keys, start, 0, "a").await, "unavailable");
        assert_eq!(ask(&keys, start, 29, "a").await, "unavailable");
        assert_eq!(ask(&keys, start, 30, "a").await, "ok");
        assert_eq!(ask(&keys, start, 60, "b").await, "unavailable");
        assert_eq!(ask(&keys, start, 61, "a").await, "ok");
        assert_eq!(ask(&keys, start, 90, "b").await, "unavailable", "a malformed answer is none");
    }

    #[tokio::test]
    async fn an_old_set_is_kept_for_a_day() {
        const HOUR: u64 = 3600;
        let down = || Err("down".to_owned());
        let (keys, start) = (scripted(vec![Ok(document("a")), down(), down(), Ok(document("a"))]), Instant::now());
        assert_eq!(ask(&keys, start, 0, "a").await, "ok");
        assert_eq!(ask(&keys, start, HOUR, "a").await, "ok");
        assert_eq!(ask(&keys, start, HOUR + 1, "a").await, "ok");
        assert_eq!(ask(&keys, start, 24 * HOUR + 1, "a").await, "unavailable");
        assert_eq!(ask(&keys, start, 24 * HOUR + 31, "a").await, "ok");
    }

    #[tokio::test]
    async fn what_was_fetched_is_taken_over_from_the_same_place_only() {
        let remote = |url: &str, algorithm: Algorithm| {
            let url = Url::parse(url).unwrap();
            Arc::new(Keys::remote("test", &[algorithm], url, None, Duration::from_secs(30)).unwrap())
        };
        let (here, start) = ("https://127.0.0.1:1/jwks", Instant::now());
        let before = remote(here, Algorithm::ES256);
        let set = KeySet::parse(&document("a"), &[Algorithm::ES256]).unwrap();
        before.held.store(Some(Arc::new(Held { set, at: start })));
        for (url, algorithm, expected) in [
            (here, Algorithm::ES256, "ok"),
            (here, Algorithm::RS256, "unavailable"),
            ("https://127.0.0.1:1/other", Algorithm::ES256, "unavailable"),
        ] {
            let after = remote(url, algorithm);
            after.inherit(&before);
            assert_eq!(ask(&after, start, 60, "a").await, expected, "{url}");
        }
        let file = Arc::new(Keys::fixed("test", &[], KeySet::parse(&document("b"), &[Algorithm::ES256]).unwrap()));
        file.inherit(&before);
        assert_eq!(ask(&file, start, 60, "a").await, "refused");
    }

    #[tokio::test]
    async fn only_https_is_fetched_and_nothing_is_waited_for_long() {
        let remote = |url: &str| {
            let url = Url::parse(url).unwrap();
            Arc::new(Keys::remote("test", &[Algorithm::ES256], url, None, Duration::from_secs(30)).unwrap())
        };
        for url in ["http://127.0.0.1:1/jwks", "https://127.0.0.1:1/jwks"] {
            assert_eq!(ask(&remote(url), Instant::now(), 0, "a").await, "unavailable");
        }
    }
}
