//! RabbitMQ as an outsider sees it: publishing to the exchange, looking into queues.

use doorbell_platform::broker::Message;
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

/// A connection of an outsider.
#[derive(Debug)]
pub struct Outsider {
    connection: Connection,
    /// Its channel, with confirms.
    pub channel: Channel,
}

impl Outsider {
    /// Connects.
    ///
    /// # Errors
    /// RabbitMQ is not there.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// A fresh channel, after one was closed by an error.
    ///
    /// # Errors
    /// RabbitMQ is not there.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(self.connection.create_channel().await?)
    }

    /// Publishes to `doorbell.events` and waits for the confirm.
    ///
    /// # Errors
    /// It was not confirmed.
    pub async fn publish(
        &self,
        event_type: &str,
        properties: BasicProperties,
        body: impl AsRef<[u8]>,
    ) -> anyhow::Result<()> {
        let (exchange, routing_key) = ("doorbell.events".to_owned(), event_type.to_owned());
        let body = body.as_ref().to_vec().into();
        self.publish_message(Message { exchange, routing_key, properties, body }).await
    }

    /// Publishes a message as our services do.
    ///
    /// # Errors
    /// It was not confirmed.
    pub async fn publish_message(&self, message: Message) -> anyhow::Result<()> {
        let Message { exchange, routing_key, properties, body } = message;
        let (options, to) = (BasicPublishOptions::default(), (exchange.into(), routing_key.into()));
        let confirm = self.channel.basic_publish(to.0, to.1, options, &body, properties).await?;
        anyhow::ensure!(confirm.await?.is_ack(), "not confirmed");
        Ok(())
    }

    /// Takes one message out of a queue.
    ///
    /// # Errors
    /// There is no such queue.
    pub async fn take(&self, queue: &str) -> anyhow::Result<Option<lapin::message::Delivery>> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await?;
        Ok(got.map(|message| message.delivery))
    }

    /// How many messages are ready in a queue.
    ///
    /// # Errors
    /// There is no such queue.
    pub async fn depth(&self, queue: &str) -> anyhow::Result<u32> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        Ok(self
            .channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await?
            .message_count())
    }

    /// The messages of a stream, from its start, once there are at least so many.
    ///
    /// # Errors
    /// There is no such stream, or there are not so many.
    pub async fn stream(
        &self,
        stream: &str,
        count: usize,
    ) -> anyhow::Result<Vec<lapin::message::Delivery>> {
        let (channel, mut consumer) = self.read(stream).await?;
        let mut messages = Vec::new();
        while messages.len() < count {
            let next =
                tokio::time::timeout(std::time::Duration::from_secs(30), consumer.next()).await;
            let Ok(Some(delivery)) = next else {
                anyhow::bail!("{stream} has {} messages, not {count}", messages.len())
            };
            let delivery = delivery?;
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
            messages.push(delivery);
        }
        channel.close(200, "read".into()).await?;
        Ok(messages)
    }

    /// All that a stream has: from its start until nothing comes for a second.
    ///
    /// # Errors
    /// There is no such stream.
    pub async fn whole_stream(
        &self,
        stream: &str,
    ) -> anyhow::Result<Vec<lapin::message::Delivery>> {
        let (channel, mut consumer) = self.read(stream).await?;
        let mut messages = Vec::new();
        let silence = std::time::Duration::from_secs(1);
        while let Ok(Some(delivery)) = tokio::time::timeout(silence, consumer.next()).await {
            let delivery = delivery?;
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
            messages.push(delivery);
        }
        channel.close(200, "read".into()).await?;
        Ok(messages)
    }

    async fn read(&self, stream: &str) -> anyhow::Result<(Channel, lapin::Consumer)> {
        let channel = self.channel().await?;
        channel.basic_qos(100, BasicQosOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        let consumer = channel
            .basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), arguments)
            .await?;
        Ok((channel, consumer))
    }
}

/// Properties of an event of a tenant.
#[must_use]
pub fn event(tenant: &str, id: Option<&str>, more: &[(&str, &str)]) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("doorbell-tenant".into(), AMQPValue::LongString(tenant.into()));
    for (name, value) in more {
        headers.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    match id {
        Some(id) => properties.with_message_id(id.into()).with_timestamp(1_700_000_000),
        None => properties,
    }
}

/// A header's text.
#[must_use]
pub fn header(delivery: &lapin::message::Delivery, name: &str) -> Option<String> {
    let headers = delivery.properties.headers().as_ref()?;
    let (_, value) = headers.inner().iter().find(|(key, _)| key.as_str() == name)?;
    if let AMQPValue::LongString(text) = value {
        return Some(String::from_utf8_lossy(text.as_bytes()).into_owned());
    }
    None
}
