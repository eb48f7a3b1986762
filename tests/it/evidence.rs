//! The audit log as evidence: what an auditor does with its files, offline, and whoever wants to change them unseen.

use remit::audit::{
    chain::{Head, Record},
    segment::Segment,
};
use reqwest::{Method, StatusCode};
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
    support::{
        Answer, Frozen, GIT, GIT_TOKEN, OWNER, RESPONDER, Server, Stand, Store, VIEWER, audit_of, claims, declaration,
        part, text, wait_for,
    },
    taint::taint,
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
    wait_for("how the last one went", || async { audit(&["verify", as_text(&dir)]).0["unsettled"] == json!([]) }).await;
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
    let dir = directory(&stand);
    let key = dir.join("checkpoints.jwks");
    // What a revoke leaves to do is on record too, a moment later.
    let (bundle, code) = loop {
        let total = stand.whole_audit().len();
        signed_to(&dir, total as u64).await;
        let exported = audit(&["export", as_text(&dir), "--task", &task]);
        if stand.whole_audit().len() == total {
            break exported;
        }
    };
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
    for sequence in [1000, u64::MAX] {
        assert_eq!(spoiled(&|b| b["runs"][0]["after"]["sequence"] = sequence.into()), 5);
    }
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

/// One without a filter leaves nothing out between its first record and its last, and says which these are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_without_a_filter_has_no_gaps() {
    let stand = Stand::with(Store::Embedded, OFTEN).await;
    let dir = directory(&stand);
    let (key, file) = (dir.join("checkpoints.jwks"), stand.dir.path().join("evidence.json"));
    let prove = |bundle: &Value| {
        fs::write(&file, bundle.to_string()).unwrap();
        audit(&["verify", as_text(&file), "--key", as_text(&key)])
    };
    for _ in 0..2 {
        stand.task_with_token().await;
        signed_to(&dir, stand.whole_audit().len() as u64).await;
    }
    let everything = audit(&["export", as_text(&dir)]).0;
    let runs = everything["runs"].as_array().unwrap().len();
    assert!(runs >= 3, "{runs} runs");
    let without = |run: usize| {
        let mut cut = everything.clone();
        cut["runs"].as_array_mut().unwrap().remove(run);
        prove(&cut)
    };
    let (cut, code) = without(1);
    let missing = everything["runs"][1]["after"]["sequence"].as_u64().unwrap() + 1;
    assert_eq!((code, &cut["sequence"]), (5, &json!(missing)), "{cut}");
    assert!(text(&cut, "what").contains("every one was asked for"), "{cut}");
    let (cut, code) = without(0);
    assert_eq!((code, &cut["first"]), (0, &json!(missing)), "{cut}");
    let (proven, code) = prove(&everything);
    let last = proven["records"].clone();
    assert_eq!((code, &proven["first"], &proven["last"]), (0, &json!(1), &last), "{proven}");
    let told = Command::new(env!("CARGO_BIN_EXE_remit"))
        .args(["audit", "verify", as_text(&file), "--key", as_text(&key)])
        .output()
        .unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains(&format!("from record 1 to record {last}")), "{told}");
}

