//! Token Status Lists: whoever reads them learns of a revoke within ten seconds, from any broker of the store.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

use remit::{
    claims::CompressedList,
    clock::{Clock as _, SystemClock, Time},
    jose::SigningKey,
    verify::{KeySet, StatusList, Verified, Verifier},
};

use crate::{
    both,
    support::{Answer, GIT, RESPONDER, Server, Stand, Store, claims, declaration, now, part, text, time, wait_for},
};

/// Where the status of a token stands: list and place.
pub(crate) fn status(token: &str) -> (String, u64) {
    let status = &claims(token)["status"]["status_list"];
    (text(status, "uri"), status["idx"].as_u64().expect("a place"))
}

pub(crate) async fn fetch(stand: &Stand, at: &Server, list: &str) -> Answer {
    stand.call_at(at, Method::GET, &format!("/status-lists/{list}"), None, None).await
}

/// The bits of list 0, as a broker gives them out now.
pub(crate) async fn bits(stand: &Stand, at: &Server) -> Vec<u8> {
    bits_in(&fetch(stand, at, "0").await)
}

fn bits_in(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let list: CompressedList = serde_json::from_value(claims(&answer.text)["status_list"].clone()).expect("a list");
    list.unpack().expect("compressed")
}

pub(crate) fn is_set(octets: &[u8], place: u64) -> bool {
    octets[usize::try_from(place / 8).expect("small")] >> (place % 8) & 1 == 1
}

/// Whether list 0 of a broker says that the task of a token has ended.
async fn ended(stand: &Stand, at: &Server, token: &str) -> bool {
    is_set(&bits(stand, at).await, status(token).1)
}

async fn jwks(stand: &Stand) -> String {
    stand.client.get(stand.url("/jwks")).send().await.expect("an answer").text().await.expect("text")
}

fn clock() -> Time {
    SystemClock.now()
}

/// A private key of a broker, as its directory holds it.
fn private_key(stand: &Stand, name: &str) -> SigningKey {
    let pem = std::fs::read_to_string(stand.dir.path().join("broker-keys").join(name)).expect("a key");
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    SigningKey::from_pkcs8(&BASE64_STANDARD.decode(body).expect("base64")).expect("a key")
}

