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
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::limits::{MOST_WAITING, PATIENCE_AFTER_HOLD};

/// How long a delivery waits at a gate before it is held after all.
const PATIENCE: Duration = Duration::from_millis(500);
/// The gates are kept in so many maps, so that deliveries seldom meet at a lock.
const SHARDS: usize = 16;
/// With so many gates in one map, those are forgotten first that a fresh one would nearly do as well as: it lets fewer
/// POSTs through at once until some are answered.
const MANY_IN_SHARD: usize = 1024;
/// With so many, all those where nobody is: they cost a few attempts to learn again.
const MOST_IN_SHARD: usize = 8192;

/// The gates of all subscriptions. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gates {
    shards: Arc<[Mutex<Shard>]>,
    hasher: RandomState,
    bounds: Bounds,
    /// Room for those that have come back and wait for their turn, at all gates: as much as at all rate limits.
    called: Arc<Semaphore>,
    open: IntGauge,
}

#[derive(Debug)]
struct Shard {
    gates: HashMap<SubscriptionId, Arc<Guarded>>,
    /// With so many it is time to forget some.
    forget_at: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { gates: HashMap::new(), forget_at: MANY_IN_SHARD }
    }
}

impl Shard {
    /// Forgets gates that nobody needs, or that must make room; answers how many of their breakers were open.
    fn forget(&mut self) -> usize {
        let now = clock::steady();
        self.gates.retain(|_, guarded| !(guarded.is_alone() && guarded.lock().is_idle(now)));
        let mut open = 0;
        if self.gates.len() >= MOST_IN_SHARD {
            self.gates.retain(|_, guarded| {
                let gate = guarded.lock();
                let deserted = guarded.is_alone() && gate.is_deserted();
                open += usize::from(deserted && gate.is_open());
                !deserted
            });
        }
        // Each time for as many as are new since.
        self.forget_at = (2 * self.gates.len()).clamp(MANY_IN_SHARD, MOST_IN_SHARD);
        open
    }
}

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

    /// Whether nobody is about to ask it, beside whoever looks.
    fn is_alone(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }
}

/// A pass that was given; given back when dropped, if nothing is said of what became of it.
#[derive(Debug)]
pub(crate) struct Admitted {
    gates: Gates,
    guarded: Arc<Guarded>,
    pass: Option<Pass>,
}

impl Gates {
    /// `open` counts the breakers that are open.
    pub(crate) fn new(bounds: Bounds, open: IntGauge) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let called = Arc::new(Semaphore::new(MOST_WAITING));
        Self { shards, hasher: RandomState::new(), bounds, called, open }
    }

    /// Whether nobody at all is let through to this endpoint just now.
    pub(crate) fn are_closed(&self, id: &SubscriptionId) -> bool {
        let guarded = self.shard(id).gates.get(id).cloned();
        guarded.is_some_and(|guarded| guarded.lock().is_closed(clock::steady()))
    }

    /// Why nobody at all is let through to this endpoint just now, so that one more delivery is held, and until when
    /// nothing will be different. To be asked before anything is taken that others need, too.
    pub(crate) fn closed(&self, id: &SubscriptionId) -> Option<(HoldReason, Timestamp)> {
        let guarded = Arc::clone(self.shard(id).gates.get(id)?);
        let mut gate = guarded.lock();
        gate.closed(clock::steady()).map(by_the_clock)
    }

    /// One that was held here waits for its turn, not for long; to be asked before anything is taken that others need,
    /// too. The error says why it is held once more, and that nothing will be different before a certain time.
    pub(crate) async fn come_back(
        &self,
        subscription: &Subscription,
    ) -> Result<(), (HoldReason, Timestamp)> {
        self.come_back_within(&subscription.id, self.bounds_of(subscription)).await
    }

    async fn come_back_within(
        &self,
        subscription: &SubscriptionId,
        bounds: Bounds,
    ) -> Result<(), (HoldReason, Timestamp)> {
        let place = self.called.try_acquire();
        let patience = if place.is_ok() { PATIENCE_AFTER_HOLD } else { Duration::ZERO };
        let guarded = self.guarded(subscription);
        let called = guarded.lock().come_back(bounds, patience, clock::steady());
        let wait = called.map_err(by_the_clock)?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// Waits for the right to make one POST, not for long. The error says why the delivery is held
    /// instead, and that nothing will be different before a certain time.
    pub(crate) async fn enter(
        &self,
        subscription: &Subscription,
    ) -> Result<Admitted, (HoldReason, Timestamp)> {
        self.enter_within(&subscription.id, self.bounds_of(subscription)).await
    }

    fn bounds_of(&self, subscription: &Subscription) -> Bounds {
        let most = self.bounds.concurrency;
        let concurrency = subscription.max_concurrency.map_or(most, |fewer| fewer.min(most));
        Bounds { concurrency, ..self.bounds }
    }

    async fn enter_within(
        &self,
        subscription: &SubscriptionId,
        bounds: Bounds,
    ) -> Result<Admitted, (HoldReason, Timestamp)> {
        let guarded = self.guarded(subscription);
        let mut admission = guarded.lock().arrive(bounds, clock::steady());
        let give_up_at = Instant::now() + PATIENCE;
        while admission == Admission::Wait {
            let freed = tokio::time::timeout_at(give_up_at, guarded.freed.notified()).await;
            let mut gate = guarded.lock();
            admission = gate.ask_again(bounds, clock::steady());
            if admission == Admission::Wait && freed.is_err() {
                admission = gate.give_up_waiting(bounds, clock::steady());
            }
            if gate.may_next_go(bounds) {
                guarded.freed.notify_one();
            }
        }
        match admission {
            Admission::Go(pass) => Ok(Admitted { gates: self.clone(), guarded, pass: Some(pass) }),
            Admission::Hold(reason, opens_at) => Err(by_the_clock((reason, opens_at))),
            Admission::Wait => Err((HoldReason::Busy, clock::now())),
        }
    }

    fn shard(&self, id: &SubscriptionId) -> MutexGuard<'_, Shard> {
        let number = usize::try_from(self.hasher.hash_one(id)).unwrap_or_default() % SHARDS;
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guarded(&self, id: &SubscriptionId) -> Arc<Guarded> {
        let mut shard = self.shard(id);
        if let Some(guarded) = shard.gates.get(id) {
            return Arc::clone(guarded);
        }
        if shard.gates.len() >= shard.forget_at {
            let open = shard.forget();
            self.open.sub(i64::try_from(open).unwrap_or(0));
        }
        Arc::clone(shard.gates.entry(id.clone()).or_default())
    }
}

