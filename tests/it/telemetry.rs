//! Traces, metrics and the audit log on their way to a collector, read there with the published messages.

use axum::{body::Bytes, extract::Path as PathOf, http::HeaderMap};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::task::TaskTracker;

use crate::{
    both,
    clients::python,
    support::{Server, Stand, Store, VIEWER, audit_of, declaration, secrets, text, wait_for},
};

const KEY: &str = "a-key-of-the-collector-4711";
/// It takes the connection, and never answers.
const HANGS: u16 = 0;

/// Takes what brokers send.
struct Collector {
    url: String,
    taken: Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>,
    answer: Arc<AtomicU16>,
    /// The most octets that it takes at a time.
    most: Arc<AtomicUsize>,
}

impl Collector {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let taken = Arc::<Mutex<Vec<_>>>::default();
        let answer = Arc::new(AtomicU16::new(200));
        let most = Arc::new(AtomicUsize::new(usize::MAX));
        let (kept, status, limit) = (taken.clone(), answer.clone(), most.clone());
        let take = move |PathOf(signal): PathOf<String>, headers: HeaderMap, body: Bytes| async move {
            let too_large = body.len() > limit.load(Ordering::SeqCst);
            let status = if too_large { 413 } else { status.load(Ordering::SeqCst) };
            if status == HANGS {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            if status == 200 {
                kept.lock().expect("a list").push((signal, headers, body));
            }
            StatusCode::from_u16(status).unwrap_or_default()
        };
        let router = axum::Router::new()
            .route("/v1/{signal}", axum::routing::post(take))
            .layer(axum::extract::DefaultBodyLimit::disable());
        TaskTracker::new().spawn(axum::serve(listener, router).into_future());
        Self { url, taken, answer, most }
    }

    /// What it took of a signal, read: the resource of each request, and everything below its scopes.
    async fn read(&self, signal: &str) -> Vec<(Value, Value)> {
        let taken = self.taken.lock().expect("a list").clone();
        let lines: Vec<_> = taken
            .iter()
            .filter(|(of, _, _)| of == signal)
            .map(|(of, _, body)| format!("{of} {}", BASE64_STANDARD.encode(body)))
            .collect();
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        if lines.is_empty() {
            return Vec::new();
        }
        let mut items = Vec::new();
        for request in python("otlp.py", &[], &lines).await {
            let request: Value = serde_json::from_str(&request).expect("JSON");
            let (resources, scopes, of_scope) = match signal {
                "logs" => ("resource_logs", "scope_logs", "log_records"),
                "traces" => ("resource_spans", "scope_spans", "spans"),
                _ => ("resource_metrics", "scope_metrics", "metrics"),
            };
            for resource in request[resources].as_array().expect("resources") {
                for scope in resource[scopes].as_array().expect("scopes") {
                    assert_eq!(scope["scope"]["name"], "remit");
                    for item in scope[of_scope].as_array().into_iter().flatten() {
                        items.push((resource["resource"].clone(), item.clone()));
                    }
                }
            }
        }
        items
    }

    /// The numbers of the audit records that it took.
    async fn numbers(&self) -> BTreeSet<u64> {
        let logs = self.read("logs").await;
        logs.iter().map(|(_, log)| number(&attribute(log, "remit.audit.sequence"))).collect()
    }
}

/// A number of 64 bits is text in the JSON of protobuf.
fn number(value: &Value) -> u64 {
    value.as_str().expect("a number").parse().expect("a number")
}

fn attribute(of: &Value, key: &str) -> Value {
    let attributes = of["attributes"].as_array().into_iter().flatten();
    let found = attributes.clone().find(|attribute| attribute["key"] == key);
    let value = &found.unwrap_or_else(|| panic!("no `{key}` in {of}"))["value"];
    value.as_object().and_then(|value| value.values().next()).expect("a value").clone()
}

