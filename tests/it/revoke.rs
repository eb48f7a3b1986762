//! One call ends a task and every credential of it.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    both,
    support::{ADMIN, GIT, RESPONDER, Stand, Store, VIEWER, declaration, settled, text, time},
};

both! {
    async fn a_revoke_kills_the_task_at_once(stand) {
        let (task, token) = stand.task_with_token().await;
        let more = stand.mint(&task).await.expect(StatusCode::OK);
        let second = text(&more["credentials"][0], "access_token");
        assert_eq!(stand.introspect(&token).await["active"], true);
        let answer = stand.revoke(&task).await.expect(StatusCode::OK);
        assert_eq!((&answer["task"], &answer["state"], &answer["known"]), (&json!(task), &json!("revoked"), &json!(true)));
        assert_eq!((&answer["ended_tasks"], &answer["credentials"], &answer["generation"]), (&json!(1), &json!(2), &json!(1)));
        let at = text(&answer["reach"][0], "by");
        assert_eq!(answer["reach"][0], json!({"class": "introspection", "by": at, "done": true}));
        assert_eq!((&answer["reach"][1]["class"], &answer["reach"][1]["of"]), (&json!("feed"), &json!(0)));
        assert_eq!(answer["reach"][2], json!({"class": "status_list", "by": answer["effective_by"], "done": false}));
        assert_eq!(answer["reach"][3], json!({"class": "crl", "by": answer["effective_by"], "done": false}));
        assert_eq!(answer["reach"][4]["class"], "jwks_only");
        let last = time(&answer["reach"][4], "by");
        assert_eq!(last.timestamp(), crate::support::claims(&second)["exp"].as_i64().unwrap());
        for token in [&token, &second] {
            assert_eq!(stand.introspect(token).await, json!({"active": false}));
        }
        stand.mint(&task).await.refused(409, "task_not_active");
        let shown = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
        assert_eq!((&shown["state"], &shown["reason"]), (&json!("revoked"), &json!("a test says so")));
        // It ended when it was asked to, and was effective once that was recorded.
        let instant = |text: &str| text.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        assert!(instant(&text(&shown, "ended_at")) <= instant(&at));
        assert_eq!((instant(&text(&answer, "effective_by")) - instant(&at)).num_seconds(), 10);
        assert_eq!((instant(&text(&answer["reach"][1], "by")) - instant(&at)).num_seconds(), 6);
        // A second call answers with the first one's instants and counts, whatever reason it gives.
        let again = stand.post(&format!("/v1/tasks/{task}/revoke"), RESPONDER, json!({"reason": "again"})).await.expect(StatusCode::OK);
        assert_eq!(settled(again), settled(answer));
    }

    async fn complete_ends_a_task_the_same_way(stand) {
        let (task, token) = stand.task_with_token().await;
        let path = format!("/v1/tasks/{task}/complete");
        stand.post(&path, RESPONDER, json!({})).await.refused(403, "policy_denied");
        let done = stand.post(&path, &stand.evidence(), json!({"reason": "all green"})).await.expect(StatusCode::OK);
        assert_eq!((&done["state"], &done["reason"]), (&json!("completed"), &json!("all green")));
        assert!(done.get("credentials").is_none() && done["ended_at"].is_string());
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        stand.mint(&task).await.refused(409, "task_not_active");
        // Without a body as well, and again: nothing changes any more.
        let again = stand.call(reqwest::Method::POST, &path, Some(&stand.evidence()), None).await.expect(StatusCode::OK);
        assert_eq!(again, done);
        let empty = stand.client.post(stand.url(&path)).bearer_auth(stand.evidence()).header("content-type", "application/json");
        assert_eq!(crate::support::Answer::of(empty.send().await.unwrap()).await.expect(StatusCode::OK), done);
        let untyped = stand.client.post(stand.url(&path)).bearer_auth(stand.evidence()).body("{}");
        crate::support::Answer::of(untyped.send().await.unwrap()).await.refused(415, "invalid_request");
        // How it ended is final: a revoke afterwards does not rewrite it.
        assert_eq!(stand.revoke(&task).await.expect(StatusCode::OK)["state"], "completed");
    }

    /// A revoke may overtake the first issue of its task: an operator can record an id that nobody has seen.
    async fn an_unseen_id_can_be_revoked_by_an_operator_only(stand) {
        let id = "task_01jd0000000000000000000000";
        let path = format!("/v1/tasks/{id}/revoke");
        stand.post(&path, &stand.evidence(), json!({"reason": "r"})).await.refused(404, "not_found");
        let answer = stand.revoke(id).await.expect(StatusCode::OK);
        assert_eq!((&answer["state"], &answer["known"], &answer["ended_tasks"]), (&json!("revoked"), &json!(false), &json!(0)));
        assert_eq!(settled(stand.revoke(id).await.expect(StatusCode::OK)), settled(answer));
        for bad in ["x", "task_1", "task_01jd0000000000000000000000-short"] {
            stand.revoke(bad).await.refused(400, "invalid_request");
        }
        // Nobody fills the store with made-up ids: more than a hundred a minute, however the minutes fall.
        let mut refused = 0;
        for number in 0..210 {
            let made_up = format!("task_01jd0000000000000000000{number:03}");
            refused += usize::from(stand.revoke(&made_up).await.status == StatusCode::TOO_MANY_REQUESTS);
        }
        assert!(refused >= 1, "no limit");
    }

    async fn the_roles_that_may_revoke(stand) {
        let (task, token) = stand.task_with_token().await;
        let path = format!("/v1/tasks/{task}/revoke");
        for operator in [VIEWER, ADMIN, crate::support::GIT_TOKEN] {
            stand.post(&path, operator, json!({"reason": "r"})).await.refused(403, "policy_denied");
        }
        for nobody in ["nobody", "", &token] {
            stand.post(&path, nobody, json!({"reason": "r"})).await.refused(401, "evidence_invalid");
        }
        for bad in [json!({}), json!({"reason": ""}), json!({"reason": 1}), json!({"reason": "r", "force": true})] {
            stand.post(&path, RESPONDER, bad).await.refused(400, "invalid_request");
        }
        assert_eq!(stand.introspect(&token).await["active"], true, "nothing of that was a revoke");
        // The task's own instance may.
        assert_eq!(stand.post(&path, &stand.evidence(), json!({"reason": "mine"})).await.expect(StatusCode::OK)["state"], "revoked");
    }

    /// A mint that races a revoke fails, or yields a credential that is dead already.
    async fn a_mint_that_races_a_revoke(stand) {
        for round in 0..5 {
            let (task, first) = stand.task_with_token().await;
            let mints = futures_util::future::join_all((0..32).map(|_| stand.mint(&task)));
            let revoke = async {
                tokio::time::sleep(std::time::Duration::from_millis(round * 2)).await;
                stand.revoke(&task).await
            };
            let (minted, revoked) = tokio::join!(mints, revoke);
            revoked.expect(StatusCode::OK);
            let mut tokens = vec![first];
            for answer in minted {
                match answer.status {
                    StatusCode::OK => tokens.push(text(&answer.json()["credentials"][0], "access_token")),
                    _ => drop(answer.refused(409, "task_not_active")),
                }
            }
            for token in tokens {
                assert_eq!(stand.introspect(&token).await, json!({"active": false}));
            }
        }
    }

    async fn what_is_dead_stays_dead_across_restarts(stand) {
        let mut stand = stand;
        let (dead, dead_token) = stand.task_with_token().await;
        let (_, live_token) = stand.task_with_token().await;
        stand.revoke(&dead).await.expect(StatusCode::OK);
        if let Some(redis) = &mut stand.redis {
            redis.kill().await;
            redis.start_again().await;
        }
        stand.restart_broker().await;
        assert_eq!(stand.introspect(&dead_token).await, json!({"active": false}));
        assert_eq!(stand.introspect(&live_token).await["active"], true, "data and keys survive a restart");
        stand.mint(&dead).await.refused(409, "task_not_active");
    }
}

