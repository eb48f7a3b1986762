//! The revocation feed: everybody who follows it hears of every end, from every broker on the store, and notices when nothing is heard.

use futures_util::{StreamExt as _, future::join_all, stream};
use remit::clock::{Clock as _, SystemClock};
use reqwest::{StatusCode, header};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    time::timeout,
};

use crate::{
    both,
    support::{GIT_TOKEN, RESPONDER, Server, Stand, Store, claims, declaration, part, text, wait_for},
};

const PATH: &str = "/v1/revocations";

/// Somebody who follows the feed.
struct Follower {
    answer: reqwest::Response,
    read: String,
}

/// A state, and the id that it came with.
#[derive(Debug)]
struct State {
    id: String,
    claims: Value,
}

impl Follower {
    async fn new(stand: &Stand, at: &Server, left: Option<&str>) -> Self {
        let mut request = stand.client.get(format!("{}{PATH}", at.url)).header(header::ACCEPT, "text/event-stream");
        if let Some(left) = left {
            request = request.header("Last-Event-ID", left);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        Self { answer, read: String::new() }
    }

    /// The next state, which is there within half of the window and what it takes.
    async fn next(&mut self) -> State {
        let within = tokio::time::timeout(Duration::from_secs(5), self.try_next()).await;
        within.expect("no state in time").expect("the stream ended")
    }

    /// The next state; `None` where the stream has ended.
    async fn try_next(&mut self) -> Option<State> {
        while !self.read.contains("\n\n") {
            let part = self.answer.chunk().await.ok()??;
            self.read.push_str(std::str::from_utf8(&part).unwrap());
        }
        let (event, rest) = self.read.split_once("\n\n").unwrap();
        let field = |name: &str| {
            let line = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("no {name} in {event}")).to_owned()
        };
        assert_eq!(field("event"), "state");
        let (id, data) = (field("id"), field("data"));
        self.read = rest.to_owned();
        assert_eq!(part(&data, 0)["typ"], "remit-revocations+jwt");
        Some(State { id, claims: claims(&data) })
    }

    /// The state that tells of the end of this task, and those before it go on from each other.
    async fn hears_of(&mut self, task: &str) -> State {
        let mut before: Option<Value> = None;
        loop {
            let state = self.next().await;
            if let Some(before) = &before {
                assert_eq!(&state.claims["previous"], before, "a gap");
            }
            if names(&state.claims, task) {
                return state;
            }
            before = Some(state.claims["sequence"].clone());
        }
    }
}

fn names(claims: &Value, task: &str) -> bool {
    claims["entries"].as_array().unwrap().iter().any(|entry| entry["task"] == task)
}

