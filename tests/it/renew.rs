//! A later deadline for a task that is not done yet, and the end of one that nobody renews.

use chrono::TimeDelta;
use remit::clock::{Clock as _, SystemClock, Time};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

use crate::{
    both,
    followers::entries,
    support::{
        Answer, GIT, OWNER, RESPONDER, Stand, Store, VIEWER, claims, declaration, text, time, wait_for, with_policies,
    },
};

fn to_seconds(time: Time) -> f64 {
    time.timestamp().to_string().parse().unwrap()
}

/// A task that policy lets live for three seconds without a renewal, and for seven in all.
async fn heartbeat(stand: &Stand) -> Value {
    let mut declaration = declaration();
    declaration["purpose"] = json!("heartbeat");
    stand.declare(declaration).await.expect(StatusCode::CREATED)
}

/// A task of a minute, so that there is something to move.
fn minute() -> Value {
    let mut declaration = declaration();
    declaration["ttl"] = json!(60);
    declaration
}

async fn renew(stand: &Stand, task: &str, body: Value) -> Answer {
    stand.post(&format!("/v1/tasks/{task}/renew"), &stand.evidence(), body).await
}

both! {
    async fn a_renewal_moves_the_deadline(stand) {
        let declared = stand.declare(minute()).await.expect(StatusCode::CREATED);
        let task = text(&declared, "task");
        let renewed = renew(&stand, &task, json!({"ttl": 600})).await.expect(StatusCode::OK);
        assert!(time(&renewed, "expires_at") >= time(&declared, "created_at") + Duration::from_secs(599));
        assert!(time(&renewed, "renew_at") < time(&renewed, "expires_at"));
        assert!(time(&renewed, "renewable_until") >= time(&declared, "created_at") + Duration::from_secs(7199));
        assert_eq!((&renewed["state"], &renewed["created_at"]), (&json!("active"), &declared["created_at"]));
        assert!(renewed.get("credentials").is_none());
        // It is never brought forward; left out, it is as long as was declared.
        for body in [Some(json!({"ttl": 1})), Some(json!({})), None] {
            let path = format!("/v1/tasks/{task}/renew");
            let again = stand.call(Method::POST, &path, Some(&stand.evidence()), body).await.expect(StatusCode::OK);
            assert_eq!(again["expires_at"], renewed["expires_at"]);
        }
        let shown = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
        assert_eq!(shown["expires_at"], renewed["expires_at"]);
        // What is minted from now on says so, and a credential may last past the first deadline.
        let body = json!({"credentials": [{"resource": GIT, "privilege": "read", "ttl": 300}]});
        let minted = stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), body).await.expect(StatusCode::OK);
        let token = text(&minted["credentials"][0], "access_token");
        let claims = claims(&token);
        assert_eq!(claims["urn:remit:task"]["expires_at"], time(&renewed, "expires_at").timestamp());
        assert!(claims["exp"].as_i64().unwrap() > time(&declared, "expires_at").timestamp());
        assert_eq!(stand.introspect(&token).await["active"], true);

        let audit = stand.audit();
        let lines: Vec<_> = audit.iter().filter(|line| line["event"] == "task_renewed").collect();
        assert_eq!(lines.len(), 4);
        assert_eq!((&lines[0]["task"], &lines[0]["expires_at"]), (&json!(task), &renewed["expires_at"]));
        assert!(!lines[0]["policies"].as_array().unwrap().is_empty());
    }

    /// An agent that crashed says nothing any more, and its task ends.
    async fn a_task_that_nobody_renews_ends_by_itself(stand) {
        let declared = heartbeat(&stand).await;
        let (task, token) = (text(&declared, "task"), text(&declared["credentials"][0], "access_token"));
        let life = |answer: &Value| (time(answer, "expires_at") - time(&declared, "created_at")).num_seconds();
        assert!(life(&declared) <= 6, "{declared}");
        assert_eq!(claims(&token)["exp"], time(&declared, "expires_at").timestamp());
        let mut last = declared.clone();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            last = renew(&stand, &task, json!({})).await.expect(StatusCode::OK);
        }
        // Ten seconds in all, however often.
        assert!((9..=10).contains(&life(&last)), "{last}");
        assert_eq!(last["expires_at"], last["renewable_until"]);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        renew(&stand, &task, json!({})).await.refused(409, "task_not_active");
        stand.mint(&task).await.refused(409, "task_not_active");
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        let shown = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
        assert_eq!(shown["state"], "expired");
        let audit = stand.audit();
        assert!(audit.iter().any(|line| line["event"] == "renewal_refused" && line["task"] == *task));
    }

    /// Nobody who follows the feed is told of an end for longer than a credential of the task could live.
    async fn an_end_is_told_until_the_task_could_have_lived(stand) {
        let declared = heartbeat(&stand).await;
        let renewed = renew(&stand, &text(&declared, "task"), json!({})).await.expect(StatusCode::OK);
        let (_, long) = stand.task_with_token().await;
        let (long, short) = (text(&claims(&long)["urn:remit:task"], "id"), text(&declared, "task"));
        for task in [&long, &short] {
            stand.revoke(task).await.expect(StatusCode::OK);
        }
        let told = async || {
            let entries = entries(&stand, &stand.broker, "task").await;
            let until = |entry: &Value| (text(entry, "task"), entry["until"].as_f64().unwrap());
            entries.iter().map(until).collect::<BTreeMap<_, _>>()
        };
        // The usual one could live for two hours, and its credentials for one.
        wait_for("both ends in the store's log", || async { told().await[&long] - to_seconds(SystemClock.now()) < 3661.0 }).await;
        let (until, all) = (time(&renewed, "renewable_until"), told().await);
        assert!((all[&short] - to_seconds(until)).abs() < 1.0, "{all:?} {until}");
        // It is told for another minute, for clocks that are behind.
        while SystemClock.now() < until + TimeDelta::seconds(59) {
            assert_eq!(told().await, all);
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        wait_for("the entry to go", || async { told().await.keys().eq([&long]) }).await;
        // The broker itself knows for longer, and so it does after a restart.
        let mut stand = stand;
        stand.restart_broker().await;
        let shown = stand.get(&format!("/v1/tasks/{short}"), VIEWER).await.expect(StatusCode::OK);
        assert_eq!(shown["state"], "revoked");
    }

    async fn what_is_refused(stand) {
        let (task, token) = stand.task_with_token().await;
        let path = format!("/v1/tasks/{task}/renew");
        for (body, status, code) in [
            (json!({"ttl": 0}), 400, "invalid_request"),
            (json!({"ttl": -1}), 400, "invalid_request"),
            (json!({"ttl": "600"}), 400, "invalid_request"),
            (json!({"ttl": 601}), 400, "invalid_request"),
            (json!({"ttl": 4_294_967_296_u64}), 400, "invalid_request"),
            (json!({"until": "2099-01-01T00:00:00Z"}), 400, "invalid_request"),
            (json!([]), 400, "invalid_request"),
        ] {
            renew(&stand, &task, body).await.refused(status, code);
        }
        stand.post(&path, &stand.other_instance(), json!({})).await.refused(404, "not_found");
        stand.post("/v1/tasks/task_01jd0000000000000000000000/renew", &stand.evidence(), json!({})).await.refused(404, "not_found");
        stand.post(&path, &token, json!({})).await.refused(401, "evidence_invalid");
        stand.revoke(&task).await.expect(StatusCode::OK);
        renew(&stand, &task, json!({})).await.refused(409, "task_not_active");
        let answer = stand.get(&format!("/v1/tasks/{task}"), RESPONDER).await.expect(StatusCode::OK);
        assert_eq!(answer["state"], "revoked");
    }
}

