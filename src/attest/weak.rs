//! What an `[[attestor]]` may say and had better not: told by `remit config check`, and at start.

use chrono::TimeDelta;

use super::{
    settings::Settings,
    template::{PathTemplate, TextTemplate},
};

/// Claims that say who, and never which run.
const LASTING: [&str; 6] = ["sub", "iss", "aud", "azp", "client_id", "email"];

/// What is weak about an attestor of type `oidc`.
pub(super) fn of_oidc(settings: &Settings) -> Vec<String> {
    let name = &settings.name;
    let mut found = Vec::new();
    found.extend(of_workload(name, &settings.workload, "whoever has a token of its issuer"));
    found.extend(of_instance(name, &settings.workload, &settings.instance));
    if settings.issuer.max_age > TimeDelta::days(1) {
        found.push(format!(
            "attestor `{name}`: with this `max_age`, a token that is {} hours old still proves who presents it; \
             let workloads fetch fresh ones, and lower it",
            settings.issuer.max_age.num_hours()
        ));
    }
    found
}

/// What is weak about a workload template: that it is no template.
pub(super) fn of_workload(name: &str, workload: &PathTemplate, who: &str) -> Option<String> {
    workload.claims().next().is_none().then(|| {
        format!("attestor `{name}`: `workload` names no claim, so {who} is the same workload; name one that tells them apart")
    })
}

/// What is weak about an instance template: that it says nothing of which run it is.
pub(super) fn of_instance(name: &str, workload: &PathTemplate, instance: &TextTemplate) -> Option<String> {
    let workload: Vec<_> = workload.claims().map(plain).collect();
    let claims: Vec<_> = instance.claims().map(plain).collect();
    let lasting = |claim: &String| LASTING.contains(&claim.as_str()) || workload.contains(claim);
    claims.iter().all(lasting).then(|| {
        let made_of = match claims.as_slice() {
            [] => "names no claim".to_owned(),
            claims => format!("has only `{}`, which does not change from run to run", claims.join("`, `")),
        };
        format!(
            "attestor `{name}`: `instance` {made_of}: every run of a workload can use and end the tasks of every other; \
             name a claim that only one run has"
        )
    })
}

/// Attestors that can name the same workload: `before` holds names and shapes of those that came earlier.
pub(super) fn of_shape(name: &str, shape: &str, before: &[(String, String)]) -> Option<String> {
    let (other, _) = before.iter().find(|(_, earlier)| earlier == shape)?;
    Some(format!(
        "attestor `{name}`: its `workload` has the same form as that of `{other}`, so what one of them vouches for can pass for \
         a workload of the other; begin them with different segments"
    ))
}

/// A claim by its name where it is a member of the token itself: `/sub` is `sub`.
fn plain(name: &str) -> String {
    match name.strip_prefix('/') {
        Some(member) if !member.contains('/') => member.replace("~1", "/").replace("~0", "~"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_needs_a_claim_that_is_not_the_workloads() {
        let weak = |workload: &str, instance: &str| {
            let domain = "example.com".parse().unwrap();
            let workload = PathTemplate::parse(workload, &domain).unwrap();
            of_instance("a", &workload, &TextTemplate::parse(instance).unwrap()).is_some()
        };
        for instance in ["only", "{sub}", "{/sub}", "{repo}", "{/repo}", "{repo}:{sub}", "{/a~1b}", "{aud}"] {
            assert!(weak("/ci/{repo/*}/{a/b}", instance), "{instance}");
        }
        for instance in ["{run}", "{sub}.{run}", "{/k/pod/uid}", "{/repo/id}", "{jti}"] {
            assert!(!weak("/ci/{repo/*}/{a/b}", instance), "{instance}");
        }
    }
}
