//! The MAC key of the store: one file, the same on every broker, made by the first.

use ring::hmac;
use std::{fmt, path::Path};
use zeroize::Zeroizing;

use crate::{id, secret_file};

const LENGTH: usize = 32;

/// The broker's MAC key for the store. Whoever has it can write records that brokers believe.
pub struct StoreKey(Zeroizing<[u8; LENGTH]>);

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(…)")
    }
}

impl StoreKey {
    /// Reads the key, or makes it (mode 0600) where there is no file yet: 64 hexadecimal digits and a line feed.
    ///
    /// # Errors
    /// A sentence that says what to change: the file is open to others, is no key, or cannot be read or made.
    pub fn load_or_create(path: &Path) -> Result<Self, String> {
        let text = secret_file::load_or_create(path, || {
            let key = Zeroizing::new(id::random::<LENGTH>().map_err(|why| why.to_string())?);
            Ok(Zeroizing::new(id::hex(key.as_ref()) + "\n"))
        })?;
        Self::read(path, &text)
    }

    /// Reads the key that a broker has made.
    ///
    /// # Errors
    /// As [`StoreKey::load_or_create`], and where there is none.
    pub fn load(path: &Path) -> Result<Self, String> {
        let none = || format!("there is no store key at {}", path.display());
        Self::read(path, &secret_file::load(path)?.ok_or_else(none)?)
    }

    /// Checks the key file, if it is there already.
    ///
    /// # Errors
    /// As [`StoreKey::load_or_create`].
    pub fn check(path: &Path) -> Result<(), String> {
        secret_file::load(path)?.map_or(Ok(()), |text| Self::read(path, &text).map(drop))
    }

    fn read(path: &Path, text: &str) -> Result<Self, String> {
        let no_key = || format!("{} is no store key: it has to be 64 hexadecimal digits", path.display());
        parse(text.strip_suffix('\n').unwrap_or(text)).map(Self).ok_or_else(no_key)
    }

    /// The key in the form that MACs are made with.
    pub(super) fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.as_ref())
    }
}

fn parse(text: &str) -> Option<Zeroizing<[u8; LENGTH]>> {
    let mut key = Zeroizing::new([0; LENGTH]);
    if text.len() != LENGTH * 2 {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digit = |at: usize| digits.get(at).and_then(|d| char::from(*d).to_digit(16));
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(key)
}

#[cfg(test)]
impl StoreKey {
    /// A key for tests, all of one byte.
    pub(crate) fn for_test(byte: u8) -> Self {
        Self(Zeroizing::new([byte; LENGTH]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    };

    #[test]
    fn a_key_is_made_once_and_closed_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys/store.key");
        let made = StoreKey::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).unwrap().len(), 65);
        assert_eq!(*StoreKey::load_or_create(&path).unwrap().0, *made.0);
        assert!(!format!("{made:?}").contains(&id::hex(made.0.as_ref())));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(StoreKey::load_or_create(&path).unwrap_err().contains("chmod 600"));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.key");
        for bad in ["", "\n", &"a".repeat(63), &"a".repeat(65), &"g".repeat(64), &format!("{}\n\n", "a".repeat(64))] {
            fs::write(&path, bad).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(StoreKey::load_or_create(&path).unwrap_err().contains("64 hexadecimal digits"), "{bad:?}");
        }
    }
}
