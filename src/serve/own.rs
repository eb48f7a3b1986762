//! A server certificate from the broker's own authority: there before anything is served, and renewed while it is.

use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

use super::{StartError, reload};
use crate::{
    broker::Broker,
    credential::ServerCertificate,
    http::{Tls, TlsVersion},
    id::Host,
};

/// How often it is looked whether the next one is due.
const LOOK: Duration = Duration::from_secs(1);
/// How long after an attempt that failed the next one is made: each is on record, and there are hours left.
const AGAIN: Duration = Duration::from_secs(60);

/// What the TLS listener shows, and goes on showing.
pub(super) struct Own {
    tls: Tls,
    hosts: Vec<Host>,
    certificate: ServerCertificate,
}

/// The first one.
///
/// # Errors
/// When there is none.
pub(super) async fn begin(broker: Arc<Broker>, hosts: Vec<Host>, oldest: TlsVersion) -> Result<Own, StartError> {
    let failed = |why: String| StartError::Failed(format!("no server certificate for `listen.tls_names`: {why}"));
    let certificate = broker.certify_server(&hosts).await.map_err(|error| failed(error.to_string()))?;
    let tls = Tls::issued(&certificate.chain, &certificate.key, oldest).map_err(failed)?;
    Ok(Own { tls, hosts, certificate })
}

impl Own {
    pub(super) fn tls(&self) -> Tls {
        self.tls.clone()
    }

    /// Shows the next one whenever it is due, until `stop`.
    pub(super) async fn renew(mut self, broker: Arc<Broker>, stop: CancellationToken) {
        reload::count(&self.tls, &broker);
        let mut pause = LOOK;
        while tokio::time::timeout(pause, stop.cancelled()).await.is_err() {
            pause = LOOK;
            if broker.is_server_due(&self.certificate) {
                match self.next(&broker).await {
                    Ok(()) => tracing::info!("the server certificate is renewed, and shown from now on"),
                    Err(why) => {
                        pause = AGAIN;
                        tracing::error!("the server certificate is not renewed; the old one is still shown: {why}");
                    }
                }
            }
        }
    }

    async fn next(&mut self, broker: &Broker) -> Result<(), String> {
        let next = broker.certify_server(&self.hosts).await.map_err(|error| error.to_string())?;
        self.tls.show(&next.chain, &next.key)?;
        self.certificate = next;
        reload::count(&self.tls, broker);
        Ok(())
    }
}
