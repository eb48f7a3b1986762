//! The broker's own signing keys: for each kind of credential, and for status lists, the one that signs and, while a rotation
//! is under way, the one that will. Never copied to another broker.
//!
//! `NAME.pem` signs. `NAME.next.pem` is prepared, and takes its place by a rename once the store has on record that the old
//! one signs no more: so whatever a crash interrupts, the next start finds it and finishes it.
//!
//! The key of an authority has its certificate beside it in the same file. Replaced, it is `NAME.KID.old.pem` as long as something that
//! it signed is valid: it issues no more, but nobody else can sign its revocation lists.
//!
//! A key that is tainted signs nothing from that moment on, and its file is destroyed. The taint itself is kept (`KID.tainted`).

use chrono::DateTime;
use serde::Serialize;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use super::{
    Authority, AuthorityList, Imported, UpstreamFiles, UpstreamSeen, issuers::Subjects, tainted::TaintFiles,
    upstream::Upstream,
};
use crate::{
    clock::{Time, after},
    id::{CrlId, Host, TrustDomain},
    jose::{Invalid, PublicJwk, SigningKey},
    key_file,
    lease::{PublishedKey, Taint, Use},
    secret_file,
};

/// No credential that was ever signed lives longer than this, whatever policy said, in seconds.
pub(super) const LONGEST_LIFE: u32 = 86_400;

/// What authorities are made for.
#[derive(Debug, Clone)]
pub struct AuthorityTerms {
    /// Whose they are.
    pub trust_domain: TrustDomain,
    /// How long a key signs before the next one is prepared, in seconds: the certificate lasts longer.
    pub rotate_every: u32,
    /// Who certifies them; `None`: each itself.
    pub upstream: Option<UpstreamFiles>,
    /// The names of the server that they certify.
    pub hosts: Vec<Host>,
    /// The broker's name: where lists of revoked certificates stand.
    pub issuer: String,
}

impl AuthorityTerms {
    fn subjects(&self) -> Subjects<'_> {
        Subjects { domain: &self.trust_domain, hosts: &self.hosts }
    }

    fn upstream(&self, now: Time) -> Result<Option<Upstream>, String> {
        self.upstream.as_ref().map(|files| Upstream::with_room(files, self.subjects(), now)).transpose()
    }

    /// Who certifies them, as the files say at `now`.
    fn look_upstream(&self, now: Time) -> Result<Option<UpstreamSeen>, String> {
        self.upstream(now)?.as_ref().map(Upstream::seen).transpose()
    }
}

/// The signing keys.
#[derive(Debug)]
pub struct Keyring {
    access_token: Slot,
    jwt_svid: Slot,
    revocations: Slot,
    signals: Slot,
    status_list: Slot,
    x509_svid: Slot,
    imported: [Imported; 2],
    terms: AuthorityTerms,
    /// Who certifies authorities, as the files said when they were last read.
    upstream: Mutex<Option<UpstreamSeen>>,
    taints: TaintFiles,
}

/// The keys for one use.
#[derive(Debug)]
struct Slot {
    files: Files,
    keys: RwLock<Keys>,
}

/// Where the keys for one use are kept.
#[derive(Debug)]
struct Files {
    dir: PathBuf,
    name: &'static str,
}

#[derive(Debug)]
struct Keys {
    current: Key,
    /// When the last that `current` signed expires (Unix seconds). Raised under the read lock, so whoever holds the write lock
    /// has its last value.
    last_expiry: AtomicI64,
    next: Option<Next>,
    replaced: Option<Replaced>,
    /// Authorities that still sign their revocation lists.
    old: Vec<Key>,
    /// The ids of the keys for this use that are tainted, whoever's they are.
    tainted: HashSet<String>,
}

#[derive(Debug, Clone)]
enum Key {
    /// Of tokens and lists.
    Token(SigningKey),
    Authority(Arc<Authority>),
}

