//! Evidence → [`Attested`]. Evidence is what a caller presents; only this module can turn it into something the rest of
//! the broker believes.

mod attestors;
mod bundle;
mod certificate;
mod cgroup;
mod client;
mod config;
mod endpoint;
mod executable;
mod fetched;
mod issuer;
mod jwks;
mod keys;
mod oidc;
mod peer;
mod preset;
mod process;
mod settings;
mod svid;
mod task_token;
mod template;
mod unix;
mod weak;
mod x509;

pub use crate::task::{Kind, Mark};
pub use attestors::Attestors;
pub use certificate::{ClientCertificate, not_after};
pub use config::{ClientConfig, Config, FactTemplates, OidcConfig, UnixConfig, X509Config};
pub use issuer::{Believed, Issuer, IssuerTerms};
pub use preset::Preset;
pub use task_token::{Content, Standing, TaskToken};
pub use unix::Peer;

use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc};

use crate::{clock::Time, id::SpiffeId};

/// Facts that evidence proved about the work, beside who does it. Policies see them as `context.attested.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// The branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// What a caller presents, none of it believed yet.
#[derive(Debug)]
pub enum Evidence {
    /// A JWT of some issuer.
    Jwt(secrecy::SecretString),
    /// What a client authenticates with (RFC 7523 section 2.2).
    Assertion {
        /// The assertion.
        token: secrecy::SecretString,
        /// Whose it says to be.
        of: Asserted,
    },
    /// A certificate, by whoever holds its key.
    Certificate(Arc<ClientCertificate>),
    /// The process at the other end of a Unix socket.
    Peer(Peer),
}

/// Whose an assertion says to be, by the `client_assertion_type` that comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asserted {
    /// `jwt-bearer`: a registered client's.
    Client,
    /// `jwt-spiffe`: a workload's, in a JWT-SVID (draft-ietf-oauth-spiffe-client-auth).
    Spiffe,
}

/// Why evidence was not accepted. The text is for the audit; callers learn only that it was not.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Rejected {
    /// It is not to be believed.
    #[error("{0}")]
    Refused(String),
    /// Whether it is to be believed cannot be told now: its issuer's keys are out of reach.
    #[error("{0}")]
    Unavailable(String),
}

/// What attestation proved. Only [`crate::attest`] makes one, and only from evidence that it verified.
#[derive(Debug, Clone)]
pub struct Attested {
    workload: SpiffeId,
    instance: String,
    kind: Kind,
    attestor: String,
    issuer: Option<String>,
    selectors: BTreeSet<String>,
    facts: Facts,
    owners: Option<Vec<String>>,
    marks: Vec<Mark>,
    expires_at: Option<Time>,
    digest: String,
    reusable: Option<String>,
    once: Option<Once>,
}

/// Evidence that serves once.
#[derive(Debug, Clone)]
pub struct Once {
    /// By what it is known again.
    pub digest: String,
    /// When nobody believes it any more.
    pub until: Time,
}

impl Attested {
    /// The workload, by its SPIFFE ID in the broker's trust domain.
    #[must_use]
    pub fn workload(&self) -> &SpiffeId {
        &self.workload
    }
    /// Which instance of the workload.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }
    /// What sort of thing it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// The name of the attestor that vouched.
    #[must_use]
    pub fn attestor(&self) -> &str {
        &self.attestor
    }
    /// The issuer of the evidence, where it has one.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }
    /// Everything else that was proved, as `kind:name:value`.
    #[must_use]
    pub fn selectors(&self) -> &BTreeSet<String> {
        &self.selectors
    }
    /// Facts about the work.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }
    /// The owners that the attestor's configuration allows; `None` leaves it to policy.
    #[must_use]
    pub fn owners(&self) -> Option<&[String]> {
        self.owners.as_deref()
    }
    /// What could not be made certain.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }
    /// When the evidence ends, where it does: no credential outlives it.
    #[must_use]
    pub fn expires_at(&self) -> Option<Time> {
        self.expires_at
    }
    /// What is the same however often this evidence is presented, in whatever writing of its signature: SHA-256 of what was
    /// signed. `None` for the kernel's word, which nobody can pass on.
    #[must_use]
    pub fn reusable(&self) -> Option<&str> {
        self.reusable.as_deref()
    }
    /// What has to be used up with it, where the evidence serves once.
    #[must_use]
    pub fn once(&self) -> Option<&Once> {
        self.once.as_ref()
    }
    /// Whether it is the client of that name: by registration, or by its SPIFFE ID where it has one of its own.
    #[must_use]
    pub fn is_client(&self, id: &str) -> bool {
        self.selectors.contains(&format!("client:id:{id}")) || self.selectors.contains(&format!("spiffe:id:{id}"))
    }
    /// SHA-256 of the evidence, for the audit.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

#[cfg(test)]
impl Attested {
    /// An attested workload for unit tests of what comes after attestation.
    pub(crate) fn for_test(workload: &str, kind: Kind, selectors: &[&str], facts: Facts) -> Self {
        Self {
            workload: workload.parse().expect("a SPIFFE ID"),
            instance: "instance-1".into(),
            kind,
            attestor: "test".into(),
            issuer: None,
            selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
            facts,
            owners: None,
            marks: Vec::new(),
            expires_at: None,
            digest: String::new(),
            reusable: None,
            once: None,
        }
    }
}
