//! Certificates of tasks: what they say, what they are made from, and how soon a revoke shows on their list; by OpenSSL, as it is.

use chrono::TimeDelta;
use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::{
    both,
    support::{
        ADMIN, Answer, Frozen, GIT, KEYTOOL_CSR, RESPONDER, Server, Stand, Store, VIEWER, client, declaration, now,
        text, time, wait_for,
    },
};

/// Runs OpenSSL in a directory: whether it was content, and what it said.
pub(crate) fn openssl(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).current_dir(dir).output().expect("openssl");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// The same where it has to be content: what it said.
#[track_caller]
pub(crate) fn must(dir: &Path, arguments: &[&str]) -> String {
    let (well, said) = openssl(dir, arguments);
    assert!(well, "openssl {arguments:?}: {said}");
    said
}

/// Where the revocation list stands that a certificate (DER) names.
pub(crate) fn list_named_in(der: &[u8]) -> String {
    let (_, certificate) = parse_x509_certificate(der).unwrap();
    let points = certificate.iter_extensions().find_map(|extension| {
        if let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension() {
            Some(&points.points)
        } else {
            None
        }
    });
    let [CRLDistributionPoint { distribution_point: Some(DistributionPointName::FullName(names)), .. }] =
        &points.expect("a distribution point")[..]
    else {
        panic!("not one distribution point")
    };
    let [GeneralName::URI(uri)] = &names[..] else { panic!("not one URI: {names:?}") };
    (*uri).to_owned()
}

