//! The log of notices: how every broker on the store learns what the others ended, revoked, tainted or locked out. What is dead stands in the
//! store by itself as well; the log only says it to those who did not ask. A hint tells when there is something new in it.

use super::{
    super::{Hint, InDoubt, Key, Logging},
    Ledger,
    numbers::{Number, Span},
};
use crate::{clock::Time, notice::Notice};
use serde::{Deserialize, Serialize};

/// A record of the log.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbered {
    /// Who counts.
    log: String,
    number: u64,
    /// `None`: the number stands for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notice: Option<Notice>,
}

/// What stands in the log: an earlier version gave no numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Numbered(Numbered),
    Plain(Notice),
}

/// How much of the log is read at a time.
const PAGE: usize = 1000;

/// Where a broker has read the log to; at first nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position(pub(super) Option<String>);

impl Ledger {
    /// Tells all brokers.
    ///
    /// # Errors
    /// When the store is in doubt; they may have been told or not.
    pub async fn log_notice(&self, notice: &Notice) -> Result<(), InDoubt> {
        let hint = notice.subject.task().map_or(Hint::Wide, |task| Hint::Task(task.clone()));
        self.log(self.0.numbers.give(), Some(notice), hint).await
    }

    /// Makes the numbers void that may be in the log or not: what was to be logged under them is logged under others.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn void_lost(&self) -> Result<(), InDoubt> {
        while let Some(lost) = self.0.numbers.lost() {
            self.log(lost, None, Hint::Wide).await?;
        }
        Ok(())
    }

    async fn log(&self, number: Number<'_>, notice: Option<&Notice>, hint: Hint) -> Result<(), InDoubt> {
        let line = Numbered { log: self.0.numbers.log().to_owned(), number: number.value, notice: notice.cloned() };
        let record = self.0.sealer.seal(&Key::Log, &line)?;
        self.0.store.log(&Logging { hint, record }).await?;
        number.logged();
        Ok(())
    }

    /// What this process has logged.
    #[must_use]
    pub fn logged(&self, now: Time) -> Span {
        self.0.numbers.span(now)
    }

    /// Whether something is missing of what another has logged.
    #[must_use]
    pub fn lacks(&self, span: &Span) -> bool {
        !self.0.read.covers(span)
    }

    /// What another has logged is known from elsewhere.
    pub fn cover(&self, span: &Span) {
        self.0.read.cover(span);
    }

    /// What was logged after `position`, oldest first, and where that ends. What no broker wrote is left out. There is more where
    /// it is another position than before.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn logged_notices(&self, position: &Position) -> Result<(Vec<Notice>, Position), InDoubt> {
        let logged = self.0.store.logged(position.0.as_deref(), PAGE).await?;
        let last = logged.last().map_or_else(|| position.clone(), |(last, _)| Position(Some(last.clone())));
        let read = |(_, record): &(String, String)| {
            let line = self.0.sealer.open_of_any_generation(&Key::Log, record);
            match line.inspect_err(|why| tracing::error!(%why, "left out of what other brokers say is dead")).ok()? {
                Line::Numbered(Numbered { log, number, notice }) => {
                    self.0.read.cover(&Span { log, from: number, to: number });
                    notice
                }
                Line::Plain(notice) => Some(notice),
            }
        };
        Ok((logged.iter().filter_map(read).collect(), last))
    }
}
