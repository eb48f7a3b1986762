//! `remit policy check`: what a set of policies would be refused for, and whether it decides what it is meant to.

use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// How it ended, what it printed, what it complained of.
struct Said {
    code: i32,
    out: String,
    err: String,
}

fn check(dir: &Path, arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
    command.args(["policy", "check"]).args(arguments).env_remove("REMIT_LOG").current_dir(dir);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn json(dir: &Path, arguments: &[&str], code: i32) -> Value {
    let said = check(dir, &[arguments, &["--output", "json"]].concat());
    assert_eq!((said.code, &*said.err), (code, ""), "{}", said.out);
    serde_json::from_str(&said.out).unwrap()
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("mine")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

const READ: &str =
    "@id(\"git.read\")\n@max_ttl(\"300\")\npermit (principal, action in Remit::Action::\"read\", resource)
when { principal.attestor == \"ci\" && resource.uri == \"https://git.example.com\" };\n";
const NIGHT: &str = "@id(\"no-night\")\nforbid (principal, action, resource) when { context.time.hour < 6 };\n";

fn case(name: &str, more: &str) -> String {
    format!(
        "[[case]]\nname = \"{name}\"\nworkload = \"/ci/acme/payments\"\nkind = \"ci\"\nattestor = \"ci\"\nact = \"mint\"\n\
         location = \"https://git.example.com\"\nprivilege = \"read\"\n{more}\n"
    )
}

const ALLOWED: &str = "expect = \"allow\"\npolicies = [\"git.read\"]\nmax_ttl = 300";

#[test]
fn the_shipped_policies_pass_their_own_cases() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policies");
    let all = fs::read_to_string(deploy.join("cases.toml")).unwrap().matches("[[case]]").count();
    let production = json(&deploy, &["production", "--cases", "cases.toml"], 0);
    let development = json(&deploy, &["--set", "development"], 0);
    let cases = |report: &Value| report["cases"].as_array().unwrap().len();
    assert_eq!(cases(&production) + cases(&development), all);
    assert_eq!(development["policies"], json!(["development.loopback", "development.no-secrets"]));
    assert_eq!((&production["untried"], &development["untried"]), (&json!([]), &json!([])));
    assert_eq!(production["skipped"], cases(&development));
    // Nothing that was checked is no pass.
    let said = check(&deploy, &[]);
    assert_eq!((said.code, &*said.out), (78, ""));
    for word in ["no case", "`policies`", "--set", "development, production"] {
        assert!(said.err.contains(word), "no {word} in {}", said.err);
    }
}

#[test]
fn every_mistake_is_said_at_once() {
    let dir = directory(&[
        (
            "mine/a.cedar",
            "@id(\"one\") permit (principal, action, resource);\n\n@id(\"one\") forbid (principal, action, resource);",
        ),
        (
            "mine/b.cedar",
            "permit (principal, action, resource);\n@id(\"two\") permit (principal, action, resource) when { context.nothing };",
        ),
        ("mine/c.cedar", "@id(\"three\") permit (principal, action"),
        ("mine/cases.toml", "[[case]]\nname = 'x'\nwhat = 1\n"),
    ]);
    let report = json(dir.path(), &["mine"], 78);
    let mistakes: Vec<String> = serde_json::from_value(report["mistakes"].clone()).unwrap();
    for word in
        ["mine/a.cedar:3: `@id(\"one\")`", "mine/b.cedar:1: ", "mine/b.cedar:2: ", "mine/c.cedar:1: ", "cases.toml:3: "]
    {
        assert!(
            mistakes.iter().any(|mistake| mistake.starts_with(word) || mistake.contains(word)),
            "no {word} in {mistakes:#?}"
        );
    }
    let said = check(dir.path(), &["mine"]);
    assert_eq!((said.code, &*said.out), (78, ""));
    assert!(mistakes.iter().all(|mistake| said.err.contains(mistake)), "{}", said.err);
    for (arguments, words) in [
        (&["nowhere"][..], "nowhere"),
        (&["."][..], "no `*.cedar` file"),
        (&["mine", "--cases", "nowhere.toml"][..], "nowhere.toml"),
    ] {
        let said = check(dir.path(), arguments);
        assert!(said.code == 78 && said.err.contains(words), "{}", said.err);
    }
}

#[test]
fn without_cases_the_names_are_listed() {
    let dir = directory(&[("mine/a.cedar", READ), ("mine/b.cedar", NIGHT)]);
    for (place, arguments) in [(dir.path().to_owned(), &["mine"][..]), (dir.path().join("mine"), &[][..])] {
        let said = check(&place, arguments);
        assert_eq!((said.code, &*said.err), (0, ""));
        assert!(said.out.contains("2 policies") && said.out.contains("\n  git.read\n  no-night\n"), "{}", said.out);
    }
    let report = json(dir.path(), &["mine"], 0);
    assert_eq!((&report["accepted"], &report["cases"]), (&json!(true), &Value::Null));
}

#[test]
fn cases_pass_and_fail_by_name() {
    let good = [
        case("a read in the morning", ALLOWED),
        case("at night", "time = \"2026-11-20T03:00:00Z\"\nexpect = \"deny\"\npolicies = [\"no-night\"]"),
        case("about other policies", "set = \"theirs\"\nexpect = \"deny\"\npolicies = []"),
        case("about these", &format!("set = \"mine\"\n{ALLOWED}")),
    ]
    .concat();
    let dir = directory(&[("mine/a.cedar", READ), ("mine/b.cedar", NIGHT), ("mine/cases.toml", &good)]);
    let said = check(dir.path(), &["mine"]);
    assert_eq!((said.code, &*said.err), (0, ""));
    for word in ["3 passed, 0 failed, 1 about other sets", "\n  passed  at night"] {
        assert!(said.out.contains(word), "no {word} in {}", said.out);
    }
    assert!(!said.out.contains("about other policies"));
    // The directory's name is found when it is not written.
    assert_eq!(check(&dir.path().join("mine"), &[]).out.replace(".:", "mine:"), said.out);

    let bad = [
        case("a read in the morning", ALLOWED),
        case("allowed, but not for as long", "expect = \"allow\"\npolicies = [\"git.read\"]\nmax_ttl = 600"),
        case("by another", "expect = \"allow\"\npolicies = [\"git.write\"]\nmax_ttl = 300"),
        case("not refused", "expect = \"deny\"\npolicies = []"),
        case("an empty identifier", &ALLOWED.replace("expect", "identifier = \"\"\nexpect")),
    ]
    .concat();
    fs::write(dir.path().join("bad.toml"), bad).unwrap();
    let report = json(dir.path(), &["mine", "--cases", "bad.toml"], 78);
    assert_eq!(report["accepted"], false);
    let failed: Vec<_> = report["cases"].as_array().unwrap().iter().filter(|case| case["passed"] == false).collect();
    assert_eq!(failed.len(), 4, "{report}");
    assert_eq!(
        failed[0],
        &json!({"name": "allowed, but not for as long", "passed": false,
            "reason": "expected allow by git.read, for 600 s at most, decided allow by git.read, for 300 s at most"})
    );
    assert_eq!(report["untried"], json!(["no-night"]));
    let said = check(dir.path(), &["mine", "--cases", "bad.toml"]);
    assert_eq!(said.code, 78);
    assert!(
        said.out.contains("\n  FAILED  not refused: expected deny by default, decided allow by git.read"),
        "{}",
        said.out
    );
    assert!(said.out.contains("no case is decided by: no-night") && said.err.contains("4 of the cases failed"));

    let twice = case("same", ALLOWED).repeat(2);
    fs::write(dir.path().join("twice.toml"), twice).unwrap();
    let said = check(dir.path(), &["mine", "--cases", "twice.toml"]);
    assert!(said.code == 78 && said.err.contains("two cases are called `same`"), "{}", said.err);
}