#[derive(Debug)]
struct Next {
    key: Key,
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

impl Replaced {
    /// A key whose last token expires at `last_expiry` (Unix seconds).
    pub(super) fn new(kid: &str, last_expiry: i64) -> Self {
        Self { kid: kid.to_owned(), last_expiry: DateTime::from_timestamp_secs(last_expiry).unwrap_or(Time::MAX_UTC) }
    }
}

impl Keyring {
    /// Reads `access-token.pem`, `jwt-svid.pem`, `revocations.pem`, `signals.pem`, `status-list.pem` and `x509-svid.pem` in `dir`, and makes those that are not there,
    /// mode 0600; and those beside them that a rotation has prepared, or left, or an operator has put there.
    ///
    /// # Errors
    /// A sentence that names the file and says what to change.
    pub fn load_or_create(dir: &Path, terms: AuthorityTerms, now: Time) -> Result<Self, String> {
        let upstream = Mutex::new(terms.look_upstream(now)?);
        Ok(Self {
            access_token: Slot::load_or_create(Use::AccessToken, dir, &terms, now)?,
            jwt_svid: Slot::load_or_create(Use::JwtSvid, dir, &terms, now)?,
            revocations: Slot::load_or_create(Use::Revocations, dir, &terms, now)?,
            signals: Slot::load_or_create(Use::Signals, dir, &terms, now)?,
            status_list: Slot::load_or_create(Use::StatusList, dir, &terms, now)?,
            x509_svid: Slot::load_or_create(Use::X509Svid, dir, &terms, now)?,
            imported: [Imported::load(Use::AccessToken, dir, now)?, Imported::load(Use::Signals, dir, now)?],
            terms,
            upstream,
            taints: TaintFiles::of(dir),
        })
    }

    /// Checks those key files that are there already, and yields who certifies authorities, if somebody does.
    ///
    /// # Errors
    /// As [`Keyring::load_or_create`]; every mistake.
    pub fn check(dir: &Path, terms: &AuthorityTerms, now: Time) -> Result<Option<UpstreamSeen>, Vec<String>> {
        let check = |purpose: Use| {
            let files = Files::of(purpose, dir);
            let old = files.old();
            let all = [files.current(), files.next()].into_iter().chain(old.clone().unwrap_or_default());
            let mistakes = all.filter_map(|file| load(purpose, &file, terms).err());
            mistakes.chain(old.err()).collect::<Vec<_>>()
        };
        let made = Use::ALL.into_iter().flat_map(check);
        let imported =
            [Use::AccessToken, Use::Signals].map(|purpose| Imported::check(purpose, dir).err().unwrap_or_default());
        let mut mistakes: Vec<_> = made.chain(imported.concat()).chain(TaintFiles::of(dir).load().err()).collect();
        match terms.look_upstream(now) {
            Ok(upstream) if mistakes.is_empty() => return Ok(upstream),
            Ok(_) => {}
            Err(mistake) => mistakes.push(mistake),
        }
        Err(mistakes)
    }

