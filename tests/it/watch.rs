//! Watching a task: an agent learns of its own end at once, on whichever broker it was made.

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::timeout;

use crate::{
    both,
    support::{Answer, GIT_TOKEN, Server, Stand, Store, VIEWER, declaration, now, text},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream of server-sent events.
struct Watch {
    response: reqwest::Response,
    buffer: String,
}

impl Watch {
    async fn open(stand: &Stand, at: &Server, task: &str, bearer: &str) -> Result<Self, Answer> {
        let request = stand.client.get(format!("{}/v1/tasks/{task}", at.url)).bearer_auth(bearer);
        let response = request.header("accept", "text/event-stream").send().await.expect("an answer");
        if response.status() != StatusCode::OK {
            return Err(Answer::of(response).await);
        }
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            (header("content-type").as_str(), header("cache-control").as_str()),
            ("text/event-stream", "no-cache")
        );
        assert_eq!(header("x-request-id").len(), 32);
        Ok(Self { response, buffer: String::new() })
    }

    /// The next event's data; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        timeout(PATIENCE, async {
            loop {
                if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                    let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
                    let (kind, data) = (line("event: "), line("data: "));
                    self.buffer = rest.to_owned();
                    if let Some(data) = data {
                        assert_eq!(kind.as_deref(), Some("task"));
                        return Some(serde_json::from_str(&data).expect("JSON"));
                    }
                    continue;
                }
                let chunk = self.response.chunk().await.expect("a whole stream")?;
                self.buffer.push_str(std::str::from_utf8(&chunk).expect("text"));
            }
        })
        .await
        .expect("an event in time")
    }
}

both! {
    async fn every_change_is_told_and_the_end_is_the_last(stand) {
        let (task, _) = stand.task_with_token().await;
        let shown = stand.get(&format!("/v1/tasks/{task}"), &stand.evidence()).await.expect(StatusCode::OK);
        let mut own = Watch::open(&stand, &stand.broker, &task, &stand.evidence()).await.ok().unwrap();
        let mut operator = Watch::open(&stand, &stand.broker, &task, VIEWER).await.ok().unwrap();
        assert_eq!((own.next().await, operator.next().await), (Some(shown.clone()), Some(shown)));
        // What changes nothing is not told.
        stand.mint(&task).await.expect(StatusCode::OK);
        stand.task_with_token().await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let renewed = stand.post(&format!("/v1/tasks/{task}/renew"), &stand.evidence(), json!({"ttl": 600})).await.expect(StatusCode::OK);
        for watch in [&mut own, &mut operator] {
            let event = watch.next().await.unwrap();
            assert_eq!((&event["state"], &event["expires_at"]), (&json!("active"), &renewed["expires_at"]));
        }
        stand.revoke(&task).await.expect(StatusCode::OK);
        for watch in [&mut own, &mut operator] {
            let event = watch.next().await.unwrap();
            assert_eq!((&event["state"], &event["reason"]), (&json!("revoked"), &json!("a test says so")));
            assert_eq!(watch.next().await, None);
        }
        // Of one that has ended there is one thing to tell.
        let mut late = Watch::open(&stand, &stand.broker, &task, VIEWER).await.ok().unwrap();
        assert_eq!(late.next().await.unwrap()["state"], "revoked");
        assert_eq!(late.next().await, None);
    }

    async fn a_deadline_that_passes_is_told(stand) {
        let mut declaration = declaration();
        declaration["ttl"] = json!(2);
        let task = text(&stand.declare(declaration).await.expect(StatusCode::CREATED), "task");
        let mut watch = Watch::open(&stand, &stand.broker, &task, &stand.evidence()).await.ok().unwrap();
        assert_eq!(watch.next().await.unwrap()["state"], "active");
        assert_eq!(watch.next().await.unwrap()["state"], "expired");
        assert_eq!(watch.next().await, None);
    }

    async fn who_may_not_see_it_may_not_watch_it(stand) {
        let (task, token) = stand.task_with_token().await;
        let refused = async |task: &str, bearer: &str| Watch::open(&stand, &stand.broker, task, bearer).await.err().unwrap();
        refused(&task, &stand.other_instance()).await.refused(404, "not_found");
        refused("task_01jd0000000000000000000000", &stand.evidence()).await.refused(404, "not_found");
        refused(&task, GIT_TOKEN).await.refused(403, "policy_denied");
        for nobody in ["garbage", &token] {
            refused(&task, nobody).await.refused(401, "evidence_invalid");
        }
        // Nor longer than the evidence lasts.
        let short = stand.issuer.evidence(&stand.broker.url, json!({"exp": now() + 3}));
        let mut watch = Watch::open(&stand, &stand.broker, &task, &short).await.ok().unwrap();
        assert_eq!(watch.next().await.unwrap()["state"], "active");
        assert_eq!(watch.next().await, None);
    }

    /// Connections on which nothing happens are closed; one that is told of nothing for a while is none of them.
    async fn a_quiet_stream_stays_and_ends_with_the_broker(stand) {
        let (task, _) = stand.task_with_token().await;
        let mut watch = Watch::open(&stand, &stand.broker, &task, &stand.evidence()).await.ok().unwrap();
        assert_eq!(watch.next().await.unwrap()["state"], "active");
        assert!(timeout(Duration::from_secs(12), watch.next()).await.is_err(), "nothing has changed");
        let mut stand = stand;
        let begun = Instant::now();
        stand.broker.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(8), "the broker waits for those who watch: {:?}", begun.elapsed());
        assert_eq!(watch.next().await, None);
    }

    async fn not_everybody_can_watch_at_once(stand) {
        let (task, _) = stand.task_with_token().await;
        let mut watches = Vec::new();
        let refused = loop {
            match Watch::open(&stand, &stand.broker, &task, VIEWER).await {
                Ok(watch) => watches.push(watch),
                Err(refused) => break refused,
            }
        };
        assert_eq!(watches.len(), 128);
        refused.refused(429, "quota_exceeded");
        // Everything else goes on, and room is free again as soon as one goes.
        stand.mint(&task).await.expect(StatusCode::OK);
        watches.truncate(100);
        crate::support::wait_for("room", || async { Watch::open(&stand, &stand.broker, &task, VIEWER).await.is_ok() }).await;
    }
}

