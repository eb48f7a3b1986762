//! Signing keys change, and no verifier notices: neither one that keeps the public keys as long as it may, nor one that looks at the
//! last moment of a token.

use chrono::TimeDelta;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

use remit::{clock::Clock as _, jose::Thumbprint};

use crate::{
    both,
    support::{
        ADMIN, Answer, Frozen, GIT, GIT_TOKEN, RESPONDER, Server, Stand, Store, VIEWER, audit_of, client, part, text,
        time, wait_for,
    },
};

pub(crate) const FILES: [&str; 6] = ["access-token", "jwt-svid", "revocations", "signals", "status-list", "x509-svid"];

/// The keys that an operator sees, in one state.
pub(crate) fn in_state(list: &Value, state: &str) -> Vec<Value> {
    let keys = list["keys"].as_array().expect("a list");
    keys.iter().filter(|key| key["state"] == state).cloned().collect()
}

/// The ids of keys. An authority has none in the bundle, and there it is what it is everywhere: the thumbprint.
pub(crate) fn kids(keys: &[Value]) -> BTreeSet<String> {
    let thumbprint = |key: &Value| {
        let members = json!({"kty": key["kty"], "crv": key["crv"], "x": key["x"], "y": key["y"]});
        String::from(Thumbprint::of(&members).expect("a key"))
    };
    keys.iter().map(|key| key["kid"].as_str().map_or_else(|| thumbprint(key), str::to_owned)).collect()
}

pub(crate) async fn list(stand: &Stand) -> Value {
    stand.get("/v1/keys", VIEWER).await.expect(StatusCode::OK)
}

pub(crate) async fn published(stand: &Stand, path: &str) -> BTreeSet<String> {
    let document = stand.call(Method::GET, path, None, None).await.expect(StatusCode::OK);
    kids(document["keys"].as_array().expect("keys"))
}

pub(crate) async fn sequence(stand: &Stand) -> u64 {
    let bundle = stand.call(Method::GET, "/spiffe/bundle", None, None).await.expect(StatusCode::OK);
    bundle["spiffe_sequence"].as_u64().expect("a number")
}

pub(crate) async fn rotate(stand: &Stand) -> Value {
    stand.post("/v1/keys/rotate", ADMIN, json!({"reason": "a test"})).await.expect(StatusCode::OK)
}

/// Waits until what was prepared signs.
pub(crate) async fn rotated(stand: &Stand) {
    wait_for("the next keys", || async { in_state(&list(stand).await, "prepared").is_empty() }).await;
}

pub(crate) fn file(stand: &Stand, name: &str) -> PathBuf {
    stand.dir.path().join("broker-keys").join(name)
}

/// The key that a fresh token is signed with.
pub(crate) async fn signer(stand: &Stand) -> String {
    text(&part(&stand.task_with_token().await.1, 0), "kid")
}

/// A fresh token is signed with this key, as long as it is the one that signs: a slow machine may be past the change by now.
async fn still_signs(stand: &Stand, old: &str) {
    let signer = signer(stand).await;
    let signing = kids(&in_state(&list(stand).await, "signing"));
    assert!(signer == old || !signing.contains(old), "not every verifier can know {signer} yet");
}

/// A verifier in another process, fed with tokens.
struct Verifier(Child);

impl Verifier {
    fn start(stand: &Stand, path: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("target/venv/bin/python");
        assert!(python.exists(), "target/venv is missing: run the tests with tests/run");
        let child = Command::new(python)
            .arg(root.join("tests/it/clients/rotation.py"))
            .args([stand.broker.url.as_str(), GIT, path])
            .env("no_proxy", "*")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        Self(child.expect("python"))
    }

    async fn give(&mut self, token: &str) {
        let line = format!("{token}\n");
        self.0.stdin.as_mut().expect("a pipe").write_all(line.as_bytes()).await.expect("it reads");
    }

    /// What it says once every token has expired.
    async fn verdict(mut self) -> Value {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.take().expect("a pipe").read_to_string(&mut said).await.expect("text");
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"))
    }
}