/// Evidence and policy are asked again: what was granted under other conditions goes on only under those of today.
#[tokio::test]
async fn policy_decides_on_every_renewal() {
    let permit = r#"@id("all") permit (principal, action, resource);"#;
    let main = r#"@id("main-only") forbid (principal, action in Remit::Action::"declare", resource)
unless { context.attested has branch && context.attested.branch == "refs/heads/main" };"#;
    let facts = |config: String| config.replace("kind = \"ci\"", "kind = \"ci\"\nfacts = { branch = \"{ref}\" }");
    let stand = Stand::under(&format!("{permit}\n{main}"), facts).await;
    let on = |branch: &str| stand.issuer.evidence(&stand.broker.url, json!({"ref": format!("refs/heads/{branch}")}));
    let declared = stand.post("/v1/tasks", &on("main"), declaration()).await.expect(StatusCode::CREATED);
    let path = format!("/v1/tasks/{}/renew", text(&declared, "task"));
    let refused = stand.post(&path, &on("fix"), json!({"ttl": 1200})).await.refused(403, "policy_denied");
    assert_eq!(refused["denied"][0]["policies"], json!(["main-only"]));
    let shown = stand.get(&path.replace("/renew", ""), VIEWER).await.expect(StatusCode::OK);
    assert_eq!(shown["expires_at"], declared["expires_at"]);
    assert!(stand.audit().iter().any(|line| line["event"] == "renewal_denied"));
    stand.post(&path, &on("main"), json!({"ttl": 1200})).await.expect(StatusCode::OK);
}

