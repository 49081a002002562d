//! The way back from the delay queues: keeps it moving, and leads it round where it is blocked.
//!
//! RabbitMQ's own workers, one for each delay queue, move what has expired to the retry-schedulers' inboxes,
//! `doorbell.retries` and that of the sideline. Two things were seen to stop them (3.10):
//!
//! - After a kill of RabbitMQ a lone message may be nowhere for minutes, neither ready in a queue nor with
//!   a consumer. It seems that the worker loses sight of it while queues begin anew: it asks for what it
//!   has missed only when the next one comes the same way. So each delay queue gets a next one, now and
//!   then: a nudge.
//! - In a cluster, a worker that begins anew because its node has died may be quicker than the new leader
//!   of the inbox. It believes then that the dead node leads that queue, and moves nothing until
//!   this node is back. But it tries again every few seconds, and each time asks the exchange where the
//!   message is to go (`rabbit_fifo_dlx_worker`). So, when nudges do not come back, the inboxes are
//!   unbound for a while: everything for them comes by the alternate exchange to `doorbell.unrouted`, where
//!   we take it all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use doorbell_common::rung::DelayQueue;
use doorbell_common::sideline::Lane;
use doorbell_common::time::Timestamp;
use doorbell_platform::backoff::Backoff;
use doorbell_platform::broker::connection::{close, in_time};
use doorbell_platform::broker::topology;
use doorbell_platform::broker::{Broker, Message, Publisher, Received};
use doorbell_platform::clock;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use lapin::{Channel, Connection};
use prometheus::IntGauge;
use tokio::time::Instant;

/// When to nudge, after a connection was made and then after each other; the last goes on for ever.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(30)];
/// How long a nudge may take to come back.
const PATIENCE: Duration = Duration::from_secs(10);
/// What came back so long before it was nudged is as good: clocks need not agree to the millisecond.
const SLACK: Duration = Duration::from_secs(2);
/// With more in line than this a nudge may well be late without anything being blocked.
const LONG_LINE: u32 = 256;
/// How long a detour lasts. Then the direct way is tried again: if it is blocked still, retries are late
/// once more, by less than a minute.
const DETOUR: Duration = Duration::from_secs(30 * 60);
/// How often the other replicas are told of what came back to this one.
const TELL: Duration = Duration::from_secs(2);

/// When something last came back from each delay queue, to this replica. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CameBack {
    /// In milliseconds; 0: never.
    at: Arc<HashMap<DelayQueue, AtomicI64>>,
}

impl Default for CameBack {
    fn default() -> Self {
        Self { at: Arc::new(DelayQueue::all().map(|queue| (queue, AtomicI64::new(0))).collect()) }
    }
}

impl CameBack {
    /// A message came.
    pub(crate) fn note(&self, received: &Received) {
        let at = received.left_delay_queue().and_then(|queue| self.at.get(&queue));
        if let Some(at) = at {
            at.store(clock::steady().as_millis(), Ordering::Relaxed);
        }
    }

    fn last(&self, queue: DelayQueue) -> Timestamp {
        let at = self.at.get(&queue).map_or(0, |at| at.load(Ordering::Relaxed));
        Timestamp::from_millis(at)
    }

    /// Tells the other replicas, until the service is told to stop.
    pub(crate) async fn tell(self, store: Store, shutdown: Shutdown) {
        let mut told: Vec<Timestamp> = DelayQueue::all().map(|queue| self.last(queue)).collect();
        let mut tell = tokio::time::interval(TELL);
        tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until(tell.tick()).await.is_some() {
            let now: Vec<(DelayQueue, Timestamp)> =
                DelayQueue::all().map(|queue| (queue, self.last(queue))).collect();
            let changed = now.iter().zip(&told).filter(|((_, at), told)| at != *told);
            let news: Vec<(DelayQueue, Duration)> =
                changed.map(|((queue, at), _)| (*queue, clock::steady().since(*at))).collect();
            if news.is_empty() || !store.is_up() {
                continue;
            }
            match store.note_came_back(&news).await {
                Ok(()) => told = now.into_iter().map(|(_, at)| at).collect(),
                Err(error) => tracing::debug!(%error, "what came back is not told"),
            }
        }
    }
}

/// Watches over the way back.
pub(crate) struct WayBack {
    pub(crate) broker: Broker,
    pub(crate) publisher: Publisher,
    pub(crate) store: Store,
    pub(crate) came_back: CameBack,
    /// 1 on a detour.
    pub(crate) detour: IntGauge,
}