both! {
    /// Tokens live three seconds and verifiers keep keys for one, while the keys change three times.
    async fn no_valid_token_fails_while_keys_change_under_load(stand) {
        let mut verifiers = [Verifier::start(&stand, "/jwks"), Verifier::start(&stand, "/spiffe/bundle")];
        let (task, _) = stand.task_with_token().await;
        let before = (list(&stand).await, sequence(&stand).await);
        let over = AtomicBool::new(false);
        let credential = |form: &str| json!({"resource": GIT, "privilege": "read", "ttl": 3, "type": form});
        let body = json!({"credentials": [credential("access_token"), credential("jwt")]});
        let path = format!("/v1/tasks/{task}/credentials");
        let evidence = stand.evidence();
        let (tokens, mut minted) = tokio::sync::mpsc::unbounded_channel::<[String; 2]>();
        let load = async |tokens: tokio::sync::mpsc::UnboundedSender<_>| {
            while !over.load(Ordering::Relaxed) {
                let answer = stand.post(&path, &evidence, body.clone()).await.expect(StatusCode::OK);
                let token = |at: usize| text(&answer["credentials"][at], "access_token");
                tokens.send([token(0), token(1)]).expect("it is read");
            }
        };
        let rotations = async {
            for _ in 0..3 {
                rotate(&stand).await;
                rotated(&stand).await;
                // So that each pair of keys is seen at work.
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
            over.store(true, Ordering::Relaxed);
        };
        let feed = async {
            while let Some(pair) = minted.recv().await {
                for (verifier, token) in verifiers.iter_mut().zip(&pair) {
                    verifier.give(token).await;
                }
            }
        };
        tokio::join!(load(tokens.clone()), load(tokens), rotations, feed);
        for verifier in verifiers {
            let verdict = verifier.verdict().await;
            assert_eq!(verdict["failed"], json!([]), "{verdict}");
            assert_eq!(verdict["kids"].as_array().unwrap().len(), 4, "{verdict}");
            assert!(verdict["verified"].as_u64().unwrap() >= 40, "{verdict}");
        }
        // What an operator sees of it, and until when it is kept.
        let after = list(&stand).await;
        assert_eq!(in_state(&before.0, "signing").len(), 6);
        assert!(kids(&in_state(&before.0, "signing")).is_subset(&kids(&in_state(&after, "retired"))));
        assert_eq!((in_state(&after, "signing").len(), in_state(&after, "retired").len()), (6, 18), "{after}");
        assert!(sequence(&stand).await >= before.1 + 6);
    }
}

/// Two brokers on one store: each changes its own keys, and both say so of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_changes_its_own_keys_and_the_others_know_them() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let at_second =
        async |path: &str| stand.call_at(&second, Method::GET, path, Some(VIEWER), None).await.expect(StatusCode::OK);
    let of_second = kids(&in_state(&at_second("/v1/keys").await, "signing"));
    let prepared = rotate(&stand).await;
    assert_eq!(prepared["keys"].as_array().unwrap().len(), 12, "only its own: {prepared}");
    rotated(&stand).await;
    let (_, token) = stand.task_with_token().await;
    let kid = text(&part(&token, 0), "kid");
    assert!(kids(&in_state(&prepared, "prepared")).contains(&kid));
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await["active"], true);
    let jwks = at_second("/jwks").await;
    assert!(kids(jwks["keys"].as_array().unwrap()).contains(&kid));
    let seen = at_second("/v1/keys").await;
    assert_eq!(kids(&in_state(&seen, "signing")), of_second);
    assert_eq!(in_state(&seen, "retired").len(), 6);
    let published = in_state(&seen, "published");
    assert!(published.len() == 6 && published.iter().all(|key| key["own"] == false), "{seen}");
    assert_eq!(at_second("/spiffe/bundle").await["spiffe_sequence"], sequence(&stand).await);
}

