//! Finding what an id or a name belongs to: by the store of all brokers, and by the log of the one that is asked.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    support::{
        GIT, GIT_TOKEN, KEYTOOL_CSR, OWNER, Stand, Store, VIEWER, claims, declaration, people, socket_client, text,
    },
};

const WORKLOAD: &str = "spiffe://example.com/ci/acme/payments";
const NOBODYS: &str = "task_01jd0000000000000000000000";

async fn search(stand: &Stand, query: &[(&str, &str)]) -> Value {
    stand.get(&path(query), VIEWER).await.expect(StatusCode::OK)
}

fn path(query: &[(&str, &str)]) -> String {
    let url = reqwest::Url::parse_with_params("http://localhost/v1/search", query).unwrap();
    format!("/v1/search?{}", url.query().unwrap_or_default())
}

fn matches(answer: &Value) -> Vec<Value> {
    answer["matches"].as_array().expect("matches").clone()
}

/// The one match of an answer.
#[track_caller]
fn the_one(answer: &Value) -> Value {
    let found = matches(answer);
    assert_eq!(found.len(), 1, "{answer}");
    found[0].clone()
}

both! {
    async fn everything_leads_to_its_task(stand) {
        let (task, token) = stand.task_with_token().await;
        let (other, _) = stand.task_with_token().await;
        let jti = text(&claims(&token), "jti");
        let answer = stand.post(&format!("/v1/tasks/{task}/certificate"), &stand.evidence(), json!({"csr": KEYTOOL_CSR})).await;
        let serial = text(&answer.expect(StatusCode::OK), "lease");
        let minted = stand.mint(&task).await;
        let request = minted.headers["x-request-id"].to_str().unwrap().to_owned();
        let of_task = format!("{WORKLOAD}/task/{task}");
        let colons = serial.to_ascii_uppercase().as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect::<Vec<_>>().join(":");
        for (kind, query) in [
            ("task", &task), ("task", &of_task), ("lease", &jti), ("lease", &serial), ("lease", &colons), ("request", &request),
        ] {
            let answer = search(&stand, &[("q", query)]).await;
            let found = the_one(&answer);
            assert_eq!((&found["kind"], &found["task"], &found["state"]), (&json!(kind), &json!(task), &json!("active")), "{query}");
            assert_eq!((&found["owner"], &found["workload"], &found["instance"]), (&json!(OWNER), &json!(WORKLOAD), &json!("1.1")), "{query}");
            assert_eq!(answer["next_cursor"], Value::Null);
        }
        // With what there is to know of a credential, and where the log says it.
        let lease = the_one(&search(&stand, &[("q", &jti)]).await);
        assert_eq!((&lease["lease"]["resource"], &lease["lease"]["privilege"]), (&json!(GIT), &json!("read")));
        let first = &lease["records"]["first"];
        let record = stand.whole_audit().into_iter().find(|line| line["sequence"] == first["sequence"]).unwrap();
        assert_eq!((&record["lease"], &record["event"], &record["time"]), (&json!(jti), &first["event"], &first["time"]));
        assert_eq!(first["event"], "credential_minted");
        // A workload, and an instance of it by its name or a part of it, have several.
        for (kind, query) in [("workload", WORKLOAD), ("instance", "1.1"), ("instance", "1")] {
            let found = matches(&search(&stand, &[("q", query)]).await);
            let tasks: Vec<_> = found.iter().map(|found| text(found, "task")).collect();
            assert_eq!(tasks, [other.clone(), task.clone()], "{query}: newest first");
            assert!(found.iter().all(|found| found["kind"] == kind));
        }
        // The task that a token names spares the search; a wrong one does not mislead.
        for of in [&task, &other, &NOBODYS.to_owned()] {
            assert_eq!(the_one(&search(&stand, &[("q", &jti), ("task", of)]).await)["task"], *task, "{of}");
        }
        // Nothing that is not there, however often it is asked for.
        let foreign = format!("spiffe://example.com/ci/acme/other/task/{task}");
        for _ in 0..2 {
            for query in [NOBODYS, &"0".repeat(32), &format!("01{}", "0".repeat(38)), "spiffe://example.com/nobody", "2.1", &foreign[..]] {
                let answer = search(&stand, &[("q", query)]).await;
                assert_eq!(matches(&answer), Vec::<Value>::new(), "{query}");
            }
        }
        stand.revoke(&task).await.expect(StatusCode::OK);
        assert_eq!(the_one(&search(&stand, &[("q", &jti)]).await)["state"], "revoked");
        // A look is on record.
        let looks = stand.whole_audit().into_iter().filter(|line| line["at"] == "search").collect::<Vec<_>>();
        assert!(looks.len() > 20 && looks.iter().all(|look| look["actor"]["name"] == "victor"));
        assert!(looks.iter().any(|look| look["task"] == *task), "a task that was asked for is named");
    }

    /// What was refused leads nowhere but to the log.
    async fn what_was_refused_is_found_by_its_request(stand) {
        let mut forbidden = declaration();
        forbidden["environment"] = "production".into();
        let refused = stand.declare(forbidden).await;
        let request = refused.headers["x-request-id"].to_str().unwrap().to_owned();
        let found = the_one(&search(&stand, &[("q", &request)]).await);
        assert_eq!((&found["kind"], &found["records"]["first"]["event"]), (&json!("request"), &json!("declaration_denied")));
        assert_eq!((&found["workload"], &found["state"]), (&json!(WORKLOAD), &Value::Null));
    }

    /// After a restart, and where the page is smaller than what there is.
    async fn the_log_is_gone_through_page_by_page(stand) {
        let mut stand = stand;
        let mut tasks = Vec::new();
        for _ in 0..12 {
            tasks.push(stand.task_with_token().await.0);
        }
        stand.restart_broker().await;
        let mut seen = Vec::new();
        let mut answer = search(&stand, &[("q", WORKLOAD), ("limit", "2")]).await;
        assert_eq!(answer["looked_at"]["all_tasks"], false);
        for _ in 0..20 {
            seen.extend(matches(&answer).iter().map(|found| text(found, "task")));
            let Some(cursor) = answer["next_cursor"].as_str() else { break };
            answer = search(&stand, &[("q", WORKLOAD), ("limit", "2"), ("cursor", cursor)]).await;
            assert!(matches(&answer).len() <= 2, "{answer}");
        }
        assert_eq!(answer["next_cursor"], Value::Null);
        seen.sort();
        seen.dedup();
        assert_eq!(seen, tasks, "all of them, and nothing else");
    }

    async fn weird_queries_are_refused(stand) {
        let (_, token) = stand.task_with_token().await;
        let before = stand.whole_audit().len();
        let endless = "x".repeat(2049);
        for query in [
            vec![], vec![("q", "")], vec![("q", &*endless)], vec![("q", "a\nb")], vec![("q", "\u{1b}[2J")], vec![("q", "task_1")],
            vec![("q", "spiffe://example.com/../x")], vec![("q", &*token)], vec![("q", NOBODYS), ("task", "x")],
            vec![("q", NOBODYS), ("limit", "0")], vec![("q", NOBODYS), ("limit", "201")], vec![("q", NOBODYS), ("limit", "-1")],
            vec![("q", NOBODYS), ("cursor", "1")], vec![("q", NOBODYS), ("cursor", "log_x:01")], vec![("q", NOBODYS), ("cursor", "log_x:1")],
            vec![("q", NOBODYS), ("cursor", "log_x:99999999999999999999")], vec![("q", NOBODYS), ("role", "admin")],
        ] {
            let refused = stand.get(&path(&query), VIEWER).await.refused(400, "invalid_request");
            assert!(!refused.to_string().contains(&token), "a token is not repeated");
        }
        stand.get("/v1/search?q=%ff", VIEWER).await.refused(400, "invalid_request");
        stand.get(&format!("/v1/search?q={NOBODYS}&q={NOBODYS}"), VIEWER).await.refused(400, "invalid_request");
        // What is text is looked for as it is, and nothing else.
        for odd in ["*", "%", "' OR 1=1 --", "{\"event\":\"task_declared\"}", "../../etc/passwd", "remit:{*}", "\\u0041", "ÿ\u{202e}"] {
            assert_eq!(matches(&search(&stand, &[("q", odd)]).await), Vec::<Value>::new(), "{odd}");
        }
        let log = stand.whole_audit();
        assert!(!log.iter().any(|line| line.to_string().contains(&token)) && log.len() > before);
    }
}

