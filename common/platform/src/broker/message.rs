//! Messages as we publish them, and as [they came](Received). Headers are always built afresh: `x-death` copied
//! into a republish can make RabbitMQ 3.x drop the message after a positive confirm.

mod received;
mod redriven;

use bytes::Bytes;
use doorbell_common::held::Resumed;
use doorbell_common::intake::{COPY_HEADER, TENANT_HEADER};
use doorbell_common::text::shortened;
use doorbell_common::wire;
use doorbell_common::work::Work;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use super::topology;

pub use received::Received;

/// The most bytes of headers that travel on. All properties must fit one frame (128 KiB by
/// default), and a frame that does not closes the connection, again and again.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The most bytes of a reason, which has its place beside those.
const MAX_REASON_BYTES: usize = 4 * 1024;

/// The content type of work that our services hand to each other.
const WORK_TYPE: &str = "application/vnd.doorbell.work";

/// The content type of a note in the stream of held deliveries.
const RESUMED_TYPE: &str = "application/vnd.doorbell.resumed";

/// The content type of a message that says nothing.
const NUDGE_TYPE: &str = "application/vnd.doorbell.nudge";

/// The content type of a message that fills up a stream's segment.
const PADDING_TYPE: &str = "application/vnd.doorbell.padding";

/// Why a message was rejected, and with which routing key it had come.
const REASON_HEADER: &str = "doorbell-reason";
const ROUTING_KEY_HEADER: &str = "doorbell-routing-key";

/// How often a message was published again because no queue took it.
const RETURNS_HEADER: &str = "doorbell-returns";

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Message {
    /// To which exchange.
    pub exchange: String,
    /// With which routing key.
    pub routing_key: String,
    /// Everything beside the body.
    pub properties: BasicProperties,
    /// The body. Cheap to clone, for a message may have to be published again.
    pub body: Bytes,
}

impl Message {
    /// A message to one of our own queues.
    #[must_use]
    pub fn internal(queue: &str, body: impl Into<Bytes>) -> Self {
        Self {
            exchange: topology::INTERNAL.to_owned(),
            routing_key: queue.to_owned(),
            properties: persistent(),
            body: body.into(),
        }
    }

    /// Work for one of our own queues, under its name.
    ///
    /// # Errors
    /// The work can't be written, which no work that came over the wire brings about.
    pub fn work(queue: &str, work: &Work) -> anyhow::Result<Self> {
        let mut message = Self::internal(queue, wire::encode(work)?);
        message.properties = message
            .properties
            .with_message_id(ShortString::try_new(work.name())?)
            .with_content_type(WORK_TYPE.into());
        message.add_header(COPY_HEADER, crate::ids::token());
        Ok(message)
    }

    /// The same message to be published once more, not knowing what became of the first: if it is told which copy
    /// it is, this is another one.
    #[must_use]
    pub fn another_copy(&self) -> Self {
        let mut copy = self.clone();
        let headers = self.properties.headers().as_ref();
        if headers.is_some_and(|headers| headers.contains_key(COPY_HEADER)) {
            copy.add_header(COPY_HEADER, crate::ids::token());
        }
        copy
    }

    /// Adds a header, or puts it into the place of the one that has this name.
    pub fn add_header(&mut self, name: &str, text: impl Into<LongString>) {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
        self.properties = std::mem::take(&mut self.properties).with_headers(headers);
    }

    /// Work for the sideline, whose exchange spreads it by its tenant.
    ///
    /// # Errors
    /// As for [`Message::work`].
    pub fn aside(work: &Work) -> anyhow::Result<Self> {
        let mut message = Self::work(work.first_event().event_type.as_str(), work)?;
        message.exchange = topology::SIDELINE.to_owned();
        message.add_header(TENANT_HEADER, work.tenant().as_str());
        Ok(message)
    }

    /// A note for the stream of held deliveries.
    ///
    /// # Errors
    /// Never: its plain fields can be written.
    pub fn resumed(resumed: &Resumed) -> anyhow::Result<Self> {
        let mut message = Self::internal(topology::HELD, serde_json::to_vec(resumed)?);
        message.properties = message
            .properties
            .with_message_id(ShortString::try_new(crate::ids::token())?)
            .with_content_type(RESUMED_TYPE.into());
        Ok(message)
    }

    /// A message for a delay queue that says nothing and expires at once, if it is alone there.
    #[must_use]
    pub fn nudge(queue: &str) -> Self {
        let mut message = Self::internal(queue, Bytes::new());
        message.properties =
            message.properties.with_expiration("1".into()).with_content_type(NUDGE_TYPE.into());
        message
    }

    /// A message for a stream that only takes so many bytes there.
    #[must_use]
    pub fn padding(stream: &str, bytes: usize) -> Self {
        let mut message = Self::internal(stream, vec![0; bytes]);
        message.properties = message
            .properties
            .with_content_type(PADDING_TYPE.into())
            .with_message_id(crate::ids::token().as_str().into());
        message
    }

    /// The same message for `doorbell.rejected`, body and properties as they came, with the
    /// reason.
    #[must_use]
    pub fn rejected(received: Received, reason: &str) -> Self {
        let routing_key = received.routing_key.clone();
        let mut message = Self::again(received);
        message.exchange = topology::INTERNAL.to_owned();
        message.routing_key = topology::REJECTED.to_owned();
        message.add_header(REASON_HEADER, shortened(reason.to_owned(), MAX_REASON_BYTES));
        message.add_header(ROUTING_KEY_HEADER, routing_key);
        message
    }

