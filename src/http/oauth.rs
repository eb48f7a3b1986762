//! `/oauth2/*`: token exchange (RFC 8693), `client_credentials` on the socket or by TLS (RFC 6749 section 4.4, RFC 8705 section 2), introspection
//! (RFC 7662), revocation (RFC 7009).

mod asked;

use axum::{
    Json as Answer,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    error::{EvidenceRole, OAuthError, Problem},
    extract::{self, Called, NoForm, ONE_PLACE},
    openapi::{OAuthRefusals, callers, refused},
    tasks::{bodies::TaskToken, idempotency_key},
};
use crate::{
    attest::Asserted,
    broker::{self, Broker, Introspection, Manner, Presented, PresentedTaskToken},
    claims::Claims,
    claims::token_type,
    clock::{Time, whole_second},
    credential::Credential,
    error::{Error, Part},
    id::TaskId,
    party::Act,
    task::{AccessDetail, CredentialType, Privilege},
};
use asked::{Asked, asked};

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:";
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

async fn form<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    extract::form(request).await.map_err(|why| {
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

/// A token request. What is not understood (`actor_token`, `audience`, the authentication of a client) is refused, never passed over.
#[derive(Deserialize, ToSchema)]
pub(super) struct TokenRequest {
    /// `urn:ietf:params:oauth:grant-type:token-exchange`, or `client_credentials` with a `client_assertion`, with a client certificate or on
    /// the Unix socket.
    #[schema(value_type = String, required = true)]
    grant_type: Option<String>,
    /// The evidence. With a token exchange alone.
    #[schema(value_type = String, required = false)]
    subject_token: Option<String>,
    /// `urn:ietf:params:oauth:token-type:jwt` or `…:id_token`; `…:access_token` for a task token, with a proof of its key.
    #[schema(value_type = String, required = false)]
    subject_token_type: Option<String>,
    /// `urn:ietf:params:oauth:token-type:access_token`, which is the default, or `…:jwt` for a JWT-SVID.
    #[schema(value_type = String, required = false)]
    requested_token_type: Option<String>,
    /// The one service that the token is for (RFC 8707).
    #[schema(value_type = String, format = "uri", required = false)]
    resource: Option<String>,
    /// The task's id and one privilege, with a space in between.
    #[schema(value_type = String, required = false)]
    scope: Option<String>,
    /// The same as one JSON object in an array (RFC 9396): of type `remit:task`, with an `identifier`, one of `locations` and one of
    /// `privileges`; or of type `remit:declaration`, with the members of `Declaration`, to declare the task in the same call.
    #[schema(value_type = String, required = false, content_media_type = "application/json")]
    authorization_details: Option<String>,
    #[schema(ignore)]
    audience: Option<String>,
    #[schema(ignore)]
    actor_token: Option<String>,
    #[schema(ignore)]
    actor_token_type: Option<String>,
    /// A JWT that a registered client signed for this request (RFC 7523 section 2.2). With `client_credentials` alone.
    #[schema(value_type = String, required = false)]
    client_assertion: Option<String>,
    /// `urn:ietf:params:oauth:client-assertion-type:jwt-bearer`, or `…:jwt-spiffe` for a JWT-SVID of a trust domain that an attestor
    /// names.
    #[schema(value_type = String, required = false)]
    client_assertion_type: Option<String>,
    /// The client, where an assertion comes along: the same as the assertion's. Everybody else is known by their evidence.
    #[schema(value_type = String, required = false)]
    client_id: Option<String>,
    #[schema(ignore)]
    client_secret: Option<String>,
}

/// A token (RFC 8693 section 2.2.1).
#[derive(Serialize, ToSchema)]
#[schema(as = TokenResponse)]
pub(super) struct TokenAnswer<'a> {
    /// The token.
    access_token: &'a str,
    /// `urn:ietf:params:oauth:token-type:access_token` or `…:jwt`.
    issued_token_type: String,
    /// `Bearer`; `DPoP` where it is bound to the key of the proof that came with the request; `N_A` for a JWT-SVID.
    token_type: &'static str,
    /// Seconds until its end.
    expires_in: i64,
    /// The one privilege.
    scope: Privilege,
    /// What it may do there.
    authorization_details: &'a [AccessDetail],
    /// The task that it was minted for.
    task: &'a TaskId,
    #[serde(flatten)]
    #[schema(value_type = TaskToken)]
    task_token: Option<TaskToken<'a>>,
}

/// Get a token: by token exchange (RFC 8693), or by `client_credentials` on the Unix socket and with a client certificate.
///
/// A token holds one service and one privilege. The task is named, or declared in the same call. An unknown task, another's and an
/// ended one are the same `invalid_grant`.
#[utoipa::path(
    post, path = "/oauth2/token", operation_id = "token", tag = "oauth",
    params(("DPoP" = Option<String>, Header, description = "A proof (RFC 9449): the token is bound to its key"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
        description = "With a declaration: what a retry repeats")),
    request_body(content = TokenRequest, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "A token", body = TokenAnswer),
        OAuthRefusals<{ refused::TOKEN | refused::QUOTA | refused::BODY }>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["workload"]))),
)]
pub(super) async fn token(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    called: Result<Called, Problem>,
    request: Request,
) -> Result<Response, Refusal> {
    let called = called.map_err(|Problem(error)| failed(EvidenceRole::Client)(error))?;
    let mut form: TokenRequest = form(request).await?;
    let (request, role) = authenticate(&mut form, called)?;
    let (task, task_token, credentials, now) = match asked(form).map_err(failed(role))? {
        Asked::Mint(task, credential) => {
            tracing::Span::current().record("task", task.as_str());
            let minted = broker.mint(request, &task, std::slice::from_ref(&credential)).await;
            (task, None, minted.map_err(failed(role))?, None)
        }
        Asked::Declare { declaration, digest } => {
            let key = idempotency_key(&headers, digest).map_err(failed(role))?;
            let declared = broker.declare_and_mint(request, &declaration, key).await.map_err(failed(role))?;
            (declared.held.task.id.clone(), declared.task_token, declared.credentials, Some(whole_second(declared.now)))
        }
    };
    let credential = credentials.first().ok_or_else(|| failed(role)(Error::TaskNotActive))?;
    let task_token = task_token.as_ref().map(TaskToken::of);
    // A retry gets what was minted before.
    let now = now.unwrap_or(credential.lease.issued_at);
    Ok(Answer(TokenAnswer { task_token, ..answer(&task, credential, now) }).into_response())
}

