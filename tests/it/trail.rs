//! `GET /v1/audit`: the log of a broker, line by line, as it stands.

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
    pin::pin,
    process::Command,
    thread,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::sleep};

use remit::audit::segment::Segment;

use crate::{
    audit::pad,
    both,
    support::{
        ADMIN, GIT_TOKEN, OWNER, RESPONDER, Server, Stand, Store, VIEWER, declaration, people, text, time, wait_for,
    },
};

const WORKLOAD: &str = "spiffe://example.com/ci/acme/payments";
const OTHER: &str = "other@example.com";

/// The records of an answer as they were sent, and its last line.
struct Page {
    lines: Vec<String>,
    end: Value,
}

impl Page {
    fn records(&self) -> Vec<Value> {
        self.lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn tasks(&self) -> BTreeSet<String> {
        self.records().iter().filter_map(|record| record["task"].as_str().map(str::to_owned)).collect()
    }

    fn cursor(&self) -> String {
        text(&self.end, "cursor")
    }
}

fn path(query: &[(&str, &str)]) -> String {
    let url = reqwest::Url::parse_with_params("http://localhost/v1/audit", query).unwrap();
    format!("/v1/audit?{}", url.query().unwrap_or_default())
}

async fn page_for(stand: &Stand, bearer: &str, query: &[(&str, &str)]) -> Page {
    let answer = stand.get(&path(query), bearer).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    assert!(answer.text.ends_with('\n'));
    let mut lines: Vec<_> = answer.text.lines().map(str::to_owned).collect();
    let end = serde_json::from_str(&lines.pop().expect("a last line")).expect("JSON");
    Page { lines, end }
}

async fn page(stand: &Stand, query: &[(&str, &str)]) -> Page {
    page_for(stand, VIEWER, query).await
}

/// The log's own lines, as they stand.
fn lines_of(stand: &Stand) -> Vec<String> {
    let mut segments: Vec<_> = fs::read_dir(stand.dir.path().join("broker-audit"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("audit-"))
        .collect();
    segments.sort();
    segments
        .iter()
        .flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

async fn task_of(stand: &Stand, owner: &str, sandbox: &str) -> String {
    let mut words = declaration();
    (words["owner"], words["sandbox"]) = (owner.into(), sandbox.into());
    text(&stand.declare(words).await.expect(StatusCode::CREATED), "task")
}

both! {
    async fn every_line_as_it_stands(stand) {
        for _ in 0..3 {
            stand.task_with_token().await;
        }
        let whole = page(&stand, &[]).await;
        let log = lines_of(&stand);
        assert!(whole.lines.len() > 6 && log.starts_with(&whole.lines), "to the octet, from the beginning");
        assert_eq!((&whole.end["more"], &whole.end["unattributed"], &whole.end["unreadable"]), (&json!(false), &json!(0), &json!(0)));
        // A look is on record, and in what it shows.
        assert_eq!(whole.records().last().unwrap()["at"], "audit");
        // Page by page it is the same, and from the end on there is what is new.
        let (mut cursor, mut lines) = (None::<String>, Vec::new());
        loop {
            let mut query = vec![("limit", "2")];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let next = page(&stand, &query).await;
            lines.extend(next.lines.iter().take(whole.lines.len() - lines.len().min(whole.lines.len())).cloned());
            cursor = Some(next.cursor());
            assert!(next.lines.len() <= 2);
            // Every look adds a line of its own.
            if lines.len() >= whole.lines.len() {
                break;
            }
        }
        assert_eq!(lines, whole.lines);
        let end = page(&stand, &[]).await.cursor();
        stand.task_with_token().await;
        let new = page(&stand, &[("cursor", &end)]).await;
        assert!(new.records().iter().any(|record| record["event"] == "task_declared"));
        assert_eq!(lines_of(&stand).iter().filter(|line| new.lines.contains(line)).count(), new.lines.len());
    }

    async fn what_is_asked_for_and_nothing_else(stand) {
        let mut stand = stand;
        let (first, second) = (task_of(&stand, OWNER, "sb-1").await, task_of(&stand, OTHER, "sb-2").await);
        let mut forbidden = declaration();
        forbidden["environment"] = "production".into();
        stand.declare(forbidden).await.refused(403, "policy_denied");
        stand.revoke(&first).await.expect(StatusCode::OK);
        // What happened before and after a restart is attributed alike.
        stand.restart_broker().await;
        stand.revoke(&second).await.expect(StatusCode::OK);
        let both = BTreeSet::from([first.clone(), second.clone()]);
        for (query, tasks) in [
            (vec![("owner", OWNER)], BTreeSet::from([first.clone()])),
            (vec![("owner", OTHER)], BTreeSet::from([second.clone()])),
            (vec![("sandbox", "sb-2")], BTreeSet::from([second.clone()])),
            (vec![("owner", OWNER), ("sandbox", "sb-2")], BTreeSet::new()),
            (vec![("workload", WORKLOAD)], both.clone()),
            (vec![("attestor", "ci"), ("owner", OTHER)], BTreeSet::from([second.clone()])),
            (vec![("attestor", "kernel")], BTreeSet::new()),
            (vec![("workload", "spiffe://example.com/nobody")], BTreeSet::new()),
            (vec![("owner", "' OR 1=1")], BTreeSet::new()),
        ] {
            let page = page(&stand, &query).await;
            let seen: BTreeSet<_> = page.tasks().into_iter().filter(|task| both.contains(task)).collect();
            assert_eq!(seen, tasks, "{query:?}");
            assert_eq!(page.end["unattributed"], 0, "{query:?}");
        }
        // All that was said of the task, by whoever it was; and what was refused in the owner's name.
        let of_first: Vec<_> = page(&stand, &[("owner", OWNER)]).await.records().iter().map(|record| text(record, "event")).collect();
        for event in ["task_declared", "credential_minted", "end_requested", "task_ended", "declaration_denied"] {
            assert!(of_first.iter().any(|seen| seen == event), "{event}: {of_first:?}");
        }
        // By time: from the first revoke on.
        let all = page(&stand, &[]).await.records();
        let end = all.iter().find(|record| record["event"] == "end_requested").unwrap();
        let (at, moment) = (text(end, "time"), time(end, "time"));
        let later = page(&stand, &[("since", &at)]).await.records();
        assert!(later.iter().all(|record| time(record, "time") >= moment) && later[0]["event"] == "end_requested");
        let earlier = page(&stand, &[("until", &at)]).await.records();
        assert!(!earlier.is_empty() && earlier.iter().all(|record| time(record, "time") < moment));
        assert_eq!(page(&stand, &[("since", "2036-01-01T00:00:00Z")]).await.lines.len(), 0);
        assert_eq!(page(&stand, &[("until", "2016-01-01T00:00:00+02:00")]).await.lines.len(), 0);
        // With owner and time: the declaration lies before what is asked for.
        let owned = page(&stand, &[("owner", OWNER), ("since", &at)]).await;
        assert_eq!(owned.records()[0]["task"], *first);
    }

    async fn weird_queries_are_refused(stand) {
        let cursor = page(&stand, &[]).await.cursor();
        let log = cursor.split(':').next().unwrap().to_owned();
        for query in [
            vec![("limit", "0")], vec![("limit", "10001")], vec![("limit", "99999999999999999999999")], vec![("limit", "1e3")],
            vec![("since", "yesterday")], vec![("until", "1763000000")], vec![("since", "")], vec![("cursor", "")], vec![("cursor", "1")],
            vec![("cursor", &*format!("{log}:-1"))], vec![("cursor", &*format!("{log}:1:2"))], vec![("cursor", &*format!("{log}:+1"))],
            vec![("cursor", &*format!("{log}: 1"))], vec![("cursor", &*format!("{log}:18446744073709551616"))],
            vec![("cursor", "log_00000000000000000000:1")], vec![("cursor", &*format!("../{log}:1"))], vec![("dir", "/etc")],
            vec![("owner", "a"), ("owner", "b")], vec![("path", "x")],
        ] {
            stand.get(&path(&query), VIEWER).await.refused(400, "invalid_request");
        }
        // A place behind the end is none: a log that was cut would show by it.
        for number in [u64::MAX, 1_000_000] {
            let refused = stand.get(&path(&[("cursor", &format!("{log}:{number}"))]), VIEWER).await.refused(400, "invalid_request");
            assert!(text(&refused, "detail").contains("behind the end"), "{refused}");
        }
        // A place that was set back shows what is shown anyway.
        assert!(!page(&stand, &[("cursor", &format!("{log}:0"))]).await.lines.is_empty());
        for bearer in [stand.evidence(), GIT_TOKEN.to_owned()] {
            stand.get("/v1/audit", &bearer).await.refused(403, "policy_denied");
        }
        stand.call(Method::GET, "/v1/audit", None, None).await.refused(401, "evidence_invalid");
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            assert_eq!(stand.call(method, "/v1/audit", Some(VIEWER), None).await.status, StatusCode::METHOD_NOT_ALLOWED);
        }
    }
}

/// Whoever acts for an owner gets what is said of that owner's tasks, and nothing that cannot be told to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_gets_their_own() {
    let stand = Stand::with(Store::Redis, &people()).await;
    let (own, others) = (task_of(&stand, OWNER, "sb-1").await, task_of(&stand, OTHER, "sb-1").await);
    stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK);
    let ann = stand.person(&["payments"]);
    for query in [
        vec![],
        vec![("sandbox", "sb-1")],
        vec![("workload", WORKLOAD)],
        vec![("attestor", "ci")],
        vec![("owner", OWNER)],
    ] {
        let page = page_for(&stand, &ann, &query).await;
        assert_eq!(page.tasks(), BTreeSet::from([own.clone()]), "{query:?}");
        assert!(page.records().iter().all(|record| record["task"] == *own), "nothing without a task");
        assert_eq!(page.end["unattributed"], 0);
    }
    for query in [vec![("owner", OTHER)], vec![("owner", OTHER), ("sandbox", "sb-1")]] {
        assert_eq!(page_for(&stand, &ann, &query).await.lines.len(), 0, "{query:?}");
    }
    assert_eq!(page_for(&stand, &stand.person(&["others"]), &[]).await.tasks(), BTreeSet::from([others]));
    stand.get("/v1/audit", &stand.person(&["all-employees"])).await.refused(403, "policy_denied");
    // Where nobody can tell any more whose a task is, it is nobody's.
    let redis = stand.redis.as_ref().expect("Redis");
    let keys = redis.cli(&["KEYS", &format!("remit:{{{own}}}:*")]).await;
    for key in keys.lines() {
        redis.cli(&["DEL", key]).await;
    }
    let mut stand = stand;
    stand.restart_broker().await;
    assert_eq!(
        page_for(&stand, &ann, &[]).await.tasks(),
        BTreeSet::from([own.clone()]),
        "this log has the declaration"
    );
    let end = page_for(&stand, &ann, &[]).await.cursor();
    stand.revoke(&own).await.expect(StatusCode::OK);
    let after = page_for(&stand, &ann, &[("cursor", &end)]).await;
    assert_eq!(after.tasks(), BTreeSet::from([own]), "and is asked, though it lies before the cursor");
}