    /// Who certifies authorities, as the files said when they were last read; `None`: each itself.
    #[must_use]
    pub fn upstream(&self) -> Option<UpstreamSeen> {
        self.upstream.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys that were not made here, by what they are for.
    #[must_use]
    pub fn imported(&self) -> &[Imported] {
        &self.imported
    }

    /// Those of them that are for `purpose`.
    fn imported_for(&self, purpose: Use) -> Option<&Imported> {
        self.imported.iter().find(|imported| imported.purpose() == purpose)
    }

    fn slot(&self, purpose: Use) -> &Slot {
        match purpose {
            Use::AccessToken => &self.access_token,
            Use::JwtSvid => &self.jwt_svid,
            Use::Revocations => &self.revocations,
            Use::Signals => &self.signals,
            Use::StatusList => &self.status_list,
            Use::X509Svid => &self.x509_svid,
        }
    }

    /// Signs claims that expire at `exp` (Unix seconds) with the key for `purpose`, and remembers how long that key is needed.
    ///
    /// # Errors
    /// When the claims cannot be written as JSON, or the keys for that purpose sign no tokens, or not now ([`Keyring::is_barred`]).
    pub fn sign(&self, purpose: Use, typ: &str, exp: i64, claims: &impl Serialize) -> Result<String, Invalid> {
        self.slot(purpose).read(|keys| {
            let Key::Token(key) = keys.signing()? else { return Err(Invalid("an authority signs no tokens")) };
            keys.last_expiry.fetch_max(exp, Ordering::Relaxed);
            key.sign(typ, claims)
        })
    }

    /// The same with the RSA key for `purpose`, which takes milliseconds.
    ///
    /// # Errors
    /// As [`Imported::sign`], and where no RSA key is for that.
    pub fn sign_rs256(&self, purpose: Use, typ: &str, exp: i64, claims: &impl Serialize) -> Result<String, Invalid> {
        self.imported_for(purpose).ok_or(Invalid("no RSA key is for that"))?.sign(typ, exp, claims)
    }

    /// The authority for one certificate that is to expire at `until`, and when it will: no later than the authority itself. From now
    /// on the authority is needed as long as that, whatever replaces it before the certificate is signed.
    ///
    /// # Errors
    /// When the key for certificates is no authority's.
    pub fn authority(&self, until: Time) -> Result<(Arc<Authority>, Time), Invalid> {
        self.slot(Use::X509Svid).read(|keys| {
            let Key::Authority(authority) = keys.signing()? else { return Err(Invalid("there is no authority")) };
            let until = until.min(authority.not_after());
            keys.last_expiry.fetch_max(until.timestamp(), Ordering::Relaxed);
            Ok((Arc::clone(authority), until))
        })
    }

    /// The trust domain of the authorities.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.terms.trust_domain
    }

    /// The authorities whose revocation lists are ours to sign: the one that issues, the next one (an earlier process may have died just
    /// after it began to issue), and those that did. None that is tainted: nobody is to believe its lists.
    #[must_use]
    pub fn authorities(&self) -> Vec<Arc<Authority>> {
        self.slot(Use::X509Svid).read(|keys| {
            let all = std::iter::once(&keys.current).chain(keys.next.as_ref().map(|next| &next.key)).chain(&keys.old);
            let all = all.filter(|key| !keys.tainted.contains(key.kid()));
            all.filter_map(|key| if let Key::Authority(own) = key { Some(Arc::clone(own)) } else { None }).collect()
        })
    }

    /// The public half of the key that signs for `purpose`, as it is published at `now`.
    #[must_use]
    pub fn current(&self, purpose: Use, now: Time) -> PublishedKey {
        self.slot(purpose).read(|keys| keys.current.published(purpose, now))
    }

    /// The public half of the key that is prepared for `purpose`, as it is published at `now`.
    #[must_use]
    pub fn next(&self, purpose: Use, now: Time) -> Option<PublishedKey> {
        self.slot(purpose).read(|keys| keys.next.as_ref().map(|next| next.key.published(purpose, now)))
    }

    /// The ids of the keys for `purpose` that issue no more and are kept for their revocation lists.
    #[must_use]
    pub fn old(&self, purpose: Use) -> Vec<String> {
        self.slot(purpose).read(|keys| keys.old.iter().map(|key| key.kid().to_owned()).collect())
    }

    /// Until when the key that signs for `purpose` can: an authority ends by itself.
    #[must_use]
    pub fn ends_at(&self, purpose: Use) -> Option<Time> {
        self.slot(purpose).read(|keys| match &keys.current {
            Key::Authority(authority) => Some(authority.not_after()),
            Key::Token(_) => None,
        })
    }

    /// Signs a list of authorities with the key of who certifies them, if that is still the one with this id; in DER.
    ///
    /// # Errors
    /// A sentence, when it is not, or cannot be had, or cannot sign.
    pub fn sign_upstream_list(&self, key: &str, list: AuthorityList<'_>, now: Time) -> Result<Vec<u8>, String> {
        let files = self.terms.upstream.as_ref().ok_or("there is no upstream CA")?;
        // To the end: what it certified has to be on a list as long as it is valid.
        let upstream = Upstream::load(files, self.terms.subjects(), now)?;
        if upstream.issuers().key()? != key {
            return Err("there is another upstream CA by now".into());
        }
        upstream.sign_list(list, now).map_err(|Invalid(why)| why.to_owned())
    }

