//! A thin client of the HTTP API: where the broker is, as whom to call it, and what it answered.

use reqwest::{
    Identity,
    header::{ACCEPT, AUTHORIZATION, HeaderValue},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use std::{
    error::Error as _,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use url::Url;

use super::{exit::Failure, holder::Holder};
use crate::id::is_loopback;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
/// No stream lasts longer: the broker ends each after an hour.
const LONGEST_STREAM: Duration = Duration::from_secs(2 * 3600);
/// The most that is read of an answer: a page of tasks is far below it.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Its Unix socket, where the kernel says who calls.
    Unix(PathBuf),
    /// Its URL.
    Web(Url),
}

impl FromStr for Target {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "expected http://HOST, https://HOST or unix:/path/remit.sock";
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(RULE) } else { Ok(Self::Unix(PathBuf::from(path))) };
        }
        let url = Url::parse(text).map_err(|_| RULE)?;
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        if !plain || url.fragment().is_some() || url.host().is_none() {
            return Err(RULE);
        }
        match url.scheme() {
            "https" => Ok(Self::Web(url)),
            "http" if is_loopback(&url) => Ok(Self::Web(url)),
            "http" => {
                Err("plain http:// is for this machine alone: evidence and tokens would cross the network in the clear")
            }
            _ => Err(RULE),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
            Target::Web(url) => f.write_str(url.as_str().trim_end_matches('/')),
        }
    }
}

/// As whom the broker was called: the same error means another thing to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// A workload that the kernel vouches for.
    Kernel,
    /// A workload with a JWT.
    Evidence,
    /// A workload with the task token that it got for evidence, and the key that it is bound to.
    TaskToken,
    /// A workload that presents nothing.
    Nobody,
    /// An operator.
    Operator,
    /// A service.
    Service,
}

/// An answer that is not what was asked for.
#[derive(Debug, Default)]
pub(super) struct Problem {
    pub(super) status: u16,
    pub(super) caller: Option<Caller>,
    /// The body, unchanged.
    pub(super) body: String,
    pub(super) said: Said,
}

/// What the body says: problem+json, or OAuth's own form.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Said {
    #[serde(alias = "error")]
    pub(super) code: String,
    pub(super) title: String,
    #[serde(alias = "error_description")]
    pub(super) detail: String,
    pub(super) request_id: String,
    pub(super) denied: Vec<Value>,
}

/// What the broker answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The body, unchanged.
    pub(super) text: String,
    /// The same, parsed.
    pub(super) json: Value,
}

/// A connection to one broker as one caller.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    target: Target,
    caller: Caller,
    bearer: Option<SecretString>,
    /// With a key of their own, and the name by which the broker knows itself.
    holder: Option<(Holder, String)>,
}

impl Client {
    /// A client that sends `bearer` in `Authorization`, or nothing.
    pub(super) fn new(target: Target, caller: Caller, bearer: Option<SecretString>) -> Result<Self, Failure> {
        Ok(Self { http: http(&target, None)?, target, caller, bearer, holder: None })
    }

    /// An operator's client, that shows the certificate in this text, of this file, in its TLS handshakes.
    pub(super) fn showing(
        target: Target,
        bearer: Option<SecretString>,
        (file, pem): (&Path, &SecretString),
    ) -> Result<Self, Failure> {
        if !matches!(&target, Target::Web(url) if url.scheme() == "https") {
            return Err(Failure::Input(format!("a client certificate is shown over https:// alone, not to {target}")));
        }
        // The error would repeat what it cannot read.
        let identity = Identity::from_pem(pem.expose_secret().as_bytes())
            .map_err(|_| Failure::Input(format!("{}: holds no certificate with its key in PEM", file.display())))?;
        Ok(Self { http: http(&target, Some(identity))?, target, caller: Caller::Operator, bearer, holder: None })
    }

    /// The same for a caller who holds a key: every request comes with a proof, for the broker by its own name.
    pub(super) async fn with_holder(self, holder: Holder) -> Result<Self, Failure> {
        let metadata = self.get("/.well-known/oauth-authorization-server", &[]).await?;
        let issuer = metadata.json["issuer"].as_str().map(str::to_owned);
        let nameless = || Failure::OutOfReach(format!("{}: the metadata names no issuer", self.target));
        Ok(Self { holder: Some((holder, issuer.ok_or_else(nameless)?)), ..self })
    }