/// What this broker did for tasks that were declared at another one is in the bundle of their owner and of their workload, too; of what
/// nothing here says whose it is, the bundle says how much there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_holds_what_was_declared_elsewhere() {
    let stand = Stand::new(Store::Redis).await;
    let mut second = stand.second_broker().await;
    let mut others = declaration();
    others["owner"] = "other@example.com".into();
    let (own, _) = stand.task_with_token().await;
    let foreign = text(&stand.declare(others).await.expect(StatusCode::CREATED), "task");
    let (looked_at, _) = stand.task_with_token().await;
    let at = async |path: String, bearer: &str, body: Option<Value>| {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        stand.call_at(&second, method, &path, Some(bearer), body).await.expect(StatusCode::OK)
    };
    let (reason, mint) = (json!({"reason": "gone"}), json!({"credentials": [{"resource": GIT, "privilege": "read"}]}));
    // Before anything here says whose it is.
    at(format!("/v1/tasks/{own}"), VIEWER, None).await;
    at(format!("/v1/tasks/{own}/credentials"), &stand.evidence(), Some(mint.clone())).await;
    at(format!("/v1/tasks/{own}/revoke"), RESPONDER, Some(reason.clone())).await;
    at(format!("/v1/tasks/{foreign}/revoke"), RESPONDER, Some(reason.clone())).await;
    at(format!("/v1/tasks/{looked_at}"), VIEWER, None).await;
    // Its last checkpoint covers all of it.
    second.stop().await;
    let dir = stand.dir.path().join("second-audit");
    let key = dir.join("checkpoints.jwks");
    let file = stand.dir.path().join("bundle.json");
    let events = |filter: &[&str], task: &str| {
        let (bundle, code) = audit(&[&["export", as_text(&dir)], filter].concat());
        assert_eq!(code, 0, "{bundle}");
        fs::write(&file, bundle.to_string()).unwrap();
        let (proven, code) = audit(&["verify", as_text(&file), "--key", as_text(&key)]);
        assert_eq!((code, &proven["good"]), (0, &json!(true)), "{proven}");
        let shown = |target: &[&str]| {
            let (shown, code) = audit(&[&["show"], target, filter].concat());
            assert_eq!(code, 0, "{shown}");
            let shown = if shown.is_array() { shown } else { json!([shown]) };
            shown.as_array().unwrap().clone()
        };
        let shown_of_bundle = shown(&[as_text(&file), "--key", as_text(&key)]);
        assert_eq!(shown_of_bundle, shown(&[as_text(&dir)]), "{filter:?}");
        assert!(shown_of_bundle.iter().all(|record| record["task"] == *task), "{shown_of_bundle:#?}");
        let events: Vec<_> = shown_of_bundle.iter().map(|record| text(record, "event")).collect();
        (events, proven["unattributed"].as_u64().unwrap())
    };
    let all = ["looked", "credential_minted", "settled", "end_requested", "task_ended"];
    assert_eq!(events(&["--owner", OWNER], &own), (all.map(str::to_owned).to_vec(), 1));
    let end = ["end_requested", "task_ended"].map(str::to_owned).to_vec();
    assert_eq!(events(&["--owner", "other@example.com"], &foreign), (end, 1));
    let workload = "spiffe://example.com/ci/acme/payments";
    assert_eq!(events(&["--workload", workload, "--owner", OWNER], &own).0, all);
    let (_, code) = audit(&["export", as_text(&dir), "--workload", "spiffe://example.com/nobody"]);
    assert_eq!(code, 0);
}

/// The last checkpoint is signed when nobody is there to send it on: the next start does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_checkpoint_of_a_broker_is_anchored_when_it_starts_again() {
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("checkpoints");
    let extra = format!("[audit]\ncheckpoint_every = 3600\n[[audit.anchor]]\npath = \"{}\"\n", path.display());
    let mut stand = Stand::with(Store::Embedded, &extra).await;
    stand.task_with_token().await;
    let config = stand.broker.config.clone();
    stand.broker.stop().await;
    let last = |file: &Path| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| part(line, 1)["sequence"].as_u64()).max().unwrap_or_default()
    };
    let signed = last(&directory(&stand).join("checkpoints"));
    assert!(signed > last(&path), "there is nothing left to be sent");
    stand.broker = Server::start(&config).await;
    wait_for("the checkpoint elsewhere", || async { last(&path) >= signed }).await;
    let (found, code) = audit(&["verify", as_text(&directory(&stand)), "--anchor", as_text(&path)]);
    assert_eq!((code, found["anchored_to"].as_u64()), (0, Some(last(&path))), "{found}");
}

