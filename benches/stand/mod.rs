//! What the benches stand on: a broker in this process, configured by a file as in production, on a store of its own, and a CI job
//! as its workload. The audit log is synced as always, and so is Redis.

use remit::{
    clock::{Clock as _, SystemClock},
    config::{Config, Overrides},
    jose::SigningKey,
    serve::{Running, start},
};
use serde_json::{Value, json};
use std::{
    fmt, fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Who is called.
pub(crate) const SERVICE: &str = "http://127.0.0.1:9000";
/// How long evidence and tasks live, in seconds: longer than any bench runs.
const LIFE: u32 = 3600;

/// Whether this is no `cargo bench`, or one with `-- --test`: then one small round shows that the bench still runs.
pub(crate) fn is_trial() -> bool {
    let asked = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    asked("--test") || !asked("--bench")
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Store {
    Embedded,
    Redis,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Store::Embedded => "embedded",
            Store::Redis => "redis",
        })
    }
}

/// A broker, its store, and a client with evidence.
pub(crate) struct Stand {
    pub(crate) client: reqwest::Client,
    pub(crate) redis: Option<Redis>,
    /// Two tokens of one CI job: the one that comes with a key serves that key alone from then on.
    pub(crate) evidence: [String; 2],
    running: Running,
    /// Where it listens.
    at: SocketAddr,
    /// Removed with it.
    pub(crate) dir: TempDir,
}

impl Stand {
    /// Starts a broker that knows these `parties`: `[[service]]` and `[[operator]]`.
    pub(crate) async fn start(store: Store, parties: &str) -> Result<Self> {
        Self::start_in(store, None, parties, Path::new("audit"), Path::new("keys")).await
    }

    /// The same, beside another broker on the Redis of that, or with its audit log and its keys in other directories.
    pub(crate) async fn start_in(
        store: Store,
        beside: Option<&Self>,
        parties: &str,
        log: &Path,
        keys: &Path,
    ) -> Result<Self> {
        // The HTTP client brings no crypto provider of its own; there is one in the tree.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir()?;
        let redis = match (store, beside) {
            (Store::Embedded, _) | (Store::Redis, Some(_)) => None,
            (Store::Redis, None) => Some(Redis::start(dir.path()).await?),
        };
        let shared = redis.as_ref().or_else(|| beside?.redis.as_ref());
        let url = shared.map_or_else(|| "redb:remit.redb".to_owned(), |redis| redis.url.clone());
        let key = SigningKey::from_pkcs8(&SigningKey::generate()?)?;
        fs::write(dir.path().join("ci-keys.json"), json!({"keys": [key.public()]}).to_string())?;
        let own = format!("http://127.0.0.1:{}", free_port()?);
        let broker = beside.map_or_else(|| own.clone(), |beside| beside.url(""));
        if let Some(beside) = beside {
            fs::create_dir(dir.path().join("keys"))?;
            fs::copy(beside.dir.path().join("keys/store.key"), dir.path().join("keys/store.key"))?;
        }
        let file = dir.path().join("broker.toml");
        let text = configuration(&broker, own.trim_start_matches("http://"), &url)
            .replace("audit = \"audit\"", &format!("audit = \"{}\"", log.display()))
            .replace("\nkeys = \"keys\"", &format!("\nkeys = \"{}\"", keys.display()));
        fs::write(&file, text + parties)?;
        let running = start(Config::load(&file, Overrides::default())?, Arc::new(SystemClock)).await?;
        let at = running.http.ok_or("no address")?;
        while !reqwest::get(format!("http://{at}/readyz")).await?.status().is_success() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let now = SystemClock.now().timestamp();
        let mut claims = json!({
            "iss": "https://ci.example.com", "aud": broker, "iat": now, "exp": now + i64::from(LIFE),
            "repository": "acme/payments", "ref": "refs/heads/main", "run_id": "1",
        });
        let evidence = key.sign("JWT", &claims)?;
        claims["jti"] = "another".into();
        let evidence = [evidence, key.sign("JWT", &claims)?];
        Ok(Self { client: reqwest::Client::new(), redis, evidence, running, at, dir })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// Declares a task that may read at the service.
    pub(crate) async fn declare(&self) -> Result<String> {
        let details = json!([{"type": "remit:access", "locations": [SERVICE], "privileges": ["read"]}]);
        let body = json!({"purpose": "bench", "owner": "bench", "authorization_details": details, "ttl": LIFE});
        let request = self.client.post(self.url("/v1/tasks")).bearer_auth(&self.evidence[0]).json(&body);
        let declared: Value = request.send().await?.error_for_status()?.json().await?;
        Ok(declared["task"].as_str().ok_or("no task")?.to_owned())
    }

    /// A request for that many credentials of a task, which live as long as they do where nobody says how long.
    pub(crate) fn mint(&self, task: &str, credentials: usize) -> reqwest::RequestBuilder {
        let asked = json!({"resource": SERVICE, "privilege": "read"});
        let url = self.url(&format!("/v1/tasks/{task}/credentials"));
        self.client.post(url).bearer_auth(&self.evidence[0]).json(&json!({"credentials": vec![asked; credentials]}))
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.running.stop().await;
        if let Some(mut redis) = self.redis {
            redis.server.kill().await?;
        }
        Ok(())
    }
}

fn configuration(broker: &str, listen: &str, store: &str) -> String {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policies");
    format!(
        r#"
issuer = "{broker}"
trust_domain = "example.com"
[listen]
http = "{listen}"
[store]
url = "{store}"
mac_key_file = "keys/store.key"
[files]
keys = "keys"
audit = "audit"
journal = "journal"
[policy]
dir = "{}"
[[attestor]]
type = "oidc"
name = "ci"
issuer = "https://ci.example.com"
audience = "{broker}"
keys_file = "ci-keys.json"
algorithms = ["ES256"]
kind = "ci"
workload = "/ci/{{repository/*}}"
instance = "{{run_id}}"
"#,
        policies.display(),
    )
}

/// A Redis of its own.
pub(crate) struct Redis {
    /// Of the bench, beside the broker's.
    pub(crate) connection: redis::aio::MultiplexedConnection,
    pub(crate) url: String,
    server: Child,
}

impl Redis {
    async fn start(dir: &Path) -> Result<Self> {
        let port = free_port()?.to_string();
        let server = Command::new("redis-server")
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ])
            .arg("--dir")
            .arg(dir)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let url = format!("redis://127.0.0.1:{port}");
        let client = redis::Client::open(url.as_str())?;
        let connection = loop {
            match client.get_multiplexed_async_connection().await {
                Ok(connection) => break connection,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        Ok(Self { connection, url, server })
    }
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
