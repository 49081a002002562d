//! Lets held deliveries flow again once their subscription is back, and gives them up where it stays away.
//!
//! The [index](crate::held) says which subscriptions have deliveries in the stream, and where. For
//! those that are no longer suspended the stream is read from there, and each of their deliveries
//! is handed to `doorbell.retries`, where the usual decision is made about it. What others have between
//! its deliveries may be long, so they read in [turns](Turns). How far that has come is saved as it goes, and
//! noted in the stream itself, from which the index can be made anew. Each hand-off has its deterministic
//! name, so reading twice does no harm.
//!
//! A stream forgets without a word. So what has been held for too long is handed on, too, while it is still
//! there: the same decision gives it up. And a stream that is nearly full is [compacted](crate::compact).

use std::collections::BTreeSet;
use std::time::Duration;

use doorbell_common::held::Turns;
use doorbell_common::ids::SubscriptionId;
use doorbell_common::subscription::Standing;
use doorbell_platform::broker::{Broker, Publisher};
use doorbell_platform::clock;
use doorbell_platform::removals::Removals;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::lease::Lease;
use doorbell_platform::store::snapshots::{Changed, Snapshots};
use tokio::time::Instant;

use crate::compact::STEPS;
use crate::held::Held;
use crate::metrics::Metrics;
use crate::pass::Part;

/// How often to look who is back.
const EVERY: Duration = Duration::from_secs(5);
/// After so long without a sign another replica takes over.
const LEASE: Duration = Duration::from_secs(15);
/// How often to look what has been held for too long.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
/// How long a silent stream is believed; then a mark is put there, which shows whether it is still the same.
const BELIEVED: Duration = Duration::from_secs(60);
/// How long to read before looking again who is back.
pub(crate) const PASS: Duration = Duration::from_secs(10);
/// How long to read for one before it is the next one's turn.
const TURN: Duration = Duration::from_secs(2);
/// How long to read what is new before reading on for who is back.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Subscriptions looked up at once.
const LOOKED_UP_AT_ONCE: usize = 1000;

/// The job that lets held deliveries flow again, and gives up those that have waited for too long.
#[derive(Debug)]
pub(crate) struct Resumer {
    pub(crate) broker: Broker,
    pub(crate) publisher: Publisher,
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) removals: Removals,
    pub(crate) metrics: Metrics,
    /// How long a delivery is held.
    pub(crate) expire_after: Duration,
    /// How large the stream may grow.
    pub(crate) most_bytes: u64,
    /// Who we are, for the lease.
    pub(crate) owner: String,
}

/// Who is back, as far as was looked, and whose turn it is.
#[derive(Default)]
struct Back {
    ids: BTreeSet<SubscriptionId>,
    turns: Turns,
}

impl Resumer {
    /// Takes its turn among the replicas, again and again, until the service is told to stop.
    pub(crate) async fn resume(self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut expire_at = Instant::now();
        while shutdown.until(tick.tick()).await.is_some() {
            if !self.store.is_up() {
                continue;
            }
            let mut held = None;
            // On the heap, for it is large.
            let turn = Box::pin(self.take_turn(&mut held, &mut expire_at));
            if let Some(Err(error)) = shutdown.until(turn).await {
                let error = sentence(&error);
                tracing::warn!(error, "held deliveries are not watched over; trying again");
            }
            if let Some(held) = held {
                held.close().await;
            }
        }
    }

