//! Publishing: a message counts as published once RabbitMQ has confirmed it, never before.
//!
//! A channel of RabbitMQ's remembers which node leads a queue. If it first publishes to a queue whose leader's
//! node has just died, it asks that node, and refuses every message for this queue until the node is back,
//! however long another one has led it (3.10, `rabbit_fifo_client:enqueue`; seen in a cluster of three). A
//! new channel knows better, so a refusal is answered with one.

mod error;
mod silence;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{Fuse, FutureExt as _};
use lapin::options::{BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ErrorKind, Event};
use prometheus::{Histogram, Registry};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::Instant;

pub use self::error::PublishError;

use self::silence::{Finding, Silence};
use super::connection::{Broker, close, in_time};
use super::message::Message;
use crate::backoff::Backoff;
use crate::health::{Dependency, Health};
use crate::metrics::{LATENCY_BUCKETS, histogram};
use crate::sentence::sentence;
use crate::shutdown::Shutdown;

/// Confirms that may be outstanding on one connection; RabbitMQ is no faster with more.
const WINDOW: usize = 1000;
/// How long a confirm may take before the publisher says that it does not know.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a message that is published again until it is confirmed. Long, because each copy
/// only adds to what keeps RabbitMQ busy; a connection that is lost says so at once.
const PATIENT_CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a channel is used at least, whatever it refuses: an operator may have given a queue a length,
/// too, and then no channel takes more.
const CHANNEL_LIFE: Duration = Duration::from_secs(1);
/// How often a connection that says nothing is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What is said of a connection on which nothing is answered.
const SILENT: &str = "it has answered nothing for ten seconds (a queue that has lost its leader or its \
                      majority stops all that is published over a connection)";

#[derive(Clone, Debug)]
enum Link {
    Down,
    Blocked(String),
    Up(Line),
}

/// A channel of the connection that is up.
#[derive(Clone, Debug)]
struct Line {
    channel: Channel,
    /// The connection's own: a confirm that the client forgets, which it may while its connection
    /// breaks, takes no room away from the next one.
    window: Arc<Semaphore>,
    /// Held while a message is given to the client.
    turn: Arc<Mutex<()>>,
    /// Whether RabbitMQ refused one of its messages.
    has_refused: Arc<AtomicBool>,
    /// How many of its messages were answered.
    answers: Arc<AtomicU64>,
    /// Why RabbitMQ has closed it.
    closed_because: Arc<OnceLock<String>>,
}

impl Line {
    async fn open(connection: &Connection) -> anyhow::Result<Self> {
        let channel = in_time(connection, connection.create_channel()).await?;
        in_time(connection, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self {
            channel,
            window: Arc::new(Semaphore::new(WINDOW)),
            turn: Arc::default(),
            has_refused: Arc::default(),
            answers: Arc::default(),
            closed_because: Arc::default(),
        })
    }

    /// What became of a message over which, or beside which, this was lost.
    fn lost(&self, error: &lapin::Error) -> PublishError {
        let ErrorKind::ProtocolError(amqp) = error.kind() else { return PublishError::Unknown };
        let reason = self.closed_because.get_or_init(|| amqp.get_message().to_string());
        PublishError::Closed(reason.clone())
    }

    fn anything_waits(&self) -> bool {
        self.window.available_permits() < WINDOW
    }