pub(crate) async fn snapshot(stand: &Stand, at: &Server, nonce: &str) -> Value {
    let answer = stand.client.get(format!("{}{PATH}?nonce={nonce}", at.url)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/remit-revocations+jwt");
    assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
    claims(&answer.text().await.unwrap())
}

fn seconds(claims: &Value, member: &str) -> f64 {
    claims[member].as_f64().unwrap()
}

both! {
    async fn a_whole_state_holds_what_has_ended_and_is_of_now(stand) {
        let (task, _) = stand.task_with_token().await;
        let (done, _) = stand.task_with_token().await;
        let before = SystemClock.now();
        let first = snapshot(&stand, &stand.broker, "one").await;
        assert_eq!(first["entries"], json!([]));
        stand.revoke(&task).await.expect(StatusCode::OK);
        stand.post(&format!("/v1/tasks/{done}/complete"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        let state = snapshot(&stand, &stand.broker, "two").await;
        assert_eq!((&state["iss"], &state["nonce"], &state["generation"]), (&json!(stand.broker.url), &json!("two"), &json!(1)));
        assert!(state.get("previous").is_none() && names(&state, &task) && names(&state, &done));
        assert_eq!(state["sequence"].as_u64().unwrap(), first["sequence"].as_u64().unwrap() + 2);
        assert!((seconds(&state, "exp") - seconds(&state, "iat") - 5.0).abs() < 0.0015);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of today are exact")]
        let before = before.timestamp_millis() as f64 / 1000.0;
        assert!(seconds(&state, "iat") >= before && seconds(&state, "iat") < before + 30.0);
        let entry = state["entries"].as_array().unwrap().iter().find(|entry| entry["task"] == *task).unwrap();
        let ended = text(&stand.revoke(&task).await.json()["reach"][0], "by").parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of today are exact")]
        let ended = ended.timestamp_millis() as f64 / 1000.0;
        assert!(seconds(entry, "at") <= ended && seconds(entry, "until") > ended && seconds(entry, "until") < ended + 86_500.0);
        // Its key is published for this alone.
        let answer = stand.client.get(stand.url(&format!("{PATH}?nonce=three"))).send().await.unwrap().text().await.unwrap();
        let keys = |path: &'static str| {
            let request = stand.client.get(stand.url(path));
            async move { request.send().await.unwrap().json::<Value>().await.unwrap()["keys"].as_array().unwrap().clone() }
        };
        let kid = part(&answer, 0)["kid"].clone();
        let own: Vec<_> = keys("/v1/revocations/jwks").await;
        assert_eq!((own.len(), &own[0]["kid"], &own[0]["remit_purpose"]), (1, &kid, &json!("revocations")));
        assert!(!keys("/jwks").await.iter().chain(&keys("/spiffe/bundle").await).any(|key| key["kid"] == kid));
    }

    /// Though the task could have lived for a day: an end matters for as long as a credential lives, which is an hour where no policy says more.
    async fn an_end_is_told_for_no_longer_than_a_credential_lives(stand) {
        let (task, _) = stand.task_with_token().await;
        let (done, _) = stand.task_with_token().await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        stand.post(&format!("/v1/tasks/{done}/complete"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        let told = async || {
            let state = snapshot(&stand, &stand.broker, "n").await;
            let entries = state["entries"].as_array().unwrap().clone();
            assert_eq!(entries.len(), 2, "{state}");
            entries.iter().map(|entry| seconds(entry, "until") - seconds(entry, "at")).collect::<Vec<_>>()
        };
        wait_for("both ends in the store's log", || async { told().await.iter().all(|life| *life < 4000.0) }).await;
        assert!(told().await.iter().all(|life| *life >= 3660.0));
    }

    async fn a_follower_hears_of_every_end_at_once_and_that_there_is_none(stand) {
        let (task, _) = stand.task_with_token().await;
        let (earlier, _) = stand.task_with_token().await;
        stand.revoke(&earlier).await.expect(StatusCode::OK);
        let mut follower = Follower::new(&stand, &stand.broker, None).await;
        let first = follower.next().await;
        assert!(first.claims.get("previous").is_none() && names(&first.claims, &earlier));
        // A heartbeat: nothing new, and fresher.
        let beat = follower.next().await;
        assert_eq!((&beat.claims["previous"], &beat.claims["entries"]), (&first.claims["sequence"], &json!([])));
        assert_eq!(beat.claims["sequence"], first.claims["sequence"]);
        assert!(seconds(&beat.claims, "exp") > seconds(&first.claims, "exp"));
        stand.revoke(&task).await.expect(StatusCode::OK);
        let told = follower.hears_of(&task).await;
        assert_eq!(told.id, format!("{}:{}", text(&told.claims, "broker"), told.claims["sequence"]));
        // Who comes back is told what is new, and only that.
        let (last, _) = stand.task_with_token().await;
        drop(follower);
        stand.revoke(&last).await.expect(StatusCode::OK);
        let resumed = Follower::new(&stand, &stand.broker, Some(&told.id)).await.next().await;
        assert!(resumed.claims["previous"] == told.claims["sequence"] && names(&resumed.claims, &last) && !names(&resumed.claims, &task));
        // Whoever left off somewhere else, or nowhere, is told all.
        let broker = text(&told.claims, "broker");
        for left in ["nowhere:1", "x", &format!("{broker}:9007199254740991"), &format!("{broker}:-1")] {
            let state = Follower::new(&stand, &stand.broker, Some(left)).await.next().await;
            assert!(state.claims.get("previous").is_none() && names(&state.claims, &earlier) && names(&state.claims, &last), "{left}");
        }
    }

    async fn a_restart_forgets_nothing_and_counts_on(stand) {
        let mut stand = stand;
        let (task, _) = stand.task_with_token().await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        let mut follower = Follower::new(&stand, &stand.broker, None).await;
        let before = follower.next().await;
        stand.restart_broker().await;
        // The stream ended with the broker.
        while follower.try_next().await.is_some() {}
        let after = Follower::new(&stand, &stand.broker, Some(&before.id)).await.next().await;
        assert_eq!(after.claims["broker"], before.claims["broker"]);
        assert!(after.claims["sequence"].as_u64() > before.claims["sequence"].as_u64());
        assert!(after.claims.get("previous").is_none() && names(&after.claims, &task));
    }

    /// A revoke says how many of those that follow have heard of it.
    async fn a_service_says_how_far_it_is(stand) {
        let (task, _) = stand.task_with_token().await;
        let heard = |answer: &Value| {
            let feed = answer["reach"].as_array().unwrap().iter().find(|reach| reach["class"] == "feed").unwrap().clone();
            (feed["acknowledged"].clone(), feed["of"].clone())
        };
        let state = stand.client.get(stand.url(PATH)).bearer_auth(GIT_TOKEN).send().await.unwrap().text().await.unwrap();
        let before = claims(&state);
        let first = stand.revoke(&task).await.expect(StatusCode::OK);
        assert_eq!(heard(&first), (json!(0), json!(1)));
        let ack = async |broker: &Value, sequence: u64, bearer: &str| {
            stand.post("/v1/revocations/ack", bearer, json!({"broker": broker, "sequence": sequence})).await
        };
        let (broker, sequence) = (&before["broker"], before["sequence"].as_u64().unwrap());
        assert_eq!(ack(broker, sequence, GIT_TOKEN).await.status, StatusCode::OK);
        assert_eq!(heard(&stand.revoke(&task).await.json()), (json!(0), json!(1)));
        // What was never said, nobody has heard; and nobody speaks for another, or for another broker.
        ack(broker, sequence + 2, GIT_TOKEN).await.refused(400, "invalid_request");
        ack(&json!("broker_x"), sequence, GIT_TOKEN).await.refused(400, "invalid_request");
        ack(broker, sequence + 1, RESPONDER).await.refused(403, "policy_denied");
        ack(broker, sequence + 1, &stand.evidence()).await.refused(403, "policy_denied");
        ack(broker, sequence + 1, "nobody").await.refused(401, "evidence_invalid");
        assert_eq!(ack(broker, sequence + 1, GIT_TOKEN).await.status, StatusCode::OK);
        // It never goes back.
        assert_eq!(ack(broker, sequence, GIT_TOKEN).await.status, StatusCode::OK);
        assert_eq!(heard(&stand.revoke(&task).await.json()), (json!(1), json!(1)));
        // One whose state has run out is not waited for.
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(heard(&stand.revoke(&task).await.json()), (json!(0), json!(0)));
    }

    /// It is signed with keys of its own, and is of a kind of its own.
    async fn a_state_is_no_token(stand) {
        let (task, token) = stand.task_with_token().await;
        let state = stand.client.get(stand.url(PATH)).send().await.unwrap().text().await.unwrap();
        // Nor is its signature one of the keys that tokens are checked by.
        let under = format!("{}.{}", token.rsplit_once('.').unwrap().0, state.rsplit_once('.').unwrap().1);
        for taken in [&state, &under] {
            assert_eq!(stand.introspect(taken).await, json!({"active": false}));
            stand.get(&format!("/v1/tasks/{task}"), taken).await.refused(401, "evidence_invalid");
            stand.post("/v1/tasks", taken, declaration()).await.refused(401, "evidence_invalid");
        }
        let kid = text(&part(&state, 0), "kid");
        for elsewhere in ["/jwks", "/spiffe/bundle", "/ssf/v1/jwks"] {
            let keys = stand.client.get(stand.url(elsewhere)).send().await.unwrap().text().await.unwrap();
            assert!(keys.contains("kid") && !keys.contains(&kid), "{elsewhere}");
        }
    }

    async fn bad_questions_are_refused(stand) {
        for query in ["?nonce=", "?nonce=a%20b", "?nonce=a&nonce=b", "?since=1", &format!("?nonce={}", "a".repeat(129))] {
            let answer = stand.client.get(stand.url(&format!("{PATH}{query}"))).send().await.unwrap();
            crate::support::Answer::of(answer).await.refused(400, "invalid_request");
        }
        let stream = stand.client.get(stand.url(&format!("{PATH}?nonce=a"))).header(header::ACCEPT, "text/event-stream");
        crate::support::Answer::of(stream.send().await.unwrap()).await.refused(400, "invalid_request");
        // Whoever says who they are has to be that.
        stand.get(PATH, "nobody's token").await.refused(401, "evidence_invalid");
        for token in [GIT_TOKEN, RESPONDER, &stand.evidence()] {
            let answer = stand.client.get(stand.url(PATH)).bearer_auth(token).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
        }
    }
}

mod closed {
    use super::*;

    both! {
        "[feed]\nanonymous = false";
        async fn it_can_be_kept_from_strangers(stand) {
            let anybody = stand.client.get(stand.url(PATH)).send().await.unwrap();
            crate::support::Answer::of(anybody).await.refused(401, "evidence_invalid");
            stand.get(PATH, &stand.evidence()).await.refused(403, "policy_denied");
            for token in [GIT_TOKEN, RESPONDER] {
                let answer = stand.client.get(stand.url(PATH)).bearer_auth(token).send().await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
            }
        }
    }
}

/// Every broker on a store tells the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_broker_ends_the_others_tell() {
    let mut stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (earlier, _) = stand.task_with_token().await;
    stand.revoke(&earlier).await.expect(StatusCode::OK);
    let mut follower = Follower::new(&stand, &second, None).await;
    if !names(&follower.next().await.claims, &earlier) {
        follower.hears_of(&earlier).await;
    }
    let (task, _) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    let told = follower.hears_of(&task).await;
    let (first, others) = (snapshot(&stand, &stand.broker, "a").await, snapshot(&stand, &second, "b").await);
    assert_ne!(first["broker"], others["broker"]);
    assert_eq!(told.claims["broker"], others["broker"]);
    for state in [&first, &others] {
        assert!(names(state, &task) && names(state, &earlier));
    }
    // What it has learnt outlives the store's memory of it, and the first broker.
    stand.broker.stop().await;
    let redis = stand.redis.as_mut().unwrap();
    redis.cli(&["DEL", "remit:ends"]).await;
    redis.kill().await;
    redis.start_again().await;
    wait_for("the log of ends", || async {
        stand.redis.as_ref().unwrap().cli(&["XLEN", "remit:ends"]).await.trim() == "2"
    })
    .await;
    assert!(names(&snapshot(&stand, &second, "c").await, &task));
}

/// Nobody goes by a state whose broker cannot tell what the others have ended; and what it knows, it tells all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_store_a_broker_tells_what_it_knows_and_freshens_nothing() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, _) = stand.task_with_token().await;
    let mut follower = Follower::new(&stand, &stand.broker, None).await;
    follower.next().await;
    stand.redis.as_mut().unwrap().kill().await;
    let stopped = SystemClock.now().timestamp() + 1;
    stand.revoke(&task).await.expect(StatusCode::ACCEPTED);
    let told = follower.hears_of(&task).await;
    #[expect(clippy::cast_precision_loss, reason = "seconds of today are exact")]
    let most = stopped as f64;
    assert!(seconds(&told.claims, "iat") <= most);
    let unsure = stand.client.get(stand.url(&format!("{PATH}?nonce=a"))).send().await.unwrap();
    crate::support::Answer::of(unsure).await.refused(503, "temporarily_unavailable");
    for _ in 0..2 {
        let state = follower.next().await;
        assert!(seconds(&state.claims, "iat") <= most);
    }
    stand.redis.as_mut().unwrap().start_again().await;
    loop {
        let state = follower.next().await;
        if seconds(&state.claims, "iat") > most {
            break;
        }
    }
}

const FOLLOW: &str = "GET /v1/revocations HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";

fn address(stand: &Stand) -> std::net::SocketAddr {
    stand.broker.url.trim_start_matches("http://").parse().unwrap()
}

/// They take up no room of those who ask, and all are told as soon as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_thousand_followers_all_hear_of_a_revoke() {
    const MANY: usize = 1_100;
    let stand = Stand::new(Store::Embedded).await;
    let (task, _) = stand.task_with_token().await;
    // As many at a time as there is room for those who ask.
    let followers: Vec<_> = stream::iter(0..MANY)
        .map(|_| async {
            let mut follower = Follower::new(&stand, &stand.broker, None).await;
            assert!(!names(&follower.next().await.claims, &task));
            follower
        })
        .buffer_unordered(64)
        .collect()
        .await;
    // A connection of one's own, as all others have.
    let fresh = crate::support::client().get(stand.url("/healthz")).timeout(Duration::from_secs(2));
    assert_eq!(fresh.send().await.unwrap().status(), StatusCode::OK);
    let hear = followers.into_iter().map(|mut follower| {
        let task = task.clone();
        async move {
            follower.hears_of(&task).await;
            Instant::now()
        }
    });
    let begun = Instant::now();
    let (heard, revoked) = tokio::join!(join_all(hear), stand.revoke(&task));
    revoked.expect(StatusCode::OK);
    assert_eq!(heard.len(), MANY);
    // Within the second heartbeat of a window of 5 s, in the one process that plays them all.
    let last = heard.into_iter().max().unwrap() - begun;
    assert!(last < Duration::from_secs(4), "the last has heard after {last:?}");
}

/// Strangers have half of the room, and whoever goes makes some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_leave_room_for_services() {
    let stand = Stand::with(Store::Embedded, "[feed]\nfollowers = 4").await;
    let ask = |token: Option<&'static str>| {
        let mut request = stand.client.get(stand.url(PATH)).header(header::ACCEPT, "text/event-stream");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        async move { request.send().await.unwrap() }
    };
    let refused = |answer: reqwest::Response| async move {
        crate::support::Answer::of(answer).await.refused(429, "quota_exceeded");
    };
    let mut open = Vec::new();
    // An operator is no service.
    for token in [None, Some(RESPONDER)] {
        open.push(ask(token).await);
        assert_eq!(open.last().unwrap().status(), StatusCode::OK);
    }
    refused(ask(None).await).await;
    refused(ask(Some(RESPONDER)).await).await;
    for _ in 0..2 {
        open.push(ask(Some(GIT_TOKEN)).await);
        assert_eq!(open.last().unwrap().status(), StatusCode::OK);
    }
    refused(ask(Some(GIT_TOKEN)).await).await;
    // One state is for everybody, all the same.
    assert_eq!(stand.client.get(stand.url(PATH)).send().await.unwrap().status(), StatusCode::OK);
    open.remove(0);
    wait_for("room", || async { ask(None).await.status() == StatusCode::OK }).await;
}