/// How many were refused, and not told one by one, is on record although the disk was full when it was to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_of_the_refused_outlast_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let audit_dir = dir.path().join("broker-audit");
    let disk = small_disk(&audit_dir);
    let frozen = Frozen::start_in(dir, |_, text| text.to_owned()).await;
    // It goes before its directory does.
    let _disk = disk;
    let client = crate::support::client();
    for _ in 0..15 {
        let answer = client.get(frozen.url("/v1/keys")).bearer_auth(GIT_TOKEN).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        let answer = client.get(frozen.url("/v1/keys")).bearer_auth("x.y.z").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    let of = |event: &str| audit_of(&audit_dir).into_iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    wait_for("the first of them", || async { of("caller_refused").len() == 10 && of("evidence_refused").len() == 10 })
        .await;
    let filler = audit_dir.join("filler");
    let _ = fs::write(&filler, vec![1; 12 << 20]);
    let evidence =
        frozen.issuer.evidence(frozen.running.broker.issuer(), json!({"iat": frozen.now(), "exp": frozen.now() + 600}));
    fill_by(async |declaration| {
        let request = client.post(frozen.url("/v1/tasks")).bearer_auth(&evidence).json(&declaration);
        Answer::of(request.send().await.unwrap()).await
    })
    .await;
    // What is still shorter may fit in, and this is the shortest.
    let look = || async { client.get(frozen.url("/v1/keys")).bearer_auth(VIEWER).send().await.unwrap().status() };
    wait_for("no room for a look", || async { look().await == StatusCode::SERVICE_UNAVAILABLE }).await;
    let failed = async || {
        let metrics = client.get(frozen.url("/metrics")).send().await.unwrap().text().await.unwrap();
        let samples = metrics.lines().filter_map(|line| line.strip_prefix("remit_audit_errors_total "));
        samples.map(|count| count.parse::<f64>().unwrap()).sum::<f64>()
    };
    let before = failed().await;
    frozen.clock.advance(chrono::TimeDelta::minutes(1));
    // Once for each of the two.
    wait_for("it cannot be told", || async { failed().await >= before + 2.0 }).await;
    assert!(of("more_callers_refused").is_empty() && of("more_evidence_refused").is_empty());
    fs::remove_file(&filler).unwrap();
    frozen.clock.advance(chrono::TimeDelta::minutes(1));
    let counts = json!([{"as": "service", "name": "git", "code": "policy_denied", "count": 5}]);
    wait_for("the callers", || async { of("more_callers_refused").iter().any(|line| line["counts"] == counts) }).await;
    let counts = json!([{"attestor": "oidc", "reason": "invalid", "count": 5}]);
    wait_for("the strangers", || async { of("more_evidence_refused").iter().any(|line| line["counts"] == counts) })
        .await;
}

