//! `GET /v1/reports/unused`: what was granted and never minted, and what was minted and never seen to be used.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::process::Command;

use crate::{
    both,
    support::{
        GIT, GIT_TOKEN, KEYTOOL_CSR, NOWHERE, OWNER, REGISTRY_TOKEN, Server, Stand, Store, VIEWER, claims, declaration,
        now, people, text, time,
    },
};

const WORKLOAD: &str = "spiffe://example.com/ci/acme/payments";
/// A service that checks lists by itself.
const OFFLINE: &str = r#"
[[service]]
name = "offline"
audiences = ["https://nowhere.example.com"]
binding = "none"
revocation = "status_list"
"#;

async fn report(stand: &Stand, query: &[(&str, &str)]) -> Value {
    stand.get(&path(query), VIEWER).await.expect(StatusCode::OK)
}

fn path(query: &[(&str, &str)]) -> String {
    let url = reqwest::Url::parse_with_params("http://localhost/v1/reports/unused", query).unwrap();
    format!("/v1/reports/unused?{}", url.query().unwrap_or_default())
}

fn tasks(report: &Value) -> Vec<String> {
    report["tasks"].as_array().expect("tasks").iter().map(|one| text(one, "task")).collect()
}

/// What is said of the one task.
#[track_caller]
fn the_one(report: &Value) -> Value {
    let found = report["tasks"].as_array().expect("tasks");
    assert_eq!(found.len(), 1, "{report}");
    found[0].clone()
}

/// The report once the one task in it has so many uses that were seen.
async fn once_seen(stand: &Stand, seen: u64) -> Value {
    for _ in 0..100 {
        let answer = report(stand, &[]).await;
        if answer["tasks"][0]["seen"] == seen {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("never {seen}: {}", report(stand, &[]).await);
}

both! {
    super::OFFLINE;
    async fn granted_minted_and_seen(stand) {
        let (task, token) = stand.task_with_token().await;
        let first = the_one(&report(&stand, &[("owner", OWNER)]).await);
        assert_eq!((&first["task"], &first["owner"], &first["workload"], &first["state"]), (&json!(task), &json!(OWNER), &json!(WORKLOAD), &json!("active")));
        assert_eq!(first["never_minted"], json!([{"location": GIT, "privilege": "write"}]));
        let jti = claims(&token)["jti"].clone();
        assert_eq!(first["never_seen"], json!([{"lease": jti, "resource": GIT, "privilege": "read", "cannot_be_seen": false}]));
        assert_eq!((&first["seen"], &first["complete"]), (&json!(0), &json!(true)));
        // A service asks: it was used.
        stand.introspect(&token).await;
        let seen = the_one(&once_seen(&stand, 1).await);
        assert_eq!((&seen["never_seen"], &seen["never_minted"]), (&json!([]), &first["never_minted"]));
        // Another reports.
        let body = json!({"credentials": [{"resource": GIT, "privilege": "write"}]});
        let minted = stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), body).await.expect(StatusCode::OK);
        let lease = text(&minted["credentials"][0], "lease");
        assert_eq!(the_one(&report(&stand, &[]).await)["never_minted"], json!([]));
        let observed = json!({"lease": lease, "reports": [{"kind": "tool_call", "label": "push", "digest": remit::task::digest(b""), "size": 0, "sequence": 1}]});
        stand.post(&format!("/v1/tasks/{task}/reports"), GIT_TOKEN, observed).await.expect(StatusCode::OK);
        // All was used: it is looked at, and not in the report.
        let mut answer = Value::Null;
        for _ in 0..100 {
            answer = report(&stand, &[("workload", WORKLOAD)]).await;
            if tasks(&answer).is_empty() { break; }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!((tasks(&answer), &answer["looked_at"]), (vec![], &json!(1)));
        // What a service that never asks was shown cannot be seen, and neither can a certificate.
        let csr = stand.post(&format!("/v1/tasks/{task}/certificate"), &stand.evidence(), json!({"csr": KEYTOOL_CSR})).await.expect(StatusCode::OK);
        let unseen = the_one(&report(&stand, &[]).await);
        assert_eq!(unseen["never_seen"], json!([{"lease": csr["lease"], "resource": null, "privilege": null, "cannot_be_seen": true}]));
        let mut offline = declaration();
        offline["authorization_details"] = json!([{"type": "remit:access", "locations": [NOWHERE], "privileges": ["read"]}]);
        offline["credentials"] = json!([{"resource": NOWHERE, "privilege": "read"}]);
        let other = text(&stand.declare(offline).await.expect(StatusCode::CREATED), "task");
        let answer = report(&stand, &[]).await;
        assert_eq!(tasks(&answer), [other, task], "newest first");
        let never_seen = &answer["tasks"][0]["never_seen"][0];
        assert_eq!((&never_seen["resource"], &never_seen["cannot_be_seen"]), (&json!(NOWHERE), &json!(true)));
    }

    async fn which_tasks(stand) {
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.insert(0, stand.task_with_token().await.0);
        }
        let all = report(&stand, &[]).await;
        assert_eq!(tasks(&all), ids);
        // Whatever was declared within a day is there.
        let since = time(&all, "since");
        let ago = now() - since.timestamp();
        assert!((86_399..86_400 + 300).contains(&ago), "{ago}");
        let (mut seen, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut query = vec![("limit", "2"), ("owner", OWNER)];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page = report(&stand, &query).await;
            seen.extend(tasks(&page));
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() { break; }
        }
        assert_eq!(seen, ids);
        for (query, expected) in [
            (vec![("owner", "other@example.com")], 0), (vec![("workload", "spiffe://example.com/nobody")], 0),
            (vec![("since", "2036-01-01T00:00:00Z")], 0), (vec![("until", "2016-01-01T00:00:00Z")], 0),
            (vec![("since", "2016-01-01T00:00:00Z"), ("until", "2036-01-01T00:00:00Z"), ("workload", WORKLOAD), ("owner", OWNER)], 5),
        ] {
            assert_eq!(tasks(&report(&stand, &query).await).len(), expected, "{query:?}");
        }
        for query in [
            vec![("limit", "0")], vec![("limit", "201")], vec![("cursor", "task_1")], vec![("cursor", "")], vec![("since", "now")],
            vec![("owner", "a"), ("owner", "b")], vec![("task", "x")],
        ] {
            stand.get(&path(&query), VIEWER).await.refused(400, "invalid_request");
        }
        for bearer in [stand.evidence(), GIT_TOKEN.to_owned(), REGISTRY_TOKEN.to_owned()] {
            stand.get(&path(&[]), &bearer).await.refused(403, "policy_denied");
        }
        stand.call(Method::GET, &path(&[]), None, None).await.refused(401, "evidence_invalid");
        assert!(stand.whole_audit().iter().any(|line| line["at"] == "unused"));
    }

    /// A restart loses nothing; where something is missing, what is listed may have been used, and it says so.
    async fn what_is_missing_is_said(stand) {
        let mut stand = stand;
        let (task, _) = stand.task_with_token().await;
        stand.restart_broker().await;
        stand.mint(&task).await.expect(StatusCode::OK);
        assert_eq!(the_one(&report(&stand, &[]).await)["complete"], true, "a restart leaves nothing out");
        // Somebody with access to the store takes the first credential away.
        let Some(redis) = &stand.redis else { return };
        let timeline = format!("remit:{{{task}}}:timeline");
        let second = redis.cli(&["LINDEX", &timeline, "1"]).await;
        assert_eq!(redis.cli(&["LREM", &timeline, "1", second.trim_end()]).await.trim(), "1");
        assert_eq!(the_one(&report(&stand, &[]).await)["complete"], false);
    }
}

