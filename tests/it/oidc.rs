//! What is evidence and what only looks like it, at both places where a token may be presented.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::{StatusCode, header::HeaderValue};
use serde_json::{Value, json};

use crate::support::{Answer, GIT, ISSUER, Issuer, Stand, Store, declaration, now, text};

/// A stand with a task of the CI job of run 1.
struct Bench {
    stand: Stand,
    task: String,
}

/// A token under judgement, by the name of what is odd about it.
type Row = (String, String);

impl Bench {
    async fn new() -> Self {
        let stand = Stand::new(Store::Embedded).await;
        let (task, _) = stand.task_with_token().await;
        Self { stand, task }
    }

    fn key(&self) -> &Issuer {
        &self.stand.issuer
    }

    fn header(&self) -> Value {
        json!({"alg": "ES256", "kid": self.key().key.kid(), "typ": "JWT"})
    }

    /// The claims of a good token with these laid over them. Here `null` is a value like any other.
    #[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
    fn claims(&self, over: Value) -> Value {
        let token = self.key().evidence(&self.stand.broker.url, json!({}));
        let mut claims = crate::support::claims(&token);
        for (name, value) in over.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }

    /// A token whose claims are signed as they should be.
    fn with(&self, over: Value) -> String {
        self.forge(&self.header().to_string(), &self.claims(over).to_string())
    }

    fn without(&self, claim: &str) -> String {
        self.key().evidence(&self.stand.broker.url, json!({ claim: null }))
    }

    /// A good token, but for the members of its header.
    fn headed(&self, over: &[(&str, Value)]) -> String {
        let mut header = self.header();
        for (name, value) in over {
            header[*name] = value.clone();
        }
        self.forge(&header.to_string(), &self.claims(json!({})).to_string())
    }

