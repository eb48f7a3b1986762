//! Some records of a log, with what it takes to prove them to somebody who has nothing but the public key.
//!
//! A run goes from any record to a signed checkpoint. What was asked for stands in it whole, everything else by its content alone
//! ([`super::chain`]): enough to compute the digest that was signed, and nothing to read. So a bundle proves that what it shows was
//! written, then and there. That it shows everything between the first and the last record that it proves, only a bundle without a
//! filter can prove; that nothing was before or after these, none can.
//!
//! Whose a task is that was declared at another broker, what is minted for it and its end say here: they name owner and workload.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use super::{
    chain::{Digest, Head, Record},
    checkpoint::{self, Checkpoint, CheckpointKeys},
    examine::{Fault, Verdict, examine},
};
use crate::{clock::Time, id::TaskId};

/// More records than any log has: JSON counts no further exactly (RFC 7493 section 2.2).
const MOST: u64 = 1 << 53;

/// What a bundle calls itself.
const FORMAT: &str = "remit-audit-bundle/1";

/// Which records are asked for: those that fit all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Of this task and its descendants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Of the tasks that this owner is accountable for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Of this workload, and of its tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Not before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

impl Selection {
    /// Whether it has to be known first whose tasks are whose: a record names its task, and another one, before or after it, whose it is.
    #[must_use]
    pub fn asks_whose(&self) -> bool {
        self.owner.is_some() || self.workload.is_some()
    }
}

/// What a task's instance alone does: whoever did it is the workload of the task.
const BY_ITS_OWN: [&str; 9] = [
    "task_declared",
    "credential_minted",
    "certificate_minted",
    "task_token_issued",
    "task_renewed",
    "mint_denied",
    "mint_refused",
    "renewal_denied",
    "renewal_refused",
];
/// What names the owner of its task: the declaration, and what another broker has on record of one that was declared there.
const NAMES_OWNER: [&str; 6] =
    ["task_declared", "credential_minted", "certificate_minted", "task_renewed", "task_ended", "end_replayed"];

/// Whose a task is, as far as records say.
#[derive(Debug, Default)]
struct Whose {
    owner: Option<String>,
    workload: Option<String>,
}

/// Goes through a log in order and knows whose tasks are whose.
#[derive(Debug)]
pub struct Selector<'a> {
    selection: &'a Selection,
    tasks: HashMap<TaskId, Whose>,
    unattributed: usize,
}

impl<'a> Selector<'a> {
    /// For a log that is gone through from its beginning.
    #[must_use]
    pub fn new(selection: &'a Selection) -> Self {
        Self { selection, tasks: HashMap::new(), unattributed: 0 }
    }

    /// Takes note of what a record says of whose its task is. Where the selection [asks whose](Selection::asks_whose), every record is
    /// to be given before any is judged.
    pub fn learn(&mut self, record: &Record) {
        if !self.selection.asks_whose() {
            return;
        }
        let (Some(event), Some(task)) = (record.text("event"), task_of(record)) else { return };
        let text = |member| record.text(member).map(str::to_owned);
        let owner = if NAMES_OWNER.contains(&event) { text("owner") } else { None };
        let by = BY_ITS_OWN.contains(&event).then(|| actor_workload(record).map(str::to_owned)).flatten();
        let workload = by.or_else(|| if NAMES_OWNER.contains(&event) { text("workload") } else { None });
        if owner.is_some() || workload.is_some() {
            let known = self.tasks.entry(task).or_default();
            known.owner = known.owner.take().or(owner);
            known.workload = known.workload.take().or(workload);
        }
    }

