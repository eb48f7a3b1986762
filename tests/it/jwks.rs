//! Keys of an issuer that are fetched over HTTPS, from a server that behaves and from some that do not.

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::json;
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use crate::support::{Answer, GIT, Issuer, Stand, Store, declaration, pki::Identity, wait_for, write_config};

/// An issuer's key server, with the certificate that vouches for it and one that does not.
pub(crate) struct KeyServer {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: String,
    pub(crate) child: Child,
}

impl KeyServer {
    /// Serves the keys of nobody until it is told whose.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("openssl.cnf"), OPENSSL).unwrap();
        for (key, certificate) in [("key.pem", "cert.pem"), ("other-key.pem", "other.pem")] {
            let made = Command::new("openssl")
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
                .args(["-config", "openssl.cnf", "-extensions", "leaf", "-keyout", key, "-out", certificate])
                .current_dir(dir.path())
                .stderr(Stdio::null())
                .status();
            assert!(made.await.expect("openssl").success());
        }
        Self::serving(dir).await
    }

    /// Shows this certificate.
    pub(crate) async fn showing(identity: &Identity) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cert.pem"), identity.certificate.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), identity.key.serialize_pem()).unwrap();
        Self::serving(dir).await
    }

    /// The same on the same port with another certificate.
    pub(crate) async fn shows(&mut self, identity: &Identity) {
        self.child.kill().await.unwrap();
        std::fs::write(self.dir.path().join("cert.pem"), identity.certificate.pem()).unwrap();
        std::fs::write(self.dir.path().join("key.pem"), identity.key.serialize_pem()).unwrap();
        self.child = serve(&self.dir);
        wait_for("the key server", || async { TcpStream::connect(format!("127.0.0.1:{}", self.port)).await.is_ok() })
            .await;
    }

    async fn serving(dir: tempfile::TempDir) -> Self {
        std::fs::write(dir.path().join("jwks.json"), "{}").unwrap();
        let child = serve(&dir);
        let file = dir.path().join("port");
        wait_for("the key server", || async { file.exists() }).await;
        let port = std::fs::read_to_string(file).unwrap();
        Self { dir, port, child }
    }

    async fn of(issuer: &Issuer) -> Self {
        let server = Self::start().await;
        server.publish(issuer);
        server
    }

    fn publish(&self, issuer: &Issuer) {
        std::fs::write(self.dir.path().join("new"), issuer.jwks().to_string()).unwrap();
        std::fs::rename(self.dir.path().join("new"), self.dir.path().join("jwks.json")).unwrap();
    }

    /// How often a path was asked for.
    pub(crate) fn hits(&self, path: &str) -> usize {
        let hits = std::fs::read_to_string(self.dir.path().join("hits")).unwrap_or_default();
        hits.lines().filter(|line| *line == path).count()
    }

    /// An attestor named after the path under which it looks for keys.
    fn attestor(&self, path: &str, authority: &str, interval: u32) -> String {
        let (port, authority) = (&self.port, self.dir.path().join(authority));
        format!(
            r#"
[[attestor]]
type = "oidc"
name = "{name}"
issuer = "{issuer}"
audience = "remit"
jwks_url = "https://127.0.0.1:{port}{path}"
ca_file = "{authority}"
algorithms = ["ES256"]
kind = "ci"
workload = "/remote/{{repository/*}}"
instance = "{{run_id}}"
refetch_interval = {interval}
"#,
            name = path.trim_start_matches('/'),
            issuer = issuer_of(path),
            authority = authority.display(),
        )
    }
}

fn serve(dir: &tempfile::TempDir) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/jwks.py");
    Command::new("python3").arg(script).arg(dir.path()).kill_on_drop(true).spawn().expect("python3")
}

const OPENSSL: &str = "[req]\nprompt = no\ndistinguished_name = name\n[name]\nCN = keys\n\
    [leaf]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";

fn issuer_of(path: &str) -> String {
    format!("https://{}.example.com", path.trim_start_matches('/'))
}