/// Whoever takes nothing of what is sent is cut off, whichever protocol they speak; others hear everything meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_is_cut_off() {
    let stand = Stand::with(Store::Embedded, "[feed]\nfollowers = 6").await;
    let slow = async |begin: &[u8]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address(&stand)).await.unwrap();
        stream.write_all(begin).await.unwrap();
        stream
    };
    let mut first = slow(FOLLOW.as_bytes()).await;
    // HTTP/2 with a window of nothing for answers: preface, SETTINGS_INITIAL_WINDOW_SIZE = 0, and the request (RFC 9113).
    let mut second = slow(&without_window(PATH, "text/event-stream", None)).await;
    let mut follower = Follower::new(&stand, &stand.broker, None).await;
    follower.next().await;
    let another = || async {
        let answer =
            stand.client.get(stand.url(PATH)).header(header::ACCEPT, "text/event-stream").send().await.unwrap();
        (answer.status() == StatusCode::OK).then_some(answer)
    };
    assert!(another().await.is_none(), "strangers have half of the room");
    // More than the system keeps for whoever does not read.
    let mut news = async || {
        let (task, _) = stand.task_with_token().await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        follower.hears_of(&task).await;
    };
    for _ in 0..150 {
        news().await;
    }
    // Both of them: each leaves the room that it had. How much the system keeps differs, so there is more to read until then.
    let begun = Instant::now();
    let mut open = Vec::new();
    while open.len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(40), "{} of 2 were cut off", open.len());
        news().await;
        open.extend(another().await);
    }
    for stream in [&mut first, &mut second] {
        let mut read = Vec::new();
        let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut read)).await.expect("it is cut off");
        assert!(ended.is_err() || read.len() < 512 * 1024, "{} octets", read.len());
    }
    follower.next().await;
}

