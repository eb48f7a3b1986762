//! Workloads of another SPIFFE trust domain: by the certificate that they show in the handshake, or by a JWT-SVID.

use rcgen::{CertificateParams, CustomExtension, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    jwks::KeyServer,
    support::{
        Answer, GIT, Issuer, OWNER, Stand, Store, VIEWER, free_port, now, overlaid,
        pki::{Authority, Identity, authority, builder, lasts, params, svid, uri},
        text, wait_for,
    },
};

/// The trust domain whose workloads are known here.
const DOMAIN: &str = "spire.example.org";
const AGENT: &str = "spiffe://spire.example.org/ns/payments/sa/agent";

/// A broker with a TLS listener that knows the workloads of [`DOMAIN`].
struct Place {
    stand: Stand,
    servers: Authority,
    /// The authority of the trust domain.
    spire: Authority,
    /// What signs its JWT-SVIDs.
    keys: Issuer,
    port: u16,
}

impl Place {
    async fn new() -> Self {
        let publish = |place: &Self| fs::write(place.dir().join("bundle.json"), place.bundle().to_string()).unwrap();
        Self::with("", publish).await
    }

    /// `source` says where the bundle is, and `publish` writes it.
    async fn with(source: &str, publish: impl FnOnce(&Self)) -> Self {
        let stand = Stand::new(Store::Embedded).await;
        let (servers, spire, port) = (Authority::new("servers"), Authority::new("spire"), free_port());
        let mut place = Self { stand, servers, spire, keys: Issuer::new(), port };
        place.servers.serves(&place.dir().join("tls.crt"), &place.dir().join("tls.key"));
        publish(&place);
        let path = place.stand.broker.config.clone();
        let config = fs::read_to_string(&path).unwrap();
        let listen =
            format!("tls = \"127.0.0.1:{port}\"\ntls_cert_file = \"tls.crt\"\ntls_key_file = \"tls.key\"\n[store]");
        let config = config.replace("[store]", &listen);
        fs::write(&path, format!("{config}{}", attestor(source))).unwrap();
        place.stand.restart_broker().await;
        place
    }

    fn dir(&self) -> &Path {
        self.stand.dir.path()
    }

    /// The bundle of the trust domain, as SPIRE publishes it.
    fn bundle(&self) -> Value {
        self.bundle_of(&self.spire)
    }

