//! Whether the process lives, whether it can accept anything, and what it decided.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::json;
use std::sync::Arc;

use super::Sidecar;
use crate::clock::Moment;

pub(super) async fn healthz() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// Ready is who knows what is revoked.
pub(super) async fn readyz(State(sidecar): State<Arc<Sidecar>>) -> Response {
    let ready = !sidecar.verifier.feed().fresh_for(&Moment::now()).is_zero();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": ready}))).into_response()
}

pub(super) async fn metrics(State(sidecar): State<Arc<Sidecar>>) -> Response {
    let text = sidecar.counted.text(sidecar.verifier.feed().fresh_for(&Moment::now()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
