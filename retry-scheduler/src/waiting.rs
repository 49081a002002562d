//! Counts what waits in the delay queues and in the sideline, by asking RabbitMQ: the same few questions every time,
//! however much waits.

use std::time::Duration;

use doorbell_common::rung::Rung;
use doorbell_platform::broker::Broker;
use doorbell_platform::broker::connection::{close, in_time};
use doorbell_platform::broker::topology::{
    self, RETRIES, SIDELINE_PAGES, UNROUTED, sideline_queues,
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
            Ok((waiting, sideline)) => {
                metrics.waiting.set(waiting);
                metrics.sideline.set(sideline);
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

async fn waiting(
    broker: &Broker,
    connection: &mut Option<Connection>,
) -> anyhow::Result<(i64, i64)> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(broker.connect("count").await?),
    };
    in_time(connection, count_over(connection)).await
}

/// What waits in the delay queues and to be decided, and what in the sideline.
async fn count_over(connection: &Connection) -> anyhow::Result<(i64, i64)> {
    let channel = connection.create_channel().await?;
    let later = Rung::all().map(Rung::queue).chain([RETRIES, UNROUTED].map(str::to_owned));
    let aside = sideline_queues().into_iter().chain([SIDELINE_PAGES.to_owned()]);
    let sums = (sum(&channel, later).await?, sum(&channel, aside).await?);
    channel.close(200, "counted".into()).await?;
    Ok(sums)
}

async fn sum(channel: &Channel, queues: impl Iterator<Item = String>) -> anyhow::Result<i64> {
    let mut sum = 0;
    for queue in queues {
        sum += i64::from(topology::waiting(channel, &queue).await?);
    }
    Ok(sum)
}