    fn bundle_of(&self, authority: &Authority) -> Value {
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        let mut key = serde_json::to_value(self.keys.key.public()).unwrap();
        let mut anchor = key.clone();
        key["use"] = "jwt-svid".into();
        anchor["use"] = "x509-svid".into();
        anchor.as_object_mut().unwrap().remove("kid");
        anchor["x5c"] = json!([BASE64_STANDARD.encode(authority.certificate.der())]);
        json!({"spiffe_sequence": 1, "spiffe_refresh_hint": 300, "keys": [anchor, key, {"use": "wit-svid", "kty": "EC"}]})
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    async fn call(&self, identity: &Identity, path: &str, body: Value) -> Answer {
        let client = identity.client(&self.servers);
        Answer::of(client.request(Method::POST, self.url(path)).json(&body).send().await.expect("an answer")).await
    }

    async fn declare(&self, identity: &Identity) -> Answer {
        self.call(identity, "/v1/tasks", declaration()).await
    }

    /// A workload that the trust domain vouches for.
    fn agent(&self) -> Identity {
        self.spire.identity(&svid(AGENT))
    }

    /// A certificate of the trust domain that is not as it has to be.
    fn bad(&self, spoil: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = svid(AGENT);
        spoil(&mut params);
        self.spire.identity(&params)
    }

    fn jwt_svid(&self, over: &Value) -> String {
        let claims = json!({"sub": AGENT, "aud": [self.stand.broker.url], "iat": now(), "exp": now() + 300});
        self.keys.key.sign("JWT", &overlaid(claims, over)).unwrap()
    }
}

fn attestor(source: &str) -> String {
    format!(
        "[[attestor]]\ntype = \"x509\"\nname = \"spire\"\ntrust_domain = \"{DOMAIN}\"\nkind = \"service\"\n\
         workload = \"/spire/{{path/*}}\"\nfacts = {{ sandbox = \"{{2}}\" }}\nowners = [\"{OWNER}\"]\n{}",
        if source.is_empty() { "bundle_file = \"bundle.json\"\n" } else { source }
    )
}

/// The certificate says which sandbox it is.
fn declaration() -> Value {
    let mut declaration = crate::support::declaration();
    declaration.as_object_mut().unwrap().remove("sandbox");
    declaration
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_of_another_trust_domain_lives_a_task() {
    let place = Place::new().await;
    let agent = place.agent();
    let declared = place.declare(&agent).await.expect(StatusCode::CREATED);
    assert_eq!(declared["workload"], "spiffe://example.com/spire/ns/payments/sa/agent");
    assert_eq!((&declared["attestor"], &declared["kind"]), (&json!("spire"), &json!("service")));
    let key = remit::id::sha256_base64url(&agent.key.subject_public_key_info());
    assert_eq!(declared["instance"], key.as_str());
    let token = text(&declared["credentials"][0], "access_token");
    let claims = crate::support::claims(&token);
    assert_eq!(claims["urn:remit:task"]["evidence_issuer"], format!("spiffe://{DOMAIN}"));
    let task = text(&declared, "task");
    let mint = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
    place.call(&agent, &format!("/v1/tasks/{task}/credentials"), mint.clone()).await.expect(StatusCode::OK);
    // The same key in a new certificate is the same instance; another key is another, which sees nothing of it.
    let renewed = Identity { certificate: place.spire.signs(&svid(AGENT), &agent.key), ..agent };
    place.call(&renewed, &format!("/v1/tasks/{task}/credentials"), mint.clone()).await.expect(StatusCode::OK);
    let other = place.agent();
    place.call(&other, &format!("/v1/tasks/{task}/credentials"), mint).await.refused(404, "not_found");
    // As an OAuth client, authenticated by TLS.
    let form = [("grant_type", "client_credentials"), ("resource", GIT), ("scope", &format!("{task} read"))];
    let answer = renewed.client(&place.servers).post(place.url("/oauth2/token")).form(&form).send().await.unwrap();
    assert_eq!(Answer::of(answer).await.expect(StatusCode::OK)["task"], task.as_str());
    let form = [("grant_type", "client_credentials"), ("resource", GIT), ("scope", &format!("{task} read"))];
    let stranger = Identity::alone(&svid(AGENT));
    let answer = stranger.client(&place.servers).post(place.url("/oauth2/token")).form(&form).send().await.unwrap();
    Answer::of(answer).await.oauth_refused(401, "invalid_client");
    place.call(&renewed, &format!("/v1/tasks/{task}/complete"), json!({})).await.expect(StatusCode::OK);
}

/// An explicit `Authorization` is what counts, and nothing falls back from it to the certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explicit_authorization_beats_the_certificate() {
    let place = Place::new().await;
    let client = place.agent().client(&place.servers);
    let declare = |bearer: String| client.post(place.url("/v1/tasks")).bearer_auth(bearer).json(&declaration()).send();
    let declared = Answer::of(declare(place.stand.evidence()).await.unwrap()).await.expect(StatusCode::CREATED);
    assert_eq!(declared["attestor"], "ci");
    Answer::of(declare("nonsense".into()).await.unwrap()).await.refused(401, "evidence_invalid");
    let tasks = client.get(place.url("/v1/tasks")).bearer_auth(VIEWER).send().await.unwrap();
    assert_eq!(tasks.status(), StatusCode::OK);
    // Nobody can say in a header what only a handshake shows.
    let anonymous = builder(&place.servers).build().unwrap();
    let leaf = place.agent().certificate.pem().replace('\n', " ");
    for header in ["x-forwarded-client-cert", "client-cert", "x-client-cert", "x-ssl-client-cert"] {
        let call = anonymous.post(place.url("/v1/tasks")).header(header, &leaf).json(&declaration()).send();
        Answer::of(call.await.unwrap()).await.refused(401, "evidence_invalid");
    }
}

/// A chain of the trust domain's own; and a URI constraint, which nobody here can judge, is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_below_the_bundle() {
    let place = Place::new().await;
    let mut own = authority("below");
    own.subject_alt_names = vec![uri(&format!("spiffe://{DOMAIN}"))];
    let good = place.spire.below(own);
    let agent = good.identity(&svid(AGENT));
    place.declare(&agent).await.refused(401, "evidence_invalid");
    place.declare(&agent.with(&[&good])).await.expect(StatusCode::CREATED);
    let with = |change: fn(&mut CertificateParams)| {
        let mut params = authority("below");
        change(&mut params);
        place.spire.below(params)
    };
    for (why, below) in [
        ("no authority", with(|params| params.is_ca = IsCa::ExplicitNoCa)),
        ("may not sign certificates", with(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign])),
        ("of another trust domain", with(|params| params.subject_alt_names = vec![uri("spiffe://evil.example.org")])),
        ("of a workload", with(|params| params.subject_alt_names = vec![uri("spiffe://spire.example.org/ns/ca")])),
        ("expired", with(|params| lasts(params, -7200, -3600))),
        (
            "constrained to another trust domain",
            with(|params| params.custom_extensions = vec![uri_constraint(b"evil.example.org")]),
        ),
    ] {
        let agent = below.identity(&svid(AGENT)).with(&[&below]);
        let answer = place.declare(&agent).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{why}: {}", answer.text);
    }
    let alone = Authority::new("spire");
    place.declare(&alone.identity(&svid(AGENT)).with(&[&alone])).await.refused(401, "evidence_invalid");
    // What is genuine vouches for nothing that it did not sign, also where it comes along.
    for beside in [&[&place.spire][..], &[&good], &[&alone, &good], &[&good, &place.spire]] {
        place.declare(&alone.identity(&svid(AGENT)).with(beside)).await.refused(401, "evidence_invalid");
    }
}

