//! The broker's own signing keys: for each kind of credential, and for status lists, the one that signs and, while a rotation
//! is under way, the one that will. Never copied to another broker.
//!
//! `NAME.pem` signs. `NAME.next.pem` is prepared, and takes its place by a rename once the store has on record that the old
//! one signs no more: so whatever a crash interrupts, the next start finds it and finishes it.

use chrono::DateTime;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use crate::{
    clock::{Time, after},
    jose::{Invalid, SigningKey},
    key_file,
    lease::{PublishedKey, Use},
    secret_file,
};

/// No credential that was ever signed lives longer than this, whatever policy said, in seconds.
const LONGEST_LIFE: u32 = 86_400;

/// The signing keys.
#[derive(Debug)]
pub struct Keyring {
    access_token: Slot,
    jwt_svid: Slot,
    status_list: Slot,
}

/// The keys for one use.
#[derive(Debug)]
struct Slot {
    file: PathBuf,
    next_file: PathBuf,
    keys: RwLock<Keys>,
}

#[derive(Debug)]
struct Keys {
    current: SigningKey,
    /// When the last that `current` signed expires (Unix seconds). Raised under the read lock, so whoever holds the write lock
    /// has its last value.
    last_expiry: AtomicI64,
    next: Option<Next>,
    replaced: Option<Replaced>,
}

#[derive(Debug)]
struct Next {
    key: SigningKey,
    /// When the last that it signed expires (Unix seconds): an earlier process may have died just after it began to sign.
    last_expiry: i64,
}

/// A key that signs no more, while that is not on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Its id.
    pub kid: String,
    /// When the last that it signed expires.
    pub last_expiry: Time,
}

impl Keyring {
    /// Reads `access-token.pem`, `jwt-svid.pem` and `status-list.pem` in `dir`, and makes those that are not there, mode 0600;
    /// and those beside them that a rotation has prepared.
    ///
    /// # Errors
    /// A sentence that names the file and says what to change.
    pub fn load_or_create(dir: &Path, now: Time) -> Result<Self, String> {
        Ok(Self {
            access_token: Slot::load_or_create(Use::AccessToken, dir, now)?,
            jwt_svid: Slot::load_or_create(Use::JwtSvid, dir, now)?,
            status_list: Slot::load_or_create(Use::StatusList, dir, now)?,
        })
    }

    /// Checks those key files that are there already.
    ///
    /// # Errors
    /// As [`Keyring::load_or_create`]; every mistake.
    pub fn check(dir: &Path) -> Result<(), Vec<String>> {
        let files = Use::ALL.into_iter().flat_map(|purpose| <[PathBuf; 2]>::from(files(dir, purpose)));
        let mistakes: Vec<_> = files.filter_map(|file| key_file::load(&file).err()).collect();
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }

    fn slot(&self, purpose: Use) -> &Slot {
        match purpose {
            Use::AccessToken => &self.access_token,
            Use::JwtSvid => &self.jwt_svid,
            Use::StatusList => &self.status_list,
        }
    }

    /// Signs claims that expire at `exp` (Unix seconds) with the key for `purpose`, and remembers how long that key is needed.
    ///
    /// # Errors
    /// When the claims cannot be written as JSON.
    pub fn sign(&self, purpose: Use, typ: &str, exp: i64, claims: &impl Serialize) -> Result<String, Invalid> {
        self.slot(purpose).read(|keys| {
            keys.last_expiry.fetch_max(exp, Ordering::Relaxed);
            keys.current.sign(typ, claims)
        })
    }

    /// The public half of the key that signs for `purpose`, as it is published at `now`.
    #[must_use]
    pub fn current(&self, purpose: Use, now: Time) -> PublishedKey {
        self.slot(purpose).read(|keys| published(purpose, &keys.current, now))
    }

    /// The public half of the key that is prepared for `purpose`, as it is published at `now`.
    #[must_use]
    pub fn next(&self, purpose: Use, now: Time) -> Option<PublishedKey> {
        self.slot(purpose).read(|keys| keys.next.as_ref().map(|next| published(purpose, &next.key, now)))
    }

    /// The key that signed for `purpose` until [`Keyring::activate`], while [`Keyring::settle`] is still to come.
    #[must_use]
    pub fn replaced(&self, purpose: Use) -> Option<Replaced> {
        self.slot(purpose).read(|keys| keys.replaced.clone())
    }

