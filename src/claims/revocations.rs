//! A state of the revocation feed: what a broker says at `/v1/revocations` has been revoked. It is read whole or not at all: a verifier
//! that skipped what it does not understand would accept what was revoked.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Lock, NumericDate, numeric_date::LARGEST};
use crate::id::{BrokerName, LeaseId, TaskId};

/// The `typ` of a state, and the end of its media type.
pub const REVOCATIONS_TYP: &str = "remit-revocations+jwt";

/// The claims of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationClaims {
    /// The issuer of the credentials.
    pub iss: String,
    /// The broker that says so.
    pub broker: BrokerName,
    /// As of when it is true.
    pub iat: NumericDate,
    /// From when on it is too old to accept anything by.
    pub exp: NumericDate,
    /// The generation; whatever is of a lower one is dead.
    #[serde(deserialize_with = "counter")]
    pub generation: u64,
    /// Counts the changes of this broker's set.
    #[serde(deserialize_with = "counter")]
    pub sequence: u64,
    /// The sequence that `entries` lead on from. A state without it is a snapshot, whose entries are all there are.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "previous")]
    pub previous: Option<u64>,
    /// What the verifier sent that asked for this snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub nonce: Option<String>,
    /// What is dead.
    pub entries: Vec<RevocationEntry>,
}

/// What is dead, since when, and until when it would have lived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "EntryMembers")]
pub struct RevocationEntry {
    /// What is dead.
    #[serde(flatten)]
    pub what: Revoked,
    /// Since when.
    pub at: NumericDate,
    /// When the last credential expires that it can concern.
    pub until: NumericDate,
}

/// What is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Revoked {
    /// A task, with everything below it.
    Task(TaskId),
    /// One credential.
    Lease(LeaseId),
    /// Everything that was signed with the key of this id.
    Key(String),
    /// Everything that a lock keeps out.
    Lock(Lock),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryMembers {
    #[serde(default, deserialize_with = "present")]
    task: Option<TaskId>,
    #[serde(default, deserialize_with = "present")]
    lease: Option<LeaseId>,
    #[serde(default, deserialize_with = "present")]
    key: Option<String>,
    #[serde(default, deserialize_with = "present")]
    lock: Option<Lock>,
    at: NumericDate,
    until: NumericDate,
}

impl TryFrom<EntryMembers> for RevocationEntry {
    type Error = &'static str;
    fn try_from(members: EntryMembers) -> Result<Self, &'static str> {
        let EntryMembers { task, lease, key, lock, at, until } = members;
        let what = match (task, lease, key, lock) {
            (Some(task), None, None, None) => Revoked::Task(task),
            (None, Some(lease), None, None) => Revoked::Lease(lease),
            (None, None, Some(key), None) if !key.is_empty() => Revoked::Key(key),
            (None, None, None, Some(lock)) => Revoked::Lock(lock),
            _ => return Err("an entry is for one thing"),
        };
        Ok(Self { what, at, until })
    }
}

/// A member that is there has a value: `null` is none.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn counter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = u64::deserialize(deserializer)?;
    let fits = number <= LARGEST;
    fits.then_some(number).ok_or_else(|| de::Error::custom("more than every reader of JSON understands"))
}

fn previous<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    counter(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn state(entries: &Value) -> Value {
        json!({"iss": "https://broker.example.com", "broker": "a", "iat": 1_732_190_405.12, "exp": 1_732_190_410.12,
            "generation": 1, "sequence": 3, "previous": 2, "entries": entries})
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let state = state(&json!([
            {"task": "task_01jd0000000000000000000000-0123456789", "at": 1, "until": 2.5},
            {"lease": "0123456789abcdef0123456789abcdef", "at": 1, "until": 2},
            {"key": "k", "at": 1, "until": 2},
            {"lock": {"id": "lock_01jd0000000000000000000000", "match": {"workload": "spiffe://example.com/a/*", "all": true},
                "declared_before": 7, "released": true}, "at": 1, "until": 2},
        ]));
        let read: RevocationClaims = serde_json::from_value(state.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), state);
    }

    #[test]
    fn what_is_not_understood_is_refused_whole() {
        for entry in [
            json!({"at": 1, "until": 2}),
            json!({"tree": "t", "at": 1, "until": 2}),
            json!({"key": "k", "tree": "t", "at": 1, "until": 2}),
            json!({"key": "k", "lease": "0123456789abcdef0123456789abcdef", "at": 1, "until": 2}),
            json!({"key": "k", "lease": null, "at": 1, "until": 2}),
            json!({"key": "", "at": 1, "until": 2}),
            json!({"key": "k", "at": 1}),
            json!({"key": "k", "at": 1, "until": -2}),
            json!({"task": "task_1", "at": 1, "until": 2}),
            json!("task_01jd0000000000000000000000"),
        ] {
            assert!(serde_json::from_value::<RevocationClaims>(state(&json!([entry]))).is_err(), "{entry}");
        }
    }

    #[test]
    fn a_member_that_is_unknown_missing_or_of_another_type_is_refused() {
        for (name, value) in [
            ("entries", json!({})),
            ("previous", Value::Null),
            ("previous", json!("2")),
            ("nonce", Value::Null),
            ("sequence", json!(9_007_199_254_740_992_u64)),
            ("sequence", json!(-1)),
            ("generation", json!(1.5)),
            ("generation", json!(1e300)),
            ("iat", json!("1")),
            ("broker", json!("")),
            ("broker", json!("a b")),
            ("broker", json!("a".repeat(65))),
            ("also", json!(1)),
        ] {
            let mut state = state(&json!([]));
            state[name] = value;
            assert!(serde_json::from_value::<RevocationClaims>(state.clone()).is_err(), "{state}");
        }
        for name in ["iss", "broker", "iat", "exp", "generation", "sequence", "entries"] {
            let mut state = state(&json!([]));
            state.as_object_mut().unwrap().remove(name);
            assert!(serde_json::from_value::<RevocationClaims>(state).is_err(), "{name}");
        }
    }
}
