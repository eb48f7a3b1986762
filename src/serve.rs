//! The composition root: configuration → parts → broker → listeners → run → drain. Tests build with it too.

mod own;
mod recover;
mod reload;
#[cfg(feature = "otlp")]
mod ship;

pub use recover::{Recovered, recover};

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
    audit::{Anchor, Ending, Found, Keeping, Remembered, Witness, chain::Head},
    broker::{Broker, KeyLife, Parts, Rules, Signals as Receivers},
    clock::{Clock, SystemClock},
    config::{Config, Nonce, TlsCertificate},
    credential::{AuthorityTerms, Imported, Keyring, LeakedKeys, UpstreamSeen},
    failpoint,
    http::{self, Listener, Tls},
    id::{BrokerName, Host},
    jose::SigningAlgorithm,
    key_file,
    lease::{Ledger, LogEnd, StoreKey, Use},
    metrics::Metrics,
    party::Parties,
    policy::{BadPolicies, Policies},
    revocation::{FeedTerms, Revocations},
    signal::Receiver,
    telemetry::{Copied, Telemetry, Waiting},
};

/// How long requests under way may take after a shutdown began.
const DRAIN: Duration = Duration::from_secs(8);
/// How long what is on record by then may take to get into the timelines.
const TELL: Duration = Duration::from_secs(2);
/// How long it may take to tell the other brokers that this one is gone.
const LEAVE: Duration = Duration::from_secs(1);
/// How many connections each listener has at a time. Each has room of its own, so that whoever takes all there is of one
/// keeps nobody from revoking on the Unix socket.
const MOST_TCP: usize = 384;
const MOST_TLS: usize = 384;
const MOST_UNIX: usize = 192;
const MOST_OPS: usize = 32;
/// How many open files all of that fits into, and whatever else there is but those who follow the revocation feed.
const OPEN_FILES: u64 = 2048;
/// How many each of them takes at most: a connection on the Unix socket takes two, because its peer is held open too.
const OF_A_FOLLOWER: u64 = 2;
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
    let followers = allow_followers(&config.feed)?;
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
    let (broker, waiting) = Box::pin(build(config.clone(), parts, followers, clock)).await?;
    #[cfg(feature = "otlp")]
    let shipping = ship::begin(exporter.zip(waiting), &broker, time);
    let own = match own_names(&config) {
        Some(hosts) => Some(own::begin(broker.clone(), hosts, config.listen.tls_min_version).await?),
        None => None,
    };
    let unix = bind_socket(socket.as_deref()).await?;
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
    tasks.spawn(feed(broker.clone(), stop.clone()));
    tasks.spawn(tell_receivers(broker.clone(), stop.clone()));
    tell_elsewhere(&tasks, anchors, &broker, &stop);
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
    /// Keys that are never certified.
    pub leaked: LeakedKeys,
    /// Who is told of ends.
    pub receivers: Vec<Receiver>,
    /// How the audit log is kept.
    pub keeping: Keeping,
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
        mistakes.extend(
            Imported::check_for(Use::AccessToken, "service", &with_rs256, &config.files.keys)
                .err()
                .into_iter()
                .flatten(),
        );
        let leaked = config.certificates.leaked_keys_file.as_deref().map(LeakedKeys::load).transpose();
        let leaked = keep(leaked.map_err(|mistake| vec![mistake]), &mut mistakes).map(Option::unwrap_or_default);
        let receivers = keep(receivers(config), &mut mistakes);
        let (Some(policies), Some(attestors), Some(parties), Some(leaked), Some(receivers), true) =
            (policies, attestors, parties, leaked, receivers, mistakes.is_empty())
        else {
            return Err(mistakes);
        };
        let mut weaknesses = Vec::new();
        if config.strict {
            weaknesses.extend_from_slice(attestors.weaknesses());
            weaknesses.extend(parties.weaknesses());
        }
        let keeping = config.audit.keeping();
        Ok(Self { policies, attestors, parties, leaked, receivers, keeping, weaknesses, upstream: None })
    }

    fn into_rules(self) -> Rules {
        let Self { policies, attestors, parties, leaked, receivers: _, keeping: _, weaknesses: _, upstream: _ } = self;
        Rules { attestors, parties, policies, leaked }
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
    mut parts: Checked,
    followers: u32,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<Broker>, Option<Waiting>), StartError> {
    for weakness in &parts.weaknesses {
        tracing::warn!("{weakness}");
    }
    let receivers = std::mem::take(&mut parts.receivers);
    let rules = parts.into_rules();
    let keys = Keyring::load_or_create(&config.files.keys, authority_terms(&config), clock.now());
    let keys = keys.map_err(StartError::Configuration)?;
    for weakness in keys.upstream().iter().flat_map(|upstream| upstream.weaknesses(clock.now())) {
        tracing::warn!("{weakness}");
    }
    let store_key = StoreKey::load_or_create(&config.store.mac_key_file).map_err(StartError::Configuration)?;
    let (audit_key, _) = key_file::load_or_create(&audit_key_file(&config)).map_err(StartError::Configuration)?;
    let metrics = Metrics::new(rules.policies.digest());
    let terms = config.audit.terms(audit_key, metrics.clone());
    let found = Found::open(&config.files.audit).map_err(|why| failed(&why))?;
    let revocations = Revocations::open(&config.files.journal()).map_err(|why| failed(&why))?;
    let signals = Receivers::open(receivers, &config.files.journal().join("signals"), &revocations, clock.now());
    let signals = signals.map_err(|why| failed(&why))?;
    let ledger = Ledger::open(&config.store, store_key, clock.clone(), metrics.clone(), config.strict);
    let ledger = ledger
        .await
        .map_err(|why| StartError::Failed(format!("the store (`store.url` or `--store`) cannot be used: {why}")))?;
    let remembered = remembered(&config.files.journal(), &ledger, revocations.broker()).await?;
    let audit = found.go_on(terms, clock.clone(), remembered).map_err(|why| failed(&why))?;
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
    let origin = config.listen.tls_origin.unwrap_or_else(|| config.issuer.clone());
    let broker = Broker::new(Parts {
        tls_origin: config.listen.tls.map(|_| origin),
        issuer: config.issuer,
        rules,
        ledger,
        revocations,
        signals,
        keys,
        require_nonce: config.dpop.nonce == Nonce::Required,
        one_operator: !config.strict,
        reports: config.reports,
        feed: FeedTerms { followers: Some(followers), ..config.feed },
        no_rev_avail: config.certificates.no_rev_avail,
        broker_gone_after: Duration::from_secs(config.store.broker_gone_after.into()),
        key_life: KeyLife { jwks_max_age: config.keys.jwks_max_age, rotate_every: config.keys.rotate_every },
        audit,
        metrics,
        telemetry,
        clock,
    });
    broker.keep_log_end().await.map_err(|why| failed(&why))?;
    broker.publish_keys().await.map_err(|why| failed(&why))?;
    broker.recall_certificates().await.map_err(|why| failed(&why))?;
    broker.publish_crls().await;
    // What the store lacks it is told before anybody is served.
    broker.watch().await;
    Ok((Arc::new(broker), waiting))
}

