//! One credential is revoked, and its task and siblings go on: by its workload (RFC 7009), or by whoever may revoke the task.

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    certificates::{Certified, certified},
    followers::{Service, becomes_revoked, entries},
    support::{
        ADMIN, Answer, GIT, GIT_TOKEN, RESPONDER, Server, Stand, Store, VIEWER, claims, declaration, people, text,
        time, wait_for,
    },
};

const REVOKE: &str = "/oauth2/revoke";

/// Two tokens of one task, and it.
async fn two_tokens(stand: &Stand) -> (String, String, String) {
    let (task, one) = stand.task_with_token().await;
    let other = text(&stand.mint(&task).await.expect(StatusCode::OK)["credentials"][0], "access_token");
    (task, one, other)
}

async fn is_active(stand: &Stand, token: &str) -> bool {
    stand.introspect(token).await["active"] == true
}

fn jti(token: &str) -> String {
    text(&claims(token), "jti")
}

async fn revoke_at(stand: &Stand, at: &Server, bearer: &str, lease: &str, more: Value) -> Answer {
    let mut body = json!({"reason": "seen in a build log"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    stand.call_at(at, Method::POST, &format!("/v1/leases/{lease}/revoke"), Some(bearer), Some(body)).await
}

async fn revoke(stand: &Stand, bearer: &str, lease: &str) -> Answer {
    revoke_at(stand, &stand.broker, bearer, lease, json!({})).await
}

fn events(stand: &Stand, name: &str) -> Vec<Value> {
    stand.audit().into_iter().filter(|line| line["event"] == name).collect()
}

both! {
    async fn a_workload_revokes_a_token_of_its_own(stand) {
        let (task, leaked, good) = two_tokens(&stand).await;
        let service = Service::of(&stand.broker).await;
        let evidence = stand.evidence();
        let ask = async |bearer: Option<&str>, form: &[(&str, &str)]| stand.form(REVOKE, bearer, form).await;
        // Whoever is none of its workload changes nothing, and a stranger hears nothing of it.
        let other = stand.other_instance();
        assert_eq!(ask(Some(&other), &[("token", &leaked)]).await.status, StatusCode::OK);
        for garbage in ["x", "a.b.c", &leaked[1..], &format!("{leaked}A")] {
            assert_eq!(ask(Some(&evidence), &[("token", garbage)]).await.status, StatusCode::OK, "{garbage}");
        }
        for who in [None, Some("garbage"), Some(GIT_TOKEN), Some(RESPONDER), Some(ADMIN), Some(&*leaked)] {
            ask(who, &[("token", &leaked)]).await.oauth_refused(401, "invalid_client");
        }
        let secret = [("token", &*leaked), ("client_id", "x"), ("client_secret", "y")];
        ask(None, &secret).await.oauth_refused(401, "invalid_client");
        let both = [("token", &*leaked), ("client_assertion", "x"), ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")];
        ask(Some(&evidence), &both).await.oauth_refused(401, "invalid_client");
        ask(Some(&evidence), &[("token_type_hint", "access_token")]).await.oauth_refused(400, "invalid_request");
        ask(Some(&evidence), &[("token", &leaked), ("token", &good)]).await.oauth_refused(400, "invalid_request");
        assert!(is_active(&stand, &leaked).await && events(&stand, "credential_revocation_requested").is_empty());

        // What the hint says is no matter.
        let answer = ask(Some(&evidence), &[("token", &leaked), ("token_type_hint", "refresh_token")]).await;
        assert_eq!((answer.status, &*answer.text), (StatusCode::OK, "{}"));
        assert!(!is_active(&stand, &leaked).await && is_active(&stand, &good).await);
        becomes_revoked(|| service.says(&leaked)).await;
        service.says(&good).unwrap();
        assert_eq!(ask(Some(&evidence), &[("token", &leaked)]).await.status, StatusCode::OK, "once more");
        assert_eq!(entries(&stand, &stand.broker, "lease").await.len(), 1);
        stand.mint(&task).await.expect(StatusCode::OK);

        // A JWT-SVID is one of its tokens too.
        let path = format!("/v1/tasks/{task}/credentials");
        let wanted = json!({"credentials": [{"resource": GIT, "privilege": "read", "type": "jwt"}]});
        let minted = stand.post(&path, &evidence, wanted).await.expect(StatusCode::OK);
        let svid = text(&minted["credentials"][0], "access_token");
        service.says(&svid).unwrap();
        assert_eq!(ask(Some(&evidence), &[("token", &svid)]).await.status, StatusCode::OK);
        assert!(!is_active(&stand, &svid).await);
        becomes_revoked(|| service.says(&svid)).await;
    }

    async fn an_operator_revokes_one_of_a_task(stand) {
        let (task, leaked, good) = two_tokens(&stand).await;
        let service = Service::of(&stand.broker).await;
        assert!(is_active(&stand, &leaked).await);
        let lease = jti(&leaked);
        let answer = revoke(&stand, RESPONDER, &lease).await.expect(StatusCode::OK);
        assert_eq!((&answer["lease"], &answer["task"], &answer["state"]), (&json!(lease), &json!(task), &json!("revoked")));
        // Who goes by the status list of the task, or by keys alone, accepts it until it expires, and the answer says so.
        let by = |class: &str| {
            let reach = answer["reach"].as_array().unwrap().iter().find(|reach| reach["class"] == class);
            text(reach.unwrap_or_else(|| panic!("no {class} in {answer}")), "by")
        };
        let expires = text(&answer, "expires_at");
        assert_eq!((by("status_list"), by("jwks_only"), text(&answer, "effective_by")), (expires.clone(), expires.clone(), expires.clone()));
        assert!(by("introspection") < by("feed") && by("feed") < expires && answer["reach"].as_array().unwrap().len() == 4);
        assert!(!is_active(&stand, &leaked).await && is_active(&stand, &good).await);
        becomes_revoked(|| service.says(&leaked)).await;
        service.says(&good).unwrap();
        let told = entries(&stand, &stand.broker, "lease").await;
        assert_eq!((told.len(), &told[0]["lease"], &told[0]["until"]), (1, &json!(lease), &claims(&leaked)["exp"]));

        // Once more, and named with its task: the first one's instants.
        let again = revoke_at(&stand, &stand.broker, ADMIN, &lease, json!({"task": task})).await;
        again.refused(403, "policy_denied");
        let again = revoke_at(&stand, &stand.broker, RESPONDER, &lease, json!({"task": task})).await.expect(StatusCode::OK);
        let instants = |answer: &Value| {
            let all = answer["reach"].as_array().unwrap().iter().map(|reach| reach["by"].clone());
            all.chain(["revoked_at", "expires_at", "effective_by"].map(|member| answer[member].clone())).collect::<Vec<_>>()
        };
        assert_eq!(instants(&again), instants(&answer));

        // On record, in the timeline, in what is found, and counted once.
        let requested = events(&stand, "credential_revocation_requested");
        assert_eq!((&requested[0]["lease"], &requested[0]["reason"]), (&json!(lease), &json!("seen in a build log")));
        assert_eq!((requested.len(), events(&stand, "credential_revoked").len()), (2, 2));
        let timeline = stand.get(&format!("/v1/tasks/{task}/timeline"), VIEWER).await.expect(StatusCode::OK);
        assert!(timeline["events"].as_array().unwrap().iter().any(|event| event["event"] == "credential_revoked"));
        let found = stand.get(&format!("/v1/search?q={lease}"), VIEWER).await.expect(StatusCode::OK);
        assert_eq!(found["matches"][0]["lease"]["revoked_at"], answer["revoked_at"], "{found}");
        let found = stand.get(&format!("/v1/search?q={}", jti(&good)), VIEWER).await.expect(StatusCode::OK);
        assert_eq!(found["matches"][0]["lease"].get("revoked_at"), None);
        let metrics = stand.call(Method::GET, "/metrics", None, None).await.text;
        assert!(metrics.contains("\nremit_credentials_revoked_total 1\n"), "{metrics}");
        // The task goes on, and so does its right.
        stand.mint(&task).await.expect(StatusCode::OK);
    }

    async fn a_retry_brings_nothing_back(stand) {
        let declare = async || {
            let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence());
            let mut wanted = declaration();
            wanted["credentials"] = json!([{"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "write"}]);
            Answer::of(request.header("idempotency-key", "one").json(&wanted).send().await.unwrap()).await.expect(StatusCode::CREATED)
        };
        let first = declare().await;
        let leaked = text(&first["credentials"][0], "access_token");
        let lease = text(&first["credentials"][0], "lease");
        assert_eq!(declare().await["credentials"].as_array().unwrap().len(), 2);
        revoke(&stand, RESPONDER, &lease).await.expect(StatusCode::OK);
        let again = declare().await;
        let minted = again["credentials"].as_array().unwrap();
        assert_eq!((minted.len(), &again["task"]), (1, &first["task"]), "{again}");
        assert_eq!(minted[0]["lease"], first["credentials"][1]["lease"]);
        assert!(!is_active(&stand, &leaked).await);
    }

    async fn a_certificate_is_on_its_list(stand) {
        let (task, revoked) = certified(&stand).await;
        let csr = json!({"csr": std::fs::read_to_string(stand.dir.path().join("csr.pem")).unwrap()});
        let sibling = stand.post(&format!("/v1/tasks/{task}/certificate"), &stand.evidence(), csr).await;
        let sibling = Certified::of(sibling.expect(StatusCode::OK));
        let service = Service::of(&stand.broker).await;
        service.says_of_certificate(&revoked.der).unwrap();
        let serial = revoked.serial();
        let answer = revoke(&stand, RESPONDER, &serial).await.expect(StatusCode::OK);
        let classes: Vec<_> = answer["reach"].as_array().unwrap().iter().map(|reach| text(reach, "class")).collect();
        assert_eq!(classes, ["feed", "crl", "jwks_only"]);
        assert!(time(&answer, "effective_by") < time(&answer, "expires_at"));
        becomes_revoked(|| service.says_of_certificate(&revoked.der)).await;
        service.says_of_certificate(&sibling.der).unwrap();
        revoked.is_revoked_soon(&stand, &stand.broker).await;
        assert!(sibling.is_good(&stand, &stand.broker).await);
    }

    async fn who_may_and_what_there_is_to_revoke(stand) {
        let (task, token, _) = two_tokens(&stand).await;
        let lease = jti(&token);
        let (evidence, other) = (stand.evidence(), stand.other_instance());
        // Told the same of another's and of none.
        let foreign = revoke(&stand, &other, &lease).await.refused(404, "not_found");
        revoke(&stand, VIEWER, &lease).await.refused(403, "policy_denied");
        revoke(&stand, GIT_TOKEN, &lease).await.refused(403, "policy_denied");
        revoke(&stand, "nobody", &lease).await.refused(401, "evidence_invalid");
        let unknown = "0af7651916cd43dd8448eb211c80319c";
        let none = revoke(&stand, RESPONDER, unknown).await.refused(404, "not_found");
        assert_eq!((&foreign["detail"], &none["detail"]), (&json!("no such credential"), &json!("no such credential")));
        revoke(&stand, VIEWER, unknown).await.refused(403, "policy_denied");
        revoke(&stand, GIT_TOKEN, unknown).await.refused(403, "policy_denied");
        // One of another task is none of this one.
        let (elsewhere, _) = stand.task_with_token().await;
        revoke_at(&stand, &stand.broker, RESPONDER, &lease, json!({"task": elsewhere})).await.refused(404, "not_found");
        for malformed in ["x", "0AF7651916CD43DD8448EB211C80319C", &task, "..%2f..%2fjwks", "%FF"] {
            revoke(&stand, RESPONDER, malformed).await.refused(400, "invalid_request");
        }
        let path = format!("/v1/leases/{lease}/revoke");
        for body in [json!({}), json!({"reason": ""}), json!({"reason": 7}), json!({"reason": "r", "task": "x"}), json!({"reason": "r", "more": 1})] {
            stand.post(&path, RESPONDER, body).await.refused(400, "invalid_request");
        }
        assert!(is_active(&stand, &token).await && events(&stand, "credential_revocation_requested").is_empty());
        // Its own instance may, as well as by token.
        revoke(&stand, &evidence, &lease).await.expect(StatusCode::OK);
        assert!(!is_active(&stand, &token).await);
    }

    async fn a_restart_brings_nothing_back(mut stand) {
        let (_, leaked, good) = two_tokens(&stand).await;
        revoke(&stand, RESPONDER, &jti(&leaked)).await.expect(StatusCode::OK);
        let told = entries(&stand, &stand.broker, "lease").await;
        stand.restart_broker().await;
        assert!(!is_active(&stand, &leaked).await && is_active(&stand, &good).await);
        assert_eq!(entries(&stand, &stand.broker, "lease").await, told);
        // Without its journal the broker finds it in the store; and everything older is dead, because nobody knows what else was.
        stand.broker.stop().await;
        std::fs::remove_file(stand.dir.path().join("broker-journal/revocations")).unwrap();
        let config = stand.broker.config.clone();
        stand.broker = Server::start(&config).await;
        assert!(!is_active(&stand, &leaked).await && !is_active(&stand, &good).await);
        assert_eq!(entries(&stand, &stand.broker, "lease").await, told);
    }
}

/// Those who act for the owner of the task revoke what is of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_owner_may() {
    let stand = Stand::with(Store::Embedded, &people()).await;
    let (_, token, good) = two_tokens(&stand).await;
    revoke(&stand, &stand.person(&["others"]), &jti(&token)).await.refused(404, "not_found");
    revoke(&stand, &stand.person(&["payments"]), &jti(&token)).await.expect(StatusCode::OK);
    assert!(!is_active(&stand, &token).await && is_active(&stand, &good).await);
    assert_eq!(events(&stand, "credential_revoked")[0]["actor"]["as"], "owner");
}

/// A service is turned away before anything is looked for; a workload that does not say which task it means has two looks at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_looks_for_a_credential_is_known_first() {
    let stand = Stand::new(Store::Redis).await;
    let (task, token) = stand.task_with_token().await;
    let (redis, lease, unknown) = (stand.redis.as_ref().unwrap(), jti(&token), "0af7651916cd43dd8448eb211c80319c");
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]).await;
    redis.cli(&["CONFIG", "SET", "slowlog-max-len", "100000"]).await;
    let looks = async || {
        let log = redis.cli(&["SLOWLOG", "GET", "-1"]).await;
        log.matches("ZREVRANGEBYLEX\nremit:tasks").count()
    };
    revoke(&stand, GIT_TOKEN, unknown).await.refused(403, "policy_denied");
    revoke(&stand, GIT_TOKEN, &lease).await.refused(403, "policy_denied");
    assert_eq!(looks().await, 0);
    revoke(&stand, &stand.evidence(), unknown).await.refused(404, "not_found");
    assert_eq!(looks().await, 1);
    // Names of no tasks, as many as a look goes through: it lasts a while.
    let made_up: Vec<String> = (0..5_000).map(|number| format!("{}{number:016}", &task[..15])).collect();
    let words: Vec<&str> =
        ["ZADD", "remit:tasks"].into_iter().chain(made_up.iter().flat_map(|name| ["0", name])).collect();
    assert_eq!(redis.cli(&words).await, "5000");
    let evidence = stand.evidence();
    wait_for("one too many", || async {
        let asked = join_all((0..6).map(|_| revoke(&stand, &evidence, unknown))).await;
        asked.iter().any(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS)
    })
    .await;
    // It finds its own, and needs no look where it says which task it is of.
    let before = looks().await;
    revoke_at(&stand, &stand.broker, &evidence, &lease, json!({"task": task})).await.expect(StatusCode::OK);
    assert_eq!(looks().await, before);
    let (_, other) = stand.task_with_token().await;
    revoke(&stand, &evidence, &jti(&other)).await.expect(StatusCode::OK);
}

/// At whichever broker: dead at all of them, and told by all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_broker() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (_, leaked, good) = two_tokens(&stand).await;
    let (_, certificate) = certified(&stand).await;
    for lease in [jti(&leaked), certificate.serial()] {
        revoke_at(&stand, &second, RESPONDER, &lease, json!({})).await.expect(StatusCode::OK);
    }
    for at in [&stand.broker, &second] {
        assert_eq!(stand.introspect_at(at, GIT_TOKEN, &leaked).await, json!({"active": false}), "{}", at.url);
        assert_eq!(stand.introspect_at(at, GIT_TOKEN, &good).await["active"], true, "{}", at.url);
        wait_for("the entries", || async { entries(&stand, at, "lease").await.len() == 2 }).await;
        certificate.is_revoked_soon(&stand, at).await;
    }
}

