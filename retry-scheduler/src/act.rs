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
            self.patiently(|| self.disable(&delivery)).await?;
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

    /// Disables a subscription whose endpoint answered 410, if that is still its endpoint.
    async fn disable(&self, delivery: &Delivery) -> Result<(), StoreError> {
        let id = &delivery.state.subscription;
        loop {
            let Lookup::Live(stored) = self.store.subscription(id).await? else { return Ok(()) };
            let mut changed = stored.subscription.clone();
            let same_endpoint = delivery
                .state
                .last_failure
                .as_ref()
                .is_some_and(|failure| failure.endpoint == changed.endpoint());
            let already = changed.disabled_reason == Some(DisabledReason::Gone);
            if already || !same_endpoint {
                return Ok(());
            }
            changed.status = Status::Disabled;
            changed.disabled_reason = Some(DisabledReason::Gone);
            changed.updated_at = clock::now();
            changed.version = ids::token();
            // Someone else has changed it in the meantime: look again.
            if self.store.update_subscription(&stored, &changed).await? {
                tracing::info!(subscription.id = %id, "subscription disabled: its endpoint answered 410");
                self.metrics.disabled.inc();
                return Ok(());
            }
        }
    }
}
