//! Sealed records: version, generation, sequence, MAC, body.
//!
//! The MAC is over the record's type and the very name it stands under as well, so a record that was edited, moved, or read
//! as another kind does not open. What it cannot show is that a record is missing or was put back: for that there is the
//! rule that no record is ever changed, and that absence denies.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::hmac;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{InDoubt, StoreKey};
use crate::{
    clock::Time,
    id::{BrokerName, CrlId, LeaseId, LockId, TaskId},
};

const VERSION: &str = "1";
/// Far above what the broker writes, and far below what would hurt to parse.
const MAX_BODY: usize = 1 << 20;

/// A record as it stands in the store: text under a MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(pub(super) String);

/// Every key of the store, typed: no kind of record can be read as another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// What a broker answered to a nonce of another, page by page; the first says how many there are.
    Answer(String, BrokerName, usize),
    /// A task that a public key was certified for, by the digest of the key; one of so many.
    CertifiedKey(String, usize),
    /// A list of revoked certificates, as it was last signed.
    Crl(CrlId),
    /// The end of a task.
    End(TaskId),
    /// The key that evidence serves, by the digest of the evidence.
    Evidence(String),
    /// How much all who read the feed that is signed with this key have heard of.
    Heard(String),
    /// What a retry under an `Idempotency-Key` finds: a digest of (workload, instance, key).
    Idempotency(String),
    /// A lease of a task.
    Lease(TaskId, LeaseId),
    /// That a lease of a task is dead by itself.
    LeaseEnd(TaskId, LeaseId),
    /// When that was first seen to be recorded.
    LeaseEndSeen(TaskId, LeaseId),
    /// What is dead anywhere, of which there is one.
    Log,
    /// How the audit log of a broker ended, by the broker's name.
    LogEnd(BrokerName),
    /// A lock, as it stands.
    Lock(LockId),
    /// How far a lock has been expanded into the ends of tasks.
    LockProgress(LockId),
    /// Which locks there are, of which there is one.
    Locks,
    /// That something has changed about them: another record after every change.
    LocksChanged,
    /// The store's marker.
    Marker,
    /// What a broker says of itself to the others, by its name.
    Member(BrokerName),
    /// That a signing key is in use, by key id.
    Presence(String),
    /// The latest renewal of a task.
    Renewal(TaskId),
    /// What one reporter has reported of a task.
    Reports(TaskId, String),
    /// The end of a signing key, by key id.
    Retirement(String),
    /// A public signing key of a broker, by key id.
    SigningKey(String),
    /// What serves once and has served, by its digest.
    Spent(String),
    /// That a signing key is not to be trusted, by key id.
    Taint(String),
    /// A task.
    Task(TaskId),
    /// What happened in the tree of a task.
    Timeline(TaskId),
}

impl Key {
    /// Its name in the store. All names of a tree of tasks carry the root's id as hash tag.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Key::Answer(nonce, by, page) => format!("remit:answer:{nonce}:{by}:{page}"),
            Key::CertifiedKey(digest, at) => format!("remit:certified-key:{digest}:{at}"),
            Key::Crl(id) => format!("remit:crl:{id}"),
            Key::End(id) => format!("{}:end:{id}", tree(id)),
            Key::Evidence(digest) => format!("remit:evidence:{digest}"),
            Key::Heard(kid) => format!("remit:heard:{kid}"),
            Key::Idempotency(digest) => format!("remit:idempotency:{digest}"),
            Key::Lease(id, lease) => format!("{}:lease:{id}:{lease}", tree(id)),
            Key::LeaseEnd(id, lease) => format!("{}:lease-end:{id}:{lease}", tree(id)),
            Key::LeaseEndSeen(id, lease) => format!("{}:lease-end-seen:{id}:{lease}", tree(id)),
            Key::Log => "remit:ends".to_owned(),
            Key::LogEnd(broker) => format!("remit:log-end:{broker}"),
            Key::Lock(id) => format!("remit:lock:{id}"),
            Key::LockProgress(id) => format!("remit:lock-progress:{id}"),
            Key::Locks => "remit:locks".to_owned(),
            Key::LocksChanged => "remit:locks-changed".to_owned(),
            Key::Marker => "remit:marker".to_owned(),
            Key::Member(broker) => format!("remit:member:{broker}"),
            Key::Presence(kid) => format!("remit:presence:{kid}"),
            Key::Renewal(id) => format!("{}:renewal:{id}", tree(id)),
            Key::Reports(id, reporter) => format!("{}:reports:{id}:{reporter}", tree(id)),
            Key::Retirement(kid) => format!("remit:retirement:{kid}"),
            Key::SigningKey(kid) => format!("remit:signing-key:{kid}"),
            Key::Spent(digest) => format!("remit:spent:{digest}"),
            Key::Taint(kid) => format!("remit:taint:{kid}"),
            Key::Task(id) => format!("{}:task:{id}", tree(id)),
            Key::Timeline(id) => format!("{}:timeline", tree(id)),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Key::Answer(..) => "answer",
            Key::CertifiedKey(..) => "certified-key",
            Key::Crl(_) => "crl",
            Key::End(_) => "end",
            Key::Evidence(_) => "evidence",
            Key::Heard(_) => "heard",
            Key::Idempotency(_) => "idempotency",
            Key::Lease(..) => "lease",
            Key::LeaseEnd(..) => "lease-end",
            Key::LeaseEndSeen(..) => "lease-end-seen",
            Key::Log => "logged-end",
            Key::LogEnd(_) => "log-end",
            Key::Lock(_) => "lock",
            Key::LockProgress(_) => "lock-progress",
            Key::Locks => "locks",
            Key::LocksChanged => "locks-changed",
            Key::Marker => "marker",
            Key::Member(_) => "member",
            Key::Presence(_) => "presence",
            Key::Renewal(_) => "renewal",
            Key::Reports(..) => "account",
            Key::Retirement(_) => "retirement",
            Key::SigningKey(_) => "signing-key",
            Key::Spent(_) => "spent",
            Key::Taint(_) => "taint",
            Key::Task(_) => "task",
            Key::Timeline(_) => "timeline",
        }
    }
}

