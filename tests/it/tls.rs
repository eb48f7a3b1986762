//! The TLS listener, spoken to with openssl, curl and reqwest, well and badly.

use reqwest::{Method, StatusCode};
use rustls::{
    ClientConfig, RootCertStore,
    client::ResolvesClientCert,
    pki_types::{PrivateKeyDer, ServerName},
    sign::CertifiedKey,
};
use serde_json::json;
use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::support::{
    Answer, RESPONDER, Server, Stand, Store, declaration, free_port, now,
    pki::{Authority, Identity, builder, params, svid},
    text, wait_for,
};

/// A broker with a TLS listener, and who vouches for its certificate.
struct Place {
    stand: Stand,
    authority: Authority,
    port: u16,
}

impl Place {
    /// `more` goes into the `[listen]` section.
    async fn with(more: &str) -> Self {
        let mut stand = Stand::new(Store::Embedded).await;
        let (authority, port) = (Authority::new("servers"), free_port());
        let dir = stand.dir.path();
        authority.serves(&dir.join("tls.crt"), &dir.join("tls.key"));
        fs::write(dir.join("ca.crt"), authority.certificate.pem()).unwrap();
        listen(
            &stand.broker.config,
            &format!("tls = \"127.0.0.1:{port}\"\ntls_cert_file = \"tls.crt\"\ntls_key_file = \"tls.key\"\n{more}\n"),
        );
        stand.restart_broker().await;
        Self { stand, authority, port }
    }

    async fn new() -> Self {
        Self::with("").await
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// What `openssl s_client` makes of it, with these options, when it has sent a request.
    async fn s_client(&self, options: &[&str]) -> Output {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &format!("localhost:{}", self.port), "-CAfile", "ca.crt"]);
        command.args(["-verify_return_error", "-ign_eof"]).args(options).current_dir(self.stand.dir.path());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl");
        let mut input = child.stdin.take().unwrap();
        // Whoever refuses the handshake does not read it.
        let _ = input.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        let _ = input.flush().await;
        timeout(Duration::from_secs(20), child.wait_with_output()).await.expect("it ends").unwrap()
    }

    /// Whether `openssl s_client` gets an answer.
    async fn answers(&self, options: &[&str]) -> bool {
        let output = self.s_client(options).await;
        String::from_utf8_lossy(&output.stdout).contains("HTTP/1.1 200 OK")
    }

    async fn curl(&self, options: &[&str], path: &str) -> Output {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--cacert", "ca.crt", "-w", "%{http_version} %{http_code}"]);
        command.args(options).arg(self.url(path)).current_dir(self.stand.dir.path()).output().await.expect("curl")
    }

    /// The certificate that is shown, in DER.
    async fn shown(&self) -> Vec<u8> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.der().clone()).unwrap();
        let stream = handshake(self.port, config(roots).with_no_client_auth()).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

/// Adds to the `[listen]` section of a configuration.
fn listen(config: &Path, more: &str) {
    let text = fs::read_to_string(config).unwrap();
    fs::write(config, text.replace("[store]", &format!("{more}[store]"))).unwrap();
}

fn config(roots: RootCertStore) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
}

