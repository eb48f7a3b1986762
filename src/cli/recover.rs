//! `remit recover`: raises the generation of a store by hand, after it was put back to an earlier state.

use clap::Args;
use serde_json::json;
use std::{path::PathBuf, sync::Arc};

use super::{
    Output,
    config::built_in,
    connection::Connection,
    exit::Failure,
    show::{facts, say},
};
use crate::{
    clock::SystemClock,
    config::{Config, Overrides},
    serve::{Recovered, StartError, recover},
};

pub(super) const EXAMPLES: &str = "Examples:
  remit recover --config broker.toml --reason 'Redis was restored from the backup of Monday'

Everything that was issued before is dead from then on: at brokers within a second, at services that follow the feed as soon as they
hear of it, and workloads attest again. Brokers that are running go over by themselves; an embedded store has to be closed first.";

/// It works on the store alone, so that it also works where no broker would start.
#[derive(Debug, Args)]
pub(super) struct Recover {
    /// The configuration file of a broker on the store [default: what `remit serve` does without one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The generation that it is to have at least: above any that a credential was ever of. Where the store was put back to an earlier
    /// generation, that is more than one above what it says.
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    /// Why: brokers put it on record.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Recover {
    pub(super) async fn run(self, connection: &Connection, output: Output) -> Result<(), Failure> {
        if self.reason.is_empty() || self.reason.len() > 1024 {
            return Err(Failure::Input("--reason is 1 to 1024 characters".to_owned()));
        }
        let config = match &self.config {
            Some(file) => Config::read(file, Overrides::default()),
            None => built_in(connection.data()?),
        };
        let config = config.map_err(|mistakes| Failure::Configuration(mistakes.to_string()))?;
        let recovered = recover(&config, self.generation, &self.reason, Arc::new(SystemClock)).await;
        let Recovered { store, before, generation } = recovered.map_err(|why| match why {
            StartError::Configuration(why) => Failure::Input(why),
            StartError::Failed(why) => Failure::Stopped(why),
        })?;
        say(&match output {
            Output::Json => json!({"store": store, "generation": generation, "before": before}).to_string(),
            Output::Text => facts(&[
                ("store", store),
                ("generation", format!("{generation}, it was {before}: everything older is dead")),
            ]),
        });
        Ok(())
    }
}
