//! What a Prometheus server sees, and what the log says of a request.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    both,
    clients::python,
    support::{
        ADMIN, GIT, GIT_TOKEN, OWNER, RESPONDER, Server, Stand, Store, VIEWER, client, declaration, free_port, text,
        write_config,
    },
};

/// A sample: its name with its labels, as in `name{a="b"}`; and its value.
type Samples = BTreeMap<String, f64>;

/// The samples at an address, read by Prometheus' own parser.
async fn scrape(url: &str) -> Samples {
    let answer = client().get(format!("{url}/metrics")).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text().await.expect("text");
    let said = python("metrics.py", &[], &[&json!(text).to_string()]).await;
    let parsed: Value = serde_json::from_str(&said[0]).expect("JSON");
    let mut samples = Samples::new();
    for sample in parsed["samples"].as_array().unwrap() {
        let name = sample[0].as_str().unwrap();
        let kind = sample[3].as_str().unwrap();
        assert!(["counter", "gauge", "histogram"].contains(&kind), "{name} is {kind}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        let labels: BTreeMap<String, String> = serde_json::from_value(sample[1].clone()).unwrap();
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        let key = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
        assert!(samples.insert(key.clone(), sample[2].as_f64().unwrap()).is_none(), "{key} twice");
    }
    for (name, help) in parsed["help"].as_object().unwrap() {
        assert!(name.starts_with("remit_") && help.as_str().unwrap().len() > 5, "{name}: {help}");
    }
    samples
}

/// The counters that differ, without the requests for the metrics themselves and without the store, which is looked at all the time.
fn moved(before: &Samples, after: &Samples) -> BTreeMap<String, u64> {
    let counts = |name: &str| name.contains("_total") && !name.contains("/metrics") && !name.contains("_store_");
    let differs = |(name, value): (&String, &f64)| {
        let by = value - before.get(name).copied().unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
        (by != 0.0).then(|| (name.clone(), by as u64))
    };
    after.iter().filter(|(name, _)| counts(name)).filter_map(differs).collect()
}

fn expected(list: &[(&str, u64)]) -> BTreeMap<String, u64> {
    list.iter().map(|(name, by)| (format!("remit_{name}"), *by)).collect()
}

fn answered(method: &str, route: &str, status: u16) -> String {
    format!("http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}}")
}

both! {
    /// Each act moves its counters, and no other.
    async fn exactly_what_happened_is_counted(stand) {
        let seen = async || scrape(&stand.broker.url).await;
        let mut before = seen().await;
        let mut step = async |what: &str, list: &[(&str, u64)]| {
            let after = scrape(&stand.broker.url).await;
            assert_eq!(moved(&before, &after), expected(list), "{what}");
            before = after.clone();
            after
        };
        let declared = stand.declare(declaration()).await.expect(StatusCode::CREATED);
        let (task, token) = (text(&declared, "task"), text(&declared["credentials"][0], "access_token"));
        let now = step("a declaration with a credential", &[
            ("policy_decisions_total{action=\"declare\",outcome=\"permit\"}", 1),
            ("policy_decisions_total{action=\"mint\",outcome=\"permit\"}", 1),
            ("credentials_minted_total{form=\"at+jwt\"}", 1),
            ("tasks_declared_total", 1),
            (&answered("POST", "/v1/tasks", 201), 1),
        ]).await;
        assert_eq!((now["remit_live_tasks"], now["remit_live_credentials"]), (1.0, 1.0));
        assert_eq!((now["remit_store_up"], now["remit_ready"]), (1.0, 1.0));

        let svid = json!({"credentials": [{"resource": GIT, "privilege": "read", "type": "jwt"}]});
        stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), svid).await.expect(StatusCode::OK);
        let now = step("a mint", &[
            ("policy_decisions_total{action=\"mint\",outcome=\"permit\"}", 1),
            ("credentials_minted_total{form=\"JWT\"}", 1),
            (&answered("POST", "/v1/tasks/{id}/credentials", 200), 1),
        ]).await;
        assert_eq!((now["remit_live_tasks"], now["remit_live_credentials"]), (1.0, 2.0));

        let refused = json!({"credentials": [{"resource": GIT, "privilege": "secret"}]});
        stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), refused).await.refused(403, "policy_denied");
        step("a refused mint", &[
            ("policy_decisions_total{action=\"mint\",outcome=\"deny\"}", 1),
            (&answered("POST", "/v1/tasks/{id}/credentials", 403), 1),
        ]).await;

        let mut foreign = declaration();
        foreign["authorization_details"][0]["locations"] = json!(["https://nowhere.example.com"]);
        stand.declare(foreign).await.refused(403, "policy_denied");
        step("a refused declaration", &[
            ("policy_decisions_total{action=\"declare\",outcome=\"deny\"}", 1),
            (&answered("POST", "/v1/tasks", 403), 1),
        ]).await;

        stand.post(&format!("/v1/tasks/{task}/renew"), &stand.evidence(), json!({"ttl": 600})).await.expect(StatusCode::OK);
        step("a renewal", &[
            ("policy_decisions_total{action=\"renew\",outcome=\"permit\"}", 1),
            ("tasks_renewed_total", 1),
            (&answered("POST", "/v1/tasks/{id}/renew", 200), 1),
        ]).await;

        assert_eq!(stand.introspect(&token).await["active"], true);
        step("an introspection", &[(&answered("POST", "/oauth2/introspect", 200), 1)]).await;

        stand.post("/v1/tasks", "garbage", declaration()).await.refused(401, "evidence_invalid");
        stand.call(Method::POST, "/v1/tasks", None, Some(declaration())).await.refused(401, "evidence_invalid");
        step("no evidence, and none that counts", &[
            ("evidence_refused_total{attestor=\"none\",reason=\"invalid\"}", 1),
            ("evidence_refused_total{attestor=\"oidc\",reason=\"invalid\"}", 1),
            (&answered("POST", "/v1/tasks", 401), 2),
        ]).await;

        // A second call ends nothing.
        stand.revoke(&task).await.expect(StatusCode::OK);
        stand.revoke(&task).await.expect(StatusCode::OK);
        let now = step("a revoke, and again", &[
            ("tasks_revoked_total", 1),
            (&answered("POST", "/v1/tasks/{id}/revoke", 200), 2),
        ]).await;
        assert_eq!((now["remit_live_tasks"], now["remit_live_credentials"]), (0.0, 0.0));

        let (other, _) = stand.task_with_token().await;
        before = seen().await;
        stand.post(&format!("/v1/tasks/{other}/complete"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        let now = scrape(&stand.broker.url).await;
        let list = [("tasks_completed_total", 1), (&answered("POST", "/v1/tasks/{id}/complete", 200), 1)];
        assert_eq!(moved(&before, &now), expected(&list));
        for operation in ["read", "claim", "mint", "renew", "end", "confirm"] {
            let count = format!("remit_store_operation_duration_seconds_count{{operation=\"{operation}\"}}");
            assert!(now.get(&count).is_some_and(|count| *count >= 1.0), "{count}");
        }
        assert!(now["remit_audit_write_duration_seconds_count"] >= 8.0);
    }

    /// Those who are known, and ask for what is not theirs.
    async fn known_callers_are_counted(stand) {
        let (task, _) = stand.task_with_token().await;
        let before = scrape(&stand.broker.url).await;
        let path = format!("/v1/tasks/{task}");
        stand.get(&path, &stand.other_instance()).await.refused(404, "not_found");
        stand.get(&path, GIT_TOKEN).await.refused(403, "policy_denied");
        let counted = expected(&[
            ("callers_refused_total{caller=\"service\",code=\"policy_denied\"}", 1),
            ("callers_refused_total{caller=\"workload\",code=\"not_found\"}", 1),
            (&answered("GET", "/v1/tasks/{id}", 403), 1),
            (&answered("GET", "/v1/tasks/{id}", 404), 1),
        ]);
        assert_eq!(moved(&before, &scrape(&stand.broker.url).await), counted);
    }

    /// Who scrapes learns how much, and never for whom; and what a caller makes up becomes no label.
    async fn labels_hold_nothing_of_a_caller(stand) {
        let (task, token) = stand.task_with_token().await;
        let evidence = stand.evidence();
        for path in [&*format!("/v1/tasks/{task}"), "/v1/tasks?owner=somebody-secret", "/made/up-path", "/v1/tasks/made-up-id"] {
            for bearer in [VIEWER, RESPONDER, ADMIN, GIT_TOKEN, &evidence, &token] {
                stand.get(path, bearer).await;
            }
        }
        let brew = Method::from_bytes(b"BREW").unwrap();
        for path in ["/made/up-path", "/jwks"] {
            stand.call(brew.clone(), path, None, None).await;
        }
        stand.introspect(&token).await;
        stand.form("/oauth2/token", None, &[("subject_token", &token)]).await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        let samples = scrape(&stand.broker.url).await;
        let all = samples.keys().cloned().collect::<Vec<_>>().join("\n");
        let secrets = [
            &*task, &token, &evidence, OWNER, "somebody-secret", "made", "BREW", "acme", "spiffe:", "sb-7f3", "rita", "flaky",
            GIT, GIT_TOKEN, RESPONDER, VIEWER, ADMIN,
        ];
        for secret in secrets {
            assert!(!all.contains(secret), "{secret} is in\n{all}");
        }
        assert!(samples.contains_key("remit_http_requests_total{method=\"other\",route=\"none\",status=\"404\"}"), "{all}");
        let names: BTreeSet<_> = samples.keys().flat_map(|key| key.split(['{', ',', '}']).skip(1)).collect();
        let names: BTreeSet<_> = names.iter().filter_map(|label| Some(label.split_once('=')?.0)).collect();
        let known = ["action", "attestor", "caller", "code", "digest", "form", "le", "method", "operation", "outcome", "reason", "route", "status", "version"];
        assert_eq!(names, BTreeSet::from(known));
    }
}

