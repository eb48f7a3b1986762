//! Owners: who is accountable for which workloads, and may see and revoke what those declare.

use serde::Deserialize;

use crate::id::{SpiffeId, TrustDomain};

/// The longest `id`, contact or group, in bytes; that of `owner` in a declaration.
const MAX_TEXT: usize = 256;

/// An `[[owner]]`: somebody who is accountable for tasks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerConfig {
    /// What declarations name, byte for byte.
    pub id: String,
    /// Whom to talk to when something happens to a task of theirs.
    #[serde(default)]
    pub contacts: Vec<String>,
    /// The workloads that may name them: paths in the trust domain, `/ci/acme/payments` or `/ci/acme/*` for everything below.
    pub workloads: Vec<String>,
    /// The groups of the operators' issuer whose members act for them.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// Which workloads an owner has.
#[derive(Debug)]
enum Pattern {
    /// This one.
    Exact(String),
    /// Everything that begins with this, up to and with a `/`.
    Below(String),
}

#[derive(Debug)]
struct Owner {
    config: OwnerConfig,
    workloads: Vec<Pattern>,
}

/// The configured owners; where there are none, a declaration may name anybody.
#[derive(Debug, Default)]
pub(super) struct Owners(Vec<Owner>);

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        const RULE: &str = "is no path of workloads: `/ci/acme/payments` is one, `/ci/acme/*` are all below";
        let (sample, pattern): (String, fn(String) -> Self) = match text.strip_suffix("/*") {
            Some(above) => (format!("{above}/x"), Self::Below),
            None => (text.to_owned(), Self::Exact),
        };
        let domain: Result<TrustDomain, _> = "localhost".parse();
        let path = domain.and_then(|domain| domain.workload(&sample)).ok().filter(|_| text.starts_with('/'));
        let path = path.ok_or_else(|| format!("`{text}` {RULE}"))?;
        let path = path.path();
        Ok(pattern(text.strip_suffix('*').map_or(path, |_| &path[..path.len() - 1]).to_owned()))
    }

    fn admits(&self, workload: &SpiffeId) -> bool {
        match self {
            Self::Exact(path) => workload.path() == path,
            Self::Below(above) => workload.path().starts_with(above),
        }
    }
}

impl Owners {
    pub(super) fn build(configs: Vec<OwnerConfig>, mistakes: &mut Vec<String>) -> Self {
        let mut owners: Vec<Owner> = Vec::new();
        for config in configs {
            let id = config.id.clone();
            let mut wrong = |what: &str| mistakes.push(format!("owner `{id}`: {what}"));
            if !is_plain(&id) {
                wrong("`id` is 1 to 256 bytes without spaces");
            }
            if owners.iter().any(|other| other.config.id == id) {
                wrong("another owner has this `id`; put what they have in common into one section");
            }
            if config.workloads.is_empty() {
                wrong("`workloads` lists nothing, so no task could name them: list paths, as in `/ci/acme/*`");
            }
            if !config.contacts.iter().chain(&config.groups).all(|text| is_shown(text)) {
                wrong("`contacts` and `groups` list texts of 1 to 256 bytes");
            }
            let patterns = config.workloads.iter().map(|text| Pattern::parse(text));
            let workloads = patterns.filter_map(|pattern| pattern.map_err(|mistake| wrong(&mistake)).ok()).collect();
            owners.push(Owner { config, workloads });
        }
        Self(owners)
    }

    /// Why a workload may not name this owner, where it may not.
    pub(super) fn refuses(&self, owner: &str, workload: &SpiffeId) -> Option<&'static str> {
        if self.0.is_empty() {
            return None;
        }
        match self.find(owner) {
            None => Some("`owner` is none of the broker's configured owners"),
            Some(owner) if !owner.workloads.iter().any(|pattern| pattern.admits(workload)) => {
                Some("`owner` is not the owner of this workload by the broker's configuration")
            }
            Some(_) => None,
        }
    }

    /// Whom to talk to about what this owner is accountable for.
    pub(super) fn contacts(&self, owner: &str) -> &[String] {
        self.find(owner).map(|owner| &*owner.config.contacts).unwrap_or_default()
    }

    /// For whom somebody acts who is in these groups.
    pub(super) fn of_groups(&self, is_in: impl Fn(&str) -> bool) -> Vec<String> {
        let theirs = self.0.iter().filter(|owner| owner.config.groups.iter().any(|group| is_in(group)));
        theirs.map(|owner| owner.config.id.clone()).collect()
    }

    /// The owners who have groups.
    pub(super) fn with_groups(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|owner| !owner.config.groups.is_empty()).map(|owner| &*owner.config.id)
    }

    fn find(&self, id: &str) -> Option<&Owner> {
        self.0.iter().find(|owner| owner.config.id == id)
    }
}

fn is_shown(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

fn is_plain(text: &str) -> bool {
    is_shown(text) && !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_path_or_all_below_one() {
        let admits = |pattern: &str, path: &str| {
            let workload = format!("spiffe://example.com{path}").parse().unwrap();
            Pattern::parse(pattern).unwrap().admits(&workload)
        };
        for (pattern, path, fits) in [
            ("/ci/acme/payments", "/ci/acme/payments", true),
            ("/ci/acme/payments", "/ci/acme/payments/x", false),
            ("/ci/acme/payments", "/ci/acme/payment", false),
            ("/ci/acme/*", "/ci/acme/payments", true),
            ("/ci/acme/*", "/ci/acme/payments/x", true),
            ("/ci/acme/*", "/ci/acme", false),
            ("/ci/acme/*", "/ci/acme-evil/payments", false),
            ("/ci/acme/*", "/ci/ACME/payments", false),
            ("/ci/acme/*", "/x/ci/acme/payments", false),
            ("/*", "/ci/acme", true),
        ] {
            assert_eq!(admits(pattern, path), fits, "{pattern} {path}");
        }
        for bad in
            ["", "*", "/", "ci/acme", "/ci/*/x", "/ci/acme*", "/ci/**", "/ci//*", "/ci/../*", "/ci/task/*", "//*"]
        {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }
}
