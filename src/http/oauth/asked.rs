//! What a token request asks for: a credential of a task, or a task that is yet to be declared with its first credential.
//! It stands in `resource` and `scope`, in `authorization_details` (RFC 9396), or in both where they agree.

use serde::Deserialize;
use serde_json::Value;

use super::{TYPE, TokenRequest, invalid};
use crate::{
    error::{Error, Part},
    id::{Location, TaskId, sha256_hex},
    jose::NoRepeats,
    task::{CredentialRequest, CredentialType, Declaration, Privilege},
};

/// What is asked for.
pub(super) enum Asked {
    /// One credential of a task.
    Mint(TaskId, CredentialRequest),
    /// A task, and with it one credential.
    Declare {
        declaration: Box<Declaration>,
        /// SHA-256 of what was asked, whatever evidence came with it: what a retry must repeat.
        digest: String,
    },
}

/// An `authorization_details` object of type `remit:task`: a task, and one service and privilege of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskDetail {
    identifier: TaskId,
    locations: [Location; 1],
    privileges: [Privilege; 1],
}

enum Detail {
    Task(TaskDetail),
    Declaration(Box<Declaration>),
}

/// What the other parameters say; each may be absent.
struct Named {
    task: Option<TaskId>,
    resource: Option<Location>,
    privilege: Option<Privilege>,
    kind: Option<CredentialType>,
}

pub(super) fn asked(form: TokenRequest) -> Result<Asked, Error> {
    if form.audience.is_some() {
        return Err(invalid(Part::Target, "name the service by `resource`, not by `audience`"));
    }
    let kind = match form.requested_token_type.as_deref().map(|kind| kind.strip_prefix(TYPE)) {
        None => None,
        Some(Some("access_token")) => Some(CredentialType::AccessToken),
        Some(Some("jwt")) => Some(CredentialType::Jwt),
        Some(_) => return Err(Error::invalid("`requested_token_type` ends in :access_token or :jwt")),
    };
    let TokenRequest { authorization_details: details, scope, resource, .. } = form;
    let digest = sha256_hex(format!("{details:?}{scope:?}{resource:?}{kind:?}").as_bytes());
    let detail = details.as_deref().map(detail).transpose()?;
    let (task, privilege) = scope.as_deref().map(scope_of).transpose()?.unwrap_or_default();
    let resource = resource.map(|text| text.parse::<Location>()).transpose();
    let resource = resource.map_err(|why| invalid(Part::Target, why.0))?;
    let named = Named { task, resource, privilege, kind };
    match detail {
        None => named.mint(),
        Some(Detail::Task(detail)) => named.and(detail)?.mint(),
        Some(Detail::Declaration(declaration)) => {
            Ok(Asked::Declare { declaration: Box::new(named.declare(*declaration)?), digest })
        }
    }
}

impl Named {
    /// The same with what `detail` says.
    fn and(self, detail: TaskDetail) -> Result<Self, Error> {
        let TaskDetail { identifier, locations: [location], privileges: [privilege] } = detail;
        let agree = self.task.is_none_or(|task| task == identifier)
            && self.privilege.is_none_or(|named| named == privilege)
            && self.resource.is_none_or(|resource| resource == location);
        if !agree {
            return Err(disagree());
        }
        Ok(Self { task: Some(identifier), resource: Some(location), privilege: Some(privilege), kind: self.kind })
    }

    fn mint(self) -> Result<Asked, Error> {
        let resource = self.resource.ok_or_else(|| invalid(Part::Target, "name one service by `resource`"))?;
        let kind = self.kind.unwrap_or_default();
        match (self.task, self.privilege) {
            (Some(task), Some(privilege)) => {
                Ok(Asked::Mint(task, CredentialRequest { resource, privilege, kind, ttl: None }))
            }
            _ => Err(invalid(Part::Scope, "`scope` is a task id and one privilege: read, write or secret")),
        }
    }

    /// The declaration, which asks for the one credential that the answer has room for.
    fn declare(self, mut declaration: Declaration) -> Result<Declaration, Error> {
        if self.task.is_some() {
            return Err(invalid(Part::Scope, "a task that is being declared has no id yet: `scope` is one privilege"));
        }
        match declaration.credentials.as_slice() {
            [] => {
                let resource = self.resource.ok_or_else(|| {
                    invalid(Part::Target, "name one service, by `resource` or in the `credentials` of the declaration")
                })?;
                let privilege = self.privilege.ok_or_else(|| {
                    invalid(Part::Scope, "name one privilege, by `scope` or in the `credentials` of the declaration")
                })?;
                let kind = self.kind.unwrap_or_default();
                declaration.credentials = vec![CredentialRequest { resource, privilege, kind, ttl: None }];
            }
            [one] => {
                let agree = self.resource.is_none_or(|resource| resource == one.resource)
                    && self.privilege.is_none_or(|privilege| privilege == one.privilege)
                    && self.kind.is_none_or(|kind| kind == one.kind);
                if !agree {
                    return Err(disagree());
                }
            }
            _ => {
                return Err(invalid(
                    Part::AuthorizationDetails,
                    "a token endpoint answers with one token: `credentials` has one object, or POST /v1/tasks takes them all",
                ));
            }
        }
        Ok(declaration)
    }
}

fn disagree() -> Error {
    invalid(Part::AuthorizationDetails, "`authorization_details` says something else than the other parameters")
}

fn scope_of(scope: &str) -> Result<(Option<TaskId>, Option<Privilege>), Error> {
    let (mut task, mut privilege) = (None, None);
    for word in scope.split(' ') {
        let fresh = match (word.parse::<TaskId>(), word.parse::<Privilege>()) {
            (Ok(id), _) => task.replace(id).is_none(),
            (_, Ok(one)) => privilege.replace(one).is_none(),
            _ => false,
        };
        if !fresh {
            return Err(invalid(Part::Scope, "`scope` is one task id and one privilege: read, write or secret"));
        }
    }
    Ok((task, privilege))
}

fn detail(text: &str) -> Result<Detail, Error> {
    let malformed = |detail: &str| invalid(Part::AuthorizationDetails, detail);
    let array = |_| malformed("`authorization_details` is a JSON array of one object that repeats no member");
    let NoRepeats(value) = serde_json::from_str(text).map_err(array)?;
    let [mut object]: [serde_json::Map<String, Value>; 1] = serde_json::from_value(value).map_err(array)?;
    match object.remove("type").as_ref().and_then(Value::as_str) {
        Some("remit:task") => {
            let detail = serde_json::from_value(Value::Object(object));
            detail.map(Detail::Task).map_err(|_| {
                malformed(
                    "an object of type remit:task has an `identifier`, one of `locations` and one of `privileges`",
                )
            })
        }
        Some("remit:declaration") => {
            let declaration: Declaration = crate::http::extract::fit(Value::Object(object)).map_err(of_details)?;
            declaration.validate().map_err(of_details)?;
            Ok(Detail::Declaration(Box::new(declaration)))
        }
        _ => Err(malformed("the types of `authorization_details` here are remit:task and remit:declaration")),
    }
}

/// What is wrong with a declaration is wrong with the details.
fn of_details(error: Error) -> Error {
    let Error::InvalidRequest { detail, .. } = error else { return error };
    Error::InvalidRequest { part: Part::AuthorizationDetails, detail }
}
