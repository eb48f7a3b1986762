//! What a decision is made of.

mod load;
mod samples;

use std::fs;

use super::{request::Act, *};
use crate::attest::{Facts, Kind};

const GIT: &str = "https://git.example.com";

fn a_friday_morning() -> Time {
    "2026-11-20T10:00:00Z".parse().unwrap()
}

fn authority(json: serde_json::Value) -> Authority {
    Authority::new(serde_json::from_value(json).unwrap()).unwrap()
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn policies(text: &str) -> Policies {
    Policies::load(directory(&[("a.cedar", text)]).path()).unwrap()
}

fn someone() -> Attested {
    let facts = Facts { repo: Some("acme/payments".to_owned()), ..Facts::default() };
    Attested::for_test("spiffe://example.com/agents/fixer", Kind::AiAgent, &["k8s:ns:agents"], facts)
}

fn words(context: &Context) -> Words<'_> {
    Words {
        purpose: "Fix the flaky test",
        owner: "team@example.com",
        environment: None,
        sandbox: None,
        data_classification: None,
        context,
    }
}

fn declare(policies: &Policies, asked: serde_json::Value) -> Result<Grant, Undecided> {
    policies.declare(&someone(), words(&Context::default()), &authority(asked), a_friday_morning())
}

fn mint(policies: &Policies, location: &str, details: serde_json::Value) -> Result<Verdict, Undecided> {
    let location = location.parse().unwrap();
    let context = Context::default();
    let details = serde_json::from_value(details).unwrap();
    let ask = Ask { words: words(&context), location: &location, privilege: Privilege::Read, details };
    policies.mint(&someone(), ask, a_friday_morning())
}

const LAYERS: &str = r#"
    @id("all") @max_ttl("900") @idle_ttl("60") @require_reports("600") permit(principal, action in Remit::Action::"read", resource);
    @id("git") @max_ttl("300") @max_lifetime("3600") @require_reports("30")
        permit(principal, action in Remit::Action::"read", resource) when { resource.host == "git.example.com" };
    @id("unbounded") permit(principal, action in Remit::Action::"read", resource);
    @id("no-admin") forbid(principal, action, resource)
        when { context.request has actions && context.request.actions.contains("admin") };"#;

#[test]
fn each_pair_is_decided_on_its_own() {
    let asked = serde_json::json!([
        {"type": "remit:access", "locations": [GIT, "https://b"], "privileges": ["read", "write"]},
        {"type": "remit:access", "locations": [GIT], "privileges": ["read"], "actions": ["admin"]}]);
    let grant = declare(&policies(LAYERS), asked).unwrap();
    let granted = serde_json::to_value(grant.authority).unwrap();
    assert_eq!(
        granted,
        serde_json::json!([{"type": "remit:access", "locations": [GIT, "https://b"], "privileges": ["read"]}])
    );
    assert_eq!(grant.policies, ["all", "git", "unbounded"]);
    let strictest = Limits {
        max_ttl: Some(300),
        max_lifetime: Some(3600),
        idle_ttl: Some(60),
        attest_every: None,
        require_reports: Some(30),
    };
    assert_eq!(grant.limits, strictest);
    assert_eq!(
        serde_json::to_value(grant.denied).unwrap(),
        serde_json::json!([
            {"type": "remit:access", "locations": [GIT], "privileges": ["write"], "policies": []},
            {"type": "remit:access", "locations": ["https://b"], "privileges": ["write"], "policies": []},
            {"type": "remit:access", "locations": [GIT], "privileges": ["read"], "actions": ["admin"],
             "policies": ["no-admin"]}])
    );
}

