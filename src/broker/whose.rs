//! Whose a task is, for those who go through the log: a record names its task, and the declaration alone says who is accountable for
//! it. Blocking, as the log is.

use chrono::TimeDelta;
use serde_json::{Map, Value};
use std::{collections::HashMap, ops::ControlFlow};
use tokio::runtime::Handle;

use crate::{audit::Reader, id::TaskId, lease::Ledger, task::Task};

/// Of how many tasks it is known at a time.
const KNOWN: usize = 16 * 1024;
/// How many tasks that the store holds no more are looked for in the log, in one call.
const LOOKS: usize = 64;

/// What a record says.
pub(super) type Said = Map<String, Value>;

/// What is known of a task, from its declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) owner: String,
    pub(super) workload: String,
    pub(super) instance: String,
    pub(super) attestor: String,
    pub(super) sandbox: Option<String>,
}

/// Tells whose tasks are whose: by declarations that were come across, by the store, and by the log where the store holds a task no more.
pub(super) struct Whose {
    ledger: Ledger,
    reader: Reader,
    runtime: Handle,
    known: HashMap<TaskId, Option<Facts>>,
    looks: usize,
    /// Whether the store has failed: it is not waited for again and again.
    store_gone: bool,
}

impl From<&Task> for Facts {
    fn from(task: &Task) -> Self {
        Self {
            owner: task.owner.clone(),
            workload: task.workload.to_string(),
            instance: task.instance.clone(),
            attestor: task.attestor.clone(),
            sandbox: task.runs_in().map(str::to_owned),
        }
    }
}

/// The sandbox of what was considered: the one that evidence bound it to, else the declared one ([`Task::runs_in`]).
pub(super) fn sandbox_of(considered: &Value) -> Option<&str> {
    ["attested", "declared"].into_iter().find_map(|group| considered[group]["sandbox"].as_str())
}

impl Facts {
    /// What a declaration says; `None` for any other record.
    pub(super) fn of(said: &Said) -> Option<Self> {
        if said.get("event")? != "task_declared" {
            return None;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (actor, considered) = (said.get("actor")?, said.get("considered")?);
        Some(Self {
            owner: text(said.get("owner")?)?,
            workload: text(&actor["workload"])?,
            instance: text(&actor["instance"])?,
            attestor: text(&actor["attestor"])?,
            sandbox: sandbox_of(considered).map(str::to_owned),
        })
    }
}

impl Whose {
    /// To be used within the runtime.
    pub(super) fn new(ledger: Ledger, reader: Reader) -> Self {
        let runtime = Handle::current();
        Self { ledger, reader, runtime, known: HashMap::new(), looks: 0, store_gone: false }
    }

    /// Takes note of a record that was come across.
    pub(super) fn note(&mut self, said: &Said) {
        if let (Some(facts), Some(task)) = (Facts::of(said), task_of(said)) {
            self.keep(task, Some(facts));
        }
    }

    /// What is known of a task, or of the root of its tree; `None` where this broker can't tell.
    pub(super) fn of(&mut self, task: &TaskId) -> Option<Facts> {
        if let Some(known) = self.known.get(task) {
            return known.clone();
        }
        let root = task.lineage().next().filter(|root| root != task);
        let mut facts = self.in_store(task);
        if facts.is_none() {
            facts = match &root {
                Some(root) => self.of(root),
                None => self.in_log(task),
            };
        }
        self.keep(task.clone(), facts.clone());
        facts
    }

    fn keep(&mut self, task: TaskId, facts: Option<Facts>) {
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        self.known.insert(task, facts);
    }

    fn in_store(&mut self, task: &TaskId) -> Option<Facts> {
        if self.store_gone {
            return None;
        }
        match self.runtime.block_on(self.ledger.declared(task)) {
            Ok(task) => task.as_deref().map(Facts::from),
            Err(why) => {
                tracing::warn!(%why, "the store is in doubt: whose a task is, the log says alone");
                self.store_gone = true;
                None
            }
        }
    }

    /// A root names the moment of its declaration, and so the segment that it stands in.
    fn in_log(&mut self, task: &TaskId) -> Option<Facts> {
        self.looks += 1;
        let declared = task.declared_at().filter(|_| self.looks <= LOOKS)?;
        let until = declared.checked_add_signed(TimeDelta::minutes(1))?;
        for chapter in self.reader.chapters().ok()? {
            if !chapter.may_hold(Some(declared), Some(until)) {
                continue;
            }
            let found = self.reader.read(&chapter, |_, line| {
                if !line.contains(task.as_str()) || !line.contains(r#""event":"task_declared""#) {
                    return ControlFlow::Continue(());
                }
                match parsed(line).filter(|said| task_of(said).as_ref() == Some(task)) {
                    Some(said) => ControlFlow::Break(Facts::of(&said)),
                    None => ControlFlow::Continue(()),
                }
            });
            if let Ok(ControlFlow::Break(facts)) = found {
                return facts;
            }
        }
        None
    }
}

/// A line of the log.
pub(super) fn parsed(line: &str) -> Option<Said> {
    serde_json::from_str(line).ok()
}

/// Which task a record is about.
pub(super) fn task_of(said: &Said) -> Option<TaskId> {
    said.get("task")?.as_str()?.parse().ok()
}

/// A member that is text.
pub(super) fn text<'a>(said: &'a Said, member: &str) -> Option<&'a str> {
    said.get(member)?.as_str()
}

/// Something that the actor of a record is said to be.
pub(super) fn actor<'a>(said: &'a Said, member: &str) -> Option<&'a str> {
    said.get("actor")?[member].as_str()
}
