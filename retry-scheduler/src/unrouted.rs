//! Brings back messages that no queue took, which a queue deleted under us brings about: the
//! topology is declared anew, and the message goes where it was to go. One that finds no queue for a day never will:
//! someone has published it to an exchange of ours with a key that leads nowhere.

use std::time::Duration;

use doorbell_platform::backoff::Backoff;
use doorbell_platform::broker::{Message, Received};
use doorbell_platform::patience::Unanswered;
use doorbell_platform::sentence::sentence;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::schedule::Scheduler;

/// How long a message waits that comes for the second time; twice as long each time after.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// So often a message is brought back, which takes about a day.
const MOST: u32 = 1450;

/// When the topology was last declared anew; locked while that is being done.
#[derive(Debug, Default)]
pub(crate) struct Redeclaration {
    begun_at: Mutex<Option<Instant>>,
}

impl Scheduler {
    pub(crate) async fn bring_back(&self, received: Received) -> Result<(), Unanswered> {
        if received.returns() >= MOST {
            return self.reject(received, "no queue has taken it for a day").await;
        }
        // One that still finds no queue must not circulate hot.
        if self.shutdown.until(tokio::time::sleep(pause(received.returns()))).await.is_none() {
            return Err(Unanswered::Stopping);
        }
        self.redeclare(Instant::now()).await?;
        tracing::debug!(
            exchange = received.exchange,
            routing_key = received.routing_key,
            "a message that no queue took is published again"
        );
        self.publish(&Message::returned(received)).await?;
        self.metrics.unrouted.inc();
        Ok(())
    }

    /// Declares the topology, unless that was begun since `wanted_at`: one declaration does for
    /// all messages that came before it.
    async fn redeclare(&self, wanted_at: Instant) -> Result<(), Unanswered> {
        let mut begun_at = self.unrouted.begun_at.lock().await;
        let mut backoff = Backoff::default();
        while begun_at.is_none_or(|begun_at| begun_at < wanted_at) {
            let now = Instant::now();
            match self.broker.redeclare().await {
                Ok(()) => {
                    tracing::info!("messages found no queue: queues are declared anew");
                    *begun_at = Some(now);
                }
                Err(error) => {
                    tracing::warn!(error = sentence(&error), "queues cannot be declared anew");
                    if self.shutdown.until(backoff.wait()).await.is_none() {
                        return Err(Unanswered::Stopping);
                    }
                }
            }
        }
        Ok(())
    }
}

/// How long a message waits that was brought back so often before.
fn pause(returns: u32) -> Duration {
    match returns.checked_sub(1) {
        None => Duration::ZERO,
        Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(16)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_finds_no_queue_slows_down() {
        let pauses: Vec<Duration> = (0..40).map(pause).collect();
        assert_eq!(pauses[0], Duration::ZERO);
        assert_eq!(pauses[1], FIRST_PAUSE);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[39], LONGEST_PAUSE);
    }

    #[test]
    fn a_message_that_finds_no_queue_is_brought_back_for_a_day() {
        let hours = (0..MOST).map(pause).sum::<Duration>().as_secs() / 3600;
        assert_eq!(hours, 24);
    }
}