/// A new key in `key.pem`, and a request for it with more arguments.
fn request(dir: &Path, key: &[&str], more: &[&str]) -> String {
    must(dir, &[&["genpkey", "-out", "key.pem"], key].concat());
    must(dir, &[&["req", "-new", "-key", "key.pem", "-subj", "/CN=x", "-out", "csr.pem"], more].concat());
    std::fs::read_to_string(dir.join("csr.pem")).expect("a request")
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// A certificate, as it was answered, with files for OpenSSL.
pub(crate) struct Certified {
    dir: tempfile::TempDir,
    answer: Value,
    pub(crate) der: Vec<u8>,
}

impl Certified {
    pub(crate) fn of(answer: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cert.pem"), text(&answer, "certificate")).unwrap();
        std::fs::write(dir.path().join("bundle.pem"), text(&answer, "bundle")).unwrap();
        let (_, pem) = parse_x509_pem(answer["certificate"].as_str().unwrap().as_bytes()).unwrap();
        Self { dir, der: pem.contents, answer }
    }

    fn parsed(&self) -> X509Certificate<'_> {
        parse_x509_certificate(&self.der).unwrap().1
    }

    pub(crate) fn serial(&self) -> String {
        remit::id::hex(self.parsed().raw_serial())
    }

    /// The path of the list that it names.
    fn list(&self, stand: &Stand) -> String {
        self.list_of(&stand.broker.url)
    }

    fn list_of(&self, issuer: &str) -> String {
        let uri = list_named_in(&self.der);
        uri.strip_prefix(issuer).expect("a list of the broker").to_owned()
    }

    /// The list, fetched from a broker.
    async fn fetch(&self, stand: &Stand, at: &Server) -> Vec<u8> {
        let answer = stand.client.get(format!("{}{}", at.url, self.list(stand))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "application/pkix-crl");
        assert_eq!(answer.headers()["cache-control"], "public, max-age=1");
        answer.bytes().await.unwrap().to_vec()
    }

    /// What OpenSSL says to the certificate with that list.
    fn verify(&self, list: &[u8]) -> (bool, String) {
        let dir = self.dir.path();
        std::fs::write(dir.join("list.der"), list).unwrap();
        must(dir, &["crl", "-inform", "DER", "-in", "list.der", "-out", "list.pem"]);
        let check =
            ["verify", "-x509_strict", "-CAfile", "bundle.pem", "-crl_check", "-CRLfile", "list.pem", "cert.pem"];
        openssl(dir, &check)
    }

    pub(crate) async fn is_good(&self, stand: &Stand, at: &Server) -> bool {
        let (good, said) = self.verify(&self.fetch(stand, at).await);
        assert!(good || said.contains("certificate revoked"), "{said}");
        good
    }

    /// Waits until it is on its list, which has to be within ten seconds.
    pub(crate) async fn is_revoked_soon(&self, stand: &Stand, at: &Server) {
        let begun = Instant::now();
        while self.is_good(stand, at).await {
            assert!(begun.elapsed() < Duration::from_secs(10), "not on its list");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn ask(stand: &Stand, task: &str, body: Value) -> Answer {
    stand.post(&format!("/v1/tasks/{task}/certificate"), &stand.evidence(), body).await
}

/// A task, and a certificate of it.
pub(crate) async fn certified(stand: &Stand) -> (String, Certified) {
    let (task, _) = stand.task_with_token().await;
    let csr = request(stand.dir.path(), P256, &[]);
    let answer = ask(stand, &task, json!({ "csr": csr })).await.expect(StatusCode::OK);
    (task, Certified::of(answer))
}

fn ext<'a>(certificate: &'a X509Certificate<'_>, name: &str) -> (bool, &'a ParsedExtension<'a>) {
    let found = certificate.iter_extensions().find(|extension| extension.oid.to_id_string() == name);
    let extension = found.unwrap_or_else(|| panic!("no {name}"));
    (extension.critical, extension.parsed_extension())
}

both! {
    /// SPIFFE X509-SVID, RFC 5280 and the design, field by field.
    async fn a_certificate_says_what_it_must(stand) {
        let (task, _) = stand.task_with_token().await;
        // Whatever else the request asks for.
        let wishes = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign,cRLSign",
            "-addext", "subjectAltName=URI:spiffe://example.com/admin,DNS:git.example.com", "-addext", "1.2.3.4=ASN1:UTF8String:x"];
        let csr = request(stand.dir.path(), P256, &wishes);
        let answer = ask(&stand, &task, json!({ "csr": csr, "ttl": 200 })).await.expect(StatusCode::OK);
        assert_eq!(answer.as_object().unwrap().len(), 6, "{answer}");
        let id = format!("spiffe://example.com/ci/acme/payments/task/{task}");
        assert_eq!(answer["spiffe_id"], id);
        let one = Certified::of(answer);
        let certificate = one.parsed();
        assert_eq!(certificate.version(), X509Version::V3);
        let serial = certificate.raw_serial();
        assert_eq!((serial.len(), serial[0], &serial[1..9]), (20, 1, &1_u64.to_be_bytes()[..]));
        assert_eq!(one.answer["lease"], one.serial());
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [GeneralName::URI(&id)]);
        assert!(!names.critical && certificate.subject().iter().count() == 1, "{}", certificate.subject());
        let basic = certificate.basic_constraints().unwrap().unwrap();
        assert!(basic.critical && !basic.value.ca);
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.flags == 1, "digitalSignature alone: {:?}", usage.value);
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any && extended.other.is_empty());
        assert!(matches!(ext(&certificate, "2.5.29.35"), (false, ParsedExtension::AuthorityKeyIdentifier(id)) if id.key_identifier.is_some()));
        assert_eq!(certificate.extensions().len(), 7);
        let [from, until] = [certificate.validity().not_before, certificate.validity().not_after].map(|at| at.timestamp());
        assert!((from - (now() - 60)).abs() <= 3 && (until - (now() + 200)).abs() <= 3, "{from} {until}");
        assert_eq!(text(&one.answer, "expires_at").parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp(), until);
        assert_eq!(one.list(&stand).chars().last(), one.serial().chars().last());
        // The key is the one that was asked for.
        let dir = stand.dir.path();
        must(dir, &["pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "public.der"]);
        assert_eq!(certificate.public_key().raw, std::fs::read(dir.join("public.der")).unwrap());
        // On record, and before it left.
        let audit = stand.audit();
        let line = audit.iter().find(|line| line["event"] == "certificate_minted").expect("a line");
        assert_eq!((&line["lease"], &line["task"]), (&one.answer["lease"], &json!(task)));
        assert_eq!(line["key"], remit::id::sha256_hex(certificate.public_key().raw));
        assert_eq!(line["policies"], json!(["test.read", "test.write"]));
        // And it counts.
        assert_eq!(stand.revoke(&task).await.expect(StatusCode::OK)["credentials"], 2);
    }

    /// The authority: in the bundle, in `/pki/ca.pem` and nowhere else.
    async fn the_bundle_holds_the_authority(stand) {
        let (_, one) = certified(&stand).await;
        let answer = stand.client.get(stand.url("/pki/ca.pem")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/pem-certificate-chain");
        assert_eq!(answer.text().await.unwrap(), text(&one.answer, "bundle"));
        let (_, pem) = parse_x509_pem(one.answer["bundle"].as_str().unwrap().as_bytes()).unwrap();
        let authority = pem.parse_x509().unwrap();
        authority.verify_signature(None).unwrap();
        assert!(authority.is_ca() && authority.basic_constraints().unwrap().unwrap().value.path_len_constraint == Some(0));
        let usage = authority.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign() && !usage.value.digital_signature());
        assert_eq!(authority.subject_alternative_name().unwrap().unwrap().value.general_names, [GeneralName::URI("spiffe://example.com")]);
        assert!(one.parsed().issuer() == authority.subject() && authority.subject().iter().count() == 2);

        let bundle = stand.call(Method::GET, "/spiffe/bundle", None, None).await.expect(StatusCode::OK);
        let keys = bundle["keys"].as_array().unwrap();
        let of = |name: &str| keys.iter().filter(|key| key["use"] == name).collect::<Vec<_>>();
        let [x509] = of("x509-svid")[..] else { panic!("{bundle}") };
        assert!(x509.get("kid").is_none() && x509["kty"] == "EC" && x509["x5c"].as_array().unwrap().len() == 1);
        let [jwt] = of("jwt-svid")[..] else { panic!("{bundle}") };
        assert!(jwt["kid"].is_string() && jwt.get("x5c").is_none() && keys.len() == 2);
        assert!(bundle["spiffe_sequence"].as_u64().unwrap() >= 2 && bundle["spiffe_refresh_hint"] == 1);
        let jwks = stand.call(Method::GET, "/jwks", None, None).await.expect(StatusCode::OK);
        assert!(jwks["keys"].as_array().unwrap().iter().all(|key| key["use"] == "sig" && key.get("x5c").is_none() && key["x"] != x509["x"]));
    }

    async fn a_revoke_shows_on_the_list(stand) {
        let (task, one) = certified(&stand).await;
        let (other_task, other) = certified(&stand).await;
        let (good, said) = one.verify(&one.fetch(&stand, &stand.broker).await);
        assert!(good, "{said}");
        let revoked = stand.revoke(&task).await.expect(StatusCode::OK);
        let crl = revoked["reach"].as_array().unwrap().iter().find(|reach| reach["class"] == "crl").expect("a class");
        assert!(time(crl, "by") <= time(&revoked, "effective_by"));
        one.is_revoked_soon(&stand, &stand.broker).await;
        assert!(other.is_good(&stand, &stand.broker).await);
        let done = stand.post(&format!("/v1/tasks/{other_task}/complete"), &stand.evidence(), json!({})).await;
        done.expect(StatusCode::OK);
        other.is_revoked_soon(&stand, &stand.broker).await;
        assert!(!one.is_good(&stand, &stand.broker).await);
        for (one, reason) in [(&one, 9), (&other, 5)] {
            let list = one.fetch(&stand, &stand.broker).await;
            let (_, list) = parse_x509_crl(&list).unwrap();
            let entry = list.iter_revoked_certificates().find(|entry| remit::id::hex(entry.raw_serial()) == one.serial());
            assert_eq!(entry.expect("on the list").reason_code().unwrap().1.0, reason);
        }
    }

    async fn a_list_is_what_rfc_5280_wants(stand) {
        let (_, one) = certified(&stand).await;
        let octets = one.fetch(&stand, &stand.broker).await;
        let (rest, list) = parse_x509_crl(&octets).unwrap();
        assert!(rest.is_empty() && list.version() == Some(X509Version::V2) && list.issuer() == one.parsed().issuer());
        // Empty, so the field is left out: a reader of DER would find an empty sequence.
        assert_eq!(list.iter_revoked_certificates().count(), 0);
        std::fs::write(one.dir.path().join("l.der"), &octets).unwrap();
        let (_, shown) = openssl(one.dir.path(), &["crl", "-inform", "DER", "-in", "l.der", "-noout", "-text"]);
        assert!(shown.contains("No Revoked Certificates.") && shown.contains("Issuing Distribution Point: critical"), "{shown}");
        assert!(shown.contains("Only User Certificates") && shown.contains("Authority Key Identifier"), "{shown}");
        let (from, until) = (list.last_update().timestamp(), list.next_update().unwrap().timestamp());
        assert!(from <= now() && until > now() && until - from <= 12, "{from} {until}");
        // Signed anew ahead of its end, under a higher number.
        let number = |octets: &[u8]| parse_x509_crl(octets).unwrap().1.crl_number().unwrap().clone();
        tokio::time::sleep(Duration::from_secs(6)).await;
        let later = one.fetch(&stand, &stand.broker).await;
        assert!(number(&later) > number(&octets));
        assert!(parse_x509_crl(&later).unwrap().1.next_update().unwrap().timestamp() > until);
        // Nothing else has that name.
        let path = one.list(&stand);
        let unknown = path.replacen(&path[9..19], "AAAAAAAAAA", 1);
        for path in [unknown, format!("{path}0"), path[..path.len() - 1].to_owned() + "A", "/pki/crl/0".to_owned()] {
            assert_eq!(stand.call(Method::GET, &path, None, None).await.status, StatusCode::NOT_FOUND, "{path}");
        }
    }

    async fn only_its_own_active_task_gets_a_certificate(stand) {
        let (task, _) = stand.task_with_token().await;
        let body = json!({"csr": request(stand.dir.path(), P256, &[])});
        let path = format!("/v1/tasks/{task}/certificate");
        stand.post(&path, &stand.other_instance(), body.clone()).await.refused(404, "not_found");
        stand.post("/v1/tasks/task_01jd0000000000000000000000/certificate", &stand.evidence(), body.clone()).await.refused(404, "not_found");
        stand.post(&path, VIEWER, body.clone()).await.refused(403, "policy_denied");
        stand.call(Method::POST, &path, None, Some(body.clone())).await.refused(401, "evidence_invalid");
        stand.revoke(&task).await.expect(StatusCode::OK);
        ask(&stand, &task, body).await.refused(409, "task_not_active");
        assert!(stand.audit().iter().all(|line| line["event"] != "certificate_minted"));
    }

    /// It says nothing of what it is for, so all that the task was granted has to be allowed now.
    async fn policy_has_to_allow_all_of_the_task(stand) {
        let mut words = declaration();
        words["authorization_details"][0]["privileges"] = json!(["read", "secret"]);
        let task = text(&stand.declare(words).await.expect(StatusCode::CREATED), "task");
        let csr = request(stand.dir.path(), P256, &[]);
        let refused = ask(&stand, &task, json!({ "csr": csr })).await.refused(403, "policy_denied");
        assert_eq!(refused["denied"][0]["privileges"], json!(["secret"]));
        let audit = stand.audit();
        assert!(audit.iter().any(|line| line["event"] == "mint_denied" && line["privileges"] == json!(["secret"])));
        // `test.write` allows 600 seconds, and the strictest counts.
        let (task, _) = stand.task_with_token().await;
        ask(&stand, &task, json!({ "csr": csr, "ttl": 601 })).await.refused(400, "invalid_request");
        ask(&stand, &task, json!({ "csr": csr, "ttl": 0 })).await.refused(400, "invalid_request");
        let answer = ask(&stand, &task, json!({ "csr": csr, "ttl": 600 })).await.expect(StatusCode::OK);
        // Nor does it outlive the task or the evidence.
        let mut short = declaration();
        short["ttl"] = 30.into();
        let declared = stand.declare(short).await.expect(StatusCode::CREATED);
        let answer_of_short = ask(&stand, &text(&declared, "task"), json!({ "csr": csr })).await.expect(StatusCode::OK);
        assert_eq!(answer_of_short["expires_at"], declared["expires_at"]);
        assert!(time(&answer, "expires_at") > time(&answer_of_short, "expires_at"));
        let evidence = stand.issuer.evidence(&stand.broker.url, json!({"exp": now() + 20}));
        let path = format!("/v1/tasks/{task}/certificate");
        let answer = stand.post(&path, &evidence, json!({ "csr": csr })).await.expect(StatusCode::OK);
        let until = text(&answer, "expires_at").parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp();
        assert!(until <= now() + 20, "{answer}");
    }

    async fn certificates_of_a_task_are_capped(stand) {
        let (task, _) = stand.task_with_token().await;
        let csr = request(stand.dir.path(), P256, &[]);
        for _ in 0..64 {
            ask(&stand, &task, json!({ "csr": csr })).await.expect(StatusCode::OK);
        }
        let refused = ask(&stand, &task, json!({ "csr": csr })).await.refused(429, "quota_exceeded");
        assert!(text(&refused, "detail").starts_with("64 certificates of this task are valid"));
        certified(&stand).await;
    }

    /// Whoever holds the key of a task that was revoked does not go on with it: neither for another task nor for one that has it already.
    async fn a_key_of_a_revoked_task_is_not_certified_again(stand) {
        const WHY: &str = "the key in `csr` was that of a task that was revoked: make another one";
        let mut stand = stand;
        let body = json!({"csr": request(stand.dir.path(), P256, &[])});
        let (first, _) = stand.task_with_token().await;
        for _ in 0..2 {
            ask(&stand, &first, body.clone()).await.expect(StatusCode::OK);
        }
        // A task that is done has done nothing wrong.
        let (done, _) = stand.task_with_token().await;
        ask(&stand, &done, body.clone()).await.expect(StatusCode::OK);
        stand.post(&format!("/v1/tasks/{done}/complete"), &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        let (other, _) = stand.task_with_token().await;
        ask(&stand, &other, body.clone()).await.expect(StatusCode::OK);
        stand.revoke(&first).await.expect(StatusCode::OK);
        let (third, _) = stand.task_with_token().await;
        for _ in 0..2 {
            for task in [&other, &third] {
                assert_eq!(ask(&stand, task, body.clone()).await.refused(400, "invalid_request")["detail"], WHY);
            }
            stand.restart_broker().await;
        }
        let audit = stand.audit();
        let refused = audit.iter().filter(|line| line["code"] == "key_of_revoked_task");
        assert_eq!(refused.map(|line| &line["event"]).collect::<Vec<_>>(), [&json!("mint_refused"); 4]);
        let another = json!({"csr": request(stand.dir.path(), P256, &[])});
        ask(&stand, &other, another).await.expect(StatusCode::OK);
    }

    async fn a_key_serves_so_many_tasks(stand) {
        let body = json!({"csr": request(stand.dir.path(), P256, &[])});
        for _ in 0..32 {
            let (task, _) = stand.task_with_token().await;
            ask(&stand, &task, body.clone()).await.expect(StatusCode::OK);
        }
        let (task, _) = stand.task_with_token().await;
        let refused = ask(&stand, &task, body).await.refused(429, "quota_exceeded");
        assert!(text(&refused, "detail").contains("32 tasks"), "{refused}");
        let another = json!({"csr": request(stand.dir.path(), P256, &[])});
        ask(&stand, &task, another).await.expect(StatusCode::OK);
    }

    /// Whatever was under way when the revoke came.
    async fn no_certificate_survives_the_revoke_it_raced(stand) {
        let (task, _) = stand.task_with_token().await;
        let minting = join_all((0..40).map(|_| ask(&stand, &task, json!({"csr": KEYTOOL_CSR}))));
        let revoking = async {
            tokio::time::sleep(Duration::from_millis(15)).await;
            stand.revoke(&task).await.expect(StatusCode::OK);
            Instant::now()
        };
        let (answers, revoked) = tokio::join!(minting, revoking);
        let mut minted = Vec::new();
        for answer in answers {
            if answer.status == StatusCode::OK {
                minted.push(Certified::of(answer.json()));
            } else {
                answer.refused(409, "task_not_active");
            }
        }
        for one in &minted {
            one.is_revoked_soon(&stand, &stand.broker).await;
        }
        assert!(revoked.elapsed() < Duration::from_secs(10), "{} certificates", minted.len());
    }

    /// Whoever restarts the broker neither loses what is on a list, nor what will have to be.
    async fn a_restart_forgets_no_certificate(stand) {
        let mut stand = stand;
        let (task, one) = certified(&stand).await;
        let (other_task, other) = certified(&stand).await;
        stand.revoke(&task).await.expect(StatusCode::OK);
        one.is_revoked_soon(&stand, &stand.broker).await;
        stand.restart_broker().await;
        wait_for("the lists", || async {
            stand.client.get(stand.url(&one.list(&stand))).send().await.unwrap().status() == StatusCode::OK
        }).await;
        assert!(!one.is_good(&stand, &stand.broker).await && other.is_good(&stand, &stand.broker).await);
        stand.revoke(&other_task).await.expect(StatusCode::OK);
        other.is_revoked_soon(&stand, &stand.broker).await;
    }
}

/// A tainted authority: out of the bundle and of the file, its lists are given out no more, so that who checks them strictly refuses
/// what it signed before the bundle is fetched again; and the next certificate is another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tainted_authority_is_nobodys() {
    let mut stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (task, before) = certified(&stand).await;
    assert!(before.is_good(&stand, &stand.broker).await);
    let keys = stand.get("/v1/keys", VIEWER).await.expect(StatusCode::OK);
    let authority = keys["keys"].as_array().unwrap().iter().find(|key| key["use"] == "x509_svid" && key["own"] == true);
    let kid = text(authority.expect("an authority"), "kid");
    let fetch = async |at: &Server, path: &str| stand.client.get(format!("{}{path}", at.url)).send().await.unwrap();
    let pem = text(&before.answer, "bundle");
    stand.post(&format!("/v1/keys/{kid}/taint"), ADMIN, json!({})).await.expect(StatusCode::OK);
    let list = before.list(&stand);
    let mut bundle = String::new();
    for at in [&stand.broker, &second] {
        let gone = async || fetch(at, &list).await.status() == StatusCode::NOT_FOUND;
        // The other broker has to look.
        let begun = Instant::now();
        assert!(gone().await || *at.url != *stand.broker.url);
        wait_for("the end of the lists", || gone()).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(fetch(at, &format!("/pki/crl/{kid}")).await.status(), StatusCode::NOT_FOUND);
        bundle = fetch(at, "/pki/ca.pem").await.text().await.unwrap();
        assert_eq!(bundle.matches("BEGIN").count(), 2);
        assert!(!bundle.contains(&pem[..200]) || !pem.starts_with(&bundle[..200]), "it is still there");
        assert_eq!(fetch(at, "/pki/crl.pem").await.status(), StatusCode::OK);
    }
    std::fs::write(before.dir.path().join("bundle.pem"), &bundle).unwrap();
    let (good, said) = openssl(before.dir.path(), &["verify", "-x509_strict", "-CAfile", "bundle.pem", "cert.pem"]);
    assert!(!good && said.contains("unable to get local issuer certificate"), "{said}");
    // The same task, at once.
    let csr = request(stand.dir.path(), P256, &[]);
    let after = Certified::of(ask(&stand, &task, json!({ "csr": csr })).await.expect(StatusCode::OK));
    assert_ne!(before.parsed().issuer(), after.parsed().issuer());
    assert!(after.is_good(&stand, &stand.broker).await && after.is_good(&stand, &second).await);
    stand.revoke(&task).await.expect(StatusCode::OK);
    after.is_revoked_soon(&stand, &second).await;
    stand.restart_broker().await;
    assert_eq!(stand.client.get(stand.url(&list)).send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

/// A list is signed by one broker and had from every one, whoever ended the task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_give_out_each_others_lists() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    wait_for("the second broker", || async {
        stand.client.get(format!("{}/readyz", second.url)).send().await.unwrap().status() == StatusCode::OK
    })
    .await;
    let (task, one) = certified(&stand).await;
    let (other_task, _) = stand.task_with_token().await;
    let csr = request(stand.dir.path(), P256, &[]);
    let path = format!("/v1/tasks/{other_task}/certificate");
    let answer =
        stand.call_at(&second, Method::POST, &path, Some(&stand.evidence()), Some(json!({ "csr": csr }))).await;
    let other = Certified::of(answer.expect(StatusCode::OK));
    assert_ne!(one.parsed().issuer(), other.parsed().issuer(), "each has its own");
    // The union, on both.
    for at in [&stand.broker, &second] {
        let pem = stand.client.get(format!("{}/pki/ca.pem", at.url)).send().await.unwrap().text().await.unwrap();
        assert_eq!((pem.matches("BEGIN").count(), &pem), (2, &text(&other.answer, "bundle")));
        let bundle = stand.call_at(at, Method::GET, "/spiffe/bundle", None, None).await.expect(StatusCode::OK);
        assert_eq!(bundle["keys"].as_array().unwrap().iter().filter(|key| key["use"] == "x509-svid").count(), 2);
        for certificate in [&one, &other] {
            assert!(certificate.is_good(&stand, at).await);
        }
    }
    // Each is ended at the broker that did not issue it.
    let reason = json!({"reason": "a test says so"});
    let revoke = format!("/v1/tasks/{task}/revoke");
    stand.call_at(&second, Method::POST, &revoke, Some(RESPONDER), Some(reason)).await.expect(StatusCode::OK);
    let complete = format!("/v1/tasks/{other_task}/complete");
    stand.post(&complete, &stand.evidence(), json!({})).await.expect(StatusCode::OK);
    for certificate in [&one, &other] {
        for at in [&second, &stand.broker] {
            certificate.is_revoked_soon(&stand, at).await;
        }
    }
}

