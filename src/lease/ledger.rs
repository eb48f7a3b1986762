//! The typed face of the store: seals what goes in, believes nothing that comes out before its seal was checked.

mod certificates;
mod heard;
mod keys;
mod known;
mod leases;
mod locks;
mod log;
mod log_end;
mod marker;
mod members;
mod numbers;
mod once;
mod placed;
mod reports;
mod status;
mod timeline;

pub(super) use certificates::certificate_ends;
pub use certificates::{ListedCertificate, PostedCrl};
pub use keys::{PublishedKey, Retirement, StandingKey, Taint, TrustAnchor, Use, Vouched};
pub(super) use placed::placed_of;

use chrono::TimeDelta;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::broadcast;

use super::{
    Claim, Ended, Ending, Hint, InDoubt, Index, Key, Lease, Mint, Minted, Renewed, Renewing, Sealed, Store, StoreKey,
    Tally, measured::Measured, record::Sealer, redb::RedbStore, redis::RedisStore,
};
use crate::{
    clock::{Clock, Time},
    id::{self, LeaseId, TaskId},
    metrics::Metrics,
    notice::Notice,
    task::{End, Renewal, State, StatusIndex, Task},
};
use known::Known;
pub use leases::{AnyLease, LeaseEnd};
use locks::Watched;
pub use locks::{Expansion, StandingLocks};
pub use log::Position;
pub use log_end::LogEnd;
pub use marker::Entered;
use marker::Markers;
pub use members::{Account, Member, Roll};
pub use numbers::Span;
use numbers::{Numbers, Read};
pub use status::StatusBits;
use status::Taken;
pub use timeline::{Timeline, TimelineEvent};

/// How long a task is kept past its deadline, so that it can still be looked at.
const TASK_KEPT: TimeDelta = TimeDelta::hours(24);
/// How long a lease is kept past its expiry: more than any clock is expected to be wrong by.
pub(super) const LEASE_KEPT: TimeDelta = TimeDelta::hours(25);

/// The `[store]` section.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `redis://`, `rediss://`, or `redb:PATH`.
    pub url: String,
    /// The file with the MAC key, the same on every broker.
    pub mac_key_file: PathBuf,
    /// For how many seconds a broker that gives no sign of life is waited for, after the store may have lost something.
    #[serde(default = "broker_gone_after")]
    pub broker_gone_after: u32,
}

fn broker_gone_after() -> u32 {
    Config::BROKER_GONE_AFTER
}

impl fmt::Debug for Config {
    /// The URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("mac_key_file", &self.mac_key_file).finish_non_exhaustive()
    }
}

impl Config {
    /// [`Config::broker_gone_after`] where nothing is said.
    pub const BROKER_GONE_AFTER: u32 = 60;

    /// Checks what can be told before there is a store.
    ///
    /// # Errors
    /// A sentence that says what to change. It never holds the URL, which may hold a password.
    pub fn check(&self) -> Result<(), String> {
        if !(5..=86_400).contains(&self.broker_gone_after) {
            return Err("`store.broker_gone_after` is 5 to 86400 seconds".to_owned());
        }
        match self.url.split_once(':') {
            Some(("redb", path)) if !path.is_empty() => Ok(()),
            Some(("redis" | "rediss", _)) => RedisStore::check_url(&self.url),
            _ => Err(NO_STORE.to_owned()),
        }
    }
}

const NO_STORE: &str =
    "`store.url` is none of redb:PATH, redis://HOST[:PORT][/DB], rediss://USER:PASSWORD@HOST[:PORT][/DB]";

/// Leases, tasks and ends, over whichever store is configured. Cheap to clone.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    sealer: Sealer,
    marker: Markers,
    known: Known,
    /// Deadlines that renewals have set; what was once granted is never less.
    renewed: Cache<TaskId, Time>,
    taken: Taken,
    locks: Watched,
    /// What this process logs, and what it has read of others.
    numbers: Numbers,
    read: Read,
}

/// A task as it stands: what was declared, its deadline now, and the end that applies to it (its own or an ancestor's), if any.
#[derive(Debug, Clone)]
pub struct Held {
    /// What was declared.
    pub task: Arc<Task>,
    /// Its deadline: that of the latest renewal, if there was one.
    pub expires_at: Time,
    /// The end that applies.
    pub end: Option<End>,
}

impl Held {
    /// The state at `now`.
    #[must_use]
    pub fn state(&self, now: Time) -> State {
        State::of(self.end.as_ref(), self.expires_at, now)
    }
}

