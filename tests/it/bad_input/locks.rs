//! What locks nobody out, or somebody else than it seems to say.

use remit::clock::{Clock as _, SystemClock};
use reqwest::Method;
use serde_json::{Value, json};

use super::bench::{Bench, Case, EVIDENCE, Expected, FOREIGN, INVALID, ROLE, api, get, request};
use crate::support::{ADMIN, GIT_TOKEN, OWNER, RESPONDER, VIEWER};

const LOCKS: &str = "/v1/locks";
const DRY_RUN: &str = "/v1/locks?dry_run=true";
/// Well-formed, and no lock.
const UNKNOWN: &str = "lock_01jd0000000000000000000000";

fn lock(over: &Value) -> Value {
    let mut lock = json!({"match": {"sandbox": "sb-elsewhere"}, "reason": "a drill"});
    lock.as_object_mut().expect("an object").extend(over.as_object().expect("an object").clone());
    lock
}

fn matching(matches: &Value) -> Value {
    lock(&json!({ "match": matches }))
}

fn below(path: &str) -> Value {
    matching(&json!({"workload": format!("spiffe://example.com{path}")}))
}

/// Of the tasks of the bench one is active.
fn counts(active: u64) -> Expected {
    Expected::Fine(200, json!({"active": active, "complete": true}))
}

/// Row 117: what is no lock, whether it is to be counted or set.
pub(super) fn what_is_no_lock(_: &Bench) -> Vec<Case> {
    let at = |seconds: i64| json!(SystemClock.now() + chrono::TimeDelta::seconds(seconds));
    let of = |name: &str, value: Value| matching(&json!({ name: value }));
    let bad = [
        ("no match", json!({"reason": "r"})),
        ("an empty match", matching(&json!({}))),
        ("a match of nothing", of("owner", Value::Null)),
        ("a match that is a list", matching(&json!([]))),
        ("an unknown member in it", matching(&json!({"owner": OWNER, "task": "task_1"}))),
        ("another writing of a member", of("Owner", json!(OWNER))),
        ("a member beside it", lock(&json!({"released": true}))),
        ("all, and an owner", matching(&json!({"all": true, "owner": OWNER}))),
        ("all, and everybody's workload", matching(&json!({"all": true, "workload": "spiffe://example.com/*"}))),
        ("everybody's workload", below("/*")),
        (
            "everybody's workload, and an owner",
            matching(&json!({"workload": "spiffe://example.com/*", "owner": OWNER})),
        ),
        ("everybody's workload in another trust domain", matching(&json!({"workload": "spiffe://example.org/*"}))),
        ("not all", of("all", json!(false))),
        ("not all, and an owner", matching(&json!({"all": false, "owner": OWNER}))),
        ("all in words", of("all", json!("true"))),
        ("all for longer than anybody may", lock(&json!({"match": {"all": true}, "until": at(901)}))),
        ("an owner that is empty", of("owner", json!(""))),
        ("an owner that is a list", of("owner", json!([OWNER]))),
        ("an owner on two lines", of("owner", json!(format!("{OWNER}\n")))),
        ("a sandbox that is too long", of("sandbox", json!("s".repeat(257)))),
        ("an attestor with a control character", of("attestor", json!("ci\u{7f}"))),
        ("an issuer that is too long", of("issuer", json!("i".repeat(2049)))),
        ("an asterisk", below("/*/payments")),
        ("two asterisks", below("/ci/**")),
        ("an asterisk in a segment", below("/ci/ac*")),
        ("an asterisk alone", of("workload", json!("*"))),
        ("a path without a trust domain", of("workload", json!("/ci/acme/*"))),
        ("a path with nothing in it", below("/ci//acme")),
        ("a path that goes up", below("/ci/acme/../acme-evil/*")),
        ("a path that ends with a slash", below("/ci/acme/")),
        ("a path that is encoded", below("/ci/acme%2fpayments")),
        ("a query", below("/ci/acme?x=1")),
        ("another scheme", of("workload", json!("https://example.com/ci/acme/*"))),
        (
            "a time window that ends before it begins",
            lock(&json!({"declared_after": at(60), "declared_before": at(0)})),
        ),
        (
            "a time window that is empty",
            lock(&json!({"declared_after": "2026-11-20T10:00:00Z", "declared_before": "2026-11-20T10:00:00Z"})),
        ),
        ("a part of a second", lock(&json!({"declared_after": "2026-11-20T10:00:00.5Z"}))),
        ("a time before all others", lock(&json!({"declared_before": "1969-12-31T23:59:59Z"}))),
        ("a time without a zone", lock(&json!({"declared_after": "2026-11-20T10:00:00"}))),
        ("a time that is a number", lock(&json!({"declared_after": 1_795_168_800}))),
        ("an end that has been", lock(&json!({"until": at(-1)}))),
        ("an end in more than a year", lock(&json!({"until": at(400 * 86_400)}))),
        ("an end at no time", lock(&json!({"until": "9999-99-99T00:00:00Z"}))),
        ("no reason", json!({"match": {"owner": OWNER}})),
        ("an empty reason", lock(&json!({"reason": ""}))),
        ("a reason that is too long", lock(&json!({"reason": "r".repeat(1025)}))),
        ("a reason on two lines", lock(&json!({"reason": "a drill\nby alice"}))),
        ("a reason with an escape", lock(&json!({"reason": "\u{1b}[2J"}))),
        ("a reason that is none", lock(&json!({"reason": Value::Null}))),
    ];
    let both = |(name, body): (&str, Value)| {
        [LOCKS, DRY_RUN].map(|path| api(format!("{name}, at {path}"), path, RESPONDER, body.to_string(), INVALID))
    };
    let twice = r#"{"match": {"sandbox": "sb-elsewhere", "sandbox": "sb-7f3"}, "reason": "r"}"#;
    let query = |query: &str| api(query, format!("{LOCKS}?{query}"), RESPONDER, lock(&json!({})).to_string(), INVALID);
    let mut cases: Vec<_> = bad.into_iter().flat_map(both).collect();
    cases.push(api("a member twice", LOCKS, RESPONDER, twice, INVALID));
    cases.extend(
        [
            "dry_run=yes",
            "dry_run=",
            "dry_run=true&dry_run=false",
            "dry=true",
            "wait=forever",
            "wait=effective&wait=effective",
        ]
        .map(query),
    );
    cases
}

