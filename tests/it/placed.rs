//! Services whose tokens each have a place of their own in the status lists: the lists show which of them was revoked by itself, and all
//! of them when the task has ended.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use remit::clock::Time;

use crate::{
    both,
    clients::{node, python},
    status_list::{bits, fetch, is_set, status},
    support::{Answer, GIT, NOWHERE, RESPONDER, Server, Stand, Store, claims, declaration, text, time, wait_for},
};

/// A service that is not in the configuration of [`Stand::second_broker`], which tells all the same.
fn vault() -> String {
    format!(
        "[[service]]\nname = \"vault\"\naudiences = [\"{NOWHERE}\"]\nbinding = \"none\"\nrevocation = \"status_list\"\nstatus = \"token\"\n"
    )
}

fn wanted(resource: &str, count: usize) -> Value {
    json!({"credentials": vec![json!({"resource": resource, "privilege": "read"}); count]})
}

/// A task for git and the vault, without a credential.
async fn task(stand: &Stand) -> String {
    let mut declaration = declaration();
    declaration["authorization_details"][0]["locations"] = json!([GIT, NOWHERE]);
    declaration["authorization_details"][0]["privileges"] = json!(["read"]);
    declaration["credentials"] = json!([]);
    text(&stand.declare(declaration).await.expect(StatusCode::CREATED), "task")
}

async fn mint(stand: &Stand, task: &str, body: Value) -> Answer {
    stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), body).await
}

fn tokens(answer: &Value) -> Vec<String> {
    answer["credentials"].as_array().unwrap().iter().map(|credential| text(credential, "access_token")).collect()
}

/// So many tokens of a task for the vault.
async fn minted(stand: &Stand, task: &str, count: usize) -> Vec<String> {
    tokens(&mint(stand, task, wanted(NOWHERE, count)).await.expect(StatusCode::OK))
}

/// Which of these tokens list 0 of a broker says to be dead.
async fn dead(stand: &Stand, at: &Server, tokens: &[String]) -> Vec<bool> {
    let octets = bits(stand, at).await;
    tokens.iter().map(|token| is_set(&octets, status(token).1)).collect()
}

async fn becomes(stand: &Stand, at: &Server, tokens: &[String], expected: &[bool]) {
    let begun = Instant::now();
    wait_for("the list", || async { dead(stand, at, tokens).await == expected }).await;
    // A second between two looks, and some for a slow machine.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

async fn revoke_one(stand: &Stand, at: &Server, token: &str) -> Value {
    let path = format!("/v1/leases/{}/revoke", text(&claims(token), "jti"));
    stand.call_at(at, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "r"}))).await.expect(StatusCode::OK)
}

async fn revoke_task(stand: &Stand, at: &Server, task: &str) -> Value {
    let path = format!("/v1/tasks/{task}/revoke");
    stand.call_at(at, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "r"}))).await.expect(StatusCode::OK)
}

fn by(answer: &Value, class: &str) -> Time {
    let reach = answer["reach"].as_array().unwrap().iter().find(|reach| reach["class"] == class);
    time(reach.unwrap_or_else(|| panic!("no {class} in {answer}")), "by")
}

