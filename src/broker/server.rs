//! **Serve**: a certificate of the broker itself, for its TLS listener: a key is made → on record → signed. Again well ahead of its end,
//! and at once when another authority signs.

use super::Broker;
use crate::{
    audit::{Actor, Entry, Event},
    credential::{ServerCertificate, ServerDraft},
    error::Error,
    id::Host,
};

impl Broker {
    /// A new certificate for a server that is reached by these names.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it cannot be recorded or signed.
    pub async fn certify_server(&self, hosts: &[Host]) -> Result<ServerCertificate, Error> {
        let now = self.now();
        let draft = ServerDraft::prepare(hosts, &self.parts.keys, now)?;
        let event = Event::ServerCertificateMinted {
            serial: draft.serial(),
            authority: draft.authority().to_owned(),
            key: draft.key(),
            hosts: hosts.to_vec(),
            expires_at: draft.expires_at(),
        };
        self.record(vec![Entry { time: now, request: String::new(), actor: Actor::Broker, task: None, event }]).await?;
        draft.sign()
    }

    /// Whether it is time for the next one.
    #[must_use]
    pub fn is_server_due(&self, certificate: &ServerCertificate) -> bool {
        certificate.is_due(&self.parts.keys, self.now())
    }
}