/// Whatever a crash leaves half done is taken up at the next start, and nothing is signed with a key that was retired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_the_middle_is_taken_up() {
    let mut stand = Stand::new(Store::Redis).await;
    let old = signer(&stand).await;
    // Prepared, and killed before it signs.
    let prepared = kids(&in_state(&rotate(&stand).await, "prepared"));
    still_signs(&stand, &old).await;
    kill_broker(&mut stand).await;
    start_broker(&mut stand).await;
    rotated(&stand).await;
    let new = signer(&stand).await;
    assert!(prepared.contains(&new) && !FILES.iter().any(|name| file(&stand, &format!("{name}.next.pem")).exists()));

    // Killed after the end of the old key was on record, and before its file was replaced.
    let [key, next] = ["access-token.pem", "access-token.next.pem"].map(|name| file(&stand, name));
    std::fs::copy(&key, stand.dir.path().join("kept")).unwrap();
    rotate(&stand).await;
    rotated(&stand).await;
    let newest = signer(&stand).await;
    assert_ne!(newest, new);
    kill_broker(&mut stand).await;
    std::fs::rename(&key, &next).unwrap();
    std::fs::rename(stand.dir.path().join("kept"), &key).unwrap();
    let kept = std::fs::read(&key).unwrap();
    start_broker(&mut stand).await;
    assert_eq!(signer(&stand).await, newest);
    assert!(!next.exists());

    // An old key that comes back from a backup: it signs nothing, and another one waits until it is known.
    kill_broker(&mut stand).await;
    std::fs::write(&key, kept).unwrap();
    start_broker(&mut stand).await;
    let another = signer(&stand).await;
    assert!(![old, new, newest].contains(&another));
    assert!(published(&stand, "/jwks").await.contains(&another));
}

/// A backup may be of a moment when the next keys were prepared: by now those are retired too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_an_old_backup_sign_nothing() {
    let mut stand = Stand::new(Store::Embedded).await;
    let mut retired = vec![signer(&stand).await];
    rotate(&stand).await;
    let kept = FILES.map(|name| ["pem", "next.pem"].map(|kind| file(&stand, &format!("{name}.{kind}"))));
    let kept: Vec<_> = kept.into_iter().flatten().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
    for _ in 0..2 {
        rotated(&stand).await;
        retired.push(signer(&stand).await);
        rotate(&stand).await;
    }
    kill_broker(&mut stand).await;
    for (text, path) in kept {
        std::fs::write(path, text).unwrap();
    }
    start_broker(&mut stand).await;
    let (task, token) = stand.task_with_token().await;
    let signer = text(&part(&token, 0), "kid");
    assert!(!retired.contains(&signer), "{signer} of {retired:?}");
    assert_eq!(stand.introspect(&token).await["active"], true, "{task}");
    let signing = in_state(&list(&stand).await, "signing");
    assert_eq!(signing.len(), FILES.len());
}

pub(crate) async fn kill_broker(stand: &mut Stand) {
    stand.broker.child.kill().await.expect("killed");
}

pub(crate) async fn start_broker(stand: &mut Stand) {
    stand.broker = Server::start(&stand.broker.config.clone()).await;
}

/// A rotation that the store does not learn of is none; it is taken up as soon as the store is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_out_of_reach_puts_a_rotation_off() {
    let mut stand = Stand::new(Store::Redis).await;
    let old = signer(&stand).await;
    stand.redis.as_mut().unwrap().kill().await;
    stand.post("/v1/keys/rotate", ADMIN, json!({})).await.refused(503, "temporarily_unavailable");
    stand.get("/v1/keys", VIEWER).await.refused(503, "temporarily_unavailable");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    stand.redis.as_mut().unwrap().start_again().await;
    let ready = async || stand.client.get(stand.url("/readyz")).send().await.unwrap().status() == StatusCode::OK;
    wait_for("the broker", ready).await;
    still_signs(&stand, &old).await;
    // Asked for again, or not: it is under way.
    rotate(&stand).await;
    rotated(&stand).await;
    assert_ne!(signer(&stand).await, old);
}