/// Where the configuration says so, and where a list would come too late, a certificate says that there is none (RFC 9608).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ends_first_names_no_list() {
    const NO_REV_AVAIL: &str = "2.5.29.56";
    for (extra, unlisted) in [("", false), ("[certificates]\nno_rev_avail = true\n", true)] {
        let stand = Stand::with(Store::Embedded, extra).await;
        let (task, _) = stand.task_with_token().await;
        for (ttl, short) in [(10, true), (11, false)] {
            let answer = ask(&stand, &task, json!({"csr": KEYTOOL_CSR, "ttl": ttl})).await.expect(StatusCode::OK);
            let one = Certified::of(answer);
            let ids: Vec<_> = one.parsed().extensions().iter().map(|found| found.oid.to_id_string()).collect();
            let has = |id: &str| ids.iter().any(|other| other == id);
            assert_eq!(
                (has(NO_REV_AVAIL), has("2.5.29.31")),
                (unlisted && short, !(unlisted && short)),
                "{ttl}: {ids:?}"
            );
            if unlisted && short {
                assert!(matches!(
                    ext(&one.parsed(), NO_REV_AVAIL),
                    (false, ParsedExtension::UnsupportedExtension { .. })
                ));
            }
            must(one.dir.path(), &["verify", "-x509_strict", "-CAfile", "bundle.pem", "cert.pem"]);
        }
    }
}

