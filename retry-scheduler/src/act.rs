//! Carries out a move. When this returns well, what follows from the message is confirmed.

use doorbell_common::next_move::{DeadReason, Move};
use doorbell_common::subscription::{DisabledReason, Status};
use doorbell_common::work::{Delivery, Work};
use doorbell_platform::broker::Message;
use doorbell_platform::broker::topology::{DEAD_LETTERS, DELIVERIES, HELD, PAGES};
use doorbell_platform::patience::Unanswered;
use doorbell_platform::store::StoreError;
use doorbell_platform::store::records::Lookup;
use doorbell_platform::{clock, ids};
use lapin::types::{AMQPValue, FieldTable};

use crate::schedule::{Scheduler, unwritable};

impl Scheduler {
    pub(crate) async fn act(&self, next: Move) -> Result<(), Unanswered> {
        tracing::debug!(%next, "decided");
        match next {
            Move::Release(work) => {
                let queue = if matches!(work, Work::Page(_)) { PAGES } else { DELIVERIES };
                self.publish(&Message::work(queue, &work.next()).map_err(unwritable)?).await?;
                self.metrics.released.inc();
            }
            Move::Park(rung, work) => {
                self.publish(&Message::work(&rung.queue(), &work.next()).map_err(unwritable)?)
                    .await?;
                self.metrics.parked.inc();
            }
            Move::Hold(delivery) => {
                let held = Work::Delivery(delivery).next();
                self.publish(&Message::work(HELD, &held).map_err(unwritable)?).await?;
                self.metrics.held.inc();
            }
            Move::GiveUp(reason, delivery) => self.give_up(reason, delivery).await?,
            Move::Cancel => self.metrics.cancelled(),
        }
        Ok(())
    }

    async fn give_up(&self, reason: DeadReason, delivery: Delivery) -> Result<(), Unanswered> {
        if reason == DeadReason::Gone {
            self.patiently(|| self.disable(&delivery, DisabledReason::Gone)).await?;
        }
        tracing::debug!(event.id = %delivery.event.id, subscription.id = %delivery.state.subscription, reason = reason.as_str(), "given up");
        let mut message =
            Message::work(DEAD_LETTERS, &Work::Delivery(delivery).next()).map_err(unwritable)?;
        let mut headers = FieldTable::default();
        headers.insert("doorbell-reason".into(), AMQPValue::LongString(reason.as_str().into()));
        message.properties = message.properties.with_headers(headers);
        self.publish(&message).await?;
        self.metrics.dead(reason);
        Ok(())
    }

    /// Disables a subscription for this reason, which a failure at an endpoint brought about, if that
    /// is still its endpoint; answers whether it is disabled now. One that someone has changed lately
    /// has not been failing for long.
    pub(crate) async fn disable(
        &self,
        delivery: &Delivery,
        reason: DisabledReason,
    ) -> Result<bool, StoreError> {
        let id = &delivery.state.subscription;
        loop {
            let Lookup::Live(stored) = self.store.subscription(id).await? else {
                return Ok(false);
            };
            let mut changed = stored.subscription.clone();
            let same_endpoint = delivery
                .state
                .last_failure
                .as_ref()
                .is_some_and(|failure| failure.endpoint == changed.endpoint());
            if changed.status == Status::Disabled && changed.disabled_reason == Some(reason) {
                return Ok(true);
            }
            let now = clock::now();
            let not_yet = reason == DisabledReason::Failing
                && (changed.status != Status::Active
                    || now.since(changed.updated_at) < self.disable_after);
            if not_yet || !same_endpoint {
                return Ok(false);
            }
            changed.status = Status::Disabled;
            changed.disabled_reason = Some(reason);
            changed.updated_at = now;
            changed.version = ids::token();
            // Someone else has changed it in the meantime: look again.
            if self.store.update_subscription(&stored, &changed).await? {
                tracing::info!(subscription.id = %id, reason = reason.as_str(), "subscription disabled");
                self.metrics.disabled.with_label_values(&[reason.as_str()]).inc();
                return Ok(true);
            }
        }
    }
}