/// Evidence for the attestor of a path. Every run is another token, so that nothing is remembered.
fn token(issuer: &Issuer, path: &str, run: usize) -> String {
    issuer.evidence("remit", json!({"iss": issuer_of(path), "run_id": run}))
}

async fn declare(stand: &Stand, token: &str) -> Answer {
    stand.post("/v1/tasks", token, declaration()).await
}

#[tokio::test]
async fn a_flood_of_unknown_keys_costs_one_fetch_per_interval() {
    let (issuer, strangers) = (Issuer::new(), Issuer::new());
    let server = KeyServer::of(&issuer).await;
    let attestors = [server.attestor("/slow", "cert.pem", 600), server.attestor("/fast", "cert.pem", 1)].concat();
    let stand = Stand::with(Store::Embedded, &attestors).await;
    assert_eq!(server.hits("/slow"), 0, "keys are fetched when they are first needed");
    let begun = Instant::now();
    for path in ["/slow", "/fast"] {
        let declared = declare(&stand, &token(&issuer, path, 0)).await.expect(StatusCode::CREATED);
        assert_eq!(declared["workload"], "spiffe://example.com/remote/acme/payments");
        let flood = join_all((0..50).map(|run| {
            let unknown = token(&strangers, path, run);
            let stand = &stand;
            async move { declare(stand, &unknown).await }
        }));
        for answer in flood.await {
            answer.refused(401, "evidence_invalid");
        }
        for run in 1..5 {
            declare(&stand, &token(&issuer, path, run)).await.expect(StatusCode::CREATED);
        }
    }
    assert_eq!(server.hits("/slow"), 1);
    let most = 1 + usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!((1..=most).contains(&server.hits("/fast")), "{} fetches, {most} at most", server.hits("/fast"));
}

#[tokio::test]
async fn an_issuer_may_change_its_keys() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let server = KeyServer::of(&old).await;
    let stand = Stand::with(Store::Embedded, &server.attestor("/jwks", "cert.pem", 1)).await;
    let remembered = token(&old, "/jwks", 1);
    declare(&stand, &remembered).await.expect(StatusCode::CREATED);
    server.publish(&new);
    let fresh = token(&new, "/jwks", 2);
    wait_for("the new key", || async { declare(&stand, &fresh).await.status == StatusCode::CREATED }).await;
    // A key that was withdrawn is worth nothing, and what was verified with it is forgotten.
    declare(&stand, &token(&old, "/jwks", 3)).await.refused(401, "evidence_invalid");
    declare(&stand, &remembered).await.refused(401, "evidence_invalid");
}

/// In doubt is 503: nobody can tell whether this is evidence.
#[tokio::test]
async fn what_cannot_be_trusted_to_be_the_keys_is_not_used() {
    let issuer = Issuer::new();
    let server = KeyServer::of(&issuer).await;
    let paths = ["/redirect", "/large", "/error", "/hang", "/drip"];
    let mut attestors: String = paths.map(|path| server.attestor(path, "cert.pem", 600)).concat();
    attestors += &server.attestor("/stranger", "other.pem", 600);
    attestors += &server.attestor("/good", "cert.pem", 600);
    let stand = Stand::with(Store::Embedded, &attestors).await;
    let all = paths.into_iter().chain(["/stranger"]).map(|path| {
        let (stand, token) = (&stand, token(&issuer, path, 1));
        async move {
            let begun = Instant::now();
            let answer = declare(stand, &token).await;
            (path, answer, begun.elapsed())
        }
    });
    let (refused, good) = tokio::join!(join_all(all), async { declare(&stand, &token(&issuer, "/good", 1)).await });
    good.expect(StatusCode::CREATED);
    for (path, answer, took) in refused {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {}", answer.text);
        assert!(answer.headers.contains_key("retry-after"), "{path}");
        answer.refused(503, "temporarily_unavailable");
        assert!(took < Duration::from_secs(10), "{path} took {took:?}");
    }
    assert_eq!((server.hits("/redirect"), server.hits("/elsewhere")), (1, 0), "no redirect is followed");
    assert_eq!(server.hits("/stranger"), 0, "nothing is asked of a server that nobody vouches for");
    let subject = token(&issuer, "/large", 2);
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token", &subject),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("resource", GIT),
        ("scope", "task_01jd0000000000000000000000 read"),
    ];
    stand.form("/oauth2/token", None, &form).await.oauth_refused(503, "temporarily_unavailable");
}

