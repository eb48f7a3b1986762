//! The task token: what attestation proved when a task was declared or renewed, said again by the broker in an access token (RFC 9068)
//! that is for the broker itself and bound to the workload's key. For its task it stands for the evidence, until its end.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

use super::{Attested, Facts, Mark};
use crate::{
    claims::{Confirmation, Status, TaskClaim},
    clock::Time,
    id::{LeaseId, SpiffeId},
    jose::{Invalid, Unverified, VerifyingKey},
};

/// Seconds by which the clock of another broker may be ahead of ours.
const SKEW: i64 = 5;

/// The one `scope`. No service accepts it: it is none of the privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Scope {
    #[serde(rename = "task")]
    Task,
}

/// What a task token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskToken {
    iss: String,
    sub: SpiffeId,
    client_id: SpiffeId,
    aud: String,
    exp: i64,
    iat: i64,
    nbf: i64,
    jti: LeaseId,
    scope: Scope,
    cnf: Confirmation,
    status: Status,
    #[serde(rename = "urn:remit:task")]
    task: TaskClaim,
    #[serde(rename = "urn:remit:attested")]
    said: Said,
}

/// What was attested, beside what [`TaskClaim`] says of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    at: i64,
    evidence: String,
    instance: String,
    selectors: BTreeSet<String>,
    marks: Vec<Mark>,
    facts: Facts,
}

/// What a task token is made of.
#[derive(Debug)]
pub struct Content<'a> {
    /// The broker.
    pub issuer: &'a str,
    /// Its id.
    pub id: LeaseId,
    /// The one task that it is for.
    pub task: TaskClaim,
    /// Where it stands whether the task has ended.
    pub status: Status,
    /// Whose word it stands for.
    pub attested: &'a Attested,
    /// When that was attested by evidence.
    pub attested_at: Time,
    /// The key that it is bound to.
    pub key: Confirmation,
    /// When it is made.
    pub now: Time,
    /// Its end.
    pub expires_at: Time,
}

/// What a task token proves of whoever holds the key.
#[derive(Debug)]
pub struct Standing {
    /// What was attested; it ends with the token.
    pub attested: Attested,
    /// When that was attested by evidence.
    pub attested_at: Time,
    /// Its id.
    pub lease: LeaseId,
    /// The one task that it is for.
    pub task: TaskClaim,
    /// The key of its holder.
    pub key: Confirmation,
}

impl TaskToken {
    /// The claims.
    #[must_use]
    pub fn new(content: Content<'_>) -> Self {
        let Content { issuer, id, task, status, attested, attested_at, key, now, expires_at } = content;
        Self {
            iss: issuer.to_owned(),
            sub: attested.workload.clone(),
            client_id: attested.workload.clone(),
            aud: issuer.to_owned(),
            exp: expires_at.timestamp(),
            iat: now.timestamp(),
            nbf: now.timestamp(),
            jti: id,
            scope: Scope::Task,
            cnf: key,
            status,
            task,
            said: Said {
                at: attested_at.timestamp(),
                evidence: attested.digest.clone(),
                instance: attested.instance.clone(),
                selectors: attested.selectors.clone(),
                marks: attested.marks.clone(),
                facts: attested.facts.clone(),
            },
        }
    }

    /// When it ends (Unix seconds).
    #[must_use]
    pub fn exp(&self) -> i64 {
        self.exp
    }

    /// Checks a token: signature, issuer, audience, times. Whether its holder holds the key, and whether the task still lives, is still
    /// to be checked.
    ///
    /// # Errors
    /// When any of them is wrong, or it is another kind of token.
    pub fn read(token: &Unverified<'_>, key: &VerifyingKey, issuer: &str, now: Time) -> Result<Standing, Invalid> {
        let claims: Self = token.verify(key)?;
        let Self { iss, sub, client_id, aud, exp, nbf, jti, cnf, task, said, .. } = claims;
        if iss != issuer || aud != issuer || sub != client_id {
            return Err(Invalid("it is no task token of this broker"));
        }
        let moment = |seconds| Time::from_timestamp(seconds, 0).ok_or(Invalid("its times are no points in time"));
        let (expires_at, attested_at) = (moment(exp)?, moment(said.at)?);
        // Another broker's clock may be a little ahead of ours.
        if now >= expires_at || now.timestamp() + SKEW < nbf {
            return Err(Invalid("it has expired, or is not valid yet"));
        }
        let attested = Attested {
            workload: client_id,
            instance: said.instance,
            kind: task.kind,
            attestor: task.attestor.clone(),
            issuer: task.evidence_issuer.clone(),
            selectors: said.selectors,
            facts: said.facts,
            // Whoever configures the attestor says that, and may by now say something else: `Attestors::still_vouches`.
            owners: Some(Vec::new()),
            marks: said.marks,
            expires_at: Some(expires_at),
            digest: said.evidence,
            // It serves the one key that it is bound to.
            reusable: None,
            once: None,
        };
        Ok(Standing { attested, attested_at, lease: jti, task, key: cnf })
    }
}