    /// Whether the authority that signs is certified by somebody else than the next one would be.
    #[must_use]
    pub fn is_of_another_upstream(&self, purpose: Use) -> bool {
        let upstream = self.upstream().map(|upstream| upstream.certificate);
        self.slot(purpose).read(|keys| match &keys.current {
            Key::Authority(authority) => authority.upstream() != upstream.as_deref(),
            Key::Token(_) => false,
        })
    }

    /// Whether the next key for `purpose` could sign for longer than the current one: no authority outlasts who certifies it.
    #[must_use]
    pub fn could_outlast(&self, purpose: Use) -> bool {
        let (upstream, own) = (self.upstream(), self.ends_at(purpose));
        upstream.zip(own).is_none_or(|(upstream, own)| upstream.not_after > own)
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
    pub fn prepare(&self, purpose: Use, now: Time) -> Result<(), String> {
        let slot = self.slot(purpose);
        if slot.read(|keys| keys.next.is_none() && keys.replaced.is_none()) {
            // Not while the keys are locked: who signs waits for no disk.
            if purpose == Use::X509Svid {
                let upstream = self.terms.look_upstream(now)?;
                *self.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
            }
            let (key, _) = load_or_create(purpose, &slot.files.next(), &self.terms, now)?;
            slot.write(|keys| keys.next = Some(Next { key, last_expiry: 0 }));
        }
        Ok(())
    }

    /// From now on the next key signs, if there is one, and the current one is [`Keyring::replaced`]. When this returns, no token
    /// is being signed with the old one any more.
    pub fn activate(&self, purpose: Use) {
        self.slot(purpose).write(|keys| {
            if keys.next.as_ref().is_some_and(|next| keys.tainted.contains(next.key.kid())) {
                return;
            }
            if let (Some(next), None) = (keys.next.take(), &keys.replaced) {
                let last_expiry = std::mem::replace(keys.last_expiry.get_mut(), next.last_expiry);
                let is_tainted = keys.tainted.contains(keys.current.kid());
                keys.replaced = Some(Replaced::new(keys.current.kid(), last_expiry));
                let old = std::mem::replace(&mut keys.current, next.key);
                keys.old.extend((matches!(old, Key::Authority(_)) && !is_tainted).then_some(old));
            }
        });
    }

    /// Destroys the file of the key that was replaced, or puts it aside where it is still needed. Its end is to be on record before.
    ///
    /// # Errors
    /// A sentence that names the file. The key signs no more all the same; try again.
    pub fn settle(&self, purpose: Use) -> Result<(), String> {
        let slot = self.slot(purpose);
        let Some(Replaced { kid, .. }) = self.replaced(purpose) else { return Ok(()) };
        if slot.read(|keys| keys.old.iter().any(|old| old.kid() == kid)) {
            secret_file::duplicate(&slot.files.current(), &slot.files.old_of(&kid))?;
        }
        secret_file::replace(&slot.files.current(), &slot.files.next())?;
        slot.write(|keys| keys.replaced = None);
        Ok(())
    }

    /// The taints that are kept on disk.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn taints(&self) -> Result<Vec<Taint>, String> {
        self.taints.load()
    }

    /// Keeps a taint on disk.
    ///
    /// # Errors
    /// A sentence that names the file; try again.
    pub fn keep_taint(&self, taint: &Taint) -> Result<(), String> {
        self.taints.keep(taint)
    }

    /// From now on nothing is signed with a tainted key, if it is one of ours. When this returns, nothing is being signed with it.
    pub fn bar(&self, purpose: Use, kid: &str) {
        let slot = self.slot(purpose);
        if slot.read(|keys| keys.tainted.contains(kid)) {
            return;
        }
        if let Some(imported) = self.imported_for(purpose) {
            imported.bar(kid);
        }
        slot.write(|keys| {
            let next = keys.next.as_ref().map(|next| &next.key);
            for key in [&keys.current].into_iter().chain(next).chain(&keys.old) {
                // Drafts may hold it already.
                if let Key::Authority(authority) = key
                    && authority.kid() == kid
                {
                    authority.bar();
                }
            }
            keys.tainted.insert(kid.to_owned());
        });
    }

