//! Owners: who may be named as one, and what those see and do who act for one.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    support::{Answer, GIT, OWNER, Stand, Store, declaration, people, socket_client, text, wait_for},
};

const OTHER: &str = "other@example.com";

fn of(owner: &str) -> Value {
    let mut said = declaration();
    said["owner"] = owner.into();
    said
}

both! {
    crate::support::people();

    async fn an_owner_is_one_that_the_configuration_gives_the_workload(stand) {
        let job = |repository: &str| stand.issuer.evidence(&stand.broker.url, json!({ "repository": repository }));
        for (repository, owner) in
            [("acme/payments", OWNER), ("acme/payments", OTHER), ("acme/third", OWNER), ("acme/a/b", OWNER)]
        {
            let declared = stand.post("/v1/tasks", &job(repository), of(owner)).await.expect(StatusCode::CREATED);
            assert_eq!(declared["owner"], json!(owner), "{repository}");
        }
        for (repository, owner) in [
            ("acme/third", OTHER),
            ("acme/payments/x", OTHER),
            ("acme-evil/payments", OWNER),
            ("evil/acme/payments", OWNER),
        ] {
            let refused = stand.post("/v1/tasks", &job(repository), of(owner)).await.refused(403, "policy_denied");
            let detail = text(&refused, "detail");
            assert_eq!(detail, "`owner` is not the owner of this workload by the broker's configuration", "{repository}");
        }
        // The attestor's own list still counts.
        let refused = stand.post("/v1/tasks", &job("acme/payments"), of("nobody@example.com")).await;
        assert!(text(&refused.refused(403, "policy_denied"), "detail").contains("attestor"));
        // Where an attestor lists none, the owners decide alone.
        let client = socket_client(&stand.broker.socket);
        for (owner, words) in [
            ("unknown@example.com", "none of the broker's configured owners"),
            ("Team-Payments@example.com", "none of the broker's configured owners"),
            (" team-payments@example.com", "none of the broker's configured owners"),
            (OWNER, "not the owner of this workload"),
        ] {
            let answer = client.post("http://localhost/v1/tasks").json(&of(owner)).send().await.unwrap();
            let refused = Answer::of(answer).await.refused(403, "policy_denied");
            assert!(text(&refused, "detail").contains(words), "{owner}: {refused}");
        }
        let denied = stand.audit().into_iter().filter(|line| line["event"] == "declaration_denied").collect::<Vec<_>>();
        assert_eq!(denied.len(), 9);
        assert!(denied.iter().any(|line| text(line, "why").contains("none of the broker's configured owners")));
        // OAuth says it in its own words.
        let mut details = of(OTHER);
        details["type"] = "remit:declaration".into();
        details.as_object_mut().unwrap().remove("credentials");
        let (details, evidence) = (json!([details]).to_string(), job("acme/third"));
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", &*evidence),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("resource", GIT),
            ("scope", "read"),
            ("authorization_details", &details),
        ];
        stand.form("/oauth2/token", None, &form).await.oauth_refused(400, "unauthorized_client");
    }

    async fn whoever_acts_for_an_owner_has_that_owners_tasks(stand) {
        let task_of = async |owner: &str| {
            let declared = stand.declare(of(owner)).await.expect(StatusCode::CREATED);
            (text(&declared, "task"), text(&declared["credentials"][0], "access_token"))
        };
        let (others, others_token) = task_of(OTHER).await;
        let (theirs, token) = task_of(OWNER).await;
        let (newest, _) = task_of(OTHER).await;
        let ann = stand.person(&["payments", "all-employees"]);

        // Nothing of another's, however it is asked for; and nothing that tells that it is there.
        let unseen = "task_01jd0000000000000000000000";
        for id in [&*others, &newest, unseen] {
            stand.get(&format!("/v1/tasks/{id}"), &ann).await.refused(404, "not_found");
            let watch = stand.client.get(stand.url(&format!("/v1/tasks/{id}"))).bearer_auth(&ann);
            Answer::of(watch.header("accept", "text/event-stream").send().await.unwrap()).await.refused(404, "not_found");
            let revoke = stand.post(&format!("/v1/tasks/{id}/revoke"), &ann, json!({"reason": "r"})).await;
            revoke.refused(404, "not_found");
        }
        let listed = async |query: &str, bearer: &str| {
            let page = stand.get(&format!("/v1/tasks{query}"), bearer).await.expect(StatusCode::OK);
            let tasks: Vec<_> = page["tasks"].as_array().unwrap().iter().map(|task| text(task, "task")).collect();
            (tasks, page["next_cursor"].clone())
        };
        assert_eq!(listed("", &ann).await, (vec![theirs.clone()], Value::Null));
        assert_eq!(listed(&format!("?owner={OTHER}"), &ann).await, (vec![], Value::Null));
        assert_eq!(listed(&format!("?owner={OWNER}"), &ann).await.0, vec![theirs.clone()]);
        let (first, cursor) = listed("?limit=1", &ann).await;
        assert_eq!(first, vec![theirs.clone()]);
        for other in [&others, &newest] {
            assert_ne!(cursor.as_str(), Some(&**other));
        }
        // Several groups, several owners.
        let both = stand.person(&["payments", "others"]);
        assert_eq!(listed("", &both).await.0, [newest.clone(), theirs.clone(), others.clone()]);
        // One who is a viewer too sees all, and revokes their own alone.
        let viewer = stand.person(&["payments", "sec-viewers"]);
        assert_eq!(listed("", &viewer).await.0.len(), 3);
        let revoke = stand.post(&format!("/v1/tasks/{others}/revoke"), &viewer, json!({"reason": "r"})).await;
        revoke.refused(403, "policy_denied");
        let revoke = stand.post(&format!("/v1/tasks/{unseen}/revoke"), &viewer, json!({"reason": "r"})).await;
        revoke.refused(403, "policy_denied");

        // What only operators, services and workloads do.
        stand.form("/oauth2/introspect", Some(&ann), &[("token", &token)]).await.oauth_refused(401, "invalid_client");
        for (method, path, body) in [
            (Method::POST, "/v1/tasks".to_owned(), Some(declaration())),
            (Method::POST, format!("/v1/tasks/{theirs}/complete"), Some(json!({}))),
            (Method::POST, format!("/v1/tasks/{theirs}/renew"), Some(json!({"ttl": 60}))),
            (Method::GET, "/v1/keys".to_owned(), None),
            (Method::POST, "/v1/keys/rotate".to_owned(), Some(json!({"reason": "r"}))),
        ] {
            stand.call(method, &path, Some(&ann), body).await.refused(403, "policy_denied");
        }
        for token in [&token, &others_token] {
            assert_eq!(stand.introspect(token).await["active"], true);
        }

        let shown = stand.get(&format!("/v1/tasks/{theirs}"), &ann).await.expect(StatusCode::OK);
        assert_eq!(shown["owner"], OWNER);
        let path = format!("/v1/tasks/{theirs}/revoke");
        stand.post(&path, &ann, json!({})).await.refused(400, "invalid_request");
        let revoked = stand.post(&path, &ann, json!({"reason": "ours, and not wanted"})).await.expect(StatusCode::OK);
        assert_eq!((&revoked["state"], &revoked["known"]), (&json!("revoked"), &json!(true)));
        assert_eq!(stand.post(&path, &viewer, json!({"reason": "again"})).await.expect(StatusCode::OK), revoked);
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        assert_eq!(stand.introspect(&others_token).await["active"], true);
        // A responder acts as one, whoever the owner is.
        let responder = stand.person(&["payments", "others", "sec-responders"]);
        stand.post(&format!("/v1/tasks/{others}/revoke"), &responder, json!({"reason": "r"})).await.expect(StatusCode::OK);

        let audit = stand.audit();
        let actor = json!({"as": "owner", "name": "https://sso.example.com#ann@example.com", "owner": OWNER});
        let acts: Vec<_> = audit.iter().filter(|line| line["actor"] == actor && line["task"] == json!(theirs)).collect();
        let events: Vec<_> = acts.iter().map(|line| text(line, "event")).collect();
        assert_eq!(events, ["looked", "end_requested", "task_ended", "end_requested", "task_ended"]);
        assert_eq!(acts[1]["reason"], "ours, and not wanted");
        let by_responder = audit.iter().rfind(|line| line["event"] == "task_ended").unwrap();
        assert_eq!(by_responder["actor"]["as"], "operator");
        assert!(!audit.iter().any(|line| line["actor"] == actor && line["task"] == json!(others)));
    }
}

/// A task whose workload was given to somebody else is not renewed for the one who had it, who does not see it any more once they
/// are nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_follow_the_configuration() {
    let stand = Stand::with(Store::Embedded, &people()).await;
    let (task, _) = stand.task_with_token().await;
    let path = format!("/v1/tasks/{task}");
    let renew = async || stand.post(&format!("{path}/renew"), &stand.evidence(), json!({"ttl": 600})).await;
    renew().await.expect(StatusCode::OK);
    let ann = stand.person(&["payments"]);
    stand.change("workloads = [\"/ci/acme/*\"]", "workloads = [\"/ci/other/*\"]");
    wait_for("the new owners", || async { renew().await.status == StatusCode::FORBIDDEN }).await;
    stand.get(&path, &ann).await.expect(StatusCode::OK);
    stand.change("groups = [\"payments\"]", "groups = [\"payments-2\"]");
    wait_for("the new group", || async { stand.get(&path, &ann).await.status == StatusCode::FORBIDDEN }).await;
    stand.get(&path, &stand.person(&["payments-2"])).await.expect(StatusCode::OK);
}
