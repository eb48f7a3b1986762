//! Reports of what was done for a task: on record before they are answered, told from repeats, and wanted by policy.

use chrono::TimeDelta;
use remit::task::digest;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

use crate::{
    both,
    support::{
        Answer, Body, Frozen, GIT, GIT_TOKEN, OWNER, Prover, REGISTRY, REGISTRY_TOKEN, RESPONDER, Server, Stand, Store,
        VIEWER, audit_of, claims, client, declaration, text,
    },
};

/// A report of a content that is told by its number.
fn report(sequence: u32) -> Value {
    said(sequence, &format!("content {sequence}"))
}

fn said(sequence: u32, content: &str) -> Value {
    json!({"kind": "tool_call", "label": "git.clone", "digest": digest(content.as_bytes()), "size": content.len(),
        "sequence": sequence})
}

fn reports(sequences: impl IntoIterator<Item = u32>) -> Value {
    json!({"reports": sequences.into_iter().map(report).collect::<Vec<_>>()})
}

fn path(task: &str) -> String {
    format!("/v1/tasks/{task}/reports")
}

impl Stand {
    async fn report(&self, task: &str, body: Value) -> Answer {
        self.post(&path(task), &self.evidence(), body).await
    }

    async fn report_at(&self, at: &Server, task: &str, body: Value) -> Answer {
        self.call_at(at, Method::POST, &path(task), Some(&self.evidence()), body.into()).await
    }

    /// What is on record as reported.
    fn reported(&self) -> Vec<Value> {
        reported_in(&self.dir.path().join("broker-audit"))
    }
}

/// What a log has as reported: the events that were not taken back.
fn reported_in(log: &Path) -> Vec<Value> {
    let audit = audit_of(log);
    let undone = |line: &Value| {
        audit.iter().any(|other| {
            other["event"] == "settled" && other["outcome"] != "done" && other["settles"][0] == line["sequence"]
        })
    };
    audit.iter().filter(|line| line["event"] == "reported" && !undone(line)).cloned().collect()
}

fn lease_of(token: &str) -> Value {
    claims(token)["jti"].clone()
}

