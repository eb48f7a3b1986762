//! Credentials that are bound to a key (RFC 9449): whoever steals one, or evidence, or a proof, has nothing.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use remit::{
    clock::{Clock as _, SystemClock},
    id::{sha256_base64url, sha256_hex},
    verify::{KeySet, Presented, UntilExpiry, Verifier},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    clients::node,
    support::{
        Answer, Body, Frozen, GIT, NOWHERE, OWNER, Prover, REGISTRY, REGISTRY_TOKEN, Server, Stand, Store, client,
        declaration, now, text, wait_for,
    },
};

const TOKEN: &str = "/oauth2/token";
const TASKS: &str = "/v1/tasks";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const VAULT_TOKEN: &str = "vault-service-token";

/// A stand with a service more, which says nothing of binding: then it is required.
async fn with_vault(store: Store) -> Stand {
    let digest = sha256_hex(VAULT_TOKEN.as_bytes());
    let vault = format!("[[service]]\nname = \"vault\"\naudiences = [\"{NOWHERE}\"]\ntoken_sha256 = [\"{digest}\"]\n");
    Stand::with(store, &vault).await
}

/// A task that may read at these.
fn reading(locations: &[&str]) -> Value {
    json!({"purpose": "p", "owner": OWNER,
        "authorization_details": [{"type": "remit:access", "locations": locations, "privileges": ["read"]}]})
}

impl Stand {
    async fn proven(&self, path: &str, evidence: &str, proof: &str, body: Value) -> Answer {
        self.proven_at(&self.broker, (Method::POST, path), Some(evidence), &[proof], Body::Json(body)).await
    }

    /// One token by token exchange.
    async fn exchanged_at(&self, at: &Server, evidence: &str, proofs: &[&str], resource: &str, task: &str) -> Answer {
        let scope = format!("{task} read");
        let form = [
            ("grant_type", EXCHANGE),
            ("subject_token", evidence),
            ("subject_token_type", JWT),
            ("resource", resource),
            ("scope", &scope),
        ];
        self.proven_at(at, (Method::POST, TOKEN), None, proofs, Body::Form(&form)).await
    }

    async fn exchanged(&self, evidence: &str, proofs: &[&str], resource: &str, task: &str) -> Answer {
        self.exchanged_at(&self.broker, evidence, proofs, resource, task).await
    }

    async fn verifier(&self, audience: &str) -> Verifier<UntilExpiry> {
        let jwks = self.client.get(self.url("/jwks")).send().await.expect("an answer").bytes().await.expect("keys");
        Verifier::offline_until_expiry(&self.broker.url, audience.parse().expect("a location"))
            .with_access_keys(KeySet::from_jwks(&jwks).expect("keys"))
    }
}

