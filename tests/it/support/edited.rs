//! Stands that differ from the usual one.

use super::{Stand, Store};

impl Stand {
    /// A stand on the embedded store whose configuration is what `edit` makes of the usual one.
    pub(crate) async fn edited(edit: impl FnOnce(String) -> String) -> Self {
        let mut stand = Self::new(Store::Embedded).await;
        let config = std::fs::read_to_string(&stand.broker.config).expect("a configuration");
        std::fs::write(&stand.broker.config, edit(config)).expect("written");
        stand.restart_broker().await;
        stand
    }

    /// The same, under these policies alone.
    pub(crate) async fn under(policies: &str, edit: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("own.cedar"), policies).expect("written");
        // The broker reads them when it starts.
        Self::edited(|config| edit(with_policies(&config, &dir.path().display().to_string()))).await
    }

    /// Writes this for that in the configuration of the running broker, at once for whoever reads it.
    pub(crate) fn change(&self, from: &str, to: &str) {
        let config = std::fs::read_to_string(&self.broker.config).expect("a configuration");
        assert!(config.contains(from), "{from}");
        let new = self.broker.config.with_extension("new");
        std::fs::write(&new, config.replace(from, to)).expect("written");
        std::fs::rename(&new, &self.broker.config).expect("in its place");
    }
}

/// The configuration with another directory of policies.
pub(crate) fn with_policies(config: &str, dir: &str) -> String {
    let usual = config.lines().find(|line| line.starts_with("dir = ")).expect("a policy directory");
    config.replace(usual, &format!("dir = \"{dir}\""))
}
