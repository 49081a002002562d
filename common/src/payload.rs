//! The bytes that are POSTed: the event in an envelope, or its data alone. The data is never
//! parsed or written anew.

use serde::{Deserialize, Serialize};

use crate::event::Event;

/// The form of the body that a subscription asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// `{"type": …, "timestamp": …, "data": …}`.
    #[default]
    Envelope,
    /// The data's bytes alone.
    Raw,
    /// An event in the form of `CloudEvents`, structured mode, version 1.0.
    /// Source: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>.
    CloudEvents,
}

impl Payload {
    /// The body of a POST for `event`.
    #[must_use]
    pub fn body(self, event: &Event) -> Vec<u8> {
        // None of what stands before the data has characters that JSON escapes.
        let Event { id, tenant, event_type, timestamp, .. } = event;
        match self {
            Self::Raw => event.data.to_vec(),
            Self::Envelope => around(
                &format!(r#"{{"type":"{event_type}","timestamp":"{timestamp}","data":"#),
                &event.data,
            ),
            Self::CloudEvents => around(
                &format!(
                    r#"{{"specversion":"1.0","id":"{id}","source":"urn:doorbell:tenant:{tenant}","type":"{event_type}","time":"{timestamp}","datacontenttype":"application/json","data":"#
                ),
                &event.data,
            ),
        }
    }

    /// What such a body is, as `content-type` says it.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Envelope | Self::Raw => "application/json",
            Self::CloudEvents => "application/cloudevents+json",
        }
    }
}

fn around(head: &str, data: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(head.len() + data.len() + 1);
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(data);
    body.push(b'}');
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Trace;
    use crate::time::Timestamp;

    #[test]
    fn data_stays_byte_for_byte() {
        let data = " {\"n\": 1.0e5, \"n\" : 12345678901234567890123 }\n";
        let event = Event {
            id: "evt".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            event_type: "a.b".parse().unwrap(),
            timestamp: Timestamp::from_seconds(1),
            trace: Trace::default(),
            data: data.as_bytes().into(),
        };
        let text = |payload: Payload| String::from_utf8(payload.body(&event)).unwrap();
        assert_eq!(text(Payload::Raw), data);
        assert_eq!(
            text(Payload::Envelope),
            format!(r#"{{"type":"a.b","timestamp":"1970-01-01T00:00:01Z","data":{data}}}"#)
        );
        let cloud_event = text(Payload::CloudEvents);
        assert!(cloud_event.ends_with(&format!("\"data\":{data}}}")), "{cloud_event}");
        let read: serde_json::Value = serde_json::from_str(&cloud_event).unwrap();
        for (name, value) in [
            ("specversion", "1.0"),
            ("id", "evt"),
            ("source", "urn:doorbell:tenant:acme"),
            ("type", "a.b"),
            ("time", "1970-01-01T00:00:01Z"),
            ("datacontenttype", "application/json"),
        ] {
            assert_eq!(read[name], value);
        }
    }
}
