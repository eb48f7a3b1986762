//! `remit verifier`: what a proxy or a service on its machine is told, and that nothing gets past it which the broker has ended.

mod deploy;
#[cfg(feature = "grpc")]
mod envoy;
mod nginx;

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

use crate::{
    both,
    mtls::{Place, own},
    support::{
        Answer, Body, GIT, GIT_TOKEN, OWNER, Prover, REGISTRY, Stand, declaration, free_port, pki::Identity, secrets,
        text, wait_for,
    },
};

/// Until when a revoke has to be here.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A running `remit verifier`. When it goes away, what it said is searched for secrets.
pub(crate) struct Sidecar {
    pub(crate) url: String,
    child: Child,
    pub(crate) client: reqwest::Client,
    log: PathBuf,
    since: usize,
}

impl Sidecar {
    /// For this audience, once it knows what is revoked.
    pub(crate) async fn of(stand: &Stand, audience: &str, more: &[&str]) -> Self {
        let sidecar = Self::starting(stand, audience, more);
        wait_for("the verifier", || async { sidecar.get("/readyz", &[]).await.status == StatusCode::OK }).await;
        sidecar
    }

    async fn new(stand: &Stand) -> Self {
        Self::of(stand, GIT, &[]).await
    }

    fn starting(stand: &Stand, audience: &str, more: &[&str]) -> Self {
        let (dir, port) = (stand.dir.path(), free_port());
        let (since, log) = (secrets::mark(dir), dir.join(format!("verifier-{port}.log")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["verifier", "--broker", &stand.broker.url, "--audience", audience]);
        command
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(more)
            .env("REMIT_LOG", "trace")
            .env("no_proxy", "*");
        let file = fs::File::create(&log).expect("a file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file).kill_on_drop(true);
        let child = command.spawn().expect("remit starts");
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { url: format!("http://127.0.0.1:{port}"), child, client, log, since }
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Told {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        for (name, value) in headers {
            if let Some((_, token)) = value.split_once(' ') {
                secrets::note_token("a token", token);
            }
            request = request.header(*name, *value);
        }
        match request.send().await {
            Ok(response) => Told::of(response).await,
            // Nobody is there.
            Err(_) => Told { status: StatusCode::BAD_GATEWAY, headers: header::HeaderMap::new(), text: String::new() },
        }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Told {
        self.ask(Method::GET, path, headers).await
    }

    async fn introspect(&self, token: &str) -> Value {
        secrets::note_token("a token", token);
        let request = self.client.post(format!("{}/introspect", self.url)).form(&[("token", token)]);
        let told = Told::of(request.send().await.expect("an answer")).await;
        assert_eq!(told.status, StatusCode::OK);
        told.json()
    }

    /// What `/auth` says to a bearer token: the status.
    pub(crate) async fn bearer(&self, token: &str) -> u16 {
        self.get("/auth", &[("authorization", &format!("Bearer {token}"))]).await.status.as_u16()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let said = fs::read(&self.log).unwrap_or_default();
        if std::thread::panicking() {
            let said = String::from_utf8_lossy(&said);
            said.lines().filter(|line| line.contains("remit")).for_each(|line| eprintln!("{line}"));
        }
        secrets::expect_none(self.since, &[(self.log.display().to_string(), said)]);
    }
}

/// An answer.
#[derive(Debug)]
struct Told {
    status: StatusCode,
    headers: header::HeaderMap,
    text: String,
}

impl Told {
    async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, text: response.text().await.unwrap_or_default() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().expect("text")
    }

    /// Status and the first thing that it asks for.
    fn asks(&self) -> (u16, &str) {
        let asked = self.headers.get(header::WWW_AUTHENTICATE).map_or("", |value| value.to_str().expect("text"));
        (self.status.as_u16(), asked)
    }
}

const INVALID: (u16, &str) = (401, "Bearer error=\"invalid_token\"");

fn nginx(target: &str) -> [(&str, &str); 2] {
    [("x-original-method", "GET"), ("x-original-uri", target)]
}

fn traefik(target: &str) -> [(&str, &str); 2] {
    [("x-forwarded-method", "GET"), ("x-forwarded-uri", target)]
}

fn with<'a>(headers: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [headers, more].concat()
}

both! {
    async fn a_proxy_hears_who_calls_until_the_task_is_revoked(stand) {
        let token_file = stand.dir.path().join("git.token.txt");
        fs::write(&token_file, GIT_TOKEN).unwrap();
        let sidecar = Sidecar::of(&stand, GIT, &["--service-token-file", token_file.to_str().unwrap()]).await;
        let (task, token) = stand.task_with_token().await;
        let (_, other) = stand.task_with_token().await;
        let bearer = format!("Bearer {token}");
        let authorization = [("authorization", &*bearer)];
        for (method, path, said) in [
            (Method::GET, "/auth", with(&nginx("/notes?page=1"), &authorization)),
            (Method::POST, "/auth", with(&traefik("/notes"), &authorization)),
            (Method::HEAD, "/auth", authorization.to_vec()),
            (Method::GET, "/ext_authz/notes?page=1", authorization.to_vec()),
            (Method::DELETE, "/ext_authz/", authorization.to_vec()),
            (Method::PUT, "/ext_authz", authorization.to_vec()),
            (Method::GET, "/ext_authz//a/%2F/../b", authorization.to_vec()),
        ] {
            let told = sidecar.ask(method, path, &said).await;
            assert_eq!(told.status, StatusCode::OK, "{path}: {told:?}");
            let workload = "spiffe://example.com/ci/acme/payments";
            for (name, value) in [("task", &*task), ("workload", workload), ("subject", workload), ("owner", OWNER),
                ("privilege", "read"), ("kind", "ci"), ("sandbox", "sb-7f3"), ("actor", "")] {
                assert_eq!(told.header(&format!("remit-{name}")), value);
            }
            assert_eq!(told.header("remit-lease"), text(&crate::support::claims(&token), "jti"));
            assert_eq!(told.header("remit-expires"), crate::support::claims(&token)["exp"].to_string());
            assert_eq!((told.header("cache-control"), told.text.as_str()), ("no-store", ""));
        }
        let known = sidecar.introspect(&token).await;
        assert_eq!((&known["active"], &known["token_type"]), (&json!(true), &json!("Bearer")));
        assert_eq!(known["urn:remit:task"]["id"], task);
        assert_eq!(known["authorization_details"][0]["identifier"], "acme/payments");

        stand.revoke(&task).await.expect(StatusCode::OK);
        let begun = Instant::now();
        while sidecar.bearer(&token).await == 200 {
            assert!(begun.elapsed() < AT_ONCE, "it is still accepted");
        }
        let told = sidecar.get("/auth", &with(&nginx("/notes"), &authorization)).await;
        assert_eq!(told.asks(), INVALID);
        assert!(!format!("{:?}{}", told.headers, told.text).contains("revoked"), "why is nobody's business: {told:?}");
        assert_eq!(sidecar.get("/ext_authz/notes", &authorization).await.asks(), INVALID);
        assert_eq!(sidecar.introspect(&token).await, json!({"active": false}));
        assert_eq!(sidecar.bearer(&other).await, 200);
        let metrics = sidecar.get("/metrics", &[]).await.text;
        let counted = |line: &str| metrics.lines().any(|one| one.strip_prefix(line).is_some_and(|count| count.trim() != "0"));
        assert!(counted("remit_verifier_decisions_total{decision=\"deny\",reason=\"revoked\"}"), "{metrics}");
        assert!(counted("remit_verifier_decisions_total{decision=\"allow\",reason=\"ok\"}"), "{metrics}");
        // The broker knows that it has heard.
        wait_for("the acknowledgement", || async {
            let reach = stand.revoke(&task).await.expect(StatusCode::OK)["reach"].clone();
            let feed = reach.as_array().unwrap().iter().find(|reach| reach["class"] == "feed").unwrap();
            feed["acknowledged"] == 1 && feed["of"] == 1
        }).await;
    }

    async fn who_cannot_be_told_apart_is_refused(stand) {
        let sidecar = Sidecar::new(&stand).await;
        let (_, token) = stand.task_with_token().await;
        let bearer = format!("Bearer {token}");
        let authorization = ("authorization", &*bearer);
        let good = with(&nginx("/notes"), &[authorization]);
        assert_eq!(sidecar.get("/auth", &good).await.status, StatusCode::OK);

        let svid = json!({"credentials": [{"resource": REGISTRY, "privilege": "read"}, {"resource": GIT, "privilege": "read", "type": "jwt"}]});
        let more = json!({"purpose": "p", "owner": OWNER,
            "authorization_details": [{"type": "remit:access", "locations": [GIT, REGISTRY], "privileges": ["read"]}]});
        let declared = text(&stand.declare(more).await.expect(StatusCode::CREATED), "task");
        let minted = stand.post(&format!("/v1/tasks/{declared}/credentials"), &stand.evidence(), svid).await.expect(StatusCode::OK);
        let [elsewhere, svid] = [0, 1].map(|at| text(&minted["credentials"][at], "access_token"));
        let told = sidecar.get("/auth", &[("authorization", &format!("Bearer {svid}"))]).await;
        assert_eq!((told.status, told.header("remit-task")), (StatusCode::OK, &*declared));
        assert_eq!(told.header("remit-subject"), "spiffe://example.com/ci/acme/payments");
        assert_eq!(sidecar.get("/auth", &[("authorization", &format!("Bearer {elsewhere}"))]).await.asks(), INVALID);
        assert_eq!(sidecar.introspect(&elsewhere).await, json!({"active": false}));

        let nothing = (401, "Bearer");
        let malformed = (403, "Bearer error=\"invalid_request\"");
        let exactly = (400, "Bearer error=\"invalid_request\"");
        let long = format!("Bearer {}", "A".repeat(20_000));
        let cut = &bearer[..bearer.len() - 2];
        for (path, said, expected) in [
            ("/auth", nginx("/").to_vec(), nothing),
            ("/auth", with(&nginx("/"), &[("authorization", "Basic eDp5")]), nothing),
            ("/auth", with(&good, &[authorization]), nothing),
            ("/auth", with(&nginx("/"), &[("authorization", cut)]), INVALID),
            ("/auth", with(&nginx("/"), &[("authorization", &long)]), INVALID),
            ("/auth", with(&nginx("/"), &[("authorization", "Bearer ")]), nothing),
            // The other proxy's headers are the client's.
            ("/auth", with(&good, &[("x-forwarded-uri", "/other")]), malformed),
            ("/auth", with(&with(&traefik("/notes"), &[authorization]), &[("x-original-method", "GET")]), malformed),
            ("/auth", with(&good, &[("x-original-uri", "/other")]), malformed),
            ("/auth", vec![authorization, ("x-original-uri", "/")], malformed),
            ("/auth", vec![authorization, ("x-forwarded-uri", "/")], exactly),
            ("/auth", vec![authorization, ("dpop", "x")], malformed),
            // A token has one place.
            ("/auth", with(&nginx("/x?access_token=t"), &[authorization]), malformed),
            ("/auth", nginx("/x?a=b&access%5Ftoken=t").to_vec(), malformed),
            ("/auth?access_token=t", good.clone(), malformed),
            ("/auth?x=y", good.clone(), malformed),
            ("/auth?privilege=read&privilege=read", good.clone(), malformed),
            ("/auth?privilege=admin", good.clone(), malformed),
            ("/ext_authz/x?access_token=t", vec![authorization], exactly),
            ("/ext_authz/x", vec![authorization, ("remit-require-privilege", "all")], exactly),
            // What it is for.
            ("/auth?privilege=write", good.clone(), (403, "Bearer error=\"insufficient_scope\", scope=\"write\"")),
            ("/ext_authz/x", vec![authorization, ("remit-require-privilege", "secret")],
                (403, "Bearer error=\"insufficient_scope\", scope=\"secret\"")),
        ] {
            let told = sidecar.get(path, &said).await;
            assert_eq!(told.asks(), expected, "{path} {said:?}");
            assert!(told.headers.keys().all(|name| !name.as_str().starts_with("remit-")), "{told:?}");
        }
        assert_eq!(sidecar.get("/auth?privilege=read", &good).await.status, StatusCode::OK);
        // A client's query at Envoy is no demand of Envoy's.
        assert_eq!(sidecar.get("/ext_authz/x?privilege=write", &[authorization]).await.status, StatusCode::OK);
        for path in ["/", "/ext_authzx", "/auth/", "/v1/tasks", "/AUTH"] {
            assert_eq!(sidecar.get(path, &good).await.status, StatusCode::NOT_FOUND, "{path}");
        }
        // What is asked about is one form with one token.
        let ask = async |body: &str, kind: &str| {
            let request = sidecar.client.post(format!("{}/introspect", sidecar.url)).body(body.to_owned());
            request.header("content-type", kind).send().await.unwrap().status().as_u16()
        };
        let form = "application/x-www-form-urlencoded";
        assert_eq!(ask("token=a", form).await, 200);
        for (body, kind, status) in [("token=a&token=b", form, 400), ("", form, 400), ("{}", "application/json", 415)] {
            assert_eq!(ask(body, kind).await, status, "{body}");
        }
        assert_eq!(ask(&format!("token={}", "a".repeat(70_000)), form).await, 413);
        // An id of a request comes back, if it is one.
        for (given, comes_back) in [("build-4711", true), ("two words", false), (&*"x".repeat(200), false)] {
            let told = sidecar.get("/healthz", &[("x-request-id", given)]).await;
            assert_eq!(told.header("x-request-id") == given, comes_back, "{given}");
        }
    }

    /// Who has heard nothing for the window accepts nothing, and says so as far as whoever asks can understand it.
    async fn without_a_broker_nothing_is_accepted(stand) {
        let mut stand = stand;
        let sidecar = Sidecar::new(&stand).await;
        let (_, token) = stand.task_with_token().await;
        let bearer = format!("Bearer {token}");
        let authorization = [("authorization", &*bearer)];
        assert_eq!(sidecar.bearer(&token).await, 200);
        let begun = Instant::now();
        stand.broker.stop().await;
        while sidecar.get("/auth", &with(&traefik("/"), &authorization)).await.status == StatusCode::OK {
            assert!(begun.elapsed() < Duration::from_secs(8), "it accepts what nobody vouches for");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for (path, said, status) in [
            ("/auth", with(&traefik("/"), &authorization), 503),
            ("/auth", with(&nginx("/"), &authorization), 403),
            ("/auth", authorization.to_vec(), 403),
            ("/ext_authz/", authorization.to_vec(), 503),
            ("/readyz", vec![], 503),
            ("/healthz", vec![], 200),
        ] {
            let told = sidecar.get(path, &said).await;
            assert_eq!(told.status.as_u16(), status, "{path} {said:?}");
            let later = told.headers.contains_key(header::RETRY_AFTER);
            assert_eq!(later, path == "/auth" || path == "/ext_authz/", "{told:?}");
        }
        assert_eq!(sidecar.introspect(&token).await, json!({"active": false}));
        assert!(sidecar.get("/metrics", &[]).await.text.contains("remit_verifier_fresh_seconds 0\n"));
        stand.restart_broker_again().await;
        wait_for("the broker's word", || async { sidecar.bearer(&token).await == 200 }).await;
    }

    /// A proof is for the request that the client sent, and nobody else's.
    async fn what_is_bound_to_a_key_comes_with_a_proof_for_the_request(stand) {
        let sidecar = Sidecar::of(&stand, REGISTRY, &[]).await;
        let prover = Prover::new();
        let token = stand.bound_token(&prover).await;
        let ath = remit::id::sha256_base64url(token.as_bytes());
        let proof = |method: &str, url: &str| prover.proof(method, url, json!({"ath": ath}));
        let presented = format!("DPoP {token}");
        let authorization = ("authorization", &*presented);
        let notes = "https://registry.example.com/notes";
        let call = async |path: &str, target: &[(&str, &str)], proofs: &[&str]| {
            let proofs: Vec<_> = proofs.iter().map(|proof| ("dpop", *proof)).collect();
            sidecar.get(path, &with(&with(target, &[authorization]), &proofs)).await
        };
        let good = proof("GET", notes);
        let told = call("/auth", &nginx("/notes?page=2"), &[&good]).await;
        assert_eq!(told.status, StatusCode::OK, "{told:?}");
        let refused = call("/auth", &nginx("/notes?page=2"), &[&good]).await;
        assert_eq!(refused.status.as_u16(), 401, "it serves once");
        assert!(refused.asks().1.starts_with("DPoP error=\"invalid_token\", algs="), "{refused:?}");
        assert_eq!(call("/auth", &traefik("/notes"), &[&proof("GET", notes)]).await.status, StatusCode::OK);
        assert_eq!(call("/ext_authz/notes?x", &[], &[&proof("GET", notes)]).await.status, StatusCode::OK);
        let twice = proof("GET", notes);
        for (target, proofs) in [
            (nginx("/notes"), vec![]),
            (nginx("/notes"), vec![&*twice, &*twice]),
            (nginx("/other"), vec![&*proof("GET", notes)]),
            (nginx("/notes"), vec![&*proof("POST", notes)]),
            (nginx("/notes"), vec![&*proof("GET", "https://evil.example.com/notes")]),
            (nginx("/notes"), vec![&*prover.proof("GET", notes, json!({}))]),
            (nginx("/notes"), vec![&*Prover::new().proof("GET", notes, json!({"ath": ath}))]),
        ] {
            assert_eq!(call("/auth", &target, &proofs).await.status.as_u16(), 401, "{target:?} {}", proofs.len());
        }
        // Where the client said it went, instead of where the proxy says.
        let forwarded = [("x-forwarded-host", "evil.example.com"), ("x-forwarded-proto", "https")];
        let elsewhere = proof("GET", "https://evil.example.com/notes");
        assert_eq!(call("/auth", &with(&traefik("/notes"), &forwarded), &[&elsewhere]).await.status.as_u16(), 401);
        assert_eq!(sidecar.bearer(&token).await, 401, "it is no bearer token");
        // Who asks about it is told to what it is bound.
        let known = sidecar.introspect(&token).await;
        assert_eq!((&known["active"], &known["token_type"], &known["cnf"]["jkt"]), (&json!(true), &json!("DPoP"), &json!(prover.jkt())));

        let outside = Sidecar::of(&stand, REGISTRY, &["--at", "https://proxy.example.com/registry/"]).await;
        for (url, status) in [("https://proxy.example.com/registry/notes", 200), (notes, 401)] {
            let proof = proof("GET", url);
            let said = with(&nginx("/notes"), &[authorization, ("dpop", &proof)]);
            assert_eq!(outside.get("/auth", &said).await.status.as_u16(), status, "{url}");
        }
    }

    /// A certificate in a header is the proxy's word, and only where somebody says that it is.
    async fn a_certificate_in_a_header_counts_where_the_proxy_writes_it(stand) {
        let (place, mine, thief) = (Place::of(stand).await, own(), own());
        let evidence = place.stand.evidence();
        let task = place.declare(Some(&mine), Some(&evidence)).await;
        let token = text(&place.minted(Some(&mine), Some(&evidence), &task, REGISTRY).await, "access_token");
        let bearer = format!("Bearer {token}");
        let escaped = |identity: &Identity| identity.certificate.pem().replace('\n', "%0A").replace(' ', "%20").replace('+', "%2B");
        let (shown, stolen) = (escaped(&mine), escaped(&thief));
        let plain = Sidecar::of(&place.stand, REGISTRY, &[]).await;
        let told = Sidecar::of(&place.stand, REGISTRY, &["--client-cert-header", "X-Client-Cert"]).await;
        for (header, value, without, with_flag) in [
            ("x-client-cert", &*shown, 401, 200),
            ("x-client-cert", &*stolen, 401, 401),
            ("x-client-cert", "", 401, 401),
            ("x-client-cert", "%zz", 401, 403),
            ("x-forwarded-client-cert", &*shown, 401, 401),
        ] {
            let said = with(&nginx("/notes"), &[("authorization", &bearer), (header, value)]);
            assert_eq!(plain.get("/auth", &said).await.status.as_u16(), without, "{header} {value}");
            assert_eq!(told.get("/auth", &said).await.status.as_u16(), with_flag, "{header} {value}");
        }
        let twice = with(&nginx("/notes"), &[("authorization", &bearer), ("x-client-cert", &shown), ("x-client-cert", &stolen)]);
        assert_eq!(told.get("/auth", &twice).await.status.as_u16(), 403);
    }
}

impl Stand {
    /// A token for the registry, bound to this key.
    pub(crate) async fn bound_token(&self, prover: &Prover) -> String {
        let mut body = declaration();
        body["authorization_details"] =
            json!([{"type": "remit:access", "locations": [REGISTRY], "privileges": ["read"]}]);
        body["credentials"] = json!([{"resource": REGISTRY, "privilege": "read"}]);
        let proof = prover.proof("POST", &self.url("/v1/tasks"), json!({}));
        let call = (Method::POST, "/v1/tasks");
        let answer: Answer =
            self.proven_at(&self.broker, call, Some(&self.other_instance()), &[&proof], Body::Json(body)).await;
        text(&answer.expect(StatusCode::CREATED)["credentials"][0], "access_token")
    }

    /// Starts the broker that was stopped.
    async fn restart_broker_again(&mut self) {
        let config = self.broker.config.clone();
        self.broker = crate::support::Server::start(&config).await;
    }
}

/// On a socket it answers the same, and is gone without a trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_listens_on_a_socket_too() {
    let stand = Stand::new(crate::support::Store::Embedded).await;
    let socket = stand.dir.path().join("verifier.sock");
    let mut sidecar = Command::new(env!("CARGO_BIN_EXE_remit"));
    sidecar.args(["verifier", "--broker", &stand.broker.url, "--audience", GIT, "--listen"]);
    let listen = format!("unix:{}", socket.display());
    let mut child =
        sidecar.arg(&listen).env("no_proxy", "*").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the socket", || async { socket.exists() }).await;
    let client = crate::support::socket_client(&socket);
    let (_, token) = stand.task_with_token().await;
    wait_for("the feed", || async {
        let request = client.get("http://localhost/auth").bearer_auth(&token).send().await;
        request.is_ok_and(|answer| answer.status() == StatusCode::OK && answer.headers().contains_key("remit-task"))
    })
    .await;
    let pid = child.id().unwrap().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
    assert!(child.wait().await.unwrap().success() && !socket.exists());
    // What it cannot be told is refused before anything is listened on.
    for (option, value) in
        [("--broker", "http://broker.example.com"), ("--listen", "0.0.0.0:0"), ("--at", "x"), ("--ca", "/nonexistent")]
    {
        let mut bad = Command::new(env!("CARGO_BIN_EXE_remit"));
        bad.args(["verifier", "--audience", GIT, option, value]);
        if option != "--broker" {
            bad.args(["--broker", &stand.broker.url]);
        }
        let output = bad.output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{option}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}