    /// Makes the next key for `purpose`, unless there is one. To be called while no key is [`Keyring::replaced`]: the file of the
    /// next key is still that of the current one then. One call of this and of [`Keyring::settle`] at a time.
    ///
    /// # Errors
    /// A sentence that names the file and says what to change.
    pub fn prepare(&self, purpose: Use) -> Result<(), String> {
        let slot = self.slot(purpose);
        if slot.read(|keys| keys.next.is_none() && keys.replaced.is_none()) {
            // Not while the keys are locked: who signs waits for no disk.
            let (key, _) = key_file::load_or_create(&slot.next_file)?;
            slot.write(|keys| keys.next = Some(Next { key, last_expiry: 0 }));
        }
        Ok(())
    }

    /// From now on the next key signs, if there is one, and the current one is [`Keyring::replaced`]. When this returns, nothing
    /// is being signed with the old one any more.
    pub fn activate(&self, purpose: Use) {
        self.slot(purpose).write(|keys| {
            if let (Some(next), None) = (keys.next.take(), &keys.replaced) {
                let last_expiry = std::mem::replace(keys.last_expiry.get_mut(), next.last_expiry);
                let kid = keys.current.kid().to_owned();
                let last_expiry = DateTime::from_timestamp_secs(last_expiry).unwrap_or(Time::MAX_UTC);
                keys.replaced = Some(Replaced { kid, last_expiry });
                keys.current = next.key;
            }
        });
    }

    /// Destroys the file of the key that was replaced. Its end is to be on record before.
    ///
    /// # Errors
    /// A sentence that names the file. The key signs no more all the same; try again.
    pub fn settle(&self, purpose: Use) -> Result<(), String> {
        let slot = self.slot(purpose);
        if slot.read(|keys| keys.replaced.is_some()) {
            secret_file::replace(&slot.file, &slot.next_file)?;
            slot.write(|keys| keys.replaced = None);
        }
        Ok(())
    }
}

impl Slot {
    fn load_or_create(purpose: Use, dir: &Path, now: Time) -> Result<Self, String> {
        let (file, next_file) = files(dir, purpose);
        let (current, is_new) = key_file::load_or_create(&file)?;
        // What an earlier process signed is not known any more.
        let anything = after(now, LONGEST_LIFE).unwrap_or(Time::MAX_UTC).timestamp();
        let last_expiry = AtomicI64::new(if is_new { now.timestamp() } else { anything });
        let next = key_file::load(&next_file)?.map(|key| Next { key, last_expiry: anything });
        let keys = Keys { current, last_expiry, next, replaced: None };
        Ok(Self { file, next_file, keys: RwLock::new(keys) })
    }