/// What a store in doubt may not know, nobody keeps for as long as what is certain: another broker may be publishing its next keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_not_kept_where_the_store_is_in_doubt() {
    let mut stand = Stand::new(Store::Redis).await;
    let kept = async |stand: &Stand, path: &str| {
        let answer = stand.call(Method::GET, path, None, None).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.headers["cache-control"].to_str().unwrap().to_owned()
    };
    assert_eq!(kept(&stand, "/jwks").await, "public, max-age=1");
    stand.redis.as_mut().unwrap().kill().await;
    assert_eq!([kept(&stand, "/jwks").await, kept(&stand, "/spiffe/bundle").await], ["no-cache", "no-cache"]);
    assert_eq!(kept(&stand, "/.well-known/oauth-authorization-server").await, "public, max-age=1");
}

/// Whoever fetches keys may have less patience than a broker has with its store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_told_at_once_while_the_store_hangs() {
    let stand = Stand::new(Store::Redis).await;
    let known = published(&stand, "/jwks").await;
    stand.redis.as_ref().unwrap().hang().await;
    let ready = async || stand.client.get(stand.url("/readyz")).send().await.unwrap().status() == StatusCode::OK;
    wait_for("the doubt", async || !ready().await).await;
    let begun = std::time::Instant::now();
    assert_eq!(published(&stand, "/jwks").await, known);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
}

/// A store that forgot everything gets nothing new, keys included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forgot_everything_gets_no_keys() {
    let stand = Stand::new(Store::Redis).await;
    let redis = stand.redis.as_ref().unwrap();
    redis.cli(&["FLUSHALL"]).await;
    let ready = async || stand.client.get(stand.url("/readyz")).send().await.unwrap().status() == StatusCode::OK;
    wait_for("the doubt", async || !ready().await).await;
    stand.post("/v1/keys/rotate", ADMIN, json!({})).await.refused(503, "temporarily_unavailable");
    assert!(!file(&stand, "access-token.next.pem").exists());
}

/// A disk that takes no key is tried now and then: the audit log is not filled with what did not happen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_be_made_is_not_asked_for_every_second() {
    let rotating = "jwks_max_age = 300\nrotate_every = 86400";
    let frozen = Frozen::start(|config| config.replace("jwks_max_age = 1", rotating)).await;
    for name in FILES {
        std::fs::create_dir(frozen.dir.path().join("broker-keys").join(format!("{name}.next.pem"))).unwrap();
    }
    frozen.clock.advance(TimeDelta::hours(24));
    let asked = || {
        let audit = audit_of(&frozen.dir.path().join("broker-audit"));
        audit.iter().filter(|line| line["event"] == "key_rotation_requested").count()
    };
    wait_for("the first attempt", || async { asked() >= FILES.len() }).await;
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(asked(), FILES.len());
    for name in FILES {
        std::fs::remove_dir(frozen.dir.path().join("broker-keys").join(format!("{name}.next.pem"))).unwrap();
    }
    frozen.clock.advance(TimeDelta::seconds(60));
    frozen.until("the next keys", |list| in_state(list, "prepared").len() == FILES.len()).await;
    frozen.running.stop().await;
}

impl Frozen {
    async fn get(&self, path: &str) -> Value {
        Answer::of(client().get(self.url(path)).bearer_auth(VIEWER).send().await.unwrap()).await.expect(StatusCode::OK)
    }

    async fn keys(&self) -> Value {
        self.get("/v1/keys").await
    }

    /// The keys that verifiers see.
    async fn seen(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for path in ["/jwks", "/spiffe/bundle", "/ssf/v1/jwks", "/v1/revocations/jwks"] {
            found.extend(kids(self.get(path).await["keys"].as_array().unwrap()));
        }
        found
    }

