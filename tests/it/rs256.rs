//! Services that take RS256: with a key that `openssl` made, which verifiers know before it signs, and which serves for nothing else.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::{Method, StatusCode};
use ring::{
    rand::SystemRandom,
    signature::{self, RsaKeyPair},
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use remit::{
    clock::{Clock as _, SystemClock},
    jose::{SigningKey, Thumbprint},
    verify::{KeySet, UntilExpiry, Verifier},
};

use crate::{
    both,
    clients::{node, python},
    support::{
        ADMIN, GIT, GIT_TOKEN, Issuer, REGISTRY, REGISTRY_TOKEN, Server, Stand, Store, VIEWER, claims, declaration,
        part, text, wait_for, write_config,
    },
    taint::{taint, taint_at},
};

pub(crate) const KEY: &str = "access-token-rs256.pem";
const NEXT: &str = "access-token-rs256.next.pem";

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().expect("openssl");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output.stdout
}

/// Makes an RSA key, as the README says.
pub(crate) fn make(file: &Path, bits: u32) {
    let bits = format!("rsa_keygen_bits:{bits}");
    openssl(&["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", &bits, "-out", file.to_str().unwrap()]);
}

/// The private key in a file, in the hands of an attacker, or of the test.
fn pair(file: &Path) -> RsaKeyPair {
    let der = openssl(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in", file.to_str().unwrap()]);
    RsaKeyPair::from_pkcs8(&der).expect("an RSA key")
}

fn keys_of(stand: &Stand, broker: &str) -> PathBuf {
    stand.dir.path().join(format!("{broker}-keys"))
}

/// The usual configuration, with RS256 for the service `git`.
fn with_rs256(config: &Path) {
    let text = fs::read_to_string(config).unwrap();
    let service = "name = \"git\"\n";
    assert!(text.contains(service));
    fs::write(config, text.replace(service, &format!("{service}algorithm = \"RS256\"\n"))).unwrap();
}

/// A running broker gets a key, and then a service that takes RS256.
async fn import(stand: &Stand) -> PathBuf {
    let file = keys_of(stand, "broker").join(KEY);
    make(&file, 2048);
    wait_for("the imported key", || async { !rsa(stand, "signing").await.is_empty() }).await;
    with_rs256(&stand.broker.config);
    signs_rs256(stand).await;
    file
}

/// A task for a service that takes ES256.
fn for_registry() -> Value {
    let mut declaration = declaration();
    declaration["authorization_details"] =
        json!([{"type": "remit:access", "locations": [REGISTRY], "privileges": ["read"]}]);
    declaration["credentials"] = json!([{"resource": REGISTRY, "privilege": "read"}]);
    declaration
}

async fn signs_rs256(stand: &Stand) {
    wait_for("RS256", || async {
        let answer = stand.declare(declaration()).await;
        answer.status == StatusCode::CREATED && part(&token_of(&answer.json()), 0)["alg"] == "RS256"
    })
    .await;
}

fn token_of(declared: &Value) -> String {
    text(&declared["credentials"][0], "access_token")
}

/// The RSA keys that an operator sees in one state.
async fn rsa(stand: &Stand, state: &str) -> Vec<String> {
    let list = stand.get("/v1/keys", VIEWER).await.expect(StatusCode::OK);
    let keys = list["keys"].as_array().expect("keys").iter();
    let found = keys.filter(|key| key["algorithm"] == "RS256" && key["state"] == state);
    found.map(|key| (assert_eq!(key["use"], "access_token"), text(key, "kid")).1).collect()
}

async fn jwks(stand: &Stand) -> Value {
    stand.call(Method::GET, "/jwks", None, None).await.expect(StatusCode::OK)
}

/// The key with this id in `/jwks`.
async fn public(stand: &Stand, kid: &str) -> Option<Value> {
    jwks(stand).await["keys"].as_array().expect("keys").iter().find(|key| key["kid"] == kid).cloned()
}

fn verifier(jwks: &Value, issuer: &str) -> Verifier<UntilExpiry> {
    let keys = KeySet::from_jwks(jwks.to_string().as_bytes()).expect("a key set");
    Verifier::offline_until_expiry(issuer, GIT.parse().unwrap()).with_access_keys(keys)
}

both! {
    async fn a_service_that_takes_rs256_gets_it_and_nobody_else_does(stand) {
        let metadata = "/.well-known/oauth-authorization-server";
        let signed_with = async || {
            let metadata = stand.call(Method::GET, metadata, None, None).await.expect(StatusCode::OK);
            metadata["id_token_signing_alg_values_supported"].clone()
        };
        assert_eq!(signed_with().await, json!(["ES256"]));
        import(&stand).await;
        assert_eq!(signed_with().await, json!(["ES256", "RS256"]));
        let (_, token) = stand.task_with_token().await;
        let header = part(&token, 0);
        let kid = text(&header, "kid");
        assert_eq!(header, json!({"alg": "RS256", "kid": kid, "typ": "at+jwt"}));
        let key = public(&stand, &kid).await.expect("it is published");
        let (n, e) = (text(&key, "n"), text(&key, "e"));
        let published = json!({"kty": "RSA", "n": n, "e": e, "kid": kid, "alg": "RS256", "use": "sig", "remit_purpose": "access_token"});
        assert_eq!(key, published);
        assert_eq!(Thumbprint::of(&json!({"kty": "RSA", "n": n, "e": e})).unwrap().as_str(), kid);
        assert_eq!(rsa(&stand, "signing").await, [kid]);

        // Whoever checks it: a library of Python, one of JavaScript, ours, and the broker itself.
        let issuer = stand.broker.url.as_str();
        let task = text(&claims(&token)["urn:remit:task"], "id");
        let with = |algorithm| [issuer, GIT, algorithm];
        assert_eq!(python("access_token.py", &with("RS256"), &[&token]).await, [format!("read for {task}")]);
        assert_eq!(python("access_token.py", &with("ES256"), &[&token]).await, ["InvalidAlgorithmError"]);
        let workload = "read for spiffe://example.com/ci/acme/payments";
        assert_eq!(node("jose.mjs", &[issuer, GIT, "at+jwt", "RS256"], &[&token]).await, [workload]);
        assert_eq!(stand.introspect(&token).await["active"], true);
        assert!(verifier(&jwks(&stand).await, issuer).verify(&token, SystemClock.now()).is_ok());

        let imported: Vec<_> = stand.audit().into_iter().filter(|line| line["event"] == "key_imported").collect();
        assert_eq!(imported.len(), 1, "{imported:?}");
        assert_eq!((&imported[0]["algorithm"], &imported[0]["purpose"]), (&json!("RS256"), &json!("access_token")));
    }

    /// Another service, another form, a status list; and what RS256 changes nothing of.
    async fn whatever_is_no_access_token_for_it_stays_as_it_is(stand) {
        import(&stand).await;
        let (task, token) = stand.task_with_token().await;
        let mut other = for_registry();
        other["credentials"] = json!([{"resource": REGISTRY, "privilege": "read"}, {"resource": REGISTRY, "privilege": "read", "type": "jwt"}]);
        let answer = stand.declare(other).await.expect(StatusCode::CREATED);
        for credential in answer["credentials"].as_array().unwrap() {
            assert_eq!(part(&text(credential, "access_token"), 0)["alg"], "ES256");
        }
        assert_eq!(stand.introspect_at(&stand.broker, REGISTRY_TOKEN, &token_of(&answer)).await["active"], true);
        let body = json!({"credentials": [{"resource": GIT, "privilege": "read", "type": "jwt"}]});
        let path = format!("/v1/tasks/{task}/credentials");
        let refused = stand.post(&path, &stand.evidence(), body).await.refused(400, "invalid_request");
        assert!(text(&refused, "detail").contains("ask for an access token"), "{refused}");
        let list = text(&claims(&token)["status"]["status_list"], "uri");
        let list = stand.client.get(list).send().await.unwrap().text().await.unwrap();
        assert_eq!(part(&list, 0)["alg"], "ES256");

        // One call with many; a retry gets the same; a revoke ends it.
        let many = json!({"credentials": vec![json!({"resource": GIT, "privilege": "read"}); 32]});
        let many = stand.post(&path, &stand.evidence(), many).await.expect(StatusCode::OK);
        for credential in many["credentials"].as_array().unwrap() {
            assert_eq!(stand.introspect(&text(credential, "access_token")).await["active"], true);
        }
        stand.revoke(&task).await.expect(StatusCode::OK);
        assert_eq!(stand.introspect(&token).await, json!({"active": false}));
    }

    /// The broker's own keys, and what an attacker makes of their public halves; the private half of the RSA key is the test's own,
    /// so that each of these is well signed by what it is compared with.
    async fn a_key_serves_its_own_algorithm_alone(stand) {
        let file = import(&stand).await;
        let (_, token) = stand.task_with_token().await;
        let (good, claims) = (part(&token, 0), claims(&token));
        let pair = pair(&file);
        let document = jwks(&stand).await;
        let signing = |algorithm: &str, purpose: &str| {
            let keys = document["keys"].as_array().unwrap().iter();
            let mut found = keys.filter(|key| key["alg"] == algorithm && key["remit_purpose"] == purpose);
            text(found.next().expect("a key"), "kid")
        };
        let (ec, list) = (signing("ES256", "access_token"), signing("ES256", "status_list"));
        let kid = text(&good, "kid");
        let encode = |octets: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(octets);
        let input = |header: &Value| {
            format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()))
        };
        let with_rsa = |header: &Value, padding: &'static dyn signature::RsaEncoding| {
            let input = input(header);
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(padding, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
            format!("{input}.{}", encode(&signature))
        };
        let attacker = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let with_ec = |header: &Value| {
            let (input, key) = (input(header), jsonwebtoken::EncodingKey::from_ec_der(attacker.kid().as_bytes()));
            let signature = jsonwebtoken::crypto::sign(input.as_bytes(), &key, jsonwebtoken::Algorithm::ES256).unwrap();
            format!("{input}.{signature}")
        };
        let hmac = |secret: &[u8]| {
            let input = input(&json!({"alg": "HS256", "kid": kid, "typ": "at+jwt"}));
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
            format!("{input}.{}", encode(ring::hmac::sign(&key, input.as_bytes()).as_ref()))
        };
        let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid, "typ": "at+jwt"});
        let file = file.to_str().unwrap();
        let (pem, der) = (openssl(&["pkey", "-in", file, "-pubout"]), openssl(&["pkey", "-in", file, "-pubout", "-outform", "DER"]));
        let n = text(&public(&stand, &kid).await.unwrap(), "n");
        let signed = |padding| with_rsa(&good, padding);
        let cases = [
            ("well signed", signed(&signature::RSA_PKCS1_SHA256)),
            ("HS256 with the public key in PEM", hmac(&pem)),
            ("HS256 with the same without its last line break", hmac(pem.trim_ascii())),
            ("HS256 with the public key in DER", hmac(&der)),
            ("HS256 with the modulus", hmac(n.as_bytes())),
            ("HS256 with the octets of the modulus", hmac(&BASE64_URL_SAFE_NO_PAD.decode(&n).unwrap())),
            ("none", format!("{}.", input(&header("none", &kid)))),
            ("ES256 by somebody with the RSA key's id", with_ec(&header("ES256", &kid))),
            ("RS256 in the header and an ES256 signature", with_ec(&header("RS256", &kid))),
            ("RS256 with the id of the key for ES256", with_rsa(&header("RS256", &ec), &signature::RSA_PKCS1_SHA256)),
            ("ES256 with the id of that key, signed by RSA", with_rsa(&header("ES256", &ec), &signature::RSA_PKCS1_SHA256)),
            ("ES256 in the header, signed by RSA", with_rsa(&header("ES256", &kid), &signature::RSA_PKCS1_SHA256)),
            ("with the id of the key for status lists", with_rsa(&header("RS256", &list), &signature::RSA_PKCS1_SHA256)),
            ("RS384", with_rsa(&header("RS384", &kid), &signature::RSA_PKCS1_SHA384)),
            ("RS512", with_rsa(&header("RS512", &kid), &signature::RSA_PKCS1_SHA512)),
            ("PS256", with_rsa(&header("PS256", &kid), &signature::RSA_PSS_SHA256)),
            ("RS256 in the header, signed as RS512", signed(&signature::RSA_PKCS1_SHA512)),
            ("RS256 in the header, signed as PS256", signed(&signature::RSA_PSS_SHA256)),
            ("a JWT-SVID", with_rsa(&json!({"alg": "RS256", "kid": kid, "typ": "JWT"}), &signature::RSA_PKCS1_SHA256)),
        ];
        let issuer = stand.broker.url.as_str();
        let verifier = verifier(&document, issuer);
        for (at, (name, token)) in cases.iter().enumerate() {
            let is_good = at == 0;
            assert_eq!(stand.introspect(token).await["active"], is_good, "{name}");
            assert_eq!(verifier.verify(token, SystemClock.now()).is_ok(), is_good, "{name}, offline");
        }
        let (body, signature) = token.rsplit_once('.').unwrap();
        assert!(verifier.verify(&format!("{body}.{}", &signature[..signature.len() - 4]), SystemClock.now()).is_err());
    }

    async fn a_set_with_a_key_that_no_broker_publishes_is_taken_by_nobody(stand) {
        import(&stand).await;
        let document = jwks(&stand).await;
        let long = |octets: usize| BASE64_URL_SAFE_NO_PAD.encode([&[0x80], &vec![1; octets - 1][..]].concat());
        for (name, over) in [
            ("alg", json!("RS512")), ("alg", json!("PS256")), ("alg", json!("ES256")), ("alg", json!("HS256")), ("alg", Value::Null),
            ("n", json!(long(128))), ("n", json!(long(255))), ("n", json!(long(1025))), ("n", json!("")),
            ("e", json!("AQ")), ("e", json!("Aw")), ("d", json!("AQAB")), ("kty", json!("oct")), ("kty", json!("EC")),
            ("remit_purpose", json!("status_list")),
        ] {
            let mut document = document.clone();
            let keys = document["keys"].as_array_mut().unwrap();
            keys.iter_mut().find(|key| key["kty"] == "RSA").unwrap()[name] = over.clone();
            let octets = document.to_string();
            let [tokens, lists] = [KeySet::from_jwks(octets.as_bytes()), KeySet::of_status_lists(octets.as_bytes())];
            let is_refused = if name == "remit_purpose" { lists.is_err() } else { tokens.is_err() };
            assert!(is_refused, "{name}: {over}");
        }
    }

    /// The operator puts another key beside the first one, twice; tokens of all of them are accepted throughout.
    async fn a_key_is_replaced_by_hand_and_no_verifier_notices(stand) {
        let mut stand = stand;
        let file = import(&stand).await;
        let next = file.with_file_name(NEXT);
        let rotated = stand.post("/v1/keys/rotate", ADMIN, json!({})).await.expect(StatusCode::OK);
        assert!(text(&rotated, "note").contains(NEXT), "{rotated}");
        let (task, token) = stand.task_with_token().await;
        let first = text(&part(&token, 0), "kid");
        let mut live = vec![token];
        for by_restart in [false, true] {
            let old = text(&part(live.last().unwrap(), 0), "kid");
            if by_restart {
                stand.broker.stop().await;
                make(&next, 3072);
                stand.broker = Server::start(&stand.broker.config).await;
            } else {
                make(&next, 3072);
            }
            wait_for("the next key", || async { rsa(&stand, "prepared").await.len() == 1 || rsa(&stand, "signing").await != [old.clone()] }).await;
            wait_for("the rotation", || async { !next.exists() }).await;
            let new = rsa(&stand, "signing").await;
            assert_eq!(new.len(), 1, "{new:?}");
            assert_ne!(new[0], old);
            assert!(rsa(&stand, "retired").await.contains(&old));
            assert_eq!(pair(&file).public().modulus_len(), 384);
            let answer = stand.mint(&task).await.expect(StatusCode::OK);
            live.push(token_of(&answer));
            assert_eq!(part(live.last().unwrap(), 0)["kid"], json!(new[0]));
            let tokens: Vec<_> = live.iter().map(String::as_str).collect();
            let verified = python("access_token.py", &[&stand.broker.url, GIT, "RS256"], &tokens).await;
            assert_eq!(verified, vec![format!("read for {task}"); live.len()]);
            for token in &live {
                assert_eq!(stand.introspect(token).await["active"], true);
            }
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // A key that was retired never signs again.
        let events = stand.audit();
        let of = |event: &str| events.iter().filter(|line| line["event"] == event && line["purpose"] == "access_token").count();
        assert_eq!(of("key_imported"), 3);
        assert!(events.iter().any(|line| line["event"] == "key_activated" && line["replaces"] == json!(first)));
    }

    /// What a crash leaves after the end of the old key is on record, and what an old backup brings back.
    async fn a_key_that_was_retired_never_signs_again(stand) {
        let mut stand = stand;
        let file = import(&stand).await;
        let [next, old, new] = [NEXT, "old", "new"].map(|name| file.with_file_name(name));
        fs::copy(&file, &old).unwrap();
        make(&next, 2048);
        fs::copy(&next, &new).unwrap();
        wait_for("the next key", || async { !next.exists() }).await;
        let (_, token) = stand.task_with_token().await;
        let kid = text(&part(&token, 0), "kid");
        stand.broker.stop().await;
        fs::copy(&old, &file).unwrap();
        fs::copy(&new, &next).unwrap();
        stand.broker = Server::start(&stand.broker.config).await;
        signs_rs256(&stand).await;
        assert_eq!(rsa(&stand, "signing").await, std::slice::from_ref(&kid));
        wait_for("the file", || async { !next.exists() }).await;
        assert_eq!(fs::read(&file).unwrap(), fs::read(&new).unwrap());
        stand.broker.stop().await;
        fs::copy(&old, &file).unwrap();
        stand.broker = Server::start(&stand.broker.config).await;
        // The second key is another broker's now, as far as this one knows.
        assert_eq!((rsa(&stand, "signing").await, rsa(&stand, "published").await), (vec![], vec![kid]));
        for _ in 0..3 {
            stand.declare(declaration()).await.refused(503, "temporarily_unavailable");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(stand.introspect(&token).await["active"], true);
        make(&next, 2048);
        signs_rs256(&stand).await;
    }

    /// Nobody believes what it signed, at once and for good, wherever its file comes from; and another one takes its place.
    async fn a_tainted_key_never_signs_again(stand) {
        let mut stand = stand;
        let file = import(&stand).await;
        let [next, old] = [NEXT, "old"].map(|name| file.with_file_name(name));
        fs::copy(&file, &old).unwrap();
        let holds_old = || fs::read(&file).unwrap() == fs::read(&old).unwrap();
        let (task, token) = stand.task_with_token().await;
        let kid = text(&part(&token, 0), "kid");
        let tainted = taint(&stand, &kid).await;
        let [state, algorithm, own] = ["state", "algorithm", "own"].map(|member| &tainted[member]);
        assert_eq!((state, algorithm, own), (&json!("tainted"), &json!("RS256"), &json!(true)));
        assert_eq!(taint(&stand, &kid).await, tainted);
        for restarted in [false, true] {
            if restarted {
                stand.restart_broker().await;
            }
            assert_eq!(stand.introspect(&token).await, json!({"active": false}));
            assert_eq!(public(&stand, &kid).await, None);
            assert_eq!((rsa(&stand, "tainted").await, rsa(&stand, "signing").await), (vec![kid.clone()], vec![]));
            stand.mint(&task).await.refused(503, "temporarily_unavailable");
            let answer = stand.declare(for_registry()).await.expect(StatusCode::CREATED);
            assert_eq!(stand.introspect_at(&stand.broker, REGISTRY_TOKEN, &token_of(&answer)).await["active"], true);
        }
        make(&next, 2048);
        signs_rs256(&stand).await;
        wait_for("its place", || async { !next.exists() }).await;
        assert!(!holds_old());
        let minted = async || {
            let token = token_of(&stand.mint(&task).await.expect(StatusCode::OK));
            assert_eq!(stand.introspect(&token).await["active"], true);
            text(&part(&token, 0), "kid")
        };
        let new = minted().await;
        assert_ne!(new, kid);
        // Back as the next one.
        fs::copy(&old, &next).unwrap();
        wait_for("its end", || async { !next.exists() }).await;
        assert_eq!((minted().await, rsa(&stand, "tainted").await), (new, vec![kid.clone()]));
        // And as the one that signs, from a backup.
        stand.broker.stop().await;
        fs::copy(&old, &file).unwrap();
        stand.broker = Server::start(&stand.broker.config).await;
        stand.mint(&task).await.refused(503, "temporarily_unavailable");
        assert_eq!((rsa(&stand, "tainted").await, public(&stand, &kid).await), (vec![kid.clone()], None));
        make(&next, 2048);
        signs_rs256(&stand).await;
        wait_for("its place", || async { !next.exists() && !holds_old() }).await;
        let events = stand.audit();
        let of = |event: &str| events.iter().filter(|line| line["event"] == event && line["kid"] == json!(kid)).count();
        assert_eq!((of("key_imported"), of("key_activated"), of("key_tainted")), (1, 0, 2));
        assert_eq!(events.iter().filter(|line| line["replaces"] == json!(kid)).count(), 2);
    }

    async fn what_is_no_next_key_changes_nothing(stand) {
        let file = import(&stand).await;
        let (next, before) = (file.with_file_name(NEXT), rsa(&stand, "signing").await);
        let unchanged = async |what: &str| {
            // The files are looked at every second.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert_eq!((rsa(&stand, "signing").await, rsa(&stand, "prepared").await), (before.clone(), vec![]), "{what}");
            assert_eq!(part(&stand.task_with_token().await.1, 0)["kid"], json!(before[0]), "{what}");
        };
        fs::copy(&file, &next).unwrap();
        unchanged("the same key").await;
        make(&next, 1024);
        unchanged("a weak one").await;
        make(&next, 2048);
        fs::set_permissions(&next, fs::Permissions::from_mode(0o644)).unwrap();
        unchanged("one that others can read").await;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).unwrap();
        wait_for("the next key", || async { rsa(&stand, "signing").await != before && !next.exists() }).await;
    }

    /// A file that is written over is taken as what it is: the next key.
    async fn a_file_that_is_written_over_is_the_next_key(stand) {
        let file = import(&stand).await;
        let (_, token) = stand.task_with_token().await;
        let new = file.with_file_name("elsewhere.pem");
        make(&new, 2048);
        fs::rename(&new, &file).unwrap();
        let old = text(&part(&token, 0), "kid");
        wait_for("the new key", || async { rsa(&stand, "retired").await == [old.clone()] }).await;
        assert_ne!(part(&stand.task_with_token().await.1, 0)["kid"], json!(old));
        assert_eq!(stand.introspect(&token).await["active"], true);
    }
}

