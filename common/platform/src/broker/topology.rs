//! The exchanges and queues. Names and arguments are permanent: RabbitMQ refuses to declare what
//! exists with other ones. What may change later (lengths, ages) belongs into policies.

mod arguments;

use anyhow::Context as _;
use doorbell_common::intake::TENANT_HEADER;
use doorbell_common::rung::DelayQueue;
use doorbell_common::sideline::Lane;
use futures_util::future::{try_join, try_join_all};
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeUnbindOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::protocol::AMQPError;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use arguments::{delay_queue, hashing, stream, test_queue, with_alternate, work_queue};

/// Where events are published.
pub const EVENTS: &str = "doorbell.events";
/// Where we publish to our own queues, by their names.
pub const INTERNAL: &str = "doorbell.internal";
/// Where messages go that no queue took; the queue behind it has the same name.
pub const UNROUTED: &str = "doorbell.unrouted";
/// Where events go of a tenant that floods its shard, so that the others there do not wait behind
/// them.
pub const SIDELINE: &str = "doorbell.sideline";
/// Pages of fan-outs.
pub const PAGES: &str = "doorbell.pages";
/// Pages of events that came from the sideline, or are for very many.
pub const SIDELINE_PAGES: &str = "doorbell.sideline.pages";
/// Deliveries (and events) whose time has come.
pub const DELIVERIES: &str = "doorbell.deliveries";
/// Whatever could not be finished now: the retry-scheduler's inbox.
pub const RETRIES: &str = "doorbell.retries";
/// The same, where it is more than its tenant's share.
pub const SIDELINE_RETRIES: &str = "doorbell.sideline.retries";
/// Errands of the control-plane.
pub const TESTS: &str = "doorbell.tests";
/// The exchange by which they are answered, each to a queue of whoever asked. What nobody waits for any more is dropped.
pub const REPLIES: &str = "doorbell.replies";
/// Messages that break the rules of publishing, with the reason.
pub const REJECTED: &str = "doorbell.rejected";
/// Messages that were delivered to us too often without ever being finished.
pub const QUARANTINE: &str = "doorbell.quarantine";
/// The stream of attempts.
pub const ATTEMPTS: &str = "doorbell.attempts";
/// The stream of deliveries that were given up.
pub const DEAD_LETTERS: &str = "doorbell.dead-letters";
/// The stream of deliveries that wait for their subscription's return.
pub const HELD: &str = "doorbell.held";

const GIGABYTE: u64 = 1_000_000_000;

/// The streams: for how many days they keep what is in them, and how many bytes of it.
const STREAMS: [(&str, u64, u64); 3] = [
    (ATTEMPTS, 3, 5 * GIGABYTE),
    (DEAD_LETTERS, 30, 20 * GIGABYTE),
    (HELD, HELD_DAYS + 1, HELD_BYTES),
];
/// How large the stream of held deliveries grows before RabbitMQ forgets what is oldest there.
pub const HELD_BYTES: u64 = 20 * GIGABYTE;
/// For how many days a delivery may be held for its subscription's return; its stream keeps it for a day more, so
/// that it is given up rather than forgotten.
pub const HELD_DAYS: u64 = 7;
/// How large a segment of a stream grows before the next one begins.
pub const SEGMENT_BYTES: usize = 64_000_000;

/// An exchange and the queues over which it spreads tenants.
struct Spread {
    /// The exchange; the one queue that is used without sharding has the same name.
    exchange: &'static str,
    kind: ExchangeKind,
    /// Between that and the shards: hashes the tenant.
    sharded: &'static str,
    /// Between that and the one queue, on a broker that cannot hash.
    single: &'static str,
    shards: u32,
}