/// What the store has lost it is told again; and what it could not be told, this broker denies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forgets_or_is_away_brings_nothing_back() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, leaked, good) = two_tokens(&stand).await;
    let service = Service::of(&stand.broker).await;
    let lease = jti(&leaked);
    let record = format!("remit:{{{task}}}:lease-end:{task}:{lease}");
    revoke(&stand, RESPONDER, &lease).await.expect(StatusCode::OK);
    let is_recorded = async |stand: &Stand| stand.redis.as_ref().unwrap().cli(&["EXISTS", &record]).await.trim() == "1";
    assert!(is_recorded(&stand).await);
    // Whatever somebody writes there in its place.
    for spoilt in [&["DEL", &record][..], &["SET", &record, "1 1 1 x {}"]] {
        stand.redis.as_ref().unwrap().cli(spoilt).await;
        assert!(!is_active(&stand, &leaked).await);
    }
    stand.redis.as_ref().unwrap().cli(&["DEL", &record]).await;
    let redis = stand.redis.as_mut().unwrap();
    redis.kill().await;
    redis.start_again().await;
    wait_for("the record", || is_recorded(&stand)).await;
    wait_for("the broker", || is_active(&stand, &good)).await;
    wait_for("what it did", || async { !events(&stand, "credential_revocation_replayed").is_empty() }).await;
    assert_eq!(events(&stand, "credential_revocation_replayed").len(), 1);

    // While it is away, whoever may revoke everything says of which task it is, and needs no store to be believed.
    stand.redis.as_mut().unwrap().kill().await;
    let lease = jti(&good);
    revoke(&stand, RESPONDER, &lease).await.refused(503, "temporarily_unavailable");
    revoke_at(&stand, &stand.broker, &stand.evidence(), &lease, json!({"task": task}))
        .await
        .refused(503, "temporarily_unavailable");
    stand
        .form(REVOKE, Some(&stand.evidence()), &[("token", &good)])
        .await
        .oauth_refused(503, "temporarily_unavailable");
    let promised = revoke_at(&stand, &stand.broker, RESPONDER, &lease, json!({"task": task})).await;
    assert_eq!(promised.expect(StatusCode::ACCEPTED)["state"], "revoking");
    becomes_revoked(|| service.says(&good)).await;
    stand.redis.as_mut().unwrap().start_again().await;
    let record = format!("remit:{{{task}}}:lease-end:{task}:{lease}");
    wait_for("the record", || async { stand.redis.as_ref().unwrap().cli(&["EXISTS", &record]).await.trim() == "1" })
        .await;
    assert!(!is_active(&stand, &good).await);
}
