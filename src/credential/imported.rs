//! The RSA keys of this broker: made by an operator, because ring makes none, and put beside the others.
//!
//! `NAME.pem` signs, once every verifier can know it. `NAME.next.pem` is what an operator replaces it with: published when it is
//! found, it signs once every verifier can know it and takes the place of the other by a rename, after the store has on record that
//! the other one signs no more. The files are looked at again while the broker runs. One that was written over is found too, but a
//! start between that and the first signature of the new key knows nothing of the old one.
//!
//! A key that is tainted signs nothing from that moment on. The next one takes its place at once, and its file with it; until there is
//! one, the file stays and is of no use: a broker without it would not start, and nobody could revoke anything at it.

use serde::Serialize;
use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use super::keyring::{LONGEST_LIFE, Replaced};
use crate::{
    clock::{Time, after},
    jose::{Invalid, SigningKey},
    key_file,
    lease::{PublishedKey, Use},
    secret_file,
};

/// What the RSA key for a use is called, without `.pem`.
fn name_of(purpose: Use) -> String {
    format!("{}-rs256", purpose.to_string().replace('_', "-"))
}

/// The RSA keys for one use: none, one, or one and what is to replace it.
#[derive(Debug)]
pub struct Imported {
    purpose: Use,
    current: PathBuf,
    next: PathBuf,
    keys: RwLock<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    current: Option<Held>,
    next: Option<Held>,
    /// Keys that sign no more, or never will, while that is not on record.
    replaced: Vec<Replaced>,
    /// The ids of the keys for this use that are tainted, whoever's they are.
    tainted: HashSet<String>,
    /// Whether the file of the key that signs may still be that of the next one.
    unsettled: bool,
    /// The files as they were when they were last looked at, and whether they made sense.
    seen: Option<[Stamp; 2]>,
    sound: bool,
}

#[derive(Debug)]
struct Held {
    key: SigningKey,
    /// When the last that it signed expires (Unix seconds). Raised under the read lock, so whoever holds the write lock has its
    /// last value.
    last_expiry: AtomicI64,
    /// From when on every verifier can know it; `None` while it is not published.
    signs_from: Option<Time>,
}

/// Tells a file from what it was before, without its content.
type Stamp = Option<(u64, u64, i64, i64)>;

/// A key of ours as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedKey {
    /// Its id.
    pub kid: String,
    /// Whether it takes the place of another one.
    pub is_next: bool,
    /// From when on every verifier can know it; `None` while it is not published.
    pub signs_from: Option<Time>,
}

impl Imported {
    /// Reads the keys for a use in `dir`, if they are there.
    ///
    /// # Errors
    /// A sentence that names the file and says what to change.
    pub fn load(purpose: Use, dir: &Path, now: Time) -> Result<Self, String> {
        let imported = Self::of(purpose, dir);
        imported.look(now)?;
        Ok(imported)
    }

    /// Checks those key files that are there.
    ///
    /// # Errors
    /// As [`Imported::load`]; every mistake.
    pub fn check(purpose: Use, dir: &Path) -> Result<(), Vec<String>> {
        Self::of(purpose, dir).files().map(|_| ())
    }

    /// Checks that there is a key to sign with for those who are called so in the configuration (``service `git` ``), if there are any.
    ///
    /// # Errors
    /// As [`Imported::load`], or how to make the key.
    pub fn check_for(purpose: Use, sort: &str, names: &[&str], dir: &Path) -> Result<(), Vec<String>> {
        if names.is_empty() {
            return Ok(());
        }
        let (file, names) = (Self::of(purpose, dir).current, names.join("`, `"));
        if key_file::load_rsa(&file).map_err(|why| vec![why])?.is_some() {
            return Ok(());
        }
        let file = file.display();
        Err(vec![format!(
            "{sort} `{names}`: `algorithm = \"RS256\"` needs an RSA key in {file}: make it with `openssl genpkey -algorithm RSA \
             -pkeyopt rsa_keygen_bits:2048 -out {file}`, for the broker's user alone (chmod 600)"
        )])
    }

    /// Tells the key file from what it was before, without its content.
    #[must_use]
    pub fn seen(purpose: Use, dir: &Path) -> String {
        format!("{:?}", stamp(&Self::of(purpose, dir).current))
    }

    fn of(purpose: Use, dir: &Path) -> Self {
        let file = |end: &str| dir.join(format!("{}{end}", name_of(purpose)));
        let (current, next) = (file(".pem"), file(".next.pem"));
        Self { purpose, current, next, keys: RwLock::default() }
    }