/// `permittedSubtrees` with one URI (RFC 5280 section 4.2.1.10).
fn uri_constraint(host: &[u8]) -> CustomExtension {
    let within = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    let content = within(0x30, &within(0xa0, &within(0x30, &within(0x86, host))));
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    extension
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_svid_of_the_trust_domain_is_refused() {
    let place = Place::new().await;
    let spire = &place.spire;
    let other = Authority::new("other");
    place.declare(&place.agent()).await.expect(StatusCode::CREATED);
    let names = |names: &[&str]| {
        let mut params = svid(AGENT);
        params.subject_alt_names = names.iter().map(|name| uri(name)).collect();
        spire.identity(&params)
    };
    let begun = Instant::now();
    for (why, identity) in [
        ("two URIs", names(&[AGENT, "spiffe://spire.example.org/other"])),
        ("the same URI twice", names(&[AGENT, AGENT])),
        ("no URI", names(&[])),
        ("no SPIFFE ID", names(&["https://spire.example.org/ns/payments"])),
        ("the trust domain itself", names(&["spiffe://spire.example.org"])),
        ("a root path", names(&["spiffe://spire.example.org/"])),
        ("in capitals", names(&["spiffe://SPIRE.example.org/ns/payments/sa/agent"])),
        ("dots in the path", names(&["spiffe://spire.example.org/ns/../agent"])),
        ("another trust domain", names(&["spiffe://elsewhere.example.org/ns/payments"])),
        ("this broker's own trust domain", names(&["spiffe://example.com/ci/acme/payments"])),
        ("a path with a segment `task`", names(&["spiffe://spire.example.org/task/x"])),
        ("an authority", place.bad(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained))),
        ("may sign certificates", place.bad(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign))),
        ("may sign CRLs", place.bad(|params| params.key_usages.push(KeyUsagePurpose::CrlSign))),
        ("not for signatures", place.bad(|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement])),
        ("no key usage", place.bad(|params| params.key_usages = vec![])),
        (
            "for servers alone",
            place.bad(|params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
        ),
        ("expired", place.bad(|params| lasts(params, -7200, -1))),
        ("not valid yet", place.bad(|params| lasts(params, 60, 3600))),
        ("another authority", other.identity(&svid(AGENT))),
        ("nobody but itself", Identity::alone(&svid(AGENT))),
    ] {
        let answer = place.declare(&identity).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{why}: {}", answer.text);
        answer.refused(401, "evidence_invalid");
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    place.declare(&place.agent()).await.expect(StatusCode::CREATED);
}