/// A store that is out of reach, or another one than was opened, gives no list a longer life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_runs_out_with_the_store() {
    let mut stand = Stand::new(Store::Redis).await;
    let (_, one) = certified(&stand).await;
    stand.redis.as_mut().unwrap().kill().await;
    let url = stand.url(&one.list(&stand));
    let begun = Instant::now();
    while stand.client.get(&url).send().await.unwrap().status() == StatusCode::OK {
        assert!(begun.elapsed() < Duration::from_secs(11), "a list of before is given out");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stand.call(Method::GET, &one.list(&stand), None, None).await.refused(503, "temporarily_unavailable");
}

/// An authority that was replaced signs its lists on, also after a restart, and stays in the bundle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_changes_the_authority_and_loses_no_list() {
    let mut stand = Stand::new(Store::Redis).await;
    let (task, one) = certified(&stand).await;
    stand.post("/v1/keys/rotate", ADMIN, json!({})).await.expect(StatusCode::OK);
    // Published before it signs.
    let (_, between) = certified(&stand).await;
    assert_eq!(one.parsed().issuer(), between.parsed().issuer());
    assert_eq!(text(&between.answer, "bundle").matches("BEGIN").count(), 2);
    let over = || async { !stand.get("/v1/keys", VIEWER).await.text.contains("prepared") };
    wait_for("the next keys", over).await;
    let keys = stand.get("/v1/keys", VIEWER).await.expect(StatusCode::OK);
    let authorities = keys["keys"].as_array().unwrap().iter().filter(|key| key["use"] == "x509_svid");
    let states: Vec<_> = authorities.map(|key| (text(key, "state"), key["own"].clone())).collect();
    assert_eq!(states, [("retired".to_owned(), json!(true)), ("signing".to_owned(), json!(true))]);
    let (other_task, after) = certified(&stand).await;
    assert_ne!(one.parsed().issuer(), after.parsed().issuer());
    // The old bundle does for the old certificate, the new one for both.
    std::fs::write(one.dir.path().join("bundle.pem"), text(&after.answer, "bundle")).unwrap();
    assert!(one.is_good(&stand, &stand.broker).await && after.is_good(&stand, &stand.broker).await);
    stand.revoke(&task).await.expect(StatusCode::OK);
    one.is_revoked_soon(&stand, &stand.broker).await;
    stand.restart_broker().await;
    let list = one.list(&stand);
    wait_for("the lists", || async {
        stand.client.get(stand.url(&list)).send().await.unwrap().status() == StatusCode::OK
    })
    .await;
    assert!(!one.is_good(&stand, &stand.broker).await);
    stand.revoke(&other_task).await.expect(StatusCode::OK);
    after.is_revoked_soon(&stand, &stand.broker).await;
}

