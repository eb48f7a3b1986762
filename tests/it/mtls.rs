//! Tokens that are bound to the certificate of whoever called for them (RFC 8705): they are worth nothing over another connection.

use remit::{
    clock::{Clock as _, SystemClock},
    id::{sha256_base64url, sha256_hex},
    verify::{KeySet, Presented, UntilExpiry, Verifier},
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::fs;
use tokio::process::Command;

use crate::{
    both,
    support::{
        Answer, GIT, NOWHERE, OWNER, Prover, REGISTRY, REGISTRY_TOKEN, Stand, declaration, free_port, now,
        pki::{Authority, Identity, builder, lasts, params, svid},
        text,
    },
};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const AGENT: &str = "spiffe://spire.example.org/ns/payments/sa/agent";

/// A broker with a TLS listener under a name of its own, and a service more that says nothing of binding: then it is required.
pub(crate) struct Place {
    pub(crate) stand: Stand,
    pub(crate) servers: Authority,
    spire: Authority,
    origin: String,
}

impl Place {
    pub(crate) async fn of(mut stand: Stand) -> Self {
        let (servers, spire) = (Authority::new("servers"), Authority::new("spire"));
        let (dir, port) = (stand.dir.path(), free_port());
        let origin = format!("https://localhost:{port}");
        servers.serves(&dir.join("tls.crt"), &dir.join("tls.key"));
        fs::write(dir.join("ca.crt"), servers.certificate.pem()).unwrap();
        fs::write(dir.join("bundle.pem"), spire.certificate.pem()).unwrap();
        let config = fs::read_to_string(&stand.broker.config).unwrap();
        let listen = format!(
            "tls = \"127.0.0.1:{port}\"\ntls_origin = \"{origin}\"\ntls_cert_file = \"tls.crt\"\ntls_key_file = \"tls.key\"\n[store]"
        );
        let digest = sha256_hex(b"vault-service-token");
        let more = format!(
            "[[attestor]]\ntype = \"x509\"\nname = \"spire\"\ntrust_domain = \"spire.example.org\"\nkind = \"service\"\n\
             bundle_file = \"bundle.pem\"\nworkload = \"/spire/{{path/*}}\"\n\
             [[service]]\nname = \"vault\"\naudiences = [\"{NOWHERE}\"]\ntoken_sha256 = [\"{digest}\"]\n"
        );
        fs::write(&stand.broker.config, config.replace("[store]", &listen) + &more).unwrap();
        stand.restart_broker().await;
        Self { stand, servers, spire, origin }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// Calls over TLS with a certificate, or without one, and with this evidence.
    pub(crate) async fn call(
        &self,
        shown: Option<&Identity>,
        evidence: Option<&str>,
        path: &str,
        body: Value,
    ) -> Answer {
        let client = match shown {
            Some(identity) => identity.client(&self.servers),
            None => builder(&self.servers).build().unwrap(),
        };
        let request = client.post(self.url(path)).json(&body);
        let request = evidence.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth);
        Answer::of(request.send().await.expect("an answer")).await
    }

    pub(crate) async fn declare(&self, shown: Option<&Identity>, evidence: Option<&str>) -> String {
        let answer = self.call(shown, evidence, "/v1/tasks", reading(&[GIT, REGISTRY, NOWHERE])).await;
        text(&answer.expect(StatusCode::CREATED), "task")
    }

    async fn mint(&self, shown: Option<&Identity>, evidence: Option<&str>, task: &str, resource: &str) -> Answer {
        let body = json!({"credentials": [{"resource": resource, "privilege": "read"}]});
        self.call(shown, evidence, &format!("/v1/tasks/{task}/credentials"), body).await
    }

    pub(crate) async fn minted(
        &self,
        shown: Option<&Identity>,
        evidence: Option<&str>,
        task: &str,
        resource: &str,
    ) -> Value {
        self.mint(shown, evidence, task, resource).await.expect(StatusCode::OK)["credentials"][0].clone()
    }

    /// A workload that its trust domain vouches for.
    pub(crate) fn agent(&self) -> Identity {
        self.spire.identity(&svid(AGENT))
    }

    async fn verifier(&self, audience: &str) -> Verifier<UntilExpiry> {
        let jwks = self.stand.client.get(self.stand.url("/jwks")).send().await.unwrap().bytes().await.unwrap();
        Verifier::offline_until_expiry(&self.stand.broker.url, audience.parse().unwrap())
            .with_access_keys(KeySet::from_jwks(&jwks).unwrap())
    }
}

/// A certificate that nobody vouches for.
pub(crate) fn own() -> Identity {
    Identity::alone(&params("an agent's own"))
}

fn thumbprint(identity: &Identity) -> String {
    sha256_base64url(identity.certificate.der())
}

fn claims(credential: &Value) -> Value {
    crate::support::claims(&text(credential, "access_token"))
}

/// A task that may read at these.
fn reading(locations: &[&str]) -> Value {
    json!({"purpose": "p", "owner": OWNER,
        "authorization_details": [{"type": "remit:access", "locations": locations, "privileges": ["read"]}]})
}

both! {
    /// The task token of whoever showed a certificate goes with that certificate, and with nothing else.
    async fn a_task_token_is_bound_to_the_certificate_too(stand) {
        let (place, mine, thief) = (Place::of(stand).await, own(), own());
        let evidence = place.stand.evidence();
        let declared = place.call(Some(&mine), Some(&evidence), "/v1/tasks", reading(&[GIT])).await.expect(StatusCode::CREATED);
        let (task, token) = (text(&declared, "task"), text(&declared, "task_token"));
        assert_eq!(crate::support::claims(&token)["cnf"], json!({"x5t#S256": thumbprint(&mine)}));
        place.mint(Some(&mine), Some(&token), &task, GIT).await.expect(StatusCode::OK);
        let renewed = place.call(Some(&mine), Some(&token), &format!("/v1/tasks/{task}/renew"), json!({})).await;
        assert!(renewed.expect(StatusCode::OK)["task_token"].is_string());
        place.mint(Some(&thief), Some(&token), &task, GIT).await.refused(401, "evidence_invalid");
        place.mint(None, Some(&token), &task, GIT).await.refused(401, "evidence_invalid");
        let path = format!("/v1/tasks/{task}/credentials");
        let body = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
        place.stand.post(&path, &token, body.clone()).await.refused(401, "evidence_invalid");
        // A proof of any key does not stand for the certificate.
        let prover = Prover::new();
        let proof = prover.proof("POST", &place.url(&path), json!({"ath": sha256_base64url(token.as_bytes())}));
        let request = mine.client(&place.servers).post(place.url(&path)).header("authorization", format!("DPoP {token}"));
        Answer::of(request.header("dpop", proof).json(&body).send().await.unwrap()).await.refused(401, "evidence_invalid");
        // Nor is one passed over that comes with a token which it is not for.
        for proof in [prover.proof("POST", &place.url(&path), json!({})), "nonsense".to_owned()] {
            let request = mine.client(&place.servers).post(place.url(&path)).bearer_auth(&token).header("dpop", proof);
            Answer::of(request.json(&body).send().await.unwrap()).await.refused(401, "evidence_invalid");
        }
        // As the subject of an exchange.
        let scope = format!("{task} read");
        let form = [("grant_type", EXCHANGE), ("subject_token", &*token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"), ("resource", GIT), ("scope", &*scope)];
        let exchange = |identity: &Identity| identity.client(&place.servers).post(place.url("/oauth2/token")).form(&form).send();
        Answer::of(exchange(&mine).await.unwrap()).await.expect(StatusCode::OK);
        Answer::of(exchange(&thief).await.unwrap()).await.oauth_refused(400, "invalid_dpop_proof");
    }

    async fn a_token_is_bound_to_the_certificate_that_was_shown(stand) {
        let place = Place::of(stand).await;
        let (agent, evidence) = (own(), place.stand.evidence());
        let task = place.declare(Some(&agent), Some(&evidence)).await;
        for resource in [REGISTRY, NOWHERE] {
            let credential = place.minted(Some(&agent), Some(&evidence), &task, resource).await;
            assert_eq!(credential["token_type"], "Bearer");
            assert_eq!(claims(&credential)["cnf"], json!({"x5t#S256": thumbprint(&agent)}));
        }
        // A service that takes bearer tokens alone gets one.
        let credential = place.minted(Some(&agent), Some(&evidence), &task, GIT).await;
        assert!(claims(&credential).get("cnf").is_none());
        // By OAuth, and whoever asks about it is told.
        let scope = format!("{task} read");
        let form = [("grant_type", EXCHANGE), ("subject_token", &evidence), ("subject_token_type", JWT), ("resource", REGISTRY),
            ("scope", &scope)];
        let answer = agent.client(&place.servers).post(place.url("/oauth2/token")).form(&form).send().await.unwrap();
        let answer = Answer::of(answer).await.expect(StatusCode::OK);
        assert_eq!(answer["token_type"], "Bearer");
        let token = text(&answer, "access_token");
        let told = place.stand.introspect_at(&place.stand.broker, REGISTRY_TOKEN, &token).await;
        assert_eq!((&told["active"], &told["cnf"]), (&json!(true), &json!({"x5t#S256": thumbprint(&agent)})));
        assert_eq!(told["token_type"], "Bearer");
        // On record with what it is bound to.
        let audit = place.stand.audit();
        let last = audit.iter().rfind(|line| line["event"] == "credential_minted").unwrap();
        assert_eq!(last["bound_to"], json!({"x5t#S256": thumbprint(&agent)}));
    }

    /// A token that was stolen is worth nothing without the certificate's key.
    async fn a_bound_token_is_accepted_with_its_certificate_alone(stand) {
        let place = Place::of(stand).await;
        let (agent, thief, evidence) = (own(), own(), place.stand.evidence());
        let task = place.declare(Some(&agent), Some(&evidence)).await;
        let token = text(&place.minted(Some(&agent), Some(&evidence), &task, REGISTRY).await, "access_token");
        let unbound = text(&place.minted(Some(&agent), Some(&evidence), &task, GIT).await, "access_token");
        let (registry, git) = (place.verifier(REGISTRY).await, place.verifier(GIT).await);
        let now = SystemClock.now();
        let with = |identity: &Identity, token: &str, verifier: &Verifier<UntilExpiry>| {
            let certificate = identity.certificate.der().to_vec();
            verifier.verify_presented(Presented::Certificate { token, certificate: &certificate }, now).map(|_| ())
        };
        assert!(with(&agent, &token, &registry).is_ok());
        assert!(with(&agent, &token, &registry).is_ok(), "as often as its holder likes");
        let refused = [
            with(&thief, &token, &registry),
            registry.verify(&token, now).map(|_| ()),
            registry.verify_presented(Presented::Bearer(&token), now).map(|_| ()),
            with(&agent, &unbound, &git),
        ];
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
        assert!(git.verify(&unbound, now).is_ok());
        let prover = Prover::new();
        let ath = sha256_base64url(token.as_bytes());
        let proof = prover.proof("GET", REGISTRY, json!({"ath": ath}));
        let dpop = Presented::Dpop { token: &token, proof: &proof, method: "GET", uri: REGISTRY };
        assert!(registry.verify_presented(dpop, now).is_err());
    }

    /// Evidence that was stolen is worth nothing either, once it came with a certificate.
    async fn evidence_serves_the_key_that_it_came_with(stand) {
        let place = Place::of(stand).await;
        let (agent, thief, evidence) = (own(), own(), place.stand.evidence());
        let task = place.declare(Some(&agent), Some(&evidence)).await;
        place.mint(Some(&thief), Some(&evidence), &task, GIT).await.refused(401, "evidence_invalid");
        place.mint(None, Some(&evidence), &task, GIT).await.refused(401, "evidence_invalid");
        place.stand.post(&format!("/v1/tasks/{task}/complete"), &evidence, json!({})).await.refused(401, "evidence_invalid");
        // The same key in another certificate, as when it is renewed.
        let renewed = Identity { certificate: params("renewed").self_signed(&agent.key).unwrap(), ..agent };
        let credential = place.minted(Some(&renewed), Some(&evidence), &task, REGISTRY).await;
        assert_eq!(claims(&credential)["cnf"], json!({"x5t#S256": thumbprint(&renewed)}));
    }

    async fn a_retry_gets_nothing_that_is_bound_to_another_certificate(stand) {
        let place = Place::of(stand).await;
        let (agent, evidence) = (own(), place.stand.evidence());
        let mut body = reading(&[REGISTRY]);
        body["credentials"] = json!([{"resource": REGISTRY, "privilege": "read"}]);
        let declare = async |identity: &Identity| {
            let request = identity.client(&place.servers).post(place.url("/v1/tasks")).header("idempotency-key", "k1");
            Answer::of(request.bearer_auth(&evidence).json(&body).send().await.unwrap()).await
        };
        let first = declare(&agent).await.expect(StatusCode::CREATED);
        let again = declare(&agent).await.expect(StatusCode::CREATED);
        assert_eq!(first["credentials"][0]["lease"], again["credentials"][0]["lease"]);
        let renewed = Identity { certificate: params("renewed").self_signed(&agent.key).unwrap(), ..agent };
        declare(&renewed).await.refused(401, "evidence_invalid");
    }

    /// Where the service takes bound tokens alone, a certificate is as good as a proof; a proof that comes with it counts.
    async fn a_certificate_or_a_proof_and_the_proof_counts(stand) {
        let place = Place::of(stand).await;
        let evidence = place.stand.evidence();
        let task = place.declare(None, Some(&evidence)).await;
        let refused = place.mint(None, Some(&evidence), &task, NOWHERE).await.refused(401, "evidence_invalid");
        assert!(refused["detail"].as_str().unwrap().contains("client certificate"), "{refused}");
        let (agent, prover) = (own(), Prover::new());
        let path = format!("/v1/tasks/{task}/credentials");
        // The listener's own name is as good as the issuer's in a proof.
        for origin in [&place.origin, &place.stand.broker.url] {
            let proof = prover.proof("POST", &format!("{origin}{path}"), json!({}));
            let request = agent.client(&place.servers).post(place.url(&path)).bearer_auth(&evidence).header("dpop", proof);
            let body = json!({"credentials": [{"resource": NOWHERE, "privilege": "read"}]});
            let answer = Answer::of(request.json(&body).send().await.unwrap()).await.expect(StatusCode::OK);
            assert_eq!(answer["credentials"][0]["token_type"], "DPoP");
            assert!(claims(&answer["credentials"][0])["cnf"]["jkt"].is_string(), "{answer}");
        }
        let proof = prover.proof("POST", &format!("https://elsewhere.example.com{path}"), json!({}));
        let request = agent.client(&place.servers).post(place.url(&path)).bearer_auth(&evidence).header("dpop", proof);
        let body = json!({"credentials": [{"resource": NOWHERE, "privilege": "read"}]});
        Answer::of(request.json(&body).send().await.unwrap()).await.refused(401, "evidence_invalid");
        // A JWT-SVID is never bound.
        let body = json!({"credentials": [{"resource": NOWHERE, "privilege": "read", "type": "jwt"}]});
        let other = place.stand.issuer.evidence(&place.stand.broker.url, json!({"jti": "another token of the same run"}));
        place.call(Some(&agent), Some(&other), &path, body).await.refused(400, "invalid_request");
    }

    /// The certificate is evidence and key in one.
    async fn a_workload_of_another_trust_domain_gets_bound_tokens(stand) {
        let place = Place::of(stand).await;
        let mut brief = svid(AGENT);
        lasts(&mut brief, -10, 90);
        let agent = place.spire.identity(&brief);
        let task = place.declare(Some(&agent), None).await;
        let credential = place.minted(Some(&agent), None, &task, NOWHERE).await;
        assert_eq!(claims(&credential)["cnf"], json!({"x5t#S256": thumbprint(&agent)}));
        let exp = claims(&credential)["exp"].as_i64().unwrap();
        assert!((now() + 60..=now() + 90).contains(&exp), "{exp}");
    }

    /// Nobody can present it when the certificate is over, so it ends with that, whatever the evidence says.
    async fn a_bound_token_ends_with_its_certificate(stand) {
        let place = Place::of(stand).await;
        let mut brief = params("brief");
        lasts(&mut brief, -10, 60);
        let (agent, evidence) = (Identity::alone(&brief), place.stand.evidence());
        let task = place.declare(Some(&agent), Some(&evidence)).await;
        let exp = async |resource| claims(&place.minted(Some(&agent), Some(&evidence), &task, resource).await)["exp"].as_i64().unwrap();
        assert!(exp(REGISTRY).await <= now() + 60);
        assert!(exp(GIT).await > now() + 120, "what is not bound is not cut short");
        let mut over = params("over");
        lasts(&mut over, -60, -1);
        let other = place.stand.issuer.evidence(&place.stand.broker.url, json!({"jti": "another token of the same run"}));
        let over = Identity::alone(&over);
        place.mint(Some(&over), Some(&other), &task, REGISTRY).await.refused(401, "evidence_invalid");
    }
}

/// What clients look at to know that they can show a certificate, and where.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metadata_says_where_certificates_are_taken() {
    let plain = Stand::new(crate::support::Store::Embedded).await;
    let metadata = async |stand: &Stand| {
        let url = stand.url("/.well-known/oauth-authorization-server");
        stand.client.get(url).send().await.unwrap().json::<Value>().await.unwrap()
    };
    let without = metadata(&plain).await;
    assert_eq!(without["tls_client_certificate_bound_access_tokens"], false);
    assert!(without.get("mtls_endpoint_aliases").is_none());
    assert_eq!(without["token_endpoint_auth_methods_supported"], json!(["none", "private_key_jwt"]));
    let place = Place::of(plain).await;
    let with = metadata(&place.stand).await;
    assert_eq!(with["tls_client_certificate_bound_access_tokens"], true);
    assert_eq!(
        with["token_endpoint_auth_methods_supported"],
        json!(["none", "private_key_jwt", "tls_client_auth", "spiffe_x509"])
    );
    assert_eq!(
        with["mtls_endpoint_aliases"],
        json!({"token_endpoint": place.url("/oauth2/token"), "introspection_endpoint": place.url("/oauth2/introspect"), "revocation_endpoint": place.url("/oauth2/revoke"),
            "remit_tasks_endpoint": place.url("/v1/tasks")})
    );
}

/// What a service should say to a bound token, on the command line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remit_verify_is_shown_the_certificate() {
    let place = Place::of(Stand::new(crate::support::Store::Embedded).await).await;
    let (agent, thief, evidence) = (own(), own(), place.stand.evidence());
    let task = place.declare(Some(&agent), Some(&evidence)).await;
    let token = text(&place.minted(Some(&agent), Some(&evidence), &task, REGISTRY).await, "access_token");
    for (name, identity) in [("agent.crt", &agent), ("thief.crt", &thief)] {
        fs::write(place.stand.dir.path().join(name), identity.certificate.pem()).unwrap();
    }
    let verify = async |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["verify", &token, "--issuer", &place.stand.broker.url, "--audience", REGISTRY]).args(more);
        let output = command.current_dir(place.stand.dir.path()).output().await.unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (code, said) = verify(&["--certificate", "agent.crt"]).await;
    assert!(code == 0 && said.contains(&thumbprint(&agent)), "{said}");
    for more in [&["--certificate", "thief.crt"][..], &[]] {
        let (code, said) = verify(more).await;
        assert!(code == 5 && said.contains("certificate"), "{said}");
    }
    assert_eq!(verify(&["--certificate", "ca.key"]).await.0, 2);
}

/// With curl, as anybody would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_shows_its_certificate() {
    let place = Place::of(Stand::new(crate::support::Store::Embedded).await).await;
    let agent = place.agent();
    fs::write(place.stand.dir.path().join("agent.pem"), agent.pem()).unwrap();
    let mut body = declaration();
    body["credentials"] = json!([]);
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert", "ca.crt", "--cert", "agent.pem", &place.url("/v1/tasks")])
        .args(["-H", "content-type: application/json", "-d", &body.to_string()])
        .current_dir(place.stand.dir.path())
        .output()
        .await
        .expect("curl");
    let declared: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(declared["workload"], "spiffe://example.com/spire/ns/payments/sa/agent");
}
