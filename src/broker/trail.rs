//! The audit trail: the lines of this broker's log as they stand, for whoever goes through them or keeps a copy elsewhere.
//!
//! Read in the background and sent as it is read, so that no answer is ever whole in memory; who does not take it in time loses the
//! rest. The last line says where it ended: an answer without it was cut off.

use serde_json::json;
use std::{io, ops::ControlFlow, time::Duration};
use tokio::{runtime::Handle, sync::mpsc, time::timeout};

use super::{
    Broker, Request,
    sight::{Place, Sight},
    whose::{Said, Whose, actor, parsed, task_of, text},
};
use crate::{audit::Reader, clock::Time, error::Error, party::Act};

/// How many octets are looked at in one call.
const MOST_OCTETS: usize = 512 << 20;
/// How many octets are sent in one piece, and how many pieces may wait to be taken.
const PIECE: usize = 32 << 10;
const WAITING: usize = 4;
/// How long a piece waits to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which records are wanted: those that fit all that is given.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Of this workload, and of its tasks.
    pub workload: Option<String>,
    /// Of the tasks that this owner is accountable for.
    pub owner: Option<String>,
    /// Of the tasks that were declared to run in this sandbox.
    pub sandbox: Option<String>,
    /// By this attestor, and of the tasks of those that it vouched for.
    pub attestor: Option<String>,
    /// Not before.
    pub since: Option<Time>,
    /// Before.
    pub until: Option<Time>,
}

/// Lines, in pieces, as they are read.
pub struct Trail(mpsc::Receiver<String>);

impl Trail {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<String> {
        self.0.recv().await
    }
}

impl Broker {
    /// The records of this broker's log that come after a place in it, in order: any for an operator, those of their owners' tasks for
    /// whoever acts for owners.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`], [`Error::InvalidRequest`] for a place in another log, [`Error::Unavailable`].
    pub async fn trail(
        &self,
        request: Request,
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
        let sight = self.sight(request, None, (Act::ShowAudit, "audit")).await?;
        let turn = self.readers.turn().await?;
        let (pieces, receiver) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let whose = Whose::new(ledger, reader.clone());
            let out = Out { pieces, runtime: Handle::current(), piece: String::new() };
            let mut going =
                Going { which, sight, whose, out, at: after, left: limit, octets: 0, counts: Counts::default() };
            if let Err(why) = going.through(&reader) {
                tracing::error!(%why, "the audit log cannot be read: an answer was cut off");
            }
            drop(turn);
        });
        Ok(Trail(receiver))
    }
}

/// Where lines go.
struct Out {
    pieces: mpsc::Sender<String>,
    runtime: Handle,
    piece: String,
}

/// Nobody takes what is sent.
struct Gone;

impl Out {
    fn line(&mut self, line: &str) -> Result<(), Gone> {
        self.piece.push_str(line);
        self.piece.push('\n');
        if self.piece.len() < PIECE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Gone> {
        let piece = std::mem::take(&mut self.piece);
        match self.runtime.block_on(timeout(PATIENCE, self.pieces.send(piece))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
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

/// Why it goes no further.
enum Stop {
    /// There is more.
    Full,
    Gone,
}

/// The way through the log.
struct Going {
    which: Which,
    sight: Sight,
    whose: Whose,
    out: Out,
    /// The number of the last record that was looked at.
    at: u64,
    /// How many lines may still be sent.
    left: usize,
    octets: usize,
    counts: Counts,
}

impl Going {
    fn through(&mut self, reader: &Reader) -> io::Result<()> {
        let (begin, last) = (self.at, reader.last());
        let mut more = false;
        for chapter in reader.chapters()?.iter().filter(|chapter| chapter.goes_past(begin)) {
            if !chapter.may_hold(self.which.since, self.which.until) {
                continue;
            }
            let stopped = reader.read(chapter, |sequence, line| {
                if sequence <= begin { ControlFlow::Continue(()) } else { self.take(sequence, line) }
            })?;
            match stopped {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Stop::Full) => {
                    more = true;
                    break;
                }
                ControlFlow::Break(Stop::Gone) => return Ok(()),
            }
        }
        let sequence = if more { self.at } else { self.at.max(last) };
        let cursor = Place { log: reader.log().to_owned(), sequence }.to_string();
        let Counts { unattributed, unreadable } = self.counts;
        let end = json!({"cursor": cursor, "more": more, "unattributed": unattributed, "unreadable": unreadable});
        // Whoever has gone does not miss it.
        let _ = self.out.line(&end.to_string()).and_then(|()| self.out.flush());
        Ok(())
    }

    fn take(&mut self, sequence: u64, line: &str) -> ControlFlow<Stop> {
        if self.octets > MOST_OCTETS {
            return ControlFlow::Break(Stop::Full);
        }
        self.octets += line.len();
        if self.out.pieces.is_closed() {
            return ControlFlow::Break(Stop::Gone);
        }
        if self.wants(line) {
            if self.left == 0 {
                return ControlFlow::Break(Stop::Full);
            }
            self.left -= 1;
            if self.out.line(line).is_err() {
                return ControlFlow::Break(Stop::Gone);
            }
        }
        self.at = sequence;
        ControlFlow::Continue(())
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
        let declared = said.get("considered").and_then(|considered| considered["declared"]["sandbox"].as_str());
        let fits = fits(workload, actor(said, "workload"), facts.as_ref().map(|facts| &*facts.workload))
            && fits(owner, text(said, "owner").or(actor(said, "owner")), facts.as_ref().map(|facts| &*facts.owner))
            && fits(sandbox, declared, facts.as_ref().and_then(|facts| facts.sandbox.as_deref()))
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
