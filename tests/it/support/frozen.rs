//! A broker in this process whose clock stands still, so that hours pass at once.

use remit::{
    clock::{Clock as _, ManualClock, SystemClock},
    config::{Config, Overrides},
    serve,
};
use std::sync::Arc;

use super::{Issuer, write_config};

pub(crate) struct Frozen {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) running: serve::Running,
    pub(crate) issuer: Issuer,
    pub(crate) dir: tempfile::TempDir,
}

impl Frozen {
    /// With what `edit` makes of the usual configuration.
    pub(crate) async fn start(edit: impl FnOnce(&str) -> String) -> Self {
        let (dir, issuer) = (tempfile::tempdir().expect("a temporary directory"), Issuer::new());
        std::fs::write(dir.path().join("ci-keys.json"), issuer.jwks().to_string()).expect("written");
        let path = write_config(dir.path(), "broker", "redb:remit.redb", "");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        std::fs::write(&path, edit(&text)).expect("written");
        let config = Config::load(&path, Overrides::default()).expect("a configuration");
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let running = serve::start(config, clock.clone()).await.expect("a broker");
        Self { clock, running, issuer, dir }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.running.broker.issuer())
    }

    /// The broker's time.
    pub(crate) fn now(&self) -> i64 {
        self.clock.now().timestamp()
    }
}
