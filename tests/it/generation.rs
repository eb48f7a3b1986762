//! The generation: when it goes up, everything older is dead, everywhere; and it goes up when somebody says so, or when something was
//! put back to an earlier state.

use reqwest::{StatusCode, header};
use serde_json::{Value, json};
use std::{path::Path, process::Output, time::Duration};
use tokio::process::Command;

use remit::claims::CompressedList;

use crate::{
    both,
    support::{GIT_TOKEN, RESPONDER, Server, Stand, Store, claims, declaration, text, wait_for},
};

const FEED: &str = "/v1/revocations";

async fn recover(config: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
    command.env_clear().args(["recover", "--output", "json", "--config"]).arg(config).args(more);
    command.output().await.unwrap()
}

fn said(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn failed(output: &Output, code: i32, why: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && err.contains(why), "{:?} {err}", output.status);
}

/// What the feed of a broker says now.
async fn state(stand: &Stand, at: &Server, witness: Option<&str>) -> (Value, String) {
    let mut request = stand.client.get(format!("{}{FEED}?nonce=n", at.url));
    if let Some(witness) = witness {
        request = request.header("Remit-Last-State", witness);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let state = answer.text().await.unwrap();
    (claims(&state), state)
}

pub(crate) async fn generation(stand: &Stand, at: &Server) -> u64 {
    let answer = stand.client.get(format!("{}{FEED}?nonce=n", at.url)).send().await;
    match answer {
        Ok(answer) if answer.status() == StatusCode::OK => {
            claims(&answer.text().await.unwrap())["generation"].as_u64().unwrap()
        }
        _ => 0,
    }
}

async fn reaches(stand: &Stand, at: &Server, wanted: u64) {
    wait_for("the generation to go up", || async { generation(stand, at).await == wanted }).await;
}

/// Whether the status list of a token says that its task has ended.
async fn is_listed(stand: &Stand, token: &str) -> bool {
    let status = &claims(token)["status"]["status_list"];
    let answer = stand.client.get(text(status, "uri")).send().await.unwrap();
    let list: CompressedList =
        serde_json::from_value(claims(&answer.text().await.unwrap())["status_list"].clone()).unwrap();
    let place = usize::try_from(status["idx"].as_u64().unwrap()).unwrap();
    list.unpack().unwrap()[place / 8] >> (place % 8) & 1 == 1
}

/// Nobody waits for that record but whoever reads it.
pub(crate) async fn is_raised(stand: &Stand) {
    wait_for("the record of it", || async { !raised(stand).is_empty() }).await;
}

pub(crate) fn raised(stand: &Stand) -> Vec<Value> {
    stand.whole_audit().into_iter().filter(|line| line["event"] == "generation_entered").collect()
}

/// What was issued before is dead, and what is issued now lives.
async fn everything_older_is_dead(stand: &Stand, (task, token): &(String, String), now: u64) {
    assert_eq!(stand.introspect(token).await, json!({"active": false}));
    wait_for("the list to say so", || is_listed(stand, token)).await;
    stand.mint(task).await.refused(404, "not_found");
    let (_, new) = stand.task_with_token().await;
    assert_eq!(
        (&stand.introspect(&new).await["active"], &claims(&new)["urn:remit:task"]["generation"]),
        (&json!(true), &json!(now))
    );
    assert!(!is_listed(stand, &new).await);
}

pub(crate) fn entered(line: &Value) -> (u64, u64, &str) {
    (line["from"].as_u64().unwrap(), line["to"].as_u64().unwrap(), line["reason"].as_str().unwrap())
}

/// The state of a stream.
async fn first_event(answer: &mut reqwest::Response) -> Value {
    let mut read = String::new();
    while !read.contains("\n\n") {
        read.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
    }
    claims(read.lines().find_map(|line| line.strip_prefix("data: ")).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_run_go_over_and_everything_older_is_dead() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let key = [("Idempotency-Key", "retry-1")];
    let once = async || {
        let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).json(&declaration());
        let answer = request.header(key[0].0, key[0].1).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        text(&answer.json::<Value>().await.unwrap(), "task")
    };
    let (evidence, first) = (stand.evidence(), once().await);
    let before = stand.task_with_token().await;
    assert!(!is_listed(&stand, &before.1).await);
    let mut stream =
        stand.client.get(stand.url(FEED)).header(header::ACCEPT, "text/event-stream").send().await.unwrap();
    assert_eq!(first_event(&mut stream).await["generation"], 1);
    let answer = said(&recover(&stand.broker.config, &["--reason", "an old backup"]).await);
    assert_eq!((&answer["generation"], &answer["before"]), (&json!(2), &json!(1)));
    for broker in [&stand.broker, &second] {
        reaches(&stand, broker, 2).await;
        assert_eq!(stand.introspect_at(broker, GIT_TOKEN, &before.1).await, json!({"active": false}));
    }
    // Whoever follows is told, too.
    tokio::time::timeout(Duration::from_secs(20), async { while first_event(&mut stream).await["generation"] != 2 {} })
        .await
        .unwrap();
    everything_older_is_dead(&stand, &before, 2).await;
    // A retry of what is dead is a new task; reusable evidence still serves.
    assert_ne!(once().await, first);
    assert_eq!(stand.post("/v1/tasks", &evidence, declaration()).await.status, StatusCode::CREATED);
    assert_eq!(raised(&stand).iter().map(entered).collect::<Vec<_>>(), [(1, 2, "an old backup")]);
    // What was ended before stays on record for whoever asks by its id, and the task of before can be ended no other way.
    stand.revoke(&before.0).await.expect(StatusCode::OK);
    // A number that is not above it, and reasons that are none.
    failed(&recover(&stand.broker.config, &["--reason", "r", "--generation", "2"]).await, 2, "generation 2 already");
    failed(&recover(&stand.broker.config, &["--reason", ""]).await, 2, "--reason");
    failed(&recover(&stand.broker.config, &[]).await, 2, "--reason");
    let answer = said(&recover(&stand.broker.config, &["--reason", "r", "--generation", "9"]).await);
    assert_eq!(answer["generation"], 9);
    reaches(&stand, &second, 9).await;
}

#[tokio::test]
async fn an_embedded_store_is_recovered_while_it_is_closed() {
    let mut stand = Stand::new(Store::Embedded).await;
    let before = stand.task_with_token().await;
    let config = stand.broker.config.clone();
    failed(&recover(&config, &["--reason", "r"]).await, 1, "the store cannot be opened");
    stand.broker.stop().await;
    said(&recover(&config, &["--reason", "r"]).await);
    stand.broker = Server::start(&config).await;
    everything_older_is_dead(&stand, &before, 2).await;
    assert_eq!(raised(&stand).iter().map(entered).collect::<Vec<_>>(), [(1, 2, "r")]);
    // Once only.
    stand.restart_broker().await;
    assert_eq!((generation(&stand, &stand.broker).await, raised(&stand).len()), (2, 1));
}

/// A backup of an earlier generation is put back: nothing of it is believed, and a broker that starts on it leaves it behind.
#[tokio::test]
async fn a_store_of_an_earlier_generation_is_left_behind() {
    let mut stand = Stand::new(Store::Redis).await;
    let before = stand.task_with_token().await;
    let redis = stand.redis.as_ref().unwrap();
    let marker = redis.cli(&["GET", "remit:marker"]).await;
    said(&recover(&stand.broker.config, &["--reason", "r"]).await);
    reaches(&stand, &stand.broker, 2).await;
    redis.cli(&["SET", "remit:marker", marker.trim()]).await;
    wait_for("the store to be in doubt", || async {
        stand.client.get(stand.url("/readyz")).send().await.unwrap().status() == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    stand.declare(declaration()).await.refused(503, "temporarily_unavailable");
    stand.restart_broker().await;
    assert_eq!(generation(&stand, &stand.broker).await, 3);
    everything_older_is_dead(&stand, &before, 3).await;
    assert_eq!(entered(raised(&stand).last().unwrap()), (2, 3, "the store was put back to an earlier generation"));
    // Another store in its place knows nothing of what is dead.
    let before = stand.task_with_token().await;
    stand.redis.as_ref().unwrap().cli(&["FLUSHALL"]).await;
    stand.restart_broker().await;
    assert_eq!(generation(&stand, &stand.broker).await, 4);
    assert_eq!(stand.introspect(&before.1).await, json!({"active": false}));
}

both! {
    /// A verifier shows what it held last: a broker whose journal was put back to an earlier state has forgotten ends, nobody knows which.
    async fn a_witness_proves_that_a_journal_was_put_back(stand) {
        let mut stand = stand;
        let before = stand.task_with_token().await;
        let config = stand.broker.config.clone();
        stand.broker.stop().await;
        let journal = stand.dir.path().join("broker-journal/revocations");
        let older = std::fs::read(&journal).unwrap();
        stand.broker = Server::start(&config).await;
        let (task, _) = stand.task_with_token().await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        stand.restart_broker().await;
        let (held, witness) = state(&stand, &stand.broker, None).await;
        // What is not ahead, or not ours, says nothing.
        let unsigned = format!("{}.{}.{}", witness.split('.').next().unwrap(), witness.split('.').nth(1).unwrap(), "AAAA");
        for shown in [&witness, &unsigned, "x", "", &"a".repeat(8_000), before.1.as_str()] {
            let (seen, _) = state(&stand, &stand.broker, Some(shown)).await;
            assert_eq!(seen["generation"], 1, "{shown}");
        }
        stand.broker.stop().await;
        std::fs::write(&journal, &older).unwrap();
        stand.broker = Server::start(&config).await;
        let (alone, _) = state(&stand, &stand.broker, None).await;
        assert!(alone["generation"] == 1 && alone["sequence"].as_u64() < held["sequence"].as_u64(), "{alone} {held}");
        let (seen, _) = state(&stand, &stand.broker, Some(&witness)).await;
        assert_eq!(seen["generation"], 2);
        is_raised(&stand).await;
        assert_eq!(entered(raised(&stand).last().unwrap()), (1, 2, "a verifier has seen a later state of this broker's journal"));
        // Shown again, it says nothing more.
        assert_eq!(state(&stand, &stand.broker, Some(&witness)).await.0["generation"], 2);
        everything_older_is_dead(&stand, &before, 2).await;
        stand.post(&format!("/v1/tasks/{task}/revoke"), RESPONDER, json!({"reason": "r"})).await.expect(StatusCode::OK);
    }
}

/// Of several brokers that find themselves on another store, the first leaves behind what was before, and the others go along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_go_to_another_store_together() {
    let mut stand = Stand::new(Store::Redis).await;
    let mut second = stand.second_broker().await;
    stand.redis.as_ref().unwrap().cli(&["FLUSHALL"]).await;
    stand.restart_broker().await;
    assert_eq!(generation(&stand, &stand.broker).await, 2);
    let (_, token) = stand.task_with_token().await;
    let config = second.config.clone();
    second.stop().await;
    second = Server::start(&config).await;
    assert_eq!(generation(&stand, &second).await, 2);
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await["active"], true);
}