/// An RSA key with e = 1, under which the padded digest is the signature: who holds it holds nothing.
fn exponent_of_one() -> String {
    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let head: &[u8] = match content.len() {
            0..=127 => &[tag, length[1]],
            128..=255 => &[tag, 0x81, length[1]],
            _ => &[tag, 0x82, length[0], length[1]],
        };
        [head, &content].concat()
    }
    let modulus = [&[0, 0xc0][..], &[0x55; 254], &[0x57]].concat();
    let key = der(0x30, &[&der(2, &[&modulus]), &der(2, &[&[1]])]);
    let rsa = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0];
    let spki = der(0x30, &[&rsa, &der(3, &[&[0], &key])]);
    let info = der(0x30, &[&[2, 1, 0], &der(0x30, &[]), &spki, &der(0xa0, &[])]);
    let digest = ring::digest::digest(&ring::digest::SHA256, &info);
    let prefix = [0x30, 49, 0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 32];
    let signature = [&[0, 1][..], &[0xff; 202], &[0], &prefix, digest.as_ref()].concat();
    let sha256 = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 11, 5, 0];
    let request = der(0x30, &[&info, &sha256, &der(3, &[&[0], &signature])]);
    pem(&request)
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}

/// The octets of a request, with some change.
fn changed(csr: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (_, block) = parse_x509_pem(csr.as_bytes()).unwrap();
    let mut der = block.contents;
    change(&mut der);
    pem(&der)
}

