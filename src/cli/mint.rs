//! `remit mint …`

mod cert;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Output, connection::Connection, exit::Failure, show::say};
use crate::{
    id::{Location, TaskId},
    task::{CredentialType, Privilege},
};

#[derive(Debug, Subcommand)]
pub(super) enum MintCommand {
    /// Print a token for one service and one privilege.
    #[command(after_help = EXAMPLES)]
    Token(Token),
    /// Make a key and get a certificate for it whose one name is the task (an X.509-SVID).
    #[command(after_help = cert::EXAMPLES)]
    Cert(cert::Cert),
}

const EXAMPLES: &str = "Example:
  TOKEN=$(remit mint token TASK --resource https://git.example.com --privilege read)";

/// One credential.
#[derive(Debug, Args)]
pub(super) struct Token {
    /// The task it is for.
    task: TaskId,
    /// The service it is for: becomes the token's audience, byte for byte.
    #[arg(long, value_name = "URI")]
    resource: Location,
    /// What to do there: read, write or secret.
    #[arg(long)]
    privilege: Privilege,
    /// An access token (RFC 9068) or a JWT-SVID.
    #[arg(long = "type", value_enum, default_value_t = Form::AccessToken)]
    form: Form,
    /// Its lifetime [default: policy's]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
}

/// [`CredentialType`] in the words of the wire, which have an underscore.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    #[value(name = "access_token")]
    AccessToken,
    Jwt,
}

impl MintCommand {
    pub(super) async fn run(self, connection: &Connection, output: Output) -> Result<(), Failure> {
        let token = match self {
            MintCommand::Token(token) => token,
            MintCommand::Cert(cert) => return cert.run(connection, output).await,
        };
        let form = match token.form {
            Form::AccessToken => CredentialType::AccessToken,
            Form::Jwt => CredentialType::Jwt,
        };
        let mut wanted = json!({"resource": token.resource, "privilege": token.privilege, "type": form});
        if let Some(ttl) = token.ttl {
            wanted["ttl"] = ttl.into();
        }
        let path = format!("/v1/tasks/{}/credentials", token.task);
        let answer = connection.workload().await?.post(&path, &json!({ "credentials": [wanted] })).await?;
        if output == Output::Json {
            say(&answer.text);
            return Ok(());
        }
        say(first_token(&answer.json)?);
        Ok(())
    }
}

/// The token of the first credential in an answer.
pub(super) fn first_token(answer: &Value) -> Result<&str, Failure> {
    answer["credentials"][0]["access_token"]
        .as_str()
        .ok_or_else(|| Failure::OutOfReach("the answer holds no token: is this a broker?".to_owned()))
}