/// Nothing in a bundle that somebody sends reaches a terminal as it is.
#[test]
fn what_a_bundle_calls_itself_moves_no_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let (file, key) = (dir.path().join("bundle.json"), dir.path().join("key.jwks"));
    fs::write(&key, r#"{"keys":[]}"#).unwrap();
    let evil = "\u{1b}[2J\u{202e}\u{9b}";
    let bundle = json!({"format": "remit-audit-bundle/1", "log": evil, "selection": {"owner": evil},
        "exported_at": "2026-11-21T00:00:00Z", "keys": null, "runs": [], "unsigned": 0});
    fs::write(&file, bundle.to_string()).unwrap();
    let mut remit = Command::new(env!("CARGO_BIN_EXE_remit"));
    let said = remit.args(["audit", "verify"]).arg(&file).arg("--key").arg(&key).output().unwrap();
    let said = [said.stdout, said.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(!said.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{said:?}");
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
        let (dir, _disk) = on_a_small_disk(&mut stand, OFTEN).await;
        let mut tasks = Vec::new();
        for _ in 0..16 {
            tasks.push(stand.task_with_token().await.0);
        }
        // Somebody else fills the disk, and the log what it had taken ahead.
        let _ = fs::write(dir.join("filler"), vec![1; 12 << 20]);
        fill(&stand).await;
        wait_for("no room for a mint", || async { stand.mint(&tasks[0]).await.status.as_u16() == 503 }).await;
        stand.mint(&tasks[0]).await.refused(503, "temporarily_unavailable");
        // Each of these is signed, by more checkpoints than there was room for where the last one stood.
        let length = || fs::metadata(dir.join("checkpoints")).unwrap().len();
        let before = length();
        for task in &tasks {
            assert_eq!(text(&stand.revoke(task).await.expect(StatusCode::OK), "state"), "revoked");
            let written = stand.whole_audit().len() as u64;
            wait_for("a checkpoint", || async { newest_signed(&dir) >= written }).await;
        }
        assert!(length() - before > 4096, "{} octets", length() - before);
        let (found, code) = audit(&["verify", as_text(&dir)]);
        assert_eq!((code, &found["signed_to"]), (0, &found["last"]), "{found}");
        let ended = stand.whole_audit().iter().filter(|line| line["event"] == "task_ended").count();
        assert_eq!(ended, tasks.len());
        fs::remove_file(dir.join("filler")).unwrap();
        let again = || async { stand.declare(declaration()).await.status == StatusCode::CREATED };
        wait_for("room", again).await;
        assert_eq!(audit(&["verify", as_text(&dir)]).1, 0);
        stand.broker.stop().await;
    }

    /// A workload ends what is its own on a full disk too, and however often it does so, the room of the security team stays: in the log,
    /// and in the journal.
    async fn a_workload_cannot_use_up_the_room_for_revokes(stand) {
        let mut stand = stand;
        let (dir, _disk) = on_a_small_disk(&mut stand, "").await;
        let (own, token) = stand.task_with_token().await;
        let (other, _) = stand.task_with_token().await;
        let _ = fs::write(dir.join("filler"), vec![1; 12 << 20]);
        fill(&stand).await;
        let (evidence, lease) = (stand.evidence(), text(&claims(&token), "jti"));
        let ask = async |path: &str| stand.post(path, &evidence, json!({"reason": "x".repeat(1000)})).await;
        let [of_lease, of_task] = [format!("/v1/leases/{lease}/revoke"), format!("/v1/tasks/{own}/revoke")];
        for path in [&of_lease, &of_task] {
            ask(path).await.expect(StatusCode::OK);
        }
        let journal = stand.dir.path().join("broker-journal/revocations");
        let journaled = || fs::read_to_string(&journal).unwrap().lines().filter(|line| line.contains(&own)).count();
        assert_eq!(journaled(), 2);
        let mut repeats = 0;
        let refused = 'asked: loop {
            for path in [&of_lease, &of_task] {
                let answer = ask(path).await;
                if answer.status != StatusCode::OK {
                    break 'asked answer;
                }
            }
            let answer = stand.form("/oauth2/revoke", Some(&evidence), &[("token", &token)]).await;
            if answer.status != StatusCode::OK {
                break answer;
            }
            repeats += 1;
            assert!(repeats < 2000, "there is no bound");
        };
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text);
        for path in [&of_lease, &of_task] {
            ask(path).await.refused(503, "temporarily_unavailable");
        }
        assert_eq!(journaled(), 2, "what is dead already is not written again");
        assert_eq!(text(&stand.revoke(&other).await.expect(StatusCode::OK), "state"), "revoked");
        assert_eq!(text(&stand.revoke(&own).await.expect(StatusCode::OK), "state"), "revoked");
        fs::remove_file(dir.join("filler")).unwrap();
        wait_for("room", || async { ask(&of_task).await.status == StatusCode::OK }).await;
        assert_eq!(audit(&["verify", as_text(&dir)]).1, 0);
        stand.broker.stop().await;
    }

    /// A key that is in other hands is tainted on a full disk too, and another one takes its place.
    async fn a_key_is_tainted_on_a_full_disk(stand) {
        let mut stand = stand;
        let (dir, _disk) = on_a_small_disk(&mut stand, "").await;
        let (_, token) = stand.task_with_token().await;
        let _ = fs::write(dir.join("filler"), vec![1; 12 << 20]);
        fill(&stand).await;
        assert_eq!(taint(&stand, &text(&part(&token, 0), "kid")).await["state"], "tainted");
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        fs::remove_file(dir.join("filler")).unwrap();
        wait_for("room", || async { stand.declare(declaration()).await.status == StatusCode::CREATED }).await;
        stand.broker.stop().await;
        let (found, code) = audit(&["verify", as_text(&dir)]);
        assert_eq!(code, 0, "{found}");
        accounts_for_intents(&found, &stand.whole_audit());
    }

    /// A segment that is over is followed by a whole one with a reserve of its own, or by none: a revoke is on record before, meanwhile
    /// and after.
    async fn no_segment_is_begun_on_a_full_disk(stand) {
        let mut stand = stand;
        let (dir, _disk) = on_a_small_disk(&mut stand, "[audit]\nsegment_bytes = 4194304\n").await;
        let mut tasks = Vec::new();
        for _ in 0..24 {
            tasks.push(stand.task_with_token().await.0);
        }
        let revoke = async |tasks: &[String]| {
            for task in tasks {
                assert_eq!(text(&stand.revoke(task).await.expect(StatusCode::OK), "state"), "revoked");
            }
        };
        let segments = || Segment::list(&dir).unwrap();
        let failed = async || {
            let metrics = stand.client.get(stand.url("/metrics")).send().await.unwrap().text().await.unwrap();
            metrics.contains("remit_audit_segments_total{outcome=\"failed\"}")
        };
        let filler = dir.join("filler");
        let _ = fs::write(&filler, vec![1; 12 << 20]);
        fill(&stand).await;
        // These make it longer than a segment is.
        revoke(&tasks[..12]).await;
        assert!(fs::metadata(&segments()[0].path).unwrap().len() >= 4 << 20);
        wait_for("a segment that cannot be begun", failed).await;
        assert!(segments().len() == 1 && !dir.join("next").exists(), "{:?}", segments());
        revoke(&tasks[12..16]).await;
        // Now there is room for a segment and its reserve, and for little more.
        let room = fs::metadata(&filler).unwrap().len() - (5 << 18);
        fs::File::options().write(true).open(&filler).unwrap().set_len(room).unwrap();
        wait_for("another segment", || async { segments().len() == 2 }).await;
        let _ = fs::write(dir.join("more"), vec![1; 12 << 20]);
        fill(&stand).await;
        revoke(&tasks[16..]).await;
        let ended = stand.whole_audit().iter().filter(|line| line["event"] == "task_ended").count();
        assert_eq!(ended, tasks.len());
        fs::remove_file(&filler).unwrap();
        let again = || async { stand.declare(declaration()).await.status == StatusCode::CREATED };
        wait_for("room", again).await;
        assert_eq!(audit(&["verify", as_text(&dir)]).1, 0);
        stand.broker.stop().await;
        assert_eq!(audit(&["verify", as_text(&dir)]).1, 0);
    }

    /// Whoever can change the files of the log, and nothing else, gets no broker to sign what they made of it: not even where they take all
    /// checkpoints away, or put back the log as it once was.
    async fn a_log_that_is_not_the_one_that_was_written_is_not_written_on(stand) {
        let mut stand = stand;
        let (config, dir) = (stand.broker.config.clone(), directory(&stand));
        let note = stand.dir.path().join("broker-journal/audit-head");
        let [older, whole] = ["older", "whole"].map(|name| stand.dir.path().join(name));
        let put_back = |from: &Path| {
            fs::remove_dir_all(&dir).unwrap();
            copy(from, &dir);
        };
        stand.task_with_token().await;
        stand.broker.stop().await;
        copy(&dir, &older);
        let older_note = fs::read(&note).unwrap();
        stand.broker = Server::start(&config).await;
        let (task, _) = stand.task_with_token().await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        stand.broker.stop().await;
        copy(&dir, &whole);
        let whole_note = fs::read(&note).unwrap();
        let written = stand.whole_audit().len();
        let refused = async |words: &[&str]| {
            let said = start_refused(&config).await;
            assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
            assert!(said.contains("Move the log away, and keep it") && !said.contains("remit is ready"), "{said}");
        };
        let by_note = format!("says {}", note.display());

        rewrite(&dir, |line| line.replace("acme/payments", "acme/secrets"));
        refused(&[&format!("its record {written} is not the one that was written"), &by_note]).await;
        // One that begins later in its place, which says that all before was kept for long enough.
        put_back(&whole);
        put_later_one(&dir);
        refused(&[&format!("it begins after record {written}, the last that was written")]).await;
        put_back(&whole);
        let segment = only_segment(&dir);
        let all = fs::read_to_string(&segment).unwrap();
        fs::write(&segment, all.split_inclusive('\n').take(written - 3).collect::<String>()).unwrap();
        fs::write(dir.join("checkpoints"), "").unwrap();
        refused(&[&format!("it ends at record {}, and record {written} was written", written - 3), &by_note]).await;
        put_back(&older);
        refused(&[&format!("and record {written} was written"), &by_note]).await;
        // And with it what the broker had noted: the store knows better.
        fs::write(&note, &older_note).unwrap();
        refused(&["was written, says the store"]).await;
        fs::remove_file(&note).unwrap();
        refused(&["was written, says the store"]).await;
        put_back(&whole);
        fs::write(&note, "not a note").unwrap();
        let said = start_refused(&config).await;
        assert!(said.contains("does not say how the audit log ended"), "{said}");
        fs::write(&note, &whole_note).unwrap();
        stand.broker = Server::start(&config).await;
        stand.task_with_token().await;
        assert!(audit(&["verify", as_text(&dir)]).0["doubts"].as_array().unwrap().is_empty());

        // One that is moved away is followed by another, which says so; and the next start knows that one.
        stand.broker.stop().await;
        let (gone, last) = (text(&stand.whole_audit()[0], "log"), stand.whole_audit().len());
        fs::rename(&dir, stand.dir.path().join("kept")).unwrap();
        for _ in 0..2 {
            stand.broker = Server::start(&config).await;
            stand.task_with_token().await;
            let said: Vec<_> = stand.whole_audit().into_iter().filter(|line| line["event"] == "earlier_log_gone").collect();
            assert!(said.len() == 1 && said[0]["log"] == *gone && said[0]["last"] == last, "{said:?}");
            stand.broker.stop().await;
            let (found, code) = audit(&["verify", as_text(&dir)]);
            assert_eq!((code, &found["doubts"][0]["event"]), (0, &json!("earlier_log_gone")), "{found}");
        }
    }

    /// What stands behind the last record that the broker knows of is signed with a word about it.
    async fn a_tail_that_is_not_known_is_marked(stand) {
        let mut stand = stand;
        let (config, dir) = (stand.broker.config.clone(), directory(&stand));
        stand.task_with_token().await;
        for _ in 0..2 {
            // Until nothing is written any more: a death in the middle of that is marked too.
            tokio::time::sleep(Duration::from_secs(1)).await;
            stand.broker.child.kill().await.unwrap();
            stand.broker = Server::start(&config).await;
        }
        let marks = || stand.whole_audit().into_iter().filter(|line| line["event"] == "tail_unwitnessed").collect::<Vec<_>>();
        assert!(marks().is_empty(), "a broker that is killed knows its own: {:?}", marks());
        stand.broker.child.kill().await.unwrap();
        let segment = only_segment(&dir);
        let all = fs::read_to_string(&segment).unwrap();
        let follow = |head: Head, line: &str| head.followed_by(&Record::read(line.as_bytes()).unwrap());
        let Head { sequence, digest } = all.lines().try_fold(Head::NONE, follow).unwrap();
        let forged = sequence + 1;
        let line = format!(
            r#"{{"actor":{{"as":"broker"}},"at":"forged","event":"looked","previous":"{digest}","request":"","sequence":{forged},"time":"2026-01-01T00:00:00Z"}}"#
        );
        fs::write(&segment, format!("{all}{line}\n")).unwrap();
        stand.broker = Server::start(&config).await;
        let said: Vec<_> = stand.whole_audit().into_iter().filter(|line| line["event"] == "tail_unwitnessed").collect();
        assert!(said.len() == 1 && said[0]["first"] == forged && said[0]["last"] == forged, "{said:?}");
        let (found, code) = audit(&["verify", as_text(&dir)]);
        assert_eq!((code, &found["doubts"][0]["event"]), (0, &json!("tail_unwitnessed")), "{found}");
        let told = Command::new(env!("CARGO_BIN_EXE_remit")).args(["audit", "verify", as_text(&dir)]).output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        assert!(told.contains(&format!("the records from {forged} to {forged}")), "{told}");
    }
}