both! {
    async fn a_token_is_bound_to_the_key_that_was_shown(stand) {
        let prover = Prover::new();
        let evidence = stand.evidence();
        let task = text(&stand.proven(TASKS, &evidence, &prover.proof("POST", &stand.url(TASKS), json!({})),
            reading(&[GIT, REGISTRY])).await.expect(StatusCode::CREATED), "task");
        let url = stand.url(TOKEN);
        let proof = prover.proof("POST", &url, json!({}));
        let answer = stand.exchanged(&evidence, &[&proof], REGISTRY, &task).await;
        assert!(answer.headers.contains_key("dpop-nonce"));
        let answer = answer.expect(StatusCode::OK);
        assert_eq!(answer["token_type"], "DPoP");
        let token = text(&answer, "access_token");
        let confirmation = json!({"jkt": prover.jkt()});
        assert_eq!(crate::support::claims(&token)["cnf"], confirmation);
        let said = stand.introspect_at(&stand.broker, REGISTRY_TOKEN, &token).await;
        assert_eq!((&said["active"], &said["cnf"], &said["token_type"]), (&json!(true), &confirmation, &json!("DPoP")));
        let minted = stand.audit().into_iter().rfind(|line| line["event"] == "credential_minted").unwrap();
        assert_eq!(minted["bound_to"], confirmation);

        // A service that binds nothing gets what it can check.
        let proof = prover.proof("POST", &url, json!({}));
        let answer = stand.exchanged(&evidence, &[&proof], GIT, &task).await.expect(StatusCode::OK);
        assert_eq!(answer["token_type"], "Bearer");
        assert!(crate::support::claims(&text(&answer, "access_token")).get("cnf").is_none());

        // And on our own API.
        let path = format!("{TASKS}/{task}/credentials");
        let body = json!({"credentials": [{"resource": REGISTRY, "privilege": "read"}, {"resource": GIT, "privilege": "read"},
            {"resource": REGISTRY, "privilege": "read", "type": "jwt"}]});
        let proof = prover.proof("POST", &stand.url(&path), json!({}));
        let answer = stand.proven(&path, &evidence, &proof, body).await.expect(StatusCode::OK);
        let types: Vec<_> = (0..3).map(|at| text(&answer["credentials"][at], "token_type")).collect();
        assert_eq!(types, ["DPoP", "Bearer", "N_A"]);
    }

    /// A token that was stolen is worth nothing without the key, nor is one whose binding was cut out.
    async fn a_bound_token_serves_its_holder_alone(stand) {
        let (prover, thief, evidence) = (Prover::new(), Prover::new(), stand.evidence());
        let task = text(&stand.post(TASKS, &evidence, reading(&[REGISTRY])).await.expect(StatusCode::CREATED), "task");
        let proof = prover.proof("POST", &stand.url(TOKEN), json!({}));
        let answer = stand.exchanged(&evidence, &[&proof], REGISTRY, &task).await.expect(StatusCode::OK);
        let token = text(&answer, "access_token");
        let verifier = stand.verifier(REGISTRY).await;
        let uri = "https://registry.example.com/v2/acme/payments";
        let hash = sha256_base64url(token.as_bytes());
        let present = |token: &str, proof: &str, method: &str, uri: &str| {
            let presented = Presented::Dpop { token, proof, method, uri };
            verifier.verify_presented(presented, SystemClock.now()).map(|verified| verified.claims().task.id.to_string())
        };
        let good = prover.proof("GET", uri, json!({"ath": hash}));
        assert_eq!(present(&token, &good, "GET", &format!("{uri}?tag=1")).unwrap(), task);
        let refused = [
            ("again", present(&token, &good, "GET", uri)),
            ("another method", present(&token, &prover.proof("GET", uri, json!({"ath": hash})), "DELETE", uri)),
            ("another place", present(&token, &prover.proof("GET", uri, json!({"ath": hash})), "GET", REGISTRY)),
            ("another's key", present(&token, &thief.proof("GET", uri, json!({"ath": hash})), "GET", uri)),
            ("no `ath`", present(&token, &prover.proof("GET", uri, json!({})), "GET", uri)),
            ("another token", present(&token, &prover.proof("GET", uri, json!({"ath": sha256_base64url(b"t")})), "GET", uri)),
            ("old", present(&token, &prover.proof("GET", uri, json!({"ath": hash, "iat": now() - 61})), "GET", uri)),
            ("the token itself", present(&token, &token, "GET", uri)),
            ("nothing", present(&token, "", "GET", uri)),
        ];
        for (name, refused) in refused {
            assert!(refused.is_err(), "{name}");
        }
        let as_bearer = [verifier.verify(&token, SystemClock.now()), verifier.verify_presented(Presented::Bearer(&token), SystemClock.now())];
        assert!(as_bearer.iter().all(Result::is_err));
        // Without `cnf` it is not what was signed.
        let mut claims = crate::support::claims(&token);
        claims.as_object_mut().unwrap().remove("cnf");
        let parts: Vec<_> = token.split('.').collect();
        let cut = format!("{}.{}.{}", parts[0], BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()), parts[2]);
        assert!(verifier.verify(&cut, SystemClock.now()).is_err());
        assert_eq!(stand.introspect_at(&stand.broker, REGISTRY_TOKEN, &cut).await, json!({"active": false}));
        // A bearer token with a proof beside it is bound to nothing, so it is not taken for bound: anybody can make such a proof.
        let unbound = stand.issuer.evidence(&stand.broker.url, json!({"jti": "unbound"}));
        let bearer = text(&stand.exchanged(&unbound, &[], REGISTRY, &task).await.expect(StatusCode::OK), "access_token");
        assert!(verifier.verify(&bearer, SystemClock.now()).is_ok());
        let beside = thief.proof("GET", uri, json!({"ath": sha256_base64url(bearer.as_bytes())}));
        assert!(present(&bearer, &beside, "GET", uri).is_err());
    }

    /// Evidence serves the first key that came with it: whoever copied it has nothing.
    async fn evidence_serves_the_first_key(stand) {
        let (prover, thief, evidence) = (Prover::new(), Prover::new(), stand.evidence());
        let at = |prover: &Prover, path: &str| prover.proof("POST", &stand.url(path), json!({}));
        let answer = stand.proven(TASKS, &evidence, &at(&prover, TASKS), reading(&[GIT])).await.expect(StatusCode::CREATED);
        let task = text(&answer, "task");
        // With another key, with none, and with another spelling of the same signature.
        stand.proven(TASKS, &evidence, &at(&thief, TASKS), reading(&[GIT])).await.refused(401, "evidence_invalid");
        stand.post(TASKS, &evidence, reading(&[GIT])).await.refused(401, "evidence_invalid");
        let respelt = respelt(&evidence);
        stand.proven(TASKS, &respelt, &at(&thief, TASKS), reading(&[GIT])).await.refused(401, "evidence_invalid");
        stand.post(TASKS, &respelt, reading(&[GIT])).await.refused(401, "evidence_invalid");
        stand.exchanged(&evidence, &[&at(&thief, TOKEN)], GIT, &task).await.oauth_refused(400, "invalid_request");
        stand.exchanged(&evidence, &[], GIT, &task).await.oauth_refused(400, "invalid_request");
        // What can be done with it without a key of its own: nothing at all.
        for path in [format!("{TASKS}/{task}/complete"), format!("{TASKS}/{task}/renew"), format!("{TASKS}/{task}/credentials")] {
            let body = if path.ends_with("credentials") { json!({"credentials": [{"resource": GIT, "privilege": "read"}]}) } else { json!({}) };
            stand.post(&path, &evidence, body).await.refused(401, "evidence_invalid");
        }
        stand.get(&format!("{TASKS}/{task}"), &evidence).await.refused(401, "evidence_invalid");
        refused_for(&stand, "oidc", "possession").await;
        // Its own key it still serves.
        stand.exchanged(&evidence, &[&at(&prover, TOKEN)], GIT, &task).await.expect(StatusCode::OK);
        // Other evidence of the same instance may come with another key: it is the instance that has the task.
        let fresh = stand.issuer.evidence(&stand.broker.url, json!({"jti": "another"}));
        stand.exchanged(&fresh, &[&at(&thief, TOKEN)], GIT, &task).await.expect(StatusCode::OK);
    }

    /// A proof serves once, whatever the use case, and only by the key that signed it.
    async fn a_proof_serves_once(stand) {
        let (prover, other, evidence) = (Prover::new(), Prover::new(), stand.evidence());
        let task = text(&stand.post(TASKS, &evidence, reading(&[GIT])).await.expect(StatusCode::CREATED), "task");
        let ask = |path: String, method: Method, proof: String, body: Value| {
            let (stand, evidence) = (&stand, &evidence);
            async move {
                let body = if body.is_null() { Body::None } else { Body::Json(body) };
                stand.proven_at(&stand.broker, (method, &path), Some(evidence), &[&proof], body).await
            }
        };
        let own = format!("{TASKS}/{task}");
        // An attacker who burns the `jti` of somebody else burns their own.
        let taken = json!({"jti": "the-same"});
        let elsewhere = stand.other_instance();
        stand.proven(TASKS, &elsewhere, &other.proof("POST", &stand.url(TASKS), taken.clone()), reading(&[GIT]))
            .await.expect(StatusCode::CREATED);
        let requests = [
            (Method::POST, TASKS.to_owned(), reading(&[GIT]), StatusCode::CREATED),
            (Method::POST, format!("{own}/credentials"), json!({"credentials": [{"resource": GIT, "privilege": "read"}]}), StatusCode::OK),
            (Method::POST, format!("{own}/renew"), json!({}), StatusCode::OK),
            (Method::GET, own.clone(), Value::Null, StatusCode::OK),
            (Method::GET, TASKS.to_owned(), Value::Null, StatusCode::OK),
            (Method::POST, format!("{own}/complete"), json!({}), StatusCode::OK),
        ];
        for (at, (method, path, body, status)) in requests.into_iter().enumerate() {
            let jti = if at == 0 { taken.clone() } else { json!({}) };
            let proof = prover.proof(method.as_str(), &stand.url(&path), jti);
            let said = ask(path.clone(), method.clone(), proof.clone(), body.clone()).await;
            assert_eq!(said.status, status, "{path} {}", said.text);
            let again = ask(path.clone(), method, proof, body).await;
            assert!(again.headers["www-authenticate"].to_str().unwrap().starts_with("DPoP error=\"invalid_dpop_proof\""), "{path}");
            again.refused(401, "evidence_invalid");
        }
        refused_for(&stand, "oidc", "replay").await;
    }

    /// What was overheard declares nothing, and the log does not say that it did.
    async fn a_proof_that_was_used_leaves_no_declaration_on_record(stand) {
        let (prover, evidence) = (Prover::new(), stand.evidence());
        let proof = prover.proof("POST", &stand.url(TASKS), json!({}));
        stand.proven(TASKS, &evidence, &proof, reading(&[GIT])).await.expect(StatusCode::CREATED);
        stand.proven(TASKS, &evidence, &proof, reading(&[GIT])).await.refused(401, "evidence_invalid");
        assert_eq!(stand.audit().iter().filter(|line| line["event"] == "task_declared").count(), 1);
    }

    async fn a_proof_that_does_not_fit_is_refused(stand) {
        let (prover, evidence, url) = (Prover::new(), stand.evidence(), stand.url(TOKEN));
        let task = text(&stand.post(TASKS, &evidence, reading(&[REGISTRY])).await.expect(StatusCode::CREATED), "task");
        for (name, proofs) in bad_proofs(&prover, &url) {
            let proofs: Vec<_> = proofs.iter().map(String::as_str).collect();
            let answer = stand.exchanged(&evidence, &proofs, REGISTRY, &task).await;
            assert_eq!(answer.status, 400, "{name}: {}", answer.text);
            let error = answer.json()["error"].clone();
            assert_eq!(error, if name == "a foreign nonce" { "use_dpop_nonce" } else { "invalid_dpop_proof" }, "{name}");
        }
        // None of them was used up, nor took the evidence.
        let spelt = url.replace("http://127.0.0.1", "HTTP://127.0.0.1").replace("oauth2", "%6Fauth2");
        for htu in [url.clone(), format!("{url}?query#fragment"), spelt.replace("%6F", "o")] {
            let proof = prover.proof("POST", &url, json!({"htu": htu}));
            stand.exchanged(&evidence, &[&proof], REGISTRY, &task).await.expect(StatusCode::OK);
        }
    }

    /// A retry gets its tokens again with another proof of the same key, and never for another key.
    async fn a_retry_comes_with_the_same_key(stand) {
        let (prover, thief) = (Prover::new(), Prover::new());
        let mut body = reading(&[REGISTRY]);
        body["credentials"] = json!([{"resource": REGISTRY, "privilege": "read"}]);
        let declare = |evidence: String, prover: Option<&Prover>| {
            let request = stand.client.post(stand.url(TASKS)).bearer_auth(evidence).header("idempotency-key", "one").json(&body);
            let request = match prover {
                Some(prover) => request.header("dpop", prover.proof("POST", &stand.url(TASKS), json!({}))),
                None => request,
            };
            async move { Answer::of(request.send().await.unwrap()).await }
        };
        let fresh = |jti: &str| stand.issuer.evidence(&stand.broker.url, json!({"jti": jti}));
        let first = declare(fresh("a"), Some(&prover)).await.expect(StatusCode::CREATED);
        let again = declare(fresh("a"), Some(&prover)).await.expect(StatusCode::CREATED);
        assert_eq!(again["task"], first["task"]);
        assert_eq!(again["credentials"][0]["lease"], first["credentials"][0]["lease"]);
        assert_eq!(again["credentials"][0]["token_type"], "DPoP");
        declare(fresh("b"), Some(&thief)).await.refused(401, "evidence_invalid");
        declare(fresh("c"), None).await.refused(401, "evidence_invalid");
    }
}

