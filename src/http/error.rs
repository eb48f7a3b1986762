//! [`Error`] → status and body, exhaustively: once for our own API (RFC 9457), once for `/oauth2/*` (RFC 6749 section 5.2).
//! `tests/golden/errors.txt` is this table; a test regenerates it.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    error::{Denied, Error, Limit, Part},
    proof::ALGORITHMS,
};

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
    Error::EvidenceInvalid | Error::ProofInvalid(_) | Error::ProofNonce => {
        (StatusCode::UNAUTHORIZED, "evidence_invalid")
    }
    Error::IdempotencyKeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
    Error::InvalidRequest { .. } => (StatusCode::BAD_REQUEST, "invalid_request"),
    Error::Locked => (StatusCode::FORBIDDEN, "locked"),
    Error::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
    Error::PolicyDenied { .. } => (StatusCode::FORBIDDEN, "policy_denied"),
    Error::QuotaExceeded(_) => (StatusCode::TOO_MANY_REQUESTS, "quota_exceeded"),
    Error::SequenceReused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "sequence_reused"),
    Error::TaskNotActive => (StatusCode::CONFLICT, "task_not_active"),
    Error::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable"),
};

/// The status and code of each error on `/oauth2/*`.
pub const OAUTH: fn(&Error, EvidenceRole) -> (StatusCode, &'static str) = |error, role| match error {
    Error::EvidenceInvalid => match role {
        EvidenceRole::Client => (StatusCode::UNAUTHORIZED, "invalid_client"),
        EvidenceRole::Subject => (StatusCode::BAD_REQUEST, "invalid_request"),
    },
    Error::IdempotencyKeyReused | Error::SequenceReused(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
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
    Error::NotFound(_) | Error::TaskNotActive => (StatusCode::BAD_REQUEST, "invalid_grant"),
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
    Error::ProofInvalid(_) => (StatusCode::BAD_REQUEST, "invalid_dpop_proof"),
    Error::ProofNonce => (StatusCode::BAD_REQUEST, "use_dpop_nonce"),
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
        Fault::problem(&self.0).carried()
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        Fault::oauth(&self.error, self.role).carried()
    }
}

/// An error of this API (RFC 9457). Programs go by `code`; `detail` is for people and may change.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody {
    /// Always `about:blank`: `code` says which problem it is.
    r#type: &'static str,
    /// The name of the status.
    title: &'static str,
    /// The status.
    status: u16,
    /// What it is; never changes.
    code: &'static str,
    /// What it is and what to change, in a sentence.
    detail: String,
    /// With `policy_denied`: every location and privilege that was refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    denied: Vec<Denied>,
    /// The `x-request-id` of the answer.
    request_id: String,
}

/// An error of an OAuth endpoint (RFC 6749 section 5.2).
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = OAuthError)]
pub(super) struct OAuthBody {
    /// What it is, in the words of the standards.
    error: &'static str,
    /// What it is and what to change, in a sentence.
    error_description: String,
    /// The `x-request-id` of the answer.
    request_id: String,
}

/// An error answer that still lacks the request's id. It travels as an extension of an empty response.
#[derive(Clone)]
pub(super) struct Fault {
    status: StatusCode,
    /// What a 401 asks for.
    challenge: Challenge,
    body: Body,
}

/// How to authenticate (RFC 9110 section 11.6.1).
#[derive(Clone, Copy)]
enum Challenge {
    Bearer,
    /// With another proof, or one with the nonce of this answer (RFC 9449 sections 7.1 and 9).
    Proof(&'static str),
}

impl Challenge {
    fn of(error: &Error) -> Self {
        match error {
            Error::ProofInvalid(_) => Self::Proof("invalid_dpop_proof"),
            Error::ProofNonce => Self::Proof("use_dpop_nonce"),
            Error::EvidenceInvalid
            | Error::IdempotencyKeyReused
            | Error::InvalidRequest { .. }
            | Error::Locked
            | Error::NotFound(_)
            | Error::PolicyDenied { .. }
            | Error::QuotaExceeded(_)
            | Error::SequenceReused(_)
            | Error::TaskNotActive
            | Error::Unavailable(_) => Self::Bearer,
        }
    }