/// The arguments that make an EC key, an RSA key, another one.
fn curve(name: &str) -> Vec<String> {
    ["-algorithm", "EC", "-pkeyopt", &format!("ec_paramgen_curve:{name}")].map(str::to_owned).to_vec()
}

fn rsa(bits: usize) -> Vec<String> {
    ["-algorithm", "RSA", "-pkeyopt", &format!("rsa_keygen_bits:{bits}")].map(str::to_owned).to_vec()
}

fn named(name: &str) -> Vec<String> {
    vec!["-algorithm".to_owned(), name.to_owned()]
}

fn with(mut key: Vec<String>, option: &str) -> Vec<String> {
    key.extend(["-pkeyopt".to_owned(), option.to_owned()]);
    key
}

fn made(dir: &Path, key: &[String], more: &[&str]) -> String {
    request(dir, &key.iter().map(String::as_str).collect::<Vec<_>>(), more)
}

/// What is wrong, the request, and what is said of it.
type Bad = (&'static str, String, &'static str);

fn malformed(good: &str) -> Vec<Bad> {
    const PEM: &str = "`csr` is one certificate request in PEM, and nothing beside it";
    const DER: &str = "`csr` is not a certificate request (PKCS#10)";
    const LENGTH: &str = "`csr` is at most 16384 octets long";
    vec![
        ("empty", String::new(), PEM),
        ("garbage", "garbage".to_owned(), PEM),
        ("no request", good.replace("CERTIFICATE REQUEST", "CERTIFICATE"), PEM),
        ("two blocks", good.repeat(2), PEM),
        ("text before it", format!("hello\n{good}"), PEM),
        ("text after it", format!("{good}hello"), PEM),
        ("too long", format!("{}{good}", " ".repeat(16 * 1024)), LENGTH),
        ("a block that is too long", pem(&vec![0x30; 16 * 1024]), LENGTH),
        ("not DER", pem(b"hello"), DER),
        ("trailing data", changed(good, |der| der.push(0)), DER),
        ("cut off", changed(good, |der| der.truncate(100)), DER),
    ]
}

/// Requests that are made with another key than the one in them, or with one that the broker has.
fn not_theirs(dir: &Path, good: &str) -> Vec<Bad> {
    const SIGNATURE: &str = "the signature of `csr` is not made with the key in it";
    const OURS: &str = "the key in `csr` is one of the broker's";
    let key_in = |der: &[u8]| {
        X509CertificationRequest::from_der(der).unwrap().1.certification_request_info.subject_pki.raw.to_vec()
    };
    let other = key_in(&parse_x509_pem(made(dir, &curve("P-256"), &[]).as_bytes()).unwrap().1.contents);
    let another_key = |der: &mut Vec<u8>| {
        let own = key_in(der);
        let at = der.windows(own.len()).position(|window| window == own).unwrap();
        der[at..at + other.len()].copy_from_slice(&other);
    };
    let another_subject = |der: &mut Vec<u8>| {
        let at = der.windows(3).position(|window| window == [12, 1, b'x']).unwrap();
        der[at + 2] = b'y';
    };
    let of = |file: &str| {
        must(dir, &["req", "-new", "-key", file, "-subj", "/CN=x", "-out", "ours.pem"]);
        std::fs::read_to_string(dir.join("ours.pem")).unwrap()
    };
    vec![
        ("another signature", changed(good, |der| *der.last_mut().unwrap() ^= 1), SIGNATURE),
        ("another key", changed(good, another_key), SIGNATURE),
        ("another subject", changed(good, another_subject), SIGNATURE),
        ("the authority's key", of("broker-keys/x509-svid.pem"), OURS),
        ("another key of the broker", of("broker-keys/access-token.pem"), OURS),
    ]
}

/// Requests for keys that everybody has: whoever makes one does hold the key.
fn published(dir: &Path) -> Vec<Bad> {
    const WHY: &str = "the key in `csr` is an example whose private half is published: make one of your own";
    let keys = include_str!("support/published-keys.pem").split_inclusive("-----END PRIVATE KEY-----\n");
    let bad: Vec<_> = keys
        .map(|key| {
            let (name, _) = key.split_once('\n').expect("a name");
            std::fs::write(dir.join("published.pem"), key).unwrap();
            must(dir, &["req", "-new", "-key", "published.pem", "-subj", "/CN=x", "-out", "published.csr"]);
            (name, std::fs::read_to_string(dir.join("published.csr")).unwrap(), WHY)
        })
        .collect();
    assert_eq!(bad.len(), 12);
    bad
}

/// Of the right size, and can be factored all the same.
fn factored(dir: &Path) -> Vec<Bad> {
    let keys = include_str!("support/weak-keys.pem").split_inclusive("-----END PRIVATE KEY-----\n");
    let whys = [
        "the RSA key in `csr` is weak: it was made by a library whose keys can be factored (ROCA, CVE-2017-15361)",
        "the RSA key in `csr` is weak: its factors stand beside each other (CVE-2022-26320)",
        "the RSA key in `csr` is weak: it has a small factor",
    ];
    keys.zip(whys)
        .map(|(key, why)| {
            let (name, _) = key.split_once('\n').expect("a name");
            std::fs::write(dir.join("weak.pem"), key).unwrap();
            must(dir, &["req", "-new", "-key", "weak.pem", "-subj", "/CN=x", "-out", "weak.csr"]);
            (name, std::fs::read_to_string(dir.join("weak.csr")).unwrap(), why)
        })
        .collect()
}

