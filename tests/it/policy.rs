//! What policies decide by, through the front door: every policy here is written by the test that it serves.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::Path;

use crate::support::{Answer, GIT, OWNER, Stand, VIEWER, claims, now, socket_client, text, with_policies};

/// The configuration whose CI jobs prove their repository and branch, with a service for each of `audiences`.
fn with_facts(config: &str, audiences: &[String]) -> String {
    let facts = "kind = \"ci\"\nfacts = { repo = \"{repository}\", branch = \"{ref}\" }\nselectors = [\"event_name\"]";
    let service = if audiences.is_empty() {
        String::new()
    } else {
        format!("[[service]]\nname = \"rows\"\nbinding = \"none\"\nrevocation = \"none\"\naudiences = {audiences:?}\n")
    };
    format!("{}{service}", config.replace("kind = \"ci\"", facts))
}

/// A declaration of one read at `location`, with these members laid over it.
#[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
fn reading(location: &str, over: Value) -> Value {
    let details = json!([{"type": "remit:access", "locations": [location], "privileges": ["read"]}]);
    let mut declaration = json!({"purpose": "Fix it", "owner": OWNER, "authorization_details": details,
        "credentials": [{"resource": location, "privilege": "read"}]});
    for (name, value) in over.as_object().unwrap() {
        declaration[name] = value.clone();
    }
    declaration
}

fn minted(stand: &Stand) -> usize {
    stand.audit().iter().filter(|line| line["event"] == "credential_minted").count()
}

fn life(answer: &Value) -> i64 {
    let claims = claims(&text(&answer["credentials"][0], "access_token"));
    claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
}

/// Who asks in a row of the table below.
#[derive(Clone, Copy)]
enum By {
    Ci,
    Agent,
}
use By::{Agent, Ci};

/// The name of a fact, the condition on it, what meets it and what does not.
type Fact<'a> = (&'a str, &'a str, (By, Value), (By, Value));

