//! Shared Signals and webhooks: a receiver checks what it is told with the libraries that it would use. It hears of every end, in order,
//! whoever dies meanwhile; and nothing waits for it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::process::{Child, Command as Process};

use crate::{
    rs256::make,
    support::{
        ADMIN, GIT_TOKEN, Issuer, RESPONDER, Server, Stand, Store, VIEWER, declaration, made, pki::Authority, text,
        time, wait_for, write_config,
    },
};

const SESSION_REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";
const AUDIENCE: &str = "https://siem.example.com/ssf";
pub(crate) const RECEIVER_TOKEN: &str = "siem-receiver-token";
const AUTHORIZATION: &str = "Bearer what-the-receiver-knows-us-by-5f1c";

/// A receiver, which can go away and come again on its port.
struct Receiver {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Receiver {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory")).await
    }

    async fn start_in(dir: tempfile::TempDir) -> Self {
        let mut receiver = Self { dir, child: None };
        receiver.answer(json!({"status": 202}));
        receiver.begin().await;
        receiver
    }

    async fn begin(&mut self) {
        let mut command = Process::new(made("target/venv/bin/python"));
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/receiver.py"));
        command.arg(self.dir.path()).arg(AUDIENCE).env("no_proxy", "*").stdin(Stdio::null()).kill_on_drop(true);
        self.child = Some(command.spawn().expect("python"));
        wait_for("the receiver", || async {
            let port = fs::read_to_string(self.dir.path().join("port")).unwrap_or_default();
            tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.is_ok()
        })
        .await;
    }

    async fn end(&mut self) {
        self.child.take().expect("it runs").kill().await.expect("killed");
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/events", fs::read_to_string(self.dir.path().join("port")).expect("a port"))
    }

    /// How it answers from now on.
    #[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
    fn answer(&self, answer: Value) {
        let aside = self.dir.path().join("answer.new");
        fs::write(&aside, answer.to_string()).expect("written");
        fs::rename(aside, self.dir.path().join("answer.json")).expect("renamed");
    }

    /// Everything that it was told, in order.
    fn heard(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("heard")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The tasks that it was told of, in order, each time; all of what it was told is genuine.
    fn tasks(&self) -> Vec<String> {
        let heard = self.heard();
        assert!(heard.iter().all(|said| said["invalid"].is_null()), "{heard:?}");
        heard.iter().filter_map(|said| said["claims"]["sub_id"]["sub"].as_str().map(str::to_owned)).collect()
    }

    async fn hears(&self, count: usize) -> Vec<Value> {
        wait_for(&format!("what receivers are told, {count} times"), || async { self.heard().len() >= count }).await;
        self.heard()
    }

    /// The end of a configuration with this receiver.
    fn config(&self, name: &str, more: &str) -> String {
        format!("[[receiver]]\nname = \"{name}\"\naudience = \"{AUDIENCE}\"\nurl = \"{}\"\n{more}\n", self.url())
    }

    /// A stand whose configuration ends with this.
    async fn stand(&self, store: Store, extra: &str) -> Stand {
        let stand = Stand::with(store, extra).await;
        fs::write(self.dir.path().join("issuer"), &stand.broker.url).expect("written");
        stand
    }
}

fn caep(receiver: &Receiver) -> String {
    receiver.config(
        "siem",
        &format!("type = \"caep\"\ntoken_sha256 = [\"{}\"]", remit::id::sha256_hex(RECEIVER_TOKEN.as_bytes())),
    )
}

/// The end of a configuration with a receiver that asks.
pub(crate) fn polls() -> String {
    let token = remit::id::sha256_hex(RECEIVER_TOKEN.as_bytes());
    format!(
        "\n[[receiver]]\nname = \"archive\"\ntype = \"caep\"\naudience = \"{AUDIENCE}\"\ndelivery = \"poll\"\ntoken_sha256 = [\"{token}\"]\n"
    )
}

async fn task(stand: &Stand) -> String {
    stand.task_with_token().await.0
}

/// Tasks that were revoked, in order.
async fn revoked(stand: &Stand, count: usize) -> Vec<String> {
    let mut tasks = Vec::new();
    for _ in 0..count {
        let task = task(stand).await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        tasks.push(task);
    }
    tasks
}

/// The records of what receivers were told.
fn signalled(stand: &Stand) -> Vec<Value> {
    stand.whole_audit().into_iter().filter(|line| line["event"] == "signalled").collect()
}

async fn is_signalled(stand: &Stand, count: usize) -> Vec<Value> {
    wait_for("what is on record of signals", || async { signalled(stand).len() >= count }).await;
    signalled(stand)
}

fn reach(answer: &Value, class: &str) -> Option<Value> {
    answer["reach"].as_array().expect("reach").iter().find(|reach| reach["class"] == class).cloned()
}

/// One sample of `/metrics`.
async fn metric(stand: &Stand, sample: &str) -> Option<u64> {
    let text = stand.client.get(stand.url("/metrics")).send().await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
}

/// Tests over both stores, which they start behind a receiver.
macro_rules! on_both {
    ($($(#[$doc:meta])* async fn $name:ident($store:ident) $body:block)+) => {
        $($(#[$doc])* async fn $name($store: Store) $body)+
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Store::Embedded).await; })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Store::Redis).await; })+
        }
    };
}

