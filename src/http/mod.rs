//! The HTTP edge: parse, call the broker, map the error. The same router serves TCP and the Unix socket.

mod certificates;
mod error;
mod evaluation;
mod extract;
mod health;
mod keys;
mod leases;
mod listen;
mod locks;
mod network;
mod oauth;
mod openapi;
mod reach;
mod reports;
mod revocations;
mod rotation;
mod search;
mod signals;
mod site;
mod status;
mod tasks;
mod timeline;
mod tls;
mod trail;
mod unused;
mod watch;
mod workloads;

use axum::{
    Extension, Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, Version, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use std::{sync::Arc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    attest::{ClientCertificate, Peer},
    broker::{Broker, Gone},
    failpoint::{Step, reached},
    id, metrics,
    telemetry::{Link, Served},
};
use error::Fault;
use listen::Room;
use openapi::Document;

pub use error::{EvidenceRole, OAUTH, PROBLEM};
pub use listen::Listener;
pub use network::Network;
pub use tls::{Tls, TlsFiles, TlsVersion};

/// The largest body that is read, in octets.
const MAX_BODY: usize = 64 * 1024;

static DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
/// W3C Trace Context.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who is at the other end of a connection, as far as the transport can tell.
#[derive(Clone)]
pub enum Caller {
    /// Somebody on TCP.
    Anybody,
    /// Somebody on TLS, and the certificate that they showed to hold the key of, if they showed one.
    Tls(Option<Arc<ClientCertificate>>),
    /// A process on this machine, as the kernel saw it when it connected; `None` where the kernel would not say.
    Process(Option<Peer>),
}

/// The id of a request: `x-request-id` of its answer.
#[derive(Clone)]
struct RequestId(String);

/// Whether whoever made a request has hung up: for what nobody needs then.
#[derive(Clone)]
struct HungUp(Gone);

/// Every route of the broker. `routes!` takes a handler only with a description of its operation, and reads method and path there.
fn api() -> OpenApiRouter<Arc<Broker>> {
    OpenApiRouter::with_openapi(openapi::Api::openapi())
        .routes(routes!(keys::metadata))
        .routes(routes!(keys::openid_configuration))
        .routes(routes!(keys::jwks))
        .routes(routes!(keys::bundle))
        .routes(routes!(certificates::authorities))
        .routes(routes!(certificates::list))
        .routes(routes!(certificates::lists))
        .routes(routes!(status::list))
        .routes(routes!(revocations::follow))
        .routes(routes!(revocations::acknowledge))
        .routes(routes!(revocations::jwks))
        .routes(routes!(signals::metadata))
        .routes(routes!(signals::jwks))
        .routes(routes!(signals::stream))
        .routes(routes!(signals::status))
        .routes(routes!(signals::verify))
        .routes(routes!(signals::poll))
        .routes(routes!(oauth::token))
        .routes(routes!(oauth::introspect))
        .routes(routes!(evaluation::configuration))
        .routes(routes!(evaluation::evaluate))
        .routes(routes!(evaluation::evaluate_several))
        .routes(routes!(oauth::revoke))
        .routes(routes!(rotation::list))
        .routes(routes!(rotation::rotate))
        .routes(routes!(rotation::taint))
        .routes(routes!(tasks::declare, tasks::list))
        .routes(routes!(tasks::show))
        .routes(routes!(timeline::show))
        .routes(routes!(reach::show))
        .routes(routes!(search::search))
        .routes(routes!(trail::show))
        .routes(routes!(workloads::list))
        .routes(routes!(unused::report))
        .routes(routes!(tasks::mint))
        .routes(routes!(certificates::mint))
        .routes(routes!(tasks::renew))
        .routes(routes!(reports::report))
        .routes(routes!(tasks::complete))
        .routes(routes!(tasks::revoke))
        .routes(routes!(locks::lock, locks::list))
        .routes(routes!(locks::show))
        .routes(routes!(locks::extend))
        .routes(routes!(locks::release))
        .routes(routes!(leases::revoke))
        .merge(operations())
}

/// Health, metrics and the description of the API: all that is served in the clear on an address that others can reach.
fn operations() -> OpenApiRouter<Arc<Broker>> {
    OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(openapi::openapi))
}

