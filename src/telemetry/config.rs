//! The `[telemetry]` section.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use url::Url;

use crate::id::is_safe_target;

/// Where what is done, counted and on record goes besides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// To a collector that speaks OTLP.
    pub otlp: Option<Otlp>,
}

/// A collector.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// Where it takes OTLP over HTTP; `/v1/traces`, `/v1/metrics` and `/v1/logs` are added.
    pub endpoint: String,
    /// Headers for it, one `name: value` a line, such as an API key.
    pub headers_file: Option<PathBuf>,
    /// The authorities that vouch for it, in PEM; left out: those of the machine.
    pub ca_file: Option<PathBuf>,
    /// How often the metrics are sent, in seconds.
    #[serde(default = "every")]
    pub every: u32,
}

fn every() -> u32 {
    30
}

impl Config {
    /// Makes its paths relative to where the configuration stands.
    pub fn resolve(&mut self, base: &Path) {
        if let Some(otlp) = &mut self.otlp {
            for path in [&mut otlp.headers_file, &mut otlp.ca_file].into_iter().flatten() {
                *path = base.join(&path);
            }
        }
    }

    /// What is wrong with it.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        let Some(otlp) = &self.otlp else { return Vec::new() };
        let mut mistakes = Vec::new();
        if cfg!(not(feature = "otlp")) {
            mistakes.push(
                "`telemetry.otlp`: this remit was built without OTLP; build it with the cargo feature `otlp`, or remove the section"
                    .to_owned(),
            );
        }
        // What is on record names people and what they do, and the headers may be a secret.
        if !Url::parse(&otlp.endpoint).is_ok_and(|url| is_safe_target(&url)) {
            mistakes.push(
                "`telemetry.otlp.endpoint` is an https URL (http on loopback) without user, query and fragment; what it takes to get \
                 in stands in `headers_file`"
                    .to_owned(),
            );
        }
        if !(1..=3600).contains(&otlp.every) {
            mistakes.push("`telemetry.otlp.every` is 1 to 3600 seconds".to_owned());
        }
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(endpoint: &str, every: u32) -> Vec<String> {
        let otlp = Otlp { endpoint: endpoint.to_owned(), headers_file: None, ca_file: None, every };
        Config { otlp: Some(otlp) }.mistakes()
    }

    #[test]
    fn an_unsafe_endpoint_is_refused() {
        let without = usize::from(cfg!(not(feature = "otlp")));
        for good in [
            "https://collector.example.com",
            "https://c.example.com:4318/tenant/",
            "http://127.0.0.1:4318",
            "http://[::1]:1",
        ] {
            assert_eq!(mistakes(good, 30).len(), without, "{good}");
        }
        for bad in [
            "",
            "collector.example.com:4318",
            "http://collector.example.com:4318",
            "https://user@collector.example.com",
            "https://user:hunter2@collector.example.com",
            "https://collector.example.com/?key=hunter2",
            "https://collector.example.com/#x",
            "grpc://127.0.0.1:4317",
        ] {
            let found = mistakes(bad, 30);
            assert_eq!(found.len(), without + 1, "{bad}");
            assert!(!found.concat().contains("hunter2"), "{found:?}");
        }
        assert_eq!(mistakes("https://c.example.com", 0).len(), without + 1);
    }

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn a_build_without_it_says_so() {
        assert!(mistakes("https://c.example.com", 30)[0].contains("built without OTLP"));
    }
}