/// A second URI counts, though it is none that anybody could read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_cannot_be_read_is_a_name() {
    let place = Place::new().await;
    let names = |others: &[&[u8]]| {
        let within = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
        let all = [AGENT.as_bytes()].iter().chain(others).map(|name| within(0x86, name)).collect::<Vec<_>>().concat();
        place.bad(|params| {
            params.subject_alt_names.clear();
            params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], within(0x30, &all))];
        })
    };
    place.declare(&names(&[])).await.expect(StatusCode::CREATED);
    place.declare(&names(&[b"spiffe://spire.example.org/\xff"])).await.refused(401, "evidence_invalid");
}

/// An RSA key of 16384 bits: numbers that nobody has the factors of.
struct Huge(Vec<u8>);

impl Huge {
    fn new() -> Self {
        let number =
            |octets: usize| [&[0x02, 0x82, u8::try_from(octets >> 8).unwrap(), 1, 0][..], &vec![0xff; octets]].concat();
        let modulus = number(2048);
        let exponent = [0x02, 0x03, 1, 0, 1];
        let length = u16::try_from(modulus.len() + exponent.len()).unwrap().to_be_bytes();
        Self([&[0x30, 0x82], &length[..], &modulus, &exponent].concat())
    }
}

impl PublicKeyData for Huge {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// What costs more to look at than anybody needs ends the handshake, before anything is computed with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expensive_certificates_are_turned_away_early() {
    let place = Place::new().await;
    let chain = |others: Vec<rcgen::Certificate>| Identity { others, ..place.agent() };
    let extra = |n: usize| (0..n).map(|n| Authority::new(&format!("extra {n}")).certificate).collect::<Vec<_>>();
    let mut long = params("long");
    long.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5; 33 * 1024])];
    let key = KeyPair::generate().unwrap();
    place.declare(&chain(extra(5))).await.expect(StatusCode::CREATED);
    for (why, identity) in [
        ("seven certificates", chain(extra(6))),
        ("a hundred certificates", chain(extra(100))),
        ("33 KiB", chain(vec![place.spire.signs(&long, &key)])),
        ("an RSA key of 16384 bits", chain(vec![place.spire.signs(&authority("huge"), &Huge::new())])),
    ] {
        let client = identity.client(&place.servers);
        let begun = Instant::now();
        let answer = client.post(place.url("/v1/tasks")).json(&declaration()).send().await;
        let took = begun.elapsed();
        assert!(answer.is_err(), "{why}: {answer:?}");
        assert!(took < Duration::from_millis(500), "{why} took {took:?}");
    }
    place.declare(&place.agent()).await.expect(StatusCode::CREATED);
}

/// Certificates that may stand in any order behind each other are many paths, each with signatures to check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_many_paths_is_not_walked() {
    let place = Place::new().await;
    let alike =
        |n: usize| Identity { others: (0..n).map(|_| Authority::new("spire").certificate).collect(), ..place.agent() };
    // Two, as where an authority was certified by two others.
    place.declare(&alike(2)).await.expect(StatusCode::CREATED);
    for n in [3, 5] {
        place.declare(&alike(n)).await.refused(401, "evidence_invalid");
    }
}

