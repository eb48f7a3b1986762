//! `tests/golden/openapi.json`: the API, as the broker describes it. It is what the code makes, what a broker serves, what others
//! accept as OpenAPI, and what a broker does.

use remit::{
    clock::{Clock as _, SystemClock},
    task::digest,
};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};
use tokio::process::Command;

use crate::{
    clients::python,
    errors,
    operators::a_lock,
    signals::{RECEIVER_TOKEN, polls},
    support::{
        ADMIN, APPROVER, Answer, GIT, GIT_TOKEN, KEYTOOL_CSR, NOWHERE, REGISTRY, RESPONDER, Server, Stand, Store,
        VIEWER, a_list, approver, claims, client, codes, declaration, free_port, operations, part, response,
        socket_client, text, wait_for, write_config,
    },
};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openapi.json");
/// The task in the examples.
const EXAMPLE: &str = "task_01kamw7q2v5y8r3f6t9c1x4d0e";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

#[test]
fn the_document_is_the_golden_one() {
    let document = remit::http::document();
    if fs::read_to_string(GOLDEN).unwrap_or_default() != document {
        let new = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/openapi.json");
        fs::write(&new, document).unwrap();
        panic!("the API changed; if that is meant: cp {} {GOLDEN}", new.display());
    }
}

/// What every operation says of itself, beside what others check.
#[test]
fn every_operation_is_whole() {
    let mut ids = BTreeSet::new();
    for (method, path, said) in operations() {
        let name = format!("{method} {path}");
        assert!(ids.insert(text(said, "operationId")), "{name}: the operationId is another's");
        assert!(!text(said, "summary").is_empty() && said["tags"][0].is_string(), "{name}");
        assert!(said["security"].is_array() && said["x-remit-callers"][0].is_string(), "{name}");
        let statuses: Vec<u16> = said["responses"].as_object().unwrap().keys().map(|s| s.parse().unwrap()).collect();
        // A revoke is done or promised, and so is a lock, which may be only weighed.
        let successes = match (method.as_str(), path) {
            ("POST", "/v1/locks") => 3,
            (
                "POST",
                "/v1/tasks/{id}/revoke" | "/v1/leases/{id}/revoke" | "/v1/locks/{id}/extend" | "/v1/locks/{id}/release",
            ) => 2,
            _ => 1,
        };
        assert_eq!(statuses.iter().filter(|status| **status < 300).count(), successes, "{name}: {statuses:?}");
        for status in statuses {
            let response = response(said, status).unwrap();
            assert!(response["headers"]["x-request-id"].is_object(), "{name} {status}");
            // Readiness is no error, whatever the status.
            let refusal = status >= 400 && path != "/readyz";
            assert_eq!(refusal, !codes(response).is_empty(), "{name} {status}");
            let later = [429, 503].contains(&status) && refusal;
            assert_eq!(later, response["headers"]["Retry-After"].is_object(), "{name} {status}");
        }
        assert!(response(said, 503).is_some(), "{name}: a broker in doubt says so");
    }
}

