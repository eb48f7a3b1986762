//! The vectors of `deploy/vectors`, which verifiers in other languages are run against too, and what they leave out.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};

use super::{Asked, Denial, Feed, Keys};
use crate::{
    clock::{Moment, Time},
    jose::{SigningKey, Thumbprint},
    verify::{CertifiedTask, Following, Refused, Rejected, Token, Verifier},
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

pub(in crate::verify) fn moment(wall: i64, monotonic: u64) -> Moment {
    Moment { wall: Time::from_timestamp_millis(wall).unwrap(), monotonic: Duration::from_millis(monotonic) }
}

/// What a service answers.
fn answer(verifier: &Verifier<Following>, feed: &Feed, check: &Check, now: &Moment) -> &'static str {
    let answer = match &check.certificate {
        None => verifier.verify(&check.token, now).map(|_| ()),
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
    feed.deny(held.signed().facts(), || held.signed().subject(), now)
        .map_or(Ok(()), |denial| Err(Rejected::Denied(denial)))
}

fn run(file: &File, vector: &Vector) -> Vec<String> {
    let feed = Arc::new(Feed::new(&file.issuer));
    let octets = |value: &Value| value.to_string().into_bytes();
    feed.believe(
        Keys::read(&octets(&file.jwks), &octets(&file.spiffe_bundle), &octets(&file.revocation_jwks)).unwrap(),
    );
    let verifier = || Verifier::following(feed.clone(), file.audience.parse().unwrap());
    let (remembers, mut wrong) = (verifier(), Vec::new());
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
            // One that has seen it all answers as one that has never seen a token.
            for verifier in [&remembers, &verifier()] {
                let answered = answer(verifier, &feed, check, &now);
                if answered != check.expect {
                    wrong.push(format!("{}: step {at}: {answered} and not {}", vector.name, check.expect));
                }
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

pub(in crate::verify) const START: i64 = 1_800_000_000_000;
const ISSUER: &str = "https://broker.example.com";

/// A broker's key, and a feed that believes it.
pub(in crate::verify) struct Stand {
    pub(in crate::verify) key: SigningKey,
    other: SigningKey,
    pub(in crate::verify) access: SigningKey,
    authority: Issuer<'static, KeyPair>,
    pub(in crate::verify) feed: Arc<Feed>,
}

impl Stand {
    pub(in crate::verify) fn new() -> Self {
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
        let (authority, certificate) = authority();
        let bundle = json!({"keys": [{"use": "x509-svid", "kty": "EC", "x5c": [BASE64_STANDARD.encode(certificate)]}]});
        let jwks = document(&[&access], "access_token");
        feed.believe(Keys::read(&jwks, bundle.to_string().as_bytes(), &states).unwrap());
        Self { key, other, access, authority, feed }
    }

    fn state(sequence: u64, more: &Value) -> Value {
        let mut state = json!({"iss": ISSUER, "broker": "a", "iat": START / 1000, "exp": START / 1000 + 60, "generation": 3,
            "sequence": sequence, "entries": []});
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        state
    }

    pub(in crate::verify) fn snapshot(&self, key: &SigningKey, sequence: u64, entries: &Value) -> Result<(), Refused> {
        let now = moment(START, 0);
        let state = Self::state(sequence, &json!({"nonce": "n", "entries": entries}));
        let state = key.sign("remit-revocations+jwt", &state).unwrap();
        self.feed.answered(&state, &Asked { nonce: "n".into(), sent: now }, &now)
    }

    pub(in crate::verify) fn push(&self, key: &SigningKey, previous: u64, entries: &Value) -> Result<(), Refused> {
        let sequence = previous + u64::from(entries != &json!([]));
        let state = Self::state(sequence, &json!({"previous": previous, "entries": entries}));
        self.feed.pushed(&key.sign("remit-revocations+jwt", &state).unwrap(), &moment(START, 0))
    }

    fn certificate(&self, certificate: &[u8]) -> Result<CertifiedTask, Rejected> {
        let verifier = Verifier::following(self.feed.clone(), "https://git.example.com".parse().unwrap());
        verifier.verify_certificate(certificate, &moment(START, 0))
    }

    /// A token, bound to what is said.
    pub(in crate::verify) fn token(&self, cnf: Option<Value>) -> String {
        let at = START / 1000;
        let mut claims = json!({
            "iss": ISSUER, "sub": "spiffe://example.com/a", "client_id": "spiffe://example.com/a",
            "aud": "https://git.example.com", "exp": at + 60, "iat": at, "nbf": at, "jti": "0".repeat(32), "scope": "read",
            "authorization_details": [], "status": {"status_list": {"idx": 7, "uri": "https://broker.example.com/status-lists/0"}},
            "urn:remit:task": {"id": "task_01jd0000000000000000000000", "owner": "o", "kind": "service", "attestor": "unix",
            "declared_at": at, "generation": 3, "authority_hash": "h", "expires_at": at + 60}});
        claims.as_object_mut().unwrap().extend(cnf.map(|cnf| ("cnf".to_owned(), cnf)));
        self.access.sign("at+jwt", &claims).unwrap()
    }

    fn check(&self) -> Result<(), Rejected> {
        let token = self.token(None);
        let verifier = Verifier::following(self.feed.clone(), "https://git.example.com".parse().unwrap());
        verifier.verify(&token, &moment(START, 0)).map(|_| ())
    }
}

fn authority() -> (Issuer<'static, KeyPair>, Vec<u8>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().to_vec();
    (Issuer::new(params, key), certificate)
}

const TASK: &str = "spiffe://example.com/ci/acme/task/task_01jd0000000000000000000000-0123456789";

/// A certificate as the broker writes them, with a change.
fn certificate(authority: &Issuer<'static, KeyPair>, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    let day = |at: i64| time::OffsetDateTime::from_unix_timestamp(START / 1000 + at).unwrap();
    (params.not_before, params.not_after) = (day(-60), day(60));
    let serial: Vec<u8> = [1, 0, 0, 0, 0, 0, 0, 0, 3].into_iter().chain([0xab; 11]).collect();
    params.serial_number = Some(SerialNumber::from(serial));
    params.subject_alt_names = vec![SanType::URI(TASK.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    params.signed_by(&KeyPair::generate().unwrap(), authority).unwrap().der().to_vec()
}

#[test]
fn a_certificate_dies_with_its_task_its_serial_its_generation_its_authority_and_by_a_lock() {
    let (at, until) = (START / 1000, START / 1000 + 600);
    let serial = "010000000000000003ababababababababababab";
    for (what, entries, expected) in [
        ("nothing", json!([]), None),
        ("another task", json!([{"task": "task_01jd0000000000000000000001", "at": at, "until": until}]), None),
        (
            "its child",
            json!([{"task": "task_01jd0000000000000000000000-0123456789-0123456789", "at": at, "until": until}]),
            None,
        ),
        (
            "its parent",
            json!([{"task": "task_01jd0000000000000000000000", "at": at, "until": until}]),
            Some(Denial::Revoked),
        ),
        ("itself", json!([{"lease": serial, "at": at, "until": until}]), Some(Denial::Revoked)),
        ("its authority", json!([{"key": "authority", "at": at, "until": until}]), Some(Denial::Revoked)),
        ("its owner, whom nobody knows", json!([lock(at, until, "o")]), None),
        (
            "its workload",
            json!([{"lock": {"id": "lock_01jd0000000000000000000000", "match": {"workload": "spiffe://example.com/ci/*"}},
                "at": at, "until": until}]),
            Some(Denial::Locked),
        ),
    ] {
        let stand = Stand::new();
        let certificate = certificate(&stand.authority, |_| ());
        assert_eq!(stand.certificate(&certificate).unwrap_err(), Rejected::Denied(Denial::Stale), "{what}");
        stand.snapshot(&stand.key, 1, &entries).unwrap();
        let checked = stand.certificate(&certificate);
        assert_eq!(checked.as_ref().err(), expected.map(Rejected::Denied).as_ref(), "{what}");
        if let Ok(task) = checked {
            assert_eq!((task.spiffe_id().as_str(), task.serial().as_str()), (TASK, serial));
            assert_eq!(task.workload(), "spiffe://example.com/ci/acme");
            let older = self::certificate(&stand.authority, |params| {
                let serial: Vec<u8> = [1, 0, 0, 0, 0, 0, 0, 0, 2].into_iter().chain([0xab; 11]).collect();
                params.serial_number = Some(SerialNumber::from(serial));
            });
            assert_eq!(stand.certificate(&older).unwrap_err(), Rejected::Denied(Denial::Generation));
        }
    }
}

type Change = Box<dyn FnOnce(&mut CertificateParams)>;

#[test]
fn what_is_no_certificate_of_a_task_is_refused() {
    let stand = Stand::new();
    stand.snapshot(&stand.key, 1, &json!([])).unwrap();
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    let day = |at: i64| time::OffsetDateTime::from_unix_timestamp(START / 1000 + at).unwrap();
    let changes: Vec<(&str, Change)> = vec![
        ("two URIs", Box::new(move |p| p.subject_alt_names.push(uri(TASK)))),
        ("a DNS name", Box::new(|p| p.subject_alt_names.push(SanType::DnsName("example.com".try_into().unwrap())))),
        ("no name", Box::new(|p| p.subject_alt_names.clear())),
        ("no task", Box::new(move |p| p.subject_alt_names = vec![uri("spiffe://example.com/ci/acme")])),
        ("a broker", Box::new(move |p| p.subject_alt_names = vec![uri("spiffe://example.com/remit/broker")])),
        ("a root", Box::new(move |p| p.subject_alt_names = vec![uri("spiffe://example.com")])),
        ("a task of nobody", Box::new(move |p| p.subject_alt_names = vec![uri(&TASK[..TASK.len() - 1])])),
        ("an authority", Box::new(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("one that signs", Box::new(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign))),
        ("one without usage", Box::new(|p| p.key_usages.clear())),
        ("a server's", Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("another serial", Box::new(|p| p.serial_number = Some(SerialNumber::from(vec![1; 16])))),
        ("ended", Box::new(move |p| p.not_after = day(0) - time::Duration::seconds(1))),
        ("not yet", Box::new(move |p| p.not_before = day(30))),
    ];
    for (what, change) in changes {
        let certificate = certificate(&stand.authority, change);
        assert!(matches!(stand.certificate(&certificate), Err(Rejected::Invalid(_))), "{what}");
    }
    let good = certificate(&stand.authority, |_| ());
    assert!(stand.certificate(&good).is_ok());
    let (foreign, own) = authority();
    for bad in
        [certificate(&foreign, |_| ()), own, good[..good.len() - 1].to_vec(), [&*good, b"0"].concat(), Vec::new()]
    {
        assert!(matches!(stand.certificate(&bad), Err(Rejected::Invalid(_))));
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
