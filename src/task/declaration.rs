//! What a workload says it is about to do. These are its own words; what attestation proved is kept apart
//! ([`crate::attest::Attested`]).

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Part},
    id::Location,
    task::{AccessDetail, Authority, Privilege},
};

/// The body of `POST /v1/tasks`, as it was sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// What the task is for, in words.
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 1024))]
    pub purpose: String,
    /// Who is accountable for it.
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 256))]
    pub owner: String,
    /// Where it runs: `staging`, `production`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 128))]
    pub environment: Option<String>,
    /// The sandbox it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 256))]
    pub sandbox: Option<String>,
    /// How sensitive the data is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 128))]
    pub data_classification: Option<String>,
    /// Where the work comes from.
    #[serde(default)]
    pub context: Context,
    /// The authority it asks for (RFC 9396, type `remit:access`).
    #[cfg_attr(feature = "broker", schema(min_items = 1, max_items = 16))]
    pub authorization_details: Vec<AccessDetail>,
    /// Its lifetime in seconds; the default is policy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(minimum = 1))]
    pub ttl: Option<u32>,
    /// Whether to go on with what is granted when something is refused.
    #[serde(default)]
    pub partial: bool,
    /// Credentials to mint in the same transaction.
    #[serde(default)]
    #[cfg_attr(feature = "broker", schema(max_items = 32))]
    pub credentials: Vec<CredentialRequest>,
}

/// Where the work comes from, in the words of the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(as = TaskContext))]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// The repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 512))]
    pub repo: Option<String>,
    /// The branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 512))]
    pub branch: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 4096))]
    pub command: Option<String>,
}

/// One credential to mint: one service, one privilege.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CredentialRequest {
    /// The service (RFC 8707); becomes `aud`, byte for byte.
    pub resource: Location,
    /// What to do there.
    pub privilege: Privilege,
    /// The form of the credential.
    #[serde(default, rename = "type")]
    pub kind: CredentialType,
    /// Its lifetime in seconds; the default and the bound are policy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(minimum = 1))]
    pub ttl: Option<u32>,
}

/// The forms of a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CredentialType {
    /// An access token (RFC 9068).
    #[default]
    AccessToken,
    /// A JWT-SVID.
    Jwt,
}

/// How many credentials one call may ask for.
const MAX_CREDENTIALS: usize = 32;

impl Declaration {
    /// Checks the sizes and forms that the types alone do not, and yields the authority that is asked for.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`], naming the member.
    pub fn validate(&self) -> Result<Authority, Error> {
        check_text("purpose", Some(&self.purpose), 1024)?;
        check_text("owner", Some(&self.owner), 256)?;
        check_text("environment", self.environment.as_ref(), 128)?;
        check_text("sandbox", self.sandbox.as_ref(), 256)?;
        check_text("data_classification", self.data_classification.as_ref(), 128)?;
        check_text("context.repo", self.context.repo.as_ref(), 512)?;
        check_text("context.branch", self.context.branch.as_ref(), 512)?;
        check_text("context.command", self.context.command.as_ref(), 4096)?;
        check_ttl(self.ttl)?;
        check_requests(&self.credentials)?;
        Authority::new(self.authorization_details.clone())
            .map_err(|why| Error::InvalidRequest { part: Part::AuthorizationDetails, detail: why.to_string() })
    }
}

/// Checks a list of credential requests, which may be empty.
///
/// # Errors
/// [`Error::InvalidRequest`] for a list that is too long or a `ttl` of 0.
pub(crate) fn check_requests(requests: &[CredentialRequest]) -> Result<(), Error> {
    if requests.len() > MAX_CREDENTIALS {
        return Err(Error::invalid("`credentials` has at most 32 objects"));
    }
    requests.iter().try_for_each(|request| check_ttl(request.ttl))
}

/// A lifetime that a caller asks for.
pub(crate) fn check_ttl(ttl: Option<u32>) -> Result<(), Error> {
    if ttl == Some(0) { Err(Error::invalid("`ttl` is a whole number of seconds, at least 1")) } else { Ok(()) }
}

/// Words of a caller that are stored and shown: not empty, bounded, no control characters.
pub(crate) fn check_text(member: &str, value: Option<&String>, most: usize) -> Result<(), Error> {
    match value {
        Some(value) if value.trim().is_empty() || value.len() > most || value.chars().any(char::is_control) => {
            Err(Error::invalid(format!("`{member}` is 1 to {most} octets without control characters")))
        }
        _ => Ok(()),
    }
}
