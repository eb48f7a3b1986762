//! Envoy `ext_authz` over gRPC: `envoy.service.auth.v3.Authorization/Check`.
//!
//! The messages are those of Envoy's published `.proto` files, by their names, numbers and types, and of them the fields that are used; tests
//! speak to it with code that was made from those files.

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use prost::{Message, Oneof};
use std::{
    collections::HashMap,
    future::{Ready, ready},
    sync::Arc,
};
use tonic::{Code, server::Grpc};
use tonic_prost::ProstCodec;

use super::{
    MAX_BODY, Sidecar,
    answer::identity,
    asked::{Asked, certificate},
    privilege,
};
use crate::verify::{Challenge, Refusal, Verified};

/// What Envoy is configured to say which privilege a route takes with: a member of `context_extensions`.
const PRIVILEGE: &str = "privilege";
/// `HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD`
const OVERWRITE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    attributes: Option<AttributeContext>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeContext {
    #[prost(message, optional, tag = "1")]
    source: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    request: Option<AttributeRequest>,
    #[prost(map = "string, string", tag = "10")]
    context_extensions: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Peer {
    #[prost(string, tag = "5")]
    certificate: String,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeRequest {
    #[prost(message, optional, tag = "2")]
    http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct HttpRequest {
    #[prost(string, tag = "2")]
    method: String,
    #[prost(map = "string, string", tag = "3")]
    headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    path: String,
    #[prost(message, optional, tag = "13")]
    header_map: Option<HeaderFields>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderFields {
    #[prost(message, repeated, tag = "1")]
    headers: Vec<HeaderField>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderField {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
    #[prost(bytes = "vec", tag = "3")]
    raw_value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RpcStatus>,
    #[prost(oneof = "HttpResponse", tags = "2, 3")]
    http_response: Option<HttpResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Oneof)]
enum HttpResponse {
    #[prost(message, tag = "2")]
    Denied(DeniedHttpResponse),
    #[prost(message, tag = "3")]
    Ok(OkHttpResponse),
}

#[derive(Clone, PartialEq, Message)]
struct DeniedHttpResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<HttpStatus>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
}

#[derive(Clone, PartialEq, Message)]
struct HttpStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct OkHttpResponse {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
    #[prost(string, repeated, tag = "5")]
    headers_to_remove: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderOption {
    #[prost(message, optional, tag = "1")]
    header: Option<HeaderField>,
    #[prost(int32, tag = "3")]
    append_action: i32,
}

/// The method.
pub(super) async fn check(State(sidecar): State<Arc<Sidecar>>, request: Request) -> Response {
    let check = |request: tonic::Request<CheckRequest>| sidecar.check_request(request.into_inner());
    let codec = ProstCodec::<CheckResponse, CheckRequest>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_BODY);
    grpc.unary(Unary(check), request).await.map(Body::new)
}

/// A function as the one method of a service.
struct Unary<F>(F);

impl<F: FnMut(tonic::Request<CheckRequest>) -> CheckResponse> tonic::server::UnaryService<CheckRequest> for Unary<F> {
    type Response = CheckResponse;
    type Future = Ready<Result<tonic::Response<CheckResponse>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<CheckRequest>) -> Self::Future {
        ready(Ok(tonic::Response::new((self.0)(request))))
    }
}

impl Sidecar {
    fn check_request(&self, request: CheckRequest) -> CheckResponse {
        let AttributeContext { source, request, context_extensions } = request.attributes.unwrap_or_default();
        let http = request.and_then(|request| request.http).unwrap_or_default();
        let read = headers(&http).and_then(|headers| {
            let shown = source.map(|source| certificate(&source.certificate)).transpose()?.flatten();
            let privilege = context_extensions.get(PRIVILEGE).map(|text| privilege(text)).transpose()?;
            Ok((headers, Asked { certificate: shown, privilege, ..Asked::of(&http.method, &http.path)? }))
        });
        let decided = match read {
            Ok((headers, asked)) => self.decide(&headers, &asked),
            Err(refusal) => self.note(Err(refusal)),
        };
        decided.map_or_else(denied, |verified| permitted(&verified))
    }
}

/// The headers of a request, in either form that Envoy gives them; a name that is in both is there twice.
fn headers(http: &HttpRequest) -> Result<HeaderMap, Refusal> {
    let fields = http.header_map.iter().flat_map(|map| &map.headers);
    let fields = fields.map(|HeaderField { key, value, raw_value }| {
        (key, if raw_value.is_empty() { value.as_bytes() } else { raw_value })
    });
    let plain = http.headers.iter().map(|(key, value)| (key, value.as_bytes()));
    let mut headers = HeaderMap::new();
    // What HTTP/2 says of a request in the form of headers is none.
    for (key, value) in plain.chain(fields).filter(|(key, _)| !key.starts_with(':')) {
        let name = HeaderName::try_from(key).map_err(|_| Refusal::MALFORMED)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Refusal::MALFORMED)?;
        headers.try_append(name, value).map_err(|_| Refusal::MALFORMED)?;
    }
    Ok(headers)
}

/// Headers that say nothing are taken away, so that those which a client sent by the same name do not arrive.
fn permitted(verified: &Verified) -> CheckResponse {
    let (said, silent): (Vec<_>, Vec<_>) = identity(verified).into_iter().partition(|(_, value)| !value.is_empty());
    let headers = said.iter().map(|(name, value)| option(name, value.as_bytes())).collect();
    let headers_to_remove = silent.iter().map(|(name, _)| name.to_string()).collect();
    let http_response = Some(HttpResponse::Ok(OkHttpResponse { headers, headers_to_remove }));
    CheckResponse { status: Some(RpcStatus { code: Code::Ok.into() }), http_response }
}

fn denied(challenge: Challenge) -> CheckResponse {
    let code = match challenge {
        Challenge::Nothing | Challenge::Bearer | Challenge::Proof => Code::Unauthenticated,
        Challenge::Scope(_) => Code::PermissionDenied,
        Challenge::Malformed => Code::InvalidArgument,
        Challenge::Later => Code::Unavailable,
    };
    // One header of a name: several ways to authenticate are a list (RFC 9110 section 11.6.1).
    let mut said: Vec<(HeaderName, Vec<u8>)> = Vec::new();
    for (name, value) in challenge.headers() {
        match said.iter_mut().find(|(other, _)| *other == name) {
            Some((_, list)) => list.extend_from_slice(&[b", ", value.as_bytes()].concat()),
            None => said.push((name, value.as_bytes().to_vec())),
        }
    }
    let headers = said.iter().map(|(name, value)| option(name, value)).collect();
    let status = Some(HttpStatus { code: challenge.status().as_u16().into() });
    let http_response = Some(HttpResponse::Denied(DeniedHttpResponse { status, headers }));
    CheckResponse { status: Some(RpcStatus { code: code.into() }), http_response }
}

fn option(name: &HeaderName, value: &[u8]) -> HeaderOption {
    let value = String::from_utf8_lossy(value).into_owned();
    let header = HeaderField { key: name.to_string(), value, raw_value: Vec::new() };
    HeaderOption { header: Some(header), append_action: OVERWRITE }
}
