//! How a broker starts and stops: what it refuses to start with, what it makes, what it leaves.

use reqwest::StatusCode;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixListener},
    process::Command,
    time::timeout,
};

use remit::audit::segment::Segment;

use crate::{
    both,
    support::{GIT, Issuer, RESPONDER, Server, Stand, Store, VIEWER, declaration, socket_client, write_config},
};

/// A configuration that works, in a directory of its own.
fn working() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("ci-keys.json"), Issuer::new().jwks().to_string()).expect("written");
    let config = write_config(dir.path(), "broker", "redb:remit.redb", "");
    (dir, config)
}

/// Runs `remit serve --config` until it ends by itself: its exit code and what it said.
async fn ends(config: &Path) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
    command.args(["serve", "--config"]).arg(config).env("REMIT_LOG", "error").kill_on_drop(true);
    let output = timeout(Duration::from_secs(20), command.output()).await;
    let output =
        output.unwrap_or_else(|_| panic!("it serves:\n{}", fs::read_to_string(config).unwrap())).expect("it ran");
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code().expect("an exit code"), String::from_utf8(output.stderr).expect("text"))
}

fn port_of(config: &Path) -> u16 {
    let text = fs::read_to_string(config).expect("a configuration");
    let listen = text.split("\nhttp = \"").nth(1).expect("`listen.http`");
    let address = listen.split('"').next().expect("an address");
    address.rsplit(':').next().expect("a port").parse().expect("a number")
}