/// What came of writing a task or leases.
#[derive(Debug)]
pub enum Written {
    /// It is written.
    Done,
    /// The task to be declared exists; nothing was written.
    Exists,
    /// The task or an ancestor has ended; nothing was written.
    Ended(End),
    /// The task or an ancestor is not in the store; nothing was written.
    Missing,
}

/// How many deadlines are remembered.
const REMEMBERED: usize = 32 * 1024;
/// How often a renewal that another overtook is tried again: more than two at a time is nobody's use of it.
const RENEWAL_TRIES: usize = 4;

/// What an end came to.
#[derive(Debug)]
pub struct Stopped {
    /// The end that stands: the first one.
    pub end: End,
    /// The task, if the store has it.
    pub task: Option<Arc<Task>>,
    /// Its deadline, where the store has the task.
    pub expires_at: Option<Time>,
    /// What it took with it.
    pub tally: Tally,
    /// When it was first seen to be recorded: no verification that starts after it finds anything of the subtree alive.
    /// The same however often it is asked.
    pub effective_at: Time,
    /// Where it stands in public that the task has ended; `None` where the broker cannot tell which place is the task's, because it
    /// never saw the task or does not believe its record.
    pub status: Option<StatusIndex>,
}

/// What a retry under the same `Idempotency-Key` finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// The id that the task has, or will have.
    pub task: TaskId,
    /// SHA-256 of the request's body.
    pub body: String,
}

