//! Registered clients, which authenticate with assertions that they sign (RFC 7523, draft-ietf-oauth-rfc7523bis).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use remit::jose::SigningKey;
use reqwest::{Method, StatusCode};
use ring::signature::{EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::{
    both,
    clients::node,
    support::{
        Answer, Body, GIT, OWNER, Prover, REGISTRY, Stand, Store, claims, declaration, now, overlaid, text, wait_for,
    },
};

const TOKEN: &str = "/oauth2/token";
const CLIENT: &str = "billing";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A client, and the stand that knows it.
struct Client {
    stand: Stand,
    key: SigningKey,
}

impl Client {
    async fn of(mut stand: Stand) -> Self {
        let key = Prover::new().key;
        let mut jwk = serde_json::to_value(key.public()).unwrap();
        jwk["use"] = "sig".into();
        std::fs::write(stand.dir.path().join("billing.json"), json!({ "keys": [jwk] }).to_string()).unwrap();
        let config = std::fs::read_to_string(&stand.broker.config).unwrap();
        let section = format!(
            "[[attestor]]\ntype = \"private_key_jwt\"\nname = \"billing-job\"\nclient_id = \"{CLIENT}\"\nkeys_file = \"billing.json\"\n\
             workload = \"/clients/billing\"\nowners = [\"{OWNER}\"]\n"
        );
        std::fs::write(&stand.broker.config, config + &section).unwrap();
        stand.restart_broker().await;
        Self { stand, key }
    }

    /// The claims of an assertion, with these laid over them; `null` removes one.
    #[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
    fn claims(&self, over: Value) -> Value {
        let jti = remit::id::LeaseId::random().unwrap();
        let claims = json!({"iss": CLIENT, "sub": CLIENT, "aud": self.stand.broker.url, "exp": now() + 60, "iat": now(), "jti": jti});
        overlaid(claims, &over)
    }

    fn assertion(&self, over: Value) -> String {
        self.key.sign("JWT", &self.claims(over)).unwrap()
    }

    /// Signed with the key that is registered, or with its public half as a secret, or not at all; and never as that key signs.
    fn with_other_algorithms(&self) -> Vec<String> {
        let claims = encode(self.claims(json!({})).to_string());
        let own = jsonwebtoken::EncodingKey::from_ec_der(self.key.kid().as_bytes());
        let secret = serde_json::to_string(self.key.public()).unwrap();
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let signed_as = |alg: &str| {
            let header = json!({"alg": alg, "typ": "JWT", "kid": self.key.kid()}).to_string();
            let signed = format!("{}.{claims}", encode(header));
            let own = jsonwebtoken::crypto::sign(signed.as_bytes(), &own, jsonwebtoken::Algorithm::ES256).unwrap();
            let hmac = encode(ring::hmac::sign(&secret, signed.as_bytes()));
            [own, hmac, String::new()].map(|signature| format!("{signed}.{signature}"))
        };
        ["none", "HS256", "RS256", "ES384", "es256"].into_iter().flat_map(signed_as).collect()
    }

    async fn ask(&self, assertion: &str, more: &[(&str, &str)]) -> Answer {
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("client_assertion", assertion),
            ("client_assertion_type", JWT_BEARER),
        ];
        form.extend_from_slice(more);
        self.stand.form(TOKEN, None, &form).await
    }

    /// Declares a task in the same call.
    async fn declare(&self, assertion: &str) -> Answer {
        self.ask(assertion, &[("authorization_details", &detail()), ("resource", GIT), ("scope", "read")]).await
    }
}

fn encode(octets: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(octets)
}

fn detail() -> String {
    let mut detail = declaration();
    detail["type"] = json!("remit:declaration");
    detail.as_object_mut().unwrap().remove("credentials");
    json!([detail]).to_string()
}