/// Waits until it is on record that somebody was turned away by this attestor, for this reason.
async fn refused_for(stand: &Stand, attestor: &str, reason: &str) {
    let is_it =
        |line: &Value| line["event"] == "evidence_refused" && line["attestor"] == attestor && line["reason"] == reason;
    wait_for("the record", || async { stand.whole_audit().iter().any(is_it) }).await;
}

/// What may come instead of a proof (RFC 9449 section 4.3).
fn bad_proofs(prover: &Prover, url: &str) -> Vec<(&'static str, Vec<String>)> {
    let good = || prover.proof("POST", url, json!({}));
    let with = |over: Value| vec![prover.proof("POST", url, over)];
    let headed = |over: Value| {
        let mut header = crate::support::part(&good(), 0);
        for (name, value) in over.as_object().unwrap() {
            header[name] = value.clone();
        }
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = crate::support::claims(&good());
        let input = format!("{}.{}", encode(&header), encode(&claims));
        vec![format!("{input}.{}", prover.sign(&input))]
    };
    let jwk = |over: Value| {
        let mut jwk = crate::support::part(&good(), 0)["jwk"].clone();
        for (name, value) in over.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        headed(json!({"jwk": jwk}))
    };
    let parts = |proof: &str| proof.split('.').map(str::to_owned).collect::<Vec<_>>();
    let unsigned = parts(&good());
    let other = parts(&Prover::new().proof("POST", url, json!({})));
    vec![
        ("two", vec![good(), good()]),
        ("two in one header", vec![format!("{}, {}", good(), good())]),
        ("nothing", vec![String::new()]),
        ("words", vec!["not.a.proof".to_owned()]),
        ("no signature", vec![format!("{}.{}.", unsigned[0], unsigned[1])]),
        ("another's signature", vec![format!("{}.{}.{}", unsigned[0], unsigned[1], other[2])]),
        ("very long", vec![prover.proof("POST", url, json!({"pad": "x".repeat(13_000)}))]),
        ("another method", with(json!({"htm": "GET"}))),
        ("the method in lower case", with(json!({"htm": "post"}))),
        ("another endpoint", with(json!({"htu": url.replace("token", "introspect")}))),
        ("another host", with(json!({"htu": "https://broker.example.com/oauth2/token"}))),
        ("a path alone", with(json!({"htu": TOKEN}))),
        ("a list of places", with(json!({"htu": [url]}))),
        ("no method", with(json!({"htm": null}))),
        ("no place", with(json!({"htu": null}))),
        ("no time", with(json!({"iat": null}))),
        ("no id", with(json!({"jti": null}))),
        ("an empty id", with(json!({"jti": ""}))),
        ("a long id", with(json!({"jti": "j".repeat(513)}))),
        ("an old one", with(json!({"iat": now() - 70}))),
        ("a future one", with(json!({"iat": now() + 60}))),
        ("a time that is text", with(json!({"iat": now().to_string()}))),
        ("a token's hash where there is no token", with(json!({"ath": sha256_base64url(b"t")}))),
        ("a foreign nonce", with(json!({"nonce": "AAAAAAAAAAAAAAAAAAAAAAAA"}))),
        ("another type", headed(json!({"typ": "JWT"}))),
        ("the type of a token", headed(json!({"typ": "at+jwt"}))),
        ("no algorithm", headed(json!({"alg": "none"}))),
        ("a shared secret", headed(json!({"alg": "HS256"}))),
        ("another algorithm", headed(json!({"alg": "ES384"}))),
        ("a key by reference", headed(json!({"jwk": null, "kid": prover.jkt()}))),
        ("a critical extension", headed(json!({"crit": ["x"], "x": 1}))),
        ("a private key", jwk(json!({"d": "AAAA"}))),
        ("a symmetric key", jwk(json!({"kty": "oct", "k": "AAAA"}))),
        ("a point that is not on the curve", jwk(json!({"x": BASE64_URL_SAFE_NO_PAD.encode([1_u8; 32])}))),
        ("another curve", jwk(json!({"crv": "P-384"}))),
        ("another key", jwk(crate::support::part(&Prover::new().proof("POST", url, json!({})), 0)["jwk"].clone())),
    ]
}

