//! Certificates, and the lists of those that are revoked.
//!
//! What a list is made of is the names of the certificates and the ends of their tasks: so a revoke writes nothing for a certificate,
//! however many there are. The broker that signs a list posts it, and every broker gives it out.

use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::{
    super::{CertificateLease, Claim, InDoubt, Index, Key, Mint},
    LEASE_KEPT, Ledger, TASK_KEPT, Written, kept,
};
use crate::{
    clock::Time,
    id::{CrlId, LeaseId, TaskId},
    task::{End, State, Task},
};

/// How many names, or tasks, are asked for at a time.
const PAGE: usize = 512;

/// How many tasks a key is remembered to have been certified for.
const MOST_TASKS_OF_A_KEY: usize = 32;

/// That a public key was certified for a task.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyOfTask {
    task: TaskId,
}

/// A certificate, as far as a list of revoked ones needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedCertificate {
    /// When it ends, a whole second.
    pub expires_at: Time,
    /// The key id of its authority.
    pub authority: String,
    /// The task it belongs to.
    pub task: TaskId,
    /// Its serial.
    pub serial: LeaseId,
}

/// A list of revoked certificates, as its authority signed it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostedCrl {
    /// Which one.
    pub id: CrlId,
    /// Higher than that of the list before.
    pub number: u64,
    /// Until when it is worth something.
    pub next_update: Time,
    /// The list (DER).
    #[serde(with = "der")]
    pub der: Arc<[u8]>,
}

impl ListedCertificate {
    /// Its name in the index, which sorts by its end.
    fn name(&self) -> String {
        let Self { expires_at, authority, task, serial } = self;
        format!("{}:{authority}:{task}:{serial}", certificate_ends(*expires_at))
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split(':');
        let (end, authority, task, serial) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let expires_at = Time::from_timestamp_secs(end.parse().ok()?)?;
        let (task, serial) = (task.parse().ok()?, serial.parse().ok()?);
        parts.next().is_none().then(|| Self { expires_at, authority: authority.to_owned(), task, serial })
    }
}

/// What the names of all certificates begin with that end at `time`.
pub(in crate::lease) fn certificate_ends(time: Time) -> String {
    format!("{:012}", time.timestamp().max(0))
}

impl Ledger {
    /// Writes the lease of a certificate, unless its task or an ancestor has ended.
    ///
    /// # Errors
    /// When the store is in doubt, or the task's record is not the one that was decided on.
    pub async fn certify(&self, task: &Arc<Task>, lease: &CertificateLease) -> Result<Written, InDoubt> {
        if lease.task != task.id {
            return Err(InDoubt("a lease of another task".into()));
        }
        let key = Key::Lease(task.id.clone(), lease.id.clone());
        let keep_until = kept(lease.expires_at, LEASE_KEPT);
        let listed = ListedCertificate {
            expires_at: lease.expires_at,
            authority: lease.authority.clone(),
            task: task.id.clone(),
            serial: lease.id.clone(),
        };
        let step = Mint {
            id: task.id.clone(),
            task: None,
            keep_task_until: kept(task.expires_at, TASK_KEPT),
            leases: vec![(lease.id.clone(), self.0.sealer.seal(&key, lease)?, keep_until)],
            latest_expiry: lease.expires_at.timestamp(),
            listed: vec![(Index::Certificates, listed.name(), keep_until)],
        };
        self.carry_out(task, step).await
    }

    /// The tasks that a public key (by its digest) was certified for, on any broker, as far as that is remembered.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn certified_for(&self, key: &str) -> Result<Vec<TaskId>, InDoubt> {
        let places: Vec<_> = (0..MOST_TASKS_OF_A_KEY).map(|at| Key::CertifiedKey(key.to_owned(), at)).collect();
        let mut tasks = Vec::new();
        for (place, record) in places.iter().zip(self.0.store.read(&places).await?) {
            let Some(record) = record else { continue };
            tasks.extend(self.0.sealer.open_if_current::<KeyOfTask>(place, &record)?.map(|of| of.task));
        }
        Ok(tasks)
    }

    /// Remembers `until` then that a public key is certified for a task. `false` where it was certified for as many tasks as anybody
    /// remembers of one key.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn remember_key(&self, key: &str, task: &TaskId, until: Time) -> Result<bool, InDoubt> {
        for at in 0..MOST_TASKS_OF_A_KEY {
            let place = Key::CertifiedKey(key.to_owned(), at);
            let record = self.0.sealer.seal(&place, &KeyOfTask { task: task.clone() })?;
            let claim = Claim { key: place, record, keep_until: Some(until), index: None };
            let standing = self.0.store.claim(&claim).await?;
            let standing = self.0.sealer.open_if_current::<KeyOfTask>(&claim.key, &standing)?;
            if standing.is_some_and(|of| of.task == *task) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The certificates of all authorities that end after `now`.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn certificates(&self, now: Time) -> Result<Vec<ListedCertificate>, InDoubt> {
        let (mut listed, mut before) = (Vec::new(), None::<String>);
        loop {
            let names = self.0.store.list(Index::Certificates, before.as_deref(), PAGE).await?;
            before = names.last().cloned();
            let last_page = names.len() < PAGE;
            for name in names {
                match ListedCertificate::parse(&name) {
                    Some(certificate) if certificate.expires_at <= now => return Ok(listed),
                    Some(certificate) => listed.push(certificate),
                    None => tracing::error!("the index of certificates holds a name that no broker wrote"),
                }
            }
            if last_page {
                return Ok(listed);
            }
        }
    }

    /// How each of these tasks ended, and when; `None` where neither it nor an ancestor has. An end that is not to be believed is one.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn ends(&self, tasks: &[TaskId]) -> Result<Vec<Option<(State, Time)>>, InDoubt> {
        let mut ends = Vec::with_capacity(tasks.len());
        for tasks in tasks.chunks(PAGE) {
            let keys: Vec<Key> = tasks.iter().flat_map(|task| task.lineage().map(Key::End)).collect();
            let records = self.0.store.read(&keys).await?;
            let mut rest = records.as_slice();
            for task in tasks {
                let (own, others) = rest.split_at_checked(task.depth() + 1).ok_or_else(super::short)?;
                rest = others;
                let end = own.iter().flatten().next_back().map(|record| self.nearest(task, record));
                ends.push(end.map(|end| match end {
                    Ok(End { state, at, .. }) => (state, at),
                    Err(why) => {
                        tracing::error!(%task, %why, "its certificates are revoked all the same");
                        (State::Revoked, self.0.clock.now())
                    }
                }));
            }
        }
        Ok(ends)
    }

    /// Posts lists for every broker to give out.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn post_crls(&self, lists: &[PostedCrl]) -> Result<(), InDoubt> {
        let seal = |list: &PostedCrl| {
            let key = Key::Crl(list.id.clone());
            let record = self.0.sealer.seal(&key, list)?;
            Ok((key, record, kept(list.next_update, LEASE_KEPT)))
        };
        let records = lists.iter().map(seal).collect::<Result<Vec<_>, InDoubt>>()?;
        self.0.store.post(&records).await
    }

    /// A list as it was posted last.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn crl(&self, id: &CrlId) -> Result<Option<PostedCrl>, InDoubt> {
        let key = Key::Crl(id.clone());
        let [record] = self.read([key.clone()]).await?;
        record.map_or(Ok(None), |record| self.0.sealer.open_if_current(&key, &record))
    }
}

/// Octets, in base64.
mod der {
    use super::{Arc, BASE64_STANDARD};
    use base64::Engine as _;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(der: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(der))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Into::into).map_err(|_| D::Error::custom("not base64"))
    }
}