both! {
    async fn a_client_works_with_its_assertions(stand) {
        let client = Client::of(stand).await;
        let answer = client.declare(&client.assertion(json!({}))).await.expect(StatusCode::OK);
        let (task, token) = (text(&answer, "task"), claims(&text(&answer, "access_token")));
        assert_eq!(token["sub"], "spiffe://example.com/clients/billing");
        assert_eq!((&token["urn:remit:task"]["attestor"], &token["urn:remit:task"]["evidence_issuer"]), (&json!("billing-job"), &json!(CLIENT)));
        assert_eq!(token["urn:remit:task"]["kind"], "service");
        assert!(token["exp"].as_i64().unwrap() <= now() + 60, "no credential outlives the evidence");
        let scope = format!("{task} read");
        let named = [("resource", GIT), ("scope", &*scope), ("client_id", CLIENT)];
        // In every way that it may be written.
        for (typ, over) in [
            ("client-authentication+jwt", json!({})),
            ("jwt", json!({"aud": [client.stand.broker.url]})),
            ("JWT", json!({"jti": null, "iat": null})),
        ] {
            let assertion = client.key.sign(typ, &client.claims(over)).unwrap();
            client.ask(&assertion, &named).await.expect(StatusCode::OK);
            // And once only.
            client.ask(&assertion, &named).await.oauth_refused(401, "invalid_client");
        }
        let replay = |line: &Value| line["event"] == "evidence_refused" && line["attestor"] == "client" && line["reason"] == "replay";
        wait_for("the record", || async { client.stand.whole_audit().iter().any(replay) }).await;
        // On our own API it is evidence like any other, and serves once there too.
        let (path, assertion) = (format!("/v1/tasks/{task}"), client.assertion(json!({})));
        assert_eq!(client.stand.get(&path, &assertion).await.expect(StatusCode::OK)["instance"], format!("key:{}", client.key.kid()));
        client.stand.get(&path, &assertion).await.refused(401, "evidence_invalid");
        // What policy refuses uses nothing up.
        let assertion = client.assertion(json!({}));
        let refused = format!("{task} secret");
        client.ask(&assertion, &[("resource", GIT), ("scope", &refused)]).await.oauth_refused(400, "invalid_scope");
        client.ask(&assertion, &named).await.expect(StatusCode::OK);
        // With a key it gets bound tokens, and a task token to go on with.
        let prover = Prover::new();
        let (assertion, detail) = (client.assertion(json!({})), detail());
        let form = [("grant_type", "client_credentials"), ("client_assertion", &*assertion), ("client_assertion_type", JWT_BEARER),
            ("authorization_details", &*detail), ("resource", GIT), ("scope", "read")];
        let proof = prover.proof("POST", &client.stand.url(TOKEN), json!({}));
        let answer = client.stand.proven_at(&client.stand.broker, (Method::POST, TOKEN), None, &[&proof], Body::Form(&form)).await;
        assert!(answer.expect(StatusCode::OK)["task_token"].is_string());
    }

    async fn an_assertion_that_does_not_fit_is_refused(stand) {
        let client = Client::of(stand).await;
        let task = text(&client.declare(&client.assertion(json!({}))).await.expect(StatusCode::OK), "task");
        let scope = format!("{task} read");
        let named = [("resource", GIT), ("scope", &*scope)];
        let url = client.stand.broker.url.clone();
        let stranger = Prover::new().key;
        let mut bad: Vec<(&str, String)> = vec![
            ("another's key", stranger.sign("JWT", &client.claims(json!({}))).unwrap()),
            ("another type", client.key.sign("at+jwt", &client.claims(json!({}))).unwrap()),
            ("a proof's type", client.key.sign("dpop+jwt", &client.claims(json!({}))).unwrap()),
            ("evidence of an issuer", client.stand.evidence()),
            ("words", "not.an.assertion".to_owned()),
            ("nothing", String::new()),
        ];
        bad.extend(client.with_other_algorithms().into_iter().map(|assertion| ("another algorithm", assertion)));
        for (name, over) in [
            ("the token endpoint as audience", json!({"aud": format!("{url}{TOKEN}")})),
            ("another host", json!({"aud": "https://broker.example.com"})),
            ("several audiences", json!({"aud": [url, "https://other.example.com"]})),
            ("the same audience twice", json!({"aud": [url, url]})),
            ("no audience in a list", json!({"aud": []})),
            ("no audience", json!({"aud": null})),
            ("no end", json!({"exp": null})),
            ("an end that is over", json!({"exp": now() - 1})),
            ("an end far away", json!({"exp": now() + 7200})),
            ("an end that is text", json!({"exp": (now() + 60).to_string()})),
            ("from the future", json!({"iat": now() + 60})),
            ("not yet valid", json!({"nbf": now() + 60})),
            ("no subject", json!({"sub": null})),
            ("another subject", json!({"sub": "other"})),
            ("another issuer", json!({"iss": "other"})),
            ("an empty id", json!({"jti": ""})),
            ("a long id", json!({"jti": "j".repeat(600)})),
        ] {
            bad.push((name, client.assertion(over)));
        }
        // A claim that may be left out is not there with nothing in it.
        for name in ["iat", "nbf", "jti"] {
            let mut claims = client.claims(json!({}));
            claims[name] = Value::Null;
            bad.push((name, client.key.sign("JWT", &claims).unwrap()));
        }
        for (name, assertion) in bad {
            let answer = client.ask(&assertion, &named).await;
            assert_eq!((answer.status, answer.json()["error"].clone()), (StatusCode::UNAUTHORIZED, json!("invalid_client")), "{name}: {}", answer.text);
        }
        // The other parameters.
        let (good, form) = (client.assertion(json!({})), |assertion: &str, over: &[(&str, &str)]| {
            let mut form = vec![("grant_type".to_owned(), "client_credentials".to_owned()), ("client_assertion".to_owned(), assertion.to_owned()),
                ("client_assertion_type".to_owned(), JWT_BEARER.to_owned()), ("resource".to_owned(), GIT.to_owned()), ("scope".to_owned(), scope.clone())];
            for (name, value) in over {
                form.retain(|(known, _)| known != name);
                if !value.is_empty() {
                    form.push(((*name).to_owned(), (*value).to_owned()));
                }
            }
            form
        });
        let exchange = "urn:ietf:params:oauth:grant-type:token-exchange";
        let evidence = client.stand.evidence();
        for over in [
            &[("client_assertion_type", "")][..],
            &[("client_assertion", "")],
            &[("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")],
            &[("client_id", "other")],
            &[("client_secret", "secret")],
            &[("grant_type", exchange)],
            &[("subject_token", &evidence), ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")],
            &[("grant_type", exchange), ("subject_token", &evidence), ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")],
        ] {
            let form = form(&good, over);
            let form: Vec<_> = form.iter().map(|(name, value)| (&**name, &**value)).collect();
            client.stand.form(TOKEN, None, &form).await.oauth_refused(401, "invalid_client");
        }
        // None of that used the good one up; and an assertion does not make another caller's tasks one's own.
        client.ask(&good, &named).await.expect(StatusCode::OK);
        let others = text(&client.stand.declare(declaration()).await.expect(StatusCode::CREATED), "task");
        let scope = format!("{others} read");
        client.ask(&client.assertion(json!({})), &[("resource", GIT), ("scope", &scope)]).await.oauth_refused(400, "invalid_grant");
    }
}

/// Another key of the same client is another instance of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_an_instance() {
    let mut client = Client::of(Stand::new(Store::Embedded).await).await;
    let task = text(&client.declare(&client.assertion(json!({}))).await.expect(StatusCode::OK), "task");
    let other = Prover::new().key;
    let keys: Vec<_> = [&client.key, &other].iter().map(|key| serde_json::to_value(key.public()).unwrap()).collect();
    std::fs::write(client.stand.dir.path().join("billing.json"), json!({ "keys": keys }).to_string()).unwrap();
    client.stand.restart_broker().await;
    let scope = format!("{task} read");
    let named = [("resource", GIT), ("scope", &*scope)];
    client.ask(&client.assertion(json!({})), &named).await.expect(StatusCode::OK);
    client.key = other;
    client.ask(&client.assertion(json!({})), &named).await.oauth_refused(400, "invalid_grant");
}

/// openid-client, which has never heard of us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openid_client_authenticates_with_a_key() {
    let mut client = Client::of(Stand::new(Store::Embedded).await).await;
    // Its private half has to be handed over, so this key is made here.
    let random = ring::rand::SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let key = SigningKey::from_pkcs8(document.as_ref()).unwrap();
    let mut jwk = serde_json::to_value(key.public()).unwrap();
    std::fs::write(client.stand.dir.path().join("billing.json"), json!({ "keys": [jwk] }).to_string()).unwrap();
    client.stand.restart_broker().await;
    let pair = EcdsaKeyPair::from_pkcs8(&ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
        .unwrap();
    assert_eq!(pair.public_key().as_ref().len(), 65);
    // SEC 1 inside PKCS#8: the 32 octets of the private key come after their tag and length.
    let octets = document.as_ref();
    let at = octets.windows(2).rposition(|pair| pair == [0x04, 0x20]).unwrap() + 2;
    jwk["d"] = json!(BASE64_URL_SAFE_NO_PAD.encode(&octets[at..at + 32]));
    let declare = json!({"authorization_details": detail(), "resource": GIT, "scope": "read"}).to_string();
    let bound = json!({"authorization_details": detail(), "resource": REGISTRY, "scope": "read", "dpop": true});
    let mut registry = bound.clone();
    let mut detail: Value = serde_json::from_str(&detail()).unwrap();
    detail[0]["authorization_details"] =
        json!([{"type": "remit:access", "locations": [REGISTRY], "privileges": ["read"]}]);
    registry["authorization_details"] = json!(detail.to_string());
    let lines = [jwk.to_string(), declare, registry.to_string(), json!({"resource": GIT, "scope": "read"}).to_string()];
    let lines: Vec<_> = lines.iter().map(|line| &**line).collect();
    let said = node("client.mjs", &[&client.stand.broker.url, CLIENT, "ES256"], &lines).await;
    let said: Vec<Value> = said.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said[0], json!(["none", "private_key_jwt"]));
    assert_eq!((&said[1]["token_type"], &said[1]["scope"]), (&json!("bearer"), &json!("read")), "{}", said[1]);
    assert_eq!(said[2]["token_type"], "dpop", "{}", said[2]);
    assert!(said[2]["task_token"].is_string());
    assert_eq!((&said[3]["class"], &said[3]["error"]), (&json!("ResponseBodyError"), &json!("invalid_scope")));
}

