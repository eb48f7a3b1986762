//! Operators by an issuer of their own: what makes one, what only looks like it, and that neither is ever the other: evidence and operator.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};
use tokio::process::Command;

use crate::{
    both,
    support::{
        Answer, GIT, ISSUER, Issuer, OWNER, RESPONDER, SSO, SSO_AUDIENCE, Stand, Store, VIEWER, declaration, now,
        people, text, wait_for,
    },
};

/// What a person is called in the record.
const ANN: &str = "https://sso.example.com#ann@example.com";

async fn stand() -> Stand {
    Stand::with(Store::Embedded, &people()).await
}

fn revoke(task: &str) -> String {
    format!("/v1/tasks/{task}/revoke")
}

/// The acts of the audit log, each with who did it.
fn acts(stand: &Stand) -> Vec<(Value, String)> {
    stand.audit().iter().map(|line| (line["actor"].clone(), text(line, "event"))).collect()
}

both! {
    crate::support::people();

    async fn claims_make_an_operator(stand) {
        let (task, token) = stand.task_with_token().await;
        let viewer = stand.person(&["sec-viewers", "all-employees"]);
        let list = stand.get("/v1/tasks", &viewer).await.expect(StatusCode::OK);
        assert_eq!(list["tasks"][0]["task"], json!(task));
        stand.post(&revoke(&task), &viewer, json!({"reason": "r"})).await.refused(403, "policy_denied");
        // One text is as good as a list of one, and an access token as an ID token.
        let responder = stand.people.person("at+jwt", json!({"groups": "sec-responders", "aud": ["other", SSO_AUDIENCE]}));
        for bad in [json!({}), json!({"reason": ""}), json!({"reason": " "}), json!({"reason": "r".repeat(1025)})] {
            stand.post(&revoke(&task), &responder, bad).await.refused(400, "invalid_request");
        }
        assert_eq!(stand.introspect(&token).await["active"], true);
        let revoked = stand.post(&revoke(&task), &responder, json!({"reason": "it looked for passwords"})).await;
        assert_eq!(revoked.expect(StatusCode::OK)["state"], "revoked");
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        // What an operator may by a token of the configuration, they may by a token of the issuer: an id that nobody has seen, too.
        let unseen = stand.post(&revoke("task_01jd0000000000000000000000"), &responder, json!({"reason": "r"})).await;
        assert_eq!(unseen.expect(StatusCode::OK)["known"], false);
        // Several groups bring all their roles.
        let both = stand.person(&["sec-viewers", "sec-admins", "sec-responders"]);
        stand.post("/v1/keys/rotate", &both, json!({"reason": "r"})).await.expect(StatusCode::OK);
        let form = [("token", &*token)];
        stand.form("/oauth2/introspect", Some(&both), &form).await.expect(StatusCode::OK);

        let acts = acts(&stand);
        let ann = json!({"as": "operator", "name": ANN});
        for event in ["looked", "operator_refused", "end_requested", "task_ended", "key_rotation_requested"] {
            assert!(acts.contains(&(ann.clone(), event.to_owned())), "{event}: {acts:?}");
        }
    }
}

/// A good token that brings nothing is refused in a sentence, and that is on record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_looks_like_a_role_brings_none() {
    let stand = stand().await;
    let (task, token) = stand.task_with_token().await;
    let rows = [
        json!({"groups": null}),
        json!({"groups": []}),
        json!({"groups": ["all-employees"]}),
        json!({"groups": "sec-responders sec-viewers"}),
        json!({"groups": "sec-responders,sec-viewers"}),
        json!({"groups": ["SEC-RESPONDERS", "sec-responders ", " sec-responders", "sec-responder", "sec-respondеrs"]}),
        json!({"groups": [["sec-responders"]]}),
        json!({"groups": [{"name": "sec-responders"}]}),
        json!({"groups": {"sec-responders": true}}),
        json!({"groups": {"0": "sec-responders"}}),
        json!({"groups": true}),
        json!({"groups": 1}),
        json!({"groups": null, "x": {"groups": ["sec-responders"]}}),
        json!({"groups": null, "/groups": ["sec-responders"]}),
        json!({"groups": null, "Groups": ["sec-responders"]}),
        json!({"groups": null, "roles": ["responder"], "role": "responder", "scope": "responder"}),
        json!({"groups": ["sso:sec-responders", "/sec-responders"]}),
    ];
    for row in &rows {
        let stranger = stand.people.person("JWT", row.clone());
        for (method, path) in
            [(Method::GET, "/v1/tasks".to_owned()), (Method::POST, revoke(&task)), (Method::GET, "/v1/keys".into())]
        {
            let body = (method == Method::POST).then(|| json!({"reason": "r"}));
            let refused = stand.call(method, &path, Some(&stranger), body).await.refused(403, "policy_denied");
            assert!(text(&refused, "detail").contains("neither a role nor an owner's group"), "{row}: {refused}");
        }
        let form = [("token", &*token)];
        stand.form("/oauth2/introspect", Some(&stranger), &form).await.oauth_refused(401, "invalid_client");
    }
    assert_eq!(stand.introspect(&token).await["active"], true);
    // The first of a minute one by one, and nobody has to wait for it; there may be two minutes of them.
    let tried = || stand.whole_audit().into_iter().filter(|line| line["event"] == "caller_refused").collect::<Vec<_>>();
    wait_for("what they tried", || async { tried().len() >= 10 }).await;
    let ann = json!({"as": "operator", "name": ANN});
    assert!(tried().iter().all(|line| line["actor"] == ann && line["code"] == "policy_denied"), "{:?}", tried());
    assert!(tried().len() <= 20 && 4 * rows.len() > 60, "{}", tried().len());
}

