//! Whether the process lives, and what it lacks: on its own listener as well.

use reqwest::StatusCode;
use serde_json::{Value, json};

use futures_util::future::join_all;
use std::time::{Duration, Instant};

use crate::support::{Stand, Store, client, free_port, write_config};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_has_a_listener_of_its_own_and_nothing_else_is_there() {
    let stand = Stand::new(Store::Embedded).await;
    let port = free_port();
    let config = write_config(stand.dir.path(), "probed", "redb:probed.redb", "");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[store]", &format!("ops = \"127.0.0.1:{port}\"\n[store]"))).unwrap();
    let _server = crate::support::Server::start(&config).await;
    let get = async |path: &str| client().get(format!("http://127.0.0.1:{port}{path}")).send().await.unwrap();
    assert_eq!(get("/healthz").await.json::<Value>().await.unwrap(), json!({"status": "ok"}));
    assert_eq!(
        get("/readyz").await.json::<Value>().await.unwrap(),
        json!({"ready": true, "missing": [], "configuration": "current"})
    );
    assert!(get("/metrics").await.text().await.unwrap().contains("remit_ready 1\n"));
    for path in ["/v1/tasks", "/oauth2/token", "/jwks", "/"] {
        assert_eq!(get(path).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

/// However many ask whether the broker is ready, which anybody may: the store is asked for all of them together, and a revoke, which
/// looks at the store as well, does not wait behind each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_probes_are_one_look_at_the_store() {
    let stand = Stand::new(Store::Redis).await;
    stand.redis.as_ref().unwrap().hang().await;
    let begun = Instant::now();
    let probes = (0..60).map(|_| stand.client.get(stand.url("/readyz")).send());
    for answer in join_all(probes).await {
        assert_eq!(answer.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