both! {
    async fn every_token_of_a_task_names_its_place(stand) {
        let mut declaration = declaration();
        declaration["credentials"] = json!([
            {"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "read", "type": "jwt"},
        ]);
        let answer = stand.declare(declaration).await.expect(StatusCode::CREATED);
        let [access, svid] = [0, 1].map(|at| text(&answer["credentials"][at], "access_token"));
        let later = stand.mint(&text(&answer, "task")).await.expect(StatusCode::OK);
        let (uri, place) = status(&access);
        assert_eq!(uri, stand.url("/status-lists/0"));
        for other in [&svid, &text(&later["credentials"][0], "access_token")] {
            assert_eq!(status(other), (uri.clone(), place));
        }
        assert_eq!(stand.introspect(&access).await["status"]["status_list"], json!({"idx": place, "uri": uri}));
        let mut places = vec![place];
        for _ in 0..20 {
            places.push(status(&stand.task_with_token().await.1).1);
        }
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 21);
        assert!(places[20] - places[0] > 1000, "places are no sequence: {places:?}");
    }

    async fn an_end_stands_in_the_list(stand) {
        let (revoked, of_revoked) = stand.task_with_token().await;
        let (completed, of_completed) = stand.task_with_token().await;
        let (_, alive) = stand.task_with_token().await;
        assert_eq!(bits(&stand, &stand.broker).await, vec![0; 8192]);
        let answer = stand.revoke(&revoked).await.expect(StatusCode::OK);
        let by = time(&answer["reach"][2], "by");
        assert!((by - clock()).num_seconds() <= 10);
        // On the broker that made it, at once.
        assert!(ended(&stand, &stand.broker, &of_revoked).await && !ended(&stand, &stand.broker, &of_completed).await);
        stand.post(&format!("/v1/tasks/{completed}/complete"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        let octets = bits(&stand, &stand.broker).await;
        assert!(is_set(&octets, status(&of_completed).1) && !is_set(&octets, status(&alive).1));
        assert_eq!(octets.iter().map(|octet| octet.count_ones()).sum::<u32>(), 2, "one bit a task");
    }

    async fn what_a_list_says_and_how_it_is_sent(stand) {
        let (_, token) = stand.task_with_token().await;
        let before = now();
        let answer = fetch(&stand, &stand.broker, "0").await;
        assert_eq!(answer.headers["content-type"], "application/statuslist+jwt");
        assert_eq!(answer.headers["cache-control"], "public, max-age=4");
        assert_eq!(answer.headers["access-control-allow-origin"], "*");
        let said = claims(&answer.text);
        let (iat, exp) = (said["iat"].as_i64().unwrap(), said["exp"].as_i64().unwrap());
        assert_eq!((&said["sub"], exp - iat, &said["ttl"]), (&json!(status(&token).0), 10, &json!(4)));
        assert!((before - 1..=now()).contains(&iat));
        assert_eq!(said["status_list"]["bits"], 1);
        assert_eq!(said.as_object().unwrap().len(), 5, "{said}");
        let header = part(&answer.text, 0);
        assert_eq!((&header["typ"], &header["alg"]), (&json!("statuslist+jwt"), &json!("ES256")));
        assert_eq!(header.as_object().unwrap().len(), 3, "{header}");
        // Within a second it is the same one, and nobody makes the broker sign one for every question.
        let again = fetch(&stand, &stand.broker, "0").await.text;
        let later = fetch(&stand, &stand.broker, "0").await.text;
        assert!(again == answer.text || again == later);

        let accept = async |value: &str| {
            let request = stand.client.get(stand.url("/status-lists/0")).header("accept", value);
            Answer::of(request.send().await.unwrap()).await
        };
        assert_eq!(accept("application/statuslist+jwt").await.status, StatusCode::OK);
        accept("application/statuslist+cwt").await.refused(406, "invalid_request");
        for unknown in ["1", "00", "01", "+0", "-1", "0x0", "a", "0.0", "18446744073709551616", "%30%20", "%ff", "0/", "task_1"] {
            fetch(&stand, &stand.broker, unknown).await.refused(404, "not_found");
        }
        assert_eq!(stand.call(Method::POST, "/status-lists/0", None, None).await.status, StatusCode::METHOD_NOT_ALLOWED);
    }

    async fn a_restart_forgets_no_place_and_no_end(stand) {
        let mut stand = stand;
        if let Some(redis) = &stand.redis {
            redis.cli(&["config", "set", "appendfsync", "always"]).await;
        }
        let (dead, of_dead) = stand.task_with_token().await;
        let (alive, of_alive) = stand.task_with_token().await;
        stand.revoke(&dead).await.expect(StatusCode::OK);
        if let Some(redis) = &mut stand.redis {
            redis.kill().await;
            redis.start_again().await;
        }
        stand.restart_broker().await;
        assert!(ended(&stand, &stand.broker, &of_dead).await && !ended(&stand, &stand.broker, &of_alive).await);
        // The place of a task is still its own: of a token that is minted now, and for a revoke.
        let minted = stand.mint(&alive).await.expect(StatusCode::OK);
        assert_eq!(status(&text(&minted["credentials"][0], "access_token")), status(&of_alive));
        let (_, fresh) = stand.task_with_token().await;
        assert!(![status(&of_dead), status(&of_alive)].contains(&status(&fresh)));
        stand.revoke(&alive).await.expect(StatusCode::OK);
        assert!(ended(&stand, &stand.broker, &of_alive).await && !ended(&stand, &stand.broker, &fresh).await);
    }

    /// One kind is never taken for another, whichever key of the broker it is signed with.
    async fn a_list_is_no_token_and_a_token_no_list(stand) {
        let (_, token) = stand.task_with_token().await;
        let (uri, list) = (status(&token).0, fetch(&stand, &stand.broker, "0").await.text);
        let document = jwks(&stand).await;
        let (access, lists) =
            (KeySet::from_jwks(document.as_bytes()).unwrap(), KeySet::of_status_lists(document.as_bytes()).unwrap());
        let verifier = Verifier::offline_until_expiry(&stand.broker.url, GIT.parse().unwrap()).with_access_keys(access.clone());
        verifier.verify(&token, clock()).unwrap();
        StatusList::read(&list, &lists, &uri, clock()).unwrap();
        assert!(verifier.verify(&list, clock()).is_err() && StatusList::read(&list, &access, &uri, clock()).is_err());
        assert!(StatusList::read(&token, &lists, &uri, clock()).is_err());
        assert_eq!(stand.introspect(&list).await, json!({"active": false}));

        // What the wrong key signs: a genuine token's claims with the key of the lists, and the other way round.
        let (for_lists, for_tokens) = (private_key(&stand, "status-list.pem"), private_key(&stand, "access-token.pem"));
        let kid = |token: &str| text(&part(token, 0), "kid");
        assert_eq!((kid(&list), kid(&token)), (for_lists.kid().to_owned(), for_tokens.kid().to_owned()));
        let forged = for_lists.sign("at+jwt", &claims(&token)).unwrap();
        assert!(verifier.verify(&forged, clock()).is_err());
        let both = Verifier::offline_until_expiry(&stand.broker.url, GIT.parse().unwrap()).with_access_keys(lists.clone());
        assert!(both.verify(&forged, clock()).is_ok(), "nothing but the key is wrong with it");
        assert_eq!(stand.introspect(&forged).await, json!({"active": false}));
        assert_eq!(stand.introspect(&token).await["active"], true);
        let forged = for_tokens.sign("statuslist+jwt", &claims(&list)).unwrap();
        assert!(StatusList::read(&forged, &lists, &uri, clock()).is_err());
        assert!(StatusList::read(&forged, &access, &uri, clock()).is_ok(), "nothing but the key is wrong with it");
        for typ in ["JWT", "at+jwt", "STATUSLIST+JWT", "application/statuslist+jwt"] {
            let forged = for_lists.sign(typ, &claims(&list)).unwrap();
            assert!(StatusList::read(&forged, &lists, &uri, clock()).is_err(), "{typ}");
        }
        let bundle: Value = stand.client.get(stand.url("/spiffe/bundle")).send().await.unwrap().json().await.unwrap();
        assert!(bundle["keys"].as_array().unwrap().iter().all(|key| key["kid"] != *for_lists.kid()));
    }

    /// What our own reader refuses.
    async fn a_reader_denies_what_it_cannot_tell(stand) {
        let (task, token) = stand.task_with_token().await;
        let key = private_key(&stand, "status-list.pem");
        let document = jwks(&stand).await;
        let lists = KeySet::of_status_lists(document.as_bytes()).unwrap();
        let access = KeySet::from_jwks(document.as_bytes()).unwrap();
        let verified = Verifier::offline_until_expiry(&stand.broker.url, GIT.parse().unwrap()).with_access_keys(access).verify(&token, clock()).unwrap();
        let (uri, place) = status(&token);
        let genuine = fetch(&stand, &stand.broker, "0").await.text;
        let read = |text: &str| StatusList::read(text, &lists, &uri, clock());
        let list = read(&genuine).unwrap();
        assert_eq!((list.check(&verified, clock()), list.ttl()), (Ok(()), 4));
        let at_its_end = clock() + chrono::TimeDelta::seconds(10);
        assert!(list.check(&verified, at_its_end).is_err() && StatusList::read(&genuine, &lists, &uri, at_its_end).is_err());
        assert!(StatusList::read(&genuine, &lists, &stand.url("/status-lists/1"), clock()).is_err());

        let with = |name: &str, value: Value| {
            let mut said = claims(&genuine);
            said[name] = value;
            key.sign("statuslist+jwt", &said).unwrap()
        };
        let check = |text: &str, verified: &Verified| read(text).and_then(|list| list.check(verified, clock()));
        assert_eq!(check(&with("ttl", json!(4)), &verified), Ok(()), "signed like this it is accepted");
        for (name, value) in [
            ("sub", json!(stand.url("/status-lists/1"))),
            ("sub", json!(null)),
            ("exp", json!(now())),
            ("exp", json!(null)),
            ("exp", json!("soon")),
            ("iat", json!(now() + 60)),
            ("status_list", json!(null)),
            ("status_list", json!({"bits": 2, "lst": claims(&genuine)["status_list"]["lst"]})),
            ("status_list", json!({"bits": 1, "lst": "AAAA"})),
            ("status_list", json!(CompressedList::pack(&vec![0; 1 << 20]).unwrap())),
        ] {
            assert!(read(&with(name, value.clone())).is_err(), "{name} = {value}");
        }
        // A list that ends before the place does; one that ends right after it.
        let octets = usize::try_from(place / 8).unwrap();
        for (length, fits) in [(octets, false), (octets + 1, true)] {
            let short = with("status_list", json!(CompressedList::pack(&vec![0; length]).unwrap()));
            assert_eq!(check(&short, &verified).is_ok(), fits);
        }
        stand.revoke(&task).await.expect(StatusCode::OK);
        assert!(check(&fetch(&stand, &stand.broker, "0").await.text, &verified).is_err());
    }
}

/// What one broker ended, the list of every other broker says within ten seconds, whoever has looked at it before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_on_one_broker_stands_in_the_list_of_another() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, token) = stand.task_with_token().await;
    for _ in 0..3 {
        assert!(!ended(&stand, &stand.broker, &token).await && !ended(&stand, &second, &token).await);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    // Fetched right before: what a verifier may hold longest.
    let held = fetch(&stand, &stand.broker, "0").await.text;
    let path = format!("/v1/tasks/{task}/revoke");
    let answer = stand.call_at(&second, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "r"}))).await;
    let answer = answer.expect(StatusCode::OK);
    let revoked = Instant::now();
    let exp = claims(&held)["exp"].as_i64().unwrap();
    let by = time(&answer, "effective_by");
    assert!(exp <= by.timestamp(), "a list that does not say it outlives {by}");
    wait_for("the other broker's list", || async { ended(&stand, &stand.broker, &token).await }).await;
    // A second between two looks at the store, and some for a slow machine; the rest of the ten is for caches and verifiers.
    assert!(revoked.elapsed() < Duration::from_secs(4), "{:?}", revoked.elapsed());
    assert!(ended(&stand, &second, &token).await);
    // Both brokers name one list, each by its own issuer: a verifier goes where its token says.
    assert_eq!(claims(&fetch(&stand, &second, "0").await.text)["sub"], stand.url("/status-lists/0"));
}

