//! Events for many: split into pages, shared by dispatchers, and not begun anew after a crash.

use std::time::Duration;

use anyhow::Context as _;
use doorbell_platform::broker::topology;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, amqp, eventually};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::Instant;

/// A setup in which each dispatcher has so many POSTs in flight at most.
fn with_in_flight(mut setup: Setup, most: usize) -> Setup {
    setup.dispatcher_extra.push(("DOORBELL_MAX_IN_FLIGHT".to_owned(), most.to_string()));
    setup
}

async fn world_with(name: &str, in_flight: usize) -> anyhow::Result<World> {
    World::with(name, with_in_flight(Setup::default(), in_flight)).await
}

pub(crate) async fn a_kill_repeats_no_more_than_was_in_flight() -> anyhow::Result<()> {
    const ENDPOINTS: usize = 3000;
    const IN_FLIGHT: usize = 40;
    let world = world_with("big", IN_FLIGHT).await?;
    world.subscribe_many("acme", ("many", ENDPOINTS), &["big.#"]).await?;
    for n in 0..ENDPOINTS {
        world.receiver.behave(&format!("many-{n}"), Behaviour::Slow(Duration::from_millis(150)));
    }
    world.subscribe("beside", "beside", &["#"]).await?;
    world.in_force().await;
    world.publish("acme", "big.one", json!(1)).await?;
    for part in 1..4 {
        eventually("a part has arrived", seconds(60), || async {
            world.receiver.total() > part * ENDPOINTS / 4
        })
        .await?;
        for name in ["dispatcher-1", "dispatcher-2"] {
            world.kill_and_restart(name).await?;
        }
        // Others are served beside it.
        world.publish("beside", "small", json!(part)).await?;
    }
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    let known = world.metric("doorbell_ledger_hits_total").await?;
    eprintln!(
        "one event for {ENDPOINTS}, both dispatchers killed three times: {duplicates} duplicates, {known} known to the ledger since the last kill"
    );
    // Three kills of two dispatchers.
    assert!(duplicates <= 3 * 2 * IN_FLIGHT, "{duplicates} duplicates");
    world.finish().await
}

/// What a dispatcher has in hand when it loses its connection comes to another one, or again to it: they do not both go
/// on with it.
pub(crate) async fn a_lost_connection_repeats_no_more_than_was_in_flight() -> anyhow::Result<()> {
    const ENDPOINTS: usize = 200;
    const EVENTS: usize = 20;
    const IN_FLIGHT: usize = 40;
    let world = world_with("lost", IN_FLIGHT).await?;
    world.subscribe_many("acme", ("many", ENDPOINTS), &["#"]).await?;
    world.subscribe("alone", "alone", &["#"]).await?;
    for endpoint in (0..ENDPOINTS).map(|n| format!("many-{n}")).chain(["alone".to_owned()]) {
        world.receiver.behave(&endpoint, Behaviour::Slow(Duration::from_millis(150)));
    }
    world.in_force().await;
    for n in 0..EVENTS {
        world.publish("acme", "big", json!(n)).await?;
        for m in 0..4 {
            world.publish("alone", "small", json!([n, m])).await?;
        }
    }
    for part in 1..3 {
        eventually("a part has arrived", seconds(60), || async {
            world.receiver.total() > part * EVENTS * ENDPOINTS / 4
        })
        .await?;
        world.engines.close_connections(&world.vhost).await?;
    }
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "all connections lost twice amid {EVENTS} events for {ENDPOINTS}: {duplicates} duplicates"
    );
    assert!(duplicates <= 2 * 2 * IN_FLIGHT, "{duplicates} duplicates");
    world.finish().await
}