/// Signs any header with the issuer's key.
fn forged(issuer: &Issuer, header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let key = jsonwebtoken::EncodingKey::from_ec_der(issuer.key.kid().as_bytes());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, jsonwebtoken::Algorithm::ES256).unwrap();
    format!("{signed}.{signature}")
}

/// Whatever is wrong with a token of the operators' issuer, it is 401, and evidence of nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_not_good_makes_nobody_an_operator() {
    let stand = stand().await;
    let (task, token) = stand.task_with_token().await;
    let sso = &stand.people;
    let groups = json!(["sec-viewers", "sec-responders", "payments"]);
    let with = |over: Value| {
        let mut over = over;
        over["groups"] = groups.clone();
        sso.person("JWT", over)
    };
    let good = with(json!({}));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let payload = signed.split_once('.').unwrap().1;
    let headed = |header: Value| format!("{}.{payload}", BASE64_URL_SAFE_NO_PAD.encode(header.to_string()));
    let kid = sso.key.kid();
    let hmac = |alg: &str| {
        let signed = headed(json!({"alg": alg, "kid": kid, "typ": "JWT"}));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, sso.jwks()["keys"][0].to_string().as_bytes());
        let tag = ring::hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
    };
    let claims = crate::support::claims(&good);
    let as_if = |over: Value| {
        stand.issuer.person("JWT", {
            let mut over = over;
            over["groups"] = groups.clone();
            over
        })
    };
    let rows = [
        ("for another audience", with(json!({"aud": "other"}))),
        ("for the broker as evidence is", with(json!({"aud": stand.broker.url}))),
        ("for nobody", with(json!({"aud": null}))),
        ("for too many", with(json!({"aud": vec![SSO_AUDIENCE; 9]}))),
        ("over", with(json!({"exp": now() - 1}))),
        ("without an end", with(json!({"exp": null}))),
        ("of a session that began too long ago", with(json!({"iat": now() - 3700}))),
        ("without a beginning", with(json!({"iat": null}))),
        ("from the future", with(json!({"iat": now() + 60}))),
        ("not yet", with(json!({"nbf": now() + 60}))),
        ("without a name", with(json!({"email": null}))),
        ("with an empty name", with(json!({"email": ""}))),
        ("with a name that plays with the terminal", with(json!({"email": "ann\u{1b}[2J"}))),
        ("with two names", with(json!({"email": ["ann@example.com", "bob@example.com"]}))),
        ("with an address that is not verified", with(json!({"email_verified": false}))),
        ("with an address that says it is verified", with(json!({"email_verified": "true"}))),
        ("bound to a key", with(json!({"cnf": {"jkt": "oa-3PN1QBBiQhsQBMIOr-H2QiQIVUUn5mrVzqZzlTDY"}}))),
        ("logout", sso.person("logout+jwt", json!({"groups": groups}))),
        ("a proof", sso.person("dpop+jwt", json!({"groups": groups}))),
        ("signed by the issuer of workloads", as_if(json!({}))),
        ("signed by the issuer of workloads, in both names", as_if(json!({"iss": ISSUER, "aud": [SSO_AUDIENCE, "x"]}))),
        ("of another issuer", with(json!({"iss": "https://sso.example.com/"}))),
        ("of an issuer of workloads", with(json!({"iss": ISSUER, "aud": stand.broker.url}))),
        ("in the broker's own name", with(json!({"iss": stand.broker.url}))),
        ("no algorithm", format!("{}.", headed(json!({"alg": "none", "typ": "JWT"})))),
        ("no algorithm, with a signature", format!("{}.{signature}", headed(json!({"alg": "none", "kid": kid})))),
        ("the public key as a secret", hmac("HS256")),
        ("the public key as a secret, by another name", hmac("ES256")),
        ("another key", forged(sso, &json!({"alg": "ES256", "kid": "other"}), &claims)),
        ("its own key", forged(sso, &json!({"alg": "ES256", "jwk": sso.jwks()["keys"][0]}), &claims)),
        ("a critical extension", forged(sso, &json!({"alg": "ES256", "kid": kid, "crit": ["x"], "x": 1}), &claims)),
        ("without its signature", format!("{signed}.")),
        ("by a stranger", Issuer::new().person("JWT", json!({"groups": groups}))),
    ];
    for (name, bad) in rows {
        for (method, path, body) in [
            (Method::GET, "/v1/tasks".to_owned(), None),
            (Method::POST, revoke(&task), Some(json!({"reason": "r"}))),
            (Method::POST, "/v1/tasks".to_owned(), Some(declaration())),
        ] {
            let answer = stand.call(method, &path, Some(&bad), body).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}: {path} {}", answer.text);
            answer.refused(401, "evidence_invalid");
        }
    }
    // The key is the set's only one, so a token need not name it.
    stand.get("/v1/tasks", &forged(sso, &json!({"alg": "ES256"}), &claims)).await.expect(StatusCode::OK);
    assert_eq!(stand.introspect(&token).await["active"], true);
    let metrics = Answer::of(stand.client.get(stand.url("/metrics")).send().await.unwrap()).await;
    assert!(metrics.text.contains("remit_evidence_refused_total{attestor=\"operator\",reason=\"invalid\"}"));
}

