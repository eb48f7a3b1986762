//! What an operation can be refused for, as sets of bits: a handler names its own, and the table in [`crate::http::error`] says which
//! status, code and body that is. Every operation can be refused because the broker is in doubt.

use axum::http::StatusCode;
use std::collections::{BTreeMap, BTreeSet};
use utoipa::{
    IntoResponses, PartialSchema as _, ToSchema,
    openapi::{
        ContentBuilder, HeaderBuilder, Ref, RefOr, Response, ResponseBuilder, example::ExampleBuilder,
        extensions::ExtensionsBuilder,
    },
};

use crate::{
    error::{Denied, Error, Input, Limit, Part, Sought},
    http::error::{EvidenceRole, Fault, OAuthBody, ProblemBody},
    task::{AccessDetail, Privilege},
};

/// The request is malformed.
pub(in crate::http) const MALFORMED: u32 = 1;
/// The caller is nobody that the broker knows.
pub(in crate::http) const EVIDENCE: u32 = 1 << 1;
/// The caller is known, and somebody else's call it is.
pub(in crate::http) const ROLE: u32 = 1 << 2;
/// Policy refuses it.
pub(in crate::http) const POLICY: u32 = 1 << 3;
/// The task is unknown or another's.
pub(in crate::http) const FOREIGN: u32 = 1 << 4;
/// There is no such lock.
pub(in crate::http) const NO_LOCK: u32 = 1 << 17;
/// There is no such key.
pub(in crate::http) const NO_KEY: u32 = 1 << 18;
/// The credential is unknown or another's.
pub(in crate::http) const NO_CREDENTIAL: u32 = 1 << 19;
/// There is no such receiver.
pub(in crate::http) const NO_RECEIVER: u32 = 1 << 20;
/// The task has ended.
pub(in crate::http) const ENDED: u32 = 1 << 5;
/// A lock keeps it out.
pub(in crate::http) const LOCKED: u32 = 1 << 16;
/// The `Idempotency-Key` came with another body.
pub(in crate::http) const REUSED: u32 = 1 << 6;
/// Too much of it.
pub(in crate::http) const QUOTA: u32 = 1 << 7;
/// A number is another report's.
pub(in crate::http) const SEQUENCE: u32 = 1 << 14;
/// A body cannot be read.
pub(in crate::http) const BODY: u32 = 1 << 8;
/// There is no such status list.
pub(in crate::http) const NO_SUCH_LIST: u32 = 1 << 9;
/// `Accept` leaves out what there is.
pub(in crate::http) const NOT_ACCEPTABLE: u32 = 1 << 10;
/// On `/oauth2/*`: the client did not authenticate, or in a way that is not understood.
pub(in crate::http) const CLIENT: u32 = 1 << 11;
/// On `/oauth2/*`: what the parameters of a token request can be refused for.
const PARAMETERS: u32 = 1 << 12;

/// What a declaration can be refused for.
pub(in crate::http) const DECLARING: u32 = MALFORMED | EVIDENCE | ROLE | POLICY | LOCKED | ENDED | REUSED;
/// What every call about one task can be refused for.
pub(in crate::http) const ACTING: u32 = KNOWN | FOREIGN;
/// What every call can be refused for that is for some alone.
pub(in crate::http) const KNOWN: u32 = MALFORMED | EVIDENCE | ROLE;
/// What a token request can be refused for.
pub(in crate::http) const TOKEN: u32 = DECLARING | FOREIGN | CLIENT | PARAMETERS;

/// The errors of an operation of our own API.
pub(in crate::http) struct Refusals<const SET: u32>;

/// The errors of an OAuth endpoint.
pub(in crate::http) struct OAuthRefusals<const SET: u32>;

impl<const SET: u32> IntoResponses for Refusals<SET> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let unread = Error::invalid("the body is not JSON, or repeats a member");
        let errors = errors(SET & !(CLIENT | PARAMETERS), unread).into_iter();
        let faults = errors.map(|(name, error)| (name, Fault::problem(&error)));
        responses(faults.chain(bare(SET, false)), &ProblemBody::name())
    }
}

impl<const SET: u32> IntoResponses for OAuthRefusals<SET> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let errors = errors(SET & !CLIENT, Error::invalid("a parameter is repeated")).into_iter();
        let faults = errors.map(|(name, error)| (name, Fault::oauth(&error, EvidenceRole::Subject)));
        let client = Fault::oauth(&Error::EvidenceInvalid, EvidenceRole::Client);
        let client = (SET & CLIENT != 0).then_some(("client", client));
        responses(faults.chain(client).chain(bare(SET, true)), &OAuthBody::name())
    }
}

