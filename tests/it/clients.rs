//! Verifiers that are not ours, unmodified: `PyJWT`, jose, py-spiffe, the crate `spiffe`, a reader of status lists; and whoever reads the metadata.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{
    both,
    support::{GIT, GIT_TOKEN, REGISTRY, RESPONDER, Stand, Store, declaration, made, text},
};

/// Runs `tests/it/clients/NAME` with the Python of `target/venv`: tokens in, what it says of each out.
pub(crate) async fn python(name: &str, arguments: &[&str], tokens: &[&str]) -> Vec<String> {
    client(&made("target/venv/bin/python"), name, arguments, tokens).await
}

/// The same with Node.js and the libraries in `target/npm`, which are the first argument.
pub(crate) async fn node(name: &str, arguments: &[&str], tokens: &[&str]) -> Vec<String> {
    let libraries = made("target/npm");
    let arguments: Vec<_> = libraries.to_str().into_iter().chain(arguments.iter().copied()).collect();
    client(Path::new("node"), name, &arguments, tokens).await
}

/// The same with the crate `spiffe`, which `tests/spiffe` is made with.
pub(crate) async fn rust(arguments: &[&str], svids: &[&str]) -> Vec<String> {
    let mut command = Command::new(made("target/spiffe/debug/remit-tests-spiffe"));
    command.args(arguments);
    talk(command, svids).await
}

async fn client(program: &Path, name: &str, arguments: &[&str], tokens: &[&str]) -> Vec<String> {
    let mut command = Command::new(program);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients").join(name)).args(arguments);
    talk(command, tokens).await
}

async fn talk(mut command: Command, tokens: &[&str]) -> Vec<String> {
    command.env("no_proxy", "*").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all((tokens.join("\n") + "\n").as_bytes()).await.expect("written");
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let output = output.expect("it ends").expect("it ran");
    assert!(output.status.success(), "{command:?} failed");
    let said: Vec<_> = String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect();
    assert_eq!(said.len(), tokens.len(), "{said:?}");
    said
}

/// The same token with another character in the middle of one of its parts.
fn altered(token: &str, part: usize) -> String {
    let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    let middle = parts[part].len() / 2;
    let other = if parts[part].as_bytes()[middle] == b'A' { "B" } else { "A" };
    parts[part].replace_range(middle..=middle, other);
    parts.join(".")
}

/// A task, an access token for git, a JWT-SVID for git, and an access token for the registry.
async fn tokens(stand: &Stand) -> (String, [String; 3]) {
    let mut declaration = declaration();
    declaration["authorization_details"][0]["locations"] = json!([GIT, REGISTRY]);
    declaration["authorization_details"][0]["privileges"] = json!(["read"]);
    declaration["credentials"] = json!([
        {"resource": GIT, "privilege": "read"},
        {"resource": GIT, "privilege": "read", "type": "jwt"},
        {"resource": REGISTRY, "privilege": "read"},
    ]);
    let answer = stand.declare(declaration).await.expect(StatusCode::CREATED);
    let token = |at: usize| text(&answer["credentials"][at], "access_token");
    (text(&answer, "task"), [token(0), token(1), token(2)])
}

/// A certificate of a task with its key: the path of a file.
async fn certificate(stand: &Stand, task: &str) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("PEM");
    let path = format!("/v1/tasks/{task}/certificate");
    let answer = stand.post(&path, &stand.evidence(), json!({ "csr": csr })).await.expect(StatusCode::OK);
    let file = stand.dir.path().join(format!("{task}.pem"));
    std::fs::write(&file, text(&answer, "certificate") + &key.serialize_pem()).expect("written");
    file.to_str().expect("text").to_owned()
}