    /// Whether a key for `purpose` was barred.
    #[must_use]
    pub fn is_tainted(&self, purpose: Use, kid: &str) -> bool {
        self.slot(purpose).read(|keys| keys.tainted.contains(kid))
    }

    /// Whether the key that should sign for `purpose` is tainted, so that nothing can be signed until another one takes its place.
    #[must_use]
    pub fn is_barred(&self, purpose: Use) -> bool {
        self.slot(purpose).read(|keys| keys.signing().is_err())
    }

    /// Destroys the keys for `purpose` that are tainted, all but the one that should sign: whether one of them was prepared, and the ids
    /// of those that were kept for their revocation lists. To be called as [`Keyring::prepare`].
    ///
    /// # Errors
    /// A sentence that names the file; try again. They sign nothing all the same.
    pub fn discard_tainted(&self, purpose: Use) -> Result<(bool, Vec<String>), String> {
        let slot = self.slot(purpose);
        let (next, old) = slot.read(|keys| {
            let is_tainted = |key: &Key| keys.tainted.contains(key.kid());
            let old = keys.old.iter().filter(|key| is_tainted(key)).map(|key| key.kid().to_owned());
            (keys.next.as_ref().is_some_and(|next| is_tainted(&next.key)), old.collect::<Vec<_>>())
        });
        if next {
            secret_file::remove(&slot.files.next())?;
            slot.write(|keys| keys.next = None);
        }
        for kid in &old {
            self.forget_old(purpose, kid)?;
        }
        Ok((next, old))
    }

    /// Destroys a key that was kept for its revocation lists.
    ///
    /// # Errors
    /// A sentence that names the file; try again.
    pub fn forget_old(&self, purpose: Use, kid: &str) -> Result<(), String> {
        let slot = self.slot(purpose);
        if slot.read(|keys| keys.replaced.as_ref().is_none_or(|replaced| replaced.kid != kid)) {
            secret_file::remove(&slot.files.old_of(kid))?;
            slot.write(|keys| keys.old.retain(|old| old.kid() != kid));
        }
        Ok(())
    }
}

impl Slot {
    fn load_or_create(purpose: Use, dir: &Path, terms: &AuthorityTerms, now: Time) -> Result<Self, String> {
        let files = Files::of(purpose, dir);
        let (current, is_new) = load_or_create(purpose, &files.current(), terms, now)?;
        // What an earlier process signed is not known any more.
        let anything = after(now, LONGEST_LIFE).unwrap_or(Time::MAX_UTC).timestamp();
        let last_expiry = AtomicI64::new(if is_new { now.timestamp() } else { anything });
        let next = load(purpose, &files.next(), terms)?.map(|key| Next { key, last_expiry: anything });
        let mut old = Vec::new();
        for file in files.old()? {
            // A crash may have left the one that still is the current one in both places.
            old.extend(load(purpose, &file, terms)?.filter(|old| old.kid() != current.kid()));
        }
        let keys = Keys { current, last_expiry, next, replaced: None, old, tainted: HashSet::new() };
        Ok(Self { files, keys: RwLock::new(keys) })
    }

