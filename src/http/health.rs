//! Whether the process lives, and whether it can do its work.

use axum::{Json, extract::State, http::StatusCode};
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