    /// Signs any two texts with the issuer's own key.
    fn forge(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(payload));
        let key = jsonwebtoken::EncodingKey::from_ec_der(self.key().key.kid().as_bytes());
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, jsonwebtoken::Algorithm::ES256).unwrap();
        format!("{signed}.{signature}")
    }

    async fn as_subject(&self, token: &str) -> Answer {
        let scope = format!("{} read", self.task);
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("resource", GIT),
            ("scope", &*scope),
        ];
        self.stand.form("/oauth2/token", None, &form).await
    }

    /// What is wrong with how a bad token was answered.
    async fn let_through(&self, (name, token): &Row) -> Option<String> {
        let subject = self.as_subject(token).await;
        let body: Value = subject.json();
        if subject.status != 400 || body["error"] != "invalid_request" {
            return Some(format!("{name}: as subject token {} {body}", subject.status));
        }
        // What no header can hold is only ever presented in a form; and spaces around a header's value are not of it.
        if HeaderValue::from_str(token).is_err() || token.ends_with(' ') {
            return None;
        }
        let bearer = self.stand.post("/v1/tasks", token, declaration()).await;
        let challenged = bearer.headers.get("www-authenticate").is_some_and(|value| value == "Bearer");
        let body = bearer.json();
        let fits = bearer.status == 401 && body["code"] == "evidence_invalid" && challenged;
        // One answer for all of them: which check failed is nobody's business.
        let told = body["detail"] != "the evidence was not accepted";
        (!fits || told).then(|| format!("{name}: as bearer {} {body}", bearer.status))
    }

    async fn refuses(&self, rows: Vec<Row>) {
        let before = self.stand.audit().len();
        let mut wrong = Vec::new();
        for row in &rows {
            wrong.extend(self.let_through(row).await);
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
        assert_eq!(self.stand.audit().len(), before, "nothing was done");
        self.accepts("a good token, afterwards", &self.stand.evidence()).await;
    }

    /// Declares with it and returns the answer.
    async fn accepts(&self, name: &str, token: &str) -> Value {
        let answer = self.stand.post("/v1/tasks", token, declaration()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{name}: {}", answer.text);
        answer.json()
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn row(name: impl Into<String>, token: impl Into<String>) -> Row {
    (name.into(), token.into())
}

#[tokio::test]
async fn claims_are_required_and_typed() {
    let bench = Bench::new().await;
    let audience = bench.stand.broker.url.clone();
    let huge: Value = serde_json::from_str("1e308").unwrap();
    let table: Vec<(&str, Vec<Value>)> = vec![
        ("exp", vec![json!(now() - 1), json!(now() - 3600), json!(0)]),
        ("iat", vec![json!(now() + 60), json!(now() + 86_400), json!(now() - 3700), json!(0)]),
        ("nbf", vec![json!(now() + 60), json!(now() + 250)]),
        (
            "aud",
            vec![
                json!(""),
                json!([]),
                json!({}),
                json!("https://other.example.com"),
                json!(format!("{audience}/")),
                json!(format!("{audience}.evil.example")),
                json!(&audience[..audience.len() - 1]),
                json!(audience.to_uppercase()),
                json!(["https://other.example.com", GIT]),
                json!([audience, 1]),
                json!([[audience]]),
            ],
        ),
        (
            "iss",
            vec![
                json!(""),
                json!("https://ci.example.com/"),
                json!("https://ci.example.com."),
                json!("https://ci.example.com:443"),
                json!("https://ci.exampIe.com"),
                json!("https://ci.exаmple.com"),
                json!("HTTPS://ci.example.com"),
                json!("http://ci.example.com"),
                json!(" https://ci.example.com"),
                json!([ISSUER]),
            ],
        ),
    ];
    let mut rows = Vec::new();
    for (claim, values) in table {
        let numbers = matches!(claim, "exp" | "iat" | "nbf");
        let soon = now() + 200;
        let mistyped = [
            json!(soon.to_string()),
            json!(format!("{soon}.5").parse::<f64>().unwrap()),
            json!(-1),
            huge.clone(),
            json!(u64::MAX),
            json!(true),
            json!([soon]),
        ];
        let mistyped = if numbers { &mistyped[..] } else { &[json!(1), json!(true)] };
        for value in values.iter().chain(mistyped) {
            rows.push(row(format!("{claim} = {value}"), bench.with(json!({ claim: value }))));
        }
        if claim != "nbf" {
            rows.push(row(format!("without {claim}"), bench.without(claim)));
        }
        rows.push(row(format!("{claim} = null"), bench.with(json!({ claim: null }))));
    }
    bench.refuses(rows).await;

    for (name, over) in [
        ("aud is a list that has it", json!({"aud": ["https://other.example.com", audience]})),
        ("nbf in the past", json!({"nbf": now() - 60})),
        ("the oldest that is allowed", json!({"iat": now() - 3590})),
        ("a clock that is ahead a little", json!({"iat": now() + 3})),
    ] {
        bench.accepts(name, &bench.with(over)).await;
    }
}

/// The signature is by the issuer's key, under the configured algorithm, and by nothing that the token names itself.
#[tokio::test]
async fn a_token_chooses_neither_key_nor_algorithm() {
    let bench = Bench::new().await;
    let good = bench.stand.evidence();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (_, payload) = signed.split_once('.').unwrap();
    let kid = bench.key().key.kid();
    let headed = |header: Value| format!("{}.{payload}", encode(header.to_string()));
    let hmac = |secret: &[u8], alg: &str| {
        let signed = headed(json!({"alg": alg, "kid": kid, "typ": "JWT"}));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        format!("{signed}.{}", encode(ring::hmac::sign(&key, signed.as_bytes())))
    };
    let jwk = bench.key().jwks()["keys"][0].clone();
    let stranger = Issuer::new();
    let theirs = stranger.jwks()["keys"][0].clone();
    let mut flipped = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    flipped[40] ^= 1;

    let mut rows = vec![
        row("ES384 in name", bench.headed(&[("alg", json!("ES384"))])),
        row("RS256 in name", bench.headed(&[("alg", json!("RS256"))])),
        row("es256 in lower case", bench.headed(&[("alg", json!("es256"))])),
        row("alg is a list", bench.headed(&[("alg", json!(["ES256"]))])),
        row("HS256 with the JWK as secret", hmac(jwk.to_string().as_bytes(), "HS256")),
        row("HS256 with a coordinate as secret", hmac(jwk["x"].as_str().unwrap().as_bytes(), "HS256")),
        row("HS256 with nothing as secret", hmac(b"", "HS256")),
        row("HMAC under the name ES256", hmac(jwk.to_string().as_bytes(), "ES256")),
        row("a bit of the signature", format!("{signed}.{}", encode(flipped))),
        row("a signature of zeros", format!("{signed}.{}", encode([0; 64]))),
        row("half a signature", format!("{signed}.{}", &signature[..43])),
        row("no signature", format!("{signed}.")),
        row("another's signature", stranger.evidence(&bench.stand.broker.url, json!({}))),
        row("kid unknown", bench.headed(&[("kid", json!("other"))])),
        row("kid empty", bench.headed(&[("kid", json!(""))])),
        row("kid is a path", bench.headed(&[("kid", json!("../../../../dev/null"))])),
        row("kid is SQL", bench.headed(&[("kid", json!("x' UNION SELECT 'key'--"))])),
        row("kid is 1 KB", bench.headed(&[("kid", json!("k".repeat(1024)))])),
        row("kid is a number", bench.headed(&[("kid", json!(1))])),
        row("crit", bench.headed(&[("crit", json!(["exp"])), ("exp", json!(now()))])),
        row("crit, empty", bench.headed(&[("crit", json!([]))])),
        row("b64 is false", bench.headed(&[("b64", json!(false)), ("crit", json!(["b64"]))])),
        row("b64 is true", bench.headed(&[("b64", json!(true))])),
        row("zip", bench.headed(&[("zip", json!("DEF"))])),
        row("its own jwk", bench.headed(&[("jwk", jwk)])),
        row("x5u", bench.headed(&[("x5u", json!("https://127.0.0.1:1/cert"))])),
        row("x5c", bench.headed(&[("x5c", json!(["AA=="]))])),
        row("jku", bench.headed(&[("jku", json!("https://127.0.0.1:1/jwks"))])),
    ];
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let signed = headed(json!({"alg": alg, "kid": kid, "typ": "JWT"}));
        rows.push(row(format!("alg `{alg}`"), format!("{signed}.")));
        rows.push(row(format!("alg `{alg}` with a signature"), format!("{signed}.{signature}")));
    }
    for typ in ["at+jwt", "application/at+jwt", "dpop+jwt", "logout+jwt", "remit-revocations+jwt", ""] {
        rows.push(row(format!("typ `{typ}`"), bench.headed(&[("typ", json!(typ))])));
    }
    // A key that comes with the token is a stranger's, however well it signs.
    let signed = headed(json!({"alg": "ES256", "typ": "JWT", "jwk": theirs}));
    let key = jsonwebtoken::EncodingKey::from_ec_der(stranger.key.kid().as_bytes());
    let own = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, jsonwebtoken::Algorithm::ES256).unwrap();
    rows.push(row("signed by the key it brings", format!("{signed}.{own}")));
    bench.refuses(rows).await;

    // The set has one key, so a token need not name it; and `typ` may be left out or written small.
    let claims = bench.claims(json!({})).to_string();
    bench.accepts("no kid, no typ", &bench.forge(r#"{"alg":"ES256"}"#, &claims)).await;
    bench.accepts("typ in lower case", &bench.headed(&[("typ", json!("jwt"))])).await;
    bench.accepts("a member that redirects nothing", &bench.headed(&[("x5t", json!("AA"))])).await;
}

#[tokio::test]
async fn a_token_has_one_way_to_be_written() {
    let bench = Bench::new().await;
    let good = bench.stand.evidence();
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("{good}") };
    let claims = bench.claims(json!({})).to_string();
    let plain = bench.header().to_string();
    let members = |text: &str| text.trim_start_matches('{').trim_end_matches('}').to_owned();
    let (claims_in, header_in) = (members(&claims), members(&plain));
    let compact = json!({"protected": header, "payload": payload, "signature": signature});
    let general = json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]});
    let rows = vec![
        row("claim twice, other first", bench.forge(&plain, &format!(r#"{{"repository":"evil/x",{claims_in}}}"#))),
        row("claim twice, other last", bench.forge(&plain, &format!(r#"{{{claims_in},"repository":"evil/x"}}"#))),
        row(
            "claim twice, escaped",
            bench.forge(&plain, &format!(r#"{{{claims_in},"\u0069ss":"https://ci.example.com"}}"#)),
        ),
        row("iss twice", bench.forge(&plain, &format!(r#"{{"iss":"https://other.example.com",{claims_in}}}"#))),
        row("deep claim twice", bench.forge(&plain, &format!(r#"{{{claims_in},"x":[{{"a":1,"a":2}}]}}"#))),
        row("alg twice", bench.forge(&format!(r#"{{"alg":"none",{header_in}}}"#), &claims)),
        row("kid twice", bench.forge(&format!(r#"{{{header_in},"kid":"x"}}"#), &claims)),
        row("header is no object", bench.forge("[]", &claims)),
        row("claims are no object", bench.forge(&plain, "[]")),
        row("claims are text", bench.forge(&plain, "\"x\"")),
        row("more after the claims", bench.forge(&plain, &format!("{claims}{{}}"))),
        row("a byte order mark", bench.forge(&plain, &format!("\u{feff}{claims}"))),
        row(
            "deep claims",
            bench.forge(&plain, &format!(r#"{{{claims_in},"x":{}1{}}}"#, "[".repeat(2000), "]".repeat(2000))),
        ),
        row("JWE", format!("{header}.{payload}.{signature}.{payload}.{signature}")),
        row("four parts", format!("{good}.{signature}")),
        row("two parts", format!("{header}.{payload}")),
        row("one part", payload),
        row("dots", "..."),
        row("flattened JSON", compact.to_string()),
        row("general JSON", general.to_string()),
        row("padded", format!("{good}==")),
        row("padded header", format!("{header}=.{payload}.{signature}")),
        row("a space before", format!(" {good}")),
        row("a space after", format!("{good} ")),
        row("a space within", format!("{header}. {payload}.{signature}")),
        row("a line break after", format!("{good}\n")),
        row("a line break within", format!("{header}.\r\n{payload}.{signature}")),
        row("a NUL after", format!("{good}\0")),
        row("base64, not base64url", format!("{header}.{payload}.{}+/", &signature[..signature.len() - 2])),
        row("with the scheme", format!("Bearer {good}")),
        row("60 KB", format!("{header}.{payload}.{}", "A".repeat(60_000))),
        row("17 KB, well signed", bench.with(json!({"x": "x".repeat(13_000)}))),
        row("unicode", "é.é.é"),
    ];
    bench.refuses(rows).await;
    // Too long even for a form, and for a header as long as this one is the token itself still refused.
    let long = format!("{header}.{payload}.{}", "A".repeat(64 * 1024));
    bench.as_subject(&long).await.oauth_refused(413, "invalid_request");
    bench.stand.post("/v1/tasks", &long, declaration()).await.refused(401, "evidence_invalid");
}

/// The broker's own tokens, of either form, prove nothing to it.
#[tokio::test]
async fn a_credential_is_no_evidence() {
    let bench = Bench::new().await;
    let (_, access) = bench.stand.task_with_token().await;
    let body = json!({"credentials": [{"resource": GIT, "privilege": "read", "type": "jwt"}]});
    let path = format!("/v1/tasks/{}/credentials", bench.task);
    let minted = bench.stand.post(&path, &bench.stand.evidence(), body).await.expect(StatusCode::OK);
    let svid = text(&minted["credentials"][0], "access_token");
    bench.refuses(vec![row("access token", access), row("JWT-SVID", svid)]).await;
}

/// What does not fit a SPIFFE path is refused and never made to fit.
#[tokio::test]
async fn claims_become_workloads_unchanged_or_not_at_all() {
    let bench = Bench::new().await;
    let mut rows = Vec::new();
    let texts = [
        "",
        "/",
        ".",
        "..",
        "acme/..",
        "../acme",
        "acme/./x",
        "a//b",
        "/acme",
        "acme/",
        "%2e%2e",
        "acme%2fx",
        "acmé/x",
        "аcme/x",
        "acme x",
        "acme\tx",
        "acme\0x",
        "acme:x",
        "acme?x",
        "acme#x",
        "acme\\x",
        "acme@x",
        "acme~x",
        "{repository}",
        "task",
        "task/x",
        "acme/task",
        "acme/task/x",
        &"x".repeat(2100),
    ];
    let others = [json!(null), json!(true), json!(1.5), json!(1e2), json!([]), json!(["acme"]), json!({"a": 1})];
    for bad in texts.map(Value::from).iter().chain(&others) {
        rows.push(row(format!("repository = {bad}"), bench.with(json!({ "repository": bad }))));
    }
    let texts = ["", "1\n2", "1\u{7f}", &"x".repeat(300)];
    for bad in texts.map(Value::from).iter().chain(&[json!(1.5), json!(false), json!([1]), json!(null)]) {
        rows.push(row(format!("run_id = {bad}"), bench.with(json!({ "run_id": bad }))));
    }
    rows.push(row("without repository", bench.without("repository")));
    rows.push(row("without run_id", bench.without("run_id")));
    bench.refuses(rows).await;

    for (repository, path) in [
        (json!("Acme/Payments"), "Acme/Payments"),
        (json!("acme/pay.ments-2_x"), "acme/pay.ments-2_x"),
        (json!("..."), "..."),
        (json!("a/b/c/d"), "a/b/c/d"),
        (json!("Task"), "Task"),
        (json!("tasks/x"), "tasks/x"),
        (json!(7), "7"),
        (json!(-7), "-7"),
        (json!(u64::MAX), "18446744073709551615"),
    ] {
        let name = format!("repository = {repository}");
        let declared = bench.accepts(&name, &bench.with(json!({ "repository": repository }))).await;
        assert_eq!(declared["workload"], format!("spiffe://example.com/ci/{path}"), "{name}");
    }
}

#[tokio::test]
async fn a_number_and_its_text_are_one_instance() {
    let bench = Bench::new().await;
    // Issuers differ in how they write it.
    for run in [json!(1), json!("1")] {
        let declared = bench.accepts("run_id", &bench.with(json!({ "run_id": run }))).await;
        assert_eq!(declared["instance"], "1.1");
    }
    let show = |run: Value| bench.with(json!({ "run_id": run }));
    let path = format!("/v1/tasks/{}", bench.task);
    bench.stand.get(&path, &show(json!(1))).await.expect(StatusCode::OK);
    bench.stand.get(&path, &show(json!("01"))).await.refused(404, "not_found");
    bench.stand.get(&path, &show(json!("1 "))).await.refused(404, "not_found");
}

#[tokio::test]
async fn one_authorization_header_with_one_bearer_token() {
    let stand = Stand::new(Store::Embedded).await;
    let good = stand.evidence();
    let call = async |values: &[String]| {
        let mut request = stand.client.post(stand.url("/v1/tasks")).json(&declaration());
        for value in values {
            request = request.header("authorization", value);
        }
        Answer::of(request.send().await.unwrap()).await
    };
    for scheme in ["Bearer", "bearer", "BEARER"] {
        call(&[format!("{scheme} {good}")]).await.expect(StatusCode::CREATED);
    }
    for bad in [
        String::new(),
        "Bearer".into(),
        "Bearer ".into(),
        good.clone(),
        format!("Bearer{good}"),
        format!("Bearer  {good}"),
        format!("Bearer {good} x"),
        format!("Bearer {good}, Bearer {good}"),
        format!("Bearer: {good}"),
        format!("Bearer \"{good}\""),
        format!("DPoP {good}"),
        format!("Basic {good}"),
        "Basic YWxhZGRpbjpvcGVuc2VzYW1l".into(),
        "Negotiate AA".into(),
    ] {
        let answer = call(std::slice::from_ref(&bad)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{bad}: {}", answer.text);
        answer.refused(401, "evidence_invalid");
    }
    let twice = format!("Bearer {good}");
    call(&[twice.clone(), twice.clone()]).await.refused(400, "invalid_request");
    call(&[twice.clone(), String::new()]).await.refused(400, "invalid_request");
    // Evidence goes into a header, and nowhere else.
    let body = Some(declaration());
    stand
        .call(reqwest::Method::POST, &format!("/v1/tasks?access_token={good}"), None, body)
        .await
        .refused(401, "evidence_invalid");
    // The token endpoint takes it as a parameter, and no `Authorization` at all.
    for value in [twice, "Basic YTpi".into()] {
        let form = [("grant_type", "client_credentials"), ("resource", GIT)];
        let request = stand.client.post(stand.url("/oauth2/token")).form(&form).header("authorization", value);
        Answer::of(request.send().await.unwrap()).await.oauth_refused(401, "invalid_client");
    }
}
