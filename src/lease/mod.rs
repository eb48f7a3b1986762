//! Leases: the broker's record of every credential, and of the tasks they belong to and the ends of those.
//!
//! The store is not trusted. Every record carries a MAC over its type, key, generation, sequence and body ([`Sealed`]), and
//! what a script relied on comes back with its answer and is checked here before anything is signed. A record is
//! immutable; validity is the absolute expiry in its body, and the store's own expiry is garbage collection.
//!
//! All keys of a tree of tasks carry the root's id as hash tag, so one atomic step of the store can hold them all.

mod ledger;
mod measured;
mod record;
mod redb;
mod redis;
mod store_key;
#[cfg(test)]
mod tests;

pub use ledger::{
    Account, AnyLease, Config, Entered, Expansion, Held, LeaseEnd, Ledger, ListedCertificate, LogEnd, Member, Position,
    PostedCrl, PublishedKey, Remembered, Retirement, Roll, Span, StandingKey, StandingLocks, StatusBits, Stopped,
    Taint, Timeline, TimelineEvent, TrustAnchor, Use, Vouched, Written,
};
pub use record::{Key, Sealed};
pub use store_key::StoreKey;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::broadcast;

use crate::{
    claims::Confirmation,
    clock::Time,
    id::{BrokerName, LeaseId, Location, TaskId},
    task::{CredentialType, Privilege, StatusIndex},
};

/// The record of one credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Its id: the `jti`.
    pub id: LeaseId,
    /// The task it belongs to.
    pub task: TaskId,
    /// The one audience.
    pub resource: Location,
    /// The one privilege.
    pub privilege: Privilege,
    /// The form of the credential.
    pub kind: CredentialType,
    /// When it was minted, a whole second.
    pub issued_at: Time,
    /// When it ends, a whole second.
    pub expires_at: Time,
    /// The key that it is bound to, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_to: Option<Confirmation>,
    /// Where its status stands in public by itself; `None`: where that of its task does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusIndex>,
}

/// The record of one certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateLease {
    /// Its id: the serial.
    pub id: LeaseId,
    /// The task it belongs to.
    pub task: TaskId,
    /// The key id of the authority that signs it.
    pub authority: String,
    /// SHA-256 of the public key (DER) in lower-case hexadecimal.
    pub key: String,
    /// When it was minted, a whole second.
    pub issued_at: Time,
    /// When it ends, a whole second.
    pub expires_at: Time,
}

/// The store did not answer, or answered something that is not to be believed. Nothing may be concluded from it.
/// The text is for the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InDoubt(pub String);

/// How many hints are held for a reader that is slow. One that lost some looks for itself.
const HINTS: usize = 1024;

/// What an asynchronous call of a [`Store`] yields.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, InDoubt>>;

/// Where leases are kept. Two implementations: Redis, and an embedded file (redb). Records are opaque text to it.
///
/// Every method MUST be atomic, MUST be durable before it answers as far as the store can be (redb: fsync; Redis: as it is
/// configured), MUST answer or fail within a few seconds, and MUST answer [`InDoubt`] rather than guess.
pub trait Store: Send + Sync {
    /// The records under `keys`, in order; `None` where there is none. The one method that may span trees; it is not a snapshot.
    fn read<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<String>>>;

    /// Writes a record unless there is one, and yields the one that stands afterwards. MUST list it first where it has an index.
    fn claim<'a>(&'a self, claim: &'a Claim) -> Answer<'a, String>;

