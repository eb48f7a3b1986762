//! What services were told when they asked about a credential. Each hears an answer at every request, so not every answer is on record:
//! the first of a kind to a service is, the tenth, the hundredth, and so on. Nobody waits for it, and no answer depends on it.

use quick_cache::sync::Cache;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{Broker, Call, Introspection, entry};
use crate::{
    audit::{Actor, Event},
    claims::Claims,
    clock::Time,
    id::TaskId,
    party::Service,
};

/// Of how many kinds of answers it is known how often they were given.
const KINDS: usize = 64 * 1024;
/// How many records are made in a second, so that more kinds than are known fill no disk.
const PER_SECOND: u32 = 200;

/// How often which answer was given.
pub(super) struct Answered {
    given: Cache<String, Arc<AtomicU64>>,
    /// A second, and how many records were made in it.
    made: Mutex<(i64, u32)>,
}

impl Default for Answered {
    fn default() -> Self {
        Self { given: Cache::new(KINDS), made: Mutex::default() }
    }
}

impl Answered {
    fn was_given(&self, kind: &str) -> bool {
        self.given.get(kind).is_some_and(|times| times.load(Ordering::Relaxed) > 0)
    }

    /// Counts an answer; how many there were of its kind, where that is to be on record.
    fn count(&self, kind: &str, now: Time) -> Option<u64> {
        let given = self.given.get_or_insert_with(kind, || Ok::<_, ()>(Arc::default())).ok()?;
        let times = given.fetch_add(1, Ordering::Relaxed) + 1;
        if times != 10_u64.pow(times.ilog10()) {
            return None;
        }
        let room = self.has_room(now);
        if !room && times == 1 {
            // The next one is the first.
            given.store(0, Ordering::Relaxed);
        }
        room.then_some(times)
    }

    fn has_room(&self, now: Time) -> bool {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.0 != now.timestamp() {
            *made = (now.timestamp(), 0);
        }
        made.1 += 1;
        made.1 <= PER_SECOND
    }
}

impl Broker {
    /// Puts on record, now and then, what a service was told about a genuine credential that is for it.
    pub(super) async fn note_answer(
        &self,
        service: &Service,
        claims: &Claims,
        answer: &Introspection,
        call: &Call<'_>,
    ) {
        let (name, task, lease) = (service.name(), &claims.task.id, claims.jti.clone());
        let times = match answer {
            Introspection::Active(..) => self.answered.count(&format!("{lease} {name}"), call.now),
            Introspection::Inactive => {
                let kind = format!("{task} {name}");
                // There are other reasons to say no: the store may be in doubt.
                if !self.answered.was_given(&kind) && !self.revocations.has_lease(&lease) && !self.is_over(task).await {
                    return;
                }
                self.answered.count(&kind, call.now)
            }
        };
        let Some(times) = times else { return };
        let actor = Actor::Service { name: name.to_owned() };
        let event = match answer {
            Introspection::Active(..) => Event::Introspected { lease, times },
            Introspection::Inactive => Event::RefusedAfterEnd { lease, times },
        };
        self.parts.audit.note(entry(call.now, call.request, &actor, task, event));
    }

    async fn is_over(&self, task: &TaskId) -> bool {
        self.revocations.covers(task)
            || matches!(self.parts.ledger.task(task).await, Ok(Some(held)) if held.end.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use chrono::TimeDelta;

    #[test]
    fn the_first_answer_counts_and_then_every_tenfold() {
        let (answered, now) = (Answered::default(), SystemClock.now());
        let recorded: Vec<_> = (0..1234).filter_map(|_| answered.count("a", now)).collect();
        assert_eq!(recorded, [1, 10, 100, 1000]);
        assert!(answered.was_given("a") && !answered.was_given("b"));
    }

    #[test]
    fn no_second_has_more_than_so_many() {
        let (answered, now) = (Answered::default(), SystemClock.now());
        let count = |at: Time| (0..1000).filter(|kind| answered.count(&kind.to_string(), at).is_some()).count();
        assert_eq!(count(now), PER_SECOND as usize);
        // What found no room then is the first of its kind still.
        assert_eq!(count(now + TimeDelta::seconds(1)), PER_SECOND as usize);
    }
}
