//! Services and operators that are known by a client certificate: alone, or beside a token that is worth nothing without it.

use remit::id::sha256_hex;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt as _};
use tokio::process::Command;

use crate::{
    both,
    mtls::Place,
    support::{
        Answer, GIT_TOKEN, RESPONDER, Stand, declaration,
        pki::{Identity, builder, lasts, params},
        text,
    },
};

const TOKEN: &str = "vera-has-a-token-too";

/// Those who are known by certificates.
struct People {
    place: Place,
    /// An operator who has nothing else.
    cora: Identity,
    /// An operator with a token besides.
    vera: Identity,
    /// A service that has nothing else.
    store: Identity,
}

fn digest(identity: &Identity) -> String {
    use rcgen::PublicKeyData as _;
    sha256_hex(&identity.key.subject_public_key_info())
}

impl People {
    async fn of(stand: Stand, more: &str) -> Self {
        let mut place = Place::of(stand).await;
        let [cora, vera, store] = ["cora", "vera", "store"].map(|name| Identity::alone(&params(name)));
        let config = fs::read_to_string(&place.stand.broker.config).unwrap();
        let people = format!(
            "[[operator]]\nname = \"cora\"\nroles = [\"responder\"]\npublic_key_sha256 = [\"{}\"]\n\
             [[operator]]\nname = \"vera\"\nroles = [\"admin\"]\ntoken_sha256 = \"{}\"\npublic_key_sha256 = [\"{}\"]\n\
             [[service]]\nname = \"store\"\naudiences = [\"https://store.example.com\"]\nbinding = \"none\"\n\
             public_key_sha256 = [\"{}\"]\n{more}",
            digest(&cora),
            sha256_hex(TOKEN.as_bytes()),
            digest(&vera),
            digest(&store),
        );
        fs::write(&place.stand.broker.config, config + &people).unwrap();
        place.stand.restart_broker().await;
        Self { place, cora, vera, store }
    }

    async fn post(&self, shown: Option<&Identity>, token: Option<&str>, path: &str) -> Answer {
        self.place.call(shown, token, path, json!({"reason": "a test"})).await
    }

    async fn get(&self, shown: Option<&Identity>, path: &str) -> Answer {
        let client = match shown {
            Some(identity) => identity.client(&self.place.servers),
            None => builder(&self.place.servers).build().unwrap(),
        };
        Answer::of(client.get(self.place.url(path)).send().await.unwrap()).await
    }

    async fn introspect(&self, shown: Option<&Identity>, token: &str) -> Answer {
        let client = match shown {
            Some(identity) => identity.client(&self.place.servers),
            None => builder(&self.place.servers).build().unwrap(),
        };
        let request = client.post(self.place.url("/oauth2/introspect")).form(&[("token", token)]);
        Answer::of(request.send().await.unwrap()).await
    }
}