#[tokio::test]
async fn an_issuer_that_is_down_takes_nothing_with_it_that_is_known() {
    let issuer = Issuer::new();
    let mut server = KeyServer::of(&issuer).await;
    let mut stand = Stand::with(Store::Embedded, &server.attestor("/jwks", "cert.pem", 1)).await;
    declare(&stand, &token(&issuer, "/jwks", 1)).await.expect(StatusCode::CREATED);
    server.child.kill().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    declare(&stand, &token(&issuer, "/jwks", 2)).await.expect(StatusCode::CREATED);
    // Whether the issuer has a key that we do not know, nobody can tell now.
    declare(&stand, &token(&Issuer::new(), "/jwks", 3)).await.refused(503, "temporarily_unavailable");
    declare(&stand, &token(&issuer, "/jwks", 4)).await.expect(StatusCode::CREATED);
    stand.restart_broker().await;
    declare(&stand, &token(&issuer, "/jwks", 5)).await.refused(503, "temporarily_unavailable");
    // Other issuers are none the worse for it.
    declare(&stand, &stand.evidence()).await.expect(StatusCode::CREATED);
}

#[tokio::test]
async fn keys_come_over_https_or_the_broker_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ci-keys.json"), Issuer::new().jwks().to_string()).unwrap();
    let attestor = |url: &str| {
        format!(
            "[[attestor]]\ntype = \"oidc\"\nname = \"remote\"\nissuer = \"https://i.example.com\"\naudience = \"remit\"\n\
             jwks_url = \"{url}\"\nkind = \"ci\"\nworkload = \"/remote\"\ninstance = \"{{run_id}}\"\n"
        )
    };
    for url in ["http://127.0.0.1:1/jwks", "https://user:secret@127.0.0.1:1/jwks", "file:///etc/passwd", "jwks"] {
        let config = write_config(dir.path(), "broker", "redb:remit.redb", &attestor(url));
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["serve", "--config"]).arg(config).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(20), command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("{url}: it started")).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains("attestor `remote`: `jwks_url`: it must be"),
            "{url}: {said}"
        );
        assert!(!said.contains("secret") && !said.contains("panicked"), "{url}: {said}");
    }
}

/// Nor does a service that is shown made-up tokens, and asks about each, make the broker ask the store about each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_tokens_under_unknown_keys_costs_the_store_one_search_a_second() {
    let stand = Stand::new(Store::Redis).await;
    let (_, token) = stand.task_with_token().await;
    let claims = crate::support::claims(&token);
    let redis = stand.redis.as_ref().unwrap();
    let calls = async || -> u64 {
        let stats = redis.cli(&["info", "commandstats"]).await;
        let calls =
            stats.lines().filter_map(|line| line.split_once(":calls=")?.1.split(',').next()?.parse::<u64>().ok());
        calls.sum()
    };
    let (before, begun) = (calls().await, Instant::now());
    for _ in 0..300 {
        let forged = Issuer::new().key.sign("at+jwt", &claims).unwrap();
        assert_eq!(stand.introspect(&forged).await, json!({"active": false}));
    }
    let (cost, seconds) = (calls().await - before, begun.elapsed().as_secs() + 1);
    // The broker's own looks at the store are among them.
    assert!(cost < 100 + 20 * seconds, "{cost} commands in {seconds} s for 300 questions");
    assert_eq!(stand.introspect(&token).await["active"], true);
}