/// A broker that cannot reach its store says so, names it, and goes on answering who watches it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_out_of_reach_is_named_and_counted() {
    let mut stand = Stand::new(Store::Redis).await;
    let (ops, http) = (free_port(), stand.broker.config.clone());
    let config = std::fs::read_to_string(&http).unwrap();
    std::fs::write(&http, config.replacen("[store]", &format!("ops = \"127.0.0.1:{ops}\"\n[store]"), 1)).unwrap();
    stand.restart_broker().await;
    let ops = format!("http://127.0.0.1:{ops}");
    stand.task_with_token().await;
    stand.redis.as_mut().unwrap().kill().await;
    stand.declare(declaration()).await;

    let readyz = client().get(format!("{ops}/readyz")).send().await.unwrap();
    assert_eq!(readyz.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        readyz.json::<Value>().await.unwrap(),
        json!({"ready": false, "missing": ["store"], "configuration": "current"})
    );
    assert_eq!(client().get(format!("{ops}/healthz")).send().await.unwrap().status(), StatusCode::OK);
    for url in [&ops, &stand.broker.url] {
        let begun = std::time::Instant::now();
        let samples = scrape(url).await;
        assert!(begun.elapsed() < std::time::Duration::from_secs(2), "it waited for the store");
        assert_eq!((samples["remit_store_up"], samples["remit_ready"]), (0.0, 0.0));
        assert!(samples["remit_store_errors_total{operation=\"read\"}"] >= 1.0);
    }
    stand.redis.as_mut().unwrap().start_again().await;
    crate::support::wait_for("the store", || async { scrape(&ops).await["remit_store_up"] > 0.0 }).await;
    assert_eq!(client().get(format!("{ops}/readyz")).send().await.unwrap().status(), StatusCode::OK);
}

