//! `GET /v1/workloads`: which workloads there are, from the tasks of all brokers and the log of the one that is asked.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    support::{Answer, GIT, GIT_TOKEN, NOWHERE, OWNER, Stand, Store, VIEWER, declaration, people, socket_client, text},
};

const PAYMENTS: &str = "spiffe://example.com/ci/acme/payments";
const OTHER: &str = "spiffe://example.com/ci/acme/other";

async fn inventory(stand: &Stand, query: &str) -> Value {
    stand.get(&format!("/v1/workloads{query}"), VIEWER).await.expect(StatusCode::OK)
}

#[track_caller]
fn of(inventory: &Value, workload: &str) -> Value {
    let all = inventory["workloads"].as_array().expect("workloads");
    all.iter().find(|one| one["workload"] == workload).unwrap_or_else(|| panic!("no {workload}: {inventory}")).clone()
}

fn names(inventory: &Value) -> Vec<String> {
    inventory["workloads"].as_array().expect("workloads").iter().map(|one| text(one, "workload")).collect()
}

async fn declare(stand: &Stand, repository: &str, over: &Value) -> Answer {
    let mut words = declaration();
    for (member, value) in over.as_object().unwrap() {
        words[member] = value.clone();
    }
    let evidence = stand.issuer.evidence(&stand.broker.url, json!({"repository": repository}));
    stand.post("/v1/tasks", &evidence, words).await
}

both! {
    async fn who_there_is(stand) {
        let mut stand = stand;
        assert_eq!(names(&inventory(&stand, "").await), Vec::<String>::new());
        let (first, _) = stand.task_with_token().await;
        stand.task_with_token().await;
        declare(&stand, "acme/payments", &json!({"owner": "other@example.com"})).await.expect(StatusCode::CREATED);
        stand.revoke(&first).await.expect(StatusCode::OK);
        // One who was only ever refused, and what was refused to one who has tasks.
        declare(&stand, "acme/other", &json!({"environment": "production"})).await.refused(403, "policy_denied");
        let ask = json!({"credentials": [{"resource": NOWHERE, "privilege": "read"}]});
        let (task, _) = stand.task_with_token().await;
        stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), ask).await.refused(403, "policy_denied");
        let kernel = socket_client(&stand.broker.socket).post("http://localhost/v1/tasks").json(&declaration());
        let kernel = Answer::of(kernel.send().await.unwrap()).await.expect(StatusCode::CREATED);
        stand.get("/v1/tasks", "garbage").await.refused(401, "evidence_invalid");

        let all = inventory(&stand, "").await;
        assert_eq!(names(&all), [OTHER.to_owned(), PAYMENTS.to_owned(), text(&kernel, "workload")]);
        let payments = of(&all, PAYMENTS);
        assert_eq!(
            (&payments["kinds"], &payments["owners"], &payments["live_tasks"], &payments["denials"], &payments["more_owners"]),
            (&json!(["ci"]), &json!(["other@example.com", OWNER]), &json!(3), &json!(1), &json!(false))
        );
        let declared: Vec<_> = stand.audit().into_iter().filter(|line| line["actor"]["workload"] == PAYMENTS).collect();
        assert_eq!(payments["first_seen"], declared[0]["time"]);
        assert_eq!(payments["last_seen"], declared.last().unwrap()["time"]);
        let other = of(&all, OTHER);
        assert_eq!((&other["owners"], &other["live_tasks"], &other["denials"]), (&json!([]), &json!(0), &json!(1)));
        assert_eq!(of(&all, &text(&kernel, "workload"))["kinds"], json!(["ai_agent"]));
        let covers = &all["covers"];
        assert_eq!((&covers["all_tasks"], &covers["all_records"], &covers["records"][0], &covers["left_out"]), (&json!(true), &json!(true), &json!(1), &json!(0)));
        assert_eq!(covers["since"], stand.whole_audit()[0]["time"]);

        // The same after a restart.
        stand.restart_broker().await;
        let again = inventory(&stand, "").await;
        assert_eq!(again["workloads"], all["workloads"]);
        // And what is new comes to it, without what was there being counted twice.
        declare(&stand, "acme/other", &json!({"environment": "production"})).await.refused(403, "policy_denied");
        let later = inventory(&stand, "").await;
        assert_eq!((&of(&later, OTHER)["denials"], &of(&later, PAYMENTS)["denials"]), (&json!(2), &json!(1)));
        // Page by page.
        let (mut seen, mut query) = (Vec::new(), "?limit=1".to_owned());
        loop {
            let page = inventory(&stand, &query).await;
            seen.extend(names(&page));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            query = format!("?limit=1&cursor={cursor}");
        }
        assert_eq!(seen, names(&all));
        assert!(stand.whole_audit().iter().any(|line| line["at"] == "workloads" && line["actor"]["name"] == "victor"));
    }

    async fn weird_queries_are_refused(stand) {
        for query in ["?limit=0", "?limit=201", "?limit=-1", "?limit=99999999999999999999", "?cursor=", "?cursor=x", "?cursor=spiffe://e.org/..",
            "?owner=x", "?cursor=%00", "?limit=1&limit=1"] {
            stand.get(&format!("/v1/workloads{query}"), VIEWER).await.refused(400, "invalid_request");
        }
        // A cursor is a name, and nobody's secret: any will do.
        assert_eq!(names(&inventory(&stand, "?cursor=spiffe://zzz.example/z").await), Vec::<String>::new());
        stand.task_with_token().await;
        for bearer in [stand.evidence(), GIT_TOKEN.to_owned()] {
            stand.get("/v1/workloads", &bearer).await.refused(403, "policy_denied");
        }
        stand.call(Method::GET, "/v1/workloads", None, None).await.refused(401, "evidence_invalid");
    }
}

/// It says what others' workloads do, so it is for operators alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_do_not_get_it() {
    let stand = Stand::with(Store::Embedded, &people()).await;
    stand.task_with_token().await;
    stand.get("/v1/workloads", &stand.person(&["payments"])).await.refused(403, "policy_denied");
    stand.get("/v1/workloads", &stand.person(&["sec-viewers"])).await.expect(StatusCode::OK);
}

/// Of another broker's workloads the tasks are known, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_brokers_workloads_are_known_by_their_tasks() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    stand.task_with_token().await;
    declare(&stand, "acme/other", &json!({"environment": "production"})).await.refused(403, "policy_denied");
    let there = stand.call_at(&second, Method::GET, "/v1/workloads", Some(VIEWER), None).await.expect(StatusCode::OK);
    assert_eq!(names(&there), [PAYMENTS]);
    let payments = of(&there, PAYMENTS);
    assert_eq!(
        (&payments["live_tasks"], &payments["denials"], &payments["owners"]),
        (&json!(1), &json!(0), &json!([OWNER]))
    );
    assert_ne!(there["covers"]["log"], inventory(&stand, "").await["covers"]["log"]);
    assert!(!there.to_string().contains(GIT));
}
