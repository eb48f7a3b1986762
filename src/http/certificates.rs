//! What certificates of tasks are verified against.

use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use std::sync::Arc;

use super::openapi::Refusals;
use crate::broker::Broker;

/// The authorities of all brokers: what certificates of tasks are verified against.
#[utoipa::path(
    get, path = "/pki/ca.pem", operation_id = "authorities", tag = "keys",
    responses(
        (status = 200, description = "Their certificates, in PEM", body = String, content_type = "application/pem-certificate-chain",
            headers(("Cache-Control" = String, description = "`max-age`: how long they may be kept"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn authorities(State(broker): State<Arc<Broker>>) -> Response {
    let (pem, max_age) = broker.authorities_pem().await;
    public("application/pem-certificate-chain", max_age, pem)
}

fn public(kind: &'static str, max_age: Option<u32>, body: impl Into<axum::body::Body>) -> Response {
    let cache = max_age.and_then(|max_age| HeaderValue::from_str(&format!("public, max-age={max_age}")).ok());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, cache.unwrap_or(HeaderValue::from_static("no-cache"))),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    ];
    (headers, body.into()).into_response()
}
