//! Where a revoke has arrived: class by class, as it stands, and how long somebody waits for it.

use remit::clock::{Clock as _, SystemClock, Time};
use reqwest::{RequestBuilder, StatusCode, header};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use crate::{
    both,
    support::{Answer, GIT_TOKEN, RESPONDER, Server, Stand, Store, VIEWER, claims, declaration, text, wait_for},
};

const FEED: &str = "/v1/revocations";
/// What a state that was sent is good for, and by how much a clock may be off.
const FRESH: Duration = Duration::from_millis(6_500);

async fn reach(stand: &Stand, task: &str, bearer: &str) -> Value {
    stand.get(&format!("/v1/tasks/{task}/reach"), bearer).await.expect(StatusCode::OK)
}

fn line<'a>(answer: &'a Value, class: &str) -> &'a Value {
    let mut lines = answer["reach"].as_array().unwrap().iter();
    lines.find(|line| line["class"] == class).unwrap_or_else(|| panic!("{class}: {answer}"))
}

fn done(answer: &Value, class: &str) -> bool {
    line(answer, class)["done"] == true
}

fn follower(request: RequestBuilder, name: &str) -> RequestBuilder {
    request.bearer_auth(GIT_TOKEN).header("Remit-Follower", name)
}

/// A verifier of the service asks for a state: what it says.
async fn fetch(stand: &Stand, name: &str) -> Value {
    fetch_at(stand, &stand.broker, name).await
}

async fn fetch_at(stand: &Stand, at: &Server, name: &str) -> Value {
    let answer = follower(stand.client.get(format!("{}{FEED}", at.url)), name).send().await.unwrap();
    claims(&answer.text().await.unwrap())
}

/// It says that it goes by the next state after that.
async fn acknowledge(stand: &Stand, name: &str, state: &Value, more: u64) {
    assert_eq!(acknowledge_at(stand, &stand.broker, name, state, more).await, StatusCode::OK, "{state}");
}

async fn acknowledge_at(stand: &Stand, at: &Server, name: &str, state: &Value, more: u64) -> StatusCode {
    let body = json!({"broker": state["broker"], "sequence": state["sequence"].as_u64().unwrap() + more});
    let request = follower(stand.client.post(format!("{}/v1/revocations/ack", at.url)), name).json(&body);
    request.send().await.unwrap().status()
}

/// A revoke that waits: its answer, and how long that took.
async fn revoke_and_wait(stand: &Stand, task: &str) -> (Value, Duration) {
    let begun = Instant::now();
    let answer =
        stand.post(&format!("/v1/tasks/{task}/revoke?wait=effective"), RESPONDER, json!({"reason": "r"})).await;
    (answer.expect(StatusCode::OK), begun.elapsed())
}

