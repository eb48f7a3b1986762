//! Cases: what a set of policies is meant to decide, written down, so that a change that decides otherwise is seen.
//!
//! Each is decided by the policies themselves, on the way that a request takes; only who asks is made by hand.

use chrono::{DateTime, TimeDelta};
use serde::Deserialize;
use std::{collections::BTreeSet, fmt, fs, path::Path};

use super::{Ask, Policies, Verdict, Words, request::Subject};
use crate::{
    attest::{Facts, Kind, Mark},
    clock::Time,
    id::{Location, SpiffeId},
    task::{AccessDetail, Authority, Context, Privilege},
};

/// The Friday, 20 November 2026, 10:00 UTC: when a case takes place that does not say when.
const FRIDAY_MORNING: TimeDelta = TimeDelta::seconds(1_795_168_800);
/// The trust domain of a workload that is given by its path.
const DOMAIN: &str = "spiffe://example.com";

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    #[serde(rename = "case")]
    cases: Vec<Case>,
}

/// One question to the policies, and the answer that is expected.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    name: String,
    /// The set of policies that it is about; left out: whichever is checked.
    set: Option<String>,
    workload: String,
    kind: Kind,
    #[serde(default = "instance")]
    instance: String,
    #[serde(default = "attestor")]
    attestor: String,
    issuer: Option<String>,
    #[serde(default)]
    selectors: BTreeSet<String>,
    #[serde(default)]
    marks: Vec<Mark>,
    #[serde(default)]
    attested: Proved,
    #[serde(default)]
    declared: Declared,
    act: CaseAct,
    location: Location,
    privilege: Privilege,
    actions: Option<Vec<String>>,
    datatypes: Option<Vec<String>>,
    identifier: Option<String>,
    time: Option<Time>,
    expect: Expect,
    policies: BTreeSet<String>,
    max_ttl: Option<u32>,
}

#[derive(Debug, Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum CaseAct {
    Declare,
    Mint,
}

#[derive(Debug, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Expect {
    Allow,
    Deny,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Proved {
    environment: Option<String>,
    sandbox: Option<String>,
    repo: Option<String>,
    branch: Option<String>,
}

#[derive(Debug, Deserialize, Default)]
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

/// What was decided, or was to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Decided {
    allowed: bool,
    /// By whom; none: nothing permits it.
    pub policies: BTreeSet<String>,
    max_ttl: Option<u32>,
}

impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allowed { "allow" } else { "deny" })?;
        let policies: Vec<_> = self.policies.iter().map(String::as_str).collect();
        let by = if policies.is_empty() { "default".to_owned() } else { policies.join(", ") };
        write!(f, " by {by}")?;
        self.max_ttl.map_or(Ok(()), |seconds| write!(f, ", for {seconds} s at most"))
    }
}

fn instance() -> String {
    "instance-1".to_owned()
}

fn attestor() -> String {
    "test".to_owned()
}

impl Cases {
    /// Reads a file of cases.
    ///
    /// # Errors
    /// What cannot be read, is unknown, or is called by another's name.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let cases: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            format!("{}:{line}: {}", path.display(), error.message())
        })?;
        let mut names = BTreeSet::new();
        match cases.cases.iter().find(|case| !names.insert((&case.set, &case.name))) {
            Some(twice) => Err(format!("{}: two cases are called `{}`", path.display(), twice.name)),
            None => Ok(cases),
        }
    }

    /// Those that are about this set, and about any.
    pub fn about(&self, set: &str) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(move |case| case.set.as_deref().is_none_or(|about| about == set))
    }

    /// How many there are in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.cases.len()
    }

    /// The sets that they are about.
    #[must_use]
    pub fn sets(&self) -> BTreeSet<&str> {
        self.cases.iter().filter_map(|case| case.set.as_deref()).collect()
    }
}

impl Case {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is to be decided.
    #[must_use]
    pub fn expected(&self) -> Decided {
        Decided { allowed: self.expect == Expect::Allow, policies: self.policies.clone(), max_ttl: self.max_ttl }
    }

    fn workload(&self) -> Result<SpiffeId, String> {
        let whole = if self.workload.starts_with('/') { DOMAIN } else { "" };
        format!("{whole}{}", self.workload).parse().map_err(|why| format!("`workload`: {why}"))
    }

    fn words<'a>(&'a self, context: &'a Context) -> Words<'a> {
        let said = &self.declared;
        Words {
            purpose: said.purpose.as_deref().unwrap_or("Fix the flaky test"),
            owner: said.owner.as_deref().unwrap_or("team@example.com"),
            environment: said.environment.as_deref(),
            sandbox: said.sandbox.as_deref(),
            data_classification: said.data_classification.as_deref(),
            context,
        }
    }

    fn asked(&self) -> Result<Authority, String> {
        let mut detail = serde_json::json!({
            "type": "remit:access", "locations": [self.location], "privileges": [self.privilege]});
        for (member, value) in [
            ("actions", serde_json::json!(self.actions)),
            ("datatypes", serde_json::json!(self.datatypes)),
            ("identifier", serde_json::json!(self.identifier)),
        ] {
            if !value.is_null() {
                detail[member] = value;
            }
        }
        let detail: AccessDetail = serde_json::from_value(detail).map_err(|why| why.to_string())?;
        Authority::new(vec![detail]).map_err(|why| why.to_string())
    }
}

impl Policies {
    /// Decides a case.
    ///
    /// # Errors
    /// When it asks for what no request can ask for, or an evaluation erred.
    pub fn decide(&self, case: &Case) -> Result<Decided, String> {
        let workload = case.workload()?;
        let Proved { environment, sandbox, repo, branch } = &case.attested;
        let facts = Facts {
            environment: environment.clone(),
            sandbox: sandbox.clone(),
            repo: repo.clone(),
            branch: branch.clone(),
        };
        let subject = Subject {
            workload: &workload,
            instance: &case.instance,
            kind: case.kind,
            attestor: &case.attestor,
            issuer: case.issuer.as_deref(),
            selectors: &case.selectors,
            facts: &facts,
            marks: &case.marks,
        };
        let said = &case.declared;
        let context = Context { repo: said.repo.clone(), branch: said.branch.clone(), command: said.command.clone() };
        let (words, asked) = (case.words(&context), case.asked()?);
        let now = case.time.unwrap_or(DateTime::UNIX_EPOCH + FRIDAY_MORNING);
        let decided = |allowed, policies: Vec<String>, max_ttl| Decided {
            allowed,
            policies: policies.into_iter().collect(),
            max_ttl,
        };
        match case.act {
            CaseAct::Declare => {
                let grant = self.declare_as(subject, words, &asked, now).map_err(|why| why.to_string())?;
                if grant.authority.is_some() {
                    return Ok(decided(true, grant.policies, grant.limits.max_ttl));
                }
                let refused = grant.denied.into_iter().flat_map(|denied| denied.policies).collect();
                Ok(decided(false, refused, grant.limits.max_ttl))
            }
            CaseAct::Mint => {
                let details = asked.slice(&case.location, case.privilege);
                let ask = Ask { words, location: &case.location, privilege: case.privilege, details };
                Ok(match self.mint_as(subject, ask, now).map_err(|why| why.to_string())? {
                    Verdict::Permit(permit) => decided(true, permit.policies().to_vec(), permit.max_ttl()),
                    Verdict::Denied(policies) => decided(false, policies, None),
                })
            }
        }
    }
}
