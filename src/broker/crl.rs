//! The revocation lists: signed by the broker whose authority it is, every few seconds and at once when a task ends, posted, and given
//! out by every broker.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::TimeDelta;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::broadcast;

use super::{Broker, in_doubt};
use crate::{
    clock::{Time, whole_second},
    credential::{Authority, AuthorityList, RevocationList},
    error::{Error, Input},
    id::{CrlId, TaskId},
    jose::Invalid,
    lease::{Hint, InDoubt, PostedCrl, Use},
    pem,
    revocation::{CRL_BACKDATED, CRL_INTERVAL, CRL_LIFE, SignedCrl},
    task::State,
};

/// A list that was posted no longer ago is still worth something for a while.
const FRESH: Duration = Duration::from_secs(6);
/// The most octets of a whole list: more does not fit into a record. That is about 18,000 certificates.
const MOST_WHOLE: usize = 700 * 1024;
/// How long a list of another broker is given out before the store is asked again.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// A list to be given out.
#[derive(Debug)]
pub struct Crl {
    /// The list (DER).
    pub der: Arc<[u8]>,
    /// For how many seconds a cache may keep it.
    pub max_age: u32,
}

/// When the lists of this broker's authorities were signed last.
pub(super) struct Publishing {
    /// By authority.
    signed: tokio::sync::Mutex<HashMap<String, Signed>>,
    /// Tasks that ended, on whichever broker, as soon as it is known.
    hints: std::sync::Mutex<broadcast::Receiver<Hint>>,
    /// Held by who has the upstream CA sign a list.
    upstream: tokio::sync::Mutex<()>,
}

/// From when until when a list is worth something that is signed now.
fn lasts(now: Time) -> (Time, Time) {
    let seconds = |count: u32| TimeDelta::seconds(i64::from(count));
    (whole_second(now) - seconds(CRL_BACKDATED), whole_second(now) + seconds(CRL_LIFE))
}

struct Signed {
    at: Instant,
    number: u64,
}

impl Publishing {
    pub(super) fn new(hints: broadcast::Receiver<Hint>) -> Self {
        Self {
            signed: tokio::sync::Mutex::default(),
            hints: std::sync::Mutex::new(hints),
            upstream: tokio::sync::Mutex::default(),
        }
    }
}

impl Broker {
    /// Takes in the certificates that were issued before this process began: before any list is signed.
    ///
    /// # Errors
    /// A sentence, when the store is in doubt.
    pub async fn recall_certificates(&self) -> Result<(), String> {
        let now = self.now();
        let authorities = self.parts.keys.authorities();
        let listed = self.parts.ledger.certificates(now).await.map_err(|InDoubt(why)| why)?;
        for certificate in listed {
            if authorities.iter().any(|own| own.kid() == certificate.authority) {
                let (authority, serial) = (&certificate.authority, certificate.serial);
                self.certificates.recall(authority, serial, certificate.task, certificate.expires_at);
            }
        }
        Ok(())
    }

    /// Signs the lists that are due. To be called every second or so.
    pub async fn publish_crls(&self) {
        let ended = self.has_ended();
        for authority in self.parts.keys.authorities() {
            let mut signed = self.publishing.signed.lock().await;
            let is_old = |signed: &Signed| signed.at.elapsed() >= Duration::from_secs(u64::from(CRL_INTERVAL));
            if (ended && self.certificates.any(authority.kid())) || signed.get(authority.kid()).is_none_or(is_old) {
                self.publish(&authority, &mut signed).await;
            }
        }
    }

    /// Whether a task ended that has certificates of ours, as far as hints tell. Some get lost.
    fn has_ended(&self) -> bool {
        let mut hints = self.publishing.hints.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended = false;
        loop {
            match hints.try_recv() {
                Ok(Hint::Task(task)) => ended |= self.certificates.concerns(&task),
                Ok(Hint::Wide) => {}
                Err(broadcast::error::TryRecvError::Lagged(_)) => ended = true,
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return ended,
            }
        }
    }

    /// Whether the list that a certificate of ours names can be had from every broker; signs and posts it where it cannot.
    pub(super) async fn put_out(&self, id: &CrlId) -> bool {
        let is_out = || self.posted.get(id, FRESH).is_some();
        if is_out() {
            return true;
        }
        let authorities = self.parts.keys.authorities();
        let Some(authority) = authorities.iter().find(|own| own.kid() == id.authority()) else { return false };
        let mut signed = self.publishing.signed.lock().await;
        // Whoever was waiting for it may have it by now.
        is_out() || self.publish(authority, &mut signed).await
    }

