//! The audit log: every act is in it before its answer leaves, and no secret ever is, there or anywhere else.

use futures_util::future::join_all;
use remit::task::digest;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use remit::audit::{
    chain::{Head, Record},
    segment::Segment,
};

use crate::{
    both,
    support::{
        ADMIN, Answer, GIT, GIT_TOKEN, NOWHERE, REGISTRY_TOKEN, RESPONDER, Server, Stand, VIEWER, claims, declaration,
        secrets, text,
    },
};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const WORKLOAD: &str = "spiffe://example.com/ci/acme/payments";

/// The lines of one request, each of them with what every line has.
fn lines(stand: &Stand, answer: &Answer) -> Vec<Value> {
    let id = answer.headers["x-request-id"].to_str().expect("text");
    let lines: Vec<_> = numbered(stand).into_iter().filter(|line| line["request"] == id).collect();
    for line in &lines {
        let time: chrono::DateTime<chrono::Utc> = text(line, "time").parse().expect("RFC 3339");
        assert!((time.timestamp() - crate::support::now()).abs() < 60 && text(line, "time").ends_with('Z'), "{line}");
    }
    lines
}

/// The whole log, which has no gaps.
fn numbered(stand: &Stand) -> Vec<Value> {
    for (at, line) in stand.whole_audit().iter().enumerate() {
        assert_eq!(line["sequence"], at + 1, "{line}");
    }
    stand.audit()
}

#[track_caller]
fn has(line: &Value, members: &Value) {
    for (name, value) in members.as_object().expect("an object") {
        assert_eq!(&line[name], value, "`{name}` of {line}");
    }
}

/// Asserts that one line is the workload's.
#[track_caller]
fn by_workload(line: &Value) {
    has(&line["actor"], &json!({"as": "workload", "workload": WORKLOAD, "instance": "1.1", "attestor": "ci"}));
    assert_eq!(text(&line["actor"], "evidence").len(), 64, "{line}");
}

async fn exchange(stand: &Stand, task: &str, privilege: &str) -> Answer {
    let (evidence, scope) = (stand.evidence(), format!("{task} {privilege}"));
    let form = [
        ("grant_type", EXCHANGE),
        ("subject_token", &*evidence),
        ("subject_token_type", JWT),
        ("resource", GIT),
        ("scope", &*scope),
    ];
    stand.form("/oauth2/token", None, &form).await
}

fn secret_declaration() -> Value {
    let mut declaration = declaration();
    declaration["authorization_details"][0]["privileges"] = json!(["read", "secret"]);
    declaration
}