#[test]
fn nothing_is_allowed_for_longer_than_the_longest() {
    assert_eq!(policies(LAYERS).longest_ttl(), Some(900));
    assert_eq!(policies(r#"@id("all") permit(principal, action, resource);"#).longest_ttl(), None);
}

#[test]
fn what_is_granted_whole_is_what_was_asked() {
    let asked = serde_json::json!([
        {"type": "remit:access", "locations": ["https://b", GIT], "privileges": ["read"], "identifier": "x"},
        {"type": "remit:access", "locations": ["https://b"], "privileges": ["read"]}]);
    let grant = declare(&policies(LAYERS), asked.clone()).unwrap();
    assert_eq!(grant.authority, Some(authority(asked)));
    assert!(grant.denied.is_empty());
}

#[test]
fn a_permit_holds_the_details_that_passed() {
    let details = serde_json::json!([
        {"type": "remit:access", "locations": ["https://b"], "privileges": ["read"], "actions": ["admin"]},
        {"type": "remit:access", "locations": ["https://b", GIT], "privileges": ["read", "write"], "actions": ["list"]},
        {"type": "remit:access", "locations": [GIT], "privileges": ["read"]}]);
    let Verdict::Permit(permit) = mint(&policies(LAYERS), "https://b", details).unwrap() else { panic!("refused") };
    assert_eq!(
        serde_json::to_value(permit.details()).unwrap(),
        serde_json::json!([
            {"type": "remit:access", "locations": ["https://b"], "privileges": ["read"], "actions": ["list"]}])
    );
    assert_eq!(permit.location().as_str(), "https://b");
    assert_eq!(permit.privilege(), Privilege::Read);
    assert_eq!(permit.policies(), ["all", "unbounded"]);
    assert_eq!(permit.max_ttl(), Some(900));
}

#[test]
fn nothing_to_mint_is_no_permit() {
    let admin = serde_json::json!([
        {"type": "remit:access", "locations": [GIT], "privileges": ["read"], "actions": ["admin"]}]);
    let all = policies(LAYERS);
    assert!(matches!(mint(&all, GIT, admin).unwrap(), Verdict::Denied(by) if by == ["no-admin"]));
    assert!(matches!(mint(&all, GIT, serde_json::json!([])).unwrap(), Verdict::Denied(by) if by.is_empty()));
}

#[test]
fn an_evaluation_that_errs_is_no_decision() {
    // Cedar would skip the forbid and let the permit decide.
    let policies = policies(
        r#"@id("all") permit(principal, action, resource);
           @id("overflow") forbid(principal, action, resource) when { context.time.unix * 9223372036854775807 > 0 };"#,
    );
    let asked = serde_json::json!([{"type": "remit:access", "locations": [GIT], "privileges": ["read"]}]);
    assert!(declare(&policies, asked.clone()).unwrap_err().to_string().contains("overflow"));
    assert!(mint(&policies, GIT, asked).is_err());
}

#[test]
fn declare_and_mint_are_two_questions() {
    let policies = policies(r#"@id("declare") permit(principal, action in Remit::Action::"declare", resource);"#);
    let asked = serde_json::json!([{"type": "remit:access", "locations": [GIT], "privileges": ["read"]}]);
    assert!(declare(&policies, asked.clone()).unwrap().authority.is_some());
    assert!(matches!(mint(&policies, GIT, asked).unwrap(), Verdict::Denied(_)));
}

#[test]
fn policies_see_what_was_attested_and_what_was_said() {
    let policies = policies(
        r#"@id("all-of-it") permit(
             principal == Remit::Workload::"spiffe://example.com/agents/fixer", action,
             resource == Remit::Service::"https://git.example.com/x?y")
           when {
             principal.kind == "ai_agent" && principal.attestor == "test" && principal.path == "/agents/fixer" &&
             !(principal has issuer) && resource.uri == "https://git.example.com/x?y" && resource.scheme == "https" &&
             resource.host == "git.example.com" && resource.port == 443 && resource.path == "/x" &&
             context.attested.workload == "spiffe://example.com/agents/fixer" &&
             context.attested.instance == "instance-1" && context.attested.selectors == ["k8s:ns:agents"] &&
             context.attested.marks.isEmpty() && context.attested has repo && !(context.attested has branch) &&
             context.attested.repo == "acme/payments" && context.declared.purpose == "\", true) || (\"" &&
             context.declared has command && !(context.declared has repo) &&
             context.request.identifier == "x" && context.request.actions.contains("clone") &&
             context.time.unix == 1795168800 && context.time.hour == 10 && context.time.minute == 0 &&
             context.time.weekday == 5
           };"#
        .replace("context.request.identifier", "context.request has identifier && context.request.identifier")
        .replace("context.request.actions", "context.request has actions && context.request.actions")
        .as_str(),
    );
    let context = Context { command: Some("pytest".to_owned()), ..Context::default() };
    let words = Words { purpose: "\", true) || (\"", ..words(&context) };
    let asked = authority(serde_json::json!([{"type": "remit:access", "locations": ["https://git.example.com/x?y"],
        "privileges": ["write"], "actions": ["clone", "push"], "identifier": "x"}]));
    let grant = policies.declare(&someone(), words, &asked, a_friday_morning()).unwrap();
    assert_eq!(grant.policies, ["all-of-it"]);
}

#[test]
fn every_thread_gets_the_same_answer() {
    let policies = policies(LAYERS);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let asked = serde_json::json!([{"type": "remit:access", "locations": [GIT], "privileges": ["read"]}]);
                assert_eq!(declare(&policies, asked).unwrap().policies, ["all", "git", "unbounded"]);
            });
        }
    });
}

#[test]
fn the_acts_are_those_of_the_schema() {
    let vocabulary = request::Vocabulary::new().unwrap();
    let (someone, context) = (someone(), Context::default());
    let location: Location = GIT.parse().unwrap();
    let scene = vocabulary.scene((&someone).into(), words(&context), [&location], a_friday_morning()).unwrap();
    let detail = &authority(serde_json::json!([
        {"type": "remit:access", "locations": [GIT], "privileges": ["read"]}]))
    .details()[0]
        .clone();
    for act in [Act::Declare, Act::Mint] {
        for privilege in [Privilege::Read, Privilege::Write, Privilege::Secret] {
            vocabulary.request(&scene, act, &location, privilege, detail).unwrap();
        }
    }
    // The entities fit the schema too: building them does not check it.
    let all: Vec<_> = scene.entities.iter().cloned().collect();
    cedar_policy::Entities::from_entities(all, Some(vocabulary.schema())).unwrap();
}
