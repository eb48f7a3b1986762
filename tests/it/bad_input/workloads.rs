//! What a workload can get wrong: its evidence, what it declares, what it asks to be minted, what it may not do to others.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    bench::{
        Bench, CLIENT, Case, EVIDENCE, EXCHANGE, Expected, FOREIGN, INVALID, JWT, KEY, OAUTH, ROLE, UNKNOWN, api,
        encode, form, get, request,
    },
    forge::{Odd, as_evidence, odd},
};
use crate::support::{
    ADMIN, GIT, GIT_TOKEN, ISSUER, NOWHERE, OWNER, REGISTRY, REGISTRY_TOKEN, RESPONDER, VIEWER, declaration, now,
};

const SCOPE: Expected = Expected::OAuth(400, "invalid_scope");
const TARGET: Expected = Expected::OAuth(400, "invalid_target");
const GRANT: Expected = Expected::OAuth(400, "invalid_grant");
const DETAILS: Expected = Expected::OAuth(400, "invalid_authorization_details");
const ENDED: Expected = Expected::Problem(409, "task_not_active");

fn exchange(bench: &Bench, name: impl Into<String>, over: &[(&str, &str)], expected: Expected) -> Case {
    form(name, "/oauth2/token", "", bench.exchange(over), expected)
}

fn declare(bench: &Bench, name: impl Into<String>, over: &Value, expected: Expected) -> Case {
    api(name, "/v1/tasks", &bench.stand.evidence(), bench.declaration(over), expected)
}

/// The authority of a declaration, with these members over it.
fn authority(over: &Value) -> Value {
    let mut detail = json!({"type": "remit:access", "locations": [GIT], "privileges": ["read"]});
    for (name, value) in over.as_object().into_iter().flatten() {
        detail[name] = value.clone();
    }
    json!({"authorization_details": [detail], "credentials": null})
}

/// Row 19.
pub(super) fn evidence_for_another(bench: &Bench) -> Vec<Case> {
    let (own, forge) = (&bench.stand.broker.url, bench.evidence());
    let mut bad: Odd = Vec::new();
    for audience in [
        json!("https://other-broker.example.com"),
        json!(GIT),
        json!(""),
        json!("*"),
        json!(format!("{own}/")),
        json!(format!("{own}/v1")),
        json!(format!("{own}.evil.example")),
        json!(format!("{own}@evil.example")),
        json!(own.to_uppercase()),
        json!(&own[..own.len() - 1]),
        json!(own.replace("http:", "https:")),
        json!(["https://other-broker.example.com"]),
        json!([]),
        json!({}),
        json!(null),
    ] {
        bad.push(odd(format!("for {audience}"), forge.claiming(&json!({ "aud": audience }))));
    }
    bad.push(odd("for nobody", forge.without("aud")));
    as_evidence(bench, bad)
}

/// Row 27.
pub(super) fn evidence_from_another_time(bench: &Bench) -> Vec<Case> {
    let (now, forge) = (now(), bench.evidence());
    let day = 86_400;
    let bad = [
        ("issued in a minute", json!({"iat": now + 60})),
        ("issued tomorrow", json!({"iat": now + day, "exp": now + 2 * day})),
        ("issued too long ago", json!({"iat": now - 3_700})),
        ("issued a day ago and still valid", json!({"iat": now - day, "exp": now + day})),
        ("of a clock that is a day behind", json!({"iat": now - day, "exp": now - day + 300})),
        ("expired a second ago", json!({"exp": now - 1})),
        ("not valid for another minute", json!({"nbf": now + 60})),
        ("issued at the beginning of time", json!({"iat": 0})),
    ];
    as_evidence(bench, bad.into_iter().map(|(name, over)| odd(name, forge.claiming(&over))).collect())
}

/// Row 29.
pub(super) fn evidence_of_an_unknown_kind(bench: &Bench) -> Vec<Case> {
    let forge = bench.evidence();
    let mut cases = Vec::new();
    for kind in [
        "jwt",
        "JWT",
        "oidc",
        "k8s",
        "K8S",
        "k8s ",
        "urn:ietf:params:oauth:token-type:JWT",
        "urn:ietf:params:oauth:token-type:jwt ",
        "urn:ietf:params:oauth:token-type:access_token",
        "urn:ietf:params:oauth:token-type:saml2",
        "URN:ietf:params:oauth:token-type:jwt",
        "x",
    ] {
        cases.push(exchange(bench, format!("as `{kind}`"), &[("subject_token_type", kind)], OAUTH));
    }
    let issuers = [
        "https://unknown.example.com",
        "HTTPS://ci.example.com",
        "https://ci.example.com/",
        "https://CI.example.com",
        "ci",
        "",
        "https://ci.example.com ",
        "https://ci.exаmple.com",
    ];
    let strangers =
        issuers.map(|issuer| odd(format!("of the issuer `{issuer}`"), forge.claiming(&json!({ "iss": issuer }))));
    cases.extend(as_evidence(bench, strangers.into()));
    cases.extend(as_evidence(
        bench,
        vec![
            odd("of no issuer", forge.without("iss")),
            odd("of two issuers", forge.claiming(&json!({"iss": [ISSUER, ISSUER]}))),
        ],
    ));
    cases
}

