//! The broker's own record of what has ended: a file that outlives the store, and what it forgot.
//!
//! One line for each notice, synced before the store is told. A line is its digest and JSON, so that what a crash left half written
//! is no line. Lines are only appended; when most of them are about what is long over, the file is written anew with the rest.
//! It holds no secret, and needs no key: whoever can write here can read the broker's keys beside it.

use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

use super::set::Set;
use crate::{
    failpoint::{Step, reached},
    id::{BrokerName, hex, random, sha256_hex},
    notice::{Notice, Subject},
    own_dir,
};

/// How long a caller waits for the disk.
const DEADLINE: Duration = Duration::from_secs(5);
/// How many calls may wait.
const QUEUE: usize = 4096;
/// How many share one sync at most.
const GROUP: usize = 256;
/// Room that is taken ahead, in bytes, so that a revoke is on record when the disk is full.
const RESERVE: u64 = 1 << 20;
/// How many characters of a line's digest stand in front of it.
const DIGEST: usize = 16;
/// How many sequence numbers are set aside at a time: numbers that were given out are never given out again, whatever was lost.
const BLOCK: u64 = 1 << 32;
/// A file is written anew when it has this many lines more than twice what is alive.
const SLACK: usize = 1024;

/// The journal took nothing, or cannot be read. A sentence.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unjournaled(pub String);

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Line {
    /// A broker has opened it: its name, and from which sequence number on the next one counts.
    Opened { broker: String, ceiling: u64 },
    /// Where the broker is: of several the last one counts.
    Entered(Place),
    /// A task has ended. Of two for one task the first is the end, and the last says until when it matters.
    Ended(Notice),
    /// Something else is dead or locked out.
    Noted(Notice),
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The store.
    pub store: String,
    /// The generation of it.
    pub generation: u64,
    /// The run of it that every broker has told who was there; `None`: none was yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<String>,
    /// The other brokers that were there last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<BrokerName>,
}

impl Line {
    fn of(notice: Notice) -> Self {
        match notice.subject {
            Subject::Task { .. } => Line::Ended(notice),
            Subject::Lease { .. } | Subject::Key(_) | Subject::Lock(_) => Line::Noted(notice),
        }
    }
}

/// The open journal. The file is closed, and free for another broker, when it is dropped.
#[derive(Debug)]
pub(super) struct Journal {
    /// `None` only while it is being dropped.
    queue: Option<mpsc::Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

/// What a journal held when it was opened.
#[derive(Debug)]
pub(super) struct Recalled {
    /// The name of the broker whose journal it is: as long as the journal is.
    pub(super) broker: String,
    /// From which sequence number on it counts this time.
    pub(super) sequence: u64,
    /// Where it was last.
    pub(super) place: Option<Place>,
    /// In the order in which they were written.
    pub(super) notices: Vec<Notice>,
}

#[derive(Debug)]
enum Message {
    Append(String, oneshot::Sender<Result<(), Unjournaled>>),
    /// The same, of the line that says where the broker is.
    Place(String, oneshot::Sender<Result<(), Unjournaled>>),
    /// The writer asks for what there is once it gets to it: that holds all that was appended until then.
    Rewrite(Arc<Set>),
}

impl Journal {
    /// Opens (or makes) the journal in `dir`, which becomes readable by its owner alone. What a crash left half written at its end was
    /// never relied on, and is cut off.
    ///
    /// # Errors
    /// When it cannot be written, another broker has it open, or it is damaged elsewhere than at its end.
    pub(super) fn open(dir: &Path) -> Result<(Self, Recalled), Unjournaled> {
        let failed = |error: io::Error| {
            Unjournaled(format!("the journal of revocations in {} cannot be opened: {error}", dir.display()))
        };
        let lock = own_dir::take(dir, "the journal of revocations").map_err(Unjournaled)?;
        let path = dir.join("revocations");
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
        let text = std::fs::read(&path).map_err(failed)?;
        let (lines, length) = read(&text).ok_or_else(|| {
            Unjournaled(format!(
                "{} is damaged before its end, and what had ended cannot be told: put it right from a copy, or move it away and \
                 raise the generation",
                path.display()
            ))
        })?;
        if length < text.len() {
            tracing::warn!(path = %path.display(), bytes = text.len() - length, "cut off what a crash left incomplete");
            file.set_len(length as u64).map_err(failed)?;
        }
        let (mut broker, mut sequence, mut place, mut notices) = (None, 0, None, Vec::new());
        let count = lines.len();
        for line in lines {
            match line {
                Line::Opened { broker: name, ceiling } => (broker, sequence) = (Some(name), ceiling),
                Line::Entered(entered) => place = Some(entered),
                Line::Ended(notice) | Line::Noted(notice) => notices.push(notice),
            }
        }
        let broker = match broker {
            Some(broker) => broker,
            None => format!("broker_{}", hex(&random::<10>().map_err(|why| Unjournaled(why.to_string()))?)),
        };
        let opened = encode(&Line::Opened { broker: broker.clone(), ceiling: sequence + BLOCK })?;
        let entered = place.clone().map(|place| encode(&Line::Entered(place))).transpose()?;
        file.write_all(opened.as_bytes()).and_then(|()| file.sync_data()).map_err(failed)?;
        own_dir::sync(dir).map_err(failed)?;
        let mut writer = Writer {
            dir: dir.to_owned(),
            file,
            opened,
            place: entered.unwrap_or_default(),
            lines: count + 1,
            reserved: 0,
            lost: None,
            _lock: lock,
        };
        let (queue, messages) = mpsc::channel(QUEUE);
        let thread = Builder::new().name("journal".into()).spawn(move || writer.run(messages)).map_err(failed)?;
        Ok((Self { queue: Some(queue), thread: Some(thread) }, Recalled { broker, sequence, place, notices }))
    }

