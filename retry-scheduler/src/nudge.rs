//! Keeps the delay queues moving. RabbitMQ's own worker moves what has expired to `doorbell.retries`.
//! After a kill of RabbitMQ (3.10) a lone message was seen to be nowhere for minutes, neither ready in
//! a queue nor with a consumer. It seems that this worker lost sight of it while queues began anew: it
//! asks for what it has missed only when the next one comes the same way. Where little is retried that
//! may be long, so each delay queue gets a next one: after every connection a few times, and now and
//! then.

use std::time::Duration;

use doorbell_common::rung::Rung;
use doorbell_platform::backoff::Backoff;
use doorbell_platform::broker::connection::{close, in_time};
use doorbell_platform::broker::{Broker, Message, Publisher};
use doorbell_platform::shutdown::Shutdown;
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use lapin::{Channel, Connection};

/// When to nudge, after a connection was made and then after each other; the last goes on for ever.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
];

/// Nudges every delay queue, again and again, until the service is told to stop.
pub(crate) async fn nudge(broker: Broker, publisher: Publisher, shutdown: Shutdown) {
    let mut backoff = Backoff::default();
    while !shutdown.is_stopping() {
        let connecting = shutdown.until(broker.connect("nudge"));
        let Some(connected) = connecting.await else { return };
        let nudged = match connected {
            Ok(connection) => {
                backoff.reset();
                let nudged = nudge_over(&connection, &publisher, &shutdown).await;
                close(connection).await;
                nudged
            }
            Err(error) => Err(error),
        };
        if let Err(error) = nudged {
            tracing::debug!(%error, "delay queues are not nudged");
            shutdown.until(backoff.wait()).await;
        }
    }
}

/// Returns when the service is told to stop.
async fn nudge_over(
    connection: &Connection,
    publisher: &Publisher,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let [.., last] = PAUSES;
    for pause in PAUSES.into_iter().chain(std::iter::repeat(last)) {
        if shutdown.until(tokio::time::sleep(pause)).await.is_none() {
            break;
        }
        let channel = in_time(connection, connection.create_channel()).await?;
        for rung in Rung::all() {
            in_time(connection, nudge_one(&channel, publisher, rung)).await?;
        }
        in_time(connection, channel.close(200, "nudged".into())).await?;
    }
    Ok(())
}

/// Sends the oldest message of a delay queue ahead of its time, to be put there again; if there is
/// none, one that says nothing.
async fn nudge_one(channel: &Channel, publisher: &Publisher, rung: Rung) -> anyhow::Result<()> {
    let got = channel.basic_get(rung.queue().into(), BasicGetOptions::default()).await?;
    match got {
        Some(oldest) => {
            oldest.acker.reject(BasicRejectOptions { requeue: false }).await?;
        }
        None => publisher.publish(Message::nudge(&rung.queue())).await?,
    }
    Ok(())
}