both! {
    async fn what_was_done_is_on_record(stand) {
        let (task, _) = stand.task_with_token().await;
        let mut body = reports([2, 1]);
        body["reports"][0]["at"] = json!("2026-11-20T10:00:00Z");
        body["reports"][0]["kind"] = json!("prompt");
        let answer = stand.report(&task, body.clone()).await.expect(StatusCode::OK);
        assert_eq!(answer, json!({"task": task, "origin": "self_reported", "accepted": 2, "last_sequence": 2, "gaps": []}));
        let lines = stand.reported();
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        assert_eq!((&line["task"], &line["origin"], &line["late"]), (&json!(task), &json!("self_reported"), &json!(false)));
        assert_eq!(line["actor"]["workload"], "spiffe://example.com/ci/acme/payments");
        assert_eq!(line["reports"], body["reports"]);

        // The same again, alone or beside something new, is no second record.
        let repeated = stand.report(&task, body.clone()).await.expect(StatusCode::OK);
        assert_eq!(repeated, answer);
        assert_eq!(stand.reported().len(), 1);
        let answer = stand.report(&task, reports([3, 5, 9])).await.expect(StatusCode::OK);
        assert_eq!(answer["gaps"], json!([{"from": 4, "to": 4}, {"from": 6, "to": 8}]));
        let mut more = reports([4]);
        more["reports"].as_array_mut().unwrap().extend([body["reports"][0].clone(), report(5)]);
        let answer = stand.report(&task, more).await.expect(StatusCode::OK);
        assert_eq!((&answer["accepted"], &answer["last_sequence"]), (&json!(3), &json!(9)));
        let lines = stand.reported();
        assert_eq!(lines.last().unwrap()["reports"], json!([report(4)]));

        // Another report under a number that is taken, past a gap or before it, takes all that came with it along.
        for taken in [1, 9] {
            let other = json!({"reports": [report(10), said(taken, "another")]});
            stand.report(&task, other).await.refused(422, "sequence_reused");
        }
        let answer = stand.report(&task, reports([10])).await.expect(StatusCode::OK);
        assert_eq!(answer["gaps"], json!([{"from": 6, "to": 8}]));
        let refused = stand.audit().iter().filter(|line| line["event"] == "report_refused").count();
        assert_eq!(refused, 2);
        let metrics = stand.call(Method::GET, "/metrics", None, None).await.text;
        assert!(metrics.contains("remit_reports_total{origin=\"self_reported\"} 7"), "{metrics}");
    }

    async fn who_reports(stand) {
        let (task, token) = stand.task_with_token().await;
        let body = reports([1]);
        for (bearer, status, code) in [
            (stand.other_instance(), 404, "not_found"),
            (VIEWER.to_owned(), 403, "policy_denied"),
            (RESPONDER.to_owned(), 403, "policy_denied"),
            // It is no gateway.
            (REGISTRY_TOKEN.to_owned(), 403, "policy_denied"),
            (token.clone(), 401, "evidence_invalid"),
            ("garbage".to_owned(), 401, "evidence_invalid"),
        ] {
            let mut body = body.clone();
            if bearer == REGISTRY_TOKEN {
                body["lease"] = lease_of(&token);
            }
            stand.post(&path(&task), &bearer, body).await.refused(status, code);
        }
        stand.report("task_01jd0000000000000000000000", body.clone()).await.refused(404, "not_found");
        stand.report("task_1", body).await.refused(400, "invalid_request");
        assert!(stand.reported().is_empty());
        assert!(stand.audit().iter().any(|line| line["event"] == "operator_refused" && line["task"] == task));
    }

    async fn a_gateway_says_what_it_saw(stand) {
        let mut both = declaration();
        both["authorization_details"][0]["locations"] = json!([GIT, REGISTRY]);
        both["authorization_details"][0]["privileges"] = json!(["read"]);
        both["credentials"] = json!([{"resource": GIT, "privilege": "read"}, {"resource": REGISTRY, "privilege": "read"}]);
        let declared = stand.declare(both).await.expect(StatusCode::CREATED);
        let (task, credentials) = (text(&declared, "task"), &declared["credentials"]);
        let lease = |at: usize| lease_of(&text(&credentials[at], "access_token"));
        let (_, elsewhere) = stand.task_with_token().await;
        let observed = |lease: Value| {
            let mut body = reports([1]);
            body["lease"] = lease;
            body
        };
        let send = async |body: Value| stand.post(&path(&task), GIT_TOKEN, body).await;
        for (name, body, status) in [
            ("no credential", reports([1]), 400),
            ("one of another task", observed(lease_of(&elsewhere)), 404),
            ("one for another service", observed(lease(1)), 404),
            ("one that nobody has", observed(json!("0".repeat(32))), 404),
            ("a serial", observed(json!(format!("01{}", "0".repeat(38)))), 400),
            ("no lease id", observed(json!("x")), 400),
        ] {
            let answer = send(body).await;
            assert_eq!(answer.status.as_u16(), status, "{name}: {}", answer.text);
        }
        assert!(stand.reported().is_empty());
        let answer = send(observed(lease(0))).await.expect(StatusCode::OK);
        assert_eq!((&answer["origin"], &answer["last_sequence"]), (&json!("observed"), &json!(1)));
        // The workload counts its own, whatever others saw, and brings no lease.
        stand.report(&task, json!({"reports": [said(1, "its own words")]})).await.expect(StatusCode::OK);
        stand.report(&task, observed(lease(0))).await.refused(400, "invalid_request");
        let lines = stand.reported();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["origin"], &lines[0]["lease"]), (&json!("observed"), &lease(0)));
        assert_eq!(lines[0]["actor"], json!({"as": "service", "name": "git"}));
        assert_eq!((&lines[1]["origin"], lines[1].get("lease")), (&json!("self_reported"), None));
        let metrics = stand.call(Method::GET, "/metrics", None, None).await.text;
        assert!(metrics.contains("remit_reports_total{origin=\"observed\"} 1"), "{metrics}");
    }

    async fn what_is_no_report(stand) {
        let (task, _) = stand.task_with_token().await;
        let with = |member: &str, value: Value| {
            let mut body = reports([1]);
            body["reports"][0][member] = value;
            body
        };
        let right = text(&report(1), "digest");
        let mut bad = vec![
            json!({}),
            json!({"reports": []}),
            json!({"reports": {}}),
            reports(1..=101),
            reports([1, 1]),
            reports([0]),
            // Far past what is missing.
            reports([257]),
            with("kind", json!("guess")),
            with("sequence", json!(-1)),
            with("sequence", json!(1.5)),
            with("sequence", json!(u64::from(u32::MAX) + 1)),
            with("at", json!("yesterday")),
            with("origin", json!("observed")),
            with("late", json!(false)),
            // The configuration keeps none.
            with("body", json!("content 1")),
            json!({"reports": [report(1)], "lease": "0".repeat(32)}),
        ];
        for label in ["", " ", " a", "a ", &"a".repeat(129), "a\nb", "a\rb", "a\tb", "a\u{1b}[2Jb", "a\0b", "a\u{7f}b",
            "a\u{9b}31mb", "a\u{202e}b", "a\u{2028}b", "é"] {
            bad.push(with("label", json!(label)));
        }
        for size in [json!(-1), json!(1.5), json!("9"), json!(9_007_199_254_740_992_u64), json!(u64::MAX), json!(1e300)] {
            bad.push(with("size", size));
        }
        for digest in ["", "sha-256:", &right[8..], &format!("{right}="), &format!("{right}A"), &right[..right.len() - 1],
            &right.replace("sha-256", "SHA-256"), &right.replace("sha-256", "md5"), &"x".repeat(60_000),
            &format!("sha-256:{}", "+/".repeat(21) + "A")] {
            bad.push(with("digest", json!(digest)));
        }
        for body in bad {
            let shown = body.to_string();
            let answer = stand.report(&task, body).await;
            assert_eq!(answer.status, 400, "{} of {}", answer.text, &shown[..shown.len().min(300)]);
            let detail = text(&answer.refused(400, "invalid_request"), "detail");
            assert!(detail.is_ascii() && detail.len() < 300 && !detail.chars().any(char::is_control), "{detail}");
        }
        assert!(stand.reported().is_empty());
        stand.report(&task, reports(1..=100)).await.expect(StatusCode::OK);
    }

    async fn there_are_only_so_many(stand) {
        let (task, _) = stand.task_with_token().await;
        stand.report(&task, reports([10_001])).await.refused(429, "quota_exceeded");
        for call in 0..6 {
            stand.report(&task, reports(call * 100 + 1..=call * 100 + 100)).await.expect(StatusCode::OK);
        }
        // Unless a minute has begun meanwhile, no more is taken in this one; then it is soon full as well.
        let mut last = 601;
        let refused = loop {
            let answer = stand.report(&task, reports(last..last + 100)).await;
            if !answer.status.is_success() {
                break answer;
            }
            last += 100;
        };
        refused.refused(429, "quota_exceeded");
        assert!(last <= 1201, "{last}");
        // What was reported before costs nothing, as far back as it can be compared.
        stand.report(&task, reports(last - 100..last)).await.expect(StatusCode::OK);
        stand.report(&task, reports([1])).await.refused(422, "sequence_reused");
        // Nor does a gateway wait for a workload that talks too much.
        let body = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
        let minted = stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), body).await.expect(StatusCode::OK);
        let mut observed = reports([1]);
        observed["lease"] = lease_of(&text(&minted["credentials"][0], "access_token"));
        stand.post(&path(&task), GIT_TOKEN, observed).await.expect(StatusCode::OK);
    }

    /// What is remembered of reports is in the store.
    async fn a_broker_that_starts_again_knows_what_was_reported(stand) {
        let mut stand = stand;
        let (task, _) = stand.task_with_token().await;
        let answer = stand.report(&task, reports([1, 3])).await.expect(StatusCode::OK);
        stand.restart_broker().await;
        assert_eq!(stand.report(&task, reports([3])).await.expect(StatusCode::OK)["gaps"], answer["gaps"]);
        stand.report(&task, json!({"reports": [said(1, "another")]})).await.refused(422, "sequence_reused");
        assert_eq!(stand.reported().len(), 1);
    }

    /// A task token stands for the evidence on its own task alone.
    async fn a_task_token_reports(stand) {
        let prover = Prover::new();
        let declare = async || {
            let proof = prover.proof("POST", &stand.url("/v1/tasks"), json!({}));
            let evidence = stand.evidence();
            let body = Body::Json(declaration());
            let answer = stand.proven_at(&stand.broker, (Method::POST, "/v1/tasks"), Some(&evidence), &[&proof], body).await;
            answer.expect(StatusCode::CREATED)
        };
        let (one, other) = (declare().await, declare().await);
        let send = async |task: &str, token: &str| {
            let ath = remit::id::sha256_base64url(token.as_bytes());
            let proof = prover.proof("POST", &stand.url(&path(task)), json!({"ath": ath}));
            let request = stand.client.post(stand.url(&path(task))).json(&reports([1]));
            let request = request.header("authorization", format!("DPoP {token}")).header("dpop", proof);
            Answer::of(request.send().await.expect("an answer")).await
        };
        let (task, token) = (text(&one, "task"), text(&one, "task_token"));
        send(&text(&other, "task"), &token).await.refused(401, "evidence_invalid");
        assert_eq!(send(&task, &token).await.expect(StatusCode::OK)["origin"], "self_reported");
        assert_eq!(stand.reported().len(), 1);
    }

    /// Two at once under one number: one of them is on record, and the other one learns of it.
    async fn one_number_is_one_report_whoever_is_first(stand) {
        let second = if stand.redis.is_some() { Some(stand.second_broker().await) } else { None };
        let (task, _) = stand.task_with_token().await;
        for round in 1..=10 {
            let body = |who: usize| json!({"reports": [said(round, &format!("{round} by {who}"))]});
            let at = |who: usize| second.as_ref().filter(|_| who % 2 == 1).unwrap_or(&stand.broker);
            let calls = (0..4).map(|who| stand.report_at(at(who), &task, body(who)));
            let answers = futures_util::future::join_all(calls).await;
            let statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
            assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
            assert_eq!(statuses.iter().filter(|status| **status == 422).count(), 3, "{statuses:?}");
        }
        // How it went is on record with what comes next.
        for at in [Some(&stand.broker), second.as_ref()].into_iter().flatten() {
            stand.call_at(at, Method::GET, "/v1/tasks", Some(VIEWER), None).await.expect(StatusCode::OK);
        }
        let (own, others) = (stand.reported(), second.map(|_| reported_in(&stand.dir.path().join("second-audit"))));
        assert_eq!(own.len() + others.unwrap_or_default().len(), 10);
    }
}