    /// Looks who has ended → is the store itself? → signs → posts. Whether all that was done.
    async fn publish(&self, authority: &Authority, signed: &mut HashMap<String, Signed>) -> bool {
        match self.sign_crls(authority, signed).await {
            Ok(()) => true,
            Err(why) => {
                tracing::warn!(%why, authority = authority.kid(), "revocation lists were not signed");
                false
            }
        }
    }

    async fn sign_crls(&self, authority: &Authority, signed: &mut HashMap<String, Signed>) -> Result<(), Error> {
        if !self.vouched.load(Ordering::Acquire) {
            return Err(Error::Unavailable(Input::Store));
        }
        // Before the look: what ends from then on may be missing on the lists.
        let (now, begun, kid) = (self.now(), Instant::now(), authority.kid());
        let tasks = self.certificates.tasks(kid, now);
        let ends = self.parts.ledger.ends(&tasks).await.map_err(|why| in_doubt(&why))?;
        // Looked at afterwards: a store that forgot everything, ends included, is not the one that was opened.
        if !self.watch().await {
            return Err(Error::Unavailable(Input::Store));
        }
        let own = |task: &TaskId| self.revocations.covers(task).then_some((State::Revoked, now));
        let ended = tasks.into_iter().zip(ends);
        let ended = ended.filter_map(|(task, end)| end.or_else(|| own(&task)).map(|end| (task, end)));
        self.certificates.note(kid, &ended.collect());
        self.certificates.outlive(kid, self.parts.ledger.generation(), now);
        // What is dead by itself stands in the log, which every broker reads; what a store has lost of it, it was told again.
        Box::pin(self.learn_notices()).await.map_err(|why| in_doubt(&why))?;
        self.certificates.note_each(kid, |serial| self.revocations.lease_ended_at(serial));
        let number = match signed.get(kid) {
            Some(before) => before.number,
            None => self.posted_number(kid).await?,
        };
        // Rises also where the clock went back.
        let number = u64::try_from(now.timestamp_millis()).unwrap_or_default().max(number + 1);
        let (this_update, next_update) = lasts(now);
        let mut lists = Vec::new();
        for (id, revoked) in self.certificates.revoked(kid) {
            let uri = id.uri(&self.issuer);
            let list = RevocationList { id: &id, uri, number, this_update, next_update, revoked };
            let der = authority.sign_list(list).map_err(|Invalid(why)| {
                tracing::error!(why, "a revocation list was not signed");
                Error::Unavailable(Input::Keys)
            })?;
            if id.is_whole() && der.len() > MOST_WHOLE {
                tracing::warn!(octets = der.len(), "the whole revocation list is too long to be given out");
                continue;
            }
            lists.push(PostedCrl { id, number, next_update, der: der.into() });
        }
        // Others give out what can be asked for: where there are no certificates, nobody is told of a list.
        let wanted = self.certificates.any(kid);
        if wanted {
            self.parts.ledger.post_crls(&lists).await.map_err(|why| in_doubt(&why))?;
        }
        for PostedCrl { id, next_update, der, .. } in lists {
            let list = SignedCrl { der, next_update, seen: begun };
            if wanted {
                self.posted.keep(id.clone(), list.clone(), now);
            }
            self.crls.keep(id, list, now);
        }
        signed.insert(kid.to_owned(), Signed { at: begun, number });
        Ok(())
    }

    /// The number of the list that an earlier process signed last.
    async fn posted_number(&self, kid: &str) -> Result<u64, Error> {
        let mut highest = 0;
        for id in CrlId::all(kid) {
            let list = self.parts.ledger.crl(&id).await.map_err(|why| in_doubt(&why))?;
            highest = list.map_or(0, |list| list.number).max(highest);
        }
        Ok(highest)
    }

    /// A list; `None` where no authority has one of that name.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when what is revoked cannot be told.
    pub async fn crl(&self, id: &CrlId) -> Result<Option<Crl>, Error> {
        let now = self.now();
        if id.is_of_authorities() {
            return self.upstream_crl(id, now).await;
        }
        if !self.knows_authority(id.authority(), now).await {
            return Ok(None);
        }
        let list = if self.parts.keys.authorities().iter().any(|own| own.kid() == id.authority()) {
            self.crls.get(id, Duration::MAX)
        } else {
            self.read_crl(id, now).await?
        };
        let out = |list: SignedCrl| Some(Crl { max_age: list.max_age(now)?, der: list.der });
        list.and_then(out).map(Some).ok_or(Error::Unavailable(Input::Store))
    }

