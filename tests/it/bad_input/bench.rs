//! A bad request, the answer that it gets, and what is still there afterwards.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use remit::{
    clock::{Clock as _, SystemClock},
    jose::SigningKey,
    verify::{KeySet, UntilExpiry, Verifier},
};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::forge::Forge;
use crate::{
    attacks::{INSIDE, Raw},
    support::{Answer, GIT, GIT_TOKEN, Stand, VIEWER, claims, declaration, text},
};

pub(super) const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub(super) const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// Well-formed, and nobody's.
pub(super) const UNKNOWN: &str = "task_01jd0000000000000000000000";
/// The `Idempotency-Key` that the good task was declared under.
pub(super) const KEY: &str = "the-good-task";

/// No answer takes longer, on a machine that has other things to do as well.
const SOON: Duration = Duration::from_secs(10);

/// What is sent, and where to.
pub(super) enum Sent {
    /// A request that a client can make.
    Request { method: Method, path: String, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// Octets on a connection of their own.
    Octets(Vec<u8>),
    /// A token, to the library that services embed.
    Offline(String),
}

/// What comes back.
#[derive(Clone)]
pub(super) enum Expected {
    /// An error of our own API.
    Problem(u16, &'static str),
    /// The same over a connection that the broker then closes.
    Closed(u16, &'static str),
    /// An error of an OAuth endpoint.
    OAuth(u16, &'static str),
    /// One of these, empty, and the end of the connection: so much for what is no HTTP request.
    Bare(&'static [u16]),
    /// `{"active":false}`, to the octet.
    Inactive,
    /// The library refuses.
    Refused,
    /// It is fine after all: a control, which shows that the others differ from it in nothing but what they are named for.
    Fine(u16, Value),
}

pub(super) const INVALID: Expected = Expected::Problem(400, "invalid_request");
pub(super) const EVIDENCE: Expected = Expected::Problem(401, "evidence_invalid");
pub(super) const FOREIGN: Expected = Expected::Problem(404, "not_found");
pub(super) const ROLE: Expected = Expected::Problem(403, "policy_denied");
pub(super) const OAUTH: Expected = Expected::OAuth(400, "invalid_request");
pub(super) const CLIENT: Expected = Expected::OAuth(401, "invalid_client");

/// One request of a row.
pub(super) struct Case {
    name: String,
    sent: Sent,
    expected: Expected,
}

/// A request with a JSON body.
pub(super) fn api(
    name: impl Into<String>,
    path: impl Into<String>,
    bearer: &str,
    body: impl Into<Vec<u8>>,
    expected: Expected,
) -> Case {
    let headers = vec![("content-type", "application/json".to_owned()), ("authorization", format!("Bearer {bearer}"))];
    request(name, Method::POST, path, headers, body, expected)
}

/// A request for a page or a task.
pub(super) fn get(name: impl Into<String>, path: impl Into<String>, bearer: &str, expected: Expected) -> Case {
    request(name, Method::GET, path, vec![("authorization", format!("Bearer {bearer}"))], "", expected)
}

pub(super) fn request(
    name: impl Into<String>,
    method: Method,
    path: impl Into<String>,
    headers: Vec<(&'static str, String)>,
    body: impl Into<Vec<u8>>,
    expected: Expected,
) -> Case {
    let sent = Sent::Request { method, path: path.into(), headers, body: body.into() };
    Case { name: name.into(), sent, expected }
}

/// A form; without a bearer where that is empty.
pub(super) fn form(
    name: impl Into<String>,
    path: &str,
    bearer: &str,
    body: impl Into<Vec<u8>>,
    expected: Expected,
) -> Case {
    let mut headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
    if !bearer.is_empty() {
        headers.push(("authorization", format!("Bearer {bearer}")));
    }
    request(name, Method::POST, path, headers, body, expected)
}

/// The question of the service `git` about a token.
pub(super) fn ask(name: impl Into<String>, token: &str, expected: Expected) -> Case {
    form(name, "/oauth2/introspect", GIT_TOKEN, encode(&[("token", token)]), expected)
}

pub(super) fn octets(name: impl Into<String>, octets: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { name: name.into(), sent: Sent::Octets(octets.into()), expected }
}

pub(super) fn offline(name: impl Into<String>, token: &str, expected: Expected) -> Case {
    Case { name: name.into(), sent: Sent::Offline(token.to_owned()), expected }
}

/// `application/x-www-form-urlencoded`.
pub(super) fn encode(parameters: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish()
}

/// A broker, and what must still be there when all has been said.
pub(super) struct Bench {
    pub(super) stand: Stand,
    /// A task that goes on, and its first token.
    pub(super) task: String,
    pub(super) token: String,
    pub(super) svid: String,
    pub(super) lease: String,
    /// What the good task was declared with.
    pub(super) declared: Value,
    /// Tasks that are over: revoked (and what the revoke answered), completed, expired.
    pub(super) over: [(String, String); 3],
    pub(super) revoke: Value,
    /// The broker's own key for access tokens: what is signed with it lacks nothing but what it is tried for.
    own: SigningKey,
    verifier: Verifier<UntilExpiry>,
    tasks: Value,
    minted: u64,
}

impl Bench {
    pub(super) async fn new(stand: Stand) -> Self {
        let good =
            stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).header("idempotency-key", KEY);
        let good = good.json(&declaration()).send().await.expect("an answer");
        let declared = Answer::of(good).await.expect(StatusCode::CREATED);
        let task = text(&declared, "task");
        let mut over = Vec::new();
        for ttl in [600, 600, 1] {
            let mut short = declaration();
            short["ttl"] = ttl.into();
            let ended = stand.declare(short).await.expect(StatusCode::CREATED);
            over.push((text(&ended, "task"), text(&ended["credentials"][0], "access_token")));
        }
        let over: [(String, String); 3] = over.try_into().expect("three");
        let revoke = stand.revoke(&over[0].0).await.expect(StatusCode::OK);
        let complete = format!("/v1/tasks/{}/complete", over[1].0);
        stand.post(&complete, &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        let svid = json!({"credentials": [{"resource": GIT, "privilege": "read", "type": "jwt"}]});
        let svid = stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), svid).await;
        let svid = text(&svid.expect(StatusCode::OK)["credentials"][0], "access_token");
        let pem = std::fs::read_to_string(stand.dir.path().join("broker-keys/access-token.pem")).expect("a key");
        let pem: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let own = SigningKey::from_pkcs8(&BASE64_STANDARD.decode(pem).expect("base64")).expect("a key");
        let jwks = stand.client.get(stand.url("/jwks")).send().await.expect("an answer").bytes().await.expect("a body");
        let verifier = Verifier::offline_until_expiry(&stand.broker.url, GIT.parse().expect("a location"));
        let verifier = verifier.with_access_keys(KeySet::from_jwks(&jwks).expect("keys"));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let token = text(&declared["credentials"][0], "access_token");
        let lease = text(&declared["credentials"][0], "lease");
        let (tasks, minted) = (states(&stand).await, 2);
        Self { stand, task, token, svid, lease, declared, over, revoke, own, verifier, tasks, minted }
    }

    /// The usual declaration with these members over it; `null` removes one.
    #[expect(clippy::unused_self, reason = "cases are made of a bench")]
    pub(super) fn declaration(&self, over: &Value) -> String {
        let mut body = declaration();
        for (name, value) in over.as_object().expect("an object") {
            if value.is_null() {
                body.as_object_mut().expect("an object").remove(name);
            } else {
                body[name] = value.clone();
            }
        }
        body.to_string()
    }

    /// A token exchange that works, but for these parameters; one without a value is left out.
    pub(super) fn exchange(&self, over: &[(&str, &str)]) -> String {
        let (evidence, scope) = (self.stand.evidence(), format!("{} read", self.task));
        let usual = [
            ("grant_type", EXCHANGE),
            ("subject_token", &evidence),
            ("subject_token_type", JWT),
            ("resource", GIT),
            ("scope", &scope),
        ];
        let usual = usual.into_iter().filter(|(name, _)| !over.iter().any(|(other, _)| other == name));
        encode(&usual.chain(over.iter().copied().filter(|(_, value)| *value != "-")).collect::<Vec<_>>())
    }

    /// Mints for the good task at our own API.
    pub(super) fn mint(&self, name: impl Into<String>, credentials: &Value, expected: Expected) -> Case {
        let body = json!({ "credentials": credentials }).to_string();
        api(name, format!("/v1/tasks/{}/credentials", self.task), &self.stand.evidence(), body, expected)
    }

    /// What signs evidence.
    pub(super) fn evidence(&self) -> Forge<'_> {
        Forge::new(&self.stand.issuer.key, "JWT", claims(&self.stand.evidence()))
    }

    /// What signs access tokens.
    pub(super) fn access(&self) -> Forge<'_> {
        Forge::new(&self.own, "at+jwt", claims(&self.token))
    }

    /// What is wrong with how a case was answered.
    pub(super) async fn wrong(&self, case: &Case) -> Option<String> {
        let begun = Instant::now();
        let wrong = match &case.sent {
            Sent::Request { method, path, headers, body } => {
                let mut request = self.stand.client.request(method.clone(), self.stand.url(path));
                for (name, value) in headers {
                    request = request.header(*name, value);
                }
                match request.body(body.clone()).send().await {
                    Ok(answer) => judge(&Answer::of(answer).await, &case.expected),
                    Err(error) => Some(format!("no answer: {error}")),
                }
            }
            Sent::Octets(octets) => {
                let raw = Raw::send(&self.stand, octets).await;
                let closed = !matches!(case.expected, Expected::Closed(..) | Expected::Bare(_)) || raw.closed;
                let once = raw.answers() == 1 || raw.text.is_empty();
                judge(&plain(&raw.text), &case.expected)
                    .or((!closed).then(|| "the connection stays open".to_owned()))
                    .or((!once).then(|| format!("several answers: {}", raw.text)))
            }
            Sent::Offline(token) => match (self.verifier.verify(token, SystemClock.now()), &case.expected) {
                (Ok(_), Expected::Fine(..)) | (Err(_), Expected::Refused) => None,
                (Ok(_), _) => Some("the library accepts it".to_owned()),
                (Err(why), _) => Some(format!("the library refuses it: {why}")),
            },
        };
        let late = (begun.elapsed() > SOON).then(|| format!("answered after {:?}", begun.elapsed()));
        wrong.or(late).map(|wrong| format!("{}: {wrong}", case.name))
    }

    /// What is wrong with this: the task that was there still is, alive and good for another credential, and there is no other that
    /// was not.
    pub(super) async fn lost(&mut self) -> Option<String> {
        let tasks = states(&self.stand).await;
        let others = (tasks != self.tasks).then(|| format!("other tasks than before: {tasks}"));
        let alive = self.stand.introspect(&self.token).await;
        let dead = (alive["active"] != true).then(|| format!("a token died: {alive}"));
        let minted = self.stand.mint(&self.task).await;
        let ended = (minted.status != StatusCode::OK).then(|| format!("nothing for the good task: {}", minted.text));
        self.minted += 1;
        // Told once.
        self.tasks = tasks;
        others.or(dead).or(ended)
    }

    /// Nothing was minted by anybody but [`Bench::lost`], and the end is still an end.
    pub(super) async fn end(self) {
        let revoked = self.stand.revoke(&self.task).await.expect(StatusCode::OK);
        assert_eq!(revoked["credentials"], self.minted, "a bad request got a credential");
        assert_eq!(self.stand.introspect(&self.token).await, json!({"active": false}));
        // The log says the same, and is still read line by line. What is repeated is on record twice.
        let audit = self.stand.audit();
        let of = |event: &str, member: &str| -> BTreeSet<String> {
            audit.iter().filter(|line| line["event"] == event).map(|line| line[member].to_string()).collect()
        };
        // One credential with each declaration, three of which are over.
        assert_eq!(of("task_declared", "task").len(), 4);
        assert_eq!(of("credential_minted", "lease").len() as u64, self.minted + 3);
        assert_eq!(of("task_ended", "task").len(), 3, "a bad request ended a task");
    }
}

/// Every task and its state.
async fn states(stand: &Stand) -> Value {
    let page = stand.get("/v1/tasks?limit=200", VIEWER).await.expect(StatusCode::OK);
    page["tasks"].as_array().expect("tasks").iter().map(|task| json!([task["task"], task["state"]])).collect()
}

/// What came over a plain connection, as an answer.
fn plain(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(599);
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
        let name: reqwest::header::HeaderName = name.parse().expect("a name");
        headers.append(name, value.parse().expect("a value"));
    }
    Answer { status: StatusCode::from_u16(status).expect("a status"), headers, text: body.to_owned() }
}

/// What is wrong with an answer.
fn judge(answer: &Answer, expected: &Expected) -> Option<String> {
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    let lower = answer.text.to_ascii_lowercase();
    let inside = INSIDE.iter().any(|word| lower.contains(word));
    let found = || format!("{} {:?} {}", answer.status, answer.headers, answer.text);
    let error = |status: u16, kind: &str, member: &str, code: &str| {
        let id = header("x-request-id");
        answer.status == status
            && body[member] == code
            && header("content-type") == kind
            && id.len() == 32
            && body["request_id"] == id
            && header("cache-control") == "no-store"
            && header("x-content-type-options") == "nosniff"
            && (status != 401 || header("www-authenticate") == "Bearer")
            && (status != 405 || !header("allow").is_empty())
            && (!matches!(status, 429 | 503) || !header("retry-after").is_empty())
    };
    let fits = match expected {
        Expected::Problem(status, code) | Expected::Closed(status, code) => {
            error(*status, "application/problem+json", "code", code)
        }
        Expected::OAuth(status, code) => {
            let words = body["error_description"].as_str().unwrap_or("\\");
            error(*status, "application/json", "error", code)
                && words.chars().all(|c| matches!(c, ' '..='!' | '#'..='[' | ']'..='~'))
        }
        Expected::Bare(statuses) => statuses.contains(&answer.status.as_u16()) && answer.text.is_empty(),
        Expected::Inactive => answer.status == 200 && answer.text == r#"{"active":false}"#,
        Expected::Refused => false,
        Expected::Fine(status, members) => {
            let mut members = members.as_object().into_iter().flatten();
            answer.status == *status && members.all(|(name, value)| body[name] == *value)
        }
    };
    (!fits || inside).then(found)
}
