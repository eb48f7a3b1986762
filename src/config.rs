//! The configuration: strict, and complete before anything starts. Each module owns its section; here is only how they
//! come together, and what is unsafe in combination. All mistakes are told at once, by key, never by value.

use serde::{
    Deserialize,
    de::{DeserializeOwned, Error as _},
};
use std::{
    fmt, fs, mem,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};
use zeroize::Zeroizing;

use crate::{
    attest, audit,
    credential::UpstreamFiles,
    http::{Network, TlsFiles, TlsVersion},
    id::{Host, TrustDomain, hex, is_loopback, random, sha256_hex},
    lease,
    party::{OperatorConfig, OperatorIssuerConfig, OwnerConfig, Role, ServiceConfig},
    revocation::FeedTerms,
    secret_file,
    signal::ReceiverConfig,
    task::ReportTerms,
    telemetry,
};

/// What is wrong with a configuration: one sentence a line, each saying what to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// A whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The broker's name: `iss` of every token, to the octet.
    pub issuer: String,
    /// The SPIFFE trust domain of the workloads it names.
    pub trust_domain: TrustDomain,
    /// Where it listens.
    pub listen: Listen,
    /// The lease store.
    pub store: lease::Config,
    /// Its own keys and its audit log.
    #[serde(default)]
    pub files: Files,
    /// Its signing keys.
    #[serde(default)]
    pub keys: Keys,
    /// Who vouches for its authorities.
    #[serde(default)]
    pub authority: Authority,
    /// How the audit log is kept.
    #[serde(default)]
    pub audit: audit::Config,
    /// Proofs of possession.
    #[serde(default)]
    pub dpop: Dpop,
    /// Certificates of tasks.
    #[serde(default)]
    pub certificates: Certificates,
    /// Reports of what was done.
    #[serde(default)]
    pub reports: ReportTerms,
    /// The revocation feed.
    #[serde(default)]
    pub feed: FeedTerms,
    /// Where telemetry goes.
    #[serde(default)]
    pub telemetry: telemetry::Config,
    /// What is allowed.
    pub policy: Policy,
    /// Who can prove what they are.
    #[serde(default, rename = "attestor")]
    pub attestors: Vec<attest::Config>,
    /// Who is called, and verifies.
    #[serde(default, rename = "service")]
    pub services: Vec<ServiceConfig>,
    /// The security team.
    #[serde(default, rename = "operator")]
    pub operators: Vec<OperatorConfig>,
    /// Who vouches for people of it.
    #[serde(default, rename = "operator_issuer")]
    pub operator_issuers: Vec<OperatorIssuerConfig>,
    /// Who is accountable for tasks.
    #[serde(default, rename = "owner")]
    pub owners: Vec<OwnerConfig>,
    /// Who is told of ends.
    #[serde(default, rename = "receiver")]
    pub receivers: Vec<ReceiverConfig>,
    /// Whether a file said so: then what is merely unwise is refused as well.
    #[serde(skip)]
    pub strict: bool,
    /// Where it was read from, and what beat it.
    #[serde(skip)]
    pub origin: Option<Origin>,
}

/// Where a configuration comes from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// What the command line said.
    pub over: Overrides,
    /// SHA-256 of the file as it was read.
    pub digest: String,
}

/// The `[listen]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// HTTPS, on any address.
    pub tls: Option<SocketAddr>,
    /// The certificate of the HTTPS listener, and those that vouch for it, in PEM.
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key_file: Option<PathBuf>,
    /// In the place of both: the names by which the HTTPS listener is reached, for a certificate from the broker's own authority.
    #[serde(default)]
    pub tls_names: Vec<Host>,
    /// The oldest version of TLS that is spoken.
    #[serde(default)]
    pub tls_min_version: TlsVersion,
    /// The origin by which clients reach the HTTPS listener, where it is another than the issuer's.
    pub tls_origin: Option<String>,
    /// Plain HTTP, on loopback only, or for the proxies of `behind_proxy`.
    pub http: Option<SocketAddr>,
    /// The addresses of the proxies in front of a `http` that is not on loopback: nobody else is served there.
    #[serde(default)]
    pub behind_proxy: Vec<Network>,
    /// The Unix socket, on which the kernel says who calls.
    pub unix: Option<PathBuf>,
    /// Health alone, for probes; plain HTTP on any address.
    pub ops: Option<SocketAddr>,
}

