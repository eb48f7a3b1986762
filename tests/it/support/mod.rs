//! A real broker, the way its users have it: the binary, a configuration file, real HTTP, a real store.

mod documented;
mod edited;
mod frozen;
mod issuer;
mod people;
pub(crate) mod pki;
mod process;
mod prover;
mod redis;
pub(crate) mod secrets;

pub(crate) use documented::{codes, operations, response, taken};
pub(crate) use edited::with_policies;
pub(crate) use frozen::Frozen;
pub(crate) use issuer::{ISSUER, Issuer, now, overlaid};
pub(crate) use people::{SSO, SSO_AUDIENCE, approver, people};
pub(crate) use process::{Server, free_port, made, mortal_broker, wait_for, written_by};
pub(crate) use prover::{Body, Prover};
pub(crate) use redis::Redis;

use remit::clock::Time;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Both stores: the suite runs over each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Embedded,
    Redis,
}

/// Makes tests that run over both stores: `both! { async fn name(stand) { … } }`. What stands before them, up to a `;`, is the end of
/// their configuration.
#[macro_export]
macro_rules! both {
    ($(#[$doc:meta])* async $($tests:tt)+) => { $crate::both! { ""; $(#[$doc])* async $($tests)+ } };
    ($config:expr; $($(#[$doc:meta])* async fn $name:ident($($stand:tt)+) $body:block)+) => {
        $($(#[$doc])* async fn $name($($stand)+: $crate::support::Stand) $body)+
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::support::Stand::with($crate::support::Store::Embedded, &$config).await).await;
            })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::support::Stand::with($crate::support::Store::Redis, &$config).await).await;
            })+
        }
    };
}

pub(crate) const GIT: &str = "https://git.example.com";
pub(crate) const REGISTRY: &str = "https://registry.example.com";
/// No service answers for it, though policy would allow it.
pub(crate) const NOWHERE: &str = "https://nowhere.example.com";
pub(crate) const OWNER: &str = "team-payments@example.com";

/// The bearer tokens of the parties in the configuration.
pub(crate) const GIT_TOKEN: &str = "git-service-token";
pub(crate) const REGISTRY_TOKEN: &str = "registry-service-token";
pub(crate) const RESPONDER: &str = "responder-token";
pub(crate) const VIEWER: &str = "viewer-token";
pub(crate) const ADMIN: &str = "admin-token";
/// Only where there are [`people`].
pub(crate) const APPROVER: &str = "approver-token";

/// A request for a certificate as `keytool` makes one, with extensions that nobody else knows.
pub(crate) const KEYTOOL_CSR: &str = include_str!("keytool.csr");

/// The name of a revocation list of the broker.
pub(crate) async fn a_list(stand: &Stand) -> String {
    let keys = stand.get("/v1/keys", VIEWER).await.expect(StatusCode::OK);
    let keys = keys["keys"].as_array().expect("keys");
    let authority = keys.iter().find(|key| key["use"] == "x509_svid" && key["own"] == true).expect("an authority");
    format!("{}.0", text(authority, "kid"))
}

/// A test stand: a directory, a store, an evidence issuer, and a broker that can be restarted or doubled.
pub(crate) struct Stand {
    /// It goes first, for what it leaves is searched.
    pub(crate) broker: Server,
    pub(crate) redis: Option<Redis>,
    pub(crate) issuer: Issuer,
    /// The issuer of [`people`].
    pub(crate) people: Issuer,
    pub(crate) client: reqwest::Client,
    pub(crate) dir: tempfile::TempDir,
}

impl Stand {
    pub(crate) async fn new(store: Store) -> Self {
        Self::with(store, "").await
    }

    /// A stand whose configuration ends with `extra`.
    pub(crate) async fn with(store: Store, extra: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (issuer, people) = (Issuer::new(), Issuer::new());
        std::fs::write(dir.path().join("ci-keys.json"), issuer.jwks().to_string()).expect("written");
        std::fs::write(dir.path().join("sso-keys.json"), people.jwks().to_string()).expect("written");
        let redis = match store {
            Store::Embedded => None,
            Store::Redis => Some(Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await),
        };
        let url = redis.as_ref().map_or_else(|| "redb:remit.redb".to_owned(), Redis::url);
        let config = write_config(dir.path(), "broker", &url, extra);
        let broker = Server::start(&config).await;
        Self { broker, redis, issuer, people, client: client(), dir }
    }

    /// A second broker of the same issuer on the same store, with keys of its own and a copy of the store's MAC key.
    pub(crate) async fn second_broker(&self) -> Server {
        let url = self.redis.as_ref().expect("only Redis is shared").url();
        let config = write_config(self.dir.path(), "second", &url, "");
        let text = std::fs::read_to_string(&config).expect("a configuration");
        let own = text.split('"').nth(1).expect("the issuer comes first").to_owned();
        std::fs::write(&config, text.replace(&own, &self.broker.url)).expect("written");
        Server::start(&config).await
    }

