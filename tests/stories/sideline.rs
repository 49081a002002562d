//! A flood waits aside, and nobody waits behind it: of events that are each for many, or of what falls due at once.

use std::time::Duration;

use doorbell_platform::broker::topology::{RETRIES, SIDELINE_RETRIES};
use doorbell_platform::clock;
use doorbell_tests::load::{publish_many, publish_many_for};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, eventually};
use serde_json::json;

use crate::gate::{beside, neighbours_are_served};

/// Events of the flood: more than two dispatchers may have in hand of one queue.
const EVENTS: u16 = 1500;
/// Endpoints of each.
const ENDPOINTS: usize = 20;
/// POSTs in flight of each dispatcher.
const IN_FLIGHT: usize = 40;

/// A tenant whose every event takes a dispatcher's permits for a while, beside healthy ones. From
/// such a share on its events go aside at ingest.
async fn flooded(name: &str, sideline_above: &str) -> anyhow::Result<World> {
    let mut setup = Setup::default();
    setup.dispatcher_extra.push(("DOORBELL_MAX_IN_FLIGHT".to_owned(), IN_FLIGHT.to_string()));
    setup.extra.push(("DOORBELL_SIDELINE_ABOVE".to_owned(), sideline_above.to_owned()));
    let world = World::with(name, setup).await?;
    world.subscribe_many("flood", ("flooded", ENDPOINTS), &["#"]).await?;
    behave(&world, &Behaviour::Slow(Duration::from_millis(200)));
    beside(&world).await?;
    Ok(world)
}

/// All endpoints of the flood behave so from now on.
fn behave(world: &World, behaviour: &Behaviour) {
    for n in 0..ENDPOINTS {
        world.receiver.behave(&format!("flooded-{n}"), behaviour.clone());
    }
}

/// Neighbours do not wait for the flood to end; answers how much of it had been served by then.
async fn nobody_waits_behind_it(world: &World) -> anyhow::Result<usize> {
    neighbours_are_served(world).await?;
    let served: usize =
        (0..ENDPOINTS).map(|n| world.receiver.accepted(&format!("flooded-{n}"))).sum();
    let all = usize::from(EVENTS) * ENDPOINTS;
    assert!(served < all * 3 / 4, "{served} of {all} had been served: it proves nothing");
    Ok(served)
}

pub(crate) async fn a_flood_over_http_goes_aside_at_ingest() -> anyhow::Result<()> {
    let world = flooded("aside-http", "1").await?;
    for n in 0..EVENTS {
        world.publish("flood", "a", json!(n)).await?;
    }
    let served = nobody_waits_behind_it(&world).await?;
    let aside = world.metric("doorbell_events_sidelined_total").await?;
    eprintln!(
        "a flood over HTTP: {aside} events went aside, neighbours were served after {served}"
    );
    // Ten at once, and one a second, are its share.
    assert!(aside > f64::from(EVENTS) * 0.8, "{aside} events went aside");
    behave(&world, &Behaviour::Status(200));
    world.settle(seconds(120)).await?;
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

pub(crate) async fn a_flood_over_amqp_is_moved_aside_once() -> anyhow::Result<()> {
    const KILLS: usize = 2;
    let world = flooded("aside-amqp", "1000000").await?;
    publish_many(&world, "flood", EVENTS.into()).await?;
    let served = nobody_waits_behind_it(&world).await?;
    let moved = world.metric("doorbell_handoffs_total{queue=\"sideline\"}").await?;
    eprintln!(
        "a flood over AMQP: {moved} events were moved aside, neighbours were served after {served}"
    );
    assert!(moved > f64::from(EVENTS) / 2.0, "{moved} events were moved aside");
    for _ in 0..KILLS {
        let before = world.receiver.total();
        for name in ["dispatcher-1", "dispatcher-2"] {
            world.kill_and_restart(name).await?;
        }
        eventually("deliveries go on", seconds(30), || async {
            world.receiver.total() > before + 10 * IN_FLIGHT
        })
        .await?;
    }
    behave(&world, &Behaviour::Status(200));
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "both dispatchers killed {KILLS} times amid what was moved aside: {duplicates} duplicates"
    );
    assert!(duplicates <= KILLS * 2 * IN_FLIGHT, "{duplicates} duplicates");
    world.finish().await
}

pub(crate) async fn dispatchers_killed_while_they_move_a_flood_aside_repeat_little()
-> anyhow::Result<()> {
    const KILLS: usize = 3;
    let world = flooded("aside-kills", "1000000").await?;
    for _ in 0..KILLS {
        publish_many(&world, "flood", (EVENTS / 3).into()).await?;
        for name in ["dispatcher-1", "dispatcher-2"] {
            world.kill_and_restart(name).await?;
        }
    }
    behave(&world, &Behaviour::Status(200));
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    let copies = world.metric("doorbell_handoff_copies_total").await?;
    eprintln!(
        "dispatchers killed {KILLS} times while they moved a flood aside: {duplicates} duplicates, {copies} copies dropped since the last kill"
    );
    assert!(duplicates <= KILLS * 2 * IN_FLIGHT, "{duplicates} duplicates");
    world.finish().await
}

/// What falls due at once is decided about and delivered beside others' retries, not before them.
pub(crate) async fn what_falls_due_at_once_delays_nobodys_retries() -> anyhow::Result<()> {
    const DUE: u64 = 12_000;
    const SCHEDULER: &str = "retry-scheduler-1";
    let world = World::start("due").await?;
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 500));
    world.subscribe("flood", "flooded", &["#"]).await?;
    world.subscribe("acme", "flaky", &["#"]).await?;
    world.in_force().await;
    // The first come by the delay queues, the others straight from the dispatchers.
    let due = clock::now().plus(seconds(15));
    publish_many_for(&world, "flood", DUE / 3, due).await?;
    world.stop(SCHEDULER).await?;
    publish_many_for(&world, "flood", DUE - DUE / 3, due).await?;
    let outsider = world.outsider().await?;
    let are_in_line = async |count| {
        let depths = (outsider.depth(RETRIES).await, outsider.depth(SIDELINE_RETRIES).await);
        matches!(depths, (Ok(main), Ok(aside)) if u64::from(main + aside) >= count)
    };
    eventually("all are in line", seconds(60), || are_in_line(DUE)).await?;
    world.publish("acme", "a", json!(1)).await?;
    eventually("one that failed is, too", seconds(30), || are_in_line(DUE + 1)).await?;
    eventually("the time has come", seconds(30), || async { clock::now() > due }).await?;
    world.restart(SCHEDULER).await?;
    eventually("it is tried again", seconds(60), || async {
        world.receiver.accepted("flaky") == 1
    })
    .await?;
    let before = world.receiver.accepted("flooded");
    eprintln!("{DUE} fell due at once: {before} had come when another's retry did");
    assert!(before < usize::try_from(DUE)? * 3 / 4, "{before} of {DUE} came first");
    world.settle(seconds(120)).await?;
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}