/// The most names of one certificate.
const MOST_NAMES: usize = 32;

/// Where the certificate of the HTTPS listener is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsCertificate {
    /// From files, which it follows.
    Files(TlsFiles),
    /// From the broker's own authority, for these names.
    Own(Vec<Host>),
}

impl Listen {
    /// Where it listens for HTTP, and nothing else.
    fn only_http(address: SocketAddr) -> Self {
        Self {
            tls: None,
            tls_cert_file: None,
            tls_key_file: None,
            tls_names: Vec::new(),
            tls_min_version: TlsVersion::default(),
            tls_origin: None,
            http: Some(address),
            behind_proxy: Vec::new(),
            unix: None,
            ops: None,
        }
    }

    /// Where it listens for HTTPS, and where its certificate is from.
    #[must_use]
    pub fn https(&self) -> Option<(SocketAddr, TlsCertificate)> {
        let address = self.tls?;
        if !self.tls_names.is_empty() {
            return Some((address, TlsCertificate::Own(self.tls_names.clone())));
        }
        let (certificate, key) = (self.tls_cert_file.clone()?, self.tls_key_file.clone()?);
        Some((address, TlsCertificate::Files(TlsFiles { certificate, key })))
    }

    /// What is unsafe in it.
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let exposed = self.http.is_some_and(|http| !http.ip().is_loopback());
        if self.http.is_none() && self.tls.is_none() {
            mistakes.push("`[listen]` names no address: set `tls` and its files, or `http` on loopback".into());
        }
        if exposed && self.behind_proxy.is_empty() {
            mistakes.push(
                "`listen.http` is plain HTTP and must be a loopback address; use `listen.tls` for others, or name the TLS \
                 proxy in front of it in `listen.behind_proxy`"
                    .into(),
            );
        }
        if !exposed && !self.behind_proxy.is_empty() {
            mistakes.push(
                "`listen.behind_proxy` is for a `listen.http` that is not on loopback, where everybody is served; remove it"
                    .into(),
            );
        }
        if self.behind_proxy.iter().any(Network::is_everything) {
            mistakes.push("`listen.behind_proxy` names every address there is; name those of the proxy".into());
        }
        if let Some(origin) = &self.tls_origin
            && !(self.tls.is_some() && origin.starts_with("https://") && is_origin(origin))
        {
            mistakes.push(
                "`listen.tls_origin` is for a `listen.tls` that is not reached under the issuer's name: an https URL without path, \
                 query, fragment and trailing slash"
                    .into(),
            );
        }
        match (self.tls, &self.tls_cert_file, &self.tls_key_file, self.tls_names.is_empty()) {
            (Some(_), Some(_), Some(_), true) | (Some(_), None, None, false) | (None, None, None, true) => {}
            (Some(_), _, _, true) => mistakes.push(
                "`listen.tls` needs a certificate and its key: set `listen.tls_cert_file` and `listen.tls_key_file` to files in PEM, \
                 or `listen.tls_names` to the names for one from the broker's own authority"
                    .into(),
            ),
            (Some(_), _, _, false) => mistakes.push(
                "`listen.tls_names` is for a certificate from the broker's own authority: remove it, or `listen.tls_cert_file` and \
                 `listen.tls_key_file`"
                    .into(),
            ),
            (None, _, _, _) => mistakes.push(
                "`listen.tls_cert_file`, `listen.tls_key_file` and `listen.tls_names` are for `listen.tls`, which says where to serve \
                 TLS: set it, or remove them"
                    .into(),
            ),
        }
        if self.tls_names.len() > MOST_NAMES {
            mistakes.push(format!("`listen.tls_names` holds at most {MOST_NAMES} names"));
        }
        mistakes
    }
}

/// The `[files]` section: directories of this broker alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// Its signing keys.
    pub keys: PathBuf,
    /// Its audit log.
    pub audit: PathBuf,
    /// Its journal of revocations; `None`: the directory `journal` beside the audit log.
    #[serde(default)]
    pub journal: Option<PathBuf>,
}

