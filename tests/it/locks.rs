//! Locks: what they match is refused at every broker, dies at every verifier, and stays out until they are released.

use chrono::{DateTime, TimeDelta, Utc};
use remit::{
    clock::{Clock as _, SystemClock},
    config::{Config, Development},
    id::sha256_hex,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use crate::{
    both,
    certificates::Certified,
    support::{
        APPROVER, Answer, GIT, GIT_TOKEN, ISSUER, KEYTOOL_CSR, OWNER, RESPONDER, Server, Stand, Store, VIEWER,
        approver, claims, client, declaration, people, socket_client, text, time, wait_for,
    },
    verifiers::{Asked, in_python},
};

const LOCKS: &str = "/v1/locks";
const WORKLOAD: &str = "spiffe://example.com/ci/acme/payments";

async fn lock_at(stand: &Stand, at: &Server, lock: Value) -> Answer {
    stand.call_at(at, Method::POST, LOCKS, Some(RESPONDER), Some(lock)).await
}

/// Locks, and waits until everything that it matches has ended.
async fn lock(stand: &Stand, lock: Value) -> Value {
    let locked = lock_at(stand, &stand.broker, lock).await.expect(StatusCode::CREATED);
    assert_eq!(locked["state"], "in_force", "{locked}");
    expanded(stand, &text(&locked, "lock")).await
}

async fn show(stand: &Stand, id: &str) -> Value {
    stand.get(&format!("{LOCKS}/{id}"), VIEWER).await.expect(StatusCode::OK)
}

async fn expanded(stand: &Stand, id: &str) -> Value {
    wait_for("the lock to be expanded", || async { show(stand, id).await["progress"]["done"] == true }).await;
    show(stand, id).await
}

async fn release(stand: &Stand, id: &str) -> Answer {
    stand.post(&format!("{LOCKS}/{id}/release"), APPROVER, json!({"reason": "it was a drill"})).await
}

fn matching(matches: &Value) -> Value {
    json!({"match": matches, "reason": "a drill"})
}

/// A declaration with other words, and its first token.
async fn declared(stand: &Stand, words: Value) -> (String, String) {
    let answer = stand.declare(with(&words)).await.expect(StatusCode::CREATED);
    (text(&answer, "task"), text(&answer["credentials"][0], "access_token"))
}

fn with(words: &Value) -> Value {
    let mut declaration = declaration();
    declaration.as_object_mut().unwrap().extend(words.as_object().unwrap().clone());
    declaration
}

async fn is_active(stand: &Stand, token: &str) -> bool {
    stand.introspect(token).await["active"] == true
}

async fn state(stand: &Stand, task: &str) -> String {
    text(&stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK), "state")
}

fn events(stand: &Stand, name: &str) -> Vec<Value> {
    stand.whole_audit().into_iter().filter(|line| line["event"] == name).collect()
}

/// The next whole second, once it has come.
async fn next_second() -> DateTime<Utc> {
    let now = SystemClock.now();
    let next = DateTime::from_timestamp(now.timestamp() + 1, 0).unwrap();
    tokio::time::sleep((next - now).to_std().unwrap() + Duration::from_millis(5)).await;
    next
}