    /// The same connection with another token.
    pub(super) fn with_bearer(&self, bearer: SecretString) -> Self {
        Self { bearer: Some(bearer), ..self.clone() }
    }

    pub(super) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Answer, Failure> {
        self.send(self.asking(path, query)?).await
    }

    /// Lines of JSON, as they stand.
    pub(super) async fn lines(&self, path: &str, query: &[(&str, String)]) -> Result<String, Failure> {
        let response = self.response(self.asking(path, query)?).await?;
        if response.status().is_success() {
            return read(response).await.map_err(|why| Failure::OutOfReach(format!("{}: {why}", self.target)));
        }
        Err(self.refusal(response).await)
    }

    fn asking(&self, path: &str, query: &[(&str, String)]) -> Result<reqwest::RequestBuilder, Failure> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(self.http.get(url))
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Answer, Failure> {
        self.send(self.http.post(self.url(path)?).json(body)).await
    }

    /// A retry with the same key does nothing twice.
    pub(super) async fn post_once(&self, path: &str, body: &Value, key: &str) -> Result<Answer, Failure> {
        let key = HeaderValue::from_str(key)
            .map_err(|_| Failure::Input("an idempotency key is printable ASCII".to_owned()))?;
        self.send(self.http.post(self.url(path)?).header("idempotency-key", key).json(body)).await
    }

    pub(super) async fn form(&self, path: &str, form: &[(&str, &str)]) -> Result<Answer, Failure> {
        self.send(self.http.post(self.url(path)?).form(form)).await
    }

    /// A stream of server-sent events.
    pub(super) async fn events(&self, path: &str) -> Result<Events, Failure> {
        let request = self.http.get(self.url(path)?).header(ACCEPT, "text/event-stream").timeout(LONGEST_STREAM);
        let response = self.response(request).await?;
        if response.status().is_success() {
            return Ok(Events { response, buffer: Vec::new(), from: self.target.clone() });
        }
        Err(self.refusal(response).await)
    }

