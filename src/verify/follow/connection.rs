//! What is asked of the brokers, over HTTP.

use reqwest::{
    RequestBuilder, Response,
    header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use serde_json::json;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use url::Url;

use super::{FollowTerms, Trouble, events::Events};
use crate::{
    id::{hex, is_loopback, random},
    verify::{Asked, Keys, MAX_STATE},
};

/// The header that says which of a service's verifiers asks.
const FOLLOWER: &str = "Remit-Follower";
/// How long it takes at most to reach a broker.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it takes at most until it answers, and until a document is here.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection for keys is kept: the next are fetched long after, and brokers have better uses for it.
const KEPT_OPEN: Duration = Duration::from_secs(1);
/// The longest metadata, and the longest set of keys.
const MAX_DOCUMENT: usize = 256 * 1024;
/// A state with what stands around it in a stream.
const MAX_EVENT: usize = MAX_STATE + 1024;
/// How long keys may be kept where nobody says how long, and the bounds of what may be said, in seconds.
const KEPT: u64 = 60;
const SHORTEST: u64 = 10;
const LONGEST: u64 = 300;

pub(super) struct Connection {
    http: reqwest::Client,
    /// The last session's: what is said of the states that came on it goes to the same broker, and with HTTP/2 on the same connection.
    latest: Mutex<reqwest::Client>,
    roots: Option<Vec<reqwest::Certificate>>,
    issuer: String,
    authorization: Option<HeaderValue>,
    /// Which of the service's verifiers this is: each is waited for by itself.
    follower: HeaderValue,
}

/// Where things are, as the broker says (RFC 8414).
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
    remit_spiffe_bundle_uri: String,
    remit_revocation_jwks_uri: String,
}

impl Connection {
    pub(super) fn new(terms: &FollowTerms) -> Result<Self, Trouble> {
        checked(&terms.issuer)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // An error says that a provider is installed already, which is as good.
        let _ = rustls::crypto::CryptoProvider::install_default((*provider).clone());
        let roots = terms.roots.as_ref().map(|roots| reqwest::Certificate::from_pem_bundle(roots)).transpose();
        let roots = roots.map_err(|error| Trouble::of(&error))?;
        let bearer = |token: &String| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Trouble::new("the service's token cannot be sent in a header"))?;
            value.set_sensitive(true);
            Ok::<_, Trouble>(value)
        };
        let authorization = terms.service_token.as_ref().map(bearer).transpose()?;
        let name = random::<16>().map_err(|why| Trouble::of(&why))?;
        let follower = HeaderValue::try_from(hex(&name)).map_err(|why| Trouble::of(&why))?;
        let http = client(roots.as_deref())?;
        Ok(Self {
            latest: Mutex::new(http.clone()),
            http,
            roots,
            issuer: terms.issuer.clone(),
            authorization,
            follower,
        })
    }

    /// A way to one broker: what is asked on it is asked, as far as that is up to us, on one connection, which goes with it. A connection
    /// that is dead without anybody having said so is not used again.
    pub(super) fn session(&self) -> Result<Session<'_>, Trouble> {
        let http = client(self.roots.as_deref())?;
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&http);
        Ok(Session { connection: self, http })
    }

    /// The keys of all brokers, and how long they may be kept.
    pub(super) async fn keys(&self) -> Result<(Keys, Duration), Trouble> {
        let place = format!("{}/.well-known/oauth-authorization-server", self.base());
        let metadata = self.document(&place).await?.0;
        let metadata: Metadata =
            serde_json::from_slice(&metadata).map_err(|why| Trouble::new(format!("{place}: {why}")))?;
        if metadata.issuer != self.issuer {
            return Err(Trouble::new(format!("{place} is the metadata of another issuer")));
        }
        let (jwks, headers) = self.document(&metadata.jwks_uri).await?;
        let (bundle, _) = self.document(&metadata.remit_spiffe_bundle_uri).await?;
        let (states, _) = self.document(&metadata.remit_revocation_jwks_uri).await?;
        let keys = Keys::read(&jwks, &bundle, &states).map_err(|why| Trouble::new(format!("the keys: {why}")))?;
        Ok((keys, kept(&headers)))
    }

    /// Tells the broker how far we are, where it knows us.
    pub(super) async fn acknowledge(&self, (broker, sequence): (String, u64)) -> Result<(), Trouble> {
        let body = json!({"broker": broker, "sequence": sequence}).to_string();
        let http = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = http.post(self.place("/v1/revocations/ack")?).header(CONTENT_TYPE, "application/json");
        send(self.known(request.body(body))).await.map(|_| ())
    }

    pub(super) fn is_known(&self) -> bool {
        self.authorization.is_some()
    }

    fn place(&self, path: &str) -> Result<Url, Trouble> {
        checked(&format!("{}{path}", self.base()))
    }

    /// What all places begin with.
    fn base(&self) -> &str {
        self.issuer.trim_end_matches('/')
    }

    fn known(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.authorization {
            Some(authorization) => {
                request.header(AUTHORIZATION, authorization.clone()).header(FOLLOWER, self.follower.clone())
            }
            None => request,
        }
    }

    async fn document(&self, place: &str) -> Result<(Vec<u8>, HeaderMap), Trouble> {
        let read = async {
            let response = send(self.http.get(checked(place)?)).await?;
            let headers = response.headers().clone();
            Ok((whole(response, MAX_DOCUMENT).await?, headers))
        };
        let read = tokio::time::timeout(PATIENCE, read).await;
        read.unwrap_or_else(|_| Err(Trouble::new("no answer in time")))
            .map_err(|why| Trouble::new(format!("{place}: {why}")))
    }
}