both! {
    async fn each_line_is_done_when_its_time_has_come(stand) {
        let (task, _) = stand.task_with_token().await;
        let alive = reach(&stand, &task, VIEWER).await;
        assert_eq!((&alive["state"], &alive["effective_by"], &alive["done"]), (&json!("active"), &json!(null), &json!(false)));
        assert_eq!(alive["reach"], json!([]));
        let revoked = stand.revoke(&task).await.expect(StatusCode::OK);
        // The same as was answered, to everybody who may see the task.
        let evidence = stand.evidence();
        for bearer in [VIEWER, RESPONDER, &evidence] {
            let seen = reach(&stand, &task, bearer).await;
            assert_eq!((&seen["state"], &seen["effective_by"], &seen["done"]), (&json!("revoked"), &revoked["effective_by"], &json!(false)));
            assert!(done(&seen, "introspection") && !done(&seen, "status_list") && !done(&seen, "jwks_only"), "{seen}");
            for class in ["introspection", "feed", "status_list", "crl", "jwks_only"] {
                assert_eq!(line(&seen, class)["by"], line(&revoked, class)["by"], "{class}");
            }
        }
        let effective_by: Time = revoked["effective_by"].as_str().unwrap().parse().unwrap();
        let left = (effective_by - SystemClock.now()).to_std().unwrap_or_default();
        tokio::time::sleep(left + Duration::from_millis(100)).await;
        let seen = reach(&stand, &task, VIEWER).await;
        for class in ["introspection", "feed", "status_list", "crl"] {
            assert!(done(&seen, class), "{class}: {seen}");
        }
        // Its token lives on where nobody looks.
        assert!(!done(&seen, "jwks_only") && seen["done"] == false, "{seen}");
        // Of a task that never had a credential nothing is left.
        let mut without = declaration();
        without.as_object_mut().unwrap().remove("credentials");
        let bare = text(&stand.post("/v1/tasks", &evidence, without).await.expect(StatusCode::CREATED), "task");
        stand.revoke(&bare).await.expect(StatusCode::OK);
        assert!(done(&reach(&stand, &bare, VIEWER).await, "jwks_only"));
    }

    async fn what_is_not_there_or_not_theirs_is_not_told(stand) {
        let (task, _) = stand.task_with_token().await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        let path = format!("/v1/tasks/{task}/reach");
        stand.get(&path, GIT_TOKEN).await.refused(403, "policy_denied");
        stand.get(&path, "nobody").await.refused(401, "evidence_invalid");
        stand.get("/v1/tasks/task_1/reach", VIEWER).await.refused(400, "invalid_request");
        // An id that nobody has seen, and one that was revoked before it was.
        let unseen = "task_01jd0000000000000000000000";
        let path = format!("/v1/tasks/{unseen}/reach");
        stand.get(&path, VIEWER).await.refused(404, "not_found");
        let revoked = stand.revoke(unseen).await.expect(StatusCode::OK);
        let seen = reach(&stand, unseen, VIEWER).await;
        assert_eq!((&seen["state"], &seen["effective_by"]), (&json!("revoked"), &revoked["effective_by"]));
        stand.get(&path, &stand.evidence()).await.refused(404, "not_found");
        // A look is on record.
        let looks = stand.whole_audit().into_iter().filter(|line| line["event"] == "looked" && line["at"] == "reach");
        assert!(looks.count() >= 2);
    }

    async fn who_waits_is_answered_when_all_have_heard(stand) {
        // What was sent before the broker was started has run out.
        tokio::time::sleep(FRESH).await;
        let (task, _) = stand.task_with_token().await;
        let states = [fetch(&stand, "one").await, fetch(&stand, "two").await];
        let acks = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            acknowledge(&stand, "one", &states[0], 1).await;
            // A replica does not speak for another.
            let seen = reach(&stand, &task, VIEWER).await;
            assert_eq!((&line(&seen, "feed")["acknowledged"], &line(&seen, "feed")["of"]), (&json!(1), &json!(2)));
            assert!(!done(&seen, "feed"), "{seen}");
            acknowledge(&stand, "two", &states[1], 1).await;
        };
        let ((answer, took), ()) = tokio::join!(revoke_and_wait(&stand, &task), acks);
        assert!(done(&answer, "feed") && took < Duration::from_secs(4), "{took:?} {answer}");
        assert_eq!((&line(&answer, "feed")["acknowledged"], &line(&answer, "feed")["of"]), (&json!(2), &json!(2)));
    }

    async fn a_reader_without_a_name_is_waited_for_until_its_state_has_run_out(stand) {
        tokio::time::sleep(FRESH).await;
        let (task, _) = stand.task_with_token().await;
        let state = fetch(&stand, "one").await;
        assert_eq!(stand.client.get(stand.url(FEED)).send().await.unwrap().status(), StatusCode::OK);
        let acks = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            acknowledge(&stand, "one", &state, 1).await;
        };
        let ((answer, took), ()) = tokio::join!(revoke_and_wait(&stand, &task), acks);
        assert!(done(&answer, "feed") && took > Duration::from_secs(4), "{took:?} {answer}");
    }

    async fn bad_names_and_questions_are_refused(stand) {
        for name in ["", "a b", "a/b", &"a".repeat(65)] {
            Answer::of(follower(stand.client.get(stand.url(FEED)), name).send().await.unwrap()).await.refused(400, "invalid_request");
        }
        let twice = follower(follower(stand.client.get(stand.url(FEED)), "a"), "b");
        Answer::of(twice.send().await.unwrap()).await.refused(400, "invalid_request");
        let stream = stand.client.get(stand.url(FEED)).header(header::ACCEPT, "text/event-stream").header("Remit-Follower", "é");
        Answer::of(stream.send().await.unwrap()).await.refused(400, "invalid_request");
        let (task, _) = stand.task_with_token().await;
        for query in ["wait=forever", "wait=effective&wait=effective", "waits=effective"] {
            let path = format!("/v1/tasks/{task}/revoke?{query}");
            stand.post(&path, RESPONDER, json!({"reason": "r"})).await.refused(400, "invalid_request");
        }
        assert_eq!(reach(&stand, &task, VIEWER).await["state"], "active");
    }
}

/// A follower of each of two brokers hears of a revoke at the first one. The second one says so as soon as it is told.
async fn wait_for_both(stand: &Stand, second: &Server) -> (Value, Duration) {
    let (task, _) = stand.task_with_token().await;
    let states = [fetch(stand, "one").await, fetch_at(stand, second, "two").await];
    let acks = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        acknowledge(stand, "one", &states[0], 1).await;
        let seen = reach(stand, &task, VIEWER).await;
        assert!(!done(&seen, "feed"), "the other broker's has not heard: {seen}");
        // The other broker hears of it before its followers do.
        wait_for("the acknowledgement", || async {
            acknowledge_at(stand, second, "two", &states[1], 1).await == StatusCode::OK
        })
        .await;
    };
    let (waited, ()) = tokio::join!(revoke_and_wait(stand, &task), acks);
    waited
}

