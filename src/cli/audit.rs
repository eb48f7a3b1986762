//! `remit audit …`: the log as evidence. It reads files alone, and no broker has to run; but `log`, which asks one.

mod log;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    show::{clean, facts, say, text},
};
use crate::{
    audit::{
        bundle::{Bundle, Proven, Selection, Selector},
        chain::Record,
        checkpoint::{self, CheckpointKeys},
        examine::{Examined, Fault, Verdict, examine, read_checkpoints},
    },
    clock::{Clock, Time},
    id::TaskId,
};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Check that nobody edited, cut, swapped or added anything: a log, beside a running broker too, or a bundle.
    #[command(after_help = EXAMPLES)]
    Verify(Verify),
    /// Print the records of a log or a bundle, each checked on the way.
    Show(Show),
    /// Take records out of a log, with what it takes to prove them to somebody who has only the public key.
    Export(Export),
    /// Print the log of a broker that is running, by asking it.
    #[command(after_help = log::EXAMPLES)]
    Log(log::Log),
}

const EXAMPLES: &str = "Examples:
  remit audit verify /var/lib/remit/audit --key broker-1.jwks --anchor /mnt/elsewhere/checkpoints
  remit audit export /var/lib/remit/audit --task TASK > evidence.json
  remit audit verify evidence.json --key broker-1.jwks";

/// By which keys, and against what.
#[derive(Debug, Args)]
struct By {
    /// The public keys of the log, a JWK Set that was copied from `checkpoints.jwks` when the log was set up [default: the one
    /// beside the log, which whoever can change the log can change too]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The directory of a log, or a bundle.
    #[arg(value_name = "DIR|FILE")]
    target: PathBuf,
    #[command(flatten)]
    by: By,
    /// Checkpoints from elsewhere, one a line, as an anchor keeps them: they show a tail that was cut off.
    #[arg(long, value_name = "FILE")]
    anchor: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The directory of a log, or a bundle.
    #[arg(value_name = "DIR|FILE")]
    target: PathBuf,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The directory of the log.
    #[arg(value_name = "DIR")]
    target: PathBuf,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    which: Which,
}

/// Which records: those that fit all that is given.
#[derive(Debug, Args)]
struct Which {
    /// Of this task and its descendants.
    #[arg(long)]
    task: Option<TaskId>,
    /// Of the tasks that this owner is accountable for.
    #[arg(long)]
    owner: Option<String>,
    /// Of this workload, and of its tasks: a SPIFFE ID.
    #[arg(long, value_name = "SPIFFE ID")]
    workload: Option<String>,
    /// Not before then (RFC 3339).
    #[arg(long, value_name = "TIME")]
    since: Option<Time>,
    /// Before then (RFC 3339).
    #[arg(long, value_name = "TIME")]
    until: Option<Time>,
}

impl AuditCommand {
    pub(super) async fn run(self, connection: &Connection, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
        match self {
            AuditCommand::Verify(verify) => verify.run(output),
            AuditCommand::Show(show) => show.run(output),
            AuditCommand::Export(export) => export.run(output, clock.now()),
            AuditCommand::Log(log) => log.run(connection, output).await,
        }
    }
}

impl Verify {
    fn run(self, output: Output) -> Result<(), Failure> {
        if self.target.is_file() {
            let bundle = bundle(&self.target)?;
            let keys = self.by.keys(None)?;
            return tell(
                &bundle.verify(&keys, |_| {}).map_err(|verdict| bad(verdict, output))?,
                true,
                output,
                proven_text,
            );
        }
        let keys = self.by.keys(Some(&self.target))?;
        let read = |path: PathBuf| read_checkpoints(&path, &keys).map(|all| (path, all));
        let anchors: Result<Vec<_>, _> = self.anchor.into_iter().map(read).collect();
        let pinned = self.by.key.is_some();
        let examined = anchors.and_then(|anchors| examine(&self.target, &keys, &anchors, |_| {}));
        let examined = examined.map_err(|verdict| bad(verdict, output))?;
        tell(&examined, examined.unread.is_empty(), output, |examined| examined_text(examined, pinned))
    }
}