/// What is replaced in a working configuration, by what, and the words that what is said must hold.
type Mistake<'a> = (&'a str, &'a str, &'a [&'a str]);

/// Each mistake alone: refused as a configuration, in one sentence that names what to change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_is_refused_in_one_sentence() {
    let attestor = "[[attestor]]\ntype = \"oidc\"\nname = \"again\"\nissuer = \"https://ci.example.com\"\naudience = \"a\"\n\
        keys_file = \"ci-keys.json\"\nkind = \"ci\"\nworkload = \"/ci/{repository/*}\"\ninstance = \"{run_id}\"\n[[service]]";
    let responder = remit::id::sha256_hex(RESPONDER.as_bytes());
    let viewer = remit::id::sha256_hex(VIEWER.as_bytes());
    let git = remit::id::sha256_hex(crate::support::GIT_TOKEN.as_bytes());
    let anchor = |url: &str| format!("[[audit.anchor]]\nurl = \"{url}\"\n[policy]");
    let kernel = "[[attestor]]\ntype = \"unix\"\nname = \"more\"\n[[service]]";
    let domain = |name: &str, bundle: &str| {
        format!(
            "[[attestor]]\ntype = \"x509\"\nname = \"spire\"\ntrust_domain = \"{name}\"\nkind = \"ci\"\nworkload = \"/spire/{{path/*}}\"\n\
             {bundle}\n[[service]]"
        )
    };
    let table: &[Mistake] = &[
        ("trust_domain =", "secret_thing = \"hunter2\"\ntrust_domain =", &["line 3", "unknown field `secret_thing`"]),
        ("[policy]", "[feed]\nfollowers = 0\n[policy]", &["`feed.followers`", "1 to 20000"]),
        ("[policy]", "[feed]\nfollowers = 20001\n[policy]", &["`feed.followers`", "1 to 20000"]),
        ("[policy]", "[reports]\nmax_body = 0\n[policy]", &["`reports.max_body`", "1 to 32768"]),
        ("[policy]", &anchor("https://me@anchor.example.com"), &["[[audit.anchor]]", "without user, query"]),
        ("[policy]", &anchor("https://me:hunter2@anchor.example.com"), &["[[audit.anchor]]", "without user, query"]),
        ("[policy]", &anchor("https://anchor.example.com/?key=hunter2"), &["[[audit.anchor]]", "without user, query"]),
        ("[policy]", &anchor("https://anchor.example.com/#hunter2"), &["[[audit.anchor]]", "without user, query"]),
        ("[policy]", &anchor("http://anchor.example.com"), &["[[audit.anchor]]", "https"]),
        ("[policy]", &anchor("hunter2"), &["[[audit.anchor]]", "https"]),
        (
            "name = \"git\"",
            &format!("name = \"git\"\npublic_key_sha256 = [\"{git}\"]"),
            &["service `git`", "`public_key_sha256`", "`listen.tls`"],
        ),
        (
            "name = \"victor\"",
            &format!("name = \"victor\"\npublic_key_sha256 = [\"{git}\"]"),
            &["operator `victor`", "`public_key_sha256`", "`listen.tls`"],
        ),
        ("[policy]", "[reports]\nbody = true\n[policy]", &["unknown field `body`", "`bodies`"]),
        (
            "name = \"registry\"",
            "name = \"gateway\"\naudiences = [\"https://gateway.example.com\"]\nrevocation = \"none\"\nreports = true\n[[service]]\nname = \"registry\"",
            &["service `gateway`", "`reports = true`", "`token_sha256`"],
        ),
        ("[listen]", "[listen]\nhtpp = 1", &["line 5", "unknown field `htpp`"]),
        ("name = \"git\"", "name = \"git\"\nsecret = \"hunter2\"", &["unknown field `secret`"]),
        ("name = \"ci\"", "name = \"ci\"\njwks = \"hunter2\"", &["unknown field `jwks`"]),
        ("trust_domain = \"example.com\"\n", "", &["missing field `trust_domain`"]),
        ("trust_domain = \"example.com\"", "trust_domain = \"Example Com\"", &["line 3"]),
        ("[store]", "[store", &["line 7"]),
        ("http = \"127.0.0.1:", "http = \"0.0.0.0:", &["`listen.http`", "loopback"]),
        ("http = \"127.0.0.1:", "http = \"[::]:", &["`listen.http`", "loopback"]),
        ("http = \"127.0.0.1:PORT\"\n", "", &["`[listen]`", "`tls`", "`http`"]),
        (
            "http = \"127.0.0.1:PORT\"",
            "behind_proxy = [\"10.0.0.1\"]\nhttp = \"127.0.0.1:PORT\"",
            &["`listen.behind_proxy`", "remove it"],
        ),
        (
            "http = \"127.0.0.1:PORT\"",
            "behind_proxy = [\"::/0\"]\nhttp = \"0.0.0.0:PORT\"",
            &["`listen.behind_proxy`", "every address"],
        ),
        ("[listen]", "[listen]\nbehind_proxy = [\"proxy.example.com\"]", &["line 5", "10.1.0.0/16"]),
        ("[listen]", "[listen]\ntls = \"127.0.0.1:0\"", &["`listen.tls`", "`listen.tls_cert_file`"]),
        (
            "[listen]",
            "[listen]\ntls = \"127.0.0.1:0\"\ntls_key_file = \"a\"",
            &["`listen.tls`", "`listen.tls_cert_file`"],
        ),
        (
            "[listen]",
            "[listen]\ntls = \"127.0.0.1:0\"\ntls_names = [\"a\"]\ntls_cert_file = \"a\"",
            &["`listen.tls_names`", "remove it"],
        ),
        ("[listen]", "[listen]\ntls_names = [\"localhost\"]", &["`listen.tls_names`", "`listen.tls`"]),
        ("[listen]", "[listen]\ntls_names = [\"*.example.com\"]", &["line 5", "without a wildcard"]),
        ("[listen]", "[listen]\ntls_names = [\"Broker.example.com\"]", &["line 5", "lower case"]),
        ("[listen]", "[listen]\ntls_names = [\"10.0.0.256\"]", &["line 5", "IP address"]),
        ("[listen]", "[listen]\ntls_origin = \"https://mtls.example.com\"", &["`listen.tls_origin`", "`listen.tls`"]),
        ("[listen]", "[listen]\ntls_key_file = \"tls.key\"", &["`listen.tls_key_file`", "`listen.tls`"]),
        ("[listen]", "[listen]\ntls_min_version = \"1.1\"", &["line 5", "`1.2`", "`1.3`"]),
        (
            "[listen]",
            "[listen]\ntls = \"127.0.0.1:0\"\ntls_cert_file = \"no.pem\"\ntls_key_file = \"no.pem\"",
            &["`listen.tls_cert_file`", "no.pem cannot be read"],
        ),
        (
            "[listen]",
            "[listen]\ntls = \"127.0.0.1:0\"\ntls_cert_file = \"bad.toml\"\ntls_key_file = \"bad.toml\"",
            &["`listen.tls_cert_file`", "bad.toml holds no certificate in PEM"],
        ),
        ("issuer = \"http://127.0.0.1:PORT\"", "issuer = \"http://broker.example.com\"", &["`issuer`", "https"]),
        (
            "issuer = \"http://127.0.0.1:PORT\"",
            "issuer = \"https://broker.example.com/\"",
            &["`issuer`", "trailing slash"],
        ),
        ("issuer = \"http://127.0.0.1:PORT\"", "issuer = \"https://broker.example.com?a\"", &["`issuer`", "query"]),
        ("binding = \"none\"", "binding = \"mtls\"", &["line 36", "`mtls`", "`required`"]),
        (
            "binding = \"none\"\nrevocation = \"introspection\"",
            "binding = \"none\"\nrevocation = \"push\"",
            &["line 37", "push", "`feed`"],
        ),
        ("binding = \"none\"", "binding = \"none\"\nfreshness = 5", &["service `git`", "`revocation = \"feed\"`"]),
        ("[[attestor]]", "[[x-attestor]]", &["x-attestor"]),
        ("[[service]]", attestor, &["attestor `again`", "same `issuer`"]),
        ("[[service]]", kernel, &["attestor `more`", "one kernel"]),
        ("name = \"ci\"", "name = \"kernel\"", &["attestor `kernel`", "rename"]),
        (
            "[[service]]",
            &domain("example.com", "bundle_url = \"https://spire\""),
            &["attestor `spire`", "`trust_domain`", "own"],
        ),
        ("[[service]]", &domain("example.org", ""), &["attestor `spire`", "`bundle_file`", "`bundle_url`"]),
        (
            "[[service]]",
            &domain("example.org", "bundle_url = \"http://spire\""),
            &["attestor `spire`", "`bundle_url`", "https"],
        ),
        (
            "[[service]]",
            &domain("example.org", "bundle_url = \"https://spire\"\nendpoint_spiffe_id = \"spiffe://example.org/s\""),
            &["attestor `spire`", "`endpoint_spiffe_id`", "set all three"],
        ),
        (
            "[[service]]",
            &domain("example.org", "bundle_file = \"none.pem\""),
            &["attestor `spire`", "`bundle_file`", "none.pem"],
        ),
        ("[[service]]", &domain("example.org", "bundle_file = \"bad.toml\""), &["attestor `spire`", "bad.toml", "PEM"]),
        ("algorithms = [\"ES256\"]", "algorithms = [\"none\"]", &["attestor `ci`", "`algorithms`"]),
        ("algorithms = [\"ES256\"]", "algorithms = [\"HS256\"]", &["attestor `ci`", "`algorithms`"]),
        ("owners = [", "owners = [\"\", ", &["attestor `ci`", "`owners`"]),
        ("instance = \"{run_id}.{run_attempt}\"\n", "", &["attestor `ci`", "`instance`"]),
        ("workload = \"/ci/{repository/*}\"", "workload = \"ci\"", &["attestor `ci`", "`workload`"]),
        ("keys_file = \"ci-keys.json\"", "keys_file = \"none.json\"", &["attestor `ci`", "`keys_file`", "none.json"]),
        (
            "keys_file = \"ci-keys.json\"",
            "jwks_url = \"http://ci.example.com/jwks\"",
            &["attestor `ci`", "`jwks_url`", "https"],
        ),
        (&*responder, &*viewer, &["`victor`", "`token_sha256`", "another's"]),
        (&*responder, &*git, &["`rita`", "`token_sha256`", "another's"]),
        (&*responder, "abc", &["`rita`", "`token_sha256`", "64 hexadecimal digits"]),
        (&*git, &*git.to_uppercase(), &["`git`", "`token_sha256`", "lower case"]),
        ("roles = [\"responder\"]", "roles = []", &["operator `rita`", "`roles`"]),
        ("name = \"rita\"", "name = \"victor\"", &["operator `victor`", "name of their own"]),
        ("name = \"registry\"", "name = \"git\"", &["service `git`", "name of its own"]),
        (
            "audiences = [\"https://registry.example.com\"]",
            "audiences = [\"https://git.example.com\"]",
            &["service `registry`", "audience"],
        ),
        ("dir = \"POLICIES\"", "dir = \"no-such-dir\"", &["no-such-dir"]),
        ("dir = \"POLICIES\"", "dir = \"empty\"", &["empty", "`*.cedar`"]),
        ("dir = \"POLICIES\"", "dir = \"wrong\"", &["wrong/a.cedar:4", "`@id(\"…\")`"]),
        ("dir = \"POLICIES\"", "dir = \"broken\"", &["broken/b.cedar:3"]),
        ("dir = \"POLICIES\"", "", &["`policy.dir`"]),
        ("url = \"redb:remit.redb\"", "url = \"redis://10.0.0.1:6379\"", &["`store.url`", "rediss://"]),
        ("url = \"redb:remit.redb\"", "url = \"rediss://10.0.0.1:6379\"", &["`store.url`", "password"]),
        ("url = \"redb:remit.redb\"", "url = \"postgres://127.0.0.1/hunter2\"", &["`store.url`", "redb:PATH"]),
        ("url = \"redb:remit.redb\"", "url = \"redb:\"", &["`store.url`"]),
        ("mac_key_file = \"store.key\"", "mac_key_file = \"open.key\"", &["open.key", "chmod 600"]),
        ("mac_key_file = \"store.key\"", "mac_key_file = \"no.key\"", &["no.key", "64 hexadecimal digits"]),
        ("keys = \"broker-keys\"", "keys = \"open-keys\"", &["open-keys/access-token.pem", "chmod 600"]),
        ("keys = \"broker-keys\"", "keys = \"no-keys\"", &["no-keys/jwt-svid.pem", "PEM"]),
    ];
    let (dir, config) = working();
    in_the_way(dir.path());
    let good = fs::read_to_string(&config).unwrap();
    for (find, replace, words) in table {
        let port = port_of(&config);
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/policies").display().to_string();
        let find = find.replace("PORT", &port.to_string()).replace("POLICIES", &policies);
        assert!(good.contains(&find), "{find} is not in the configuration");
        // All of them where an attestor is taken away, one otherwise.
        let put = replace.replace("PORT", &port.to_string());
        let bad = if put == "[[x-attestor]]" { good.replace(&find, &put) } else { good.replacen(&find, &put, 1) };
        let path = dir.path().join("bad.toml");
        fs::write(&path, bad).unwrap();
        let (code, said) = ends(&path).await;
        assert_eq!(code, 78, "{find} → {replace}: {said}");
        assert!(said.starts_with("error: ") && said.trim_end().lines().count() == 1, "{find} → {replace}: {said}");
        for word in *words {
            assert!(said.contains(word), "{find} → {replace}: no {word} in {said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "something listens");
        assert!(!dir.path().join("broker.sock").exists(), "{find} → {replace}: a socket was left");
    }
    // And nothing of that was the fault of what they have in common.
    Server::start(&config).await.stop().await;
}

/// Files that bad configurations name.
fn in_the_way(dir: &Path) {
    let write = |name: &str, text: &str, mode: u32| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
    };
    write("empty/README", "nothing", 0o644);
    write(
        "wrong/a.cedar",
        "@id(\"a\")\npermit (principal, action, resource);\n\npermit (principal, action, resource);\n",
        0o644,
    );
    write("broken/b.cedar", "@id(\"b\")\npermit (principal, action, resource)\nwhen { 1 + };\n", 0o644);
    write("open.key", &"a".repeat(64), 0o644);
    write("no.key", "hunter2", 0o600);
    let pem = |key: &[u8]| {
        use base64::Engine as _;
        let body = base64::prelude::BASE64_STANDARD.encode(key);
        format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
    };
    let key = pem(&remit::jose::SigningKey::generate().expect("random bytes"));
    write("open-keys/access-token.pem", &key, 0o640);
    write("no-keys/access-token.pem", &key, 0o600);
    write("no-keys/jwt-svid.pem", "hunter2", 0o600);
}

/// Several mistakes at once are told at once, one a line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_mistakes_are_told_at_once() {
    let (_dir, config) = working();
    let text = fs::read_to_string(&config).unwrap();
    let text = text
        .replace("http = \"127.0.0.1", "http = \"0.0.0.0")
        .replace("issuer = \"http://127.0.0.1", "issuer = \"http://broker.example.com")
        .replace("redb:remit.redb", "redis://10.0.0.1");
    fs::write(&config, text).unwrap();
    let (code, said) = ends(&config).await;
    assert_eq!(code, 78, "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("  - ")).count(), 3, "{said}");
}

/// Every configuration that the project ships is one.
#[test]
fn the_shipped_configurations_are_good() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let files = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
    let configs: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    assert!(configs.contains(&root.join("broker.example.toml")), "{configs:?}");
    for path in configs {
        let config = remit::config::Config::load(&path, remit::config::Overrides::default())
            .unwrap_or_else(|mistakes| panic!("{}: {mistakes}", path.display()));
        remit::policy::Policies::load(config.policy.dir.as_deref().unwrap()).unwrap();
        remit::attest::Attestors::build(&config.attestors, &config.trust_domain)
            .unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        remit::party::Parties::build(config.services, config.operators, config.operator_issuers, config.owners)
            .unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    }
}

