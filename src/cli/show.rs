//! What a person reads: aligned, without colour when piped, safe to look at whatever an agent declared.

use chrono::TimeDelta;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde_json::Value;
use std::{fmt::Write as _, io::Write as _};

use super::{
    client::{Caller, Problem},
    exit::next_step,
};
use crate::clock::Time;

/// Writes to standard output. Whoever closed it early (`| head`) has read enough.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints where nothing that a machine reads goes.
pub(super) fn say_aside(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A member as text that is safe on a terminal.
pub(super) fn text(value: &Value, member: &str) -> String {
    match &value[member] {
        Value::Null => String::new(),
        Value::String(text) => clean(text),
        other @ (Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => clean(&other.to_string()),
    }
}

/// Purpose, owner and the like are the words of whoever declared: nothing in them may move the cursor or turn the line
/// around.
pub(super) fn clean(text: &str) -> String {
    let unsafe_char = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if unsafe_char(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        out
    })
}

pub(super) fn short(text: String, most: usize) -> String {
    if text.chars().count() <= most { text } else { text.chars().take(most - 1).chain(['…']).collect() }
}

/// A span of time in the one or two units that matter.
pub(super) fn span(span: TimeDelta) -> String {
    let seconds = span.num_seconds().abs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn when(value: &Value, member: &str, now: Time) -> String {
    let text = text(value, member);
    match text.parse::<Time>() {
        Ok(time) => format!("{text}  ({})", relative(time, now)),
        Err(_) => text,
    }
}

/// Where `time` lies as seen from `now`.
pub(super) fn relative(time: Time, now: Time) -> String {
    if time > now { format!("in {}", span(time - now)) } else { format!("{} ago", span(now - time)) }
}

/// A table without borders. Nothing is wrapped: an id must survive being copied.
#[expect(clippy::disallowed_methods, reason = "a convention of terminals, and no setting of ours")]
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header);
    }
    // The library leaves the colours out then (https://no-color.org), and the codes that end them in.
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        table.force_no_tty();
    }
    table
}

/// Its lines, starting at the left edge.
pub(super) fn aligned(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Names and values, those without a value left out.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let mut table = table(&[]);
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([*name, value.as_str()]);
    }
    aligned(table)
}

pub(super) fn items<'a>(value: &'a Value, member: &str) -> &'a [Value] {
    value[member].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn words(value: &Value, member: &str) -> String {
    items(value, member).iter().filter_map(Value::as_str).map(clean).collect::<Vec<_>>().join(", ")
}

fn state(state: &str) -> Cell {
    let colour = match state {
        "active" => Color::Green,
        "revoked" | "revoking" => Color::Red,
        "pending_approval" => Color::Yellow,
        _ => Color::DarkGrey,
    };
    Cell::new(state).fg(colour)
}

/// How a task stands, in a line.
pub(super) fn turn(task: &Value, now: Time) -> String {
    let (state, reason) = (text(task, "state"), text(task, "reason"));
    let what = match (state.as_str(), text(task, "expires_at").parse::<Time>()) {
        ("active", Ok(deadline)) => format!("deadline {}", relative(deadline, now)),
        _ => reason,
    };
    format!("{}  {}  {state}  {what}", now.format("%FT%TZ"), text(task, "task")).trim_end().to_owned()
}