/// Contents are kept where the configuration says so, and only those that are what they are said to be.
#[tokio::test]
async fn contents_are_kept_where_that_is_asked_for() {
    let stand = Stand::with(Store::Embedded, "[reports]\nbodies = true\nmax_body = 20\n").await;
    let (task, _) = stand.task_with_token().await;
    let of = |content: &str, body: &str| {
        let mut report = said(1, content);
        report["body"] = json!(body);
        json!({"reports": [report]})
    };
    for (content, body) in
        [("a", "b"), ("a", ""), ("a\u{1b}[2J", "a\u{1b}[2J"), ("a\u{9b}", "a\u{9b}"), ("a".repeat(21).as_str(), "a")]
    {
        stand.report(&task, of(content, body)).await.refused(400, "invalid_request");
    }
    let long = "a".repeat(21);
    stand.report(&task, of(&long, &long)).await.refused(400, "invalid_request");
    let mut larger = of("a", "a");
    larger["reports"][0]["size"] = json!(2);
    stand.report(&task, larger).await.refused(400, "invalid_request");
    assert!(stand.reported().is_empty());
    stand.report(&task, of("two\nlines \u{e9}", "two\nlines \u{e9}")).await.expect(StatusCode::OK);
    assert_eq!(stand.reported()[0]["reports"][0]["body"], "two\nlines \u{e9}");
}

