//! The audit log: one JSON line for every decision and every act, durable before the answer leaves. What cannot be
//! recorded is not done.
//!
//! [`chain`] makes a change show, [`segment`] keeps the files, the writer groups and syncs, [`checkpoint`] signs, and a [`Reader`] reads
//! it back.

mod anchor;
pub mod bundle;
pub mod chain;
pub mod checkpoint;
mod class;
mod config;
pub mod examine;
mod past;
mod reader;
mod retention;
pub mod segment;
mod stream;
mod witness;
mod writer;

pub use anchor::Anchor;
pub use class::Class;
pub use config::Config;
pub use past::Told;
pub use reader::{Chapter, Reader};
pub use witness::{Ending, Remembered, Witness};
pub use writer::{Audit, Found, Keeping, Terms};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    claims::{Confirmation, LockMatch},
    clock::Time,
    error::Denied,
    id::{Host, LeaseId, LockId, TaskId},
    task::{Authority, Origin, Report, State},
};

/// The log could not take it. The text is for the operator's log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unrecorded(pub String);

/// Where entries stand: the number of the first and of the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span(pub u64, pub u64);

/// A record about a task that is on disk.
#[derive(Debug)]
pub struct Recorded {
    /// The task.
    pub task: TaskId,
    /// Its number.
    pub sequence: u64,
    /// Its line, without the line feed.
    pub line: String,
}

/// A record that is on disk, for whoever sends it on.
#[derive(Debug)]
pub struct Copied<'a> {
    /// Its number.
    pub sequence: u64,
    /// Its line, without the line feed.
    pub line: &'a str,
    /// What it is to others.
    pub class: Class,
}

/// One line of the log.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// When it happened.
    pub time: Time,
    /// The `x-request-id` it happened in.
    pub request: String,
    /// Who caused it.
    pub actor: Actor,
    /// The task it is about, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Entry {
    /// How much of the room that is held back it may take.
    #[must_use]
    pub fn urgency(&self) -> Urgency {
        // How it went may take all: of what may only take a part, there is no more than was let in.
        let is_of_their_own = matches!(self.actor, Actor::Owner { .. } | Actor::Workload { .. });
        match (self.event.is_urgent(), self.event.is_intent() && is_of_their_own) {
            (false, _) => Urgency::None,
            (true, true) => Urgency::Own,
            (true, false) => Urgency::Whole,
        }
    }
}

/// How much a record may take of the room that is held back for a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing.
    None,
    /// The part for those who end what is theirs: they may do so as often as they like, and are to leave enough to the security team.
    Own,
    /// All of it.
    Whole,
}

/// Who caused an event.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "as", rename_all = "snake_case")]
pub enum Actor {
    /// The broker itself.
    Broker,
    /// Somebody who did not show who they are.
    Stranger,
    /// An operator, by name.
    Operator {
        /// The configured name; or the one that an issuer gives, behind the issuer and `#`.
        name: String,
    },
    /// Somebody who acts for the owner of a task.
    Owner {
        /// The name that their issuer gives them, behind the issuer and `#`.
        name: String,
        /// The owner.
        owner: String,
    },
    /// A service, by name.
    Service {
        /// The configured name.
        name: String,
    },
    /// An attested workload.
    Workload {
        /// Its SPIFFE ID.
        workload: String,
        /// Which instance.
        instance: String,
        /// The attestor.
        attestor: String,
        /// SHA-256 of the evidence.
        evidence: String,
    },
}

