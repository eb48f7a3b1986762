//! Appends to the log and syncs it in groups: whoever arrives while a sync is under way shares the next one.
//!
//! What a reader may rely on: an acknowledged entry is on disk, whole, on a line of its own, numbered without gaps, and
//! the entries of one call stand together and in order. The log may hold more than was done (the broker died, or gave
//! up waiting, between the write and the act), never less.
//!
//! Two failures differ. A *write* that fails (disk full) changed nothing that cannot be cut off again, so the next group
//! may try again. A *sync* that fails is final: the kernel may already have dropped the pages and would call the next
//! sync a success, so nothing written since the last good one is known to exist. Then the log takes no more entries
//! until the broker is started again and has read what is really there.

use serde::Serialize;
use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Builder, JoinHandle, Thread},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Actor, Class, Copied, Entry, Event, Reader, Recorded, Span, Unrecorded, Urgency,
    chain::{Head, Unplaced},
    checkpoint::Signer,
    past::{self, Told},
    reader::began,
    retention::{Steady, kept_for},
    segment::{self, GROUP, Medium, Opened, Segment, Unturned, is_full},
    stream::Stream,
    witness::{Ending, Judged, Remembered, Witness, judge},
};
use crate::{
    clock::{Clock, Time},
    failpoint::{Step, reached},
    id::{TaskId, hex, random},
    jose::SigningKey,
    metrics::Metrics,
};

/// How long a caller waits for its entries to be durable, and how long the disk may take before it counts as stuck.
const DEADLINE: Duration = Duration::from_secs(5);

/// Calls that may wait for the writer; more wait for a place, within the same deadline.
const QUEUE: usize = 4096;

/// Room on the disk that is taken before it is needed, in bytes, so that the end of a task is on record when the disk is full.
const RESERVE: u64 = 1 << 20;

/// How much of that is there for whoever ends what is theirs. How that went is on record in the rest, which is enough for it many times over.
const FOR_THEIR_OWN: u64 = RESERVE / 4;

/// How long after it did not work another segment is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// For how long what says how it went waits for others that it can go to disk with, so that it does not cost a sync of its own.
const LINGER: Duration = Duration::from_millis(5);

/// How much more is taken at a time, where there is room.
const AHEAD: u64 = 4 << 20;

/// Whoever is told of records.
type Listener = Box<dyn Fn(Recorded) + Send + Sync>;

/// Whoever sends them on.
type Copier = Box<dyn Fn(Copied<'_>) + Send + Sync>;

/// Who is told of what is on disk.
#[derive(Default)]
struct Listeners {
    records: OnceLock<Listener>,
    copies: OnceLock<Copier>,
}

/// How the log is kept.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Signs the checkpoints.
    pub key: SigningKey,
    /// For how long it is kept, and in which pieces.
    pub keeping: Keeping,
    /// Whether records go to standard output too.
    pub stdout: bool,
    /// Where it is counted.
    pub metrics: Metrics,
}

/// For how long a log is kept, and in which pieces: what may change while it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Keeping {
    /// How often the log is signed, if there is something new, in seconds.
    pub checkpoint_every: u32,
    /// How long a segment may become, in bytes, before the next one is begun.
    pub segment_bytes: u64,
    /// How old a segment may become, in seconds, before the next one is begun.
    pub segment_age: u32,
    /// How old the last record of a segment has to be before the segment is removed, in seconds; `None`: nothing is.
    pub retention: Option<u64>,
    /// Whether nothing is removed all the same.
    pub legal_hold: bool,
}

/// The open log. Cheap to clone; the file is closed, and free for another broker, when the last clone is dropped.
#[derive(Clone)]
pub struct Audit {
    writer: Arc<Handle>,
}

/// A log that was opened, and is not written on yet.
pub struct Found {
    dir: PathBuf,
    opened: Opened,
}

impl Found {
    /// Opens (or makes) the log in `dir`, which becomes readable by its owner alone. A tail that a crash left incomplete
    /// is cut off: none of it was acknowledged.
    ///
    /// # Errors
    /// When the directory cannot be written, another broker has the log open, or the files are not a log of ours.
    pub fn open(dir: &Path) -> Result<Self, Unrecorded> {
        Ok(Self { dir: dir.to_owned(), opened: segment::open(dir)? })
    }

