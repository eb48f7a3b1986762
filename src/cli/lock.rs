//! `remit lock …`

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    show::{self, say},
};
use crate::{
    clock::{Clock, Time},
    id::LockId,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  remit lock create --owner team-payments@example.com --reason 'their token leaked' --dry-run
  remit lock create --workload 'spiffe://example.com/ci/acme/*' --reason 'the runner is not ours any more'
  remit lock create --all --declared-after 2026-11-21T02:00:00Z --reason 'everything since the break-in'
  remit lock list
  remit lock release LOCK --reason 'the token is replaced'";

#[derive(Debug, Subcommand)]
pub(super) enum LockCommand {
    /// Keep out all that fits: what it has ends, and nothing of it begins. All that is named has to fit.
    #[command(after_help = EXAMPLES)]
    Create(Box<Create>),
    /// List the locks that stand, and those that ended within 30 days.
    List,
    /// Show a lock, and how far it has come.
    Show {
        /// The lock.
        lock: LockId,
    },
    /// Let a lock that has an end stand for longer.
    Extend {
        /// The lock.
        lock: LockId,
        /// Until when.
        #[arg(long, value_name = "TIME")]
        until: Time,
        /// Why: for the audit.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Let in again. What the lock has ended stays ended.
    Release {
        /// The lock.
        lock: LockId,
        /// Why: for the audit.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, Args)]
#[group(id = "matching", required = true, multiple = true)]
struct Matching {
    /// A workload by its SPIFFE ID, or with `/*` at its end all below a path
    #[arg(long, value_name = "ID")]
    workload: Option<String>,
    /// The owner of the task
    #[arg(long)]
    owner: Option<String>,
    /// The sandbox that evidence bound the task to, else the declared one
    #[arg(long)]
    sandbox: Option<String>,
    /// The attestor that vouched, by its name
    #[arg(long, value_name = "NAME")]
    attestor: Option<String>,
    /// The issuer of the evidence
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// Everybody, for 15 minutes
    #[arg(long, conflicts_with_all = ["workload", "owner", "sandbox", "attestor", "issuer"])]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    matching: Matching,
    /// Only tasks that were declared then or later, a whole second
    #[arg(long, value_name = "TIME")]
    declared_after: Option<Time>,
    /// Only tasks that were declared before, a whole second
    #[arg(long, value_name = "TIME")]
    declared_before: Option<Time>,
    /// Until when [default: until it is released; --all: for 15 minutes]
    #[arg(long, value_name = "TIME")]
    until: Option<Time>,
    /// Why: for the audit, and for whoever looks at the tasks that it ended
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Count what it would match, and lock nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait, for 25 s at most, until all that it matches has ended and every verifier that hears of revokes denies it; end with code 4
    /// where that takes longer
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

impl Create {
    fn body(&self) -> Value {
        let Matching { workload, owner, sandbox, attestor, issuer, all } = &self.matching;
        let named = [("workload", workload), ("owner", owner), ("sandbox", sandbox), ("attestor", attestor)];
        let named = named.into_iter().chain([("issuer", issuer)]);
        let mut matches: Map<_, _> =
            named.filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect();
        if *all {
            matches.insert("all".to_owned(), json!(true));
        }
        let mut body = json!({"match": matches, "reason": self.reason});
        let times =
            [("declared_after", self.declared_after), ("declared_before", self.declared_before), ("until", self.until)];
        for (name, time) in times {
            if let Some(time) = time {
                body[name] = json!(time);
            }
        }
        body
    }
}

impl LockCommand {
    pub(super) async fn run(self, connection: &Connection, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
        let client = connection.operator().await?;
        let (mut dry_run, mut listed, mut waits) = (false, false, false);
        let answer = match &self {
            LockCommand::Create(create) => {
                (dry_run, waits) = (create.dry_run, create.wait);
                let path = match (dry_run, waits) {
                    (true, _) => "/v1/locks?dry_run=true",
                    (false, true) => "/v1/locks?wait=effective",
                    (false, false) => "/v1/locks",
                };
                client.post(path, &create.body()).await?
            }
            LockCommand::List => {
                listed = true;
                client.get("/v1/locks", &[]).await?
            }
            LockCommand::Show { lock } => client.get(&format!("/v1/locks/{lock}"), &[]).await?,
            LockCommand::Extend { lock, until, reason } => {
                let body = json!({"until": until, "reason": reason});
                client.post(&format!("/v1/locks/{lock}/extend"), &body).await?
            }
            LockCommand::Release { lock, reason } => {
                client.post(&format!("/v1/locks/{lock}/release"), &json!({"reason": reason})).await?
            }
        };
        let by = answer.json["progress"]["effective_by"].as_str().and_then(|by| by.parse::<Time>().ok());
        let in_time = !waits || by.is_some_and(|by| by <= clock.now());
        let pending = answer.json["state"] == "locking" || !in_time;
        say(&match output {
            Output::Json => answer.text,
            Output::Text if dry_run => weighed(&answer.json),
            Output::Text if listed => list(&answer.json, clock.now()),
            Output::Text => one(&answer.json, clock.now()),
        });
        // No script takes a promise for the deed.
        if pending { Err(Failure::Pending) } else { Ok(()) }
    }
}

/// Whom a lock keeps out, in a line.
fn whom(lock: &Value) -> String {
    let Some(matches) = lock["match"].as_object() else { return String::new() };
    let mut words: Vec<_> = matches
        .keys()
        .map(|name| {
            if name == "all" { "everybody".to_owned() } else { format!("{name} {}", show::text(&lock["match"], name)) }
        })
        .collect();
    for (member, word) in [("declared_after", "declared since"), ("declared_before", "declared before")] {
        if lock[member].is_string() {
            words.push(format!("{word} {}", show::text(lock, member)));
        }
    }
    words.join(", ")
}

fn until(lock: &Value, now: Time) -> String {
    match lock["until"].as_str().and_then(|until| until.parse::<Time>().ok()) {
        Some(until) => show::relative(until, now),
        None if lock["state"] == "released" => String::new(),
        None => "until it is released".to_owned(),
    }
}

fn progress(lock: &Value) -> String {
    let progress = &lock["progress"];
    let ended = format!("{} of {} tasks ended", show::text(progress, "revoked"), show::text(progress, "matched"));
    if progress["done"] == true { ended } else { format!("{ended} so far") }
}

fn one(lock: &Value, now: Time) -> String {
    let state = match show::text(lock, "state") {
        state if state == "locking" => {
            "locking: on record at this broker, which keeps out what it matches from now on; its store is out of reach, and is told as soon \
             as it answers"
                .to_owned()
        }
        state => state,
    };
    let released = &lock["released"];
    let by = if released.is_object() {
        format!("{} ({}: {})", show::text(released, "at"), show::text(released, "by"), show::text(released, "reason"))
    } else {
        String::new()
    };
    show::facts(&[
        ("lock", show::text(lock, "lock")),
        ("state", state),
        ("keeps out", whom(lock)),
        ("until", until(lock, now)),
        ("reason", show::text(lock, "reason")),
        ("by", show::text(lock, "by")),
        ("since", show::text(lock, "locked_at")),
        ("released", by),
        ("progress", progress(lock)),
        ("effective", show::text(&lock["progress"], "effective_by")),
    ])
}

fn list(answer: &Value, now: Time) -> String {
    let locks = show::items(answer, "locks");
    if locks.is_empty() {
        return "no locks".to_owned();
    }
    let mut table = show::table(&["LOCK", "STATE", "END", "BY", "PROGRESS", "KEEPS OUT"]);
    for lock in locks {
        let (id, state, by) = (show::text(lock, "lock"), show::text(lock, "state"), show::text(lock, "by"));
        table.add_row([id, state, until(lock, now), by, progress(lock), whom(lock)]);
    }
    show::aligned(table)
}

fn weighed(answer: &Value) -> String {
    let mut out = show::facts(&[
        ("would end", format!("{} tasks", show::text(answer, "active"))),
        ("over", format!("{} tasks that match, and have ended", show::text(answer, "over"))),
        (
            "note",
            if answer["complete"] == true { String::new() } else { "there are more tasks than were looked at".into() },
        ),
    ]);
    let owners = show::items(answer, "owners");
    if !owners.is_empty() {
        let mut table = show::table(&["OWNER", "TASKS"]);
        for owner in owners {
            table.add_row([show::text(owner, "owner"), show::text(owner, "tasks")]);
        }
        out = format!("{out}\n\n{}", show::aligned(table));
    }
    out
}