impl Show {
    fn run(self, output: Output) -> Result<(), Failure> {
        let selection = self.which.selection();
        let mut selector = Selector::new(&selection);
        let is_bundle = self.target.is_file();
        let keys = self.by.keys(if is_bundle { None } else { Some(&self.target) })?;
        let bundle = if is_bundle { Some(bundle(&self.target)?) } else { None };
        let gone_through = |each: &mut dyn FnMut(&Record)| match &bundle {
            Some(bundle) => bundle.verify(&keys, each).map(drop),
            None => examine(&self.target, &keys, &[], each).map(drop),
        };
        if selection.asks_whose() {
            gone_through(&mut |record| selector.learn(record)).map_err(|verdict| bad(verdict, output))?;
        }
        let mut each = |record: &Record| {
            if selector.wants(record) {
                say(&match output {
                    Output::Json => Value::Object(record.members.clone()).to_string(),
                    Output::Text => line(&Value::Object(record.members.clone())),
                });
            }
        };
        gone_through(&mut each).map_err(|verdict| bad(verdict, output))?;
        tell_unattributed(selector.unattributed());
        Ok(())
    }
}

impl Export {
    fn run(self, output: Output, now: Time) -> Result<(), Failure> {
        let keys = self.by.keys(Some(&self.target))?;
        let bundle = Bundle::export(&self.target, &keys, &self.which.selection(), now);
        let bundle = bundle.map_err(|verdict| bad(verdict, output))?;
        if bundle.unsigned() > 0 {
            let left_out = bundle.unsigned();
            eprintln!(
                "left out {left_out} records that no checkpoint covers yet; export again once the broker has signed them"
            );
        }
        tell_unattributed(bundle.unattributed());
        say(&serde_json::to_string(&bundle).map_err(|error| Failure::Stopped(error.to_string()))?);
        Ok(())
    }
}

