//! How work is written into the messages between our services: one line of JSON that says what
//! it is, a newline, and the event's data byte for byte. Of several events the line says how many bytes each takes,
//! and each is written as if it were alone.
//!
//! The line carries a version. A reader refuses versions it does not know, so the message goes
//! to `doorbell.rejected` untouched rather than being misread.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::{Event, EventType, Trace};
use crate::fan_out::SlotRange;
use crate::ids::{Addressee, EventId};
use crate::time::Timestamp;
use crate::work::{Bundle, DeliveryState, DueEvent, Page, Parcel, Work, millis};

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
    /// A parcel or a bundle with nothing in it.
    #[error("message has no deliveries")]
    Empty,
    /// A head line without what this kind of work must have, or something in a bundle that is no parcel.
    #[error("message has {0}")]
    Misfit(&'static str),
    /// Written by a newer Doorbell.
    #[error("message has version {0}; this service reads version {VERSION}")]
    Version(u32),
}

#[derive(Serialize, Deserialize)]
struct Head {
    v: u32,
    /// Of all but a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<EventHead>,
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
    /// How many bytes each parcel takes.
    Bundle(Vec<usize>),
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
    match work {
        Work::Event(DueEvent { event, due, dated_by_us, sequence }) => {
            let (due, dated_by_us, sequence) = (*due, *dated_by_us, *sequence);
            encode_one(event, WorkHead::Event { due, dated_by_us, sequence })
        }
        Work::Page(Page { event, slots, sequence }) => {
            encode_one(event, WorkHead::Page { slots: *slots, sequence: *sequence })
        }
        Work::Parcel(parcel) => encode_parcel(parcel),
        Work::Bundle(bundle) => {
            let parcels: Vec<_> = bundle.parcels().map(encode_parcel).collect::<Result<_, _>>()?;
            let work = WorkHead::Bundle(parcels.iter().map(Vec::len).collect());
            encode_head(&Head { v: VERSION, event: None, work }, &parcels.concat())
        }
    }
}

fn encode_parcel(Parcel { event, states }: &Parcel) -> Result<Vec<u8>, serde_json::Error> {
    let work = match states.as_slice() {
        [alone] => WorkHead::Delivery(alone.clone()),
        several => WorkHead::Deliveries(several.to_vec()),
    };
    encode_one(event, work)
}

fn encode_one(event: &Event, work: WorkHead) -> Result<Vec<u8>, serde_json::Error> {
    let head = EventHead {
        id: event.id.clone(),
        tenant: event.tenant.clone(),
        event_type: event.event_type.clone(),
        timestamp: event.timestamp,
        trace: event.trace.clone(),
    };
    encode_head(&Head { v: VERSION, event: Some(head), work }, &event.data)
}