/// Up to a minute after the end, by then marked as late.
#[tokio::test]
async fn a_report_comes_soon_after_the_end_or_never() {
    let frozen = Frozen::start(str::to_owned).await;
    let http = client();
    let post = async |path: &str, bearer: &str, body: Value| {
        let request = http.post(frozen.url(path)).bearer_auth(bearer).json(&body);
        Answer::of(request.send().await.expect("an answer")).await
    };
    let evidence = |run: &str| {
        let claims = json!({"iat": frozen.now(), "exp": frozen.now() + 300, "run_id": run});
        frozen.issuer.evidence(frozen.running.broker.issuer(), claims)
    };
    for end in ["complete", "revoke", "expire"] {
        let mut body = declaration();
        body["ttl"] = json!(60);
        let declared = post("/v1/tasks", &evidence("1"), body).await.expect(StatusCode::CREATED);
        let task = text(&declared, "task");
        post(&path(&task), &evidence("1"), reports([1])).await.expect(StatusCode::OK);
        match end {
            "complete" => drop(post(&format!("/v1/tasks/{task}/complete"), &evidence("1"), json!({})).await),
            "revoke" => drop(post(&format!("/v1/tasks/{task}/revoke"), RESPONDER, json!({"reason": "r"})).await),
            _ => frozen.clock.advance(TimeDelta::seconds(60)),
        }
        frozen.clock.advance(TimeDelta::seconds(59));
        post(&path(&task), &evidence("1"), reports([2])).await.expect(StatusCode::OK);
        frozen.clock.advance(TimeDelta::seconds(3));
        post(&path(&task), &evidence("1"), reports([3])).await.refused(409, "task_not_active");
        post(&path(&task), &evidence("2"), reports([3])).await.refused(404, "not_found");
        let audit = audit_of(&frozen.dir.path().join("broker-audit"));
        let of_task = |event: &str| audit.iter().filter(|line| line["event"] == event && line["task"] == task).count();
        let late: Vec<_> = audit.iter().filter(|line| line["event"] == "reported" && line["task"] == task).collect();
        assert_eq!(late.iter().map(|line| &line["late"]).collect::<Vec<_>>(), [&json!(false), &json!(true)], "{end}");
        assert_eq!(of_task("report_refused"), 1, "{end}");
    }
    frozen.running.stop().await;
}

