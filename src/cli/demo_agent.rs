//! The agent of `remit demo`: a process of its own that holds no secret, takes an order a line and reports what happened.
//! Its tokens never leave it but to the service they are for.

use clap::Args;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{path::PathBuf, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{
    client::{Caller, Client, Target},
    exit::Failure,
    mint::first_token,
    show::{say, text},
};
use crate::id::Location;

/// The other side of `remit demo`.
#[derive(Debug, Args)]
pub(super) struct DemoAgent {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    resource: Location,
}

/// What an agent is told to do.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Declare the task and mint, in one call.
    Declare,
    /// Call the service with the token.
    Call,
    /// Ask for secrets, which it should not get.
    AskForSecret,
    /// Mint once more.
    Mint,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// There is a task, and a token for it.
    Declared { task: String, workload: String },
    /// There is another token.
    Minted,
    /// The service answered.
    Answered { status: u16 },
    /// The broker refused.
    Refused { status: u16, code: String, policies: Vec<String> },
    /// Nobody answered.
    Failed { why: String },
}

/// What an agent keeps in memory: a task, and a token for it.
struct Held {
    task: String,
    token: SecretString,
}

impl DemoAgent {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let broker = Client::new(Target::Unix(self.socket.clone()), Caller::Kernel, None)?;
        let target = self.resource.as_str().parse().map_err(|rule: &str| Failure::Input(rule.to_owned()))?;
        let service = Client::new(target, Caller::Evidence, None)?;
        let mut held = None;
        // Waiting for an order is all there is to do meanwhile, so that it may block.
        for line in std::io::stdin().lines() {
            let line = line.map_err(|error| Failure::Stopped(error.to_string()))?;
            let order = serde_json::from_str(&line).map_err(|error| Failure::Input(error.to_string()))?;
            let report = match self.obey(order, [&broker, &service], &mut held).await {
                Ok(report) => report,
                Err(Failure::Answered(problem)) => {
                    let policies =
                        problem.said.denied.iter().filter_map(|denied| denied["policies"].as_array()).flatten();
                    Report::Refused {
                        status: problem.status,
                        policies: policies.filter_map(|policy| policy.as_str().map(str::to_owned)).collect(),
                        code: problem.said.code,
                    }
                }
                Err(failure) => Report::Failed { why: failure.text() },
            };
            say(&json!(report).to_string());
        }
        Ok(())
    }

    async fn obey(
        &self,
        order: Order,
        [broker, service]: [&Client; 2],
        held: &mut Option<Held>,
    ) -> Result<Report, Failure> {
        let wanted = json!([{"resource": self.resource, "privilege": "read"}]);
        match (order, held) {
            (Order::Declare, held) => {
                let mut body = self.declaration("Summarise the notes of this week", &["read", "write"]);
                body["credentials"] = wanted;
                let answer = broker.post("/v1/tasks", &body).await?.json;
                let (task, workload) = (text(&answer, "task"), text(&answer, "workload"));
                *held = Some(Held { task: task.clone(), token: first_token(&answer)?.into() });
                Ok(Report::Declared { task, workload })
            }
            (Order::AskForSecret, _) => {
                broker.post("/v1/tasks", &self.declaration("Read the deploy keys", &["secret"])).await?;
                Ok(Report::Minted)
            }
            (Order::Call, Some(held)) => call(service, held).await,
            (Order::Mint, Some(held)) => {
                let path = format!("/v1/tasks/{}/credentials", held.task);
                let answer = broker.post(&path, &json!({ "credentials": wanted })).await?;
                held.token = first_token(&answer.json)?.into();
                Ok(Report::Minted)
            }
            (Order::Call | Order::Mint, None) => Err(Failure::Input("there is no task yet".to_owned())),
        }
    }

    fn declaration(&self, purpose: &str, privileges: &[&str]) -> serde_json::Value {
        json!({
            "purpose": purpose,
            "owner": "team-notes@example.com",
            "sandbox": "demo",
            "authorization_details": [
                {"type": "remit:access", "locations": [self.resource], "privileges": privileges}
            ],
        })
    }
}

/// Any HTTP client will do; what counts is the token.
async fn call(service: &Client, held: &Held) -> Result<Report, Failure> {
    match service.with_bearer(held.token.clone()).get("/notes", &[]).await {
        Ok(_) => Ok(Report::Answered { status: 200 }),
        Err(Failure::Answered(problem)) => Ok(Report::Answered { status: problem.status }),
        Err(failure) => Err(failure),
    }
}

/// An agent, seen from the process that started it.
pub(super) struct Agent {
    process: Child,
    orders: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    /// Starts the agent with an empty environment: there is nothing it could have been given.
    pub(super) fn start(socket: &std::path::Path, resource: &Location) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::Stopped(format!("the agent did not start: {error}"));
        let mut process = Command::new(std::env::current_exe().map_err(failed)?)
            .arg("demo-agent")
            .arg("--socket")
            .arg(socket)
            .args(["--resource", resource.as_str()])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(orders), Some(out)) => Ok(Self { process, orders, reports: BufReader::new(out).lines() }),
            _ => Err(Failure::Stopped("the agent has no pipes".to_owned())),
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.process.id().unwrap_or_default()
    }

    /// Has an order carried out.
    pub(super) async fn order(&mut self, order: Order) -> Result<Report, Failure> {
        let gone = |why: String| Failure::Stopped(format!("the agent is gone: {why}"));
        let line = format!("{}\n", json!(order));
        self.orders.write_all(line.as_bytes()).await.map_err(|error| gone(error.to_string()))?;
        match self.reports.next_line().await {
            Ok(Some(line)) => serde_json::from_str(&line).map_err(|error| gone(error.to_string())),
            Ok(None) => Err(gone("it closed its output".to_owned())),
            Err(error) => Err(gone(error.to_string())),
        }
    }
}
