//! Policy: (what was attested, what was declared, what is asked, when) → a [`Permit`], or the policies that said no.
//!
//! Cedar decides. Default deny; a policy set that does not fit the schema is not loaded; an evaluation that errs is no
//! decision. A permit has no public constructor and cannot be copied: signing consumes it.

mod cases;
mod decide;
mod load;
mod request;
#[cfg(test)]
mod tests;

pub use cases::{Case, Cases, Decided};

use std::{fmt, num::NonZero, path::Path};

use crate::{
    attest::Attested,
    clock::Time,
    error::Denied,
    id::{Location, sha256_hex},
    task::{AccessDetail, Authority, Context, Declaration, Privilege, Task},
};

/// The policy engine gave no decision. The text is for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Undecided(pub String);

/// What is wrong with a set of policies: every mistake, with its file and line.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct BadPolicies(pub Vec<String>);

/// What a workload said of its task.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    /// What for.
    pub purpose: &'a str,
    /// Who is accountable.
    pub owner: &'a str,
    /// Where it runs.
    pub environment: Option<&'a str>,
    /// In which sandbox.
    pub sandbox: Option<&'a str>,
    /// How sensitive the data is.
    pub data_classification: Option<&'a str>,
    /// Where the work comes from.
    pub context: &'a Context,
}

impl<'a> From<&'a Declaration> for Words<'a> {
    fn from(d: &'a Declaration) -> Self {
        Self {
            purpose: &d.purpose,
            owner: &d.owner,
            environment: d.environment.as_deref(),
            sandbox: d.sandbox.as_deref(),
            data_classification: d.data_classification.as_deref(),
            context: &d.context,
        }
    }
}

impl<'a> From<&'a Task> for Words<'a> {
    fn from(t: &'a Task) -> Self {
        Self {
            purpose: &t.purpose,
            owner: &t.owner,
            environment: t.environment.as_deref(),
            sandbox: t.sandbox.as_deref(),
            data_classification: t.data_classification.as_deref(),
            context: &t.context,
        }
    }
}

/// What policies see of who asks and of what was declared, in JSON and bounded: for the record of a decision.
#[must_use]
pub fn considered(attested: &Attested, words: Words<'_>) -> serde_json::Value {
    request::considered(attested.into(), words)
}

/// One credential that is asked for.
#[derive(Debug)]
pub struct Ask<'a> {
    /// What was said of its task.
    pub words: Words<'a>,
    /// The service.
    pub location: &'a Location,
    /// The privilege.
    pub privilege: Privilege,
    /// The granted details of the task, cut down to the location and privilege.
    pub details: Vec<AccessDetail>,
}

/// The decision on a declaration.
#[derive(Debug)]
pub struct Grant {
    /// What is permitted; `None`: nothing.
    pub authority: Option<Authority>,
    /// What is not.
    pub denied: Vec<Denied>,
    /// The policies that permitted.
    pub policies: Vec<String>,
    /// The strictest limits that any of them sets.
    pub limits: Limits,
}

/// What the annotations of policies bound, in seconds; what is absent is bounded by the broker alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// `@max_ttl`: how long a task or a credential may be asked for at a time.
    pub max_ttl: Option<u32>,
    /// `@max_lifetime`: how long a task may live, however often it is renewed.
    pub max_lifetime: Option<u32>,
    /// `@idle_ttl`: how long a task lives that is not renewed.
    pub idle_ttl: Option<u32>,
    /// `@attest_every`: how long a task token stands for the evidence.
    pub attest_every: Option<u32>,
    /// `@require_reports`: how long a task may go without a report and still be renewed.
    pub require_reports: Option<u32>,
}

impl Limits {
    /// The stricter of both, each limit on its own.
    #[must_use]
    fn and(self, other: Self) -> Self {
        let least = |one: Option<u32>, other: Option<u32>| one.into_iter().chain(other).min();
        Self {
            max_ttl: least(self.max_ttl, other.max_ttl),
            max_lifetime: least(self.max_lifetime, other.max_lifetime),
            idle_ttl: least(self.idle_ttl, other.idle_ttl),
            attest_every: least(self.attest_every, other.attest_every),
            require_reports: least(self.require_reports, other.require_reports),
        }
    }
}

