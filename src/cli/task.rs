//! `remit task …`

mod reach;
mod report;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::{io::Read as _, path::PathBuf, str::FromStr, time::Duration};
use zeroize::Zeroizing;

use reach::Waiting;

use super::{
    Output,
    client::Answer,
    connection::Connection,
    exit::Failure,
    show::{self, say},
    timeline,
};
use crate::{
    clock::Clock,
    id::{Location, TaskId},
    secret_file,
    task::{CredentialType, Privilege},
};

/// How soon a stream that ended is asked for again.
const AGAIN: Duration = Duration::from_secs(1);
/// The most that is read of a declaration; the broker takes less.
const MAX_DECLARATION: u64 = 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum TaskCommand {
    /// Declare the task that is about to be done, and get credentials for it.
    #[command(after_help = DECLARE_EXAMPLES)]
    Declare(Box<Declare>),
    /// Show one task.
    Show {
        /// The task.
        task: TaskId,
    },
    /// List tasks: an operator sees all, a workload its own.
    List {
        /// Only those in this state: active, completed, revoked or expired.
        #[arg(long)]
        state: Option<String>,
        /// Only those of this owner.
        #[arg(long)]
        owner: Option<String>,
        /// Only those of this workload, by its SPIFFE ID.
        #[arg(long, value_name = "ID")]
        workload: Option<String>,
        /// Only those in this sandbox.
        #[arg(long)]
        sandbox: Option<String>,
        /// How many, at most.
        #[arg(long)]
        limit: Option<u32>,
        /// Where to go on: what the page before said.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Give a task that is not done yet a later deadline, within policy.
    Renew {
        /// The task.
        task: TaskId,
        /// How long it is to live from now [default: as long as it was declared for]
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u32>,
        /// Where to write the next task token (0600) [default: where --evidence task-token:FILE took it from]
        #[arg(long, value_name = "FILE")]
        task_token: Option<PathBuf>,
    },
    /// Put on record what was done for a task: a tool call, a prompt.
    #[command(after_help = report::EXAMPLES)]
    Report(report::Report),
    /// Follow a task: a line for how it stands, one for every change, until it has ended.
    #[command(after_help = WATCH_EXAMPLES)]
    Watch {
        /// The task.
        task: TaskId,
    },
    /// Tell what happened to a task and everything below it, on all brokers.
    #[command(after_help = TIMELINE_EXAMPLES)]
    Timeline {
        /// The task.
        task: TaskId,
    },
    /// End a task that is done. Its credentials die with it.
    Complete {
        /// The task.
        task: TaskId,
    },
    /// Stop a task, and every credential of it.
    Revoke {
        /// The task.
        task: TaskId,
        /// Why: for the audit, and for whoever looks at the task next.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Say where the end of a task has arrived, and by when it has everywhere.
    #[command(after_help = REACH_EXAMPLES)]
    Reach {
        /// The task.
        task: TaskId,
        #[command(flatten)]
        waiting: Waiting,
    },
}

const REACH_EXAMPLES: &str = "Examples:
  remit task reach TASK                                   what is dead, class by class
  remit task reach TASK --wait --timeout 15 && echo dead  until nothing of it is accepted anywhere

It ends with code 0 only where every line is done, and with 4 where one is not.";

const TIMELINE_EXAMPLES: &str = "Examples:
  remit task timeline TASK
  remit task timeline TASK --output json | jq '.events[] | select(.event == \"refused_after_end\")'

RECORD names the line of the broker's audit log that says so: `remit audit show DIR` prints it.";

const WATCH_EXAMPLES: &str = "Examples:
  remit task watch TASK && kill $AGENT           stop an agent as soon as its task has ended
  remit task watch TASK --output json            the task as JSON, a line at every change

It ends with code 0 when the task has ended, however it did.";

const DECLARE_EXAMPLES: &str = "Examples:
  remit task declare --purpose 'Fix the flaky test' --owner team-payments@example.com \\
    --access https://git.example.com=read,write --credential https://git.example.com=read --ttl 900
  remit task declare --file task.json        the body of POST /v1/tasks; `-` reads standard input

Tokens stand in the answer of `--output json` alone; `remit mint token TASK` prints one.";

/// A declaration, as a file or in options.
#[derive(Debug, Args)]
pub(super) struct Declare {
    /// The declaration in JSON; `-` reads it from standard input.
    #[arg(long, conflicts_with_all = FIELDS)]
    file: Option<PathBuf>,
    /// What the task is for.
    #[arg(long, value_name = "TEXT", required_unless_present = "file")]
    purpose: Option<String>,
    /// Who is accountable for it.
    #[arg(long, required_unless_present = "file")]
    owner: Option<String>,
    /// What it needs: a service and privileges (read, write, secret); repeatable.
    #[arg(long, value_name = "LOCATION=PRIVILEGE,…", required_unless_present = "file")]
    access: Vec<Access>,
    /// A credential to mint at once, `:jwt` for a JWT-SVID; repeatable.
    #[arg(long, value_name = "LOCATION=PRIVILEGE[:jwt]")]
    credential: Vec<Wanted>,
    /// Its lifetime [default: policy's]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
    /// Go on with what is granted when something is refused.
    #[arg(long)]
    partial: bool,
    /// The sandbox it runs in.
    #[arg(long)]
    sandbox: Option<String>,
    /// Where it runs: staging, production, …
    #[arg(long)]
    environment: Option<String>,
    /// The repository it works on.
    #[arg(long)]
    repo: Option<String>,
    /// The branch it works on.
    #[arg(long)]
    branch: Option<String>,
    /// The command it runs.
    #[arg(long)]
    command: Option<String>,
    /// How sensitive its data is.
    #[arg(long)]
    data_classification: Option<String>,
    /// Where to write the task token (0600), with --key: it stands for the evidence (--evidence task-token:FILE).
    #[arg(long, value_name = "FILE")]
    task_token: Option<PathBuf>,
    /// A retry with the same key gets the same task.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

const FIELDS: [&str; 12] = [
    "purpose",
    "owner",
    "access",
    "credential",
    "ttl",
    "partial",
    "sandbox",
    "environment",
    "repo",
    "branch",
    "command",
    "data_classification",
];

/// `LOCATION=read,write`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Access {
    location: Location,
    privileges: Vec<Privilege>,
}

impl FromStr for Access {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (location, privileges) = split(text)?;
        let privileges = privileges.split(',').map(privilege).collect::<Result<_, _>>()?;
        Ok(Self { location, privileges })
    }
}

/// `LOCATION=read` or `LOCATION=read:jwt`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    location: Location,
    privilege: Privilege,
    form: CredentialType,
}

