//! An `[[attestor]]` of type `oidc`, checked: what is wrong with it is said all at once, each with what to change.

use jsonwebtoken::Algorithm;
use std::{fs::File, io::Read as _, path::Path, time::Duration};
use url::Url;

use super::{
    Kind,
    config::OidcConfig,
    fetched::Roots,
    issuer::{Issuer, IssuerTerms},
    jwks::{KeySet, MAX_BYTES},
    keys::Keys,
    preset::Preset,
    template::{PathTemplate, TextTemplate, names_claim},
};
use crate::id::TrustDomain;

/// What an OIDC attestor goes by.
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) issuer: Issuer,
    pub(super) kind: Kind,
    pub(super) workload: PathTemplate,
    pub(super) instance: TextTemplate,
    /// Why a token that lacks a claim of `instance` is refused, where that is known.
    pub(super) without_instance: Option<&'static str>,
    pub(super) owners: Option<Vec<String>>,
    /// Templates of environment, sandbox, repo and branch.
    pub(super) facts: [Option<TextTemplate>; 4],
    pub(super) selectors: Vec<String>,
}

/// Mistakes in one section.
pub(super) struct Mistakes<'a> {
    section: &'static str,
    name: &'a str,
    preset: Option<Preset>,
    pub(super) all: Vec<String>,
}

impl<'a> Mistakes<'a> {
    pub(super) fn of(name: &'a str) -> Self {
        Self::about("attestor", name)
    }

    /// In the section of another name.
    pub(super) fn about(section: &'static str, name: &'a str) -> Self {
        Self { section, name, preset: None, all: Vec::new() }
    }

    pub(super) fn add(&mut self, what: &str) {
        self.all.push(format!("{} `{}`: {what}", self.section, self.name));
    }

    /// The value, or its mistake noted under `field`.
    pub(super) fn keep<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|mistake| self.add(&format!("`{field}`: {mistake}"))).ok()
    }

    fn require<'v, T>(&mut self, field: &str, value: Option<&'v T>) -> Option<&'v T> {
        if value.is_none() {
            self.add(&match self.preset {
                None => format!("`{field}` is missing; set it, or name a `preset`"),
                // Only what differs from one installation to the next is missing from a preset.
                Some(Preset::Kubernetes) => format!(
                    "`{field}` is missing, and every cluster has its own: \
                     `kubectl get --raw /.well-known/openid-configuration` shows it"
                ),
                Some(Preset::GithubActions | Preset::GitlabCi) => format!("`{field}` is missing; set it"),
            });
        }
        value
    }
}

impl Settings {
    /// Checks a section and reads the files it names.
    ///
    /// # Errors
    /// Every mistake.
    pub(super) fn check(config: &OidcConfig, domain: &TrustDomain) -> Result<Self, Vec<String>> {
        let config = config.settled();
        let mut mistakes = Mistakes { preset: config.preset, ..Mistakes::of(&config.name) };
        let issuer = mistakes.require("issuer", config.issuer.as_ref());
        let kind = mistakes.require("kind", config.kind.as_ref()).copied();
        let workload = mistakes.require("workload", config.workload.as_ref());
        let workload = workload.and_then(|text| mistakes.keep("workload", PathTemplate::parse(text, domain)));
        let instance = mistakes.require("instance", config.instance.as_ref());
        let instance = instance.and_then(|text| mistakes.keep("instance", TextTemplate::parse(text)));
        let facts = config.facts.clone().unwrap_or_default();
        let facts = [
            ("facts.environment", facts.environment),
            ("facts.sandbox", facts.sandbox),
            ("facts.repo", facts.repo),
            ("facts.branch", facts.branch),
        ];
        let facts = facts.map(|(field, text)| text.and_then(|text| mistakes.keep(field, TextTemplate::parse(&text))));
        let selectors = mistakes.keep("selectors", check_selectors(config.selectors.as_deref().unwrap_or_default()));
        let terms = IssuerTerms {
            section: "attestor",
            name: &config.name,
            issuer: issuer.map(String::as_str),
            audience: &config.audience,
            keys_file: config.keys_file.as_deref(),
            jwks_url: config.jwks_url.as_deref(),
            ca_file: config.ca_file.as_deref(),
            algorithms: config.algorithms.as_deref(),
            max_age: config.max_age,
            leeway: config.leeway,
            refetch_interval: config.refetch_interval,
        };
        let neither = match config.preset {
            Some(Preset::Kubernetes) => {
                "set one of `keys_file` (what `kubectl get --raw /openid/v1/jwks` prints) and `jwks_url`"
            }
            None | Some(Preset::GithubActions | Preset::GitlabCi) => "set one of `keys_file` and `jwks_url`",
        };
        let issuer = Issuer::check(&terms, neither, &mut mistakes);

        let (name, without_instance) = (config.name.clone(), config.without_instance());
        match (issuer, kind, workload, instance, selectors) {
            (Some(issuer), Some(kind), Some(workload), Some(instance), Some(selectors)) if mistakes.all.is_empty() => {
                Ok(Self {
                    name,
                    issuer,
                    kind,
                    workload,
                    instance,
                    without_instance,
                    owners: config.owners,
                    facts,
                    selectors,
                })
            }
            _ => Err(mistakes.all),
        }
    }
}