/// One task: the body of declare, show and complete.
pub(super) fn task(task: &Value, now: Time) -> String {
    let context = &task["context"];
    let mut out = facts(&[
        ("task", text(task, "task")),
        ("state", text(task, "state")),
        ("purpose", text(task, "purpose")),
        ("owner", text(task, "owner")),
        ("contacts", words(task, "owner_contacts")),
        ("workload", text(task, "workload")),
        ("instance", text(task, "instance")),
        ("attested by", text(task, "attestor")),
        ("kind", text(task, "kind")),
        ("marks", words(task, "marks")),
        ("sandbox", text(task, "sandbox")),
        ("environment", text(task, "environment")),
        ("data", text(task, "data_classification")),
        ("repo", text(context, "repo")),
        ("branch", text(context, "branch")),
        ("command", text(context, "command")),
        ("declared", when(task, "created_at", now)),
        ("deadline", when(task, "expires_at", now)),
        ("ended", when(task, "ended_at", now)),
        ("reason", text(task, "reason")),
        ("permitted by", words(task, "policies")),
        ("generation", text(task, "generation")),
        ("authority", text(task, "authority_hash")),
    ]);
    section(&mut out, "granted", &grants(items(task, "authorization_details"), false));
    section(&mut out, "refused", &grants(items(task, "denied"), true));
    section(&mut out, "credentials (their tokens: --output json)", &credentials(items(task, "credentials"), now));
    out
}

fn section(out: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        let _ = write!(out, "\n\n{title}\n{body}");
    }
}

/// Details of an authority; the refused ones name the policies that decided.
fn grants(details: &[Value], with_policies: bool) -> String {
    let mut table = table(&[]);
    for detail in details {
        let mut row = vec![format!("  {}", words(detail, "privileges")), words(detail, "locations")];
        if with_policies {
            let policies = words(detail, "policies");
            row.push(if policies.is_empty() { "nothing permits it".to_owned() } else { format!("by {policies}") });
        } else {
            row.push([words(detail, "actions"), words(detail, "datatypes"), text(detail, "identifier")].join(" "));
        }
        table.add_row(row);
    }
    aligned(table)
}

/// Credentials without their tokens.
pub(super) fn credentials(credentials: &[Value], now: Time) -> String {
    let mut table = table(&[]);
    for credential in credentials {
        table.add_row([
            format!("  {}", text(credential, "privilege")),
            text(credential, "resource"),
            format!("lease {}", text(credential, "lease")),
            format!("until {}", when(credential, "expires_at", now)),
        ]);
    }
    aligned(table)
}

/// A page of tasks.
pub(super) fn tasks(page: &Value, now: Time) -> String {
    let tasks = items(page, "tasks");
    if tasks.is_empty() {
        return "no tasks".to_owned();
    }
    let mut table = table(&["TASK", "STATE", "END", "OWNER", "WORKLOAD", "PURPOSE"]);
    for task in tasks {
        let end = if task["ended_at"].is_null() { "expires_at" } else { "ended_at" };
        let end = text(task, end).parse::<Time>().map_or_else(|_| String::new(), |at| relative(at, now));
        table.add_row([
            Cell::new(text(task, "task")),
            state(&text(task, "state")),
            Cell::new(end),
            Cell::new(short(text(task, "owner"), 32)),
            Cell::new(text(task, "workload")),
            Cell::new(short(text(task, "purpose"), 48)),
        ]);
    }
    let mut out = aligned(table);
    if let Some(cursor) = page["next_cursor"].as_str() {
        let _ = write!(out, "\n\nthere are more: --cursor {}", clean(cursor));
    }
    out
}

