//! Chaos: a Doorbell under load, to which happens what a seed says, one thing after the other and
//! two at once, without waiting until it has recovered. Afterwards everything that was accepted has
//! arrived, nothing was given up, and nothing is left behind.

mod fault;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::fan_out::PAGE;
use doorbell_platform::broker::topology::DEAD_LETTERS;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::api::subscription;
use crate::load::Load;
use crate::receiver::Behaviour;
use crate::redis_cluster::RedisCluster;
use crate::wait::seconds;
use crate::world::{Setup, World};
use fault::{Fault, Scene, Shaky};

/// How long it may take until everything has arrived, once nothing happens any more.
const SETTLED: Duration = seconds(300);
/// More endpoints than one page is for.
const WIDE: usize = PAGE + 50;

/// What a round came to.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    faults: u32,
    events: u64,
    posts: usize,
    duplicates: usize,
    ready_after: Duration,
    settled_after: Duration,
}

impl fmt::Display for Round {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, events, posts, duplicates, ready_after, settled_after } = self;
        write!(
            formatter,
            "{faults} faults amid {events} events: none of {posts} POSTs lost, {duplicates} duplicates; \
             all ready {ready_after:.1?} after the last fault, all there after {settled_after:.1?}"
        )
    }
}

/// The engines of a round.
#[derive(Clone, Copy, Debug)]
pub struct Engines {
    /// How many nodes RabbitMQ has.
    pub nodes: usize,
    /// Whether Redis is a cluster of three masters, with a replica each.
    pub has_redis_cluster: bool,
}

/// Plays one round: a fresh Doorbell with engines of its own, and faults for so long. The seed says which ones; when each of them meets what, no seed can say.
///
/// # Errors
/// Something was lost, foreign, changed, early, given up or left behind, or a service did not recover
/// or did not stop cleanly.
pub async fn round(seed: u64, time: Duration, engines: Engines) -> anyhow::Result<Round> {
    let mut random = StdRng::seed_from_u64(seed);
    let Engines { nodes, has_redis_cluster } = engines;
    let mut setup = Setup { schedulers: 2, nodes, ..Setup::private() };
    let mut cluster = None;
    if has_redis_cluster {
        let started = RedisCluster::start(&format!("chaos-{seed}-redis"), 1).await?;
        setup.redis_url = Some(started.urls());
        cluster = Some(Mutex::new(started));
    }
    let has_breaker = random.random_bool(0.5);
    if !has_breaker {
        setup = setup.without_breaker();
    }
    let world = Arc::new(World::with(&format!("chaos-{seed}"), setup).await?);
    let shaky = subscribe(&world).await?;
    let provider = (0..WIDE).step_by(3).map(|n| format!("wide-{n}"));
    let provider = provider.chain([shaky.endpoint.to_owned()]).collect();
    let scene = Scene { shaky, provider, cluster };
    if !has_breaker {
        // A breaker would hardly ever let through what fails the first time.
        world.receiver.behave("flaky", Behaviour::FailFirst(2, 503));
    }
    world.in_force().await;
    let loads = vec![
        Load::over_http(&world, "acme", Duration::from_millis(20)),
        Load::over_http(&world, "acme", Duration::from_millis(20)),
        Load::over_amqp(&world, "acme", Duration::from_millis(20)).await?,
        Load::over_http(&world, "wide", Duration::from_millis(1_500)),
        Load::over_http(&world, "*", Duration::from_millis(2_000)),
        Load::over_http(&world, "paced", Duration::from_millis(200)),
    ];
    let begun = Instant::now();
    let mut faults = 0;
    while begun.elapsed() < time {
        let mut choose = || Fault::choose(&mut random, nodes, time / 2);
        let (fault, other) = (choose(), choose());
        let is_pair = random.random_bool(0.4) && fault.goes_with(other);
        let at = begun.elapsed();
        if is_pair {
            eprintln!("{seed} {at:.1?}: {fault}; {other}");
            tokio::try_join!(fault.happen(&world, &scene), other.happen(&world, &scene))?;
        } else {
            eprintln!("{seed} {at:.1?}: {fault}");
            fault.happen(&world, &scene).await?;
        }
        faults += 1 + u32::from(is_pair);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
    }
    let over = Instant::now();
    world.until_all_ready().await?;
    let ready_after = over.elapsed();
    let mut events = 0;
    for load in loads {
        events += load.end().await?;
    }
    world.settle(SETTLED).await?;
    let settled_after = over.elapsed();
    world.until_nothing_waits().await?;
    let given_up = world.outsider().await?.whole_stream(DEAD_LETTERS).await?;
    anyhow::ensure!(given_up.is_empty(), "{} deliveries were given up", given_up.len());
    let (posts, duplicates) = (world.receiver.total(), world.duplicates().await?);
    Arc::into_inner(world).context("a load goes on")?.finish().await?;
    if let Some(cluster) = scene.cluster {
        cluster.into_inner().end().await;
    }
    Ok(Round { faults, events, posts, duplicates, ready_after, settled_after })
}

/// Endpoints of every kind; answers the one that things happen to.
async fn subscribe(world: &World) -> anyhow::Result<Shaky> {
    let (tenant, endpoint) = ("acme", "shaky");
    world.receiver.behave("slow", Behaviour::Slow(Duration::from_millis(100)));
    for endpoint in ["steady", "flaky", "slow"] {
        world.subscribe_as(tenant, endpoint, patient(world, endpoint)).await?;
    }
    let mut paced = patient(world, "paced");
    paced["rate_limit"] = json!({ "per_second": 10, "burst": 10 });
    world.subscribe_as("paced", "paced", paced).await?;
    world.subscribe_many("wide", ("wide", WIDE), &["#"]).await?;
    let subscription = world.subscribe_as(tenant, endpoint, patient(world, endpoint)).await?;
    Ok(Shaky { tenant, endpoint, subscription })
}

/// A subscription that gives nothing up for what happens here.
fn patient(world: &World, endpoint: &str) -> Value {
    let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
    body["retry"] = json!({ "schedule": vec!["1s"; 15] });
    body
}