    fn header(self) -> HeaderValue {
        let bearer = HeaderValue::from_static("Bearer");
        match self {
            Self::Bearer => bearer,
            Self::Proof(error) => {
                let algorithms = ALGORITHMS.join(" ");
                HeaderValue::from_str(&format!("DPoP error=\"{error}\", algs=\"{algorithms}\"")).unwrap_or(bearer)
            }
        }
    }
}

#[derive(Clone, Serialize)]
#[serde(untagged)]
enum Body {
    Problem(ProblemBody),
    OAuth(OAuthBody),
}

impl Fault {
    /// An error as our own API says it.
    pub(super) fn problem(error: &Error) -> Self {
        let (status, code) = PROBLEM(error);
        let denied = if let Error::PolicyDenied { denied, .. } = error { denied.clone() } else { Vec::new() };
        Self { status, challenge: Challenge::of(error), body: problem(status, code, error.to_string(), denied) }
    }

    /// An error as the OAuth endpoints say it.
    pub(super) fn oauth(error: &Error, role: EvidenceRole) -> Self {
        let (status, code) = OAUTH(error, role);
        // On this endpoint an unknown task and an ended one must not differ in words either.
        let gone = matches!(error, Error::NotFound(_) | Error::TaskNotActive);
        let text = if gone { Error::TaskNotActive.to_string() } else { error.to_string() };
        Self { status, challenge: Challenge::of(error), body: oauth(code, &text) }
    }

    /// What a status that the framework or a handler answered with, and nothing more, says.
    pub(super) fn bare(status: StatusCode, oauth_endpoint: bool) -> Self {
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
        let body =
            if oauth_endpoint { oauth(code, detail) } else { problem(status, code, detail.to_owned(), Vec::new()) };
        Self { status, challenge: Challenge::Bearer, body }
    }

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
        let failed = status.is_client_error() || status.is_server_error();
        (failed && !has_body).then(|| Self::bare(status, oauth_endpoint))
    }

    /// Its status, its code, the media type of its body, and the body.
    pub(super) fn told(mut self, request_id: &str) -> (StatusCode, &'static str, &'static str, Value) {
        let (code, kind) = match &mut self.body {
            Body::Problem(body) => {
                request_id.clone_into(&mut body.request_id);
                (body.code, "application/problem+json")
            }
            Body::OAuth(body) => {
                request_id.clone_into(&mut body.request_id);
                (body.error, "application/json")
            }
        };
        (self.status, code, kind, serde_json::to_value(self.body).unwrap_or_default())
    }

    pub(super) fn into_response(self, request_id: &str, allow: Option<HeaderValue>) -> Response {
        let challenge = self.challenge;
        let (status, _, kind, body) = self.told(request_id);
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
        let mut response = (status, headers, body.to_string()).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, challenge.header());
        }
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
        }
        if let Some(allow) = allow {
            headers.insert(header::ALLOW, allow);
        }
        response
    }
}

fn problem(status: StatusCode, code: &'static str, detail: String, denied: Vec<Denied>) -> Body {
    let title = status.canonical_reason().unwrap_or_default();
    let (r#type, status) = ("about:blank", status.as_u16());
    Body::Problem(ProblemBody { r#type, title, status, code, detail, denied, request_id: String::new() })
}

fn oauth(code: &'static str, description: &str) -> Body {
    // RFC 6749 section 5.2 allows neither quotes, backslashes nor anything beyond ASCII here.
    let error_description: String =
        description.chars().map(|c| if matches!(c, ' '..='~') && c != '"' && c != '\\' { c } else { '\'' }).collect();
    Body::OAuth(OAuthBody { error: code, error_description, request_id: String::new() })
}
