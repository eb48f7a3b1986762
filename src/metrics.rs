//! What the broker counts and times, for Prometheus. A value that is made once and handed down; no part of it is global.
//!
//! Labels have few values, all of them known beforehand: never a task, an owner, a workload, a token, or anything else that a
//! caller chooses. So whoever may scrape learns how much is done, and never for whom.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

/// Upper bounds of requests and of the waits that they are made of, in seconds: from a look in memory to the longest deadline.
const SECONDS: [f64; 13] = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Everything that is counted. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Family<Answered, Counter>,
    request_seconds: Family<Asked, Histogram, fn() -> Histogram>,
    decisions: Family<Decided, Counter>,
    locked_out: Family<Locked, Counter>,
    minted: Family<Minted, Counter>,
    declared: Counter,
    renewed: Counter,
    completed: Counter,
    revoked: Counter,
    credentials_revoked: Counter,
    reports: Family<Reported, Counter>,
    refused: Family<Refused, Counter>,
    turned_down: Family<TurnedDown, Counter>,
    store_seconds: Family<Operated, Histogram, fn() -> Histogram>,
    store_errors: Family<Operated, Counter>,
    audit_seconds: Histogram,
    audit_errors: Counter,
    audit_anchored: Family<Anchoring, Counter>,
    audit_segments: Family<Kept, Counter>,
    audit_stdout: Family<Kept, Counter>,
    telemetry: Family<Exporting, Counter>,
    signals: Family<Signalling, Counter>,
    signals_pending: Family<Receiving, Gauge>,
    signals_age: Family<Receiving, Gauge>,
    live_credentials: Gauge,
    live_tasks: Gauge,
    locks: Gauge,
    brokers_awaited: Gauge,
    store_up: Gauge,
    ready: Gauge,
    policy: Family<PolicyInfo, Gauge>,
    configuration_current: Gauge,
    certificate_end: Family<Listening, Gauge>,
}

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Whether a task may be declared.
    Declare,
    /// Whether a credential may be minted.
    Mint,
    /// Whether a task may be renewed.
    Renew,
}

impl Action {
    /// As a label says it, and a record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Declare => "declare",
            Self::Mint => "mint",
            Self::Renew => "renew",
        }
    }
}

/// How it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is allowed.
    Permit,
    /// Some of it is not.
    Deny,
    /// It could not be told.
    Error,
}

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was declared.
    Declared,
    /// It has a later deadline.
    Renewed,
    /// It ended because its work is done.
    Completed,
    /// It was ended by somebody who may.
    Revoked,
    /// One credential of it was.
    CredentialRevoked,
}

/// What came of telling a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It has it.
    Delivered,
    /// It has heard, and is not done.
    Heard,
    /// It did not work, and is tried again.
    Failed,
    /// It is not told any more: it will not take it, or it was tried for long enough.
    GivenUp,
}