/// What was left behind when the generation went up is not there any more, and the report says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_left_behind_is_said() {
    let mut stand = Stand::new(Store::Embedded).await;
    stand.task_with_token().await;
    let config = stand.broker.config.clone();
    stand.broker.stop().await;
    let before = chrono::DateTime::from_timestamp(now(), 0).unwrap();
    let mut recover = Command::new(env!("CARGO_BIN_EXE_remit"));
    let done = recover.args(["recover", "--reason", "restored", "--config"]).arg(&config).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    stand.broker = Server::start(&config).await;
    let (task, _) = stand.task_with_token().await;
    let answer = report(&stand, &[]).await;
    assert_eq!(tasks(&answer), [task], "of this generation alone");
    let since = time(&answer, "since");
    let created = time(&answer["tasks"][0], "created_at");
    assert!(before <= since && since <= created, "{before} {since} {created}");
}

/// Whoever acts for an owner gets that owner's tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_gets_their_own() {
    let stand = Stand::with(Store::Embedded, &people()).await;
    let (own, _) = stand.task_with_token().await;
    let mut words = declaration();
    words["owner"] = "other@example.com".into();
    let others = text(&stand.declare(words).await.expect(StatusCode::CREATED), "task");
    for (groups, expected) in [("payments", vec![own.clone()]), ("others", vec![others.clone()])] {
        let bearer = stand.person(&[groups]);
        for query in [vec![], vec![("workload", WORKLOAD)]] {
            let answer = stand.get(&path(&query), &bearer).await.expect(StatusCode::OK);
            assert_eq!((tasks(&answer), &answer["looked_at"]), (expected.clone(), &json!(1)), "{groups}");
        }
    }
    let answer =
        stand.get(&path(&[("owner", "other@example.com")]), &stand.person(&["payments"])).await.expect(StatusCode::OK);
    assert_eq!((tasks(&answer).len(), &answer["looked_at"]), (0, &json!(0)));
    stand.get(&path(&[]), &stand.person(&["all-employees"])).await.refused(403, "policy_denied");
}

/// A use that another broker saw was seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_broker_saw_was_seen() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (_, token) = stand.task_with_token().await;
    assert_eq!(the_one(&report(&stand, &[]).await)["never_seen"].as_array().unwrap().len(), 1);
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await["active"], true);
    assert_eq!(the_one(&once_seen(&stand, 1).await)["never_seen"], json!([]));
}
