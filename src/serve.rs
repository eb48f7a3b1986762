//! The composition root: configuration → parts → broker → listeners → run → drain. Tests build with it too.

use std::{
    future::{Future, IntoFuture as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
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
    audit::Audit,
    broker::{Broker, Parts},
    clock::Clock,
    config::Config,
    credential::Keyring,
    http,
    lease::{Ledger, StoreKey},
    party::Parties,
    policy::Policies,
};

/// How long requests under way may take after a shutdown began.
const DRAIN: Duration = Duration::from_secs(8);
/// How often the store is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// Why the broker did not start: a sentence that says what to change.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

impl From<String> for StartError {
    fn from(why: String) -> Self {
        Self(why)
    }
}

/// A broker that serves.
pub struct Running {
    /// Where it listens for HTTP.
    pub http: SocketAddr,
    /// Its Unix socket.
    pub socket: Option<PathBuf>,
    /// The broker itself.
    pub broker: Arc<Broker>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Builds a broker and starts to serve.
///
/// # Errors
/// Whatever is unsafe, missing or in use, in a sentence.
pub async fn start(mut config: Config, clock: Arc<dyn Clock>) -> Result<Running, StartError> {
    let listener = TcpListener::bind(config.listen.http).await.map_err(|error| in_use(&config.listen.http, &error))?;
    let http = listener.local_addr().map_err(|error| StartError(error.to_string()))?;
    let (socket, ops) = (config.listen.unix.clone(), config.listen.ops);
    if !config.strict && config.listen.http.port() == 0 {
        config.issuer = format!("http://{http}");
    }
    let broker = Arc::new(build(config, clock).await?);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    if let Some(address) = &ops {
        let listener = TcpListener::bind(address).await.map_err(|error| in_use(address, &error))?;
        let server = axum::serve(listener, http::ops_router(broker.clone()));
        tasks.spawn(logged(server.with_graceful_shutdown(stop.clone().cancelled_owned()).into_future()));
    }
    let router = http::router(broker.clone());
    let service = router.clone().into_make_service_with_connect_info::<http::Caller>();
    let server = axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned());
    tasks.spawn(logged(server.into_future()));
    if let Some(path) = &socket {
        let service = router.into_make_service_with_connect_info::<http::Caller>();
        let server =
            axum::serve(bind_unix(path).await?, service).with_graceful_shutdown(stop.clone().cancelled_owned());
        tasks.spawn(logged(server.into_future()));
    }
    tasks.spawn(watch(broker.clone(), stop.clone()));
    tasks.close();
    Ok(Running { http, socket, broker, stop, tasks })
}

async fn build(config: Config, clock: Arc<dyn Clock>) -> Result<Broker, StartError> {
    let lines = |mistakes: Vec<String>| StartError(mistakes.join("\n"));
    let policies = match &config.policy.dir {
        Some(dir) => Policies::load(dir),
        None => Policies::development(),
    };
    let policies = policies.map_err(|why| StartError(why.to_string()))?;
    let attestors = Attestors::build(&config.attestors, &config.trust_domain).map_err(lines)?;
    let parties = Parties::build(config.services, config.operators).map_err(lines)?;
    let keys = Keyring::load_or_create(&config.files.keys)?;
    let store_key = StoreKey::load_or_create(&config.store.mac_key_file)?;
    let audit = Audit::open(&config.files.audit).map_err(|why| StartError(why.to_string()))?;
    let ledger = Ledger::open(&config.store, store_key, clock.clone(), config.strict);
    let ledger = ledger.await.map_err(|why| StartError(format!("the store cannot be used: {why}")))?;
    let broker = Broker::new(Parts { issuer: config.issuer, attestors, parties, policies, ledger, keys, audit, clock });
    broker.publish_keys().await.map_err(|why| StartError(why.to_string()))?;
    Ok(broker)
}

async fn watch(broker: Arc<Broker>, stop: CancellationToken) {
    while tokio::time::timeout(WATCH, stop.cancelled()).await.is_err() {
        broker.watch().await;
    }
}

/// Any local process may connect: who it is, the kernel says, and what it may do, policy.
async fn bind_unix(path: &Path) -> Result<UnixListener, StartError> {
    let failed = |error: std::io::Error| StartError(format!("{}: {error}", path.display()));
    if UnixStream::connect(path).await.is_ok() {
        return Err(StartError(format!("{}: another broker is listening there", path.display())));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(listener)
}

fn in_use(address: &SocketAddr, error: &std::io::Error) -> StartError {
    StartError(format!("{address}: {error}; choose another address with `--listen` or `listen.http`"))
}

async fn logged(server: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = server.await {
        tracing::error!(%error, "a listener failed");
    }
}

impl Running {
    /// Stops taking connections, lets requests under way finish for a while, and is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
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
        let listen = |kind| signal(kind).map_err(|error| StartError(error.to_string()));
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