    /// Writes a record that says that something is dead, unless there is one, and yields the one that stands afterwards. MUST NOT fail for
    /// want of memory where the store can help it.
    fn bury<'a>(&'a self, key: &'a Key, record: &'a Sealed, keep_until: Time) -> Answer<'a, String>;

    /// Writes leases (and the task itself, where [`Mint::task`] has a record) unless the task or an ancestor has ended
    /// or is missing. MUST list them first where they are listed. Where the task is to be written and exists already, MUST write nothing.
    /// What it wrote, it MUST have written before it looks at [`Key::LocksChanged`].
    fn mint<'a>(&'a self, mint: &'a Mint) -> Answer<'a, Minted>;

    /// Replaces the renewal of a task, unless the task or an ancestor has ended or is missing, or another renewal stands than
    /// [`Renewing::before`]. MUST keep the task, and what is counted of it, as long as the renewal. MUST look at [`Key::LocksChanged`] after it.
    fn renew<'a>(&'a self, renewing: &'a Renewing) -> Answer<'a, Renewed>;

    /// Replaces a record, if [`Amending::before`] is what stands there: whether it did. Where it is [`Amending::urgent`], MUST NOT fail for
    /// want of memory where the store can help it.
    fn amend<'a>(&'a self, amending: &'a Amending) -> Answer<'a, bool>;

    /// Records the end of a task unless it or an ancestor has one. MUST NOT fail for want of memory where the store can help it,
    /// MUST NOT fail for what stands in a counter, and MUST cost the same whatever the number of credentials. MUST set the bit of
    /// [`Ending::status`] first, also where an end stands, and keep it as long as the end at least.
    fn end<'a>(&'a self, end: &'a Ending) -> Answer<'a, Option<Ended>>;

    /// Notes when the end that stands for `id` was seen to be recorded, unless that was noted before; yields the instant that
    /// stands. A counter: for people, never for decisions. MUST be collected with the end, and MUST NOT fail for want of memory
    /// where the store can help it. What stands there and is no instant counts as not noted.
    fn confirm<'a>(&'a self, id: &'a TaskId, at: Time) -> Answer<'a, Time>;

    /// What changed, on whichever broker, as soon as it is known. Hints: some get lost, and whoever can write to the store can make
    /// some up.
    fn changes(&self) -> broadcast::Receiver<Hint>;

    /// Counts `more` tasks that are to be declared, and yields how many were counted before. A counter.
    fn count_tasks(&self, more: u64) -> Answer<'_, u64>;

    /// A status list as it stands, with the bits that [`Store::end`] has set in it.
    fn status_list(&self, list: u64) -> Answer<'_, Standing>;

    /// Writes records over whatever stands there: what a broker publishes anew every few seconds. It need not outlast the store's
    /// process, but whoever shares the store MUST find it.
    fn post<'a>(&'a self, records: &'a [(Key, Sealed, Time)]) -> Answer<'a, ()>;

    /// Writes what a broker says of itself over what it said before, and yields what all of them said until then, and which run of the store
    /// that was.
    /// Where there is a [`Calling::patience`], answers when whatever was written before is on another machine as well, where the store has
    /// copies on other machines, and MUST fail where it has, and none of them has it in time. It need not outlast the store's process.
    fn call<'a>(&'a self, calling: &'a Calling) -> Answer<'a, Called>;

    /// Adds records to the timeline of a tree, after those that are there, and drops what is above `TIMELINE` between the first
    /// `TIMELINE_FIRST` and the newest. MUST keep the
    /// timeline for as long as the latest of these says. What stands in its place and is no timeline makes room.
    fn tell<'a>(&'a self, telling: &'a Telling) -> Answer<'a, ()>;

    /// The records of the timeline of the tree of `id`, oldest first.
    fn told<'a>(&'a self, id: &'a TaskId) -> Answer<'a, Vec<String>>;

    /// Adds a record to the log of notices, after those that are there, and hints at it. MUST keep it for `LOGGED_HOURS`, and MUST NOT fail
    /// for want of memory where the store can help it. What stands in its place and is no log makes room.
    fn log<'a>(&'a self, logging: &'a Logging) -> Answer<'a, ()>;

    /// The records of the log of notices after a position, oldest first, each with its own; `None`: all.
    fn logged<'a>(&'a self, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<(String, String)>>;

    /// Which run of which server answers: another word after a restart, and after another server took its place.
    fn incarnation(&self) -> Answer<'_, String>;

    /// A page of an index, newest first, of names strictly older than `before`. MUST drop names whose record was collected.
    fn list<'a>(&'a self, index: Index, before: Option<&'a str>, limit: usize) -> Answer<'a, Vec<String>>;
}

/// One step that calls the roll of brokers.
#[derive(Debug, Clone)]
pub struct Calling {
    /// Who calls.
    pub broker: BrokerName,
    /// What it says of itself.
    pub record: Sealed,
    /// Who is on the roll no more.
    pub gone: Vec<BrokerName>,
    /// How long copies on other machines are waited for; `None`: they are not.
    pub patience: Option<Duration>,
    /// Whether to hint at it: who calls asks the others something.
    pub hint: bool,
}

/// What came of a [`Calling`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// Which run of which server answered ([`Store::incarnation`]).
    pub incarnation: String,
    /// The names on the roll, and what they say; `None`: nobody else can be on the store.
    pub roll: Option<Vec<(String, String)>>,
}

/// How many records a timeline holds.
const TIMELINE: usize = 1000;
/// How many of them are the first ones, which stay whatever comes.
const TIMELINE_FIRST: usize = 100;

/// One step that adds to a timeline.
#[derive(Debug, Clone)]
pub struct Telling {
    /// Of the tree of this task.
    pub tree: TaskId,
    /// What is added, at least one.
    pub records: Vec<Sealed>,
    /// Until when the timeline is kept.
    pub keep_until: Time,
}

/// A hint at what changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// This task ended, or was renewed, or a credential of it is dead.
    Task(TaskId),
    /// Something that is not about one task.
    Wide,
}

impl Hint {
    /// As it is sent.
    fn as_str(&self) -> &str {
        match self {
            Hint::Task(id) => id.as_str(),
            Hint::Wide => "*",
        }
    }

