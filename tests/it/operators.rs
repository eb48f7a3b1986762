//! Who may do what: every route of the broker, called by everybody.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{collections::BTreeSet, path::Path};

use crate::{
    both,
    support::{
        ADMIN, Answer, GIT, GIT_TOKEN, KEYTOOL_CSR, RESPONDER, Stand, VIEWER, a_list, declaration, operations, part,
        socket_client, text,
    },
};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// Everybody who calls. The last two are workloads too, and still not the right ones.
const CALLERS: [&str; 9] =
    ["nobody", "garbage", "workload", "viewer", "responder", "admin", "service", "other instance", "minted token"];

/// What comes back.
type Expected = (u16, &'static str);

const OK: Expected = (200, "");
const CREATED: Expected = (201, "");
/// An unknown caller, on our own API and on `/oauth2/*`.
const WHO: Expected = (401, "evidence_invalid");
const CLIENT: Expected = (401, "invalid_client");
/// A known caller who may not.
const ROLE: Expected = (403, "policy_denied");
const FOREIGN: Expected = (404, "not_found");
/// A subject token that is none, and one of a party that is no workload.
const SUBJECT: Expected = (400, "invalid_request");
const PARTY: Expected = (400, "invalid_request");
const GRANT: Expected = (400, "invalid_grant");

/// Method, path, and what each of [`CALLERS`] gets. A token endpoint takes evidence as `subject_token`, never as `Authorization`,
/// so it stands here twice.
type Row = (&'static str, &'static str, [Expected; 9]);

const MATRIX: [Row; 26] = [
    ("GET", "/.well-known/oauth-authorization-server", [OK; 9]),
    ("GET", "/.well-known/openid-configuration", [OK; 9]),
    ("GET", "/jwks", [OK; 9]),
    ("GET", "/spiffe/bundle", [OK; 9]),
    ("GET", "/pki/ca.pem", [OK; 9]),
    ("GET", "/pki/crl/{id}", [OK; 9]),
    ("GET", "/pki/crl.pem", [OK; 9]),
    ("GET", "/status-lists/{id}", [OK; 9]),
    ("GET", "/healthz", [OK; 9]),
    ("GET", "/readyz", [OK; 9]),
    ("GET", "/metrics", [OK; 9]),
    ("GET", "/openapi.json", [OK; 9]),
    ("POST", "/oauth2/token", [SUBJECT, CLIENT, CLIENT, CLIENT, CLIENT, CLIENT, CLIENT, CLIENT, CLIENT]),
    ("POST", "/oauth2/token?subject", [SUBJECT, SUBJECT, OK, PARTY, PARTY, PARTY, PARTY, GRANT, SUBJECT]),
    ("POST", "/oauth2/introspect", [CLIENT, CLIENT, CLIENT, OK, OK, OK, OK, CLIENT, CLIENT]),
    ("GET", "/v1/keys", [WHO, WHO, ROLE, OK, OK, OK, ROLE, ROLE, WHO]),
    ("POST", "/v1/keys/rotate", [WHO, WHO, ROLE, ROLE, ROLE, OK, ROLE, ROLE, WHO]),
    ("POST", "/v1/keys/{id}/taint", [WHO, WHO, ROLE, ROLE, ROLE, OK, ROLE, ROLE, WHO]),
    ("POST", "/v1/tasks", [WHO, WHO, CREATED, ROLE, ROLE, ROLE, ROLE, CREATED, WHO]),
    ("GET", "/v1/tasks", [WHO, WHO, OK, OK, OK, OK, ROLE, OK, WHO]),
    ("GET", "/v1/tasks/{id}", [WHO, WHO, OK, OK, OK, OK, ROLE, FOREIGN, WHO]),
    ("POST", "/v1/tasks/{id}/credentials", [WHO, WHO, OK, ROLE, ROLE, ROLE, ROLE, FOREIGN, WHO]),
    ("POST", "/v1/tasks/{id}/certificate", [WHO, WHO, OK, ROLE, ROLE, ROLE, ROLE, FOREIGN, WHO]),
    ("POST", "/v1/tasks/{id}/renew", [WHO, WHO, OK, ROLE, ROLE, ROLE, ROLE, FOREIGN, WHO]),
    ("POST", "/v1/tasks/{id}/complete", [WHO, WHO, OK, ROLE, ROLE, ROLE, ROLE, FOREIGN, WHO]),
    ("POST", "/v1/tasks/{id}/revoke", [WHO, WHO, OK, ROLE, OK, ROLE, ROLE, FOREIGN, WHO]),
];

fn bearer(stand: &Stand, caller: &str, token: &str) -> Option<String> {
    Some(match caller {
        "nobody" => return None,
        "garbage" => "garbage".to_owned(),
        "workload" => stand.evidence(),
        "viewer" => VIEWER.to_owned(),
        "responder" => RESPONDER.to_owned(),
        "admin" => ADMIN.to_owned(),
        "service" => GIT_TOKEN.to_owned(),
        "other instance" => stand.other_instance(),
        "minted token" => token.to_owned(),
        other => panic!("{other} is nobody"),
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
        "/oauth2/introspect" => vec![("token".to_owned(), token.to_owned())],
        _ => {
            let body = match path {
                "/v1/tasks" if method == "POST" => Some(declaration()),
                "/v1/tasks/{id}/credentials" => Some(json!({"credentials": [{"resource": GIT, "privilege": "read"}]})),
                "/v1/tasks/{id}/certificate" => Some(json!({"csr": KEYTOOL_CSR})),
                "/v1/tasks/{id}/renew" => Some(json!({"ttl": 60})),
                "/v1/keys/rotate" | "/v1/keys/{id}/taint" | "/v1/tasks/{id}/complete" | "/v1/tasks/{id}/revoke" => {
                    Some(json!({"reason": "r"}))
                }
                _ => None,
            };
            let method = method.parse::<Method>().expect("a method");
            let id = match path {
                "/status-lists/{id}" => "0".to_owned(),
                "/pki/crl/{id}" => a_list(stand).await,
                "/v1/keys/{id}/taint" => text(&part(token, 0), "kid"),
                _ => task.to_owned(),
            };
            return stand.call(method, &path.replace("{id}", &id), bearer, body).await;
        }
    };
    let form: Vec<_> = form.iter().map(|(name, value)| (&**name, &**value)).collect();
    let bearer = bearer.filter(|_| path != "/oauth2/token?subject");
    stand.form(path.split('?').next().expect("a path"), bearer, &form).await
}

both! {
    async fn everybody_at_every_route(stand) {
        for (method, path, expected) in MATRIX {
            for (caller, (status, code)) in CALLERS.into_iter().zip(expected) {
                // A task of its own for every call: some of them end it.
                let (task, token) = stand.task_with_token().await;
                let answer = call(&stand, method, path, bearer(&stand, caller, &token).as_deref(), (&task, &token)).await;
                assert_eq!(answer.status.as_u16(), status, "{method} {path} as {caller}: {}", answer.text);
                if path.starts_with("/pki/") {
                    continue;
                }
                if path == "/metrics" {
                    assert!(answer.text.starts_with("# HELP "), "{}", answer.text);
                    continue;
                }
                if path.starts_with("/status-lists/") {
                    continue;
                }
                let body = answer.json();
                match code {
                    "" => assert!(body.get("code").is_none() && body.get("error").is_none(), "{method} {path} as {caller}: {body}"),
                    _ if path.starts_with("/oauth2/") => drop(answer.oauth_refused(status, code)),
                    _ => drop(answer.refused(status, code)),
                }
                // Who was refused changed nothing.
                if status >= 400 {
                    assert_eq!(stand.introspect(&token).await["active"], true, "{method} {path} as {caller} ended a task");
                }
            }
        }
    }

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

/// A route has an operation, or it does not compile; here the operation has a row, and the row an operation.
#[test]
fn no_operation_is_missing() {
    let matrix: BTreeSet<_> =
        MATRIX.iter().map(|(method, path, _)| ((*method).to_owned(), path.split('?').next().unwrap())).collect();
    let operations: BTreeSet<_> = operations().map(|(method, path, _)| (method, path)).collect();
    assert!(operations.len() >= 18, "{operations:?}");
    assert_eq!(matrix, operations, "the matrix and the OpenAPI document differ");
    let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/mod.rs")).unwrap();
    for other in [".route(", ".nest(", ".route_service(", ".nest_service("] {
        assert!(!source.contains(other), "routes that `{other}` brings are in no document");
    }
}

/// Whom the document names is who gets through, and nobody else.
#[test]
fn callers_are_who_the_document_says() {
    for (method, path, said) in operations() {
        let named: Vec<_> = said["x-remit-callers"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let rows = MATRIX.iter().filter(|(m, p, _)| *m == method && p.split('?').next() == Some(path));
        let rows: Vec<_> = rows.map(|(.., row)| row).collect();
        for (at, caller) in CALLERS.into_iter().enumerate() {
            let passes = rows.iter().any(|row| row[at].0 < 400);
            let as_operator = ["viewer", "responder", "admin"].contains(&caller) && named.contains(&"viewer");
            // Another instance is a workload, too: it gets through where no task of its own is asked for.
            let as_workload = caller == "other instance" && !path.contains("{id}") && path != "/oauth2/token";
            let may = named.contains(&"anyone")
                || named.contains(&caller)
                || as_operator
                || (as_workload && named.contains(&"workload"));
            assert_eq!(may, passes, "{method} {path} as {caller}: the document names {named:?}");
        }
    }
}

/// The answer of a route that is none says nothing about who may call it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_nothing_beside_the_routes() {
    let stand = Stand::new(crate::support::Store::Embedded).await;
    for path in ["/", "/v1", "/v1/tasks/", "/v1/operators", "/metrics/", "/v1/tasks/../tasks//", "/oauth2/revoke"] {
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
