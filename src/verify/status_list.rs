//! Reading a status list (draft-ietf-oauth-status-list section 8.3): what a service that does not ask the broker at every call
//! learns of a revoke by.

use super::{KeySet, Refused, SKEW, Verified};
use crate::{
    claims::{STATUS_LIST_TYP, StatusListClaims},
    clock::Time,
    jose::Unverified,
};

/// A status list whose signature, type, name and times were checked. Good until it expires, and to be fetched again before.
#[derive(Debug, Clone)]
pub struct StatusList {
    uri: String,
    octets: Vec<u8>,
    ttl: u32,
    expires_at: i64,
}

impl StatusList {
    /// Reads a Status List Token that was fetched from `uri`, which is what `status.status_list.uri` of a [`Verified`] token says.
    ///
    /// # Errors
    /// When it is none, is of another kind or for another URI, is signed with none of `keys` (see
    /// [`KeySet::of_status_lists`]), has expired or is from the future, or holds no list of the broker's.
    pub fn read(text: &str, keys: &KeySet, uri: &str, now: Time) -> Result<Self, Refused> {
        let unverified = Unverified::parse(text)?;
        if unverified.typ() != Some(STATUS_LIST_TYP) || !unverified.is_plain() {
            return Err(Refused("not a status list"));
        }
        let key =
            unverified.kid().and_then(|kid| keys.get(kid)).ok_or(Refused("the key of the status list is unknown"))?;
        let claims: StatusListClaims = unverified.verify(key)?;
        if claims.sub != uri {
            return Err(Refused("it is another status list"));
        }
        if now.timestamp() >= claims.exp {
            return Err(Refused("the status list has expired"));
        }
        if now.timestamp() + SKEW < claims.iat {
            return Err(Refused("the status list is from the future"));
        }
        let octets = claims.status_list.unpack()?;
        Ok(Self { uri: claims.sub, octets, ttl: claims.ttl, expires_at: claims.exp })
    }

    /// How long after it was fetched it is to be fetched again, in seconds; what a cache says otherwise does not count.
    #[must_use]
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// Whether the task of a token goes on, as far as this list can tell.
    ///
    /// # Errors
    /// When the task has ended, the token stands in another list or in no place of this one, or the list has expired.
    pub fn check(&self, verified: &Verified, now: Time) -> Result<(), Refused> {
        let status = &verified.claims().status.status_list;
        if status.uri != self.uri {
            return Err(Refused("its status stands in another list"));
        }
        if now.timestamp() >= self.expires_at {
            return Err(Refused("the status list has expired"));
        }
        let octet = usize::try_from(status.idx / 8).ok().and_then(|at| self.octets.get(at));
        match octet {
            Some(octet) if octet & (1 << (status.idx % 8)) == 0 => Ok(()),
            Some(_) => Err(Refused("its task has ended, says the status list")),
            None => Err(Refused("its status is out of the list's range")),
        }
    }
}
