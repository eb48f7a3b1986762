//! One suite over both stores, and what only one of them can get wrong.

mod each;
mod faults;
mod locks;

mod suite;

use ::redis::aio::MultiplexedConnection;
use chrono::TimeDelta;
use serde_json::json;
use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

use super::{
    Config, InDoubt, Key, Lease, Ledger, Sealed, Store, StoreKey, Telling, Written,
    record::{Sealer, tree},
    redb::RedbStore,
    redis::RedisStore,
};
use crate::{
    clock::{Clock as _, SystemClock, Time, after, whole_second},
    id::{LeaseId, TaskId},
    task::{CredentialType, End, Privilege, State, Task},
};

/// A `redis-server` of the test's own.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        // Between being found free and being taken, a port can go to someone else.
        let attempt = |_| {
            let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            Self::try_start(port, directory, arguments)
        };
        (0..5).find_map(attempt).expect("redis-server starts")
    }

    fn start_on(port: u16, directory: &Path, arguments: &[&str]) -> Self {
        Self::try_start(port, directory, arguments).expect("redis-server starts")
    }

    /// `None` where the server stopped again instead of listening.
    fn try_start(port: u16, directory: &Path, arguments: &[&str]) -> Option<Self> {
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
            .arg(directory)
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let mut server = Self { process, port };
        for _ in 0..500 {
            std::thread::sleep(Duration::from_millis(10));
            let listens = TcpStream::connect(("127.0.0.1", port)).is_ok();
            if server.process.try_wait().unwrap().is_some() {
                return None;
            }
            if listens {
                return Some(server);
            }
        }
        None
    }

    fn durable(directory: &Path) -> Self {
        Self::start(directory, &["--save", "", "--appendonly", "yes"])
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn connect(&self) -> MultiplexedConnection {
        ::redis::Client::open(self.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }

    async fn open(&self, strict: bool) -> Result<Ledger, InDoubt> {
        open_url(self.url(), 7, strict).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn open_url(url: String, key: u8, strict: bool) -> Result<Ledger, InDoubt> {
    let config = Config { url, mac_key_file: "store.key".into(), broker_gone_after: Config::BROKER_GONE_AFTER };
    Ledger::open(&config, StoreKey::for_test(key), Arc::new(SystemClock), crate::metrics::Metrics::new(""), strict)
        .await
}

enum Place {
    Redis(Server),
    Redb(Arc<RedbStore>),
}

/// A ledger over a store of its own, and a way into that store that is not the broker's.
struct World {
    ledger: Ledger,
    place: Place,
    directory: TempDir,
}

impl World {
    async fn redis() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::durable(directory.path());
        Self { ledger: server.open(true).await.unwrap(), place: Place::Redis(server), directory }
    }

    async fn redb() -> Self {
        Self::redb_in(tempfile::tempdir().unwrap()).await
    }

    async fn redb_in(directory: TempDir) -> Self {
        let store = RedbStore::open(&directory.path().join("data/store.redb"), Arc::new(SystemClock)).unwrap();
        let place = Place::Redb(Arc::new(store));
        Self { ledger: another(&place, 7).await.unwrap(), place, directory }
    }

    /// Another broker on the same store, which has seen nothing yet.
    async fn another(&self, key: u8) -> Result<Ledger, InDoubt> {
        another(&self.place, key).await
    }

    /// The same store after a crash of its server, or a restart of the broker that it is part of.
    async fn restart(self) -> Self {
        let Self { ledger, place, directory } = self;
        drop(ledger);
        match place {
            Place::Redis(mut server) => {
                server.process.kill().unwrap();
                server.process.wait().unwrap();
                let server = Server::start_on(server.port, directory.path(), &["--save", "", "--appendonly", "yes"]);
                for _ in 0..100 {
                    if let Ok(ledger) = server.open(true).await {
                        return Self { ledger, place: Place::Redis(server), directory };
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                panic!("redis does not come back");
            }
            Place::Redb(store) => {
                assert_eq!(Arc::strong_count(&store), 1);
                drop(store);
                Self::redb_in(directory).await
            }
        }
    }

    /// Counts tasks that nobody declares.
    async fn count_tasks(&self, more: u64) {
        match &self.place {
            Place::Redis(server) => {
                let store = RedisStore::open(&server.url(), Arc::new(SystemClock), true).await.unwrap();
                store.count_tasks(more).await.unwrap();
            }
            Place::Redb(store) => drop(store.count_tasks(more).await.unwrap()),
        }
    }

    async fn raw(&self, key: &Key) -> Option<String> {
        match &self.place {
            Place::Redis(server) => {
                ::redis::cmd("GET").arg(key.name()).query_async(&mut server.connect().await).await.unwrap()
            }
            Place::Redb(store) => store.read(std::slice::from_ref(key)).await.unwrap().remove(0),
        }
    }

    async fn tamper(&self, key: &Key, record: Option<&str>) {
        match (&self.place, record) {
            (Place::Redis(server), Some(record)) => {
                let mut connection = server.connect().await;
                ::redis::cmd("SET").arg(key.name()).arg(record).exec_async(&mut connection).await.unwrap();
            }
            (Place::Redis(server), None) => {
                let mut connection = server.connect().await;
                ::redis::cmd("DEL").arg(key.name()).exec_async(&mut connection).await.unwrap();
            }
            (Place::Redb(store), record) => store.tamper(&key.name(), record).await,
        }
    }
}

impl World {
    /// The timeline of a tree as it stands in the store.
    async fn timeline(&self, id: &TaskId) -> Vec<String> {
        match &self.place {
            Place::Redis(server) => {
                let mut range = ::redis::cmd("LRANGE");
                range.arg(Key::Timeline(id.clone()).name()).arg(0).arg(-1);
                range.query_async(&mut server.connect().await).await.unwrap()
            }
            Place::Redb(store) => store.told(id).await.unwrap(),
        }
    }

    async fn put_on_timeline(&self, id: &TaskId, record: &str) {
        match &self.place {
            Place::Redis(server) => {
                let mut push = ::redis::cmd("RPUSH");
                push.arg(Key::Timeline(id.clone()).name()).arg(record);
                push.exec_async(&mut server.connect().await).await.unwrap();
            }
            Place::Redb(store) => {
                let records = vec![Sealed(record.to_owned())];
                store.tell(&Telling { tree: id.clone(), records, keep_until: tomorrow() }).await.unwrap();
            }
        }
    }

    /// Writes junk over every counter of a task, as far as the store lets anyone.
    async fn spoil_counters(&self, id: &TaskId) {
        match &self.place {
            Place::Redis(server) => {
                let mut connection = server.connect().await;
                for (part, field) in [("tally", "minted:"), ("tally", "expiry:"), ("ended", ""), ("ended", "seen:")] {
                    let mut set = ::redis::cmd("HSET");
                    set.arg(format!("{}:{part}", tree(id))).arg(format!("{field}{id}")).arg("junk");
                    set.exec_async(&mut connection).await.unwrap();
                }
            }
            Place::Redb(store) => store.inflate(id).await,
        }
    }
}

async fn another(place: &Place, key: u8) -> Result<Ledger, InDoubt> {
    match place {
        Place::Redis(server) => open_url(server.url(), key, true).await,
        Place::Redb(store) => Ledger::over(store.clone(), &StoreKey::for_test(key), Arc::new(SystemClock)).await,
    }
}

fn now() -> Time {
    SystemClock.now()
}

fn root() -> TaskId {
    TaskId::root(now()).unwrap()
}

/// The place of the next task in the status list.
static PLACES: AtomicU32 = AtomicU32::new(0);

fn task(id: &TaskId) -> Arc<Task> {
    let detail = json!({"type": "remit:access", "locations": ["https://git.example.com"], "privileges": ["read"]});
    let mut refused = detail.clone();
    refused["policies"] = json!(["no-secrets"]);
    let task = json!({
        "id": id, "workload": "spiffe://example.com/ci/a", "instance": "1.1", "kind": "ci", "attestor": "ci",
        "evidence_issuer": null, "marks": ["unpinned"], "purpose": "Fix the flaky test", "owner": "team@example.com",
        "environment": null, "sandbox": "sb-1", "data_classification": null, "context": {"repo": "acme/payments"},
        "authority": [detail], "denied": [refused], "policies": ["reads"], "leases": [],
        "status": {"list": 0, "index": PLACES.fetch_add(1, Ordering::Relaxed)}, "generation": 1,
        "created_at": now(), "expires_at": after(now(), 900).unwrap(),
    });
    Arc::new(serde_json::from_value(task).unwrap())
}

fn lease(task: &TaskId) -> Lease {
    Lease {
        id: LeaseId::random().unwrap(),
        task: task.clone(),
        resource: "https://git.example.com".parse().unwrap(),
        privilege: Privilege::Read,
        kind: CredentialType::AccessToken,
        issued_at: whole_second(now()),
        expires_at: after(now(), 300).unwrap(),
        bound_to: None,
        status: None,
    }
}

fn end_of(task: &TaskId, state: State) -> End {
    End { task: task.clone(), state, at: now(), reason: Some("found".into()), by: "alice".into() }
}

fn tomorrow() -> Time {
    now() + TimeDelta::hours(24)
}

/// Declares a task with one lease.
async fn declared(ledger: &Ledger, id: &TaskId) -> (Arc<Task>, Lease) {
    let (task, lease) = (task(id), lease(id));
    assert!(matches!(ledger.declare(&task, std::slice::from_ref(&lease)).await.unwrap(), Written::Done));
    (task, lease)
}

async fn revoke(ledger: &Ledger, id: &TaskId) -> super::Stopped {
    ledger.end(&end_of(id, State::Revoked), tomorrow(), false).await.unwrap().expect("the task is there")
}

async fn lives(ledger: &Ledger, lease: &Lease) -> bool {
    ledger.live(&lease.task, &lease.id, "a key").await.unwrap().is_some()
}

/// Whether the status list says that the task has ended.
async fn listed(ledger: &Ledger, task: &Task) -> bool {
    let (octet, bit) = (task.status.index as usize / 8, task.status.index % 8);
    ledger.status_list(task.status.list).await.unwrap().octets[octet] & 1 << bit != 0
}
