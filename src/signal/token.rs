//! What a receiver is told: a Security Event Token (RFC 8417), as the Shared Signals Framework and CAEP 1.0 want it. It has one event,
//! its subject in `sub_id`, and neither `sub` nor `exp`: it is no credential, and says so by its `typ`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Sort;
use crate::{
    id::sha256_base64url,
    task::{End, State, Task},
};

/// Of every Security Event Token.
pub const SET_TYP: &str = "secevent+jwt";

const SESSION_REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";
const TASK_REVOKED: &str = "urn:remit:event:task.revoked";
const TASK_COMPLETED: &str = "urn:remit:event:task.completed";

/// What a receiver is told of ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Signal {
    /// CAEP 1.0 section 3.1: a task was revoked.
    #[serde(rename = "session-revoked")]
    SessionRevoked,
    /// The task of a sandbox was revoked.
    #[serde(rename = "task.revoked")]
    TaskRevoked,
    /// The task of a sandbox is done.
    #[serde(rename = "task.completed")]
    TaskCompleted,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::SessionRevoked, Self::TaskRevoked, Self::TaskCompleted];

    /// The word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SessionRevoked => "session-revoked",
            Self::TaskRevoked => "task.revoked",
            Self::TaskCompleted => "task.completed",
        }
    }

    /// The type of the event, a URI.
    #[must_use]
    pub fn uri(self) -> &'static str {
        match self {
            Self::SessionRevoked => SESSION_REVOKED,
            Self::TaskRevoked => TASK_REVOKED,
            Self::TaskCompleted => TASK_COMPLETED,
        }
    }

    /// Of which end it tells.
    #[must_use]
    pub fn state(self) -> State {
        match self {
            Self::SessionRevoked | Self::TaskRevoked => State::Revoked,
            Self::TaskCompleted => State::Completed,
        }
    }

    pub(super) fn is_for(self, sort: Sort) -> bool {
        (sort == Sort::Caep) == (self == Self::SessionRevoked)
    }
}

/// How a task is named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// By issuer and task (RFC 9493 section 3.2.3), which every receiver of the interoperability profile reads.
    #[default]
    IssSub,
    /// By its parts (SSF 1.0 section 3): the task as `session`, and the workload as `application` where it is known.
    Complex,
}

/// A Security Event Token, before it is signed.
#[derive(Debug, Serialize)]
pub struct SecurityEvent {
    iss: String,
    aud: String,
    iat: i64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    txn: Option<String>,
    sub_id: Value,
    events: Map<String, Value>,
}

/// The id of what a receiver is told: whichever broker tells it, and however often, it is the same.
#[must_use]
pub(super) fn jti(receiver: &str, about: &str) -> String {
    sha256_base64url(json!(["remit signal", receiver, about]).to_string().as_bytes())
}

impl SecurityEvent {
    fn new(issuer: &str, (audience, jti): (&str, &str), iat: i64, sub_id: Value, uri: &str, event: Value) -> Self {
        let events = [(uri.to_owned(), event)].into_iter().collect();
        Self { iss: issuer.to_owned(), aud: audience.to_owned(), iat, jti: jti.to_owned(), txn: None, sub_id, events }
    }

    /// Tells `audience` of the end of a task. `task` is its record, where there is one, and `sandbox` what evidence bound it to.
    #[must_use]
    pub fn of_end(
        issuer: &str,
        to: (&str, &str),
        iat: i64,
        (signal, subject): (Signal, Subject),
        end: &End,
        (task, sandbox): (Option<&Task>, Option<&str>),
    ) -> Self {
        let named = json!({"format": "iss_sub", "iss": issuer, "sub": end.task});
        let sub_id = match subject {
            Subject::IssSub => named,
            Subject::Complex => {
                let mut parts = json!({"format": "complex", "session": named});
                if let Some(task) = task {
                    parts["application"] = json!({"format": "uri", "uri": task.workload});
                }
                parts
            }
        };
        let by_itself = end.by.starts_with("spiffe://");
        // The interoperability profile wants a reason, and never an empty one.
        let fallback = if end.state == State::Completed { "the task is done" } else { "the task was revoked" };
        let reason = end.reason.as_deref().filter(|reason| !reason.trim().is_empty()).unwrap_or(fallback);
        let mut event = json!({
            "event_timestamp": end.at.timestamp(),
            "initiating_entity": if by_itself { "system" } else { "admin" },
            "reason_admin": {"en": reason},
        });
        match signal {
            Signal::SessionRevoked => {}
            Signal::TaskRevoked | Signal::TaskCompleted => {
                event["task"] = json!(end.task);
                event["sandbox"] = json!(sandbox);
                if let Some(task) = task {
                    event["workload"] = json!(task.workload);
                    event["instance"] = json!(task.instance);
                    event["attestor"] = json!(task.attestor);
                }
            }
        }
        // The same for everybody who is told of this end.
        let txn = Some(jti("", end.task.as_str()));
        Self { txn, ..Self::new(issuer, to, iat, sub_id, signal.uri(), event) }
    }

    /// Shows a receiver that what it is told arrives (SSF 1.0 section 8.1.4).
    #[must_use]
    pub fn of_verification(issuer: &str, to: (&str, &str), iat: i64, stream: &str, state: Option<&str>) -> Self {
        let event = state.map_or_else(|| json!({}), |state| json!({"state": state}));
        Self::new(issuer, to, iat, json!({"format": "opaque", "id": stream}), VERIFICATION, event)
    }
}
