//! Consuming: messages arrive with a handle by which each is settled once, and whatever breaks
//! underneath is rebuilt.

mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use doorbell_common::window::Window;
use lapin::Connection;
use prometheus::IntGauge;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use session::{Ended, Session, Settled, Settlement};

pub use session::Afterwards;

use super::connection::{Broker, close, in_time, until_lost};
use super::message::Received;
use crate::backoff::Backoff;
use crate::health::{Dependency, Health};
use crate::metrics::gauge;
use crate::plumbing::Plumbing;
use crate::sentence::sentence;
use crate::service::Service;
use crate::shutdown::Shutdown;

/// A queue to consume.
#[derive(Clone, Debug)]
pub struct ConsumerSpec {
    /// Which one.
    pub queue: String,
    /// How many times the window of other queues its own is.
    pub weight: u16,
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
    /// Which of the session's queues it came from.
    queue: usize,
    bytes: usize,
    session: Option<mpsc::UnboundedSender<Settled>>,
    counts: Arc<Counts>,
    lingers: AtomicBool,
}

/// What is counted of messages until they are settled, those included whose channel was lost: what follows from
/// one of them is still to come.
#[derive(Debug)]
struct InHand {
    messages: IntGauge,
    bytes: AtomicUsize,
    lingering: AtomicUsize,
}

/// The same of the messages of one of a session's queues.
#[derive(Debug)]
struct Counts {
    of_all: Arc<InHand>,
    lingering: AtomicUsize,
}

impl Settle {
    /// A message came.
    fn new(
        (tag, queue, bytes): (u64, usize, usize),
        session: mpsc::UnboundedSender<Settled>,
        counts: Arc<Counts>,
    ) -> Self {
        counts.of_all.messages.inc();
        counts.of_all.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { tag, queue, bytes, session: Some(session), counts, lingers: AtomicBool::new(false) }
    }

