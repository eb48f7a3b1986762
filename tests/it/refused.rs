//! Callers who are known, and ask for what is not theirs: on record, with who they are and what they named.

use chrono::TimeDelta;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    support::{
        Answer, Frozen, GIT, GIT_TOKEN, KEYTOOL_CSR, REGISTRY_TOKEN, Stand, VIEWER, audit_of, client, declaration,
        text, wait_for,
    },
};

const WORKLOAD: &str = "spiffe://example.com/ci/acme/payments";
const NOBODYS: &str = "task_01jd0000000000000000000000";

/// The record of a request that was refused, once it is there.
async fn record(stand: &Stand, answer: &Answer) -> Value {
    let request = answer.headers["x-request-id"].to_str().unwrap();
    let of = || stand.whole_audit().into_iter().filter(|line| line["request"] == request).collect::<Vec<_>>();
    wait_for("a record", || async { !of().is_empty() }).await;
    let found = of();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// Calls of a task, and what each is called on record.
fn calls(task: &str) -> Vec<(Method, String, Option<Value>, &'static str)> {
    let path = |rest: &str| format!("/v1/tasks/{task}{rest}");
    let report =
        json!({"kind": "prompt", "label": "plan", "digest": remit::task::digest(b""), "size": 0, "sequence": 1});
    vec![
        (Method::GET, path(""), None, "task"),
        (Method::GET, path("/timeline"), None, "timeline"),
        (Method::GET, path("/reach"), None, "reach"),
        (
            Method::POST,
            path("/credentials"),
            Some(json!({"credentials": [{"resource": GIT, "privilege": "read"}]})),
            "mint",
        ),
        (Method::POST, path("/certificate"), Some(json!({"csr": KEYTOOL_CSR})), "certify"),
        (Method::POST, path("/renew"), Some(json!({"ttl": 60})), "renew"),
        (Method::POST, path("/complete"), Some(json!({})), "complete"),
        (Method::POST, path("/revoke"), Some(json!({"reason": "r"})), "revoke"),
        (Method::POST, path("/reports"), Some(json!({"reports": [report]})), "report"),
    ]
}

/// An answer without what differs from call to call.
fn plain(answer: &Answer) -> Value {
    let mut body = answer.json();
    body["request_id"] = Value::Null;
    body
}

both! {
    crate::support::people();

    /// Another instance of the same workload: told the same of a task that there is and of one that there is not.
    async fn a_workload_that_asks_for_anothers_task(stand) {
        let (task, _) = stand.task_with_token().await;
        let other = stand.other_instance();
        for id in [&*task, NOBODYS] {
            // Ten of a minute are told one by one, of each caller.
            for (at, (method, path, body, asked)) in calls(id).into_iter().enumerate() {
                if (at < 5) != (id == task) {
                    continue;
                }
                let answer = stand.call(method, &path, Some(&other), body).await;
                let record = record(&stand, &answer).await;
                let told = plain(&answer);
                let detail = answer.refused(404, "not_found")["detail"].clone();
                let expected = json!({"event": "caller_refused", "asked": asked, "code": "not_found", "why": detail, "named": id});
                for (name, value) in expected.as_object().unwrap() {
                    assert_eq!(&record[name], value, "{path}: {record}");
                }
                let actor = &record["actor"];
                assert_eq!((&actor["workload"], &actor["instance"], &actor["as"]), (&json!(WORKLOAD), &json!("2.1"), &json!("workload")));
                assert!(record["task"].is_null(), "it is no part of the task's story");
                assert_eq!(told["detail"], "no such task");
            }
        }
        // The story of the task says nothing of it, and neither does what its owner sees.
        stand.revoke(&task).await.expect(StatusCode::OK);
        let path = format!("/v1/tasks/{task}/timeline");
        let story = stand.get(&path, VIEWER).await.expect(StatusCode::OK);
        assert!(!story.to_string().contains("caller_refused") && story["complete"] == true, "{story}");
        let trail = stand.get("/v1/audit", &stand.person(&["payments"])).await;
        assert!(trail.text.contains("task_declared") && !trail.text.contains("caller_refused"), "{}", trail.text);
    }

    /// What is for others to do.
    async fn services_and_owners_that_ask_for_what_is_not_for_them(stand) {
        let (task, _) = stand.task_with_token().await;
        let of = |rest: &str| format!("/v1/tasks/{task}{rest}");
        let reason = || Some(json!({"reason": "r"}));
        let lock = || Some(json!({"match": {"owner": "me"}, "reason": "r"}));
        let (others, nobody) = (stand.person(&["others"]), stand.person(&["all-employees"]));
        let get = |path: &str| (Method::GET, path.to_owned(), None);
        let post = |path: String, body| (Method::POST, path, body);
        let rows = [
            (GIT_TOKEN, "service", get("/v1/tasks"), 403, "tasks"),
            (GIT_TOKEN, "service", get(&of("")), 403, "task"),
            (GIT_TOKEN, "service", post("/v1/tasks".to_owned(), Some(declaration())), 403, "declare"),
            (GIT_TOKEN, "service", post(of("/revoke"), reason()), 403, "revoke"),
            (GIT_TOKEN, "service", post("/v1/locks".to_owned(), lock()), 403, "locks"),
            (GIT_TOKEN, "service", get("/v1/keys"), 403, "keys"),
            (GIT_TOKEN, "service", get("/v1/audit"), 403, "audit"),
            (GIT_TOKEN, "service", get("/v1/search?q=1.1"), 403, "search"),
            (GIT_TOKEN, "service", get("/v1/workloads"), 403, "workloads"),
            (GIT_TOKEN, "service", get("/v1/reports/unused"), 403, "unused"),
            (REGISTRY_TOKEN, "service", post(of("/reports"), calls(&task)[8].2.clone()), 403, "report"),
            (&others, "owner", get(&of("")), 404, "task"),
            (&others, "owner", post(of("/revoke"), reason()), 404, "revoke"),
            (&others, "owner", post(of("/complete"), Some(json!({}))), 403, "complete"),
            (&others, "owner", get("/v1/workloads"), 403, "workloads"),
            (&others, "owner", get("/v1/locks"), 403, "locks"),
            (&nobody, "operator", get("/v1/tasks"), 403, "anything"),
        ];
        for (bearer, kind, (method, path, body), status, asked) in rows {
            let answer = stand.call(method, &path, Some(bearer), body).await;
            let record = record(&stand, &answer).await;
            let code = if status == 403 { "policy_denied" } else { "not_found" };
            let why = answer.refused(status, code)["detail"].clone();
            assert_eq!((&record["event"], &record["asked"], &record["code"]), (&json!("caller_refused"), &json!(asked), &json!(code)), "{path}");
            assert_eq!((&record["actor"]["as"], &record["why"]), (&json!(kind), &why), "{path}");
            let named = path.contains(&task).then(|| task.clone());
            assert_eq!(record.get("named").and_then(Value::as_str), named.as_deref(), "{path}");
            assert!(record["task"].is_null(), "{record}");
        }
        let names: Vec<_> = stand.whole_audit().iter().filter(|line| line["event"] == "caller_refused").map(|line| text(&line["actor"], "name")).collect();
        for name in ["git", "registry", "https://sso.example.com#ann@example.com"] {
            assert!(names.iter().any(|other| other == name), "{name}: {names:?}");
        }
    }
}

/// However often somebody tries, the log says how often, in few words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_fills_the_log_by_asking() {
    let frozen = Frozen::start(str::to_owned).await;
    let audience = frozen.running.broker.issuer().to_owned();
    let claims = |run: &str| json!({"iat": frozen.now(), "exp": frozen.now() + 600, "run_id": run});
    let client = client();
    // Every run is another instance of one workload.
    for run in ["1", "2", "3"] {
        let evidence = frozen.issuer.evidence(&audience, claims(run));
        for _ in 0..50 {
            let answer =
                client.get(frozen.url(&format!("/v1/tasks/{NOBODYS}"))).bearer_auth(&evidence).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        }
    }
    for _ in 0..15 {
        let answer = client.get(frozen.url("/v1/keys")).bearer_auth(GIT_TOKEN).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    }
    let of = |event: &str| {
        let lines = audit_of(&frozen.dir.path().join("broker-audit")).into_iter();
        lines.filter(|line| line["event"] == event).collect::<Vec<_>>()
    };
    wait_for("the first ten of each", || async { of("caller_refused").len() == 20 }).await;
    frozen.clock.advance(TimeDelta::minutes(1));
    wait_for("the others", || async { of("more_callers_refused").len() == 1 }).await;
    let more = &of("more_callers_refused")[0];
    assert_eq!((&more["actor"], &more["beyond"]), (&json!({"as": "broker"}), &json!(0)));
    let counts = json!([
        {"as": "service", "name": "git", "code": "policy_denied", "count": 5},
        {"as": "workload", "name": WORKLOAD, "code": "not_found", "count": 140},
    ]);
    assert_eq!(more["counts"], counts);
    assert_eq!(of("caller_refused").len(), 20);

    // What is counted when it stops is on record before it is gone.
    for _ in 0..12 {
        let answer = client.get(frozen.url("/v1/keys")).bearer_auth(GIT_TOKEN).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    }
    let frozen = frozen.restart(|| {}).await;
    let lines = audit_of(&frozen.dir.path().join("broker-audit"));
    let more: Vec<_> = lines.iter().filter(|line| line["event"] == "more_callers_refused").collect();
    let counts = json!([{"as": "service", "name": "git", "code": "policy_denied", "count": 2}]);
    assert_eq!((more.len(), &more[1]["counts"]), (2, &counts), "{more:?}");
}
