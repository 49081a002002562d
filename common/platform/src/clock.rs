//! The only place that reads the clock and draws random numbers.

use std::sync::OnceLock;

use doorbell_common::time::Timestamp;
use rand::Rng as _;
use tokio::time::Instant;

/// The time now.
#[must_use]
pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_millis(
        since_epoch.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
    )
}

/// The time as it has gone on since this process first asked, whatever the clock was set to meanwhile. For what compares
/// times of its own only: it may be another one than what anybody else calls now.
#[must_use]
pub fn steady() -> Timestamp {
    static BEGAN: OnceLock<(Timestamp, Instant)> = OnceLock::new();
    let (at, began) = BEGAN.get_or_init(|| (now(), Instant::now()));
    at.plus(began.elapsed())
}

/// A number in `[0, 1)`.
#[must_use]
pub fn chance() -> f64 {
    let mut bytes = [0; 4];
    rand::rng().fill_bytes(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

/// 128 random bits from a cryptographic generator.
#[must_use]
pub fn random_bits() -> u128 {
    u128::from_le_bytes(random_bytes())
}

/// Random bytes from a cryptographic generator.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}