/// Where a broker cannot tell which place a task has, it does not promise that any list says that the task has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_nobody_knows_is_not_promised() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let redis = stand.redis.as_ref().unwrap();
    let by = |answer: &Value| {
        let reach = answer["reach"].as_array().unwrap();
        let instant = |class: &str| {
            let reach = reach.iter().find(|reach| reach["class"] == class).expect("a class");
            time(reach, "by")
        };
        assert_eq!(time(answer, "effective_by"), instant("status_list"));
        (instant("status_list") - instant("introspection")).num_seconds()
    };
    let unseen = stand.revoke("task_01jd0000000000000000000000").await.expect(StatusCode::OK);
    assert_eq!((&unseen["known"], by(&unseen)), (&json!(false), 86_400));
    // A record that was moved to another place is none: its MAC does not fit.
    let (task, token) = stand.task_with_token().await;
    let key = format!("remit:{{{task}}}:task:{task}");
    let record = redis.cli(&["get", &key]).await;
    let place = status(&token).1;
    let moved = record.replace(&format!("\"index\":{place}}}"), &format!("\"index\":{}}}", place ^ 1));
    assert_ne!(moved, record);
    redis.cli(&["set", &key, &moved]).await;
    stand.mint(&task).await.refused(503, "temporarily_unavailable");
    let revoke = async |at: &Server| {
        let path = format!("/v1/tasks/{task}/revoke");
        let answer = stand.call_at(at, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "r"}))).await;
        answer.expect(StatusCode::OK)
    };
    // The second broker never saw the genuine one; nothing is set, in its place or in another.
    assert_eq!(by(&revoke(&second).await), 86_400);
    assert_eq!(bits(&stand, &second).await, vec![0; 8192]);
    assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    redis.cli(&["set", &key, &record]).await;
    assert_eq!(by(&revoke(&second).await), 10);
    assert!(ended(&stand, &second, &token).await);
}

