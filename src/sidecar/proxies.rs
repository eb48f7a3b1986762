//! The endpoints of proxies: nginx `auth_request`, Traefik `forwardAuth`, Envoy `ext_authz` over HTTP.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use std::sync::Arc;

use super::{
    Sidecar,
    answer::identity,
    asked::{Asked, Manner, names_token},
    privilege,
};
use crate::{
    task::Privilege,
    verify::{Challenge, Refusal, Verified, only},
};

/// In it Envoy is configured to say which privilege a route takes.
const DEMANDED: &str = "remit-require-privilege";
const PREFIX: &str = "/ext_authz";

/// nginx and Traefik: they say in headers which request it is about, and in the query of this one (`privilege=`), which is theirs, what
/// it takes.
pub(super) async fn auth(State(sidecar): State<Arc<Sidecar>>, request: Request) -> Response {
    let headers = request.headers();
    let manner = Manner::of(headers);
    let asked = manner.and_then(|manner| {
        let privilege = demanded(request.uri().query())?;
        let (method, target) = match manner.target(headers)? {
            Some(said) => said,
            None if headers.contains_key("dpop") => return Err(Refusal::MALFORMED),
            None => ("GET", "/"),
        };
        let asked = Asked::of(method, target)?.with_certificate(headers, sidecar.certificate_header.as_ref())?;
        Ok(Asked { privilege, ..asked })
    });
    answer(decide(&sidecar, headers, asked), manner != Ok(Manner::Forwarded))
}

/// Envoy: the request itself, with its method, below this path. Its query is the client's.
pub(super) async fn ext_authz(State(sidecar): State<Arc<Sidecar>>, request: Request) -> Response {
    let headers = request.headers();
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let target = match target.strip_prefix(PREFIX).unwrap_or_default() {
        rest if rest.starts_with('/') => rest.to_owned(),
        rest => format!("/{rest}"),
    };
    let asked = Asked::of(request.method().as_str(), &target).and_then(|asked| {
        let said = headers.contains_key(DEMANDED).then(|| only(headers, DEMANDED).ok_or(Refusal::MALFORMED));
        let privilege = said.transpose()?.map(privilege).transpose()?;
        Ok(Asked { privilege, ..asked.with_certificate(headers, sidecar.certificate_header.as_ref())? })
    });
    answer(decide(&sidecar, headers, asked), false)
}

fn decide(sidecar: &Sidecar, headers: &HeaderMap, asked: Result<Asked<'_>, Refusal>) -> Result<Verified, Challenge> {
    match asked {
        Ok(asked) => sidecar.decide(headers, &asked),
        Err(refusal) => sidecar.note(Err(refusal)),
    }
}

/// The query of the proxy's own address.
fn demanded(query: Option<&str>) -> Result<Option<Privilege>, Refusal> {
    let query = query.unwrap_or_default();
    let mut demanded = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "privilege" || demanded.is_some() || names_token(query) {
            return Err(Refusal::MALFORMED);
        }
        demanded = Some(privilege(&value)?);
    }
    Ok(demanded)
}

/// `strict`: nginx knows 401 and 403, and takes what is neither for an error of its own, which is no answer to a client.
fn answer(decided: Result<Verified, Challenge>, strict: bool) -> Response {
    match decided {
        Ok(verified) => {
            let mut response = StatusCode::OK.into_response();
            response.headers_mut().extend(identity(&verified));
            response
        }
        Err(challenge) => {
            let known = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&challenge.status());
            let status = if known || !strict { challenge.status() } else { StatusCode::FORBIDDEN };
            let mut response = status.into_response();
            for (name, value) in challenge.headers() {
                response.headers_mut().append(name, value);
            }
            response
        }
    }
}