/// A broker that has no declaration of a task and no store says that it can't tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_attributed_is_counted() {
    let stand = Stand::new(Store::Embedded).await;
    for at in 0..3 {
        let id = format!("task_01kamw7q2v5y8r3f6t9c1x4{at:03}");
        stand.revoke(&id).await.expect(StatusCode::OK);
    }
    let page = page(&stand, &[("owner", OWNER)]).await;
    assert!(page.lines.is_empty() && page.end["unattributed"].as_u64().unwrap() >= 6, "{}", page.end);
}

/// The log is read while the store is gone: that is when it is needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_there_without_the_store() {
    let mut stand = Stand::new(Store::Redis).await;
    let task = task_of(&stand, OWNER, "sb-1").await;
    stand.redis.as_mut().unwrap().kill().await;
    for query in [vec![], vec![("owner", OWNER)]] {
        assert!(page(&stand, &query).await.tasks().contains(&task), "{query:?}");
    }
}

/// A broker whose log was made longer by so many lines with a word of so many octets.
async fn with_a_long_log(lines: u64, word: usize) -> Stand {
    let mut stand = Stand::new(Store::Embedded).await;
    let config = stand.broker.config.clone();
    stand.broker.stop().await;
    pad(&Segment::list(&stand.dir.path().join("broker-audit")).unwrap()[0].path, lines, word);
    stand.broker = Server::start(&config).await;
    stand
}