/// What another process has already, a broker doesn't take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_living_broker_has_is_not_taken_from_it() {
    let stand = Stand::new(Store::Embedded).await;
    let dir = stand.dir.path();
    let url = &stand.broker.url;
    let other = write_config(dir, "other", "redb:other.redb", "");
    let text = fs::read_to_string(&other).unwrap();
    let port = port_of(&other).to_string();
    let first = url.rsplit(':').next().unwrap();
    for (find, replace, words) in [
        (&*port, first, ["choose another address", "`listen.http`"]),
        ("redb:other.redb", "redb:remit.redb", ["remit.redb", "another"]),
        ("audit = \"other-audit\"", "audit = \"broker-audit\"", ["broker-audit", "another broker"]),
        ("journal = \"other-journal\"", "journal = \"broker-journal\"", ["broker-journal", "another broker"]),
        ("unix = \"other.sock\"", "unix = \"broker.sock\"", ["broker.sock", "another process is listening there"]),
    ] {
        assert!(text.contains(find));
        fs::write(&other, text.replace(find, replace)).unwrap();
        let (code, said) = ends(&other).await;
        assert!(
            code == 1 && said.starts_with("error: ") && said.trim_end().lines().count() == 1,
            "{replace}: {code} {said}"
        );
        for word in words {
            assert!(said.contains(word), "{replace}: no {word} in {said}");
        }
        assert!(!dir.join("other.sock").exists(), "{replace}: a socket was left");
    }
    // The first one is as it was, on both listeners.
    stand.task_with_token().await;
    let answer = socket_client(&stand.broker.socket).get("http://localhost/readyz").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