/// Where a machine is lost, RabbitMQ and Redis may be lost to a dispatcher at once. What comes again then waits for the
/// ledger, and nobody else does.
pub(crate) async fn what_comes_again_waits_for_its_ledger() -> anyhow::Result<()> {
    const ENDPOINTS: usize = 100;
    const EVENTS: usize = 12;
    const IN_FLIGHT: usize = 40;
    let world = World::with("unread", with_in_flight(Setup::private(), IN_FLIGHT)).await?;
    world.subscribe_many("acme", ("many", ENDPOINTS), &["#"]).await?;
    world.subscribe_many("few", ("few", 5), &["#"]).await?;
    world.subscribe("beside", "beside", &["#"]).await?;
    // The last of each message keeps it in hand.
    for slow in ["many-0", "few-0"] {
        world.receiver.behave(slow, Behaviour::Slow(seconds(6)));
    }
    world.in_force().await;
    for n in 0..EVENTS {
        for tenant in ["acme", "few", "beside"] {
            world.publish(tenant, "a", json!(n)).await?;
        }
    }
    eventually("all but the last of each has arrived", seconds(60), || async {
        world.ledger.missing(&world.receiver).iter().all(|(endpoint, _)| endpoint.ends_with("-0"))
    })
    .await?;
    let stopped = Instant::now();
    world.engines.redis.lock().await.process().signal(Signal::SIGSTOP)?;
    world.engines.close_connections(&world.vhost).await?;
    world.until_readiness("producer", true).await?;
    for n in 0..3 {
        let before = world.receiver.accepted("beside");
        world.publish("beside", "a", json!([n])).await?;
        eventually("others are served", seconds(30), || async {
            world.receiver.accepted("beside") > before
        })
        .await?;
    }
    world.until_readiness("dispatcher-1", false).await?;
    world.engines.redis.lock().await.process().signal(Signal::SIGCONT)?;
    let stood_still = stopped.elapsed();
    // For so long a message waits for its ledger.
    anyhow::ensure!(stood_still < seconds(60), "{stood_still:?} without Redis: it proves nothing");
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "RabbitMQ and Redis lost at once amid {EVENTS} events for {ENDPOINTS}: {duplicates} duplicates"
    );
    // What two dispatchers had in flight, or had not noted yet, and the last of each message.
    assert!(duplicates <= 2 * IN_FLIGHT + 2 * EVENTS, "{duplicates} duplicates");
    world.finish().await
}

/// A ledger ends with its message. What comes once more, and could not be asked about because Redis was away, is not done
/// again for that.
pub(crate) async fn what_was_done_before_redis_was_away_is_not_done_again() -> anyhow::Result<()> {
    // As many are moved aside when they come again, and as few are not.
    for (name, endpoints) in [("done-by-many", 30), ("done-by-few", 12)] {
        comes_again(name, endpoints).await.with_context(|| format!("{endpoints} endpoints"))?;
    }
    Ok(())
}

async fn comes_again(name: &str, endpoints: usize) -> anyhow::Result<()> {
    const COPIES: u8 = 8;
    let world = World::with(name, Setup::private()).await?;
    world.subscribe_many("acme", ("many", endpoints), &["#"]).await?;
    world.in_force().await;
    let outsider = world.outsider().await?;
    let publish = || outsider.publish("a", amqp::event("acme", Some("once"), &[]), b"1");
    world.ledger.accepted("acme", "a", "once", "1");
    publish().await?;
    world.settle(seconds(60)).await?;
    // What both dispatchers know they go by without Redis.
    for n in 0..20 {
        world.publish("acme", "a", json!(n)).await?;
    }
    world.settle(seconds(60)).await?;
    assert_eq!(world.duplicates().await?, 0);

    // Some copies are with the one when it dies, and come again to the other.
    world.signal("dispatcher-1", Signal::SIGSTOP).await?;
    for _ in 0..COPIES {
        publish().await?;
    }
    let other = async |metric: &str| world.metric_of("dispatcher-2", metric).await;
    eventually("the other one has dropped those that it got", seconds(20), || async {
        let depths = topology::ingress_queues();
        let depths = depths.iter().map(|queue| outsider.depth(queue));
        let depths = futures_util::future::try_join_all(depths).await;
        depths.is_ok_and(|all| all.iter().all(|n| *n == 0))
            && other("doorbell_events_duplicate_total").await.is_ok_and(|dropped| dropped > 0.5)
            && other("doorbell_messages_in_hand").await.is_ok_and(|in_hand| in_hand < 0.5)
    })
    .await?;
    let dropped = other("doorbell_events_duplicate_total").await?;
    assert!(dropped < COPIES.into(), "all came to the other one: it proves nothing");
    world.engines.redis.lock().await.process().signal(Signal::SIGSTOP)?;
    world.kill("dispatcher-1").await?;
    world.until_readiness("dispatcher-2", false).await?;
    world.engines.redis.lock().await.process().signal(Signal::SIGCONT)?;
    world.restart("dispatcher-1").await?;
    world.until_all_ready().await?;
    let duplicates = world.duplicates().await?;
    eprintln!("copies of what {endpoints} have had: {duplicates} duplicates");
    assert_eq!(duplicates, 0);
    world.finish().await
}

