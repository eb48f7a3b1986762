//! The taints that this broker knows of, of its own keys and of others', each in a file beside the keys: `KID.tainted`. So a taint
//! outlives a store that forgets it, and a key that comes back from a backup finds it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use zeroize::Zeroizing;

use crate::{lease::Taint, secret_file};

/// What the name of a file ends with.
const END: &str = ".tainted";

/// Where they are kept.
#[derive(Debug)]
pub(super) struct TaintFiles {
    dir: PathBuf,
    /// The ids of the keys whose files were seen: they are asked for every second.
    kept: Mutex<HashSet<String>>,
}

impl TaintFiles {
    /// In this directory.
    pub(super) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), kept: Mutex::default() }
    }

    /// All that are kept.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub(super) fn load(&self) -> Result<Vec<Taint>, String> {
        let read = |path: PathBuf| {
            let text = secret_file::load(&path)?.unwrap_or_default();
            let taint = serde_json::from_str::<Taint>(&text).ok();
            let taint = taint.filter(|taint| self.of_kid(&taint.key.jwk.kid).is_ok_and(|own| own == path));
            taint.ok_or_else(|| format!("{} says of no key that it is tainted", path.display()))
        };
        secret_file::named(&self.dir, |name| name.ends_with(END))?.into_iter().map(read).collect()
    }

    /// Keeps one, unless it is kept.
    ///
    /// # Errors
    /// A sentence that names the file; try again.
    pub(super) fn keep(&self, taint: &Taint) -> Result<(), String> {
        let kid = &taint.key.jwk.kid;
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept().contains(kid) {
            return Ok(());
        }
        let path = self.of_kid(kid)?;
        let text = serde_json::to_string(taint).map(Zeroizing::new).map_err(|error| error.to_string());
        secret_file::load_or_create(&path, || text)?;
        kept().insert(kid.clone());
        Ok(())
    }

    /// Key ids are thumbprints; whoever shares the store could have written another.
    fn of_kid(&self, kid: &str) -> Result<PathBuf, String> {
        let is_plain = kid.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_".contains(&octet));
        if !is_plain || kid.is_empty() || kid.len() > 64 {
            return Err("a key has an id that is no thumbprint".to_owned());
        }
        Ok(self.dir.join(format!("{kid}{END}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Time,
        jose::SigningKey,
        lease::{PublishedKey, Use},
    };

    fn taint() -> Taint {
        let tainted_at: Time = "2026-11-20T10:00:00Z".parse().unwrap();
        let jwk = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap().public().clone();
        let key =
            PublishedKey { purpose: Use::AccessToken, jwk, certificate: None, vouched: None, published_at: tainted_at };
        Taint { key, tainted_at }
    }

    #[test]
    fn a_taint_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = TaintFiles::of(&dir.path().join("keys"));
        assert_eq!(files.load(), Ok(vec![]));
        let first = taint();
        files.keep(&first).unwrap();
        files.keep(&Taint { tainted_at: Time::MAX_UTC, ..first.clone() }).unwrap();
        assert_eq!(files.load(), Ok(vec![first]));
    }

    #[test]
    fn what_is_no_taint_is_named_and_no_path_is_a_key_id() {
        let dir = tempfile::tempdir().unwrap();
        let files = TaintFiles::of(dir.path());
        let mut stray = taint();
        for kid in ["", "../key", "a/b", "a.b", &"a".repeat(65)] {
            kid.clone_into(&mut stray.key.jwk.kid);
            assert!(files.keep(&stray).is_err(), "{kid}");
        }
        let mut other = taint();
        files.keep(&other).unwrap();
        let path = files.of_kid(&other.key.jwk.kid).unwrap();
        other.key.jwk.kid = "another".into();
        secret_file::overwrite(&path, &Zeroizing::new(serde_json::to_string(&other).unwrap())).unwrap();
        assert!(files.load().unwrap_err().contains(".tainted says of no key"));
    }
}
