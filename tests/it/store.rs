//! The store is not trusted, and may be out of reach: then nothing is minted and nothing verifies.

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

use crate::support::{Answer, GIT, RESPONDER, Redis, Stand, Store, VIEWER, declaration, wait_for, write_config};

async fn ready(stand: &Stand) -> (StatusCode, Value) {
    let answer = stand.client.get(stand.url("/readyz")).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_out_of_reach_is_503_and_inactive() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, token) = stand.task_with_token().await;
    assert_eq!(
        ready(&stand).await,
        (StatusCode::OK, json!({"ready": true, "missing": [], "configuration": "current"}))
    );
    stand.redis.as_mut().unwrap().kill().await;
    let bounded = async {
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        let answer = stand.declare(declaration()).await;
        assert!(answer.headers.contains_key("retry-after"));
        answer.refused(503, "temporarily_unavailable");
        stand.mint(&task).await.refused(503, "temporarily_unavailable");
        // A revoke alone is more than the store: it is on record here, and arrives.
        assert_eq!(stand.revoke(&task).await.expect(StatusCode::ACCEPTED)["state"], "revoking");
        stand.get("/v1/tasks", VIEWER).await.refused(503, "temporarily_unavailable");
        assert_eq!(
            ready(&stand).await,
            (
                StatusCode::SERVICE_UNAVAILABLE,
                json!({"ready": false, "missing": ["store"], "configuration": "current"})
            )
        );
        // Keys are public and outlive the store.
        let keys: Value = stand.client.get(stand.url("/jwks")).send().await.unwrap().json().await.unwrap();
        assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
    };
    tokio::time::timeout(Duration::from_secs(60), bounded).await.expect("answers come in bounded time");
    stand.redis.as_mut().unwrap().start_again().await;
    crate::support::wait_for("the broker's connection", || async { ready(&stand).await.0 == StatusCode::OK }).await;
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    let (_, other) = stand.task_with_token().await;
    assert_eq!(stand.introspect(&other).await["active"], true);
    assert_eq!(stand.revoke(&task).await.expect(StatusCode::OK)["state"], "revoked");
}

/// A store that forgot everything is not the one that was opened: nothing is minted on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_store_denies() {
    let stand = Stand::new(Store::Redis).await;
    let (task, token) = stand.task_with_token().await;
    stand.redis.as_ref().unwrap().cli(&["flushall"]).await;
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    assert_ne!(stand.mint(&task).await.status, StatusCode::OK);
    assert_eq!(ready(&stand).await.0, StatusCode::SERVICE_UNAVAILABLE);
    // Nothing new is put on it either.
    stand.declare(declaration()).await.refused(503, "temporarily_unavailable");
    // Nor does a revoke that this store would keep answer that all is well: the real one may come back, and is told then.
    assert_eq!(stand.revoke(&task).await.expect(StatusCode::ACCEPTED)["state"], "revoking");
}

/// Whoever writes to Redis can stop the service, but not widen, move or forge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_tampered_with_is_refused() {
    let stand = Stand::new(Store::Redis).await;
    let redis = stand.redis.as_ref().unwrap();
    let (victim, token) = stand.task_with_token().await;
    let (other, _) = stand.task_with_token().await;
    let key = async |task: &str| redis.cli(&["keys", &format!("*:task:{task}")]).await;
    let genuine = redis.cli(&["get", &key(&victim).await]).await;
    let foreign = redis.cli(&["get", &key(&other).await]).await;
    for altered in [
        genuine.replace("acme/payments", "acme/anything"),
        genuine.replace("\"write\"", "\"secret\""),
        foreign,
        "x".into(),
        String::new(),
    ] {
        redis.cli(&["set", &key(&victim).await, &altered]).await;
        assert_eq!(stand.introspect(&token).await, json!({"active": false}), "{altered}");
        stand.mint(&victim).await.refused(503, "temporarily_unavailable");
    }
    redis.cli(&["set", &key(&victim).await, &genuine]).await;
    assert_eq!(stand.introspect(&token).await["active"], true);
    // A lease that is deleted, or another's under its name, is no lease.
    let leases = redis.cli(&["keys", &format!("*:lease:{victim}:*")]).await;
    redis.cli(&["rename", &leases, "aside"]).await;
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
}

