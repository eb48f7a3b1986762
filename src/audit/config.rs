//! The `[audit]` section.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use url::Url;

use super::{Keeping, Terms};
use crate::{id::is_safe_target, jose::SigningKey, metrics::Metrics};

/// How the log is kept, and where else its checkpoints go. Nothing of it can be set but here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often the log is signed, if there is something new, in seconds.
    pub checkpoint_every: u32,
    /// How long a segment may become, in bytes.
    pub segment_bytes: u64,
    /// How old a segment may become, in seconds.
    pub segment_age: u32,
    /// How many days a segment is kept after its last record; left out: for ever.
    pub retention_days: Option<u32>,
    /// Whether nothing is removed, however old it is.
    pub legal_hold: bool,
    /// Whether records go to standard output too, once they are in the files.
    pub stdout: bool,
    /// Where checkpoints go besides, so that a cut tail shows.
    #[serde(rename = "anchor")]
    pub anchors: Vec<AnchorConfig>,
}

/// One `[[audit.anchor]]`: a file, best on another machine's disk, or a server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorConfig {
    /// A file that each checkpoint is appended to, one a line.
    pub path: Option<PathBuf>,
    /// A server that each checkpoint is posted to, as `application/jose`.
    pub url: Option<String>,
    /// The bearer token for that server.
    pub token_file: Option<PathBuf>,
    /// The authorities that vouch for that server, in PEM; left out: those of the machine.
    pub ca_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            checkpoint_every: 60,
            segment_bytes: 64 << 20,
            segment_age: 86_400,
            retention_days: None,
            legal_hold: false,
            stdout: false,
            anchors: Vec::new(),
        }
    }
}

impl Config {
    /// Makes its paths relative to where the configuration stands.
    pub fn resolve(&mut self, base: &Path) {
        for anchor in &mut self.anchors {
            for path in [&mut anchor.path, &mut anchor.token_file, &mut anchor.ca_file].into_iter().flatten() {
                *path = base.join(&path);
            }
        }
    }

    /// What is wrong with it.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut unless = |fits: bool, what: &str| {
            if !fits {
                mistakes.push(what.to_owned());
            }
        };
        unless((1..=3600).contains(&self.checkpoint_every), "`audit.checkpoint_every` is 1 to 3600 seconds");
        // Shorter than two groups, and the end of the log could not be read from one segment.
        unless(
            (4 << 20..=1 << 40).contains(&self.segment_bytes),
            "`audit.segment_bytes` is 4194304 to 1099511627776 bytes",
        );
        unless((60..=31 * 86_400).contains(&self.segment_age), "`audit.segment_age` is 60 to 2678400 seconds");
        unless(
            self.retention_days.is_none_or(|days| days >= 1),
            "`audit.retention_days` is 1 or more; leave it out to keep everything",
        );
        for AnchorConfig { path, url, token_file, ca_file } in &self.anchors {
            let is_file = path.is_some() && url.is_none() && token_file.is_none() && ca_file.is_none();
            let is_safe = |url: &str| Url::parse(url).is_ok_and(|url| is_safe_target(&url));
            let is_server = path.is_none() && url.as_deref().is_some_and(is_safe);
            unless(
                is_file || is_server,
                "an [[audit.anchor]] has a `path`, or a `url` (https, or http on loopback; without user, query and fragment, for it stands in \
                 metrics and logs) with a `token_file` and a `ca_file` if it needs them",
            );
        }
        mistakes
    }

    /// The terms that the writer keeps to.
    #[must_use]
    pub fn terms(&self, key: SigningKey, metrics: Metrics) -> Terms {
        Terms { key, keeping: self.keeping(), stdout: self.stdout, metrics }
    }

    /// How the log is kept.
    #[must_use]
    pub fn keeping(&self) -> Keeping {
        Keeping {
            checkpoint_every: self.checkpoint_every,
            segment_bytes: self.segment_bytes,
            segment_age: self.segment_age,
            retention: self.retention_days.map(|days| u64::from(days) * 86_400),
            legal_hold: self.legal_hold,
        }
    }
}
