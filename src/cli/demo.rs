//! `remit demo`: the whole story, against a real broker. Nothing in it is simulated: the broker keeps a store on disk, the
//! agent is a process that the kernel vouches for, the service checks every call.

use clap::Args;
use secrecy::SecretString;
use serde_json::json;
use std::{
    io::{IsTerminal as _, stdout},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

use super::{
    client::{Caller, Client, Target},
    connection::token_in,
    demo_agent::{Agent, Order, Report},
    demo_service::{Bound, Service},
    exit::Failure,
    show::{program, quoted, say, span},
};
use crate::{
    clock::{Clock as _, SystemClock},
    config::{Config, Development},
    id::{Location, TaskId, hex, random, sha256_hex},
    jose::SigningAlgorithm,
    party::{Binding, Revocation, ServiceConfig, StatusMode},
    serve::{Running, Signals, start},
};

/// A broker, an agent, a service and a security team, on this machine and for a moment.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Leave broker and service running, and print what to paste, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let dir = tempfile::Builder::new().prefix("remit-demo-").tempdir().map_err(|error| stopped(&error))?;
        // An interrupted demo leaves nothing behind: the directory goes when this function is left.
        tokio::select! {
            done = story(dir.path(), self.keep) => done,
            signal = tokio::signal::ctrl_c(), if !self.keep => {
                signal.map_err(|error| stopped(&error))?;
                Err(Failure::Stopped("interrupted".to_owned()))
            }
        }
    }
}

fn stopped(error: &dyn std::fmt::Display) -> Failure {
    Failure::Stopped(error.to_string())
}

async fn story(dir: &Path, keep: bool) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|why| stopped(&why))?;
    let mut stage = Stage::new();
    let world = World::start(dir, &mut stage).await?;
    let mut agent = Agent::start(&world.socket, &world.audience)?;
    let task = work(&mut agent, &mut stage).await?;
    let revoke = end(&world, &task, &mut agent, &mut stage).await?;
    aftermath(&world, &mut agent, &mut stage).await?;
    stage.finish(revoke);
    drop(agent);
    if keep {
        say(&world.to_paste());
        signals.received().await;
    }
    world.running.stop().await;
    world.service.stop().await;
    Ok(())
}

/// The agent does what it is there for, and tries one thing that it is not.
async fn work(agent: &mut Agent, stage: &mut Stage) -> Result<TaskId, Failure> {
    stage.act("An agent starts. It holds no secret; the kernel says what it is");
    let report = agent.order(Order::Declare).await?;
    let Report::Declared { task, workload } = &report else { return Err(unexpected("declare", &report)) };
    stage.done(&format!("process {} is {workload}", agent.pid()));
    more(&format!("declared {task} and got a token to read notes, in one call"));

    let report = agent.order(Order::Call).await?;
    let Report::Answered { status: 200 } = report else { return Err(unexpected("call", &report)) };
    stage.done("called the service: 200, by the broker's public keys and its word that the token is active");

    let report = agent.order(Order::AskForSecret).await?;
    let Report::Refused { status: 403, code, policies } = &report else {
        return Err(unexpected("ask for secrets", &report));
    };
    let by = if policies.is_empty() { "no policy permits it".to_owned() } else { policies.join(", ") };
    stage.done(&format!("asked for the service's secrets: 403 {code} ({by})"));
    task.parse().map_err(|why| stopped(&format!("{why}: {task}")))
}

/// The security team ends the task. Returns how long it took from the first octet of the revoke to the first rejection.
async fn end(world: &World, task: &TaskId, agent: &mut Agent, stage: &mut Stage) -> Result<Duration, Failure> {
    stage.act("The security team does not like what it sees");
    let live = world.operator.get("/v1/tasks", &[]).await?.json;
    let seen = live["tasks"].as_array().into_iter().flatten().find(|seen| seen["task"] == task.as_str());
    let owner = seen.and_then(|seen| seen["owner"].as_str()).ok_or_else(|| stopped(&"the task is not listed"))?;
    stage.done(&format!("listed the live tasks: {task}, owner {owner}"));
    let revoking = Instant::now();
    let path = format!("/v1/tasks/{task}/revoke");
    let revoked = world.operator.post(&path, &json!({"reason": "demo: it asked for secrets"})).await?.json;
    let count = |member: &str| revoked[member].as_u64().unwrap_or_default();
    stage.done(&format!("revoked it by its id: {} task, {} credential", count("ended_tasks"), count("credentials")));
    let called = agent.order(Order::Call).await?;
    let rejected = revoking.elapsed();
    let Report::Answered { status: 401 } = called else { return Err(unexpected("call", &called)) };
    stage.done("the agent called again: 401");
    Ok(rejected)
}

