//! A token of a configured `OpenID` Connect issuer → [`Attested`].

use serde_json::Value;
use std::collections::BTreeSet;
use tokio::time::Instant;

use super::{
    Attested, Facts, Rejected,
    issuer::{Window, refused},
    settings::Settings,
    template::{TextTemplate, Unfit, claim, plain_text, scalar},
};
use crate::{
    clock::Time,
    id::{TrustDomain, sha256_hex},
    jose::Unverified,
};

/// The most values of one claim that become selectors.
const MAX_VALUES: usize = 64;

/// An issuer that is trusted to say what its workloads are.
pub(super) struct Attestor {
    pub(super) settings: Settings,
    domain: TrustDomain,
}

/// What a token proved, and while it does.
#[derive(Debug, Clone)]
pub(super) struct Verified {
    pub(super) attested: Attested,
    pub(super) window: Window,
    /// The fingerprint of the key set it was verified with.
    pub(super) keys: String,
}

impl Attestor {
    pub(super) fn new(settings: Settings, domain: TrustDomain) -> Self {
        Self { settings, domain }
    }

    /// Verifies a token that names this issuer. `digest` is its SHA-256.
    ///
    /// # Errors
    /// When the token is not to be believed, or its issuer's keys are out of reach.
    pub(super) async fn attest(
        &self,
        token: &Unverified<'_>,
        digest: &str,
        now: Time,
        at: Instant,
    ) -> Result<Verified, Rejected> {
        let believed = self.settings.issuer.believe_at(token, &["JWT"], now, at).await?;
        let mut attested = self.describe(&believed.claims, believed.window.until, digest)?;
        // A signature may have two writings (ECDSA: s and n-s), and what was signed has one.
        attested.reusable = Some(sha256_hex(token.signed_part().as_bytes()));
        Ok(Verified { attested, window: believed.window, keys: believed.keys })
    }

    /// What verified claims say, in the words of the configuration.
    fn describe(&self, claims: &Value, expires_at: Time, digest: &str) -> Result<Attested, Rejected> {
        let settings = &self.settings;
        let unfit = |unfit: Unfit| refused(unfit.to_string());
        let no_instance = |why: Unfit| match (why, settings.without_instance) {
            (Unfit::Absent(_), Some(known)) => refused(known),
            (why, _) => unfit(why),
        };
        let fact = |template: &Option<TextTemplate>| match template.as_ref().map(|template| template.fill(claims)) {
            None | Some(Err(Unfit::Absent(_))) => Ok(None),
            Some(filled) => filled.map(Some),
        };
        let [environment, sandbox, repo, branch] = &settings.facts;
        let mut selectors = BTreeSet::new();
        for name in &settings.selectors {
            selectors.extend(selectors_of(name, claims)?);
        }
        Ok(Attested {
            workload: settings.workload.fill(claims, &self.domain).map_err(unfit)?,
            instance: settings.instance.fill(claims).map_err(no_instance)?,
            kind: settings.kind,
            attestor: settings.name.clone(),
            issuer: Some(settings.issuer.id.clone()),
            selectors,
            facts: Facts {
                environment: fact(environment).map_err(unfit)?,
                sandbox: fact(sandbox).map_err(unfit)?,
                repo: fact(repo).map_err(unfit)?,
                branch: fact(branch).map_err(unfit)?,
            },
            owners: settings.owners.clone(),
            marks: Vec::new(),
            expires_at: Some(expires_at),
            digest: digest.to_owned(),
            reusable: None,
            once: None,
        })
    }
}

