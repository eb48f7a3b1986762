//! Public documents: server metadata (RFC 8414), keys of access tokens and
//! status lists (RFC 7517), keys of JWT-SVIDs and authorities of X.509-SVIDs (SPIFFE bundle).

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, header},
};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

use super::openapi::Refusals;
use crate::{
    broker::Broker,
    claims::Purpose,
    jose::{KeyNumbers, PublicJwk, SigningAlgorithm},
    lease::{PublishedKey, TrustAnchor, Use},
    proof::ALGORITHMS,
};

pub(super) type Document<T> = ([(HeaderName, HeaderValue); 1], Json<T>);

/// How long a verifier that gets no certain answer waits before it asks again, in seconds.
const SOON: u32 = 1;

/// What a cache may do with an answer: keep it for so many seconds, or ask again each time.
pub(super) fn cache_control(max_age: Option<u32>) -> HeaderValue {
    let kept = max_age.and_then(|max_age| HeaderValue::from_str(&format!("public, max-age={max_age}")).ok());
    kept.unwrap_or(HeaderValue::from_static("no-cache"))
}

pub(super) fn cacheable<T>(max_age: Option<u32>, document: T) -> Document<T> {
    ([(header::CACHE_CONTROL, cache_control(max_age))], Json(document))
}

/// A public key (RFC 7517).
#[derive(Serialize, ToSchema)]
pub(super) struct Jwk {
    #[serde(flatten)]
    key: PublicJwk,
    /// `sig`.
    r#use: &'static str,
    // `use` does not tell what stands in `/jwks` apart, so a member of our own does; whoever does not know it goes by `typ`.
    /// What it signs.
    #[serde(rename = "remit_purpose")]
    purpose: Purpose,
}

/// A set of public keys (RFC 7517).
#[derive(Serialize, ToSchema)]
pub(super) struct JwkSet {
    /// The keys of all brokers.
    keys: Vec<Jwk>,
}

