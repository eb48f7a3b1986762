//! What can be sent to any endpoint.

use reqwest::Method;
use serde_json::json;

use super::bench::{
    Bench, CLIENT, Case, EVIDENCE, Expected, FOREIGN, INVALID, OAUTH, UNKNOWN, api, ask, encode, form, get, octets,
    request,
};
use crate::support::{GIT, GIT_TOKEN, REGISTRY, RESPONDER, VIEWER, declaration};

const CLOSED: Expected = Expected::Closed(400, "invalid_request");
const JSON: &str = "Content-Type: application/json\r\n";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// A request, letter by letter; it says nothing about the connection.
fn head(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
}

/// Row 1.
pub(super) fn a_body_too_large(bench: &Bench) -> Vec<Case> {
    let evidence = bench.stand.evidence();
    let most = vec![b' '; 64 * 1024];
    let more = vec![b' '; 64 * 1024 + 1];
    let bearer = format!("Authorization: Bearer {evidence}\r\n");
    // A million octets of a body that says it goes on.
    let endless = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000)).repeat(16);
    let too_large = Expected::Closed(413, "invalid_request");
    let revoke = format!("/v1/tasks/{}/revoke", bench.task);
    vec![
        api("a body of the size that is read", "/v1/tasks", &evidence, most, INVALID),
        api("an octet more", "/v1/tasks", &evidence, more.clone(), Expected::Problem(413, "invalid_request")),
        api("an octet more, to revoke", revoke, RESPONDER, more.clone(), Expected::Problem(413, "invalid_request")),
        form("an octet more, as a form", "/oauth2/token", "", more.clone(), Expected::OAuth(413, "invalid_request")),
        form(
            "an octet more, as a question",
            "/oauth2/introspect",
            GIT_TOKEN,
            more,
            Expected::OAuth(413, "invalid_request"),
        ),
        octets(
            "chunks without end",
            head("POST", "/v1/tasks", &format!("{JSON}{CHUNKED}{bearer}")) + &endless,
            too_large.clone(),
        ),
        octets(
            "a length that is never sent",
            head("POST", "/v1/tasks", &format!("{JSON}Content-Length: 1000000000000\r\n{bearer}")) + &endless,
            too_large,
        ),
    ]
}

/// Row 2.
pub(super) fn json_that_costs(bench: &Bench) -> Vec<Case> {
    let evidence = bench.stand.evidence();
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let keys = (0..6_000).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(",");
    let few = (0..2_000).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(",");
    let length = "Content-Length: 10000002\r\n";
    let large = head("POST", "/v1/tasks", &format!("{JSON}{length}Authorization: Bearer {evidence}\r\n"))
        + &format!("\"{}\"", "a".repeat(10_000_000));
    let details = "invalid_authorization_details";
    let exchange = |details: &str| bench.exchange(&[("authorization_details", details)]);
    vec![
        api("10 000 arrays deep", "/v1/tasks", &evidence, nested(10_000), INVALID),
        api("10 000 objects deep", "/v1/tasks", &evidence, "{\"a\":".repeat(10_000), INVALID),
        api(
            "deep in a member that is known",
            "/v1/tasks",
            &evidence,
            format!("{{\"context\":{}}}", nested(10_000)),
            INVALID,
        ),
        api(
            "200 deep, and else good",
            "/v1/tasks",
            &evidence,
            bench.declaration(
                &json!({"context": {"x": serde_json::from_str::<serde_json::Value>(&nested(100)).unwrap_or_default()}}),
            ),
            INVALID,
        ),
        api("60 000 brackets that nobody closes", "/v1/tasks", &evidence, "[".repeat(60_000), INVALID),
        api("6 000 members", "/v1/tasks", &evidence, format!("{{{keys}}}"), INVALID),
        octets("a text of 10 MB", large, Expected::Closed(413, "invalid_request")),
        api(
            "a text of 60 000 escapes",
            "/v1/tasks",
            &evidence,
            bench.declaration(&json!({"purpose": "\u{1}".repeat(10_000)})),
            INVALID,
        ),
        api(
            "a number of 60 000 digits",
            "/v1/tasks",
            &evidence,
            format!("{{\"ttl\":{}}}", "9".repeat(60_000)),
            INVALID,
        ),
        form("deep details", "/oauth2/token", "", exchange(&nested(10_000)), Expected::OAuth(400, details)),
        form(
            "many members in details",
            "/oauth2/token",
            "",
            exchange(&format!("[{{{few}}}]")),
            Expected::OAuth(400, details),
        ),
        form(
            "5 000 parameters",
            "/oauth2/token",
            "",
            (0..5_000).map(|n| format!("p{n}=v")).collect::<Vec<_>>().join("&"),
            OAUTH,
        ),
    ]
}

