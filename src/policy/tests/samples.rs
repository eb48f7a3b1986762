//! The sample sets, by their cases.

use serde::Deserialize;
use std::{collections::BTreeSet, fs};

use super::{a_friday_morning, authority};
use crate::{
    attest::{Facts, Kind, Mark},
    policy::{request::Subject, *},
};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/policies");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    set: Set,
    workload: String,
    kind: Kind,
    #[serde(default)]
    selectors: BTreeSet<String>,
    #[serde(default)]
    marks: Vec<Mark>,
    #[serde(default)]
    attested: Proved,
    #[serde(default)]
    declared: Declared,
    act: CaseAct,
    location: String,
    privilege: Privilege,
    actions: Option<Vec<String>>,
    datatypes: Option<Vec<String>>,
    identifier: Option<String>,
    #[serde(default = "a_friday_morning")]
    time: Time,
    expect: Expect,
    policies: Vec<String>,
    max_ttl: Option<u32>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Set {
    Development,
    Production,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum CaseAct {
    Declare,
    Mint,
}

#[derive(Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Expect {
    Allow,
    Deny,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Proved {
    environment: Option<String>,
    sandbox: Option<String>,
    repo: Option<String>,
    branch: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Declared {
    purpose: Option<String>,
    owner: Option<String>,
    environment: Option<String>,
    sandbox: Option<String>,
    data_classification: Option<String>,
    repo: Option<String>,
    branch: Option<String>,
    command: Option<String>,
}

/// What was decided, by whom, and for how long.
fn decide(policies: &Policies, case: &Case) -> (Expect, Vec<String>, Option<u32>) {
    let workload = format!("spiffe://example.com{}", case.workload).parse().unwrap();
    let Proved { environment, sandbox, repo, branch } = &case.attested;
    let facts = Facts {
        environment: environment.clone(),
        sandbox: sandbox.clone(),
        repo: repo.clone(),
        branch: branch.clone(),
    };
    let subject = Subject {
        workload: &workload,
        instance: "instance-1",
        kind: case.kind,
        attestor: "test",
        issuer: None,
        selectors: &case.selectors,
        facts: &facts,
        marks: &case.marks,
    };
    let said = &case.declared;
    let context = Context { repo: said.repo.clone(), branch: said.branch.clone(), command: said.command.clone() };
    let words = Words {
        purpose: said.purpose.as_deref().unwrap_or("Fix the flaky test"),
        owner: said.owner.as_deref().unwrap_or("team@example.com"),
        environment: said.environment.as_deref(),
        sandbox: said.sandbox.as_deref(),
        data_classification: said.data_classification.as_deref(),
        context: &context,
    };
    let mut detail = serde_json::json!({
        "type": "remit:access", "locations": [case.location], "privileges": [case.privilege]});
    for (member, value) in [
        ("actions", serde_json::json!(case.actions)),
        ("datatypes", serde_json::json!(case.datatypes)),
        ("identifier", serde_json::json!(case.identifier)),
    ] {
        if !value.is_null() {
            detail[member] = value;
        }
    }
    let asked = authority(serde_json::json!([detail]));
    match case.act {
        CaseAct::Declare => {
            let grant = policies.declare_as(subject, words, &asked, case.time).unwrap();
            if let Some(authority) = grant.authority {
                assert_eq!(authority, asked);
                assert!(grant.denied.is_empty());
                return (Expect::Allow, grant.policies, grant.limits.max_ttl);
            }
            assert!(grant.policies.is_empty());
            (Expect::Deny, grant.denied.into_iter().next().unwrap().policies, grant.limits.max_ttl)
        }
        CaseAct::Mint => {
            let location = case.location.parse().unwrap();
            let details = asked.slice(&location, case.privilege);
            let ask = Ask { words, location: &location, privilege: case.privilege, details };
            match policies.mint_as(subject, ask, case.time).unwrap() {
                Verdict::Permit(permit) => (Expect::Allow, permit.policies().to_vec(), permit.max_ttl()),
                Verdict::Denied(policies) => (Expect::Deny, policies, None),
            }
        }
    }
}

#[test]
fn the_samples_decide_as_their_cases_say() {
    let development = Policies::development().unwrap();
    let production = Policies::load(&Path::new(SAMPLES).join("production")).unwrap();
    let text = fs::read_to_string(Path::new(SAMPLES).join("cases.toml")).unwrap();
    let cases: Cases = toml::from_str(&text).unwrap();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for case in &cases.case {
        let policies = if case.set == Set::Development { &development } else { &production };
        let decided = decide(policies, case);
        seen.extend(decided.1.iter().cloned());
        if decided != (case.expect, case.policies.clone(), case.max_ttl) {
            wrong.push(format!("{}: {decided:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases.case.len() >= 25);
    let untested: Vec<_> = development.names().chain(production.names()).filter(|id| !seen.contains(*id)).collect();
    assert!(untested.is_empty(), "no case for {untested:?}");
}

#[test]
fn a_case_with_an_unknown_key_is_a_mistake() {
    let text = fs::read_to_string(Path::new(SAMPLES).join("cases.toml")).unwrap();
    for (known, unknown) in [("marks =", "mark ="), ("repo =", "repository ="), ("max_ttl =", "ttl =")] {
        assert!(text.contains(known));
        assert!(toml::from_str::<Cases>(&text.replacen(known, unknown, 1)).is_err(), "{unknown}");
    }
}

#[test]
fn the_development_sample_is_also_a_directory() {
    let development = Policies::development().unwrap();
    let loaded = Policies::load(Path::new(SAMPLES)).unwrap();
    assert_eq!(loaded.digest(), development.digest());
    assert_eq!(loaded.names().collect::<Vec<_>>(), ["development.loopback", "development.no-secrets"]);
}