/// Where events arrive.
const INGRESS: Spread = Spread {
    exchange: EVENTS,
    kind: ExchangeKind::Topic,
    sharded: "doorbell.ingress.sharded",
    single: "doorbell.ingress.single",
    shards: 16,
};
/// Fewer shards: those who flood are few.
const ASIDE: Spread = Spread {
    exchange: SIDELINE,
    kind: ExchangeKind::Fanout,
    sharded: "doorbell.sideline.sharded",
    single: "doorbell.sideline.single",
    shards: 4,
};

impl Spread {
    fn shards(&self) -> impl Iterator<Item = String> {
        (0..self.shards).map(|shard| format!("{}.{shard}", self.exchange))
    }

    fn queues(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.exchange.to_owned()).chain(self.shards())
    }
}

/// Declared after all else: where it is, all is there.
const LAST_DECLARED: &str = REPLIES;

/// What AMQP says of something that is not there, and of what one may not do.
const NOT_FOUND: u16 = 404;
const ACCESS_REFUSED: u16 = 403;

/// Whether a queue is one of those that we publish to by their names.
pub(super) fn is_internal(queue: &str) -> bool {
    [PAGES, SIDELINE_PAGES, DELIVERIES, RETRIES, SIDELINE_RETRIES].contains(&queue)
}

/// The lane that a queue belongs to.
#[must_use]
pub fn lane_of(queue: &str) -> Lane {
    if queue.starts_with(SIDELINE) { Lane::Sideline } else { Lane::Main }
}

/// The retry-scheduler's inbox in a lane.
#[must_use]
pub fn retries(lane: Lane) -> &'static str {
    match lane {
        Lane::Main => RETRIES,
        Lane::Sideline => SIDELINE_RETRIES,
    }
}

/// How events are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharding {
    /// By tenant, over 16 queues.
    ByTenant,
    /// Not: the broker lacks the plugin.
    Single,
}

/// The queues that events arrive in: the shards, and the one that is used without them.
#[must_use]
pub fn ingress_queues() -> Vec<String> {
    INGRESS.queues().collect()
}

/// The same for events of tenants that flood.
#[must_use]
pub fn sideline_queues() -> Vec<String> {
    ASIDE.queues().collect()
}

/// Asks whether the broker can hash. The answer "no" closes the connection, or the channel.
pub(super) async fn probe_sharding(connection: &Connection) -> anyhow::Result<Sharding> {
    let channel = connection.create_channel().await?;
    match declare_sharded_exchange(&channel, INGRESS.sharded).await {
        Ok(()) => Ok(Sharding::ByTenant),
        Err(error) if matches!(error.kind(), ErrorKind::ProtocolError(amqp) if is_unknown_type(amqp)) => {
            Ok(Sharding::Single)
        }
        Err(error) => Err(error).context("cannot ask RabbitMQ for the consistent-hash exchange"),
    }
}

/// Up to 3.13 RabbitMQ closes the connection over this (503 `COMMAND_INVALID`), from 4.0 on only the channel (406
/// `PRECONDITION_FAILED`, which it also says of one that exists with other arguments).
fn is_unknown_type(error: &AMQPError) -> bool {
    let says_so = error.get_message().as_str().contains("unknown exchange type");
    error.get_id() == 503 || (error.get_id() == 406 && says_so)
}

/// Whether everything is declared. Newer versions of RabbitMQ answer that only to who may declare it, but tell the others
/// of what is not there that it is not (4.3).
///
/// # Errors
/// RabbitMQ says neither yes nor no.
pub(super) async fn is_declared(connection: &Connection) -> anyhow::Result<bool> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    for exchange in [EVENTS, LAST_DECLARED] {
        // An answer that is an error closes it.
        let channel = connection.create_channel().await?;
        // Of what is there the kind does not matter.
        let looking = channel.exchange_declare(
            exchange.into(),
            ExchangeKind::Direct,
            options,
            FieldTable::default(),
        );
        let Err(error) = looking.await else {
            channel.close(200, "looked".into()).await?;
            continue;
        };
        let says = |code: u16| matches!(error.kind(), ErrorKind::ProtocolError(amqp) if amqp.get_id() == code);
        if says(NOT_FOUND) {
            return Ok(false);
        }
        if !says(ACCESS_REFUSED) {
            return Err(error).context("cannot ask RabbitMQ for our exchanges");
        }
    }
    Ok(true)
}