/// Every whole state that is asked for is a copy until it is read: strangers who ask and do not read leave room for services, and are cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_do_not_read_whole_states_keep_no_service_waiting() {
    let stand = Stand::new(Store::Embedded).await;
    let ask = |nonce: &'static str, token: Option<&'static str>| {
        let mut request = stand.client.get(stand.url(&format!("{PATH}{nonce}")));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        async move { request.send().await.unwrap() }
    };
    // More than is handed to a connection at once.
    let mut longest = 0;
    while longest <= 24 * 1024 {
        for _ in 0..20 {
            let (task, _) = stand.task_with_token().await;
            stand.revoke(&task).await.expect(StatusCode::OK);
        }
        longest = ask("?nonce=n", None).await.text().await.unwrap().len();
    }
    let mut slow = Vec::new();
    // Two are sent one whole state each, and two begin to follow.
    for (path, accept) in [("?nonce=a", "*/*"), ("", "*/*"), ("", "text/event-stream"), ("", "text/event-stream")] {
        slow.push(begun(&stand, &without_window(&format!("{PATH}{path}"), accept, None)).await);
    }
    let refused = ask("?nonce=n", None).await;
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    crate::support::Answer::of(refused).await.refused(429, "quota_exceeded");
    for nonce in ["?nonce=n", ""] {
        assert_eq!(ask(nonce, Some(GIT_TOKEN)).await.status(), StatusCode::OK);
    }
    wait_for("room", || async { ask("", None).await.status() == StatusCode::OK }).await;
    drop(slow);
}