    pub(crate) async fn restart_broker(&mut self) {
        let config = self.broker.config.clone();
        self.broker.stop().await;
        self.broker = Server::start(&config).await;
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.broker.url)
    }

    /// Evidence of a CI job of `acme/payments`, run 1.
    pub(crate) fn evidence(&self) -> String {
        self.issuer.evidence(&self.broker.url, json!({}))
    }

    /// Evidence of another run of the same workload: another instance.
    pub(crate) fn other_instance(&self) -> String {
        self.issuer.evidence(&self.broker.url, json!({"run_id": "2"}))
    }

    pub(crate) async fn call(&self, method: Method, path: &str, bearer: Option<&str>, body: Option<Value>) -> Answer {
        self.call_at(&self.broker, method, path, bearer, body).await
    }

    pub(crate) async fn call_at(
        &self,
        at: &Server,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        body: Option<Value>,
    ) -> Answer {
        let mut request = self.client.request(method.clone(), format!("{}{path}", at.url));
        if let Some(bearer) = bearer {
            secrets::note_token("a bearer token", bearer);
            request = request.bearer_auth(bearer);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = Answer::of(request.send().await.expect("an answer")).await;
        documented::check(&method, path, &answer);
        answer
    }

    pub(crate) async fn post(&self, path: &str, bearer: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(bearer), Some(body)).await
    }

    pub(crate) async fn get(&self, path: &str, bearer: &str) -> Answer {
        self.call(Method::GET, path, Some(bearer), None).await
    }

    /// Declares a task as the CI job of run 1.
    pub(crate) async fn declare(&self, declaration: Value) -> Answer {
        self.post("/v1/tasks", &self.evidence(), declaration).await
    }

    /// A task with one read credential for git: its id and the token.
    pub(crate) async fn task_with_token(&self) -> (String, String) {
        let answer = self.declare(declaration()).await.expect(StatusCode::CREATED);
        (text(&answer, "task"), text(&answer["credentials"][0], "access_token"))
    }

    /// Mints one more credential of a task.
    pub(crate) async fn mint(&self, task: &str) -> Answer {
        let body = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
        self.post(&format!("/v1/tasks/{task}/credentials"), &self.evidence(), body).await
    }

    pub(crate) async fn revoke(&self, task: &str) -> Answer {
        self.post(&format!("/v1/tasks/{task}/revoke"), RESPONDER, json!({"reason": "a test says so"})).await
    }

    /// Asks, as the service `git`, whether a token is alive.
    pub(crate) async fn introspect(&self, token: &str) -> Value {
        self.introspect_at(&self.broker, GIT_TOKEN, token).await
    }

    pub(crate) async fn introspect_at(&self, at: &Server, bearer: &str, token: &str) -> Value {
        self.form_at(at, "/oauth2/introspect", Some(bearer), &[("token", token)]).await.expect(StatusCode::OK)
    }

    pub(crate) async fn form(&self, path: &str, bearer: Option<&str>, form: &[(&str, &str)]) -> Answer {
        self.form_at(&self.broker, path, bearer, form).await
    }

    pub(crate) async fn form_at(&self, at: &Server, path: &str, bearer: Option<&str>, form: &[(&str, &str)]) -> Answer {
        for (name, value) in form {
            secrets::note_token(name, value);
        }
        let mut request = self.client.post(format!("{}{path}", at.url)).form(form);
        if let Some(bearer) = bearer {
            secrets::note_token("a bearer token", bearer);
            request = request.bearer_auth(bearer);
        }
        let answer = Answer::of(request.send().await.expect("an answer")).await;
        documented::check(&Method::POST, path, &answer);
        answer
    }

    /// The lines of the audit log so far that say what was asked for and done. Those that nobody waits for may come any time later.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let later = [
            "evidence_refused",
            "more_evidence_refused",
            "caller_refused",
            "more_callers_refused",
            "introspected",
            "refused_after_end",
            "settled",
        ];
        let mut lines = self.whole_audit();
        lines.retain(|line| later.iter().all(|event| line["event"] != *event));
        lines
    }

    /// Every line of the audit log so far.
    pub(crate) fn whole_audit(&self) -> Vec<Value> {
        audit_of(&self.dir.path().join("broker-audit"))
    }
}

/// An answer of the broker, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> Self {
        let (status, headers, url) = (response.status(), response.headers().clone(), response.url().clone());
        let answer = Self { status, headers, text: response.text().await.expect("a body") };
        secrets::note_answer(&url, &answer);
        answer
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {} {}", self.status, self.text))
    }

    /// The body, if the status is the expected one.
    #[track_caller]
    pub(crate) fn expect(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// Asserts an error of our own API: status, code, problem+json, request id, nothing internal.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) -> Value {
        let kind = self.headers.get("content-type").map(|value| value.to_str().expect("text").to_owned());
        let id = self.headers["x-request-id"].to_str().expect("text").to_owned();
        let body = self.expect(StatusCode::from_u16(status).expect("a status"));
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(kind.as_deref(), Some("application/problem+json"));
        assert_eq!(body["request_id"], id);
        body
    }

    /// Asserts an error of an OAuth endpoint.
    #[track_caller]
    pub(crate) fn oauth_refused(self, status: u16, error: &str) -> Value {
        let body = self.expect(StatusCode::from_u16(status).expect("a status"));
        assert_eq!(body["error"], error, "{body}");
        let text = body["error_description"].as_str().expect("a description");
        assert!(text.chars().all(|c| matches!(c, ' '..='!' | '#'..='[' | ']'..='~')), "{text}");
        body
    }
}

