//! `AuthZEN` 1.0 at the broker and at `remit verifier`: the same question, and the same answer.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    both,
    mtls::{Place, own},
    sidecar::Sidecar,
    support::{
        GIT, GIT_TOKEN, OWNER, Prover, REGISTRY, REGISTRY_TOKEN, RESPONDER, Stand, VIEWER, claims, secrets, text,
        wait_for,
    },
};

const ONE: &str = "/access/v1/evaluation";
const SEVERAL: &str = "/access/v1/evaluations";

fn asking(token: &str, action: &str, id: &str) -> Value {
    json!({"subject": {"type": "workload", "id": "whoever", "properties": {"token": token}},
        "action": {"name": action}, "resource": {"type": "repository", "id": id}})
}

/// `true`, or why not.
fn decision(answer: &Value) -> Value {
    assert!(answer["decision"].is_boolean(), "{answer}");
    if answer["decision"] == true { json!(true) } else { answer["context"]["reason"].clone() }
}

/// Both that answer: the broker for a service, and the sidecar of that service.
struct Doors<'a> {
    stand: &'a Stand,
    service: &'static str,
    sidecar: Sidecar,
}

impl<'a> Doors<'a> {
    async fn of(stand: &'a Stand, audience: &str, service: &'static str) -> Self {
        Self { stand, service, sidecar: Sidecar::of(stand, audience, &[]).await }
    }