/// Row 31.
pub(super) fn scopes(bench: &Bench) -> Vec<Case> {
    let task = &bench.task;
    let many = "read ".repeat(10_000);
    let mut cases = vec![];
    for (name, scope) in [
        ("nothing", "-".to_owned()),
        ("empty", String::new()),
        ("the task alone", task.clone()),
        ("a privilege alone", "read".into()),
        ("everything", format!("{task} *")),
        ("everything, alone", "*".into()),
        ("two privileges", format!("{task} read write")),
        ("a privilege twice", format!("{task} read read")),
        ("the task twice", format!("{task} {task} read")),
        ("two tasks", format!("{task} {UNKNOWN} read")),
        ("10 000 of them", format!("{task} {many}")),
        ("in capitals", format!("{task} READ")),
        ("in mixed case", format!("{task} Read")),
        ("the task in capitals", format!("{} read", task.to_uppercase())),
        ("one that is not granted", format!("{task} secret")),
        ("one that nobody knows", format!("{task} admin")),
        ("a prefix", format!("{task} rea")),
        ("a comma", format!("{task},read")),
        ("two spaces", format!("{task}  read")),
        ("a space before", format!(" {task} read")),
        ("a tab", format!("{task}\tread")),
        ("a line break", format!("{task} read\n")),
        ("an escape sequence", format!("{task} \u{1b}[2Jread")),
        ("a quote", format!("{task} \"read\"")),
        ("a letter of another alphabet", format!("{task} reаd")),
        ("an invisible letter", format!("{task} read\u{200b}")),
        ("a path", format!("{task} ../read")),
        ("openid", "openid profile".into()),
    ] {
        cases.push(exchange(bench, name, &[("scope", &scope)], SCOPE));
    }
    for (name, privilege, expected) in [
        ("everything", "*", INVALID),
        ("in capitals", "READ", INVALID),
        ("empty", "", INVALID),
        ("unknown", "admin", INVALID),
        ("another alphabet's", "reаd", INVALID),
        ("with a NUL", "read\0", INVALID),
        ("not granted", "secret", ROLE),
    ] {
        cases.push(bench.mint(
            format!("{name}, at our own API"),
            &json!([{"resource": GIT, "privilege": privilege}]),
            expected,
        ));
    }
    for (name, privileges) in [
        ("none at all", json!([])),
        ("everything", json!(["*"])),
        ("in capitals", json!(["READ"])),
        ("one twice", json!(["read", "read"])),
        ("10 000 of them", json!(vec!["read"; 5_000])),
        ("no list", json!("read")),
        ("null", json!(null)),
        ("one that is a number", json!([1])),
    ] {
        cases.push(declare(
            bench,
            format!("{name}, declared"),
            &authority(&json!({ "privileges": privileges })),
            INVALID,
        ));
    }
    cases
}

/// Row 32.
pub(super) fn targets(bench: &Bench) -> Vec<Case> {
    let long = format!("https://git.example.com/{}", "a".repeat(2_100));
    let mut cases = vec![exchange(bench, "two audiences", &[("audience", GIT)], TARGET)];
    for resource in [
        "-",
        "",
        " ",
        "git",
        "git.example.com",
        "//git.example.com",
        "/",
        "https:",
        "https://",
        "https:git.example.com",
        "https:/git.example.com",
        "urn:x",
        "*",
        "https://*",
        "https://*.example.com",
        NOWHERE,
        REGISTRY,
        "https://git.example.com#a",
        "https://git.example.com#",
        "https://git.example.com/",
        "https://git.example.com/repo",
        "https://git.example.com?x=1",
        "https://git.example.com:443",
        "https://git.example.com.",
        "https://git.example.com/..",
        "https://git.example.com/%2e",
        "https://GIT.example.com",
        "HTTPS://git.example.com",
        "http://git.example.com",
        "https://u@git.example.com",
        "https://u:p@git.example.com",
        "https://git.example.com@evil.example.com",
        "https://git.example.com\\@evil.example.com",
        " https://git.example.com",
        "https://git.example.com ",
        "https://git.example.com\n",
        "https://git.example.com\t",
        "https://git.exаmple.com",
        "https://gıt.example.com",
        "https://git。example.com",
        "https://git.example.com https://registry.example.com",
        "https://git.example.com,https://registry.example.com",
        "[\"https://git.example.com\"]",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "https://[::1",
        &long,
    ] {
        cases.push(exchange(bench, format!("`{resource}`"), &[("resource", resource)], TARGET));
    }
    for resource in [
        json!("git"),
        json!(""),
        json!("https://git.example.com#a"),
        json!("HTTPS://git.example.com"),
        json!([GIT]),
        json!([GIT, REGISTRY]),
        json!(null),
        json!(1),
        json!({}),
    ] {
        cases.push(bench.mint(
            format!("{resource}, at our own API"),
            &json!([{"resource": resource, "privilege": "read"}]),
            INVALID,
        ));
    }
    for resource in [NOWHERE, REGISTRY, "https://git.example.com/", "http://git.example.com"] {
        cases.push(bench.mint(
            format!("`{resource}`, at our own API"),
            &json!([{"resource": resource, "privilege": "read"}]),
            ROLE,
        ));
    }
    cases
}

