//! The composition root: configuration → parts → broker → listeners → run → drain. Tests build with it too.

mod own;
mod reload;
#[cfg(feature = "otlp")]
mod ship;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use own::Own;
use std::{
    fmt::Display,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    attest::Attestors,
    audit::{Anchor, Audit},
    broker::{Broker, KeyLife, Parts, Rules},
    clock::{Clock, SystemClock},
    config::{Config, Nonce, TlsCertificate},
    credential::{AuthorityTerms, Imported, Keyring, UpstreamSeen},
    failpoint,
    http::{self, Listener, Tls},
    id::Host,
    key_file,
    lease::{Ledger, StoreKey},
    metrics::Metrics,
    party::Parties,
    policy::{BadPolicies, Policies},
    revocation::Revocations,
    telemetry::{Copied, Telemetry, Waiting},
};

/// How long requests under way may take after a shutdown began.
const DRAIN: Duration = Duration::from_secs(8);
/// How long what is on record by then may take to get into the timelines.
const TELL: Duration = Duration::from_secs(2);
/// How many connections each listener has at a time. Each has room of its own, so that whoever takes all there is of one
/// keeps nobody from revoking on the Unix socket.
const MOST_TCP: usize = 384;
const MOST_TLS: usize = 384;
const MOST_UNIX: usize = 192;
const MOST_OPS: usize = 32;
/// How many open files all of that fits into, and whatever else there is. A connection on the Unix socket takes two, because its peer
/// is held open too.
const OPEN_FILES: u64 = 4096;
/// How often the store is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// Why the broker did not start: sentences that say what to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Starting again helps only when the configuration, or a file that it names, is another. One mistake a line.
    #[error("{0}")]
    Configuration(String),
    /// Something that it needs is in use or out of reach.
    #[error("{0}")]
    Failed(String),
}

/// A broker that serves.
pub struct Running {
    /// Where it listens for HTTP.
    pub http: Option<SocketAddr>,
    /// Where it listens for HTTPS.
    pub https: Option<SocketAddr>,
    /// Its Unix socket.
    pub socket: Option<PathBuf>,
    /// The broker itself.
    pub broker: Arc<Broker>,
    stop: CancellationToken,
    tasks: TaskTracker,
    telling: (CancellationToken, TaskTracker),
    #[cfg(feature = "otlp")]
    shipping: ship::Shipping,
}

/// Builds a broker and starts to serve.
///
/// # Errors
/// Whatever is unsafe, missing or in use, in a sentence.
pub async fn start(mut config: Config, clock: Arc<dyn Clock>) -> Result<Running, StartError> {
    allow_open_files();
    let listen = &config.listen;
    let addresses = [listen.http, listen.https().map(|(address, _)| address), listen.ops];
    failpoint::check(addresses.into_iter().flatten()).map_err(StartError::Configuration)?;
    // Every listener is bound before anything is served on one.
    let plain = bind(config.listen.http, "`--listen` or `listen.http`").await?;
    let secure = bind(config.listen.https().map(|(address, _)| address), "`listen.tls`").await?;
    let ops = bind(config.listen.ops, "`listen.ops`").await?;
    let (http, https) = (address_of(plain.as_ref())?, address_of(secure.as_ref())?);
    let socket = config.listen.unix.clone();
    if let Some(http) = http.filter(|_| !config.strict && config.listen.http.is_some_and(|asked| asked.port() == 0)) {
        config.issuer = format!("http://{http}");
    }
    let known = match &config.origin {
        Some(origin) => reload::seen(origin).await,
        None => String::new(),
    };
    let (parts, tls) = check(&config)?;
    let anchors = config.audit.anchors.iter().map(Anchor::new).collect::<Result<Vec<_>, _>>();
    let anchors = anchors.map_err(StartError::Configuration)?;
    #[cfg(feature = "otlp")]
    let (exporter, time) = (ship::exporter(&config).map_err(StartError::Configuration)?, clock.clone());
    #[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "nothing is sent"))]
    let (broker, waiting) = Box::pin(build(config.clone(), parts, clock)).await?;
    #[cfg(feature = "otlp")]
    let shipping = ship::begin(exporter.zip(waiting), &broker, time);
    let own = match own_names(&config) {
        Some(hosts) => Some(own::begin(broker.clone(), hosts, config.listen.tls_min_version).await?),
        None => None,
    };
    let unix = bind_unix(socket.as_deref()).await?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let router = http::router(broker.clone(), tasks.clone(), stop.clone());
    let listen = |listener: Listener, router, most| {
        tasks.spawn(listener.serve(router, most, stop.clone(), tasks.clone()));
    };
    if let Some(ops) = ops {
        listen(Listener::Tcp(ops, None), http::ops_router(broker.clone(), tasks.clone()), MOST_OPS);
    }
    if let Some(unix) = unix {
        listen(Listener::Unix(unix), router.clone(), MOST_UNIX);
    }
    if let Some(tls) = &tls {
        tasks.spawn(reload::certificate(tls.clone(), broker.clone(), stop.clone()));
    }
    let tls = tls.or_else(|| own.as_ref().map(Own::tls));
    if let Some(own) = own {
        tasks.spawn(own.renew(broker.clone(), stop.clone()));
    }
    if let (Some(secure), Some(tls)) = (secure, tls) {
        listen(Listener::Tls(secure, tls), router.clone(), MOST_TLS);
    }
    if let Some(plain) = plain {
        let proxies = Some(config.listen.behind_proxy.clone()).filter(|proxies| !proxies.is_empty());
        listen(Listener::Tcp(plain, proxies), router, MOST_TCP);
    }
    tasks.spawn(watch(broker.clone(), stop.clone()));
    let (feeder, until) = (broker.clone(), stop.clone());
    tasks.spawn(async move { until.run_until_cancelled(feeder.feed()).await });
    for anchor in anchors {
        tasks.spawn(follow(anchor, broker.clone(), stop.clone()));
    }
    if let Some(origin) = config.origin.clone() {
        let hangup = signal(SignalKind::hangup()).map_err(|error| failed(&error))?;
        tasks.spawn(reload::run(origin, config, broker.clone(), known, hangup, stop.clone()));
    }
    tasks.close();
    // It outlasts the requests, so that the last of them are told of too.
    let telling = tell(broker.clone());
    Ok(Running {
        http,
        https,
        socket,
        broker,
        stop,
        tasks,
        telling,
        #[cfg(feature = "otlp")]
        shipping,
    })
}

