//! `remit audit log`: the log of a broker, from the broker itself, page by page.

use clap::Args;
use serde_json::{Value, json};
use std::io::Write as _;

use super::{
    super::{Output, client::Client, connection::Connection, exit::Failure, show::text},
    line,
};
use crate::{clock::Time, id::SpiffeId};

/// The most records that a broker puts on a page.
const PAGE: u64 = 10_000;

pub(super) const EXAMPLES: &str = "Examples:
  remit audit log --owner team-payments@example.com --since 2026-11-01T00:00:00Z
  remit audit log --output json > copy.jsonl            the whole log; its last line says where it ended
  remit audit log --output json --cursor LOG:NUMBER     what came since

The broker answers, and nothing is verified; remit audit verify and show do that, on the files. Every broker has a log of its own.";

/// Which records: those that fit all that is given.
#[derive(Debug, Args)]
pub(in crate::cli) struct Log {
    /// Of this workload, and of its tasks.
    #[arg(long, value_name = "SPIFFE ID")]
    workload: Option<SpiffeId>,
    /// Of the tasks that this owner is accountable for.
    #[arg(long)]
    owner: Option<String>,
    /// Of the tasks that were declared to run in this sandbox.
    #[arg(long)]
    sandbox: Option<String>,
    /// By this attestor, and of the tasks of those that it vouched for.
    #[arg(long)]
    attestor: Option<String>,
    /// Not before then (RFC 3339).
    #[arg(long, value_name = "TIME")]
    since: Option<Time>,
    /// Before then (RFC 3339).
    #[arg(long, value_name = "TIME")]
    until: Option<Time>,
    /// Where an answer before ended: only what comes after it.
    #[arg(long)]
    cursor: Option<String>,
    /// How many records at most [default: all that there are]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// The last line of a page, or of all of them.
#[derive(Default)]
struct End {
    cursor: String,
    more: bool,
    unattributed: u64,
    unreadable: u64,
}

impl Log {
    pub(super) async fn run(self, connection: &Connection, output: Output) -> Result<(), Failure> {
        let Self { workload, owner, sandbox, attestor, since, until, cursor, limit } = self;
        let query = [
            ("workload", workload.map(String::from)),
            ("owner", owner),
            ("sandbox", sandbox),
            ("attestor", attestor),
            ("since", since.map(|time| time.to_rfc3339())),
            ("until", until.map(|time| time.to_rfc3339())),
        ];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let client = connection.operator().await?;
        let (mut whole, mut left) = (End { cursor: cursor.unwrap_or_default(), more: true, ..End::default() }, limit);
        while whole.more && left != Some(0) {
            let mut query = query.clone();
            query.extend((!whole.cursor.is_empty()).then(|| ("cursor", whole.cursor.clone())));
            query.extend(left.map(|left| ("limit", left.min(PAGE).to_string())));
            let (lines, end) = page(&client, &query).await?;
            left = left.map(|left| left.saturating_sub(lines.len() as u64));
            if end.more && end.cursor == whole.cursor {
                return Err(Failure::OutOfReach(format!("the broker gets no further than {}", end.cursor)));
            }
            whole = End {
                unattributed: whole.unattributed + end.unattributed,
                unreadable: whole.unreadable + end.unreadable,
                ..end
            };
            let all: String = lines.iter().flat_map(|line| [shown(line, output), "\n".to_owned()]).collect();
            // Whoever closed it early (`| head`) has read enough.
            if std::io::stdout().lock().write_all(all.as_bytes()).is_err() {
                return Ok(());
            }
        }
        whole.tell(output);
        Ok(())
    }
}

impl End {
    fn read(line: &str) -> Option<Self> {
        let said: Value = serde_json::from_str(line).ok()?;
        Some(Self {
            cursor: said["cursor"].as_str()?.to_owned(),
            more: said["more"].as_bool()?,
            unattributed: said["unattributed"].as_u64()?,
            unreadable: said["unreadable"].as_u64()?,
        })
    }

    /// For a program where it looks for it, for a person beside the records.
    fn tell(self, output: Output) {
        let Self { cursor, more, unattributed, unreadable } = self;
        if output == Output::Json {
            let end = json!({"cursor": cursor, "more": more, "unattributed": unattributed, "unreadable": unreadable});
            super::say(&end.to_string());
            return;
        }
        if unattributed > 0 {
            eprintln!("{unattributed} records are of tasks of which this broker can't tell whose they are");
        }
        if unreadable > 0 {
            eprintln!("{unreadable} lines of the log were written by no broker: see remit audit verify");
        }
        eprintln!(
            "{}: --cursor {}",
            if more { "there are more" } else { "what comes from now on" },
            text(&json!({"at": cursor}), "at")
        );
    }
}

/// The records of a page as they stand, and where it ended.
async fn page(client: &Client, query: &[(&str, String)]) -> Result<(Vec<String>, End), Failure> {
    let answer = client.lines("/v1/audit", query).await?;
    let mut lines: Vec<_> = answer.lines().map(str::to_owned).collect();
    let end = lines.pop().and_then(|line| End::read(&line));
    let cut_off = || Failure::OutOfReach("the answer was cut off: it does not say where it ends".to_owned());
    Ok((lines, end.ok_or_else(cut_off)?))
}

fn shown(record: &str, output: Output) -> String {
    match output {
        Output::Json => record.to_owned(),
        Output::Text => line(&serde_json::from_str(record).unwrap_or_default()),
    }
}