/// The same token with the other of the two signatures that an ECDSA signature is: s and n − s verify alike.
fn respelt(token: &str) -> String {
    const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let (input, signature) = token.rsplit_once('.').unwrap();
    let mut signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut borrow = 0_i16;
    for at in (0..32).rev() {
        let order = i16::from(u8::from_str_radix(&ORDER[2 * at..2 * at + 2], 16).unwrap());
        let difference = order - i16::from(signature[32 + at]) - borrow;
        borrow = i16::from(difference < 0);
        signature[32 + at] = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// Where nothing is said of a service's binding, no token for it is ever a bearer token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_says_nothing_gets_bound_tokens_alone() {
    let stand = with_vault(Store::Embedded).await;
    let (prover, evidence) = (Prover::new(), stand.evidence());
    let task = text(&stand.post(TASKS, &evidence, reading(&[NOWHERE])).await.expect(StatusCode::CREATED), "task");
    stand.exchanged(&evidence, &[], NOWHERE, &task).await.oauth_refused(400, "invalid_dpop_proof");
    let (path, body) =
        (format!("{TASKS}/{task}/credentials"), json!({"credentials": [{"resource": NOWHERE, "privilege": "read"}]}));
    let refused = stand.post(&path, &evidence, body.clone()).await;
    assert!(refused.headers["www-authenticate"].to_str().unwrap().contains("DPoP error=\"invalid_dpop_proof\""));
    refused.refused(401, "evidence_invalid");
    let mut declared = reading(&[NOWHERE]);
    declared["credentials"] = body["credentials"].clone();
    stand.post(TASKS, &evidence, declared).await.refused(401, "evidence_invalid");
    // A JWT-SVID is never bound.
    let proof = prover.proof("POST", &stand.url(&path), json!({}));
    let svid = json!({"credentials": [{"resource": NOWHERE, "privilege": "read", "type": "jwt"}]});
    stand.proven(&path, &evidence, &proof, svid).await.refused(400, "invalid_request");
    let proof = prover.proof("POST", &stand.url(&path), json!({}));
    let answer = stand.proven(&path, &evidence, &proof, body).await.expect(StatusCode::OK);
    assert_eq!(answer["credentials"][0]["token_type"], "DPoP");
    let minted: Vec<_> = stand.audit().into_iter().filter(|line| line["event"] == "credential_minted").collect();
    assert!(minted.len() == 1 && minted[0]["bound_to"]["jkt"] == prover.jkt());
}

/// A retry re-signs what was minted, and what a service does not take any more is not signed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_no_way_around_a_service_that_takes_bound_tokens_by_now() {
    let mut stand = Stand::new(Store::Embedded).await;
    let mut body = reading(&[REGISTRY]);
    body["credentials"] = json!([{"resource": REGISTRY, "privilege": "read"}]);
    let declare = async |stand: &Stand| {
        let evidence = stand.evidence();
        let request = stand.client.post(stand.url(TASKS)).bearer_auth(evidence).header("idempotency-key", "one");
        Answer::of(request.json(&body).send().await.unwrap()).await
    };
    let first = declare(&stand).await.expect(StatusCode::CREATED);
    assert_eq!(first["credentials"][0]["token_type"], "Bearer");
    let config = std::fs::read_to_string(&stand.broker.config).unwrap();
    std::fs::write(&stand.broker.config, config.replace("\"offered\"", "\"required\"")).unwrap();
    stand.restart_broker().await;
    declare(&stand).await.refused(401, "evidence_invalid");
}