/// Each has a key of its own, and both are in what each publishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_brokers_know_each_others_keys() {
    let stand = Stand::new(Store::Redis).await;
    import(&stand).await;
    make_dir(&keys_of(&stand, "second"));
    make(&keys_of(&stand, "second").join(KEY), 2048);
    let mut second = stand.second_broker().await;
    let config = second.config.clone();
    with_rs256(&config);
    second.stop().await;
    let second = Server::start(&config).await;
    let declared = || async {
        let evidence = stand.evidence();
        stand.call_at(&second, Method::POST, "/v1/tasks", Some(&evidence), Some(declaration())).await
    };
    wait_for("RS256 at the second", || async { declared().await.status == StatusCode::CREATED }).await;
    let theirs = token_of(&declared().await.expect(StatusCode::CREATED));
    let (_, ours) = stand.task_with_token().await;
    assert_eq!((&part(&ours, 0)["alg"], &part(&theirs, 0)["alg"]), (&json!("RS256"), &json!("RS256")));
    assert_ne!(part(&ours, 0)["kid"], part(&theirs, 0)["kid"]);
    for broker in [&stand.broker, &second] {
        for token in [&ours, &theirs] {
            assert_eq!(stand.introspect_at(broker, GIT_TOKEN, token).await["active"], true);
        }
        let document = stand.call_at(broker, Method::GET, "/jwks", None, None).await.expect(StatusCode::OK);
        let rsa = document["keys"].as_array().unwrap().iter().filter(|key| key["kty"] == "RSA").count();
        assert_eq!(rsa, 2);
        let verifier = verifier(&document, &stand.broker.url);
        assert!([&ours, &theirs].iter().all(|token| verifier.verify(token, SystemClock.now()).is_ok()));
    }
    let list = stand.get("/v1/keys", VIEWER).await.expect(StatusCode::OK);
    let own = |own: bool| {
        list["keys"].as_array().unwrap().iter().filter(|key| key["algorithm"] == "RS256" && key["own"] == own).count()
    };
    assert_eq!((own(true), own(false)), (1, 1));
    // Tainted at the other one, which does not have it.
    let tainted = taint_at(&stand, &second, &text(&part(&ours, 0), "kid")).await.expect(StatusCode::OK);
    assert_eq!((&tainted["state"], &tainted["own"]), (&json!("tainted"), &json!(false)));
    for broker in [&stand.broker, &second] {
        assert_eq!(stand.introspect_at(broker, GIT_TOKEN, &ours).await, json!({"active": false}));
        assert_eq!(stand.introspect_at(broker, GIT_TOKEN, &theirs).await["active"], true);
    }
    let refused = async || stand.declare(declaration()).await.status == StatusCode::SERVICE_UNAVAILABLE;
    wait_for("the first to find out", refused).await;
    assert_eq!(declared().await.status, StatusCode::CREATED);
}

