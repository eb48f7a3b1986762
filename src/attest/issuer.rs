//! An `OpenID` Connect issuer: whose tokens are taken, for whom, and which of them are believed. What their claims mean is said by
//! whoever goes by them: an attestor of workloads ([`super::oidc`]), or the section that makes operators of people.

use chrono::{DateTime, TimeDelta};
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::Value;
use std::{path::Path, sync::Arc};
use tokio::time::Instant;
use url::Url;

use super::{
    Rejected,
    keys::Keys,
    settings::{KeySource, Mistakes, check_algorithms, keys},
    template::{claim, names_claim, plain_text, scalar},
};
use crate::{clock::Time, id::is_loopback, jose::Unverified};

/// The most audiences one token may have.
const MAX_AUDIENCES: usize = 8;

/// What a section says of its issuer, not yet checked. See [`super::OidcConfig`] for what each of it means.
#[derive(Debug)]
pub struct IssuerTerms<'a> {
    /// What the section is called in the configuration.
    pub section: &'static str,
    /// Which of those sections.
    pub name: &'a str,
    /// The `iss` of its tokens.
    pub issuer: Option<&'a str>,
    /// What must be in their `aud`.
    pub audience: &'a str,
    /// A file with its JWK set.
    pub keys_file: Option<&'a Path>,
    /// The HTTPS address of its JWK set.
    pub jwks_url: Option<&'a str>,
    /// Who may vouch for that address.
    pub ca_file: Option<&'a Path>,
    /// What its tokens may be signed with.
    pub algorithms: Option<&'a [String]>,
    /// The oldest token, in seconds.
    pub max_age: u32,
    /// How far its clock may be ahead, in seconds.
    pub leeway: u32,
    /// The shortest time between two fetches of its keys, in seconds.
    pub refetch_interval: u32,
}

/// An issuer whose tokens are believed.
pub struct Issuer {
    /// The `iss` of its tokens.
    pub(super) id: String,
    pub(super) audience: String,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) keys: Arc<Keys>,
    pub(super) max_age: TimeDelta,
    pub(super) leeway: TimeDelta,
}

/// What a token says that is believed. Only [`Issuer::believe`] makes one.
#[derive(Debug)]
pub struct Believed {
    pub(super) claims: Value,
    pub(super) window: Window,
    /// The fingerprint of the key set it was verified with.
    pub(super) keys: String,
}

/// When evidence is believed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) from: Time,
    pub(super) until: Time,
    /// The last moment at which it is not too old.
    pub(super) oldest: Time,
}

/// The claims that every token must have; RFC 7519 lets `exp` be fractional and `aud` be anything, we do not.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: u64,
    iat: u64,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<u64>,
}

/// A claim that may be left out, but is none of the things that could be taken for being left out (`null`).
pub(super) fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// For whom a token is.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    pub(super) fn holds(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(all) => all.len() <= MAX_AUDIENCES && all.iter().any(|one| one == audience),
        }
    }

    /// It and nobody else: what others take as well they can pass on. As a list of one, it is the same.
    pub(super) fn is_only(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(all) => matches!(all.as_slice(), [one] if one == audience),
        }
    }
}

pub(super) fn refused(why: impl Into<String>) -> Rejected {
    Rejected::Refused(why.into())
}

impl Window {
    /// # Errors
    /// When a token that says so is not to be believed `now`.
    pub(super) fn admits(&self, now: Time) -> Result<(), Rejected> {
        if now < self.from {
            Err(refused("it was issued in the future or is not valid yet"))
        } else if now >= self.until {
            Err(refused("it has expired"))
        } else if now > self.oldest {
            Err(refused("it was issued too long ago"))
        } else {
            Ok(())
        }
    }
}

impl Claims {
    fn window(&self, max_age: TimeDelta, leeway: TimeDelta) -> Option<Window> {
        let time = |seconds: u64| DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0);
        let (iat, exp) = (time(self.iat)?, time(self.exp)?);
        let start = self.nbf.map_or(Some(iat), |nbf| Some(time(nbf)?.max(iat)))?;
        Some(Window { from: start.checked_sub_signed(leeway)?, until: exp, oldest: iat.checked_add_signed(max_age)? })
    }
}

impl Issuer {
    /// Checks what a section says and reads the files that it names; keys that have to be fetched are fetched when they are first
    /// needed.
    ///
    /// # Errors
    /// Every mistake, each a sentence that names the section and says what to change.
    pub fn build(terms: &IssuerTerms<'_>) -> Result<Self, Vec<String>> {
        let mut mistakes = Mistakes::about(terms.section, terms.name);
        let issuer = Self::check(terms, "set one of `keys_file` and `jwks_url`", &mut mistakes);
        issuer.filter(|_| mistakes.all.is_empty()).ok_or(mistakes.all)
    }

