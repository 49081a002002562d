//! Sends dispatchers on errands, over RabbitMQ, and waits for what came of them. The control-plane
//! itself never calls an endpoint: only dispatchers stand in the network that may.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::StatusCode;
use doorbell_common::ids::TenantId;
use doorbell_common::subscription::Subscription;
use doorbell_common::verification::PATIENCE;
use doorbell_platform::backoff::Backoff;
use doorbell_platform::broker::connection::{close, in_time, until_lost};
use doorbell_platform::broker::topology::{REPLIES, TESTS};
use doorbell_platform::broker::{Broker, Errand, Message, Publisher};
use doorbell_platform::ids;
use doorbell_platform::problem::Problem;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use futures_util::StreamExt as _;
use lapin::Connection;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// What a dispatcher may take beside the attempt itself.
const MARGIN: Duration = Duration::from_secs(5);

/// How long one waits for a queue that answers can come to.
const SOON: Duration = Duration::from_secs(5);

/// How many errands of one tenant may be under way: each keeps a dispatcher as long as an endpoint likes.
const OF_ONE_TENANT: usize = 32;

/// Who waits for an answer.
type Waiting = Arc<Mutex<HashMap<String, Waiter>>>;

#[derive(Debug)]
struct Waiter {
    tenant: TenantId,
    answer: oneshot::Sender<Vec<u8>>,
}

/// An errand that is under way, until this is dropped.
struct UnderWay {
    id: String,
    waiting: Waiting,
}

impl UnderWay {
    /// Notes an errand of a tenant, and where its answer is to go.
    fn begin(
        waiting: &Waiting,
        tenant: &TenantId,
        answer: oneshot::Sender<Vec<u8>>,
    ) -> Result<Self, Problem> {
        let mut waiters = lock(waiting);
        let under_way = waiters.values().filter(|waiter| waiter.tenant == *tenant).count();
        if under_way >= OF_ONE_TENANT {
            let detail = format!(
                "{OF_ONE_TENANT} endpoints of tenant {tenant} are being called at the moment, which is the most: try again"
            );
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(1));
        }
        let id = ids::token();
        waiters.insert(id.clone(), Waiter { tenant: tenant.clone(), answer });
        Ok(Self { id, waiting: Arc::clone(waiting) })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.id);
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<String, Waiter>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends dispatchers on errands. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Errands {
    publisher: Publisher,
    waiting: Waiting,
    /// The queue that answers come to, while there is one.
    replies: watch::Receiver<Option<ShortString>>,
}

impl Errands {
    pub(crate) fn start(broker: Broker, publisher: Publisher, shutdown: &Shutdown) -> Self {
        let (sender, replies) = watch::channel(None);
        let waiting = Waiting::default();
        let receiving = receive(broker, Arc::clone(&waiting), sender, shutdown.clone());
        shutdown.spawn_vital("receiver of errands' answers", receiving);
        Self { publisher, waiting, replies }
    }

    /// The queue for answers, once there is one: it may be a moment later there than RabbitMQ is.
    async fn reply_to(&self) -> Option<ShortString> {
        let mut replies = self.replies.clone();
        let there = tokio::time::timeout(SOON, replies.wait_for(Option::is_some)).await;
        there.ok()?.ok()?.clone()
    }

    /// Makes one attempt of a test event.
    pub(crate) async fn test(&self, subscription: &Subscription) -> Result<Value, Problem> {
        self.run(Errand::Test, subscription, subscription.timeout.0).await
    }

    /// Asks an endpoint whether it wants our POSTs.
    pub(crate) async fn verify(&self, subscription: &Subscription) -> Result<Value, Problem> {
        self.run(Errand::Verify, subscription, PATIENCE).await
    }

    async fn run(
        &self,
        errand: Errand,
        subscription: &Subscription,
        timeout: Duration,
    ) -> Result<Value, Problem> {
        self.publisher.check().map_err(|error| Problem::unavailable(error.for_caller()))?;
        let reply_to = self.reply_to().await.ok_or_else(|| {
            Problem::unavailable("RabbitMQ is not reachable, so no dispatcher can be asked")
        })?;
        let (sender, answer) = oneshot::channel();
        let under_way = UnderWay::begin(&self.waiting, &subscription.tenant, sender)?;
        let mut message = Message::internal(TESTS, subscription.id.to_string().into_bytes());
        message.properties = message
            .properties
            .with_reply_to(reply_to)
            .with_correlation_id(under_way.id.as_str().into())
            .with_type(errand.as_str().into())
            .with_message_id(ids::event_id().as_str().into());
        self.publisher
            .publish(message)
            .await
            .map_err(|error| Problem::unavailable(error.for_caller()))?;
        let answer = tokio::time::timeout(timeout + MARGIN, answer).await.ok().and_then(Result::ok);
        let none = || Problem::unavailable("no dispatcher has answered: is one running?");
        understand(&answer.ok_or_else(none)?)
    }
}

fn understand(answer: &[u8]) -> Result<Value, Problem> {
    let answer: Value = serde_json::from_slice(answer)
        .map_err(|_| Problem::unavailable("a dispatcher gave an answer that is not understood"))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => {
            Err(Problem::unavailable(format!("the dispatcher could not make the attempt: {error}")))
        }
        None => Ok(answer),
    }
}

/// Keeps a queue of our own for answers, and gives each to whoever waits for it, until nobody needs that any
/// more.
async fn receive(
    broker: Broker,
    waiting: Waiting,
    replies: watch::Sender<Option<ShortString>>,
    shutdown: Shutdown,
) {
    let mut backoff = Backoff::default();
    while let Some(connected) = shutdown.until_finished(broker.connect("replies")).await {
        let received = match connected {
            Ok(connection) => {
                let opened_at = Instant::now();
                let receiving = receive_over(&broker, &connection, &waiting, &replies);
                let received = shutdown.until_finished(receiving).await;
                replies.send_replace(None);
                close(connection).await;
                backoff.worked_for(opened_at.elapsed());
                received
            }
            Err(error) => Some(Err(error)),
        };
        if let Some(Err(error)) = received {
            tracing::debug!(error = sentence(&error), "no queue for the answers of errands");
        }
        shutdown.until_finished(backoff.wait()).await;
    }
}

/// Returns once the connection is no use any more.
async fn receive_over(
    broker: &Broker,
    connection: &Connection,
    waiting: &Waiting,
    replies: &watch::Sender<Option<ShortString>>,
) -> anyhow::Result<()> {
    broker.declare_topology(connection).await?;
    let channel = in_time(connection, connection.create_channel()).await?;
    let queue = format!("doorbell.replies.{}", ids::token());
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let name = || ShortString::from(queue.as_str());
    in_time(connection, channel.queue_declare(name(), options, FieldTable::default())).await?;
    let binding = channel.queue_bind(
        name(),
        REPLIES.into(),
        name(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    in_time(connection, binding).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consuming = channel.basic_consume(name(), "replies".into(), options, FieldTable::default());
    let mut consumer = in_time(connection, consuming).await?;
    replies.send_replace(Some(name()));
    loop {
        let delivery = tokio::select! {
            delivery = consumer.next() => delivery.context("the consumer of answers was cancelled")??,
            () = until_lost(connection) => anyhow::bail!("the connection was lost"),
        };
        let id = delivery
            .properties
            .correlation_id()
            .as_ref()
            .map(ShortString::as_str)
            .unwrap_or_default()
            .to_owned();
        if let Some(waiter) = lock(waiting).remove(&id) {
            // Whoever waited may have given up.
            let _gone = waiter.answer.send(delivery.data).is_err();
        }
    }
}