/// What was kept for long enough goes where the disk is full, and makes room: nobody has to remove it by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_made_room_on() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("broker-audit");
    let _disk = small_disk(&dir);
    let terms = "[audit]\nsegment_age = 60\nretention_days = 1\n";
    let frozen = crate::support::Frozen::start_in(place, |_, config| format!("{config}\n{terms}")).await;
    let client = crate::support::client();
    let look = async || client.get(frozen.url("/v1/tasks")).bearer_auth(VIEWER).send().await.unwrap().status();
    let firsts = || Segment::list(&dir).unwrap().iter().map(|segment| segment.first).collect::<Vec<_>>();
    for _ in 0..3 {
        for _ in 0..20 {
            let looks = futures_util::future::join_all((0..16).map(|_| look())).await;
            assert!(looks.iter().all(|status| *status == StatusCode::OK));
        }
        let before = firsts();
        frozen.clock.advance(chrono::TimeDelta::hours(2));
        wait_for("another segment", || async { firsts().last() != before.last() }).await;
    }
    let _ = fs::write(dir.join("filler"), vec![1; 12 << 20]);
    // What the log had taken ahead, if it had, comes first.
    let mut is_full = false;
    for _ in 0..4000 {
        let looks = futures_util::future::join_all((0..16).map(|_| look())).await;
        is_full |= looks.contains(&StatusCode::SERVICE_UNAVAILABLE);
        if is_full {
            break;
        }
    }
    assert!(is_full && firsts()[0] == 1, "{:?}", firsts());
    // One may fit in still where sixteen did not.
    wait_for("no room", || async { look().await == StatusCode::SERVICE_UNAVAILABLE }).await;
    frozen.clock.advance(chrono::TimeDelta::days(2));
    wait_for("room", || async { look().await == StatusCode::OK }).await;
    assert!(firsts()[0] > 1, "{:?}", firsts());
    let (found, code) = audit(&["verify", as_text(&dir)]);
    assert_eq!((code, &found["removed"]), (0, &json!(firsts()[0] - 1)), "{found}");
}