    async fn at_the_sidecar(&self, path: &str, body: &Value) -> (u16, Value) {
        if let Some(token) = body["subject"]["properties"]["token"].as_str() {
            secrets::note_token("a token", token);
        }
        let request = self.sidecar.client.post(format!("{}{path}", self.sidecar.url)).json(body);
        let answer = request.header("x-request-id", "question-1").send().await.expect("an answer");
        assert_eq!(answer.headers()["x-request-id"], "question-1");
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    /// What the broker and the sidecar say to one question.
    async fn say(&self, body: &Value) -> [Value; 2] {
        let broker = self.stand.post(ONE, self.service, body.clone()).await.expect(StatusCode::OK);
        let (status, sidecar) = self.at_the_sidecar(ONE, body).await;
        assert_eq!(status, 200, "{sidecar}");
        [decision(&broker), decision(&sidecar)]
    }

    async fn both_say(&self, body: &Value, expected: &Value) {
        assert_eq!(self.say(body).await, [expected.clone(), expected.clone()], "{body}");
    }
}

both! {
    async fn what_the_authority_covers_is_permitted_until_the_task_ends(stand) {
        let doors = Doors::of(&stand, GIT, GIT_TOKEN).await;
        let (task, token) = stand.task_with_token().await;
        let clone = asking(&token, "clone", "acme/payments");
        for (action, id, expected) in [
            ("clone", "acme/payments", json!(true)),
            ("push", "acme/payments", json!("action_not_covered")),
            ("write", "acme/payments", json!("action_not_covered")),
            // Its authority is for one action, and this is any.
            ("read", "acme/payments", json!("action_not_covered")),
            ("clone", "acme/other", json!("resource_not_covered")),
            ("", "", json!("resource_not_covered")),
        ] {
            doors.both_say(&asking(&token, action, id), &expected).await;
        }
        let permitted = stand.post(ONE, GIT_TOKEN, clone.clone()).await.expect(StatusCode::OK)["context"].clone();
        assert_eq!(permitted, doors.at_the_sidecar(ONE, &clone).await.1["context"]);
        assert_eq!((&permitted["task"], &permitted["owner"]), (&json!(task), &json!(OWNER)));
        assert_eq!(permitted["lease"], claims(&token)["jti"]);
        // Members that nobody knows are ignored, as the standard says.
        let mut more = clone.clone();
        (more["context"], more["vendor"]) = (json!({"ip": "192.0.2.1"}), json!(1));
        doors.both_say(&more, &json!(true)).await;
        for (id, expected) in [("spiffe://example.com/ci/acme/payments", json!(true)), (&*task, json!(true)),
            ("spiffe://example.com/ci/other", json!("subject_mismatch"))] {
            let mut body = clone.clone();
            body["subject"]["id"] = json!(id);
            doors.both_say(&body, &expected).await;
        }
        // Somebody else's, and nobody's.
        let body = asking("garbage", "clone", "acme/payments");
        doors.both_say(&body, &json!("token_invalid")).await;
        let mut without = clone.clone();
        without["subject"]["properties"] = json!({});
        doors.both_say(&without, &json!("token_missing")).await;
        let elsewhere = stand.post(ONE, REGISTRY_TOKEN, clone.clone()).await.expect(StatusCode::OK);
        assert_eq!(decision(&elsewhere), "token_invalid");

        stand.revoke(&task).await.expect(StatusCode::OK);
        wait_for("the revoke", || async { doors.say(&clone).await[1] != json!(true) }).await;
        assert_eq!(doors.say(&clone).await, [json!("inactive"), json!("revoked")]);
        // On record as introspection is.
        wait_for("the record", || async {
            let log = stand.whole_audit();
            ["introspected", "refused_after_end"].iter().all(|event| log.iter().any(|line| line["event"] == *event && line["task"] == *task))
        }).await;
    }

    async fn a_lock_keeps_out_what_it_matches(stand) {
        let doors = Doors::of(&stand, GIT, GIT_TOKEN).await;
        let (_, token) = stand.task_with_token().await;
        let clone = asking(&token, "clone", "acme/payments");
        doors.both_say(&clone, &json!(true)).await;
        let lock = json!({"match": {"sandbox": "sb-7f3"}, "reason": "a drill"});
        stand.post("/v1/locks", RESPONDER, lock).await.expect(StatusCode::CREATED);
        wait_for("the lock", || async { doors.say(&clone).await[1] != json!(true) }).await;
        let [broker, sidecar] = doors.say(&clone).await;
        assert_eq!(broker, "inactive");
        // The lock, and the end of the task that comes with it.
        assert!(sidecar == "locked" || sidecar == "revoked", "{sidecar}");
        assert_eq!(doors.sidecar.bearer(&token).await, 401);
    }

    async fn several_questions_have_an_answer_each(stand) {
        let doors = Doors::of(&stand, GIT, GIT_TOKEN).await;
        let (_, token) = stand.task_with_token().await;
        let mut body = asking(&token, "clone", "acme/payments");
        body["evaluations"] = json!([{}, {"action": {"name": "push"}}, {"resource": {"type": "repository", "id": "acme/other"}}, {}]);
        for (semantic, expected) in [
            ("execute_all", json!([true, "action_not_covered", "resource_not_covered", true])),
            ("deny_on_first_deny", json!([true, "action_not_covered"])),
            ("permit_on_first_permit", json!([true])),
        ] {
            body["options"] = json!({"evaluations_semantic": semantic});
            let broker = stand.post(SEVERAL, GIT_TOKEN, body.clone()).await.expect(StatusCode::OK);
            let (_, sidecar) = doors.at_the_sidecar(SEVERAL, &body).await;
            for answer in [broker, sidecar] {
                let said: Vec<_> = answer["evaluations"].as_array().unwrap().iter().map(decision).collect();
                assert_eq!(json!(said), expected, "{semantic}");
            }
        }
        // Without questions of their own it is one.
        let alone = asking(&token, "clone", "acme/payments");
        assert_eq!(stand.post(SEVERAL, GIT_TOKEN, alone.clone()).await.expect(StatusCode::OK)["decision"], true);
        assert_eq!(doors.at_the_sidecar(SEVERAL, &alone).await.1["decision"], true);
    }

    async fn what_is_no_question_is_refused(stand) {
        let doors = Doors::of(&stand, GIT, GIT_TOKEN).await;
        let (_, token) = stand.task_with_token().await;
        let good = asking(&token, "clone", "acme/payments");
        let with = |member: &str, value: Value| {
            let mut body = good.clone();
            body[member] = value;
            body
        };
        for (path, bad) in [
            (ONE, json!({})),
            (ONE, with("action", json!("clone"))),
            (ONE, with("action", json!({}))),
            (ONE, with("resource", json!({"id": "acme/payments"}))),
            (ONE, with("subject", json!({"type": "t", "id": "i", "properties": {"token": 1}}))),
            (ONE, with("context", json!({"dpop": "x"}))),
            (ONE, with("context", json!({"x5t#S256": "short"}))),
            (SEVERAL, with("options", json!({"evaluations_semantic": "any"}))),
            (SEVERAL, with("evaluations", json!([{"action": null, "resource": 1}]))),
            (SEVERAL, with("evaluations", json!(vec![json!({}); 65]))),
        ] {
            let error = stand.post(path, GIT_TOKEN, bad.clone()).await.refused(400, "invalid_request");
            let (status, sidecar) = doors.at_the_sidecar(path, &bad).await;
            assert_eq!((status, &sidecar["error"]), (400, &json!("invalid_request")), "{bad}");
            assert!(!format!("{error}{sidecar}").contains(&token), "{error} {sidecar}");
        }
        let raw = async |body: String, kind: &str| {
            let request = doors.sidecar.client.post(format!("{}{ONE}", doors.sidecar.url)).header("content-type", kind);
            request.body(body).send().await.unwrap().status().as_u16()
        };
        assert_eq!(raw(good.to_string(), "text/plain").await, 415);
        assert_eq!(raw(good.to_string() + "{}", "application/json").await, 400);
        assert_eq!(raw(format!("{{\"action\":{{\"name\":\"a\"}},{}", &good.to_string()[1..]), "application/json").await, 400);
        assert_eq!(raw("[".repeat(60_000), "application/json").await, 400);
        assert_eq!(raw(" ".repeat(70_000), "application/json").await, 413);
        // Services ask, and nobody else.
        for caller in [VIEWER.to_owned(), stand.evidence()] {
            stand.post(ONE, &caller, good.clone()).await.refused(403, "policy_denied");
        }
        stand.post(ONE, "garbage", good.clone()).await.refused(401, "evidence_invalid");
        // Whoever gives a question an id finds it in the answer, also where the answer is no.
        for (body, status, given, comes_back) in [(good.clone(), 200, "question-1", true), (json!({}), 400, "question-2", true), (good, 200, "two words", false)] {
            let request = stand.client.post(stand.url(ONE)).bearer_auth(GIT_TOKEN).header("x-request-id", given).json(&body);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status);
            assert_eq!(answer.headers()["x-request-id"] == given, comes_back, "{given}");
            let body: Value = answer.json().await.unwrap();
            assert!(body["request_id"].is_null() || body["request_id"] == given, "{body}");
        }
    }