    fn read<T>(&self, look: impl FnOnce(&Keys) -> T) -> T {
        look(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Keys) -> T) -> T {
        change(&mut self.keys.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Keys {
    /// What signs, unless it is tainted.
    fn signing(&self) -> Result<&Key, Invalid> {
        let is_tainted = self.tainted.contains(self.current.kid());
        if is_tainted {
            Err(Invalid("the key is tainted, and no other has taken its place yet"))
        } else {
            Ok(&self.current)
        }
    }
}

impl Files {
    fn of(purpose: Use, dir: &Path) -> Self {
        let name = match purpose {
            Use::AccessToken => "access-token",
            Use::JwtSvid => "jwt-svid",
            Use::Revocations => "revocations",
            Use::Signals => "signals",
            Use::StatusList => "status-list",
            Use::X509Svid => "x509-svid",
        };
        Self { dir: dir.to_owned(), name }
    }

    fn current(&self) -> PathBuf {
        self.dir.join(format!("{}.pem", self.name))
    }

    fn next(&self) -> PathBuf {
        self.dir.join(format!("{}.next.pem", self.name))
    }

    fn old_of(&self, kid: &str) -> PathBuf {
        self.dir.join(format!("{}.{kid}.old.pem", self.name))
    }

    fn old(&self) -> Result<Vec<PathBuf>, String> {
        let start = format!("{}.", self.name);
        secret_file::named(&self.dir, |name| name.starts_with(&start) && name.ends_with(".old.pem"))
    }
}

impl Key {
    fn public(&self) -> &PublicJwk {
        match self {
            Self::Token(key) => key.public(),
            Self::Authority(authority) => authority.public(),
        }
    }

    fn kid(&self) -> &str {
        &self.public().kid
    }

    fn published(&self, purpose: Use, now: Time) -> PublishedKey {
        let (certificate, vouched) = match self {
            Self::Token(_) => (None, None),
            Self::Authority(authority) => (Some(authority.certificate()), authority.vouched()),
        };
        PublishedKey { purpose, jwk: self.public().clone(), certificate, vouched, published_at: now }
    }
}

fn load(purpose: Use, path: &Path, terms: &AuthorityTerms) -> Result<Option<Key>, String> {
    if purpose == Use::X509Svid {
        return secret_file::load(path)?.map(|text| authority(path, &text, terms)).transpose();
    }
    Ok(key_file::load(path)?.map(Key::Token))
}

/// The key, and whether it was made.
fn load_or_create(purpose: Use, path: &Path, terms: &AuthorityTerms, now: Time) -> Result<(Key, bool), String> {
    if purpose != Use::X509Svid {
        return key_file::load_or_create(path).map(|(key, is_new)| (Key::Token(key), is_new));
    }
    let mut is_new = false;
    let text = secret_file::load_or_create(path, || {
        is_new = true;
        // Twice the time that it signs, and what it has signed by then can still live.
        let life = terms.rotate_every.saturating_mul(2).saturating_add(2 * LONGEST_LIFE);
        let upstream = terms.upstream(now)?;
        let key = upstream.as_ref().map(|upstream| upstream.issuers().key()).transpose()?;
        let crl = key.map(|key| CrlId::authorities(&key).uri(&terms.issuer));
        let made = Authority::generate(&terms.trust_domain, upstream.as_ref().zip(crl), now, life);
        made.map_err(|Invalid(why)| why.to_owned())
    })?;
    Ok((authority(path, &text, terms)?, is_new))
}

fn authority(path: &Path, text: &str, terms: &AuthorityTerms) -> Result<Key, String> {
    let own = Authority::from_pem(text, &terms.trust_domain);
    own.map(|own| Key::Authority(Arc::new(own))).map_err(|Invalid(why)| format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::CrlId;
    use serde_json::json;

    const PURPOSE: Use = Use::AccessToken;

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    fn terms() -> AuthorityTerms {
        AuthorityTerms {
            trust_domain: "example.com".parse().unwrap(),
            rotate_every: 3600,
            upstream: None,
            hosts: Vec::new(),
            issuer: "https://broker.example.com".into(),
        }
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
        Keyring::load_or_create(dir, terms(), now()).unwrap()
    }

    #[test]
    fn the_next_key_signs_once_it_is_activated() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        let old = ring.current(PURPOSE, now()).jwk.kid;
        ring.activate(PURPOSE);
        assert_eq!((signs(&ring, now()), ring.replaced(PURPOSE)), (old.clone(), None), "there is none to activate");
        ring.prepare(PURPOSE, now()).unwrap();
        let next = ring.next(PURPOSE, now()).unwrap().jwk.kid;
        ring.prepare(PURPOSE, now()).unwrap();
        assert_eq!((ring.next(PURPOSE, now()).unwrap().jwk.kid, signs(&ring, now())), (next.clone(), old.clone()));
        ring.activate(PURPOSE);
        assert_eq!((signs(&ring, now()), ring.next(PURPOSE, now())), (next.clone(), None));
        assert_eq!(ring.replaced(PURPOSE).unwrap().kid, old);
        ring.prepare(PURPOSE, now()).unwrap();
        assert_eq!(ring.next(PURPOSE, now()), None, "the file of the next key is that of the current one");
        ring.settle(PURPOSE).unwrap();
        assert_eq!(ring.replaced(PURPOSE), None);
        let again = open(dir.path());
        assert_eq!((again.current(PURPOSE, now()).jwk.kid, again.next(PURPOSE, now())), (next, None));
        ring.prepare(PURPOSE, now()).unwrap();
        assert!(ring.next(PURPOSE, now()).is_some());
    }

    #[test]
    fn a_restart_finds_what_was_prepared_or_not_settled() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        let old = ring.current(PURPOSE, now()).jwk.kid;
        ring.prepare(PURPOSE, now()).unwrap();
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
        ring.prepare(PURPOSE, now()).unwrap();
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
        ring.prepare(PURPOSE, now()).unwrap();
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
            ring.prepare(PURPOSE, now()).unwrap();
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
            let preparing = scope.spawn(|| ring.prepare(PURPOSE, now()));
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
        assert_eq!(Keyring::check(dir.path(), &terms(), now()), Ok(None));
        std::fs::write(dir.path().join("jwt-svid.next.pem"), "none").unwrap();
        let mistakes = Keyring::check(dir.path(), &terms(), now()).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].contains("jwt-svid.next.pem: not a private key"), "{mistakes:?}");
    }