/// The last good list is given out until it ends, and then none: nobody is told that nothing was revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_store_out_of_reach_the_last_list_runs_out() {
    let mut stand = Stand::new(Store::Redis).await;
    let (_, token) = stand.task_with_token().await;
    let last = fetch(&stand, &stand.broker, "0").await;
    stand.redis.as_mut().unwrap().kill().await;
    let exp = claims(&last.text)["exp"].as_i64().unwrap();
    let mut served = 0;
    loop {
        let answer = fetch(&stand, &stand.broker, "0").await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            assert!(answer.headers.contains_key("retry-after") && answer.headers["cache-control"] == "no-store");
            answer.refused(503, "temporarily_unavailable");
            break;
        }
        // One that was asked for before the store was gone.
        let until = claims(&answer.text)["exp"].as_i64().unwrap();
        assert!(until <= exp + 1 && now() <= until, "{until} {exp}");
        let age: i64 = answer.headers["cache-control"].to_str().unwrap().rsplit('=').next().unwrap().parse().unwrap();
        assert!((1..=4).contains(&age) && now() + age <= until + 1);
        served += 1;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(served > 3 && now() >= exp);
    fetch(&stand, &stand.broker, "7").await.refused(503, "temporarily_unavailable");
    stand.redis.as_mut().unwrap().start_again().await;
    wait_for("a list", || async { fetch(&stand, &stand.broker, "0").await.status == StatusCode::OK }).await;
    assert!(!ended(&stand, &stand.broker, &token).await);
}