/// What is so at the moment of a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Credentials that this broker signed and that live, as far as it knows.
    pub live_credentials: u64,
    /// Tasks that were declared here and live, as far as this broker knows.
    pub live_tasks: u64,
    /// Locks that keep somebody out.
    pub locks: u64,
    /// Other brokers that have yet to tell a store that may have lost something.
    pub brokers_awaited: u64,
    /// Whether the store answered, as itself, when it was last looked at.
    pub store_up: bool,
    /// Whether this broker can mint.
    pub ready: bool,
    /// Whether it goes by what its files say.
    pub current: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    action: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Locked {
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Minted {
    form: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reported {
    origin: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    attestor: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TurnedDown {
    caller: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operated {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listening {
    listener: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Anchoring {
    anchor: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kept {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Exporting {
    signal: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Signalling {
    receiver: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Receiving {
    receiver: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyInfo {
    digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildInfo {
    version: &'static str,
}

fn timer() -> Histogram {
    Histogram::new(SECONDS)
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Nothing counted yet, for a broker that decides by the policies with this digest.
    #[must_use]
    pub fn new(policies: &str) -> Self {
        let build = Family::<BuildInfo, Gauge>::default();
        build.get_or_create(&BuildInfo { version: env!("CARGO_PKG_VERSION") }).set(1);
        let mut inner = Inner {
            registry: Registry::with_prefix("remit"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(timer),
            decisions: Family::default(),
            locked_out: Family::default(),
            minted: Family::default(),
            declared: Counter::default(),
            renewed: Counter::default(),
            completed: Counter::default(),
            revoked: Counter::default(),
            credentials_revoked: Counter::default(),
            reports: Family::default(),
            refused: Family::default(),
            turned_down: Family::default(),
            store_seconds: Family::new_with_constructor(timer),
            store_errors: Family::default(),
            audit_seconds: timer(),
            audit_errors: Counter::default(),
            audit_anchored: Family::default(),
            audit_segments: Family::default(),
            audit_stdout: Family::default(),
            telemetry: Family::default(),
            signals: Family::default(),
            signals_pending: Family::default(),
            signals_age: Family::default(),
            live_credentials: Gauge::default(),
            live_tasks: Gauge::default(),
            locks: Gauge::default(),
            brokers_awaited: Gauge::default(),
            store_up: Gauge::default(),
            ready: Gauge::default(),
            policy: Family::default(),
            configuration_current: Gauge::default(),
            certificate_end: Family::default(),
        };
        let all = &mut inner.registry;
        all.register("build_info", "What runs here; always 1", build);
        all.register("policy_info", "SHA-256 of the policies that decide; always 1", inner.policy.clone());
        let current = inner.configuration_current.clone();
        all.register("configuration_current", "0 where the files say something else, which was refused", current);
        let end = inner.certificate_end.clone();
        all.register("tls_certificate_not_after_timestamp_seconds", "When the server certificate ends", end);
        all.register("http_requests", "Requests answered", inner.requests.clone());
        all.register("http_request_duration_seconds", "Time to an answer", inner.request_seconds.clone());
        all.register("policy_decisions", "Decisions on what was asked for", inner.decisions.clone());
        all.register("locked_out", "Requests refused because a lock keeps them out", inner.locked_out.clone());
        all.register("credentials_minted", "Credentials signed and sent", inner.minted.clone());
        all.register("tasks_declared", "Tasks declared", inner.declared.clone());
        all.register("tasks_renewed", "Renewals of tasks", inner.renewed.clone());
        all.register("tasks_completed", "Tasks ended because their work is done", inner.completed.clone());
        all.register("tasks_revoked", "Tasks revoked", inner.revoked.clone());
        let one_by_one = "Credentials revoked by themselves, while their task goes on";
        all.register("credentials_revoked", one_by_one, inner.credentials_revoked.clone());
        all.register("reports", "Reports of what was done for tasks, by whose word it is", inner.reports.clone());
        all.register("evidence_refused", "Callers whose evidence was not taken", inner.refused.clone());
        all.register("callers_refused", "Known callers, of what is not theirs", inner.turned_down.clone());
        all.register("store_operation_duration_seconds", "Time the store took", inner.store_seconds.clone());
        all.register("store_errors", "Times the store failed or was not to be believed", inner.store_errors.clone());
        all.register("audit_write_duration_seconds", "Time until records were durable", inner.audit_seconds.clone());
        all.register("audit_errors", "Times the audit log took nothing", inner.audit_errors.clone());
        all.register("audit_checkpoints_sent", "Checkpoints sent to an anchor", inner.audit_anchored.clone());
        all.register("audit_segments", "Times another segment was due", inner.audit_segments.clone());
        all.register("audit_stdout", "Records for standard output", inner.audit_stdout.clone());
        all.register("telemetry_exported", "Telemetry sent to the collector", inner.telemetry.clone());
        all.register("signals", "Times a receiver was told of an end, or not", inner.signals.clone());
        all.register("signals_pending", "Ends that a receiver is still to be told of", inner.signals_pending.clone());
        all.register("signals_oldest_seconds", "Age of the oldest of them", inner.signals_age.clone());
        all.register("live_credentials", "Signed by this broker and alive", inner.live_credentials.clone());
        all.register("live_tasks", "Declared at this broker and alive", inner.live_tasks.clone());
        all.register("locks", "Locks in force", inner.locks.clone());
        let awaited = "Other brokers that have yet to tell a store that may have lost something";
        all.register("brokers_awaited", awaited, inner.brokers_awaited.clone());
        all.register("store_up", "Whether the store answered when last asked", inner.store_up.clone());
        all.register("ready", "Whether this broker can mint", inner.ready.clone());
        let metrics = Self(Arc::new(inner));
        metrics.policies(policies);
        metrics
    }

    /// Other policies decide from now on.
    pub fn policies(&self, digest: &str) {
        self.0.policy.clear();
        self.0.policy.get_or_create(&PolicyInfo { digest: digest.to_owned() }).set(1);
    }

    /// A server certificate is shown that ends then (Unix seconds).
    pub fn certificate(&self, not_after: i64) {
        self.0.certificate_end.get_or_create(&Listening { listener: "tls" }).set(not_after);
    }

    /// A request was answered. `route` is the template, never the path; `None` where there is none.
    pub fn answered(&self, method: &str, route: Option<&str>, status: u16, took: Duration) {
        let (method, route) = (self::method(method), route.unwrap_or("none").to_owned());
        self.0.request_seconds.get_or_create(&Asked { method, route: route.clone() }).observe(took.as_secs_f64());
        self.0.requests.get_or_create(&Answered { method, route, status }).inc();
    }

    /// It was decided on a task or on one credential.
    pub fn decided(&self, action: Action, outcome: Outcome) {
        let action = action.as_str();
        let outcome = match outcome {
            Outcome::Permit => "permit",
            Outcome::Deny => "deny",
            Outcome::Error => "error",
        };
        self.0.decisions.get_or_create(&Decided { action, outcome }).inc();
    }

    /// A lock kept somebody out.
    pub fn locked_out(&self, action: Action) {
        self.0.locked_out.get_or_create(&Locked { action: action.as_str() }).inc();
    }

    /// A credential of this `typ` is sent.
    pub fn minted(&self, form: &'static str) {
        self.0.minted.get_or_create(&Minted { form }).inc();
    }

    /// A task got further.
    pub fn task(&self, step: Step) {
        match step {
            Step::Declared => &self.0.declared,
            Step::Renewed => &self.0.renewed,
            Step::Completed => &self.0.completed,
            Step::Revoked => &self.0.revoked,
            Step::CredentialRevoked => &self.0.credentials_revoked,
        }
        .inc();
    }

    /// So many reports are on record, on the word of a service (`observed`) or of the workload itself.
    pub fn reported(&self, observed: bool, reports: usize) {
        let origin = if observed { "observed" } else { "self_reported" };
        self.0.reports.get_or_create(&Reported { origin }).inc_by(reports as u64);
    }

    /// Nobody was recognised: evidence for this type of attestor (`none`: there was no evidence), and why.
    pub fn refused(&self, attestor: &'static str, reason: &'static str) {
        self.0.refused.get_or_create(&Refused { attestor, reason }).inc();
    }

    /// A caller of this kind is known, and what they asked for is not theirs.
    pub fn turned_down(&self, caller: &'static str, code: &'static str) {
        self.0.turned_down.get_or_create(&TurnedDown { caller, code }).inc();
    }

    /// The store answered, or failed.
    pub fn stored(&self, operation: &'static str, took: Duration, well: bool) {
        let label = Operated { operation };
        self.0.store_seconds.get_or_create(&label).observe(took.as_secs_f64());
        // There from the first call on, so that the first error is an increase.
        let errors = self.0.store_errors.get_or_create(&label);
        if !well {
            errors.inc();
        }
    }

    /// A checkpoint of the audit log was sent to an anchor, or could not be.
    pub fn anchored(&self, anchor: &str, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.0.audit_anchored.get_or_create(&Anchoring { anchor: anchor.to_owned(), outcome }).inc();
    }

    /// Another segment of the audit log was due, and was begun or could not be.
    pub fn turned(&self, begun: bool) {
        let outcome = if begun { "begun" } else { "failed" };
        self.0.audit_segments.get_or_create(&Kept { outcome }).inc();
    }

    /// So many records went to standard output, or were left out there.
    pub fn streamed(&self, written: bool, records: u64) {
        let outcome = if written { "written" } else { "dropped" };
        self.0.audit_stdout.get_or_create(&Kept { outcome }).inc_by(records);
    }

    /// So many of a signal (`logs`, `traces`; `metrics`: all of them at once) were sent to the collector, or left out.
    pub fn exported(&self, signal: &'static str, sent: bool, count: u64) {
        let outcome = if sent { "sent" } else { "dropped" };
        self.0.telemetry.get_or_create(&Exporting { signal, outcome }).inc_by(count);
    }

    /// A receiver, by its configured name, was told of an end, or was not.
    pub fn signalled(&self, receiver: &str, told: Told) {
        let outcome = match told {
            Told::Delivered => "delivered",
            Told::Heard => "heard",
            Told::Failed => "failed",
            Told::GivenUp => "given_up",
        };
        self.0.signals.get_or_create(&Signalling { receiver: receiver.to_owned(), outcome }).inc();
    }

    /// So much a receiver is still to be told, the oldest of it so old (seconds).
    pub fn signals_pending(&self, receiver: &str, pending: usize, oldest: i64) {
        let label = Receiving { receiver: receiver.to_owned() };
        self.0.signals_pending.get_or_create(&label).set(i64::try_from(pending).unwrap_or(i64::MAX));
        self.0.signals_age.get_or_create(&label).set(oldest);
    }

    /// The audit log took records, or failed.
    pub fn recorded(&self, took: Duration, well: bool) {
        self.0.audit_seconds.observe(took.as_secs_f64());
        if !well {
            self.0.audit_errors.inc();
        }
    }

    /// All of it in the Prometheus text format, version 0.0.4.
    ///
    /// # Errors
    /// When a number cannot be written in it.
    pub fn text(&self, now: Now) -> Result<String, fmt::Error> {
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.0.live_credentials.set(count(now.live_credentials));
        self.0.live_tasks.set(count(now.live_tasks));
        self.0.locks.set(count(now.locks));
        self.0.brokers_awaited.set(count(now.brokers_awaited));
        self.0.store_up.set(now.store_up.into());
        self.0.ready.set(now.ready.into());
        self.0.configuration_current.set(now.current.into());
        let mut text = String::new();
        encode_registry(&mut text, &self.0.registry)?;
        Ok(plain(&text))
    }
}

/// The method, if it is one that everybody knows: a caller may make up any other.
#[must_use]
pub fn method(method: &str) -> &'static str {
    let known = ["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"];
    known.into_iter().find(|known| *known == method).unwrap_or("other")
}

/// `OpenMetrics`, as the library writes it, as the older format that every scraper reads: there a counter's family has the name of
/// its samples, with `_total`.
fn plain(text: &str) -> String {
    let counter = |line: &'_ str| line.strip_prefix("# TYPE ")?.strip_suffix(" counter").map(str::to_owned);
    let counters: BTreeSet<String> = text.lines().filter_map(counter).collect();
    let mut plain = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                plain.extend(["# ", what, " ", name, "_total ", rest]);
            }
            _ => plain.push_str(line),
        }
        plain.push('\n');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_named_like_its_samples() {
        let metrics = Metrics::new("d1");
        metrics.answered("GET", Some("/jwks"), 200, Duration::from_millis(3));
        metrics.answered("BREW", None, 404, Duration::ZERO);
        let now = Now {
            live_credentials: 2,
            live_tasks: 1,
            locks: 3,
            brokers_awaited: 1,
            store_up: true,
            ready: false,
            current: false,
        };
        let text = metrics.text(now).unwrap();
        for line in [
            "# HELP remit_http_requests_total Requests answered.",
            "# TYPE remit_http_requests_total counter",
            "remit_http_requests_total{method=\"GET\",route=\"/jwks\",status=\"200\"} 1",
            "remit_http_requests_total{method=\"other\",route=\"none\",status=\"404\"} 1",
            "# TYPE remit_http_request_duration_seconds histogram",
            "# TYPE remit_live_tasks gauge",
            "remit_live_credentials 2",
            "remit_locks 3",
            "remit_brokers_awaited 1",
            "remit_ready 0",
            "remit_store_up 1",
            "remit_policy_info{digest=\"d1\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with('\n') && !text.contains("EOF"));
    }
}
