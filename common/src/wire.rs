//! How work is written into the messages between our services: one line of JSON that says what
//! it is, a newline, and the event's data byte for byte.
//!
//! The line carries a version. A reader refuses versions it does not know, so the message goes
//! to `doorbell.rejected` untouched rather than being misread.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::{Event, EventType, Trace};
use crate::fan_out::SlotRange;
use crate::ids::{Addressee, EventId};
use crate::time::Timestamp;
use crate::work::{DeliveryState, DueEvent, Page, Parcel, Work, millis};

/// The version that is written.
pub const VERSION: u32 = 1;

/// Why a message is not work that we know.
#[derive(Debug, thiserror::Error)]
pub enum InvalidWork {
    /// No first line.
    #[error("message has no head line")]
    NoHead,
    /// The first line is not what we write.
    #[error("message head is not understood: {0}")]
    Head(#[from] serde_json::Error),
    /// A parcel with nothing in it.
    #[error("message has no deliveries")]
    Empty,
    /// Written by a newer Doorbell.
    #[error("message has version {0}; this service reads version {VERSION}")]
    Version(u32),
}

#[derive(Serialize, Deserialize)]
struct Head {
    v: u32,
    event: EventHead,
    work: WorkHead,
}

#[derive(Serialize, Deserialize)]
struct EventHead {
    id: EventId,
    tenant: Addressee,
    #[serde(rename = "type")]
    event_type: EventType,
    timestamp: Timestamp,
    #[serde(flatten)]
    trace: Trace,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WorkHead {
    Event {
        #[serde(rename = "due_ms", with = "millis")]
        due: Timestamp,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dated_by_us: bool,
        sequence: u32,
    },
    Page {
        slots: SlotRange,
        sequence: u32,
    },
    Delivery(DeliveryState),
    Deliveries(Vec<DeliveryState>),
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

/// Writes `work` as the body of a message.
///
/// # Errors
/// Never for work built by this crate: serialising its plain fields cannot fail.
pub fn encode(work: &Work) -> Result<Vec<u8>, serde_json::Error> {
    let event = work.event();
    let head = Head {
        v: VERSION,
        event: EventHead {
            id: event.id.clone(),
            tenant: event.tenant.clone(),
            event_type: event.event_type.clone(),
            timestamp: event.timestamp,
            trace: event.trace.clone(),
        },
        work: match work {
            Work::Event(DueEvent { due, dated_by_us, sequence, .. }) => {
                WorkHead::Event { due: *due, dated_by_us: *dated_by_us, sequence: *sequence }
            }
            Work::Page(page) => WorkHead::Page { slots: page.slots, sequence: page.sequence },
            Work::Parcel(Parcel { states, .. }) => match states.as_slice() {
                [alone] => WorkHead::Delivery(alone.clone()),
                several => WorkHead::Deliveries(several.to_vec()),
            },
        },
    };
    let mut bytes = serde_json::to_vec(&head)?;
    bytes.reserve_exact(event.data.len() + 1);
    bytes.push(b'\n');
    bytes.extend_from_slice(&event.data);
    Ok(bytes)
}

/// Reads the body of a message back.
///
/// # Errors
/// The message is not ours, damaged, or of a version that we do not know.
pub fn decode(bytes: &[u8]) -> Result<Work, InvalidWork> {
    let newline = bytes.iter().position(|b| *b == b'\n').ok_or(InvalidWork::NoHead)?;
    let (line, data) = bytes.split_at(newline);
    let head: Head = serde_json::from_slice(line).map_err(|error| unknown(line, error))?;
    if head.v != VERSION {
        return Err(InvalidWork::Version(head.v));
    }
    let event = Arc::new(Event {
        id: head.event.id,
        tenant: head.event.tenant,
        event_type: head.event.event_type,
        timestamp: head.event.timestamp,
        trace: head.event.trace,
        data: data.get(1..).unwrap_or_default().into(),
    });
    Ok(match head.work {
        WorkHead::Event { due, dated_by_us, sequence } => {
            Work::Event(DueEvent { event, due, dated_by_us, sequence })
        }
        WorkHead::Page { slots, sequence } => Work::Page(Page { event, slots, sequence }),
        WorkHead::Delivery(state) => Work::Parcel(Parcel { event, states: vec![state] }),
        WorkHead::Deliveries(states) if states.is_empty() => return Err(InvalidWork::Empty),
        WorkHead::Deliveries(states) => Work::Parcel(Parcel { event, states }),
    })
}

/// Why a head line is not read: another version may have any.
fn unknown(line: &[u8], error: serde_json::Error) -> InvalidWork {
    match serde_json::from_slice(line) {
        Ok(VersionOnly { v }) if v != VERSION => InvalidWork::Version(v),
        Ok(_) | Err(_) => InvalidWork::Head(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{SlotNumber, SubscriptionId};
    use crate::outcome::OutcomeClass;
    use crate::work::{Failure, Stage};

    fn work(kind: u8, numbers: [u32; 4], millis: i64, data: &[u8]) -> Work {
        let [sequence, generation, attempts, slot] = numbers;
        let at = Timestamp::from_millis(millis);
        let subscription =
            SubscriptionId::new(SlotNumber(slot % SlotNumber::END), u128::from(sequence));
        let event = Arc::new(Event {
            id: format!("evt_{sequence}").parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            event_type: "a.b-c".parse().unwrap(),
            timestamp: at,
            trace: Trace {
                traceparent: (generation % 2 == 0).then(|| "00-x".to_owned()),
                tracestate: None,
            },
            data: data.into(),
        });
        let failure = Failure {
            outcome: OutcomeClass::ALL[usize::try_from(attempts).unwrap() % 12],
            status: (attempts % 2 == 0).then_some(503),
            detail: "no\nway \"out\"".to_owned(),
            endpoint: "0123456789abcdef".to_owned(),
            started_at: at,
            ended_at: at,
            retry_after_ms: (attempts % 3 == 0).then_some(7000),
        };
        match kind {
            0 => Work::Event(DueEvent { event, due: at, dated_by_us: attempts % 2 == 0, sequence }),
            1 => Work::Page(Page {
                event,
                slots: SlotRange { first: sequence, end: attempts },
                sequence,
            }),
            _ => {
                let state = DeliveryState {
                    subscription,
                    generation,
                    sequence,
                    attempts,
                    created_at: at,
                    holds: generation % 7,
                    held_ms: u64::from(attempts),
                    held_since: (generation % 3 == 0).then_some(at),
                    stage: if attempts % 2 == 0 { Stage::Failed } else { Stage::Due(at) },
                    last_failure: (attempts > 5).then_some(failure),
                };
                Work::Parcel(Parcel { event, states: vec![state; 1 + slot as usize % 3] })
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_the_same(kind in 0_u8..3, numbers: [u32; 4], millis: i64, data: Vec<u8>) {
            let work = work(kind, numbers, millis, &data);
            prop_assert_eq!(decode(&encode(&work).unwrap()).unwrap(), work);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            drop(decode(&bytes));
        }
    }

    #[test]
    fn a_message_of_another_version_or_kind_is_refused() {
        assert!(matches!(decode(b"{}"), Err(InvalidWork::NoHead)));
        assert!(matches!(decode(b"{\"v\":2,\"new\":true}\n"), Err(InvalidWork::Version(2))));
        assert!(matches!(decode(b"{\"v\":1}\n"), Err(InvalidWork::Head(_))));
        assert!(matches!(decode(b"hello\n"), Err(InvalidWork::Head(_))));
        let nothing = br#"{"v":1,"event":{"id":"evt_1","tenant":"acme","type":"a.b","timestamp":"2026-11-20T10:00:00Z"},"work":{"deliveries":[]}}"#;
        let nothing = [nothing.as_slice(), b"\n1"].concat();
        assert!(matches!(decode(&nothing), Err(InvalidWork::Empty)));
    }

    #[test]
    fn version_1_is_written_like_this_for_ever() {
        let delivery = r#"{"subscription":"sub_000000000000000000000001","generation":0,"sequence":2,"attempts":1,"created_at_ms":1,"held_ms":0,"stage":{"due":5},"last_failure":{"outcome":"client_error","status":404,"detail":"","endpoint":"","started_at_ms":1,"ended_at_ms":2}}"#;
        for work in [
            format!(r#"{{"delivery":{delivery}}}"#),
            format!(r#"{{"deliveries":[{delivery},{delivery}]}}"#),
            r#"{"page":{"slots":{"first":0,"end":7},"sequence":1}}"#.to_owned(),
            r#"{"event":{"due_ms":5,"sequence":1}}"#.to_owned(),
            r#"{"event":{"due_ms":5,"dated_by_us":true,"sequence":1}}"#.to_owned(),
        ] {
            let event =
                r#"{"id":"evt_1","tenant":"acme","type":"a.b","timestamp":"2026-11-20T10:00:00Z"}"#;
            let message = format!("{{\"v\":1,\"event\":{event},\"work\":{work}}}\n{{\"n\": 1}}");
            let read = decode(message.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(encode(&read).unwrap()).unwrap(), message);
        }
    }
}