/// The selectors of one claim: none if it is absent, one for text, an integer or a boolean, one for each in a list.
/// What could not be shown as it is refuses the token, because a policy may forbid by it.
fn selectors_of(name: &str, claims: &Value) -> Result<Vec<String>, Rejected> {
    let values = match claim(claims, name) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(values)) if values.len() <= MAX_VALUES => values.as_slice(),
        Some(Value::Array(_)) => return Err(refused(format!("the claim `{name}` has more than 64 values"))),
        Some(value) => std::slice::from_ref(value),
    };
    let selector = |value: &Value| {
        let text = scalar(value)
            .or_else(|| value.as_bool().map(|value| value.to_string()))
            .ok_or_else(|| refused(format!("the claim `{name}` is neither text, an integer nor a boolean")))?;
        plain_text(name, &text).map_err(|unfit| refused(unfit.to_string()))?;
        Ok(format!("oidc:{name}:{text}"))
    };
    values.iter().map(selector).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attest::{Attestors, Config, Evidence},
        jose::SigningKey,
    };
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use chrono::DateTime;
    use serde_json::json;

    const NOW: i64 = 1_800_000_000;

    struct Issuer {
        key: SigningKey,
        attestors: Attestors,
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    fn issuer() -> Issuer {
        let key = key();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json!({ "keys": [key.public()] }).to_string()).unwrap();
        let config = format!(
            "type = 'oidc'\nname = 'ci'\nissuer = 'https://issuer.example'\naudience = 'https://broker.example'\n\
             keys_file = '{}'\nkind = 'ci'\nworkload = '/ci/{{repo/*}}/{{job}}'\ninstance = '{{run}}.{{attempt}}'\n\
             owners = ['team']\nselectors = ['groups', 'repo']\nfacts = {{ repo = '{{repo}}', branch = '{{ref}}' }}",
            file.path().display()
        );
        let config: Config = toml::from_str(&config).unwrap();
        let Ok(attestors) = Attestors::build(&[config], &"example.com".parse().unwrap()) else { panic!("refused") };
        Issuer { key, attestors }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://issuer.example", "aud": "https://broker.example", "iat": NOW - 10, "exp": NOW + 60,
            "repo": "acme/payments", "job": "test", "run": 12, "attempt": "1", "groups": ["a", "b"], "extra": [1, {}],
        })
    }

    impl Issuer {
        async fn judge(&self, token: String, now: i64) -> Result<Attested, Rejected> {
            let now = DateTime::from_timestamp(now, 0).unwrap();
            self.attestors.attest(&Evidence::Jwt(token.into()), "https://broker.example.com", now).await
        }

        async fn accepts(&self, claims: &Value) -> bool {
            self.judge(self.key.sign("JWT", claims).unwrap(), NOW).await.is_ok()
        }
    }

    #[tokio::test]
    async fn a_good_token_proves_what_it_says() {
        let issuer = issuer();
        let token = issuer.key.sign("jwt", &claims()).unwrap();
        let attested = issuer.judge(token.clone(), NOW).await.unwrap();
        assert_eq!(attested.workload().as_str(), "spiffe://example.com/ci/acme/payments/test");
        assert_eq!((attested.instance(), attested.attestor()), ("12.1", "ci"));
        assert_eq!(attested.issuer(), Some("https://issuer.example"));
        assert_eq!(attested.owners(), Some(&["team".to_owned()][..]));
        assert!(
            ["oidc:groups:a", "oidc:groups:b", "oidc:repo:acme/payments"]
                .map(str::to_owned)
                .iter()
                .eq(attested.selectors())
        );
        assert_eq!(
            (attested.facts().repo.as_deref(), attested.facts().branch.as_deref()),
            (Some("acme/payments"), None)
        );
        assert_eq!(attested.expires_at().map(|at| at.timestamp()), Some(NOW + 60));
        assert_eq!(attested.digest(), crate::id::sha256_hex(token.as_bytes()));
    }

    #[tokio::test]
    async fn what_is_remembered_ends_with_the_token() {
        let issuer = issuer();
        let token = issuer.key.sign("JWT", &claims()).unwrap();
        for (now, good) in [(NOW, true), (NOW + 59, true), (NOW + 60, false), (NOW - 15, true), (NOW - 16, false)] {
            assert_eq!(issuer.judge(token.clone(), now).await.is_ok(), good, "{}", now - NOW);
        }
    }

    #[tokio::test]
    async fn claims_are_taken_exactly() {
        let issuer = issuer();
        assert!(issuer.accepts(&claims()).await);
        for (name, value, good) in [
            ("aud", json!(["x", "https://broker.example"]), true),
            ("aud", json!(vec!["https://broker.example"; 9]), false),
            ("aud", json!("https://broker.example.evil.example"), false),
            ("aud", json!("https://broker.example/"), false),
            ("aud", json!("https://broker"), false),
            ("aud", json!(["https://broker.example", 1]), false),
            ("aud", json!([]), false),
            ("aud", json!({"https://broker.example": 1}), false),
            ("aud", json!(null), false),
            ("iss", json!(["https://issuer.example"]), false),
            ("iss", json!("https://issuer.example/"), false),
            ("exp", json!(NOW + 1), true),
            ("exp", json!(NOW), false),
            ("exp", json!("1800000060"), false),
            ("exp", json!(1_800_000_060.5), false),
            ("exp", json!(-1), false),
            ("exp", json!(u64::MAX), false),
            ("exp", json!(null), false),
            ("exp", json!(true), false),
            ("iat", json!(NOW + 5), true),
            ("iat", json!(NOW + 6), false),
            ("iat", json!(NOW - 3600), true),
            ("iat", json!(NOW - 3601), false),
            ("iat", json!("now"), false),
            ("nbf", json!(NOW + 5), true),
            ("nbf", json!(NOW + 6), false),
            ("nbf", json!("later"), false),
            ("nbf", json!(null), false),
            ("repo", json!("acme"), true),
            ("repo", json!("acme/../evil"), false),
            ("repo", json!("task/x"), false),
            ("job", json!("test/more"), false),
            ("job", json!(""), false),
            ("job", json!(null), false),
            ("run", json!(1.5), false),
            ("run", json!("1\n2"), false),
            ("groups", json!([{"a": 1}]), false),
            ("groups", json!("a\u{7f}"), false),
            ("groups", json!(vec!["x"; 65]), false),
            ("ref", json!([]), false),
        ] {
            let mut changed = claims();
            changed[name] = value.clone();
            assert_eq!(issuer.accepts(&changed).await, good, "{name} = {value}");
        }
        for name in ["iss", "aud", "exp", "iat", "repo", "run"] {
            let mut less = claims();
            less.as_object_mut().unwrap().remove(name);
            assert!(!issuer.accepts(&less).await, "without {name}");
        }
    }

    #[tokio::test]
    async fn only_the_issuers_key_used_as_configured_counts() {
        let issuer = issuer();
        let good = issuer.key.sign("JWT", &claims()).unwrap();
        let (_, rest) = good.split_once('.').unwrap();
        let (payload, _) = rest.split_once('.').unwrap();
        let header = |header: Value| BASE64_URL_SAFE_NO_PAD.encode(header.to_string());
        let kid = issuer.key.kid();
        let bad = [
            key().sign("JWT", &claims()).unwrap(),
            issuer.key.sign("at+jwt", &claims()).unwrap(),
            issuer.key.sign("", &claims()).unwrap(),
            format!("{good}.x"),
            format!("{}.{payload}.", header(json!({"alg": "none", "kid": kid}))),
            format!("{}.{payload}.AA", header(json!({"alg": "HS256", "kid": kid}))),
            format!("{}.{rest}", header(json!({"alg": "RS256", "kid": kid}))),
            format!("{}.{rest}", header(json!({"alg": "ES256", "kid": "other"}))),
            format!("{}.{rest}", header(json!({"alg": "ES256", "kid": kid}))),
        ];
        for token in bad {
            assert!(matches!(issuer.judge(token, NOW).await, Err(Rejected::Refused(_))));
        }
        // A token that names no key is checked with the only one.
        let by_hand = jsonwebtoken::encode(
            &jsonwebtoken::Header { typ: None, ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256) },
            &claims(),
            &jsonwebtoken::EncodingKey::from_ec_der(kid.as_bytes()),
        );
        assert!(issuer.judge(by_hand.unwrap(), NOW).await.is_ok());
    }
}
