//! Makes one delivery: asks whether its endpoint may be called now, makes the POST, records what came of it, and
//! hands on what is not done with.

use std::pin::pin;
use std::time::Duration;

use doorbell_common::attempt::AttemptRecord;
use doorbell_common::breaker::Sign;
use doorbell_common::event::Event;
use doorbell_common::gate::{HoldReason, hold_until};
use doorbell_common::ids::Addressee;
use doorbell_common::outcome::OutcomeClass;
use doorbell_common::rung::Rung;
use doorbell_common::subscription::Subscription;
use doorbell_common::time::Timestamp;
use doorbell_common::work::{Delivery, Failure, chance};
use doorbell_platform::clock;
use doorbell_platform::permits::Permit;

use crate::dispatch::Dispatcher;
use crate::fan_out::{Begun, Made, Settled};
use crate::gates::Admitted;
use crate::hand::Busy;
use crate::ledger::LedgerPage;
use crate::metrics::{Final, Wait};
use crate::sender::{Answer, Post, Shortage};
use crate::served::{NoBody, Served};
use crate::understand::Destination;

/// A POST that takes longer is slow: it waits for its endpoint, not for us.
pub(crate) const SLOW_AFTER: Duration = Duration::from_millis(500);

impl Dispatcher {
    /// Makes one delivery, or holds it.
    pub(crate) async fn attempt(
        &self,
        served: &Served,
        delivery: Delivery,
        subscription: &Subscription,
        Begun { permit, ledger, busy }: Begun<'_>,
    ) -> Settled {
        if let Err(held) = self.in_turn(&delivery, subscription, permit.is_some()).await {
            drop(permit);
            return self.hold(delivery, held, ledger).await;
        }
        // Before the rest of the gate: who waits for us does not wait for the endpoint, and is not held for it.
        let permit = match permit {
            Some(permit) => permit,
            None => {
                let acquiring = self.posts.acquire(&served.event.tenant);
                self.metrics.waiting(Wait::Permit, acquiring).await?
            }
        };
        // While it waited, perhaps.
        if self.removals.has(&served.event.tenant, &served.event.id) {
            self.metrics.ended(Final::Cancelled);
            return Ok(None);
        }
        if self.shutdown.is_stopping() {
            // Others make it: a stop waits for what is in flight, not for what is in line.
            drop(permit);
            self.hand_on_noted(delivery, Destination::Deliveries, ledger).await?;
            return Ok(None);
        }
        let attempt = delivery.state.attempts.saturating_add(1);
        let (body, content_type) = match served.body(subscription, &self.workshop).await {
            Ok(body) => body,
            Err(NoBody::Failed(error)) => {
                drop(permit);
                let answer = Answer::unsent(OutcomeClass::Template, error.to_string());
                self.metrics.attempted(answer.outcome);
                return self.hand_on_failed(served, delivery, (subscription, answer), ledger).await;
            }
            Err(NoBody::NotYet(wait)) => {
                drop(permit);
                let opens_at = clock::now().plus(wait);
                return self.hold(delivery, (HoldReason::Template, opens_at), ledger).await;
            }
        };
        let entering = self.gates.enter(subscription);
        let admitted = match self.metrics.waiting(Wait::Endpoint, entering).await {
            Ok(admitted) => admitted,
            Err((reason, opens_at)) => {
                // Publishing may take as long as RabbitMQ wants; POSTs of others do not wait for it.
                drop(permit);
                return self.hold(delivery, (reason, opens_at), ledger).await;
            }
        };
        let Some(permit) = self.permit_for(&admitted, permit) else {
            drop(admitted);
            return self.hold(delivery, (HoldReason::Silent, clock::now()), ledger).await;
        };
        if busy.must_leave() {
            return Ok(None);
        }
        let event = &*served.event;
        let post = Post { subscription, event, body: &body, content_type, attempt };
        let (answer, permit) = self.make(post, admitted, permit, &busy).await;
        let Ok(answer) = answer else {
            drop(permit);
            return self.hold(delivery, (HoldReason::Shortage, clock::now()), ledger).await;
        };
        self.metrics.attempted(answer.outcome);
        self.metrics.attempt_seconds.observe(answer.duration.as_secs_f64());
        tracing::debug!(
            event.id = %served.event.id, subscription.id = %subscription.id, delivery.attempt = attempt,
            outcome = answer.outcome.as_str(), "attempted"
        );
        if answer.outcome == OutcomeClass::Delivered {
            let permit = match ledger {
                Some(ledger) => {
                    ledger.note(&subscription.id, permit);
                    None
                }
                None => Some(permit),
            };
            let record = record(&served.event, subscription, attempt, &answer);
            let receipt = self.recorder.record(&record).await;
            self.working.note(&subscription.id, attempt);
            self.metrics.ended(Final::Delivered);
            return Ok(Some(Made { receipt, permit }));
        }
        // Publishing may take as long as RabbitMQ wants.
        drop(permit);
        self.hand_on_failed(served, delivery, (subscription, answer), ledger).await
    }