/// Who asks: the subject of an exchange, the client whose assertion or certificate it is, or on the socket the process that the
/// kernel names. Nothing ever falls back from one to another.
fn authenticate(form: &mut TokenRequest, called: Called) -> Result<(broker::Request, EvidenceRole), Refusal> {
    let Called { request: broker::Request { presented, id }, authorized } = called;
    if authorized {
        return Err(failed(EvidenceRole::Client)(Error::EvidenceInvalid));
    }
    let subject = (form.subject_token.take().map(SecretString::from), form.subject_token_type.take());
    let actor = form.actor_token.is_some() || form.actor_token_type.is_some();
    let assertion = (form.client_assertion.take().map(SecretString::from), form.client_assertion_type.take());
    let client_id = form.client_id.take();
    // A way to authenticate that is not understood is never passed over in favour of another.
    if form.client_secret.is_some() {
        return Err(failed(EvidenceRole::Client)(Error::EvidenceInvalid));
    }
    match (form.grant_type.as_deref(), assertion) {
        (_, (None, None)) => {}
        (Some("client_credentials"), (Some(token), Some(kind))) if !actor && matches!(subject, (None, None)) => {
            let assertion = Some(asserted(token, &kind)?);
            let presented = Presented { assertion, client_id, bearer: None, peer: None, ..presented };
            return Ok((broker::Request { presented, id }, EvidenceRole::Client));
        }
        _ => return Err(failed(EvidenceRole::Client)(Error::EvidenceInvalid)),
    }
    match (form.grant_type.as_deref(), subject) {
        (Some(TOKEN_EXCHANGE), _) if actor => Err(failed(EvidenceRole::Subject)(Error::invalid(
            "`actor_token` is not understood: delegation is not available",
        ))),
        (Some(TOKEN_EXCHANGE), (Some(token), Some(kind)))
            if ["jwt", "id_token"].iter().any(|t| kind == format!("{TYPE}{t}")) =>
        {
            let presented = Presented { bearer: Some(token), peer: None, ..presented };
            Ok((broker::Request { presented, id }, EvidenceRole::Subject))
        }
        // The task token is the one access token that this broker takes.
        (Some(TOKEN_EXCHANGE), (Some(token), Some(kind))) if kind == format!("{TYPE}access_token") => {
            let task_token = Some(PresentedTaskToken { token, manner: Manner::Subject });
            let presented = Presented { task_token, peer: None, ..presented };
            Ok((broker::Request { presented, id }, EvidenceRole::Subject))
        }
        (Some(TOKEN_EXCHANGE), _) => Err(failed(EvidenceRole::Subject)(Error::invalid(
            "token exchange takes a `subject_token` with the `subject_token_type` urn:ietf:params:oauth:token-type:jwt or :id_token, \
             or :access_token for a task token",
        ))),
        (Some("client_credentials"), (None, None)) if !actor => {
            // On the socket whoever calls is known by what the kernel says, and by no name that they give.
            let client_id = client_id.filter(|_| presented.certificate.is_some());
            let presented = Presented { bearer: None, client_id, ..presented };
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

/// A client's assertion, by its type.
fn asserted(token: SecretString, kind: &str) -> Result<(SecretString, Asserted), Refusal> {
    match kind.strip_prefix(ASSERTION) {
        Some("jwt-bearer") => Ok((token, Asserted::Client)),
        Some("jwt-spiffe") => Ok((token, Asserted::Spiffe)),
        _ => Err(failed(EvidenceRole::Client)(Error::EvidenceInvalid)),
    }
}

fn answer<'a>(task: &'a TaskId, credential: &'a Credential, now: Time) -> TokenAnswer<'a> {
    let lease = &credential.lease;
    let issued = match lease.kind {
        CredentialType::AccessToken => "access_token",
        CredentialType::Jwt => "jwt",
    };
    TokenAnswer {
        access_token: credential.token.expose_secret(),
        issued_token_type: format!("{TYPE}{issued}"),
        token_type: token_type(lease.kind, lease.bound_to.as_ref()),
        expires_in: (lease.expires_at - now).num_seconds(),
        scope: lease.privilege,
        authorization_details: &credential.details,
        task,
        task_token: None,
    }
}

/// A question whether a token is alive.
#[derive(Deserialize, ToSchema)]
pub(super) struct IntrospectionRequest {
    /// The token.
    #[schema(value_type = String, required = true)]
    token: Option<String>,
    #[schema(ignore)]
    access_token: Option<String>,
}

/// Whether a token is alive (RFC 7662), and if so what it says.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = IntrospectionResponse)]
pub(super) enum IntrospectionAnswer {
    Active(Box<ActiveToken>),
    Inactive(InactiveToken),
}

/// A token that is alive at this moment, and its claims.
#[derive(Serialize, ToSchema)]
pub(super) struct ActiveToken {
    #[serde(flatten)]
    claims: Claims,
    /// Always true.
    active: bool,
    /// `Bearer`, or `N_A` for a JWT-SVID.
    token_type: &'static str,
}

/// A token that is unknown, expired, ended, for somebody else, or in doubt: which of them is not told.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InactiveToken {
    /// Always false.
    active: bool,
}

/// Ask whether a token is alive at this moment (RFC 7662).
///
/// A service sees the tokens that are for itself, an operator all of them.
#[utoipa::path(
    post, path = "/oauth2/introspect", operation_id = "introspect", tag = "oauth",
    request_body(content = IntrospectionRequest, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "Whether it is", body = IntrospectionAnswer),
        OAuthRefusals<{ refused::CLIENT | refused::MALFORMED | refused::BODY }>,
    ),
    security(("service" = []), ("operator" = [])),
    extensions(("x-remit-callers" = json!(callers(["service"], Act::Introspect)))),
)]
pub(super) async fn introspect(
    State(broker): State<Arc<Broker>>,
    called: Result<Called, Problem>,
    request: Request,
) -> Result<Answer<IntrospectionAnswer>, Refusal> {
    let fail = failed(EvidenceRole::Client);
    let called = called.map_err(|Problem(error)| fail(error))?;
    let form: IntrospectionRequest = form(request).await?;
    if form.access_token.is_some() && called.authorized {
        return Err(fail(Error::invalid(ONE_PLACE)));
    }
    let token = form.token.ok_or_else(|| fail(Error::invalid("`token` is required")))?;
    Ok(Answer(match broker.introspect(called.request, &token).await.map_err(fail)? {
        Introspection::Inactive => IntrospectionAnswer::Inactive(InactiveToken { active: false }),
        Introspection::Active(claims, form) => {
            let token_type = token_type(form, claims.cnf.as_ref());
            IntrospectionAnswer::Active(Box::new(ActiveToken { claims: *claims, active: true, token_type }))
        }
    }))
}