#[tokio::test]
async fn every_fact_can_decide() {
    let hour = now() / 3600 % 24;
    let open = format!("[{hour}, {}].contains(context.time.hour)", (hour + 1) % 24);
    let closed = format!("context.time.hour == {}", (hour + 12) % 24);
    let host = |name: &str| {
        format!(r#"resource.host == "{name}.example.com" && resource.scheme == "https" && resource.port == 443"#)
    };
    let asks = |member: &str, value: Value| {
        let mut detail = json!({"type": "remit:access", "locations": ["LOCATION"], "privileges": ["read"]});
        detail[member] = value;
        json!({ "authorization_details": [detail] })
    };
    let nothing = || json!({});
    let table: &[Fact<'_>] = &[
        ("kind", r#"principal.kind == "ci""#, (Ci, nothing()), (Agent, nothing())),
        ("attestor", r#"context.attested.attestor == "kernel""#, (Agent, nothing()), (Ci, nothing())),
        (
            "issuer",
            r#"principal has issuer && principal.issuer == "https://ci.example.com""#,
            (Ci, nothing()),
            (Agent, nothing()),
        ),
        (
            "workload",
            r#"principal == Remit::Workload::"spiffe://example.com/ci/acme/payments""#,
            (Ci, nothing()),
            (Agent, nothing()),
        ),
        ("path", r#"principal.path like "/unix/*""#, (Agent, nothing()), (Ci, nothing())),
        ("instance", r#"context.attested.instance == "1.1""#, (Ci, nothing()), (Agent, nothing())),
        ("marks", r#"context.attested.marks.contains("unseparated")"#, (Agent, nothing()), (Ci, nothing())),
        (
            "selector",
            r#"context.attested.selectors.contains("oidc:event_name:push")"#,
            (Ci, nothing()),
            (Agent, nothing()),
        ),
        (
            "attested-repo",
            r#"context.attested has repo && context.attested.repo == "acme/payments""#,
            (Ci, nothing()),
            (Agent, json!({"context": {"repo": "acme/payments"}})),
        ),
        (
            "attested-branch",
            r#"context.attested has branch && context.attested.branch == "refs/heads/main""#,
            (Ci, nothing()),
            (Agent, json!({"context": {"branch": "refs/heads/main"}})),
        ),
        ("purpose", r#"context.declared.purpose like "Fix *""#, (Ci, nothing()), (Ci, json!({"purpose": "Break it"}))),
        (
            "owner",
            r#"context.declared.owner == "team-payments@example.com""#,
            (Ci, nothing()),
            (Ci, json!({"owner": "other@example.com"})),
        ),
        (
            "environment",
            r#"context.declared has environment && context.declared.environment == "staging""#,
            (Ci, json!({"environment": "staging"})),
            (Ci, json!({"environment": "Staging"})),
        ),
        (
            "sandbox",
            r#"context.declared has sandbox && context.declared.sandbox == "sb-7f3""#,
            (Agent, json!({"sandbox": "sb-7f3"})),
            (Agent, nothing()),
        ),
        (
            "repo",
            r#"context.declared has repo && context.declared.repo == "acme/payments""#,
            (Agent, json!({"context": {"repo": "acme/payments"}})),
            (Agent, json!({"context": {"repo": "acme/payments2"}})),
        ),
        (
            "branch",
            r#"context.declared has branch && context.declared.branch == "main""#,
            (Ci, json!({"context": {"branch": "main"}})),
            (Ci, json!({"context": {"branch": "refs/heads/main"}})),
        ),
        (
            "command",
            r#"context.declared has command && context.declared.command like "pytest *""#,
            (Ci, json!({"context": {"command": "pytest -x"}})),
            (Ci, json!({"context": {"command": "sh -c 'pytest -x'"}})),
        ),
        (
            "classification",
            r#"context.declared has data_classification && context.declared.data_classification == "internal""#,
            (Ci, json!({"data_classification": "internal"})),
            (Ci, json!({"data_classification": "restricted"})),
        ),
        (
            "identifier",
            r#"context.request has identifier && context.request.identifier == "acme/payments""#,
            (Ci, asks("identifier", json!("acme/payments"))),
            (Ci, asks("identifier", json!("acme/payments/.."))),
        ),
        (
            "actions",
            r#"context.request has actions && ["clone", "fetch"].containsAll(context.request.actions)"#,
            (Ci, asks("actions", json!(["clone"]))),
            (Ci, asks("actions", json!(["clone", "push"]))),
        ),
        (
            "no-actions",
            r#"context.request has actions && ["clone"].containsAll(context.request.actions)"#,
            (Ci, asks("actions", json!(["clone"]))),
            (Ci, nothing()),
        ),
        (
            "datatypes",
            r#"context.request has datatypes && context.request.datatypes == ["source"]"#,
            (Ci, asks("datatypes", json!(["source"]))),
            (Ci, asks("datatypes", json!(["source", "personal"]))),
        ),
    ];
    let location = |name: &str| format!("https://{name}.example.com");
    let policy = |id: &str, name: &str, effect: &str, condition: &str| {
        format!(
            "@id(\"{id}.{name}\") {effect} (principal, action, resource == Remit::Service::\"{}\") when {{ {condition} }};\n",
            location(name)
        )
    };
    // The same condition the other way round, at another service: it forbids there what it allows here.
    let mut policies: String =
        table.iter().map(|(name, condition, ..)| policy("only", name, "permit", condition)).collect();
    // Nothing that a caller does changes the time or the service.
    let fixed =
        [("open", open, 201), ("closed", closed, 403), ("host", host("host"), 201), ("other-host", host("host"), 403)];
    policies.extend(fixed.iter().map(|(name, condition, _)| policy("only", name, "permit", condition)));
    for (name, condition, ..) in table {
        let name = format!("not-{name}");
        policies += &policy("any", &name, "permit", "true");
        policies += &policy("never", &name, "forbid", condition);
    }
    let names = table.iter().flat_map(|(name, ..)| [location(name), location(&format!("not-{name}"))]);
    let audiences: Vec<String> = names.chain(fixed.iter().map(|(name, ..)| location(name))).collect();
    let stand = Stand::under(&policies, |config| with_facts(&config, &audiences)).await;
    let socket = socket_client(&stand.broker.socket);
    let ask = async |location: &str, (by, over): &(By, Value)| {
        let over = serde_json::from_str(&over.to_string().replace("LOCATION", location)).unwrap();
        let body = reading(location, over);
        match by {
            Ci => {
                let evidence = stand.issuer.evidence(&stand.broker.url, json!({"event_name": "push"}));
                stand.post("/v1/tasks", &evidence, body).await
            }
            Agent => Answer::of(socket.post("http://localhost/v1/tasks").json(&body).send().await.unwrap()).await,
        }
    };
    for (name, _, meets, misses) in table {
        let (only, not) = (location(name), location(&format!("not-{name}")));
        let allowed = ask(&only, meets).await;
        assert_eq!(allowed.status, StatusCode::CREATED, "{name}: {}", allowed.text);
        assert_eq!(allowed.json()["policies"], json!([format!("only.{name}")]), "{name}");
        let forbidden = ask(&not, meets).await;
        assert_eq!(forbidden.status, StatusCode::FORBIDDEN, "not {name}: {}", forbidden.text);
        assert_eq!(forbidden.json()["denied"][0]["policies"], json!([format!("never.not-{name}")]), "{name}");
        let denied = ask(&only, misses).await;
        assert_eq!(denied.status, StatusCode::FORBIDDEN, "{name}: {}", denied.text);
        assert_eq!(denied.json()["denied"][0]["policies"], json!([]), "{name}: default deny names nobody");
        let allowed = ask(&not, misses).await;
        assert_eq!(allowed.status, StatusCode::CREATED, "not {name}: {}", allowed.text);
    }
    for (name, _, expected) in &fixed {
        let answer = ask(&location(name), &(Ci, nothing())).await;
        assert_eq!(answer.status.as_u16(), *expected, "{name}: {}", answer.text);
    }
}

#[tokio::test]
async fn what_no_policy_mentions_is_denied() {
    let policies =
        r#"@id("elsewhere") permit (principal, action, resource == Remit::Service::"https://registry.example.com");"#;
    let stand = Stand::under(policies, |config| config).await;
    let body = stand.declare(reading(GIT, json!({}))).await.refused(403, "policy_denied");
    assert_eq!(
        body["denied"],
        json!([{"type": "remit:access", "locations": [GIT], "privileges": ["read"], "policies": []}])
    );
    let events: Vec<Value> = stand.audit();
    let denied = events.iter().find(|line| line["event"] == "declaration_denied").expect("a denial is recorded");
    assert_eq!(denied["denied"], body["denied"]);
    assert_eq!(minted(&stand), 0);
    assert_eq!(stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK)["tasks"], json!([]));
}

/// What decided is told to the caller and recorded: for the task, for every credential, for every denial.
#[tokio::test]
async fn answers_and_the_audit_name_the_policies() {
    let policies = r#"
@id("declare") permit (principal, action in Remit::Action::"declare", resource);
@id("mint.read") permit (principal, action == Remit::Action::"mint:read", resource);
@id("mint.all") permit (principal, action in Remit::Action::"mint", resource);
@id("no.write") forbid (principal, action == Remit::Action::"mint:write", resource);
@id("never.secret") forbid (principal, action in Remit::Action::"secret", resource);"#;
    let stand = Stand::under(policies, |config| config).await;
    let details = json!([{"type": "remit:access", "locations": [GIT], "privileges": ["read", "write", "secret"]}]);
    let declaration = json!({"purpose": "p", "owner": OWNER, "authorization_details": details, "partial": true,
        "credentials": [{"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "write"}]});
    let answer = stand.declare(declaration).await.expect(StatusCode::CREATED);
    assert_eq!(answer["policies"], json!(["declare"]));
    assert_eq!(answer["authorization_details"][0]["privileges"], json!(["read", "write"]));
    let denied: Vec<_> =
        answer["denied"].as_array().unwrap().iter().map(|d| (&d["privileges"][0], &d["policies"])).collect();
    assert_eq!(denied, [(&json!("secret"), &json!(["never.secret"])), (&json!("write"), &json!(["no.write"]))]);
    let path = format!("/v1/tasks/{}/credentials", text(&answer, "task"));
    let write = json!({"credentials": [{"resource": GIT, "privilege": "write"}]});
    let body = stand.post(&path, &stand.evidence(), write).await.refused(403, "policy_denied");
    assert_eq!(body["denied"][0]["policies"], json!(["no.write"]));
    let audit = stand.audit();
    let line = |event: &str| audit.iter().find(|line| line["event"] == event).unwrap_or_else(|| panic!("no {event}"));
    assert_eq!(line("task_declared")["policies"], json!(["declare"]));
    assert_eq!(line("credential_minted")["policies"], json!(["mint.all", "mint.read"]));
    assert_eq!(line("mint_denied")["policies"], json!(["no.write"]));
}

/// What the agent says and what its evidence says are two things, and policy can hold one against the other.
#[tokio::test]
async fn a_lie_about_the_repository_is_found_out() {
    let policies = r#"
@id("all") permit (principal, action, resource);
@id("no-lies") forbid (principal, action, resource)
when { context.declared has repo && context.attested has repo && context.declared.repo != context.attested.repo };"#;
    let stand = Stand::under(policies, |config| with_facts(&config, &[])).await;
    let declare = async |repo: &str| stand.declare(reading(GIT, json!({"context": {"repo": repo}}))).await;
    declare("acme/payments").await.expect(StatusCode::CREATED);
    for lie in ["acme/secrets", "acme/payments ", "Acme/payments", "acme/payments\u{200b}"] {
        let body = declare(lie).await.refused(403, "policy_denied");
        assert_eq!(body["denied"][0]["policies"], json!(["no-lies"]), "{lie}");
    }
    // At every mint it is the evidence of that moment: the task's own words stay what they were.
    let task = text(&declare("acme/payments").await.expect(StatusCode::CREATED), "task");
    let credentials = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
    let moved = stand.issuer.evidence(&stand.broker.url, json!({"repository": "acme/secrets"}));
    stand.post(&format!("/v1/tasks/{task}/credentials"), &moved, credentials).await.refused(404, "not_found");
}

/// Cedar skips a policy that errs. A skipped `forbid` is a hole, so an error is no decision.
#[tokio::test]
async fn an_evaluation_that_errs_mints_nothing() {
    let policies = r#"
@id("all") permit (principal, action, resource);
@id("declare-errs") forbid (principal, action in Remit::Action::"declare", resource)
when { context.declared.purpose == "overflow" && context.time.unix * 9223372036854775807 > 0 };
@id("mint-errs") forbid (principal, action in Remit::Action::"mint", resource)
when { context.declared has sandbox && context.time.unix * 9223372036854775807 > 0 };"#;
    let stand = Stand::under(policies, |config| config).await;
    for over in [json!({"purpose": "overflow"}), json!({"sandbox": "s"}), json!({"sandbox": "s", "partial": true})] {
        let answer = stand.declare(reading(GIT, over)).await;
        assert!(answer.headers.contains_key("retry-after"));
        let body = answer.refused(503, "temporarily_unavailable");
        assert!(!body.to_string().contains("overflow") && !body.to_string().contains("errs"), "{body}");
    }
    // Declared without credentials; then every way to mint.
    let declared =
        stand.declare(reading(GIT, json!({"sandbox": "s", "credentials": []}))).await.expect(StatusCode::CREATED);
    let task = text(&declared, "task");
    stand.mint(&task).await.refused(503, "temporarily_unavailable");
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token", &stand.evidence()),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("resource", GIT),
        ("scope", &format!("{task} read")),
    ];
    stand.form("/oauth2/token", None, &form).await.oauth_refused(503, "temporarily_unavailable");
    assert_eq!(minted(&stand), 0);
    assert_eq!(stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK)["tasks"].as_array().unwrap().len(), 1);
    // It is a matter of that one request.
    stand.declare(reading(GIT, json!({}))).await.expect(StatusCode::CREATED);
    assert_eq!(minted(&stand), 1);
}

#[tokio::test]
async fn the_strictest_lifetime_wins() {
    let policies = r#"
@id("declare") @max_ttl("3600") permit (principal, action in Remit::Action::"declare", resource);
@id("declare.short") @max_ttl("60") permit (principal, action in Remit::Action::"declare", resource)
when { context.declared.purpose == "short" };
@id("mint") permit (principal, action in Remit::Action::"mint", resource);
@id("mint.staging") @max_ttl("40") permit (principal, action in Remit::Action::"mint", resource)
when { context.declared has environment && context.declared.environment == "staging" };
@id("mint.internal") @max_ttl("30") permit (principal, action in Remit::Action::"mint", resource)
when { context.declared has data_classification && context.declared.data_classification == "internal" };"#;
    let stand = Stand::under(policies, |config| config).await;
    let declare = async |over: Value| stand.declare(reading(GIT, over)).await;
    let deadline = |answer: &Value| {
        let time = |member: &str| text(answer, member).parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        (time("expires_at") - time("created_at")).num_seconds()
    };
    // A task: above the bound is refused, unsaid is brought down to it.
    declare(json!({"ttl": 3601})).await.refused(400, "invalid_request");
    assert!((3599..=3600).contains(&deadline(&declare(json!({"ttl": 3600})).await.expect(StatusCode::CREATED))));
    declare(json!({"purpose": "short", "ttl": 61})).await.refused(400, "invalid_request");
    let short = declare(json!({"purpose": "short"})).await.expect(StatusCode::CREATED);
    assert!((59..=60).contains(&deadline(&short)) && life(&short) <= 60, "{short}");
    // A credential.
    let staging = json!({"environment": "staging"});
    let both = json!({"environment": "staging", "data_classification": "internal"});
    for (over, bound) in [(staging, 40), (both, 30)] {
        let declared = declare(over).await.expect(StatusCode::CREATED);
        assert_eq!(life(&declared), bound);
        let mint = async |ttl: i64| {
            let body = json!({"credentials": [{"resource": GIT, "privilege": "read", "ttl": ttl}]});
            stand.post(&format!("/v1/tasks/{}/credentials", text(&declared, "task")), &stand.evidence(), body).await
        };
        assert_eq!(life(&mint(bound).await.expect(StatusCode::OK)), bound);
        assert_eq!(life(&mint(5).await.expect(StatusCode::OK)), 5);
        mint(bound + 1).await.refused(400, "invalid_request");
    }
}

/// The policies that the project ships for production, with a broker that is set up as its example is.
#[tokio::test]
async fn the_production_policies_work_as_they_are() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policies/production").display().to_string();
    let stand = Stand::edited(|config| with_policies(&with_facts(&config, &[]), &dir)).await;
    let registry = crate::support::REGISTRY;
    let asking = |location: &str, privilege: &str, over: Value| {
        let details = json!([{"type": "remit:access", "locations": [location], "privileges": [privilege],
            "actions": ["clone"], "identifier": "acme/payments"}]);
        let credentials = json!([{"resource": location, "privilege": privilege}]);
        let mut declaration = reading(location, over);
        declaration["authorization_details"] = details;
        declaration["credentials"] = credentials;
        declaration
    };
    let answer = stand
        .declare(asking(GIT, "read", json!({"context": {"repo": "acme/payments"}})))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(answer["policies"], json!(["ci.git-read"]));
    assert_eq!(stand.introspect(&text(&answer["credentials"][0], "access_token")).await["active"], true);
    assert_eq!(stand.revoke(&text(&answer, "task")).await.expect(StatusCode::OK)["credentials"], 1);
    let lie = stand
        .declare(asking(GIT, "read", json!({"context": {"repo": "acme/other"}})))
        .await
        .refused(403, "policy_denied");
    assert_eq!(lie["denied"][0]["policies"], json!(["guardrails.repo-as-attested"]));
    // `ref` is a full one, in the tokens of every CI system that has it; and only main pushes.
    let push = stand.declare(asking(registry, "write", json!({}))).await.expect(StatusCode::CREATED);
    assert_eq!(push["policies"], json!(["ci.registry-write"]));
    let branch = stand.issuer.evidence(&stand.broker.url, json!({"ref": "refs/heads/fix"}));
    stand.post("/v1/tasks", &branch, asking(registry, "write", json!({}))).await.refused(403, "policy_denied");

    let socket = socket_client(&stand.broker.socket);
    let agent = async |body: Value| {
        let request = socket.request(Method::POST, "http://localhost/v1/tasks").json(&body);
        Answer::of(request.send().await.unwrap()).await
    };
    let context = json!({"context": {"repo": "acme/payments"}, "data_classification": "internal"});
    let answer = agent(asking(GIT, "read", context)).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["policies"], life(&answer)), (&json!(["agents.git-read"]), 300));
    let silent =
        agent(asking(GIT, "read", json!({"context": {"repo": "acme/payments"}}))).await.refused(403, "policy_denied");
    assert_eq!(silent["denied"][0]["policies"], json!(["guardrails.restricted-data"]));
    let context = json!({"context": {"repo": "acme/payments"}, "data_classification": "internal"});
    let secret = agent(asking(GIT, "secret", context)).await.refused(403, "policy_denied");
    assert_eq!(secret["denied"][0]["policies"], json!(["guardrails.secrets"]));
}