on_both! {
    async fn a_receiver_hears_of_a_revoke(store) {
        let receiver = Receiver::start().await;
        let secret = receiver.dir.path().join("receiver.token");
        fs::write(&secret, AUTHORIZATION).unwrap();
        fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        crate::support::secrets::note("what a receiver is told with", &AUTHORIZATION.as_bytes()["Bearer ".len()..]);
        let config = caep(&receiver) + &format!("authorization_file = \"{}\"\n", secret.display());
        let stand = receiver.stand(store, &config).await;
        let (done, gone) = (task(&stand).await, task(&stand).await);
        stand.post(&format!("/v1/tasks/{done}/complete"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        let answer = stand.revoke(&gone).await.expect(StatusCode::OK);
        // It is told after the answer: nothing waits for it, and nobody promises when it has heard.
        assert_eq!(reach(&answer, "shared_signals").unwrap()["by"], reach(&answer, "jwks_only").unwrap()["by"]);
        assert!(time(&answer, "effective_by") < time(&reach(&answer, "jwks_only").unwrap(), "by"));
        let said = receiver.hears(1).await.remove(0);
        assert!(said["invalid"].is_null(), "{said}");
        let claims = &said["claims"];
        assert_eq!(claims["sub_id"], json!({"format": "iss_sub", "iss": stand.broker.url, "sub": gone}));
        let ended = text(&reach(&answer, "introspection").unwrap(), "by").parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        let event = &claims["events"][SESSION_REVOKED];
        assert!((event["event_timestamp"].as_i64().unwrap() - ended.timestamp()).abs() <= 2, "{claims}");
        assert_eq!(event["reason_admin"], json!({"en": "a test says so"}));
        assert_eq!(event["initiating_entity"], "admin");
        assert_eq!(claims["events"].as_object().unwrap().len(), 1);
        let mut names: Vec<_> = claims.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["aud", "events", "iat", "iss", "jti", "sub_id", "txn"], "neither `sub` nor `exp`");
        assert_eq!((&said["header"]["alg"], &said["header"]["typ"]), (&json!("ES256"), &json!("secevent+jwt")));
        let headers = &said["headers"];
        assert_eq!(headers["content-type"], "application/secevent+jwt");
        assert_eq!(headers["accept"], "application/json");
        assert_eq!(headers["authorization"], AUTHORIZATION);
        // On record, and so in the timeline; and whoever asks again is told.
        let record = is_signalled(&stand, 1).await.remove(0);
        assert_eq!((&record["task"], &record["receiver"], &record["outcome"]), (&json!(gone), &json!("siem"), &json!("delivered")));
        assert_eq!(record["jti"], claims["jti"]);
        wait_for("the timeline", || async {
            let timeline = stand.get(&format!("/v1/tasks/{gone}/timeline"), VIEWER).await.expect(StatusCode::OK);
            timeline["events"].as_array().unwrap().iter().any(|event| event["event"] == "signalled")
        })
        .await;
        let again = stand.revoke(&gone).await.expect(StatusCode::OK);
        let told = reach(&again, "shared_signals").unwrap();
        let stands = stand.get(&format!("/v1/tasks/{gone}/reach"), VIEWER).await.expect(StatusCode::OK);
        assert_eq!(reach(&stands, "shared_signals").unwrap(), told);
        assert_eq!((&told["done"], stands["reach"].as_array().unwrap().len()), (&json!(true), 6));
        assert_eq!((&told["acknowledged"], &told["of"]), (&json!(1), &json!(1)));
        assert_eq!(metric(&stand, "remit_signals_total{receiver=\"siem\",outcome=\"delivered\"}").await, Some(1));
        assert_eq!(metric(&stand, "remit_signals_pending{receiver=\"siem\"}").await, Some(0));
        // Of what is done nobody has to hear who only denies.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(receiver.tasks(), [gone]);
        // But whoever is done with it first does not escape.
        let late = stand.revoke(&done).await.expect(StatusCode::OK);
        assert_eq!((&late["state"], reach(&late, "shared_signals").is_some()), (&json!("completed"), true));
        assert_eq!(receiver.hears(2).await[1]["claims"]["sub_id"]["sub"], done);
    }

    /// A rogue agent may say first that it is done: whoever is told of revokes alone hears of the revoke, once, and the task stays completed.
    async fn whoever_completes_a_task_does_not_escape_its_revoke(store) {
        let receiver = Receiver::start().await;
        receiver.answer(json!({"status": 204}));
        let mut stand = with_sandboxes(&receiver, store, "events = [\"task.revoked\"]").await;
        let (rogue, evidence) = (declared_in(&stand, &json!("sb-1")).await, in_sandbox(&stand, &json!("sb-1")));
        stand.post(&format!("/v1/tasks/{rogue}/complete"), &evidence, json!({})).await.expect(StatusCode::OK);
        // Its own revoke says nothing that is new.
        let own = stand.post(&format!("/v1/tasks/{rogue}/revoke"), &evidence, json!({"reason": "r"})).await;
        assert!(reach(&own.expect(StatusCode::OK), "sandbox").is_none());
        let answer = stand.revoke(&rogue).await.expect(StatusCode::OK);
        assert_eq!((&answer["state"], &reach(&answer, "sandbox").unwrap()["of"]), (&json!("completed"), &json!(1)));
        let said = receiver.hears(1).await.remove(0);
        assert_eq!(said["claims"]["events"]["urn:remit:event:task.revoked"]["sandbox"], "sb-1", "{said}");
        is_signalled(&stand, 1).await;
        for _ in 0..2 {
            let told = reach(&stand.revoke(&rogue).await.expect(StatusCode::OK), "sandbox").unwrap();
            assert_eq!((&told["acknowledged"], &told["done"]), (&json!(1), &json!(true)));
            stand.restart_broker().await;
        }
        let other = declared_in(&stand, &json!("sb-2")).await;
        stand.revoke(&other).await.expect(StatusCode::OK);
        is_signalled(&stand, 2).await;
        assert_eq!(receiver.tasks(), [rogue.clone(), other]);
        let shown = stand.get(&format!("/v1/tasks/{rogue}"), VIEWER).await.expect(StatusCode::OK);
        assert_eq!(shown["state"], "completed");
    }

    /// What is told while nobody hears is not lost; neither is what a broker died over.
    async fn who_was_away_hears_of_everything_in_order(store) {
        let mut receiver = Receiver::start().await;
        let mut stand = receiver.stand(store, &caep(&receiver)).await;
        let mut tasks = revoked(&stand, 1).await;
        is_signalled(&stand, 1).await;
        receiver.end().await;
        tasks.extend(revoked(&stand, 3).await);
        wait_for("a failure", || async { metric(&stand, "remit_signals_total{receiver=\"siem\",outcome=\"failed\"}").await > Some(0) }).await;
        assert_eq!(metric(&stand, "remit_signals_pending{receiver=\"siem\"}").await, Some(3));
        stand.broker.child.kill().await.unwrap();
        let config = stand.broker.config.clone();
        stand.broker = Server::start(&config).await;
        tasks.extend(revoked(&stand, 2).await);
        assert_eq!(receiver.tasks(), tasks[..1]);
        receiver.begin().await;
        is_signalled(&stand, 6).await;
        assert_eq!(receiver.tasks(), tasks);
        // Whoever was told stays told.
        stand.restart_broker().await;
        tasks.extend(revoked(&stand, 1).await);
        is_signalled(&stand, 7).await;
        assert_eq!(receiver.tasks(), tasks);
    }

    /// A receiver that asks gets each until it says that it has it, and waits where there is nothing.
    async fn a_receiver_may_ask(store) {
        let mut stand = Stand::with(store, &polls()).await;
        let ask = async |stand: &Stand, body: Value| stand.post("/ssf/v1/poll", RECEIVER_TOKEN, body).await.expect(StatusCode::OK);
        let now = json!({"returnImmediately": true});
        assert_eq!(ask(&stand, now.clone()).await, json!({"sets": {}, "moreAvailable": false}));
        let tasks = revoked(&stand, 3).await;
        let of = |answer: &Value| {
            let sets = answer["sets"].as_object().unwrap();
            let told = sets.iter().map(|(jti, token)| {
                let claims = crate::support::claims(token.as_str().unwrap());
                assert_eq!(claims["jti"], *jti);
                (jti.clone(), text(&claims["sub_id"], "sub"))
            });
            let mut told: Vec<(String, String)> = told.collect();
            told.sort_by_key(|(_, task)| tasks.iter().position(|other| other == task));
            told
        };
        let names = |told: &[(String, String)]| told.iter().map(|(_, task)| task.clone()).collect::<Vec<_>>();
        let first = ask(&stand, json!({"returnImmediately": true, "maxEvents": 2})).await;
        assert_eq!((names(&of(&first)), &first["moreAvailable"]), (tasks[..2].to_vec(), &json!(true)));
        // What is not acknowledged comes again, after a restart too.
        stand.broker.child.kill().await.unwrap();
        let config = stand.broker.config.clone();
        stand.broker = Server::start(&config).await;
        let all = of(&ask(&stand, now.clone()).await);
        assert_eq!((names(&all), &all[..2]), (tasks.clone(), &*of(&first)));
        let rest = ask(&stand, json!({"returnImmediately": true, "ack": [all[0].0, "unknown"], "setErrs": {(&*all[1].0): {"err": "invalid_request", "description": "no"}}})).await;
        assert_eq!(names(&of(&rest)), tasks[2..]);
        let outcomes: Vec<_> = signalled(&stand).iter().map(|record| (text(record, "task"), text(record, "outcome"))).collect();
        assert_eq!(outcomes, [(tasks[0].clone(), "delivered".to_owned()), (tasks[1].clone(), "refused".to_owned())]);
        assert_eq!(ask(&stand, json!({"maxEvents": 0, "ack": [all[2].0]})).await["sets"], json!({}));
        stand.restart_broker().await;
        assert_eq!(ask(&stand, now).await["sets"], json!({}));
        // Whoever waits hears at once.
        let (task, _) = stand.task_with_token().await;
        let (answer, _) = tokio::join!(ask(&stand, json!({})), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stand.revoke(&task).await.expect(StatusCode::OK)
        });
        assert_eq!(names(&of(&answer)), [task]);
        for (bearer, status, code) in [(GIT_TOKEN.to_owned(), 403, "policy_denied"), (ADMIN.to_owned(), 403, "policy_denied"), (stand.evidence(), 403, "policy_denied"), ("garbage".to_owned(), 401, "evidence_invalid")] {
            stand.post("/ssf/v1/poll", &bearer, json!({})).await.refused(status, code);
        }
        for malformed in [json!({"maxEvents": -1}), json!({"ack": "x"}), json!({"setErrs": {"x": {}}}), json!({"more": 1})] {
            stand.post("/ssf/v1/poll", RECEIVER_TOKEN, malformed).await.refused(400, "invalid_request");
        }
    }

    /// Whoever runs a sandbox is told until they say that it is gone; and nobody's is taken down on a workload's word.
    async fn a_sandbox_that_evidence_bound_is_taken_down(store) {
        let receiver = Receiver::start().await;
        let stand = with_sandboxes(&receiver, store, "sandboxes = [\"sb-*\", \"exactly\"]").await;
        receiver.answer(json!({"status": 202}));
        // Where evidence says nothing, the declaration says sb-7f3.
        let only_said = declared_in(&stand, &Value::Null).await;
        let others = declared_in(&stand, &json!("exactly-not")).await;
        let bound = declared_in(&stand, &json!("sb-attested")).await;
        let done = declared_in(&stand, &json!("exactly")).await;
        for task in [&only_said, &others, &bound] {
            let answer = stand.revoke(task).await.expect(StatusCode::OK);
            assert_eq!(reach(&answer, "sandbox").is_some(), *task == bound);
        }
        let complete = format!("/v1/tasks/{done}/complete");
        stand.post(&complete, &in_sandbox(&stand, &json!("exactly")), json!({})).await.expect(StatusCode::OK);
        // Who has heard and is not done is asked again, and keeps nobody else waiting.
        receiver.hears(3).await;
        wait_for("the second one", || async { receiver.tasks().contains(&done) }).await;
        assert!(signalled(&stand).is_empty());
        let told = reach(&stand.revoke(&bound).await.expect(StatusCode::OK), "sandbox").unwrap();
        assert_eq!((&told["acknowledged"], &told["of"]), (&json!(0), &json!(1)));
        receiver.answer(json!({"status": 204}));
        is_signalled(&stand, 2).await;
        for record in signalled(&stand) {
            assert_eq!((&record["outcome"], &record["receiver"]), (&json!("confirmed"), &json!("sandboxes")));
        }
        let heard = receiver.heard();
        let of = |task: &str| heard.iter().find(|said| said["claims"]["sub_id"]["sub"] == task).unwrap()["claims"].clone();
        let event = &of(&bound)["events"]["urn:remit:event:task.revoked"];
        assert_eq!((&event["sandbox"], &event["task"], &event["workload"]), (&json!("sb-attested"), &json!(bound), &json!("spiffe://example.com/ci/acme/payments")));
        assert_eq!(of(&done)["events"]["urn:remit:event:task.completed"]["sandbox"], "exactly");
        assert_eq!(of(&done)["events"]["urn:remit:event:task.completed"]["initiating_entity"], "system");
        // Under one id, however often.
        let ids: std::collections::BTreeSet<_> = heard.iter().map(|said| text(&said["claims"], "jti")).collect();
        assert_eq!(ids.len(), 2);
        assert!(!receiver.tasks().contains(&only_said) && !receiver.tasks().contains(&others));
        let told = reach(&stand.revoke(&bound).await.expect(StatusCode::OK), "sandbox").unwrap();
        assert_eq!((&told["acknowledged"], &told["of"]), (&json!(1), &json!(1)));
        wait_for("the timeline", || async {
            let timeline = stand.get(&format!("/v1/tasks/{bound}/timeline"), VIEWER).await.expect(StatusCode::OK);
            let mut events = timeline["events"].as_array().unwrap().iter();
            events.any(|event| event["event"] == "signalled" && event["outcome"] == "confirmed" && event["sandbox"] == "sb-attested")
        })
        .await;
    }
}

