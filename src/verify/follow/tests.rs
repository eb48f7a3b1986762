//! The follower against a broker that does what it must not: lies, freezes, forgets, cuts off.

use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinSet,
};

use super::{FollowTerms, Follower};
use crate::{
    claims::NumericDate,
    clock::{Clock as _, Moment, SystemClock},
    jose::SigningKey,
    verify::{Denial, Following, Rejected, Verified, Verifier},
};

pub(crate) const AUDIENCE: &str = "https://git.example.com";
pub(crate) const TASK: &str = "task_01jd0000000000000000000000";
/// The window, in milliseconds.
const F: i64 = 1_000;

pub(crate) struct Broker {
    pub(crate) url: String,
    inner: Arc<Mutex<Inner>>,
    tasks: JoinSet<()>,
}

struct Inner {
    url: String,
    key: SigningKey,
    foreign: SigningKey,
    access: SigningKey,
    name: &'static str,
    sequence: u64,
    generation: u64,
    entries: Vec<Value>,
    /// What goes into all streams; `None` ends them.
    streams: broadcast::Sender<Option<String>>,
    /// Says that it lives.
    beats: bool,
    /// Has no answer to these.
    out_of_order: &'static [&'static str],
    requests: Vec<Request>,
}

#[derive(Debug, Clone)]
struct Request {
    /// The port at the other end: which connection it came on.
    peer: u16,
    line: String,
    head: String,
    body: String,
}

fn key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
}

fn jwks(key: &SigningKey, purpose: &str) -> Value {
    let mut jwk = serde_json::to_value(key.public()).unwrap();
    (jwk["use"], jwk["remit_purpose"]) = ("sig".into(), purpose.into());
    json!({ "keys": [jwk] })
}

fn millis() -> i64 {
    SystemClock.now().timestamp_millis()
}

fn dead(what: &Value) -> Value {
    let mut entry = what.clone();
    (entry["at"], entry["until"]) = (json!(millis() / 1000), json!(millis() / 1000 + 600));
    entry
}

impl Inner {
    fn state(&self, more: &Value) -> Value {
        let now = millis();
        let date = |millis| NumericDate::from_millis(millis).unwrap();
        let mut state = json!({"iss": self.url, "broker": self.name, "iat": date(now), "exp": date(now + F),
            "generation": self.generation, "sequence": self.sequence, "entries": []});
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        state
    }

    fn signed(&self, more: &Value) -> String {
        self.key.sign("remit-revocations+jwt", &self.state(more)).unwrap()
    }

    fn push(&self, state: &str) {
        let event = format!("event: state\nid: {}:{}\ndata: {state}\n\n", self.name, self.sequence);
        let _ = self.streams.send(Some(event));
    }

