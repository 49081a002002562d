//! The rate limits of subscriptions: who is early waits a moment, or is held until about its turn.
//! Redis keeps the account for all dispatchers; while it is away each keeps one of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use doorbell_common::rate::{Meters, RateLimit, Turn};
use doorbell_platform::clock;
use doorbell_platform::store::Store;
use tokio::sync::Semaphore;

/// How long a delivery waits for its turn that has not been held before.
const PATIENCE: Duration = Duration::from_millis(100);
/// And one that comes back: those who were held come back to the second, not to the millisecond.
pub(crate) const PATIENCE_AFTER_HOLD: Duration = Duration::from_secs(1);
/// Deliveries that may wait for their turn at once, of all subscriptions: each keeps its message in
/// hand meanwhile, and so a place from others.
pub(crate) const MOST_WAITING: usize = 256;

/// The rate limits.
#[derive(Debug)]
pub(crate) struct Limits {
    store: Store,
    waiting: Arc<Semaphore>,
    meters: Mutex<Meters<SubscriptionId>>,
}

impl Limits {
    pub(crate) fn new(store: Store) -> Self {
        let waiting = Arc::new(Semaphore::new(MOST_WAITING));
        Self { store, waiting, meters: Mutex::default() }
    }

    /// Waits for a turn, not for long; `came_back` is whether the delivery was held before. The
    /// error says after what time to ask again.
    pub(crate) async fn turn(
        &self,
        id: &SubscriptionId,
        limit: RateLimit,
        came_back: bool,
    ) -> Result<(), Duration> {
        let place = self.waiting.try_acquire();
        let patience = match (&place, came_back) {
            (Err(_), _) => Duration::ZERO,
            (Ok(_), false) => PATIENCE,
            (Ok(_), true) => PATIENCE_AFTER_HOLD,
        };
        match self.ask(id, limit, patience).await {
            Turn::After(wait) => {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                Ok(())
            }
            Turn::AskAgainAfter(wait) => Err(wait),
        }
    }

    async fn ask(&self, id: &SubscriptionId, limit: RateLimit, patience: Duration) -> Turn {
        if self.store.is_up() {
            match self.store.ask_for_turn(id, limit, patience).await {
                Ok(turn) => return turn,
                Err(error) => tracing::debug!(%error, "rate limit not asked for"),
            }
        }
        let now = clock::steady().as_micros();
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        meters.of(id, now).ask(limit, patience, now)
    }
}