    /// Whether a record is one of those that were asked for.
    pub fn wants(&mut self, record: &Record) -> bool {
        self.learn(record);
        let Selection { task, owner, workload, since, until } = self.selection;
        let about = task_of(record);
        let within = task.as_ref().is_none_or(|task| about.as_ref().is_some_and(|about| task.covers(about)));
        let time = record.text("time").and_then(|time| time.parse::<Time>().ok());
        let from = since.is_none_or(|since| time.is_some_and(|time| time >= since));
        let to = until.is_none_or(|until| time.is_some_and(|time| time < until));
        if !(within && from && to) {
            return false;
        }
        let fits = |wanted: &Option<String>, said: Option<&str>| wanted.is_none() || wanted.as_deref() == said;
        if fits(owner, record.text("owner")) && fits(workload, actor_workload(record)) {
            return true;
        }
        let Some(about) = about else { return false };
        let known: Vec<_> = about.lineage().filter_map(|ancestor| self.tasks.get(&ancestor)).collect();
        let is_known = (owner.is_none() || known.iter().any(|whose| whose.owner.is_some()))
            && (workload.is_none() || known.iter().any(|whose| whose.workload.is_some()));
        self.unattributed += usize::from(!is_known);
        known.iter().any(|whose| fits(owner, whose.owner.as_deref()) && fits(workload, whose.workload.as_deref()))
    }

    /// How many records there were of tasks of which no record of this log says whose they are.
    #[must_use]
    pub fn unattributed(&self) -> usize {
        self.unattributed
    }
}

fn task_of(record: &Record) -> Option<TaskId> {
    record.text("task")?.parse().ok()
}

fn actor_workload(record: &Record) -> Option<&str> {
    record.members.get("actor")?["workload"].as_str()
}

/// Records, and their proof.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bundle {
    format: String,
    /// Which log.
    log: String,
    /// What was asked for.
    selection: Selection,
    /// When.
    exported_at: Time,
    /// The public keys of the log, for convenience: a verifier goes by its own.
    keys: Value,
    runs: Vec<Run>,
    /// How many more were asked for that no checkpoint covered yet: they are not in it.
    #[serde(default)]
    unsigned: usize,
    /// How many records are of tasks of which nothing in the log says whose they are: whether they were asked for cannot be told.
    #[serde(default)]
    unattributed: usize,
}

/// Records that follow each other.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    /// What the first one follows.
    after: Head,
    records: Vec<Shown>,
    /// The checkpoint of the last one; without one a run proves nothing.
    checkpoint: Option<String>,
}

/// A record of a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Shown {
    Content(Digest),
    Record(Map<String, Value>),
}

/// What a bundle proves.
#[derive(Debug, Default, Serialize)]
pub struct Proven {
    /// Which log.
    pub log: String,
    /// What was asked for.
    pub selection: Selection,
    /// The first record that it proves, shown or not; `None` where it proves none.
    pub first: Option<u64>,
    /// The last one.
    pub last: Option<u64>,
    /// How many records are shown.
    pub records: usize,
    /// How many others stand between them.
    pub others: usize,
    /// How many more no checkpoint covered when they were exported; they were left out, says the bundle.
    pub unsigned: usize,
    /// How many records are of tasks of which nothing in the log says whose they are, says the bundle.
    pub unattributed: usize,
}

