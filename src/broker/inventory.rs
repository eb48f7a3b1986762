//! The inventory: which workloads there are, since when, for whom they work, and what they were refused.
//!
//! What a broker knows of the past is what its log says, so the log is read once, from its beginning, and from then on what is new;
//! after a restart it is the same. The store says what all brokers' workloads are doing now. The answer says how far both go.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Broker, Request, in_doubt,
    sight::{Gone, Look, Patience},
    whose::{Said, actor, parsed, text},
};
use crate::{
    audit::Reader,
    clock::Time,
    error::Error,
    lease::Held,
    party::Act,
    task::{Kind, State},
};

/// How many workloads are kept in mind; what is beyond is counted.
const MOST: usize = 20_000;
/// How many owners are named of one workload.
const OWNERS: usize = 32;
/// How many tasks of the store are looked at, and in how large steps.
const MOST_TASKS: usize = 20_000;
const STEP: usize = 200;

/// What is known of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Of which kinds it is, by the configuration of its attestors.
    pub kinds: BTreeSet<Kind>,
    /// For whom its tasks were declared.
    pub owners: BTreeSet<String>,
    /// Whether there are more owners.
    pub more_owners: bool,
    /// When it was seen first.
    pub first_seen: Time,
    /// When it was seen last.
    pub last_seen: Time,
    /// How many of its tasks are active.
    pub live_tasks: u64,
    /// How often policy refused it something.
    pub denials: u64,
}

/// A page of the inventory.
#[derive(Debug)]
pub struct Inventory {
    /// Workloads by their SPIFFE IDs, in order.
    pub workloads: Vec<(String, Workload)>,
    /// After which the next page begins; `None` at the end.
    pub next: Option<String>,
    /// How many tasks of the store were looked at.
    pub tasks: usize,
    /// Whether those were all.
    pub all_tasks: bool,
    /// Which log was read.
    pub log: String,
    /// The first of its records that was read, and the last; `None` where there was none.
    pub records: Option<(u64, u64)>,
    /// Whether the log goes on.
    pub all_records: bool,
    /// When the first of those records was written.
    pub since: Option<Time>,
    /// How many records are of workloads that there was no room for.
    pub left_out: u64,
}

/// What was read of the log so far.
#[derive(Default, Clone)]
pub(super) struct FromLog(Arc<Mutex<Read>>);

#[derive(Default)]
struct Read {
    workloads: BTreeMap<String, Workload>,
    first: Option<(u64, Time)>,
    last: u64,
    left_out: u64,
}

impl Workload {
    fn seen(at: Time) -> Self {
        Self {
            kinds: BTreeSet::new(),
            owners: BTreeSet::new(),
            more_owners: false,
            first_seen: at,
            last_seen: at,
            live_tasks: 0,
            denials: 0,
        }
    }

    fn was_seen(&mut self, at: Time) {
        self.first_seen = self.first_seen.min(at);
        self.last_seen = self.last_seen.max(at);
    }

    fn works_for(&mut self, owner: &str) {
        if self.owners.len() < OWNERS {
            self.owners.insert(owner.to_owned());
        } else {
            self.more_owners |= !self.owners.contains(owner);
        }
    }

    fn holds(&mut self, held: &Held, now: Time) {
        self.was_seen(held.task.created_at);
        self.kinds.insert(held.task.kind);
        self.works_for(&held.task.owner);
        self.live_tasks += u64::from(held.state(now) == State::Active);
    }

    fn did(&mut self, said: &Said, at: Time) {
        self.was_seen(at);
        let kind = said.get("considered").map(|considered| considered["attested"]["kind"].clone());
        self.kinds.extend(kind.and_then(|kind| serde_json::from_value::<Kind>(kind).ok()));
        match text(said, "event") {
            Some("task_declared") => {
                if let Some(owner) = text(said, "owner") {
                    self.works_for(owner);
                }
            }
            Some("declaration_denied" | "mint_denied" | "renewal_denied") => self.denials += 1,
            _ => {}
        }
    }
}

