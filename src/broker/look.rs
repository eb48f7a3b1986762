//! Looking at tasks: one, or a page of them. An operator sees all, a workload its own, whoever acts for an owner that owner's; and what is
//! another's does not exist.

use std::sync::Arc;

use super::{Broker, Call, Caller, Holder, Request, in_doubt, looked, owns, wrong_role};
use crate::{
    clock::Time,
    error::{Error, Sought},
    id::TaskId,
    lease::Held,
    party::{Act, Member},
    task::State,
};

/// A task that was shown.
#[derive(Debug)]
pub struct Seen {
    /// The task.
    pub held: Held,
    /// The time of the answer.
    pub now: Time,
    /// Whom to talk to about it, where an operator sees it.
    pub contacts: Vec<String>,
    /// When the evidence ends that it was shown for.
    pub(super) until: Option<Time>,
}

/// A page of tasks.
#[derive(Debug)]
pub struct Page {
    /// The tasks.
    pub tasks: Vec<Held>,
    /// What the next page is older than; `None` at the end.
    pub next: Option<TaskId>,
    /// The time of the answer.
    pub now: Time,
}

/// Which tasks a list holds; what is absent admits all.
#[derive(Debug, Default)]
pub struct Filter {
    /// In this state.
    pub state: Option<State>,
    /// Of this owner.
    pub owner: Option<String>,
    /// Of this workload, by its SPIFFE ID.
    pub workload: Option<String>,
    /// In this sandbox.
    pub sandbox: Option<String>,
}

impl Filter {
    fn admits(&self, held: &Held, now: Time) -> bool {
        let task = &held.task;
        self.state.is_none_or(|state| state == held.state(now))
            && self.owner.as_ref().is_none_or(|owner| *owner == task.owner)
            && self.workload.as_ref().is_none_or(|workload| workload == task.workload.as_str())
            && (self.sandbox.is_none() || self.sandbox.as_deref() == task.runs_in())
    }
}

/// Whose tasks somebody sees.
enum Sees {
    All,
    Own(Box<Holder>),
    Owners(Arc<Member>),
}

impl Sees {
    fn admits(&self, held: &Held) -> bool {
        match self {
            Self::All => true,
            Self::Own(holder) => owns(&holder.attested, &held.task),
            Self::Owners(member) => member.acts_for(&held.task.owner),
        }
    }
}

/// How many tasks are looked at in one step to find a caller's own, and in one call at most.
const LOOK: usize = 200;
const MAX_LOOK: usize = 5_000;

impl Broker {
    /// A task, for an operator, for whoever acts for its owner, or for its own instance.
    ///
    /// # Errors
    /// [`Error::NotFound`] for what is unknown and for what is another's, alike.
    pub async fn show(&self, request: Request, id: &TaskId) -> Result<Seen, Error> {
        self.see(request, id, (Act::ShowTask, "task")).await
    }

    /// The same, for a look at something of it.
    pub(super) async fn see(
        &self,
        request: Request,
        id: &TaskId,
        (act, at): (Act, &'static str),
    ) -> Result<Seen, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: Some(id), now };
        let caller = self.identify(request.presented, &call).await?;
        let held = self.parts.ledger.task(id).await.map_err(|why| in_doubt(&why))?;
        let (contacts, until) = self.admit(caller, (id, held.as_ref()), &call, (act, at)).await?;
        held.map(|held| Seen { held, now, contacts, until }).ok_or(Error::NotFound(Sought::Task))
    }

    /// Whom a caller who may look at a task can talk to about it, and until when they may.
    pub(super) async fn admit(
        &self,
        caller: Caller,
        (id, held): (&TaskId, Option<&Held>),
        call: &Call<'_>,
        (act, at): (Act, &'static str),
    ) -> Result<(Vec<String>, Option<Time>), Error> {
        let mut contacts: Vec<String> = Vec::new();
        let until = match caller {
            Caller::Operator(operator) => {
                self.allow(&operator, act, call).await?;
                self.note(&operator, call, looked(at)).await?;
                if let Some(held) = held {
                    contacts.extend_from_slice(self.rules().parties.contacts(&held.task.owner));
                }
                operator.until()
            }
            Caller::Owner(member) => {
                let owner = held.map(|held| &held.task.owner).filter(|owner| member.acts_for(owner));
                let owner = owner.ok_or_else(|| self.turn_down(&*member, at, call, Error::NotFound(Sought::Task)))?;
                self.note_owner(&member, (owner, Some(id)), call, at).await?;
                Some(member.until())
            }
            Caller::Workload(holder) if held.is_some_and(|held| owns(&holder.attested, &held.task)) => {
                self.spend(&holder).await?;
                holder.attested.expires_at()
            }
            Caller::Workload(holder) => return Err(self.turn_down(&*holder, at, call, Error::NotFound(Sought::Task))),
            Caller::Service(service) => {
                return Err(self.turn_down(&*service, at, call, wrong_role("a service sees no tasks")));
            }
        };
        Ok((contacts, until))
    }

    /// A page of the tasks that `filter` admits, newest first: of all for an operator, of their own for anybody else. With it the
    /// cursor of the next page, which tells nothing of others' tasks.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`], [`Error::Unavailable`].
    pub async fn list(
        &self,
        request: Request,
        filter: &Filter,
        before: Option<TaskId>,
        limit: usize,
    ) -> Result<Page, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: None, now };
        let sees = match self.identify(request.presented, &call).await? {
            Caller::Operator(operator) => {
                self.allow(&operator, Act::ListTasks, &call).await?;
                self.note(&operator, &call, looked("tasks")).await?;
                Sees::All
            }
            Caller::Owner(member) => {
                for owner in member.owners() {
                    self.note_owner(&member, (owner, None), &call, "tasks").await?;
                }
                Sees::Owners(member)
            }
            Caller::Workload(holder) => {
                self.spend(&holder).await?;
                Sees::Own(holder)
            }
            Caller::Service(service) => {
                return Err(self.turn_down(&*service, "tasks", &call, wrong_role("a service sees no tasks")));
            }
        };
        let wanted = |held: &Held| filter.admits(held, now) && sees.admits(held);
        let (mut tasks, mut next, mut looked_at) = (Vec::<Held>::new(), before, 0);
        while looked_at < MAX_LOOK {
            let (page, after) = self.page(next.as_ref(), LOOK).await?;
            looked_at += LOOK;
            next = after;
            for held in page.into_iter().filter(wanted) {
                if tasks.len() == limit {
                    next = tasks.last().map(|held| held.task.id.clone());
                    return Ok(Page { tasks, next, now });
                }
                tasks.push(held);
            }
            if next.is_none() {
                break;
            }
        }
        // Where the look ended at a task that is another's, only its moment is told.
        let next = next.map(|id| if matches!(sees, Sees::All) { id } else { id.moment() });
        Ok(Page { tasks, next, now })
    }

    async fn page(&self, before: Option<&TaskId>, limit: usize) -> Result<(Vec<Held>, Option<TaskId>), Error> {
        self.parts.ledger.tasks(before, limit).await.map_err(|why| in_doubt(&why))
    }
}
