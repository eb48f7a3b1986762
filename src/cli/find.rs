//! `remit find`: what an id, a name or a token belongs to.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use clap::Args;
use serde_json::Value;
use std::{fmt::Write as _, io::Read as _};
use x509_parser::pem::parse_x509_pem;
use zeroize::Zeroizing;

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    show::{aligned, items, short, table, text},
};
use crate::id::{LeaseId, TaskId, hex};

/// The most that is read from standard input.
const MOST: u64 = 64 * 1024;

pub(super) const EXAMPLES: &str = "Examples:
  remit find task_01kamw7q2v5y8r3f6t9c1x4d0e
  remit find spiffe://example.com/ci/acme/payments
  remit find 0af7651916cd43dd8448eb211c80319c        a jti, or the id of a request
  remit find 3b241101-e2bb-4255-8caf-4136c566a962    a pod
  remit find - < token.txt                           a token; or a certificate in PEM

A token is read here, and believed by nobody: its `jti` and the task that it names are looked for, the token itself goes nowhere.
It ends with code 1 when nothing is found.";

#[derive(Debug, Args)]
pub(super) struct Find {
    /// A task, a SPIFFE ID, a jti, a serial, an instance (pod uid, CI run) or a request id; `-` reads a token or a certificate from
    /// standard input.
    #[arg(value_name = "ID|-")]
    what: String,
    /// How many matches to ask for [default: 50]
    #[arg(long)]
    limit: Option<u32>,
    /// Where an answer before ended: goes on with older records.
    #[arg(long)]
    cursor: Option<String>,
}

/// What is looked for, and the task that it is said to be of.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    query: String,
    task: Option<TaskId>,
}

impl Find {
    pub(super) async fn run(self, connection: &Connection, output: Output) -> Result<(), Failure> {
        let Wanted { query, task } = if self.what == "-" { wanted_from_input()? } else { wanted(&self.what)? };
        let more = [
            ("task", task.map(String::from)),
            ("limit", self.limit.map(|limit| limit.to_string())),
            ("cursor", self.cursor),
        ];
        let more = more.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let mut query: Vec<_> = [("q", query)].into_iter().chain(more).collect();
        let client = connection.operator().await?;
        let mut answer = client.get("/v1/search", &query).await?;
        // Until something is found: a long log is looked at piece by piece, from its end.
        while let (true, Some(cursor)) = (is_empty(&answer.json), answer.json["next_cursor"].as_str()) {
            query.retain(|(name, _)| *name != "cursor");
            query.push(("cursor", cursor.to_owned()));
            answer = client.get("/v1/search", &query).await?;
        }
        super::show::say(&match output {
            Output::Json => answer.text,
            Output::Text => found(&answer.json),
        });
        if is_empty(&answer.json) {
            return Err(Failure::Stopped("nothing was found where it was looked for".to_owned()));
        }
        Ok(())
    }
}

fn is_empty(answer: &Value) -> bool {
    items(answer, "matches").is_empty()
}

/// What stands on the command line, where others can read it.
fn wanted(what: &str) -> Result<Wanted, Failure> {
    if of_token(what).is_some() {
        let why =
            "a token is a secret, and others can read a command line: give it on standard input (remit find - < FILE)";
        return Err(Failure::Input(why.to_owned()));
    }
    Ok(Wanted { query: what.to_owned(), task: None })
}

fn wanted_from_input() -> Result<Wanted, Failure> {
    let mut given = Zeroizing::new(Vec::new());
    let read = std::io::stdin().lock().take(MOST).read_to_end(&mut given);
    read.map_err(|error| Failure::Input(format!("standard input: {error}")))?;
    if let Some(serial) = of_certificate(&given) {
        return Ok(Wanted { query: serial, task: None });
    }
    let token = std::str::from_utf8(&given).ok().and_then(|text| of_token(text.trim()));
    token.ok_or_else(|| {
        Failure::Input("standard input holds neither a token with a `jti` nor a certificate in PEM".to_owned())
    })
}