/// No credential outlives the certificate behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_ends_with_the_certificate() {
    let place = Place::new().await;
    let agent = place.bad(|params| lasts(params, -10, 60));
    let declared = place.declare(&agent).await.expect(StatusCode::CREATED);
    let exp = crate::support::claims(&text(&declared["credentials"][0], "access_token"))["exp"].as_i64().unwrap();
    assert!((now() + 50..=now() + 60).contains(&exp), "{exp}");
    // The connection outlives the certificate, which is worth nothing on it any more.
    let brief = place.bad(|params| lasts(params, -10, 4));
    let client = brief.client(&place.servers);
    let declare = || client.post(place.url("/v1/tasks")).json(&declaration()).send();
    assert_eq!(declare().await.unwrap().status(), StatusCode::CREATED);
    tokio::time::sleep(Duration::from_secs(5)).await;
    Answer::of(declare().await.unwrap()).await.refused(401, "evidence_invalid");
}

/// An authority that was renewed for its key vouches for what the certificate that ended vouched for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_authority_goes_on_where_the_old_one_ends() {
    let place = Place::with("", |place| {
        let mut old = authority("spire");
        lasts(&mut old, -3600, 8);
        let old = place.spire.renewed(&old).pem() + &place.spire.certificate.pem();
        fs::write(place.dir().join("bundle.json"), old).unwrap();
    })
    .await;
    let agent = place.agent();
    place.declare(&agent).await.expect(StatusCode::CREATED);
    tokio::time::sleep(Duration::from_secs(9)).await;
    place.declare(&agent).await.expect(StatusCode::CREATED);
}

/// Certificates in PEM are a bundle too, without keys of JWT-SVIDs; and a bundle that changes is followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_follows_its_file() {
    let place =
        Place::with("", |place| fs::write(place.dir().join("bundle.json"), place.spire.certificate.pem()).unwrap())
            .await;
    let agent = place.agent();
    place.declare(&agent).await.expect(StatusCode::CREATED);
    let next = Authority::new("next");
    place.declare(&next.identity(&svid(AGENT))).await.refused(401, "evidence_invalid");
    fs::write(place.dir().join("bundle.json"), next.certificate.pem()).unwrap();
    let other = next.identity(&svid(AGENT));
    wait_for("the new bundle", || async { place.declare(&other).await.status == StatusCode::CREATED }).await;
    // What the old one vouched for is worth nothing, though it was seen before.
    place.declare(&agent).await.refused(401, "evidence_invalid");
    // An empty bundle says that nobody is to be believed.
    fs::write(place.dir().join("bundle.json"), json!({"keys": []}).to_string()).unwrap();
    wait_for("the empty bundle", || async { place.declare(&other).await.status == StatusCode::UNAUTHORIZED }).await;
}

/// From the trust domain's own endpoint: an authority that is new there is learned of, and one that is gone is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_fetched_and_fetched_again() {
    let mut server = KeyServer::start().await;
    let (url, authority) = (format!("https://127.0.0.1:{}/bundle", server.port), server.dir.path().join("cert.pem"));
    let source = format!("bundle_url = \"{url}\"\nca_file = \"{}\"\nrefetch_interval = 1\n", authority.display());
    let publish = |bundle: Value| {
        fs::write(server.dir.path().join("new"), bundle.to_string()).unwrap();
        fs::rename(server.dir.path().join("new"), server.dir.path().join("jwks.json")).unwrap();
    };
    let place = Place::with(&source, |place| publish(place.bundle())).await;
    let agent = place.agent();
    place.declare(&agent).await.expect(StatusCode::CREATED);
    let next = Authority::new("spire");
    let (begun, strangers) = (Instant::now(), Authority::new("spire"));
    for _ in 0..20 {
        place.declare(&strangers.identity(&svid(AGENT))).await.refused(401, "evidence_invalid");
    }
    let most = 2 + usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(server.hits("/bundle") <= most, "{} fetches, {most} at most", server.hits("/bundle"));
    publish(place.bundle_of(&next));
    let other = next.identity(&svid(AGENT));
    wait_for("the new authority", || async { place.declare(&other).await.status == StatusCode::CREATED }).await;
    place.declare(&agent).await.refused(401, "evidence_invalid");
    server.child.kill().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    place.declare(&other).await.expect(StatusCode::CREATED);
    // Whether the trust domain has an authority that we do not know, nobody can tell now.
    place.declare(&strangers.identity(&svid(AGENT))).await.refused(503, "temporarily_unavailable");
}

