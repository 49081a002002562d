//! Lets held deliveries flow again once their subscription is back.
//!
//! The [index](crate::held) says which subscriptions have deliveries in the stream, and where. For
//! those that are no longer suspended the stream is read from there, and each of their deliveries
//! is handed to `doorbell.retries`, where the usual decision is made about it. How far that has
//! come is saved after each batch, and noted in the stream itself, from which the index can be
//! made anew. Each hand-off has its deterministic name, so reading twice does no harm.

use std::collections::HashSet;
use std::time::Duration;

use doorbell_common::held::Resumed;
use doorbell_common::ids::SubscriptionId;
use doorbell_common::subscription::Standing;
use doorbell_common::work::{DeliveryState, Work};
use doorbell_platform::broker::stream::{From, StreamReader};
use doorbell_platform::broker::topology::{HELD, RETRIES};
use doorbell_platform::broker::{Broker, Message, Publisher};
use doorbell_platform::ids;
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

/// The job that lets held deliveries flow again.
#[derive(Debug)]
pub(crate) struct Resumer {
    broker: Broker,
    publisher: Publisher,
    store: Store,
    snapshots: Snapshots,
    metrics: Metrics,
    /// Who we are, for the lease.
    owner: String,
}

impl Resumer {
    pub(crate) fn new(
        broker: Broker,
        publisher: Publisher,
        (store, snapshots): (Store, Snapshots),
        metrics: Metrics,
    ) -> Self {
        Self { broker, publisher, store, snapshots, metrics, owner: ids::token() }
    }

    /// Takes its turn among the replicas, again and again, until the service is told to stop.
    pub(crate) async fn resume(self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until(tick.tick()).await.is_some() {
            if !self.store.is_up() {
                continue;
            }
            let mut held = None;
            if let Some(Err(error)) = shutdown.until(self.take_turn(&mut held)).await {
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
    async fn take_turn(&self, held: &mut Option<Held>) -> anyhow::Result<()> {
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
        let first = back.iter().filter_map(|id| held.index.span(id)).map(|span| span.first).min();
        let (Some(first), Some(end)) = (first, held.through()) else { return Ok(()) };
        // Before anything follows from the index: it may not be what Redis has any more.
        held.save().await?;
        let mut reader = StreamReader::open(&self.broker, HELD, From::Offset(first)).await?;
        let through = self.pass(held, &back, &mut reader, end).await?;
        reader.close().await;
        self.note(back, through).await
    }

    /// Reads on, at most up to `end`, and hands on what belongs to these; answers how far it came.
    async fn pass(
        &self,
        held: &mut Held,
        back: &HashSet<SubscriptionId>,
        reader: &mut StreamReader,
        end: u64,
    ) -> anyhow::Result<u64> {
        let stop_at = Instant::now() + PASS;
        loop {
            let batch = reader.batch(AT_ONCE, SILENCE).await?;
            let Some(last) = batch.last() else { anyhow::bail!("the stream is silent") };
            let through = last.stream_offset().min(end);
            let (mut messages, mut resumed) = (Vec::new(), 0);
            let mut touched = HashSet::new();
            for received in batch.iter().filter(|received| received.stream_offset() <= through) {
                let offset = received.stream_offset();
                let Entry::Held(mut parcel) = Entry::read(received) else { continue };
                parcel.states.retain(|DeliveryState { subscription, .. }| {
                    let span = held.index.span(subscription);
                    back.contains(subscription) && span.is_some_and(|span| span.first <= offset)
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
            // Only now is everything up to here confirmed. Whoever has nothing in this batch needs
            // no note of it, unless this is the end: what an index names may have aged out.
            let passed = if through >= end { back } else { &touched };
            for id in passed {
                held.index.resumed(id, through);
            }
            held.save().await?;
            anyhow::ensure!(self.lease().await?, "another replica has taken over");
            if through >= end || Instant::now() >= stop_at {
                tracing::info!(subscriptions = back.len(), "held deliveries flow again");
                return Ok(through);
            }
        }
    }

    /// Notes in the stream how far these were handed on, for whoever makes the index anew.
    async fn note(&self, back: HashSet<SubscriptionId>, through: u64) -> anyhow::Result<()> {
        let back: Vec<SubscriptionId> = back.into_iter().collect();
        for named in back.chunks(NAMED_AT_ONCE) {
            let resumed = Resumed { subscriptions: named.to_vec(), through };
            self.publisher.publish_surely(&Message::resumed(&resumed)?).await?;
        }
        Ok(())
    }
}