/// An operator is no workload, however their token is presented; and a workload is no operator, whatever its evidence says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_never_the_other() {
    let stand = stand().await;
    let (task, token) = stand.task_with_token().await;
    // All that an attestor asks for is in it, too.
    let over = json!({
        "groups": ["sec-viewers", "sec-responders", "sec-admins"], "repository": "acme/payments", "run_id": "1",
        "run_attempt": "1", "aud": [SSO_AUDIENCE, stand.broker.url],
    });
    let operator = stand.people.person("JWT", over);
    stand.post("/v1/tasks", &operator, declaration()).await.refused(403, "policy_denied");
    let mint = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
    stand.post(&format!("/v1/tasks/{task}/credentials"), &operator, mint).await.refused(403, "policy_denied");
    let scope = format!("{task} read");
    for kind in ["jwt", "id_token", "access_token"] {
        let kind = format!("urn:ietf:params:oauth:token-type:{kind}");
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", &operator),
            ("subject_token_type", &kind),
            ("resource", GIT),
            ("scope", &scope),
        ];
        stand.form("/oauth2/token", None, &form).await.oauth_refused(400, "invalid_request");
    }
    let form = [
        ("grant_type", "client_credentials"),
        ("client_assertion", &*operator),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("resource", GIT),
        ("scope", &scope),
    ];
    stand.form("/oauth2/token", None, &form).await.oauth_refused(401, "invalid_client");
    let dpop = stand.client.get(stand.url("/v1/tasks")).header("authorization", format!("DPoP {operator}"));
    Answer::of(dpop.send().await.unwrap()).await.refused(401, "evidence_invalid");

    // Evidence with everything that an operator's token has stays that of a workload.
    let over = json!({
        "groups": ["sec-viewers", "sec-responders", "sec-admins", "payments"], "email": "ann@example.com", "run_id": "2",
        "aud": [stand.broker.url, SSO_AUDIENCE], "roles": ["responder"],
    });
    let workload = stand.issuer.evidence(&stand.broker.url, over);
    let list = stand.get("/v1/tasks", &workload).await.expect(StatusCode::OK);
    assert_eq!(list["tasks"], json!([]));
    stand.post(&revoke(&task), &workload, json!({"reason": "r"})).await.refused(404, "not_found");
    stand.get("/v1/keys", &workload).await.refused(403, "policy_denied");
    stand.form("/oauth2/introspect", Some(&workload), &[("token", &token)]).await.oauth_refused(401, "invalid_client");
    assert_eq!(stand.introspect(&token).await["active"], true);
    // Nor does a bearer token of the configuration have to fear for its name.
    let rita = stand.people.person("JWT", json!({"email": "rita", "groups": ["sec-viewers"]}));
    stand.post(&revoke(&task), &rita, json!({"reason": "r"})).await.refused(403, "policy_denied");
    stand.post(&revoke(&task), RESPONDER, json!({"reason": "r"})).await.expect(StatusCode::OK);
    let acts = acts(&stand);
    let named = |name: &str, event: &str| acts.contains(&(json!({"as": "operator", "name": name}), event.to_owned()));
    assert!(named("https://sso.example.com#rita", "operator_refused") && named("rita", "task_ended"), "{acts:?}");
    assert!(!named("rita", "operator_refused"));
}