/// From an endpoint that shows an X.509-SVID itself: it is known by the bundle that there is, and by its SPIFFE ID alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_endpoint_may_show_a_svid() {
    let first = Authority::new("spire");
    let server = |authority: &Authority, path: &str| authority.identity(&svid(&format!("spiffe://{DOMAIN}{path}")));
    let mut endpoint = KeyServer::showing(&server(&first, "/spire/server")).await;
    let source = format!(
        "bundle_file = \"first.pem\"\nbundle_url = \"https://127.0.0.1:{}/bundle\"\nendpoint_spiffe_id = \"spiffe://{DOMAIN}/spire/server\"\n\
         refetch_interval = 1\n",
        endpoint.port
    );
    let document = endpoint.dir.path().join("jwks.json");
    let place = Place::with(&source, |place| {
        fs::write(place.dir().join("first.pem"), first.certificate.pem()).unwrap();
        fs::write(&document, place.bundle_of(&first).to_string()).unwrap();
    })
    .await;
    place.declare(&first.identity(&svid(AGENT))).await.expect(StatusCode::CREATED);
    assert_eq!(endpoint.hits("/bundle"), 1, "the file is only to begin with");
    // The next authority comes by the word of this one, and then vouches for the endpoint itself.
    let next = Authority::new("spire");
    fs::write(&document, place.bundle_of(&next).to_string()).unwrap();
    let agent = next.identity(&svid(AGENT));
    wait_for("the next authority", || async { place.declare(&agent).await.status == StatusCode::CREATED }).await;
    endpoint.shows(&server(&next, "/spire/server")).await;
    let third = Authority::new("spire");
    fs::write(&document, place.bundle_of(&third).to_string()).unwrap();
    let agent = third.identity(&svid(AGENT));
    wait_for("the third authority", || async { place.declare(&agent).await.status == StatusCode::CREATED }).await;
    // Another workload of the trust domain has no say, nor has an authority that is gone.
    let mut evil = place.bundle_of(&next);
    for identity in
        [server(&third, "/ns/payments/sa/agent"), server(&next, "/spire/server"), Identity::alone(&svid(AGENT))]
    {
        endpoint.shows(&identity).await;
        evil["spiffe_sequence"] = 99.into();
        fs::write(&document, evil.to_string()).unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let answer = place.declare(&next.identity(&svid(AGENT))).await;
        answer.refused(503, "temporarily_unavailable");
    }
    place.declare(&agent).await.expect(StatusCode::CREATED);
}