/// Declares everything on a channel of its own. What others publish to comes when all that it leads to is there: what
/// an exchange takes that leads nowhere is confirmed, and lost. What does not need each other is asked for at once,
/// because RabbitMQ may be some milliseconds away.
pub(super) async fn declare(connection: &Connection, sharding: Sharding) -> anyhow::Result<()> {
    let channel = connection.create_channel().await?;
    try_join(
        declare_exchange(&channel, UNROUTED, ExchangeKind::Fanout, FieldTable::default()),
        declare_exchange(&channel, INTERNAL, ExchangeKind::Direct, with_alternate()),
    )
    .await?;
    declare_queues(&channel).await?;
    try_join(
        declare_spread(&channel, &ASIDE, sharding, with_alternate()),
        declare_spread(&channel, &INGRESS, sharding, FieldTable::default()),
    )
    .await?;
    declare_exchange(&channel, LAST_DECLARED, ExchangeKind::Direct, FieldTable::default()).await?;
    channel.close(200, "declared".into()).await?;
    try_join(
        remove_other_way(connection, &INGRESS, sharding),
        remove_other_way(connection, &ASIDE, sharding),
    )
    .await?;
    Ok(())
}

/// Has what is for the retry-schedulers go to their inboxes.
///
/// # Errors
/// RabbitMQ refused.
pub async fn bind_retries(channel: &Channel) -> anyhow::Result<()> {
    for inbox in Lane::ALL.map(retries) {
        bind(channel, inbox, INTERNAL, inbox).await?;
    }
    Ok(())
}

/// Has it go to [`UNROUTED`], until anyone declares the topology.
///
/// # Errors
/// RabbitMQ refused.
pub async fn unbind_retries(channel: &Channel) -> anyhow::Result<()> {
    for inbox in Lane::ALL.map(retries) {
        channel
            .queue_unbind(inbox.into(), INTERNAL.into(), inbox.into(), FieldTable::default())
            .await
            .with_context(|| format!("cannot unbind queue {inbox}"))?;
    }
    Ok(())
}

/// How many messages are ready in a queue.
///
/// # Errors
/// There is no such queue.
pub async fn waiting(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(declared.message_count())
}

async fn declare_exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
    arguments: FieldTable,
) -> anyhow::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(name.into(), kind, options, arguments)
        .await
        .with_context(|| format!("cannot declare exchange {name}"))
}

async fn declare_queues(channel: &Channel) -> anyhow::Result<()> {
    declare_queue(channel, UNROUTED, work_queue()).await?;
    bind(channel, UNROUTED, UNROUTED, "").await?;
    let mut queues: Vec<(String, FieldTable)> =
        [PAGES, SIDELINE_PAGES, DELIVERIES, RETRIES, SIDELINE_RETRIES, REJECTED, QUARANTINE]
            .map(|name| (name.to_owned(), work_queue()))
            .to_vec();
    queues.extend(DelayQueue::all().map(|queue| (queue.name(), delay_queue(queue))));
    queues.push((TESTS.to_owned(), test_queue()));
    queues.extend(STREAMS.map(|(name, days, size)| (name.to_owned(), stream(days, size))));
    try_join_all(queues.iter().map(async |(name, arguments)| {
        declare_queue(channel, name, arguments.clone()).await?;
        bind(channel, name, INTERNAL, name).await
    }))
    .await?;
    Ok(())
}

