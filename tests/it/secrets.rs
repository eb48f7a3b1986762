//! Secrets never appear. What every other test leaves behind is searched by [`crate::support::secrets`]: here is that the search finds
//! what it looks for, what is secret in a configuration, and what is in memory.

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::json;
use std::{
    fs,
    io::Write as _,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::ExitStatusExt as _,
    },
    path::Path,
    process::Stdio,
    time::Duration,
};
use tokio::process::{Child, Command};

use crate::support::{
    Issuer, RESPONDER, Redis, Server, Stand, Store, declaration,
    secrets::{leaks, mark, note, note_files, places},
    wait_for, write_config,
};

const REMIT: &str = env!("CARGO_BIN_EXE_remit");

/// What is found of what came up since, in this.
fn found(since: usize, place: &[u8]) -> Vec<(String, &'static str)> {
    let places = [("here".to_owned(), place.to_vec())];
    leaks(since, &places).into_iter().map(|leak| (leak.kind, leak.form)).collect()
}

fn has(found: &[(String, &'static str)], kind: &str, form: &str) -> bool {
    found.iter().any(|(has, as_is)| has == kind && *as_is == form)
}

fn openssl(dir: &Path, command: &str) -> String {
    let output = std::process::Command::new("openssl").args(command.split(' ')).current_dir(dir).output();
    let output = output.expect("openssl");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn octets_are_found_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let since = mark(dir.path());
    let octets = remit::id::random::<40>().unwrap();
    note("forty octets", &octets);
    assert!(found(since, b"nothing at all").is_empty());
    let hex = remit::id::hex(&octets);
    let behind = |before: usize| [&b"any"[..before], &octets, b"more"].concat();
    let mut forms = vec![
        ("as it is", octets.to_vec()),
        ("hexadecimal", hex.clone().into_bytes()),
        ("hexadecimal, in capitals", hex.to_uppercase().into_bytes()),
        ("a list of numbers", format!("{octets:?}").into_bytes()),
    ];
    for before in 0..=3 {
        forms.push(("base64", BASE64_STANDARD.encode(behind(before)).into_bytes()));
        forms.push(("base64url", BASE64_URL_SAFE_NO_PAD.encode(behind(before)).into_bytes()));
        // Nothing follows: what it ends with is padded, or not.
        forms.push(("base64", BASE64_STANDARD.encode(&behind(before)[..before + 40]).into_bytes()));
    }
    for (form, planted) in forms {
        let around = [b"\0\xff before it ", &*planted, b" behind it"].concat();
        // The two alphabets differ in two characters: where neither is there, one is the other.
        let alike = found(since, &around).iter().any(|(_, found)| found.starts_with(form.trim_end_matches("url")));
        assert!(alike, "{form}: {:?}", String::from_utf8_lossy(&around));
    }
    // Half of it tells too much already; a few octets are chance.
    assert!(has(&found(since, &octets[..32]), "forty octets", "as it is"));
    assert!(!has(&found(since, &octets[..7]), "forty octets", "as it is"));
}

#[test]
fn private_keys_are_found_and_their_public_halves_are_not() {
    for (sort, options) in [
        ("EC", "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem"),
        ("RSA", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem"),
        ("ED25519", "genpkey -algorithm ED25519 -out key.pem"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let since = mark(dir.path());
        openssl(dir.path(), options);
        note_files(dir.path());
        let pem = fs::read_to_string(dir.path().join("key.pem")).unwrap();
        assert!(has(&found(since, pem.as_bytes()), "key.pem", "PEM") || sort == "ED25519", "{sort}");
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64_STANDARD.decode(&body).unwrap();
        for (form, planted) in [
            ("as it is", der.clone()),
            ("base64", body.clone().into_bytes()),
            ("hexadecimal", remit::id::hex(&der).into_bytes()),
        ] {
            let found = found(since, &planted);
            assert!(has(&found, "key.pem", form) || has(&found, "key.pem", "base64url"), "{sort}, {form}");
        }
        let public = openssl(dir.path(), "pkey -in key.pem -pubout");
        let der: String = public.lines().filter(|line| !line.starts_with('-')).collect();
        for public in [public.into_bytes(), BASE64_STANDARD.decode(der).unwrap()] {
            assert!(found(since, &public).is_empty(), "{sort}");
        }
        let modulus =
            if sort == "RSA" { openssl(dir.path(), "rsa -in key.pem -noout -modulus") } else { String::new() };
        assert!(found(since, modulus.as_bytes()).is_empty());
    }
}

/// Planted where a broker and its stores write: each is found, and said without being said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_the_wrong_place_is_found() {
    let stand = Stand::new(Store::Embedded).await;
    let since = mark(stand.dir.path());
    let (_, token) = stand.task_with_token().await;
    let evidence = stand.evidence();
    assert_eq!(leaks(since, &stand.broker.left()).len(), 0);
    let bearer = format!("authorization: Bearer {token}");
    let store_key = fs::read_to_string(stand.dir.path().join("store.key")).unwrap();
    for (place, planted, kind) in [
        ("broker.stderr", bearer.clone(), "access_token"),
        ("broker.stdout", BASE64_STANDARD.encode(&bearer), "access_token"),
        ("broker-audit/planted", evidence.clone(), "evidence"),
        ("broker-audit/planted", store_key.to_uppercase(), "store.key"),
        ("broker-audit/planted", RESPONDER.to_owned(), "the token of an operator or a service"),
    ] {
        let path = stand.dir.path().join(place);
        let before = fs::read(&path).unwrap_or_default();
        fs::OpenOptions::new().append(true).create(true).open(&path).unwrap().write_all(planted.as_bytes()).unwrap();
        let found = leaks(since, &stand.broker.left());
        let path_of = |place: &str| place.ends_with(path.file_name().unwrap().to_str().unwrap());
        assert!(found.iter().any(|leak| leak.kind == kind && path_of(&leak.place)), "{kind}, {place}: {found:?}");
        let said = found.iter().map(ToString::to_string).collect::<String>();
        assert!(!said.contains(&planted), "{said}");
        fs::write(&path, before).unwrap();
    }
    let mut redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    redis.cli(&["SET", "planted", &token]).await;
    redis.cli(&["DEL", "planted"]).await;
    let found = leaks(since, &places(redis.dir.path()));
    assert!(found.iter().any(|leak| leak.kind == "access_token"), "{found:?}");
    redis.kill().await;
    fs::remove_dir_all(redis.dir.path().join("appendonlydir")).unwrap();
    fs::write(redis.dir.path().join("emptied"), "").unwrap();
}

/// Everything secret that a configuration can hold or name, while all that it is for goes wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_secret_in_a_configuration_stays_there() {
    let mut redis = Redis::start(&["--appendonly", "yes", "--requirepass", "canary@4711/of-redis"]).await;
    let dir = tempfile::tempdir().unwrap();
    let since = mark(dir.path());
    for password in ["canary@4711/of-redis", "canary%404711%2Fof-redis", "another-canary-of-redis"] {
        note("the password of Redis", password.as_bytes());
    }
    let issuer = Issuer::new();
    fs::write(dir.path().join("ci-keys.json"), issuer.jwks().to_string()).unwrap();
    let token = dir.path().join("anchor-token");
    fs::write(&token, "canary-4711-of-an-anchor\n").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    openssl(
        dir.path(),
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
         -keyout tls.pem -out tls-cert.pem",
    );
    fs::set_permissions(dir.path().join("tls.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    // One that takes the connection and the token, and answers nothing good.
    let refuse = axum::Router::new().fallback(|| async { axum::http::StatusCode::FORBIDDEN });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let anchor = format!("http://{}/", listener.local_addr().unwrap());
    let serve = axum::serve(listener, refuse).into_future();
    tokio_util::task::TaskTracker::new().spawn(serve);
    let extra = format!(
        "[audit]\ncheckpoint_every = 1\n[[audit.anchor]]\nurl = \"{anchor}\"\ntoken_file = \"anchor-token\"\n\
         [[audit.anchor]]\nurl = \"http://127.0.0.1:1/\"\ntoken_file = \"anchor-token\"\n"
    );
    let port = redis.port;
    let url = |password: &str| format!("redis://default:{password}@127.0.0.1:{port}");
    let good = url("canary%404711%2Fof-redis");
    let config = write_config(dir.path(), "broker", &good, &extra);
    let written = fs::read_to_string(&config).unwrap();
    let secure = crate::support::free_port();
    let tls =
        format!("tls = \"127.0.0.1:{secure}\"\ntls_cert_file = \"tls-cert.pem\"\ntls_key_file = \"tls.pem\"\nunix =");
    let written = written.replacen("unix =", &tls, 1);
    fs::write(&config, &written).unwrap();
    let log = dir.path().join("trace.log");
    let mut broker = Server::start_talking(&config, &log).await;
    let evidence = issuer.evidence(&broker.url, json!({}));
    let client = crate::support::client();
    let declare = async || {
        let request = client.post(format!("{}/v1/tasks", broker.url)).bearer_auth(&evidence).json(&declaration());
        crate::support::Answer::of(request.send().await.unwrap()).await
    };
    declare().await.expect(reqwest::StatusCode::CREATED);
    // Something that is not TLS, and a handshake that is broken off.
    let _ = client.get(format!("http://127.0.0.1:{secure}/")).send().await;
    let said = || fs::read_to_string(&log).unwrap();
    wait_for("an anchor that fails", || async { said().contains("could not be anchored") }).await;
    redis.kill().await;
    assert_eq!(declare().await.status, 503);
    redis.start_again().await;
    broker.stop().await;
    assert!(said().contains("task_") || said().len() > 10_000, "there is nothing to search");
    drop(broker);
    // The wrong password, and one where none can be: said without it.
    let (wrong, misplaced) = (url("another-canary-of-redis"), format!("redis//{}", &good[8..]));
    let mut places = places(redis.dir.path());
    for other in [wrong, misplaced] {
        fs::write(&config, written.replace(&good, &other)).unwrap();
        for arguments in [&["serve", "--config"][..], &["config", "check", "--config"]] {
            let mut command = Command::new(REMIT);
            command.args(arguments).arg(&config).env("REMIT_LOG", "trace").kill_on_drop(true);
            let said = tokio::time::timeout(Duration::from_secs(30), command.output()).await.unwrap().unwrap();
            assert!(!said.status.success() || arguments[0] == "config", "{other}");
            places.push((format!("what `remit {}` said", arguments[0]), [said.stdout, said.stderr].concat()));
        }
    }
    let found = leaks(since, &places);
    assert!(found.is_empty(), "{found:?}");
}

/// A broker of another user than the one who runs the tests, if that one is root; with no limit on core files.
async fn unlimited(dir: &Path) -> Child {
    let mut command = Command::new("sh");
    let start = "ulimit -c unlimited; cd \"$1\"; exec $2 \"$0\" serve --listen 127.0.0.1:0 --data \"$1/data\"";
    let remit = dir.join("remit");
    fs::copy(REMIT, &remit).unwrap();
    command.args(["-c", start]).arg(remit).arg(dir).arg(as_them());
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let child = command.spawn().unwrap();
    wait_for("the broker", || async { dir.join("data/remit.sock").exists() }).await;
    child
}

/// What runs a command as the user of [`unlimited`]. What is started in the background of a shell ignores SIGQUIT, and so would this.
fn as_them() -> &'static str {
    if is_root() {
        "env --default-signal setpriv --reuid=54321 --regid=54321 --clear-groups"
    } else {
        "env --default-signal"
    }
}

fn is_root() -> bool {
    nix::unistd::getuid().is_root()
}

/// A directory of that user.
fn theirs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    if is_root() {
        chown(dir.path(), Some(54321), Some(54321)).unwrap();
    }
    dir
}

fn cores(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("core")).count()
}

#[tokio::test]
async fn a_broker_that_crashes_leaves_no_core() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for signal in ["ABRT", "QUIT", "ILL"] {
        let dir = theirs();
        let mut child = unlimited(dir.path()).await;
        let pid = child.id().unwrap().to_string();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
        Command::new("kill").args([&format!("-{signal}"), &*pid]).status().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), child.wait());
        let status = ended.await.expect("it ends").unwrap();
        assert!(status.signal().is_some() && !status.core_dumped(), "{status}");
        assert_eq!(cores(dir.path()), 0);
        // Any other program would leave one here.
        let crash = format!("ulimit -c unlimited; cd \"$0\"; exec {} sh -c 'kill -{signal} $$'", as_them());
        let other = Command::new("sh").args(["-c", &crash]).arg(dir.path()).status().await.unwrap();
        let here = !pattern.starts_with(['|', '/']);
        assert!(!here || other.core_dumped() && cores(dir.path()) == 1, "{other} {pattern}");
    }
}

