//! The `[[attestor]]` sections of the configuration, as they are written. [`super::Attestors::build`] checks them.

use serde::Deserialize;
use std::path::{Path, PathBuf};

use super::{Kind, preset::Preset};
use crate::id::{SpiffeId, TrustDomain};

/// One `[[attestor]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Config {
    /// `type = "unix"`: the kernel vouches for who is at the other end of the Unix socket.
    Unix(UnixConfig),
    /// `type = "oidc"`: an issuer vouches with a signed token.
    Oidc(Box<OidcConfig>),
    /// `type = "private_key_jwt"`: a client that is known by its keys authenticates with them.
    PrivateKeyJwt(Box<ClientConfig>),
    /// `type = "x509"`: another SPIFFE trust domain vouches, with certificates that its workloads show in TLS handshakes.
    X509(Box<X509Config>),
}

/// The kernel as attestor.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixConfig {
    /// What it is called in tokens, policies and the audit.
    pub name: String,
    /// What sort of thing its workloads are; default `ai_agent`.
    #[serde(default = "ai_agent")]
    pub kind: Kind,
    /// The workload path; default `/unix/{uid}`. There are `{uid}`, `{gid}` and `{exe_sha256}`.
    #[serde(default = "unix_workload")]
    pub workload: String,
    /// The owners that its workloads may name; left out, policy decides.
    pub owners: Option<Vec<String>>,
}

/// A client that is known by its keys (RFC 7523).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// What it is called in tokens, policies and the audit.
    pub name: String,
    /// The `iss` and `sub` of its assertions.
    pub client_id: String,
    /// A file with its JWK set, or
    pub keys_file: Option<PathBuf>,
    /// the HTTPS address of its JWK set.
    pub jwks_url: Option<String>,
    /// The certificate authorities (PEM) that may vouch for `jwks_url`, instead of the machine's.
    pub ca_file: Option<PathBuf>,
    /// The algorithms its assertions may be signed with; default `RS256` and `ES256`.
    pub algorithms: Option<Vec<String>>,
    /// What sort of thing it is; default `service`.
    #[serde(default = "service")]
    pub kind: Kind,
    /// The one workload that it is.
    pub workload: String,
    /// The owners that it may name; left out, policy decides.
    pub owners: Option<Vec<String>>,
    /// The shortest time between two fetches of `jwks_url`, in seconds; default 30.
    #[serde(default = "thirty")]
    pub refetch_interval: u32,
}

/// An `OpenID` Connect issuer as attestor. What has no default here and stands in the preset can be left out.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// What it is called in tokens, policies and the audit.
    pub name: String,
    /// A known issuer, whose settings hold where none is given by hand.
    pub preset: Option<Preset>,
    /// The `iss` of its tokens, byte for byte.
    pub issuer: Option<String>,
    /// What must be in the `aud` of its tokens.
    pub audience: String,
    /// A file with its JWK set, or
    pub keys_file: Option<PathBuf>,
    /// the HTTPS address of its JWK set.
    pub jwks_url: Option<String>,
    /// The certificate authorities (PEM) that may vouch for `jwks_url`, instead of the machine's.
    pub ca_file: Option<PathBuf>,
    /// The algorithms its tokens may be signed with; default `RS256` and `ES256`.
    pub algorithms: Option<Vec<String>>,
    /// What sort of thing its workloads are.
    pub kind: Option<Kind>,
    /// The workload path.
    pub workload: Option<String>,
    /// Which instance of the workload.
    pub instance: Option<String>,
    /// The owners that its workloads may name; left out, policy decides.
    pub owners: Option<Vec<String>>,
    /// What its claims say about the work.
    pub facts: Option<FactTemplates>,
    /// Claims that policies see as `oidc:<claim>:<value>`.
    pub selectors: Option<Vec<String>>,
    /// The oldest token that is accepted, in seconds; default 3600.
    #[serde(default = "hour")]
    pub max_age: u32,
    /// How far the issuer's clock may be ahead, in seconds; default 5, at most 60.
    #[serde(default = "five")]
    pub leeway: u32,
    /// The shortest time between two fetches of `jwks_url`, in seconds; default 30.
    #[serde(default = "thirty")]
    pub refetch_interval: u32,
}