/// Writes a log of one segment anew, each record chained to the one before, and takes its checkpoints away.
fn rewrite(dir: &Path, edit: impl Fn(&str) -> String) {
    let segment = only_segment(dir);
    let all = fs::read_to_string(&segment).unwrap();
    let mut head = Head::NONE;
    let anew = |line: &str| {
        let previous = text(&serde_json::from_str(line).unwrap(), "previous");
        let line = edit(line).replace(&previous, &head.digest.to_string());
        head = head.followed_by(&Record::read(line.as_bytes()).unwrap()).unwrap();
        line + "\n"
    };
    let rewritten: String = all.lines().map(anew).collect();
    assert_ne!(rewritten, all);
    fs::write(&segment, rewritten).unwrap();
    fs::write(dir.join("checkpoints"), "").unwrap();
}

/// Takes a log of one segment away, and puts one of the same name in its place that begins with record 2000; its checkpoints stay.
fn put_later_one(dir: &Path) {
    let segment = only_segment(dir);
    let all = fs::read_to_string(&segment).unwrap();
    let log = text(&serde_json::from_str(all.lines().next().unwrap()).unwrap(), "log");
    fs::remove_file(&segment).unwrap();
    let mut head = Head { sequence: 1999, ..Head::NONE };
    let said = [format!(r#""segment_opened","log":"{log}""#), r#""segment_dropped","first":1,"last":1999"#.to_owned()];
    let mut line = |said: &String| {
        let Head { sequence, digest } = head;
        let line = format!(
            r#"{{"actor":{{"as":"broker"}},"event":{said},"previous":"{digest}","request":"","sequence":{},"time":"2026-01-01T00:00:00Z"}}"#,
            sequence + 1
        );
        head = head.followed_by(&Record::read(line.as_bytes()).unwrap()).unwrap();
        line + "\n"
    };
    let later: String = said.iter().map(&mut line).collect();
    fs::write(dir.join(format!("audit-{:020}.jsonl", 2000)), later).unwrap();
}

/// What a broker says that does not start.
async fn start_refused(config: &Path) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"));
    command.args(["serve", "--config"]).arg(config).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(20), command.output()).await.expect("it ends").unwrap();
    assert!(!output.status.success(), "it starts");
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Gives the log of a broker a new start on a disk of its own of 12 MiB, and the broker another end of its configuration.
async fn on_a_small_disk(stand: &mut Stand, extra: &str) -> (PathBuf, Unmount) {
    let config = stand.broker.config.clone();
    stand.broker.stop().await;
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n{extra}")).unwrap();
    let dir = directory(stand);
    fs::remove_dir_all(&dir).unwrap();
    let disk = small_disk(&dir);
    stand.broker = Server::start(&config).await;
    (dir, disk)
}

/// A disk of 12 MiB at a directory that is not there yet.
fn small_disk(dir: &Path) -> Unmount {
    fs::create_dir(dir).unwrap();
    let arguments = ["-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", as_text(dir)];
    assert!(Command::new("mount").args(arguments).status().unwrap().success());
    Unmount(dir.to_owned())
}

/// The last record that a checkpoint beside a log names.
fn newest_signed(dir: &Path) -> u64 {
    let all = fs::read_to_string(dir.join("checkpoints")).unwrap();
    let whole = &all[..all.rfind('\n').unwrap_or_default()];
    claims(whole.lines().next_back().unwrap())["sequence"].as_u64().unwrap()
}

/// Has a broker record what it refuses until nothing is recorded any more.
async fn fill(stand: &Stand) {
    fill_by(async |declaration| stand.declare(declaration).await).await;
}

async fn fill_by(declare: impl AsyncFn(Value) -> Answer) {
    let mut long = declaration();
    long["environment"] = "production".into();
    long["purpose"] = "x".repeat(900).into();
    let mut refused = 0;
    for _ in 0..20_000 {
        let answers = futures_util::future::join_all((0..16).map(|_| declare(long.clone()))).await;
        refused += answers.iter().filter(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE).count();
        if refused > 0 {
            break;
        }
    }
    assert!(refused > 0, "the disk is not full");
    // What is shorter may fit in still.
    wait_for("no room for a declaration", || async { declare(declaration()).await.status.as_u16() == 503 }).await;
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