/// Row 33.
pub(super) fn lifetimes(bench: &Bench) -> Vec<Case> {
    let huge: Value = serde_json::from_str("1e308").unwrap_or_default();
    let mut cases = Vec::new();
    for ttl in [
        json!(0),
        json!(-1),
        json!(-0.0),
        json!(0.5),
        json!(1.5),
        json!(60.0),
        json!(1e18),
        huge,
        json!(u32::MAX),
        json!(u64::from(u32::MAX) + 1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!("15m"),
        json!("60"),
        json!(""),
        json!("PT15M"),
        json!(true),
        json!(false),
        json!([60]),
        json!({"seconds": 60}),
    ] {
        cases.push(declare(bench, format!("ttl {ttl}, declared"), &json!({ "ttl": ttl }), INVALID));
        let of_one = json!([{"resource": GIT, "privilege": "read", "ttl": ttl}]);
        // A credential's is brought down to its bound where it is a lifetime at all.
        if ttl != json!(u32::MAX) {
            cases.push(bench.mint(format!("ttl {ttl}, minted"), &of_one, INVALID));
        }
        let renew = format!("/v1/tasks/{}/renew", bench.task);
        cases.push(api(
            format!("ttl {ttl}, renewed"),
            renew,
            &bench.stand.evidence(),
            json!({ "ttl": ttl }).to_string(),
            INVALID,
        ));
    }
    let text = |ttl: &str| bench.declaration(&json!({})).replacen("\"ttl\":600", &format!("\"ttl\":{ttl}"), 1);
    for ttl in ["-1e-400", "1e-400", "4294967296", "99999999999999999999999999", "6e2", "600.0", "1e400"] {
        cases.push(api(format!("ttl {ttl}, as it stands"), "/v1/tasks", &bench.stand.evidence(), text(ttl), INVALID));
    }
    cases.push(declare(bench, "a second more than policy allows", &json!({"ttl": 601}), INVALID));
    cases
}

/// Row 34.
pub(super) fn ids_of_ones_own(bench: &Bench) -> Vec<Case> {
    let (task, over) = (&bench.task, &bench.over[0].0);
    let mut cases = Vec::new();
    for member in [
        "task",
        "id",
        "task_id",
        "lease",
        "jti",
        "parent",
        "generation",
        "workload",
        "instance",
        "state",
        "created_at",
        "expires_at",
    ] {
        cases.push(declare(bench, format!("`{member}` in a declaration"), &json!({ member: task }), INVALID));
    }
    let child = format!("{task}-0123456789");
    let braces = format!("{{{task}}}");
    let large = "a".repeat(60_000);
    for id in [
        &braces,
        &format!("{task}:lease"),
        &format!("{task}*"),
        &format!("{task}-"),
        &format!("{task}-012345678"),
        &format!("{task}{child}"),
        "task_{x}",
        "{x}",
        "task_01JD0000000000000000000000",
        "task_81jd0000000000000000000000",
        "task_01jd000000000000000000000u",
        "",
        &large,
    ] {
        let credentials = json!([{"resource": GIT, "privilege": "read"}]);
        let body = json!({ "credentials": credentials }).to_string();
        let escaped = id.replace('{', "%7b").replace('}', "%7d");
        let name: String = id.chars().take(60).collect();
        cases.push(api(
            format!("minting for `{name}`"),
            format!("/v1/tasks/{escaped}/credentials"),
            &bench.stand.evidence(),
            body,
            INVALID,
        ));
        cases.push(api(
            format!("revoking `{name}`"),
            format!("/v1/tasks/{escaped}/revoke"),
            RESPONDER,
            r#"{"reason":"x"}"#,
            INVALID,
        ));
        cases.push(exchange(bench, format!("`{name}` as scope"), &[("scope", &format!("{id} read"))], SCOPE));
        let detail =
            json!([{"type": "remit:task", "identifier": id, "locations": [GIT], "privileges": ["read"]}]).to_string();
        cases.push(exchange(
            bench,
            format!("`{name}` in details"),
            &[("scope", "-"), ("resource", "-"), ("authorization_details", &detail)],
            DETAILS,
        ));
    }
    // Well-formed ids that somebody else made up are nobody's.
    for (name, id) in [("unknown", UNKNOWN), ("a child that is none", &child)] {
        cases.push(exchange(bench, name, &[("scope", &format!("{id} read"))], GRANT));
        cases.push(get(format!("{name}, shown"), format!("/v1/tasks/{id}"), &bench.stand.evidence(), FOREIGN));
    }
    let renamed = ("idempotency-key", over.clone());
    let headers = vec![
        ("content-type", "application/json".to_owned()),
        ("authorization", format!("Bearer {}", bench.stand.evidence())),
        renamed,
        ("x-task-id", task.clone()),
    ];
    cases.push(request("an id among the headers", Method::POST, "/v1/tasks", headers, "{}", INVALID));
    cases
}

/// Row 35.
pub(super) fn one_detail(bench: &Bench) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, over) in [
        ("another type", json!({"type": "other"})),
        ("a type in capitals", json!({"type": "REMIT:ACCESS"})),
        ("no type", json!({"type": null})),
        ("a type that is a list", json!({"type": ["remit:access"]})),
        ("another member", json!({"constraints": {}})),
        ("`__proto__`", json!({"__proto__": {}})),
        ("no location", json!({"locations": []})),
        ("a location that is text", json!({"locations": GIT})),
        ("every location", json!({"locations": ["*"]})),
        ("a location twice", json!({"locations": [GIT, GIT]})),
        ("33 locations", json!({"locations": (0..33).map(|n| format!("https://{n}.example.com")).collect::<Vec<_>>()})),
        ("a nested list", json!({"locations": [[GIT]]})),
        ("no actions, listed", json!({"actions": []})),
        ("actions that are text", json!({"actions": "clone"})),
        ("33 actions", json!({"actions": (0..33).map(|n| n.to_string()).collect::<Vec<_>>()})),
        ("an action twice", json!({"actions": ["a", "a"]})),
        ("an empty action", json!({"actions": [""]})),
        ("an action of 257 octets", json!({"actions": ["a".repeat(257)]})),
        ("a control character", json!({"actions": ["a\u{0}"]})),
        ("datatypes that are numbers", json!({"datatypes": [1]})),
        ("an empty identifier", json!({"identifier": ""})),
        ("an identifier that is a number", json!({"identifier": 1})),
        ("an identifier of 257 octets", json!({"identifier": "a".repeat(257)})),
    ] {
        cases.push(declare(bench, format!("{name}, declared"), &authority(&over), INVALID));
        let mut declaration: Value = serde_json::from_str(&bench.declaration(&authority(&over))).unwrap_or_default();
        declaration["type"] = json!("remit:declaration");
        let text = json!([declaration]).to_string();
        cases.push(exchange(
            bench,
            format!("{name}, declared by OAuth"),
            &[("scope", "read"), ("authorization_details", &text)],
            DETAILS,
        ));
    }
    cases
}