impl By {
    /// The keys that were given, or those beside the log.
    fn keys(&self, dir: Option<&Path>) -> Result<CheckpointKeys, Failure> {
        let path = match (&self.key, dir) {
            (Some(key), _) => key.clone(),
            (None, Some(dir)) => dir.join(checkpoint::KEYS),
            (None, None) => {
                let why = "a bundle proves nothing by the keys in it: give those of the log with --key";
                return Err(Failure::Input(why.to_owned()));
            }
        };
        let failed = |why: &dyn std::fmt::Display| Failure::Input(format!("{}: {why}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
        CheckpointKeys::read(&text).map_err(|why| failed(&why))
    }
}

impl Which {
    fn selection(self) -> Selection {
        let Self { task, owner, workload, since, until } = self;
        Selection { task, owner, workload, since, until }
    }
}

fn bundle(path: &Path) -> Result<Bundle, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::Input(format!("{}: {why}", path.display()));
    let octets = std::fs::read(path).map_err(|error| failed(&error))?;
    Bundle::read(&octets).ok_or_else(|| failed(&"neither the directory of an audit log nor a bundle of one"))
}

fn tell_unattributed(records: usize) {
    if records > 0 {
        eprintln!(
            "left out {records} records of tasks of which nothing in this log says whose they are: the log of the broker where they were \
             declared does"
        );
    }
}

fn tell<T: serde::Serialize>(
    found: &T,
    is_good: bool,
    output: Output,
    as_text: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    say(&match output {
        Output::Text => as_text(found),
        Output::Json => {
            let mut report = json!(found);
            report["good"] = is_good.into();
            report.to_string()
        }
    });
    if is_good { Ok(()) } else { Err(Failure::NotAccepted) }
}

fn bad(verdict: Verdict, output: Output) -> Failure {
    match verdict {
        Verdict::Unread(why) => Failure::Input(why),
        Verdict::Bad(fault) => {
            let Fault { sequence, file, what } = *fault;
            say(&match output {
                Output::Json => json!({"good": false, "sequence": sequence, "file": file, "what": what}).to_string(),
                Output::Text => facts(&[
                    ("good", "no".to_owned()),
                    ("first bad record", sequence.to_string()),
                    ("in", file.display().to_string()),
                    ("what", clean(&what)),
                ]),
            });
            Failure::NotAccepted
        }
    }
}

fn examined_text(examined: &Examined, pinned: bool) -> String {
    let Examined {
        log,
        first,
        removed,
        last,
        segments,
        checkpoints,
        signed_to,
        anchored_to,
        unread,
        doubts,
        unsettled,
        ..
    } = examined;
    let anchored = match anchored_to {
        Some(to) => format!("up to record {to}: nothing was cut off before that"),
        None => {
            "by nothing: a tail that was cut off together with its checkpoints would not show; give --anchor".into()
        }
    };
    let mut found = vec![
        ("good", if unread.is_empty() { "yes" } else { "no: lines among its checkpoints are none" }.to_owned()),
        ("log", clean(log)),
        ("records", format!("{first} to {last}, in {segments} segments")),
        ("removed", format!("{removed} records before them, which had been kept for long enough")),
        ("signed", format!("up to record {signed_to}, by {checkpoints} checkpoints")),
        ("anchored", anchored),
    ];
    if !pinned {
        found.push(("key", "the one beside the log; give --key with a copy that was kept elsewhere".to_owned()));
    }
    if !unread.is_empty() {
        found.push(("no checkpoints", clean(&unread.join("; "))));
    }
    for doubt in doubts {
        found.push(("in doubt", format!("record {}: {}", doubt.sequence, text(&json!({"what": doubt.what}), "what"))));
    }
    found.push(("unsettled", format!("{} records of which nothing says how it went", unsettled.len())));
    let mut all = facts(&found);
    for one in unsettled {
        let of = one.lease.as_ref().or(one.task.as_ref()).map_or("", String::as_str);
        let _ = write!(all, "\n  {:>8}  {}", one.sequence, clean(&format!("{}  {}  {of}", one.time, one.event)));
    }
    all
}

fn proven_text(proven: &Proven) -> String {
    let span = proven.first.zip(proven.last).map(|(first, last)| format!(", from record {first} to record {last}"));
    let mut found = vec![
        ("good", "yes".to_owned()),
        ("log", clean(&proven.log)),
        ("asked for", clean(&json!(proven.selection).to_string())),
        (
            "records",
            format!("{} shown, with {} others between them{}", proven.records, proven.others, span.unwrap_or_default()),
        ),
    ];
    if proven.unsigned > 0 {
        found.push(("left out", format!("{} more, which no checkpoint covered yet, says the bundle", proven.unsigned)));
    }
    if proven.unattributed > 0 {
        let more = proven.unattributed;
        found.push(("can't tell", format!("of {more} records whose they are, and left them out, says the bundle")));
    }
    facts(&found)
}

/// A record for a person: when, who, what, and the rest of it.
fn line(record: &Value) -> String {
    let actor = &record["actor"];
    let who = ["workload", "name"].into_iter().map(|member| text(actor, member)).find(|name| !name.is_empty());
    let who = who.unwrap_or_else(|| text(actor, "as"));
    let (sequence, time, event) = (text(record, "sequence"), text(record, "time"), text(record, "event"));
    let mut line = format!("{sequence:>8}  {time}  {event}  {who}");
    for name in record.as_object().into_iter().flatten().map(|(name, _)| name) {
        let known = ["actor", "event", "intent", "previous", "request", "sequence", "time"];
        if !known.contains(&name.as_str()) {
            let _ = write!(line, "  {}={}", clean(name), text(record, name));
        }
    }
    line
}