/// A proof that was made ahead of time is worth nothing where nonces are required, and every broker on the store knows a nonce.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_nonce_is_given_and_asked_for() {
    let mut stand = Stand::new(Store::Redis).await;
    let config = std::fs::read_to_string(&stand.broker.config).unwrap();
    std::fs::write(&stand.broker.config, config + "[dpop]\nnonce = \"required\"\n").unwrap();
    stand.restart_broker().await;
    let second = stand.second_broker().await;
    let (prover, evidence) = (Prover::new(), stand.evidence());
    let task = text(&stand.post(TASKS, &evidence, reading(&[REGISTRY])).await.expect(StatusCode::CREATED), "task");
    let url = stand.url(TOKEN);
    let proof = prover.proof("POST", &url, json!({}));
    let refused = stand.exchanged(&evidence, &[&proof], REGISTRY, &task).await;
    let nonce = refused.headers["dpop-nonce"].to_str().unwrap().to_owned();
    refused.oauth_refused(400, "use_dpop_nonce");
    let proof = prover.proof("POST", &url, json!({"nonce": nonce}));
    let answer = stand.exchanged(&evidence, &[&proof], REGISTRY, &task).await;
    // The next one comes along (RFC 9449 section 8.2).
    let next = answer.headers["dpop-nonce"].to_str().unwrap().to_owned();
    answer.expect(StatusCode::OK);
    // Another broker of the same issuer takes it, and not the same proof once more.
    let proof = prover.proof("POST", &url, json!({"nonce": next}));
    stand.exchanged_at(&second, &evidence, &[&proof], REGISTRY, &task).await.expect(StatusCode::OK);
    stand.exchanged(&evidence, &[&proof], REGISTRY, &task).await.oauth_refused(400, "invalid_dpop_proof");
    // One that is nearly ours is not ours.
    let mut forged = BASE64_URL_SAFE_NO_PAD.decode(&next).unwrap();
    forged[7] ^= 1;
    let proof = prover.proof("POST", &url, json!({"nonce": BASE64_URL_SAFE_NO_PAD.encode(forged)}));
    stand.exchanged(&evidence, &[&proof], REGISTRY, &task).await.oauth_refused(400, "use_dpop_nonce");
    // Our own API asks for it in its own words.
    let proof = prover.proof("POST", &stand.url(TASKS), json!({}));
    let refused = stand.proven(TASKS, &evidence, &proof, declaration()).await;
    assert!(refused.headers["www-authenticate"].to_str().unwrap().starts_with("DPoP error=\"use_dpop_nonce\""));
    assert!(refused.headers.contains_key("dpop-nonce"));
    refused.refused(401, "evidence_invalid");
}

