//! A state of the feed whose signature was checked.

use crate::{
    claims::{REVOCATIONS_TYP, RevocationClaims},
    jose::{Unverified, strict_json},
    verify::{KeySet, Refused},
};

/// The longest state that is read: a snapshot of some 200,000 entries.
pub const MAX_STATE: usize = 32 << 20;
/// The longest state that is shown to a broker as a witness.
const MAX_WITNESS: usize = 8 * 1024;
/// For how many milliseconds a state may be good.
const WINDOW: std::ops::RangeInclusive<i64> = 1_000..=60_000;

/// What a broker says has been revoked. It is the broker's; whether it fits what is held is another question.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) claims: RevocationClaims,
    pub(super) kid: String,
    /// The state itself, where it is short enough to be shown to a broker.
    pub(super) witness: Option<String>,
}

/// Why a state was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It may be anybody's, and says nothing.
    Foreign(Refused),
    /// It is the broker's, and something in it is not understood: that may be a revoke.
    Malformed(Refused),
}

impl State {
    pub(super) fn read(text: &str, keys: &KeySet, issuer: &str) -> Result<Self, Unread> {
        let foreign = |why: &'static str| Unread::Foreign(Refused(why));
        let unverified = Unverified::parse_long(text, MAX_STATE).map_err(|why| foreign(why.0))?;
        if unverified.typ() != Some(REVOCATIONS_TYP) || !unverified.is_plain() {
            return Err(foreign("not a state of the feed"));
        }
        let kid = unverified.kid().ok_or(foreign("the state names no key"))?;
        let key = keys.get(kid).ok_or(foreign("the key of the state is unknown"))?;
        let payload = unverified.verify_octets(key).map_err(|why| foreign(why.0))?;
        // From here on it is the broker's.
        let malformed = |why: &'static str| Unread::Malformed(Refused(why));
        let payload: serde_json::Value = strict_json(&payload).map_err(|why| malformed(why.0))?;
        if payload.get("iss").and_then(serde_json::Value::as_str) != Some(issuer) {
            return Err(foreign("the state is of another issuer"));
        }
        let claims: RevocationClaims =
            serde_json::from_value(payload).map_err(|_| malformed("something in the state is not understood"))?;
        if !WINDOW.contains(&(claims.exp.millis() - claims.iat.millis())) {
            return Err(malformed("the state is good for less than a second, or for more than a minute"));
        }
        if claims.previous.is_some_and(|previous| previous > claims.sequence) {
            return Err(malformed("the state continues a later one"));
        }
        let witness = (text.len() <= MAX_WITNESS).then(|| text.to_owned());
        Ok(Self { kid: kid.to_owned(), claims, witness })
    }
}
