//! The timeline of a task: what all brokers have on record about it, told again in the store.
//!
//! Records go there once they are durable here: in order, in the background, from one queue that has an end. Nothing waits for it,
//! and what finds no room is counted and left out; the audit logs stay the truth. How far the log was told is noted beside it, so that
//! a broker tells what the one before did not live to tell.

use futures_util::stream::{self, StreamExt as _};
use quick_cache::sync::Cache;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Broker, Request, in_doubt};
use crate::{
    audit::{Audit, Recorded, Told},
    error::{Error, Input},
    id::TaskId,
    lease::{Timeline, TimelineEvent},
    party::Act,
};

/// How many records may wait to be told.
const QUEUE: usize = 8192;
/// How many are told in one go, and of how many trees at a time.
const BATCH: usize = 1024;
const TREES_AT_ONCE: usize = 64;
/// For how long after some were told more are gathered, unless a reader waits: so of one tree many are told in one step of the store.
const GATHERED: Duration = Duration::from_millis(100);
/// How often it is tried where the store is there.
const TRIES: u32 = 3;
/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long a reader waits for what was on record here before; and how often what was left out is told of.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of how many trees it is known what was told last, and of how many what was left out.
const TREES: usize = 32 * 1024;
const SHORT_TREES: usize = 1024;
/// How large an event may be, in octets: a timeline of a thousand is read in one piece.
const EVENT: usize = 3 * 1024;
/// What others do about a task without changing it, and how many of each a tree is told by one broker: whoever looks at a task, or is
/// turned away from it, again and again pushes nothing that happened to it out of its timeline.
const ASIDES: [&str; 3] = ["looked", "operator_refused", "evidence_refused"];
const MOST_ASIDES: u32 = 50;
/// What a workload is refused, which it can have as often as it likes: so many of each a tree is told one by one by one broker, and then
/// the hundredth, the thousandth and so on, each with its count. The audit log has them all.
const REFUSALS: [&str; 7] = [
    "declaration_denied",
    "mint_denied",
    "mint_refused",
    "renewal_denied",
    "renewal_refused",
    "report_refused",
    "locked_out",
];
const MOST_REFUSALS: u32 = 50;
/// A report that comes when the task is over counts as one too.
const REPORTED: &str = "reported";

/// What waits to be told.
pub(super) struct Untold {
    queue: mpsc::Sender<Message>,
    /// What was on record before, and what comes; until somebody tells.
    messages: Mutex<Option<(VecDeque<Message>, mpsc::Receiver<Message>)>>,
    /// Told when a reader waits.
    asked: Notify,
    short: Arc<Short>,
    /// `None` where it cannot be noted.
    told: Option<Told>,
}

/// What was heard of each tree so far: the number of its last record, and how often what can come again and again.
struct Heard {
    last: Cache<TaskId, u64>,
    repeated: Cache<(TaskId, &'static str), u32>,
}

/// A record that belongs in a timeline.
#[derive(Debug, PartialEq, Eq)]
struct News {
    /// How often the like of it was on record by then, where it stands for others.
    times: Option<u32>,
}

impl Default for Heard {
    fn default() -> Self {
        Self { last: Cache::new(TREES), repeated: Cache::new(TREES) }
    }
}

/// How many records of a tree were left out, and are not told of yet.
#[derive(Default)]
struct Short(Mutex<HashMap<TaskId, u64>>);

enum Message {
    /// A record, the one before it of the same tree, and for how many it stands.
    Record(Recorded, Option<u64>, News),
    /// Somebody waits until all before it was told.
    Reader(oneshot::Sender<()>),
}

impl Short {
    fn leave_out(&self, tree: TaskId, count: u64) {
        let mut short = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Beyond that many the gaps have to show by themselves: the next event names the one before it.
        if short.len() < SHORT_TREES || short.contains_key(&tree) {
            *short.entry(tree).or_default() += count;
        }
    }

