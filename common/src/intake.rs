//! The door: what a published message must be to become an event. The dispatcher asks this of
//! every AMQP message, the producer of every HTTP request, so both refuse the same things.

use std::time::Duration;

use crate::event::{Event, EventType, InvalidEventType, Trace};
use crate::ids::{Addressee, EventId, InvalidId};
use crate::json::{self, InvalidJson};
use crate::time::{InvalidTimestamp, Timestamp};

/// The header that names the tenant.
pub const TENANT_HEADER: &str = "doorbell-tenant";
/// The header that delays the delivery.
pub const DELIVER_AT_HEADER: &str = "doorbell-deliver-at";
/// The header by which our producer passes on a time with milliseconds, which the property
/// `timestamp` (whole seconds) cannot say.
pub const TIMESTAMP_HEADER: &str = "doorbell-timestamp";
/// The header by which our producer says that it made the id itself, so that no second message
/// can have it and nobody needs to look for one.
pub const MINTED_HEADER: &str = "doorbell-id-minted";

/// The header that tells which copy of a message it is, of an event with its publisher's own id, or of work that our
/// services hand to each other: another text each time that it is published.
pub const COPY_HEADER: &str = "doorbell-copy";

/// The header by which our producer says that it has judged the event by the catalogue of types and its
/// tenant's limits.
pub const JUDGED_HEADER: &str = "doorbell-judged";

/// How many bytes an operator may let an event's data have at most. What we write of it has some more, and no
/// message may have more than a mebibyte where we configure RabbitMQ: it closes the channel of whoever publishes one.
pub const MOST_BYTES: u64 = 1008 * 1024;
/// How deep an event's data may nest.
pub const MAX_DEPTH: usize = 128;
/// How far ahead an event may be published.
pub const MAX_AHEAD: Duration = Duration::from_secs(30 * 24 * 3600);

/// A published message, before anything is known of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publication<'a> {
    /// The event's type.
    pub routing_key: &'a str,
    /// The event's id.
    pub message_id: Option<&'a str>,
    /// Unix seconds.
    pub timestamp: Option<u64>,
    /// The header [`TIMESTAMP_HEADER`].
    pub exact_timestamp: Option<&'a str>,
    /// What the body is said to be.
    pub content_type: Option<&'a str>,
    /// The header [`TENANT_HEADER`].
    pub tenant: Option<&'a str>,
    /// The header [`DELIVER_AT_HEADER`].
    pub deliver_at: Option<&'a str>,
    /// The header [`MINTED_HEADER`].
    pub minted: bool,
    /// The header `traceparent`.
    pub traceparent: Option<&'a str>,
    /// The header `tracestate`.
    pub tracestate: Option<&'a str>,
    /// The event's data.
    pub body: &'a [u8],
}

/// A message that is an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// The id that the publisher gave.
    pub id: Option<EventId>,
    /// Whether that id is the producer's own and so known to be the only one.
    pub minted: bool,
    /// Whose event it is.
    pub tenant: Addressee,
    /// What happened.
    pub event_type: EventType,
    /// When, if the publisher said.
    pub timestamp: Option<Timestamp>,
    /// Not to be delivered before.
    pub deliver_at: Option<Timestamp>,
    /// The trace it belongs to.
    pub trace: Trace,
}

impl Arrival {
    /// The event, once it has an id and a time.
    #[must_use]
    pub fn into_event(self, id: EventId, timestamp: Timestamp, data: &[u8]) -> Event {
        Event {
            id,
            tenant: self.tenant,
            event_type: self.event_type,
            timestamp,
            trace: self.trace,
            data: data.into(),
        }
    }
}

