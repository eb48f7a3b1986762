//! The audit log as evidence: what an auditor does with its files, offline, and whoever wants to change them unseen.

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    both,
    support::{GIT, Server, Stand, Store, declaration, text, wait_for},
};

/// Asserts that every intent is settled by a record of its own, or listed as one that is not.
#[track_caller]
pub(crate) fn accounts_for_intents(found: &Value, lines: &[Value]) {
    let told = lines.iter().filter(|line| line["outcome"] != "unknown");
    let settled: Vec<_> =
        told.filter_map(|line| Some(line["settles"][0].as_u64()?..=line["settles"][1].as_u64()?)).collect();
    for intent in lines.iter().filter(|line| line["intent"] == true) {
        let sequence = intent["sequence"].as_u64().unwrap();
        let is_settled = settled.iter().any(|span| span.contains(&sequence));
        let is_listed = found["unsettled"].as_array().unwrap().iter().any(|one| one["sequence"] == sequence);
        assert!(is_settled != is_listed, "{intent}: {found}");
    }
}

/// What `remit audit …` printed as JSON, and its exit code.
pub(crate) fn audit(arguments: &[&str]) -> (Value, i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_remit"))
        .args(["--output", "json", "audit"])
        .args(arguments)
        .output()
        .expect("remit");
    let told = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    let lines: Vec<Value> =
        String::from_utf8_lossy(told).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let told = if let [one] = lines.as_slice() { one.clone() } else { json!(lines) };
    (told, output.status.code().expect("it exits"))
}

pub(crate) fn directory(stand: &Stand) -> PathBuf {
    stand.dir.path().join("broker-audit")
}

pub(crate) fn as_text(path: &Path) -> &str {
    path.to_str().expect("text")
}

async fn signed_to(dir: &Path, to: u64) {
    let signed = || async { audit(&["verify", as_text(dir)]).0["signed_to"].as_u64().is_some_and(|at| at >= to) };
    wait_for("a checkpoint", signed).await;
}

/// A copy of a log, to be spoiled.
fn copy(dir: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(dir).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

fn only_segment(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut segments = files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let (first, second) = (segments.next().expect("a segment"), segments.next());
    assert!(second.is_none());
    first
}

/// A way to change the lines of a log.
type Spoil = fn(&mut Vec<String>);

const OFTEN: &str = "[audit]\ncheckpoint_every = 1\n";

/// A log beside its running broker is good, and every way to change it shows, by the public key alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_to_the_log_shows() {
    let stand = Stand::with(Store::Embedded, OFTEN).await;
    for _ in 0..5 {
        stand.task_with_token().await;
    }
    let dir = directory(&stand);
    signed_to(&dir, 10).await;
    let (good, code) = audit(&["verify", as_text(&dir)]);
    assert_eq!((code, &good["good"], &good["first"]), (0, &json!(true), &json!(1)), "{good}");
    assert_eq!(good["unsettled"], json!([]), "{good}");

    // An auditor has the public key from the day that the log was set up, and checkpoints from elsewhere.
    let key = stand.dir.path().join("pinned.jwks");
    fs::copy(dir.join("checkpoints.jwks"), &key).unwrap();
    let anchor = stand.dir.path().join("anchored");
    fs::copy(dir.join("checkpoints"), &anchor).unwrap();
    let spoiled = stand.dir.path().join("spoiled");
    let check = |arguments: &[&str]| {
        let all = [&["verify", as_text(&spoiled), "--key", as_text(&key)][..], arguments].concat();
        audit(&all)
    };
    let lines = |text: &str| text.split_inclusive('\n').map(str::to_owned).collect::<Vec<_>>();
    let ways: [(&str, u64, Spoil); 6] = [
        ("edit", 4, |lines| lines[3] = lines[3].replace("acme", "evil")),
        ("delete", 4, |lines| drop(lines.remove(3))),
        ("insert", 5, |lines| lines.insert(4, lines[3].clone())),
        ("reorder", 4, |lines| lines.swap(3, 4)),
        ("truncate", 8, |lines| lines.truncate(7)),
        ("not a record", 4, |lines| lines[3] = "{}\n".into()),
    ];
    for (way, bad, spoil) in ways {
        copy(&dir, &spoiled);
        let segment = only_segment(&spoiled);
        let mut all = lines(&fs::read_to_string(&segment).unwrap());
        spoil(&mut all);
        fs::write(&segment, all.concat()).unwrap();
        let (found, code) = check(&[]);
        assert_eq!((code, &found["good"], &found["sequence"]), (5, &json!(false), &json!(bad)), "{way}: {found}");
    }
    // Without its checkpoints it is as good as rewritten.
    copy(&dir, &spoiled);
    fs::write(spoiled.join("checkpoints"), "").unwrap();
    let (found, code) = check(&[]);
    assert_eq!((code, &found["good"], &found["sequence"]), (5, &json!(false), &json!(1)), "{found}");
    // A line among the checkpoints that is none, here or elsewhere, is told, and the rest is read.
    copy(&dir, &spoiled);
    let torn = format!("{}a.b\n", fs::read_to_string(dir.join("checkpoints")).unwrap());
    let elsewhere = stand.dir.path().join("torn");
    fs::write(&elsewhere, &torn).unwrap();
    let (found, code) = check(&["--anchor", as_text(&elsewhere)]);
    assert_eq!(
        (code, &found["good"], found["unread"].as_array().map(Vec::len)),
        (5, &json!(false), Some(1)),
        "{found}"
    );
    assert!(found["signed_to"].as_u64().unwrap() >= 10, "{found}");
    fs::write(spoiled.join("checkpoints"), &torn).unwrap();
    assert_eq!(check(&[]).1, 5);
    // Cut together with its checkpoints: only those from elsewhere show it.
    copy(&dir, &spoiled);
    let segment = only_segment(&spoiled);
    let all = lines(&fs::read_to_string(&segment).unwrap());
    fs::write(&segment, all[..7].concat()).unwrap();
    let signed = fs::read_to_string(dir.join("checkpoints")).unwrap();
    fs::write(spoiled.join("checkpoints"), signed.split_inclusive('\n').next().unwrap()).unwrap();
    assert_eq!(check(&[]).1, 0);
    let (found, code) = check(&["--anchor", as_text(&anchor)]);
    assert_eq!((code, &found["sequence"]), (5, &json!(8)), "{found}");
    // Another broker's key, and checkpoints of its own making.
    let other = Stand::with(Store::Embedded, OFTEN).await;
    other.task_with_token().await;
    let others = directory(&other);
    signed_to(&others, 2).await;
    let (found, code) = audit(&["verify", as_text(&others), "--key", as_text(&key)]);
    assert_eq!(code, 2, "{found}");
    copy(&dir, &spoiled);
    fs::write(spoiled.join("checkpoints"), fs::read(others.join("checkpoints")).unwrap()).unwrap();
    assert_eq!(check(&[]).1, 2);
    assert_eq!(audit(&["verify", as_text(stand.dir.path())]).1, 2, "there is no log");
}

