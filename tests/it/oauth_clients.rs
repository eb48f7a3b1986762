//! OAuth clients that are not ours, unmodified: an agent gets its tokens, and a service checks them, with Authlib and with
//! openid-client. Each finds the broker by its metadata alone.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    both,
    clients::{node, python},
    support::{GIT, GIT_TOKEN, NOWHERE, REGISTRY, Stand, declaration, text},
};

enum Client {
    Authlib,
    OpenidClient,
}

impl Client {
    /// What comes of token requests, or of using the answers to some.
    async fn run(&self, stand: &Stand, asked: &[Value]) -> Vec<Value> {
        let lines: Vec<_> = asked.iter().map(Value::to_string).collect();
        let lines: Vec<_> = lines.iter().map(|line| &**line).collect();
        let arguments = [&*stand.broker.url, GIT, GIT_TOKEN];
        let said = match self {
            Client::Authlib => python("oauth.py", &arguments, &lines).await,
            Client::OpenidClient => node("oauth.mjs", &arguments, &lines).await,
        };
        said.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// What it throws where the broker refuses.
    fn error(&self) -> &'static str {
        match self {
            Client::Authlib => "OAuthError",
            Client::OpenidClient => "ResponseBodyError",
        }
    }
}

/// The parameters of a token exchange, without the grant type.
#[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
fn exchange(stand: &Stand, over: Value) -> Value {
    let kind = "urn:ietf:params:oauth:token-type:jwt";
    let mut asked = json!({"subject_token": stand.evidence(), "subject_token_type": kind});
    for (name, value) in over.as_object().unwrap() {
        asked[name] = value.clone();
    }
    asked
}

/// Asks for a task with that privilege at the registry beside the usual ones at git, and in the same call for a token to read at git.
fn declare(stand: &Stand, privilege: &str) -> Value {
    let mut detail = declaration();
    detail["type"] = json!("remit:declaration");
    let registry = json!({"type": "remit:access", "locations": [REGISTRY], "privileges": [privilege]});
    detail["authorization_details"].as_array_mut().unwrap().push(registry);
    detail.as_object_mut().unwrap().remove("credentials");
    exchange(stand, json!({"authorization_details": json!([detail]).to_string(), "resource": GIT, "scope": "read"}))
}

/// What the service said to a token: by the broker's keys, and by introspection.
fn service_said(outcome: &Value) -> (&str, &str) {
    let said = |check: &str| outcome[check].as_str().unwrap_or_else(|| panic!("{outcome}"));
    (said("by_keys"), said("by_asking"))
}

/// The life of a task, as such a client sees it.
async fn lives_a_task(client: Client, stand: &Stand) {
    let first = client.run(stand, &[declare(stand, "read")]).await.remove(0);
    let task = text(&first["answer"], "task");
    let served = &*format!("200 {task}");
    assert_eq!(service_said(&first), (served, served));

    let scope = |privilege: &str| format!("{task} {privilege}");
    let detail = json!([{"type": "remit:task", "identifier": task, "locations": [GIT], "privileges": ["read"]}]);
    let asked = [
        exchange(stand, json!({"resource": GIT, "scope": scope("read")})),
        exchange(stand, json!({"authorization_details": detail.to_string()})),
        exchange(stand, json!({"resource": GIT, "scope": scope("write")})),
        exchange(stand, json!({"resource": REGISTRY, "scope": scope("read")})),
    ];
    let more = client.run(stand, &asked).await;
    for read in &more[..2] {
        assert_eq!(read["answer"]["scope"], "read");
        assert!(read["answer"]["expires_in"].as_i64().is_some_and(|left| (290..=300).contains(&left)), "{read}");
        assert_eq!(service_said(read), (served, served));
    }
    assert_eq!(service_said(&more[2]), ("403 insufficient_scope", "403 insufficient_scope"));
    assert_eq!(service_said(&more[3]), ("401 invalid_token", "401 invalid_token"));

    stand.revoke(&task).await.expect(StatusCode::OK);
    let again = exchange(stand, json!({"resource": GIT, "scope": scope("read")}));
    let after = client.run(stand, &[first["answer"].clone(), again]).await;
    // No revoke changes a signature, and whoever asks is told.
    assert_eq!(service_said(&after[0]), (served, "401 invalid_token"));
    assert_eq!((&after[1]["class"], &after[1]["error"]), (&json!(client.error()), &json!("invalid_grant")));
}

/// What the broker refuses arrives as the library's own error, with the code of the standard and words for a person.
async fn understands_refusals(client: Client, stand: &Stand) {
    let (task, _) = stand.task_with_token().await;
    let scope = |privilege: &str| format!("{task} {privilege}");
    let rows = [
        (json!({"resource": NOWHERE, "scope": scope("read")}), "invalid_target"),
        (json!({"resource": REGISTRY, "scope": scope("read")}), "invalid_target"),
        (json!({"resource": GIT, "scope": scope("everything")}), "invalid_scope"),
        (json!({"resource": GIT, "scope": scope("secret")}), "invalid_scope"),
        (json!({"resource": GIT, "scope": scope("read"), "subject_token": "e30.e30.e30"}), "invalid_request"),
        (json!({"authorization_details": "{"}), "invalid_authorization_details"),
        (declare(stand, "write"), "unauthorized_client"),
    ];
    let asked: Vec<_> = rows.iter().map(|(over, _)| exchange(stand, over.clone())).collect();
    for (refused, (over, code)) in client.run(stand, &asked).await.iter().zip(&rows) {
        assert_eq!((&refused["class"], &refused["error"]), (&json!(client.error()), &json!(code)), "{over}");
        assert!(!text(refused, "description").is_empty(), "{over}");
    }
}

both! {
    async fn authlib_lives_a_task(stand) {
        lives_a_task(Client::Authlib, &stand).await;
    }

    async fn authlib_understands_refusals(stand) {
        understands_refusals(Client::Authlib, &stand).await;
    }

    async fn openid_client_lives_a_task(stand) {
        lives_a_task(Client::OpenidClient, &stand).await;
    }

    async fn openid_client_understands_refusals(stand) {
        understands_refusals(Client::OpenidClient, &stand).await;
    }
}
