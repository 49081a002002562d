//! Asking for something of ours that may be down: again and again, but not for ever.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::shutdown::Shutdown;

/// How long our own trouble may keep a message in hand.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Why asking came to an end without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// The service is stopping.
    Stopping,
    /// Five minutes have passed.
    Stuck,
}

/// Asks again and again, with growing pauses, until there is an answer, the service stops, or
/// patience ends.
///
/// # Errors
/// There was no answer.
pub async fn patiently<T, E, F>(shutdown: &Shutdown, ask: impl Fn() -> F) -> Result<T, Unanswered>
where
    F: Future<Output = Result<T, E>>,
    E: fmt::Display,
{
    let give_up = Instant::now() + PATIENCE;
    let mut backoff = Backoff::default();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => tracing::debug!(%error, "no answer yet; the message waits"),
        }
        if shutdown.until(backoff.wait()).await.is_none() {
            return Err(Unanswered::Stopping);
        }
        if Instant::now() > give_up {
            return Err(Unanswered::Stuck);
        }
    }
}
