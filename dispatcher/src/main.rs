//! The dispatcher: takes events and deliveries whose time has come, tries each delivery once, and
//! hands whatever cannot be finished now to the retry-scheduler. It knows only now.
//!
//! [`dispatch`] takes messages in and settles them, [`understand`] says what a message asks for, [`serve`] finds
//! for whom that is ([`unknown`]: if it can't be told), [`fan_out`] makes their deliveries, [`served`] has the bodies, [`ledger`] remembers whom
//! it has served, [`outbox`] keeps together what goes on, [`hand`] lets others go on where an endpoint takes its time.
//! [`attempt`] makes one delivery. Before a POST, permits are shared fairly among tenants, [`limits`] keep to the rate
//! that a subscription allows, and [`gates`] say whether an endpoint may be called now. [`sender`] makes
//! one POST, [`recorder`] writes down what came of it, [`working`] notes who is not failing. [`errands`]
//! runs those of the control-plane.

mod attempt;
mod dispatch;
mod errands;
mod fan_out;
mod filtering;
mod gates;
mod hand;
mod ledger;
mod limits;
mod metrics;
mod outbox;
mod recorder;
mod sender;
mod serve;
mod served;
mod understand;
mod unknown;
mod working;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use doorbell_common::duration::DurationText;
use doorbell_common::gate::Bounds;
use doorbell_common::intake::MOST_BYTES;
use doorbell_platform::args::CommonArgs;
use doorbell_platform::broker::topology::{
    DELIVERIES, PAGES, SIDELINE_PAGES, TESTS, ingress_queues, sideline_queues,
};
use doorbell_platform::broker::{ConsumerSpec, Intake};
use doorbell_platform::catalogue::{CatalogueArgs, Judge};
use doorbell_platform::followed::known_soon;
use doorbell_platform::limits::Limits as TenantLimits;
use doorbell_platform::permits::Permits;
use doorbell_platform::plumbing::Plumbing;
use doorbell_platform::removals::Removals;
use doorbell_platform::sealing::SealingArgs;
use doorbell_platform::service::{self, Service, ServiceArgs, WrongArguments};
use doorbell_platform::shares::{ShareArgs, Shares};
use doorbell_platform::store::snapshots::{SnapshotArgs, Snapshots};
use doorbell_platform::targets::TargetArgs;
use doorbell_platform::workshop::Workshop;

use dispatch::Dispatcher;
use gates::Gates;
use ledger::Ledger;
use limits::Limits;
use metrics::Metrics;
use outbox::Outbox;
use recorder::Recorder;
use sender::{NameServer, Sender};
use working::Working;

/// Deliveries allocate on one thread and free on another; the system's allocator then makes the
/// threads wait for each other, which a profile showed as the largest single cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Delivers events to the endpoints of those who subscribed to them.
#[derive(Debug, Parser)]
#[command(name = "doorbell-dispatcher", version, about)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    snapshots: SnapshotArgs,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    sealing: SealingArgs,
    #[command(flatten)]
    catalogue: CatalogueArgs,
    #[command(flatten)]
    shares: ShareArgs,
    /// How many messages of each queue may be in hand at once, if they are small: fewer, if they are large.
    #[arg(long, env = "DOORBELL_PREFETCH", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=2000))]
    prefetch: u16,
    /// How many POSTs may be in flight at once.
    #[arg(long, env = "DOORBELL_MAX_IN_FLIGHT", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_in_flight: u32,
    /// How many more POSTs may be in flight that have taken half a second, or whose endpoint has not answered of late.
    #[arg(long, env = "DOORBELL_MAX_SLOW", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_slow: u32,
    /// How many connections to endpoints may be kept open for POSTs to come; to a host that is called less than every
    /// 4 s none is.
    #[arg(long, env = "DOORBELL_MAX_IDLE_CONNECTIONS", default_value_t = 4096, value_parser = RangedU64ValueParser::<usize>::new().range(..=100_000))]
    max_idle_connections: usize,
    /// How many POSTs may be in flight at once to one endpoint; its subscription may ask for fewer.
    #[arg(long, env = "DOORBELL_ENDPOINT_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    endpoint_concurrency: u32,
    /// How many deliveries may wait in memory for one endpoint; the others are held through RabbitMQ.
    #[arg(long, env = "DOORBELL_ENDPOINT_WAITING", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    endpoint_waiting: u32,
    /// After how many failures in a row an endpoint is left alone, but for single probes.
    #[arg(long, env = "DOORBELL_BREAKER_FAILURES", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    breaker_failures: u32,
    /// The most bytes that an event's data may have; no fewer than the producer allows.
    #[arg(long, env = "DOORBELL_MAX_EVENT_BYTES", default_value_t = 256 * 1024, value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_BYTES))]
    max_event_bytes: usize,
    /// How long the id of a finished event is remembered; the producer must have the same. That of one that
    /// came without a time is remembered for two minutes at least.
    #[arg(long, env = "DOORBELL_DUPLICATE_WINDOW", default_value = "1h")]
    duplicate_window: DurationText,
    /// Name servers to ask for endpoints' names (IP addresses, perhaps with a port, comma-separated), instead of the system's.
    #[arg(long, env = "DOORBELL_DNS_SERVERS", value_delimiter = ',')]
    dns_servers: Vec<NameServer>,
    /// A PEM file of certificate authorities that endpoints may have their certificates from, beside the system's.
    #[arg(long, env = "DOORBELL_ENDPOINT_CA_FILE")]
    endpoint_ca_file: Option<PathBuf>,
    /// Who we say that we are (a DNS name) when we ask an endpoint by an OPTIONS request whether it takes POSTs from us.
    #[arg(long, env = "DOORBELL_WEBHOOK_ORIGIN", default_value = "doorbell")]
    webhook_origin: String,
}