    /// Writes on.
    ///
    /// # Errors
    /// When the log is not the one that is remembered, or that was signed.
    pub fn go_on(self, terms: Terms, clock: Arc<dyn Clock>, remembered: Remembered) -> Result<Audit, Unrecorded> {
        let Self { dir, opened } = self;
        Audit::start(&dir, opened, |growing| growing, terms, clock, (DEADLINE, remembered))
    }
}

impl Audit {
    /// Opens (or makes) a log that nothing is remembered of.
    #[cfg(test)]
    pub(super) fn open(dir: &Path, terms: Terms, clock: Arc<dyn Clock>) -> Result<Self, Unrecorded> {
        Found::open(dir)?.go_on(terms, clock, Remembered::default())
    }

    /// Appends the entries, in order and together, and returns once they are on disk: where they are.
    ///
    /// # Errors
    /// When they could not be made durable; then nothing that depends on them may be done. They may turn up in the log
    /// all the same.
    pub async fn record(&self, entries: &[Entry]) -> Result<Span, Unrecorded> {
        let lines = encode(entries)?;
        if entries.is_empty() {
            return Ok(Span(0, 0));
        }
        let writer = &*self.writer;
        if writer.is_stuck() {
            return Err(stuck(writer.deadline));
        }
        let (done, answer) = oneshot::channel();
        let urgency = entries.iter().map(Entry::urgency).min().unwrap_or(Urgency::None);
        let commit = async {
            let queue = writer.queue.as_ref().ok_or_else(gone)?;
            queue
                .send(Message::Record(Call { lines, urgency, done: Some(done), lingers: false }))
                .await
                .map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        tokio::time::timeout(writer.deadline, commit).await.unwrap_or_else(|_| Err(stuck(writer.deadline)))
    }

    /// Appends an entry with the next group, and waits for nothing: for what nobody depends on.
    pub fn note(&self, entry: Entry) {
        let lingers = matches!(entry.event, Event::Settled { .. });
        let noted = encode(&[entry]).and_then(|lines| {
            let queue = self.writer.queue.as_ref().ok_or_else(gone)?;
            let call = Call { lines, urgency: Urgency::None, done: None, lingers };
            queue.try_send(Message::Record(call)).map_err(|_| Unrecorded("the audit writer has too much to do".into()))
        });
        if let Err(why) = noted {
            tracing::warn!(%why, "an audit record was left out");
        }
    }

    /// Keeps the log like that from now on, which is on record. A hold holds even where that fails.
    ///
    /// # Errors
    /// When it cannot be recorded: then nothing else changes.
    pub async fn keep(&self, keeping: Keeping) -> Result<(), Unrecorded> {
        let writer = &*self.writer;
        let (done, answer) = oneshot::channel();
        let kept = async {
            let queue = writer.queue.as_ref().ok_or_else(gone)?;
            queue.send(Message::Keep(keeping, done)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        tokio::time::timeout(writer.deadline, kept).await.unwrap_or_else(|_| Err(stuck(writer.deadline)))
    }

    /// Lets the writer do what is due: a checkpoint, another segment, the end of an old one.
    pub fn tick(&self) {
        // A writer that has no room for this is busy, and looks after every group.
        let _ = self.writer.queue.as_ref().map(|queue| queue.try_send(Message::Tick));
    }

    /// The last checkpoint, signed, whenever there is a new one.
    #[must_use]
    pub fn checkpoints(&self) -> watch::Receiver<Option<String>> {
        self.writer.checkpoints.clone()
    }

    /// How the log ends: every record up to there is on disk.
    #[must_use]
    pub fn ending(&self) -> Ending {
        let head = *self.writer.head.lock().unwrap_or_else(PoisonError::into_inner);
        Ending { log: self.writer.reader.log.clone(), head }
    }

    /// Tells `listener` of every record about a task from now on, in order, once it is on disk and before whoever waits for it
    /// hears so. It must not block: the log waits for it. There is one listener, the first.
    pub fn tell(&self, listener: impl Fn(Recorded) + Send + Sync + 'static) {
        let _ = self.writer.listeners.records.set(Box::new(listener));
    }

    /// Shows `copier` every record from now on, in order, once it is on disk. It must not block either, and is the first that is given.
    pub fn copy(&self, copier: impl Fn(Copied<'_>) + Send + Sync + 'static) {
        let _ = self.writer.listeners.copies.set(Box::new(copier));
    }

    /// Hands the records about tasks that are on disk to `each`, in order, as far back as is read in a moment.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn past(&self, each: impl FnMut(Recorded)) -> io::Result<()> {
        past::read(&self.writer.reader.dir, each)
    }

    /// How far the log was told elsewhere.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn told(&self) -> io::Result<Told> {
        Told::open(&self.writer.reader.dir, &self.writer.reader.log)
    }

    /// The log's name.
    #[must_use]
    pub fn log(&self) -> &str {
        &self.writer.reader.log
    }

    /// What reads the log back.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.writer.reader.clone()
    }

    /// Whether the log still takes entries. After a failed write it says no for as long as a caller would wait, then
    /// yes, so that the next caller tries again; after a failed sync it says no until the broker is started again.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let writer = &*self.writer;
        let alive = writer.queue.as_ref().is_some_and(|queue| !queue.is_closed());
        alive
            && match *writer.condition.lock().unwrap_or_else(PoisonError::into_inner) {
                Condition::Good => true,
                Condition::Committing(since) => since.elapsed() < writer.deadline,
                Condition::Refused(at) => at.elapsed() >= writer.deadline,
                Condition::Lost => false,
            }
    }