/// Whoever watches has to prove again who they are when their token is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_over_sees_nothing_more() {
    let stand = stand().await;
    let (task, _) = stand.task_with_token().await;
    for group in ["sec-viewers", "payments"] {
        let soon = stand.people.person("JWT", json!({"groups": [group], "exp": now() + 3}));
        let watch = stand.client.get(stand.url(&format!("/v1/tasks/{task}"))).bearer_auth(&soon);
        let watch = watch.header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(watch.status(), StatusCode::OK);
        let events = tokio::time::timeout(Duration::from_secs(10), watch.text()).await.expect("it ends").unwrap();
        assert_eq!(events.matches("event: task").count(), 1, "{events}");
        stand.get("/v1/tasks", &soon).await.refused(401, "evidence_invalid");
    }
}

/// What an issuer's claims bring follows the configuration, and an issuer that cannot be asked is doubt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_follow_the_configuration() {
    let stand = stand().await;
    let (task, _) = stand.task_with_token().await;
    let viewer = stand.person(&["sec-viewers"]);
    stand.get("/v1/tasks", &viewer).await.expect(StatusCode::OK);
    stand.change("value = \"sec-viewers\"", "value = \"sec-auditors\"");
    wait_for("the new grant", || async { stand.get("/v1/tasks", &viewer).await.status == StatusCode::FORBIDDEN }).await;
    // Keys of the issuer are followed in their file as well.
    let other = Issuer::new();
    let auditor = |issuer: &Issuer| issuer.person("JWT", json!({"groups": ["sec-auditors"]}));
    stand.get("/v1/tasks", &auditor(&stand.people)).await.expect(StatusCode::OK);
    stand.get("/v1/tasks", &auditor(&other)).await.refused(401, "evidence_invalid");
    fs::write(stand.dir.path().join("sso-keys.json"), other.jwks().to_string()).unwrap();
    wait_for("the new key", || async { stand.get("/v1/tasks", &auditor(&other)).await.status == StatusCode::OK }).await;
    stand.get("/v1/tasks", &auditor(&stand.people)).await.refused(401, "evidence_invalid");
    // A responder's answer is not made up where the issuer's keys are out of reach; the operators of the configuration go on.
    stand.change("keys_file = \"sso-keys.json\"", "jwks_url = \"https://127.0.0.1:1/jwks\"");
    let responder = other.person("JWT", json!({"groups": ["sec-responders"]}));
    let status = || async { stand.get("/v1/tasks", &responder).await.status };
    wait_for("the issuer to be out of reach", || async { status().await == StatusCode::SERVICE_UNAVAILABLE }).await;
    stand.post(&revoke(&task), &responder, json!({"reason": "r"})).await.refused(503, "temporarily_unavailable");
    stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK);
    stand.post(&revoke(&task), RESPONDER, json!({"reason": "r"})).await.expect(StatusCode::OK);
}

/// The command line takes such a token where it takes any operator's; contacts are shown to operators.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_takes_it_as_it_is() {
    let stand = stand().await;
    let (task, token) = stand.task_with_token().await;
    let file = stand.dir.path().join("ann.token");
    let remit = async |token: &str, arguments: &[&str]| {
        fs::write(&file, format!("{token}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(arguments).env("REMIT_URL", &stand.broker.url).env("REMIT_OPERATOR_TOKEN_FILE", &file);
        let output = command.output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let shown = remit(&stand.person(&["sec-viewers"]), &["task", "show", &task]).await;
    assert!(shown.0 == 0 && shown.1.contains("#payments, payments-oncall@example.com"), "{shown:?}");
    let own = stand.get(&format!("/v1/tasks/{task}"), &stand.evidence()).await.expect(StatusCode::OK);
    assert_eq!((&own["owner"], own.get("owner_contacts")), (&json!(OWNER), None));
    let over = stand.people.person("JWT", json!({"groups": ["sec-responders"], "exp": now() - 1}));
    let refused = remit(&over, &["task", "revoke", &task, "--reason", "r"]).await;
    assert!(refused.0 == 3 && refused.2.contains("may have expired"), "{refused:?}");
    let refused = remit(&stand.person(&["sec-viewers"]), &["task", "revoke", &task, "--reason", "r"]).await;
    assert!(refused.0 == 1 && refused.2.contains("responder"), "{refused:?}");
    assert_eq!(stand.introspect(&token).await["active"], true);
    let revoked = remit(&stand.person(&["sec-responders"]), &["task", "revoke", &task, "--reason", "r"]).await;
    assert_eq!(revoked.0, 0, "{revoked:?}");
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    assert_eq!(SSO, ANN.split('#').next().unwrap());
}