/// Row 35.
pub(super) fn lists_of_details(bench: &Bench) -> Vec<Case> {
    let detail = json!({"type": "remit:access", "locations": [GIT], "privileges": ["read"]});
    let many: Vec<_> = (0..22).map(|n| format!("https://{n}.example.com")).collect();
    let many = json!({"type": "remit:access", "locations": many, "privileges": ["read", "write", "secret"]});
    let mut cases = Vec::new();
    for (name, details) in [
        ("none", json!([])),
        ("17 of them", json!(vec![detail.clone(); 17])),
        ("no list", detail.clone()),
        ("null", json!(null)),
        ("text", json!("[]")),
        ("numbers", json!([1])),
        ("132 pairs", json!([many, many])),
    ] {
        cases.push(declare(
            bench,
            format!("{name}, declared"),
            &json!({"authorization_details": details, "credentials": null}),
            INVALID,
        ));
    }
    let task = |over: Value| {
        let mut detail =
            json!({"type": "remit:task", "identifier": bench.task, "locations": [GIT], "privileges": ["read"]});
        for (name, value) in over.as_object().into_iter().flatten() {
            detail[name] = value.clone();
        }
        json!([detail]).to_string()
    };
    for (name, text) in [
        ("no JSON", "{".to_owned()),
        ("an object", "{}".into()),
        ("nothing in it", "[]".into()),
        ("null in it", "[null]".into()),
        ("more after it", "[] []".into()),
        ("an unknown type", json!([{"type": "payment_initiation"}]).to_string()),
        ("a task of two locations", task(json!({"locations": [GIT, REGISTRY]}))),
        ("a task of two privileges", task(json!({"privileges": ["read", "write"]}))),
        ("a task of no privilege", task(json!({"privileges": []}))),
        ("a task with more to it", task(json!({"actions": ["clone"]}))),
        ("a task that disagrees with `scope`", task(json!({"privileges": ["write"]}))),
        ("a task that disagrees with `resource`", task(json!({"locations": [REGISTRY]}))),
        ("two of them", format!("[{0},{0}]", task(json!({})).trim_matches(['[', ']']))),
    ] {
        cases.push(exchange(bench, format!("{name}, minted"), &[("authorization_details", &text)], DETAILS));
    }
    cases
}