/// Other brokers on the store have followers of their own, and say how much those have heard.
#[tokio::test]
async fn who_waits_is_answered_when_all_of_other_brokers_have_heard() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    tokio::time::sleep(FRESH).await;
    for _ in 0..2 {
        let (answer, took) = wait_for_both(&stand, &second).await;
        assert!(done(&answer, "feed") && took < Duration::from_secs(4), "{took:?} {answer}");
    }
    // Nobody reads there any more.
    tokio::time::sleep(FRESH).await;
    let (task, _) = stand.task_with_token().await;
    let (answer, took) = revoke_and_wait(&stand, &task).await;
    assert!(done(&answer, "feed") && took < Duration::from_secs(4), "{took:?} {answer}");
    // Of what was told of an earlier revoke nothing follows for the next.
    fetch_at(&stand, &second, "two").await;
    let (task, _) = stand.task_with_token().await;
    let (answer, took) = revoke_and_wait(&stand, &task).await;
    assert!(done(&answer, "feed") && took > Duration::from_secs(4), "{took:?} {answer}");
}

/// Somebody without a name, a broker that says nothing, and what no broker wrote: only the time tells.
#[tokio::test]
async fn whoever_says_nothing_of_others_rules_it_out() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    tokio::time::sleep(FRESH).await;
    let redis = stand.redis.as_ref().unwrap();
    let revoke = async || {
        let (task, _) = stand.task_with_token().await;
        let (answer, took) = revoke_and_wait(&stand, &task).await;
        assert!(done(&answer, "feed"), "{answer}");
        took
    };
    assert!(revoke().await < Duration::from_secs(4));
    let anonymous = stand.client.get(format!("{}{FEED}", second.url)).send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::OK);
    assert!(revoke().await > Duration::from_secs(4));
    // It said enough, and somebody wrote something else over it.
    let mut said = Vec::new();
    wait_for("both to have said something", || {
        let keys = redis.cli(&["keys", "remit:heard:*"]);
        async { keys.await.lines().count() >= 2 }
    })
    .await;
    for key in redis.cli(&["keys", "remit:heard:*"]).await.lines() {
        said.push((key.to_owned(), redis.cli(&["get", key]).await));
    }
    second.child.id().map(|id| std::process::Command::new("kill").args(["-STOP", &id.to_string()]).status());
    for (at, (key, _)) in said.iter().enumerate() {
        redis.cli(&["set", key, &said[(at + 1) % said.len()].1]).await;
    }
    assert!(revoke().await > Duration::from_secs(4), "a broker that says nothing");
    second.child.id().map(|id| std::process::Command::new("kill").args(["-KILL", &id.to_string()]).status());
    assert!(revoke().await > Duration::from_secs(4), "a broker that is gone");
}

/// A revoke that only the journal has: an operator is told where it stands, and waits until it has arrived.
#[tokio::test]
async fn a_revoke_that_is_on_its_way_is_followed() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, _) = stand.task_with_token().await;
    stand.redis.as_mut().unwrap().kill().await;
    // Waiting for it would be waiting for the store.
    let (path, begun) = (format!("/v1/tasks/{task}/revoke?wait=effective"), Instant::now());
    assert_eq!(
        stand.post(&path, RESPONDER, json!({"reason": "r"})).await.expect(StatusCode::ACCEPTED)["state"],
        "revoking"
    );
    assert!(begun.elapsed() < Duration::from_secs(8));
    let seen = reach(&stand, &task, VIEWER).await;
    assert_eq!((&seen["state"], &seen["done"]), (&json!("revoking"), &json!(false)));
    // Of what others see nothing can be told without the store.
    stand.get(&format!("/v1/tasks/{task}/reach"), &stand.evidence()).await.refused(503, "temporarily_unavailable");
    stand.redis.as_mut().unwrap().start_again().await;
    wait_for("it to arrive", || async {
        let answer = stand.get(&format!("/v1/tasks/{task}/reach"), VIEWER).await;
        answer.status == StatusCode::OK && answer.json()["state"] == "revoked"
    })
    .await;
}

/// What the store has lost of an end that this broker knows of is told again, and not taken for life.
#[tokio::test]
async fn an_end_that_the_store_lacks_is_no_life() {
    let stand = Stand::new(Store::Redis).await;
    let (task, _) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    let (redis, end) = (stand.redis.as_ref().unwrap(), format!("remit:{{{task}}}:end:{task}"));
    assert_eq!(redis.cli(&["DEL", &end]).await, "1");
    assert_eq!(reach(&stand, &task, VIEWER).await["state"], "revoked");
    assert_eq!(redis.cli(&["EXISTS", &end]).await, "1");
}