/// What happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A task was declared.
    TaskDeclared {
        /// What for.
        purpose: String,
        /// Who is accountable.
        owner: String,
        /// What was granted.
        authority: Authority,
        /// What was refused.
        denied: Vec<Denied>,
        /// The policies that permitted it.
        policies: Vec<String>,
        /// Its deadline.
        expires_at: Time,
        /// What policy was told of the workload and of the declaration.
        considered: Value,
    },
    /// A declaration was refused.
    DeclarationDenied {
        /// What for.
        purpose: String,
        /// Who would have been accountable.
        owner: String,
        /// In a sentence.
        why: String,
        /// What was refused, and by which policies.
        denied: Vec<Denied>,
        /// What policy was told of the workload and of the declaration.
        considered: Value,
    },
    /// A credential is about to leave.
    CredentialMinted {
        /// Its id.
        lease: LeaseId,
        /// Its audience.
        resource: String,
        /// Its privilege.
        privilege: String,
        /// Its `typ`: `at+jwt` or `JWT`.
        form: String,
        /// Its expiry.
        expires_at: Time,
        /// The key that it is bound to; `null` where it serves whoever holds it.
        bound_to: Option<Confirmation>,
        /// Who is accountable for its task, which may have been declared at another broker.
        owner: String,
        /// The policies that permitted it.
        policies: Vec<String>,
        /// What policy was told of the workload and of the declaration.
        considered: Value,
    },
    /// A certificate is about to leave.
    CertificateMinted {
        /// Its id: the serial.
        lease: LeaseId,
        /// The key id of the authority that signs it.
        authority: String,
        /// SHA-256 of its public key (DER).
        key: String,
        /// Its expiry.
        expires_at: Time,
        /// Who is accountable for its task, which may have been declared at another broker.
        owner: String,
        /// The policies that permitted it.
        policies: Vec<String>,
        /// What policy was told of the workload and of the declaration.
        considered: Value,
    },
    /// A certificate of the broker itself is about to be shown.
    ServerCertificateMinted {
        /// Its serial.
        serial: String,
        /// The key id of the authority that signs it.
        authority: String,
        /// SHA-256 of its public key (DER).
        key: String,
        /// By which names the broker is reached.
        hosts: Vec<Host>,
        /// Its expiry.
        expires_at: Time,
    },
    /// A credential was refused.
    MintDenied {
        /// What was refused, and by which policies.
        #[serde(flatten)]
        denied: Denied,
        /// What policy was told of the workload and of the declaration.
        considered: Value,
    },
    /// A credential was not minted although no policy forbade it: the task is over, or the key had another task that was revoked.
    MintRefused {
        /// The stable code: `task_not_active`, or `key_of_revoked_task`.
        code: &'static str,
    },
    /// A task gets a later deadline.
    TaskRenewed {
        /// The deadline.
        expires_at: Time,
        /// Who is accountable for its task, which may have been declared at another broker.
        owner: String,
        /// The policies that permitted it.
        policies: Vec<String>,
        /// What policy was told of the workload and of the declaration.
        considered: Value,
    },
    /// A task token is about to leave.
    TaskTokenIssued {
        /// Its id.
        lease: LeaseId,
        /// Its expiry.
        expires_at: Time,
        /// The key that it is bound to.
        bound_to: Confirmation,
    },
    /// Somebody says what was done for a task.
    Reported {
        /// Whose word it is.
        origin: Origin,
        /// The credential that a service was shown.
        #[serde(skip_serializing_if = "Option::is_none")]
        lease: Option<LeaseId>,
        /// Whether the task had ended by then.
        late: bool,
        /// What was done.
        reports: Vec<Report>,
    },
    /// What somebody said was done for a task was not taken.
    ReportRefused {
        /// Whose word it is.
        origin: Origin,
        /// The stable code: `task_not_active`, or `sequence_reused`.
        code: &'static str,
    },
    /// A renewal was refused.
    RenewalDenied {
        /// In a sentence.
        why: String,
        /// What of the task is no longer allowed, and by which policies.
        denied: Vec<Denied>,
        /// What policy was told of the workload and of the declaration.
        considered: Value,
    },
    /// A task was not renewed although nothing forbade it: it is over.
    RenewalRefused {
        /// The stable code: `task_not_active`.
        code: &'static str,
    },
    /// An operator tried what their roles do not allow.
    OperatorRefused {
        /// Why, in a sentence.
        why: String,
    },
    /// Somebody is about to end a task.
    EndRequested {
        /// How.
        state: State,
        /// In whose words.
        reason: Option<String>,
    },
    /// A task ended.
    TaskEnded {
        /// How.
        state: State,
        /// Whether the broker had seen the task.
        known: bool,
        /// Tasks that ended with it.
        ended_tasks: u64,
        /// Credentials that died with it.
        credentials: u64,
        /// Who is accountable for the task, where the broker had seen it.
        #[serde(skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        /// Whose the task is.
        #[serde(skip_serializing_if = "Option::is_none")]
        workload: Option<String>,
        /// The record of who asked for it.
        settles: Span,
    },
    /// The store was told again of an end that it had lost, or had not heard of.
    EndReplayed {
        /// How the task ended, as it stands now.
        state: State,
        /// Credentials that died with it.
        credentials: u64,
        /// Who is accountable for the task, where the broker had seen it.
        #[serde(skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        /// Whose the task is.
        #[serde(skip_serializing_if = "Option::is_none")]
        workload: Option<String>,
    },
    /// The broker went over to another generation: everything older is dead.
    GenerationEntered {
        /// The one before.
        from: u64,
        /// The one that stands.
        to: u64,
        /// Why it went up.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Somebody is about to lock out what matches.
    LockRequested {
        /// The lock.
        lock: LockId,
        /// Whom it keeps out.
        #[serde(rename = "match")]
        matches: LockMatch,
        /// Only tasks that were declared then or later.
        #[serde(skip_serializing_if = "Option::is_none")]
        declared_after: Option<Time>,
        /// Only tasks that were declared before.
        #[serde(skip_serializing_if = "Option::is_none")]
        declared_before: Option<Time>,
        /// Until when, if it has an end.
        until: Option<Time>,
        /// In whose words.
        reason: String,
    },
    /// Somebody is about to let a lock stand for longer.
    LockExtensionRequested {
        /// The lock.
        lock: LockId,
        /// Until when.
        until: Time,
        /// In whose words.
        reason: String,
    },
    /// Somebody is about to release a lock.
    LockReleaseRequested {
        /// The lock.
        lock: LockId,
        /// In whose words.
        reason: String,
    },
    /// Every task that a lock matches has ended.
    LockExpanded {
        /// The lock.
        lock: LockId,
        /// How many tasks it matched.
        matched: u64,
        /// How many of these it ended.
        revoked: u64,
    },
    /// Somebody asked what a lock would match.
    LockWeighed {
        /// Whom it would keep out.
        #[serde(rename = "match")]
        matches: LockMatch,
        /// Only tasks that were declared then or later.
        #[serde(skip_serializing_if = "Option::is_none")]
        declared_after: Option<Time>,
        /// Only tasks that were declared before.
        #[serde(skip_serializing_if = "Option::is_none")]
        declared_before: Option<Time>,
    },
    /// A lock kept a workload out.
    LockedOut {
        /// The lock.
        lock: LockId,
        /// From what: `declare`, `mint` or `renew`.
        action: &'static str,
    },
    /// Somebody is about to end one credential, and nothing else of its task.
    CredentialRevocationRequested {
        /// Its id.
        lease: LeaseId,
        /// In whose words.
        reason: Option<String>,
    },
    /// A credential is dead.
    CredentialRevoked {
        /// Its id.
        lease: LeaseId,
        /// The record of who asked for it.
        settles: Span,
    },
    /// The store was told again of a dead credential that it had lost, or had not heard of.
    CredentialRevocationReplayed {
        /// Its id.
        lease: LeaseId,
    },
    /// A receiver was told of the end of a task, or is not told any more.
    Signalled {
        /// The receiver.
        receiver: String,
        /// Of what: `session-revoked`, `task.revoked`, `task.completed` or `verification`.
        signal: &'static str,
        /// The id of what it was told.
        jti: String,
        /// `delivered`; `confirmed` where the sandbox is gone; `refused` where it will not take it; `expired` where it was given up.
        outcome: &'static str,
        /// How often it was tried.
        attempts: u32,
        /// The sandbox, where it is about one.
        #[serde(skip_serializing_if = "Option::is_none")]
        sandbox: Option<String>,
        /// Why it was refused: the code that the receiver gave.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// An operator has a receiver told that what it is told arrives.
    VerificationRequested {
        /// The receiver.
        receiver: String,
    },
    /// The configuration changed, and the broker goes by the new one.
    ConfigurationAdopted {
        /// Which policies: the digest of the set.
        policies: String,
    },
    /// The audit log is to be kept in another way.
    LogTermsAdopted(Keeping),
    /// The next signing key is to be prepared, wherever there is none.
    KeyRotationRequested {
        /// For what.
        purposes: Vec<String>,
        /// In whose words.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A signing key that was not made by the broker is about to be published.
    KeyImported {
        /// For what.
        purpose: String,
        /// Its id.
        kid: String,
        /// What it signs with.
        algorithm: String,
    },
    /// The next signing key signs from now on.
    KeyActivated {
        /// For what.
        purpose: String,
        /// Its id.
        kid: String,
        /// The id of the one that signs no more.
        replaces: String,
    },
    /// The broker of a signing key is gone, and the key is to be retired.
    KeyAbandoned {
        /// For what.
        purpose: String,
        /// Its id.
        kid: String,
    },
    /// Somebody is about to taint a signing key.
    KeyTaintRequested {
        /// Its id.
        kid: String,
        /// What it is for.
        purpose: String,
        /// In whose words.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A signing key is tainted, and what this broker signs is signed with another.
    KeyTainted {
        /// Its id.
        kid: String,
        /// What it was for.
        purpose: String,
        /// Since when.
        tainted_at: Time,
        /// The record of who asked for it.
        settles: Span,
    },
    /// An operator looked at something.
    Looked {
        /// At what: `task`, `tasks`, `timeline`, `keys`, `introspection`.
        at: String,
    },
    /// Somebody was turned away: what they presented shows nothing, or there was nothing.
    EvidenceRefused {
        /// Who judged it.
        attestor: &'static str,
        /// `invalid`; `possession` without the key that it goes with; `replay` where it serves once; `unavailable` where it could not
        /// be told.
        reason: &'static str,
        /// In a sentence.
        why: String,
    },
    /// Others were turned away in the same minute, or in several of which it could not be told.
    MoreEvidenceRefused {
        /// When the minute began, or the first of several.
        since: Time,
        /// How many, beside those that are on record one by one.
        counts: Vec<Counted>,
    },
    /// Somebody who is known asked for what their role does not allow, or for a task that is not theirs.
    CallerRefused {
        /// What they wanted to do, in a word.
        asked: &'static str,
        /// The stable code: `policy_denied`, `not_found`, or `evidence_invalid` where others authenticate.
        code: &'static str,
        /// In a sentence.
        why: String,
        /// The task that they named, whether there is one or not.
        #[serde(skip_serializing_if = "Option::is_none")]
        named: Option<TaskId>,
    },
    /// Others were refused so in the same minute, or in several of which it could not be told.
    MoreCallersRefused {
        /// When the minute began, or the first of several.
        since: Time,
        /// How many, beside those that are on record one by one.
        counts: Vec<CountedCaller>,
        /// How many more, of callers for whom there was no room.
        beyond: u64,
    },
    /// A service asked about a credential, and heard that it is alive: for the first time, the tenth, the hundredth, and so on.
    Introspected {
        /// The credential.
        lease: LeaseId,
        /// How often by now, at this broker.
        times: u64,
    },
    /// A service asked about a credential of a task that has ended, and heard no: for the first time, the tenth, and so on.
    RefusedAfterEnd {
        /// The credential that was asked about.
        lease: LeaseId,
        /// How often by now, at this broker, about any of the task.
        times: u64,
    },
    /// How it went with what was about to be done.
    Settled {
        /// The records of what was about to be done.
        settles: Span,
        /// How it went.
        outcome: Outcome,
    },
    /// A segment of the log begins.
    SegmentOpened {
        /// The log's name.
        log: String,
    },
    /// The log that this broker wrote before was not there any more when this one was begun.
    EarlierLogGone {
        /// Its name.
        log: String,
        /// The number of the last record of it that is remembered.
        last: u64,
        /// The digest of that.
        digest: chain::Digest,
    },
    /// The log was found with records at its end that nothing shows to be the broker's: it may have died before it could note them.
    TailUnwitnessed {
        /// The number of the first.
        first: u64,
        /// The number of the last.
        last: u64,
    },
    /// A segment of the log was kept for as long as it had to be, and is about to be removed.
    SegmentDropped {
        /// The number of its first record.
        first: u64,
        /// The number of its last record.
        last: u64,
    },
}

impl Event {
    /// Whether it says what is about to be done, so that something later says how it went.
    #[must_use]
    pub fn is_intent(&self) -> bool {
        matches!(
            self,
            Self::TaskDeclared { .. }
                | Self::CredentialMinted { .. }
                | Self::CertificateMinted { .. }
                | Self::TaskTokenIssued { .. }
                | Self::TaskRenewed { .. }
                | Self::Reported { .. }
                | Self::EndRequested { .. }
                | Self::LockRequested { .. }
                | Self::LockExtensionRequested { .. }
                | Self::LockReleaseRequested { .. }
                | Self::CredentialRevocationRequested { .. }
                | Self::KeyTaintRequested { .. }
        )
    }

    /// Whether it is recorded on a full disk too: that a revoke was asked for or a key is to be believed no more, which other key takes its
    /// place, and how any end that is on record went; and what the log says of itself where that makes room, or says how it was found.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        matches!(
            self,
            Self::EndRequested { state: State::Revoked, .. }
                | Self::TaskEnded { .. }
                | Self::EndReplayed { .. }
                | Self::GenerationEntered { .. }
                | Self::LockRequested { .. }
                | Self::LockExtensionRequested { .. }
                | Self::CredentialRevocationRequested { .. }
                | Self::CredentialRevoked { .. }
                | Self::CredentialRevocationReplayed { .. }
                | Self::LogTermsAdopted(_)
                | Self::SegmentDropped { .. }
                | Self::TailUnwitnessed { .. }
                | Self::EarlierLogGone { .. }
                | Self::KeyTaintRequested { .. }
                | Self::KeyActivated { .. }
                | Self::KeyTainted { .. }
        )
    }
}

/// How many were turned away.
#[derive(Debug, Serialize)]
pub struct Counted {
    /// Who judged what they presented.
    pub attestor: &'static str,
    /// As there.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
}

/// How often a caller was refused.
#[derive(Debug, Serialize)]
pub struct CountedCaller {
    /// `workload`, `service`, `owner` or `operator`.
    #[serde(rename = "as")]
    pub kind: &'static str,
    /// The SPIFFE ID of a workload, the name of anybody else.
    pub name: String,
    /// As there.
    pub code: &'static str,
    /// How often.
    pub count: u64,
}

/// How it went with what was about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done, and is on its way to whoever asked.
    Done,
    /// It was not done.
    NotDone,
    /// It may have been done: whoever asked went away, or the store gave no answer.
    Unknown,
}
