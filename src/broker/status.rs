//! The status lists: the bits of the store and of this broker's own ends, signed anew every second that somebody asks.

use std::time::Instant;

use super::{Broker, Ordering, in_doubt};
use crate::{
    claims::{CompressedList, STATUS_LIST_TYP, StatusListClaims},
    error::{Error, Input},
    jose::Invalid,
    lease::{StatusBits, Use},
    revocation::{STATUS_LIST_LIFE, STATUS_LIST_TTL, Signed, View},
    task::StatusIndex,
};

/// A Status List Token to be given out.
#[derive(Debug)]
pub struct StatusList {
    /// The token.
    pub token: String,
    /// For how many seconds a cache may keep it.
    pub max_age: u32,
}

impl Broker {
    /// A status list; `None` where there is none with this number. With a store in doubt it is the last one that was not, while
    /// that is worth anything.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when what is revoked cannot be told.
    pub async fn status_list(&self, list: u64) -> Result<Option<StatusList>, Error> {
        let view = match self.status_lists.get(list) {
            Some(view) => view,
            // What is not there takes no room.
            None if !self.status_bits(list).await?.begun => return Ok(None),
            None => self.status_lists.open(list),
        };
        let mut turn = view.turn().await;
        turn.distrust(|kid| self.parts.keys.is_tainted(Use::StatusList, kid));
        if view.is_due(&mut turn) {
            match self.sign_status_list(list, &view).await {
                Ok(signed) => turn.keep(signed),
                Err(_) => turn.missed(),
            }
        }
        let (token, max_age) = turn.current(self.now()).ok_or(Error::Unavailable(Input::Store))?;
        Ok(Some(StatusList { token, max_age }))
    }

    async fn sign_status_list(&self, list: u64, view: &View) -> Result<Signed, Error> {
        // Before the look: what is recorded from then on may be missing in it.
        let (now, asked) = (self.now(), Instant::now());
        if !self.is_known(now) {
            return Err(Error::Unavailable(Input::Keys));
        }
        self.mark_placed().await.map_err(|why| in_doubt(&why))?;
        let StatusBits { octets, .. } = self.status_bits(list).await?;
        // Looked at afterwards: a store that forgot everything, bits included, is not the one that was opened.
        if !self.watch().await {
            return Err(Error::Unavailable(Input::Store));
        }
        let octets = view.unite(&octets);
        let (iat, exp) = (now.timestamp(), now.timestamp() + i64::from(STATUS_LIST_LIFE));
        let sub = StatusIndex { list, index: 0 }.uri(&self.issuer);
        let unsigned = |Invalid(why)| {
            tracing::error!(why, list, "a status list was not signed");
            Error::Unavailable(Input::Keys)
        };
        let status_list = CompressedList::pack(&octets).map_err(unsigned)?;
        let claims = StatusListClaims { sub, iat, exp, ttl: STATUS_LIST_TTL, status_list };
        // Before it is signed: where the key changes meanwhile, this list is forgotten with the old one.
        let kid = self.parts.keys.current(Use::StatusList, now).jwk.kid;
        let token = self.parts.keys.sign(Use::StatusList, STATUS_LIST_TYP, exp, &claims).map_err(unsigned)?;
        Ok(Signed { token, kid, exp, asked })
    }

    async fn status_bits(&self, list: u64) -> Result<StatusBits, Error> {
        if !self.vouched.load(Ordering::Acquire) {
            return Err(Error::Unavailable(Input::Store));
        }
        self.parts.ledger.status_list(list).await.map_err(|why| in_doubt(&why))
    }
}