/// What the names of everything in the tree of `id` start with.
pub(super) fn tree(id: &TaskId) -> String {
    format!("remit:{{{}}}", id.root_str())
}

/// Seals what goes into the store and opens what comes out of it.
pub(super) struct Sealer {
    key: hmac::Key,
    generation: AtomicU64,
    sequence: AtomicU64,
}

impl Sealer {
    /// Seals for `generation` and opens that generation alone. Sequences start at `now`, so that they go on rising after a restart.
    pub(super) fn new(key: &StoreKey, generation: u64, now: Time) -> Self {
        let sequence = AtomicU64::new(u64::try_from(now.timestamp_micros()).unwrap_or_default());
        Self { key: key.hmac(), generation: AtomicU64::new(generation), sequence }
    }

    /// The generation that it seals for.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Seals for a later generation from now on, and opens no more what is of an earlier one.
    pub(super) fn raise(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::AcqRel);
    }

    /// The MAC of a nonce, which is none of a record.
    pub(super) fn stamp(&self, moment: &[u8]) -> hmac::Tag {
        hmac::sign(&self.key, &framed(&[b"remit nonce", moment]))
    }

    /// Whether that is the MAC of a nonce.
    pub(super) fn is_stamp(&self, moment: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.key, &framed(&[b"remit nonce", moment]), mac).is_ok()
    }

    /// The record of `body` that belongs under `key`.
    ///
    /// # Errors
    /// When `body` cannot be written as JSON, or is larger than any record may be.
    pub(super) fn seal(&self, key: &Key, body: &impl Serialize) -> Result<Sealed, InDoubt> {
        let body = serde_json::to_string(body).map_err(|_| doubt(key, "cannot be written"))?;
        if body.len() > MAX_BODY {
            return Err(doubt(key, "would be larger than 1 MiB"));
        }
        let generation = self.generation().to_string();
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).to_string();
        let mac = hmac::sign(&self.key, &message(key, VERSION, &generation, &sequence, &body));
        let mac = BASE64_URL_SAFE_NO_PAD.encode(mac);
        Ok(Sealed(format!("{VERSION} {generation} {sequence} {mac} {body}")))
    }

    /// What stands in `text`, which came from under `key`.
    ///
    /// # Errors
    /// When this broker or a peer did not write exactly that, under that key, in this generation.
    pub(super) fn open<T: DeserializeOwned>(&self, key: &Key, text: &str) -> Result<T, InDoubt> {
        self.open_if_current(key, text)?.ok_or_else(|| doubt(key, "is of another generation"))
    }

    /// As [`Sealer::open`], but `None` for an authentic record of another generation.
    ///
    /// # Errors
    /// When this broker or a peer did not write exactly that, under that key.
    pub(super) fn open_if_current<T: DeserializeOwned>(&self, key: &Key, text: &str) -> Result<Option<T>, InDoubt> {
        let (generation, body) = self.verify(key, text)?;
        if generation == self.generation().to_string() { parse(key, body).map(Some) } else { Ok(None) }
    }

    /// As [`Sealer::open`], but in whichever generation it was written: for ends, because what is dead stays dead.
    ///
    /// # Errors
    /// When this broker or a peer did not write exactly that, under that key.
    pub(super) fn open_of_any_generation<T: DeserializeOwned>(&self, key: &Key, text: &str) -> Result<T, InDoubt> {
        parse(key, self.verify(key, text)?.1)
    }

    /// Octets that only who has the store's key can tell, the same for the same purpose and input. No purpose is that of a record.
    pub(super) fn derive(&self, purpose: &str, input: &[u8]) -> [u8; 32] {
        let mut octets = [0; 32];
        octets.copy_from_slice(hmac::sign(&self.key, &framed(&[purpose.as_bytes(), input])).as_ref());
        octets
    }

    /// Generation and body of `text`, both as they were sealed.
    fn verify<'t>(&self, key: &Key, text: &'t str) -> Result<(&'t str, &'t str), InDoubt> {
        let malformed = || doubt(key, "is malformed");
        let mut parts = text.splitn(5, ' ');
        let mut part = || parts.next().ok_or_else(malformed);
        let (version, generation, sequence, mac, body) = (part()?, part()?, part()?, part()?, part()?);
        if version != VERSION {
            return Err(doubt(key, "is of a version that this broker does not know"));
        }
        if body.len() > MAX_BODY {
            return Err(doubt(key, "is larger than 1 MiB"));
        }
        let mac = BASE64_URL_SAFE_NO_PAD.decode(mac).map_err(|_| malformed())?;
        hmac::verify(&self.key, &message(key, version, generation, sequence, body), &mac)
            .map_err(|_| doubt(key, "has a wrong MAC"))?;
        Ok((generation, body))
    }
}

