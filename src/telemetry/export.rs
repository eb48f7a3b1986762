//! Sends what waits. Each signal on its own, so that none waits for another.

use reqwest::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    Copied, Otlp, Served, Waiting, octets,
    scraped::{Counted, metrics},
    wire::{
        AnyValue, ERROR, INFO, LogRecord, Logs, Measured, Resource, SERVER, Span, SpanLink, Status, Traces, Value,
        attribute,
    },
};
use crate::{
    clock::{Clock, Time},
    id::random,
    metrics::Metrics,
    queue::Exit,
    secret_file,
};

/// How long the collector may take over one request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what waits is gathered.
const GATHER: Duration = Duration::from_millis(250);
/// The most that is sent at a time: so many, of so many octets and one more.
const BATCH: usize = 512;
const OCTETS: usize = 1 << 20;

/// Where it goes.
pub struct Exporter {
    client: reqwest::Client,
    endpoint: Url,
    every: Duration,
}

/// What it is about.
pub struct Source {
    /// The broker's name.
    pub issuer: String,
    /// The name of its audit log, which tells it from the others of that name.
    pub instance: String,
    /// What is counted, as a scraper reads it.
    pub text: Box<dyn Fn() -> Option<String> + Send + Sync>,
    /// Where it is counted what was sent, and what was not.
    pub metrics: Metrics,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl Exporter {
    /// Reads what it takes.
    ///
    /// # Errors
    /// In a sentence.
    pub fn new(config: &Otlp) -> Result<Self, String> {
        let Otlp { endpoint, headers_file, ca_file, every } = config;
        let mut endpoint = Url::parse(endpoint).map_err(|error| format!("`telemetry.otlp.endpoint`: {error}"))?;
        if !endpoint.path().ends_with('/') {
            endpoint.set_path(&format!("{}/", endpoint.path()));
        }
        let headers = headers_file.as_deref().map_or_else(|| Ok(HeaderMap::new()), headers)?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .timeout(PATIENCE)
            // The headers are for this one.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("remit/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = ca_file {
            let pem = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem);
            builder = builder.tls_certs_only(authorities.map_err(|error| format!("{}: {error}", file.display()))?);
        }
        let client = builder.build().map_err(|error| format!("`telemetry.otlp`: {error}"))?;
        Ok(Self { client, endpoint, every: Duration::from_secs((*every).into()) })
    }

    /// Sends what waits until `stop`, and then what still does.
    pub async fn run(self, waiting: Waiting, source: Source, stop: CancellationToken) {
        let resource = Resource {
            attributes: vec![
                attribute("service.name", "remit"),
                attribute("service.version", env!("CARGO_PKG_VERSION")),
                attribute("service.instance.id", &*source.instance),
                attribute("remit.issuer", &*source.issuer),
            ],
        };
        let since = nanos(source.clock.now());
        let record = |record| Some(log(record, nanos(source.clock.now())));
        let logs = self.ship("logs", waiting.copied, (&source, &stop), record, |all| Logs::octets(&resource, all));
        let traces = self.ship("traces", waiting.served, (&source, &stop), span, |all| Traces::octets(&resource, all));
        let measured = async {
            loop {
                let stopped = tokio::select! { () = stop.cancelled() => true, () = sleep(self.every) => false };
                if let Some(text) = (source.text)() {
                    let all = metrics(&text, Counted { since, at: nanos(source.clock.now()) });
                    let Sent { dropped, .. } = self.send("metrics", all, &|all| Measured::octets(&resource, all)).await;
                    source.metrics.exported("metrics", dropped == 0, 1);
                }
                if stopped {
                    return;
                }
            }
        };
        tokio::join!(logs, traces, measured);
    }

    async fn ship<T, I>(
        &self,
        signal: &'static str,
        mut waiting: Exit<T>,
        (source, stop): (&Source, &CancellationToken),
        item: impl Fn(T) -> Option<I>,
        encode: impl Fn(&[I]) -> Vec<u8>,
    ) {
        let mut well = true;
        loop {
            let stopped = tokio::select! { () = stop.cancelled() => true, () = sleep(GATHER) => false };
            loop {
                let (mut batch, mut octets, mut taken) = (Vec::new(), 0, 0);
                while taken < BATCH
                    && octets < OCTETS
                    && let Some((size, one)) = waiting.take()
                {
                    (octets, taken) = (octets + size, taken + 1);
                    batch.extend(item(one));
                }
                if taken == 0 {
                    break;
                }
                let Sent { taken: sent, dropped, why } = self.send(signal, batch, &encode).await;
                for (outcome, count) in [(true, sent), (false, dropped)].into_iter().filter(|(_, count)| *count > 0) {
                    source.metrics.exported(signal, outcome, count);
                }
                match &why {
                    None if !well => tracing::info!(signal, "the collector takes telemetry again"),
                    Some(why) if well => {
                        tracing::warn!(signal, why, "telemetry is left out: the collector did not take it");
                    }
                    Some(_) | None => {}
                }
                well = why.is_none();
            }
            if stopped {
                return;
            }
        }
    }

    /// Sends them, in pieces where all at once is too much for the collector. What is too much by itself is left out, and so is all that
    /// there is after any other failure.
    async fn send<I>(&self, signal: &str, items: Vec<I>, encode: &impl Fn(&[I]) -> Vec<u8>) -> Sent {
        let (mut sent, mut dropped, mut why) = (0, 0, None);
        let mut pieces = vec![&items[..]];
        while let Some(piece) = pieces.pop().filter(|piece| !piece.is_empty()) {
            let count = piece.len() as u64;
            match self.post(signal, encode(piece)).await {
                Ok(()) => sent += count,
                Err(Refused::TooLarge) if count > 1 => {
                    let (first, second) = piece.split_at(piece.len() / 2);
                    // The first one is next: they stay in order.
                    pieces.extend([second, first]);
                }
                Err(Refused::TooLarge) => {
                    dropped += 1;
                    why = Some(format!("one of {} octets is too large for it", encode(piece).len()));
                }
                Err(Refused::Otherwise(other)) => {
                    dropped += count + pieces.drain(..).map(|piece| piece.len() as u64).sum::<u64>();
                    why = Some(other);
                }
            }
        }
        Sent { taken: sent, dropped, why }
    }

    async fn post(&self, signal: &str, body: Vec<u8>) -> Result<(), Refused> {
        let otherwise = |error: String| Refused::Otherwise(error);
        let url = self.endpoint.join(&format!("v1/{signal}")).map_err(|error| otherwise(error.to_string()))?;
        let request = self.client.post(url).header(CONTENT_TYPE, "application/x-protobuf").body(body);
        let answer = request.send().await.map_err(|error| otherwise(error.without_url().to_string()))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::PAYLOAD_TOO_LARGE => Err(Refused::TooLarge),
            status => Err(otherwise(format!("it answered {status}"))),
        }
    }
}

