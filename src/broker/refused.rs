//! Callers who are known, and asked for what is not theirs: what their role does not allow, or a task of somebody else. On record, and
//! answered alike whether there is such a task or not.

use super::{
    Broker, Call, Caller, Holder, actor_of,
    minute::{Minutes, Others},
    strangers::of_minutes,
};
use crate::{
    audit::{Actor, CountedCaller, Entry, Event},
    clock::Time,
    error::Error,
    party::{Member, Service},
};

/// How many are told one by one in a minute: of one caller for one reason, and of all.
const ONE_BY_ONE: (u32, u32) = (10, 100);

/// What kind of caller they are, who, and the code of the answer.
type Turned = (&'static str, String, &'static str);

/// Those of this minute.
#[derive(Debug)]
pub(super) struct Callers(pub(super) Minutes<Turned>);

impl Default for Callers {
    fn default() -> Self {
        let (each, all) = ONE_BY_ONE;
        Self(Minutes::telling(each, all))
    }
}

/// Somebody who is known.
pub(super) trait Known {
    /// As whom they are on record.
    fn actor(&self) -> Actor;
}

impl Known for Holder {
    fn actor(&self) -> Actor {
        actor_of(&self.attested)
    }
}

impl Known for Service {
    fn actor(&self) -> Actor {
        Actor::Service { name: self.name().to_owned() }
    }
}

impl Known for Member {
    fn actor(&self) -> Actor {
        Actor::Owner { name: self.name().to_owned(), owner: self.owners().join(", ") }
    }
}

impl Known for Caller {
    fn actor(&self) -> Actor {
        match self {
            Self::Workload(holder) => holder.actor(),
            Self::Service(service) => service.actor(),
            Self::Owner(member) => member.actor(),
            Self::Operator(operator) => Actor::Operator { name: operator.name().to_owned() },
        }
    }
}

impl Broker {
    /// Puts on record that somebody who is known does not get what they asked for (`asked`: what), and yields the error to answer with.
    pub(super) fn turn_down(&self, who: &impl Known, asked: &'static str, call: &Call<'_>, error: Error) -> Error {
        self.turn_down_as(who.actor(), asked, call, error)
    }

    /// The same for whoever is called so.
    pub(super) fn turn_down_as(&self, actor: Actor, asked: &'static str, call: &Call<'_>, error: Error) -> Error {
        let (kind, name) = match &actor {
            Actor::Workload { workload, .. } => ("workload", workload.clone()),
            Actor::Service { name } => ("service", name.clone()),
            Actor::Owner { name, .. } => ("owner", name.clone()),
            Actor::Operator { name } => ("operator", name.clone()),
            Actor::Broker | Actor::Stranger => return error,
        };
        let code = if matches!(error, Error::NotFound(_)) {
            "not_found"
        } else if matches!(error, Error::EvidenceInvalid) {
            "evidence_invalid"
        } else {
            "policy_denied"
        };
        self.parts.metrics.turned_down(kind, code);
        if self.callers.0.take(&(kind, name, code), call.now) {
            let named = call.task.cloned();
            let event = Event::CallerRefused { asked, code, why: error.to_string(), named };
            // Not of the task: whoever knows the id of another's adds nothing to its story, nor to what its owner sees.
            let entry = Entry { time: call.now, request: call.request.to_owned(), actor, task: None, event };
            self.parts.audit.note(entry);
        }
        error
    }

    pub(super) async fn sum_up_callers(&self, over: Option<(Time, Others<Turned>)>, now: Time) {
        let Some((since, others)) = over else { return };
        let count =
            |((kind, name, code), &count): (&Turned, &u64)| CountedCaller { kind, name: name.clone(), code, count };
        let counts = others.counts.iter().map(count).collect();
        let event = Event::MoreCallersRefused { since, counts, beyond: others.beyond };
        if self.record(vec![of_minutes(event, now)]).await.is_err() {
            self.callers.0.put_back((since, others), now);
        }
    }
}
