//! Messages that someone sends on their way again, out of the queues where we put what we could not finish
//! or understand.

use doorbell_common::intake::COPY_HEADER;
use lapin::types::{AMQPValue, FieldTable};

use super::super::topology;
use super::{Message, REASON_HEADER, ROUTING_KEY_HEADER, Received};

/// Says that a message was redriven.
const REDRIVEN_HEADER: &str = "doorbell-redriven";

impl Message {
    /// The same message once more, to where it was first published; none if it does not say where that was.
    ///
    /// It counts as one that comes again: what is known of it may be that it was begun, and not that it was
    /// put aside. Nor does it say any more which copy it is: the one that was begun may be itself.
    #[must_use]
    pub fn redriven(mut received: Received) -> Option<Self> {
        (received.exchange, received.routing_key) = home(&received)?;
        let mut message = Self::again(received);
        let mut headers = FieldTable::default();
        for (name, value) in message.properties.headers().iter().flat_map(FieldTable::inner) {
            if ![REASON_HEADER, ROUTING_KEY_HEADER, COPY_HEADER].contains(&name.as_str()) {
                headers.insert(name.clone(), value.clone());
            }
        }
        headers.insert(REDRIVEN_HEADER.into(), AMQPValue::Boolean(true));
        message.properties = message.properties.with_headers(headers);
        Some(message)
    }
}

/// Whether a message says that it was redriven.
pub(super) fn is_redriven(headers: Option<&FieldTable>) -> bool {
    headers.is_some_and(|headers| headers.contains_key(REDRIVEN_HEADER))
}

/// The exchange and the routing key with which a message was first published, before it was put aside.
fn home(received: &Received) -> Option<(String, String)> {
    if let Some(death) = received.latest_death() {
        let text = |value: &AMQPValue| {
            let AMQPValue::LongString(text) = value else { return None };
            str::from_utf8(text.as_bytes()).ok().map(str::to_owned)
        };
        let Some(AMQPValue::FieldArray(keys)) = death.inner().get("routing-keys") else {
            return None;
        };
        let exchange = death.inner().get("exchange").and_then(text)?;
        return Some((exchange, keys.as_slice().first().and_then(text)?));
    }
    let routing_key = received.header(ROUTING_KEY_HEADER)?.to_owned();
    let exchange = if !received.is_work() {
        topology::EVENTS
    } else if topology::is_internal(&routing_key) {
        topology::INTERNAL
    } else {
        topology::SIDELINE
    };
    Some((exchange.to_owned(), routing_key))
}

#[cfg(test)]
mod tests {
    use doorbell_common::event::{Event, Trace};
    use doorbell_common::time::Timestamp;
    use doorbell_common::work::{DueEvent, Work};
    use lapin::BasicProperties;

    use super::*;

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn came(properties: BasicProperties, routing_key: &str) -> Received {
        Received {
            exchange: topology::INTERNAL.to_owned(),
            routing_key: routing_key.to_owned(),
            redelivered: false,
            properties,
            body: b"1".to_vec(),
        }
    }

    fn own() -> BasicProperties {
        let mut headers = FieldTable::default();
        headers.insert("doorbell-tenant".into(), long("acme"));
        BasicProperties::default().with_headers(headers).with_message_id("evt".into())
    }

    #[test]
    fn what_was_rejected_goes_where_it_was_published() {
        let event = Event {
            id: "evt".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            event_type: "a.b".parse().unwrap(),
            timestamp: Timestamp::from_seconds(1),
            trace: Trace::default(),
            data: b"1".as_slice().into(),
        };
        let (due, event) = (Timestamp::from_seconds(1), event.into());
        let work = Work::Event(DueEvent { event, due, dated_by_us: false, sequence: 1 });
        let internal = Message::work(topology::DELIVERIES, &work).unwrap().properties;
        let aside = Message::aside(&work).unwrap().properties;
        for (properties, routing_key, exchange) in [
            (own(), "a.b", topology::EVENTS),
            (internal, topology::DELIVERIES, topology::INTERNAL),
            (aside, "a.b", topology::SIDELINE),
        ] {
            let kind = properties.content_type().clone();
            let rejected = Message::rejected(came(properties, routing_key), "wrong");
            let redriven =
                Message::redriven(came(rejected.properties, topology::REJECTED)).unwrap();
            assert_eq!((&*redriven.exchange, &*redriven.routing_key), (exchange, routing_key));
            assert_eq!(redriven.properties.content_type(), &kind);
            let headers = redriven.properties.headers().clone().unwrap();
            assert!(is_redriven(Some(&headers)));
            for gone in [REASON_HEADER, ROUTING_KEY_HEADER, COPY_HEADER] {
                assert!(!headers.contains_key(gone), "{headers:?}");
            }
        }
    }

    #[test]
    fn what_was_in_quarantine_goes_where_it_was_published() {
        let death = |exchange: &str, keys: &[&str]| {
            let mut table = FieldTable::default();
            let keys: Vec<AMQPValue> = keys.iter().map(|key| long(key)).collect();
            table.insert("exchange".into(), long(exchange));
            table.insert("routing-keys".into(), AMQPValue::FieldArray(keys.into()));
            AMQPValue::FieldTable(table)
        };
        for (deaths, home) in [
            (vec![death("doorbell.events", &["a.b", "cc"])], Some(("doorbell.events", "a.b"))),
            (
                vec![
                    death("doorbell.internal", &["doorbell.retries"]),
                    death("doorbell.internal", &["doorbell.delay.4s"]),
                ],
                Some(("doorbell.internal", "doorbell.retries")),
            ),
            (vec![death("doorbell.events", &[])], None),
            (vec![], None),
        ] {
            let mut headers = own().headers().clone().unwrap();
            headers.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
            let redriven =
                Message::redriven(came(own().with_headers(headers), topology::QUARANTINE));
            let found = redriven.as_ref().map(|it| (&*it.exchange, &*it.routing_key));
            assert_eq!(found, home);
            if let Some(redriven) = redriven {
                let headers = redriven.properties.headers().clone().unwrap();
                assert!(
                    !headers.contains_key("x-death") && headers.contains_key("doorbell-tenant")
                );
                assert_eq!(redriven.properties.message_id(), own().message_id());
            }
        }
        // Someone has put it there by hand.
        assert!(
            Message::redriven(came(BasicProperties::default(), topology::QUARANTINE)).is_none()
        );
    }
}