    fn start<M: Medium>(
        dir: &Path,
        opened: Opened,
        medium: impl FnOnce(segment::Growing) -> M,
        terms: Terms,
        clock: Arc<dyn Clock>,
        (deadline, remembered): (Duration, Remembered),
    ) -> Result<Self, Unrecorded> {
        let Opened { growing, head, length, first, since, log } = opened;
        let signer = Signer::open(dir, terms.key.clone()).map_err(Unrecorded)?;
        if let Some(last) = &signer.last
            && (last.head.sequence > head.sequence || log.as_ref().is_some_and(|log| *log != last.log))
        {
            return Err(Unrecorded(format!(
                "the audit log in {} ends at record {}, and record {} was signed: records were taken away, or an old copy was put \
                 back; move the log away, and keep it",
                dir.display(),
                head.sequence,
                last.head.sequence
            )));
        }
        let vouched = signer.last.as_ref().map(|last| Ending { log: last.log.clone(), head: last.head });
        let judged = judge(dir, (log.as_deref(), head), vouched, &remembered).map_err(Unrecorded)?;
        let name = match log {
            Some(log) => log,
            None => format!("log_{}", hex(&random::<10>().map_err(|why| Unrecorded(why.to_string()))?)),
        };
        let stream = terms.stdout.then(|| Stream::to_stdout(terms.metrics.clone())).transpose();
        let stream = stream
            .map_err(|error| Unrecorded(format!("standard output (`audit.stdout`) cannot be written: {error}")))?;
        let (queue, messages) = mpsc::channel(QUEUE);
        // The last one of an orderly stop was signed when nobody was there to send it on any more.
        let (signatures, checkpoints) = watch::channel(signer.found.clone());
        let reached = Arc::new(Mutex::new(head));
        let condition = Arc::new(Mutex::new(Condition::Good));
        let listeners = Arc::<Listeners>::default();
        let durable = Arc::new(AtomicU64::new(head.sequence));
        let mut writer = Writer {
            dir: dir.to_owned(),
            log: name.clone(),
            medium: medium(growing),
            end: End { head, length, first, since },
            reserved: 0,
            unturned: None,
            signer,
            signed: (Instant::now(), clock.now()),
            steady: Steady::new(&*clock),
            cleared: None,
            clear_again: false,
            dropping: None,
            signatures,
            head: Arc::clone(&reached),
            witness: remembered.here.map(|(witness, _)| witness),
            listeners: Arc::clone(&listeners),
            stream,
            durable: Arc::clone(&durable),
            terms,
            clock,
            condition: Arc::clone(&condition),
            lost: None,
        };
        if length == 0 {
            writer.open_segment(judged)?;
        } else {
            writer.tell_of(judged)?;
        }
        // What was not signed when the last broker died is before anything is added to it: a tail is never old.
        if let Err(why) = writer.sign() {
            if writer.signer.last.is_none() {
                return Err(why);
            }
            tracing::error!(%why, "the audit log is not signed yet");
        }
        let thread = Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(messages))
            .map_err(|error| Unrecorded(format!("the audit writer could not be started: {error}")))?;
        let (queue, thread) = (Some(queue), Some(thread));
        let reader = Reader { dir: dir.to_owned(), log: name, durable };
        let writer = Handle { queue, thread, condition, deadline, checkpoints, head: reached, reader, listeners };
        Ok(Self { writer: Arc::new(writer) })
    }
}

