//! A tainted key: nobody believes it, at any broker, from the answer on and for good; and whoever signed with it signs with another.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    both,
    rotation::{
        FILES, file, in_state, kids, kill_broker, list, published, rotate, rotated, sequence, signer, start_broker,
    },
    support::{ADMIN, Answer, GIT_TOKEN, RESPONDER, Server, Stand, Store, VIEWER, part, text, wait_for},
};

const USES: [&str; 6] = ["access_token", "jwt_svid", "revocations", "signals", "status_list", "x509_svid"];

pub(crate) async fn taint_at(stand: &Stand, at: &Server, kid: &str) -> Answer {
    let because = json!({"reason": "seen on a paste site"});
    stand.call_at(at, Method::POST, &format!("/v1/keys/{kid}/taint"), Some(ADMIN), Some(because)).await
}

pub(crate) async fn taint(stand: &Stand, kid: &str) -> Value {
    taint_at(stand, &stand.broker, kid).await.expect(StatusCode::OK)
}

async fn list_at(stand: &Stand, at: &Server) -> Value {
    stand.call_at(at, Method::GET, "/v1/keys", Some(VIEWER), None).await.expect(StatusCode::OK)
}

/// The key that signs for a use, of those that are in a state.
async fn own_key(stand: &Stand, r#use: &str, state: &str) -> String {
    let keys = in_state(&list(stand).await, state);
    text(keys.iter().find(|key| key["use"] == r#use && key["own"] == true).expect("a key"), "kid")
}

/// The keys that a broker shows to verifiers.
async fn shown_at(stand: &Stand, at: &Server) -> BTreeSet<String> {
    let mut shown = BTreeSet::new();
    for path in ["/jwks", "/spiffe/bundle", "/ssf/v1/jwks", "/v1/revocations/jwks"] {
        let document = stand.call_at(at, Method::GET, path, None, None).await.expect(StatusCode::OK);
        shown.extend(kids(document["keys"].as_array().unwrap()));
    }
    shown
}

async fn is_tainted_at(stand: &Stand, at: &Server, kid: &str) -> bool {
    let tainted = kids(&in_state(&list_at(stand, at).await, "tainted")).contains(kid);
    assert_eq!(tainted, !shown_at(stand, at).await.contains(kid), "{kid} is both or neither");
    tainted
}

fn key_files(stand: &Stand) -> Vec<(PathBuf, String)> {
    let dir = stand.dir.path().join("broker-keys");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Puts the file of a key in its place, as from a backup.
fn put(path: &Path, text: &[u8]) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

fn events(stand: &Stand, name: &str) -> Vec<Value> {
    stand.audit().into_iter().filter(|line| line["event"] == name).collect()
}

async fn is_ready(stand: &Stand) -> bool {
    stand.client.get(stand.url("/readyz")).send().await.unwrap().status() == StatusCode::OK
}

both! {
    /// Every kind of key: gone from what verifiers fetch, replaced at once, its file destroyed, and on record.
    async fn a_key_of_any_kind_goes_at_once_and_another_signs(stand) {
        for (r#use, name) in USES.into_iter().zip(FILES) {
            let kid = own_key(&stand, r#use, "signing").await;
            let (before, private) = (sequence(&stand).await, std::fs::read_to_string(file(&stand, &format!("{name}.pem"))).unwrap());
            let tainted = taint(&stand, &kid).await;
            assert_eq!((&tainted["kid"], &tainted["state"], &tainted["use"]), (&json!(kid), &json!("tainted"), &json!(r#use)));
            assert_eq!((tainted["own"].as_bool(), tainted["tainted_at"].is_string()), (Some(false), true), "{tainted}");
            assert!(is_tainted_at(&stand, &stand.broker, &kid).await);
            let new = own_key(&stand, r#use, "signing").await;
            assert!(shown_at(&stand, &stand.broker).await.contains(&new), "{new} can be verified");
            assert!(sequence(&stand).await > before || ["access_token", "revocations", "signals", "status_list"].contains(&r#use));
            let of_key = private.lines().nth(1).unwrap();
            assert!(key_files(&stand).iter().all(|(_, text)| !text.contains(of_key)), "the private half of {name} is still there");
            assert!(key_files(&stand).iter().any(|(path, _)| path.ends_with(format!("{kid}.tainted"))));
            // Asked again, nothing more happens, and the answer is the same.
            assert_eq!(taint(&stand, &kid).await, tainted);
            assert_eq!(own_key(&stand, r#use, "signing").await, new);
            assert!(is_ready(&stand).await);
        }
        assert_eq!(in_state(&list(&stand).await, "tainted").len(), 6);
        let (requested, done) = (events(&stand, "key_taint_requested"), events(&stand, "key_tainted"));
        assert_eq!((requested.len(), done.len(), events(&stand, "key_activated").len()), (12, 12, 6));
        for line in &requested {
            assert_eq!((&line["actor"]["name"], &line["reason"]), (&json!("ada"), &json!("seen on a paste site")), "{line}");
        }
        for (requested, done) in requested.iter().zip(&done) {
            let same = |member| requested[member] == done[member];
            assert!(same("kid") && same("purpose") && same("request") && done["tainted_at"].is_string(), "{done}");
        }
        assert!(!stand.broker.config.with_file_name("broker-keys").join("access-token.next.pem").exists());
    }

    async fn what_it_signed_is_dead_and_what_is_signed_now_lives(stand) {
        let (task, token) = stand.task_with_token().await;
        let kid = signer(&stand).await;
        assert_eq!(stand.introspect(&token).await["active"], true);
        taint(&stand, &kid).await;
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        // At once, on the same task: it did not end.
        let answer = stand.mint(&task).await.expect(StatusCode::OK);
        let again = text(&answer["credentials"][0], "access_token");
        assert_ne!(text(&part(&again, 0), "kid"), kid);
        assert_eq!(stand.introspect(&again).await["active"], true);
        // A JWT-SVID has a key of its own.
        let svid = json!({"credentials": [{"resource": crate::support::GIT, "privilege": "read", "type": "jwt"}]});
        let path = format!("/v1/tasks/{task}/credentials");
        let minted = stand.post(&path, &stand.evidence(), svid.clone()).await.expect(StatusCode::OK);
        let svid_of_before = text(&minted["credentials"][0], "access_token");
        taint(&stand, &own_key(&stand, "jwt_svid", "signing").await).await;
        assert_eq!(stand.introspect(&svid_of_before).await, json!({"active": false}));
        let minted = stand.post(&path, &stand.evidence(), svid).await.expect(StatusCode::OK);
        assert_eq!(stand.introspect(&text(&minted["credentials"][0], "access_token")).await["active"], true);
        assert_eq!(stand.introspect(&again).await["active"], true, "the other kind is as it was");
    }

    /// A retry gets the same lease, signed with the key that signs now.
    async fn a_retry_is_signed_anew(stand) {
        let declare = async || {
            let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence());
            let request = request.header("idempotency-key", "one").json(&crate::support::declaration());
            let declared = Answer::of(request.send().await.unwrap()).await.expect(StatusCode::CREATED);
            let credential = &declared["credentials"][0];
            (text(&declared, "task"), text(credential, "lease"), text(credential, "access_token"))
        };
        let (task, lease, token) = declare().await;
        taint(&stand, &text(&part(&token, 0), "kid")).await;
        let (same_task, same_lease, again) = declare().await;
        assert_eq!((same_task, same_lease), (task, lease));
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        assert_eq!(stand.introspect(&again).await["active"], true);
    }

    /// No list that a tainted key signed is given out, not even the one that was signed a moment before.
    async fn a_status_list_is_signed_anew(stand) {
        stand.task_with_token().await;
        let signed_by = async || {
            let list = stand.call(Method::GET, "/status-lists/0", None, None).await;
            assert_eq!(list.status, StatusCode::OK);
            text(&part(&list.text, 0), "kid")
        };
        let kid = signed_by().await;
        assert_eq!(kid, own_key(&stand, "status_list", "signing").await);
        taint(&stand, &kid).await;
        assert_eq!(signed_by().await, own_key(&stand, "status_list", "signing").await);
    }

    /// A prepared key, a retired one, and the one that signs, while a rotation is under way: each goes, and the rotation goes on.
    async fn during_a_rotation(stand) {
        rotate(&stand).await;
        let (signing, prepared) = (own_key(&stand, "access_token", "signing").await, own_key(&stand, "access_token", "prepared").await);
        taint(&stand, &prepared).await;
        assert!(is_tainted_at(&stand, &stand.broker, &prepared).await);
        rotated(&stand).await;
        let next = signer(&stand).await;
        assert!(next != prepared && next != signing, "another one was prepared");
        assert!(kids(&in_state(&list(&stand).await, "retired")).contains(&signing));
        taint(&stand, &signing).await;
        assert!(is_tainted_at(&stand, &stand.broker, &signing).await);
        assert_eq!(signer(&stand).await, next);
        // What was prepared signs at once where there is something.
        rotate(&stand).await;
        let current = own_key(&stand, "jwt_svid", "signing").await;
        let keys = in_state(&list(&stand).await, "prepared");
        let prepared = keys.iter().find(|key| key["use"] == "jwt_svid").map(|key| text(key, "kid"));
        taint(&stand, &current).await;
        let now = own_key(&stand, "jwt_svid", "signing").await;
        assert!(now != current && prepared.is_none_or(|prepared| now == prepared), "what was prepared signs");
        rotated(&stand).await;
        // Retired authorities are kept for their lists: not this one.
        let old = own_key(&stand, "x509_svid", "retired").await;
        assert!(file(&stand, &format!("x509-svid.{old}.old.pem")).exists());
        taint(&stand, &old).await;
        assert!(is_tainted_at(&stand, &stand.broker, &old).await && !file(&stand, &format!("x509-svid.{old}.old.pem")).exists());
    }

    async fn a_restart_brings_nothing_back(mut stand) {
        let kept = FILES.map(|name| file(&stand, &format!("{name}.pem"))).map(|path| (std::fs::read(&path).unwrap(), path));
        let mut tainted = BTreeSet::new();
        for r#use in USES {
            let kid = own_key(&stand, r#use, "signing").await;
            taint(&stand, &kid).await;
            tainted.insert(kid);
        }
        let new = kids(&in_state(&list(&stand).await, "signing"));
        kill_broker(&mut stand).await;
        start_broker(&mut stand).await;
        assert_eq!(kids(&in_state(&list(&stand).await, "signing")), new);
        // The files of a backup, with the tainted keys in them.
        for _ in 0..2 {
            kill_broker(&mut stand).await;
            for (text, path) in &kept {
                put(path, text);
            }
            start_broker(&mut stand).await;
            assert!(shown_at(&stand, &stand.broker).await.is_disjoint(&tainted));
            assert_eq!(kids(&in_state(&list(&stand).await, "tainted")), tainted);
            let (_, token) = stand.task_with_token().await;
            assert!(!tainted.contains(&text(&part(&token, 0), "kid")));
            assert_eq!(stand.introspect(&token).await["active"], true);
        }
    }

    async fn who_may_and_what_there_is_to_taint(stand) {
        let kid = signer(&stand).await;
        let path = format!("/v1/keys/{kid}/taint");
        let evidence = stand.evidence();
        for other in [VIEWER, RESPONDER, GIT_TOKEN, &evidence] {
            stand.post(&path, other, json!({})).await.refused(403, "policy_denied");
        }
        for malformed in [json!({"reason": 7}), json!({"reason": ""}), json!({"reason": "r".repeat(1025)}), json!({"kid": kid})] {
            stand.post(&path, ADMIN, malformed).await.refused(400, "invalid_request");
        }
        for none in ["x", "..%2f..%2fjwks", "%FF", &kid[1..], &format!("{kid}A")] {
            stand.post(&format!("/v1/keys/{none}/taint"), ADMIN, json!({})).await.refused(400, "invalid_request");
        }
        let unknown = "A".repeat(43);
        let refused = stand.post(&format!("/v1/keys/{unknown}/taint"), ADMIN, json!({})).await.refused(404, "not_found");
        assert_eq!(refused["detail"], "no such key");
        assert_eq!((signer(&stand).await, in_state(&list(&stand).await, "tainted").len()), (kid, 0), "nothing happened");
        assert_eq!(events(&stand, "operator_refused").len(), 2);
        assert_eq!(events(&stand, "key_taint_requested").len(), 0);
    }

    /// The key to be made has no place on the disk: the tainted one signs nothing all the same, and it goes on by itself.
    async fn without_another_key_nothing_is_signed(stand) {
        let (task, token) = stand.task_with_token().await;
        let kid = signer(&stand).await;
        let next = file(&stand, "access-token.next.pem");
        std::fs::create_dir(&next).unwrap();
        taint_at(&stand, &stand.broker, &kid).await.refused(503, "temporarily_unavailable");
        stand.mint(&task).await.refused(503, "temporarily_unavailable");
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        assert!(is_tainted_at(&stand, &stand.broker, &kid).await);
        let missing = stand.call(Method::GET, "/readyz", None, None).await.expect(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(missing["missing"], json!(["keys"]));
        std::fs::remove_dir(&next).unwrap();
        wait_for("another key", || is_ready(&stand)).await;
        let answer = stand.mint(&task).await.expect(StatusCode::OK);
        assert_eq!(stand.introspect(&text(&answer["credentials"][0], "access_token")).await["active"], true);
        assert_eq!(text(&taint(&stand, &kid).await, "state"), "tainted");
    }
}

/// A key of another broker: dead at once at both, and its owner signs with another as soon as it has looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_broker() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, token) = stand.task_with_token().await;
    let kid = signer(&stand).await;
    for at in [&stand.broker, &second] {
        assert_eq!(stand.introspect_at(at, GIT_TOKEN, &token).await["active"], true);
    }
    let tainted = taint_at(&stand, &second, &kid).await.expect(StatusCode::OK);
    for at in [&stand.broker, &second] {
        assert_eq!(stand.introspect_at(at, GIT_TOKEN, &token).await, json!({"active": false}), "{}", at.url);
        assert!(is_tainted_at(&stand, at, &kid).await, "{}", at.url);
    }
    wait_for("another key", || async { in_state(&list(&stand).await, "signing").len() == 6 }).await;
    assert_ne!(signer(&stand).await, kid);
    let answer = stand.mint(&task).await.expect(StatusCode::OK);
    let again = text(&answer["credentials"][0], "access_token");
    for at in [&stand.broker, &second] {
        assert_eq!(stand.introspect_at(at, GIT_TOKEN, &again).await["active"], true, "{}", at.url);
    }
    let sequence_at = async |at| {
        let bundle = stand.call_at(at, Method::GET, "/spiffe/bundle", None, None).await.expect(StatusCode::OK);
        bundle["spiffe_sequence"].clone()
    };
    assert_eq!(sequence_at(&second).await, sequence_at(&stand.broker).await);
    // The same answer from whichever broker, and one more time.
    assert_eq!(taint(&stand, &kid).await, tainted);
    wait_for("the taint on both disks", || async {
        ["broker", "second"].iter().all(|name| stand.dir.path().join(format!("{name}-keys/{kid}.tainted")).exists())
    })
    .await;
}

/// Two admins at two brokers, for the same keys: one taint each, and both brokers sign.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_at_once_are_one() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let keys: Vec<String> = in_state(&list(&stand).await, "signing")
        .iter()
        .chain(&in_state(&list_at(&stand, &second).await, "signing"))
        .map(|key| text(key, "kid"))
        .collect();
    assert_eq!(keys.len(), 12);
    for kid in &keys {
        let (one, other) = tokio::join!(taint_at(&stand, &stand.broker, kid), taint_at(&stand, &second, kid));
        let (mut one, mut other) = (one.expect(StatusCode::OK), other.expect(StatusCode::OK));
        // Whose it is may be told before its owner has looked.
        for answer in [&mut one, &mut other] {
            answer.as_object_mut().unwrap().remove("own");
        }
        assert_eq!(one, other);
    }
    for at in [&stand.broker, &second] {
        assert_eq!(kids(&in_state(&list_at(&stand, at).await, "tainted")), keys.iter().cloned().collect());
        wait_for("the keys of all", || async {
            let list = list_at(&stand, at).await;
            in_state(&list, "signing").len() == 6 && in_state(&list, "published").len() == 6
        })
        .await;
        let declared = stand
            .call_at(at, Method::POST, "/v1/tasks", Some(&stand.evidence()), Some(crate::support::declaration()))
            .await
            .expect(StatusCode::CREATED);
        let token = text(&declared["credentials"][0], "access_token");
        for asked in [&stand.broker, &second] {
            assert_eq!(stand.introspect_at(asked, GIT_TOKEN, &token).await["active"], true);
        }
    }
}

/// A broker that is away while its key is tainted never signs with it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_broker_that_is_away() {
    let mut stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let own = kids(&in_state(&list(&stand).await, "signing"));
    kill_broker(&mut stand).await;
    for kid in &own {
        let tainted = taint_at(&stand, &second, kid).await.expect(StatusCode::OK);
        assert_eq!((&tainted["state"], &tainted["own"]), (&json!("tainted"), &json!(false)));
    }
    start_broker(&mut stand).await;
    let new = kids(&in_state(&list(&stand).await, "signing"));
    assert!(new.len() == 6 && new.is_disjoint(&own));
    assert!(own.contains(&kids(&in_state(&list_at(&stand, &second).await, "tainted")).pop_first().unwrap()));
    assert!(new.contains(&signer(&stand).await));
}

/// Killed at each step after the taint was on record: the next start finds it and finishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_after_it_was_recorded_is_taken_up() {
    let mut stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let names = ["access-token.pem", "access-token.next.pem"];
    let [key, next] = names.map(|name| file(&stand, name));
    let mut tainted = BTreeSet::new();
    for prepared in [false, true, true] {
        let kid = signer(&stand).await;
        if prepared {
            rotate(&stand).await;
        }
        // On record, and nothing else.
        kill_broker(&mut stand).await;
        let of_tainted = std::fs::read(&key).unwrap();
        taint_at(&stand, &second, &kid).await.expect(StatusCode::OK);
        tainted.insert(kid);
        start_broker(&mut stand).await;
        let new = signer(&stand).await;
        assert!(!tainted.contains(&new));
        // The other one signed already, and the files were not yet in their places.
        kill_broker(&mut stand).await;
        std::fs::rename(&key, &next).unwrap();
        put(&key, &of_tainted);
        start_broker(&mut stand).await;
        assert_eq!(signer(&stand).await, new);
        assert!(!next.exists() && std::fs::read(&key).unwrap() != of_tainted);
        // The tainted one as the one that is prepared.
        kill_broker(&mut stand).await;
        put(&next, &of_tainted);
        start_broker(&mut stand).await;
        assert_eq!(signer(&stand).await, new);
        assert!(!next.exists() || std::fs::read(&next).unwrap() != of_tainted);
        assert!(shown_at(&stand, &second).await.is_disjoint(&tainted));
    }
    // Killed while it is asked, at some moment or other: it stands or it does not, and where it does, all of it.
    for wait in [0, 2, 4, 8, 16, 32] {
        let kid = signer(&stand).await;
        let request = stand.client.post(stand.url(&format!("/v1/keys/{kid}/taint"))).bearer_auth(ADMIN).send();
        let kill = async {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            kill_broker(&mut stand).await;
        };
        let (asked, ()) = tokio::join!(request, kill);
        let answered = asked.is_ok_and(|answer| answer.status() == StatusCode::OK);
        start_broker(&mut stand).await;
        let stands = is_tainted_at(&stand, &stand.broker, &kid).await;
        assert!(stands || !answered);
        assert_eq!(signer(&stand).await != kid, stands);
    }
}

/// What the store does not learn of is no taint, and is not told as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_out_of_reach_is_told_as_such() {
    let mut stand = Stand::new(Store::Redis).await;
    let kid = signer(&stand).await;
    stand.redis.as_mut().unwrap().kill().await;
    taint_at(&stand, &stand.broker, &kid).await.refused(503, "temporarily_unavailable");
    assert!(published(&stand, "/jwks").await.contains(&kid));
    stand.redis.as_mut().unwrap().start_again().await;
    wait_for("the broker", || is_ready(&stand)).await;
    assert_eq!(signer(&stand).await, kid);
    taint(&stand, &kid).await;
    assert_ne!(signer(&stand).await, kid);
    // Known taints stand whatever the store says.
    stand.redis.as_mut().unwrap().kill().await;
    assert!(!published(&stand, "/jwks").await.contains(&kid));
}

/// A store that forgets a taint, or is made to, is told again by whoever knows; a broker that starts knows from its own disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forgets_brings_nothing_back() {
    let mut stand = Stand::new(Store::Redis).await;
    let (_, token) = stand.task_with_token().await;
    let kid = signer(&stand).await;
    let key = file(&stand, "access-token.pem");
    let of_tainted = std::fs::read(&key).unwrap();
    taint(&stand, &kid).await;
    let record = format!("remit:taint:{kid}");
    let redis = async |stand: &Stand, arguments: &[&str]| stand.redis.as_ref().unwrap().cli(arguments).await;
    let is_recorded = async |stand: &Stand| redis(stand, &["EXISTS", &record]).await.trim() == "1";
    redis(&stand, &["DEL", &record]).await;
    assert_eq!(stand.introspect(&token).await, json!({"active": false}), "this broker knows");
    wait_for("the record", || is_recorded(&stand)).await;
    // With a broker that is down meanwhile, and with its old key in its place.
    kill_broker(&mut stand).await;
    redis(&stand, &["DEL", &record]).await;
    put(&key, &of_tainted);
    start_broker(&mut stand).await;
    assert!(is_tainted_at(&stand, &stand.broker, &kid).await && is_recorded(&stand).await);
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    // A store that lost everything, and so is another one.
    kill_broker(&mut stand).await;
    redis(&stand, &["FLUSHALL"]).await;
    put(&key, &of_tainted);
    start_broker(&mut stand).await;
    assert!(is_tainted_at(&stand, &stand.broker, &kid).await && is_recorded(&stand).await);
    assert_ne!(signer(&stand).await, kid);
    // Nor is a taint believed that no broker wrote: then nothing can be told.
    let signs = signer(&stand).await;
    let forged = format!("remit:taint:{signs}");
    redis(&stand, &["ZADD", "remit:taints", "0", &signs]).await;
    redis(&stand, &["SET", &forged, "1 1 1 x {}"]).await;
    stand.get("/v1/keys", VIEWER).await.refused(503, "temporarily_unavailable");
    redis(&stand, &["DEL", &forged]).await;
    list(&stand).await;
}

/// No token that is minted after the answer is signed with the key, whoever else is minting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_nothing_is_signed_with_it_after_the_answer() {
    let stand = Stand::new(Store::Embedded).await;
    let (task, _) = stand.task_with_token().await;
    for _ in 0..5 {
        let kid = signer(&stand).await;
        let over = std::sync::atomic::AtomicBool::new(false);
        let load = async || {
            let mut good = 0;
            loop {
                let begun_after = over.load(std::sync::atomic::Ordering::Acquire);
                let answer = stand.mint(&task).await;
                if begun_after {
                    let minted = answer.expect(StatusCode::OK);
                    assert_ne!(text(&part(&text(&minted["credentials"][0], "access_token"), 0), "kid"), kid);
                    good += 1;
                } else if answer.status != StatusCode::OK {
                    answer.refused(503, "temporarily_unavailable");
                }
                if good == 5 {
                    return;
                }
            }
        };
        let tainting = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            taint(&stand, &kid).await;
            over.store(true, std::sync::atomic::Ordering::Release);
        };
        tokio::join!(load(), load(), load(), tainting);
    }
}