impl FromStr for Wanted {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (location, rest) = split(text)?;
        let (word, form) = match rest.split_once(':') {
            None => (rest, CredentialType::AccessToken),
            Some((word, "access_token")) => (word, CredentialType::AccessToken),
            Some((word, "jwt")) => (word, CredentialType::Jwt),
            Some(_) => return Err("a credential is an `access_token` or a `jwt`".to_owned()),
        };
        Ok(Self { location, privilege: privilege(word)?, form })
    }
}

/// A location may hold `=`; a privilege never does.
fn split(text: &str) -> Result<(Location, &str), String> {
    let (location, rest) = text.rsplit_once('=').ok_or("expected LOCATION=PRIVILEGE")?;
    Ok((location.parse().map_err(|rule: crate::id::Malformed| rule.to_string())?, rest))
}

fn privilege(word: &str) -> Result<Privilege, String> {
    word.parse().map_err(|rule: crate::id::Malformed| rule.to_string())
}

impl Declare {
    fn body(&self) -> Result<Value, Failure> {
        if let Some(file) = &self.file {
            return read(file);
        }
        let details: Vec<_> = self
            .access
            .iter()
            .map(|access| {
                json!({"type": "remit:access", "locations": [access.location], "privileges": access.privileges})
            })
            .collect();
        let credentials: Vec<_> = self
            .credential
            .iter()
            .map(|wanted| json!({"resource": wanted.location, "privilege": wanted.privilege, "type": wanted.form}))
            .collect();
        let context =
            members([("repo", json!(self.repo)), ("branch", json!(self.branch)), ("command", json!(self.command))]);
        Ok(members([
            ("purpose", json!(self.purpose)),
            ("owner", json!(self.owner)),
            ("environment", json!(self.environment)),
            ("sandbox", json!(self.sandbox)),
            ("data_classification", json!(self.data_classification)),
            ("context", context),
            ("authorization_details", json!(details)),
            ("ttl", json!(self.ttl)),
            ("partial", json!(self.partial)),
            ("credentials", json!(credentials)),
        ]))
    }
}