/// What is asked of one broker.
pub(super) struct Session<'a> {
    connection: &'a Connection,
    http: reqwest::Client,
}

impl Session<'_> {
    /// All that is revoked.
    pub(super) async fn snapshot(&self, asked: &Asked, witness: Option<&str>) -> Result<String, Trouble> {
        let mut place = self.connection.place("/v1/revocations")?;
        place.query_pairs_mut().append_pair("nonce", asked.nonce());
        let mut request = self.http.get(place);
        if let Some(witness) = witness {
            request = request.header("Remit-Last-State", witness);
        }
        let read = async { whole(send(self.connection.known(request)).await?, MAX_STATE).await };
        let octets = tokio::time::timeout(PATIENCE, read).await.map_err(|_| Trouble::new("no snapshot in time"))??;
        String::from_utf8(octets).map_err(|_| Trouble::new("the snapshot is no text"))
    }

    /// What changes from here on.
    pub(super) async fn stream(&self, last: Option<&str>) -> Result<Stream, Trouble> {
        let mut request = self.http.get(self.connection.place("/v1/revocations")?).header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = send(self.connection.known(request)).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return Err(Trouble::new("the feed is no stream of events"));
        }
        Ok(Stream { response, events: Events::new(MAX_EVENT) })
    }
}

fn client(roots: Option<&[reqwest::Certificate]>) -> Result<reqwest::Client, Trouble> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .pool_idle_timeout(KEPT_OPEN)
        .http2_keep_alive_interval(PATIENCE)
        .http2_keep_alive_timeout(CONNECT)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("remit-verify/", env!("CARGO_PKG_VERSION")));
    if let Some(roots) = roots {
        builder = builder.tls_certs_only(roots.iter().cloned());
    }
    builder.build().map_err(|error| Trouble::of(&error))
}

async fn send(request: RequestBuilder) -> Result<Response, Trouble> {
    let response = tokio::time::timeout(PATIENCE, request.send()).await;
    let response = response.map_err(|_| Trouble::new("no answer in time"))?.map_err(|error| Trouble::of(&error))?;
    match response.status() {
        status if status.is_success() => Ok(response),
        status => Err(Trouble::new(format!("the broker answers {status}"))),
    }
}

/// States, as they come in.
pub(super) struct Stream {
    response: Response,
    events: Events,
}

impl Stream {
    /// The next one.
    pub(super) async fn next(&mut self) -> Result<String, Trouble> {
        loop {
            if let Some(state) = self.events.next()? {
                return Ok(state);
            }
            match self.response.chunk().await.map_err(|error| Trouble::of(&error))? {
                Some(octets) => self.events.extend(&octets),
                None => return Err(Trouble::new("the broker ended the stream")),
            }
        }
    }
}

async fn whole(mut response: Response, longest: usize) -> Result<Vec<u8>, Trouble> {
    let mut octets = Vec::new();
    while let Some(more) = response.chunk().await.map_err(|error| Trouble::of(&error))? {
        if octets.len() + more.len() > longest {
            return Err(Trouble::new("the answer is too long"));
        }
        octets.extend_from_slice(&more);
    }
    Ok(octets)
}

/// Keys that came over a plain connection could be anybody's.
fn checked(place: &str) -> Result<Url, Trouble> {
    let url = Url::parse(place).map_err(|why| Trouble::new(format!("{place}: {why}")))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        _ => Err(Trouble::new(format!("{place}: not https://, and not on this machine"))),
    }
}

fn kept(headers: &HeaderMap) -> Duration {
    let said = headers.get(CACHE_CONTROL).and_then(|value| value.to_str().ok());
    let seconds = said.and_then(|said| {
        said.split(',').find_map(|directive| match directive.trim() {
            "no-cache" | "no-store" => Some(0),
            directive => directive.strip_prefix("max-age=")?.parse().ok(),
        })
    });
    Duration::from_secs(seconds.unwrap_or(KEPT).clamp(SHORTEST, LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept_as_long_as_they_may_be() {
        let kept = |said: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, said.parse().unwrap());
            super::kept(&headers).as_secs()
        };
        assert_eq!(
            ["public, max-age=120", "no-cache", "max-age=0", "max-age=99999", "x"].map(kept),
            [120, 10, 10, 300, 60]
        );
        assert_eq!(super::kept(&HeaderMap::new()).as_secs(), 60);
    }

    #[test]
    fn only_what_is_safe_is_fetched() {
        for good in ["https://broker.example.com/jwks", "http://127.0.0.1:8420/jwks", "http://localhost/jwks"] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for bad in ["http://broker.example.com/jwks", "file:///etc/passwd", "ftp://h/x", "/jwks", ""] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }
}
