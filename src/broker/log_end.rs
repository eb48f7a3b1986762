//! How the audit log ends, kept in the store whenever it is signed and when the broker ends: what the next start of this broker holds it against.

use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::{Broker, in_doubt};
use crate::{audit::Ending, error::Error, lease::LogEnd};

/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

impl Broker {
    /// Keeps in the store how the log ends now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the store is in doubt.
    pub async fn keep_log_end(&self) -> Result<(), Error> {
        let Ending { log, head } = self.parts.audit.ending();
        let end = LogEnd { log, sequence: head.sequence, digest: head.digest.to_string() };
        self.parts.ledger.keep_log_end(self.revocations.broker(), &end).await.map_err(|why| in_doubt(&why))
    }

    /// The same whenever it is signed, until `stop`.
    pub async fn follow_log_end(&self, stop: CancellationToken) {
        let mut checkpoints = self.parts.audit.checkpoints();
        checkpoints.mark_unchanged();
        while let Some(Ok(())) = stop.run_until_cancelled(checkpoints.changed()).await {
            checkpoints.mark_unchanged();
            while self.keep_log_end().await.is_err() {
                if tokio::time::timeout(AGAIN, stop.cancelled()).await.is_ok() {
                    return;
                }
            }
        }
    }
}