fn make_dir(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
}

/// A configuration with RS256, and a key of which the rest depends.
fn bench(edit: impl FnOnce(String) -> String) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for keys in ["ci-keys.json", "sso-keys.json"] {
        fs::write(dir.path().join(keys), Issuer::new().jwks().to_string()).unwrap();
    }
    let config = write_config(dir.path(), "broker", "redb:remit.redb", "");
    with_rs256(&config);
    fs::write(&config, edit(fs::read_to_string(&config).unwrap())).unwrap();
    make_dir(&dir.path().join("broker-keys"));
    let file = dir.path().join("broker-keys").join(KEY);
    (dir, config, file)
}

/// What `remit` says to a configuration that it refuses.
fn refused(arguments: &[&str], config: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_remit"))
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env("REMIT_LOG", "error")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// A first broker signs at once, whatever its verifiers may keep: nobody knows of other keys. The command is the one that was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_key_is_told_how_to_make_and_a_first_broker_signs_at_once() {
    let (_dir, config, file) = bench(|config| config.replace("jwks_max_age = 1", "jwks_max_age = 300"));
    let (served, checked) = (refused(&["serve"], &config), refused(&["config", "check"], &config));
    for said in [&served, &checked] {
        assert!(said.contains("service `git`: `algorithm = \"RS256\"` needs an RSA key in "), "{said}");
        assert!(said.contains(file.to_str().unwrap()), "{said}");
    }
    let command = served.split('`').find(|word| word.starts_with("openssl")).expect("a command");
    assert!(Command::new("sh").args(["-c", command]).output().unwrap().status.success(), "{command}");
    let broker = Server::start(&config).await;
    let list = crate::support::client().get(format!("{}/v1/keys", broker.url)).bearer_auth(VIEWER).send().await;
    let list: Value = list.unwrap().json().await.unwrap();
    let key = list["keys"].as_array().unwrap().iter().find(|key| key["algorithm"] == "RS256").unwrap();
    assert_eq!(key["state"], "signing", "{key}");
}