/// A socket whose broker died is replaced; a file that is none is nobody's to remove.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let (dir, config) = working();
    let socket = dir.path().join("broker.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let mut broker = Server::start(&config).await;
    let answer = socket_client(&socket).get("http://localhost/readyz").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    broker.stop().await;
    assert!(!socket.exists());

    fs::write(&socket, "a diary").unwrap();
    let (code, said) = ends(&config).await;
    assert!(code == 1 && said.contains("broker.sock") && said.contains("no socket"), "{said}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "a diary");
}

/// Made on the first start, for the broker alone; the same after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_made_once_and_for_the_broker_alone() {
    let mut stand = Stand::new(Store::Embedded).await;
    let dir = stand.dir.path().to_owned();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let keys = [
        "store.key",
        "broker-keys/access-token.pem",
        "broker-keys/jwt-svid.pem",
        "broker-keys/revocations.pem",
        "broker-keys/signals.pem",
        "broker-keys/status-list.pem",
        "broker-keys/x509-svid.pem",
        "broker-keys/audit.pem",
    ];
    let keys = keys.map(|name| dir.join(name));
    let before = keys.each_ref().map(|path| fs::read(path).unwrap());
    for path in keys
        .iter()
        .chain(&[dir.join("remit.redb"), Segment::list(&dir.join("broker-audit")).unwrap().pop().unwrap().path])
    {
        assert_eq!(mode(path), 0o600, "{}", path.display());
    }
    for path in [dir.join("broker-keys"), dir.join("broker-audit")] {
        assert_eq!(mode(&path), 0o700, "{}", path.display());
    }
    // Anybody may connect: the kernel says who they are.
    let socket = fs::metadata(&stand.broker.socket).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o666);

    let (_, token) = stand.task_with_token().await;
    let published = stand.client.get(stand.url("/jwks")).send().await.unwrap().json::<Value>().await.unwrap();
    stand.restart_broker().await;
    assert_eq!(keys.each_ref().map(|path| fs::read(path).unwrap()), before);
    let again = stand.client.get(stand.url("/jwks")).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(again, published);
    assert_eq!(stand.introspect(&token).await["active"], true);
    assert_eq!(fs::read_dir(dir.join("broker-keys")).unwrap().count(), 7, "nothing else lies there");
}