/// All that is wrong with a configuration and the files that it names, or the parts.
fn check(config: &Config) -> Result<(Checked, Option<Tls>), StartError> {
    let mut mistakes = Vec::new();
    let parts = keep(Checked::new(config), &mut mistakes);
    let tls = keep(tls(config).transpose().map_err(|mistake| vec![mistake]), &mut mistakes);
    match (parts, tls) {
        (Some(mut parts), Some(tls)) => {
            parts.weaknesses.extend(weaknesses(tls.as_ref(), config));
            Ok((parts, tls))
        }
        _ => Err(StartError::Configuration(mistakes.join("\n"))),
    }
}

/// The server certificate, where there is a listener for it and it is in files.
fn tls(config: &Config) -> Option<Result<Tls, String>> {
    let (_, TlsCertificate::Files(files)) = config.listen.https()? else { return None };
    Some(Tls::load(files, config.listen.tls_min_version))
}

/// The names for a certificate from the broker's own authority.
fn own_names(config: &Config) -> Option<Vec<Host>> {
    let (_, TlsCertificate::Own(hosts)) = config.listen.https()? else { return None };
    Some(hosts)
}

fn weaknesses(tls: Option<&Tls>, config: &Config) -> Vec<String> {
    let issuer = url::Url::parse(config.listen.tls_origin.as_ref().unwrap_or(&config.issuer)).ok();
    let host = issuer.as_ref().and_then(url::Url::host_str);
    if let (Some(hosts), Some(host)) = (own_names(config), host)
        && !host.trim_matches(['[', ']']).parse().is_ok_and(|host| hosts.contains(&host))
    {
        return vec![format!(
            "`listen.tls_names` does not name `{host}`, by which clients know the broker: they will refuse its certificate"
        )];
    }
    tls.map(|tls| tls.weaknesses(host)).unwrap_or_default()
}

/// The parts of a broker that need nothing but the configuration and the files that it names.
pub struct Checked {
    /// The policies.
    pub policies: Policies,
    /// Who can prove what they are.
    pub attestors: Attestors,
    /// Services and operators.
    pub parties: Parties,
    /// What is allowed and weak, where a file says so: sentences that say what to change.
    pub weaknesses: Vec<String>,
    /// Who certifies the broker's authorities, where somebody does and the keys were looked at.
    pub upstream: Option<UpstreamSeen>,
}