/// Some records, proven to somebody who has nothing but the public key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_proves_what_it_shows() {
    let stand = Stand::with(Store::Embedded, OFTEN).await;
    let (other, _) = stand.task_with_token().await;
    let (task, _) = stand.task_with_token().await;
    stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    stand.task_with_token().await;
    let (dir, total) = (directory(&stand), stand.whole_audit().len() as u64);
    signed_to(&dir, total).await;
    let key = dir.join("checkpoints.jwks");

    let (bundle, code) = audit(&["export", as_text(&dir), "--task", &task]);
    assert_eq!(code, 0, "{bundle}");
    let whole = bundle.to_string();
    assert!(whole.contains(&task) && !whole.contains(&other), "what was not asked for is not in it");
    let file = stand.dir.path().join("evidence.json");
    let prove = |bundle: &Value| {
        fs::write(&file, bundle.to_string()).unwrap();
        audit(&["verify", as_text(&file), "--key", as_text(&key)])
    };
    let (proven, code) = prove(&bundle);
    let shown = stand.whole_audit().iter().filter(|line| line["task"] == *task).count();
    assert_eq!(
        (code, &proven["good"], &proven["records"], &proven["unsigned"]),
        (0, &json!(true), &json!(shown), &json!(0))
    );
    assert!(proven["others"].as_u64().unwrap() > 0, "{proven}");
    let (records, _) = audit(&["show", as_text(&file), "--key", as_text(&key)]);
    assert_eq!(records.as_array().unwrap().len(), shown);

    // Whoever changes a record, its place, or what stands between, is found out.
    let spoiled = |change: &dyn Fn(&mut Value)| {
        let mut spoiled = bundle.clone();
        change(&mut spoiled);
        prove(&spoiled).1
    };
    let records = |bundle: &mut Value| bundle["runs"][0]["records"].as_array_mut().unwrap().clone();
    assert_eq!(spoiled(&|b| b["runs"][0]["records"][0]["purpose"] = "Something else".into()), 5);
    assert_eq!(
        spoiled(&|b| {
            let mut all = records(b);
            all.remove(1);
            b["runs"][0]["records"] = all.into();
        }),
        5
    );
    assert_eq!(
        spoiled(&|b| {
            let mut all = records(b);
            all.swap(0, 1);
            b["runs"][0]["records"] = all.into();
        }),
        5
    );
    assert_eq!(spoiled(&|b| b["runs"][0]["after"]["sequence"] = 1000.into()), 5);
    assert_eq!(spoiled(&|b| b["runs"][0]["checkpoint"] = "a.b.c".into()), 2);
    assert_eq!(spoiled(&|b| b["log"] = "log_other".into()), 5);
    assert_eq!(audit(&["verify", as_text(&file)]).1, 2, "not by the keys that it brings along");
    // Without a checkpoint anybody can have written it.
    let mut unsigned = bundle.clone();
    unsigned["runs"].as_array_mut().unwrap().iter_mut().for_each(|run| run["checkpoint"] = Value::Null);
    let (found, code) = prove(&unsigned);
    assert_eq!((code, &found["good"]), (5, &json!(false)), "{found}");
    assert!(text(&found, "what").contains("no checkpoint covers the records"), "{found}");
    assert_eq!(audit(&["show", as_text(&file), "--key", as_text(&key)]).1, 5);

    // By owner, by workload, by time.
    let count = |arguments: &[&str]| {
        let (found, code) = audit(&[&["show", as_text(&dir)], arguments].concat());
        assert_eq!(code, 0, "{found}");
        found.as_array().map_or(1, Vec::len)
    };
    let all = count(&[]);
    assert!(count(&["--owner", "team-payments@example.com"]) > shown && count(&["--owner", "nobody@example.com"]) == 0);
    assert!(count(&["--workload", "spiffe://example.com/ci/acme/payments"]) > shown);
    assert_eq!(count(&["--since", "2026-01-01T00:00:00Z"]), all);
    assert_eq!(count(&["--until", "2026-01-01T00:00:00Z"]), 0);
    assert_eq!(audit(&["show", as_text(&dir), "--task", "task_1"]).1, 2);
}