    fn take(&self) -> HashMap<TaskId, u64> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Untold {
    /// Reads what is in the log, and listens to it from now on.
    pub(super) fn of(audit: &Audit) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE);
        let short = Arc::<Short>::default();
        let heard = Heard::default();
        let told =
            audit.told().inspect_err(|why| tracing::warn!(%why, "it is not known what timelines were told")).ok();
        let before = read_past(audit, &heard, told.as_ref()).unwrap_or_else(|why| {
            tracing::warn!(%why, "what timelines were not told of is not known");
            VecDeque::new()
        });
        let messages = Mutex::new(Some((before, messages)));
        let untold = Self { queue: queue.clone(), messages, asked: Notify::new(), short: short.clone(), told };
        audit.tell(move |record| {
            let tree = tree_of(&record.task);
            let Some(news) = heard.news(&tree, &record.line) else { return };
            // One that finds no room counts too: so the next one shows that it is missing.
            let after = heard.follow(&tree, record.sequence);
            if queue.try_send(Message::Record(record, after, news)).is_err() {
                short.leave_out(tree, 1);
            }
        });
        untold
    }

    /// Notes that this was told, or left out.
    fn note(&self, sequence: u64) {
        if let Some(told) = &self.told
            && let Err(why) = told.note(sequence)
        {
            tracing::warn!(%why, "what timelines were told is not noted: a broker that dies tells it again");
        }
    }
}

impl Broker {
    /// What happened to a task and everything below it, on all brokers; for whoever may see the task.
    ///
    /// # Errors
    /// As [`Broker::show`].
    pub async fn timeline(&self, request: Request, id: &TaskId) -> Result<Timeline, Error> {
        let seen = self.see(request, id, (Act::ShowTimeline, "timeline")).await;
        // A store that forgot everything knows no tasks either, and is no reason to say that there was none.
        if matches!(seen, Err(Error::NotFound(_))) && !self.watch().await {
            return Err(Error::Unavailable(Input::Store));
        }
        seen?;
        self.all_told().await;
        self.parts.ledger.timeline(id).await.map_err(|why| in_doubt(&why))
    }

    /// Waits, for a while, until all is told that was on record here before.
    pub(super) async fn all_told(&self) {
        let (told, answer) = oneshot::channel();
        if self.untold.queue.try_send(Message::Reader(told)).is_ok() {
            self.untold.asked.notify_one();
            // What is told later is in the next answer.
            let _ = timeout(PATIENCE, answer).await;
        }
    }

    /// Tells what is on record until `stop`, and then what was on record before. To be run once, beside everything else.
    pub async fn tell(&self, stop: CancellationToken) {
        let messages = self.untold.messages.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((mut before, mut messages)) = messages else { return };
        while !before.is_empty() {
            let batch = before.drain(..before.len().min(BATCH)).collect();
            self.tell_all(batch, &stop).await;
        }
        let mut batch = Vec::new();
        loop {
            let stopping = stop.is_cancelled();
            let received = tokio::select! {
                received = timeout(PATIENCE, messages.recv_many(&mut batch, BATCH)), if !stopping => received.unwrap_or(0),
                () = stop.cancelled() => std::iter::from_fn(|| messages.try_recv().ok()).map(|message| batch.push(message)).count(),
            };
            self.tell_all(std::mem::take(&mut batch), &stop).await;
            if stopping && received == 0 {
                return;
            }
            if received < BATCH {
                let _ = timeout(GATHERED, stop.run_until_cancelled(self.untold.asked.notified())).await;
            }
        }
    }

    async fn tell_all(&self, batch: Vec<Message>, stop: &CancellationToken) {
        let (mut trees, mut readers) = (HashMap::<TaskId, Vec<TimelineEvent>>::new(), Vec::new());
        let mut last = None;
        for message in batch {
            match message {
                Message::Record(record, after, News { times }) => {
                    let tree = tree_of(&record.task);
                    last = Some(record.sequence);
                    match event(record, (after, times), self.parts.audit.log()) {
                        Some(event) => trees.entry(tree).or_default().push(event),
                        None => self.untold.short.leave_out(tree, 1),
                    }
                }
                Message::Reader(reader) => readers.push(reader),
            }
        }
        let each = |(tree, events)| self.tell_of(tree, events, stop);
        stream::iter(trees).for_each_concurrent(TREES_AT_ONCE, each).await;
        if let Some(last) = last {
            self.untold.note(last);
        }
        for (tree, count) in self.untold.short.take() {
            let marker = self.left_out(&tree, count);
            if self.parts.ledger.tell(&tree, &[marker]).await.is_err() {
                self.untold.short.leave_out(tree, count);
            }
        }
        for reader in readers {
            // Whoever asked may have gone.
            let _ = reader.send(());
        }
    }

