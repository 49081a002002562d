//! Serves the subscriptions of an event, or deliveries that go on: attempt, record, and hand on what
//! failed. When this returns, every delivery is settled or its successor confirmed.

use std::sync::Arc;

use doorbell_common::attempt::AttemptRecord;
use doorbell_common::breaker::Sign;
use doorbell_common::event::Event;
use doorbell_common::gate::{HoldReason, hold_until};
use doorbell_common::ids::{Addressee, SubscriptionId};
use doorbell_common::outcome::OutcomeClass;
use doorbell_common::rung::Rung;
use doorbell_common::subscription::{Standing, Subscription};
use doorbell_common::time::Timestamp;
use doorbell_common::work::{Delivery, DeliveryState, Failure, Work, chance};
use doorbell_platform::clock;
use doorbell_platform::permits::{Claim, Permit};
use doorbell_platform::store::snapshots::Known;
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;

use crate::dispatch::Dispatcher;
use crate::ledger::LedgerPage;
use crate::metrics::{Final, Wait};
use crate::parcels::Outbox;
use crate::recorder::Receipt;
use crate::sender::{Answer, Post};
use crate::served::{NoBody, Served};
use crate::understand::Destination;

/// Deliveries of one event that are made at once.
const AT_ONCE: usize = 256;

/// How a delivery ended that is settled, or whose successor is confirmed: with what is left of its attempt,
/// if there was one.
pub(crate) type Settled = anyhow::Result<Option<Made>>;

/// What is left of an attempt.
#[derive(Debug)]
pub(crate) struct Made {
    /// Of its record.
    receipt: Receipt,
    /// The permit of its POST, if nothing but the acknowledgement will say that it was made.
    permit: Option<Permit<Addressee>>,
}

impl From<Receipt> for Made {
    fn from(receipt: Receipt) -> Self {
        Self { receipt, permit: None }
    }
}

/// How those of a fan-out ended.
#[derive(Default)]
struct Ended {
    receipts: Vec<Receipt>,
    permit: Option<Permit<Addressee>>,
    error: Option<anyhow::Error>,
}

impl Ended {
    fn add(&mut self, delivery: Settled) {
        match delivery {
            Ok(None) => {}
            Ok(Some(Made { receipt, permit })) => {
                self.receipts.push(receipt);
                // Of one that is alone, if at all.
                self.permit = permit;
            }
            Err(error) => self.error = Some(error),
        }
    }
}

/// A delivery of a fan-out.
#[derive(Debug)]
pub(crate) enum Target {
    /// For this subscription it has yet to begin.
    Begin(SubscriptionId),
    /// It has begun before.
    GoOn {
        state: Box<DeliveryState>,
        /// For its turn, or to be held, without a permit for a POST.
        waits: bool,
    },
}

impl Target {
    /// For whom.
    pub(crate) fn id(&self) -> &SubscriptionId {
        match self {
            Self::Begin(id) => id,
            Self::GoOn { state, .. } => &state.subscription,
        }
    }

    /// Whether it needs its permit first of all.
    fn needs_permit(&self, known: &Known) -> bool {
        let waits = matches!(self, Self::GoOn { waits: true, .. });
        !waits && matches!(known.standing(), Standing::Active(_))
    }
}

/// What the deliveries of a fan-out share.
#[derive(Debug)]
struct Company {
    /// Where to note that one is done with.
    ledger: LedgerPage,
    /// Where to leave what is to go on.
    outbox: Outbox,
}

/// What a delivery brings along from the fan-out that it is part of.
struct Begun<'a> {
    /// Its permit for a POST.
    permit: Option<Permit<Addressee>>,
    /// None if it is alone.
    company: Option<&'a Company>,
}

impl Dispatcher {
    /// Makes these deliveries, and notes in the ledger which are done with; of one alone, without a ledger,
    /// answers the permit that is to be kept until its message is acknowledged. When the service is told to
    /// stop, what has not begun goes on as parcels.
    pub(crate) async fn fan_out(
        &self,
        served: &Served,
        targets: Vec<(Target, Known)>,
        ledger: Option<LedgerPage>,
    ) -> anyhow::Result<Option<Permit<Addressee>>> {
        let Some(ledger) = ledger else {
            return self.fan_out_in(None, served, targets).await;
        };
        let (outbox, collection) = Outbox::new();
        let company = Company { ledger, outbox };
        let making = self.fan_out_in(Some(company), served, targets);
        tokio::join!(making, self.send_parcels(&served.event, collection)).0
    }

