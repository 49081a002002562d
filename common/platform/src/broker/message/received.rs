//! Messages that came, and what they say of themselves.

use doorbell_common::held::Resumed;
use doorbell_common::intake::{
    COPY_HEADER, DELIVER_AT_HEADER, JUDGED_HEADER, MINTED_HEADER, Publication, TENANT_HEADER,
    TIMESTAMP_HEADER,
};
use doorbell_common::rung::DelayQueue;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

#[cfg(doc)]
use super::Message;
use super::{NUDGE_TYPE, RESUMED_TYPE, RETURNS_HEADER, WORK_TYPE, redriven};
use crate::store::notes::Arrival;

/// As which copy a message may come; whoever publishes may write what he likes.
const LONGEST_COPY: usize = 64;

/// A message that came.
#[derive(Debug)]
pub struct Received {
    /// Where it was first published.
    pub exchange: String,
    /// With which routing key.
    pub routing_key: String,
    /// Whether it may have been with a consumer before.
    pub redelivered: bool,
    /// Everything beside the body.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

impl From<Delivery> for Received {
    fn from(delivery: Delivery) -> Self {
        let is_redriven = redriven::is_redriven(delivery.properties.headers().as_ref());
        Self {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            redelivered: delivery.redelivered || is_redriven,
            properties: delivery.properties,
            body: delivery.data,
        }
    }
}

impl Received {
    /// Whether it says nothing ([`Message::nudge`]).
    #[must_use]
    pub fn is_nudge(&self) -> bool {
        self.properties.content_type().as_ref().is_some_and(|kind| kind.as_str() == NUDGE_TYPE)
    }

    /// The delay queue that it has just left, if it has.
    #[must_use]
    pub fn left_delay_queue(&self) -> Option<DelayQueue> {
        let AMQPValue::LongString(queue) = self.latest_death()?.inner().get("queue")? else {
            return None;
        };
        DelayQueue::of_name(std::str::from_utf8(queue.as_bytes()).ok()?)
    }

    /// What RabbitMQ wrote when it last moved the message from one queue to another, if it has.
    pub(super) fn latest_death(&self) -> Option<&FieldTable> {
        let deaths = self.properties.headers().as_ref()?.inner().get("x-death")?;
        // The latest comes first.
        let AMQPValue::FieldArray(deaths) = deaths else { return None };
        let AMQPValue::FieldTable(latest) = deaths.as_slice().first()? else { return None };
        Some(latest)
    }

    /// Whether it is work that one of our services handed on ([`Message::work`]).
    #[must_use]
    pub fn is_work(&self) -> bool {
        self.properties.content_type().as_ref().is_some_and(|kind| kind.as_str() == WORK_TYPE)
    }

    /// How it came, as far as a copy of it can be told by that.
    #[must_use]
    pub fn arrival(&self) -> Arrival<'_> {
        let is_ours = |copy: &&str| {
            copy.len() <= LONGEST_COPY && copy.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        Arrival { copy: self.header(COPY_HEADER).filter(is_ours), redelivered: self.redelivered }
    }

    /// Whether the producer has judged it by the catalogue of event types and its tenant's limits.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.header(JUDGED_HEADER).is_some()
    }

    /// The message as the rules of publishing see it.
    #[must_use]
    pub fn publication(&self) -> Publication<'_> {
        Publication {
            routing_key: &self.routing_key,
            message_id: self.properties.message_id().as_ref().map(ShortString::as_str),
            timestamp: *self.properties.timestamp(),
            exact_timestamp: self.header(TIMESTAMP_HEADER),
            content_type: self.properties.content_type().as_ref().map(ShortString::as_str),
            tenant: self.header(TENANT_HEADER),
            deliver_at: self.header(DELIVER_AT_HEADER),
            minted: self.header(MINTED_HEADER).is_some(),
            traceparent: self.header("traceparent"),
            tracestate: self.header("tracestate"),
            body: &self.body,
        }
    }

    /// The note that this message of the stream of held deliveries is, if it is one.
    #[must_use]
    pub fn resumed(&self) -> Option<Resumed> {
        let content_type = self.properties.content_type().as_ref()?;
        if content_type.as_str() != RESUMED_TYPE {
            return None;
        }
        serde_json::from_slice(&self.body).ok()
    }

    /// A header's text, if it is there and a string of UTF-8.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.properties.headers().as_ref()?;
        let value =
            headers.inner().iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| value)?;
        if let AMQPValue::LongString(text) = value {
            return std::str::from_utf8(text.as_bytes()).ok();
        }
        if let AMQPValue::ShortString(text) = value {
            return Some(text.as_str());
        }
        None
    }

    /// How often it was delivered before without an end, as a quorum queue counts.
    #[must_use]
    pub fn delivery_count(&self) -> u64 {
        self.integer("x-delivery-count")
    }

    /// Where it stands in a stream.
    #[must_use]
    pub fn stream_offset(&self) -> u64 {
        self.integer("x-stream-offset")
    }

    /// How often no queue took it and it was published again.
    #[must_use]
    pub fn returns(&self) -> u32 {
        u32::try_from(self.integer(RETURNS_HEADER)).unwrap_or(u32::MAX)
    }

    fn integer(&self, name: &str) -> u64 {
        let headers = self.properties.headers().as_ref();
        let value = headers
            .and_then(|headers| headers.inner().iter().find(|(key, _)| key.as_str() == name));
        if let Some((_, AMQPValue::LongLongInt(value))) = value {
            return u64::try_from(*value).unwrap_or(0);
        }
        if let Some((_, AMQPValue::LongInt(value))) = value {
            return u64::try_from(*value).unwrap_or(0);
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::topology;

    #[test]
    fn a_message_tells_which_delay_queue_it_has_just_left() {
        let death = |queue: &str| {
            let mut table = FieldTable::default();
            table.insert("queue".into(), AMQPValue::LongString(queue.into()));
            AMQPValue::FieldTable(table)
        };
        for (deaths, left) in [
            (
                vec![death("doorbell.delay.4s"), death("doorbell.delay.8s")],
                Some("doorbell.delay.4s"),
            ),
            (vec![death("doorbell.sideline.delay.2s")], Some("doorbell.sideline.delay.2s")),
            (vec![death("doorbell.deliveries")], None),
            (vec![], None),
        ] {
            let mut headers = FieldTable::default();
            headers.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
            let received = Received {
                exchange: topology::INTERNAL.to_owned(),
                routing_key: topology::RETRIES.to_owned(),
                redelivered: false,
                properties: BasicProperties::default().with_headers(headers),
                body: vec![],
            };
            assert_eq!(received.left_delay_queue().map(DelayQueue::name).as_deref(), left);
        }
    }
}
