//! The status lists as this broker has seen them. The store says which bits are set; here none is ever unset, so that a store
//! that lost some, or was made to, revives nothing at whoever asks this broker.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    clock::Time,
    task::{STATUS_LIST_ENTRIES, StatusIndex},
};

/// How long a verifier may keep a list before it fetches it again, and a cache on the way may keep it, in seconds.
pub const STATUS_LIST_TTL: u32 = 4;
/// How long a list is worth anything, in seconds from when the store was asked: by then, at the latest, every verifier denies
/// what was revoked. It holds `ttl` twice (a cache and a verifier), a second in which the broker repeats it, and some for the way.
pub const STATUS_LIST_LIFE: u32 = 10;
/// How long a list that was signed is given out before the store is asked again, or a store that was in doubt.
const FRESH: Duration = Duration::from_secs(1);
/// How many lists are remembered. Live tasks stand in the newest few.
const MOST: usize = 256;

/// All lists that this broker has published.
#[derive(Debug, Default)]
pub struct StatusLists(Mutex<BTreeMap<u64, Arc<View>>>);

/// One list.
#[derive(Debug)]
pub struct View {
    bits: Mutex<Bits>,
    turn: tokio::sync::Mutex<Turn>,
}

/// What is set, and how often anything was set by this broker itself.
#[derive(Debug)]
struct Bits {
    octets: Vec<u8>,
    version: u64,
}

/// What was last signed, and when that was last tried.
#[derive(Debug, Default)]
pub struct Turn {
    signed: Option<Signed>,
    tried: Option<(Instant, u64)>,
}

/// A list, signed.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The Status List Token.
    pub token: String,
    /// The id of the key.
    pub kid: String,
    /// From when on it is worth nothing.
    pub exp: i64,
    /// When the store was asked.
    pub asked: Instant,
}

impl StatusLists {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<u64, Arc<View>>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A list that was published before.
    #[must_use]
    pub fn get(&self, list: u64) -> Option<Arc<View>> {
        self.with(|lists| lists.get(&list).cloned())
    }

    /// A list that exists.
    #[must_use]
    pub fn open(&self, list: u64) -> Arc<View> {
        self.with(|lists| {
            let view = lists.entry(list).or_default().clone();
            while lists.len() > MOST {
                lists.pop_first();
            }
            view
        })
    }

    /// Sets the bit of a task that this broker has ended.
    pub fn mark(&self, StatusIndex { list, index }: StatusIndex) {
        self.open(list).with(|bits| {
            if let Some(octet) = bits.octets.get_mut(index as usize / 8) {
                *octet |= 1 << (index % 8);
            }
            bits.version += 1;
        });
    }
}

impl Default for View {
    fn default() -> Self {
        let octets = vec![0; STATUS_LIST_ENTRIES as usize / 8];
        Self { bits: Mutex::new(Bits { octets, version: 0 }), turn: tokio::sync::Mutex::default() }
    }
}

impl View {
    fn with<T>(&self, act: impl FnOnce(&mut Bits) -> T) -> T {
        act(&mut self.bits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until nobody else is asking the store for this list.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, Turn> {
        self.turn.lock().await
    }

    /// Whether it is time to ask the store; if so, it counts as asked now.
    pub fn is_due(&self, turn: &mut Turn) -> bool {
        let version = self.with(|bits| bits.version);
        let due = turn.tried.is_none_or(|(at, tried)| tried != version || at.elapsed() >= FRESH);
        if due {
            turn.tried = Some((Instant::now(), version));
        }
        due
    }

    /// Adds what the store says is set, and yields all that is.
    #[must_use]
    pub fn unite(&self, octets: &[u8]) -> Vec<u8> {
        self.with(|bits| {
            for (held, octet) in bits.octets.iter_mut().zip(octets) {
                *held |= octet;
            }
            bits.octets.clone()
        })
    }
}

impl Turn {
    /// The store was in doubt: whoever waited meanwhile does not wait for it again.
    pub fn missed(&mut self) {
        self.tried = self.tried.map(|(_, version)| (Instant::now(), version));
    }

    /// Forgets what was signed with a key like that.
    pub fn distrust(&mut self, is_tainted: impl FnOnce(&str) -> bool) {
        if self.signed.as_ref().is_some_and(|signed| is_tainted(&signed.kid)) {
            *self = Self::default();
        }
    }

    /// Keeps what was signed.
    pub fn keep(&mut self, signed: Signed) {
        self.signed = Some(signed);
    }

    /// What was signed last, and for how many seconds it may be kept, unless it is worth nothing any more, by either clock.
    #[must_use]
    pub fn current(&self, now: Time) -> Option<(String, u32)> {
        let signed = self.signed.as_ref()?;
        let left = u32::try_from(signed.exp - now.timestamp()).ok().filter(|left| *left > 0)?;
        let worth = signed.asked.elapsed() < Duration::from_secs(STATUS_LIST_LIFE.into());
        worth.then(|| (signed.token.clone(), left.min(STATUS_LIST_TTL)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn what_is_set_stays_set() {
        let lists = StatusLists::default();
        lists.mark(StatusIndex { list: 0, index: 9 });
        let view = lists.get(0).unwrap();
        let mut store = vec![0; STATUS_LIST_ENTRIES as usize / 8];
        store[0] = 1;
        let all = view.unite(&store);
        assert_eq!((all[0], all[1], all.len()), (1, 2, 8192));
        store[0] = 0;
        assert_eq!(view.unite(&store), all);
        // No place of any task: nothing is set, and nothing breaks.
        lists.mark(StatusIndex { list: 0, index: STATUS_LIST_ENTRIES });
        assert_eq!(view.unite(&store), all);
    }

    #[tokio::test]
    async fn the_store_is_asked_once_a_second_or_after_an_end_of_our_own() {
        let lists = StatusLists::default();
        let view = lists.open(3);
        let mut turn = view.turn().await;
        assert!(view.is_due(&mut turn) && !view.is_due(&mut turn));
        lists.mark(StatusIndex { list: 3, index: 1 });
        assert!(view.is_due(&mut turn) && !view.is_due(&mut turn));
        let later =
            |turn: &mut Turn| turn.tried = turn.tried.map(|(at, version)| (at.checked_sub(FRESH).unwrap(), version));
        later(&mut turn);
        assert!(view.is_due(&mut turn));
        later(&mut turn);
        turn.missed();
        assert!(!view.is_due(&mut turn));
    }

    #[test]
    fn a_list_is_given_out_until_its_end_by_either_clock() {
        let mut turn = Turn::default();
        assert_eq!(turn.current(now()), None);
        let exp = now().timestamp() + i64::from(STATUS_LIST_LIFE);
        turn.keep(Signed { token: "t".into(), kid: "k".into(), exp, asked: Instant::now() });
        let after = |seconds| turn.current(now() + chrono::TimeDelta::seconds(seconds));
        assert_eq!(after(0), Some(("t".into(), STATUS_LIST_TTL)));
        assert_eq!(after(9), Some(("t".into(), 1)));
        assert_eq!(after(10), None);
        let asked = Instant::now().checked_sub(Duration::from_secs(STATUS_LIST_LIFE.into())).unwrap();
        turn.keep(Signed { token: "t".into(), kid: "k".into(), exp, asked });
        assert_eq!(turn.current(now()), None, "the wall clock was set back");
    }

    #[test]
    fn old_lists_are_forgotten_first() {
        let lists = StatusLists::default();
        for list in 0..1000 {
            let _ = lists.open(list);
        }
        assert!(lists.get(743).is_none() && lists.get(744).is_some() && lists.get(999).is_some());
    }
}
