//! The mistakes that keep a set from being loaded.

use std::{fs, path::Path};

use super::{directory, policies};
use crate::policy::{BadPolicies, Policies};

/// The mistakes in a directory, without its path.
fn mistakes(files: &[(&str, &str)]) -> Vec<String> {
    let dir = directory(files);
    let BadPolicies(mistakes) = Policies::load(dir.path()).unwrap_err();
    let prefix = format!("{}/", dir.path().display());
    mistakes.iter().map(|mistake| mistake.replace(&prefix, "")).collect()
}

/// That `text` has exactly one mistake, at the beginning of which stands `place`, and which speaks of `about`.
fn refused(text: &str, place: &str, about: &str) {
    let mistakes = mistakes(&[("a.cedar", text)]);
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    assert!(mistakes[0].starts_with(place) && mistakes[0].contains(about), "{}", mistakes[0]);
}

#[test]
fn a_policy_has_a_name() {
    refused("\n\npermit(principal, action, resource);", "a.cedar:3: ", "@id");
    refused("@id permit(principal, action, resource);", "a.cedar:1: ", "@id");
    refused("@id(\"a b\") permit(principal, action, resource);", "a.cedar:1: ", "1 to 64");
    refused(&format!("@id(\"{}\") permit(principal, action, resource);", "a".repeat(65)), "a.cedar:1: ", "1 to 64");
}

#[test]
fn a_name_is_taken_once_in_all_files() {
    let policy = "// first\n@id(\"one\") permit(principal, action, resource);";
    let other = "@id(\"one\") forbid(principal, action, resource);";
    assert_eq!(
        mistakes(&[("a.cedar", policy), ("b.cedar", other)]),
        ["b.cedar:1: `@id(\"one\")` is taken by the policy at a.cedar:2"]
    );
}

#[test]
fn an_annotation_is_known() {
    refused(
        "@id(\"a\")\n@max_tll(\"5\")\npermit(principal, action, resource);",
        "a.cedar:1: ",
        "`@max_tll` is unknown",
    );
    refused("@id(\"a\") @needs_approval permit(principal, action, resource);", "a.cedar:1: ", "not available yet");
    refused("@id(\"a\") @id(\"b\") permit(principal, action, resource);", "a.cedar:1: ", "id");
}

#[test]
fn a_lifetime_is_whole_seconds_of_a_day_at_most() {
    for annotation in ["max_ttl", "max_lifetime", "idle_ttl", "attest_every", "require_reports"] {
        let policy = |value: &str, effect: &str| {
            format!("@id(\"a\") @{annotation}(\"{value}\") {effect}(principal, action, resource);")
        };
        for bad in ["", "0", "86401", "5m", "+5", "-1", "1.5", " 5", "99999999999"] {
            refused(&policy(bad, "permit"), "a.cedar:1: ", "1 to 86400");
        }
        refused(&policy("5", "forbid"), "a.cedar:1: ", "`permit` only");
        policies(&policy("86400", "permit"));
    }
}

#[test]
fn a_policy_fits_the_schema() {
    let when = |condition: &str| format!("@id(\"a.b\") permit(principal, action, resource)\nwhen {{ {condition} }};");
    refused(&when("principal.knid == \"ci\""), "a.cedar:2: ", "`a.b`");
    // Strict: comparing what can never be equal, and reading what may be absent.
    refused(&when("context.time.hour == \"9\""), "a.cedar:2: ", "`a.b`");
    refused(&when("context.declared.repo == \"x\""), "a.cedar:2: ", "repo");
    // Cedar only warns of these.
    refused(&when("context.time.hour > 9 && false"), "a.cedar:1: ", "`a.b`");
    refused(&when("resource.host == \"git.ex\u{430}mple.com\""), "a.cedar:2: ", "script");
    let scope = |scope: &str| format!("@id(\"a\") permit({scope});");
    let misspelt = mistakes(&[("a.cedar", &scope("principal, action == Remit::Action::\"mint:raed\", resource"))]);
    assert!(misspelt.iter().any(|mistake| mistake.contains("mint:raed")), "{misspelt:#?}");
    refused(&scope("principal is Remit::Wrokload, action, resource"), "a.cedar:1: ", "Wrokload");
}

#[test]
fn a_policy_names_only_what_can_be_asked() {
    let on =
        |location: &str| format!("@id(\"a\")\nforbid(principal, action, resource == Remit::Service::\"{location}\");");
    for never in
        ["git.example.com", "https://GIT.example.com", "https://git.example.com:443", "https://git.example.com/*"]
    {
        if never.ends_with('*') {
            policies(&on(never));
        } else {
            refused(&on(never), "a.cedar:", "is nothing that a request can name");
        }
    }
    refused(
        "@id(\"a\") forbid(principal == Remit::Workload::\"/agents/fixer\", action, resource);",
        "a.cedar:1: ",
        "is nothing that a request can name",
    );
}

#[test]
fn a_template_is_no_policy() {
    refused("@id(\"a\") permit(principal == ?principal, action, resource);", "a.cedar:1: ", "template");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mistakes = mistakes(&[
        ("a.cedar", "permit(principal, action, resource);\n@id(\"x\") @huh permit(principal, action, resource);"),
        ("b.cedar", "@id(\"b\") permit(principal action, resource);"),
        ("c.cedar", "@id(\"c\") permit(principal, action, resource) when { context.nothing };"),
    ]);
    let places: Vec<_> = mistakes.iter().map(|mistake| mistake.split_once(": ").unwrap().0).collect();
    assert_eq!(places, ["a.cedar:1", "a.cedar:2", "b.cedar:1", "c.cedar:1"], "{mistakes:#?}");
}

#[test]
fn a_directory_holds_policies() {
    assert!(mistakes(&[])[0].contains("no `*.cedar` file"));
    assert!(mistakes(&[("a.cedar.bak", "nonsense"), (".cedar", "nonsense")])[0].contains("no `*.cedar` file"));
    assert!(mistakes(&[("a.cedar", "// nothing yet")])[0].contains("no policy"));
    assert!(Policies::load(Path::new("/nonexistent")).is_err());

    let dir = directory(&[("a.cedar", "@id(\"a\") permit(principal, action, resource);"), ("README.md", "nonsense")]);
    fs::create_dir(dir.path().join("more")).unwrap();
    Policies::load(dir.path()).unwrap();
    fs::create_dir(dir.path().join("b.cedar")).unwrap();
    assert!(Policies::load(dir.path()).unwrap_err().to_string().contains("b.cedar: a directory"));
    fs::remove_dir(dir.path().join("b.cedar")).unwrap();
    fs::write(dir.path().join("b.cedar"), b"\xff").unwrap();
    fs::write(dir.path().join("c.cedar"), "permit(principal, action, resource);").unwrap();
    let told = Policies::load(dir.path()).unwrap_err().to_string();
    assert!(told.contains("b.cedar: ") && told.contains("c.cedar:1: "), "{told}");
}

#[test]
fn the_digest_is_of_the_texts() {
    let (one, two) =
        ("@id(\"a\") permit(principal, action, resource);", "@id(\"b\") forbid(principal, action, resource);");
    let digest = |files: &[(&str, &str)]| Policies::load(directory(files).path()).unwrap().digest().to_owned();
    let first = digest(&[("a.cedar", one), ("b.cedar", two)]);
    assert_eq!(first, digest(&[("x.cedar", two), ("y.cedar", one)]));
    assert_ne!(first, digest(&[("a.cedar", one)]));
    assert_eq!(first.len(), 64);
}
