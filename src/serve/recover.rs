//! Raising the generation of a store by hand: what a broker does to it, without being one.

use std::sync::Arc;

use super::StartError;
use crate::{
    clock::Clock,
    config::Config,
    lease::{Entered, Ledger, StoreKey},
    metrics::Metrics,
};

/// What was raised.
#[derive(Debug)]
pub struct Recovered {
    /// The store, by the name that it was given when it was first opened.
    pub store: String,
    /// The generation that it was of.
    pub before: u64,
    /// The one that it is of now.
    pub generation: u64,
}

/// Raises the generation of the store in `config` by one, or to `generation`. Brokers that are running on it go over by themselves.
///
/// # Errors
/// [`StartError::Configuration`] where it is of that generation already, or there is no store key; [`StartError::Failed`] where the store
/// cannot be opened or is in doubt.
pub async fn recover(
    config: &Config,
    generation: Option<u64>,
    reason: &str,
    clock: Arc<dyn Clock>,
) -> Result<Recovered, StartError> {
    let key = StoreKey::load(&config.store.mac_key_file).map_err(StartError::Configuration)?;
    let ledger = Ledger::open(&config.store, key, clock, Metrics::new(""), config.strict).await;
    let ledger = ledger.map_err(|why| StartError::Failed(format!("the store cannot be opened: {why}")))?;
    let Entered { generation: before, store, .. } = ledger.entered();
    let wanted = generation.unwrap_or(before + 1);
    if wanted <= before {
        return Err(StartError::Configuration(format!("the store is of generation {before} already")));
    }
    let raised = ledger.raise(wanted, reason).await;
    let generation = raised.map_err(|why| StartError::Failed(format!("the generation was not raised: {why}")))?;
    Ok(Recovered { store, before, generation })
}
