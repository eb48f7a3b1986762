//! A broker whose authorities are certified by the CA of an organisation, as OpenSSL makes one: whoever trusts its root, and nothing
//! else, trusts what the broker certifies.

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose,
    NameConstraints,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::{
    both,
    certificates::{list_named_in, must, openssl},
    clients::rust,
    rotation::{in_state, list, rotate, rotated},
    support::{
        ADMIN, Frozen, GIT, Server, Stand, Store, free_port,
        pki::{self, authority, lasts, params},
        text, wait_for,
    },
};

const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"];

/// A CA in `NAME.crt` and `NAME.key`, by another one or itself.
fn make_ca(dir: &Path, name: &str, key: &[&str], subject: &str, room: &str, by: Option<&str>) {
    let file = |kind: &str| format!("{name}.{kind}");
    let extensions = format!(
        "basicConstraints=critical,CA:TRUE{room}\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
    );
    fs::write(dir.join(file("ext")), extensions).unwrap();
    must(dir, &[&["genpkey", "-out", &file("key")], key].concat());
    must(dir, &["req", "-new", "-utf8", "-key", &file("key"), "-subj", subject, "-out", &file("csr")]);
    let (issuer, issuer_key) = by.map(|by| (format!("{by}.crt"), format!("{by}.key"))).unzip();
    let own = file("key");
    let signer: Vec<&str> = match (&issuer, &issuer_key) {
        (Some(issuer), Some(key)) => vec!["-CA", issuer, "-CAkey", key, "-CAcreateserial"],
        _ => vec!["-signkey", &own],
    };
    let (csr, ext, out) = (file("csr"), file("ext"), file("crt"));
    let sign = ["x509", "-req", "-in", &csr, "-days", "400", "-extfile", &ext, "-out", &out];
    must(dir, &[&sign[..], &signer].concat());
    fs::set_permissions(dir.join(file("key")), fs::Permissions::from_mode(0o600)).unwrap();
}

/// A root (RSA, with a name as directories have them) and a CA below it (P-384) that is for brokers.
pub(crate) struct Organization(tempfile::TempDir);

pub(crate) static ORGANIZATION: LazyLock<Organization> = LazyLock::new(Organization::new);

impl Organization {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let lists = "[ca]\ndefault_ca=own\n[own]\ndatabase=index\ndefault_md=sha256\ndefault_crl_days=30\n";
        fs::write(dir.path().join("lists.cnf"), lists).unwrap();
        fs::write(dir.path().join("index"), "").unwrap();
        make_ca(dir.path(), "root", RSA, "/DC=com/DC=example/O=Exämple/OU=A/OU=B/CN=Example Root", "", None);
        make_ca(dir.path(), "issuing", P384, "/DC=com/DC=example/CN=Example Brokers", ",pathlen:1", Some("root"));
        Self(dir)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What follows in the configuration of a broker below the issuing CA.
    pub(crate) fn config(&self) -> String {
        settings(&self.file("issuing.crt"), &self.file("issuing.key"), Some(&self.file("root.crt")))
    }

    fn root(&self) -> String {
        fs::read_to_string(self.file("root.crt")).unwrap()
    }

    /// The lists that the organisation has of its own: nothing is revoked.
    pub(crate) fn lists(&self) -> String {
        ["root", "issuing"]
            .map(|name| {
                must(
                    self.0.path(),
                    &[
                        "ca",
                        "-gencrl",
                        "-config",
                        "lists.cnf",
                        "-cert",
                        &format!("{name}.crt"),
                        "-keyfile",
                        &format!("{name}.key"),
                    ],
                )
            })
            .concat()
    }
}

fn settings(certificate: &Path, key: &Path, bundle: Option<&Path>) -> String {
    let bundle = bundle.map(|file| format!("bundle_file = \"{}\"\n", file.display())).unwrap_or_default();
    format!(
        "[authority.upstream]\ncertificate_file = \"{}\"\nkey_file = \"{}\"\n{bundle}",
        certificate.display(),
        key.display()
    )
}

fn ders(pem: &str) -> Vec<Vec<u8>> {
    Pem::iter_from_buffer(pem.as_bytes()).map(|pem| pem.unwrap().contents).collect()
}

async fn fetch(stand: &Stand, at: &Server, path: &str) -> String {
    stand.client.get(format!("{}{path}", at.url)).send().await.unwrap().text().await.unwrap()
}