impl Files {
    /// Where its journal of revocations is.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.journal.clone().unwrap_or_else(|| self.audit.with_file_name("journal"))
    }
}

impl Default for Files {
    fn default() -> Self {
        Self { keys: "/var/lib/remit/keys".into(), audit: "/var/lib/remit/audit".into(), journal: None }
    }
}

/// The `[keys]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// How long a verifier may keep the public keys, in seconds: as long a broker that joins others waits before it signs.
    pub jwks_max_age: u32,
    /// How old a signing key may become before the next one is prepared, in seconds.
    pub rotate_every: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Self { jwks_max_age: 300, rotate_every: 30 * 86_400 }
    }
}

/// The `[authority]` section: the authorities that X.509-SVIDs are verified against.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authority {
    /// The CA that certifies them; `None`: each itself.
    pub upstream: Option<UpstreamFiles>,
}

/// The `[dpop]` section: proofs of possession (RFC 9449).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dpop {
    /// Whether a proof has to carry a nonce.
    pub nonce: Nonce,
}

/// Whether a proof has to carry a nonce that the broker gave out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nonce {
    /// It may; then it has to be one of ours.
    #[default]
    Offered,
    /// It has to: a proof that was made ahead of time is worth nothing.
    Required,
}

/// The `[certificates]` section: X.509-SVIDs of tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Certificates {
    /// Whether one that ends before a revoke would have to show says that there is no list for it (RFC 9608).
    pub no_rev_avail: bool,
    /// Keys that are known to have leaked, and are never certified: a SHA-256 of a `SubjectPublicKeyInfo` a line, in hexadecimal.
    pub leaked_keys_file: Option<PathBuf>,
}

/// The `[policy]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The directory of Cedar policies; `None` (without a configuration file): the sample.
    pub dir: Option<PathBuf>,
}

/// The settings of `remit serve` without a configuration.
#[derive(Debug, Clone)]
pub struct Development {
    /// Store, audit log, socket, operator token.
    pub data: PathBuf,
    /// Keys; `None`: in `data`.
    pub keys: Option<PathBuf>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The store; `None`: the embedded one in `data`.
    pub store: Option<String>,
}

/// Options of the command line that beat what a file says.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Where the audit log is, and the keys unless they are named.
    pub data: Option<PathBuf>,
    /// Where the keys are.
    pub keys: Option<PathBuf>,
    /// Where to listen for HTTP.
    pub listen: Option<SocketAddr>,
    /// The store.
    pub store: Option<String>,
}

impl Config {
    /// Reads and checks a file. Paths in it are relative to where it stands.
    ///
    /// # Errors
    /// Everything that is unknown, missing or unsafe.
    pub fn load(path: &Path, over: Overrides) -> Result<Self, Mistakes> {
        let config = Self::read(path, over)?;
        let mistakes = config.mistakes();
        if mistakes.is_empty() { Ok(config) } else { Err(Mistakes(mistakes)) }
    }

    /// Reads a file, and leaves to [`Config::mistakes`] what is unsafe in it.
    ///
    /// # Errors
    /// What is unknown or missing.
    pub fn read(path: &Path, over: Overrides) -> Result<Self, Mistakes> {
        let one = |why: String| format!("{}: {why}", path.display());
        let text = fs::read_to_string(path).map_err(|error| Mistakes(vec![one(error.to_string())]))?;
        // The message of the parser quotes the line; its position and reason are enough.
        let without_value = |message: &str| match message.split_once(", expected ") {
            Some((start, expected)) if start.starts_with("invalid ") => {
                format!("the value is not {expected}")
            }
            _ => message.to_owned(),
        };
        let mut config: Self = toml::from_str(&text).map_err(|first| {
            let told = |(start, error): &(usize, toml::de::Error)| {
                let line = 1 + text.bytes().take(*start).filter(|byte| *byte == b'\n').count();
                one(format!("line {line}: {}", without_value(error.message())))
            };
            Mistakes(unreadable(&text, first).iter().map(told).collect())
        })?;
        config.strict = true;
        config.resolve(path.parent().unwrap_or(Path::new(".")));
        config.put_over(over.clone());
        config.origin = Some(Origin { file: path.to_owned(), over, digest: sha256_hex(text.as_bytes()) });
        Ok(config)
    }

