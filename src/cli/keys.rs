//! `remit keys …`

use clap::Subcommand;
use serde_json::json;

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    show::{self, say},
};
use crate::clock::Clock;

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// List the signing keys of all brokers on the store.
    List,
    /// Prepare the next signing keys of the broker that is called. They sign once every verifier can know them, and the old ones stay
    /// published until the last that they signed has expired.
    Rotate {
        /// Why: for the audit.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

impl KeysCommand {
    pub(super) async fn run(self, connection: &Connection, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
        let client = connection.operator().await?;
        let answer = match self {
            KeysCommand::List => client.get("/v1/keys", &[]).await?,
            KeysCommand::Rotate { reason } => {
                let body = reason.map_or_else(|| json!({}), |reason| json!({"reason": reason}));
                client.post("/v1/keys/rotate", &body).await?
            }
        };
        say(&match output {
            Output::Json => answer.text,
            Output::Text => show::keys(&answer.json, clock.now()),
        });
        Ok(())
    }
}
