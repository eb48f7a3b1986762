//! `remit lease …`

use clap::Subcommand;
use serde_json::json;

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    show::{self, say},
};
use crate::{
    clock::Clock,
    id::{LeaseId, TaskId},
};

#[derive(Debug, Subcommand)]
pub(super) enum LeaseCommand {
    /// Revoke one credential. Its task and the others of it go on.
    #[command(after_help = EXAMPLES)]
    Revoke {
        /// The `jti` of a token, or the serial of a certificate.
        #[arg(value_name = "ID")]
        lease: LeaseId,
        /// Why: for the audit, and for whoever looks at the task next.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The task that it is of, where that is known: then it is found however many tasks there are.
        #[arg(long)]
        task: Option<TaskId>,
    },
}

const EXAMPLES: &str = "Examples:
  remit find - < token.txt                                   which credential it is, and of which task
  remit lease revoke 0af7651916cd43dd8448eb211c80319c --reason 'seen in a build log'

A status list does not show it, because a task has one place there for all its tokens: `remit task revoke` reaches those that go by it.
It ends with code 4 where the store is out of reach: this broker denies it, and tells the store as soon as that answers.";

impl LeaseCommand {
    pub(super) async fn run(self, connection: &Connection, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
        let LeaseCommand::Revoke { lease, reason, task } = self;
        let mut body = json!({ "reason": reason });
        if let Some(task) = task {
            body["task"] = json!(task);
        }
        let answer = connection.operator().await?.post(&format!("/v1/leases/{lease}/revoke"), &body).await?;
        say(&match output {
            Output::Json => answer.text,
            Output::Text => show::revoked_lease(&answer.json, clock.now()),
        });
        if answer.json["state"] == "revoking" { Err(Failure::Pending) } else { Ok(()) }
    }
}
