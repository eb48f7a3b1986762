//! Copies of the checkpoints where whoever has this machine cannot reach: what is on one cannot be cut from the log unseen.
//!
//! An anchor that is out of reach holds nothing up: it is told the newest checkpoint once it is back, and its age is a metric.

use std::{path::PathBuf, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;
use zeroize::Zeroizing;

use super::{checkpoint, config::AnchorConfig};
use crate::{
    failpoint::{Step, reached},
    secret_file,
};

/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Where checkpoints go besides.
pub struct Anchor {
    name: String,
    target: Target,
}

enum Target {
    File(PathBuf),
    Server { client: reqwest::Client, url: Url, token: Option<Zeroizing<String>> },
}

impl Anchor {
    /// Reads what it takes.
    ///
    /// # Errors
    /// In a sentence.
    pub fn new(config: &AnchorConfig) -> Result<Self, String> {
        let AnchorConfig { path, url, token_file, ca_file } = config;
        match (path, url) {
            (Some(path), None) => Ok(Self { name: path.display().to_string(), target: Target::File(path.clone()) }),
            (None, Some(url)) => {
                let token = token_file.as_ref().map(|file| {
                    let text = secret_file::load(file)?.ok_or_else(|| format!("{} is not there", file.display()))?;
                    Ok::<_, String>(Zeroizing::new(text.trim().to_owned()))
                });
                let token = token.transpose()?;
                let client = client(ca_file.as_ref())?;
                let parsed = Url::parse(url).map_err(|error| format!("the `url` of an [[audit.anchor]]: {error}"))?;
                Ok(Self { name: url.clone(), target: Target::Server { client, url: parsed, token } })
            }
            _ => Err("an [[audit.anchor]] has a `path` or a `url`".to_owned()),
        }
    }

    /// What it is called in metrics and logs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends every checkpoint on, the newest where several came at once, until there are no more.
    pub async fn follow(
        self,
        mut checkpoints: watch::Receiver<Option<String>>,
        stop: CancellationToken,
        sent: impl Fn(bool),
    ) {
        loop {
            let Some(newest) = checkpoints.borrow_and_update().clone() else {
                tokio::select! {
                    changed = checkpoints.changed() => if changed.is_err() { return },
                    () = stop.cancelled() => return,
                }
                continue;
            };
            let outcome = self.send(&newest).await;
            reached(Step::CheckpointAnchored);
            sent(outcome.is_ok());
            if let Err(why) = &outcome {
                tracing::warn!(anchor = self.name, why, "a checkpoint of the audit log could not be anchored");
            }
            tokio::select! {
                changed = checkpoints.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN), if outcome.is_err() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Sends one.
    ///
    /// # Errors
    /// What kept it.
    pub async fn send(&self, checkpoint: &str) -> Result<(), String> {
        match &self.target {
            Target::File(path) => {
                let (path, text) = (path.clone(), checkpoint.to_owned());
                let append = move || checkpoint::append(&mut checkpoint::open(&path)?, &text);
                let written = tokio::task::spawn_blocking(append).await;
                written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
            }
            Target::Server { client, url, token } => {
                let mut request = client.post(url.clone()).header("content-type", "application/jose");
                if let Some(token) = token {
                    request = request.bearer_auth(token.as_str());
                }
                let answer = request.body(checkpoint.to_owned()).send().await;
                let answer = answer.map_err(|error| error.without_url().to_string())?;
                if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
            }
        }
    }
}

fn client(ca_file: Option<&PathBuf>) -> Result<reqwest::Client, String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("remit/", env!("CARGO_PKG_VERSION")));
    let builder = match ca_file {
        Some(file) => {
            let failed = |why: String| format!("{}: {why}", file.display());
            let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.to_string()))?;
            builder.tls_certs_only(certificates)
        }
        None => builder,
    };
    builder.build().map_err(|error| error.to_string())
}
