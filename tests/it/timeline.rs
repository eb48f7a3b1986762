//! The timeline: what happened to a task, from all brokers, each event as it stands in an audit log, and nothing else.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    both,
    support::{
        GIT, GIT_TOKEN, NOWHERE, OWNER, RESPONDER, Server, Stand, Store, VIEWER, audit_of, declaration, people, text,
        wait_for,
    },
};

async fn timeline(stand: &Stand, task: &str) -> Value {
    stand.get(&format!("/v1/tasks/{task}/timeline"), VIEWER).await.expect(StatusCode::OK)
}

/// Its events once there is one like this.
async fn with(stand: &Stand, task: &str, event: &str) -> Value {
    for _ in 0..100 {
        let answer = timeline(stand, task).await;
        if events(&answer).iter().any(|other| other["event"] == event) {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("no {event} in the timeline");
}

fn events(answer: &Value) -> Vec<Value> {
    answer["events"].as_array().expect("events").clone()
}

/// Their names, without the looks of the test.
fn story(answer: &Value) -> Vec<String> {
    events(answer).iter().filter(|event| event["at"] != "timeline").map(|event| text(event, "event")).collect()
}

/// Asserts that an event is a copy of the record that it names.
#[track_caller]
fn is_copied(event: &Value, log: &[Value]) {
    let name = log.iter().find(|record| record["event"] == "segment_opened").map(|record| text(record, "log"));
    assert_eq!(event["source"]["log"], name.expect("a name"), "{event}");
    let record = log.iter().find(|record| record["sequence"] == event["source"]["sequence"]).expect("the record");
    for (member, said) in event.as_object().unwrap().iter().filter(|(member, _)| *member != "source") {
        assert_eq!(&record[member], said, "{member} of {event}");
    }
}

both! {
    async fn the_story_of_a_task(stand) {
        let (task, token) = stand.task_with_token().await;
        stand.mint(&task).await.expect(StatusCode::OK);
        let ask = json!({"credentials": [{"resource": NOWHERE, "privilege": "read"}]});
        stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), ask).await.refused(403, "policy_denied");
        assert_eq!(stand.introspect(&token).await["active"], true);
        with(&stand, &task, "introspected").await;
        stand.post(&format!("/v1/tasks/{task}/renew"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        stand.revoke(&task).await.expect(StatusCode::OK);
        for _ in 0..11 {
            assert_eq!(stand.introspect(&token).await["active"], false);
        }
        stand.mint(&task).await.refused(409, "task_not_active");

        let answer = with(&stand, &task, "mint_refused").await;
        assert_eq!(story(&answer), ["task_declared", "credential_minted", "credential_minted", "mint_denied", "introspected",
            "task_renewed", "end_requested", "task_ended", "refused_after_end", "refused_after_end", "mint_refused"]);
        assert!(answer["complete"] == true && answer["unverified"] == 0 && answer["task"] == *task, "{answer}");
        let (all, log) = (events(&answer), stand.whole_audit());
        for event in &all {
            is_copied(event, &log);
        }
        assert!(all.is_sorted_by_key(|event| text(event, "time")));
        let of = |name: &str| all.iter().find(|event| event["event"] == name).unwrap();
        assert_eq!(of("task_declared")["owner"], OWNER);
        assert_eq!(text(&of("task_declared")["actor"], "evidence").len(), 64);
        assert_eq!(of("credential_minted")["resource"], GIT);
        // Each decision with what policy saw.
        for decision in ["task_declared", "credential_minted", "mint_denied", "task_renewed"] {
            let considered = &of(decision)["considered"];
            assert_eq!(considered["declared"], json!({"environment": "staging", "sandbox": "sb-7f3", "repo": "acme/payments",
                "branch": "fix/flaky", "command": "pytest", "data_classification": "internal"}), "{decision}");
            assert_eq!(considered["attested"]["kind"], "ci", "{considered}");
            assert_eq!(considered["attested"]["issuer"], crate::support::ISSUER, "{considered}");
        }
        assert_eq!(of("introspected")["actor"], json!({"as": "service", "name": "git"}));
        let refused: Vec<_> = all.iter().filter(|event| event["event"] == "refused_after_end").map(|event| &event["times"]).collect();
        assert_eq!(refused, [1, 10]);
        // Another task's is another.
        let (other, _) = stand.task_with_token().await;
        assert_eq!(story(&timeline(&stand, &other).await), ["task_declared", "credential_minted"]);
        // A look at it is on record.
        let looks = stand.whole_audit().into_iter().filter(|line| line["at"] == "timeline" && line["task"] == *other).count();
        assert_eq!(looks, 1);
    }

    /// An answer is on record for the first time, and so on: it costs nothing to ask.
    async fn what_services_ask_is_counted(stand) {
        let (task, token) = stand.task_with_token().await;
        for _ in 0..120 {
            stand.introspect(&token).await;
        }
        // Another service, and what is no token of ours for it.
        stand.introspect_at(&stand.broker, crate::support::REGISTRY_TOKEN, &token).await;
        stand.introspect("garbage").await;
        let answer = with(&stand, &task, "introspected").await;
        let times: Vec<_> = events(&answer).into_iter().filter(|event| event["event"] == "introspected").map(|event| event["times"].clone()).collect();
        assert_eq!(times, [1, 10, 100]);
    }

    async fn who_sees_it(stand) {
        let (task, _) = stand.task_with_token().await;
        let path = format!("/v1/tasks/{task}/timeline");
        for bearer in [VIEWER.to_owned(), RESPONDER.to_owned(), stand.evidence()] {
            let answer = stand.get(&path, &bearer).await.expect(StatusCode::OK);
            assert_eq!(story(&answer)[..2], ["task_declared", "credential_minted"]);
        }
        stand.get(&path, &stand.other_instance()).await.refused(404, "not_found");
        stand.get(&path, GIT_TOKEN).await.refused(403, "policy_denied");
        stand.get(&path, "garbage").await.refused(401, "evidence_invalid");
        stand.get("/v1/tasks/task_01jd0000000000000000000000/timeline", VIEWER).await.refused(404, "not_found");
        stand.get("/v1/tasks/task_1/timeline", VIEWER).await.refused(400, "invalid_request");
    }

    /// A broker that was stopped has told all that it did; and the next one goes on.
    async fn a_restart_loses_nothing(stand) {
        let mut stand = stand;
        let (task, _) = stand.task_with_token().await;
        for _ in 0..20 {
            stand.mint(&task).await.expect(StatusCode::OK);
        }
        stand.restart_broker().await;
        let answer = timeline(&stand, &task).await;
        assert_eq!(story(&answer).len(), 22);
        let log = stand.whole_audit();
        for event in events(&answer) {
            is_copied(&event, &log);
        }
        assert_eq!(answer["complete"], true, "{answer}");
        stand.mint(&task).await.expect(StatusCode::OK);
        stand.restart_broker().await;
        let answer = timeline(&stand, &task).await;
        assert_eq!((story(&answer).len(), &answer["complete"]), (23, &json!(true)), "{answer}");
    }

    /// What a broker that was killed did not live to tell, the next one tells; and what it had told is there once.
    async fn a_death_loses_nothing(stand) {
        let mut stand = stand;
        for round in 0..5_usize {
            let (task, _) = stand.task_with_token().await;
            for _ in 0..round {
                stand.mint(&task).await.expect(StatusCode::OK);
            }
            stand.revoke(&task).await.expect(StatusCode::OK);
            stand.broker.child.kill().await.expect("it is gone");
            stand.broker = Server::start(&stand.broker.config.clone()).await;
            let answer = timeline(&stand, &task).await;
            assert_eq!((story(&answer).len(), &answer["complete"]), (4 + round, &json!(true)), "{answer}");
            let log = stand.whole_audit();
            for event in events(&answer) {
                is_copied(&event, &log);
            }
        }
    }

    /// Where it is not known how far the log was told, nothing is told again; and a note of another log is none.
    async fn a_note_of_another_log_is_none(stand) {
        let mut stand = stand;
        let (task, _) = stand.task_with_token().await;
        let before = story(&timeline(&stand, &task).await);
        stand.broker.child.kill().await.expect("it is gone");
        let note = stand.dir.path().join("broker-audit/told");
        for said in ["log_00000000000000000000 00000000000000000000\n", "", "\u{fffd} -1\n"] {
            std::fs::write(&note, said).unwrap();
            stand.broker = Server::start(&stand.broker.config.clone()).await;
            let answer = timeline(&stand, &task).await;
            assert_eq!((&story(&answer), &answer["complete"]), (&before, &json!(true)), "{said}: {answer}");
            stand.broker.child.kill().await.expect("it is gone");
            let said = std::fs::read_to_string(&note).unwrap();
            let log = text(&stand.whole_audit()[0], "log");
            assert!(said.starts_with(&format!("{log} 000")) && said.lines().count() == 1, "{said}");
        }
    }

    /// Whatever a workload is refused, before and after its end, and however often: it pushes nothing out of its story.
    async fn refusals_push_nothing_out_of_a_story(stand) {
        let (task, _) = stand.task_with_token().await;
        let (path, evidence) = (format!("/v1/tasks/{task}/credentials"), stand.evidence());
        let ask = async |count: usize, code: u16| {
            let ask = || async {
                for _ in 0..count / 4 {
                    let ask = json!({"credentials": [{"resource": NOWHERE, "privilege": "read"}]});
                    assert_eq!(stand.post(&path, &evidence, ask).await.status.as_u16(), code);
                }
            };
            tokio::join!(ask(), ask(), ask(), ask());
        };
        ask(1000, 403).await;
        stand.mint(&task).await.expect(StatusCode::OK);
        stand.revoke(&task).await.expect(StatusCode::OK);
        ask(200, 409).await;
        with(&stand, &task, "mint_refused").await;
        let answer = timeline(&stand, &task).await;
        let denied = ["mint_denied"; 52];
        let refused = ["mint_refused"; 51];
        let expected = [&["task_declared", "credential_minted"], &denied[..], &["credential_minted", "end_requested", "task_ended"], &refused[..]];
        assert_eq!((story(&answer), &answer["complete"]), (expected.concat().into_iter().map(str::to_owned).collect(), &json!(true)));
        let times: Vec<_> = events(&answer).iter().filter_map(|event| event["times"].as_u64()).collect();
        assert_eq!(times, [100, 1000, 100]);
        assert!(stand.whole_audit().iter().filter(|line| line["event"] == "mint_denied").count() == 1000);
    }

    /// A timeline holds a thousand: its beginning and what is newest. The log has all of it.
    async fn a_long_story_is_told_from_both_ends(stand) {
        let (task, _) = stand.task_with_token().await;
        let mint = || async {
            for _ in 0..270 {
                stand.mint(&task).await.expect(StatusCode::OK);
            }
        };
        tokio::join!(mint(), mint(), mint(), mint());
        stand.revoke(&task).await.expect(StatusCode::OK);
        let answer = timeline(&stand, &task).await;
        let told = story(&answer);
        assert_eq!((events(&answer).len(), &answer["complete"]), (1000, &json!(false)));
        assert_eq!(told[..2], ["task_declared", "credential_minted"]);
        assert_eq!(told[told.len() - 2..], ["end_requested", "task_ended"]);
        assert!(stand.whole_audit().len() > 1080);
    }

    /// What a workload says is large: the story stays small, and says what it leaves out.
    async fn a_large_event_is_shortened(stand) {
        let mut large = declaration();
        large["authorization_details"] = (0..16).map(|at| json!({"type": "remit:access", "locations": [GIT],
            "privileges": ["read"], "identifier": format!("{at}{}", "x".repeat(250))})).collect();
        large["credentials"] = json!([]);
        let task = text(&stand.declare(large).await.expect(StatusCode::CREATED), "task");
        let answer = timeline(&stand, &task).await;
        let declared = &events(&answer)[0];
        assert_eq!((&declared["left_out"], &declared["owner"]), (&json!(["authority"]), &json!(OWNER)));
        assert!(declared.to_string().len() < 4096 && answer["complete"] == true);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_brokers_tell_one_story() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, token) = stand.task_with_token().await;
    let ask = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
    let path = format!("/v1/tasks/{task}/credentials");
    stand
        .call_at(&second, reqwest::Method::POST, &path, Some(&stand.evidence()), Some(ask))
        .await
        .expect(StatusCode::OK);
    assert_eq!(stand.introspect_at(&second, GIT_TOKEN, &token).await["active"], true);
    stand.revoke(&task).await.expect(StatusCode::OK);
    for broker in [&stand.broker, &second] {
        assert_eq!(stand.introspect_at(broker, GIT_TOKEN, &token).await["active"], false);
    }
    // The last of it is told by the other broker.
    let refusals = |answer: &Value| events(answer).iter().filter(|event| event["event"] == "refused_after_end").count();
    let mut answer = Value::Null;
    for _ in 0..100 {
        answer = timeline(&stand, &task).await;
        if refusals(&answer) == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(
        story(&answer),
        [
            "task_declared",
            "credential_minted",
            "credential_minted",
            "introspected",
            "end_requested",
            "task_ended",
            "refused_after_end",
            "refused_after_end"
        ]
    );
    assert_eq!(answer["complete"], true);
    let logs = [stand.whole_audit(), audit_of(&stand.dir.path().join("second-audit"))];
    let opened = logs[1].iter().find(|record| record["event"] == "segment_opened").unwrap();
    let (mut here, mut there) = (0, 0);
    for event in events(&answer) {
        let of_second = event["source"]["log"] == opened["log"];
        is_copied(&event, &logs[usize::from(of_second)]);
        *(if of_second { &mut there } else { &mut here }) += 1;
    }
    assert!(here >= 5 && there == 3, "{here} {there}");
}

/// Whoever writes to the store can take from a timeline, and neither adds to it nor makes it look whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_broker_told_is_not_told() {
    let stand = Stand::new(Store::Redis).await;
    let redis = stand.redis.as_ref().expect("Redis");
    let ((task, _), (other, _)) = (stand.task_with_token().await, stand.task_with_token().await);
    assert_eq!(timeline(&stand, &other).await["complete"], true);
    assert_eq!(timeline(&stand, &task).await["complete"], true);
    let key = |task: &str| format!("remit:{{{task}}}:timeline");
    let records = async |task: &str| -> Vec<String> {
        redis.cli(&["LRANGE", &key(task), "0", "-1"]).await.lines().map(str::to_owned).collect()
    };
    let (whole, moved) = (records(&task).await, records(&other).await);
    let before = story(&timeline(&stand, &task).await);
    // Twice the same is once.
    redis.cli(&["RPUSH", &key(&task), &whole[0], &whole[1]]).await;
    let answer = timeline(&stand, &task).await;
    assert_eq!((story(&answer), &answer["complete"]), (before.clone(), &true.into()));
    // Another tree's, an edited one, one without a MAC.
    let edited = whole[1].replacen("credential_minted", "credential_denied", 1);
    let bare = r#"{"event":"task_ended"}"#;
    redis.cli(&["RPUSH", &key(&task), &moved[0], &edited, bare]).await;
    let answer = timeline(&stand, &task).await;
    assert_eq!(
        (story(&answer), &answer["complete"], &answer["unverified"]),
        (before.clone(), &false.into(), &3.into())
    );
    // One is taken out of the middle, or all of it.
    redis.cli(&["DEL", &key(&task)]).await;
    let answer = timeline(&stand, &task).await;
    assert_eq!((story(&answer), &answer["complete"]), (Vec::new(), &false.into()));
    stand.mint(&task).await.expect(StatusCode::OK);
    let answer = timeline(&stand, &task).await;
    assert_eq!((story(&answer), &answer["complete"]), (vec!["credential_minted".to_owned()], &false.into()));
    // A store that forgot everything is no reason to say that there was nothing.
    redis.cli(&["FLUSHALL"]).await;
    stand.get(&format!("/v1/tasks/{task}/timeline"), VIEWER).await.refused(503, "temporarily_unavailable");
}

/// Whoever looks at a task or is turned away from it pushes nothing out of its story; and who may not see it is not in it at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_push_nothing_out_of_a_story() {
    let stand = Stand::with(Store::Embedded, &people()).await;
    let (task, _) = stand.task_with_token().await;
    let (others, nobody) = (stand.person(&["others"]), stand.person(&["all-employees"]));
    let (find, show) = (format!("/v1/search?q={task}"), format!("/v1/tasks/{task}"));
    for _ in 0..5 {
        assert_eq!(stand.get(&find, &others).await.expect(StatusCode::OK)["matches"], json!([]));
        stand.get(&show, &others).await.refused(404, "not_found");
        stand.get(&find, &nobody).await.refused(403, "policy_denied");
        stand.get(&show, &nobody).await.refused(403, "policy_denied");
    }
    for _ in 0..60 {
        stand.get(&show, VIEWER).await.expect(StatusCode::OK);
    }
    stand.get(&show, "garbage").await.refused(401, "evidence_invalid");
    stand.revoke(&task).await.expect(StatusCode::OK);
    let answer = with(&stand, &task, "task_ended").await;
    let (looks, happened): (Vec<_>, Vec<_>) = events(&answer)
        .into_iter()
        .partition(|event| event["event"] == "looked" || event["event"] == "evidence_refused");
    let happened: Vec<_> = happened.iter().map(|event| text(event, "event")).collect();
    assert_eq!(happened, ["task_declared", "credential_minted", "end_requested", "task_ended"]);
    assert_eq!(looks.iter().filter(|look| look["event"] == "looked").count(), 50);
    assert!(looks.iter().all(|look| !look.to_string().contains("ann@example.com")), "{looks:?}");
    assert_eq!(answer["complete"], true);
    // All of it is on record, and of what is another's not under the id of that.
    let of = |actor: &str, event: &str| {
        let log = stand.whole_audit().into_iter();
        log.filter(|line| line["actor"]["as"] == actor && line["event"] == event).collect::<Vec<_>>()
    };
    assert!(of("operator", "looked").iter().filter(|line| line["task"] == *task).count() >= 61);
    for (tried, count) in [(of("owner", "looked"), 5), (of("operator", "caller_refused"), 10)] {
        assert!(tried.len() == count && tried.iter().all(|line| line["task"].is_null()), "{tried:?}");
    }
}

/// While the store is gone nothing is told, and everything once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_comes_back_hears_what_happened() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, token) = stand.task_with_token().await;
    stand.redis.as_mut().unwrap().kill().await;
    let reason = json!({"reason": "r"});
    stand.post(&format!("/v1/tasks/{task}/revoke"), RESPONDER, reason).await.expect(StatusCode::ACCEPTED);
    stand.redis.as_mut().unwrap().start_again().await;
    let revoked = || async { stand.revoke(&task).await.status == StatusCode::OK };
    wait_for("the store", revoked).await;
    assert_eq!(stand.introspect(&token).await["active"], false);
    let answer = with(&stand, &task, "refused_after_end").await;
    let told = story(&answer);
    assert!(told.iter().filter(|event| *event == "end_requested").count() >= 2, "{told:?}");
    assert!(told.contains(&"settled".to_owned()), "nobody knows what became of the first: {told:?}");
}