fn secret_file(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The broker of a stand, from now on with a collector.
async fn with_collector(stand: &mut Stand, url: &str) {
    secret_file(&stand.dir.path().join("otlp-headers"), &format!("x-api-key: {KEY}\n\nx-scope: team\n"), 0o600);
    let config = stand.broker.config.clone();
    let text = fs::read_to_string(&config).unwrap();
    let section = format!("[telemetry.otlp]\nendpoint = \"{url}\"\nheaders_file = \"otlp-headers\"\nevery = 1\n");
    fs::write(&config, format!("{text}\n{section}")).unwrap();
    stand.restart_broker().await;
}

async fn dropped(stand: &Stand, signal: &str) -> u64 {
    let metrics = stand.client.get(stand.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let name = format!("remit_telemetry_exported_total{{signal=\"{signal}\",outcome=\"dropped\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&*name)?.parse().ok()).unwrap_or_default()
}

both! {
    /// Everything on record, every request and all that is counted; and nothing secret.
    async fn what_is_done_is_sent(stand) {
        let (mut stand, collector) = (stand, Collector::start().await);
        secrets::note("a header for the collector", KEY.as_bytes());
        let before = stand.whole_audit().len() as u64;
        with_collector(&mut stand, &collector.url).await;
        let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).header("traceparent", theirs);
        let answer = request.json(&declaration()).send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let declared = crate::support::Answer::of(answer).await.expect(StatusCode::CREATED);
        let (task, token) = (text(&declared, "task"), text(&declared["credentials"][0], "access_token"));
        stand.introspect(&token).await;
        stand.get("/v1/tasks", "nobody-knows-this-token").await;
        stand.get(&format!("/v1/tasks/{task}?x={token}"), VIEWER).await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        stand.broker.stop().await;

        let requests = collector.taken.lock().unwrap().clone();
        for (signal, headers, _) in &requests {
            assert_eq!((&headers["x-api-key"], &headers["x-scope"]), (&KEY.parse().unwrap(), &"team".parse().unwrap()));
            assert_eq!(headers["content-type"], "application/x-protobuf", "{signal}");
        }
        // The log is there word for word, in order, and in the class that each event is of.
        let lines = fs::read_dir(stand.dir.path().join("broker-audit")).unwrap();
        let segments = lines.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|kind| kind == "jsonl"));
        let on_disk: Vec<_> = segments.flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let logs = collector.read("logs").await;
        let sent: Vec<_> = logs.iter().map(|(_, log)| log["body"]["string_value"].as_str().unwrap().to_owned()).collect();
        let expected: Vec<_> = on_disk[usize::try_from(before).unwrap()..].iter().filter(|line| sent.contains(line)).cloned().collect();
        assert_eq!(sent, expected);
        for event in ["task_declared", "credential_minted", "introspected", "evidence_refused", "looked", "end_requested", "task_ended"] {
            assert!(logs.iter().any(|(_, log)| log["event_name"] == format!("remit.{event}")), "{event}: {sent:#?}");
        }
        for (resource, log) in &logs {
            assert_eq!(attribute(resource, "service.name"), "remit");
            assert_eq!(attribute(resource, "remit.issuer"), stand.broker.url);
            let expected = match log["event_name"].as_str().unwrap() {
                "remit.task_declared" | "remit.credential_minted" => ("3003", "Authorize Session"),
                "remit.end_requested" | "remit.task_ended" => ("3004", "Entity Management"),
                "remit.evidence_refused" => ("3002", "Authentication"),
                "remit.introspected" | "remit.looked" => ("6003", "API Activity"),
                _ => continue,
            };
            assert_eq!(attribute(log, "ocsf.class_uid"), expected.0, "{log}");
            assert_eq!(attribute(log, "ocsf.class_name"), expected.1);
        }
        let octets = |hex: &str| {
            let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            BASE64_STANDARD.encode((0..hex.len()).step_by(2).map(digit).collect::<Vec<_>>())
        };
        let declared = logs.iter().find(|(_, log)| log["event_name"] == "remit.task_declared").unwrap();
        assert_eq!(declared.1["trace_id"], octets(&id));
        assert!(number(&declared.1["time_unix_nano"]) > 1_700_000_000_000_000_000);

        // The request is a trace of ours: what its caller says is a link, and no more.
        let spans = collector.read("traces").await;
        let span = spans.iter().map(|(_, span)| span).find(|span| span["trace_id"] == octets(&id)).expect("its span");
        assert_eq!((&span["name"], &span["kind"]), (&json!("POST /v1/tasks"), &json!("SPAN_KIND_SERVER")));
        assert_eq!(span["links"][0]["trace_id"], octets("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(span["links"][0]["span_id"], octets("00f067aa0ba902b7"));
        assert!(span["parent_span_id"].is_null() && span["span_id"].as_str().unwrap().len() == 12, "{span}");
        assert_eq!(attribute(span, "http.response.status_code"), "201");
        assert_eq!(attribute(span, "http.route"), "/v1/tasks");
        assert!(number(&span["end_time_unix_nano"]) > number(&span["start_time_unix_nano"]));
        let names: BTreeSet<_> = spans.iter().map(|(_, span)| span["name"].as_str().unwrap()).collect();
        assert!(names.contains("GET /v1/tasks/{id}") && names.contains("POST /oauth2/introspect"), "{names:?}");

        // What is counted is what a scraper reads.
        let metrics = collector.read("metrics").await;
        let last = |name: &str| metrics.iter().rev().find(|(_, metric)| metric["name"] == name).map(|(_, metric)| metric.clone()).expect("a metric");
        let declared = last("remit_tasks_declared_total");
        assert_eq!(declared["sum"]["is_monotonic"], true);
        assert_eq!(declared["sum"]["aggregation_temporality"], "AGGREGATION_TEMPORALITY_CUMULATIVE");
        assert_eq!(declared["sum"]["data_points"][0]["as_double"], 1.0);
        assert_eq!(last("remit_live_tasks")["gauge"]["data_points"][0]["as_double"], 0.0);
        let took = last("remit_http_request_duration_seconds");
        let of_declare = took["histogram"]["data_points"].as_array().unwrap().iter().find(|point| attribute(point, "route") == "/v1/tasks" && attribute(point, "method") == "POST");
        assert_eq!(of_declare.unwrap()["count"], "1");

        // Whoever can read at the collector learns no secret there.
        let bodies: Vec<_> = requests.iter().map(|(signal, _, body)| (format!("what was sent as {signal}"), body.to_vec())).collect();
        let found = secrets::leaks(secrets::mark(stand.dir.path()), &bodies);
        assert!(found.is_empty() && bodies.len() >= 3, "{found:?}");
    }
}

/// Gone, refusing, or hanging: no request waits for it, what is left out is counted, and the broker ends in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_take_it_holds_nothing_up() {
    let collector = Collector::start().await;
    let mut stand = Stand::new(Store::Embedded).await;
    with_collector(&mut stand, &collector.url).await;
    collector.answer.store(503, Ordering::SeqCst);
    let before = dropped(&stand, "logs").await;
    stand.task_with_token().await;
    for signal in ["logs", "traces", "metrics"] {
        wait_for("the count", || async { dropped(&stand, signal).await > before }).await;
    }
    collector.answer.store(HANGS, Ordering::SeqCst);
    let begun = Instant::now();
    for _ in 0..50 {
        let run = stand
            .issuer
            .evidence(&stand.broker.url, json!({"run_id": remit::id::LeaseId::random().unwrap().to_string()}));
        stand.post("/v1/tasks", &run, declaration()).await.expect(StatusCode::CREATED);
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let took = stand.broker.stop().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    // All of it is on record nevertheless.
    let declared = audit_of(&stand.dir.path().join("broker-audit"));
    assert_eq!(declared.iter().filter(|line| line["event"] == "task_declared").count(), 51);
    // And from the next one on it is taken again.
    collector.answer.store(200, Ordering::SeqCst);
    stand.broker = Server::start(&stand.broker.config.clone()).await;
    stand.task_with_token().await;
    wait_for("the log", || async { !collector.numbers().await.is_empty() }).await;
}

/// What is too much at once comes in pieces, in order; what is too much by itself is left out, and counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_at_once_is_sent_in_pieces() {
    let collector = Collector::start().await;
    let mut stand = Stand::new(Store::Embedded).await;
    with_collector(&mut stand, &collector.url).await;
    collector.most.store(1900, Ordering::SeqCst);
    let before = dropped(&stand, "logs").await;
    let sent = async || collector.numbers().await;
    stand.task_with_token().await;
    for _ in 0..6 {
        futures_util::future::join_all((0..8).map(|_| stand.get("/v1/tasks", VIEWER))).await;
    }
    let mut long = declaration();
    long["environment"] = "production".into();
    long["purpose"] = "x".repeat(900).into();
    long["context"]["command"] = "y".repeat(900).into();
    let large = stand.declare(long).await;
    assert_eq!(large.status, StatusCode::FORBIDDEN);
    stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK);
    let lines = stand.whole_audit();
    let of = |id: &str| lines.iter().find(|line| line["request"] == *id).unwrap();
    let large = of(large.headers["x-request-id"].to_str().unwrap());
    assert!(large.to_string().len() > 1900, "{large}");
    let last = lines.last().unwrap()["sequence"].as_u64().unwrap();
    wait_for("all of it", || async { sent().await.contains(&last) }).await;
    let looks = lines.iter().filter(|line| line["at"] == "tasks").map(|line| line["sequence"].as_u64().unwrap());
    let numbers = sent().await;
    assert!(looks.into_iter().all(|look| numbers.contains(&look)), "{numbers:?}");
    assert!(!numbers.contains(&large["sequence"].as_u64().unwrap()));
    let missing = (*numbers.first().unwrap()..=last).filter(|number| !numbers.contains(number)).count() as u64;
    assert_eq!(dropped(&stand, "logs").await - before, missing);
    let order = collector.read("logs").await;
    assert!(order.is_sorted_by_key(|(_, log)| number(&attribute(log, "remit.audit.sequence"))));
    assert_eq!(dropped(&stand, "traces").await, 0);
}

