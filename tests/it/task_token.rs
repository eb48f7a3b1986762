//! The task token: bound to the workload's key, it stands for the evidence on its task, and nowhere else.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use remit::id::sha256_base64url;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    support::{
        ADMIN, Answer, Body, Frozen, GIT, GIT_TOKEN, OWNER, Prover, Server, Stand, Store, claims, client, declaration,
        part, text, time, wait_for,
    },
};

const TOKEN: &str = "/oauth2/token";
const TASKS: &str = "/v1/tasks";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// What a holder sends: a task token, and a proof of a key for it.
struct Holder<'a> {
    token: &'a str,
    prover: &'a Prover,
}

impl Holder<'_> {
    async fn send(&self, stand: &Stand, method: Method, path: &str, body: Value) -> Answer {
        let hash = sha256_base64url(self.token.as_bytes());
        let proof = self.prover.proof(method.as_str(), &stand.url(path), json!({"ath": hash}));
        self.send_with(stand, method, path, Some(&proof), body).await
    }

    async fn send_with(&self, stand: &Stand, method: Method, path: &str, proof: Option<&str>, body: Value) -> Answer {
        let request = stand.client.request(method, stand.url(path));
        let request = request.header("authorization", format!("DPoP {}", self.token));
        let request = proof.into_iter().fold(request, |request, proof| request.header("dpop", proof));
        let request = if body.is_null() { request } else { request.json(&body) };
        Answer::of(request.send().await.expect("an answer")).await
    }

    /// One token for the task, by token exchange.
    async fn exchange(&self, stand: &Stand, prover: Option<&Prover>, task: &str) -> Answer {
        let scope = format!("{task} read");
        let form = [
            ("grant_type", EXCHANGE),
            ("subject_token", self.token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("resource", GIT),
            ("scope", &scope),
        ];
        let proof = prover.map(|prover| prover.proof("POST", &stand.url(TOKEN), json!({})));
        let proofs: Vec<_> = proof.as_deref().into_iter().collect();
        stand.proven_at(&stand.broker, (Method::POST, TOKEN), None, &proofs, Body::Form(&form)).await
    }
}

impl Stand {
    /// A task that was declared with a key: the answer.
    async fn declared_with(&self, prover: &Prover) -> Value {
        let proof = prover.proof("POST", &self.url(TASKS), json!({}));
        let evidence = self.evidence();
        let body = Body::Json(declaration());
        let answer = self.proven_at(&self.broker, (Method::POST, TASKS), Some(&evidence), &[&proof], body).await;
        answer.expect(StatusCode::CREATED)
    }
}

const MINT: &str = r#"{"credentials": [{"resource": "https://git.example.com", "privilege": "read"}]}"#;

fn mint() -> Value {
    serde_json::from_str(MINT).unwrap()
}

