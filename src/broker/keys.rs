//! Public keys: ours and those of the other brokers on the store.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::TimeDelta;
use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

use super::Broker;
use crate::{
    clock::Time,
    credential::RequestedKey,
    error::{Error, Input},
    jose::{PublicJwk, VerifyingKey},
    lease::{InDoubt, PublishedKey, Retirement, StandingKey, TrustAnchor, Use},
    pem,
    verify::Token,
};

/// From when on every verifier knows `own`: with it the first set of its purpose begins (`None`), else whoever fetched that set just
/// before it was published may keep it for `max_age` seconds. Of two that came at once, the one with the lower id is the first; but
/// those of `ours` that came together, before anything was served, are first together. A key that took the place of the only one,
/// which is tainted, is first again, whatever signs with another algorithm: to wait would only leave nobody who signs.
pub(super) fn known_from(own: &PublishedKey, all: &[StandingKey], ours: &[String], max_age: u32) -> Option<Time> {
    let place = |key: &PublishedKey| (key.published_at, key.jwk.kid.clone());
    let together = |other: &PublishedKey| other.published_at == own.published_at && ours.contains(&other.jwk.kid);
    let earlier = all
        .iter()
        .filter(|StandingKey { key, .. }| key.purpose == own.purpose && place(key) < place(own) && !together(key));
    let alike = |standing: &&StandingKey| standing.key.jwk.alg == own.jwk.alg;
    let (tainted, others): (Vec<_>, Vec<_>) = earlier.partition(|standing| standing.tainted_at.is_some());
    let in_its_place = tainted.iter().any(alike);
    others.iter().any(|other| !in_its_place || alike(other)).then(|| known_by_all(own, max_age))
}

/// From when on whoever fetched the set just before has fetched it again.
pub(super) fn known_by_all(key: &PublishedKey, max_age: u32) -> Time {
    key.published_at + TimeDelta::seconds(i64::from(max_age))
}

/// Every key that is ours or was ever found in the store. A key stays what it is, and once it has an end or is tainted it keeps that, so
/// this only grows: a store in doubt takes no key from anybody, and gives none back.
#[derive(Default)]
pub(super) struct KnownKeys {
    keys: RwLock<HashMap<(Use, String), (StandingKey, VerifyingKey)>>,
    /// When the store was last searched for the key of a token.
    searched: Mutex<Option<Instant>>,
}

/// How often the store is searched for the keys of tokens, at most: a key is published for as long as this before it signs.
const SEARCH: Duration = Duration::from_secs(1);

impl KnownKeys {
    fn get(&self, purpose: Use, kid: &str, now: Time) -> Option<VerifyingKey> {
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let (standing, key) = known.get(&(purpose, kid.to_owned()))?;
        standing.is_published(now).then(|| key.clone())
    }

    /// Whether somebody shows a key of a broker as theirs.
    pub(super) fn is_ours(&self, shown: &RequestedKey) -> bool {
        let Some(shown) = shown.as_p256() else { return false };
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        known.keys().any(|(_, kid)| *kid == shown.kid)
    }

    /// Whether a CA with this key certified an authority of ours, and the certificates of those that are tainted, in base64.
    pub(super) fn certified_by(&self, upstream: &str) -> Option<Vec<(String, Time)>> {
        let by_it =
            |standing: &StandingKey| standing.key.vouched.as_ref().is_some_and(|vouched| vouched.key == upstream);
        let all: Vec<_> = self.all(Use::X509Svid).into_iter().filter(by_it).collect();
        let tainted = all.iter().filter_map(|standing| standing.key.certificate.clone().zip(standing.tainted_at));
        (!all.is_empty()).then(|| tainted.collect())
    }

    /// A key, whatever it is for.
    pub(super) fn named(&self, kid: &str) -> Option<StandingKey> {
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Use::ALL.into_iter().find_map(|purpose| known.get(&(purpose, kid.to_owned()))).map(|(key, _)| key.clone())
    }

