//! Carries out a move. When this returns well, what follows from the message is confirmed.

use std::time::Duration;

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
use tokio::time::Instant;

use crate::schedule::{Scheduler, unwritable};

/// Half of the time after which the note of a held delivery may be forgotten.
const NOTE_LASTS: Duration = Duration::from_secs(30);

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
                self.hold(delivery).await?;
                self.metrics.held.inc();
            }
            Move::GiveUp(reason, delivery) => self.give_up(reason, delivery).await?,
            Move::Cancel => self.metrics.cancelled(),
        }
        Ok(())
    }

    /// Notes where to look before the delivery goes to the stream, so that it is never there
    /// without anyone knowing.
    async fn hold(&self, delivery: Delivery) -> Result<(), Unanswered> {
        let subscription = delivery.state.subscription.clone();
        let since = delivery.state.held_since.unwrap_or_else(clock::now);
        let message = Message::work(HELD, &Work::Delivery(delivery).next()).map_err(unwritable)?;
        loop {
            self.patiently(|| self.store.note_held(&subscription, since, clock::now())).await?;
            let noted = Instant::now();
            self.publish(&message).await?;
            // A confirm that took long may have outlasted the note.
            if noted.elapsed() < NOTE_LASTS {
                return Ok(());
            }
        }
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
