//! Reading a stream from a point in time or an offset.

use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::time::Timestamp;
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};

use super::connection::Broker;
use super::consumer::received;
use super::message::Received;

/// Messages fetched ahead.
const PREFETCH: u16 = 200;
/// How long the next message may take. A reader knows where to stop (it has put a mark there), so
/// silence is trouble, not the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With what was published at this time (or a little before: streams keep times by chunk and
    /// in seconds).
    Time(Timestamp),
    /// With this offset.
    Offset(u64),
}

/// Reads one stream, over a connection of its own.
#[derive(Debug)]
pub struct StreamReader {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
}

impl StreamReader {
    /// Begins to read.
    ///
    /// # Errors
    /// RabbitMQ is not reachable, or there is no such stream.
    pub async fn open(broker: &Broker, stream: &str, from: From) -> anyhow::Result<Self> {
        let connection = broker.connect("read-stream").await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let mut arguments = FieldTable::default();
        let offset = match from {
            From::Time(time) => AMQPValue::Timestamp(u64::try_from(time.as_seconds()).unwrap_or(0)),
            From::Offset(offset) => {
                AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX))
            }
        };
        arguments.insert("x-stream-offset".into(), offset);
        let tag = format!("doorbell-{}", crate::ids::token());
        let consumer = channel
            .basic_consume(stream.into(), tag.into(), BasicConsumeOptions::default(), arguments)
            .await?;
        Ok(Self { connection, channel, consumer })
    }

    /// The next message.
    ///
    /// # Errors
    /// The connection was lost, or nothing came for 30 s.
    pub async fn next(&mut self) -> anyhow::Result<Received> {
        let item = tokio::time::timeout(PATIENCE, self.consumer.next())
            .await
            .context("the stream is silent")?;
        let delivery = item.context("the stream's consumer was cancelled")??;
        // A stream keeps its messages; this only lets the broker send more.
        self.channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
        Ok(received(delivery))
    }

    /// Ends the reading.
    pub async fn close(self) {
        // It may be closed already; then there is nothing to close.
        drop(self.connection.close(200, "read".into()).await);
    }
}
