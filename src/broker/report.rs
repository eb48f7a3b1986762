//! Reporting what was done for a task: by the instance that holds it, on its own word, or by a service that was shown a credential of it.
//!
//! identify → may it report on this task, and still? → which of it is new? → on record → counted in the store → answer. What was
//! reported before is answered as the first time, without another record.

use chrono::TimeDelta;
use std::sync::{Arc, atomic::Ordering};

use super::{Broker, Call, Caller, Held, Request, actor_of, entry, in_doubt, owns, prove::Holder, wrong_role};
use crate::{
    audit::{Actor, Event},
    clock::{Time, after},
    error::{Error, Input, Limit, Sought},
    id::{LeaseId, TaskId},
    party::Service,
    task::{Gap, Origin, Report, Reporter, Reporting, Task},
};

/// How long after the end of a task there may still be reports of it, in seconds: the last thing that was done took a while.
const GRACE: TimeDelta = TimeDelta::seconds(60);
/// How long it is remembered what was reported, from the declaration on: a day after the longest life of a task.
const KEPT: u32 = 2 * super::declare::MAX_TTL;
/// How often an account that another broker changed meanwhile is taken up again.
const TRIES: usize = 8;
/// How many calls keep an account at a time, at most: those of one task wait for each other, so that they do not undo each other's work.
const TURNS: usize = 64;

/// What a call came to.
#[derive(Debug)]
pub struct Reported {
    /// Whose word it is.
    pub origin: Origin,
    /// How many of the reports are on record.
    pub accepted: usize,
    /// The highest number that this reporter has used on the task.
    pub last_sequence: u32,
    /// What is missing below it.
    pub gaps: Vec<Gap>,
}

/// Those who wait to report, by task.
pub(super) struct Turns([tokio::sync::Mutex<()>; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self([const { tokio::sync::Mutex::const_new(()) }; TURNS])
    }
}

impl Turns {
    async fn of(&self, task: &TaskId) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let place = task.as_str().bytes().fold(0, |sum: usize, octet| sum.wrapping_mul(31) ^ usize::from(octet));
        match self.0.get(place % TURNS) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        }
    }
}

/// Who was there, as far as the call itself tells.
enum Witness<'a> {
    Holder(Box<Holder>),
    /// A service, and the credential that it says it was shown.
    Service(Arc<Service>, &'a LeaseId),
}

