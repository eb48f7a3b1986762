//! The TLS listener with a certificate from the broker's own authority: by curl, OpenSSL, rustls and another broker.

use chrono::TimeDelta;
use reqwest::{Method, StatusCode};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, sync::Arc};
use tokio::net::TcpStream;
use x509_parser::prelude::*;

use crate::support::{
    ADMIN, Answer, Frozen, GIT, OWNER, Stand, Store, VIEWER, claims, declaration, free_port, now, socket_client, text,
    wait_for, write_config,
};

/// A broker that certifies its own listener.
struct Place {
    stand: Stand,
    port: u16,
}

const NAMES: &str = "tls_names = [\"localhost\", \"broker.example.com\", \"127.0.0.1\", \"::1\"]\n";

fn listening(text: &str, port: u16) -> String {
    text.replace("[store]", &format!("tls = \"127.0.0.1:{port}\"\n{NAMES}[store]"))
}

impl Place {
    async fn new() -> Self {
        let (mut stand, port) = (Stand::new(Store::Embedded).await, free_port());
        let text = fs::read_to_string(&stand.broker.config).unwrap();
        fs::write(&stand.broker.config, listening(&text, port)).unwrap();
        stand.restart_broker().await;
        let place = Self { stand, port };
        place.fetch().await;
        place
    }

    /// The authorities, from the one place that needs none: the Unix socket.
    async fn fetch(&self) {
        let client = socket_client(&self.dir().join("broker.sock"));
        let pem = client.get("http://localhost/pki/ca.pem").send().await.unwrap().text().await.unwrap();
        fs::write(self.dir().join("ca.pem"), pem).unwrap();
    }

    fn dir(&self) -> &Path {
        self.stand.dir.path()
    }