    /// A whole working broker for one machine. Makes the data directory and the operator's token where there are none.
    ///
    /// # Errors
    /// When they cannot be made, or the listener is not on loopback.
    pub fn development(settings: Development) -> Result<Self, Mistakes> {
        let data = &settings.data;
        // Others must be able to reach the socket in it; every secret in it is closed to them on its own.
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(data);
        made.map_err(|error| Mistakes(vec![format!("{} cannot be made: {error}", data.display())]))?;
        let token = secret_file::load_or_create(&data.join("operator.token"), || {
            let secret = random::<32>().map_err(|why| why.to_string())?;
            Ok(Zeroizing::new(format!("{}\n", hex(&secret))))
        })
        .map_err(|why| Mistakes(vec![why]))?;
        let config = Self::for_one_machine(settings, sha256_hex(token.trim().as_bytes()))?;
        let mistakes = config.mistakes();
        if mistakes.is_empty() { Ok(config) } else { Err(Mistakes(mistakes)) }
    }

    /// The settings of [`Config::development`], without making anything.
    ///
    /// # Errors
    /// Never, for the names that are built in.
    pub fn for_one_machine(settings: Development, operator_token_sha256: String) -> Result<Self, Mistakes> {
        let Development { data, keys, listen, store } = settings;
        let keys = keys.unwrap_or_else(|| data.join("keys"));
        let url = store.unwrap_or_else(|| format!("redb:{}", data.join("remit.redb").display()));
        let operator = OperatorConfig {
            name: "operator".into(),
            roles: vec![Role::Viewer, Role::Responder, Role::Approver, Role::Admin],
            token_sha256: Some(operator_token_sha256),
            public_key_sha256: Vec::new(),
        };
        Ok(Self {
            issuer: format!("http://{listen}"),
            trust_domain: "localhost".parse().map_err(|why| Mistakes(vec![format!("{why}")]))?,
            listen: Listen { unix: Some(data.join("remit.sock")), ..Listen::only_http(listen) },
            store: lease::Config {
                url,
                mac_key_file: keys.join("store.key"),
                broker_gone_after: lease::Config::BROKER_GONE_AFTER,
            },
            files: Files { audit: data.join("audit"), journal: None, keys },
            keys: Keys::default(),
            authority: Authority::default(),
            audit: audit::Config::default(),
            dpop: Dpop::default(),
            certificates: Certificates::default(),
            feed: FeedTerms::default(),
            reports: ReportTerms::default(),
            telemetry: telemetry::Config::default(),
            policy: Policy { dir: None },
            attestors: vec![attest::Config::development()],
            services: Vec::new(),
            operators: vec![operator],
            operator_issuers: Vec::new(),
            owners: Vec::new(),
            receivers: Vec::new(),
            strict: false,
            origin: None,
        })
    }

    /// The directory of policies, and the other files that it names and that may change under a running broker.
    pub fn inputs(&self) -> (Option<&Path>, Vec<&Path>) {
        let attestors = self.attestors.iter().flat_map(attest::Config::files);
        let issuers = self.operator_issuers.iter().flat_map(OperatorIssuerConfig::files);
        let leaked = self.certificates.leaked_keys_file.as_deref();
        (self.policy.dir.as_deref(), attestors.chain(issuers).chain(leaked).collect())
    }