both! { crate::placed::vault();
    async fn each_token_has_a_place_of_its_own(stand) {
        let mut declaration = declaration();
        declaration["authorization_details"][0]["locations"] = json!([GIT, NOWHERE]);
        declaration["authorization_details"][0]["privileges"] = json!(["read"]);
        declaration["credentials"] = json!([
            {"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "read"},
            {"resource": NOWHERE, "privilege": "read"}, {"resource": NOWHERE, "privilege": "read", "type": "jwt"},
        ]);
        let declare = async || {
            let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).json(&declaration);
            let answer = Answer::of(request.header("idempotency-key", "one").send().await.unwrap()).await;
            answer.expect(StatusCode::CREATED)
        };
        let answer = declare().await;
        let mut all = tokens(&answer);
        assert_eq!(status(&all[0]), status(&all[1]), "git's tokens share that of their task");
        // A retry is the same token, in the same place.
        let places = |tokens: &[String]| tokens.iter().map(|token| status(token)).collect::<Vec<_>>();
        assert_eq!(places(&tokens(&declare().await)), places(&all));
        all.extend(minted(&stand, &text(&answer, "task"), 3).await);
        let mut places = places(&all);
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 6);
        assert_eq!(dead(&stand, &stand.broker, &all).await, [false; 7]);
    }

    async fn one_is_revoked_and_the_others_stand(stand) {
        let task = task(&stand).await;
        let all = minted(&stand, &task, 4).await;
        assert_eq!(dead(&stand, &stand.broker, &all).await, [false; 4]);
        let answer = revoke_one(&stand, &stand.broker, &all[1]).await;
        let asked = by(&answer, "introspection");
        assert_eq!((by(&answer, "status_list") - asked).num_seconds(), 10);
        assert_eq!(time(&answer, "effective_by"), by(&answer, "status_list"));
        assert_eq!(dead(&stand, &stand.broker, &all).await, [false, true, false, false], "at once, where it was revoked");
        let again = revoke_one(&stand, &stand.broker, &all[1]).await;
        assert_eq!(by(&again, "status_list"), by(&answer, "status_list"));
        // By its own workload (RFC 7009).
        let form = [("token", &*all[2])];
        assert_eq!(stand.form("/oauth2/revoke", Some(&stand.evidence()), &form).await.status, StatusCode::OK);
        becomes(&stand, &stand.broker, &all, &[false, true, true, false]).await;
        // The task goes on: its own bit is not set, and it has another token.
        let shared = tokens(&mint(&stand, &task, wanted(GIT, 1)).await.expect(StatusCode::OK));
        assert_eq!(dead(&stand, &stand.broker, &shared).await, [false]);
        // Of one that shares its task's place, the lists show nothing, and the answer says so.
        let answer = revoke_one(&stand, &stand.broker, &shared[0]).await;
        assert_eq!(by(&answer, "status_list"), time(&answer, "expires_at"));
        assert_eq!(dead(&stand, &stand.broker, &shared).await, [false]);
    }

    async fn all_end_with_their_task_and_stay_so(mut stand) {
        let (ended, completed, alive) = (task(&stand).await, task(&stand).await, task(&stand).await);
        let mut all = minted(&stand, &ended, 3).await;
        all.extend(minted(&stand, &completed, 1).await);
        all.extend(minted(&stand, &alive, 2).await);
        let answer = revoke_task(&stand, &stand.broker, &ended).await;
        assert_eq!((by(&answer, "status_list") - by(&answer, "introspection")).num_seconds(), 10);
        stand.post(&format!("/v1/tasks/{completed}/complete"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        let expected = [true, true, true, true, false, false];
        becomes(&stand, &stand.broker, &all, &expected).await;
        revoke_one(&stand, &stand.broker, &all[5]).await;
        let expected = [true, true, true, true, false, true];
        becomes(&stand, &stand.broker, &all, &expected).await;
        stand.restart_broker().await;
        assert_eq!(dead(&stand, &stand.broker, &all).await, expected, "the first list of the next process");
        // Without its journal a broker reads of it in the store, or nothing of before is good any more.
        stand.broker.stop().await;
        std::fs::remove_file(stand.dir.path().join("broker-journal/revocations")).unwrap();
        stand.broker = Server::start(&stand.broker.config.clone()).await;
        let dead = dead(&stand, &stand.broker, &all).await;
        assert!(dead.iter().zip(expected).all(|(dead, expected)| *dead || !expected), "{dead:?}");
    }

    async fn so_many_of_a_task(stand) {
        let task = task(&stand).await;
        for _ in 0..8 {
            minted(&stand, &task, 32).await;
        }
        let refused = mint(&stand, &task, wanted(NOWHERE, 1)).await.refused(429, "quota_exceeded");
        assert!(text(&refused, "detail").starts_with("256 tokens of this task are valid"));
        // Those that share their task's place are no matter, nor is another task.
        mint(&stand, &task, wanted(GIT, 1)).await.expect(StatusCode::OK);
        minted(&stand, &self::task(&stand).await, 32).await;
    }
}

/// What one broker ended, a reader that is not ours learns from another, whichever of them minted it and whatever their configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_are_not_ours_learn_of_one_token() {
    let stand = Stand::with(Store::Redis, &vault()).await;
    let second = stand.second_broker().await;
    let task = task(&stand).await;
    let all = minted(&stand, &task, 3).await;
    let shown: Vec<_> = all.iter().map(String::as_str).collect();
    let issuer = [&*stand.broker.url];
    assert_eq!(node("status_list.mjs", &issuer, &shown).await, ["0", "0", "0"]);
    assert_eq!(dead(&stand, &second, &all).await, [false; 3]);
    let becomes = async |expected: [&str; 3], python_says: [&str; 3]| {
        let begun = Instant::now();
        while node("status_list.mjs", &issuer, &shown).await != expected {
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
        assert_eq!(python("status_list.py", &issuer, &shown).await, python_says);
    };
    revoke_one(&stand, &second, &all[1]).await;
    becomes(["0", "1", "0"], ["valid", "ended", "valid"]).await;
    self::becomes(&stand, &second, &all, &[false, true, false]).await;
    revoke_task(&stand, &second, &task).await;
    becomes(["1", "1", "1"], ["ended", "ended", "ended"]).await;
    // The broker that minted none of them, and has no such service.
    self::becomes(&stand, &second, &all, &[true; 3]).await;
}

/// Whoever writes to Redis can stop the lists and revives nothing at the broker that minted; nor can they set a bit that is another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_was_tampered_with_revives_nothing() {
    let stand = Stand::with(Store::Redis, &vault()).await;
    let second = stand.second_broker().await;
    let redis = stand.redis.as_ref().unwrap();
    let (ended, alive) = (task(&stand).await, task(&stand).await);
    let mut all = minted(&stand, &ended, 2).await;
    all.extend(minted(&stand, &alive, 1).await);
    let name = redis.cli(&["zrange", "remit:placed", "0", "-1"]).await;
    let of_alive = name.lines().find(|name| name.starts_with(&*alive)).unwrap();
    // As if it were one of the other task.
    let forged = of_alive.replace(&alive, &ended);
    redis.cli(&["zadd", "remit:placed", "0", &forged, "0", &format!("{ended}:junk"), "0", "junk"]).await;
    revoke_task(&stand, &stand.broker, &ended).await;
    for at in [&stand.broker, &second] {
        becomes(&stand, at, &all, &[true, true, false]).await;
    }
    let lease = text(&claims(&all[2]), "jti");
    redis.cli(&["del", "remit:placed", &format!("remit:{{{alive}}}:lease:{alive}:{lease}")]).await;
    revoke_task(&stand, &second, &alive).await;
    becomes(&stand, &stand.broker, &all, &[true; 3]).await;
    // An index that is none is in doubt: no list is signed any more.
    redis.cli(&["set", "remit:placed", "junk"]).await;
    revoke_task(&stand, &second, &task(&stand).await).await;
    let iat = async || claims(&fetch(&stand, &stand.broker, "0").await.text)["iat"].as_i64().unwrap();
    let before = iat().await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(iat().await <= before + 1, "a list was signed over what nobody can believe");
}
