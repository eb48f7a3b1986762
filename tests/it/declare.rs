//! Declaring a task.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    support::{GIT, NOWHERE, OWNER, REGISTRY, RESPONDER, claims, declaration, text, time},
};

/// A declaration with some members laid over it; `null` removes one.
#[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
fn with(over: Value) -> Value {
    let mut declaration = declaration();
    for (name, value) in over.as_object().unwrap() {
        if value.is_null() {
            declaration.as_object_mut().unwrap().remove(name);
        } else {
            declaration[name] = value.clone();
        }
    }
    declaration
}

both! {
    /// The answer is the one that the design promises, member by member.
    async fn a_task_is_declared_with_its_first_credential(stand) {
        let answer = stand.declare(declaration()).await.expect(StatusCode::CREATED);
        let task = text(&answer, "task");
        assert!(task.starts_with("task_") && task.len() == 31, "{task}");
        assert_eq!(answer["state"], "active");
        assert_eq!(answer["workload"], "spiffe://example.com/ci/acme/payments");
        assert_eq!(answer["instance"], "1.1");
        assert_eq!(answer["owner"], OWNER);
        assert_eq!(answer["purpose"], "Fix the flaky test in payments");
        assert_eq!(answer["authorization_details"], declaration()["authorization_details"]);
        assert_eq!(answer["denied"], json!([]));
        assert!(text(&answer, "authority_hash").starts_with("sha-256:"));
        assert_eq!(answer["generation"], 1);
        let policies = answer["policies"].as_array().unwrap();
        assert!(policies.contains(&json!("test.read")) && policies.contains(&json!("test.write")), "{policies:?}");
        let (created, expires) = (time(&answer, "created_at"), time(&answer, "expires_at"));
        assert!((599..=600).contains(&(expires - created).num_seconds()));

        let credential = &answer["credentials"][0];
        assert_eq!((credential["resource"].as_str(), credential["privilege"].as_str()), (Some(GIT), Some("read")));
        let claims = claims(&text(credential, "access_token"));
        assert_eq!(claims["jti"], credential["lease"]);
        assert_eq!(time(credential, "expires_at").timestamp(), claims["exp"].as_i64().unwrap());
        assert!(time(credential, "renew_at") < time(credential, "expires_at"));

        let shown = stand.get(&format!("/v1/tasks/{task}"), &stand.evidence()).await.expect(StatusCode::OK);
        let mut expected = answer.clone();
        expected.as_object_mut().unwrap().remove("credentials");
        assert_eq!(shown, expected);
    }

    /// All or nothing: what was refused is listed with the policies that refused it.
    async fn without_partial_it_is_all_or_403(stand) {
        let details = json!([{"type": "remit:access", "locations": [GIT, REGISTRY], "privileges": ["read", "write"]}]);
        let body = stand.declare(with(json!({"authorization_details": details, "credentials": null}))).await.refused(403, "policy_denied");
        assert_eq!(body["denied"], json!([{"type": "remit:access", "locations": [REGISTRY], "privileges": ["write"], "policies": []}]));
        let body = stand.declare(with(json!({"environment": "production"}))).await.refused(403, "policy_denied");
        assert_eq!(body["denied"].as_array().unwrap().len(), 2);
        assert_eq!(body["denied"][0]["policies"], json!(["test.no-production"]));
        let tasks = stand.get("/v1/tasks", RESPONDER).await.expect(StatusCode::OK);
        assert_eq!(tasks, json!({"tasks": [], "next_cursor": null}));
    }

    async fn with_partial_it_goes_on_with_what_is_granted(stand) {
        let details = json!([{"type": "remit:access", "locations": [GIT, REGISTRY, NOWHERE], "privileges": ["read", "write"]}]);
        let credentials = json!([{"resource": REGISTRY, "privilege": "write"}, {"resource": REGISTRY, "privilege": "read"}]);
        let answer = stand.declare(with(json!({"authorization_details": details, "partial": true, "credentials": credentials}))).await;
        let answer = answer.expect(StatusCode::CREATED);
        assert_eq!(answer["authorization_details"], json!([
            {"type": "remit:access", "locations": [GIT], "privileges": ["read", "write"]},
            {"type": "remit:access", "locations": [REGISTRY], "privileges": ["read"]}]));
        // What was refused alike stands together.
        assert_eq!(answer["denied"], json!([
            {"type": "remit:access", "locations": [NOWHERE], "privileges": ["read"], "policies": []},
            {"type": "remit:access", "locations": [NOWHERE, REGISTRY], "privileges": ["write"], "policies": []}]));
        assert_eq!(answer["credentials"].as_array().unwrap().len(), 1);
        let nothing = json!([{"type": "remit:access", "locations": [NOWHERE], "privileges": ["read"]}]);
        stand.declare(with(json!({"authorization_details": nothing, "partial": true, "credentials": null}))).await.refused(403, "policy_denied");
    }

    /// A declaration with credentials is one transaction: one refused credential refuses the task.
    async fn a_refused_credential_refuses_the_task(stand) {
        let details = json!([{"type": "remit:access", "locations": [GIT], "privileges": ["read", "secret"]}]);
        let credentials = json!([{"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "secret"}]);
        let body = stand.declare(with(json!({"authorization_details": details, "credentials": credentials}))).await.refused(403, "policy_denied");
        assert_eq!(body["denied"][0]["privileges"], json!(["secret"]));
        let tasks = stand.get("/v1/tasks", RESPONDER).await.expect(StatusCode::OK);
        assert_eq!(tasks["tasks"], json!([]));
    }

    /// A retry gets the same task and the same leases; another body does not.
    async fn a_retry_under_the_same_key_is_the_same_task(stand) {
        let declare = |evidence: String, key: &'static str, body: Value| {
            let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(evidence).header("Idempotency-Key", key).json(&body);
            async move { crate::support::Answer::of(request.send().await.unwrap()).await }
        };
        let first = declare(stand.evidence(), "k1", declaration()).await.expect(StatusCode::CREATED);
        let again = declare(stand.evidence(), "k1", declaration()).await.expect(StatusCode::CREATED);
        assert_eq!(first["task"], again["task"]);
        let (one, two) = (claims(&text(&first["credentials"][0], "access_token")), claims(&text(&again["credentials"][0], "access_token")));
        assert_eq!(one, two);
        declare(stand.evidence(), "k1", with(json!({"ttl": 60}))).await.refused(422, "idempotency_key_reused");
        // The key is the instance's own: another one's request under the same key is another task.
        let other = declare(stand.other_instance(), "k1", declaration()).await.expect(StatusCode::CREATED);
        assert_ne!(first["task"], other["task"]);
        // Sixteen at once are one task.
        let at_once = futures_util::future::join_all((0..16).map(|_| declare(stand.evidence(), "k2", declaration()))).await;
        let tasks: std::collections::BTreeSet<_> = at_once.into_iter().map(|a| text(&a.expect(StatusCode::CREATED), "task")).collect();
        assert_eq!(tasks.len(), 1);
        // A retry does not bring back what has ended.
        stand.revoke(&text(&first, "task")).await.expect(StatusCode::OK);
        declare(stand.evidence(), "k1", declaration()).await.refused(409, "task_not_active");
    }

    /// A late retry gets its task, without the credentials that have run out meanwhile.
    async fn a_late_retry_gets_the_task(stand) {
        let details = declaration()["authorization_details"].clone();
        let body = json!({"purpose": "p", "owner": OWNER, "authorization_details": details,
            "credentials": [{"resource": GIT, "privilege": "read", "ttl": 1}, {"resource": GIT, "privilege": "read", "ttl": 60}]});
        let declare = async || {
            let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).header("Idempotency-Key", "late").json(&body);
            crate::support::Answer::of(request.send().await.unwrap()).await.expect(StatusCode::CREATED)
        };
        let first = declare().await;
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        let again = declare().await;
        assert_eq!(again["task"], first["task"]);
        let leases: Vec<_> = again["credentials"].as_array().unwrap().iter().map(|c| c["lease"].clone()).collect();
        assert_eq!(leases, [first["credentials"][1]["lease"].clone()]);
    }

    /// Refusals are told once, however many locations they are about, and a long one is an answer like any other.
    async fn a_large_refusal_is_a_refusal(stand) {
        let locations: Vec<_> = (0..40).map(|n| format!("https://n{n}.example.com")).collect();
        let actions: Vec<_> = (0..32).map(|n| format!("{n:0>200}")).collect();
        let detail = |locations: &[String]| json!({"type": "remit:access", "locations": locations, "privileges": ["read", "write", "secret"], "actions": actions});
        let body = with(json!({"authorization_details": [detail(&locations[..32])], "credentials": null}));
        let refused = stand.declare(body).await.refused(403, "policy_denied");
        assert_eq!(refused["denied"].as_array().unwrap().len(), 3);
        // Everything it could be in the log: this denial is on record.
        assert!(stand.audit().iter().any(|line| line["event"] == "declaration_denied" && line["request"] == refused["request_id"]));
    }

    async fn another_instance_cannot_see_or_use_the_task(stand) {
        let (task, _) = stand.task_with_token().await;
        let other = stand.other_instance();
        stand.get(&format!("/v1/tasks/{task}"), &other).await.refused(404, "not_found");
        let credentials = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
        stand.post(&format!("/v1/tasks/{task}/credentials"), &other, credentials).await.refused(404, "not_found");
        stand.post(&format!("/v1/tasks/{task}/complete"), &other, json!({})).await.refused(404, "not_found");
        stand.post(&format!("/v1/tasks/{task}/revoke"), &other, json!({"reason": "mine now"})).await.refused(404, "not_found");
        assert_eq!(stand.get("/v1/tasks", &other).await.expect(StatusCode::OK)["tasks"], json!([]));
        stand.mint(&task).await.expect(StatusCode::OK);
    }

    async fn an_owner_who_is_not_allowed_is_refused(stand) {
        let body = stand.declare(with(json!({"owner": "ceo@example.com"}))).await.refused(403, "policy_denied");
        assert!(text(&body, "detail").contains("owner"));
        stand.declare(with(json!({"owner": "other@example.com"}))).await.expect(StatusCode::CREATED);
    }

    async fn a_list_has_pages(stand) {
        let mut all = Vec::new();
        for _ in 0..5 {
            all.push(stand.task_with_token().await.0);
        }
        all.sort();
        all.reverse();
        let (mut seen, mut query) = (Vec::new(), String::from("?limit=2"));
        loop {
            let page = stand.get(&format!("/v1/tasks{query}"), RESPONDER).await.expect(StatusCode::OK);
            seen.extend(page["tasks"].as_array().unwrap().iter().map(|task| text(task, "task")));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            query = format!("?limit=2&cursor={cursor}");
        }
        assert_eq!(seen, all);
        // A workload sees its own, and no page tells it of another's.
        let own = text(&stand.post("/v1/tasks", &stand.other_instance(), declaration()).await.expect(StatusCode::CREATED), "task");
        all.insert(0, stand.task_with_token().await.0);
        let (mut seen, mut query) = (Vec::new(), String::from("?limit=1"));
        loop {
            let page = stand.get(&format!("/v1/tasks{query}"), &stand.other_instance()).await.expect(StatusCode::OK);
            seen.extend(page["tasks"].as_array().unwrap().iter().map(|task| text(task, "task")));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            assert!(!all.iter().any(|other| other == cursor), "{cursor} is another's task");
            query = format!("?limit=1&cursor={cursor}");
        }
        assert_eq!(seen, [own]);
        // Filters admit what fits them all.
        stand.revoke(&all[0]).await.expect(StatusCode::OK);
        let listed = async |query: &str| {
            let page = stand.get(&format!("/v1/tasks?{query}"), RESPONDER).await.expect(StatusCode::OK);
            page["tasks"].as_array().unwrap().len()
        };
        assert_eq!((listed("state=revoked").await, listed("state=active").await, listed("state=completed").await), (1, 6, 0));
        assert_eq!((listed(&format!("owner={OWNER}")).await, listed("owner=nobody").await), (7, 0));
        assert_eq!((listed("sandbox=sb-7f3&state=revoked").await, listed("sandbox=other").await), (1, 0));
        assert_eq!(listed("workload=spiffe://example.com/ci/acme/payments").await, 7);
        for bad in ["?state=dead", "?limit=0", "?limit=201", "?limit=x", "?cursor=x", "?other=1"] {
            stand.get(&format!("/v1/tasks{bad}"), RESPONDER).await.refused(400, "invalid_request");
        }
    }

    /// Bad input gets a clear, documented answer, and nothing is declared.
    async fn bad_declarations(stand) {
        let details = |over: Value| {
            let mut detail = json!({"type": "remit:access", "locations": [GIT], "privileges": ["read"]});
            for (name, value) in over.as_object().unwrap() {
                detail[name] = value.clone();
            }
            with(json!({"authorization_details": [detail], "credentials": null}))
        };
        let bad = [
            with(json!({"purpose": null})), with(json!({"owner": null})), with(json!({"authorization_details": null})),
            with(json!({"purpose": ""})), with(json!({"purpose": "a\nb"})), with(json!({"purpose": "x".repeat(1025)})),
            with(json!({"ttl": 0})), with(json!({"ttl": -1})), with(json!({"ttl": 1.5})), with(json!({"ttl": "15m"})),
            with(json!({"ttl": 1e18})), with(json!({"ttl": 601})), with(json!({"ttl": 4_294_967_295_u64})),
            with(json!({"authorization_details": []})), with(json!({"surprise": true})), with(json!({"task": "task_01jd0000000000000000000000"})),
            with(json!({"credentials": [{"resource": GIT, "privilege": "admin"}]})),
            with(json!({"credentials": [{"resource": GIT, "privilege": "read", "ttl": 0}]})),
            with(json!({"credentials": vec![json!({"resource": GIT, "privilege": "read"}); 33]})),
            details(json!({"type": "other"})), details(json!({"locations": []})), details(json!({"privileges": []})),
            details(json!({"privileges": ["READ"]})), details(json!({"privileges": ["*"]})), details(json!({"privileges": ["read", "read"]})),
            details(json!({"locations": ["*"]})), details(json!({"locations": ["git.example.com"]})), details(json!({"locations": ["https://u:p@git.example.com"]})),
            details(json!({"locations": ["https://git.example.com#x"]})), details(json!({"locations": ["HTTPS://git.example.com"]})),
            details(json!({"actions": []})), details(json!({"actions": "clone"})), details(json!({"identifier": ""})), details(json!({"constraints": {}})),
            json!([]), json!("x"), json!(null),
        ];
        for declaration in bad {
            let body = stand.declare(declaration.clone()).await;
            assert_eq!(body.status, StatusCode::BAD_REQUEST, "{declaration} was answered {}", body.text);
            body.refused(400, "invalid_request");
        }
        let raw = async |kind: &str, body: Vec<u8>| {
            let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).header("content-type", kind).body(body);
            crate::support::Answer::of(request.send().await.unwrap()).await
        };
        raw("application/json", br#"{"purpose":"a","purpose":"b"}"#.to_vec()).await.refused(400, "invalid_request");
        raw("application/json", b"{} trailing".to_vec()).await.refused(400, "invalid_request");
        raw("application/json", b"\xff\xfe".to_vec()).await.refused(400, "invalid_request");
        raw("application/json", "[".repeat(10_000).into_bytes()).await.refused(400, "invalid_request");
        raw("text/plain", b"{}".to_vec()).await.refused(415, "invalid_request");
        raw("application/json", vec![b' '; 70_000]).await.refused(413, "invalid_request");
        stand.call(Method::DELETE, "/v1/tasks", None, None).await.refused(405, "invalid_request");
        stand.get("/v1/nothing", RESPONDER).await.refused(404, "not_found");
        assert_eq!(stand.get("/v1/tasks", RESPONDER).await.expect(StatusCode::OK)["tasks"], json!([]));
    }
}