    /// The whole lists of all authorities, and those of who certified them, in PEM, and for how many seconds a cache may keep them: for servers that read one file. Where
    /// the list of an authority is not to be had it is left out, and whoever checks lists refuses its certificates.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is none.
    pub async fn crls_pem(&self) -> Result<(String, u32), Error> {
        let [authorities] = self.public_keys([Use::X509Svid]).await;
        let (mut all, mut max_age) = (String::new(), u32::MAX);
        let upstream: BTreeSet<_> =
            authorities.keys.iter().filter_map(|key| Some(&key.vouched.as_ref()?.key)).collect();
        let whole = authorities.keys.iter().map(|authority| CrlId::whole(&authority.jwk.kid));
        for id in whole.chain(upstream.into_iter().map(|upstream| CrlId::authorities(upstream))) {
            if let Ok(Some(list)) = self.crl(&id).await {
                all += &pem::write("X509 CRL", &list.der);
                max_age = max_age.min(list.max_age);
            }
        }
        if all.is_empty() { Err(Error::Unavailable(Input::Store)) } else { Ok((all, max_age)) }
    }

    /// The list of the authorities that an upstream CA certified and that are tainted: every broker that has the key of the CA signs one
    /// when it is asked, by what is on record for all of them.
    async fn upstream_crl(&self, id: &CrlId, now: Time) -> Result<Option<Crl>, Error> {
        let out = |list: SignedCrl| Some(Crl { max_age: list.max_age(now)?, der: list.der });
        let recent = || self.crls.get(id, READ_AGAIN).and_then(out);
        if let Some(list) = recent() {
            return Ok(Some(list));
        }
        // What nobody knows of keeps nobody else waiting.
        if self.known_keys.certified_by(id.authority()).is_none() {
            let _ = self.find_key(Use::X509Svid, id.authority(), now).await;
            if self.known_keys.certified_by(id.authority()).is_none() {
                return Ok(None);
            }
        }
        let _one_at_a_time = self.publishing.upstream.lock().await;
        if let Some(list) = recent() {
            return Ok(Some(list));
        }
        let begun = Instant::now();
        if !self.vouched.load(Ordering::Acquire) || !self.learn_keys().await || !self.watch().await {
            return Err(Error::Unavailable(Input::Store));
        }
        let Some(tainted) = self.known_keys.certified_by(id.authority()) else { return Ok(None) };
        let decode = |(certificate, at): (String, Time)| Some((BASE64_STANDARD.decode(certificate).ok()?, at));
        let tainted: Vec<_> = tainted.into_iter().filter_map(decode).collect();
        let (this_update, next_update) = lasts(now);
        let number = u64::try_from(now.timestamp_millis()).unwrap_or_default();
        let list = AuthorityList { uri: id.uri(&self.issuer), number, this_update, next_update, tainted: &tainted };
        let der = self.parts.keys.sign_upstream_list(id.authority(), list, now).map_err(|why| {
            tracing::warn!(why, "the list of tainted authorities was not signed");
            Error::Unavailable(Input::Keys)
        })?;
        let list = SignedCrl { der: der.into(), next_update, seen: begun };
        self.crls.keep(id.clone(), list.clone(), now);
        Ok(out(list))
    }

    /// A list of another broker, as it was posted.
    async fn read_crl(&self, id: &CrlId, now: Time) -> Result<Option<SignedCrl>, Error> {
        if let Some(list) = self.crls.get(id, READ_AGAIN) {
            return Ok(Some(list));
        }
        let seen = Instant::now();
        let posted = self.parts.ledger.crl(id).await.map_err(|why| in_doubt(&why))?;
        Ok(posted.map(|PostedCrl { der, next_update, .. }| {
            let list = SignedCrl { der, next_update, seen };
            self.crls.keep(id.clone(), list.clone(), now);
            list
        }))
    }

    /// Whether there is, or was until a while ago, an authority with this key.
    async fn knows_authority(&self, kid: &str, now: Time) -> bool {
        self.find_key(Use::X509Svid, kid, now).await.is_some()
    }
}
