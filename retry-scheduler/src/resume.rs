//! Lets held deliveries flow again once their subscription is back.
//!
//! Redis says which subscriptions have deliveries in the stream and since when. For those that
//! are no longer suspended the stream is read from there up to a mark that we publish ourselves,
//! and each of their deliveries is handed to `doorbell.retries`, where the usual decision is made
//! about it. Each hand-off has its deterministic name, so reading twice does no harm.

use std::collections::HashMap;
use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use doorbell_common::subscription::Standing;
use doorbell_common::time::Timestamp;
use doorbell_common::wire;
use doorbell_common::work::Work;
use doorbell_platform::broker::stream::{From, StreamReader};
use doorbell_platform::broker::topology::{HELD, RETRIES};
use doorbell_platform::broker::{Broker, Message, Publisher, Received};
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::held::HeldEntry;
use doorbell_platform::store::snapshots::Snapshots;
use doorbell_platform::{clock, ids};
use lapin::types::ShortString;

/// How often to look.
const EVERY: Duration = Duration::from_secs(5);
/// How long a reading may take before another replica may begin one.
const LEASE: Duration = Duration::from_secs(60);
/// A delivery noted so recently may not be in the stream yet.
const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// Streams keep the times of chunks, in seconds.
const MARGIN: Duration = Duration::from_secs(2);
/// Hand-offs in flight at once.
const AT_ONCE: usize = 100;

/// The job that lets held deliveries flow again.
#[derive(Debug)]
pub(crate) struct Resumer {
    broker: Broker,
    publisher: Publisher,
    store: Store,
    snapshots: Snapshots,
    /// Who we are, for the lease.
    owner: String,
    /// How far each subscription's deliveries were handed on, while its entry is still there.
    done: HashMap<SubscriptionId, u64>,
}

impl Resumer {
    pub(crate) fn new(
        broker: Broker,
        publisher: Publisher,
        store: Store,
        snapshots: Snapshots,
    ) -> Self {
        Self { broker, publisher, store, snapshots, owner: ids::token(), done: HashMap::new() }
    }

    /// Looks every few seconds, until the service is told to stop.
    pub(crate) async fn resume(mut self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until(tick.tick()).await.is_some() {
            if !self.store.is_up() {
                continue;
            }
            if let Some(Err(error)) = shutdown.until(self.look()).await {
                let error = format!("{error:#}");
                tracing::warn!(error, "held deliveries could not be resumed; trying again");
            }
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let mut back = HashMap::new();
        for entry in self.store.held().await? {
            let known = self.snapshots.get(&entry.subscription).await?;
            match known.standing() {
                Standing::Suspended(_) | Standing::Missing => {}
                Standing::Active(_) | Standing::Cancelled => {
                    back.insert(entry.subscription.clone(), entry);
                }
            }
        }
        self.done.retain(|id, _| back.contains_key(id));
        if back.is_empty() || !self.store.lease_held(&self.owner, LEASE).await? {
            return Ok(());
        }
        let begun = clock::now();
        self.read(&back).await?;
        for entry in back.values() {
            if entry.last.plus(SETTLED_AFTER) < begun {
                self.store.forget_held(entry).await?;
            }
        }
        Ok(())
    }

    /// Reads the stream up to what is there now and hands on what belongs to these.
    async fn read(&mut self, back: &HashMap<SubscriptionId, HeldEntry>) -> anyhow::Result<()> {
        let Some(from) = self.start(back) else { return Ok(()) };
        let mark = format!("mark-{}", ids::token());
        let mut message = Message::internal(HELD, Vec::new());
        message.properties =
            message.properties.with_message_id(ShortString::try_new(mark.as_str())?);
        self.publisher.publish(message).await?;
        let mut reader = StreamReader::open(&self.broker, HELD, from).await?;
        let (mut batch, mut count) = (Vec::new(), 0_u64);
        loop {
            let received = reader.next().await?;
            let offset = received.stream_offset();
            let at_mark =
                received.properties.message_id().as_ref().is_some_and(|id| id.as_str() == mark);
            if let Some(next) = self.wanted(back, &received, offset)? {
                batch.push(next);
            }
            if batch.len() >= AT_ONCE || at_mark {
                count += u64::try_from(batch.len())?;
                self.hand_on(std::mem::take(&mut batch)).await?;
                // Only now is everything up to here confirmed.
                for id in back.keys() {
                    self.done.insert(id.clone(), offset);
                }
                self.store.lease_held(&self.owner, LEASE).await?;
            }
            if at_mark {
                break;
            }
        }
        reader.close().await;
        if count > 0 {
            tracing::info!(
                deliveries = count,
                subscriptions = back.len(),
                "held deliveries flow again"
            );
        }
        Ok(())
    }

    /// Where to begin: behind what was handed on, or at the first time that is noted.
    fn start(&self, back: &HashMap<SubscriptionId, HeldEntry>) -> Option<From> {
        let offsets: Option<Vec<u64>> = back.keys().map(|id| self.done.get(id).copied()).collect();
        if let Some(first) = offsets.and_then(|offsets| offsets.into_iter().min()) {
            return Some(From::Offset(first.saturating_add(1)));
        }
        let first: Option<Timestamp> = back.values().map(|entry| entry.since).min();
        first.map(|time| From::Time(time.minus(MARGIN)))
    }

    /// The hand-off that a message of the stream calls for, if any.
    fn wanted(
        &self,
        back: &HashMap<SubscriptionId, HeldEntry>,
        received: &Received,
        offset: u64,
    ) -> anyhow::Result<Option<Message>> {
        // Marks, and whatever else is not ours to understand.
        let Ok(Work::Delivery(delivery)) = wire::decode(&received.body) else { return Ok(None) };
        let id = &delivery.state.subscription;
        let Some(entry) = back.get(id) else { return Ok(None) };
        let done = self.done.get(id).is_some_and(|done| offset <= *done);
        // What was held before the entry began has flowed in an earlier round.
        let earlier = delivery.state.held_since.is_none_or(|since| since < entry.since);
        if done || earlier {
            return Ok(None);
        }
        Ok(Some(Message::work(RETRIES, &Work::Delivery(delivery).next())?))
    }

    async fn hand_on(&self, batch: Vec<Message>) -> anyhow::Result<()> {
        let publishing = batch.iter().map(|message| self.publisher.publish_surely(message));
        futures_util::future::try_join_all(publishing).await?;
        Ok(())
    }
}
