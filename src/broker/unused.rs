//! Authority that was not used: what a task was granted and never minted a credential for, and credentials that no service was seen to
//! be shown.
//!
//! The tasks are those that the store still holds, of all brokers, and what was done is what their timelines say. A use is *seen* where
//! a service asked about the credential or reported on it; one that checks signatures, status lists or revocation lists on its own is
//! never seen, and no wonder then that nothing is.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Broker, Request, in_doubt,
    revoke::RETENTION,
    sight::{Gone, Look},
};
use crate::{
    clock::Time,
    error::Error,
    id::{LeaseId, Location, TaskId},
    lease::{Held, Timeline},
    party::{Act, Parties},
    task::{Privilege, State},
};

/// How many tasks are looked at in one call, and in how large steps.
const MOST_TASKS: usize = 5_000;
const STEP: usize = 200;
/// The generation that a store begins with.
const FIRST: u64 = 1;

/// Which tasks are looked at: those that fit all that is given.
#[derive(Debug, Clone, Default)]
pub struct Period {
    /// Of this owner.
    pub owner: Option<String>,
    /// Of this workload, by its SPIFFE ID.
    pub workload: Option<String>,
    /// Declared not before.
    pub since: Option<Time>,
    /// Declared before.
    pub until: Option<Time>,
}

/// A task that did not use all that it had.
#[derive(Debug)]
pub struct Unused {
    /// The task.
    pub held: Held,
    /// How it stands.
    pub state: State,
    /// Granted, and no credential was ever minted for it.
    pub never_minted: Vec<Grant>,
    /// Minted, and never seen to be used.
    pub never_seen: Vec<UnseenLease>,
    /// How many credentials were seen to be used.
    pub seen: usize,
    /// Whether nothing of what was done is known to be missing: otherwise what is listed may have been minted, or seen.
    pub complete: bool,
}

/// A privilege at a location.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// Where.
    pub location: Location,
    /// What.
    pub privilege: Privilege,
}

/// A credential that was never seen to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnseenLease {
    /// Its id.
    pub lease: LeaseId,
    /// Its audience; `None`: it is a certificate.
    pub resource: Option<String>,
    /// Its privilege; `None`: it is a certificate.
    pub privilege: Option<String>,
    /// Whether its service never asks, so that no use is ever seen.
    pub cannot_be_seen: bool,
}

/// A page of them.
#[derive(Debug)]
pub struct UnusedPage {
    /// The tasks, newest first.
    pub tasks: Vec<Unused>,
    /// How many tasks of those that were asked for were looked at.
    pub looked_at: usize,
    /// What the next page is older than; `None` at the end.
    pub next: Option<TaskId>,
    /// Every task that was declared since then is there to be looked at; of earlier ones, those that the store still holds. `None` where it is
    /// not known when the store was put back.
    pub since: Option<Time>,
}