/// Declared on one broker, minted on the other, revoked on either: dead on both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_brokers_share_a_store() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, token) = stand.task_with_token().await;
    let evidence = stand.evidence();
    let body = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
    let path = format!("/v1/tasks/{task}/credentials");
    let minted =
        stand.call_at(&second, reqwest::Method::POST, &path, Some(&evidence), Some(body)).await.expect(StatusCode::OK);
    let minted = text(&minted["credentials"][0], "access_token");
    // Every broker publishes the keys of all: one for access tokens and one for status lists each.
    let kid = |token: &str| crate::support::part(token, 0)["kid"].clone();
    for url in [&stand.broker.url, &second.url] {
        let keys = stand.client.get(format!("{url}/jwks")).send().await.unwrap().json::<Value>().await.unwrap();
        let kids: Vec<_> = keys["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect();
        assert!(kids.len() == 4 && kids.contains(&kid(&token)) && kids.contains(&kid(&minted)), "{kids:?}");
    }
    for (broker, token) in [(&stand.broker, &minted), (&second, &token)] {
        assert_eq!(stand.introspect_at(broker, crate::support::GIT_TOKEN, token).await["active"], true);
    }
    let revoke = json!({"reason": "r"});
    stand
        .call_at(&second, reqwest::Method::POST, &format!("/v1/tasks/{task}/revoke"), Some(RESPONDER), Some(revoke))
        .await
        .expect(StatusCode::OK);
    for (broker, token) in [(&stand.broker, &token), (&stand.broker, &minted), (&second, &token), (&second, &minted)] {
        let answer = stand.introspect_at(broker, crate::support::GIT_TOKEN, token).await;
        assert_eq!(answer, json!({"active": false}));
    }
    stand.mint(&task).await.refused(409, "task_not_active");
}