both! {
    async fn it_stands_for_the_evidence_on_its_task(stand) {
        let prover = Prover::new();
        let declared = stand.declared_with(&prover).await;
        let (task, token) = (text(&declared, "task"), text(&declared, "task_token"));
        let said = claims(&token);
        assert_eq!(part(&token, 0)["typ"], "at+jwt");
        assert_eq!((&said["aud"], &said["iss"], &said["scope"]), (&json!(stand.broker.url), &json!(stand.broker.url), &json!("task")));
        assert_eq!((&said["cnf"], &said["urn:remit:task"]["id"]), (&json!({"jkt": prover.jkt()}), &json!(task)));
        let ends = time(&declared, "task_token_expires_at");
        assert_eq!(said["exp"], ends.timestamp());
        assert_eq!(declared["expires_at"], declared["task_token_expires_at"], "no later than the task");

        let holder = Holder { token: &token, prover: &prover };
        let own = format!("{TASKS}/{task}");
        let minted = holder.send(&stand, Method::POST, &format!("{own}/credentials"), mint()).await.expect(StatusCode::OK);
        let access = text(&minted["credentials"][0], "access_token");
        assert_eq!(stand.introspect(&access).await["active"], true);
        let exchanged = holder.exchange(&stand, Some(&prover), &task).await.expect(StatusCode::OK);
        assert_eq!(exchanged["task"], task);
        assert_eq!(holder.send(&stand, Method::GET, &own, Value::Null).await.expect(StatusCode::OK)["task"], task);
        let renewed = holder.send(&stand, Method::POST, &format!("{own}/renew"), json!({})).await.expect(StatusCode::OK);
        let next = text(&renewed, "task_token");
        assert_ne!(next, token);
        let holder = Holder { token: &next, prover: &prover };
        holder.send(&stand, Method::POST, &format!("{own}/complete"), json!({})).await.expect(StatusCode::OK);
        // It ends with its task.
        holder.send(&stand, Method::POST, &format!("{own}/credentials"), mint()).await.refused(409, "task_not_active");
        holder.exchange(&stand, Some(&prover), &task).await.oauth_refused(400, "invalid_grant");
        let events: Vec<_> = stand.audit().iter().filter(|line| line["event"] == "task_token_issued").cloned().collect();
        assert_eq!(events.len(), 2);
        assert!(events.iter().all(|line| line["bound_to"]["jkt"] == prover.jkt() && line["task"] == task));
        assert_eq!(events[0]["lease"], said["jti"]);
    }

    /// Revoked like any other token (RFC 7009), by itself: from then on it stands for nothing, and its task goes on.
    async fn it_can_be_revoked(stand) {
        let prover = Prover::new();
        let declared = stand.declared_with(&prover).await;
        let (task, token) = (text(&declared, "task"), text(&declared, "task_token"));
        let holder = Holder { token: &token, prover: &prover };
        let revoke = async || {
            let hash = sha256_base64url(token.as_bytes());
            let proof = prover.proof("POST", &stand.url("/oauth2/revoke"), json!({"ath": hash}));
            let request = stand.client.post(stand.url("/oauth2/revoke")).header("dpop", proof);
            let request = request.header("authorization", format!("DPoP {token}")).form(&[("token", &token)]);
            Answer::of(request.send().await.expect("an answer")).await
        };
        assert_eq!(revoke().await.status, StatusCode::OK);
        let path = format!("{TASKS}/{task}/credentials");
        holder.send(&stand, Method::POST, &path, mint()).await.refused(401, "evidence_invalid");
        holder.exchange(&stand, Some(&prover), &task).await.oauth_refused(400, "invalid_request");
        revoke().await.oauth_refused(401, "invalid_client");
        let renewed = prover.proof("POST", &stand.url(&format!("{TASKS}/{task}/renew")), json!({}));
        let body = Body::Json(json!({}));
        let path = format!("{TASKS}/{task}/renew");
        let renewed = stand.proven_at(&stand.broker, (Method::POST, &path), Some(&stand.evidence()), &[&renewed], body).await;
        let next = text(&renewed.expect(StatusCode::OK), "task_token");
        let path = format!("{TASKS}/{task}/credentials");
        Holder { token: &next, prover: &prover }.send(&stand, Method::POST, &path, mint()).await.expect(StatusCode::OK);
    }

    /// Whoever stole it has nothing, and it opens nothing else.
    async fn it_serves_its_holder_and_its_task_alone(stand) {
        let (prover, thief) = (Prover::new(), Prover::new());
        let declared = stand.declared_with(&prover).await;
        let (task, token) = (text(&declared, "task"), text(&declared, "task_token"));
        let other = text(&stand.post(TASKS, &stand.other_instance(), declaration()).await.expect(StatusCode::CREATED), "task");
        let path = format!("{TASKS}/{task}/credentials");
        let stolen = Holder { token: &token, prover: &thief };
        let challenge = |answer: &Answer| answer.headers["www-authenticate"].to_str().unwrap().to_owned();
        let answer = stolen.send(&stand, Method::POST, &path, mint()).await;
        assert!(challenge(&answer).contains("DPoP error=\"invalid_dpop_proof\""));
        answer.refused(401, "evidence_invalid");
        // On record, as what was refused on this task.
        let theft = |line: &Value| {
            line["event"] == "evidence_refused" && line["attestor"] == "task_token" && line["reason"] == "possession" && line["task"] == *task
        };
        wait_for("the record", || async { stand.whole_audit().iter().any(theft) }).await;
        stolen.exchange(&stand, Some(&thief), &task).await.oauth_refused(400, "invalid_dpop_proof");
        stolen.exchange(&stand, None, &task).await.oauth_refused(400, "invalid_dpop_proof");
        stolen.send_with(&stand, Method::POST, &path, None, mint()).await.refused(401, "evidence_invalid");
        // A proof without the token's hash, with another's, or the same one twice.
        let holder = Holder { token: &token, prover: &prover };
        for over in [json!({}), json!({"ath": sha256_base64url(b"another")})] {
            let proof = prover.proof("POST", &stand.url(&path), over);
            holder.send_with(&stand, Method::POST, &path, Some(&proof), mint()).await.refused(401, "evidence_invalid");
        }
        let proof = prover.proof("POST", &stand.url(&path), json!({"ath": sha256_base64url(token.as_bytes())}));
        holder.send_with(&stand, Method::POST, &path, Some(&proof), mint()).await.expect(StatusCode::OK);
        holder.send_with(&stand, Method::POST, &path, Some(&proof), mint()).await.refused(401, "evidence_invalid");
        // It is no bearer token.
        let proof = prover.proof("POST", &stand.url(&path), json!({}));
        let answer = stand.proven_at(&stand.broker, (Method::POST, &path), Some(&token), &[&proof], Body::Json(mint())).await;
        answer.refused(401, "evidence_invalid");
        stand.post(&path, &token, mint()).await.refused(401, "evidence_invalid");
        // It declares nothing, lists nothing and opens no other task; nor what operators and services do.
        holder.send(&stand, Method::POST, TASKS, declaration()).await.refused(401, "evidence_invalid");
        holder.send(&stand, Method::GET, TASKS, Value::Null).await.refused(401, "evidence_invalid");
        for (method, path, body) in [
            (Method::POST, format!("{TASKS}/{other}/credentials"), mint()),
            (Method::POST, format!("{TASKS}/{other}/renew"), json!({})),
            (Method::POST, format!("{TASKS}/{other}/complete"), json!({})),
            (Method::POST, format!("{TASKS}/{other}/revoke"), json!({"reason": "r"})),
            (Method::GET, format!("{TASKS}/{other}"), Value::Null),
            (Method::POST, "/v1/keys/rotate".to_owned(), json!({})),
            (Method::GET, "/v1/keys".to_owned(), Value::Null),
        ] {
            holder.send(&stand, method, &path, body).await.refused(401, "evidence_invalid");
        }
        holder.exchange(&stand, Some(&prover), &other).await.oauth_refused(400, "invalid_request");
        // No service takes it, and a credential is no task token.
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
        let proof = prover.proof("POST", &stand.url(&path), json!({}));
        let registry = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
        let access = stand.proven_at(&stand.broker, (Method::POST, &path), Some(&stand.issuer.evidence(&stand.broker.url, json!({"jti": "x"}))), &[&proof], Body::Json(registry)).await;
        let access = text(&access.expect(StatusCode::OK)["credentials"][0], "access_token");
        Holder { token: &access, prover: &prover }.send(&stand, Method::POST, &path, mint()).await.refused(401, "evidence_invalid");
        Holder { token: &stand.evidence(), prover: &prover }.send(&stand, Method::POST, &path, mint()).await.refused(401, "evidence_invalid");
        // Another task in it is not what was signed.
        let mut forged = claims(&token);
        forged["urn:remit:task"]["id"] = json!(other);
        let parts: Vec<_> = token.split('.').collect();
        let forged = format!("{}.{}.{}", parts[0], BASE64_URL_SAFE_NO_PAD.encode(forged.to_string()), parts[2]);
        let path = format!("{TASKS}/{other}/credentials");
        Holder { token: &forged, prover: &prover }.send(&stand, Method::POST, &path, mint()).await.refused(401, "evidence_invalid");
        // A revoke ends it like every other credential.
        stand.revoke(&task).await.expect(StatusCode::OK);
        holder.send(&stand, Method::POST, &format!("{TASKS}/{task}/credentials"), mint()).await.refused(409, "task_not_active");
        holder.send(&stand, Method::POST, &format!("{TASKS}/{task}/renew"), json!({})).await.refused(409, "task_not_active");
    }

    /// Without a key there is none: it is never a bearer token.
    async fn it_is_never_given_without_a_key(stand) {
        let declared = stand.declare(declaration()).await.expect(StatusCode::CREATED);
        assert!(declared.get("task_token").is_none());
        let path = format!("{TASKS}/{}/renew", text(&declared, "task"));
        assert!(stand.post(&path, &stand.evidence(), json!({})).await.expect(StatusCode::OK).get("task_token").is_none());
        // One OAuth call may declare: it gets one there too.
        let prover = Prover::new();
        let mut detail = declaration();
        detail["type"] = json!("remit:declaration");
        let (evidence, details) = (stand.issuer.evidence(&stand.broker.url, json!({"jti": "y"})), json!([detail]).to_string());
        let form = [("grant_type", EXCHANGE), ("subject_token", &*evidence),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"), ("authorization_details", &*details)];
        let proof = prover.proof("POST", &stand.url(TOKEN), json!({}));
        let answer = stand.proven_at(&stand.broker, (Method::POST, TOKEN), None, &[&proof], Body::Form(&form)).await.expect(StatusCode::OK);
        let token = text(&answer, "task_token");
        let task = text(&answer, "task");
        Holder { token: &token, prover: &prover }.exchange(&stand, Some(&prover), &task).await.expect(StatusCode::OK);
    }
}

/// A task token that a tainted key signed stands for nothing, on the broker that was asked and on the others, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_a_tainted_key_is_none() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let prover = Prover::new();
    let declared = stand.declared_with(&prover).await;
    let (task, token) = (text(&declared, "task"), text(&declared, "task_token"));
    let path = format!("{TASKS}/{task}/credentials");
    let send_to = async |at: &Server| {
        let proof = prover.proof("POST", &stand.url(&path), json!({"ath": sha256_base64url(token.as_bytes())}));
        let request = client().post(format!("{}{path}", at.url)).header("authorization", format!("DPoP {token}"));
        Answer::of(request.header("dpop", proof).json(&mint()).send().await.unwrap()).await
    };
    for at in [&stand.broker, &second] {
        send_to(at).await.expect(StatusCode::OK);
    }
    let taint = format!("/v1/keys/{}/taint", text(&part(&token, 0), "kid"));
    stand.post(&taint, ADMIN, json!({})).await.expect(StatusCode::OK);
    for at in [&second, &stand.broker] {
        send_to(at).await.refused(401, "evidence_invalid");
    }
    // The evidence gets another one.
    let declared = stand.declared_with(&prover).await;
    let holder = Holder { token: &text(&declared, "task_token"), prover: &prover };
    let path = format!("{TASKS}/{}/credentials", text(&declared, "task"));
    holder.send(&stand, Method::POST, &path, mint()).await.expect(StatusCode::OK);
}