    /// Asks RabbitMQ for something that needs no right and no queue, and changes nothing.
    async fn ask(self) {
        if self.channel.basic_qos(0, BasicQosOptions::default()).await.is_ok() {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Publishes with confirms, over a connection of its own that it keeps up. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    link: watch::Receiver<Link>,
    suspect: Arc<Notify>,
    shutdown: Shutdown,
    confirm_seconds: Histogram,
}

impl Publisher {
    /// Starts the publisher's supervisor, which connects, declares the topology and rebuilds what
    /// breaks.
    ///
    /// # Errors
    /// Its metric is registered already.
    pub fn start(
        broker: Broker,
        health: Health,
        registry: &Registry,
        shutdown: &Shutdown,
    ) -> prometheus::Result<Self> {
        let (sender, link) = watch::channel(Link::Down);
        let suspect = Arc::new(Notify::new());
        let confirm_seconds = histogram(
            registry,
            "doorbell_confirm_duration_seconds",
            "Time from publishing a message to RabbitMQ's confirm.",
            &LATENCY_BUCKETS,
        )?;
        let supervisor = Supervisor { broker, health, link: sender, suspect: Arc::clone(&suspect) };
        shutdown.spawn_vital("publisher", supervisor.run(shutdown.clone()));
        Ok(Self { link, suspect, shutdown: shutdown.clone(), confirm_seconds })
    }

    /// Publishes one message and waits for its confirm.
    ///
    /// # Errors
    /// It was not confirmed; the error says what is known of it.
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.publish_within(CONFIRM_TIMEOUT, message).await
    }

    async fn publish_within(
        &self,
        at_most: Duration,
        message: Message,
    ) -> Result<(), PublishError> {
        let line = self.line()?;
        let deadline = Instant::now() + at_most;
        let window = Arc::clone(&line.window);
        let Ok(Ok(permit)) = tokio::time::timeout_at(deadline, window.acquire_owned()).await else {
            let full =
                || PublishError::Blocked(format!("{WINDOW} wait for their confirms already"));
            return Err(self.line().err().unwrap_or_else(full));
        };
        let (sender, answer) = oneshot::channel();
        let suspect = Arc::clone(&self.suspect);
        let seconds = self.confirm_seconds.clone();
        // In a task of its own, because neither the write nor the confirm survives being dropped:
        // a caller that gives up must not leave half a publish behind.
        self.shutdown.spawn(async move {
            let timer = seconds.start_timer();
            let result = publish_on(&line, message).await;
            match result {
                Ok(()) => timer.observe_duration(),
                Err(_) => {
                    timer.stop_and_discard();
                    suspect.notify_one();
                }
            }
            drop(permit);
            // Nobody waits any more when the deadline has passed.
            drop(sender.send(result));
        });
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(PublishError::Unknown),
        }
    }

    /// Publishes one message, again and again until it is confirmed: for successors of messages
    /// that we hold, whose copies can be told by their name. Gives up only when the message
    /// cannot be sent at all.
    ///
    /// # Errors
    /// The message itself is wrong.
    pub async fn publish_surely(&self, message: &Message) -> Result<(), PublishError> {
        let (mut backoff, mut copy) = (Backoff::default(), message.clone());
        loop {
            match self.publish_within(PATIENT_CONFIRM_TIMEOUT, copy).await {
                Ok(()) => return Ok(()),
                Err(error @ PublishError::Invalid(_)) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, to = message.routing_key, "publishing again");
                    backoff.wait().await;
                    copy = message.another_copy();
                }
            }
        }
    }

    /// Whether a message could be published now.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(&self) -> Result<(), PublishError> {
        self.line().map(drop)
    }

    fn line(&self) -> Result<Line, PublishError> {
        match &*self.link.borrow() {
            Link::Up(line) => Ok(line.clone()),
            Link::Blocked(reason) => Err(PublishError::Blocked(reason.clone())),
            Link::Down => Err(PublishError::Unreachable),
        }
    }
}

async fn publish_on(line: &Line, message: Message) -> Result<(), PublishError> {
    let name = |text: String| {
        lapin::types::ShortString::try_new(text).map_err(|e| PublishError::Invalid(e.to_string()))
    };
    let (exchange, key) = (name(message.exchange)?, name(message.routing_key)?);
    let options = BasicPublishOptions::default();
    let publishing =
        line.channel.basic_publish(exchange, key, options, &message.body, message.properties);
    let mut publishing = std::pin::pin!(publishing);
    // The client numbers a message, and then has it sent, all at the first poll: what another thread
    // has sent in between would get its confirm, and it that one's.
    let begun = {
        let _turn = line.turn.lock().unwrap_or_else(PoisonError::into_inner);
        publishing.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    };
    let sent = match begun {
        Poll::Ready(sent) => sent,
        Poll::Pending => publishing.await,
    };
    let confirm = sent.map_err(|error| line.lost(&error))?;
    let confirmation = confirm.await;
    line.answers.fetch_add(1, Ordering::Relaxed);
    match confirmation {
        Ok(Confirmation::Ack(_)) => Ok(()),
        Ok(Confirmation::Nack(_)) => {
            line.has_refused.store(true, Ordering::Relaxed);
            Err(PublishError::Refused)
        }
        Ok(Confirmation::NotRequested) => Err(PublishError::Unknown),
        Err(error) => Err(line.lost(&error)),
    }
}