/// The decision on one credential.
#[derive(Debug)]
pub enum Verdict {
    /// It may be minted.
    Permit(Permit),
    /// It may not, and these policies forbade it (none: nothing permits it).
    Denied(Vec<String>),
}

/// Permission to mint one credential: one location, one privilege, these details.
#[derive(Debug)]
pub struct Permit {
    location: Location,
    privilege: Privilege,
    details: Vec<AccessDetail>,
    policies: Vec<String>,
    max_ttl: Option<u32>,
}

impl Permit {
    /// The service.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }
    /// The privilege.
    #[must_use]
    pub fn privilege(&self) -> Privilege {
        self.privilege
    }
    /// The details of the authority that were permitted, cut down to this location and privilege. Never empty.
    #[must_use]
    pub fn details(&self) -> &[AccessDetail] {
        &self.details
    }
    /// The policies that permitted it.
    #[must_use]
    pub fn policies(&self) -> &[String] {
        &self.policies
    }
    /// The strictest lifetime, in seconds, that any of them sets.
    #[must_use]
    pub fn max_ttl(&self) -> Option<u32> {
        self.max_ttl
    }
}

/// More copies of the policies than this are not made, however many threads the machine runs.
const MOST_COPIES: usize = 16;

/// A validated set of policies.
pub struct Policies {
    engines: Vec<decide::Engine>,
    limits: load::Annotations,
    digest: String,
}

impl Policies {
    /// Loads every `*.cedar` file of a directory; other files and whatever lies deeper are left alone.
    ///
    /// # Errors
    /// Every mistake in them, at once.
    pub fn load(dir: &Path) -> Result<Self, BadPolicies> {
        let (sources, mistakes) = load::read(dir);
        Self::new(&sources, mistakes)
    }

    /// The sample policy of `remit serve` without a configuration.
    ///
    /// # Errors
    /// Never, for the sample that ships; the signature is that of [`Policies::load`].
    pub fn development() -> Result<Self, BadPolicies> {
        let name = "development.cedar".to_owned();
        let text = include_str!("../../deploy/policies/development.cedar").to_owned();
        Self::new(&[load::Source { name, text }], Vec::new())
    }

    fn new(sources: &[load::Source], mistakes: Vec<String>) -> Result<Self, BadPolicies> {
        let copies = std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_COPIES);
        let vocabulary = || request::Vocabulary::new().map_err(|why| BadPolicies(vec![format!("the schema: {why}")]));
        let limits = load::check(sources, mistakes, &vocabulary()?)?;
        let engines = (0..copies).map(|_| decide::Engine::new(sources, vocabulary()?)).collect::<Result<_, _>>()?;
        let mut digests: Vec<_> = sources.iter().map(|source| sha256_hex(source.text.as_bytes())).collect();
        digests.sort_unstable();
        Ok(Self { engines, limits, digest: sha256_hex(digests.concat().as_bytes()) })
    }

    /// The `@id` of every policy, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.limits.keys().map(String::as_str)
    }

    /// The longest `@max_ttl` of all policies, in seconds, where one has any.
    #[must_use]
    pub fn longest_ttl(&self) -> Option<u32> {
        self.limits.values().filter_map(|limits| limits.max_ttl).max()
    }

    /// Which policies these are: the SHA-256, in lower-case hexadecimal, over the sorted SHA-256 of the files' texts.
    /// The names of the files do not matter.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Decides on every (location, privilege) of a declaration, each on its own.
    ///
    /// # Errors
    /// [`Undecided`] when an evaluation erred.
    pub fn declare(
        &self,
        attested: &Attested,
        words: Words<'_>,
        asked: &Authority,
        now: Time,
    ) -> Result<Grant, Undecided> {
        self.declare_as(attested.into(), words, asked, now)
    }

    /// Decides on one credential. Each detail is decided on its own, and the permit holds those that passed.
    ///
    /// # Errors
    /// [`Undecided`] when an evaluation erred.
    pub fn mint(&self, attested: &Attested, ask: Ask<'_>, now: Time) -> Result<Verdict, Undecided> {
        self.mint_as(attested.into(), ask, now)
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("names", &self.limits.keys())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}
