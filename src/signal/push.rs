//! Telling a receiver (RFC 8935): one request, nothing followed, little read.

use reqwest::{
    StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc, time::Duration};
use url::Url;

use super::{ReceiverConfig, Sort, address::Guarded};
use crate::secret_file;

/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of an answer is read, in octets.
const LONGEST_ANSWER: usize = 4096;
/// How much of what it says is passed on, in characters.
const SHOWN: usize = 200;

/// Where a receiver is told.
#[derive(Debug)]
pub(super) struct Push {
    client: reqwest::Client,
    url: Url,
    /// Read anew each time, so that it can be replaced.
    authorization: Option<PathBuf>,
}

/// What came of telling a receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has it; of a webhook: the sandbox is gone.
    Taken,
    /// A webhook has heard, and is not done.
    Heard,
    /// It will never take this one; in its words.
    Refused(String),
    /// It may take it another time; why it did not.
    Failed(String),
}

/// RFC 8935 section 2.4.
#[derive(Deserialize)]
struct Problem {
    err: String,
}

impl Push {
    pub(super) fn new(config: &ReceiverConfig) -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = Url::parse(config.url.as_deref().unwrap_or_default()).map_err(|_| "`url` is no URL".to_owned())?;
        let builder = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would resolve names by itself.
            .no_proxy()
            .dns_resolver(Arc::new(Guarded { private: config.private_address }))
            .user_agent(concat!("remit/", env!("CARGO_PKG_VERSION")));
        let builder = match &config.ca_file {
            Some(file) => {
                let failed = |why: String| format!("{}: {why}", file.display());
                let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
                let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.to_string()))?;
                builder.tls_certs_only(roots)
            }
            None => builder,
        };
        let client = builder.build().map_err(|error| error.to_string())?;
        let push = Self { client, url, authorization: config.authorization_file.clone() };
        push.authorization()?;
        Ok(push)
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let Some(file) = &self.authorization else { return Ok(None) };
        let text = secret_file::load(file)?.ok_or_else(|| format!("{} is not there", file.display()))?;
        let value = HeaderValue::from_str(text.trim()).ok().filter(|value| !value.is_empty());
        let mut value = value.ok_or_else(|| format!("{} holds no value for a header: one line", file.display()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    pub(super) async fn send(&self, sort: Sort, token: &str) -> Answer {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/secevent+jwt")
            .header(ACCEPT, "application/json");
        match self.authorization() {
            Ok(Some(value)) => request = request.header(AUTHORIZATION, value),
            Ok(None) => {}
            Err(why) => return Answer::Failed(why),
        }
        let mut answer = match request.body(token.to_owned()).send().await {
            Ok(answer) => answer,
            Err(error) => return Answer::Failed(why(&error.without_url())),
        };
        match (sort, answer.status()) {
            (Sort::Caep, StatusCode::ACCEPTED) | (Sort::Webhook, StatusCode::OK | StatusCode::NO_CONTENT) => {
                Answer::Taken
            }
            (Sort::Webhook, StatusCode::ACCEPTED) => Answer::Heard,
            (_, StatusCode::BAD_REQUEST) => {
                let mut body = Vec::new();
                while let Ok(Some(chunk)) = answer.chunk().await {
                    body.extend_from_slice(&chunk);
                    if body.len() > LONGEST_ANSWER {
                        return Answer::Failed("it answered 400 with more than is read".to_owned());
                    }
                }
                refused(&body)
            }
            (_, status) => Answer::Failed(format!("it answered {}", status.as_u16())),
        }
    }
}

/// What a 400 says. That it does not believe who tells it is about that, and not about what it is told. Of its words the code alone
/// is passed on: the rest may repeat what it was told with.
fn refused(body: &[u8]) -> Answer {
    let Ok(Problem { err }) = serde_json::from_slice(body) else {
        return Answer::Failed("it answered 400, and does not say why".to_owned());
    };
    let said = code(&err);
    if err == "authentication_failed" || err == "access_denied" { Answer::Failed(said) } else { Answer::Refused(said) }
}

/// The code of an error that a receiver gives, as far as it is one.
#[must_use]
pub fn code(err: &str) -> String {
    err.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')).take(64).collect()
}

/// An error with what caused it.
fn why(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        said = format!("{said}: {cause}");
        source = cause.source();
    }
    said.chars().take(SHOWN).collect()
}
