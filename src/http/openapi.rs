//! `GET /openapi.json`: the API as an OpenAPI 3.1 document, made from what serves it. Paths and bodies come from the handlers
//! (`#[utoipa::path]`, without which `routes!` does not compile) and from the types that they read and write; errors from the table in
//! [`super::error`]; examples from `openapi/examples.json`. `tests/golden/openapi.json` is the document; a test regenerates it.
//!
//! To add an operation: give its handler `#[utoipa::path(…)]`, name it in `routes!` in [`super::router`], give it examples, and
//! a row in the matrix of `tests/it/operators.rs`; tests say which of them is missing.

mod finish;
pub(super) mod refused;

use axum::{
    Extension,
    http::{HeaderName, HeaderValue, header},
};
use std::sync::Arc;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

pub(super) use refused::{OAuthRefusals, Refusals};

use super::error::{OAuthBody, ProblemBody};
use crate::party::Act;

/// What is said of the API as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Remit",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        description = "A just-in-time credential broker: attest a workload, declare one task, mint short-lived credentials for it, revoke \
            them all at once by task.\n\nTimes are RFC 3339 in UTC, durations whole seconds. A client ignores members that it does not know; \
            the broker refuses them, and ignores those of AuthZEN. Errors of `/oauth2/*` are OAuth JSON, all others are `application/problem+json` with a stable `code`; \
            `x-remit-codes` says which ones a response can have. \
            What is served nowhere is 404 `not_found`, another method of a path is 405 `invalid_request` with `Allow`. The same API is on \
            the Unix socket. `x-remit-callers` says who may call: `anyone`, `workload`, `service`, `receiver` (of Shared Signals), `viewer` (an operator, whatever the \
            role), the role that an operator needs, or `owner` (somebody who acts for an owner, on what is that owner's). `x-remit-roles` \
            lists the roles of operators with which the call goes through.",
    ),
    servers((url = "/", description = "The broker that serves this document")),
    tags(
        (name = "tasks", description = "Declare a task, get credentials for it, end it, look at it"),
        (name = "locks", description = "Keep out what must not come back"),
        (name = "investigate", description = "Find what something belongs to, and go through what is on record"),
        (name = "oauth", description = "Tokens and introspection, for clients that speak OAuth"),
        (name = "evaluation", description = "`AuthZEN`: whether whoever holds a token may do something, now"),
        (name = "keys", description = "Public documents: what verifiers and clients need to know"),
        (name = "revocations", description = "What has been revoked, as it happens"),
        (name = "signals", description = "Shared Signals: what receivers are told"),
        (name = "operations", description = "Health and metrics; also on `listen.ops`"),
    ),
    components(schemas(ProblemBody, OAuthBody)),
    modifiers(&Schemes),
)]
pub(super) struct Api;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer =
            |description: &str| HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description));
        let schemes = [
            (
                "evidence",
                bearer(
                    "A workload: a JWT of an issuer that the configuration names. On the Unix socket the kernel's word for the calling \
                     process stands for it, and over TLS a client certificate of a trust domain that the configuration names, and nothing is \
                     sent: that is the empty requirement beside it.",
                )
                .bearer_format("JWT"),
            ),
            ("operator", bearer(
                "An operator: a token whose SHA-256 is in the configuration, a client certificate whose key is (then nothing is sent, or the \
                 token beside it), or a JWT of the operators' own issuer. Somebody who acts for an owner: such a JWT.",
                )),
            (
                "service",
                bearer(
                    "A service: a token whose SHA-256 is in the configuration, or a client certificate whose key is (then nothing is \
                     sent, or the token beside it).",
                ),
            ),
            ("receiver", bearer("A receiver of Shared Signals: a token whose SHA-256 is in the configuration.")),
        ];
        let components = openapi.components.get_or_insert_default();
        components
            .security_schemes
            .extend(schemes.map(|(name, scheme)| (name.to_owned(), SecurityScheme::Http(scheme.build()).into())));
    }
}

/// Who may call: these, and the operators and owners whose act it is.
pub(super) fn callers<const N: usize>(others: [&'static str; N], act: Act) -> Vec<&'static str> {
    others.into_iter().chain([act.role().as_str()]).chain(act.is_for_owners().then_some("owner")).collect()
}

/// The document, as text.
#[derive(Clone)]
pub(super) struct Document(Arc<str>);

impl Document {
    /// The document of what the handlers said of themselves.
    pub(super) fn of(described: utoipa::openapi::OpenApi) -> Self {
        Self(finish::finished(described).into())
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "operations",
    responses((status = 200, description = "The API, in OpenAPI 3.1", body = serde_json::Value), Refusals<0>),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn openapi(Extension(document): Extension<Document>) -> ([(HeaderName, HeaderValue); 1], String) {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], document.text().to_owned())
}
