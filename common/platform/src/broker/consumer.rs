//! Consuming: messages arrive with a handle by which each is settled once, and whatever breaks
//! underneath is rebuilt.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use doorbell_common::ack::AckLedger;
use futures_util::stream::{SelectAll, Stream, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::connection::Broker;
use super::message::Received;
use crate::backoff::Backoff;
use crate::health::{Dependency, Health};
use crate::shutdown::Shutdown;

/// How often a channel that says nothing is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Settlements taken in one go.
const BATCH: usize = 1024;
/// How long the first settlement of a batch waits for others: one acknowledgement for many costs
/// RabbitMQ a fifth of what as many single ones do.
const LINGER: Duration = Duration::from_millis(1);

/// A queue to consume.
#[derive(Clone, Debug)]
pub struct ConsumerSpec {
    /// Which one.
    pub queue: String,
    /// How many messages may be with us unsettled.
    pub prefetch: u16,
}

/// A message that came, to be settled once.
#[derive(Debug)]
pub struct Incoming {
    /// The queue it came from.
    pub queue: Arc<str>,
    /// The message.
    pub received: Received,
    /// By which it is settled.
    pub settle: Settle,
}

/// Settles one message, once. Dropped unused, it hands the message back.
#[derive(Debug)]
pub struct Settle {
    tag: u64,
    session: Option<mpsc::UnboundedSender<(u64, Settlement)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settlement {
    Ack,
    Requeue,
    Recycle,
}

impl Settle {
    /// The message is done with; what follows from it is confirmed.
    pub fn ack(mut self) {
        self.send(Settlement::Ack);
    }

    /// The message goes back to its queue, untouched.
    pub fn requeue(mut self) {
        self.send(Settlement::Requeue);
    }

    /// Our own trouble has kept this message too long: its channel is closed, so that all its
    /// messages are free for others.
    pub fn recycle(mut self) {
        self.send(Settlement::Recycle);
    }

    fn send(&mut self, settlement: Settlement) {
        if let Some(session) = self.session.take() {
            // The channel may be gone; then the broker has taken the message back already.
            let _gone = session.send((self.tag, settlement)).is_err();
        }
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        self.send(Settlement::Requeue);
    }
}

/// The messages of several queues, as they come.
#[derive(Debug)]
pub struct Intake {
    messages: mpsc::Receiver<Incoming>,
}

impl Intake {
    /// Starts the supervisor of a consuming connection.
    ///
    /// When the service is told to stop it cancels its consumers, hands back what nobody has
    /// begun, and goes on settling until nothing is left.
    #[must_use]
    pub fn start(
        broker: Broker,
        specs: Vec<ConsumerSpec>,
        health: Health,
        shutdown: &Shutdown,
    ) -> Self {
        let room: usize = specs.iter().map(|spec| usize::from(spec.prefetch)).sum();
        let (sender, messages) = mpsc::channel(room.max(1));
        let supervisor = Supervisor { broker, specs, health, shutdown: shutdown.clone(), sender };
        shutdown.spawn(supervisor.run());
        Self { messages }
    }

    /// Gives each message to `work`, in a task of its own, until the service is told to stop;
    /// returns once the last of these tasks has ended, so that what they lean on may end after.
    pub async fn for_each<F>(mut self, work: impl Fn(Incoming) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let tasks = TaskTracker::new();
        while let Some(incoming) = self.messages.recv().await {
            tasks.spawn(work(incoming));
        }
        tasks.close();
        tasks.wait().await;
    }
}

struct Supervisor {
    broker: Broker,
    specs: Vec<ConsumerSpec>,
    health: Health,
    shutdown: Shutdown,
    sender: mpsc::Sender<Incoming>,
}

/// What a consumer's stream yields; `None` when it ended, which a deleted queue brings about on
/// a healthy channel.
type Item = (Arc<ConsumerSpec>, Option<lapin::Result<Delivery>>);
type Items = Pin<Box<dyn Stream<Item = Item> + Send>>;
type Streams = SelectAll<Items>;

impl Supervisor {
    async fn run(self) {
        let mut backoff = Backoff::default();
        while !self.shutdown.is_stopping() {
            let Some(opened) = self.shutdown.until(self.open()).await else { break };
            match opened {
                Ok((connection, session)) => {
                    backoff.reset();
                    self.health.up(Dependency::RabbitmqConsume);
                    let reason = session.run(&self).await;
                    if !self.shutdown.is_stopping() {
                        self.health.down(Dependency::RabbitmqConsume, reason);
                    }
                    // The connection may be closed already; then there is nothing to close.
                    drop(connection.close(200, "done".into()).await);
                }
                Err(error) => self.health.down(Dependency::RabbitmqConsume, format!("{error:#}")),
            }
            self.shutdown.until(backoff.wait()).await;
        }
    }

    async fn open(&self) -> anyhow::Result<(Connection, Session)> {
        let connection = self.broker.connect("consume").await?;
        self.broker.declare_topology(&connection).await?;
        let channel = connection.create_channel().await?;
        let (mut tags, mut streams) = (Vec::new(), SelectAll::new());
        for spec in &self.specs {
            let (tag, items) = consume(&channel, Arc::new(spec.clone())).await?;
            tags.push(tag);
            streams.push(items);
        }
        let (settle, settlements) = mpsc::unbounded_channel();
        let session = Session {
            channel,
            tags,
            streams,
            settle,
            settlements,
            ledger: AckLedger::default(),
            outstanding: 0,
            stopping: false,
        };
        Ok((connection, session))
    }

    /// Brings back the consumer of a queue that was deleted: the queue is declared anew.
    async fn reopen(
        &self,
        channel: &Channel,
        spec: &Arc<ConsumerSpec>,
    ) -> anyhow::Result<(ShortString, Items)> {
        // A connection of its own: a declaration that fails closes its channel, or worse.
        let connection = self.broker.connect("declare").await?;
        let declared = self.broker.declare_topology(&connection).await;
        drop(connection.close(200, "declared".into()).await);
        declared?;
        Ok(consume(channel, Arc::clone(spec)).await?)
    }
}

async fn consume(
    channel: &Channel,
    spec: Arc<ConsumerSpec>,
) -> lapin::Result<(ShortString, Items)> {
    channel.basic_qos(spec.prefetch, BasicQosOptions::default()).await?;
    let tag = format!("doorbell-{}", crate::ids::token());
    let options = BasicConsumeOptions::default();
    let consumer = channel
        .basic_consume(spec.queue.as_str().into(), tag.into(), options, FieldTable::default())
        .await?;
    let tag = consumer.tag();
    tracing::debug!(queue = spec.queue, consumer = tag.as_str(), "consuming");
    let ended = futures_util::stream::once(std::future::ready(None));
    let items = consumer.map(Some).chain(ended).map(move |item| (Arc::clone(&spec), item));
    Ok((tag, items.boxed()))
}

/// One channel and everything that hangs on it.
struct Session {
    channel: Channel,
    /// The consumers' tags.
    tags: Vec<ShortString>,
    streams: Streams,
    settle: mpsc::UnboundedSender<(u64, Settlement)>,
    settlements: mpsc::UnboundedReceiver<(u64, Settlement)>,
    ledger: AckLedger,
    /// Messages delivered and not settled.
    outstanding: usize,
    stopping: bool,
}

impl Session {
    /// Returns, with the reason, once the channel is no use any more or everything is settled
    /// after the signal to stop.
    async fn run(mut self, supervisor: &Supervisor) -> String {
        let mut look = tokio::time::interval(LOOK);
        let mut batch = Vec::with_capacity(BATCH);
        let mut tell_at = Instant::now();
        loop {
            let room = BATCH - batch.len();
            tokio::select! {
                () = supervisor.shutdown.stopping(), if !self.stopping => {
                    self.stopping = true;
                    if let Err(error) = self.cancel_consumers().await {
                        return format!("the channel was lost while stopping: {error}");
                    }
                }
                count = self.settlements.recv_many(&mut batch, room), if room > 0 => {
                    if batch.len() == count {
                        tell_at = Instant::now() + LINGER;
                    }
                }
                () = tokio::time::sleep_until(tell_at), if !batch.is_empty() => {
                    self.outstanding = self.outstanding.saturating_sub(batch.len());
                    match self.apply(&mut batch).await {
                        Ok(true) => {}
                        Ok(false) => return "the channel was closed: our own trouble kept its messages too long".to_owned(),
                        Err(error) => return format!("the channel was lost: {error}"),
                    }
                }
                Some((spec, item)) = self.streams.next() => {
                    if let Err(reason) = self.take(supervisor, spec, item).await {
                        return reason;
                    }
                }
                _ = look.tick() => {
                    if !self.channel.status().connected() {
                        return "the channel was lost".to_owned();
                    }
                }
            }
            if self.stopping && self.outstanding == 0 && self.streams.is_empty() {
                return "stopping".to_owned();
            }
        }
    }

    async fn take(
        &mut self,
        supervisor: &Supervisor,
        spec: Arc<ConsumerSpec>,
        item: Option<lapin::Result<Delivery>>,
    ) -> Result<(), String> {
        match item {
            Some(Ok(delivery)) if self.stopping => {
                let tag = delivery.delivery_tag;
                self.ledger.forget(tag);
                hand_back(&self.channel, tag)
                    .await
                    .map_err(|error| format!("the channel was lost: {error}"))
            }
            Some(Ok(delivery)) => {
                self.outstanding += 1;
                let incoming = incoming(&spec, delivery, self.settle.clone());
                // Nobody listens any more when the service is stopping: the message is dropped,
                // and so handed back.
                drop(supervisor.sender.try_send(incoming));
                Ok(())
            }
            Some(Err(error)) => Err(format!("consumer of {} failed: {error}", spec.queue)),
            None if self.stopping => Ok(()),
            None => {
                tracing::warn!(
                    queue = spec.queue,
                    "consumer was cancelled by RabbitMQ: was the queue deleted?"
                );
                let reopened =
                    supervisor.shutdown.until(supervisor.reopen(&self.channel, &spec)).await;
                match reopened {
                    Some(Ok((tag, items))) => {
                        self.tags.push(tag);
                        self.streams.push(items);
                    }
                    Some(Err(error)) => {
                        return Err(format!("queue {} can't be consumed: {error:#}", spec.queue));
                    }
                    None => {}
                }
                Ok(())
            }
        }
    }

    /// Tells the broker what was settled; answers whether the channel may go on.
    async fn apply(&mut self, batch: &mut Vec<(u64, Settlement)>) -> lapin::Result<bool> {
        let mut go_on = true;
        let mut settled = Vec::with_capacity(batch.len());
        for (tag, settlement) in batch.drain(..) {
            match settlement {
                Settlement::Ack => settled.push(tag),
                Settlement::Recycle => go_on = false,
                Settlement::Requeue => {
                    self.ledger.forget(tag);
                    hand_back(&self.channel, tag).await?;
                }
            }
        }
        for ack in self.ledger.settle(&settled) {
            self.channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await?;
        }
        Ok(go_on)
    }

    async fn cancel_consumers(&mut self) -> lapin::Result<()> {
        for tag in std::mem::take(&mut self.tags) {
            self.channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
        }
        Ok(())
    }
}

async fn hand_back(channel: &Channel, tag: u64) -> lapin::Result<()> {
    channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
}

fn incoming(
    spec: &ConsumerSpec,
    delivery: Delivery,
    session: mpsc::UnboundedSender<(u64, Settlement)>,
) -> Incoming {
    Incoming {
        queue: spec.queue.as_str().into(),
        settle: Settle { tag: delivery.delivery_tag, session: Some(session) },
        received: received(delivery),
    }
}

/// Takes a delivery out of the client's own type.
pub(super) fn received(delivery: Delivery) -> Received {
    Received {
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        redelivered: delivery.redelivered,
        properties: delivery.properties,
        body: delivery.data,
    }
}