/// Row 43: a workload by a name that is none.
pub(super) fn names_that_are_none(_: &Bench) -> Vec<Case> {
    let bad = [
        ("a trust domain in capitals", "spiffe://EXAMPLE.com/ci/acme/payments"),
        ("a scheme in capitals", "SPIFFE://example.com/ci/acme/payments"),
        ("a user", "spiffe://me@example.com/ci/acme/payments"),
        ("a port", "spiffe://example.com:443/ci/acme/payments"),
        ("a query", "spiffe://example.com/ci/acme/payments?x"),
        ("a fragment", "spiffe://example.com/ci/acme/payments#x"),
        ("an encoded dot", "spiffe://example.com/ci/%2e%2e/payments"),
        ("two dots", "spiffe://example.com/ci/../payments"),
        ("one dot", "spiffe://example.com/ci/./payments"),
        ("an empty segment", "spiffe://example.com/ci//payments"),
        ("a slash at its end", "spiffe://example.com/ci/acme/payments/"),
        ("no trust domain", "spiffe:///ci/acme/payments"),
        ("no path", "spiffe://example.com"),
        ("another alphabet", "spiffe://example.com/ci/\u{430}cme/payments"),
        ("a trust domain of another alphabet", "spiffe://ex\u{430}mple.com/ci/acme/payments"),
        ("a space", "spiffe://example.com/ci/acme/payments "),
    ];
    let long = format!("spiffe://example.com/{}", "a".repeat(2048));
    let case = |(name, workload): (&str, &str)| {
        api(name, DRY_RUN, RESPONDER, matching(&json!({ "workload": workload })).to_string(), INVALID)
    };
    bad.into_iter().chain([("more than 2048 octets", &*long)]).map(case).collect()
}