/// What was signed is elsewhere too: in a file, and with a server that was out of reach for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_are_anchored_elsewhere() {
    let got: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/anchor", listener.local_addr().unwrap());
    let seen = got.clone();
    let take = move |headers: axum::http::HeaderMap, body: String| {
        let seen = seen.clone();
        async move {
            let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            let mut seen = seen.lock().unwrap();
            // Out of order at first.
            seen.push((format!("{} {}", header("authorization"), header("content-type")), body));
            if seen.len() == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NO_CONTENT }
        }
    };
    let router = axum::Router::new().route("/anchor", axum::routing::post(take));
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(axum::serve(listener, router).into_future());

    let elsewhere = tempfile::tempdir().unwrap();
    let (path, token) = (elsewhere.path().join("checkpoints"), elsewhere.path().join("token"));
    fs::write(&token, "an-anchor-token\n").unwrap();
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let extra = format!(
        "{OFTEN}[[audit.anchor]]\npath = \"{}\"\n[[audit.anchor]]\nurl = \"{url}\"\ntoken_file = \"{}\"\n",
        path.display(),
        token.display()
    );
    let mut stand = Stand::with(Store::Embedded, &extra).await;
    stand.task_with_token().await;
    wait_for("a second try", || async { got.lock().unwrap().len() >= 2 }).await;
    let (headers, first) = got.lock().unwrap()[1].clone();
    assert_eq!(headers, "Bearer an-anchor-token application/jose");
    let metrics = stand.call(reqwest::Method::GET, "/metrics", Some(crate::support::VIEWER), None).await.text;
    for outcome in ["sent", "failed"] {
        let sample = format!("remit_audit_checkpoints_sent_total{{anchor=\"{url}\",outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&sample), "{sample} in {metrics}");
    }
    assert!(!metrics.contains("an-anchor-token"));
    let dir = directory(&stand);
    let server_file = elsewhere.path().join("from-server");
    fs::write(&server_file, format!("{first}\n")).unwrap();
    let anchors = ["--anchor", as_text(&path), "--anchor", as_text(&server_file)];
    let (found, code) = audit(&[&["verify", as_text(&dir)], &anchors[..]].concat());
    assert_eq!(code, 0, "{found}");
    assert!(found["anchored_to"].as_u64().unwrap() >= 2, "{found}");

    // A broker does not write on where records were taken away.
    stand.task_with_token().await;
    signed_to(&dir, stand.whole_audit().len() as u64).await;
    stand.broker.stop().await;
    let segment = only_segment(&dir);
    let text = fs::read_to_string(&segment).unwrap();
    let cut: String = text.split_inclusive('\n').take(3).collect();
    fs::write(&segment, cut).unwrap();
    let said = Command::new(env!("CARGO_BIN_EXE_remit"))
        .args(["serve", "--config"])
        .arg(&stand.broker.config)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("was signed: records were taken away"), "{said}");
    fs::write(&segment, text).unwrap();
    stand.broker = Server::start(&stand.broker.config.clone()).await;
    drop(serving);
}