fn weak(dir: &Path) -> Vec<Bad> {
    const KEY: &str = "the key in `csr` is none of P-256, P-384, Ed25519 and RSA of 2048 to 4096 bits with e = 65537";
    const DIGEST: &str = "`csr` is signed in another way than with its key and SHA-2";
    let key = |what, key: &[String]| (what, made(dir, key, &[]), KEY);
    vec![
        key("RSA of 1024 bits", &rsa(1024)),
        key("RSA of 2047 bits", &rsa(2047)),
        key("RSA of 4104 bits", &rsa(4104)),
        key("RSA with e = 3", &with(rsa(2048), "rsa_keygen_pubexp:3")),
        ("RSA with e = 1", exponent_of_one(), KEY),
        key("RSA-PSS", &with(named("RSA-PSS"), "rsa_keygen_bits:2048")),
        key("P-192", &curve("prime192v1")),
        key("P-224", &curve("P-224")),
        key("P-521", &curve("P-521")),
        key("secp256k1", &curve("secp256k1")),
        key("explicit parameters", &with(curve("P-256"), "ec_param_enc:explicit")),
        key("Ed448", &named("ED448")),
        ("SHA-1 with P-256", made(dir, &curve("P-256"), &["-sha1"]), DIGEST),
        ("SHA-1 with RSA", made(dir, &rsa(2048), &["-sha1"]), DIGEST),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_its_key_and_the_proof_that_it_is_held() {
    let stand = Stand::new(Store::Embedded).await;
    let dir = stand.dir.path();
    let (task, _) = stand.task_with_token().await;
    let good = made(dir, &curve("P-256"), &[]);
    let fine = [
        good.clone(),
        made(dir, &curve("P-384"), &[]),
        made(dir, &curve("P-384"), &["-sha384"]),
        made(dir, &named("ED25519"), &[]),
        made(dir, &rsa(2048), &[]),
        made(dir, &rsa(3072), &["-sha384"]),
        made(dir, &rsa(4096), &["-sha512"]),
        // With attributes that nobody here knows.
        KEYTOOL_CSR.to_owned(),
        good.replace('\n', "\r\n"),
    ];
    for csr in &fine {
        let one = Certified::of(ask(&stand, &task, json!({ "csr": csr })).await.expect(StatusCode::OK));
        assert!(one.is_good(&stand, &stand.broker).await);
        assert_eq!(one.parsed().subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    }
    for (what, csr, why) in
        [malformed(&good), not_theirs(dir, &good), published(dir), factored(dir), weak(dir)].concat()
    {
        let begun = Instant::now();
        let refused = ask(&stand, &task, json!({ "csr": csr })).await.refused(400, "invalid_request");
        assert_eq!(refused["detail"], why, "{what}");
        assert!(begun.elapsed() < Duration::from_millis(500), "{what}");
    }
    let others = [
        json!({}),
        json!({"csr": 7}),
        json!({"csr": good, "subject": "x"}),
        json!({"csr": [good]}),
        json!({"csr": good, "ttl": -1}),
    ];
    for body in others {
        ask(&stand, &task, body).await.refused(400, "invalid_request");
    }
    let minted = stand.audit().iter().filter(|line| line["event"] == "certificate_minted").count();
    assert_eq!(minted, fine.len(), "nothing came of the others");
}

/// An organisation knows of keys that leaked: it says so in a file, and a running broker follows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_known_to_have_leaked_is_not_certified() {
    let lists = tempfile::tempdir().unwrap();
    let list = lists.path().join("leaked");
    std::fs::write(&list, "# found in a public repository\n").unwrap();
    let config = format!("[certificates]\nleaked_keys_file = \"{}\"\n", list.display());
    let stand = Stand::with(Store::Embedded, &config).await;
    let (task, _) = stand.task_with_token().await;
    let csr = made(stand.dir.path(), &curve("P-256"), &[]);
    Certified::of(ask(&stand, &task, json!({ "csr": csr })).await.expect(StatusCode::OK));
    let der = parse_x509_pem(csr.as_bytes()).unwrap().1.contents;
    let key = X509CertificationRequest::from_der(&der).unwrap().1.certification_request_info.subject_pki.raw.to_vec();
    let digest = remit::id::sha256_hex(&key);
    let refused = async || ask(&stand, &task, json!({ "csr": csr })).await.status == StatusCode::BAD_REQUEST;
    std::fs::write(&list, format!("\n{}  in a bucket # 2026\n", digest.to_uppercase())).unwrap();
    wait_for("the list", || async { refused().await }).await;
    let why = ask(&stand, &task, json!({ "csr": csr })).await.refused(400, "invalid_request");
    assert_eq!(why["detail"], "the key in `csr` is known to have leaked: make another one");
    let other = made(stand.dir.path(), &curve("P-256"), &[]);
    ask(&stand, &task, json!({ "csr": other })).await.expect(StatusCode::OK);
    // A list with a mistake in it is refused whole, and the one before stays.
    std::fs::write(&list, "not a digest\n").unwrap();
    let outdated = async || {
        let ready = stand.client.get(stand.url("/readyz")).send().await.unwrap();
        ready.text().await.unwrap().contains("refused")
    };
    wait_for("the refusal", || async { outdated().await }).await;
    assert!(refused().await);
}

/// `remit mint cert`: key and request are made here, and the files are for OpenSSL as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_makes_the_key_and_writes_the_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let stand = Stand::new(Store::Embedded).await;
    std::fs::write(stand.dir.path().join("evidence"), stand.evidence()).unwrap();
    let remit = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["--url", &stand.broker.url, "--evidence", "file:evidence", "--output", "json"]);
        command.args(arguments).current_dir(stand.dir.path());
        async move { command.output().await.expect("remit") }
    };
    let access = format!("{GIT}=read");
    let declared =
        remit(&["task", "declare", "--purpose", "p", "--owner", crate::support::OWNER, "--access", &access]).await;
    let declared: Value = serde_json::from_slice(&declared.stdout).unwrap_or_else(|_| panic!("{declared:?}"));
    let task = text(&declared, "task");
    let mut before = String::new();
    for _ in 0..2 {
        let minted = remit(&["mint", "cert", &task, "--dir", "svid", "--ttl", "100"]).await;
        assert!(minted.status.success(), "{minted:?}");
        let answer: Value = serde_json::from_slice(&minted.stdout).unwrap();
        let dir = stand.dir.path().join("svid");
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!((read("cert.pem"), read("bundle.pem")), (text(&answer, "certificate"), text(&answer, "bundle")));
        assert!(!minted.stdout.windows(11).any(|window| window == b"PRIVATE KEY"));
        assert_eq!(std::fs::metadata(dir.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3, "nothing is left beside them");
        let (_, of_key) = openssl(&dir, &["pkey", "-in", "key.pem", "-pubout"]);
        let (_, of_certificate) = openssl(&dir, &["x509", "-in", "cert.pem", "-noout", "-pubkey"]);
        assert_eq!(of_key, of_certificate);
        assert_ne!(std::mem::replace(&mut before, of_key), of_certificate, "each call makes a new key");
        must(&dir, &["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "bundle.pem", "cert.pem"]);
        must(&dir, &["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "bundle.pem", "cert.pem"]);
    }
    let refused = remit(&["mint", "cert", "task_01jd0000000000000000000000", "--dir", "other"]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(!stand.dir.path().join("other").exists());
}

/// A certificate of a task at a broker whose clock stands still, for a minute.
async fn certified_at(frozen: &Frozen) -> (String, Certified, String) {
    let audience = frozen.running.broker.issuer().to_owned();
    let evidence = frozen.issuer.evidence(&audience, json!({"iat": frozen.now(), "exp": frozen.now() + 600}));
    let post = async |path: &str, body: Value| {
        let answer = client().post(frozen.url(path)).bearer_auth(&evidence).json(&body).send().await.unwrap();
        Answer::of(answer).await
    };
    let task = text(&post("/v1/tasks", declaration()).await.expect(StatusCode::CREATED), "task");
    let body = json!({"csr": KEYTOOL_CSR, "ttl": 60});
    let one = Certified::of(post(&format!("/v1/tasks/{task}/certificate"), body).await.expect(StatusCode::OK));
    let authority = text(&one.answer, "bundle");
    (task, one, authority)
}

async fn revoke_at(frozen: &Frozen, task: &str) {
    let body = json!({"reason": "a test says so"});
    let request = client().post(frozen.url(&format!("/v1/tasks/{task}/revoke"))).bearer_auth(RESPONDER).json(&body);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
}

/// The serials on the list of a certificate, or the status where there is none.
async fn serials(frozen: &Frozen, one: &Certified) -> Result<Vec<String>, StatusCode> {
    let path = one.list_of(frozen.running.broker.issuer());
    let answer = client().get(frozen.url(&path)).send().await.unwrap();
    if answer.status() != StatusCode::OK {
        return Err(answer.status());
    }
    let octets = answer.bytes().await.unwrap();
    let (_, list) = parse_x509_crl(&octets).unwrap();
    Ok(list.iter_revoked_certificates().map(|entry| remit::id::hex(entry.raw_serial())).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serial_stays_on_its_list_until_its_end() {
    let frozen = Frozen::start(str::to_owned).await;
    let (task, one, _) = certified_at(&frozen).await;
    assert_eq!(serials(&frozen, &one).await, Ok(Vec::new()));
    revoke_at(&frozen, &task).await;
    let on_list = Ok(vec![one.serial()]);
    wait_for("the entry", || async { serials(&frozen, &one).await == on_list }).await;
    // Its last second, and the minute after for clocks that are behind.
    for seconds in [59, 60] {
        frozen.clock.advance(TimeDelta::seconds(seconds));
        wait_for("the next list", || async { serials(&frozen, &one).await.is_ok() }).await;
        assert_eq!(serials(&frozen, &one).await, on_list);
    }
    frozen.clock.advance(TimeDelta::seconds(1));
    wait_for("an empty list", || async { serials(&frozen, &one).await == Ok(Vec::new()) }).await;
    frozen.running.stop().await;
}

/// A replaced authority goes from the bundle, and its key from the disk, with the last that it signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_goes_with_the_last_that_it_signed() {
    let frozen = Frozen::start(|text| text.replace("jwks_max_age = 1", "jwks_max_age = 1\nrotate_every = 3600")).await;
    let get = async |path: &str| client().get(frozen.url(path)).bearer_auth(VIEWER).send().await.unwrap();
    let states = async || {
        let keys = Answer::of(get("/v1/keys").await).await.expect(StatusCode::OK);
        let authorities = keys["keys"].as_array().unwrap().iter().filter(|key| key["use"] == "x509_svid");
        authorities.map(|key| text(key, "state")).collect::<Vec<_>>()
    };
    frozen.clock.advance(TimeDelta::seconds(3590));
    let (task, one, before) = certified_at(&frozen).await;
    revoke_at(&frozen, &task).await;
    frozen.clock.advance(TimeDelta::seconds(10));
    wait_for("the next authority", || async { states().await == ["signing", "prepared"] }).await;
    frozen.clock.advance(TimeDelta::seconds(1));
    wait_for("the change", || async { states().await == ["retired", "signing"] }).await;
    let on_list = Ok(vec![one.serial()]);
    wait_for("its list", || async { serials(&frozen, &one).await == on_list }).await;
    // It ended ten seconds after the change was due, and a minute goes on top.
    frozen.clock.advance(TimeDelta::seconds(108));
    assert_eq!(states().await, ["retired", "signing"]);
    frozen.clock.advance(TimeDelta::seconds(1));
    wait_for("the end", || async { states().await == ["signing"] }).await;
    let authorities = get("/pki/ca.pem").await.text().await.unwrap();
    assert!(authorities.matches("BEGIN").count() == 1 && !authorities.contains(&before));
    assert_eq!(serials(&frozen, &one).await, Err(StatusCode::NOT_FOUND));
    let kept = || {
        let files = std::fs::read_dir(frozen.dir.path().join("broker-keys")).unwrap();
        files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().ends_with(".old.pem")).count()
    };
    wait_for("the end of its key", || async { kept() == 0 }).await;
    frozen.running.stop().await;
}