both! {
    async fn pyjwt_validates_access_tokens(stand) {
        let (task, [access, svid, foreign]) = tokens(&stand).await;
        let (body, signature) = (altered(&access, 1), altered(&access, 2));
        let answers =
            python("access_token.py", &[&stand.broker.url, GIT], &[&access, &foreign, &body, &signature, &svid]).await;
        let accepted = format!("read for {task}");
        assert_eq!(answers[..2], [accepted, "InvalidAudienceError".to_owned()]);
        // Which of the two an altered body is depends on what the alteration hit.
        assert!(["InvalidSignatureError", "DecodeError"].contains(&&*answers[2]), "{answers:?}");
        assert_eq!(answers[3..], ["InvalidSignatureError", "typ"]);
        // Another broker's name is another issuer, wherever its keys are.
        let elsewhere = stand.broker.url.replace("127.0.0.1", "localhost");
        assert_eq!(python("access_token.py", &[&elsewhere, GIT], &[&access]).await, ["InvalidIssuerError"]);
    }

    async fn py_spiffe_validates_jwt_svids(stand) {
        let (task, [access, svid, _]) = tokens(&stand).await;
        let arguments = [&*stand.broker.url, "example.com", GIT];
        let answers = python("jwt_svid.py", &arguments, &[&svid, &access, &altered(&svid, 1), &altered(&svid, 2)]).await;
        assert_eq!(answers[0], format!("spiffe://example.com/ci/acme/payments/task/{task}"));
        for refused in &answers[1..] {
            assert!(!refused.starts_with("spiffe://") && refused.ends_with("Error"), "{answers:?}");
        }
        let arguments = [&*stand.broker.url, "example.com", REGISTRY];
        assert_eq!(python("jwt_svid.py", &arguments, &[&svid]).await, ["InvalidTokenError"]);
        let arguments = [&*stand.broker.url, "example.org", GIT];
        assert_eq!(python("jwt_svid.py", &arguments, &[&svid]).await, ["InvalidTokenError"]);
    }

    /// The crate `spiffe` reads the bundle and takes what is of this broker, and of no other.
    async fn rust_spiffe_validates_svids(stand) {
        let (task, [access, svid, _]) = tokens(&stand).await;
        let other = Stand::new(Store::Embedded).await;
        let (other_task, [_, foreign, _]) = tokens(&other).await;
        let (certificate, forged) = (certificate(&stand, &task).await, certificate(&other, &other_task).await);
        let id = format!("spiffe://example.com/ci/acme/payments/task/{task}");
        let (body, signature) = (altered(&svid, 1), altered(&svid, 2));
        let all = [&*svid, &certificate, &access, &foreign, &body, &signature, &forged];
        let answers = rust(&[&stand.broker.url, "example.com", GIT], &all).await;
        assert_eq!(answers[..2], [&*id, &id]);
        assert!(answers[2..].iter().all(|answer| answer.starts_with("no: ")), "{answers:?}");
        assert!(answers[6].contains("UnknownIssuer"), "{answers:?}");
        for (domain, audience) in [("example.com", REGISTRY), ("example.org", GIT)] {
            let answers = rust(&[&stand.broker.url, domain, audience], &[&svid]).await;
            assert!(answers[0].starts_with("no: "), "{answers:?}");
        }
        let answers = rust(&[&stand.broker.url, "example.org", GIT], &[&certificate]).await;
        assert_eq!(answers, ["no: of another trust domain"]);
    }

    async fn jose_validates_access_tokens(stand) {
        let (_, [access, svid, foreign]) = tokens(&stand).await;
        let (body, signature) = (altered(&access, 1), altered(&access, 2));
        let all = [&*access, &foreign, &body, &signature, &svid];
        let answers = node("jose.mjs", &[&stand.broker.url, GIT, "at+jwt"], &all).await;
        let (forged, unfit) = ("ERR_JWS_SIGNATURE_VERIFICATION_FAILED", "ERR_JWT_CLAIM_VALIDATION_FAILED");
        let subject = "read for spiffe://example.com/ci/acme/payments";
        assert_eq!(answers, [subject, &format!("{unfit} aud"), forged, forged, "ERR_JWKS_NO_MATCHING_KEY"]);
        let answers = node("jose.mjs", &[&stand.broker.url, GIT, "statuslist+jwt"], &[&access]).await;
        assert_eq!(answers, [format!("{unfit} typ")]);
        let elsewhere = stand.broker.url.replace("127.0.0.1", "localhost");
        assert_eq!(node("jose.mjs", &[&elsewhere, GIT, "at+jwt"], &[&access]).await, [format!("{unfit} iss")]);
    }

    async fn jose_validates_jwt_svids(stand) {
        let (task, [access, svid, _]) = tokens(&stand).await;
        let (body, signature) = (altered(&svid, 1), altered(&svid, 2));
        let answers = node("jose.mjs", &[&stand.broker.url, GIT, "JWT"], &[&svid, &body, &signature, &access]).await;
        let forged = "ERR_JWS_SIGNATURE_VERIFICATION_FAILED";
        let subject = format!("read for spiffe://example.com/ci/acme/payments/task/{task}");
        assert_eq!(answers, [&*subject, forged, forged, "ERR_JWKS_NO_MATCHING_KEY"]);
        let answers = node("jose.mjs", &[&stand.broker.url, REGISTRY, "JWT"], &[&svid]).await;
        assert_eq!(answers, ["ERR_JWT_CLAIM_VALIDATION_FAILED aud"]);
    }
}

