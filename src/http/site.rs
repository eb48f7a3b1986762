//! Pages of other sites. Whatever a page has a browser send, the browser shows the certificate of whoever sits at it, also for what takes no
//! body and no header of the page's own. What a page of another site sends is refused before it is anybody's.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use std::sync::Arc;

use super::{
    error::{EvidenceRole, OAuthError, Problem},
    is_oauth,
};
use crate::{broker::Broker, error::Error};

/// Where the page is from, as browsers say (W3C Fetch Metadata).
const SITE: &str = "sec-fetch-site";

/// Refuses what would change something, and was sent by a page of another site.
pub(super) async fn refuse_others(State(broker): State<Arc<Broker>>, request: Request, next: Next) -> Response {
    if request.method().is_safe() || !is_of_another(request.headers(), &broker) {
        return next.run(request).await;
    }
    tracing::warn!("what a page of another site had a browser send is refused");
    let error = Error::invalid("a page of another site had a browser send this: `Origin` or `Sec-Fetch-Site` says so");
    if is_oauth(&request) {
        return OAuthError { error, role: EvidenceRole::Client }.into_response();
    }
    Problem(error).into_response()
}

/// Whoever is no browser says nothing of it.
fn is_of_another(headers: &HeaderMap, broker: &Broker) -> bool {
    let is_own = |origin: &str| broker.is_own_origin(origin);
    let is_here = |site: &str| matches!(site, "same-origin" | "none");
    let all = |name: &str, is_good: &dyn Fn(&str) -> bool| {
        headers.get_all(name).iter().all(|value| value.to_str().is_ok_and(is_good))
    };
    !(all(header::ORIGIN.as_str(), &is_own) && all(SITE, &is_here))
}