async fn declare_spread(
    channel: &Channel,
    spread: &Spread,
    sharding: Sharding,
    arguments: FieldTable,
) -> anyhow::Result<()> {
    let queues: Vec<String> = spread.queues().collect();
    try_join_all(queues.iter().map(|queue| declare_queue(channel, queue, work_queue()))).await?;
    let way = match sharding {
        Sharding::ByTenant => {
            declare_sharded_exchange(channel, spread.sharded)
                .await
                .with_context(|| format!("cannot declare exchange {}", spread.sharded))?;
            let shards: Vec<String> = spread.shards().collect();
            // The binding key of this exchange type is a weight.
            try_join_all(shards.iter().map(|queue| bind(channel, queue, spread.sharded, "1")))
                .await?;
            spread.sharded
        }
        Sharding::Single => {
            declare_exchange(channel, spread.single, ExchangeKind::Fanout, with_alternate())
                .await?;
            bind(channel, spread.exchange, spread.single, "").await?;
            spread.single
        }
    };
    let binding = async {
        let (way, exchange) = (way.into(), spread.exchange.into());
        let (options, arguments) = (ExchangeBindOptions::default(), FieldTable::default());
        let bound = channel.exchange_bind(way, exchange, "#".into(), options, arguments).await;
        bound.with_context(|| format!("cannot bind to exchange {}", spread.exchange))
    };
    // One right after the other, for between them it leads nowhere.
    let declaring = declare_exchange(channel, spread.exchange, spread.kind.clone(), arguments);
    try_join(declaring, binding).await?;
    Ok(())
}

/// After the plugin was switched on or off, events must not come both ways. The right way is
/// bound by now, so nothing falls between; what is not there to unbind is no matter.
async fn remove_other_way(
    connection: &Connection,
    spread: &Spread,
    sharding: Sharding,
) -> anyhow::Result<()> {
    let other = match sharding {
        Sharding::ByTenant => spread.single,
        Sharding::Single => spread.sharded,
    };
    let channel = connection.create_channel().await?;
    let options = ExchangeUnbindOptions::default();
    let unbound = channel
        .exchange_unbind(
            other.into(),
            spread.exchange.into(),
            "#".into(),
            options,
            FieldTable::default(),
        )
        .await;
    if unbound.is_ok() {
        channel.close(200, "unbound".into()).await?;
    }
    Ok(())
}

async fn declare_sharded_exchange(channel: &Channel, name: &str) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let kind = ExchangeKind::Custom("x-consistent-hash".to_owned());
    channel.exchange_declare(name.into(), kind, options, hashing(TENANT_HEADER)).await
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) -> anyhow::Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel
        .queue_declare(name.into(), options, arguments)
        .await
        .with_context(|| format!("cannot declare queue {name}"))?;
    Ok(())
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> anyhow::Result<()> {
    channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .with_context(|| format!("cannot bind queue {queue} to {exchange}"))
}

#[cfg(test)]
mod tests {
    use doorbell_common::removal::{GONE_AFTER, ROLL_EVERY};

    use super::*;

    #[test]
    fn a_broker_that_cannot_hash_says_so_in_its_versions_way() {
        let unknown = "PRECONDITION_FAILED - unknown exchange type 'x-consistent-hash'";
        let other = "PRECONDITION_FAILED - inequivalent arg 'hash-header' for exchange";
        for (id, text, is_unknown) in [
            (503, "COMMAND_INVALID - unknown exchange type 'x-consistent-hash'", true),
            (406, unknown, true),
            (406, other, false),
            (403, "ACCESS_REFUSED", false),
        ] {
            let error = AMQPError::from_id(id, text.into()).unwrap();
            assert_eq!(is_unknown_type(&error), is_unknown, "{id} {text}");
        }
    }

    #[test]
    fn what_is_removed_is_not_said_to_be_gone_before_the_last_stream_has_forgotten_it() {
        // Until its segment is closed, and until the next one is, which is when RabbitMQ looks.
        for (name, days, _) in STREAMS {
            assert!(ROLL_EVERY * (u32::try_from(days).unwrap() + 2) < GONE_AFTER, "{name}");
        }
    }
}