/// Row 36.
pub(super) fn what_policy_denies(bench: &Bench) -> Vec<Case> {
    let details = |over: &Value| {
        let mut declaration: Value = serde_json::from_str(&bench.declaration(over)).unwrap_or_default();
        declaration["type"] = json!("remit:declaration");
        json!([declaration]).to_string()
    };
    let by_oauth = |name: &str, over: &Value, expected: Expected| {
        exchange(bench, name, &[("scope", "-"), ("resource", "-"), ("authorization_details", &details(over))], expected)
    };
    let denied = Expected::OAuth(400, "unauthorized_client");
    vec![
        declare(bench, "an environment that is forbidden", &json!({"environment": "production"}), ROLE),
        declare(bench, "an owner who is not the workload's", &json!({"owner": "mallory@example.com"}), ROLE),
        declare(bench, "an owner in capitals", &json!({"owner": OWNER.to_uppercase()}), ROLE),
        declare(
            bench,
            "a location that nothing permits",
            &authority(&json!({"locations": ["https://unknown.example.com"]})),
            ROLE,
        ),
        by_oauth("an environment that is forbidden, by OAuth", &json!({"environment": "production"}), denied.clone()),
        by_oauth("an owner who is not the workload's, by OAuth", &json!({"owner": "mallory@example.com"}), denied),
    ]
}

/// Row 38.
pub(super) fn what_is_over(bench: &Bench) -> Vec<Case> {
    let mut cases = Vec::new();
    for ((task, token), how) in bench.over.iter().zip(["revoked", "completed", "expired"]) {
        let body = json!({"credentials": [{"resource": GIT, "privilege": "read"}]}).to_string();
        let evidence = bench.stand.evidence();
        cases.push(api(
            format!("mint for a {how} task"),
            format!("/v1/tasks/{task}/credentials"),
            &evidence,
            body,
            ENDED,
        ));
        cases.push(api(format!("renew a {how} task"), format!("/v1/tasks/{task}/renew"), &evidence, "{}", ENDED));
        cases.push(exchange(
            bench,
            format!("mint for a {how} task, by OAuth"),
            &[("scope", &format!("{task} read"))],
            GRANT,
        ));
        cases.push(super::bench::ask(format!("a token of a {how} task"), token, Expected::Inactive));
    }
    cases
}

/// Row 39.
pub(super) fn a_key_used_again(bench: &Bench) -> Vec<Case> {
    let evidence = bench.stand.evidence();
    let with = |name: &str, keys: &[&str], body: String, expected: Expected| {
        let mut headers =
            vec![("content-type", "application/json".to_owned()), ("authorization", format!("Bearer {evidence}"))];
        headers.extend(keys.iter().map(|key| ("idempotency-key", (*key).to_owned())));
        request(name, Method::POST, "/v1/tasks", headers, body, expected)
    };
    let usual = declaration().to_string();
    let reused = Expected::Problem(422, "idempotency_key_reused");
    let mut cases = vec![
        with("the same body is the same task", &[KEY], usual.clone(), Expected::Fine(201, json!({"task": bench.task}))),
        with("another lifetime", &[KEY], bench.declaration(&json!({"ttl": 60})), reused.clone()),
        with(
            "more authority",
            &[KEY],
            bench.declaration(&authority(&json!({"privileges": ["read", "write", "secret"]}))),
            reused.clone(),
        ),
        with("a space more", &[KEY], format!("{usual} "), reused),
        with("two keys", &[KEY, "other"], usual.clone(), INVALID),
        with("the same key twice", &[KEY, KEY], usual.clone(), INVALID),
        with("an empty key", &[""], usual.clone(), INVALID),
        with("a key of 256 octets", &[&"k".repeat(256)], usual.clone(), INVALID),
        with("a key in another alphabet", &["ключ"], usual, INVALID),
    ];
    let parameters = bench.exchange(&[("scope", "-"), ("resource", "-"), ("authorization_details", "[]")]);
    let headers =
        vec![("content-type", "application/x-www-form-urlencoded".to_owned()), ("idempotency-key", KEY.to_owned())];
    cases.push(request("another request by OAuth", Method::POST, "/oauth2/token", headers, parameters, DETAILS));
    cases
}

