//! The log of ends: how every broker on the store learns what the others ended. The tree of a task says whether it has ended; the log
//! only says it to those who did not ask. A hint tells when there is something new in it.

use super::{
    super::{InDoubt, Key, Logging},
    Ledger, kept,
};
use crate::{clock::Time, id::BrokerName, task::Ending};
use chrono::TimeDelta;

/// How long it shows that a broker could write.
const TOUCHED: TimeDelta = TimeDelta::hours(1);

/// How much of the log is read at a time.
const PAGE: usize = 1000;

/// Where a broker has read the log of ends to; at first nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position(Option<String>);

impl Ledger {
    /// Shows that the store takes what this broker writes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn touch(&self, broker: &BrokerName, now: Time) -> Result<(), InDoubt> {
        let key = Key::Touched(broker.clone());
        let record = self.0.sealer.seal(&key, &now)?;
        self.0.store.post(&[(key, record, kept(now, TOUCHED))]).await
    }

    /// Tells all brokers of an end.
    ///
    /// # Errors
    /// When the store is in doubt; they may have been told or not.
    pub async fn log_end(&self, ending: &Ending) -> Result<(), InDoubt> {
        let record = self.0.sealer.seal(&Key::Ends, ending)?;
        self.0.store.log(&Logging { id: ending.end.task.clone(), record }).await
    }

    /// What was logged after `position`, oldest first, and where that ends. What no broker wrote is left out. There is more where
    /// it is another position than before.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn logged_ends(&self, position: &Position) -> Result<(Vec<Ending>, Position), InDoubt> {
        let logged = self.0.store.logged(position.0.as_deref(), PAGE).await?;
        let last = logged.last().map_or_else(|| position.clone(), |(last, _)| Position(Some(last.clone())));
        let read = |(_, record): &(String, String)| {
            let ending = self.0.sealer.open_of_any_generation(&Key::Ends, record);
            ending.inspect_err(|why| tracing::error!(%why, "left out of what others have ended")).ok()
        };
        Ok((logged.iter().filter_map(read).collect(), last))
    }
}