    #[test]
    fn an_authority_that_was_replaced_is_kept_for_its_lists() {
        let (dir, purpose) = (tempfile::tempdir().unwrap(), Use::X509Svid);
        let ring = open(dir.path());
        let kids = |ring: &Keyring| ring.authorities().iter().map(|own| own.kid().to_owned()).collect::<Vec<_>>();
        let first = kids(&ring);
        let until = after(now(), 300).unwrap();
        assert_eq!(ring.authority(until).unwrap().1, until);
        ring.prepare(purpose, now()).unwrap();
        ring.activate(purpose);
        assert_eq!(ring.replaced(purpose), Some(Replaced { kid: first[0].clone(), last_expiry: until }));
        let both = kids(&ring);
        assert_eq!((both.len(), &both[1]), (2, &first[0]));
        // A crash before the files are moved: the old one signs again, until its end in the store is looked at. What the next one has
        // issued by then is on its lists.
        assert_eq!(kids(&open(dir.path())), [first[0].clone(), both[0].clone()]);
        ring.settle(purpose).unwrap();
        assert_eq!(kids(&ring), both);
        assert_eq!(kids(&open(dir.path())), both);
        ring.prepare(purpose, now()).unwrap();
        ring.activate(purpose);
        // The end of one that is not put aside yet waits.
        ring.forget_old(purpose, &both[0]).unwrap();
        assert_eq!(kids(&ring)[1..], [both[1].clone(), both[0].clone()]);
        ring.settle(purpose).unwrap();
        ring.forget_old(purpose, &both[1]).unwrap();
        assert_eq!(kids(&ring)[1..], both[..1]);
        assert_eq!(kids(&open(dir.path())), kids(&ring));
    }

