//! What whoever is not let through is told: a status and `WWW-Authenticate` (RFC 6750 section 3, RFC 9449 section 7.1).

use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{RETRY_AFTER, WWW_AUTHENTICATE},
};

use super::Rejected;
use crate::proof::ALGORITHMS;
#[cfg(feature = "broker")]
use crate::task::Privilege;

/// It is no token for this service, or not this holder's.
const INVALID: &str = "invalid";

/// What the caller is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// There was no token: any will do.
    Nothing,
    /// The token was not accepted.
    Bearer,
    /// The token was not accepted, or not with this proof.
    Proof,
    /// The token was accepted, and is not for this (RFC 6750 section 3.1).
    #[cfg(feature = "broker")]
    Scope(Privilege),
    /// What was sent has two readings, or none.
    #[cfg(feature = "broker")]
    Malformed,
    /// Nobody can tell now.
    Later,
}

/// What the caller is told, and what stands behind it, for logs alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) challenge: Challenge,
    /// A word: `none`, `invalid`, or that of a denial.
    pub(crate) reason: &'static str,
    /// What is wrong with the token.
    pub(crate) why: Option<Rejected>,
}

impl Refusal {
    /// There was no token.
    pub(super) const NOTHING: Self = Self { challenge: Challenge::Nothing, reason: "none", why: None };
    /// There was no proof, or more than one.
    pub(super) const NO_PROOF: Self = Self { challenge: Challenge::Proof, reason: INVALID, why: None };

    /// `otherwise`: what is to be said where nothing is in doubt.
    pub(crate) fn of(why: Rejected, otherwise: Challenge) -> Self {
        let (challenge, reason) = match why {
            Rejected::Denied(denial) if denial.is_doubt() => (Challenge::Later, denial.as_str()),
            Rejected::Denied(denial) => (otherwise, denial.as_str()),
            Rejected::Invalid(_) => (otherwise, INVALID),
        };
        Self { challenge, reason, why: Some(why) }
    }

    /// What was sent has two readings, or none.
    #[cfg(feature = "broker")]
    pub(crate) const MALFORMED: Self = Self { challenge: Challenge::Malformed, reason: "malformed", why: None };

    /// The token is good, and for another privilege.
    #[cfg(feature = "broker")]
    pub(crate) const fn beyond(privilege: Privilege) -> Self {
        Self { challenge: Challenge::Scope(privilege), reason: "privilege", why: None }
    }
}

impl Challenge {
    /// The headers that say it.
    pub(crate) fn headers(self) -> Vec<(HeaderName, HeaderValue)> {
        let proof = |error: &str| {
            let text = format!("DPoP {error}algs=\"{}\"", ALGORITHMS.join(" "));
            (WWW_AUTHENTICATE, HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("DPoP")))
        };
        let bearer = |text| (WWW_AUTHENTICATE, HeaderValue::from_static(text));
        match self {
            Self::Nothing => vec![bearer("Bearer"), proof("")],
            Self::Bearer => vec![bearer("Bearer error=\"invalid_token\"")],
            Self::Proof => vec![proof("error=\"invalid_token\", ")],
            #[cfg(feature = "broker")]
            Self::Scope(Privilege::Read) => vec![bearer("Bearer error=\"insufficient_scope\", scope=\"read\"")],
            #[cfg(feature = "broker")]
            Self::Scope(Privilege::Write) => vec![bearer("Bearer error=\"insufficient_scope\", scope=\"write\"")],
            #[cfg(feature = "broker")]
            Self::Scope(Privilege::Secret) => vec![bearer("Bearer error=\"insufficient_scope\", scope=\"secret\"")],
            #[cfg(feature = "broker")]
            Self::Malformed => vec![bearer("Bearer error=\"invalid_request\"")],
            Self::Later => vec![(RETRY_AFTER, HeaderValue::from_static("1"))],
        }
    }

    /// The status that says it.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Nothing | Self::Bearer | Self::Proof => StatusCode::UNAUTHORIZED,
            #[cfg(feature = "broker")]
            Self::Scope(_) => StatusCode::FORBIDDEN,
            #[cfg(feature = "broker")]
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Later => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) fn answer<B: Default>(self) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = self.status();
        for (name, value) in self.headers() {
            response.headers_mut().append(name, value);
        }
        response
    }
}
