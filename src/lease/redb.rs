//! Leases in one file on the broker's own disk: for a single broker, and for trying things out.
//!
//! One thread writes. It takes every step that waits, carries them out in one transaction, syncs once and answers them
//! all; the disk's sync, which is what a durable write costs, is so shared by everyone who waited for the one before.

mod steps;

use ::redb::{Builder, Database, DatabaseError, Durability, ReadableDatabase as _, StorageError, TableError};
use chrono::TimeDelta;
use std::{
    collections::HashMap,
    fs::{DirBuilder, OpenOptions},
    io,
    ops::Bound,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::{broadcast, oneshot};

use super::{
    Amending, Answer, Called, Calling, Claim, Ended, Ending, HINTS, Hint, InDoubt, Index, Key, LOGGED_HOURS, Logging,
    Mint, Minted, Renewed, Renewing, Sealed, Standing, Store, Telling,
};
use crate::{
    clock::{Clock, Time},
    id::TaskId,
};
use steps::{COUNTERS, LOG, NAMES, RECORDS, STATUS_LISTS, TIMELINES, Tables};

/// How many steps share one sync at most.
const GROUP: usize = 256;
/// How many steps may wait.
const QUEUE: usize = 1024;
/// How long a caller waits for its step.
const PATIENCE: Duration = Duration::from_secs(5);

/// The store in a file.
pub(super) struct RedbStore {
    database: Arc<Database>,
    queue: Option<mpsc::SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    changes: broadcast::Sender<Hint>,
    /// What was posted, by name. One broker has the file, so nobody else looks for it.
    posted: Mutex<HashMap<String, (String, Time)>>,
    clock: Arc<dyn Clock>,
}

/// A step, which yields how to answer for it once it is on disk. Where that is dropped instead, it is not to be relied on.
type Job = Box<dyn FnOnce(&mut Tables<'_>) -> Result<Acknowledge, StorageError> + Send>;
type Acknowledge = Box<dyn FnOnce() + Send>;

impl RedbStore {
    /// Opens the file, or makes it: mode 0600, in a directory that is made 0700 where there is none.
    ///
    /// # Errors
    /// A sentence that says what to change: another broker has the file open, others can read it, or it is no such file.
    pub(super) fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, InDoubt> {
        let shown = path.display();
        let failed = |error: io::Error| InDoubt(format!("the store {shown} cannot be opened: {error}"));
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(InDoubt(format!("the store {shown} is open to others than its owner: run chmod 600 {shown}")));
        }
        let database = Builder::new().create_file(file).map_err(|error| {
            if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
                InDoubt(format!(
                    "the store {shown} is in use by another broker: stop that one, or give this one its own --data \
                     directory (several brokers share a Redis)"
                ))
            } else {
                InDoubt(format!("the store {shown} cannot be opened: {error}"))
            }
        })?;
        let database = Arc::new(database);
        let (queue, jobs) = mpsc::sync_channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("lease-writer".into())
            .spawn({
                let (database, clock) = (Arc::clone(&database), Arc::clone(&clock));
                move || run(&database, &jobs, clock.as_ref())
            })
            .map_err(failed)?;
        let (changes, posted) = (broadcast::Sender::new(HINTS), Mutex::default());
        Ok(Self { database, queue: Some(queue), writer: Some(writer), changes, posted, clock })
    }

    /// As [`RedbStore::write`], for a step that somebody waits to hear of.
    async fn change<T: Send + 'static>(
        &self,
        hint: Hint,
        step: impl FnOnce(&mut Tables<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, InDoubt> {
        let answer = self.write(step).await;
        // Nobody may be listening.
        let _ = self.changes.send(hint);
        answer
    }

    /// Queues a step and waits until it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Tables<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, InDoubt> {
        let failed = || InDoubt("the store's file could not be written; the log says why".into());
        let (answer, outcome) = oneshot::channel();
        let job: Job = Box::new(move |tables| {
            let outcome = step(tables)?;
            // Whoever asked may be gone by then; it is written all the same.
            Ok(Box::new(move || drop(answer.send(outcome))))
        });
        self.queue.as_ref().ok_or_else(failed)?.try_send(job).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => InDoubt("too many writes are waiting for the disk".into()),
            mpsc::TrySendError::Disconnected(_) => failed(),
        })?;
        match tokio::time::timeout(PATIENCE, outcome).await {
            Ok(outcome) => outcome.map_err(|_| failed()),
            Err(_) => Err(InDoubt("the disk did not answer in time".into())),
        }
    }
}