/// A declaration that policy allows whole, with one credential.
pub(crate) fn declaration() -> Value {
    json!({
        "purpose": "Fix the flaky test in payments", "owner": OWNER, "environment": "staging", "sandbox": "sb-7f3",
        "data_classification": "internal",
        "context": {"repo": "acme/payments", "branch": "fix/flaky", "command": "pytest"},
        "authorization_details": [{"type": "remit:access", "locations": [GIT], "privileges": ["read", "write"],
            "actions": ["clone"], "identifier": "acme/payments"}],
        "ttl": 600,
        "credentials": [{"resource": GIT, "privilege": "read"}],
    })
}

#[track_caller]
pub(crate) fn text(value: &Value, member: &str) -> String {
    value[member].as_str().unwrap_or_else(|| panic!("no `{member}` in {value}")).to_owned()
}

/// A time that an answer names. Times are compared as such, never as text: a whole second is written without a fraction.
#[track_caller]
pub(crate) fn time(value: &Value, member: &str) -> Time {
    let text = text(value, member);
    assert!(text.ends_with('Z'), "{text}");
    text.parse().unwrap_or_else(|error| panic!("{member} is {text}: {error}"))
}

/// The answer of a revoke without what changes as it arrives.
pub(crate) fn settled(mut answer: Value) -> Value {
    for reach in answer["reach"].as_array_mut().expect("classes") {
        reach.as_object_mut().expect("a class").remove("done");
    }
    answer
}

/// The claims of a token, unverified.
pub(crate) fn claims(token: &str) -> Value {
    part(token, 1)
}

/// A part of a token: 0 is the header, 1 the claims.
pub(crate) fn part(token: &str, at: usize) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(at).expect("three parts");
    serde_json::from_slice(&base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON")
}

pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client")
}

/// The lines of an audit log, whole ones: a broker may be writing the next.
pub(crate) fn audit_of(dir: &Path) -> Vec<Value> {
    let read = || {
        let segments = remit::audit::segment::Segment::list(dir).ok()?;
        segments.iter().map(|segment| std::fs::read_to_string(&segment.path).ok()).collect::<Option<String>>()
    };
    // One that was kept for long enough may go between a look at the directory and one at the file.
    let text = (0..10).find_map(|_| read()).expect("the audit log");
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

/// A client on a Unix socket.
pub(crate) fn socket_client(socket: &Path) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().unix_socket(socket.to_owned()).build().expect("a client")
}

/// Writes the configuration of a broker; its files are named after it.
pub(crate) fn write_config(dir: &Path, name: &str, store: &str, extra: &str) -> PathBuf {
    let port = free_port();
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/policies");
    let digest = |token: &str| remit::id::sha256_hex(token.as_bytes());
    let text = format!(
        r#"
issuer = "http://127.0.0.1:{port}"
trust_domain = "example.com"
[listen]
http = "127.0.0.1:{port}"
unix = "{name}.sock"
[store]
url = "{store}"
mac_key_file = "store.key"
[files]
keys = "{name}-keys"
audit = "{name}-audit"
journal = "{name}-journal"
[keys]
jwks_max_age = 1
[policy]
dir = "{policies}"
[[attestor]]
type = "unix"
name = "kernel"
kind = "ai_agent"
[[attestor]]
type = "oidc"
name = "ci"
issuer = "{issuer}"
audience = "http://127.0.0.1:{port}"
keys_file = "ci-keys.json"
algorithms = ["ES256"]
kind = "ci"
workload = "/ci/{{repository/*}}"
instance = "{{run_id}}.{{run_attempt}}"
owners = ["{OWNER}", "other@example.com"]
[[service]]
name = "git"
audiences = ["{GIT}"]
binding = "none"
revocation = "introspection"
token_sha256 = ["{git}"]
reports = true
[[service]]
name = "registry"
audiences = ["{REGISTRY}"]
binding = "offered"
revocation = "introspection"
token_sha256 = ["{registry}"]
[[operator]]
name = "rita"
roles = ["responder"]
token_sha256 = "{responder}"
[[operator]]
name = "victor"
roles = ["viewer"]
token_sha256 = "{viewer}"
[[operator]]
name = "ada"
roles = ["admin"]
token_sha256 = "{admin}"
{extra}
"#,
        policies = policies.display(),
        issuer = issuer::ISSUER,
        git = digest(GIT_TOKEN),
        registry = digest(REGISTRY_TOKEN),
        responder = digest(RESPONDER),
        viewer = digest(VIEWER),
        admin = digest(ADMIN),
    );
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, text).expect("written");
    path
}
