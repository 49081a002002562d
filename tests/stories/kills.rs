//! Services killed at any moment, and services that stop as they are asked to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::event::{Event, Trace};
use doorbell_common::ids::SubscriptionId;
use doorbell_common::work::{Delivery, Work};
use doorbell_platform::broker::{Message, topology};
use doorbell_platform::clock;
use doorbell_producer::{NewEvent, Publisher};
use doorbell_tests::api::subscription;
use doorbell_tests::chaos::{self, Engines};
use doorbell_tests::load::{Load, publish_many};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, amqp, eventually};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::Instant;

pub(crate) async fn a_dispatcher_killed_amid_10_000_events_loses_none() -> anyhow::Result<()> {
    const EVENTS: u64 = 10_000;
    let world = Arc::new(World::start("kill").await?);
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    let publishing = publish_many(&world, "acme", EVENTS);
    let killing = async {
        eventually("some have arrived", seconds(60), || async {
            world.receiver.accepted("all") > 1500
        })
        .await?;
        world.kill_and_restart("dispatcher-1").await?;
        eventually("half have arrived", seconds(120), || async {
            world.receiver.accepted("all") > 5000
        })
        .await?;
        world.kill_and_restart("dispatcher-2").await
    };
    tokio::try_join!(publishing, killing)?;
    world.settle(seconds(180)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!("kill -9 of each dispatcher amid {EVENTS} events: 0 lost, {duplicates} duplicates");
    Arc::into_inner(world).unwrap().finish().await
}

/// Copies of what is published, and of what our services hand on, were with a dispatcher when it died: all of them come
/// again, and none of them is known to be done.
pub(crate) async fn copies_that_a_killed_dispatcher_had_are_delivered_once() -> anyhow::Result<()> {
    const EACH: u8 = 6;
    const DISPATCHERS: [&str; 2] = ["dispatcher-1", "dispatcher-2"];
    let world = World::start("had-copies").await?;
    let id = world.subscribe("acme", "slow", &["#"]).await?.parse::<SubscriptionId>()?;
    world.receiver.behave("slow", Behaviour::Slow(seconds(1)));
    world.in_force().await;
    for name in DISPATCHERS {
        world.signal(name, Signal::SIGSTOP).await?;
    }
    let outsider = world.outsider().await?;
    let publisher = Publisher::connect(&world.environment.amqp_url).await?;
    let mut queues = topology::ingress_queues();
    queues.push(topology::DELIVERIES.to_owned());
    for n in 0..EACH {
        let published =
            NewEvent { id: Some(format!("published-{n}")), ..NewEvent::new("acme", "a", "1") };
        let handed_on = Arc::new(Event {
            id: format!("handed-on-{n}").parse()?,
            tenant: "acme".parse()?,
            event_type: "a".parse()?,
            timestamp: clock::now(),
            trace: Trace::default(),
            data: b"1".as_slice().into(),
        });
        let delivery = Delivery::begin(handed_on, id.clone(), clock::now());
        let work = Work::Parcel(delivery.into()).next();
        for _ in 0..2 {
            publisher.publish(&published).await?;
            outsider.publish_message(Message::work(topology::DELIVERIES, &work)?).await?;
        }
        for id in [format!("published-{n}"), format!("handed-on-{n}")] {
            world.ledger.accepted("acme", "a", &id, "1");
        }
    }
    publisher.close().await;
    eventually("all are with the dispatchers", seconds(20), || async {
        let depths = queues.iter().map(|queue| outsider.depth(queue));
        futures_util::future::try_join_all(depths)
            .await
            .is_ok_and(|all| all.iter().all(|n| *n == 0))
    })
    .await?;
    for name in DISPATCHERS {
        world.kill_and_restart(name).await?;
    }
    world.settle(seconds(60)).await?;
    assert_eq!(
        (world.duplicates().await?, world.receiver.accepted("slow")),
        (0, 2 * usize::from(EACH))
    );
    world.finish().await
}

pub(crate) async fn any_service_killed_under_load_loses_none() -> anyhow::Result<()> {
    let world = Arc::new(World::with("kills", Setup::default().without_breaker()).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 503));
    world.subscribe("acme", "steady", &["#"]).await?;
    world.subscribe("acme", "flaky", &["#"]).await?;
    world.in_force().await;
    let loads: Vec<Load> =
        (0..8).map(|_| Load::over_http(&world, "acme", Duration::from_millis(5))).collect();
    for round in 0..2 {
        for name in
            ["retry-scheduler-1", "dispatcher-1", "producer", "dispatcher-2", "control-plane"]
        {
            let before = world.receiver.accepted("steady");
            eventually("load flows", seconds(60), || async {
                world.receiver.accepted("steady") > before + 200
            })
            .await?;
            world.kill_and_restart(name).await?;
            world.until_readiness(name, true).await?;
        }
        eprintln!("round {round}: {} events", world.ledger.count());
    }
    let mut accepted = 0;
    for load in loads {
        accepted += load.end().await?;
    }
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!("every service killed twice amid {accepted} events: 0 lost, {duplicates} duplicates");
    Arc::into_inner(world).unwrap().finish().await
}

