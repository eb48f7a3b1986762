//! The revocation feed: a stream of signed states for those who verify, or one of them.

use axum::{
    Extension, Json as Answer,
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, sync::Arc};
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};

use super::{
    error::Problem,
    extract::{Called, Json},
    keys::{self, JwkSet},
    listen::Apart,
    openapi::{Refusals, refused},
    watch,
};
use crate::{
    broker::{Broker, Left, Push, Sent},
    claims::Purpose,
    error::Error,
    lease::Use,
};

const MEDIA_TYPE: &str = "application/remit-revocations+jwt";
/// How soon a client that lost the stream should ask for it again, in milliseconds.
const RETRY: u32 = 1_000;
/// Octets that are sent at a time.
const PIECE: usize = 64 * 1024;
/// The longest nonce, in characters.
const NONCE: usize = 128;
/// The longest name of a verifier, in characters.
const NAME: usize = 64;

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
    params(StateQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "`broker:sequence` of the last state that was read"),
        ("Remit-Last-State" = Option<String>, Header, description = "The last state that was held, where it is no longer than 8 KiB: it proves to a broker that it was put back to an earlier one"),
        ("Remit-Follower" = Option<String>, Header, description = "Which of a service's verifiers this is: 1 to 64 letters, digits, `-` and `_`, another for each")),
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
    if nonce.as_ref().is_some_and(|nonce| !is_name(nonce, NONCE)) {
        return Err(Error::invalid("`nonce` is 1 to 128 letters, digits, `-` and `_`").into());
    }
    let replica = replica(&headers)?;
    let request = called.request;
    if !watch::wanted(&headers) {
        let sent = broker.revocations(request, replica, (witness(&headers), nonce)).await?;
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE)),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        return Ok((headers, Body::from(Bytes::from_owner(Whole(sent)))).into_response());
    }
    if nonce.is_some() {
        return Err(Error::invalid("a stream has no `nonce`: ask for one state with it first").into());
    }
    let follower = broker.follow_revocations(request, replica, (witness(&headers), left(&headers))).await?;
    let apart = Apart::new(follower.room());
    let states = stream::unfold(follower, async |mut follower| Some((pieces(follower.next().await?), follower)));
    // A state comes often enough to show that the connection lives.
    let body = Body::from_stream(states.take_until(stop.cancelled_owned()).flatten());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((Extension(apart), headers, body).into_response())
}

/// A state as an event, in pieces of which each is soon read by whoever reads at all. All who follow share its octets.
fn pieces(sent: Sent) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let event = Bytes::from_owner(Written(sent));
    let starts = (0..event.len()).step_by(PIECE);
    stream::iter(starts.map(move |start| Ok(event.slice(start..event.len().min(start + PIECE)))))
}

/// A state as an event.
struct Written(Sent);

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        let write =
            |Push { id, state, .. }: &Push| format!("event: state\nid: {id}\nretry: {RETRY}\ndata: {state}\n\n");
        self.0.push().written(write).as_bytes()
    }
}

/// A state by itself.
struct Whole(Sent);

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        self.0.push().state.as_bytes()
    }
}

/// The state that a client says to have held last. What is none proves nothing.
fn witness(headers: &HeaderMap) -> Option<&str> {
    headers.get("remit-last-state")?.to_str().ok()
}

/// Which of a service's verifiers it is, where it says so.
fn replica(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut all = headers.get_all("remit-follower").iter();
    let (first, more) = (all.next(), all.next());
    let name = first.map(|value| value.to_str().ok().filter(|name| is_name(name, NAME) && more.is_none()));
    match name {
        None => Ok(None),
        Some(Some(name)) => Ok(Some(name.to_owned())),
        Some(None) => Err(Error::invalid("`Remit-Follower` is 1 to 64 letters, digits, `-` and `_`, once")),
    }
}

fn is_name(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
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
    params(("Remit-Follower" = Option<String>, Header, description = "As where the state was asked for")),
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
    headers: HeaderMap,
    called: Called,
    Json { value, .. }: Json<AckBody>,
) -> Result<impl IntoResponse, Problem> {
    let AckBody { broker: name, sequence } = value;
    let left = Left { broker: name, sequence };
    let sequence = broker.acknowledge(called.request, replica(&headers)?, &left).await?;
    // Thousands acknowledge the same state at once, and each connection that stays is one that somebody else waits for.
    let leaves = [(header::CONNECTION, HeaderValue::from_static("close"))];
    Ok((leaves, Answer(AckBody { broker: left.broker, sequence })))
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
