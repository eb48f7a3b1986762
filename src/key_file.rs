//! A signing key in a file of its own: PEM (PKCS#8; an RSA key that somebody brings, PKCS#1 too), for its owner alone.

use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use std::path::Path;
use zeroize::Zeroizing;

use crate::{
    jose::{Invalid, KeyNumbers, SigningKey},
    pem, rsa, secret_file,
};

/// Reads a key; `None` where there is none.
///
/// # Errors
/// A sentence that names the file and says what to change.
pub fn load(path: &Path) -> Result<Option<SigningKey>, String> {
    secret_file::load(path)?.map(|text| read(path, &text)).transpose()
}

/// Reads an RSA key; `None` where there is none.
///
/// # Errors
/// A sentence that names the file and says what to change.
pub fn load_rsa(path: &Path) -> Result<Option<SigningKey>, String> {
    let Some(text) = secret_file::load(path)? else { return Ok(None) };
    let document = |label| pem::read_one(&text, &[label]).map(Zeroizing::new);
    let key = match (document("PRIVATE KEY"), document("RSA PRIVATE KEY")) {
        (Some(pkcs8), _) => SigningKey::from_rsa_pkcs8(&pkcs8),
        (None, Some(pkcs1)) => SigningKey::from_rsa_pkcs1(&pkcs1),
        (None, None) => Err(Invalid("not one private key in PEM (PKCS#8 or PKCS#1), without a passphrase")),
    };
    let key = key.map_err(|Invalid(why)| format!("{}: {why}", path.display()))?;
    if let KeyNumbers::Rsa { n, .. } = &key.public().numbers
        && let Some(why) = rsa::flaw_of(n)
    {
        return Err(format!("{}: a weak RSA key: {why}; make another one", path.display()));
    }
    Ok(Some(key))
}

/// Reads a key, or makes it where there is none yet: the key, and whether it was made.
///
/// # Errors
/// A sentence that names the file and says what to change.
pub fn load_or_create(path: &Path) -> Result<(SigningKey, bool), String> {
    let mut is_new = false;
    let text = secret_file::load_or_create(path, || {
        is_new = true;
        let document = SigningKey::generate().map_err(|Invalid(why)| why.to_owned())?;
        Ok(Zeroizing::new(pem::write("PRIVATE KEY", &document)))
    })?;
    Ok((read(path, &text)?, is_new))
}

fn read(path: &Path, text: &str) -> Result<SigningKey, String> {
    let document = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| format!("{}: not a private key in PEM (PKCS#8)", path.display()))?;
    SigningKey::from_pkcs8(document.secret_pkcs8_der()).map_err(|Invalid(why)| format!("{}: {why}", path.display()))
}