/// Pages are bounded in octets too, and lose nothing; who takes theirs slowly keeps nobody else from theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_a_megabyte_and_a_person_has_two() {
    let stand = with_a_long_log(700, 4000).await;
    let log = lines_of(&stand);
    let (mut cursor, mut lines, mut pages) = (None::<String>, Vec::new(), 0);
    while lines.len() < log.len() {
        let mut query = vec![("limit", "10000")];
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let page = page(&stand, &query).await;
        let octets: usize = page.lines.iter().map(|line| line.len() + 1).sum();
        assert!(octets <= 1024 * 1024, "{octets}");
        cursor = Some(page.cursor());
        (pages, lines) = (pages + 1, [lines, page.lines].concat());
        assert!(page.end["more"] == true || lines.len() >= log.len(), "{}", page.end);
    }
    assert!(lines.starts_with(&log) && log.len() > 700 && pages == 3, "{} lines on {pages} pages", lines.len());

    // Two pages that nobody reads to the end.
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(stand.broker.url.trim_start_matches("http://")).await.unwrap();
        let head = format!("GET /v1/audit HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {VIEWER}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.readable().await.unwrap();
        unread.push(stream);
    }
    let refused = stand.get("/v1/audit?limit=1", VIEWER).await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.refused(429, "quota_exceeded");
    for other in [ADMIN, RESPONDER] {
        page_for(&stand, other, &[("limit", "1")]).await;
    }
    drop(unread);
    wait_for("room", || async { stand.get("/v1/audit?limit=1", VIEWER).await.status == StatusCode::OK }).await;
}