impl Drop for RedbStore {
    /// What was queued is still written, and the file is free for the next one to open.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Group after group, until there is no one left to queue.
fn run(database: &Database, jobs: &mpsc::Receiver<Job>, clock: &dyn Clock) {
    while let Ok(first) = jobs.recv() {
        let group = std::iter::once(first).chain(jobs.try_iter().take(GROUP - 1)).collect();
        match commit(database, group, clock.now()) {
            Ok(acknowledgements) => acknowledgements.into_iter().for_each(|acknowledge| acknowledge()),
            Err(error) => tracing::error!(%error, "the store's file could not be written"),
        }
    }
}

/// Carries out a group of steps and syncs. A refusal is an answer like any other and costs no one else anything; an error
/// can only be the disk's, so it is everyone's, and nothing of the group is kept.
fn commit(database: &Database, group: Vec<Job>, now: Time) -> Result<Vec<Acknowledge>, ::redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let mut acknowledgements = Vec::with_capacity(group.len());
    {
        let mut tables = Tables::open(&transaction)?;
        // As many as an ordinary group adds, and some: what has run out never piles up.
        tables.collect(now, 64 + 8 * group.len())?;
        for job in group {
            acknowledgements.push(job(&mut tables)?);
        }
    }
    transaction.commit()?;
    Ok(acknowledgements)
}

/// Reads run on the thread that asks: a step would cost more to hand over than to take. A read waits neither for the writer nor for
/// its sync (each sees the last commit), and touches a few pages that redb or the kernel has at hand; the largest there are, a page
/// of an index or of tasks, are bounded by their callers.
impl Store for RedbStore {
    fn read<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<String>>> {
        let read = move || -> Result<Vec<Option<String>>, ::redb::Error> {
            let transaction = self.database.begin_read()?;
            let records = match transaction.open_table(RECORDS) {
                Ok(records) => records,
                Err(TableError::TableDoesNotExist(_)) => return Ok(vec![None; keys.len()]),
                Err(error) => return Err(error.into()),
            };
            let mut read = Vec::with_capacity(keys.len());
            for key in keys {
                if matches!(key, Key::Crl(_) | Key::Heard(_) | Key::Presence(_)) {
                    let posted = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
                    read.push(posted.get(&key.name()).map(|(record, _)| record.clone()));
                    continue;
                }
                read.push(records.get(key.name().as_str())?.map(|record| record.value().to_owned()));
            }
            Ok(read)
        };
        Box::pin(async move { read().map_err(|error| doubt(&error)) })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> Answer<'a, String> {
        let claim = claim.clone();
        Box::pin(self.write(move |tables| tables.claim(&claim)))
    }

