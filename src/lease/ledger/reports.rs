//! What was reported of a task: one small record for each reporter, which tells repeats from news. The reports themselves are in the
//! audit log.

use super::{
    super::{Amending, InDoubt, Key},
    Ledger,
};
use crate::{
    clock::Time,
    id::{self, TaskId},
    task::{Account, Report, Reporter},
};

/// An account as it was read.
#[derive(Debug)]
pub struct Accounted {
    /// What it says.
    pub account: Account,
    /// The record itself.
    record: Option<String>,
}

impl Ledger {
    /// What a reporter has reported of a task.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn account(&self, task: &TaskId, reporter: &Reporter) -> Result<Accounted, InDoubt> {
        let key = place(task, reporter);
        let [record] = self.read([key.clone()]).await?;
        let account = record.as_deref().map(|record| self.0.sealer.open_if_current(&key, record)).transpose()?;
        Ok(Accounted { account: account.flatten().unwrap_or_default(), record })
    }

    /// Keeps a newer account, if the one that was read still stands: whether it did.
    ///
    /// # Errors
    /// When the store is in doubt; it may or may not have been kept.
    pub async fn keep_account(
        &self,
        (task, reporter): (&TaskId, &Reporter),
        before: Accounted,
        account: &Account,
        keep_until: Time,
    ) -> Result<bool, InDoubt> {
        let key = place(task, reporter);
        let record = self.0.sealer.seal(&key, account)?;
        let keep_until = Some(keep_until);
        self.0.store.amend(&Amending { key, before: before.record, record, keep_until, urgent: false }).await
    }

    /// What tells a report of a task from others. Only who has the store's key can make two that are told alike.
    #[must_use]
    pub fn which(&self, task: &TaskId, report: &Report) -> String {
        let Report { kind, label, digest, size, sequence, at, body: _ } = report;
        let said = format!("{:?}", (task, kind, label, digest, size, sequence, at));
        let [first, second, third, fourth, fifth, sixth, seventh, eighth, ..] =
            self.0.sealer.derive("remit report", said.as_bytes());
        id::hex(&[first, second, third, fourth, fifth, sixth, seventh, eighth])
    }
}

fn place(task: &TaskId, reporter: &Reporter) -> Key {
    let reporter = match reporter {
        Reporter::Holder => "holder".to_owned(),
        Reporter::Service(name) => format!("service:{name}"),
    };
    Key::Reports(task.clone(), reporter)
}