both! {
    async fn an_operator_is_known_by_a_certificate(stand) {
        let people = People::of(stand, "").await;
        let stand = &people.place.stand;
        let (task, token) = stand.task_with_token().await;
        let revoke = format!("/v1/tasks/{task}/revoke");
        let stranger = crate::mtls::own();
        // The same key in a certificate that is not valid any more, or not yet.
        let at = |from: i64, until: i64| {
            let mut params = params("cora");
            lasts(&mut params, from, until);
            let certificate = params.self_signed(&people.cora.key).unwrap();
            let key = rcgen::KeyPair::from_pem(&people.cora.key.serialize_pem()).unwrap();
            Identity { certificate, key, others: Vec::new() }
        };
        let (over, early) = (at(-600, -60), at(60, 600));
        for shown in [None, Some(&stranger), Some(&over), Some(&early)] {
            people.post(shown, None, &revoke).await.refused(401, "evidence_invalid");
        }
        // A certificate says nothing where it is not shown in the handshake.
        stand.call(Method::POST, &revoke, None, Some(json!({"reason": "a test"}))).await.refused(401, "evidence_invalid");
        // Roles are as ever; and an operator holds no tasks.
        people.post(Some(&people.cora), None, "/v1/keys/rotate").await.refused(403, "policy_denied");
        people.place.call(Some(&people.cora), None, "/v1/tasks", declaration()).await.refused(403, "policy_denied");
        // What is said in so many words counts before it.
        people.post(Some(&people.cora), Some("nobody's"), &revoke).await.refused(401, "evidence_invalid");
        people.place.call(Some(&people.cora), Some(&stand.evidence()), "/v1/tasks", declaration()).await.expect(StatusCode::CREATED);
        assert_eq!(stand.introspect(&token).await["active"], true);
        // Renewed for the same key it is as good.
        let renewed = at(-60, 600);
        people.get(Some(&renewed), &format!("/v1/tasks/{task}")).await.expect(StatusCode::OK);
        people.post(Some(&people.cora), None, &revoke).await.expect(StatusCode::OK);
        assert_eq!(stand.introspect(&token).await["active"], false);
        let audit = stand.whole_audit();
        let by = audit.iter().find(|line| line["event"] == "task_ended").expect("on record");
        assert_eq!(by["actor"], json!({"as": "operator", "name": "cora"}));
    }

    async fn a_token_is_worth_nothing_without_the_certificate_beside_it(stand) {
        let people = People::of(stand, "").await;
        let keys = "/v1/keys/rotate";
        for (shown, token) in [
            (None, Some(TOKEN)),
            (Some(&people.cora), Some(TOKEN)),
            (Some(&people.vera), None),
            (Some(&people.vera), Some("another")),
        ] {
            people.post(shown, token, keys).await.refused(401, "evidence_invalid");
        }
        let stand = &people.place.stand;
        stand.post(keys, TOKEN, json!({})).await.refused(401, "evidence_invalid");
        people.post(Some(&people.vera), Some(TOKEN), keys).await.expect(StatusCode::OK);
        // Whoever needs no certificate may show any.
        let (task, _) = stand.task_with_token().await;
        people.post(Some(&people.vera), Some(RESPONDER), &format!("/v1/tasks/{task}/revoke")).await.expect(StatusCode::OK);
    }

    /// A browser shows the certificate of whoever sits at it wherever a page of another site has it send something.
    async fn a_page_of_another_site_does_nothing_in_their_name(stand) {
        let carl = Identity::alone(&params("carl"));
        let more = format!("[[operator]]\nname = \"carl\"\nroles = [\"admin\"]\npublic_key_sha256 = [\"{}\"]\n", digest(&carl));
        let people = People::of(stand, &more).await;
        let (place, client) = (&people.place, carl.client(&people.place.servers));
        let (own, by_tls, evil) = (place.stand.broker.url.clone(), place.url(""), "https://evil.example.com");
        // As a form without fields is sent: no body, and no content type is asked for.
        let send = async |path: &str, headers: &[(&str, &str)]| {
            let request = client.post(place.url(path));
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            Answer::of(request.send().await.unwrap()).await
        };
        let (site, origin) = ("sec-fetch-site", "origin");
        for headers in [
            &[(site, "cross-site")][..],
            &[(site, "same-site")],
            &[(site, "none"), (site, "cross-site")],
            &[(site, "")],
            &[(origin, evil)],
            &[(origin, "null")],
            &[(origin, &format!("{own}.evil.example.com"))],
            &[(origin, &own), (origin, evil)],
            &[(site, "same-origin"), (origin, evil)],
            &[(site, "cross-site"), (origin, &own)],
        ] {
            for path in ["/v1/keys/rotate", "/v1/keys/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/taint", "/v1/tasks"] {
                send(path, headers).await.refused(400, "invalid_request");
            }
            send("/oauth2/revoke", headers).await.oauth_refused(400, "invalid_request");
        }
        let asked = |line: &Value| line["event"] == "key_rotation_requested";
        assert!(!place.stand.whole_audit().iter().any(asked));
        // Whoever follows a link only looks; and what is no browser says nothing of it.
        let looked = client.get(place.url("/v1/keys")).header(site, "cross-site").send().await.unwrap();
        assert_eq!(looked.status(), StatusCode::OK);
        for headers in [&[][..], &[(site, "none")], &[(site, "same-origin"), (origin, &by_tls)], &[(origin, &own)]] {
            send("/v1/keys/rotate", headers).await.expect(StatusCode::OK);
        }
        assert!(place.stand.whole_audit().iter().any(asked));
    }

    async fn a_service_is_known_by_a_certificate(stand) {
        let people = People::of(stand, "[feed]\nanonymous = false\n").await;
        let stand = &people.place.stand;
        let (_, token) = stand.task_with_token().await;
        // Known, and not the audience of this one.
        let answer = people.introspect(Some(&people.store), &token).await.expect(StatusCode::OK);
        assert_eq!(answer, json!({"active": false}));
        for shown in [None, Some(&people.place.agent())] {
            people.introspect(shown, &token).await.oauth_refused(401, "invalid_client");
        }
        assert_eq!(people.get(Some(&people.store), "/v1/revocations").await.status, StatusCode::OK);
        for shown in [None, Some(&people.place.agent())] {
            people.get(shown, "/v1/revocations").await.refused(401, "evidence_invalid");
        }
        let read = Answer::of(
            stand.client.get(stand.url("/v1/revocations")).bearer_auth(GIT_TOKEN).send().await.unwrap(),
        );
        assert_eq!(read.await.status, StatusCode::OK);
    }
}

/// A certificate that is nobody's makes nobody out of whoever may read without a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_certificate_changes_nothing_for_a_stranger() {
    let people = People::of(Stand::new(crate::support::Store::Embedded).await, "").await;
    let stranger = crate::mtls::own();
    for shown in [None, Some(&stranger), Some(&people.store)] {
        assert_eq!(people.get(shown, "/v1/revocations").await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_it() {
    let people = People::of(Stand::new(crate::support::Store::Embedded).await, "").await;
    let stand = &people.place.stand;
    let (task, _) = stand.task_with_token().await;
    let file = stand.dir.path().join("cora.pem");
    fs::write(&file, people.cora.certificate.pem() + &people.cora.key.serialize_pem()).unwrap();
    let remit = |url: String, file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["--url", &url, "--operator-cert-file", file, "--output", "json", "task", "revoke", &task]);
        command.args(["--reason", "a test"]).env("SSL_CERT_FILE", "ca.crt").env("no_proxy", "*");
        command.current_dir(stand.dir.path());
        async move { command.output().await.expect("remit") }
    };
    let open = remit(people.place.url(""), "cora.pem").await;
    assert!(!open.status.success(), "others can read the key: {open:?}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let clear = remit(stand.broker.url.clone(), "cora.pem").await;
    assert!(String::from_utf8_lossy(&clear.stderr).contains("https:// alone"), "{clear:?}");
    let none = remit(people.place.url(""), "ca.crt").await;
    assert!(!none.status.success() && !String::from_utf8_lossy(&none.stderr).contains("BEGIN"), "{none:?}");
    let revoked = remit(people.place.url(""), "cora.pem").await;
    assert!(revoked.status.success(), "{revoked:?}");
    let answer: Value = serde_json::from_slice(&revoked.stdout).unwrap();
    assert_eq!((text(&answer, "task"), text(&answer, "state")), (task.clone(), "revoked".to_owned()));
}
