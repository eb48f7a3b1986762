//! One-time things: proofs that serve once, evidence that serves one key, and nonces that every broker on the store recognises.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::{
    super::{Claim, InDoubt, Key},
    LEASE_KEPT, Ledger, kept,
};
use crate::{clock::Time, id::LeaseId, jose::Thumbprint};

/// For how long a nonce is accepted.
const NONCE_LIFE: TimeDelta = TimeDelta::minutes(5);
/// The octets of a nonce that are its moment; the others are a MAC.
const MOMENT: usize = 8;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spent {
    until: Time,
    /// Drawn for this very attempt, so what stands tells whose it is.
    attempt: LeaseId,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyOfEvidence {
    key: Thumbprint,
}

impl Ledger {
    /// Uses up what serves once, known by its digest: whether this was the first time, on any broker. To be remembered `until`.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn spend(&self, digest: &str, until: Time) -> Result<bool, InDoubt> {
        let key = Key::Spent(digest.to_owned());
        let attempt = LeaseId::random().map_err(|_| InDoubt("no random bytes".to_owned()))?;
        let record = self.0.sealer.seal(&key, &Spent { until, attempt: attempt.clone() })?;
        let claim = Claim { key, record, keep_until: Some(until), index: None };
        let standing = self.0.store.claim(&claim).await?;
        // What served once in an earlier generation has served.
        Ok(self.0.sealer.open_of_any_generation::<Spent>(&claim.key, &standing)?.attempt == attempt)
    }

    /// The key that evidence (by its digest) serves from now on: this one, or the one that came with it first.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn bind_evidence(&self, digest: &str, key: &Thumbprint, expires_at: Time) -> Result<Thumbprint, InDoubt> {
        let place = Key::Evidence(digest.to_owned());
        let record = self.0.sealer.seal(&place, &KeyOfEvidence { key: key.clone() })?;
        let keep_until = Some(kept(expires_at, LEASE_KEPT));
        let claim = Claim { key: place, record, keep_until, index: None };
        let standing = self.0.store.claim(&claim).await?;
        Ok(self.0.sealer.open_of_any_generation::<KeyOfEvidence>(&claim.key, &standing)?.key)
    }

    /// The key that evidence serves, if one ever came with it.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn key_of_evidence(&self, digest: &str) -> Result<Option<Thumbprint>, InDoubt> {
        let key = Key::Evidence(digest.to_owned());
        let [record] = self.read([key.clone()]).await?;
        record.map(|record| Ok(self.0.sealer.open_of_any_generation::<KeyOfEvidence>(&key, &record)?.key)).transpose()
    }

    /// A nonce of `now`.
    #[must_use]
    pub fn nonce(&self, now: Time) -> String {
        let moment = now.timestamp_millis().to_be_bytes();
        let mut nonce = moment.to_vec();
        nonce.extend_from_slice(self.0.sealer.stamp(&moment).as_ref());
        BASE64_URL_SAFE_NO_PAD.encode(nonce)
    }

    /// Whether a broker on this store gave out a nonce a moment ago.
    #[must_use]
    pub fn is_fresh(&self, nonce: &str, now: Time) -> bool {
        let Ok(octets) = BASE64_URL_SAFE_NO_PAD.decode(nonce) else { return false };
        let Some((moment, mac)) = octets.split_first_chunk::<MOMENT>() else { return false };
        let given_out = Time::from_timestamp_millis(i64::from_be_bytes(*moment));
        let fits = given_out.is_some_and(|at| at <= now + TimeDelta::seconds(5) && now - at <= NONCE_LIFE);
        fits && self.0.sealer.is_stamp(moment, mac)
    }
}