/// A disk that is slow: a segment that gets a line now and then while it is read.
struct SlowDisk {
    path: PathBuf,
    _writer: thread::JoinHandle<()>,
}

impl SlowDisk {
    fn of(stand: &Stand) -> Self {
        let path = stand.dir.path().join(format!("broker-audit/audit-{:020}.jsonl", 2));
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut pipe = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let disk = path.clone();
        let write = move || {
            while disk.exists() {
                let line = "{\"event\":\"looked\",\"sequence\":2,\"time\":\"2026-01-01T00:00:00Z\"}\n";
                pipe.write_all(line.as_bytes()).unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        };
        let writer = thread::Builder::new().name("slow disk".to_owned()).spawn(write).unwrap();
        Self { path, _writer: writer }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // What is left behind is searched, and nobody writes to it any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// What cannot be looked at in time is asked for next; what nobody waits for any more is not looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_ends_in_time_and_with_whoever_waits_for_it() {
    let stand = with_a_long_log(8000, 10).await;
    let slow = SlowDisk::of(&stand);
    let begun = Instant::now();
    let cut = page(&stand, &[("owner", OWNER)]).await;
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(20), "{took:?}");
    assert!(cut.end["more"] == true && cut.lines.is_empty(), "{}", cut.end);
    let at: u64 = cut.cursor().split(':').nth(1).unwrap().parse().unwrap();
    assert!(at > 1, "it came further than before: {at}");

    // Two looks that take their time: whoever has them has no third, of whatever kind.
    let begun = Instant::now();
    let looks = path(&[("owner", OWNER)]);
    let mut looks = Box::pin(join_all([stand.get(&looks, VIEWER), stand.get(&looks, VIEWER)]));
    let others = async {
        sleep(Duration::from_millis(500)).await;
        for path in ["/v1/audit?limit=1", "/v1/search?q=1.1", "/v1/workloads", "/v1/reports/unused"] {
            let refused = stand.get(path, VIEWER).await;
            assert_eq!(refused.headers["retry-after"], "1");
            refused.refused(429, "quota_exceeded");
        }
        // What is answered from memory, and by others, is not held up.
        stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK);
        stand.get("/v1/audit?limit=1", ADMIN).await
    };
    let others = tokio::select! {
        _ = &mut looks => panic!("they were to be slow"),
        others = pin!(others) => others,
    };
    assert_eq!(others.status, StatusCode::OK, "{}", others.text);
    drop(looks);
    wait_for("room", || async { stand.get("/v1/audit?limit=1", VIEWER).await.status == StatusCode::OK }).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "it was let go before its time: {:?}", begun.elapsed());
    drop(slow);
}