/// A certificate of a new task, with its files: `key.pem`, `leaf.pem`, `chain.pem` and `bundle.pem`.
struct Certified {
    dir: tempfile::TempDir,
    task: String,
    answer: Value,
    chain: Vec<Vec<u8>>,
}

impl Certified {
    async fn new(stand: &Stand, at: &Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = ["genpkey", "-out", "key.pem", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
        must(dir.path(), &key);
        must(dir.path(), &["req", "-new", "-key", "key.pem", "-subj", "/CN=x", "-out", "csr.pem"]);
        let csr = fs::read_to_string(dir.path().join("csr.pem")).unwrap();
        let (task, _) = stand.task_with_token().await;
        let path = format!("/v1/tasks/{task}/certificate");
        let body = Some(json!({ "csr": csr }));
        let answer = stand.call_at(at, Method::POST, &path, Some(&stand.evidence()), body).await;
        let answer = answer.expect(StatusCode::OK);
        let pem = text(&answer, "certificate");
        let (leaf, chain) = pem.split_at(pem.find("-----END").unwrap() + "-----END CERTIFICATE-----\n".len());
        for (name, text) in [("leaf.pem", leaf), ("chain.pem", chain), ("all.pem", &pem)] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        fs::write(dir.path().join("bundle.pem"), text(&answer, "bundle")).unwrap();
        Self { dir, task, chain: ders(&pem), answer }
    }

    /// What OpenSSL says to it, where these certificates are trusted.
    fn verify(&self, roots: &str, more: &[&str]) -> (bool, String) {
        fs::write(self.dir.path().join("roots.pem"), roots).unwrap();
        let check = ["verify", "-x509_strict", "-CAfile", "roots.pem"];
        let chain: &[&str] = if self.chain.len() > 1 { &["-untrusted", "chain.pem"] } else { &[] };
        openssl(self.dir.path(), &[&check[..], chain, more, &["leaf.pem"]].concat())
    }

    #[track_caller]
    fn is_good(&self, roots: &str, more: &[&str]) {
        let (good, said) = self.verify(roots, more);
        assert!(good, "{said}");
    }

    /// The file `list.pem`, from these lists of the broker.
    fn lists(&self, lists: &str) -> [&'static str; 3] {
        fs::write(self.dir.path().join("list.pem"), lists).unwrap();
        ["-crl_check", "-CRLfile", "list.pem"]
    }

    fn issuer(&self) -> String {
        parse_x509_certificate(&self.chain[0]).unwrap().1.issuer().to_string()
    }
}

both! {
    crate::upstream::ORGANIZATION.config();

    async fn the_root_alone_is_trusted(stand) {
        let root = ORGANIZATION.root();
        let one = Certified::new(&stand, &stand.broker).await;
        // What verifiers are told, wherever they ask.
        let der = ders(&root);
        for pem in [text(&one.answer, "bundle"), fetch(&stand, &stand.broker, "/pki/ca.pem").await] {
            assert_eq!(ders(&pem), der);
        }
        let bundle = stand.call(Method::GET, "/spiffe/bundle", None, None).await.expect(StatusCode::OK);
        let x509: Vec<_> = bundle["keys"].as_array().unwrap().iter().filter(|key| key["use"] == "x509-svid").collect();
        let [key] = x509[..] else { panic!("{bundle}") };
        assert!(key["kty"] == "RSA" && key["e"] == "AQAB" && key["n"].as_str().unwrap().len() == 512, "{key}");
        assert!(key.get("kid").is_none() && key.get("crv").is_none(), "{key}");
        let x5c = key["x5c"].as_array().unwrap();
        assert!(x5c.len() == 1 && root.replace('\n', "").contains(x5c[0].as_str().unwrap()), "{key}");
        // The chain: the task, the broker's authority, the CA; and no root.
        assert_eq!((one.chain.len(), &one.chain[2]), (3, &ders(&fs::read_to_string(ORGANIZATION.file("issuing.crt")).unwrap())[0]));
        let parsed: Vec<_> = one.chain.iter().map(|der| parse_x509_certificate(der).unwrap().1).collect();
        let own = &parsed[1];
        own.verify_signature(Some(parsed[2].public_key())).unwrap();
        assert_eq!(own.issuer().as_raw(), parsed[2].subject().as_raw());
        assert!(own.is_ca() && own.basic_constraints().unwrap().unwrap().value.path_len_constraint == Some(0));
        let usage = own.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign() && !usage.value.digital_signature());
        assert_eq!(own.subject_alternative_name().unwrap().unwrap().value.general_names, [GeneralName::URI("spiffe://example.com")]);
        assert!(own.validity().not_after <= parsed[2].validity().not_after);
        assert!(parsed[0].issuer() == own.subject() && own.raw_serial().len() == 20);

        // OpenSSL, with the lists too; the root alone without the chain is not enough, nor is the chain without the root.
        one.is_good(&root, &["-purpose", "sslclient"]);
        one.is_good(&root, &["-purpose", "sslserver"]);
        let lists = fetch(&stand, &stand.broker, "/pki/crl.pem").await;
        one.is_good(&root, &one.lists(&lists));
        let other = fs::read_to_string(Organization::new().file("root.crt")).unwrap();
        assert!(!one.verify(&other, &[]).0);
        // The crate `spiffe` with what the bundle says.
        let identity = one.dir.path().join("identity.pem");
        let key = fs::read_to_string(one.dir.path().join("key.pem")).unwrap();
        fs::write(&identity, text(&one.answer, "certificate") + &key).unwrap();
        let said = rust(&[&stand.broker.url, "example.com", GIT], &[identity.to_str().unwrap()]).await;
        assert_eq!(said, [text(&one.answer, "spiffe_id")]);

        // A revoke shows as ever.
        stand.revoke(&one.task).await.expect(StatusCode::OK);
        wait_for("its list", || async {
            let lists = fetch(&stand, &stand.broker, "/pki/crl.pem").await;
            one.verify(&root, &one.lists(&lists)).1.contains("certificate revoked")
        }).await;

        // Whoever looks at the keys sees who vouches.
        let keys = list(&stand).await;
        let authority = keys["keys"].as_array().unwrap().iter().find(|key| key["use"] == "x509_svid").unwrap();
        assert_eq!(authority["upstream"], "DC=com, DC=example, CN=Example Brokers");
        assert!(keys["keys"].as_array().unwrap().iter().all(|key| key["use"] == "x509_svid" || key.get("upstream").is_none()));
    }

