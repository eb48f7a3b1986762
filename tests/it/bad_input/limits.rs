//! The limits that the README tells: at each the broker still works, and at one more it refuses.

use remit::task::digest;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;

use super::{
    bench::{Bench, Case, EVIDENCE, Expected, INVALID, ROLE, api, get, octets, request},
    forge::Forge,
};
use crate::support::{GIT, KEYTOOL_CSR, RESPONDER, Stand, Store, VIEWER};

/// What the README calls it, and what the last and the first beyond it are answered.
type Limit = (&'static str, [Case; 2]);

/// What the README calls a limit that no single request meets, the file and the line that it stands in.
const IN_TIME: [(&str, &str, &str); 13] = [
    ("time to send a body", "src/http/extract.rs", "const BODY_DEADLINE: Duration = Duration::from_secs({});"),
    ("time of a connection without a request", "src/http/listen.rs", "const IDLE: Duration = Duration::from_secs({});"),
    ("connections on TCP", "src/serve.rs", "const MOST_TCP: usize = {};"),
    ("connections on the Unix socket", "src/serve.rs", "const MOST_UNIX: usize = {};"),
    ("requests under way on a connection", "src/http/listen.rs", "const MOST_REQUESTS: u32 = {};"),
    ("watches of tasks at a time", "src/broker/follow.rs", "const MOST: usize = {};"),
    (
        "looks of one person at a time: the log, searches, workloads, reports",
        "src/broker/sight.rs",
        "const LOOKS: usize = {};",
    ),
    ("followers of the revocation feed at a time", "src/revocation/mod.rs", "pub const FOLLOWERS: u32 = {};"),
    ("certificates of a task that are valid", "src/revocation/crl.rs", "const MOST_OF_A_TASK: usize = {};"),
    (
        "tokens of a task with places of their own that are valid",
        "src/revocation/placed.rs",
        "const MOST_OF_A_TASK: usize = {};",
    ),
    ("the same in a minute", "src/task/report.rs", "const MAX_A_MINUTE: u32 = {};"),
    ("locks in force", "src/broker/locks.rs", "const MOST: usize = {};"),
    ("unknown task ids revoked in a minute", "src/broker/revoke.rs", "const UNSEEN_PER_MINUTE: u32 = {};"),
];

/// The rows of the README's table: what, how much (KiB in octets), and what is beyond.
fn table() -> Vec<(String, usize, String)> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("the README");
    let (_, table) = readme.split_once("| what | at most | beyond it |\n|---|---|---|\n").expect("the table of limits");
    let row = |line: &str| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let (what, most, beyond) = (cells.next()?, cells.next()?, cells.next()?);
        let (number, unit) = most.split_once(' ').unwrap_or((most, ""));
        let number: usize = number.parse().ok()?;
        Some((what.to_owned(), if unit == "KiB" { number * 1024 } else { number }, beyond.to_owned()))
    };
    table.lines().take_while(|line| line.starts_with('|')).map(|line| row(line).expect("a row")).collect()
}

fn most(what: &str) -> usize {
    let table = table();
    table.iter().find(|(other, ..)| other == what).unwrap_or_else(|| panic!("no limit `{what}`")).1
}

/// A limit that a request meets: the same with the most of it, and with one more.
fn limit(what: &'static str, case: impl Fn(usize, String) -> Case) -> Limit {
    let most = most(what);
    (what, [case(most, format!("{what}: {most}")), case(most + 1, format!("{what}: one more"))])
}

/// The answer to the last, or to the first beyond it.
fn then(what: &str, number: usize, last: Expected, beyond: Expected) -> Expected {
    if number > most(what) { beyond } else { last }
}

fn created() -> Expected {
    Expected::Fine(201, json!({"state": "active"}))
}