    fn curl(&self, more: &[&str], host: &str) -> String {
        let url = format!("https://{host}:{}/healthz", self.port);
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"]).args(more).arg(url);
        let output = curl.current_dir(self.dir()).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    async fn shown(&self) -> Vec<u8> {
        shown(self.port, &fs::read_to_string(self.dir().join("ca.pem")).unwrap()).await
    }
}

/// The certificate that is shown to whoever knows these authorities, in DER.
async fn shown(port: u16, authorities: &str) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    for pem in Pem::iter_from_buffer(authorities.as_bytes()) {
        roots.add(pem.unwrap().contents.into()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn openssl(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).current_dir(dir).stdin(std::process::Stdio::null()).output();
    let output = output.expect("openssl");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_trust_it_by_the_authorities_alone() {
    let place = Place::new().await;
    for host in ["localhost", "127.0.0.1"] {
        assert_eq!(place.curl(&["--cacert", "ca.pem"], host), "200");
    }
    let as_named = format!("broker.example.com:{}:127.0.0.1", place.port);
    assert_eq!(place.curl(&["--cacert", "ca.pem", "--resolve", &as_named], "broker.example.com"), "200");
    let other = format!("other.example.com:{}:127.0.0.1", place.port);
    assert!(place.curl(&["--cacert", "ca.pem", "--resolve", &other], "other.example.com").contains("000"));
    // Those that the machine knows do not vouch for it.
    assert!(place.curl(&[], "localhost").contains("000"));
    let connect = format!("localhost:{}", place.port);
    let client = ["s_client", "-connect", &connect, "-verify_return_error", "-verify_hostname", "localhost"];
    assert!(openssl(place.dir(), &[&client[..], &["-CAfile", "ca.pem"]].concat()).0);
    assert!(!openssl(place.dir(), &client).0);
    // And `remit` itself.
    let token = place.dir().join("operator.token");
    fs::write(&token, VIEWER).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let remit = || {
        let mut remit = Command::new(env!("CARGO_BIN_EXE_remit"));
        remit.args(["--url", &format!("https://localhost:{}", place.port), "task", "list"]);
        remit.env("REMIT_OPERATOR_TOKEN_FILE", &token);
        remit
    };
    let listed = remit().env("SSL_CERT_FILE", place.dir().join("ca.pem")).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    assert!(!remit().output().unwrap().status.success());
}

/// Field by field; and nobody can take it for a certificate of a workload or a task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_names_the_broker_and_is_for_servers_alone() {
    let place = Place::new().await;
    let der = place.shown().await;
    let (_, certificate) = parse_x509_certificate(&der).unwrap();
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(
        names[..],
        [
            GeneralName::URI("spiffe://example.com/remit/broker"),
            GeneralName::DNSName("localhost"),
            GeneralName::DNSName("broker.example.com"),
            GeneralName::IPAddress(&[127, 0, 0, 1]),
            GeneralName::IPAddress(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ]
    );
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && !extended.client_auth && !extended.any && extended.other.is_empty());
    let serial = certificate.raw_serial();
    assert!(serial.len() == 20 && serial[0] == 3, "tasks have 01");
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.flags == 1, "digitalSignature alone: {:?}", usage.value);
    assert!(!certificate.is_ca());
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    assert!(from >= now() - 120 && from <= now() && (until - (now() + 12 * 3600)).abs() <= 30, "{from} {until}");
    let line = place.stand.audit().into_iter().rfind(|line| line["event"] == "server_certificate_minted").unwrap();
    assert_eq!((&line["serial"], &line["actor"]["as"]), (&json!(remit::id::hex(serial)), &json!("broker")));
    assert_eq!(line["key"], remit::id::sha256_hex(certificate.public_key().raw));
    assert_eq!(line["hosts"], json!(["localhost", "broker.example.com", "127.0.0.1", "::1"]));
    // OpenSSL agrees, with the revocation lists too.
    fs::write(place.dir().join("shown.der"), &der).unwrap();
    assert!(openssl(place.dir(), &["x509", "-inform", "DER", "-in", "shown.der", "-out", "shown.pem"]).0);
    let lists = place.stand.client.get(place.stand.url("/pki/crl.pem")).send().await.unwrap().text().await.unwrap();
    fs::write(place.dir().join("crl.pem"), lists).unwrap();
    let verify = |more: &[&str]| {
        openssl(place.dir(), &[&["verify", "-x509_strict", "-CAfile", "ca.pem"], more, &["shown.pem"]].concat()).0
    };
    assert!(verify(&["-purpose", "sslserver"]) && !verify(&["-purpose", "sslclient"]));
    assert!(verify(&["-purpose", "sslserver", "-crl_check", "-CRLfile", "crl.pem"]));
    // Its key is in memory alone.
    let keys = fs::read_dir(place.dir().join("broker-keys")).unwrap();
    let mut files: Vec<_> = keys.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(
        files,
        [
            "access-token.pem",
            "audit.pem",
            "jwt-svid.pem",
            "revocations.pem",
            "signals.pem",
            "status-list.pem",
            "x509-svid.pem"
        ]
    );
    // Nor can a workload get such a name.
    let text = fs::read_to_string(&place.stand.broker.config).unwrap();
    fs::write(place.dir().join("bad.toml"), text.replace("/ci/{repository/*}", "/remit/{repository/*}")).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_remit"));
    let check = check.args(["config", "check", "--config", "bad.toml"]).current_dir(place.dir()).output().unwrap();
    assert_eq!(check.status.code(), Some(78), "{check:?}");
    assert!(String::from_utf8_lossy(&check.stderr).contains("the segment `remit`"), "{check:?}");
}

/// The one that a new authority signs is shown as soon as that signs, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_follows_the_authority() {
    let place = Place::new().await;
    let issuer = |der: &[u8]| parse_x509_certificate(der).unwrap().1.issuer().to_string();
    let before = place.shown().await;
    place.stand.post("/v1/keys/rotate", ADMIN, json!({})).await.expect(StatusCode::OK);
    // What clients fetch from now on vouches for both.
    place.fetch().await;
    wait_for("the next certificate", || async { issuer(&place.shown().await) != issuer(&before) }).await;
    assert_eq!(place.curl(&["--cacert", "ca.pem"], "localhost"), "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_renewed_well_ahead_of_its_end() {
    let port = free_port();
    let frozen = Frozen::start(|text| listening(text, port)).await;
    let pem = crate::support::client().get(frozen.url("/pki/ca.pem")).send().await.unwrap().text().await.unwrap();
    let first = shown(port, &pem).await;
    frozen.clock.advance(TimeDelta::hours(8) - TimeDelta::seconds(5));
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(shown(port, &pem).await, first);
    frozen.clock.advance(TimeDelta::seconds(5));
    let next = async || {
        // Our own clock has not moved: to it the next one is not valid yet.
        let stream = tokio::process::Command::new("openssl")
            .args(["s_client", "-connect", &format!("127.0.0.1:{port}")])
            .stdin(std::process::Stdio::null())
            .output();
        let said = stream.await.unwrap().stdout;
        let at = said.windows(11).position(|window| window == b"-----BEGIN ").expect("a certificate");
        parse_x509_pem(&said[at..]).unwrap().1.contents
    };
    wait_for("the next certificate", || async { next().await != first }).await;
    let next = next().await;
    let [first, next] = [&first, &next].map(|der| parse_x509_certificate(der).unwrap().1);
    let ends = [&first, &next].map(|certificate| certificate.validity().not_after.timestamp());
    assert_eq!(ends[1] - ends[0], 8 * 3600);
    assert_ne!(first.public_key().raw, next.public_key().raw, "with a key of its own");
    let metrics = crate::support::client().get(frozen.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = format!("remit_tls_certificate_not_after_timestamp_seconds{{listener=\"tls\"}} {}", ends[1]);
    assert!(metrics.contains(&line), "{metrics}");
    frozen.running.stop().await;
}

/// Another trust domain follows the bundle by the broker's SPIFFE ID (SPIFFE Federation section 5.2.2), and then knows its tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_trust_domain_follows_its_bundle() {
    let place = Place::new().await;
    let other = tempfile::tempdir().unwrap();
    let (dir, port) = (other.path(), free_port());
    fs::copy(place.dir().join("ca.pem"), dir.join("bundle.pem")).unwrap();
    fs::copy(place.dir().join("ci-keys.json"), dir.join("ci-keys.json")).unwrap();
    let attestor = format!(
        "[[attestor]]\ntype = \"x509\"\nname = \"neighbours\"\ntrust_domain = \"example.com\"\nkind = \"service\"\n\
         workload = \"/neighbours/{{1}}/{{2}}/{{3}}\"\nowners = [\"{OWNER}\"]\nbundle_file = \"bundle.pem\"\n\
         bundle_url = \"https://127.0.0.1:{}/spiffe/bundle\"\nendpoint_spiffe_id = \"spiffe://example.com/remit/broker\"\n\
         audience = \"{GIT}\"\nrefetch_interval = 1\n",
        place.port
    );
    let config = write_config(dir, "broker", "redb:remit.redb", &attestor);
    let text_of = fs::read_to_string(&config).unwrap();
    let text_of =
        text_of.replace("trust_domain = \"example.com\"\n[listen]", "trust_domain = \"example.org\"\n[listen]");
    fs::write(&config, listening(&text_of, port)).unwrap();
    let server = crate::support::Server::start(&config).await;
    // A JWT-SVID can be judged by what was fetched alone: the file has no keys for those.
    let mut words = declaration();
    words["authorization_details"][0]["privileges"] = json!(["read"]);
    words["credentials"] = json!([{"resource": GIT, "privilege": "read", "type": "jwt"}]);
    let declared = place.stand.declare(words).await.expect(StatusCode::CREATED);
    let svid = text(&declared["credentials"][0], "access_token");
    let client = crate::support::client();
    let declare = async |bearer: &str| {
        let call = client.request(Method::POST, format!("{}/v1/tasks", server.url)).bearer_auth(bearer);
        Answer::of(call.json(&declaration()).send().await.unwrap()).await
    };
    let there: Value = declare(&svid).await.expect(StatusCode::CREATED);
    assert_eq!(there["workload"], "spiffe://example.org/neighbours/ci/acme/payments");
    assert!(text(&claims(&svid), "sub").starts_with("spiffe://example.com/"));
}
