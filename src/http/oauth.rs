//! `/oauth2/*`: token exchange (RFC 8693), `client_credentials` on the socket (RFC 6749 section 4.4), introspection (RFC 7662).

mod asked;

use axum::{
    Json as Answer,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use std::sync::Arc;

use super::{
    error::{EvidenceRole, OAuthError, Problem},
    extract::{Called, Form, NoForm, ONE_PLACE},
    tasks::idempotency_key,
};
use crate::{
    broker::{self, Broker, Introspection, Presented},
    credential::Credential,
    error::{Error, Part},
    id::TaskId,
    task::CredentialType,
};
use asked::{Asked, asked};

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
    headers: HeaderMap,
    called: Result<Called, Problem>,
    request: Request,
) -> Result<Answer<Value>, Refusal> {
    let called = called.map_err(|Problem(error)| failed(EvidenceRole::Client)(error))?;
    let mut form = form(request).await?;
    let (request, role) = authenticate(&mut form, called)?;
    let minted = match asked(&mut form).map_err(failed(role))? {
        Asked::Mint(task, credential) => {
            broker.mint(request, &task, std::slice::from_ref(&credential)).await.map(|minted| (task, minted))
        }
        Asked::Declare { declaration, digest } => {
            let key = idempotency_key(&headers, digest).map_err(failed(role))?;
            let declared = broker.declare_and_mint(request, &declaration, key).await;
            declared.map(|declared| (declared.held.task.id.clone(), declared.credentials))
        }
    };
    let (task, credentials) = minted.map_err(failed(role))?;
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
    if form.take("access_token").is_some() && called.authorized {
        return Err(fail(Error::invalid(ONE_PLACE)));
    }
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