fn encode_head(head: &Head, rest: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec(head)?;
    bytes.reserve_exact(rest.len() + 1);
    bytes.push(b'\n');
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

/// Reads the body of a message back.
///
/// # Errors
/// The message is not ours, damaged, or of a version that we do not know.
pub fn decode(bytes: &[u8]) -> Result<Work, InvalidWork> {
    let (head, rest) = decode_head(bytes)?;
    match head {
        Head { work: WorkHead::Bundle(lengths), .. } => {
            let mut rest = rest;
            let mut parcels = Vec::with_capacity(lengths.len().min(rest.len()));
            for length in lengths {
                let (parcel, others) =
                    rest.split_at_checked(length).ok_or(InvalidWork::Misfit("too few bytes"))?;
                parcels.push(decode_parcel(parcel)?);
                rest = others;
            }
            if !rest.is_empty() {
                return Err(InvalidWork::Misfit("too many bytes"));
            }
            Bundle::of(parcels).ok_or(InvalidWork::Empty)
        }
        Head { event, work, .. } => decode_one(event, work, rest),
    }
}

fn decode_parcel(bytes: &[u8]) -> Result<Parcel, InvalidWork> {
    let (Head { event, work, .. }, data) = decode_head(bytes)?;
    match decode_one(event, work, data)? {
        Work::Parcel(parcel) => Ok(parcel),
        Work::Event(_) | Work::Page(_) | Work::Bundle(_) => {
            Err(InvalidWork::Misfit("a bundle with other things than parcels"))
        }
    }
}

fn decode_one(event: Option<EventHead>, work: WorkHead, data: &[u8]) -> Result<Work, InvalidWork> {
    let event = event.ok_or(InvalidWork::Misfit("no event"))?;
    let event = Arc::new(Event {
        id: event.id,
        tenant: event.tenant,
        event_type: event.event_type,
        timestamp: event.timestamp,
        trace: event.trace,
        data: data.into(),
    });
    Ok(match work {
        WorkHead::Event { due, dated_by_us, sequence } => {
            Work::Event(DueEvent { event, due, dated_by_us, sequence })
        }
        WorkHead::Page { slots, sequence } => Work::Page(Page { event, slots, sequence }),
        WorkHead::Delivery(state) => Work::Parcel(Parcel { event, states: vec![state] }),
        WorkHead::Deliveries(states) if states.is_empty() => return Err(InvalidWork::Empty),
        WorkHead::Deliveries(states) => Work::Parcel(Parcel { event, states }),
        WorkHead::Bundle(_) => return Err(InvalidWork::Misfit("a bundle in a bundle")),
    })
}

/// The head line, and what comes after it.
fn decode_head(bytes: &[u8]) -> Result<(Head, &[u8]), InvalidWork> {
    let newline = bytes.iter().position(|b| *b == b'\n').ok_or(InvalidWork::NoHead)?;
    let (line, rest) = bytes.split_at(newline);
    let head: Head = serde_json::from_slice(line).map_err(|error| unknown(line, error))?;
    if head.v != VERSION {
        return Err(InvalidWork::Version(head.v));
    }
    Ok((head, rest.get(1..).unwrap_or_default()))
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
                let parcel = Parcel { event, states: vec![state; 1 + slot as usize % 3] };
                Bundle::of(vec![parcel; usize::from(kind - 1)]).unwrap()
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_the_same(kind in 0_u8..5, numbers: [u32; 4], millis: i64, data: Vec<u8>) {
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
    fn a_bundle_that_is_damaged_is_refused() {
        let parcel = encode(&work(2, [2, 2, 2, 0], 1, b"{}")).unwrap();
        let page = encode(&work(1, [1, 1, 1, 1], 1, b"{}")).unwrap();
        let bundle = encode(&work(3, [2, 2, 2, 0], 1, b"{}")).unwrap();
        let of = |lengths: &[usize], rest: &[&[u8]]| {
            let head = format!(r#"{{"v":1,"work":{{"bundle":{lengths:?}}}}}"#);
            decode(&[head.as_bytes(), b"\n", &rest.concat()].concat())
        };
        let length = parcel.len();
        assert!(matches!(of(&[length, length], &[&parcel, &parcel]), Ok(Work::Bundle(_))));
        assert!(matches!(of(&[length], &[&parcel]), Ok(Work::Parcel(_))), "one alone is none");
        assert!(matches!(of(&[], &[]), Err(InvalidWork::Empty)));
        for (lengths, rest) in [
            ([length, length + 1].as_slice(), [parcel.as_slice(), &parcel].as_slice()),
            (&[length, usize::MAX], &[&parcel, &parcel]),
            (&[length], &[&parcel, &parcel]),
            (&[page.len()], &[&page]),
            (&[bundle.len()], &[&bundle]),
        ] {
            let decoded = of(lengths, rest);
            assert!(matches!(decoded, Err(InvalidWork::Misfit(_))), "{decoded:?}");
        }
        assert!(matches!(of(&[length - 3], &[&parcel[..length - 3]]), Err(InvalidWork::NoHead)));
        let no_event = decode(b"{\"v\":1,\"work\":{\"event\":{\"due_ms\":5,\"sequence\":1}}}\n");
        assert!(matches!(no_event, Err(InvalidWork::Misfit("no event"))), "{no_event:?}");
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
        let one = encode(&work(2, [1, 2, 3, 4], 5, b"{\"n\": 1}")).unwrap();
        let head = format!(r#"{{"v":1,"work":{{"bundle":[{0},{0}]}}}}"#, one.len());
        let message = [head.as_bytes(), b"\n", &one, &one].concat();
        assert_eq!(encode(&decode(&message).unwrap()).unwrap(), message);
    }
}
