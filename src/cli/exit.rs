//! How a command ends: one table, in code and in `remit --help`.

use std::fmt::Write as _;

use super::client::{Caller, Problem};

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Done,
    Refused,
    BadInput,
    NotAuthenticated,
    OutOfReach,
    NotAccepted,
    BadConfiguration,
}

impl Exit {
    /// Every one, in the order of the table.
    pub(super) const ALL: [Exit; 7] = [
        Exit::Done,
        Exit::Refused,
        Exit::BadInput,
        Exit::NotAuthenticated,
        Exit::OutOfReach,
        Exit::NotAccepted,
        Exit::BadConfiguration,
    ];

    /// The number that a shell sees.
    pub(super) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::BadInput => 2,
            Exit::NotAuthenticated => 3,
            Exit::OutOfReach => 4,
            Exit::NotAccepted => 5,
            // EX_CONFIG of sysexits.h, which supervisors know not to restart on.
            Exit::BadConfiguration => 78,
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Refused => {
                "the broker refused: policy, task not active, not found, quota; find: nothing found; serve: failed to start"
            }
            Exit::BadInput => "bad usage or bad input",
            Exit::NotAuthenticated => "not authenticated: evidence or token missing or not accepted",
            Exit::OutOfReach => "the broker or its store is out of reach or in doubt; try again",
            Exit::NotAccepted => {
                "verify: the token is not accepted; audit: the log or the bundle is not what was written"
            }
            Exit::BadConfiguration => {
                "serve, config check, policy check: the configuration, or a policy or its cases, is not accepted"
            }
        }
    }

    /// How an answer of the broker with this status ends a command.
    pub(super) fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Exit::Done,
            400 | 413 | 415 => Exit::BadInput,
            401 => Exit::NotAuthenticated,
            300..=399 | 408 | 500.. => Exit::OutOfReach,
            _ => Exit::Refused,
        }
    }

    /// The table, for `--help`.
    pub(super) fn help() -> String {
        Self::ALL.iter().fold("Exit codes:".to_owned(), |mut help, exit| {
            let _ = write!(help, "\n  {:>2}  {}", exit.code(), exit.meaning());
            help
        })
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The broker answered, and not with what was asked for.
    Answered(Box<Problem>),
    /// What was typed or read is no good. Says what to change.
    Input(String),
    /// No answer. Says from whom.
    OutOfReach(String),
    /// `verify` has printed why the token is not accepted.
    NotAccepted,
    /// It has printed what the broker promises: it is on record, and not everywhere yet.
    Pending,
    /// A check has printed what is wrong with a configuration or with policies.
    CheckFailed,
    /// The configuration, one mistake a line.
    Configuration(String),
    /// It could not start or go on. Says why.
    Stopped(String),
}

impl Failure {
    /// The exit code it ends with.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Failure::Answered(problem) => Exit::of_status(problem.status),
            Failure::Input(_) => Exit::BadInput,
            Failure::OutOfReach(_) | Failure::Pending => Exit::OutOfReach,
            Failure::NotAccepted => Exit::NotAccepted,
            Failure::CheckFailed | Failure::Configuration(_) => Exit::BadConfiguration,
            Failure::Stopped(_) => Exit::Refused,
        }
    }

    /// What stands on standard error, for a person.
    pub(super) fn text(&self) -> String {
        match self {
            Failure::Answered(problem) => super::show::problem(problem),
            Failure::Configuration(what) if what.contains('\n') => {
                format!("error: the configuration is not accepted\n  - {}", what.replace('\n', "\n  - "))
            }
            Failure::Input(what) | Failure::Configuration(what) | Failure::Stopped(what) => format!("error: {what}"),
            Failure::OutOfReach(what) => {
                format!("error: {what}\n  next  is `remit serve` running there? --url or REMIT_URL says where to look")
            }
            Failure::CheckFailed | Failure::NotAccepted | Failure::Pending => String::new(),
        }
    }

    /// What stands on standard error with `--output json`: the broker's own words where it had any.
    pub(super) fn json(&self) -> String {
        match self {
            Failure::Answered(problem) => problem.body.clone(),
            Failure::Input(detail)
            | Failure::Configuration(detail)
            | Failure::Stopped(detail)
            | Failure::OutOfReach(detail) => {
                serde_json::json!({ "title": self.exit().meaning(), "detail": detail }).to_string()
            }
            Failure::CheckFailed | Failure::NotAccepted | Failure::Pending => String::new(),
        }
    }
}