    /// The same message once more, after no queue took it, to where it was first published; it
    /// says how often that was done.
    #[must_use]
    pub fn returned(received: Received) -> Self {
        let returns = i64::from(received.returns()) + 1;
        let mut message = Self::again(received);
        let mut headers = message.properties.headers().clone().unwrap_or_default();
        headers.insert(RETURNS_HEADER.into(), AMQPValue::LongLongInt(returns));
        message.properties = message.properties.with_headers(headers);
        message
    }

    /// The same message once more, to where it was first published.
    ///
    /// What would change its fate is left out or moved aside: headers that the broker itself
    /// wrote or routes by, an expiration, and a user id that is not ours to claim.
    #[must_use]
    pub fn again(received: Received) -> Self {
        let came = received.properties;
        let mut headers = FieldTable::default();
        let came_headers = came.headers().clone().unwrap_or_default();
        for (name, value) in came_headers.inner() {
            if !is_the_brokers(name.as_str()) {
                headers.insert(name.clone(), value.clone());
            }
        }
        // What is printed is no shorter than what is sent.
        if format!("{headers:?}").len() > MAX_HEADER_BYTES {
            headers = FieldTable::default();
            headers.insert("doorbell-headers-dropped".into(), AMQPValue::Boolean(true));
        }
        for (name, value) in
            [("doorbell-expiration", came.expiration()), ("doorbell-user-id", came.user_id())]
        {
            if let Some(value) = value {
                headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
            }
        }
        let mut properties = persistent().with_headers(headers);
        let text = |value: &Option<ShortString>| value.clone();
        if let Some(value) = text(came.content_type()) {
            properties = properties.with_content_type(value);
        }
        if let Some(value) = text(came.content_encoding()) {
            properties = properties.with_content_encoding(value);
        }
        if let Some(value) = text(came.correlation_id()) {
            properties = properties.with_correlation_id(value);
        }
        if let Some(value) = text(came.reply_to()) {
            properties = properties.with_reply_to(value);
        }
        if let Some(value) = text(came.message_id()) {
            properties = properties.with_message_id(value);
        }
        if let Some(value) = *came.timestamp() {
            properties = properties.with_timestamp(value);
        }
        if let Some(value) = text(came.kind()) {
            properties = properties.with_type(value);
        }
        if let Some(value) = text(came.app_id()) {
            properties = properties.with_app_id(value);
        }
        Self {
            exchange: received.exchange,
            routing_key: received.routing_key,
            properties,
            body: received.body.into(),
        }
    }
}

fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

fn is_the_brokers(header: &str) -> bool {
    header == "CC"
        || header == "BCC"
        || header == "x-death"
        || header == "x-delivery-count"
        || header == "x-stream-offset"
        || header.starts_with("x-first-death-")
        || header.starts_with("x-last-death-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_would_burst_a_frame_are_dropped() {
        let mut headers = FieldTable::default();
        headers.insert("own".into(), AMQPValue::LongString("x".repeat(100_000).into()));
        let received = Received {
            exchange: "doorbell.events".to_owned(),
            routing_key: "a".to_owned(),
            redelivered: false,
            properties: BasicProperties::default().with_headers(headers),
            body: vec![],
        };
        let message = Message::rejected(received, &"why".repeat(100_000));
        let headers = message.properties.headers().clone().unwrap();
        assert!(headers.contains_key("doorbell-headers-dropped") && !headers.contains_key("own"));
        let Some(AMQPValue::LongString(reason)) = headers.inner().get(REASON_HEADER) else {
            panic!("no reason")
        };
        assert!(reason.as_bytes().len() <= MAX_REASON_BYTES + '…'.len_utf8(), "nor would that");
    }

    #[test]
    fn what_would_change_a_messages_fate_does_not_travel_on() {
        let mut headers = FieldTable::default();
        for name in ["x-death", "CC", "BCC", "x-first-death-queue", "x-delivery-count", "own"] {
            headers.insert(name.into(), AMQPValue::LongString("x".into()));
        }
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_expiration("1".into())
            .with_user_id("guest".into())
            .with_message_id("evt".into());
        let received = Received {
            exchange: "doorbell.events".to_owned(),
            routing_key: "a..b".to_owned(),
            redelivered: true,
            properties,
            body: b"x".to_vec(),
        };
        let message = Message::rejected(received, "wrong");
        let names: Vec<&str> = message
            .properties
            .headers()
            .as_ref()
            .unwrap()
            .inner()
            .keys()
            .map(ShortString::as_str)
            .collect();
        assert_eq!(
            names,
            [
                "doorbell-expiration",
                "doorbell-reason",
                "doorbell-routing-key",
                "doorbell-user-id",
                "own"
            ]
        );
        assert_eq!(message.properties.expiration(), &None);
        assert_eq!(message.properties.user_id(), &None);
        assert_eq!(message.properties.message_id().as_ref().map(ShortString::as_str), Some("evt"));
        assert_eq!(message.routing_key, "doorbell.rejected");
    }
}