    /// Appends a notice, and returns once it is on disk.
    ///
    /// # Errors
    /// When that cannot be told. It may turn up in the journal all the same.
    pub(super) async fn record(&self, notice: &Notice) -> Result<(), Unjournaled> {
        let line = encode(&Line::of(notice.clone()))?;
        self.append(|done| Message::Append(line, done)).await
    }

    /// Appends where the broker is, and returns once that is on disk.
    ///
    /// # Errors
    /// As [`Journal::record`].
    pub(super) async fn enter(&self, place: Place) -> Result<(), Unjournaled> {
        let line = encode(&Line::Entered(place))?;
        self.append(|done| Message::Place(line, done)).await
    }

    async fn append(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<(), Unjournaled>>) -> Message,
    ) -> Result<(), Unjournaled> {
        let (done, answer) = oneshot::channel();
        let recorded = async {
            let queue = self.queue.as_ref().ok_or_else(gone)?;
            queue.send(message(done)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        let late = |_| Err(Unjournaled("the disk of the journal of revocations did not answer in time".into()));
        tokio::time::timeout(DEADLINE, recorded).await.unwrap_or_else(late)
    }

    /// Writes the file anew with what is in `set` alone, if it has become much longer. Whatever is appended has to be in there first.
    pub(super) fn compact(&self, set: &Arc<Set>) {
        if let Some(queue) = &self.queue {
            // A writer that has no room for this is asked again.
            let _ = queue.try_send(Message::Rewrite(set.clone()));
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread that owns the file.
struct Writer {
    dir: PathBuf,
    file: File,
    /// The line that says whose it is.
    opened: String,
    /// The line that says in which store it is, if that is known.
    place: String,
    lines: usize,
    /// Up to which length the file has its room on the disk.
    reserved: u64,
    /// Why nothing is taken any more: after a sync that failed, nobody knows what is on disk.
    lost: Option<Unjournaled>,
    _lock: File,
}

impl Writer {
    fn run(&mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(first) = messages.blocking_recv() {
            let (mut text, mut waiting, mut lines) = (String::new(), Vec::new(), 0);
            let mut rewrite = None;
            let mut next = Some(first);
            while let Some(message) = next.take() {
                match message {
                    Message::Append(line, done) => {
                        text.push_str(&line);
                        waiting.push(done);
                        lines += 1;
                    }
                    Message::Place(line, done) => {
                        text.push_str(&line);
                        self.place = line;
                        waiting.push(done);
                        lines += 1;
                    }
                    Message::Rewrite(set) => {
                        rewrite = Some(set);
                        break;
                    }
                }
                if lines < GROUP {
                    next = messages.try_recv().ok();
                }
            }
            if !text.is_empty() {
                let outcome = self.append(&text);
                self.lines += lines;
                for done in waiting {
                    // Whoever asked may be gone by now.
                    let _ = done.send(outcome.clone());
                }
            }
            if let Some(set) = rewrite {
                self.compact(&set);
            }
        }
    }

    fn compact(&mut self, set: &Set) {
        let notices = set.all();
        if self.lost.is_some() || self.lines <= 2 * notices.len() + SLACK {
            return;
        }
        let lines = notices.into_iter().map(|notice| encode(&Line::of(notice))).collect::<Result<Vec<_>, _>>();
        let rewritten = lines.map_err(io::Error::other).and_then(|lines| self.rewrite(&lines));
        if let Err(error) = rewritten {
            tracing::error!(%error, "the journal of revocations goes on in the file that it has");
        }
    }

    fn append(&mut self, text: &str) -> Result<(), Unjournaled> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let failed =
            |error: io::Error| Unjournaled(format!("the journal of revocations could not be written: {error}"));
        let length = self.file.metadata().map_err(failed)?.len();
        self.reserve(length + text.len() as u64);
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            let undone = self.file.set_len(length);
            self.reserved = 0;
            let why = failed(error);
            return Err(if undone.is_err() { self.lost.insert(why).clone() } else { why });
        }
        reached(Step::JournalWritten);
        self.file.sync_data().map_err(|error| self.lost.insert(failed(error)).clone())?;
        reached(Step::JournalSynced);
        Ok(())
    }

    /// Takes room ahead, where there is some.
    fn reserve(&mut self, length: u64) {
        if length + RESERVE / 2 <= self.reserved {
            return;
        }
        let ahead = i64::try_from(length + RESERVE).unwrap_or(i64::MAX);
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, ahead) {
            Ok(()) => self.reserved = length + RESERVE,
            Err(error) => tracing::warn!(%error, "no room can be reserved for the journal of revocations"),
        }
    }

    /// Writes the file anew beside the old one, and puts it in its place.
    fn rewrite(&mut self, lines: &[String]) -> io::Result<()> {
        let aside = self.dir.join("revocations.new");
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(&aside)?;
        file.set_len(0)?;
        file.write_all([&self.opened, &self.place, &lines.concat()].map(String::as_str).concat().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, self.dir.join("revocations"))?;
        // From here on the new file is the one that is found.
        (self.file, self.lines, self.reserved) = (file, lines.len() + 2, 0);
        own_dir::sync(&self.dir).inspect_err(|error| {
            // Nobody knows which of the two files is found after a crash.
            self.lost = Some(Unjournaled(format!("the journal of revocations could not be put in its place: {error}")));
        })
    }
}

fn encode(line: &Line) -> Result<String, Unjournaled> {
    let json = serde_json::to_string(line).map_err(|why| Unjournaled(why.to_string()))?;
    Ok(format!("{} {json}\n", &sha256_hex(json.as_bytes())[..DIGEST]))
}

/// The lines, and where the good part of the file ends; `None` where something good comes after something bad.
fn read(text: &[u8]) -> Option<(Vec<Line>, usize)> {
    let (mut lines, mut length) = (Vec::new(), 0);
    let mut rest = text.split_inclusive(|&byte| byte == b'\n');
    for line in &mut rest {
        let Some(line_read) = decode(line) else { break };
        lines.push(line_read);
        length += line.len();
    }
    rest.all(|line| decode(line).is_none()).then_some((lines, length))
}

fn decode(line: &[u8]) -> Option<Line> {
    let (digest, json) = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?.split_once(' ')?;
    (sha256_hex(json.as_bytes()).get(..DIGEST)? == digest).then(|| serde_json::from_str(json).ok())?
}

fn gone() -> Unjournaled {
    Unjournaled("the journal of revocations is closed".into())
}

#[cfg(test)]
mod tests {
    use super::{super::set::tests::ending, *};
    use crate::{
        clock::Time,
        id::{LockId, TaskId},
        notice::tests::lock,
    };

    fn some(count: i64) -> Vec<Notice> {
        let at: Time = "2026-11-20T10:00:00Z".parse().unwrap();
        (0..count).map(|_| ending(&TaskId::root(at).unwrap(), at, 60)).collect()
    }

    #[tokio::test]
    async fn what_was_recorded_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut endings = some(3);
        let at = endings[0].at;
        let id = LockId::new(at).unwrap();
        endings.extend([lock(&id, 1, false, at, at), lock(&id, 2, true, at, at)]);
        let (journal, first) = Journal::open(dir.path()).unwrap();
        assert!(first.notices.is_empty());
        for ending in &endings {
            journal.record(ending).await.unwrap();
        }
        drop(journal);
        let (_journal, second) = Journal::open(dir.path()).unwrap();
        assert_eq!((&second.broker, &second.notices), (&first.broker, &endings));
        assert!(second.sequence >= first.sequence + BLOCK, "numbers are never given out twice");
    }

    #[tokio::test]
    async fn a_journal_that_knows_of_tasks_alone_is_read() {
        let dir = tempfile::tempdir().unwrap();
        drop(Journal::open(dir.path()).unwrap());
        let json = r#"{"ended":{"end":{"task":"task_01jd0000000000000000000000","state":"completed","at":"2026-11-20T10:00:00Z","reason":null,"by":"spiffe://example.com/a"},"until":"2026-11-21T10:00:00Z","broker":"broker_a","unseen":false}}"#;
        let mut file = OpenOptions::new().append(true).open(dir.path().join("revocations")).unwrap();
        file.write_all(format!("{} {json}\n", &sha256_hex(json.as_bytes())[..DIGEST]).as_bytes()).unwrap();
        let (_journal, recalled) = Journal::open(dir.path()).unwrap();
        let end = recalled.notices[0].end().unwrap();
        assert_eq!((end.task.as_str(), end.by.as_str()), ("task_01jd0000000000000000000000", "spiffe://example.com/a"));
        assert_eq!(
            encode(&Line::of(recalled.notices[0].clone())).unwrap().split_once(' ').unwrap().1,
            format!("{json}\n")
        );
    }

    #[tokio::test]
    async fn one_broker_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (_journal, _) = Journal::open(dir.path()).unwrap();
        assert!(Journal::open(dir.path()).unwrap_err().0.contains("another broker"));
    }