    fn answer(&self, request: &Request) -> (u16, String) {
        let path = request.line.split(' ').nth(1).unwrap();
        if self.out_of_order.iter().any(|broken| path.starts_with(broken)) {
            return (503, String::new());
        }
        let answer = match path.split('?').next().unwrap() {
            "/.well-known/oauth-authorization-server" => {
                json!({"issuer": self.url, "jwks_uri": format!("{}/jwks", self.url),
                "remit_spiffe_bundle_uri": format!("{}/spiffe/bundle", self.url),
                "remit_revocation_jwks_uri": format!("{}/v1/revocations/jwks", self.url)})
                .to_string()
            }
            "/jwks" => jwks(&self.access, "access_token").to_string(),
            "/spiffe/bundle" => json!({"keys": []}).to_string(),
            "/v1/revocations/jwks" => jwks(&self.key, "revocations").to_string(),
            "/v1/revocations" => {
                let nonce = path.split_once("nonce=").map_or("", |(_, nonce)| nonce);
                self.signed(&json!({"nonce": nonce, "entries": self.entries}))
            }
            "/v1/revocations/ack" => String::new(),
            _ => return (404, String::new()),
        };
        (200, answer)
    }
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (key, foreign, access) = (key(), key(), key());
        let inner = Inner {
            url: url.clone(),
            key,
            foreign,
            access,
            name: "a",
            sequence: 7,
            generation: 3,
            entries: Vec::new(),
            streams: broadcast::channel(64).0,
            beats: true,
            out_of_order: &[],
            requests: Vec::new(),
        };
        let inner = Arc::new(Mutex::new(inner));
        let mut tasks = JoinSet::new();
        let (serving, beating) = (inner.clone(), inner.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                connections.spawn(serve(socket, serving.clone()));
            }
        });
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let inner = beating.lock().unwrap();
                if inner.beats {
                    inner.push(&inner.signed(&json!({"previous": inner.sequence})));
                }
            }
        });
        Self { url, inner, tasks }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap())
    }

    /// Follows it.
    async fn follow(&mut self, token: Option<&str>) -> Verifier<Following> {
        let terms = FollowTerms { service_token: token.map(str::to_owned), ..FollowTerms::of(&self.url) };
        let mut follower = Follower::new(&terms).unwrap();
        follower.between_fetches = Duration::from_millis(300);
        let feed = follower.feed();
        self.tasks.spawn(follower.run());
        tokio::time::timeout(Duration::from_secs(10), feed.ready()).await.unwrap();
        Verifier::following(feed, AUDIENCE.parse().unwrap())
    }

    fn token(&self, key: &SigningKey, generation: u64) -> String {
        let at = millis() / 1000;
        let claims = json!({
            "iss": self.url, "sub": "spiffe://example.com/a", "client_id": "spiffe://example.com/a", "aud": AUDIENCE,
            "exp": at + 60, "iat": at, "nbf": at, "jti": "0".repeat(32), "scope": "read", "authorization_details": [],
            "status": {"status_list": {"idx": 7, "uri": "https://broker.example.com/status-lists/0"}},
            "urn:remit:task": {"id": TASK, "owner": "o", "kind": "service", "attestor": "unix", "declared_at": at,
            "generation": generation, "authority_hash": "h", "expires_at": at + 60}});
        key.sign("at+jwt", &claims).unwrap()
    }

    /// A token that is good.
    pub(crate) fn good_token(&self) -> String {
        let (key, generation) = self.with(|inner| (inner.access.clone(), inner.generation));
        self.token(&key, generation)
    }

    /// From now on it answers no question for what is revoked.
    #[cfg(feature = "broker")]
    pub(crate) fn break_down(&self) {
        self.with(|inner| inner.out_of_order = &["/v1/revocations?"]);
    }

    fn check(&self, verifier: &Verifier<Following>) -> Result<Verified, Rejected> {
        verifier.verify(&self.good_token(), &Moment::now())
    }

    /// What it says when it comes to what is expected; how long it took.
    async fn comes_to(&self, verifier: &Verifier<Following>, expected: Option<Denial>) -> Duration {
        let begun = Instant::now();
        loop {
            let is = self.check(verifier).err();
            if is == expected.map(Rejected::Denied) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{is:?} and not {expected:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn requests(&self, beginning: &str) -> Vec<Request> {
        self.with(|inner| inner.requests.iter().filter(|one| one.line.starts_with(beginning)).cloned().collect())
    }

    fn snapshots(&self) -> usize {
        self.requests("GET /v1/revocations?nonce=").len()
    }

    /// Until somebody listens again.
    async fn listened(&self) {
        let streams =
            || self.requests("GET /v1/revocations").iter().filter(|one| one.head.contains("event-stream")).count();
        while streams() < self.snapshots() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Revokes, and says so.
    pub(crate) fn revoke(&self, what: &Value) {
        self.with(|inner| {
            let (previous, entry) = (inner.sequence, dead(what));
            inner.entries.push(entry.clone());
            inner.sequence += 1;
            inner.push(&inner.signed(&json!({"previous": previous, "entries": [entry]})));
        });
    }
}

async fn serve(mut socket: TcpStream, inner: Arc<Mutex<Inner>>) {
    let peer = socket.peer_addr().unwrap().port();
    while let Some(request) = read(&mut socket, peer).await {
        let is_stream = request.head.contains("text/event-stream");
        let (mut events, (status, body)) = {
            let mut inner = inner.lock().unwrap();
            inner.requests.push(request.clone());
            (inner.streams.subscribe(), inner.answer(&request))
        };
        if is_stream && status == 200 {
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
            let _ = socket.write_all(head).await;
            while let Ok(Some(event)) = events.recv().await {
                if socket.write_all(event.as_bytes()).await.is_err() {
                    return;
                }
            }
            return;
        }
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(socket: &mut TcpStream, peer: u16) -> Option<Request> {
    let mut octets = Vec::new();
    let head = loop {
        if let Some(end) = octets.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(&mut octets).await.unwrap_or(0) == 0 {
            return None;
        }
    };
    let text = String::from_utf8(octets[..head].to_vec()).unwrap().to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0_usize);
    while octets.len() < head + length {
        socket.read_buf(&mut octets).await.unwrap();
    }
    let whole = String::from_utf8(octets).unwrap();
    Some(Request {
        peer,
        line: whole.lines().next().unwrap().to_owned(),
        head: whole[..head].to_owned(),
        body: whole[head..].to_owned(),
    })
}

#[tokio::test]
async fn a_revoke_arrives_and_is_acknowledged() {
    let mut broker = Broker::start().await;
    let verifier = broker.follow(Some("the-service")).await;
    assert!(broker.check(&verifier).is_ok());
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(broker.check(&verifier).is_ok(), "heartbeats keep it fresh");
    assert_eq!(broker.snapshots(), 1);
    broker.revoke(&json!({ "task": TASK }));
    broker.comes_to(&verifier, Some(Denial::Revoked)).await;
    let acknowledged = || {
        let acks = broker.requests("POST /v1/revocations/ack");
        assert!(acks.iter().all(|ack| ack.head.contains("Bearer the-service")), "{acks:?}");
        acks.iter().map(|ack| serde_json::from_str::<Value>(&ack.body).unwrap()).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while acknowledged().last() != Some(&json!({"broker": "a", "sequence": 8})) {
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", acknowledged());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let heads = broker.requests("GET /v1/revocations");
    let stream = heads.iter().find(|one| one.head.contains("text/event-stream")).unwrap();
    assert!(stream.head.to_ascii_lowercase().contains("last-event-id: a:7"), "{stream:?}");
    let snapshot = broker.requests("GET /v1/revocations?nonce=").remove(0);
    assert_eq!(stream.peer, snapshot.peer, "another connection may lead to another broker");
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_left_and_nothing_accepted() {
    let mut broker = Broker::start().await;
    let verifier = broker.follow(None).await;
    broker.with(|inner| {
        inner.beats = false;
        inner.out_of_order = &["/v1/revocations?"];
    });
    let took = broker.comes_to(&verifier, Some(Denial::Stale)).await;
    assert!(took <= Duration::from_millis(F.unsigned_abs() + 200), "{took:?}");
    // What it says now is the same as ever, and not that it lives.
    let snapshots = broker.snapshots();
    broker.with(|inner| {
        inner.beats = true;
        inner.out_of_order = &[];
    });
    broker.comes_to(&verifier, None).await;
    assert!(broker.snapshots() > snapshots);
    let last = broker.requests("GET /v1/revocations?nonce=").pop().unwrap();
    let witness = last.head.lines().find(|line| line.to_ascii_lowercase().starts_with("remit-last-state: ey"));
    assert!(witness.is_some(), "{}", last.head);
}

#[tokio::test]
async fn a_stream_that_lies_is_left() {
    let mut broker = Broker::start().await;
    let verifier = broker.follow(None).await;
    for (what, lie) in [
        (
            "somebody else",
            Box::new(|inner: &mut Inner| {
                let state = inner.state(&json!({"previous": inner.sequence}));
                inner.push(&inner.foreign.sign("remit-revocations+jwt", &state).unwrap());
            }) as Box<dyn Fn(&mut Inner)>,
        ),
        (
            "a gap",
            Box::new(|inner: &mut Inner| {
                inner.sequence += 2;
                inner.push(&inner.signed(&json!({"previous": inner.sequence - 1})));
            }),
        ),
        (
            "from the future",
            Box::new(|inner: &mut Inner| {
                let at = millis() / 1000 + 30;
                inner.push(&inner.signed(&json!({"previous": inner.sequence, "iat": at, "exp": at + 1})));
            }),
        ),
        (
            "what nobody understands",
            Box::new(|inner: &mut Inner| {
                inner.push(
                    &inner.signed(&json!({"previous": inner.sequence, "entries": [dead(&json!({"tree": TASK}))]})),
                );
            }),
        ),
        ("no state", Box::new(|inner: &mut Inner| inner.push("state"))),
        ("the end", Box::new(|inner: &mut Inner| drop(inner.streams.send(None)))),
    ] {
        broker.listened().await;
        let before = broker.snapshots();
        broker.with(|inner| lie(inner));
        let begun = Instant::now();
        while broker.snapshots() == before {
            assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        broker.comes_to(&verifier, None).await;
    }
    broker.revoke(&json!({ "task": TASK }));
    broker.comes_to(&verifier, Some(Denial::Revoked)).await;
}

#[tokio::test]
async fn what_was_revoked_while_nobody_listened_is_learnt_on_return() {
    let mut broker = Broker::start().await;
    let verifier = broker.follow(None).await;
    broker.listened().await;
    broker.with(|inner| {
        let _ = inner.streams.send(None);
        inner.entries.push(dead(&json!({ "task": TASK })));
        inner.sequence += 1;
    });
    broker.comes_to(&verifier, Some(Denial::Revoked)).await;
}

#[tokio::test]
async fn a_broker_that_was_rolled_back_is_believed_in_the_next_generation() {
    let mut broker = Broker::start().await;
    let verifier = broker.follow(None).await;
    broker.listened().await;
    broker.with(|inner| {
        inner.sequence = 2;
        let _ = inner.streams.send(None);
    });
    broker.comes_to(&verifier, Some(Denial::Stale)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(broker.check(&verifier).unwrap_err(), Rejected::Denied(Denial::Stale));
    broker.with(|inner| inner.generation += 1);
    broker.comes_to(&verifier, None).await;
}

/// A token of the next generation is no reason to believe in it, and one to ask.
#[tokio::test]
async fn a_token_of_the_next_generation_makes_it_ask() {
    let mut broker = Broker::start().await;
    let verifier = broker.follow(None).await;
    broker.with(|inner| {
        inner.beats = false;
        inner.generation += 1;
    });
    assert_eq!(broker.check(&verifier).unwrap_err(), Rejected::Denied(Denial::Generation));
    let took = broker.comes_to(&verifier, None).await;
    assert!(took < Duration::from_millis(900), "sooner than by silence: {took:?}");
}

#[tokio::test]
async fn unknown_keys_fetch_no_more_than_once_in_a_while() {
    let mut broker = Broker::start().await;
    let verifier = broker.follow(None).await;
    let foreign = broker.token(&key(), 3);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_400) {
        assert!(verifier.verify(&foreign, &Moment::now()).is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let fetched = broker.requests("GET /jwks").len();
    assert!((2..=6).contains(&fetched), "{fetched} in 1.4 s, of which 0.3 s lie between two");
    // A key that is new to us is known soon.
    broker.with(|inner| inner.access = key());
    assert!(matches!(broker.check(&verifier), Err(Rejected::Invalid(_))));
    broker.comes_to(&verifier, None).await;
}

#[tokio::test]
async fn a_broker_with_a_new_key_is_believed_as_soon_as_the_key_is_fetched() {
    let mut broker = Broker::start().await;
    let verifier = broker.follow(None).await;
    broker.listened().await;
    broker.with(|inner| {
        inner.key = key();
        let _ = inner.streams.send(None);
    });
    // By now nothing is left of what the old key said.
    tokio::time::sleep(Duration::from_millis(F.unsigned_abs() + 100)).await;
    let took = broker.comes_to(&verifier, None).await;
    assert!(took < Duration::from_secs(5), "the keys may be kept for a minute: {took:?}");
}

#[tokio::test]
async fn without_keys_nothing_is_accepted_and_with_them_everything_is_well() {
    let mut broker = Broker::start().await;
    broker.with(|inner| inner.out_of_order = &["/jwks"]);
    let follower = Follower::new(&FollowTerms::of(&broker.url)).unwrap();
    let feed = follower.feed();
    broker.tasks.spawn(follower.run());
    let verifier = Verifier::following(feed, AUDIENCE.parse().unwrap());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(matches!(broker.check(&verifier), Err(Rejected::Invalid(_))));
    broker.with(|inner| inner.out_of_order = &[]);
    broker.comes_to(&verifier, None).await;
}

#[tokio::test]
async fn the_metadata_of_another_issuer_is_not_followed() {
    let mut broker = Broker::start().await;
    let url = broker.url.clone();
    broker.with(|inner| inner.url = "http://127.0.0.1:1".to_owned());
    let follower = Follower::new(&FollowTerms::of(&url)).unwrap();
    let feed = follower.feed();
    broker.tasks.spawn(follower.run());
    assert!(tokio::time::timeout(Duration::from_millis(500), feed.ready()).await.is_err());
    assert!(broker.requests("GET /jwks").is_empty());
    for bad in ["http://broker.example.com", "broker.example.com", ""] {
        assert!(Follower::new(&FollowTerms::of(bad)).is_err(), "{bad}");
    }
}
