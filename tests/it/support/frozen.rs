//! A broker in this process whose clock stands still, so that hours pass at once.

use remit::{
    clock::{Clock as _, ManualClock, SystemClock},
    config::{Config, Overrides},
    serve,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Issuer, secrets, write_config, written_by};

pub(crate) struct Frozen {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) running: serve::Running,
    pub(crate) issuer: Issuer,
    searched: Searched,
    pub(crate) dir: tempfile::TempDir,
}

/// What was written in this directory is searched for secrets when the broker goes away.
struct Searched {
    config: PathBuf,
    since: usize,
}

impl Drop for Searched {
    fn drop(&mut self) {
        secrets::note_files(self.config.parent().expect("a directory"));
        secrets::expect_none(self.since, &written_by(&self.config));
    }
}

impl Frozen {
    /// With what `edit` makes of the usual configuration.
    pub(crate) async fn start(edit: impl FnOnce(&str) -> String) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), |_, text| edit(text)).await
    }

    /// The same in a directory that `edit` gets to see.
    pub(crate) async fn start_in(dir: tempfile::TempDir, edit: impl FnOnce(&Path, &str) -> String) -> Self {
        let issuer = Issuer::new();
        std::fs::write(dir.path().join("ci-keys.json"), issuer.jwks().to_string()).expect("written");
        let path = write_config(dir.path(), "broker", "redb:remit.redb", "");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        std::fs::write(&path, edit(dir.path(), &text)).expect("written");
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let searched = Searched { config: path, since: secrets::mark(dir.path()) };
        let running = run(dir.path(), &clock).await;
        Self { clock, running, issuer, searched, dir }
    }

    /// Stops it, and starts it again with what `between` leaves, at the same time of its clock.
    pub(crate) async fn restart(self, between: impl FnOnce()) -> Self {
        let Self { clock, running, issuer, searched, dir } = self;
        secrets::note_files(dir.path());
        running.stop().await;
        between();
        let running = run(dir.path(), &clock).await;
        Self { clock, running, issuer, searched, dir }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.running.broker.issuer())
    }

    /// The broker's time.
    pub(crate) fn now(&self) -> i64 {
        self.clock.now().timestamp()
    }
}

async fn run(dir: &Path, clock: &Arc<ManualClock>) -> serve::Running {
    let config = Config::load(&dir.join("broker.toml"), Overrides::default()).expect("a configuration");
    serve::start(config, clock.clone()).await.expect("a broker")
}
