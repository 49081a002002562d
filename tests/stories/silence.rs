//! Connections that are of no use and do not break: what stands between two hosts has forgotten them, or who is at
//! their other end is not whom we look for any more.

use std::sync::Arc;
use std::time::Duration;

use doorbell_local::engines::Redis;
use doorbell_tests::api::subscription;
use doorbell_tests::load::Load;
use doorbell_tests::proxy::Proxy;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, engines, eventually};
use reqwest::Method;

const SERVICES: [&str; 5] =
    ["producer", "control-plane", "retry-scheduler-1", "dispatcher-1", "dispatcher-2"];

pub(crate) async fn connections_that_were_forgotten_are_made_anew() -> anyhow::Result<()> {
    let world = Arc::new(World::with("silence", Setup::default().without_breaker()).await?);
    let proxies = Proxies::before(&world).await?;
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 503));
    world.subscribe("acme", "steady", &["#"]).await?;
    world.subscribe("acme", "flaky", &["#"]).await?;
    world.in_force().await;
    let load = Load::over_http(&world, "acme", Duration::from_millis(50));
    flows(&world).await?;

    proxies.redis.forget_connections();
    world.until_readiness("dispatcher-1", false).await?;
    flows(&world).await?;
    world.until_all_ready().await?;
    world.subscribe("acme", "later", &["later.#"]).await?;
    world.in_force().await;
    world.publish("acme", "later.made", 1.into()).await?;
    let came = || async { world.receiver.accepted("later") == 1 };
    eventually("a change is in force", seconds(20), came).await?;

    proxies.rabbitmq.forget_connections();
    // What was on its way when the connections were forgotten comes, but it is not much.
    flows(&world).await?;
    flows(&world).await?;
    world.until_all_ready().await?;

    let accepted = load.end().await?;
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!("connections forgotten amid {accepted} events: 0 lost, {duplicates} duplicates");
    Arc::into_inner(world).unwrap().finish().await
}

pub(crate) async fn a_redis_that_is_only_a_replica_now_is_left() -> anyhow::Result<()> {
    let world = World::with("replica", Setup::private()).await?;
    let proxies = Proxies::before(&world).await?;
    world.subscribe("acme", "before", &["#"]).await?;
    let folder = engines::folder().join("replica/second");
    let mut second = Redis::start(&folder, None, &[]).await?;
    engines::note(second.process())?;
    let (first_port, second_port) = (port(&world.engines.redis_url)?, second.port);
    tell(second_port, &["REPLICAOF", "127.0.0.1", &first_port.to_string()]).await?;
    let has_all = || async {
        let info = tell(second_port, &["INFO", "replication"]).await;
        info.is_ok_and(|info| info.contains("master_link_status:up"))
    };
    eventually("the second one has all", seconds(30), has_all).await?;

    // They change places, and whoever connects now is led to the new master. Nobody is cut off.
    proxies.redis.lead_to(second_port);
    tell(second_port, &["REPLICAOF", "NO", "ONE"]).await?;
    tell(first_port, &["REPLICAOF", "127.0.0.1", &second_port.to_string()]).await?;
    let body = subscription(&world.receiver.url("after"), &["#"]);
    let is_made = || async {
        let path = "/v1/tenants/acme/subscriptions";
        let answer = world.control.call(Method::POST, path, body.clone()).await;
        answer.is_ok_and(|answer| {
            assert!(answer.status == 201 || answer.status == 503, "{answer:?}");
            answer.status == 201
        })
    };
    eventually("a subscription is made", seconds(30), is_made).await?;
    let published = || async {
        world.publish("acme", "a", 1.into()).await.unwrap();
        world.receiver.count("before") > 0 && world.receiver.count("after") > 0
    };
    eventually("both are served", seconds(30), published).await?;
    world.until_all_ready().await?;
    world.finish().await?;
    second.kill().await;
    Ok(())
}

/// What stands between the services and their engines.
struct Proxies {
    redis: Proxy,
    rabbitmq: Proxy,
}

impl Proxies {
    /// Has every service come to its engines through them.
    async fn before(world: &World) -> anyhow::Result<Self> {
        let (redis_url, amqp_url) = (&world.environment.redis_url, &world.environment.amqp_url);
        let redis = Proxy::start(port(redis_url)?).await?;
        let rabbitmq = Proxy::start(port(amqp_url)?).await?;
        let through = |url: &str, proxy: &Proxy| {
            anyhow::Ok(
                url.replace(&format!(":{}/", port(url)?), &format!(":{}/", proxy.address.port())),
            )
        };
        for name in SERVICES {
            let variables = [
                ("DOORBELL_REDIS_URL", &*through(redis_url, &redis)?),
                ("DOORBELL_AMQP_URL", &*through(amqp_url, &rabbitmq)?),
            ];
            world.restart_with(name, &variables).await?;
        }
        Ok(Self { redis, rabbitmq })
    }
}

/// The port of a URL.
fn port(url: &str) -> anyhow::Result<u16> {
    let port = reqwest::Url::parse(url)?.port();
    port.ok_or_else(|| anyhow::anyhow!("{url} has no port"))
}

/// Waits until some more have come to the endpoint that takes everything.
async fn flows(world: &World) -> anyhow::Result<()> {
    let before = world.receiver.accepted("steady");
    let came = || async { world.receiver.accepted("steady") > before + 50 };
    eventually("load flows", seconds(90), came).await
}

async fn tell(port: u16, command: &[&str]) -> redis::RedisResult<String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    let mut link = client.get_multiplexed_async_connection().await?;
    let mut cmd = redis::Cmd::new();
    for word in command {
        cmd.arg(word);
    }
    cmd.query_async(&mut link).await
}