/// What it will never take keeps nothing else from it; that it does not know us is no word about what it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_receiver_refuses_is_on_record() {
    let receiver = Receiver::start().await;
    let stand = receiver.stand(Store::Embedded, &caep(&receiver)).await;
    receiver.answer(json!({"status": 400, "body": {"err": "authentication_failed", "description": "who?"}}));
    let tasks = revoked(&stand, 2).await;
    receiver.hears(2).await;
    assert_eq!(receiver.tasks(), [&*tasks[0], &*tasks[0]]);
    // Neither is a 400 that says nothing, nor success of another kind.
    for odd in [json!({"status": 400, "body": []}), json!({"status": 200})] {
        receiver.answer(odd);
        let so_far = receiver.heard().len();
        receiver.hears(so_far + 1).await;
        assert!(signalled(&stand).is_empty());
    }
    receiver.answer(json!({"status": 400, "body": {"err": "invalid_request", "description": "<b>no</b>"}}));
    let records = is_signalled(&stand, 2).await;
    for (record, task) in records.iter().zip(&tasks) {
        assert_eq!(
            (&record["outcome"], &record["why"], &record["task"]),
            (&json!("refused"), &json!("invalid_request"), &json!(task))
        );
    }
    receiver.answer(json!({"status": 202}));
    let more = revoked(&stand, 1).await;
    is_signalled(&stand, 3).await;
    assert_eq!(receiver.tasks().last(), more.last());
}

