//! The store's marker: which store it is, and of which generation. It only ever rises: what is older than the generation is dead, at every
//! broker on the store and at every verifier that hears of it.

use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

use super::super::{Amending, Claim, InDoubt, Key, Store, StoreKey, record::Sealer};
use crate::{clock::Time, id};

/// How often a raise that another overtook is tried again.
const TRIES: usize = 8;

/// What makes a store this one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    store: String,
    generation: u64,
    /// Why the generation went up last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// When, by the clock of whoever raised it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    raised_at: Option<Time>,
}

/// Which store a broker is in, and in which generation of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// The store, by the name that it was given when it was first opened.
    pub store: String,
    /// The generation.
    pub generation: u64,
    /// Why it went up last, if it did.
    pub reason: Option<String>,
    /// When; `None` where it never did, or long ago.
    pub raised_at: Option<Time>,
}

/// The marker as it was read last.
pub(super) struct Markers {
    /// The marker says which generation the store is of, so it is of none itself.
    sealer: Sealer,
    standing: Mutex<(String, Marker)>,
    is_new: bool,
}

impl Markers {
    /// Reads the marker of a store, or makes it this broker's.
    ///
    /// # Errors
    /// When it was made by brokers with another key, or the store is in doubt.
    pub(super) async fn claim(store: &dyn Store, key: &StoreKey, now: Time) -> Result<Self, InDoubt> {
        let sealer = Sealer::new(key, 0, now);
        let id = id::random::<16>().map_err(|why| InDoubt(why.to_string()))?;
        let first = Marker { store: id::hex(&id), generation: 1, reason: None, raised_at: None };
        let record = sealer.seal(&Key::Marker, &first)?;
        let claim = Claim { key: Key::Marker, record, keep_until: None, index: None };
        let text = store.claim(&claim).await?;
        let marker = sealer.open(&Key::Marker, &text).map_err(|_| {
            InDoubt(
                "this store belongs to brokers with another store.key: give this broker a copy of theirs, or another store"
                    .into(),
            )
        })?;
        let is_new = text == claim.record.0;
        Ok(Self { sealer, standing: Mutex::new((text, marker)), is_new })
    }

    /// Whether the store had none before.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// What was read last.
    pub(super) fn entered(&self) -> Entered {
        let Marker { store, generation, reason, raised_at } = self.standing().1;
        Entered { store, generation, reason, raised_at }
    }

    /// Whether `text` is the marker of the store that was opened: the generation, where that has risen.
    ///
    /// # Errors
    /// When it is not.
    pub(super) fn check(&self, text: Option<&str>) -> Result<Option<u64>, InDoubt> {
        let lost = || InDoubt("the store has lost its marker, and so what else it held".into());
        let text = text.ok_or_else(lost)?;
        let (seen, standing) = self.standing();
        if seen == text {
            return Ok(None);
        }
        let another = || InDoubt("the store is another one than was opened".into());
        let marker: Marker = self.sealer.open(&Key::Marker, text).map_err(|_| another())?;
        if marker.store != standing.store {
            return Err(another());
        }
        if marker.generation < standing.generation {
            return Err(InDoubt("the store is of an earlier generation than it was: it was rolled back".into()));
        }
        let risen = marker.generation > standing.generation;
        let generation = marker.generation;
        self.keep(text.to_owned(), marker);
        Ok(risen.then_some(generation))
    }

    /// Raises the generation to `generation` at least, and yields the one that stands then.
    ///
    /// # Errors
    /// When the store is in doubt, or is another one.
    pub(super) async fn raise(
        &self,
        store: &dyn Store,
        generation: u64,
        (reason, now): (&str, Time),
    ) -> Result<u64, InDoubt> {
        for _ in 0..TRIES {
            let (before, standing) = self.standing();
            if standing.generation >= generation {
                return Ok(standing.generation);
            }
            let (reason, raised_at) = (Some(reason.to_owned()), Some(now));
            let next = Marker { generation, reason, raised_at, ..standing };
            let record = self.sealer.seal(&Key::Marker, &next)?;
            let text = record.0.clone();
            let step = Amending { key: Key::Marker, before: Some(before), record, keep_until: None, urgent: true };
            if store.amend(&step).await? {
                self.keep(text, next);
                return Ok(generation);
            }
            let now = store.read(&[Key::Marker]).await?.pop().flatten();
            self.check(now.as_deref())?;
        }
        Err(InDoubt("the store's marker changes all the time".into()))
    }

    fn standing(&self) -> (String, Marker) {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of two that were read at a time the later generation stands.
    fn keep(&self, text: String, marker: Marker) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if marker.generation >= standing.1.generation {
            *standing = (text, marker);
        }
    }
}
