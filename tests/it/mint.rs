//! Minting: on our own API, by token exchange, and by `client_credentials` on the socket.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    both,
    support::{
        Answer, GIT, NOWHERE, REGISTRY, RESPONDER, Stand, VIEWER, claims, declaration, now, part, socket_client, text,
        time,
    },
};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// A token exchange for git and `read`, with some parameters laid over it; an empty value leaves one out.
async fn exchange(stand: &Stand, task: &str, over: &[(&str, &str)]) -> Answer {
    let (evidence, scope) = (stand.evidence(), format!("{task} read"));
    let mut form = vec![
        ("grant_type", EXCHANGE),
        ("subject_token", &*evidence),
        ("subject_token_type", JWT),
        ("resource", GIT),
        ("scope", &*scope),
    ];
    for (name, value) in over {
        form.retain(|(other, _)| other != name);
        if !value.is_empty() {
            form.push((name, value));
        }
    }
    stand.form("/oauth2/token", None, &form).await
}

/// What is laid over the form, and the answer.
type Row<'a> = (&'a [(&'a str, &'a str)], u16, &'a str);

both! {
    /// RFC 9068 and the design, claim by claim.
    async fn an_access_token_says_what_it_must(stand) {
        let answer = stand.declare(declaration()).await.expect(StatusCode::CREATED);
        let token = text(&answer["credentials"][0], "access_token");
        let header = part(&token, 0);
        assert_eq!((&header["typ"], &header["alg"]), (&json!("at+jwt"), &json!("ES256")));
        assert_eq!(header.as_object().unwrap().len(), 3);
        let mut claims = claims(&token);
        let jwks = stand.client.get(stand.url("/jwks")).send().await.unwrap().json::<Value>().await.unwrap();
        assert!(jwks["keys"].as_array().unwrap().iter().any(|key| key["kid"] == header["kid"] && key["use"] == "sig"));
        let (exp, iat) = (claims["exp"].as_i64().unwrap(), claims["iat"].as_i64().unwrap());
        assert!(exp - iat <= 300 && (iat - now()).abs() <= 2 && claims["nbf"] == iat);
        let task = claims["urn:remit:task"].take();
        let status = claims["status"].take();
        let place = status["status_list"]["idx"].as_u64().filter(|place| *place < 65_536).expect("a place");
        assert_eq!(status, json!({"status_list": {"idx": place, "uri": stand.url("/status-lists/0")}}));
        for volatile in ["exp", "iat", "nbf", "jti", "urn:remit:task", "status"] {
            claims.as_object_mut().unwrap().remove(volatile).unwrap();
        }
        assert_eq!(claims, json!({
            "iss": stand.broker.url, "sub": "spiffe://example.com/ci/acme/payments", "client_id": "spiffe://example.com/ci/acme/payments",
            "aud": GIT, "scope": "read",
            "authorization_details": [{"type": "remit:access", "locations": [GIT], "privileges": ["read"], "actions": ["clone"],
                "identifier": "acme/payments"}],
        }));
        let created = time(&answer, "created_at");
        let expires = time(&answer, "expires_at");
        assert_eq!(task, json!({
            "id": answer["task"], "owner": answer["owner"], "sandbox": "sb-7f3", "kind": "ci", "attestor": "ci",
            "evidence_issuer": "https://ci.example.com", "declared_at": created.timestamp(), "generation": 1,
            "authority_hash": answer["authority_hash"], "expires_at": expires.timestamp(),
        }));
    }

    async fn a_token_exchange_gives_an_access_token(stand) {
        let (task, _) = stand.task_with_token().await;
        let body = exchange(&stand, &task, &[]).await.expect(StatusCode::OK);
        assert_eq!(body["issued_token_type"], "urn:ietf:params:oauth:token-type:access_token");
        assert_eq!((&body["token_type"], &body["scope"], &body["task"]), (&json!("Bearer"), &json!("read"), &json!(task)));
        assert!((290..=300).contains(&body["expires_in"].as_i64().unwrap()));
        assert_eq!(body["authorization_details"][0]["locations"], json!([GIT]));
        assert_eq!(stand.introspect(&text(&body, "access_token")).await["active"], true);
        let detail = json!([{"type": "remit:task", "identifier": task, "locations": [GIT], "privileges": ["write"]}]).to_string();
        let body = exchange(&stand, &task, &[("scope", ""), ("resource", ""), ("authorization_details", &detail)]).await.expect(StatusCode::OK);
        assert_eq!(body["scope"], "write");
        exchange(&stand, &task, &[("scope", &format!("{task} write")), ("authorization_details", &detail)]).await.expect(StatusCode::OK);
        exchange(&stand, &task, &[("authorization_details", &detail)]).await.oauth_refused(400, "invalid_authorization_details");
    }

    async fn a_jwt_svid_names_the_task(stand) {
        let (task, _) = stand.task_with_token().await;
        let body = exchange(&stand, &task, &[("requested_token_type", JWT)]).await.expect(StatusCode::OK);
        assert_eq!((&body["token_type"], &body["issued_token_type"]), (&json!("N_A"), &json!(JWT)));
        let token = text(&body, "access_token");
        let header = part(&token, 0);
        assert_eq!(header["typ"], "JWT");
        assert_eq!(header.as_object().unwrap().len(), 3);
        assert_eq!(claims(&token)["sub"], format!("spiffe://example.com/ci/acme/payments/task/{task}"));
        // Its key stands in the SPIFFE bundle and nowhere else.
        let get = async |path| stand.client.get(stand.url(path)).send().await.unwrap().json::<Value>().await.unwrap();
        let has = |set: &Value, purpose: &str| set["keys"].as_array().unwrap().iter().any(|k| k["kid"] == header["kid"] && k["use"] == purpose);
        assert!(has(&get("/spiffe/bundle").await, "jwt-svid") && !has(&get("/jwks").await, "sig"));
        assert_eq!(stand.introspect(&token).await["active"], true);
    }

    /// `exp` is at most the task's deadline, the evidence's end and policy's bound.
    async fn a_lifetime_is_bounded(stand) {
        let (task, _) = stand.task_with_token().await;
        let mint = async |evidence: &str, ttl: Value| {
            let body = json!({"credentials": [{"resource": GIT, "privilege": "write", "ttl": ttl}]});
            stand.post(&format!("/v1/tasks/{task}/credentials"), evidence, body).await
        };
        let exp = |answer: Value| claims(&text(&answer["credentials"][0], "access_token"))["exp"].as_i64().unwrap();
        let soon = now() + 20;
        let evidence = stand.issuer.evidence(&stand.broker.url, json!({"exp": soon}));
        assert_eq!(exp(mint(&evidence, json!(120)).await.expect(StatusCode::OK)), soon);
        let life = exp(mint(&stand.issuer.evidence(&stand.broker.url, json!({"exp": now() + 3000})), json!(600)).await.expect(StatusCode::OK));
        assert!(life <= now() + 600);
        // Policy's bound on `write` is 600 seconds: above it is refused, not brought down.
        mint(&stand.evidence(), json!(601)).await.refused(400, "invalid_request");
        for bad in [json!(0), json!(-1), json!(1e18), json!(1.5), json!("5m")] {
            mint(&stand.evidence(), bad).await.refused(400, "invalid_request");
        }
        let short = json!({"purpose": "p", "owner": crate::support::OWNER, "ttl": 3,
            "authorization_details": [{"type": "remit:access", "locations": [GIT], "privileges": ["read"]}],
            "credentials": [{"resource": GIT, "privilege": "read", "ttl": 120}]});
        let answer = stand.declare(short).await.expect(StatusCode::CREATED);
        let deadline = time(&answer, "expires_at");
        assert_eq!(exp(answer.clone()), deadline.timestamp());
        // After the deadline the task has expired: no mint, nothing alive.
        tokio::time::sleep(std::time::Duration::from_millis(3200)).await;
        let task = text(&answer, "task");
        stand.mint(&task).await.refused(409, "task_not_active");
        assert_eq!(stand.introspect(&text(&answer["credentials"][0], "access_token")).await, json!({"active": false}));
        assert_eq!(stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK)["state"], "expired");
    }

    async fn mint_refuses_what_the_task_was_not_granted(stand) {
        let (task, _) = stand.task_with_token().await;
        let mint = async |credentials: Value| stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), json!({"credentials": credentials})).await;
        let body = mint(json!([{"resource": GIT, "privilege": "read"}, {"resource": REGISTRY, "privilege": "read"}])).await.refused(403, "policy_denied");
        assert_eq!(body["denied"][0]["locations"], json!([REGISTRY]));
        mint(json!([{"resource": GIT, "privilege": "secret"}])).await.refused(403, "policy_denied");
        mint(json!([{"resource": "https://git.example.com/", "privilege": "read"}])).await.refused(403, "policy_denied");
        mint(json!([])).await.refused(400, "invalid_request");
        mint(json!([{"resource": GIT, "privilege": "read", "audience": GIT}])).await.refused(400, "invalid_request");
        stand.post("/v1/tasks/task_01jd0000000000000000000000/credentials", &stand.evidence(), json!({"credentials": [{"resource": GIT, "privilege": "read"}]})).await.refused(404, "not_found");
        for bad in ["x", "task_01JD0000000000000000000000", "task_01jd000000000000000000000%7d", "..%2f..%2fadmin"] {
            stand.post(&format!("/v1/tasks/{bad}/credentials"), &stand.evidence(), json!({"credentials": [{"resource": GIT, "privilege": "read"}]})).await.refused(400, "invalid_request");
        }
        // Nothing of a refused call was minted.
        let revoked = stand.revoke(&task).await.expect(StatusCode::OK);
        assert_eq!(revoked["credentials"], 1);
    }

    /// Declaring and minting are separate decisions.
    async fn what_may_be_declared_may_still_not_be_minted(stand) {
        let details = json!([{"type": "remit:access", "locations": [GIT], "privileges": ["secret"]}]);
        let answer = stand.declare(json!({"purpose": "p", "owner": crate::support::OWNER, "authorization_details": details})).await.expect(StatusCode::CREATED);
        let body = json!({"credentials": [{"resource": GIT, "privilege": "secret"}]});
        let path = format!("/v1/tasks/{}/credentials", text(&answer, "task"));
        assert_eq!(stand.post(&path, &stand.evidence(), body).await.refused(403, "policy_denied")["denied"][0]["policies"], json!([]));
    }

    async fn the_token_endpoint_speaks_oauth(stand) {
        let (task, _) = stand.task_with_token().await;
        let unknown = "task_01jd0000000000000000000000";
        let table: &[Row<'_>] = &[
            (&[("grant_type", "")], 400, "invalid_request"),
            (&[("grant_type", "password")], 400, "unsupported_grant_type"),
            (&[("grant_type", "client_credentials")], 400, "invalid_request"),
            (&[("subject_token", "")], 400, "invalid_request"),
            (&[("subject_token", "garbage")], 400, "invalid_request"),
            (&[("subject_token_type", "")], 400, "invalid_request"),
            (&[("subject_token_type", "urn:ietf:params:oauth:token-type:access_token")], 400, "invalid_request"),
            (&[("actor_token", "x")], 400, "invalid_request"),
            (&[("actor_token_type", JWT)], 400, "invalid_request"),
            (&[("client_secret", "x")], 401, "invalid_client"),
            (&[("client_assertion", "x")], 401, "invalid_client"),
            (&[("resource", "")], 400, "invalid_target"),
            (&[("resource", "git")], 400, "invalid_target"),
            (&[("resource", "https://git.example.com#a")], 400, "invalid_target"),
            (&[("resource", NOWHERE)], 400, "invalid_target"),
            (&[("resource", REGISTRY)], 400, "invalid_target"),
            (&[("audience", GIT)], 400, "invalid_target"),
            (&[("scope", "")], 400, "invalid_scope"),
            (&[("scope", "read")], 400, "invalid_scope"),
            (&[("scope", &task)], 400, "invalid_scope"),
            (&[("scope", &format!("{task} read write"))], 400, "invalid_scope"),
            (&[("scope", &format!("{task} secret"))], 400, "invalid_scope"),
            (&[("scope", &format!("{task} *"))], 400, "invalid_scope"),
            (&[("scope", &format!("{unknown} read"))], 400, "invalid_grant"),
            (&[("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token")], 400, "invalid_request"),
            (&[("authorization_details", "[]")], 400, "invalid_authorization_details"),
            (&[("authorization_details", "{")], 400, "invalid_authorization_details"),
            (&[("authorization_details", r#"[{"type":"other"}]"#)], 400, "invalid_authorization_details"),
        ];
        for (over, status, error) in table {
            let answer = exchange(&stand, &task, over).await;
            assert_eq!(answer.status.as_u16(), *status, "{over:?}: {}", answer.text);
            answer.oauth_refused(*status, error);
        }
        // An unknown, a foreign and an ended task are one answer.
        let other = stand.other_instance();
        let foreign = exchange(&stand, &task, &[("subject_token", &other)]).await.oauth_refused(400, "invalid_grant");
        stand.revoke(&task).await.expect(StatusCode::OK);
        let ended = exchange(&stand, &task, &[]).await.oauth_refused(400, "invalid_grant");
        let missing = exchange(&stand, &task, &[("scope", &format!("{unknown} read"))]).await.oauth_refused(400, "invalid_grant");
        assert!(foreign["error_description"] == ended["error_description"] && ended["error_description"] == missing["error_description"]);
        // One audience a token; no parameter twice; no other content type; nothing in a header.
        stand.form("/oauth2/token", None, &[("resource", GIT), ("resource", REGISTRY)]).await.oauth_refused(400, "invalid_target");
        stand.form("/oauth2/token", None, &[("scope", "a"), ("scope", "b")]).await.oauth_refused(400, "invalid_request");
        stand.form("/oauth2/token", Some(&stand.evidence()), &[("grant_type", EXCHANGE)]).await.oauth_refused(401, "invalid_client");
        stand.post("/oauth2/token", RESPONDER, json!({})).await.oauth_refused(415, "invalid_request");
        stand.form("/oauth2/token", None, &[("grant_type", "client_credentials"), ("resource", GIT), ("scope", &format!("{task} read"))]).await.oauth_refused(401, "invalid_client");
    }

    /// On the socket the kernel is the client's authentication.
    async fn client_credentials_on_the_socket(stand) {
        let client = socket_client(&stand.broker.socket);
        let body = json!({"purpose": "p", "owner": "me", "authorization_details": [{"type": "remit:access", "locations": [GIT], "privileges": ["read"]}]});
        let declared = Answer::of(client.post("http://localhost/v1/tasks").json(&body).send().await.unwrap()).await.expect(StatusCode::CREATED);
        assert!(text(&declared, "workload").starts_with("spiffe://example.com/unix/"));
        assert_eq!(declared["kind"], "ai_agent");
        let scope = format!("{} read", text(&declared, "task"));
        let form = [("grant_type", "client_credentials"), ("resource", GIT), ("scope", &scope)];
        let minted = Answer::of(client.post("http://localhost/oauth2/token").form(&form).send().await.unwrap()).await.expect(StatusCode::OK);
        assert_eq!(stand.introspect(&text(&minted, "access_token")).await["active"], true);
        // An explicit Authorization beats the kernel.
        let shown = client.get(format!("http://localhost/v1/tasks/{}", text(&declared, "task"))).bearer_auth(stand.evidence());
        Answer::of(shown.send().await.unwrap()).await.refused(404, "not_found");
    }
}
