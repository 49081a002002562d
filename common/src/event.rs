//! An event: a fact published once, for one tenant or for all of them, whose data stays byte for byte as published.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ids::{Addressee, EventId};
use crate::json;
use crate::text::serde_as_text;
use crate::time::Timestamp;

/// A fact published once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique within the tenant.
    pub id: EventId,
    /// Whose event it is.
    pub tenant: Addressee,
    /// What happened, such as `payment.succeeded`.
    pub event_type: EventType,
    /// When it happened.
    pub timestamp: Timestamp,
    /// The W3C trace that it belongs to.
    pub trace: Trace,
    /// One JSON value, exactly as it was published.
    pub data: Arc<[u8]>,
}

impl Event {
    /// Its name among our hand-offs: no other event has it, not even one that is given the same id after
    /// the window in which that would be a copy.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}@{:x}", self.tenant, self.id, self.timestamp.as_millis())
    }

    /// What a filter looks at: `{id, type, timestamp, tenant, data}`. None if the data has what no
    /// program can hold: a number beyond all bounds, such as `1e999`.
    #[must_use]
    pub fn parts(&self) -> Option<Value> {
        let data = json::read(&self.data)?;
        Some(json!({
            "id": self.id, "type": self.event_type, "timestamp": self.timestamp,
            "tenant": self.tenant, "data": data,
        }))
    }
}

/// The trace context that came with an event and goes on to the receiver
/// (<https://www.w3.org/TR/trace-context/>).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The header `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The header `tracestate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

impl Trace {
    /// The context in these headers; what is not well-formed is left out, as the specification
    /// asks (§3.2.2.5), and never spoils the event.
    #[must_use]
    pub fn from_headers(traceparent: Option<&str>, tracestate: Option<&str>) -> Self {
        let Some(traceparent) = traceparent.filter(|text| is_traceparent(text)) else {
            return Self::default();
        };
        let printable =
            |text: &&str| text.len() <= 512 && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        Self {
            traceparent: Some(traceparent.to_owned()),
            tracestate: tracestate
                .filter(|text| !text.is_empty())
                .filter(printable)
                .map(str::to_owned),
        }
    }
}

/// `version-traceid-parentid-flags`, all lower-case hexadecimal, neither id all zeros.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, parent, flags] = parts.as_slice() else {
        return false;
    };
    let hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    hex(version, 2)
        && *version != "ff"
        && hex(trace, 32)
        && !zero(trace)
        && hex(parent, 16)
        && !zero(parent)
        && hex(flags, 2)
}

/// The type of an event: dot-separated words of `[A-Za-z0-9_-]`, at most 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(Arc<str>);

/// Why a text is not an event type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEventType {
    /// Nothing was given.
    #[error("is empty")]
    Empty,
    /// More than 128 bytes.
    #[error("is longer than {} bytes", EventType::MAX_BYTES)]
    TooLong,
    /// Two dots in a row, or one at an end.
    #[error("has an empty word: words are separated by single dots")]
    EmptyWord,
    /// A character other than `A-Z a-z 0-9 _ - .`.
    #[error("may only have letters, digits, '_' and '-', in words separated by dots")]
    Character,
}

impl EventType {
    /// The longest type, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// The type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EventType {
    type Err = InvalidEventType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidEventType::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(InvalidEventType::TooLong);
        }
        for word in text.split('.') {
            if word.is_empty() {
                return Err(InvalidEventType::EmptyWord);
            }
            if !word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
                return Err(InvalidEventType::Character);
            }
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_text!(EventType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_words_between_dots() {
        for good in ["a", "payment.succeeded", "A-1._x.9", &"x".repeat(128)] {
            assert!(good.parse::<EventType>().is_ok(), "{good}");
        }
        for (wrong, why) in [
            ("", InvalidEventType::Empty),
            (".", InvalidEventType::EmptyWord),
            ("a..b", InvalidEventType::EmptyWord),
            ("a.", InvalidEventType::EmptyWord),
            ("a.*", InvalidEventType::Character),
            ("a b", InvalidEventType::Character),
            ("a\0", InvalidEventType::Character),
            (&"x".repeat(129), InvalidEventType::TooLong),
        ] {
            assert_eq!(wrong.parse::<EventType>(), Err(why), "{wrong}");
        }
    }

    #[test]
    fn whatever_may_be_published_has_parts() {
        let event = |data: String| Event {
            id: "evt".parse().unwrap(),
            tenant: Addressee::Everyone,
            event_type: "a.b".parse().unwrap(),
            timestamp: Timestamp::from_seconds(1),
            trace: Trace::default(),
            data: data.into_bytes().into(),
        };
        let depth = crate::intake::MAX_DEPTH;
        let deep = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(event(deep).parts().is_some());
        let parts = event(r#"{"a":1}"#.to_owned()).parts().unwrap();
        let expected = json!({
            "id": "evt", "type": "a.b", "timestamp": "1970-01-01T00:00:01Z", "tenant": "*",
            "data": {"a": 1},
        });
        assert_eq!(parts, expected);
        assert_eq!(event("1e999".to_owned()).parts(), None);
    }

    #[test]
    fn a_trace_that_is_not_well_formed_is_left_out() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(Trace::from_headers(Some(good), Some("a=1")).tracestate.as_deref(), Some("a=1"));
        assert_eq!(Trace::from_headers(Some(good), Some("a\r\nx: y")).tracestate, None);
        for wrong in [
            "",
            "00",
            &good.to_uppercase(),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Trace::from_headers(Some(wrong), Some("a=1")), Trace::default(), "{wrong}");
        }
    }
}