    /// This configuration with what only a start can change as it is in `running`, and the names of the sections where that is
    /// something else.
    #[must_use]
    pub fn under(mut self, running: &Self) -> (Self, Vec<&'static str>) {
        let changed = [
            ("issuer", self.issuer != running.issuer),
            ("trust_domain", self.trust_domain != running.trust_domain),
            ("[listen]", self.listen != running.listen),
            ("[store]", self.store != running.store),
            ("[files]", self.files != running.files),
            ("[keys]", self.keys != running.keys),
            ("[authority]", self.authority != running.authority),
            ("[[audit.anchor]]", self.audit.anchors != running.audit.anchors),
            ("`audit.stdout`", self.audit.stdout != running.audit.stdout),
            ("[dpop]", self.dpop != running.dpop),
            ("[certificates]", self.certificates != running.certificates),
            ("[reports]", self.reports != running.reports),
            ("[feed]", self.feed != running.feed),
            ("[telemetry]", self.telemetry != running.telemetry),
            ("[[receiver]]", self.receivers != running.receivers),
        ];
        let changed = changed.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect();
        self.issuer.clone_from(&running.issuer);
        self.trust_domain = running.trust_domain.clone();
        self.listen = running.listen.clone();
        self.store = running.store.clone();
        self.files = running.files.clone();
        self.keys = running.keys.clone();
        self.authority = running.authority.clone();
        self.audit.anchors.clone_from(&running.audit.anchors);
        self.audit.stdout = running.audit.stdout;
        self.dpop = running.dpop;
        self.certificates = running.certificates.clone();
        self.reports = running.reports;
        self.feed = running.feed;
        self.telemetry = running.telemetry.clone();
        self.receivers.clone_from(&running.receivers);
        (self, changed)
    }

    /// What the attestors are called.
    pub fn attestor_names(&self) -> impl Iterator<Item = &str> {
        self.attestors.iter().map(attest::Config::name)
    }

    fn put_over(&mut self, over: Overrides) {
        if let Some(data) = over.data {
            self.files = Files { keys: data.join("keys"), audit: data.join("audit"), journal: None };
        }
        self.files.keys = over.keys.unwrap_or_else(|| mem::take(&mut self.files.keys));
        self.listen.http = over.listen.or(self.listen.http);
        self.store.url = over.store.unwrap_or_else(|| mem::take(&mut self.store.url));
    }

    fn resolve(&mut self, base: &Path) {
        let paths = [&mut self.store.mac_key_file, &mut self.files.keys, &mut self.files.audit];
        let Listen { unix, tls_cert_file, tls_key_file, .. } = &mut self.listen;
        let leaked = &mut self.certificates.leaked_keys_file;
        let optional = [&mut self.files.journal, &mut self.policy.dir, unix, tls_cert_file, tls_key_file, leaked];
        for path in paths.into_iter().chain(optional.into_iter().flatten()) {
            *path = base.join(&path);
        }
        if let Some(path) = self.store.url.strip_prefix("redb:").filter(|path| !path.is_empty()) {
            self.store.url = format!("redb:{}", base.join(path).display());
        }
        self.audit.resolve(base);
        if let Some(upstream) = &mut self.authority.upstream {
            upstream.resolve(base);
        }
        self.telemetry.resolve(base);
        for attestor in &mut self.attestors {
            attestor.resolve(base);
        }
        for issuer in &mut self.operator_issuers {
            issuer.resolve(base);
        }
        for receiver in &mut self.receivers {
            receiver.resolve(base);
        }
    }

