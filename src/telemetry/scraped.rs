//! The metrics as OTLP has them, from the text that a scraper gets: so both say the same, and nothing is counted twice.

use std::collections::BTreeMap;

use super::wire::{
    CUMULATIVE, Data, Gauge, Histogram, HistogramDataPoint, KeyValue, Metric, NumberDataPoint, Sum, attribute,
};

/// Since when they count, and when they were read, in nanoseconds of Unix time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) since: u64,
    pub(super) at: u64,
}

/// One line of the text: a name, labels, a value.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Every metric of the text, by the name that it has there. What is no metric is left out.
pub(super) fn metrics(text: &str, counted: Counted) -> Vec<Metric> {
    let (mut helps, mut kinds) = (BTreeMap::new(), BTreeMap::<&str, &str>::new());
    let mut samples = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            helps.insert(name, help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name, kind);
        } else {
            samples.extend(sample(line));
        }
    }
    let metric = |(name, kind): (&&str, &&str)| {
        let of_it = |suffix: &str| {
            let name = format!("{name}{suffix}");
            samples.iter().filter(move |sample| sample.name == name)
        };
        let number = |sample: &Sample<'_>| NumberDataPoint {
            start_time_unix_nano: if *kind == "gauge" { 0 } else { counted.since },
            time_unix_nano: counted.at,
            as_double: Some(sample.value),
            attributes: attributes(&sample.labels),
        };
        let data = match *kind {
            "gauge" => Data::Gauge(Gauge { data_points: of_it("").map(number).collect() }),
            "counter" => Data::Sum(Sum {
                data_points: of_it("").map(number).collect(),
                aggregation_temporality: CUMULATIVE,
                is_monotonic: true,
            }),
            "histogram" => {
                let points = of_it("_count").map(|count| {
                    let alike = |labels: &[(String, String)]| {
                        labels.iter().filter(|(label, _)| label != "le").eq(count.labels.iter())
                    };
                    let sum = of_it("_sum").find(|sum| alike(&sum.labels)).map(|sum| sum.value);
                    let buckets: Vec<_> = of_it("_bucket").filter(|bucket| alike(&bucket.labels)).collect();
                    histogram(count, sum, &buckets, counted)
                });
                Data::Histogram(Histogram { data_points: points.collect(), aggregation_temporality: CUMULATIVE })
            }
            _ => return None,
        };
        let description = helps.get(name).copied().unwrap_or_default().to_owned();
        Some(Metric { name: (*name).to_owned(), description, data: Some(data) })
    };
    kinds.iter().filter_map(metric).collect()
}

/// Buckets count what is at most their bound there, and here what is above the one before.
fn histogram(count: &Sample<'_>, sum: Option<f64>, buckets: &[&Sample<'_>], counted: Counted) -> HistogramDataPoint {
    let (mut bounds, mut counts, mut below) = (Vec::new(), Vec::new(), 0);
    for bucket in buckets {
        let bound = bucket.labels.iter().find(|(label, _)| label == "le").and_then(|(_, bound)| bound.parse().ok());
        bounds.extend(bound.filter(|bound: &f64| bound.is_finite()));
        let up_to = whole(bucket.value);
        counts.push(up_to.saturating_sub(below));
        below = up_to;
    }
    HistogramDataPoint {
        start_time_unix_nano: counted.since,
        time_unix_nano: counted.at,
        count: whole(count.value),
        sum,
        bucket_counts: counts,
        explicit_bounds: bounds,
        attributes: attributes(&count.labels),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count, which is written as a whole number"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

fn attributes(labels: &[(String, String)]) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| attribute(name, &**value)).collect()
}

/// Reads `name{label="value",…} 1.5`.
fn sample(line: &str) -> Option<Sample<'_>> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = head.split_once('{') else {
        return Some(Sample { name: head, labels: Vec::new(), value });
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquoted(quoted)?;
        labels.push((label.to_owned(), value));
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some(Sample { name, labels, value })
}

/// A value up to its closing quote, and what follows.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, letter) in text.char_indices() {
        match (escaped, letter) {
            (false, '"') => return Some((value, &text[at + 1..])),
            (false, '\\') => escaped = true,
            (true, 'n') => (value, escaped) = (value + "\n", false),
            (_, letter) => {
                value.push(letter);
                escaped = false;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Now};
    use std::time::Duration;

    #[test]
    fn what_a_scraper_reads_is_what_is_sent() {
        let counting = Metrics::new("d1");
        counting.answered("GET", Some("/jwks"), 200, Duration::from_millis(3));
        counting.answered("GET", Some("/jwks"), 200, Duration::from_secs(9));
        counting.answered("POST", None, 404, Duration::ZERO);
        counting.anchored("a \"file\" \\ of\nmine", true);
        let now = Now {
            live_credentials: 2,
            live_tasks: 0,
            locks: 0,
            brokers_awaited: 0,
            store_up: true,
            ready: false,
            current: false,
        };
        let sent = metrics(&counting.text(now).unwrap(), Counted { since: 7, at: 8 });
        let data = |name: &str| sent.iter().find(|metric| metric.name == name).and_then(|metric| metric.data.clone());
        let Some(Data::Sum(sum)) = data("remit_http_requests_total") else { panic!("{sent:?}") };
        let point = |route: &str| {
            let of_route = |point: &&NumberDataPoint| point.attributes.contains(&attribute("route", route));
            sum.data_points.iter().find(of_route).unwrap().as_double
        };
        assert_eq!((point("/jwks"), point("none"), sum.is_monotonic), (Some(2.0), Some(1.0), true));
        let Some(Data::Histogram(histogram)) = data("remit_http_request_duration_seconds") else { panic!("{sent:?}") };
        let jwks = attribute("route", "/jwks");
        let point = histogram.data_points.iter().find(|point| point.attributes.contains(&jwks)).unwrap();
        assert_eq!((point.count, point.bucket_counts.iter().sum::<u64>()), (2, 2));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.last(), Some(&1));
        assert!((point.sum.unwrap() - 9.003).abs() < 1e-9);
        let Some(Data::Gauge(gauge)) = data("remit_live_credentials") else { panic!("{sent:?}") };
        assert_eq!(gauge.data_points[0].as_double, Some(2.0));
        let Some(Data::Sum(anchored)) = data("remit_audit_checkpoints_sent_total") else { panic!("{sent:?}") };
        assert_eq!(anchored.data_points[0].attributes[0], attribute("anchor", "a \"file\" \\ of\nmine"));
    }

    #[test]
    fn what_is_no_metric_is_left_out() {
        for text in ["", "x", "# TYPE", "a{b 1", "a{b=\"c} 1", "a{b=\"c\\\"} 1", "a b", "# TYPE a summary\na 1"] {
            assert!(metrics(text, Counted { since: 0, at: 0 }).is_empty(), "{text}");
        }
    }
}
