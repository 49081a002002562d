//! The gates of all subscriptions: each delivery asks its own before its POST. What is decided
//! there is `doorbell_common::gate`'s; here is the waiting, and the forgetting of gates that nobody
//! needs.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorbell_common::breaker::Sign;
use doorbell_common::gate::{Admission, Bounds, Gate, HoldReason, Pass};
use doorbell_common::ids::SubscriptionId;
use doorbell_common::subscription::Subscription;
use doorbell_common::time::Timestamp;
use doorbell_platform::clock;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a delivery waits at a gate before it is held after all.
const PATIENCE: Duration = Duration::from_millis(500);
/// The gates are kept in so many maps, so that deliveries seldom meet at a lock.
const SHARDS: usize = 16;
/// With so many gates in one map, those are forgotten where nobody is: they cost a few attempts to
/// learn again.
const MOST_IN_SHARD: usize = 8192;

/// The gates of all subscriptions. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gates {
    shards: Arc<[Mutex<Shard>]>,
    hasher: RandomState,
    bounds: Bounds,
    open: IntGauge,
}

type Shard = HashMap<SubscriptionId, Arc<Guarded>>;

#[derive(Debug, Default)]
struct Guarded {
    gate: Mutex<Gate>,
    /// Told whenever a POST ends.
    freed: Notify,
}

impl Guarded {
    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pass that was given; given back when dropped, if nothing is said of what became of it.
#[derive(Debug)]
pub(crate) struct Admitted {
    gates: Gates,
    subscription: SubscriptionId,
    guarded: Arc<Guarded>,
    pass: Option<Pass>,
}

impl Gates {
    /// `open` counts the breakers that are open.
    pub(crate) fn new(bounds: Bounds, open: IntGauge) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new(), bounds, open }
    }

    /// Why nobody at all is let through to this endpoint just now, and that nothing will be different before a
    /// certain time. To be asked before anything is taken that others need, too.
    pub(crate) fn closed(&self, id: &SubscriptionId) -> Option<(HoldReason, Timestamp)> {
        let guarded = Arc::clone(self.shard(id).get(id)?);
        let gate = guarded.lock();
        gate.closed(clock::now())
    }

    /// Waits for the right to make one POST, not for long; `came_back` is whether the delivery was
    /// held here before. The error says why the delivery is held instead, and that nothing will be
    /// different before a certain time.
    pub(crate) async fn enter(
        &self,
        subscription: &Subscription,
        came_back: bool,
    ) -> Result<Admitted, (HoldReason, Timestamp)> {
        let most = self.bounds.concurrency;
        let concurrency = subscription.max_concurrency.map_or(most, |fewer| fewer.min(most));
        self.enter_within(&subscription.id, Bounds { concurrency, ..self.bounds }, came_back).await
    }

    async fn enter_within(
        &self,
        subscription: &SubscriptionId,
        bounds: Bounds,
        came_back: bool,
    ) -> Result<Admitted, (HoldReason, Timestamp)> {
        let guarded = self.guarded(subscription);
        let mut admission = guarded.lock().arrive(bounds, came_back, clock::now());
        let give_up_at = Instant::now() + PATIENCE;
        while admission == Admission::Wait {
            let freed = tokio::time::timeout_at(give_up_at, guarded.freed.notified()).await;
            let mut gate = guarded.lock();
            admission = gate.ask_again(bounds, clock::now());
            if admission == Admission::Wait && freed.is_err() {
                admission = gate.give_up_waiting(clock::now());
            }
        }
        match admission {
            Admission::Go(pass) => Ok(Admitted {
                gates: self.clone(),
                subscription: subscription.clone(),
                guarded,
                pass: Some(pass),
            }),
            Admission::Hold(reason, opens_at) => Err((reason, opens_at)),
            Admission::Wait => Err((HoldReason::Busy, clock::now())),
        }
    }

    fn shard(&self, id: &SubscriptionId) -> MutexGuard<'_, Shard> {
        let number = usize::try_from(self.hasher.hash_one(id)).unwrap_or_default() % SHARDS;
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guarded(&self, id: &SubscriptionId) -> Arc<Guarded> {
        let mut shard = self.shard(id);
        if let Some(guarded) = shard.get(id) {
            return Arc::clone(guarded);
        }
        if shard.len() >= MOST_IN_SHARD {
            shard.retain(|_, guarded| {
                let deserted = Arc::strong_count(guarded) == 1 && guarded.lock().is_deserted();
                if deserted && guarded.lock().is_open() {
                    self.open.dec();
                }
                !deserted
            });
        }
        Arc::clone(shard.entry(id.clone()).or_default())
    }

    /// Forgets a gate that a fresh one would do as well as.
    fn forget_idle(&self, id: &SubscriptionId, ours: &Arc<Guarded>) {
        let mut shard = self.shard(id);
        let known = shard.get(id).is_some_and(|known| Arc::ptr_eq(known, ours));
        // Two: the map's and ours. Whoever else has it is about to ask it.
        if known && Arc::strong_count(ours) == 2 && ours.lock().is_idle(clock::now()) {
            shard.remove(id);
        }
    }
}