/// Each event is for one endpoint, and RabbitMQ confirms no records just then: what was delivered and not acknowledged
/// is delivered again.
pub(crate) async fn a_kill_repeats_no_more_of_single_deliveries_than_may_be_in_flight()
-> anyhow::Result<()> {
    const EVENTS: usize = 300;
    const IN_FLIGHT: usize = 16;
    let mut setup = Setup { dispatchers: 1, ..Setup::private() };
    setup.dispatcher_extra.push(("DOORBELL_MAX_IN_FLIGHT".to_owned(), IN_FLIGHT.to_string()));
    let world = World::with("alone", setup).await?;
    world.receiver.behave("all", Behaviour::Slow(Duration::from_millis(100)));
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    let outsider = world.outsider().await?;
    for n in 0..EVENTS {
        let id = format!("s-{n}");
        world.ledger.accepted("acme", "a", &id, "1");
        outsider.publish("a", amqp::event("acme", Some(&id), &[]), b"1").await?;
    }
    // By then the dispatcher has many of them in hand.
    let flows = || async { world.receiver.count("all") > EVENTS / 4 };
    eventually("a part has arrived", seconds(60), flows).await?;
    world.engines.rabbitmq.lock().await.process().signal(Signal::SIGSTOP)?;
    let seen = Mutex::new((0, Instant::now()));
    let stands_still = || async {
        let (count, mut seen) = (world.receiver.count("all"), seen.lock().unwrap());
        if seen.0 != count {
            *seen = (count, Instant::now());
        }
        seen.1.elapsed() > seconds(1)
    };
    eventually("no more arrives", seconds(30), stands_still).await?;
    world.kill("dispatcher-1").await?;
    world.engines.rabbitmq.lock().await.process().signal(Signal::SIGCONT)?;
    world.restart("dispatcher-1").await?;
    world.settle(seconds(120)).await?;
    // Neither ready nor with a consumer: RabbitMQ has yet to see that the last one is gone.
    world.until_nothing_waits().await?;
    let duplicates = world.duplicates().await?;
    eprintln!("killed without a confirm for a while: {duplicates} duplicates");
    assert!(duplicates <= IN_FLIGHT, "{duplicates} duplicates");
    world.finish().await
}

/// And where there is one message only, RabbitMQ may forget to try again before another one comes
/// the same way.
pub(crate) async fn a_lone_retry_that_comes_due_while_rabbitmq_starts_is_not_late()
-> anyhow::Result<()> {
    const ROUNDS: u32 = 6;
    let world = Arc::new(World::with("lone", Setup::private().without_breaker()).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 503));
    let mut body = subscription(&world.receiver.url("flaky"), &["#"]);
    body["retry"] = json!({ "schedule": ["2s"] });
    world.subscribe_as("acme", "flaky", body).await?;
    world.in_force().await;
    let mut slowest = Duration::ZERO;
    for round in 1..=ROUNDS {
        let id = world.publish("acme", "a", json!(round)).await?;
        eventually("it is tried", seconds(60), || async {
            world.receiver.posts_to("flaky").iter().any(|post| post.id == id)
        })
        .await?;
        world.engines.rabbitmq.lock().await.kill().await;
        world.engines.rabbitmq.lock().await.start_again().await?;
        world.until_all_ready().await?;
        let ready = Instant::now();
        world.settle(seconds(100)).await?;
        slowest = slowest.max(ready.elapsed());
    }
    eprintln!("a lone retry came at most {slowest:.1?} after RabbitMQ was back");
    world.until_nothing_waits().await?;
    Arc::into_inner(world).unwrap().finish().await
}

pub(crate) async fn a_clean_stop_makes_no_duplicates() -> anyhow::Result<()> {
    let world = Arc::new(World::start("stop").await?);
    for n in 0..20 {
        let endpoint = format!("slow-{n}");
        world.receiver.behave(&endpoint, Behaviour::Slow(Duration::from_millis(200)));
        world.subscribe("acme", &endpoint, &["#"]).await?;
    }
    world.in_force().await;
    let load = Load::over_http(&world, "acme", Duration::from_millis(10));
    for name in ["dispatcher-1", "dispatcher-2", "retry-scheduler-1", "dispatcher-1"] {
        let before = world.receiver.total();
        eventually("load flows", seconds(60), || async { world.receiver.total() > before + 100 })
            .await?;
        assert_eq!(world.stop(name).await?, Some(0), "{name} stops cleanly");
        world.restart(name).await?;
        world.until_readiness(name, true).await?;
    }
    let accepted = load.end().await?;
    world.settle(seconds(120)).await?;
    eprintln!("four clean stops amid {accepted} events for 20 slow endpoints");
    world.check_history().await?;
    assert_eq!(world.duplicates().await?, 0);
    Arc::into_inner(world).unwrap().finish().await
}