    #[tokio::test]
    async fn a_torn_end_is_cut_off_and_damage_before_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let endings = some(3);
        let (journal, _) = Journal::open(dir.path()).unwrap();
        for ending in &endings {
            journal.record(ending).await.unwrap();
        }
        drop(journal);
        let path = dir.path().join("revocations");
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..40 {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (_journal, recalled) = Journal::open(dir.path()).unwrap();
            assert_eq!(recalled.notices, endings[..2]);
        }
        for at in [0, 20, whole.len() / 2] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(Journal::open(dir.path()).unwrap_err().0.contains("is damaged"));
        }
    }

    #[tokio::test]
    async fn it_becomes_small_again() {
        let dir = tempfile::tempdir().unwrap();
        let endings = some(2);
        let (journal, first) = Journal::open(dir.path()).unwrap();
        for _ in 0..SLACK {
            journal.record(&endings[0]).await.unwrap();
            journal.record(&endings[1]).await.unwrap();
        }
        let set = Arc::new(Set::default());
        for ending in &endings {
            set.insert(ending.clone(), std::time::Instant::now());
        }
        journal.compact(&set);
        let last = &some(1)[0];
        journal.record(last).await.unwrap();
        drop(journal);
        let lines = std::fs::read_to_string(dir.path().join("revocations")).unwrap().lines().count();
        assert_eq!(lines, 4);
        let (_journal, second) = Journal::open(dir.path()).unwrap();
        assert_eq!((second.broker, second.notices.len()), (first.broker, 3));
        assert!(second.sequence >= first.sequence + BLOCK);
    }
}
