//! Serves the subscriptions of an event, or one delivery: attempt, record, and hand on what
//! failed. When this returns, every delivery is settled or its successor confirmed.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use doorbell_common::attempt::AttemptRecord;
use doorbell_common::breaker::Sign;
use doorbell_common::event::Event;
use doorbell_common::gate::{HoldReason, hold_until};
use doorbell_common::ids::SubscriptionId;
use doorbell_common::outcome::OutcomeClass;
use doorbell_common::payload::Payload;
use doorbell_common::subscription::{Standing, Subscription};
use doorbell_common::time::Timestamp;
use doorbell_common::work::{Delivery, Failure, Work, chance};
use doorbell_platform::clock;
use doorbell_platform::store::snapshots::Known;
use futures_util::StreamExt as _;

use crate::dispatch::Dispatcher;
use crate::metrics::Final;
use crate::sender::{Answer, Post};
use crate::understand::{Destination, pages};

/// Deliveries of one event that are made at once.
const AT_ONCE: usize = 256;

/// An event, and its bodies as they are first asked for.
pub(crate) struct Served {
    event: Arc<Event>,
    envelope: OnceLock<Bytes>,
    raw: OnceLock<Bytes>,
}

impl Served {
    pub(crate) fn new(event: Arc<Event>) -> Self {
        Self { event, envelope: OnceLock::new(), raw: OnceLock::new() }
    }

    fn body(&self, payload: Payload) -> &Bytes {
        let slot = match payload {
            Payload::Envelope => &self.envelope,
            Payload::Raw => &self.raw,
        };
        slot.get_or_init(|| payload.body(&self.event).into())
    }
}

impl Dispatcher {
    /// Serves these subscriptions. When the service is told to stop, what has not begun goes on
    /// as pages, after `sequence`.
    pub(crate) async fn fan_out(
        &self,
        event: Arc<Event>,
        targets: Vec<(SubscriptionId, Known)>,
        sequence: u32,
    ) -> anyhow::Result<()> {
        let served = Served::new(Arc::clone(&event));
        let results: Vec<Result<(), SubscriptionId>> = futures_util::stream::iter(targets)
            .map(|(id, known)| self.begin(&served, id, known))
            .buffer_unordered(AT_ONCE)
            .filter_map(|result| std::future::ready(result.transpose()))
            .collect::<Vec<anyhow::Result<Result<(), SubscriptionId>>>>()
            .await
            .into_iter()
            .collect::<anyhow::Result<_>>()?;
        let left: Vec<SubscriptionId> = results.into_iter().filter_map(Result::err).collect();
        for page in pages(&event, &left, sequence) {
            self.hand_on(page, Destination::Pages).await?;
        }
        Ok(())
    }

    /// Begins and makes one delivery of an event; answers the id if it was not begun.
    async fn begin(
        &self,
        served: &Served,
        id: SubscriptionId,
        known: Known,
    ) -> anyhow::Result<Option<Result<(), SubscriptionId>>> {
        if self.shutdown.is_stopping() {
            return Ok(Some(Err(id)));
        }
        let delivery = Delivery::begin(Arc::clone(&served.event), id, clock::now());
        self.metrics.matched.inc();
        self.deliver(served, delivery, &known).await?;
        Ok(None)
    }

    /// Makes one delivery, once.
    pub(crate) async fn deliver(
        &self,
        served: &Served,
        delivery: Delivery,
        known: &Known,
    ) -> anyhow::Result<()> {
        match (known.standing(), known) {
            (Standing::Active(_), Known::Live(subscription)) => {
                self.attempt(served, delivery, subscription).await
            }
            (Standing::Cancelled, _) => {
                self.metrics.ended(Final::Cancelled);
                Ok(())
            }
            // Paused, disabled, or lost: the scheduler keeps it.
            _ => self.hand_on(Work::Delivery(delivery), Destination::Retries).await,
        }
    }

