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
}

impl Payload {
    /// The body of a POST for `event`.
    #[must_use]
    pub fn body(self, event: &Event) -> Vec<u8> {
        match self {
            Self::Raw => event.data.to_vec(),
            Self::Envelope => {
                // Neither a type nor a timestamp has characters that JSON escapes.
                let head = format!(
                    r#"{{"type":"{}","timestamp":"{}","data":"#,
                    event.event_type, event.timestamp
                );
                let mut body = Vec::with_capacity(head.len() + event.data.len() + 1);
                body.extend_from_slice(head.as_bytes());
                body.extend_from_slice(&event.data);
                body.push(b'}');
                body
            }
        }
    }
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
        assert_eq!(Payload::Raw.body(&event), data.as_bytes());
        let envelope = String::from_utf8(Payload::Envelope.body(&event)).unwrap();
        assert_eq!(
            envelope,
            format!(r#"{{"type":"a.b","timestamp":"1970-01-01T00:00:01Z","data":{data}}}"#)
        );
    }
}
