//! Brokers on one store: where it may have lost something, none of them vouches for it before all have told it again.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{process::Command, time::sleep};

use crate::{
    both,
    followers::{Service, entries},
    generation::{entered, generation, is_raised, raised},
    support::{Answer, GIT_TOKEN, RESPONDER, Redis, Server, Stand, Store, declaration, wait_for},
};

/// Two brokers that know of each other, and give each other up after so many seconds.
async fn two(gone_after: u32) -> (Stand, Server) {
    let mut stand = Stand::new(Store::Redis).await;
    let mut second = stand.second_broker().await;
    for config in [&stand.broker.config, &second.config] {
        let text = std::fs::read_to_string(config).unwrap();
        let text = text.replace("[store]", &format!("[store]\nbroker_gone_after = {gone_after}"));
        std::fs::write(config, text).unwrap();
    }
    stand.restart_broker().await;
    restart(&mut second).await;
    for (of, other) in [(&stand.broker, &second), (&second, &stand.broker)] {
        wait_for("them to know of each other", || async { knows(of) == [name(other)] }).await;
    }
    (stand, second)
}

/// As one that was given another disk.
fn forget(broker: &Server) {
    std::fs::remove_dir_all(journal_of(broker)).unwrap();
}

async fn restart(broker: &mut Server) {
    let config = broker.config.clone();
    broker.stop().await;
    *broker = Server::start(&config).await;
}

fn journal_of(broker: &Server) -> PathBuf {
    broker.config.with_file_name(format!("{}-journal", stem(&broker.config)))
}

/// The lines of a broker's journal.
fn journal(of: &Server) -> Vec<Value> {
    let text = std::fs::read_to_string(journal_of(of).join("revocations")).unwrap();
    text.lines().filter_map(|line| serde_json::from_str(line.split_once(' ')?.1).ok()).collect()
}

fn stem(config: &Path) -> &str {
    config.file_stem().unwrap().to_str().unwrap()
}

/// What a broker calls itself.
fn name(of: &Server) -> String {
    let journal = journal(of);
    let opened = journal.iter().find_map(|line| line["opened"]["broker"].as_str());
    opened.unwrap().to_owned()
}

/// The brokers that it would wait for.
fn knows(of: &Server) -> Vec<String> {
    let journal = journal(of);
    let place = journal.iter().rev().find_map(|line| line.get("entered")).unwrap();
    let members = place.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
    members.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// A server that has what the stand's Redis has by now, and nothing that comes after.
async fn replica(stand: &Stand) -> Redis {
    let primary = stand.redis.as_ref().unwrap();
    let of = format!("127.0.0.1 {}", primary.port);
    let replica = Redis::start(&["--appendonly", "yes", "--appendfsync", "always", "--replicaof", &of]).await;
    wait_for("the replica", || async {
        let about = replica.cli(&["INFO", "replication"]).await;
        about.contains("master_link_status:up") && about.contains("master_sync_in_progress:0")
    })
    .await;
    // It has been cut off, as before every failover that loses something.
    replica.cli(&["REPLICAOF", "NO", "ONE"]).await;
    replica
}

/// The replica is where the primary was.
async fn promote(stand: &mut Stand, mut replica: Redis) {
    let port = stand.redis.as_ref().unwrap().port;
    replica.cli(&["CONFIG", "SET", "port", &port.to_string()]).await;
    replica.port = port;
    stand.redis = Some(replica);
}

async fn readiness(stand: &Stand, at: &Server) -> (StatusCode, Value) {
    let answer = stand.client.get(format!("{}/readyz", at.url)).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn ready(stand: &Stand, at: &Server) {
    wait_for("the broker to be ready", || async { readiness(stand, at).await.0 == StatusCode::OK }).await;
}

async fn revoke_at(stand: &Stand, at: &Server, task: &str) -> Answer {
    let path = format!("/v1/tasks/{task}/revoke");
    stand.call_at(at, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "r"}))).await
}

async fn signal(broker: &Server, signal: &str) {
    let pid = broker.child.id().unwrap().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
}

/// A primary dies, and the second broker is told of a revoke that nobody else hears of.
async fn revoked_in_a_journal_alone(stand: &mut Stand, second: &Server, task: &str) -> Redis {
    let replica = replica(stand).await;
    stand.redis.as_mut().unwrap().kill().await;
    let answer = revoke_at(stand, second, task).await.expect(StatusCode::ACCEPTED);
    assert_eq!(answer["state"], "revoking");
    replica
}

