//! What is done, counted and on record, sent on to a collector: OTLP over HTTP, in protobuf.
//!
//! Nothing waits for it. What is to be sent stands in queues that have an end, in pieces and in octets; where the collector is slow or gone it is left out,
//! and counted. The durable audit log stays the truth, and nothing is decided by what is here.
//!
//! A trace is a request, and its id is the `x-request-id`: so an answer, its span and what is on record of it find each other. What a
//! caller says of a trace of its own is kept as a link, and nothing follows from it.

mod config;
#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod scraped;
#[cfg(feature = "otlp")]
mod wire;

pub use config::{Config, Otlp};
#[cfg(feature = "otlp")]
pub use export::{Exporter, Source};

use std::{sync::Arc, time::Duration};

use crate::{
    clock::{Clock, Time},
    metrics::Metrics,
    queue::{Entrance, Exit, bounded},
};

/// How many of each may wait to be sent, and of how many octets.
const QUEUE: usize = 8192;
const OCTETS: usize = 8 << 20;
/// About how many octets a span or a record takes beside its texts.
const OTHERS: usize = 256;

/// Whoever has something to tell. Cheap to clone; the default tells nobody.
#[derive(Clone, Default)]
pub struct Telemetry(Option<Arc<Told>>);

struct Told {
    served: Entrance<(Time, Served)>,
    copied: Entrance<Copied>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

/// What waits to be sent.
pub struct Waiting {
    /// Requests that were answered, and when.
    pub served: Exit<(Time, Served)>,
    /// Records of the audit log.
    pub copied: Exit<Copied>,
}

/// A request that was answered.
#[derive(Debug)]
pub struct Served {
    /// Its `x-request-id`.
    pub id: String,
    /// Its method, if it is one that everybody knows.
    pub method: &'static str,
    /// The template of its route, never its path.
    pub route: Option<String>,
    /// The status of the answer.
    pub status: u16,
    /// How long it took.
    pub took: Duration,
    /// What its caller says that it is part of.
    pub caller: Option<Link>,
}

/// A span of somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its trace.
    pub trace: [u8; 16],
    /// The span.
    pub span: [u8; 8],
}

/// A record of the audit log, which is on disk.
#[derive(Debug)]
pub struct Copied {
    /// Its number.
    pub sequence: u64,
    /// Its line, without the line feed.
    pub line: String,
    /// The OCSF class of what happened: its id, and its name.
    pub class: (u32, &'static str),
}

impl Telemetry {
    /// One that tells what is then waiting.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, metrics: Metrics) -> (Self, Waiting) {
        let (served, waiting_served) = bounded(QUEUE, OCTETS);
        let (copied, waiting_copied) = bounded(QUEUE, OCTETS);
        let told = Told { served, copied, clock, metrics };
        (Self(Some(Arc::new(told))), Waiting { served: waiting_served, copied: waiting_copied })
    }

    /// A request was answered. Waits for nothing.
    pub fn served(&self, served: impl FnOnce() -> Served) {
        let Some(told) = &self.0 else { return };
        let served = served();
        let octets = OTHERS + served.id.len() + 2 * served.route.as_ref().map_or(0, String::len);
        if !told.served.offer(octets, (told.clock.now(), served)) {
            told.metrics.exported("traces", false, 1);
        }
    }

    /// A record is on disk. Waits for nothing.
    pub fn copied(&self, copied: impl FnOnce() -> Copied) {
        let Some(told) = &self.0 else { return };
        let copied = copied();
        if !told.copied.offer(OTHERS + copied.line.len(), copied) {
            told.metrics.exported("logs", false, 1);
        }
    }
}

impl Link {
    /// What a `traceparent` says (W3C Trace Context, version 00); `None` where it is none.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_one = version == "00" && flags.len() == 2 && parts.next().is_none();
        octets::<1>(flags)?;
        let link = Self { trace: octets(trace)?, span: octets(span)? };
        (is_one && link.trace != [0; 16] && link.span != [0; 8]).then_some(link)
    }
}

/// Octets from digits, which are in lower case.
fn octets<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digit = |digit: &u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut octets = [0; N];
    for (octet, [high, low]) in octets.iter_mut().zip(pairs) {
        *octet = digit(high)? << 4 | digit(low)?;
    }
    Some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn a_traceparent_is_one_or_nothing() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let link = Link::parse(good).unwrap();
        assert_eq!((link.trace[0], link.span[7]), (0x4b, 0xb7));
        for bad in [
            "",
            "00",
            &good[..54],
            &format!("{good}-00"),
            &good.to_uppercase(),
            &good.replace("00-4", "01-4"),
            &good.replace("00-4", "ff-4"),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            &good.replace("00f067aa0ba902b7", "0000000000000000"),
            &good.replace("-01", "-0g"),
            &good.replace('b', "é"),
        ] {
            assert_eq!(Link::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_finds_no_room_is_left_out_and_counted() {
        let metrics = Metrics::new("d");
        let (telemetry, waiting) = Telemetry::new(Arc::new(SystemClock), metrics.clone());
        for sequence in 0..QUEUE as u64 + 3 {
            telemetry.copied(|| Copied { sequence, line: String::new(), class: (0, "") });
        }
        assert_eq!(waiting.copied.len(), QUEUE);
        let now = crate::metrics::Now {
            live_credentials: 0,
            live_tasks: 0,
            locks: 0,
            brokers_awaited: 0,
            store_up: true,
            ready: true,
            current: true,
        };
        let text = metrics.text(now).unwrap();
        assert!(text.contains("remit_telemetry_exported_total{signal=\"logs\",outcome=\"dropped\"} 3"), "{text}");
        // Large ones fill it sooner.
        let (telemetry, waiting) = Telemetry::new(Arc::new(SystemClock), metrics);
        let line = "x".repeat(1 << 20);
        for sequence in 0..20 {
            telemetry.copied(|| Copied { sequence, line: line.clone(), class: (0, "") });
        }
        assert_eq!(waiting.copied.len(), 7);
        Telemetry::default().copied(|| unreachable!("nobody is told"));
    }
}
