//! An intruder's half hour with a running broker: what HTTP lets one say, and what nobody should.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{Answer, GIT, GIT_TOKEN, RESPONDER, Stand, Store, VIEWER, declaration, socket_client, text};

const UNKNOWN: &str = "task_01jd0000000000000000000000";

/// What came back over a plain TCP connection, up to its end or for five seconds.
pub(crate) struct Raw {
    status: u16,
    pub(crate) text: String,
    /// Whether the broker closed the connection.
    pub(crate) closed: bool,
}

impl Raw {
    pub(crate) async fn send(stand: &Stand, request: &[u8]) -> Self {
        let mut stream = TcpStream::connect(stand.broker.url.trim_start_matches("http://")).await.unwrap();
        // It may have answered and closed before it has read everything.
        let _ = timeout(Duration::from_secs(5), stream.write_all(request)).await;
        let mut bytes = Vec::new();
        let closed = timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await.is_ok();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Self { status, text, closed }
    }

    pub(crate) fn answers(&self) -> usize {
        self.text.matches("HTTP/1.").count()
    }

    /// A refusal that says nothing it should not. What is not even HTTP gets an empty answer.
    #[track_caller]
    fn refused(&self, statuses: &[u16]) {
        assert!(statuses.contains(&self.status), "{}", self.text);
        let lower = self.text.to_ascii_lowercase();
        quiet(&lower);
        let (head, body) = lower.split_once("\r\n\r\n").unwrap_or_default();
        assert!(!head.contains("\nserver:") && !head.contains("x-powered-by"), "{head}");
        assert!(body.is_empty() || head.contains("x-request-id: ") && head.contains("no-store"), "{head}");
    }
}

/// What would tell of the inside of the broker.
pub(crate) const INSIDE: [&str; 12] =
    ["panicked", ".rs:", "src/", "redb", "redis", "serde", "axum", "hyper", "cedar", "/tmp/", "stack", "os error"];

/// Nothing of the inside of the broker.
#[track_caller]
fn quiet(text: &str) {
    for word in INSIDE {
        assert!(!text.contains(word), "`{word}` in {text}");
    }
}

/// What every error answer has.
#[track_caller]
fn proper(answer: &Answer) {
    let header = |name: &str| answer.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let about = format!("{} {:?} {}", answer.status, answer.headers, answer.text);
    assert!(answer.status.is_client_error(), "{about}");
    let id = header("x-request-id").unwrap_or_else(|| panic!("no request id: {about}"));
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{about}");
    assert_eq!(header("cache-control").as_deref(), Some("no-store"), "{about}");
    assert_eq!(header("x-content-type-options").as_deref(), Some("nosniff"), "{about}");
    assert!(header("server").is_none() && header("x-powered-by").is_none(), "{about}");
    quiet(&answer.text.to_ascii_lowercase());
    if !answer.text.is_empty() {
        let kind = header("content-type");
        assert!(matches!(kind.as_deref(), Some("application/problem+json" | "application/json")), "{about}");
        let body = answer.json();
        assert_eq!(body["request_id"], id, "{about}");
        assert!(body["code"].is_string() || body["error"].is_string(), "{about}");
    }
}

