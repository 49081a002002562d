//! Counts what waits in the delay queues, in the sideline and for an operator, by asking RabbitMQ: the same few
//! questions every time, however much waits.

use std::time::Duration;

use doorbell_common::rung::DelayQueue;
use doorbell_platform::broker::Broker;
use doorbell_platform::broker::connection::{close, in_time};
use doorbell_platform::broker::topology::{
    self, QUARANTINE, REJECTED, RETRIES, SIDELINE_PAGES, SIDELINE_RETRIES, UNROUTED,
    sideline_queues,
};
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use lapin::{Channel, Connection};

use crate::metrics::Metrics;

const EVERY: Duration = Duration::from_secs(15);

/// Keeps the gauges true until the service is told to stop.
pub(crate) async fn count(broker: Broker, metrics: Metrics, shutdown: Shutdown) {
    let mut connection = None;
    let mut tick = tokio::time::interval(EVERY);
    while shutdown.until(tick.tick()).await.is_some() {
        match waiting(&broker, &mut connection).await {
            Ok(Waiting { later, aside, quarantine, rejected }) => {
                metrics.waiting.set(later);
                metrics.sideline.set(aside);
                metrics.quarantine.set(quarantine);
                metrics.rejected_waiting.set(rejected);
            }
            Err(error) => {
                tracing::debug!(error = sentence(&error), "waiting messages not counted");
                connection = None;
            }
        }
    }
    if let Some(connection) = connection {
        close(connection).await;
    }
}

/// How many messages wait, and for what.
struct Waiting {
    /// For their time, or to be decided.
    later: i64,
    aside: i64,
    quarantine: i64,
    rejected: i64,
}

async fn waiting(broker: &Broker, connection: &mut Option<Connection>) -> anyhow::Result<Waiting> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(broker.connect("count").await?),
    };
    in_time(connection, count_over(connection)).await
}

async fn count_over(connection: &Connection) -> anyhow::Result<Waiting> {
    let channel = connection.create_channel().await?;
    let later = DelayQueue::all().map(DelayQueue::name);
    let later = later.chain([RETRIES, SIDELINE_RETRIES, UNROUTED].map(str::to_owned));
    let aside = sideline_queues().into_iter().chain([SIDELINE_PAGES.to_owned()]);
    let waiting = Waiting {
        later: sum(&channel, later).await?,
        aside: sum(&channel, aside).await?,
        quarantine: topology::waiting(&channel, QUARANTINE).await?.into(),
        rejected: topology::waiting(&channel, REJECTED).await?.into(),
    };
    channel.close(200, "counted".into()).await?;
    Ok(waiting)
}

async fn sum(channel: &Channel, queues: impl Iterator<Item = String>) -> anyhow::Result<i64> {
    let mut sum = 0;
    for queue in queues {
        sum += i64::from(topology::waiting(channel, &queue).await?);
    }
    Ok(sum)
}
