//! Waiting on conditions, with a deadline.

use std::time::Duration;

use tokio::time::Instant;

/// A deadline is what any usual machine stays well below; one that is slow, or busy with other things, is given so many
/// times that. Only a story that fails waits for it.
const PATIENCE: u32 = 3;

/// Asks again and again until the condition holds.
///
/// # Errors
/// Time ran out; says what was waited for.
pub async fn eventually<F: Future<Output = bool>>(
    what: &str,
    at_most: Duration,
    holds: impl Fn() -> F,
) -> anyhow::Result<()> {
    within(at_most * PATIENCE, what, holds).await
}

/// The same where the time itself is what a story is about.
///
/// # Errors
/// Time ran out; says what was waited for.
pub async fn within<F: Future<Output = bool>>(
    at_most: Duration,
    what: &str,
    holds: impl Fn() -> F,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + at_most;
    while !holds().await {
        anyhow::ensure!(Instant::now() < deadline, "not within {at_most:?}: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Ok(())
}

/// Seconds, for short.
#[must_use]
pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