    fn bury<'a>(&'a self, key: &'a Key, record: &'a Sealed, keep_until: Time) -> Answer<'a, String> {
        let (key, record) = (key.clone(), record.clone());
        let claim = Claim { key, record, keep_until: Some(keep_until), index: None };
        Box::pin(self.write(move |tables| tables.claim(&claim)))
    }

    fn mint<'a>(&'a self, mint: &'a Mint) -> Answer<'a, Minted> {
        let mint = mint.clone();
        Box::pin(self.write(move |tables| tables.mint(&mint)))
    }

    fn renew<'a>(&'a self, renewing: &'a Renewing) -> Answer<'a, Renewed> {
        let renewing = renewing.clone();
        Box::pin(self.change(Hint::Task(renewing.id.clone()), move |tables| tables.renew(&renewing)))
    }

    fn amend<'a>(&'a self, amending: &'a Amending) -> Answer<'a, bool> {
        let amending = amending.clone();
        Box::pin(self.write(move |tables| tables.amend(&amending)))
    }

    fn end<'a>(&'a self, end: &'a Ending) -> Answer<'a, Option<Ended>> {
        let end = end.clone();
        Box::pin(self.change(Hint::Task(end.id.clone()), move |tables| tables.end(&end)))
    }

    fn confirm<'a>(&'a self, id: &'a TaskId, at: Time) -> Answer<'a, Time> {
        let id = id.clone();
        Box::pin(self.write(move |tables| tables.confirm(&id, at)))
    }

    fn changes(&self) -> broadcast::Receiver<Hint> {
        self.changes.subscribe()
    }

    fn count_tasks(&self, more: u64) -> Answer<'_, u64> {
        Box::pin(self.write(move |tables| tables.count_tasks(more)))
    }

    fn status_list(&self, list: u64) -> Answer<'_, Standing> {
        let read = move || -> Result<Standing, ::redb::Error> {
            let transaction = self.database.begin_read()?;
            match (transaction.open_table(COUNTERS), transaction.open_table(STATUS_LISTS)) {
                (Ok(counters), Ok(status_lists)) => Ok(steps::standing(&counters, &status_lists, list)?),
                (Err(TableError::TableDoesNotExist(_)), _) | (_, Err(TableError::TableDoesNotExist(_))) => {
                    Ok(Standing::default())
                }
                (Err(error), _) | (_, Err(error)) => Err(error.into()),
            }
        };
        Box::pin(async move { read().map_err(|error| doubt(&error)) })
    }

    /// One broker has the file, which has no copies.
    fn call<'a>(&'a self, _: &'a Calling) -> Answer<'a, Called> {
        Box::pin(std::future::ready(Ok(Called { incarnation: String::new(), roll: None })))
    }

    fn post<'a>(&'a self, records: &'a [(Key, Sealed, Time)]) -> Answer<'a, ()> {
        let now = self.clock.now();
        let mut posted = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
        posted.retain(|_, (_, keep_until)| *keep_until > now);
        for (key, record, keep_until) in records {
            posted.insert(key.name(), (record.0.clone(), *keep_until));
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn tell<'a>(&'a self, telling: &'a Telling) -> Answer<'a, ()> {
        let telling = telling.clone();
        Box::pin(self.write(move |tables| tables.tell(&telling)))
    }

    fn told<'a>(&'a self, id: &'a TaskId) -> Answer<'a, Vec<String>> {
        let read = move || -> Result<Vec<String>, ::redb::Error> {
            let transaction = self.database.begin_read()?;
            let timelines = match transaction.open_table(TIMELINES) {
                Ok(timelines) => timelines,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let range = timelines.range(steps::timeline(id.root_str()))?;
            range.map(|entry| Ok(entry?.1.value().to_owned())).collect()
        };
        Box::pin(async move { read().map_err(|error| doubt(&error)) })
    }

    fn log<'a>(&'a self, logging: &'a Logging) -> Answer<'a, ()> {
        let Logging { hint, record } = logging.clone();
        let keep_until = self.clock.now() + TimeDelta::hours(LOGGED_HOURS);
        Box::pin(self.change(hint, move |tables| tables.log(&record, keep_until)))
    }

    fn logged<'a>(&'a self, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<(String, String)>> {
        let read = move || -> Result<Vec<(String, String)>, ::redb::Error> {
            let transaction = self.database.begin_read()?;
            let log = match transaction.open_table(LOG) {
                Ok(log) => log,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let after = after.and_then(|after| after.parse::<u64>().ok()).map_or(Bound::Unbounded, Bound::Excluded);
            let range = log.range::<u64>((after, Bound::Unbounded))?.take(limit);
            range
                .map(|entry| {
                    entry.map(|(at, entry)| (at.value().to_string(), entry.value().to_owned())).map_err(Into::into)
                })
                .collect()
        };
        Box::pin(async move { read().map_err(|error| doubt(&error)) })
    }

    /// One broker has the file, from its start to its end.
    fn incarnation(&self) -> Answer<'_, String> {
        Box::pin(std::future::ready(Ok(String::new())))
    }

    fn list<'a>(&'a self, index: Index, before: Option<&'a str>, limit: usize) -> Answer<'a, Vec<String>> {
        let list = move || -> Result<Vec<String>, ::redb::Error> {
            let transaction = self.database.begin_read()?;
            let names = match transaction.open_table(NAMES) {
                Ok(names) => names,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let tag = steps::tag(index);
            let range = match before {
                Some(before) => names.range((tag, "")..(tag, before))?,
                None => names.range((tag, "")..(tag + 1, ""))?,
            };
            let page = range.rev().take(limit).map(|entry| Ok(entry?.0.value().1.to_owned()));
            page.collect()
        };
        Box::pin(async move { list().map_err(|error| doubt(&error)) })
    }
}

fn doubt(error: &::redb::Error) -> InDoubt {
    InDoubt(format!("the store's file: {error}"))
}

#[cfg(test)]
impl RedbStore {
    /// Writes a record over whatever is there, or removes it, as someone with access to the file could.
    pub(super) async fn tamper(&self, name: &str, record: Option<&str>) {
        let (name, record) = (name.to_owned(), record.map(str::to_owned));
        self.write(move |tables| tables.tamper(&name, record.as_deref())).await.expect("written");
    }

    /// Makes every counter of a task the largest there is.
    pub(super) async fn inflate(&self, id: &TaskId) {
        let id = id.clone();
        self.write(move |tables| tables.inflate(id.as_str())).await.expect("written");
    }
}
