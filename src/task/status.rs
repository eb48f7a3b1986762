//! Where the status of a task stands in public: one bit of a Token Status List (draft-ietf-oauth-status-list).

use serde::{Deserialize, Serialize};

/// How many tasks share a status list. Every verifier fetches the whole list every few seconds, so that a fetch tells nobody which
/// task it was for; at its worst (half of the bits set, nothing to compress) this one is 15 KB.
pub const STATUS_LIST_ENTRIES: u32 = 1 << 16;

/// The bit of a task: set means ended. All tokens of the task share it, on purpose: they name the task anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusIndex {
    /// The number of the list.
    pub list: u64,
    /// The place in it, below [`STATUS_LIST_ENTRIES`].
    pub index: u32,
}

impl StatusIndex {
    /// The list's URI, which is where it is fetched and what it has to say it is.
    #[must_use]
    pub fn uri(&self, issuer: &str) -> String {
        format!("{issuer}/status-lists/{}", self.list)
    }
}