    /// Drops the company in the end: no more parcels come then.
    async fn fan_out_in(
        &self,
        company: Option<Company>,
        served: &Served,
        targets: Vec<(Target, Known)>,
    ) -> anyhow::Result<Option<Permit<Addressee>>> {
        let company = company.as_ref();
        let (mut going, mut left) = (FuturesUnordered::new(), Vec::new());
        let mut ended = Ended::default();
        // Each has its permit before it begins, and the first message its permits before the next one
        // has any: what was just read and written is still at hand then.
        let active = targets.iter().filter(|(target, known)| target.needs_permit(known)).count();
        let mut claim = self.posts.claim(&served.event.tenant, active);
        for (target, known) in targets {
            let claim = target.needs_permit(&known).then_some(&mut claim);
            let mut permit = std::pin::pin!(self.permit(claim));
            let permit = loop {
                tokio::select! {
                    permit = &mut permit, if going.len() < AT_ONCE => break permit?,
                    Some(delivery) = going.next() => ended.add(delivery),
                }
            };
            let delivery = self.delivery(&served.event, target);
            if self.shutdown.is_stopping() {
                left.push(delivery);
                continue;
            }
            going.push(self.deliver(served, delivery, known, Begun { permit, company }));
        }
        // They end in their own time; what is left goes on beside them.
        let leaving = left
            .into_iter()
            .map(|delivery| self.hand_on_noted(delivery, Destination::Deliveries, company));
        let leaving = try_join_all(leaving);
        let ending = async {
            while let Some(delivery) = going.next().await {
                ended.add(delivery);
            }
        };
        let (left, ()) = tokio::join!(leaving, ending);
        left?;
        let Ended { receipts, permit, error } = ended;
        if let Some(error) = error {
            return Err(error);
        }
        self.recorder.confirm(receipts).await;
        Ok(permit)
    }

    /// A delivery, which begins now if it has not begun yet.
    fn delivery(&self, event: &Arc<Event>, target: Target) -> Delivery {
        match target {
            Target::Begin(id) => {
                self.metrics.matched.inc();
                Delivery::begin(Arc::clone(event), id, clock::now())
            }
            Target::GoOn { state, .. } => Delivery { event: Arc::clone(event), state: *state },
        }
    }

    /// Waits for the permit that a delivery needs, if it needs one.
    async fn permit(
        &self,
        claim: Option<&mut Claim<Addressee>>,
    ) -> anyhow::Result<Option<Permit<Addressee>>> {
        let Some(claim) = claim.filter(|_| !self.shutdown.is_stopping()) else { return Ok(None) };
        self.metrics.waiting(Wait::Permit, claim.next()).await.map(Some)
    }

    /// Makes one delivery, once.
    async fn deliver(
        &self,
        served: &Served,
        delivery: Delivery,
        known: Known,
        begun: Begun<'_>,
    ) -> Settled {
        match (known.standing(), &known) {
            (Standing::Active(_), Known::Live(subscription)) => {
                self.attempt(served, delivery, subscription, begun).await
            }
            (Standing::Cancelled, _) => {
                self.metrics.ended(Final::Cancelled);
                Ok(None)
            }
            // Paused, disabled, or lost: the scheduler keeps it.
            _ => {
                self.hand_on_noted(delivery, Destination::Retries, begun.company).await?;
                Ok(None)
            }
        }
    }

    /// Hands a delivery on, and notes that the fan-out is done with it.
    async fn hand_on_noted(
        &self,
        delivery: Delivery,
        to: Destination,
        company: Option<&Company>,
    ) -> anyhow::Result<()> {
        let Some(Company { ledger, outbox }) = company else {
            // On the heap, because few deliveries come to this, and each would have room for it.
            return Box::pin(self.hand_on(Work::Parcel(delivery.into()), to)).await;
        };
        let id = delivery.state.subscription.clone();
        outbox.hand_on(delivery, to).await?;
        ledger.note_surely(&id).await;
        Ok(())
    }

