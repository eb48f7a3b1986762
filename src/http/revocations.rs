//! The revocation feed: a stream of signed states for those who verify, or one of them.

use axum::{
    Extension, Json as Answer,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, header},
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};

use super::{
    error::Problem,
    extract::{Called, Json},
    keys::{self, JwkSet},
    openapi::{Refusals, refused},
    watch,
};
use crate::{
    broker::{Broker, Left},
    claims::Purpose,
    error::Error,
    lease::Use,
};

const MEDIA_TYPE: &str = "application/remit-revocations+jwt";
/// How soon a client that lost the stream should ask for it again.
const RETRY: Duration = Duration::from_secs(1);
/// The longest nonce, in characters.
const NONCE: usize = 128;

/// What a whole state is asked for with.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StateQuery {
    /// 1 to 128 letters, digits, `-` and `_`, repeated in the state, which then is of after it was asked for.
    #[param(min_length = 1, max_length = 128, pattern = "^[0-9A-Za-z_-]+$")]
    nonce: Option<String>,
}

/// Follow what has been revoked, or ask for all of it.
///
/// With `Accept: text/event-stream` the answer is a stream of server-sent events: each event `state` has a signed state as data, and
/// `broker:sequence` as id. The first is whole, or goes on from `Last-Event-ID` where the broker can tell what is newer; a state comes
/// with every change, and several times within the freshness window. Without it the answer is one whole state.
/// A state is a JWT (`typ: remit-revocations+jwt`) signed with a key of `/v1/revocations/jwks`.
#[utoipa::path(
    get, path = "/v1/revocations", operation_id = "revocations", tag = "revocations",
    params(StateQuery, ("Last-Event-ID" = Option<String>, Header, description = "`broker:sequence` of the last state that was read")),
    responses(
        (status = 200, description = "The states", content(
            (String = "application/remit-revocations+jwt"),
            (String = "text/event-stream"),
        )),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::QUOTA }>,
    ),
    security((), ("service" = []), ("operator" = [])),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn follow(
    State(broker): State<Arc<Broker>>,
    Extension(stop): Extension<CancellationToken>,
    query: Result<Query<StateQuery>, QueryRejection>,
    headers: HeaderMap,
    called: Called,
) -> Result<Response, Problem> {
    let Query(StateQuery { nonce }) = query.map_err(|_| Error::invalid("the query knows `nonce` alone, once"))?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if nonce.as_ref().is_some_and(|nonce| !(1..=NONCE).contains(&nonce.len()) || !nonce.bytes().all(is_plain)) {
        return Err(Error::invalid("`nonce` is 1 to 128 letters, digits, `-` and `_`").into());
    }
    let request = called.authorized.then_some(called.request);
    if !watch::wanted(&headers) {
        let state = broker.revocations(request, nonce).await?.state;
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE)),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        return Ok((headers, state).into_response());
    }
    if nonce.is_some() {
        return Err(Error::invalid("a stream has no `nonce`: ask for one state with it first").into());
    }
    let follower = broker.follow_revocations(request, left(&headers)).await?;
    let states = stream::unfold((follower, stop), async |(mut follower, stop)| {
        let push = tokio::select! {
            push = follower.next() => push?,
            () = stop.cancelled() => return None,
        };
        let event = Event::default().event("state").id(&push.id).retry(RETRY).data(&push.state);
        Some((Ok::<_, Infallible>(event), (follower, stop)))
    });
    // A state comes often enough to show that the connection lives.
    Ok(Sse::new(states).keep_alive(KeepAlive::new().interval(Duration::from_secs(60))).into_response())
}

/// Where a client says that it left off. What cannot be one of ours is as good as nothing: it gets a whole state.
fn left(headers: &HeaderMap) -> Option<Left> {
    let (broker, sequence) = headers.get("last-event-id")?.to_str().ok()?.rsplit_once(':')?;
    Some(Left { broker: broker.to_owned(), sequence: sequence.parse().ok()? })
}

/// How far a service is.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Acknowledgement)]
pub(super) struct AckBody {
    /// The broker whose state it goes by.
    broker: String,
    /// The sequence of that state.
    sequence: u64,
}

/// Say which state is gone by.
///
/// A service that follows the feed says how far it is, so that a revoke can tell who has heard of it. It goes to the broker that it
/// follows, about that broker's states.
#[utoipa::path(
    post, path = "/v1/revocations/ack", operation_id = "acknowledgeRevocations", tag = "revocations",
    request_body = AckBody,
    responses(
        (status = 200, description = "Noted, and what is on note now: it never goes back", body = AckBody),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::BODY }>,
    ),
    security(("service" = [])),
    extensions(("x-remit-callers" = json!(["service"]))),
)]
pub(super) async fn acknowledge(
    State(broker): State<Arc<Broker>>,
    called: Called,
    Json { value, .. }: Json<AckBody>,
) -> Result<Answer<AckBody>, Problem> {
    let AckBody { broker: name, sequence } = value;
    let left = Left { broker: name, sequence };
    let sequence = broker.acknowledge(called.request, &left).await?;
    Ok(Answer(AckBody { broker: left.broker, sequence }))
}

/// The public keys of the states of the feed.
#[utoipa::path(
    get, path = "/v1/revocations/jwks", operation_id = "revocationKeys", tag = "revocations",
    responses(
        (status = 200, description = "The keys of all brokers", body = JwkSet,
            headers(("Cache-Control" = String, description = "`max-age`: how long they may be kept; `no-cache` while the store is in doubt"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn jwks(State(broker): State<Arc<Broker>>) -> keys::Document<JwkSet> {
    let [states] = broker.public_keys([Use::Revocations]).await;
    keys::cacheable(states.max_age, JwkSet::of(states.keys, Purpose::Revocations))
}