    /// Watches over the held deliveries for as long as the lease is ours. What is opened for that is left to
    /// be closed, however this ends.
    async fn take_turn(
        &self,
        held: &mut Option<Held>,
        expire_at: &mut Instant,
    ) -> anyhow::Result<()> {
        if !self.lease().await? {
            return Ok(());
        }
        let step = self.most_bytes / STEPS;
        let opening = Held::open(&self.broker, &self.publisher, self.store.clone(), step);
        let held = held.insert(opening.await?);
        let (mut look_at, mut last_came) = (Instant::now() + EVERY, Instant::now());
        // All that is in the index is news at first, so nothing is missed of what changed before.
        let mut back = Back::default();
        loop {
            if last_came.elapsed() >= BELIEVED {
                held.prove(&self.publisher).await?;
                last_came = Instant::now();
            }
            if held.follow(look_at.saturating_duration_since(Instant::now())).await? {
                last_came = Instant::now();
            }
            if Instant::now() < look_at && !self.is_nearly_full(held) {
                continue;
            }
            if !self.lease().await? {
                return Ok(());
            }
            let has_room = self.compact(held).await?;
            let is_all = self.look(held, &mut back).await?;
            let again_at = Instant::now() + if is_all && has_room { EVERY } else { CATCH_UP };
            if *expire_at <= Instant::now() {
                let is_all = self.expire(held).await?;
                let pause = (self.expire_after / 100).clamp(EVERY, EXPIRE_EVERY);
                *expire_at = Instant::now() + if is_all { pause } else { EVERY };
            }
            look_at = again_at;
        }
    }

    pub(crate) async fn lease(&self) -> anyhow::Result<bool> {
        Ok(self.store.lease(Lease::Held, &self.owner, LEASE).await?)
    }

    /// Looks who is back, and hands their deliveries on; answers whether that was all.
    async fn look(&self, held: &mut Held, back: &mut Back) -> anyhow::Result<bool> {
        self.look_who_is_back(held, &mut back.ids).await?;
        let (stop_at, mut touched) = (Instant::now() + PASS, BTreeSet::new());
        let mut is_all = false;
        while !is_all && Instant::now() < stop_at {
            let passed = match back.turns.next(&held.index, &back.ids) {
                Some(turn) => self.hand_on(held, Part::of(turn, TURN)).await?,
                None => None,
            };
            match passed {
                Some(passed) => touched.extend(passed.touched),
                // Nobody has anything any more.
                None => is_all = true,
            }
        }
        if !touched.is_empty() {
            tracing::info!(subscriptions = touched.len(), "held deliveries flow again");
        }
        Ok(is_all)
    }

    /// Looks who is no longer suspended, of those that are new to the index or may have changed: all may be a
    /// million.
    async fn look_who_is_back(
        &self,
        held: &mut Held,
        back: &mut BTreeSet<SubscriptionId>,
    ) -> anyhow::Result<()> {
        let mut asked = held.take_news();
        match self.snapshots.take_changed() {
            Changed::Everything => asked.extend(held.index.subscriptions().cloned()),
            Changed::Slots(slots) => {
                asked.extend(slots.into_iter().flat_map(|slot| held.index.in_slot(slot)).cloned());
            }
        }
        let asked: Vec<SubscriptionId> = asked.into_iter().collect();
        for ids in asked.chunks(LOOKED_UP_AT_ONCE) {
            for (id, known) in self.snapshots.get_all(ids.to_vec()).await? {
                match known.standing() {
                    Standing::Suspended(_) | Standing::Missing => back.remove(&id),
                    Standing::Active(_) | Standing::Cancelled => back.insert(id),
                };
            }
        }
        back.retain(|id| held.index.span(id).is_some());
        Ok(())
    }

    /// Hands on what has been held for too long: it is given up, unless its subscription is back. Answers
    /// whether that was all.
    async fn expire(&self, held: &mut Held) -> anyhow::Result<bool> {
        // Somewhat longer: whoever decides about them may have another clock.
        let before = clock::now().minus(self.expire_after + self.expire_after / 100);
        let turn = Turns::default().next(&held.index, held.index.subscriptions());
        let Some(turn) = turn else { return Ok(true) };
        let part = Part { held_before: Some(before), ..Part::of(turn, PASS) };
        let Some(passed) = self.hand_on(held, part).await? else { return Ok(true) };
        if !passed.touched.is_empty() {
            let subscriptions = passed.touched.len();
            tracing::info!(subscriptions, "deliveries were held for too long");
        }
        Ok(passed.is_all)
    }
}
