//! A registered client, which signs assertions with keys of its own (`private_key_jwt`, RFC 7523) → [`Attested`].

use chrono::TimeDelta;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use std::{collections::BTreeSet, sync::Arc};
use tokio::time::Instant;

use super::{
    Attested, Facts, Kind, Once, Rejected,
    config::ClientConfig,
    issuer::{Audience, present, refused},
    keys::Keys,
    settings::{self, Mistakes},
    template::PathTemplate,
};
use crate::{
    clock::Time,
    id::{SpiffeId, TrustDomain, sha256_hex},
    jose::Unverified,
};

/// The longest time that an assertion may be good for, in seconds: it is made for one request.
const LONGEST: i64 = 3600;
/// How far the client's clock may be ahead, in seconds.
const LEEWAY: i64 = 5;
/// The longest `jti`.
const MAX_ID: usize = 512;
/// `typ` where it says what it is for (draft-ietf-oauth-rfc7523bis section 4).
const TYPES: [&str; 2] = ["JWT", "client-authentication+jwt"];

/// A client that is known by its keys.
pub(super) struct Attestor {
    pub(super) name: String,
    pub(super) client_id: String,
    pub(super) keys: Arc<Keys>,
    pub(super) owners: Option<Vec<String>>,
    workload: SpiffeId,
    /// What its workload's path looks like, beside those of other attestors.
    pub(super) path: PathTemplate,
    algorithms: Vec<Algorithm>,
    kind: Kind,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    #[serde(default, deserialize_with = "present")]
    iat: Option<i64>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<i64>,
    #[serde(default, deserialize_with = "present")]
    jti: Option<String>,
}

impl Attestor {
    /// Checks a section and reads the files it names.
    ///
    /// # Errors
    /// Every mistake.
    pub(super) fn build(config: &ClientConfig, domain: &TrustDomain) -> Result<Self, Vec<String>> {
        let mut mistakes = Mistakes::of(&config.name);
        if config.client_id.is_empty() || config.client_id.len() > 256 {
            mistakes.add("`client_id` is 1 to 256 bytes");
        }
        let nothing = serde_json::Value::Null;
        let workload = PathTemplate::parse(&config.workload, domain).and_then(|path| {
            let workload = path.fill(&nothing, domain).map_err(|_| "it names one workload, without placeholders")?;
            Ok((path, workload))
        });
        let workload = mistakes.keep("workload", workload);
        let algorithms = mistakes.keep("algorithms", settings::check_algorithms(config.algorithms.as_deref()));
        let source = settings::KeySource {
            name: &config.name,
            keys_file: config.keys_file.as_deref(),
            jwks_url: config.jwks_url.as_deref(),
            ca_file: config.ca_file.as_deref(),
            refetch_interval: config.refetch_interval,
            neither: "set one of `keys_file` and `jwks_url`",
        };
        let keys = algorithms.as_deref().and_then(|algorithms| settings::keys(&source, algorithms, &mut mistakes));
        match (workload, algorithms, keys) {
            (Some((path, workload)), Some(algorithms), Some(keys)) if mistakes.all.is_empty() => Ok(Self {
                name: config.name.clone(),
                client_id: config.client_id.clone(),
                keys: Arc::new(keys),
                owners: config.owners.clone(),
                workload,
                path,
                algorithms,
                kind: config.kind,
            }),
            _ => Err(mistakes.all),
        }
    }

    /// Verifies an assertion that names this client, for the authorization server `issuer`.
    ///
    /// # Errors
    /// When it is not to be believed, or the client's keys are out of reach.
    pub(super) async fn attest(
        &self,
        token: &Unverified<'_>,
        issuer: &str,
        now: Time,
        at: Instant,
    ) -> Result<Attested, Rejected> {
        let algorithm = token
            .algorithm()
            .filter(|algorithm| self.algorithms.contains(algorithm))
            .ok_or_else(|| refused("the assertion's algorithm is not one that the attestor allows"))?;
        if token.typ().is_some_and(|typ| !TYPES.iter().any(|known| typ.eq_ignore_ascii_case(known))) {
            return Err(refused("the assertion is of another type"));
        }
        let selected = self.keys.select(token.kid(), algorithm, at).await?;
        let claims: Claims = token.verify(&selected.key).map_err(|invalid| refused(invalid.to_string()))?;
        if claims.iss != self.client_id || claims.sub != self.client_id {
            return Err(refused("`iss` and `sub` are not the client"));
        }
        if !claims.aud.is_only(issuer) {
            return Err(refused("the assertion is for another audience than the issuer alone"));
        }
        let seconds = now.timestamp();
        if claims.exp <= seconds || claims.exp > seconds + LONGEST {
            return Err(refused("the assertion has expired, or is good for more than an hour"));
        }
        if [claims.iat, claims.nbf].into_iter().flatten().any(|from| from > seconds + LEEWAY) {
            return Err(refused("the assertion is from the future"));
        }
        let id = match &claims.jti {
            Some(jti) if jti.is_empty() || jti.len() > MAX_ID => return Err(refused("its `jti` is empty or too long")),
            // With its length, so that no two pairs are written alike.
            Some(jti) => format!("jti {} {} {jti}", self.client_id.len(), self.client_id),
            // What was signed has one writing, unlike its signature.
            None => format!("signed {}", token.signed_part()),
        };
        let expires_at = Time::from_timestamp(claims.exp, 0).ok_or_else(|| refused("its end is no point in time"))?;
        let until = expires_at + TimeDelta::seconds(LONGEST);
        Ok(Attested {
            workload: self.workload.clone(),
            instance: format!("key:{}", selected.key.thumbprint()),
            kind: self.kind,
            attestor: self.name.clone(),
            issuer: Some(self.client_id.clone()),
            selectors: BTreeSet::from([format!("client:id:{}", self.client_id)]),
            facts: Facts::default(),
            owners: self.owners.clone(),
            marks: Vec::new(),
            expires_at: Some(expires_at),
            digest: sha256_hex(token.signed_part().as_bytes()),
            reusable: None,
            once: Some(Once { digest: sha256_hex(format!("assertion {id}").as_bytes()), until }),
        })
    }
}