/// The number of store operations does not depend on the number of credentials.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_costs_the_same_for_one_credential_and_a_thousand() {
    let stand = Stand::new(Store::Redis).await;
    let redis = stand.redis.as_ref().unwrap();
    // The first revoke of a Redis loads the script.
    stand.revoke(&stand.task_with_token().await.0).await.expect(StatusCode::OK);
    cost_the_same(async |many| {
        let calls = if many { 32 } else { 0 };
        let task = text(&stand.declare(declaration()).await.expect(StatusCode::CREATED), "task");
        let wanted = json!({"credentials": vec![json!({"resource": GIT, "privilege": "read"}); 32]});
        for _ in 0..calls {
            let path = format!("/v1/tasks/{task}/credentials");
            stand.post(&path, &stand.evidence(), wanted.clone()).await.expect(StatusCode::OK);
        }
        redis.cli(&["config", "resetstat"]).await;
        let answer = stand.revoke(&task).await.expect(StatusCode::OK);
        assert_eq!(answer["credentials"], 1 + calls * 32);
        command_counts(&redis.cli(&["info", "commandstats"]).await)
    })
    .await;
}

/// Asserts that a revoke of little and one of much take the same commands: that some count of the one is a count of the other. What the
/// broker does at its own pace may fall into any of them, or beside it, so that it may need a few rounds; it is no more for the one than
/// for the other.
pub(crate) async fn cost_the_same(mut count: impl AsyncFnMut(bool) -> Vec<(String, u64)>) {
    let mut counted = [Vec::new(), Vec::new()];
    for _ in 0..20 {
        for (many, counted) in [false, true].into_iter().zip(&mut counted) {
            counted.push(count(many).await);
        }
        if counted[0].iter().any(|few| counted[1].contains(few)) {
            return;
        }
    }
    panic!("a revoke of little and one of much: {counted:?}");
}

/// Calls by command, without those that the broker's own watch makes at its own pace.
pub(crate) fn command_counts(stats: &str) -> Vec<(String, u64)> {
    let count = |line: &str| {
        let (name, rest) = line.trim().strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let calls = rest.split(',').next()?.parse().ok()?;
        (!["info", "config|resetstat", "ping"].contains(&name)).then(|| (name.to_owned(), calls))
    };
    stats.lines().filter_map(count).collect()
}