    fn read<T>(&self, look: impl FnOnce(&Keys) -> T) -> T {
        look(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Keys) -> T) -> T {
        change(&mut self.keys.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where the key that signs for `purpose` is kept, and the one that will.
fn files(dir: &Path, purpose: Use) -> (PathBuf, PathBuf) {
    let name = match purpose {
        Use::AccessToken => "access-token",
        Use::JwtSvid => "jwt-svid",
        Use::StatusList => "status-list",
    };
    (dir.join(format!("{name}.pem")), dir.join(format!("{name}.next.pem")))
}

fn published(purpose: Use, key: &SigningKey, now: Time) -> PublishedKey {
    PublishedKey { purpose, jwk: key.public().clone(), published_at: now }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PURPOSE: Use = Use::AccessToken;

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    fn kid_of(token: &str) -> String {
        use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
        let header = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
        header["kid"].as_str().unwrap().to_owned()
    }

    fn signs(ring: &Keyring, exp: Time) -> String {
        kid_of(&ring.sign(PURPOSE, "at+jwt", exp.timestamp(), &json!({})).unwrap())
    }

    fn open(dir: &Path) -> Keyring {
        Keyring::load_or_create(dir, now()).unwrap()
    }

    #[test]
    fn the_next_key_signs_once_it_is_activated() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        let old = ring.current(PURPOSE, now()).jwk.kid;
        ring.activate(PURPOSE);
        assert_eq!((signs(&ring, now()), ring.replaced(PURPOSE)), (old.clone(), None), "there is none to activate");
        ring.prepare(PURPOSE).unwrap();
        let next = ring.next(PURPOSE, now()).unwrap().jwk.kid;
        ring.prepare(PURPOSE).unwrap();
        assert_eq!((ring.next(PURPOSE, now()).unwrap().jwk.kid, signs(&ring, now())), (next.clone(), old.clone()));
        ring.activate(PURPOSE);
        assert_eq!((signs(&ring, now()), ring.next(PURPOSE, now())), (next.clone(), None));
        assert_eq!(ring.replaced(PURPOSE).unwrap().kid, old);
        ring.prepare(PURPOSE).unwrap();
        assert_eq!(ring.next(PURPOSE, now()), None, "the file of the next key is that of the current one");
        ring.settle(PURPOSE).unwrap();
        assert_eq!(ring.replaced(PURPOSE), None);
        let again = open(dir.path());
        assert_eq!((again.current(PURPOSE, now()).jwk.kid, again.next(PURPOSE, now())), (next, None));
        ring.prepare(PURPOSE).unwrap();
        assert!(ring.next(PURPOSE, now()).is_some());
    }

    #[test]
    fn a_restart_finds_what_was_prepared_or_not_settled() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        let old = ring.current(PURPOSE, now()).jwk.kid;
        ring.prepare(PURPOSE).unwrap();
        let next = ring.next(PURPOSE, now());
        assert_eq!(open(dir.path()).next(PURPOSE, now()), next);
        ring.activate(PURPOSE);
        let again = open(dir.path());
        assert_eq!((again.current(PURPOSE, now()).jwk.kid, again.next(PURPOSE, now())), (old, next));
    }

    #[test]
    fn a_key_is_needed_until_the_last_that_it_signed_expires() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        let expiries = [60, 300, 120].map(|seconds| after(now(), seconds).unwrap());
        for exp in expiries {
            signs(&ring, exp);
        }
        ring.prepare(PURPOSE).unwrap();
        ring.activate(PURPOSE);
        signs(&ring, after(now(), 900).unwrap());
        assert_eq!(ring.replaced(PURPOSE).unwrap().last_expiry, expiries[1]);
        // An earlier process may have signed anything.
        let ring = open(dir.path());
        ring.activate(PURPOSE);
        assert_eq!(ring.replaced(PURPOSE).unwrap().last_expiry, after(now(), LONGEST_LIFE).unwrap());
    }

    #[test]
    fn what_an_earlier_process_signed_with_the_next_key_counts() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        ring.prepare(PURPOSE).unwrap();
        ring.activate(PURPOSE);
        let (kid, exp) = (ring.current(PURPOSE, now()).jwk.kid, after(now(), 3600).unwrap());
        assert_eq!(signs(&ring, exp), kid);
        // It died before that was on record: so the old key signs once more, and this one is the next again.
        let ring = open(dir.path());
        for _ in 0..2 {
            ring.activate(PURPOSE);
            let replaced = ring.replaced(PURPOSE).unwrap();
            assert!(replaced.kid != kid || replaced.last_expiry >= exp, "{replaced:?}");
            ring.settle(PURPOSE).unwrap();
            ring.prepare(PURPOSE).unwrap();
        }
        assert_ne!(ring.current(PURPOSE, now()).jwk.kid, kid);
    }

    /// A file that is not there yet and not absent either: whoever opens it waits.
    #[test]
    fn a_disk_that_hangs_keeps_nobody_from_signing() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        let next = dir.path().join("access-token.next.pem");
        assert!(std::process::Command::new("mkfifo").arg(&next).status().unwrap().success());
        std::thread::scope(|scope| {
            let preparing = scope.spawn(|| ring.prepare(PURPOSE));
            let (done, signed) = std::sync::mpsc::channel();
            let ring = &ring;
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(200));
                done.send(signs(ring, now())).unwrap();
            });
            let signed = signed.recv_timeout(std::time::Duration::from_secs(10));
            // Whoever waits goes on.
            drop(std::fs::OpenOptions::new().write(true).open(&next).unwrap());
            assert!(signed.is_ok());
            assert!(preparing.join().unwrap().is_err());
        });
    }

    #[test]
    fn a_prepared_key_that_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        std::fs::rename(dir.path().join("jwt-svid.pem"), dir.path().join("jwt-svid.next.pem")).unwrap();
        assert_eq!(Keyring::check(dir.path()), Ok(()));
        std::fs::write(dir.path().join("jwt-svid.next.pem"), "none").unwrap();
        let mistakes = Keyring::check(dir.path()).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].contains("jwt-svid.next.pem: not a private key"), "{mistakes:?}");
    }
}