/// What a server said that the configuration does not name any more is not believed any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_goes_with_the_endpoint_that_it_is_from() {
    let first = Authority::new("spire");
    let id = |path: &str| format!("spiffe://{DOMAIN}{path}");
    let endpoint = KeyServer::showing(&first.identity(&svid(&id("/spire/server")))).await;
    let source = format!(
        "bundle_file = \"first.pem\"\nbundle_url = \"https://127.0.0.1:{}/bundle\"\nendpoint_spiffe_id = \"{}\"\nrefetch_interval = 1\n",
        endpoint.port,
        id("/spire/server")
    );
    let next = Authority::new("spire");
    let place = Place::with(&source, |place| {
        fs::write(place.dir().join("first.pem"), first.certificate.pem()).unwrap();
        fs::write(endpoint.dir.path().join("jwks.json"), place.bundle_of(&next).to_string()).unwrap();
    })
    .await;
    let agent = next.identity(&svid(AGENT));
    place.declare(&agent).await.expect(StatusCode::CREATED);
    let path = place.stand.broker.config.clone();
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace(&id("/spire/server"), &id("/spire/other"))).unwrap();
    wait_for("the other endpoint", || async { place.declare(&agent).await.status != StatusCode::CREATED }).await;
    place.declare(&agent).await.refused(503, "temporarily_unavailable");
    place.declare(&first.identity(&svid(AGENT))).await.expect(StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_svid_is_evidence_where_the_attestor_has_an_audience() {
    let place = Place::new().await;
    let declare = async |token: &str| place.stand.post("/v1/tasks", token, declaration()).await;
    let token = place.jwt_svid(&json!({}));
    declare(&token).await.refused(401, "evidence_invalid");
    let path = place.stand.broker.config.clone();
    let config = fs::read_to_string(&path).unwrap();
    let own = format!("trust_domain = \"{DOMAIN}\"");
    fs::write(&path, config.replace(&own, &format!("{own}\naudience = \"{}\"", place.stand.broker.url))).unwrap();
    wait_for("the audience", || async { declare(&token).await.status == StatusCode::CREATED }).await;
    let declared = declare(&token).await.expect(StatusCode::CREATED);
    assert_eq!(declared["workload"], "spiffe://example.com/spire/ns/payments/sa/agent");
    assert!(text(&declared, "instance").starts_with("jwt-"));
    for over in [
        json!({"aud": "https://other.example.com"}),
        json!({"aud": []}),
        json!({"aud": null}),
        json!({"sub": null}),
        json!({"sub": "spiffe://spire.example.org"}),
        json!({"sub": "spiffe://example.com/ci/acme/payments"}),
        json!({"sub": "spiffe://elsewhere.example.org/a"}),
        json!({"sub": "spiffe://SPIRE.example.org/ns/payments/sa/agent"}),
        json!({"sub": "spiffe://me@spire.example.org/ns/payments/sa/agent"}),
        json!({"sub": "spiffe://spire.example.org:443/ns/payments/sa/agent"}),
        json!({"sub": format!("{AGENT}?x")}),
        json!({"sub": format!("{AGENT}#x")}),
        json!({"sub": format!("{AGENT}/")}),
        json!({"sub": "spiffe://spire.example.org/ns/payments//agent"}),
        json!({"sub": "spiffe://spire.example.org/ns/../agent"}),
        json!({"sub": "spiffe://spire.example.org/ns/%2e%2e/agent"}),
        json!({"sub": "spiffe://spire.example.org/ns/payments/sa/\u{e4}gent"}),
        json!({"sub": format!("spiffe://spire.example.org/{}", "a".repeat(2048))}),
        json!({"exp": null}),
        json!({"exp": now() - 1}),
        json!({"exp": now() + 86_400 + 60}),
        json!({"exp": i64::MAX}),
        json!({"nbf": now() + 60}),
        json!({"iat": now() + 60}),
    ] {
        declare(&place.jwt_svid(&over)).await.refused(401, "evidence_invalid");
    }
    let claims = json!({"sub": AGENT, "aud": place.stand.broker.url, "exp": now() + 300});
    declare(&place.keys.key.sign("JOSE", &claims).unwrap()).await.expect(StatusCode::CREATED);
    for typ in ["at+jwt", "jwt", "application/jwt", "wit+jwt", ""] {
        declare(&place.keys.key.sign(typ, &claims).unwrap()).await.refused(401, "evidence_invalid");
    }
    declare(&Issuer::new().key.sign("JWT", &claims).unwrap()).await.refused(401, "evidence_invalid");
}

/// A workload of the trust domain as an OAuth client: by its certificate (RFC 8705 section 2.1), or by a JWT-SVID
/// (draft-ietf-oauth-spiffe-client-auth). It is called by its SPIFFE ID, and may leave that out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_of_another_trust_domain_is_an_oauth_client() {
    let place = Place::new().await;
    let path = place.stand.broker.config.clone();
    let own = format!("trust_domain = \"{DOMAIN}\"");
    let config = fs::read_to_string(&path).unwrap();
    let mut place = place;
    fs::write(&path, config.replace(&own, &format!("{own}\naudience = \"{}\"", place.stand.broker.url))).unwrap();
    place.stand.restart_broker().await;
    let mut detail = declaration();
    detail["type"] = json!("remit:declaration");
    let details = json!([detail]).to_string();
    let form = |more: &[(&str, &str)]| {
        let base = [("grant_type", "client_credentials"), ("authorization_details", &*details)];
        base.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let with_certificate = async |identity: &Identity, more: &[(&str, &str)]| {
        let request = identity.client(&place.servers).post(place.url("/oauth2/token")).form(&form(more));
        Answer::of(request.send().await.expect("an answer")).await
    };
    let elsewhere = Authority::new("elsewhere").identity(&svid(AGENT));
    for more in [&[][..], &[("client_id", AGENT)]] {
        let answer = with_certificate(&place.agent(), more).await.expect(StatusCode::OK);
        let token = crate::support::claims(&text(&answer, "access_token"));
        assert_eq!(token["client_id"], "spiffe://example.com/spire/ns/payments/sa/agent");
        with_certificate(&elsewhere, more).await.oauth_refused(401, "invalid_client");
    }
    with_certificate(&place.agent(), &[("client_id", "spiffe://spire.example.org/other")])
        .await
        .oauth_refused(401, "invalid_client");

    let metadata = async || {
        let answer = place.stand.client.get(place.stand.url("/.well-known/oauth-authorization-server")).send().await;
        answer.unwrap().json::<Value>().await.unwrap()["token_endpoint_auth_methods_supported"].clone()
    };
    assert_eq!(metadata().await, json!(["none", "private_key_jwt", "tls_client_auth", "spiffe_x509", "spiffe_jwt"]));
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
    let asserted = async |kind: &str, token: &str, more: &[(&str, &str)]| {
        let named = [("client_assertion_type", kind), ("client_assertion", token)];
        let form = form(&named.iter().chain(more).copied().collect::<Vec<_>>());
        let request = place.stand.client.post(place.stand.url("/oauth2/token")).form(&form);
        Answer::of(request.send().await.expect("an answer")).await
    };
    let url = &place.stand.broker.url;
    for (over, more) in [(json!({}), &[][..]), (json!({"aud": url}), &[("client_id", AGENT)])] {
        let answer = asserted(kind, &place.jwt_svid(&over), more).await.expect(StatusCode::OK);
        assert!(answer["task"].is_string());
    }
    for (over, more) in [
        (json!({"aud": [url, "https://other.example.com"]}), &[][..]),
        (json!({"aud": format!("{url}/oauth2/token")}), &[]),
        (json!({"exp": now() - 1}), &[]),
        (json!({"sub": "spiffe://elsewhere.example.org/a"}), &[]),
        (json!({}), &[("client_id", "billing")]),
        (json!({}), &[("client_secret", "secret")]),
    ] {
        asserted(kind, &place.jwt_svid(&over), more).await.oauth_refused(401, "invalid_client");
    }
    // One kind of assertion is not the other, and evidence of an issuer is neither.
    let bearer = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    asserted(bearer, &place.jwt_svid(&json!({})), &[]).await.oauth_refused(401, "invalid_client");
    asserted(kind, &place.stand.evidence(), &[]).await.oauth_refused(401, "invalid_client");
}