    /// What an answer says that is not what was asked for.
    async fn refusal(&self, response: reqwest::Response) -> Failure {
        match self.answer(response).await {
            Ok(answer) => self.problem(502, answer.text, Said::default()),
            Err(failure) => failure,
        }
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        let base = match &self.target {
            Target::Unix(_) => "http://localhost",
            Target::Web(url) => url.as_str().trim_end_matches('/'),
        };
        Url::parse(&format!("{base}{path}")).map_err(|error| Failure::Input(format!("{base}{path}: {error}")))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> Result<reqwest::RequestBuilder, Failure> {
        Ok(match &self.bearer {
            Some(bearer) => request.header(AUTHORIZATION, authorization(self.caller, bearer)?),
            None => request,
        })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
        self.answer(self.response(request).await?).await
    }

    async fn response(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        let request = self.authorized(request)?.build().map_err(|error| self.unreachable(&error))?;
        let send = async |request| self.http.execute(request).await.map_err(|error| self.unreachable(&error));
        let Some((holder, issuer)) = &self.holder else { return send(request).await };
        let token = self.bearer.as_ref().filter(|_| self.caller == Caller::TaskToken);
        let again = request.try_clone();
        let response = send(holder.prove(request, issuer, token)?).await?;
        match again {
            Some(again) if holder.is_asked_again(&response) => send(holder.prove(again, issuer, token)?).await,
            _ => Ok(response),
        }
    }

    async fn answer(&self, response: reqwest::Response) -> Result<Answer, Failure> {
        let status = response.status().as_u16();
        let text = read(response).await.map_err(|why| Failure::OutOfReach(format!("{}: {why}", self.target)))?;
        let json = serde_json::from_str(&text);
        match json {
            Ok(json) if (200..300).contains(&status) => Ok(Answer { text, json }),
            Ok(json) => Err(self.problem(status, text, serde_json::from_value(json).unwrap_or_default())),
            Err(_) => Err(self.problem(status, text, Said::default())),
        }
    }

    fn problem(&self, status: u16, body: String, mut said: Said) -> Failure {
        if said.code.is_empty() && said.title.is_empty() {
            said.title = format!("{} answered {status}, and not as a broker does", self.target);
        }
        // A body that is none of the broker's, with a status that says all is well, is no answer either.
        let status = if (200..300).contains(&status) { 502 } else { status };
        Failure::Answered(Box::new(Problem { status, caller: Some(self.caller), body, said }))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let target = &self.target;
        Failure::OutOfReach(if error.is_timeout() && !error.is_connect() {
            format!("{target} did not answer within {} s; whether it was done is in doubt", TIMEOUT.as_secs())
        } else {
            format!("cannot reach the broker at {target}: {}", innermost(error))
        })
    }
}

/// Server-sent events (WHATWG HTML, section 9.2), as far as this API has them: the data of each stands on one line.
#[derive(Debug)]
pub(super) struct Events {
    response: reqwest::Response,
    buffer: Vec<u8>,
    from: Target,
}

impl Events {
    /// The data of the next event; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Option<Answer>, Failure> {
        let failed = |why: &str| Failure::OutOfReach(format!("{}: {why}", self.from));
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let Some(data) = line.strip_prefix(b"data: ") else { continue };
                let text = String::from_utf8_lossy(data).trim_end().to_owned();
                let json = serde_json::from_str(&text).map_err(|_| failed("sent something that is not JSON"))?;
                return Ok(Some(Answer { text, json }));
            }
            if self.buffer.len() > MAX_ANSWER {
                return Err(failed("sent an event without an end"));
            }
            // The broker says at least something every few seconds.
            let chunk = tokio::time::timeout(TIMEOUT, self.response.chunk()).await;
            match chunk.map_err(|_| failed("fell silent"))?.map_err(|error| failed(&innermost(&error)))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Fetches a public document of up to a few megabytes.
pub(super) async fn fetch(url: &Url) -> Result<String, Failure> {
    let failed = |why: String| Failure::OutOfReach(format!("{url}: {why}"));
    let target = url.as_str().parse().map_err(|rule: &str| Failure::Input(format!("{url}: {rule}")))?;
    let response = http(&target, None)?.get(url.clone()).send().await.map_err(|error| failed(innermost(&error)))?;
    if !response.status().is_success() {
        return Err(failed(format!("answered {}", response.status().as_u16())));
    }
    read(response).await.map_err(failed)
}

/// An HTTP client with one way to `target`: no redirect, and no proxy for what stays on this machine.
fn http(target: &Target, identity: Option<Identity>) -> Result<reqwest::Client, Failure> {
    // Whoever comes second finds it installed, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .user_agent(concat!("remit/", env!("CARGO_PKG_VERSION")));
    if let Some(identity) = identity {
        builder = builder.identity(identity);
    }
    // Without TLS the machine's certificates need not be read, which takes longer than everything else together.
    let local = |builder: reqwest::ClientBuilder| builder.no_proxy().tls_certs_only([]);
    match target {
        Target::Unix(path) => builder = local(builder).unix_socket(path.as_path()),
        Target::Web(url) if url.scheme() == "http" => builder = local(builder),
        Target::Web(_) => {}
    }
    builder.build().map_err(|error| Failure::Stopped(format!("no HTTP client: {}", innermost(&error))))
}

fn authorization(caller: Caller, token: &SecretString) -> Result<HeaderValue, Failure> {
    let scheme = if caller == Caller::TaskToken { "DPoP" } else { "Bearer" };
    let mut value = HeaderValue::from_str(&format!("{scheme} {}", token.expose_secret()))
        .map_err(|_| Failure::Input("the token to present holds characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read(mut response: reqwest::Response) -> Result<String, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| innermost(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("answered with more than {MAX_ANSWER} octets"));
        }
        body.extend_from_slice(&chunk);
    }
    String::from_utf8(body).map_err(|_| "answered with something that is not text".to_owned())
}

/// The cause that a person can act on stands at the end of the chain.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut text = "the request failed".to_owned();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_url_or_a_socket() {
        assert_eq!("unix:/run/remit.sock".parse(), Ok(Target::Unix("/run/remit.sock".into())));
        for good in
            ["http://127.0.0.1:8420", "http://localhost:8420", "http://[::1]:8420", "https://broker.example.com"]
        {
            assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
        }
        for bad in
            ["", "unix:", "127.0.0.1:8420", "ftp://h", "http://broker.example.com", "https://user@h", "https://h?a"]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