/// Waits until a broker says that it waits for that one.
async fn waits_for(stand: &Stand, at: &Server, whom: &str) {
    let expected = json!({"ready": false, "missing": ["store"], "waiting_for": [whom], "configuration": "current"});
    wait_for("it to wait", || async {
        readiness(stand, at).await == (StatusCode::SERVICE_UNAVAILABLE, expected.clone())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_is_waited_for_and_what_it_knew_holds() {
    let (mut stand, second) = two(60).await;
    let ((task, token), (_, other)) = (stand.task_with_token().await, stand.task_with_token().await);
    let service = Service::of(&stand.broker).await;
    service.says(&token).unwrap();
    let replica = revoked_in_a_journal_alone(&mut stand, &second, &task).await;
    signal(&second, "-STOP").await;
    promote(&mut stand, replica).await;
    waits_for(&stand, &stand.broker, &name(&second)).await;
    wait_for("the service to be stale", || async { service.says(&token).is_err() && service.says(&other).is_err() })
        .await;
    // Nothing changes by itself.
    for _ in 0..3 {
        assert_eq!(stand.introspect(&other).await, json!({"active": false}));
        stand.declare(declaration()).await.refused(503, "temporarily_unavailable");
        let state = stand.client.get(stand.url("/v1/revocations?nonce=n")).send().await.unwrap();
        assert_eq!(state.status(), StatusCode::SERVICE_UNAVAILABLE);
        let metrics = stand.client.get(stand.url("/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("\nremit_brokers_awaited 1\n") && metrics.contains("\nremit_ready 0\n"), "{metrics}");
        sleep(Duration::from_secs(1)).await;
    }
    // Its verifiers hear of it in the meantime: it is the other one's, and told as of then.
    signal(&second, "-CONT").await;
    for broker in [&stand.broker, &second] {
        ready(&stand, broker).await;
        assert_eq!(stand.introspect_at(broker, GIT_TOKEN, &token).await, json!({"active": false}));
        assert_eq!(stand.introspect_at(broker, GIT_TOKEN, &other).await["active"], true);
        assert!(entries(&stand, broker, "task").await.iter().any(|entry| entry["task"] == task.as_str()));
    }
    wait_for("the service", || async { service.says(&other).is_ok() }).await;
    service.says(&token).unwrap_err();
    assert_eq!((generation(&stand, &stand.broker).await, raised(&stand).len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_knew_that_is_gone_ends_with_its_generation() {
    let (mut stand, mut second) = two(5).await;
    let ((task, token), (_, other)) = (stand.task_with_token().await, stand.task_with_token().await);
    let service = Service::of(&stand.broker).await;
    let replica = revoked_in_a_journal_alone(&mut stand, &second, &task).await;
    let gone = name(&second);
    second.child.kill().await.unwrap();
    promote(&mut stand, replica).await;
    waits_for(&stand, &stand.broker, &gone).await;
    ready(&stand, &stand.broker).await;
    assert_eq!(generation(&stand, &stand.broker).await, 2);
    is_raised(&stand).await;
    let lines = raised(&stand);
    let (from, to, reason) = entered(&lines[0]);
    let expected = format!("{gone} is gone, and may have known of ends that the store has lost");
    assert_eq!((from, to, reason), (1, 2, expected.as_str()));
    for token in [&token, &other] {
        assert_eq!(stand.introspect(token).await, json!({"active": false}));
        service.says(token).unwrap_err();
    }
    let (_, new) = stand.task_with_token().await;
    assert_eq!(stand.introspect(&new).await["active"], true);
    wait_for("the service", || async { service.says(&new).is_ok() }).await;
    // It comes back, and everything goes on.
    let config = second.config.clone();
    second = Server::start(&config).await;
    for broker in [&stand.broker, &second] {
        ready(&stand, broker).await;
        assert_eq!(stand.introspect_at(broker, GIT_TOKEN, &new).await["active"], true);
    }
    assert_eq!((generation(&stand, &second).await, raised(&stand).len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_ended_in_order_is_not_waited_for() {
    let (mut stand, mut second) = two(60).await;
    let (_, token) = stand.task_with_token().await;
    // All have ended in order and Redis was restarted: whoever is started first waits for nobody.
    stand.broker.stop().await;
    second.stop().await;
    let redis = stand.redis.as_mut().unwrap();
    redis.cli(&["SHUTDOWN"]).await;
    redis.start_again().await;
    stand.broker = Server::start(&stand.broker.config.clone()).await;
    assert_eq!(knows(&stand.broker), Vec::<String>::new());
    second = Server::start(&second.config.clone()).await;
    wait_for("them to know of each other", || async { knows(&stand.broker) == [name(&second)] }).await;
    let replica = replica(&stand).await;
    second.stop().await;
    wait_for("it to have left", || async { knows(&stand.broker).is_empty() }).await;
    stand.redis.as_mut().unwrap().kill().await;
    promote(&mut stand, replica).await;
    let begun = Instant::now();
    ready(&stand, &stand.broker).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(stand.introspect(&token).await["active"], true);
    assert_eq!((generation(&stand, &stand.broker).await, raised(&stand).len()), (1, 0));
}

/// Restarts alone are nothing to wait for, in order or not, nor is one of Redis with all brokers there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_on_a_store_that_is_as_it_was_are_quick() {
    let (mut stand, mut second) = two(60).await;
    let (_, token) = stand.task_with_token().await;
    for kill in [false, true] {
        for broker in [&mut stand.broker, &mut second] {
            if kill {
                broker.child.kill().await.unwrap();
            } else {
                broker.stop().await;
            }
        }
        let begun = Instant::now();
        stand.broker = Server::start(&stand.broker.config.clone()).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(stand.introspect(&token).await["active"], true);
        second = Server::start(&second.config.clone()).await;
        for (of, other) in [(&stand.broker, &second), (&second, &stand.broker)] {
            wait_for("them to know of each other", || async { knows(of) == [name(other)] }).await;
        }
    }
    let redis = stand.redis.as_mut().unwrap();
    redis.kill().await;
    redis.start_again().await;
    let begun = Instant::now();
    for broker in [&stand.broker, &second] {
        ready(&stand, broker).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((generation(&stand, &second).await, raised(&stand).len()), (1, 0));
    // One that dies while Redis does is back in time.
    let redis = stand.redis.as_mut().unwrap();
    redis.kill().await;
    second.child.kill().await.unwrap();
    stand.redis.as_mut().unwrap().start_again().await;
    waits_for(&stand, &stand.broker, &name(&second)).await;
    second = Server::start(&second.config.clone()).await;
    ready(&stand, &stand.broker).await;
    assert_eq!((generation(&stand, &second).await, raised(&stand).len()), (1, 0));
}

/// What is dead a broker that joins hears from one that knows, whatever somebody has taken out of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_joins_takes_over_what_is_dead() {
    let stand = Stand::new(Store::Redis).await;
    let mut revoked = Vec::new();
    for _ in 0..300 {
        let (task, token) = stand.task_with_token().await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        revoked.push((task, token));
    }
    let (_, other) = stand.task_with_token().await;
    let redis = stand.redis.as_ref().unwrap();
    redis.cli(&["DEL", "remit:ends"]).await;
    for (task, _) in &revoked {
        redis.cli(&["DEL", &format!("remit:{{{task}}}:end:{task}")]).await;
    }
    let second = stand.second_broker().await;
    let told = entries(&stand, &second, "task").await;
    for (task, token) in &revoked {
        assert!(told.iter().any(|entry| entry["task"] == task.as_str()), "{task}");
        assert_eq!(stand.introspect_at(&second, GIT_TOKEN, token).await, json!({"active": false}));
    }
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &other).await["active"], true);
    assert_eq!((generation(&stand, &second).await, raised(&stand).len()), (1, 0));
}

const NOBODY_KNOWS: &str = "a broker came with an empty journal, and no other is there that knows what is dead";

both! {
    async fn where_nobody_knows_what_is_dead_everything_older_is(mut stand) {
        let (_, token) = stand.task_with_token().await;
        stand.broker.stop().await;
        forget(&stand.broker);
        stand.broker = Server::start(&stand.broker.config.clone()).await;
        assert_eq!(raised(&stand).iter().map(entered).collect::<Vec<_>>(), [(1, 2, NOBODY_KNOWS)]);
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        let (_, new) = stand.task_with_token().await;
        assert_eq!(stand.introspect(&new).await["active"], true);
        // From then on it knows.
        stand.restart_broker().await;
        assert_eq!((generation(&stand, &stand.broker).await, raised(&stand).len()), (2, 1));
    }
}

/// Several that know nothing do not wait for each other, and leave it behind once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_have_forgotten_they_begin_anew_together() {
    let (mut stand, mut second) = two(60).await;
    let (_, token) = stand.task_with_token().await;
    for broker in [&mut stand.broker, &mut second] {
        broker.stop().await;
        forget(broker);
    }
    let configs = [stand.broker.config.clone(), second.config.clone()];
    (stand.broker, second) = tokio::join!(Server::start(&configs[0]), Server::start(&configs[1]));
    for broker in [&stand.broker, &second] {
        assert_eq!(generation(&stand, broker).await, 2);
        assert_eq!(stand.introspect_at(broker, GIT_TOKEN, &token).await, json!({"active": false}));
    }
    // One that has forgotten alone hears it from the other.
    let (task, token) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    second.stop().await;
    forget(&second);
    second = Server::start(&configs[1]).await;
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await, json!({"active": false}));
    assert_eq!(generation(&stand, &second).await, 2);
}

/// A broker that was cut off, or hung, reads what the others have logged meanwhile; and finds out where somebody has taken it away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_out_of_the_log_shows_and_is_asked_for() {
    let (stand, second) = two(60).await;
    sleep(Duration::from_secs(3)).await;
    let ((task, token), (_, other)) = (stand.task_with_token().await, stand.task_with_token().await);
    signal(&stand.broker, "-STOP").await;
    revoke_at(&stand, &second, &task).await.expect(StatusCode::OK);
    // It says on the roll what it has logged.
    sleep(Duration::from_secs(3)).await;
    let redis = stand.redis.as_ref().unwrap();
    assert_eq!(redis.cli(&["DEL", "remit:ends", &format!("remit:{{{task}}}:end:{task}")]).await.trim(), "2");
    signal(&stand.broker, "-CONT").await;
    wait_for("it to be known", || async { stand.introspect(&token).await == json!({"active": false}) }).await;
    wait_for("the others", || async { stand.introspect(&other).await["active"] == true }).await;
    assert!(entries(&stand, &stand.broker, "task").await.iter().any(|entry| entry["task"] == task.as_str()));
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    let said = std::fs::read_to_string(stand.broker.config.with_extension("stderr")).unwrap();
    assert!(said.contains("something was taken out of the store's log"), "{said}");
    assert_eq!((generation(&stand, &stand.broker).await, raised(&stand).len()), (1, 0));
}

/// Where nobody can be asked any more, nobody knows what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_away_of_one_that_is_gone_ends_with_its_generation() {
    let (stand, mut second) = two(5).await;
    sleep(Duration::from_secs(3)).await;
    let (task, token) = stand.task_with_token().await;
    signal(&stand.broker, "-STOP").await;
    revoke_at(&stand, &second, &task).await.expect(StatusCode::OK);
    sleep(Duration::from_secs(3)).await;
    let gone = name(&second);
    second.child.kill().await.unwrap();
    let redis = stand.redis.as_ref().unwrap();
    redis.cli(&["DEL", "remit:ends", &format!("remit:{{{task}}}:end:{task}")]).await;
    signal(&stand.broker, "-CONT").await;
    wait_for("the generation to go up", || async { generation(&stand, &stand.broker).await == 2 }).await;
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    let expected = format!("the store's log lacks something that {gone} had logged, which is gone");
    is_raised(&stand).await;
    assert_eq!(raised(&stand).iter().map(entered).collect::<Vec<_>>(), [(1, 2, expected.as_str())]);
    ready(&stand, &stand.broker).await;
}

/// Who puts back what a broker said before keeps it from vouching, and the others from nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_says_cannot_be_put_back() {
    let (stand, second) = two(60).await;
    let (redis, name) = (stand.redis.as_ref().unwrap(), name(&second));
    let older = redis.cli(&["HGET", "remit:members", &name]).await;
    let fresh = async |at: &Server| {
        stand.client.get(format!("{}/v1/revocations?nonce=n", at.url)).send().await.unwrap().status() == StatusCode::OK
    };
    assert!(fresh(&second).await);
    redis.cli(&["HSET", "remit:members", &name, &older]).await;
    assert!(!fresh(&second).await && fresh(&stand.broker).await);
    assert!(fresh(&second).await);
    redis.cli(&["HSET", "remit:members", &name, "x"]).await;
    assert!(!fresh(&second).await && fresh(&stand.broker).await);
}

/// A broker whose word is put back again and again knows it, and says of nothing that everybody has heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_kept_from_the_others_promises_nothing() {
    let (stand, second) = two(60).await;
    let ((task, _), (_, token)) = (stand.task_with_token().await, stand.task_with_token().await);
    let (redis, name) = (stand.redis.as_ref().unwrap(), name(&second));
    let older = redis.cli(&["HGET", "remit:members", &name]).await;
    let port = redis.port.to_string();
    let mut putting_back = Command::new("redis-cli")
        .args(["-p", &port, "-r", "-1", "-i", "0.01", "HSET", "remit:members", &name, &older])
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    wait_for("it to know", || async { revoke_at(&stand, &second, &task).await.status == StatusCode::ACCEPTED }).await;
    let answer = revoke_at(&stand, &second, &task).await.expect(StatusCode::ACCEPTED);
    assert_eq!(answer["state"], "revoking");
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await, json!({"active": false}));
    let declare =
        async || stand.call_at(&second, Method::POST, "/v1/tasks", Some(&stand.evidence()), Some(declaration())).await;
    declare().await.refused(503, "temporarily_unavailable");
    assert_eq!(stand.introspect_at(&stand.broker, GIT_TOKEN, &token).await["active"], true);
    putting_back.kill().await.unwrap();
    wait_for("its word to stand", || async { declare().await.status == StatusCode::CREATED }).await;
    assert_eq!(revoke_at(&stand, &second, &task).await.expect(StatusCode::OK)["state"], "revoked");
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await["active"], true);
}
