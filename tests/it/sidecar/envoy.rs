//! Envoy over gRPC, by its published messages.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::Sidecar;
use crate::{
    clients::python,
    mtls::{Place, own},
    support::{OWNER, Prover, REGISTRY, Stand, Store, secrets, text, wait_for},
};

impl Sidecar {
    async fn check(&self, requests: &[Value]) -> Vec<Value> {
        let requests: Vec<_> = requests.iter().map(Value::to_string).collect();
        let requests: Vec<_> = requests.iter().map(String::as_str).collect();
        let said = python("ext_authz.py", &[self.url.trim_start_matches("http://")], &requests).await;
        said.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// A request, as Envoy would tell of it.
fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Value {
    let mut all = BTreeMap::from([(":method", method), (":path", path), (":authority", "registry.example.com")]);
    all.extend(headers.iter().copied());
    json!({"attributes": {"source": {"address": {"socketAddress": {"address": "192.0.2.1", "portValue": 4711}}},
        "request": {"http": {"id": "1", "method": method, "path": path, "host": "registry.example.com", "scheme": "https",
            "protocol": "HTTP/2", "headers": all}}}})
}

fn with(mut request: Value, pointer: &str, value: Value) -> Value {
    let (parent, member) = pointer.rsplit_once('/').unwrap();
    request.pointer_mut(parent).unwrap()[member] = value;
    request
}

/// The status of a refusal and what it asks for; 200 for none.
fn outcome(said: &Value) -> (u16, String) {
    if let Some(ok) = said.get("ok_response") {
        assert_eq!(said["status"], json!({}), "code 0 is not written: {ok}");
        return (200, String::new());
    }
    let denied = &said["denied_response"];
    assert!(said["status"]["code"].as_u64().is_some_and(|code| code > 0), "{said}");
    let status = match denied["status"]["code"].as_str().unwrap_or_else(|| panic!("{said}")) {
        "BadRequest" => 400,
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "ServiceUnavailable" => 503,
        other => panic!("{other}"),
    };
    let header =
        &denied["headers"].as_array().filter(|headers| headers.len() == 1).unwrap_or_else(|| panic!("{said}"))[0];
    (status, text(&header["header"], "value"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_hears_who_calls_until_the_task_is_revoked() {
    let mut stand = Stand::new(Store::Redis).await;
    let sidecar = Sidecar::new(&stand).await;
    let (task, token) = stand.task_with_token().await;
    secrets::note_token("a token", &token);
    let bearer = format!("Bearer {token}");
    let authorization = [("authorization", &*bearer)];
    let good = request("GET", "/notes?page=1", &authorization);
    let raw = with(
        request("GET", "/notes", &[]),
        "/attributes/request/http/header_map",
        json!({"headers": [{"key": ":path", "raw_value": ""}, {"key": "authorization", "raw_value": BASE64_STANDARD.encode(&bearer)}]}),
    );
    let demanding = |privilege: &str| {
        with(good.clone(), "/attributes/contextExtensions", json!({"privilege": privilege, "else": "x"}))
    };
    let said = sidecar.check(&[good.clone(), raw.clone(), demanding("read")]).await;
    for said in &said {
        assert_eq!(outcome(said), (200, String::new()));
        let headers = said["ok_response"]["headers"].as_array().unwrap().iter();
        assert!(headers.clone().all(|header| header["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"), "{said}");
        let headers: BTreeMap<_, _> =
            headers.map(|header| (text(&header["header"], "key"), text(&header["header"], "value"))).collect();
        let workload = "spiffe://example.com/ci/acme/payments";
        for (name, value) in
            [("remit-task", &*task), ("remit-workload", workload), ("remit-owner", OWNER), ("remit-privilege", "read")]
        {
            assert_eq!(headers[name], value);
        }
        // What is not said is taken away: a client may have said it.
        assert_eq!(said["ok_response"]["headers_to_remove"], json!(["remit-actor"]));
        assert_eq!(headers.len(), 9);
    }
    let twice = with(raw, "/attributes/request/http/headers/authorization", json!(bearer));
    let merged = format!("{bearer},{bearer}");
    let invalid = "Bearer error=\"invalid_token\"";
    let malformed = "Bearer error=\"invalid_request\"";
    let nothing = "Bearer, DPoP algs=\"ES256 ES384 Ed25519 EdDSA PS256 RS256\"";
    let table = [
        (request("GET", "/", &[]), 401, nothing),
        (json!({}), 400, malformed),
        (json!({"attributes": {}}), 400, malformed),
        (request("", "/", &authorization), 400, malformed),
        (request("GET", "", &authorization), 400, malformed),
        (request("GET", "*", &authorization), 400, malformed),
        (request("GET", "/x?access_token=t", &authorization), 400, malformed),
        (request("GET", "/", &[("authorization", &merged)]), 401, invalid),
        (twice, 401, nothing),
        (request("GET", "/", &[authorization[0], ("bad name", "x")]), 400, malformed),
        (request("GET", "/", &[authorization[0], ("x", "a\r\nb")]), 400, malformed),
        (request("GET", "/", &[("authorization", &bearer[..bearer.len() - 2])]), 401, invalid),
        (demanding("write"), 403, "Bearer error=\"insufficient_scope\", scope=\"write\""),
        (demanding("all"), 400, malformed),
        (with(good.clone(), "/attributes/source/certificate", json!("%zz")), 400, malformed),
    ];
    let said = sidecar.check(&table.each_ref().map(|(request, ..)| request.clone())).await;
    for ((request, status, asks), said) in table.iter().zip(&said) {
        assert_eq!(outcome(said), (*status, (*asks).to_owned()), "{request}");
    }
    // What it cannot read it does not let through.
    let large = request("GET", "/", &[authorization[0], ("x", &"y".repeat(70_000))]);
    assert!(sidecar.check(&[large]).await[0]["failed"].is_string());

    stand.revoke(&task).await.expect(StatusCode::OK);
    wait_for("the revoke", || async { sidecar.bearer(&token).await != 200 }).await;
    assert_eq!(outcome(&sidecar.check(std::slice::from_ref(&good)).await[0]), (401, invalid.to_owned()));
    let (_, other) = stand.task_with_token().await;
    let other = request("GET", "/", &[("authorization", &format!("Bearer {other}"))]);
    assert_eq!(outcome(&sidecar.check(std::slice::from_ref(&other)).await[0]).0, 200);
    stand.broker.stop().await;
    wait_for("the window to pass", || async { sidecar.get("/readyz", &[]).await.status != StatusCode::OK }).await;
    assert_eq!(outcome(&sidecar.check(&[other]).await[0]), (503, "1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_tells_of_proofs_and_certificates() {
    let place = Place::of(Stand::new(Store::Embedded).await).await;
    let (stand, mine, thief) = (&place.stand, own(), own());
    let sidecar = Sidecar::of(stand, REGISTRY, &[]).await;
    let evidence = stand.evidence();
    let task = place.declare(Some(&mine), Some(&evidence)).await;
    let token = text(&place.minted(Some(&mine), Some(&evidence), &task, REGISTRY).await, "access_token");
    let bearer = format!("Bearer {token}");
    let asked = request("GET", "/", &[("authorization", &bearer)]);
    let shown = |identity: &crate::support::pki::Identity| {
        let escaped = identity.certificate.pem().replace('\n', "%0A").replace(' ', "%20").replace('+', "%2B");
        with(asked.clone(), "/attributes/source/certificate", json!(escaped))
    };
    let said = sidecar.check(&[shown(&mine), shown(&thief), asked.clone()]).await;
    assert_eq!(said.iter().map(|said| outcome(said).0).collect::<Vec<_>>(), [200, 401, 401]);

    let prover = Prover::new();
    let token = stand.bound_token(&prover).await;
    let (presented, ath) = (format!("DPoP {token}"), remit::id::sha256_base64url(token.as_bytes()));
    let ask = |path: &str, proof: &str| request("GET", path, &[("authorization", &presented), ("dpop", proof)]);
    let proof = prover.proof("GET", "https://registry.example.com/notes", json!({"ath": ath}));
    let said = sidecar.check(&[ask("/other", &proof), ask("/notes?page=1", &proof), ask("/notes", &proof)]).await;
    assert_eq!(said.iter().map(|said| outcome(said).0).collect::<Vec<_>>(), [401, 200, 401]);
    assert!(outcome(&said[2]).1.starts_with("DPoP error=\"invalid_token\", algs="));
}