both! {
    crate::support::people();

    /// Stop all of one owner: what it has dies, nothing of it begins, and nobody else notices.
    async fn all_of_one_owner(stand) {
        let (task, token) = declared(&stand, json!({})).await;
        let (second, _) = declared(&stand, json!({})).await;
        let (spared, other) = declared(&stand, json!({"owner": "other@example.com"})).await;
        let locked = lock(&stand, matching(&json!({"owner": OWNER}))).await;
        assert_eq!((&locked["progress"]["matched"], &locked["progress"]["revoked"]), (&json!(2), &json!(2)), "{locked}");
        assert_eq!((&locked["by"], &locked["until"], &locked["match"]), (&json!("rita"), &Value::Null, &json!({"owner": OWNER})));
        assert!(!is_active(&stand, &token).await && is_active(&stand, &other).await);
        assert_eq!((state(&stand, &task).await, state(&stand, &spared).await), ("revoked".into(), "active".into()));
        // Nothing of it begins.
        stand.declare(declaration()).await.refused(403, "locked");
        stand.mint(&task).await.refused(403, "locked");
        stand.post(&format!("/v1/tasks/{task}/renew"), &stand.evidence(), json!({"ttl": 60})).await.refused(403, "locked");
        stand.mint(&spared).await.expect(StatusCode::OK);
        // It stands in the record of every task that it ended, and who was kept out does too.
        for task in [&task, &second] {
            let shown = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
            assert_eq!(shown["reason"], format!("{}: a drill", text(&locked, "lock")));
            let timeline = stand.get(&format!("/v1/tasks/{task}/timeline"), VIEWER).await.expect(StatusCode::OK);
            let told: Vec<_> = timeline["events"].as_array().unwrap().iter().map(|event| event["event"].clone()).collect();
            assert!(told.contains(&json!("task_ended")), "{timeline}");
        }
        let out: Vec<_> = events(&stand, "locked_out").iter().map(|line| text(line, "action")).collect();
        assert_eq!(out, ["declare", "mint", "renew"]);
        let requested = &events(&stand, "lock_requested")[0];
        assert_eq!((&requested["actor"]["name"], &requested["match"]["owner"]), (&json!("rita"), &json!(OWNER)));
        assert_eq!(events(&stand, "lock_expanded").len(), 1);
        // Released, it lets in what is new, and brings nothing back.
        let id = text(&locked, "lock");
        let released = release(&stand, &id).await.expect(StatusCode::OK);
        assert_eq!((&released["state"], &released["released"]["by"]), (&json!("released"), &json!("otto")));
        assert_eq!(release(&stand, &id).await.expect(StatusCode::OK)["released"], released["released"]);
        declared(&stand, json!({})).await;
        assert!(!is_active(&stand, &token).await);
        assert_eq!(state(&stand, &task).await, "revoked");
        stand.mint(&task).await.refused(409, "task_not_active");
        let listed = stand.get(LOCKS, VIEWER).await.expect(StatusCode::OK);
        assert_eq!((listed["locks"].as_array().unwrap().len(), &listed["locks"][0]["state"]), (1, &json!("released")));
    }

    /// Whoever waits is answered when nobody who hears of revokes accepts anything of it.
    async fn whoever_waits_is_answered_when_it_is_effective(stand) {
        let (_, token) = declared(&stand, json!({})).await;
        let path = format!("{LOCKS}?wait=effective");
        let locked = stand.post(&path, RESPONDER, matching(&json!({"owner": OWNER}))).await.expect(StatusCode::CREATED);
        let by = time(&locked["progress"], "effective_by");
        assert!(by <= SystemClock.now() && locked["progress"]["revoked"] == 1, "{locked}");
        assert!(!is_active(&stand, &token).await);
    }

    async fn one_sandbox(stand) {
        let (_, token) = declared(&stand, json!({"sandbox": "sb-bad"})).await;
        let (_, beside) = declared(&stand, json!({"sandbox": "sb-bad2"})).await;
        let (_, none) = declared(&stand, json!({"sandbox": null})).await;
        lock(&stand, matching(&json!({"sandbox": "sb-bad", "owner": OWNER}))).await;
        assert!(!is_active(&stand, &token).await && is_active(&stand, &beside).await && is_active(&stand, &none).await);
        stand.declare(with(&json!({"sandbox": "sb-bad"}))).await.refused(403, "locked");
        // Another owner's is another one.
        declared(&stand, json!({"sandbox": "sb-bad", "owner": "other@example.com"})).await;
    }

    /// Where evidence says which sandbox it is, nobody gets out of a lock by another word, or by none.
    async fn a_sandbox_that_evidence_names(stand) {
        let mut stand = stand;
        let (config, instance) = (stand.broker.config.clone(), "instance = \"{run_id}.{run_attempt}\"\n");
        let before = std::fs::read_to_string(&config).unwrap();
        let facts = before.replacen(instance, &format!("{instance}facts = {{ sandbox = \"{{sandbox}}\" }}\n"), 1);
        assert_ne!(before, facts);
        std::fs::write(&config, facts).unwrap();
        stand.restart_broker().await;
        let declare = async |bound: &str, said: Value| {
            let evidence = stand.issuer.evidence(&stand.broker.url, json!({"sandbox": bound}));
            stand.post("/v1/tasks", &evidence, with(&json!({"sandbox": said}))).await
        };
        declare("sb-bad", json!("sb-good")).await.refused(403, "policy_denied");
        let mut tokens = Vec::new();
        for said in [Value::Null, json!("sb-bad")] {
            let declared = declare("sb-bad", said).await.expect(StatusCode::CREATED);
            let token = text(&declared["credentials"][0], "access_token");
            assert_eq!((&claims(&token)["urn:remit:task"]["sandbox"], &declared["sandbox"]), (&json!("sb-bad"), &json!("sb-bad")));
            tokens.push((text(&declared, "task"), token));
        }
        let beside = declare("sb-other", Value::Null).await.expect(StatusCode::CREATED);
        let listed = stand.get("/v1/tasks?sandbox=sb-bad", VIEWER).await.expect(StatusCode::OK);
        assert_eq!(listed["tasks"].as_array().unwrap().len(), 2, "{listed}");
        let trail = stand.get("/v1/audit?sandbox=sb-bad", VIEWER).await;
        for (task, _) in &tokens {
            assert!(trail.text.contains(task), "{}", trail.text);
        }
        assert!(!trail.text.contains(&text(&beside, "task")), "{}", trail.text);
        let locked = lock(&stand, matching(&json!({"sandbox": "sb-bad"}))).await;
        assert_eq!(locked["progress"]["revoked"], 2, "{locked}");
        for (task, token) in &tokens {
            assert!(!is_active(&stand, token).await);
            assert_eq!(state(&stand, task).await, "revoked");
        }
        declare("sb-bad", Value::Null).await.refused(403, "locked");
        declare("sb-bad", json!("sb-bad")).await.refused(403, "locked");
        declare("sb-bad", json!("sb-good")).await.refused(403, "policy_denied");
        assert_eq!(state(&stand, &text(&beside, "task")).await, "active");
        declare("sb-other", Value::Null).await.expect(StatusCode::CREATED);
    }

    async fn everything_declared_since_a_moment(stand) {
        let (before, old) = declared(&stand, json!({})).await;
        let since = next_second().await;
        let (_, new) = declared(&stand, json!({})).await;
        let window = json!({"match": {"all": true}, "declared_after": since, "reason": "since then"});
        let locked = lock(&stand, window).await;
        assert_eq!((&locked["progress"]["matched"], &locked["declared_after"]), (&json!(1), &json!(since)));
        assert!(is_active(&stand, &old).await && !is_active(&stand, &new).await);
        stand.mint(&before).await.expect(StatusCode::OK);
        stand.declare(declaration()).await.refused(403, "locked");
    }

    /// A workload, all below a path, and what is beside it; as OAuth says it.
    async fn a_workload_or_all_below_a_path(stand) {
        let (task, token) = declared(&stand, json!({})).await;
        for beside in ["spiffe://example.com/ci/acme", "spiffe://example.com/ci/acme/pay", "spiffe://example.com/ci/acme/payments/*"] {
            lock(&stand, matching(&json!({"workload": beside}))).await;
            assert!(is_active(&stand, &token).await, "{beside}");
        }
        lock(&stand, matching(&json!({"workload": "spiffe://example.com/ci/*", "attestor": "ci"}))).await;
        assert!(!is_active(&stand, &token).await);
        let form = [("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"), ("subject_token", &*stand.evidence()),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"), ("resource", GIT), ("scope", &*format!("{task} read"))];
        stand.form("/oauth2/token", None, &form).await.oauth_refused(400, "access_denied");
    }

    /// A certificate says neither whose it is nor in which sandbox: the end of its task does it.
    async fn a_certificate_is_on_its_list(stand) {
        let (task, _) = declared(&stand, json!({})).await;
        let path = format!("/v1/tasks/{task}/certificate");
        let certify = async || stand.post(&path, &stand.evidence(), json!({"csr": KEYTOOL_CSR})).await;
        let certified = Certified::of(certify().await.expect(StatusCode::OK));
        lock(&stand, matching(&json!({"sandbox": "sb-7f3"}))).await;
        certified.is_revoked_soon(&stand, &stand.broker).await;
        certify().await.refused(403, "locked");
    }

    /// Everybody, for 15 minutes and no longer; an approver lets it stand for longer.
    async fn everybody(stand) {
        let (_, token) = declared(&stand, json!({})).await;
        let (_, other) = declared(&stand, json!({"owner": "other@example.com"})).await;
        let now = SystemClock.now();
        let long = json!({"match": {"all": true}, "until": now + TimeDelta::minutes(20), "reason": "r"});
        lock_at(&stand, &stand.broker, long).await.refused(400, "invalid_request");
        let locked = lock(&stand, matching(&json!({"all": true}))).await;
        let until = time(&locked, "until");
        assert!((until - now - TimeDelta::minutes(15)).abs() < TimeDelta::seconds(20), "{locked}");
        assert!(!is_active(&stand, &token).await && !is_active(&stand, &other).await);
        stand.declare(declaration()).await.refused(403, "locked");
        let path = format!("{LOCKS}/{}/extend", text(&locked, "lock"));
        let extend = |until: DateTime<Utc>| json!({"until": until, "reason": "we are not done"});
        let later = until + TimeDelta::hours(1);
        stand.post(&path, RESPONDER, extend(later)).await.refused(403, "policy_denied");
        stand.post(&path, APPROVER, extend(until)).await.refused(400, "invalid_request");
        let extended = stand.post(&path, APPROVER, extend(later)).await.expect(StatusCode::OK);
        assert_eq!((&extended["until"], &extended["state"]), (&json!(later), &json!("in_force")));
        release(&stand, &text(&locked, "lock")).await.expect(StatusCode::OK);
        stand.post(&path, APPROVER, extend(later + TimeDelta::hours(1))).await.refused(400, "invalid_request");
        declared(&stand, json!({})).await;
    }

    /// A lock that comes to its end lets in again, and brings nothing back.
    async fn one_that_ends_by_itself(stand) {
        let (_, token) = declared(&stand, json!({})).await;
        let until = SystemClock.now() + TimeDelta::seconds(3);
        let locked = lock(&stand, json!({"match": {"workload": WORKLOAD}, "until": until, "reason": "r"})).await;
        wait_for("its end", || async { show(&stand, &text(&locked, "lock")).await["state"] == "expired" }).await;
        declared(&stand, json!({})).await;
        assert!(!is_active(&stand, &token).await);
    }

    async fn a_dry_run_counts_and_locks_nothing(stand) {
        for _ in 0..3 {
            declared(&stand, json!({})).await;
        }
        let (over, token) = declared(&stand, json!({"owner": "other@example.com"})).await;
        let (_, alive) = declared(&stand, json!({"owner": "other@example.com"})).await;
        stand.revoke(&over).await.expect(StatusCode::OK);
        let weighed = stand.post(&format!("{LOCKS}?dry_run=true"), RESPONDER, matching(&json!({"attestor": "ci"}))).await;
        let owners = json!([{"owner": OWNER, "tasks": 3}, {"owner": "other@example.com", "tasks": 1}]);
        assert_eq!(weighed.expect(StatusCode::OK), json!({"active": 4, "over": 1, "owners": owners, "complete": true}));
        assert!(is_active(&stand, &alive).await && !is_active(&stand, &token).await);
        assert_eq!(stand.get(LOCKS, VIEWER).await.expect(StatusCode::OK)["locks"], json!([]));
        assert_eq!((events(&stand, "lock_weighed").len(), events(&stand, "lock_requested").len()), (1, 0));
    }

    async fn bad_locks_are_refused(stand) {
        let (_, token) = declared(&stand, json!({})).await;
        let now = SystemClock.now();
        for lock in [
            json!({"reason": "r"}),
            json!({"match": {}, "reason": "r"}),
            json!({"match": {"all": false}, "reason": "r"}),
            json!({"match": {"all": true, "owner": OWNER}, "reason": "r"}),
            json!({"match": {"everybody": true}, "reason": "r"}),
            json!({"match": {"owner": 1}, "reason": "r"}),
            json!({"match": {"owner": ""}, "reason": "r"}),
            json!({"match": {"owner": "o".repeat(257)}, "reason": "r"}),
            json!({"match": {"workload": "*"}, "reason": "r"}),
            json!({"match": {"workload": "spiffe://example.com/*"}, "reason": "r"}),
            json!({"match": {"workload": "spiffe://example.com/ci/ac*"}, "reason": "r"}),
            json!({"match": {"workload": "spiffe://example.com/*/payments"}, "reason": "r"}),
            json!({"match": {"workload": "/ci/acme"}, "reason": "r"}),
            json!({"match": {"owner": OWNER}}),
            json!({"match": {"owner": OWNER}, "reason": ""}),
            json!({"match": {"owner": OWNER}, "reason": "r\n"}),
            json!({"match": {"owner": OWNER}, "reason": "r", "until": now - TimeDelta::seconds(1)}),
            json!({"match": {"owner": OWNER}, "reason": "r", "until": now + TimeDelta::days(400)}),
            json!({"match": {"owner": OWNER}, "reason": "r", "until": "tomorrow"}),
            json!({"match": {"owner": OWNER}, "reason": "r", "released": true}),
            json!({"match": {"owner": OWNER}, "reason": "r", "declared_after": "2026-11-20T10:00:00.5Z"}),
            json!({"match": {"owner": OWNER}, "reason": "r", "declared_after": "2026-11-20T10:00:00Z", "declared_before": "2026-11-20T10:00:00Z"}),
            json!({"match": {"owner": OWNER}, "reason": "r", "declared_before": "1969-11-20T10:00:00Z"}),
        ] {
            lock_at(&stand, &stand.broker, lock.clone()).await.refused(400, "invalid_request");
            stand.post(&format!("{LOCKS}?dry_run=true"), RESPONDER, lock).await.refused(400, "invalid_request");
        }
        let good = matching(&json!({"owner": OWNER}));
        for query in ["?dry_run=yes", "?dry_run=", "?dry=true", "?dry_run=true&dry_run=false"] {
            stand.post(&format!("{LOCKS}{query}"), RESPONDER, good.clone()).await.refused(400, "invalid_request");
        }
        // Whoever acts for an owner, serves or works locks nobody out.
        for bearer in [stand.person(&["payments"]), GIT_TOKEN.to_owned(), stand.evidence(), VIEWER.to_owned(), APPROVER.to_owned()] {
            stand.post(LOCKS, &bearer, good.clone()).await.refused(403, "policy_denied");
        }
        for id in ["lock_01kamw7q2v5y8r3f6t9c1x4d0e", "lock_1", "task_01kamw7q2v5y8r3f6t9c1x4d0e"] {
            let (status, code) = if id.len() == 31 && id.starts_with("lock") { (404, "not_found") } else { (400, "invalid_request") };
            let released = release(&stand, id).await.refused(status, code);
            let shown = stand.get(&format!("{LOCKS}/{id}"), VIEWER).await.refused(status, code);
            assert!(status == 400 || (&released["detail"], &shown["detail"]) == (&json!("no such lock"), &json!("no such lock")));
        }
        assert!(is_active(&stand, &token).await);
    }

    /// What is locked survives the broker, and is told to whoever follows after.
    async fn a_restart_forgets_no_lock(stand) {
        let mut stand = stand;
        let (_, token) = declared(&stand, json!({})).await;
        let locked = lock(&stand, matching(&json!({"owner": OWNER}))).await;
        stand.restart_broker().await;
        stand.declare(declaration()).await.refused(403, "locked");
        assert!(!is_active(&stand, &token).await);
        assert_eq!(show(&stand, &text(&locked, "lock")).await["progress"], locked["progress"]);
        release(&stand, &text(&locked, "lock")).await.expect(StatusCode::OK);
        stand.restart_broker().await;
        declared(&stand, json!({})).await;
    }

    /// A retry under the same key is a declaration like any other.
    async fn a_retry_is_kept_out_too(stand) {
        let declare = async || {
            let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence());
            Answer::of(request.header("idempotency-key", "one").json(&declaration()).send().await.unwrap()).await
        };
        declare().await.expect(StatusCode::CREATED);
        let locked = lock(&stand, matching(&json!({"workload": WORKLOAD}))).await;
        declare().await.refused(403, "locked");
        release(&stand, &text(&locked, "lock")).await.expect(StatusCode::OK);
        declare().await.refused(409, "task_not_active");
    }
}