/// So does one whose audit log takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_log_that_takes_nothing_is_named_and_counted() {
    let mut stand = Stand::new(Store::Redis).await;
    let config = stand.broker.config.clone();
    stand.broker.stop().await;
    stand.broker = Server::start_limitable(&config).await;
    stand.broker.limit_files(Some(1)).await;
    stand.declare(declaration()).await.refused(503, "temporarily_unavailable");
    let readyz = client().get(stand.url("/readyz")).send().await.unwrap();
    assert_eq!(readyz.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        readyz.json::<Value>().await.unwrap(),
        json!({"ready": false, "missing": ["audit"], "configuration": "current"})
    );
    let samples = scrape(&stand.broker.url).await;
    assert_eq!(
        (samples["remit_store_up"], samples["remit_ready"], samples["remit_audit_errors_total"]),
        (1.0, 0.0, 1.0)
    );
    assert_eq!((samples["remit_tasks_declared_total"], samples["remit_live_tasks"]), (0.0, 0.0));
}

/// Every line of a request's can be found by its id, and by its task once that is known; as JSON too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_line_names_the_request_and_the_task() {
    let stand = Stand::new(Store::Embedded).await;
    let config = write_config(stand.dir.path(), "json", "redb:json.redb", "");
    let log = stand.dir.path().join("json.log");
    let server = Server::start_json(&config, &log).await;
    let evidence = stand.issuer.evidence(&server.url, json!({}));
    let call = async |path: &str, bearer: &str, body| {
        stand.call_at(&server, Method::POST, path, Some(bearer), Some(body)).await
    };
    let declared = call("/v1/tasks?x=query-secret", &evidence, declaration()).await;
    let id = declared.headers["x-request-id"].to_str().unwrap().to_owned();
    let task = text(&declared.expect(StatusCode::CREATED), "task");
    let refused = call(&format!("/v1/tasks/{task}/renew"), "garbage", json!({})).await;
    let refused_id = refused.headers["x-request-id"].to_str().unwrap().to_owned();

    let log = std::fs::read_to_string(&log).unwrap();
    assert!(!log.contains("query-secret") && !log.contains(&evidence), "{log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let of = |id: &str| lines.iter().filter(|line| line["span"]["id"] == id).collect::<Vec<_>>();
    let end = of(&id).into_iter().find(|line| line["fields"]["message"] == "answered").expect("the end of the request");
    assert_eq!(end["level"], "DEBUG");
    assert_eq!((&end["span"]["method"], &end["span"]["route"]), (&json!("POST"), &json!("/v1/tasks")));
    assert_eq!((&end["span"]["task"], &end["fields"]["status"]), (&json!(task), &json!(201)));
    assert!(end["fields"]["seconds"].is_f64());
    let refused = of(&refused_id);
    assert!(refused.len() >= 2, "{log}");
    let known = |line: &&Value| line["span"]["task"] == *task && line["span"]["route"] == "/v1/tasks/{id}/renew";
    assert!(refused.iter().all(known), "{log}");
}
