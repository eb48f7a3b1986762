//! A running broker follows its files: another set holds from one request to the next, and a bad one never does.

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};
use tokio::process::Command;

use remit::audit::segment::Segment;

use crate::support::{
    Answer, Frozen, GIT, GIT_TOKEN, Issuer, OWNER, RESPONDER, Server, Stand, Store, VIEWER, audit_of, declaration,
    text, wait_for, with_policies,
};

const ALL: &str = r#"@id("all") permit (principal, action, resource);"#;
const NOBODY: &str = r#"@id("nobody") forbid (principal, action, resource);"#;

/// A broker with policies of its own, which says what it has to say into a file.
struct Place {
    stand: Stand,
    policies: PathBuf,
    log: PathBuf,
}

impl Place {
    async fn new() -> Self {
        let stand = Stand::new(Store::Embedded).await;
        let (policies, log) = (stand.dir.path().join("policies"), stand.dir.path().join("log"));
        fs::create_dir(&policies).unwrap();
        fs::write(policies.join("own.cedar"), ALL).unwrap();
        let mut place = Self { stand, policies, log };
        let dir = place.policies.display().to_string();
        place.edit(|config| with_policies(config, &dir));
        place.restart().await;
        place
    }

    async fn restart(&mut self) {
        let config = self.stand.broker.config.clone();
        self.stand.broker.stop().await;
        self.stand.broker = Server::start_talking(&config, &self.log).await;
    }

    fn edit(&self, edit: impl FnOnce(&str) -> String) {
        let path = &self.stand.broker.config;
        let config = fs::read_to_string(path).unwrap();
        let edited = edit(&config);
        assert_ne!(edited, config);
        replace(path, &edited);
    }

    fn policy(&self, text: &str) {
        replace(&self.policies.join("own.cedar"), text);
    }

    async fn configuration(&self) -> (StatusCode, String) {
        let answer = Answer::of(self.stand.client.get(self.stand.url("/readyz")).send().await.unwrap()).await;
        (answer.status, text(&answer.json(), "configuration"))
    }

    async fn until(&self, state: &str) {
        wait_for(state, || async { self.configuration().await == (StatusCode::OK, state.to_owned()) }).await;
    }

    /// Until this many sets are in force that the broker has adopted since it was made. The audit log says so before it is so.
    async fn adopted(&self, sets: usize) {
        let log = || fs::read_to_string(&self.log).unwrap();
        let in_force = || log().matches("the configuration changed, and is in force").count();
        wait_for("the new configuration", || async { in_force() >= sets }).await;
        let recorded = self.stand.audit().iter().filter(|line| line["event"] == "configuration_adopted").count();
        assert_eq!((in_force(), recorded), (sets, sets));
    }

    fn said(&self, words: &[&str]) -> bool {
        let log = fs::read_to_string(&self.log).unwrap();
        words.iter().all(|word| log.contains(word))
    }
}