/// The parameters of the token endpoint, each with a value that would do.
const PARAMETERS: [&str; 13] = [
    "subject_token",
    "subject_token_type",
    "actor_token",
    "actor_token_type",
    "client_assertion",
    "client_assertion_type",
    "client_id",
    "client_secret",
    "resource",
    "audience",
    "scope",
    "authorization_details",
    "requested_token_type",
];

/// Whether the documentation has this set of parameters: who asks, and what for.
fn is_documented(grant: &str, has: impl Fn(&str) -> bool) -> bool {
    let none = |names: &[&str]| !names.iter().any(|name| has(name));
    let subject =
        has("subject_token") && has("subject_token_type") && none(&["client_assertion", "client_assertion_type"]);
    let client =
        has("client_assertion") && has("client_assertion_type") && none(&["subject_token", "subject_token_type"]);
    let who = if grant == "client_credentials" { client } else { subject };
    let what = has("authorization_details") || has("resource") && has("scope");
    who && what && none(&["actor_token", "actor_token_type", "client_secret", "audience"])
}

/// Every subset of the parameters under every grant: a token comes of those alone that are documented, and each other is told what is
/// wrong in a form that OAuth clients understand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_subset_of_parameters() {
    let client = Client::of(Stand::new(Store::Embedded).await).await;
    let own = text(&client.declare(&client.assertion(json!({}))).await.expect(StatusCode::OK), "task");
    let of_ci = text(&client.stand.declare(declaration()).await.expect(StatusCode::CREATED), "task");
    let evidence = client.stand.evidence();
    let value = |grant: &str, name: &str| {
        let task = if grant == "client_credentials" { &own } else { &of_ci };
        let detail = json!([{"type": "remit:task", "identifier": task, "locations": [GIT], "privileges": ["read"]}]);
        match name {
            "subject_token" | "actor_token" => evidence.clone(),
            "subject_token_type" | "actor_token_type" => "urn:ietf:params:oauth:token-type:jwt".to_owned(),
            "client_assertion" => client.assertion(json!({})),
            "client_assertion_type" => JWT_BEARER.to_owned(),
            "client_id" => CLIENT.to_owned(),
            "client_secret" => "secret".to_owned(),
            "resource" | "audience" => GIT.to_owned(),
            "scope" => format!("{task} read"),
            "authorization_details" => detail.to_string(),
            _ => "urn:ietf:params:oauth:token-type:access_token".to_owned(),
        }
    };
    let try_one = async |grant: &str, set: usize| {
        let names: Vec<_> = (0..PARAMETERS.len()).filter(|at| set >> at & 1 == 1).map(|at| PARAMETERS[at]).collect();
        let mut form = vec![("grant_type", grant.to_owned())];
        form.extend(names.iter().map(|name| (*name, value(grant, name))));
        let answer = client.stand.client.post(client.stand.url(TOKEN)).form(&form).send().await.unwrap();
        let (status, body): (_, Value) = (answer.status(), answer.json().await.unwrap());
        let fits = if is_documented(grant, |name| names.contains(&name)) {
            status == StatusCode::OK && body["task"].is_string()
        } else {
            let codes = ["invalid_request", "invalid_client", "invalid_target", "invalid_scope"];
            let code = body["error"].as_str().unwrap_or_default();
            let expected = if code == "invalid_client" { StatusCode::UNAUTHORIZED } else { StatusCode::BAD_REQUEST };
            codes.contains(&code) && status == expected
        };
        (!fits).then(|| format!("{grant} {names:?}: {status} {body}"))
    };
    let grants = ["urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"];
    let all: Vec<_> =
        grants.iter().flat_map(|grant| (0..1 << PARAMETERS.len()).map(move |set| (*grant, set))).collect();
    let mut wrong: Vec<String> = Vec::new();
    for some in all.chunks(64) {
        let tried = futures_util::future::join_all(some.iter().map(|(grant, set)| try_one(grant, *set))).await;
        wrong.extend(tried.into_iter().flatten());
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong[..wrong.len().min(20)].join("\n"));
}