mod of_strangers {
    use super::*;

    both! {
        /// Whoever the issuer vouched for is out, and who is known by other means is not.
        async fn a_compromised_issuer(stand) {
            let (_, token) = declared(&stand, json!({})).await;
            let kernel = socket_client(&stand.broker.socket);
            let declare = async || Answer::of(kernel.post("http://localhost/v1/tasks").json(&declaration()).send().await.unwrap()).await;
            let by_kernel = text(&declare().await.expect(StatusCode::CREATED)["credentials"][0], "access_token");
            lock(&stand, matching(&json!({"issuer": ISSUER}))).await;
            assert!(!is_active(&stand, &token).await && is_active(&stand, &by_kernel).await);
            declare().await.expect(StatusCode::CREATED);
            stand.declare(declaration()).await.refused(403, "locked");
        }
    }
}

async fn redis() -> Stand {
    Stand::with(Store::Redis, &people()).await
}

/// Whoever follows denies what a lock matches, and accepts what comes after its release, although it holds the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_lets_in_again() {
    let stand = Stand::with(Store::Embedded, &people()).await;
    let (_, token) = declared(&stand, json!({})).await;
    let mut verifier = Asked::start(in_python(), &stand);
    verifier.becomes(&token, "accept", &["revoked", "locked"]).await;
    let locked = lock(&stand, matching(&json!({"owner": OWNER}))).await;
    assert_eq!(verifier.of(&token).await, "revoked");
    release(&stand, &text(&locked, "lock")).await.expect(StatusCode::OK);
    let (_, after) = declared(&stand, json!({})).await;
    verifier.becomes(&after, "accept", &["revoked", "stale", "gap"]).await;
    assert_eq!(verifier.of(&token).await, "revoked");
}