    /// Waits for a delivery's turn, not for long, where there is a line; to be asked before anything is taken that others
    /// need, too. The error says why it is held instead, and that nothing will be different before a certain time.
    async fn in_turn(
        &self,
        delivery: &Delivery,
        subscription: &Subscription,
        has_permit: bool,
    ) -> Result<(), (HoldReason, Timestamp)> {
        // Nobody takes a turn, a permit or time for his template behind a closed gate. Who needs none of these is
        // at the gate at once.
        let needs_more =
            !has_permit || subscription.rate_limit.is_some() || subscription.template.is_some();
        if needs_more && let Some(closed) = self.gates.closed(&subscription.id) {
            return Err(closed);
        }
        let came_back = delivery.state.holds > 0;
        if came_back {
            self.metrics.waiting(Wait::Endpoint, self.gates.come_back(subscription)).await?;
        }
        if let Some(limit) = subscription.rate_limit {
            let turn = self.limits.turn(&subscription.id, limit, came_back);
            let turn = self.metrics.waiting(Wait::Turn, turn).await;
            turn.map_err(|wait| (HoldReason::RateLimit, clock::now().plus(wait)))?;
        }
        Ok(())
    }

    /// A permit for a POST to an endpoint that is known to be slow is another one, if there is one.
    fn permit_for(
        &self,
        admitted: &Admitted,
        permit: Permit<Addressee>,
    ) -> Option<Permit<Addressee>> {
        if admitted.is_slow() { self.slow_posts.try_acquire(permit.owner()) } else { Some(permit) }
    }

    /// Makes a POST. If it takes long, it has a permit for slow ones from then on, if there is one; else it keeps
    /// its own.
    async fn make(
        &self,
        post: Post<'_>,
        admitted: Admitted,
        mut permit: Permit<Addressee>,
        busy: &Busy<'_>,
    ) -> (Result<Answer, Shortage>, Permit<Addressee>) {
        admitted.begin();
        if post.attempt == 1 {
            let lag = clock::now().since(post.event.timestamp);
            self.metrics.first_attempt_lag.observe(lag.as_secs_f64());
        }
        self.metrics.posts_in_flight.inc();
        let mut posting = pin!(self.sender.post(post));
        let answer = match tokio::time::timeout(SLOW_AFTER, posting.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                let slow = busy.slow();
                if !admitted.is_slow()
                    && let Some(another) = self.slow_posts.try_acquire(permit.owner())
                {
                    permit = another;
                }
                self.metrics.slow_posts_in_flight.inc();
                let answer = posting.await;
                self.metrics.slow_posts_in_flight.dec();
                drop(slow);
                answer
            }
        };
        self.metrics.posts_in_flight.dec();
        match &answer {
            Ok(Answer { outcome, retry_after, .. }) => {
                admitted.end(Sign::of(*outcome, retry_after.is_some()), *retry_after);
            }
            // It says nothing of the endpoint.
            Err(_) => drop(admitted),
        }
        (answer, permit)
    }

    /// Hands a delivery on after an attempt that has failed, and records that.
    async fn hand_on_failed(
        &self,
        served: &Served,
        delivery: Delivery,
        (subscription, answer): (&Subscription, Answer),
        ledger: Option<&LedgerPage>,
    ) -> Settled {
        let attempt = delivery.state.attempts.saturating_add(1);
        let record = record(&served.event, subscription, attempt, &answer);
        let failed = delivery.after_failure(failure(answer, subscription));
        let (handed_on, receipt) = tokio::join!(
            self.hand_on_noted(failed, Destination::Retries, ledger),
            self.recorder.record(&record)
        );
        handed_on?;
        Ok(Some(receipt.into()))
    }

    /// Hands a delivery on without an attempt, to come back later.
    async fn hold(
        &self,
        delivery: Delivery,
        (reason, opens_at): (HoldReason, Timestamp),
        ledger: Option<&LedgerPage>,
    ) -> Settled {
        let now = clock::now();
        // Those of a fan-out are for different endpoints, and stay together if they can.
        let chance =
            ledger.map_or_else(|| chance(&delivery.name()), |ledger| chance(ledger.name()));
        let until = hold_until((reason, opens_at), delivery.state.holds, now, chance);
        let held = delivery.hold_at_gate(until, now);
        // Not by way of the retry-scheduler, which would only put it there: a flood is moved aside
        // at half the cost. Whatever else is to be said of it is said when it comes back.
        let rung = Rung::for_wait(until.since(now));
        self.hand_on_noted(held, Destination::Delay(rung), ledger).await?;
        self.metrics.held.with_label_values(&[reason.as_str()]).inc();
        Ok(None)
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
        tenant: subscription.tenant.clone(),
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
