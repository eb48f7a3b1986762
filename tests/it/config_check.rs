//! `remit config check`: it judges as `serve` would, says all at once, and leaves nothing behind.

use remit::config::{Config, Overrides};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Issuer, OWNER, Server, people, pki::Authority, write_config};

const REMIT: &str = env!("CARGO_BIN_EXE_remit");

/// A configuration that works, in a directory of its own.
struct Bench {
    dir: tempfile::TempDir,
    config: PathBuf,
}

/// How it ended, what it printed, what it complained of.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ci-keys.json"), Issuer::new().jwks().to_string()).unwrap();
        let config = write_config(dir.path(), "broker", "redb:remit.redb", "");
        Self { dir, config }
    }

    fn edit(&self, from: &str, to: &str) -> &Self {
        let text = fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(from), "no {from}");
        fs::write(&self.config, text.replacen(from, to, 1)).unwrap();
        self
    }

    fn check(&self, more: &[&str]) -> Said {
        let before = names(self.dir.path());
        let said = check(&[&["--config", self.config.to_str().unwrap()], more].concat());
        assert_eq!(names(self.dir.path()), before, "it makes nothing");
        said
    }

    fn json(&self, code: i32) -> Value {
        let said = self.check(&["--output", "json"]);
        assert_eq!((said.code, &*said.err), (code, ""), "{}", said.out);
        serde_json::from_str(&said.out).unwrap()
    }

    fn warnings(&self) -> Vec<String> {
        serde_json::from_value(self.json(0)["warnings"].clone()).unwrap()
    }
}

fn names(dir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn check(arguments: &[&str]) -> Said {
    let output =
        Command::new(REMIT).args(["config", "check"]).args(arguments).env_remove("REMIT_LOG").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn what_is_fine_is_summed_up() {
    let bench = Bench::new();
    let said = bench.check(&[]);
    assert_eq!((said.code, &*said.err), (0, ""));
    for word in ["accepted", "example.com", "redb", "kernel, ci", "git, registry", "rita, victor, ada", "test.read"] {
        assert!(said.out.contains(word), "no {word} in {}", said.out);
    }
    assert!(said.out.contains("appendfsync"), "what cannot be known is said: {}", said.out);
    let report = bench.json(0);
    assert_eq!((&report["accepted"], &report["mistakes"]), (&json!(true), &json!([])));
    assert_eq!(report["config"], bench.config.to_str().unwrap());
    assert_eq!(report["attestors"], json!(["kernel", "ci"]));
    assert_eq!(
        report["policies"],
        json!(["test.declare-secret", "test.heartbeat", "test.no-production", "test.read", "test.write"])
    );
    // The address of a store may hold a password.
    bench.edit("redb:remit.redb", "rediss://remit:hunter2@redis.example.com:6379");
    assert!(!bench.check(&[]).out.contains("hunter2"));
    assert_eq!(bench.json(0)["store"], "rediss");
}

#[test]
fn the_example_and_the_built_in_settings_are_accepted() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/broker.example.toml");
    let said = check(&["--config", example.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let home = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(REMIT);
        command.args(["config", "check"]).args(more).env("XDG_STATE_HOME", home.path()).output().unwrap()
    };
    let output = run(&["--strict"]);
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && out.contains("development.loopback") && !out.contains("warning"), "{out}");
    assert!(names(home.path()).is_empty(), "it makes nothing");
}

/// Whatever there is to configure stands in the example; what is off there can be switched on by taking the `#` away.
#[test]
fn the_example_has_every_section() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/broker.example.toml");
    let text = fs::read_to_string(example).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.toml");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        Config::read(&path, Overrides::default())
    };
    // As they are called in a file.
    let source = include_str!("../../src/config.rs");
    let (_, fields) = source.split_once("pub struct Config {").unwrap();
    let (fields, _) = fields.split_once("\n}").unwrap();
    let mut known = Vec::new();
    for field in fields.split("    /// ").filter(|field| !field.contains("#[serde(skip)]")) {
        let renamed = field.split_once("rename = \"").and_then(|(_, rest)| rest.split_once('"'));
        let named = field.split_once("    pub ").and_then(|(_, rest)| rest.split_once(':'));
        known.extend(renamed.or(named).map(|(name, _)| name));
    }
    assert!(known.contains(&"audit") && known.contains(&"telemetry") && known.len() > 15, "{known:?}");
    for name in known {
        let has = |start: &str| text.lines().any(|line| line.trim_start_matches("# ").starts_with(start));
        assert!(
            [format!("{name} = "), format!("[{name}]"), format!("[{name}."), format!("[[{name}]]")]
                .iter()
                .any(|start| has(start)),
            "no {name}"
        );
    }
    let (before, rest) = text.split_once("[audit]").unwrap();
    let (own, after) = rest.split_once("[feed]").unwrap();
    let own: Vec<_> = own.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect();
    let own = own.join("\n") + "\n";
    let config = read(&format!("{before}[audit]{own}[feed]{after}")).unwrap();
    assert!(
        config.audit.anchors.len() == 2 && config.audit.retention_days.is_some() && config.telemetry.otlp.is_some()
    );
    assert_eq!(config.audit.mistakes(), Vec::<String>::new());
    assert_eq!(
        config.audit.keeping(),
        remit::audit::Config { retention_days: Some(400), ..Default::default() }.keeping()
    );
}

