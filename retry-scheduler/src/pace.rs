//! How fast held deliveries flow again: no faster than they go on. They go by the sideline, where all that floods
//! would wait behind them; and millions at once, for endpoints that take a few at a time, would be looked at again and
//! again.

use std::time::Duration;

use doorbell_common::rung::DelayQueue;
use doorbell_platform::broker::stream::StreamReader;
use doorbell_platform::broker::topology::{
    DELIVERIES, SIDELINE_RETRIES, UNROUTED, sideline_queues,
};
use tokio::time::Instant;

/// There is room while no more than so many messages, of up to 64 deliveries each, are in line to be decided about or
/// delivered,
const LINE: u32 = 32;
/// and no more wait for moments: for an endpoint that is busy, mostly.
const SOON: u32 = 4000;
/// What waits in these rungs waits for moments. Whoever is held for a busy endpoint is so for up to 45 s.
const MOMENTS: Duration = Duration::from_secs(32);
/// How long it is believed that there is room, or none.
const BELIEVED: Duration = Duration::from_millis(50);
/// However little room there is, the next go on after so long: others may be why.
const AT_LEAST_EVERY: Duration = Duration::from_secs(1);

/// The pace.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    had_room_at: Option<Instant>,
}

impl Pace {
    /// Waits until the next may go on.
    pub(crate) async fn next(&mut self, reader: &StreamReader) -> anyhow::Result<()> {
        let begun_at = Instant::now();
        while self.had_room_at.is_none_or(|at| at.elapsed() > BELIEVED) {
            if has_room(reader).await? {
                self.had_room_at = Some(Instant::now());
            } else if begun_at.elapsed() >= AT_LEAST_EVERY {
                return Ok(());
            } else {
                tokio::time::sleep(BELIEVED).await;
            }
        }
        Ok(())
    }
}

async fn has_room(reader: &StreamReader) -> anyhow::Result<bool> {
    let line = [SIDELINE_RETRIES, UNROUTED, DELIVERIES].map(str::to_owned);
    let line = line.into_iter().chain(sideline_queues());
    let soon = DelayQueue::all().filter(|queue| queue.rung.length() <= MOMENTS);
    let soon = soon.map(DelayQueue::name);
    Ok(waiting(reader, line).await? <= LINE && waiting(reader, soon).await? <= SOON)
}

async fn waiting(
    reader: &StreamReader,
    queues: impl IntoIterator<Item = String>,
) -> anyhow::Result<u32> {
    let mut sum = 0_u32;
    for queue in queues {
        sum = sum.saturating_add(reader.waiting(&queue).await?);
    }
    Ok(sum)
}
