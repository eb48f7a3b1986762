//! What is on record and about to be done: the log says how it went, also where nobody waits for it any more.

use super::{Broker, Entry};
use crate::{
    audit::{Audit, Event, Outcome, Span},
    error::Error,
};

/// Something that is on record and not done yet. Dropped, it may or may not have been done, and the log says so.
#[must_use]
pub(super) struct Intent<'a> {
    audit: &'a Audit,
    span: Span,
    /// What the log says in the end; `None` once it is said, or where there was nothing to do.
    unsettled: Option<Entry>,
}

impl Broker {
    /// Puts on record what is about to be done, durably.
    pub(super) async fn intend(&self, entries: Vec<Entry>) -> Result<Intent<'_>, Error> {
        let first = entries.first();
        let (time, request, actor, task) = match first {
            Some(first) => (first.time, first.request.clone(), first.actor.clone(), first.task.clone()),
            None => return Ok(Intent { audit: &self.parts.audit, span: Span(0, 0), unsettled: None }),
        };
        let span = self.append(entries).await?;
        let event = Event::Settled { settles: span, outcome: Outcome::Unknown };
        let unsettled = Some(Entry { time, request, actor, task, event });
        Ok(Intent { audit: &self.parts.audit, span, unsettled })
    }
}

impl Intent<'_> {
    /// Where it stands, for a record of its own that says how it went.
    pub(super) fn span(&self) -> Span {
        self.span
    }

    /// It was done.
    pub(super) fn done(self) {
        self.settle(Outcome::Done);
    }

    /// It was not done, and will not be.
    pub(super) fn not_done(self) {
        self.settle(Outcome::NotDone);
    }

    /// A record of its own has said how it went.
    pub(super) fn settled(mut self) {
        self.unsettled = None;
    }

    fn settle(mut self, went: Outcome) {
        if let Some(Entry { event: Event::Settled { outcome, .. }, .. }) = &mut self.unsettled {
            *outcome = went;
        }
    }
}

impl Drop for Intent<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.unsettled.take() {
            self.audit.note(entry);
        }
    }
}