    #[test]
    fn what_is_tainted_signs_nothing_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        let kid = ring.current(PURPOSE, now()).jwk.kid;
        ring.bar(PURPOSE, &kid);
        let sign = || ring.sign(PURPOSE, "at+jwt", now().timestamp(), &json!({}));
        assert!(sign().is_err() && ring.is_barred(PURPOSE) && !ring.is_barred(Use::JwtSvid));
        // Nor does a next one that is tainted, wherever its file comes from.
        std::fs::copy(dir.path().join("access-token.pem"), dir.path().join("access-token.next.pem")).unwrap();
        ring.prepare(PURPOSE, now()).unwrap();
        ring.activate(PURPOSE);
        assert!(sign().is_err());
        assert_eq!(ring.discard_tainted(PURPOSE), Ok((true, vec![])));
        assert_eq!(ring.discard_tainted(PURPOSE), Ok((false, vec![])));
        ring.prepare(PURPOSE, now()).unwrap();
        ring.activate(PURPOSE);
        ring.settle(PURPOSE).unwrap();
        assert!(!ring.is_barred(PURPOSE));
        assert_ne!(kid_of(&sign().unwrap()), kid);
        assert_ne!(open(dir.path()).current(PURPOSE, now()).jwk.kid, kid);
    }

    #[test]
    fn a_tainted_authority_signs_neither_drafts_nor_lists() {
        let (dir, purpose) = (tempfile::tempdir().unwrap(), Use::X509Svid);
        let ring = open(dir.path());
        let (held, _) = ring.authority(after(now(), 300).unwrap()).unwrap();
        let sign = |own: &Authority| {
            let id = CrlId::whole(own.kid());
            let uri = "https://broker.example.com/pki/crl/x".to_owned();
            let (this_update, next_update) = (now(), after(now(), 10).unwrap());
            own.sign_list(crate::credential::RevocationList {
                id: &id,
                uri,
                number: 1,
                this_update,
                next_update,
                revoked: vec![],
            })
        };
        sign(&held).unwrap();
        ring.prepare(purpose, now()).unwrap();
        ring.activate(purpose);
        ring.settle(purpose).unwrap();
        let old = dir.path().join(format!("x509-svid.{}.old.pem", held.kid()));
        assert!(old.exists());
        ring.bar(purpose, held.kid());
        assert_eq!(sign(&held), Err(Invalid("the authority is tainted")));
        assert_eq!(ring.authorities().len(), 1);
        assert_eq!(ring.discard_tainted(purpose), Ok((false, vec![held.kid().to_owned()])));
        assert!(!old.exists() && !ring.is_barred(purpose));
        // The one that issues is not put aside.
        let (held, _) = ring.authority(after(now(), 300).unwrap()).unwrap();
        ring.bar(purpose, held.kid());
        assert!(ring.authority(after(now(), 300).unwrap()).is_err() && sign(&held).is_err());
        ring.prepare(purpose, now()).unwrap();
        ring.activate(purpose);
        ring.settle(purpose).unwrap();
        assert_eq!((ring.old(purpose), ring.authorities().len()), (vec![], 1));
    }

    #[test]
    fn an_authority_outlasts_what_it_signs_and_is_of_one_trust_domain() {
        let dir = tempfile::tempdir().unwrap();
        let ring = open(dir.path());
        let end = ring.ends_at(Use::X509Svid).unwrap();
        assert!(end >= after(now(), 2 * terms().rotate_every + LONGEST_LIFE).unwrap());
        assert_eq!(ring.authority(end + chrono::TimeDelta::seconds(1)).unwrap().1, end);
        let other = AuthorityTerms { trust_domain: "example.org".parse().unwrap(), ..terms() };
        let mistakes = Keyring::check(dir.path(), &other, now()).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].contains("another `trust_domain`"), "{mistakes:?}");
        // Nor does a key without its certificate do, or one with another's.
        let file = dir.path().join("x509-svid.pem");
        let text = std::fs::read_to_string(&file).unwrap();
        let (key, certificate) = text.split_at(text.find("-----BEGIN CERTIFICATE").unwrap());
        let foreign = Authority::generate(&terms().trust_domain, None, now(), 60).unwrap();
        let foreign = &foreign[..foreign.find("-----BEGIN CERTIFICATE").unwrap()];
        for bad in [key.to_owned(), certificate.to_owned(), format!("{foreign}{certificate}")] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(Keyring::check(dir.path(), &terms(), now()).unwrap_err().len(), 1);
        }
    }
}