async fn ready(stand: &Stand) {
    let answer = stand.client.get(stand.url("/readyz")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// A JSON body to `/v1/tasks`, with evidence that is good.
async fn declare(stand: &Stand, body: Vec<u8>) -> Answer {
    let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence());
    Answer::of(request.header("content-type", "application/json").body(body).send().await.unwrap()).await
}

async fn token_form(stand: &Stand, body: Vec<u8>) -> Answer {
    let request = stand.client.post(stand.url("/oauth2/token")).body(body);
    Answer::of(request.header("content-type", "application/x-www-form-urlencoded").send().await.unwrap()).await
}

#[tokio::test]
async fn a_path_leads_to_one_place() {
    let stand = Stand::new(Store::Embedded).await;
    let (task, _) = stand.task_with_token().await;
    for id in [
        "..%2f..%2fjwks",
        "..%2f",
        "%2e%2e",
        "%2e%2e%2fjwks",
        "%00",
        "%0a",
        "%20",
        "%ff",
        "%c0%ae",
        "%e2%80%8b",
        "%25",
        "%",
        "%2",
        "%zz",
        ";x",
        ".",
        "...",
        "~",
        "*",
        "task_",
        "TASK_01JD0000000000000000000000",
        "0",
        "-1",
        "null",
        "undefined",
        "%7bid%7d",
        "task_01jd0000000000000000000000-",
        "task_01jd0000000000000000000000-0123456789-0",
    ] {
        for (method, path) in [("GET", format!("/v1/tasks/{id}")), ("POST", format!("/v1/tasks/{id}/revoke"))] {
            let body = "{\"reason\":\"x\"}";
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {RESPONDER}\r\n"
            );
            let rest = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let answer = Raw::send(&stand, format!("{head}{rest}").as_bytes()).await;
            answer.refused(&[400, 404]);
            assert!(answer.text.contains("application/problem+json"), "{path}: {}", answer.text);
        }
    }
    // A task's own path, decorated: never another way to reach it.
    for path in [
        format!("//v1/tasks/{task}"),
        format!("/v1//tasks/{task}"),
        format!("/v1/tasks//{task}"),
        format!("/v1/tasks/{task}/"),
        format!("/v1/tasks/{task};x"),
        format!("/v1/tasks/{task};/revoke"),
        format!("/v1/tasks/{task}%00"),
        format!("/v1/tasks/{task}%20"),
        format!("/v1/tasks/{task}%2f"),
        format!("/v1/tasks/{task}.json"),
        format!("/v1/./tasks/{task}"),
        format!("/v1/x/../tasks/{task}"),
        format!("/V1/tasks/{task}"),
        format!("/v1/tasks/{}", task.to_uppercase()),
        format!("/v1/tasks/{task}\\revoke"),
    ] {
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {VIEWER}\r\n\r\n");
        Raw::send(&stand, head.as_bytes()).await.refused(&[400, 404, 405]);
    }
    // Neither a header nor a parameter changes the method or the place.
    for name in ["x-http-method-override", "x-original-url", "x-rewrite-url", "x-forwarded-prefix"] {
        let request = stand.client.get(stand.url("/healthz")).header(name, format!("/v1/tasks/{task}/revoke"));
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK)["state"], "active");
    ready(&stand).await;
}

#[tokio::test]
async fn what_is_large_is_refused_and_not_feared() {
    let stand = Stand::new(Store::Embedded).await;
    let headers = |count: usize, size: usize| {
        let line = |n| format!("x-{n}: {}\r\n", "a".repeat(size));
        let lines = (0..count).map(line).collect::<Vec<_>>().concat();
        format!("GET /v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n")
    };
    // Whether it is too large or only without evidence, it is refused.
    Raw::send(&stand, headers(1, 100 * 1024).as_bytes()).await.refused(&[400, 401, 431]);
    Raw::send(&stand, headers(1, 1024 * 1024).as_bytes()).await.refused(&[400, 431]);
    Raw::send(&stand, headers(10_000, 1).as_bytes()).await.refused(&[400, 431]);
    let line = format!("GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "a".repeat(100_000));
    Raw::send(&stand, line.as_bytes()).await.refused(&[400, 404, 414, 431]);
    ready(&stand).await;

    for deep in
        [format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)), "{\"purpose\":".repeat(5_000), "[".repeat(60_000)]
    {
        let answer = declare(&stand, deep.into_bytes()).await;
        proper(&answer);
        answer.refused(400, "invalid_request");
    }
    let nested = format!("authorization_details={}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let answer = token_form(&stand, nested.into_bytes()).await;
    proper(&answer);
    let many = (0..5_000).map(|n| format!("p{n}=v&")).collect::<Vec<_>>().concat();
    let answer = token_form(&stand, many.into_bytes()).await;
    proper(&answer);
    answer.oauth_refused(400, "invalid_request");
    for (path, kind) in [("/v1/tasks", "application/json"), ("/oauth2/token", "application/x-www-form-urlencoded")] {
        let request = stand.client.post(stand.url(path)).bearer_auth(stand.evidence()).header("content-type", kind);
        let answer = Answer::of(request.body(vec![b'a'; 65 * 1024]).send().await.unwrap()).await;
        proper(&answer);
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    let wide: Vec<Value> = (0..2_000).map(|_| json!({})).collect();
    let answer = declare(&stand, json!({"authorization_details": wide}).to_string().into_bytes()).await;
    answer.refused(400, "invalid_request");
    let answer = declare(&stand, format!("{{\"ttl\":{}}}", "9".repeat(10_000)).into_bytes()).await;
    answer.refused(400, "invalid_request");
    ready(&stand).await;
}

/// A body that never ends holds one connection, and nobody else.
#[tokio::test]
async fn a_body_without_end_disturbs_nobody() {
    let stand = Stand::new(Store::Embedded).await;
    let address = stand.broker.url.trim_start_matches("http://").to_owned();
    let mut open = Vec::new();
    for n in 0..80 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head: &[u8] = if n % 2 == 0 {
            b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
        } else {
            b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: appl"
        };
        stream.write_all(head).await.unwrap();
        open.push(stream);
    }
    let begun = Instant::now();
    for _ in 0..10 {
        stand.declare(declaration()).await.expect(StatusCode::CREATED);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "others waited {:?}", begun.elapsed());
    // Endless and fast: it ends with the limit.
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let evidence = stand.evidence();
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {evidence}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
    let endless = async { while stream.write_all(chunk.as_bytes()).await.is_ok() {} };
    timeout(Duration::from_secs(10), endless).await.expect("the broker stops reading long before the deadline");
    // Half a head is waited for only so long, the slow body a little longer, and that one is told so.
    for (n, mut stream) in open.into_iter().enumerate().collect::<Vec<_>>().into_iter().rev() {
        let (seconds, status) = if n % 2 == 0 { (17, "HTTP/1.1 408 ") } else { (12, "") };
        if n % 2 == 0 && n > 0 {
            continue;
        }
        let mut bytes = Vec::new();
        let left = (begun + Duration::from_secs(seconds)).saturating_duration_since(Instant::now());
        timeout(left, stream.read_to_end(&mut bytes)).await.expect("a deadline").unwrap();
        let said = String::from_utf8_lossy(&bytes).into_owned();
        assert!(said.starts_with(status) && said.is_empty() == status.is_empty(), "{said}");
        assert!(status.is_empty() || said.contains("x-request-id: "), "{said}");
    }
    ready(&stand).await;
}