/// The `jti` of a token and the task that it names. Nothing is verified: whatever it says is only looked for.
fn of_token(token: &str) -> Option<Wanted> {
    let mut parts = token.split('.');
    let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    let claims = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let lease: LeaseId = claims["jti"].as_str()?.parse().ok()?;
    let task = claims["urn:remit:task"]["id"].as_str().and_then(|task| task.parse().ok());
    Some(Wanted { query: lease.to_string(), task })
}

/// The serial of a certificate.
fn of_certificate(pem: &[u8]) -> Option<String> {
    let (_, pem) = parse_x509_pem(pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Some(hex(certificate.raw_serial()))
}

/// What was found, for a person.
fn found(answer: &Value) -> String {
    let matches = items(answer, "matches");
    let mut table = table(&["BY", "TASK", "STATE", "OWNER", "WORKLOAD", "INSTANCE", "RECORDS"]);
    for found in matches {
        let records = &found["records"];
        let span = match (text(&records["first"], "sequence"), text(&records["last"], "sequence")) {
            (first, _) if first.is_empty() => "in the store alone".to_owned(),
            (first, last) if first == last => format!("{first} {}", text(&records["first"], "event")),
            (first, last) => format!("{first} … {last}, {} of them", text(records, "count")),
        };
        let or_dash =
            |member| Some(text(found, member)).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
        table.add_row([
            text(found, "kind"),
            or_dash("task"),
            or_dash("state"),
            short(or_dash("owner"), 40),
            or_dash("workload"),
            short(or_dash("instance"), 48),
            span,
        ]);
    }
    let mut out = if matches.is_empty() { String::new() } else { aligned(table) + "\n" };
    for lease in matches.iter().map(|found| &found["lease"]).filter(|lease| lease.is_object()) {
        let _ = write!(out, "\ncredential {}", text(lease, "id"));
        for (member, word) in
            [("privilege", ""), ("resource", "at "), ("expires_at", "until "), ("revoked_at", "revoked ")]
        {
            let said = text(lease, member);
            if !said.is_empty() {
                let _ = write!(out, ", {word}{said}");
            }
        }
    }
    let looked_at = &answer["looked_at"];
    let all = if looked_at["all_tasks"] == true { "all there are" } else { "there are more" };
    let tasks = text(looked_at, "tasks");
    if !tasks.is_empty() {
        let _ = write!(out, "\nlooked at {tasks} tasks of the store ({all})");
    }
    if let [first, last] = items(looked_at, "records") {
        let _ = write!(
            out,
            "\nlooked at records {first} to {last} of {}, the log of this broker alone",
            text(looked_at, "log")
        );
    }
    if answer["next_cursor"].is_string() {
        let _ = write!(out, "\nthere are older records: --cursor {}", text(answer, "next_cursor"));
    }
    out.trim_start_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn token(claims: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(&json!({"alg": "ES256"})), part(claims))
    }

    #[test]
    fn a_token_is_looked_for_by_its_jti_and_never_on_the_command_line() {
        let (jti, task) = ("0af7651916cd43dd8448eb211c80319c", "task_01jd0000000000000000000000");
        let whole = token(&json!({"jti": jti, "urn:remit:task": {"id": task}}));
        assert_eq!(of_token(&whole), Some(Wanted { query: jti.to_owned(), task: task.parse().ok() }));
        assert!(matches!(wanted(&whole), Err(Failure::Input(why)) if !why.contains(jti)));
        assert_eq!(of_token(&token(&json!({"jti": "spiffe://x"}))), None);
        for other in ["", "a.b.c", "1.2.3", "task_1", "a.b"] {
            assert_eq!(of_token(other), None, "{other}");
        }
        assert_eq!(wanted("1.2").unwrap().query, "1.2");
    }
}
