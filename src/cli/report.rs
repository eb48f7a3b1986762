//! `remit report unused`: what was granted and not needed.

use clap::{Args, Subcommand};
use serde_json::Value;
use std::fmt::Write as _;

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    show::{aligned, items, say, short, table, text},
};
use crate::{clock::Time, id::SpiffeId};

#[derive(Debug, Subcommand)]
pub(super) enum ReportCommand {
    /// What tasks were granted and never minted a credential for, and credentials that were never seen to be used.
    #[command(after_help = UNUSED)]
    Unused(Unused),
}

const UNUSED: &str = "Examples:
  remit report unused --owner team-payments@example.com
  remit report unused --workload spiffe://example.com/ci/acme/payments --since 2026-11-01T00:00:00Z

A use is seen where a service asks the broker about a credential or reports on it. One that checks signatures, status lists or
revocation lists by itself is not seen (cannot be seen). Tasks are looked at until a day after their deadline.";

#[derive(Debug, Args)]
pub(super) struct Unused {
    /// Of the tasks that this owner is accountable for.
    #[arg(long, required_unless_present = "workload")]
    owner: Option<String>,
    /// Of the tasks of this workload.
    #[arg(long, value_name = "SPIFFE ID")]
    workload: Option<SpiffeId>,
    /// Declared not before then (RFC 3339).
    #[arg(long, value_name = "TIME")]
    since: Option<Time>,
    /// Declared before then (RFC 3339).
    #[arg(long, value_name = "TIME")]
    until: Option<Time>,
    /// How many tasks to ask for [default: 50]
    #[arg(long)]
    limit: Option<u32>,
    /// Where the page before ended.
    #[arg(long)]
    cursor: Option<String>,
}

impl ReportCommand {
    pub(super) async fn run(self, connection: &Connection, output: Output) -> Result<(), Failure> {
        let Self::Unused(Unused { owner, workload, since, until, limit, cursor }) = self;
        let query = [
            ("owner", owner),
            ("workload", workload.map(String::from)),
            ("since", since.map(|time| time.to_rfc3339())),
            ("until", until.map(|time| time.to_rfc3339())),
            ("limit", limit.map(|limit| limit.to_string())),
            ("cursor", cursor),
        ];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let answer = connection.operator().await?.get("/v1/reports/unused", &query).await?;
        say(&match output {
            Output::Json => answer.text,
            Output::Text => unused(&answer.json),
        });
        Ok(())
    }
}

fn unused(report: &Value) -> String {
    let mut out = String::new();
    for task in items(report, "tasks") {
        let (state, owner, workload) = (text(task, "state"), text(task, "owner"), text(task, "workload"));
        let _ = writeln!(
            out,
            "{}  {state}  {owner}  {workload}  “{}”",
            text(task, "task"),
            short(text(task, "purpose"), 48)
        );
        let mut table = table(&[]);
        for grant in items(task, "never_minted") {
            let what = format!("{} at {}", text(grant, "privilege"), text(grant, "location"));
            table.add_row(["  never minted".to_owned(), what, String::new()]);
        }
        for lease in items(task, "never_seen") {
            let what = match text(lease, "resource") {
                resource if resource.is_empty() => "a certificate".to_owned(),
                resource => format!("{} at {resource}", text(lease, "privilege")),
            };
            let why = if lease["cannot_be_seen"] == true { "  cannot be seen" } else { "  never seen" };
            table.add_row([why.to_owned(), what, format!("credential {}", text(lease, "lease"))]);
        }
        let _ = writeln!(out, "{}", aligned(table));
        if task["complete"] != true {
            out.push_str("  some of what was done is missing: it may have been minted, or seen\n");
        }
    }
    let _ = write!(
        out,
        "{} of {} tasks did not use all that they had",
        items(report, "tasks").len(),
        text(report, "looked_at")
    );
    out.push('\n');
    match text(report, "since") {
        since if since.is_empty() => out.push_str("earlier tasks may be gone"),
        since => {
            let _ = write!(
                out,
                "all that were declared since {since} were there to be looked at, and earlier ones may be gone"
            );
        }
    }
    out.push_str(": remit audit log says what they were given");
    if report["next_cursor"].is_string() {
        let _ = write!(out, "\nthere are more: --cursor {}", text(report, "next_cursor"));
    }
    out
}