    /// A rotation, a taint and a restart: every authority is certified, and nobody has to fetch anything.
    async fn every_authority_is_certified(stand) {
        let mut stand = stand;
        let root = ORGANIZATION.root();
        let first = Certified::new(&stand, &stand.broker).await;
        rotate(&stand).await;
        rotated(&stand).await;
        let second = Certified::new(&stand, &stand.broker).await;
        stand.restart_broker().await;
        let third = Certified::new(&stand, &stand.broker).await;
        let keys = list(&stand).await;
        let signing = in_state(&keys, "signing");
        let kid = text(signing.iter().find(|key| key["use"] == "x509_svid").unwrap(), "kid");
        stand.post(&format!("/v1/keys/{kid}/taint"), ADMIN, json!({})).await.expect(StatusCode::OK);
        let fourth = Certified::new(&stand, &stand.broker).await;
        assert!(second.issuer().contains(&kid) && second.issuer() == third.issuer());
        assert!(first.issuer() != second.issuer() && fourth.issuer() != third.issuer());
        for one in [&first, &second, &third, &fourth] {
            one.is_good(&root, &[]);
        }
        assert_eq!(ders(&fetch(&stand, &stand.broker, "/pki/ca.pem").await), ders(&root));
        // The lists of the tainted one are given out no more: who looks at them refuses what it signed.
        let lists = fetch(&stand, &stand.broker, "/pki/crl.pem").await;
        for (one, good) in [(&first, true), (&third, false), (&fourth, true)] {
            assert_eq!(one.verify(&root, &one.lists(&lists)).0, good);
        }
    }
}