pub(super) fn check_algorithms(names: Option<&[String]>) -> Result<Vec<Algorithm>, String> {
    const OURS: [&str; 9] = ["ES256", "ES384", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
    let Some(names) = names else { return Ok(vec![Algorithm::RS256, Algorithm::ES256]) };
    if names.is_empty() {
        return Err("name at least one, or leave it out for RS256 and ES256".into());
    }
    let known = |name: &String| OURS.contains(&name.as_str()).then(|| name.parse().ok()).flatten();
    names.iter().map(known).collect::<Option<_>>().ok_or_else(|| format!("use only {}", OURS.join(", ")))
}

fn check_selectors(names: &[String]) -> Result<Vec<String>, String> {
    if !names.iter().all(|name| names_claim(name)) {
        return Err("each entry is the name of a claim or a JSON pointer to one".into());
    }
    // `a` with the value `b:c` and `a:b` with the value `c` would be the same selector.
    let confused = |one: &String| names.iter().any(|other| other.starts_with(&format!("{one}:")));
    if names.iter().any(confused) {
        return Err("no claim's name may be the beginning of another's up to a `:`; leave one of them out".into());
    }
    Ok(names.to_vec())
}

/// Where keys come from, as a section says it.
pub(super) struct KeySource<'a> {
    pub(super) name: &'a str,
    pub(super) keys_file: Option<&'a Path>,
    pub(super) jwks_url: Option<&'a str>,
    pub(super) ca_file: Option<&'a Path>,
    pub(super) refetch_interval: u32,
    /// What to do where not one of the two is set.
    pub(super) neither: &'static str,
}

pub(super) fn keys(config: &KeySource<'_>, algorithms: &[Algorithm], mistakes: &mut Mistakes<'_>) -> Option<Keys> {
    if config.ca_file.is_some() && config.jwks_url.is_none() {
        mistakes.add("`ca_file` is for `jwks_url`; remove it");
    }
    match (config.keys_file, config.jwks_url) {
        (Some(file), None) => {
            let set = read(file).and_then(|document| {
                KeySet::parse(&document, algorithms).map_err(|invalid| format!("{}: {invalid}", file.display()))
            });
            mistakes.keep("keys_file", set).map(|set| Keys::fixed(config.name, algorithms.to_vec(), set))
        }
        (None, Some(url)) => {
            let url = mistakes.keep("jwks_url", check_fetched_url(url));
            let roots = config.ca_file.map(|file| mistakes.keep("ca_file", read_roots(file)));
            let roots = match roots {
                Some(roots) => Some(roots?),
                None => None,
            };
            let interval = Duration::from_secs(u64::from(config.refetch_interval));
            mistakes.keep("jwks_url", Keys::remote(config.name, algorithms.to_vec(), url?, roots, interval))
        }
        (Some(_), Some(_)) | (None, None) => {
            mistakes.add(config.neither);
            None
        }
    }
}

/// The address that something is fetched from.
pub(super) fn check_fetched_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "it must be a URL")?;
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (url.scheme() == "https" && plain)
        .then_some(url)
        .ok_or_else(|| "it must begin with https:// and have no user and no fragment".into())
}

pub(super) fn read_roots(file: &Path) -> Result<Roots, String> {
    let pem = read(file)?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
    (!certificates.is_empty())
        .then_some(Roots { certificates, pem })
        .ok_or_else(|| format!("{} holds no certificate in PEM", file.display()))
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, String> {
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|open| open.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    (bytes.len() <= MAX_BYTES).then_some(bytes).ok_or_else(|| format!("{} is larger than 256 KiB", file.display()))
}