/// What to do about an error code of the broker, for whoever called like `caller`.
pub(super) fn next_step(code: &str, caller: Caller) -> Option<&'static str> {
    Some(match (code, caller) {
        ("evidence_invalid", Caller::Operator) => {
            "the broker knows no operator with the token in --operator-token-file; one of an issuer may have expired: get a new one"
        }
        ("evidence_invalid", Caller::Kernel) => {
            "the broker has no attestor for processes like this one; --evidence file:PATH or env:VAR presents a JWT instead"
        }
        ("evidence_invalid", Caller::Evidence) => {
            "the evidence must be unexpired, for this broker (`aud`), and from an issuer in its configuration"
        }
        ("evidence_invalid", Caller::TaskToken) => {
            "a task token serves its one task, with the key that it is bound to, until it expires; `remit task renew` with fresh \
             evidence and --key --task-token FILE gets the next one"
        }
        ("evidence_invalid", Caller::Nobody) => {
            "present evidence: --evidence file:PATH or env:VAR with a JWT of a trusted issuer, or --url unix:SOCKET for the \
             kernel's word; operators: --operator-token-file"
        }
        ("evidence_invalid" | "invalid_client", Caller::Service) => {
            "the broker knows no service with the token in --service-token-file"
        }
        ("policy_denied", Caller::Operator) => {
            "take the token of an operator with that role, or add it to `roles` of the [[operator]] or of a grant in the configuration"
        }
        ("policy_denied", _) => {
            "ask for less (a declaration can go on with what is granted: --partial), or have the policy or the [[service]] list changed"
        }
        ("locked", _) => "the security team has locked this out; ask them, quoting the request id",
        ("not_found", Caller::Operator) => {
            "check the id: `remit task list`, or `remit lock list`, shows what the broker knows"
        }
        ("not_found", _) => {
            "unknown, or not this workload instance's own; operators see every task with --operator-token-file"
        }
        ("task_not_active", _) => "it has ended for good: declare a new one with `remit task declare`",
        ("idempotency_key_reused", _) => "use a new --idempotency-key for a new declaration",
        ("quota_exceeded", _) => "wait, or complete tasks that are done",
        ("temporarily_unavailable", _) => {
            "try again, a revoke above all: it may not have been recorded. GET /readyz names what is missing"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_codes_are_distinct_and_in_the_help() {
        let help = Exit::help();
        for (at, exit) in Exit::ALL.iter().enumerate() {
            assert!(Exit::ALL[..at].iter().all(|other| other.code() != exit.code()));
            assert!(help.contains(&format!("{:>2}  {}", exit.code(), exit.meaning())), "{help}");
        }
    }

    #[test]
    fn every_status_of_the_broker_has_its_exit_code() {
        let table =
            [(200, 0), (201, 0), (400, 2), (401, 3), (403, 1), (404, 1), (409, 1), (422, 1), (429, 1), (503, 4)];
        for (status, code) in table {
            assert_eq!(Exit::of_status(status).code(), code, "{status}");
        }
        assert_eq!(Failure::Configuration(String::new()).exit().code(), 78);
        assert_eq!(Failure::NotAccepted.exit().code(), 5);
        assert_eq!(Failure::Stopped(String::new()).exit().code(), 1);
        assert_eq!(Failure::OutOfReach(String::new()).exit().code(), 4);
    }
}
