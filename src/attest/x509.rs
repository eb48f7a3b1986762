//! An X.509-SVID or a JWT-SVID of another SPIFFE trust domain → [`Attested`].

use chrono::DateTime;
use rustls::client::danger::ServerCertVerifier;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;
use webpki::KeyUsage;

use super::{
    Attested, ClientCertificate, Facts, Kind, Rejected, X509Config,
    bundle::Bundle,
    endpoint::Endpoint,
    fetched::{Fetched, out_of_reach},
    issuer::{Audience, Window, present},
    jwks::Found,
    oidc::Verified,
    settings::{check_fetched_url, read, read_roots},
    svid::Svid,
    template::{PathTemplate, TextTemplate, Unfit},
};
use crate::{
    clock::Time,
    id::{SpiffeId, TrustDomain, sha256_hex},
    jose::{Invalid, Unverified},
};

/// By how many seconds the clock of whoever signs JWT-SVIDs may be ahead.
const AHEAD: i64 = 5;

/// How long a JWT-SVID may have left, in seconds: whoever has it is the workload until then.
const LONGEST: i64 = 86_400;

/// A trust domain whose authorities are trusted to say what its workloads are.
pub(super) struct Attestor {
    pub(super) name: String,
    /// The trust domain as an issuer: its SPIFFE ID.
    pub(super) issuer: String,
    pub(super) bundle: Arc<Fetched<Bundle>>,
    pub(super) workload: PathTemplate,
    trust_domain: TrustDomain,
    pub(super) instance: TextTemplate,
    audience: Option<String>,
    kind: Kind,
    pub(super) owners: Option<Vec<String>>,
    facts: [Option<TextTemplate>; 4],
    domain: TrustDomain,
}

/// The claims that every JWT-SVID must have (JWT-SVID section 3), and those that bound it where they are there.
#[derive(Deserialize)]
struct Claims {
    sub: SpiffeId,
    aud: Audience,
    exp: u64,
    #[serde(default, deserialize_with = "present")]
    iat: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<u64>,
}