/// Where a receiver sends us we do not go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed() {
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    let stand = receiver.stand(Store::Embedded, &caep(&receiver)).await;
    for status in [301, 302, 303, 307, 308] {
        receiver.answer(json!({"status": status, "headers": {"Location": elsewhere.url()}}));
        let task = revoked(&stand, 1).await;
        let so_far = receiver.heard().len();
        receiver.hears(so_far + 1).await;
        receiver.answer(json!({"status": 202}));
        wait_for("the record", || async { signalled(&stand).iter().any(|record| record["task"] == task[0]) }).await;
    }
    assert!(elsewhere.heard().is_empty());
}

/// A receiver has to be who it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_nobody_vouches_for_is_told_nothing() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new("receivers"));
    authority.serves(&dir.path().join("cert.pem"), &dir.path().join("key.pem"));
    fs::write(dir.path().join("ca.pem"), authority.certificate.pem()).unwrap();
    let receiver = Receiver::start_in(dir).await;
    let config = |name: &str, more: &str| {
        receiver.config(name, &format!("type = \"caep\"\n{more}")).replace("http://127.0.0.1", "https://localhost")
    };
    let ca = format!("ca_file = \"{}\"", receiver.dir.path().join("ca.pem").display());
    let stand = receiver.stand(Store::Embedded, &(config("known", &ca) + &config("unknown", ""))).await;
    let tasks = revoked(&stand, 2).await;
    receiver.hears(2).await;
    wait_for("a failure", || async {
        metric(&stand, "remit_signals_total{receiver=\"unknown\",outcome=\"failed\"}").await > Some(1)
    })
    .await;
    assert_eq!(receiver.tasks(), tasks);
    assert!(signalled(&stand).iter().all(|record| record["receiver"] == "known"));
}