/// Whoever takes every connection that TCP has keeps nobody from the Unix socket, and does not keep them for long:
/// whatever it is that they do not finish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_run_out_on_one_listener_and_for_a_while() {
    let stand = Stand::new(Store::Embedded).await;
    let (task, token) = stand.task_with_token().await;
    let address = stand.broker.url.trim_start_matches("http://").to_owned();
    let mut unread = TcpStream::connect(&address).await.unwrap();
    let asked = "GET /.well-known/oauth-authorization-server HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    while timeout(Duration::from_millis(500), unread.write_all(asked.as_bytes())).await.is_ok_and(|sent| sent.is_ok()) {
    }
    let mut open = Vec::new();
    // More than the listener has room for, and no more than the system queues.
    for n in 0..450 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let begin: &[u8] = match n % 4 {
            0 => b"",
            1 => b"PRI * HT",
            2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            _ => b"GET /healthz HTTP/1.1\r\nHos",
        };
        stream.write_all(begin).await.unwrap();
        open.push(stream);
    }
    let begun = Instant::now();
    let fresh = || reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let shut_out = fresh().get(stand.url("/healthz")).timeout(Duration::from_secs(2)).send().await;
    assert!(shut_out.is_err(), "there is no bound");
    let revoke = socket_client(&stand.broker.socket).post(format!("http://localhost/v1/tasks/{task}/revoke"));
    let answer =
        revoke.bearer_auth(RESPONDER).json(&json!({"reason": "r"})).timeout(Duration::from_secs(2)).send().await;
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
    let answer = fresh().get(stand.url("/healthz")).timeout(Duration::from_secs(30)).send().await;
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
    assert!(begun.elapsed() < Duration::from_secs(18), "{:?}", begun.elapsed());
    for mut stream in open.drain(..380) {
        let left = (begun + Duration::from_secs(18)).saturating_duration_since(Instant::now());
        // Its farewell, or that of HTTP/2, or nothing but the end.
        let _ = timeout(left, stream.read_to_end(&mut Vec::new())).await.expect("closed");
    }
    let _ = timeout(Duration::from_secs(5), unread.read_to_end(&mut Vec::new())).await.expect("closed");
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
}