impl WayBack {
    /// Nudges every delay queue, and looks what comes back, again and again, until the service is told to
    /// stop.
    pub(crate) async fn watch(self, shutdown: Shutdown) {
        let mut backoff = Backoff::default();
        while !shutdown.is_stopping() {
            let connecting = shutdown.until(self.broker.connect("nudge"));
            let Some(connected) = connecting.await else { return };
            let watched = match connected {
                Ok(connection) => {
                    let opened_at = Instant::now();
                    let watched = self.watch_over(&connection, &shutdown).await;
                    close(connection).await;
                    backoff.worked_for(opened_at.elapsed());
                    watched
                }
                Err(error) => Err(error),
            };
            if let Err(error) = watched {
                tracing::debug!(error = sentence(&error), "delay queues are not nudged");
                shutdown.until(backoff.wait()).await;
            }
        }
    }

    /// Returns when the service is told to stop.
    async fn watch_over(&self, connection: &Connection, shutdown: &Shutdown) -> anyhow::Result<()> {
        let [.., last] = PAUSES;
        for pause in PAUSES.into_iter().chain(std::iter::repeat(last)) {
            if shutdown.until(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
            let nudged_at = clock::steady();
            let channel = in_time(connection, connection.create_channel()).await?;
            for queue in DelayQueue::all() {
                in_time(connection, nudge(&channel, &self.publisher, queue)).await?;
            }
            if shutdown.until(tokio::time::sleep(PATIENCE)).await.is_none() {
                break;
            }
            in_time(connection, self.look(&channel, nudged_at)).await?;
            in_time(connection, channel.close(200, "nudged".into())).await?;
        }
        Ok(())
    }

    /// Looks what came back since all were nudged, and leads the way round if something did not. Whoever
    /// connects to RabbitMQ binds the inboxes again, so on a detour they are unbound each time.
    async fn look(&self, channel: &Channel, nudged_at: Timestamp) -> anyhow::Result<()> {
        if !self.store.is_up() {
            return Ok(());
        }
        let silent = self.silent(nudged_at).await?;
        let mut is_on_detour = self.store.is_on_detour().await?;
        if self.is_blocked(channel, &silent).await? {
            if !is_on_detour {
                let queues: Vec<String> = silent.iter().map(|queue| queue.name()).collect();
                tracing::warn!(
                    ?queues,
                    "nothing comes back from delay queues: all that does goes round doorbell.retries for a while"
                );
            }
            self.store.begin_detour(DETOUR).await?;
            is_on_detour = true;
        }
        if is_on_detour {
            topology::unbind_retries(channel).await?;
        } else {
            topology::bind_retries(channel).await?;
        }
        self.detour.set(i64::from(is_on_detour));
        Ok(())
    }

    /// Whether nothing comes back from one of these, though there is no line to wait in.
    async fn is_blocked(&self, channel: &Channel, silent: &[DelayQueue]) -> anyhow::Result<bool> {
        for lane in Lane::ALL {
            let inbox = topology::retries(lane);
            if silent.iter().any(|queue| queue.lane == lane)
                && topology::waiting(channel, inbox).await? < LONG_LINE
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The delay queues from which nothing came back, to any replica, since all were nudged.
    async fn silent(&self, nudged_at: Timestamp) -> anyhow::Result<Vec<DelayQueue>> {
        let others = self.store.came_back().await?;
        let now = clock::steady();
        let nudged = now.since(nudged_at) + SLACK;
        let last = |queue: DelayQueue| {
            let ours = now.since(self.came_back.last(queue));
            others.get(&queue).map_or(ours, |theirs| ours.min(*theirs))
        };
        Ok(DelayQueue::all().filter(|queue| last(*queue) > nudged).collect())
    }
}

/// Sends the oldest message of a delay queue ahead of its time, to be put there again; if there is
/// none, one that says nothing.
async fn nudge(channel: &Channel, publisher: &Publisher, queue: DelayQueue) -> anyhow::Result<()> {
    let got = channel.basic_get(queue.name().into(), BasicGetOptions::default()).await?;
    match got {
        Some(oldest) => {
            oldest.acker.reject(BasicRejectOptions { requeue: false }).await?;
        }
        None => publisher.publish(Message::nudge(&queue.name())).await?,
    }
    Ok(())
}