/// A broker that has served before waits, and mints for others meanwhile; so it is after the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_waits_until_verifiers_can_know_it() {
    let mut stand = Stand::edited(|config| config.replace("jwks_max_age = 1", "jwks_max_age = 300")).await;
    make(&keys_of(&stand, "broker").join(KEY), 2048);
    wait_for("the imported key", || async { !rsa(&stand, "prepared").await.is_empty() }).await;
    let (task, _) = stand.task_with_token().await;
    with_rs256(&stand.broker.config);
    for _ in 0..2 {
        stand.restart_broker().await;
        let prepared = rsa(&stand, "prepared").await;
        assert!(prepared.len() == 1 && public(&stand, &prepared[0]).await.is_some());
        stand.mint(&task).await.refused(503, "temporarily_unavailable");
        stand.declare(for_registry()).await.expect(StatusCode::CREATED);
    }
}

/// A first broker that has an RSA key, whose verifiers keep the keys for five minutes, and the file of that key.
async fn with_patient_verifiers() -> (Stand, PathBuf) {
    let (issuer, people) = (Issuer::new(), Issuer::new());
    let (dir, config, file) = bench(|config| config.replace("jwks_max_age = 1", "jwks_max_age = 300"));
    fs::write(dir.path().join("ci-keys.json"), issuer.jwks().to_string()).unwrap();
    make(&file, 2048);
    let broker = Server::start(&config).await;
    (Stand { dir, redis: None, issuer, people, broker, client: crate::support::client() }, file)
}

