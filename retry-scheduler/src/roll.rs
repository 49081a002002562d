//! Has streams begin new segments, once a day, while something is being removed. RabbitMQ takes what is
//! too old out of a stream by whole segments, and never the one that is being written: in a stream that
//! grows slowly that may be all there is. So it is filled up.

use std::time::Duration;

use doorbell_platform::broker::topology::{ATTEMPTS, DEAD_LETTERS, HELD, SEGMENT_BYTES};
use doorbell_platform::broker::{Message, Publisher};
use doorbell_platform::clock;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;

/// How often to look whether it is time.
const LOOK: Duration = Duration::from_secs(10);
/// Bytes of one message that fills up a segment: others go between them.
const PADDING: usize = 1024 * 1024;

/// Looks whether it is time, again and again, until the service is told to stop.
pub(crate) async fn roll(store: Store, publisher: Publisher, shutdown: Shutdown) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.until(look.tick()).await.is_some() {
        if !store.is_up() || !store.streams_are_to_roll(clock::now()).await.unwrap_or(false) {
            continue;
        }
        let rolled = shutdown.until(roll_all(&publisher)).await;
        if let Some(Ok(())) = rolled {
            tracing::info!("streams have begun new segments, because something is being removed");
            continue;
        }
        tracing::warn!(?rolled, "streams have not begun new segments; they will");
        if let Err(error) = store.streams_have_not_rolled().await {
            tracing::warn!(%error, "streams begin new segments a day later than they should");
        }
    }
}

async fn roll_all(publisher: &Publisher) -> anyhow::Result<()> {
    for stream in [HELD, DEAD_LETTERS, ATTEMPTS] {
        for _ in 0..=SEGMENT_BYTES.div_ceil(PADDING) {
            publisher.publish_surely(&Message::padding(stream, PADDING)).await?;
        }
    }
    Ok(())
}