/// The root stays, so it takes a list of the CA itself to say that one of the authorities below it is not to be believed: any broker gives
/// it out, for those of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tainted_authority_is_on_a_list_of_its_ca() {
    let stand = Stand::with(Store::Redis, &ORGANIZATION.config()).await;
    let second = second(&stand, "").await;
    let (root, own) = (ORGANIZATION.root(), ORGANIZATION.lists());
    let (one, other) = (Certified::new(&stand, &stand.broker).await, Certified::new(&stand, &second).await);
    let all = |one: &Certified, lists: &str| {
        one.lists(lists);
        one.verify(&root, &["-crl_check_all", "-CRLfile", "list.pem"])
    };
    let before = fetch(&stand, &stand.broker, "/pki/crl.pem").await;
    assert_eq!(before.matches("BEGIN X509 CRL").count(), 3, "two authorities, and who certified both");
    for one in [&one, &other] {
        let (good, said) = all(one, &(before.clone() + &own));
        assert!(good, "{said}");
        // Of its own CA the organisation has a list, and of the root; of the authority only the broker.
        assert!(!all(one, &before).0 && !all(one, &own).0);
    }
    // What the list is: of authorities, for those that name it, and of nobody else.
    let path = list_named_in(&one.chain[1]).strip_prefix(&stand.broker.url).unwrap().to_owned();
    let octets = stand.client.get(stand.url(&path)).send().await.unwrap().bytes().await.unwrap();
    fs::write(one.dir.path().join("l.der"), &octets).unwrap();
    let shown = must(one.dir.path(), &["crl", "-inform", "DER", "-in", "l.der", "-noout", "-text"]);
    for words in ["No Revoked Certificates.", "Issuing Distribution Point: critical", "Only CA Certificates", &path] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let (_, list) = parse_x509_crl(&octets).unwrap();
    let (_, issuing) = parse_x509_certificate(&one.chain[2]).unwrap();
    list.verify_signature(issuing.public_key()).unwrap();
    assert!(list.issuer().as_raw() == issuing.subject().as_raw() && path.ends_with(".authorities"));
    assert!(list.next_update().unwrap().timestamp() - list.last_update().timestamp() <= 12);
    let unknown = path.replacen(&path[9..19], "AAAAAAAAAA", 1);
    assert_eq!(stand.call(Method::GET, &unknown, None, None).await.status, StatusCode::NOT_FOUND);

    let kid = one.issuer().rsplit_once("CN=").unwrap().1.to_owned();
    stand
        .call_at(&second, Method::POST, &format!("/v1/keys/{kid}/taint"), Some(ADMIN), Some(json!({})))
        .await
        .expect(StatusCode::OK);
    for at in [&stand.broker, &second] {
        wait_for("the list", || async {
            let lists = before.clone() + &fetch(&stand, at, "/pki/crl.pem").await + &own;
            all(&one, &lists).1.contains("certificate revoked")
        })
        .await;
        let lists = fetch(&stand, at, "/pki/crl.pem").await + &own;
        assert!(all(&other, &lists).0 && !all(&one, &lists).0);
        let octets = stand.client.get(format!("{}{path}", at.url)).send().await.unwrap().bytes().await.unwrap();
        let (_, list) = parse_x509_crl(&octets).unwrap();
        let entries: Vec<_> = list.iter_revoked_certificates().collect();
        let (_, authority) = parse_x509_certificate(&one.chain[1]).unwrap();
        assert!(entries.len() == 1 && entries[0].raw_serial() == authority.raw_serial());
        assert_eq!(entries[0].reason_code().unwrap().1.0, 1, "keyCompromise");
    }
}

/// Another broker of the stand, below the same CA, with more to listen to.
async fn second(stand: &Stand, listen: &str) -> Server {
    let url = stand.redis.as_ref().unwrap().url();
    let config = crate::support::write_config(stand.dir.path(), "second", &url, &ORGANIZATION.config());
    let written = fs::read_to_string(&config).unwrap();
    let own = written.split('"').nth(1).unwrap().to_owned();
    let listen = format!("{listen}[store]");
    fs::write(&config, written.replace(&own, &stand.broker.url).replace("[store]", &listen)).unwrap();
    Server::start(&config).await
}