/// Comments of the code become descriptions, so they speak to whoever reads those.
#[test]
fn descriptions_are_for_readers_of_the_api() {
    let document = remit::http::document();
    for foreign in ["[`", "crate::", "Result<", "\\n///"] {
        let found = document.lines().find(|line| line.contains(foreign));
        assert!(found.is_none(), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_served_on_both_listeners_and_printed() {
    let stand = Stand::new(Store::Embedded).await;
    let ops = free_port();
    let config = write_config(stand.dir.path(), "described", "redb:described.redb", "");
    let words = fs::read_to_string(&config).unwrap();
    fs::write(&config, words.replace("[store]", &format!("ops = \"127.0.0.1:{ops}\"\n[store]"))).unwrap();
    let server = Server::start(&config).await;
    let golden = fs::read_to_string(GOLDEN).unwrap();
    let get = async |url: String| Answer::of(client().get(url).send().await.unwrap()).await;
    for base in [server.url.clone(), format!("http://127.0.0.1:{ops}")] {
        let answer = get(format!("{base}/openapi.json")).await;
        assert_eq!(
            (answer.status, &answer.headers["content-type"]),
            (StatusCode::OK, &"application/json".parse().unwrap())
        );
        assert!(answer.text == golden, "{base} serves another document than the golden one");
    }
    let on_socket = socket_client(&server.socket).get("http://localhost/openapi.json").send().await.unwrap();
    assert!(on_socket.text().await.unwrap() == golden);
    let metadata = get(format!("{}/.well-known/oauth-authorization-server", server.url)).await.json();
    assert_eq!(metadata["remit_openapi_uri"], format!("{}/openapi.json", server.url));
    // Without a broker.
    let printed = Command::new(env!("CARGO_BIN_EXE_remit")).arg("openapi").output().await.unwrap();
    assert!(printed.status.success() && String::from_utf8(printed.stdout).unwrap() == golden);
}

/// What a third party says of checks on the document in `file`.
async fn check(file: &str, checks: &[Value]) -> Vec<String> {
    let lines: Vec<_> = checks.iter().map(Value::to_string).collect();
    let said = python("openapi.py", &[file], &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let list = |line: &String| serde_json::from_str::<Vec<String>>(line).expect("a list");
    said.iter().flat_map(list).collect()
}

#[tokio::test]
async fn others_accept_it_and_all_its_examples() {
    assert_eq!(check(GOLDEN, &[json!({"document": true})]).await, Vec::<String>::new());
}

/// Who finds nothing wrong has to be one who would.
#[tokio::test]
async fn others_would_find_what_is_wrong() {
    let golden: Value = serde_json::from_str(&fs::read_to_string(GOLDEN).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.json");
    let broken = async |edit: &dyn Fn(&mut Value)| {
        let mut document = golden.clone();
        edit(&mut document);
        fs::write(&file, document.to_string()).unwrap();
        check(file.to_str().unwrap(), &[json!({"document": true})]).await.join("\n")
    };
    let declare = "/paths/~1v1~1tasks/post";
    let found = broken(&|document| document.pointer_mut(declare).unwrap()["operationId"] = "listTasks".into()).await;
    assert!(found.contains("listTasks"), "{found}");
    let found =
        broken(&|document| {
            document.pointer_mut(&format!("{declare}/responses/201/content")).unwrap()["application/json"]["examples"]
                ["declared"]["value"]["created_at"] = "yesterday".into();
        })
        .await;
    assert!(found.contains("'yesterday' is not a 'date-time'"));
    let found = broken(&|document| {
        document.pointer_mut(&format!("{declare}/requestBody/content")).unwrap()["application/json"]["examples"] =
            json!({});
    })
    .await;
    assert!(found.contains("no example"));
    let health = |status: u16, body: &str| {
        let headers = json!({"content-type": "application/json", "x-request-id": ""});
        json!({"method": "GET", "path": "/healthz", "status": status, "headers": headers, "body": body})
    };
    assert_eq!(check(GOLDEN, &[health(200, r#"{"status":"ok"}"#)]).await.len(), 0);
    for wrong in [health(200, "{}"), health(200, r#"{"status":1}"#), health(418, r#"{"status":"ok"}"#)] {
        assert_eq!(check(GOLDEN, std::slice::from_ref(&wrong)).await.len(), 1, "{wrong}");
    }
}

/// Every error that the broker can tell is documented somewhere, on our own API and on `/oauth2/*`.
#[test]
fn every_error_is_documented() {
    use remit::{
        error::Error,
        http::{EvidenceRole, OAUTH, PROBLEM},
    };
    let mut documented = BTreeSet::new();
    for (_, path, operation) in operations() {
        for status in operation["responses"].as_object().unwrap().keys().map(|status| status.parse().unwrap()) {
            let codes = codes(response(operation, status).unwrap());
            documented.extend(codes.into_iter().map(|code| (path.starts_with("/oauth2/"), status, code)));
        }
    }
    for (name, error) in errors::all() {
        let known = |oauth: bool, (status, code): (axum::http::StatusCode, &'static str)| {
            assert!(documented.contains(&(oauth, status.as_u16(), code)), "{name}: {status} {code}, oauth: {oauth}");
        };
        known(false, PROBLEM(&error));
        // Quotas are on operators and on watching, so far.
        if matches!(error, Error::QuotaExceeded(_)) {
            continue;
        }
        known(true, OAUTH(&error, EvidenceRole::Client));
        known(true, OAUTH(&error, EvidenceRole::Subject));
    }
}

/// Answers of a broker, kept to be checked together.
struct Tour {
    stand: Stand,
    seen: Vec<Value>,
}

/// What is sent.
#[derive(Clone, Default)]
struct Sent<'a> {
    id: &'a str,
    query: &'a str,
    bearer: Option<&'a str>,
    headers: &'a [(&'static str, &'a str)],
    json: Option<Value>,
    form: Option<Value>,
}

impl Tour {
    async fn new(store: Store) -> Self {
        Self { stand: Stand::with(store, &(approver() + &polls())).await, seen: Vec::new() }
    }

    /// Sends one request over TCP and keeps the answer.
    async fn send(&mut self, method: &str, path: &str, sent: Sent<'_>, expected: u16) -> Value {
        let base = self.stand.broker.url.clone();
        self.send_by(&self.stand.client.clone(), &base, (method, path), sent, expected).await
    }

    async fn send_by(
        &mut self,
        client: &reqwest::Client,
        base: &str,
        (method, path): (&str, &str),
        sent: Sent<'_>,
        expected: u16,
    ) -> Value {
        let url = format!("{base}{}{}", path.replace("{id}", sent.id), sent.query);
        let mut request = client.request(method.parse::<Method>().unwrap(), url);
        if let Some(bearer) = sent.bearer {
            request = request.bearer_auth(bearer);
        }
        if let Some(body) = &sent.json {
            request = request.json(body);
        }
        if let Some(form) = &sent.form {
            request = request.form(form);
        }
        for (name, value) in sent.headers {
            request = request.header(*name, *value);
        }
        let answer = Answer::of(request.send().await.expect("an answer")).await;
        assert_eq!(answer.status.as_u16(), expected, "{method} {path}: {}", answer.text);
        let header = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.to_string(), Value::from(value.to_str().unwrap()))
        };
        let headers: serde_json::Map<_, _> = HeaderMap::iter(&answer.headers).map(header).collect();
        self.seen
            .push(json!({"method": method, "path": path, "status": expected, "headers": headers, "body": answer.text}));
        serde_json::from_str(&answer.text).unwrap_or_default()
    }

    /// Asserts that all answers are as documented.
    async fn check(&self) {
        let found = check(GOLDEN, &self.seen).await;
        assert_eq!(found, Vec::<String>::new());
    }
}

/// A request with a JSON body.
fn body<'a>(bearer: &'a str, id: &'a str, json: Value) -> Sent<'a> {
    Sent { bearer: Some(bearer), id, json: Some(json), ..Sent::default() }
}

fn bare<'a>(bearer: &'a str, id: &'a str) -> Sent<'a> {
    Sent { bearer: Some(bearer), id, ..Sent::default() }
}

fn form(bearer: Option<&str>, form: Value) -> Sent<'_> {
    Sent { bearer, form: Some(form), ..Sent::default() }
}

/// Every example of a request is carried out by a broker, with a task, evidence and a token of its own in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_of_a_request_works() {
    let mut tour = Tour::new(Store::Embedded).await;
    let socket = socket_client(&tour.stand.broker.socket);
    let mut sent = 0;
    for (method, path, operation) in operations() {
        let Some(contents) = operation["requestBody"]["content"].as_object() else { continue };
        for (kind, content) in contents {
            for (name, example) in content["examples"].as_object().expect("examples") {
                let on_socket = name == "socket";
                let (client, base) = if on_socket {
                    (socket.clone(), "http://localhost".to_owned())
                } else {
                    (tour.stand.client.clone(), tour.stand.broker.url.clone())
                };
                // Whoever declared a task is who acts for it.
                let (task, token) = if on_socket {
                    let declared = client.post(format!("{base}/v1/tasks")).json(&declaration()).send().await.unwrap();
                    (text(&Answer::of(declared).await.expect(StatusCode::CREATED), "task"), String::new())
                } else {
                    tour.stand.task_with_token().await
                };
                let evidence = tour.stand.evidence();
                let mut value: Value =
                    serde_json::from_str(&example["value"].to_string().replace(EXAMPLE, &task)).unwrap();
                let lease = if token.is_empty() { String::new() } else { text(&claims(&token), "jti") };
                for (member, own) in [("subject_token", &evidence), ("token", &token), ("lease", &lease)] {
                    if let Some(placeholder) = value.get_mut(member) {
                        *placeholder = own.as_str().into();
                    }
                }
                if path == "/v1/revocations/ack" {
                    let state = tour.stand.client.get(tour.stand.url("/v1/revocations")).send().await.unwrap();
                    let state = claims(&state.text().await.unwrap());
                    value = json!({"broker": state["broker"], "sequence": state["sequence"]});
                }
                let bearer = match operation["x-remit-callers"][0].as_str() {
                    // It is in the form.
                    _ if operation["security"] == json!([]) => None,
                    _ if name == "of_a_service" => Some(GIT_TOKEN),
                    Some("workload") => Some(&*evidence),
                    Some("service") => Some(GIT_TOKEN),
                    Some("receiver") => Some(RECEIVER_TOKEN),
                    Some("admin") => Some(ADMIN),
                    Some("approver") => Some(APPROVER),
                    Some("responder") => Some(RESPONDER),
                    other => panic!("who calls {path}? {other:?}"),
                };
                if path == "/v1/locks/{id}/extend" {
                    value["until"] = json!(SystemClock.now() + chrono::TimeDelta::hours(1));
                }
                let (json, form) = match kind.as_str() {
                    "application/json" => (Some(value), None),
                    _ => (None, Some(value)),
                };
                let status = operation["responses"].as_object().unwrap().keys().find(|status| status.starts_with('2'));
                let status = if path == "/v1/locks" { 201 } else { status.expect("a success").parse().unwrap() };
                let id = match path {
                    "/v1/leases/{id}/revoke" => lease,
                    _ if path.starts_with("/v1/keys/{id}") => text(&part(&token, 0), "kid"),
                    _ if path.starts_with("/v1/locks/{id}") => a_lock(&tour.stand).await,
                    _ => task.clone(),
                };
                let request = Sent { id: &id, bearer, json, form, ..Sent::default() };
                let answer = tour.send_by(&client, &base, (&method, path), request, status).await;
                assert_ne!(answer["active"], false, "{name}");
                sent += 1;
            }
        }
    }
    assert!(sent >= 12, "{sent} examples");
    tour.check().await;
}

/// One more or one less than the document allows is refused, and what it allows is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_are_the_documented_ones() {
    let stand = Stand::new(Store::Embedded).await;
    let document: Value = serde_json::from_str(&remit::http::document()).unwrap();
    let mut tried = 0;
    for (schema, place) in
        [("Declaration", ""), ("TaskContext", "/context"), ("AccessDetail", "/authorization_details/0")]
    {
        let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        for (name, said) in properties {
            let (most, least) = match (said["maxLength"].as_u64(), said["maxItems"].as_u64()) {
                (Some(most), _) => (most, said["minLength"].as_u64().expect("both bounds")),
                (_, Some(most)) => (most, said["minItems"].as_u64().unwrap_or_default()),
                _ => continue,
            };
            // There are not as many services.
            if name == "locations" {
                continue;
            }
            let bounds =
                [(Some(least), true), (least.checked_sub(1), false), (Some(most), true), (Some(most + 1), false)];
            for (size, fits) in bounds {
                let Some(size) = size else { continue };
                let mut words = declaration();
                words["credentials"] = json!([]);
                let size = usize::try_from(size).unwrap();
                let value = match &**name {
                    "authorization_details" => vec![words["authorization_details"][0].clone(); size].into(),
                    "credentials" => vec![json!({"resource": GIT, "privilege": "read"}); size].into(),
                    _ if said["maxItems"].is_u64() => (0..size).map(|number| number.to_string()).collect(),
                    _ => Value::from("x".repeat(size)),
                };
                words.pointer_mut(place).expect("an object")[name] = value;
                let answer = stand.declare(words).await;
                // An owner that nobody knows is refused later, by what the attestor says.
                let status = if name == "owner" { StatusCode::FORBIDDEN } else { StatusCode::CREATED };
                let expected = if fits { status } else { StatusCode::BAD_REQUEST };
                assert_eq!(answer.status, expected, "`{name}` with {size}: {}", answer.text);
                tried += 1;
            }
        }
    }
    assert!(tried >= 48, "{tried}");
    let evidence = stand.evidence();
    for (path, bearer) in
        [("/v1/tasks/{id}/revoke", RESPONDER), ("/v1/tasks/{id}/complete", &evidence), ("/v1/keys/rotate", ADMIN)]
    {
        for (length, status) in [(1024, 200), (1025, 400), (0, 400)] {
            let (task, _) = stand.task_with_token().await;
            let reason = json!({"reason": "x".repeat(length)});
            let answer = stand.post(&path.replace("{id}", &task), bearer, reason).await;
            assert_eq!(answer.status.as_u16(), status, "{path}: a reason of {length} octets");
        }
    }
    for (limit, status) in [(200, 200), (201, 400), (1, 200), (0, 400)] {
        let answer = stand.get(&format!("/v1/tasks?limit={limit}"), VIEWER).await;
        assert_eq!(answer.status.as_u16(), status, "limit={limit}");
    }
}

/// What a broker answers, to whom it should and to whom it should not, is what the document says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_does_what_the_document_says() {
    let mut tour = Tour::new(Store::Redis).await;
    documents(&mut tour).await;
    signals(&mut tour).await;
    task_and_errors(&mut tour).await;
    investigation(&mut tour).await;
    credentials(&mut tour).await;
    reports(&mut tour).await;
    certificates(&mut tour).await;
    keys(&mut tour).await;
    locks(&mut tour).await;
    oauth(&mut tour).await;
    ends(&mut tour).await;
    in_doubt(&mut tour).await;
    tour.check().await;
    // What is documented and did not happen here.
    let seen = |method: &str, path: &str, status: &str| {
        tour.seen.iter().any(|seen| {
            (&seen["method"], &seen["path"], seen["status"].to_string().as_str())
                == (&json!(method), &json!(path), status)
        })
    };
    let mut unseen = String::new();
    for (method, path, operation) in operations() {
        for status in operation["responses"].as_object().unwrap().keys() {
            if !seen(&method, path, status) {
                writeln!(unseen, "{method} {path} {status}").unwrap();
            }
        }
    }
    // The log is read without the store. A body that does not end takes a while, so does the time after a task in which there may be reports of it, keys are answered from memory, and so
    // many watchers, many looks, so many tokens and a store out of reach have tests of their own.
    let excused = |line: &&str| {
        line.ends_with(" 408")
            || [
                "GET /v1/tasks/{id} 429",
                "POST /v1/tasks/{id}/reports 409",
                "POST /v1/tasks/{id}/credentials 429",
                "POST /oauth2/token 429",
                "POST /v1/tasks/{id}/revoke 202",
                "POST /v1/locks 429",
                "POST /v1/leases/{id}/revoke 202",
                "POST /v1/leases/{id}/revoke 429",
                "GET /v1/revocations 403",
                "GET /v1/revocations 429",
                "GET /v1/revocations 503",
                "POST /v1/revocations/ack 503",
                "GET /v1/audit 429",
                "GET /v1/reports/unused 429",
                "GET /v1/search 429",
                "GET /v1/workloads 429",
            ]
            .contains(line)
            || [
                "/.well-known/",
                "/jwks",
                "/spiffe/bundle",
                "/pki/ca.pem",
                "/pki/crl.pem",
                "/healthz",
                "/metrics",
                "/openapi.json",
                "/oauth2/introspect",
                "/access/v1/",
                "/v1/audit",
                "/v1/locks",
                "/ssf/v1/",
            ]
            .iter()
            .any(|path| line.contains(path) && line.ends_with(" 503"))
    };
    let unseen: Vec<_> = unseen.lines().filter(|line| !excused(line)).collect();
    assert!(unseen.is_empty(), "documented, and never seen: {unseen:#?}");
}

async fn documents(tour: &mut Tour) {
    // The first task begins the first status list.
    tour.stand.task_with_token().await;
    for (method, path, operation) in operations() {
        if method == "GET" && operation["x-remit-callers"] == json!(["anyone"]) {
            let id = if path.starts_with("/pki/crl/") { a_list(&tour.stand).await } else { "0".to_owned() };
            tour.send("GET", path, Sent { id: &id, ..Sent::default() }, 200).await;
        }
    }
    tour.send("GET", "/pki/crl/{id}", Sent { id: "0", ..Sent::default() }, 404).await;
    tour.send("GET", "/status-lists/{id}", Sent { id: "99", ..Sent::default() }, 404).await;
    tour.send("GET", "/v1/revocations", Sent { query: "?nonce=", ..Sent::default() }, 400).await;
    tour.send("GET", "/v1/revocations", bare("garbage", ""), 401).await;
    let state = tour.stand.client.get(tour.stand.url("/v1/revocations")).send().await.unwrap().text().await.unwrap();
    let ack = json!({"broker": claims(&state)["broker"], "sequence": claims(&state)["sequence"]});
    unread(tour, "/v1/revocations/ack", "", ack.clone()).await;
    tour.send("POST", "/v1/revocations/ack", body(VIEWER, "", ack.clone()), 403).await;
    tour.send("POST", "/v1/revocations/ack", body(GIT_TOKEN, "", ack), 200).await;
    let headers = [("accept", "text/html")];
    tour.send("GET", "/status-lists/{id}", Sent { id: "0", headers: &headers, ..Sent::default() }, 406).await;
}

async fn signals(tour: &mut Tour) {
    let verify = |stream: &str| json!({"stream_id": stream, "state": "s"});
    unread(tour, "/ssf/v1/verify", "", verify("archive")).await;
    tour.send("POST", "/ssf/v1/verify", body(VIEWER, "", verify("archive")), 403).await;
    tour.send("POST", "/ssf/v1/verify", body(RECEIVER_TOKEN, "", verify("other")), 404).await;
    for status in [204, 204, 204, 204, 429] {
        tour.send("POST", "/ssf/v1/verify", body(RECEIVER_TOKEN, "", verify("archive")), status).await;
    }
    for path in ["/ssf/v1/stream", "/ssf/v1/status"] {
        for (bearer, query, status) in [
            (RECEIVER_TOKEN, "?stream_id=archive", 200),
            (RECEIVER_TOKEN, "?stream_id=other", 404),
            (RECEIVER_TOKEN, "?stream=archive", 400),
            (VIEWER, "?stream_id=archive", 403),
            ("garbage", "?stream_id=archive", 401),
        ] {
            tour.send("GET", path, Sent { query, ..bare(bearer, "") }, status).await;
        }
    }
    tour.send("GET", "/ssf/v1/stream", bare(RECEIVER_TOKEN, ""), 200).await;
    let ask = json!({"maxEvents": 2, "returnImmediately": true});
    unread(tour, "/ssf/v1/poll", "", ask.clone()).await;
    tour.send("POST", "/ssf/v1/poll", body(VIEWER, "", ask.clone()), 403).await;
    let told = tour.send("POST", "/ssf/v1/poll", body(RECEIVER_TOKEN, "", ask), 200).await;
    let ids: Vec<_> = told["sets"].as_object().unwrap().keys().cloned().collect();
    let errors: serde_json::Map<_, _> = ids[1..].iter().map(|id| (id.clone(), json!({"err": "invalid_key"}))).collect();
    let noted = json!({"maxEvents": 0, "ack": ids[..1], "setErrs": errors});
    tour.send("POST", "/ssf/v1/poll", body(RECEIVER_TOKEN, "", noted), 200).await;
}

/// What every call with a body can be refused for before anything is done with it.
async fn unread(tour: &mut Tour, path: &str, id: &str, right: Value) {
    let evidence = tour.stand.evidence();
    let large = json!({"purpose": "x".repeat(70_000)});
    tour.send("POST", path, body(&evidence, id, large), 413).await;
    tour.send("POST", path, Sent { form: Some(json!({"a": "b"})), ..bare(&evidence, id) }, 415).await;
    tour.send("POST", path, body(&evidence, id, json!({"else": 1})), 400).await;
    tour.send("POST", path, body("garbage", id, right), 401).await;
}

async fn task_and_errors(tour: &mut Tour) {
    let evidence = tour.stand.evidence();
    let key = [("idempotency-key", "one")];
    let declare = |json: Value| Sent { headers: &key, ..body(&evidence, "", json) };
    let declared = tour.send("POST", "/v1/tasks", declare(declaration()), 201).await;
    let task = text(&declared, "task");
    let mut other = declaration();
    other["purpose"] = "another".into();
    tour.send("POST", "/v1/tasks", declare(other), 422).await;
    let mut partial = declaration();
    partial["partial"] = true.into();
    partial["authorization_details"][0]["locations"] = json!([GIT, NOWHERE]);
    tour.send("POST", "/v1/tasks", body(&evidence, "", partial.clone()), 201).await;
    partial["partial"] = false.into();
    tour.send("POST", "/v1/tasks", body(&evidence, "", partial), 403).await;
    let mut forbidden = declaration();
    forbidden["environment"] = "production".into();
    tour.send("POST", "/v1/tasks", body(&evidence, "", forbidden), 403).await;
    tour.send("POST", "/v1/tasks", body(VIEWER, "", declaration()), 403).await;
    unread(tour, "/v1/tasks", "", declaration()).await;
    // A retry of what has ended.
    tour.stand.revoke(&task).await;
    tour.send("POST", "/v1/tasks", declare(declaration()), 409).await;

    for bearer in [VIEWER, RESPONDER, &evidence] {
        tour.send("GET", "/v1/tasks", bare(bearer, ""), 200).await;
        tour.send("GET", "/v1/tasks/{id}", bare(bearer, &task), 200).await;
        tour.send("GET", "/v1/tasks/{id}/timeline", bare(bearer, &task), 200).await;
        tour.send("GET", "/v1/tasks/{id}/reach", bare(bearer, &task), 200).await;
    }
    let page = "?limit=1&state=active&owner=team-payments@example.com&sandbox=sb-7f3";
    tour.send("GET", "/v1/tasks", Sent { query: page, ..bare(VIEWER, "") }, 200).await;
    tour.send("GET", "/v1/tasks", Sent { query: "?limit=0", ..bare(VIEWER, "") }, 400).await;
    tour.send("GET", "/v1/tasks", bare("garbage", ""), 401).await;
    tour.send("GET", "/v1/tasks", bare(GIT_TOKEN, ""), 403).await;
    for path in ["/v1/tasks/{id}", "/v1/tasks/{id}/timeline", "/v1/tasks/{id}/reach"] {
        tour.send("GET", path, bare(VIEWER, "task_1"), 400).await;
        tour.send("GET", path, bare("garbage", &task), 401).await;
        tour.send("GET", path, bare(GIT_TOKEN, &task), 403).await;
        tour.send("GET", path, bare(VIEWER, EXAMPLE), 404).await;
    }
    // It has ended, so the stream ends.
    let headers = [("accept", "text/event-stream")];
    tour.send("GET", "/v1/tasks/{id}", Sent { headers: &headers, ..bare(VIEWER, &task) }, 200).await;
}

async fn investigation(tour: &mut Tour) {
    let (evidence, (task, token)) = (tour.stand.evidence(), tour.stand.task_with_token().await);
    let jti = text(&claims(&token), "jti");
    for query in
        [format!("?q={jti}"), format!("?q={jti}&task={task}"), format!("?q={task}&limit=1"), "?q=1.1".to_owned()]
    {
        tour.send("GET", "/v1/search", Sent { query: &query, ..bare(VIEWER, "") }, 200).await;
    }
    let query = format!("?q={task}");
    tour.send("GET", "/v1/search", bare(VIEWER, ""), 400).await;
    for query in
        ["", "?limit=2", "?owner=team-payments@example.com&sandbox=sb-7f3&attestor=ci&since=2016-01-01T00:00:00Z"]
    {
        tour.send("GET", "/v1/audit", Sent { query, ..bare(VIEWER, "") }, 200).await;
    }
    tour.send("GET", "/v1/workloads", bare(VIEWER, ""), 200).await;
    tour.send("GET", "/v1/reports/unused", bare(VIEWER, ""), 200).await;
    tour.send("GET", "/v1/reports/unused", Sent { query: "?limit=0", ..bare(VIEWER, "") }, 400).await;
    tour.send("GET", "/v1/workloads", Sent { query: "?limit=0", ..bare(VIEWER, "") }, 400).await;
    tour.send("GET", "/v1/audit", Sent { query: "?limit=0", ..bare(VIEWER, "") }, 400).await;
    for (bearer, status) in [("garbage", 401), (GIT_TOKEN, 403), (&*evidence, 403)] {
        tour.send("GET", "/v1/audit", bare(bearer, ""), status).await;
        tour.send("GET", "/v1/workloads", bare(bearer, ""), status).await;
        tour.send("GET", "/v1/reports/unused", bare(bearer, ""), status).await;
        tour.send("GET", "/v1/search", Sent { query: &query, ..bare(bearer, "") }, status).await;
    }
}

async fn credentials(tour: &mut Tour) {
    const PATH: &str = "/v1/tasks/{id}/credentials";
    let (evidence, (task, _)) = (tour.stand.evidence(), tour.stand.task_with_token().await);
    let ask =
        |resource: &str, privilege: &str| json!({"credentials": [{"resource": resource, "privilege": privilege}]});
    tour.send("POST", PATH, body(&evidence, &task, ask(GIT, "read")), 200).await;
    for (resource, privilege) in [(REGISTRY, "read"), (NOWHERE, "read"), (GIT, "secret")] {
        tour.send("POST", PATH, body(&evidence, &task, ask(resource, privilege)), 403).await;
    }
    tour.send("POST", PATH, body(VIEWER, &task, ask(GIT, "read")), 403).await;
    tour.send("POST", PATH, body(&tour.stand.other_instance(), &task, ask(GIT, "read")), 404).await;
    unread(tour, PATH, &task, ask(GIT, "read")).await;
    tour.stand.revoke(&task).await;
    tour.send("POST", PATH, body(&evidence, &task, ask(GIT, "read")), 409).await;
}

async fn reports(tour: &mut Tour) {
    const PATH: &str = "/v1/tasks/{id}/reports";
    let (evidence, (task, token)) = (tour.stand.evidence(), tour.stand.task_with_token().await);
    let report = |sequence: u32, size: u32| {
        json!({"reports": [{"kind": "tool_call", "label": "git.clone", "digest": digest(b"a"), "size": size,
            "sequence": sequence, "at": "2026-11-20T10:00:00Z"}]})
    };
    tour.send("POST", PATH, body(&evidence, &task, report(1, 1)), 200).await;
    tour.send("POST", PATH, body(&evidence, &task, report(3, 1)), 200).await;
    let mut observed = report(1, 1);
    observed["lease"] = claims(&token)["jti"].clone();
    tour.send("POST", PATH, body(GIT_TOKEN, &task, observed), 200).await;
    tour.send("POST", PATH, body(&evidence, &task, report(1, 2)), 422).await;
    tour.send("POST", PATH, body(&evidence, &task, report(10_001, 1)), 429).await;
    tour.send("POST", PATH, body(VIEWER, &task, report(2, 1)), 403).await;
    tour.send("POST", PATH, body(&tour.stand.other_instance(), &task, report(2, 1)), 404).await;
    unread(tour, PATH, &task, report(2, 1)).await;
}

async fn certificates(tour: &mut Tour) {
    const PATH: &str = "/v1/tasks/{id}/certificate";
    let (evidence, (task, _)) = (tour.stand.evidence(), tour.stand.task_with_token().await);
    let ask = || json!({"csr": KEYTOOL_CSR, "ttl": 60});
    tour.send("POST", PATH, body(&evidence, &task, ask()), 200).await;
    let mut secret = declaration();
    secret["authorization_details"][0]["privileges"] = json!(["read", "secret"]);
    let declared = tour.send("POST", "/v1/tasks", body(&evidence, "", secret), 201).await;
    tour.send("POST", PATH, body(&evidence, &text(&declared, "task"), ask()), 403).await;
    tour.send("POST", PATH, body(VIEWER, &task, ask()), 403).await;
    tour.send("POST", PATH, body(&tour.stand.other_instance(), &task, ask()), 404).await;
    unread(tour, PATH, &task, ask()).await;
    tour.send("POST", PATH, body(&evidence, &task, json!({"csr": "garbage"})), 400).await;
    for _ in 1..64 {
        let path = PATH.replace("{id}", &task);
        tour.stand.post(&path, &evidence, ask()).await.expect(StatusCode::OK);
    }
    tour.send("POST", PATH, body(&evidence, &task, ask()), 429).await;
    tour.stand.revoke(&task).await;
    tour.send("POST", PATH, body(&evidence, &task, ask()), 409).await;
}

async fn keys(tour: &mut Tour) {
    tour.send("POST", "/v1/keys/rotate", body(ADMIN, "", json!({"reason": "a tour"})), 200).await;
    tour.send("GET", "/v1/keys", bare(VIEWER, ""), 200).await;
    // With keys that are retired.
    let stand = &tour.stand;
    let over = || async { !stand.get("/v1/keys", VIEWER).await.text.contains("prepared") };
    wait_for("the next keys", over).await;
    tour.send("GET", "/v1/keys", bare(VIEWER, ""), 200).await;
    let evidence = tour.stand.evidence();
    for (bearer, status) in [("garbage", 401), (&*evidence, 403), (GIT_TOKEN, 403)] {
        tour.send("GET", "/v1/keys", bare(bearer, ""), status).await;
        tour.send("POST", "/v1/keys/rotate", body(bearer, "", json!({})), status).await;
    }
    tour.send("POST", "/v1/keys/rotate", body(VIEWER, "", json!({})), 403).await;
    let headers = [("authorization", "Bearer a")];
    tour.send("GET", "/v1/keys", Sent { headers: &headers, ..bare(VIEWER, "") }, 400).await;
    unread(tour, "/v1/keys/rotate", "", json!({})).await;
    let kid = text(&part(&tour.stand.task_with_token().await.1, 0), "kid");
    for (bearer, status) in [("garbage", 401), (&*evidence, 403), (VIEWER, 403)] {
        tour.send("POST", "/v1/keys/{id}/taint", body(bearer, &kid, json!({})), status).await;
    }
    tour.send("POST", "/v1/keys/{id}/taint", body(ADMIN, &"A".repeat(43), json!({})), 404).await;
    unread(tour, "/v1/keys/{id}/taint", &kid, json!({})).await;
    tour.send("POST", "/v1/keys/{id}/taint", body(ADMIN, &kid, json!({"reason": "a tour"})), 200).await;
    tour.send("GET", "/v1/keys", bare(VIEWER, ""), 200).await;
}

async fn locks(tour: &mut Tour) {
    let elsewhere = || json!({"match": {"sandbox": "sb-elsewhere"}, "reason": "r"});
    unread(tour, "/v1/locks", "", elsewhere()).await;
    tour.send("POST", "/v1/locks", Sent { query: "?dry_run=true", ..body(RESPONDER, "", elsewhere()) }, 200).await;
    let lock = text(&tour.send("POST", "/v1/locks", body(RESPONDER, "", elsewhere()), 201).await, "lock");
    for wrong in [json!({"match": {}, "reason": "r"}), json!({"match": {"all": true, "owner": "o"}, "reason": "r"})] {
        tour.send("POST", "/v1/locks", body(RESPONDER, "", wrong), 400).await;
    }
    tour.send("POST", "/v1/locks", body(VIEWER, "", elsewhere()), 403).await;
    tour.send("GET", "/v1/locks", bare(VIEWER, ""), 200).await;
    let twice = [("authorization", "Bearer x")];
    tour.send("GET", "/v1/locks", Sent { headers: &twice, ..bare(VIEWER, "") }, 400).await;
    tour.send("GET", "/v1/locks", bare("garbage", ""), 401).await;
    tour.send("GET", "/v1/locks", bare(GIT_TOKEN, ""), 403).await;
    let unknown = "lock_01kamw7q2v5y8r3f6t9c1x4d0e";
    for (id, status) in [(&*lock, 200), (unknown, 404), ("lock", 400)] {
        tour.send("GET", "/v1/locks/{id}", bare(VIEWER, id), status).await;
    }
    tour.send("GET", "/v1/locks/{id}", bare("garbage", &lock), 401).await;
    tour.send("GET", "/v1/locks/{id}", bare(GIT_TOKEN, &lock), 403).await;
    let with_end = a_lock(&tour.stand).await;
    let later = || json!({"until": SystemClock.now() + chrono::TimeDelta::hours(1), "reason": "r"});
    for (path, id, sent) in
        [("/v1/locks/{id}/extend", &with_end, later()), ("/v1/locks/{id}/release", &lock, json!({"reason": "r"}))]
    {
        unread(tour, path, id, sent.clone()).await;
        tour.send("POST", path, body(RESPONDER, id, sent.clone()), 403).await;
        tour.send("POST", path, body(APPROVER, unknown, sent.clone()), 404).await;
        tour.send("POST", path, body(APPROVER, id, sent), 200).await;
    }
    // Whom it keeps out: everybody, until it is released.
    let (evidence, (task, _)) = (tour.stand.evidence(), tour.stand.task_with_token().await);
    let all =
        tour.send("POST", "/v1/locks", body(RESPONDER, "", json!({"match": {"all": true}, "reason": "r"})), 201).await;
    let ask = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
    for (path, sent) in [
        ("/v1/tasks", declaration()),
        ("/v1/tasks/{id}/credentials", ask),
        ("/v1/tasks/{id}/certificate", json!({"csr": KEYTOOL_CSR})),
        ("/v1/tasks/{id}/renew", json!({"ttl": 60})),
    ] {
        tour.send("POST", path, body(&evidence, &task, sent), 403).await;
    }
    let exchange = json!({"grant_type": EXCHANGE, "subject_token": evidence, "subject_token_type": JWT,
        "resource": GIT, "scope": format!("{task} read")});
    tour.send("POST", "/oauth2/token", form(None, exchange), 400).await;
    tour.send("POST", "/v1/locks/{id}/release", body(APPROVER, &text(&all, "lock"), json!({"reason": "r"})), 200).await;
}

async fn oauth(tour: &mut Tour) {
    let (evidence, (task, token)) = (tour.stand.evidence(), tour.stand.task_with_token().await);
    let scope = format!("{task} read");
    let exchange = json!({"grant_type": EXCHANGE, "subject_token": evidence, "subject_token_type": JWT,
        "resource": GIT, "scope": scope});
    let with = |member: &str, value: &str| {
        let mut changed = exchange.clone();
        changed[member] = value.into();
        changed
    };
    tour.send("POST", "/oauth2/token", form(None, exchange.clone()), 200).await;
    for wrong in [
        with("grant_type", "password"),
        with("scope", "everything"),
        with("resource", "x"),
        with("resource", REGISTRY),
        with("scope", &format!("{task} secret")),
        with("scope", &format!("{EXAMPLE} read")),
        with("subject_token", "garbage"),
        with("subject_token", VIEWER),
        with("authorization_details", "[]"),
        with("authorization_details", r#"[{"type":"remit:declaration","purpose":""}]"#),
        with("requested_token_type", "x"),
        with("actor_token", "x"),
    ] {
        tour.send("POST", "/oauth2/token", form(None, wrong), 400).await;
    }
    tour.send("POST", "/oauth2/token", form(Some("garbage"), exchange.clone()), 401).await;
    tour.send("POST", "/oauth2/token", form(None, with("client_secret", "x")), 401).await;
    tour.send("POST", "/oauth2/introspect", form(Some(GIT_TOKEN), json!({"token": token})), 200).await;
    tour.send("POST", "/oauth2/introspect", form(Some(VIEWER), json!({"token": token})), 200).await;
    tour.send("POST", "/oauth2/introspect", form(Some(GIT_TOKEN), json!({"token": "garbage"})), 200).await;
    tour.send("POST", "/oauth2/introspect", form(Some(GIT_TOKEN), json!({"else": "x"})), 400).await;
    tour.send("POST", "/oauth2/introspect", form(Some("garbage"), json!({"token": token})), 401).await;
    let question = json!({"subject": {"type": "workload", "id": "it", "properties": {"token": token}},
        "action": {"name": "clone"}, "resource": {"type": "repository", "id": "acme/payments"}});
    for path in ["/access/v1/evaluation", "/access/v1/evaluations"] {
        unread(tour, path, "", question.clone()).await;
        tour.send("POST", path, body(VIEWER, "", question.clone()), 403).await;
        tour.send("POST", path, body(GIT_TOKEN, "", question.clone()), 200).await;
    }
    let mut several = question.clone();
    several["evaluations"] = json!([{}, {"action": {"name": "push"}}]);
    tour.send("POST", "/access/v1/evaluations", body(GIT_TOKEN, "", several), 200).await;
    let evidence = tour.stand.evidence();
    tour.send("POST", "/oauth2/revoke", form(Some(&evidence), json!({"token": token})), 200).await;
    tour.send("POST", "/oauth2/revoke", form(Some(&evidence), json!({"token": "garbage"})), 200).await;
    tour.send("POST", "/oauth2/revoke", form(Some(&evidence), json!({"token_type_hint": "access_token"})), 400).await;
    tour.send("POST", "/oauth2/revoke", form(Some(RESPONDER), json!({"token": token})), 401).await;
    for path in ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"] {
        let bearer = path.ends_with("introspect").then_some(GIT_TOKEN);
        tour.send("POST", path, form(bearer, json!({"token": "x".repeat(70_000)})), 413).await;
        tour.send("POST", path, Sent { bearer, json: Some(json!({})), ..Sent::default() }, 415).await;
    }
}

async fn ends(tour: &mut Tour) {
    let (evidence, other) = (tour.stand.evidence(), tour.stand.other_instance());
    let (task, token) = tour.stand.task_with_token().await;
    let reason = || json!({"reason": "done"});
    let lease = text(&claims(&token), "jti");
    unread(tour, "/v1/leases/{id}/revoke", &lease, reason()).await;
    tour.send("POST", "/v1/leases/{id}/revoke", body(VIEWER, &lease, reason()), 403).await;
    tour.send("POST", "/v1/leases/{id}/revoke", body(&other, &lease, reason()), 404).await;
    tour.send("POST", "/v1/leases/{id}/revoke", body(RESPONDER, &lease, json!({"reason": "r", "task": task})), 200)
        .await;
    tour.send("POST", "/v1/leases/{id}/revoke", body(RESPONDER, &lease, json!({})), 400).await;
    for (path, sent) in [("renew", json!({"ttl": 600})), ("complete", reason()), ("revoke", reason())] {
        let path = &format!("/v1/tasks/{{id}}/{path}");
        unread(tour, path, &task, sent.clone()).await;
        tour.send("POST", path, body(VIEWER, &task, sent.clone()), 403).await;
        tour.send("POST", path, body(&other, &task, sent.clone()), 404).await;
        tour.send("POST", path, body(&evidence, &task, sent), 200).await;
    }
    tour.send("POST", "/v1/tasks/{id}/renew", bare(&evidence, &task), 409).await;
    tour.send("POST", "/v1/tasks/{id}/revoke", body(RESPONDER, EXAMPLE, reason()), 200).await;
    tour.send("POST", "/v1/tasks/{id}/revoke", body(RESPONDER, &task, json!({})), 400).await;
    // More ids that nobody has seen than a minute allows, whichever minute it is.
    let mut last = StatusCode::OK;
    for number in 0..202 {
        let id = format!("task_01kamw7q2v5y8r3f6t9c1x4{number:03}");
        last = tour.stand.revoke(&id).await.status;
        if last == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    tour.send("POST", "/v1/tasks/{id}/revoke", body(RESPONDER, "task_01kamw7q2v5y8r3f6t9c1x4zzz", reason()), 429).await;
}

async fn in_doubt(tour: &mut Tour) {
    let (evidence, (task, token)) = (tour.stand.evidence(), tour.stand.task_with_token().await);
    let revocations = a_list(&tour.stand).await;
    let lock = a_lock(&tour.stand).await;
    tour.stand.redis.as_mut().expect("Redis").kill().await;
    let ask = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
    for (path, sent) in [
        ("/v1/tasks", declaration()),
        ("/v1/tasks/{id}/credentials", ask),
        ("/v1/tasks/{id}/certificate", json!({"csr": KEYTOOL_CSR})),
        ("/v1/tasks/{id}/renew", json!({"ttl": 60})),
        ("/v1/tasks/{id}/reports", json!({"reports": []})),
        ("/v1/tasks/{id}/complete", json!({"reason": "r"})),
        ("/v1/tasks/{id}/revoke", json!({"reason": "r"})),
    ] {
        tour.send("POST", path, body(&evidence, &task, sent), 503).await;
    }
    let lease = text(&claims(&token), "jti");
    tour.send("POST", "/v1/leases/{id}/revoke", body(RESPONDER, &lease, json!({"reason": "r"})), 503).await;
    tour.send("POST", "/oauth2/revoke", form(Some(&evidence), json!({"token": token})), 503).await;
    tour.send("GET", "/v1/tasks", bare(VIEWER, ""), 503).await;
    let elsewhere = json!({"match": {"sandbox": "sb-elsewhere"}, "reason": "r"});
    tour.send("POST", "/v1/locks", body(RESPONDER, "", elsewhere), 202).await;
    let later = json!({"until": SystemClock.now() + chrono::TimeDelta::hours(1), "reason": "r"});
    tour.send("POST", "/v1/locks/{id}/extend", body(APPROVER, &lock, later), 202).await;
    tour.send("POST", "/v1/locks/{id}/release", body(APPROVER, &lock, json!({"reason": "r"})), 202).await;
    tour.send("GET", "/v1/keys", bare(VIEWER, ""), 503).await;
    tour.send("POST", "/v1/keys/rotate", body(ADMIN, "", json!({})), 503).await;
    tour.send("POST", "/v1/keys/{id}/taint", body(ADMIN, &"A".repeat(43), json!({})), 503).await;
    tour.send("GET", "/v1/tasks/{id}", bare(VIEWER, &task), 503).await;
    tour.send("GET", "/v1/tasks/{id}/timeline", bare(VIEWER, &task), 503).await;
    tour.send("GET", "/v1/tasks/{id}/reach", bare(VIEWER, &task), 503).await;
    tour.send("GET", "/v1/search", Sent { query: &format!("?q={task}"), ..bare(VIEWER, "") }, 503).await;
    tour.send("GET", "/v1/workloads", bare(VIEWER, ""), 503).await;
    tour.send("GET", "/v1/reports/unused", bare(VIEWER, ""), 503).await;
    tour.send("GET", "/readyz", Sent::default(), 503).await;
    // A list that was signed before is good for some seconds.
    for (path, id) in [("/status-lists/{id}", "0"), ("/pki/crl/{id}", &*revocations)] {
        let list = tour.stand.url(&path.replace("{id}", id));
        let gone = || async { tour.stand.client.get(&list).send().await.unwrap().status() != StatusCode::OK };
        wait_for("the end of the list", gone).await;
        tour.send("GET", path, Sent { id, ..Sent::default() }, 503).await;
    }
    let exchange = json!({"grant_type": EXCHANGE, "subject_token": evidence, "subject_token_type": JWT,
        "resource": GIT, "scope": format!("{task} read")});
    tour.send("POST", "/oauth2/token", form(None, exchange), 503).await;
}