/// The configuration that holds now decides, not the one that held when it was issued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_worth_what_its_attestor_still_is() {
    let mut stand = Stand::new(Store::Embedded).await;
    let prover = Prover::new();
    let declared = stand.declared_with(&prover).await;
    let (task, token) = (text(&declared, "task"), text(&declared, "task_token"));
    let holder = Holder { token: &token, prover: &prover };
    let path = format!("{TASKS}/{task}/renew");
    let config = std::fs::read_to_string(&stand.broker.config).unwrap();
    // The owner is not the attestor's any more.
    std::fs::write(&stand.broker.config, config.replace(&format!("owners = [\"{OWNER}\", "), "owners = [")).unwrap();
    stand.restart_broker().await;
    holder.send(&stand, Method::POST, &path, json!({})).await.refused(403, "policy_denied");
    // The attestor is another one, though of the same name.
    std::fs::write(
        &stand.broker.config,
        config.replace("issuer = \"https://ci.example.com\"", "issuer = \"https://other.example.com\""),
    )
    .unwrap();
    stand.restart_broker().await;
    holder.send(&stand, Method::POST, &path, json!({})).await.refused(401, "evidence_invalid");
    std::fs::write(&stand.broker.config, &config).unwrap();
    stand.restart_broker().await;
    holder.send(&stand, Method::POST, &path, json!({})).await.expect(StatusCode::OK);
}