/// Its certificate for its own TLS listener too; and a client that knows the root knows a broker that joins, with nothing fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_joins_is_known_at_once() {
    let stand = Stand::with(Store::Redis, &ORGANIZATION.config()).await;
    let port = free_port();
    let second = second(&stand, &format!("tls = \"127.0.0.1:{port}\"\ntls_names = [\"localhost\"]\n")).await;
    let curl = |root: &Path| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]);
        let output = curl.arg(root).arg(format!("https://localhost:{port}/healthz")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(curl(&ORGANIZATION.file("root.crt")), "200");
    assert_eq!(curl(&Organization::new().file("root.crt")), "000");
    let root = ORGANIZATION.root();
    let (here, there) = (Certified::new(&stand, &stand.broker).await, Certified::new(&stand, &second).await);
    assert_ne!(here.issuer(), there.issuer());
    for one in [&here, &there] {
        for at in [&stand.broker, &second] {
            let lists = fetch(&stand, at, "/pki/crl.pem").await;
            assert_eq!(lists.matches("BEGIN X509 CRL").count(), 3);
            one.is_good(&fetch(&stand, at, "/pki/ca.pem").await, &one.lists(&lists));
        }
        one.is_good(&root, &[]);
    }
    assert_eq!(ders(&fetch(&stand, &second, "/pki/ca.pem").await), ders(&root), "one root for both");
}

/// Switched on, changed and switched off under verifiers that trusted what was there before: as a rotation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_switched_on_and_off_as_keys_are_rotated() {
    let mut stand = Stand::new(Store::Embedded).await;
    let plain = fs::read_to_string(&stand.broker.config).unwrap();
    let before = Certified::new(&stand, &stand.broker).await;
    let known = fetch(&stand, &stand.broker, "/pki/ca.pem").await;
    let dir = stand.dir.path().to_owned();
    make_ca(&dir, "alone", P384, "/CN=Alone", "", None);
    let alone = settings("alone.crt".as_ref(), "alone.key".as_ref(), None);
    let steps = [ORGANIZATION.config(), alone, String::new()];
    let mut last = before.issuer();
    let mut all = vec![before];
    for extra in &steps {
        fs::write(&stand.broker.config, plain.clone() + extra).unwrap();
        stand.restart_broker().await;
        let bundle = wait_for_other(&stand, &last).await;
        let one = Certified::new(&stand, &stand.broker).await;
        assert_eq!(
            one.chain.len(),
            if extra.is_empty() {
                1
            } else if extra.contains("alone") {
                2
            } else {
                3
            }
        );
        all.push(one);
        // What was certified before stays good for all who fetch, and no wider than it has to be for those who do not.
        for one in &all {
            one.is_good(&bundle, &[]);
        }
        last = all.last().unwrap().issuer();
    }
    assert!(all[0].verify(&known, &[]).0 && !all[1].verify(&known, &[]).0);
    all[1].is_good(&ORGANIZATION.root(), &[]);
    all[2].is_good(&fs::read_to_string(dir.join("alone.crt")).unwrap(), &[]);
    assert_eq!(ders(&fetch(&stand, &stand.broker, "/pki/ca.pem").await).len(), 4, "two of its own, two roots");
}

/// Waits until certificates are by another authority; yields what is to be trusted then.
async fn wait_for_other(stand: &Stand, issuer: &str) -> String {
    wait_for("the next authority", || async { Certified::new(stand, &stand.broker).await.issuer() != issuer }).await;
    fetch(stand, &stand.broker, "/pki/ca.pem").await
}

/// A CA in files that a test may change under a broker.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn put(&self, certificates: &str, key: &str) -> &Self {
        fs::write(self.dir.path().join("ca.crt"), certificates).unwrap();
        let path = self.dir.path().join("ca.key");
        fs::write(&path, key).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self
    }

    /// A root with these parameters.
    fn root(&self, params: &CertificateParams) -> &Self {
        let identity = pki::Identity::alone(params);
        self.put(&identity.certificate.pem(), &identity.key.serialize_pem())
    }

    fn settings(&self) -> String {
        settings(&self.dir.path().join("ca.crt"), &self.dir.path().join("ca.key"), None)
    }
}

/// A CA that is good for a month.
fn good(name: &str) -> CertificateParams {
    let mut params = authority(name);
    lasts(&mut params, -3600, 60 * 86_400);
    params
}