/// Neither a revoke nor another receiver waits for one that is slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_waits_for_a_slow_receiver() {
    let (slow, quick) = (Receiver::start().await, Receiver::start().await);
    slow.answer(json!({"status": 202, "delay": 8}));
    let config = slow.config("slow", "type = \"caep\"") + &quick.config("quick", "type = \"caep\"");
    let stand = slow.stand(Store::Embedded, &config).await;
    fs::write(quick.dir.path().join("issuer"), &stand.broker.url).unwrap();
    let begun = Instant::now();
    let tasks = revoked(&stand, 5).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    quick.hears(5).await;
    assert_eq!(quick.tasks(), tasks);
    let again = stand.revoke(&tasks[0]).await.expect(StatusCode::OK);
    let told = reach(&again, "shared_signals").unwrap();
    assert!(told["of"] == 2 && told["acknowledged"].as_u64() <= Some(1), "{told}");
}

/// A receiver reads how it is told, by the endpoints that the metadata names, and of no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_reads_its_own_stream() {
    let receiver = Receiver::start().await;
    let stand =
        receiver.stand(Store::Embedded, &(caep(&receiver) + &receiver.config("other", "type = \"caep\""))).await;
    let metadata = stand.call(Method::GET, "/.well-known/ssf-configuration", None, None).await.expect(StatusCode::OK);
    let path = |member: &str| text(&metadata, member).strip_prefix(&stand.broker.url).expect("ours").to_owned();
    let (streams, status) = (path("configuration_endpoint"), path("status_endpoint"));
    let stream = json!({"stream_id": "siem", "iss": stand.broker.url, "aud": AUDIENCE,
        "delivery": {"method": "urn:ietf:rfc:8935", "endpoint_url": receiver.url()}, "events_supported": [SESSION_REVOKED],
        "events_requested": [SESSION_REVOKED], "events_delivered": [SESSION_REVOKED]});
    let get = async |path: &str| stand.get(path, RECEIVER_TOKEN).await;
    assert_eq!(get(&streams).await.expect(StatusCode::OK), json!([stream]));
    assert_eq!(get(&format!("{streams}?stream_id=siem")).await.expect(StatusCode::OK), stream);
    let enabled = get(&format!("{status}?stream_id=siem")).await.expect(StatusCode::OK);
    assert_eq!(enabled, json!({"stream_id": "siem", "status": "enabled"}));
    get(&status).await.refused(400, "invalid_request");
    for path in [&streams, &status] {
        for other in ["other", "nobody", "", "SIEM", "siem%20"] {
            get(&format!("{path}?stream_id={other}")).await.refused(404, "not_found");
        }
        for query in ["stream_id=siem&stream_id=siem", "id=siem"] {
            get(&format!("{path}?{query}")).await.refused(400, "invalid_request");
        }
        let (path, evidence) = (format!("{path}?stream_id=siem"), stand.evidence());
        for bearer in [RESPONDER, ADMIN, GIT_TOKEN, &evidence] {
            stand.get(&path, bearer).await.refused(403, "policy_denied");
        }
        stand.get(&path, "garbage").await.refused(401, "evidence_invalid");
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let answer =
                stand.client.request(method, stand.url(&path)).bearer_auth(RECEIVER_TOKEN).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
        }
    }
}