/// An object without the members that were not given.
fn members<const N: usize>(members: [(&str, Value); N]) -> Value {
    let given = members.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(given.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// Whether it is a declaration is for the broker to say; that it is JSON without repeated members is checked here, so that
/// what is sent is what was read.
fn read(file: &PathBuf) -> Result<Value, Failure> {
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_DECLARATION).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_DECLARATION).read_to_end(&mut bytes))
    };
    let name = file.display();
    read.map_err(|error| Failure::Input(format!("{name}: {error}")))?;
    crate::jose::strict_json(&bytes).map_err(|crate::jose::Invalid(why)| Failure::Input(format!("{name}: {why}")))
}

impl TaskCommand {
    pub(super) async fn run(self, connection: &Connection, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
        if let TaskCommand::Watch { task } = &self {
            return watch(task, connection, output, clock).await;
        }
        if let TaskCommand::Reach { task, waiting } = &self {
            return waiting.reach(task, connection, output, clock).await;
        }
        let answer = self.call(connection).await?;
        self.keep_task_token(connection, &answer.json)?;
        let (body, now) = (&answer.json, clock.now());
        let is_pending = body["state"] == "revoking";
        let done = || if is_pending { Err(Failure::Pending) } else { Ok(()) };
        if output == Output::Json {
            say(&answer.text);
            return self.wait(connection, output, clock).await.unwrap_or_else(done);
        }
        say(&match self {
            TaskCommand::Declare(_)
            | TaskCommand::Show { .. }
            | TaskCommand::Renew { .. }
            | TaskCommand::Watch { .. }
            | TaskCommand::Complete { .. } => show::task(body, now),
            TaskCommand::List { .. } => show::tasks(body, now),
            TaskCommand::Timeline { .. } => timeline::story(body),
            TaskCommand::Report(_) => show::reported(body),
            TaskCommand::Revoke { .. } | TaskCommand::Reach { .. } => show::revoked(body, now),
        });
        self.wait(connection, output, clock).await.unwrap_or_else(done)
    }

    /// Waits until a revoke has arrived everywhere, where that is asked for.
    async fn wait(&self, connection: &Connection, output: Output, clock: &dyn Clock) -> Option<Result<(), Failure>> {
        let TaskCommand::Revoke { task, waiting, .. } = self else { return None };
        if waiting.is_asked() { Some(waiting.reach(task, connection, output, clock).await) } else { None }
    }

    /// Writes the task token of an answer to the file that is for it.
    fn keep_task_token(&self, connection: &Connection, answer: &Value) -> Result<(), Failure> {
        let file = match self {
            TaskCommand::Declare(declare) => declare.task_token.as_deref(),
            TaskCommand::Renew { task_token, .. } => task_token.as_deref().or_else(|| connection.task_token_file()),
            TaskCommand::Show { .. }
            | TaskCommand::List { .. }
            | TaskCommand::Timeline { .. }
            | TaskCommand::Report(_)
            | TaskCommand::Watch { .. }
            | TaskCommand::Complete { .. }
            | TaskCommand::Revoke { .. }
            | TaskCommand::Reach { .. } => None,
        };
        match (file, answer["task_token"].as_str()) {
            (Some(file), Some(token)) => {
                let token = Zeroizing::new(token.to_owned());
                secret_file::overwrite(file, &token).map_err(Failure::Input)
            }
            (Some(_), None) => {
                Err(Failure::Input("there is no task token without a key: name one with --key".to_owned()))
            }
            (None, _) => Ok(()),
        }
    }