/// The next authority is by whatever the files hold by then; and one that is about to end is not replaced over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_files_are_read_for_each_authority() {
    let place = Place::new();
    let mut params = good("old");
    lasts(&mut params, -3600, 30 * 3600);
    place.root(&params);
    let stand = Stand::with(Store::Embedded, &place.settings()).await;
    let one = Certified::new(&stand, &stand.broker).await;
    let ends =
        |one: &Certified, at: usize| parse_x509_certificate(&one.chain[at]).unwrap().1.validity().not_after.timestamp();
    let root =
        parse_x509_certificate(&ders(&text(&one.answer, "bundle"))[0]).unwrap().1.validity().not_after.timestamp();
    assert_eq!(ends(&one, 1), root, "no longer than who certified it");
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(list(&stand).await["keys"].as_array().unwrap().len(), 6, "nothing is gained by another");
    // A key of another CA than the certificate: nothing changes, and it is tried again.
    let pem = place.root(&good("new"));
    let new = fs::read_to_string(pem.dir.path().join("ca.crt")).unwrap();
    place.root(&good("another"));
    fs::write(place.dir.path().join("ca.crt"), &new).unwrap();
    stand.post("/v1/keys/rotate", ADMIN, json!({})).await.refused(503, "temporarily_unavailable");
    assert_eq!(Certified::new(&stand, &stand.broker).await.issuer(), one.issuer());
    place.root(&good("another"));
    rotate(&stand).await;
    rotated(&stand).await;
    let next = Certified::new(&stand, &stand.broker).await;
    assert!(next.issuer() != one.issuer() && ends(&next, 1) > ends(&one, 1));
    let bundle = text(&next.answer, "bundle");
    assert!(ders(&bundle).len() == 2 && one.verify(&bundle, &[]).0 && next.verify(&bundle, &[]).0);
}

/// A CA that is about to end certifies nothing more, and goes on saying which of its authorities is tainted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_signed_until_the_ca_ends() {
    let place = Place::new();
    let mut params = good("ending");
    lasts(&mut params, -3600, 30 * 3600);
    place.root(&params);
    let frozen = Frozen::start(|text| text.to_owned() + &place.settings()).await;
    let client = crate::support::client();
    let lists = async || {
        let lists = client.get(frozen.url("/pki/crl.pem")).send().await.unwrap().text().await.unwrap();
        lists.matches("BEGIN X509 CRL").count()
    };
    assert_eq!(lists().await, 2);
    frozen.clock.advance(chrono::TimeDelta::hours(10));
    let rotate = client.post(frozen.url("/v1/keys/rotate")).bearer_auth(ADMIN).json(&json!({})).send().await.unwrap();
    assert_eq!(rotate.status(), StatusCode::SERVICE_UNAVAILABLE);
    wait_for("the lists of then", || async { lists().await == 2 }).await;
    frozen.running.stop().await;
}

/// As many certificates as can be kept beside the key are found there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_bundle_outlives_a_restart() {
    let place = Place::new();
    place.root(&good("first"));
    let mut bundle = fs::read_to_string(place.dir.path().join("ca.crt")).unwrap();
    for letter in ["b", "c", "d"] {
        bundle += &pki::Identity::alone(&good(&letter.repeat(2000))).certificate.pem();
    }
    let file = place.dir.path().join("bundle.crt");
    fs::write(&file, &bundle).unwrap();
    let config = place.settings() + &format!("bundle_file = \"{}\"\n", file.display());
    let mut stand = Stand::with(Store::Embedded, &config).await;
    stand.restart_broker().await;
    let one = Certified::new(&stand, &stand.broker).await;
    assert_eq!((ders(&text(&one.answer, "bundle")), one.chain.len()), (ders(&bundle), 2));
    for letter in ["e", "f", "g", "h", "i"] {
        bundle += &pki::Identity::alone(&good(letter)).certificate.pem();
    }
    fs::write(&file, &bundle).unwrap();
    assert!(refused(&config).contains("more than 8 certificates"));
}

/// What is said of a configuration that is as it was, but for the CA.
fn refused(settings: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ci-keys.json"), crate::support::Issuer::new().jwks().to_string()).unwrap();
    let config = crate::support::write_config(dir.path(), "broker", "redb:remit.redb", settings);
    let tls =
        format!("tls = \"127.0.0.1:{}\"\ntls_names = [\"broker.example.com\", \"127.0.0.1\"]\n[store]", free_port());
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[store]", &tls)).unwrap();
    let remit = |arguments: &[&str]| {
        let mut remit = Command::new(env!("CARGO_BIN_EXE_remit"));
        let output = remit.args(arguments).arg("--config").arg(&config).env("REMIT_LOG", "error").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{arguments:?}: {said}");
        said
    };
    let (checked, served) = (remit(&["config", "check"]), remit(&["serve"]));
    let sentence = |said: &str| said.lines().find(|line| line.contains("authority")).unwrap_or(said).to_owned();
    let at = |said: String| said[said.find("`authority").unwrap_or_default()..].to_owned();
    assert_eq!(at(sentence(&checked)), at(sentence(&served)), "they judge alike");
    assert_eq!(checked.trim().lines().count(), 1, "{checked}");
    sentence(&checked)
}

