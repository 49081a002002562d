//! Registering metrics: each is made once, in its service's own registry, with its help text.

use prometheus::{
    CounterVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Bounds for times from a tenth of a millisecond to 30 s, in seconds.
pub const LATENCY_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0,
    30.0,
];

/// Bounds for waits that may last days, in seconds.
pub const LAG_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0, 3600.0, 86400.0];

/// A counter.
///
/// # Errors
/// The name is taken or wrong.
pub fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let metric = IntCounter::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Counters told apart by one label, all of whose values are there from the start.
///
/// # Errors
/// The name is taken or wrong.
pub fn counters(
    registry: &Registry,
    (name, help): (&str, &str),
    label: &str,
    values: impl IntoIterator<Item = &'static str>,
) -> prometheus::Result<IntCounterVec> {
    let metric = IntCounterVec::new(Opts::new(name, help), &[label])?;
    for value in values {
        metric.with_label_values(&[value]).inc_by(0);
    }
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Counters of seconds told apart by one label, all of whose values are there from the start.
///
/// # Errors
/// The name is taken or wrong.
pub fn seconds(
    registry: &Registry,
    (name, help): (&str, &str),
    label: &str,
    values: impl IntoIterator<Item = &'static str>,
) -> prometheus::Result<CounterVec> {
    let metric = CounterVec::new(Opts::new(name, help), &[label])?;
    for value in values {
        metric.with_label_values(&[value]).inc_by(0.0);
    }
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Deliveries held, which dispatchers and schedulers count alike, each with its own reasons.
///
/// # Errors
/// The name is taken.
pub fn held_deliveries(
    registry: &Registry,
    reasons: impl IntoIterator<Item = &'static str>,
) -> prometheus::Result<IntCounterVec> {
    let help = "Deliveries put aside without an attempt, by reason; one may be several times.";
    counters(registry, ("doorbell_deliveries_held_total", help), "reason", reasons)
}

/// A gauge.
///
/// # Errors
/// The name is taken or wrong.
pub fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let metric = IntGauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// A histogram of seconds.
///
/// # Errors
/// The name is taken or wrong.
pub fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
