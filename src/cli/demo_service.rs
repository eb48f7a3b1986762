//! The service of `remit demo`: checks every call as a real one would, with the broker's public keys and then by asking
//! the broker. What it cannot find out, it refuses.

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use std::{
    future::IntoFuture as _,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use super::{
    client::{Caller, Client, Target, fetch},
    exit::Failure,
};
use crate::{
    clock::{Clock as _, SystemClock, Time},
    id::Location,
    verify::{KeySet, UntilExpiry, Verified, Verifier},
};

/// A service whose address is known, but which has no broker yet: the broker has to know its audience first.
pub(super) struct Bound {
    listener: TcpListener,
    pub(super) audience: Location,
}

impl Bound {
    /// Takes a free port of this machine.
    pub(super) async fn new() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::Stopped(format!("the service did not start: {error}"));
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let audience = format!("http://{address}").parse().map_err(|why| Failure::Stopped(format!("{why}")))?;
        Ok(Self { listener, audience })
    }

    /// Fetches the broker's keys and serves.
    pub(super) async fn serve(self, issuer: &str, token: SecretString) -> Result<Service, Failure> {
        let url = |path: &str| {
            Url::parse(&format!("{issuer}{path}")).map_err(|error| Failure::Stopped(format!("{issuer}: {error}")))
        };
        let document = fetch(&url("/jwks")?).await?;
        let keys = KeySet::from_jwks(document.as_bytes()).map_err(|why| Failure::Stopped(why.to_string()))?;
        let target = Target::Web(url("")?);
        let guard = Arc::new(Guard {
            verifier: Verifier::offline_until_expiry(issuer, self.audience).with_access_keys(keys),
            broker: Client::new(target, Caller::Service, Some(token))?,
            last: Mutex::default(),
        });
        let router = Router::new().route("/notes", get(notes)).with_state(guard.clone());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let server = axum::serve(self.listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        tasks.spawn(server.into_future());
        tasks.close();
        Ok(Service { guard, stop, tasks })
    }
}

/// A service that serves.
pub(super) struct Service {
    guard: Arc<Guard>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Service {
    /// What the broker's introspection says of the token that was presented last.
    pub(super) async fn introspect_last(&self) -> Result<bool, Failure> {
        self.guard.is_active(&self.guard.last_token()).await
    }

    /// Until when a service that only checks signatures would go on to accept that token; `None` if it would not now.
    pub(super) fn accepted_by_keys_until(&self, now: Time) -> Option<Time> {
        let verified = self.guard.by_keys(&self.guard.last_token(), now)?;
        chrono::DateTime::from_timestamp(verified.claims().exp, 0)
    }

    /// Finishes what it is doing, and is gone.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// How the service decides.
struct Guard {
    verifier: Verifier<UntilExpiry>,
    broker: Client,
    /// Kept to show at the end what would still accept it; no real service keeps one.
    last: Mutex<String>,
}

impl Guard {
    fn last_token(&self) -> SecretString {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone().into()
    }

    fn by_keys(&self, token: &SecretString, now: Time) -> Option<Verified> {
        self.verifier.verify(token.expose_secret(), now).ok()
    }

    async fn is_active(&self, token: &SecretString) -> Result<bool, Failure> {
        let answer = self.broker.form("/oauth2/introspect", &[("token", token.expose_secret())]).await?;
        Ok(answer.json["active"] == true)
    }
}

async fn notes(State(guard): State<Arc<Guard>>, headers: HeaderMap) -> Response {
    let refused =
        || (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"")]).into_response();
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(token) = bearer else { return refused() };
    token.clone_into(&mut guard.last.lock().unwrap_or_else(PoisonError::into_inner));
    let token = SecretString::from(token);
    let Some(verified) = guard.by_keys(&token, SystemClock.now()) else { return refused() };
    match guard.is_active(&token).await {
        Ok(true) => Json(json!({"notes": ["water the plants"], "task": verified.claims().task.id})).into_response(),
        Ok(false) => refused(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