    /// What they are for.
    #[must_use]
    pub fn purpose(&self) -> Use {
        self.purpose
    }

    /// How a key is replaced, in a sentence; `None` where there is none.
    #[must_use]
    pub fn how_to_replace(&self) -> Option<String> {
        self.read(|keys| keys.current.is_some()).then(|| {
            format!(
                "The RS256 key was imported, and is replaced by hand: put the next one beside it as {}.next.pem, and the \
                 broker publishes it and takes it once every verifier can know it.",
                name_of(self.purpose)
            )
        })
    }

    /// Looks at the files, and takes what is new in them.
    ///
    /// # Errors
    /// A sentence that names the file and says what to change; once, as long as the files stay as they are.
    pub fn look(&self, now: Time) -> Result<(), String> {
        let seen = [stamp(&self.current), stamp(&self.next)];
        if self.read(|keys| keys.seen.as_ref() == Some(&seen) || keys.unsettled) {
            return Ok(());
        }
        self.write(|keys| (keys.seen, keys.sound) = (Some(seen), false));
        // Not while the keys are locked: who signs waits for no disk.
        let [current, next] = self.files().map_err(|mistakes| mistakes.join("; "))?;
        // What an earlier process signed with them is not known any more.
        let anything = after(now, LONGEST_LIFE).unwrap_or(Time::MAX_UTC).timestamp();
        let held = |key| Held { key, last_expiry: AtomicI64::new(anything), signs_from: None };
        self.write(|keys| {
            let next = match &keys.current {
                None => {
                    keys.current = current.map(held);
                    next
                }
                Some(signs) => next.or(current).filter(|next| next.kid() != signs.key.kid()),
            };
            if keys.next.as_ref().map(|before| before.key.kid()) != next.as_ref().map(SigningKey::kid) {
                let withdrawn = std::mem::replace(&mut keys.next, next.map(held));
                keys.replaced.extend(withdrawn.filter(|held| held.signs_from.is_some()).map(Held::replaced));
            }
            keys.sound = true;
        });
        Ok(())
    }

    /// What the files hold: the key that signs, and the next one.
    fn files(&self) -> Result<[Option<SigningKey>; 2], Vec<String>> {
        let (current, next) = match (key_file::load_rsa(&self.current), key_file::load_rsa(&self.next)) {
            (Ok(current), Ok(next)) => (current, next),
            (current, next) => return Err(current.err().into_iter().chain(next.err()).collect()),
        };
        let [current_file, next_file] = [&self.current, &self.next].map(|file| file.display());
        match (&current, &next) {
            (None, Some(_)) => {
                Err(vec![format!("{next_file} is there and no {current_file}, which it would replace: rename it")])
            }
            (Some(current), Some(next)) if current.kid() == next.kid() => {
                Err(vec![format!("{next_file} is the key that is to be replaced: put another one there")])
            }
            _ => Ok([current, next]),
        }
    }

    /// Signs claims that expire at `exp` (Unix seconds), and remembers how long the key is needed. Takes milliseconds.
    ///
    /// # Errors
    /// When there is no key that verifiers can know, or it is tainted, or the claims cannot be written as JSON.
    pub fn sign(&self, typ: &str, exp: i64, claims: &impl Serialize) -> Result<String, Invalid> {
        self.read(|keys| {
            let held = keys.current.as_ref().filter(|held| held.signs_from.is_some() && !keys.has_tainted(held));
            let held = held.ok_or(Invalid("there is no RSA key that is published and not tainted"))?;
            held.last_expiry.fetch_max(exp, Ordering::Relaxed);
            held.key.sign(typ, claims)
        })
    }

    /// The keys: the one that signs, or will, and the one that is to replace it.
    #[must_use]
    pub fn all(&self) -> Vec<ImportedKey> {
        let of =
            |held: &Held, is_next| ImportedKey { kid: held.key.kid().to_owned(), is_next, signs_from: held.signs_from };
        self.read(|keys| {
            let current = keys.current.iter().map(|held| of(held, false));
            current.chain(keys.next.iter().map(|held| of(held, true))).collect()
        })
    }

    /// The public halves that are not published yet, as they are at `now`.
    #[must_use]
    pub fn unpublished(&self, now: Time) -> Vec<PublishedKey> {
        self.read(|keys| {
            let held = keys.current.iter().chain(&keys.next).filter(|held| held.signs_from.is_none());
            let public = |held: &Held| held.key.public().clone();
            held.map(|held| PublishedKey {
                purpose: self.purpose,
                jwk: public(held),
                certificate: None,
                vouched: None,
                published_at: now,
            })
            .collect()
        })
    }