    async fn tell_of(&self, tree: TaskId, mut events: Vec<TimelineEvent>, stop: &CancellationToken) {
        // Whoever asks for made-up ids fills no store with them.
        let made_up = events.iter().all(|event| is_an_aside(&event.said));
        if made_up && matches!(self.parts.ledger.declared(&tree).await, Ok(None)) {
            events.clear();
        }
        let mut tries = 0;
        while let Err(why) = self.parts.ledger.tell(&tree, &events).await {
            // While the store is out of reach, what comes waits in the queue.
            tries += u32::from(self.watch().await || stop.is_cancelled());
            if tries >= TRIES {
                tracing::warn!(%why, task = %tree, count = events.len(), "left out of the timeline");
                self.untold.short.leave_out(tree, events.len() as u64);
                return;
            }
            let _ = timeout(AGAIN, stop.cancelled()).await;
        }
    }

    fn left_out(&self, tree: &TaskId, count: u64) -> TimelineEvent {
        let said = [("event", json!("left_out")), ("count", json!(count)), ("actor", json!({"as": "broker"}))];
        TimelineEvent {
            time: self.now(),
            task: tree.clone(),
            log: self.parts.audit.log().to_owned(),
            sequence: None,
            after: None,
            said: said.map(|(name, value)| (name.to_owned(), value)).into_iter().collect(),
        }
    }
}

/// Finds in the log what came last in each tree, and what no timeline was told of, as far back as there is room for.
fn read_past(audit: &Audit, heard: &Heard, told: Option<&Told>) -> io::Result<VecDeque<Message>> {
    let (mut untold, mut end) = (VecDeque::new(), 0);
    let before = told.and_then(|told| told.before);
    audit.past(|record| {
        end = record.sequence;
        let tree = tree_of(&record.task);
        let Some(news) = heard.news(&tree, &record.line) else { return };
        let after = heard.follow(&tree, record.sequence);
        if before.is_some_and(|before| record.sequence > before) {
            if untold.len() == QUEUE {
                untold.pop_front();
            }
            untold.push_back(Message::Record(record, after, news));
        }
    })?;
    // Where nothing was noted, a broker told whatever it told that noted nothing.
    match told {
        Some(told) if before.is_none() => told.note(end)?,
        _ => {}
    }
    Ok(untold)
}

impl Heard {
    /// Whether a record belongs in the timeline. What was done as it was meant to be says nothing new; nor does one more of many.
    fn news(&self, tree: &TaskId, line: &str) -> Option<News> {
        if line.contains(r#""event":"settled","#) && line.contains(r#""outcome":"done","#) {
            return None;
        }
        let Some(event) = repeated(line) else { return Some(News { times: None }) };
        let key = (tree.clone(), event);
        let count = self.repeated.get(&key).unwrap_or_default().saturating_add(1);
        self.repeated.insert(key, count);
        if ASIDES.contains(&event) {
            return (count <= MOST_ASIDES).then_some(News { times: None });
        }
        let stands_for_others = count > MOST_REFUSALS && is_power_of_ten(count);
        (count <= MOST_REFUSALS || stands_for_others).then_some(News { times: stands_for_others.then_some(count) })
    }

    /// Notes a record as the last of its tree: the one before it.
    fn follow(&self, tree: &TaskId, sequence: u64) -> Option<u64> {
        let after = self.last.get(tree);
        self.last.insert(tree.clone(), sequence);
        after
    }
}

/// As which of the events a record counts that can come again and again.
fn repeated(line: &str) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Named {
        event: String,
        #[serde(default)]
        late: bool,
    }
    let all = || ASIDES.into_iter().chain(REFUSALS).chain([REPORTED]);
    // Few lines hold the word; what a workload said may, and makes none of its records another.
    let may_be = all().any(|event| line.contains(event));
    let named: Named = may_be.then(|| serde_json::from_str(line).ok()).flatten()?;
    all().find(|event| *event == named.event && (named.late || *event != REPORTED))
}

fn is_power_of_ten(mut number: u32) -> bool {
    while number >= 10 && number.is_multiple_of(10) {
        number /= 10;
    }
    number == 1
}

fn tree_of(task: &TaskId) -> TaskId {
    task.lineage().next().unwrap_or_else(|| task.clone())
}