/// What one broker locks out, every other refuses from the answer on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broker_on_the_store_refuses_at_once() {
    let stand = redis().await;
    let second = stand.second_broker().await;
    let evidence = || stand.evidence();
    let declare =
        async || stand.call_at(&second, Method::POST, "/v1/tasks", Some(&evidence()), Some(declaration())).await;
    for _ in 0..5 {
        let declared = declare().await.expect(StatusCode::CREATED);
        let token = text(&declared["credentials"][0], "access_token");
        let locked =
            lock_at(&stand, &stand.broker, matching(&json!({"owner": OWNER}))).await.expect(StatusCode::CREATED);
        declare().await.refused(403, "locked");
        assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await, json!({"active": false}));
        let id = text(&locked, "lock");
        expanded(&stand, &id).await;
        release(&stand, &id).await.expect(StatusCode::OK);
    }
}

/// Any broker changes what another one locked, however short a while ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_released_at_another_broker_at_once() {
    let stand = redis().await;
    let second = stand.second_broker().await;
    for _ in 0..5 {
        let until = SystemClock.now() + TimeDelta::minutes(5);
        let lock = json!({"match": {"owner": OWNER}, "until": until, "reason": "r"});
        let id = text(&lock_at(&stand, &second, lock).await.expect(StatusCode::CREATED), "lock");
        let later = json!({"until": until + TimeDelta::minutes(5), "reason": "r"});
        stand.post(&format!("{LOCKS}/{id}/extend"), APPROVER, later).await.expect(StatusCode::OK);
        release(&stand, &id).await.expect(StatusCode::OK);
        let answer =
            stand.call_at(&second, Method::POST, "/v1/tasks", Some(&stand.evidence()), Some(declaration())).await;
        answer.expect(StatusCode::CREATED);
    }
}

