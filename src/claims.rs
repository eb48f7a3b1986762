//! What a token says: written by `credential`, read by `verify`. Times are `NumericDate` (RFC 7519): typed, required,
//! whole seconds.

mod lock;
mod numeric_date;
mod revocations;
mod status_list;

pub use lock::{Lock, LockMatch, LockSubject, WorkloadPattern};
pub use numeric_date::NumericDate;
pub use revocations::{REVOCATIONS_TYP, RevocationClaims, RevocationEntry, Revoked};
pub use status_list::{CompressedList, STATUS_LIST_TYP, StatusListClaims};

use serde::{Deserialize, Serialize};

use crate::{
    id::{LeaseId, Location, SpiffeId, TaskId},
    jose::Thumbprint,
    task::{AccessDetail, CredentialType, Kind, Privilege, StatusIndex},
};

/// The claims of an access token (RFC 9068) and of a JWT-SVID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
pub struct Claims {
    /// The broker.
    pub iss: String,
    /// Access token: the workload. JWT-SVID: the task's SPIFFE ID.
    pub sub: SpiffeId,
    /// The workload that holds it.
    pub client_id: SpiffeId,
    /// Those through whom it came to hold it (RFC 8693 section 4.1), if the task was delegated.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "revocations::present")]
    pub act: Option<Actor>,
    /// The one service it is for.
    pub aud: Location,
    /// Its end.
    pub exp: i64,
    /// When it was minted.
    pub iat: i64,
    /// Not before.
    pub nbf: i64,
    /// Its lease.
    pub jti: LeaseId,
    /// The one privilege.
    pub scope: Privilege,
    /// What it may do there (RFC 9396), cut down to this audience and privilege.
    pub authorization_details: Vec<AccessDetail>,
    /// The task it was minted for.
    #[serde(rename = "urn:remit:task")]
    pub task: TaskClaim,
    /// Where it stands in public whether it was revoked.
    pub status: Status,
    /// The key that its holder has to prove to hold (RFC 7800). A reader that does not understand it must refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
}

/// Who acts on behalf of a subject: only the outermost decides, those inside are told for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
pub struct Actor {
    /// The workload.
    pub sub: SpiffeId,
    /// Who acted before it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "revocations::present")]
    #[cfg_attr(feature = "broker", schema(no_recursion))]
    pub act: Option<Box<Actor>>,
}

/// The key that a token is bound to. One that names another way, or two, is read by nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
pub enum Confirmation {
    /// By its thumbprint: its holder sends proofs (RFC 9449 section 6.1).
    #[serde(rename = "jkt")]
    #[cfg_attr(feature = "broker", schema(value_type = String))]
    Key(Thumbprint),
    /// By the thumbprint of a certificate: its holder shows that in the TLS handshake (RFC 8705 section 3.1).
    #[serde(rename = "x5t#S256")]
    #[cfg_attr(feature = "broker", schema(value_type = String))]
    Certificate(Thumbprint),
}

/// How a token is presented (RFC 6749 section 7.1; RFC 8693 section 2.2.1 for what is no access token).
#[must_use]
pub fn token_type(form: CredentialType, bound_to: Option<&Confirmation>) -> &'static str {
    match (form, bound_to) {
        (CredentialType::Jwt, _) => "N_A",
        // Which connection it comes over says what it is bound to (RFC 8705 section 3).
        (CredentialType::AccessToken, None | Some(Confirmation::Certificate(_))) => "Bearer",
        (CredentialType::AccessToken, Some(Confirmation::Key(_))) => "DPoP",
    }
}

/// The status of a token (draft-ietf-oauth-status-list section 6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(as = TokenStatus))]
pub struct Status {
    /// Its place in a status list.
    pub status_list: StatusReference,
}

/// A place in a status list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
pub struct StatusReference {
    /// Which bit.
    pub idx: u32,
    /// Of which list.
    pub uri: String,
}

impl Status {
    /// The status of the tokens of a task.
    #[must_use]
    pub fn of(status: StatusIndex, issuer: &str) -> Self {
        Self { status_list: StatusReference { idx: status.index, uri: status.uri(issuer) } }
    }
}

/// The task of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
pub struct TaskClaim {
    /// Its id, which names its ancestors.
    pub id: TaskId,
    /// Who is accountable.
    pub owner: String,
    /// The sandbox: the one that evidence bound it to, else the declared one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The kind of the workload.
    pub kind: Kind,
    /// Who vouched.
    pub attestor: String,
    /// The issuer of the evidence, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_issuer: Option<String>,
    /// When the task was declared.
    pub declared_at: i64,
    /// When it goes up, everything older is dead.
    pub generation: u64,
    /// A digest of everything that was granted to the task.
    pub authority_hash: String,
    /// The task's deadline.
    pub expires_at: i64,
}

/// What a key in `/jwks` signs, in a member of the JWK that is ours (RFC 7517 section 4: others ignore it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(as = KeyPurpose))]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Access tokens.
    AccessToken,
    /// Status lists.
    StatusList,
    /// States of the revocation feed; these keys stand at `/v1/revocations/jwks`, and not in `/jwks`.
    Revocations,
    /// What receivers of Shared Signals are told; these keys stand at `/ssf/v1/jwks`, and not in `/jwks`.
    Signals,
}

impl Purpose {
    /// The name of the member.
    pub const MEMBER: &'static str = "remit_purpose";
}

impl CredentialType {
    /// The `typ` header: RFC 9068 demands `at+jwt`, the JWT-SVID standard forbids it.
    #[must_use]
    pub fn typ(self) -> &'static str {
        match self {
            CredentialType::AccessToken => "at+jwt",
            CredentialType::Jwt => "JWT",
        }
    }

    /// The form that a `typ` header announces.
    #[must_use]
    pub fn from_typ(typ: Option<&str>) -> Option<Self> {
        match typ {
            Some("at+jwt") => Some(CredentialType::AccessToken),
            Some("JWT") => Some(CredentialType::Jwt),
            _ => None,
        }
    }
}