/// A receiver, and an admin, have it told that what it is told arrives; nobody else has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_verified() {
    let receiver = Receiver::start().await;
    let stand =
        receiver.stand(Store::Embedded, &(caep(&receiver) + &receiver.config("other", "type = \"caep\""))).await;
    let verify = async |bearer: &str, body: Value| stand.post("/ssf/v1/verify", bearer, body).await;
    let answer = verify(RECEIVER_TOKEN, json!({"stream_id": "siem", "state": "s-1"})).await;
    assert_eq!((answer.status, &*answer.text), (StatusCode::NO_CONTENT, ""));
    let said = receiver.hears(1).await.remove(0);
    assert_eq!(said["claims"]["events"], json!({VERIFICATION: {"state": "s-1"}}), "{said}");
    assert_eq!(said["claims"]["sub_id"], json!({"format": "opaque", "id": "siem"}));
    is_signalled(&stand, 1).await;
    assert_eq!(verify(ADMIN, json!({"stream_id": "siem"})).await.status, StatusCode::NO_CONTENT);
    assert_eq!(receiver.hears(2).await[1]["claims"]["events"], json!({VERIFICATION: {}}));
    assert!(
        stand.whole_audit().iter().any(|line| line["event"] == "verification_requested" && line["receiver"] == "siem")
    );
    verify(RECEIVER_TOKEN, json!({"stream_id": "other"})).await.refused(404, "not_found");
    let refused = verify(ADMIN, json!({"stream_id": "nobody"})).await.refused(404, "not_found");
    assert_eq!(refused["detail"], "no such receiver");
    verify(RESPONDER, json!({"stream_id": "siem"})).await.refused(403, "policy_denied");
    verify(GIT_TOKEN, json!({"stream_id": "siem"})).await.refused(403, "policy_denied");
    verify(&stand.evidence(), json!({"stream_id": "siem"})).await.refused(403, "policy_denied");
    verify("garbage", json!({"stream_id": "siem"})).await.refused(401, "evidence_invalid");
    verify(RECEIVER_TOKEN, json!({"stream_id": "siem", "state": "s".repeat(1025)}))
        .await
        .refused(400, "invalid_request");
    verify(RECEIVER_TOKEN, json!({"stream_id": "siem", "more": 1})).await.refused(400, "invalid_request");
    // A receiver is told, and does nothing else.
    stand.get("/v1/tasks", RECEIVER_TOKEN).await.refused(401, "evidence_invalid");
    // While it does not answer, few are under way.
    receiver.answer(json!({"status": 503}));
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(verify(RECEIVER_TOKEN, json!({"stream_id": "siem"})).await.status.as_u16());
    }
    assert_eq!(statuses, [204, 204, 204, 204, 429, 429]);
}