/// Those who declare while it is locked: whoever was told yes is found, and dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_slips_through_between_two_brokers() {
    let stand = redis().await;
    let second = stand.second_broker().await;
    for _ in 0..4 {
        let declaring = async {
            let mut tokens = Vec::new();
            loop {
                let answer = stand
                    .call_at(&second, Method::POST, "/v1/tasks", Some(&stand.evidence()), Some(declaration()))
                    .await;
                if answer.status != StatusCode::CREATED {
                    answer.refused(403, "locked");
                    return tokens;
                }
                tokens.push(text(&answer.json()["credentials"][0], "access_token"));
            }
        };
        let locking = async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            lock_at(&stand, &stand.broker, matching(&json!({"owner": OWNER}))).await.expect(StatusCode::CREATED)
        };
        let (tokens, locked) = tokio::join!(declaring, locking);
        let id = text(&locked, "lock");
        let done = expanded(&stand, &id).await;
        assert!(!tokens.is_empty() && done["progress"]["matched"] == done["progress"]["revoked"], "{done}");
        release(&stand, &id).await.expect(StatusCode::OK);
        for token in tokens {
            for at in [&stand.broker, &second] {
                assert_eq!(stand.introspect_at(at, GIT_TOKEN, &token).await, json!({"active": false}));
            }
        }
        let active = stand.get("/v1/tasks?state=active", VIEWER).await.expect(StatusCode::OK);
        assert_eq!(active["tasks"], json!([]), "what was declared under a lock is dead when it is released");
    }
}

