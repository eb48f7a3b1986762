//! `/oauth2/*`: token exchange (RFC 8693), `client_credentials` on the socket (RFC 6749 section 4.4), introspection (RFC 7662).

use axum::{
    Json as Answer,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

use super::{
    error::{EvidenceRole, OAuthError, Problem},
    extract::{Called, Form, NoForm},
};
use crate::{
    broker::{self, Broker, Introspection, Presented},
    credential::Credential,
    error::{Error, Part},
    id::{Location, TaskId},
    jose::NoRepeats,
    task::{CredentialRequest, CredentialType, Privilege},
};

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const TYPE: &str = "urn:ietf:params:oauth:token-type:";

/// Why a request was refused: as OAuth says it, or by a status alone, because the body was not even read.
pub(super) enum Refusal {
    OAuth(OAuthError),
    Unread(StatusCode),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Refusal::OAuth(error) => error.into_response(),
            Refusal::Unread(status) => status.into_response(),
        }
    }
}

fn failed(role: EvidenceRole) -> impl Fn(Error) -> Refusal {
    move |error| Refusal::OAuth(OAuthError { error, role })
}

fn invalid(part: Part, detail: &str) -> Error {
    Error::InvalidRequest { part, detail: detail.to_owned() }
}

async fn form(request: Request) -> Result<Form, Refusal> {
    Form::read(request).await.map_err(|why| {
        let error = match why {
            NoForm::Unread(status) => return Refusal::Unread(status),
            NoForm::Malformed(why) => Error::invalid(why),
            NoForm::Repeated(name) if name == "resource" => {
                invalid(Part::Target, "a token has one audience: name one `resource`")
            }
            NoForm::Repeated(_) => Error::invalid("a parameter is repeated"),
        };
        failed(EvidenceRole::Client)(error)
    })
}

pub(super) async fn token(
    State(broker): State<Arc<Broker>>,
    called: Result<Called, Problem>,
    request: Request,
) -> Result<Answer<Value>, Refusal> {
    let called = called.map_err(|Problem(error)| failed(EvidenceRole::Client)(error))?;
    let mut form = form(request).await?;
    let (request, role) = authenticate(&mut form, called)?;
    let (task, asked) = asked(&mut form).map_err(failed(role))?;
    let credentials = broker.mint(request, &task, std::slice::from_ref(&asked)).await.map_err(failed(role))?;
    let credential = credentials.first().ok_or_else(|| failed(role)(Error::TaskNotActive))?;
    Ok(Answer(answer(&task, credential)))
}

/// Who asks: the subject of an exchange, or on the socket the process that the kernel names. Nothing ever falls back from
/// one to the other.
fn authenticate(form: &mut Form, called: Called) -> Result<(broker::Request, EvidenceRole), Refusal> {
    let Called { request: broker::Request { presented, id }, authorized } = called;
    if authorized {
        return Err(failed(EvidenceRole::Client)(Error::EvidenceInvalid));
    }
    let subject = (form.take("subject_token").map(SecretString::from), form.take("subject_token_type"));
    let actor = form.take("actor_token").is_some() || form.take("actor_token_type").is_some();
    // A way to authenticate that is not understood is never passed over in favour of another.
    if ["client_assertion", "client_assertion_type", "client_secret"].iter().any(|name| form.take(name).is_some()) {
        return Err(failed(EvidenceRole::Client)(Error::EvidenceInvalid));
    }
    let grant = form.take("grant_type");
    match (grant.as_deref(), subject) {
        (Some(TOKEN_EXCHANGE), _) if actor => Err(failed(EvidenceRole::Subject)(Error::invalid(
            "`actor_token` is not understood: delegation is not available",
        ))),
        (Some(TOKEN_EXCHANGE), (Some(token), Some(kind)))
            if ["jwt", "id_token"].iter().any(|t| kind == format!("{TYPE}{t}")) =>
        {
            let presented = Presented { bearer: Some(token), peer: None };
            Ok((broker::Request { presented, id }, EvidenceRole::Subject))
        }
        (Some(TOKEN_EXCHANGE), _) => Err(failed(EvidenceRole::Subject)(Error::invalid(
            "token exchange takes a `subject_token` with the `subject_token_type` urn:ietf:params:oauth:token-type:jwt or :id_token",
        ))),
        (Some("client_credentials"), (None, None)) if !actor => {
            let presented = Presented { bearer: None, peer: presented.peer };
            Ok((broker::Request { presented, id }, EvidenceRole::Client))
        }
        (Some("client_credentials"), _) => {
            Err(failed(EvidenceRole::Client)(Error::invalid("client_credentials takes no subject or actor token")))
        }
        (Some(_), _) => Err(failed(EvidenceRole::Client)(invalid(
            Part::GrantType,
            "the grant types are urn:ietf:params:oauth:grant-type:token-exchange and client_credentials",
        ))),
        (None, _) => Err(failed(EvidenceRole::Client)(Error::invalid("`grant_type` is required"))),
    }
}