/// Readers of status lists that are not ours: what a revoke on another broker of the Redis says, they say within ten seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_status_lists_learn_of_a_revoke_on_another_broker() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (revoked, [access, svid, _]) = tokens(&stand).await;
    let (_, alive) = stand.task_with_token().await;
    let issuer = [&*stand.broker.url];
    let (all, altered) = ([&*access, &svid, &alive], altered(&access, 1));
    let with_python = [&access, &alive, &*altered];
    assert_eq!(node("status_list.mjs", &issuer, &all).await, ["0", "0", "0"]);
    assert_eq!(python("status_list.py", &issuer, &with_python).await[..2], ["valid", "valid"]);
    let (path, why) = (format!("/v1/tasks/{revoked}/revoke"), json!({"reason": "r"}));
    stand.call_at(&second, Method::POST, &path, Some(RESPONDER), Some(why)).await.expect(StatusCode::OK);
    let begun = Instant::now();
    while node("status_list.mjs", &issuer, &all).await != ["1", "1", "0"] {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let answers = python("status_list.py", &issuer, &with_python).await;
    assert_eq!(answers[..2], ["ended", "valid"]);
    assert!(["InvalidSignatureError", "DecodeError"].contains(&&*answers[2]), "{answers:?}");
}

/// Whoever knows the issuer alone finds the rest (RFC 8414), and what it finds is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metadata_leads_to_endpoints_that_answer() {
    let stand = Stand::new(crate::support::Store::Embedded).await;
    let get = async |url: String| {
        let answer = stand.client.get(&url).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{url}");
        assert_eq!(answer.headers()["content-type"], "application/json", "{url}");
        assert!(answer.headers()["cache-control"].to_str().unwrap().contains("max-age="), "{url}");
        answer.json::<Value>().await.expect("JSON")
    };
    let metadata = get(stand.url("/.well-known/oauth-authorization-server")).await;
    assert_eq!(metadata, get(stand.url("/.well-known/openid-configuration")).await);
    assert_eq!(metadata["issuer"], *stand.broker.url);
    for (name, value) in metadata.as_object().unwrap() {
        assert_ne!(value, &json!([]), "{name}: what has no elements is left out (RFC 8414 section 3.2)");
    }
    assert!(!get(text(&metadata, "jwks_uri")).await["keys"].as_array().unwrap().is_empty());
    let described = stand.client.get(text(&metadata, "remit_openapi_uri")).send().await.unwrap();
    assert_eq!(described.json::<Value>().await.unwrap()["openapi"], "3.1.0");
    assert!(!get(text(&metadata, "remit_spiffe_bundle_uri")).await["keys"].as_array().unwrap().is_empty());
    let authorities = stand.client.get(text(&metadata, "remit_ca_uri")).send().await.unwrap().text().await.unwrap();
    assert!(authorities.starts_with("-----BEGIN CERTIFICATE-----"), "{authorities}");

    let (task, token) = stand.task_with_token().await;
    let post = async |member: &str, bearer: Option<&str>, form: &[(&str, &str)]| {
        let mut request = stand.client.post(text(&metadata, member)).form(form);
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{member}");
        answer.json::<Value>().await.expect("JSON")
    };
    let (evidence, scope) = (stand.evidence(), format!("{task} read"));
    let exchange = metadata["grant_types_supported"][0].as_str().expect("a grant type");
    let form = [
        ("grant_type", exchange),
        ("subject_token", &*evidence),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("resource", GIT),
        ("scope", &*scope),
    ];
    assert_eq!(post("token_endpoint", None, &form).await["task"], *task);
    assert_eq!(post("introspection_endpoint", Some(GIT_TOKEN), &[("token", &token)]).await["active"], true);
    let revoke = stand.client.post(text(&metadata, "revocation_endpoint")).bearer_auth(&evidence);
    assert_eq!(revoke.form(&[("token", &token)]).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(post("introspection_endpoint", Some(GIT_TOKEN), &[("token", &token)]).await, json!({"active": false}));
    let tasks = stand.client.get(text(&metadata, "remit_tasks_endpoint")).bearer_auth(evidence).send().await.unwrap();
    assert_eq!(tasks.status(), StatusCode::OK);

    // Everything that is a URL of this broker was called above, so a new endpoint is missed here.
    let is_url = |value: &Value| value.as_str().is_some_and(|value| value.starts_with("http"));
    let urls = metadata.as_object().unwrap().iter().filter(|(_, value)| is_url(value));
    let mut names: Vec<_> = urls.map(|(name, _)| &**name).collect();
    names.sort_unstable();
    let called = [
        "introspection_endpoint",
        "issuer",
        "jwks_uri",
        "remit_ca_uri",
        "remit_openapi_uri",
        "remit_revocation_jwks_uri",
        "remit_revocations_endpoint",
        "remit_spiffe_bundle_uri",
        "remit_tasks_endpoint",
        "revocation_endpoint",
        "token_endpoint",
    ];
    assert_eq!(names, called);
}
