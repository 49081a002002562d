//! With which arguments exchanges and queues are declared. They are permanent, as names are.

use doorbell_common::rung::DelayQueue;
use lapin::types::{AMQPValue, FieldTable};

use super::{INTERNAL, QUARANTINE, SEGMENT_BYTES, UNROUTED, retries};

/// After so many deliveries without an end a message goes to [`QUARANTINE`]. High, because each
/// consumer that is lost counts for everything it had been sent.
const DELIVERY_LIMIT: i32 = 1000;
/// A request for a test that nobody took within this time has no one waiting any more.
const TEST_TTL_MS: i32 = 60_000;

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// What finds no queue by way of this exchange is kept.
pub(super) fn with_alternate() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("alternate-exchange".into(), long(UNROUTED));
    arguments
}

/// One that spreads what it takes by a header besides.
pub(super) fn hashing(header: &str) -> FieldTable {
    let mut arguments = with_alternate();
    arguments.insert("hash-header".into(), long(header));
    arguments
}

/// A replicated queue that drops nothing: past the delivery limit a message moves, at least
/// once, to quarantine.
pub(super) fn work_queue() -> FieldTable {
    let mut arguments = dead_lettering_to(QUARANTINE);
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments
}

/// A queue that nobody consumes: after its time, each message moves back to the scheduler.
pub(super) fn delay_queue(queue: DelayQueue) -> FieldTable {
    let mut arguments = dead_lettering_to(retries(queue.lane));
    let millis = i64::try_from(queue.rung.length().as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(millis));
    arguments
}

/// A queue whose messages nobody misses after a while.
pub(super) fn test_queue() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long("quorum"));
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(TEST_TTL_MS));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments
}

/// At most once, which is the default, loses messages when the broker is killed.
fn dead_lettering_to(queue: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long("quorum"));
    arguments.insert("x-dead-letter-exchange".into(), long(INTERNAL));
    arguments.insert("x-dead-letter-routing-key".into(), long(queue));
    arguments.insert("x-dead-letter-strategy".into(), long("at-least-once"));
    arguments.insert("x-overflow".into(), long("reject-publish"));
    arguments
}

/// A stream with bounds that policies may tighten.
pub(super) fn stream(days: u64, max_bytes: u64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long("stream"));
    arguments.insert("x-max-age".into(), long(&format!("{days}D")));
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(max_bytes));
    let segment = i64::try_from(SEGMENT_BYTES).unwrap_or(i64::MAX);
    arguments.insert("x-stream-max-segment-size-bytes".into(), AMQPValue::LongLongInt(segment));
    arguments
}
