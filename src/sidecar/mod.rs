//! `remit verifier`: a verifier beside a service in any language, on its own machine. It follows the revocation feed, and answers the proxy
//! in front of the service (nginx, Traefik, Envoy) or the service itself (introspection, `AuthZEN`) without asking anybody.
//!
//! Whatever it cannot tell, it refuses. It speaks to whoever reaches it, and knows them by that alone.

mod answer;
mod asked;
mod body;
mod counted;
#[cfg(feature = "grpc")]
mod envoy;
mod evaluation;
mod introspect;
mod operations;
mod proxies;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    evaluation::is_request_id,
    http::Listener,
    id::{self, Location},
    serve::{StartError, bind_unix},
    task::Privilege,
    verify::{Challenge, FollowTerms, Follower, Following, Refusal, Verified, Verifier, VerifyLayer},
};
use asked::Asked;
use counted::Counted;

/// The largest body that is read, in octets.
const MAX_BODY: usize = 64 * 1024;
/// How many connections there are at a time.
const MOST: usize = 384;
/// How long requests under way may take after a shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// For whom it answers, and by whose word.
#[derive(Debug)]
pub struct Terms {
    /// Whose feed it follows.
    pub follow: FollowTerms,
    /// The service.
    pub audience: Location,
    /// How clients know the service, where it is not by scheme and authority of its audience: proofs are for this.
    pub at: Option<String>,
    /// The header in which the proxy says which certificate the client has shown. Nobody else must be able to send it.
    pub certificate_header: Option<HeaderName>,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// TCP in the clear.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Place {
    /// Whether only this machine reaches it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for Place {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(_) => Err("expected unix:PATH"),
            None => text.parse().map(Self::Tcp).map_err(|_| "expected ADDRESS:PORT or unix:PATH"),
        }
    }
}

/// What requests are answered with.
struct Sidecar {
    verifier: Verifier<Following>,
    layer: VerifyLayer,
    certificate_header: Option<HeaderName>,
    counted: Counted,
}

impl Sidecar {
    /// Lets a request through, or says why not. Every decision is counted.
    fn decide(&self, headers: &HeaderMap, asked: &Asked<'_>) -> Result<Verified, Challenge> {
        let certificate = asked.certificate.as_deref();
        let decided =
            self.layer.check(headers, (asked.method, asked.path), certificate).and_then(|verified| {
                match asked.privilege.filter(|wanted| *wanted != verified.claims().scope) {
                    Some(wanted) => Err(Refusal::beyond(wanted)),
                    None => Ok(verified),
                }
            });
        self.note(decided)
    }

    /// Counts a decision, and says at `debug` how it went: no token, and nothing that a token says.
    fn note<T>(&self, decided: Result<T, Refusal>) -> Result<T, Challenge> {
        let (reason, why) =
            decided.as_ref().map_or_else(|refusal| (refusal.reason, refusal.why), |_| (counted::ALLOWED, None));
        self.counted.note(reason);
        tracing::debug!(reason, why = why.map(tracing::field::display), "decided");
        decided.map_err(|refusal| refusal.challenge)
    }
}

/// The privilege that is demanded; what is none is demanded by nobody.
fn privilege(text: &str) -> Result<Privilege, Refusal> {
    text.parse().map_err(|_| Refusal::MALFORMED)
}

/// A sidecar that serves.
pub struct Running {
    /// Where it listens.
    pub place: Place,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Starts to follow and to serve. It accepts nothing before it has heard what is revoked.
///
/// # Errors
/// When the terms name what cannot be, or the place is taken: in a sentence.
pub async fn start(terms: Terms, place: Place) -> Result<Running, StartError> {
    let Terms { follow, audience, at, certificate_header } = terms;
    let follower = Follower::new(&follow).map_err(|why| StartError::Configuration(why.to_string()))?;
    let verifier = Verifier::following(follower.feed(), audience);
    let layer = VerifyLayer::new(verifier.clone());
    let layer = match &at {
        Some(at) => layer.at(at),
        None => layer,
    };
    let (listener, place) = bind(place).await?;
    let sidecar = Arc::new(Sidecar { verifier, layer, certificate_header, counted: Counted::default() });
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let until = stop.clone();
    tasks.spawn(async move { until.run_until_cancelled(follower.run()).await });
    tasks.spawn(listener.serve(router(sidecar), MOST, stop.clone(), tasks.clone()));
    tasks.close();
    Ok(Running { place, stop, tasks })
}

async fn bind(place: Place) -> Result<(Listener, Place), StartError> {
    let address = match place {
        Place::Tcp(address) => address,
        Place::Unix(path) => {
            let listener = bind_unix(&path, "--listen").await?;
            return Ok((Listener::Unix(listener), Place::Unix(path)));
        }
    };
    let failed = |error| StartError::Failed(format!("{address}: {error}; choose another address with --listen"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((Listener::Tcp(listener, None), Place::Tcp(address)))
}

impl Running {
    /// Stops taking connections, lets requests under way finish for a while, and is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
        if let Place::Unix(path) = &self.place {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn router(sidecar: Arc<Sidecar>) -> Router {
    let router = Router::new();
    #[cfg(feature = "grpc")]
    let router = router.route("/envoy.service.auth.v3.Authorization/Check", post(envoy::check));
    router
        .route("/auth", any(proxies::auth))
        .route("/ext_authz", any(proxies::ext_authz))
        .route("/ext_authz/", any(proxies::ext_authz))
        .route("/ext_authz/{*path}", any(proxies::ext_authz))
        .route("/introspect", post(introspect::introspect))
        .route("/access/v1/evaluation", post(evaluation::one))
        .route("/access/v1/evaluations", post(evaluation::several))
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .route("/metrics", get(operations::metrics))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(finish))
        .with_state(sidecar)
}

/// Gives every answer its headers. The id that a caller gave its request comes back.
async fn finish(request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_request_id(id.as_bytes())).cloned();
    let id = id.or_else(|| HeaderValue::try_from(id::hex(&id::random::<16>().ok()?)).ok());
    let Some(id) = id else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REQUEST_ID.clone(), id);
    response
}