impl Read {
    /// Reads what is new, as far as one call goes.
    fn go_on(&mut self, reader: &Reader, patience: &Patience) -> io::Result<()> {
        let begin = self.last;
        for chapter in reader.chapters()?.iter().filter(|chapter| chapter.goes_past(begin)) {
            let read = reader.read(chapter, |sequence, line| {
                if sequence <= begin {
                    return ControlFlow::Continue(());
                }
                self.take(sequence, line);
                if patience.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if read.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, sequence: u64, line: &str) {
        self.last = sequence;
        if self.first.is_some() && !line.contains(r#""as":"workload""#) {
            return;
        }
        let Some(said) = parsed(line) else { return };
        let Some(at) = text(&said, "time").and_then(|time| time.parse::<Time>().ok()) else { return };
        self.first.get_or_insert((sequence, at));
        if said.get("actor").and_then(|actor| actor["as"].as_str()) != Some("workload") {
            return;
        }
        let Some(name) = actor(&said, "workload") else { return };
        if self.workloads.len() >= MOST && !self.workloads.contains_key(name) {
            self.left_out += 1;
            return;
        }
        self.workloads.entry(name.to_owned()).or_insert_with(|| Workload::seen(at)).did(&said, at);
    }
}

impl Broker {
    /// A page of the inventory, by name, after `after`: for operators.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`], [`Error::QuotaExceeded`], [`Error::Unavailable`].
    pub async fn workloads(
        &self,
        request: (Request, Gone),
        after: Option<&str>,
        limit: usize,
    ) -> Result<Inventory, Error> {
        let Look { patience, seat: _seat, .. } = self.look(request, None, (Act::ListWorkloads, "workloads")).await?;
        let (reader, from_log) = (self.parts.audit.reader(), self.inventory.0.clone());
        let log = reader.log().to_owned();
        let read = self.readers.read(&patience, move |patience| {
            let mut read = from_log.lock().unwrap_or_else(PoisonError::into_inner);
            read.go_on(&reader, patience)?;
            let all = read.last >= reader.last();
            Ok((read.workloads.clone(), read.first.map(|first| (first, read.last)), all, read.left_out))
        });
        let (mut workloads, records, all_records, left_out) = read.await?;
        let (tasks, all_tasks) = self.add_tasks(&mut workloads, &patience).await?;
        self.still_vouched().await?;
        let mut rest = workloads.into_iter().filter(|(name, _)| after.is_none_or(|after| name.as_str() > after));
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let next = rest.next().and_then(|_| page.last().map(|(name, _)| name.clone()));
        let since = records.map(|((_, time), _)| time);
        let records = records.map(|((first, _), last)| (first, last));
        Ok(Inventory { workloads: page, next, tasks, all_tasks, log, records, all_records, since, left_out })
    }

    /// Adds what the tasks of the store say: how many there are, and whether those were all.
    async fn add_tasks(
        &self,
        workloads: &mut BTreeMap<String, Workload>,
        patience: &Patience,
    ) -> Result<(usize, bool), Error> {
        let (mut before, mut looked_at) = (None, 0);
        while looked_at < MOST_TASKS {
            patience.still_waits()?;
            let (page, next) = self.parts.ledger.tasks(before.as_ref(), STEP).await.map_err(|why| in_doubt(&why))?;
            looked_at += page.len();
            let now = self.now();
            for held in &page {
                let name = held.task.workload.as_str();
                let known = workloads.entry(name.to_owned()).or_insert_with(|| Workload::seen(held.task.created_at));
                known.holds(held, now);
            }
            before = next;
            if before.is_none() {
                return Ok((looked_at, true));
            }
        }
        Ok((looked_at, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn line(workload: usize, event: &str, owner: &str) -> String {
        let actor = json!({"as": "workload", "workload": format!("spiffe://e.org/w/{workload}"), "instance": "1", "attestor": "a"});
        let said = json!({"time": "2026-11-21T09:30:00Z", "event": event, "owner": owner, "actor": actor,
            "considered": {"attested": {"kind": "ci"}}});
        said.to_string()
    }

    #[test]
    fn however_many_there_are_only_so_many_are_kept() {
        let mut read = Read::default();
        for at in 0..MOST + 10 {
            read.take(at as u64 + 1, &line(at, "mint_denied", "o"));
        }
        assert_eq!((read.workloads.len(), read.left_out), (MOST, 10));
        for at in 0..OWNERS + 5 {
            read.take(1, &line(0, "task_declared", &format!("owner-{at}")));
        }
        let first = &read.workloads["spiffe://e.org/w/0"];
        assert!(first.owners.len() == OWNERS && first.more_owners && first.denials == 1);
    }

    #[test]
    fn what_says_nothing_of_a_workload_adds_none() {
        let mut read = Read::default();
        let stranger = json!({"time": "2026-11-21T09:30:00Z", "event": "x", "actor": {"as": "stranger"},
            "why": "\"as\":\"workload\"", "workload": "spiffe://e.org/w/1"});
        for odd in ["", "{}", "[]", "\"as\":\"workload\"", &stranger.to_string(), &Value::Null.to_string()] {
            read.take(1, odd);
        }
        assert!(read.workloads.is_empty() && read.first.is_some());
    }
}