/// Signing keys, or one, and what each is doing.
pub(super) fn keys(answer: &Value, now: Time) -> String {
    let mut table = table(&["USE", "ALGORITHM", "STATE", "", "PUBLISHED", "KEY"]);
    let one = answer.get("kid").map(|_| answer);
    for key in items(answer, "keys").iter().chain(one) {
        let at = |member: &str| text(key, member).parse::<Time>().map(|at| relative(at, now)).unwrap_or_default();
        let (colour, more) = match key["state"].as_str() {
            Some("prepared") => (Color::Yellow, format!("signs {}", at("signs_from"))),
            Some("retired") => (Color::DarkGrey, format!("goes {}", at("published_until"))),
            Some("published") => (Color::Reset, "another broker's".to_owned()),
            Some("tainted") => (Color::Red, at("tainted_at")),
            _ => (Color::Green, String::new()),
        };
        let more = match text(key, "upstream") {
            by if by.is_empty() => more,
            by if more.is_empty() => format!("certified by {by}"),
            by => format!("{more}, certified by {by}"),
        };
        table.add_row([
            Cell::new(text(key, "use")),
            Cell::new(text(key, "algorithm")),
            Cell::new(text(key, "state")).fg(colour),
            Cell::new(more),
            Cell::new(at("published_at")),
            Cell::new(text(key, "kid")),
        ]);
    }
    let mut out = aligned(table);
    if one.is_some_and(|key| key["state"] == "tainted") {
        out += "\n\nno broker believes it any more. A service that checks signatures alone may, until it fetches /jwks again";
    }
    if let Some(note) = answer["note"].as_str() {
        out = format!("{out}\n\n{note}");
    }
    out
}

/// What is on record of what was done.
pub(super) fn reported(answer: &Value) -> String {
    let missing = items(answer, "gaps").iter().map(|gap| match (text(gap, "from"), text(gap, "to")) {
        (from, to) if from == to => from,
        (from, to) => format!("{from} to {to}"),
    });
    facts(&[
        ("task", text(answer, "task")),
        ("on record", text(answer, "accepted")),
        ("word of", text(answer, "origin")),
        ("last", text(answer, "last_sequence")),
        ("missing", missing.collect::<Vec<_>>().join(", ")),
    ])
}

/// What a revoke did, and by when every kind of verifier knows.
pub(super) fn revoked(answer: &Value, now: Time) -> String {
    let known = if answer["known"] == false {
        "no: this broker has never seen it. Check the id with `remit task list`"
    } else {
        ""
    };
    let mut out = facts(&[
        ("task", text(answer, "task")),
        ("state", state_of_revoked(answer)),
        ("known", known.to_owned()),
        ("ended tasks", text(answer, "ended_tasks")),
        ("credentials", text(answer, "credentials")),
        ("effective", when(answer, "effective_by", now)),
    ]);
    section(&mut out, "rejected by", &classes(answer, now, false));
    out
}

/// What revoking one credential came to.
pub(super) fn revoked_lease(answer: &Value, now: Time) -> String {
    let mut out = facts(&[
        ("credential", text(answer, "lease")),
        ("of task", text(answer, "task")),
        ("state", state_of_revoked(answer)),
        ("expires", when(answer, "expires_at", now)),
        ("effective", when(answer, "effective_by", now)),
    ]);
    section(&mut out, "rejected by", &classes(answer, now, false));
    out
}

fn state_of_revoked(answer: &Value) -> String {
    if answer["state"] == "revoking" {
        "revoking: on record at this broker, which denies it from now on; its store is out of reach, and is told as soon as it answers"
            .to_owned()
    } else {
        text(answer, "state")
    }
}

/// Where the end of a task has arrived.
pub(super) fn reach(answer: &Value, now: Time) -> String {
    let mut out = facts(&[
        ("task", text(answer, "task")),
        ("state", text(answer, "state")),
        ("effective", when(answer, "effective_by", now)),
        ("done", if answer["done"] == true { "everywhere" } else { "not everywhere" }.to_owned()),
    ]);
    if !items(answer, "reach").is_empty() {
        section(&mut out, "rejected by", &classes(answer, now, true));
    }
    out
}