    /// Whether nothing that this key signed is to be believed.
    fn is_tainted(&self, purpose: Use, kid: &str) -> bool {
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(purpose, kid.to_owned())).is_some_and(|(key, _)| key.tainted_at.is_some())
    }

    /// Notes the end of a key.
    pub(super) fn retire(&self, purpose: Use, kid: &str, retirement: Retirement) {
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((standing, _)) = known.get_mut(&(purpose, kid.to_owned())) {
            standing.retirement = Some(retirement);
        }
    }

    /// Until when a key that signs no more stays published.
    pub(super) fn published_until(&self, purpose: Use, kid: &str) -> Option<Time> {
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(purpose, kid.to_owned()))?.0.retirement.map(|retirement| retirement.published_until)
    }

    /// When a key was first published.
    pub(super) fn published_at(&self, purpose: Use, kid: &str) -> Option<Time> {
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(purpose, kid.to_owned())).map(|(standing, _)| standing.key.published_at)
    }

    /// The keys for one use, oldest first.
    pub(super) fn all(&self, purpose: Use) -> Vec<StandingKey> {
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let all = known.values().map(|(standing, _)| standing);
        let mut keys: Vec<_> = all.filter(|standing| standing.key.purpose == purpose).cloned().collect();
        keys.sort_by(|StandingKey { key: a, .. }, StandingKey { key: b, .. }| {
            (a.published_at, &a.jwk.kid).cmp(&(b.published_at, &b.jwk.kid))
        });
        keys
    }

    pub(super) fn learn(&self, keys: impl IntoIterator<Item = StandingKey>) {
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        for mut standing in keys {
            let place = (standing.key.purpose, standing.key.jwk.kid.clone());
            let before = known.get(&place);
            standing.retirement = standing.retirement.or(before.and_then(|(before, _)| before.retirement));
            standing.tainted_at = standing.tainted_at.or(before.and_then(|(before, _)| before.tainted_at));
            // The same keys are found at every look; each is read once.
            let same = before.filter(|(before, _)| before.key.jwk == standing.key.jwk).map(|(_, key)| key.clone());
            let Some(key) = same.or_else(|| verifying(&standing.key.jwk)) else { continue };
            known.insert(place, (standing, key));
        }
    }
}

fn verifying(jwk: &PublicJwk) -> Option<VerifyingKey> {
    VerifyingKey::from_jwk(&serde_json::to_value(jwk).ok()?, jwk.alg.into()).ok()
}

/// The public keys of one kind.
#[derive(Debug)]
pub struct PublicKeys {
    /// The keys, oldest first.
    pub keys: Vec<PublishedKey>,
    /// Rises whenever the set changes, and is the same on every broker.
    pub sequence: usize,
    /// How long a verifier may keep them, in seconds; `None` where another broker may have published more.
    pub max_age: Option<u32>,
}

impl PublicKeys {
    /// What verifiers have to trust for what these authorities sign, each once: several may be vouched for by one root.
    #[must_use]
    pub fn anchors(&self) -> Vec<TrustAnchor> {
        let mut found = Vec::<TrustAnchor>::new();
        for anchor in self.keys.iter().flat_map(PublishedKey::anchors) {
            if !found.contains(&anchor) {
                found.push(anchor);
            }
        }
        found
    }
}

impl Broker {
    /// The public keys of these kinds, of all brokers on the store, by one look at it; where the store does not answer, those that were
    /// known before.
    pub async fn public_keys<const N: usize>(&self, purposes: [Use; N]) -> [PublicKeys; N] {
        let now = self.now();
        let learned = self.vouched.load(Ordering::Acquire) && self.learn_keys().await;
        purposes.map(|purpose| {
            let all = self.known_keys.all(purpose);
            let known = all.len();
            let keys: Vec<_> = all.into_iter().filter(|key| key.is_published(now)).map(|key| key.key).collect();
            // Once for every key that came, and once more for every key that went.
            let sequence = known + (known - keys.len());
            PublicKeys { keys, sequence, max_age: learned.then(|| self.jwks_max_age()) }
        })
    }

    /// The certificates that verifiers have to trust for what all authorities sign, in PEM, and how long a verifier may keep them, as of [`PublicKeys::max_age`].
    pub async fn authorities_pem(&self) -> (String, Option<u32>) {
        let [authorities] = self.public_keys([Use::X509Svid]).await;
        let anchors = authorities.anchors().into_iter();
        let certificates = anchors.filter_map(|anchor| BASE64_STANDARD.decode(anchor.certificate).ok());
        (certificates.map(|certificate| pem::write("CERTIFICATE", &certificate)).collect(), authorities.max_age)
    }

    /// Looks which keys the store holds, and says whether it told.
    pub(super) async fn learn_keys(&self) -> bool {
        let standing = self.parts.ledger.keys().await.inspect_err(|why| {
            tracing::error!(%why, "the store is in doubt: going by the keys that were known before");
        });
        standing.map(|standing| self.take_in(standing)).is_ok()
    }

