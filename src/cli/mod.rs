//! The command line. It speaks the HTTP API alone, as anyone's client would; only `serve`, `demo`, `verify`, `verifier` and
//! what reads files do more.

mod audit;
mod client;
mod completions;
mod config;
mod connection;
mod demo;
mod demo_agent;
mod demo_service;
mod exit;
mod find;
mod holder;
mod keys;
mod lease;
mod lock;
mod memory;
mod mint;
mod openapi;
mod policy;
mod proof;
mod recover;
mod report;
mod serve;
mod show;
mod task;
mod timeline;
mod verifier;
mod verify;
mod workloads;

use clap::{Parser, Subcommand, ValueEnum};
use std::process::ExitCode;

use crate::clock::SystemClock;
use connection::Connection;
use exit::{Exit, Failure};

/// A just-in-time credential broker: one task, short-lived credentials, one revoke.
#[derive(Debug, Parser)]
#[command(name = "remit", version, after_help = after_help())]
pub struct Cli {
    /// What is printed: aligned text, or the broker's own JSON unchanged.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// What is logged on standard error, e.g. `debug` or `remit=trace` [default: info for serve and verifier, warn otherwise]
    #[arg(long, global = true, env = "REMIT_LOG", value_name = "FILTER", value_parser = log_filter)]
    log: Option<String>,
    /// How it is logged: a line of text, or a JSON object
    #[arg(long, global = true, env = "REMIT_LOG_FORMAT", value_enum, default_value_t = Output::Text)]
    log_format: Output,
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

/// Forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Json,
    Text,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker.
    Serve(serve::Serve),
    /// Watch the whole story once: attest, declare, mint, call, revoke, be refused.
    Demo(demo::Demo),
    /// Declare, look at and end tasks.
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Get a credential for a task.
    #[command(subcommand)]
    Mint(mint::MintCommand),
    /// Keep out what must not come back, and let it in again.
    #[command(subcommand)]
    Lock(lock::LockCommand),
    /// Revoke one credential.
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Look at signing keys and change them.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Prove that a key is held, for one request (RFC 9449).
    Proof(proof::ProofCommand),
    /// Check a token as the service that it was presented to.
    Verify(verify::Verify),
    /// Run a verifier beside a service, for its proxy or for itself.
    Verifier(verifier::Verifier),
    /// Find what an id, a name or a token belongs to.
    #[command(after_help = find::EXAMPLES)]
    Find(find::Find),
    /// Report on what tasks had and did not need.
    #[command(subcommand)]
    Report(report::ReportCommand),
    /// List the workloads that there are: since when, for whom they work, what they were refused.
    Workloads(workloads::Workloads),
    /// Check, read and export an audit log, or ask a broker for its own.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Raise the generation of a store that was put back to an earlier state: everything older is dead.
    #[command(after_help = recover::EXAMPLES)]
    Recover(recover::Recover),
    /// Look at a configuration without starting a broker with it.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look at policies before a broker goes by them.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Print the OpenAPI document of the HTTP API, as a broker serves it at `/openapi.json`.
    #[command(after_help = openapi::EXAMPLES)]
    Openapi,
    /// Print the completions of a shell.
    Completions(completions::Completions),
    #[command(hide = true)]
    DemoAgent(demo_agent::DemoAgent),
}

impl Cli {
    /// Which log lines are wanted.
    #[must_use]
    pub fn log_filter(&self) -> &str {
        let serves = matches!(self.command, Command::Serve(_) | Command::Verifier(_));
        let default = if serves { "info" } else { "warn" };
        self.log.as_deref().unwrap_or(default)
    }

    /// Sees to it that no core dump holds what this process is about to know. Before anything else.
    ///
    /// # Errors
    /// When the system does not let us, in a sentence.
    pub fn keep_memory(&self) -> Result<(), String> {
        memory::keep(matches!(self.command, Command::Serve(_) | Command::Demo(_) | Command::Verifier(_)))
    }

    /// Whether each log line is a JSON object.
    #[must_use]
    pub fn logs_json(&self) -> bool {
        self.log_format == Output::Json
    }
}

/// Carries out a command and says how it ended.
pub async fn run(cli: Cli) -> ExitCode {
    let Cli { connection, output, command, .. } = cli;
    let done = match command {
        Command::Serve(serve) => serve.run(&connection).await,
        Command::Demo(demo) => Box::pin(demo.run()).await,
        Command::Task(task) => task.run(&connection, output, &SystemClock).await,
        Command::Mint(mint) => mint.run(&connection, output).await,
        Command::Lock(lock) => lock.run(&connection, output, &SystemClock).await,
        Command::Lease(lease) => lease.run(&connection, output, &SystemClock).await,
        Command::Keys(keys) => keys.run(&connection, output, &SystemClock).await,
        Command::Proof(proof) => proof.run(&connection),
        Command::Recover(recover) => recover.run(&connection, output).await,
        Command::Verify(verify) => verify.run(output, &SystemClock).await,
        Command::Verifier(verifier) => verifier.run().await,
        Command::Find(find) => find.run(&connection, output).await,
        Command::Report(report) => report.run(&connection, output).await,
        Command::Workloads(workloads) => workloads.run(&connection, output, &SystemClock).await,
        Command::Audit(audit) => audit.run(&connection, output, &SystemClock).await,
        Command::Config(config) => config.run(&connection, output),
        Command::Policy(policy) => policy.run(output),
        Command::Openapi => {
            openapi::run();
            Ok(())
        }
        Command::Completions(completions) => {
            completions.run();
            Ok(())
        }
        Command::DemoAgent(agent) => agent.run().await,
    };
    let exit = match done {
        Ok(()) => Exit::Done,
        Err(failure) => {
            let text = if output == Output::Json { failure.json() } else { failure.text() };
            if !text.is_empty() {
                eprintln!("{text}");
            }
            failure.exit()
        }
    };
    ExitCode::from(exit.code())
}

/// A failure before there was anything to run with.
#[must_use]
pub fn not_started(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(Failure::Stopped(why.to_owned()).exit().code())
}

fn log_filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn after_help() -> String {
    format!("{}\n\n{}", include_str!("examples.txt").trim_end(), Exit::help())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_example_in_the_help_parses() {
        let example = |line: &str| line.trim().strip_prefix("remit ").map(str::to_owned);
        let examples: Vec<_> = include_str!("examples.txt").lines().filter_map(example).collect();
        assert!(examples.len() > 5);
        for line in examples {
            let words = line.split_whitespace().map(|word| word.trim_matches('\'')).map(|word| match word {
                "TASK" => "task_01jd0000000000000000000000",
                other => other,
            });
            let parsed = Cli::try_parse_from(std::iter::once("remit").chain(words));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn the_help_holds_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("Exit codes:") && help.contains("78  serve, "), "{help}");
    }
}
