//! Reading a stream from its start or an offset.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::time::Instant;

use super::connection::{Broker, close, in_time};
use super::message::Received;
use super::topology;
use crate::sentence::sentence;

/// Messages fetched ahead, and so the most that come at once. RabbitMQ counts no bytes: of the largest there may be
/// this is some 64 MiB.
pub const AT_ONCE: u16 = 64;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With the first message that is still there.
    First,
    /// With this offset, or with the first after it that is still there. Beyond the end nothing
    /// comes until the stream has grown so far.
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
    /// Begins to read, from the first node that lets us: one may have lost its replica of the stream, and breaks
    /// off the connection of whoever wants to read it there (3.10, after a node was frozen).
    ///
    /// # Errors
    /// No node does; says what the last one said.
    pub async fn open(broker: &Broker, stream: &str, from: From) -> anyhow::Result<Self> {
        let mut opened = Self::open_somewhere(broker, stream, from).await;
        for _ in 1..broker.nodes() {
            if let Err(error) = &opened {
                tracing::debug!(stream, error = sentence(error), "asking the next node");
                opened = Self::open_somewhere(broker, stream, from).await;
            }
        }
        opened
    }

    async fn open_somewhere(broker: &Broker, stream: &str, from: From) -> anyhow::Result<Self> {
        let connection = broker.connect("read-stream").await?;
        match begin(broker, &connection, stream, from).await {
            Ok((channel, consumer)) => Ok(Self { connection, channel, consumer }),
            Err(error) => {
                close(connection).await;
                Err(error)
            }
        }
    }

    /// The next messages: those that are there, at most [so many](AT_ONCE), or the first that comes within
    /// that time. None, if none comes.
    ///
    /// # Errors
    /// The connection was lost, or the stream deleted.
    pub async fn batch(&mut self, patience: Duration) -> anyhow::Result<Vec<Received>> {
        self.next(AT_ONCE.into(), patience).await
    }

    /// The same of one.
    ///
    /// # Errors
    /// As above.
    pub async fn one(&mut self, patience: Duration) -> anyhow::Result<Option<Received>> {
        Ok(self.next(1, patience).await?.pop())
    }

    async fn next(&mut self, most: usize, patience: Duration) -> anyhow::Result<Vec<Received>> {
        let mut batch = Vec::new();
        let mut until = Instant::now() + patience;
        let mut last_tag = None;
        while batch.len() < most
            && let Ok(item) = tokio::time::timeout_at(until, self.consumer.next()).await
        {
            let delivery = item.context("the stream's consumer was cancelled")??;
            last_tag = Some(delivery.delivery_tag);
            batch.push(delivery.into());
            // From now on only what is there already.
            until = Instant::now();
        }
        if let Some(tag) = last_tag {
            // A stream keeps its messages; this only lets the broker send more.
            let acknowledging = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            in_time(&self.connection, acknowledging).await?;
        }
        Ok(batch)
    }

    /// How many messages are ready in a queue, asked over the same connection.
    ///
    /// # Errors
    /// The connection was lost, or there is no such queue.
    pub async fn waiting(&self, queue: &str) -> anyhow::Result<u32> {
        in_time(&self.connection, topology::waiting(&self.channel, queue)).await
    }

    /// Ends the reading.
    pub async fn close(self) {
        close(self.connection).await;
    }
}

async fn begin(
    broker: &Broker,
    connection: &Connection,
    stream: &str,
    from: From,
) -> anyhow::Result<(Channel, Consumer)> {
    // Someone may have deleted it.
    broker.declare_topology(connection).await?;
    let channel = in_time(connection, connection.create_channel()).await?;
    in_time(connection, channel.basic_qos(AT_ONCE, BasicQosOptions::default())).await?;
    let mut arguments = FieldTable::default();
    let offset = match from {
        From::First => AMQPValue::LongString("first".into()),
        From::Offset(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
    };
    arguments.insert("x-stream-offset".into(), offset);
    let tag = format!("doorbell-{}", crate::ids::token());
    let options = BasicConsumeOptions::default();
    let consuming = channel.basic_consume(stream.into(), tag.into(), options, arguments);
    let consumer = in_time(connection, consuming).await?;
    Ok((channel, consumer))
}
