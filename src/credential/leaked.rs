//! Keys whose private half is known to others: by a list of the organisation's own, as a CA keeps one of keys that were found where
//! they should not be.

use std::{collections::HashSet, fs::File, io::Read as _, path::Path};

use super::RequestedKey;
use crate::id::is_sha256_hex;

/// The most octets of a list: some million keys.
const MAX_SIZE: u64 = 64 * 1024 * 1024;

/// Keys that are never certified, each by the SHA-256 of its `SubjectPublicKeyInfo`.
#[derive(Debug, Default)]
pub struct LeakedKeys(HashSet<String>);

impl LeakedKeys {
    /// Reads a list: a digest a line, in hexadecimal; what follows it on the line, and what follows a `#`, is for people.
    ///
    /// # Errors
    /// The file and the line that is none, in a sentence.
    pub fn load(path: &Path) -> Result<Self, String> {
        let told = |why: &str| format!("`certificates.leaked_keys_file`: {} {why}", path.display());
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_SIZE + 1).read_to_string(&mut text))
            .map_err(|why| told(&format!("cannot be read: {why}")))?;
        if text.len() as u64 > MAX_SIZE {
            return Err(told("is larger than 64 MiB"));
        }
        let mut digests = HashSet::new();
        for (at, line) in text.lines().enumerate() {
            let Some(digest) = line.split('#').next().unwrap_or_default().split_whitespace().next() else { continue };
            let digest = digest.to_ascii_lowercase();
            if !is_sha256_hex(&digest) {
                let line = at + 1;
                return Err(told(&format!(
                    "line {line}: no SHA-256 of a public key (SubjectPublicKeyInfo) in hexadecimal"
                )));
            }
            digests.insert(digest);
        }
        Ok(Self(digests))
    }

    /// Whether it is on the list.
    #[must_use]
    pub fn has(&self, key: &RequestedKey) -> bool {
        self.0.contains(&key.digest())
    }
}
