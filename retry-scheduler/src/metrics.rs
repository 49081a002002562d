//! What a retry-scheduler counts.

use doorbell_common::next_move::DeadReason;
use doorbell_common::subscription::DisabledReason;
use doorbell_platform::metrics::{counter, counters, gauge, held_deliveries};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

/// A retry-scheduler's metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) parked: IntCounter,
    pub(crate) released: IntCounter,
    pub(crate) sidelined: IntCounter,
    pub(crate) held: IntCounter,
    pub(crate) resumed: IntCounter,
    pub(crate) forgotten: IntCounter,
    pub(crate) moved: IntCounter,
    pub(crate) rejected: IntCounter,
    pub(crate) copies: IntCounter,
    pub(crate) removed: IntCounter,
    pub(crate) unrouted: IntCounter,
    pub(crate) disabled: IntCounterVec,
    pub(crate) waiting: IntGauge,
    pub(crate) sideline: IntGauge,
    pub(crate) quarantine: IntGauge,
    pub(crate) rejected_waiting: IntGauge,
    pub(crate) detour: IntGauge,
    deliveries: IntCounterVec,
    dead_letters: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let reasons = DeadReason::ALL.map(DeadReason::as_str);
        let count = |name, help| counter(registry, name, help);
        Ok(Self {
            parked: count(
                "doorbell_retries_parked_total",
                "Deliveries and events put into a delay queue; one wait may take several.",
            )?,
            released: count(
                "doorbell_retries_released_total",
                "Deliveries, events and pages whose time had come, released to the dispatchers.",
            )?,
            sidelined: count(
                "doorbell_retries_sidelined_total",
                "Messages that went by way of the sideline: more than their tenant's share, or waiting for Redis.",
            )?,
            held: held_deliveries(registry, ["suspended"])?.with_label_values(&["suspended"]),
            resumed: count(
                "doorbell_deliveries_resumed_total",
                "Held deliveries that flow again, or end, because their subscription is no longer suspended or has been for too long.",
            )?,
            forgotten: count(
                "doorbell_held_forgotten_total",
                "Subscriptions of which held deliveries were lost: their stream was full, and has forgotten them before their time.",
            )?,
            moved: count(
                "doorbell_held_moved_total",
                "Held deliveries put at the end of their stream again, because it was nearly full and would have forgotten them.",
            )?,
            rejected: count(
                "doorbell_events_rejected_total",
                "Messages moved to doorbell.rejected.",
            )?,
            copies: count(
                "doorbell_handoff_copies_total",
                "Copies of hand-offs dropped: a crash between a confirm and an acknowledgement makes them.",
            )?,
            removed: count(
                "doorbell_messages_removed_total",
                "Messages, or parts of one, dropped because their event is being removed.",
            )?,
            unrouted: count(
                "doorbell_messages_unrouted_total",
                "Messages that no queue had taken, published again.",
            )?,
            disabled: counters(
                registry,
                (
                    "doorbell_subscriptions_disabled_total",
                    "Subscriptions disabled: their endpoint is gone (410), or has been failing for days.",
                ),
                "reason",
                DisabledReason::OURS.map(DisabledReason::as_str),
            )?,
            waiting: gauge(
                registry,
                "doorbell_retries_waiting",
                "Messages in the delay queues and the scheduler's inbox, as RabbitMQ counts them: each with one delivery, or with several of the same tenant.",
            )?,
            sideline: gauge(
                registry,
                "doorbell_sideline_waiting",
                "Messages in the sideline, as RabbitMQ counts them: events and deliveries of tenants that flood, pages of very large fan-outs.",
            )?,
            quarantine: gauge(
                registry,
                "doorbell_quarantine_waiting",
                "Messages in doorbell.quarantine, as RabbitMQ counts them: they came too often without an end, and wait for you to find out why, and to redrive them.",
            )?,
            rejected_waiting: gauge(
                registry,
                "doorbell_rejected_waiting",
                "Messages in doorbell.rejected, as RabbitMQ counts them: they are no events, or not allowed, and wait for you to redrive or delete them.",
            )?,
            detour: gauge(
                registry,
                "doorbell_retries_detour",
                "1 while what comes back from the delay queues goes round doorbell.retries, because nothing came back that way.",
            )?,
            deliveries: counters(
                registry,
                ("doorbell_deliveries_total", "Deliveries that ended, by final state."),
                "state",
                ["dead", "cancelled"],
            )?,
            dead_letters: counters(
                registry,
                ("doorbell_dead_letters_total", "Deliveries given up, by reason."),
                "reason",
                reasons,
            )?,
        })
    }

    pub(crate) fn cancelled(&self, deliveries: u64) {
        self.deliveries.with_label_values(&["cancelled"]).inc_by(deliveries);
    }

    pub(crate) fn dead(&self, reason: DeadReason) {
        self.deliveries.with_label_values(&["dead"]).inc();
        self.dead_letters.with_label_values(&[reason.as_str()]).inc();
    }
}