    /// Publishes our public keys, finishes what a rotation before the start had begun, and finds out from when on our keys may sign:
    /// to be done before anything is signed.
    ///
    /// # Errors
    /// A sentence, when the store is in doubt or a key file cannot be written.
    pub async fn publish_keys(&self) -> Result<(), String> {
        let in_doubt = |InDoubt(why)| why;
        let begun = self.now();
        self.recall_taints().await?;
        for purpose in Use::ALL {
            self.discard_tainted(purpose).map_err(|why| why.to_string())?;
            self.announce(self.parts.keys.current(purpose, self.now())).await.map_err(in_doubt)?;
            if let Some(next) = self.parts.keys.next(purpose, self.now()) {
                self.announce(next).await.map_err(in_doubt)?;
            }
        }
        let mut all = self.parts.ledger.keys().await.map_err(in_doubt)?;
        for purpose in Use::ALL {
            // In the files of an old backup the next key may be a retired one too.
            loop {
                let kid = self.parts.keys.current(purpose, self.now()).jwk.kid;
                let retired = all.iter().any(|standing| standing.key.jwk.kid == kid && standing.retirement.is_some());
                let ended = self.parts.keys.ends_at(purpose).is_some_and(|end| end <= self.now());
                if !retired && !ended && !self.parts.keys.is_barred(purpose) {
                    break;
                }
                tracing::info!(kid, "this key is tainted, was retired, or has ended: another one takes its place");
                self.parts.keys.prepare(purpose, self.now())?;
                self.parts.keys.activate(purpose);
                self.retire_replaced(purpose, self.now()).await.map_err(|why| why.to_string())?;
                let key = self.announce(self.parts.keys.current(purpose, self.now())).await.map_err(in_doubt)?;
                all.push(StandingKey::new(key));
            }
        }
        let own = |purpose: Use| {
            let kid = self.parts.keys.current(purpose, self.now()).jwk.kid;
            all.iter().find(|standing| standing.key.jwk.kid == kid)
        };
        let ours = self.imported_kids();
        let known = |standing: &StandingKey| known_from(&standing.key, &all, &ours, self.parts.key_life.jwks_max_age);
        let known = Use::ALL.into_iter().filter_map(own).filter_map(known).max();
        self.take_in(all.iter().cloned());
        self.publish_imported(&all, begun).await.map_err(|why| why.to_string())?;
        self.signs_from.store(known.unwrap_or_default().timestamp_millis(), Ordering::Release);
        Ok(())
    }

    /// Publishes a key of ours, unless it is published, and yields it as it stands.
    pub(super) async fn announce(&self, key: PublishedKey) -> Result<PublishedKey, InDoubt> {
        let key = self.parts.ledger.publish(&key).await?;
        self.known_keys.learn([StandingKey::new(key.clone())]);
        Ok(key)
    }

    /// How long a verifier may keep the keys, in seconds.
    #[must_use]
    pub fn jwks_max_age(&self) -> u32 {
        self.parts.key_life.jwks_max_age
    }

    /// Whether every verifier can know our keys by now.
    pub(super) fn is_known(&self, now: Time) -> bool {
        now.timestamp_millis() >= self.signs_from.load(Ordering::Acquire)
    }

    /// Nothing is signed until every verifier can know what was published at that time.
    pub(super) fn wait_until_known(&self, published_at: Time) {
        let known = published_at + TimeDelta::seconds(i64::from(self.parts.key_life.jwks_max_age));
        self.signs_from.fetch_max(known.timestamp_millis(), Ordering::AcqRel);
    }

    /// Whether there is a key to sign with for every use.
    pub(super) fn can_sign(&self, now: Time) -> bool {
        self.is_known(now) && !Use::ALL.into_iter().any(|purpose| self.parts.keys.is_barred(purpose))
    }

    /// Before anything is minted: what nobody can verify is not signed.
    pub(super) fn may_sign(&self, now: Time) -> Result<(), Error> {
        if self.can_sign(now) { Ok(()) } else { Err(Error::Unavailable(Input::Keys)) }
    }

    /// The key that a token claims to be signed with, looked for among the keys of its form alone.
    pub(super) async fn verifying_key(&self, token: &Token<'_>) -> Option<VerifyingKey> {
        self.find_key(Use::from(token.form()), token.kid(), self.now()).await
    }

    /// A published key, which another broker may have published just now.
    pub(super) async fn find_key(&self, purpose: Use, kid: &str, now: Time) -> Option<VerifyingKey> {
        if let Some(key) = self.known_keys.get(purpose, kid, now) {
            return Some(key);
        }
        if self.known_keys.is_tainted(purpose, kid) {
            return None;
        }
        // Whoever comes while another searches waits for what that finds. What nobody published costs one search a second, however
        // often a service is shown it and asks.
        let mut searched = self.known_keys.searched.lock().await;
        if let Some(key) = self.known_keys.get(purpose, kid, now) {
            return Some(key);
        }
        if searched.is_some_and(|at| at.elapsed() < SEARCH) {
            return None;
        }
        self.learn_keys().await;
        *searched = Some(Instant::now());
        self.known_keys.get(purpose, kid, now)
    }
}