    async fn attempt(
        &self,
        served: &Served,
        delivery: Delivery,
        subscription: &Subscription,
    ) -> anyhow::Result<()> {
        // First: who waits for us does not wait for the endpoint, and is not held for it.
        let permit = self.posts.acquire(&subscription.tenant).await?;
        if self.shutdown.is_stopping() {
            // Others make it: a stop waits for what is in flight, not for what is in line.
            drop(permit);
            return self.hand_on(Work::Delivery(delivery), Destination::Deliveries).await;
        }
        let admitted = match self.gates.enter(&subscription.id, delivery.state.holds > 0).await {
            Ok(admitted) => admitted,
            Err((reason, opens_at)) => {
                // Publishing may take as long as RabbitMQ wants; POSTs of others do not wait for it.
                drop(permit);
                return self.hold(delivery, reason, opens_at).await;
            }
        };
        let attempt = delivery.state.attempts.saturating_add(1);
        let answer = {
            admitted.begin();
            let body = served.body(subscription.payload);
            if attempt == 1 {
                let lag = clock::now().since(served.event.timestamp);
                self.metrics.first_attempt_lag.observe(lag.as_secs_f64());
            }
            self.metrics.posts_in_flight.inc();
            let answer =
                self.sender.post(Post { subscription, event: &served.event, body, attempt }).await;
            self.metrics.posts_in_flight.dec();
            answer
        };
        drop(permit);
        admitted.end(Sign::of(answer.outcome, answer.retry_after.is_some()), answer.retry_after);
        self.metrics.attempted(answer.outcome);
        self.metrics.attempt_seconds.observe(answer.duration.as_secs_f64());
        tracing::debug!(
            event.id = %served.event.id, subscription.id = %subscription.id, delivery.attempt = attempt,
            outcome = answer.outcome.as_str(), "attempted"
        );
        if answer.outcome == OutcomeClass::Delivered {
            self.recorder.record(&record(&served.event, subscription, attempt, &answer)).await;
            self.metrics.ended(Final::Delivered);
            return Ok(());
        }
        let record = record(&served.event, subscription, attempt, &answer);
        let failed = Work::Delivery(delivery.after_failure(failure(answer, subscription)));
        let (handed_on, ()) =
            tokio::join!(self.hand_on(failed, Destination::Retries), self.recorder.record(&record));
        handed_on
    }

    /// Hands a delivery on without an attempt, to come back later.
    async fn hold(
        &self,
        delivery: Delivery,
        reason: HoldReason,
        opens_at: Timestamp,
    ) -> anyhow::Result<()> {
        let now = clock::now();
        let work = Work::Delivery(delivery.clone());
        let until = hold_until(opens_at, delivery.state.holds, now, chance(&work.name()));
        let held = Work::Delivery(delivery.hold_at_gate(until, now));
        self.hand_on(held, Destination::Retries).await?;
        self.metrics.held.with_label_values(&[reason.as_str()]).inc();
        Ok(())
    }
}

fn failure(answer: Answer, subscription: &Subscription) -> Failure {
    Failure {
        outcome: answer.outcome,
        status: answer.status,
        detail: answer.detail,
        endpoint: subscription.endpoint(),
        started_at: answer.started_at,
        ended_at: answer.ended_at,
        retry_after_ms: answer
            .retry_after
            .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn record(
    event: &Event,
    subscription: &Subscription,
    attempt: u32,
    answer: &Answer,
) -> AttemptRecord {
    let failed = answer.outcome != OutcomeClass::Delivered;
    AttemptRecord {
        tenant: event.tenant.clone(),
        event: event.id.clone(),
        event_type: event.event_type.clone(),
        subscription: subscription.id.clone(),
        attempt,
        started_at: answer.started_at,
        duration_ms: u64::try_from(answer.duration.as_millis()).unwrap_or(u64::MAX),
        outcome: answer.outcome,
        status: answer.status,
        detail: answer.detail.clone(),
        body: (failed && !answer.body.is_empty())
            .then(|| String::from_utf8_lossy(&answer.body).into_owned()),
        truncated: failed && answer.truncated,
    }
}
