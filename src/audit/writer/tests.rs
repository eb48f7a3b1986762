use super::*;
use crate::{
    audit::{
        Outcome,
        bundle::{Bundle, Selection},
        chain::{Record, is_active},
        checkpoint::{self, CheckpointKeys},
        examine::{Verdict, examine},
        segment::Growing,
    },
    clock::ManualClock,
    id::LeaseId,
    jose::SigningKey,
    task::State,
};
use chrono::{DateTime, TimeDelta};
use serde_json::Value;
use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{
        Condvar,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use tempfile::TempDir;

fn entry(why: &str) -> Entry {
    Entry {
        time: DateTime::from_timestamp(1_770_000_000, 0).unwrap(),
        request: "req-1".to_owned(),
        actor: Actor::Operator { name: "ada".into() },
        task: None,
        event: Event::Looked { at: why.to_owned() },
    }
}

fn log() -> (TempDir, PathBuf) {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("audit");
    (root, dir)
}

fn terms() -> Terms {
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let keeping = Keeping {
        checkpoint_every: 60,
        segment_bytes: 64 << 20,
        segment_age: 86_400,
        retention: None,
        legal_hold: false,
    };
    Terms { key, keeping, stdout: false, metrics: Metrics::new("") }
}

/// The same, kept for so long, in pieces of such an age.
fn kept(terms: Terms, segment_age: u32, retention: Option<u64>) -> Terms {
    Terms { keeping: Keeping { segment_age, retention, ..terms.keeping }, ..terms }
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(DateTime::from_timestamp(1_770_000_000, 0).unwrap()))
}

fn open(dir: &Path) -> Result<Audit, Unrecorded> {
    // A log that was signed goes on with the same key.
    let _ = std::fs::remove_file(dir.join(checkpoint::FILE));
    Audit::open(dir, terms(), clock())
}

/// The first segment.
fn file(dir: &Path) -> PathBuf {
    Segment::of(dir, 1).path
}

/// The lines of the log but for those that open it.
fn lines(dir: &Path) -> Vec<Value> {
    let text: String =
        Segment::list(dir).unwrap().iter().map(|one| std::fs::read_to_string(&one.path).unwrap()).collect();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == "looked").collect()
}

/// A log as a broker writes it: the line that opens it, and others.
fn written(whys: &[&str]) -> String {
    let opened = Event::SegmentOpened { log: "log_1".to_owned() };
    let opened = Entry { actor: Actor::Broker, event: opened, ..entry("") };
    let mut head = Head::NONE;
    let entries = std::iter::once(opened).chain(whys.iter().map(|why| entry(why)));
    entries.map(|entry| Unplaced::of(&entry).unwrap().place(&mut head) + "\n").collect()
}

fn whys(dir: &Path) -> Vec<String> {
    lines(dir).iter().map(|line| line["at"].as_str().unwrap().to_owned()).collect()
}

fn assert_numbered(dir: &Path, from: u64, to: u64) {
    let numbers: Vec<u64> = lines(dir).iter().map(|line| line["sequence"].as_u64().unwrap()).collect();
    // The first one opens the log.
    assert_eq!(numbers, (from + 1..=to + 1).collect::<Vec<_>>());
}

/// A real file whose writes and syncs fail or hang when told to.
struct Faulty {
    file: Growing,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    syncs: AtomicUsize,
    disk_full: AtomicBool,
    /// For more than was reserved.
    no_room: AtomicBool,
    broken_sync: AtomicBool,
    broken_cut: AtomicBool,
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Faults {
    fn gate(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
}

impl Medium for Faulty {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.faults.disk_full.load(Ordering::SeqCst) {
            self.file.append(&bytes[..bytes.len() / 2])?;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        let closed = self.faults.closed.lock().unwrap();
        drop(self.faults.opened.wait_while(closed, |closed| *closed).unwrap());
        self.faults.syncs.fetch_add(1, Ordering::SeqCst);
        if self.faults.broken_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("input/output error"));
        }
        self.file.sync()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        if self.faults.broken_cut.load(Ordering::SeqCst) {
            return Err(io::Error::other("input/output error"));
        }
        self.file.cut(length)
    }

    fn reserve(&mut self, length: u64) -> io::Result<()> {
        if self.faults.no_room.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.reserve(length)
    }

    fn prepare(&mut self, opening: &[u8], room: u64) -> io::Result<bool> {
        if self.faults.no_room.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.prepare(opening, room)
    }

    fn turn(&mut self, first: u64) -> Result<(), Unturned> {
        self.file.turn(first)
    }
}

fn faulty(dir: &Path, deadline: Duration) -> (Audit, Arc<Faults>) {
    faulty_by(dir, deadline, terms(), clock())
}

fn faulty_by(dir: &Path, deadline: Duration, terms: Terms, clock: Arc<ManualClock>) -> (Audit, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let shared = Arc::clone(&faults);
    let medium = |file| Faulty { file, faults: shared };
    let opened = segment::open(dir).unwrap();
    let audit = Audit::start(dir, opened, medium, terms, clock, (deadline, Remembered::default())).unwrap();
    faults.syncs.store(0, Ordering::SeqCst);
    (audit, faults)
}

#[tokio::test]
async fn entries_are_on_disk_in_order_once_recorded() {
    let (_root, dir) = log();
    let audit = open(&dir).unwrap();
    audit.record(&[]).await.unwrap();
    audit.record(&[entry("a"), entry("b")]).await.unwrap();
    assert_eq!(whys(&dir), ["a", "b"]);
    audit.record(&[entry("c")]).await.unwrap();
    assert_eq!(whys(&dir), ["a", "b", "c"]);
    assert_numbered(&dir, 1, 3);
    assert!(audit.is_healthy());
}