impl Bundle {
    /// Takes what is asked for out of a log that is found to be good on the way, as far as it is signed: nothing else could be
    /// proven.
    ///
    /// # Errors
    /// As [`examine`].
    pub fn export(dir: &Path, keys: &CheckpointKeys, selection: &Selection, now: Time) -> Result<Self, Verdict> {
        let signed = signed(dir, keys)?;
        let published = std::fs::read_to_string(dir.join(checkpoint::KEYS)).ok();
        let mut selector = Selector::new(selection);
        if selection.asks_whose() {
            examine(dir, keys, &[], |record| selector.learn(record))?;
        }
        let (mut runs, mut run) = (Vec::new(), None::<Run>);
        let examined = examine(dir, keys, &[], |record| {
            let wanted = selector.wants(record);
            if run.is_none() && wanted {
                run = Some(Run { after: record.before(), records: Vec::new(), checkpoint: None });
            }
            if let Some(open) = &mut run {
                let shown =
                    if wanted { Shown::Record(record.members.clone()) } else { Shown::Content(record.content()) };
                open.records.push(shown);
                open.checkpoint = signed.get(&record.sequence).cloned();
            }
            if let Some(done) = run.take_if(|open| open.checkpoint.is_some()) {
                runs.push(done);
            }
        })?;
        let is_shown = |shown: &&Shown| matches!(shown, Shown::Record(_));
        let unsigned = run.map_or(0, |run| run.records.iter().filter(is_shown).count());
        Ok(Self {
            format: FORMAT.to_owned(),
            log: examined.log,
            selection: selection.clone(),
            exported_at: now,
            keys: published.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null),
            runs,
            unsigned,
            unattributed: selector.unattributed(),
        })
    }

    /// How many records are of tasks of which nothing in the log says whose they are.
    #[must_use]
    pub fn unattributed(&self) -> usize {
        self.unattributed
    }

    /// How many records were left out because no checkpoint covered them yet.
    #[must_use]
    pub fn unsigned(&self) -> usize {
        self.unsigned
    }

    /// Reads a bundle that claims to be one.
    #[must_use]
    pub fn read(text: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(text).ok().filter(|bundle| bundle.format == FORMAT)
    }

    /// Proves it, and hands every record that is shown to `each`.
    ///
    /// # Errors
    /// The first record that is not what was signed, or was not signed at all; or that is missing where every record was asked for.
    pub fn verify(&self, keys: &CheckpointKeys, mut each: impl FnMut(&Record)) -> Result<Proven, Verdict> {
        let mut proven = Proven {
            log: self.log.clone(),
            selection: self.selection.clone(),
            unsigned: self.unsigned,
            unattributed: self.unattributed,
            ..Proven::default()
        };
        for run in &self.runs {
            let mut head = run.after;
            let bad = |sequence, what: String| Fault { sequence, file: Path::new("").into(), what };
            if head.sequence > MOST {
                return Err(bad(head.sequence, "it begins after more records than a log can have".to_owned()).into());
            }
            if let Some(last) = proven.last {
                if head.sequence < last {
                    return Err(bad(head.sequence + 1, format!("record {} stands twice", head.sequence + 1)).into());
                }
                if head.sequence > last && self.selection == Selection::default() {
                    let what = format!(
                        "the records from {} to {} are missing: every one was asked for",
                        last + 1,
                        head.sequence
                    );
                    return Err(bad(last + 1, what).into());
                }
            }
            let mut shown = Vec::new();
            for item in &run.records {
                let next = head.sequence + 1;
                head = match item {
                    Shown::Content(content) => head.then(*content),
                    Shown::Record(members) => {
                        let record =
                            Record::of(members.clone()).map_err(|why| bad(next, format!("record {next}: {why}")))?;
                        let then = head.followed_by(&record);
                        let then = then.map_err(|broken| bad(broken.sequence(), broken.to_string()))?;
                        shown.push(record);
                        then
                    }
                };
            }
            let first = run.after.sequence + 1;
            let Some(text) = &run.checkpoint else {
                let what = format!(
                    "no checkpoint covers the records from {first} to {}: anybody can have written them",
                    head.sequence
                );
                return Err(bad(first, what).into());
            };
            let checkpoint = keys
                .verify(text)
                .map_err(|why| Verdict::Unread(format!("the checkpoint of record {}: {why}", head.sequence)))?;
            if checkpoint.head != head || checkpoint.log != self.log {
                let what = format!("the records from {first} to {} are not those that were signed", head.sequence);
                return Err(bad(first, what).into());
            }
            shown.iter().for_each(&mut each);
            if !run.records.is_empty() {
                proven.first = proven.first.or(Some(first));
                proven.last = Some(head.sequence);
            }
            proven.records += shown.len();
            proven.others += run.records.len() - shown.len();
        }
        Ok(proven)
    }
}

/// The checkpoints beside a log, as they are written, by the record that they name.
fn signed(dir: &Path, keys: &CheckpointKeys) -> Result<BTreeMap<u64, String>, Verdict> {
    let path = dir.join(checkpoint::FILE);
    let mut signed = BTreeMap::new();
    let each = |checkpoint: Checkpoint, line: &str| drop(signed.insert(checkpoint.head.sequence, line.to_owned()));
    let read = checkpoint::read(&path, keys, each);
    read.map_err(|error| Verdict::Unread(format!("{} cannot be read: {error}", path.display())))?;
    Ok(signed)
}
