//! What a service embeds to check a credential. No server behind it: cargo feature `verify` alone builds it.
//!
//! Nothing of a token is seen before it was checked, and how a verifier learns of revocations is said when it is made:
//!
//! - [`Verifier::following`] the revocation [`Feed`]: a revoke counts as soon as it arrives. A verifier that has heard nothing for the
//!   feed's window, has missed something or was told of another generation accepts nothing.
//! - [`Verifier::offline_until_expiry`]: keys alone (`/jwks`, `/spiffe/bundle`). It learns of no revoke: what it accepts lives until its
//!   `exp`. The [`StatusList`] that the token names shows a revoke within ten seconds; asking the broker (introspection) shows it at once.
//!
//! ```
//! use remit::{clock::Moment, verify::{Asked, Feed, Keys, Rejected, Verifier}};
//! use std::sync::Arc;
//! # fn check(jwks: &[u8], bundle: &[u8], revocation_jwks: &[u8], token: &str, now: Moment,
//! #     fetch: impl Fn(&str) -> String) -> Result<(), Box<dyn std::error::Error>> {
//! let feed = Arc::new(Feed::new("https://broker.example.com"));
//! feed.believe(Keys::read(jwks, bundle, revocation_jwks)?);
//! let asked = Asked::new(now)?;
//! feed.answered(&fetch(asked.nonce()), &asked, &now)?;
//!
//! let verifier = Verifier::following(feed, "https://git.example.com".parse()?);
//! match verifier.verify(token, &now) {
//!     Ok(verified) => println!("{} may {}", verified.claims().client_id, verified.claims().scope),
//!     Err(Rejected::Denied(denial)) if denial.is_doubt() => println!("try again in a moment"),
//!     Err(_) => println!("no"),
//! }
//! # Ok(()) }
//! ```

mod certificate;
#[cfg(feature = "tower")]
mod challenge;
mod feed;
#[cfg(feature = "follow")]
pub(crate) mod follow;
mod keys;
#[cfg(feature = "tower")]
mod layer;
mod remembered;
mod status_list;
mod token;
mod verifier;

pub use certificate::{Authorities, CertifiedTask};
#[cfg(feature = "broker")]
pub(crate) use challenge::{Challenge, Refusal};
pub use feed::{Asked, Denial, Feed, MAX_STATE};
#[cfg(feature = "follow")]
pub use follow::{FollowTerms, Follower, Trouble};
pub use keys::{KeySet, Keys};
#[cfg(feature = "broker")]
pub(crate) use layer::only;
#[cfg(feature = "tower")]
pub use layer::{PeerCertificate, VerifyLayer, VerifyService};
pub use status_list::StatusList;
pub use token::{Held, Introspected, SKEW, Signed, Token, Verified};
pub use verifier::{Following, Presented, UntilExpiry, Verifier};

use crate::jose::Invalid;

/// Why a token was not accepted. For logs: to a caller, answer 401 `invalid_token` and nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(&'static str);

impl From<Invalid> for Refused {
    fn from(invalid: Invalid) -> Self {
        Self(invalid.0)
    }
}

/// Why a verifier that follows the feed did not accept a credential. For logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It is none that could be accepted: to a caller, 401 `invalid_token`.
    #[error("{0}")]
    Invalid(#[from] Refused),
    /// It is good in itself. To a caller the same; where the verifier is in [doubt](Denial::is_doubt), 503.
    #[error("{0}")]
    Denied(Denial),
}