/// Whoever can write to the store takes no lock away, and brings nothing back by putting older records there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_to_the_store_unlocks_nothing() {
    let stand = redis().await;
    let second = stand.second_broker().await;
    let locked = lock(&stand, matching(&json!({"owner": OWNER}))).await;
    let id = text(&locked, "lock");
    let keys = [
        format!("remit:lock:{id}"),
        "remit:locks".to_owned(),
        "remit:locks-changed".to_owned(),
        "remit:ends".to_owned(),
    ];
    let redis = stand.redis.as_ref().unwrap();
    let evidence = || stand.evidence();
    let kept_out = async || {
        for at in [&stand.broker, &second] {
            let answer = stand.call_at(at, Method::POST, "/v1/tasks", Some(&evidence()), Some(declaration())).await;
            answer.refused(403, "locked");
        }
    };
    kept_out().await;
    let unlocked = redis.cli(&["GET", &keys[0]]).await;
    let words: Vec<_> = ["DEL"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    redis.cli(&words).await;
    kept_out().await;
    wait_for("it to be put back", || async { redis.cli(&["EXISTS", &keys[0], &keys[1]]).await.trim() == "2" }).await;
    for garbage in ["", "1 1 1 AAAA {}"] {
        for key in &keys[..3] {
            redis.cli(&["SET", key, garbage]).await;
        }
        kept_out().await;
    }
    wait_for("it to be put right", || async {
        redis.cli(&["GET", &keys[0]]).await.trim().ends_with('}') && show(&stand, &id).await["state"] == "in_force"
    })
    .await;
    // A broker that comes later knows it from the record alone.
    drop(second);
    release(&stand, &id).await.expect(StatusCode::OK);
    declared(&stand, json!({})).await;
    // The record of when it stood is put back: those who know of the release go by that.
    redis.cli(&["SET", &keys[0], unlocked.trim()]).await;
    declared(&stand, json!({})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    declared(&stand, json!({})).await;
}

/// Without the store: the journal has it, those who follow deny by it, and the store is told when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_without_the_store_is_recorded_and_arrives() {
    let mut stand = redis().await;
    let (task, token) = declared(&stand, json!({})).await;
    let (_, other) = declared(&stand, json!({"owner": "other@example.com"})).await;
    let mut verifier = Asked::start(in_python(), &stand);
    verifier.becomes(&token, "accept", &["revoked", "locked"]).await;
    verifier.becomes(&other, "accept", &["revoked", "locked"]).await;
    stand.redis.as_mut().unwrap().kill().await;
    let locked = lock_at(&stand, &stand.broker, matching(&json!({"owner": OWNER}))).await.expect(StatusCode::ACCEPTED);
    assert_eq!((&locked["state"], &locked["progress"]["done"]), (&json!("locking"), &json!(false)));
    // By the lock itself: no task can have ended.
    verifier.becomes(&token, "locked", &["revoked", "invalid", "stale", "gap"]).await;
    let id = text(&locked, "lock");
    assert_eq!(show(&stand, &id).await["state"], "locking");
    let listed = stand.get(LOCKS, VIEWER).await.expect(StatusCode::OK);
    assert_eq!(listed["locks"][0]["state"], "locking", "{listed}");
    // The broker dies with it, and comes back before anybody else is told.
    stand.broker.child.kill().await.unwrap();
    stand.redis.as_mut().unwrap().start_again().await;
    let config = stand.broker.config.clone();
    stand.broker = Server::start(&config).await;
    stand.declare(declaration()).await.refused(403, "locked");
    expanded(&stand, &id).await;
    assert_eq!(state(&stand, &task).await, "revoked");
    let second = stand.second_broker().await;
    let answer = stand.call_at(&second, Method::POST, "/v1/tasks", Some(&stand.evidence()), Some(declaration())).await;
    answer.refused(403, "locked");
    verifier.becomes(&token, "revoked", &["accept", "invalid"]).await;
    verifier.becomes(&other, "accept", &["revoked", "locked"]).await;
}

/// A release that only the journal has is not called done, however often somebody asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_without_the_store_is_on_its_way() {
    let mut stand = redis().await;
    let id = text(&lock(&stand, matching(&json!({"owner": OWNER}))).await, "lock");
    stand.redis.as_mut().unwrap().kill().await;
    wait_for("the release", || async { release(&stand, &id).await.status == StatusCode::ACCEPTED }).await;
    let released = release(&stand, &id).await.expect(StatusCode::ACCEPTED);
    assert_eq!((&released["state"], &released["released"]["by"]), (&json!("locking"), &json!("otto")));
    assert_eq!(show(&stand, &id).await["state"], "locking");
    stand.redis.as_mut().unwrap().start_again().await;
    wait_for("the store to be told", || async { show(&stand, &id).await["state"] == "released" }).await;
    release(&stand, &id).await.expect(StatusCode::OK);
}

