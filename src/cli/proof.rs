//! `remit proof`

use clap::Args;
use secrecy::ExposeSecret;
use std::path::PathBuf;
use url::Url;

use super::{
    connection::{Connection, token_in},
    exit::Failure,
    show::say,
};

/// Prints the header `DPoP` for one request, to be sent within a minute, once.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ProofCommand {
    /// Where the request goes, as the service knows itself; query and fragment do not count.
    #[arg(value_name = "URL")]
    to: Url,
    /// The method of the request.
    #[arg(long, default_value = "GET")]
    method: String,
    /// A file with the token that the request presents. Left out at a token endpoint.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// What the server asked for in its `DPoP-Nonce`.
    #[arg(long)]
    nonce: Option<String>,
}

const EXAMPLES: &str = "Examples:
  curl https://git.example.com/acme -H \"authorization: DPoP $(cat token)\" \\
    -H \"dpop: $(remit proof https://git.example.com/acme --key agent.key --token-file token)\"
  remit proof http://127.0.0.1:8420/oauth2/token --method POST --key agent.key
                                             for a broker: its issuer and the path, on its socket too";

impl ProofCommand {
    pub(super) fn run(self, connection: &Connection) -> Result<(), Failure> {
        let Self { mut to, method, token_file, nonce } = self;
        let holder =
            connection.holder()?.ok_or_else(|| Failure::Input("which key? Name its file with --key".to_owned()))?;
        to.set_query(None);
        to.set_fragment(None);
        let token = token_file.map(|file| token_in(&file)).transpose()?;
        let token = token.as_ref().map(ExposeSecret::expose_secret);
        say(&holder.proof(&method, to.as_str(), token, nonce.as_deref())?);
        Ok(())
    }
}