/// Why a message is refused. The text goes into the header `doorbell-reason`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The routing key is no event type.
    #[error("event type (routing key) {0}")]
    EventType(#[from] InvalidEventType),
    /// No tenant.
    #[error("header doorbell-tenant is missing or not a string")]
    NoTenant,
    /// The tenant is no tenant id.
    #[error("tenant (header doorbell-tenant) {0}")]
    Tenant(InvalidId),
    /// The id is no event id.
    #[error("event id (message_id) {0}")]
    Id(InvalidId),
    /// The content type is another one.
    #[error("content type is not application/json")]
    ContentType,
    /// The time is no time.
    #[error("timestamp is {0}")]
    Timestamp(InvalidTimestamp),
    /// The time to deliver at is no time.
    #[error("deliver-at (header doorbell-deliver-at) is {0}")]
    DeliverAt(InvalidTimestamp),
    /// The time to deliver at is too far away.
    #[error("deliver-at (header doorbell-deliver-at) is more than 30 days ahead")]
    TooFarAhead,
    /// The data is not one JSON value within bounds.
    #[error("data (body) {0}")]
    Data(#[from] InvalidJson),
}

/// Checks a published message. `max_bytes` bounds the data; `now` judges how far ahead the
/// delivery may be.
///
/// # Errors
/// Names the first rule that the message breaks.
pub fn admit(
    publication: &Publication<'_>,
    max_bytes: usize,
    now: Timestamp,
) -> Result<Arrival, Refusal> {
    let parts = Parts::of(publication, max_bytes, now);
    let (event_type, tenant, id) = (parts.event_type?, parts.tenant?, parts.id?);
    parts.content_type?;
    let (timestamp, deliver_at) = (parts.timestamp?, parts.deliver_at?);
    parts.data?;
    let trace = Trace::from_headers(publication.traceparent, publication.tracestate);
    Ok(Arrival {
        minted: publication.minted && id.is_some(),
        id,
        tenant,
        event_type,
        timestamp,
        deliver_at,
        trace,
    })
}

/// Every rule that a message breaks, in the order in which [`admit`] looks.
#[must_use]
pub fn refusals(publication: &Publication<'_>, max_bytes: usize, now: Timestamp) -> Vec<Refusal> {
    let parts = Parts::of(publication, max_bytes, now);
    [
        parts.event_type.err(),
        parts.tenant.err(),
        parts.id.err(),
        parts.content_type.err(),
        parts.timestamp.err(),
        parts.deliver_at.err(),
        parts.data.err(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the parts of a message are, each by itself.
struct Parts {
    event_type: Result<EventType, Refusal>,
    tenant: Result<Addressee, Refusal>,
    id: Result<Option<EventId>, Refusal>,
    content_type: Result<(), Refusal>,
    timestamp: Result<Option<Timestamp>, Refusal>,
    deliver_at: Result<Option<Timestamp>, Refusal>,
    data: Result<(), Refusal>,
}

impl Parts {
    fn of(publication: &Publication<'_>, max_bytes: usize, now: Timestamp) -> Self {
        let tenant = publication.tenant.ok_or(Refusal::NoTenant);
        let is_other = publication.content_type.is_some_and(|text| !is_json(text));
        let timestamp = match publication.exact_timestamp {
            Some(text) => text.parse().map(Some).map_err(Refusal::Timestamp),
            None => Ok(publication.timestamp.map(Timestamp::from_seconds)),
        };
        Self {
            event_type: publication.routing_key.parse().map_err(Refusal::EventType),
            tenant: tenant.and_then(|tenant| tenant.parse().map_err(Refusal::Tenant)),
            id: publication.message_id.map(str::parse).transpose().map_err(Refusal::Id),
            content_type: if is_other { Err(Refusal::ContentType) } else { Ok(()) },
            timestamp,
            deliver_at: deliver_at(publication.deliver_at, now),
            data: json::check(publication.body, max_bytes, MAX_DEPTH).map_err(Refusal::Data),
        }
    }
}

fn deliver_at(text: Option<&str>, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
    let at: Option<Timestamp> = text.map(str::parse).transpose().map_err(Refusal::DeliverAt)?;
    if at.is_some_and(|at| at > now.plus(MAX_AHEAD)) {
        return Err(Refusal::TooFarAhead);
    }
    Ok(at)
}

/// `application/json`, parameters allowed: they mean nothing for JSON (RFC 8259 §11).
fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Publication<'static> {
        Publication {
            routing_key: "a.b",
            tenant: Some("acme"),
            body: b"{}",
            ..Publication::default()
        }
    }

    fn verdict(publication: Publication<'_>) -> Result<Arrival, Refusal> {
        admit(&publication, 100, Timestamp::from_seconds(1_000_000))
    }

    #[test]
    fn what_is_allowed_comes_in() {
        let arrival = verdict(good()).unwrap();
        assert_eq!(
            (arrival.id, arrival.timestamp, arrival.deliver_at, arrival.minted),
            (None, None, None, false)
        );
        let broadcast = verdict(Publication { tenant: Some("*"), ..good() }).unwrap();
        assert_eq!(broadcast.tenant, Addressee::Everyone);
        let full = Publication {
            message_id: Some("evt"),
            timestamp: Some(5),
            content_type: Some("Application/JSON; charset=utf-8"),
            deliver_at: Some("1970-02-11T00:00:00Z"),
            ..good()
        };
        let arrival = verdict(full).unwrap();
        assert_eq!(arrival.timestamp, Some(Timestamp::from_seconds(5)));
        assert_eq!(arrival.deliver_at, Some(Timestamp::from_seconds(41 * 86_400)));
        let exact = Publication {
            exact_timestamp: Some("1970-01-01T00:00:05.250Z"),
            timestamp: Some(5),
            ..good()
        };
        assert_eq!(verdict(exact).unwrap().timestamp, Some(Timestamp::from_millis(5250)));
    }

    #[test]
    fn what_is_not_is_named() {
        use Refusal as R;
        for (publication, why) in [
            (Publication { routing_key: "", ..good() }, R::EventType(InvalidEventType::Empty)),
            (Publication { tenant: None, ..good() }, R::NoTenant),
            (Publication { tenant: Some("a.b"), ..good() }, R::Tenant(InvalidId::Character)),
            (Publication { tenant: Some("**"), ..good() }, R::Tenant(InvalidId::Character)),
            (Publication { message_id: Some("a b"), ..good() }, R::Id(InvalidId::Character)),
            (Publication { message_id: Some(""), ..good() }, R::Id(InvalidId::Empty)),
            (Publication { content_type: Some("text/plain"), ..good() }, R::ContentType),
            (
                Publication { exact_timestamp: Some("now"), ..good() },
                R::Timestamp(InvalidTimestamp),
            ),
            (
                Publication { deliver_at: Some("tomorrow"), ..good() },
                R::DeliverAt(InvalidTimestamp),
            ),
            (Publication { deliver_at: Some("1971-01-01T00:00:00Z"), ..good() }, R::TooFarAhead),
            (Publication { body: b"", ..good() }, R::Data(InvalidJson::Empty)),
            (
                Publication { body: &[b' '; 101], ..good() },
                R::Data(InvalidJson::TooLarge { size: 101, max: 100 }),
            ),
        ] {
            assert_eq!(verdict(publication), Err(why));
        }
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        use Refusal as R;
        let now = Timestamp::from_seconds(1_000_000);
        assert_eq!(refusals(&good(), 100, now), []);
        let bad = Publication {
            routing_key: "",
            message_id: Some(""),
            tenant: None,
            timestamp: Some(5),
            exact_timestamp: Some("now"),
            content_type: Some("text/plain"),
            deliver_at: Some("1971-01-01T00:00:00Z"),
            body: b"",
            ..Publication::default()
        };
        let told = [
            R::EventType(InvalidEventType::Empty),
            R::NoTenant,
            R::Id(InvalidId::Empty),
            R::ContentType,
            R::Timestamp(InvalidTimestamp),
            R::TooFarAhead,
            R::Data(InvalidJson::Empty),
        ];
        assert_eq!(refusals(&bad, 100, now), told);
        assert_eq!(verdict(bad), Err(R::EventType(InvalidEventType::Empty)));
    }
}