/// The callers' end of the writer.
struct Handle {
    /// `None` only while it is being dropped.
    queue: Option<mpsc::Sender<Message>>,
    thread: Option<JoinHandle<()>>,
    condition: Arc<Mutex<Condition>>,
    deadline: Duration,
    checkpoints: watch::Receiver<Option<String>>,
    head: Arc<Mutex<Head>>,
    reader: Reader,
    listeners: Arc<Listeners>,
}

impl Handle {
    fn is_stuck(&self) -> bool {
        let condition = self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*condition, Condition::Committing(since) if since.elapsed() >= self.deadline)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue = None;
        // Waiting means that the lock is free again once this returns; a disk that hangs must not hang the exit too.
        if let Some(thread) = self.thread.take()
            && !self.is_stuck()
            && thread.join().is_err()
        {
            tracing::error!("the audit writer panicked");
        }
    }
}

/// What the writer is doing, for those who ask about its health.
#[derive(Clone, Copy)]
enum Condition {
    /// The last group went well.
    Good,
    /// It has been writing and syncing a group since then.
    Committing(Instant),
    /// The last write failed then, and was undone.
    Refused(Instant),
    /// For good.
    Lost,
}

/// What the writer is asked for.
enum Message {
    Record(Call),
    Keep(Keeping, oneshot::Sender<Result<(), Unrecorded>>),
    Tick,
}

/// One call of [`Audit::record`] or [`Audit::note`].
struct Call {
    lines: Vec<Unplaced>,
    /// How much it may use of what is reserved for the ends of tasks.
    urgency: Urgency,
    /// Whoever waits for it.
    done: Option<oneshot::Sender<Result<Span, Unrecorded>>>,
    /// Whether it may wait for others: every mint has one of these.
    lingers: bool,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy)]
struct End {
    head: Head,
    /// Of the growing segment, in bytes; always just after a line feed.
    length: u64,
    /// The first record of the growing segment.
    first: u64,
    /// When that was written.
    since: Option<Time>,
}

/// The thread that owns the files.
struct Writer<M> {
    dir: PathBuf,
    log: String,
    medium: M,
    end: End,
    /// Up to which length the growing segment has its room on the disk.
    reserved: u64,
    /// When another segment was last tried in vain.
    unturned: Option<Instant>,
    signer: Signer,
    /// When it signed last, and by the clock that the records go by.
    signed: (Instant, Time),
    /// Whether the clock can be gone by.
    steady: Steady,
    /// When it last looked for what was kept for long enough, by the clock that never jumps.
    cleared: Option<Duration>,
    /// Whether it is to look again soon.
    clear_again: bool,
    /// The first record of the segment of which it was last recorded that it is about to be removed.
    dropping: Option<u64>,
    signatures: watch::Sender<Option<String>>,
    /// The last record that is durable, for others.
    head: Arc<Mutex<Head>>,
    witness: Option<Witness>,
    listeners: Arc<Listeners>,
    stream: Option<Stream>,
    /// The number of the last record that is durable, for readers.
    durable: Arc<AtomicU64>,
    terms: Terms,
    clock: Arc<dyn Clock>,
    condition: Arc<Mutex<Condition>>,
    /// Why no entry is taken any more.
    lost: Option<Unrecorded>,
}

