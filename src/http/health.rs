//! Whether the process lives, whether it can do its work, and how much of it was done.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::broker::Broker;

pub(super) async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

pub(super) async fn readyz(State(broker): State<Arc<Broker>>) -> (StatusCode, Json<Value>) {
    let missing = broker.missing().await;
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let configuration = if broker.is_outdated() { "refused" } else { "current" };
    (status, Json(json!({"ready": missing.is_empty(), "missing": missing, "configuration": configuration})))
}

/// The Prometheus text format. From memory alone, so that it is answered while everything else is out of reach.
pub(super) async fn metrics(State(broker): State<Arc<Broker>>) -> Response {
    match broker.metrics().text(broker.counted()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