/// Of requests as such.
fn of_requests(bench: &Bench) -> Vec<Limit> {
    let evidence = bench.stand.evidence();
    let usual = bench.declaration(&json!({}));
    let get_with = |fields: &str| format!("GET /v1/tasks HTTP/1.1\r\nConnection: close\r\nHost: x\r\n{fields}\r\n");
    vec![
        limit("header fields", |n, name| {
            let fields: Vec<_> = (2..n).map(|n| format!("x-{n}: x\r\n")).collect();
            octets(name, get_with(&fields.concat()), then("header fields", n, EVIDENCE, Expected::Bare(&[431])))
        }),
        limit("head of a request", |n, name| {
            // It is read in pieces, so that a few octets more may come through with the last.
            let octets_of_it = if n > most("head of a request") { n + 64 * 1024 } else { n };
            let field = format!("x: {}\r\n", "a".repeat(octets_of_it - get_with("").len() - 5));
            octets(name, get_with(&field), then("head of a request", n, EVIDENCE, Expected::Bare(&[431])))
        }),
        limit("body", |n, name| {
            let expected = then("body", n, created(), Expected::Problem(413, "invalid_request"));
            api(name, "/v1/tasks", &evidence, usual.clone() + &" ".repeat(n - usual.len()), expected)
        }),
        limit("depth of JSON", |n, name| {
            let told = |detail: &str| Expected::Fine(400, json!({"code": "invalid_request", "detail": detail}));
            let read = told("`[0]` is unknown or has the wrong type");
            let expected = then("depth of JSON", n, read, told("the body is not JSON, or repeats a member"));
            api(name, "/v1/tasks", &evidence, "[".repeat(n) + &"]".repeat(n), expected)
        }),
        limit("characters of an `Idempotency-Key`", |n, name| {
            let expected = then("characters of an `Idempotency-Key`", n, created(), INVALID);
            let headers = vec![
                ("content-type", "application/json".to_owned()),
                ("authorization", format!("Bearer {evidence}")),
                ("idempotency-key", "k".repeat(n)),
            ];
            request(name, Method::POST, "/v1/tasks", headers, usual.clone(), expected)
        }),
        limit("tasks on a page", |n, name| {
            let expected = then("tasks on a page", n, Expected::Fine(200, json!({})), INVALID);
            get(name, format!("/v1/tasks?limit={n}"), VIEWER, expected)
        }),
    ]
}

/// Of tokens. Not every length can be written in base64url: one more is the next that can.
fn of_tokens(bench: &Bench) -> Vec<Limit> {
    let forge = bench.evidence();
    let expected = |what, n| then(what, n, created(), EVIDENCE);
    let declare = |name, token: &str, expected| api(name, "/v1/tasks", token, bench.declaration(&json!({})), expected);
    vec![
        limit("token", |n, name| declare(name, &of_length(&forge, n), expected("token", n))),
        limit("header of a token", |n, name| {
            let header = |filler: usize| forge.headed(&json!({"x": "x".repeat(filler)}));
            let long = |filler: &usize| header(*filler).split('.').next().map_or(0, str::len) >= n;
            declare(name, &header((5_000..9_000).find(long).expect("a length")), expected("header of a token", n))
        }),
    ]
}

/// A good token of this length, or of the next that there is.
fn of_length(forge: &Forge<'_>, length: usize) -> String {
    let token = |claims: usize| forge.claiming(&json!({"x": "x".repeat(claims)}));
    let start = (length - token(0).len()) * 3 / 4 - 4;
    (start..length).map(token).find(|token| token.len() >= length).expect("a length")
}

/// Of what is declared.
fn of_declarations(bench: &Bench) -> Vec<Limit> {
    let declare = |name, over: &Value, expected| {
        api(name, "/v1/tasks", &bench.stand.evidence(), bench.declaration(over), expected)
    };
    // A refusal by policy shows that it was read and decided on.
    let details = |name, details: &[Value], expected| {
        declare(name, &json!({"authorization_details": details, "credentials": null}), expected)
    };
    let detail = |location: &str| json!({"type": "remit:access", "locations": [location], "privileges": ["read"]});
    let far = |n: usize| format!("https://{n}.example.com");
    let objects = "objects in `authorization_details`";
    let pairs = "pairs of location and privilege in them";
    let values = "values in one of their lists";
    vec![
        limit(objects, |n, name| details(name, &vec![detail(GIT); n], then(objects, n, created(), INVALID))),
        limit(pairs, |n, name| {
            let all: Vec<String> = (0..n).map(far).collect();
            let all = all.chunks(most(values));
            let all: Vec<_> = all
                .map(|locations| json!({"type": "remit:access", "locations": locations, "privileges": ["read"]}))
                .collect();
            details(name, &all, then(pairs, n, ROLE, INVALID))
        }),
        limit(values, |n, name| {
            let mut one = detail(GIT);
            one["actions"] = (0..n).map(|n| n.to_string()).collect();
            details(name, &[one], then(values, n, created(), INVALID))
        }),
        limit("octets of a value", |n, name| {
            let mut one = detail(GIT);
            one["identifier"] = "é".repeat(n / 2).into();
            one["actions"] = json!(["a".repeat(n)]);
            details(name, &[one], then("octets of a value", n, created(), INVALID))
        }),
        limit("octets of a location", |n, name| {
            let location = format!("{GIT}/{}", "a".repeat(n - GIT.len() - 1));
            details(name, &[detail(&location)], then("octets of a location", n, ROLE, INVALID))
        }),
        limit("objects in `credentials`", |n, name| {
            let all = vec![json!({"resource": GIT, "privilege": "read"}); n];
            declare(name, &json!({"credentials": all}), then("objects in `credentials`", n, created(), INVALID))
        }),
    ]
}

