//! Certificates of tasks, what they are verified against, and what is revoked of them.

use axum::{
    Json as Answer,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    error::Problem,
    extract::{Called, Id, Json},
    keys::cache_control,
    openapi::{Refusals, refused},
};
use crate::{
    broker::{Broker, Certified, Crl},
    clock::Time,
    id::{CrlId, LeaseId, SpiffeId, TaskId},
};

/// What is to be certified.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CertificateRequest)]
pub(super) struct CertificateBody {
    /// A certificate request (PKCS#10) in PEM. Its key is used (P-256, P-384, Ed25519, or RSA of 2048 to 4096 bits), and its signature
    /// as the proof that it is held; what else it asks for is not looked at.
    #[schema(min_length = 1, max_length = 16384)]
    csr: String,
    /// For how many seconds: at most policy's bound.
    #[schema(minimum = 1)]
    ttl: Option<u32>,
}

/// A certificate of a task.
#[derive(Serialize, ToSchema)]
#[schema(as = Certificate)]
pub(super) struct CertificateAnswer {
    /// The certificate in PEM. Where an upstream CA vouches for the authority that signs it, those up to one that the bundle vouches for
    /// follow.
    certificate: String,
    /// The authorities of all brokers, or the roots that vouch for them, in PEM.
    bundle: String,
    /// Its one name: the task.
    spiffe_id: SpiffeId,
    /// Its lease: the serial.
    lease: LeaseId,
    /// Its end.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Time,
    /// When to ask for the next one: after two thirds of its life.
    #[schema(value_type = String, format = DateTime)]
    renew_at: Time,
}

impl From<Certified> for CertificateAnswer {
    fn from(Certified { certificate, bundle }: Certified) -> Self {
        let renew_at = certificate.renew_at();
        let (lease, spiffe_id) = (certificate.lease, certificate.spiffe_id);
        Self {
            certificate: certificate.pem,
            bundle,
            spiffe_id,
            lease: lease.id,
            expires_at: lease.expires_at,
            renew_at,
        }
    }
}

/// Mint a certificate for a task: an X.509-SVID whose one name is the task.
///
/// It says nothing of what the task may do, so policy has to allow all that the task was granted.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/certificate", operation_id = "mintCertificate", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task"),
        ("DPoP" = Option<String>, Header, description = "A proof (RFC 9449) of the key that the evidence serves, where it serves one")),
    request_body = CertificateBody,
    responses(
        (status = 200, description = "Minted", body = CertificateAnswer),
        Refusals<{ refused::ACTING | refused::POLICY | refused::LOCKED | refused::ENDED | refused::QUOTA | refused::BODY }>,
    ),
    security(("evidence" = []), ()),
    extensions(("x-remit-callers" = json!(["workload"]))),
)]
pub(super) async fn mint(
    State(broker): State<Arc<Broker>>,
    Id(id): Id,
    called: Called,
    Json { value, .. }: Json<CertificateBody>,
) -> Result<Answer<CertificateAnswer>, Problem> {
    let certified = broker.certify(called.request, &id, &value.csr, value.ttl).await?;
    Ok(Answer(certified.into()))
}

/// The authorities of all brokers, or the roots that vouch for them: what certificates of tasks are verified against.
#[utoipa::path(
    get, path = "/pki/ca.pem", operation_id = "authorities", tag = "keys",
    responses(
        (status = 200, description = "Their certificates, in PEM", body = String, content_type = "application/pem-certificate-chain",
            headers(("Cache-Control" = String, description = "`max-age`: how long they may be kept"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn authorities(State(broker): State<Arc<Broker>>) -> Response {
    let (pem, max_age) = broker.authorities_pem().await;
    public("application/pem-certificate-chain", max_age, pem)
}

/// A list of revoked certificates (RFC 5280, DER): complete for the certificates that name it.
///
/// A certificate is on it from when its task has ended until it expires.
#[utoipa::path(
    get, path = "/pki/crl/{id}", operation_id = "revocationList", tag = "keys",
    params(("id" = String, Path, description = "As a certificate names it: the key id of its authority, a dot, the last digit of its serial; `whole` for all of an authority, or `authorities` for those that an upstream CA with this key certified")),
    responses(
        (status = 200, description = "The list", body = String, content_type = "application/pkix-crl",
            headers(("Cache-Control" = String, description = "`max-age`: how long it may be kept"))),
        Refusals<{ refused::NO_SUCH_LIST }>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn list(
    State(broker): State<Arc<Broker>>,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Response, Problem> {
    let Some(id) = id.ok().and_then(|Path(id)| id.parse::<CrlId>().ok()) else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let Some(Crl { der, max_age }) = broker.crl(&id).await? else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    Ok(public("application/pkix-crl", Some(max_age), der.to_vec()))
}

/// The whole revocation lists of all authorities, and those of upstream CAs, in PEM: for servers that read them from one file (`ssl_crl` of nginx).
///
/// Where the list of an authority is not to be had just now it is left out.
#[utoipa::path(
    get, path = "/pki/crl.pem", operation_id = "revocationLists", tag = "keys",
    responses(
        (status = 200, description = "A list for each authority, in PEM", body = String, content_type = "application/x-pem-file",
            headers(("Cache-Control" = String, description = "`max-age`: how long they may be kept"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn lists(State(broker): State<Arc<Broker>>) -> Result<Response, Problem> {
    let (pem, max_age) = broker.crls_pem().await?;
    Ok(public("application/x-pem-file", Some(max_age), pem))
}

fn public(kind: &'static str, max_age: Option<u32>, body: impl Into<axum::body::Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, cache_control(max_age)),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    ];
    (headers, body.into()).into_response()
}