impl<M: Medium> Writer<M> {
    fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.blocking_recv() {
            // Before anything is added: the clock may have gone on by hours since the last record.
            self.sign_if_due();
            let mut keep = None;
            match message {
                Message::Record(first) => {
                    let lingers_until = Instant::now() + LINGER;
                    let mut size = first.size();
                    let mut calls = vec![first];
                    // None is longer than half a group.
                    while size <= GROUP / 4 && keep.is_none() {
                        let next = match messages.try_recv() {
                            Err(_) if calls.iter().all(|call| call.lingers) => {
                                receive_until(&mut messages, lingers_until)
                            }
                            next => next.ok(),
                        };
                        match next {
                            Some(Message::Record(call)) => {
                                size += call.size();
                                calls.push(call);
                            }
                            Some(Message::Keep(keeping, done)) => keep = Some((keeping, done)),
                            Some(Message::Tick) => {}
                            None => break,
                        }
                    }
                    self.take(calls);
                }
                Message::Keep(keeping, done) => keep = Some((keeping, done)),
                Message::Tick => {}
            }
            if let Some((keeping, done)) = keep {
                // Whoever asked may have given up.
                let _ = done.send(self.keep(keeping));
            }
            self.tend();
        }
        if let Err(why) = self.sign() {
            tracing::error!(%why, "the end of the audit log is not signed");
        }
        if let Some(stream) = self.stream {
            stream.finish();
        }
    }

    /// Writes the calls in one go, or those of them that there is room for, and tells everybody how it went.
    fn take(&mut self, calls: Vec<Call>) {
        let size: usize = calls.iter().map(Call::size).sum();
        if let Err(full) = self.reserve(size) {
            let mut room = self.reserved.saturating_add(FOR_THEIR_OWN).saturating_sub(self.end.length + RESERVE);
            let (urgent, others): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| match call.urgency {
                Urgency::None => false,
                Urgency::Own => {
                    let left = room.checked_sub(call.size() as u64);
                    room = left.unwrap_or(room);
                    left.is_some()
                }
                Urgency::Whole => true,
            });
            if !urgent.is_empty() {
                self.commit(urgent);
            }
            if self.lost.is_none() {
                self.becomes(Condition::Refused(Instant::now()));
            }
            for call in others {
                call.answer(Err(full.clone()));
            }
        } else {
            self.commit(calls);
        }
    }

    fn commit(&mut self, calls: Vec<Call>) {
        let mut group = Group::new(self.end);
        let spans: Vec<_> = calls.iter().map(|call| group.add(&call.lines)).collect();
        let outcome = self.write(&group);
        if outcome.is_ok() {
            self.tell(group);
        }
        for (call, span) in calls.into_iter().zip(spans) {
            call.answer(outcome.clone().map(|()| span));
        }
    }

    fn write(&mut self, group: &Group) -> Result<(), Unrecorded> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        reached(Step::AuditAsked);
        self.becomes(Condition::Committing(Instant::now()));
        if let Err(error) = self.medium.append(&group.bytes) {
            return Err(self.undo(&error));
        }
        reached(Step::AuditWritten);
        if let Err(error) = self.medium.sync() {
            return Err(self.lose(format!("the audit log could not be synced, start the broker again: {error}")));
        }
        reached(Step::AuditSynced);
        self.reach(group.end);
        Ok(())
    }

    /// Everything up to there is durable.
    fn reach(&mut self, end: End) {
        self.end = end;
        self.durable.store(end.head.sequence, Ordering::Release);
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = end.head;
        if let Some(witness) = &mut self.witness {
            witness.note(&Ending { log: self.log.clone(), head: end.head });
        }
        self.becomes(Condition::Good);
    }

    /// Makes sure that so many bytes leave the reserve as it is.
    fn reserve(&mut self, size: usize) -> Result<(), Unrecorded> {
        let needed = self.end.length + size as u64 + RESERVE;
        if needed <= self.reserved {
            return Ok(());
        }
        let more = self.medium.reserve(needed + AHEAD).map(|()| needed + AHEAD);
        match more.or_else(|_| self.medium.reserve(needed).map(|()| needed)) {
            Ok(reserved) => {
                self.reserved = reserved;
                Ok(())
            }
            Err(error) if is_full(&error) => {
                self.clear_again = true;
                tracing::error!(%error, "the disk of the audit log is full: only the end of a task is recorded now");
                Err(Unrecorded(format!("the disk of the audit log is full: {error}")))
            }
            Err(error) => {
                tracing::warn!(%error, "no room can be reserved for the audit log: on a full disk nothing is recorded");
                self.reserved = u64::MAX;
                Ok(())
            }
        }
    }

    fn undo(&mut self, error: &io::Error) -> Unrecorded {
        // The room that was reserved goes with it, and is asked for anew.
        self.reserved = self.reserved.min(self.end.length);
        if let Err(second) = self.medium.cut(self.end.length) {
            return self.lose(format!("the audit log ends in a part of a line: {error}, and then {second}"));
        }
        tracing::error!(%error, "the audit log could not be written");
        self.becomes(Condition::Refused(Instant::now()));
        Unrecorded(format!("the audit log could not be written: {error}"))
    }

    fn lose(&mut self, why: String) -> Unrecorded {
        tracing::error!("{why}");
        self.becomes(Condition::Lost);
        self.lost.insert(Unrecorded(why)).clone()
    }

    fn becomes(&self, condition: Condition) {
        *self.condition.lock().unwrap_or_else(PoisonError::into_inner) = condition;
    }

    /// What is due besides: checkpoints, segments.
    fn tend(&mut self) {
        if self.lost.is_some() {
            return;
        }
        self.sign_if_due();
        if self.is_segment_over() && self.unturned.is_none_or(|at| at.elapsed() >= AGAIN) {
            let turned = self.turn();
            self.terms.metrics.turned(turned.is_ok());
            self.unturned = turned.is_err().then(Instant::now);
            match turned {
                Ok(()) => self.clear(),
                Err(why) => {
                    tracing::error!(%why, "the audit log goes on in the segment that it has");
                    self.clear_again = true;
                }
            }
        }
        let since = |at: Duration| self.clock.running().saturating_sub(at);
        if self.clear_again && self.cleared.is_none_or(|at| since(at) >= AGAIN) {
            self.clear();
        }
    }

    fn sign_if_due(&mut self) {
        let (signed, at) = self.signed;
        let by_clock = (self.clock.now() - at).num_seconds().unsigned_abs();
        let is_due = by_clock.max(signed.elapsed().as_secs()) >= u64::from(self.terms.keeping.checkpoint_every);
        if is_due && let Err(why) = self.sign() {
            tracing::error!(%why, "the audit log goes on without being signed");
        }
    }

    fn is_segment_over(&self) -> bool {
        let age = self.end.since.map(|since| (self.clock.now() - since).num_seconds());
        // A segment of one record would be over as soon as it began. One that begins far in the future was begun while the clock was wrong.
        self.end.head.sequence > self.end.first
            && (self.end.length >= self.terms.keeping.segment_bytes
                || age.is_some_and(|age| age.unsigned_abs() >= u64::from(self.terms.keeping.segment_age)))
    }

    /// Begins another segment, whole, with its first record and its reserve; or changes nothing, so that the one that there is grows on.
    fn turn(&mut self) -> Result<(), Unrecorded> {
        // A segment ends with a record that is signed: without that, whoever reads the log takes it for tampered with.
        self.sign()?;
        let (first, since) = (self.end.head.sequence + 1, self.clock.now());
        let mut group = Group::new(End { length: 0, first, since: Some(since), ..self.end });
        group.add(&encode(&[of_its_own(since, Event::SegmentOpened { log: self.log.clone() })])?);
        let room = group.end.length + RESERVE;
        let before = *self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        self.becomes(Condition::Committing(Instant::now()));
        let undone = |error: &io::Error| Unrecorded(format!("another segment could not be begun: {error}"));
        let prepared = self.medium.prepare(&group.bytes, room).map_err(Unturned::Undone);
        match prepared.and_then(|held| self.medium.turn(first).map(|()| held)) {
            Ok(held) => self.reserved = if held { room } else { u64::MAX },
            Err(Unturned::Undone(error)) => {
                self.becomes(before);
                return Err(undone(&error));
            }
            Err(Unturned::InDoubt(error)) => {
                return Err(self.lose(format!(
                    "it cannot be told which segment is the last of the audit log, start the broker again: {error}"
                )));
            }
        }
        self.reach(group.end);
        self.tell(group);
        Ok(())
    }

    /// The first record of a log says whose it is; together with it stands whether there was another one before.
    fn open_segment(&mut self, judged: Judged) -> Result<(), Unrecorded> {
        let now = self.clock.now();
        let opened = Event::SegmentOpened { log: self.log.clone() };
        let gone = judged.gone.map(is_gone);
        self.own(now, std::iter::once(opened).chain(gone))?;
        self.end.since = Some(now);
        Ok(())
    }

    /// Says in a log how it was found. What cannot be said of it is not signed either.
    fn tell_of(&mut self, Judged { gone, unwitnessed }: Judged) -> Result<(), Unrecorded> {
        let unwitnessed = unwitnessed.map(|(first, last)| Event::TailUnwitnessed { first, last });
        let events: Vec<_> = unwitnessed.into_iter().chain(gone.map(is_gone)).collect();
        let told = self.own(self.clock.now(), events);
        told.map_err(|Unrecorded(why)| Unrecorded(format!("how the audit log was found cannot be recorded: {why}")))?;
        self.reach(self.end);
        Ok(())
    }

    /// Goes by other terms, which are on record first; but what removes less does not wait for that.
    fn keep(&mut self, keeping: Keeping) -> Result<(), Unrecorded> {
        if keeping == self.terms.keeping {
            return Ok(());
        }
        self.terms.keeping.legal_hold |= keeping.legal_hold;
        self.own(self.clock.now(), [Event::LogTermsAdopted(keeping)])?;
        self.terms.keeping = keeping;
        self.clear();
        Ok(())
    }

    /// Removes what has been kept for long enough.
    fn clear(&mut self) {
        (self.cleared, self.clear_again) = (Some(self.clock.running()), false);
        if let Err(why) = self.drop_segments() {
            tracing::error!(%why, "the audit log keeps more than it has to");
        }
    }

    fn drop_segments(&mut self) -> Result<(), Unrecorded> {
        let Keeping { retention: Some(retention), legal_hold: false, .. } = self.terms.keeping else { return Ok(()) };
        if !self.steady.is_believed(&*self.clock) {
            self.clear_again = true;
            return Ok(());
        }
        let failed = |error: io::Error| Unrecorded(format!("an old segment could not be removed: {error}"));
        let now = self.clock.now();
        let segments = Segment::list(&self.dir).map_err(failed)?;
        // By what is chained and signed; when a file was written, anybody can set who can write it.
        let mut begins = Vec::new();
        for segment in &segments {
            let Some(time) = began(segment).map_err(failed)? else { break };
            begins.push(time);
        }
        for pair in segments.windows(2).take(kept_for(&begins, now, retention)) {
            let [old, next] = pair else { continue };
            // On record, and signed, before it is gone; and how the rest goes on is in the rest. On record once, however often it is tried.
            if self.dropping != Some(old.first) {
                self.own(now, [Event::SegmentDropped { first: old.first, last: next.first - 1 }])?;
                self.dropping = Some(old.first);
            }
            self.sign()?;
            std::fs::remove_file(&old.path).map_err(failed)?;
        }
        Ok(())
    }

    fn own(&mut self, now: Time, events: impl IntoIterator<Item = Event>) -> Result<(), Unrecorded> {
        let entries: Vec<_> = events.into_iter().map(|event| of_its_own(now, event)).collect();
        if entries.is_empty() {
            return Ok(());
        }
        let lines = encode(&entries)?;
        let is_urgent = entries.iter().all(|entry| entry.event.is_urgent());
        self.reserve(lines.iter().map(Unplaced::len).sum())
            .or_else(|full| if is_urgent { Ok(()) } else { Err(full) })?;
        let mut group = Group::new(self.end);
        group.add(&lines);
        self.write(&group)?;
        // Whoever sends records on takes a number that is missing for a record that was taken away.
        self.tell(group);
        Ok(())
    }

    /// What was written is durable.
    fn tell(&mut self, group: Group) {
        if let Some(stream) = &mut self.stream {
            group.recorded.iter().for_each(|placed| stream.offer(&placed.line));
        }
        group.tell(&self.listeners);
    }

    /// Signs where the log ends, if that is somewhere else than the last time.
    fn sign(&mut self) -> Result<(), Unrecorded> {
        let now = self.clock.now();
        self.signed = (Instant::now(), now);
        let head = self.end.head;
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        if self.signer.last.as_ref().is_some_and(|last| last.head == head) {
            return Ok(());
        }
        let signed = self.signer.sign(&self.log, head, now);
        let text = signed.map_err(|why| Unrecorded(format!("the audit log could not be signed: {why}")))?;
        self.signatures.send_replace(Some(text));
        if let Some(witness) = &mut self.witness {
            witness.sync();
        }
        Ok(())
    }
}

