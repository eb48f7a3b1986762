//! What handlers are given: who is calling, and a body that was read strictly.

use axum::{
    body::{Bytes, HttpBody as _},
    extract::{ConnectInfo, FromRequest, FromRequestParts, OptionalFromRequest, Path, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::time::Duration;

use super::{Caller, MAX_BODY, RequestId, error::Problem};
use crate::{
    broker::{self, Manner, Presented, PresentedTaskToken, ProofOf},
    error::Error,
    id::{LeaseId, LockId, TaskId},
    jose::{NoRepeats, Thumbprint},
};

/// How long a client may take to send a body. What is done with it has deadlines of its own.
const BODY_DEADLINE: Duration = Duration::from_secs(15);

/// RFC 6750 section 2: whoever sends several tokens, or one in several places, is asked what they mean.
pub(super) const ONE_PLACE: &str = "a token comes in one place, the `Authorization` header";

/// The caller, as far as the transport and the headers tell.
pub(super) struct Called {
    pub(super) request: broker::Request,
    /// Whether an `Authorization` header came with it.
    pub(super) authorized: bool,
}

impl<S: Sync> FromRequestParts<S> for Called {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let (authorization, proof) = (authorization(&parts.headers)?, proof(parts)?);
        let authorized = authorization.is_some();
        for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            if !(is_text(&name) && is_text(&value)) {
                return Err(Error::invalid("the query is not in UTF-8").into());
            }
            // Nor is a token that nobody looks for passed over in favour of what the kernel says.
            if name == "access_token" {
                return Err(if authorized { Error::invalid(ONE_PLACE) } else { Error::EvidenceInvalid }.into());
            }
        }
        let (certificate, peer) = match parts.extensions.get::<ConnectInfo<Caller>>() {
            Some(ConnectInfo(Caller::Process(peer))) => (None, peer.clone()),
            Some(ConnectInfo(Caller::Tls(certificate))) => (certificate.clone(), None),
            Some(ConnectInfo(Caller::Anybody)) | None => (None, None),
        };
        let id = parts.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
        let (bearer, task_token) = match authorization {
            Some(Authorization::Bearer(token)) => (Some(token), None),
            Some(Authorization::Dpop(token)) => (None, Some(PresentedTaskToken { token, manner: Manner::Dpop })),
            None => (None, None),
        };
        let presented = Presented { bearer, assertion: None, client_id: None, task_token, certificate, peer, proof };
        Ok(Self { request: broker::Request { presented, id }, authorized })
    }
}

/// The one proof of a request (RFC 9449 section 4.3), and what it has to be for.
fn proof(parts: &Parts) -> Result<Option<ProofOf>, Error> {
    let mut values = parts.headers.get_all("dpop").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let text = text.ok_or(Error::ProofInvalid("a request has one header `DPoP` with one proof"))?.to_owned();
    Ok(Some(ProofOf { text, method: parts.method.as_str().to_owned(), path: parts.uri.path().to_owned() }))
}

/// A token, by how it is presented.
enum Authorization {
    /// RFC 6750 section 2.1.
    Bearer(SecretString),
    /// RFC 9449 section 7.1.
    Dpop(SecretString),
}

/// The one `Authorization` of a request. Another scheme is no evidence we know.
fn authorization(headers: &HeaderMap) -> Result<Option<Authorization>, Error> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::invalid("more than one `Authorization` header"));
    }
    let value = value.to_str().map_err(|_| Error::EvidenceInvalid)?;
    match value.split_once(' ') {
        Some((_, token)) if token.is_empty() || token.contains(' ') => Err(Error::EvidenceInvalid),
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(Authorization::Bearer(token.into()))),
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("dpop") => Ok(Some(Authorization::Dpop(token.into()))),
        _ => Err(Error::EvidenceInvalid),
    }
}

/// The `{id}` in a path. What is no task id is no task.
pub(super) struct Id(pub(super) TaskId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = id(parts, state).await?;
        let id: TaskId = text.parse().map_err(|why: crate::id::Malformed| Error::invalid(why.to_string()))?;
        tracing::Span::current().record("task", id.as_str());
        Ok(Self(id))
    }
}

/// The `{id}` in the path of a credential.
pub(super) struct Lease(pub(super) LeaseId);

