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

/// Who judged what they presented, and why they were turned away.
type Stranger = (&'static str, &'static str);

/// Those of this minute.
#[derive(Debug)]
pub(super) struct Strangers(Minutes<Stranger>);

impl Default for Strangers {
    fn default() -> Self {
        Self(Minutes::telling(ONE_BY_ONE, ONE_BY_ONE))
    }
}

/// What the broker says of all of them.
pub(super) fn of_minutes(event: Event, now: Time) -> Entry {
    Entry { time: now, request: String::new(), actor: Actor::Broker, task: None, event }
}

impl Broker {
    /// Counts somebody who was turned away, and puts it on record.
    pub(super) fn turn_away(&self, attestor: &'static str, reason: &'static str, why: &str, call: &Call<'_>) {
        tracing::info!(request = call.request, attestor, why, "evidence refused");
        self.parts.metrics.refused(attestor, reason);
        if !self.strangers.0.take(&(attestor, reason), call.now) {
            return;
        }
        let why = why.chars().take(MOST).collect();
        let event = Event::EvidenceRefused { attestor, reason, why };
        let (request, task) = (call.request.to_owned(), call.task.cloned());
        self.parts.audit.note(Entry { time: call.now, request, actor: Actor::Stranger, task, event });
    }

    /// Puts on record how many more were refused in minutes that are over. To be called every second or so.
    pub async fn sum_up_refused(&self) {
        let now = self.now();
        self.sum_up_strangers(self.strangers.0.over(now), now).await;
        self.sum_up_callers(self.callers.0.over(now), now).await;
    }

    /// The same with those of this minute, before the broker is gone.
    pub async fn sum_up_all_refused(&self) {
        let now = self.now();
        self.sum_up_strangers(self.strangers.0.all(), now).await;
        self.sum_up_callers(self.callers.0.all(), now).await;
    }

    async fn sum_up_strangers(&self, over: Option<(Time, Others<Stranger>)>, now: Time) {
        let Some((since, others)) = over else { return };
        let count = |(&(attestor, reason), &count): (&Stranger, &u64)| Counted { attestor, reason, count };
        let event = Event::MoreEvidenceRefused { since, counts: others.counts.iter().map(count).collect() };
        if self.record(vec![of_minutes(event, now)]).await.is_err() {
            self.strangers.0.put_back((since, others), now);
        }
    }
}