/// The next message, if there is one before `until`.
fn receive_until(messages: &mut mpsc::Receiver<Message>, until: Instant) -> Option<Message> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(message) = messages.poll_recv(&mut Context::from_waker(&waker)) {
            return message;
        }
        let left = until.checked_duration_since(Instant::now())?;
        thread::park_timeout(left);
    }
}

impl Call {
    fn size(&self) -> usize {
        self.lines.iter().map(Unplaced::len).sum()
    }

    fn answer(self, outcome: Result<Span, Unrecorded>) {
        match (self.done, outcome) {
            // A caller that gave up is not there to be told.
            (Some(done), outcome) => drop(done.send(outcome)),
            (None, Err(why)) => tracing::warn!(%why, "an audit record was left out"),
            (None, Ok(_)) => {}
        }
    }
}

/// What is written and synced in one go.
struct Group {
    bytes: Vec<u8>,
    /// Where the log ends when it is written.
    end: End,
    recorded: Vec<Placed>,
}

/// A record in its place.
struct Placed {
    task: Option<TaskId>,
    class: Class,
    sequence: u64,
    line: String,
}

impl Group {
    fn new(end: End) -> Self {
        Self { bytes: Vec::new(), end, recorded: Vec::new() }
    }

    fn add(&mut self, lines: &[Unplaced]) -> Span {
        let before = self.bytes.len();
        let first = self.end.head.sequence + 1;
        for line in lines {
            let text = line.place(&mut self.end.head);
            self.bytes.extend_from_slice(text.as_bytes());
            self.bytes.push(b'\n');
            let (task, class) = (line.task.clone(), line.class);
            self.recorded.push(Placed { task, class, sequence: self.end.head.sequence, line: text });
        }
        self.end.length += (self.bytes.len() - before) as u64;
        Span(first, self.end.head.sequence)
    }