    async fn until(&self, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || async { done(&self.keys().await) }).await;
        self.keys().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_key_goes_by_itself_and_not_before_its_last_token() {
    let rotating = "jwks_max_age = 300\nrotate_every = 86400";
    let frozen = Frozen::start(|config| config.replace("jwks_max_age = 1", rotating)).await;
    let old = kids(&in_state(&frozen.keys().await, "signing"));
    // A day later the next keys are prepared, and published at once.
    frozen.clock.advance(TimeDelta::hours(24));
    let list = frozen.until("the next keys", |list| in_state(list, "prepared").len() == 6).await;
    let next = kids(&in_state(&list, "prepared"));
    assert_eq!((kids(&in_state(&list, "signing")), frozen.seen().await), (old.clone(), &old | &next));
    let signs_from = time(&in_state(&list, "prepared")[0], "signs_from");
    assert_eq!(signs_from, frozen.clock.now() + TimeDelta::seconds(300));
    let sequence = frozen.get("/spiffe/bundle").await["spiffe_sequence"].as_u64().unwrap();

    // A second early they sign nothing.
    frozen.clock.advance(TimeDelta::seconds(299));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(kids(&in_state(&frozen.keys().await, "signing")), old);
    frozen.clock.advance(TimeDelta::seconds(1));
    let list = frozen.until("the change", |list| in_state(list, "prepared").is_empty()).await;
    assert_eq!((kids(&in_state(&list, "signing")), kids(&in_state(&list, "retired"))), (next.clone(), old.clone()));

    // The old ones signed nothing that still lives: a minute for clocks that differ, and they are gone.
    assert_eq!(frozen.seen().await, &old | &next);
    frozen.clock.advance(TimeDelta::seconds(59));
    assert_eq!(frozen.seen().await, &old | &next);
    // The states of the revocation feed lived for five seconds more.
    frozen.clock.advance(TimeDelta::seconds(7));
    assert_eq!((frozen.seen().await, kids(frozen.keys().await["keys"].as_array().unwrap())), (next.clone(), next));
    assert!(frozen.get("/spiffe/bundle").await["spiffe_sequence"].as_u64().unwrap() > sequence, "it only rises");
    frozen.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_idempotent_on_record_and_for_admins() {
    let stand = Stand::new(Store::Embedded).await;
    stand.post("/v1/keys/rotate", RESPONDER, json!({})).await.refused(403, "policy_denied");
    stand.post("/v1/keys/rotate", ADMIN, json!({"reason": 7})).await.refused(400, "invalid_request");
    stand.post("/v1/keys/rotate", ADMIN, json!({"use": "access_token"})).await.refused(400, "invalid_request");
    stand.post("/v1/keys/rotate", ADMIN, json!({"reason": "r".repeat(1025)})).await.refused(400, "invalid_request");
    assert_eq!(list(&stand).await["keys"].as_array().unwrap().len(), 6, "who was refused changed nothing");
    let both = (rotate(&stand).await, rotate(&stand).await);
    assert_eq!(kids(&in_state(&both.0, "prepared")), kids(&in_state(&both.1, "prepared")));
    rotated(&stand).await;
    let old = kids(&in_state(&list(&stand).await, "retired"));
    let audit = stand.audit();
    let events = |name: &str| audit.iter().filter(|line| line["event"] == name).cloned().collect::<Vec<_>>();
    let requested = events("key_rotation_requested");
    assert_eq!((requested.len(), &requested[0]["actor"]["name"]), (2, &json!("ada")), "{requested:?}");
    assert_eq!(requested[0]["reason"], "a test");
    let replaced: BTreeSet<_> = events("key_activated").iter().map(|line| text(line, "replaces")).collect();
    assert_eq!(replaced, old);
    assert_eq!(events("operator_refused").len(), 1);
    // No private half is anywhere but in its file, and the old ones are in none: but an authority's, which has lists to sign.
    for entry in std::fs::read_dir(stand.dir.path().join("broker-keys")).unwrap() {
        let path = entry.unwrap().path();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert!(
            mode & 0o777 == 0o600
                && (FILES.iter().chain(&["audit"]).any(|name| path.ends_with(format!("{name}.pem")))
                    || old.iter().any(|kid| path.ends_with(format!("x509-svid.{kid}.old.pem")))),
            "{path:?}"
        );
    }
}