/// By when each class of verifier denies it, and whether all of them do, where that is `told`.
fn classes(answer: &Value, now: Time, told: bool) -> String {
    let mut table = table(&[]);
    for reach in items(answer, "reach") {
        let heard = match (reach["acknowledged"].as_u64(), reach["of"].as_u64()) {
            (Some(heard), Some(of)) if of > 0 => format!("{heard} of {of} acknowledged"),
            _ => String::new(),
        };
        let class = match reach["class"].as_str() {
            Some("introspection") => "services that introspect",
            Some("feed") => "services that follow the feed",
            Some("status_list") => "services that read status lists",
            Some("crl") => "services that check revocation lists",
            Some("jwks_only") => "services that only check signatures",
            Some("shared_signals") => "receivers of Shared Signals",
            Some("sandbox") => "the sandbox, gone",
            _ => &text(reach, "class"),
        };
        let done = if told && reach["done"] == true { "done" } else { "" };
        table.add_row([format!("  {class}"), format!("by {}", when(reach, "by", now)), done.to_owned(), heard]);
    }
    aligned(table)
}

/// An answer that is not what was asked for: what, why, and what to do now.
pub(super) fn problem(problem: &Problem) -> String {
    let said = &problem.said;
    let what = [&said.detail, &said.title, &said.code].into_iter().find(|text| !text.is_empty());
    let mut out = format!("error: {}", what.map_or_else(|| "refused".to_owned(), |text| clean(text)));
    let refused = grants(&said.denied, true);
    if !refused.is_empty() {
        let _ = write!(out, "\n{refused}");
    }
    let code = if said.code.is_empty() { String::new() } else { format!("{}, ", clean(&said.code)) };
    let next = next_step(&said.code, problem.caller.unwrap_or(Caller::Nobody)).unwrap_or_default();
    let _ = write!(
        out,
        "\n{}",
        facts(&[
            ("  code", format!("{code}HTTP {}", problem.status)),
            ("  request id", clean(&said.request_id)),
            ("  next", next.to_owned()),
        ])
    );
    out
}

/// An argument that a shell reads as one word.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// How this program was called, so that what it says to paste works where it was pasted from.
pub(super) fn program() -> String {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = name.to_string_lossy();
    if name.contains('/') { quoted(&name) } else { "remit".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_an_agent_declared_cannot_play_with_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}c\n"), "a\\u{1b}[2Jb\\u{202e}c\\u{a}");
        assert_eq!(clean("Prüfe die Rechnung №7"), "Prüfe die Rechnung №7");
    }

    #[test]
    fn a_page_of_tasks_is_aligned_and_names_the_next() {
        let now = "2026-11-20T10:00:00Z".parse().unwrap();
        let page = json!({"next_cursor": "abc", "tasks": [
            {"task": "task_1", "state": "active", "expires_at": "2026-11-20T10:15:00Z", "owner": "o", "workload": "w",
             "purpose": "p".repeat(60)},
            {"task": "task_2", "state": "revoked", "expires_at": "2026-11-20T10:15:00Z", "ended_at": "2026-11-20T09:58:30Z",
             "owner": "o", "workload": "w", "purpose": "p"}]});
        let shown = tasks(&page, now);
        assert!(
            shown.contains("in 15 min 0 s")
                && shown.contains("1 min 30 s ago")
                && shown.contains("--cursor abc")
                && shown.contains('…'),
            "{shown}"
        );
        assert_eq!(shown.lines().next().unwrap().find("STATE"), shown.lines().nth(1).unwrap().find("active"));
    }

    #[test]
    fn a_refusal_names_the_policies_and_what_to_do() {
        let body = json!({"code": "policy_denied", "detail": "not all of it is permitted", "request_id": "r-1", "denied": [
            {"type": "remit:access", "locations": ["https://a"], "privileges": ["secret"], "policies": ["no-secrets"]}]});
        let said = serde_json::from_value(body).unwrap();
        let shown = problem(&Problem { status: 403, caller: Some(Caller::Kernel), said, ..Problem::default() });
        for part in ["not all of it is permitted", "no-secrets", "policy_denied, HTTP 403", "r-1", "--partial"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn a_word_is_quoted_where_a_shell_would_split_it() {
        assert_eq!(quoted("/tmp/a-b"), "/tmp/a-b");
        assert_eq!(quoted("/tmp/it's here"), r"'/tmp/it'\''s here'");
    }
}
