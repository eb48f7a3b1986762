//! Shared Signals (SSF 1.0): what receivers need to know, the keys, the stream of each, verification, and poll (RFC 8936). Streams come
//! from the configuration, one for each receiver, named like it: a receiver reads its own, and changes nothing of it.

use axum::{
    Json as Answer,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use utoipa::{IntoParams, ToSchema};

use super::{
    error::Problem,
    extract::{Called, Json},
    keys::{self, JwkSet},
    openapi::{Refusals, callers, refused},
};
use crate::{
    broker::{Broker, Poll, Polled, ReceiverStream},
    claims::Purpose,
    error::Error,
    lease::Use,
    party::Act,
};

/// How a receiver hears: it is told (RFC 8935), or asks (RFC 8936).
const PUSH: &str = "urn:ietf:rfc:8935";
const POLL: &str = "urn:ietf:rfc:8936";

/// The longest `state` of a verification, in characters.
const STATE: usize = 1024;

/// What the transmitter is and where its endpoints are (SSF 1.0 section 7.1).
#[derive(Serialize, ToSchema)]
pub(super) struct TransmitterMetadata {
    spec_version: &'static str,
    /// `iss` of what receivers are told.
    issuer: String,
    jwks_uri: String,
    /// Push (RFC 8935) and poll (RFC 8936).
    delivery_methods_supported: [&'static str; 2],
    configuration_endpoint: String,
    status_endpoint: String,
    verification_endpoint: String,
    /// How a receiver authenticates: with a bearer token (RFC 6750).
    authorization_schemes: [Scheme; 1],
    /// `ALL`: a receiver is told of every task; there is nothing to subscribe to.
    default_subjects: &'static str,
    /// Where a receiver with `delivery = "poll"` asks.
    remit_poll_endpoint: String,
}

/// A way to authenticate.
#[derive(Serialize, ToSchema)]
#[schema(as = AuthorizationScheme)]
struct Scheme {
    spec_urn: &'static str,
}

/// Metadata of the transmitter of Shared Signals.
#[utoipa::path(
    get, path = "/.well-known/ssf-configuration", operation_id = "transmitterMetadata", tag = "signals",
    responses(
        (status = 200, description = "The metadata", body = TransmitterMetadata,
            headers(("Cache-Control" = String, description = "`max-age`: how long it may be kept"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn metadata(State(broker): State<Arc<Broker>>) -> keys::Document<TransmitterMetadata> {
    let issuer = broker.issuer();
    let metadata = TransmitterMetadata {
        spec_version: "1_0",
        issuer: issuer.to_owned(),
        jwks_uri: format!("{issuer}/ssf/v1/jwks"),
        delivery_methods_supported: [PUSH, POLL],
        configuration_endpoint: format!("{issuer}/ssf/v1/stream"),
        status_endpoint: format!("{issuer}/ssf/v1/status"),
        verification_endpoint: format!("{issuer}/ssf/v1/verify"),
        authorization_schemes: [Scheme { spec_urn: "urn:ietf:rfc:6750" }],
        default_subjects: "ALL",
        remit_poll_endpoint: poll_endpoint(issuer),
    };
    keys::cacheable(Some(broker.jwks_max_age()), metadata)
}

/// The public keys of what receivers are told.
#[utoipa::path(
    get, path = "/ssf/v1/jwks", operation_id = "signalKeys", tag = "signals",
    responses(
        (status = 200, description = "The keys of all brokers", body = JwkSet,
            headers(("Cache-Control" = String, description = "`max-age`: how long they may be kept; `no-cache` while the store is in doubt"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn jwks(State(broker): State<Arc<Broker>>) -> keys::Document<JwkSet> {
    let [signals] = broker.public_keys([Use::Signals]).await;
    keys::cacheable(signals.max_age, JwkSet::of(signals.keys, Purpose::Signals))
}

fn poll_endpoint(issuer: &str) -> String {
    format!("{issuer}/ssf/v1/poll")
}

/// Which stream.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// The name of the receiver.
    stream_id: Option<String>,
}

fn named(query: Result<Query<StreamQuery>, QueryRejection>) -> Result<Option<String>, Error> {
    let Query(StreamQuery { stream_id }) = query.map_err(|_| Error::invalid("the query knows `stream_id`"))?;
    Ok(stream_id)
}

/// A stream (SSF 1.0 section 8.1.1).
#[derive(Serialize, ToSchema)]
pub(super) struct StreamConfiguration {
    /// The name of the receiver.
    stream_id: String,
    iss: String,
    /// `aud` of what the receiver is told.
    aud: String,
    delivery: StreamDelivery,
    /// All events that a receiver of its type can be told of.
    events_supported: Vec<&'static str>,
    /// Those that the configuration asks for.
    events_requested: Vec<&'static str>,
    /// Those that it is told of.
    events_delivered: Vec<&'static str>,
}

/// How a receiver hears.
#[derive(Serialize, ToSchema)]
struct StreamDelivery {
    /// Push (RFC 8935) or poll (RFC 8936).
    method: &'static str,
    /// Where it is told, or asks.
    endpoint_url: String,
}

/// One stream, or the list of all.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Streams {
    One(Box<StreamConfiguration>),
    All(Vec<StreamConfiguration>),
}

impl StreamConfiguration {
    fn of(stream: ReceiverStream, issuer: &str) -> Self {
        let ReceiverStream { name, audience, url, delivered, supported } = stream;
        let delivery = match url {
            Some(endpoint_url) => StreamDelivery { method: PUSH, endpoint_url },
            None => StreamDelivery { method: POLL, endpoint_url: poll_endpoint(issuer) },
        };
        Self {
            stream_id: name,
            iss: issuer.to_owned(),
            aud: audience,
            delivery,
            events_supported: supported,
            events_requested: delivered.clone(),
            events_delivered: delivered,
        }
    }
}

/// How the receiver is told that asks.
///
/// With `stream_id` its stream, without a list of that one (SSF 1.0 section 8.1.1.2). It stands in the configuration of the broker, and nobody
/// changes it here.
#[utoipa::path(
    get, path = "/ssf/v1/stream", operation_id = "showStream", tag = "signals",
    params(StreamQuery),
    responses(
        (status = 200, description = "The stream, or all streams of the receiver", body = Streams),
        Refusals<{ refused::KNOWN | refused::NO_RECEIVER }>,
    ),
    security(("receiver" = [])),
    extensions(("x-remit-callers" = json!(["receiver"]))),
)]
pub(super) async fn stream(
    State(broker): State<Arc<Broker>>,
    query: Result<Query<StreamQuery>, QueryRejection>,
    called: Called,
) -> Result<Answer<Streams>, Problem> {
    let name = named(query)?;
    let stream = broker.show_stream(called.request, name.as_deref()).await?;
    let stream = StreamConfiguration::of(stream, broker.issuer());
    Ok(Answer(if name.is_some() { Streams::One(stream.into()) } else { Streams::All(vec![stream]) }))
}

/// How a stream stands (SSF 1.0 section 8.1.2).
#[derive(Serialize, ToSchema)]
pub(super) struct StreamStatus {
    /// The name of the receiver.
    stream_id: String,
    /// `enabled`: as long as it stands in the configuration.
    status: &'static str,
}

/// Whether the receiver that asks is told.
#[utoipa::path(
    get, path = "/ssf/v1/status", operation_id = "showStreamStatus", tag = "signals",
    params(StreamQuery),
    responses(
        (status = 200, description = "How the stream stands", body = StreamStatus),
        Refusals<{ refused::KNOWN | refused::NO_RECEIVER }>,
    ),
    security(("receiver" = [])),
    extensions(("x-remit-callers" = json!(["receiver"]))),
)]
pub(super) async fn status(
    State(broker): State<Arc<Broker>>,
    query: Result<Query<StreamQuery>, QueryRejection>,
    called: Called,
) -> Result<Answer<StreamStatus>, Problem> {
    let name = named(query)?.ok_or_else(|| Error::invalid("`stream_id` says which stream"))?;
    let ReceiverStream { name, .. } = broker.show_stream(called.request, Some(&name)).await?;
    Ok(Answer(StreamStatus { stream_id: name, status: "enabled" }))
}

/// A stream that is to be verified (SSF 1.0 section 8.1.4.2).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Verification)]
pub(super) struct VerificationBody {
    /// The name of the receiver.
    stream_id: String,
    /// What the event repeats.
    #[serde(default)]
    #[schema(max_length = 1024)]
    state: Option<String>,
}

/// Have a receiver told that what it is told arrives.
///
/// The receiver itself asks for it, or an operator. The event comes behind what is to be told already.
#[utoipa::path(
    post, path = "/ssf/v1/verify", operation_id = "verifyStream", tag = "signals",
    request_body = VerificationBody,
    responses(
        (status = 204, description = "It will be told"),
        Refusals<{ refused::KNOWN | refused::NO_RECEIVER | refused::QUOTA | refused::BODY }>,
    ),
    security(("receiver" = []), ("operator" = [])),
    extensions(("x-remit-callers" = json!(callers(["receiver"], Act::VerifyReceiver)))),
)]
pub(super) async fn verify(
    State(broker): State<Arc<Broker>>,
    called: Called,
    Json { value, .. }: Json<VerificationBody>,
) -> Result<StatusCode, Problem> {
    let VerificationBody { stream_id, state } = value;
    if state.as_ref().is_some_and(|state| state.chars().count() > STATE) {
        return Err(Error::invalid("`state` is 1024 characters long at most").into());
    }
    broker.verify_stream(called.request, &stream_id, state).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a receiver asks for, and what it says of what it was told before (RFC 8936 section 2.2).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(as = PollRequest)]
pub(super) struct PollBody {
    /// How many at most; 32, where nothing is said, and never more. `0`: none, only `ack` and `setErrs` are noted.
    #[serde(default)]
    max_events: Option<u32>,
    /// Whether to answer at once where there is nothing; otherwise the answer waits for something, half a minute at most.
    #[serde(default)]
    return_immediately: bool,
    /// The ids of those that it has.
    #[serde(default)]
    ack: Vec<String>,
    /// The ids of those that it will not take, and why.
    #[serde(default)]
    set_errs: BTreeMap<String, SetError>,
}

/// Why a receiver will not take something (RFC 8936 section 2.6).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetError {
    /// A code of RFC 8935 section 2.4.
    err: String,
    /// For people; it is not kept.
    #[serde(default)]
    #[expect(dead_code, reason = "it may be there, and may say anything")]
    description: Option<String>,
}

/// What a receiver is told.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PollAnswer)]
pub(super) struct PollAnswer {
    /// Security Event Tokens (RFC 8417), by their ids.
    sets: BTreeMap<String, String>,
    /// Whether there is more.
    more_available: bool,
}

/// Ask what has ended.
///
/// For a receiver with `delivery = "poll"`. What it does not acknowledge comes again with the next answer, oldest first. Each broker
/// keeps by itself what it was told: a receiver asks one of them, or all.
#[utoipa::path(
    post, path = "/ssf/v1/poll", operation_id = "pollSignals", tag = "signals",
    request_body = PollBody,
    responses(
        (status = 200, description = "What there is to be told", body = PollAnswer),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::BODY }>,
    ),
    security(("receiver" = [])),
    extensions(("x-remit-callers" = json!(["receiver"]))),
)]
pub(super) async fn poll(
    State(broker): State<Arc<Broker>>,
    called: Called,
    Json { value, .. }: Json<PollBody>,
) -> Result<Answer<PollAnswer>, Problem> {
    let PollBody { max_events, return_immediately, ack, set_errs } = value;
    let poll = Poll {
        most: max_events.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        waits: !return_immediately,
        has: ack,
        refuses: set_errs.into_iter().map(|(jti, SetError { err, .. })| (jti, err)).collect(),
    };
    let Polled { tokens, more } = broker.poll_signals(called.request, poll).await?;
    Ok(Answer(PollAnswer { sets: tokens, more_available: more }))
}
