//! What a lock keeps out, as a broker says it and a verifier matches it against the claims of a credential.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Claims, NumericDate, revocations::present};
use crate::{
    clock::whole_second,
    id::{LockId, Malformed, SpiffeId},
    task::Task,
};

/// A lock. A later one with the same id takes the place of an earlier one; one that is released stays released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Its id.
    pub id: LockId,
    /// Whom it keeps out.
    #[serde(rename = "match")]
    pub matches: LockMatch,
    /// Only tasks that were declared then or later.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub declared_after: Option<NumericDate>,
    /// Only tasks that were declared before.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub declared_before: Option<NumericDate>,
    /// It keeps nobody out any more.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "only_true")]
    pub released: bool,
}

/// All of its members have to fit. There is one at least.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Members", deny_unknown_fields)]
pub struct LockMatch {
    /// The workload, or one of those on whose behalf it acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadPattern>,
    /// The owner of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Its sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The name of the attestor that vouched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attestor: Option<String>,
    /// The issuer of the evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Everybody.
    #[serde(skip_serializing_if = "is_false")]
    pub all: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    #[serde(default, deserialize_with = "present")]
    workload: Option<WorkloadPattern>,
    #[serde(default, deserialize_with = "present")]
    owner: Option<String>,
    #[serde(default, deserialize_with = "present")]
    sandbox: Option<String>,
    #[serde(default, deserialize_with = "present")]
    attestor: Option<String>,
    #[serde(default, deserialize_with = "present")]
    issuer: Option<String>,
    #[serde(default, deserialize_with = "only_true")]
    all: bool,
}

impl TryFrom<Members> for LockMatch {
    type Error = Malformed;
    fn try_from(members: Members) -> Result<Self, Malformed> {
        let Members { workload, owner, sandbox, attestor, issuer, all } = members;
        let read = Self { workload, owner, sandbox, attestor, issuer, all };
        // An empty one would fit everything, and nobody said `all`.
        if read == Self::default() { Err(Malformed("a lock matches something")) } else { Ok(read) }
    }
}

/// A SPIFFE ID, or the beginning of some with `/*` at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkloadPattern(String);

impl WorkloadPattern {
    /// Whether it names this workload.
    #[must_use]
    pub fn fits(&self, workload: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => workload.starts_with(beginning),
            None => workload == self.0,
        }
    }

    /// Whether it names everybody in a trust domain.
    #[must_use]
    pub fn is_whole_domain(&self) -> bool {
        self.0.strip_suffix("/*").is_some_and(|above| !above.trim_start_matches("spiffe://").contains('/'))
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for WorkloadPattern {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        match text.strip_suffix("/*") {
            // All of a trust domain, or what is below a path in it.
            Some(above) => drop(format!("{above}/any").parse::<SpiffeId>()?),
            None => drop(text.parse::<SpiffeId>()?),
        }
        Ok(Self(text))
    }
}

impl From<WorkloadPattern> for String {
    fn from(pattern: WorkloadPattern) -> Self {
        pattern.0
    }
}

/// What a lock is held against: what is known of a credential or of a task. What is not known fits nothing.
#[derive(Debug, Clone, Default)]
pub struct LockSubject<'a> {
    /// The workload that holds it, and those on whose behalf.
    pub workloads: Vec<&'a str>,
    /// The owner of the task.
    pub owner: Option<&'a str>,
    /// Its sandbox.
    pub sandbox: Option<&'a str>,
    /// The attestor that vouched.
    pub attestor: Option<&'a str>,
    /// The issuer of the evidence.
    pub issuer: Option<&'a str>,
    /// When the task was declared.
    pub declared_at: Option<NumericDate>,
}

impl<'a> LockSubject<'a> {
    /// What a token says of itself.
    #[must_use]
    pub fn of(claims: &'a Claims) -> Self {
        let task = &claims.task;
        let mut workloads = vec![claims.sub.workload(), claims.client_id.workload()];
        let hops = std::iter::successors(claims.act.as_ref(), |actor| actor.act.as_deref());
        workloads.extend(hops.map(|actor| actor.sub.workload()));
        Self {
            workloads,
            owner: Some(&task.owner),
            sandbox: task.sandbox.as_deref(),
            attestor: Some(&task.attestor),
            issuer: task.evidence_issuer.as_deref(),
            declared_at: task.declared_at.checked_mul(1000).and_then(NumericDate::from_millis),
        }
    }

    /// What is on record of a task: what every token of it says, and so what a verifier finds.
    #[must_use]
    pub fn of_task(task: &'a Task) -> Self {
        Self {
            workloads: vec![task.workload.as_str()],
            owner: Some(&task.owner),
            sandbox: task.runs_in(),
            attestor: Some(&task.attestor),
            issuer: task.evidence_issuer.as_deref(),
            // Tokens have it in whole seconds.
            declared_at: NumericDate::of(whole_second(task.created_at)),
        }
    }

