//! An event to be published, and the message that carries it.

use doorbell_common::event::{EventType, Trace};
use doorbell_common::ids::{Addressee, EventId};
use doorbell_common::intake::{
    self, COPY_HEADER, DELIVER_AT_HEADER, MINTED_HEADER, Publication, Refusal, TENANT_HEADER,
    TIMESTAMP_HEADER,
};
use doorbell_common::time::Timestamp;
use doorbell_platform::broker::Message;
use doorbell_platform::{broker::topology, clock, ids};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

/// An event to be published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewEvent {
    /// Whose event it is; `*` for everyone.
    pub tenant: String,
    /// What happened: dot-separated words, such as `payment.succeeded`.
    pub event_type: String,
    /// One JSON value; its bytes reach the receiver unchanged.
    pub data: Vec<u8>,
    /// Your own id for it, unique within the tenant: the same id is delivered once. Without one,
    /// an id is made.
    pub id: Option<String>,
    /// When it happened, RFC 3339; now, if absent.
    pub timestamp: Option<String>,
    /// Not to be delivered before this time, RFC 3339, at most 30 days ahead.
    pub deliver_at: Option<String>,
    /// The W3C trace that it belongs to.
    pub traceparent: Option<String>,
    /// That trace's state.
    pub tracestate: Option<String>,
}

impl NewEvent {
    /// An event with nothing but what it needs.
    #[must_use]
    pub fn new(
        tenant: impl Into<String>,
        event_type: impl Into<String>,
        data: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            tenant: tenant.into(),
            event_type: event_type.into(),
            data: data.into(),
            ..Self::default()
        }
    }
}

/// An event that follows the rules, with an id and a time, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    /// Its id.
    pub(crate) id: EventId,
    /// Whose it is.
    pub(crate) tenant: Addressee,
    /// What happened.
    pub(crate) event_type: EventType,
    /// The message.
    pub(crate) message: Message,
}

/// Checks an event by the rules of publishing and gives it what it lacks.
pub(crate) fn prepare(event: &NewEvent, max_bytes: usize) -> Result<Ready, Refusal> {
    let now = clock::now();
    let arrival = intake::admit(&publication(event), max_bytes, now)?;
    let minted = arrival.id.is_none();
    let id = arrival.id.unwrap_or_else(ids::event_id);
    let timestamp = arrival.timestamp.unwrap_or(now);
    let headers = Headers {
        tenant: arrival.tenant.as_str(),
        minted,
        timestamp,
        deliver_at: arrival.deliver_at,
        trace: &arrival.trace,
    };
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_message_id(id.as_str().into())
        .with_timestamp(u64::try_from(timestamp.as_seconds()).unwrap_or(0))
        .with_headers(headers.table());
    let message = Message {
        exchange: topology::EVENTS.to_owned(),
        routing_key: arrival.event_type.as_str().to_owned(),
        properties,
        body: event.data.clone().into(),
    };
    Ok(Ready { id, tenant: arrival.tenant, event_type: arrival.event_type, message })
}

/// Every rule of publishing that an event breaks.
pub(crate) fn refusals(event: &NewEvent, max_bytes: usize) -> Vec<Refusal> {
    intake::refusals(&publication(event), max_bytes, clock::now())
}

fn publication(event: &NewEvent) -> Publication<'_> {
    Publication {
        routing_key: &event.event_type,
        message_id: event.id.as_deref(),
        exact_timestamp: event.timestamp.as_deref(),
        tenant: Some(&event.tenant),
        deliver_at: event.deliver_at.as_deref(),
        traceparent: event.traceparent.as_deref(),
        tracestate: event.tracestate.as_deref(),
        body: &event.data,
        ..Publication::default()
    }
}

struct Headers<'a> {
    tenant: &'a str,
    minted: bool,
    timestamp: Timestamp,
    deliver_at: Option<Timestamp>,
    trace: &'a Trace,
}

impl Headers<'_> {
    fn table(&self) -> FieldTable {
        let mut table = FieldTable::default();
        let mut insert = |name: &str, value: String| {
            table.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        insert(TENANT_HEADER, self.tenant.to_owned());
        // The property has seconds only, and none before 1970.
        if self.timestamp.as_millis() % 1000 != 0 || self.timestamp.as_millis() < 0 {
            insert(TIMESTAMP_HEADER, self.timestamp.to_string());
        }
        if self.minted {
            insert(MINTED_HEADER, "1".to_owned());
        } else {
            insert(COPY_HEADER, ids::token());
        }
        if let Some(deliver_at) = self.deliver_at {
            insert(DELIVER_AT_HEADER, deliver_at.to_string());
        }
        for (name, value) in
            [("traceparent", &self.trace.traceparent), ("tracestate", &self.trace.tracestate)]
        {
            if let Some(value) = value {
                insert(name, value.clone());
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_gets_what_it_lacks() {
        let ready = prepare(&NewEvent::new("acme", "a.b", "{}"), 10).unwrap();
        let headers = ready.message.properties.headers().clone().unwrap();
        assert!(headers.contains_key(MINTED_HEADER) && !headers.contains_key(COPY_HEADER));
        assert!(ready.id.as_str().starts_with("evt_"));
        let mut own = NewEvent::new("acme", "a.b", "{}");
        own.id = Some("mine".to_owned());
        own.timestamp = Some("2026-11-20T10:00:00Z".to_owned());
        let ready = prepare(&own, 10).unwrap();
        let headers = ready.message.properties.headers().clone().unwrap();
        assert!(!headers.contains_key(MINTED_HEADER) && !headers.contains_key(TIMESTAMP_HEADER));
        assert_eq!(*ready.message.properties.timestamp(), Some(1_795_168_800));
        let again = prepare(&own, 10).unwrap().message.properties.headers().clone().unwrap();
        assert_ne!(headers.inner()[COPY_HEADER], again.inner()[COPY_HEADER]);
    }

    #[test]
    fn an_event_that_breaks_the_rules_is_refused() {
        assert!(prepare(&NewEvent::new("**", "a", "{}"), 10).is_err());
        assert!(prepare(&NewEvent::new("acme", "a..b", "{}"), 10).is_err());
        assert!(prepare(&NewEvent::new("acme", "a", "{"), 10).is_err());
        assert!(prepare(&NewEvent::new("acme", "a", "[1,2,3,4,5,6]"), 10).is_err());
    }
}
