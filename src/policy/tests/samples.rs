//! The sample sets, by their cases.

use std::{collections::BTreeSet, fs};

use crate::policy::*;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/policies");

fn cases() -> Cases {
    Cases::read(&Path::new(SAMPLES).join("cases.toml")).unwrap()
}

#[test]
fn the_samples_decide_as_their_cases_say() {
    let cases = cases();
    let sets = [
        ("development", Policies::development().unwrap()),
        ("production", Policies::load(&Path::new(SAMPLES).join("production")).unwrap()),
    ];
    assert_eq!(cases.sets().into_iter().collect::<Vec<_>>(), sets.each_ref().map(|(set, _)| *set));
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for (set, policies) in &sets {
        let mut seen = BTreeSet::new();
        for case in cases.about(set) {
            let decided = policies.decide(case).unwrap();
            if decided != case.expected() {
                wrong.push(format!("{}: {decided}", case.name()));
            }
            seen.extend(decided.policies);
            tried += 1;
        }
        let untested: Vec<_> = policies.names().filter(|id| !seen.contains(*id)).collect();
        assert!(untested.is_empty(), "no case for {untested:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried == cases.count() && tried >= 25);
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
