//! [`Error`] → status and body, exhaustively: once for our own API (RFC 9457), once for `/oauth2/*` (RFC 6749 section 5.2).
//! `tests/golden/errors.txt` is this table; a test regenerates it.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::error::{Error, Limit, Part};

/// Seconds after which a caller may try again, where something was out of reach.
const RETRY_AFTER: u32 = 1;

/// An error of our own API.
pub(super) struct Problem(pub(super) Error);

/// An error of an OAuth endpoint.
pub(super) struct OAuthError {
    pub(super) error: Error,
    /// What the evidence was presented as; RFC 8693 and RFC 6749 name a bad one differently.
    pub(super) role: EvidenceRole,
}

/// What evidence was presented as.
#[derive(Debug, Clone, Copy)]
pub enum EvidenceRole {
    /// The authentication of the client.
    Client,
    /// The subject of a token exchange.
    Subject,
}

/// The status and code of each error on our own API.
pub const PROBLEM: fn(&Error) -> (StatusCode, &'static str) = |error| match error {
    Error::EvidenceInvalid => (StatusCode::UNAUTHORIZED, "evidence_invalid"),
    Error::IdempotencyKeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
    Error::InvalidRequest { .. } => (StatusCode::BAD_REQUEST, "invalid_request"),
    Error::Locked => (StatusCode::FORBIDDEN, "locked"),
    Error::NotFound => (StatusCode::NOT_FOUND, "not_found"),
    Error::PolicyDenied { .. } => (StatusCode::FORBIDDEN, "policy_denied"),
    Error::QuotaExceeded(_) => (StatusCode::TOO_MANY_REQUESTS, "quota_exceeded"),
    Error::TaskNotActive => (StatusCode::CONFLICT, "task_not_active"),
    Error::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable"),
};

/// The status and code of each error on `/oauth2/*`.
pub const OAUTH: fn(&Error, EvidenceRole) -> (StatusCode, &'static str) = |error, role| match error {
    Error::EvidenceInvalid => match role {
        EvidenceRole::Client => (StatusCode::UNAUTHORIZED, "invalid_client"),
        EvidenceRole::Subject => (StatusCode::BAD_REQUEST, "invalid_request"),
    },
    Error::IdempotencyKeyReused => (StatusCode::BAD_REQUEST, "invalid_request"),
    Error::InvalidRequest { part, .. } => {
        let code = match part {
            Part::AuthorizationDetails => "invalid_authorization_details",
            Part::GrantType => "unsupported_grant_type",
            Part::Request => "invalid_request",
            Part::Scope => "invalid_scope",
            Part::Target => "invalid_target",
        };
        (StatusCode::BAD_REQUEST, code)
    }
    Error::Locked => (StatusCode::BAD_REQUEST, "access_denied"),
    // An unknown or foreign task looks like an ended one.
    Error::NotFound | Error::TaskNotActive => (StatusCode::BAD_REQUEST, "invalid_grant"),
    Error::PolicyDenied { limit, .. } => {
        let code = match limit {
            Limit::Audience | Limit::Location => "invalid_target",
            Limit::Policy => "unauthorized_client",
            Limit::Privilege => "invalid_scope",
            // The token of an operator or a service is no subject token.
            Limit::Role => match role {
                EvidenceRole::Client => "unauthorized_client",
                EvidenceRole::Subject => "invalid_request",
            },
        };
        (StatusCode::BAD_REQUEST, code)
    }
    Error::QuotaExceeded(_) => (StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable"),
    Error::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable"),
};

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code) = PROBLEM(&self.0);
        let mut body = problem(status, code, &self.0.to_string());
        if let Error::PolicyDenied { denied, .. } = &self.0
            && !denied.is_empty()
        {
            body.insert("denied".into(), json!(denied));
        }
        Fault { status, body, oauth: false }.carried()
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let (status, code) = OAUTH(&self.error, self.role);
        // On this endpoint an unknown task and an ended one must not differ in words either.
        let gone = matches!(self.error, Error::NotFound | Error::TaskNotActive);
        let text = if gone { Error::TaskNotActive.to_string() } else { self.error.to_string() };
        Fault { status, body: oauth(code, &text), oauth: true }.carried()
    }
}

/// An error answer that still lacks the request's id. It travels as an extension of an empty response.
#[derive(Clone)]
pub(super) struct Fault {
    status: StatusCode,
    body: Map<String, Value>,
    oauth: bool,
}

impl Fault {
    fn carried(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }

    /// The fault that a response carries, or that the framework answered with.
    pub(super) fn of(response: &mut Response, oauth_endpoint: bool) -> Option<Self> {
        if let Some(fault) = response.extensions_mut().remove::<Fault>() {
            return Some(fault);
        }
        let status = response.status();
        let has_body = response.headers().contains_key(header::CONTENT_TYPE);
        if has_body || !(status.is_client_error() || status.is_server_error()) {
            return None;
        }
        let code = match status {
            StatusCode::NOT_FOUND => "not_found",
            _ if status.is_server_error() => "temporarily_unavailable",
            _ => "invalid_request",
        };
        let detail = match status {
            StatusCode::NOT_FOUND => "there is nothing at this path",
            StatusCode::NOT_ACCEPTABLE => "`Accept` leaves out the one form that there is",
            StatusCode::METHOD_NOT_ALLOWED => "this path has another method, named in `Allow`",
            StatusCode::PAYLOAD_TOO_LARGE => "the body is larger than 64 KiB",
            StatusCode::REQUEST_TIMEOUT => "the request took too long",
            StatusCode::UNSUPPORTED_MEDIA_TYPE if oauth_endpoint => {
                "the content type is application/x-www-form-urlencoded"
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "the content type is application/json",
            _ => "the request was not carried out",
        };
        let body = if oauth_endpoint { oauth(code, detail) } else { problem(status, code, detail) };
        Some(Self { status, body, oauth: oauth_endpoint })
    }

    pub(super) fn into_response(mut self, request_id: &str, allow: Option<HeaderValue>) -> Response {
        self.body.insert("request_id".into(), request_id.into());
        let kind = if self.oauth { "application/json" } else { "application/problem+json" };
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
        let mut response = (self.status, headers, Value::Object(self.body).to_string()).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
        }
        if let Some(allow) = allow {
            headers.insert(header::ALLOW, allow);
        }
        response
    }
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Map<String, Value> {
    let title = status.canonical_reason().unwrap_or_default();
    let members =
        json!({"type": "about:blank", "title": title, "status": status.as_u16(), "code": code, "detail": detail});
    members.as_object().cloned().unwrap_or_default()
}

fn oauth(code: &str, description: &str) -> Map<String, Value> {
    // RFC 6749 section 5.2 allows neither quotes, backslashes nor anything beyond ASCII here.
    let description: String =
        description.chars().map(|c| if matches!(c, ' '..='~') && c != '"' && c != '\\' { c } else { '\'' }).collect();
    json!({"error": code, "error_description": description}).as_object().cloned().unwrap_or_default()
}
