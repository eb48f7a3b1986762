//! RSA keys, which an operator brings, and what they sign: as with a rotation, no verifier meets a token whose key it cannot know.
//!
//! Found: on record, and published. → Once every verifier can know it (`jwks_max_age`): it signs, in the place of another one if
//! there is one, which is on record. → Of the old one: its end in the store, then its file is replaced. After one that is tainted the
//! next one does not wait, as among the keys that are made here (`broker/taint.rs`).

use std::{sync::Arc, thread};
use tokio::sync::Semaphore;

use super::{
    Broker, Rules, in_doubt,
    keys::{known_by_all, known_from},
    rotate::unmade,
};
use crate::{
    audit::{Actor, Entry, Event},
    clock::Time,
    credential::{Credential, Draft, Imported, ImportedKey},
    error::{Error, Input},
    id::Location,
    jose::SigningAlgorithm,
    lease::{PublishedKey, StandingKey, Use},
    task::{CredentialType, Task},
};

/// How many RSA signatures are made at a time: half as many as there are cores, so that whatever else is asked of the broker does
/// not wait for them. With 2048 bits one takes as long as 16 with ES256, with 4096 bits as long as 250.
pub(super) struct Signing(Arc<Semaphore>);

impl Default for Signing {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(cores.div_ceil(2))))
    }
}

impl Broker {
    /// What tokens are signed with: ES256, and RS256 where a service asks for it.
    #[must_use]
    pub fn signing_algorithms(&self) -> Vec<SigningAlgorithm> {
        let with_rs256 = !self.rules().parties.with_rs256().is_empty();
        let rs256 = with_rs256.then_some(SigningAlgorithm::RS256);
        std::iter::once(SigningAlgorithm::ES256).chain(rs256).collect()
    }

    /// How the keys that are not rotated are replaced, in a sentence, where there are any.
    #[must_use]
    pub fn replaced_by_hand(&self) -> Option<String> {
        self.parts.keys.imported().iter().find_map(Imported::how_to_replace)
    }

    /// What a credential for a service is to be signed with, once there is a key for it that every verifier can know.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a form that is not signed so, [`Error::Unavailable`] while there is no such key.
    pub(super) fn algorithm(
        &self,
        rules: &Rules,
        audience: &Location,
        form: CredentialType,
        now: Time,
    ) -> Result<SigningAlgorithm, Error> {
        let algorithm = rules.parties.algorithm(audience, form)?;
        match algorithm {
            SigningAlgorithm::ES256 => Ok(algorithm),
            SigningAlgorithm::RS256 if self.signs_rs256(Use::AccessToken, now) => Ok(algorithm),
            SigningAlgorithm::RS256 => Err(Error::Unavailable(Input::Keys)),
        }
    }

    /// Whether there is an RSA key for `purpose` that every verifier can know.
    pub(super) fn signs_rs256(&self, purpose: Use, now: Time) -> bool {
        let signs = |key: &ImportedKey| !key.is_next && key.signs_from.is_some_and(|from| now >= from);
        let mut keys =
            self.parts.keys.imported().iter().filter(|keys| keys.purpose() == purpose).flat_map(Imported::all);
        keys.any(|key| signs(&key) && !self.is_retired(purpose, &key.kid))
    }

    /// Whether a key never signs again: also where another broker has retired it, or whoever tainted it.
    fn is_retired(&self, purpose: Use, kid: &str) -> bool {
        self.parts.keys.is_tainted(purpose, kid) || self.known_keys.published_until(purpose, kid).is_some()
    }

    /// Signs what was drafted, in order. RSA not on the threads that serve requests.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when one could not be signed.
    pub(super) async fn sign(&self, task: &Task, drafts: Vec<Draft>) -> Result<Vec<Credential>, Error> {
        let mut credentials = Vec::with_capacity(drafts.len());
        for draft in drafts {
            credentials.push(match draft.algorithm() {
                SigningAlgorithm::ES256 => draft.sign(task, &self.issuer, &self.parts.keys)?,
                SigningAlgorithm::RS256 => self.sign_slowly(task.clone(), draft).await?,
            });
        }
        Ok(credentials)
    }