#[test]
fn a_ca_that_will_not_do_is_refused_in_one_sentence() {
    type Change = fn(&mut CertificateParams);
    let cases: [(Change, &str); 14] = [
        (|p| p.is_ca = IsCa::ExplicitNoCa, "is none of a CA"),
        (|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), "has a path length of 0"),
        (|p| p.key_usages.clear(), "has no key usage"),
        (|p| p.key_usages.retain(|usage| *usage == KeyUsagePurpose::CrlSign), "without keyCertSign"),
        (|p| p.key_usages.retain(|usage| *usage == KeyUsagePurpose::KeyCertSign), "without cRLSign"),
        (|p| lasts(p, -7200, -3600), "renew it"),
        (|p| lasts(p, 3600, 60 * 86_400), "is valid from"),
        (|p| lasts(p, -3600, 23 * 3600), "within a day"),
        (
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection],
            "without serverAuth and clientAuth",
        ),
        (|p| p.subject_alt_names = vec![pki::uri("spiffe://example.org")], "is of another trust domain"),
        (|p| permit(p, GeneralSubtree::DirectoryName(params("x").distinguished_name)), "O=Remit"),
        (|p| permit(p, GeneralSubtree::DnsName("example.org".into())), "`broker.example.com` of `listen.tls_names`"),
        (
            |p| {
                let network = CidrSubnet::V4([10, 0, 0, 0], [255, 0, 0, 0]);
                permit(p, GeneralSubtree::IpAddress(network));
            },
            "`127.0.0.1` of `listen.tls_names`",
        ),
        (
            |p| {
                let excluded_subtrees = vec![GeneralSubtree::DnsName("example.com".into())];
                p.name_constraints = Some(NameConstraints { permitted_subtrees: vec![], excluded_subtrees });
            },
            "`broker.example.com` of `listen.tls_names`",
        ),
    ];
    let place = Place::new();
    for (change, words) in cases {
        let mut params = good("Example");
        change(&mut params);
        place.root(&params);
        let said = refused(&place.settings());
        assert!(said.contains(words) && said.contains("`authority.upstream.certificate_file`"), "{words}: {said}");
    }
}

fn permit(params: &mut CertificateParams, name: GeneralSubtree) {
    params.name_constraints = Some(NameConstraints { permitted_subtrees: vec![name], excluded_subtrees: vec![] });
}

/// CAs and their keys in one directory, of which a configuration names some.
struct Bench(tempfile::TempDir);

impl Bench {
    /// A root, and a CA below it.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), "root", RSA, "/CN=Root", "", None);
        make_ca(dir.path(), "below", P384, "/CN=Below", "", Some("root"));
        Self(dir)
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn settings(&self, certificate: &str, key: &str, bundle: Option<&str>) -> String {
        let file = |name: &str| self.dir().join(name);
        settings(&file(certificate), &file(key), bundle.map(file).as_deref())
    }

    /// Refused because of what a setting names, in these words.
    #[track_caller]
    fn refuses(&self, certificate: &str, key: &str, bundle: Option<&str>, setting: &str, words: &str) {
        let said = refused(&self.settings(certificate, key, bundle));
        assert!(said.contains(&format!("`authority.upstream.{setting}`")) && said.contains(words), "{words}: {said}");
    }

    fn join(&self, names: &[&str], into: &str) {
        let all: String = names.iter().map(|name| fs::read_to_string(self.dir().join(name)).unwrap()).collect();
        fs::write(self.dir().join(into), all).unwrap();
    }

    /// The root again, with one more extension.
    fn root_with(&self, extension: &str, out: &str) {
        let all = format!("{}{extension}\n", fs::read_to_string(self.dir().join("root.ext")).unwrap());
        fs::write(self.dir().join("more.ext"), all).unwrap();
        let sign = ["x509", "-req", "-in", "root.csr", "-days", "90", "-extfile", "more.ext", "-signkey", "root.key"];
        must(self.dir(), &[&sign[..], &["-out", out]].concat());
    }
}