/// They do not know the next one, and nobody waits for that where the one that signs is tainted: not after a restart either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_tainted_key_the_next_one_signs_at_once() {
    let (mut stand, file) = with_patient_verifiers().await;
    let next = file.with_file_name(NEXT);
    let (task, token) = stand.task_with_token().await;
    let first = text(&part(&token, 0), "kid");
    let prepared = async || {
        make(&next, 2048);
        wait_for("the next key", || async { !rsa(&stand, "prepared").await.is_empty() }).await;
        rsa(&stand, "prepared").await.remove(0)
    };
    let signer = async |stand: &Stand| {
        let token = token_of(&stand.mint(&task).await.expect(StatusCode::OK));
        assert_eq!(stand.introspect(&token).await["active"], true);
        text(&part(&token, 0), "kid")
    };
    // A next one that is tainted is gone with the answer, and its file.
    let never = prepared().await;
    assert_eq!(taint(&stand, &never).await["own"], false);
    assert_eq!((next.exists(), signer(&stand).await), (false, first.clone()));
    let second = prepared().await;
    let private = fs::read(&file).unwrap();
    assert_eq!(taint(&stand, &first).await["own"], false);
    assert!(!next.exists() && fs::read(&file).unwrap() != private);
    assert_eq!((signer(&stand).await, stand.introspect(&token).await), (second.clone(), json!({"active": false})));
    stand.restart_broker().await;
    assert_eq!(signer(&stand).await, second);
    // Nor does the key for ES256 wait, because there is an older one for RS256.
    let declared = async |stand: &Stand| {
        let answer = stand.declare(for_registry()).await.expect(StatusCode::CREATED);
        text(&part(&token_of(&answer), 0), "kid")
    };
    let es256 = declared(&stand).await;
    taint(&stand, &es256).await;
    let another = declared(&stand).await;
    stand.restart_broker().await;
    assert_eq!((declared(&stand).await, signer(&stand).await), (another.clone(), second.clone()));
    assert_ne!(another, es256);
    let mut tainted = rsa(&stand, "tainted").await;
    tainted.sort();
    let mut expected = vec![first, never];
    expected.sort();
    assert_eq!(tainted, expected);
}

