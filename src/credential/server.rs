//! The certificate that the broker's own TLS listener shows, where the configuration names no files: an X.509-SVID too, of the broker
//! itself, by the authority that certifies its tasks. Nobody may take it for that of a workload or a task: it has another name, another
//! kind of serial, and is for the server's end of TLS alone.
//!
//! Its key is made for it and is never written down.

use chrono::TimeDelta;
use std::sync::Arc;
use zeroize::Zeroizing;

use super::{
    Authority, Keyring, RequestedKey,
    authority::{BACKDATED, Leaf, Whose, pair},
    renew_at,
};
use crate::{
    clock::{Time, after, whole_second},
    error::{Error, Input},
    id::{Host, SpiffeId, hex, random},
    jose::{Invalid, SigningKey},
};

/// How long one lives, in seconds: much longer than whoever renews it can be out of order for.
const LIFE: u32 = 12 * 3600;

/// A certificate of the broker that is decided and not signed.
pub struct ServerDraft {
    authority: Arc<Authority>,
    document: Zeroizing<Vec<u8>>,
    key: RequestedKey,
    serial: Vec<u8>,
    subject: SpiffeId,
    hosts: Vec<Host>,
    issued_at: Time,
    expires_at: Time,
}

/// A certificate of the broker, and its key.
pub struct ServerCertificate {
    /// The certificate (DER), and after it those up to one that clients trust by itself.
    pub chain: Vec<Vec<u8>>,
    /// Its private key (PKCS#8).
    pub key: Zeroizing<Vec<u8>>,
    authority: String,
    renew_at: Time,
}

impl ServerDraft {
    /// Makes a key, and chooses serial, authority and expiry: no later than the authority's own end.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no key could be made, or nothing is left of the authority.
    pub fn prepare(hosts: &[Host], keys: &Keyring, now: Time) -> Result<Self, Error> {
        let unavailable = || Error::Unavailable(Input::Keys);
        let until = after(whole_second(now), LIFE).ok_or_else(unavailable)?;
        let (authority, expires_at) = keys.authority(until).map_err(|_| unavailable())?;
        if expires_at <= now {
            return Err(unavailable());
        }
        let document = SigningKey::generate().map_err(|_| unavailable())?;
        let key = RequestedKey::of(&pair(&document).map_err(|_| unavailable())?);
        let mut serial = random::<20>().map_err(|_| unavailable())?.to_vec();
        serial[0] = Whose::Broker(hosts).first_octet();
        let (subject, hosts) = (keys.trust_domain().broker(), hosts.to_vec());
        Ok(Self { authority, document, key, serial, subject, hosts, issued_at: whole_second(now), expires_at })
    }

    /// Its serial, in hexadecimal.
    #[must_use]
    pub fn serial(&self) -> String {
        hex(&self.serial)
    }

    /// The key id of the authority that signs it.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.authority.kid()
    }

    /// SHA-256 of its public key (DER), in hexadecimal.
    #[must_use]
    pub fn key(&self) -> String {
        self.key.digest()
    }

    /// Its end.
    #[must_use]
    pub fn expires_at(&self) -> Time {
        self.expires_at
    }

    /// Signs it, and is gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it could not be signed.
    pub fn sign(self) -> Result<ServerCertificate, Error> {
        let leaf = Leaf {
            serial: &self.serial,
            subject: &self.subject,
            key: &self.key,
            not_before: (self.issued_at - TimeDelta::seconds(BACKDATED)).max(self.authority.not_before()),
            not_after: self.expires_at,
            // Renewed, it is gone with its key: nobody puts it on a list.
            crl: None,
            holder: Whose::Broker(&self.hosts),
        };
        let certificate = self.authority.issue(&leaf).map_err(|Invalid(why)| {
            tracing::error!(why, "a server certificate was not signed");
            Error::Unavailable(Input::Keys)
        })?;
        let chain = std::iter::once(certificate).chain(self.authority.chain().map(<[u8]>::to_vec)).collect();
        let authority = self.authority.kid().to_owned();
        let renew_at = renew_at(self.issued_at, self.expires_at);
        Ok(ServerCertificate { chain, key: self.document, authority, renew_at })
    }
}

impl ServerCertificate {
    /// Whether it is time for the next one: two thirds of its life have passed, or another authority signs by now, and the one that
    /// signed this may leave the bundle.
    #[must_use]
    pub fn is_due(&self, keys: &Keyring, now: Time) -> bool {
        now >= self.renew_at || keys.authorities().first().is_none_or(|signs| signs.kid() != self.authority)
    }
}
