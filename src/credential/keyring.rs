//! The broker's own signing keys: one per kind of credential and one for status lists, read once, never copied to another broker.

use std::path::Path;

use crate::{
    clock::Time,
    jose::{Invalid, SigningKey},
    lease::{PublishedKey, Use},
    secret_file,
    task::CredentialType,
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};

const ACCESS_TOKEN: &str = "access-token.pem";
const JWT_SVID: &str = "jwt-svid.pem";
const STATUS_LIST: &str = "status-list.pem";

/// The signing keys.
#[derive(Debug)]
pub struct Keyring {
    access_token: SigningKey,
    jwt_svid: SigningKey,
    status_list: SigningKey,
}

impl Keyring {
    /// Reads `access-token.pem`, `jwt-svid.pem` and `status-list.pem` in `dir`, and makes those that are not there, mode 0600.
    ///
    /// # Errors
    /// A sentence that names the file and says what to change.
    pub fn load_or_create(dir: &Path) -> Result<Self, String> {
        Ok(Self {
            access_token: key(&dir.join(ACCESS_TOKEN))?,
            jwt_svid: key(&dir.join(JWT_SVID))?,
            status_list: key(&dir.join(STATUS_LIST))?,
        })
    }

    /// Checks those key files that are there already.
    ///
    /// # Errors
    /// As [`Keyring::load_or_create`]; every mistake.
    pub fn check(dir: &Path) -> Result<(), Vec<String>> {
        let check = |name: &&str| {
            let path = dir.join(name);
            secret_file::load(&path).and_then(|text| text.map_or(Ok(()), |text| read(&path, &text).map(drop))).err()
        };
        let mistakes: Vec<_> = [ACCESS_TOKEN, JWT_SVID, STATUS_LIST].iter().filter_map(check).collect();
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }

    /// The key for a form of credential.
    #[must_use]
    pub fn key(&self, form: CredentialType) -> &SigningKey {
        match form {
            CredentialType::AccessToken => &self.access_token,
            CredentialType::Jwt => &self.jwt_svid,
        }
    }

    /// The key for status lists.
    #[must_use]
    pub fn status_list(&self) -> &SigningKey {
        &self.status_list
    }

    /// The public halves, with their use, as they are published at `now`.
    #[must_use]
    pub fn public(&self, now: Time) -> [PublishedKey; 3] {
        let keys = [
            (Use::AccessToken, &self.access_token),
            (Use::JwtSvid, &self.jwt_svid),
            (Use::StatusList, &self.status_list),
        ];
        keys.map(|(purpose, key)| PublishedKey { purpose, jwk: key.public().clone(), published_at: now })
    }
}

fn key(path: &Path) -> Result<SigningKey, String> {
    let text = secret_file::load_or_create(path, || {
        let document = SigningKey::generate().map_err(|Invalid(why)| why.to_owned())?;
        Ok(zeroize::Zeroizing::new(pem(&document)))
    })?;
    read(path, &text)
}

fn read(path: &Path, text: &str) -> Result<SigningKey, String> {
    let document = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| format!("{}: not a private key in PEM (PKCS#8)", path.display()))?;
    SigningKey::from_pkcs8(document.secret_pkcs8_der()).map_err(|Invalid(why)| format!("{}: {why}", path.display()))
}

/// RFC 7468 section 10.
fn pem(document: &[u8]) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let text = BASE64_STANDARD.encode(document);
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END PRIVATE KEY-----\n"
}