/// Row 47.
pub(super) fn grants(bench: &Bench) -> Vec<Case> {
    let unsupported = Expected::OAuth(400, "unsupported_grant_type");
    let mut cases = vec![
        exchange(bench, "none", &[("grant_type", "-")], OAUTH),
        exchange(bench, "empty", &[("grant_type", "")], OAUTH),
        form("twice", "/oauth2/token", "", bench.exchange(&[]) + "&grant_type=client_credentials", OAUTH),
        exchange(bench, "the other one with a subject", &[("grant_type", "client_credentials")], OAUTH),
        exchange(bench, "no subject", &[("subject_token", "-")], OAUTH),
        exchange(bench, "an empty subject", &[("subject_token", "")], OAUTH),
        exchange(bench, "no type of the subject", &[("subject_token_type", "-")], OAUTH),
        exchange(bench, "an actor", &[("actor_token", &bench.token), ("actor_token_type", JWT)], OAUTH),
        exchange(
            bench,
            "an actor instead of a subject",
            &[("subject_token", "-"), ("actor_token", &bench.stand.evidence()), ("actor_token_type", JWT)],
            OAUTH,
        ),
        exchange(bench, "a client secret too", &[("client_secret", "x")], CLIENT),
        exchange(
            bench,
            "a client assertion too",
            &[
                ("client_assertion", &bench.stand.evidence()),
                ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ],
            CLIENT,
        ),
        form(
            "the kernel where there is none",
            "/oauth2/token",
            "",
            encode(&[
                ("grant_type", "client_credentials"),
                ("resource", GIT),
                ("scope", &format!("{} read", bench.task)),
            ]),
            CLIENT,
        ),
        exchange(
            bench,
            "another form of token",
            &[("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token")],
            OAUTH,
        ),
        exchange(bench, "no form that there is", &[("requested_token_type", "access_token")], OAUTH),
    ];
    let upper = EXCHANGE.to_uppercase();
    for grant in [
        "password",
        "authorization_code",
        "refresh_token",
        "implicit",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "urn:ietf:params:oauth:grant-type:device_code",
        "CLIENT_CREDENTIALS",
        &upper,
        "token-exchange",
        &format!("{EXCHANGE} "),
        "x",
    ] {
        cases.push(exchange(bench, format!("`{grant}`"), &[("grant_type", grant)], unsupported.clone()));
    }
    cases
}

/// Row 61.
pub(super) fn revoked_again(bench: &Bench) -> Vec<Case> {
    let (task, _) = &bench.over[0];
    let first = json!({"task": task, "state": "revoked", "known": true, "effective_by": bench.revoke["effective_by"]});
    let body = r#"{"reason":"again"}"#;
    vec![
        api("a second time", format!("/v1/tasks/{task}/revoke"), RESPONDER, body, Expected::Fine(200, first.clone())),
        api("a third time", format!("/v1/tasks/{task}/revoke"), RESPONDER, body, Expected::Fine(200, first)),
        api(
            "what nobody has seen, as a workload",
            format!("/v1/tasks/{UNKNOWN}/revoke"),
            &bench.stand.evidence(),
            body,
            FOREIGN,
        ),
        api("without a reason", format!("/v1/tasks/{task}/revoke"), RESPONDER, "{}", INVALID),
    ]
}

