//! What is said of a workload wherever a task of it is: its kind, and what attestation could not make certain.

use serde::{Deserialize, Serialize};

/// What sort of thing a workload is, by the attestor's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(as = WorkloadKind))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An AI agent.
    AiAgent,
    /// A CI job.
    Ci,
    /// A service.
    Service,
    /// A person.
    Human,
}

impl Kind {
    /// The word in tokens and policies.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::AiAgent => "ai_agent",
            Kind::Ci => "ci",
            Kind::Service => "service",
            Kind::Human => "human",
        }
    }
}

/// What attestation could not make certain; shown wherever the task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(as = WorkloadMark))]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// The kernel could not pin the peer process (no `SO_PEERPIDFD`): only uid and gid are certain.
    Unpinned,
    /// The caller has the broker's own uid and could read its files.
    Unseparated,
}