    /// What is unsafe in it, or in how its parts come together. The sections' own mistakes are told where they are built.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let issuer = url::Url::parse(&self.issuer).ok();
        let loopback = issuer.as_ref().is_some_and(is_loopback);
        let shaped = issuer.is_some_and(|url| {
            url.path() == "/"
                && url.query().is_none()
                && url.fragment().is_none()
                && !self.issuer.ends_with('/')
                && (url.scheme() == "https" || url.scheme() == "http" && loopback)
        });
        // Without a file the issuer is the listener's own address, and that is what would have to change.
        if !shaped && (self.strict || self.listen.http.is_some_and(|http| http.ip().is_loopback())) {
            mistakes.push(
                "`issuer` is an https URL (http on loopback) without path, query, fragment and trailing slash".into(),
            );
        }
        mistakes.extend(self.listen.mistakes());
        mistakes.extend(self.store.check().err());
        mistakes.extend(self.audit.mistakes());
        mistakes.extend(self.reports.mistake());
        mistakes.extend(self.feed.mistake());
        mistakes.extend(self.telemetry.mistakes());
        if !(1..=86_400).contains(&self.keys.jwks_max_age) {
            mistakes.push("`keys.jwks_max_age` is 1 to 86400 seconds".into());
        }
        // Shorter, and the old keys that are still published would be many.
        let shortest = self.keys.jwks_max_age.saturating_mul(2).max(3600);
        if !(shortest..=366 * 86_400).contains(&self.keys.rotate_every) {
            mistakes
                .push("`keys.rotate_every` is 3600 to 31622400 seconds, and at least twice `keys.jwks_max_age`".into());
        }
        if self.strict && self.policy.dir.is_none() {
            mistakes
                .push("`policy.dir` names the directory of your Cedar policies; nothing is allowed without one".into());
        }
        // A certificate comes with a TLS connection of ours: no proxy in front of us hands one on.
        let keys_of = |kind, name, keys: &[String]| (!keys.is_empty()).then(|| format!("{kind} `{name}`"));
        let of_services = self.services.iter().filter_map(|of| keys_of("service", &of.name, &of.public_key_sha256));
        let of_operators = self.operators.iter().filter_map(|of| keys_of("operator", &of.name, &of.public_key_sha256));
        for name in of_services.chain(of_operators).filter(|_| self.listen.tls.is_none()) {
            mistakes.push(format!(
                "{name}: `public_key_sha256` is for client certificates, which are shown on `listen.tls` alone: set that, or remove it"
            ));
        }
        // What we sign is for ourselves where it says so, and evidence of nothing to anybody.
        for service in &self.services {
            if service.audiences.iter().any(|audience| audience.as_str() == self.issuer) {
                let name = &service.name;
                mistakes.push(format!("service `{name}`: the `issuer` of the broker is no service's audience"));
            }
        }
        for attestor in &self.attestors {
            if attestor.issuer() == Some(&self.issuer) {
                let name = attestor.name();
                mistakes
                    .push(format!("attestor `{name}`: the broker does not vouch for workloads: name another `issuer`"));
            }
        }
        for issuer in &self.operator_issuers {
            if issuer.issuer == self.issuer {
                let name = &issuer.name;
                mistakes.push(format!(
                    "operator_issuer `{name}`: the broker does not vouch for people: name another `issuer`"
                ));
            }
        }
        for attestor in self.attestors.iter().filter(|_| !self.owners.is_empty()) {
            for owner in attestor.owners().unwrap_or_default() {
                if !self.owners.iter().any(|known| known.id == *owner) {
                    let name = attestor.name();
                    mistakes
                        .push(format!("attestor `{name}`: `owners` names `{owner}`, and no [[owner]] has this `id`"));
                }
            }
        }
        if self.attestors.is_empty() {
            mistakes.push("at least one [[attestor]] is needed: without it nobody can prove what they are".into());
        }
        mistakes
    }
}

/// Whether it is a URL of scheme, host and port alone, as a parser would write it.
fn is_origin(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text)
}