/// Whoever takes a task out of the list, or its renewal away, hides it from no broker that remembers it; nor is a lock done while there is a
/// record that nobody can read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_to_the_store_hides_no_task() {
    let stand = redis().await;
    let second = stand.second_broker().await;
    let redis = stand.redis.as_ref().unwrap();
    let (here, token) = declared(&stand, json!({})).await;
    let elsewhere =
        stand.call_at(&second, Method::POST, "/v1/tasks", Some(&stand.evidence()), Some(declaration())).await;
    let elsewhere = text(&elsewhere.expect(StatusCode::CREATED), "task");
    let (renewed, _) = declared(&stand, json!({"ttl": 10})).await;
    let renew = format!("/v1/tasks/{renewed}/renew");
    let answer = stand.post(&renew, &stand.evidence(), json!({"ttl": 300})).await.expect(StatusCode::OK);
    // Past the deadline that it was declared with.
    let later = time(&answer, "expires_at") - TimeDelta::seconds(289);
    for hidden in [&here, &elsewhere] {
        assert_eq!(redis.cli(&["ZREM", "remit:tasks", hidden]).await, "1");
    }
    assert_eq!(redis.cli(&["DEL", &format!("remit:{{{renewed}}}:renewal:{renewed}")]).await, "1");
    let (spoilt, _) = declared(&stand, json!({})).await;
    let key = format!("remit:{{{spoilt}}}:task:{spoilt}");
    let record = redis.cli(&["GET", &key]).await;
    assert_eq!(redis.cli(&["SET", &key, "spoilt", "KEEPTTL"]).await, "OK");
    wait_for("the first deadline", || async { SystemClock.now() > later }).await;
    let locked = lock_at(&stand, &stand.broker, matching(&json!({"owner": OWNER}))).await.expect(StatusCode::CREATED);
    let id = text(&locked, "lock");
    for task in [&here, &renewed] {
        wait_for("its end", || async { state(&stand, task).await == "revoked" }).await;
    }
    assert!(!is_active(&stand, &token).await);
    assert_eq!(show(&stand, &id).await["progress"]["done"], false);
    redis.cli(&["SET", &key, &record, "KEEPTTL"]).await;
    expanded(&stand, &id).await;
    for task in [&spoilt, &elsewhere] {
        wait_for("its end", || async { state(&stand, task).await == "revoked" }).await;
    }
}

/// The broker that locked is gone before it has ended anything: another one does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_broker_goes_on_with_what_was_begun() {
    let mut stand = redis().await;
    let second = stand.second_broker().await;
    let (task, _) = declared(&stand, json!({})).await;
    stand.redis.as_mut().unwrap().kill().await;
    let locked = lock_at(&stand, &stand.broker, matching(&json!({"owner": OWNER}))).await.expect(StatusCode::ACCEPTED);
    let id = text(&locked, "lock");
    stand.broker.child.kill().await.unwrap();
    stand.redis.as_mut().unwrap().start_again().await;
    // It comes back for a moment, too short to end anything, and the other one has heard of the lock.
    let config = stand.broker.config.clone();
    stand.broker = Server::start(&config).await;
    stand.broker.child.kill().await.unwrap();
    let path = format!("{LOCKS}/{id}");
    let shown = async || stand.call_at(&second, Method::GET, &path, Some(VIEWER), None).await.expect(StatusCode::OK);
    wait_for("the other broker", || async { shown().await["progress"]["done"] == true }).await;
    let shown = stand.call_at(&second, Method::GET, &format!("/v1/tasks/{task}"), Some(VIEWER), None).await;
    assert_eq!(shown.expect(StatusCode::OK)["state"], "revoked");
}

