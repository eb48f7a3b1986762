//! Certificates of tasks: X.509-SVIDs for keys that workloads hold.
//!
//! **Certify**: attest → is the key the requester's, and nobody's that is known? → is the task this instance's, and active? → had
//! another task the key, and was revoked? → policy decides on all that the task was granted → the key remembered ‖ lease written,
//! atomically with the check that the task and all its ancestors are active → the mint durable in the audit log ‖ signature → the
//! list that it would be on is out → look once more whether anything ended it → send.
//!
//! A certificate says which workload and which task, and not what for: whoever accepts it decides that alone. So it takes a permit for
//! every location and privilege of the task, and lives as long as the strictest of them allows.

use chrono::TimeDelta;
use serde_json::Value;

use super::{
    Ask, Broker, Call, Holder, Refused, Request, Spent, Verdict, Written, actor_of, declare::MAX_TTL, entry, in_doubt,
    mint_denied, refusal, revoke::RETENTION, together,
};
use crate::{
    audit::Event,
    clock::{Time, after},
    credential::{Certificate, CertificateBounds, CertificateDraft, DEFAULT_TTL, RequestedKey},
    error::{Denied, Error, Input, Limit, Sought},
    id::TaskId,
    lease::CertificateLease,
    metrics::{Action, Outcome},
    policy::{Permit, Words, considered},
    revocation::CRL_LIFE,
    task::{AccessDetail, State, Task, check_ttl},
};

/// A certificate, and what it is verified against.
#[derive(Debug)]
pub struct Certified {
    /// The certificate.
    pub certificate: Certificate,
    /// The certificates of all authorities, in PEM.
    pub bundle: String,
}

/// How certificates are counted and recorded.
const FORM: &str = "x509-svid";

impl Broker {
    /// Mints a certificate of a task for the key in a request (PKCS#10, PEM).
    ///
    /// # Errors
    /// As [`Broker::mint`]; [`Error::QuotaExceeded`] where too many of the task are valid.
    pub async fn certify(
        &self,
        request: Request,
        id: &TaskId,
        csr: &str,
        ttl: Option<u32>,
    ) -> Result<Certified, Error> {
        let now = self.now();
        let call = Call { request: &request.id, task: Some(id), now };
        let holder = self.attest(request.presented, "certify", &call).await?;
        let attested = &holder.attested;
        self.may_sign(now)?;
        check_ttl(ttl)?;
        let key = RequestedKey::prove(csr)?;
        if self.known_keys.is_ours(&key) {
            return Err(Error::invalid("the key in `csr` is one of the broker's"));
        }
        if self.rules().leaked.has(&key) {
            return Err(Error::invalid("the key in `csr` is known to have leaked: make another one"));
        }
        let task = self.own_task(&holder, id, "certify", &call).await?;
        let actor = actor_of(attested);
        self.keep_out(&task, Action::Mint, &call, &actor).await?;
        let over = || entry(now, &request.id, &actor, id, Event::MintRefused { code: "task_not_active" });
        let wanted = after(now, ttl.unwrap_or(DEFAULT_TTL)).unwrap_or(Time::MAX_UTC);
        let digest = key.digest();
        let (deadline, had) =
            tokio::try_join!(self.parts.ledger.deadline(&task, wanted), self.parts.ledger.certified_for(&digest))
                .map_err(|why| in_doubt(&why))?;
        if now >= deadline || self.revocations.covers(id) {
            self.record(vec![over()]).await?;
            return Err(Error::TaskNotActive);
        }
        if self.any_revoked(had.iter().filter(|task| *task != id)).await? {
            let event = Event::MintRefused { code: "key_of_revoked_task" };
            self.record(vec![entry(now, &request.id, &actor, id, event)]).await?;
            return Err(Error::invalid("the key in `csr` was that of a task that was revoked: make another one"));
        }
        let considered = considered(attested, Words::from(&*task));
        let permits = match self.decide_all(&holder, &task, now)? {
            Ok(permits) => permits,
            Err(denied) => {
                // What was refused alike is one line, and not one for each of a hundred locations.
                let told = together(denied.clone());
                let denials = told.iter().map(|denied| mint_denied(denied, &considered));
                self.record(denials.map(|event| entry(now, &request.id, &actor, id, event)).collect()).await?;
                return Err(refusal(denied));
            }
        };
        // What has ended by the time that a revoke shows needs no list.
        let unlisted = self.parts.no_rev_avail.then_some(CRL_LIFE);
        let bounds = CertificateBounds { task: &task, deadline, evidence: attested.expires_at(), ttl, unlisted };
        let draft = CertificateDraft::prepare(&permits, &bounds, key, &self.parts.keys, now)?;
        let lease = draft.lease().clone();
        self.certificates.admit(&lease.authority, &lease.id, id, lease.expires_at)?;
        let minted = entry(now, &request.id, &actor, id, minted(&task, &draft, considered));
        let remembered = async {
            // Longer than the task can live, by as long as its end is kept.
            let until = now + TimeDelta::seconds(i64::from(MAX_TTL)) + RETENTION;
            if had.contains(id)
                || self.parts.ledger.remember_key(&lease.key, id, until).await.map_err(|why| in_doubt(&why))?
            {
                return Ok(());
            }
            Err(Error::QuotaExceeded("the key in `csr` was certified for 32 tasks within two days: make another one"))
        };
        let issued = async {
            let spent = self.spend(&holder).await?;
            let certified = async { self.parts.ledger.certify(&task, &lease).await.map_err(|why| in_doubt(&why)) };
            let (remembered, certified) = tokio::join!(remembered, certified);
            remembered?;
            match certified? {
                Written::Done => {
                    self.keep_out(&task, Action::Mint, &call, &actor).await?;
                    self.issue(&task, draft, minted, &spent).await
                }
                Written::Ended(_) => {
                    self.record(vec![over()]).await?;
                    Err(Error::TaskNotActive)
                }
                Written::Missing | Written::Exists => Err(Error::NotFound(Sought::Task)),
            }
        };
        let certificate = issued.await.inspect_err(|_| self.certificates.withdraw(&lease.authority, &lease.id))?;
        self.live.minted(id, &[lease.expires_at], now);
        Ok(Certified { certificate, bundle: self.authorities_pem().await.0 })
    }