/// An error of every kind in `set`, and the name of the example that it is. `unread`: a body that is not in its form.
fn errors(set: u32, unread: Error) -> Vec<(&'static str, Error)> {
    let part = |part, detail: &str| Error::InvalidRequest { part, detail: detail.to_owned() };
    let limit = |limit, denied, detail: &str| Error::PolicyDenied { limit, denied, detail: detail.to_owned() };
    let location = "https://git.example.com".parse();
    let secret = location.map(|location| AccessDetail::of(location, Privilege::Secret));
    let denied: Vec<_> =
        secret.map(|detail| Denied { detail, policies: vec!["no-secrets".to_owned()] }).into_iter().collect();
    let all = [
        (MALFORMED, "malformed", Error::invalid("more than one `Authorization` header")),
        (BODY, "unread", unread),
        (EVIDENCE, "evidence", Error::EvidenceInvalid),
        (EVIDENCE, "proof", Error::ProofInvalid("its `htm` is not the method of this request")),
        (EVIDENCE, "nonce", Error::ProofNonce),
        (ROLE, "role", limit(Limit::Role, Vec::new(), "only an attested workload holds tasks and credentials")),
        (POLICY, "policy", limit(Limit::Policy, denied, "policy does not allow it")),
        (POLICY, "location", limit(Limit::Location, Vec::new(), "the location is not in the task's authority")),
        (
            POLICY,
            "privilege",
            limit(Limit::Privilege, Vec::new(), "the privilege is not in the task's authority for that location"),
        ),
        (
            POLICY,
            "audience",
            limit(Limit::Audience, Vec::new(), "no [[service]] has the location as its audience, octet for octet"),
        ),
        (FOREIGN, "foreign", Error::NotFound(Sought::Task)),
        (NO_LOCK, "no_lock", Error::NotFound(Sought::Lock)),
        (NO_KEY, "no_key", Error::NotFound(Sought::Key)),
        (NO_CREDENTIAL, "no_credential", Error::NotFound(Sought::Credential)),
        (NO_RECEIVER, "no_receiver", Error::NotFound(Sought::Receiver)),
        (LOCKED, "locked", Error::Locked),
        (ENDED, "ended", Error::TaskNotActive),
        (REUSED, "reused", Error::IdempotencyKeyReused),
        (SEQUENCE, "sequence", Error::SequenceReused(7)),
        (QUOTA, "quota", Error::QuotaExceeded("too many unknown task ids were revoked in this minute")),
        (PARAMETERS, "grant_type", part(Part::GrantType, "`grant_type` is not known")),
        (PARAMETERS, "resource", part(Part::Target, "name one service by `resource`")),
        (PARAMETERS, "scope", part(Part::Scope, "`scope` is a task id and one privilege: read, write or secret")),
        (
            PARAMETERS,
            "authorization_details",
            part(Part::AuthorizationDetails, "the types here are remit:task and remit:declaration"),
        ),
        (0, "in_doubt", Error::Unavailable(Input::Store)),
    ];
    all.into_iter().filter(|(bit, ..)| bit & set == *bit).map(|(_, name, error)| (name, error)).collect()
}

/// What a status alone says.
fn bare(set: u32, oauth: bool) -> impl Iterator<Item = (&'static str, Fault)> {
    let all = [
        (NO_SUCH_LIST, "no_such_list", StatusCode::NOT_FOUND),
        (NOT_ACCEPTABLE, "not_acceptable", StatusCode::NOT_ACCEPTABLE),
        (BODY, "too_slow", StatusCode::REQUEST_TIMEOUT),
        (BODY, "too_large", StatusCode::PAYLOAD_TOO_LARGE),
        (BODY, "content_type", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ];
    all.into_iter()
        .filter(move |(bit, ..)| bit & set != 0)
        .map(move |(_, name, status)| (name, Fault::bare(status, oauth)))
}

/// One response for each status: its body, the codes that can be in it (`x-remit-codes`), and an example of each error. The body
/// has one schema for all of them, so that a client that is generated from the document has one type for errors.
fn responses<'a>(faults: impl Iterator<Item = (&'a str, Fault)>, schema: &str) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<StatusCode, Vec<_>> = BTreeMap::new();
    for (name, fault) in faults {
        let (status, code, kind, body) = fault.told("0af7651916cd43dd8448eb211c80319c");
        by_status.entry(status).or_default().push((name, code, kind, body));
    }
    let response = |(status, faults): (StatusCode, Vec<(&str, &'static str, &'static str, _)>)| {
        let codes: BTreeSet<_> = faults.iter().map(|(_, code, ..)| *code).collect();
        let kind = faults.first().map_or("application/json", |(_, _, kind, _)| *kind);
        let named: Vec<_> = codes.iter().map(|code| format!("`{code}`")).collect();
        let description = format!("{}: {}", status.canonical_reason().unwrap_or_default(), named.join(", "));
        let codes = ExtensionsBuilder::new().add("x-remit-codes", codes.into_iter().collect::<Vec<_>>()).build();
        let example = |body| ExampleBuilder::new().value(Some(body)).build();
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(schema)))
            .examples_from_iter(faults.into_iter().map(|(name, _, _, body)| (name, example(body))));
        let mut response =
            ResponseBuilder::new().description(description).content(kind, content.build()).extensions(Some(codes));
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            let header =
                HeaderBuilder::new().schema(Some(u32::schema())).description(Some("Seconds after which to try again"));
            response = response.header("Retry-After", header.build());
        }
        if status == StatusCode::UNAUTHORIZED {
            let header = HeaderBuilder::new().schema(Some(String::schema())).description(Some("`Bearer`"));
            response = response.header("WWW-Authenticate", header.build());
        }
        (status.as_str().to_owned(), RefOr::T(response.build()))
    };
    by_status.into_iter().map(response).collect()
}
