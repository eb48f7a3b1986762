//! `/v1/keys`: the signing keys, for operators.

use axum::{Json as Answer, extract::State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    error::Problem,
    extract::{Called, Json, Kid},
    openapi::{Refusals, callers, refused},
};
use crate::{
    broker::{Broker, KeyState, ListedKey},
    clock::Time,
    jose::{PublicJwk, SigningAlgorithm},
    lease::{PublishedKey, Retirement, Use},
    party::Act,
    task::check_text,
};

/// Signing keys.
#[derive(Serialize, ToSchema)]
#[schema(as = SigningKeys)]
pub(super) struct Keys {
    /// By use, oldest first.
    keys: Vec<Key>,
    /// Of a rotation: which keys it does not touch, and how they are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    note: Option<String>,
}

/// A signing key, and what it is doing.
#[derive(Serialize, ToSchema)]
#[schema(as = SigningKey)]
pub(super) struct Key {
    /// Its id: the `kid` of what it signs.
    kid: String,
    r#use: Use,
    /// What it signs with.
    algorithm: SigningAlgorithm,
    /// Whether the answering broker holds its private half.
    own: bool,
    /// Of an authority that an upstream CA certified: the name of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    upstream: Option<String>,
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
    /// `tainted`: since when nothing is believed because of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime, required = false)]
    tainted_at: Option<Time>,
}

/// What a key is doing: of other brokers' keys only `published`, `retired` and `tainted` are known.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = SigningKeyState)]
enum Doing {
    Prepared,
    Published,
    Retired,
    Signing,
    Tainted,
}

impl From<ListedKey> for Key {
    fn from(ListedKey { key, state, own }: ListedKey) -> Self {
        let (mut signs_from, mut retirement, mut tainted) = (None, None, None);
        let state = match state {
            KeyState::Prepared { signs_from: from } => {
                signs_from = Some(from);
                Doing::Prepared
            }
            KeyState::Published => Doing::Published,
            KeyState::Retired(end) => {
                retirement = Some(end);
                Doing::Retired
            }
            KeyState::Signing => Doing::Signing,
            KeyState::Tainted { tainted_at } => {
                tainted = Some(tainted_at);
                Doing::Tainted
            }
        };
        let (retired_at, published_until) =
            retirement.map(|Retirement { retired_at, published_until }| (retired_at, published_until)).unzip();
        let PublishedKey { purpose, jwk: PublicJwk { kid, alg, .. }, vouched, published_at, .. } = key;
        Self {
            kid,
            r#use: purpose,
            algorithm: alg,
            own,
            upstream: vouched.map(|vouched| vouched.by),
            published_at,
            state,
            signs_from,
            retired_at,
            published_until,
            tainted_at: tainted,
        }
    }
}

fn body(keys: Vec<ListedKey>, note: Option<String>) -> Answer<Keys> {
    Answer(Keys { keys: keys.into_iter().map(Key::from).collect(), note })
}

/// The signing keys of all brokers that verifiers are told of.
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "listKeys", tag = "keys",
    responses(
        (status = 200, description = "The keys", body = Keys),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::ListKeys)))),
)]
pub(super) async fn list(State(broker): State<Arc<Broker>>, called: Called) -> Result<Answer<Keys>, Problem> {
    Ok(body(broker.list_keys(called.request).await?, None))
}

/// Why keys are rotated, or one is tainted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeysRequest)]
pub(super) struct ReasonBody {
    /// For the audit.
    #[schema(min_length = 1, max_length = 1024)]
    reason: Option<String>,
}

/// Prepare the next signing keys of the answering broker.
///
/// They are published at once and sign once every verifier can know them; the old ones stay published until the last that they signed
/// has expired. Where some are prepared already, those are it. RS256 keys are imported, and replaced by hand: `note` says how.
#[utoipa::path(
    post, path = "/v1/keys/rotate", operation_id = "rotateKeys", tag = "keys",
    request_body = Option<ReasonBody>,
    responses(
        (status = 200, description = "The keys of this broker", body = Keys),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::BODY }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::RotateKeys)))),
)]
pub(super) async fn rotate(
    State(broker): State<Arc<Broker>>,
    called: Called,
    body: Option<Json<ReasonBody>>,
) -> Result<Answer<Keys>, Problem> {
    let keys = broker.rotate_keys(called.request, reason(body)?).await?;
    Ok(self::body(keys, broker.replaced_by_hand()))
}

fn reason(body: Option<Json<ReasonBody>>) -> Result<Option<String>, Problem> {
    let reason = body.and_then(|body| body.value.reason);
    check_text("reason", reason.as_ref(), 1024)?;
    Ok(reason)
}

/// Taint a signing key of any broker: for one that may be in other hands.
///
/// It leaves `/jwks`, `/spiffe/bundle` and `/pki/ca.pem` at once and for good, and no broker believes what it signed. Its broker signs
/// with another from then on. A verifier that keeps the public keys learns of it when it fetches them again. The root above an authority
/// that an upstream CA certified stays; that authority is on the list of the CA that it names. Idempotent; there is no way back.
#[utoipa::path(
    post, path = "/v1/keys/{id}/taint", operation_id = "taintKey", tag = "keys",
    params(("id" = String, Path, description = "The `kid`")),
    request_body = Option<ReasonBody>,
    responses(
        (status = 200, description = "The key", body = Key),
        Refusals<{ refused::KNOWN | refused::NO_KEY | refused::BODY }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::TaintKey)))),
)]
pub(super) async fn taint(
    State(broker): State<Arc<Broker>>,
    Kid(kid): Kid,
    called: Called,
    body: Option<Json<ReasonBody>>,
) -> Result<Answer<Key>, Problem> {
    Ok(Answer(broker.taint_key(called.request, kid.as_str(), reason(body)?).await?.into()))
}
