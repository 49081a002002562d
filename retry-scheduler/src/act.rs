//! Carries out what was decided. When this returns well, what follows from the message is confirmed.

use std::collections::BTreeMap;
use std::sync::Arc;

use doorbell_common::next_move::{DeadReason, Move};
use doorbell_common::operational::subscription_disabled;
use doorbell_common::rung::{DelayQueue, Rung};
use doorbell_common::sideline::Lane;
use doorbell_common::subscription::{DisabledReason, Status, Subscription};
use doorbell_common::work::{Bundle, Delivery, DueEvent, Page, Parcel, Work};
use doorbell_platform::broker::Message;
use doorbell_platform::broker::topology::{DEAD_LETTERS, DELIVERIES, HELD, PAGES};
use doorbell_platform::patience::Unanswered;
use doorbell_platform::store::StoreError;
use doorbell_platform::store::records::Lookup;
use doorbell_platform::{clock, ids};
use futures_util::future::try_join_all;
use lapin::types::{AMQPValue, FieldTable};
use prometheus::IntCounter;

use crate::schedule::{Scheduler, count, unwritable};

/// Where work goes on to.
#[derive(Clone, Copy)]
enum Onward {
    Dispatchers,
    Delay(Rung),
    Pages,
    Held,
}

/// What becomes of deliveries that came together. Those that go to the same queue go on together.
#[derive(Default)]
struct Moves {
    released: Vec<Delivery>,
    parked: BTreeMap<Rung, Vec<Delivery>>,
    held: Vec<Delivery>,
    given_up: Vec<(DeadReason, Delivery)>,
    cancelled: u64,
}

impl FromIterator<Move> for Moves {
    fn from_iter<I: IntoIterator<Item = Move>>(moves: I) -> Self {
        let mut all = Self::default();
        for next in moves {
            tracing::debug!(%next, "decided");
            match next {
                Move::Release(delivery) => all.released.push(delivery),
                Move::Park(rung, delivery) => {
                    all.parked.entry(rung).or_default().push(delivery);
                }
                Move::Hold(delivery) => all.held.push(delivery),
                Move::GiveUp(reason, delivery) => all.given_up.push((reason, delivery)),
                Move::Cancel => all.cancelled += 1,
            }
        }
        all
    }
}

/// A delivery for the stream of those that were given up, with the reason.
pub(crate) fn dead_letter(reason: DeadReason, delivery: Delivery) -> anyhow::Result<Message> {
    let mut message = Message::work(DEAD_LETTERS, &Work::Parcel(delivery.into()).next())?;
    let mut headers = FieldTable::default();
    headers.insert("doorbell-reason".into(), AMQPValue::LongString(reason.as_str().into()));
    message.properties = message.properties.with_headers(headers);
    Ok(message)
}

impl Scheduler {
    /// Carries out what was decided of deliveries of one tenant's events.
    pub(crate) async fn act(
        &self,
        moves: impl IntoIterator<Item = Move>,
        lane: Lane,
    ) -> Result<(), Unanswered> {
        let Moves { released, parked, held, given_up, cancelled } = moves.into_iter().collect();
        let releasing = self.hand_on(Onward::Dispatchers, released, &self.metrics.released);
        let parking = parked.into_iter().map(|(rung, deliveries)| {
            self.hand_on(Onward::Delay(rung), deliveries, &self.metrics.parked)
        });
        let holding = self.hand_on(Onward::Held, held, &self.metrics.held);
        let giving_up =
            given_up.into_iter().map(|(reason, delivery)| self.give_up(reason, delivery, lane));
        tokio::try_join!(releasing, try_join_all(parking), holding, try_join_all(giving_up))?;
        self.metrics.cancelled(cancelled);
        Ok(())
    }

    /// Publishes an event whose time has come, or puts it into a delay queue.
    pub(crate) async fn act_on_event(&self, due: DueEvent) -> Result<(), Unanswered> {
        let wait = due.due.since(clock::now());
        let (to, counter) = if wait.is_zero() {
            (Onward::Dispatchers, &self.metrics.released)
        } else {
            (Onward::Delay(Rung::for_wait(wait)), &self.metrics.parked)
        };
        self.publish_next(to, Work::Event(due)).await?;
        counter.inc();
        Ok(())
    }

    /// Publishes a page, for which it is always time.
    pub(crate) async fn act_on_page(&self, page: Page) -> Result<(), Unanswered> {
        self.publish_next(Onward::Pages, Work::Page(page)).await?;
        self.metrics.released.inc();
        Ok(())
    }

