use super::*;
use crate::audit::{Actor, Event};
use chrono::DateTime;
use serde_json::Value;
use std::{
    path::PathBuf,
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

fn lines(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join(FILE)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn whys(dir: &Path) -> Vec<String> {
    lines(dir).iter().map(|line| line["at"].as_str().unwrap().to_owned()).collect()
}

fn assert_numbered(dir: &Path, from: u64, to: u64) {
    let numbers: Vec<u64> = lines(dir).iter().map(|line| line["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (from..=to).collect::<Vec<_>>());
}

/// A real file whose writes and syncs fail or hang when told to.
struct Faulty {
    file: File,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    syncs: AtomicUsize,
    disk_full: AtomicBool,
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
            self.file.write_all(&bytes[..bytes.len() / 2])?;
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
}

fn faulty(dir: &Path, deadline: Duration) -> (Audit, Arc<Faults>) {
    let (file, end) = open(dir).unwrap();
    let faults = Arc::new(Faults::default());
    let medium = Faulty { file, faults: Arc::clone(&faults) };
    (Audit::start(medium, end, deadline).unwrap(), faults)
}

#[tokio::test]
async fn entries_are_on_disk_in_order_once_recorded() {
    let (_root, dir) = log();
    let audit = Audit::open(&dir).unwrap();
    audit.record(&[]).await.unwrap();
    audit.record(&[entry("a"), entry("b")]).await.unwrap();
    assert_eq!(whys(&dir), ["a", "b"]);
    audit.record(&[entry("c")]).await.unwrap();
    assert_eq!(whys(&dir), ["a", "b", "c"]);
    assert_numbered(&dir, 1, 3);
    let first = std::fs::read_to_string(dir.join(FILE)).unwrap();
    assert!(
        first.starts_with(
            r#"{"sequence":1,"time":"2026-02-02T02:40:00Z","request":"req-1","actor":{"as":"operator","name":"ada"},"event":"#
        ),
        "{first}"
    );
    assert!(audit.is_healthy());
}

#[tokio::test]
async fn only_the_owner_can_read_the_log() {
    let (_root, dir) = log();
    let _audit = Audit::open(&dir).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join(FILE))), (0o700, 0o600));
}

#[tokio::test]
async fn reopening_continues_the_numbers() {
    let (_root, dir) = log();
    let audit = Audit::open(&dir).unwrap();
    audit.record(&[entry("a"), entry("b")]).await.unwrap();
    drop(audit);
    let audit = Audit::open(&dir).unwrap();
    audit.record(&[entry("c")]).await.unwrap();
    assert_eq!(whys(&dir), ["a", "b", "c"]);
    assert_numbered(&dir, 1, 3);
}

#[tokio::test]
async fn a_second_broker_is_refused_until_the_first_is_gone() {
    let (_root, dir) = log();
    let first = Audit::open(&dir).unwrap();
    let clone = first.clone();
    drop(first);
    let refused = Audit::open(&dir).err().unwrap();
    assert!(refused.0.contains("another broker has the audit log"), "{refused}");
    drop(clone);
    Audit::open(&dir).unwrap();
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

#[tokio::test]
async fn what_a_crash_left_incomplete_is_cut_off() {
    let whole = "{\"sequence\":1,\"at\":\"a\"}\n{\"sequence\":2,\"at\":\"b\"}\n";
    let tails: [&[u8]; 4] = [
        b"{\"sequence\":3,\"wh",
        b"\0\0\0\0\0\0\0\0",
        b"{\"sequence\":3,\"at\":\"c\0\0\0\0\n{\"sequence\":5,\"at\":\"e\"}\n",
        b"{\"sequence\":3,\"at\":\"c\"}",
    ];
    for tail in tails {
        let (_root, dir) = log();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(FILE), [whole.as_bytes(), tail].concat()).unwrap();
        let audit = Audit::open(&dir).unwrap();
        assert_eq!(whys(&dir), ["a", "b"], "{}", String::from_utf8_lossy(tail));
        audit.record(&[entry("d")]).await.unwrap();
        assert_eq!(whys(&dir), ["a", "b", "d"]);
        assert_numbered(&dir, 1, 3);
    }
}

#[test]
fn what_somebody_did_to_the_log_is_not_repaired() {
    let foreign = [
        "not a log\n".to_owned(),
        "{\"sequence\":1}\n{\"sequence\":3}\n".to_owned(),
        "{\"sequence\":2}\n".to_owned(),
        "{\"sequence\":1}\n\n".to_owned(),
        format!("{{\"sequence\":1}}\n{}", "x".repeat(GROUP + 1)),
        "x".repeat(3 * GROUP),
    ];
    for text in foreign {
        let (_root, dir) = log();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(FILE), &text).unwrap();
        let refused = Audit::open(&dir).err().unwrap();
        assert!(refused.0.contains("were not written by a broker"), "{refused}");
        assert_eq!(std::fs::read_to_string(dir.join(FILE)).unwrap(), text, "it is evidence");
    }
}

#[tokio::test]
async fn a_long_log_is_opened_by_its_end() {
    let (_root, dir) = log();
    std::fs::create_dir_all(&dir).unwrap();
    let filler = "x".repeat(1000);
    let lines: Vec<_> = (1..=4000).map(|number| format!("{{\"sequence\":{number},\"at\":\"{filler}\"}}\n")).collect();
    let text = lines.concat();
    std::fs::write(dir.join(FILE), text + "{\"seq").unwrap();
    let audit = Audit::open(&dir).unwrap();
    audit.record(&[entry("last")]).await.unwrap();
    assert_numbered(&dir, 1, 4001);
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
    let audit = Audit::open(&dir).unwrap();
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
    let audit = Audit::open(&dir).unwrap();
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
    let audit = Audit::open(&dir).unwrap();
    let forged = "{\"sequence\":7,\"event\":\"forged\"}";
    for c in (0..=0x9f).chain([0x200e, 0x2028, 0x2029, 0x202e, 0x2066]).filter_map(char::from_u32) {
        let why = format!("x{c}{forged}{c}");
        audit.record(&[entry(&why)]).await.unwrap();
        let text = std::fs::read_to_string(dir.join(FILE)).unwrap();
        let line = text.trim_end_matches('\n').rsplit('\n').next().unwrap();
        assert!(!line.contains(is_active), "{line:?}");
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["at"], why, "escaped, not changed");
    }
    assert_numbered(&dir, 1, 0xa0 + 5);
}

#[tokio::test]
async fn too_much_at_once_is_refused() {
    let (_root, dir) = log();
    let audit = Audit::open(&dir).unwrap();
    let refused = audit.record(&[entry(&"x".repeat(GROUP / 2))]).await.unwrap_err();
    assert!(refused.0.contains("at once"), "{refused}");
    assert!(audit.is_healthy());
    audit.record(&[entry("a")]).await.unwrap();
    assert_numbered(&dir, 1, 1);
}
