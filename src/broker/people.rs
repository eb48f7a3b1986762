//! People: operators and those who act for an owner, known by a token of the operators' issuer; what they may, and what is on record of it.
//!
//! A token that names that issuer is judged by it alone: it is never evidence, and evidence is never an operator.

use std::sync::Arc;

use super::{Broker, Call, Caller, looked, wrong_role};
use crate::{
    attest::Rejected,
    audit::{Actor, Entry, Event},
    error::{Error, Input},
    id::TaskId,
    jose::Unverified,
    party::{Act, Member, Operator, Person},
    task::Task,
};

impl Broker {
    /// Who presents a token that names an issuer of the operators' own; `None` where it names none of them.
    pub(super) async fn recognise(&self, token: &Unverified<'_>, call: &Call<'_>) -> Result<Option<Caller>, Error> {
        let Some(recognised) = self.rules().parties.recognise(token, call.now).await else { return Ok(None) };
        let request = call.request;
        match recognised {
            Ok(Person::Operator(operator)) => Ok(Some(Caller::Operator(Arc::new(operator)))),
            Ok(Person::Owner(member)) => Ok(Some(Caller::Owner(Arc::new(member)))),
            Ok(Person::Stranger(name)) => {
                let error = wrong_role("the token is good, and brings neither a role nor an owner's group here");
                // Of no task: they may see none.
                let call = Call { task: None, ..*call };
                Err(self.turn_down_as(Actor::Operator { name }, "anything", &call, error))
            }
            Err(Rejected::Refused(why)) => {
                self.turn_away("operator", "invalid", &why, call);
                Err(Error::EvidenceInvalid)
            }
            Err(Rejected::Unavailable(why)) => {
                tracing::error!(request, %why, "an operator's token cannot be checked");
                self.turn_away("operator", "unavailable", &why, call);
                Err(Error::Unavailable(Input::Issuer))
            }
        }
    }

    /// Lets an operator go on whose roles allow it; of any other it is on record that they tried.
    ///
    /// # Errors
    /// [`Error::PolicyDenied`] with the role that it takes, [`Error::Unavailable`].
    pub(super) async fn allow(&self, operator: &Operator, act: Act, call: &Call<'_>) -> Result<(), Error> {
        if operator.may(act) { Ok(()) } else { Err(self.refuse_act(operator, act, call).await?) }
    }

    /// Records that an operator tried what takes another role, and yields the error to answer with.
    pub(super) async fn refuse_act(&self, operator: &Operator, act: Act, call: &Call<'_>) -> Result<Error, Error> {
        let why = format!("this takes an operator with the role `{}`", act.role());
        self.refuse_operator(operator, call, &why).await
    }

    /// Records at what somebody looked for an owner, and at which task of that owner's.
    pub(super) async fn note_owner(
        &self,
        member: &Member,
        (owner, task): (&str, Option<&TaskId>),
        call: &Call<'_>,
        at: &str,
    ) -> Result<(), Error> {
        self.note_of(for_owner(member, owner), task, call, looked(at)).await
    }

    async fn note_of(&self, actor: Actor, task: Option<&TaskId>, call: &Call<'_>, event: Event) -> Result<(), Error> {
        let (request, task) = (call.request.to_owned(), task.cloned());
        self.record(vec![Entry { time: call.now, request, actor, task, event }]).await
    }
}

/// As whom somebody acts on a task, if they act for its owner.
pub(super) fn owner_of(member: &Member, task: &Task) -> Option<Actor> {
    member.acts_for(&task.owner).then(|| for_owner(member, &task.owner))
}

fn for_owner(member: &Member, owner: &str) -> Actor {
    Actor::Owner { name: member.name().to_owned(), owner: owner.to_owned() }
}