/// Whoever acts for an owner finds that owner's tasks, by whatever leads there, and learns of no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_finds_their_own() {
    let stand = Stand::with(Store::Embedded, &people()).await;
    let task_of = async |owner: &str| {
        let mut words = declaration();
        words["owner"] = owner.into();
        let declared = stand.declare(words).await.expect(StatusCode::CREATED);
        (text(&declared, "task"), text(&claims(&text(&declared["credentials"][0], "access_token")), "jti"))
    };
    let (own, own_jti) = task_of(OWNER).await;
    let (others, others_jti) = task_of("other@example.com").await;
    let mut forbidden = declaration();
    forbidden["environment"] = "production".into();
    let refused = stand.declare(forbidden).await;
    let request = refused.headers["x-request-id"].to_str().unwrap().to_owned();
    let ann = stand.person(&["payments"]);
    let find = async |query: &str| {
        let found = stand.get(&path(&[("q", query)]), &ann).await.expect(StatusCode::OK);
        matches(&found).iter().map(|found| text(found, "task")).collect::<Vec<_>>()
    };
    for query in [&own, &own_jti, WORKLOAD, "1.1"] {
        assert_eq!(find(query).await, std::slice::from_ref(&own), "{query}");
    }
    for query in [&others, &others_jti, &request, NOBODYS] {
        assert_eq!(find(query).await, Vec::<String>::new(), "{query}");
    }
    // Nor how far it was looked for what is another's: as far as for what is nowhere.
    let looked_at = async |query: &[(&str, &str)]| {
        let found = stand.get(&path(query), &ann).await.expect(StatusCode::OK);
        (found["looked_at"]["tasks"].clone(), found["looked_at"]["all_tasks"].clone(), found["next_cursor"].clone())
    };
    let nowhere = "f".repeat(32);
    assert_eq!(looked_at(&[("q", &others_jti)]).await, looked_at(&[("q", &nowhere)]).await);
    let hinted = looked_at(&[("q", &others_jti), ("task", &others)]).await;
    assert_eq!(hinted, looked_at(&[("q", &nowhere), ("task", &others)]).await);
    // Nor how many there are.
    let answer = stand.get(&path(&[("q", WORKLOAD)]), &ann).await.expect(StatusCode::OK);
    assert_eq!(answer["looked_at"]["tasks"], 1);
    let looks = stand.audit().into_iter().filter(|line| line["at"] == "search" && line["actor"]["as"] == "owner");
    assert!(looks.count() >= 8);
    for bearer in [stand.evidence(), GIT_TOKEN.to_owned(), stand.person(&["all-employees"])] {
        stand.get(&path(&[("q", &own)]), &bearer).await.refused(403, "policy_denied");
    }
    stand.call(Method::GET, &path(&[("q", &own)]), None, None).await.refused(401, "evidence_invalid");
    // The kernel's word is evidence too.
    let on_socket = socket_client(&stand.broker.socket).get(format!("http://localhost{}", path(&[("q", &own)])));
    assert_eq!(on_socket.send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

/// The store is every broker's, the log its own: the answer says which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_broker_finds_what_is_in_the_store() {
    // It goes last: what the other broker leaves is in its directory.
    let mut stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, token) = stand.task_with_token().await;
    let jti = text(&claims(&token), "jti");
    let at_second = async |query: &str| {
        let answer = stand.call_at(&second, Method::GET, &path(&[("q", query)]), Some(VIEWER), None).await;
        answer.expect(StatusCode::OK)
    };
    for query in [&task, &jti, WORKLOAD] {
        let answer = at_second(query).await;
        let found = the_one(&answer);
        assert_eq!((&found["task"], &found["records"], &found["owner"]), (&json!(task), &Value::Null, &json!(OWNER)));
        let here = search(&stand, &[("q", query)]).await;
        assert_ne!(here["looked_at"]["log"], answer["looked_at"]["log"]);
        assert!(the_one(&here)["records"].is_object());
    }
    let redis = stand.redis.as_ref().expect("Redis");
    // A lease that nobody of ours wrote is none.
    let key = format!("remit:{{{task}}}:lease:{task}:{}", "f".repeat(32));
    redis.cli(&["SET", &key, "1 1 1 x {}"]).await;
    assert_eq!(matches(&at_second(&"f".repeat(32)).await), Vec::<Value>::new());
    // What the store forgot, the log of the broker where it was still says, with the owner.
    let of_task: Vec<String> =
        redis.cli(&["KEYS", &format!("remit:{{{task}}}:*")]).await.lines().map(str::to_owned).collect();
    for key in &of_task {
        redis.cli(&["DEL", key]).await;
    }
    stand.restart_broker().await;
    let found = the_one(&search(&stand, &[("q", &jti)]).await);
    assert_eq!((&found["task"], &found["owner"], &found["state"]), (&json!(task), &json!(OWNER), &Value::Null));
    assert_eq!(found["lease"]["resource"], GIT);
}

/// A store that forgot everything is no reason to say that there is nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forgot_is_in_doubt() {
    let stand = Stand::new(Store::Redis).await;
    let (task, _) = stand.task_with_token().await;
    stand.redis.as_ref().expect("Redis").cli(&["FLUSHALL"]).await;
    for path in
        [path(&[("q", &task)]), path(&[("q", WORKLOAD)]), "/v1/workloads".to_owned(), "/v1/reports/unused".to_owned()]
    {
        stand.get(&path, VIEWER).await.refused(503, "temporarily_unavailable");
    }
    // The log is there all the same.
    assert!(stand.get("/v1/audit", VIEWER).await.text.contains(&task));
}
