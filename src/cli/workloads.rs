//! `remit workloads`: which workloads there are.

use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    show::{aligned, items, relative, say, short, table, text, words},
};
use crate::clock::{Clock, Time};

#[derive(Debug, Args)]
pub(super) struct Workloads {
    /// How many workloads to ask for [default: 50]
    #[arg(long)]
    limit: Option<u32>,
    /// Where the page before ended.
    #[arg(long)]
    cursor: Option<String>,
}

impl Workloads {
    pub(super) async fn run(self, connection: &Connection, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
        let query = [("limit", self.limit.map(|limit| limit.to_string())), ("cursor", self.cursor)];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let answer = connection.operator().await?.get("/v1/workloads", &query).await?;
        say(&match output {
            Output::Json => answer.text,
            Output::Text => workloads(&answer.json, clock.now()),
        });
        Ok(())
    }
}

fn workloads(page: &Value, now: Time) -> String {
    let mut table = table(&["WORKLOAD", "KIND", "LIVE TASKS", "DENIALS", "FIRST SEEN", "LAST SEEN", "OWNERS"]);
    let all = items(page, "workloads");
    for workload in all {
        let at = |member| text(workload, member).parse::<Time>().map(|at| relative(at, now)).unwrap_or_default();
        let more = if workload["more_owners"] == true { ", …" } else { "" };
        table.add_row([
            text(workload, "workload"),
            words(workload, "kinds"),
            text(workload, "live_tasks"),
            text(workload, "denials"),
            at("first_seen"),
            at("last_seen"),
            short(words(workload, "owners") + more, 64),
        ]);
    }
    let mut out = if all.is_empty() { "no workloads".to_owned() } else { aligned(table) };
    let covers = &page["covers"];
    let _ = write!(
        out,
        "\n\nby {} tasks of the store, and by {}, the log of this broker alone",
        text(covers, "tasks"),
        text(covers, "log")
    );
    if covers["since"].is_string() {
        let _ = write!(out, ", since {}", text(covers, "since"));
    }
    if covers["all_tasks"] != true || covers["all_records"] != true {
        out.push_str("\nthat is not all: there are more tasks, or the log is still being read; ask again");
    }
    if let Some(cursor) = page["next_cursor"].as_str() {
        let _ = write!(out, "\nthere are more: --cursor {cursor}");
    }
    out
}