/// Another SPIFFE trust domain as attestor. Templates know the segments of a SPIFFE ID's path as `{1}`, `{2}` and so on, all of
/// them as `{path/*}`, and `{trust_domain}` and `{key}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509Config {
    /// What it is called in tokens, policies and the audit.
    pub name: String,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// A file with its bundle: SPIFFE's JSON, or certificates in PEM; or
    pub bundle_file: Option<PathBuf>,
    /// the HTTPS address of its bundle.
    pub bundle_url: Option<String>,
    /// The SPIFFE ID of the server at `bundle_url`, where it shows an X.509-SVID (`https_spiffe`); `bundle_file` says who vouches for that
    /// at first.
    pub endpoint_spiffe_id: Option<SpiffeId>,
    /// The certificate authorities (PEM) that may vouch for `bundle_url`, instead of the machine's.
    pub ca_file: Option<PathBuf>,
    /// The shortest time between two fetches of `bundle_url`, in seconds; default 30.
    #[serde(default = "thirty")]
    pub refetch_interval: u32,
    /// What its JWT-SVIDs for this broker have as `aud`; left out, there are none.
    pub audience: Option<String>,
    /// What sort of thing its workloads are.
    pub kind: Kind,
    /// The workload path.
    pub workload: String,
    /// Which instance of the workload; default `{key}`, the SHA-256 of the certificate's public key. A JWT-SVID stands for itself there.
    #[serde(default = "key")]
    pub instance: String,
    /// The owners that its workloads may name; left out, policy decides.
    pub owners: Option<Vec<String>>,
    /// What its SPIFFE IDs say about the work.
    pub facts: Option<FactTemplates>,
}

/// Templates of the facts about the work. A fact whose claim a token does not have is absent.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactTemplates {
    /// The environment.
    pub environment: Option<String>,
    /// The sandbox.
    pub sandbox: Option<String>,
    /// The repository.
    pub repo: Option<String>,
    /// The branch.
    pub branch: Option<String>,
}

impl Config {
    /// The attestor of a broker without a configuration: the kernel, with every default.
    #[must_use]
    pub fn development() -> Self {
        Self::Unix(UnixConfig { name: "unix".into(), kind: ai_agent(), workload: unix_workload(), owners: None })
    }

    /// Takes relative paths as relative to `base`.
    pub(crate) fn resolve(&mut self, base: &Path) {
        let (first, second) = match self {
            Self::Unix(_) => return,
            Self::Oidc(config) => (&mut config.keys_file, &mut config.ca_file),
            Self::PrivateKeyJwt(config) => (&mut config.keys_file, &mut config.ca_file),
            Self::X509(config) => (&mut config.bundle_file, &mut config.ca_file),
        };
        for path in first.iter_mut().chain(second) {
            *path = base.join(&path);
        }
    }

    /// The files that it names.
    pub(crate) fn files(&self) -> Vec<&Path> {
        match self {
            Self::Unix(_) => Vec::new(),
            Self::Oidc(config) => config.keys_file.iter().chain(&config.ca_file).map(PathBuf::as_path).collect(),
            Self::PrivateKeyJwt(config) => {
                config.keys_file.iter().chain(&config.ca_file).map(PathBuf::as_path).collect()
            }
            Self::X509(config) => config.bundle_file.iter().chain(&config.ca_file).map(PathBuf::as_path).collect(),
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Unix(config) => &config.name,
            Self::Oidc(config) => &config.name,
            Self::PrivateKeyJwt(config) => &config.name,
            Self::X509(config) => &config.name,
        }
    }

    /// Whose tokens it takes, where it says so.
    pub(crate) fn issuer(&self) -> Option<&str> {
        match self {
            Self::Unix(_) | Self::X509(_) => None,
            Self::Oidc(config) => config.issuer.as_deref(),
            Self::PrivateKeyJwt(config) => Some(&config.client_id),
        }
    }

    /// The owners that it allows, where it says so.
    pub(crate) fn owners(&self) -> Option<&[String]> {
        match self {
            Self::Unix(config) => config.owners.as_deref(),
            Self::Oidc(config) => config.owners.as_deref(),
            Self::PrivateKeyJwt(config) => config.owners.as_deref(),
            Self::X509(config) => config.owners.as_deref(),
        }
    }
}

fn service() -> Kind {
    Kind::Service
}

fn ai_agent() -> Kind {
    Kind::AiAgent
}
fn unix_workload() -> String {
    "/unix/{uid}".into()
}
fn key() -> String {
    "{key}".into()
}
fn hour() -> u32 {
    3600
}
fn five() -> u32 {
    5
}
fn thirty() -> u32 {
    30
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sections_are_strict() {
        let parse = toml::from_str::<Config>;
        assert!(matches!(parse("type = 'unix'\nname = 'u'"), Ok(Config::Unix(unix)) if unix.workload == "/unix/{uid}"));
        assert!(parse("type = 'oidc'\nname = 'o'\naudience = 'a'\npreset = 'github-actions'").is_ok());
        assert!(parse("type = 'unix'\nname = 'u'\nworklaod = '/a'").is_err());
        assert!(parse("type = 'oidc'\nname = 'o'\naudience = 'a'\nmax_ages = 5").is_err());
        assert!(parse("type = 'oidc'\nname = 'o'\naudience = 'a'\nfacts = { repos = '{r}' }").is_err());
        for kind in
            ["type = 'kernel'", "type = 'UNIX'", "type = 'unix '", "type = 'K8S'", "type = ''", "type = ['unix']"]
        {
            assert!(parse(kind).is_err_and(|why| !why.message().contains("missing field")), "{kind}");
        }
        assert!(parse("type = 'oidc'\nname = 'o'").is_err());
    }
}
