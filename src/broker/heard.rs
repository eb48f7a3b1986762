//! Which verifiers hold a state of the feed, and how far each has said to be: what tells when all of them deny.
//!
//! A verifier that says who it is, and which of its service's replicas, is followed one by one. What cannot be told apart or is not
//! named holds a state too: while it may, nobody says that all have heard.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, futures::Notified};

/// How many verifiers are told apart. Those beyond are as good as nameless.
const MOST: usize = 20_000;
/// How much longer than it should a verifier may go by a state, for what its clock may be off.
const SKEW: Duration = Duration::from_secs(1);

/// Who reads the feed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reader {
    /// The service.
    pub(super) service: String,
    /// Which of its replicas, where it says so.
    pub(super) replica: Option<String>,
}

/// How far a verifier is.
#[derive(Debug)]
struct Progress {
    /// Until when it may go by the last state that it was sent.
    holds_until: Instant,
    /// The last sequence that it said to go by.
    acknowledged: u64,
}

/// Who holds what this broker has said.
#[derive(Debug)]
pub(super) struct Readers {
    since: Instant,
    all: Mutex<Known>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    readers: HashMap<Reader, Progress>,
    /// Until when somebody may go by a state who did not say who they are.
    strangers_until: Option<Instant>,
}

/// How far those who hold a state are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    /// How many have said that they deny it.
    pub(super) acknowledged: u64,
    /// How many there are, of those that said who they are.
    pub(super) of: u64,
    /// Whether nobody else can hold a state that says otherwise.
    pub(super) by_all: bool,
}

impl Default for Readers {
    fn default() -> Self {
        Self { since: Instant::now(), all: Mutex::default(), news: Notify::new() }
    }
}

impl Readers {
    /// A state was sent, which is fresh for that long at most.
    pub(super) fn sent(&self, reader: Option<&Reader>, fresh: Duration) {
        let until = Instant::now() + fresh + SKEW;
        let mut known = self.lock();
        if let Some(reader) = reader {
            if let Some(progress) = known.readers.get_mut(reader) {
                progress.holds_until = progress.holds_until.max(until);
                return;
            }
            if known.readers.len() >= MOST {
                let now = Instant::now();
                known.readers.retain(|_, progress| progress.holds_until > now);
            }
            if known.readers.len() < MOST {
                known.readers.insert(reader.clone(), Progress { holds_until: until, acknowledged: 0 });
                return;
            }
        }
        known.strangers_until = known.strangers_until.max(Some(until));
    }

    /// A verifier has said that it goes by that sequence: the highest that it ever said. Of one that was sent nothing it says nothing.
    pub(super) fn acknowledged(&self, reader: &Reader, sequence: u64) -> u64 {
        let mut known = self.lock();
        let Some(progress) = known.readers.get_mut(reader) else { return sequence };
        progress.acknowledged = progress.acknowledged.max(sequence);
        let acknowledged = progress.acknowledged;
        drop(known);
        self.news.notify_waiters();
        acknowledged
    }

    /// Who has heard of what has this number. `longest`: for how long a state is fresh that was sent before this process began.
    pub(super) fn heard(&self, sequence: u64, longest: Duration) -> Heard {
        let (now, known) = (Instant::now(), self.lock());
        let strangers = known.strangers_until.is_some_and(|until| until > now);
        let from_before = now.duration_since(self.since) <= longest + SKEW;
        let mut heard = Heard { acknowledged: 0, of: 0, by_all: !strangers && !from_before };
        for (reader, progress) in known.readers.iter().filter(|(_, progress)| progress.holds_until > now) {
            let has_heard = progress.acknowledged >= sequence;
            heard.of += 1;
            heard.acknowledged += u64::from(has_heard);
            // One of several may have said it for all.
            heard.by_all &= has_heard && reader.replica.is_some();
        }
        heard
    }

    /// Waits until another verifier has heard of something.
    pub(super) fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Duration = Duration::ZERO;

    /// Readers of a broker that was started long ago.
    fn readers() -> Readers {
        let since = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        Readers { since, ..Readers::default() }
    }

    fn replica(name: Option<&str>) -> Reader {
        Reader { service: "git".into(), replica: name.map(str::to_owned) }
    }

    #[test]
    fn all_have_heard_when_each_replica_has() {
        let (readers, one, two) = (readers(), replica(Some("1")), replica(Some("2")));
        assert!(readers.heard(7, NOTHING).by_all, "nobody holds anything");
        readers.sent(Some(&one), Duration::from_secs(60));
        readers.sent(Some(&two), Duration::from_secs(60));
        assert_eq!(readers.acknowledged(&one, 7), 7);
        assert_eq!(readers.acknowledged(&one, 3), 7, "it never goes back");
        assert_eq!(readers.heard(7, NOTHING), Heard { acknowledged: 1, of: 2, by_all: false });
        readers.acknowledged(&two, 7);
        assert_eq!(readers.heard(7, NOTHING), Heard { acknowledged: 2, of: 2, by_all: true });
        assert!(!readers.heard(8, NOTHING).by_all);
    }

    #[test]
    fn whoever_cannot_be_told_apart_rules_it_out() {
        for reader in [None, Some(replica(None))] {
            let readers = readers();
            readers.sent(reader.as_ref(), Duration::from_secs(60));
            if let Some(reader) = &reader {
                readers.acknowledged(reader, 7);
            }
            assert!(!readers.heard(7, NOTHING).by_all, "{reader:?}");
        }
        // What was sent before a restart is fresh for a while, too.
        assert!(!Readers::default().heard(0, Duration::from_secs(5)).by_all);
        // An acknowledgement of what was never sent is none of a state that is sent afterwards.
        let (readers, reader) = (readers(), replica(Some("1")));
        readers.acknowledged(&reader, 9);
        readers.sent(Some(&reader), Duration::from_secs(60));
        assert!(!readers.heard(9, NOTHING).by_all);
    }
}
