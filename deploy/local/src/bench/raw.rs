//! The bare loops that everything is compared with: what the client, the protocol and the broker
//! allow on this machine when nothing else is done.

use std::time::Duration;

use anyhow::Context as _;
use axum::body::{Body, Bytes};
use axum::http::Request;
use doorbell_platform::ids;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::report::{Percentiles, Row};
use super::{Bench, DATA_BYTES, PUBLISHES};

/// Turns of one loop at most: enough to know what it can do.
const MOST: u64 = 60_000;
/// POSTs in flight at once.
const AT_ONCE: usize = 256;
/// Connections of the loop that uses hyper alone.
const CONNECTIONS: u64 = 64;
/// Messages acknowledged at once.
const ACKNOWLEDGED: u64 = 50;
/// Messages of the light load.
const LIGHT: u64 = 200;

impl Bench<'_> {
    /// POSTs with reqwest, as a dispatcher makes them.
    pub(super) async fn raw_reqwest(&self) -> anyhow::Result<Row> {
        let url = self.receiver.url("ok", "raw-reqwest");
        let body = Bytes::from(self.receiver.data(DATA_BYTES));
        let start = Instant::now();
        let posts = futures_util::stream::iter(0..self.deliveries.min(MOST))
            .map(|_| async {
                let answer = self.http.post(&url).body(body.clone()).send().await?;
                answer.error_for_status()?.bytes().await
            })
            .buffer_unordered(AT_ONCE);
        let failed = posts.filter(|result| std::future::ready(result.is_err())).count().await;
        anyhow::ensure!(failed == 0, "{failed} POSTs of the bare loop failed");
        Ok(Row::new("bare loop: reqwest", self.deliveries.min(MOST), start.elapsed()))
    }

    /// POSTs with hyper alone: the layer under reqwest, without its pool.
    pub(super) async fn raw_hyper(&self) -> anyhow::Result<Row> {
        let url: axum::http::Uri = self.receiver.url("ok", "raw-hyper").parse()?;
        let each = self.deliveries.min(MOST).div_ceil(CONNECTIONS);
        let body = Bytes::from(self.receiver.data(DATA_BYTES));
        let start = Instant::now();
        let loops = (0..CONNECTIONS).map(|_| hyper_loop(&url, &body, each));
        futures_util::future::try_join_all(loops).await?;
        Ok(Row::new("bare loop: hyper", each * CONNECTIONS, start.elapsed()))
    }

    /// Messages through a quorum queue: published with confirms, consumed, acknowledged 50 at once;
    /// and then 20 a second, each one POSTed as soon as it comes.
    pub(super) async fn raw_broker(&self) -> anyhow::Result<[Row; 2]> {
        let queue = format!("doorbell-bench-{}", ids::token());
        let publishing = connect(&self.stack.amqp_url).await?;
        let consuming = connect(&self.stack.amqp_url).await?;
        let channel = publishing.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), durable, arguments).await?;
        let start = Instant::now();
        let (published, consumed) = tokio::join!(
            publish_loop(&channel, &queue, self.deliveries.min(MOST)),
            consume_loop(&consuming, &queue, self.deliveries.min(MOST))
        );
        published.and(consumed).context("the bare loop through RabbitMQ")?;
        let fast = Row::new("bare loop: RabbitMQ", self.deliveries.min(MOST), start.elapsed());
        let light = self.raw_light(&channel, &consuming, &queue).await?;
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
        for connection in [publishing, consuming] {
            // How it ends says nothing of what was measured.
            let _broken = connection.close(200, "measured".into()).await.is_err();
        }
        Ok([fast, light])
    }

    /// The shortest way that there is from publishing to arrival.
    async fn raw_light(
        &self,
        channel: &Channel,
        consuming: &Connection,
        queue: &str,
    ) -> anyhow::Result<Row> {
        let url = self.receiver.url("ok", "raw-light");
        let consumer = consuming.create_channel().await?;
        let options = BasicConsumeOptions::default();
        let mut messages = consumer
            .basic_consume(queue.into(), "light".into(), options, FieldTable::default())
            .await?;
        let start = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        for _ in 0..LIGHT {
            tick.tick().await;
            let (body, options) = (self.receiver.data(DATA_BYTES), BasicPublishOptions::default());
            let properties = BasicProperties::default().with_delivery_mode(2);
            let confirm =
                channel.basic_publish("".into(), queue.into(), options, &body, properties).await?;
            let delivering = async {
                let message = messages.next().await.context("the consumer ended")??;
                self.http.post(&url).body(message.data).send().await?.error_for_status()?;
                consumer.basic_ack(message.delivery_tag, BasicAckOptions::default()).await?;
                anyhow::Ok(())
            };
            let (confirmed, delivered) = tokio::join!(confirm, delivering);
            confirmed?;
            delivered?;
        }
        let mut row = Row::new("bare loop: 20 a second", LIGHT, start.elapsed());
        row.times_ms = Percentiles::of(self.receiver.tally("raw-light").take_times());
        Ok(row)
    }
}

async fn hyper_loop(url: &axum::http::Uri, body: &Bytes, count: u64) -> anyhow::Result<()> {
    let authority = url.authority().context("no authority")?.as_str();
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream)).await?;
    let sending = async {
        for _ in 0..count {
            let request = Request::post(url.path())
                .header("host", authority)
                .body(Body::from(body.clone()))?;
            let answer = sender.send_request(request).await?;
            anyhow::ensure!(answer.status().is_success(), "a POST of the bare loop failed");
            answer.into_body().collect().await?;
        }
        drop(sender);
        anyhow::Ok(())
    };
    let (sent, closed) = tokio::join!(sending, connection);
    closed?;
    sent
}

async fn connect(url: &str) -> anyhow::Result<Connection> {
    Ok(Connection::connect(url, ConnectionProperties::default()).await?)
}

async fn publish_loop(channel: &Channel, queue: &str, count: u64) -> anyhow::Result<()> {
    let body = vec![b'x'; DATA_BYTES];
    let properties = || BasicProperties::default().with_delivery_mode(2);
    let publishing = futures_util::stream::iter(0..count)
        .map(|_| async {
            let options = BasicPublishOptions::default();
            let confirm = channel
                .basic_publish("".into(), queue.into(), options, &body, properties())
                .await?;
            confirm.await
        })
        .buffer_unordered(PUBLISHES);
    let failed = publishing.filter(|result| std::future::ready(result.is_err())).count().await;
    anyhow::ensure!(failed == 0, "{failed} messages were not confirmed");
    Ok(())
}

async fn consume_loop(connection: &Connection, queue: &str, count: u64) -> anyhow::Result<()> {
    const SILENCE: Duration = Duration::from_secs(30);
    let channel = connection.create_channel().await?;
    channel.basic_qos(500, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(queue.into(), "bench".into(), options, FieldTable::default()).await?;
    for n in 1..=count {
        let item = tokio::time::timeout(SILENCE, consumer.next()).await?;
        let delivery = item.context("the consumer ended")??;
        if n % ACKNOWLEDGED == 0 || n == count {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
    }
    Ok(())
}