    /// Whether one of these tasks was revoked, or an ancestor of it. One that is completed or expired has done nothing wrong.
    async fn any_revoked(&self, tasks: impl Iterator<Item = &TaskId>) -> Result<bool, Error> {
        let tasks: Vec<_> = tasks.cloned().collect();
        let ends = self.parts.ledger.ends(&tasks).await.map_err(|why| in_doubt(&why))?;
        Ok(ends.iter().flatten().any(|(how, _)| *how == State::Revoked))
    }

    /// Decides on each location and privilege of the task on its own: permits for all of them, or what was refused.
    fn decide_all(&self, holder: &Holder, task: &Task, now: Time) -> Result<Result<Vec<Permit>, Vec<Refused>>, Error> {
        let (mut permits, mut refused) = (Vec::new(), Vec::new());
        let rules = self.rules();
        for detail in task.authority.details() {
            for (location, privilege) in detail.pairs() {
                let words = Words::from(task);
                let details = vec![detail.clone()];
                let mut refuse = |limit, policies| {
                    let detail = AccessDetail::of(location.clone(), privilege);
                    refused.push(Refused { limit, denied: Denied { detail, policies } });
                };
                if !rules.parties.serves(location) {
                    self.parts.metrics.decided(Action::Mint, Outcome::Deny);
                    refuse(Limit::Audience, Vec::new());
                    continue;
                }
                match self.decide_one(&rules, &holder.attested, Ask { words, location, privilege, details }, now)? {
                    Verdict::Permit(permit) => permits.push(permit),
                    Verdict::Denied(policies) => refuse(Limit::Policy, policies),
                }
            }
        }
        Ok(if refused.is_empty() { Ok(permits) } else { Err(refused) })
    }

    /// The last steps: as [`Broker::release`], and nothing leaves before its list is out.
    async fn issue(
        &self,
        task: &Task,
        draft: CertificateDraft,
        minted: super::Entry,
        _: &Spent,
    ) -> Result<Certificate, Error> {
        let crl = draft.crl();
        let put_out = async {
            match &crl {
                Some(crl) => self.put_out(crl).await,
                None => true,
            }
        };
        let sign = async { draft.sign(task, &self.issuer) };
        let (intent, certificate, out) = tokio::join!(self.intend(vec![minted]), sign, put_out);
        let intent = intent?;
        let certificate = match certificate {
            _ if self.revocations.covers(&task.id) => Err(Error::TaskNotActive),
            Ok(_) if self.locked_by(task, self.now()).await?.is_some() => Err(Error::Locked),
            Ok(_) if !out => Err(Error::Unavailable(Input::Store)),
            signed => signed,
        };
        if certificate.is_ok() {
            intent.done();
            self.parts.metrics.minted(FORM);
        } else {
            intent.not_done();
        }
        certificate
    }
}

fn minted(task: &Task, draft: &CertificateDraft, considered: Value) -> Event {
    let CertificateLease { id, authority, key, expires_at, .. } = draft.lease().clone();
    let (owner, policies) = (task.owner.clone(), draft.policies().to_vec());
    Event::CertificateMinted { lease: id, authority, key, expires_at, owner, policies, considered }
}