    async fn call(&self, connection: &Connection) -> Result<Answer, Failure> {
        match self {
            TaskCommand::Declare(declare) => {
                let (client, body) = (connection.workload().await?, declare.body()?);
                match &declare.idempotency_key {
                    Some(key) => client.post_once("/v1/tasks", &body, key).await,
                    None => client.post("/v1/tasks", &body).await,
                }
            }
            TaskCommand::Show { task } | TaskCommand::Watch { task } => {
                connection.operator().await?.get(&format!("/v1/tasks/{task}"), &[]).await
            }
            TaskCommand::Timeline { task } => {
                connection.operator().await?.get(&format!("/v1/tasks/{task}/timeline"), &[]).await
            }
            TaskCommand::List { state, owner, workload, sandbox, limit, cursor } => {
                let limit = limit.map(|limit| limit.to_string());
                let query = [("state", state), ("owner", owner), ("workload", workload), ("sandbox", sandbox)];
                let query = query.into_iter().chain([("limit", &limit), ("cursor", cursor)]);
                let query: Vec<_> = query.filter_map(|(name, value)| Some((name, value.clone()?))).collect();
                connection.operator().await?.get("/v1/tasks", &query).await
            }
            TaskCommand::Renew { task, ttl, .. } => {
                let body = members([("ttl", json!(ttl))]);
                connection.workload().await?.post(&format!("/v1/tasks/{task}/renew"), &body).await
            }
            TaskCommand::Report(report) => {
                let (task, body) = (&report.task, report.body()?);
                connection.workload().await?.post(&format!("/v1/tasks/{task}/reports"), &body).await
            }
            TaskCommand::Complete { task } => {
                connection.workload().await?.post(&format!("/v1/tasks/{task}/complete"), &json!({})).await
            }
            TaskCommand::Reach { task, .. } => {
                connection.operator().await?.get(&format!("/v1/tasks/{task}/reach"), &[]).await
            }
            TaskCommand::Revoke { task, reason, .. } => {
                let body = json!({ "reason": reason });
                connection.operator().await?.post(&format!("/v1/tasks/{task}/revoke"), &body).await
            }
        }
    }
}

/// Says how the task stands at every change, until it has ended.
async fn watch(task: &TaskId, connection: &Connection, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
    loop {
        // The evidence is read again each time: the stream ends when it has run out.
        let mut events = connection.operator().await?.events(&format!("/v1/tasks/{task}")).await?;
        while let Some(event) = events.next().await? {
            match output {
                Output::Json => say(&event.text),
                Output::Text => say(&show::turn(&event.json, clock.now())),
            }
            if event.json["state"] != "active" && event.json["state"] != "pending_approval" {
                return Ok(());
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::Cli, task::Declaration};
    use clap::Parser as _;

    #[test]
    fn access_is_a_location_and_its_privileges() {
        let access: Access = "https://git.example.com/?a=b=read,write".parse().unwrap();
        assert_eq!(access.location.as_str(), "https://git.example.com/?a=b");
        assert_eq!(access.privileges, [Privilege::Read, Privilege::Write]);
        for bad in
            ["", "https://git.example.com", "https://git.example.com=", "https://h=own", "h=read", "https://h=read,"]
        {
            assert!(bad.parse::<Access>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_credential_is_a_location_a_privilege_and_a_form() {
        let form = |text: &str| text.parse::<Wanted>().map(|wanted| (wanted.privilege, wanted.form));
        assert_eq!(form("http://127.0.0.1:9=read"), Ok((Privilege::Read, CredentialType::AccessToken)));
        assert_eq!(form("http://127.0.0.1:9=write:jwt"), Ok((Privilege::Write, CredentialType::Jwt)));
        assert!(form("http://127.0.0.1:9=read:x509").is_err());
        assert!(form("http://127.0.0.1:9=read,write").is_err());
    }

    #[test]
    fn options_make_a_declaration_that_the_broker_takes() {
        let words = "remit task declare --purpose p --owner o --access https://a=read --credential https://a=read:jwt \
                     --ttl 60 --sandbox s --repo r --data-classification internal";
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let super::super::Command::Task(TaskCommand::Declare(declare)) = cli.command else { panic!("another command") };
        let declaration: Declaration = serde_json::from_value(declare.body().unwrap()).unwrap();
        declaration.validate().unwrap();
        assert_eq!(declaration.context.repo.as_deref(), Some("r"));
        assert_eq!(declaration.credentials[0].kind, CredentialType::Jwt);
    }

    #[test]
    fn a_file_stands_for_itself() {
        assert!(Cli::try_parse_from(["remit", "task", "declare", "--file", "a", "--ttl", "1"]).is_err());
        assert!(Cli::try_parse_from(["remit", "task", "declare", "--purpose", "p"]).is_err());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("task.json");
        std::fs::write(&path, r#"{"purpose": "p", "purpose": "q"}"#).unwrap();
        assert!(matches!(read(&path), Err(Failure::Input(_))));
    }
}