#[test]
fn every_mistake_is_said_at_once() {
    let bench = Bench::new();
    let policies = bench.dir.path().join("policies");
    fs::create_dir(&policies).unwrap();
    fs::write(policies.join("a.cedar"), "\n\npermit (principal, action, resource);\n@id(\"x\") permit (principal")
        .unwrap();
    fs::write(policies.join("b.cedar"), "permit (principal, action, resource);").unwrap();
    fs::write(bench.dir.path().join("store.key"), "no key").unwrap();
    fs::set_permissions(bench.dir.path().join("store.key"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(bench.dir.path().join("broker-keys")).unwrap();
    fs::write(bench.dir.path().join("broker-keys/jwt-svid.pem"), "readable by all").unwrap();
    let usual = fs::read_to_string(&bench.config).unwrap();
    let dir = usual.lines().find(|line| line.starts_with("dir = ")).unwrap();
    bench
        .edit(dir, "dir = \"policies\"")
        .edit("http = \"127.0.0.1:", "http = \"0.0.0.0:")
        .edit("issuer = \"http://127.0.0.1:", "issuer = \"http://broker.example.com:")
        .edit("workload = \"/ci/{repository/*}\"", "workload = \"ci/{repository/*}\"")
        .edit("ci-keys.json", "no-keys.json")
        .edit("roles = [\"viewer\"]", "roles = []")
        .edit("name = \"registry\"", "name = \"git\"");
    let report = bench.json(78);
    assert_eq!(report["accepted"], false);
    let mistakes: Vec<String> = serde_json::from_value(report["mistakes"].clone()).unwrap();
    for word in [
        "`listen.http`",
        "`issuer`",
        "attestor `ci`: `workload`",
        "no-keys.json",
        "operator `victor`",
        "service `git`",
        "a.cedar:4: ",
        "b.cedar:1: ",
        "store.key is no store key",
        "jwt-svid.pem can be read by others",
    ] {
        assert!(mistakes.iter().any(|mistake| mistake.contains(word)), "no {word} in {mistakes:#?}");
    }
    let said = bench.check(&[]);
    assert_eq!((said.code, &*said.out), (78, ""));
    assert!(mistakes.iter().all(|mistake| said.err.contains(mistake)), "{}", said.err);
}

/// The certificate that would be shown is looked at, and what is weak about it is said.
#[test]
fn the_server_certificate_is_checked_too() {
    let bench = Bench::new();
    let (certificate, key) = (bench.dir.path().join("tls.crt"), bench.dir.path().join("tls.key"));
    let authority = Authority::new("servers");
    authority.serves(&certificate, &key);
    bench.edit("[store]", "tls = \"0.0.0.0:8443\"\ntls_cert_file = \"tls.crt\"\ntls_key_file = \"tls.key\"\n[store]");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let about = |word: &str| bench.warnings().iter().any(|warning| warning.contains(word));
    assert!(about("`listen.tls_key_file`") && !about("`listen.tls_cert_file`"), "{:?}", bench.warnings());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!about("`listen.tls"), "{:?}", bench.warnings());
    bench.edit("issuer = \"http://127.0.0.1", "issuer = \"https://broker.example.com");
    assert!(about("does not name `broker.example.com`"), "{:?}", bench.warnings());
    let more = tempfile::tempdir().unwrap();
    authority.serves(&more.path().join("crt"), &key);
    let report = bench.json(78);
    assert!(report["mistakes"].to_string().contains("is not the key of the first certificate"), "{report}");
}

#[test]
fn a_certificate_for_other_names_than_the_brokers_is_weak() {
    let bench = Bench::new();
    bench.edit("[store]", "tls = \"0.0.0.0:8443\"\ntls_names = [\"broker.example.com\", \"127.0.0.1\"]\n[store]");
    let about = |word: &str| bench.warnings().iter().any(|warning| warning.contains(word));
    assert!(!about("`listen.tls"), "{:?}", bench.warnings());
    bench.edit("issuer = \"http://127.0.0.1", "issuer = \"https://other.example.com");
    assert!(about("`listen.tls_names` does not name `other.example.com`"), "{:?}", bench.warnings());
}

#[test]
fn a_line_that_cannot_be_read_is_named() {
    for (from, to, words) in [
        ("trust_domain =", "secret_thing = \"hunter2\"\ntrust_domain =", ["line 3: ", "unknown field `secret_thing`"]),
        ("[store]", "[store", ["line 7: ", ""]),
        ("name = \"ci\"", "name = \"ci\"\npreset = \"gitlab\"", ["line ", "`gitlab-ci`"]),
    ] {
        let said = Bench::new().edit(from, to).check(&[]);
        assert!(said.code == 78 && said.err.contains("broker.toml"), "{}", said.err);
        assert!(words.iter().all(|word| said.err.contains(word)) && !said.err.contains("hunter2"), "{}", said.err);
    }
    let said = check(&["--config", "/nowhere/broker.toml"]);
    assert!(said.code == 78 && said.err.contains("/nowhere/broker.toml"), "{}", said.err);
}

#[test]
fn a_section_that_cannot_be_read_hides_no_other() {
    let bench = Bench::new();
    bench
        .edit("trust_domain = \"example.com\"", "trust_domain = \"Example Com\"\nsecret_thing = \"hunter2\"")
        .edit("[listen]", "[listen]\nhtpp = 1")
        .edit("mac_key_file", "mac_key_fiel")
        .edit("name = \"ci\"", "name = \"ci\"\njwks = \"hunter2\"")
        .edit("name = \"git\"", "name = \"git\"\nbindign = \"none\"")
        .edit("name = \"registry\"", "name = \"registry\"\nfreshnes = 5")
        .edit("roles = [\"viewer\"]", "roles = [\"watcher\"]");
    let report = bench.json(78);
    let mistakes: Vec<String> = serde_json::from_value(report["mistakes"].clone()).unwrap();
    let words = [
        "a trust domain",
        "line 4: unknown field `secret_thing`",
        "htpp",
        "mac_key_fiel",
        "jwks",
        "bindign",
        "freshnes",
        "`responder`",
    ];
    assert_eq!(mistakes.len(), words.len(), "{mistakes:#?}");
    for (mistake, word) in mistakes.iter().zip(words) {
        assert!(mistake.contains("broker.toml: line ") && mistake.contains(word), "no {word} in {mistakes:#?}");
    }
    assert!(!report.to_string().contains("hunter2"), "{report}");
}

/// What is changed in a configuration that draws one warning (of a service whose binding is `none`), and the words of the
/// warning that it draws beside; none: no other.
type Row<'a> = (&'a str, &'a str, &'a [&'a str]);

#[test]
fn what_is_weak_draws_a_warning() {
    let instance = "instance = \"{run_id}.{run_attempt}\"";
    let cluster = |name: &str, more: &str| {
        format!(
            "[[attestor]]\ntype = \"oidc\"\nname = \"{name}\"\npreset = \"kubernetes\"\nissuer = \"https://{name}.example.com\"\n\
             audience = \"a\"\nkeys_file = \"ci-keys.json\"\n{more}\n[[service]]"
        )
    };
    let (one, two) = (cluster("one", ""), cluster("two", "").replacen("[[service]]", "", 1));
    let apart = cluster("one", "workload = \"/one/{/kubernetes.io/serviceaccount/name}\"");
    let table: &[Row] = &[
        (instance, instance, &[]),
        (instance, "instance = \"{sub}\"", &["attestor `ci`", "`sub`"]),
        (instance, "instance = \"{/sub}\"", &["attestor `ci`", "`sub`"]),
        (instance, "instance = \"{repository}\"", &["attestor `ci`", "`repository`"]),
        (instance, "instance = \"{repository} {sub}\"", &["attestor `ci`", "`repository`, `sub`"]),
        (instance, "instance = \"one\"", &["attestor `ci`", "names no claim"]),
        (instance, "instance = \"{repository}.{run_id}\"", &[]),
        ("workload = \"/ci/{repository/*}\"", "workload = \"/ci\"", &["attestor `ci`", "`workload`"]),
        ("name = \"kernel\"", "name = \"kernel\"\nworkload = \"/all\"", &["attestor `kernel`", "`workload`"]),
        ("kind = \"ci\"", "kind = \"ci\"\nmax_age = 172800", &["attestor `ci`", "48 hours"]),
        ("kind = \"ci\"", "kind = \"ci\"\nmax_age = 86400", &[]),
        ("[[service]]", &one, &[]),
        ("[[service]]", &format!("{two}{one}"), &["attestor `one`", "`two`"]),
        ("[[service]]", &format!("{two}{apart}"), &[]),
        (
            "binding = \"offered\"\nrevocation = \"introspection\"",
            "binding = \"offered\"\nrevocation = \"none\"",
            &["service `registry`", "revocation"],
        ),
        ("roles = [\"responder\"]", "roles = [\"viewer\"]", &["`responder`"]),
    ];
    for (from, to, words) in table {
        let bench = Bench::new();
        let warnings = bench.edit(from, to).warnings();
        let (usual, others): (Vec<_>, Vec<_>) = warnings.iter().partition(|w| w.contains("service `git`"));
        assert_eq!(usual.len(), 1, "{warnings:#?}");
        assert!(usual[0].contains("binding"), "{usual:?}");
        assert_eq!(others.len(), usize::from(!words.is_empty()), "{to}: {warnings:#?}");
        assert!(words.iter().all(|word| others[0].contains(word)), "{to}: {warnings:#?}");
    }
}

/// A configuration with people and owners, and what is wrong with it once this is changed.
#[test]
fn operators_and_owners_are_checked() {
    let bench = || {
        let bench = Bench::new();
        fs::write(bench.dir.path().join("sso-keys.json"), Issuer::new().jwks().to_string()).unwrap();
        let text = fs::read_to_string(&bench.config).unwrap();
        fs::write(&bench.config, text + &people()).unwrap();
        bench
    };
    let report = bench().json(0);
    assert_eq!(report["operator_issuers"], json!(["sso"]));
    assert_eq!(report["owners"], json!([OWNER, "other@example.com", "nobody@example.com"]));
    assert!(bench().check(&[]).out.contains("nobody@example.com"));
    // Who may revoke by a grant is somebody who may revoke.
    let other = bench();
    other.edit("roles = [\"responder\"]\ntoken_sha256", "roles = [\"viewer\"]\ntoken_sha256");
    assert!(!other.warnings().iter().any(|warning| warning.contains("`responder`")));
    other.edit("name_claim", "max_age = 172800\nname_claim");
    assert!(other.warnings().iter().any(|warning| warning.contains("operator_issuer `sso`") && warning.contains("48")));

    let again = |name: &str, issuer: &str, more: &str| {
        format!(
            "[[operator_issuer]]\nname = \"{name}\"\nissuer = \"{issuer}\"\naudience = \"remit\"\nkeys_file = \"sso-keys.json\"\n\
             {more}\n[[owner]]"
        )
    };
    let grant = "[[operator_issuer.grant]]\nclaim = \"groups\"\nvalue = \"x\"\nroles = [\"viewer\"]";
    let (groups, hs256) = ("groups_claim = \"groups\"", "algorithms = [\"ES256\"]\nname_claim");
    let owner = |more: &str| format!("[[owner]]\nid = \"new@example.com\"\n{more}\n[[owner]]");
    let table: Vec<(&str, String, &[&str])> = vec![
        ("iss", String::new(), &[]),
        (
            "issuer = \"https://sso.example.com\"",
            "issuer = \"https://ci.example.com\"".into(),
            &["`sso`", "[[attestor]]"],
        ),
        (
            "issuer = \"https://sso.example.com\"",
            "issuer = \"http://sso.example.com\"".into(),
            &["operator_issuer `sso`", "https://"],
        ),
        ("audience = \"remit\"", "audience = \"\"".into(), &["operator_issuer `sso`", "`audience`"]),
        (hs256, "algorithms = [\"HS256\"]\nname_claim".into(), &["operator_issuer `sso`", "`algorithms`"]),
        ("sso-keys.json", "no-keys.json".into(), &["operator_issuer `sso`", "no-keys.json"]),
        ("name_claim = \"email\"", "name_claim = \"\"".into(), &["operator_issuer `sso`", "`name_claim`"]),
        ("name_claim = \"email\"", "name_claim = \"/a~2\"".into(), &["operator_issuer `sso`", "`name_claim`"]),
        ("name_claim = \"email\"", "name = \"email\"".into(), &["duplicate key"]),
        ("name_claim = \"email\"", "name_claims = \"email\"".into(), &["unknown field `name_claims`"]),
        ("roles = [\"approver\"]\n[[", "roles = [\"aprover\"]\n[[".into(), &["`approver`"]),
        ("roles = [\"approver\"]\n[[", "roles = [\"Approver\"]\n[[".into(), &["`approver`"]),
        ("roles = [\"approver\"]\n[[", "roles = []\n[[".into(), &["`sec-approvers`", "`roles`"]),
        ("value = \"sec-admins\"", "value = \"sec-viewers\"".into(), &["two grants", "`sec-viewers`"]),
        ("value = \"sec-admins\"", "value = \"\"".into(), &["a grant has a `claim`"]),
        ("value = \"sec-admins\"", "values = \"sec-admins\"".into(), &["unknown field `values`"]),
        (groups, String::new(), &["owner `team-payments@example.com`", "`groups_claim`"]),
        ("[[owner]]", again("two", "https://two.example.com", grant), &[]),
        ("[[owner]]", again("two", "https://two.example.com", ""), &["operator_issuer `two`", "nobody"]),
        ("[[owner]]", again("two", "https://two.example.com", groups), &["more than one [[operator_issuer]]"]),
        ("[[owner]]", again("two", "https://sso.example.com", grant), &["operator_issuer `two`", "the same `issuer`"]),
        ("[[owner]]", again("sso", "https://two.example.com", grant), &["operator_issuer `sso`", "a name of its own"]),
        (
            "name = \"otto\"",
            "name = \"https://sso.example.com#otto\"".into(),
            &["operator `https://sso.example.com#otto`"],
        ),
        ("[[owner]]", owner("workloads = [\"/new/*\"]"), &[]),
        ("[[owner]]", owner("workloads = []"), &["owner `new@example.com`", "`workloads`"]),
        ("[[owner]]", owner("workloads = [\"/new*\"]"), &["owner `new@example.com`", "`/new*`"]),
        ("[[owner]]", owner("workloads = [\"new/*\"]"), &["owner `new@example.com`", "`new/*`"]),
        ("[[owner]]", owner("workloads = [\"/new/task/*\"]"), &["owner `new@example.com`", "`/new/task/*`"]),
        ("[[owner]]", owner("workloads = [\"/new/*\"]\ncontacts = [\"\"]"), &["owner `new@example.com`", "`contacts`"]),
        ("[[owner]]", owner("workload = \"/new/*\""), &["unknown field `workload`"]),
        (
            "id = \"nobody@example.com\"",
            "id = \"other@example.com\"".into(),
            &["owner `other@example.com`", "another owner"],
        ),
        ("id = \"nobody@example.com\"", "id = \"no body\"".into(), &["owner `no body`", "`id`"]),
        (
            "id = \"other@example.com\"",
            "id = \"others@example.com\"".into(),
            &["attestor `ci`", "`other@example.com`", "[[owner]]"],
        ),
    ];
    for (from, to, words) in &table {
        let bench = bench();
        if words.is_empty() {
            bench.edit(from, if to.is_empty() { from } else { to }).json(0);
            continue;
        }
        let report = bench.edit(from, to).json(78);
        let mistakes: Vec<String> = serde_json::from_value(report["mistakes"].clone()).unwrap();
        let told = |mistake: &String| words.iter().all(|word| mistake.contains(word));
        assert!(mistakes.len() == 1 && told(&mistakes[0]), "{to}: no {words:?} in {mistakes:#?}");
    }
    // The broker itself vouches for nobody.
    let bench = bench();
    let text = fs::read_to_string(&bench.config).unwrap();
    let own = text.split('"').nth(1).unwrap().to_owned();
    let report = bench.edit("https://sso.example.com", &own).json(78);
    assert!(report["mistakes"].to_string().contains("does not vouch for people"), "{report}");
    // An issuer that a preset names is an issuer of workloads too.
    let bench = bench_with_preset(&text);
    assert!(bench.json(78)["mistakes"].to_string().contains("operator_issuer `sso`"));
}

/// The same with an attestor whose issuer stands in a preset alone, and is that of people.
fn bench_with_preset(text: &str) -> Bench {
    let bench = Bench::new();
    fs::write(bench.dir.path().join("sso-keys.json"), Issuer::new().jwks().to_string()).unwrap();
    let preset =
        "\n[[attestor]]\ntype = \"oidc\"\nname = \"github\"\npreset = \"github-actions\"\naudience = \"remit\"\n";
    let text = text.replace("https://sso.example.com", "https://token.actions.githubusercontent.com");
    fs::write(&bench.config, text + preset).unwrap();
    bench
}

#[test]
fn without_services_a_revoke_reaches_nobody_and_that_is_said() {
    let bench = Bench::new();
    let text = fs::read_to_string(&bench.config).unwrap();
    let (start, rest) = text.split_once("[[service]]").unwrap();
    let (_, operators) = rest.split_once("[[operator]]").unwrap();
    fs::write(&bench.config, format!("{start}[[operator]]{operators}")).unwrap();
    let warnings = bench.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("[[service]]"), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_fail_only_the_strict_and_serve_gives_the_same() {
    let bench = Bench::new();
    bench.edit("instance = \"{run_id}.{run_attempt}\"", "instance = \"{sub}\"");
    let warnings = bench.warnings();
    assert_eq!(warnings.len(), 2);
    let said = bench.check(&[]);
    assert_eq!(said.code, 0);
    assert!(warnings.iter().all(|warning| said.out.contains(&format!("\nwarning: {warning}"))), "{}", said.out);
    let strict = bench.check(&["--strict"]);
    assert_eq!((strict.code, strict.out), (78, said.out));
    assert!(strict.err.contains("--strict"), "{}", strict.err);
    let strict = bench.check(&["--strict", "--output", "json"]);
    let report: Value = serde_json::from_str(&strict.out).unwrap();
    assert_eq!((strict.code, &report["accepted"], &*strict.err), (78, &json!(false), ""));

    let log = bench.dir.path().join("log");
    let broker = Server::start_talking(&bench.config, &log).await;
    let logged = fs::read_to_string(&log).unwrap();
    for warning in &warnings {
        assert_eq!(
            logged.lines().filter(|line| line.contains("WARN") && line.contains(warning)).count(),
            1,
            "{logged}"
        );
    }
    drop(broker);

    // With nothing weak in it, the strict are content.
    let bench = Bench::new();
    bench.edit("binding = \"none\"", "binding = \"offered\"");
    assert_eq!(bench.check(&["--strict"]).code, 0);
}