impl Admitted {
    /// The POST begins.
    pub(crate) fn begin(&self) {
        if let Some(pass) = self.pass {
            self.guarded.lock().begin(pass, clock::now());
        }
    }

    /// The POST has ended; this is what it says of its endpoint, and for how long that asked to be
    /// left alone.
    pub(crate) fn end(mut self, sign: Sign, leave_alone: Option<Duration>) {
        let Some(pass) = self.pass.take() else { return };
        let (was_open, is_open) = {
            let mut gate = self.guarded.lock();
            let was_open = gate.is_open();
            let at = (clock::now(), clock::chance());
            gate.end(pass, (sign, leave_alone), self.gates.bounds, at);
            (was_open, gate.is_open())
        };
        match (was_open, is_open) {
            (false, true) => self.gates.open.inc(),
            (true, false) => self.gates.open.dec(),
            (false, false) | (true, true) => {}
        }
        self.guarded.freed.notify_one();
        self.gates.forget_idle(&self.subscription, &self.guarded);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.guarded.lock().give_back(pass);
            self.guarded.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use doorbell_common::ids::SlotNumber;

    use super::*;

    const BOUNDS: Bounds = Bounds { concurrency: 2, waiting: 10, failures: 3 };

    fn gates() -> Gates {
        let open = IntGauge::new("open", "Open.").unwrap();
        Gates::new(BOUNDS, open)
    }

    fn id(number: u128) -> SubscriptionId {
        SubscriptionId::new(SlotNumber(0), number)
    }

    fn count(gates: &Gates) -> usize {
        gates.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }

    #[tokio::test]
    async fn who_waits_goes_when_another_ends_and_idle_gates_are_forgotten() {
        let gates = gates();
        let first = gates.enter_within(&id(1), BOUNDS, false).await.unwrap();
        let second = gates.enter_within(&id(1), BOUNDS, false).await.unwrap();
        let same = id(1);
        let (entered, ()) = tokio::join!(gates.enter_within(&same, BOUNDS, false), async {
            tokio::task::yield_now().await;
            first.end(Sign::Answers, None);
        });
        let third = entered.unwrap();
        // Given back unused.
        drop(second);
        assert_eq!(count(&gates), 1);
        third.end(Sign::Answers, None);
        assert_eq!(count(&gates), 0);
    }

    #[tokio::test]
    async fn who_waits_in_vain_is_held() {
        let gates = gates();
        let _passes = (
            gates.enter_within(&id(1), BOUNDS, false).await.unwrap(),
            gates.enter_within(&id(1), BOUNDS, false).await.unwrap(),
        );
        let held = gates.enter_within(&id(1), BOUNDS, false).await.map(drop).unwrap_err();
        assert_eq!(held.0, HoldReason::Busy);
        // Another subscription has nothing to do with it.
        gates.enter_within(&id(2), BOUNDS, false).await.unwrap();
    }

    #[tokio::test]
    async fn open_breakers_are_counted_and_kept() {
        let gates = gates();
        for _ in 0..3 {
            gates.enter_within(&id(1), BOUNDS, false).await.unwrap().end(Sign::Fails, None);
        }
        assert_eq!(gates.open.get(), 1);
        assert_eq!(count(&gates), 1);
        assert_eq!(gates.closed(&id(1)).map(|(reason, _)| reason), Some(HoldReason::Breaker));
        assert_eq!(gates.closed(&id(2)), None);
        assert_eq!(count(&gates), 1, "to ask is not to come");
        assert_eq!(
            gates.enter_within(&id(1), BOUNDS, false).await.map(drop).unwrap_err().0,
            HoldReason::Breaker
        );
    }
}
