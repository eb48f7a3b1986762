//! `remit config …`: what a broker would say to a configuration, before it is one's only broker.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{
    Output,
    connection::Connection,
    exit::Failure,
    serve::LISTEN,
    show::{facts, say},
};
use crate::{
    config::{Config, Development, Mistakes, Overrides},
    serve::Checked,
};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Read and check a configuration and all that it names, as `serve` would; start nothing and make nothing.
    #[command(after_help = EXAMPLES)]
    Check(Check),
}

const EXAMPLES: &str = "Examples:
  remit config check --config broker.toml
  remit config check --config broker.toml --strict --output json";

/// What only a running broker can know.
const NOT_CHECKED: &str = "whether the store answers and how it keeps what it is given (`appendfsync`), whether the issuers' \
                           keys can be fetched, whether the addresses are free";

/// Keys, policies and certificates that the configuration names are read; the store is left alone.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The configuration file [default: what `remit serve` does without one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Do not accept what only draws a warning.
    #[arg(long)]
    strict: bool,
}

impl ConfigCommand {
    pub(super) fn run(self, connection: &Connection, output: Output) -> Result<(), Failure> {
        let ConfigCommand::Check(check) = self;
        let config = match &check.config {
            Some(file) => Config::read(file, Overrides::default()),
            None => built_in(connection.data()?),
        };
        let checked = match config {
            Ok(config) => Checked::and_keys(&config).map(|parts| (config, parts)),
            Err(Mistakes(mistakes)) => Err(mistakes),
        };
        let file = check.config.as_deref();
        match (checked, output) {
            (Ok((config, parts)), _) => check.report(&config, &parts, output),
            (Err(mistakes), Output::Json) => {
                say(&json!({"config": file, "accepted": false, "mistakes": mistakes, "warnings": []}).to_string());
                Err(Failure::CheckFailed)
            }
            (Err(mistakes), Output::Text) => Err(Failure::Configuration(mistakes.join("\n"))),
        }
    }
}

impl Check {
    fn report(&self, config: &Config, parts: &Checked, output: Output) -> Result<(), Failure> {
        let warnings = &parts.weaknesses;
        let accepted = warnings.is_empty() || !self.strict;
        let mut report = summary(config, parts);
        say(&match output {
            Output::Text => text(self.config.as_deref(), &report, warnings),
            Output::Json => {
                report["config"] = json!(self.config);
                report["accepted"] = accepted.into();
                report["mistakes"] = json!([]);
                report["warnings"] = json!(warnings);
                report["not_checked"] = NOT_CHECKED.into();
                report.to_string()
            }
        });
        match (accepted, output) {
            (true, _) => Ok(()),
            (false, Output::Json) => Err(Failure::CheckFailed),
            (false, Output::Text) => {
                Err(Failure::Configuration("there are warnings, and --strict takes them for mistakes".to_owned()))
            }
        }
    }
}

pub(super) fn built_in(data: PathBuf) -> Result<Config, Mistakes> {
    let settings = Development { data, keys: None, listen: LISTEN, store: None };
    // Whichever token `serve` will make.
    Config::for_one_machine(settings, crate::id::sha256_hex(b""))
}

/// What is fine. Of the store only what sort it is: its address may hold a password.
fn summary(config: &Config, parts: &Checked) -> Value {
    let store = config.store.url.split(':').next().unwrap_or_default();
    json!({
        "issuer": config.issuer,
        "trust_domain": config.trust_domain.to_string(),
        "store": store,
        "upstream": parts.upstream.as_ref().map(|upstream| format!("{} until {}", upstream.subject, upstream.not_after)),
        "attestors": config.attestor_names().collect::<Vec<_>>(),
        "services": config.services.iter().map(|service| &service.name).collect::<Vec<_>>(),
        "operators": config.operators.iter().map(|operator| &operator.name).collect::<Vec<_>>(),
        "operator_issuers": config.operator_issuers.iter().map(|issuer| &issuer.name).collect::<Vec<_>>(),
        "owners": config.owners.iter().map(|owner| &owner.id).collect::<Vec<_>>(),
        "policies": parts.policies.names().collect::<Vec<_>>(),
    })
}

fn text(file: Option<&Path>, report: &Value, warnings: &[String]) -> String {
    let words = |member: &str| match report[member].as_array() {
        Some(words) => words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        None => report[member].as_str().unwrap_or_default().to_owned(),
    };
    let what = file.map_or("what `remit serve` does without a configuration".into(), |file| file.display().to_string());
    let mut text = format!(
        "{what}: accepted\n{}",
        facts(&[
            ("  issuer", words("issuer")),
            ("  trust domain", words("trust_domain")),
            ("  store", words("store")),
            ("  upstream CA", words("upstream")),
            ("  attestors", words("attestors")),
            ("  services", words("services")),
            ("  operators", words("operators")),
            ("  operators by", words("operator_issuers")),
            ("  owners", words("owners")),
            ("  policies", words("policies")),
            ("  not checked", NOT_CHECKED.to_owned()),
        ])
    );
    for warning in warnings {
        let _ = write!(text, "\nwarning: {warning}");
    }
    text
}