/// An `authorization_details` object that names a task and one service and privilege of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskDetail {
    #[serde(rename = "type")]
    kind: String,
    identifier: TaskId,
    locations: [Location; 1],
    privileges: [Privilege; 1],
}

/// What is asked for, from `resource` and `scope`, or from `authorization_details`, or from both where they agree.
fn asked(form: &mut Form) -> Result<(TaskId, CredentialRequest), Error> {
    if form.take("audience").is_some() {
        return Err(invalid(Part::Target, "name the service by `resource`, not by `audience`"));
    }
    let kind = match form.take("requested_token_type").as_deref().map(|kind| kind.strip_prefix(TYPE)) {
        None | Some(Some("access_token")) => CredentialType::AccessToken,
        Some(Some("jwt")) => CredentialType::Jwt,
        Some(_) => return Err(Error::invalid("`requested_token_type` ends in :access_token or :jwt")),
    };
    let detail = form.take("authorization_details").map(|text| task_detail(&text)).transpose()?;
    let (mut task, mut privilege) = match form.take("scope") {
        Some(scope) => scope_of(&scope)?,
        None => (None, None),
    };
    let resource = form.take("resource").map(|text| text.parse::<Location>()).transpose();
    let mut resource = resource.map_err(|why| invalid(Part::Target, why.0))?;
    if let Some(TaskDetail { identifier, locations: [location], privileges: [granted], .. }) = detail {
        let agree = task.as_ref().is_none_or(|task| *task == identifier)
            && privilege.is_none_or(|privilege| privilege == granted)
            && resource.as_ref().is_none_or(|resource| *resource == location);
        if !agree {
            return Err(invalid(
                Part::AuthorizationDetails,
                "`authorization_details` says something else than `resource` and `scope`",
            ));
        }
        (task, privilege, resource) = (Some(identifier), Some(granted), Some(location));
    }
    let resource = resource.ok_or_else(|| invalid(Part::Target, "name one service by `resource`"))?;
    match (task, privilege) {
        (Some(task), Some(privilege)) => Ok((task, CredentialRequest { resource, privilege, kind, ttl: None })),
        _ => Err(invalid(Part::Scope, "`scope` is a task id and one privilege: read, write or secret")),
    }
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

fn task_detail(text: &str) -> Result<TaskDetail, Error> {
    let malformed = || {
        invalid(
            Part::AuthorizationDetails,
            "one object of type remit:task with `identifier`, one location and one privilege",
        )
    };
    let NoRepeats(value) = serde_json::from_str(text).map_err(|_| malformed())?;
    let [detail]: [TaskDetail; 1] = serde_json::from_value(value).map_err(|_| malformed())?;
    if detail.kind == "remit:task" { Ok(detail) } else { Err(malformed()) }
}

fn answer(task: &TaskId, credential: &Credential) -> Value {
    let lease = &credential.lease;
    let (issued, token_type) = match lease.kind {
        CredentialType::AccessToken => ("access_token", "Bearer"),
        CredentialType::Jwt => ("jwt", "N_A"),
    };
    json!({
        "access_token": credential.token.expose_secret(),
        "issued_token_type": format!("{TYPE}{issued}"),
        "token_type": token_type,
        "expires_in": (lease.expires_at - lease.issued_at).num_seconds(),
        "scope": lease.privilege,
        "authorization_details": credential.details,
        "task": task,
    })
}

pub(super) async fn introspect(
    State(broker): State<Arc<Broker>>,
    called: Result<Called, Problem>,
    request: Request,
) -> Result<Answer<Value>, Refusal> {
    let fail = failed(EvidenceRole::Client);
    let called = called.map_err(|Problem(error)| fail(error))?;
    let mut form = form(request).await?;
    let token = form.take("token").ok_or_else(|| fail(Error::invalid("`token` is required")))?;
    Ok(Answer(match broker.introspect(called.request, &token).await.map_err(fail)? {
        Introspection::Inactive => json!({"active": false}),
        Introspection::Active(claims, form) => {
            let mut body = serde_json::to_value(*claims).unwrap_or_default();
            if let Some(members) = body.as_object_mut() {
                members.insert("active".into(), true.into());
                let token_type = if form == CredentialType::AccessToken { "Bearer" } else { "N_A" };
                members.insert("token_type".into(), token_type.into());
            }
            body
        }
    }))
}