    fn tell(self, listeners: &Listeners) {
        for Placed { task, class, sequence, line } in self.recorded {
            if let Some(copier) = listeners.copies.get() {
                copier(Copied { sequence, line: &line, class });
            }
            if let (Some(listener), Some(task)) = (listeners.records.get(), task) {
                listener(Recorded { task, sequence, line });
            }
        }
    }
}

fn is_gone(Ending { log, head }: Ending) -> Event {
    Event::EarlierLogGone { log, last: head.sequence, digest: head.digest }
}

/// What the log says of itself.
fn of_its_own(time: Time, event: Event) -> Entry {
    Entry { time, request: String::new(), actor: Actor::Broker, task: None, event }
}

fn encode(entries: &[Entry]) -> Result<Vec<Unplaced>, Unrecorded> {
    let unfit = |error: &dyn Display| Unrecorded(format!("an audit entry could not be put into JSON: {error}"));
    let lines = entries.iter().map(Unplaced::of).collect::<Result<Vec<_>, _>>().map_err(|error| unfit(&error))?;
    if lines.iter().map(Unplaced::len).sum::<usize>() > GROUP / 2 {
        return Err(Unrecorded(format!("more than {} bytes of audit entries at once", GROUP / 2)));
    }
    Ok(lines)
}

fn gone() -> Unrecorded {
    Unrecorded("the audit writer has stopped".to_owned())
}

fn stuck(deadline: Duration) -> Unrecorded {
    Unrecorded(format!("the audit log did not take the entries within {} s", deadline.as_secs()))
}

#[cfg(test)]
mod tests;