/// What the issuer says is for the broker alone, and evidence of nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_is_named_as_the_broker_is() {
    let stand = Stand::new(Store::Embedded).await;
    let config = std::fs::read_to_string(&stand.broker.config).unwrap();
    for (from, to, words) in [
        (
            format!("audiences = [\"{GIT}\"]"),
            format!("audiences = [\"{GIT}\", \"{}\"]", stand.broker.url),
            "service `git`",
        ),
        (
            "issuer = \"https://ci.example.com\"".to_owned(),
            format!("issuer = \"{}\"", stand.broker.url),
            "attestor `ci`",
        ),
    ] {
        std::fs::write(&stand.broker.config, config.replace(&from, &to)).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_remit"))
            .args(["config", "check", "--config"])
            .arg(&stand.broker.config)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(78) && said.contains(words) && said.contains("the broker"), "{said}");
    }
}

/// An agent on a broker whose time is moved by hand.
struct Agent {
    frozen: Frozen,
    prover: Prover,
    http: reqwest::Client,
}

impl Agent {
    async fn send(&self, authorization: &str, path: &str, body: Value) -> Answer {
        let (scheme, token) = authorization.split_once(' ').unwrap();
        let ath = (scheme == "DPoP").then(|| sha256_base64url(token.as_bytes()));
        let proof = self.prover.proof("POST", &self.frozen.url(path), json!({"iat": self.frozen.now(), "ath": ath}));
        let request = self.http.post(self.frozen.url(path)).header("authorization", authorization);
        Answer::of(request.header("dpop", proof).json(&body).send().await.unwrap()).await
    }