/// Row 62.
pub(super) fn what_is_anothers(bench: &Bench) -> Vec<Case> {
    let other = bench.stand.other_instance();
    let another = bench.stand.issuer.evidence(&bench.stand.broker.url, json!({"repository": "acme/other"}));
    let mut cases = Vec::new();
    for (who, evidence) in [("another run", &other), ("another workload", &another)] {
        for id in [&bench.task, UNKNOWN] {
            let at = |rest: &str| format!("/v1/tasks/{id}{rest}");
            let body = json!({"credentials": [{"resource": GIT, "privilege": "read"}]}).to_string();
            cases.push(api(format!("{who} revokes {id}"), at("/revoke"), evidence, r#"{"reason":"x"}"#, FOREIGN));
            cases.push(api(format!("{who} completes {id}"), at("/complete"), evidence, "{}", FOREIGN));
            cases.push(api(format!("{who} renews {id}"), at("/renew"), evidence, "{}", FOREIGN));
            cases.push(api(format!("{who} mints for {id}"), at("/credentials"), evidence, body, FOREIGN));
            cases.push(get(format!("{who} looks at {id}"), at(""), evidence, FOREIGN));
            cases.push(exchange(
                bench,
                format!("{who} mints for {id} by OAuth"),
                &[("subject_token", evidence), ("scope", &format!("{id} read"))],
                GRANT,
            ));
        }
    }
    cases
}

/// Row 63.
pub(super) fn ids_as_keys(bench: &Bench) -> Vec<Case> {
    let (task, lease) = (&bench.task, &bench.lease);
    let mut cases = Vec::new();
    let hash = bench.declared["authority_hash"].as_str().unwrap_or_default();
    let workload = bench.declared["workload"].as_str().unwrap_or_default();
    for id in [task, lease, hash, workload] {
        let at = |rest: &str| format!("/v1/tasks/{task}{rest}");
        cases.push(api(format!("`{id}` revokes"), at("/revoke"), id, r#"{"reason":"x"}"#, EVIDENCE));
        cases.push(api(format!("`{id}` completes"), at("/complete"), id, "{}", EVIDENCE));
        cases.push(api(format!("`{id}` renews"), at("/renew"), id, "{}", EVIDENCE));
        cases.push(get(format!("`{id}` looks"), at(""), id, EVIDENCE));
        cases.push(exchange(bench, format!("`{id}` as a subject"), &[("subject_token", id)], OAUTH));
        cases.push(form(format!("`{id}` asks"), "/oauth2/introspect", id, encode(&[("token", &bench.token)]), CLIENT));
        cases.push(super::bench::ask(format!("`{id}` is asked about"), id, Expected::Inactive));
    }
    cases.push(api(
        "a lease instead of a task",
        format!("/v1/tasks/{lease}/revoke"),
        RESPONDER,
        r#"{"reason":"x"}"#,
        INVALID,
    ));
    cases.push(api(
        "a lease instead of a task, completing",
        format!("/v1/tasks/{lease}/complete"),
        &bench.stand.evidence(),
        "{}",
        INVALID,
    ));
    cases
}

/// Rows 61 and 65: what is none of the caller's is done with, and who may not say so is refused.
pub(super) fn revocations_of_tokens(bench: &Bench) -> Vec<Case> {
    let revoke = |what: &str, bearer: &str, token: &str, hint: &str, expected| {
        let body = encode(&[("token", token), ("token_type_hint", hint)]);
        form(format!("{what}, `{hint}`"), "/oauth2/revoke", bearer, body, expected)
    };
    let mut cases = Vec::new();
    for hint in ["refresh_token", "nonsense", "", "\u{1f5dd}"] {
        cases.push(revoke("garbage", &bench.stand.evidence(), "x", hint, Expected::Fine(200, json!({}))));
        cases.push(revoke(
            "another's",
            &bench.stand.other_instance(),
            &bench.token,
            hint,
            Expected::Fine(200, json!({})),
        ));
        cases.push(revoke("by a service", GIT_TOKEN, &bench.token, hint, Expected::OAuth(401, "invalid_client")));
    }
    cases
}

/// Row 65.
pub(super) fn hints(bench: &Bench) -> Vec<Case> {
    let mut cases = Vec::new();
    for hint in ["refresh_token", "nonsense", "access_token", "", "\u{1f5dd}"] {
        let ask = |token: &str| encode(&[("token", token), ("token_type_hint", hint)]);
        cases.push(form(
            format!("`{hint}`, of garbage"),
            "/oauth2/introspect",
            GIT_TOKEN,
            ask("x"),
            Expected::Inactive,
        ));
        let alive = Expected::Fine(200, json!({"active": true}));
        cases.push(form(
            format!("`{hint}`, of a good token"),
            "/oauth2/introspect",
            GIT_TOKEN,
            ask(&bench.token),
            alive,
        ));
    }
    cases
}

/// Row 67.
pub(super) fn questions_about_tokens(bench: &Bench) -> Vec<Case> {
    let token = encode(&[("token", &bench.token)]);
    let mut cases = Vec::new();
    let svid = bench.svid.clone();
    for (who, bearer) in [
        ("nobody", ""),
        ("garbage", "x"),
        ("a workload", &*bench.stand.evidence()),
        ("the token itself", &bench.token),
        ("a JWT-SVID", &svid),
    ] {
        cases.push(form(format!("asked by {who}"), "/oauth2/introspect", bearer, token.clone(), CLIENT));
    }
    cases.push(form(
        "asked by the service of another audience",
        "/oauth2/introspect",
        REGISTRY_TOKEN,
        token.clone(),
        Expected::Inactive,
    ));
    for scheme in ["Basic", "DPoP", "Digest"] {
        let headers = vec![
            ("content-type", "application/x-www-form-urlencoded".to_owned()),
            ("authorization", format!("{scheme} {GIT_TOKEN}")),
        ];
        cases.push(request(
            format!("asked by {scheme}"),
            Method::POST,
            "/oauth2/introspect",
            headers,
            token.clone(),
            CLIENT,
        ));
    }
    for (name, token) in [
        ("garbage", "x".to_owned()),
        ("three parts of garbage", "a.b.c".into()),
        ("evidence", bench.stand.evidence()),
        ("the token of a service", GIT_TOKEN.into()),
        ("a token with a space after it", format!("{} ", bench.token)),
        ("a token with its scheme", format!("Bearer {}", bench.token)),
        ("a token of a revoked task", bench.over[0].1.clone()),
        ("a token of a completed task", bench.over[1].1.clone()),
        ("a token of an expired task", bench.over[2].1.clone()),
    ] {
        cases.push(super::bench::ask(name, &token, Expected::Inactive));
    }
    cases.push(form("nothing", "/oauth2/introspect", GIT_TOKEN, "", OAUTH));
    cases.push(form("an empty token", "/oauth2/introspect", GIT_TOKEN, "token=", OAUTH));
    cases
}

/// Row 107.
pub(super) fn what_operators_do(bench: &Bench) -> Vec<Case> {
    let (task, reason) = (&bench.task, r#"{"reason":"x"}"#);
    let revoke = format!("/v1/tasks/{task}/revoke");
    let evidence = bench.stand.other_instance();
    let expired = bench.stand.issuer.evidence(&bench.stand.broker.url, json!({"exp": now() - 1}));
    vec![
        api("a workload revokes another's", revoke.clone(), &evidence, reason, FOREIGN),
        api("a minted token revokes", revoke.clone(), &bench.token, reason, EVIDENCE),
        api("evidence that ran out revokes", revoke.clone(), &expired, reason, EVIDENCE),
        api("a viewer revokes", revoke.clone(), VIEWER, reason, ROLE),
        api("an admin who is no responder revokes", revoke.clone(), ADMIN, reason, ROLE),
        api("a service revokes", revoke.clone(), GIT_TOKEN, reason, ROLE),
        api("a responder's token in capitals revokes", revoke.clone(), &RESPONDER.to_uppercase(), reason, EVIDENCE),
        api(
            "the digest of a responder's token revokes",
            revoke,
            &remit::id::sha256_hex(RESPONDER.as_bytes()),
            reason,
            EVIDENCE,
        ),
        api("a responder completes", format!("/v1/tasks/{task}/complete"), RESPONDER, "{}", ROLE),
        api("a responder declares", "/v1/tasks", RESPONDER, declaration().to_string(), ROLE),
        api("an admin declares", "/v1/tasks", ADMIN, declaration().to_string(), ROLE),
        api(
            "a responder mints",
            format!("/v1/tasks/{task}/credentials"),
            RESPONDER,
            json!({"credentials": [{"resource": GIT, "privilege": "read"}]}).to_string(),
            ROLE,
        ),
        get("a service lists tasks", "/v1/tasks", GIT_TOKEN, ROLE),
        get("a minted token lists tasks", "/v1/tasks", &bench.token, EVIDENCE),
        exchange(bench, "an operator as a subject", &[("subject_token", RESPONDER)], OAUTH),
    ]
}

/// Places where others have what changes rules, and bodies that would.
pub(super) fn what_would_change_the_rules(_: &Bench) -> Vec<Case> {
    let more = r#"{"name":"ada","roles":["viewer","responder","approver","admin"]}"#;
    let policy = r#"{"policy":"permit (principal, action, resource);"}"#;
    let mut cases = Vec::new();
    for (path, body) in [
        ("/v1/operators", more),
        ("/v1/operators/ada", more),
        ("/v1/operators/ada/roles", more),
        ("/v1/owners", r#"{"id":"x","workloads":["/*"]}"#),
        ("/v1/policies", policy),
        ("/v1/policies/test.no-production", policy),
        ("/v1/policies/TEST.NO-PRODUCTION", policy),
        ("/v1/sys/policies/acl/admin", policy),
        ("/v1/config", "{}"),
        ("/v1/config/reload", "{}"),
    ] {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let headers = vec![("authorization", format!("Bearer {ADMIN}")), json_type()];
            let name = format!("an admin: {method} {path}");
            cases.push(request(name, method, path, headers, body, FOREIGN));
        }
    }
    let rotate = r#"{"reason":"r","roles":["responder"]}"#;
    cases.push(api("roles beside a reason", "/v1/keys/rotate", ADMIN, rotate, INVALID));
    cases
}

/// Places where others say where the record goes, or name a program.
pub(super) fn what_would_move_the_record(bench: &Bench) -> Vec<Case> {
    let sink = r#"{"type":"file","options":{"file_path":"/tmp/x","mode":"0755"}}"#;
    let mut cases = Vec::new();
    // The log itself can be read.
    let read_only = || Expected::Problem(405, "invalid_request");
    for path in ["/v1/audit", "/v1/audit/file", "/v1/sys/audit/file", "/sys/audit/file", "/v1/plugins", "/v1/exec"] {
        for method in [Method::POST, Method::PUT] {
            let headers = vec![("authorization", format!("Bearer {ADMIN}")), json_type()];
            let expected = if path == "/v1/audit" { read_only() } else { FOREIGN };
            cases.push(request(format!("an admin: {method} {path}"), method, path, headers, sink, expected));
        }
    }
    let revoke = format!("/v1/tasks/{}/revoke", bench.task);
    for (name, body) in [
        ("a revoke that names a log", r#"{"reason":"r","audit":"/dev/null"}"#),
        ("a revoke that names a program", r#"{"reason":"r","exec":"/bin/sh"}"#),
    ] {
        cases.push(api(name, revoke.clone(), RESPONDER, body, INVALID));
    }
    cases
}

/// What has been found open to everybody elsewhere.
pub(super) fn what_nobody_may_begin(_: &Bench) -> Vec<Case> {
    let nobody = |method: Method, path: &'static str, expected: Expected| {
        request(format!("nobody: {method} {path}"), method, path, vec![json_type()], "{}", expected)
    };
    let mut cases = vec![
        nobody(Method::POST, "/v1/keys/rotate", EVIDENCE),
        nobody(Method::GET, "/v1/keys", EVIDENCE),
        nobody(Method::GET, "/v1/tasks", EVIDENCE),
    ];
    for path in [
        "/v1/sys/init",
        "/v1/sys/rekey/init",
        "/v1/sys/generate-root/attempt",
        "/v1/sys/seal",
        "/v1/init",
        "/v1/recover",
        "/v1/shutdown",
        "/debug/pprof/",
        "/debug/pprof/profile",
        "/v1/debug",
    ] {
        cases.extend([Method::GET, Method::POST, Method::DELETE].map(|method| nobody(method, path, FOREIGN)));
    }
    cases
}

fn json_type() -> (&'static str, String) {
    ("content-type", "application/json".to_owned())
}