/// How the audit log ended, as the broker's own file and the store have it.
async fn remembered(journal: &Path, ledger: &Ledger, broker: &BrokerName) -> Result<Remembered, StartError> {
    let here = Witness::open(journal).map_err(StartError::Failed)?;
    let unknown = |why: &dyn Display| {
        StartError::Failed(format!(
            "how the audit log of this broker ended cannot be told (`remit:log-end:{broker}` in the store): {why}"
        ))
    };
    let end = ledger.log_end(broker).await.map_err(|why| unknown(&why))?;
    let ending = |LogEnd { log, sequence, digest }| -> Result<Ending, &'static str> {
        Ok(Ending { log, head: Head { sequence, digest: digest.parse()? } })
    };
    let elsewhere = end.map(ending).transpose().map_err(|why| unknown(&why))?;
    Ok(Remembered { here: Some(here), elsewhere })
}

/// Who is told of ends.
fn receivers(config: &Config) -> Result<Vec<Receiver>, Vec<String>> {
    let of_services = config.services.iter().flat_map(|service| &service.token_sha256);
    let of_operators = config.operators.iter().filter_map(|operator| operator.token_sha256.as_ref());
    let tokens: Vec<&str> = of_services.chain(of_operators).map(String::as_str).collect();
    let with_rs256 = config.receivers.iter().filter(|receiver| receiver.algorithm == SigningAlgorithm::RS256);
    let with_rs256: Vec<&str> = with_rs256.map(|receiver| receiver.name.as_str()).collect();
    let key = Imported::check_for(Use::Signals, "receiver", &with_rs256, &config.files.keys);
    match (Receiver::build(&config.receivers, &tokens), key) {
        (Ok(receivers), Ok(())) => Ok(receivers),
        (receivers, key) => Err(receivers.err().into_iter().chain(key.err()).flatten().collect()),
    }
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
        broker.forget_ended();
        broker.turn_keys().await;
        broker.publish_crls().await;
        broker.sum_up_refused().await;
        broker.audit().tick();
    }
}

/// Tells verifiers what is dead, and ends what is locked out.
async fn feed(broker: Arc<Broker>, stop: CancellationToken) {
    stop.run_until_cancelled(Box::pin(async { tokio::join!(broker.feed(), broker.expand_locks()) })).await;
}

