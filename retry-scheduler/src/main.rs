//! The retry-scheduler: whatever cannot be finished now comes here, to wait for its time, to be
//! held for its subscription's return, or to be given up. It owns later.
//!
//! [`schedule`] takes messages in and settles them, [`act`] carries out what
//! `doorbell_common::next_move` decides, [`held`] knows who has deliveries in the stream of held
//! ones, [`resume`] lets these flow again, reading in [`pass`], at a certain [`pace`], [`compact`] makes room for
//! more of them, [`unrouted`] brings back what no queue took,
//! [`waiting`] counts what waits, [`way_back`] keeps it moving, [`roll`] lets streams forget. At an
//! operator's word, [`redrive`] sends what we had put aside on its way again.

mod act;
mod compact;
mod held;
mod metrics;
mod pace;
mod pass;
mod redrive;
mod resume;
mod roll;
mod schedule;
mod unrouted;
mod waiting;
mod way_back;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use doorbell_common::duration::DurationText;
use doorbell_common::ids::TenantId;
use doorbell_platform::args::CommonArgs;
use doorbell_platform::broker::topology::{
    HELD_BYTES, HELD_DAYS, RETRIES, SIDELINE_RETRIES, UNROUTED,
};
use doorbell_platform::broker::{ConsumerSpec, Intake};
use doorbell_platform::ids;
use doorbell_platform::limits::Limits;
use doorbell_platform::plumbing::Plumbing;
use doorbell_platform::recent::Recent;
use doorbell_platform::removals::Removals;
use doorbell_platform::service::{self, Service, ServiceArgs};
use doorbell_platform::shares::{ShareArgs, Shares};
use doorbell_platform::store::snapshots::{SnapshotArgs, Snapshots};

use metrics::Metrics;
use redrive::Redrive;
use resume::Resumer;
use schedule::Scheduler;
use unrouted::Redeclaration;
use way_back::{CameBack, WayBack};

/// Decides what happens to deliveries that could not be finished: when they are tried again,
/// and when they are given up.
#[derive(Debug, Parser)]
#[command(name = "doorbell-retry-scheduler", version, about)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    snapshots: SnapshotArgs,
    #[command(flatten)]
    shares: ShareArgs,
    /// How many messages of each queue may be in hand at once, if they are small: fewer, if they are large.
    #[arg(long, env = "DOORBELL_PREFETCH", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=2000))]
    prefetch: u16,
    /// How long after its policy's last nominal attempt a delivery is given up, time spent held not counted.
    #[arg(long, env = "DOORBELL_EXPIRE_AFTER", default_value = "7d")]
    expire_after: DurationText,
    /// How long a delivery is held for the return of its subscription, 7d at most; then it is given up.
    #[arg(long, env = "DOORBELL_EXPIRE_HELD_AFTER", default_value = "7d", value_parser = held_at_most)]
    expire_held_after: DurationText,
    /// How many bytes of held deliveries there may be, if a policy of yours lets their stream have fewer than 20 GB: when
    /// it is nearly full, tenants that have more there than their share have the oldest of it given up.
    #[arg(long, env = "DOORBELL_MOST_HELD_BYTES", default_value_t = HELD_BYTES, value_parser = clap::value_parser!(u64).range(1_000_000..=HELD_BYTES))]
    most_held_bytes: u64,
    /// After how long with nothing but failures a subscription is disabled; 0s is never.
    #[arg(long, env = "DOORBELL_DISABLE_AFTER", default_value = "5d")]
    disable_after: DurationText,
    /// The tenant, one of your own, whose events tell of what Doorbell has done: doorbell.subscription.disabled,
    /// when one was disabled because its endpoint is gone or has only failed.
    #[arg(long, env = "DOORBELL_OPERATIONAL_TENANT")]
    operational_tenant: Option<TenantId>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send messages on their way again that stand in doorbell.quarantine or doorbell.rejected, once what kept
    /// them from being worked on is mended.
    Redrive(Redrive),
}

impl ServiceArgs for Args {
    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

/// How long a note of a failure is good for at most.
const FAILURE_GOOD_FOR: Duration = Duration::from_secs(60);
/// Subscriptions remembered whose failure was noted.
const FAILURES_REMEMBERED: usize = 100_000;

fn held_at_most(text: &str) -> Result<DurationText, String> {
    let longest = Duration::from_secs(HELD_DAYS * 24 * 3600);
    match text.parse::<DurationText>() {
        Ok(duration) if duration.0 <= longest => Ok(duration),
        Ok(_) => Err(format!("the stream of held deliveries keeps them for {HELD_DAYS}d")),
        Err(error) => Err(error.to_string()),
    }
}

fn main() -> ExitCode {
    service::run("doorbell-retry-scheduler", run)
}

async fn run(args: Args, service: Service) -> anyhow::Result<()> {
    if let Some(Command::Redrive(redrive)) = args.command {
        return redrive.carry_out(&args.common, &service).await;
    }
    let shutdown = service.shutdown.clone();
    let plumbing = Plumbing::lay(&service, &args.common, &Plumbing::FOR_MESSAGES).await?;
    let Plumbing { broker, publisher, store, .. } = plumbing.clone();
    let metrics = Metrics::new(&service.registry)?;
    let snapshots = Snapshots::start(store.clone(), &args.snapshots, &shutdown);
    let scheduler = Arc::new(Scheduler {
        broker: broker.clone(),
        publisher: publisher.clone(),
        store: store.clone(),
        snapshots: snapshots.clone(),
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
        limits: Limits::start(store.clone(), &shutdown),
        removals: Removals::start(store.clone(), &shutdown),
        shares: Shares::new(&args.shares),
        expire_after: args.expire_after.0,
        expire_held_after: args.expire_held_after.0,
        disable_after: args.disable_after.0,
        operational_tenant: args.operational_tenant,
        failing: Recent::new(
            (args.disable_after.0 / 20).min(FAILURE_GOOD_FOR),
            FAILURES_REMEMBERED,
        ),
        unrouted: Redeclaration::default(),
        came_back: CameBack::default(),
    });
    if store.until_up(&shutdown).await.is_some()
        && scheduler.removals.until_known(&shutdown).await.is_some()
    {
        let telling = scheduler.came_back.clone().tell(store.clone(), shutdown.clone());
        shutdown.spawn_vital("telling what came back", telling);
        let way_back = WayBack {
            broker: broker.clone(),
            publisher: publisher.clone(),
            store: store.clone(),
            came_back: scheduler.came_back.clone(),
            detour: metrics.detour.clone(),
        };
        shutdown.spawn_vital("watch over delay queues", way_back.watch(shutdown.clone()));
        let rolling = roll::roll(store.clone(), publisher.clone(), shutdown.clone());
        shutdown.spawn_vital("rolling of streams", rolling);
        let resumer = Resumer {
            broker: broker.clone(),
            publisher,
            store,
            snapshots,
            removals: scheduler.removals.clone(),
            metrics: metrics.clone(),
            expire_after: args.expire_held_after.0,
            most_bytes: args.most_held_bytes,
            owner: ids::token(),
        };
        shutdown.spawn_vital("resumer", resumer.resume(shutdown.clone()));
        let counting = waiting::count(broker.clone(), metrics, shutdown.clone());
        shutdown.spawn_vital("counter of waiting messages", counting);
        let queues = [RETRIES, SIDELINE_RETRIES, UNROUTED]
            .map(|queue| ConsumerSpec { queue: queue.to_owned(), weight: 1 });
        let intake = Intake::start(&plumbing, (queues.to_vec(), args.prefetch), &service)?;
        scheduler.schedule(intake).await;
    }
    Ok(())
}
