//! Some records of a log, with what it takes to prove them to somebody who has nothing but the public key.
//!
//! A run goes from any record to a signed checkpoint. What was asked for stands in it whole, everything else by its content alone
//! ([`super::chain`]): enough to compute the digest that was signed, and nothing to read. So a bundle proves that what it shows was
//! written, then and there. That it shows everything, only a bundle without a filter can prove.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use super::{
    chain::{Digest, Head, Record},
    checkpoint::{self, Checkpoint, CheckpointKeys},
    examine::{Fault, Verdict, examine},
};
use crate::{clock::Time, id::TaskId};

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

/// Goes through a log in order and knows whose tasks are whose.
#[derive(Debug)]
pub struct Selector<'a> {
    selection: &'a Selection,
    /// The tasks of the owner and the workload that were asked for.
    tasks: HashSet<TaskId>,
}

impl<'a> Selector<'a> {
    /// For a log that is gone through from its beginning.
    #[must_use]
    pub fn new(selection: &'a Selection) -> Self {
        Self { selection, tasks: HashSet::new() }
    }

    /// Whether a record is one of those that were asked for.
    pub fn wants(&mut self, record: &Record) -> bool {
        let Selection { task, owner, workload, since, until } = self.selection;
        let about: Option<TaskId> = record.text("task").and_then(|task| task.parse().ok());
        let by = record.members.get("actor").and_then(|actor| actor["workload"].as_str());
        let owned = owner.as_ref().is_none_or(|owner| record.text("owner") == Some(owner));
        let acted = workload.as_ref().is_none_or(|workload| by == Some(workload));
        if owned
            && acted
            && let Some(about) = &about
            && record.text("event") == Some("task_declared")
        {
            self.tasks.insert(about.clone());
        }
        let known = about.as_ref().is_some_and(|about| about.lineage().any(|ancestor| self.tasks.contains(&ancestor)));
        let whose = known || owned && acted;
        let within = task.as_ref().is_none_or(|task| about.as_ref().is_some_and(|about| task.covers(about)));
        let time = record.text("time").and_then(|time| time.parse::<Time>().ok());
        let from = since.is_none_or(|since| time.is_some_and(|time| time >= since));
        let to = until.is_none_or(|until| time.is_some_and(|time| time < until));
        whose && within && from && to
    }
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
    /// How many records are shown.
    pub records: usize,
    /// How many others stand between them.
    pub others: usize,
    /// How many more no checkpoint covered when they were exported; they were left out, says the bundle.
    pub unsigned: usize,
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
        })
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
    /// The first record that is not what was signed, or was not signed at all.
    pub fn verify(&self, keys: &CheckpointKeys, mut each: impl FnMut(&Record)) -> Result<Proven, Verdict> {
        let mut proven = Proven {
            log: self.log.clone(),
            selection: self.selection.clone(),
            unsigned: self.unsigned,
            ..Proven::default()
        };
        let mut last = 0;
        for run in &self.runs {
            let mut head = run.after;
            let bad = |sequence, what: String| Fault { sequence, file: Path::new("").into(), what };
            if head.sequence < last {
                return Err(bad(head.sequence + 1, format!("record {} stands twice", head.sequence + 1)).into());
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
            last = head.sequence;
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
