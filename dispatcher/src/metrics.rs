//! What a dispatcher counts.

use std::time::Duration;

use doorbell_common::gate::HoldReason;
use doorbell_common::outcome::OutcomeClass;
use doorbell_platform::metrics::{
    LAG_BUCKETS, LATENCY_BUCKETS, counter, counters, gauge, held_deliveries, histogram, seconds,
};
use prometheus::{CounterVec, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
use tokio::time::Instant;

use crate::understand::Destination;

/// Less is no wait, but the time of asking.
const COUNTED_WAIT: Duration = Duration::from_micros(100);

/// A dispatcher's metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) events: IntCounter,
    pub(crate) rejected: IntCounter,
    pub(crate) duplicate: IntCounter,
    pub(crate) copies: IntCounter,
    pub(crate) removed: IntCounter,
    pub(crate) filtered: IntCounter,
    pub(crate) matched: IntCounter,
    pub(crate) put_off: IntCounter,
    pub(crate) handed_on: IntCounterVec,
    pub(crate) attempt_seconds: Histogram,
    pub(crate) first_attempt_lag: Histogram,
    pub(crate) posts_in_flight: IntGauge,
    pub(crate) slow_posts_in_flight: IntGauge,
    pub(crate) breakers_open: IntGauge,
    pub(crate) held: IntCounterVec,
    pub(crate) blocked_addresses: IntCounter,
    pub(crate) unconfirmed_records: IntCounter,
    pub(crate) ledger_hits: IntCounter,
    pub(crate) connections_opened: IntCounter,
    waited: CounterVec,
    deliveries: IntCounterVec,
    attempts: IntCounterVec,
}

/// How a delivery ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Final {
    Delivered,
    Cancelled,
}

/// What a delivery in hand waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Permit,
    Endpoint,
    Turn,
    Record,
}

impl Wait {
    const ALL: [Self; 4] = [Self::Permit, Self::Endpoint, Self::Turn, Self::Record];

    fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Endpoint => "endpoint",
            Self::Turn => "turn",
            Self::Record => "record",
        }
    }
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let classes = OutcomeClass::ALL.map(OutcomeClass::as_str);
        let count = |name, help| counter(registry, name, help);
        Ok(Self {
            events: count(
                "doorbell_events_dispatched_total",
                "Events whose every delivery is settled or handed on.",
            )?,
            rejected: count(
                "doorbell_events_rejected_total",
                "Messages moved to doorbell.rejected.",
            )?,
            duplicate: count(
                "doorbell_events_duplicate_total",
                "Events dropped because their id is known.",
            )?,
            copies: count(
                "doorbell_handoff_copies_total",
                "Copies of hand-offs dropped: a crash between a confirm and an acknowledgement makes them.",
            )?,
            removed: count(
                "doorbell_messages_removed_total",
                "Messages, or parts of one, dropped because their event is being removed.",
            )?,
            filtered: count(
                "doorbell_deliveries_filtered_total",
                "Deliveries not begun because the subscription's filter does not want the event.",
            )?,
            matched: count(
                "doorbell_deliveries_begun_total",
                "Deliveries begun: events times matching subscriptions whose filter wants them.",
            )?,
            put_off: count(
                "doorbell_events_put_off_total",
                "Times that an event or a page of one was put off because Redis has lost what says whom it is for.",
            )?,
            handed_on: counters(
                registry,
                ("doorbell_handoffs_total", "Messages handed on with a confirm, by queue."),
                "queue",
                Destination::LABELS,
            )?,
            attempt_seconds: histogram(
                registry,
                "doorbell_attempt_duration_seconds",
                "Time of one POST, from name to answer.",
                &LATENCY_BUCKETS,
            )?,
            first_attempt_lag: histogram(
                registry,
                "doorbell_first_attempt_lag_seconds",
                "Time from an event's timestamp to the first attempt of each of its deliveries.",
                &LAG_BUCKETS,
            )?,
            posts_in_flight: gauge(registry, "doorbell_posts_in_flight", "POSTs in flight.")?,
            slow_posts_in_flight: gauge(
                registry,
                "doorbell_slow_posts_in_flight",
                "Those of the POSTs in flight that have been so for more than half a second.",
            )?,
            breakers_open: gauge(
                registry,
                "doorbell_breakers_open",
                "Endpoints left alone after failures in a row, but for single probes.",
            )?,
            held: held_deliveries(registry, HoldReason::ALL.map(HoldReason::as_str))?,
            blocked_addresses: count(
                "doorbell_addresses_blocked_total",
                "Attempts refused because the address may not be called.",
            )?,
            unconfirmed_records: count(
                "doorbell_attempt_records_unconfirmed_total",
                "Attempts whose record was not confirmed in time; they may be missing in the history.",
            )?,
            connections_opened: count(
                "doorbell_connections_opened_total",
                "Connections to endpoints begun; the other attempts went over one that was there.",
            )?,
            waited: waited(registry)?,
            ledger_hits: count(
                "doorbell_ledger_hits_total",
                "Deliveries not made again after a crash, because they were known to be done with.",
            )?,
            deliveries: counters(
                registry,
                ("doorbell_deliveries_total", "Deliveries that ended, by final state."),
                "state",
                ["delivered", "cancelled"],
            )?,
            attempts: counters(
                registry,
                ("doorbell_attempts_total", "Attempts by outcome."),
                "outcome",
                classes,
            )?,
        })
    }

    /// What the future gives; counts the time that it took, if it had to wait at all.
    pub(crate) async fn waiting<T>(&self, wait: Wait, future: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let output = future.await;
        let waited = start.elapsed();
        if waited >= COUNTED_WAIT {
            self.waited.with_label_values(&[wait.as_str()]).inc_by(waited.as_secs_f64());
        }
        output
    }

    pub(crate) fn ended(&self, state: Final) {
        let label = match state {
            Final::Delivered => "delivered",
            Final::Cancelled => "cancelled",
        };
        self.deliveries.with_label_values(&[label]).inc();
    }

    pub(crate) fn attempted(&self, outcome: OutcomeClass) {
        self.attempts.with_label_values(&[outcome.as_str()]).inc();
        if outcome == OutcomeClass::Blocked {
            self.blocked_addresses.inc();
        }
    }
}

fn waited(registry: &Registry) -> prometheus::Result<CounterVec> {
    seconds(
        registry,
        (
            "doorbell_delivery_wait_seconds_total",
            "Time that deliveries in hand waited: for a permit for a POST, for another POST to the endpoint to end, for their turn within a rate limit, for room for the record of their attempt.",
        ),
        "for",
        Wait::ALL.map(Wait::as_str),
    )
}