impl Attestor {
    /// Checks the configuration and reads the bundle, if it stands in a file.
    ///
    /// # Errors
    /// Every mistake.
    pub(super) fn build(config: &X509Config, domain: &TrustDomain) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut keep =
            |field: &str, why: String| mistakes.push(format!("attestor `{}`: `{field}`: {why}", config.name));
        if &config.trust_domain == domain {
            keep(
                "trust_domain",
                "it is this broker's own, whose certificates are for tasks and are no evidence".into(),
            );
        }
        if config.audience.as_ref().is_some_and(String::is_empty) {
            keep(
                "audience",
                "it is empty; set it to what JWT-SVIDs for this broker have as `aud`, or leave it out".into(),
            );
        }
        let workload = PathTemplate::parse(&config.workload, domain).map_err(|why| keep("workload", why)).ok();
        let instance = TextTemplate::parse(&config.instance).map_err(|why| keep("instance", why)).ok();
        let facts = config.facts.clone().unwrap_or_default();
        let facts = [
            ("facts.environment", facts.environment),
            ("facts.sandbox", facts.sandbox),
            ("facts.repo", facts.repo),
            ("facts.branch", facts.branch),
        ];
        let facts = facts
            .map(|(field, text)| text.and_then(|text| TextTemplate::parse(&text).map_err(|why| keep(field, why)).ok()));
        let bundle = bundle(config).map_err(|(field, why)| keep(field, why)).ok();
        match (workload, instance, bundle) {
            (Some(workload), Some(instance), Some(bundle)) if mistakes.is_empty() => Ok(Self {
                name: config.name.clone(),
                issuer: format!("spiffe://{}", config.trust_domain),
                bundle: Arc::new(bundle),
                workload,
                trust_domain: config.trust_domain.clone(),
                instance,
                audience: config.audience.clone(),
                kind: config.kind,
                owners: config.owners.clone(),
                facts,
                domain: domain.clone(),
            }),
            _ => Err(mistakes),
        }
    }

    /// Whether it takes JWT-SVIDs with this audience.
    pub(super) fn takes_jwt_svids_for(&self, audience: &str) -> bool {
        self.audience.as_deref() == Some(audience)
    }

    /// Judges a certificate whose SPIFFE ID is of this trust domain.
    ///
    /// # Errors
    /// When nobody vouches for it now, or that cannot be told because the bundle is out of reach.
    pub(super) async fn attest_certificate(
        &self,
        certificate: &ClientCertificate,
        svid: &Svid,
        now: Time,
        at: Instant,
    ) -> Result<Verified, Rejected> {
        Window { from: svid.from, until: svid.until, oldest: Time::MAX_UTC }.admits(now)?;
        let vouched =
            |bundle: &Bundle| svid.vouched(certificate, bundle, KeyUsage::client_auth(), &self.trust_domain, now);
        // Its authority may be one that only a newer bundle has.
        let current = self.bundle.current(|bundle| vouched(bundle).is_ok(), at).await?;
        let bundle = &current.held.document;
        let until =
            vouched(bundle).map_err(|why| if current.in_doubt { out_of_reach() } else { Rejected::Refused(why) })?;
        let attested = self.describe(&svid.id, certificate.key().as_str(), until, certificate.digest())?;
        let window = Window { from: svid.from, until, oldest: Time::MAX_UTC };
        Ok(Verified { attested, window, keys: crate::attest::fetched::Document::fingerprint(bundle).to_owned() })
    }

    /// Judges a JWT-SVID that says to be of this trust domain. `digest` is its SHA-256; `only` is who it has to be for and nobody
    /// else, where it authenticates a client.
    ///
    /// # Errors
    /// When it is not to be believed, or the bundle is out of reach.
    pub(super) async fn attest_token(
        &self,
        token: &Unverified<'_>,
        digest: &str,
        only: Option<&str>,
        now: Time,
        at: Instant,
    ) -> Result<Verified, Rejected> {
        let no = |why: &str| Rejected::Refused(why.to_owned());
        let audience =
            self.audience.as_ref().ok_or_else(|| no("the attestor takes no JWT-SVIDs: it has no `audience`"))?;
        if !token.is_plain() || token.typ().is_some_and(|typ| !matches!(typ, "JWT" | "JOSE")) {
            return Err(no("the header is not one of a JWT-SVID"));
        }
        let algorithm = token.algorithm().filter(|algorithm| super::bundle::ALGORITHMS.contains(algorithm));
        let algorithm = algorithm.ok_or_else(|| no("the token's algorithm is none of JWT-SVIDs"))?;
        let kid = token.kid().ok_or_else(|| no("the token names no key"))?;
        let find = |bundle: &Bundle| match bundle.keys.as_ref().map(|keys| keys.find(Some(kid), algorithm)) {
            Some(Found::Key(key)) => Ok(key.clone()),
            Some(Found::Unfit(why)) => Err(Some(why)),
            Some(Found::Unknown) | None => Err(None),
        };
        let current = self.bundle.current(|bundle| find(bundle).is_ok(), at).await?;
        let bundle = &current.held.document;
        let key = find(bundle).map_err(|why| match why {
            Some(why) => no(why),
            None if current.in_doubt => out_of_reach(),
            None => no("the trust domain has no such key"),
        })?;
        let all: Value = token.verify(&key).map_err(|why| refused(&why))?;
        let claims = Claims::deserialize(&all).map_err(|_| no("a claim is missing or has the wrong type"))?;
        if claims.sub.trust_domain() != self.trust_domain.as_str() {
            return Err(no("the token is of another trust domain"));
        }
        if !claims.aud.holds(audience) || only.is_some_and(|only| !claims.aud.is_only(only)) {
            return Err(no("the token is for another audience"));
        }
        let window = claims.window().ok_or_else(|| no("a time in the token is out of range"))?;
        if window.until.timestamp() - now.timestamp() > LONGEST {
            return Err(no("the token is good for more than a day"));
        }
        window.admits(now)?;
        // It shows no key, so it stands for itself alone.
        let signed = sha256_hex(token.signed_part().as_bytes());
        let mut attested = self.describe(&claims.sub, &format!("jwt-{signed}"), window.until, digest)?;
        attested.reusable = Some(signed);
        Ok(Verified { attested, window, keys: crate::attest::fetched::Document::fingerprint(bundle).to_owned() })
    }

    /// What a SPIFFE ID that somebody vouched for says, in the words of the configuration.
    fn describe(&self, id: &SpiffeId, key: &str, until: Time, digest: &str) -> Result<Attested, Rejected> {
        let unfit = |why: Unfit| Rejected::Refused(why.to_string());
        let mut claims = json!({"path": id.path(), "trust_domain": id.trust_domain(), "key": key});
        for (at, segment) in id.path().split('/').enumerate() {
            claims[(at + 1).to_string()] = segment.into();
        }
        let fact = |template: &Option<TextTemplate>| match template.as_ref().map(|template| template.fill(&claims)) {
            None | Some(Err(Unfit::Absent(_))) => Ok(None),
            Some(filled) => filled.map(Some).map_err(unfit),
        };
        let [environment, sandbox, repo, branch] = &self.facts;
        Ok(Attested {
            workload: self.workload.fill(&claims, &self.domain).map_err(unfit)?,
            instance: self.instance.fill(&claims).map_err(unfit)?,
            kind: self.kind,
            attestor: self.name.clone(),
            issuer: Some(self.issuer.clone()),
            selectors: BTreeSet::from([
                format!("spiffe:id:{id}"),
                format!("spiffe:trust_domain:{}", id.trust_domain()),
            ]),
            facts: Facts {
                environment: fact(environment)?,
                sandbox: fact(sandbox)?,
                repo: fact(repo)?,
                branch: fact(branch)?,
            },
            owners: self.owners.clone(),
            marks: Vec::new(),
            expires_at: Some(until),
            digest: digest.to_owned(),
            reusable: None,
            once: None,
        })
    }
}