/// A store that forgot everything says that nothing was revoked, and is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_store_revives_nothing() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, token) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    assert!(ended(&stand, &stand.broker, &token).await && ended(&stand, &second, &token).await);
    stand.redis.as_ref().unwrap().cli(&["flushall"]).await;
    for _ in 0..60 {
        for broker in [&stand.broker, &second] {
            let answer = fetch(&stand, broker, "0").await;
            assert!(answer.status == StatusCode::SERVICE_UNAVAILABLE || is_set(&bits_in(&answer), status(&token).1));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(fetch(&stand, &second, "0").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

/// Nor is one that is not the one that was opened, by a broker that never saw what it says now said otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_its_marker_is_not_asked() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, _) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    stand.redis.as_ref().unwrap().cli(&["del", "remit:marker", "remit:status-list:0"]).await;
    fetch(&stand, &second, "0").await.refused(503, "temporarily_unavailable");
}

/// Whoever writes to Redis can stop the lists, and revives nothing at a broker that saw it end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_was_tampered_with_revives_nothing() {
    let stand = Stand::new(Store::Redis).await;
    let redis = stand.redis.as_ref().unwrap();
    let (task, token) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    assert!(ended(&stand, &stand.broker, &token).await);
    let place = status(&token).1;
    redis.cli(&["setbit", "remit:status-list:0", &(place ^ 7).to_string(), "0"]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(ended(&stand, &stand.broker, &token).await);
    redis.cli(&["del", "remit:status-list:0"]).await;
    redis.cli(&["del", "remit:status-list:tasks"]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(ended(&stand, &stand.broker, &token).await);
    // A counter that was set back gives no place again, and what has a place keeps it.
    for _ in 0..70 {
        assert_ne!(status(&stand.task_with_token().await.1).1, place);
    }
    // What is no list, or too long for one: none is signed, and once the last good one has ended there is none.
    for junk in [&["set", "remit:status-list:tasks", "junk"][..], &["set", "remit:status-list:0", &"x".repeat(9000)]] {
        redis.cli(junk).await;
        let iat = claims(&fetch(&stand, &stand.broker, "0").await.text)["iat"].as_i64().unwrap();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let later = claims(&fetch(&stand, &stand.broker, "0").await.text)["iat"].as_i64().unwrap();
        assert!(later <= iat + 1, "a list was signed over what nobody can believe");
        redis.cli(&["set", "remit:status-list:tasks", "1000"]).await;
    }
}

/// The sixty-five thousand five hundred and thirty-seventh task is the first of another list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_list_is_followed_by_another() {
    let stand = Stand::new(Store::Redis).await;
    fetch(&stand, &stand.broker, "0").await.refused(404, "not_found");
    stand.redis.as_ref().unwrap().cli(&["set", "remit:status-list:tasks", "65535"]).await;
    let (_, last) = stand.task_with_token().await;
    let (first, of_first) = stand.task_with_token().await;
    assert_eq!((status(&last).0, status(&of_first).0), (stand.url("/status-lists/0"), stand.url("/status-lists/1")));
    stand.revoke(&first).await.expect(StatusCode::OK);
    assert!(is_set(&bits_in(&fetch(&stand, &stand.broker, "1").await), status(&of_first).1));
    assert_eq!(bits(&stand, &stand.broker).await, vec![0; 8192]);
    fetch(&stand, &stand.broker, "2").await.refused(404, "not_found");
}

/// A revoke works where there is no memory left, and the list says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_memory_a_revoke_still_stands_in_the_list() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, token) = stand.task_with_token().await;
    assert!(!ended(&stand, &second, &token).await);
    stand.redis.as_ref().unwrap().cli(&["config", "set", "maxmemory", "1"]).await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    wait_for("the other broker's list", || async { ended(&stand, &second, &token).await }).await;
}

/// A service may say that it reads status lists; then it need not authenticate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_may_read_status_lists() {
    let service = "[[service]]\nname = \"lists\"\naudiences = [\"https://lists.example.com\"]\nbinding = \"none\"\nrevocation = \"status_list\"\n";
    let stand = Stand::with(Store::Embedded, service).await;
    let (_, token) = stand.task_with_token().await;
    assert!(!ended(&stand, &stand.broker, &token).await);
}