impl Checked {
    /// Makes them, and nothing in the file system.
    ///
    /// # Errors
    /// Every mistake at once, the configuration's own ([`Config::mistakes`]) included.
    pub fn new(config: &Config) -> Result<Self, Vec<String>> {
        let mut mistakes = config.mistakes();
        let policies = match &config.policy.dir {
            Some(dir) => Policies::load(dir),
            None => Policies::development(),
        };
        let policies = keep(policies.map_err(|BadPolicies(why)| why), &mut mistakes);
        let attestors = keep(Attestors::build(&config.attestors, &config.trust_domain), &mut mistakes);
        let parties = Parties::build(
            config.services.clone(),
            config.operators.clone(),
            config.operator_issuers.clone(),
            config.owners.clone(),
        );
        let parties = keep(parties, &mut mistakes);
        if let (Some(attestors), Some(parties)) = (&attestors, &parties) {
            mistakes.extend(parties.shared_issuers(attestors.issuers()));
        }
        let with_rs256 = parties.as_ref().map(Parties::with_rs256).unwrap_or_default();
        mistakes.extend(Imported::check_for(&with_rs256, &config.files.keys).err().into_iter().flatten());
        let (Some(policies), Some(attestors), Some(parties), true) =
            (policies, attestors, parties, mistakes.is_empty())
        else {
            return Err(mistakes);
        };
        let mut weaknesses = Vec::new();
        if config.strict {
            weaknesses.extend_from_slice(attestors.weaknesses());
            weaknesses.extend(parties.weaknesses());
        }
        Ok(Self { policies, attestors, parties, weaknesses, upstream: None })
    }

    fn into_rules(self) -> Rules {
        let Self { policies, attestors, parties, weaknesses: _, upstream: _ } = self;
        Rules { attestors, parties, policies }
    }

    /// The same, of a configuration that nothing is to be started with: also looks at those keys that are there already.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn and_keys(config: &Config) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let parts = keep(Self::new(config), &mut mistakes);
        let now = SystemClock.now();
        let mut keys = Vec::new();
        let upstream = keep(Keyring::check(&config.files.keys, &authority_terms(config), now), &mut keys).flatten();
        let keys: Vec<_> = keys.into_iter().filter(|mistake| !mistakes.contains(mistake)).collect();
        mistakes.extend(keys);
        mistakes.extend(StoreKey::check(&config.store.mac_key_file).err());
        mistakes.extend(key_file::load(&audit_key_file(config)).err());
        mistakes.extend(config.audit.anchors.iter().filter_map(|anchor| Anchor::new(anchor).err()));
        #[cfg(feature = "otlp")]
        mistakes.extend(ship::exporter(config).err());
        let tls = keep(tls(config).transpose().map_err(|mistake| vec![mistake]), &mut mistakes);
        let mut parts = parts.filter(|_| mistakes.is_empty()).ok_or(mistakes)?;
        parts.weaknesses.extend(weaknesses(tls.flatten().as_ref(), config));
        parts.weaknesses.extend(upstream.iter().flat_map(|upstream| upstream.weaknesses(now)));
        parts.upstream = upstream;
        Ok(parts)
    }
}

async fn build(
    config: Config,
    parts: Checked,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<Broker>, Option<Waiting>), StartError> {
    for weakness in &parts.weaknesses {
        tracing::warn!("{weakness}");
    }
    let rules = parts.into_rules();
    let keys = Keyring::load_or_create(&config.files.keys, authority_terms(&config), clock.now());
    let keys = keys.map_err(StartError::Configuration)?;
    for weakness in keys.upstream().iter().flat_map(|upstream| upstream.weaknesses(clock.now())) {
        tracing::warn!("{weakness}");
    }
    let store_key = StoreKey::load_or_create(&config.store.mac_key_file).map_err(StartError::Configuration)?;
    let (audit_key, _) = key_file::load_or_create(&audit_key_file(&config)).map_err(StartError::Configuration)?;
    let audit = Audit::open(&config.files.audit, config.audit.terms(audit_key), clock.clone());
    let audit = audit.map_err(|why| failed(&why))?;
    let revocations = Revocations::open(&config.files.journal()).map_err(|why| failed(&why))?;
    let metrics = Metrics::new(rules.policies.digest());
    let (telemetry, waiting) = match &config.telemetry.otlp {
        Some(_) => {
            let (telemetry, waiting) = Telemetry::new(clock.clone(), metrics.clone());
            let told = telemetry.clone();
            audit.copy(move |record| {
                let class = (record.class.uid(), record.class.name());
                told.copied(|| Copied { sequence: record.sequence, line: record.line.to_owned(), class });
            });
            (telemetry, Some(waiting))
        }
        None => (Telemetry::default(), None),
    };
    let ledger = Ledger::open(&config.store, store_key, clock.clone(), metrics.clone(), config.strict);
    let ledger = ledger
        .await
        .map_err(|why| StartError::Failed(format!("the store (`store.url` or `--store`) cannot be used: {why}")))?;
    let origin = config.listen.tls_origin.unwrap_or_else(|| config.issuer.clone());
    let broker = Broker::new(Parts {
        tls_origin: config.listen.tls.map(|_| origin),
        issuer: config.issuer,
        rules,
        ledger,
        revocations,
        keys,
        require_nonce: config.dpop.nonce == Nonce::Required,
        reports: config.reports,
        feed: config.feed,
        no_rev_avail: config.certificates.no_rev_avail,
        key_life: KeyLife { jwks_max_age: config.keys.jwks_max_age, rotate_every: config.keys.rotate_every },
        audit,
        metrics,
        telemetry,
        clock,
    });
    broker.publish_keys().await.map_err(|why| failed(&why))?;
    broker.recall_certificates().await.map_err(|why| failed(&why))?;
    broker.publish_crls().await;
    // What the store lacks it is told before anybody is served.
    broker.watch().await;
    Ok((Arc::new(broker), waiting))
}