/// Row 117: what locks out those alone whom it names.
pub(super) fn whom_a_lock_names(_: &Bench) -> Vec<Case> {
    let dry_run = |name: &str, lock: Value, active| api(name, DRY_RUN, RESPONDER, lock.to_string(), counts(active));
    let beside = |path: &str| {
        let lock = below(path).to_string();
        let name = |what: &str| format!("{what} {path}");
        [
            api(name("counted:"), DRY_RUN, RESPONDER, lock.clone(), counts(0)),
            // It is set, and the good task goes on.
            api(name("set:"), LOCKS, RESPONDER, lock, Expected::Fine(201, json!({"state": "in_force"}))),
        ]
    };
    // The workload of the bench is /ci/acme/payments.
    let paths = [
        "/ci/acme-evil/*",
        "/ci/acm/*",
        "/ci/acme/pay/*",
        "/ci/acme/payment",
        "/ci/acme/payments/*",
        "/ci/acme/payments-2",
        "/ci/acme",
        "/ci/ACME/*",
        "/ci/acme.payments",
    ];
    let mut cases = vec![
        dry_run("itself", below("/ci/acme/payments"), 1),
        dry_run("below its path", below("/ci/acme/*"), 1),
        dry_run("another trust domain", matching(&json!({"workload": "spiffe://example.com.evil/ci/acme/*"})), 0),
        dry_run("its owner", matching(&json!({"owner": OWNER})), 1),
        dry_run("its owner, written otherwise", matching(&json!({"owner": OWNER.to_uppercase()})), 0),
        dry_run("its owner and another sandbox", matching(&json!({"owner": OWNER, "sandbox": "sb-7f"})), 0),
        dry_run(
            "its attestor and another issuer",
            matching(&json!({"attestor": "ci", "issuer": "https://ci.example.org"})),
            0,
        ),
        dry_run(
            "what was declared before it",
            lock(&json!({"match": {"owner": OWNER}, "declared_before": "2026-01-01T00:00:00Z"})),
            0,
        ),
    ];
    cases.extend(paths.into_iter().flat_map(beside));
    cases
}

/// Row 117: who may, and what is none.
pub(super) fn who_locks_and_releases(bench: &Bench) -> Vec<Case> {
    let (evidence, good) = (bench.stand.evidence(), lock(&json!({})).to_string());
    let (why, release) = (json!({"reason": "r"}).to_string(), format!("{LOCKS}/{UNKNOWN}/release"));
    let later = json!({"reason": "r", "until": SystemClock.now() + chrono::TimeDelta::hours(1)}).to_string();
    let extend = format!("{LOCKS}/{UNKNOWN}/extend");
    let mut cases = Vec::new();
    for (who, bearer, expected) in [
        ("a viewer", VIEWER, ROLE),
        ("an admin", ADMIN, ROLE),
        ("a service", GIT_TOKEN, ROLE),
        ("a workload", &*evidence, ROLE),
        ("nobody", "nobody", EVIDENCE),
        ("a credential", &*bench.token, EVIDENCE),
    ] {
        for path in [LOCKS, DRY_RUN] {
            cases.push(api(format!("{who} locks, at {path}"), path, bearer, &*good, expected.clone()));
        }
        cases.push(api(format!("{who} releases"), &*release, bearer, &*why, expected.clone()));
        cases.push(api(format!("{who} extends"), &*extend, bearer, &*later, expected));
    }
    // Neither is told whether there is such a lock.
    cases.push(api("a responder releases", &*release, RESPONDER, &*why, ROLE));
    cases.push(api("a responder extends", &*extend, RESPONDER, &*later, ROLE));
    cases.push(request(
        "nobody at all locks",
        Method::POST,
        LOCKS,
        vec![("content-type", "application/json".into())],
        &*good,
        EVIDENCE,
    ));
    cases.push(get("a lock that is none", format!("{LOCKS}/{UNKNOWN}"), VIEWER, FOREIGN));
    for id in [
        "lock_1",
        "LOCK_01JD0000000000000000000000",
        "task_01jd0000000000000000000000",
        "*",
        "%00",
        "..%2flocks",
        "lock_01jd000000000000000000000%0a",
    ] {
        cases.push(get(format!("the id {id}"), format!("{LOCKS}/{id}"), VIEWER, INVALID));
        cases.push(api(format!("the id {id}, to release"), format!("{LOCKS}/{id}/release"), RESPONDER, &*why, INVALID));
    }
    for (name, body) in [
        ("without a reason", "{}"),
        ("for no reason", r#"{"reason": ""}"#),
        ("and more", r#"{"reason": "r", "lock": "all"}"#),
    ] {
        cases.push(api(
            format!("released {name}"),
            &*release,
            RESPONDER,
            body,
            if body.contains("\"\"") { ROLE } else { INVALID },
        ));
    }
    cases
}
