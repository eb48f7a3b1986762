//! Bodies of questions. Of one that is none nothing is repeated: a token may be in it.

use axum::{
    Json,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::verify::only;

/// Why a body is no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is of another type.
    Type,
    /// What it should have been.
    Malformed(&'static str),
}

impl IntoResponse for Unread {
    fn into_response(self) -> Response {
        match self {
            Self::Type => StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response(),
            Self::Malformed(rule) => {
                let error = json!({"error": "invalid_request", "error_description": rule});
                (StatusCode::BAD_REQUEST, Json(error)).into_response()
            }
        }
    }
}

/// Sees to it that a body says to be of this type.
pub(super) fn is_of(headers: &HeaderMap, kind: &str) -> Result<(), Unread> {
    let given = only(headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(kind) { Ok(()) } else { Err(Unread::Type) }
}
