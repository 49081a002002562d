//! Lets held deliveries flow again once their subscription is back, and gives them up where it stays away.
//!
//! The [index](crate::held) says which subscriptions have deliveries in the stream, and where. For
//! those that are no longer suspended the stream is read from there, and each of their deliveries
//! is handed to `doorbell.retries`, where the usual decision is made about it. How far that has
//! come is saved after each batch, and noted in the stream itself, from which the index can be
//! made anew. Each hand-off has its deterministic name, so reading twice does no harm.
//!
//! A stream forgets without a word. So what has been held for too long is handed on, too, while it is still
//! there: the same decision gives it up.

use std::collections::HashSet;
use std::time::Duration;

use doorbell_common::held::{HeldIndex, Resumed};
use doorbell_common::ids::SubscriptionId;
use doorbell_common::subscription::Standing;
use doorbell_common::time::Timestamp;
use doorbell_common::work::{DeliveryState, Work};
use doorbell_platform::broker::stream::{From, StreamReader};
use doorbell_platform::broker::topology::{HELD, RETRIES};
use doorbell_platform::broker::{Broker, Message, Publisher};
use doorbell_platform::clock;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::lease::Lease;
use doorbell_platform::store::snapshots::{Known, Snapshots};
use tokio::time::Instant;

use crate::held::{Entry, Held};
use crate::metrics::Metrics;

/// How often to look who is back.
const EVERY: Duration = Duration::from_secs(5);
/// After so long without a sign another replica takes over.
const LEASE: Duration = Duration::from_secs(15);
/// How often to look what has been held for too long.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
/// How long a silent stream is believed; then it is opened again, and the mark put there shows
/// whether it is still the same.
const BELIEVED: Duration = Duration::from_secs(60);
/// How long to read before looking again who is back.
const PASS: Duration = Duration::from_secs(10);
/// Hand-offs in flight at once.
const AT_ONCE: usize = 100;
/// How long the stream may say nothing although there is more to read.
const SILENCE: Duration = Duration::from_secs(30);
/// Subscriptions looked up at once.
const LOOKED_UP_AT_ONCE: usize = 1000;
/// Subscriptions named in one note.
const NAMED_AT_ONCE: usize = 1000;

/// The job that lets held deliveries flow again, and gives up those that have waited for too long.
#[derive(Debug)]
pub(crate) struct Resumer {
    pub(crate) broker: Broker,
    pub(crate) publisher: Publisher,
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) metrics: Metrics,
    /// How long a delivery is held.
    pub(crate) expire_after: Duration,
    /// Who we are, for the lease.
    pub(crate) owner: String,
}

/// What is to be handed on of the stream.
struct Part<'a> {
    /// Whose deliveries.
    ids: &'a HashSet<SubscriptionId>,
    /// Up to this offset, which is included.
    end: u64,
    /// Only what was held before this time, and nothing after the first that was not.
    held_before: Option<Timestamp>,
}

impl Part<'_> {
    fn goes_on(&self, offset: u64, entry: &Entry) -> bool {
        let is_old = match (entry, self.held_before) {
            (Entry::Held(parcel), Some(before)) => parcel
                .states
                .iter()
                .all(|state| state.held_since.is_none_or(|since| since < before)),
            (Entry::Held(_) | Entry::Resumed(_) | Entry::Foreign, _) => true,
        };
        is_old && offset <= self.end
    }
}