    /// The same, for a section with more in it. `neither`: what to do where there is no place for keys.
    pub(super) fn check(terms: &IssuerTerms<'_>, neither: &'static str, mistakes: &mut Mistakes<'_>) -> Option<Self> {
        let id = terms.issuer.and_then(|issuer| mistakes.keep("issuer", check_issuer(issuer)));
        if terms.audience.is_empty() {
            mistakes.add("`audience` is empty; set it to what the issuer writes into `aud` for this broker");
        }
        if terms.leeway > 60 {
            mistakes.add("`leeway` is at most 60 seconds; set the clocks instead");
        }
        if terms.max_age == 0 || terms.refetch_interval == 0 {
            mistakes.add("`max_age` and `refetch_interval` are at least 1 second");
        }
        let algorithms = mistakes.keep("algorithms", check_algorithms(terms.algorithms))?;
        // Without algorithms there is no telling which keys would do; their mistake comes first.
        let source = KeySource {
            name: terms.name,
            keys_file: terms.keys_file,
            jwks_url: terms.jwks_url,
            ca_file: terms.ca_file,
            refetch_interval: terms.refetch_interval,
            neither,
        };
        let keys = keys(&source, &algorithms, mistakes)?;
        Some(Self {
            id: id?,
            audience: terms.audience.to_owned(),
            algorithms,
            keys: Arc::new(keys),
            max_age: TimeDelta::seconds(i64::from(terms.max_age)),
            leeway: TimeDelta::seconds(i64::from(terms.leeway)),
        })
    }

    /// The `iss` of its tokens.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Takes over the keys that `before` has fetched from the same place.
    pub fn inherit(&self, before: &Self) {
        self.keys.inherit(&before.keys);
    }

    /// Verifies a token that names this issuer and has one of the types `types`, or none.
    ///
    /// # Errors
    /// When the token is not to be believed, or its issuer's keys are out of reach.
    pub async fn believe(&self, token: &Unverified<'_>, types: &[&str], now: Time) -> Result<Believed, Rejected> {
        self.believe_at(token, types, now, Instant::now()).await
    }

    /// The same, at this moment of the clock by which keys grow old.
    pub(super) async fn believe_at(
        &self,
        token: &Unverified<'_>,
        types: &[&str],
        now: Time,
        at: Instant,
    ) -> Result<Believed, Rejected> {
        let algorithm = token
            .algorithm()
            .filter(|algorithm| self.algorithms.contains(algorithm))
            .ok_or_else(|| refused("the token's algorithm is not one that the configuration allows"))?;
        if token.typ().is_some_and(|typ| !types.iter().any(|known| typ.eq_ignore_ascii_case(known))) {
            return Err(refused(format!("the token is of another type than `{}`", types.join("` or `"))));
        }
        let selected = self.keys.select(token.kid(), algorithm, at).await?;
        let all: Value = token.verify(&selected.key).map_err(|invalid| refused(invalid.to_string()))?;
        let claims = Claims::deserialize(&all).map_err(|_| refused("a claim is missing or has the wrong type"))?;
        if claims.iss != self.id {
            return Err(refused("the token is of another issuer"));
        }
        if !claims.aud.holds(&self.audience) {
            return Err(refused("the token is for another audience"));
        }
        let window =
            claims.window(self.max_age, self.leeway).ok_or_else(|| refused("a time in the token is out of range"))?;
        window.admits(now)?;
        Ok(Believed { claims: all, window, keys: selected.set })
    }

    /// Whether this can be the name of a claim, or a JSON pointer to one.
    #[must_use]
    pub fn can_name(claim: &str) -> bool {
        names_claim(claim)
    }
}

impl Believed {
    /// A claim that is text or an integer, of 1 to 256 bytes without control characters.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        claim(&self.claims, name).and_then(scalar).filter(|text| plain_text(name, text).is_ok())
    }

    /// Whether a claim is this very text, or a list with it.
    #[must_use]
    pub fn says(&self, name: &str, value: &str) -> bool {
        match claim(&self.claims, name) {
            Some(Value::String(text)) => text == value,
            Some(Value::Array(values)) => values.iter().any(|one| one == value),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => false,
        }
    }

    /// Whether it has a claim of that name, whatever it says.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        claim(&self.claims, name).is_some()
    }

    /// Whether a claim says that something is so.
    #[must_use]
    pub fn is_true(&self, name: &str) -> bool {
        claim(&self.claims, name) == Some(&Value::Bool(true))
    }

    /// When it is believed no more.
    #[must_use]
    pub fn until(&self) -> Time {
        self.window.until.min(self.window.oldest)
    }
}

fn check_issuer(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|_| "it must be a URL")?;
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
        return Err("it must begin with https:// (http:// only on loopback)".into());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("it must have no user, query or fragment".into());
    }
    Ok(text.to_owned())
}