#[test]
fn certificates_that_will_not_do_are_refused_in_one_sentence() {
    const KEYS: &str = "P-256, P-384, or RSA of 2048 to 4096 bits";
    let bench = Bench::new();
    make_ca(bench.dir(), "deep", P384, "/CN=Deep", ",pathlen:0", Some("below"));
    make_ca(bench.dir(), "ed", &["-algorithm", "ED25519"], "/CN=Ed", "", None);
    make_ca(bench.dir(), "short", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], "/CN=Short", "", None);
    let own = |name: &str, words: &str| {
        bench.refuses(&format!("{name}.crt"), &format!("{name}.key"), None, "certificate_file", words);
    };
    own("nothing", "cannot be read");
    own("below", "`authority.upstream.bundle_file`");
    own("ed", KEYS);
    own("short", KEYS);
    bench.refuses("root.key", "root.key", None, "certificate_file", "holds no certificate");
    bench.refuses("below.crt", "below.key", Some("ed.crt"), "certificate_file", "leads to no root");
    bench.refuses("below.crt", "below.key", Some("root.key"), "bundle_file", "holds no certificate");
    // All that the path goes through counts; what is beside it is not waved through.
    bench.join(&["deep.crt", "below.crt", "root.crt"], "path.crt");
    bench.refuses("path.crt", "deep.key", None, "certificate_file", "CN=Deep` has a path length of 0");
    bench.join(&["root.crt", "below.crt"], "beside.crt");
    bench.refuses("beside.crt", "root.key", None, "certificate_file", "vouches for none of the others");
    bench.root_with("1.2.3.4=critical,ASN1:NULL", "odd.crt");
    bench.refuses("odd.crt", "root.key", None, "certificate_file", "that the broker does not know: 1.2.3.4");
    // Of URIs only OpenSSL writes constraints.
    for constraint in ["permitted;URI:example.org", "excluded;URI:example.com"] {
        bench.root_with(&format!("nameConstraints=critical,{constraint}"), "named.crt");
        bench.refuses("named.crt", "root.key", None, "certificate_file", "spiffe://example.com/…");
    }
    bench.root_with("nameConstraints=critical,permitted;URI:example.com", "named.crt");
    let said = check_of(&bench.settings("named.crt", "root.key", None));
    assert!(said.contains("upstream CA") && said.contains("CN=Root until "), "{said}");
    let place = Place::new();
    let mut soon = good("Soon");
    lasts(&mut soon, -3600, 10 * 86_400);
    place.root(&soon);
    let said = check_of(&place.settings());
    assert!(said.contains("warning: `authority.upstream`:") && said.contains("`remit keys rotate`"), "{said}");
}

/// Of another certificate, as OpenSSL used to write it, behind a passphrase, open to others.
#[test]
fn keys_that_will_not_do_are_refused_in_one_sentence() {
    let bench = Bench::new();
    must(bench.dir(), &["ec", "-in", "below.key", "-out", "sec1.key"]);
    must(bench.dir(), &["pkcs8", "-topk8", "-in", "below.key", "-passout", "pass:x", "-out", "locked.key"]);
    fs::copy(bench.dir().join("below.key"), bench.dir().join("open.key")).unwrap();
    for (file, mode) in [("sec1.key", 0o600), ("locked.key", 0o600), ("open.key", 0o640)] {
        fs::set_permissions(bench.dir().join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (file, words) in [
        ("nothing", "not there"),
        ("root.key", "is not the key of the first certificate"),
        ("root.crt", "can be read by others"),
        ("sec1.key", "openssl pkcs8 -topk8 -nocrypt"),
        ("locked.key", "openssl pkcs8 -topk8 -nocrypt"),
        ("open.key", "run chmod 600"),
    ] {
        bench.refuses("below.crt", file, Some("root.crt"), "key_file", words);
    }
}

/// What `config check` says to a configuration that it accepts.
fn check_of(settings: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ci-keys.json"), crate::support::Issuer::new().jwks().to_string()).unwrap();
    let config = crate::support::write_config(dir.path(), "broker", "redb:remit.redb", settings);
    let mut remit = Command::new(env!("CARGO_BIN_EXE_remit"));
    let output = remit.args(["config", "check", "--config"]).arg(&config).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