/// Whoever heard of the end of a task goes by what its longest life was when it was declared: policy shortens it afterwards, and no more.
#[tokio::test]
async fn no_later_policy_makes_a_life_longer() {
    let permit = |life| format!("@id(\"all\") @max_lifetime(\"{life}\")\npermit (principal, action, resource);");
    let dir = tempfile::tempdir().unwrap();
    let policies = dir.path().display().to_string();
    std::fs::write(dir.path().join("own.cedar"), permit(700)).unwrap();
    let stand = Stand::edited(|config| with_policies(&config, &policies)).await;
    let declared = stand.declare(declaration()).await.expect(StatusCode::CREATED);
    // Deadlines are whole seconds.
    let life = |answer: &Value, member| {
        let life = time(answer, member) - time(&declared, "created_at");
        (life + TimeDelta::milliseconds(999)).num_seconds()
    };
    for (policy, renewable, lives) in [(7200, 700, 650), (660, 660, 655), (7200, 700, 700)] {
        std::fs::write(dir.path().join("own.cedar"), permit(policy)).unwrap();
        let ttl = json!({"ttl": lives});
        wait_for("the other policy", || async {
            let renewed = renew(&stand, &text(&declared, "task"), ttl.clone()).await.expect(StatusCode::OK);
            assert!(life(&renewed, "expires_at") <= 700);
            life(&renewed, "renewable_until") == renewable && life(&renewed, "expires_at") >= lives
        })
        .await;
    }
    let last = renew(&stand, &text(&declared, "task"), json!({"ttl": 7200})).await.expect(StatusCode::OK);
    assert_eq!(last["expires_at"], last["renewable_until"]);
}

/// Any broker renews, and every broker knows.
#[tokio::test]
async fn a_renewal_holds_on_every_broker() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let declared = stand.declare(minute()).await.expect(StatusCode::CREATED);
    let (task, token) = (text(&declared, "task"), text(&declared["credentials"][0], "access_token"));
    let evidence = stand.evidence();
    let call = async |method: Method, path: &str, body: Option<Value>| {
        stand.call_at(&second, method, &format!("/v1/tasks/{task}{path}"), Some(&evidence), body).await
    };
    // Each has seen the task, and remembers it.
    call(Method::POST, "/credentials", Some(json!({"credentials": [{"resource": GIT, "privilege": "read"}]})))
        .await
        .expect(StatusCode::OK);
    let renewed = renew(&stand, &task, json!({"ttl": 500})).await.expect(StatusCode::OK);
    let body = json!({"credentials": [{"resource": GIT, "privilege": "read", "ttl": 300}]});
    let minted = call(Method::POST, "/credentials", Some(body)).await.expect(StatusCode::OK);
    let exp = claims(&text(&minted["credentials"][0], "access_token"));
    assert_eq!(exp["urn:remit:task"]["expires_at"], time(&renewed, "expires_at").timestamp());
    let again = call(Method::POST, "/renew", Some(json!({"ttl": 600}))).await.expect(StatusCode::OK);
    let shown = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
    assert_eq!((&shown["expires_at"], &shown["owner"]), (&again["expires_at"], &json!(OWNER)));
    stand.revoke(&task).await.expect(StatusCode::OK);
    call(Method::POST, "/renew", Some(json!({}))).await.refused(409, "task_not_active");
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
}