    /// A proof is for the request that the service says it came with, and serves one set of questions.
    async fn what_is_bound_comes_with_what_it_is_bound_to(stand) {
        let prover = Prover::new();
        let token = stand.bound_token(&prover).await;
        let doors = Doors::of(&stand, REGISTRY, REGISTRY_TOKEN).await;
        let url = "https://registry.example.com/notes";
        let ath = remit::id::sha256_base64url(token.as_bytes());
        let shown = |proof: String, method: &str, url: &str| {
            let mut body = asking(&token, "read", "x");
            body["context"] = json!({"dpop": proof, "htm": method, "htu": url});
            body
        };
        let fresh = || prover.proof("GET", url, json!({"ath": ath}));
        let once = shown(fresh(), "GET", url);
        assert_eq!(doors.say(&once).await, [json!(true), json!(true)], "each takes it once");
        doors.both_say(&once, &json!("token_invalid")).await;
        for bad in [
            shown(fresh(), "POST", url),
            shown(fresh(), "GET", "https://registry.example.com/other"),
            shown(Prover::new().proof("GET", url, json!({"ath": ath})), "GET", url),
            shown(prover.proof("GET", url, json!({})), "GET", url),
            asking(&token, "read", "x"),
        ] {
            doors.both_say(&bad, &json!("token_invalid")).await;
        }
        // One proof for all of a request.
        let mut several = shown(fresh(), "GET", url);
        several["evaluations"] = json!([{}, {"resource": {"type": "location", "id": REGISTRY}}]);
        let broker = stand.post(SEVERAL, REGISTRY_TOKEN, several.clone()).await.expect(StatusCode::OK);
        let (_, sidecar) = doors.at_the_sidecar(SEVERAL, &several).await;
        for answer in [broker, sidecar] {
            assert!(answer["evaluations"].as_array().unwrap().iter().all(|one| one["decision"] == true), "{answer}");
        }
    }

    async fn what_is_bound_to_a_certificate_comes_with_its_thumbprint(stand) {
        let (place, mine) = (Place::of(stand).await, own());
        let evidence = place.stand.evidence();
        let task = place.declare(Some(&mine), Some(&evidence)).await;
        let token = text(&place.minted(Some(&mine), Some(&evidence), &task, REGISTRY).await, "access_token");
        let doors = Doors::of(&place.stand, REGISTRY, REGISTRY_TOKEN).await;
        for (thumbprint, expected) in [
            (claims(&token)["cnf"]["x5t#S256"].clone(), json!(true)),
            (json!("A".repeat(43)), json!("token_invalid")),
        ] {
            let mut body = asking(&token, "read", "x");
            body["context"] = json!({"x5t#S256": thumbprint});
            doors.both_say(&body, &expected).await;
        }
        doors.both_say(&asking(&token, "read", "x"), &json!("token_invalid")).await;
    }
}

/// Where the questions go, the broker says itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_names_the_endpoints() {
    let stand = Stand::new(crate::support::Store::Embedded).await;
    let said: Value =
        stand.client.get(stand.url("/.well-known/authzen-configuration")).send().await.unwrap().json().await.unwrap();
    assert_eq!(said["policy_decision_point"], stand.broker.url);
    assert_eq!(said["access_evaluation_endpoint"], stand.url(ONE));
    assert_eq!(said["access_evaluations_endpoint"], stand.url(SEVERAL));
}