/// Signs the checkpoints of the audit log, and nothing else.
fn audit_key_file(config: &Config) -> PathBuf {
    config.files.keys.join("audit.pem")
}

fn authority_terms(config: &Config) -> AuthorityTerms {
    AuthorityTerms {
        trust_domain: config.trust_domain.clone(),
        rotate_every: config.keys.rotate_every,
        upstream: config.authority.upstream.clone(),
        hosts: own_names(config).unwrap_or_default(),
        issuer: config.issuer.clone(),
    }
}

async fn watch(broker: Arc<Broker>, stop: CancellationToken) {
    while tokio::time::timeout(WATCH, stop.cancelled()).await.is_err() {
        broker.watch().await;
        broker.turn_keys().await;
        broker.publish_crls().await;
        broker.sum_up_strangers();
        broker.audit().tick();
    }
}

fn tell(broker: Arc<Broker>) -> (CancellationToken, TaskTracker) {
    let (told, telling) = (CancellationToken::new(), TaskTracker::new());
    let until = told.clone();
    telling.spawn(async move { broker.tell(until).await });
    telling.close();
    (told, telling)
}

async fn follow(anchor: Anchor, broker: Arc<Broker>, stop: CancellationToken) {
    let (name, metrics) = (anchor.name().to_owned(), broker.metrics().clone());
    anchor.follow(broker.audit().checkpoints(), stop, |sent| metrics.anchored(&name, sent)).await;
}

/// What was made, or all that is wrong with it noted.
fn keep<T>(made: Result<T, Vec<String>>, mistakes: &mut Vec<String>) -> Option<T> {
    made.map_err(|found| mistakes.extend(found)).ok()
}

fn failed(why: &dyn Display) -> StartError {
    StartError::Failed(why.to_string())
}

/// Any local process may connect: who it is, the kernel says, and what it may do, policy.
async fn bind_unix(path: Option<&Path>) -> Result<Option<UnixListener>, StartError> {
    let Some(path) = path else { return Ok(None) };
    let failed = |error: std::io::Error| StartError::Failed(format!("{}: {error}", path.display()));
    if UnixStream::connect(path).await.is_ok() {
        return Err(StartError::Failed(format!("{}: another broker is listening there", path.display())));
    }
    // What a broker that died left there is replaced, and nothing else.
    match std::fs::symlink_metadata(path) {
        Ok(about) if about.file_type().is_socket() => std::fs::remove_file(path).map_err(failed)?,
        Ok(_) => {
            let what = "there is something that is no socket; choose another path for `listen.unix`, or move it away";
            return Err(StartError::Failed(format!("{}: {what}", path.display())));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(Some(listener))
}

async fn bind(address: Option<SocketAddr>, setting: &str) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let in_use = |error| failed(&format!("{address}: {error}; choose another address with {setting}"));
    TcpListener::bind(address).await.map(Some).map_err(in_use)
}

fn address_of(listener: Option<&TcpListener>) -> Result<Option<SocketAddr>, StartError> {
    listener.map(TcpListener::local_addr).transpose().map_err(|error| failed(&error))
}

/// Lets the process have as many open files as its listeners have connections, if the system's bound allows it.
fn allow_open_files() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft < OPEN_FILES.min(hard)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard)
    {
        tracing::warn!(%error, soft, "the limit of open files stays low: connections may have to wait");
    }
}

impl Running {
    /// Stops taking connections, lets requests under way finish for a while, and is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
        let (told, telling) = self.telling;
        told.cancel();
        if tokio::time::timeout(TELL, telling.wait()).await.is_err() {
            tracing::warn!("some of what is on record did not get into the timelines");
        }
        #[cfg(feature = "otlp")]
        self.shipping.end().await;
        if let Some(path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// SIGTERM and SIGINT, which ask the process to end.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on. Before anything is started, so that no signal is missed.
    ///
    /// # Errors
    /// When the system does not let us.
    pub fn listen() -> Result<Self, StartError> {
        let listen = |kind| signal(kind).map_err(|error| failed(&error));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tracing::info!("stopping");
    }
}