    /// Publishes these deliveries in as few messages as may be.
    async fn hand_on(
        &self,
        to: Onward,
        deliveries: Vec<Delivery>,
        counter: &IntCounter,
    ) -> Result<(), Unanswered> {
        let total = count(deliveries.len());
        let works = match to {
            // Who reads that stream asks each message which event it is of.
            Onward::Held => Parcel::pack_all(deliveries).into_iter().map(Work::Parcel).collect(),
            Onward::Dispatchers | Onward::Delay(_) | Onward::Pages => Bundle::pack(deliveries),
        };
        try_join_all(works.into_iter().map(|work| self.publish_next(to, work))).await?;
        counter.inc_by(total);
        Ok(())
    }

    /// What is more than its tenant's share waits, and is delivered, beside all others'.
    async fn publish_next(&self, to: Onward, work: Work) -> Result<(), Unanswered> {
        let work = work.next();
        let lane = || {
            let lane = self.shares.lane(work.tenant(), work.events());
            self.metrics.sidelined.inc_by(u64::from(lane == Lane::Sideline));
            lane
        };
        let message = match to {
            Onward::Dispatchers => match lane() {
                Lane::Main => Message::work(DELIVERIES, &work),
                Lane::Sideline => Message::aside(&work),
            },
            Onward::Delay(rung) => Message::work(&DelayQueue { rung, lane: lane() }.name(), &work),
            Onward::Pages => Message::work(PAGES, &work),
            Onward::Held => Message::work(HELD, &work),
        };
        self.publish(&message.map_err(unwritable)?).await
    }

    async fn give_up(
        &self,
        reason: DeadReason,
        delivery: Delivery,
        lane: Lane,
    ) -> Result<(), Unanswered> {
        if reason == DeadReason::Gone {
            match self.disable(&delivery, DisabledReason::Gone, lane).await {
                Ok(_) => {}
                Err(Unanswered::Stuck) => return self.put_aside([delivery.into()]).await,
                Err(Unanswered::Stopping) => return Err(Unanswered::Stopping),
            }
        }
        tracing::debug!(event.id = %delivery.event.id, subscription.id = %delivery.state.subscription, reason = reason.as_str(), "given up");
        self.publish(&dead_letter(reason, delivery).map_err(unwritable)?).await?;
        self.metrics.dead(reason);
        Ok(())
    }

    /// Disables a subscription for this reason, which a failure at an endpoint brought about, if that
    /// is still its endpoint, and tells the operators; answers whether it is disabled now.
    pub(crate) async fn disable(
        &self,
        delivery: &Delivery,
        reason: DisabledReason,
        lane: Lane,
    ) -> Result<bool, Unanswered> {
        let disabled = self.patiently(lane, || self.record_disabled(delivery, reason)).await?;
        let Some(subscription) = disabled else { return Ok(false) };
        // Told even if it was disabled before: whoever did that may not have come to tell of it.
        if let Some(operators) = &self.operational_tenant {
            let event = subscription_disabled(operators, &subscription, reason);
            let due = event.timestamp;
            let event = Arc::new(event);
            let told = DueEvent { event, due, dated_by_us: false, sequence: 0 };
            self.publish_next(Onward::Dispatchers, Work::Event(told)).await?;
        }
        Ok(true)
    }

    /// Writes that a subscription is disabled, and answers what it is then; `None` if it is not to be: it has
    /// another endpoint, or, as someone has changed it lately, has not been failing for long.
    async fn record_disabled(
        &self,
        delivery: &Delivery,
        reason: DisabledReason,
    ) -> Result<Option<Subscription>, StoreError> {
        let id = &delivery.state.subscription;
        if !self.store.is_up() {
            return Err(StoreError::NotReady);
        }
        loop {
            let Lookup::Live(stored) = self.store.subscription(id).await? else {
                return Ok(None);
            };
            let mut changed = stored.subscription.clone();
            let same_endpoint = delivery
                .state
                .last_failure
                .as_ref()
                .is_some_and(|failure| failure.endpoint == changed.endpoint());
            if changed.status == Status::Disabled && changed.disabled_reason == Some(reason) {
                return Ok(Some(changed));
            }
            let now = clock::now();
            let not_yet = reason == DisabledReason::Failing
                && (changed.status != Status::Active
                    || now.since(changed.updated_at) < self.disable_after);
            if not_yet || !same_endpoint {
                return Ok(None);
            }
            changed.status = Status::Disabled;
            changed.disabled_reason = Some(reason);
            changed.updated_at = now;
            changed.version = ids::token();
            // Someone else has changed it in the meantime: look again.
            if self.store.update_subscription(&stored, &changed).await? {
                tracing::info!(subscription.id = %id, reason = reason.as_str(), "subscription disabled");
                self.metrics.disabled.with_label_values(&[reason.as_str()]).inc();
                return Ok(Some(changed));
            }
        }
    }
}
