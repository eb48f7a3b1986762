//! Whether the process lives, whether it can do its work, and how much of it was done.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

use super::openapi::Refusals;
use crate::{broker::Broker, error::Input, id::BrokerName};

/// The process lives.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// Whether the broker can mint.
#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Whether it can.
    ready: bool,
    /// What it lacks.
    missing: Vec<Input>,
    /// The other brokers that have yet to tell a store that may have lost something; the store is missing until they have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waiting_for: Vec<BrokerName>,
    /// `current`, or `refused`: the configuration as it stands was refused, and an older one is in force.
    configuration: &'static str,
}

/// Whether the process lives.
#[utoipa::path(
    get, path = "/healthz", operation_id = "health", tag = "operations",
    responses((status = 200, description = "It does", body = Health), Refusals<0>),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether the broker can mint, or what is missing.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readiness", tag = "operations",
    responses(
        (status = 200, description = "It can", body = Readiness),
        (status = 503, description = "It can't", body = Readiness),
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn readyz(State(broker): State<Arc<Broker>>) -> (StatusCode, Json<Readiness>) {
    let missing = broker.missing().await;
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let configuration = if broker.is_outdated() { "refused" } else { "current" };
    let ready = missing.is_empty();
    let waiting_for = if ready { Vec::new() } else { broker.awaited() };
    (status, Json(Readiness { ready, missing, waiting_for, configuration }))
}

/// Prometheus metrics, in the text format.
///
/// From memory alone, so that it is answered while everything else is out of reach.
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "operations",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain"), Refusals<0>),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn metrics(State(broker): State<Arc<Broker>>) -> Response {
    match broker.metrics().text(broker.counted()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