/// What became of a batch.
struct Sent {
    taken: u64,
    dropped: u64,
    /// Why something was left out.
    why: Option<String>,
}

/// Why the collector has not taken something.
enum Refused {
    /// It is more than it takes at a time.
    TooLarge,
    /// In words.
    Otherwise(String),
}

/// Reads `name: value` lines from a file that only its owner can.
fn headers(file: &Path) -> Result<HeaderMap, String> {
    let text = secret_file::load(file)?.ok_or_else(|| format!("{} is not there", file.display()))?;
    let mut headers = HeaderMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let header = line.split_once(':').and_then(|(name, value)| {
            let mut value = HeaderValue::from_str(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
        });
        let (name, value) =
            header.ok_or_else(|| format!("{} holds headers, one `name: value` a line", file.display()))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn nanos(time: Time) -> u64 {
    time.timestamp_nanos_opt().and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or_default()
}

fn span((ended, served): (Time, Served)) -> Option<Span> {
    let Served { id, method, route, status, took, caller } = served;
    let end = nanos(ended);
    let mut attributes = vec![
        attribute("http.request.method", method),
        attribute("http.response.status_code", u64::from(status)),
        attribute("remit.request.id", &*id),
    ];
    attributes.extend(route.as_deref().map(|route| attribute("http.route", route)));
    let link = |link: super::Link| SpanLink { trace_id: link.trace.to_vec(), span_id: link.span.to_vec() };
    Some(Span {
        trace_id: octets::<16>(&id)?.to_vec(),
        span_id: random::<8>().ok()?.to_vec(),
        name: route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")),
        kind: SERVER,
        start_time_unix_nano: end.saturating_sub(u64::try_from(took.as_nanos()).unwrap_or_default()),
        end_time_unix_nano: end,
        attributes,
        links: caller.map(link).into_iter().collect(),
        // What is wrong with a request is no error of whoever answers it.
        status: (status >= 500).then_some(Status { code: ERROR }),
    })
}

/// What is read of a record's line.
#[derive(Deserialize)]
struct Line {
    time: Time,
    request: String,
    event: String,
}

fn log(record: Copied, now: u64) -> LogRecord {
    let Copied { sequence, line, class: (class, name) } = record;
    let read = serde_json::from_str::<Line>(&line).ok();
    LogRecord {
        time_unix_nano: read.as_ref().map(|line| nanos(line.time)).unwrap_or_default(),
        severity_number: INFO,
        attributes: vec![
            attribute("ocsf.class_uid", u64::from(class)),
            attribute("ocsf.class_name", name),
            attribute("remit.audit.sequence", sequence),
        ],
        trace_id: read.as_ref().and_then(|line| octets::<16>(&line.request)).map(Vec::from).unwrap_or_default(),
        observed_time_unix_nano: now,
        event_name: read.map(|line| format!("remit.{}", line.event)).unwrap_or_default(),
        body: Some(AnyValue { value: Some(Value::String(line)) }),
    }
}