/// What is left of the task: nothing, except to those who only look at signatures.
async fn aftermath(world: &World, agent: &mut Agent, stage: &mut Stage) -> Result<(), Failure> {
    let report = agent.order(Order::Mint).await?;
    let Report::Refused { status: 409, code, .. } = &report else { return Err(unexpected("mint", &report)) };
    stage.done(&format!("the agent asked for a new token: 409 {code}"));
    if world.service.introspect_last().await? {
        return Err(stopped(&"introspection still says that the token is active"));
    }
    stage.done("introspection of the old token: {\"active\": false}");
    let now = SystemClock.now();
    let until = world.service.accepted_by_keys_until(now);
    stage.done(&match until {
        Some(exp) => {
            format!("a service that only checks signatures would still accept it for {}", span(exp - now))
        }
        None => "even a service that only checks signatures refuses it: it has expired".to_owned(),
    });
    more("so ask the broker where it matters, and keep tokens short elsewhere");
    Ok(())
}

fn unexpected(what: &str, report: &Report) -> Failure {
    Failure::Stopped(format!("the agent was to {what}, and reports {}", json!(report)))
}

/// Everything but the agent.
struct World {
    dir: PathBuf,
    socket: PathBuf,
    audience: Location,
    http: SocketAddr,
    running: Running,
    service: Service,
    operator: Client,
}

impl World {
    async fn start(dir: &Path, stage: &mut Stage) -> Result<Self, Failure> {
        stage.act("A broker and a service start");
        let bound = Bound::new().await?;
        let audience = bound.audience.clone();
        let token = service_token(&dir.join("service.token"))?;
        let settings = Development {
            data: dir.to_owned(),
            keys: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            store: None,
        };
        let mut config = Config::development(settings).map_err(|mistakes| stopped(&mistakes))?;
        config.services.push(ServiceConfig {
            name: "notes".to_owned(),
            audiences: vec![audience.clone()],
            binding: Binding::None,
            revocation: Revocation::Introspection,
            algorithm: SigningAlgorithm::ES256,
            token_sha256: vec![sha256_hex(token.as_bytes())],
            public_key_sha256: Vec::new(),
            reports: false,
            freshness: None,
            status: StatusMode::Task,
        });
        let running = start(config, Arc::new(SystemClock)).await.map_err(|why| stopped(&why))?;
        let http = running.http.ok_or_else(|| stopped(&"the broker does not listen for HTTP"))?;
        stage.done(&format!("broker at http://{http}, with a store and an audit log in {}", dir.display()));
        let service = bound.serve(&format!("http://{http}"), SecretString::from(token)).await?;
        stage.done(&format!("service at {audience}, with the broker's public keys"));
        let socket = running.socket.clone().ok_or_else(|| stopped(&"the broker has no Unix socket"))?;
        let token = token_in(&dir.join("operator.token"))?;
        let operator = Client::new(Target::Unix(socket.clone()), Caller::Operator, Some(token))?;
        Ok(Self { dir: dir.to_owned(), socket, audience, http, running, service, operator })
    }

    /// What `--keep` leaves a person with.
    fn to_paste(&self) -> String {
        let (remit, audience) = (program(), &self.audience);
        let file = |name: &str| quoted(&self.dir.join(name).to_string_lossy());
        let (socket, operator, service) = (file("remit.sock"), file("operator.token"), file("service.token"));
        let http = self.http;
        format!(
            "
Broker and service stay until Ctrl-C. In another terminal, as an agent:

  export REMIT_URL=unix:{socket}
  TASK=$({remit} task declare --purpose 'Have a look' --owner me@example.com --access {audience}=read \\
    --output json | grep -o 'task_[0-9a-z]*' | head -n 1)
  TOKEN=$({remit} mint token $TASK --resource {audience} --privilege read)
  curl -i {audience}/notes -H \"authorization: Bearer $TOKEN\"

As the security team, and then the same curl again:

  {remit} task list --operator-token-file {operator}
  {remit} task revoke $TASK --reason 'had a look' --operator-token-file {operator}

As the service:

  echo $TOKEN | {remit} verify --issuer http://{http} --audience {audience} --introspect --service-token-file {service}"
        )
    }
}

/// A token by which the broker will know the service.
fn service_token(path: &Path) -> Result<String, Failure> {
    use std::io::Write as _;
    let token = hex(&random::<32>().map_err(|why| stopped(&why))?);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| writeln!(file, "{token}")).map_err(|error| stopped(&error))?;
    Ok(token)
}

/// Prints what happens, with the time that it took since what happened before.
struct Stage {
    start: Instant,
    step: Instant,
    mark: char,
}

impl Stage {
    fn new() -> Self {
        let now = Instant::now();
        Self { start: now, step: now, mark: if stdout().is_terminal() { '✓' } else { '+' } }
    }

    fn act(&mut self, title: &str) {
        say(&format!("\n{title}."));
        self.step = Instant::now();
    }

    fn done(&mut self, what: &str) {
        say(&format!("  {} {:>9}  {what}", self.mark, millis(self.step.elapsed())));
        self.step = Instant::now();
    }

    fn finish(&self, revoke: Duration) {
        say(&format!("\nFrom sending the revoke to the first rejected call: {}.", millis(revoke)));
        say(&format!("The whole story: {}.", millis(self.start.elapsed())));
    }
}

/// Prints what belongs to the line above.
fn more(what: &str) {
    say(&format!("  {:13}{what}", ""));
}

fn millis(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_milliseconds() {
        assert_eq!(millis(Duration::from_micros(1234)), "1.2 ms");
        assert_eq!(millis(Duration::from_secs(2)), "2000.0 ms");
    }
}