/// A use case is carried out whole, or not at all, whoever waits for its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_leaves_nothing_half_done() {
    let stand = Stand::new(Store::Embedded).await;
    let address = stand.broker.url.trim_start_matches("http://").to_owned();
    let body = declaration().to_string();
    let evidence = stand.evidence();
    for n in 0..50 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let kind = "Content-Type: application/json\r\n";
        let headers = format!("{kind}Authorization: Bearer {evidence}\r\nContent-Length: {}\r\n", body.len());
        stream.write_all(&post("/v1/tasks", &headers, body.as_bytes())).await.unwrap();
        // Sooner or later, into each step of it.
        tokio::time::sleep(Duration::from_micros(300 * n)).await;
        drop(stream);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let shown = stand.get("/v1/tasks?limit=100", VIEWER).await.expect(StatusCode::OK);
    let audit = stand.audit();
    let declared = |task: &str| audit.iter().any(|line| line["event"] == "task_declared" && line["task"] == task);
    let tasks = shown["tasks"].as_array().unwrap();
    assert!(!tasks.is_empty());
    for task in tasks {
        assert!(declared(&text(task, "task")), "{task} is not in the audit log");
    }
}

/// Where a request ends is never open to two readings.
#[tokio::test]
async fn nothing_is_smuggled_in() {
    let stand = Stand::new(Store::Embedded).await;
    let second = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let keep = |headers: &str, body: &str| {
        format!("POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}\r\n{body}{second}")
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (headers, body) in [
        (format!("Content-Length: 4\r\n{chunked}"), "0\r\n\r\n"),
        (format!("{chunked}Content-Length: 4\r\n"), "0\r\n\r\n"),
        ("Content-Length: 4\r\nContent-Length: 5\r\n".to_owned(), "null"),
        ("Content-Length: 4, 5\r\n".to_owned(), "null"),
        ("Content-Length: +4\r\n".to_owned(), "null"),
        ("Content-Length: -1\r\n".to_owned(), ""),
        ("Content-Length: 0x4\r\n".to_owned(), "null"),
        ("Content-Length: 18446744073709551616\r\n".to_owned(), "null"),
        ("Transfer-Encoding: identity\r\n".to_owned(), "null"),
        ("Transfer-Encoding: chunked, identity\r\n".to_owned(), "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n".to_owned(), "0\r\n\r\n"),
        (format!("{chunked} folded\r\n"), "0\r\n\r\n"),
        ("X: a\r\n b: c\r\n".to_owned(), ""),
        ("X\0: a\r\n".to_owned(), ""),
        ("X: a\0b\r\n".to_owned(), ""),
        ("X: a\rb\r\n".to_owned(), ""),
        (": a\r\n".to_owned(), ""),
        ("X Y: a\r\n".to_owned(), ""),
    ] {
        let answer = Raw::send(&stand, keep(&headers, body).as_bytes()).await;
        answer.refused(&[400, 401]);
        assert!(answer.closed && answer.answers() == 1, "{headers:?}: {}", answer.text);
    }
    // Chunks that are none.
    for body in ["zz\r\n\r\n", "-1\r\n\r\n", "ffffffffffffffff1\r\n\r\n", "1\r\n{}\r\n0\r\n\r\n", "1;\n\r\n"] {
        let headers =
            format!("Content-Type: application/json\r\n{chunked}Authorization: Bearer {}\r\n", stand.evidence());
        let answer = Raw::send(&stand, &post("/v1/tasks", &headers, body.as_bytes())).await;
        answer.refused(&[400]);
        assert!(answer.text.contains("\"code\":\"invalid_request\""), "{body:?}: {}", answer.text);
        let headers = format!("Content-Type: application/x-www-form-urlencoded\r\n{chunked}");
        let answer = Raw::send(&stand, &post("/oauth2/token", &headers, body.as_bytes())).await;
        answer.refused(&[400]);
        assert!(answer.text.contains("\"error\":\"invalid_request\""), "{body:?}: {}", answer.text);
    }
    // What is no HTTP/1.1 request at all.
    for text in [
        "GET /v1/tasks\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET /v1/tasks HTTP/9.9\r\n\r\n",
        "G\u{e9}T / HTTP/1.1\r\n\r\n",
        "GET / v1 HTTP/1.1\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n",
        "GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let answer = Raw::send(&stand, text.as_bytes()).await;
        assert!(
            answer.text.is_empty() || (400..500).contains(&answer.status) || answer.status == 505,
            "{text:?}: {}",
            answer.text
        );
        quiet(&answer.text.to_ascii_lowercase());
    }
    ready(&stand).await;
}

#[tokio::test]
async fn methods_and_versions() {
    let stand = Stand::new(Store::Embedded).await;
    let (task, _) = stand.task_with_token().await;
    for path in [
        "/v1/tasks".to_owned(),
        format!("/v1/tasks/{task}"),
        format!("/v1/tasks/{task}/revoke"),
        "/oauth2/token".into(),
        "/jwks".into(),
    ] {
        for method in ["OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "CONNECT", "PROPFIND", "get", "X"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            if method == Method::CONNECT {
                continue;
            }
            let request = stand.client.request(method.clone(), stand.url(&path)).bearer_auth(RESPONDER);
            let answer = Answer::of(request.header("x-echo", "boomerang").send().await.unwrap()).await;
            proper(&answer);
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert!(answer.headers.contains_key("allow") && !answer.text.contains("boomerang"), "{method} {path}");
            assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{method} {path}");
        }
    }
    let connect = Raw::send(&stand, b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    connect.refused(&[400, 404, 405]);
    // HEAD is GET without the body; whoever may not see a task may not see its length.
    let head = async |path: &str, bearer: Option<&str>| stand.call(Method::HEAD, path, bearer, None).await;
    assert_eq!(head("/jwks", None).await.status, StatusCode::OK);
    assert_eq!(head(&format!("/v1/tasks/{task}"), None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(head(&format!("/v1/tasks/{task}"), Some(&stand.other_instance())).await.status, StatusCode::NOT_FOUND);
    let shown = head(&format!("/v1/tasks/{task}"), Some(VIEWER)).await;
    assert_eq!((shown.status, shown.text.as_str()), (StatusCode::OK, ""));
    // HTTP/1.0 is served like any other, without a `Host`, and closed.
    let old = Raw::send(&stand, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(old.status == 200 && old.closed, "{}", old.text);
    Raw::send(&stand, b"GET /v1/tasks HTTP/1.0\r\n\r\n").await.refused(&[401]);
    ready(&stand).await;
}

#[tokio::test]
async fn text_is_utf8_and_json_is_json() {
    let stand = Stand::new(Store::Embedded).await;
    let body = declaration().to_string();
    let swapped = |from: &str, to: &[u8]| {
        let (before, after) = body.split_once(from).unwrap();
        [before.as_bytes(), to, after.as_bytes()].concat()
    };
    for (name, body) in [
        ("invalid UTF-8", swapped("Fix", b"F\xffx")),
        ("overlong", swapped("Fix", b"F\xc0\xafx")),
        ("a raw NUL", swapped("Fix", b"F\0x")),
        ("an escaped NUL", swapped("Fix", b"F\\u0000x")),
        ("a lone surrogate", swapped("Fix", b"F\\ud800x")),
        ("an escape sequence", swapped("Fix", b"F\\u001b[2Jx")),
        ("UTF-16", body.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("a byte order mark", [b"\xef\xbb\xbf", body.as_bytes()].concat()),
        ("two documents", format!("{body}{body}").into_bytes()),
        ("a comment", format!("/**/{body}").into_bytes()),
        ("a trailing comma", swapped("\"ttl\":600", b"\"ttl\":600,")),
        ("NaN", swapped("600", b"NaN")),
        ("infinity", swapped("600", b"1e999")),
        ("a repeated member", swapped("\"ttl\":600", b"\"ttl\":600,\"ttl\":600")),
        ("a repeated member, escaped", swapped("\"ttl\":600", b"\"ttl\":600,\"\\u0074tl\":600")),
        ("an unknown member", swapped("\"ttl\":600", b"\"ttl\":600,\"__proto__\":{}")),
        ("nothing", Vec::new()),
        ("null", b"null".to_vec()),
    ] {
        let answer = declare(&stand, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name}: {}", answer.text);
        proper(&answer);
        answer.refused(400, "invalid_request");
    }
    for body in [
        &b"grant_type=%ff"[..],
        b"grant_type=a\xff",
        b"grant_type=%00",
        b"\0=\0",
        b"%",
        b"=",
        b"&&&",
        b"grant_type",
        b"grant%5ftype=x&grant_type=x",
    ] {
        let answer = token_form(&stand, body.to_vec()).await;
        proper(&answer);
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}: {}", body.escape_ascii(), answer.text);
    }
    for kind in [
        "text/plain",
        "application/json5",
        "multipart/form-data; boundary=x",
        "application/xml",
        "",
        "application/problem+json",
    ] {
        let request =
            stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).header("content-type", kind);
        let answer = Answer::of(request.body(body.clone()).send().await.unwrap()).await;
        proper(&answer);
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
    }
    // A compressed body is not unpacked.
    let request =
        stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).header("content-encoding", "gzip");
    let answer = Answer::of(
        request.header("content-type", "application/json").body(&b"\x1f\x8b\x08\0"[..]).send().await.unwrap(),
    );
    answer.await.refused(400, "invalid_request");
    ready(&stand).await;
}

#[tokio::test]
async fn headers_of_a_caller_stay_the_callers() {
    let stand = Stand::new(Store::Embedded).await;
    let good = stand.evidence();
    let with = async |headers: &[(&str, &str)]| {
        let mut request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(&good).json(&declaration());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.send().await.unwrap()).await
    };
    let long = "k".repeat(10 * 1024);
    for keys in [
        &[("idempotency-key", "a"), ("idempotency-key", "a")][..],
        &[("idempotency-key", "a"), ("idempotency-key", "b")],
        &[("idempotency-key", &long)],
        &[("idempotency-key", "")],
        &[("idempotency-key", "é")],
    ] {
        let answer = with(keys).await;
        proper(&answer);
        answer.refused(400, "invalid_request");
    }
    for id in ["mine", "00000000000000000000000000000000", "a\tb"] {
        let answer = with(&[("x-request-id", id), ("traceparent", id), ("x-correlation-id", id)]).await;
        let given = answer.headers["x-request-id"].to_str().unwrap().to_owned();
        assert!(given != id && !format!("{:?}", answer.headers).contains(id), "{:?}", answer.headers);
        let audit = stand.audit();
        assert_eq!(audit.last().unwrap()["request"], given.as_str());
    }
    // Whoever sits in front may say anything about who is calling; nobody listens.
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-user", "root"),
        ("x-remote-user", "rita"),
        ("x-forwarded-client-cert", "By=x"),
        ("forwarded", "for=127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("cookie", "session=1"),
        ("x-api-key", RESPONDER),
        ("proxy-authorization", "Bearer responder-token"),
    ] {
        let request = stand.client.get(stand.url("/v1/tasks")).header(name, value);
        Answer::of(request.send().await.unwrap()).await.refused(401, "evidence_invalid");
    }
    for host in ["evil.example.com", "127.0.0.1:1", "broker.example.com@evil.example.com"] {
        let request = stand.client.get(stand.url("/.well-known/oauth-authorization-server")).header("host", host);
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert!(
            !answer.text.contains("evil") && answer.json()["issuer"] == stand.broker.url.as_str(),
            "{}",
            answer.text
        );
    }
    let upgrade = b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n";
    Raw::send(&stand, upgrade).await.refused(&[400, 401]);
    let hop = format!(
        "GET /v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close, authorization\r\nAuthorization: Bearer {VIEWER}x\r\n\r\n"
    );
    Raw::send(&stand, hop.as_bytes()).await.refused(&[400, 401]);
    ready(&stand).await;
}

/// Knowing what something is called is not being allowed to use it.
#[tokio::test]
async fn an_id_is_not_a_capability() {
    let stand = Stand::new(Store::Embedded).await;
    let declared = stand.declare(declaration()).await.expect(StatusCode::CREATED);
    let (task, lease) = (text(&declared, "task"), text(&declared["credentials"][0], "lease"));
    let ids = [
        &*task,
        &*lease,
        &text(&declared, "authority_hash"),
        &text(&declared, "workload"),
        &text(&declared, "instance"),
    ];
    for id in ids {
        let at = |path: &str| format!("/v1/tasks/{task}{path}");
        let credentials = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
        stand.get("/v1/tasks", id).await.refused(401, "evidence_invalid");
        stand.get(&at(""), id).await.refused(401, "evidence_invalid");
        stand.post("/v1/tasks", id, declaration()).await.refused(401, "evidence_invalid");
        stand.post(&at("/credentials"), id, credentials).await.refused(401, "evidence_invalid");
        stand.post(&at("/complete"), id, json!({})).await.refused(401, "evidence_invalid");
        stand.post(&at("/revoke"), id, json!({"reason": "r"})).await.refused(401, "evidence_invalid");
        stand.form("/oauth2/introspect", Some(id), &[("token", id)]).await.oauth_refused(401, "invalid_client");
        assert_eq!(stand.introspect(id).await, json!({"active": false}));
    }
    // A lease is no task, and as a path segment it is malformed for everybody.
    stand.get(&format!("/v1/tasks/{lease}"), VIEWER).await.refused(400, "invalid_request");
    stand
        .post(&format!("/v1/tasks/{lease}/revoke"), RESPONDER, json!({"reason": "r"}))
        .await
        .refused(400, "invalid_request");
    // For a stranger the task that is there and one that is not are the same, word for word.
    let other = stand.other_instance();
    let mut answers = Vec::new();
    for id in [&*task, UNKNOWN] {
        let mut shown = stand.get(&format!("/v1/tasks/{id}"), &other).await.refused(404, "not_found");
        let mut ended =
            stand.post(&format!("/v1/tasks/{id}/complete"), &other, json!({})).await.refused(404, "not_found");
        let mut revoked = stand
            .post(&format!("/v1/tasks/{id}/revoke"), &other, json!({"reason": "r"}))
            .await
            .refused(404, "not_found");
        for body in [&mut shown, &mut ended, &mut revoked] {
            body.as_object_mut().unwrap().remove("request_id");
        }
        answers.push((shown, ended, revoked));
    }
    assert_eq!(answers[0], answers[1]);
    // A credential opens nothing at the broker, and a service's token nothing but introspection.
    let token = text(&declared["credentials"][0], "access_token");
    stand.get(&format!("/v1/tasks/{task}"), &token).await.refused(401, "evidence_invalid");
    stand.get(&format!("/v1/tasks/{task}"), GIT_TOKEN).await.refused(403, "policy_denied");
    stand.post("/v1/tasks", GIT_TOKEN, declaration()).await.refused(403, "policy_denied");
    assert_eq!(stand.introspect(&token).await["active"], true);
    ready(&stand).await;
}

/// Every kind of error answer, and what all of them have in common.
#[tokio::test]
async fn every_error_is_a_proper_one() {
    let stand = Stand::new(Store::Embedded).await;
    let (task, _) = stand.task_with_token().await;
    let good = stand.evidence();
    let get = Method::GET;
    let own = format!("/v1/tasks/{task}");
    for answer in [
        stand.call(get.clone(), "/", None, None).await,
        stand.call(get.clone(), "/nowhere", None, None).await,
        stand.call(get.clone(), "/oauth2/nowhere", None, None).await,
        stand.call(get.clone(), "/metrics/../v1/tasks", None, None).await,
        stand.call(get.clone(), &own, None, None).await,
        stand.call(get.clone(), &own, Some("x"), None).await,
        stand.call(get.clone(), &own, Some(&stand.other_instance()), None).await,
        stand.call(get.clone(), "/v1/tasks?limit=0", Some(VIEWER), None).await,
        stand.call(get.clone(), "/v1/tasks?limit=x", Some(VIEWER), None).await,
        stand.call(get.clone(), "/v1/tasks?cursor=%ff", Some(VIEWER), None).await,
        stand.call(get.clone(), "/v1/tasks?limit=1&limit=2", Some(VIEWER), None).await,
        stand.call(get.clone(), "/v1/tasks?state=active%27--", Some(VIEWER), None).await,
        stand.call(get.clone(), "/v1/tasks/%ff", Some(VIEWER), None).await,
        stand.call(Method::POST, "/v1/tasks", Some(&good), None).await,
        stand.post("/v1/tasks", &good, json!({})).await,
        stand.post("/v1/tasks", &good, json!({"environment": "production"})).await,
        stand.post(&format!("{own}/revoke"), VIEWER, json!({"reason": "r"})).await,
        stand.post(&format!("{own}/revoke"), RESPONDER, json!({})).await,
        stand.post(&format!("{own}/credentials"), RESPONDER, json!({"credentials": []})).await,
        stand.form("/oauth2/token", None, &[]).await,
        stand.form("/oauth2/introspect", None, &[("token", "x")]).await,
        stand.form("/oauth2/introspect", Some(GIT_TOKEN), &[]).await,
    ] {
        proper(&answer);
    }
    // Two answers never have one id.
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let answer = stand.call(get.clone(), "/nowhere", None, None).await;
        assert!(ids.insert(answer.headers["x-request-id"].clone().to_str().unwrap().to_owned()));
    }
    ready(&stand).await;
}