fn tell(broker: Arc<Broker>) -> (CancellationToken, TaskTracker) {
    let (told, telling) = (CancellationToken::new(), TaskTracker::new());
    let until = told.clone();
    telling.spawn(async move { broker.tell(until).await });
    telling.close();
    (told, telling)
}

/// On its own: no receiver's pace is anybody else's.
async fn tell_receivers(broker: Arc<Broker>, stop: CancellationToken) {
    stop.run_until_cancelled(broker.signal()).await;
}

/// Tells the store and the anchors how the audit log ends.
fn tell_elsewhere(tasks: &TaskTracker, anchors: Vec<Anchor>, broker: &Arc<Broker>, stop: &CancellationToken) {
    for anchor in anchors {
        tasks.spawn(follow(anchor, broker.clone(), stop.clone()));
    }
    let (broker, stop) = (broker.clone(), stop.clone());
    tasks.spawn(async move { broker.follow_log_end(stop).await });
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

async fn bind_socket(path: Option<&Path>) -> Result<Option<UnixListener>, StartError> {
    match path {
        Some(path) => bind_unix(path, "`listen.unix`").await.map(Some),
        None => Ok(None),
    }
}

/// Any local process may connect: who it is, the kernel says, and what it may do, policy.
pub(crate) async fn bind_unix(path: &Path, setting: &str) -> Result<UnixListener, StartError> {
    let failed = |error: std::io::Error| StartError::Failed(format!("{}: {error}", path.display()));
    if UnixStream::connect(path).await.is_ok() {
        return Err(StartError::Failed(format!("{}: another process is listening there", path.display())));
    }
    // What a process that died left there is replaced, and nothing else.
    match std::fs::symlink_metadata(path) {
        Ok(about) if about.file_type().is_socket() => std::fs::remove_file(path).map_err(failed)?,
        Ok(_) => {
            let what =
                format!("there is something that is no socket; choose another path for {setting}, or move it away");
            return Err(StartError::Failed(format!("{}: {what}", path.display())));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(listener)
}

async fn bind(address: Option<SocketAddr>, setting: &str) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let in_use = |error| failed(&format!("{address}: {error}; choose another address with {setting}"));
    TcpListener::bind(address).await.map(Some).map_err(in_use)
}

fn address_of(listener: Option<&TcpListener>) -> Result<Option<SocketAddr>, StartError> {
    listener.map(TcpListener::local_addr).transpose().map_err(|error| failed(&error))
}

/// Lets the process have as many open files as its listeners have connections: how many may follow the revocation feed, which is as
/// many as are asked for, or where nobody says how many, what fits into the system's bound.
fn allow_followers(terms: &FeedTerms) -> Result<u32, StartError> {
    let wanted = terms.followers.unwrap_or(FeedTerms::FOLLOWERS);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(wanted) };
    let needed = OPEN_FILES + OF_A_FOLLOWER * u64::from(wanted);
    let room = u32::try_from(hard.saturating_sub(OPEN_FILES) / OF_A_FOLLOWER).unwrap_or(u32::MAX).max(1);
    if soft < needed.min(hard)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard)
    {
        tracing::warn!(%error, soft, "the limit of open files stays low: connections may have to wait");
    }
    if wanted <= room {
        return Ok(wanted);
    }
    if terms.followers.is_some() {
        return Err(StartError::Configuration(format!(
            "`feed.followers` = {wanted} takes {needed} open files, and the system allows {hard}: raise the hard limit (`LimitNOFILE=` of \
             systemd, `--ulimit nofile=` of a container, `ulimit -Hn` of a shell), or set it to at most {room}"
        )));
    }
    tracing::warn!(
        followers = room,
        "the hard limit of open files, {hard}, leaves room for few who follow the revocation feed"
    );
    Ok(room)
}

impl Running {
    /// Stops taking connections, lets requests under way finish for a while, and is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
        if tokio::time::timeout(LEAVE, self.broker.leave()).await.is_err() {
            tracing::warn!("the other brokers could not be told that this one ends in order");
        }
        if tokio::time::timeout(TELL, self.broker.sum_up_all_refused()).await.is_err() {
            tracing::warn!("how many were refused in the last minute is not on record");
        }
        let (told, telling) = self.telling;
        told.cancel();
        if tokio::time::timeout(TELL, telling.wait()).await.is_err() {
            tracing::warn!("some of what is on record did not get into the timelines");
        }
        #[cfg(feature = "otlp")]
        self.shipping.end().await;
        // The next start of this broker holds its log against that.
        if !matches!(tokio::time::timeout(TELL, self.broker.keep_log_end()).await, Ok(Ok(()))) {
            tracing::warn!("the store does not know how the audit log ends");
        }
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