/// Of words: each limit is that of two members.
fn of_words(bench: &Bench) -> Vec<Limit> {
    let declare = |name: String, over: &Value, expected| {
        api(name, "/v1/tasks", &bench.stand.evidence(), bench.declaration(over), expected)
    };
    let word = |what: &'static str, over: fn(String) -> Value, last: Expected| {
        // Octets, not characters.
        limit(what, move |n, name| {
            declare(name, &over("é".repeat(n / 2) + &"a".repeat(n % 2)), then(what, n, last.clone(), INVALID))
        })
    };
    let context = |member: &'static str| move |words: String| json!({"context": { member: words }});
    let (repo, branch, command) = (context("repo"), context("branch"), context("command"));
    let nested = |what: &'static str, over: &dyn Fn(String) -> Value| {
        limit(what, |n, name| declare(name, &over("x".repeat(n)), then(what, n, created(), INVALID)))
    };
    let reason = "octets of `purpose` or `reason`";
    let evidence = bench.stand.evidence();
    vec![
        word(reason, |words| json!({ "purpose": words }), created()),
        limit(reason, |n, name| {
            let body = json!({"reason": "x".repeat(n)}).to_string();
            let expected = then(reason, n, Expected::Fine(200, json!({"state": "revoked"})), INVALID);
            api(name, format!("/v1/tasks/{}/revoke", bench.over[0].0), RESPONDER, body, expected)
        }),
        limit("octets of `csr`", |n, name| {
            let body = json!({"csr": format!("{}{KEYTOOL_CSR}", " ".repeat(n - KEYTOOL_CSR.len()))}).to_string();
            let expected = then("octets of `csr`", n, Expected::Fine(200, json!({})), INVALID);
            api(name, format!("/v1/tasks/{}/certificate", bench.task), &evidence, body, expected)
        }),
        // No such owner is allowed, but that is policy's to say.
        word("octets of `owner` or `sandbox`", |words| json!({ "owner": words }), ROLE),
        word("octets of `owner` or `sandbox`", |words| json!({ "sandbox": words }), created()),
        word("octets of `environment` or `data_classification`", |words| json!({ "environment": words }), created()),
        word(
            "octets of `environment` or `data_classification`",
            |words| json!({ "data_classification": words }),
            created(),
        ),
        nested("octets of `repo` or `branch`", &repo),
        nested("octets of `repo` or `branch`", &branch),
        nested("octets of `command`", &command),
    ]
}

/// Of reports, in an order in which each still works: the task's first is far past a gap, which the others fill.
fn of_reports(bench: &Bench) -> Vec<Limit> {
    let evidence = bench.stand.evidence();
    let report = |sequence: usize, label: &str| json!({"kind": "prompt", "label": label, "digest": digest(b""), "size": 0, "sequence": sequence});
    let send = |name, reports: Vec<Value>, expected| {
        let body = json!({ "reports": reports }).to_string();
        api(name, format!("/v1/tasks/{}/reports", bench.task), &evidence, body, expected)
    };
    let accepted = |n: usize| Expected::Fine(200, json!({"accepted": n}));
    let (past, all) = ("reports past a gap", "reports of a task by one reporter");
    let (label, objects) = ("characters of a `label`", "objects in `reports`");
    vec![
        limit(past, |n, name| send(name, vec![report(n, "a")], then(past, n, accepted(1), INVALID))),
        limit(label, |n, name| send(name, vec![report(1, &"a".repeat(n))], then(label, n, accepted(1), INVALID))),
        limit(objects, |n, name| {
            let reports = (2..n + 2).map(|sequence| report(sequence, "a")).collect();
            send(name, reports, then(objects, n, accepted(n), INVALID))
        }),
        // Of that many, most are missing here.
        limit(all, |n, name| {
            send(name, vec![report(n, "a")], then(all, n, INVALID, Expected::Problem(429, "quota_exceeded")))
        }),
    ]
}

#[tokio::test]
async fn the_limits_are_those_of_the_readme() {
    let bench = Bench::new(Stand::new(Store::Embedded).await).await;
    let limits = [of_requests, of_tokens, of_declarations, of_words, of_reports];
    let limits: Vec<Limit> = limits.iter().flat_map(|of| of(&bench)).collect();
    let mut wrong = Vec::new();
    for case in limits.iter().flat_map(|(_, cases)| cases) {
        wrong.extend(bench.wrong(case).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (what, file, line) in IN_TIME {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("a source");
        let line = line.replace("{}", &most(what).to_string());
        assert!(text.contains(&line), "`{what}` in the README is not `{line}` in {file}");
    }
    // And the README tells of none that nobody tried.
    for (what, _, beyond) in table() {
        let tried = limits.iter().any(|(other, _)| *other == what);
        assert!(tried || IN_TIME.iter().any(|(other, ..)| *other == what), "`{what}` is not tried");
        assert!(["400", "401", "408", "413", "429", "431", "closed", "wait"].contains(&&*beyond), "{what}: {beyond}");
    }
}