/// Gates go by a time that nobody sets; this is when a delivery may come again by the clock, as others read it.
fn by_the_clock((reason, opens_at): (HoldReason, Timestamp)) -> (HoldReason, Timestamp) {
    /// Both are cut to milliseconds; whoever comes too early is held once more.
    const CUT: Duration = Duration::from_millis(1);
    (reason, clock::now().plus(opens_at.since(clock::steady()) + CUT))
}

impl Admitted {
    /// Whether the POST is likely to take long.
    pub(crate) fn is_slow(&self) -> bool {
        self.pass.is_some_and(|pass| pass.is_slow())
    }

    /// The POST begins.
    pub(crate) fn begin(&self) {
        if let Some(pass) = self.pass {
            self.guarded.lock().begin(pass, clock::steady());
        }
    }

    /// The POST has ended; this is what it says of its endpoint, and for how long that asked to be
    /// left alone.
    pub(crate) fn end(mut self, sign: Sign, leave_alone: Option<Duration>) {
        let Some(pass) = self.pass.take() else { return };
        let (was_open, is_open) = {
            let mut gate = self.guarded.lock();
            let was_open = gate.is_open();
            let at = (clock::steady(), clock::chance());
            gate.end(pass, (sign, leave_alone), self.gates.bounds, at);
            (was_open, gate.is_open())
        };
        match (was_open, is_open) {
            (false, true) => self.gates.open.inc(),
            (true, false) => self.gates.open.dec(),
            (false, false) | (true, true) => {}
        }
        self.guarded.freed.notify_one();
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
        gates.shards.iter().map(|shard| shard.lock().unwrap().gates.len()).sum()
    }

    #[tokio::test]
    async fn who_waits_goes_when_another_ends() {
        let gates = gates();
        let first = gates.enter_within(&id(1), BOUNDS).await.unwrap();
        let second = gates.enter_within(&id(1), BOUNDS).await.unwrap();
        let same = id(1);
        let (entered, ()) = tokio::join!(gates.enter_within(&same, BOUNDS), async {
            tokio::task::yield_now().await;
            first.end(Sign::Answers, None);
        });
        let third = entered.unwrap();
        // Given back unused.
        drop(second);
        third.end(Sign::Answers, None);
        assert_eq!(count(&gates), 1);
    }

