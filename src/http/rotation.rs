//! `/v1/keys`: the signing keys, for operators.

use axum::{Json as Answer, extract::State};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

use super::{
    error::Problem,
    extract::{Called, Json},
};
use crate::{
    broker::{Broker, KeyState, ListedKey},
    task::check_text,
};

fn body(keys: Vec<ListedKey>) -> Answer<Value> {
    let keys: Vec<_> = keys.into_iter().map(key).collect();
    Answer(json!({"keys": keys}))
}

fn key(ListedKey { key, state, own }: ListedKey) -> Value {
    let mut body = json!({
        "kid": key.jwk.kid, "use": key.purpose, "own": own, "published_at": key.published_at,
        "state": match state {
            KeyState::Prepared { .. } => "prepared",
            KeyState::Published => "published",
            KeyState::Retired(_) => "retired",
            KeyState::Signing => "signing",
        },
    });
    let more = match state {
        KeyState::Prepared { signs_from } => vec![("signs_from", signs_from)],
        KeyState::Retired(end) => vec![("retired_at", end.retired_at), ("published_until", end.published_until)],
        KeyState::Published | KeyState::Signing => Vec::new(),
    };
    for (name, time) in more {
        body[name] = json!(time);
    }
    body
}

pub(super) async fn list(State(broker): State<Arc<Broker>>, called: Called) -> Result<Answer<Value>, Problem> {
    Ok(body(broker.list_keys(called.request).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateBody {
    reason: Option<String>,
}

pub(super) async fn rotate(
    State(broker): State<Arc<Broker>>,
    called: Called,
    body: Option<Json<RotateBody>>,
) -> Result<Answer<Value>, Problem> {
    let reason = body.and_then(|body| body.value.reason);
    check_text("reason", reason.as_ref(), 1024)?;
    Ok(self::body(broker.rotate_keys(called.request, reason).await?))
}