    async fn sign_slowly(&self, task: Task, draft: Draft) -> Result<Credential, Error> {
        let unsigned = |_| Error::Unavailable(Input::Keys);
        // Kept until it is signed, even if nobody waits for it any more.
        let turn = Arc::clone(&self.signing.0).acquire_owned().await.map_err(|_| Error::Unavailable(Input::Keys))?;
        let (issuer, keys) = (self.issuer.clone(), Arc::clone(&self.parts.keys));
        let signing = tokio::task::spawn_blocking(move || {
            let signed = draft.sign(&task, &issuer, &keys);
            drop(turn);
            signed
        });
        signing.await.map_err(unsigned)?
    }

    /// The ids of the imported keys, also of those that sign no more while that is not on record.
    pub(super) fn imported_kids(&self) -> Vec<String> {
        let of = |keys: &Imported| {
            let replaced = keys.replaced().into_iter().map(|key| key.kid);
            keys.all().into_iter().map(|key| key.kid).chain(replaced).collect::<Vec<_>>()
        };
        self.parts.keys.imported().iter().flat_map(of).collect()
    }

    /// Publishes the imported keys before anything is served, in a start that began at `begun`. `all` is what stands in the store, the
    /// keys that were made here included.
    pub(super) async fn publish_imported(&self, all: &[StandingKey], begun: Time) -> Result<(), Error> {
        let now = self.now();
        for keys in self.parts.keys.imported() {
            let own = self.parts.keys.current(keys.purpose(), now).jwk.kid;
            let made = all.iter().find(|standing| standing.key.jwk.kid == own).map(|made| made.key.published_at);
            // Verifiers find both at once where the other one is new as well.
            let at = made.filter(|at| *at >= begun).unwrap_or(now);
            let ours = [own];
            for key in keys.unpublished(at) {
                let key = self.import(key, now).await?;
                keys.published(&key.jwk.kid, known_from(&key, all, &ours, self.jwks_max_age()).unwrap_or(now));
            }
        }
        Ok(())
    }

    /// Takes the imported keys as far as they can go by now. To be called every second or so.
    pub(super) async fn turn_imported(&self, now: Time) -> Result<(), Error> {
        for keys in self.parts.keys.imported() {
            self.turn_imported_of(keys, now).await?;
        }
        Ok(())
    }

    async fn turn_imported_of(&self, keys: &Imported, now: Time) -> Result<(), Error> {
        self.retire_imported(keys, now).await?;
        keys.discard_tainted().map_err(|why| unmade(&why))?;
        if let Err(why) = keys.look(now) {
            tracing::error!("an imported key is not taken: {why}");
        }
        let unpublished = keys.unpublished(now);
        if !unpublished.is_empty() {
            if !self.learn_keys().await {
                return Err(Error::Unavailable(Input::Store));
            }
            for key in unpublished {
                let key = self.import(key, now).await?;
                keys.published(&key.jwk.kid, known_by_all(&key, self.jwks_max_age()));
            }
        }
        if let Some((kid, replaces)) = keys.due(now).filter(|(kid, _)| !self.is_retired(keys.purpose(), kid)) {
            tracing::info!(kid, replaces, "the next imported key signs");
            let event = Event::KeyActivated { purpose: keys.purpose().to_string(), kid, replaces };
            self.record_of_keys(event, now).await?;
            keys.activate(now);
            self.retire_imported(keys, now).await?;
        }
        Ok(())
    }

    /// On record, if it is new → published. To be called when it is known what stands in the store.
    async fn import(&self, key: PublishedKey, now: Time) -> Result<PublishedKey, Error> {
        let kid = key.jwk.kid.clone();
        if self.is_retired(key.purpose, &kid) {
            tracing::error!(kid, "this imported key was retired or tainted, and never signs again: import another one");
        } else if self.known_keys.published_at(key.purpose, &kid).is_none() {
            let (purpose, algorithm) = (key.purpose.to_string(), key.jwk.alg.to_string());
            self.record_of_keys(Event::KeyImported { purpose, kid, algorithm }, now).await?;
        }
        self.announce(key).await.map_err(|why| in_doubt(&why))
    }

    /// The ends of keys that were replaced: in the store first, for a file that is gone tells nobody what it signed.
    async fn retire_imported(&self, keys: &Imported, now: Time) -> Result<(), Error> {
        let replaced = keys.replaced();
        if replaced.is_empty() {
            return Ok(());
        }
        for key in replaced {
            self.retire(keys.purpose(), key, now).await?;
        }
        keys.settle().map_err(|why| unmade(&why))
    }

    async fn record_of_keys(&self, event: Event, now: Time) -> Result<(), Error> {
        self.record(vec![Entry { time: now, request: String::new(), actor: Actor::Broker, task: None, event }]).await
    }
}
