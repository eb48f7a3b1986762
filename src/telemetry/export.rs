//! Sends what waits. Each signal on its own, so that none waits for another.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{sync::mpsc::Receiver, time::sleep};
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
    secret_file,
};

/// How long the collector may take over one request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what waits is gathered.
const GATHER: Duration = Duration::from_millis(250);
/// The most that is sent at a time.
const BATCH: usize = 512;

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
        let logs = self.ship("logs", waiting.copied, &source, &stop, |records: Vec<Copied>| {
            let now = nanos(source.clock.now());
            Logs::octets(&resource, records.into_iter().map(|record| log(record, now)).collect())
        });
        let traces = self.ship("traces", waiting.served, &source, &stop, |served: Vec<(Time, Served)>| {
            Traces::octets(&resource, served.into_iter().filter_map(span).collect())
        });
        let measured = async {
            loop {
                let stopped = tokio::select! { () = stop.cancelled() => true, () = sleep(self.every) => false };
                if let Some(text) = (source.text)() {
                    let all = metrics(&text, Counted { since, at: nanos(source.clock.now()) });
                    let sent = self.post("metrics", Measured::octets(&resource, all)).await;
                    source.metrics.exported("metrics", sent.is_ok(), 1);
                }
                if stopped {
                    return;
                }
            }
        };
        tokio::join!(logs, traces, measured);
    }

    async fn ship<T>(
        &self,
        signal: &'static str,
        mut waiting: Receiver<T>,
        source: &Source,
        stop: &CancellationToken,
        encode: impl Fn(Vec<T>) -> Vec<u8>,
    ) {
        let mut well = true;
        loop {
            let stopped = tokio::select! { () = stop.cancelled() => true, () = sleep(GATHER) => false };
            loop {
                let mut batch = Vec::new();
                while batch.len() < BATCH
                    && let Ok(one) = waiting.try_recv()
                {
                    batch.push(one);
                }
                if batch.is_empty() {
                    break;
                }
                let count = batch.len() as u64;
                let sent = self.post(signal, encode(batch)).await;
                source.metrics.exported(signal, sent.is_ok(), count);
                match &sent {
                    Ok(()) if !well => tracing::info!(signal, "the collector takes telemetry again"),
                    Err(why) if well => {
                        tracing::warn!(signal, why, "telemetry is left out: the collector did not take it");
                    }
                    Ok(()) | Err(_) => {}
                }
                well = sent.is_ok();
            }
            if stopped {
                return;
            }
        }
    }

    async fn post(&self, signal: &str, body: Vec<u8>) -> Result<(), String> {
        let url = self.endpoint.join(&format!("v1/{signal}")).map_err(|error| error.to_string())?;
        let request = self.client.post(url).header(CONTENT_TYPE, "application/x-protobuf").body(body);
        let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
    }
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