/// A request, written by hand so that it can be cut in two.
struct Slow {
    stream: TcpStream,
    rest: String,
}

impl Slow {
    /// Sends the head and a part of the body.
    async fn begin(stand: &Stand) -> Self {
        let address = stand.broker.url.strip_prefix("http://").expect("HTTP");
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let body = declaration().to_string();
        let head = format!(
            "POST /v1/tasks HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            stand.evidence(),
            body.len()
        );
        let (first, rest) = body.split_at(20);
        stream.write_all(format!("{head}{first}").as_bytes()).await.expect("written");
        // Until the broker has it: it answers other requests meanwhile.
        tokio::time::sleep(Duration::from_millis(50)).await;
        stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK);
        Self { stream, rest: rest.to_owned() }
    }
}

both! {
    /// What is under way is finished; what is idle doesn't hold anything up.
    async fn a_request_under_way_is_finished(stand) {
        let mut stand = stand;
        let mut slow = Slow::begin(&stand).await;
        let address = stand.broker.url.strip_prefix("http://").unwrap().to_owned();
        let idle = TcpStream::connect(&address).await.unwrap();
        let begun = tokio::time::Instant::now();
        stand.broker.terminate().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(TcpStream::connect(&address).await.is_err(), "it takes new connections");
        slow.stream.write_all(slow.rest.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(5), slow.stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
        assert!(answer.starts_with("HTTP/1.1 201 ") && answer.contains(GIT), "{answer}");
        let status = timeout(Duration::from_secs(10), stand.broker.child.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(3), "the idle connection held it up: {:?}", begun.elapsed());
        assert!(!stand.broker.socket.exists());
        drop(idle);
        // The task that was declared on the way out is on record.
        let config = stand.broker.config.clone();
        stand.broker = Server::start(&config).await;
        assert_eq!(stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK)["tasks"].as_array().unwrap().len(), 1);
    }
}