/// What was handed on.
struct Passed {
    /// The last offset that was looked at.
    through: u64,
    /// Whether that is all, or was as much as there was time for.
    is_all: bool,
    /// Whose deliveries there were.
    touched: HashSet<SubscriptionId>,
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
            let turn = self.take_turn(&mut held, &mut expire_at);
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
        let held =
            held.insert(Held::open(&self.broker, &self.publisher, self.store.clone()).await?);
        let (mut look_at, mut last_came) = (Instant::now() + EVERY, Instant::now());
        while last_came.elapsed() < BELIEVED {
            if held.follow(look_at.saturating_duration_since(Instant::now())).await? {
                last_came = Instant::now();
            }
            if Instant::now() < look_at {
                continue;
            }
            if !self.lease().await? {
                break;
            }
            self.look(held).await?;
            if *expire_at <= Instant::now() {
                let is_all = self.expire(held).await?;
                let pause = (self.expire_after / 100).clamp(EVERY, EXPIRE_EVERY);
                *expire_at = Instant::now() + if is_all { pause } else { EVERY };
            }
            look_at = Instant::now() + EVERY;
        }
        Ok(())
    }

    async fn lease(&self) -> anyhow::Result<bool> {
        Ok(self.store.lease(Lease::Held, &self.owner, LEASE).await?)
    }

    /// Looks who is back, and hands their deliveries on.
    async fn look(&self, held: &mut Held) -> anyhow::Result<()> {
        let ids: Vec<SubscriptionId> = held.index.subscriptions().cloned().collect();
        let mut back = HashSet::new();
        for ids in ids.chunks(LOOKED_UP_AT_ONCE) {
            let known = self.snapshots.get_all(ids.to_vec()).await?.into_iter();
            let is_back = |known: &Known| match known.standing() {
                Standing::Suspended(_) | Standing::Missing => false,
                Standing::Active(_) | Standing::Cancelled => true,
            };
            back.extend(known.filter(|(_, known)| is_back(known)).map(|(id, _)| id));
        }
        if let Some(passed) = self.hand_on(held, &back, None).await? {
            tracing::info!(subscriptions = passed.touched.len(), "held deliveries flow again");
        }
        Ok(())
    }

    /// Hands on what has been held for too long: it is given up, unless its subscription is back. Answers
    /// whether that was all.
    async fn expire(&self, held: &mut Held) -> anyhow::Result<bool> {
        // Somewhat longer: whoever decides about them may have another clock.
        let before = clock::now().minus(self.expire_after + self.expire_after / 100);
        let all: HashSet<SubscriptionId> = held.index.subscriptions().cloned().collect();
        let Some(passed) = self.hand_on(held, &all, Some(before)).await? else { return Ok(true) };
        if !passed.touched.is_empty() {
            let subscriptions = passed.touched.len();
            tracing::info!(subscriptions, "deliveries were held for too long");
        }
        Ok(passed.is_all)
    }

    /// Hands on what these have in the stream, or what was held before a time, and notes how far that came.
    async fn hand_on(
        &self,
        held: &mut Held,
        ids: &HashSet<SubscriptionId>,
        held_before: Option<Timestamp>,
    ) -> anyhow::Result<Option<Passed>> {
        let first = ids.iter().filter_map(|id| held.index.span(id)).map(|span| span.first).min();
        let (Some(first), Some(end)) = (first, held.through()) else { return Ok(None) };
        // Before anything follows from the index: it may not be what Redis has any more.
        held.save().await?;
        let mut reader = StreamReader::open(&self.broker, HELD, From::Offset(first)).await?;
        let passed = self.pass(held, &mut reader, Part { ids, end, held_before }).await;
        reader.close().await;
        let passed = passed?;
        if let Some(Passed { through, touched, .. }) = &passed {
            self.note(touched, *through).await?;
        }
        Ok(passed)
    }

    /// Reads on and hands on what belongs to a part of the stream; nothing, if nothing of it does.
    async fn pass(
        &self,
        held: &mut Held,
        reader: &mut StreamReader,
        part: Part<'_>,
    ) -> anyhow::Result<Option<Passed>> {
        let stop_at = Instant::now() + PASS;
        let mut passed: Option<Passed> = None;
        loop {
            let batch = reader.batch(AT_ONCE, SILENCE).await?;
            anyhow::ensure!(!batch.is_empty(), "the stream is silent");
            let entries = batch.iter().map(|came| (came.stream_offset(), Entry::read(came)));
            let entries: Vec<_> =
                entries.take_while(|(offset, entry)| part.goes_on(*offset, entry)).collect();
            let Some(through) = entries.last().map(|(offset, _)| *offset) else {
                return Ok(passed.map(|passed| Passed { is_all: true, ..passed }));
            };
            let is_end = entries.len() < batch.len() || through >= part.end;
            let (mut messages, mut resumed) = (Vec::new(), 0);
            let mut touched = HashSet::new();
            for (offset, entry) in entries {
                let Entry::Held(mut parcel) = entry else { continue };
                parcel.states.retain(|DeliveryState { subscription, .. }| {
                    let span = held.index.span(subscription);
                    part.ids.contains(subscription) && span.is_some_and(|span| span.first <= offset)
                });
                if parcel.states.is_empty() {
                    continue;
                }
                resumed += parcel.states.len();
                touched.extend(parcel.states.iter().map(|state| state.subscription.clone()));
                messages.push(Message::work(RETRIES, &Work::Parcel(parcel).next())?);
            }
            let handing_on = messages.iter().map(|message| self.publisher.publish_surely(message));
            futures_util::future::try_join_all(handing_on).await?;
            self.metrics.resumed.inc_by(u64::try_from(resumed)?);
            let nothing = Passed { through, is_all: is_end, touched: HashSet::new() };
            let so_far = passed.get_or_insert(nothing);
            (so_far.through, so_far.is_all) = (through, is_end);
            so_far.touched.extend(touched.iter().cloned());
            if is_end {
                self.tell_forgotten(&held.index, &part, so_far);
            }
            // Only now is everything up to here confirmed. Whoever has nothing in this batch needs
            // no note of it, unless this is the end: what an index names may be forgotten.
            for id in if is_end { part.ids } else { &touched } {
                held.index.resumed(id, through);
            }
            held.save().await?;
            anyhow::ensure!(self.lease().await?, "another replica has taken over");
            if is_end || Instant::now() >= stop_at {
                return Ok(passed);
            }
        }
    }

    /// Tells whose deliveries the stream has forgotten, because others have filled it.
    fn tell_forgotten(&self, index: &HeldIndex, part: &Part<'_>, passed: &Passed) {
        let forgotten = |id: &&SubscriptionId| {
            index.is_forgotten(id, passed.touched.contains(*id), passed.through)
        };
        for id in part.ids.iter().filter(forgotten) {
            tracing::error!(
                subscription.id = %id,
                "held deliveries are lost: their stream was full, and has forgotten them before their time"
            );
            self.metrics.forgotten.inc();
        }
    }

    /// Notes in the stream how far these were handed on, for whoever makes the index anew.
    async fn note(&self, ids: &HashSet<SubscriptionId>, through: u64) -> anyhow::Result<()> {
        let ids: Vec<SubscriptionId> = ids.iter().cloned().collect();
        for named in ids.chunks(NAMED_AT_ONCE) {
            let resumed = Resumed { subscriptions: named.to_vec(), through };
            self.publisher.publish_surely(&Message::resumed(&resumed)?).await?;
        }
        Ok(())
    }
}