    /// Says whether the message stays in hand for what others do, and nothing of ours. Where such messages fill the
    /// window of their queue, more than that are taken in.
    pub fn linger(&self, lingers: bool) {
        if self.lingers.load(Ordering::Relaxed) == lingers {
            return;
        }
        self.lingers.store(lingers, Ordering::Relaxed);
        for count in [&self.counts.lingering, &self.counts.of_all.lingering] {
            if lingers {
                count.fetch_add(1, Ordering::Relaxed);
            } else {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether RabbitMQ has taken the message back, since its channel was lost: it comes again, to us or to others.
    #[must_use]
    pub fn is_taken_back(&self) -> bool {
        self.session.as_ref().is_some_and(mpsc::UnboundedSender::is_closed)
    }

    /// The message is done with; what follows from it is confirmed.
    pub fn ack(mut self) {
        self.send(Settlement::Ack, None);
    }

    /// The same, and something is to be done once RabbitMQ was told; never, if it cannot be.
    pub fn ack_and(mut self, afterwards: Afterwards) {
        self.send(Settlement::Ack, Some(afterwards));
    }

    /// The message goes back to its queue, untouched.
    pub fn requeue(mut self) {
        self.send(Settlement::Requeue, None);
    }

    fn send(&mut self, settlement: Settlement, afterwards: Option<Afterwards>) {
        if let Some(session) = self.session.take() {
            let Self { tag, queue, bytes, .. } = *self;
            let settled = Settled { tag, queue, bytes, settlement, afterwards };
            // The channel may be gone; then the broker has taken the message back already.
            let _gone = session.send(settled).is_err();
        }
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        self.send(Settlement::Requeue, None);
        self.linger(false);
        self.counts.of_all.messages.dec();
        self.counts.of_all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
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
    /// At most `most` messages of each queue are with us unsettled, and no more bytes than
    /// [`doorbell_common::window`] allows, but for messages that [linger](Settle::linger).
    ///
    /// When the service is told to stop it cancels its consumers, hands back what nobody has
    /// begun, and goes on settling until nothing is left.
    ///
    /// # Errors
    /// Its metric is registered already.
    pub fn start(
        plumbing: &Plumbing,
        (specs, most): (Vec<ConsumerSpec>, u16),
        service: &Service,
    ) -> prometheus::Result<Self> {
        let room =
            specs.iter().map(|spec| usize::from(spec.weight) * usize::from(most)).sum::<usize>();
        // Twice, for a channel that takes the place of another.
        let (sender, messages) = mpsc::channel(2 * room.max(1));
        let messages_in_hand = gauge(
            &service.registry,
            "doorbell_messages_in_hand",
            "Messages that are being worked on, those included that RabbitMQ has taken back meanwhile.",
        )?;
        let in_hand = InHand {
            messages: messages_in_hand,
            bytes: AtomicUsize::new(0),
            lingering: AtomicUsize::new(0),
        };
        let (broker, health) = (plumbing.broker.clone(), plumbing.health.clone());
        let shutdown = service.shutdown.clone();
        let supervisor = Arc::new(Supervisor {
            broker,
            specs,
            most,
            health,
            shutdown: shutdown.clone(),
            sender,
            in_hand: in_hand.into(),
        });
        shutdown.spawn_vital("consumer", supervisor.run());
        Ok(Self { messages })
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

/// Keeps a connection with consumers up.
struct Supervisor {
    broker: Broker,
    specs: Vec<ConsumerSpec>,
    /// The most messages of each queue that may be with us unsettled.
    most: u16,
    health: Health,
    shutdown: Shutdown,
    sender: mpsc::Sender<Incoming>,
    in_hand: Arc<InHand>,
}

impl Supervisor {
    async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        while !self.shutdown.is_stopping() {
            let Some(opened) = self.shutdown.until(self.open()).await else { break };
            match opened {
                Ok((connection, session)) => {
                    let opened_at = Instant::now();
                    self.health.up(Dependency::RabbitmqConsume);
                    if let Err(reason) = self.serve(&connection, session).await {
                        self.health.down(Dependency::RabbitmqConsume, reason);
                    }
                    backoff.worked_for(opened_at.elapsed());
                    close(connection).await;
                }
                Err(error) => self.health.down(Dependency::RabbitmqConsume, sentence(&error)),
            }
            self.shutdown.until(backoff.wait()).await;
        }
    }

    async fn open(self: &Arc<Self>) -> anyhow::Result<(Connection, Session)> {
        let connection = self.broker.connect("consume").await?;
        self.broker.declare_topology(&connection).await?;
        let window = Window::new(self.most);
        let opening = Session::open(Arc::clone(self), &connection, window);
        let session = in_time(&connection, opening).await?;
        Ok((connection, session))
    }

    /// Serves one session after the other on one connection, until the service stops.
    ///
    /// # Errors
    /// The connection is no use any more; says why.
    async fn serve(
        self: &Arc<Self>,
        connection: &Connection,
        first: Session,
    ) -> Result<(), String> {
        let (mut session, replaced) = (first, TaskTracker::new());
        loop {
            let ended = tokio::select! {
                biased;
                ended = session.run() => ended,
                () = until_lost(connection) => Ended::Lost("the connection was lost".to_owned()),
            };
            match ended {
                Ended::Lost(reason) if self.shutdown.is_stopping() => {
                    tracing::warn!(reason, "what was in hand goes back to its queues");
                    break;
                }
                Ended::Lost(reason) => return Err(reason),
                Ended::Stopped => break,
                Ended::Replace(old, window) => {
                    tracing::debug!(window = window.messages(), "the channel is replaced");
                    let opening = Session::open(Arc::clone(self), connection, window);
                    session = in_time(connection, opening).await.map_err(|error| {
                        format!("the connection was lost: {}", sentence(&error))
                    })?;
                    replaced.spawn(old.drain());
                }
            }
        }
        replaced.close();
        replaced.wait().await;
        Ok(())
    }
}