fn parse<T: DeserializeOwned>(key: &Key, body: &str) -> Result<T, InDoubt> {
    serde_json::from_str(body).map_err(|_| doubt(key, "has a body that this broker does not understand"))
}

fn doubt(key: &Key, why: &str) -> InDoubt {
    InDoubt(format!("the record of a {} {why}", key.kind()))
}

fn message(key: &Key, version: &str, generation: &str, sequence: &str, body: &str) -> Vec<u8> {
    let name = key.name();
    framed(&["remit store record", version, key.kind(), &name, generation, sequence, body].map(str::as_bytes))
}

/// Each part behind its length, so that no two records have one message.
fn framed(parts: &[&[u8]]) -> Vec<u8> {
    let mut message = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn sealer(generation: u64) -> Sealer {
        Sealer::new(&StoreKey::for_test(7), generation, "2026-11-20T10:00:00Z".parse().unwrap())
    }

    fn task() -> TaskId {
        "task_01jd0000000000000000000000".parse().unwrap()
    }

    #[test]
    fn a_record_opens_as_what_was_sealed() {
        let (sealer, key) = (sealer(1), Key::Task(task()));
        let body = json!({"a": "b c  d", "é": [1, 2]});
        let record = sealer.seal(&key, &body).unwrap();
        assert_eq!(sealer.open::<Value>(&key, &record.0).unwrap(), body);
        let again = sealer.seal(&key, &body).unwrap();
        let sequence = |record: &Sealed| record.0.split(' ').nth(2).unwrap().parse::<u64>().unwrap();
        assert!(sequence(&again) > sequence(&record));
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let (sealer, key) = (sealer(1), Key::Task(task()));
        let record = sealer.seal(&key, &json!({"purpose": "fix"})).unwrap().0;
        for at in 0..record.len() {
            for flip in [1, 0x10, 0x20] {
                let mut bytes = record.clone().into_bytes();
                bytes[at] ^= flip;
                let changed = String::from_utf8(bytes).unwrap();
                assert!(sealer.open_if_current::<Value>(&key, &changed).is_err(), "{changed}");
            }
            assert!(sealer.open_if_current::<Value>(&key, &record[..at]).is_err());
        }
        for changed in [format!("{record} "), format!(" {record}"), record.replacen("1 1 ", "1 01 ", 1)] {
            assert!(sealer.open_if_current::<Value>(&key, &changed).is_err(), "{changed}");
        }
    }

    #[test]
    fn a_record_belongs_to_one_key_type_and_generation() {
        let (now, next) = (sealer(1), sealer(2));
        let key = Key::Task(task());
        let record = now.seal(&key, &json!({})).unwrap().0;
        for other in [Key::Task(task().child().unwrap()), Key::End(task()), Key::Marker] {
            assert!(now.open_if_current::<Value>(&other, &record).is_err());
        }
        assert!(next.open::<Value>(&key, &record).is_err());
        assert_eq!(next.open_if_current::<Value>(&key, &record).unwrap(), None);
        assert_eq!(next.open_of_any_generation::<Value>(&key, &record).unwrap(), json!({}));
        let stranger = Sealer::new(&StoreKey::for_test(8), 1, "2026-11-20T10:00:00Z".parse().unwrap());
        assert!(stranger.open_if_current::<Value>(&key, &record).is_err());
    }

    #[test]
    fn a_body_is_bounded() {
        let key = Key::Marker;
        assert!(sealer(1).seal(&key, &"a".repeat(MAX_BODY)).is_err());
        let text = format!("1 1 1 AAAA {}", "a".repeat(MAX_BODY + 1));
        assert!(sealer(1).open::<Value>(&key, &text).is_err());
    }

    #[test]
    fn the_keys_of_a_tree_share_its_tag() {
        let child = task().child().unwrap();
        let lease = LeaseId::random().unwrap();
        let end = Key::LeaseEnd(child.clone(), lease.clone());
        for key in [Key::Task(child.clone()), Key::End(child.clone()), end, Key::Lease(child, lease)] {
            assert!(key.name().starts_with("remit:{task_01jd0000000000000000000000}:"), "{}", key.name());
        }
    }
}