struct Supervisor {
    broker: Broker,
    health: Health,
    link: watch::Sender<Link>,
    suspect: Arc<Notify>,
}

impl Supervisor {
    async fn run(self, shutdown: Shutdown) {
        let mut backoff = Backoff::default();
        while let Some(opened) = shutdown.until_finished(self.open()).await {
            match opened {
                Ok((connection, line)) => {
                    let opened_at = Instant::now();
                    shutdown.until_finished(self.watch_over(&connection, line)).await;
                    backoff.worked_for(opened_at.elapsed());
                    self.link.send_replace(Link::Down);
                    close(connection).await;
                }
                Err(error) => {
                    self.health.down(Dependency::RabbitmqPublish, sentence(&error));
                }
            }
            if shutdown.until_finished(backoff.wait()).await.is_none() {
                return;
            }
        }
    }

    async fn open(&self) -> anyhow::Result<(Connection, Line)> {
        let connection = self.broker.connect("publish").await?;
        self.broker.declare_topology(&connection).await?;
        let line = Line::open(&connection).await?;
        Ok((connection, line))
    }

    /// Returns once the connection or its channel can't be used any more.
    async fn watch_over(&self, connection: &Connection, mut line: Line) {
        let mut events = std::pin::pin!(connection.events_listener());
        let mut look = tokio::time::interval(LOOK);
        let mut opened_at = Instant::now();
        let mut alarm = None;
        let mut silence = Silence::new(opened_at);
        let mut asking = std::pin::pin!(Fuse::terminated());
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => alarm = Some(reason),
                    Some(Event::ConnectionUnblocked) => alarm = None,
                    _ => {}
                },
                () = self.suspect.notified() => {}
                () = &mut asking => {}
                _ = look.tick() => {}
            }
            if !(connection.status().connected() && line.channel.status().connected()) {
                let reason =
                    line.closed_because.get().map_or("the connection was lost", String::as_str);
                self.health.down(Dependency::RabbitmqPublish, reason);
                return;
            }
            let finding = silence.look(
                Instant::now(),
                line.answers.load(Ordering::Relaxed),
                line.anything_waits(),
            );
            if finding == Finding::Ask {
                asking.set(line.clone().ask().fuse());
            }
            let blocked = match (&alarm, finding) {
                (Some(alarm), _) => Some(alarm.clone()),
                (None, Finding::Silent) => Some(SILENT.to_owned()),
                (None, Finding::Fine | Finding::Ask) => None,
            };
            let is_up = blocked.is_none();
            if line.has_refused.load(Ordering::Relaxed)
                && is_up
                && opened_at.elapsed() >= CHANNEL_LIFE
            {
                match Line::open(connection).await {
                    // What the old one has yet to confirm keeps it open.
                    Ok(new) => line = new,
                    Err(error) => {
                        self.health.down(Dependency::RabbitmqPublish, sentence(&error));
                        return;
                    }
                }
                opened_at = Instant::now();
                silence = Silence::new(opened_at);
                tracing::info!("RabbitMQ refused messages: publishing goes on over a new channel");
            }
            self.say(blocked, &line);
        }
    }

    /// Says whether messages are taken now.
    fn say(&self, blocked: Option<String>, line: &Line) {
        match blocked {
            Some(reason) => {
                let detail = PublishError::Blocked(reason.clone()).to_string();
                self.health.down(Dependency::RabbitmqPublish, detail);
                self.link.send_replace(Link::Blocked(reason));
            }
            None => {
                self.health.up(Dependency::RabbitmqPublish);
                self.link.send_replace(Link::Up(line.clone()));
            }
        }
    }
}
