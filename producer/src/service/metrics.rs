//! What the producer counts.

use doorbell_platform::metrics::counter;
use prometheus::{IntCounter, Registry};

/// The producer's counters.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Events that RabbitMQ confirmed.
    pub(crate) accepted: IntCounter,
    /// Events that break the rules.
    pub(crate) rejected: IntCounter,
    /// Events whose id was known.
    pub(crate) duplicate: IntCounter,
    /// Events that went to the sideline.
    pub(crate) sidelined: IntCounter,
    /// Events that RabbitMQ did not confirm.
    pub(crate) unconfirmed: IntCounter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            accepted: counter(
                registry,
                "doorbell_events_accepted_total",
                "Events taken in: RabbitMQ has confirmed them.",
            )?,
            rejected: counter(
                registry,
                "doorbell_events_rejected_total",
                "Events refused because they break the rules of publishing.",
            )?,
            duplicate: counter(
                registry,
                "doorbell_events_duplicate_total",
                "Events not taken in again because their id is known.",
            )?,
            sidelined: counter(
                registry,
                "doorbell_events_sidelined_total",
                "Events taken in that went to the sideline, because their tenant published more than its share.",
            )?,
            unconfirmed: counter(
                registry,
                "doorbell_events_unconfirmed_total",
                "Events answered with 503 because RabbitMQ did not confirm them.",
            )?,
        })
    }
}