impl JwkSet {
    /// Keys that sign this.
    pub(super) fn of(keys: Vec<PublishedKey>, purpose: Purpose) -> Self {
        Self { keys: keys.into_iter().map(|key| Jwk { key: key.jwk, r#use: "sig", purpose }).collect() }
    }
}

/// The SPIFFE bundle of the trust domain.
#[derive(Serialize, ToSchema)]
pub(super) struct SpiffeBundle {
    /// Goes up when a key comes or goes.
    spiffe_sequence: usize,
    /// Seconds after which to fetch it again.
    spiffe_refresh_hint: u32,
    /// The keys of JWT-SVIDs and the authorities of X.509-SVIDs, or the roots that vouch for those, of all brokers.
    keys: Vec<BundleKey>,
}

/// A key in the SPIFFE bundle.
#[derive(Serialize, ToSchema)]
pub(super) struct BundleKey {
    #[serde(flatten)]
    numbers: KeyNumbers,
    /// `jwt-svid` or `x509-svid`.
    r#use: &'static str,
    /// `jwt-svid`: the key id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    kid: Option<String>,
    /// `jwt-svid`: what it signs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    alg: Option<SigningAlgorithm>,
    /// `x509-svid`: one certificate (DER), in base64: that of the authority, or the root that vouches for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false, max_items = 1)]
    x5c: Vec<String>,
}

impl BundleKey {
    /// JWT-SVID section 5: a key has `kid`.
    fn jwt(PublishedKey { jwk, .. }: PublishedKey) -> Self {
        let PublicJwk { numbers, kid, alg } = jwk;
        Self { numbers, r#use: "jwt-svid", kid: Some(kid), alg: Some(alg), x5c: Vec::new() }
    }

    /// X509-SVID section 4.1: an authority has `x5c` and no `kid`.
    fn x509(TrustAnchor { numbers, certificate }: TrustAnchor) -> Self {
        Self { numbers, r#use: "x509-svid", kid: None, alg: None, x5c: vec![certificate] }
    }
}

/// The public keys of access tokens and status lists.
#[utoipa::path(
    get, path = "/jwks", operation_id = "keys", tag = "keys",
    responses(
        (status = 200, description = "The keys of all brokers", body = JwkSet,
            headers(("Cache-Control" = String, description = "`max-age`: how long they may be kept; `no-cache` while the store is in doubt"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn jwks(State(broker): State<Arc<Broker>>) -> Document<JwkSet> {
    let [tokens, lists] = broker.public_keys([Use::AccessToken, Use::StatusList]).await;
    let max_age = tokens.max_age;
    let mut set = JwkSet::of(tokens.keys, Purpose::AccessToken);
    set.keys.extend(JwkSet::of(lists.keys, Purpose::StatusList).keys);
    cacheable(max_age, set)
}

/// The SPIFFE bundle: the public keys of JWT-SVIDs and the authorities of X.509-SVIDs.
#[utoipa::path(
    get, path = "/spiffe/bundle", operation_id = "spiffeBundle", tag = "keys",
    responses(
        (status = 200, description = "The bundle", body = SpiffeBundle,
            headers(("Cache-Control" = String, description = "`max-age`: how long it may be kept; `no-cache` while the store is in doubt"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn bundle(State(broker): State<Arc<Broker>>) -> Document<SpiffeBundle> {
    let [jwt, x509] = broker.public_keys([Use::JwtSvid, Use::X509Svid]).await;
    let max_age = jwt.max_age;
    let spiffe_sequence = jwt.sequence + x509.sequence;
    let spiffe_refresh_hint = max_age.unwrap_or(SOON);
    let authorities = x509.anchors().into_iter().map(BundleKey::x509);
    let keys = jwt.keys.into_iter().map(BundleKey::jwt).chain(authorities).collect();
    cacheable(max_age, SpiffeBundle { spiffe_sequence, spiffe_refresh_hint, keys })
}

/// What the authorization server is and where its endpoints are (RFC 8414).
#[derive(Serialize, ToSchema)]
#[schema(as = ServerMetadata)]
pub(super) struct Metadata {
    /// The name of the broker: `iss` of its tokens.
    issuer: String,
    jwks_uri: String,
    token_endpoint: String,
    /// `none`: the evidence is the `subject_token`, or the kernel's word; `tls_client_auth` and `spiffe_x509` where a client certificate
    /// can be evidence, `spiffe_jwt` where a JWT-SVID can be a client's assertion (draft-ietf-oauth-spiffe-client-auth section 4).
    token_endpoint_auth_methods_supported: Vec<&'static str>,
    /// What an attestor of type `private_key_jwt` can be configured to take; RS256 and ES256 where nothing is said.
    token_endpoint_auth_signing_alg_values_supported: [&'static str; 10],
    introspection_endpoint: String,
    introspection_endpoint_auth_methods_supported: [&'static str; 1],
    /// Where a workload revokes a token of its own (RFC 7009).
    revocation_endpoint: String,
    /// `Bearer`: the evidence; and what the token endpoint takes.
    revocation_endpoint_auth_methods_supported: Vec<&'static str>,
    /// As at the token endpoint.
    revocation_endpoint_auth_signing_alg_values_supported: [&'static str; 10],
    grant_types_supported: [&'static str; 2],
    /// `none`: there is no authorization endpoint.
    response_types_supported: [&'static str; 1],
    /// The privileges.
    scopes_supported: [&'static str; 3],
    authorization_details_types_supported: [&'static str; 2],
    /// What a `DPoP` proof may be signed with (RFC 9449 section 5.1).
    dpop_signing_alg_values_supported: [&'static str; 6],
    /// Whether tokens are bound to the certificate that a client shows (RFC 8705 section 3.3).
    tls_client_certificate_bound_access_tokens: bool,
    /// The endpoints for clients that show a certificate, where they are others (RFC 8705 section 5).
    #[serde(skip_serializing_if = "Option::is_none")]
    mtls_endpoint_aliases: Option<Aliases>,
    subject_types_supported: [&'static str; 1],
    /// What tokens are signed with: RS256 where a service asks for it.
    id_token_signing_alg_values_supported: Vec<SigningAlgorithm>,
    request_uri_parameter_supported: bool,
    /// Where tasks are declared.
    remit_tasks_endpoint: String,
    /// The keys of JWT-SVIDs, and the authorities of X.509-SVIDs.
    remit_spiffe_bundle_uri: String,
    /// The same authorities in PEM.
    remit_ca_uri: String,
    /// Where what is revoked can be followed.
    remit_revocations_endpoint: String,
    /// The keys that sign it.
    remit_revocation_jwks_uri: String,
    /// This description of the API.
    remit_openapi_uri: String,
}

/// Endpoints for clients that show a certificate.
#[derive(Serialize, ToSchema)]
#[schema(as = EndpointAliases)]
struct Aliases {
    #[serde(rename = "token_endpoint")]
    token: String,
    #[serde(rename = "introspection_endpoint")]
    introspection: String,
    #[serde(rename = "revocation_endpoint")]
    revocation: String,
    #[serde(rename = "remit_tasks_endpoint")]
    tasks: String,
}

impl Aliases {
    fn at(origin: &str) -> Self {
        Self {
            token: format!("{origin}/oauth2/token"),
            introspection: format!("{origin}/oauth2/introspect"),
            revocation: format!("{origin}/oauth2/revoke"),
            tasks: format!("{origin}/v1/tasks"),
        }
    }
}

/// What a client's assertion may be signed with.
const ASSERTION_ALGORITHMS: [&str; 10] =
    ["ES256", "ES384", "Ed25519", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];

impl Metadata {
    /// Every member whose default would be wrong is stated.
    fn of(broker: &Broker) -> Self {
        let issuer = broker.issuer();
        let by_certificate = broker.takes_certificates().then_some(["tls_client_auth", "spiffe_x509"]);
        let by_jwt_svid = broker.takes_jwt_svids().then_some("spiffe_jwt");
        Self {
            issuer: issuer.to_owned(),
            jwks_uri: format!("{issuer}/jwks"),
            token_endpoint: format!("{issuer}/oauth2/token"),
            token_endpoint_auth_methods_supported: ["none", "private_key_jwt"]
                .into_iter()
                .chain(by_certificate.into_iter().flatten())
                .chain(by_jwt_svid)
                .collect(),
            token_endpoint_auth_signing_alg_values_supported: ASSERTION_ALGORITHMS,
            introspection_endpoint: format!("{issuer}/oauth2/introspect"),
            introspection_endpoint_auth_methods_supported: ["Bearer"],
            revocation_endpoint: format!("{issuer}/oauth2/revoke"),
            revocation_endpoint_auth_methods_supported: ["Bearer", "private_key_jwt"]
                .into_iter()
                .chain(by_certificate.into_iter().flatten())
                .chain(by_jwt_svid)
                .collect(),
            revocation_endpoint_auth_signing_alg_values_supported: ASSERTION_ALGORITHMS,
            grant_types_supported: ["urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"],
            // Required, and never an empty array (RFC 8414 sections 2 and 3.2). Without an authorization endpoint this is the one
            // response type that promises nothing.
            response_types_supported: ["none"],
            scopes_supported: ["read", "write", "secret"],
            authorization_details_types_supported: ["remit:task", "remit:declaration"],
            dpop_signing_alg_values_supported: ALGORITHMS,
            tls_client_certificate_bound_access_tokens: broker.binds_certificates(),
            mtls_endpoint_aliases: broker.tls_alias().map(Aliases::at),
            subject_types_supported: ["public"],
            id_token_signing_alg_values_supported: broker.signing_algorithms(),
            request_uri_parameter_supported: false,
            remit_tasks_endpoint: format!("{issuer}/v1/tasks"),
            remit_spiffe_bundle_uri: format!("{issuer}/spiffe/bundle"),
            remit_ca_uri: format!("{issuer}/pki/ca.pem"),
            remit_revocations_endpoint: format!("{issuer}/v1/revocations"),
            remit_revocation_jwks_uri: format!("{issuer}/v1/revocations/jwks"),
            remit_openapi_uri: format!("{issuer}/openapi.json"),
        }
    }
}

/// Server metadata (RFC 8414).
#[utoipa::path(
    get, path = "/.well-known/oauth-authorization-server", operation_id = "serverMetadata", tag = "keys",
    responses(
        (status = 200, description = "The metadata", body = Metadata,
            headers(("Cache-Control" = String, description = "`max-age`: how long it may be kept"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn metadata(State(broker): State<Arc<Broker>>) -> Document<Metadata> {
    cacheable(Some(broker.jwks_max_age()), Metadata::of(&broker))
}

/// The same, where clients of OpenID Connect look for it.
#[utoipa::path(
    get, path = "/.well-known/openid-configuration", operation_id = "openidConfiguration", tag = "keys",
    responses(
        (status = 200, description = "The metadata", body = Metadata,
            headers(("Cache-Control" = String, description = "`max-age`: how long it may be kept"))),
        Refusals<0>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn openid_configuration(state: State<Arc<Broker>>) -> Document<Metadata> {
    metadata(state).await
}