/// The API as an OpenAPI document, as it is served at `/openapi.json`.
#[must_use]
pub fn document() -> String {
    Document::of(api().into_openapi()).text().to_owned()
}

/// What the broker serves. What requests set off runs on `tasks`; answers without an end of their own end at `stop`.
pub fn router(broker: Arc<Broker>, tasks: TaskTracker, stop: CancellationToken) -> Router {
    let (routes, described) = api().split_for_parts();
    routes
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(from_fn_with_state(broker.clone(), site::refuse_others))
        .layer(from_fn_with_state((tasks, broker.clone()), finish))
        .layer(Extension(stop))
        .layer(Extension(Document::of(described)))
        .with_state(broker)
}

/// What the broker serves on `listen.ops`.
pub fn ops_router(broker: Arc<Broker>, tasks: TaskTracker) -> Router {
    let (routes, _) = operations().split_for_parts();
    routes
        .layer(from_fn_with_state((tasks, broker.clone()), finish))
        .layer(Extension(Document::of(api().into_openapi())))
        .with_state(broker)
}

/// Whether its errors are those of OAuth.
fn is_oauth(request: &Request) -> bool {
    request.uri().path().starts_with("/oauth2/")
}

/// Gives every request an id and every answer its headers, and turns faults, the framework's own included, into
/// the error body of their endpoint. Counts it, and says at `debug` how it ended: by its template, for what is in a path, a
/// query or a header may be a secret.
async fn finish(
    State((tasks, broker)): State<(TaskTracker, Arc<Broker>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let (begun, method) = (Instant::now(), request.method().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let Ok(id) = id::random::<16>().map(|bytes| id::hex(&bytes)) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    request.extensions_mut().insert(RequestId(id.clone()));
    let hung_up = Gone::new();
    request.extensions_mut().insert(HungUp(hung_up.clone()));
    // Whoever hangs up drops all this.
    let hung_up = hung_up.drop_guard();
    let proves = request.headers().contains_key("dpop");
    let caller = request.headers().get(&TRACEPARENT).and_then(|value| Link::parse(value.to_str().ok()?));
    let oauth = is_oauth(&request);
    let told = evaluation::request_id(&request).unwrap_or_else(|| id.clone());
    // RFC 9112 section 3.2: where a request is to go is not open to two readings.
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let clear = hosts == 1 || (hosts == 0 && request.version() != Version::HTTP_11);
    // A use case is carried out to its end though its caller has hung up: half of one would be a task that is in the
    // store and not in the audit log. Until then it takes up room of its connection.
    let room = request.extensions().get::<Room>().cloned();
    let answer = async move {
        let response = if clear { next.run(request).await } else { StatusCode::BAD_REQUEST.into_response() };
        drop(room);
        reached(Step::Answering);
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
    hung_up.disarm();
    if let Some(fault) = Fault::of(&mut response, oauth) {
        response = fault.into_response(&told, response.headers().get(header::ALLOW).cloned());
    }
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if proves && let Ok(nonce) = HeaderValue::from_str(&broker.nonce()) {
        // For the next proof (RFC 9449 section 8.2).
        headers.insert(DPOP_NONCE.clone(), nonce);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::from_str(&told) {
        headers.insert(REQUEST_ID.clone(), value);
    }
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    broker.metrics().answered(method.as_str(), route, status, took);
    broker.telemetry().served(|| Served {
        id,
        method: metrics::method(method.as_str()),
        route: route.map(str::to_owned),
        status,
        took,
        caller,
    });
    span.in_scope(|| tracing::debug!(status, seconds = took.as_secs_f64(), "answered"));
    response
}
