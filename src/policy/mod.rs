//! Policy: (what was attested, what was declared, what is asked, when) → a [`Permit`], or the policies that said no.
//!
//! Cedar decides. Default deny; a policy set that does not fit the schema is not loaded; an evaluation that errs is no
//! decision. A permit has no public constructor and cannot be copied: signing consumes it.

use std::path::Path;

use crate::{
    attest::Attested,
    clock::Time,
    error::Denied,
    id::Location,
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
    /// The strictest lifetime, in seconds, that any of them sets.
    pub max_ttl: Option<u32>,
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

/// A validated set of policies.
pub struct Policies {}

impl Policies {
    /// Loads every `*.cedar` file of a directory.
    ///
    /// # Errors
    /// Every mistake in them, at once.
    pub fn load(_dir: &Path) -> Result<Self, BadPolicies> {
        Ok(Self {})
    }

    /// The sample policy of `remit serve` without a configuration.
    ///
    /// # Errors
    /// Never, for the sample that ships; the signature is that of [`Policies::load`].
    pub fn development() -> Result<Self, BadPolicies> {
        Ok(Self {})
    }

    /// Decides on every (location, privilege) of a declaration, each on its own.
    ///
    /// # Errors
    /// [`Undecided`] when an evaluation erred.
    pub fn declare(
        &self,
        _attested: &Attested,
        _words: Words<'_>,
        _asked: &Authority,
        _now: Time,
    ) -> Result<Grant, Undecided> {
        Err(Undecided(String::new()))
    }

    /// Decides on one credential. Each detail is decided on its own, and the permit holds those that passed.
    ///
    /// # Errors
    /// [`Undecided`] when an evaluation erred.
    pub fn mint(&self, _attested: &Attested, _ask: Ask<'_>, _now: Time) -> Result<Verdict, Undecided> {
        Err(Undecided(String::new()))
    }
}
