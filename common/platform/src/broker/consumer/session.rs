//! One channel with its consumers, from its opening until it is no use any more.
//!
//! RabbitMQ may leave a consumer that looks alive and gets nothing. When a queue is deleted, and
//! declared anew by someone before RabbitMQ has told the consumers of the old one, it moves them to
//! the new one without a word; nothing of the new queue comes to us then, although for the queue
//! its messages are delivered (seen with quorum queues of 3.10; it seems that the channel takes
//! them for ones that it has had).
//! No question that a client may ask tells this from silence. So a channel is believed for a
//! minute of silence only: then another one takes its place, and what was stuck comes again.
//!
//! Another one takes its place, too, where messages that [linger](super::Settle::linger) fill the window of a queue:
//! the new one has a window of its own, and the old one settles what it has.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use doorbell_common::ack::AckLedger;
use doorbell_common::window::{Filled, Seen, Window, has_room};
use futures_util::stream::{SelectAll, Stream, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{ConsumerSpec, Counts, InHand, Incoming, Settle, Supervisor};
use crate::broker::connection::answered;
use crate::sentence::sentence;

/// How often a channel that says nothing is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long a queue may be silent before the channel is replaced.
const SILENCE: Duration = Duration::from_secs(60);
/// Settlements taken in one go.
const BATCH: usize = 1024;
/// How long the first settlement of a batch waits for others: one acknowledgement for many costs
/// RabbitMQ a fifth of what as many single ones do.
const LINGER: Duration = Duration::from_millis(1);

/// What is to become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    Ack,
    Requeue,
}

/// What is to be done once RabbitMQ was told that a message is done with.
pub type Afterwards = Box<dyn FnOnce() + Send>;

/// A message that was settled.
pub(super) struct Settled {
    pub(super) tag: u64,
    /// Which of the session's queues it came from.
    pub(super) queue: usize,
    pub(super) bytes: usize,
    pub(super) settlement: Settlement,
    pub(super) afterwards: Option<Afterwards>,
}

/// What a consumer's stream yields, with the number of its queue; `None` when it ended, which a
/// deleted queue brings about on a healthy channel.
type Item = (usize, Option<lapin::Result<Delivery>>);
type Items = Pin<Box<dyn Stream<Item = Item> + Send>>;

/// A queue that is consumed.
struct Consumed {
    name: Arc<str>,
    /// Messages that came from it and are not settled.
    outstanding: usize,
    counts: Arc<Counts>,
    /// When the last one came, or the channel was opened.
    last_came: Instant,
}

impl Consumed {
    fn new(spec: &ConsumerSpec, supervisor: &Supervisor) -> Self {
        let of_all = Arc::clone(&supervisor.in_hand);
        let counts = Counts { of_all, lingering: AtomicUsize::new(0) };
        Self {
            name: spec.queue.as_str().into(),
            outstanding: 0,
            counts: counts.into(),
            last_came: Instant::now(),
        }
    }
}

/// How a session came to its end.
pub(super) enum Ended {
    /// It is no use any more, for this reason.
    Lost(String),
    /// Everything is settled after the signal to stop.
    Stopped,
    /// Another one is to take its place, with this window; this one has messages to settle yet.
    Replace(Box<Session>, Window),
}

/// One channel and everything that hangs on it.
pub(super) struct Session {
    supervisor: Arc<Supervisor>,
    channel: Channel,
    /// The consumers' tags.
    tags: Vec<ShortString>,
    streams: SelectAll<Items>,
    settle: mpsc::UnboundedSender<Settled>,
    settlements: mpsc::UnboundedReceiver<Settled>,
    ledger: AckLedger,
    queues: Vec<Consumed>,
    window: Window,
    seen: Seen,
    /// Whether nothing is taken in any more.
    stopping: bool,
}

impl Session {
    /// Begins to consume every queue.
    pub(super) async fn open(
        supervisor: Arc<Supervisor>,
        connection: &Connection,
        window: Window,
    ) -> lapin::Result<Self> {
        let (settle, settlements) = mpsc::unbounded_channel();
        let consumed = |spec| Consumed::new(spec, &supervisor);
        let queues = supervisor.specs.iter().map(consumed).collect();
        let mut session = Self {
            supervisor,
            channel: connection.create_channel().await?,
            tags: Vec::new(),
            streams: SelectAll::new(),
            settle,
            settlements,
            ledger: AckLedger::default(),
            queues,
            window,
            seen: Seen::default(),
            stopping: false,
        };
        for queue in 0..session.queues.len() {
            session.consume(queue).await?;
        }
        Ok(session)
    }