/// Row 3.
pub(super) fn members_twice(bench: &Bench) -> Vec<Case> {
    let evidence = bench.stand.evidence();
    let usual = bench.declaration(&json!({}));
    let twice = |member: &str, more: &str| usual.replacen(member, &format!("{more},{member}"), 1);
    let at = |path: &str| format!("/v1/tasks/{}{path}", bench.task);
    vec![
        api("a member twice", "/v1/tasks", &evidence, twice("\"ttl\"", "\"ttl\":1"), INVALID),
        api("a member twice, alike", "/v1/tasks", &evidence, twice("\"ttl\"", "\"ttl\":600"), INVALID),
        api("a member twice, once escaped", "/v1/tasks", &evidence, twice("\"ttl\"", "\"\\u0074tl\":1"), INVALID),
        api("a deeper member twice", "/v1/tasks", &evidence, twice("\"repo\"", "\"repo\":\"evil/x\""), INVALID),
        api(
            "a privilege list twice",
            "/v1/tasks",
            &evidence,
            twice("\"privileges\"", "\"privileges\":[\"read\"]"),
            INVALID,
        ),
        api("a reason twice", at("/revoke"), RESPONDER, r#"{"reason":"a","reason":"b"}"#, INVALID),
        api("a reason twice, completing", at("/complete"), &evidence, r#"{"reason":"a","reason":"b"}"#, INVALID),
        api("a ttl twice, renewing", at("/renew"), &evidence, r#"{"ttl":60,"ttl":61}"#, INVALID),
        api("credentials twice", at("/credentials"), &evidence, r#"{"credentials":[],"credentials":[]}"#, INVALID),
        api(
            "a privilege twice",
            at("/credentials"),
            &evidence,
            format!(r#"{{"credentials":[{{"resource":"{GIT}","privilege":"read","privilege":"write"}}]}}"#),
            INVALID,
        ),
        get("a limit twice", "/v1/tasks?limit=1&limit=2", VIEWER, INVALID),
        get("a state twice", "/v1/tasks?state=active&state=revoked", VIEWER, INVALID),
    ]
}

/// Row 3.
pub(super) fn parameters_twice(bench: &Bench) -> Vec<Case> {
    let mut cases = vec![
        form(
            "a member of the details twice",
            "/oauth2/token",
            "",
            bench.exchange(&[("authorization_details", r#"[{"type":"remit:task","type":"remit:declaration"}]"#)]),
            Expected::OAuth(400, "invalid_authorization_details"),
        ),
        form(
            "a token twice",
            "/oauth2/introspect",
            GIT_TOKEN,
            encode(&[("token", &bench.token), ("token", &bench.token)]),
            OAUTH,
        ),
        form(
            "a hint twice",
            "/oauth2/introspect",
            GIT_TOKEN,
            encode(&[("token", &bench.token), ("token_type_hint", "a"), ("token_type_hint", "b")]),
            OAUTH,
        ),
        form(
            "a name twice, once escaped",
            "/oauth2/token",
            "",
            bench.exchange(&[]) + "&grant%5Ftype=client_credentials",
            OAUTH,
        ),
        form("an unknown parameter twice", "/oauth2/token", "", bench.exchange(&[]) + "&x=1&x=2", OAUTH),
        form(
            "two services",
            "/oauth2/token",
            "",
            bench.exchange(&[]) + &format!("&resource={REGISTRY}"),
            Expected::OAuth(400, "invalid_target"),
        ),
    ];
    for name in ["grant_type", "subject_token", "subject_token_type", "scope"] {
        cases.push(form(
            format!("`{name}` twice"),
            "/oauth2/token",
            "",
            bench.exchange(&[]) + &format!("&{name}=x"),
            OAUTH,
        ));
        cases.push(form(
            format!("`{name}` twice, once empty"),
            "/oauth2/token",
            "",
            bench.exchange(&[]) + &format!("&{name}="),
            OAUTH,
        ));
    }
    cases
}

/// Row 4.
pub(super) fn octets_that_are_no_text(bench: &Bench) -> Vec<Case> {
    let evidence = bench.stand.evidence();
    let usual = bench.declaration(&json!({}));
    let purpose = |text: &[u8]| {
        let (before, after) = usual.split_once("Fix").unwrap_or_default();
        [before.as_bytes(), text, after.as_bytes()].concat()
    };
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("a stray octet", purpose(b"F\xffx")),
        ("an overlong slash", purpose(b"F\xc0\xafx")),
        ("an overlong NUL", purpose(b"F\xc0\x80x")),
        ("a surrogate in UTF-8", purpose(b"F\xed\xa0\x80x")),
        ("beyond the last character", purpose(b"F\xf4\x90\x80\x80x")),
        ("a NUL", purpose(b"F\0x")),
        ("an escaped NUL", purpose(b"F\\u0000x")),
        ("a lone high surrogate", purpose(b"F\\ud800x")),
        ("a lone low surrogate", purpose(b"F\\udc00x")),
        ("surrogates the wrong way round", purpose(b"F\\udc00\\ud800x")),
        ("a byte order mark", [b"\xef\xbb\xbf", usual.as_bytes()].concat()),
        ("UTF-16", usual.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        (
            "UTF-16 with its mark",
            [b"\xff\xfe".to_vec(), usual.encode_utf16().flat_map(u16::to_le_bytes).collect()].concat(),
        ),
        ("UTF-32", usual.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect()),
        ("nothing but NULs", vec![0; 100]),
    ];
    let mut cases: Vec<_> =
        bodies.into_iter().map(|(name, body)| api(name, "/v1/tasks", &evidence, body, INVALID)).collect();
    for bad in ["%ff", "%00", "%c0%af", "%ed%a0%80", "%fe%ff"] {
        cases.push(form(
            format!("a scope of {bad}"),
            "/oauth2/token",
            "",
            bench.exchange(&[("scope", "-")]) + "&scope=" + bad,
            OAUTH,
        ));
        cases.push(form(
            format!("a parameter named {bad}"),
            "/oauth2/token",
            "",
            bench.exchange(&[]) + "&" + bad + "=x",
            OAUTH,
        ));
        cases.push(form(format!("a token of {bad}"), "/oauth2/introspect", GIT_TOKEN, format!("token={bad}"), OAUTH));
        cases.push(get(format!("an id of {bad}"), format!("/v1/tasks/{bad}"), VIEWER, INVALID));
    }
    for bad in ["%ff", "%c0%af"] {
        cases.push(get(format!("an owner of {bad}"), format!("/v1/tasks?owner={bad}"), VIEWER, INVALID));
    }
    cases
}

/// Row 5.
pub(super) fn another_content_type(bench: &Bench) -> Vec<Case> {
    let evidence = bench.stand.evidence();
    let usual = declaration().to_string();
    let bearer = ("authorization", format!("Bearer {evidence}"));
    let mut cases = Vec::new();
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json5",
        "application/problem+json",
        "multipart/form-data; boundary=x",
        "json",
        "",
    ] {
        let headers = vec![bearer.clone(), ("content-type", kind.to_owned())];
        cases.push(request(
            format!("JSON as `{kind}`"),
            Method::POST,
            "/v1/tasks",
            headers,
            usual.clone(),
            Expected::Problem(415, "invalid_request"),
        ));
    }
    for kind in
        ["application/json", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencodedx", ""]
    {
        let headers = vec![("content-type", kind.to_owned())];
        cases.push(request(
            format!("a form as `{kind}`"),
            Method::POST,
            "/oauth2/token",
            headers,
            bench.exchange(&[]),
            Expected::OAuth(415, "invalid_request"),
        ));
    }
    cases.push(request(
        "no content type",
        Method::POST,
        "/v1/tasks",
        vec![bearer.clone()],
        usual.clone(),
        Expected::Problem(415, "invalid_request"),
    ));
    let json = ("content-type", "application/json".to_owned());
    cases.push(request(
        "two content types",
        Method::POST,
        "/v1/tasks",
        vec![bearer.clone(), json.clone(), ("content-type", "text/plain".to_owned())],
        usual.clone(),
        Expected::Problem(415, "invalid_request"),
    ));
    cases.push(request(
        "a packed body",
        Method::POST,
        "/v1/tasks",
        vec![bearer.clone(), json, ("content-encoding", "gzip".to_owned())],
        &b"\x1f\x8b\x08\0\0\0\0\0"[..],
        INVALID,
    ));
    cases
}

/// Row 5.
pub(super) fn another_method(bench: &Bench) -> Vec<Case> {
    let bearer = ("authorization", format!("Bearer {}", bench.stand.evidence()));
    let mut cases = Vec::new();
    let task = format!("/v1/tasks/{}", bench.task);
    for (path, methods) in [
        ("/v1/tasks".to_owned(), &["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"][..]),
        (task.clone(), &["POST", "PUT", "PATCH", "DELETE"]),
        (format!("{task}/revoke"), &["GET", "PUT", "DELETE"]),
        (format!("{task}/credentials"), &["GET", "PUT", "DELETE"]),
    ] {
        for method in methods {
            let name = format!("{method} {path}");
            let Ok(method) = Method::from_bytes(method.as_bytes()) else { continue };
            cases.push(request(
                name,
                method,
                path.clone(),
                vec![bearer.clone()],
                "",
                Expected::Problem(405, "invalid_request"),
            ));
        }
    }
    for path in ["/oauth2/token", "/oauth2/introspect"] {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            cases.push(request(
                format!("{method} {path}"),
                method,
                path,
                vec![],
                "",
                Expected::OAuth(405, "invalid_request"),
            ));
        }
    }
    cases
}

/// Row 5.
pub(super) fn more_or_less_than_json(bench: &Bench) -> Vec<Case> {
    let (evidence, usual) = (bench.stand.evidence(), declaration().to_string());
    let bodies = [
        ("more after the JSON", format!("{usual}x")),
        ("two documents", format!("{usual}{usual}")),
        ("a comma after the last member", usual.trim_end_matches('}').to_owned() + ",}"),
        ("a member without a comma", usual.replacen("\"ttl\":600,", "\"ttl\":600", 1)),
        ("a comment", format!("/**/{usual}")),
        ("a line comment", format!("{usual}//")),
        ("quotes of the other kind", usual.replace('"', "'")),
        ("half of it", usual[..usual.len() / 2].to_owned()),
        ("nothing", String::new()),
        ("a list", format!("[{usual}]")),
        ("a text", "\"x\"".to_owned()),
        ("NaN", usual.replacen("600", "NaN", 1)),
        ("a number with a plus", usual.replacen("600", "+600", 1)),
        ("a number with a zero before it", usual.replacen("600", "0600", 1)),
        ("a hexadecimal number", usual.replacen("600", "0x258", 1)),
    ];
    bodies.into_iter().map(|(name, body)| api(name, "/v1/tasks", &evidence, body, INVALID)).collect()
}

/// Row 6.
pub(super) fn two_ways_to_read_one_request(bench: &Bench) -> Vec<Case> {
    let second = format!("POST /v1/tasks/{}/revoke HTTP/1.1\r\nHost: x\r\n\r\n", bench.task);
    let bearer = format!("Authorization: Bearer {}\r\n", bench.stand.evidence());
    let mut cases = Vec::new();
    // The chunks count, the length does not, and there is no second request after one that leaves a doubt (RFC 9112 section 6.1).
    for (name, headers) in [
        ("a length and chunks", format!("Content-Length: 4\r\n{CHUNKED}")),
        ("chunks and a length", format!("{CHUNKED}Content-Length: 4\r\n")),
    ] {
        let request = head("POST", "/v1/tasks", &format!("{JSON}{bearer}{headers}")) + "0\r\n\r\n" + &second;
        cases.push(octets(name, request, CLOSED));
    }
    for (name, hosts) in
        [("no host", ""), ("two hosts", "Host: a\r\nHost: b\r\n"), ("a host twice", "Host: a\r\nHost: a\r\n")]
    {
        let request =
            |method, path, rest: &str| format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{hosts}{rest}\r\n");
        let list = request("GET", "/v1/tasks", &format!("Authorization: Bearer {VIEWER}\r\n"));
        cases.push(octets(name, list, CLOSED));
        cases.push(octets(format!("{name}, of a form"), request("POST", "/oauth2/token", FORM), OAUTH));
    }
    for (name, headers, body) in [
        ("two lengths", "Content-Length: 4\r\nContent-Length: 5\r\n".to_owned(), "null"),
        ("two lengths in one", "Content-Length: 4, 5\r\n".to_owned(), "null"),
        ("a length with a sign", "Content-Length: +4\r\n".to_owned(), "null"),
        ("a negative length", "Content-Length: -1\r\n".to_owned(), ""),
        ("a hexadecimal length", "Content-Length: 0x4\r\n".to_owned(), "null"),
        ("a length beyond 64 bits", "Content-Length: 18446744073709551616\r\n".to_owned(), "null"),
        ("another transfer coding", "Transfer-Encoding: identity\r\n".to_owned(), "null"),
        ("chunks that are not last", "Transfer-Encoding: chunked, identity\r\n".to_owned(), "0\r\n\r\n"),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n".to_owned(), "0\r\n\r\n"),
        ("a folded header", format!("{CHUNKED} folded\r\n"), "0\r\n\r\n"),
        ("a NUL in a name", "X\0: a\r\n".to_owned(), ""),
        ("a NUL in a value", "X: a\0b\r\n".to_owned(), ""),
        ("a return without a line feed", "X: a\rb\r\n".to_owned(), ""),
        ("no name", ": a\r\n".to_owned(), ""),
        ("a space in a name", "X Y: a\r\n".to_owned(), ""),
    ] {
        let request = head("POST", "/v1/tasks", &format!("{JSON}{bearer}{headers}")) + body + &second;
        cases.push(octets(name, request, Expected::Bare(&[400])));
    }
    for (name, body) in [
        ("a chunk size that is none", "zz\r\n\r\n"),
        ("a negative chunk", "-1\r\n\r\n"),
        ("a chunk size beyond 64 bits", "ffffffffffffffff1\r\n\r\n"),
        ("a chunk that is longer than it says", "1\r\n{}\r\n0\r\n\r\n"),
        ("a chunk extension with a bare line feed", "1;\n\r\n"),
    ] {
        let headers = format!("{JSON}{CHUNKED}{bearer}");
        cases.push(octets(name, head("POST", "/v1/tasks", &headers) + body + &second, CLOSED));
        let headers = format!("{FORM}{CHUNKED}");
        cases.push(octets(
            format!("{name}, in a form"),
            head("POST", "/oauth2/token", &headers) + body + &second,
            OAUTH,
        ));
    }
    for (name, text) in [
        ("no version", "GET /v1/tasks\r\n\r\n"),
        ("NULs", "\0\0\0\0\r\n\r\n"),
        ("a version to come", "GET /v1/tasks HTTP/9.9\r\n\r\n"),
        ("two paths", "GET / v1 HTTP/1.1\r\n\r\n"),
        ("a TLS hello", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n"),
    ] {
        cases.push(octets(name, text, Expected::Bare(&[400, 599])));
    }
    cases
}

/// Row 7.
pub(super) fn paths_that_lead_elsewhere(bench: &Bench) -> Vec<Case> {
    let task = &bench.task;
    let mut cases = Vec::new();
    for id in [
        "..%2f..%2fjwks",
        "..%2f",
        "%2e%2e",
        "%2e%2e%2fjwks",
        "%00",
        "%0a",
        "%0d%0a",
        "%20",
        "%ff",
        "%c0%ae%c0%ae",
        "%e2%80%8b",
        "%25",
        "%",
        "%2",
        "%zz",
        "..",
        ".",
        "...",
        "~",
        "*",
        ";x",
        "task_",
        "0",
        "-1",
        "null",
        "%7bid%7d",
    ] {
        for (method, rest, body) in [("GET", "", ""), ("POST", "/revoke", r#"{"reason":"x"}"#)] {
            let headers = format!(
                "Connection: close\r\n{JSON}Authorization: Bearer {}\r\nContent-Length: {}\r\n",
                RESPONDER,
                body.len()
            );
            cases.push(octets(
                format!("{method} of the id `{id}`"),
                head(method, &format!("/v1/tasks/{id}{rest}"), &headers) + body,
                INVALID,
            ));
        }
    }
    for (path, expected) in [
        (format!("//v1/tasks/{task}"), FOREIGN),
        (format!("/v1//tasks/{task}"), FOREIGN),
        (format!("/v1/tasks//{task}"), FOREIGN),
        (format!("/v1/tasks/{task}/"), FOREIGN),
        (format!("/v1/./tasks/{task}"), FOREIGN),
        (format!("/v1/x/../tasks/{task}"), FOREIGN),
        (format!("/v1/tasks/../tasks/{task}"), FOREIGN),
        (format!("/V1/tasks/{task}"), FOREIGN),
        ("/v1/tasks/".to_owned(), FOREIGN),
        ("/v1/tasks;x".to_owned(), FOREIGN),
        ("/v1%2ftasks".to_owned(), FOREIGN),
        (format!("/v1/tasks/{task};x"), INVALID),
        (format!("/v1/tasks/{task}%00"), INVALID),
        (format!("/v1/tasks/{task}%20"), INVALID),
        (format!("/v1/tasks/{task}%2f"), INVALID),
        (format!("/v1/tasks/{task}.json"), INVALID),
        (format!("/v1/tasks/{}", task.to_uppercase()), INVALID),
        (format!("/v1/tasks/x%2f{task}"), INVALID),
        (format!("/v1/tasks/{UNKNOWN}"), FOREIGN),
    ] {
        let headers = format!("Connection: close\r\nAuthorization: Bearer {VIEWER}\r\n");
        cases.push(octets(format!("GET {path}"), head("GET", &path, &headers), expected));
    }
    cases
}

/// Row 8.
pub(super) fn two_bearers(bench: &Bench) -> Vec<Case> {
    let evidence = bench.stand.evidence();
    let good = format!("Bearer {evidence}");
    let usual = declaration().to_string();
    let json = ("content-type", "application/json".to_owned());
    let both = |name: &str, values: &[&str], expected: Expected| {
        let mut headers = vec![json.clone()];
        headers.extend(values.iter().map(|value| ("authorization", (*value).to_owned())));
        request(name, Method::POST, "/v1/tasks", headers, usual.clone(), expected)
    };
    let in_query = format!("/v1/tasks?access_token={evidence}");
    vec![
        both("the same header twice", &[&good, &good], INVALID),
        both("two schemes", &[&good, "Basic YTpi"], INVALID),
        both("one header and an empty one", &[&good, ""], INVALID),
        both("two in one header", &[&format!("{good}, {good}")], EVIDENCE),
        api("in the header and in the query", in_query.clone(), &evidence, usual.clone(), INVALID),
        api(
            "in the header, and an empty one in the query",
            "/v1/tasks?access_token=",
            &evidence,
            usual.clone(),
            INVALID,
        ),
        api(
            "in the header, and escaped in the query",
            format!("/v1/tasks?x=1&access%5Ftoken={evidence}"),
            &evidence,
            usual.clone(),
            INVALID,
        ),
        get("in the header and in the query, listing", format!("/v1/tasks?access_token={VIEWER}"), VIEWER, INVALID),
        get(
            "in the header and in the query, showing",
            format!("/v1/tasks/{}?access_token={VIEWER}", bench.task),
            VIEWER,
            INVALID,
        ),
        api(
            "in the header and in the body",
            "/v1/tasks",
            &evidence,
            bench.declaration(&json!({"access_token": evidence})),
            INVALID,
        ),
        request("in the query alone", Method::POST, in_query, vec![json.clone()], usual, EVIDENCE),
    ]
}

/// Row 8.
pub(super) fn two_bearers_that_ask(bench: &Bench) -> Vec<Case> {
    let url_form = ("content-type", "application/x-www-form-urlencoded".to_owned());
    vec![
        form(
            "in the header and in a form",
            "/oauth2/introspect",
            GIT_TOKEN,
            encode(&[("token", &bench.token), ("access_token", GIT_TOKEN)]),
            OAUTH,
        ),
        form(
            "in the header and in the query, asking",
            &format!("/oauth2/introspect?access_token={GIT_TOKEN}"),
            GIT_TOKEN,
            encode(&[("token", &bench.token)]),
            OAUTH,
        ),
        form(
            "in a form alone",
            "/oauth2/introspect",
            "",
            encode(&[("token", &bench.token), ("access_token", GIT_TOKEN)]),
            CLIENT,
        ),
        form(
            "evidence in the header and in the form",
            "/oauth2/token",
            &bench.stand.evidence(),
            bench.exchange(&[]),
            CLIENT,
        ),
        request(
            "two headers, asking",
            Method::POST,
            "/oauth2/introspect",
            vec![
                url_form,
                ("authorization", format!("Bearer {GIT_TOKEN}")),
                ("authorization", format!("Bearer {VIEWER}")),
            ],
            encode(&[("token", &bench.token)]),
            OAUTH,
        ),
    ]
}

/// Row 11.
pub(super) fn a_head_too_large(_: &Bench) -> Vec<Case> {
    let lines = |count: usize, size: usize| {
        let lines: Vec<_> = (0..count)
            .map(|n| {
                format!(
                    "x-{n}: {}
",
                    "a".repeat(size)
                )
            })
            .collect();
        lines.concat()
    };
    let large = Expected::Bare(&[431]);
    vec![
        octets("a header of 1 MB", head("GET", "/v1/tasks", &lines(1, 1_000_000)), large.clone()),
        octets("10 000 headers", head("GET", "/v1/tasks", &lines(10_000, 1)), large.clone()),
        octets("101 headers", head("GET", "/v1/tasks", &lines(100, 1)), large.clone()),
        octets("1 MB of headers", head("GET", "/v1/tasks", &lines(90, 12_000)), large.clone()),
        octets(
            "a name of 1 MB",
            head("GET", "/v1/tasks", &format!("{}: x\r\n", "x".repeat(1_000_000))),
            Expected::Bare(&[400, 431]),
        ),
        octets("a path of 1 MB", head("GET", &format!("/{}", "a".repeat(1_000_000)), ""), Expected::Bare(&[414, 431])),
    ]
}

/// Row 14.
pub(super) fn text_for_logs(bench: &Bench) -> Vec<Case> {
    let evidence = bench.stand.evidence();
    let mut cases = Vec::new();
    for (name, text) in [
        ("a line break", "a\r\n{\"event\":\"task_revoked\"}"),
        ("a line feed", "a\nb"),
        ("an escape sequence", "\u{1b}[2J\u{1b}]0;x\u{7}"),
        ("a C1 control", "a\u{9b}2Jb"),
        ("the next line", "a\u{85}b"),
        ("a backspace", "a\u{8}b"),
        ("delete", "a\u{7f}b"),
    ] {
        let words = json!({ "reason": text }).to_string();
        for member in ["purpose", "sandbox", "environment", "data_classification"] {
            cases.push(api(
                format!("{name} in `{member}`"),
                "/v1/tasks",
                &evidence,
                bench.declaration(&json!({ member: text })),
                INVALID,
            ));
        }
        cases.push(api(
            format!("{name} in a command"),
            "/v1/tasks",
            &evidence,
            bench.declaration(&json!({"context": {"command": text}})),
            INVALID,
        ));
        cases.push(api(
            format!("{name} in a reason"),
            format!("/v1/tasks/{}/revoke", bench.task),
            RESPONDER,
            words,
            INVALID,
        ));
        cases.push(ask(format!("{name} in a token"), text, Expected::Inactive));
    }
    let agent = |value: &str| head("GET", "/v1/tasks", &format!("Connection: close\r\nUser-Agent: {value}\r\n"));
    cases.push(octets("an escape sequence in a header", agent("\u{1b}[2J"), Expected::Bare(&[400])));
    cases.push(octets("a user agent of 1 MB", agent(&"a".repeat(1_000_000)), Expected::Bare(&[431])));
    cases.push(octets("a user agent of 60 KB", agent(&"a".repeat(60_000)), EVIDENCE));
    cases.push(octets(
        "an escaped line break in a path",
        head("GET", "/v1/%0d%0aevil", "Connection: close\r\n"),
        FOREIGN,
    ));
    cases
}
