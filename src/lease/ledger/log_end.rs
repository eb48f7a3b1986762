//! How the audit log of each broker ended when it was last heard of: what a broker holds its log against when it starts, so that a machine that
//! was put back to an older copy is noticed.

use serde::{Deserialize, Serialize};

use super::{
    super::{Amending, InDoubt, Key},
    Ledger,
};
use crate::id::BrokerName;

/// How often a record that changed meanwhile is tried again.
const TRIES: usize = 4;

/// How an audit log ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEnd {
    /// Its name.
    pub log: String,
    /// The number of its last record.
    pub sequence: u64,
    /// The digest of that.
    pub digest: String,
}

impl Ledger {
    /// How the log of this broker ended, as far as the store knows; of whichever generation.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn log_end(&self, broker: &BrokerName) -> Result<Option<LogEnd>, InDoubt> {
        let key = Key::LogEnd(broker.clone());
        let [record] = self.read([key.clone()]).await?;
        record.map(|record| self.0.sealer.open_of_any_generation(&key, &record)).transpose()
    }

    /// Notes how the log of this broker ends now.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn keep_log_end(&self, broker: &BrokerName, end: &LogEnd) -> Result<(), InDoubt> {
        let key = Key::LogEnd(broker.clone());
        for _ in 0..TRIES {
            let [before] = self.read([key.clone()]).await?;
            let record = self.0.sealer.seal(&key, end)?;
            // For good: there is one of each broker.
            let amending = Amending { key: key.clone(), before, record, keep_until: None, urgent: false };
            if self.0.store.amend(&amending).await? {
                return Ok(());
            }
        }
        Err(InDoubt("how an audit log ends is being changed by somebody else".into()))
    }
}
