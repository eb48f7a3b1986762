//! `remit task timeline`: what happened to a task, for a person.

use serde_json::Value;
use std::fmt::Write as _;

use super::show::{aligned, items, short, table, text, words};
use crate::clock::Time;

/// What happened, a line for each event.
pub(super) fn story(answer: &Value) -> String {
    let (mut logs, mut table) = (Vec::new(), table(&["TIME", "RECORD", "EVENT", "BY", "WHAT"]));
    let events = items(answer, "events");
    let several = events.iter().any(|event| event["task"] != answer["task"]);
    for event in events {
        let source = &event["source"];
        let log = text(source, "log");
        let at = logs.iter().position(|known| *known == log).unwrap_or_else(|| {
            logs.push(log);
            logs.len() - 1
        });
        let mut what = what(event);
        if several {
            what = format!("{}  {what}", below(answer, event));
        }
        table.add_row([
            moment(event),
            format!("{}:{}", letter(at), text(source, "sequence")).trim_end_matches(':').to_owned(),
            text(event, "event").replace('_', " "),
            by(&event["actor"]),
            what,
        ]);
    }
    let mut out = if events.is_empty() { "nothing is told of it".to_owned() } else { aligned(table) };
    out.push('\n');
    for (at, log) in logs.iter().enumerate() {
        let _ = write!(out, "\n{} is {log}", letter(at));
    }
    if answer["complete"] != true {
        out.push_str("\nThis is not all of it: the audit logs of the brokers are (remit audit show DIR --task TASK)");
    }
    if answer["unverified"].as_u64().is_some_and(|count| count > 0) {
        let _ =
            write!(out, "\nunverified: {} entries in the store were written by no broker", text(answer, "unverified"));
    }
    out
}

fn letter(at: usize) -> String {
    u8::try_from(at).ok().filter(|at| *at < 26).map_or_else(|| at.to_string(), |at| char::from(b'A' + at).to_string())
}

fn moment(event: &Value) -> String {
    let said = text(event, "time");
    said.parse::<Time>().map_or(said, |time| time.format("%F %T%.3f").to_string())
}

/// The task, as seen from the one that was asked for.
fn below(answer: &Value, event: &Value) -> String {
    let (whole, task) = (text(answer, "task"), text(event, "task"));
    task.strip_prefix(&whole).filter(|rest| !rest.is_empty()).unwrap_or("·").to_owned()
}

fn by(actor: &Value) -> String {
    match actor["as"].as_str() {
        Some("workload") => short(text(actor, "workload"), 56),
        Some("broker") => "the broker".to_owned(),
        _ => format!("{} {}", text(actor, "as"), text(actor, "name")),
    }
}

/// What an event says, with its most telling members in words and the rest by name.
fn what(event: &Value) -> String {
    let named = |member: &str, words: &str| {
        let text = text(event, member);
        if text.is_empty() { text } else { format!("{words}{text}") }
    };
    let policies = words(event, "policies");
    let policies = if policies.is_empty() { String::new() } else { format!("by {policies}") };
    let (until, lease) = (named("expires_at", "until "), named("lease", "lease "));
    let parts = match event["event"].as_str() {
        Some("task_declared") => vec![
            format!("“{}” for {}", text(event, "purpose"), text(event, "owner")),
            grants(items(event, "authority")),
            refused(items(event, "denied")),
            until,
            policies,
            evidence(event),
            considered(event),
        ],
        Some("credential_minted" | "certificate_minted" | "task_token_issued") => vec![
            lease,
            named("privilege", ""),
            named("resource", "at "),
            named("form", ""),
            until,
            bound(&event["bound_to"]),
            policies,
            evidence(event),
            considered(event),
        ],
        Some("mint_denied") => {
            let by = if policies.is_empty() { "nothing permits it".to_owned() } else { policies };
            vec![words(event, "privileges"), words(event, "locations"), by, considered(event)]
        }
        Some("renewal_denied") => vec![named("why", ""), refused(items(event, "denied")), considered(event)],
        Some("task_renewed") => vec![until, policies, evidence(event), considered(event)],
        Some("mint_refused" | "renewal_refused") => vec![named("code", "")],
        Some("credential_revocation_requested") => vec![lease, named("reason", "")],
        Some("credential_revoked" | "credential_revocation_replayed") => vec![lease],
        Some("end_requested") => vec![named("state", ""), named("reason", "")],
        Some("task_ended") => {
            vec![named("state", ""), named("ended_tasks", "tasks "), named("credentials", "credentials ")]
        }
        Some("introspected") => vec!["alive".to_owned(), lease, times(event)],
        Some("refused_after_end") => vec!["not alive".to_owned(), lease, times(event)],
        Some("settled") => vec![named("outcome", ""), named("settles", "records ")],
        Some("left_out") => vec![named("count", "")],
        Some("looked") => vec![named("at", "at ")],
        _ => rest(event),
    };
    let mut parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let left_out = words(event, "left_out");
    if !left_out.is_empty() {
        parts.push(format!("(in the audit log alone: {left_out})"));
    }
    parts.join(", ")
}

/// Members of an event that this program does not know.
fn rest(event: &Value) -> Vec<String> {
    let known = ["time", "task", "source", "event", "actor", "request", "intent"];
    let members = event.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let said = members.filter(|name| !known.contains(name));
    said.map(|name| short(format!("{name} {}", text(event, name)), 200)).collect()
}

fn grants(details: &[Value]) -> String {
    let grant = |detail: &Value| format!("{} at {}", words(detail, "privileges"), words(detail, "locations"));
    details.iter().map(grant).collect::<Vec<_>>().join("; ")
}

fn refused(details: &[Value]) -> String {
    if details.is_empty() { String::new() } else { format!("refused {}", grants(details)) }
}

fn evidence(event: &Value) -> String {
    let digest = text(&event["actor"], "evidence");
    if digest.is_empty() { digest } else { format!("evidence {}", short(digest, 13)) }
}

fn bound(to: &Value) -> String {
    let Some((name, _)) = to.as_object().and_then(|to| to.iter().next()) else { return String::new() };
    format!("bound to {name} {}", text(to, name))
}

fn times(event: &Value) -> String {
    match event["times"].as_u64() {
        Some(1) => "asked for the first time".to_owned(),
        Some(times) => format!("asked {times} times"),
        None => String::new(),
    }
}

/// The values that policy looked at.
fn considered(event: &Value) -> String {
    let Some(groups) = event["considered"].as_object() else { return String::new() };
    let one = |(group, values): (&String, &Value)| {
        let names: Vec<_> = values.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
        names
            .into_iter()
            .map(|name| {
                let set = words(values, &name);
                let value = if set.is_empty() { text(values, &name) } else { set };
                format!("{group}.{name}={value}")
            })
            .collect::<Vec<_>>()
    };
    let said: Vec<_> = groups.iter().flat_map(one).collect();
    if said.is_empty() { String::new() } else { format!("given {}", said.join(" ")) }
}