impl Claims {
    fn window(&self) -> Option<Window> {
        let time = |seconds: u64| DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0);
        let mut from = Time::MIN_UTC;
        for start in [self.iat, self.nbf].into_iter().flatten() {
            from = from.max(time(start)?.checked_sub_signed(chrono::TimeDelta::seconds(AHEAD))?);
        }
        Some(Window { from, until: time(self.exp)?, oldest: Time::MAX_UTC })
    }
}

fn refused(why: &Invalid) -> Rejected {
    Rejected::Refused(why.to_string())
}

fn bundle(config: &X509Config) -> Result<Fetched<Bundle>, (&'static str, String)> {
    if config.ca_file.is_some() && (config.bundle_url.is_none() || config.endpoint_spiffe_id.is_some()) {
        return Err(("ca_file", "it is for a `bundle_url` without `endpoint_spiffe_id`; remove it".into()));
    }
    let url = config.bundle_url.as_deref().map(check_fetched_url).transpose().map_err(|why| ("bundle_url", why))?;
    let file = config.bundle_file.as_deref().map(|file| {
        let octets = read(file)?;
        let bundle = Bundle::parse(&octets).map_err(|why| format!("{}: {why}", file.display()))?;
        Ok((bundle, octets))
    });
    let file = file.transpose().map_err(|why| ("bundle_file", why))?;
    let interval = Duration::from_secs(u64::from(config.refetch_interval.max(1)));
    let made = match (file, url, &config.endpoint_spiffe_id) {
        (Some((bundle, _)), None, None) => Ok(Fetched::fixed(&config.name, (), bundle)),
        (None, Some(url), None) => {
            let roots = config.ca_file.as_deref().map(read_roots).transpose().map_err(|why| ("ca_file", why))?;
            Fetched::remote(&config.name, (), url, roots, interval)
        }
        (Some((bundle, octets)), Some(url), Some(id)) if id.trust_domain() == config.trust_domain.as_str() => {
            // Whom it was fetched from is part of how: what another server said is not taken over.
            let vouching = [id.as_str().as_bytes(), b"\n", &octets].concat();
            let (id, domain) = (id.clone(), config.trust_domain.clone());
            let verifier = |held| Arc::new(Endpoint::new(id, domain, held)) as Arc<dyn ServerCertVerifier>;
            Fetched::by_its_own_word(&config.name, (), url, interval, (bundle, vouching), verifier)
        }
        (_, _, Some(_)) => {
            let why = "it is the SPIFFE ID, in this trust domain, of the server at `bundle_url`, which is known by `bundle_file` at first: \
                       set all three";
            return Err(("endpoint_spiffe_id", why.into()));
        }
        (Some(_), Some(_), None) | (None, None, None) => {
            let why = "set one of `bundle_file` and `bundle_url`: who vouches for the trust domain's workloads";
            return Err(("bundle_file", why.into()));
        }
    };
    made.map_err(|why| ("bundle_url", why))
}
