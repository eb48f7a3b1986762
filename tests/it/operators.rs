//! Who may do what: every operation of the OpenAPI document, called by everybody. The document says who gets through; nobody else does.

use remit::{
    clock::{Clock as _, SystemClock},
    task::digest,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use crate::{
    both,
    signals::{RECEIVER_TOKEN, polls},
    support::{
        ADMIN, APPROVER, Answer, GIT, GIT_TOKEN, KEYTOOL_CSR, RESPONDER, Stand, Store, VIEWER, a_list, claims,
        declaration, operations, part, people, socket_client, text,
    },
};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// Everybody who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Nobody,
    Garbage,
    /// The instance whose task it is.
    Workload,
    OtherInstance,
    /// Whoever has a credential that the broker minted.
    MintedToken,
    Service,
    /// An operator with this one role, by a token of the configuration.
    Operator(&'static str),
    /// The same, by a token of the operators' issuer.
    Person(&'static str),
    /// Somebody who acts for the owner of the task, or for another one.
    Owner,
    OtherOwner,
    /// Somebody whom the operators' issuer knows, and the configuration does not.
    Stranger,
    /// A receiver of Shared Signals that asks.
    Receiver,
}

use Caller::{
    Garbage, MintedToken, Nobody, Operator, OtherInstance, OtherOwner, Owner, Person, Receiver, Service, Stranger,
    Workload,
};

const ROLES: [&str; 4] = ["viewer", "responder", "approver", "admin"];

const CALLERS: [Caller; 18] = [
    Nobody,
    Garbage,
    Workload,
    OtherInstance,
    MintedToken,
    Service,
    Operator("viewer"),
    Operator("responder"),
    Operator("approver"),
    Operator("admin"),
    Person("viewer"),
    Person("responder"),
    Person("approver"),
    Person("admin"),
    Owner,
    OtherOwner,
    Stranger,
    Receiver,
];

/// What comes back: the status, and the code of an error.
type Expected = (u16, &'static str);

/// An unknown caller, on our own API and on `/oauth2/*`.
const WHO: Expected = (401, "evidence_invalid");
const CLIENT: Expected = (401, "invalid_client");
/// A known caller who may not.
const ROLE: Expected = (403, "policy_denied");
const FOREIGN: Expected = (404, "not_found");

/// What the document lists under this name for an operation.
fn listed(operation: &'static Value, member: &str) -> BTreeSet<&'static str> {
    operation[member].as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

/// Whether the document lets them through.
fn may(caller: Caller, path: &str, operation: &'static Value) -> bool {
    let (callers, roles) = (listed(operation, "x-remit-callers"), listed(operation, "x-remit-roles"));
    // Whoever says who they are has to be that, also where nobody has to say.
    let is_nobody = path == "/v1/revocations" && matches!(caller, Garbage | MintedToken | Stranger | Receiver);
    (callers.contains("anyone") && !is_nobody)
        || match caller {
            Nobody | Garbage | MintedToken | Stranger => false,
            Workload => callers.contains("workload"),
            Service => callers.contains("service"),
            Receiver => callers.contains("receiver"),
            Operator(role) | Person(role) => roles.contains(role),
            Owner => callers.contains("owner"),
            // What is another's is not there for them; what is about nothing in particular is.
            OtherInstance => callers.contains("workload") && !path.contains("{id}"),
            OtherOwner => callers.contains("owner") && !path.contains("{id}"),
        }
}

/// How somebody is refused.
fn refusal(caller: Caller, path: &str, operation: &'static Value) -> Expected {
    let callers = listed(operation, "x-remit-callers");
    match caller {
        _ if path.starts_with("/oauth2/") => CLIENT,
        Nobody | Garbage | MintedToken | Receiver => WHO,
        OtherInstance if callers.contains("workload") => FOREIGN,
        OtherOwner if callers.contains("owner") => FOREIGN,
        Workload | OtherInstance | Service | Operator(_) | Person(_) | Owner | OtherOwner | Stranger => ROLE,
    }
}

/// The token endpoint takes evidence as `subject_token`, and never as `Authorization`.
fn at_the_token_endpoint(caller: Caller, as_subject: bool) -> Option<Expected> {
    if caller == Nobody {
        return Some((400, "invalid_request"));
    }
    match (as_subject, caller) {
        (false, _) => Some(CLIENT),
        (true, Workload) => None,
        (true, OtherInstance) => Some((400, "invalid_grant")),
        (true, _) => Some((400, "invalid_request")),
    }
}

fn bearer(stand: &Stand, caller: Caller, token: &str) -> Option<String> {
    Some(match caller {
        Nobody => return None,
        Garbage => "garbage".to_owned(),
        Workload => stand.evidence(),
        OtherInstance => stand.other_instance(),
        MintedToken => token.to_owned(),
        Service => GIT_TOKEN.to_owned(),
        Operator("viewer") => VIEWER.to_owned(),
        Operator("responder") => RESPONDER.to_owned(),
        Operator("approver") => APPROVER.to_owned(),
        Operator("admin") => ADMIN.to_owned(),
        Operator(other) => panic!("{other} is no role"),
        Person(role) => stand.person(&[&format!("sec-{role}s")]),
        Owner => stand.person(&["payments"]),
        OtherOwner => stand.person(&["others"]),
        Stranger => stand.person(&["all-employees"]),
        Receiver => RECEIVER_TOKEN.to_owned(),
    })
}

/// Sends what would work for the right caller.
async fn call(stand: &Stand, method: &str, path: &str, bearer: Option<&str>, (task, token): (&str, &str)) -> Answer {
    let scope = format!("{task} read");
    let exchange = |subject: Option<&str>| {
        let subject = subject.map(|token| [("subject_token", token), ("subject_token_type", JWT)]);
        let form = [("grant_type", EXCHANGE), ("resource", GIT), ("scope", &scope)];
        form.into_iter()
            .chain(subject.into_iter().flatten())
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect::<Vec<_>>()
    };
    let form = match path {
        "/oauth2/token" => exchange(None),
        "/oauth2/token?subject" => exchange(bearer),
        "/oauth2/introspect" | "/oauth2/revoke" => vec![("token".to_owned(), token.to_owned())],
        _ => {
            let body = match path {
                "/v1/tasks" if method == "POST" => Some(declaration()),
                "/v1/tasks/{id}/credentials" => Some(json!({"credentials": [{"resource": GIT, "privilege": "read"}]})),
                "/v1/tasks/{id}/certificate" => Some(json!({"csr": KEYTOOL_CSR})),
                "/v1/tasks/{id}/reports" => {
                    let report =
                        json!({"kind": "prompt", "label": "plan", "digest": digest(b""), "size": 0, "sequence": 1});
                    let service = bearer == Some(GIT_TOKEN);
                    let lease = service.then(|| claims(token)["jti"].clone()).into_iter();
                    let members = lease.map(|lease| ("lease".to_owned(), lease));
                    Some(members.chain([("reports".to_owned(), json!([report]))]).collect())
                }
                "/access/v1/evaluation" | "/access/v1/evaluations" => Some(json!({
                    "subject": {"type": "workload", "id": "it", "properties": {"token": token}},
                    "action": {"name": "clone"}, "resource": {"type": "repository", "id": "acme/payments"}})),
                "/v1/tasks/{id}/renew" => Some(json!({"ttl": 60})),
                "/v1/revocations/ack" => {
                    let state = claims(&stand.call(Method::GET, "/v1/revocations", None, None).await.text);
                    Some(json!({"broker": state["broker"], "sequence": state["sequence"]}))
                }
                "/v1/locks" if method == "POST" => Some(elsewhere()),
                "/v1/locks/{id}/extend" => Some(json!({"until": in_minutes(20), "reason": "r"})),
                "/ssf/v1/verify" => Some(json!({"stream_id": "archive"})),
                "/ssf/v1/poll" => Some(json!({"returnImmediately": true})),
                "/v1/keys/rotate"
                | "/v1/keys/{id}/taint"
                | "/v1/leases/{id}/revoke"
                | "/v1/locks/{id}/release"
                | "/v1/tasks/{id}/complete"
                | "/v1/tasks/{id}/revoke" => Some(json!({"reason": "r"})),
                _ => None,
            };
            let method = method.parse::<Method>().expect("a method");
            let id = match path {
                "/status-lists/{id}" => "0".to_owned(),
                "/pki/crl/{id}" => a_list(stand).await,
                "/v1/keys/{id}/taint" => text(&part(token, 0), "kid"),
                _ if path.starts_with("/v1/locks/{id}") => a_lock(stand).await,
                "/v1/leases/{id}/revoke" => text(&claims(token), "jti"),
                _ => task.to_owned(),
            };
            let query = match path {
                "/v1/search" => format!("?q={task}"),
                "/ssf/v1/status" => "?stream_id=archive".to_owned(),
                _ => String::new(),
            };
            return stand.call(method, &format!("{}{query}", path.replace("{id}", &id)), bearer, body).await;
        }
    };
    let form: Vec<_> = form.iter().map(|(name, value)| (&**name, &**value)).collect();
    let bearer = bearer.filter(|_| path != "/oauth2/token?subject");
    stand.form(path.split('?').next().expect("a path"), bearer, &form).await
}

fn in_minutes(minutes: i64) -> chrono::DateTime<chrono::Utc> {
    SystemClock.now() + chrono::TimeDelta::minutes(minutes)
}

/// A lock that keeps out nobody who is here.
fn elsewhere() -> Value {
    json!({"match": {"sandbox": "sb-elsewhere"}, "until": in_minutes(10), "reason": "r"})
}

/// The id of such a lock.
pub(crate) async fn a_lock(stand: &Stand) -> String {
    text(&stand.post("/v1/locks", RESPONDER, elsewhere()).await.expect(StatusCode::CREATED), "lock")
}

/// Everybody at every operation gets what the document says.
async fn everybody_at_every_operation(stand: Stand) {
    for (method, path, operation) in operations() {
        let ways: &[&str] = if path == "/oauth2/token" { &["/oauth2/token", "/oauth2/token?subject"] } else { &[path] };
        for (way, caller) in ways.iter().flat_map(|way| CALLERS.map(|caller| (*way, caller))) {
            // A task of its own for every call: some of them end it.
            let (task, token) = stand.task_with_token().await;
            let bearer = bearer(&stand, caller, &token);
            let answer = call(&stand, &method, way, bearer.as_deref(), (&task, &token)).await;
            let expected = match path {
                "/oauth2/token" => at_the_token_endpoint(caller, way.ends_with("subject")),
                _ if may(caller, path, operation) => None,
                _ => Some(refusal(caller, path, operation)),
            };
            let Some((status, code)) = expected else {
                assert!(answer.status.is_success(), "{method} {way} as {caller:?}: {}", answer.text);
                continue;
            };
            assert_eq!(answer.status.as_u16(), status, "{method} {way} as {caller:?}: {}", answer.text);
            if path.starts_with("/oauth2/") {
                answer.oauth_refused(status, code);
            } else {
                answer.refused(status, code);
            }
            // Who was refused changed nothing.
            assert_eq!(stand.introspect(&token).await["active"], true, "{method} {way} as {caller:?} ended a task");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_on_the_embedded_store() {
    everybody_at_every_operation(Stand::with(Store::Embedded, &(people() + &polls())).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_on_redis() {
    everybody_at_every_operation(Stand::with(Store::Redis, &(people() + &polls())).await).await;
}

both! {
    /// A list holds everything for an operator, and nothing of others for a workload.
    async fn what_a_list_holds(stand) {
        let (task, _) = stand.task_with_token().await;
        for (bearer, seen) in [(VIEWER.to_owned(), 1), (stand.evidence(), 1), (stand.other_instance(), 0)] {
            let list = stand.get("/v1/tasks", &bearer).await.expect(StatusCode::OK);
            let tasks: Vec<_> = list["tasks"].as_array().unwrap().iter().map(|shown| text(shown, "task")).collect();
            assert_eq!(tasks, vec![task.clone(); seen]);
        }
    }

    /// On the socket the kernel speaks for who says nothing, and only for them.
    async fn what_is_presented_beats_the_kernel(stand) {
        let client = socket_client(&stand.broker.socket);
        let declare = async |bearer: Option<&str>| {
            let mut request = client.post("http://localhost/v1/tasks").json(&declaration());
            if let Some(bearer) = bearer {
                request = request.bearer_auth(bearer);
            }
            Answer::of(request.send().await.expect("an answer")).await
        };
        let by_kernel = declare(None).await.expect(StatusCode::CREATED);
        assert!(text(&by_kernel, "workload").starts_with("spiffe://example.com/unix/"), "{by_kernel}");
        let by_evidence = declare(Some(&stand.evidence())).await.expect(StatusCode::CREATED);
        assert_eq!(by_evidence["workload"], "spiffe://example.com/ci/acme/payments");
        declare(Some("garbage")).await.refused(401, "evidence_invalid");
        for party in [VIEWER, RESPONDER, ADMIN, GIT_TOKEN] {
            declare(Some(party)).await.refused(403, "policy_denied");
        }
        // Nor does a token where none is looked for leave the kernel to speak for the caller.
        let in_query = client.post("http://localhost/v1/tasks?access_token=garbage").json(&declaration());
        Answer::of(in_query.send().await.expect("an answer")).await.refused(401, "evidence_invalid");
    }
}

/// A route has an operation, or it does not compile.
#[test]
fn no_operation_is_missing() {
    let known = operations().count();
    assert!(known >= 28, "{known}");
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/mod.rs")).unwrap();
    for other in [".route(", ".nest(", ".route_service(", ".nest_service("] {
        assert!(!source.contains(other), "routes that `{other}` brings are in no document");
    }
}

/// Every operation that changes something, and whom the document lets do it. None of them is about who may do what, about policies, or
/// about where the broker keeps what it records: those stand in files, and nobody gives themselves more by the API.
#[test]
fn nothing_that_can_be_called_says_who_may_do_what() {
    let changing: Vec<_> = operations()
        .filter(|(method, ..)| method != "GET")
        .map(|(method, path, said)| {
            let callers = said["x-remit-callers"].as_array().unwrap().iter().filter_map(Value::as_str);
            format!("{method} {path}: {}", callers.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let known = [
        "POST /access/v1/evaluation: service",
        "POST /access/v1/evaluations: service",
        "POST /oauth2/introspect: service, viewer",
        "POST /oauth2/revoke: workload",
        "POST /oauth2/token: workload",
        "POST /ssf/v1/poll: receiver",
        "POST /ssf/v1/verify: receiver, admin",
        "POST /v1/keys/rotate: admin",
        "POST /v1/keys/{id}/taint: admin",
        "POST /v1/leases/{id}/revoke: workload, responder, owner",
        "POST /v1/locks: responder",
        "POST /v1/locks/{id}/extend: approver",
        "POST /v1/locks/{id}/release: approver",
        "POST /v1/revocations/ack: service",
        "POST /v1/tasks: workload",
        "POST /v1/tasks/{id}/certificate: workload",
        "POST /v1/tasks/{id}/complete: workload",
        "POST /v1/tasks/{id}/credentials: workload",
        "POST /v1/tasks/{id}/renew: workload",
        "POST /v1/tasks/{id}/reports: workload, service",
        "POST /v1/tasks/{id}/revoke: workload, responder, owner",
    ];
    assert_eq!(changing, known, "an operation is new: who may call it, and can it give anybody more than they had?");
    // Nor does what they take have a place for it.
    let members: BTreeSet<_> = operations()
        .flat_map(|(_, _, said)| crate::support::taken(said))
        .filter(|name| {
            ["role", "operator", "policy", "policies", "sink", "path", "file", "exec", "audit"]
                .iter()
                .any(|word| name.contains(word))
        })
        .collect();
    assert_eq!(members, BTreeSet::new());
}

/// The table of the README is that of the document.
#[test]
fn the_readme_has_the_table_of_roles() {
    let mut table =
        String::from("| operation | viewer | responder | approver | admin | owner |\n|---|---|---|---|---|---|\n");
    for (method, path, said) in operations() {
        let (callers, roles) = (listed(said, "x-remit-callers"), listed(said, "x-remit-roles"));
        if roles.is_empty() || callers.contains("anyone") {
            continue;
        }
        let mark = |is: bool| if is { "yes" } else { "" };
        write!(table, "| `{method} {path}` |").unwrap();
        for role in ROLES {
            write!(table, " {} |", mark(roles.contains(role))).unwrap();
        }
        writeln!(table, " {} |", if callers.contains("owner") { "its own tasks" } else { "" }).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !fs::read_to_string(root.join("README.md")).unwrap().contains(&table) {
        let new = root.join("target/roles.md");
        fs::write(&new, table).unwrap();
        panic!("the table of roles changed; if that is meant, README.md gets the one in {}", new.display());
    }
}

/// The answer of a route that is none says nothing about who may call it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_nothing_beside_the_routes() {
    let stand = Stand::new(Store::Embedded).await;
    let configuration =
        ["/v1/operators", "/v1/owners", "/v1/roles", "/v1/policies", "/v1/audit/config", "/v1/config", "/sys/audit"];
    let strange = ["/", "/v1", "/v1/tasks/", "/metrics/", "/v1/tasks/../tasks//", "/oauth2/authorize"];
    for path in strange.into_iter().chain(configuration) {
        for bearer in [None, Some(ADMIN)] {
            let answer = stand.call(Method::GET, path, bearer, None).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {}", answer.text);
        }
    }
    for (method, path) in [(Method::DELETE, "/v1/tasks"), (Method::PUT, "/jwks"), (Method::GET, "/oauth2/token")] {
        let answer = stand.call(method, path, Some(ADMIN), None).await;
        let allow = answer.headers.get("allow").cloned();
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}: {}", answer.text);
        assert!(allow.is_some() && answer.json().is_object(), "{path}");
    }
}
