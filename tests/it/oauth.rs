//! A task is declared and its first credential minted in one OAuth call, so that an agent needs no client but the one it has.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    both,
    support::{Answer, GIT, NOWHERE, REGISTRY, Stand, VIEWER, claims, declaration, socket_client, text},
};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// The usual declaration as an `authorization_details` object, with these members laid over it; `null` removes one.
#[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
fn detail(over: Value) -> Value {
    let mut detail = declaration();
    detail["type"] = json!("remit:declaration");
    for (name, value) in over.as_object().unwrap() {
        if value.is_null() {
            detail.as_object_mut().unwrap().remove(name);
        } else {
            detail[name] = value.clone();
        }
    }
    detail
}

/// A token exchange with these details and parameters, under an `Idempotency-Key` where there is one.
async fn exchange(stand: &Stand, details: &Value, parameters: &[(&str, &str)], key: Option<&str>) -> Answer {
    let (evidence, details) = (stand.evidence(), details.to_string());
    let mut form = vec![("grant_type", EXCHANGE), ("subject_token", &evidence), ("subject_token_type", JWT)];
    form.push(("authorization_details", &details));
    form.extend(parameters);
    let mut request = stand.client.post(stand.url("/oauth2/token")).form(&form);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    Answer::of(request.send().await.unwrap()).await
}

/// The details, the other parameters, and the error.
type Row = (Value, Vec<(&'static str, &'static str)>, &'static str);

async fn tasks(stand: &Stand) -> usize {
    stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK)["tasks"].as_array().unwrap().len()
}