/// Writes a file as a careful editor does.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Who hears of its end goes by what was the longest when a task was declared: policy that allows more by then is for other tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_of_a_task_live_no_longer_than_when_it_was_declared() {
    let place = Place::new().await;
    let stand = &place.stand;
    let declare = async || {
        let mut declaration = declaration();
        declaration["ttl"] = json!(7200);
        text(&stand.declare(declaration).await.expect(StatusCode::CREATED), "task")
    };
    let mint = async |task: &str| {
        let wanted = json!({"credentials": [{"resource": GIT, "privilege": "read", "ttl": 5000}]});
        stand.post(&format!("/v1/tasks/{task}/credentials"), &stand.evidence(), wanted).await
    };
    let task = declare().await;
    mint(&task).await.refused(400, "invalid_request");
    place.policy(r#"@id("all") @max_ttl("7200") @max_lifetime("80000") permit (principal, action, resource);"#);
    place.adopted(1).await;
    mint(&task).await.refused(400, "invalid_request");
    let later = declare().await;
    mint(&later).await.expect(StatusCode::OK);
    // And so it is told for longer, when it ends.
    stand.revoke(&task).await.expect(StatusCode::OK);
    stand.revoke(&later).await.expect(StatusCode::OK);
    wait_for("both ends in the store's log", || async {
        let state = crate::feed::snapshot(stand, &stand.broker, "n").await;
        let life = |task: &str| {
            let mut entries = state["entries"].as_array().unwrap().iter();
            let entry = entries.find(|entry| entry["task"] == task).unwrap();
            entry["until"].as_f64().unwrap() - entry["at"].as_f64().unwrap()
        };
        life(&task) < 4000.0 && (7200.0..9000.0).contains(&life(&later))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_follow_their_files() {
    let place = Place::new().await;
    let stand = &place.stand;
    let (task, token) = stand.task_with_token().await;
    let digest = async || {
        let metrics = stand.client.get(stand.url("/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("\nremit_configuration_current 1\n"), "{metrics}");
        let lines: Vec<_> = metrics.lines().filter(|line| line.starts_with("remit_policy_info{")).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].to_owned()
    };
    let before = digest().await;
    place.policy(NOBODY);
    place.adopted(1).await;
    assert_ne!(digest().await, before);
    let refused = stand.declare(declaration()).await.refused(403, "policy_denied");
    assert_eq!(refused["denied"][0]["policies"], json!(["nobody"]));
    // What was granted before is decided on again; what was minted lives until it is revoked or runs out.
    stand.mint(&task).await.refused(403, "policy_denied");
    assert_eq!(stand.introspect(&token).await["active"], true);
    // In place, and another file beside it.
    fs::write(place.policies.join("own.cedar"), ALL).unwrap();
    place.adopted(2).await;
    stand.mint(&task).await.expect(StatusCode::OK);
    fs::write(place.policies.join("more.cedar"), NOBODY).unwrap();
    place.adopted(3).await;
    stand.mint(&task).await.refused(403, "policy_denied");
    fs::remove_file(place.policies.join("more.cedar")).unwrap();
    place.adopted(4).await;
    stand.mint(&task).await.expect(StatusCode::OK);
    let audit = stand.audit();
    let lines: Vec<_> = audit.iter().filter(|line| line["event"] == "configuration_adopted").collect();
    assert_eq!(lines[0]["actor"], json!({"as": "broker"}));
    assert_eq!(lines[1]["policies"], lines[3]["policies"]);
    assert_ne!(lines[0]["policies"], lines[1]["policies"]);
}

/// Kubernetes mounts a `ConfigMap` as links through one link to a directory, and swaps that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_map_is_swapped() {
    let mut place = Place::new().await;
    let mount = place.stand.dir.path().join("mount");
    let version = |name: &str, policy: &str| {
        fs::create_dir_all(mount.join(name)).unwrap();
        fs::write(mount.join(name).join("own.cedar"), policy).unwrap();
    };
    version("..v1", ALL);
    version("..v2", NOBODY);
    symlink("..v1", mount.join("..data")).unwrap();
    symlink("..data/own.cedar", mount.join("own.cedar")).unwrap();
    place.edit(|config| with_policies(config, &mount.display().to_string()));
    place.restart().await;
    place.stand.declare(declaration()).await.expect(StatusCode::CREATED);
    symlink("..v2", mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    fs::remove_dir_all(mount.join("..v1")).unwrap();
    place.adopted(1).await;
    place.stand.declare(declaration()).await.refused(403, "policy_denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_services_owners_and_keys_follow_the_configuration() {
    let mut place = Place::new().await;
    let stand = &place.stand;
    let (task, token) = stand.task_with_token().await;
    let shown = format!("/v1/tasks/{task}");
    let watch = stand.client.get(stand.url(&shown)).bearer_auth(VIEWER).header("accept", "text/event-stream");
    let mut watch = watch.send().await.unwrap();
    // Victor leaves; the responder has another token; the service has another audience; the owner is another.
    let digest = |token: &str| remit::id::sha256_hex(token.as_bytes());
    place.edit(|config| {
        let config = config.replace(&digest(VIEWER), &digest("nobody has this"));
        let config = config.replace(&digest(RESPONDER), &digest("new-responder-token"));
        let config = config.replace(&format!("audiences = [\"{GIT}\"]"), "audiences = [\"https://code.example.com\"]");
        config.replace(&format!("owners = [\"{OWNER}\""), "owners = [\"third@example.com\"")
    });
    place.adopted(1).await;
    stand.get(&shown, VIEWER).await.refused(401, "evidence_invalid");
    stand.revoke(&task).await.refused(401, "evidence_invalid");
    assert_eq!(stand.introspect(&token).await, json!({"active": false}), "no longer its audience");
    assert_eq!(stand.mint(&task).await.refused(403, "policy_denied")["denied"][0]["locations"], json!([GIT]));
    stand.declare(declaration()).await.refused(403, "policy_denied");
    // And nobody goes on watching who may no longer look.
    let rest = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while watch.chunk().await.unwrap().is_some() {}
    });
    rest.await.expect("the stream ends");
    let path = format!("{shown}/revoke");
    stand.post(&path, "new-responder-token", json!({"reason": "r"})).await.expect(StatusCode::OK);

    // The issuer has other keys.
    let new = Issuer::new();
    replace(&stand.dir.path().join("ci-keys.json"), &new.jwks().to_string());
    place.adopted(2).await;
    stand.get("/v1/tasks", &stand.evidence()).await.refused(401, "evidence_invalid");
    stand.get("/v1/tasks", &new.evidence(&stand.broker.url, json!({}))).await.expect(StatusCode::OK);
    place.stand.issuer = new;
    assert_eq!(place.configuration().await, (StatusCode::OK, "current".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_set_is_refused_whole_and_the_old_one_stays() {
    let place = Place::new().await;
    let stand = &place.stand;
    let own = place.policies.join("own.cedar").display().to_string();
    let bad =
        format!("// line 1\n{ALL}\n@id(\"broken\") permit (principal, action, resource) when {{ context.nothing }};");
    place.policy(&bad);
    place.until("refused").await;
    assert!(place.said(&[&format!("{own}:3"), "broken"]), "{}", fs::read_to_string(&place.log).unwrap());
    let metrics = stand.client.get(stand.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\nremit_configuration_current 0\n"), "{metrics}");
    stand.declare(declaration()).await.expect(StatusCode::CREATED);
    // A good change beside a bad one is not adopted either.
    place.edit(|config| config.replace(GIT, "https://code.example.com"));
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let (task, token) = stand.task_with_token().await;
    assert_eq!(stand.introspect_at(&stand.broker, GIT_TOKEN, &token).await["active"], true);
    place.edit(|config| config.replace("https://code.example.com", GIT));
    place.policy(ALL);
    place.until("current").await;

    // The configuration itself: a word that is none, a file that is gone, nothing at all.
    let config = fs::read_to_string(&stand.broker.config).unwrap();
    place.edit(|config| format!("isuer = 'x'\n{config}"));
    place.until("refused").await;
    assert!(place.said(&["broker.toml: line 1", "isuer"]));
    stand.mint(&task).await.expect(StatusCode::OK);
    place.edit(|_| config.clone());
    place.until("current").await;
    for gone in [stand.dir.path().join("ci-keys.json"), PathBuf::from(&own)] {
        let away = gone.with_extension("away");
        fs::rename(&gone, &away).unwrap();
        place.until("refused").await;
        stand.mint(&task).await.expect(StatusCode::OK);
        fs::rename(&away, &gone).unwrap();
        place.until("current").await;
    }
    replace(&stand.broker.config, "");
    place.until("refused").await;
    stand.mint(&task).await.expect(StatusCode::OK);
    // Nothing that is secret or that a stranger could use stands in the public answer.
    let ready = stand.client.get(stand.url("/readyz")).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(ready, json!({"ready": true, "missing": [], "configuration": "refused"}));
}

/// What only a start can change is left as it is, and the rest is adopted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_a_start_is_left_alone() {
    let place = Place::new().await;
    let stand = &place.stand;
    let other = stand.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("own.cedar"), NOBODY).unwrap();
    // Both in one file: the broker may look between any two.
    place.edit(|config| {
        let config = config.replace("trust_domain = \"example.com\"", "trust_domain = \"example.org\"");
        with_policies(&config, &other.display().to_string())
    });
    place.adopted(1).await;
    assert!(place.said(&["trust_domain", "next start"]));
    stand.declare(declaration()).await.refused(403, "policy_denied");
    replace(&other.join("own.cedar"), ALL);
    place.adopted(2).await;
    let declared = stand.declare(declaration()).await.expect(StatusCode::CREATED);
    assert!(text(&declared, "workload").starts_with("spiffe://example.com/"));
    // SIGHUP looks at once; it does not end the broker.
    let pid = stand.broker.child.id().unwrap().to_string();
    Command::new("kill").args(["-HUP", &pid]).status().await.unwrap();
    place.adopted(3).await;
    stand.declare(declaration()).await.expect(StatusCode::CREATED);
}

/// How the log is kept follows the configuration, which is on record; where else it goes takes a start, and that is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_the_log_is_kept_follows_the_configuration() {
    let place = Place::new().await;
    let adopted = || {
        let log = place.stand.whole_audit().into_iter();
        log.filter(|line| line["event"] == "log_terms_adopted").collect::<Vec<_>>()
    };
    place.edit(|config| {
        format!("{config}\n[audit]\nlegal_hold = true\nretention_days = 2\n[[audit.anchor]]\npath = \"anchored\"\n")
    });
    let pid = place.stand.broker.child.id().unwrap().to_string();
    Command::new("kill").args(["-HUP", &pid]).status().await.unwrap();
    place.adopted(1).await;
    let terms = adopted();
    assert!(terms.len() == 1 && terms[0]["actor"] == json!({"as": "broker"}), "{terms:?}");
    assert_eq!((&terms[0]["legal_hold"], &terms[0]["retention"]), (&json!(true), &json!(2 * 86_400)));
    assert!(place.said(&["changes of [[audit.anchor]] take effect at the next start"]));
    assert!(!place.said(&["changes of [audit]"]));
    // Another change says nothing of the log.
    place.policy(NOBODY);
    place.adopted(2).await;
    assert_eq!(adopted().len(), 1);
    // And no terms that no log could be kept by.
    place.edit(|config| config.replace("retention_days = 2", "retention_days = 0"));
    place.until("refused").await;
    assert_eq!(adopted().len(), 1);
}

/// A hold that begins or ends while the broker runs does so there and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_legal_hold_holds_from_when_it_is_said() {
    let frozen =
        Frozen::start(|config| format!("{config}\n[audit]\nsegment_age = 60\nretention_days = 1\nlegal_hold = true\n"))
            .await;
    let (audit, config) = (frozen.dir.path().join("broker-audit"), frozen.dir.path().join("broker.toml"));
    let client = crate::support::client();
    let firsts = || Segment::list(&audit).unwrap().iter().map(|segment| segment.first).collect::<Vec<_>>();
    let begin_another = async |days: i64| {
        let before = firsts();
        let asked = client.get(frozen.url("/v1/tasks")).bearer_auth("x.y.z").send().await.unwrap();
        assert_eq!(asked.status(), StatusCode::UNAUTHORIZED);
        frozen.clock.advance(chrono::TimeDelta::days(days));
        wait_for("another segment", || async { firsts().last() != before.last() }).await;
    };
    let edit = async |from: &str, to: &str| {
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains(from));
        // What says so of an earlier change may be removed by this one.
        let adopted = || {
            let log = audit_of(&audit).into_iter().rev();
            log.filter(|line| line["event"] == "log_terms_adopted").find_map(|line| line["sequence"].as_u64())
        };
        let before = adopted();
        replace(&config, &text.replace(from, to));
        wait_for("the terms", || async { adopted() > before }).await;
    };
    for _ in 0..3 {
        begin_another(2).await;
    }
    let held = firsts();
    assert!(held.len() == 4 && held[0] == 1, "{held:?}");
    edit("legal_hold = true", "legal_hold = false").await;
    wait_for("the end of what was held", || async { firsts()[0] > 1 }).await;
    let dropped = audit_of(&audit).into_iter().find(|line| line["event"] == "segment_dropped").unwrap();
    assert_eq!(dropped["first"], 1);
    edit("legal_hold = false", "legal_hold = true").await;
    let held = firsts();
    begin_another(3).await;
    begin_another(3).await;
    assert_eq!(firsts()[..held.len()], held);
    // A longer term holds as well.
    edit("legal_hold = true\n", "legal_hold = false\n# ").await;
    wait_for("the end of what was held", || async { firsts()[0] > held[0] }).await;
    edit("retention_days = 1", "retention_days = 400").await;
    let held = firsts();
    begin_another(3).await;
    assert_eq!(firsts()[..held.len()], held);
    let (found, code) = crate::evidence::audit(&["verify", crate::evidence::as_text(&audit)]);
    assert_eq!(code, 0, "{found}");
}

/// A change that cannot be recorded is not made, and is made as soon as it can be: nobody writes the files again for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_that_cannot_be_recorded_is_tried_again() {
    let mut place = Place::new().await;
    let config = place.stand.broker.config.clone();
    place.stand.broker.stop().await;
    place.stand.broker = Server::start_limitable(&config).await;
    place.stand.broker.limit_files(Some(1)).await;
    place.policy(NOBODY);
    wait_for("the refusal", || async { place.configuration().await.1 == "refused" }).await;
    place.stand.broker.limit_files(None).await;
    place.until("current").await;
    place.stand.declare(declaration()).await.refused(403, "policy_denied");
}

/// What the next start would refuse is told while the broker runs, though nothing but a start would bring it into force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_that_no_start_would_take_is_refused() {
    let place = Place::new().await;
    place.edit(|config| config.replace("jwks_max_age = 1", "jwks_max_age = 0"));
    place.until("refused").await;
    assert!(place.said(&["`keys.jwks_max_age` is 1 to 86400 seconds"]));
    place.edit(|config| config.replace("jwks_max_age = 0", "jwks_max_age = 1"));
    place.until("current").await;
}
