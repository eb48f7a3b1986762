//! The vectors of `deploy/vectors`, which verifiers in other languages are run against too, and what they leave out.

use serde::Deserialize;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};

use super::{Asked, Denial, Feed, Keys};
use crate::{
    clock::{Moment, Time},
    jose::{SigningKey, Thumbprint},
    verify::{Refused, Rejected, Token, Verifier},
};

#[derive(Deserialize)]
struct File {
    issuer: String,
    audience: String,
    jwks: Value,
    revocation_jwks: Value,
    spiffe_bundle: Value,
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    at_wall_ms: i64,
    at_mono_ms: u64,
    snapshot: Option<String>,
    nonce: Option<String>,
    sent_wall_ms: Option<i64>,
    sent_mono_ms: Option<u64>,
    push: Option<String>,
    disconnect: Option<bool>,
    check: Option<Check>,
    then: Option<String>,
    #[serde(rename = "says")]
    _says: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    token: String,
    certificate: Option<String>,
    expect: String,
}

fn moment(wall: i64, monotonic: u64) -> Moment {
    Moment { wall: Time::from_timestamp_millis(wall).unwrap(), monotonic: Duration::from_millis(monotonic) }
}

/// What a service answers.
fn answer(feed: &Arc<Feed>, audience: &str, check: &Check, now: &Moment) -> &'static str {
    let answer = match &check.certificate {
        None => Verifier::following(feed.clone(), audience.parse().unwrap()).verify(&check.token, now).map(|_| ()),
        Some(thumbprint) => with_certificate(feed, &check.token, thumbprint, now),
    };
    match answer {
        Ok(()) => "accept",
        Err(Rejected::Invalid(_)) => "invalid",
        Err(Rejected::Denied(denial)) => denial.as_str(),
    }
}

/// The vectors know a certificate by its thumbprint alone.
fn with_certificate(feed: &Feed, token: &str, thumbprint: &str, now: &Moment) -> Result<(), Rejected> {
    let token = Token::parse(token)?;
    let keys = feed.keys();
    let key = keys.of(token.form()).get(token.kid()).ok_or(Refused("no key"))?;
    let thumbprint: Thumbprint = thumbprint.to_owned().try_into().unwrap();
    let held = token.verify(key, feed.issuer(), feed.clock(now))?.by_certificate(&thumbprint)?;
    feed.deny(held.facts(), || held.subject(), now).map_or(Ok(()), |denial| Err(Rejected::Denied(denial)))
}

fn run(file: &File, vector: &Vector) -> Vec<String> {
    let feed = Arc::new(Feed::new(&file.issuer));
    let octets = |value: &Value| value.to_string().into_bytes();
    feed.believe(
        Keys::read(&octets(&file.jwks), &octets(&file.spiffe_bundle), &octets(&file.revocation_jwks)).unwrap(),
    );
    let mut wrong = Vec::new();
    for (at, step) in vector.steps.iter().enumerate() {
        let now = moment(step.at_wall_ms, step.at_mono_ms);
        let taken = if let Some(snapshot) = &step.snapshot {
            let sent = moment(step.sent_wall_ms.unwrap(), step.sent_mono_ms.unwrap());
            Some(feed.answered(snapshot, &Asked { nonce: step.nonce.clone().unwrap(), sent }, &now))
        } else if let Some(push) = &step.push {
            Some(feed.pushed(push, &now))
        } else {
            if step.disconnect == Some(true) {
                feed.disconnected();
            }
            None
        };
        if let Some(taken) = taken {
            let then = if taken.is_ok() { "follow" } else { "snapshot" };
            if step.then.as_deref() != Some(then) {
                wrong.push(format!("{}: step {at}: {then}: {taken:?}", vector.name));
            }
        }
        if let Some(check) = &step.check {
            let answered = answer(&feed, &file.audience, check, &now);
            if answered != check.expect {
                wrong.push(format!("{}: step {at}: {answered} and not {}", vector.name, check.expect));
            }
        }
    }
    wrong
}

#[test]
fn every_vector_is_answered_as_it_has_to_be() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/vectors");
    let (mut count, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let file: File = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for vector in &file.vectors {
            count += 1;
            wrong.extend(run(&file, vector));
        }
    }
    assert!(wrong.is_empty(), "{} of {count}\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 200, "{count}");
}

const START: i64 = 1_800_000_000_000;
const ISSUER: &str = "https://broker.example.com";

/// A broker's key, and a feed that believes it.
struct Stand {
    key: SigningKey,
    other: SigningKey,
    access: SigningKey,
    feed: Arc<Feed>,
}

impl Stand {
    fn new() -> Self {
        let key = || SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let (key, other, access) = (key(), key(), key());
        let document = |keys: &[&SigningKey], purpose: &str| {
            let jwk = |key: &&SigningKey| {
                let mut jwk = serde_json::to_value(key.public()).unwrap();
                (jwk["use"], jwk["remit_purpose"]) = ("sig".into(), purpose.into());
                jwk
            };
            json!({"keys": keys.iter().map(jwk).collect::<Vec<_>>()}).to_string().into_bytes()
        };
        let feed = Arc::new(Feed::new(ISSUER));
        let states = document(&[&key, &other], "revocations");
        feed.believe(Keys::read(&document(&[&access], "access_token"), b"{\"keys\":[]}", &states).unwrap());
        Self { key, other, access, feed }
    }

    fn state(sequence: u64, more: &Value) -> Value {
        let mut state = json!({"iss": ISSUER, "broker": "a", "iat": START / 1000, "exp": START / 1000 + 60, "generation": 3,
            "sequence": sequence, "entries": []});
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        state
    }

