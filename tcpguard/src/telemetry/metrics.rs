//! Metrics as text in the format that Prometheus reads (OpenMetrics 1.0). What is measured, and who may read it, is decided
//! elsewhere.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

/// What the name of every metric begins with.
pub const PREFIX: &str = "tcpguard_";
/// The media type of [`text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Without [`PREFIX`], and without the `_total` of a counter.
    pub name: &'static str,
    /// What it means, without a full stop.
    pub help: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// Labels with the value that there is for them.
    pub samples: Vec<(Labels, Value)>,
}

/// Names and values, the same names throughout a metric.
pub type Labels = Vec<(&'static str, String)>;

/// What a metric's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Counts, which only ever grow while a daemon lives.
    Counter,
    /// Something that there is at a moment.
    Gauge,
    /// Durations, seconds.
    Histogram,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Whole(u64),
    /// Of a gauge.
    Real(f64),
    /// Of a histogram: upper bounds with how many there were up to each and beyond the one before, and the sum.
    Buckets(Vec<(f64, u64)>, f64),
}

impl Metric {
    /// One without values so far.
    pub fn new(kind: Kind, name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind, samples: Vec::new() }
    }

    /// With a value more.
    pub fn add<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: Value) {
        let labels = labels.map(|(name, value)| (name, escaped(value)));
        self.samples.push((labels.into(), value));
    }

    /// The name under which queries find it; of a histogram, that of its buckets.
    pub fn query_name(&self) -> String {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Gauge => "",
            Kind::Histogram => "_bucket",
        };
        format!("{PREFIX}{}{suffix}", self.name)
    }
}

/// The format has backslashes before what would end a value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All of them as text.
pub fn text(metrics: Vec<Metric>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(metrics)));
    let mut text = String::new();
    // Writing to a string has no way to fail.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Snapshot(Vec<Metric>);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { name, help, kind, samples } in &self.0 {
            let kind = match kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let name = format!("{PREFIX}{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, kind)?;
            for (labels, value) in samples {
                if labels.is_empty() {
                    write(&mut metric, kind, value)?;
                } else {
                    write(&mut metric.encode_family(labels)?, kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, kind: MetricType, value: &Value) -> fmt::Result {
    const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;
    match (kind, value) {
        (MetricType::Counter, Value::Whole(count)) => metric.encode_counter(count, NO_EXEMPLAR),
        (_, Value::Whole(count)) => metric.encode_gauge(&(*count as f64)),
        (_, Value::Real(number)) => metric.encode_gauge(number),
        (_, Value::Buckets(buckets, sum)) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_a_gauge_and_a_histogram_read_as_the_format_has_them() {
        let mut counter = Metric::new(Kind::Counter, "segments", "Segments");
        counter.add([("reason", "a\"b\\c\n"), ("outcome", "dropped")], Value::Whole(u64::MAX));
        let mut gauge = Metric::new(Kind::Gauge, "fill", "How full");
        gauge.add([], Value::Real(0.5));
        let mut histogram = Metric::new(Kind::Histogram, "gap_seconds", "Gaps");
        histogram.add([("queue", "0")], Value::Buckets(vec![(0.5, 2), (1.0, 0), (f64::MAX, 1)], 7.25));
        let names: Vec<_> = [&counter, &gauge, &histogram].map(Metric::query_name).into();
        assert_eq!(names, ["tcpguard_segments_total", "tcpguard_fill", "tcpguard_gap_seconds_bucket"]);
        assert_eq!(
            text(vec![counter, gauge, histogram]),
            r#"# HELP tcpguard_segments Segments
# TYPE tcpguard_segments counter
tcpguard_segments_total{reason="a\"b\\c\n",outcome="dropped"} 18446744073709551615
# HELP tcpguard_fill How full
# TYPE tcpguard_fill gauge
tcpguard_fill 0.5
# HELP tcpguard_gap_seconds Gaps
# TYPE tcpguard_gap_seconds histogram
tcpguard_gap_seconds_sum{queue="0"} 7.25
tcpguard_gap_seconds_count{queue="0"} 3
tcpguard_gap_seconds_bucket{le="0.5",queue="0"} 2
tcpguard_gap_seconds_bucket{le="1.0",queue="0"} 2
tcpguard_gap_seconds_bucket{le="+Inf",queue="0"} 3
# EOF
"#
        );
    }
}