    #[tokio::test]
    async fn gates_are_forgotten_where_there_are_many() {
        let gates = gates();
        let busy = gates.enter_within(&id(0), BOUNDS).await.unwrap();
        for _ in 0..3 {
            gates.enter_within(&id(1), BOUNDS).await.unwrap().end(Sign::Fails, None);
        }
        let many = u128::try_from(2 * SHARDS * MANY_IN_SHARD).unwrap();
        for n in 2..many {
            gates.enter_within(&id(n), BOUNDS).await.unwrap().end(Sign::Answers, None);
        }
        let few = count(&gates);
        assert!((2..=SHARDS * MANY_IN_SHARD).contains(&few), "{few} are left");
        assert_eq!(gates.open.get(), 1, "what was learnt is kept");
        // More than fit, all of which have something to tell.
        let most = u128::try_from(2 * SHARDS * MOST_IN_SHARD).unwrap();
        for n in many..most {
            gates.enter_within(&id(n), BOUNDS).await.unwrap().end(Sign::Fails, None);
        }
        let left = count(&gates);
        assert!(left <= SHARDS * MOST_IN_SHARD, "{left} are left");
        assert_eq!(gates.open.get(), 0);
        let _one_more = gates.enter_within(&id(0), BOUNDS).await.unwrap();
        let full = gates.enter_within(&id(0), BOUNDS).await;
        assert!(full.is_err(), "where somebody is it is not forgotten");
        drop(busy);
    }

    #[tokio::test]
    async fn who_waits_in_vain_is_held() {
        let gates = gates();
        let _passes = (
            gates.enter_within(&id(1), BOUNDS).await.unwrap(),
            gates.enter_within(&id(1), BOUNDS).await.unwrap(),
        );
        let held = gates.enter_within(&id(1), BOUNDS).await.map(drop).unwrap_err();
        assert_eq!(held.0, HoldReason::Busy);
        // Another subscription has nothing to do with it.
        gates.enter_within(&id(2), BOUNDS).await.unwrap();
    }

    #[tokio::test]
    async fn who_comes_back_waits_for_its_turn_if_there_is_room() {
        let gates = gates();
        let first = gates.enter_within(&id(1), BOUNDS).await.unwrap();
        first.begin();
        tokio::time::sleep(Duration::from_millis(50)).await;
        first.end(Sign::Answers, None);
        // Two at once, each of which takes 50 ms.
        let same = id(1);
        let come = || gates.come_back_within(&same, BOUNDS);
        let five: (_, _, _, _, _) = tokio::join!(come(), come(), come(), come(), come());
        assert_eq!(five, (Ok(()), Ok(()), Ok(()), Ok(()), Ok(())));
        let _taken = gates.called.try_acquire_many(u32::try_from(MOST_WAITING).unwrap()).unwrap();
        let mut held = Ok(());
        for _ in 0..1000 {
            held = held.and(come().await);
        }
        assert_eq!(held.unwrap_err().0, HoldReason::Busy);
    }

    #[tokio::test]
    async fn all_that_wait_go_that_an_answer_makes_room_for() {
        let bounds = Bounds { concurrency: 32, waiting: 64, failures: 3 };
        let gates = Gates::new(bounds, IntGauge::new("open", "Open.").unwrap());
        let same = id(1);
        let mut in_flight = Vec::new();
        for _ in 0..16 {
            in_flight.push(gates.enter_within(&same, bounds).await.unwrap());
        }
        // The seventeenth waits: each answer frees a place, and allows one more.
        let entering =
            futures_util::future::join_all((0..2).map(|_| gates.enter_within(&same, bounds)));
        let (entered, ()) = tokio::join!(entering, async {
            tokio::task::yield_now().await;
            in_flight.remove(0).end(Sign::Answers, None);
        });
        assert!(entered.iter().all(Result::is_ok), "{entered:?}");
    }

    #[tokio::test]
    async fn open_breakers_are_counted_and_kept() {
        let gates = gates();
        for _ in 0..3 {
            gates.enter_within(&id(1), BOUNDS).await.unwrap().end(Sign::Fails, None);
        }
        assert_eq!(gates.open.get(), 1);
        assert_eq!(count(&gates), 1);
        assert_eq!(gates.closed(&id(1)).map(|(reason, _)| reason), Some(HoldReason::Breaker));
        assert_eq!(gates.closed(&id(2)), None);
        assert_eq!(count(&gates), 1, "to ask is not to come");
        assert_eq!(
            gates.enter_within(&id(1), BOUNDS).await.map(drop).unwrap_err().0,
            HoldReason::Breaker
        );
    }
}
