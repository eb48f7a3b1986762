//! Who was turned away because nothing shows who they are.

use super::{
    Broker, Call,
    minute::{Minutes, Others},
};
use crate::{
    audit::{Actor, Counted, Entry, Event},
    clock::Time,
};

/// How many are told one by one in a minute.
const ONE_BY_ONE: u32 = 10;
/// How much of a reason is told: some of them quote what was presented.
const MOST: usize = 200;

/// Those of this minute, by who judged what they presented, and why.
#[derive(Debug)]
pub(super) struct Strangers(Minutes<(&'static str, &'static str)>);

impl Default for Strangers {
    fn default() -> Self {
        Self(Minutes::telling(ONE_BY_ONE, ONE_BY_ONE))
    }
}

impl Broker {
    /// Counts somebody who was turned away, and puts it on record.
    pub(super) fn turn_away(&self, attestor: &'static str, reason: &'static str, why: &str, call: &Call<'_>) {
        tracing::info!(request = call.request, attestor, why, "evidence refused");
        self.parts.metrics.refused(attestor, reason);
        self.sum_up_strangers(call.now);
        if !self.strangers.0.take(&(attestor, reason), call.now) {
            return;
        }
        let why = why.chars().take(MOST).collect();
        let event = Event::EvidenceRefused { attestor, reason, why };
        let (request, task) = (call.request.to_owned(), call.task.cloned());
        self.parts.audit.note(Entry { time: call.now, request, actor: Actor::Stranger, task, event });
    }

    /// Puts on record how many more were turned away in a minute that is over. To be called every second or so.
    pub fn sum_up_refused(&self) {
        self.sum_up_strangers(self.now());
        self.sum_up_callers(self.now());
    }

    fn sum_up_strangers(&self, now: Time) {
        let Some((since, Others { counts, .. })) = self.strangers.0.over(now) else { return };
        let count = |((attestor, reason), count)| Counted { attestor, reason, count };
        let event = Event::MoreEvidenceRefused { since, counts: counts.into_iter().map(count).collect() };
        self.parts.audit.note(Entry { time: now, request: String::new(), actor: Actor::Broker, task: None, event });
    }
}