    fn snapshot(&self, key: &SigningKey, sequence: u64, entries: &Value) -> Result<(), Refused> {
        let now = moment(START, 0);
        let state = Self::state(sequence, &json!({"nonce": "n", "entries": entries}));
        let state = key.sign("remit-revocations+jwt", &state).unwrap();
        self.feed.answered(&state, &Asked { nonce: "n".into(), sent: now }, &now)
    }

    fn push(&self, key: &SigningKey, previous: u64, entries: &Value) -> Result<(), Refused> {
        let sequence = previous + u64::from(entries != &json!([]));
        let state = Self::state(sequence, &json!({"previous": previous, "entries": entries}));
        self.feed.pushed(&key.sign("remit-revocations+jwt", &state).unwrap(), &moment(START, 0))
    }

    fn check(&self) -> Result<(), Rejected> {
        let at = START / 1000;
        let claims = json!({
            "iss": ISSUER, "sub": "spiffe://example.com/a", "client_id": "spiffe://example.com/a",
            "aud": "https://git.example.com", "exp": at + 60, "iat": at, "nbf": at, "jti": "0".repeat(32), "scope": "read",
            "authorization_details": [], "status": {"status_list": {"idx": 7, "uri": "https://broker.example.com/status-lists/0"}},
            "urn:remit:task": {"id": "task_01jd0000000000000000000000", "owner": "o", "kind": "service", "attestor": "unix",
            "declared_at": at, "generation": 3, "authority_hash": "h", "expires_at": at + 60}});
        let token = self.access.sign("at+jwt", &claims).unwrap();
        let verifier = Verifier::following(self.feed.clone(), "https://git.example.com".parse().unwrap());
        verifier.verify(&token, &moment(START, 0)).map(|_| ())
    }
}

fn lock(at: i64, until: i64, owner: &str) -> Value {
    json!({"lock": {"id": "lock_01jd0000000000000000000000", "match": {"owner": owner}}, "at": at, "until": until})
}

#[test]
fn a_key_that_was_revoked_signs_no_state() {
    let stand = Stand::new();
    stand.snapshot(&stand.key, 1, &json!([])).unwrap();
    assert_eq!(stand.check(), Ok(()));
    let (at, until) = (START / 1000, START / 1000 + 600);
    stand.push(&stand.key, 1, &json!([{"key": stand.key.kid(), "at": at, "until": until}])).unwrap();
    assert_eq!(stand.check(), Err(Rejected::Denied(Denial::Gap)), "whoever has the key could have said anything");
    assert!(stand.push(&stand.key, 2, &json!([])).is_err());
    assert!(stand.snapshot(&stand.key, 2, &json!([])).is_err());
    stand.snapshot(&stand.other, 2, &json!([])).unwrap();
    assert_eq!(stand.check(), Ok(()));
}

#[test]
fn an_earlier_form_of_a_lock_does_not_come_back() {
    let (stand, at) = (Stand::new(), START / 1000);
    stand.snapshot(&stand.key, 1, &json!([lock(at, at + 60, "o")])).unwrap();
    assert_eq!(stand.check(), Err(Rejected::Denied(Denial::Locked)));
    stand.push(&stand.key, 1, &json!([lock(at + 1, at + 30, "p")])).unwrap();
    assert_eq!(stand.check(), Ok(()));
    stand.push(&stand.key, 2, &json!([lock(at, at + 60, "o")])).unwrap();
    assert_eq!(stand.check(), Ok(()));
}

#[test]
fn the_witness_is_the_last_state_that_was_taken() {
    let stand = Stand::new();
    assert_eq!((stand.feed.witness(), stand.feed.last_event_id()), (None, None));
    stand.snapshot(&stand.key, 7, &json!([])).unwrap();
    let first = stand.feed.witness().unwrap();
    assert!(stand.push(&stand.key, 9, &json!([])).is_err());
    assert_eq!(stand.feed.witness(), Some(first.clone()));
    assert_eq!(stand.feed.last_event_id().as_deref(), Some("a:7"));
    stand.snapshot(&stand.key, 8, &json!([])).unwrap();
    assert_ne!(stand.feed.witness(), Some(first));
    assert_eq!(stand.feed.position(), Some(("a".to_owned(), 8)));
}

#[test]
fn after_a_state_that_was_not_taken_none_of_the_stream_is() {
    let stand = Stand::new();
    stand.snapshot(&stand.key, 1, &json!([])).unwrap();
    assert!(stand.feed.pushed("no state", &moment(START, 0)).is_err());
    assert_eq!(stand.push(&stand.key, 1, &json!([])), Err(Refused("a snapshot is due")));
    assert_eq!(stand.check(), Ok(()), "nobody proved that something was missed");
    stand.feed.disconnected();
    assert_eq!(stand.push(&stand.key, 1, &json!([])), Err(Refused("a snapshot is due")));
}

/// Signed by the broker, and three times as long as a token may be.
#[test]
fn a_large_set_is_one_state() {
    let stand = Stand::new();
    let at = START / 1000;
    let entries: Vec<Value> =
        (0..1_000).map(|n| json!({"lease": format!("{n:032x}"), "at": at, "until": at + 60})).collect();
    stand.snapshot(&stand.key, 1, &json!(entries)).unwrap();
    assert_eq!(stand.check(), Err(Rejected::Denied(Denial::Revoked)), "the first of them");
    assert_eq!(stand.feed.witness(), None, "nobody sends that as a header");
}

#[test]
fn a_set_that_was_left_halfway_accepts_nothing() {
    let stand = Stand::new();
    stand.snapshot(&stand.key, 1, &json!([])).unwrap();
    let feed = stand.feed.clone();
    let left = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| feed.change(|_| panic!("halfway"))));
    assert!(left.is_err());
    assert_eq!(stand.check(), Err(Rejected::Denied(Denial::Gap)));
}