/// With the key that an operator made, as for services; and none of it is of use anywhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_may_take_rs256() {
    let receiver = Receiver::start().await;
    let mut stand = receiver.stand(Store::Embedded, "").await;
    let config = stand.broker.config.clone();
    let text_before = fs::read_to_string(&config).unwrap();
    fs::write(&config, text_before + &caep(&receiver) + "algorithm = \"RS256\"\n").unwrap();
    let check =
        Command::new(env!("CARGO_BIN_EXE_remit")).args(["config", "check", "--config"]).arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(
        !check.status.success() && said.contains("receiver `siem`") && said.contains("signals-rs256.pem"),
        "{said}"
    );
    make(&stand.dir.path().join("broker-keys/signals-rs256.pem"), 2048);
    stand.restart_broker().await;
    let task = revoked(&stand, 1).await;
    let said = receiver.hears(1).await.remove(0);
    assert!(said["invalid"].is_null(), "{said}");
    assert_eq!((&said["header"]["alg"], &said["claims"]["sub_id"]["sub"]), (&json!("RS256"), &json!(task[0])));
    let keys =
        async |path: &str| stand.call(Method::GET, path, None, None).await.expect(StatusCode::OK)["keys"].clone();
    let own = keys("/ssf/v1/jwks").await;
    let own = own.as_array().unwrap();
    assert!(own.iter().all(|key| key["remit_purpose"] == "signals" && key["use"] == "sig"), "{own:?}");
    assert!(own.iter().any(|key| key["kid"] == said["header"]["kid"] && key["kty"] == "RSA"));
    for elsewhere in ["/jwks", "/spiffe/bundle", "/v1/revocations/jwks"] {
        let others = keys(elsewhere).await;
        assert!(
            others
                .as_array()
                .unwrap()
                .iter()
                .all(|key| own.iter().all(|own| own["n"] != key["n"] || own["x"] != key["x"]))
        );
    }
    let listed = stand.get("/v1/keys", VIEWER).await.expect(StatusCode::OK);
    let signals: Vec<_> = listed["keys"].as_array().unwrap().iter().filter(|key| key["use"] == "signals").collect();
    assert_eq!(signals.len(), 2, "{listed}");
}

/// Each end is told by the broker that recorded it, once; whoever asks may ask either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_brokers_tell_of_an_end_once() {
    let receiver = Receiver::start().await;
    let config = receiver.config("siem", "type = \"caep\"") + &polls();
    let stand = receiver.stand(Store::Redis, &config).await;
    let url = stand.redis.as_ref().unwrap().url();
    let second = write_config(stand.dir.path(), "second", &url, &config);
    let text_of = fs::read_to_string(&second).unwrap();
    let own = text_of.split('"').nth(1).unwrap().to_owned();
    fs::write(&second, text_of.replace(&own, &stand.broker.url)).unwrap();
    let second = Server::start(&second).await;
    let (one, two) = (task(&stand).await, task(&stand).await);
    stand.revoke(&one).await.expect(StatusCode::OK);
    let path = format!("/v1/tasks/{two}/revoke");
    stand
        .call_at(&second, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "r"})))
        .await
        .expect(StatusCode::OK);
    // Completed at one, and revoked at the other.
    let rogue = task(&stand).await;
    stand.post(&format!("/v1/tasks/{rogue}/complete"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
    let path = format!("/v1/tasks/{rogue}/revoke");
    let answer = stand.call_at(&second, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "r"}))).await;
    assert_eq!(answer.expect(StatusCode::OK)["state"], "completed");
    receiver.hears(3).await;
    // Whoever repeats it at the other one tells nobody again, once that knows.
    stand.revoke(&two).await.expect(StatusCode::OK);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut told = receiver.tasks();
    told.sort();
    let mut all = vec![one.clone(), two.clone(), rogue.clone()];
    all.sort();
    assert_eq!(told, all);
    let mut ids = Vec::new();
    for at in [&stand.broker, &second] {
        let mut found = Value::Null;
        for _ in 0..100 {
            let body = json!({"returnImmediately": true});
            found = stand
                .call_at(at, Method::POST, "/ssf/v1/poll", Some(RECEIVER_TOKEN), Some(body))
                .await
                .expect(StatusCode::OK);
            if found["sets"].as_object().unwrap().len() == 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ids.push(found["sets"].as_object().unwrap().keys().cloned().collect::<Vec<_>>());
    }
    assert!(ids[0].len() == 3 && ids[0] == ids[1], "{ids:?}");
}

