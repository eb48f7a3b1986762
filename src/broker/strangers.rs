//! Who was turned away because nothing shows who they are: the first of each minute one by one, the rest as counts, so that strangers
//! can neither act unseen nor fill the log.

use chrono::DurationRound as _;
use chrono::TimeDelta;
use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, PoisonError},
};

use super::{Broker, Call};
use crate::{
    audit::{Actor, Counted, Entry, Event},
    clock::Time,
};

/// How many are told one by one in a minute.
const ONE_BY_ONE: u32 = 10;
/// How much of a reason is told: some of them quote what was presented.
const MOST: usize = 200;

/// Those of this minute.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Minute>);

#[derive(Debug, Default)]
struct Minute {
    begun: Option<Time>,
    told: u32,
    others: BTreeMap<(&'static str, &'static str), u64>,
}

impl Broker {
    /// Counts somebody who was turned away, and puts it on record.
    pub(super) fn turn_away(&self, attestor: &'static str, reason: &'static str, why: &str, call: &Call<'_>) {
        tracing::info!(request = call.request, attestor, why, "evidence refused");
        self.parts.metrics.refused(attestor, reason);
        self.sum_up(call.now);
        {
            let mut minute = self.strangers.0.lock().unwrap_or_else(PoisonError::into_inner);
            minute.begun.get_or_insert_with(|| minute_of(call.now));
            if minute.told >= ONE_BY_ONE {
                *minute.others.entry((attestor, reason)).or_default() += 1;
                return;
            }
            minute.told += 1;
        }
        let why = why.chars().take(MOST).collect();
        let event = Event::EvidenceRefused { attestor, reason, why };
        let (request, task) = (call.request.to_owned(), call.task.cloned());
        self.parts.audit.note(Entry { time: call.now, request, actor: Actor::Stranger, task, event });
    }

    /// Puts on record how many more there were in a minute that is over. To be called every second or so.
    pub fn sum_up_strangers(&self) {
        self.sum_up(self.now());
    }

    fn sum_up(&self, now: Time) {
        let over = {
            let mut minute = self.strangers.0.lock().unwrap_or_else(PoisonError::into_inner);
            match minute.begun {
                Some(begun) if begun != minute_of(now) => mem::take(&mut *minute),
                _ => return,
            }
        };
        let (Some(since), false) = (over.begun, over.others.is_empty()) else { return };
        let count = |((attestor, reason), count)| Counted { attestor, reason, count };
        let event = Event::MoreEvidenceRefused { since, counts: over.others.into_iter().map(count).collect() };
        self.parts.audit.note(Entry { time: now, request: String::new(), actor: Actor::Broker, task: None, event });
    }
}

fn minute_of(time: Time) -> Time {
    time.duration_trunc(TimeDelta::minutes(1)).unwrap_or(time)
}