/// Everything in the text that is no configuration, each with where it starts, in the order of the text: a mistake in one
/// section hides none in another. `first` is the one that the parser stopped at.
fn unreadable(text: &str, first: toml::de::Error) -> Vec<(usize, toml::de::Error)> {
    fn take<T: DeserializeOwned>(value: Spanned<DeValue<'_>>) -> Option<(usize, toml::de::Error)> {
        let section = value.span().start;
        let error = T::deserialize(ValueDeserializer::from(value)).err()?;
        Some((error.span().map_or(section, |span| span.start), error))
    }
    fn each<T: DeserializeOwned>(value: Spanned<DeValue<'_>>) -> Vec<(usize, toml::de::Error)> {
        let DeValue::Array(values) = value.into_inner() else { return Vec::new() };
        values.into_iter().filter_map(take::<T>).collect()
    }
    let mut found = Vec::new();
    // What is no TOML has no sections.
    if let Ok(table) = DeTable::parse(text) {
        for (name, section) in table.into_inner() {
            match name.get_ref().as_ref() {
                "trust_domain" => found.extend(take::<TrustDomain>(section)),
                "listen" => found.extend(take::<Listen>(section)),
                "store" => found.extend(take::<lease::Config>(section)),
                "files" => found.extend(take::<Files>(section)),
                "keys" => found.extend(take::<Keys>(section)),
                "authority" => found.extend(take::<Authority>(section)),
                "audit" => found.extend(take::<audit::Config>(section)),
                "dpop" => found.extend(take::<Dpop>(section)),
                "certificates" => found.extend(take::<Certificates>(section)),
                "reports" => found.extend(take::<ReportTerms>(section)),
                "telemetry" => found.extend(take::<telemetry::Config>(section)),
                "policy" => found.extend(take::<Policy>(section)),
                "attestor" => found.extend(each::<attest::Config>(section)),
                "service" => found.extend(each::<ServiceConfig>(section)),
                "operator" => found.extend(each::<OperatorConfig>(section)),
                "operator_issuer" => found.extend(each::<OperatorIssuerConfig>(section)),
                "owner" => found.extend(each::<OwnerConfig>(section)),
                "receiver" => found.extend(each::<ReceiverConfig>(section)),
                "issuer" => found.extend(take::<String>(section)),
                unknown => {
                    found.push((name.span().start, toml::de::Error::custom(format_args!("unknown field `{unknown}`"))));
                }
            }
        }
    }
    let start = first.span().map_or(0, |span| span.start);
    if !found.iter().any(|(other_start, other)| *other_start == start || other.message() == first.message()) {
        found.push((start, first));
    }
    found.sort_by_key(|(start, _)| *start);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unsafe_setting_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker.toml");
        fs::write(
            &path,
            "issuer = 'http://broker.example.com/'\ntrust_domain = 'example.com'\n[listen]\nhttp = '0.0.0.0:1'\n[store]\nurl = 'redb:x'\nmac_key_file = 'k'\n[policy]\n",
        )
        .unwrap();
        let Mistakes(mistakes) = Config::load(&path, Overrides::default()).unwrap_err();
        assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
    }

    #[test]
    fn an_unknown_key_is_refused_without_quoting_values() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker.toml");
        fs::write(&path, "issuer = 'https://b'\nsecret_thing = 'hunter2'\n").unwrap();
        let Mistakes(mistakes) = Config::load(&path, Overrides::default()).unwrap_err();
        assert!(mistakes[0].contains("line 2") && mistakes[0].contains("secret_thing"), "{mistakes:?}");
        assert!(!mistakes[0].contains("hunter2"));
        fs::write(&path, "issuer = 'https://b'\n[[service]]\nname = 'git'\naudiences = []\nbinding = 'none'\ntoken_sha256 = 'hunter2'\n").unwrap();
        let Mistakes(mistakes) = Config::load(&path, Overrides::default()).unwrap_err();
        assert!(mistakes[0].contains("line 6") && !mistakes[0].contains("hunter2"), "{mistakes:?}");
    }

    #[test]
    fn every_section_is_known_beside_a_mistake_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker.toml");
        fs::write(
            &path,
            "issuer = 7\ntrust_domain = 'example.com'\n[listen]\nhttp = '127.0.0.1:1'\n[store]\nurl = 'redb:x'\n\
             mac_key_file = 'k'\n[files]\nkeys = 'k'\naudit = 'a'\n[keys]\n[authority]\n[dpop]\nnonce = 'offered'\n\
             [certificates]\nno_rev_avail = true\nleaked_keys_file = 'l'\n[reports]\nbodies = true\nmax_body = 1\n[telemetry]\n[policy]\ndir = 'p'\n",
        )
        .unwrap();
        let Mistakes(mistakes) = Config::load(&path, Overrides::default()).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].contains("line 1:"), "{mistakes:#?}");
        fs::write(&path, "issuer = 7\n[dpop]\nnonce = 'hunter2'\n").unwrap();
        let Mistakes(mistakes) = Config::load(&path, Overrides::default()).unwrap_err();
        assert!(mistakes.iter().any(|mistake| mistake.contains("line 3:")), "{mistakes:#?}");
        assert!(!mistakes.concat().contains("`dpop`"), "{mistakes:#?}");
    }

    #[test]
    fn a_development_broker_makes_its_operator_token() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Development {
            data: dir.path().join("data"),
            keys: None,
            listen: "127.0.0.1:8420".parse().unwrap(),
            store: None,
        };
        let first = Config::development(settings.clone()).unwrap();
        let second = Config::development(settings.clone()).unwrap();
        assert_eq!(first.operators, second.operators);
        assert!(Config::development(Development { listen: "0.0.0.0:1".parse().unwrap(), ..settings }).is_err());
    }
}