/// What policy wants to know of a task before it goes on.
#[tokio::test]
async fn policy_wants_reports() {
    let policies = r#"@id("all") @require_reports("3600") permit (principal, action, resource);
@id("strict") @require_reports("2") permit (principal, action, resource) when { context.declared.owner == "team-payments@example.com" };"#;
    let stand = Stand::under(policies, |config| config).await;
    let (task, _) = stand.task_with_token().await;
    let renew = async || stand.post(&format!("/v1/tasks/{task}/renew"), &stand.evidence(), json!({})).await;
    let refused = async |why: &str| {
        let detail = text(&renew().await.refused(403, "policy_denied"), "detail");
        assert!(detail.contains(why), "{detail}");
    };
    // The declaration is the first word.
    renew().await.expect(StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(3100)).await;
    refused("every 2 seconds").await;
    stand.report(&task, reports([1, 2])).await.expect(StatusCode::OK);
    renew().await.expect(StatusCode::OK);
    stand.report(&task, reports([4, 7])).await.expect(StatusCode::OK);
    refused("report 3 is missing").await;
    stand.report(&task, reports([3])).await.expect(StatusCode::OK);
    refused("reports 5 to 6 are missing").await;
    stand.report(&task, reports([5, 6])).await.expect(StatusCode::OK);
    renew().await.expect(StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(3100)).await;
    // A repeat says nothing new.
    stand.report(&task, reports([7])).await.expect(StatusCode::OK);
    refused("every 2 seconds").await;
    let audit = stand.audit();
    let denied: Vec<_> = audit.iter().filter(|line| line["event"] == "renewal_denied").collect();
    assert_eq!(denied.len(), 4);
    assert!(denied.iter().all(|line| text(line, "why").contains("@require_reports")));
    // Another owner's task is under the other policy alone.
    assert_ne!(OWNER, "other@example.com");
    let mut other = declaration();
    other["owner"] = json!("other@example.com");
    let other = text(&stand.declare(other).await.expect(StatusCode::CREATED), "task");
    tokio::time::sleep(Duration::from_millis(3100)).await;
    stand.post(&format!("/v1/tasks/{other}/renew"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
}

/// Whoever can write to the store makes nobody believe that something was reported.
#[tokio::test]
async fn a_record_that_somebody_else_wrote_is_not_believed() {
    let stand = Stand::new(Store::Redis).await;
    let redis = stand.redis.as_ref().unwrap();
    let (one, other) = (stand.task_with_token().await.0, stand.task_with_token().await.0);
    stand.report(&one, reports(1..=5)).await.expect(StatusCode::OK);
    stand.report(&other, reports([1])).await.expect(StatusCode::OK);
    let key = |task: &str| format!("remit:{{{task}}}:reports:{task}:holder");
    let record = redis.cli(&["GET", &key(&one)]).await;
    assert!(record.starts_with("1 "), "{record}");
    for forged in [record.trim(), "1 1 1 AAAA {}", "x"] {
        redis.cli(&["SET", &key(&other), forged]).await;
        stand.report(&other, reports([2])).await.refused(503, "temporarily_unavailable");
    }
    // What is gone is reported anew, and from the beginning.
    redis.cli(&["DEL", &key(&one)]).await;
    let answer = stand.report(&one, reports([6])).await.expect(StatusCode::OK);
    assert_eq!(answer["gaps"], json!([{"from": 1, "to": 5}]));
}