    /// What its CI system gives it: good for five minutes.
    fn evidence(&self) -> String {
        let now = self.frozen.now();
        let over = json!({"iat": now, "exp": now + 300, "jti": now});
        format!("Bearer {}", self.frozen.issuer.evidence(&self.frozen.url(""), over))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_evidence_of_five_minutes_works_for_two_hours() {
    let agent = Agent { frozen: Frozen::start(str::to_owned).await, prover: Prover::new(), http: client() };
    let first = agent.evidence();
    let declared = agent.send(&first, TASKS, declaration()).await.expect(StatusCode::CREATED);
    let (task, mut token) = (text(&declared, "task"), text(&declared, "task_token"));
    let (renew, mint_at) = (format!("{TASKS}/{task}/renew"), format!("{TASKS}/{task}/credentials"));
    let begun = agent.frozen.now();
    let (mut attested_at, mut fresh) = (begun, 0);
    // The policy of the tests lets such a task live for ten minutes at a time and two hours in all.
    while agent.frozen.now() + 480 < begun + 7200 {
        agent.frozen.clock.advance(TimeDelta::seconds(480));
        agent.send(&first, &mint_at, mint()).await.refused(401, "evidence_invalid");
        let answer = agent.send(&format!("DPoP {token}"), &renew, json!({})).await;
        let renewed = if agent.frozen.now() < attested_at + 3600 {
            answer.expect(StatusCode::OK)
        } else {
            // An hour is over: once in a while somebody else than the broker has to say so again.
            answer.refused(401, "evidence_invalid");
            fresh += 1;
            attested_at = agent.frozen.now();
            agent.send(&agent.evidence(), &renew, json!({})).await.expect(StatusCode::OK)
        };
        token = text(&renewed, "task_token");
        let until = claims(&token)["exp"].as_i64().unwrap();
        assert!(until <= attested_at + 3600 && until <= begun + 7200, "{until}");
        let body = json!({"credentials": [{"resource": GIT, "privilege": "read", "ttl": 600}]});
        let minted = agent.send(&format!("DPoP {token}"), &mint_at, body).await.expect(StatusCode::OK);
        let access = text(&minted["credentials"][0], "access_token");
        assert!(claims(&access)["exp"].as_i64().unwrap() <= until, "no credential outlives what it was minted on");
        let asked = agent.http.post(agent.frozen.url("/oauth2/introspect")).bearer_auth(GIT_TOKEN);
        let asked = Answer::of(asked.form(&[("token", &access)]).send().await.unwrap()).await;
        assert_eq!(asked.expect(StatusCode::OK)["active"], true);
    }
    assert_eq!(fresh, 1);
    agent.frozen.clock.advance(TimeDelta::seconds(480));
    agent.send(&format!("DPoP {token}"), &mint_at, mint()).await.refused(401, "evidence_invalid");
    agent.frozen.running.stop().await;
}

/// Policy says how often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_wants_fresh_evidence_as_often_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let policy = "@id(\"often\") @attest_every(\"120\") @max_ttl(\"600\") permit (principal, action, resource);";
    std::fs::write(dir.path().join("own.cedar"), policy).unwrap();
    let frozen = Frozen::start(|config| crate::support::with_policies(config, &dir.path().display().to_string())).await;
    let agent = Agent { frozen, prover: Prover::new(), http: client() };
    let evidence = agent.evidence();
    let declared = agent.send(&evidence, TASKS, declaration()).await.expect(StatusCode::CREATED);
    let (task, token) = (text(&declared, "task"), text(&declared, "task_token"));
    assert_eq!(claims(&token)["exp"], agent.frozen.now() + 120);
    agent.frozen.clock.advance(TimeDelta::seconds(60));
    let renew = format!("{TASKS}/{task}/renew");
    let renewed = agent.send(&format!("DPoP {token}"), &renew, json!({})).await.expect(StatusCode::OK);
    // A renewal on it is no fresh evidence.
    let token = text(&renewed, "task_token");
    assert_eq!(claims(&token)["exp"], agent.frozen.now() + 60);
    agent.frozen.clock.advance(TimeDelta::seconds(60));
    agent.send(&format!("DPoP {token}"), &renew, json!({})).await.refused(401, "evidence_invalid");
    agent.send(&agent.evidence(), &renew, json!({})).await.expect(StatusCode::OK);
    agent.frozen.running.stop().await;
}