    /// As it was sent; `None` for what no broker sends.
    fn read(text: &str) -> Option<Self> {
        if text == "*" { Some(Hint::Wide) } else { text.parse().ok().map(Hint::Task) }
    }
}

/// How long the log of notices holds a record, in hours: whatever it is about has expired long before.
const LOGGED_HOURS: i64 = 72;

/// One step that adds to the log of notices.
#[derive(Debug, Clone)]
pub struct Logging {
    /// What the hint says.
    pub hint: Hint,
    /// What is added.
    pub record: Sealed,
}

/// Names that the store can list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// Task ids, which sort by the time of declaration.
    Tasks,
    /// Key ids of the brokers' signing keys.
    Keys,
    /// Certificates, which sort by the time of their end.
    Certificates,
    /// Key ids of the signing keys that are tainted.
    Taints,
    /// Tokens that have a place of their own in the status lists, which sort by their tasks, and those of a task by their end.
    Placed,
}

/// A record that is written once.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Where.
    pub key: Key,
    /// What.
    pub record: Sealed,
    /// Until when the store must keep it; `None`: for good.
    pub keep_until: Option<Time>,
    /// Where it is listed, and by what name.
    pub index: Option<(Index, String)>,
}

/// One step that mints.
#[derive(Debug, Clone)]
pub struct Mint {
    /// The task.
    pub id: TaskId,
    /// Its record, where it is being declared.
    pub task: Option<Sealed>,
    /// Until when the task is kept.
    pub keep_task_until: Time,
    /// The leases to write.
    pub leases: Vec<(LeaseId, Sealed, Time)>,
    /// The latest expiry among the leases (Unix seconds; 0 where there is none).
    pub latest_expiry: i64,
    /// Where what is minted is listed, by what name, and until when at least.
    pub listed: Vec<(Index, String, Time)>,
}

/// What came of a [`Mint`].
#[derive(Debug)]
pub enum Minted {
    /// It was written.
    Written {
        /// The records of the lineage, root first, as they stood in that step.
        lineage: Vec<String>,
        /// The record of [`Key::LocksChanged`], as it stood in that step or later.
        locks: Option<String>,
    },
    /// The task to be declared exists; nothing was written.
    Exists,
    /// The task or an ancestor has ended; the record of that end. Nothing was written.
    Ended(String),
    /// The task or an ancestor is not in the store. Nothing was written.
    Missing,
}

/// One step that renews a task.
#[derive(Debug, Clone)]
pub struct Renewing {
    /// The task.
    pub id: TaskId,
    /// The renewal that was read, if there was one.
    pub before: Option<String>,
    /// The record of the new one.
    pub record: Sealed,
    /// Until when the task was to be kept so far.
    pub kept_until: Time,
    /// Until when it is to be kept now.
    pub keep_until: Time,
}

/// What came of a [`Renewing`].
#[derive(Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It was written. The record of [`Key::LocksChanged`], as it stood in that step or later.
    Written(Option<String>),
    /// Another renewal came first. Nothing was written.
    Changed,
    /// The task or an ancestor has ended; the record of that end. Nothing was written.
    Ended(String),
    /// The task or an ancestor is not in the store. Nothing was written.
    Missing,
}

/// One step that replaces a record.
#[derive(Debug, Clone)]
pub struct Amending {
    /// Where.
    pub key: Key,
    /// The record that was read, if there was one.
    pub before: Option<String>,
    /// The new one.
    pub record: Sealed,
    /// Until when it is kept, the same for every record under this key; `None`: for good.
    pub keep_until: Option<Time>,
    /// Whether it keeps something out.
    pub urgent: bool,
}

/// One step that ends a task.
#[derive(Debug, Clone)]
pub struct Ending {
    /// The task.
    pub id: TaskId,
    /// The record of its end.
    pub end: Sealed,
    /// Until when it is kept.
    pub keep_until: Time,
    /// Whether to record the end of a task that the store has never seen.
    pub unseen: bool,
    /// Where the task's status stands in public, where that is known.
    pub status: Option<StatusIndex>,
}

/// A status list as it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many tasks were counted so far, in all lists.
    pub tasks: u64,
    /// The bits, the lowest bit of an octet first; what is missing at the end is not set.
    pub octets: Vec<u8>,
}

/// What came of an [`Ending`]. `None` in its place: the task is not in the store, and nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The end that stands: this one, or the one that was there.
    pub end: String,
    /// The task's record, if the store has it.
    pub task: Option<String>,
    /// The record of its latest renewal, if it has one.
    pub renewal: Option<String>,
    /// Counted when the end was first recorded, and the same ever after.
    pub tally: Tally,
}

/// What an end took with it. Counters, which carry no MAC: for people, never for decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Tasks of the subtree that had not ended before.
    pub ended_tasks: u64,
    /// Credentials ever minted in the subtree.
    pub credentials: u64,
    /// The latest expiry of any of them (Unix seconds; 0 where there is none).
    pub latest_expiry: i64,
}
