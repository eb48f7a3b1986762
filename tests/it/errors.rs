//! `tests/golden/errors.txt`: every error of the broker, its status and code on our own API and on `/oauth2/*`.

use remit::{
    error::{Error, Input, Limit, Part, Sought},
    http::{EvidenceRole, OAUTH, PROBLEM},
};
use std::{fmt::Write as _, fs, path::Path};

fn denied(limit: Limit) -> Error {
    Error::PolicyDenied { limit, denied: Vec::new(), detail: String::new() }
}

fn invalid(part: Part) -> Error {
    Error::InvalidRequest { part, detail: String::new() }
}

/// Every variant. The match makes a new one a compile error here.
pub(crate) fn all() -> Vec<(&'static str, Error)> {
    fn listed(error: &Error) {
        match error {
            Error::EvidenceInvalid
            | Error::IdempotencyKeyReused
            | Error::InvalidRequest {
                part: Part::AuthorizationDetails | Part::GrantType | Part::Request | Part::Scope | Part::Target,
                ..
            }
            | Error::Locked
            | Error::NotFound(Sought::Credential | Sought::Key | Sought::Lock | Sought::Receiver | Sought::Task)
            | Error::PolicyDenied {
                limit: Limit::Audience | Limit::Location | Limit::Policy | Limit::Privilege | Limit::Role,
                ..
            }
            | Error::ProofInvalid(_)
            | Error::ProofNonce
            | Error::QuotaExceeded(_)
            | Error::SequenceReused(_)
            | Error::TaskNotActive
            | Error::Unavailable(
                Input::Audit | Input::Issuer | Input::Journal | Input::Keys | Input::Policy | Input::Store,
            ) => {}
        }
    }
    let all = vec![
        ("EvidenceInvalid", Error::EvidenceInvalid),
        ("IdempotencyKeyReused", Error::IdempotencyKeyReused),
        ("InvalidRequest(AuthorizationDetails)", invalid(Part::AuthorizationDetails)),
        ("InvalidRequest(GrantType)", invalid(Part::GrantType)),
        ("InvalidRequest(Request)", invalid(Part::Request)),
        ("InvalidRequest(Scope)", invalid(Part::Scope)),
        ("InvalidRequest(Target)", invalid(Part::Target)),
        ("Locked", Error::Locked),
        ("NotFound(Credential)", Error::NotFound(Sought::Credential)),
        ("NotFound(Key)", Error::NotFound(Sought::Key)),
        ("NotFound(Lock)", Error::NotFound(Sought::Lock)),
        ("NotFound(Receiver)", Error::NotFound(Sought::Receiver)),
        ("NotFound(Task)", Error::NotFound(Sought::Task)),
        ("PolicyDenied(Audience)", denied(Limit::Audience)),
        ("PolicyDenied(Location)", denied(Limit::Location)),
        ("PolicyDenied(Policy)", denied(Limit::Policy)),
        ("PolicyDenied(Privilege)", denied(Limit::Privilege)),
        ("PolicyDenied(Role)", denied(Limit::Role)),
        ("ProofInvalid", Error::ProofInvalid("")),
        ("ProofNonce", Error::ProofNonce),
        ("QuotaExceeded", Error::QuotaExceeded("")),
        ("SequenceReused", Error::SequenceReused(1)),
        ("TaskNotActive", Error::TaskNotActive),
        ("Unavailable(Audit)", Error::Unavailable(Input::Audit)),
        ("Unavailable(Issuer)", Error::Unavailable(Input::Issuer)),
        ("Unavailable(Keys)", Error::Unavailable(Input::Keys)),
        ("Unavailable(Policy)", Error::Unavailable(Input::Policy)),
        ("Unavailable(Store)", Error::Unavailable(Input::Store)),
    ];
    for (_, error) in &all {
        listed(error);
    }
    all
}

#[test]
fn the_table_is_the_golden_one() {
    let mut table = String::new();
    writeln!(table, "{:<38}{:<31}{:<39}/oauth2/*, as subject token", "error", "/v1/*", "/oauth2/*, as client").unwrap();
    for (name, error) in all() {
        let cell = |(status, code): (axum::http::StatusCode, &str)| format!("{} {code}", status.as_u16());
        let (problem, client, subject) = (
            cell(PROBLEM(&error)),
            cell(OAUTH(&error, EvidenceRole::Client)),
            cell(OAUTH(&error, EvidenceRole::Subject)),
        );
        writeln!(table, "{name:<38}{problem:<31}{client:<39}{subject}").unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = root.join("tests/golden/errors.txt");
    if fs::read_to_string(&golden).unwrap_or_default() != table {
        let new = root.join("target/errors.txt");
        fs::write(&new, table).unwrap();
        panic!("the error table changed; if that is meant: cp {} {}", new.display(), golden.display());
    }
}
