//! `/v1/keys`: the signing keys, for operators.

use axum::{Json as Answer, extract::State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    error::Problem,
    extract::{Called, Json},
    openapi::{Refusals, refused},
};
use crate::{
    broker::{Broker, KeyState, ListedKey},
    clock::Time,
    lease::{Retirement, Use},
    task::check_text,
};

/// Signing keys.
#[derive(Serialize, ToSchema)]
#[schema(as = SigningKeys)]
pub(super) struct Keys {
    /// By use, oldest first.
    keys: Vec<Key>,
}

/// A signing key, and what it is doing.
#[derive(Serialize, ToSchema)]
#[schema(as = SigningKey)]
struct Key {
    /// Its id: the `kid` of what it signs.
    kid: String,
    r#use: Use,
    /// Whether the answering broker holds its private half.
    own: bool,
    /// Since when verifiers are told of it.
    #[schema(value_type = String, format = DateTime)]
    published_at: Time,
    state: Doing,
    /// `prepared`: from when on it signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime, required = false)]
    signs_from: Option<Time>,
    /// `retired`: since when it signs no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime, required = false)]
    retired_at: Option<Time>,
    /// `retired`: until when verifiers are told of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime, required = false)]
    published_until: Option<Time>,
}

/// What a key is doing: of other brokers' keys only `published` and `retired` are known.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = SigningKeyState)]
enum Doing {
    Prepared,
    Published,
    Retired,
    Signing,
}

impl From<ListedKey> for Key {
    fn from(ListedKey { key, state, own }: ListedKey) -> Self {
        let (state, signs_from, retirement) = match state {
            KeyState::Prepared { signs_from } => (Doing::Prepared, Some(signs_from), None),
            KeyState::Published => (Doing::Published, None, None),
            KeyState::Retired(retirement) => (Doing::Retired, None, Some(retirement)),
            KeyState::Signing => (Doing::Signing, None, None),
        };
        let (retired_at, published_until) =
            retirement.map(|Retirement { retired_at, published_until }| (retired_at, published_until)).unzip();
        let (kid, published_at) = (key.jwk.kid, key.published_at);
        Self { kid, r#use: key.purpose, own, published_at, state, signs_from, retired_at, published_until }
    }
}

fn body(keys: Vec<ListedKey>) -> Answer<Keys> {
    Answer(Keys { keys: keys.into_iter().map(Key::from).collect() })
}

/// The signing keys of all brokers that verifiers are told of.
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "listKeys", tag = "keys",
    responses(
        (status = 200, description = "The keys", body = Keys),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(["viewer"]))),
)]
pub(super) async fn list(State(broker): State<Arc<Broker>>, called: Called) -> Result<Answer<Keys>, Problem> {
    Ok(body(broker.list_keys(called.request).await?))
}

/// Why keys are rotated.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RotateRequest)]
pub(super) struct RotateBody {
    /// For the audit.
    #[schema(min_length = 1, max_length = 1024)]
    reason: Option<String>,
}

/// Prepare the next signing keys of the answering broker.
///
/// They are published at once and sign once every verifier can know them; the old ones stay published until the last that they signed
/// has expired. Where some are prepared already, those are it.
#[utoipa::path(
    post, path = "/v1/keys/rotate", operation_id = "rotateKeys", tag = "keys",
    request_body = Option<RotateBody>,
    responses(
        (status = 200, description = "The keys of this broker", body = Keys),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::BODY }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(["admin"]))),
)]
pub(super) async fn rotate(
    State(broker): State<Arc<Broker>>,
    called: Called,
    body: Option<Json<RotateBody>>,
) -> Result<Answer<Keys>, Problem> {
    let reason = body.and_then(|body| body.value.reason);
    check_text("reason", reason.as_ref(), 1024)?;
    Ok(self::body(broker.rotate_keys(called.request, reason).await?))
}