impl Ledger {
    /// Connects, refuses a store that could forget or that belongs to brokers with another key, and writes or reads its marker.
    /// `strict`: a configuration file asks for it, so that what would do for a trial will not do.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub async fn open(
        config: &Config,
        key: StoreKey,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        strict: bool,
    ) -> Result<Self, InDoubt> {
        let store: Arc<dyn Store> = match config.url.split_once(':') {
            Some(("redb", path)) if !path.is_empty() => Arc::new(RedbStore::open(Path::new(path), clock.clone())?),
            Some(("redis" | "rediss", _)) => Arc::new(RedisStore::open(&config.url, clock.clone(), strict).await?),
            _ => return Err(InDoubt(NO_STORE.to_owned())),
        };
        Self::over(Arc::new(Measured { store, metrics }), &key, clock).await
    }

    /// Over a store that is connected.
    pub(super) async fn over(store: Arc<dyn Store>, key: &StoreKey, clock: Arc<dyn Clock>) -> Result<Self, InDoubt> {
        let now = clock.now();
        let marker = Markers::claim(store.as_ref(), key, now).await?;
        let sealer = Sealer::new(key, marker.entered().generation, now);
        let log = id::random::<16>().map_err(|why| InDoubt(why.to_string()))?;
        Ok(Self(Arc::new(Inner {
            store,
            clock,
            sealer,
            marker,
            known: Known::default(),
            renewed: Cache::new(REMEMBERED),
            taken: Taken::default(),
            locks: Watched::default(),
            numbers: Numbers::new(id::hex(&log)),
            read: Read::default(),
        })))
    }

    /// The generation of the store: every credential carries it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.sealer.generation()
    }

    /// Whether the store answers and is still the one that was opened. Where it is of a later generation by now, so is this broker.
    ///
    /// # Errors
    /// When it is not, or cannot be told.
    pub async fn check(&self) -> Result<(), InDoubt> {
        let [marker, locks] = self.read([Key::Marker, Key::LocksChanged]).await?;
        self.0.locks.note(locks.as_deref());
        if let Some(generation) = self.0.marker.check(marker.as_deref())? {
            self.enter(generation);
        }
        Ok(())
    }

    /// Raises the generation of the store to `generation` at least: everything older is dead from then on, at whoever knows of it. Yields the
    /// generation that stands.
    ///
    /// # Errors
    /// When the store is in doubt, or is not the one that was opened.
    pub async fn raise(&self, generation: u64, reason: &str) -> Result<u64, InDoubt> {
        let raised = self.0.marker.raise(self.0.store.as_ref(), generation, (reason, self.0.clock.now())).await?;
        self.enter(raised);
        Ok(self.generation())
    }

    /// Which store this is, and of which generation.
    #[must_use]
    pub fn entered(&self) -> Entered {
        self.0.marker.entered()
    }

    /// Whether nobody had opened this store before.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.0.marker.is_new()
    }

    fn enter(&self, generation: u64) {
        self.0.sealer.raise(generation);
        // What was seen of an earlier generation is nothing of this one.
        self.0.known.clear();
        self.0.renewed.clear();
    }

    /// Which run of the store answers: another word after a restart, and after another server took its place, either of which may have
    /// lost what was written last.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn incarnation(&self) -> Result<String, InDoubt> {
        self.0.store.incarnation().await
    }

    /// Which of these tasks the store holds no end of, neither their own nor an ancestor's.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn not_ended(&self, tasks: &[TaskId]) -> Result<Vec<TaskId>, InDoubt> {
        let keys: Vec<Key> = tasks.iter().flat_map(|task| task.lineage().map(Key::End)).collect();
        let records = self.0.store.read(&keys).await?;
        let (mut missing, mut rest) = (Vec::new(), records.as_slice());
        for task in tasks {
            let (ends, others) = rest.split_at_checked(task.depth() + 1).ok_or_else(short)?;
            rest = others;
            let believed = ends.iter().flatten().any(|end| self.nearest(task, end).is_ok());
            if !believed {
                missing.push(task.clone());
            }
        }
        Ok(missing)
    }

    /// What was declared, from memory where it has been seen before: says nothing about an end.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn declared(&self, id: &TaskId) -> Result<Option<Arc<Task>>, InDoubt> {
        if let Some(task) = self.0.known.get(id) {
            return Ok(Some(task));
        }
        let [record] = self.read([Key::Task(id.clone())]).await?;
        record.map_or(Ok(None), |record| self.believe(id, &record))
    }

    /// What was declared, if that has been seen before.
    #[must_use]
    pub fn seen(&self, id: &TaskId) -> Option<Arc<Task>> {
        self.0.known.get(id)
    }

    /// Whether a task is known without asking the store.
    #[must_use]
    pub fn has_seen(&self, id: &TaskId) -> bool {
        self.0.known.get(id).is_some()
    }

    /// A task as it stands now.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn task(&self, id: &TaskId) -> Result<Option<Held>, InDoubt> {
        let records = self.0.store.read(&held_keys(id)).await?;
        self.held(id, &records)
    }

    /// A page of all tasks, newest first, strictly older than `before`, and the cursor of the next page (`None` at the end).
    /// A task whose record is not to be believed is left out, and logged: one bad record must not hide all the others.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn tasks(&self, before: Option<&TaskId>, limit: usize) -> Result<(Vec<Held>, Option<TaskId>), InDoubt> {
        let (held, next, _) = self.tasks_and_doubts(before, limit).await?;
        Ok((held, next))
    }

    /// The same, and which tasks were left out: for whoever must not take what is left out for what is not there.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn tasks_and_doubts(
        &self,
        before: Option<&TaskId>,
        limit: usize,
    ) -> Result<(Vec<Held>, Option<TaskId>, Vec<TaskId>), InDoubt> {
        let names = self.0.store.list(Index::Tasks, before.map(TaskId::as_str), limit).await?;
        let ids: Vec<TaskId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let keys: Vec<Key> = ids.iter().flat_map(held_keys).collect();
        let records = self.0.store.read(&keys).await?;
        let (mut held, mut doubts, mut rest) = (Vec::new(), Vec::new(), records.as_slice());
        for id in &ids {
            let (records, others) = rest.split_at_checked(held_keys(id).len()).ok_or_else(short)?;
            rest = others;
            match self.held(id, records) {
                Ok(task) => held.extend(task),
                Err(error) => {
                    tracing::error!(task = %id, %error, "left out of the list of tasks");
                    doubts.push(id.clone());
                }
            }
        }
        let next = if names.len() < limit { None } else { ids.into_iter().next_back() };
        Ok((held, next, doubts))
    }

    /// The tasks that this process has seen and has room to remember, each with its latest deadline that it knows of: whatever the store
    /// lists or says of them by now. Says nothing about an end.
    #[must_use]
    pub fn remembered(&self) -> Vec<(Arc<Task>, Time)> {
        let with_deadline = |task: Arc<Task>| {
            let deadline = self.0.renewed.get(&task.id).unwrap_or(task.expires_at);
            (task, deadline)
        };
        self.0.known.all().into_iter().map(with_deadline).collect()
    }

    /// Writes a task and its first leases, all or nothing.
    ///
    /// # Errors
    /// When the store is in doubt, or the task is of another generation than the store.
    pub async fn declare(&self, task: &Arc<Task>, leases: &[Lease]) -> Result<Written, InDoubt> {
        if task.generation != self.generation() {
            return Err(InDoubt("the task is of another generation than the store".into()));
        }
        let record = self.0.sealer.seal(&Key::Task(task.id.clone()), task.as_ref())?;
        self.write(task, Some(record), leases).await
    }

    /// Writes leases of a task, all or nothing, unless it or an ancestor has ended.
    ///
    /// # Errors
    /// When the store is in doubt, or the task's record is not the one that was decided on.
    pub async fn mint(&self, task: &Arc<Task>, leases: &[Lease]) -> Result<Written, InDoubt> {
        self.write(task, None, leases).await
    }

    /// A lease that is alive as far as the store knows: it is there and not dead by itself, so is its task, nothing in the lineage has
    /// ended, and the key `kid` that its credential is signed with is not tainted. Whether it has expired is for the caller to say.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn live(&self, task: &TaskId, lease: &LeaseId, kid: &str) -> Result<Option<(Lease, Held)>, InDoubt> {
        let lineage: Vec<TaskId> = task.lineage().collect();
        let key = Key::Lease(task.clone(), lease.clone());
        let dead = Key::LeaseEnd(task.clone(), lease.clone());
        let mut keys =
            vec![Key::LocksChanged, key.clone(), Key::Taint(kid.to_owned()), dead, Key::Renewal(task.clone())];
        keys.extend(lineage.iter().cloned().map(Key::Task));
        keys.extend(lineage.iter().cloned().map(Key::End));
        let records = self.0.store.read(&keys).await?;
        let ([locks, found, taint, dead, renewal, rest @ ..], true) = (records.as_slice(), records.len() == keys.len())
        else {
            return Err(short());
        };
        self.0.locks.note(locks.as_deref());
        let (tasks, ends) = rest.split_at(lineage.len());
        if let Some(end) = ends.iter().flatten().next_back() {
            return self.nearest(task, end).map(|_| None);
        }
        // Whatever it says, there is one.
        if taint.is_some() || dead.is_some() {
            return Ok(None);
        }
        let Some(found) = found else { return Ok(None) };
        let Some(found) = self.0.sealer.open_if_current::<Lease>(&key, found)? else { return Ok(None) };
        let mut own = None;
        for (id, record) in lineage.iter().zip(tasks) {
            let Some(record) = record else { return Ok(None) };
            own = self.believe(id, record)?;
            if own.is_none() {
                return Ok(None);
            }
        }
        let Some(own) = own else { return Ok(None) };
        let expires_at = self.deadline_of(&own, renewal.as_deref())?;
        Ok(Some((found, Held { task: own, expires_at, end: None })))
    }

    /// Leases, whatever became of their task; `None` where the store has none in this generation, or it is dead by itself.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn leases(&self, task: &TaskId, leases: &[LeaseId]) -> Result<Vec<Option<Lease>>, InDoubt> {
        let both =
            |lease: &LeaseId| [Key::Lease(task.clone(), lease.clone()), Key::LeaseEnd(task.clone(), lease.clone())];
        let keys: Vec<Key> = leases.iter().flat_map(both).collect();
        let records = self.0.store.read(&keys).await?;
        let open = |(keys, records): (&[Key], &[Option<String>])| match (keys, records) {
            ([key, _], [Some(record), None]) => self.0.sealer.open_if_current(key, record),
            _ => Ok(None),
        };
        keys.chunks_exact(2).zip(records.chunks_exact(2)).map(open).collect()
    }

    /// The deadline of a task: from memory where it is known to reach as far as `wanted`, else as it stands in the store.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn deadline(&self, task: &Task, wanted: Time) -> Result<Time, InDoubt> {
        let known = self.0.renewed.get(&task.id).unwrap_or(task.expires_at);
        if known >= wanted {
            return Ok(known);
        }
        let [renewal] = self.read([Key::Renewal(task.id.clone())]).await?;
        self.deadline_of(task, renewal.as_deref())
    }

    /// Extends the deadline of a task to `expires_at`, and yields the one that stands: it is never brought forward.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn renew(&self, task: &Task, at: Time, expires_at: Time) -> Result<(Written, Time), InDoubt> {
        let key = Key::Renewal(task.id.clone());
        for _ in 0..RENEWAL_TRIES {
            let [before] = self.read([key.clone()]).await?;
            let stands = self.deadline_of(task, before.as_deref())?;
            let later = stands.max(expires_at);
            let renewal = Renewal { task: task.id.clone(), at, expires_at: later };
            let step = Renewing {
                id: task.id.clone(),
                before,
                record: self.0.sealer.seal(&key, &renewal)?,
                kept_until: kept(stands, TASK_KEPT),
                keep_until: kept(later, TASK_KEPT),
            };
            let written = match self.0.store.renew(&step).await? {
                Renewed::Written(locks) => {
                    self.0.locks.note(locks.as_deref());
                    self.0.renewed.insert(task.id.clone(), later);
                    Written::Done
                }
                Renewed::Ended(end) => Written::Ended(self.nearest(&task.id, &end)?),
                Renewed::Missing => Written::Missing,
                Renewed::Changed => continue,
            };
            return Ok((written, later));
        }
        Err(InDoubt("a task is being renewed too often at once".into()))
    }

    /// Hints at what changed ([`Store::changes`]).
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Hint> {
        self.0.store.changes()
    }

    /// Records an end. `None`: the store has no such task, and `unseen` did not allow for that.
    ///
    /// # Errors
    /// When the store is in doubt; it may or may not have been recorded. Asked again, it yields what then stands.
    pub async fn end(&self, end: &End, keep_until: Time, unseen: bool) -> Result<Option<Stopped>, InDoubt> {
        self.end_and_log(end, keep_until, unseen, None).await
    }

    /// The same, and tells all brokers before the end counts as effective.
    ///
    /// # Errors
    /// As [`Ledger::end`], and when they may not have been told.
    pub async fn end_and_log(
        &self,
        end: &End,
        keep_until: Time,
        unseen: bool,
        log: Option<&Notice>,
    ) -> Result<Option<Stopped>, InDoubt> {
        let record = self.0.sealer.seal(&Key::End(end.task.clone()), end)?;
        // In memory as a rule. What was declared never changes, so neither does the place of its status. The places of tasks below
        // it are their own, and are set by whoever signs a list, however many there are ([`Ledger::places_below`]).
        let status = self.declared(&end.task).await.ok().flatten().map(|task| task.status);
        let mut step = Ending { id: end.task.clone(), end: record, keep_until, unseen, status };
        let Some(Ended { end: standing, task, renewal, tally }) = self.0.store.end(&step).await? else {
            return Ok(None);
        };
        let standing = self.nearest(&end.task, &standing)?;
        let believed = task.map_or(Ok(None), |task| self.believe(&end.task, &task));
        // What it was does not change that it has ended.
        let task = believed.unwrap_or_else(|error| {
            tracing::error!(task = %end.task, %error, "ended a task whose record is not to be believed");
            None
        });
        if let (None, Some(task)) = (step.status, &task) {
            // It was declared between the two looks. The end that stands now stays; this sets the bit.
            step.status = Some(task.status);
            self.0.store.end(&step).await?;
        }
        if let Some(notice) = log {
            self.log_notice(notice).await?;
        }
        // `standing.at` was read before the step, and something may have been found alive until the step was done.
        let seen = self.0.store.confirm(&standing.task, self.0.clock.now()).await?;
        // Earlier than that it cannot have been: what says so was written by someone else, or by a clock that is behind.
        let effective_at = seen.max(standing.at);
        // Where it cannot be told, nobody may take the task for over before its end is.
        let expires_at = task.as_ref().and_then(|task| self.deadline_of(task, renewal.as_deref()).ok());
        Ok(Some(Stopped { end: standing, task, expires_at, tally, effective_at, status: step.status }))
    }

    /// Remembers what an `Idempotency-Key` (by its digest) stood for, and yields what it stands for: the first one.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn remember(
        &self,
        digest: &str,
        remembered: Remembered,
        keep_until: Time,
    ) -> Result<Remembered, InDoubt> {
        // What a retry stood for in an earlier generation is dead.
        let key = Key::Idempotency(format!("{digest}.{}", self.generation()));
        let record = self.0.sealer.seal(&key, &remembered)?;
        let claim = Claim { key, record, keep_until: Some(keep_until), index: None };
        let standing = self.0.store.claim(&claim).await?;
        self.0.sealer.open(&claim.key, &standing)
    }

    async fn write(&self, task: &Arc<Task>, record: Option<Sealed>, leases: &[Lease]) -> Result<Written, InDoubt> {
        let id = &task.id;
        let mut sealed = Vec::with_capacity(leases.len());
        for lease in leases {
            if lease.task != *id {
                return Err(InDoubt("a lease of another task".into()));
            }
            let key = Key::Lease(id.clone(), lease.id.clone());
            sealed.push((lease.id.clone(), self.0.sealer.seal(&key, lease)?, kept(lease.expires_at, LEASE_KEPT)));
        }
        let latest_expiry = leases.iter().map(|lease| lease.expires_at.timestamp()).max().unwrap_or_default();
        let keep_task_until = kept(task.expires_at, TASK_KEPT);
        let listed = leases.iter().filter_map(placed::listing).collect();
        let (id, leases) = (id.clone(), sealed);
        self.carry_out(task, Mint { id, task: record, keep_task_until, leases, latest_expiry, listed }).await
    }

    async fn carry_out(&self, task: &Arc<Task>, step: Mint) -> Result<Written, InDoubt> {
        let id = &task.id;
        match self.0.store.mint(&step).await? {
            Minted::Written { lineage, locks } => {
                self.0.locks.note(locks.as_deref());
                self.relied_on(task, &lineage)
            }
            Minted::Exists => Ok(Written::Exists),
            Minted::Ended(end) => self.nearest(id, &end).map(Written::Ended),
            Minted::Missing => Ok(Written::Missing),
        }
    }

    /// Checks every record that a step of the store relied on: what it wrote is of no use to anyone before that.
    fn relied_on(&self, task: &Arc<Task>, records: &[String]) -> Result<Written, InDoubt> {
        if records.len() != task.id.depth() + 1 {
            return Err(short());
        }
        let mut own = None;
        for (id, record) in task.id.lineage().zip(records) {
            own = self.believe(&id, record)?;
            if own.is_none() {
                return Ok(Written::Missing);
            }
        }
        match own {
            Some(own) if Arc::ptr_eq(&own, task) || own == *task => Ok(Written::Done),
            _ => Err(InDoubt("the task in the store is not the one that was decided on".into())),
        }
    }

    fn believe(&self, id: &TaskId, record: &str) -> Result<Option<Arc<Task>>, InDoubt> {
        self.0.known.believe(&self.0.sealer, id, record)
    }

    /// The end in a record that stands under `id` or an ancestor of it.
    fn nearest(&self, id: &TaskId, record: &str) -> Result<End, InDoubt> {
        let mut ends = id.lineage().filter_map(|id| self.0.sealer.open_of_any_generation(&Key::End(id), record).ok());
        ends.next().ok_or_else(|| InDoubt("the record of an end is not to be believed".into()))
    }

    /// What [`held_keys`] were read for.
    fn held(&self, id: &TaskId, records: &[Option<String>]) -> Result<Option<Held>, InDoubt> {
        let [record, renewal, ends @ ..] = records else { return Err(short()) };
        let Some(record) = record else { return Ok(None) };
        let Some(task) = self.believe(id, record)? else { return Ok(None) };
        let end = ends.iter().flatten().next_back();
        let end = end.map(|end| self.nearest(id, end)).transpose()?;
        let expires_at = self.deadline_of(&task, renewal.as_deref())?;
        Ok(Some(Held { task, expires_at, end }))
    }

    /// The deadline of a task, given the record of its renewal: that one, or a later one that is known here, for a record can be put back.
    fn deadline_of(&self, task: &Task, renewal: Option<&str>) -> Result<Time, InDoubt> {
        let known = self.0.renewed.get(&task.id).unwrap_or(task.expires_at);
        let Some(renewal) = renewal else { return Ok(known) };
        let renewal = self.0.sealer.open_if_current::<Renewal>(&Key::Renewal(task.id.clone()), renewal)?;
        let Some(renewal) = renewal.filter(|renewal| renewal.expires_at > known) else { return Ok(known) };
        self.0.renewed.insert(task.id.clone(), renewal.expires_at);
        Ok(renewal.expires_at)
    }

    async fn read<const N: usize>(&self, keys: [Key; N]) -> Result<[Option<String>; N], InDoubt> {
        self.0.store.read(&keys).await?.try_into().map_err(|_| short())
    }
}

/// A task, its renewal, and the ends that apply to it, root first.
fn held_keys(id: &TaskId) -> Vec<Key> {
    [Key::Task(id.clone()), Key::Renewal(id.clone())].into_iter().chain(id.lineage().map(Key::End)).collect()
}

fn kept(from: Time, longer: TimeDelta) -> Time {
    from.checked_add_signed(longer).unwrap_or(from)
}

fn short() -> InDoubt {
    InDoubt("the store answered less than it was asked for".into())
}