impl<S: Send + Sync> FromRequestParts<S> for Lease {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = id(parts, state).await?.parse();
        id.map(Self).map_err(|why: crate::id::Malformed| Error::invalid(why.to_string()).into())
    }
}

/// The `{id}` in the path of a key.
pub(super) struct Kid(pub(super) Thumbprint);

impl<S: Send + Sync> FromRequestParts<S> for Kid {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let kid = Thumbprint::try_from(id(parts, state).await?);
        kid.map(Self).map_err(|_| Error::invalid("the id of a key is a thumbprint: 43 characters of base64url").into())
    }
}

/// The `{id}` in the path of a lock.
pub(super) struct LockPath(pub(super) LockId);

impl<S: Send + Sync> FromRequestParts<S> for LockPath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = id(parts, state).await?.parse();
        id.map(Self).map_err(|why: crate::id::Malformed| Error::invalid(why.to_string()).into())
    }
}

async fn id<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Problem> {
    // The framework's own words would not be a problem document.
    let text = Path::<String>::from_request_parts(parts, state).await;
    Ok(text.map_err(|_| Error::invalid("the path is not in UTF-8"))?.0)
}

/// A JSON body: no repeated members, no unknown ones, nothing after it.
pub(super) struct Json<T> {
    pub(super) value: T,
    /// SHA-256 of the octets.
    pub(super) digest: String,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Response;
    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let body = read(request, "application/json").await.map_err(IntoResponse::into_response)?;
        let digest = crate::id::sha256_hex(&body);
        let value = parse(&body).map_err(|error| Problem(error).into_response())?;
        Ok(Self { value, digest })
    }
}

/// A body that may be left out altogether.
impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Json<T> {
    type Rejection = Response;
    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Response> {
        if request.body().size_hint().exact() == Some(0) {
            return Ok(None);
        }
        <Self as FromRequest<S>>::from_request(request, state).await.map(Some)
    }
}

/// Reads a body as `T`; the error says where it does not fit, without repeating it.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let NoRepeats(value) =
        serde_json::from_slice(body).map_err(|_| Error::invalid("the body is not JSON, or repeats a member"))?;
    fit(value)
}

/// Reads a value as `T`; the error says where it does not fit, without repeating it.
pub(super) fn fit<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let why = error.inner().to_string();
        // Serde's own messages about values and unknown names quote the input; those about missing members, and our own
        // rules, do not.
        let quotes =
            ["invalid type", "invalid value", "unknown", "invalid length"].iter().any(|start| why.starts_with(start));
        let why = if quotes { "is unknown or has the wrong type".to_owned() } else { format!("does not fit: {why}") };
        Error::invalid(if path == "." { format!("the body {why}") } else { format!("`{path}` {why}") })
    })
}

/// Why a form is none.
pub(super) enum NoForm {
    Unread(StatusCode),
    Malformed(&'static str),
    Repeated(String),
}

/// Reads the parameters of a form (RFC 6749 section 3.2): none is repeated, empty ones are as good as absent, and unknown ones
/// are ignored.
pub(super) async fn form<T: DeserializeOwned>(request: Request) -> Result<T, NoForm> {
    let body = read(request, "application/x-www-form-urlencoded").await.map_err(NoForm::Unread)?;
    let mut parameters = Map::new();
    for (name, value) in form_urlencoded::parse(&body) {
        if !(is_text(&name) && is_text(&value)) {
            return Err(NoForm::Malformed("the body is not a form in UTF-8"));
        }
        if parameters.insert(name.clone().into_owned(), value.into_owned().into()).is_some() {
            return Err(NoForm::Repeated(name.into_owned()));
        }
    }
    parameters.retain(|_, value| value != "");
    serde_json::from_value(parameters.into()).map_err(|_| NoForm::Malformed("the form does not fit"))
}

/// Whether what was decoded leniently was UTF-8 to begin with, and has no NUL in it.
fn is_text(decoded: &str) -> bool {
    !decoded.contains(['\u{fffd}', '\0'])
}

async fn read(request: Request, kind: &str) -> Result<Bytes, StatusCode> {
    let mut given = request.headers().get_all(header::CONTENT_TYPE).iter();
    let (Some(given), None) = (given.next(), given.next()) else { return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE) };
    let essence = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(kind) {
        return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    match tokio::time::timeout(BODY_DEADLINE, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Ok(Err(_)) => Err(StatusCode::BAD_REQUEST),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}