/// A token that is to be revoked.
#[derive(Deserialize, ToSchema)]
pub(super) struct RevocationRequest {
    /// An access token, a JWT-SVID or a task token of the caller's own.
    #[schema(value_type = String, required = true)]
    token: Option<String>,
    /// Not looked at: a token says itself what it is.
    #[serde(rename = "token_type_hint")]
    #[schema(value_type = String, required = false)]
    _token_type_hint: Option<String>,
    #[schema(ignore)]
    access_token: Option<String>,
    /// As at the token endpoint, in the place of evidence in the `Authorization` header.
    #[schema(value_type = String, required = false)]
    client_assertion: Option<String>,
    /// As at the token endpoint.
    #[schema(value_type = String, required = false)]
    client_assertion_type: Option<String>,
    /// The client, where an assertion or a certificate comes along.
    #[schema(value_type = String, required = false)]
    client_id: Option<String>,
    #[schema(ignore)]
    client_secret: Option<String>,
}

/// Nothing: the status says all there is to say.
#[derive(Serialize, ToSchema)]
#[schema(as = RevocationResponse)]
pub(super) struct RevocationAnswer {}

/// Revoke a token of one's own (RFC 7009). Its task and the others of it go on.
///
/// The same answer for a token that is unknown, over or another's, which stays as it is. A status list does not show it, because a task has
/// one place there for all its tokens.
#[utoipa::path(
    post, path = "/oauth2/revoke", operation_id = "revokeToken", tag = "oauth",
    params(("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    request_body(content = RevocationRequest, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "It is revoked, or was none of the caller's that lives", body = RevocationAnswer),
        OAuthRefusals<{ refused::CLIENT | refused::MALFORMED | refused::BODY }>,
    ),
    security(("evidence" = []), ()),
    extensions(("x-remit-callers" = json!(["workload"]))),
)]
pub(super) async fn revoke(
    State(broker): State<Arc<Broker>>,
    called: Result<Called, Problem>,
    request: Request,
) -> Result<Answer<RevocationAnswer>, Refusal> {
    let fail = failed(EvidenceRole::Client);
    let Called { request: broker::Request { presented, id }, authorized } =
        called.map_err(|Problem(error)| fail(error))?;
    let form: RevocationRequest = form(request).await?;
    if form.access_token.is_some() {
        return Err(fail(Error::invalid(ONE_PLACE)));
    }
    let assertion = match (form.client_assertion.map(SecretString::from), form.client_assertion_type) {
        (None, None) => None,
        // A client authenticates in one way (RFC 6749 section 2.3), and in one that is understood.
        (Some(token), Some(kind)) if !authorized => Some(asserted(token, &kind)?),
        _ => return Err(fail(Error::EvidenceInvalid)),
    };
    if form.client_secret.is_some() {
        return Err(fail(Error::EvidenceInvalid));
    }
    let mut presented = presented;
    if assertion.is_some() {
        presented = Presented { assertion, client_id: form.client_id, peer: None, ..presented };
    } else if !authorized && presented.certificate.is_some() {
        presented.client_id = form.client_id;
    }
    let token = form.token.ok_or_else(|| fail(Error::invalid("`token` is required")))?;
    broker.revoke_token(broker::Request { presented, id }, &token).await.map_err(fail)?;
    Ok(Answer(RevocationAnswer {}))
}