/// RabbitMQ gives up who stands still for long. Others do his work meanwhile, and he leaves it to them when he goes on.
pub(crate) async fn who_stood_still_repeats_no_more_than_was_in_flight() -> anyhow::Result<()> {
    const ENDPOINTS: usize = 100;
    const EVENTS: usize = 20;
    const IN_FLIGHT: usize = 40;
    let world = world_with("still", IN_FLIGHT).await?;
    world.subscribe_many("acme", ("many", ENDPOINTS), &["#"]).await?;
    for n in 0..ENDPOINTS {
        world.receiver.behave(&format!("many-{n}"), Behaviour::Slow(Duration::from_millis(150)));
    }
    world.in_force().await;
    for n in 0..EVENTS {
        world.publish("acme", "big", json!(n)).await?;
    }
    eventually("a part has arrived", seconds(60), || async {
        world.receiver.total() > EVENTS * ENDPOINTS / 4
    })
    .await?;
    world.signal("dispatcher-1", Signal::SIGSTOP).await?;
    eventually("all has arrived", seconds(120), || async {
        world.ledger.missing(&world.receiver).is_empty()
    })
    .await?;
    world.signal("dispatcher-1", Signal::SIGCONT).await?;
    world.until_readiness("dispatcher-1", true).await?;
    world.settle(seconds(30)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "one of two dispatchers stood still amid {EVENTS} events for {ENDPOINTS}: {duplicates} duplicates"
    );
    // What was in flight when it stopped, and what it begins before it knows.
    assert!(duplicates <= 2 * IN_FLIGHT, "{duplicates} duplicates");
    let timeouts = world.metric("doorbell_attempts_total{outcome=\"timeout\"}").await?;
    assert!(timeouts < 1.0, "no endpoint took long: {timeouts} did");
    world.finish().await
}

pub(crate) async fn a_broadcast_reaches_everyone_once() -> anyhow::Result<()> {
    let world = World::start("everyone").await?;
    for n in 0..4 {
        let tenant = format!("tenant-{n}");
        world.subscribe_many(&tenant, (&format!("{tenant}-all"), 150), &["#"]).await?;
        world.subscribe_many(&tenant, (&format!("{tenant}-other"), 5), &["other.#"]).await?;
    }
    let paused = world.subscribe("tenant-0", "paused", &["#"]).await?;
    world.set_status("tenant-0", &paused, "paused").await?;
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 503));
    world.subscribe("tenant-1", "flaky", &["news.*"]).await?;
    world.in_force().await;
    world.publish("*", "news.today", json!({ "for": "everyone" })).await?;
    let outsider = world.outsider().await?;
    outsider.publish("news.amqp", amqp::event("*", Some("evt-all"), &[]), b"2").await?;
    world.ledger.accepted("*", "news.amqp", "evt-all", "2");
    world.publish("tenant-2", "news.two", json!(2)).await?;
    eventually("all but the paused one are served", seconds(60), || async {
        world.ledger.missing(&world.receiver).iter().all(|(endpoint, _)| endpoint == "paused")
    })
    .await?;
    assert_eq!(world.receiver.count("paused"), 0);
    world.set_status("tenant-0", &paused, "active").await?;
    world.settle(seconds(60)).await?;
    assert_eq!(world.duplicates().await?, 0);
    assert_eq!(world.receiver.count("tenant-0-other-0"), 0);
    world.check_history().await?;
    // Each attempt stands in the history of the tenant whose endpoint it was.
    let records = outsider.stream("doorbell.attempts", 1).await?;
    let first = records.first().map(|record| String::from_utf8_lossy(&record.data).into_owned());
    assert!(first.is_some_and(|text| text.contains("\"tenant\":\"tenant-")));
    world.finish().await
}
