//! Asking for something of ours that may be down: again and again, but not for ever.

use std::fmt;
use std::time::Duration;

use doorbell_common::sideline::Lane;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::shutdown::Shutdown;

/// How long Redis may be away until what waits for it, and is in others' way, is moved aside.
const IN_OTHERS_WAY: Duration = Duration::from_secs(1);
/// How long it is kept in hand where it is in nobody's way. Then it is put there again, where another replica may take it.
const ASIDE: Duration = Duration::from_secs(10);
/// How long a message is kept that cannot be settled, whatever is done.
const UNSETTLED: Duration = Duration::from_secs(5 * 60);

/// How long a message of this lane is kept in hand that waits for Redis, which has been away for so long.
#[must_use]
pub fn patience_of(lane: Lane, away_for: Duration) -> Duration {
    match lane {
        Lane::Main => IN_OTHERS_WAY.saturating_sub(away_for),
        Lane::Sideline => ASIDE,
    }
}

/// Waits before a message that cannot be settled is handed back, so that it comes now and then and not at once, until
/// RabbitMQ puts it into quarantine. Its channel stays: closing that would repeat what is in flight for others.
pub async fn before_handing_back(shutdown: &Shutdown) {
    shutdown.until(tokio::time::sleep(UNSETTLED)).await;
}

/// Why asking came to an end without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// The service is stopping.
    Stopping,
    /// There was no answer for too long.
    Stuck,
}

/// Asks again and again, with growing pauses, until there is an answer, the service stops, or
/// so much time has passed.
///
/// # Errors
/// There was no answer.
pub async fn patiently<T, E, F>(
    shutdown: &Shutdown,
    at_most: Duration,
    ask: impl Fn() -> F,
) -> Result<T, Unanswered>
where
    F: Future<Output = Result<T, E>>,
    E: fmt::Display,
{
    let give_up = Instant::now() + at_most;
    let mut backoff = Backoff::default();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => tracing::debug!(%error, "no answer yet; the message waits"),
        }
        if Instant::now() >= give_up {
            return Err(Unanswered::Stuck);
        }
        if shutdown.until(backoff.wait()).await.is_none() {
            return Err(Unanswered::Stopping);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_where_redis_is_known_to_be_away_is_moved_aside_at_once() {
        for (lane, away_for_ms, patience_ms) in [
            (Lane::Main, 0, 1000),
            (Lane::Main, 300, 700),
            (Lane::Main, 1000, 0),
            (Lane::Main, 3_600_000, 0),
            (Lane::Sideline, 0, 10_000),
            (Lane::Sideline, 3_600_000, 10_000),
        ] {
            let patience = patience_of(lane, Duration::from_millis(away_for_ms));
            assert_eq!(patience, Duration::from_millis(patience_ms), "{lane:?}, {away_for_ms} ms");
        }
    }
}