/// Whoever never finishes a request does not keep a broker from ending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_finishes_is_not_waited_for() {
    let mut stand = Stand::new(Store::Embedded).await;
    let slow = Slow::begin(&stand).await;
    let took = stand.broker.stop().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!stand.broker.socket.exists());
    drop(slow);
}

/// As many followers as the configuration says, or none: where it says nothing, as many as there may be files open for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_fit_into_the_open_files_that_the_system_allows() {
    let (_dir, config) = working();
    let bounded = || {
        let mut command = Command::new("prlimit");
        command.args(["--nofile=2300:2300", env!("CARGO_BIN_EXE_remit"), "serve", "--config"]).arg(&config);
        command.env("REMIT_LOG", "warn").kill_on_drop(true).stdin(std::process::Stdio::null());
        command
    };
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n[feed]\nfollowers = 500\n")).unwrap();
    let output =
        timeout(Duration::from_secs(20), bounded().output()).await.expect("it ends").expect("prlimit (util-linux)");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    for word in ["`feed.followers` = 500", "3048 open files", "2300", "`LimitNOFILE=`", "at most 126"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    fs::write(&config, text).unwrap();
    let said = config.with_extension("said");
    let mut child = bounded().stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
    crate::support::wait_for("the warning", || async {
        let said = fs::read_to_string(&said).unwrap();
        said.contains("followers=126") || said.contains("\"followers\":126")
    })
    .await;
    crate::support::wait_for("the listener", || async {
        TcpStream::connect(("127.0.0.1", port_of(&config))).await.is_ok()
    })
    .await;
    child.kill().await.unwrap();
}