async fn handshake(port: u16, config: ClientConfig) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_3_alone_unless_the_configuration_says_more() {
    let place = Place::new().await;
    assert!(place.answers(&["-tls1_3"]).await);
    for old in ["-tls1_2", "-tls1_1", "-tls1"] {
        assert!(!place.answers(&[old, "-cipher", "ALL:@SECLEVEL=0"]).await, "{old}");
    }
    for (version, expected) in [("--http1.1", "1.1 200"), ("--http2", "2 200")] {
        let output = place.curl(&[version, "-o", "/dev/null"], "/healthz").await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
    }
    // The whole of the API is there.
    let client = builder(&place.authority).build().unwrap();
    let declared = client.post(place.url("/v1/tasks")).bearer_auth(place.stand.evidence()).json(&declaration());
    let declared = Answer::of(declared.send().await.unwrap()).await.expect(StatusCode::CREATED);
    let revoke = client.post(place.url(&format!("/v1/tasks/{}/revoke", text(&declared, "task"))));
    let revoked = revoke.bearer_auth(RESPONDER).json(&json!({"reason": "a test"})).send().await.unwrap();
    assert_eq!(revoked.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_2_by_configuration_without_its_weak_suites() {
    let place = Place::with("tls_min_version = \"1.2\"").await;
    assert!(place.answers(&["-tls1_3"]).await);
    assert!(place.answers(&["-tls1_2"]).await);
    assert!(!place.answers(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).await);
    for weak in
        ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-SHA", "DHE-RSA-AES128-GCM-SHA256", "NULL"]
    {
        assert!(!place.answers(&["-tls1_2", "-cipher", &format!("{weak}:@SECLEVEL=0")]).await, "{weak}");
    }
    assert!(place.answers(&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]).await);
}

/// Every connection proves anew who is at either end, whatever it remembers of an earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_is_resumed() {
    let place = Place::with("tls_min_version = \"1.2\"").await;
    for version in ["-tls1_3", "-tls1_2"] {
        let first = place.s_client(&[version, "-sess_out", "session.pem"]).await;
        let said = String::from_utf8_lossy(&first.stdout).into_owned();
        assert!(said.contains("HTTP/1.1 200 OK") && !said.contains("TLS session ticket"), "{version}: {said}");
        if place.stand.dir.path().join("session.pem").exists() {
            let again = place.s_client(&[version, "-sess_in", "session.pem"]).await;
            let said = String::from_utf8_lossy(&again.stdout).into_owned();
            assert!(said.contains("\nNew, ") && !said.contains("Reused, "), "{version}: {said}");
            fs::remove_file(place.stand.dir.path().join("session.pem")).unwrap();
        }
    }
    let again = place.s_client(&["-tls1_2", "-reconnect"]).await;
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(said.contains("\nNew, ") && !said.contains("Reused, "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_tls_is_refused_without_harm() {
    let place = Place::new().await;
    for sent in
        [&b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0xff; 9000]]
    {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
        let _ = stream.write_all(sent).await;
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(3), stream.read_to_end(&mut answer)).await.expect("closed at once");
        // At most an alert.
        assert!(answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21), "{answer:?}");
    }
    assert!(place.answers(&[]).await);
    // Nor does the clear listener speak TLS.
    let other = place.stand.broker.url.replace("http://", "https://");
    assert!(builder(&place.authority).build().unwrap().get(other).send().await.is_err());
}

