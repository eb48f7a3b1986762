//! `remit keys …`

use clap::Subcommand;
use serde_json::json;

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    show::{self, say},
};
use crate::{clock::Clock, jose::Thumbprint};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// List the signing keys of all brokers on the store.
    List,
    /// Prepare the next signing keys of the broker that is called. They sign once every verifier can know them, and the old ones stay
    /// published until the last that they signed has expired. A key for RS256 was imported, and is replaced by hand.
    Rotate {
        /// Why: for the audit.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Taint a signing key that may be in other hands, of whichever broker: nothing that it signed is believed any more, and its
    /// broker signs with another. There is no way back.
    Taint {
        /// The key, by its id in `remit keys list`.
        #[arg(value_name = "KID", allow_hyphen_values = true, value_parser = key_id)]
        kid: Thumbprint,
        /// Why: for the audit.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

fn key_id(text: &str) -> Result<Thumbprint, String> {
    text.to_owned()
        .try_into()
        .map_err(|_| "not the id of a key: 43 characters of base64url, as in `remit keys list`".into())
}

impl KeysCommand {
    pub(super) async fn run(self, connection: &Connection, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
        let client = connection.operator().await?;
        let because = |reason: Option<String>| reason.map_or_else(|| json!({}), |reason| json!({"reason": reason}));
        let answer = match self {
            KeysCommand::List => client.get("/v1/keys", &[]).await?,
            KeysCommand::Rotate { reason } => client.post("/v1/keys/rotate", &because(reason)).await?,
            KeysCommand::Taint { kid, reason } => {
                client.post(&format!("/v1/keys/{kid}/taint"), &because(reason)).await?
            }
        };
        say(&match output {
            Output::Json => answer.text,
            Output::Text => show::keys(&answer.json, clock.now()),
        });
        Ok(())
    }
}