/// And until they can know the next one, the old one signs, a restart or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_key_signs_until_verifiers_can_know_the_next_one() {
    let (mut stand, file) = with_patient_verifiers().await;
    // A retry gets the same, whichever key it is signed with.
    let declared = async || {
        let request = stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence());
        let answer = request.header("idempotency-key", "one").json(&declaration()).send().await.unwrap();
        claims(&token_of(&answer.json::<Value>().await.unwrap()))
    };
    assert_eq!(declared().await, declared().await);
    let old = text(&part(&stand.task_with_token().await.1, 0), "kid");
    make(&file.with_file_name(NEXT), 2048);
    wait_for("the next key", || async { !rsa(&stand, "prepared").await.is_empty() }).await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(text(&part(&stand.task_with_token().await.1, 0), "kid"), old);
        assert_eq!((rsa(&stand, "signing").await, rsa(&stand, "prepared").await.len()), (vec![old.clone()], 1));
        stand.restart_broker().await;
    }
    // Withdrawn, it never signs.
    fs::remove_file(file.with_file_name(NEXT)).unwrap();
    wait_for("the withdrawal", || async { rsa(&stand, "retired").await.len() == 1 }).await;
    assert_eq!(rsa(&stand, "signing").await, [old]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_none_is_refused_in_a_sentence() {
    let (dir, config, file) = bench(|config| config);
    let other = dir.path().join("other.pem");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let says = |words: &[&str]| {
        for said in [refused(&["serve"], &config), refused(&["config", "check"], &config)] {
            assert!(said.contains(KEY) && words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
            assert_eq!(said.lines().filter(|line| line.contains(KEY)).count(), 1, "told once: {said}");
            assert!(!said.contains("BEGIN"), "{said}");
        }
    };
    let write = |text: &[u8]| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    make(&file, 1024);
    says(&["2048 bits"]);
    make(&file, 2056);
    says(&["2048 to 4096 bits"]);
    make(&file, 4608);
    says(&["2048 to 4096 bits"]);
    openssl(&["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_pubexp:3", "-out", &path(&file)]);
    says(&["65537"]);
    openssl(&["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &path(&file)]);
    says(&["not an RSA private key"]);
    openssl(&["genpkey", "-quiet", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &path(&file)]);
    says(&["not an RSA private key"]);
    make(&other, 2048);
    let good = fs::read(&other).unwrap();
    write(&[good.clone(), good.clone()].concat());
    says(&["one private key"]);
    write(&openssl(&["pkey", "-in", &path(&other), "-pubout"]));
    says(&["one private key"]);
    write(&openssl(&["pkey", "-in", &path(&other), "-aes256", "-passout", "pass:x"]));
    says(&["without a passphrase"]);
    // A key of which one number is another's.
    let der = openssl(&["rsa", "-in", &path(&other), "-traditional", "-outform", "DER"]);
    let spoilt = |from_end: usize| {
        let mut der = der.clone();
        let at = der.len() - from_end;
        der[at] ^= 2;
        remit::pem::write("RSA PRIVATE KEY", &der)
    };
    for from_end in [40, 170, 300] {
        write(spoilt(from_end).as_bytes());
        says(&["RSA private key"]);
    }
    write(&good);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    says(&["chmod 600"]);
    // PKCS#1 is as good as PKCS#8.
    write(remit::pem::write("RSA PRIVATE KEY", &der).as_bytes());
    let broker = Server::start(&config).await;
    drop(broker);
    // And so is a next key judged, and one that has nothing before it.
    write(&good);
    fs::copy(&file, file.with_file_name(NEXT)).unwrap();
    for said in [refused(&["serve"], &config), refused(&["config", "check"], &config)] {
        assert!(said.contains(NEXT) && said.contains("put another one there"), "{said}");
    }
    fs::remove_file(&file).unwrap();
    assert!(refused(&["serve"], &config).contains("needs an RSA key in"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_algorithm_is_one_of_two() {
    for bad in ["HS256", "none", "rs256", "PS256", ""] {
        let (_dir, config, _) = bench(|config| config.replace("RS256", bad));
        let said = refused(&["config", "check"], &config);
        assert!(said.contains("`ES256` or `RS256`"), "{said}");
    }
    // What is asked for by name is what is meant where nothing is said.
    let (_dir, config, _) = bench(|config| config.replace("RS256", "ES256"));
    Server::start(&config).await;
}

/// A configuration that asks for RS256 without a key is refused while another one is in force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_broker_refuses_what_it_has_no_key_for() {
    let stand = Stand::new(Store::Embedded).await;
    let configuration = async || {
        let answer = stand.client.get(stand.url("/readyz")).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["configuration"].clone()
    };
    with_rs256(&stand.broker.config);
    wait_for("the refusal", || async { configuration().await == "refused" }).await;
    assert_eq!(part(&stand.task_with_token().await.1, 0)["alg"], "ES256");
    let file = keys_of(&stand, "broker").join(KEY);
    make(&file, 1024);
    // Looked at every two seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(configuration().await, "refused");
    make(&file, 2048);
    signs_rs256(&stand).await;
    assert_eq!(configuration().await, "current");
}