    async fn consume(&mut self, queue: usize) -> lapin::Result<()> {
        let spec = self.supervisor.specs[queue].clone();
        let prefetch = self.prefetch(queue);
        self.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let tag = format!("doorbell-{}", crate::ids::token());
        let options = BasicConsumeOptions::default();
        let consumer = self
            .channel
            .basic_consume(spec.queue.as_str().into(), tag.into(), options, FieldTable::default())
            .await?;
        tracing::debug!(queue = spec.queue, consumer = consumer.tag().as_str(), "consuming");
        self.tags.push(consumer.tag());
        let ended = futures_util::stream::once(std::future::ready(None));
        let items = consumer.map(Some).chain(ended).map(move |item| (queue, item));
        self.streams.push(items.boxed());
        Ok(())
    }

    /// Serves until the end.
    pub(super) async fn run(mut self) -> Ended {
        match self.serve().await {
            Err(reason) => Ended::Lost(reason),
            // Not the signal itself: it may have come while there is still something to settle.
            Ok(()) if self.stopping => Ended::Stopped,
            Ok(()) => {
                let window = self.better_window().unwrap_or(self.window);
                Ended::Replace(Box::new(self), window)
            }
        }
    }

    /// Takes nothing in any more, and goes on until everything is settled.
    pub(super) async fn drain(mut self) {
        let drained = match self.cancel_consumers().await {
            Ok(()) => self.serve().await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = drained {
            tracing::debug!(reason, "the channel was lost that another one had replaced");
        }
        // It may be closed already; then there is nothing to close.
        drop(answered(self.channel.close(200, "replaced".into())).await);
    }

    /// Returns once everything is settled after the end of intake, or another session would do
    /// better: a queue has been silent for too long, or the window is too small, too large, or full of what
    /// lingers.
    ///
    /// # Errors
    /// The channel is no use any more; says why.
    async fn serve(&mut self) -> Result<(), String> {
        let mut look = tokio::time::interval(LOOK);
        let mut batch = Vec::with_capacity(BATCH);
        let mut tell_at = Instant::now();
        let shutdown = self.supervisor.shutdown.clone();
        loop {
            let room = BATCH - batch.len();
            tokio::select! {
                () = shutdown.stopping(), if !self.stopping => {
                    self.cancel_consumers()
                        .await
                        .map_err(|error| format!("the channel was lost while stopping: {error}"))?;
                }
                count = self.settlements.recv_many(&mut batch, room), if room > 0 => {
                    if batch.len() == count {
                        tell_at = Instant::now() + LINGER;
                    }
                }
                () = tokio::time::sleep_until(tell_at), if !batch.is_empty() => {
                    self.apply(&mut batch).await.map_err(|error| lost(&error))?;
                }
                Some((queue, item)) = self.streams.next() => self.take(queue, item).await?,
                _ = look.tick() => {
                    if !self.channel.status().connected() {
                        return Err("the channel was lost".to_owned());
                    }
                    if !self.stopping && batch.is_empty() {
                        if self.is_silent() || self.is_clogged() || self.better_window().is_some() {
                            return Ok(());
                        }
                        self.seen.is_full = false;
                    }
                }
            }
            if self.stopping && self.outstanding() == 0 && self.streams.is_empty() {
                return Ok(());
            }
        }
    }

    async fn take(
        &mut self,
        queue: usize,
        item: Option<lapin::Result<Delivery>>,
    ) -> Result<(), String> {
        match item {
            // Not where another channel takes this one's place: a message that is handed back
            // comes again as one that may have been begun.
            Some(Ok(delivery)) if self.supervisor.shutdown.is_stopping() => {
                self.ledger.forget(delivery.delivery_tag);
                hand_back(&self.channel, delivery.delivery_tag).await.map_err(|error| lost(&error))
            }
            Some(Ok(delivery)) => {
                let consumed = &mut self.queues[queue];
                consumed.outstanding += 1;
                consumed.last_came = Instant::now();
                self.seen.is_full |= self.is_full(queue);
                self.seen.bytes += delivery.data.len();
                self.seen.largest = self.seen.largest.max(delivery.data.len());
                let incoming = self.incoming(queue, delivery);
                // Nobody listens any more when the service is stopping: the message is dropped,
                // and so handed back.
                drop(self.supervisor.sender.try_send(incoming));
                Ok(())
            }
            Some(Err(error)) => {
                Err(format!("consumer of {} failed: {error}", self.queues[queue].name))
            }
            None if self.stopping => Ok(()),
            None => {
                let name = Arc::clone(&self.queues[queue].name);
                tracing::warn!(
                    queue = &*name,
                    "consumer was cancelled by RabbitMQ: was the queue deleted?"
                );
                let shutdown = self.supervisor.shutdown.clone();
                match shutdown.until(self.reopen(queue)).await {
                    Some(Err(error)) => {
                        Err(format!("queue {name} can't be consumed: {}", sentence(&error)))
                    }
                    Some(Ok(())) | None => Ok(()),
                }
            }
        }
    }

    /// Brings back the consumer of a queue that was deleted: the queue is declared anew.
    async fn reopen(&mut self, queue: usize) -> anyhow::Result<()> {
        self.supervisor.broker.redeclare().await?;
        answered(self.consume(queue)).await
    }

    fn outstanding(&self) -> usize {
        self.queues.iter().map(|queue| queue.outstanding).sum()
    }

    fn prefetch(&self, queue: usize) -> u16 {
        self.window.messages().saturating_mul(self.supervisor.specs[queue].weight)
    }

    fn is_full(&self, queue: usize) -> bool {
        self.queues[queue].outstanding >= usize::from(self.prefetch(queue))
    }

    /// Whether what lingers fills the window of a queue, and there is room for another session's.
    fn is_clogged(&self) -> bool {
        let filled = |number: usize| Filled {
            window: usize::from(self.prefetch(number)),
            messages: self.queues[number].outstanding,
            lingering: self.queues[number].counts.lingering.load(Ordering::Relaxed),
        };
        if !(0..self.queues.len()).map(filled).any(Filled::is_clogged) {
            return false;
        }
        let InHand { messages, bytes, lingering } = &*self.supervisor.in_hand;
        let messages = usize::try_from(messages.get()).unwrap_or(0);
        let not_lingering = messages.saturating_sub(lingering.load(Ordering::Relaxed));
        let windows = (0..self.queues.len()).map(|queue| usize::from(self.prefetch(queue)));
        has_room(windows.sum(), not_lingering, bytes.load(Ordering::Relaxed))
    }

    fn better_window(&self) -> Option<Window> {
        let weights = self.supervisor.specs.iter().map(|spec| usize::from(spec.weight));
        self.window.better(self.seen, weights.sum())
    }

    fn is_silent(&self) -> bool {
        let silent =
            |queue: &Consumed| queue.outstanding == 0 && queue.last_came.elapsed() > SILENCE;
        self.queues.iter().any(silent)
    }

    fn incoming(&self, queue: usize, delivery: Delivery) -> Incoming {
        let Consumed { name, counts, .. } = &self.queues[queue];
        let what = (delivery.delivery_tag, queue, delivery.data.len());
        let settle = Settle::new(what, self.settle.clone(), Arc::clone(counts));
        Incoming { queue: Arc::clone(name), settle, received: delivery.into() }
    }

    /// Tells the broker what was settled.
    async fn apply(&mut self, batch: &mut Vec<Settled>) -> lapin::Result<()> {
        let (mut settled, mut afterwards) = (Vec::with_capacity(batch.len()), Vec::new());
        for Settled { tag, queue, bytes, settlement, afterwards: after } in batch.drain(..) {
            let outstanding = &mut self.queues[queue].outstanding;
            *outstanding = outstanding.saturating_sub(1);
            self.seen.bytes = self.seen.bytes.saturating_sub(bytes);
            match settlement {
                Settlement::Ack => {
                    settled.push(tag);
                    afterwards.extend(after);
                }
                Settlement::Requeue => {
                    self.ledger.forget(tag);
                    hand_back(&self.channel, tag).await?;
                }
            }
        }
        for ack in self.ledger.settle(&settled) {
            self.channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await?;
        }
        for after in afterwards {
            after();
        }
        Ok(())
    }

    async fn cancel_consumers(&mut self) -> lapin::Result<()> {
        self.stopping = true;
        for tag in std::mem::take(&mut self.tags) {
            self.channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
        }
        Ok(())
    }
}

fn lost(error: &lapin::Error) -> String {
    format!("the channel was lost: {error}")
}

async fn hand_back(channel: &Channel, tag: u64) -> lapin::Result<()> {
    channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
}