    async fn attempt(
        &self,
        served: &Served,
        delivery: Delivery,
        subscription: &Subscription,
        Begun { permit, company }: Begun<'_>,
    ) -> Settled {
        // Nobody takes a turn, a permit or time for his template behind a closed gate. Who needs none of these is
        // at the gate at once.
        let needs_more = permit.is_none()
            || subscription.rate_limit.is_some()
            || subscription.template.is_some();
        if needs_more && let Some(closed) = self.gates.closed(&subscription.id) {
            drop(permit);
            return self.hold(delivery, closed, company).await;
        }
        let came_back = delivery.state.holds > 0;
        if let Some(limit) = subscription.rate_limit
            && let Err(wait) = self
                .metrics
                .waiting(Wait::Turn, self.limits.turn(&subscription.id, limit, came_back))
                .await
        {
            drop(permit);
            let opens_at = clock::now().plus(wait);
            return self.hold(delivery, (HoldReason::RateLimit, opens_at), company).await;
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
            self.hand_on_noted(delivery, Destination::Deliveries, company).await?;
            return Ok(None);
        }
        let attempt = delivery.state.attempts.saturating_add(1);
        let (body, content_type) = match served.body(subscription, &self.workshop).await {
            Ok(body) => body,
            Err(NoBody::Failed(error)) => {
                drop(permit);
                let answer = Answer::unsent(OutcomeClass::Template, error.to_string());
                self.metrics.attempted(answer.outcome);
                return self
                    .hand_on_failed(served, delivery, (subscription, answer), company)
                    .await;
            }
            Err(NoBody::NotYet(wait)) => {
                drop(permit);
                let opens_at = clock::now().plus(wait);
                return self.hold(delivery, (HoldReason::Template, opens_at), company).await;
            }
        };
        let entering = self.gates.enter(subscription, came_back);
        let admitted = match self.metrics.waiting(Wait::Endpoint, entering).await {
            Ok(admitted) => admitted,
            Err((reason, opens_at)) => {
                // Publishing may take as long as RabbitMQ wants; POSTs of others do not wait for it.
                drop(permit);
                return self.hold(delivery, (reason, opens_at), company).await;
            }
        };
        let answer = {
            admitted.begin();
            if attempt == 1 {
                let lag = clock::now().since(served.event.timestamp);
                self.metrics.first_attempt_lag.observe(lag.as_secs_f64());
            }
            self.metrics.posts_in_flight.inc();
            let event = &*served.event;
            let post = Post { subscription, event, body: &body, content_type, attempt };
            let answer = self.sender.post(post).await;
            self.metrics.posts_in_flight.dec();
            answer
        };
        admitted.end(Sign::of(answer.outcome, answer.retry_after.is_some()), answer.retry_after);
        self.metrics.attempted(answer.outcome);
        self.metrics.attempt_seconds.observe(answer.duration.as_secs_f64());
        tracing::debug!(
            event.id = %served.event.id, subscription.id = %subscription.id, delivery.attempt = attempt,
            outcome = answer.outcome.as_str(), "attempted"
        );
        if answer.outcome == OutcomeClass::Delivered {
            let permit = match company {
                Some(company) => {
                    company.ledger.note(&subscription.id, permit);
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
        self.hand_on_failed(served, delivery, (subscription, answer), company).await
    }

    /// Hands a delivery on after an attempt that has failed, and records that.
    async fn hand_on_failed(
        &self,
        served: &Served,
        delivery: Delivery,
        (subscription, answer): (&Subscription, Answer),
        company: Option<&Company>,
    ) -> Settled {
        let attempt = delivery.state.attempts.saturating_add(1);
        let record = record(&served.event, subscription, attempt, &answer);
        let failed = delivery.after_failure(failure(answer, subscription));
        let (handed_on, receipt) = tokio::join!(
            self.hand_on_noted(failed, Destination::Retries, company),
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
        company: Option<&Company>,
    ) -> Settled {
        let now = clock::now();
        // Those of a fan-out are for different endpoints, and stay together if they can.
        let chance = company
            .map_or_else(|| chance(&delivery.name()), |company| chance(company.ledger.name()));
        let until = hold_until((reason, opens_at), delivery.state.holds, now, chance);
        let held = delivery.hold_at_gate(until, now);
        // Not by way of the retry-scheduler, which would only put it there: a flood is moved aside
        // at half the cost. Whatever else is to be said of it is said when it comes back.
        let rung = Rung::for_wait(until.since(now));
        self.hand_on_noted(held, Destination::Delay(rung), company).await?;
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