/// `remit lock`, from the first look to the release, and how it ends where the store is out of reach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_locks_shows_and_releases() {
    let mut stand = redis().await;
    let (task, _) = declared(&stand, json!({})).await;
    let remit = async |token: &str, words: &[&str]| {
        let file = stand.dir.path().join(token);
        std::fs::write(&file, token).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"));
        command.arg("lock").args(words).args(["--url", &stand.broker.url]).env("REMIT_OPERATOR_TOKEN_FILE", &file);
        let output = command.output().await.unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        (said, output.status.code().unwrap())
    };
    let create = ["create", "--owner", OWNER, "--sandbox", "sb-7f3", "--reason", "a drill"];
    let dry: Vec<_> = create.into_iter().chain(["--dry-run"]).collect();
    let (said, code) = remit(RESPONDER, &dry).await;
    assert!(code == 0 && said.contains("would end  1 tasks") && said.contains(OWNER), "{said}");
    let json: Vec<_> = create.into_iter().chain(["--output", "json"]).collect();
    let (said, code) = remit(RESPONDER, &json).await;
    let id = text(&serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}")), "lock");
    assert_eq!(code, 0);
    expanded(&stand, &id).await;
    let (said, code) = remit(VIEWER, &["show", &id]).await;
    for part in [
        "in_force",
        "owner team-payments@example.com, sandbox sb-7f3",
        "until it is released",
        "1 of 1 tasks ended",
        "a drill",
    ] {
        assert!(code == 0 && said.contains(part), "{part}: {said}");
    }
    assert_eq!(state(&stand, &task).await, "revoked");
    let (said, code) = remit(RESPONDER, &["release", &id, "--reason", "over"]).await;
    assert!(code == 1 && said.contains("approver"), "{said}");
    let (said, code) = remit(APPROVER, &["release", &id, "--reason", "over"]).await;
    assert!(code == 0 && said.contains("otto: over"), "{said}");
    let (said, _) = remit(
        RESPONDER,
        &[
            "create",
            "--all",
            "--declared-after",
            "2026-11-20T02:00:00Z",
            "--declared-before",
            "2026-11-20T03:00:00Z",
            "--reason",
            "r",
        ],
    )
    .await;
    assert!(said.contains("everybody, declared since 2026-11-20T02:00:00Z"), "{said}");
    let (said, code) = remit(VIEWER, &["list"]).await;
    assert!(
        code == 0 && said.lines().count() == 3 && said.contains("released") && said.contains("in 14 min"),
        "{said}"
    );
    for wrong in [
        &["create", "--reason", "r"][..],
        &["create", "--all", "--owner", "o", "--reason", "r"],
        &["create", "--owner", "o"],
    ] {
        let (said, code) = remit(RESPONDER, wrong).await;
        assert_eq!(code, 2, "{said}");
    }
    stand.redis.as_mut().unwrap().kill().await;
    let remit = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"))
        .args(["lock", "create", "--owner", OWNER, "--reason", "a leak", "--url", &stand.broker.url])
        .env("REMIT_OPERATOR_TOKEN_FILE", stand.dir.path().join(RESPONDER))
        .output();
    let remit = remit.await.unwrap();
    let said = String::from_utf8(remit.stdout).unwrap();
    assert!(said.contains("locking: on record at this broker"), "{said}");
    assert_eq!(remit.status.code(), Some(4));
}

/// Whoever locks everybody out may do so for 15 minutes, and somebody else decides whether it takes longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_alone_keeps_everybody_out_for_longer() {
    let bea = "bea-holds-two-roles";
    let both = format!(
        "{}\n[[operator]]\nname = \"bea\"\nroles = [\"responder\", \"approver\"]\ntoken_sha256 = \"{}\"\n",
        approver(),
        sha256_hex(bea.as_bytes())
    );
    let stand = Stand::with(Store::Embedded, &both).await;
    let set = async |matches: Value| stand.post(LOCKS, bea, matching(&matches)).await.expect(StatusCode::CREATED);
    let extend = |locked: &Value, until| {
        let path = format!("{LOCKS}/{}/extend", text(locked, "lock"));
        (path, json!({"until": until, "reason": "we are not done"}))
    };
    let locked = set(json!({"all": true})).await;
    let later = time(&locked, "until") + TimeDelta::days(300);
    let (path, body) = extend(&locked, later);
    stand.post(&path, bea, body.clone()).await.refused(403, "policy_denied");
    assert_eq!(show(&stand, &text(&locked, "lock")).await["until"], locked["until"]);
    wait_for("it is on record", || async {
        let refused = |line: &Value| line["event"] == "caller_refused" && line["asked"] == "extend_lock";
        stand.whole_audit().iter().any(refused)
    })
    .await;
    stand.post(&path, APPROVER, body).await.expect(StatusCode::OK);
    // Afterwards too; and of those who are named, one decides.
    let (path, body) = extend(&locked, later + TimeDelta::days(1));
    stand.post(&path, bea, body).await.refused(403, "policy_denied");
    let named = json!({"match": {"owner": OWNER}, "until": SystemClock.now() + TimeDelta::minutes(10), "reason": "r"});
    let named = stand.post(LOCKS, bea, named).await.expect(StatusCode::CREATED);
    let (path, body) = extend(&named, SystemClock.now() + TimeDelta::minutes(20));
    stand.post(&path, bea, body).await.expect(StatusCode::OK);
}

/// Without a configuration there is one operator, who holds all roles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_operator_of_a_machine_extends_a_lock_on_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let (data, listen) = (dir.path().join("data"), "127.0.0.1:0".parse().unwrap());
    let config = Config::development(Development { data: data.clone(), keys: None, listen, store: None }).unwrap();
    let running = remit::serve::start(config, Arc::new(SystemClock)).await.unwrap();
    let token = std::fs::read_to_string(data.join("operator.token")).unwrap();
    let (client, origin) = (client(), format!("http://{}", running.http.unwrap()));
    let post = async |path: String, body: Value| {
        let request = client.post(format!("{origin}{path}")).bearer_auth(token.trim()).json(&body);
        Answer::of(request.send().await.unwrap()).await
    };
    let locked = post(LOCKS.to_owned(), matching(&json!({"all": true}))).await.expect(StatusCode::CREATED);
    let later = json!({"until": time(&locked, "until") + TimeDelta::hours(1), "reason": "we are not done"});
    post(format!("{LOCKS}/{}/extend", text(&locked, "lock")), later).await.expect(StatusCode::OK);
    running.stop().await;
}