/// Kubernetes mounts a `Secret` as links through one link to a directory, and swaps that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_and_a_bad_one_is_not() {
    let mut place = Place::new().await;
    let mount = place.stand.dir.path().join("mount");
    let version = |name: &str| {
        fs::create_dir_all(mount.join(name)).unwrap();
        (mount.join(name).join("tls.crt"), mount.join(name).join("tls.key"))
    };
    let (certificate, key) = version("..v1");
    let first = place.authority.serves(&certificate, &key);
    symlink("..v1", mount.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), mount.join(name)).unwrap();
    }
    let path = place.stand.broker.config.clone();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"tls.", "\"mount/tls.")).unwrap();
    place.stand.broker.stop().await;
    let log = place.stand.dir.path().join("log");
    place.stand.broker = Server::start_talking(&path, &log).await;
    assert_eq!(place.shown().await, first.certificate.der().as_ref());
    let swap = |to: &str| {
        symlink(to, mount.join("..data_tmp")).unwrap();
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    let (certificate, key) = version("..v2");
    let second = place.authority.serves(&certificate, &key);
    swap("..v2");
    wait_for("the new certificate", || async { place.shown().await == second.certificate.der().as_ref() }).await;
    let metrics = place.stand.client.get(place.stand.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let end = metrics
        .lines()
        .find_map(|line| line.strip_prefix("remit_tls_certificate_not_after_timestamp_seconds{listener=\"tls\"} "));
    let left = end.unwrap().parse::<i64>().unwrap() - now();
    assert!((3500..=3600).contains(&left), "{left}");
    // Another's key, no certificate, nothing.
    let (certificate, key) = version("..v3");
    place.authority.serves(&certificate, &key);
    let stranger = place.authority.serves(&mount.join("..v3/x.crt"), &mount.join("..v3/x.key"));
    fs::write(&key, stranger.key.serialize_pem()).unwrap();
    let said = |word: &str| fs::read_to_string(&log).unwrap().contains(word);
    swap("..v3");
    wait_for("the refusal", || async { said("is not the key of the first certificate") }).await;
    fs::write(&certificate, "-----BEGIN CERTIFICATE-----\n").unwrap();
    wait_for("the refusal", || async { said("holds no certificate in PEM") }).await;
    fs::remove_file(&certificate).unwrap();
    wait_for("the refusal", || async { said("cannot be read") }).await;
    assert_eq!(place.shown().await, second.certificate.der().as_ref());
    let (certificate, key) = version("..v4");
    let last = place.authority.serves(&certificate, &key);
    swap("..v4");
    wait_for("the new certificate", || async { place.shown().await == last.certificate.der().as_ref() }).await;
    assert!(!fs::read_to_string(&log).unwrap().contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_takes_too_long_is_cut_off() {
    let place = Place::new().await;
    let mut streams = Vec::new();
    for begin in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
        stream.write_all(begin).await.unwrap();
        streams.push(stream);
    }
    let begun = Instant::now();
    for mut stream in streams {
        let _ = timeout(Duration::from_secs(8), stream.read_to_end(&mut Vec::new())).await.expect("cut off");
    }
    assert!((4..8).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(place.answers(&[]).await);
}

/// Those who never finish make room for those who do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_nobody_finishes_keep_nobody_out() {
    let place = Place::new().await;
    let mut open = Vec::new();
    for n in 0..700 {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
        }
        open.push(stream);
    }
    let begun = Instant::now();
    for _ in 0..10 {
        let client = builder(&place.authority).build().unwrap();
        let answer = client.get(place.url("/healthz")).timeout(Duration::from_secs(2)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "others waited {:?}", begun.elapsed());
}

/// Whoever shows a certificate holds its key; and that is all it says until somebody vouches for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_certificate_may_be_shown_by_whoever_holds_its_key() {
    let place = Place::new().await;
    let stranger = Identity::alone(&svid("spiffe://elsewhere.example/a"));
    fs::write(place.stand.dir.path().join("client.pem"), stranger.pem()).unwrap();
    let output = place.curl(&["--cert", "client.pem", "-o", "/dev/null"], "/healthz").await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2 200", "{output:?}");
    let client = stranger.client(&place.authority);
    let declare = |client: &reqwest::Client| client.request(Method::POST, place.url("/v1/tasks")).json(&declaration());
    Answer::of(declare(&client).send().await.unwrap()).await.refused(401, "evidence_invalid");
    let with_evidence = declare(&client).bearer_auth(place.stand.evidence()).send().await.unwrap();
    assert_eq!(with_evidence.status(), StatusCode::CREATED);
    // With another's key.
    let thief = Identity::alone(&params("thief"));
    let key = PrivateKeyDer::try_from(thief.key.serialize_der()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let pair = Arc::new(CertifiedKey::new(vec![stranger.certificate.der().clone()], key));
    let mut roots = RootCertStore::empty();
    roots.add(place.authority.certificate.der().clone()).unwrap();
    let config = config(roots).with_client_cert_resolver(Arc::new(Shows(pair)));
    let mut answer = Vec::new();
    if let Ok(mut stream) = handshake(place.port, config).await {
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        let _ = stream.read_to_end(&mut answer).await;
    }
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
}

/// Shows one certificate, whatever is asked for.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// In the clear on an address that others can reach, only the proxy that is named is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_proxy_nobody_else_is_served_in_the_clear() {
    let mut stand = Stand::new(Store::Embedded).await;
    let path = stand.broker.config.clone();
    let text = fs::read_to_string(&path).unwrap();
    let exposed = text.replace("\nhttp = \"127.0.0.1:", "\nhttp = \"0.0.0.0:");
    fs::write(&path, &exposed).unwrap();
    listen(&path, "behind_proxy = [\"127.0.0.1\", \"2001:db8::/32\"]\n");
    stand.restart_broker().await;
    let from =
        |address: &str| reqwest::Client::builder().local_address(Some(address.parse().unwrap())).build().unwrap();
    let url = stand.url("/healthz").replace("0.0.0.0", "127.0.0.1");
    assert_eq!(from("127.0.0.1").get(&url).send().await.unwrap().status(), StatusCode::OK);
    assert!(from("127.0.0.2").get(&url).send().await.is_err());
    assert_eq!(from("127.0.0.1").get(&url).send().await.unwrap().status(), StatusCode::OK);
}