both! {
    /// A broker that dies at any moment leaves no credential without a record, and what it did not get done is listed.
    async fn what_a_broker_did_not_get_done_is_listed(stand) {
        let mut stand = stand;
        let dir = directory(&stand);
        for round in 0..3_u64 {
            let (task, _) = stand.task_with_token().await;
            let evidence = stand.evidence();
            let (url, client) = (stand.url(&format!("/v1/tasks/{task}/credentials")), stand.client.clone());
            let body = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
            let mint = async || while client.post(&url).bearer_auth(&evidence).json(&body).send().await.is_ok() {};
            let pid = stand.broker.child.id().expect("it runs").to_string();
            let kill = async {
                tokio::time::sleep(Duration::from_millis(150 + 70 * round)).await;
                tokio::process::Command::new("kill").args(["-KILL", &pid]).status().await.expect("kill");
            };
            tokio::join!(kill, futures_util::future::join_all((0..8).map(|_| mint())));
            stand.broker.child.wait().await.expect("it is gone");
            let config = stand.broker.config.clone();
            // Beside nobody: what a crash left is no fault.
            let (found, code) = audit(&["verify", as_text(&dir)]);
            assert_eq!(code, 0, "{found}");
            stand.broker = Server::start(&config).await;
            let (found, code) = audit(&["verify", as_text(&dir)]);
            assert_eq!(code, 0, "{found}");
            let lines = stand.whole_audit();
            accounts_for_intents(&found, &lines);
        }
    }

    /// On a full disk nothing is minted, and a task is still revoked.
    async fn a_revoke_is_recorded_on_a_full_disk(stand) {
        let mut stand = stand;
        let config = stand.broker.config.clone();
        stand.broker.stop().await;
        let dir = directory(&stand);
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        let mount = |arguments: &[&str]| assert!(Command::new("mount").args(arguments).status().unwrap().success());
        mount(&["-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", as_text(&dir)]);
        let _unmount = Unmount(dir.clone());
        stand.broker = Server::start(&config).await;
        let mut tasks = Vec::new();
        for _ in 0..3 {
            tasks.push(stand.task_with_token().await.0);
        }
        // Somebody else fills the disk, and the log what it had taken ahead.
        let _ = fs::write(dir.join("filler"), vec![1; 12 << 20]);
        let mut long = declaration();
        long["environment"] = "production".into();
        long["purpose"] = "x".repeat(900).into();
        let mut refused = 0;
        for _ in 0..20_000 {
            let answers = futures_util::future::join_all((0..16).map(|_| stand.declare(long.clone()))).await;
            refused += answers.iter().filter(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE).count();
            if refused > 0 {
                break;
            }
        }
        assert!(refused > 0, "the disk is not full");
        // What is shorter may fit in still.
        wait_for("no room for a declaration", || async { stand.declare(declaration()).await.status.as_u16() == 503 }).await;
        wait_for("no room for a mint", || async { stand.mint(&tasks[0]).await.status.as_u16() == 503 }).await;
        stand.mint(&tasks[0]).await.refused(503, "temporarily_unavailable");
        for task in &tasks {
            assert_eq!(text(&stand.revoke(task).await.expect(StatusCode::OK), "state"), "revoked");
        }
        let ended = stand.whole_audit().iter().filter(|line| line["event"] == "task_ended").count();
        assert_eq!(ended, 3);
        fs::remove_file(dir.join("filler")).unwrap();
        let again = || async { stand.declare(declaration()).await.status == StatusCode::CREATED };
        wait_for("room", again).await;
        assert_eq!(audit(&["verify", as_text(&dir)]).1, 0);
        stand.broker.stop().await;
    }
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", as_text(&self.0)]).status();
    }
}

/// Whoever is turned away is on record, but nobody fills the log by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_on_record_and_cannot_fill_it() {
    let frozen = crate::support::Frozen::start(str::to_owned).await;
    let client = crate::support::client();
    for _ in 0..200 {
        let answer = client.get(frozen.url("/v1/tasks")).bearer_auth("x.y.z").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    let of = |event: &str| {
        let lines = crate::support::audit_of(&frozen.dir.path().join("broker-audit")).into_iter();
        lines.filter(|line| line["event"] == event).collect::<Vec<_>>()
    };
    wait_for("the first ten", || async { of("evidence_refused").len() == 10 }).await;
    let first = &of("evidence_refused")[0];
    assert_eq!(
        (&first["actor"], &first["attestor"], &first["reason"]),
        (&json!({"as": "stranger"}), &json!("oidc"), &json!("invalid"))
    );
    assert!(!text(first, "why").is_empty() && !text(first, "request").is_empty());
    frozen.clock.advance(chrono::TimeDelta::minutes(1));
    wait_for("the others", || async { of("more_evidence_refused").len() == 1 }).await;
    assert_eq!(
        of("more_evidence_refused")[0]["counts"],
        json!([{"attestor": "oidc", "reason": "invalid", "count": 190}])
    );
    assert_eq!(of("evidence_refused").len(), 10);
}