/// A nonce serves for a while, whoever asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_of_long_ago_is_asked_for_anew() {
    let frozen = Frozen::start(|text| format!("{text}\n[dpop]\nnonce = \"required\"\n")).await;
    let (prover, url, client) = (Prover::new(), frozen.url(TASKS), client());
    let claims = json!({"iat": frozen.now(), "exp": frozen.now() + 3000});
    let evidence = frozen.issuer.evidence(frozen.running.broker.issuer(), claims);
    let declare = async |nonce: Option<&str>| {
        let claims = json!({"iat": frozen.now(), "nonce": nonce});
        let request = client.post(&url).bearer_auth(&evidence).header("dpop", prover.proof("POST", &url, claims));
        Answer::of(request.json(&reading(&[REGISTRY])).send().await.unwrap()).await
    };
    let asked = |answer: Answer| {
        assert!(answer.headers["www-authenticate"].to_str().unwrap().starts_with("DPoP error=\"use_dpop_nonce\""));
        let nonce = answer.headers["dpop-nonce"].to_str().unwrap().to_owned();
        answer.refused(401, "evidence_invalid");
        nonce
    };
    let first = asked(declare(None).await);
    declare(Some(&first)).await.expect(StatusCode::CREATED);
    frozen.clock.advance(chrono::TimeDelta::minutes(10));
    let fresh = asked(declare(Some(&first)).await);
    declare(Some(&fresh)).await.expect(StatusCode::CREATED);
}