#[tokio::test]
async fn another_process_of_the_same_user_cannot_look_into_a_broker() {
    let dir = theirs();
    let child = unlimited(dir.path()).await;
    let mut other = Command::new("sh");
    other.args(["-c", &format!("exec {} sleep 60", as_them())]).kill_on_drop(true);
    let other = other.spawn().unwrap();
    let look = async |pid: u32, file: &str| {
        let open = format!("exec {} sh -c ': < /proc/{pid}/{file}'", as_them());
        Command::new("sh").args(["-c", &open]).stderr(Stdio::null()).status().await.unwrap().success()
    };
    wait_for("the other", || async { look(other.id().unwrap(), "mem").await }).await;
    for file in ["mem", "environ", "maps"] {
        assert!(look(other.id().unwrap(), file).await, "{file} of any process of one's own can be read");
        assert!(!look(child.id().unwrap(), file).await, "{file} of a broker can be read");
    }
}

/// A client is looked at by the kernel attestor of a broker of the same user: it dumps nothing, and stays open to that.
#[tokio::test]
async fn a_client_leaves_no_core_either() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited; exec \"$0\" task list", REMIT]);
    command.env("REMIT_URL", format!("http://{}", listener.local_addr().unwrap())).kill_on_drop(true);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _asked = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await.expect("it asks").unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id().unwrap())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
}