    /// What a certificate says: nothing but the task's SPIFFE ID.
    #[must_use]
    pub fn of_task_id(id: &'a SpiffeId) -> Self {
        Self { workloads: vec![id.workload()], ..Self::default() }
    }
}

impl Lock {
    /// Whether it keeps this out. Until when it stands is said beside it.
    #[must_use]
    pub fn fits(&self, subject: &LockSubject<'_>) -> bool {
        let LockMatch { workload, owner, sandbox, attestor, issuer, all: _ } = &self.matches;
        let same =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        let declared = |holds: &dyn Fn(NumericDate) -> bool| subject.declared_at.is_some_and(holds);
        !self.released
            && workload.as_ref().is_none_or(|pattern| subject.workloads.iter().any(|found| pattern.fits(found)))
            && same(owner, subject.owner)
            && same(sandbox, subject.sandbox)
            && same(attestor, subject.attestor)
            && same(issuer, subject.issuer)
            && self.declared_after.is_none_or(|after| declared(&|at| after <= at))
            && self.declared_before.is_none_or(|before| declared(&|at| at < before))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A member that is there says yes; who means no leaves it out.
fn only_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    if bool::deserialize(deserializer)? { Ok(true) } else { Err(serde::de::Error::custom("it is true or not there")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn lock(members: &Value) -> Lock {
        let mut lock = json!({"id": "lock_01jd0000000000000000000000"});
        lock.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        serde_json::from_value(lock).unwrap()
    }

    fn subject() -> LockSubject<'static> {
        LockSubject {
            workloads: vec!["spiffe://example.com/agents/a", "spiffe://example.com/ci/acme"],
            owner: Some("o"),
            sandbox: Some("s"),
            attestor: Some("at"),
            issuer: None,
            declared_at: NumericDate::from_millis(10_000),
        }
    }

    #[test]
    fn all_members_have_to_fit() {
        for (members, fits) in [
            (json!({"match": {"all": true}}), true),
            (json!({"match": {"workload": "spiffe://example.com/agents/a"}}), true),
            (json!({"match": {"workload": "spiffe://example.com/agents/*"}}), true),
            (json!({"match": {"workload": "spiffe://example.com/*"}}), true),
            (json!({"match": {"workload": "spiffe://example.com/agents/a/*"}}), false),
            (json!({"match": {"workload": "spiffe://example.com/agents"}}), false),
            (json!({"match": {"workload": "spiffe://example.com/ci/acme", "owner": "o"}}), true),
            (json!({"match": {"workload": "spiffe://example.com/ci/acme", "owner": "p"}}), false),
            (json!({"match": {"sandbox": "s", "attestor": "at"}}), true),
            (json!({"match": {"issuer": "https://i"}}), false),
            (json!({"match": {"all": true}, "declared_after": 10}), true),
            (json!({"match": {"all": true}, "declared_after": 10.001}), false),
            (json!({"match": {"all": true}, "declared_before": 10.001}), true),
            (json!({"match": {"all": true}, "declared_before": 10}), false),
            (json!({"match": {"all": true}, "released": true}), false),
        ] {
            assert_eq!(lock(&members).fits(&subject()), fits, "{members}");
        }
    }

    #[test]
    fn what_is_not_known_fits_nothing_but_all() {
        let id: SpiffeId = "spiffe://example.com/a/task/task_01jd0000000000000000000000".parse().unwrap();
        let certificate = LockSubject::of_task_id(&id);
        assert!(lock(&json!({"match": {"workload": "spiffe://example.com/a"}})).fits(&certificate));
        assert!(lock(&json!({"match": {"all": true}})).fits(&certificate));
        assert!(!lock(&json!({"match": {"owner": "o"}})).fits(&certificate));
        assert!(!lock(&json!({"match": {"all": true}, "declared_after": 0})).fits(&certificate));
    }

    #[test]
    fn a_lock_that_is_not_understood_is_refused() {
        for bad in [
            json!({"match": {}}),
            json!({"match": {"al": true}}),
            json!({"match": {"all": false}}),
            json!({"match": {"owner": null}}),
            json!({"match": {"owner": 1}}),
            json!({"match": {"workload": "*"}}),
            json!({"match": {"workload": "spiffe://example.com/a*"}}),
            json!({"match": {"all": true}, "released": false}),
            json!({"match": {"all": true}, "reason": "r"}),
            json!({"match": {"all": true}, "declared_after": "2026-11-20T10:00:00Z"}),
            json!({}),
        ] {
            let mut lock = json!({"id": "lock_01jd0000000000000000000000"});
            lock.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
            assert!(serde_json::from_value::<Lock>(lock).is_err(), "{bad}");
        }
    }
}