#[tokio::test]
async fn only_the_owner_can_read_the_log() {
    let (_root, dir) = log();
    let _audit = open(&dir).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&file(&dir))), (0o700, 0o600));
}

#[tokio::test]
async fn reopening_continues_the_numbers() {
    let (_root, dir) = log();
    let audit = open(&dir).unwrap();
    audit.record(&[entry("a"), entry("b")]).await.unwrap();
    drop(audit);
    let audit = open(&dir).unwrap();
    audit.record(&[entry("c")]).await.unwrap();
    assert_eq!(whys(&dir), ["a", "b", "c"]);
    assert_numbered(&dir, 1, 3);
}

#[tokio::test]
async fn a_second_broker_is_refused_until_the_first_is_gone() {
    let (_root, dir) = log();
    let first = open(&dir).unwrap();
    let clone = first.clone();
    drop(first);
    let refused = open(&dir).err().unwrap();
    assert!(refused.0.contains("another broker has the audit log"), "{refused}");
    drop(clone);
    open(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_share_syncs_and_none_is_split() {
    let (_root, dir) = log();
    let (audit, faults) = faulty(&dir, DEADLINE);
    faults.gate(true);
    let calls: Vec<_> = (0..200)
        .map(|call| {
            let audit = audit.clone();
            let entries: Vec<Entry> = (0..3).map(|part| entry(&format!("{call}.{part}"))).collect();
            async move { audit.record(&entries).await }
        })
        .collect();
    let open = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        faults.gate(false);
    };
    let (outcomes, ()) = tokio::join!(futures_util::future::join_all(calls), open);
    assert!(outcomes.iter().all(Result::is_ok));

    let syncs = faults.syncs.load(Ordering::SeqCst);
    assert!(syncs <= 3, "200 calls took {syncs} syncs");
    assert_numbered(&dir, 1, 600);
    for together in whys(&dir).chunks(3) {
        let call = together[0].strip_suffix(".0").unwrap();
        assert_eq!(together, [0, 1, 2].map(|part| format!("{call}.{part}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_it_went_goes_with_what_somebody_waits_for_and_does_not_wait_for_long() {
    let (_root, dir) = log();
    let (audit, faults) = faulty(&dir, DEADLINE);
    let went = || Entry { event: Event::Settled { settles: Span(1, 1), outcome: Outcome::Done }, ..entry("") };
    let settled = || std::fs::read_to_string(file(&dir)).unwrap().matches("\"settled\"").count();
    audit.note(went());
    audit.record(&[entry("b")]).await.unwrap();
    assert_eq!(settled(), 1);
    let before = faults.syncs.load(Ordering::SeqCst);
    audit.note(went());
    while settled() < 2 || faults.syncs.load(Ordering::SeqCst) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Nor does the end of the log.
    audit.note(went());
    drop(audit);
    assert_eq!(settled(), 3);
}

#[tokio::test]
async fn a_message_is_waited_for_no_longer_than_until_then() {
    let (queue, mut messages) = mpsc::channel(1);
    let now = Instant::now();
    assert!(receive_until(&mut messages, now).is_none());
    assert!(receive_until(&mut messages, now + Duration::from_millis(10)).is_none());
    assert!(now.elapsed() >= Duration::from_millis(10));
    let long = now + Duration::from_secs(3600);
    let waiter = Builder::new().name("waiter".to_owned()).spawn(move || receive_until(&mut messages, long)).unwrap();
    queue.send(Message::Tick).await.unwrap();
    assert!(matches!(waiter.join().unwrap(), Some(Message::Tick)));
    let (queue, mut messages) = mpsc::channel::<Message>(1);
    drop(queue);
    assert!(receive_until(&mut messages, long).is_none());
}

#[tokio::test]
async fn what_a_crash_left_incomplete_is_cut_off() {
    let whole = written(&["a", "b"]);
    let next = written(&["a", "b", "c"]).split_off(whole.len());
    let (start, end) = next.split_at(40);
    let tails = [
        start.to_owned(),
        "\0\0\0\0\0\0\0\0".to_owned(),
        format!("{start}\0\0\0\0\n{}", written(&["x"])),
        format!("{start}{}", end.trim_end()),
    ];
    for tail in tails {
        let (_root, dir) = log();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(file(&dir), whole.clone() + &tail).unwrap();
        let audit = open(&dir).unwrap();
        assert_eq!(whys(&dir), ["a", "b"], "{tail}");
        audit.record(&[entry("d")]).await.unwrap();
        assert_eq!(whys(&dir), ["a", "b", "d"]);
        assert_numbered(&dir, 1, 3);
    }
}

#[test]
fn what_somebody_did_to_the_log_is_not_repaired() {
    let (whole, lines) = (written(&["a", "b"]), written(&["a", "b"]));
    let lines: Vec<_> = lines.split_inclusive('\n').collect();
    let foreign = [
        "not a log\n".to_owned(),
        [lines[0], lines[2]].concat(),
        lines[1..].concat(),
        format!("{whole}\n"),
        whole.replacen("\"a\"", "\"x\"", 1),
        whole.replacen(',', ", ", 1),
        format!("{whole}{}", "x".repeat(GROUP + 1)),
        "x".repeat(3 * GROUP),
    ];
    for text in foreign {
        let (_root, dir) = log();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(file(&dir), &text).unwrap();
        let refused = open(&dir).err().unwrap();
        assert!(refused.0.contains("were not written by a broker"), "{refused}");
        assert_eq!(std::fs::read_to_string(file(&dir)).unwrap(), text, "it is evidence");
    }
}

#[tokio::test]
async fn a_long_log_is_opened_by_its_end() {
    let (_root, dir) = log();
    std::fs::create_dir_all(&dir).unwrap();
    let filler = "x".repeat(1000);
    std::fs::write(file(&dir), written(&vec![&*filler; 4000]) + "{\"act").unwrap();
    let audit = open(&dir).unwrap();
    audit.record(&[entry("last")]).await.unwrap();
    assert_numbered(&dir, 1, 4001);
}

fn end(task: &str) -> Entry {
    Entry {
        task: Some(task.parse().unwrap()),
        event: Event::EndRequested { state: State::Revoked, reason: None },
        ..entry("")
    }
}

#[tokio::test]
async fn the_end_of_a_task_is_recorded_on_a_full_disk() {
    let (_root, dir) = log();
    let (audit, faults) = faulty(&dir, Duration::from_millis(300));
    audit.record(&[entry("a")]).await.unwrap();
    // What was reserved ahead has to be used up first.
    faults.no_room.store(true, Ordering::SeqCst);
    let filler = "x".repeat(100_000);
    let mut fitted = 0;
    let refused = loop {
        match audit.record(&[entry(&filler)]).await {
            Ok(_) => fitted += 1,
            Err(refused) => break refused,
        }
        assert!(fitted < 100);
    };
    assert!(refused.0.contains("the disk of the audit log is full"), "{refused}");
    assert!(!audit.is_healthy());
    for _ in 0..100 {
        audit.record(&[end("task_01jd0000000000000000000000")]).await.unwrap();
    }
    audit.record(&[entry(&filler)]).await.unwrap_err();
    audit.record(&[end("task_01jd0000000000000000000000"), entry(&filler)]).await.unwrap_err();
    // The reserve is for revokes: a task that is done waits once nothing else is left.
    let requested = |state| Event::EndRequested { state, reason: None };
    let completed = || Entry { event: requested(State::Completed), ..end("task_01jd0000000000000000000000") };
    let mut fitted = 0;
    while audit.record(&[completed()]).await.is_ok() {
        fitted += 1;
        assert!(fitted < 1000);
    }
    audit.record(&[end("task_01jd0000000000000000000000")]).await.unwrap();
    faults.no_room.store(false, Ordering::SeqCst);
    audit.record(&[entry("c")]).await.unwrap();
    assert!(audit.is_healthy());
    let text = std::fs::read_to_string(file(&dir)).unwrap();
    assert_eq!(text.matches("revoked").count(), 101);
}

/// What was kept for long enough goes when the disk is full: where another segment cannot be begun, and where a record finds no room.
#[tokio::test]
async fn a_full_disk_is_made_room_on() {
    for segment_age in [60, 31 * 86_400] {
        let (_root, dir) = log();
        let (terms, clock) = (kept(terms(), 60, Some(86_400)), clock());
        let audit = Audit::open(&dir, terms.clone(), clock.clone()).unwrap();
        for _ in 0..3 {
            clock.advance(TimeDelta::hours(1));
            firsts_after(&audit, &dir).await;
        }
        drop(audit);
        let terms = kept(terms, segment_age, Some(86_400));
        let (audit, faults) = faulty_by(&dir, DEADLINE, terms, clock.clone());
        let before = firsts_after(&audit, &dir).await;
        assert_eq!((before.len(), before[0]), (4, 1));
        faults.no_room.store(true, Ordering::SeqCst);
        let filler = "x".repeat(400_000);
        let mut fitted = 0;
        while audit.record(&[entry(&filler)]).await.is_ok() {
            fitted += 1;
            assert!(fitted < 20);
        }
        clock.advance(TimeDelta::days(2));
        audit.tick();
        // The writer is done with that once it has taken another; and it tries to remove a segment once.
        audit.record(&[end("task_01jd0000000000000000000000")]).await.unwrap();
        audit.record(&[end("task_01jd0000000000000000000000")]).await.unwrap();
        let after = Segment::list(&dir).unwrap();
        assert_eq!((after.len(), after[0].first), (1, before[3]), "{segment_age}: {after:?}");
        drop(audit);
        assert_eq!(first_bad(&dir), None);
        let text = std::fs::read_to_string(&after[0].path).unwrap();
        assert_eq!(text.matches("segment_dropped").count(), 3);
    }
}

/// Whoever ends what is theirs may do so as often as they like.
#[tokio::test]
async fn nobody_uses_up_the_reserve_on_what_is_theirs() {
    let (_root, dir) = log();
    let (audit, faults) = faulty(&dir, Duration::from_millis(300));
    audit.record(&[entry("a")]).await.unwrap();
    faults.no_room.store(true, Ordering::SeqCst);
    let filler = "x".repeat(100_000);
    while audit.record(&[entry(&filler)]).await.is_ok() {}
    let [name, text] = ["spiffe://example.com/w", "w"].map(str::to_owned);
    let workload = Actor::Workload { workload: name, instance: text.clone(), attestor: text.clone(), evidence: text };
    let owner = Actor::Owner { name: "ann".into(), owner: "team".into() };
    let asked = |actor: &Actor| {
        let event = Event::EndRequested { state: State::Revoked, reason: Some("x".repeat(1000)) };
        Entry { actor: actor.clone(), event, ..end("task_01jd0000000000000000000000") }
    };
    let mut fitted = 0;
    while audit.record(&[asked(&workload)]).await.is_ok() {
        fitted += 1;
        assert!(fitted < 600, "there is no bound");
    }
    assert!(fitted > 50, "{fitted}: some of it is theirs");
    audit.record(&[asked(&owner)]).await.unwrap_err();
    // How it went, they may always say.
    let went = Event::CredentialRevoked { lease: LeaseId::random().unwrap(), settles: Span(1, 1) };
    audit.record(&[Entry { actor: workload, event: went, ..end("task_01jd0000000000000000000000") }]).await.unwrap();
    audit.record(&[asked(&Actor::Broker)]).await.unwrap();
    audit.record(&[end("task_01jd0000000000000000000000")]).await.unwrap();
}

/// The public keys of a log.
fn keys(dir: &Path) -> CheckpointKeys {
    CheckpointKeys::read(&std::fs::read_to_string(dir.join(checkpoint::KEYS)).unwrap()).unwrap()
}

/// The checkpoints beside a log, each with the record that it names.
fn checkpoints(dir: &Path) -> Vec<(u64, String)> {
    checkpoints_of(&std::fs::read_to_string(dir.join(checkpoint::FILE)).unwrap(), dir)
}

fn checkpoints_of(text: &str, dir: &Path) -> Vec<(u64, String)> {
    let keys = keys(dir);
    text.lines().map(|line| (keys.verify(line).unwrap().head.sequence, format!("{line}\n"))).collect()
}

/// Takes away those of later records.
fn keep_checkpoints(dir: &Path, to: u64) {
    let kept: String = checkpoints(dir).into_iter().filter(|(at, _)| *at <= to).map(|(_, line)| line).collect();
    std::fs::write(dir.join(checkpoint::FILE), kept).unwrap();
}

/// The first bad record of a log.
fn first_bad(dir: &Path) -> Option<u64> {
    match examine(dir, &keys(dir), &[], |_| {}) {
        Ok(_) => None,
        Err(Verdict::Bad(fault)) => Some(fault.sequence),
        Err(Verdict::Unread(why)) => panic!("{why}"),
    }
}

/// A log in segments of four records: the first of each opens it.
async fn segmented(dir: &Path, terms: Terms, clock: Arc<ManualClock>, segments: u64) -> SigningKey {
    let retention = terms.keeping.retention;
    let terms = kept(terms, 1, retention);
    let key = terms.key.clone();
    let audit = Audit::open(dir, terms, clock.clone()).unwrap();
    let newest = || Segment::list(dir).unwrap().pop().unwrap().first;
    if retention.is_some() {
        // Nothing is removed before.
        clock.advance(TimeDelta::hours(1));
    }
    for segment in 0..segments {
        let last = newest();
        for record in 0..3 {
            audit.record(&[entry(&format!("{segment}.{record}"))]).await.unwrap();
        }
        clock.advance(TimeDelta::seconds(5));
        while newest() <= last {
            audit.tick();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    key
}

#[tokio::test]
async fn a_log_goes_on_in_another_segment_and_after_another_start() {
    let (_root, dir) = log();
    let key = segmented(&dir, terms(), clock(), 3).await;
    let firsts: Vec<_> = Segment::list(&dir).unwrap().iter().map(|segment| segment.first).collect();
    assert_eq!(firsts, [1, 5, 9, 13]);
    let again = Audit::open(&dir, Terms { key: key.clone(), ..terms() }, clock()).unwrap();
    again.record(&[entry("last")]).await.unwrap();
    drop(again);
    let examined = examine(&dir, &keys(&dir), &[], |_| {}).unwrap();
    assert_eq!((examined.first, examined.last, examined.segments, examined.signed_to), (1, 14, 4, 14));

    // A crash between a new segment and its first record, or in the middle of that.
    let text = std::fs::read_to_string(Segment::of(&dir, 13).path).unwrap();
    std::fs::remove_file(Segment::of(&dir, 13).path).unwrap();
    keep_checkpoints(&dir, 12);
    for left in ["", &text[..20]] {
        std::fs::write(Segment::of(&dir, 13).path, left).unwrap();
        let again = Audit::open(&dir, Terms { key: key.clone(), ..terms() }, clock()).unwrap();
        again.record(&[entry("last")]).await.unwrap();
        drop(again);
        assert_eq!(first_bad(&dir), None);
        keep_checkpoints(&dir, 12);
    }
}

/// Whoever sends the records on has each of them, those that the log writes of itself too.
#[tokio::test]
async fn what_the_log_says_of_itself_is_sent_on_too() {
    let (_root, dir) = log();
    let clock = clock();
    let terms = kept(terms(), 1, Some(0));
    let audit = Audit::open(&dir, terms, clock.clone()).unwrap();
    let (send, copied) = std::sync::mpsc::channel();
    audit.copy(move |copy| send.send((copy.sequence, copy.line.to_owned())).unwrap());
    clock.advance(TimeDelta::hours(1));
    for segment in 0..3 {
        audit.record(&[entry(&format!("{segment}"))]).await.unwrap();
        clock.advance(TimeDelta::seconds(5));
        let newest = || Segment::list(&dir).unwrap().pop().unwrap().first;
        let last = newest();
        while newest() == last {
            audit.tick();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    drop(audit);
    let copied: Vec<_> = copied.iter().collect();
    // The first record was written before anybody listened.
    let numbers: Vec<_> = copied.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (2..2 + copied.len() as u64).collect::<Vec<_>>());
    for event in ["segment_opened", "segment_dropped"] {
        assert!(copied.iter().any(|(_, line)| line.contains(event)), "{event}");
    }
}

#[tokio::test]
async fn a_log_whose_checkpoints_were_taken_away_is_not_good() {
    let (_root, dir) = log();
    segmented(&dir, terms(), clock(), 3).await;
    assert_eq!(first_bad(&dir), None);
    for (kept, bad) in [(12, None), (11, Some(9)), (4, Some(5)), (3, Some(2)), (0, Some(1))] {
        keep_checkpoints(&dir, kept);
        assert_eq!(first_bad(&dir), bad, "up to {kept}");
    }
}

#[tokio::test]
async fn records_of_hours_that_nobody_signed_are_not_good() {
    let (_root, dir) = log();
    let (key, clock) = (terms(), clock());
    let record = async |hours| {
        let audit = Audit::open(&dir, key.clone(), clock.clone()).unwrap();
        for _ in 0..3 {
            audit.record(&[Entry { time: clock.now(), ..entry("a") }]).await.unwrap();
        }
        clock.advance(TimeDelta::hours(hours));
        // What the clock went on by is signed before it is added to.
        audit.record(&[Entry { time: clock.now(), ..entry("b") }]).await.unwrap();
        let signed: Vec<_> = checkpoints(&dir).iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(first_bad(&dir), None);
        drop(audit);
        signed
    };
    assert_eq!(record(1).await, [1, 4]);
    keep_checkpoints(&dir, 1);
    assert_eq!(first_bad(&dir), None, "within an hour");
    assert_eq!(record(2).await, [1, 5, 8]);
    keep_checkpoints(&dir, 5);
    assert_eq!(first_bad(&dir), Some(6));
}

#[tokio::test]
async fn a_part_of_a_checkpoint_takes_no_other_with_it() {
    let (_root, dir) = log();
    let (terms, path) = (terms(), dir.join(checkpoint::FILE));
    let open = || Audit::open(&dir, terms.clone(), clock());
    let audit = open().unwrap();
    audit.record(&[entry("a")]).await.unwrap();
    drop(audit);
    let signed = std::fs::read_to_string(&path).unwrap();
    let part = &signed[..50];
    // On a line of its own, wherever it is kept.
    std::fs::write(&path, format!("{signed}{part}")).unwrap();
    let (_, last) = checkpoints_of(&signed, &dir).pop().unwrap();
    checkpoint::append(&mut checkpoint::open(&path).unwrap(), last.trim_end()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{signed}{part}\n{last}"));
    // It is told, and the rest goes on.
    let examined = examine(&dir, &keys(&dir), &[], |_| {}).unwrap();
    assert_eq!((examined.signed_to, examined.unread.len()), (2, 1), "{examined:?}");
    assert!(examined.unread[0].contains("checkpoints, line 3: "), "{examined:?}");
    for left in [format!("{signed}{part}\n"), format!("{signed}{part}"), format!("{signed}\0\u{fffd}\n")] {
        std::fs::write(&path, left).unwrap();
        let audit = open().unwrap();
        audit.record(&[entry("b")]).await.unwrap();
        drop(audit);
        assert_eq!(first_bad(&dir), None);
        let reopened = examine(&dir, &keys(&dir), &[], |_| {}).unwrap();
        assert_eq!(reopened.signed_to, reopened.last);
    }
    // But not where it takes all of them, or a part of the log, with it.
    std::fs::write(&path, format!("{part}\n")).unwrap();
    assert!(open().err().unwrap().0.contains("no checkpoint is this broker's"));
    std::fs::write(&path, format!("{signed}{part}\n")).unwrap();
    let text = std::fs::read_to_string(file(&dir)).unwrap();
    std::fs::write(file(&dir), text.split_inclusive('\n').next().unwrap()).unwrap();
    assert!(open().err().unwrap().0.contains("ends at record 1, and record 2 was signed"));
}

/// However many checkpoints there are, and whatever stands among them.
#[tokio::test]
async fn the_last_checkpoint_is_found_from_the_end() {
    let (_root, dir) = log();
    let (terms, path) = (terms(), dir.join(checkpoint::FILE));
    let open = || Audit::open(&dir, terms.clone(), clock());
    let audit = open().unwrap();
    audit.record(&[entry("a")]).await.unwrap();
    drop(audit);
    let signed = std::fs::read_to_string(&path).unwrap();
    let bad = |lines: usize| format!("{}\n", "x.y".repeat(50)).repeat(lines);
    for (before, after) in [(0, 0), (2000, 0), (0, 2000), (2000, 2000)] {
        for torn in ["", "x", &*"x".repeat(200_000)] {
            let text = [&bad(before), &*signed, &bad(after)].concat();
            std::fs::write(&path, format!("{text}{torn}")).unwrap();
            drop(open().unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "the end is signed, and what is torn is cut off");
        }
    }
}

#[tokio::test]
async fn a_bundle_holds_nothing_that_is_not_signed() {
    let (_root, dir) = log();
    let audit = Audit::open(&dir, terms(), clock()).unwrap();
    audit.record(&[entry("a"), entry("b")]).await.unwrap();
    let bundle = || {
        let bundle = Bundle::export(&dir, &keys(&dir), &Selection::default(), clock().now()).unwrap();
        serde_json::to_value(bundle).unwrap()
    };
    let proven = |bundle: &Value| {
        let proven = Bundle::read(bundle.to_string().as_bytes()).unwrap().verify(&keys(&dir), |_| {});
        proven.map(|proven| (proven.records, proven.unsigned))
    };
    // The record that opens the log is signed at once.
    assert_eq!(proven(&bundle()).unwrap(), (1, 2));
    drop(audit);
    let mut whole = bundle();
    assert_eq!(proven(&whole).unwrap(), (3, 0));
    whole["runs"][1]["checkpoint"] = Value::Null;
    let Err(Verdict::Bad(fault)) = proven(&whole) else { panic!("it is good") };
    assert_eq!(fault.sequence, 2, "{}", fault.what);
}

#[tokio::test]
async fn a_segment_is_removed_when_it_was_kept_for_long_enough() {
    let (_root, dir) = log();
    let terms = terms();
    let clock = clock();
    segmented(&dir, kept(terms.clone(), 1, Some(0)), clock.clone(), 4).await;
    segmented(&dir, terms, clock, 2).await;
    let segments = Segment::list(&dir).unwrap();
    assert!(segments[0].first > 1, "{segments:?}");
    let mut dropped = Vec::new();
    let examined = examine(&dir, &keys(&dir), &[], |record| {
        if record.text("event") == Some("segment_dropped") {
            dropped.push(record.members["last"].as_u64().unwrap());
        }
    });
    let examined = examined.unwrap();
    assert_eq!((examined.first, examined.removed), (segments[0].first, segments[0].first - 1));
    assert_eq!(dropped.last(), Some(&(segments[0].first - 1)));
    // More than it says is gone is found out.
    std::fs::remove_file(&segments[0].path).unwrap();
    assert!(first_bad(&dir).is_some());
}

#[tokio::test]
async fn how_old_a_segment_is_the_log_says() {
    let (_root, dir) = log();
    let terms = kept(terms(), 60, Some(86_400));
    let clock = clock();
    let audit = Audit::open(&dir, terms, clock.clone()).unwrap();
    let firsts = async |age: TimeDelta| {
        audit.record(&[entry("a")]).await.unwrap();
        // As old as can be, to whoever asks the file.
        let file = std::fs::File::options().append(true).open(Segment::list(&dir).unwrap().pop().unwrap().path);
        file.unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        clock.advance(age);
        audit.tick();
        // The writer is done with that once it has taken another.
        audit.record(&[entry("b")]).await.unwrap();
        audit.record(&[entry("c")]).await.unwrap();
        Segment::list(&dir).unwrap().iter().map(|segment| segment.first).collect::<Vec<_>>()
    };
    assert_eq!(firsts(TimeDelta::hours(1)).await.len(), 2);
    let kept = firsts(TimeDelta::hours(1)).await;
    assert_eq!((kept.len(), kept[0]), (3, 1), "nothing is a day old");
    assert_eq!(firsts(TimeDelta::hours(24)).await[0], kept[2], "what ended a day ago is gone");
}

/// The first records of the segments, once the writer has done what is due and taken another record.
async fn firsts_after(audit: &Audit, dir: &Path) -> Vec<u64> {
    audit.tick();
    audit.record(&[entry("a")]).await.unwrap();
    audit.record(&[entry("b")]).await.unwrap();
    Segment::list(dir).unwrap().iter().map(|segment| segment.first).collect()
}

#[tokio::test]
async fn a_clock_that_is_wrong_for_a_while_removes_nothing() {
    let (_root, dir) = log();
    let (terms, clock) = (kept(terms(), 3600, Some(10 * 86_400)), clock());
    let open = || Audit::open(&dir, terms.clone(), clock.clone()).unwrap();
    let audit = open();
    let mut whole = firsts_after(&audit, &dir).await;
    for _ in 0..2 {
        clock.advance(TimeDelta::days(1));
        whole = firsts_after(&audit, &dir).await;
    }
    assert_eq!(whole.len(), 3);
    let far = TimeDelta::days(26_000);
    clock.set(far);
    let after = firsts_after(&audit, &dir).await;
    assert_eq!((after.len(), &after[..3]), (4, &whole[..]), "another segment begins, and none is gone");
    clock.set(-far);
    let after = firsts_after(&audit, &dir).await;
    assert_eq!((after.len(), &after[..3]), (5, &whole[..]));
    // Wrong when it was started as well, and started twice.
    drop(audit);
    clock.set(far);
    for started in 1..=2 {
        let audit = open();
        let after = firsts_after(&audit, &dir).await;
        assert_eq!(&after[..3], &whole[..], "start {started}");
        clock.advance(TimeDelta::minutes(40));
        assert_eq!(&firsts_after(&audit, &dir).await[..3], &whole[..], "start {started}");
    }
    clock.set(-far);
    // What began in the future is as old as what came after it.
    let audit = open();
    firsts_after(&audit, &dir).await;
    let newest = firsts_after(&audit, &dir).await.pop().unwrap();
    clock.advance(TimeDelta::days(11));
    firsts_after(&audit, &dir).await;
    let after = firsts_after(&audit, &dir).await;
    assert!(after[0] >= newest, "{after:?} after {newest}");
    drop(audit);
    assert_eq!(first_bad(&dir), None);
}

#[tokio::test]
async fn what_was_removed_only_a_signed_record_says() {
    let (root, dir) = log();
    let key = segmented(&dir, terms(), clock(), 2).await;
    // As good as it can be done without the key: the log says so, at its end.
    let last = Segment::list(&dir).unwrap().pop().unwrap().path;
    let text = std::fs::read_to_string(&last).unwrap();
    let opening = Record::read(text.lines().next().unwrap().as_bytes()).unwrap();
    let mut head = opening.before().followed_by(&opening).unwrap();
    let event = Event::SegmentDropped { first: 1, last: 4 };
    let said = Unplaced::of(&Entry { actor: Actor::Broker, event, ..entry("") }).unwrap().place(&mut head);
    std::fs::write(&last, format!("{text}{said}\n")).unwrap();
    assert_eq!(first_bad(&dir), None);
    std::fs::remove_file(file(&dir)).unwrap();
    assert_eq!(first_bad(&dir), Some(1));
    // Nor does one that a broker found when it was started, and signed with everything else.
    drop(witnessed(root.path(), &dir, &key).unwrap());
    assert!(checkpoints(&dir).iter().any(|(sequence, _)| *sequence > head.sequence));
    assert_eq!(first_bad(&dir), Some(1));
}

/// A log that is noted outside it as well.
fn witnessed(journal: &Path, dir: &Path, key: &SigningKey) -> Result<Audit, Unrecorded> {
    let remembered = Remembered { here: Some(Witness::open(journal).unwrap()), elsewhere: None };
    Found::open(dir)?.go_on(Terms { key: key.clone(), ..terms() }, clock(), remembered)
}

#[tokio::test]
async fn another_log_of_the_same_name_that_begins_later_is_not_written_on() {
    let (root, dir) = log();
    let key = segmented(&dir, terms(), clock(), 2).await;
    drop(witnessed(root.path(), &dir, &key).unwrap());
    let opening = std::fs::read_to_string(file(&dir)).unwrap();
    let name = Record::read(opening.lines().next().unwrap().as_bytes()).unwrap().text("log").unwrap().to_owned();
    for segment in Segment::list(&dir).unwrap() {
        std::fs::remove_file(segment.path).unwrap();
    }
    let mut head = Head { sequence: 1999, ..Head::NONE };
    let events = [Event::SegmentOpened { log: name }, Event::SegmentDropped { first: 1, last: 1999 }];
    let entries = events.map(|event| Entry { actor: Actor::Broker, event, ..entry("") }).into_iter();
    let text: String =
        entries.chain([entry("forged")]).map(|entry| Unplaced::of(&entry).unwrap().place(&mut head) + "\n").collect();
    std::fs::write(Segment::of(&dir, 2000).path, text).unwrap();
    let refused = witnessed(root.path(), &dir, &key).err().unwrap();
    assert!(refused.0.contains("it begins after record 9, the last that was written"), "{refused}");
    assert_eq!(checkpoints(&dir).last().unwrap().0, 9, "nothing of it is signed");
}

#[tokio::test]
async fn whatever_is_done_to_the_files_names_the_first_bad_record() {
    let (_root, dir) = log();
    let key = segmented(&dir, terms(), clock(), 3).await;
    assert_eq!(first_bad(&dir), None);
    let path = |first| Segment::of(&dir, first).path;
    let text = |first| std::fs::read_to_string(path(first)).unwrap();
    let second = text(5);
    let lines: Vec<_> = second.split_inclusive('\n').collect();
    let spoil = |first, text: &str| {
        let _ = std::fs::remove_file(path(first));
        std::fs::write(path(first), text).unwrap();
    };
    let forged = {
        // As good as it can be done without the key: the rest is chained anew, to the end of the log.
        let mut head = Record::read(lines[2].trim_end().as_bytes()).unwrap().before();
        let all: Vec<_> = [lines[2..].concat(), text(9), text(13)].concat().lines().map(str::to_owned).collect();
        let first = all[0].clone();
        let anew = |line: &String| {
            let line = if *line == first { line.replace("1.1", "9.9") } else { line.clone() };
            let previous = serde_json::from_str::<Value>(&line).unwrap()["previous"].as_str().unwrap().to_owned();
            let line = line.replace(&previous, &head.digest.to_string());
            head = head.followed_by(&Record::read(line.as_bytes()).unwrap()).unwrap();
            line + "\n"
        };
        all.iter().map(anew).collect::<Vec<_>>()
    };
    let cases: [(&str, u64, String); 7] = [
        ("edit", 7, second.replace("1.1", "9.9")),
        ("delete", 7, [lines[0], lines[1], lines[3]].concat()),
        ("insert", 8, [lines[0], lines[1], lines[2], lines[2], lines[3]].concat()),
        ("reorder", 7, [lines[0], lines[1], lines[3], lines[2]].concat()),
        ("cut", 8, lines[..3].concat()),
        ("another writing", 7, second.replacen(lines[2], &lines[2].replacen(',', ", ", 1), 1)),
        (
            "chained anew, found out by the checkpoint at its end",
            5,
            [lines[0], lines[1], &forged[0], &forged[1]].concat(),
        ),
    ];
    for (what, bad, spoiled) in cases {
        spoil(5, &spoiled);
        assert_eq!(first_bad(&dir), Some(bad), "{what}");
        spoil(5, &second);
    }
    assert_eq!(first_bad(&dir), None);
    // Two segments by each other's names; one that is gone; the end that is gone.
    let (third, last) = (text(9), text(13));
    spoil(5, &third);
    spoil(9, &second);
    assert_eq!(first_bad(&dir), Some(5));
    spoil(5, &second);
    spoil(9, &third);
    std::fs::remove_file(path(5)).unwrap();
    assert_eq!(first_bad(&dir), Some(5));
    spoil(5, &second);
    std::fs::remove_file(path(13)).unwrap();
    assert_eq!(first_bad(&dir), Some(13));
    let refused = Audit::open(&dir, Terms { key: key.clone(), ..terms() }, clock()).err().unwrap();
    assert!(refused.0.contains("ends at record 12, and record 13 was signed"), "{refused}");
    spoil(13, &last);
    // Everything is chained anew: only what was signed shows it.
    spoil(5, &[lines[0], lines[1], &forged[0], &forged[1]].concat());
    spoil(9, &forged[2..6].concat());
    spoil(13, &forged[6..].concat());
    assert_eq!(
        first_bad(&dir),
        Some(5),
        "the checkpoint at the end of the second segment is the first that does not fit"
    );
    let refused = Audit::open(&dir, Terms { key, ..terms() }, clock()).err().unwrap();
    assert!(refused.0.contains("its record 13 is not the one that was written, says the last checkpoint"), "{refused}");
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let (_root, dir) = log();
    let pause = Duration::from_millis(500);
    let (audit, faults) = faulty(&dir, pause);
    audit.record(&[entry("a")]).await.unwrap();

    faults.disk_full.store(true, Ordering::SeqCst);
    let refused = audit.record(&[entry("b"), entry("c")]).await.unwrap_err();
    assert!(refused.0.contains("could not be written"), "{refused}");
    assert!(!audit.is_healthy());
    assert_eq!(whys(&dir), ["a"], "the part that was written is cut off");
    tokio::time::sleep(pause).await;
    assert!(audit.is_healthy(), "somebody has to be let in to try again");

    faults.disk_full.store(false, Ordering::SeqCst);
    audit.record(&[entry("d")]).await.unwrap();
    assert!(audit.is_healthy());
    assert_eq!(whys(&dir), ["a", "d"]);
    assert_numbered(&dir, 1, 2);
}

#[tokio::test]
async fn a_failed_sync_is_final() {
    let (_root, dir) = log();
    let (audit, faults) = faulty(&dir, DEADLINE);
    faults.broken_sync.store(true, Ordering::SeqCst);
    audit.record(&[entry("a")]).await.unwrap_err();
    faults.broken_sync.store(false, Ordering::SeqCst);
    let refused = audit.record(&[entry("b")]).await.unwrap_err();
    assert!(refused.0.contains("start the broker again"), "{refused}");
    assert!(!audit.is_healthy());
    assert_eq!(faults.syncs.load(Ordering::SeqCst), 1, "a second sync would succeed and mean nothing");

    drop(audit);
    let audit = open(&dir).unwrap();
    audit.record(&[entry("c")]).await.unwrap();
    assert_eq!(whys(&dir), ["a", "c"], "more than was acknowledged, never less");
}

#[tokio::test]
async fn a_write_that_cannot_be_undone_is_final() {
    let (_root, dir) = log();
    let (audit, faults) = faulty(&dir, DEADLINE);
    faults.disk_full.store(true, Ordering::SeqCst);
    faults.broken_cut.store(true, Ordering::SeqCst);
    audit.record(&[entry("a")]).await.unwrap_err();
    faults.disk_full.store(false, Ordering::SeqCst);
    audit.record(&[entry("b")]).await.unwrap_err();
    assert!(!audit.is_healthy());

    drop(audit);
    let audit = open(&dir).unwrap();
    audit.record(&[entry("c")]).await.unwrap();
    assert_eq!(whys(&dir), ["c"]);
}

#[tokio::test]
async fn a_disk_that_hangs_is_not_waited_for() {
    let (_root, dir) = log();
    let deadline = Duration::from_millis(300);
    let (audit, faults) = faulty(&dir, deadline);
    faults.gate(true);
    let refused = audit.record(&[entry("a")]).await.unwrap_err();
    assert!(refused.0.contains("did not take the entries"), "{refused}");
    // The caller waits from when it asked, the writer from when it began: a moment later both have given up.
    tokio::time::sleep(deadline / 3).await;
    assert!(!audit.is_healthy());
    let again = Instant::now();
    audit.record(&[entry("b")]).await.unwrap_err();
    assert!(again.elapsed() < deadline, "nobody queues behind a disk that hangs");

    faults.gate(false);
    let healthy = async {
        while !audit.is_healthy() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), healthy).await.unwrap();
    audit.record(&[entry("c")]).await.unwrap();
    assert_eq!(whys(&dir), ["a", "c"]);
}

#[tokio::test]
async fn no_text_makes_a_second_line() {
    let (_root, dir) = log();
    let audit = open(&dir).unwrap();
    let forged = "{\"sequence\":7,\"event\":\"forged\"}";
    for c in (0..=0x9f).chain([0x200e, 0x2028, 0x2029, 0x202e, 0x2066]).filter_map(char::from_u32) {
        let why = format!("x{c}{forged}{c}");
        audit.record(&[entry(&why)]).await.unwrap();
        let text = std::fs::read_to_string(file(&dir)).unwrap();
        let line = text.trim_end_matches('\n').rsplit('\n').next().unwrap();
        assert!(!line.contains(is_active), "{line:?}");
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["at"], why, "escaped, not changed");
    }
    assert_numbered(&dir, 1, 0xa0 + 5);
}

#[tokio::test]
async fn too_much_at_once_is_refused() {
    let (_root, dir) = log();
    let audit = open(&dir).unwrap();
    let refused = audit.record(&[entry(&"x".repeat(GROUP / 2))]).await.unwrap_err();
    assert!(refused.0.contains("at once"), "{refused}");
    assert!(audit.is_healthy());
    audit.record(&[entry("a")]).await.unwrap();
    assert_numbered(&dir, 1, 1);
}

/// What a reader gets: every durable line once, over all segments, and of a narrow window no others' segments.
#[tokio::test]
async fn the_log_is_read_back_segment_by_segment() {
    let (_root, dir) = log();
    let clock = clock();
    let terms = kept(terms(), 3600, None);
    let audit = Audit::open(&dir, terms, clock.clone()).unwrap();
    for at in 0..5 {
        let time = clock.now();
        audit.record(&[Entry { time, ..entry(&format!("thing {at}")) }]).await.unwrap();
        clock.advance(TimeDelta::hours(24));
        audit.tick();
        // The writer begins another segment when it gets to it.
        while audit.reader().chapters().unwrap().len() < at + 2 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    let reader = audit.reader();
    let read = |since: Option<Time>, until: Option<Time>| {
        let mut found = Vec::new();
        for chapter in reader.chapters().unwrap().iter().filter(|chapter| chapter.may_hold(since, until)) {
            let read = reader.read(chapter, |sequence, line| {
                let record = Record::read(line.as_bytes()).unwrap();
                assert_eq!(record.sequence, sequence);
                found.extend(record.text("at").map(str::to_owned));
                std::ops::ControlFlow::<()>::Continue(())
            });
            assert!(read.unwrap().is_continue());
        }
        found
    };
    let things = |of: std::ops::Range<usize>| of.map(|at| format!("thing {at}")).collect::<Vec<_>>();
    assert_eq!(read(None, None), things(0..5));
    let began = clock.now() - TimeDelta::hours(5 * 24);
    let narrow = read(Some(began + TimeDelta::hours(48)), Some(began + TimeDelta::hours(49)));
    assert!(narrow.contains(&"thing 2".to_owned()) && narrow.len() <= 2, "{narrow:?}");
    // A line that is not durable is not there yet, and a half of one never is.
    let last = Segment::list(&dir).unwrap().pop().unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(last.path).unwrap();
    io::Write::write_all(&mut file, b"{\"at\":\"not yet\"}\n{\"at\":").unwrap();
    assert_eq!(read(None, None), things(0..5));
}
