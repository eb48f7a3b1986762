//! What the broker knows to have ended holds, whatever the store forgets.

use reqwest::StatusCode;
use serde_json::json;
use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::support::{GIT_TOKEN, RESPONDER, Server, Stand, Store, VIEWER, wait_for};

/// What a store that was just told is expected to say.
async fn is_revoked(stand: &Stand, task: &str) -> bool {
    let shown = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await;
    shown.status == StatusCode::OK && shown.json()["state"] == "revoked"
}

fn replays(stand: &Stand) -> usize {
    stand.whole_audit().iter().filter(|line| line["event"] == "end_replayed").count()
}

/// The name of the end of a task in Redis.
fn end_of(task: &str) -> String {
    format!("remit:{{{task}}}:end:{task}")
}

/// Waits until the store is vouched for again.
async fn ready(stand: &Stand) {
    wait_for("the broker to be ready", || async {
        stand.client.get(stand.url("/readyz")).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK)
    })
    .await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("copied");
}

#[tokio::test]
async fn a_revoke_without_the_store_is_recorded_and_arrives() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, token) = stand.task_with_token().await;
    stand.redis.as_mut().unwrap().kill().await;
    let answer = stand.revoke(&task).await.expect(StatusCode::ACCEPTED);
    assert_eq!((&answer["state"], &answer["known"]), (&json!("revoking"), &json!(true)));
    // Nobody knows how soon the store answers: nothing is promised before the last credential has ended by itself.
    let by = |class: &str| {
        let reach = answer["reach"].as_array().unwrap().iter().find(|reach| reach["class"] == class);
        reach.unwrap_or_else(|| panic!("{class}"))["by"].clone()
    };
    for class in ["introspection", "status_list", "crl", "jwks_only"] {
        assert_eq!(by(class), answer["effective_by"], "{class}");
    }
    // Called again, it says the same of the same end.
    let again = stand.revoke(&task).await.expect(StatusCode::ACCEPTED);
    assert_eq!(again["state"], "revoking");
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));

    stand.redis.as_mut().unwrap().start_again().await;
    ready(&stand).await;
    assert!(is_revoked(&stand, &task).await, "told before anything is vouched for");
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    wait_for("it to be on record", || async { replays(&stand) == 1 }).await;
    // The first instants stand.
    let settled = stand.revoke(&task).await.expect(StatusCode::OK);
    let shown = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
    assert_eq!((&settled["state"], &shown["reason"]), (&json!("revoked"), &json!("a test says so")));
}

#[tokio::test]
async fn a_broker_killed_before_the_store_was_told_tells_it() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, token) = stand.task_with_token().await;
    stand.redis.as_mut().unwrap().kill().await;
    stand.revoke(&task).await.expect(StatusCode::ACCEPTED);
    stand.broker.child.kill().await.unwrap();
    stand.redis.as_mut().unwrap().start_again().await;
    let config = stand.broker.config.clone();
    stand.broker = Server::start(&config).await;
    assert!(is_revoked(&stand, &task).await);
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    wait_for("it to be on record", || async { replays(&stand) == 1 }).await;
}

/// Whoever can write to Redis, and a failover that loses the last writes, take the end of a task away.
#[tokio::test]
async fn an_end_that_redis_lost_is_told_again() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, token) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    let redis = stand.redis.as_ref().unwrap();
    assert_eq!(redis.cli(&["DEL", &end_of(&task)]).await.trim(), "1");
    // The broker that made the revoke denies at once, whatever the store says.
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    stand.mint(&task).await.refused(409, "task_not_active");
    // Another server in its place, or the same one from its files: told again before it is vouched for.
    let redis = stand.redis.as_mut().unwrap();
    redis.kill().await;
    redis.start_again().await;
    wait_for("the store to be told", || async { replays(&stand) == 1 }).await;
    ready(&stand).await;
    assert_eq!(stand.redis.as_ref().unwrap().cli(&["EXISTS", &end_of(&task)]).await.trim(), "1");
    let second = stand.second_broker().await;
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await, json!({"active": false}));
}

/// An older copy of the embedded file is put back, and what was dead in it lives no more than before.
#[tokio::test]
async fn an_older_copy_of_the_file_brings_nothing_back() {
    let mut stand = Stand::new(Store::Embedded).await;
    let (task, token) = stand.task_with_token().await;
    let (file, older): (PathBuf, PathBuf) = (stand.dir.path().join("remit.redb"), stand.dir.path().join("older.redb"));
    stand.broker.stop().await;
    copy(&file, &older);
    let config = stand.broker.config.clone();
    stand.broker = Server::start(&config).await;
    assert_eq!(stand.introspect(&token).await["active"], true);
    stand.revoke(&task).await.expect(StatusCode::OK);
    stand.broker.stop().await;
    copy(&older, &file);
    stand.broker = Server::start(&config).await;
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    stand.mint(&task).await.refused(409, "task_not_active");
    assert!(is_revoked(&stand, &task).await);
}

#[tokio::test]
async fn a_journal_is_one_brokers_own_and_whole() {
    let mut stand = Stand::new(Store::Embedded).await;
    let (task, _) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    stand.broker.stop().await;
    let path = stand.dir.path().join("broker-journal/revocations");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&task) && !text.contains(RESPONDER));
    let mut damaged = text.into_bytes();
    damaged[30] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"));
    let refused = command.args(["serve", "--config"]).arg(&stand.broker.config).output().await.unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("is damaged before its end"), "{said}");
}

/// What `remit task revoke` says and how it ends, so that no script takes a promise for the deed.
#[tokio::test]
async fn the_command_ends_as_what_may_have_to_be_waited_for() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, _) = stand.task_with_token().await;
    stand.redis.as_mut().unwrap().kill().await;
    let token = stand.dir.path().join("responder.token");
    std::fs::write(&token, RESPONDER).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let revoke = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"))
        .args(["task", "revoke", &task, "--reason", "a leak", "--url", &stand.broker.url])
        .env("REMIT_OPERATOR_TOKEN_FILE", &token)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(revoke.stdout).unwrap();
    assert!(said.contains("revoking: on record at this broker"), "{said}");
    assert_eq!(revoke.status.code(), Some(4));
}