/// What waits when the broker is asked to end is sent before it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_at_the_end_is_sent() {
    let collector = Collector::start().await;
    let mut stand = Stand::new(Store::Embedded).await;
    with_collector(&mut stand, &collector.url).await;
    let (task, _) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    stand.broker.stop().await;
    let on_disk = audit_of(&stand.dir.path().join("broker-audit"));
    let ended = on_disk.iter().find(|line| line["event"] == "task_ended").unwrap();
    assert!(collector.numbers().await.contains(&ended["sequence"].as_u64().unwrap()));
    let spans = collector.read("traces").await;
    assert!(spans.iter().any(|(_, span)| span["name"] == "POST /v1/tasks/{id}/revoke"), "{spans:#?}");
}

/// What would tell others, or has no form, is refused before anything starts, without saying what is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsafe_collector_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ci-keys.json"), crate::support::Issuer::new().jwks().to_string()).unwrap();
    let config = crate::support::write_config(dir.path(), "broker", "redb:remit.redb", "");
    let working = fs::read_to_string(&config).unwrap();
    secret_file(&dir.path().join("open"), "x-api-key: hunter2\n", 0o644);
    secret_file(&dir.path().join("formless"), "hunter2\n", 0o600);
    secret_file(&dir.path().join("good"), "x-api-key: hunter2\n", 0o600);
    let good = "endpoint = \"http://127.0.0.1:1\"";
    for (section, words) in [
        ("endpoint = \"http://collector.example.com\"".to_owned(), "`telemetry.otlp.endpoint` is an https URL"),
        (
            "endpoint = \"https://u:hunter2@collector.example.com\"".to_owned(),
            "`telemetry.otlp.endpoint` is an https URL",
        ),
        (format!("{good}\nheaders_file = \"open\""), "can be read by others than its owner: run chmod 600"),
        (format!("{good}\nheaders_file = \"none\""), "none is not there"),
        (format!("{good}\nheaders_file = \"formless\""), "formless holds headers, one `name: value` a line"),
        (format!("{good}\nheaders = \"x-api-key: hunter2\""), "unknown field `headers`"),
        (format!("{good}\nca_file = \"none\""), "none: No such file"),
        (format!("{good}\nevery = 0"), "`telemetry.otlp.every` is 1 to 3600 seconds"),
        (format!("{good}\nheaders_file = \"good\""), ""),
    ] {
        fs::write(&config, format!("{working}\n[telemetry.otlp]\n{section}\n")).unwrap();
        for arguments in [&["serve", "--config"][..], &["config", "check", "--config"]] {
            if words.is_empty() && arguments[0] == "serve" {
                continue;
            }
            let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"));
            command.args(arguments).arg(&config).kill_on_drop(true);
            let output =
                tokio::time::timeout(Duration::from_secs(20), command.output()).await.expect("it ends").unwrap();
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert_eq!(output.status.success(), words.is_empty(), "{section}: {said}");
            assert!(said.contains(words) && !said.contains("hunter2"), "{section}: {said}");
        }
    }
}