both! {
    async fn one_call_declares_and_mints(stand) {
        let answer = exchange(&stand, &json!([detail(json!({}))]), &[], None).await.expect(StatusCode::OK);
        assert_eq!((&answer["issued_token_type"], &answer["token_type"]), (&json!(ACCESS_TOKEN), &json!("Bearer")));
        assert_eq!(answer["scope"], "read");
        let (task, token) = (text(&answer, "task"), text(&answer, "access_token"));
        assert_eq!(claims(&token)["urn:remit:task"]["id"], json!(task));
        assert_eq!(stand.introspect(&token).await["active"], true);
        let shown = stand.get(&format!("/v1/tasks/{task}"), &stand.evidence()).await.expect(StatusCode::OK);
        assert_eq!((&shown["purpose"], &shown["sandbox"]), (&declaration()["purpose"], &json!("sb-7f3")));
        // The task is one like any other: more is minted for it, and a revoke ends it all.
        stand.mint(&task).await.expect(StatusCode::OK);
        assert_eq!(stand.revoke(&task).await.expect(StatusCode::OK)["credentials"], 2);
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    }

    /// Which credential, in each of the ways to say it.
    async fn the_credential_is_named_by_either(stand) {
        let bare = json!([detail(json!({"credentials": null}))]);
        let answer = exchange(&stand, &bare, &[("resource", GIT), ("scope", "write")], None).await.expect(StatusCode::OK);
        assert_eq!(answer["scope"], "write");
        let both = json!([detail(json!({}))]);
        exchange(&stand, &both, &[("resource", GIT), ("scope", "read"), ("requested_token_type", ACCESS_TOKEN)], None).await.expect(StatusCode::OK);
        let svid = exchange(&stand, &bare, &[("resource", GIT), ("scope", "read"), ("requested_token_type", JWT)], None).await.expect(StatusCode::OK);
        assert_eq!(svid["token_type"], "N_A");
        let svid = json!([detail(json!({"credentials": [{"resource": GIT, "privilege": "read", "type": "jwt", "ttl": 60}]}))]);
        let answer = exchange(&stand, &svid, &[], None).await.expect(StatusCode::OK);
        assert_eq!((&answer["token_type"], answer["expires_in"].as_i64()), (&json!("N_A"), Some(60)));
    }

    async fn the_socket_declares_and_mints_too(stand) {
        let details = json!([detail(json!({"owner": "me"}))]).to_string();
        let form = [("grant_type", "client_credentials"), ("authorization_details", &*details)];
        let answer = socket_client(&stand.broker.socket).post("http://localhost/oauth2/token").form(&form).send().await.unwrap();
        let token = text(&Answer::of(answer).await.expect(StatusCode::OK), "access_token");
        assert_eq!(claims(&token)["urn:remit:task"]["kind"], "ai_agent");
    }

    async fn what_is_refused_declares_nothing(stand) {
        let two = json!([{"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "write"}]);
        let authority = |location: &str, privilege: &str| json!([{"type": "remit:access", "locations": [location], "privileges": [privilege]}]);
        let wider = |credential: Value| json!([detail(json!({"credentials": [credential]}))]);
        let task = "task_01jd0000000000000000000000 read";
        let details = "invalid_authorization_details";
        let usual = || json!([detail(json!({}))]);
        let bare = || json!([detail(json!({"credentials": null}))]);
        let rows: Vec<Row> = vec![
            (json!([]), vec![], details),
            (json!({}), vec![], details),
            (json!([1]), vec![], details),
            (json!([detail(json!({})), detail(json!({}))]), vec![], details),
            (json!([detail(json!({"type": "remit:declare"}))]), vec![], details),
            (json!([detail(json!({"type": null}))]), vec![], details),
            (json!([detail(json!({"purpose": null}))]), vec![], details),
            (json!([detail(json!({"purpose": " "}))]), vec![], details),
            (json!([detail(json!({"tll": 60}))]), vec![], details),
            (json!([detail(json!({"ttl": 0}))]), vec![], details),
            (json!([detail(json!({"credentials": two}))]), vec![], details),
            (usual(), vec![("resource", REGISTRY)], details),
            (usual(), vec![("scope", "write")], details),
            (usual(), vec![("requested_token_type", JWT)], details),
            (bare(), vec![("scope", "read")], "invalid_target"),
            (bare(), vec![("resource", GIT)], "invalid_scope"),
            (bare(), vec![("resource", GIT), ("scope", task)], "invalid_scope"),
            (wider(json!({"resource": REGISTRY, "privilege": "read"})), vec![], "invalid_target"),
            (wider(json!({"resource": GIT, "privilege": "secret"})), vec![], "invalid_scope"),
            (json!([detail(json!({"authorization_details": authority(NOWHERE, "read")}))]), vec![], "invalid_target"),
            (json!([detail(json!({"environment": "production"}))]), vec![], "unauthorized_client"),
            (json!([detail(json!({"owner": "mallory@example.com"}))]), vec![], "unauthorized_client"),
            // `partial` is about the authority: a token endpoint without a token to answer with declares nothing.
            (json!([detail(json!({"partial": true, "credentials": [{"resource": REGISTRY, "privilege": "read"}]}))]), vec![], "invalid_target"),
        ];
        for (details, parameters, error) in rows {
            let answer = exchange(&stand, &details, &parameters, None).await;
            assert_eq!(answer.json()["error"], error, "{details} {parameters:?}: {}", answer.text);
            answer.oauth_refused(400, error);
        }
        // A member twice is never the first or the last of both.
        let twice = r#"[{"type":"remit:declaration","type":"remit:task"}]"#;
        let evidence = stand.evidence();
        let form = [("grant_type", EXCHANGE), ("subject_token", &evidence), ("subject_token_type", JWT), ("authorization_details", twice)];
        stand.form("/oauth2/token", None, &form).await.oauth_refused(400, details);
        assert_eq!(tasks(&stand).await, 0);
    }

    async fn a_retry_declares_once(stand) {
        let details = json!([detail(json!({}))]);
        let first = exchange(&stand, &details, &[], Some("k1")).await.expect(StatusCode::OK);
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let again = exchange(&stand, &details, &[], Some("k1")).await.expect(StatusCode::OK);
        assert_eq!(first["task"], again["task"]);
        let left = |answer: &Value| answer["expires_in"].as_i64().unwrap();
        assert!((1..left(&first)).contains(&left(&again)), "{} {}", left(&first), left(&again));
        let jti = |answer: &Value| claims(&text(answer, "access_token"))["jti"].clone();
        assert_eq!(jti(&first), jti(&again));
        assert_eq!(tasks(&stand).await, 1);
        exchange(&stand, &json!([detail(json!({"ttl": 60}))]), &[], Some("k1")).await.oauth_refused(400, "invalid_request");
        exchange(&stand, &details, &[], Some("k2")).await.expect(StatusCode::OK);
        assert_eq!(tasks(&stand).await, 2);
    }
}
