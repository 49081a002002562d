//! One endpoint's trouble is its own: it is left alone, and nobody waits for it.

use std::time::Duration;

use doorbell_tests::api::subscription;
use doorbell_tests::load::publish_many;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, eventually};
use serde_json::json;

/// Enough tenants that some share a queue with any other.
const NEIGHBOURS: u32 = 48;
/// Events for each of them.
const EACH: usize = 5;
/// Longer than these stories: what must not wait for an endpoint that takes so long, does not.
const HANGS: Duration = seconds(25);

pub(crate) async fn an_endpoint_that_is_down_is_left_alone_and_then_served() -> anyhow::Result<()> {
    const EVENTS: u32 = 300;
    let world = World::start("breaker").await?;
    world.receiver.behave("down", Behaviour::Status(500));
    world.subscribe("acme", "down", &["#"]).await?;
    world.subscribe("acme", "well", &["#"]).await?;
    world.in_force().await;
    for n in 0..EVENTS {
        world.publish("acme", "a", json!(n)).await?;
    }
    let held = || async {
        world.metric("doorbell_deliveries_held_total{reason=\"breaker\"}").await.unwrap_or(0.0)
    };
    let open = || async { world.metric("doorbell_breakers_open").await.unwrap_or(0.0) };
    eventually("both dispatchers leave it alone", seconds(30), || async { open().await > 1.5 })
        .await?;
    eventually("most are held", seconds(30), || async { held().await >= 200.0 }).await?;
    eventually("the others are served", seconds(30), || async {
        world.receiver.accepted("well") == EVENTS as usize
    })
    .await?;
    let attempts = world.receiver.count("down");
    assert!(attempts < EVENTS as usize, "{attempts} attempts at an endpoint that is down");
    world.receiver.behave("down", Behaviour::Status(200));
    world.settle(seconds(120)).await?;
    eprintln!("{EVENTS} events for an endpoint that was down: {attempts} attempts meanwhile");
    eventually("no breaker is open", seconds(10), || async { open().await < 0.5 }).await?;
    assert_eq!(world.ledger.duplicates(&world.receiver), 0);
    let dead = world.metric("doorbell_dead_letters_total{reason=\"exhausted\"}").await?;
    assert!(dead < 0.5, "attempts were burnt: {dead} were given up");
    world.finish().await
}

pub(crate) async fn an_endpoint_that_asks_for_it_is_left_alone() -> anyhow::Result<()> {
    let world = World::with("throttled", Setup { dispatchers: 1, ..Setup::default() }).await?;
    world.receiver.behave("asks", Behaviour::RetryAfter(3));
    world.subscribe("acme", "asks", &["#"]).await?;
    world.in_force().await;
    world.publish("acme", "a", json!(0)).await?;
    eventually("it has asked", seconds(10), || async { world.receiver.count("asks") == 1 }).await?;
    eventually("and that is known", seconds(10), || async {
        world.metric("doorbell_attempts_total{outcome=\"throttled\"}").await.unwrap_or(0.0) > 0.5
    })
    .await?;
    world.receiver.behave("asks", Behaviour::Status(200));
    for n in 1..20 {
        world.publish("acme", "a", json!(n)).await?;
    }
    world.settle(seconds(60)).await?;
    let posts = world.receiver.posts_to("asks");
    let pause = posts[1].at.duration_since(posts[0].at);
    assert!(pause >= seconds(3), "it was called again after {pause:?}");
    let held = world.metric("doorbell_deliveries_held_total{reason=\"throttled\"}").await?;
    assert!(held >= 19.0, "{held} were held");
    world.finish().await
}

pub(crate) async fn an_endpoint_that_hangs_holds_nobody_up() -> anyhow::Result<()> {
    let world = World::start("hanging").await?;
    world.receiver.behave("hangs", Behaviour::Slow(HANGS));
    let mut body = subscription(&world.receiver.url("hangs"), &["#"]);
    body["timeout"] = "30s".into();
    world.subscribe_as("stuck", "hangs", body).await?;
    beside(&world).await?;
    publish_many(&world, "stuck", 1500).await?;
    neighbours_are_served(&world).await?;
    let stuck = world.receiver.posts_to("hangs").len();
    assert!(world.receiver.accepted("hangs") == 0 && stuck <= 64, "{stuck} POSTs to it");
    world.receiver.behave("hangs", Behaviour::Status(200));
    world.settle(seconds(180)).await?;
    assert_eq!(world.ledger.duplicates(&world.receiver), 0);
    world.finish().await
}

pub(crate) async fn a_flood_for_a_slow_endpoint_holds_nobody_up() -> anyhow::Result<()> {
    const FLOOD: u64 = 5000;
    let world = World::start("flood").await?;
    world.receiver.behave("slow", Behaviour::Slow(seconds(1)));
    world.subscribe("flood", "slow", &["#"]).await?;
    beside(&world).await?;
    publish_many(&world, "flood", FLOOD).await?;
    neighbours_are_served(&world).await?;
    let meanwhile = world.receiver.accepted("slow");
    assert!(meanwhile < 4000, "{meanwhile} of the flood had been served: it proves nothing");
    let held = world.metric("doorbell_deliveries_held_total{reason=\"busy\"}").await?;
    assert!(held > 1000.0, "{held} were held");
    world.receiver.behave("slow", Behaviour::Status(200));
    world.settle(seconds(400)).await?;
    assert_eq!(world.ledger.duplicates(&world.receiver), 0);
    eprintln!("a flood of {FLOOD} for a slow endpoint: neighbours were served after {meanwhile}");
    world.finish().await
}

/// Healthy tenants beside it.
async fn beside(world: &World) -> anyhow::Result<()> {
    for n in 0..NEIGHBOURS {
        let name = format!("neighbour-{n}");
        world.subscribe(&name, &name, &["#"]).await?;
    }
    world.in_force().await;
    Ok(())
}

/// All of them get all of theirs, long before an endpoint that hangs would answer.
async fn neighbours_are_served(world: &World) -> anyhow::Result<()> {
    for n in 0..NEIGHBOURS {
        for event in 0..EACH {
            world.publish(&format!("neighbour-{n}"), "a", json!(event)).await?;
        }
    }
    eventually("all neighbours are served", HANGS / 2, || async {
        (0..NEIGHBOURS).all(|n| world.receiver.accepted(&format!("neighbour-{n}")) == EACH)
    })
    .await
}
