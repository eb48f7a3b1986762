//! How often it decided what.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// It may go on.
pub(super) const ALLOWED: &str = "ok";
/// All that a decision can be for.
const REASONS: [&str; 10] =
    [ALLOWED, "none", "malformed", "invalid", "stale", "gap", "generation", "revoked", "locked", "privilege"];

#[derive(Default)]
pub(super) struct Counted([AtomicU64; REASONS.len()]);

impl Counted {
    pub(super) fn note(&self, reason: &str) {
        if let Some(at) = REASONS.iter().position(|one| *one == reason) {
            self.0[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// In the text format of Prometheus.
    pub(super) fn text(&self, fresh: Duration) -> String {
        let mut text =
            "# HELP remit_verifier_decisions_total What was decided.\n# TYPE remit_verifier_decisions_total counter\n"
                .to_owned();
        for (reason, count) in REASONS.iter().zip(&self.0) {
            let decision = if *reason == ALLOWED { "allow" } else { "deny" };
            let count = count.load(Ordering::Relaxed);
            let _ =
                writeln!(text, "remit_verifier_decisions_total{{decision=\"{decision}\",reason=\"{reason}\"}} {count}");
        }
        let _ = writeln!(
            text,
            "# HELP remit_verifier_fresh_seconds For how long what is known of revocations is good; at 0 everything is refused.\n\
             # TYPE remit_verifier_fresh_seconds gauge\nremit_verifier_fresh_seconds {}",
            fresh.as_secs_f64()
        );
        text
    }
}
