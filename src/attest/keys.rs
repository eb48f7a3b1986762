//! The key of an issuer for a token.

use jsonwebtoken::Algorithm;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

use super::{
    Rejected,
    fetched::{Document, Fetched, out_of_reach},
    jwks::{Found, KeySet},
};
use crate::jose::{Invalid, VerifyingKey};

/// A fetched set is fetched again when it is older than this.
const FRESH: Duration = Duration::from_secs(3600);

/// The keys of one issuer.
pub(super) type Keys = Fetched<KeySet>;

/// A key, and the set it stood in.
#[derive(Debug)]
pub(super) struct Selected {
    /// The key.
    pub(super) key: VerifyingKey,
    /// The set's fingerprint; see [`Fetched::still`].
    pub(super) set: String,
}

impl Document for KeySet {
    type How = Vec<Algorithm>;
    const ACCEPT: &'static str = "application/jwk-set+json, application/json";

    fn read(octets: &[u8], algorithms: &Vec<Algorithm>) -> Result<Self, Invalid> {
        Self::parse(octets, algorithms)
    }

    fn fingerprint(&self) -> &str {
        Self::fingerprint(self)
    }

    fn fresh(&self) -> Duration {
        FRESH
    }
}

impl Fetched<KeySet> {
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
        // Only a key that a newer set may have is worth asking for one.
        let answers = |set: &KeySet| !matches!(set.find(kid, algorithm), Found::Unknown);
        let current = self.current(answers, at).await?;
        let set = &current.held.document;
        match set.find(kid, algorithm) {
            Found::Key(key) => Ok(Selected { key: key.clone(), set: set.fingerprint().to_owned() }),
            Found::Unfit(why) => Err(Rejected::Refused(why.into())),
            Found::Unknown if current.in_doubt => Err(out_of_reach()),
            Found::Unknown => Err(Rejected::Refused("the issuer has no such key".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{attest::fetched::Source, jose::SigningKey};
    use serde_json::json;

    fn document(kid: &str) -> Vec<u8> {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let mut jwk = serde_json::to_value(key.public()).unwrap();
        jwk["kid"] = kid.into();
        json!({ "keys": [jwk] }).to_string().into_bytes()
    }

    fn scripted(answers: Vec<Result<Vec<u8>, String>>) -> Arc<Keys> {
        let source = Source::Script(std::sync::Mutex::new(answers.into()));
        Arc::new(Keys::from("test", vec![Algorithm::ES256], source))
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
            let url = url::Url::parse(url).unwrap();
            Arc::new(Keys::remote("test", vec![algorithm], url, None, Duration::from_secs(30)).unwrap())
        };
        let (here, start) = ("https://127.0.0.1:1/jwks", Instant::now());
        let before = remote(here, Algorithm::ES256);
        let set = KeySet::parse(&document("a"), &[Algorithm::ES256]).unwrap();
        before.hold(set, start);
        for (url, algorithm, expected) in [
            (here, Algorithm::ES256, "ok"),
            (here, Algorithm::RS256, "unavailable"),
            ("https://127.0.0.1:1/other", Algorithm::ES256, "unavailable"),
        ] {
            let after = remote(url, algorithm);
            after.inherit(&before);
            assert_eq!(ask(&after, start, 60, "a").await, expected, "{url}");
        }
        let file = Arc::new(Keys::fixed("test", vec![], KeySet::parse(&document("b"), &[Algorithm::ES256]).unwrap()));
        file.inherit(&before);
        assert_eq!(ask(&file, start, 60, "a").await, "refused");
    }

    #[tokio::test]
    async fn only_https_is_fetched_and_nothing_is_waited_for_long() {
        let remote = |url: &str| {
            let url = url::Url::parse(url).unwrap();
            Arc::new(Keys::remote("test", vec![Algorithm::ES256], url, None, Duration::from_secs(30)).unwrap())
        };
        for url in ["http://127.0.0.1:1/jwks", "https://127.0.0.1:1/jwks"] {
            assert_eq!(ask(&remote(url), Instant::now(), 0, "a").await, "unavailable");
        }
    }
}