    /// Notes that a key is published, and from when on every verifier can know it.
    pub fn published(&self, kid: &str, signs_from: Time) {
        self.write(|keys| {
            let held = keys.current.iter_mut().chain(&mut keys.next).find(|held| held.key.kid() == kid);
            if let Some(held) = held {
                held.signs_from = Some(signs_from);
            }
        });
    }

    /// The ids of the key whose turn it is at `now`, if the files are in order, and of the one that it takes the place of. After one that
    /// is tainted it is that of whatever is published.
    #[must_use]
    pub fn due(&self, now: Time) -> Option<(String, String)> {
        self.read(|keys| {
            let next = keys.next.as_ref().filter(|_| keys.sound && !keys.unsettled)?;
            let current = keys.current.as_ref()?;
            let is_due = next.signs_from.is_some_and(|from| now >= from || keys.has_tainted(current));
            is_due.then(|| (next.key.kid().to_owned(), current.key.kid().to_owned()))
        })
    }

    /// From `now` on the next key signs, if there is one, and the current one is [`Imported::replaced`]. When this returns, no token
    /// is being signed with the old one any more.
    pub fn activate(&self, now: Time) {
        self.write(|keys| {
            if keys.next.as_ref().is_some_and(|next| keys.has_tainted(next)) {
                return;
            }
            if let Some(mut next) = keys.next.take() {
                next.signs_from = next.signs_from.map(|from| from.min(now));
                let old = keys.current.replace(next);
                keys.replaced.extend(old.map(Held::replaced));
                keys.unsettled = true;
            }
        });
    }

    /// The keys that sign no more, while [`Imported::settle`] is still to come.
    #[must_use]
    pub fn replaced(&self) -> Vec<Replaced> {
        self.read(|keys| keys.replaced.clone())
    }

    /// Puts the file of the key that signs in its place. The ends of those that were replaced are to be on record before.
    ///
    /// # Errors
    /// A sentence that names the file. The others sign no more all the same; try again.
    pub fn settle(&self) -> Result<(), String> {
        if !self.read(|keys| keys.unsettled) {
            self.write(|keys| keys.replaced.clear());
            return Ok(());
        }
        let signs = self.read(|keys| keys.current.as_ref().map(|held| held.key.kid().to_owned()));
        let holds = |file: &Path| {
            key_file::load_rsa(file).map(|key| key.is_some_and(|key| Some(key.kid()) == signs.as_deref()))
        };
        if !holds(&self.current)? {
            if !holds(&self.next)? {
                return Err(format!(
                    "the key that signs is neither in {} nor in {} any more: put it back",
                    self.current.display(),
                    self.next.display()
                ));
            }
            secret_file::replace(&self.current, &self.next)?;
        }
        self.write(|keys| {
            keys.replaced.clear();
            (keys.unsettled, keys.seen) = (false, None);
        });
        Ok(())
    }

    /// From now on nothing is signed with a tainted key, if it is one of ours. When this returns, nothing is being signed with it.
    pub(super) fn bar(&self, kid: &str) {
        self.write(|keys| keys.tainted.insert(kid.to_owned()));
    }

    /// Destroys the file of the next key if that is tainted, and says whether it was. The key that should sign keeps its file until
    /// another one takes its place.
    ///
    /// # Errors
    /// A sentence that names the file; try again. It signs nothing all the same.
    pub fn discard_tainted(&self) -> Result<bool, String> {
        let tainted = self.read(|keys| {
            let next = keys.next.as_ref().filter(|next| keys.has_tainted(next) && !keys.unsettled);
            next.map(|next| next.key.kid().to_owned())
        });
        // By now the file may hold what the operator has put in its place.
        let is_tainted =
            tainted.is_some() && key_file::load_rsa(&self.next)?.map(|key| key.kid().to_owned()) == tainted;
        if is_tainted {
            secret_file::remove(&self.next)?;
        }
        Ok(is_tainted)
    }

    fn read<T>(&self, look: impl FnOnce(&Keys) -> T) -> T {
        look(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Keys) -> T) -> T {
        change(&mut self.keys.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Keys {
    fn has_tainted(&self, held: &Held) -> bool {
        self.tainted.contains(held.key.kid())
    }
}

impl Held {
    fn replaced(self) -> Replaced {
        Replaced::new(self.key.kid(), self.last_expiry.into_inner())
    }
}

fn stamp(file: &Path) -> Stamp {
    let about = fs::metadata(file).ok()?;
    Some((about.ino(), about.size(), about.ctime(), about.ctime_nsec()))
}
