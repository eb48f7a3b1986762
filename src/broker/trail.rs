//! The audit trail: the lines of this broker's log as they stand, for whoever goes through them or keeps a copy elsewhere.
//!
//! An answer is a page: so many lines, so many octets, and what can be looked at in so much time, whichever comes first. Its last line
//! says where it ended and whether there is more; it has a length, so one that was cut off shows.

use serde_json::json;
use std::{io, ops::ControlFlow};

use super::{
    Broker, Request,
    sight::{Gone, Look, Patience, Place, Seat, Sight},
    whose::{Said, Whose, actor, parsed, sandbox_of, task_of, text},
};
use crate::{audit::Reader, clock::Time, error::Error, party::Act};

/// How many octets of records a page holds, or one record.
const MOST_OCTETS: usize = 1024 * 1024;

/// Which records are wanted: those that fit all that is given.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Of this workload, and of its tasks.
    pub workload: Option<String>,
    /// Of the tasks that this owner is accountable for.
    pub owner: Option<String>,
    /// Of the tasks that run in this sandbox: bound to it by evidence, or declared to where none did.
    pub sandbox: Option<String>,
    /// By this attestor, and of the tasks of those that it vouched for.
    pub attestor: Option<String>,
    /// Not before.
    pub since: Option<Time>,
    /// Before.
    pub until: Option<Time>,
}

/// A page of lines, each ended by a line feed; the last says where it ended.
pub struct Trail {
    text: String,
    /// Until it is sent, or nobody takes it: who takes many pages slowly gets no more of them.
    _seat: Seat,
}

impl AsRef<[u8]> for Trail {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Broker {
    /// The records of this broker's log that come after a place in it, in order: any for an operator, those of their owners' tasks for
    /// whoever acts for owners.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`], [`Error::InvalidRequest`] for a place in another log, [`Error::QuotaExceeded`],
    /// [`Error::Unavailable`].
    pub async fn trail(
        &self,
        request: (Request, Gone),
        which: Which,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<Trail, Error> {
        let (reader, ledger) = (self.parts.audit.reader(), self.parts.ledger.clone());
        let after = self.in_own_log(after)?.unwrap_or_default();
        if after > reader.last() {
            return Err(Error::invalid(
                "`cursor` lies behind the end of the log: it was made up, or records were taken away",
            ));
        }
        let Look { sight, patience, seat } = self.look(request, None, (Act::ShowAudit, "audit")).await?;
        let read = self.readers.read(&patience, move |patience| {
            let whose = Whose::new(ledger, reader.clone());
            let (patience, page) = (patience.clone(), String::new());
            let going =
                Going { which, sight, whose, patience, page, at: after, left: limit, counts: Counts::default() };
            going.through(&reader)
        });
        Ok(Trail { text: read.await?, _seat: seat })
    }
}

/// What of the log was looked at and could not be judged.
#[derive(Default)]
struct Counts {
    /// Records of tasks of which this broker can't tell whose they are.
    unattributed: u64,
    /// Lines that no broker wrote.
    unreadable: u64,
}

/// There is more than has a place here.
struct Full;

/// The way through the log.
struct Going {
    which: Which,
    sight: Sight,
    whose: Whose,
    patience: Patience,
    /// What is to be sent.
    page: String,
    /// The number of the last record that was looked at.
    at: u64,
    /// How many lines it may still be.
    left: usize,
    counts: Counts,
}

impl Going {
    fn through(mut self, reader: &Reader) -> io::Result<String> {
        let (begin, last) = (self.at, reader.last());
        let mut more = false;
        for chapter in reader.chapters()?.iter().filter(|chapter| chapter.goes_past(begin)) {
            if !chapter.may_hold(self.which.since, self.which.until) {
                continue;
            }
            let stopped = reader.read(chapter, |sequence, line| {
                if sequence <= begin { ControlFlow::Continue(()) } else { self.take(sequence, line) }
            })?;
            if let ControlFlow::Break(Full) = stopped {
                more = true;
                break;
            }
        }
        let sequence = if more { self.at } else { self.at.max(last) };
        let cursor = Place { log: reader.log().to_owned(), sequence }.to_string();
        let Counts { unattributed, unreadable } = self.counts;
        let end = json!({"cursor": cursor, "more": more, "unattributed": unattributed, "unreadable": unreadable});
        self.line(&end.to_string());
        Ok(self.page)
    }

    fn take(&mut self, sequence: u64, line: &str) -> ControlFlow<Full> {
        if self.wants(line) {
            let fits = self.page.is_empty() || self.page.len() + line.len() < MOST_OCTETS;
            if self.left == 0 || !fits {
                return ControlFlow::Break(Full);
            }
            self.left -= 1;
            self.line(line);
        }
        self.at = sequence;
        // After what was looked at: however little time there is, it goes on from call to call.
        if self.patience.is_over() { ControlFlow::Break(Full) } else { ControlFlow::Continue(()) }
    }

    fn line(&mut self, line: &str) {
        self.page.push_str(line);
        self.page.push('\n');
    }

    fn wants(&mut self, line: &str) -> bool {
        let said = parsed(line);
        let time = said.as_ref().and_then(|said| text(said, "time")?.parse::<Time>().ok());
        let (Some(said), Some(time)) = (said, time) else {
            self.counts.unreadable += 1;
            return false;
        };
        self.whose.note(&said);
        let Which { since, until, .. } = self.which;
        since.is_none_or(|since| time >= since) && until.is_none_or(|until| time < until) && self.is_of(&said)
    }

    /// Whether a record is of whom it is to be of.
    fn is_of(&mut self, said: &Said) -> bool {
        let Which { workload, owner, sandbox, attestor, .. } = &self.which;
        let asked = [workload, owner, sandbox, attestor].iter().any(|one| one.is_some());
        if !asked && matches!(self.sight, Sight::All) {
            return true;
        }
        let task = task_of(said);
        let facts = task.as_ref().and_then(|task| self.whose.of(task));
        let fits = |wanted: &Option<String>, own: Option<&str>, of_task: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| own == Some(wanted) || of_task == Some(wanted))
        };
        let runs_in = said.get("considered").and_then(sandbox_of);
        let fits = fits(workload, actor(said, "workload"), facts.as_ref().map(|facts| &*facts.workload))
            && fits(owner, text(said, "owner").or(actor(said, "owner")), facts.as_ref().map(|facts| &*facts.owner))
            && fits(sandbox, runs_in, facts.as_ref().and_then(|facts| facts.sandbox.as_deref()))
            && fits(
                attestor,
                actor(said, "attestor").or(text(said, "attestor")),
                facts.as_ref().map(|facts| &*facts.attestor),
            );
        let shown = self.sight.shows(facts.as_ref().map(|facts| &*facts.owner));
        if task.is_some() && facts.is_none() && !(fits && shown) && matches!(self.sight, Sight::All) {
            self.counts.unattributed += 1;
        }
        fits && shown
    }
}
