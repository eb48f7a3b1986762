//! The HTTP edge: parse, call the broker, map the error. The same router serves TCP and the Unix socket.

mod error;
mod extract;
mod health;
mod keys;
mod listen;
mod oauth;
mod rotation;
mod status;
mod tasks;
mod watch;

use axum::{
    Extension, Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, Version, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use std::{sync::Arc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    attest::Peer,
    broker::Broker,
    id,
    metrics::{self, Metrics},
};
use error::Fault;
use listen::Room;

pub use error::{EvidenceRole, OAUTH, PROBLEM};
pub use listen::Listener;

/// The largest body that is read, in octets.
const MAX_BODY: usize = 64 * 1024;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who is at the other end of a connection, as far as the transport can tell.
#[derive(Clone)]
pub enum Caller {
    /// Somebody on TCP.
    Anybody,
    /// A process on this machine, as the kernel saw it when it connected; `None` where the kernel would not say.
    Process(Option<Peer>),
}

/// The id of a request: `x-request-id` of its answer.
#[derive(Clone)]
struct RequestId(String);

/// Every route of the broker. What requests set off runs on `tasks`; answers without an end of their own end at `stop`.
pub fn router(broker: Arc<Broker>, tasks: TaskTracker, stop: CancellationToken) -> Router {
    Router::new()
        .route("/.well-known/oauth-authorization-server", get(keys::metadata))
        .route("/.well-known/openid-configuration", get(keys::metadata))
        .route("/jwks", get(keys::jwks))
        .route("/spiffe/bundle", get(keys::bundle))
        .route("/status-lists/{id}", get(status::list))
        .route("/oauth2/token", post(oauth::token))
        .route("/oauth2/introspect", post(oauth::introspect))
        .route("/v1/keys", get(rotation::list))
        .route("/v1/keys/rotate", post(rotation::rotate))
        .route("/v1/tasks", post(tasks::declare).get(tasks::list))
        .route("/v1/tasks/{id}", get(tasks::show))
        .route("/v1/tasks/{id}/credentials", post(tasks::mint))
        .route("/v1/tasks/{id}/renew", post(tasks::renew))
        .route("/v1/tasks/{id}/complete", post(tasks::complete))
        .route("/v1/tasks/{id}/revoke", post(tasks::revoke))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(from_fn_with_state((tasks, broker.metrics().clone()), finish))
        .layer(Extension(stop))
        .with_state(broker)
}

/// Health and metrics: all that is served in the clear on an address that others can reach.
pub fn ops_router(broker: Arc<Broker>, tasks: TaskTracker) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .layer(from_fn_with_state((tasks, broker.metrics().clone()), finish))
        .with_state(broker)
}

/// Gives every request an id and every answer its headers, and turns faults, the framework's own included, into
/// the error body of their endpoint. Counts it, and says at `debug` how it ended: by its template, for what is in a path, a
/// query or a header may be a secret.
async fn finish(State((tasks, metrics)): State<(TaskTracker, Metrics)>, mut request: Request, next: Next) -> Response {
    let (begun, method) = (Instant::now(), request.method().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let Ok(id) = id::random::<16>().map(|bytes| id::hex(&bytes)) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    request.extensions_mut().insert(RequestId(id.clone()));
    let oauth = request.uri().path().starts_with("/oauth2/");
    // RFC 9112 section 3.2: where a request is to go is not open to two readings.
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let clear = hosts == 1 || (hosts == 0 && request.version() != Version::HTTP_11);
    // A use case is carried out to its end though its caller has hung up: half of one would be a task that is in the
    // store and not in the audit log. Until then it takes up room of its connection.
    let room = request.extensions().get::<Room>().cloned();
    let answer = async move {
        let response = if clear { next.run(request).await } else { StatusCode::BAD_REQUEST.into_response() };
        drop(room);
        response
    };
    // At the highest level, so that whatever a filter lets through says which request it is of.
    let span = tracing::error_span!(
        "request",
        id,
        method = metrics::method(method.as_str()),
        route,
        task = tracing::field::Empty
    );
    let mut response = tasks.spawn(answer.instrument(span.clone())).await.unwrap_or_else(|_| {
        tracing::error!(request = id, "a request was not carried out: a defect of the broker");
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    });
    if let Some(fault) = Fault::of(&mut response, oauth) {
        response = fault.into_response(&id, response.headers().get(header::ALLOW).cloned());
    }
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID.clone(), value);
    }
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    metrics.answered(method.as_str(), route, status, took);
    span.in_scope(|| tracing::debug!(status, seconds = took.as_secs_f64(), "answered"));
    response
}
