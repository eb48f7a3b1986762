//! A store that is timed: whichever it is, every call of it is counted, and how it went.

use std::{sync::Arc, time::Instant};
use tokio::sync::broadcast;

use super::{
    Amending, Answer, Called, Calling, Claim, Ended, Ending, Hint, Index, Key, Logging, Mint, Minted, Renewed,
    Renewing, Sealed, Standing, Store, Telling,
};
use crate::{
    clock::Time,
    failpoint::{Step, reached},
    id::TaskId,
    metrics::Metrics,
};

/// Another store, timed.
pub(super) struct Measured {
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Metrics,
}

impl Measured {
    fn timed<'a, T: Send + 'a>(&'a self, operation: &'static str, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let begun = Instant::now();
            let answer = answer.await;
            self.metrics.stored(operation, begun.elapsed(), answer.is_ok());
            answer
        })
    }

    /// The same of what changes something.
    fn written<'a, T: Send + 'a>(&'a self, operation: &'static str, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            reached(Step::StoreAsked);
            let answer = self.timed(operation, answer).await;
            reached(Step::StoreWritten);
            answer
        })
    }
}

impl Store for Measured {
    fn read<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<String>>> {
        self.timed("read", self.store.read(keys))
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> Answer<'a, String> {
        self.written("claim", self.store.claim(claim))
    }

    fn bury<'a>(&'a self, key: &'a Key, record: &'a Sealed, keep_until: Time) -> Answer<'a, String> {
        self.written("bury", self.store.bury(key, record, keep_until))
    }

    fn mint<'a>(&'a self, mint: &'a Mint) -> Answer<'a, Minted> {
        self.written("mint", self.store.mint(mint))
    }

    fn renew<'a>(&'a self, renewing: &'a Renewing) -> Answer<'a, Renewed> {
        self.written("renew", self.store.renew(renewing))
    }

    fn amend<'a>(&'a self, amending: &'a Amending) -> Answer<'a, bool> {
        self.written("amend", self.store.amend(amending))
    }

    fn end<'a>(&'a self, end: &'a Ending) -> Answer<'a, Option<Ended>> {
        self.written("end", self.store.end(end))
    }

    fn confirm<'a>(&'a self, id: &'a TaskId, at: Time) -> Answer<'a, Time> {
        self.written("confirm", self.store.confirm(id, at))
    }

    fn changes(&self) -> broadcast::Receiver<Hint> {
        self.store.changes()
    }

    fn count_tasks(&self, more: u64) -> Answer<'_, u64> {
        self.written("count_tasks", self.store.count_tasks(more))
    }

    fn status_list(&self, list: u64) -> Answer<'_, Standing> {
        self.timed("status_list", self.store.status_list(list))
    }

    fn call<'a>(&'a self, calling: &'a Calling) -> Answer<'a, Called> {
        self.written("call", self.store.call(calling))
    }

    fn post<'a>(&'a self, records: &'a [(Key, Sealed, Time)]) -> Answer<'a, ()> {
        self.written("post", self.store.post(records))
    }

    fn tell<'a>(&'a self, telling: &'a Telling) -> Answer<'a, ()> {
        self.written("tell", self.store.tell(telling))
    }

    fn told<'a>(&'a self, id: &'a TaskId) -> Answer<'a, Vec<String>> {
        self.timed("told", self.store.told(id))
    }

    fn log<'a>(&'a self, logging: &'a Logging) -> Answer<'a, ()> {
        self.timed("log", self.store.log(logging))
    }

    fn logged<'a>(&'a self, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<(String, String)>> {
        self.timed("logged", self.store.logged(after, limit))
    }

    fn incarnation(&self) -> Answer<'_, String> {
        self.timed("incarnation", self.store.incarnation())
    }

    fn list<'a>(&'a self, index: Index, before: Option<&'a str>, limit: usize) -> Answer<'a, Vec<String>> {
        self.timed("list", self.store.list(index, before, limit))
    }
}