both! {
    async fn what_a_workload_does_is_on_record(stand) {
        // A declaration with two credentials.
        let mut declaration = secret_declaration();
        declaration["credentials"] = json!([{"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "read", "type": "jwt"}]);
        let answer = stand.declare(declaration).await;
        let recorded = lines(&stand, &answer);
        let body = answer.expect(StatusCode::CREATED);
        let task = text(&body, "task");
        assert_eq!(recorded.len(), 3, "{recorded:#?}");
        for line in &recorded {
            by_workload(line);
            assert_eq!(line["task"], *task);
        }
        has(&recorded[0], &json!({"event": "task_declared", "purpose": body["purpose"], "owner": body["owner"],
            "authority": body["authorization_details"], "policies": ["test.declare-secret", "test.read"], "denied": [],
            "expires_at": body["expires_at"]}));
        for (line, credential) in recorded[1..].iter().zip(body["credentials"].as_array().unwrap()) {
            has(line, &json!({"event": "credential_minted", "lease": credential["lease"], "resource": GIT, "privilege": "read",
                "expires_at": credential["expires_at"], "policies": ["test.read"]}));
            assert_eq!(claims(&text(credential, "access_token"))["jti"], line["lease"]);
        }
        assert_ne!(recorded[1]["form"], recorded[2]["form"]);

        // Minted later, both ways.
        let answer = stand.mint(&task).await;
        let recorded = lines(&stand, &answer);
        let lease = answer.expect(StatusCode::OK)["credentials"][0]["lease"].clone();
        assert_eq!(recorded.len(), 1, "{recorded:#?}");
        by_workload(&recorded[0]);
        has(&recorded[0], &json!({"event": "credential_minted", "task": task, "lease": lease}));
        let answer = exchange(&stand, &task, "read").await;
        let recorded = lines(&stand, &answer);
        let jti = claims(&text(&answer.expect(StatusCode::OK), "access_token"))["jti"].clone();
        assert_eq!(recorded.len(), 1, "{recorded:#?}");
        by_workload(&recorded[0]);
        has(&recorded[0], &json!({"event": "credential_minted", "task": task, "lease": jti}));

        // Refused, both ways: by policy, and because it is not in the task.
        for (resource, privilege) in [(GIT, "secret"), (GIT, "write"), (NOWHERE, "read")] {
            let body = json!({"credentials": [{"resource": resource, "privilege": privilege}]});
            let answer = stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), body).await;
            let recorded = lines(&stand, &answer);
            answer.refused(403, "policy_denied");
            assert_eq!(recorded.len(), 1, "{recorded:#?}");
            by_workload(&recorded[0]);
            has(&recorded[0], &json!({"event": "mint_denied", "task": task, "locations": [resource], "privileges": [privilege],
                "policies": []}));
        }
        let answer = exchange(&stand, &task, "secret").await;
        let recorded = lines(&stand, &answer);
        answer.oauth_refused(400, "unauthorized_client");
        has(&recorded[0], &json!({"event": "mint_denied", "task": task, "privileges": ["secret"]}));

        // Completed.
        let answer = stand.post(&format!("/v1/tasks/{task}/complete"), &stand.evidence(), json!({"reason": "green"})).await;
        let recorded = lines(&stand, &answer);
        answer.expect(StatusCode::OK);
        assert_eq!(recorded.len(), 2, "{recorded:#?}");
        recorded.iter().for_each(by_workload);
        has(&recorded[0], &json!({"event": "end_requested", "task": task, "state": "completed", "reason": "green"}));
        has(&recorded[1], &json!({"event": "task_ended", "task": task, "state": "completed", "known": true, "ended_tasks": 1,
            "credentials": 4}));
    }

    async fn a_refused_declaration_is_on_record_with_the_policies_that_refused_it(stand) {
        let refused = async |over: Value, policies: Value| {
            let mut declaration = declaration();
            for (name, value) in over.as_object().unwrap() {
                declaration[name] = value.clone();
            }
            let answer = stand.declare(declaration).await;
            let recorded = lines(&stand, &answer);
            let body = answer.refused(403, "policy_denied");
            assert_eq!(recorded.len(), 1, "{recorded:#?}");
            by_workload(&recorded[0]);
            has(&recorded[0], &json!({"event": "declaration_denied", "purpose": "Fix the flaky test in payments", "why": body["detail"]}));
            let denied = recorded[0]["denied"].as_array().unwrap();
            assert_eq!(body.get("denied").and_then(Value::as_array).unwrap_or(&Vec::new()), denied);
            assert!(denied.iter().all(|denied| denied["policies"] == policies), "{denied:?}");
            denied.len()
        };
        // A policy forbids it; nothing permits it; the owner is none of the attestor's; a credential is refused.
        assert_eq!(refused(json!({"environment": "production"}), json!(["test.no-production"])).await, 2);
        let nowhere = json!([{"type": "remit:access", "locations": [NOWHERE], "privileges": ["read"]}]);
        assert_eq!(refused(json!({"authorization_details": nowhere, "credentials": []}), json!([])).await, 1);
        assert_eq!(refused(json!({"owner": "mallory@example.com"}), json!([])).await, 0);
        assert_eq!(refused(json!({"credentials": [{"resource": GIT, "privilege": "secret"}]}), json!([])).await, 1);
        // What was refused in part is said in the line of the task.
        let mut partial = declaration();
        partial["partial"] = true.into();
        partial["authorization_details"][0]["locations"] = json!([GIT, NOWHERE]);
        let answer = stand.declare(partial).await;
        let recorded = lines(&stand, &answer);
        has(&recorded[0], &json!({"event": "task_declared", "denied": answer.expect(StatusCode::CREATED)["denied"]}));
        assert!(!recorded[0]["denied"].as_array().unwrap().is_empty());
    }

    async fn what_an_operator_does_is_on_record(stand) {
        let (task, token) = stand.task_with_token().await;
        let looks = async |bearer: &str, name: &str, answer: Answer, at: &str, task: Option<&str>| {
            let recorded = lines(&stand, &answer);
            assert_eq!(recorded.len(), 1, "{at} as {bearer}: {recorded:#?}");
            has(&recorded[0], &json!({"event": "looked", "at": at, "actor": {"as": "operator", "name": name}}));
            assert_eq!(recorded[0].get("task").and_then(Value::as_str), task, "{at}");
        };
        let path = format!("/v1/tasks/{task}");
        let unseen = "task_01jd0000000000000000000000";
        for (bearer, name) in [(VIEWER, "victor"), (RESPONDER, "rita"), (ADMIN, "ada")] {
            looks(bearer, name, stand.get("/v1/tasks", bearer).await, "tasks", None).await;
            looks(bearer, name, stand.get(&path, bearer).await, "task", Some(&task)).await;
            // Who looks for what is not there leaves a trace too.
            looks(bearer, name, stand.get(&format!("/v1/tasks/{unseen}"), bearer).await, "task", Some(unseen)).await;
            let introspected = stand.form("/oauth2/introspect", Some(bearer), &[("token", &token)]).await;
            looks(bearer, name, introspected, "introspection", Some(&task)).await;
            let introspected = stand.form("/oauth2/introspect", Some(bearer), &[("token", "none")]).await;
            looks(bearer, name, introspected, "introspection", None).await;
        }
        let answer = stand.revoke(&task).await;
        let recorded = lines(&stand, &answer);
        answer.expect(StatusCode::OK);
        assert_eq!(recorded.len(), 2, "{recorded:#?}");
        let rita = json!({"as": "operator", "name": "rita"});
        has(&recorded[0], &json!({"event": "end_requested", "task": task, "actor": rita, "state": "revoked", "reason": "a test says so"}));
        has(&recorded[1], &json!({"event": "task_ended", "task": task, "actor": rita, "state": "revoked", "known": true,
            "ended_tasks": 1, "credentials": 1}));
        let recorded = lines(&stand, &stand.revoke(unseen).await);
        has(&recorded[1], &json!({"event": "task_ended", "task": unseen, "actor": rita, "known": false}));
        // The task's own instance.
        let (task, _) = stand.task_with_token().await;
        let answer = stand.post(&format!("/v1/tasks/{task}/revoke"), &stand.evidence(), json!({"reason": "mine"})).await;
        let recorded = lines(&stand, &answer);
        assert_eq!(recorded.len(), 2, "{recorded:#?}");
        recorded.iter().for_each(by_workload);
    }

    /// An operator who tries what the role does not allow is what a security team wants to read about.
    async fn what_an_operator_may_not_do_is_on_record(stand) {
        let (task, _) = stand.task_with_token().await;
        let reason = json!({"reason": "r"});
        let mint = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
        for (bearer, name, path, body, on) in [
            (VIEWER, "victor", format!("/v1/tasks/{task}/revoke"), &reason, Some(&*task)),
            (ADMIN, "ada", format!("/v1/tasks/{task}/revoke"), &reason, Some(&*task)),
            (RESPONDER, "rita", format!("/v1/tasks/{task}/complete"), &reason, Some(&*task)),
            (RESPONDER, "rita", format!("/v1/tasks/{task}/credentials"), &mint, Some(&*task)),
            (ADMIN, "ada", "/v1/tasks".to_owned(), &declaration(), None),
        ] {
            let answer = stand.post(&path, bearer, body.clone()).await;
            let recorded = lines(&stand, &answer);
            let refused = answer.refused(403, "policy_denied");
            assert_eq!(recorded.len(), 1, "{path} as {name}: {recorded:#?}");
            has(&recorded[0], &json!({"event": "operator_refused", "why": refused["detail"], "actor": {"as": "operator", "name": name}}));
            assert_eq!(recorded[0].get("task").and_then(Value::as_str), on, "{path}");
        }
    }

    /// Every credential that left is in the log exactly once, with many of them under way at the same time.
    async fn every_credential_is_on_record_once(stand) {
        let (task, first) = stand.task_with_token().await;
        let mut left = vec![claims(&first)["jti"].clone()];
        for answer in join_all((0..40).map(|_| stand.mint(&task))).await {
            let minted = answer.expect(StatusCode::OK);
            left.push(minted["credentials"][0]["lease"].clone());
        }
        let recorded: Vec<_> =
            numbered(&stand).iter().filter(|line| line["event"] == "credential_minted").map(|line| line["lease"].clone()).collect();
        for id in &left {
            assert_eq!(recorded.iter().filter(|lease| *lease == id).count(), 1, "{id}");
        }
        assert_eq!(recorded.len(), left.len());
    }

    /// What can't be recorded isn't done, and when there is room again, all is well again.
    async fn a_log_that_takes_nothing_stops_the_broker(stand) {
        let mut stand = stand;
        let config = stand.broker.config.clone();
        stand.broker.stop().await;
        // So that a limit on the size of files meets the log alone, and no other file of the broker.
        let log = Segment::list(&stand.dir.path().join("broker-audit")).unwrap().pop().unwrap().path;
        pad(&log, 4000, 4200);
        stand.broker = Server::start_limitable(&config).await;
        let (task, token) = stand.task_with_token().await;
        let lines_before = stand.audit().len();

        stand.broker.limit_files(Some(std::fs::metadata(&log).unwrap().len() + 100)).await;
        let refused = |answer: Answer| {
            assert_eq!(answer.headers["retry-after"], "1");
            assert!(!answer.text.contains("eyJ"), "a token left: {}", answer.text);
            answer
        };
        refused(stand.declare(declaration()).await).refused(503, "temporarily_unavailable");
        let mut denied = declaration();
        denied["environment"] = "production".into();
        refused(stand.declare(denied).await).refused(503, "temporarily_unavailable");
        refused(stand.mint(&task).await).refused(503, "temporarily_unavailable");
        refused(exchange(&stand, &task, "read").await).oauth_refused(503, "temporarily_unavailable");
        refused(stand.revoke(&task).await).refused(503, "temporarily_unavailable");
        let complete = format!("/v1/tasks/{task}/complete");
        refused(stand.post(&complete, &stand.evidence(), json!({})).await).refused(503, "temporarily_unavailable");
        refused(stand.get("/v1/tasks", VIEWER).await).refused(503, "temporarily_unavailable");
        let reports = format!("/v1/tasks/{task}/reports");
        let report = json!({"kind": "prompt", "label": "plan", "digest": digest(b""), "size": 0, "sequence": 1});
        let report = json!({ "reports": [report] });
        refused(stand.post(&reports, &stand.evidence(), report.clone()).await).refused(503, "temporarily_unavailable");
        let ready = stand.call(Method::GET, "/readyz", None, None).await.expect(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ready, json!({"ready": false, "missing": ["audit"], "configuration": "current"}));
        assert_eq!(stand.call(Method::GET, "/healthz", None, None).await.status, StatusCode::OK);
        // Not revoked, said the answer: and so it is. Who calls a service does not suffer from it.
        assert_eq!(stand.introspect(&token).await["active"], true);
        assert_eq!(stand.audit().len(), lines_before, "half a line or more was left behind");

        stand.broker.limit_files(None).await;
        stand.mint(&task).await.expect(StatusCode::OK);
        // What was not on record is no repeat.
        stand.post(&reports, &stand.evidence(), report).await.expect(StatusCode::OK);
        assert!(stand.audit().iter().any(|line| line["event"] == "reported"));
        let ready = stand.call(Method::GET, "/readyz", None, None).await.expect(StatusCode::OK);
        assert_eq!(ready["missing"], json!([]));
        stand.revoke(&task).await.expect(StatusCode::OK);
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        let kinds = ["credential_minted", "reported", "end_requested", "task_ended"];
        let new: Vec<_> = numbered(&stand)[lines_before..].iter().map(|line| text(line, "event")).collect();
        assert_eq!(new, kinds);
    }

    /// A broker that dies at any moment has recorded everything that it let out.
    async fn a_broker_killed_under_load_has_recorded_what_left(stand) {
        let mut stand = stand;
        for round in 0..3 {
            let (task, _) = stand.task_with_token().await;
            let seen = Mutex::new(HashSet::new());
            let evidence = stand.evidence();
            let pid = stand.broker.child.id().expect("it runs").to_string();
            let kill = async {
                // In the middle of it, however slow the machine is.
                crate::support::wait_for("some load", || async { seen.lock().unwrap().len() > 20 }).await;
                tokio::time::sleep(Duration::from_millis(50 * round)).await;
                tokio::process::Command::new("kill").args(["-KILL", &pid]).status().await.expect("kill");
            };
            let (url, client) = (stand.url(&format!("/v1/tasks/{task}/credentials")), &stand.client);
            let mint = async || {
                let body = json!({"credentials": [{"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "write"}]});
                // Until nobody answers any more.
                while let Ok(answer) = client.post(&url).bearer_auth(&evidence).json(&body).send().await {
                    let Ok(answer) = answer.json::<Value>().await else { break };
                    for credential in answer["credentials"].as_array().expect("credentials") {
                        seen.lock().unwrap().insert(text(&claims(&text(credential, "access_token")), "jti"));
                    }
                }
            };
            tokio::join!(kill, join_all((0..8).map(|_| mint())));
            stand.broker.child.wait().await.expect("it is gone");
            let config = stand.broker.config.clone();
            stand.broker = Server::start(&config).await;
            let recorded: HashSet<_> =
                numbered(&stand).iter().filter_map(|line| line["lease"].as_str().map(str::to_owned)).collect();
            let seen = seen.into_inner().unwrap();
            assert!(seen.is_subset(&recorded), "{:?} left unrecorded", seen.difference(&recorded).collect::<Vec<_>>());
        }
    }

    /// Tokens, evidence and keys: in the answers that they are for, and nowhere else.
    async fn secrets_stay_where_they_belong(stand) {
        let mut stand = stand;
        let config = stand.broker.config.clone();
        stand.broker.stop().await;
        let log = stand.dir.path().join("trace.log");
        stand.broker = Server::start_talking(&config, &log).await;
        let answers = whole_life(&stand).await;

        let mut places = vec![("the log on standard error".to_owned(), std::fs::read(&log).unwrap())];
        assert!(places[0].1.len() > 5000, "nothing was logged");
        for answer in answers {
            places.push((format!("the answer {answer}"), answer.into_bytes()));
        }
        let dir = stand.dir.path();
        let mut stores = files(&dir.join("broker-audit"));
        match &stand.redis {
            // The append-only file holds every write there ever was, keys and values.
            Some(redis) => stores.extend(files(redis.dir.path())),
            None => stores.push(dir.join("remit.redb")),
        }
        let mut with_task = 0;
        for path in stores {
            let bytes = std::fs::read(&path).unwrap();
            with_task += usize::from(bytes.windows(5).any(|word| word == b"task_"));
            places.push((path.display().to_string(), bytes));
        }
        assert!(with_task >= 2, "the search looks in the wrong places");
        secrets::note_files(dir);
        let found = secrets::leaks(secrets::mark(dir), &places);
        assert!(found.is_empty(), "{found:?}");
    }
}

/// Everything that a broker does, and the answers that nothing secret may be in.
async fn whole_life(stand: &Stand) -> Vec<String> {
    let (evidence, mut answers) = (stand.evidence(), Vec::new());
    let declared = stand.post("/v1/tasks", &evidence, secret_declaration()).await.expect(StatusCode::CREATED);
    let task = text(&declared, "task");
    let path = format!("/v1/tasks/{task}");
    let token = text(&declared["credentials"][0], "access_token");
    let svid = json!({"credentials": [{"resource": GIT, "privilege": "read", "type": "jwt"}]});
    let svid = stand.post(&format!("{path}/credentials"), &evidence, svid).await.expect(StatusCode::OK);
    let svid = text(&svid["credentials"][0], "access_token");
    let exchanged = text(&exchange(stand, &task, "read").await.expect(StatusCode::OK), "access_token");
    // Over HTTP/2 as well, whose library is more talkative.
    let h2 = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let other = stand.issuer.evidence(&stand.broker.url, json!({"run_id": "h2"}));
    let by_h2 =
        h2.post(stand.url("/v1/tasks")).bearer_auth(&other).json(&declaration()).send().await.expect("an answer");
    Answer::of(by_h2).await.expect(StatusCode::CREATED);

    for bearer in [VIEWER, RESPONDER, ADMIN, GIT_TOKEN, REGISTRY_TOKEN, "garbage", &token, &evidence, &other] {
        answers.push(stand.get("/v1/tasks", bearer).await.text);
        answers.push(stand.get(&path, bearer).await.text);
        for token in [&token, &svid, &exchanged] {
            answers.push(stand.form("/oauth2/introspect", Some(bearer), &[("token", token)]).await.text);
        }
        answers.push(stand.form("/oauth2/token", Some(bearer), &[("subject_token", bearer)]).await.text);
        // Secrets in the wrong place come back in no error.
        answers.push(stand.get(&format!("/v1/tasks/{bearer}"), bearer).await.text);
        answers.push(stand.get(&format!("/v1/tasks?cursor={bearer}"), bearer).await.text);
        answers.push(stand.post("/v1/tasks", bearer, json!({"purpose": bearer, "surplus": bearer})).await.text);
    }
    let altered = format!("{evidence}x");
    answers.push(stand.post("/v1/tasks", &altered, declaration()).await.text);
    let form = [("grant_type", EXCHANGE), ("subject_token", &*altered), ("subject_token_type", JWT)];
    answers.push(stand.form("/oauth2/token", None, &form).await.text);
    answers.push(stand.post(&format!("{path}/renew"), &evidence, json!({"ttl": 300})).await.text);
    answers.push(stand.revoke(&task).await.text);
    answers.push(stand.post(&format!("{path}/complete"), &evidence, json!({"reason": "done"})).await.text);
    for public in [
        "/jwks",
        "/spiffe/bundle",
        "/pki/ca.pem",
        "/readyz",
        "/healthz",
        "/metrics",
        "/.well-known/openid-configuration",
    ] {
        answers.push(stand.call(Method::GET, public, None, None).await.text);
    }

    answers
}

/// Files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Makes a log longer, by so many lines such as a broker writes, each with a word of so many octets.
pub(crate) fn pad(log: &Path, lines: u64, word: usize) {
    use std::io::Write as _;
    let text = std::fs::read_to_string(log).expect("the log");
    let follow = |head: Head, line: &str| head.followed_by(&Record::read(line.as_bytes()).expect("a record"));
    let mut head = text.lines().try_fold(Head::NONE, follow).expect("a chain");
    let (mut padding, filler) = (String::new(), "x".repeat(word));
    for _ in 0..lines {
        let (previous, sequence) = (head.digest, head.sequence + 1);
        let line = format!(
            r#"{{"at":"{filler}","event":"looked","previous":"{previous}","sequence":{sequence},"time":"2026-01-01T00:00:00Z"}}"#
        );
        head = follow(head, &line).expect("it follows");
        let _ = writeln!(padding, "{line}");
    }
    let mut file = std::fs::OpenOptions::new().append(true).open(log).expect("the log");
    file.write_all(padding.as_bytes()).expect("written");
}