fn is_an_aside(said: &Map<String, Value>) -> bool {
    ASIDES.iter().any(|aside| said.get("event").is_some_and(|event| event == aside))
}

/// The copy of a record; `None` where it cannot be read.
fn event(record: Recorded, (after, times): (Option<u64>, Option<u32>), log: &str) -> Option<TimelineEvent> {
    let Recorded { task, sequence, line } = record;
    let mut said: Map<String, Value> = serde_json::from_str(&line).ok()?;
    let time = said.remove("time")?.as_str()?.parse().ok()?;
    for elsewhere in ["task", "sequence", "previous"] {
        said.remove(elsewhere);
    }
    // Each member is in the line as it is in the event.
    if line.len() > EVENT {
        shorten(&mut said);
    }
    if let Some(times) = times {
        said.insert("times".to_owned(), times.into());
    }
    Some(TimelineEvent { time, task, log: log.to_owned(), sequence: Some(sequence), after, said })
}

/// Leaves out the largest members until the rest is small enough, and says which.
fn shorten(said: &mut Map<String, Value>) {
    let size = |value: &Value| value.to_string().len();
    let mut left_out = Vec::new();
    let mut all: usize = said.iter().map(|(name, value)| name.len() + size(value) + 4).sum();
    while all > EVENT {
        let largest = said.iter().filter(|(name, _)| *name != "event").max_by_key(|(_, value)| size(value));
        let Some(name) = largest.map(|(name, _)| name.clone()) else { break };
        all -= said.remove(&name).map_or(0, |value| size(&value) + name.len() + 4);
        left_out.push(Value::from(name));
    }
    if !left_out.is_empty() {
        said.insert("left_out".to_owned(), Value::from(left_out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    #[test]
    fn an_event_is_small_and_says_what_it_leaves_out() {
        let long: Vec<String> = (0..100).map(|at| format!("https://service-{at}.example.com")).collect();
        let Value::Object(mut said) = json!({"event": "task_declared", "purpose": "p", "authority": long}) else {
            panic!()
        };
        shorten(&mut said);
        assert_eq!(Value::Object(said), json!({"event": "task_declared", "purpose": "p", "left_out": ["authority"]}));
    }

    #[test]
    fn of_what_is_left_out_no_more_is_kept_than_a_bound() {
        let short = Short::default();
        let ids: Vec<_> = (0..SHORT_TREES + 5).map(|_| TaskId::root(SystemClock.now()).unwrap()).collect();
        for _ in 0..2 {
            for id in &ids {
                short.leave_out(id.clone(), 2);
            }
        }
        let taken = short.take();
        assert!(taken.len() == SHORT_TREES && taken[&ids[0]] == 4 && short.take().is_empty());
    }

    #[test]
    fn no_tree_is_told_more_of_the_same_than_a_bound() {
        let heard = Heard::default();
        let (tree, other) = (TaskId::root(SystemClock.now()).unwrap(), TaskId::root(SystemClock.now()).unwrap());
        let line = |event: &str| json!({"event": event, "by": {"event": "looked", "at": "looked"}}).to_string();
        for aside in ASIDES {
            let told = (0..2000).filter(|_| heard.news(&tree, &line(aside)).is_some()).count();
            assert_eq!(told, MOST_ASIDES as usize, "{aside}");
            assert!(heard.news(&other, &line(aside)).is_some());
        }
        // Refusals are counted on, and every tenfold is told.
        let late = json!({"event": REPORTED, "late": true}).to_string();
        for refusal in REFUSALS.map(line).into_iter().chain([late]) {
            let told: Vec<_> = (0..20_000).filter_map(|_| heard.news(&tree, &refusal)).collect();
            assert!(told[..50].iter().all(|news| news.times.is_none()), "{refusal}");
            let times: Vec<_> = told[50..].iter().map(|news| news.times).collect();
            assert_eq!(times, [Some(100), Some(1000), Some(10_000)], "{refusal}");
        }
        // Whatever it says of itself, what happened to a task is told.
        assert!((0..2000).all(|_| heard.news(&tree, &line("task_declared")) == Some(News { times: None })));
        assert!((0..2000).all(|_| heard.news(&tree, &line(REPORTED)).is_some()), "in time");
    }
}