/// A store that could forget is refused at start, in a sentence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsafe_redis_is_refused_at_start() {
    let safe = Redis::start(&["--appendonly", "yes"]).await;
    let replica_of = format!("127.0.0.1 {}", safe.port);
    let table: &[(&[&str], &str)] = &[
        (&["--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"], "noeviction"),
        (&["--appendonly", "no"], "appendonly"),
        (&["--appendonly", "yes", "--replicaof", &replica_of], "replica"),
    ];
    for (arguments, expected) in table {
        let redis = Redis::start(arguments).await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ci-keys.json"), crate::support::Issuer::new().jwks().to_string()).unwrap();
        let config = write_config(dir.path(), "broker", &redis.url(), "");
        let output =
            tokio::process::Command::new(env!("CARGO_BIN_EXE_remit")).args(["serve", "--config"]).arg(&config).output();
        let output = tokio::time::timeout(Duration::from_secs(20), output).await.expect("it does not start").unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(expected), "{arguments:?}: {text}");
    }
}

/// Another MAC key is another organisation's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_another_store_key_does_not_start() {
    let stand = Stand::new(Store::Redis).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(stand.dir.path().join("ci-keys.json"), dir.path().join("ci-keys.json")).unwrap();
    let config = write_config(dir.path(), "other", &stand.redis.as_ref().unwrap().url(), "");
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"))
        .args(["serve", "--config"])
        .arg(&config)
        .output()
        .await
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("store.key"), "{output:?}");
}

/// No verifier meets a token whose key it cannot know: a broker that joins others publishes its keys and waits as long as
/// verifiers may keep the set that they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_joins_waits_until_its_keys_are_known() {
    let stand = Stand::new(Store::Redis).await;
    let config = write_config(stand.dir.path(), "second", &stand.redis.as_ref().unwrap().url(), "");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("jwks_max_age = 1", "jwks_max_age = 4")).unwrap();
    let jwks = async || stand.client.get(stand.url("/jwks")).send().await.unwrap().json::<Value>().await.unwrap();
    let before = jwks().await["keys"].as_array().unwrap().len();

    let started = std::time::Instant::now();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"));
    command.args(["serve", "--config"]).arg(&config).env("REMIT_LOG", "warn").kill_on_drop(true);
    let url = text.split('"').nth(1).unwrap().to_owned();
    let mut child = command.spawn().unwrap();
    let ready = async || {
        let answer = stand.client.get(format!("{url}/readyz")).send().await.ok()?;
        Some((answer.status().as_u16(), answer.json::<Value>().await.unwrap()["missing"].clone()))
    };
    wait_for("the listener", || async { ready().await.is_some() }).await;
    assert_eq!(ready().await, Some((503, json!(["keys"]))));
    // The others publish its keys already; what it would sign, it does not. It still revokes and answers.
    assert_eq!(jwks().await["keys"].as_array().unwrap().len(), before + 2);
    let (task, token) = stand.task_with_token().await;
    let second = |path: &str| format!("{url}{path}");
    let evidence = stand.issuer.evidence(&url, json!({}));
    let post = async |path: &str, bearer: &str, body: Value| {
        Answer::of(stand.client.post(second(path)).bearer_auth(bearer).json(&body).send().await.unwrap()).await
    };
    post("/v1/tasks", &evidence, declaration()).await.refused(503, "temporarily_unavailable");
    let credentials = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
    let mint = format!("/v1/tasks/{task}/credentials");
    post(&mint, &evidence, credentials.clone()).await.refused(503, "temporarily_unavailable");
    assert_eq!(stand.introspect(&token).await["active"], true);
    post(&format!("/v1/tasks/{task}/revoke"), RESPONDER, json!({"reason": "r"})).await.expect(StatusCode::OK);
    // Starting again in between does not shorten it.
    child.kill().await.unwrap();
    let mut child = command.spawn().unwrap();
    wait_for("its keys", || async { ready().await.is_some_and(|(status, _)| status == 200) }).await;
    assert!(started.elapsed() >= std::time::Duration::from_secs(4), "{:?}", started.elapsed());
    post("/v1/tasks", &evidence, declaration()).await.expect(StatusCode::CREATED);
    // And once they are known, there is nothing to wait for.
    child.kill().await.unwrap();
    let _child = command.spawn().unwrap();
    wait_for("the listener", || async { ready().await.is_some() }).await;
    assert_eq!(ready().await, Some((200, json!([]))));
}
