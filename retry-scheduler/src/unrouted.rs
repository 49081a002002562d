//! Brings back messages that no queue took, which a queue deleted under us brings about: the
//! topology is declared anew, and the message goes where it was to go.

use std::time::Duration;

use doorbell_platform::backoff::Backoff;
use doorbell_platform::broker::{Message, Received};
use doorbell_platform::patience::Unanswered;

use crate::schedule::Scheduler;

/// Between two messages: one that still finds no queue must not circulate hot.
const PAUSE: Duration = Duration::from_millis(20);

impl Scheduler {
    pub(crate) async fn bring_back(&self, received: Received) -> Result<(), Unanswered> {
        // One at a time, after one declaration each: this is rare, and a storm helps nobody.
        let _turn = self.unrouted.lock().await;
        let mut backoff = Backoff::default();
        while let Err(error) = self.declare().await {
            tracing::warn!(%error, "queues cannot be declared anew");
            if self.shutdown.until(backoff.wait()).await.is_none() {
                return Err(Unanswered::Stopping);
            }
        }
        tracing::info!(
            exchange = received.exchange,
            routing_key = received.routing_key,
            "a message that no queue took is published again"
        );
        self.publish(&Message::again(received)).await?;
        self.metrics.unrouted.inc();
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    async fn declare(&self) -> anyhow::Result<()> {
        let connection = self.broker.connect("declare").await?;
        let declared = self.broker.declare_topology(&connection).await;
        // It may be closed already; then there is nothing to close.
        drop(connection.close(200, "declared".into()).await);
        declared
    }
}