pub(crate) async fn a_fan_out_cut_by_a_stop_goes_on_elsewhere() -> anyhow::Result<()> {
    // More endpoints than are served at once, so that some have not begun when the stop comes.
    let mut setup = Setup::default();
    setup.dispatcher_extra.push(("DOORBELL_MAX_IN_FLIGHT".to_owned(), "20".to_owned()));
    let world = World::with("pages", setup).await?;
    for n in 0..300 {
        let endpoint = format!("e-{n}");
        world.receiver.behave(&endpoint, Behaviour::Slow(Duration::from_millis(1500)));
        world.subscribe("acme", &endpoint, &["#"]).await?;
    }
    world.in_force().await;
    world.publish("acme", "a", json!(1)).await?;
    eventually("a dispatcher works on it", seconds(20), || async {
        world.metric("doorbell_posts_in_flight").await.unwrap_or(0.0) > 10.0
    })
    .await?;
    for name in ["dispatcher-1", "dispatcher-2"] {
        world.signal(name, Signal::SIGTERM).await?;
    }
    for name in ["dispatcher-1", "dispatcher-2"] {
        assert_eq!(world.stop(name).await?, Some(0));
    }
    let before = world.receiver.total();
    assert!(before < 300, "the stop came too late to cut anything");
    world.restart("dispatcher-1").await?;
    world.restart("dispatcher-2").await?;
    world.settle(seconds(60)).await?;
    eprintln!("a fan-out of 300 was cut after {before}, and finished by another dispatcher");
    assert_eq!(world.receiver.total(), 300, "no endpoint was served twice");
    world.check_history().await?;
    world.finish().await
}

pub(crate) async fn everything_killed_in_turn_loses_nothing() -> anyhow::Result<()> {
    let world = Arc::new(
        World::with("turns", Setup { schedulers: 2, ..Setup::private() }.without_breaker()).await?,
    );
    world.receiver.behave("flaky", Behaviour::FailFirst(2, 503));
    world.receiver.behave("slow", Behaviour::Slow(Duration::from_millis(300)));
    for endpoint in ["steady", "flaky", "slow"] {
        world.subscribe("acme", endpoint, &["#"]).await?;
    }
    world.in_force().await;
    let loads: Vec<Load> =
        (0..4).map(|_| Load::over_http(&world, "acme", Duration::from_millis(10))).collect();
    let services =
        ["dispatcher-1", "retry-scheduler-1", "producer", "dispatcher-2", "retry-scheduler-2"];
    for round in 0..3 {
        for name in services {
            world.kill_and_restart(name).await?;
            // No waiting until it is ready: the next one dies while this one still begins.
            let before = world.receiver.total();
            let flows = || async { world.receiver.total() > before + 20 };
            eventually("some POSTs come", seconds(60), flows).await?;
        }
        if round % 2 == 0 {
            world.engines.rabbitmq.lock().await.kill().await;
            world.engines.rabbitmq.lock().await.start_again().await?;
        } else {
            world.engines.redis.lock().await.kill().await;
            world.engines.redis.lock().await.start_again().await?;
        }
    }
    let mut accepted = 0;
    for load in loads {
        accepted += load.end().await?;
    }
    world.until_all_ready().await?;
    world.settle(seconds(150)).await?;
    world.until_nothing_waits().await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "15 services, RabbitMQ twice and Redis once killed amid {accepted} events: 0 lost, {duplicates} duplicates"
    );
    Arc::into_inner(world).unwrap().finish().await
}

/// Another seed each time; `cargo run -p doorbell-tests --bin chaos -- --seed SEED` plays it again.
pub(crate) async fn whatever_happens_loses_nothing() -> anyhow::Result<()> {
    let seed = u64::from(rand::random::<u16>());
    let engines = Engines { nodes: 1, has_redis_cluster: false };
    let round = chaos::round(seed, seconds(45), engines).await;
    let round = round.with_context(|| format!("seed {seed}"))?;
    eprintln!("{round}");
    Ok(())
}

/// RabbitMQ moves what has waited in a delay queue on by itself, and right after a start the queue
/// that it moves to may not be there yet: by default it tries such a message again after three
/// minutes.
pub(crate) async fn retries_that_come_due_while_rabbitmq_starts_are_not_late() -> anyhow::Result<()>
{
    const EVENTS: u64 = 2000;
    let world = Arc::new(World::with("due", Setup::private().without_breaker()).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(2, 503));
    let mut body = subscription(&world.receiver.url("flaky"), &["#"]);
    body["retry"] = json!({ "schedule": ["4s", "4s"] });
    world.subscribe_as("acme", "flaky", body).await?;
    world.in_force().await;
    publish_many(&world, "acme", EVENTS).await?;
    for _ in 0..3 {
        let before = world.receiver.accepted("flaky");
        world.engines.rabbitmq.lock().await.kill().await;
        world.engines.rabbitmq.lock().await.start_again().await?;
        world.until_all_ready().await?;
        eprintln!("{before} had arrived before RabbitMQ was killed");
    }
    world.settle(seconds(100)).await?;
    world.until_nothing_waits().await?;
    Arc::into_inner(world).unwrap().finish().await
}