impl ServiceArgs for Args {
    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

/// Pages that may be begun at once: enough to keep every permit for a POST busy. Each has up to 256
/// subscriptions in memory.
const PAGES_AT_ONCE: usize = 16;

/// The longest timeout that a subscription may ask for, and what it takes to settle afterwards.
const SHORTEST_GRACE: Duration = Duration::from_secs(30 + 10);

fn main() -> ExitCode {
    service::run("doorbell-dispatcher", run)
}

async fn run(args: Args, service: Service) -> anyhow::Result<()> {
    if args.common.grace() < SHORTEST_GRACE {
        let sentence =
            "--grace must be at least 40s: an attempt may take 30s, and settling it some more";
        return Err(WrongArguments(sentence.to_owned()).into());
    }
    let secrets = args.sealing.read().map_err(WrongArguments::because)?;
    let ca_file = args.endpoint_ca_file.as_deref();
    let tls = sender::tls_config(ca_file).map_err(WrongArguments::because)?;
    let shutdown = service.shutdown.clone();
    let plumbing = Plumbing::lay(&service, &args.common, &Plumbing::FOR_MESSAGES).await?;
    let publisher = plumbing.publisher.clone();
    let store = plumbing.store.clone().with_secrets(secrets);
    let metrics = Metrics::new(&service.registry)?;
    let max_slow = usize::try_from(args.max_slow)?;
    let dispatcher = Arc::new(Dispatcher {
        sender: Sender::new(
            args.targets.policy(),
            &args.dns_servers,
            tls,
            (args.max_idle_connections, metrics.connections_opened.clone()),
        )?,
        recorder: Recorder::start(publisher.clone(), metrics.clone(), &shutdown),
        outbox: Outbox::start(
            publisher.clone(),
            Shares::new(&args.shares),
            metrics.clone(),
            &shutdown,
        ),
        publisher,
        store: store.clone(),
        snapshots: Snapshots::start(store.clone(), &args.snapshots, &shutdown),
        shutdown: shutdown.clone(),
        gates: Gates::new(
            Bounds {
                concurrency: args.endpoint_concurrency,
                waiting: args.endpoint_waiting,
                failures: args.breaker_failures,
            },
            metrics.breakers_open.clone(),
        ),
        limits: Limits::new(store.clone()),
        working: Working::start(store.clone(), &shutdown),
        metrics,
        posts: Permits::new(usize::try_from(args.max_in_flight)?),
        slow_posts: Permits::of_which(max_slow, max_slow / 4),
        pages: Permits::new(PAGES_AT_ONCE),
        workshop: Workshop::default(),
        filters: Workshop::default(),
        ledger: Ledger::start(store.clone(), &shutdown),
        alone: tokio::sync::Mutex::new(()),
        judge: Judge::start(&args.catalogue, store.clone(), &service.registry, &shutdown)?,
        tenant_limits: TenantLimits::start(store.clone(), &shutdown),
        removals: Removals::start(store.clone(), &shutdown),
        max_event_bytes: args.max_event_bytes,
        duplicate_window: args.duplicate_window.0,
        origin: args.webhook_origin.clone(),
    });
    // Nothing is taken in before the store was there once: a message could only wait in hand.
    if store.until_up(&shutdown).await.is_some()
        && dispatcher.removals.until_known(&shutdown).await.is_some()
    {
        let (judge, limits) = (&dispatcher.judge, &dispatcher.tenant_limits);
        known_soon(async {
            judge.until_known(&shutdown).await?;
            limits.until_known(&shutdown).await
        })
        .await;
        let intake = Intake::start(&plumbing, (queues(), args.prefetch), &service)?;
        dispatcher.dispatch(intake).await;
    }
    Ok(())
}

fn queues() -> Vec<ConsumerSpec> {
    let mut queues = ingress_queues();
    queues.extend(sideline_queues());
    queues.extend([PAGES, SIDELINE_PAGES, DELIVERIES, TESTS].map(str::to_owned));
    // Deliveries whose time has come are of all tenants, and of many that have failed before.
    let weight = |queue: &str| if queue == DELIVERIES { 4 } else { 1 };
    queues.into_iter().map(|queue| ConsumerSpec { weight: weight(&queue), queue }).collect()
}