/// A hint, not a look now and then, is what makes it at once; without hints it is seen all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_on_another_broker_is_told_at_once() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let mut told = Vec::new();
    for _ in 0..5 {
        let (task, _) = stand.task_with_token().await;
        let evidence = stand.evidence();
        let mut watch = Watch::open(&stand, &second, &task, &evidence).await.ok().unwrap();
        assert_eq!(watch.next().await.unwrap()["state"], "active");
        stand.revoke(&task).await.expect(StatusCode::OK);
        let begun = Instant::now();
        assert_eq!(watch.next().await.unwrap()["state"], "revoked");
        told.push(begun.elapsed());
    }
    // A look every two seconds would not do this five times.
    assert!(told.iter().sum::<Duration>() < Duration::from_secs(2), "{told:?}");

    let redis = stand.redis.as_ref().unwrap();
    let (task, _) = stand.task_with_token().await;
    let mut watch = Watch::open(&stand, &second, &task, VIEWER).await.ok().unwrap();
    assert_eq!(watch.next().await.unwrap()["state"], "active");
    assert_eq!(redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await, "2", "a connection for hints of each broker");
    stand.revoke(&task).await.expect(StatusCode::OK);
    assert_eq!(watch.next().await.unwrap()["state"], "revoked");
    // Anybody can publish anything: it is a hint.
    let (task, _) = stand.task_with_token().await;
    let mut watch = Watch::open(&stand, &second, &task, VIEWER).await.ok().unwrap();
    assert_eq!(watch.next().await.unwrap()["state"], "active");
    for junk in [task.as_str(), "junk", ""] {
        redis.cli(&["PUBLISH", "remit:changes", junk]).await;
    }
    assert!(timeout(Duration::from_secs(3), watch.next()).await.is_err(), "nothing has changed");
}