/// A connection on which this was asked, and the answer has begun: what it is about was put together.
async fn begun(stand: &Stand, request: &[u8]) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(address(stand)).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut read = Vec::new();
    while !has_head(&read) {
        let mut part = [0; 1024];
        let count = timeout(Duration::from_secs(10), stream.read(&mut part)).await.unwrap().unwrap();
        assert!(count > 0, "the connection ended");
        read.extend(&part[..count]);
    }
    stream
}

/// Whoever was told something may go by it from then on, though they have read nothing of it yet: nobody says before that all have heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_counts_before_its_state_is_sent() {
    let stand = Stand::new(Store::Embedded).await;
    let (task, _) = stand.task_with_token().await;
    let stream = begun(&stand, &without_window(PATH, "text/event-stream", Some(GIT_TOKEN))).await;
    let answer = stand.revoke(&task).await.expect(StatusCode::OK);
    let feed = answer["reach"].as_array().unwrap().iter().find(|reach| reach["class"] == "feed").unwrap();
    assert_eq!((&feed["acknowledged"], &feed["of"]), (&json!(0), &json!(1)));
    drop(stream);
}

/// Whether what was read in HTTP/2 holds the head of an answer: a frame HEADERS (RFC 9113 section 4.1).
fn has_head(mut octets: &[u8]) -> bool {
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = octets {
        if *kind == 1 {
            return true;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        octets = rest.get(length..).unwrap_or_default();
    }
    false
}

/// A request in HTTP/2 for the feed by somebody who takes no octet of the answer.
fn without_window(path: &str, accept: &str, token: Option<&str>) -> Vec<u8> {
    let mut octets = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    octets.extend(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00");
    // HPACK (RFC 7541), every name literal: without index, and without Huffman's code.
    let mut block = Vec::new();
    let mut fields = vec![
        (":method", "GET".to_owned()),
        (":scheme", "http".to_owned()),
        (":path", path.to_owned()),
        (":authority", "x".to_owned()),
        ("accept", accept.to_owned()),
    ];
    fields.extend(token.map(|token| ("authorization", format!("Bearer {token}"))));
    for text in fields.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).enumerate() {
        let (at, text) = text;
        if at % 2 == 0 {
            block.push(0);
        }
        block.push(u8::try_from(text.len()).unwrap());
        block.extend(text.as_bytes());
    }
    octets.extend(&u32::try_from(block.len()).unwrap().to_be_bytes()[1..]);
    // HEADERS of stream 1, whole, and nothing after it.
    octets.extend(b"\x01\x05\x00\x00\x00\x01");
    octets.extend(block);
    octets
}

/// A failover loses what no replica has. While none has it, nothing becomes fresher: whoever follows goes stale, and denies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_replica_has_is_not_vouched_for() {
    let stand = Stand::new(Store::Redis).await;
    let primary = stand.redis.as_ref().unwrap();
    let of = format!("127.0.0.1 {}", primary.port);
    let replica = crate::support::Redis::start(&["--replicaof", &of]).await;
    wait_for("the replica to be one", || async {
        primary.cli(&["INFO", "replication"]).await.contains("state=online") && vouched(&stand).await
    })
    .await;
    replica.hang().await;
    wait_for("the feed to go stale", || async { !vouched(&stand).await }).await;
    let mut follower = Follower::new(&stand, &stand.broker, None).await;
    let now = f64::from(u32::try_from(SystemClock.now().timestamp()).unwrap());
    // What is known is told all the same, and is worth nothing for whoever has heard nothing before.
    let (task, _) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    let told = loop {
        let state = follower.next().await;
        if names(&state.claims, &task) {
            break state;
        }
    };
    assert!(told.claims["iat"].as_f64().unwrap() < now, "{:?}", told.claims);
    replica.go_on().await;
    wait_for("the replica to catch up", || async { vouched(&stand).await }).await;
}

/// Whether a state that is of now can be had.
async fn vouched(stand: &Stand) -> bool {
    stand.client.get(stand.url(&format!("{PATH}?nonce=n"))).send().await.unwrap().status() == StatusCode::OK
}