impl Broker {
    /// Tasks that did not use all that they had, newest first: of anybody for an operator, of their own for whoever acts for owners.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`], [`Error::QuotaExceeded`], [`Error::Unavailable`].
    pub async fn unused(
        &self,
        request: (Request, Gone),
        period: &Period,
        before: Option<TaskId>,
        limit: usize,
    ) -> Result<UnusedPage, Error> {
        let Look { sight, patience, seat: _seat } = self.look(request, None, (Act::ReportUnused, "unused")).await?;
        let (rules, since) = (self.rules(), self.all_kept_since());
        self.all_told().await;
        self.still_vouched().await?;
        let wanted = |held: &Held| {
            let task = &held.task;
            sight.shows(Some(&task.owner))
                && period.owner.as_ref().is_none_or(|owner| *owner == task.owner)
                && period.workload.as_ref().is_none_or(|workload| workload == task.workload.as_str())
                && period.since.is_none_or(|since| task.created_at >= since)
                && period.until.is_none_or(|until| task.created_at < until)
        };
        let (mut tasks, mut next, mut looked_at, mut gone_through) = (Vec::new(), before, 0, 0);
        while gone_through < MOST_TASKS {
            let (page, after) = self.parts.ledger.tasks(next.as_ref(), STEP).await.map_err(|why| in_doubt(&why))?;
            gone_through += STEP;
            next = after;
            for held in page {
                patience.still_waits()?;
                if !wanted(&held) {
                    continue;
                }
                looked_at += 1;
                let id = held.task.id.clone();
                let timeline = self.parts.ledger.timeline(&id).await.map_err(|why| in_doubt(&why))?;
                let found = unused(held, &timeline, &rules.parties, self.now());
                if !found.never_minted.is_empty() || !found.never_seen.is_empty() {
                    tasks.push(found);
                }
                if tasks.len() == limit || looked_at == STEP || patience.is_over() {
                    return Ok(UnusedPage { tasks, looked_at, next: Some(id), since });
                }
            }
            if next.is_none() {
                break;
            }
        }
        // Where the look ended at a task that may be another's, only its moment is told.
        Ok(UnusedPage { tasks, looked_at, next: next.map(|id| id.moment()), since })
    }

    /// From when on no task is gone: each is kept for so long past its deadline, and those of an earlier generation are not.
    fn all_kept_since(&self) -> Option<Time> {
        let (kept, stands) = (self.now() - RETENTION, self.parts.ledger.entered());
        match stands.raised_at {
            Some(raised_at) => Some(kept.max(raised_at)),
            None => (stands.generation == FIRST).then_some(kept),
        }
    }
}

/// What of a task was not used, by what happened to it.
fn unused(held: Held, timeline: &Timeline, parties: &Parties, now: Time) -> Unused {
    let task = &held.task;
    let text = |said: &serde_json::Map<String, serde_json::Value>, member: &str| {
        said.get(member).and_then(serde_json::Value::as_str).map(str::to_owned)
    };
    let (mut minted, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for event in timeline.events.iter().filter(|event| event.task == task.id) {
        let said = &event.said;
        let Some(lease) = text(said, "lease") else { continue };
        match said.get("event").and_then(serde_json::Value::as_str) {
            Some("credential_minted") => {
                minted.insert(lease, (text(said, "resource"), text(said, "privilege")));
            }
            Some("certificate_minted") => {
                minted.insert(lease, (None, None));
            }
            Some("introspected" | "reported") => {
                seen.insert(lease);
            }
            _ => {}
        }
    }
    let was_minted = |grant: &Grant| {
        let credentials = minted.values();
        credentials.into_iter().any(|(resource, privilege)| {
            resource.as_deref() == Some(grant.location.as_str())
                && privilege.as_deref() == Some(grant.privilege.as_str())
        })
    };
    let pairs = task.authority.details().iter().flat_map(crate::task::AccessDetail::pairs);
    let granted: BTreeSet<_> =
        pairs.map(|(location, privilege)| Grant { location: location.clone(), privilege }).collect();
    let never_minted = granted.into_iter().filter(|grant| !was_minted(grant)).collect();
    let is_watched = |resource: &Option<String>| {
        resource
            .as_ref()
            .and_then(|resource| resource.parse().ok())
            .is_some_and(|resource| parties.sees_uses(&resource))
    };
    let unseen = minted.iter().filter(|(lease, _)| !seen.contains(*lease));
    let never_seen: Vec<_> = unseen
        .filter_map(|(lease, (resource, privilege))| {
            let (resource, privilege) = (resource.clone(), privilege.clone());
            let cannot_be_seen = !is_watched(&resource);
            Some(UnseenLease { lease: lease.parse().ok()?, resource, privilege, cannot_be_seen })
        })
        .collect();
    let (state, seen) = (held.state(now), minted.keys().filter(|lease| seen.contains(*lease)).count());
    Unused { state, never_minted, never_seen, seen, complete: timeline.complete, held }
}