impl Broker {
    /// Takes reports of what was done for a task: all of them or none.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`]; [`Error::PolicyDenied`] for operators, owners and services that are not to report;
    /// [`Error::NotFound`] for anybody else's task; [`Error::InvalidRequest`]; [`Error::TaskNotActive`] when it ended more than a
    /// minute ago; [`Error::SequenceReused`]; [`Error::QuotaExceeded`]; [`Error::Unavailable`] when it may not be on record.
    pub async fn report(&self, request: Request, id: &TaskId, reporting: &Reporting) -> Result<Reported, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: Some(id), now };
        let caller = self.identify(request.presented, &call).await?;
        let witness = self.witness(caller, reporting.lease.as_ref(), &call).await?;
        if !self.vouched.load(Ordering::Acquire) {
            return Err(Error::Unavailable(Input::Store));
        }
        reporting.check(self.parts.reports)?;
        let held = self.parts.ledger.task(id).await.map_err(|why| in_doubt(&why))?;
        let may = match &held {
            Some(held) => self.may_report(&witness, held).await?,
            None => None,
        };
        let (Some(held), Some((reporter, actor))) = (held, may) else {
            return Err(match &witness {
                Witness::Holder(holder) => self.turn_down(&**holder, "report", &call, Error::NotFound(Sought::Task)),
                Witness::Service(service, _) => {
                    self.turn_down(&**service, "report", &call, Error::NotFound(Sought::Task))
                }
            });
        };
        let origin = reporter.origin();
        let line = |event| entry(now, &request.id, &actor, id, event);
        let Some(late) = self.is_late(&held, now) else {
            self.record(vec![line(Event::ReportRefused { origin, code: "task_not_active" })]).await?;
            return Err(Error::TaskNotActive);
        };
        let keep_until = after(held.task.created_at, KEPT).unwrap_or(held.expires_at);
        let _turn = self.reporting.of(id).await;
        for _ in 0..TRIES {
            let before = self.parts.ledger.account(id, &reporter).await.map_err(|why| in_doubt(&why))?;
            let mut new: Vec<(&Report, String)> = Vec::new();
            for report in &reporting.reports {
                let which = self.parts.ledger.which(id, report);
                match before.account.is_new(report.sequence, &which) {
                    Ok(true) => new.push((report, which)),
                    Ok(false) => {}
                    Err(error) => {
                        self.record(vec![line(Event::ReportRefused { origin, code: "sequence_reused" })]).await?;
                        return Err(error);
                    }
                }
            }
            let (reports, new): (Vec<_>, Vec<_>) =
                new.into_iter().map(|(report, which)| (report.clone(), (report.sequence, which))).unzip();
            let count = reports.len();
            let mut account = before.account.clone();
            if count > 0 {
                account = account.with(new, now)?;
                let lease = reporting.lease.clone();
                let intent = self.intend(vec![line(Event::Reported { origin, lease, late, reports })]).await?;
                let kept = self.parts.ledger.keep_account((id, &reporter), before, &account, keep_until).await;
                if !kept.map_err(|why| in_doubt(&why))? {
                    intent.not_done();
                    continue;
                }
                intent.done();
                self.parts.metrics.reported(origin == Origin::Observed, count);
            }
            let accepted = reporting.reports.len();
            return Ok(Reported { origin, accepted, last_sequence: account.last_sequence(), gaps: account.gaps() });
        }
        tracing::error!(task = %id, "reports of one task come by too many brokers at once");
        Err(Error::Unavailable(Input::Store))
    }

    /// As whom a caller was there.
    async fn witness<'a>(
        &self,
        caller: Caller,
        lease: Option<&'a LeaseId>,
        call: &Call<'_>,
    ) -> Result<Witness<'a>, Error> {
        Ok(match (caller, lease) {
            (Caller::Workload(holder), None) => Witness::Holder(holder),
            (Caller::Workload(_), Some(_)) => {
                return Err(Error::invalid("`lease` is for services: the task is the workload's own"));
            }
            (Caller::Service(service), _) if !service.reports() => {
                let error = wrong_role("a service reports where its `[[service]]` has `reports = true`");
                return Err(self.turn_down(&*service, "report", call, error));
            }
            // What a certificate is for stands nowhere.
            (Caller::Service(service), Some(lease)) if lease.octets().len() == 16 => Witness::Service(service, lease),
            (Caller::Service(_), _) => {
                return Err(Error::invalid(
                    "`lease` is the `jti` of a token of the task that was shown to the service",
                ));
            }
            (Caller::Operator(operator), _) => {
                let why = "an operator was not there, and reports nothing";
                return Err(self.refuse_operator(&operator, call, why).await?);
            }
            (Caller::Owner(member), _) => {
                return Err(self.turn_down(&*member, "report", call, wrong_role("only who was there reports")));
            }
        })
    }

    /// Whether it is for the witness to report on the task: its own; or one of which a service can name a credential that is for
    /// itself, which shows that it was called for the task. Anybody else's does not exist.
    async fn may_report(&self, witness: &Witness<'_>, held: &Held) -> Result<Option<(Reporter, Actor)>, Error> {
        match witness {
            Witness::Holder(holder) if owns(&holder.attested, &held.task) => {
                self.spend(holder).await?;
                Ok(Some((Reporter::Holder, actor_of(&holder.attested))))
            }
            Witness::Holder(_) => Ok(None),
            Witness::Service(service, lease) => {
                let leases = self.parts.ledger.leases(&held.task.id, std::slice::from_ref(*lease)).await;
                let mut leases = leases.map_err(|why| in_doubt(&why))?.into_iter().flatten();
                let name = service.name().to_owned();
                let shown = leases.any(|lease| service.answers_for(&lease.resource));
                Ok(shown.then(|| (Reporter::Service(name.clone()), Actor::Service { name })))
            }
        }
    }

    /// Whether a task had ended by now; `None` where that is too long ago for a report.
    fn is_late(&self, held: &Held, now: Time) -> Option<bool> {
        let ended = match &held.end {
            Some(end) => Some(end.at.min(held.expires_at)),
            // The end that is known here has not been seen in the store: since when it is over cannot be told.
            None if self.revocations.covers(&held.task.id) => return None,
            None => Some(held.expires_at),
        };
        match ended.filter(|ended| now >= *ended) {
            None => Some(false),
            Some(ended) => (now - ended <= GRACE).then_some(true),
        }
    }

    /// Whether the holder of a task has reported enough for it to be renewed, where policy wants a report at least every so many
    /// seconds (`@require_reports`).
    ///
    /// # Errors
    /// [`Error::PolicyDenied`], which says what is missing; [`Error::Unavailable`].
    pub(super) async fn has_reported(&self, task: &Task, every: Option<u32>, now: Time) -> Result<(), Error> {
        let Some(every) = every else { return Ok(()) };
        let account =
            self.parts.ledger.account(&task.id, &Reporter::Holder).await.map_err(|why| in_doubt(&why))?.account;
        let since = (now - account.last_at().unwrap_or(task.created_at)).num_seconds();
        let detail = match account.gaps().first() {
            Some(Gap { from, to }) => {
                let which =
                    if from == to { format!("report {from} is") } else { format!("reports {from} to {to} are") };
                format!("policy wants reports of the task without a gap (`@require_reports`), and {which} missing")
            }
            None if since > i64::from(every) => format!(
                "policy wants a report of the task every {every} seconds (`@require_reports`), and there was none for {since}"
            ),
            None => return Ok(()),
        };
        Err(Error::PolicyDenied { limit: Limit::Policy, denied: Vec::new(), detail })
    }
}