/// What was used up on one broker is used up on all, and evidence serves one key on all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_and_evidence_are_remembered_by_all_brokers() {
    let mut stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (prover, thief, evidence) = (Prover::new(), Prover::new(), stand.evidence());
    let task = text(&stand.post(TASKS, &evidence, reading(&[GIT])).await.expect(StatusCode::CREATED), "task");
    let url = stand.url(TOKEN);
    let proof = prover.proof("POST", &url, json!({}));
    stand.exchanged(&evidence, &[&proof], GIT, &task).await.expect(StatusCode::OK);
    stand.exchanged_at(&second, &evidence, &[&proof], GIT, &task).await.oauth_refused(400, "invalid_dpop_proof");
    let stolen = thief.proof("POST", &url, json!({}));
    stand.exchanged_at(&second, &evidence, &[&stolen], GIT, &task).await.oauth_refused(400, "invalid_request");
    // A restart forgets neither.
    stand.restart_broker().await;
    stand.exchanged(&evidence, &[&proof], GIT, &task).await.oauth_refused(400, "invalid_dpop_proof");
    stand
        .exchanged(&evidence, &[&thief.proof("POST", &url, json!({}))], GIT, &task)
        .await
        .oauth_refused(400, "invalid_request");
    // Of many that send the same proof at once, one is served.
    let proof = prover.proof("POST", &url, json!({}));
    let at = [&stand.broker, &second];
    let proofs = [&*proof];
    let all = (0..16).map(|n| stand.exchanged_at(at[n % 2], &evidence, &proofs, GIT, &task));
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all.iter().filter(|answer| answer.status == StatusCode::OK).count(), 1);
    assert!(all.iter().all(|answer| [200, 400].contains(&answer.status.as_u16())));
}