/// Evidence of a job in a sandbox.
fn in_sandbox(stand: &Stand, sandbox: &Value) -> String {
    stand.issuer.evidence(&stand.broker.url, json!({"sandbox": sandbox}))
}

async fn declared_in(stand: &Stand, sandbox: &Value) -> String {
    let mut declaration = declaration();
    if !sandbox.is_null() {
        declaration.as_object_mut().unwrap().remove("sandbox");
    }
    let answer = stand.post("/v1/tasks", &in_sandbox(stand, sandbox), declaration).await.expect(StatusCode::CREATED);
    text(&answer, "task")
}

/// With evidence that says which sandbox a job runs in.
async fn with_sandboxes(receiver: &Receiver, store: Store, more: &str) -> Stand {
    let mut stand = receiver.stand(store, &receiver.config("sandboxes", &format!("type = \"webhook\"\n{more}"))).await;
    let config = stand.broker.config.clone();
    let before = fs::read_to_string(&config).unwrap();
    let instance = "instance = \"{run_id}.{run_attempt}\"\n";
    assert!(before.contains(instance));
    fs::write(&config, before.replacen(instance, &format!("{instance}facts = {{ sandbox = \"{{sandbox}}\" }}\n"), 1))
        .unwrap();
    stand.restart_broker().await;
    stand
}

/// What is unsafe is refused before anything is started, all at once, and without what is secret in it.
#[test]
fn a_receiver_that_must_not_be_called_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ci-keys.json"), Issuer::new().jwks().to_string()).unwrap();
    let open = dir.path().join("open.token");
    fs::write(&open, "Bearer hunter2-hunter2").unwrap();
    let receiver = |name: &str, more: &str| {
        format!("[[receiver]]\nname = \"{name}\"\ntype = \"caep\"\naudience = \"a\"\n{more}\n")
    };
    let extra = [
        receiver("metadata", "url = \"https://169.254.169.254/latest/\""),
        receiver("mapped", "url = \"https://[::ffff:169.254.169.254]/\""),
        receiver("private", "url = \"https://10.1.2.3/\""),
        receiver("told-anyway", "url = \"https://169.254.169.254/\"\nprivate_address = true"),
        receiver("plain", "url = \"http://siem.example.com/\""),
        receiver("userinfo", "url = \"https://me:hunter2-hunter2@siem.example.com/\""),
        receiver("open", &format!("url = \"https://siem.example.com/\"\nauthorization_file = \"{}\"", open.display())),
        receiver("missing", "url = \"https://siem.example.com/\"\nauthorization_file = \"nowhere\""),
        receiver(
            "taken",
            &format!("delivery = \"poll\"\ntoken_sha256 = [\"{}\"]", remit::id::sha256_hex(GIT_TOKEN.as_bytes())),
        ),
        receiver("nothing", ""),
    ];
    let config = write_config(dir.path(), "broker", "redb:remit.redb", &extra.concat());
    let run = |command: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_remit")).args(command).arg("--config").arg(&config).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for command in [&["config", "check"][..], &["serve"]] {
        let (good, said) = run(command);
        assert!(!good && !said.contains("hunter2"), "{said}");
        for name in
            ["metadata", "mapped", "private", "told-anyway", "plain", "userinfo", "open", "missing", "taken", "nothing"]
        {
            assert!(said.contains(&format!("receiver `{name}`")), "{name}: {said}");
        }
    }
    let config_text = fs::read_to_string(&config).unwrap();
    let start = config_text.find("[[receiver]]").unwrap();
    fs::write(
        &config,
        config_text[..start].to_owned() + &receiver("odd", "url = \"https://a/\"\nsecret = \"hunter2\""),
    )
    .unwrap();
    let (good, said) = run(&["config", "check"]);
    assert!(!good && said.contains("unknown field") && !said.contains("hunter2"), "{said}");
}