/// An agent with openid-client and a service with jose, neither of which knows us, over every algorithm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_not_ours_prove_possession() {
    let mut stand = Stand::new(Store::Embedded).await;
    let config = std::fs::read_to_string(&stand.broker.config).unwrap();
    std::fs::write(&stand.broker.config, config + "[dpop]\nnonce = \"required\"\n").unwrap();
    stand.restart_broker().await;
    let metadata = stand.client.get(stand.url("/.well-known/oauth-authorization-server")).send().await.unwrap();
    let metadata: Value = metadata.json().await.unwrap();
    let algorithms = metadata["dpop_signing_alg_values_supported"].as_array().unwrap().clone();
    assert_eq!(algorithms, ["ES256", "ES384", "Ed25519", "EdDSA", "PS256", "RS256"]);
    let task =
        text(&stand.post(TASKS, &stand.evidence(), reading(&[REGISTRY])).await.expect(StatusCode::CREATED), "task");
    let asked: Vec<_> = algorithms
        .iter()
        .map(|algorithm| {
            let evidence = stand.issuer.evidence(&stand.broker.url, json!({"jti": algorithm}));
            json!({"algorithm": algorithm, "subject_token": evidence, "subject_token_type": JWT, "resource": REGISTRY,
                "scope": format!("{task} read")})
            .to_string()
        })
        .collect();
    let lines: Vec<_> = asked.iter().map(|line| &**line).collect();
    let said = node("dpop.mjs", &[&stand.broker.url, REGISTRY, REGISTRY_TOKEN], &lines).await;
    for (said, algorithm) in said.iter().zip(&algorithms) {
        let said: Value = serde_json::from_str(said).expect("JSON");
        assert_eq!(
            said,
            json!({"token_type": "dpop", "holder": format!("200 {task}"), "asking": format!("200 {task}"),
            "thief": "401", "bearer": "401"}),
            "{algorithm}"
        );
    }
}
